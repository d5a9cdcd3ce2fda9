"""What of vLLM's sampling parameters reaches the daemon."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm.sampling_params import SamplingParams

from vllm_metal_rpc import messages
from vllm_metal_rpc.sampling import ThinkingPhrases, sampling_params, thinking_phrases
from vllm_metal_rpc.validate import SAMPLING_PARAMS, Policy

PHRASES = ThinkingPhrases(start=[1], natural_end=[2], end=[3, 2])
TOKEN_IDS = np.array([[5, -1], [6, 7]], np.int32)
# What sets each field that the daemon honours, and what of the message it changes. A grammar is
# not among them: it travels with its step.
SENT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "temperature": ({"temperature": 0.7}, {"temperature": 0.7}),
    "top_p": ({"top_p": 0.9}, {"top_p": 0.9}),
    "top_k": ({"top_k": 5}, {"top_k": 5}),
    "min_p": ({"min_p": 0.1}, {"min_p": 0.1}),
    "seed": ({"seed": -3}, {"seed": -3}),
    "presence_penalty": ({"presence_penalty": 0.5}, {"presence_penalty": 0.5}),
    "frequency_penalty": ({"frequency_penalty": 0.5}, {"frequency_penalty": 0.5}),
    "repetition_penalty": ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
    "min_tokens": (
        {"min_tokens": 2, "_all_stop_token_ids": {9, 4}},
        {"min_tokens": 2, "stop_token_ids": [4, 9]},
    ),
    "logit_bias": ({"logit_bias": {1: 2.5}}, {"logit_bias": [(1, 2.5)]}),
    "allowed_token_ids": ({"allowed_token_ids": [1]}, {"allowed_token_ids": [1]}),
    "bad_words": ({"_bad_words_token_ids": [[1, 2]]}, {"bad_words_token_ids": [[1, 2]]}),
    "logprobs": ({"logprobs": -1}, {"logprobs": -1}),
    "prompt_logprobs": ({"prompt_logprobs": 0}, {"prompt_logprobs": 0}),
    "logprob_token_ids": (
        {"logprob_token_ids": [8, 9]},
        {"logprob_token_ids": [8, 9], "logprobs": 2},
    ),
    "prompt_logprob_token_ids": (
        {"prompt_logprob_token_ids": TOKEN_IDS},
        {"prompt_logprob_token_ids": messages.PromptLogprobTokenIds(0, 2, TOKEN_IDS.tobytes())},
    ),
    "prompt_logprob_start": (
        {"prompt_logprob_token_ids": TOKEN_IDS, "prompt_logprob_start": 4},
        {"prompt_logprob_token_ids": messages.PromptLogprobTokenIds(4, 2, TOKEN_IDS.tobytes())},
    ),
    "thinking_token_budget": (
        {"thinking_token_budget": 7},
        {"thinking_budget": messages.ThinkingBudget(7, [1], [2], [3, 2])},
    ),
    "trace_decode_token_ids": (
        {"trace_decode_token_ids": [4, 5]},
        {"trace_decode_token_ids": [4, 5]},
    ),
}


def vllm_params(**fields: Any) -> SamplingParams:
    params = SamplingParams()
    for name, value in fields.items():
        setattr(params, name, value)
    return params


def test_every_field_that_the_daemon_honours_is_here() -> None:
    honoured = {name for name, policy in SAMPLING_PARAMS.items() if policy is Policy.DAEMON}
    assert honoured == set(SENT) | {"structured_outputs"}


@pytest.mark.parametrize("name", SENT)
def test_a_field_is_sent(name: str) -> None:
    fields, expected = SENT[name]
    assert sampling_params(vllm_params(**fields), PHRASES) == messages.SamplingParams(**expected)


def test_a_prompt_is_scored_once() -> None:
    params = vllm_params(prompt_logprobs=1, prompt_logprob_token_ids=TOKEN_IDS, logprobs=1)
    assert sampling_params(params, resumed=True) == messages.SamplingParams(logprobs=1)


def test_phrases_are_those_of_the_reasoning_config() -> None:
    config = SimpleNamespace(
        enabled=True,
        reasoning_start_token_ids=[1],
        natural_reasoning_end_token_ids=[2],
        reasoning_end_token_ids=[3, 2],
    )
    assert thinking_phrases(config) == PHRASES
    assert thinking_phrases(None) is None
    assert thinking_phrases(SimpleNamespace(enabled=False)) is None
    config.reasoning_end_token_ids = [3] * 1025
    with pytest.raises(ValueError, match="has 1025 tokens, 1024 are the most"):
        thinking_phrases(config)
