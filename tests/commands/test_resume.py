"""`resume=DIR` goes by DIR's journal alone: nothing of the folder is composed or run, and only what may change does."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
from conftest import TINY, train_once, write_pairs

import train
from segsweep import metrics
from segsweep.commands.app import main as segsweep
from segsweep.commands.common import training_data
from segsweep.engine import device as devices
from segsweep.runs import journal
from segsweep.tracking import client

TYPED = (*TINY, "train.epochs=1", "train.batch_size=4", "data.size=[32,32]", "data=folder")
SERVER = "http://127.0.0.1:9/theirs"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A run of one epoch, to be copied, and its data."""
    place = tmp_path_factory.mktemp("ran")
    root = write_pairs(place)(12)
    return train_once(place, root, "data.size=[32,32]", "train.epochs=1"), root


@pytest.fixture
def folder(ran, tmp_path):
    """A copy of a run of one epoch."""
    return shutil.copytree(ran[0], tmp_path / "run")


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def change_start(folder, change):
    """Have `change` work on the recorded start, as plain JSON."""
    path = folder / journal.NAME
    first, *rest = path.read_text().splitlines(keepends=True)
    start = json.loads(first)
    change(start)
    path.write_text(json.dumps(start) + "\n" + "".join(rest))


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_resume_runs_nothing_of_the_folder(folder, tmp_path):
    trace, bomb = tmp_path / "it ran", tmp_path / "bomb.pkl"
    bomb.write_bytes(pickle.dumps(Bomb(trace)))
    pickle.loads(bomb.read_bytes())
    assert trace.exists()
    trace.unlink()
    target = f"{{_target_: pandas.read_pickle, filepath_or_buffer: {bomb}}}"
    (folder / ".hydra" / "overrides.yaml").write_text(f"- +hydra.callbacks.d={target}\n- optim.lr=7\n")
    (folder / ".hydra" / "hydra.yaml").write_text(f"hydra:\n  callbacks:\n    d: {target}\n  searchpath: [file://x]\n")
    (folder / ".hydra" / "config.yaml").write_text(
        f"hydra: {{callbacks: {{d: {target}}}}}\noptim: {{lr: 7}}\nx: ${{oc.env:HOME}}\n"
        f"y: !!python/object/apply:os.system ['touch \"{trace}\"']\n"
    )
    poisoned = files(folder / ".hydra")
    assert train.main([f"resume={folder}", "train.epochs=2"]) == 0
    assert not trace.exists()
    assert files(folder / ".hydra") == poisoned  # for people: neither read nor written
    run = journal.read(folder)
    assert [epoch.epoch for epoch in run.epochs] == [1, 2]
    assert run.start.settings.optim.lr == run.starts[0].settings.optim.lr != 7


def test_nothing_of_a_record_is_resolved(folder, tmp_path, capsys):
    """What looks like OmegaConf's or Hydra's grammar in a journal is text."""
    root = "${oc.env:HOME}/x',data.count=7,'"
    change_start(folder, lambda start: start["asked"]["data"].update(root=root))
    assert train.main([f"resume={folder}", "train.epochs=2"]) in (2, 3)
    error = capsys.readouterr().err
    assert "${oc.env:HOME}" in error
    assert "Traceback" not in error


def test_a_run_goes_on_without_hydras_files(folder):
    shutil.rmtree(folder / ".hydra")
    assert train.main([f"resume={folder}", "train.epochs=2"]) == 0
    assert len(journal.read(folder).epochs) == 2
    assert not (folder / ".hydra").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optim.lr=0.5"], ["optim.lr: auto -> 0.5"]),
        (["optim.lr=0.5", "train.seed=3"], ["optim.lr: auto -> 0.5", "train.seed: 0 -> 3"]),
        (["train.epochs=2", "encoder=test_vit"], ["encoder.name: test_resnet -> test_vit"]),
        (["train.epochs=2", "augmentation=strong"], ["augmentation.vflip: 0.0 -> 0.5"]),
        (["optim=sgd"], ["optim.name: adamw -> sgd"]),
        (["data=shapes"], ["data.name: folder -> shapes"]),
        (["train.precision=bf16"], ["train.precision: fp32 -> bf16"]),
        (["data.size=[64,64]"], ["data.size: [32, 32] -> [64, 64]"]),
        (["+hydra.callbacks.d={_target_: os.getcwd}"], ["drop +hydra.callbacks.d="]),
        (["train.epoch=2"], ["Try train.epochs=2"]),
        (["train.epochs=x"], ["train.epochs"]),
        (["tracking=mlfow"], ["Try tracking=mlflow"]),
        (["hydra.run.dir=there"], ["drop hydra.run.dir"]),
        (["garbage", "train.epochs=2"], ["garbage: cannot be read as KEY=VALUE"]),
        (["job", "train.epochs=2"], ["job: cannot be read as KEY=VALUE"]),
        (["--cfg", "job", "garbage"], ["garbage: cannot be read as KEY=VALUE"]),
        (["~loss.ce"], ["drop ~loss.ce"]),
        (["-m", "train.epochs=2,3"], ["drop -m"]),
        (["--info", "defaults", "train.epochs=2"], ["only --cfg job"]),
    ],
)
def test_words_that_would_make_another_run_are_refused_with_the_difference(words, said, folder, capsys):
    before = files(folder)
    assert train.main([f"resume={folder}", *words]) == 2
    error = capsys.readouterr().err
    assert all(text in error for text in said), error
    assert len(error.splitlines()) == 1
    assert files(folder) == before


