"""Every sampling parameter through the `openai` package: each has its effect.

What a parameter does is asserted so that an answer without it fails.
"""

from collections.abc import Callable
from typing import Any

import openai
import pytest

from framework import prompts
from framework.client import Client
from framework.reference import ReferenceModel
from framework.server import Server

pytestmark = pytest.mark.parametrize("server", ["async"], indirect=True)

PROMPT = prompts.VARIED[0]
# Goes round in a circle when it is continued greedily.
CIRCLE = prompts.VARIED[6]
NUM_TOKENS = 12
PARIS = 7042
THE = 260
GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True, "max_tokens": NUM_TOKENS}
# So wild that nothing of the greedy answer is left.
WILD: dict[str, Any] = {"temperature": 2.0, "seed": 3, "ignore_eos": True, "max_tokens": NUM_TOKENS}

Tokens = list[int]


def tokens_of(client: Client, prompt: str = PROMPT, **parameters: Any) -> Tokens:
    """The token ids of the only answer."""
    (choice,) = client.complete(prompt, **parameters)
    token_ids: Tokens = choice["token_ids"]
    return token_ids


@pytest.fixture(scope="module")
def greedy_tokens(client: Client) -> Tokens:
    """What everything is compared with."""
    return tokens_of(client, **GREEDY)


@pytest.mark.parametrize(
    "narrowing", [{"temperature": 0.01}, {"top_p": 1e-3}, {"top_k": 1}, {"min_p": 1.0}], ids=str
)
def test_what_narrows_the_choice(
    client: Client, greedy_tokens: Tokens, narrowing: dict[str, Any]
) -> None:
    assert not set(tokens_of(client, **WILD)) & {PARIS}
    assert tokens_of(client, **(WILD | narrowing)) == greedy_tokens


def test_temperature(client: Client, greedy_tokens: Tokens) -> None:
    answers = {
        temperature: tokens_of(client, **(WILD | {"temperature": temperature}))
        for temperature in (0.0, 0.5, 1.0, 2.0)
    }
    assert answers[0.0] == greedy_tokens
    assert len(set(map(tuple, answers.values()))) == len(answers)


def test_seed(client: Client) -> None:
    first = tokens_of(client, **WILD)
    assert tokens_of(client, **WILD) == first
    assert tokens_of(client, **(WILD | {"seed": -(2**63)})) != first
    unseeded = {key: value for key, value in WILD.items() if key != "seed"}
    assert len({tuple(tokens_of(client, **unseeded)) for _ in range(3)}) == 3


@pytest.mark.parametrize(
    "penalty", [{"frequency_penalty": 2.0}, {"presence_penalty": 2.0}, {"repetition_penalty": 1.8}]
)
def test_penalties(client: Client, penalty: dict[str, float]) -> None:
    fixed = GREEDY | {"max_tokens": 48}
    plain = set(tokens_of(client, CIRCLE, **fixed))
    assert len(set(tokens_of(client, CIRCLE, **fixed, **penalty))) > len(plain)


# What is asked beside a greedy answer, and what must hold of the tokens.
GREEDY_CASES: dict[str, tuple[dict[str, Any], Callable[[Tokens, Tokens], bool]]] = {
    "logit_bias for": ({"logit_bias": {THE: 100}}, lambda got, _: set(got) == {THE}),
    "logit_bias against": (
        {"logit_bias": {PARIS: -100}},
        lambda got, plain: PARIS in plain and PARIS not in got,
    ),
    "allowed_token_ids": (
        {"allowed_token_ids": [THE, 338, 30]},
        lambda got, plain: set(got) <= {THE, 338, 30} and not set(plain) <= {THE, 338, 30},
    ),
    "bad_words": (
        {"bad_words": ["Paris"]},
        lambda got, plain: PARIS in plain and PARIS not in got,
    ),
    "max_tokens": ({"max_tokens": 5}, lambda got, plain: got == plain[:5]),
    "stop_token_ids": (
        {"stop_token_ids": [PARIS]},
        lambda got, plain: got == plain[: plain.index(PARIS) + 1],
    ),
    "min_tokens": (
        {"stop_token_ids": [PARIS], "min_tokens": 8},
        lambda got, plain: PARIS in plain[:7] and PARIS not in got[:8] and len(got) >= 8,
    ),
}


@pytest.mark.parametrize("name", GREEDY_CASES)
def test_a_greedy_answer(client: Client, greedy_tokens: Tokens, name: str) -> None:
    parameters, holds = GREEDY_CASES[name]
    got = tokens_of(client, **(GREEDY | parameters))
    assert holds(got, greedy_tokens), f"{got}, without it {greedy_tokens}"


def test_stop_strings(client: Client) -> None:
    (plain,) = client.complete(PROMPT, **GREEDY)
    word = plain["text"].split()[2]
    (stopped,) = client.complete(PROMPT, stop=[word], **GREEDY)
    assert stopped["text"] == plain["text"][: plain["text"].index(word)]
    assert (stopped["finish_reason"], stopped["stop_reason"]) == ("stop", word)
    (kept,) = client.complete(PROMPT, stop=[word], include_stop_str_in_output=True, **GREEDY)
    assert kept["text"] == stopped["text"] + word


