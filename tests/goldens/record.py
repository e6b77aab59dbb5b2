"""Record what a commit's trainings and sweeps compute, to prove that a later commit computes the same.

    python tests/goldens/record.py CHECKOUT OUT

Runs `python train.py ...` of CHECKOUT, any commit's, on small seeded data and writes below OUT, which must not exist:

- `goldens.json`: the numbers and decisions of each run, of a sweep, and what MLflow was told, without times, ids and
  what depends on the machine;
- `fixtures/`: the folders of a complete run, a stopped one and a sweep, reduced to what a later commit needs to read
  them; `ROOT` stands in their text files for the folder that holds them.

Record both commits on one machine and compare: there, losses are equal bit for bit.

    git worktree add build/before COMMIT
    python tests/goldens/record.py build/before build/goldens-before
    python tests/goldens/record.py . build/goldens-after
    python tests/goldens/compare.py build/goldens-before/goldens.json build/goldens-after/goldens.json

What is committed here is of the first release, v0.1.0, and is not made anew with each change: `tests/test_goldens.py`
proves that its folders stay readable. Needs what segsweep needs; imports nothing of it, since
modules move.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = "GOLDENS_ROOT"
"""In place of the folder that holds the recorded ones."""

IMAGES = {"train": 12, "val": 6, "test": 4}
HEIGHT, WIDTH = 40, 48
TRAINING = (
    "encoder.pretrained=false",
    "decoder.width=[8,8,8,8,8]",
    "train.device=cpu",
    "train.precision=fp32",
    "train.deterministic=true",
    "train.batch_size=4",
)
CHANGES = re.compile(r"code(-\d+)?\.diff$")
# Of records and summaries: when, where and how fast.
VOLATILE = {
    *("time", "run", "run_id", "segsweep", "torch", "python", "host", "user", "commit", "dirty", "device", "threads"),
    *("rates", "peak", "seconds"),
}
VOLATILE_TAGS = {"segsweep.run", "mlflow.user", "mlflow.source.git.commit", "dirty", "mlflow.parentRunId"}
# Needed to resume, to predict and to report; hydra.yaml, pictures and pages are not.
KEPT = (
    *("metrics.jsonl", "split.csv", "summary.json", ".hydra/config.yaml", ".hydra/overrides.yaml"),
    *("val_matrices.npz", "plan.json", "trial.json", "sweep.json", "optuna-journal.log"),
)
TEXT = (".jsonl", ".json", ".yaml", ".csv", ".log")


def pairs(root: Path) -> list[str]:
    """The overrides of a data set in `root/data`: four mask values, split into train, val and test."""
    return ["data=folder", f"data.root={root / 'data'}", "data.size=[32,48]", *TRAINING]


def runs(root: Path) -> dict[str, list[str]]:
    """The command line of each run by name, without its folder; `resumed` is stopped after one epoch before that."""
    two = [*pairs(root), "data.binarize=true", "encoder=test_efficientnet", "train.epochs=3"]
    return {
        "plain": [*two, "data.passes=6"],
        "classes": [
            *pairs(root),
            "data.classes=[ground,square,stripe,corner]",
            "data.balance=0.5",
            "encoder=test_vit",
            "encoder.drop_path=0.1",
            "loss.class_weights=auto",
            "optim.freeze_epochs=1",
            "optim.layer_decay=0.8",
            "augmentation=strong",
            "train.grad_accum=2",
            "train.ema=0.9",
            "train.tta=hflip",
            "train.epochs=2",
            "tracking=none",
        ],
        "resumed": [
            *two,
            "data.passes=6",
            "optim.freeze_epochs=1",  # and last.pt is small: Adam knows the decoder only
            "decoder.dropout=0.2",
            "augmentation=light",
            "tracking=none",
        ],
        "shapes": [
            *TRAINING,
            "data.count=20",
            "data.size=[64,64]",
            "data.passes=10",
            "data.normalize=percentile",
            "encoder=test_resnet",
            "loss=ce_lovasz",
            "loss.pos_weight=auto",
            "optim=sgd",
            "optim.schedule=onecycle",
            "train.epochs=2",
            "tracking=none",
        ],
    }


def sweep(root: Path) -> list[str]:
    """The command line of the sweep, without its folder: four trials, two finalists with two fresh seeds each."""
    return [
        *("-m", "hydra/sweeper=optuna"),
        *pairs(root),
        "data.binarize=true",
        "data.passes=6",
        "encoder=choice(test_efficientnet,test_efficientnet_gn)",
        "train.epochs=2",
        *(f"hydra.sweeper.{setting}" for setting in ("n_trials=4", "finalists=2", "repeats=2", "slots=1")),
        "hydra.sweeper.pruner=none",
    ]


def write_pairs(folder: Path, seed: int = 0) -> None:
    """Images of coloured squares, stripes and corners on noise, and their masks of values 0 to 3, as PNG files."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    for split, number in IMAGES.items():
        for i in range(number):
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            mask[:9, : int(rng.integers(9, 20))] = 3
            column, top, left = (int(rng.integers(low, high)) for low, high in ((2, 40), (10, 22), (2, 28)))
            mask[:, column : column + 5] = 2
            mask[top : top + 16, left : left + 16] = 1
            image = rng.integers(0, 16, (HEIGHT, WIDTH, 3)).astype(np.uint8) * 4
            image += np.array([[20, 20, 20], [180, 80, 60], [60, 170, 80], [70, 60, 180]], np.uint8)[mask]
            for kind, pixels in (("images", image), ("masks", mask)):
                path = folder / kind / split / f"{split}{i:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)


