"""Writes sampler.safetensors: what vLLM's own sampler ops make of adversarial logits, on the CPU.

Each case is one row of logits with one set of parameters. Kept is the distribution before the
draw, as `processed_logprobs`; NaN marks rows of which vLLM makes none. The scores of given tokens
are kept for every row of logits without NaN.

Run: `.venv/bin/python daemon/tests/golden/make_sampler_golden.py`

Source: vllm/v1/sample/sampler.py and the ops it calls; xgrammar's CPU kernel for the grammar.
"""

import json
import os
import pathlib
from types import SimpleNamespace
from typing import Any

# One op is compiled for the sake of memory alone; eager, it is the same op.
os.environ["TORCH_COMPILE_DISABLE"] = "1"

import numpy as np
import safetensors.numpy
import torch
import vllm
import xgrammar
from vllm.utils import torch_utils
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessors
from vllm.v1.sample.logits_processor.builtin import (
    LogitBiasLogitsProcessor,
    MinPLogitsProcessor,
    MinTokensLogitsProcessor,
)
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.ops import penalties
from vllm.v1.sample.sampler import Sampler

VOCAB_SIZE = 75
"""Not a multiple of 32, so that the last word of a grammar is partly unused."""

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
OUTPUT = [8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 8, 8]
NUM_SCORED = 5


def logits_rows() -> np.ndarray:
    """Random logits of several widths, and the ones that break samplers."""
    random = np.random.default_rng(0x5EED)
    inf = np.inf
    wide = random.normal(0, 4, VOCAB_SIZE)
    masked = np.where(random.random(VOCAB_SIZE) < 0.6, -inf, wide)
    lonely = np.full(VOCAB_SIZE, -inf)
    lonely[74] = -2.5
    with_inf = wide.copy()
    with_inf[[7, 40]] = inf
    with_nan = wide.copy()
    with_nan[33] = np.nan
    rows = [
        wide,
        random.normal(0, 0.3, VOCAB_SIZE),
        random.integers(-2, 4, VOCAB_SIZE),
        np.full(VOCAB_SIZE, 1.5),
        np.where(np.arange(VOCAB_SIZE) == 12, 60.0, random.normal(0, 1, VOCAB_SIZE)),
        masked,
        lonely,
        np.full(VOCAB_SIZE, -inf),
        with_inf,
        with_nan,
        random.normal(0, 1, VOCAB_SIZE) * 1e30,
        np.repeat([0.0, -0.0, 2.0], VOCAB_SIZE // 3),
    ]
    return np.stack(rows).astype(np.float32)


def parameter_sets() -> list[dict[str, Any]]:
    """Each parameter alone at its extremes, then mixtures; absent keys are the defaults."""
    sets: list[dict[str, Any]] = [{}, {"temperature": 0.0}, {"temperature": 0.01}]
    sets += [{"temperature": value} for value in (0.3, 0.7, 2.0)]
    sets += [{"top_k": value} for value in (1, 2, 7, 74, 75, 5000)]
    sets += [{"top_p": value} for value in (0.0, 1e-6, 0.1, 0.25, 0.5, 0.9, 0.999999, 1.0)]
    sets += [{"min_p": value} for value in (1e-6, 0.05, 0.3, 1.0)]
    sets += [
        {"top_k": 10, "top_p": 0.5},
        {"top_k": 3, "top_p": 0.999, "temperature": 0.6},
        {"top_k": 40, "min_p": 0.02, "top_p": 0.8, "temperature": 1.4},
        {"min_p": 0.2, "top_p": 0.7},
    ]
    edits: list[dict[str, Any]] = [
        {"presence_penalty": 0.7},
        {"presence_penalty": -2.0},
        {"frequency_penalty": 0.9},
        {"frequency_penalty": -0.4},
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.5},
        {"presence_penalty": 0.2, "frequency_penalty": 0.3, "repetition_penalty": 1.1},
        {"min_tokens": 13, "stop_token_ids": [2, 12, 74]},
        {"min_tokens": 12, "stop_token_ids": [2, 12, 74]},
        {"logit_bias": [[12, -100.0], [0, 5.5], [74, 1.25]]},
        {"allowed_token_ids": [5, 12, 13, 40, 74]},
        {"allowed_token_ids": [8]},
        {"bad_words_token_ids": [[12], [8, 8, 9], [8, 7], [6, 8, 8, 10], [1] * 20]},
        {"grammar": [0x00F01234, -2, 0x7F]},
        {"grammar": [1 << 12 | 1 << 2, 0, 0], "min_tokens": 20, "stop_token_ids": [2, 12]},
        {"grammar": [1 << 12 | 1 << 8, 0, 0], "min_tokens": 20, "stop_token_ids": [2, 12]},
    ]
    for edit in edits:
        sets += [edit | {"temperature": 0.0}, edit]
    sets.append(
        {
            "temperature": 0.8,
            "top_k": 20,
            "top_p": 0.9,
            "min_p": 0.01,
            "presence_penalty": 0.5,
            "frequency_penalty": 0.25,
            "repetition_penalty": 1.2,
            "min_tokens": 50,
            "stop_token_ids": [3, 9],
            "logit_bias": [[8, 2.0], [11, -1.0]],
            "allowed_token_ids": list(range(60)),
            "bad_words_token_ids": [[10], [8, 20]],
            "grammar": [-1, 0x0FFFFFFF, -1],
        }
    )
    return sets


