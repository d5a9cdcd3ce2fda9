"""vLLM's schedulers, able to recompute every request after the daemon lost the KV cache.

A `SchedulerOutput` is stamped with the generation in which it was decided, because a step that
was decided before the scheduler knew of the loss relies on a cache that is gone. The output of a
lost step carries the generation that begins. On the first such output the scheduler preempts
all running requests, which discards what is in flight, and flushes the prefix cache, once; the
requests are then computed again from their tokens, which it has kept.

A user's own scheduler class (`--scheduler-cls`) is extended in the same way.
"""

import logging
from typing import Any, Final

from vllm.outputs import RequestError
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import ModelRunnerOutput

logger = logging.getLogger("vllm.metal_rpc")

_EXTENDED_PREFIX: Final = "Recomputing:"
_GENERATION: Final = "metal_rpc_generation"
_LOST: Final = "metal_rpc_lost_generation"
_NUM_CRASHES: Final = "metal_rpc_num_crashes"
_ROW_ERRORS: Final = "metal_rpc_row_errors"
# Daemons in a row that may die without answering a step, before the requests that ran are ended:
# one of them may be what kills it, and would kill every next one for ever.
MAX_CRASHES: Final = 5


def generation_of(output: SchedulerOutput) -> int:
    """The generation in which a step was decided.

    Raises:
        RuntimeError: The scheduler is not one of ours.
    """
    generation = getattr(output, _GENERATION, None)
    if generation is None:
        raise RuntimeError(
            "metal-rpc needs its own scheduler class, but the step has no generation"
        )
    return int(generation)


def mark_lost(
    output: ModelRunnerOutput, generation: int, num_crashes: int = 0
) -> ModelRunnerOutput:
    """Says that the daemon has lost the step, which generation begins, and how often in a row."""
    setattr(output, _LOST, generation)
    setattr(output, _NUM_CRASHES, num_crashes)
    return output


def mark_row_errors(output: ModelRunnerOutput, errors: dict[str, str]) -> ModelRunnerOutput:
    """Says which requests cannot go on, and why."""
    setattr(output, _ROW_ERRORS, errors)
    return output


class Recomputing:
    """Mixin for vLLM's schedulers."""

    metal_rpc_generation = 0

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """Decides a step and stamps it."""
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        setattr(output, _GENERATION, self.metal_rpc_generation)
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> Any:
        """Takes the result of a step, after a loss only as the news of it."""
        scheduler: Any = self
        generation = getattr(model_runner_output, _LOST, 0)
        if generation > self.metal_rpc_generation:
            self.metal_rpc_generation = generation
            self._recompute(getattr(model_runner_output, _NUM_CRASHES))
        for req_id, message in getattr(model_runner_output, _ROW_ERRORS, {}).items():
            # The scheduler's own list of requests to end with an error in this update.
            scheduler.grammar_compile_error_reqs[req_id] = RequestError(
                code="generation_error", message=message
            )
        return super().update_from_output(  # type: ignore[misc]
            scheduler_output, model_runner_output
        )

    def _recompute(self, num_crashes: int) -> None:
        scheduler: Any = self
        running = [request.request_id for request in scheduler.running]
        logger.warning("The daemon lost its KV cache: computing %d requests again", len(running))
        scheduler.reset_prefix_cache(reset_running_requests=True)
        if num_crashes < MAX_CRASHES:
            return
        message = f"the daemon has died {num_crashes} times in a row while it ran this request"
        logger.error("Ending %d requests: %s", len(running), message)
        for req_id in running:
            scheduler.grammar_compile_error_reqs[req_id] = RequestError(
                code="generation_error", message=message
            )


class MetalRpcScheduler(Recomputing, Scheduler):
    """vLLM's default scheduler, able to recompute."""


class MetalRpcAsyncScheduler(Recomputing, AsyncScheduler):
    """vLLM's scheduler for overlapping steps, able to recompute."""


def extended_path(scheduler_cls: str | type | None, *, asynchronous: bool) -> str:
    """The dotted path of a scheduler class that is able to recompute.

    A path and not a class, because vLLM pickles its configuration for the engine's process.

    Args:
        scheduler_cls: `--scheduler-cls`, or None for vLLM's default.
        asynchronous: Whether steps overlap.

    Raises:
        ValueError: The class is not a subclass of vLLM's scheduler.
    """
    if scheduler_cls is None:
        name = "MetalRpcAsyncScheduler" if asynchronous else "MetalRpcScheduler"
        return f"{__name__}.{name}"
    if isinstance(scheduler_cls, str) and scheduler_cls.startswith(f"{__name__}."):
        return scheduler_cls
    path = (
        scheduler_cls
        if isinstance(scheduler_cls, str)
        else f"{scheduler_cls.__module__}.{scheduler_cls.__qualname__}"
    )
    base = resolve_obj_by_qualname(path)
    if not issubclass(base, Scheduler):
        raise ValueError(
            f"--scheduler-cls {path} is not supported: metal-rpc extends the class, which "
            "must be a subclass of vllm.v1.core.sched.scheduler.Scheduler"
        )
    # vLLM resolves a path by its last dot, so the user's path hides its own.
    return f"{__name__}.{_EXTENDED_PREFIX}{path.replace('.', ':')}"


def __getattr__(name: str) -> type:
    """Makes the class that `extended_path` names."""
    if not name.startswith(_EXTENDED_PREFIX):
        raise AttributeError(f"module {__name__} has no attribute {name}")
    base = resolve_obj_by_qualname(name.removeprefix(_EXTENDED_PREFIX).replace(":", "."))
    return type(f"Recomputing{base.__name__}", (Recomputing, base), {})
