"""The header of a GGUF file: metadata, and which tensors there are.

transformers reads the format. Its own `GgufHeader` refuses types of blocks that it cannot compute
with; which ones `metald` can, is `metald`'s to say.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from vllm_metal_rpc.errors import MetalRpcError

_TOKENS: Final = "tokenizer.ggml.tokens"
_MERGES: Final = "tokenizer.ggml.merges"
# Where data begins, unless the file says otherwise.
_ALIGNMENT: Final = 32
_F32: Final = 0
# ggml's numbers of types that are no blocks.
_FLOATS: Final = {0: "float32", 1: "float16", 30: "bfloat16"}


class GgufError(MetalRpcError):
    """A file is damaged, is no GGUF, or describes something that is not supported."""


@dataclass(frozen=True)
class GgufFile:
    """What a file says in front of its data.

    Attributes:
        path: The file.
        values: All metadata.
        tensors: Type, place in the file and number of elements by name.
    """

    path: Path
    values: dict[str, Any]
    tensors: dict[str, tuple[int, int, int]]

    @classmethod
    def read(cls, path: Path) -> "GgufFile":
        """Reads the header.

        Raises:
            GgufError: It is none, or damaged.
        """
        # Slow to import.
        from transformers.integrations.gguf.reader import _read_metadata, _read_tensor_table

        try:
            data = np.memmap(path, mode="r", dtype=np.uint8)
            values, count, start = _read_metadata(data, str(path), (_TOKENS, _MERGES))
            entries, end = _read_tensor_table(data, count, start)
        except (ValueError, IndexError, KeyError, OSError) as error:
            raise GgufError(f"{path} cannot be read as GGUF: {error}") from error
        except Exception as error:  # struct.error is what a file that ends early raises.
            raise GgufError(f"{path} cannot be read as GGUF: it ends early ({error})") from error
        alignment = values.get("general.alignment", _ALIGNMENT)
        data_start = -(-end // alignment) * alignment
        tensors = {
            name: (kind, data_start + offset, math.prod(shape))
            for name, shape, kind, offset in entries
        }
        return cls(path, values, tensors)

    @property
    def architecture(self) -> str:
        """What llama.cpp calls the model's architecture."""
        return str(self.values["general.architecture"])

    @property
    def tokens(self) -> list[str]:
        """The vocabulary.

        Raises:
            GgufError: The file has none.
        """
        tokens = self.values.get(_TOKENS)
        if not isinstance(tokens, list):
            raise GgufError(f"{self.path} has no vocabulary ({_TOKENS})")
        return tokens

    @property
    def merges(self) -> list[str]:
        """The merges of a byte-level tokenizer."""
        return list(self.values[_MERGES])

    @property
    def float_type(self) -> str:
        """What its matrices are stored in, or bfloat16 if they are quantised."""
        kinds = {
            kind
            for name, (kind, _, _) in self.tensors.items()
            if name.endswith(".weight") and "norm" not in name
        }
        if not kinds <= set(_FLOATS):
            return "bfloat16"
        return _FLOATS[max(kinds, default=_F32)]

    def get(self, key: str) -> Any:
        """A value of the architecture's own keys, None if it is absent."""
        return self.values.get(f"{self.architecture}.{key}")

    def field(self, key: str) -> Any:
        """A value of the architecture's own keys.

        Raises:
            GgufError: It is absent.
        """
        value = self.get(key)
        if value is None:
            raise GgufError(f"{self.path} has no key {self.architecture}.{key}")
        return value

    def floats(self, name: str) -> list[float]:
        """The elements of a small float32 tensor.

        Raises:
            GgufError: It is of another type, or the file ends before it.
        """
        kind, start, count = self.tensors[name]
        data = np.fromfile(self.path, dtype="<f4", count=count, offset=start)
        if kind != _F32 or len(data) != count:
            raise GgufError(f"{self.path}: {name} cannot be read as {count} numbers of float32")
        return [float(value) for value in data]
