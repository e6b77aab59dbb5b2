"""Which code ran: the commit, what differs from it, and which files it does not know."""

import subprocess

import pytest

from segsweep.runs import provenance


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A checkout with one commit."""
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setattr(provenance, "INSTALLED", False)
    (tmp_path / "a.py").write_text("1\n")
    (tmp_path / ".gitignore").write_text("*.pt\n")
    me = ["-c", "user.name=me", "-c", "user.email=me@here"]
    for words in (["init", "-q"], ["add", "."], [*me, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    return tmp_path


def test_a_clean_checkout_has_no_difference(repository):
    commit, dirty, diff = provenance.code()
    assert (len(commit), dirty, diff) == (40, False, "")


def test_new_files_are_named_and_changed_ones_shown(repository):
    (repository / "own").mkdir()
    for name in ("own/model.py", "own/other.py", "é b.py", "weights.pt"):
        (repository / name).write_text("a secret\n")
    (repository / "a.py").write_text("2\n")
    _, dirty, diff = provenance.code()
    first, *shown = diff.splitlines()
    assert dirty
    assert first == "# new files, which are not recorded here: own/, é b.py"
    assert {"-1", "+2"} <= set(shown)
    assert "a secret" not in diff


def test_of_many_new_files_some_are_named(repository):
    for i in range(provenance.NAMED + 1):
        (repository / f"{i:03}.py").touch()
    said = provenance.code()[2]
    assert said.endswith(", 019.py, ...\n")
    assert said.count(".py") == provenance.NAMED
