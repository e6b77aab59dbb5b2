"""Write docs/reference.md: every key, metric, file and exit code. Run it after any of them has changed."""

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from segsweep.config.schema import Key, keys  # noqa: E402
from segsweep.config.screen import ScreenConfig  # noqa: E402
from segsweep.config.sweeper import PREFIX, SweeperConfig  # noqa: E402

GROUPS = ("optim", "augmentation", "loss", "data", "recipe", "tracking", "debug")
# Exit code, when, and what is left to do.
CODES = {
    0: ("all is done, or a run was stopped by `segsweep stop`", ""),
    1: ("`segsweep sync`: something could not be sent", "the same command later"),
    2: ("command line, configuration, run folder", "what the line says to type"),
    3: ("the data", "the line lists what is wrong with which file"),
    4: ("the device's memory is too small", "`train.grad_accum`, as the line says"),
    5: ("NaN or infinity in the loss", "a smaller `optim.lr`"),
    6: (
        "too many trials of a sweep failed, or all of the first ones on this host",
        "the line has the last one's reason",
    ),
    7: ("the disk is full, or may not be written", "make room; `resume=DIR`, or the sweep's command again"),
    70: ("a fault of segsweep", "the line names a file with the traceback; `SEGSWEEP_DEBUG=1` raises it"),
    130: ("Ctrl-C", "`resume=DIR`, or the sweep's command again"),
    141: ("nobody reads the output any more (`| head`)", ""),
    143: ("SIGTERM or a closed terminal", "`resume=DIR`, or the sweep's command again"),
}
# Of each epoch; `val/` stands for `test/`, too.
METRICS = {
    "val/iou": "two classes: IoU of the foreground; more: mean over the classes in the split's targets, background "
    "included",
    "val/dice": "the same of the Dice coefficient",
    "val/iou_fg": "mean IoU without the first class",
    "val/iou_micro": "intersection over union of all classes' pixels pooled",
    "val/iou_image": "mean over images of each image's own IoU: of two classes the foreground's, of more the mean over "
    "the classes in truth or prediction. Foreground found in an empty mask gives 0; an image without any in both has "
    "no number and is left out",
    "val/iou/<class>": "IoU of one class; empty if no target has it",
    "val/accuracy": "share of pixels that are right",
    "val/loss": "mean loss of the images",
    "train/loss": "mean loss of the steps",
    "best/val_iou": "the best `val/iou` so far",
    "best/epoch": "the epoch that it was after; at the run's end",
    "lr": "the decoder's learning rate at the epoch's end",
    "probe/separability": "`segsweep probe`: how far apart the classes lie in frozen features, 0 at best (GBC)",
    "probe/alpha, probe/features, probe/pixels": "of it: the penalty, features of a pixel, pixels that were drawn",
    "perf/images_per_s": "training steps with their data",
    "perf/data_share": "share of the training's time that went into making batches or waiting for them",
    "perf/peak_memory_gb": "the GPU's memory in the epoch, or on a CPU the process's since it began",
    "perf/seconds": "of training and validation so far",
    "perf/tflops": "10^12 floating-point operations a second that the steps do",
    "perf/peak_share": "their share of what this machine's fastest convolution does",
    "lowest/iou, lowest/image": "the validation image with the lowest IoU of its own (`summary.json`)",
}


def key_rows(known: Iterable[Key]) -> list[str]:
    return ["| key | what it says | default |", "|---|---|---|", *map(_row, known)]


def _options(group: str) -> Iterator[str]:
    """Yield a row for each option of a group: its comment, and what it sets."""
    chosen = re.search(rf"^  - {group}: (\w+)", (ROOT / "conf" / "config.yaml").read_text(encoding="utf-8"), re.M)
    for path in sorted((ROOT / "conf" / group).glob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        about = " ".join(line[2:] for line in lines if line.startswith("# ") and "@package" not in line)
        sets = [line.split("  #")[0].strip() for line in lines if line and not line.startswith(("#", "{", "defaults"))]
        shown = f"`{group}={path.stem}`"
        shown = f"**{shown}**" if chosen and chosen[1] == path.stem else shown
        yield f"| {shown} | {_cell(about)} | {_cell('; '.join(sets))} |"


def _row(key: Key) -> str:
    default = "null" if key.default is None else str(key.default).replace(" ", "")
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
        "Made by `python .ci/reference.py`. `python train.py --help` prints the keys, too. Groups (`loss=dice`) set",
        "several keys at once; `--cfg job` shows the result.\n",
        "## Groups\n",
        "`GROUP=OPTION`. What is bold is the default.\n",
        "| option | what it is | what it sets |",
        "|---|---|---|",
        "| `encoder=NAME` | any timm model, or a file of your own in conf/encoder/ | `encoder.name` |",
        *groups,
        "\n## Keys\n",
        *key_rows(keys()),
        "| `hydra.run.dir` | the run's folder | `outputs/DATE/TIME` |",
        "\n## Keys of a search\n",
        "With `-m hydra/sweeper=optuna`. `sweeps=plan` and `sweeps=cv` set others.\n",
        *key_rows(keys(SweeperConfig, PREFIX)),
        "| `hydra.sweep.dir` | the sweep's folder | `outputs/DATE/TIME-multirun` |",
        "\n## Keys of a screening\n",
        "With `sweeps=screen`. `slots`, `backend`, `address` and `gpus` are as of a search.\n",
        *key_rows(key for key in keys(ScreenConfig, PREFIX) if key.name not in of_search),
        "| `hydra.sweep.dir` | the screening's folder | `outputs/sweeps/screen-DATA` |",
        "\n## Metrics\n",
        "Scores are taken on each mask's own pixel grid. `test/...` are those of the best checkpoint, once.\n",
        "| metric | what it is |",
        "|---|---|",
        *metrics,
        "\n## Files\n",
        "They lie in `outputs/` of the working folder, or where `SEGSWEEP_OUTPUTS` says; `predict` and `export` write",
        "where `-o` says, and `data.download=true` into `data.root`.\n",
        "".join(files).strip(),
        "\n## Exit codes\n",
        "| code | when | then |",
        "|---|---|---|",
        *codes,
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "reference.md").write_text(reference(), encoding="utf-8")