def read_run(folder: Path) -> dict[str, Any]:
    """What a run computed and decided, from its folder."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records: dict[str, list[dict[str, Any]]] = {"start": [], "epoch": [], "end": []}
    for record in map(json.loads, lines):
        records[record.pop("kind")].append(record)
    resumed = len(records["start"]) > 1  # from its journal alone since records have types
    words = [] if resumed else (folder / ".hydra" / "overrides.yaml").read_text(encoding="utf-8").splitlines()
    records = {kind: [steady(record) for record in rows] for kind, rows in records.items()}
    return {
        "starts": records["start"],
        "epochs": records["epoch"],
        "ends": records["end"],
        "summary": steady(json.loads((folder / "summary.json").read_text(encoding="utf-8"))),
        "model": read_model(folder / "best.safetensors"),
        "overrides": words,
        "files": files(folder),
    }


def read_model(path: Path) -> dict[str, Any]:
    """What a file of safetensors says of itself, and a hash of its tensors with their names."""
    content = path.read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:size])
    about = {name: _parsed(value) for name, value in header.pop("__metadata__").items()}
    tensors = json.dumps(header, sort_keys=True).encode() + content[size:]
    return {"about": about, "sha256": hashlib.sha256(tensors).hexdigest()}


def read_sweep(folder: Path, said: str) -> dict[str, Any]:
    """A sweep's trials, finalists, ranking and winner, from its folder and from what it printed."""
    about = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    trials = {}
    for path in sorted(folder.rglob("trial.json")):
        kept = json.loads(path.read_text(encoding="utf-8"))
        run = read_run(path.parent)
        for start in run["starts"]:
            del start["asked"], start["settings"]  # of all trials they would fill the file
        score = max((epoch["val/iou"] for epoch in run["epochs"] if epoch["val/iou"] is not None), default=None)
        trials[kept["name"]] = {**kept, "score": score, **{key: run[key] for key in ("starts", "epochs", "ends")}}
    tested = [name for name, trial in trials.items() if any("test/iou" in end for end in trial["ends"])]
    _, _, ranking = said.partition("finalists:")
    return {
        "about": about,
        "trials": trials,
        "ranking": ranking.partition("\nreport ")[0].splitlines()[1:],
        "winner": tested,  # it alone is scored on the test split
        "files": [name for name in files(folder) if "/predictions/" not in name],
    }


