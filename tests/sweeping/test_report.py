"""What a person gets: the board, the table at the end, the page, runs side by side."""

import io
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from fake_train import config, end, epoch, start
from PIL import Image
from records import write_about
from rich.console import Console

from segsweep import catalog
from segsweep.commands import app as cli
from segsweep.config.schema import TrackingConfig
from segsweep.errors import ConfigError
from segsweep.runs import journal
from segsweep.runs.journal import Journal
from segsweep.runs.records import End, Run, Start
from segsweep.runs.trial import Trial, load_all, seconds_left
from segsweep.sweeping import compare, live, report
from segsweep.sweeping.finalists import FinalistResult
from segsweep.sweeping.html_report import write
from segsweep.sweeping.mirror import sync
from segsweep.sweeping.scheduler import Event
from segsweep.sweeping.space import Space, choice, interval

SPEED = {"perf/images_per_s": 40.0}
SPACE = Space((choice("encoder", ["resnet18", "resnet34"]), interval("optim.lr", 1e-5, 1e-2, log=True)), "resnet18")


def kept(
    folder,
    name,
    encoder="resnet18",
    lr=1e-3,
    scores=(0.3, 0.5),
    state="complete",
    reason="",
    seed=0,
    tested=None,
    started=True,
):
    """A trial with its journal, as a sweep leaves it."""
    trial = Trial(
        name,
        encoder,
        [f"encoder={encoder}", f"optim.lr={lr}"],
        [f"encoder={encoder}", f"optim.lr={lr}"],
        {"encoder": encoder, "optim.lr": lr},
        state,
        reason,
    )
    trial.save(folder)
    if not started:
        return trial
    with Journal(folder / name) as book:
        book.write(start(config(encoder, lr, epochs=2, seed=seed), parameters=11_000_000 + len(encoder)))
        for i, score in enumerate(scores):
            book.write(epoch(i + 1, score, **{"val/dice": None, "perf/seconds": 2.0 * (i + 1), **SPEED}))
        if state == "complete":
            book.write(end(**({"test/iou": tested} if tested else {})))
    return trial


def asked(folder, finalists=(), space=None):
    """What a sweep writes down of itself."""
    write_about(folder, space=(space or SPACE).described(), finalists=list(finalists), experiment="e")


@pytest.fixture
def sweep(tmp_path):
    """A small sweep that is over, with two finalists, a pruned trial and a failed one."""
    for i in range(8):
        kept(tmp_path, str(i), "resnet18" if i % 2 else "resnet34", 1e-4 * (i + 1), (0.3, 0.4 + i / 100))
    kept(tmp_path, "8", scores=(0.1,), state="pruned", reason="0.1000 after 50 %: <too> low")
    kept(tmp_path, "9", scores=(), state="failed", reason="NaN")
    kept(tmp_path, "finalists/7-1", "resnet18", 8e-4, (0.3, 0.46), seed=1, tested=0.44)
    kept(tmp_path, "finalists/6-1", "resnet34", 7e-4, (0.3, 0.45), seed=1)
    kept(tmp_path, "finalists/6-2", "resnet34", 7e-4, (), state="failed", seed=2)
    asked(tmp_path, ["7", "6"])
    return tmp_path


def test_the_page_is_one_file_that_answers_every_question(sweep):
    text = write(sweep).read_text()
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles == [
        *("Finalists", "Validation IoU by epoch", "Learning rate", "IoU against cost", "What mattered"),
        *("All settings at once", "Weights", "Trials"),
    ]
    assert text.count("<svg") == 5
    for svg in re.findall(r"<svg.*?</svg>", text, re.S):
        ElementTree.fromstring(svg)
    assert not re.search(r'(?:src|href)="http', text.replace('href="http://www.w3.org', ""))
    assert "<script" not in text
    assert "&lt;too&gt; low" in text  # a reason is text, not markup
    assert "0.4400, scored once" in text
    assert re.search(r"resnet18\.a1_in1k [56], resnet34\.a1_in1k 4", text)
    trials = text[text.index("<h2>Trials") :]
    assert "micro_batch 16, weights package" in trials  # said once, and no columns of their own
    assert "<th>weights" not in trials
    kept(sweep, "10", state="failed", started=False)  # died before it had begun
    assert "micro_batch 16, weights package" in write(sweep).read_text()


