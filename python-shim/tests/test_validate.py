"""The policy for sampling parameters."""

from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import SamplingParams, StructuredOutputsParams

from vllm_metal_rpc import validate
from vllm_metal_rpc.validate import SAMPLING_PARAMS, Policy

PROMPT = {"type": "token", "prompt_token_ids": [1]}
# A value of each refused field that is not its default.
USED: dict[str, Any] = {
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.5,
    "min_tokens": 2,
    "logit_bias": {1: 2.0},
    "allowed_token_ids": [1],
    "bad_words": ["x"],
    "logprobs": 0,
    "prompt_logprobs": 0,
    "logprob_token_ids": [1],
    "structured_outputs": StructuredOutputsParams(json={}),
    "watermarking": True,
    "prompt_logprob_token_ids": [[1]],
    "prompt_logprob_start": 0,
    "extra_args": {"a": 1},
    "thinking_token_budget": 4,
    "routed_experts_prompt_start": 1,
    "trace_decode_token_ids": [1],
}
REFUSED = [name for name, policy in SAMPLING_PARAMS.items() if policy is Policy.REFUSED]


def test_every_field_of_vllm_has_a_policy() -> None:
    validate.check_vllm_sampling_params()
    assert set(SAMPLING_PARAMS) == set(SamplingParams.__struct_fields__)


def test_a_field_that_a_newer_vllm_adds_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(SAMPLING_PARAMS, "top_k")
    with pytest.raises(ValueError, match="top_k"):
        validate.check_vllm_sampling_params()


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_parameter_is_named(name: str) -> None:
    params = SamplingParams()
    setattr(params, name, USED[name])
    with pytest.raises(VLLMValidationError, match=name) as caught:
        validate.check_request(params, PROMPT)
    assert caught.value.parameter == name


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0),
        SamplingParams(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, seed=1),
        SamplingParams(n=3, stop=["x"], stop_token_ids=[3], ignore_eos=True, max_tokens=None),
    ],
)
def test_what_is_served_passes(params: SamplingParams) -> None:
    validate.check_request(params, PROMPT)


def test_a_list_that_the_wire_cannot_carry_is_refused() -> None:
    params = SamplingParams(stop_token_ids=list(range((1 << 20) + 1)))
    with pytest.raises(VLLMValidationError, match="stop_token_ids may have 1048576") as caught:
        validate.check_request(params, PROMPT)
    assert caught.value.parameter == "stop_token_ids"


def test_other_kinds_of_requests_are_refused() -> None:
    with pytest.raises(VLLMValidationError, match="pooling"):
        validate.check_request(PoolingParams(), PROMPT)
    with pytest.raises(VLLMValidationError, match="prompt embeddings"):
        validate.check_request(SamplingParams(), {"type": "embeds"})
    with pytest.raises(VLLMValidationError, match="images"):
        validate.check_request(SamplingParams(), {"type": "multimodal"})
