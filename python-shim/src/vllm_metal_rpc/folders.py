"""What a user names becomes a folder that `metald` reads.

| given | read |
|---|---|
| a folder with safetensors or a GGUF file | that folder |
| a GGUF file, or one part of one | a folder in the cache with a link to it (`gguf`) |
| a folder with `pytorch_model.bin` only | the same in the cache, as safetensors (`torch_file`) |
| a repository's name | its snapshot, downloaded; then as above |
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from vllm_metal_rpc.errors import UnsupportedFeature

_GGUF: Final = ".gguf"


def install() -> None:
    """Makes vLLM's model configuration take GGUF files. Repeated calls do nothing.

    It asks `maybe_model_redirect` for another place of the model, and of the tokenizer, after it
    has noted the name under which the model is served.
    """
    from vllm.config import model

    original: Callable[[str], str] = model.maybe_model_redirect
    if getattr(original, "understands_gguf", False):
        return

    def redirect(name: str) -> str:
        name = original(name)
        if not (name.lower().endswith(_GGUF) and os.path.isfile(name)):
            return name
        from vllm_metal_rpc import gguf

        return str(gguf.folder_of(Path(name)))

    redirect.understands_gguf = True  # type: ignore[attr-defined]
    model.maybe_model_redirect = redirect


def model_folder(model_config: Any, load_config: Any) -> str:
    """The folder of the checkpoint, downloaded if the model is named by its repository.

    Raises:
        UnsupportedFeature: The model lies in object storage.
    """
    from vllm_metal_rpc import torch_file

    name = model_config.model
    if os.path.isdir(name):
        return str(torch_file.as_safetensors(Path(os.path.abspath(name))))
    if "://" in name:
        raise UnsupportedFeature(f"metald reads models from folders, not from {name}")
    return str(torch_file.as_safetensors(_downloaded(name, model_config, load_config)))


def _downloaded(name: str, model_config: Any, load_config: Any) -> Path:
    from huggingface_hub import snapshot_download

    def download(*patterns: str) -> Path:
        folder = snapshot_download(
            name,
            revision=model_config.revision,
            cache_dir=load_config.download_dir,
            allow_patterns=list(patterns),
        )
        return Path(folder)

    folder = download("*.safetensors", "*.json")
    # Where both formats are there, the larger one is not downloaded for nothing.
    return folder if any(folder.glob("*.safetensors")) else download("pytorch_model*.bin", "*.json")
