"""mlx-lm's generation loop on a folder of weights, as JSON lines: what metald is compared with.

A batch of equal prompts is prefilled in chunks, then decoded greedily: the next step is built while
the last one runs, as in `mlx_lm.generate.generate_step`.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

PROMPT, DECODE, REPEAT, WARMUP = 512, 64, 3, 1
CHUNK_TOKENS = 8192


def measure(model: Any, batch: int) -> tuple[float, float]:
    """Returns the tokens a second of one prefill and of one decode."""
    prompt = mx.random.randint(0, 1000, (batch, PROMPT))
    cache = make_prompt_cache(model)
    mx.eval(prompt)
    started = time.perf_counter()
    chunk = max(1, CHUNK_TOKENS // batch)
    for first in range(0, PROMPT, chunk):
        logits = model(prompt[:, first : first + chunk], cache=cache)
        mx.eval(logits[:, -1])
    token = mx.argmax(logits[:, -1], axis=-1)
    mx.eval(token)
    prefilled = time.perf_counter()
    for _ in range(DECODE):
        following = mx.argmax(model(token[:, None], cache=cache)[:, -1], axis=-1)
        mx.async_eval(following)
        token.tolist()
        token = following
    mx.eval(token)
    decoded = time.perf_counter()
    return batch * PROMPT / (prefilled - started), batch * DECODE / (decoded - prefilled)


def main(folder: str, batches: list[str]) -> None:
    """Measures each batch size."""
    model, _ = load_model(Path(folder))
    for batch in map(int, batches):
        runs = [measure(model, batch) for _ in range(WARMUP + REPEAT)][WARMUP:]
        prefill, decode = (statistics.median(column) for column in zip(*runs, strict=True))
        row = {
            "program": "mlx-lm",
            "model": folder,
            "concurrency": batch,
            "decode": DECODE,
            "prefill_tokens_per_s": round(prefill, 1),
            "decode_tokens_per_s": round(decode, 1),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