def read_mlflow(uri: str) -> dict[str, Any]:
    """All that MLflow was told, by experiment and run name; a trial's parameters are left out."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)

    def artifacts(run: str, path: str | None = None) -> Iterator[str]:
        for file in client.list_artifacts(run, path):
            yield from artifacts(run, file.path) if file.is_dir else (file.path,)

    told: dict[str, Any] = {}
    for experiment in client.search_experiments():
        found = client.search_runs([experiment.experiment_id])
        names = {run.info.run_id: run.info.run_name for run in found}
        told[experiment.name] = {}
        for run in found:
            tags = {name: value for name, value in run.data.tags.items() if name not in VOLATILE_TAGS}
            tags["mlflow.note.content"] = _without_speed(tags.get("mlflow.note.content", ""))
            metrics = {
                name: [[point.step, point.value] for point in client.get_metric_history(run.info.run_id, name)]
                for name in sorted(run.data.metrics)
                if not _volatile(name)
            }
            assert run.info.run_name not in told[experiment.name], "two runs of one name"
            told[experiment.name][run.info.run_name] = {
                "status": run.info.status,
                "parent": names.get(run.data.tags.get("mlflow.parentRunId", "")),
                "tags": tags,
                "params": {} if "trial" in tags else steady(run.data.params),
                "metrics": metrics,
                "data": [[i.dataset.name, i.dataset.digest] for i in run.inputs.dataset_inputs],
                "artifacts": sorted({_timeless(path) for path in kept_files(artifacts(run.info.run_id))}),
            }
    return told


def steady(values: dict[str, Any]) -> dict[str, Any]:
    """A record without what differs between two recordings of one commit."""
    kept = {name: value for name, value in values.items() if not _volatile(name)}
    return {name: steady(value) if isinstance(value, dict) else value for name, value in kept.items()}


def files(folder: Path) -> list[str]:
    """What lies below the folder."""
    return kept_files(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def kept_files(names: Iterable[str]) -> list[str]:
    """Names of files but those that only a checkout with changes has."""
    return sorted(name for name in names if not CHANGES.search(name))


def reduce(root: Path, target: Path) -> None:
    """Copy what a later commit needs of the data and of plain, stopped and sweep, and nothing of this machine."""
    shutil.copytree(root / "data", target / "data")
    winner = next(path.parent for path in (root / "sweep").rglob("metrics.jsonl") if '"test/iou"' in path.read_text())
    models = [root / "plain" / "best.safetensors", root / "stopped" / "last.pt", winner / "best.safetensors"]
    for name in ("plain", "stopped", "sweep"):
        wanted = (path for path in (root / name).rglob("*") if path.as_posix().endswith(KEPT) or path in models)
        for path in wanted:
            copy = target / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix in TEXT:
                copy.write_text(_anonymous(path.read_text(encoding="utf-8").replace(str(root), ROOT)), encoding="utf-8")
            else:
                shutil.copy(path, copy)


def unpack(fixtures: Path, root: Path) -> None:
    """Lay the reduced folders below `root`, as if they had been recorded there."""
    shutil.copytree(fixtures, root, dirs_exist_ok=True)
    for path in root.rglob("*"):
        if path.suffix in TEXT:
            path.write_text(path.read_text(encoding="utf-8").replace(ROOT, str(root)), encoding="utf-8")


def record(checkout: Path, root: Path) -> None:
    """Run everything and write `goldens.json` and `fixtures/`."""
    root.mkdir(parents=True)
    write_pairs(root / "data")

    def train(folder: str, words: Iterable[str], key: str = "hydra.run.dir") -> str:
        print(f"{folder} ...", file=sys.stderr)
        where = [] if key == "resume" else [f"{key}={root / folder}"]
        done = subprocess.run(
            [sys.executable, "train.py", *words, *where],
            cwd=checkout,
            env=environment(checkout, root),
            stdout=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            sys.exit(f"{folder}: train.py ended with {done.returncode}")
        return done.stdout

    for name, words in runs(root).items():
        if name != "resumed":
            train(name, words)
            continue
        train(name, [*words, "train.epochs=1"])
        shutil.copytree(root / name, root / "stopped")
        train(name, [f"resume={root / name}", "train.epochs=3"], "resume")
        for path in (root / "stopped").rglob("*"):
            if path.suffix in TEXT:
                path.write_text(path.read_text(encoding="utf-8").replace(str(root / name), str(root / "stopped")))
    said = train("sweep", sweep(root), "hydra.sweep.dir")
    goldens = {
        "runs": {name: read_run(root / name) for name in runs(root)},
        "sweep": read_sweep(root / "sweep", said),
        "mlflow": read_mlflow(f"sqlite:///{root / 'outputs' / 'mlflow.db'}"),
    }
    text = json.dumps(goldens, indent=1, sort_keys=True) + "\n"
    (root / "goldens.json").write_text(text.replace(str(root), ROOT), encoding="utf-8")
    reduce(root, root / "fixtures")


def environment(checkout: Path, root: Path) -> dict[str, str]:
    """Of a training: one thread, the checkout's modules, an outputs folder of its own, no hub, no user's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "SEGSWEEP_"))}
    return {
        **kept,
        "PYTHONPATH": str(checkout),
        "SEGSWEEP_OUTPUTS": str(root / "outputs"),
        "OMP_NUM_THREADS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_OFFLINE": "1",
    }


def _volatile(name: str) -> bool:
    return name in VOLATILE or name.startswith("perf/")


def _without_speed(text: str) -> str:
    """A note without perf/*, and without images/s, which have one decimal and whose width moves a table's spaces."""
    lines = [re.sub(r" +", " ", re.sub(r"\b\d+\.\d\b", "_", line)) for line in text.splitlines() if "perf/" not in line]
    return "\n".join(lines)


def _timeless(path: str) -> str:
    """A logged image's path without the time and the id that MLflow gives it."""
    return re.sub(r"\+timestamp\+\d+\+[0-9a-f-]+", "", path)


def _parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _anonymous(text: str) -> str:
    """Without the names of the machine, its processor and its user."""
    text = re.sub(r'"(host|user)": "[^"]*"', r'"\1": "\1"', text)
    return re.sub(r'"device": "cpu [^"]*"', '"device": "cpu"', text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, metavar="CHECKOUT")
    parser.add_argument("out", type=Path, metavar="OUT")
    options = parser.parse_args()
    record(options.checkout.resolve(), options.out.resolve())
