"""Files and folders that are there whole or not at all."""

import itertools
import json
import random
import shlex
import subprocess
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from segsweep import paths

PARSER = OverridesParser.create()


def test_a_writer_that_raises_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    paths.atomically(path, lambda target: target.write_text("old"))

    def half(target: Path) -> None:
        target.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        paths.atomically(path, half)
    assert path.read_text() == "old"


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file"
    paths.atomically(path, lambda target: target.write_text("old"))
    seen = []

    def write(target: Path) -> None:
        target.write_text("half")
        seen.append(path.read_text())
        target.write_text("whole")

    paths.atomically(path, write)
    assert seen == ["old"]
    assert path.read_text() == "whole"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_planted_link_is_not_followed(tmp_path):
    (tmp_path / "other").write_text("mine")
    (tmp_path / "file.writing").symlink_to(tmp_path / "other")
    paths.save_json(tmp_path / "file", {})
    assert (tmp_path / "other").read_text() == "mine"
    assert not (tmp_path / "file").is_symlink()


def test_json_replaces_a_file_whole_and_without_nan(tmp_path):
    path = tmp_path / "summary.json"
    paths.save_json(path, {"val/iou": 0.5})
    paths.save_json(path, {"val/iou": float("nan"), "deep": [{"a": float("-inf")}, (1.5, 2)]})
    found = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert found == {"val/iou": None, "deep": [{"a": None}, [1.5, 2]]}
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_a_folder_whose_writer_raises_is_made_by_the_next(tmp_path):
    target = tmp_path / "store"

    def half(folder: Path) -> None:
        (folder / "rows").touch()
        raise OSError("disk full")

    def whole(folder: Path) -> None:
        assert not list(folder.iterdir())
        (folder / "manifest.json").touch()

    def there(folder: Path) -> bool:
        return (folder / "manifest.json").exists()

    with pytest.raises(OSError, match="disk full"):
        paths.build_once(target, there, half)
    assert not target.exists()
    assert paths.build_once(target, there, whole) == target
    assert paths.build_once(target, there, half) == target  # it is there: nobody writes
    assert [p.name for p in target.iterdir()] == ["manifest.json"]


def read_back(text: str) -> object:
    """What a text becomes on its way through Hydra's parser, an OmegaConf node and its resolution."""
    found = PARSER.parse_override(f"data.root={paths.quoted(text)}").value()
    config = OmegaConf.create({"root": None})
    OmegaConf.update(config, "root", found)
    return OmegaConf.to_container(config, resolve=True)["root"]


def test_every_short_text_of_the_worst_characters_comes_back():
    """All 3906 of up to five of these: escapes go wrong where a few of them meet."""
    texts = ["".join(some) for length in range(6) for some in itertools.product("\\'${,", repeat=length)]
    assert [text for text in texts if read_back(text) != text] == []


def test_every_short_text_that_needs_no_quotes_comes_back():
    texts = ["".join(some) for length in range(1, 4) for some in itertools.product("aE0.:/-_", repeat=length)]
    assert [text for text in texts if read_back(text) != text] == []


def test_random_text_comes_back_through_hydra_omegaconf_and_the_shell():
    rng = random.Random(0)
    kinds = ["\\'\"${}[](),:=%~@#!`|&;<>?*+-._/ ", "\n\t\r\x01\x7f", "aZ09_", "aZ09_./:-", "üéß細胞🙂\u202e\xa0\u2028"]
    for _ in range(1500):
        text = "".join(rng.choice(rng.choice(kinds)) for _ in range(rng.randrange(24)))
        assert read_back(text) == text
        assert shlex.split(paths.override("data.root", text)) == [f"data.root={paths.quoted(text)}"]


@pytest.mark.parametrize(
    "text",
    ["", " ", "null", "True", "1e3", "12", "-1", ".5", "nan", "-inf", "1_0", "~", "???", "null\n", "${x", "choice(1)"],
)
def test_what_reads_as_another_type_stays_text(text):
    assert read_back(text) == text


@pytest.mark.parametrize(
    "path", ["/data/kvasir-seg/v1.2", "runs/2026-01-02", "./a", "../a", "/1e3", "nullable", "_x.y"]
)
def test_a_plain_path_needs_no_quotes(path):
    assert paths.quoted(path) == path
    assert read_back(path) == path


WORDS = ["it's", "a b", "a,b", "it's $HOME", "it's `x`", 'it\'s "x"', "it's!", "it\\'s", "it's\\", "ü", "a\nb", "plain"]


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_shell_reads_the_words_that_were_meant(shell):
    line = " ".join(paths.for_shell(word) for word in WORDS)
    done = subprocess.run([shell, "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True)
    assert done.stdout.split("\0")[:-1] == WORDS
