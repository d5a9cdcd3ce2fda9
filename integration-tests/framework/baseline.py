"""What a model says when it is asked one thing at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from framework.frontend import Frontend, ready_frontend
from framework.greedy import generate

_NUM_BLOCKS: Final = 128


class Baseline:
    """Greedy tokens of single requests, unchunked, one step at a time, without vLLM.

    The daemon's results do not depend on what shares a batch, so this is what any server has to
    answer, however it schedules.
    """

    def __init__(self, endpoint: str, model: Path, dtype: str = "bfloat16") -> None:
        self._endpoint = endpoint
        self._model = model
        self._dtype = dtype
        self._known: dict[tuple[int, ...], list[int]] = {}

    def greedy(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        """The tokens after each prompt."""
        missing = [
            prompt
            for prompt in map(tuple, prompts)
            if len(self._known.get(prompt, [])) < num_tokens
        ]
        if missing:
            with self._frontend() as frontend:
                for prompt in missing:
                    (tokens,) = generate(frontend, [prompt], num_tokens, chunk=len(prompt))
                    self._known[prompt] = tokens
                frontend.goodbye()
        return [self._known[tuple(prompt)][:num_tokens] for prompt in prompts]

    def _frontend(self) -> Frontend:
        return ready_frontend(
            self._endpoint,
            self._model,
            dtype=self._dtype,
            num_blocks=_NUM_BLOCKS,
            max_num_batched_tokens=1024,
        )