def test_min_tokens_goes_on_past_a_stop_string_and_the_end(client: Client) -> None:
    (plain,) = client.complete(PROMPT, **GREEDY)
    word = plain["text"].split()[0]
    (longer,) = client.complete(PROMPT, stop=[word], min_tokens=6, **GREEDY)
    assert len(longer["token_ids"]) >= 6
    (short,) = client.chat("Say hello.", temperature=0.0, max_tokens=60)
    assert short["finish_reason"] == "stop"
    wanted = len(short["token_ids"]) + 10
    (longer,) = client.chat("Say hello.", temperature=0.0, max_tokens=80, min_tokens=wanted)
    assert len(longer["token_ids"]) >= wanted


def test_ignore_eos(client: Client) -> None:
    (short,) = client.chat("Say hello.", temperature=0.0, max_tokens=60)
    (longer,) = client.chat("Say hello.", temperature=0.0, max_tokens=60, ignore_eos=True)
    assert (short["finish_reason"], longer["finish_reason"]) == ("stop", "length")
    assert len(longer["token_ids"]) == 60
    assert longer["token_ids"][: len(short["token_ids"])] == short["token_ids"]


def test_several_choices_are_different_draws_of_one_seed(client: Client) -> None:
    choices = client.complete(PROMPT, n=3, **(WILD | {"temperature": 1.0}))
    tokens = [choice["token_ids"] for choice in choices]
    assert len(set(map(tuple, tokens))) == 3
    again = client.complete(PROMPT, n=3, **(WILD | {"temperature": 1.0}))
    assert [choice["token_ids"] for choice in again] == tokens


def test_beam_search_finds_what_is_likelier_than_greedy(
    client: Client, reference: ReferenceModel, tokenizer: Any
) -> None:
    prompt = prompts.VARIED[2]
    prompt_ids = tokenizer(prompt)["input_ids"]

    def likelihood(answer: Tokens) -> float:
        logprobs = reference.logprobs(prompt_ids, answer)
        return float(sum(logprobs[i, token] for i, token in enumerate(answer)))

    greedy = tokens_of(client, prompt, **(GREEDY | {"max_tokens": 8}))
    beams = client.complete(prompt, n=4, use_beam_search=True, **(GREEDY | {"max_tokens": 8}))
    found = [tokenizer(choice["text"])["input_ids"] for choice in beams]
    assert len(set(map(tuple, found))) == 4
    assert likelihood(found[0]) > likelihood(greedy)
    assert likelihood(found[0]) >= likelihood(found[3])


def test_echo(client: Client) -> None:
    (plain,) = client.complete(PROMPT, **GREEDY)
    # With token ids vLLM would tell the prompt by them alone.
    (echoed,) = client.complete(PROMPT, echo=True, return_token_ids=False, **GREEDY)
    assert echoed["text"] == PROMPT + plain["text"]


def test_repetition_detection(client: Client) -> None:
    fixed = GREEDY | {"max_tokens": 96}
    detection = {"max_pattern_size": 24, "min_pattern_size": 1, "min_count": 3}
    (stopped,) = client.complete(CIRCLE, repetition_detection=detection, **fixed)
    assert stopped["finish_reason"] != "length"
    assert len(stopped["token_ids"]) < 96


@pytest.mark.parametrize("budget", [0, 3])
def test_thinking_token_budget(client: Client, tokenizer: Any, budget: int) -> None:
    end = tokenizer("</think>")["input_ids"]
    prompt = "Question: how many legs has a spider?\n<think>"
    plain = tokens_of(client, prompt, **GREEDY)
    bound = tokens_of(client, prompt, thinking_token_budget=budget, **GREEDY)
    assert not set(end) <= set(plain)
    assert bound[:budget] == plain[:budget]
    assert bound[budget : budget + len(end)] == end
    # One that is not spent changes nothing.
    assert tokens_of(client, prompt, thinking_token_budget=500, **GREEDY) == plain


# All of the parameters that the shim refuses: its own tests hold the list against vLLM's.
REFUSED: dict[str, dict[str, Any]] = {
    "watermarking": {"watermarking": True},
    "extra_args": {"vllm_xargs": {"custom": 1}},
    "routed_experts_prompt_start": {"routed_experts_prompt_start": 1},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named(client: Client, name: str) -> None:
    with pytest.raises(openai.BadRequestError, match=f"{name} is not supported by metal-rpc: "):
        client.complete(PROMPT, max_tokens=1, **REFUSED[name])


def test_prompt_embeddings_are_refused(server: Server) -> None:
    answer = server.post("/v1/completions", prompt_embeds="AAAA", max_tokens=4)
    assert answer.status_code == 400, answer.text
    assert "embed" in answer.json()["error"]["message"]
