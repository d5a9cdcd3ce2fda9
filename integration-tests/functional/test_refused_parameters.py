"""A parameter that is not served is an HTTP 400 that names it; the others work."""

from typing import Any

import pytest
from vllm_metal_rpc.validate import SAMPLING_PARAMS, Policy

from framework.server import Server

# By name of vLLM's SamplingParams: what a client writes to set it. The shim's table says which of
# them are refused, so this list does not change when the daemon learns one.
REQUESTS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.7},
    "top_p": {"top_p": 0.5},
    "top_k": {"top_k": 5},
    "min_p": {"min_p": 0.1},
    "seed": {"seed": 3},
    "presence_penalty": {"presence_penalty": 0.5},
    "frequency_penalty": {"frequency_penalty": 0.5},
    "repetition_penalty": {"repetition_penalty": 1.2},
    "min_tokens": {"min_tokens": 2},
    "logit_bias": {"logit_bias": {"260": 5.0}},
    "allowed_token_ids": {"allowed_token_ids": [260, 338]},
    "bad_words": {"bad_words": [" the"]},
    "logprobs": {"logprobs": 2},
    "prompt_logprobs": {"prompt_logprobs": 2},
    "structured_outputs": {"structured_outputs": {"regex": "[a-z]{3}"}},
    "extra_args": {"vllm_xargs": {"custom": 1}},
    "watermarking": {"watermarking": True},
    "n": {"n": 2},
    "stop": {"stop": ["."]},
    "stop_token_ids": {"stop_token_ids": [338]},
    "ignore_eos": {"ignore_eos": True},
    "skip_special_tokens": {"skip_special_tokens": False},
}


@pytest.mark.parametrize("server", ["async"], indirect=True)
@pytest.mark.parametrize("name", REQUESTS)
def test_parameter(server: Server, name: str) -> None:
    answer = server.post(
        "/v1/completions", prompt="The capital of France is", max_tokens=4, **REQUESTS[name]
    )
    if SAMPLING_PARAMS[name] is Policy.REFUSED:
        assert answer.status_code == 400, answer.text
        assert name in answer.json()["error"]["message"]
    else:
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["text"]


@pytest.mark.parametrize("server", ["async"], indirect=True)
def test_prompt_embeddings_are_refused(server: Server) -> None:
    answer = server.post("/v1/completions", prompt_embeds="AAAA", max_tokens=4)
    assert answer.status_code == 400, answer.text
    assert "embed" in answer.json()["error"]["message"]
