"""A training and its record: run folder, journal, checkpoints, pictures, the result.

What is wrong with the configuration or the data is refused before the `start` record, and leaves no folder behind.
"""

import logging
import math
import platform
import shlex
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import segsweep
from segsweep import console, metrics
from segsweep.config.schema import RunConfig
from segsweep.data.dataset import spread
from segsweep.data.source import SPLITS
from segsweep.engine import device
from segsweep.errors import ConfigError, DataError, OutOfMemoryError, Terminated, first_line
from segsweep.figures import pictures
from segsweep.nn import checkpoint
from segsweep.nn.checkpoint import BEST, LAST
from segsweep.paths import atomically, save_json
from segsweep.runs import journal, provenance
from segsweep.runs.journal import FolderLock, Journal
from segsweep.tracking import run as tracking
from segsweep.tracking.background import Background
from segsweep.training import loop as engine
from segsweep.training import optim
from segsweep.training.build import Prepared, prepare

log = logging.getLogger(__name__)

SHOWN = 4  # validation images whose predictions are kept as pictures
WORST = 6  # validation images, those with the lowest IoU, that are shown at the end

SPEED = ("perf/images_per_s", "perf/data_share", "perf/tflops", "perf/peak_share")

MATRICES = "val_matrices.npz"


def run(
    config: RunConfig, folder: Path, *, argv: Sequence[str], hydra_files: Mapping[str, str], resuming: bool = False
) -> int:
    """Train as configured, in `folder`; print the result to stdout.

    Args:
        folder: the run folder; made if need be.
        argv: the command line, for the record.
        hydra_files: text of the files to keep in `.hydra/`.
        resuming: go on with the run that the folder holds.

    Returns:
        the exit code: 0, 130 interrupted, 143 terminated.

    Raises:
        ConfigError: what the user can mend; `exit_code` tells the kinds apart.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder)
    try:
        records = journal.read(folder)
        if records and not resuming:
            raise ConfigError(f"{folder}: holds a run already. Go on with it: resume={folder}; or give another folder.")
        _refuse_complete(config, folder, records)
        before = _start(folder, records)
        prepared = prepare(config, before)
        if records:
            _refuse_another(prepared, folder, records[0])
        if before:
            _restore(prepared, folder)
    except BaseException as error:
        if not journal.exists(folder):
            lock.path.unlink(missing_ok=True)
        lock.release()
        mendable = _mendable(error, config)
        if mendable is None or mendable is error:
            raise
        raise mendable from error
    try:
        return _train(prepared, folder, records, argv, hydra_files)
    finally:
        lock.release()


def _work(prepared: Prepared, images_per_s: float) -> dict[str, float]:
    """TFLOP/s that the training reaches, and its share of what the machine's fastest convolution does."""
    height, width = prepared.config.data.size
    done = 3 * 2 * prepared.model.macs((height, width)) * images_per_s
    peak = prepared.tuned.peak  # one that is beaten was measured beside other work: it says nothing
    share = {"perf/peak_share": done / peak} if peak > done else {}
    return {"perf/tflops": done / 1e12, **share}


def _refuse_complete(config: RunConfig, folder: Path, records: list[dict[str, Any]]) -> None:
    if not records or records[-1].get("status") != "complete":
        return
    done, epochs = len(journal.epochs(records)), config.train.epoch_limit
    before = journal.last_start(records)["config"]["train"]
    unchanged = (before["epochs"], before["time_budget"]) == (config.train.epochs, config.train.time_budget)
    if config.train.test and not before.get("test", True):
        return  # only the test split is left to be scored
    if unchanged or (epochs and done >= epochs):
        more = "train.epochs=N" if epochs else "train.time_budget=SECONDS"
        raise ConfigError(f"resume={folder}: complete after {done} epochs. Go further with {more}.")


