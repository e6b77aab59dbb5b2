"""Write the list of timm's names, `segsweep/timm_names.txt`: `python benchmarks/names.py`.

Every architecture is built and run on the `meta` device to find its kind: some twenty minutes.
"""

import timm
from measure import ROOT
from timm.models import list_models, list_pretrained

from segsweep.nn.encoder import encoder_traits
from segsweep.paths import atomically


def main() -> None:
    tags: dict[str, list[str]] = {name: [] for name in list_models()}
    for name in list_pretrained():
        architecture, _, tag = name.partition(".")
        if tag:
            tags[architecture].append(tag)
    rows = [f"# timm {timm.__version__}"]
    for name in sorted(tags):
        rows.append(" ".join([name, encoder_traits(name).kind, *sorted(tags[name])]))
    text = "\n".join(rows) + "\n"
    atomically(ROOT / "segsweep" / "timm_names.txt", lambda target: target.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
