"""Many streams at once, asked again and again while something goes wrong."""

import statistics
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final, Self

from framework.server import Server

_START_TIMEOUT_S: Final = 120.0
# Tokens that had left the daemon before its end arrive this long after it, at most.
_ON_THEIR_WAY_S: Final = 0.1


class Streams:
    """Streams each body over and over; a round with other tokens than expected, or an error, fails.

    The tokens of a body must depend on it alone: greedy, or seeded.
    """

    def __init__(
        self, server: Server, bodies: list[dict[str, Any]], expected: list[list[int]]
    ) -> None:
        self._server = server
        self._bodies = bodies
        self._expected = expected
        self._stop = threading.Event()
        self._failures: list[BaseException] = []
        self._arrivals: list[list[float]] = [[] for _ in bodies]
        self.num_rounds = 0
        self._threads = [
            threading.Thread(target=self._run, args=(index,)) for index in range(len(bodies))
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Lets every stream finish its round."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self._failures:
            raise AssertionError(f"{len(self._failures)} streams failed") from self._failures[0]

    def wait_until_all_flow(self) -> None:
        """Waits until every stream has brought a token from now on."""
        since = time.monotonic()
        deadline = since + _START_TIMEOUT_S
        while not all(times and times[-1] > since for times in self._arrivals):
            assert time.monotonic() < deadline, "some streams stand still"
            if self._failures:
                return
            time.sleep(0.01)

    def pauses_s(self, moments: list[float]) -> list[float]:
        """How long each stream stood still at each of the moments, in seconds."""
        return [
            after - before
            for times in self._arrivals
            for before, after in pairwise(times)
            if any(before < moment + _ON_THEIR_WAY_S < after for moment in moments)
        ]

    def _run(self, index: int) -> None:
        try:
            while not self._stop.is_set():
                tokens = []
                for token_ids in _token_ids(self._server, self._bodies[index]):
                    tokens += token_ids
                    self._arrivals[index].append(time.monotonic())
                assert tokens == self._expected[index], f"stream {index}: {tokens}"
                self.num_rounds += 1
        except BaseException as error:
            self._failures.append(error)


def median_and_max(seconds: list[float]) -> str:
    """For people."""
    return f"median {statistics.median(seconds):.2f} s, maximum {max(seconds):.2f} s"


def _token_ids(server: Server, body: dict[str, Any]) -> Iterator[list[int]]:
    for event in server.stream("/v1/completions", **body):
        if token_ids := event["choices"][0].get("token_ids"):
            yield token_ids
