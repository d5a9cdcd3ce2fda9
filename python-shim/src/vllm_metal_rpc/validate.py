"""What is served, what vLLM does by itself, and what is refused.

`SAMPLING_PARAMS` is the policy for requests, one line for each field of vLLM's `SamplingParams`; a
refused field is an HTTP 400 that names it. `check_config` is the policy for the command line: a
refused option ends the start with a sentence.
"""

from collections.abc import Callable
from enum import Enum
from typing import Any, Final

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams


class Policy(Enum):
    """Who takes care of a sampling parameter."""

    DAEMON = "the daemon honours it"
    VLLM = "vLLM's scheduler or front end does all of it"
    REFUSED = "only a value that asks for nothing is accepted"


SAMPLING_PARAMS: Final[dict[str, Policy]] = {
    "temperature": Policy.DAEMON,
    "top_p": Policy.DAEMON,
    "top_k": Policy.DAEMON,
    "min_p": Policy.DAEMON,
    "seed": Policy.DAEMON,
    "presence_penalty": Policy.DAEMON,
    "frequency_penalty": Policy.DAEMON,
    "repetition_penalty": Policy.DAEMON,
    "min_tokens": Policy.DAEMON,
    "logit_bias": Policy.DAEMON,
    "allowed_token_ids": Policy.DAEMON,
    "bad_words": Policy.DAEMON,
    "logprobs": Policy.DAEMON,
    "prompt_logprobs": Policy.DAEMON,
    "prompt_logprob_token_ids": Policy.DAEMON,
    "prompt_logprob_start": Policy.DAEMON,
    "logprob_token_ids": Policy.DAEMON,
    "structured_outputs": Policy.DAEMON,
    "thinking_token_budget": Policy.DAEMON,
    "trace_decode_token_ids": Policy.DAEMON,
    # Fan-out and stopping.
    "n": Policy.VLLM,
    "stop": Policy.VLLM,
    "stop_token_ids": Policy.VLLM,
    "ignore_eos": Policy.VLLM,
    "max_tokens": Policy.VLLM,
    "repetition_detection": Policy.VLLM,
    # Text and transport.
    "detokenize": Policy.VLLM,
    "skip_special_tokens": Policy.VLLM,
    "spaces_between_special_tokens": Policy.VLLM,
    "include_stop_str_in_output": Policy.VLLM,
    "output_kind": Policy.VLLM,
    "stream_interval": Policy.VLLM,
    "flat_logprobs": Policy.VLLM,
    "skip_reading_prefix_cache": Policy.VLLM,
    # vLLM's own notes in the struct.
    "skip_clone": Policy.VLLM,
    "output_text_buffer_length": Policy.VLLM,
    "_eos_token_id": Policy.VLLM,
    "_all_stop_token_ids": Policy.VLLM,
    "_bad_words_token_ids": Policy.VLLM,
    "_watermarking_skipped": Policy.VLLM,
    # Features of workers that the daemon does not have.
    "watermarking": Policy.REFUSED,
    "extra_args": Policy.REFUSED,
    "routed_experts_prompt_start": Policy.REFUSED,
}
# What is refused once it is neither absent, false, zero nor empty, and why.
_REFUSED: Final = {
    "watermarking": "tokens are drawn without a watermark; leave it out or set it to false",
    "extra_args": "there is no plugin or connector that could read it (vllm_xargs over HTTP)",
    "routed_experts_prompt_start": "metald does not tell which experts a token was routed to",
}


# The wire's limits (protocol/src/limits.rs), which no vocabulary comes near.
_MAX_TOKEN_LIST: Final = 1 << 20
_MAX_BAD_WORDS: Final = 1 << 16
_MAX_PROMPT_LOGPROB_TOKEN_IDS: Final = 1 << 22
_LENGTHS: Final[tuple[tuple[str, str, int], ...]] = (
    ("stop_token_ids", "all_stop_token_ids", _MAX_TOKEN_LIST),
    ("allowed_token_ids", "allowed_token_ids", _MAX_TOKEN_LIST),
    ("logit_bias", "logit_bias", _MAX_TOKEN_LIST),
    ("logprob_token_ids", "logprob_token_ids", _MAX_TOKEN_LIST),
    ("bad_words", "bad_words_token_ids", _MAX_BAD_WORDS),
    ("trace_decode_token_ids", "trace_decode_token_ids", _MAX_TOKEN_LIST),
)


def check_vllm_sampling_params() -> None:
    """Checks that this vLLM's `SamplingParams` has no field without a policy.

    Raises:
        ValueError: It has one.
    """
    unknown = set(SamplingParams.__struct_fields__) - set(SAMPLING_PARAMS)
    if unknown:
        raise ValueError(
            "this vLLM's SamplingParams has fields that vllm-metal-rpc does not know: "
            f"{', '.join(sorted(unknown))}; install the vLLM that it is made for"
        )


