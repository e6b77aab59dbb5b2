"""Numbers at their limits, in files, losses, settings, sweeps and scores: what comes is finite and right, or a line."""

import csv
import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from conftest import TINY, read_mask, train_once
from optuna.trial import TrialState
from PIL import Image
from records import decided, end, epoch, start, write_about
from records import write as write_journal
from safetensors.torch import load_file

import train
from segsweep import metrics
from segsweep.commands import app as cli
from segsweep.config.schema import OptimConfig, RunConfig, TrainConfig
from segsweep.config.sweeper import SweeperConfig
from segsweep.engine import losses, step
from segsweep.figures import curves
from segsweep.runs import journal
from segsweep.runs.curve import Curve, Point
from segsweep.runs.trial import Trial, load_all
from segsweep.sweeping import finalists, html_report, pruner, report
from segsweep.sweeping.backends.local import LocalBackend, Slot
from segsweep.sweeping.scheduler import Search, drive
from segsweep.sweeping.space import Space, choice
from segsweep.sweeping.study import Study, optuna_pruner

VOID, LOWEST, HIGHEST, HUGE = 255, float(np.finfo(np.float32).min), float(np.finfo(np.float32).max), 2**40
SHORT = ("data=folder", "data.size=[32,32]", "train.epochs=1", "train.batch_size=4", "tracking=none")
THREE, IGNORED = "data.classes=[a,b,c]", "data.ignore_index=255"
HALVES, ALL = {"train": range(4), "val": range(4, 8)}, {"train": range(4), "val": range(4, 8), "test": range(8, 12)}


def scene(number, size=(32, 32)):
    """An image, uint8 `h w 3`, and its mask; odd ones have foreground, where the image is bright."""
    image, mask = np.random.default_rng(number).integers(0, 80, (*size, 3)).astype(np.uint8), np.zeros(size, np.uint8)
    if number % 2:
        mask[: math.ceil(size[0] / 2), : math.ceil(size[1] / 2)] = 1
    image[mask > 0] += 120
    return image, mask


def save(path, pixels):
    """Write pixels as PNG, or as TIFF where that cannot hold them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels.dtype == np.uint8 and pixels.shape[2:] != (4,):
        Image.fromarray(pixels).save(f"{path}.png")
        return Path(f"{path}.png")
    kind = {"photometric": "rgb", "extrasamples": ["unspecified"]} if pixels.ndim == 3 else {"photometric": 1}
    tifffile.imwrite(f"{path}.tif", pixels, **kind)
    return Path(f"{path}.tif")


def pairs_in(root, picture=lambda image, _: image, mask=lambda truth, _: truth, size=(32, 32), parts=HALVES):
    """Write scenes below `root`, changed by `picture` and `mask`; `parts` has the numbers of each part's scenes."""
    for part, numbers in parts.items():
        for number in numbers:
            image, truth = scene(number, size)
            save(root / "images" / part / str(number), picture(image, number))
            save(root / "masks" / part / str(number), mask(truth, number))
    return root


@pytest.fixture
def train_on(tmp_path, capsys, caplog, monkeypatch):
    """Train on scenes; the exit code, the run's folder, and what stderr said. All pictures could be drawn."""
    monkeypatch.setattr(curves, "training", lambda *_: None)  # it takes as long as all else

    def trained_on(*words, **scenes):
        root, folder = pairs_in(tmp_path / "data", **scenes), tmp_path / "run"
        code = train.main([*TINY, *SHORT, f"data.root={root}", f"hydra.run.dir={folder}", *words])
        assert "was not drawn" not in caplog.text
        return code, folder, capsys.readouterr().err

    return trained_on


