"""GGUF files as folders that vLLM takes: with a configuration and a tokenizer.

vLLM reads folders, and so does `metald`. A file that is given by its path gets a folder of its own
in the cache, with what its header says of the model and a link to the file. The folder's name
changes with the file.

# Layout
- `file`: the header
- `config`, `rope`: `config.json`
- `tokenizer`: `tokenizer.json`
"""

import json
import logging
import re
from pathlib import Path
from typing import Final

from vllm_metal_rpc import cache
from vllm_metal_rpc.gguf.config import config, special_token_ids
from vllm_metal_rpc.gguf.file import GgufError, GgufFile

logger = logging.getLogger("vllm.metal_rpc")

__all__ = ["GgufError", "folder_of", "write_folder"]

_PART: Final = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


def folder_of(path: Path) -> Path:
    """Returns the folder of a file, made when it is asked for the first time.

    Raises:
        GgufError: It is damaged, a part of it is missing, or it is not supported.
    """
    parts = _parts(path.absolute())
    folder = cache.folder("gguf", parts)

    def make(made: Path) -> None:
        logger.info("Writing configuration and tokenizer of %s into %s", path, folder)
        write_folder(parts[0], made)
        for part in parts:
            (made / part.name).symlink_to(part)

    return cache.made(folder, make)


def write_folder(path: Path, folder: Path) -> None:
    """Writes configuration, generation configuration and tokenizer of a file into `folder`.

    Raises:
        GgufError: As `folder_of`.
    """
    file = GgufFile.read(path)
    values = config(file)
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
    generation = json.dumps(special_token_ids(file), indent=2)
    (folder / "generation_config.json").write_text(generation + "\n")
    # Imported late: it loads the whole of transformers' tokenizers.
    from vllm_metal_rpc.gguf.tokenizer import save_tokenizer

    save_tokenizer(file, folder)


def _parts(path: Path) -> list[Path]:
    """All files of which `path` is one, the first first."""
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    name, _, count = match.groups()
    parts = [
        path.with_name(f"{name}-{part:05}-of-{count}.gguf") for part in range(1, int(count) + 1)
    ]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise GgufError(
            f"{path} is one of {int(count)} parts, but {', '.join(missing)} is not there"
        )
    return parts
