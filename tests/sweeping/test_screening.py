"""Screening: what is compared, who goes on, and one from the command line that is gone on with."""

import re
from dataclasses import replace

import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from records import end, epoch, start, write
from safetensors.torch import save_file

import train
from segsweep.commands import app as cli
from segsweep.config.schema import DataConfig, OptimConfig, RunConfig, TrackingConfig
from segsweep.config.screen import ScreenConfig
from segsweep.config.sweeper import SweeperConfig
from segsweep.errors import ConfigError
from segsweep.runs import journal
from segsweep.runs.trial import Trial
from segsweep.sweeping import screen_report, screened, screening
from segsweep.sweeping.plan import Plan
from segsweep.sweeping.screened import Screened
from segsweep.sweeping.space import Space, choice

NAMES = ["resnet18.a1_in1k", "resnet34.a1_in1k", "vit_small_patch16_224.dino", "convnext_tiny.fb_in22k"]


def job(folder, step, name, iou, state="complete", **metrics):
    """A job with its journal, as a screening leaves it."""
    trial = Trial(
        f"{step}/{name}", name, [], [f"encoder={name}"], state=state, reason="" if state != "failed" else "no"
    )
    trial.save(folder)
    if iou is not None:
        write(folder / trial.name, replace(start(), weights_source="hub"), epoch(1, iou, **metrics), end())


@pytest.fixture
def folder(tmp_path):
    """A screening that has come to its short trainings."""
    for name, iou in zip(NAMES, (0.5, 0.6, 0.7, 0.4), strict=True):
        job(tmp_path, "features", name, iou, **{"probe/separability": -iou})
    for name, iou in zip(NAMES[:3], (0.3, 0.5, 0.2), strict=True):
        job(tmp_path, "epoch", name, iou)
    job(tmp_path, "short", NAMES[1], 0.8)
    job(tmp_path, "short", NAMES[2], None, state="failed")
    kept = Screened(
        "sweeps=screen",
        fixed=["data=folder"],
        decided=[],
        sources=dict.fromkeys(NAMES, "hub"),
        left_out={"resnet50.a1_in1k": "25.6 million parameters"},
        gflop={name: 10.0 * (i + 1) for i, name in enumerate(NAMES)},
        parameters=dict.fromkeys(NAMES, 20.0),
        seconds={name: 60.0 * (i + 1) for i, name in enumerate(NAMES)},
        short_epochs=5,
        chosen=[NAMES[1]],
        full="python train.py sweeps=lr_by_encoder",
    )
    kept.save(tmp_path)
    return tmp_path


def test_the_best_in_either_step_goes_on_before_who_is_second_in_both(tmp_path):
    for name, iou, later in (("a", 0.9, 0.1), ("b", 0.8, 0.8), ("c", 0.1, 0.9), ("d", 0.5, 0.5)):
        job(tmp_path, "features", name, iou)
        job(tmp_path, "epoch", name, later)
    jobs = screened.trials(tmp_path)
    assert screened.best_first(["a", "b", "c", "d"], jobs, "epoch") == ["c", "a", "b", "d"]


def test_after_an_epoch_ranks_in_both_steps_count(folder):
    jobs = screened.trials(folder)
    assert screened.best_first(NAMES, jobs, "features") == [NAMES[2], NAMES[1], NAMES[0], NAMES[3]]
    # Ranks 1 and 0, 0 and 2, 2 and 1; the fourth has had no epoch.
    assert screened.best_first(NAMES, jobs, "epoch") == [NAMES[1], NAMES[2], NAMES[0]]
    assert screened.best_first(NAMES, jobs, "short") == [NAMES[1]]


def test_equal_ranks_go_by_the_last_step(tmp_path):
    for name, iou, later in (("a", 0.5, 0.3), ("b", 0.6, 0.2)):
        job(tmp_path, "features", name, iou)
        job(tmp_path, "epoch", name, later)
    assert screened.best_first(["b", "a"], screened.trials(tmp_path), "epoch") == ["a", "b"]


