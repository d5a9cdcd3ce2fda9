"""What `--logprobs-mode` makes of logprobs, and logits that are not numbers.

The two servers here are of a tiny random model in float32, and reach their daemon through TCP; the
servers of conftest.py have the
modes `processed_logprobs` (sync) and `raw_logprobs` (async).
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from framework import models, prompts
from framework.daemon import Daemon
from framework.frontend import new_request, ready_frontend
from framework.reference import ReferenceModel
from framework.server import Server

# Each with how much of the memory may be taken: the two reserve theirs one after the other.
MODES = {"raw_logits": 0.3, "processed_logits": 0.6}
PROMPT = [5, 17, 200, 31, 8, 9]
FLAGS = (
    "--dtype=float32",
    "--max-model-len=256",
    "--max-num-seqs=8",
    "--num-gpu-blocks-override=64",
    "--generation-config=vllm",
    "--max-logprobs=-1",
)
# Float32, and exact zeros of probability beside.
TOLERANCE = 1e-3
TEMPERATURE = 0.5
TOP_K = 4
SAMPLED: dict[str, Any] = {
    "temperature": TEMPERATURE,
    "top_k": TOP_K,
    "seed": 1,
    "max_tokens": 3,
    "logprobs": -1,
    "prompt_logprobs": 1,
    "ignore_eos": True,
    "return_tokens_as_token_ids": True,
}


@pytest.fixture(scope="module")
def model(make_folder: Callable[[], Path], smollm2: Path) -> Path:
    return models.tiny_with_tokenizer(make_folder() / "nan", smollm2)


@pytest.fixture(scope="module")
def servers(remote_daemon: Daemon, model: Path) -> Iterator[dict[str, Server]]:
    """One server a mode, started together."""
    started = {
        mode: Server(
            model,
            remote_daemon.folder,
            f"--logprobs-mode={mode}",
            f"--gpu-memory-utilization={fraction}",
            *FLAGS,
            **remote_daemon.variables,
        )
        for mode, fraction in MODES.items()
    }
    try:
        for server in started.values():
            server.start()
        for server in started.values():
            server.wait_ready()
        yield started
    finally:
        for server in started.values():
            server.stop()


@pytest.fixture(scope="module")
def tiny_reference(model: Path) -> ReferenceModel:
    return ReferenceModel(model)


def told_of(choice: dict[str, Any]) -> list[dict[int, float]]:
    """What is told of every token at each place of the output."""
    return [
        {int(name.removeprefix("token_id:")): value for name, value in entries.items()}
        for entries in choice["logprobs"]["top_logprobs"]
    ]


def narrowed(logits: torch.Tensor) -> torch.Tensor:
    """What temperature and top-k make of logits."""
    scaled = logits / TEMPERATURE
    return scaled.masked_fill(scaled < scaled.topk(TOP_K).values[-1], -math.inf)


def check(told: dict[int, float], expected: torch.Tensor, tolerance: float) -> None:
    # vLLM leaves -inf out of JSON, or writes the least number that it can.
    kept = {token: value for token, value in told.items() if value > -9000}
    support = expected.isfinite().nonzero().flatten().tolist()
    assert sorted(kept) == support
    values = [kept[token] for token in support]
    assert values == pytest.approx(expected[support].tolist(), abs=tolerance)


@pytest.mark.parametrize("mode", MODES)
def test_logits(servers: dict[str, Server], tiny_reference: ReferenceModel, mode: str) -> None:
    answer = servers[mode].complete(PROMPT, **SAMPLED)
    logits = tiny_reference.logits(PROMPT, answer["token_ids"])
    for place, told in enumerate(told_of(answer)):
        expected = narrowed(logits[place]) if mode == "processed_logits" else logits[place]
        check(told, expected, TOLERANCE)
    # Nothing processes the logits of a prompt: they are the model's in both modes.
    prompt_logits = tiny_reference.logits(PROMPT[:1], PROMPT[1:])
    for place, (token, entry) in enumerate(
        zip(PROMPT[1:], answer["prompt_logprobs"][1:], strict=True)
    ):
        own = float(prompt_logits[place, token])
        assert entry[str(token)]["logprob"] == pytest.approx(own, abs=TOLERANCE)


def test_logprobs(server: Server, reference: ReferenceModel, tokenizer: Any) -> None:
    """`processed_logprobs` of the synchronous server, `raw_logprobs` of the other."""
    mode = "processed_logprobs" if "--no-async-scheduling" in server.flags else "raw_logprobs"
    prompt = tokenizer(prompts.VARIED[0])["input_ids"]
    answer = server.complete(prompt, **(SAMPLED | {"logprobs": 20, "max_tokens": 1}))
    (logprobs,) = reference.logprobs(prompt, answer["token_ids"])
    (told,) = told_of(answer)
    if mode == "raw_logprobs":
        assert len(told) == 20
        assert max(told.values()) == pytest.approx(float(logprobs.max()), abs=0.15)
    else:
        likely = {token: value for token, value in told.items() if value > -9000}
        assert len(likely) == TOP_K
        assert math.fsum(map(math.exp, likely.values())) == pytest.approx(1.0, abs=1e-4)
        first, last = sorted(likely.values(), reverse=True)[:: TOP_K - 1]
        best = logprobs.topk(TOP_K).values
        spread = float(best[0] - best[-1]) / TEMPERATURE
        assert first - last == pytest.approx(spread, abs=0.3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers_end_their_request_alone(
    servers: dict[str, Server], mode: str, temperature: float
) -> None:
    server = servers[mode]
    parameters = {"temperature": temperature, "seed": 3, "max_tokens": 24, "ignore_eos": True}
    alone = server.complete(PROMPT, **parameters)
    broken = [*PROMPT, models.NAN_TOKEN]

    def ask(prompt: list[int]) -> Any:
        return server.post("/v1/completions", prompt=prompt, return_token_ids=True, **parameters)

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(ask, [PROMPT, broken, PROMPT, broken]))
    for answer in answers[::2]:
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["token_ids"] == alone["token_ids"]
    for answer in answers[1::2]:
        assert answer.status_code == 500, answer.text
        assert "not numbers" in answer.text
    assert server.complete(PROMPT, **parameters)["token_ids"] == alone["token_ids"]


def test_a_step_that_is_built_on_no_token_fails_nobody(daemon: Daemon, model: Path) -> None:
    """The next step is sent before anybody knows that a row has no token."""
    broken = [*PROMPT, models.NAN_TOKEN]
    lens = [len(PROMPT), len(broken)]
    with ready_frontend(daemon.endpoint, model) as frontend:
        new = [new_request(0, PROMPT, [1]), new_request(1, broken, [2])]
        first = frontend.exec(
            new_requests=new,
            handles=[0, 1],
            num_computed_tokens=[0, 0],
            num_scheduled_tokens=lens,
        )
        second = frontend.exec(handles=[0, 1], num_computed_tokens=lens)
        errors = frontend.expect("StepResult", first)["row_errors"]
        assert [error["row"] for error in errors] == [1]
        tokens = frontend.expect("StepResult", second)["token_ids"]
        assert tokens[0] >= 0
