"""The `segsweep` command itself, and two of its commands: looking at data and at encoders."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segsweep import __version__, catalog
from segsweep.commands import app as cli


def test_data_counts_and_draws(pairs, outputs, capsys):
    root = pairs(6, splits=("train", "val"))
    assert cli.main(["data", "data=folder", f"data.root={root}"]) == 0
    said = capsys.readouterr().out
    images = next(line for line in said.splitlines() if line.startswith("images"))
    assert images.split() == ["images", "6", "6"]
    shares = {line.split()[0]: float(line.split()[1]) for line in said.splitlines() if line[:10].endswith("ground")}
    masks = np.stack([np.array(Image.open(path)) for path in sorted((root / "masks" / "train").iterdir())])
    assert shares["foreground"] == pytest.approx(100 * (masks > 0).mean(), abs=0.01)
    assert shares["background"] == pytest.approx(100 * (masks == 0).mean(), abs=0.01)
    sheet = said.split()[-1]
    assert sheet.startswith(str(outputs / "data" / "folder-"))
    with Image.open(sheet) as picture:
        assert picture.width > 500


def test_the_sheet_goes_where_it_is_told(pairs, tmp_path, capsys):
    target = tmp_path / "deep" / "sheet.png"
    assert cli.main(["data", "data=folder", f"data.root={pairs(4)}", "-o", str(target)]) == 0
    assert target.read_bytes().startswith(b"\x89PNG")


def test_the_sheet_is_a_png_whatever_its_name_and_where_it_cannot_be_is_said(pairs, tmp_path, capsys):
    data = ["data", "data=folder", f"data.root={pairs(4)}", "-o"]
    assert cli.main([*data, str(tmp_path / "sheet")]) == 0
    assert (tmp_path / "sheet").read_bytes().startswith(b"\x89PNG")
    assert cli.main([*data, str(tmp_path / "sheet" / "below.png")]) == 2
    assert "Give another -o PNG." in capsys.readouterr().err


def test_what_is_wrong_is_an_exit_code_and_a_line(pairs, capsys):
    root = pairs(4)
    next((root / "masks").iterdir()).unlink()
    assert cli.main(["data", "data=folder", f"data.root={root}"]) == 3
    assert "no mask" in capsys.readouterr().err
    assert cli.main(["data", "data=foldr"]) == 2
    assert "Try data=folder" in capsys.readouterr().err
    assert cli.main(["data", "data.sise=[64,64]"]) == 2
    assert "data.size" in capsys.readouterr().err


def test_images_in_two_parts_of_a_given_split_are_told(pairs, capsys):
    root = pairs(4, splits=("train", "val"))
    one, other = sorted((root / "images" / "train").iterdir())[0], sorted((root / "images" / "val").iterdir())[1]
    other.write_bytes(one.read_bytes())
    assert cli.main(["data", "data=folder", f"data.root={root}"]) == 0
    said = capsys.readouterr().out
    assert "warning" in said
    assert str(one) in said
    assert str(other) in said


@pytest.mark.parametrize("pattern", ["*", "resnet18"])
def test_a_reader_that_goes_away_ends_a_command_without_a_word(pattern):
    """As `segsweep ... | head` does: in the middle of a long text, or when a short one is flushed at the end."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "segsweep", "encoders", pattern]
    run = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (run.returncode, run.stderr) == (141, b"")


def test_the_command_alone_says_what_there_is(capsys):
    assert cli.main([]) == 2
    assert {"predict", "evaluate", "ui"} <= set(capsys.readouterr().err.split())


def test_the_package_is_the_command():
    done = subprocess.run([sys.executable, "-m", "segsweep", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, __version__), done.stderr


def test_encoders_are_listed_from_the_census_without_torch(monkeypatch, capsys):
    monkeypatch.setattr(catalog, "counted", lambda: {name: ROW | {"encoder": name} for name in catalog.architectures()})
    assert cli.main(["encoders", "convnext_at*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == "encoder"
    assert [line.split()[0] for line in lines[1:4]] == ["convnext_atto", "convnext_atto_ols", "convnext_atto_rms"]
    made = next(line.split() for line in lines if line.startswith("convnext_atto.d2_in1k"))
    assert made[1:] == ["*", "ImageNet-1k", "supervised", "apache-2.0", "unpublished", "224x224"]


def test_weights_are_listed_by_their_own_pattern(capsys):
    assert cli.main(["encoders", "*_tiny*.dinov3*", "--weights", "--csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["weights"], row["data"], row["licence"]) == (
        *("convnext_tiny.dinov3_lvd1689m", "LVD-1689M", "dinov3-license"),
    )


def test_what_the_census_lacks_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(catalog, "counted", dict)
    assert cli.main(["encoders", "test_resnet", "--csv"]) == 0
    row = next(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert row["encoder"] == "test_resnet"
    assert row["strides"] == "2 4 8 16 32"
    assert row["input_size"] == "any"
    assert "r160_in1k" in row["pretrained"]
    assert 0 < float(row["decoder_share"]) < 1


def test_a_pattern_without_encoders_is_refused(capsys):
    assert cli.main(["encoders", "resnt34"]) == 2
    assert "Closest: resnet34" in capsys.readouterr().err


ROW = {
    "parameters": "1.5",
    "gflop": "2.5",
    "decoder_share": "0.5",
    "strides": "2 4",
    "channels": "8 16",
    "input_size": "any",
    "runs": "yes",
}


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("encoder=resnet34", "encoder=resnet34: no such command. To train: segsweep train encoder=resnet34"),
        ("-m", "-m: no such command. To train: segsweep train -m"),
        ("trian", "Closest: train."),
    ],
)
def test_a_training_without_its_command_is_told_how(word, says, capsys):
    assert cli.main([word]) == 2
    assert says in capsys.readouterr().err


def test_train_is_a_command(capsys):
    assert cli.main(["train", "--cfg", "job", "encoder=resnet34"]) == 0
    assert "name: resnet34" in capsys.readouterr().out


@pytest.fixture
def parsed(monkeypatch):
    """`parsed(line)`: a command line is read and its command is not run; its options."""

    def parse(line):
        words, seen = line.split(), []
        monkeypatch.setattr(cli.COMMANDS[words[0]], "run", lambda options: seen.append(vars(options)) or 0)
        assert cli.main(words) == 0
        return seen[0]

    return parse


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("predict RUN -o masks scans/", {"run": "RUN", "images": ["scans/"], "output": Path("masks")}),
        ("compare A --format csv B", {"runs": ["A", "B"], "format": "csv"}),
        ("predict -o masks RUN -- -1.png", {"run": "RUN", "images": ["-1.png"], "output": Path("masks")}),
        ("evaluate RUN --split test data=a data.root=X", {"overrides": ["data=a", "data.root=X"], "split": "test"}),
    ],
)
def test_options_may_stand_between_arguments(line, options, parsed):
    assert options.items() <= parsed(line).items()


@pytest.mark.parametrize(
    "line",
    [
        "predict RUN scans --output=~/mine",
        "export RUN --format=onnx --output=~/mine",
        "data --output=~/mine",
        "compare --sweep=~/mine",
        "report ~/mine",
        "sync ~/mine",
    ],
)
def test_a_tilde_that_a_shell_leaves_is_the_home_folder(line, parsed, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = list(parsed(line).values())
    assert tmp_path / "mine" in found or [tmp_path / "mine"] in found


def test_a_home_of_nobody_is_one_line(capsys):
    assert cli.main(["sync", "~nobody-at-all/runs"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "segsweep: ~: there is no such user's folder. Type the whole path, or ~/ for your own."
