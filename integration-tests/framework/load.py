"""A frontend that is always busy: streams that begin anew as soon as they end."""

import statistics
import time
from collections import deque
from dataclasses import dataclass
from itertools import pairwise

from framework.frontend import Frontend, new_request
from framework.greedy import BLOCK_SIZE


@dataclass
class _Stream:
    handle: int
    blocks: list[int]
    # Tokens that it computes until it ends.
    length: int
    num_computed: int = 0
    is_open: bool = False


class Load:
    """Keeps `num_streams` requests running, two steps in flight, until it is told to stop.

    As vLLM's scheduler does, a step decodes a token of each stream whose prompt is complete and
    fills up with prompt tokens. The first outputs of the streams differ in length, so that they do
    not begin anew in one step.
    """

    def __init__(
        self,
        frontend: Frontend,
        *,
        num_streams: int,
        prompt_tokens: int,
        output_tokens: int,
        max_tokens: int = 2048,
    ) -> None:
        self._frontend = frontend
        self._prompt = [(7 * i) % 1000 + 5 for i in range(prompt_tokens)]
        self._length = prompt_tokens + output_tokens - 1
        self._max_tokens = max_tokens if num_streams > 1 else prompt_tokens
        blocks = -(-(self._length + 1) // BLOCK_SIZE)
        self._streams = [
            _Stream(
                n,
                list(range(1 + n * blocks, 1 + (n + 1) * blocks)),
                prompt_tokens + output_tokens * (n + 1) // num_streams - 1,
            )
            for n in range(num_streams)
        ]
        # When each step's results came, how many tokens it ran, and the stamps that bound them.
        self._steps: list[tuple[float, int]] = []
        self._begin = self._end = float("inf")

    def begin_measuring(self) -> None:
        """From now on steps count."""
        self._begin = time.monotonic()

    def end_measuring(self) -> dict[str, float]:
        """Stops. Tokens a second, and milliseconds between the results of steps."""
        self._end = time.monotonic()
        steps = [step for step in list(self._steps) if self._begin <= step[0] <= self._end]
        gaps = sorted(1000 * (after - before) for (before, _), (after, _) in pairwise(steps))
        # A step that has not come back yet is waited for already.
        gaps = gaps or [1000 * (self._end - self._begin)]
        return {
            "tokens_per_s": sum(tokens for _, tokens in steps) / (self._end - self._begin),
            "median_ms": statistics.median(gaps),
            "mean_ms": statistics.mean(gaps),
            "p90_ms": gaps[len(gaps) * 9 // 10],
            "max_ms": gaps[-1],
        }

    def run(self) -> None:
        """Sends steps until the measuring ends, then says goodbye."""
        in_flight: deque[tuple[int, int]] = deque()
        while time.monotonic() < self._end:
            if len(in_flight) == 2:
                self._read(*in_flight.popleft())
            in_flight.append(self._send())
        while in_flight:
            self._read(*in_flight.popleft())
        self._frontend.goodbye()
        self._frontend.close()

    def _send(self) -> tuple[int, int]:
        finished, new, rows = [], [], []
        room = self._max_tokens
        for stream in self._streams:
            if stream.num_computed >= stream.length:
                finished.append(stream.handle)
                stream.num_computed, stream.length = 0, self._length
                stream.is_open = False
        # Those that decode first, as vLLM schedules running requests before new ones.
        for stream in sorted(self._streams, key=lambda stream: not stream.is_open):
            left = len(self._prompt) - stream.num_computed
            count = min(max(left, 1), room)
            if count == 0:
                continue
            if not stream.is_open:
                new.append(new_request(stream.handle, self._prompt, stream.blocks))
                stream.is_open = True
            rows.append((stream.handle, stream.num_computed, count))
            stream.num_computed += count
            room -= count
        seq = self._frontend.exec(
            finished=finished,
            new_requests=new,
            handles=[row[0] for row in rows],
            num_computed_tokens=[row[1] for row in rows],
            num_scheduled_tokens=[row[2] for row in rows],
        )
        return seq, sum(row[2] for row in rows)

    def _read(self, seq: int, num_tokens: int) -> None:
        result = self._frontend.expect("StepResult", seq)
        assert not result["row_errors"], result
        self._steps.append((time.monotonic(), num_tokens))
