"""`LLM(...)` without a server: `python -m framework.offline` runs models one after the other.

Reads a list of jobs from standard input, as JSON, and writes a list of results to the file that
the command line names. The engine runs in this process and has no tokenizer (Gemma's takes ten
seconds), so a model costs a few seconds where a server takes twenty, and what its scheduler holds
can be seen between steps.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from framework import paths
from framework.daemon import Daemon, environment

BLOCK_SIZE: Final = 16
_TIMEOUT_S: Final = 600


class Job(NamedTuple):
    """A greedy request of a model."""

    model: str
    prompt: list[int]
    num_tokens: int
    dtype: Literal["float32", "bfloat16"]


class Result(NamedTuple):
    """What became of a job.

    Attributes:
        token_ids: Its tokens; the second time its prompt came from the prefix cache.
        num_groups: KV-cache groups of the model.
        num_blocks: Blocks that the request held when it had its last token but one.
    """

    token_ids: list[list[int]]
    num_groups: int
    num_blocks: int


def run(daemon: Daemon, jobs: Sequence[Job], **variables: str) -> list[Result]:
    """Runs jobs against a daemon, in a process of their own with more environment variables."""
    output = daemon.folder / "offline.json"
    variables = environment(daemon.folder, VLLM_ENABLE_V1_MULTIPROCESSING="0", **variables)
    result = subprocess.run(
        [sys.executable, "-m", "framework.offline", str(output)],
        input=json.dumps(jobs),
        env=variables,
        cwd=paths.REPOSITORY / "integration-tests",
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert result.returncode == 0, f"{result.stderr[-8000:]}\n{daemon.log()}"
    return [Result(*fields) for fields in json.loads(output.read_text())]


def _run(job: Job) -> Result:
    # Slow to import, and not needed by whoever starts this.
    from vllm import LLM

    llm = LLM(
        job.model,
        skip_tokenizer_init=True,
        dtype=job.dtype,
        max_model_len=len(job.prompt) + job.num_tokens,
        block_size=BLOCK_SIZE,
        max_num_seqs=2,
        max_num_batched_tokens=2 * BLOCK_SIZE,
        gpu_memory_utilization=0.2,
        num_gpu_blocks_override=128,
        generation_config="vllm",
    )
    try:
        core: Any = llm.llm_engine.engine_core
        scheduler = core.engine_core.scheduler
        pool = scheduler.kv_cache_manager.block_pool
        answers = [_generate(llm, job, pool) for _ in range(2)]
        return Result(
            token_ids=[tokens for tokens, _ in answers],
            num_groups=len(scheduler.kv_cache_config.kv_cache_groups),
            num_blocks=answers[0][1],
        )
    finally:
        llm.llm_engine.engine_core.shutdown()


def _generate(llm: Any, job: Job, pool: Any) -> tuple[list[int], int]:
    """The tokens of a job, and the blocks that it held before its last step."""
    from vllm import SamplingParams

    engine = llm.llm_engine
    params = SamplingParams(
        temperature=0.0, max_tokens=job.num_tokens, ignore_eos=True, detokenize=False
    )
    num_free = pool.get_num_free_blocks()
    engine.add_request(str(num_free), {"prompt_token_ids": job.prompt}, params)
    tokens: list[int] = []
    num_held = 0
    while engine.has_unfinished_requests():
        num_held = num_free - pool.get_num_free_blocks()
        for output in engine.step():
            tokens = list(output.outputs[0].token_ids)
    return tokens, num_held


def main() -> None:
    """Runs what stands in standard input."""
    (output,) = sys.argv[1:]
    results = [_run(Job(*fields)) for fields in json.load(sys.stdin)]
    Path(output).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