def by_hand(images, k):
    """Every score of confusion matrices, in whole numbers; None for 0 / 0."""

    def share(part, whole):
        return Fraction(part, whole) if whole else None

    def mean(values):
        known = [value for value in values if value is not None]
        return share(sum(known, Fraction(0)), len(known))

    def overall(values):
        return values[1] if k == 2 else mean(values)

    def counted(m):
        return [(m[c][c], sum(m[c]), sum(row[c] for row in m)) for c in range(k)]  # hits, truth, prediction

    images = [np.asarray(m).tolist() for m in images]
    total = [[sum(m[i][j] for m in images) for j in range(k)] for i in range(k)]
    iou = [share(h, t + p - h) if t else None for h, t, p in counted(total)]
    hits, pixels = sum(total[c][c] for c in range(k)), sum(map(sum, total))
    return {
        "iou": overall(iou),
        "iou_fg": mean(iou[1:]),
        "iou_micro": share(hits, 2 * pixels - hits),
        "iou_image": mean([overall([share(h, t + p - h) for h, t, p in counted(m)]) for m in images]),
        "dice": overall([share(2 * h, t + p) if t else None for h, t, p in counted(total)]),
        "accuracy": share(hits, pixels),
        **{f"iou/{c}": score for c, score in enumerate(iou)},
    }


def agree(found, expected):
    """A score is a number where it is one by hand, and that one."""
    known = {name: float(value) for name, value in expected.items() if value is not None}
    assert {name for name in expected if found[name] is not None and not math.isnan(found[name])} == known.keys()
    assert {name: found[name] for name in known} == pytest.approx(known, abs=1e-12)


def honest(code, folder, *_, may_fail=False):
    """The journal of a complete or a non-finite training: its losses and weights are numbers, its scores right."""
    run = journal.read(folder)
    assert (code, run.end.status, run.end.error) in [(0, "complete", None), (5, "failed", "non_finite")][: 1 + may_fail]
    for one in run.epochs:
        assert None not in (one.metrics["train/loss"], one.metrics["val/loss"], one.iou), "a loss or score of NaN"
    if run.epochs:
        names, scores = run.start.classes, run.best.metrics
        expected = by_hand(metrics.read_validation(folder).matrices, len(names))
        found = {name: scores[f"val/{name}"] for name in expected if "/" not in name}
        agree(found | {f"iou/{c}": scores[f"val/iou/{name}"] for c, name in enumerate(names)}, expected)
        assert all(weight.isfinite().all() for weight in load_file(folder / "best.safetensors").values())
    return run


def filled(value, dtype, *channels):
    return lambda image, _: np.full((*image.shape[:2], *channels), value, dtype)


def real(low, high):
    """Grey floats, from low for black to high for white."""
    return lambda image, _: (low * (1 - image[..., 0] / 255) + high * (image[..., 0] / 255)).astype(np.float32)


def spotted(value, dtype=np.float32, everywhere=()):
    """Grey floats in 0..1 with nine rows of one value; scenes `everywhere` have nothing else."""

    def made(image, number):
        rows = np.arange(32)[:, None] < (32 if number in everywhere else 9)
        return np.where(rows, dtype(value), image[..., 0].astype(dtype) / 255)

    return made


PICTURES = {
    "black": filled(0, np.uint8, 3),
    "one channel, white": filled(255, np.uint8),
    "a constant channel": lambda image, _: image * np.uint8([1, 1, 0]) + np.uint8([0, 0, 7]),
    "four channels": lambda image, _: np.concatenate([image, image[..., :1]], 2),
    "uint16, whole range": lambda image, _: (image[..., 0] * 330.0).clip(0, 65535).astype(np.uint16),
    "uint16, highest": filled(65535, np.uint16),
    "uint16, two values": lambda image, _: 40000 + (image[..., 0] > 99).astype(np.uint16),
    "float, zero": filled(0, np.float32),
    "float, constant and huge": filled(1e30, np.float32),
    "float, huge": real(-1e30, 1e30),
    "float, denormal": real(0, 1e-40),
    "float, huge rows": spotted(1e30),
    "float, infinite rows": spotted(-np.inf),
    "float, an image of NaN": spotted(np.nan, everywhere=(1, 5)),
    "float64, beyond float32": spotted(1e300, np.float64),
}
NORMALIZED = [("uint16, highest", "encoder"), ("float, denormal", "encoder"), ("float, huge rows", "percentile")]