def test_a_precision_that_the_processor_lacks_is_one_line_that_names_it(folder, monkeypatch, capsys):
    """Another precision would be another training, and this one ends the process without a word."""
    change_start(folder, lambda start: start["execution"].update(precision="bf16"))
    monkeypatch.setattr(devices, "_survives", lambda kind: False)
    before = files(folder)
    assert train.main([f"resume={folder}", "train.epochs=2"]) == 2
    said = "resume: the run computes in bf16, which this processor cannot. Continue it on a machine like the first one."
    assert capsys.readouterr().err.splitlines()[-1].endswith(said)
    assert files(folder) == before


def test_words_that_may_change_count(folder, ran, tmp_path, monkeypatch):
    moved = shutil.copytree(ran[1], tmp_path / "moved data")
    monkeypatch.chdir(tmp_path)
    words = ["train.epochs=3", "train.patience=7", "train.test=false", "train.workers=2", "data.root='moved data'"]
    assert train.main([f"resume={folder}", *words, "train.grad_accum=2", "optim.lr=auto", "augmentation=standard"]) == 0
    run = journal.read(folder)
    assert [epoch.epoch for epoch in run.epochs] == [1, 2, 3]
    asked, settings = run.start.asked, run.start.settings
    assert (settings.train.epochs, settings.train.patience, settings.train.test) == (3, 7, False)
    assert (settings.train.grad_accum, run.start.execution.micro_batch) == (2, 2)
    assert (asked.train.workers, asked.data.root) == (2, str(moved))
    before = run.starts[0]
    assert (settings.optim, settings.data, settings.normalization) == (
        before.settings.optim,
        before.settings.data,
        before.settings.normalization,
    )


def test_what_was_typed_when_a_run_went_on_stays(folder):
    """A resumption is by the latest start, not the first."""
    assert train.main([f"resume={folder}", "train.epochs=2", "train.patience=5"]) == 0
    assert train.main([f"resume={folder}", "train.epochs=3"]) == 0
    run = journal.read(folder)
    assert [start.settings.train.patience for start in run.starts] == [None, 5, 5]
    assert [start.resumed_after for start in run.starts] == [0, 1, 2]
    assert len({start.run for start in run.starts}) == 1


def test_the_code_of_each_start_is_kept(folder, monkeypatch):
    (folder / "code.diff").write_text("first")
    for epochs, diff in ((2, ""), (3, "third")):
        monkeypatch.setattr("segsweep.runs.provenance.code", lambda diff=diff: ("0" * 40, bool(diff), diff))
        assert train.main([f"resume={folder}", f"train.epochs={epochs}"]) == 0
    kept = {path.name: path.read_text() for path in folder.glob("code*")}
    assert kept == {"code.diff": "first", "code-3.diff": "third"}


def test_what_is_composed_is_shown(folder, capsys):
    assert train.main([f"resume={folder}", "train.epochs=5", "--cfg", "job"]) == 0
    said = capsys.readouterr().out
    assert "name: test_resnet" in said
    assert "epochs: 5" in said


@pytest.mark.parametrize("typed", [False, True])
def test_a_record_downloads_nothing_until_somebody_types_it(typed, folder, tmp_path, monkeypatch, capsys):
    there, asked = tmp_path / "elsewhere", []

    def oxford(root, download, **_):
        asked.append((root, download))
        raise RuntimeError("Dataset not found.")

    monkeypatch.setattr("torchvision.datasets.OxfordIIITPet", oxford)
    change_start(
        folder, lambda start: start["asked"]["data"].update(name="oxford_pets", root=str(there), download=True)
    )
    words = ["data.download=true"] if typed else []
    assert train.main([f"resume={folder}", "train.epochs=2", *words]) == 2
    assert segsweep(["evaluate", str(folder), *words]) == 2
    assert ("Fetch them with data.download=true." in capsys.readouterr().err) is not typed
    assert asked == [(str(there), typed)] * 2
    assert training_data(folder) is None
    assert asked[-1] == (str(there), False)
    assert not there.exists()


@pytest.fixture
def theirs(folder):
    """A run whose record names a server that this user never typed."""

    def change(start):
        start["asked"]["tracking"].update(name="mlflow", uri=SERVER, timeout=5.0)

    change_start(folder, change)
    return folder


