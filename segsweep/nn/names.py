"""Write the list of timm's names: `python -m segsweep.nn.names > /tmp/names && mv /tmp/names segsweep/timm_names.txt`.

Every architecture is built and run on the `meta` device to find its kind: some twenty minutes.
"""

import timm
from timm.models import list_models, list_pretrained

from segsweep.nn.encoder import encoder_traits


def main() -> None:
    tags: dict[str, list[str]] = {name: [] for name in list_models()}
    for name in list_pretrained():
        architecture, _, tag = name.partition(".")
        if tag:
            tags[architecture].append(tag)
    print(f"# timm {timm.__version__}")
    for name in sorted(tags):
        print(" ".join([name, encoder_traits(name).kind, *sorted(tags[name])]), flush=True)


if __name__ == "__main__":
    main()