def check_request(params: Any, prompt: Any) -> None:
    """Refuses a request that the daemon cannot serve exactly as asked.

    Args:
        params: vLLM's `SamplingParams` or `PoolingParams`.
        prompt: vLLM's `EngineInput`.

    Raises:
        VLLMValidationError: Becomes HTTP 400.
    """
    if not isinstance(params, SamplingParams):
        raise VLLMValidationError("metal-rpc serves text generation, not pooling requests")
    for name, reason in _REFUSED.items():
        value = getattr(params, name)
        if value:
            raise VLLMValidationError(
                f"{name} is not supported by metal-rpc: {reason}", parameter=name, value=value
            )
    for name, attribute, limit in _LENGTHS:
        length = len(getattr(params, attribute) or ())
        if length > limit:
            raise VLLMValidationError(
                f"{name} may have {limit} entries with metal-rpc, it has {length}",
                parameter=name,
                value=length,
            )
    scored = params.prompt_logprob_token_ids
    if scored is not None and scored.size > _MAX_PROMPT_LOGPROB_TOKEN_IDS:
        raise VLLMValidationError(
            f"prompt_logprob_token_ids may have {_MAX_PROMPT_LOGPROB_TOKEN_IDS} entries with "
            f"metal-rpc, it has {scored.size}",
            parameter="prompt_logprob_token_ids",
            value=scored.size,
        )
    kind = prompt.get("type") if isinstance(prompt, dict) else None
    if kind == "embeds":
        raise VLLMValidationError(
            "prompt embeddings are not supported by metal-rpc", parameter="prompt_embeds"
        )
    if kind == "multimodal":
        raise VLLMValidationError(
            "images, audio and video are not supported by metal-rpc", parameter="messages"
        )


_Check = tuple[str, Callable[[Any], Any]]

# An option, and how to see that it was used.
_UNSUPPORTED_OPTIONS: Final[tuple[_Check, ...]] = (
    ("--tensor-parallel-size above 1", lambda c: c.parallel_config.tensor_parallel_size > 1),
    ("--pipeline-parallel-size above 1", lambda c: c.parallel_config.pipeline_parallel_size > 1),
    (
        "--prefill-context-parallel-size above 1",
        lambda c: c.parallel_config.prefill_context_parallel_size > 1,
    ),
    (
        "--decode-context-parallel-size above 1",
        lambda c: c.parallel_config.decode_context_parallel_size > 1,
    ),
    ("--enable-expert-parallel", lambda c: c.parallel_config.enable_expert_parallel),
    ("--enable-eplb", lambda c: c.parallel_config.enable_eplb),
    ("--enable-dbo", lambda c: c.parallel_config.enable_dbo),
    ("--enable-elastic-ep", lambda c: c.parallel_config.enable_elastic_ep),
    ("--worker-extension-cls", lambda c: c.parallel_config.worker_extension_cls),
    ("--enable-lora", lambda c: c.lora_config is not None),
    ("--speculative-config", lambda c: c.speculative_config is not None),
    ("--diffusion-config", lambda c: c.diffusion_config is not None),
    ("--watermark-config", lambda c: c.watermark_config is not None),
    ("--kv-transfer-config", lambda c: c.kv_transfer_config is not None),
    ("--ec-transfer-config", lambda c: c.ec_transfer_config is not None),
    ("--weight-transfer-config", lambda c: c.weight_transfer_config is not None),
    (
        "--enable-return-routed-experts",
        lambda c: c.aux_output_config.enable_return_routed_experts,
    ),
    ("--kv-offloading-size", lambda c: c.cache_config.kv_offloading_size),
    ("--kv-sharing-fast-prefill", lambda c: c.cache_config.kv_sharing_fast_prefill),
    (
        "--kv-cache-dtype other than auto",
        lambda c: c.cache_config.cache_dtype not in ("auto", _dtype_name(c.model_config.dtype)),
    ),
)
# All mean the same here: the daemon looks at the files.
_LOAD_FORMATS: Final = ("auto", "safetensors", "hf", "pt", "gguf")
_UNSUPPORTED_MODEL_OPTIONS: Final[tuple[_Check, ...]] = (
    ("--runner pooling", lambda m: m.runner_type != "generate"),
    ("a multimodal model", lambda m: m.is_multimodal_model),
    ("an encoder-decoder model", lambda m: m.is_encoder_decoder),
    ("--enable-prompt-embeds", lambda m: m.enable_prompt_embeds),
    ("--enable-sleep-mode", lambda m: m.enable_sleep_mode),
    ("--logits-processors", lambda m: m.logits_processors),
    ("--hf-overrides", lambda m: m.hf_overrides),
    ("--return-sampling-mask", lambda m: m.return_sampling_mask),
)


def check_config(config: Any) -> None:
    """Refuses options that would be ignored by the daemon.

    Args:
        config: A `VllmConfig`. Its `model_config` is None in some of vLLM's own tools.

    Raises:
        ValueError: Names the option.
    """
    for option, is_used in _UNSUPPORTED_OPTIONS:
        if config.model_config is not None and is_used(config):
            raise ValueError(f"{option} is not supported by metal-rpc")
    for option, is_used in _UNSUPPORTED_MODEL_OPTIONS:
        if config.model_config is not None and is_used(config.model_config):
            raise ValueError(f"{option} is not supported by metal-rpc")
    load_format = str(config.load_config.load_format)
    if load_format not in _LOAD_FORMATS:
        raise ValueError(
            f"--load-format {load_format} is not supported by metal-rpc; supported: "
            f"{', '.join(_LOAD_FORMATS)}"
        )
    if not config.use_v2_model_runner:
        raise ValueError(
            "VLLM_USE_V2_MODEL_RUNNER=0 is not supported by metal-rpc, whose protocol is that of "
            "vLLM's second model runner; unset the variable"
        )


def _dtype_name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
