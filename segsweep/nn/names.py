"""Write the list of timm's names: `python -m segsweep.nn.names > segsweep/timm_names.txt`."""

import timm
from timm.models import list_models, list_pretrained


def main() -> None:
    tags: dict[str, list[str]] = {name: [] for name in list_models()}
    for name in list_pretrained():
        architecture, _, tag = name.partition(".")
        if tag:
            tags[architecture].append(tag)
    print(f"# timm {timm.__version__}")
    for name in sorted(tags):
        print(" ".join([name, *sorted(tags[name])]))


if __name__ == "__main__":
    main()
