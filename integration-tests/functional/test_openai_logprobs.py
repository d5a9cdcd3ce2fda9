"""What is told of tokens through the `openai` package: of the output's, the prompt's, named ones.

The server's weights are bfloat16, so numbers are compared with the reference in float32 loosely;
test_reference.py does it within 1e-3.
"""

import base64
import io
import math
from typing import Any

import numpy as np
import openai
import pytest
import torch

from framework import prompts
from framework.client import Client
from framework.reference import ReferenceModel
from framework.server import Server

pytestmark = pytest.mark.parametrize("server", ["async"], indirect=True)

PROMPT = prompts.VARIED[0]
GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 4}
# Rounding to bfloat16, over the 30 layers, in log probability.
TOLERANCE = 0.15
NAMED = [260, 7042, 0, 49_151]


@pytest.fixture(scope="module")
def prompt_ids(tokenizer: Any) -> list[int]:
    token_ids: list[int] = tokenizer(PROMPT)["input_ids"]
    return token_ids


def by_id(entries: dict[str, float]) -> dict[int, float]:
    """`token_id:7` as 7."""
    return {int(name.removeprefix("token_id:")): value for name, value in entries.items()}


def complete(client: Client, prompt: Any = PROMPT, **parameters: Any) -> dict[str, Any]:
    (choice,) = client.complete(prompt, return_tokens_as_token_ids=True, **parameters)
    return choice


@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_logprobs(
    client: Client, reference: ReferenceModel, prompt_ids: list[int], count: int
) -> None:
    answer = complete(client, logprobs=count, **GREEDY)
    expected = reference.logprobs(prompt_ids, answer["token_ids"])
    told = answer["logprobs"]
    for position, token in enumerate(answer["token_ids"]):
        own = float(expected[position, token])
        assert told["token_logprobs"][position] == pytest.approx(own, abs=TOLERANCE)
        best = by_id(told["top_logprobs"][position])
        # The token itself is told too, and is the most likely one here.
        assert len(best) == max(count, 1)
        assert max(best, key=best.__getitem__) == token
        ranked = expected[position].topk(len(best)).values.tolist()
        assert sorted(best.values(), reverse=True) == pytest.approx(ranked, abs=TOLERANCE)


def test_logprobs_of_the_whole_vocabulary(client: Client) -> None:
    answer = complete(client, logprobs=-1, **(GREEDY | {"max_tokens": 1}))
    (entries,) = map(by_id, answer["logprobs"]["top_logprobs"])
    assert sorted(entries) == list(range(49_152))
    assert math.fsum(map(math.exp, entries.values())) == pytest.approx(1.0, abs=1e-4)


def test_logprobs_of_a_chat(client: Client) -> None:
    (answer,) = client.chat("Say hello.", logprobs=True, top_logprobs=7, **GREEDY)
    for told in answer["logprobs"]["content"]:
        assert len(told["top_logprobs"]) == 7
        assert told["top_logprobs"][0]["logprob"] == told["logprob"]


def test_too_many_logprobs_of_a_chat_are_refused(client: Client) -> None:
    with pytest.raises(openai.BadRequestError, match="top_logprobs"):
        client.chat("Say hello.", logprobs=True, top_logprobs=-2)


def test_logprob_token_ids(
    client: Client, reference: ReferenceModel, prompt_ids: list[int]
) -> None:
    answer = complete(client, logprobs=len(NAMED), logprob_token_ids=NAMED, **GREEDY)
    expected = reference.logprobs(prompt_ids, answer["token_ids"])
    for position, token in enumerate(answer["token_ids"]):
        told = by_id(answer["logprobs"]["top_logprobs"][position])
        assert set(told) == {*NAMED, token}
        for named, logprob in told.items():
            own = float(expected[position, named])
            # What is far from likely is rounded by more.
            assert logprob == pytest.approx(own, abs=3 * TOLERANCE)


