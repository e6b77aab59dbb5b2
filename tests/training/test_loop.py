"""The loop and the evaluation, on models small enough to reason about."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score, jaccard_score
from torch import nn
from torchmetrics.functional.classification import multiclass_jaccard_index

from segsweep.config.schema import AugmentationConfig, DataConfig, OptimConfig, TrainConfig
from segsweep.data import geometry
from segsweep.data.batches import EvalBatches, Pixels, Sampling, TrainBatches
from segsweep.data.geometry import Canvas
from segsweep.data.labels import labels
from segsweep.data.sources import folder
from segsweep.data.store import open_store
from segsweep.engine import losses
from segsweep.engine.execution import PLAIN
from segsweep.engine.scorer import Scorer
from segsweep.engine.step import TrainStep
from segsweep.errors import NonFiniteError
from segsweep.training import optim
from segsweep.training.loop import fit, stop_reason
from segsweep.training.state import Progress, TrainState

CPU = torch.device("cpu")
NAMES = ("background", "foreground")
STATE = ("lr", "optimizer", "average", "progress")
SIZES = [(40, 48), (33, 70), (40, 48), (64, 41)]


class Brightness(nn.Module):
    """Foreground is what is brighter than a learnt threshold."""

    def __init__(self):
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(0.5))
        self.slope = nn.Parameter(torch.tensor(5.0))

    def forward(self, pixels):
        return (pixels.mean(1, keepdim=True) / 255 - self.threshold) * self.slope


@pytest.fixture
def data(pairs):
    """Batches by part, from 12 images of 40x48 whose foreground is bright."""
    store = open_store(folder.find(DataConfig(root=str(pairs(12)))).samples)
    pixels = Pixels(store, labels(store.counts()), CPU)

    def make(kind, indices=range(12), size=(32, 32), resize="pad", grad_accum=1):
        canvas = Canvas(size, resize)
        if kind is EvalBatches:
            return EvalBatches(pixels, indices, canvas, 4)
        return TrainBatches(pixels, indices, canvas, Sampling(4, grad_accum=grad_accum))

    return make


def state_of(model, lr=0.05, optimizer=None, average=None, progress=None):
    optimizer = optimizer or optim.build(OptimConfig(name="adam", lr=lr, encoder_lr_scale=1.0, weight_decay=0.0), model)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainState(model, optimizer, scaler, average, progress or Progress())


def evaluate(model, batches, loss, names, show=(), tta="none", tile=None):
    return Scorer(PLAIN, tta, tile).evaluate(model, batches, loss, names, show)


def training(data, model=None, *, grad_accum=1, schedule="constant", warmup=0.0, watch=lambda items, *_: items, **more):
    state = state_of(model or Brightness(), **{k: more.pop(k) for k in STATE if k in more})
    loss, batches = losses.build({"ce": 1.0}), data(EvalBatches)
    train = TrainConfig(batch_size=4, grad_accum=grad_accum, grad_clip=0.0, **more)
    steps, step = OptimConfig(schedule=schedule, warmup=warmup), TrainStep(PLAIN, loss)
    return fit(
        state,
        step,
        data(TrainBatches, grad_accum=grad_accum),
        lambda scored: evaluate(scored, batches, loss, NAMES),
        train,
        steps,
        watch=watch,
    )


def test_fit_yields_each_epoch(data):
    epochs = list(training(data, epochs=3))
    assert [e.number for e in epochs] == [1, 2, 3]
    assert epochs[-1].metrics["train/loss"] < epochs[0].metrics["train/loss"]
    assert epochs[-1].metrics["best/val_iou"] == max(e.metrics["val/iou"] for e in epochs)


def test_the_caller_may_stop_at_any_epoch(data):
    progress = Progress()
    for _ in training(data, epochs=50, progress=progress):
        break
    assert progress.epoch == 1


def test_an_interrupted_epoch_does_not_count(data):
    progress = Progress()
    model = Brightness()
    calls = 0

    def interrupted(steps, _, title):
        nonlocal calls
        calls += 1
        if title == "epoch 2":
            raise KeyboardInterrupt
        return steps

    with pytest.raises(KeyboardInterrupt):
        list(training(data, model, epochs=5, progress=progress, watch=interrupted))
    assert progress.epoch == 1


def test_going_on_is_the_same_as_never_stopping(data):
    whole, cut = Brightness(), Brightness()
    list(training(data, whole, epochs=4, lr=0.01))
    progress = Progress()
    optimizer = optim.build(OptimConfig(name="adam", lr=0.01, encoder_lr_scale=1.0, weight_decay=0.0), cut)
    for stop in (2, 4):
        list(training(data, cut, epochs=stop, optimizer=optimizer, progress=progress))
    assert torch.equal(whole.threshold, cut.threshold)
    assert torch.equal(whole.slope, cut.slope)


def test_micro_batches_are_the_same_step(data):
    one, two = Brightness(), Brightness()
    list(training(data, one, epochs=1))
    list(training(data, two, epochs=1, grad_accum=2))
    assert one.threshold.item() == pytest.approx(two.threshold.item(), abs=2e-3)


def test_class_weights_fade_with_the_share_of_the_training(data):
    """What the loss sees of them, step by step: twelve images in batches of four, two epochs."""
    seen = []

    class Seen(losses.FadingLoss):
        def advance(self, done):
            super().advance(done)
            seen.append(self._now.tolist())

    step = TrainStep(PLAIN, Seen({"ce": 1.0}, [1.0, 64.0]))
    validate = partial(evaluate, batches=data(EvalBatches), loss=losses.build({"ce": 1.0}), names=NAMES)
    train = TrainConfig(epochs=2, batch_size=4, grad_accum=1)
    assert len(list(fit(state_of(Brightness()), step, data(TrainBatches), validate, train, OptimConfig()))) == 2
    assert seen == [pytest.approx([1.0, 64 ** (1 - n / 6)]) for n in range(6)]


def test_patience_counts_from_the_best_epoch(data):
    class Worse(Brightness):
        def forward(self, pixels):
            return super().forward(pixels) * 0 - 1  # nothing is foreground, whatever is learnt

    progress = Progress()
    assert len(list(training(data, Worse(), epochs=20, patience=2, progress=progress))) == 3
    assert stop_reason(progress, TrainConfig(epochs=20, patience=2)) == "val/iou has not improved for 2 epochs"


@pytest.mark.parametrize("warmup", [0.0, 0.9])
def test_a_nan_is_refused_with_its_step_and_a_tenth_of_the_peak_rate(data, warmup):
    class Broken(Brightness):
        def forward(self, pixels):
            return super().forward(pixels) * math.nan

    with pytest.raises(NonFiniteError, match=r"epoch 1, step 1, with optim\.lr=0\.05\..*Try optim\.lr=0\.005\."):
        list(training(data, Broken(), epochs=1, warmup=warmup))


@pytest.mark.parametrize("resize", ["pad", "squash", "crop"])
@pytest.mark.parametrize("size", [(32, 32), (64, 40), (96, 96)])
def test_scores_are_of_the_masks_own_grid(data, resize, size):
    """Against scikit-learn on the very pixels of the masks, whatever canvas the model saw."""
    batches = data(EvalBatches, size=size, resize=resize)
    found = evaluate(Brightness(), batches, losses.build({"ce": 1.0}), NAMES, show=range(12))
    targets = {i: target for batch in batches for i, target in zip(batch.indices, batch.targets, strict=True)}
    truth = np.concatenate([targets[i].numpy().ravel() for i in range(12)])
    predicted = np.concatenate([found.predictions[i].numpy().ravel() for i in range(12)])
    assert predicted.shape == truth.shape == (12 * 40 * 48,)
    assert found.metrics["iou"] == pytest.approx(jaccard_score(truth, predicted))
    assert found.metrics["accuracy"] == pytest.approx((truth == predicted).mean())


class Levels(nn.Module):
    """The class is how bright a pixel is, in steps of 60."""

    def __init__(self, k):
        super().__init__()
        self.centres = nn.Parameter(torch.arange(k).view(1, k, 1, 1) * 60.0)

    def forward(self, pixels):
        return -(pixels.mean(1, keepdim=True) - self.centres).abs()


@pytest.mark.parametrize("resize", ["pad", "squash", "crop"])
@pytest.mark.parametrize("absent", [False, True])
def test_scores_of_several_classes_with_void_are_scikit_learns(tmp_path, resize, absent):
    rng = np.random.default_rng(0)
    values = [0, 1, 3, 255] if absent else [0, 1, 2, 3, 255]
    masks = [rng.choice(values, (h, w), p=[0.4, *[0.6 / (len(values) - 1)] * (len(values) - 1)]) for h, w in SIZES]
    for i, mask in enumerate(masks):
        noise = np.where(mask == 255, rng.integers(0, 4, mask.shape), mask) * 60 + rng.normal(0, 30, mask.shape)
        for kind, pixels in (("images", noise.clip(0, 255)), ("masks", mask)):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / kind / f"{i}.png")
    store = open_store(folder.find(DataConfig(root=str(tmp_path))).samples)
    names = ("a", "b", "c", "d")
    meaning = labels(store.counts(), names)
    batches = EvalBatches(Pixels(store, meaning, CPU), range(4), Canvas((48, 64), resize), 2)
    found = evaluate(Levels(4), batches, losses.build({"ce": 0.5, "lovasz": 0.5}), names, show=range(4))
    truth = np.concatenate([mask.ravel() for mask in masks])
    predicted = np.concatenate([found.predictions[i].numpy().ravel() for i in range(4)])[truth != 255]
    truth = truth[truth != 255]
    present = [0, 1, 3] if absent else [0, 1, 2, 3]
    for name, score in (("iou", jaccard_score), ("dice", f1_score)):
        each = score(truth, predicted, labels=range(4), average=None, zero_division=0)
        assert found.metrics[name] == pytest.approx(each[present].mean())
    assert found.metrics["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    assert found.metrics["iou_micro"] == pytest.approx(jaccard_score(truth, predicted, average="micro"))
    each = multiclass_jaccard_index(torch.from_numpy(predicted), torch.from_numpy(truth), 4, average=None)
    for i, name in enumerate(names):
        assert found.metrics[f"iou/{name}"] == pytest.approx(
            float(each[i]) if i in present else math.nan, nan_ok=True, abs=1e-6
        )


def test_at_native_size_a_perfect_model_scores_one(data):
    found = evaluate(Brightness(), data(EvalBatches, resize="crop"), losses.build({"ce": 1.0}), NAMES)
    bright = data(EvalBatches, resize="crop")
    exact = all(
        torch.equal((batch.image.mean(1) / 255 > 0.5).long(), batch.mask) for batch in bright if batch.mask.max() < 255
    )
    assert (found.metrics["iou"] == 1) == exact


def test_strips_change_nothing(data, monkeypatch):
    batches = data(EvalBatches, size=(64, 64))
    whole = evaluate(Brightness(), batches, losses.build({"ce": 1.0}), NAMES)
    monkeypatch.setattr(geometry, "STRIP", (100, 100))
    assert evaluate(Brightness(), batches, losses.build({"ce": 1.0}), NAMES).metrics == whole.metrics


@pytest.mark.gpu
def test_a_gpu_trains_to_the_same_scores(pairs):
    root = pairs(12)
    scores = []
    for device in (CPU, torch.device("cuda")):
        store = open_store(folder.find(DataConfig(root=str(root))).samples).to(device)
        pixels, canvas = Pixels(store, labels(store.counts()), device), Canvas((32, 32), "pad")
        model, loss = Brightness().to(device), losses.build({"ce": 1.0})
        augmentation = AugmentationConfig(hflip=0.5, rotate=10)
        batches = EvalBatches(pixels, range(12), canvas, 4)
        epochs = fit(
            state_of(model, lr=0.01),
            TrainStep(PLAIN, loss),
            TrainBatches(pixels, range(12), canvas, Sampling(4), augmentation),
            lambda scored, batches=batches, loss=loss: evaluate(scored, batches, loss, NAMES),
            TrainConfig(epochs=3, batch_size=4),
            OptimConfig(schedule="cosine", warmup=0.0),
        )
        scores.append([epoch.metrics["val/iou"] for epoch in epochs])
    assert scores[0] == pytest.approx(scores[1], abs=0.01)


def test_a_training_that_is_over_does_not_go_on(data):
    assert list(training(data, epochs=3, progress=Progress(epoch=3))) == []
    stale = Progress(epoch=5, best_epoch=1, best_iou=0.5)
    assert list(training(data, epochs=9, patience=4, progress=stale)) == []
    ten = TrainConfig(time_budget=10)
    assert stop_reason(Progress(epoch=2, seconds=9.5, validation_seconds=[1.0]), ten) == "time budget of 10 s"
    assert stop_reason(Progress(epoch=2, seconds=8.5, validation_seconds=[1.0]), ten) == ""


def test_frozen_parts_keep_their_statistics(data):
    class Frozen(Brightness):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3).requires_grad_(False)

        def forward(self, pixels):
            return super().forward(self.norm(pixels))

    model = Frozen()
    list(training(data, model, epochs=1))
    assert torch.equal(model.norm.running_mean, torch.zeros(3))


def test_the_schedule_is_laid_over_the_time_budget(data, monkeypatch):
    from segsweep.training import loop as engine

    now = 0.0

    def tick():
        nonlocal now
        now += 0.1
        return now

    monkeypatch.setattr(engine.time, "perf_counter", tick)
    progress = Progress()
    epochs = list(training(data, lr=0.01, schedule="cosine", progress=progress, time_budget=20.0))
    rates = [epoch.metrics["lr"] for epoch in epochs]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 0.009
    assert rates[-1] < 0.0003
    assert 18 < progress.seconds < 20 + 0.6  # a step looks at the clock six times


def test_flips_average_the_logits_of_mirrored_views(data):
    class Slanted(Brightness):
        """Adds a slope from left to right, which a flip takes away."""

        def forward(self, pixels):
            slope = torch.linspace(-50, 50, pixels.shape[-1])
            return super().forward(pixels) + slope

    loss = losses.build({"ce": 1.0})
    batches = data(EvalBatches, size=(40, 48))
    plain = evaluate(Brightness(), batches, loss, NAMES)
    assert evaluate(Slanted(), batches, loss, NAMES).metrics["iou"] < plain.metrics["iou"]
    for kind in ("hflip", "flips"):
        found = evaluate(Slanted(), batches, loss, NAMES, tta=kind)
        assert found.metrics["iou"] == pytest.approx(plain.metrics["iou"], abs=1e-3)


def test_the_average_is_what_is_scored(data):
    model = Brightness()
    average = optim.Average(model, 0.999)
    epochs = list(training(data, model, epochs=2, lr=0.5, average=average))
    assert average.steps == 2 * len(data(TrainBatches))
    loss = losses.build({"ce": 1.0})
    own = evaluate(average.model, data(EvalBatches), loss, NAMES).metrics["loss"]
    assert epochs[-1].metrics["val/loss"] == own
    assert own != evaluate(model, data(EvalBatches), loss, NAMES).metrics["loss"]


def test_tiles_score_what_is_local_as_whole_images_do(data):
    loss = losses.build({"ce": 1.0})
    batches = data(EvalBatches, resize="crop")
    whole = evaluate(Brightness(), batches, loss, NAMES)
    cut = evaluate(Brightness(), batches, loss, NAMES, tile=(32, 33))
    assert cut.metrics == pytest.approx(whole.metrics, abs=1e-6)
