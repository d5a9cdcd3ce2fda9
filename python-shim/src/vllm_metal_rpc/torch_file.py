"""`pytorch_model.bin` as safetensors, converted once.

Such files are pickles, which may run code when they are read. torch's weights-only loader does not
run any: it builds tensors and refuses everything else.
"""

import json
import logging
import zipfile
from pathlib import Path
from typing import Any, Final

from vllm_metal_rpc import cache
from vllm_metal_rpc.errors import MetalRpcError

logger = logging.getLogger("vllm.metal_rpc")

_FILE: Final = "pytorch_model.bin"
_INDEX: Final = "pytorch_model.bin.index.json"
# Of one file that is written; the most that is in memory at a time.
_SHARD_SIZE_BYTES: Final = 1 << 30


class BadTorchFile(MetalRpcError):
    """A file holds something else than tensors, or its index and the files disagree."""


def as_safetensors(folder: Path) -> Path:
    """Returns `folder`, or one in the cache with the same model if it has only torch's files.

    Raises:
        BadTorchFile: They cannot be read without running code, or are damaged.
    """
    if any(folder.glob("*.safetensors")) or any(folder.glob("*.gguf")):
        return folder
    files = _files(folder)
    if not files:
        # The daemon says what is missing.
        return folder
    converted = cache.folder("safetensors", files)

    def make(made: Path) -> None:
        size = sum(file.stat().st_size for file in files)
        logger.info("Converting %.2f GiB of %s into %s", size / 2**30, folder, converted)
        _convert(files, made)
        for file in folder.iterdir():
            if file.suffix == ".json" and file.name != _INDEX:
                (made / file.name).symlink_to(file.resolve())

    return cache.made(converted, make)


def _files(folder: Path) -> list[Path]:
    """The files in order; the index, if there is one, names them."""
    index = folder / _INDEX
    if not index.is_file():
        return [folder / _FILE] if (folder / _FILE).is_file() else []
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    for name in names:
        # The name comes from a file: it must not lead out of the folder.
        if Path(name).name != name or not (folder / name).is_file():
            raise BadTorchFile(f"{index} names {name!r}, which is no file in the same folder")
    return [folder / name for name in names]


def _convert(files: list[Path], made: Path) -> None:
    from safetensors.torch import save_file

    writer = _Writer(made, save_file)
    for file in files:
        for name, tensor in _tensors(file).items():
            writer.add(name, tensor)
    writer.finish()


def _tensors(file: Path) -> dict[str, Any]:
    import torch

    try:
        # Mapped, so that only what is written at a time is in memory; files of torch before 1.6 are
        # no archives and cannot be.
        tensors = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except Exception as error:
        raise BadTorchFile(f"{file} cannot be read as tensors alone: {error}") from error
    if not isinstance(tensors, dict) or not all(torch.is_tensor(t) for t in tensors.values()):
        raise BadTorchFile(f"{file} must hold tensors by name, and nothing else")
    return tensors


class _Writer:
    """Writes tensors into files of limited size, and at the end their index."""

    def __init__(self, folder: Path, save: Any) -> None:
        self._folder = folder
        self._save = save
        self._waiting: dict[str, Any] = {}
        self._waiting_bytes = 0
        self._file_of: dict[str, str] = {}
        self._num_files = 0

    def add(self, name: str, tensor: Any) -> None:
        size = tensor.numel() * tensor.element_size()
        if self._waiting and self._waiting_bytes + size > _SHARD_SIZE_BYTES:
            self._write()
        # A copy: two names of one tensor would be refused, and so would a view.
        self._waiting[name] = tensor.contiguous().clone()
        self._waiting_bytes += size

    def finish(self) -> None:
        self._write()
        index = {"metadata": {}, "weight_map": self._file_of}
        (self._folder / "model.safetensors.index.json").write_text(json.dumps(index))

    def _write(self) -> None:
        self._num_files += 1
        name = f"model-{self._num_files:05}.safetensors"
        self._save(self._waiting, self._folder / name, metadata={"format": "pt"})
        self._file_of |= dict.fromkeys(self._waiting, name)
        self._waiting, self._waiting_bytes = {}, 0
