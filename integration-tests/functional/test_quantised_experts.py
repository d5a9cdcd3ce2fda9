"""Quantised experts behind the daemon: greedy tokens are those of the same weights in float32.

The checkpoints are those of the daemon's own tests of formats, of which each has a `plain` twin.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from framework import paths
from framework.daemon import Daemon
from framework.frontend import ready_frontend
from framework.greedy import generate

# Whose numbers are held as they are stored, so that no token may differ.
FORMATS = (
    "mlx-4bit-experts",
    "mlx-8bit-experts",
    "mlx-mxfp4-experts",
    "gguf-q4_0-experts",
    "gguf-q8_0-experts",
    "gguf-mxfp4-experts",
)
VOCAB_SIZE = 64
PROMPTS = [[(7 * length + 31 * i) % VOCAB_SIZE for i in range(length)] for length in (5, 33)]
NUM_TOKENS = 16


@pytest.fixture(scope="module")
def checkpoints(make_folder: Callable[[], Path]) -> Path:
    folder = make_folder()
    golden = paths.REPOSITORY / "daemon" / "tests" / "golden"
    for script, *arguments in (("make_formats.py",), ("make_gguf.py", "formats")):
        subprocess.run([sys.executable, golden / script, *arguments, folder], check=True)
    return folder


@pytest.mark.parametrize("name", FORMATS)
def test_tokens_are_those_of_the_plain_weights(
    daemon: Daemon, checkpoints: Path, name: str
) -> None:
    answers = []
    for folder in (checkpoints / name / "plain", checkpoints / name):
        with ready_frontend(daemon.endpoint, folder) as frontend:
            answers.append(generate(frontend, PROMPTS, NUM_TOKENS))
    assert answers[0] == answers[1]
