"""The front door: what is typed, what is answered, what is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY

import train
from segsweep import journal, tracking

ROOT = Path(train.__file__).parent
SMALL = (*TINY, "train.epochs=2", "train.batch_size=4", "data.size=[32,32]", "tracking=none")


def folder_data(root):
    return ("data=folder", f"data.root={root}")


def run_folders(outputs):
    return sorted(path.parent for path in outputs.rglob(journal.NAME))


def test_a_run_leaves_everything_it_promises(pairs, outputs, capsys):
    code = train.main([*SMALL, *folder_data(pairs(12, ("train", "val", "test")))])
    assert code == 0
    (folder,) = run_folders(outputs)
    for name in (
        "summary.json",
        "split.csv",
        "best.safetensors",
        "last.pt",
        ".hydra/config.yaml",
        ".hydra/overrides.yaml",
    ):
        assert (folder / name).exists(), name
    assert list((folder / "predictions").glob("*/*.png"))
    records = journal.read(folder)
    assert [r["kind"] for r in records] == ["start", "epoch", "epoch", "end"]
    summary = json.loads((folder / "summary.json").read_text())
    wanted = ("val/iou", "test/iou", "val/dice", "val/accuracy", "perf/images_per_s", "run_id", "weights_source")
    assert all(name in summary for name in wanted)
    assert summary["val/iou"] == max(r["val/iou"] for r in journal.epochs(records))
    assert summary["weights_source"] == "random"
    printed = capsys.readouterr()
    assert str(folder) in printed.out
    assert f"{summary['val/iou']:.4f}" in printed.out
    assert "epoch   2/2" in printed.err


def test_a_split_without_test_has_no_test_score(pairs, outputs):
    assert train.main([*SMALL, *folder_data(pairs(20))]) == 0
    summary = json.loads((run_folders(outputs)[0] / "summary.json").read_text())
    assert "test/iou" not in summary


def test_several_classes_train(pairs, outputs):
    root = pairs(12, foreground=2)
    code = train.main([*SMALL, *folder_data(root), "data.classes=[ground,grass,tree]"])
    assert code == 0
    end = journal.read(run_folders(outputs)[0])[-1]
    assert end["val/iou/grass"] is None  # in no target
    assert end["val/iou/tree"] is not None


@pytest.mark.parametrize(
    ("typed", "code", "said"),
    [
        (["encoder=resnt34"], 2, "Try encoder=resnet34"),
        (["encoder=resnet34.nope"], 2, "no pretrained tag"),
        (["optim.lrr=1"], 2, "Closest: optim.lr"),
        (["+train.epoch=3"], 2, "Closest: train.epochs"),
        (["optim=adamm"], 2, "Try optim=adam"),
        (["optim.lr=abc"], 2, "optim.lr"),
        (["optim.lr=-1"], 2, "optim.lr=-1"),
        (["data.resize=padd"], 2, "Try data.resize=pad"),
        (["train.batch_size=5", "train.accumulate=2"], 2, "divisor"),
        (["data=folder", "data.images=/no/where", "data.masks=/no/where"], 2, "data.images=/no/where"),
        (["data=folder"], 2, "data.images=DIR"),
        (["encoder.pretrained=true"], 2, "encoder.weights_file=PATH"),
        (["train.device=cuda:99"], 2, "train.device=auto"),
        (["resume=/no/where"], 2, "no such folder"),
        (["data.group=^(a)"], 2, """"data.group='^(a)'\""""),
        (["lr=1"], 2, "Closest: optim.lr"),
        (["data=shapes", "data.images=/tmp"], 2, "Add data=folder"),
        (["hydra.run.dir="], 2, "hydra.run.dir is empty"),
        (["lr"], 2, "lr: cannot be read as KEY=VALUE"),
        (["decoder.width=[8,8]"], 2, "5 widths"),
        (["train.batch_size=4096"], 2, "larger than the training split"),
        (["loss=bce", "data.classes=[a,b,c]"], 2, "Try loss=ce"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_no_folder(typed, code, said, pairs, outputs, capsys):
    data = () if any(arg.startswith("data=") for arg in typed) else folder_data(pairs(12))
    base = [arg for arg in SMALL if not (arg.startswith("encoder") and any(t.startswith("encoder") for t in typed))]
    if typed == ["encoder.pretrained=true"]:
        base = ["encoder=test_resnet", *SMALL[2:]]
    assert train.main([*base, *data, *typed]) == code
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1
    assert not [p for p in outputs.rglob("*") if "cache" not in p.relative_to(outputs).parts]


def test_images_without_masks_are_listed(pairs, outputs, capsys):
    root = pairs(12)
    (root / "masks" / "003.png").unlink()
    (root / "masks" / "007.png").unlink()
    assert train.main([*SMALL, *folder_data(root)]) == 3
    error = capsys.readouterr().err
    assert "003.png" in error
    assert "007.png" in error


def test_one_image_cannot_be_split(pairs, capsys):
    assert train.main([*SMALL, *folder_data(pairs(1))]) == 3
    assert "1 image" in capsys.readouterr().err


def test_a_folder_with_a_run_is_refused_without_resume(pairs, tmp_path, capsys):
    typed = [*SMALL, *folder_data(pairs(12)), f"hydra.run.dir={tmp_path / 'mine'}"]
    assert train.main(typed) == 0
    before = (tmp_path / "mine" / journal.NAME).read_bytes()
    assert train.main(typed) == 2
    assert "resume=" in capsys.readouterr().err
    assert (tmp_path / "mine" / journal.NAME).read_bytes() == before


def test_a_folder_in_use_is_refused(pairs, tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    hold = (
        f"import fcntl, time; f = open({str(folder / 'lock')!r}, 'a'); fcntl.lockf(f, fcntl.LOCK_EX); "
        "print(1, flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        assert train.main([*SMALL, *folder_data(pairs(12)), f"hydra.run.dir={folder}"]) == 2
        assert "in use" in capsys.readouterr().err
        assert (folder / "lock").exists()
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_a_users_own_files_survive_a_refusal(pairs, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    assert train.main([*SMALL, *folder_data(pairs(1)), f"hydra.run.dir={folder}"]) == 3
    assert [p.name for p in folder.iterdir()] == ["notes.txt"]


def test_resume_refuses_another_configuration_and_names_it(pairs, outputs, capsys):
    assert train.main([*SMALL, *folder_data(pairs(12))]) == 0
    (folder,) = run_folders(outputs)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert train.main([f"resume={folder}", "optim.lr=0.5"]) == 2
    assert "optim.lr: 0.001 -> 0.5" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_resume_of_a_complete_run_says_so(pairs, outputs, capsys):
    assert train.main([*SMALL, *folder_data(pairs(12))]) == 0
    (folder,) = run_folders(outputs)
    assert train.main([f"resume={folder}"]) == 2
    assert "train.epochs=N" in capsys.readouterr().err


def test_resume_goes_further_with_more_epochs(pairs, outputs):
    assert train.main([*SMALL, *folder_data(pairs(12))]) == 0
    (folder,) = run_folders(outputs)
    assert train.main([f"resume={folder}", "train.epochs=3"]) == 0
    assert train.main([f"resume={folder}", "train.epochs=4"]) == 0
    assert [r["epoch"] for r in journal.epochs(journal.read(folder))] == [1, 2, 3, 4]
    assert len(run_folders(outputs)) == 1


def test_resume_refuses_changed_data(pairs, outputs, capsys):
    root = pairs(12)
    assert train.main([*SMALL, *folder_data(root)]) == 0
    (folder,) = run_folders(outputs)
    (root / "images" / "000.png").write_bytes((root / "images" / "001.png").read_bytes())
    assert train.main([f"resume={folder}", "train.epochs=3"]) == 3
    assert "data have changed" in capsys.readouterr().err


def test_nan_stops_with_step_and_advice(pairs, outputs, capsys):
    code = train.main([*SMALL, *folder_data(pairs(12)), "optim=sgd", "optim.lr=1e30", "train.clip=0", "optim.warmup=0"])
    assert code == 5
    error = capsys.readouterr().err
    assert "step" in error
    assert "Try optim.lr=" in error
    assert journal.read(run_folders(outputs)[0])[-1]["status"] == "failed"


def test_time_budget_alone_sets_the_length(pairs, outputs):
    typed = [arg for arg in SMALL if not arg.startswith("train.epochs")]
    began = time.perf_counter()
    assert train.main([*typed, *folder_data(pairs(12)), "train.time_budget=3"]) == 0
    assert time.perf_counter() - began < 30
    records = journal.read(run_folders(outputs)[0])
    assert records[-1]["reason"] == "time budget of 3 s"
    assert len(journal.epochs(records)) > 1


def test_patience_ends_early(pairs, outputs):
    typed = [arg for arg in SMALL if not arg.startswith("train.epochs")]
    code = train.main([*typed, *folder_data(pairs(12)), "train.epochs=50", "train.patience=1", "optim.lr=1e-12"])
    assert code == 0
    records = journal.read(run_folders(outputs)[0])
    assert len(journal.epochs(records)) < 50
    assert "no better val/iou" in records[-1]["reason"]


def test_plain_multirun_runs_each_job_in_a_folder_of_its_own(pairs, outputs):
    assert train.main(["-m", *SMALL, *folder_data(pairs(12)), "optim.lr=1e-3,1e-4"]) == 0
    assert len(run_folders(outputs)) == 2


@pytest.mark.parametrize("flags", [["--help"], ["--cfg", "job"], ["--info", "defaults"]])
def test_questions_are_answered_without_torch_or_mlflow(flags):
    script = (
        "import sys, train\n"
        f"try: train.main({flags!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'timm', 'mlflow', 'optuna', 'torchvision'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "encoder" in done.stdout


def test_completion_knows_encoders():
    line = "python train.py encoder=convnext_at"
    env = {**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line))}
    done = subprocess.run(
        [sys.executable, "train.py", "-sc", "query=bash"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["encoder=convnext_atto", "encoder=convnext_atto_ols", "encoder=convnext_atto_rms"]


def test_any_timm_name_composes_without_a_file(capsys):
    for name in ("resnet34", "vit_small_patch16_dinov3.lvd1689m"):
        train.main([f"encoder={name}", "--cfg", "job"])
        assert f"name: {name}" in capsys.readouterr().out


def test_ctrl_c_keeps_the_checkpoint_and_marks_the_run_killed(pairs, outputs, database):
    typed = [arg for arg in SMALL if not arg.startswith(("train.epochs", "tracking"))]
    command = [sys.executable, "train.py", *typed, *folder_data(pairs(12)), "train.epochs=100000"]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(outputs.rglob("last.pt")) and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 130, err
    assert "Traceback" not in err
    (folder,) = run_folders(outputs)
    assert journal.read(folder)[-1]["status"] == "stopped"
    assert f"resume={folder}" in out
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=tracking.tracking_uri())
    assert client.get_run(tracking.run_id(folder)).info.status == "KILLED"


def test_a_run_on_relative_and_awkward_paths_resumes_from_elsewhere(pairs, outputs, tmp_path, monkeypatch):
    pairs(12, name="it's my data, ok")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "a run's folder"
    typed = ["data=folder", "data.root='it\\'s my data, ok'", "hydra.run.dir='a run\\'s folder'"]
    assert train.main([*SMALL, *typed]) == 0
    monkeypatch.chdir("/")
    assert train.main([f"resume={folder}", "train.epochs=3"]) == 0
    assert len(journal.epochs(journal.read(folder))) == 3


def test_out_of_memory_says_what_to_try(pairs, outputs, capsys, monkeypatch):
    from segsweep import engine

    def full(*_, **__):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(engine, "_step", full)
    assert train.main([*SMALL, *folder_data(pairs(12))]) == 4
    assert "Try train.accumulate=2" in capsys.readouterr().err
    assert journal.read(run_folders(outputs)[0])[-1]["status"] == "failed"


def test_sigterm_stops_with_143(pairs, outputs, capsys, monkeypatch):
    from segsweep import console

    monkeypatch.setattr(console, "epoch_line", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert train.main([*SMALL, *folder_data(pairs(12))]) == 143
    end = journal.read(run_folders(outputs)[0])[-1]
    assert (end["status"], end["best/epoch"]) == ("stopped", 1)


def test_an_empty_folder_of_the_users_is_spared_and_one_that_hydra_made_is_not(pairs, tmp_path):
    mine = tmp_path / "a" / "mine"
    mine.mkdir(parents=True)
    refused = [*SMALL, *folder_data(pairs(12)), "train.batch_size=4096"]
    assert train.main([*refused, f"hydra.run.dir={mine}"]) == 2
    assert mine.is_dir()
    assert train.main([*refused, f"hydra.run.dir={tmp_path / 'a' / 'made'}"]) == 2
    assert not (tmp_path / "a" / "made").exists()


def test_a_run_stopped_after_its_last_epoch_is_only_finished(pairs, outputs):
    assert train.main([*SMALL, *folder_data(pairs(12, ("train", "val", "test")))]) == 0
    (folder,) = run_folders(outputs)
    lines = (folder / journal.NAME).read_bytes().splitlines(keepends=True)
    (folder / journal.NAME).write_bytes(b"".join(lines[:-1]))  # killed while the test split was scored
    assert train.main([f"resume={folder}"]) == 0
    records = journal.read(folder)
    assert [r["epoch"] for r in journal.epochs(records)] == [1, 2]
    assert records[-1]["test/iou"] == json.loads(lines[-1])["test/iou"]


def test_a_best_model_that_a_kill_kept_back_is_written_on_resuming(pairs, outputs):
    assert train.main([*SMALL, *folder_data(pairs(12)), "train.epochs=1"]) == 0
    (folder,) = run_folders(outputs)
    best = folder / "best.safetensors"
    kept = best.read_bytes()
    best.unlink()
    (folder / journal.NAME).write_bytes((folder / journal.NAME).read_bytes().splitlines(keepends=True)[0])
    assert train.main([f"resume={folder}"]) == 0
    assert best.read_bytes() == kept


def test_resume_takes_flags_and_data_that_moved(pairs, outputs, capsys):
    root = pairs(12)
    assert train.main([*SMALL, *folder_data(root)]) == 0
    (folder,) = run_folders(outputs)
    assert train.main([f"resume={folder}", "--cfg", "job"]) == 0
    assert "test_resnet" in capsys.readouterr().out
    assert train.main(["-m", f"resume={folder}", "optim.lr=1,2"]) == 2


def test_an_encoder_of_ones_own_in_another_config_folder_is_found(tmp_path, capsys):
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "mine.yaml").write_text("name: resnet18\n")
    assert train.main(["encoder=mine", "--config-dir", str(tmp_path), "--cfg", "job"]) == 0
    assert "name: resnet18" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["train.seed=-1", "data.seed=-1", "tracking.uri=http://me:secret@host/"])
def test_values_that_would_fail_later_are_refused_early(key, pairs, capsys):
    assert train.main([*SMALL, *folder_data(pairs(12)), key]) == 2
    assert key.partition("=")[0] in capsys.readouterr().err