@pytest.mark.parametrize(("kind", "how"), [*((kind, "auto") for kind in PICTURES), *NORMALIZED])
def test_images_at_their_limits_train_to_finite_losses_and_right_scores(train_on, kind, how):
    words = (f"data.normalize={how}", "data.passes=2")
    normalization = honest(*train_on(*words, picture=PICTURES[kind])).start.settings.normalization
    assert np.isfinite(normalization.mean).all()
    assert min(np.float32(normalization.std)) > 0


SIZES = [((1, 1), "pad"), ((1, 1), "crop"), ((1, 70), "squash"), ((5, 7), "crop")]


@pytest.mark.parametrize(("size", "resize"), SIZES)
def test_images_smaller_than_the_canvas_are_scored_pixel_by_pixel(train_on, size, resize):
    code, folder, _ = train_on(f"data.resize={resize}", size=size)
    honest(code, folder)
    assert metrics.read_validation(folder).matrices.sum((1, 2)).tolist() == [math.prod(size)] * 4


def only(value, numbers=range(12)):
    """Masks of one value, for these scenes."""
    return lambda truth, number: np.full_like(truth, value) if number in numbers else truth


def bands(without=()):
    """Masks of three classes in bands; the scenes `without` lack the last one."""
    rows = np.repeat(np.uint8([0, 1, 2]), [11, 11, 10])[:, None].repeat(32, 1)
    return lambda _, number: np.where(rows == 2, 0, rows).astype(np.uint8) if number in without else rows


NOTHING = [
    ("all pixels of all masks are background", {"mask": only(0)}),
    ("all pixels of all masks are foreground", {"mask": only(1)}),
    ("the train split has no foreground pixel", {"mask": only(0, range(4))}),
    ("the val split has no foreground pixel", {"mask": only(0, range(4, 8))}),
    ("the test split has no foreground pixel", {"mask": only(0, range(8, 12))}),
    ("all pixels of all masks are background", {"mask": only(VOID)}),
    ("the val split has only void pixels", {"mask": only(VOID, range(4, 8))}),
    ("means no data, type data.nodata=", {"picture": real(LOWEST, HIGHEST)}),
    ("means no data, type data.nodata=", {"picture": spotted(LOWEST)}),
]


@pytest.mark.parametrize(("said", "scenes"), NOTHING)
def test_data_with_nothing_to_learn_or_to_compute_with_are_refused_and_leave_nothing(train_on, said, scenes):
    code, folder, err = train_on(IGNORED, parts=ALL, **scenes)
    assert (code, said in err, folder.exists()) == (3, True, False)


def dotted(truth, number):
    """One pixel of a third class in its bands' place."""
    found = bands(range(12))(truth, number)
    found[number, number] = 2
    return found


MASKS = [  # and how many pixels of each class are scored
    *((f"loss={name} train.batch_size=1", only(VOID, (0, 4)), [2560, 512]) for name in ("bce", "ce_lovasz")),
    (f"{THREE} loss=ce_lovasz data.balance=1", bands(range(4)), [1408, 1408, 1280]),
    (f"{THREE} loss=ce_lovasz data.balance=1", bands(range(4, 8)), [2688, 1408, 0]),
    (f"{THREE} loss.class_weights=auto", dotted, [2684, 1408, 4]),
    (f"{THREE} data.resize=crop data.foreground=1", dotted, [2684, 1408, 4]),
    (THREE, only(0), [4096, 0, 0]),
]


@pytest.mark.parametrize(("words", "mask", "counted"), MASKS)
def test_masks_that_lack_a_class_or_all_have_scores_where_a_target_has_it(train_on, words, mask, counted):
    code, folder, _ = train_on(IGNORED, "decoder.norm=group", *words.split(), mask=mask)
    honest(code, folder)
    assert metrics.read_validation(folder).matrices.sum((0, 2)).tolist() == counted


