"""Where things lie. Everything a run writes lies under `outputs()`, so that one variable moves it all."""

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


def outputs() -> Path:
    """`$SEGSWEEP_OUTPUTS`, by default `outputs/` in the checkout; absolute."""
    return Path(os.environ.get("SEGSWEEP_OUTPUTS") or CHECKOUT / "outputs").resolve()


def cache() -> Path:
    """Decoded data sets and generated images; may be deleted at any time."""
    return outputs() / "cache"
