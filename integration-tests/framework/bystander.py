"""A session that keeps decoding while something else goes wrong."""

import threading
import time
from pathlib import Path
from typing import Final, Self

from framework.frontend import ready_frontend
from framework.greedy import generate

_PROMPT: Final = [5, 17, 200, 31, 8, 9]
_NUM_TOKENS: Final = 8
_TIMEOUT_S: Final = 60.0


class Bystander:
    """Generates the same tokens over and over on a thread; any difference or error fails."""

    def __init__(self, endpoint: str, model: Path) -> None:
        self._frontend = ready_frontend(endpoint, model, num_blocks=64)
        self._expected = generate(self._frontend, [_PROMPT], _NUM_TOKENS)
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self.num_rounds = 0
        self.round_s: list[float] = []
        self._thread = threading.Thread(target=self._run, name="bystander")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._frontend.close()
        if self._failure is not None:
            raise AssertionError("the bystander was disturbed") from self._failure

    def forget_times(self) -> None:
        """Begins to measure its rounds anew."""
        self.round_s = []

    def wait_for_rounds(self, num_rounds: int) -> None:
        """Waits until it has done so many rounds."""
        deadline = time.monotonic() + _TIMEOUT_S
        while self.num_rounds < num_rounds and self._failure is None:
            assert time.monotonic() < deadline, "the bystander stands still"
            time.sleep(0.02)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                started = time.monotonic()
                tokens = generate(self._frontend, [_PROMPT], _NUM_TOKENS)
                self.round_s.append(time.monotonic() - started)
                assert tokens == self._expected, tokens
                self.num_rounds += 1
                # Leaves the processor to what it watches.
                self._stop.wait(0.1)
            self._frontend.goodbye()
        except BaseException as error:
            self._failure = error
