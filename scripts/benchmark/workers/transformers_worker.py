"""transformers on torch's CPU backend, in bfloat16: all prompts at once, then greedy steps."""

import os
import time
from typing import Any

import loop
import torch
import transformers


def load(path: str) -> tuple[loop.Measure, dict[str, Any]]:
    """See `loop.serve`."""
    torch.set_num_threads(os.cpu_count() or 1)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()

    @torch.inference_mode()
    def measure(prompts: list[list[int]], decode: int) -> tuple[float, float]:
        cache = transformers.DynamicCache()
        tokens = torch.tensor(prompts)
        start = time.perf_counter()
        output = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        last = output.logits[:, -1:].argmax(-1)
        prefilled = time.perf_counter()
        for _ in range(decode):
            output = model(last, past_key_values=cache, use_cache=True)
            last = output.logits[:, -1:].argmax(-1)
        return prefilled - start, time.perf_counter() - prefilled

    versions = f"{transformers.__version__} on torch {torch.__version__}"
    return measure, {"version": versions, "threads": torch.get_num_threads()}


if __name__ == "__main__":
    loop.serve(load)
