"""What sampling adds to a decode step: `python -m performance.bench_sampling [smollm2|qwen2]`.

Asserts nothing. 64 rows of one model decode with two steps in flight, some steps at a time with
each kind of parameters in turn, so that other load meets all kinds. Printed is the time of a step
and what it is of the greedy step's. The models: SmolLM2 135M with its own weights, whose vocabulary
has 49,152 entries, and the shape of Qwen 2.5 0.5B with random ones and 151,936. Random weights make
flat logits, which is the sampler's worst case: nearly every token is a candidate.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from framework import models
from framework.daemon import Daemon
from framework.frontend import Frontend, new_request, ready_frontend
from framework.greedy import BLOCK_SIZE

NUM_ROWS: Final = 64
PROMPT_TOKENS: Final = 16
STEPS_A_TURN: Final = 4
NUM_TURNS: Final = 6
_PENALTIES: Final[dict[str, Any]] = {
    "presence_penalty": 0.5,
    "frequency_penalty": 0.2,
    "repetition_penalty": 1.1,
}
_NUCLEUS: Final[dict[str, Any]] = {"temperature": 0.8, "top_p": 0.9}
KINDS: Final[dict[str, dict[str, Any]]] = {
    "greedy": {},
    "temperature": {"temperature": 0.8},
    "temperature + top-p + top-k + penalties": _NUCLEUS | _PENALTIES | {"top_k": 50},
    "the same + 5 logprobs": _NUCLEUS | _PENALTIES | {"top_k": 50, "logprobs": 5},
}


def qwen_shape(folder: Path) -> Path:
    """A random Qwen2 of the size of Qwen 2.5 0.5B."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).bfloat16().save_pretrained(folder)
    return folder


class Rows:
    """The requests of one kind, all decoding."""

    def __init__(self, frontend: Frontend, number: int, sampling: dict[str, Any]) -> None:
        self._frontend = frontend
        self._num_tokens = PROMPT_TOKENS
        first = number * NUM_ROWS
        self._handles = list(range(first, first + NUM_ROWS))
        blocks = -(-(PROMPT_TOKENS + NUM_TURNS * STEPS_A_TURN + 1) // BLOCK_SIZE)
        # In parts: a frontend without a heartbeat may be silent for a few seconds only.
        for part in (self._handles[i : i + 8] for i in range(0, NUM_ROWS, 8)):
            frontend.step(
                new_requests=[
                    new_request(
                        handle,
                        [(31 * handle + 7 * i) % 40_000 for i in range(PROMPT_TOKENS)],
                        list(range(1 + handle * blocks, 1 + (handle + 1) * blocks)),
                        **({"seed": handle} | sampling),
                    )
                    for handle in part
                ],
                handles=part,
                num_computed_tokens=[0] * len(part),
                num_scheduled_tokens=[PROMPT_TOKENS] * len(part),
            )

    def take_a_turn(self) -> float:
        """Some steps. Returns the seconds of each."""
        start = time.perf_counter()
        in_flight = [self._send()]
        for _ in range(STEPS_A_TURN - 1):
            in_flight.append(self._send())
            self._frontend.expect("StepResult", in_flight.pop(0))
        self._frontend.expect("StepResult", in_flight.pop())
        return (time.perf_counter() - start) / STEPS_A_TURN

    def _send(self) -> int:
        computed = [self._num_tokens] * NUM_ROWS
        self._num_tokens += 1
        return self._frontend.exec(handles=self._handles, num_computed_tokens=computed)


def measure(daemon: Daemon, model: Path) -> None:
    """Prints one model's table."""
    with ready_frontend(
        daemon.endpoint,
        model,
        dtype="bfloat16",
        num_blocks=2048,
        max_num_seqs=len(KINDS) * NUM_ROWS,
        max_num_batched_tokens=NUM_ROWS * PROMPT_TOKENS,
    ) as frontend:
        rows = {
            name: Rows(frontend, number, sampling)
            for number, (name, sampling) in enumerate(KINDS.items())
        }
        times: dict[str, list[float]] = {name: [] for name in KINDS}
        for _ in range(NUM_TURNS):
            for name in KINDS:
                times[name].append(rows[name].take_a_turn())
        print(f"\n{model.name}, vocabulary {frontend.vocab_size}, {NUM_ROWS} rows")
        frontend.goodbye()
    for name, values in times.items():
        ratios = [value / greedy for value, greedy in zip(values, times["greedy"], strict=True)]
        print(
            f"{name:42} median {1e3 * statistics.median(values):7.1f} ms "
            f"[{1e3 * min(values):.1f} {1e3 * max(values):.1f}]   "
            f"{statistics.median(ratios):5.3f} of greedy"
        )


MODELS: Final[dict[str, Callable[[Path], Path]]] = {
    "smollm2": lambda _: models.real("smollm2-135m"),
    "qwen2": lambda folder: qwen_shape(folder / "qwen2-0.5b-random"),
}


def main() -> None:
    """Starts a daemon and measures the models that are named, or all."""
    with tempfile.TemporaryDirectory(prefix="metal-rpc-", dir="/tmp") as name:
        folder = Path(name)
        with Daemon(folder) as daemon:
            for model in sys.argv[1:] or MODELS:
                measure(daemon, MODELS[model](folder))


if __name__ == "__main__":
    main()