def test_a_class_that_no_target_of_the_test_has_gets_no_score_there(train_on):
    found = honest(*train_on(THREE, mask=bands(range(8, 12)), parts=ALL)).end.metrics
    assert [found[f"{part}/iou/c"] is None for part in ("val", "test")] == [False, True]


def targets(k):
    """Of two images: as they come, one class alone, without the last class, one of them void, both void."""
    usual = torch.randint(0, max(k, 2), (2, 8, 8), generator=torch.Generator().manual_seed(k))
    void = torch.full_like(usual, VOID)
    yield from (usual, 0 * usual, 0 * usual + 1, usual.clamp(max=max(k, 2) - 2), torch.stack([void[0], usual[1]]), void)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", losses.TERMS)
def test_a_loss_and_its_gradient_are_finite_for_sure_logits_and_hide_no_nan(name, dtype):
    for target, k in [(target, n) for n in (1, 2, 4) for target in targets(n)]:
        loss = losses.build({name: 1.0}, [1.0, 100.0, 0.01, 3.0][: max(k, 2)])
        for sign in (-1, 1, torch.randn(2, k, 8, 8).sign()):
            logits = (torch.ones(2, k, 8, 8) * 1e4 * sign).to(dtype).requires_grad_()
            value = loss(logits, target)
            value.backward()
            assert 0 <= value.item() < math.inf
            assert logits.grad.isfinite().all()
            infinite = loss(logits.detach() * math.inf, target).item()
            assert not math.isfinite(infinite) or infinite == pytest.approx(value.item())
        broken = torch.zeros(2, k, 8, 8, dtype=dtype)
        broken[1, 0, 3, 3] = math.nan
        assert not loss(broken, target).isfinite() or target[1, 3, 3] == VOID


REFUSED = [
    *("optim.lr=0", "optim.lr=nan", "optim.weight_decay=inf", "optim.warmup=1", "train.grad_clip=nan"),
    *("train.ema=1", "train.time_budget=inf", "loss.pos_weight=inf", "augmentation.scale=1e300", "train.grad_accum=8"),
    "train.batch_size=8",
]


@pytest.mark.parametrize("word", REFUSED)
def test_settings_that_are_no_numbers_or_out_of_range_are_refused_and_leave_nothing(train_on, word):
    code, folder, err = train_on(word)
    assert (code, folder.exists()) == (2, False)
    assert f"train.py: {word.partition('=')[0]}=" in err.splitlines()[-1]


RATES = ["adamw 1e-12 1", "adamw 1e3 1", "adamw 1e3 6", "sgd 1e3 1", "sgd 1e30 6"]


@pytest.mark.parametrize("rate", RATES)
def test_any_learning_rate_ends_in_numbers_or_as_non_finite(train_on, rate):
    name, lr, steps = rate.split()
    words = (f"optim={name}", f"optim.lr={lr}", f"data.passes={steps}", "optim.warmup=0", "optim.schedule=constant")
    code, folder, err = train_on(*words, "train.grad_clip=0")
    run = honest(code, folder, may_fail=lr != "1e-12")
    if code:
        assert "the loss became NaN or infinite" in err.splitlines()[-1]
        assert "Try optim.lr=" in run.end.reason


LIMITS = [
    ("train.batch_size=1", {"": (1, 3)}),
    ("train.batch_size=1", {"train": (1,), "val": (3,), "test": (5,)}),
    ("data.passes=4", {"train": (1,), "val": (3,)}),
    ("train.grad_clip=1", {"train": range(5), "val": (5,)}),
    ("train.grad_accum=4 decoder.norm=batch", HALVES),
    ("train.batch_size=1 decoder.norm=layer encoder.freeze_norm=true", HALVES),
    ("optim.weight_decay=1e30", HALVES),
    ("train.grad_clip=1e-300", HALVES),
    ("train.epochs=2 train.ema=0.9999 optim.warmup=0.999", HALVES),
    ("train.epochs=2 optim.freeze_epochs=2", HALVES),
    *((f"loss=focal {word}", HALVES) for word in ("loss.gamma=1e3", "loss.pos_weight=1e30")),
    ("train.precision=fp16", HALVES),
]