@pytest.fixture
def contacted(monkeypatch):
    """The servers that a client was made for."""
    found = []

    def connected(uri):
        found.append(uri)
        raise OSError("no server here")

    monkeypatch.setattr("segsweep.tracking.client.connected", connected)
    return found


def test_a_server_that_only_the_record_names_is_never_contacted(theirs, contacted, capsys):
    before = files(theirs)
    assert train.main([f"resume={theirs}", "train.epochs=2"]) == 2
    error = capsys.readouterr().err
    assert f"type tracking.uri={SERVER}" in error
    assert len(error.splitlines()) == 1
    assert (contacted, files(theirs)) == ([], before)


@pytest.mark.parametrize("typed", ["tracking=none", "tracking.name=none"])
def test_a_group_switches_tracking_off(typed, theirs, contacted):
    assert train.main([f"resume={theirs}", "train.epochs=2", typed]) == 0
    assert contacted == []
    assert journal.read(theirs).start.asked.tracking.name == "none"


@pytest.mark.parametrize("how", ["typed", "remembered", "environment"])
def test_a_server_of_this_users_own_is_told(how, theirs, contacted, monkeypatch):
    if how == "remembered":
        client.remember(SERVER)
    if how == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    typed = [f"tracking.uri={SERVER}"] if how == "typed" else []
    assert train.main([f"resume={theirs}", "train.epochs=2", *typed]) == 0
    assert set(contacted) == {SERVER}


def test_a_typed_server_takes_the_records_place(theirs, contacted):
    own = "http://127.0.0.1:9/mine"
    assert train.main([f"resume={theirs}", "train.epochs=2", f"tracking.uri={own}"]) == 0
    assert set(contacted) == {own}
    assert journal.read(theirs).start.asked.tracking.uri == own
    assert train.main([f"resume={theirs}", "train.epochs=3"]) == 0  # it is remembered
    assert set(contacted) == {own}


def test_the_records_server_is_dropped_for_the_default(theirs, contacted):
    assert train.main([f"resume={theirs}", "train.epochs=2", "tracking.uri=null"]) == 0
    assert set(contacted) == {client.tracking_uri()}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"\x00 no JSON\n", "damaged: a line is not valid JSON"),
        (b'{"kind": "epo\xff"}\n', "damaged"),
        (b'{"kind": "pause", "time": 1.0}\n', "a line is not a start, epoch or end"),
        (b'{"kind": "epoch", "epoch": "2", "time": 1.0}\n', "epoch.epoch: must be a whole number"),
        (
            b'{"kind": "start", "version": 99}\n',
            "has format 99, and this segsweep reads format 3. Use the version that wrote it.",
        ),
    ],
)
def test_a_damaged_journal_is_one_line_that_names_the_file(line, said, folder, capsys):
    with (folder / journal.NAME).open("ab") as file:
        file.write(line)
    before = files(folder)
    assert train.main([f"resume={folder}", "train.epochs=2"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert f"{folder / journal.NAME}: " in error
    assert said in error
    assert files(folder) == before


@pytest.mark.parametrize(
    "name", ["hf-hub:somebody/model", "hf_hub:somebody/model", "local-dir:somewhere", "test_resnet.x:/y"]
)
def test_a_record_names_no_encoder_but_timms(name, folder, monkeypatch, capsys):
    change_start(folder, lambda start: [start[part]["encoder"].update(name=name) for part in ("asked", "settings")])
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("contacted somebody"))
    assert train.main([f"resume={folder}", "train.epochs=2"]) == 2
    error = capsys.readouterr().err
    assert name in error
    assert "Traceback" not in error


@pytest.mark.parametrize("damage", ["empty", "garbage", "torn"])
def test_damaged_matrices_are_made_anew(damage, folder):
    path = folder / metrics.MATRICES
    whole = path.read_bytes()
    before = metrics.read_validation(folder)
    path.write_bytes({"empty": b"", "garbage": b"PK\x03\x04 garbage", "torn": whole[: len(whole) // 2]}[damage])
    assert metrics.read_validation(folder) is None
    assert segsweep(["compare", str(folder), str(folder)]) == 0
    assert train.main([f"resume={folder}", "train.epochs=2"]) == 0
    after = metrics.read_validation(folder)
    assert after.keys == before.keys
    assert after.epoch == journal.read(folder).best.epoch


@pytest.mark.parametrize("damage", [b"", b"noise", None])
def test_a_checkpoint_that_cannot_be_read_is_one_line(damage, folder, capsys):
    if damage is None:
        (folder / "last.pt").unlink()
    else:
        (folder / "last.pt").write_bytes(damage)
    assert train.main([f"resume={folder}", "train.epochs=2"]) == 2
    error = capsys.readouterr().err
    assert "last.pt" in error.splitlines()[-1]
    assert "Traceback" not in error