def test_the_end_tells_each_score_what_became_of_it_and_what_to_type(folder):
    said = screen_report.written(folder)
    rows = pd.read_csv(folder / screen_report.TABLE).set_index("weights")
    assert list(rows.index) == [NAMES[1], NAMES[0], NAMES[2], NAMES[3]]
    assert rows.loc[NAMES[1], ["features", "GBC", "1 epoch", "5 epochs"]].tolist() == [0.6, -0.6, 0.5, 0.8]
    assert rows["outcome"].tolist() == ["kept", "out after one epoch", "failed: no", "out after frozen features"]
    assert rows.loc[NAMES[2], "objective"] == "DINO, self-supervised"
    assert rows.loc[NAMES[3], "pretrained on"] == "ImageNet-22k"
    assert "left out        25.6 million parameters: resnet50.a1_in1k" in said
    assert "full sweep      python train.py sweeps=lr_by_encoder" in said
    with Image.open(folder / screen_report.PICTURE) as picture:
        assert picture.width > 1000


def test_while_a_screening_goes_on_nobody_is_out(folder):
    kept, jobs = replace(screened.load(folder), chosen=[], full=""), screened.trials(folder)
    said = [screen_report.outcome(name, kept, jobs) for name in NAMES]
    assert said == ["complete: one epoch", "complete: 5 epochs", "failed: no", "complete: frozen features"]


def test_weights_that_are_added_and_seem_better_push_nobody_out_who_was_trained(folder, monkeypatch):
    new, scores, ran = "resnet50.a1_in1k", {"features": 0.9, "epoch": 0.9, "short": 0.7}, []

    def driven(source, backend, folder, module, sign):
        for trial in source.in_state("running"):
            ran.append(trial.name)
            job(folder, *trial.name.split("/"), scores[trial.name.partition("/")[0]])
        return ()

    monkeypatch.setattr(screening, "drive", driven)
    known = screened.load(folder)
    more = {name: {**getattr(known, name), new: 9.0} for name in ("gflop", "parameters", "seconds")}
    kept = replace(known, sources={**known.sources, new: "hub"}, left_out={}, chosen=[], full="", **more)
    base = RunConfig(data=DataConfig("shapes"), tracking=TrackingConfig("none"))
    plan = Plan(folder, "", Space((choice("encoder", [*NAMES, new]),), new), {}, (), base, SweeperConfig())
    asked = ScreenConfig(one_epoch=3, short=1, choose=1)
    assert screening._screened(plan, asked, Answers(), kept, None).chosen == [NAMES[1]]
    assert ran == [f"{step}/{new}" for step in screened.JUDGED]


def test_segsweep_report_knows_a_screening(folder, capsys):
    assert cli.main(["report", str(folder)]) == 0
    assert "kept" in capsys.readouterr().out


def test_what_it_costs_is_told_and_the_costliest_are_left_out(folder):
    kept = screened.load(folder)
    whole = screening.estimate(kept, ScreenConfig(), slots=1)
    features = sum(screening.OVERHEAD + s * screening.FORWARD / screening.EPOCH for s in kept.seconds.values())
    trainings = 4 * (screening.OVERHEAD + 150) + 4 * (screening.OVERHEAD + 5 * 150)  # 150 s: a mean epoch
    assert whole == pytest.approx(features + trainings)
    assert screening.estimate(kept, ScreenConfig(), slots=2) == pytest.approx(whole / 2)
    asked = ScreenConfig(minutes=whole / 60 - 0.1)
    rest = screening._within(kept, asked, 1)
    assert rest.compared == NAMES[:3]
    assert rest.left_out[NAMES[3]].startswith("too slow for hydra.sweeper.minutes=")
    assert "9: 3 x frozen features, 3 x one epoch, 3 x 5 epochs; 1 at once" in screening.cost(rest, asked, 1)
    assert len(screening._within(kept, ScreenConfig(minutes=0.01), 1).compared) == 2  # what is to be left at the end
    assert screening._within(kept, ScreenConfig(minutes=0.01), 1, begun=NAMES).compared == NAMES  # they have jobs


