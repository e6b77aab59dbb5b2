"""What the documents say must be so: commands compose, paths exist, every key has its help."""

import re
import shlex
import sys
from pathlib import Path

import pytest

import train
from segsweep import errors
from segsweep.commands import app as cli
from segsweep.config.schema import keys
from segsweep.runs import journal
from segsweep.sweeping import run as multirun
from segsweep.sweeping import screening, together

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "sweeps" / "README.md",
]
HISTORY = ("log", "decisions", "architecture")  # where old names stay
PLACEHOLDERS = {"DIR": "some/where", "PATH": "some/file", "N": "3", "TAG": "a1_in1k"}


def commands(program):
    """Every line of a fenced block, in any document, that runs the program, once."""
    found, seen = [], set()
    for document in DOCUMENTS:
        for block in re.findall(r"```(?:\w*)\n(.*?)```", document.read_text(), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                line = line.split("   #")[0].strip()
                for part in line.split(" && "):
                    if part.startswith(program) and part not in seen:
                        seen.add(part)
                        found.append(pytest.param(part, id=f"{document.name}: {part}"))
    return found


def filled(text):
    return re.sub(r"\b(DIR|PATH|N|TAG)\b", lambda found: PLACEHOLDERS[found[0]], text)


@pytest.mark.parametrize("command", commands("python train.py") + commands("segsweep train"))
def test_training_commands_compose(command, capsys, monkeypatch):
    typed = [filled(word) for word in shlex.split(command)[2:]]
    if any(word.startswith("resume=") or word in ("--help", "-sc") for word in typed):
        return
    if any(word.startswith(("hydra/sweeper=", "sweeps=")) for word in typed):
        plans = []
        monkeypatch.setattr(multirun, "run", plans.append)
        monkeypatch.setattr(together, "join", plans.append)
        monkeypatch.setattr(screening, "run", lambda plan, asked: plans.append(plan))
        assert train.main(typed) == 0, capsys.readouterr().err
        assert plans
        return
    # Of Hydra's own sweep's comma-separated values the first.
    overrides = [word if "[" in word else word.partition(",")[0] for word in typed if word[0] != "-"]
    assert train.main([*overrides, "--cfg", "job"]) == 0
    assert "encoder:" in capsys.readouterr().out


@pytest.mark.parametrize("command", commands("$ python train.py"))
def test_transcripts_are_what_one_sees(command, capsys):
    assert train.main(shlex.split(command)[3:]) == 2
    said = capsys.readouterr().err.strip()
    assert any(f"{command}\n{said}\n" in document.read_text() for document in DOCUMENTS)


@pytest.mark.parametrize("command", [one for one in commands("segsweep ") if "segsweep train" not in one.id])
def test_segsweep_commands_parse(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([*shlex.split(filled(command))[1:], "--help"])
    assert stopped.value.code == 0


def test_the_documents_have_commands():
    assert len(commands("python train.py")) >= 8
    assert len(commands("$ python train.py")) >= 1
    assert len(commands("segsweep ")) >= 1


def anchors(document):
    """The names that a page's headings have in links."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", document.read_text(), flags=re.S), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths_exist(document):
    text = document.read_text()
    for target, _, anchor in (link.partition("#") for link in re.findall(r"\]\(([^)]+)\)", text)):
        if not target.startswith("http"):
            other = document.parent / target if target else document
            assert other.exists(), target
            assert not anchor or anchor in anchors(other), f"{target}#{anchor}"
    for path in re.findall(r"`((?:segsweep|conf|docs|tests|hydra_plugins)/[\w/.]*\w)`", text):
        assert (ROOT / path).exists(), path


def test_every_key_is_in_the_help_and_every_key_named_in_the_documents_exists(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    shown = capsys.readouterr().out
    known = [key.name for key in keys()]
    assert all(f"  {name} " in shown for name in known)
    groups = "encoder|decoder|optim|augmentation|data|loss|tracking|train"
    for page in (page for page in DOCUMENTS if page.stem not in HISTORY):
        for name in re.findall(rf"`((?:{groups})\.[a-z_]+)", page.read_text()):
            assert name in known or name == "train.py" or name.endswith((".md", ".yaml")), f"{page.name}: {name}"


@pytest.fixture
def reference(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / ".ci"))
    import reference

    yield reference
    sys.modules.pop("reference")


def test_the_reference_is_what_its_script_writes(reference):
    assert (ROOT / "docs" / "reference.md").read_text() == reference.reference(), "python .ci/reference.py"


def test_the_reference_has_every_metric_file_and_exit_code(reference, trained):
    text, run = (ROOT / "docs" / "reference.md").read_text(), journal.read(trained.folder)
    classes = run.start.classes
    for name in {name for record in (*run.epochs, run.end) for name in record.metrics}:
        shown = "val/" + name.partition("/")[2] if name.startswith("test/") else name
        shown = "val/iou/<class>" if shown.removeprefix("val/iou/") in classes else shown
        assert f"`{shown}`" in text, name
    for path in trained.folder.iterdir():
        assert f"DATE/TIME/{path.name}" in text, path.name
    kinds = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.ConfigError)]
    assert {kind.exit_code for kind in kinds} < reference.CODES.keys()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_every_page_is_in_the_sites_index():
    """Without it `make docs` ends with a warning, which is an error there."""
    named = {line.strip() for line in (ROOT / "docs" / "index.rst").read_text().splitlines()}
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} <= named


def test_the_repository_names_no_machine():
    hosts = re.compile("|".join(["py" + "pi.org", "python" + "hosted", "/wo" + "rk/", "/ro" + "ot/"]))
    for path in ROOT.rglob("*"):
        inside = path.relative_to(ROOT)
        if path.suffix in (".py", ".md", ".yaml", ".toml", ".txt", ".cff") and inside.parts[0] not in (
            ".git",
            "outputs",
        ):
            assert not hosts.search(path.read_text(encoding="utf-8")), inside
