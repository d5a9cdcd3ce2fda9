"""The calls by name that vLLM makes to its workers (`Executor.collective_rpc`), and their answers.

Each name that vLLM 0.33 uses is here. What starts with a step or a set-up message is a method of
`executor.py`. The rest is either nothing to do for a worker in another process, or refused with the
reason.
"""

from collections.abc import Callable
from typing import Any, Final

_NO_TORCH_MODEL: Final = "the model is not a torch module of this process, it lives in metald"
_NO_LORA: Final = "metald does not serve LoRA adapters"
_NO_SLEEP: Final = "metald has no sleep mode; stop the frontend, its memory goes back at once"
_NO_TRANSFER: Final = "metald reads weights from the model's folder only"
_NO_PROFILER: Final = "there is no torch to profile; `metald status` shows the daemon's timings"
_NO_CONNECTOR: Final = "KV connectors are not supported"
_NO_ELASTICITY: Final = "there are no worker processes to move or restart"

ANSWERS: Final[dict[str, Any]] = {
    "get_supported_tasks": ("generate",),
    "supports_draft_weight_updates": False,
    "list_loras": set(),
    "take_draft_token_ids": None,
    "get_simple_cpu_offload_num_cpu_blocks": None,
    "compile_or_warm_up_model": None,
    # A step is done when its result is here.
    "synchronize_device": None,
    # Only with `--max-model-len auto`, which lowers it: the daemon's bound stays above.
    "update_max_model_len": None,
    "reset_mm_cache": None,
    "reset_encoder_cache": None,
    "release_late_interaction_query_cache": None,
    "execute_dummy_batch": None,
    "check_health": None,
}
REFUSALS: Final[dict[str, str]] = {
    "apply_model": _NO_TORCH_MODEL,
    "get_model_inspection": _NO_TORCH_MODEL,
    "compute_weight_checksums": _NO_TORCH_MODEL,
    "save_sharded_state": _NO_TORCH_MODEL,
    "save_tensorized_model": _NO_TORCH_MODEL,
    "add_lora": _NO_LORA,
    "remove_lora": _NO_LORA,
    "pin_lora": _NO_LORA,
    "sleep": _NO_SLEEP,
    "wake_up": _NO_SLEEP,
    "discard": _NO_SLEEP,
    "checkpoint_prepare": _NO_SLEEP,
    "checkpoint_restore": _NO_SLEEP,
    "reload_weights": _NO_TRANSFER,
    "reset_weights": _NO_TRANSFER,
    "init_weight_transfer_engine": _NO_TRANSFER,
    "shutdown_weight_transfer_engine": _NO_TRANSFER,
    "start_weight_update": _NO_TRANSFER,
    "start_draft_weight_update": _NO_TRANSFER,
    "update_weights": _NO_TRANSFER,
    "finish_weight_update": _NO_TRANSFER,
    "profile": _NO_PROFILER,
    "get_kv_connector_handshake_metadata": _NO_CONNECTOR,
    "handle_ft_command": _NO_ELASTICITY,
    "elastic_ep_execute": _NO_ELASTICITY,
}


def answer_rpc(method: str | Callable[..., Any]) -> Any:
    """What the one worker answers.

    Raises:
        NotImplementedError: It cannot; the message says why.
    """
    if not isinstance(method, str):
        name = getattr(method, "__name__", repr(method))
        raise NotImplementedError(f"{name} cannot run on a worker of metal-rpc: {_NO_TORCH_MODEL}")
    if method in ANSWERS:
        return ANSWERS[method]
    reason = REFUSALS.get(method, "metald does not know this call")
    raise NotImplementedError(f"{method} is not supported by metal-rpc: {reason}")