@pytest.mark.parametrize(("words", "parts"), LIMITS)
def test_settings_and_numbers_of_images_at_their_limits_train_to_numbers_or_end_as_non_finite(train_on, words, parts):
    code, folder, err = train_on(*words.split(), parts=parts)
    if code == 2:
        assert "this processor crashes with it" in err
    else:
        honest(code, folder, may_fail="=1e30" in words)


@pytest.mark.parametrize(("bad", "first"), [(math.nan, 1), (math.inf, 6), (-math.inf, 8)])
def test_a_loss_that_is_no_number_ends_the_training_at_its_step(train_on, monkeypatch, bad, first):
    calls, dice = [], losses.dice

    def broken(pixels):
        calls.append(torch.is_grad_enabled())
        return dice(pixels) + (bad if sum(calls) == first and calls[-1] else 0)

    monkeypatch.setitem(losses.TERMS, "dice", broken)
    code, folder, err = train_on("loss=dice", "train.epochs=5", "data.passes=4")
    run, (epochs, steps) = honest(code, folder, may_fail=True), divmod(first - 1, 4)
    assert (code, len(run.epochs)) == (5, epochs)
    assert f"in epoch {1 + epochs}, step {1 + steps}," in err.splitlines()[-1]
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary.get("val/iou")) == ("failed", run.best and run.best.iou)


@pytest.mark.parametrize(("words", "mask"), [((), only(0, ())), ((THREE,), bands())], ids=["two", "three"])
def test_a_model_that_is_no_number_after_its_last_step_gets_no_score(train_on, monkeypatch, words, mask):
    def broken(parameters, _):
        for parameter in parameters:
            parameter.grad.fill_(math.nan)

    monkeypatch.setattr(step.nn.utils, "clip_grad_norm_", broken)
    code, folder, _ = train_on(*words, mask=mask)
    assert (code, journal.read(folder).epochs, (folder / "best.safetensors").exists()) == (5, [], False)


@pytest.mark.parametrize("way", [("tpe", "curves"), ("gp", "median"), ("grid", "hyperband")], ids=" ".join)
def test_a_sweep_outlives_trials_without_a_score_and_finds_the_best_of_the_others(tmp_path, monkeypatch, way):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "sweeping")  # of the trainings that only pretend
    space = Space((choice("best", ["0.5", "inf", "0.7", "nan"]), choice("nan", ["1", "9"])), "resnet18")
    sweeper = SweeperConfig(n_trials=8, sampler=way[0], pruner=way[1], max_failures=9)
    study = Study(tmp_path, space, sweeper, pruner=optuna_pruner(sweeper.pruner, 4))
    search = Search(study, lambda typed, encoder: [*typed, "seconds=0"], sweeper)
    backend = LocalBackend(tmp_path, [Slot(0), Slot(1)], preloaded=["segsweep.runs.journal"])
    list(drive(search, backend, tmp_path, "fake_train"))
    trials = {(t.varied["best"], t.varied["nan"]): t for t in search.trials.values()}
    assert len(trials) == 8
    assert {trials[best, "1"].reason for best in ("0.5", "inf", "0.7", "nan")} == {"NaN in the loss."}
    scoreless = [trials[best, "9"] for best in ("inf", "nan")]
    pruned = sum(trial.state == "pruned" for trial in scoreless)  # before its end
    assert {trial.reason for trial in scoreless if trial.state != "pruned"} <= {"no epoch had a score"}
    assert len(study.trials(TrialState.FAIL)) == 6 - pruned
    assert all(math.isfinite(v) for t in study.trials() for v in (t.value or 0, *t.intermediate_values.values()))
    (best,) = finalists.best_of_each(search.trials.values(), 3)
    assert best is trials["0.7", "9"]
    assert best.iou == max(t.value for t in study.trials(TrialState.COMPLETE))