def test_a_start_later_compares_what_the_first_did_and_times_nothing_again(monkeypatch, tmp_path):
    answers, names = Answers(), ["resnet18.a1_in1k", "resnet34.a1_in1k", "resnet101.a1_in1k"]
    base = RunConfig(data=DataConfig("shapes"), tracking=TrackingConfig("none"))
    plan = Plan(tmp_path, "", Space((choice("encoder", names),), names[0]), {}, (), base, SweeperConfig())

    def prepared(minutes):
        return screening._prepared(plan, ScreenConfig(minutes=minutes), answers)[0]

    first = prepared(5)
    assert (first.compared, first.decided) == (names[:2], ["data.size=[64,96]"])
    first.save(tmp_path)
    answers.asked.clear()
    assert (prepared(5).compared, prepared(5).decided) == (first.compared, first.decided)
    assert not answers.asked
    replace(first, chosen=names[:1], full="python train.py").save(tmp_path)
    assert prepared(500).compared == names  # more time was given
    assert (prepared(500).chosen, prepared(500).full) == ([], "")  # if it is stopped, it shows no old result
    assert not answers.asked
    replace(first, fades=False).save(tmp_path)  # of a version whose class weights did not fade
    for _ in range(2):
        old = prepared(5)
        assert old.decided == ["data.size=[64,96]", "loss.class_weights=null"]
        old.save(tmp_path)


@pytest.mark.parametrize(("name", "varied"), [("adamw", False), ("sgd", True)])
def test_the_full_sweep_that_is_printed_has_rates_for_its_optimizer(name, varied, tmp_path):
    base = RunConfig(data=DataConfig("shapes"), optim=OptimConfig(name, lr=0.01), tracking=TrackingConfig("none"))
    space = Space((choice("encoder", ["resnet18"]),), "resnet18")
    plan = Plan(tmp_path, "", space, {}, (f"optim={name}",), base, SweeperConfig())
    assert ("'optim.lr=tag(log,interval(0.005,0.5))'" in screening._full(plan, ["resnet18"])) == varied


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"choose": 5}, "hydra.sweeper.choose=5: must be at most hydra.sweeper.short=4"),
        ({"short": 9}, "hydra.sweeper.short=9: must be at most hydra.sweeper.one_epoch=8"),
        ({"minutes": 0}, "hydra.sweeper.minutes=0: must be above 0"),
        ({"backend": "cloud"}, "hydra.sweeper.backend=cloud"),
    ],
)
def test_keys_that_cannot_be_are_refused(keys, says):
    with pytest.raises(ConfigError, match=says):
        ScreenConfig(**keys)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["optim.lr=choice(1e-3,1e-4)"], "optim.lr: a screening compares weights alone"),
        (["encoder=resnet18"], "nothing is varied"),
        (["hydra.sweeper.minuts=3"], r"hydra.sweeper.minuts: no such key. Closest: hydra.sweeper.minutes"),
        (["encoder=weights(resnt18)"], r"weights\(resnt18\): timm has no such weights"),
    ],
)
def test_what_is_no_screening_is_refused_and_leaves_nothing(words, says, capsys, outputs):
    assert train.main(["sweeps=screen", *words]) == 2
    said = capsys.readouterr().err
    assert re.search(says, said), said
    assert not list(outputs.rglob(screened.NAME))


class Answers:
    """In place of a backend: knows what is asked of torch and timm."""

    capacity = 1

    def __init__(self):
        self.asked = {}

    def call(self, function, *arguments):
        name = function.partition(":")[2]
        self.asked[name] = arguments
        if name == "decided_data":
            return [("data.size=[64,96]", "as the images are")]
        if name == "training_gib":
            return {one: 9.0 if one.startswith("resnet50") else 1.0 for one in arguments[0]}
        if name == "available":
            found = {one: ("hub", "") for one in arguments[0]}
            return found | {"vit_small_patch16_224.dino": (None, "accept its licence")}
        if name == "estimates":
            return {arguments[1][0]: {"images_per_s": 3.0, "seconds": 60.0}}
        raise AssertionError(function)

    def close(self):
        pass


