"""What all workers do: answer requests for measurements, one JSON line each, until the input ends.

A worker runs in the environment of the engine that it measures, so it imports nothing of this
project but this file. The engine may write what it likes to standard error, and to what Python
calls `sys.stdout`: the answers have a stream of their own.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any, Final

PROCESS_START_S: Final = time.time()
VOCABULARY: Final = 49_000
_SHORT_PROMPT: Final = 8

# measure(prompts, decode): seconds until all first tokens were there, and seconds of `decode`
# steps after them.
Measure = Callable[[list[list[int]], int], tuple[float, float]]


def prompts(concurrency: int, length: int, seed: int) -> list[list[int]]:
    """Random tokens, the same for every engine."""
    source = random.Random(seed)
    return [[source.randrange(100, VOCABULARY) for _ in range(length)] for _ in range(concurrency)]


def serve(load: Callable[[str], tuple[Measure, dict[str, Any]]]) -> None:
    """Loads the model that the command line names, says so, and measures until the input ends.

    Args:
        load: From the model's path to the function that measures, and what people should know of
            the engine: its version at least.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(**fields: Any) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    measure, about = load(sys.argv[1])
    load_s = time.time() - PROCESS_START_S
    measure(prompts(1, _SHORT_PROMPT, 0), 1)
    answer(load_s=load_s, first_token_s=time.time() - PROCESS_START_S, **about)
    for line in sys.stdin:
        request = json.loads(line)
        batch = prompts(request["concurrency"], request["prompt"], request["seed"])
        prefill_s, decode_s = measure(batch, request["decode"])
        answer(prefill_s=prefill_s, decode_s=decode_s)