@pytest.mark.parametrize("lr", [5e-324, 1.7e308])
def test_the_pruner_judges_curves_without_a_score_and_rates_of_any_size(lr):
    def curve(scores):
        return Curve("a", [Point((i + 1) / 8, score) for i, score in enumerate(scores)], len(scores) == 8, lr)

    def judged(*scores, before):
        complete = pruner.Complete()
        for _ in range(3):
            complete.add(curve(before))
        return pruner.judge(curve(scores), complete, 3)

    late = (-1, -1, -1, -1, 0.5, 0.6, 0.7, 0.8)
    assert judged(-1, -1, -1, before=late) is None
    verdict = judged(*[-1] * 7, before=late)
    assert verdict.estimate == pytest.approx(-0.9)
    assert judged(-1, -1, before=[-1] * 8) is None


def test_a_report_has_a_row_for_trials_without_a_score_and_names_the_best_of_the_others(tmp_path):
    for name, scores in {"0": (None, None), "1": (None, 0.25), "2": (0.5, None), "3": (math.nan, math.inf)}.items():
        words, state = [f"optim.lr=1e{int(name) * 100}"], "failed" if name in "03" else "complete"
        asked = RunConfig(optim=OptimConfig(lr=float(f"1e{int(name) * 100}")), train=TrainConfig(epochs=2))
        done = [epoch(i, score, **{"perf/seconds": math.nan}) for i, score in enumerate(scores, 1)]
        write_journal(tmp_path / name, start(asked, settings=decided(asked)), *done, end(state))
        Trial(name, "resnet18", words, words, {}, state, "no epoch had a score").save(tmp_path)
    write_about(tmp_path, finalists=["2"])
    trials, (first,) = list(load_all(tmp_path)), report.results(tmp_path)
    assert report.table(trials)["trial"].tolist() == ["2", "1", "0", "3"]
    assert (first.trial.name, first.iou) == ("2", 0.5)
    assert "failed: 0, 3" in report.summary(trials, [first], tmp_path)
    page = html_report.write(tmp_path).read_text()
    assert ("2 complete, 2 failed" in page, ">nan<" in page) == (True, False)


MATRICES = {
    "no image": (3, []),
    "no pixel": (2, [[[0, 0], [0, 0]]]),
    "no pixel in one of two": (2, [[[5, 1], [2, 7]], [[0, 0], [0, 0]]]),
    "first class alone": (3, [[[9, 0, 0], [0, 0, 0], [0, 0, 0]]]),
    "last class alone, never found": (3, [[[0, 0, 0], [0, 0, 0], [9, 0, 0]]]),
    "foreground alone": (2, [[[0, 0], [0, 4]]]),
    "background alone": (2, [[[4, 0], [0, 0]]]),
    "background alone, too much found": (2, [[[4, 3], [0, 0]]]),
    "huge": (2, [[[HUGE, HUGE - 1], [1, HUGE]]] * 3),
    "huge beside one": (3, [[[HUGE, 1, 0], [0, 1, 0], [0, 1, HUGE]]]),
}