def test_the_page_is_the_same_each_time(sweep):
    first = write(sweep).read_text()
    assert write(sweep).read_text() == first


@pytest.mark.parametrize("state", ["running", "complete"])
def test_the_page_of_a_sweep_that_was_killed_says_so(sweep, state):
    write_about(sweep, space=SPACE.described(), finalists=["7", "6"], state=state)
    assert ("<b>not finished</b>" in write(sweep).read_text()) == (state == "running")


@pytest.mark.parametrize(
    ("counted", "winner"),
    [(None, "finalists/7-1"), (["finalists/6-1"], "finalists/6-1"), ([], "7")],
    ids=["all", "one", "none"],
)
def test_of_the_repeats_in_the_folder_those_count_that_were_chosen(sweep, counted, winner):
    write_about(sweep, space=SPACE.described(), finalists=["7", "6"], repeats=counted)
    assert report.results(sweep)[0].winner.name == winner


def test_a_page_without_a_single_score(tmp_path):
    kept(tmp_path, "0", scores=(), state="failed", reason="NaN")
    asked(tmp_path)
    assert "1 failed" in write(tmp_path).read_text()


def test_many_encoders_share_a_colour_and_a_legend_that_fits(tmp_path):
    names = catalog.architectures()[:12]
    for i, name in enumerate(names):
        kept(tmp_path, str(i), name, 1e-3, (0.3, 0.5 + i / 100))
    space = Space((choice("encoder", names), SPACE.parameters[1]), names[0])
    asked(tmp_path, ["11"], space)
    text = write(tmp_path).read_text()
    assert "4 others" in text