def processors(params: dict[str, Any]) -> LogitsProcessors:
    """The logits processors that are built into vLLM, told of one request."""
    request = SimpleNamespace(
        min_p=params.get("min_p", 0.0),
        logit_bias=dict(params.get("logit_bias", [])),
        min_tokens=params.get("min_tokens", 0),
        all_stop_token_ids=set(params.get("stop_token_ids", [])),
        structured_outputs=params.get("grammar"),
    )
    config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=1))
    device = torch.device("cpu")
    made = [
        processor(config, device, False)
        for processor in (MinTokensLogitsProcessor, LogitBiasLogitsProcessor, MinPLogitsProcessor)
    ]
    update = BatchUpdate(
        batch_size=1, removed=[], added=[(0, request, list(PROMPT), list(OUTPUT))], moved=[]
    )
    for processor in made:
        processor.update_state(update)
    return LogitsProcessors(made)


def metadata(params: dict[str, Any]) -> SamplingMetadata:
    """The batch of one request, as vLLM's `InputBatch` would describe it."""
    temperature = params.get("temperature", 1.0)
    top_k, top_p = params.get("top_k", 0), params.get("top_p", 1.0)
    penalty_values = [
        torch.tensor([params.get(name, default)], dtype=torch.float32)
        for name, default in (
            ("frequency_penalty", 0.0),
            ("presence_penalty", 0.0),
            ("repetition_penalty", 1.0),
        )
    ]
    disallowed = None
    if allowed := params.get("allowed_token_ids"):
        disallowed = torch.ones((1, VOCAB_SIZE), dtype=torch.bool)
        disallowed[0, allowed] = False
    words = params.get("bad_words_token_ids")
    return SamplingMetadata(
        temperature=torch.tensor([temperature], dtype=torch.float32),
        all_greedy=temperature < 1e-5,
        all_random=temperature >= 1e-5,
        top_p=None if top_p == 1.0 else torch.tensor([top_p], dtype=torch.float32),
        top_k=torch.tensor([top_k]) if 0 < top_k < VOCAB_SIZE else None,
        generators={},
        max_num_logprobs=0,
        no_penalties=False,
        prompt_token_ids=torch.tensor([PROMPT]),
        frequency_penalties=penalty_values[0],
        presence_penalties=penalty_values[1],
        repetition_penalties=penalty_values[2],
        output_token_ids=[list(OUTPUT)],
        allowed_token_ids_mask=disallowed,
        bad_words_token_ids={0: words} if words else {},
        logitsprocs=processors(params),
    )


def processed_logprobs(sampler: Sampler, row: np.ndarray, params: dict[str, Any]) -> np.ndarray:
    """The distribution that vLLM would draw this row by."""
    logits = torch.tensor(row[None])
    if grammar := params.get("grammar"):
        xgrammar.apply_token_bitmask_inplace(logits, torch.tensor([grammar], dtype=torch.int32))
    sampling = metadata(params)
    logits = sampler.apply_logits_processors(logits, sampling, False)
    _, logprobs = sampler.sample(logits, sampling)
    assert logprobs is not None
    return logprobs[0].numpy()


def sort_stably() -> None:
    """Makes torch order equal logits by token id.

    vLLM's top-p sorts without asking for that, so which of several equal tokens it cuts depends on
    torch's algorithm; only their number is defined.
    """
    unstable = torch.Tensor.sort

    def stable(tensor: torch.Tensor, dim: int, descending: bool) -> Any:
        return unstable(tensor, dim=dim, descending=descending, stable=True)

    torch.Tensor.sort = stable  # type: ignore[method-assign, assignment]


def pin_nothing() -> None:
    """Keeps the ops from pinning memory, which needs a GPU."""
    torch_utils.PIN_MEMORY = False
    penalties.PIN_MEMORY = False


def main() -> None:
    """Computes all cases and writes the file."""
    pin_nothing()
    sort_stably()
    rows, sets = logits_rows(), parameter_sets()
    sampler = Sampler(logprobs_mode="processed_logprobs")
    processed = [processed_logprobs(sampler, row, params) for row in rows for params in sets]

    targets = np.arange(0, VOCAB_SIZE, 7)
    scored = [
        sampler.gather_logprobs(
            sampler.compute_logprobs(torch.tensor(row).expand(len(targets), -1)),
            NUM_SCORED,
            torch.tensor(targets),
        )
        for row in rows
    ]
    ranks = np.stack([score.selected_token_ranks.numpy() for score in scored])
    tensors = {
        "logits": rows,
        "processed_logprobs": np.stack(processed),
        "targets": targets.astype(np.int32),
        "scores": np.stack([score.logprobs.numpy() for score in scored]),
        "ranks": ranks.astype(np.int32),
    }
    about = {
        "made_by": "daemon/tests/golden/make_sampler_golden.py",
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        "prompt": json.dumps(PROMPT),
        "output": json.dumps(OUTPUT),
        "params": json.dumps(sets),
    }
    path = pathlib.Path(__file__).with_name("sampler.safetensors")
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path, about
    )
    print(f"{path.name}: {len(processed)} cases, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
