"""vLLM's sampling parameters to the wire's. Pure: no I/O, no clock.

Source: vllm/sampling_params.py and vllm/config/reasoning.py, at the version pinned in
pyproject.toml.
"""

import dataclasses
from typing import Any, Final

import numpy as np

from vllm_metal_rpc import messages

# The wire's limit (protocol/src/limits.rs).
_MAX_THINKING_PHRASE: Final = 1024


@dataclasses.dataclass(frozen=True)
class ThinkingPhrases:
    """What this server's model begins and ends its thinking with, as token ids."""

    start: list[int]
    natural_end: list[int]
    end: list[int]


def thinking_phrases(reasoning_config: Any) -> ThinkingPhrases | None:
    """What vLLM's `ReasoningConfig` says, if the server has one that is enabled.

    Raises:
        ValueError: A phrase is longer than the wire can carry.
    """
    if reasoning_config is None or not reasoning_config.enabled:
        return None
    phrases = ThinkingPhrases(
        start=list(reasoning_config.reasoning_start_token_ids),
        natural_end=list(reasoning_config.natural_reasoning_end_token_ids),
        end=list(reasoning_config.reasoning_end_token_ids),
    )
    longest = max(map(len, dataclasses.astuple(phrases)))
    if longest > _MAX_THINKING_PHRASE:
        raise ValueError(
            f"a phrase of --reasoning-config has {longest} tokens, "
            f"{_MAX_THINKING_PHRASE} are the most with metal-rpc"
        )
    return phrases


def sampling_params(
    params: Any, thinking: ThinkingPhrases | None = None, *, resumed: bool = False
) -> messages.SamplingParams:
    """Converts the part of vLLM's `SamplingParams` that a worker honours.

    `validate.py` has already refused what the daemon does not serve, and vLLM a thinking budget
    on a server that knows no phrases.

    Args:
        params: vLLM's.
        thinking: The server's phrases.
        resumed: The request has output tokens. What is told of its prompt was told with the first
            of them, and vLLM would add it up.
    """
    bias = params.logit_bias or {}
    return messages.SamplingParams(
        temperature=float(params.temperature),
        top_p=float(params.top_p),
        top_k=max(0, params.top_k),
        min_p=float(params.min_p),
        seed=params.seed,
        presence_penalty=float(params.presence_penalty),
        frequency_penalty=float(params.frequency_penalty),
        repetition_penalty=float(params.repetition_penalty),
        min_tokens=params.min_tokens,
        # Only needed to mask them until `min_tokens`: stopping is the scheduler's.
        stop_token_ids=sorted(params.all_stop_token_ids) if params.min_tokens else [],
        logit_bias=[(token, float(value)) for token, value in bias.items()],
        allowed_token_ids=params.allowed_token_ids,
        bad_words_token_ids=params.bad_words_token_ids or [],
        logprobs=params.num_logprobs,
        prompt_logprobs=None if resumed else params.prompt_logprobs,
        logprob_token_ids=params.logprob_token_ids,
        thinking_budget=_thinking_budget(params.thinking_token_budget, thinking),
        prompt_logprob_token_ids=None if resumed else _prompt_logprob_token_ids(params),
        trace_decode_token_ids=params.trace_decode_token_ids,
    )


def _thinking_budget(
    max_tokens: int | None, phrases: ThinkingPhrases | None
) -> messages.ThinkingBudget | None:
    if max_tokens is None or phrases is None:
        return None
    return messages.ThinkingBudget(
        # Beyond any request, and so the same as the largest that the wire carries.
        max_tokens=min(max_tokens, 2**32 - 1),
        start_token_ids=phrases.start,
        natural_end_token_ids=phrases.natural_end,
        end_token_ids=phrases.end,
    )


def _prompt_logprob_token_ids(params: Any) -> messages.PromptLogprobTokenIds | None:
    if params.prompt_logprob_token_ids is None:
        return None
    token_ids = np.ascontiguousarray(params.prompt_logprob_token_ids, dtype="<i4")
    return messages.PromptLogprobTokenIds(
        start=params.prompt_logprob_start or 0,
        num_columns=token_ids.shape[1],
        token_ids=token_ids.tobytes(),
    )