def test_no_sweep_no_page(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "not the folder of a sweep" in capsys.readouterr().err


def test_a_damaged_sweep_is_named_in_one_line(sweep, capsys):
    text = (sweep / "sweep.json").read_text()
    for broken, says in (
        (text[:40], "damaged"),
        ("[" * 100_000, "nested too deep"),
        (text.replace('"finalists": [', '"finalists": [7, '), r"sweep.finalists\[0\]: must be a text"),
        (text.replace("IntDistribution", "X").replace("FloatDistribution", "X"), "is damaged"),
    ):
        (sweep / "sweep.json").write_text(broken)
        assert cli.main(["report", str(sweep)]) == 2
        said = capsys.readouterr().err
        assert re.search(says, said) and "sweep.json" in said
        assert len(said.strip().splitlines()) == 1


def test_a_sweep_is_not_sent_where_only_its_folder_says(sweep):
    uri = "https://elsewhere.example"
    trial = kept(sweep, "0")
    with Journal(sweep / "0") as book:
        book.write(start(replace(config(), tracking=TrackingConfig(uri=uri)), run="y"))
    assert trial.name == "0"
    with pytest.raises(ConfigError, match=f"type --uri {uri}"):
        sync(sweep)


def test_segsweep_report_writes_the_page(sweep, capsys):
    assert cli.main(["report", str(sweep)]) == 0
    assert capsys.readouterr().out.strip() == str(sweep / "report.html")


def test_the_table_is_best_first_with_what_makes_it_fair(sweep):
    rows = report.table(list(load_all(sweep)))
    assert rows["trial"].tolist()[:3] == ["7", "6", "5"]
    assert rows["val/iou"].dropna().is_monotonic_decreasing
    assert {"weights", "input", "micro_batch", "parameters", "images/s", "precision"} <= set(rows)
    assert rows.iloc[-1]["state"] == "failed"


def test_weights_are_told_with_how_they_were_made(tmp_path):
    kept(tmp_path, "0", "resnet18.fb_swsl_ig1b_ft_in1k", scores=(0.3, 0.6))
    kept(tmp_path, "1", "resnet18", scores=(0.3, 0.5))
    kept(tmp_path, "2", "resnet18.a1_in1k", scores=(0.3, 0.4))  # the same as the one before
    rows = report.by_weights(list(load_all(tmp_path)))
    assert rows["weights"].tolist() == ["resnet18.fb_swsl_ig1b_ft_in1k", "resnet18.a1_in1k"]
    assert (rows["val/iou"].tolist(), rows["trials"].tolist()) == ([0.6, 0.5], [1, 2])
    assert rows["pretrained on"].tolist() == ["Instagram-1B > ImageNet-1k", "ImageNet-1k"]
    assert rows["licence"].tolist() == ["cc-by-nc-4.0", "apache-2.0"]
    assert rows["gated"].tolist() == ["unpublished", "unpublished"]


def test_the_end_says_what_is_not_as_it_should_be(sweep):
    trials, first = list(load_all(sweep)), report.results(sweep)
    said = report.summary(trials, first, sweep)
    assert "failed: 9; their messages are in out.log of each" in said
    assert "1 of 2" in said  # a finalist's repeats
    assert "not comparable" in said  # no matrices were kept
    alone = "A finalist with one run has no spread between seeds"
    assert alone in said and alone in write(sweep).read_text()
    twice = [replace(place, runs=(place.trial, place.trial)) for place in first]
    assert report.caption(twice)[0].endswith("over images and runs.")
    assert "scored once" in said
    kept(sweep, "finalists/5-1", "resnet18", 6e-4, (0.3, 0.2), seed=1, tested=0.43)  # of an earlier, shorter search
    kept(sweep, "finalists/4-1", "convnext_atto", 6e-4, (), state="failed", seed=1)
    asked(sweep, ["7", "6", "4"])
    said = report.summary(trials, report.results(sweep), sweep)
    assert "0.4400, optimistic: 2 models of this sweep were scored on the test split" in said
    left_out = "Left out, without a complete repeat: resnet34.a1_in1k."
    assert left_out in said and left_out in write(sweep).read_text()


@pytest.mark.parametrize(("images", "said"), [({"test": 4}, "the test split is not scored"), ({}, "no test split")])
def test_the_end_says_why_there_is_no_test_score(sweep, images, said):
    first = report.results(sweep)
    winner = first[0].winner
    records = [replace(r, images=images) if isinstance(r, Start) else r for r in winner.run.records]
    run = Run([replace(r, metrics={}) if isinstance(r, End) else r for r in records])
    first[0] = replace(first[0], runs=tuple(replace(one, run=run) for one in first[0].runs))
    assert f"{said}: the validation IoU has chosen the winner" in report.summary(list(load_all(sweep)), first, sweep)


def test_compare_shows_what_differs(sweep):
    rows = compare.table(compare.runs([sweep]))
    assert [c for c in rows if "." in c] == ["encoder.name", "optim.lr", "train.seed"]
    assert rows["val/iou"].tolist()[0] == pytest.approx(0.47)
    assert len(rows) == 13


@pytest.mark.parametrize("epochs", [None, 2])
def test_a_setting_that_one_run_lacks_is_a_difference(tmp_path, epochs, capsys):
    for name, value in (("a", epochs), ("b", 5)):
        (tmp_path / name).mkdir()
        with Journal(tmp_path / name) as book:
            book.write(start(config(epochs=value, time_budget=9.0)))
            book.write(epoch(1, 0.5, **SPEED))
            book.write(end())
    assert "train.epochs" in compare.table(compare.runs([tmp_path]))
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert re.search(rf"train\.epochs +{'null' if epochs is None else epochs} +5\n", capsys.readouterr().out)


def test_runs_on_other_data_stay_apart(tmp_path, capsys):
    for name, digest, score in (("a", "0123456789", 0.5), ("b", "0123456789", 0.7), ("c", "abcdef0123", 0.9)):
        (tmp_path / name).mkdir()
        with Journal(tmp_path / name) as book:
            book.write(start(config("e"), data_digest=digest))
            book.write(epoch(1, score, **SPEED))
            book.write(end())
    rows = compare.table(compare.runs([tmp_path]), ["encoder.name"])
    assert rows[["data", "n", "val/iou"]].to_numpy().tolist() == [
        ["folder abcdef01", 1, 0.9],
        ["folder 01234567", 2, pytest.approx(0.6)],
    ]
    assert re.search(r"^ +e +1$", compare.shown(rows[["encoder.name", "epochs"]], "text"), re.MULTILINE)  # not 1.0000
    assert "data" in compare.table(compare.runs([tmp_path]))
    assert "data" not in compare.table(compare.runs([tmp_path / "a", tmp_path / "b"]))
    for other, said in (("b", False), ("c", True)):
        assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / other)]) == 0
        assert ("the scores cannot be compared" in capsys.readouterr().out) == said


