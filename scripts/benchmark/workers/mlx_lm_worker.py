"""mlx-lm's models on MLX's CPU backend: its own loop, with the next step submitted while one runs.

`BENCH_DTYPE` says what plain weights are computed in; quantised ones stay as they are.
"""

import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import loop
import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

PREFILL_STEP = 512


def load(path: str) -> tuple[loop.Measure, dict[str, Any]]:
    """See `loop.serve`."""
    mx.set_default_device(mx.cpu)
    model, config = load_model(Path(path))
    dtype = os.environ.get("BENCH_DTYPE", "float32")
    model.set_dtype(getattr(mx, dtype))
    mx.eval(model.parameters())

    def measure(prompts: list[list[int]], decode: int) -> tuple[float, float]:
        cache = make_prompt_cache(model)
        tokens = mx.array(prompts)
        start = time.perf_counter()
        while tokens.shape[1] > PREFILL_STEP:
            model(tokens[:, :PREFILL_STEP], cache=cache)
            mx.eval([layer.state for layer in cache])
            tokens = tokens[:, PREFILL_STEP:]
        # All positions but the last need no logits; mlx-lm runs the last one by itself.
        if tokens.shape[1] > 1:
            model(tokens[:, :-1], cache=cache)
            mx.eval([layer.state for layer in cache])
        last = mx.argmax(model(tokens[:, -1:], cache=cache)[:, -1], axis=-1)
        mx.eval(last)
        prefilled = time.perf_counter()
        for _ in range(decode):
            following = mx.argmax(model(last[:, None], cache=cache)[:, -1], axis=-1)
            mx.async_eval(following)
            mx.eval(last)
            last = following
        mx.eval(last)
        return prefilled - start, time.perf_counter() - prefilled

    about = {
        "version": f"{version('mlx-lm')} on MLX {version('mlx')}",
        "dtype": dtype if "quantization" not in config else f"{dtype} activations",
    }
    return measure, about


if __name__ == "__main__":
    loop.serve(load)
