"""A scheduler of a page, for tests that want tokens from a `Frontend`.

Prompts run in chunks of the session's size; all requests decode together, one step at a time, or
with the next step sent before the last one is read, as vLLM's asynchronous scheduling does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from framework.frontend import Frontend, new_request
from framework.wire import Body

BLOCK_SIZE = 16


@dataclass
class _Request:
    handle: int
    prompt: list[int]
    blocks: list[int]
    num_tokens: int
    num_computed: int = 0
    output: list[int] = field(default_factory=list)


def generate(
    frontend: Frontend,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    *,
    chunk: int = 256,
    pipelined: bool = False,
    **sampling: object,
) -> list[list[int]]:
    """The tokens that follow each prompt, all prompts in one batch.

    Args:
        frontend: with a cache whose blocks nobody else uses.
        prompts: token ids.
        num_tokens: tokens to sample for each.
        chunk: most prompt tokens of one request in one step.
        pipelined: send each decode step before the last one is read.
        sampling: fields of SamplingParams other than the greedy ones.
    """
    requests = []
    first_block = 1
    for handle, prompt in enumerate(prompts):
        num_blocks = -(-(len(prompt) + num_tokens) // BLOCK_SIZE)
        blocks = list(range(first_block, first_block + num_blocks))
        first_block += num_blocks
        requests.append(_Request(handle, list(prompt), blocks, num_tokens))
    for request in requests:
        _prefill(frontend, request, chunk, sampling)
    in_flight: list[int] = []
    for _ in range(num_tokens - 1):
        in_flight.append(_send_decode(frontend, requests))
        if not pipelined or len(in_flight) == 2:
            _read_decode(frontend, requests, in_flight.pop(0))
    for seq in in_flight:
        _read_decode(frontend, requests, seq)
    frontend.step(finished=[request.handle for request in requests])
    return [request.output for request in requests]


def _prefill(frontend: Frontend, request: _Request, chunk: int, sampling: Body) -> None:
    while request.num_computed < len(request.prompt):
        count = min(chunk, len(request.prompt) - request.num_computed)
        new = []
        if request.num_computed == 0:
            new = [new_request(request.handle, request.prompt, request.blocks, **sampling)]
        result = frontend.step(
            new_requests=new,
            handles=[request.handle],
            num_computed_tokens=[request.num_computed],
            num_scheduled_tokens=[count],
        )
        request.num_computed += count
        (token,) = result["token_ids"]
        assert (token == -1) == (request.num_computed < len(request.prompt)), result
    request.output.append(token)


def _send_decode(frontend: Frontend, requests: list[_Request]) -> int:
    seq = frontend.exec(
        handles=[request.handle for request in requests],
        num_computed_tokens=[request.num_computed for request in requests],
    )
    for request in requests:
        request.num_computed += 1
    return seq


def _read_decode(frontend: Frontend, requests: list[_Request], seq: int) -> None:
    result = frontend.expect("StepResult", seq)
    assert not result["row_errors"], result
    for request, token in zip(requests, result["token_ids"], strict=True):
        request.output.append(token)