def test_whole_numbers_have_no_decimals(sweep):
    text = compare.shown(compare.table(compare.runs([sweep]), ["encoder.name"]), "text")
    assert re.search(r" 11000008\b", text)
    assert "sd None" not in text and "None" not in report.summary(list(load_all(sweep)), report.results(sweep), sweep)


def test_speed_is_that_of_the_usual_epoch():
    epochs = [epoch(i, 0.5, **{"perf/images_per_s": speed}) for i, speed in enumerate((5.0, 40.0, 44.0, 46.0))]
    trial = Trial("0", "a", [], [], run=Run(epochs))
    assert trial.speed == 44.0  # the first warms up
    trial.run.records.append(end(**{"perf/images_per_s": 43.0}))
    assert trial.speed == 43.0
    assert Trial("1", "a", [], []).speed is None


@pytest.fixture
def repeated(tmp_path):
    """One setting with five seeds, beside another encoder's and trials that were not completed."""
    for seed, score in enumerate((0.41, 0.43, 0.45, 0.47, 0.46)):
        kept(tmp_path, str(seed), scores=(0.3, score), seed=seed)
    kept(tmp_path, "5", "resnet34", scores=(0.3, 0.4))
    kept(tmp_path, "6", scores=(0.1,), state="pruned", seed=6)
    kept(tmp_path, "7", scores=(), state="failed", seed=7)
    asked(tmp_path)
    return tmp_path


def test_compare_means_over_complete_runs(repeated):
    rows = compare.table(compare.runs([repeated]), ["encoder.name"])
    expected = [0.41, 0.43, 0.45, 0.47, 0.46]
    resnet18 = rows.set_index("encoder.name").loc["resnet18"]
    assert resnet18["n"] == 5  # neither the pruned one nor the failed one
    assert resnet18["val/iou"] == pytest.approx(sum(expected) / 5)
    assert resnet18["val/iou sd"] == pytest.approx(0.0241, abs=1e-4)
    assert resnet18["weights"] == "package"


def test_a_score_that_only_one_of_several_runs_has_gives_no_mean(tmp_path):
    """The winner alone has a test score."""
    for seed in range(3):
        kept(tmp_path, str(seed), seed=seed, tested=0.4 if seed == 1 else None)
    kept(tmp_path, "3", "resnet34", tested=0.3)
    rows = compare.table(compare.runs([tmp_path]), ["encoder.name"]).set_index("encoder.name")
    assert rows["n"].to_dict() == {"resnet18": 3, "resnet34": 1}
    assert rows["test/iou"].dropna().to_dict() == {"resnet34": 0.3}
    assert rows["val/iou"].notna().all()


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("text", r"resnet18 +5 +0\.4440 ± 0\.0241"),
        ("markdown", r"\| resnet18 \| 5 \| 0\.4440 ± 0\.0241 \|"),
        ("latex", r"resnet18 & 5 & 0\.4440 \$\\pm\$ 0\.0241"),
        ("csv", r"resnet18,5,0\.444\d*,0\.0240\d*"),
    ],
)
def test_compare_on_the_command_line(repeated, kind, says, capsys):
    assert cli.main(["compare", "--sweep", str(repeated), "--group-by", "encoder.name", "--format", kind]) == 0
    assert re.search(says, capsys.readouterr().out)


def scored(folder, name, rng, right, images=30):
    """Matrices of validation images, of whose pixels so many are right."""
    hits = rng.binomial(500, right, (images, 2))
    matrices = np.stack([np.stack([hits[:, 0], 500 - hits[:, 0]], 1), np.stack([500 - hits[:, 1], hits[:, 1]], 1)], 1)
    np.savez(folder / name / "val_matrices.npz", keys=[f"image{i}" for i in range(images)], matrices=matrices, epoch=2)


