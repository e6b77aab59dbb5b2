"""timm's model names without importing timm (10 s): for completion, closest names and early refusals.

`timm_names.txt` is written by `python -m segsweep.nn.names`: a first line with timm's version, then one architecture a
line, followed by its pretrained tags.
"""

from functools import cache
from importlib.metadata import version
from pathlib import Path

from segsweep.errors import ConfigError, closest

_FILE = Path(__file__).with_name("timm_names.txt")


@cache
def _read() -> tuple[str, dict[str, tuple[str, ...]]]:
    head, *lines = _FILE.read_text(encoding="utf-8").splitlines()
    rows = (line.split() for line in lines)
    return head.removeprefix("# timm "), {name: tuple(tags) for name, *tags in rows}


def architectures() -> list[str]:
    """Every architecture of the listed timm, sorted."""
    return list(_read()[1])


def names(prefix: str = "") -> list[str]:
    """What may stand after `encoder=`: architectures, and `architecture.tag` once an architecture is spelt out."""
    known = _read()[1]
    architecture, dot, _ = prefix.partition(".")
    if dot:
        return [f"{architecture}.{tag}" for tag in known.get(architecture, ())]
    return list(known)


def knows(name: str) -> bool:
    """Whether timm has that name; True where the installed timm is another than the listed one, and decides later."""
    listed, known = _read()
    architecture, _, tag = name.partition(".")
    return (architecture in known and (not tag or tag in known[architecture])) or version("timm") != listed


def check(name: str) -> None:
    """Refuse a name that timm does not know.

    An installed timm of another version than the listed one decides for itself, later.

    Raises:
        ConfigError: with the closest names.
    """
    if knows(name):
        return
    known = _read()[1]
    architecture, _, tag = name.partition(".")
    if architecture in known:
        tags = known[architecture]
        what = f"{architecture} has no pretrained tag {tag!r}"
        near = [f"{architecture}.{other}" for other in closest(tag, tags, n=3) or tags[:3]] or [architecture]
    else:
        what = "not a timm model"
        near = closest(architecture, known, n=3)
    if not near:
        raise ConfigError(f"encoder={name}: {what}. List them with: python -c 'import timm; print(timm.list_models())'")
    raise ConfigError(f"encoder={name}: {what}. Closest: {', '.join(near)}. Try encoder={near[0]}.")
