"""Models with a sliding window under vLLM's own scheduler: the reference's tokens, in less memory.

The checkpoints are rows of the daemon's table of families, with windows of 10 to 12 tokens. Each is
asked for what the table's reference has continued greedily, once and again: the second time the
prompt comes from the prefix cache, without the blocks that its windows have passed.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from framework import offline, paths
from framework.daemon import Daemon

# vLLM looks at each architecture in a process of its own, once on a machine.
pytestmark = pytest.mark.timeout(900)

NUM_PROMPT_TOKENS = 64
# By row of the table: its KV-cache groups, and how many of them see everything.
ROWS = {
    "mistral-sliding": (1, 0),
    "mixtral": (1, 0),
    "gemma2": (3, 1),
    "gemma3_text": (7, 1),
    "gpt_oss": (3, 1),
    "gpt_oss-mxfp4": (2, 1),
}
# Blocks that a window of at most 12 tokens may lie in.
BLOCKS_OF_A_WINDOW = 2


@pytest.fixture(scope="module")
def tokens(make_folder: Callable[[], Path]) -> dict[Path, list[int]]:
    """By the folder of a checkpoint: a prompt and its greedy continuation."""
    folder = make_folder()
    script = paths.REPOSITORY / "daemon" / "tests" / "golden" / "make_families.py"
    subprocess.run([sys.executable, str(script), str(folder), *ROWS], check=True)
    goldens = {name: load_file(folder / name / "golden.safetensors") for name in ROWS}
    return {folder / name: golden["token_ids"].tolist() for name, golden in goldens.items()}


@pytest.fixture(scope="module")
def results(daemon: Daemon, tokens: dict[Path, list[int]]) -> dict[str, offline.Result]:
    jobs = [
        offline.Job(
            str(folder),
            token_ids[:NUM_PROMPT_TOKENS],
            len(token_ids) - NUM_PROMPT_TOKENS,
            dtype="float32",
        )
        for folder, token_ids in tokens.items()
    ]
    return dict(zip(ROWS, offline.run(daemon, jobs), strict=True))


@pytest.mark.parametrize("name", ROWS)
def test_tokens_are_those_of_the_reference(
    results: dict[str, offline.Result], tokens: dict[Path, list[int]], name: str
) -> None:
    (expected,) = (token_ids for folder, token_ids in tokens.items() if folder.name == name)
    assert results[name].token_ids == [expected[NUM_PROMPT_TOKENS:]] * 2


@pytest.mark.parametrize("name", ROWS)
def test_a_group_with_a_window_holds_no_more_than_its_window(
    results: dict[str, offline.Result], tokens: dict[Path, list[int]], name: str
) -> None:
    num_groups, num_full = ROWS[name]
    assert results[name].num_groups == num_groups
    (num_tokens,) = {len(token_ids) for token_ids in tokens.values()}
    blocks_of_all = -(-num_tokens // offline.BLOCK_SIZE)
    windowed = (num_groups - num_full) * BLOCKS_OF_A_WINDOW
    assert 0 < results[name].num_blocks <= num_full * blocks_of_all + windowed
    assert results[name].num_blocks < num_groups * blocks_of_all
