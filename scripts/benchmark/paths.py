"""Where things lie."""

import os
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]
WORKERS: Final = Path(__file__).with_name("workers")
METALD: Final = REPOSITORY / "target" / "release" / "metald"
PYTHON: Final = REPOSITORY / ".venv" / "bin" / "python"


def cache() -> Path:
    """What is made once for all runs."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "metal-rpc" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
