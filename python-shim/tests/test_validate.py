"""The policy for sampling parameters."""

from typing import Any

import numpy as np
import pytest
from vllm.exceptions import VLLMValidationError
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import (
    RepetitionDetectionParams,
    RequestOutputKind,
    SamplingParams,
    StructuredOutputsParams,
)

from vllm_metal_rpc import validate
from vllm_metal_rpc.validate import SAMPLING_PARAMS, Policy

PROMPT = {"type": "token", "prompt_token_ids": [1]}
# A value of each field that asks for something, beside the ones that vLLM sets by itself.
USED: dict[str, Any] = {
    "n": 3,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.5,
    "temperature": 0.7,
    "watermarking": True,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "seed": 1,
    "stop": ["x"],
    "stop_token_ids": [3],
    "ignore_eos": True,
    "max_tokens": None,
    "min_tokens": 2,
    "logprobs": 0,
    "prompt_logprobs": 0,
    "prompt_logprob_token_ids": np.array([[1, -1]], np.int32),
    "prompt_logprob_start": 0,
    "logprob_token_ids": [1],
    "flat_logprobs": True,
    "detokenize": False,
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "include_stop_str_in_output": True,
    "output_kind": RequestOutputKind.DELTA,
    "stream_interval": 2,
    "structured_outputs": StructuredOutputsParams(json={}),
    "logit_bias": {1: 2.0},
    "allowed_token_ids": [1],
    "extra_args": {"a": 1},
    "bad_words": ["x"],
    "skip_reading_prefix_cache": True,
    "thinking_token_budget": 4,
    "repetition_detection": RepetitionDetectionParams(2, 1, 3),
    "routed_experts_prompt_start": 1,
    "trace_decode_token_ids": [1],
}
SET_BY_VLLM = {
    "skip_clone",
    "output_text_buffer_length",
    "_eos_token_id",
    "_all_stop_token_ids",
    "_bad_words_token_ids",
    "_watermarking_skipped",
}


def test_every_field_of_vllm_has_a_policy() -> None:
    validate.check_vllm_sampling_params()
    assert set(SAMPLING_PARAMS) == set(SamplingParams.__struct_fields__)


def test_a_field_that_a_newer_vllm_adds_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(SAMPLING_PARAMS, "top_k")
    with pytest.raises(ValueError, match="top_k"):
        validate.check_vllm_sampling_params()


def used(name: str) -> SamplingParams:
    """Parameters of which one asks for something."""
    params = SamplingParams()
    setattr(params, name, USED[name])
    return params


@pytest.mark.parametrize("name", USED)
def test_every_field_is_served_or_refused_by_name(name: str) -> None:
    params = used(name)
    if SAMPLING_PARAMS[name] is not Policy.REFUSED:
        validate.check_request(params, PROMPT)
        return
    with pytest.raises(VLLMValidationError, match=f"{name} is not supported.*: ") as caught:
        validate.check_request(params, PROMPT)
    assert caught.value.parameter == name


def test_the_fields_of_this_file_are_those_of_vllm() -> None:
    assert set(USED) | SET_BY_VLLM == set(SamplingParams.__struct_fields__)
    assert {SAMPLING_PARAMS[name] for name in SET_BY_VLLM} == {Policy.VLLM}


def test_values_that_ask_for_nothing_pass() -> None:
    for name, value in (("watermarking", False), ("extra_args", {}), ("extra_args", None)):
        params = SamplingParams()
        setattr(params, name, value)
        validate.check_request(params, PROMPT)


def test_a_list_that_the_wire_cannot_carry_is_refused() -> None:
    params = SamplingParams(stop_token_ids=list(range((1 << 20) + 1)))
    with pytest.raises(VLLMValidationError, match="stop_token_ids may have 1048576") as caught:
        validate.check_request(params, PROMPT)
    assert caught.value.parameter == "stop_token_ids"


def test_more_scores_of_a_prompt_than_the_wire_carries_are_refused() -> None:
    params = SamplingParams()
    params.prompt_logprob_token_ids = np.zeros((1 << 21, 3), np.int32)
    with pytest.raises(VLLMValidationError, match=r"may have 4194304 entries .* it has 6291456"):
        validate.check_request(params, PROMPT)


def test_other_kinds_of_requests_are_refused() -> None:
    with pytest.raises(VLLMValidationError, match="pooling"):
        validate.check_request(PoolingParams(), PROMPT)
    with pytest.raises(VLLMValidationError, match="prompt embeddings"):
        validate.check_request(SamplingParams(), {"type": "embeds"})
    with pytest.raises(VLLMValidationError, match="images"):
        validate.check_request(SamplingParams(), {"type": "multimodal"})
