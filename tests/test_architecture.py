"""The house: who may import whom, and how large its rooms may be (docs/architecture.md)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Floor of each module or package; imports run downward. Neighbours on a floor are listed where they may be used.
FLOORS = {
    "train": 4,
    "hydra_plugins": 4,
    "segsweep.cli": 4,
    "segsweep.compose": 4,
    "segsweep.run": 3,
    "segsweep.prepare": 3,
    "segsweep.multirun": 3,
    "segsweep.use": 3,
    "segsweep.engine": 2,
    "segsweep.checkpoint": 2,
    "segsweep.normalization": 2,
    "segsweep.tuning": 2,
    "segsweep.registry": 2,
    "segsweep.sweep": 1,
    "segsweep.tracking": 1,
    "segsweep.nn": 1,
    "segsweep.data": 1,
    "segsweep.losses": 1,
    "segsweep.metrics": 1,
    "segsweep.optim": 1,
    "segsweep.pictures": 1,
    "segsweep.figures": 1,
    "segsweep.background": 0,
    "segsweep.summary": 0,
    "segsweep.console": 1,
    "segsweep.device": 1,
    "segsweep.execution": 1,
    "segsweep.config": 0,
    "segsweep.journal": 0,
    "segsweep.saved_view": 0,
    "segsweep.catalog": 0,
    "segsweep.provenance": 0,
    "segsweep.errors": 0,
    "segsweep.paths": 0,
}
# The door into Hydra, which both commands go through; a training, which is prepared and run.
BESIDE = {
    ("segsweep.config", "segsweep.journal"),
    ("segsweep.run", "segsweep.prepare"),
    ("train", "segsweep.compose"),
    ("segsweep.cli", "segsweep.compose"),
    ("hydra_plugins", "segsweep.compose"),
}
# On floor 0 everybody may ask for these.
GROUND = {"segsweep.errors", "segsweep.paths", "segsweep"}
ONLY_IN = {
    "torch": {
        "segsweep.nn",
        "segsweep.data",
        "segsweep.device",
        "segsweep.execution",
        "segsweep.tuning",
        "segsweep.engine",
        "segsweep.checkpoint",
        "segsweep.losses",
        "segsweep.metrics",
        "segsweep.optim",
        "segsweep.prepare",
        "segsweep.run",
        "segsweep.use",
    },
    "timm": {"segsweep.nn"},
    "huggingface_hub": {"segsweep.nn"},
    "torchvision": {"segsweep.data"},
    "mlflow": {"segsweep.tracking", "segsweep.registry"},
    "optuna": {"segsweep.sweep"},
    "hydra": {"train", "segsweep.compose", "hydra_plugins"},
    "omegaconf": {"train", "segsweep.compose", "hydra_plugins"},
    "pandas": {"segsweep.cli", "segsweep.sweep"},
    "matplotlib": {"segsweep.figures", "segsweep.sweep"},
    "rich": {"segsweep.console", "segsweep.sweep"},
    "segsweep.config": {"train", "segsweep.compose", "segsweep.prepare", "segsweep.run", "hydra_plugins"},
}
STANDARD_ONLY = {
    "segsweep.provenance",
    "segsweep.config",
    "segsweep.journal",
    "segsweep.saved_view",
    "segsweep.summary",
    "segsweep.catalog",
    "segsweep.errors",
    "segsweep.paths",
}
LARGEST_MODULE, LARGEST_PACKAGE = 350, 8500


def modules():
    for path in [ROOT / "train.py", *(ROOT / "segsweep").rglob("*.py"), *(ROOT / "hydra_plugins").rglob("*.py")]:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        yield name, path


def imports(path, top_level_only=False):
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:  # `from segsweep import run` imports the module segsweep.run
                dotted = f"{node.module}.{alias.name}"
                yield dotted if room(dotted) in FLOORS else node.module


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


@pytest.mark.parametrize("name", sorted(STANDARD_ONLY))
def test_the_ground_floor_needs_the_standard_library_only(name):
    import sys

    path = ROOT / f"{name.replace('.', '/')}.py"
    for imported in imports(path):
        top = imported.partition(".")[0]
        assert top == "segsweep" or top in sys.stdlib_module_names, f"{name} imports {imported}"


def test_every_room_exists_and_every_module_has_a_floor():
    names = {name for name, _ in modules()}
    assert all(any(room(name) == entry for name in names) for entry in FLOORS)
    assert all(room(name) in FLOORS or name == "segsweep" for name in names)


def test_nothing_heavy_is_imported_at_the_front_door():
    for name in ("train.py", *map(str, (ROOT / "hydra_plugins").glob("*.py")), "segsweep/cli.py"):
        for imported in imports(ROOT / name, top_level_only=True):
            assert imported.partition(".")[0] not in ("torch", "timm", "mlflow", "optuna", "torchvision", "pandas")
            assert imported != "segsweep.run"


def test_no_cfg_below_run():
    for name, path in modules():
        if name not in ("train", "segsweep.compose") and not name.startswith("hydra_plugins"):
            words = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
            assert not words & {"cfg", "DictConfig", "OmegaConf"}, name


def test_sizes_stay_small():
    """In lines of code: docstrings and comments may be as long as they have to."""
    lines = {name: code_lines(path) for name, path in modules()}
    assert max(lines.values()) <= LARGEST_MODULE, max(lines, key=lines.get)
    assert sum(lines.values()) < LARGEST_PACKAGE


def code_lines(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return sum(bool(line.strip()) for line in ast.unparse(tree).splitlines())
