"""llama.cpp through its C interface: one batch of all prompts, then batches of one token of each.

This is what its own `llama-batched-bench` does, with its own greedy sampler.
"""

import ctypes
import time
from importlib.metadata import version
from typing import Any

import llama_cpp as llama
import loop

THREADS = 2
BATCH_TOKENS = 2048


class Context:
    """A model, and a context that is made anew for each number of sequences."""

    def __init__(self, path: str) -> None:
        llama.llama_backend_init()
        self._model = llama.llama_model_load_from_file(
            path.encode(), llama.llama_model_default_params()
        )
        self._sampler = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        llama.llama_sampler_chain_add(self._sampler, llama.llama_sampler_init_greedy())
        self._batch = llama.llama_batch_init(BATCH_TOKENS, 0, 1)
        self._sequences = 0
        self._context: Any = None

    def reserve(self, sequences: int, tokens: int) -> None:
        """Makes an empty cache for so many sequences of so many tokens."""
        if self._context is not None:
            llama.llama_free(self._context)
        params = llama.llama_context_default_params()
        # A context is divided evenly among its sequences, in steps of 256 tokens.
        params.n_ctx = sequences * -(-tokens // 256) * 256
        params.n_batch = BATCH_TOKENS
        params.n_ubatch = 512
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = THREADS
        params.no_perf = True
        self._context = llama.llama_init_from_model(self._model, params)
        if self._context is None:
            raise RuntimeError(f"no context for {sequences} sequences of {tokens} tokens")

    def run(self, tokens: list[tuple[int, int, int, bool]]) -> dict[int, int]:
        """Runs (sequence, position, token, whether it is sampled); returns tokens by sequence."""
        sampled: dict[int, int] = {}
        for begin in range(0, len(tokens), BATCH_TOKENS):
            part = tokens[begin : begin + BATCH_TOKENS]
            batch = self._batch
            batch.n_tokens = len(part)
            for index, (sequence, position, token, is_sampled) in enumerate(part):
                batch.token[index] = token
                batch.pos[index] = position
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = sequence
                batch.logits[index] = is_sampled
            status = llama.llama_decode(self._context, batch)
            if status != 0:
                raise RuntimeError(f"llama_decode returned {status}")
            for index, (sequence, _, _, is_sampled) in enumerate(part):
                if is_sampled:
                    sampled[sequence] = llama.llama_sampler_sample(
                        self._sampler, self._context, index
                    )
        return sampled


def load(path: str) -> tuple[loop.Measure, dict[str, Any]]:
    """See `loop.serve`."""
    context = Context(path)

    def measure(prompts: list[list[int]], decode: int) -> tuple[float, float]:
        length = len(prompts[0])
        context.reserve(len(prompts), length + decode + 1)
        start = time.perf_counter()
        last = context.run(
            [
                (sequence, position, token, position == length - 1)
                for sequence, prompt in enumerate(prompts)
                for position, token in enumerate(prompt)
            ]
        )
        prefilled = time.perf_counter()
        for step in range(decode):
            last = context.run([(s, length + step, token, True) for s, token in last.items()])
        return prefilled - start, time.perf_counter() - prefilled

    system: bytes = llama.llama_print_system_info()
    about = {"version": version("llama-cpp-python"), "threads": THREADS, "built": system.decode()}
    return measure, about


def silence() -> None:
    """llama.cpp logs every tensor."""
    callback = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(callback, ctypes.c_void_p(0))
    globals()["_kept"] = callback


if __name__ == "__main__":
    silence()
    loop.serve(load)
