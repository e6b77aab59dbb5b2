"""Write docs/reference.md: every key, metric, file and exit code. Run it after any of them has changed."""

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import yaml  # noqa: E402

from segsweep.config.checks import flat  # noqa: E402
from segsweep.config.schema import Key, keys  # noqa: E402
from segsweep.config.screen import ScreenConfig  # noqa: E402
from segsweep.config.sweeper import PREFIX, SweeperConfig  # noqa: E402

GROUPS = ("optim", "augmentation", "loss", "data", "recipe", "tracking", "debug")
# Exit code, when, and what is left to do.
CODES = {
    0: ("success, or `segsweep stop` stopped the run", ""),
    1: ("`segsweep sync`: something could not be sent", "type the same command later"),
    2: ("error in the command line, the configuration or the run folder", "type what the error says"),
    3: ("error in the data", "the error lists what is wrong with which file"),
    4: ("out of memory", "set `train.grad_accum` as the error says"),
    5: ("NaN or infinity in the loss", "start again with a smaller `optim.lr`"),
    6: (
        "too many trials of a sweep failed, or three in a row on this host before their first epoch",
        "the error has the reason of the last failed trial",
    ),
    7: (
        "the system refuses a file: the disk is full or read-only, or permission is missing",
        "do what the error says; a training or a sweep then continues as for 130",
    ),
    70: ("a bug in segsweep", "the error names a file with the traceback; `SEGSWEEP_DEBUG=1` raises the exception"),
    130: ("Ctrl-C", "a run: `resume=DIR`; a sweep: the command that it printed, with `hydra.sweep.dir=DIR`"),
    141: ("nobody reads the output any more, as with `head`", ""),
    143: ("SIGTERM or a closed terminal", "as for 130"),
}
# Of each epoch; `val/` stands for `test/`, too.
METRICS = {
    "val/iou": "two classes: IoU of the foreground; more classes: mean over the classes that occur in the split's "
    "masks, background included",
    "val/dice": "Dice coefficient, averaged in the same way",
    "val/iou_fg": "mean IoU over all classes except the first one",
    "val/iou_micro": "IoU of the pooled pixels of all classes, background included: large classes decide it",
    "val/iou_image": "IoU of each image, averaged over the images. Two classes: IoU of the foreground; more classes: "
    "mean over the classes that occur in the image's mask or prediction. If the mask is empty and the prediction is "
    "not, the image's IoU is 0; if both are empty, the image is left out",
    "val/iou/<class>": "IoU of one class; empty if the class occurs in no mask",
    "val/accuracy": "share of pixels that are predicted correctly",
    "val/loss": "mean loss over the images",
    "train/loss": "mean loss over the steps",
    "best/val_iou": "the best `val/iou` so far",
    "best/epoch": "the epoch with the best `val/iou`; at the run's end",
    "lr": "learning rate of the decoder at the epoch's end",
    "probe/separability": "`segsweep probe`: separability of the classes in frozen features (GBC), 0 at best",
    "probe/alpha, probe/features, probe/pixels": "`segsweep probe`: the ridge penalty, features of each pixel, number "
    "of pixels drawn",
    "perf/images_per_s": "images per second in training, the time for making batches included",
    "perf/data_share": "share of the training time in which batches were made or waited for",
    "perf/peak_memory_gb": "peak memory: on a GPU of the epoch, on a CPU of the process since its start",
    "perf/seconds": "seconds of training and validation so far",
    "perf/tflops": "10^12 floating-point operations per second in the training steps",
    "perf/peak_share": "`perf/tflops` divided by the speed of this machine's fastest convolution",
    "lowest/iou, lowest/image": "the validation image with the lowest IoU (`summary.json`)",
}


def key_rows(known: Iterable[Key]) -> list[str]:
    return ["| key | what it sets | default |", "|---|---|---|", *map(_row, known)]


