"""Files and folders that are there whole or not at all."""

import json
from pathlib import Path

import pytest

from segsweep import paths


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


@pytest.mark.parametrize("path", ["a/b-c.png", "with space", "it's", "a=b", "[x]", "{x}", "a,b"])
def test_a_quoted_path_comes_back_through_hydra(path):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    override = OverridesParser.create().parse_override(f"data.root={paths.quoted(path)}")
    assert override.value() == path