def test_prompt_logprobs_of_a_prompt_longer_than_a_step(
    client: Client, reference: ReferenceModel, tokenizer: Any
) -> None:
    token_ids = tokenizer(prompts.long(6))["input_ids"]
    answer = complete(client, token_ids, prompt_logprobs=2, **(GREEDY | {"max_tokens": 2}))
    told = answer["prompt_logprobs"]
    assert len(told) == len(token_ids)
    assert told[0] is None
    expected = reference.logprobs(token_ids[:1], token_ids[1:])
    for position, (token, entry) in enumerate(zip(token_ids[1:], told[1:], strict=True)):
        # Two most likely ones, and the prompt's own if it is none of them.
        assert len(entry) == (2 if entry[str(token)]["rank"] <= 2 else 3)
        own = float(expected[position, token])
        assert entry[str(token)]["logprob"] == pytest.approx(own, abs=3 * TOLERANCE)


def test_echo_with_logprobs_tells_of_prompt_and_output(
    client: Client, prompt_ids: list[int]
) -> None:
    answer = complete(client, echo=True, logprobs=1, **GREEDY)
    told = answer["logprobs"]["token_logprobs"]
    assert len(told) == len(prompt_ids) + GREEDY["max_tokens"]
    assert told[0] is None
    plain = complete(client, logprobs=1, **GREEDY)
    assert told[len(prompt_ids) :] == plain["logprobs"]["token_logprobs"]


# ---- Where vLLM takes its own SamplingParams over HTTP ----


def generate(server: Server, token_ids: list[int], **parameters: Any) -> dict[str, Any]:
    """An answer of `/inference/v1/generate`."""
    response = server.post(
        "/inference/v1/generate", token_ids=token_ids, sampling_params=GREEDY | parameters
    )
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.mark.parametrize("start", [None, 300])
def test_named_tokens_of_a_prompt_longer_than_a_step(
    server: Server, reference: ReferenceModel, tokenizer: Any, start: int | None
) -> None:
    token_ids = tokenizer(prompts.long(6))["input_ids"]
    first = start or 0
    asked = [
        [token, 260 + row] if row % 3 else [token]
        for row, token in enumerate(token_ids[first + 1 :])
    ]
    parameters: dict[str, Any] = {"prompt_logprob_token_ids": asked}
    if start is not None:
        parameters["prompt_logprob_start"] = start
    answer = generate(server, token_ids, **parameters)
    scores = np.load(io.BytesIO(base64.b64decode(answer["prompt_token_id_logprobs"])))
    assert scores.shape == (len(asked), 2)
    expected = reference.logprobs(token_ids[: first + 1], token_ids[first + 1 :])
    for row, ids in enumerate(asked):
        own = expected[row, torch.tensor(ids)].tolist()
        assert scores[row, : len(ids)].tolist() == pytest.approx(own, abs=4 * TOLERANCE)
        assert np.isneginf(scores[row, len(ids) :]).all()


def test_a_prompt_without_the_named_rows_is_refused(server: Server) -> None:
    response = server.post(
        "/inference/v1/generate",
        token_ids=[1, 2, 3, 4],
        sampling_params={"prompt_logprob_token_ids": [[5]], "prompt_logprob_start": 1},
    )
    assert response.status_code == 400, response.text
    assert "prompt_logprob_token_ids has 1 rows" in response.text


def test_a_trace_is_followed_and_scored(
    server: Server, reference: ReferenceModel, prompt_ids: list[int]
) -> None:
    trace = [260, 338, 7042, 30]
    plain = generate(server, prompt_ids)["choices"][0]["token_ids"]
    answer = generate(server, prompt_ids, trace_decode_token_ids=trace, logprobs=0)["choices"][0]
    assert answer["token_ids"] == trace != plain
    expected = reference.logprobs(prompt_ids, trace)
    for position, told in enumerate(answer["logprobs"]["content"]):
        own = float(expected[position, trace[position]])
        assert told["logprob"] == pytest.approx(own, abs=3 * TOLERANCE)
