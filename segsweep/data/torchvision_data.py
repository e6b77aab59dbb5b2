"""Data sets that torchvision finds or fetches."""

from pathlib import Path
from typing import Any

from segsweep.config.schema import DataConfig
from segsweep.errors import ConfigError, first_line


def torchvision_root(name: str, data: DataConfig, **arguments: Any) -> Path:
    """Have torchvision's class find the data, or fetch and unpack them first; return their root.

    Raises:
        ConfigError: data.root is not given, or the data are not there and data.download is false.
    """
    from torchvision import datasets

    if not data.root:
        raise ConfigError("data.root is not given. Type data.root=DIR, and data.download=true to fetch the data there.")
    root = Path(data.root).expanduser().resolve()
    try:
        getattr(datasets, name)(str(root), download=data.download, **arguments)
    except (RuntimeError, OSError) as error:
        fetch = "" if data.download else " Fetch them with data.download=true."
        raise ConfigError(f"data.root={root}: {first_line(error)}{fetch}") from error
    return root


def lines(path: Path) -> list[str]:
    """Read the lines of a list of images, without empty ones.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Fetch the data again with data.download=true.") from error