def _options(group: str) -> Iterator[str]:
    """Yield a row for each option of a group: its comment, and what it sets."""
    chosen = re.search(rf"^  - {group}: (\w+)", (ROOT / "conf" / "config.yaml").read_text(encoding="utf-8"), re.M)
    for path in sorted((ROOT / "conf" / group).glob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        about = " ".join(line[2:] for line in lines if line.startswith("# ") and "@package" not in line)
        shown = f"`{group}={path.stem}`"
        shown = f"**{shown}**" if chosen and chosen[1] == path.stem else shown
        yield f"| {shown} | {_cell(about)} | {_cell(', '.join(_sets(group, path)))} |"


def _sets(group: str, path: Path) -> Iterator[str]:
    """Yield what an option sets, as one would type it."""
    text = path.read_text(encoding="utf-8")
    tree = yaml.safe_load(text) or {}
    for chosen in tree.pop("defaults", []):
        if isinstance(chosen, dict):
            yield from (f"`{name.removeprefix('override /')}={option}`" for name, option in chosen.items())
    for name, value in flat(tree, "" if "@package _global_" in text else f"{group}."):
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        yield f"`{name}={shown.replace(' ', '')}`"


def _row(key: Key) -> str:
    default = "null" if key.default is None else str(key.default).replace(" ", "") or '""'
    shown = default.lower() if isinstance(key.default, bool) else default
    return f"| `{key.name}` | {_cell(key.help)} | `{shown}` |"


def _cell(text: str) -> str:
    return re.sub(r"([|*<>])", r"\\\1", text)


def reference() -> str:
    """Return the page."""
    files = (ROOT / "outputs" / "README.md").read_text(encoding="utf-8").partition("| path |")[1:]
    metrics = [f"| {', '.join(f'`{n}`' for n in name.split(', '))} | {about} |" for name, about in METRICS.items()]
    codes = [f"| {code} | {when} | {then} |" for code, (when, then) in CODES.items()]
    groups = [row for name in GROUPS for row in _options(name)]
    of_search = {key.name for key in keys(SweeperConfig, PREFIX)}
    parts = [
        "# Reference\n",
        "`python .ci/reference.py` writes this page. `python train.py --help` prints the keys, too. A group",
        "(`loss=dice`) sets several keys at once; `--cfg job` shows the result.\n",
        "## Groups\n",
        "Type `GROUP=OPTION`. The defaults are bold.\n",
        "| option | what it is | what it sets |",
        "|---|---|---|",
        "| `encoder=NAME` | any timm model, or a file of your own in conf/encoder/ | `encoder.name` |",
        *groups,
        "\n## Keys\n",
        *key_rows(keys()),
        "| `hydra.run.dir` | folder of the run | `outputs/DATE/TIME` |",
        "\n## Keys of a search\n",
        "For `-m hydra/sweeper=optuna`. The files in `sweeps/` have other defaults.\n",
        *key_rows(keys(SweeperConfig, PREFIX)),
        "| `hydra.sweep.dir` | folder of the sweep | `outputs/DATE/TIME-multirun` |",
        "\n## Keys of a screening\n",
        "For `sweeps=screen`. `slots`, `backend`, `address` and `gpus` are the same as in a search.\n",
        *key_rows(key for key in keys(ScreenConfig, PREFIX) if key.name not in of_search),
        "| `hydra.sweep.dir` | folder of the screening | `outputs/sweeps/screen-DATA` |",
        "\n## Metrics\n",
        "All scores are computed at each mask's own resolution. `test/...` are the same scores on the test split: of",
        "the best checkpoint, computed once.\n",
        "| metric | what it is |",
        "|---|---|",
        *metrics,
        "\n## Files\n",
        "They are written into `outputs/` in the working folder, or into the folder `$SEGSWEEP_OUTPUTS`. `predict -o`",
        "and `export -o` write to a path of your choice, `data.download=true` writes into `data.root`.\n",
        "".join(files).strip(),
        "\n## Exit codes\n",
        "| code | meaning | what to do |",
        "|---|---|---|",
        *codes,
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "reference.md").write_text(reference(), encoding="utf-8")