def test_two_runs_are_told_apart_image_by_image(sweep, capsys):
    rng = np.random.default_rng(0)
    scored(sweep, "6", rng, 0.8)
    scored(sweep, "7", rng, 0.9)
    assert cli.main(["compare", str(sweep / "6"), str(sweep / "7")]) == 0
    said = capsys.readouterr().out
    assert re.search(r"encoder\.name +resnet34 +resnet18", said)
    assert re.search(r"val/iou +0\.4600 +0\.4700 +0\.0100", said)
    better, worse, low, high = re.search(
        r"images: (\d+) better, (\d+) worse of 30; IoU (\S+) to (\S+) \(95 % interval over", said
    ).groups()
    assert int(better) > int(worse)
    assert 0 < float(low) < float(high)
    assert len(re.findall(r"^ *image\d+ ", said, re.M)) == 10
    assert "may be chance" not in said
    assert cli.main(["compare", str(sweep / "6"), str(sweep / "6"), "--format=markdown"]) == 0
    same = capsys.readouterr().out
    assert "the same settings" in same
    assert "0 better, 0 worse" in same
    assert "may be chance" in same
    assert cli.main(["compare", str(sweep / "5"), str(sweep / "7")]) == 0
    assert "not validated on the same images" in capsys.readouterr().out
    assert cli.main(["compare", str(sweep / "6"), str(sweep / "7"), "--format=csv"]) == 0
    assert capsys.readouterr().out.startswith("run,")


def test_something_found_in_nothing_is_told_beside_the_images_with_a_number(sweep, capsys):
    empty = np.array([[1000, 0], [0, 0]])
    for name, wrong in (("6", 0), ("7", 500)):
        matrices = np.stack([[[1000, 0], [10, 90]], *[empty - [[wrong, -wrong], [0, 0]]] * 9])
        np.savez(sweep / name / "val_matrices.npz", keys=[f"image{i}" for i in range(10)], matrices=matrices, epoch=2)
    assert cli.main(["compare", str(sweep / "7"), str(sweep / "6")]) == 0
    assert (
        "0 better, 0 worse of 1 (9 more have an empty mask; in 9 of them the first run predicted objects);"
        in capsys.readouterr().out
    )  # 0 and NaN: not to be compared


@pytest.mark.parametrize("kind", ["latex", "markdown"])
def test_tables_are_escaped(kind):
    rows = pd.DataFrame({"perf/images_per_s": [1.0], "data.classes": ["{'a_b': [1, 2]} & 50% | #"]})
    said = compare.shown(rows, kind)
    if kind == "latex":
        assert not re.search(r"(?<!\\)[_#%]", said)
        assert r"\{'a\_b': [1, 2]\} \& 50\% | \#" in said
    else:
        assert r"50% \| #" in said


def test_compare_names_the_closest_key(sweep):
    with pytest.raises(ConfigError, match=r"--group-by encoder\.nam: no run has this key\. Try encoder\.name\."):
        compare.table(compare.runs([sweep]), ["encoder.nam"])


def test_a_damaged_run_is_left_out_unless_it_is_named(sweep, capsys, caplog):
    whole = len(compare.runs([sweep]))
    (sweep / "6" / "metrics.jsonl").write_text("{}\n")
    assert len(compare.runs([sweep])) == whole - 1
    (warning,) = caplog.messages
    assert str(sweep / "6" / "metrics.jsonl") in warning
    with pytest.raises(ConfigError, match="damaged"):
        compare.runs([sweep / "6"])
    assert cli.main(["compare", str(sweep / "6"), str(sweep / "7")]) == 2
    for path in sweep.rglob("metrics.jsonl"):
        path.write_text("{}\n")
    assert cli.main(["compare", str(sweep)]) == 2
    assert "no run that can be read" in capsys.readouterr().err


def test_auto_is_no_difference():
    rows = pd.DataFrame({"train.bn_momentum": ["auto", "scaled"], "train.precision": ["auto", "fp32"], "a.b": [1, 2]})
    assert compare._differing(rows) == ["a.b"]


def test_compare_without_runs(tmp_path, capsys):
    assert cli.main(["compare", str(tmp_path)]) == 2
    assert "contains no run" in capsys.readouterr().err


