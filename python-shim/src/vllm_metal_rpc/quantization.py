"""Quantised checkpoints, as vLLM's configuration is to see them.

vLLM asks each of its quantisation methods whether a checkpoint is its own, prepares GPU kernels for
it, and refuses what those cannot do. None of that concerns a device in another process, so a method
of ours claims the checkpoints that `metald` reads. It is asked before those of vLLM.

To import this module is to register the method, in each process that is given a configuration.

Source: vllm/config/model.py `_verify_quantization`, vllm/model_executor/layers/quantization.
"""

from typing import Any, Final

import torch
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

NAME: Final = "metal-rpc"
# What metald reads (daemon/src/models/quantization.rs), by `quant_method`; MLX writes none. On the
# right how a user may call it.
_METHODS: Final = {
    "": ("mlx",),
    "mlx": ("mlx",),
    "awq": ("awq", "auto_awq", "awq_marlin"),
    "gptq": ("gptq", "auto_gptq", "gptq_marlin"),
    "mxfp4": ("mxfp4", "gpt_oss_mxfp4"),
}
_SUPPORTED: Final = "MLX (affine, mxfp4), AWQ, GPTQ, MXFP4, and GGUF files"


def unsupported(method: str) -> ValueError:
    """The refusal of a method, with all that are known."""
    return ValueError(
        f"quantization {method} is not supported by metal-rpc, which runs weights as a checkpoint "
        f"has them; supported checkpoints: {_SUPPORTED}"
    )


@register_quantization_config(NAME)
class MetalRpcQuantization(QuantizationConfig):
    """A checkpoint whose weights the daemon reads as they are."""

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: Any, user_quant: str | None, hf_config: Any = None
    ) -> Any:
        """Claims a checkpoint, unless the user has named another method than its own.

        Raises:
            ValueError: The daemon does not read such checkpoints.
        """
        method = str(hf_quant_cfg.get("quant_method", ""))
        if method not in _METHODS:
            raise unsupported(method)
        is_claimed = user_quant in (None, NAME, *_METHODS[method])
        return NAME if is_claimed else None

    def get_name(self) -> Any:
        """What `--quantization` shows."""
        return NAME

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """All that the daemon holds unquantised tensors in."""
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """Of a CUDA device, which is not asked for."""
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        """None: `config.json` says it."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "MetalRpcQuantization":
        """Keeps nothing: the daemon reads `config.json` for itself."""
        return cls()

    def get_quant_method(self, layer: Any, prefix: str) -> None:
        """No layer is built in these processes."""
