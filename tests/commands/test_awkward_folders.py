"""What is typed and printed where folders have commas, quotes, blanks, `${`, backslashes, letters beyond ASCII."""

import csv
import shlex

import pytest
from conftest import TINY

import train
from segsweep import console
from segsweep.commands import app
from segsweep.paths import quoted
from segsweep.runs import journal
from segsweep.runs.trial import load_all
from segsweep.sweeping.plan import again

AWKWARD = ["a,b", "it's", 'say "hi"', "Zürich 細胞", "${oc.env:HOME}", "a b", "back\\", "[x]={y}"]
FAST = (*TINY, "train.batch_size=4", "train.epochs=1", "tracking=none", "data.size=32")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with everything awkward above it, which holds the outputs, too."""
    folder = tmp_path.joinpath(*AWKWARD)
    folder.mkdir(parents=True)
    monkeypatch.setenv("SEGSWEEP_OUTPUTS", str(folder / "outputs"))
    return folder


def pasted(printed: str, after: str) -> list[str]:
    """The words that a shell reads in what is printed after a text, up to the line's end or a semicolon."""
    return shlex.split(printed.partition(after)[2].partition(";")[0].splitlines()[0])


def test_train_resume_sweep_data_and_evaluate_work_there_with_a_file_of_ones_own(place, pairs, monkeypatch, capsys):
    """The file is gone before the run goes on, and trials run without it."""
    root = pairs(12, name=str(place / "files" / "my data"))
    (place / "files" / "my.yaml").write_text("root: my data\nclasses: {Zelle: 1}\n")
    monkeypatch.chdir(place)
    word = "data=files/my.yaml"

    assert app.main(["data", word]) == 0
    assert app.main(["data", "data=folder", f"data.root={quoted(root)}"]) == 0
    assert "Zelle" in capsys.readouterr().out

    typed = [*FAST, word, f"hydra.run.dir={quoted(place / 'run')}"]
    assert train.main(typed) == 0
    assert {path.name for path in place.iterdir()} == {"files", "run", "outputs"}
    asked = journal.started(place / "run").asked.data
    assert (asked.root, asked.classes) == (str(root), {"Zelle": 1})
    assert app.main(["evaluate", "run", word, "data.size=64"]) == 0
    assert train.main(typed) == 2
    go_on = pasted(capsys.readouterr().err, "To continue it: ")

    sweep = place / "sweep"
    found = ["optim.lr=choice(1e-3,1e-2)", "hydra.sweeper.n_trials=2", "hydra.sweeper.finalists=0"]
    where = ["hydra.sweeper.slots=1", f"hydra.sweep.dir={quoted(sweep)}"]
    assert train.main([*FAST, word, "-m", "hydra/sweeper=optuna", *found, *where]) == 0
    trials = list(load_all(sweep))
    assert [trial.state for trial in trials] == ["complete", "complete"]
    assert [trial.run.start.asked.data.root for trial in trials] == [str(root)] * 2
    assert [trial.run.start.asked.data.classes for trial in trials] == [{"Zelle": 1}] * 2
    command = pasted(capsys.readouterr().out, "segsweep train")
    assert f"data.root={quoted(root)}" in command and not any(".yaml" in word for word in command)

    (place / "files" / "my.yaml").unlink()
    monkeypatch.chdir("/")
    assert train.main([*go_on, "train.epochs=2", f"data.root={quoted(root)}"]) == 0
    assert len(journal.read(place / "run").epochs) == 2


def test_the_advice_where_a_table_needs_its_root_works_when_typed(place, pairs, tmp_path, capsys):
    root = pairs(12, name=str(place / "my data"))
    table = tmp_path / "elsewhere" / "pairs.csv"
    table.parent.mkdir()
    with table.open("w", newline="") as file:
        named = [[root / kind / f"{i:03d}.png" for kind in ("images", "masks")] for i in range(12)]
        csv.writer(file).writerows([["image", "mask"], *named])
    typed = ["data", "data=folder", f"data.table={table}"]
    assert app.main(typed) == 3
    assert app.main([*typed, *pasted(capsys.readouterr().err, "Add ")]) == 0


def test_what_is_printed_at_the_end_is_typed_as_it_stands(place):
    summary = {"images": {}, "passes": 1, "data": "x", "classes": [], "weights_source": "random", "input_size": None}
    summary |= {"encoder": "x", "status": "stopped"}
    words = pasted(console.result(place, summary, "ctrl-c"), "python train.py")
    assert words == [f"resume={quoted(place)}"]
    assert pasted(again(place, "-m 'x=a b'"), "python train.py ") == ["-m", "x=a b", f"hydra.sweep.dir={quoted(place)}"]
    named = shlex.join(["-m", f"hydra.sweep.dir={quoted(place)}"])
    assert again(place, named) == f"python train.py {named}"