def test_the_command_of_the_best_is_one_to_type(tmp_path):
    trial = Trial("0", "resnet18", [], ["data=folder", "data.classes=[a,b]", "encoder=resnet18", "encoder=resnet18"])
    assert report.command(trial) == "python train.py data=folder 'data.classes=[a,b]' encoder=resnet18"
    trial.argv.append("encoder=resnet34")
    assert report.command(trial).endswith(" encoder=resnet34")  # the last counts
    trial.argv.append("sweeps=lr_by_encoder")
    assert report.command(trial).endswith("sweeps=lr_by_encoder hydra.mode=RUN")


def shown(events, terminal):
    out = io.StringIO()
    trials = {event.trial.name: event.trial for event in events}
    console = Console(file=out, force_terminal=terminal, width=120, color_system=None)
    with live.Board(trials, 4, 2, console) as drawn:
        for event in events:
            drawn.show(event)
        drawn_rows = console.render_lines(drawn._drawn())
    return out.getvalue(), "\n".join("".join(s.text for s in row) for row in drawn_rows)


def test_the_board_and_the_plain_lines(sweep):
    trials = {trial.name: trial for trial in load_all(sweep)}
    trials["6"].state, trials["6"].slot = "running", "GPU 1"
    events = [
        Event("started", trials["6"]),
        Event("epoch", trials["6"]),
        Event("complete", trials["7"]),
        Event("pruned", trials["8"]),
        Event("halved", trials["9"]),
    ]
    plain, drawn = shown(events, terminal=False)
    lines = plain.strip().splitlines()
    assert lines == [
        "trial   6  starts on GPU 1  encoder=resnet34 optim.lr=0.0007",
        "trial   7  complete  IoU 0.4700  encoder=resnet18 optim.lr=0.0008",
        "trial   8  pruned    IoU 0.1000  encoder=resnet18 optim.lr=0.001  (0.1000 after 50 %: <too> low)",
        "trial   9  out of memory: starts again with half the micro-batch",
    ]
    assert "2 of 4 finished, 1 pruned, 1 failed" in drawn
    assert re.search(r"GPU 1 +6 +2/2 +0\.4600 +encoder=resnet34", drawn)
    assert live.line(Event("continued", trials["6"], "signal 7 (SIGBUS)")).endswith(
        "optim.lr=0.0007  (signal 7 (SIGBUS))"
    )
    plain, _ = shown(events, terminal=True)
    assert "trial   7  complete" in plain


def test_why_trials_were_refused_is_told_once(sweep):
    one, other, third = (
        kept(sweep, name, state="refused", reason=reason, started=False)
        for name, reason in (("10", "no rate"), ("11", "no rate"), ("12", "no fold"))
    )
    plain, drawn = shown([Event("refused", trial) for trial in (one, other, third)], terminal=False)
    assert (plain.count("(no rate)"), plain.count("(no fold)"), plain.count("refused")) == (1, 1, 3)
    assert "3 refused" in drawn
    said = report.summary(list(load_all(sweep)), report.results(sweep), sweep)
    assert "refused: 10, 11: no rate\nrefused: 12: no fold\n" in said
    assert "3 refused" in write(sweep).read_text()


def test_the_time_left():
    def trial(state, epochs, seconds=10.0):
        records = [start(config(epochs=4)), *(epoch(i + 1, 0.5, **{"perf/seconds": seconds}) for i in range(epochs))]
        return Trial("0", "a", [], [], {}, state, run=Run(records))

    assert seconds_left([trial("running", 2)], 4, 2) is None
    over = [trial("complete", 4), trial("complete", 4)]
    assert seconds_left(over, 4, 2) == 10
    assert seconds_left([*over, trial("running", 2)], 4, 1) == 15


@pytest.mark.parametrize(("seconds", "said"), [(20, "less than a minute"), (300, "5 min"), (10_000, "2.8 h")])
def test_durations_are_said_as_a_person_would(seconds, said):
    assert live.duration(seconds) == said


