"""Executors and workers that compute nothing, to measure what surrounds them.

A step's tokens are ready `BENCH_MODEL_MS` after the step before was ready, as if a device ran
them, and no core is busy meanwhile.
"""

import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

import torch
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.executor.abstract import Executor
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheSpec
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, AsyncModelRunnerOutput, ModelRunnerOutput
from vllm.v1.worker.worker_base import CompilationTimes, WorkerBase

TOKEN: Final = 7
LAYOUT: Final = "LBNHC"
CACHE_BYTES: Final = 2 << 30


class Device:
    """When steps are ready."""

    def __init__(self) -> None:
        self._step_s = float(os.environ.get("BENCH_MODEL_MS", "0")) / 1e3
        self._ready_at = 0.0

    def submit(self) -> float:
        """Gives the device a step; returns when it will be done."""
        self._ready_at = max(self._ready_at, time.perf_counter()) + self._step_s
        return self._ready_at


def wait_until(ready_at: float) -> None:
    """Sleeps, if there is anything to sleep."""
    if (remaining_s := ready_at - time.perf_counter()) > 0:
        time.sleep(remaining_s)


def answer(step: SchedulerOutput) -> ModelRunnerOutput:
    """One token for each request; every prompt of these measurements is whole."""
    req_ids = list(step.num_scheduled_tokens)
    return ModelRunnerOutput(
        req_ids=req_ids,
        req_id_to_index={req_id: row for row, req_id in enumerate(req_ids)},
        sampled_token_ids=[[TOKEN] for _ in req_ids],
    )


def cache_spec(config: Any) -> dict[str, KVCacheSpec]:
    """One layer of a usual size, as the null daemon has it."""
    spec = FullAttentionSpec(
        block_size=config.cache_config.block_size or 16,
        num_kv_heads=8,
        head_size=128,
        dtype=torch.bfloat16,
    )
    return {"model.layers.0.self_attn.attn": spec}


class InProcessExecutor(Executor):
    """The least that an executor costs: it answers at once, or from a thread if that would wait."""

    uses_ray = False
    supports_pp = False

    @classmethod
    def supports_async_scheduling(cls) -> bool:
        """As metal-rpc's."""
        return True

    def _init_executor(self) -> None:
        self._device = Device()
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._step: SchedulerOutput | None = None

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            job()

    def get_kv_cache_specs(self) -> list[dict[str, KVCacheSpec]]:
        """One layer."""
        return [cache_spec(self.vllm_config)]

    def get_supported_kv_cache_layouts(self) -> list[list[str]]:
        """Any."""
        return [[LAYOUT]]

    def set_kv_cache_layout(self, layout_name: str, cp_kv_cache_interleave_size: int) -> None:
        """There is no cache."""

    def determine_available_memory(self) -> list[int]:
        """Enough."""
        return [CACHE_BYTES]

    def initialize_from_config(self, kv_cache_configs: list[KVCacheConfig]) -> None:
        """There is no cache."""

    def compile_or_warm_up_model(self) -> None:
        """There is no model."""

    def execute_model(self, scheduler_output: SchedulerOutput, non_block: bool = False) -> Any:
        """Keeps the step for `sample_tokens`."""
        future: Future[Any] = Future()
        if scheduler_output.total_num_scheduled_tokens == 0:
            future.set_result(EMPTY_MODEL_RUNNER_OUTPUT)
        else:
            self._step = scheduler_output
            future.set_result(None)
        return future if non_block else future.result()

    def sample_tokens(self, grammar_output: Any, non_block: bool = False) -> Any:  # noqa: ARG002
        """Gives the step to the device."""
        step, self._step = self._step, None
        assert step is not None
        ready_at = self._device.submit()
        if not non_block:
            wait_until(ready_at)
            return answer(step)
        future: Future[Any] = Future()

        def finish() -> None:
            wait_until(ready_at)
            future.set_result(answer(step))

        if ready_at <= time.perf_counter():
            finish()
        else:
            self._queue.put(finish)
        return future

    def collective_rpc(self, method: Any, *_: Any, non_block: bool = False, **__: Any) -> Any:
        """Nothing to do for a worker that is not there."""
        result = [("generate",) if method == "get_supported_tasks" else None]
        future: Future[Any] = Future()
        future.set_result(result)
        return future if non_block else result

    def check_health(self) -> None:
        """It is well."""

    def shutdown(self) -> None:
        """Ends the thread."""
        self._queue.put(None)


class Later(AsyncModelRunnerOutput):
    """A result that vLLM's worker waits for in a thread of its own."""

    def __init__(self, step: SchedulerOutput, ready_at: float) -> None:
        self._step, self._ready_at = step, ready_at

    def get_output(self) -> ModelRunnerOutput:
        """Waits for the device."""
        wait_until(self._ready_at)
        return answer(self._step)

    def get_kv_connector_output(self) -> None:
        """There is no connector."""


class NullWorker(WorkerBase):
    """The same behind vLLM's multiprocess executor."""

    def init_device(self) -> None:
        """There is none."""
        self._device = Device()
        self._step: SchedulerOutput | None = None

    def load_model(self, **_: Any) -> None:
        """There is none."""

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        """One layer."""
        return cache_spec(self.vllm_config)

    def get_supported_kv_cache_layouts(self) -> list[str]:
        """Any."""
        return [LAYOUT]

    def set_kv_cache_layout(self, kv_cache_layout: str, cp_kv_cache_interleave_size: int) -> None:
        """There is no cache."""

    def determine_available_memory(self) -> int:
        """Enough."""
        return CACHE_BYTES

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        """There is no cache."""

    def compile_or_warm_up_model(self) -> CompilationTimes:
        """There is no model."""
        return CompilationTimes(0.0, 0.0)

    def execute_model(self, scheduler_output: SchedulerOutput) -> Any:
        """Keeps the step for `sample_tokens`."""
        if scheduler_output.total_num_scheduled_tokens == 0:
            return EMPTY_MODEL_RUNNER_OUTPUT
        self._step = scheduler_output
        return None

    def sample_tokens(self, grammar_output: Any) -> Any:  # noqa: ARG002
        """Gives the step to the device."""
        step, self._step = self._step, None
        assert step is not None
        later = Later(step, self._device.submit())
        return later if self.scheduler_config.async_scheduling else later.get_output()

    def get_supported_tasks(self) -> tuple[str, ...]:
        """Text."""
        return ("generate",)

    def check_health(self) -> None:
        """It is well."""

    def shutdown(self) -> None:
        """Nothing to end."""