@pytest.mark.parametrize("kind", MATRICES)
def test_scores_are_those_of_whole_numbers_and_no_number_for_nothing(kind):
    k, images = MATRICES[kind]
    matrices = np.array(images, np.int64).reshape(-1, k, k)
    found = metrics.scores(matrices, [str(c) for c in range(k)])
    agree(found, by_hand(images, k))
    drawn = metrics.pooled_iou(metrics.pool(matrices, np.ones((5, len(images)), np.int64)))
    assert metrics.interval(drawn) == pytest.approx((found["iou"],) * 2, nan_ok=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs on colour of 8 bits and on grey floats in 0..1, by the type of their pixels."""
    found = {}
    for kind, how in (("uint8", {}), ("float32", {"picture": real(0, 1)})):
        place = tmp_path_factory.mktemp(kind)
        found[kind] = train_once(place, pairs_in(place / "data", **how), "data.size=[32,32]", "train.epochs=1")
    return found


def predicted(run, images, out):
    """The exit code, and by name each mask with the foreground's probabilities."""
    files = [save(out.parent / name, pixels) for name, pixels in images.items()]
    typed = ["predict", str(run), *map(str, files), "-o", str(out), "--device", "cpu", "--overlay", "--probabilities"]
    code, masks = cli.main(typed), {path.stem: read_mask(path) for path in out.glob("*.png")}
    shares = {name: tifffile.imread(out / "probabilities" / f"{name}.tif") for name in masks}
    return code, {name: (mask, shares[name].reshape(mask.shape)) for name, mask in masks.items()}


def test_predictions_of_constant_and_of_tiny_images_are_whole_and_finite(runs, tmp_path):
    shapes = {"black": (40, 48, 3), "white": (40, 48, 3), "dot": (1, 1, 3), "row": (1, 70, 3), "column": (70, 1)}
    images = {name: np.full(shape, 255 * (name == "white"), np.uint8) for name, shape in shapes.items()}
    code, found = predicted(runs["uint8"], images, tmp_path / "out")
    assert (code, {name: mask.shape for name, (mask, _) in found.items()}) == (0, {n: s[:2] for n, s in shapes.items()})
    assert all(np.array_equal(mask, shares > 0.5) and np.isfinite(shares).all() for mask, shares in found.values())


def test_pixels_that_are_no_number_get_no_class_and_all_others_one(runs, tmp_path):
    image = real(0, 1)(scene(1)[0], 1)
    holed, nothing, huge = image.copy(), np.full_like(image, np.nan), image.copy()
    holed[:9], huge[:9] = np.repeat([[np.nan], [np.inf], [-np.inf]], 3, 0), 1e20
    images = {"holed": holed, "nothing": nothing, "huge": huge, "flat": 0 * image, "dot": image[:1, :1]}
    code, found = predicted(runs["float32"], images, tmp_path / "out")
    assert (code, found.keys()) == (0, images.keys())
    for name, (mask, shares) in found.items():
        assert np.array_equal(mask == VOID, ~np.isfinite(images[name]))
        assert np.array_equal(np.isnan(shares), ~np.isfinite(images[name]))


LOW = spotted(LOWEST)(scene(1)[0], 1)
OTHERS = [("uint8", scene(1)[0].astype(np.uint16)), ("uint8", LOW), ("float32", scene(1)[0][..., 0]), ("float32", LOW)]


@pytest.mark.parametrize(("kind", "pixels"), OTHERS)
def test_images_that_the_model_cannot_compute_with_are_refused_in_one_line(runs, tmp_path, capsys, kind, pixels):
    assert predicted(runs[kind], {"a": pixels}, tmp_path / "out") == (3, {})
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "the model was trained on" in line)
    assert line.startswith(f"segsweep: {tmp_path / 'a'}.")
    assert f" pixels from {pixels.min():g} to {pixels.max():g}" in line


EVALUATED = [(filled(0, np.float32), ""), (PICTURES["float, an image of NaN"], "")]
EVALUATED += [(filled(9, np.uint16), "uint16"), (spotted(LOWEST), "-3.40282e+38")]


@pytest.mark.parametrize(("picture", "refused"), EVALUATED)
def test_evaluations_of_images_at_their_limits_are_right_or_one_line(runs, tmp_path, capsys, picture, refused):
    run, other = runs["float32"], f"data.root={pairs_in(tmp_path / 'other', picture)}"
    code = cli.main(["evaluate", str(run), "data=folder", other, "--split", "val", "--name", "limits"])
    said = capsys.readouterr().err.splitlines()[-1]
    if refused:
        assert (code in (2, 3), refused in said, "the model was trained on" in said) == (True, True, True)
        return
    found = json.loads((run / "evaluations" / "limits" / "metrics.json").read_text())["metrics"]
    with (run / "evaluations" / "limits" / "confusion.csv").open() as file:
        expected = by_hand([[[int(n) for n in row[1:]] for row in list(csv.reader(file))[1:]]], 2)
    agree(found, {name: expected[name] for name in ("iou", "iou_micro", "dice", "accuracy")})