def test_machines_are_named_where_trials_ran_on_several(tmp_path):
    trials = [kept(tmp_path, "0"), kept(tmp_path, "1")]
    asked(tmp_path)
    for trial, host in zip(trials, ("one", "one"), strict=True):
        trial.run = Run([start(config(), host=host, torch="2.15"), epoch(1, 0.5)])
    alike = report.summary(trials, [], tmp_path)
    assert "host" not in alike
    trials[1].run = Run([start(config(), host="other", torch="2.15"), epoch(1, 0.5)])
    differ = report.summary(trials, [], tmp_path)
    assert re.search(r"\bhost\b", differ)
    assert "other" in differ
    assert "torch" not in differ


def test_only_repeats_of_one_setting_are_averaged(tmp_path):
    asked(tmp_path, ["0"])
    for name, lr, seed, score in (
        *(("0", 1e-3, 0, 0.9), ("1", 1e-2, 0, 0.3)),
        *(("finalists/0-1", 1e-3, 1, 0.5), ("finalists/0-2", 1e-3, 2, 0.6)),
    ):
        kept(tmp_path, name, lr=lr, seed=seed, scores=(0.1, score))
    found = compare.table(compare.runs([tmp_path]), ["encoder.name"])
    means = {(row["optim.lr"], row["of"]): (row["n"], round(row["val/iou"], 4)) for row in found.to_dict("records")}
    assert means == {
        ("0.001", "finalists"): (2, 0.55),
        ("0.001", "search"): (1, 0.9),
        ("0.01", "search"): (1, 0.3),
    }
    assert "weights_source" in compare.pair(tmp_path / "0", tmp_path / "1")
    assert not {"data.root", "data.annotations", "train.workers"} & set(compare.table(compare.runs([tmp_path])))


def test_of_a_folder_with_runs_below_it_the_first_is_compared(tmp_path):
    for name, lr in (("x", 1e-3), ("x/y", 1e-2), ("z", 1e-1)):
        kept(tmp_path, name, lr=lr)
    said = compare.pair(tmp_path / "x", tmp_path / "z")
    assert re.search(r"optim\.lr +0\.001 +0\.1$", said, re.MULTILINE)


@pytest.mark.parametrize(
    ("search", "scores", "says"),
    [
        (0.0006, [0.1445], "the mean of only 1 new seed; better: hydra.sweeper.repeats=3"),
        (0.51, [0.50, 0.52], "the mean of only 2 new seeds"),
        (0.51, [0.50, 0.51, 0.52], ""),
        (0.60, [0.50, 0.51, 0.52], "0.6000 in the search, which is 9.0 sd from their mean"),
        (0.60, [0.50, 0.50, 0.50], "0.6000 in the search, which is far from all runs with new seeds"),
        (
            0.60,
            None,
            "the best of many trials, so its score is optimistic; hydra.sweeper.finalists=1 hydra.sweeper.repeats=3",
        ),
    ],
)
def test_a_winner_is_doubted_where_little_is_known(tmp_path, search, scores, says):
    trial = kept(tmp_path, "0", scores=(search,))
    trial.run = journal.read(tmp_path / "0")
    runs = []
    for i, score in enumerate(scores or ()):
        runs.append(kept(tmp_path, f"finalists/0-{i}", scores=(score,), seed=i + 1))
        runs[-1].run = journal.read(tmp_path / f"finalists/0-{i}")
    result = FinalistResult(trial, tuple(runs) or (trial,), np.mean(scores or [search]))
    assert report.doubt(result).startswith(says)
    assert bool(report.doubt(result)) == bool(says)
    if scores is None:
        assert "its 4 repeats with new seeds failed" in report.doubt(replace(result, failed=4))


def test_the_page_fits_a_phone_and_shows_what_each_finalist_predicts(tmp_path):
    asked(tmp_path, ["0", "1"])
    for name, encoder in (("0", "resnet18"), ("1", "resnet34")):
        kept(tmp_path, name, encoder)
        for repeat in (f"finalists/{name}-1", f"finalists/{name}-2"):
            kept(tmp_path, repeat, encoder, seed=1)
            for image in ("a.png", "b.png"):
                folder = tmp_path / repeat / "predictions" / image
                folder.mkdir(parents=True)
                Image.new("RGB", (900, 700), "red").save(folder / "0001.png")
    page = write(tmp_path).read_text()
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in page
    assert page.count("data:image/jpeg;base64,") == 4  # two images by two finalists
    assert "doubtful" in page
