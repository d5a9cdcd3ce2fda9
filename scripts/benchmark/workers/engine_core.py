"""Times steps of vLLM's engine core: `engine_core.py MODEL EXECUTOR sync|async MOST_REQUESTS`.

MODEL is a folder with a `config.json`. EXECUTOR is metal-rpc, in-process or multiprocess; what runs
behind it computes nothing, and takes `BENCH_MODEL_MS` a step. Each line of the input asks for steps
and is answered with the times between their results.
"""

import json
import os
import sys
import time
from typing import Any, Final

from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.core import EngineCore
from vllm.v1.executor.abstract import Executor

PROMPT: Final = 16
MAX_MODEL_LEN: Final = 4096
WARM_UP_STEPS: Final = 20


def engine_core(model: str, executor: str, *, is_async: bool, most_requests: int) -> EngineCore:
    """An engine core in this process."""
    arguments = EngineArgs(
        model=model,
        skip_tokenizer_init=True,
        distributed_executor_backend="metal-rpc",
        async_scheduling=is_async,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=most_requests,
        max_num_batched_tokens=max(MAX_MODEL_LEN, PROMPT * most_requests),
        enable_prefix_caching=False,
        gpu_memory_utilization=0.1,
        disable_log_stats=True,
    )
    config = arguments.create_engine_config()
    executor_class: type[Executor] = Executor.get_class(config)
    if executor != "metal-rpc":
        # Our platform chooses our own executor and scheduler; here vLLM's are wanted.
        config.scheduler_config.scheduler_cls = None
        config.parallel_config.worker_cls = "null_worker.NullWorker"
        config.parallel_config.distributed_executor_backend = "mp"
        executor_class = Executor.get_class(config)
    if executor == "in-process":
        from null_worker import InProcessExecutor

        executor_class = InProcessExecutor
    return EngineCore(config, executor_class, log_stats=False)


def add_requests(core: EngineCore, count: int) -> list[str]:
    """Adds requests that run until they are aborted."""
    params = SamplingParams(temperature=0, max_tokens=MAX_MODEL_LEN - PROMPT, ignore_eos=True)
    params.update_from_generation_config({}, None)
    names = [f"cmpl-{time.monotonic_ns():020x}-{index}" for index in range(count)]
    for index, name in enumerate(names):
        prompt = [(index + position) % 300 for position in range(PROMPT)]
        request = EngineCoreRequest(name, prompt, None, params, None, time.time(), None, None, None)
        core.add_request(*core.preprocess_add_request(request))
    return names


def run_steps(core: EngineCore, count: int) -> list[float]:
    """Runs until `count` results were there; returns the times between them, in microseconds."""
    step = core.step if core.batch_queue is None else core.step_with_batch_queue
    times: list[float] = []
    last = time.perf_counter()
    while len(times) < count:
        outputs, _ = step()
        if outputs:
            now = time.perf_counter()
            times.append(1e6 * (now - last))
            last = now
    return times


def finish(core: EngineCore, names: list[str]) -> None:
    """Aborts the requests and lets what is in flight come in."""
    core.abort_requests(names)
    step = core.step if core.batch_queue is None else core.step_with_batch_queue
    while core.scheduler.has_requests() or core.batch_queue:
        step()


def measure(core: EngineCore, requests: int, steps: int) -> list[float]:
    """Times decode steps."""
    names = add_requests(core, requests)
    run_steps(core, WARM_UP_STEPS)
    times = run_steps(core, steps)
    finish(core, names)
    return times


def main() -> None:
    """Answers until the input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    model, executor, scheduling, most_requests = sys.argv[1:]
    is_async = scheduling == "async"
    core = engine_core(model, executor, is_async=is_async, most_requests=int(most_requests))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        print(json.dumps(measure(core, **request)), file=answers, flush=True)
    core.shutdown()


if __name__ == "__main__":
    main()
