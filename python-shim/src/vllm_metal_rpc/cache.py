"""Folders that are made once of a model's files, and made again when those change.

They lie under `METAL_RPC_CACHE_DIR`. A folder is complete or absent: it is made beside its place
and renamed into it.
"""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from vllm_metal_rpc import envs


def folder(kind: str, files: Sequence[Path]) -> Path:
    """The folder that belongs to files as they are now: their paths, sizes and times."""
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(f"{file.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return envs.cache_dir() / kind / f"{files[0].stem}-{digest.hexdigest()[:12]}"


def made(folder: Path, make: Callable[[Path], None]) -> Path:
    """Returns `folder`, filled by `make` if it is absent; somebody else may be faster."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as work:
        unfinished = Path(work) / folder.name
        unfinished.mkdir()
        make(unfinished)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    return folder
