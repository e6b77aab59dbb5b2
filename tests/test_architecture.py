"""The house: who may import whom, and how large its rooms may be (docs/architecture.md)."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest

from segsweep.commands import app
from segsweep.sweeping.backends import local

ROOT = Path(__file__).parents[1]

# Floor of each module or package; imports run downward, never sideways.
FLOORS = {
    "train": 5,
    "hydra_plugins": 5,
    "segsweep.__main__": 5,
    "segsweep.api": 5,
    "segsweep.commands": 5,
    "segsweep.compose": 4,
    "segsweep.inference": 4,
    "segsweep.training": 3,
    "segsweep.sweeping": 3,
    "segsweep.engine": 2,
    "segsweep.tracking": 2,
    "segsweep.valuefile": 1,
    "segsweep.nn": 1,
    "segsweep.data": 1,
    "segsweep.runs": 1,
    "segsweep.config": 0,
    "segsweep.figures": 0,
    "segsweep.metrics": 0,
    "segsweep.catalog": 0,
    "segsweep.console": 0,
    "segsweep.ports": 0,
    "segsweep.errors": 0,
    "segsweep.process": 0,
    "segsweep.paths": 0,
    "segsweep.world": 0,
}
# The front doors are the commands themselves.
BESIDE = {
    ("train", "segsweep.commands"),
    ("segsweep.__main__", "segsweep.commands"),
    ("segsweep.api", "segsweep.commands"),
}
BESIDE |= {("segsweep", "segsweep.api")}  # when one asks for it
# On floor 0 everybody may ask for these.
GROUND = {"segsweep.errors", "segsweep.paths", "segsweep.process", "segsweep.metrics", "segsweep"}
ONLY_IN = {
    "torch": {
        "segsweep.nn",
        "segsweep.data",
        "segsweep.engine",
        "segsweep.training",
        "segsweep.inference",
        "segsweep.world",  # in types alone
    },
    "timm": {"segsweep.nn"},
    "huggingface_hub": {"segsweep.nn"},
    "torchvision": {"segsweep.data"},
    "mlflow": {"segsweep.tracking"},
    "optuna": {"segsweep.sweeping"},
    "sqlalchemy": {"segsweep.sweeping"},
    "hydra": {"segsweep.commands", "segsweep.compose", "hydra_plugins"},
    "omegaconf": {"segsweep.commands", "segsweep.compose", "hydra_plugins"},
    "yaml": {"segsweep.valuefile"},
    "pandas": {"segsweep.commands", "segsweep.sweeping", "segsweep.inference", "segsweep.api"},
    "matplotlib": {"segsweep.figures", "segsweep.sweeping"},
    "rich": {"segsweep.console", "segsweep.sweeping"},
}
STANDARD_ONLY = {
    "segsweep.runs",
    "segsweep.config",
    "segsweep.catalog",
    "segsweep.errors",
    "segsweep.paths",
    "segsweep.ports",
    "segsweep.metrics",
}
NUMPY_TOO = {"segsweep.metrics"}
MOST_PARAMETERS = 8
HEAVY = {"torch", "torchvision", "timm", "mlflow", "optuna", "pandas", "matplotlib"}
# What each front door answers without them.
QUESTIONS = {
    "train": [["--help"], ["--cfg", "job"], ["--info", "defaults"], ["-sc", "query=bash"]],
    "segsweep.commands.app": [["--help"], *([name, "--help"] for name in app.COMMANDS)],
}
# Each limit is of the day it was set; what an issue adds may raise the second one (docs/decisions.md).
LARGEST_MODULE, LARGEST_PACKAGE, UNTYPED = 350, 27400, 5


def modules():
    for path in [ROOT / "train.py", *(ROOT / "segsweep").rglob("*.py"), *(ROOT / "hydra_plugins").rglob("*.py")]:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        yield name, path


def imports(path, top_level_only=False, names=False):
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:  # `from segsweep.training import run` imports the module segsweep.training.run
                dotted = f"{node.module}.{alias.name}"
                yield dotted if names or room(dotted) in FLOORS else node.module


def room(name):
    """The entry of FLOORS that a module belongs to."""
    return next((r for r in sorted(FLOORS, key=len, reverse=True) if name == r or name.startswith(f"{r}.")), name)


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_run_downward(name, path):
    mine = room(name)
    for imported in imports(path):
        top = imported.partition(".")[0]
        if top in ("segsweep", "train", "hydra_plugins"):
            other = room(imported)
            if other in GROUND or other == mine or (mine, other) in BESIDE:
                continue
            assert other in FLOORS, f"{name} imports {imported}, which has no floor"
            assert FLOORS[other] < FLOORS[mine], f"{name} (floor {FLOORS.get(mine)}) imports {imported}"
        for library, homes in ONLY_IN.items():
            if imported == library or imported.startswith(f"{library}."):
                assert mine in homes or mine == library, f"{name} imports {imported}: only {sorted(homes)} may"


@pytest.mark.parametrize(("name", "path"), [m for m in modules() if room(m[0]) in STANDARD_ONLY], ids=str)
def test_the_ground_floor_needs_the_standard_library_only(name, path):
    for imported in imports(path):
        top = imported.partition(".")[0]
        allowed = {"segsweep", *sys.stdlib_module_names, *(["numpy"] if name in NUMPY_TOO else [])}
        assert top in allowed, f"{name} imports {imported}"


def test_every_room_exists_and_every_module_has_a_floor():
    names = {name for name, _ in modules()}
    assert all(any(room(name) == entry for name in names) for entry in FLOORS)
    assert all(room(name) in FLOORS or name == "segsweep" for name in names)


def test_nothing_heavy_is_imported_at_the_front_door():
    doors = [ROOT / "train.py", *(ROOT / "hydra_plugins").glob("*.py"), *(ROOT / "segsweep" / "commands").glob("*.py")]
    for path in doors:
        for imported in imports(path, top_level_only=True):
            assert imported.partition(".")[0] not in HEAVY
            assert imported != "segsweep.training.run"


@pytest.mark.parametrize("door", QUESTIONS)
def test_questions_are_answered_without_anything_heavy(door):
    script = (
        "import json, sys\n"
        "from importlib import import_module\n"
        "door, questions = import_module(sys.argv[1]), json.loads(sys.argv[2])\n"
        "for question in questions:\n"
        "    try: code = door.main(question)\n"
        "    except SystemExit as stopped: code = stopped.code\n"
        "    assert not code, (question, code)\n"
        "print('modules', *sys.modules)"
    )
    line = "python train.py encoder=convnext_at"  # what <TAB> is asked about
    env = {**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line)), "COLUMNS": "200"}
    asked = [sys.executable, "-c", script, door, json.dumps(QUESTIONS[door])]
    done = subprocess.run(asked, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    answers, _, loaded = done.stdout.rpartition("modules ")
    assert not HEAVY & set(loaded.split())
    if door == "train":
        told = ["Train a U-Net on any timm encoder", "\noptim:\n", "hydra/sweeper/basic", "encoder=convnext_atto_ols"]
    else:
        told = [command.HELP[1:] + "." for command in app.ORDER]
    assert all(text in answers for text in told), answers


def test_a_command_is_a_file_and_every_file_a_command():
    others = {"__init__", "app", "common", "train"}
    files = {path.stem for path in (ROOT / "segsweep" / "commands").glob("*.py")}
    assert files - others == set(app.COMMANDS)


def test_what_is_named_in_text_is_there():
    """Functions as `module:name`, modules behind `-m`, and what the fork server loads beforehand."""
    paths = [*(path for _, path in modules()), *(ROOT / "benchmarks").glob("*.py"), ROOT / "pyproject.toml"]
    text = "\n".join(path.read_text() for path in paths)
    functions = set(re.findall(r'"(segsweep(?:\.\w+)*:\w+)"', text))
    programs = set(re.findall(r'"-m",\s*"(segsweep[.\w]*)"', text))
    assert functions
    assert programs
    assert local.PRELOADED
    for name in functions | programs | set(local.PRELOADED):
        resolve_name(name)


def test_what_a_person_types_is_quoted_for_the_shell_too():
    """By `paths.override`: `quoted` is for Hydra alone, where words go to it without a shell."""
    allowed = {"segsweep.paths", "segsweep.valuefile", "segsweep.compose", "segsweep.sweeping.backends.base"}
    callers = {
        name
        for name, path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "quoted"
    }
    assert {name for name in callers if room(name) != "hydra_plugins"} <= allowed


def test_no_cfg_below_the_commands():
    for name, path in modules():
        if room(name) not in ("train", "segsweep.commands", "segsweep.compose", "hydra_plugins"):
            words = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
            assert not words & {"cfg", "DictConfig", "OmegaConf"}, name


WHOLE = {"segsweep.config.settings", "segsweep.runs.records", "segsweep.sweeping.plan"}  # keep it, and take it apart


def test_components_do_not_know_the_whole_configuration():
    for name, path in modules():
        if name not in WHOLE and room(name) not in (
            "segsweep.commands",
            "segsweep.compose",
            "segsweep.training",
            "hydra_plugins",
        ):
            assert "segsweep.config.schema.RunConfig" not in set(imports(path, names=True)), name


def test_functions_take_at_most_eight_parameters():
    """Self and the fields of a dataclass do not count."""
    found = {f"{name}.{function}": n for name, path in modules() for function, n in parameters(path)}
    assert not {function: n for function, n in found.items() if n > MOST_PARAMETERS}


def parameters(path):
    """Each function of a module, by its dotted name, and how many parameters it has."""

    def below(node, prefix):
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            dotted = f"{prefix}{child.name}" if named else prefix
            if named and not isinstance(child, ast.ClassDef):
                given = child.args
                all_of_them = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
                yield dotted, sum(one is not None and one.arg not in ("self", "cls") for one in all_of_them)
            yield from below(child, f"{dotted}." if named else prefix)

    yield from below(ast.parse(path.read_text()), "")


def test_sizes_stay_small():
    """Modules in lines of code: docstrings and comments may be as long as they have to. `segsweep/` in all lines."""
    paths = dict(modules())
    lines = {name: code_lines(path) for name, path in paths.items()}
    assert max(lines.values()) <= LARGEST_MODULE, max(lines, key=lines.get)
    package = (path for name, path in paths.items() if name.startswith("segsweep"))
    assert sum(len(path.read_text().splitlines()) for path in package) <= LARGEST_PACKAGE


def test_values_have_types():
    """Functions outside of runs/, where records are read, that take or give a dictionary of anything."""
    found = []
    for name, path in modules():
        if room(name) != "segsweep.runs":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef):
                    hints = ast.unparse(node.args) + ast.unparse(node.returns or ast.Constant(None))
                    found += [f"{name}.{node.name}"] * ("dict[str, Any]" in hints)
    assert len(found) <= UNTYPED, found


def code_lines(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return sum(bool(line.strip()) for line in ast.unparse(tree).splitlines())