def _start(folder: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    """The `start` record of the run to go on with; empty where there is no checkpoint yet."""
    if not records or (folder / LAST).exists():
        return journal.last_start(records)
    if journal.epochs(records):
        raise ConfigError(f"resume={folder}: {LAST} is gone, so there is nothing to go on with. Start a new run.")
    return {}


def _refuse_another(prepared: Prepared, folder: Path, start: Mapping[str, Any]) -> None:
    """Refuse what would be another training than the one that the folder's first record began."""
    if prepared.data.store.digest != start["data_digest"]:
        raise DataError(f"resume={folder}: the data have changed since the run began. Start a new run.")
    if prepared.weights_source != start["weights_source"]:
        raise ConfigError(
            f"resume={folder}: began with weights from {start['weights_source']}, now there are those from "
            f"{prepared.weights_source}. Start a new run."
        )


def _train(
    prepared: Prepared, folder: Path, records: list[dict[str, Any]], argv: Sequence[str], hydra_files: Mapping[str, str]
) -> int:
    config, progress = prepared.config, prepared.progress
    epochs = config.train.epoch_limit
    track = Background(config.tracking.timeout) if _tracked(config) else None
    send = partial(tracking.sync, folder, config.tracking.uri)
    with Journal(folder) as book:
        _write_start(prepared, folder, book, records, argv, hydra_files)
        if track:
            track.ask(folder, send)
        shown = spread(prepared.data.parts["val"], SHOWN)
        names = prepared.data.labels.names
        status, reason, code = "complete", "", 0
        failure: ConfigError | None = None
        tested: dict[str, float] = {}
        try:
            for epoch in engine.fit(
                prepared.model,
                prepared.training(),
                prepared.evaluation(prepared.data.parts["val"]),
                prepared.loss,
                prepared.optimizer,
                optim.schedule(config.optim.schedule, config.optim.warmup),
                names=names,
                execution=prepared.tuned.execution,
                scaler=prepared.scaler,
                progress=progress,
                epochs=epochs,
                time_budget=config.train.time_budget,
                clip=config.train.clip,
                patience=config.train.patience,
                seed=config.train.seed,
                freeze_epochs=config.optim.freeze_epochs,
                average=prepared.average,
                flips=engine.FLIPS[config.train.tta],
                tile=prepared.tile,
                show=shown,
                watch=console.bar,
            ):
                metrics = {**epoch.metrics, **_work(prepared, epoch.metrics["perf/images_per_s"])}
                record = {"epoch": epoch.number, "time": time.time(), **metrics}
                _save_last(prepared, folder / LAST, record)
                if epoch.is_best:
                    _save_best(prepared, folder / BEST)
                    _save_matrices(prepared, folder / MATRICES, epoch)
                    _draw(prepared, folder / "predictions", epoch)
                book.write("epoch", **record)
                console.epoch_line(epoch.number, epochs, epoch.metrics, epoch.is_best)
                if track:
                    track.ask(folder, send)
            reason = engine.over(progress, epochs, config.train.time_budget, config.train.patience)
            if "test" in prepared.data.parts and config.train.test:
                tested = _test(prepared, folder / BEST)
            if (folder / MATRICES).exists():
                try:
                    _illustrate(prepared, folder)
                except Exception as error:  # a training is not lost over a picture
                    log.warning("figures/ was not drawn: %s", first_line(error))
        except KeyboardInterrupt:
            status, reason, code = "stopped", "interrupted (Ctrl-C)", 130
        except Terminated:
            status, reason, code = "stopped", "terminated (SIGTERM)", 143
        except BaseException as error:
            failure = _mendable(error, config)
            if failure is None:
                book.write("end", time=time.time(), status="failed", reason=f"{type(error).__name__}: {error}")
                if track:
                    track.ask(folder, send)
                    track.close()
                raise
            status, reason = "failed", str(failure)
        end = {**_best_metrics(journal.epochs(journal.read(folder))), **tested}
        book.write("end", time=time.time(), status=status, reason=reason, **end)
    summary = _write_summary(prepared, folder, end, status)
    print(console.result(folder, summary, reason), flush=True)
    if track:
        track.ask(folder, send)
        problem = track.close()
        _write_summary(prepared, folder, end, status)  # again, for the run's id
        print(console.tracked(folder, tracking.show_command(folder, config.tracking.uri), problem), flush=True)
    if failure:
        raise failure
    return code


def _tracked(config: RunConfig) -> bool:
    return config.tracking.name == "mlflow"


def _write_start(
    prepared: Prepared,
    folder: Path,
    book: Journal,
    records: list[dict[str, Any]],
    argv: Sequence[str],
    hydra_files: Mapping[str, str],
) -> None:
    for name, text in hydra_files.items():
        path = folder / ".hydra" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    prepared.data.write_split(folder)
    commit, dirty, diff = provenance.code()
    if diff:
        (folder / "code.diff").write_text(diff, encoding="utf-8")
    parameters = sum(p.numel() for p in prepared.model.parameters())
    book.write(
        "start",
        version=journal.VERSION,
        time=time.time(),
        run=records[0]["run"] if records else uuid.uuid4().hex,
        segsweep=segsweep.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        host=platform.node(),
        user=provenance.user(),
        command=shlex.join(argv),
        commit=commit,
        dirty=dirty,
        config=asdict(prepared.config),
        epochs=prepared.config.train.epoch_limit,
        weights_source=prepared.weights_source,
        parameters=parameters,
        decoder_width=prepared.model.arguments["width"],
        input_size=prepared.model.encoder.input_size or prepared.config.data.size,
        device=device.describe(prepared.device),
        threads=torch.get_num_threads(),
        precision_used=str(prepared.tuned.execution.precision).removeprefix("torch."),
        channels_last=prepared.tuned.execution.channels_last,
        compiled=prepared.tuned.execution.compile,
        micro_batch=prepared.tuned.batch_size,
        probed=prepared.tuned.rates,
        convolution_peak=prepared.tuned.peak,
        classes=list(prepared.data.labels.names),
        data_digest=prepared.data.store.digest,
        **{f"data/{part}": len(prepared.data.parts.get(part, [])) for part in SPLITS},
        resumed_after=prepared.progress.epoch,
    )
    if prepared.progress.epoch > len(journal.epochs(records)):
        # Killed between the checkpoint and its record: the checkpoint has the record.
        state = checkpoint.load_state(folder / LAST, torch.device("cpu"))
        book.write("epoch", **state["record"])


def _save_best(prepared: Prepared, path: Path) -> None:
    data, progress = prepared.config.data, prepared.progress
    checkpoint.save_model(
        path,
        prepared.scored,
        classes=prepared.data.labels.names,
        size=data.size,
        resize=data.resize,
        epoch=progress.best_epoch,
        val_iou=progress.best_iou,
        range=prepared.data.store.range,
        dtype=str(prepared.data.store.dtype),
        normalize=data.normalize,
    )


def _save_last(prepared: Prepared, path: Path, record: dict[str, Any]) -> None:
    state = {
        "model": prepared.model.state_dict(),
        "optimizer": prepared.optimizer.state_dict(),
        "scaler": prepared.scaler.state_dict(),
        "progress": asdict(prepared.progress),
        "record": record,
    }
    if prepared.average:
        state["average"] = prepared.average.state_dict()
    checkpoint.save_state(path, state)


def _restore(prepared: Prepared, folder: Path) -> None:
    state = checkpoint.load_state(folder / LAST, prepared.device)
    prepared.model.load_state_dict(state["model"])
    prepared.optimizer.load_state_dict(state["optimizer"])
    if prepared.average:
        prepared.average.load_state_dict(state["average"])
    if prepared.scaler.is_enabled() and state["scaler"]:
        prepared.scaler.load_state_dict(state["scaler"])
    prepared.progress = engine.Progress(**state["progress"])
    prepared.model.weights_source = prepared.weights_source
    progress = prepared.progress
    written = checkpoint.describe(folder / BEST)["epoch"] if (folder / BEST).exists() else 0
    if progress.best_epoch == progress.epoch != written:  # killed between the two files
        _save_best(prepared, folder / BEST)


def _draw(prepared: Prepared, folder: Path, epoch: engine.Epoch) -> None:
    for index, prediction in epoch.predictions.items():
        key = prepared.data.samples[index].key.replace("/", "_")
        path = folder / key / f"{epoch.number:04d}.png"
        _compare(prepared, {index: prediction}, path, columns=2)  # MLflow shows pictures in squares


def _compare(prepared: Prepared, predictions: Mapping[int, torch.Tensor], path: Path, columns: int = 4) -> None:
    """Truth and predictions of some samples as one picture."""
    data = prepared.data
    rows = [
        pictures.Compared(
            data.samples[index].key,
            data.store.image(index).cpu().numpy(),
            data.labels.table[data.store.mask(index).cpu().numpy()],
            prediction.numpy(),
        )
        for index, prediction in predictions.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures.comparison(rows, data.labels.names, *data.store.range, columns).save(path)


def _illustrate(prepared: Prepared, folder: Path) -> None:
    """What the kept model gets wrong, and how the training went."""
    from segsweep.figures import curves as figures  # matplotlib: a second

    with np.load(folder / MATRICES, allow_pickle=False) as kept:
        keys, matrices = kept["keys"], torch.from_numpy(kept["matrices"])
    of_key = {prepared.data.samples[index].key: index for index in prepared.data.parts["val"]}
    scores = metrics.overall(metrics.iou(matrices)).nan_to_num(math.inf)  # nothing there, nothing said: all is well
    worst = [of_key[str(keys[i])] for i in scores.argsort(stable=True)[:WORST] if scores[i] < math.inf]
    if worst:
        found = _evaluate(prepared, worst, folder / BEST, show=worst).predictions
        _compare(prepared, {index: found[index] for index in worst}, folder / "figures" / "worst.png")
    pooled = matrices.sum(0)
    figures.training(
        folder / "figures" / "training.png",
        journal.epochs(journal.read(folder)),
        pooled.numpy(),
        metrics.where_present(pooled, metrics.iou(pooled)).numpy(),
        prepared.data.labels.names,
    )


def _save_matrices(prepared: Prepared, path: Path, epoch: engine.Epoch) -> None:
    """Each validation image's confusion matrix, so that runs can be compared image by image.

    `keys`, as in split.csv, and `matrices`, int64 `n k k`, targets in rows.
    """
    keys = np.array([prepared.data.samples[index].key for index in epoch.matrices])
    matrices = torch.stack(list(epoch.matrices.values())).numpy()

    def write(target: Path) -> None:
        with target.open("wb") as file:
            np.savez_compressed(file, keys=keys, matrices=matrices)

    atomically(path, write)


def _test(prepared: Prepared, best: Path) -> dict[str, float]:
    """The best checkpoint on the test split, once."""
    scored = _evaluate(prepared, prepared.data.parts["test"], best)
    return {f"test/{name}": value for name, value in scored.metrics.items()}


def _evaluate(prepared: Prepared, indices: Sequence[int], best: Path, show: Sequence[int] = ()) -> engine.Evaluation:
    """The best checkpoint on some samples."""
    checkpoint.load_weights(best, prepared.model)
    return engine.evaluate(
        prepared.model,
        prepared.evaluation(indices),
        prepared.loss,
        prepared.data.labels.names,
        prepared.tuned.execution,
        flips=engine.FLIPS[prepared.config.train.tta],
        tile=prepared.tile,
        show=show,
        watch=console.bar,
    )


def _best_metrics(epochs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The best epoch's validation, and the run's speed and memory; of the recorded epochs, whatever came after."""
    scored = [record for record in epochs if record["val/iou"] is not None]
    if not scored:
        return {}
    best = max(scored, key=lambda record: record["val/iou"])
    return {
        **{name: value for name, value in best.items() if name.startswith("val/")},
        "best/epoch": best["epoch"],
        "best/val_iou": best["val/iou"],
        "epochs": len(epochs),
        **{name: journal.usual(epochs, name) for name in SPEED if name in epochs[0]},
        "perf/peak_memory_gb": max(record["perf/peak_memory_gb"] for record in epochs),
    }


def _write_summary(prepared: Prepared, folder: Path, end: Mapping[str, Any], status: str) -> dict[str, Any]:
    """The result in one flat file; returned as it was written."""
    config = prepared.config
    summary = journal.finite(
        {
            **end,
            "status": status,
            "seconds": prepared.progress.seconds,
            "run_id": tracking.run_id(folder, config.tracking.uri) if _tracked(config) else None,
            "weights_source": prepared.weights_source,
            "encoder": config.encoder.name,
            "input_size": prepared.model.encoder.input_size,
            "parameters": sum(p.numel() for p in prepared.model.parameters()),
            "precision": device.named(prepared.tuned.execution.precision),
            "channels_last": prepared.tuned.execution.channels_last,
            "micro_batch": prepared.tuned.batch_size,
            "data": config.data.name,
            "classes": list(prepared.data.labels.names),
            "images": {part: len(indices) for part, indices in prepared.data.parts.items()},
            "repeats": config.data.repeats,
        }
    )
    save_json(folder / "summary.json", summary)
    return summary


def _mendable(error: BaseException, config: RunConfig) -> ConfigError | None:
    """The error as one that the user can mend, or None."""
    if isinstance(error, ConfigError):
        return error
    if not device.out_of_memory(error):
        return None
    train = config.train
    finer = train.accumulate * 2
    advice = (
        f"Try train.accumulate={finer}: smaller micro-batches."
        if train.batch_size != "auto" and train.batch_size % finer == 0
        else "Try a smaller train.batch_size or data.size, or train.checkpointing=true."
    )
    return OutOfMemoryError(
        f"out of memory with train.batch_size={train.batch_size} train.accumulate={train.accumulate} "
        f"data.size={config.data.size}. {advice}"
    )