def test_what_fits_and_can_be_had_is_told_before_anything_begins(monkeypatch, tmp_path, capsys):
    answers, folder = Answers(), tmp_path / "screen"
    monkeypatch.setattr(screening, "backend_of", lambda plan: answers)
    names = "resnet18.a1_in1k,resnet34.a1_in1k,resnet50.a1_in1k,resnet152.a1_in1k,vit_small_patch16_224.dino"
    words = [f"encoder=weights({names})", f"hydra.sweep.dir={folder}", "hydra.sweeper.dry=true"]
    limits = ["hydra.sweeper.parameters=50", "hydra.sweeper.memory=4"]
    assert train.main(["sweeps=screen", "data=shapes", *words, *limits]) == 0
    said = capsys.readouterr().out
    assert "weights         2: resnet18.a1_in1k, resnet34.a1_in1k\n" in said
    for why in ("58.1 million parameters: resnet152.a1_in1k", "9.0 GiB for an image: resnet50.a1_in1k"):
        assert why in said
    assert "accept its licence: vit_small_patch16_224.dino" in said
    assert "jobs            6: 2 x frozen features, 2 x one epoch, 2 x 5 epochs; 1 at once" in said
    assert answers.asked["training_gib"][1] == [64, 96]  # the canvas that was decided
    assert answers.asked["available"][2] is False  # nothing is fetched
    assert not folder.exists()


def test_a_failed_job_is_tried_again_and_one_that_is_over_is_not():
    step = screening.steps(ScreenConfig())[1]
    kept = screened.Screened("", [], [], sources=dict.fromkeys(NAMES, "hub"))
    then = {"failed": "running", "refused": "running", "running": "running", "complete": "complete"}
    for state, now in then.items():
        left = Trial(f"{step.name}/{NAMES[0]}", NAMES[0], [], ["old"], state=state, reason="no memory", halvings=2)
        job = screening._trial(kept, step, NAMES[0], {left.name: left})
        assert (job.state, job.reason) == (now, "" if state in ("failed", "refused") else "no memory")
        assert f"encoder={NAMES[0]}" in job.argv


def test_a_screening_from_the_command_line_and_again(pairs, tmp_path, capsys):
    """Three weights in a folder and one that cannot be had; the same command again runs nothing twice."""
    places = tmp_path / "weights"
    places.mkdir()
    for i, name in enumerate(("test_resnet", "test_vit", "test_efficientnet")):
        torch.manual_seed(i)
        save_file(timm.create_model(name).state_dict(), places / f"{name}.safetensors")
    root, folder = pairs(8, ("train", "val")), tmp_path / "screen"
    words = [
        *("data=folder", f"data.root={root}", "data.size=[32,32]", "train.precision=fp32", "train.batch_size=4"),
        *("data.passes=1", "train.device=cpu", f"encoder.weights_file={places}", f"hydra.sweep.dir={folder}"),
        *("hydra.sweeper.one_epoch=2", "hydra.sweeper.short=2", "hydra.sweeper.short_epochs=2"),
        *("hydra.sweeper.choose=1", "encoder=weights(test_resnet,test_vit,test_efficientnet,resnet18.a1_in1k)"),
    ]
    assert cli.main(["screen", *words]) == 0
    said = capsys.readouterr()
    assert "weights         3: test_resnet.r160_in1k, test_vit.r160_in1k, test_efficientnet.r160_in1k" in said.out
    assert "the hub is out of reach: resnet18.a1_in1k" in said.out
    assert "jobs            7: 3 x frozen features, 2 x one epoch, 2 x 2 epochs" in said.out
    jobs, kept = screened.trials(folder), screened.load(folder)
    assert [len(jobs[step]) for step in screened.JUDGED] == [3, 2, 2]
    for step in jobs.values():
        assert {trial.run.start.weights_source for trial in step.values()} == {"file"}
        assert {trial.state for trial in step.values()} == {"complete"}
    assert {len(trial.run.epochs) for trial in jobs["short"].values()} == {2}
    assert kept.chosen == screened.best_first(list(jobs["short"]), jobs, "short")[:1]
    assert f"encoder={kept.chosen[0]}" in kept.full
    assert f"data.root={root}" in kept.full
    assert "sweeps=screen" not in kept.full

    before = {path: path.read_bytes() for path in folder.rglob(journal.NAME)}
    assert cli.main(["screen", *words]) == 0
    assert {path: path.read_bytes() for path in folder.rglob(journal.NAME)} == before
    assert kept.full in capsys.readouterr().out
    assert cli.main(["screen", *words, "optim.name=sgd", "optim.lr=0.1"]) == 2
    assert "contains a screening that was begun with other options" in capsys.readouterr().err
