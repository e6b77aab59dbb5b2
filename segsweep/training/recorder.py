"""The records of a training: journal, checkpoints, pictures, its run in MLflow, the result."""

import hashlib
import logging
import math
import platform
import shlex
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

import segsweep
from segsweep import console, metrics
from segsweep.engine import device as devices
from segsweep.engine.scorer import Evaluation
from segsweep.errors import Asked, ConfigError, Failure, Terminated, as_disk_error, first_line, redacted
from segsweep.figures import pictures
from segsweep.nn import UNet, checkpoint
from segsweep.nn.checkpoint import LAST
from segsweep.paths import BEST, atomically, nan_to_none, save_json, save_text
from segsweep.process import show
from segsweep.runs import provenance
from segsweep.runs.journal import Journal
from segsweep.runs.records import End, EpochRecord, ExecutionRecord, Run, Start, Status, decode, encode
from segsweep.tracking import client
from segsweep.tracking import run as tracking
from segsweep.tracking.background import Background
from segsweep.tracking.system import SystemMonitor
from segsweep.training.build import Training
from segsweep.training.loop import Epoch
from segsweep.training.state import Progress
from segsweep.world import SINGLE, World

log = logging.getLogger(__name__)

SPEED = ("perf/images_per_s", "perf/data_share", "perf/tflops", "perf/peak_share")
SUMMARY = "summary.json"
LONGEST = 200  # bytes of a sample's key that name a folder; file systems allow 255
PLAN = "plan.json"  # the data's fingerprint, what was decided by it, and why


@dataclass(frozen=True)
class Outcome:
    """How a training ended; `error` is to be raised when all is written, `exit_code` is the command's without one."""

    status: Status
    reason: str
    exit_code: int = 0
    error: BaseException | None = None

    @classmethod
    def of(cls, error: BaseException) -> "Outcome":
        """Tell what an exception means for a training."""
        if isinstance(error, KeyboardInterrupt):
            return cls("stopped", "interrupted (Ctrl-C)", 130)
        if isinstance(error, Terminated):
            return cls("stopped", "terminated (SIGTERM)", 143)
        if isinstance(error, Asked):
            return cls("stopped", str(error))
        error = as_disk_error(error)
        reason = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        return cls("failed", redacted(reason), error=error)

    @property
    def failure(self) -> Failure | None:
        """The kind of a failure."""
        if self.error is None:
            return None
        return self.error.failure if isinstance(self.error, ConfigError) else "crash"


def described(
    training: Training, argv: Sequence[str], before: Sequence[Start], commit: str | None, dirty: bool
) -> Start:
    """Return the `start` record of a training that is begun, or goes on from the records `before`.

    Args:
        commit, dirty: which code runs, as `provenance.code` tells.
    """
    model, tuned, first = training.model, training.tuned, before[:1]
    size = model.encoder.input_size or training.canvas.size
    execution = ExecutionRecord(
        device=devices.describe(training.state.device),
        threads=torch.get_num_threads(),
        precision=devices.named(tuned.execution.precision),
        channels_last=tuned.execution.channels_last,
        compiled=tuned.execution.compile,
        doubling=tuned.execution.doubling,
        graphs=tuned.execution.graphs,
        micro_batch=tuned.micro_batch,
        rates=tuned.rates,
        peak=tuned.peak,
        ranks=training.world.size,
    )
    return Start(
        run=first[0].run if first else uuid.uuid4().hex,
        time=time.time(),
        asked=training.asked,
        settings=training.settings,
        execution=execution,
        weights_source=model.weights_source,
        parameters=sum(p.numel() for p in model.parameters()),
        input_size=(size[0], size[1]),
        classes=list(training.data.labels.names),
        data_digest=training.data.store.digest,
        images={part: len(training.data.parts.get(part, [])) for part in ("train", "val", "test")},
        command=shlex.join(argv),
        commit=commit,
        dirty=dirty,
        segsweep=segsweep.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        host=platform.node(),
        user=provenance.user(),
        resumed_after=training.state.progress.epoch,
    )


