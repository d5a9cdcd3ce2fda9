"""Sampling parameters through vLLM: each has its effect, alone and among others."""

import json
import re
from typing import Any

import pytest

from framework import prompts
from framework.prompts import SAMPLED
from framework.reference import ReferenceModel
from framework.server import Server

PROMPT = prompts.VARIED[0]
PARIS = 7042
# Rounding to bfloat16, over the 30 layers, in log probability.
BFLOAT16_TOLERANCE = 0.15


@pytest.fixture(scope="module")
def prompt_ids(tokenizer: Any) -> list[int]:
    token_ids: list[int] = tokenizer(PROMPT)["input_ids"]
    return token_ids


def greedy(server: Server, **parameters: Any) -> list[int]:
    """The token ids of a greedy answer to the prompt."""
    fixed = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 12}
    token_ids: list[int] = server.complete(PROMPT, **(fixed | parameters))["token_ids"]
    return token_ids


def test_logit_bias(server: Server) -> None:
    assert greedy(server, logit_bias={"260": 100.0}) == [260] * 12
    assert greedy(server, logit_bias={str(PARIS): -100.0})[0] != PARIS


def test_allowed_token_ids(server: Server) -> None:
    allowed = [260, 338, 30]
    assert set(greedy(server, allowed_token_ids=allowed)) <= set(allowed)


def test_bad_words(server: Server, tokenizer: Any) -> None:
    assert PARIS in greedy(server)
    answer = greedy(server, bad_words=["Paris"])
    assert "Paris" not in tokenizer.decode(answer)


def test_min_tokens(server: Server) -> None:
    question = "Say hello."
    short = server.chat(question, temperature=0.0, max_tokens=100)
    assert short["finish_reason"] == "stop"
    num_tokens = len(short["token_ids"]) + 20
    longer = server.chat(question, temperature=0.0, max_tokens=100, min_tokens=num_tokens)
    assert len(longer["token_ids"]) >= num_tokens


@pytest.mark.parametrize(
    "penalty", [{"frequency_penalty": 2.0}, {"presence_penalty": 2.0}, {"repetition_penalty": 1.8}]
)
def test_penalties_make_repetition_rarer(server: Server, penalty: dict[str, float]) -> None:
    def num_distinct(**parameters: float) -> int:
        answer = server.complete(
            prompts.VARIED[6], temperature=0.0, ignore_eos=True, max_tokens=48, **parameters
        )
        return len(set(answer["token_ids"]))

    assert num_distinct(**penalty) > num_distinct()


def test_logprobs_are_those_of_the_reference(
    server: Server, reference: ReferenceModel, prompt_ids: list[int]
) -> None:
    answer = server.complete(PROMPT, temperature=0.0, max_tokens=12, logprobs=5)
    expected = reference.logprobs(prompt_ids, answer["token_ids"])
    told = answer["logprobs"]
    for position, token in enumerate(answer["token_ids"]):
        assert told["token_logprobs"][position] == pytest.approx(
            float(expected[position, token]), abs=BFLOAT16_TOLERANCE
        )
        best = sorted(told["top_logprobs"][position].values(), reverse=True)
        reference_best = expected[position].topk(5).values.tolist()
        assert best[:5] == pytest.approx(reference_best, abs=BFLOAT16_TOLERANCE)


def test_prompt_logprobs_of_a_prompt_longer_than_a_step(
    server: Server, reference: ReferenceModel, tokenizer: Any
) -> None:
    token_ids = tokenizer(prompts.long(6))["input_ids"]
    answer = server.complete(token_ids, temperature=0.0, max_tokens=1, prompt_logprobs=1)
    told = answer["prompt_logprobs"]
    assert len(told) == len(token_ids)
    assert told[0] is None
    expected = reference.logprobs(token_ids[:1], token_ids[1:])
    for position, (token, entry) in enumerate(zip(token_ids[1:], told[1:], strict=True)):
        assert entry[str(token)]["logprob"] == pytest.approx(
            float(expected[position, token]), abs=3 * BFLOAT16_TOLERANCE
        )


def test_structured_outputs(server: Server) -> None:
    date = server.complete(
        "The date in ISO format is ",
        structured_outputs={"regex": r"[0-9]{4}-[0-9]{2}-[0-9]{2}"},
        temperature=1.0,
        seed=5,
        max_tokens=30,
    )
    assert re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", date["text"])
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["Ada", "Grace"]}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    answer = server.chat(
        "Describe a person as JSON.",
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "person", "schema": schema},
        },
        temperature=0.0,
        max_tokens=80,
    )
    person = json.loads(answer["message"]["content"])
    assert person["name"] in ("Ada", "Grace")
    assert isinstance(person["age"], int)


def test_a_mixture_is_the_same_alone_and_among_others(server: Server) -> None:
    """32 requests with all kinds of parameters, so many that they preempt each other."""
    alone = [server.complete(prompts.VARIED[0], **parameters) for parameters in SAMPLED]
    before = server.metric("vllm:num_preemptions_total")
    together = server.ask_all(
        [{"prompt": prompts.VARIED[0]} | parameters for parameters in SAMPLED]
        + [
            {"prompt": text, "temperature": 0.0, "ignore_eos": True, "max_tokens": 48}
            for text in prompts.many(32 - len(SAMPLED))
        ]
    )
    assert server.metric("vllm:num_preemptions_total") > before
    for one, other in zip(alone, together, strict=False):
        assert one["token_ids"] == other["token_ids"]
        assert one["logprobs"] == other["logprobs"]
