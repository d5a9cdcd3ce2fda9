"""Writes rope.json: rope frequencies as transformers computes them.

Run with the versions that the file names: `python make_rope_golden.py`.
"""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}

# What stands in config.json beside the dimensions, in the spellings of old and new checkpoints.
CASES: list[dict[str, Any]] = [
    {"head_dim": 64},
    {"head_dim": 64, "rope_theta": 100000.0},
    {"head_dim": 128, "rope_theta": 1000000, "rope_scaling": None},
    {"head_dim": 8, "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}},
    {"head_dim": 80, "rope_scaling": {"type": "linear", "factor": 4.0}},
    {"head_dim": 128, "rope_theta": 500000.0, "rope_scaling": LLAMA3},
    {"head_dim": 64, "rope_theta": 500000.0, "rope_scaling": LLAMA3 | {"factor": 32.0}},
    {"head_dim": 128, "rope_parameters": LLAMA3 | {"rope_theta": 250000.0}},
    {"head_dim": 128, "rope_scaling": YARN},
    {"head_dim": 64, "rope_theta": 1000000.0, "rope_scaling": YARN | {"truncate": False}},
    {"head_dim": 64, "rope_scaling": YARN | {"beta_fast": 16.0, "beta_slow": 2.0}},
    {"head_dim": 64, "rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 0.8}},
    {"head_dim": 64, "rope_scaling": YARN | {"attention_factor": 1.25}},
]


def solve(case: dict[str, Any]) -> dict[str, Any]:
    """The frequencies of one case, with the configuration that they are of."""
    shared = {"hidden_size": 2 * case["head_dim"], "num_attention_heads": 2}
    keys = shared | {"max_position_embeddings": 16384} | case
    # The constructor changes the dictionaries that it is given.
    config = LlamaConfig(**json.loads(json.dumps(keys)))
    kind = config.rope_parameters["rope_type"]
    init = ROPE_INIT_FUNCTIONS.get(kind, LlamaRotaryEmbedding.compute_default_rope_parameters)
    inv_freq, attention_factor = init(config)
    assert inv_freq.dtype == torch.float32
    return {
        "config": keys,
        "head_dim": case["head_dim"],
        "inv_freq": inv_freq.tolist(),
        "attention_factor": attention_factor,
    }


def main() -> None:
    """Writes the golden beside this file."""
    golden = {
        "made_by": "daemon/tests/golden/make_rope_golden.py",
        "with": {"transformers": transformers.__version__, "torch": torch.__version__},
        "cases": [solve(case) for case in CASES],
    }
    path = Path(__file__).with_name("rope.json")
    path.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
