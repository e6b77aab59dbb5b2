"""What every test gets: an outputs folder of its own, small pairs of files, a check that nothing is left running."""

import base64
import importlib.util
import json
import os
import resource
import shutil
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import servers
from PIL import Image

if TYPE_CHECKING:
    import torch

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"  # tests never wait for a hub
os.environ["SEGSWEEP_DEBUG"] = "1"  # errors that nobody foresaw are raised
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models lose more by sharing work than they win

# timm's smallest models: a pretrained encoder is not the point of most tests.
TINY = ("encoder=test_resnet", "encoder.pretrained=false", "train.device=cpu", "train.precision=fp32", "data.passes=1")

COMPILER = ("Inductor", "subproc_worker", "tqdm_monitor", "Dummy-")  # threads of torch.compile, which it keeps


def unpacked(tag: str) -> dict[str, Any]:
    """The state that `segsweep.tracking.views.text` has packed."""
    return json.loads(zlib.decompress(base64.b64decode(json.loads(tag)["state"].removeprefix("deflate;"))))


@pytest.fixture(autouse=True)
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The outputs folder, empty."""
    monkeypatch.setenv("SEGSWEEP_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "outputs"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Loads a module of benchmarks/ by its name."""
    folder = Path(__file__).parents[1] / "benchmarks"
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])

    def load(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(f"{name}_benchmark", folder / f"{name}.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look there
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def calls(benchmark: Callable[[str], Any]) -> Any:
    """The counter of benchmarks/calls.py."""
    return benchmark("calls").Calls


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """Threads and child processes that a test leaves behind fail it."""
    before = set(threading.enumerate())
    yield
    started = [t for t in threading.enumerate() if t not in before and not t.name.startswith(COMPILER)]
    patience = time.monotonic() + 5  # a thread that has done its work may need a moment to end, on a busy machine
    for thread in started:
        thread.join(max(0.0, patience - time.monotonic()))
    left = [thread.name for thread in started if thread.is_alive()]
    assert not left, f"threads left running: {left}"
    children: list[str] = []
    for task in Path("/proc/self/task").glob("*/children"):
        with suppress(FileNotFoundError):  # a thread that has just ended
            children += task.read_text().split()
    programs = [Path(f"/proc/{child}/cmdline").read_text() for child in children if Path(f"/proc/{child}").exists()]
    # Helpers of multiprocessing and of torch's compiler stay as long as the process.
    helpers = ("resource_tracker", "forkserver", "compile_worker")
    assert not [p for p in programs if not any(h in p for h in helpers)], f"child processes left running: {programs}"


@pytest.fixture
def server() -> Iterator[servers.PostgreSQL]:
    """A PostgreSQL server, to be stopped and started at will."""
    with servers.postgresql() as made:
        yield made


@pytest.fixture
def postgresql(server: servers.PostgreSQL) -> str:
    """The address of a PostgreSQL server."""
    return server.address


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh MLflow database, made once: making one takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def database(outputs: Path, mlflow_database: Path) -> Path:
    """A ready MLflow database in the outputs folder."""
    outputs.mkdir(parents=True, exist_ok=True)
    shutil.copy(mlflow_database, outputs / "mlflow.db")
    return outputs / "mlflow.db"


@pytest.fixture
def pairs(tmp_path: Path) -> Callable[..., Path]:
    """`pairs(n, splits=..., foreground=...)` writes n images and masks and returns their root folder."""
    return write_pairs(tmp_path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A small run of two classes that has learnt something, to be read only: its `folder`, and `root` of the data."""
    place = tmp_path_factory.mktemp("trained")
    root = write_pairs(place)()
    folder = train_once(place, root, "data.size=[48,64]", "data.resize=pad", "train.epochs=12", "optim.lr=2e-2")
    return SimpleNamespace(folder=folder, root=root)


def train_once(place: Path, root: Path, *words: str) -> Path:
    """Train in `place / "run"` on the pairs in `root`, for fixtures that outlive a test; return the run's folder."""
    import train

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGSWEEP_OUTPUTS", str(place / "outputs"))
        typed = ["data=folder", f"data.root={root}", "train.batch_size=4", "tracking=none", *words]
        assert train.main([*TINY, *typed, f"hydra.run.dir={place / 'run'}"]) == 0
    return place / "run"


def write_pairs(place: Path) -> Callable[..., Path]:
    def make(
        n: int = 12,
        splits: Sequence[str] = ("",),
        size: tuple[int, int] = (40, 48),
        foreground: int = 1,
        grey: bool = False,
        name: str = "data",
    ) -> Path:
        root = place / name
        rng = np.random.default_rng(0)
        for split in splits:
            for i in range(n):
                mask = np.zeros(size, np.uint8)
                top, left = rng.integers(0, size[0] - 20), rng.integers(0, size[1] - 20)
                mask[top : top + 20, left : left + 20] = foreground
                image = rng.integers(0, 80, (*size, 3)).astype(np.uint8)
                image[mask > 0] += 120
                for kind, pixels in (("images", image[..., 0] if grey else image), ("masks", mask)):
                    folder = root / kind / split
                    folder.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).save(folder / f"{split}{i:03d}.png")
        return root

    return make


@contextmanager
def no_file_is_longer(size: int) -> Iterator[None]:
    """Have the system refuse to write a byte more into any file, as on a full disk: EFBIG for ENOSPC."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def segmented(k: int, seed: int = 0, absent: Sequence[int] = ()) -> "tuple[torch.Tensor, torch.Tensor]":
    """Predictions with all classes, and targets with void pixels and without the absent classes, int64 `3 16 20`."""
    import torch

    rng = np.random.default_rng(seed)
    classes = [c for c in range(k) if c not in absent]
    target = rng.choice([*classes, 255], size=(3, 16, 20))
    prediction = np.where(rng.random(target.shape) < 0.6, target, rng.integers(0, k, target.shape))
    prediction[prediction == 255] = rng.integers(0, k)
    return torch.from_numpy(prediction), torch.from_numpy(target)


def counted_apart(predictions: "Iterable[torch.Tensor]", targets: "Iterable[torch.Tensor]", classes: int) -> np.ndarray:
    """The confusion matrices of images of any sizes, each counted by itself."""
    from segsweep.engine.counting import matrices, pair_counts

    pairs = zip(predictions, targets, strict=True)
    return np.concatenate([matrices(pair_counts(p[None], t[None], classes), classes) for p, t in pairs])


def read_mask(path: Path) -> np.ndarray:
    """The code of each pixel of a mask, int64 `h w`; of a palette's entry its number."""
    from segsweep.data import masks

    mask = masks.read_mask(path)
    values = [masks.value(int(code)) for code in mask.codes]
    numbers = [v.number if isinstance(v, masks.Entry) else int(c) for v, c in zip(values, mask.codes, strict=True)]
    return np.array(numbers, np.int64)[mask.index]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets, `$SEGSWEEP_DATA`; skips where there is none."""
    folder = Path(os.environ.get("SEGSWEEP_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set SEGSWEEP_DATA")
    return folder
