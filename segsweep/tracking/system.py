"""`tracking.system=true`: CPU, memory and GPU use beside a run in MLflow, by MLflow's own monitor."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from segsweep.errors import ConfigError
from segsweep.tracking import client
from segsweep.tracking.run import run_id


def needs() -> None:
    """Raise ConfigError if the packages of the monitor are not installed."""
    if find_spec("psutil") is None:
        told = "psutil is not installed. Type pip install psutil, and nvidia-ml-py for NVIDIA's GPUs."
        raise ConfigError(f"tracking.system=true: {told}")


class SystemMonitor:
    """Sends a run's machine to MLflow every ten seconds, once MLflow has the run; to be used by one thread."""

    def __init__(self, folder: Path, uri: str | None):
        self._folder, self._uri = folder, client.tracking_uri(uri)  # which was checked when the run began
        self._monitor: Any = None

    def begin(self) -> None:
        """Begin, if MLflow has the run."""
        run = run_id(self._folder, self._uri)
        if run and self._monitor is None:
            from mlflow.system_metrics import system_metrics_monitor as monitors

            make: Any = monitors.SystemMetricsMonitor
            self._monitor = make(run, resume_logging=True, tracking_uri=self._uri)
            self._monitor.start()

    def end(self) -> None:
        """End, when what was collected is sent."""
        if self._monitor:
            self._monitor.finish()
