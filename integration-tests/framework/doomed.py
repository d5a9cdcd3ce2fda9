"""A frontend in a process of its own, to be killed: `python -m framework.doomed ENDPOINT MODEL`.

Writes a line when its session runs steps, and goes on with them until it is killed.
"""

import subprocess
import sys
from pathlib import Path
from typing import Final

from framework.frontend import ready_frontend
from framework.greedy import generate

_PROMPT: Final = list(range(5, 45))
_NUM_TOKENS: Final = 16


def start(endpoint: str, model: Path) -> subprocess.Popen[str]:
    """Starts one, and waits until it runs steps."""
    process = subprocess.Popen(
        [sys.executable, "-m", "framework.doomed", endpoint, str(model)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    return process


def main(endpoint: str, model: str) -> None:
    """Generates for ever."""
    frontend = ready_frontend(endpoint, model, num_blocks=64, memory_fraction=0.05)
    generate(frontend, [_PROMPT], _NUM_TOKENS)
    sys.stdout.write("running\n")
    sys.stdout.flush()
    while True:
        generate(frontend, [_PROMPT, _PROMPT[1:]], _NUM_TOKENS, pipelined=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