class Recorder:
    """Writes what a training does into its folder, and has MLflow told of it.

    The order of writing is what a kill at any moment leaves readable: `last.pt` carries the epoch's record and comes
    first, its record in the journal comes last, and every file between them says which epoch it is of. `restore` makes
    what is missing. The process holds the folder's lock; `past` is what the journal says already.
    """

    def __init__(self, training: Training, folder: Path, past: Run):
        self.training, self.folder, self.run = training, folder, past
        tracked = training.asked.tracking
        self._journal = Journal(folder)
        self._background = Background(tracked.timeout) if tracked.name == "mlflow" else None
        self._system = SystemMonitor(folder, tracked.uri) if self._background and tracked.system else None
        self._unwritten: EpochRecord | None = None  # that last.pt has and the journal has not

    def restore(self) -> None:
        """Go on from `last.pt`, and make what a kill between two files has left out.

        Without that file, of a complete run, there is only how far it came: its best model can still be scored.
        """
        training = self.training
        if not (self.folder / LAST).exists():
            epoch = self.run.best
            assert epoch
            done = Progress(len(self.run.epochs), self.run.seconds, epoch.iou or 0.0, epoch.epoch)
            done.validation_seconds.append(math.inf)  # a run with a time budget is over for `stop_reason`, too
            training.state.progress = done
            return
        state = checkpoint.load_state(self.folder / LAST, training.state.device)
        try:
            training.state.load_state_dict(state)
            progress = training.state.progress
            if progress.epoch > len(self.run.epochs):  # killed between the checkpoint and its record
                record = decode(nan_to_none(state["record"] | {"kind": "epoch"}), self.folder / LAST)
                assert isinstance(record, EpochRecord)
                self._unwritten = record
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, AssertionError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(f"{self.folder / LAST}: damaged: {first_line(error)} Start a new run.") from error
        best = self.folder / BEST
        if progress.best_epoch == progress.epoch:  # it may have been killed before it wrote that
            kept_epoch = checkpoint.describe(best).epoch if best.exists() else 0
            if kept_epoch != progress.epoch:
                self._save_best()
        kept = metrics.read_validation(self.folder)
        if progress.best_epoch and (kept is None or kept.epoch != progress.best_epoch):
            self._save_validation(progress.best_epoch, self._evaluate(training.data.parts["val"], training.shown))

    def start(self, argv: Sequence[str], hydra_files: Mapping[str, str]) -> None:
        """Write the `start` record, and files for people next to it."""
        training = self.training
        for name, text in hydra_files.items():
            path = self.folder / ".hydra" / name
            path.parent.mkdir(exist_ok=True)
            save_text(path, text)
        training.data.write_split(self.folder)
        if not self.run.starts:  # what was decided then stays
            plan = [asdict(decision) for decision in training.decisions]
            found = {"fingerprint": asdict(training.fingerprint), "plan": plan}
            save_json(self.folder / PLAN, found)
        commit, dirty, diff = provenance.code()
        if diff:
            later = f"-{len(self.run.starts) + 1}" if self.run.starts else ""
            save_text(self.folder / f"code{later}.diff", diff)
        self._write(described(training, argv, self.run.starts, commit, dirty))
        if self._unwritten:
            self._write(self._unwritten)
        self._ask()

    def epoch(self, epoch: Epoch) -> None:
        """Write an epoch: checkpoints, then what belongs to the best one, then its record."""
        speed = self._work(epoch.metrics["perf/images_per_s"])
        record = EpochRecord(epoch.number, time.time(), {**epoch.metrics, **speed})
        state = {**self.training.state.state_dict(), "record": encode(record)}
        checkpoint.save_state(self.folder / LAST, state)
        if epoch.is_best:
            self._save_best()
            self._save_validation(epoch.number, epoch.validation)
        self._write(record)
        console.epoch_line(epoch.number, self.training.settings.train.epochs, epoch.metrics, epoch.is_best)
        self._ask()

    def finish(self) -> dict[str, float]:
        """Score the test split, if that is wanted, and draw the figures; return the scores by name."""
        tested = {}
        if self.training.scores_test:
            found = self._evaluate(self.training.data.parts["test"], world=self.training.world)
            tested = {f"test/{name}": value for name, value in found.metrics.items()}
        self.draw()
        return tested

    def draw(self) -> None:
        """Draw the figures, where there is something to see."""
        if kept := metrics.read_validation(self.folder):
            try:
                self._illustrate(kept)
            except Exception as error:  # a training is not lost over a picture
                log.warning("figures/ was not drawn: %s", first_line(error))

    def end(self, outcome: Outcome, tested: Mapping[str, float | None]) -> None:
        """Write the `end` record and the result, print it to stdout, and wait for MLflow within bounds.

        A crash has no result: its traceback comes next; nor has a training that could not write.
        """
        broken = outcome.failure in ("crash", "disk")
        scores = {} if broken else {**self._best_metrics(), **tested}
        self._write(End(time.time(), outcome.status, outcome.reason, outcome.failure, scores))
        if broken:
            self._ask()
        else:
            self.summarize()

    def summarize(self) -> None:
        """Write `summary.json` from the journal, print it, and close MLflow."""
        summary, end = self._save_summary(), self.run.end
        show(console.result(self.folder, summary, end.reason if end else ""))
        if self._background:
            self._ask()
            problem = self._background.close()
            self._save_summary()  # again, for the run's id
            shown_by = client.show_command(self.folder, self.training.asked.tracking.uri)
            show(console.tracked(self.folder, shown_by, problem))

    def close(self) -> None:
        """Close the journal and MLflow, after success and after errors."""
        try:
            self._journal.close()  # fails where the disk is full
        finally:
            if self._background:
                if self._system:
                    self._background.ask("system", self._system.end)
                self._background.close()

    def _write(self, record: Start | EpochRecord | End) -> None:
        self.run.records.append(self._journal.write(record))

    def _ask(self) -> None:
        """Have MLflow told, some time soon."""
        if self._background:
            self._background.ask(self.folder, partial(tracking.sync, self.folder, self.training.asked.tracking.uri))
        if self._background and self._system:
            self._background.ask("system", self._system.end if self.run.end else self._system.begin)

    def _work(self, images_per_s: float) -> dict[str, float]:
        """TFLOP/s that the training reaches, and its share of what the machine's fastest convolution does."""
        done = 3 * 2 * self.training.model.macs(self.training.canvas.size) * images_per_s
        # A peak that is beaten was measured beside other work: it says nothing.
        peak = self.training.tuned.peak * self.training.world.size
        share = {"perf/peak_share": done / peak} if peak > done else {}
        return {"perf/tflops": done / 1e12, **share}

    def _save_best(self) -> None:
        training, data = self.training, self.training.settings.data
        kept, progress, ran = training.state.scored, training.state.progress, training.tuned.execution
        assert isinstance(kept, UNet)
        checkpoint.save_model(
            self.folder / BEST,
            kept,
            classes=training.data.labels.names,
            size=data.size,
            resize=data.resize,
            zoom=data.zoom,
            filled=training.canvas.filled,
            epoch=progress.best_epoch,
            val_iou=progress.best_iou,
            range=training.data.store.range,
            dtype=str(training.data.store.dtype),
            precision=devices.named(ran.precision),
            channels_last=ran.channels_last,
            tta=training.settings.train.tta,
            tile=data.tile and (data.tile[0], data.tile[1]),
            values=[value if isinstance(value, int) else [*value] for value in training.data.labels.originals],
            nodata=data.nodata,
        )

    def _save_validation(self, epoch: int, validation: Evaluation) -> None:
        """Keep each validation image's confusion matrix, so that runs can be compared image by image, and pictures.

        `keys`, as in split.csv and in its order, `matrices`, int64 `n k k`, targets in rows, and the `epoch` that they
        are of. They come last: where they are, the pictures are.
        """
        samples = self.training.data.samples
        for index, prediction in validation.predictions.items():
            folder = self.folder / "predictions" / self._named[samples[index].key]
            self._compare({index: prediction}, folder / f"{epoch:04d}.png", columns=2)  # MLflow shows it in squares
        order = self.training.data.parts["val"]  # batches go by size
        keys = np.array([samples[index].key for index in order])
        matrices = np.stack([validation.matrices[index] for index in order])

        def write(target: Path) -> None:
            with target.open("wb") as file:
                np.savez_compressed(file, keys=keys, matrices=matrices, epoch=epoch)

        atomically(self.folder / metrics.MATRICES, write)

    @cached_property
    def _named(self) -> dict[str, str]:
        """The folder of each shown sample's pictures, by its key; a long or ambiguous name ends in the key's hash."""
        keys = [self.training.data.samples[index].key for index in self.training.shown]
        flat = Counter(key.replace("/", "_") for key in keys)
        named = {}
        for key in keys:
            name = key.replace("/", "_")
            if flat[name] > 1 or len(name.encode()) > LONGEST:
                short = name.encode()[:LONGEST].decode(errors="ignore")
                name = f"{short}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
            named[key] = name
        return named

    def draw_batch(self) -> None:
        """Draw what the network sees of the first batch, once."""
        path = self.folder / "figures" / "augmented.png"
        if path.exists():
            return
        try:
            path.parent.mkdir(exist_ok=True)
            sheet = self.training.sheet()
            atomically(path, lambda target: sheet.save(target, "PNG"))
        except Exception as error:  # a training is not lost over a picture
            log.warning("%s was not drawn: %s", path.name, first_line(error))

    def _compare(
        self,
        predictions: Mapping[int, torch.Tensor],
        path: Path,
        columns: int = 4,
        said: Mapping[int, str] | None = None,
    ) -> None:
        """Draw truth and predictions of some samples as one picture; `said` stands before a sample's name."""
        data = self.training.data
        rows = []
        for index, prediction in predictions.items():
            title = " · ".join(filter(None, ((said or {}).get(index), data.samples[index].key)))
            image, mask = (part.cpu().numpy() for part in data.store.pair(index))
            rows.append(pictures.Compared(title, image, data.labels.table[mask], prediction.numpy()))
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = pictures.comparison(rows, data.labels.names, *data.store.range, columns)
        atomically(path, lambda target: picture.save(target, "PNG"))  # half a picture would stop what is sent to MLflow

    def _illustrate(self, kept: metrics.Validation) -> None:
        """Draw what the kept model gets wrong, and how the training went."""
        from segsweep.figures import curves  # matplotlib: a second

        data = self.training.data
        if chosen := metrics.examples(kept.matrices):
            shown = {data.parts["val"][place]: what for place, what in chosen}
            found = self._evaluate(list(shown), list(shown)).predictions
            path = self.folder / "figures" / "worst.png"
            self._compare({index: found[index] for index in shown}, path, said=shown)
        epochs = [{"epoch": epoch.epoch, **epoch.metrics} for epoch in self.run.epochs]
        best = epochs[self.run.epochs.index(self.run.best)] if self.run.best else None
        path = self.folder / "figures" / "training.png"
        curves.training(path, epochs, best, kept.matrices.sum(0), data.labels.names)

    def _evaluate(self, indices: Sequence[int], show: Sequence[int] = (), world: World = SINGLE) -> Evaluation:
        """Score the kept model, as it was at its best, on some samples: alone, or as all processes of `world` do."""
        model = checkpoint.load_model(self.folder / BEST, self.training.state.device)
        if world.size > 1:
            world.agreed((self.folder / BEST).read_bytes())
        self.training.tuned.execution.prepare(model)
        return self.training.evaluate(model, indices, show, world)

    def _best_metrics(self) -> dict[str, float | None]:
        """The best epoch's validation, and the run's speed and memory; of the recorded epochs, whatever came after."""
        best, epochs = self.run.best, self.run.epochs
        if best is None:
            return {}
        return {
            **{name: value for name, value in best.metrics.items() if name.startswith("val/")},
            "best/epoch": best.epoch,
            "best/val_iou": best.iou,
            "epochs": len(epochs),
            **{name: self.run.steady_median(name) for name in SPEED if name in epochs[0].metrics},
            "perf/peak_memory_gb": max(epoch.metrics.get("perf/peak_memory_gb") or 0.0 for epoch in epochs),
        }

    def _lowest(self) -> dict[str, float | str]:
        """The validation image that the best epoch does worst on, and its IoU: a mean hides a pair that is wrong."""
        kept, best = metrics.read_validation(self.folder), self.run.best
        if kept is None or best is None or kept.epoch != best.epoch:
            return {}
        scores = metrics.image_iou(kept.matrices)
        if np.isnan(scores).all():
            return {}
        lowest = int(np.nanargmin(scores))
        data = self.training.data
        image = data.samples[data.parts["val"][lowest]].image
        return {"lowest/iou": float(scores[lowest]), "lowest/image": str(image)}

    def _save_summary(self) -> dict[str, object]:
        """Write the result as one flat file, and return it."""
        start, end, tracked = self.run.start, self.run.end, self.training.asked.tracking
        assert start is not None
        assert end is not None
        summary = {
            **end.metrics,
            **self._lowest(),
            "status": end.status,
            "seconds": self.run.seconds,
            "run_id": tracking.run_id(self.folder, tracked.uri) if self._background else None,
            "weights_source": start.weights_source,
            "encoder": start.settings.encoder.name,
            "input_size": self.training.model.encoder.input_size,
            "parameters": start.parameters,
            **{name: getattr(start.execution, name) for name in ("precision", "channels_last", "micro_batch")},
            "data": start.settings.data.name,
            "classes": start.classes,
            "images": {part: number for part, number in start.images.items() if number},
            "passes": start.settings.data.passes,
        }
        save_json(self.folder / SUMMARY, summary)
        return summary
