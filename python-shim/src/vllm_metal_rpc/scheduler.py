"""vLLM's schedulers, able to recompute every request after the daemon lost the KV cache.

A `SchedulerOutput` is stamped with the generation in which it was decided, because a step that
was decided before the scheduler knew of the loss relies on a cache that is gone. The output of a
lost step carries the generation that begins. On the first such output the scheduler preempts
all running requests, which discards what is in flight, and flushes the prefix cache, once; the
requests are then computed again from their tokens, which it has kept.

One of the running requests may be what made the daemon die or the step fail, and would do so for
ever. Nobody knows which, so each is suspected of the losses that it was in since its last token.
When one is suspected of two, requests are admitted one at a time, the next when the last has got a
token: what happens then is the doing of the last. A request that is suspected of `MAX_LOSSES` ends
with an error that tells the reason.

A user's own scheduler class (`--scheduler-cls`) is extended in the same way.
"""

import logging
import sys
from typing import Any, Final

from vllm.outputs import RequestError
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import ModelRunnerOutput

logger = logging.getLogger("vllm.metal_rpc")

MAX_LOSSES: Final = 5
_ALONE_FROM_LOSSES: Final = 2
_EXTENDED_PREFIX: Final = "Recomputing:"
_GENERATION: Final = "metal_rpc_generation"
_LOST: Final = "metal_rpc_lost_generation"
_CRASH: Final = "metal_rpc_crash"
_ROW_ERRORS: Final = "metal_rpc_row_errors"


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


def mark_lost(output: ModelRunnerOutput, generation: int, crash: str) -> ModelRunnerOutput:
    """Says that the step was lost, which generation begins, and why if a step may be the cause."""
    setattr(output, _LOST, generation)
    setattr(output, _CRASH, crash)
    return output


def mark_row_errors(output: ModelRunnerOutput, errors: dict[str, str]) -> ModelRunnerOutput:
    """Says which requests cannot go on, and why."""
    setattr(output, _ROW_ERRORS, errors)
    return output


class Recomputing:
    """Mixin for vLLM's schedulers."""

    metal_rpc_generation = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # By request: losses that it is suspected of.
        self.metal_rpc_losses: dict[str, int] = {}

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """Decides a step and stamps it."""
        scheduler: Any = self
        most_active = scheduler.max_num_active_reqs
        if self.metal_rpc_losses:
            scheduler.max_num_active_reqs = min(most_active, self._most_active())
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        scheduler.max_num_active_reqs = most_active
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
            self._recompute(getattr(model_runner_output, _CRASH))
        elif self.metal_rpc_losses:
            self._forgive(model_runner_output)
        for req_id, message in getattr(model_runner_output, _ROW_ERRORS, {}).items():
            # The scheduler's own list of requests to end with an error in this update.
            scheduler.grammar_compile_error_reqs[req_id] = RequestError(
                code="generation_error", message=message
            )
        return super().update_from_output(  # type: ignore[misc]
            scheduler_output, model_runner_output
        )

    def _recompute(self, crash: str) -> None:
        scheduler: Any = self
        running = [request.request_id for request in scheduler.running]
        logger.warning("The daemon lost its KV cache: computing %d requests again", len(running))
        scheduler.reset_prefix_cache(reset_running_requests=True)
        for req_id in running if crash else ():
            num_losses = self.metal_rpc_losses.get(req_id, 0) + 1
            self.metal_rpc_losses[req_id] = num_losses
            if num_losses == MAX_LOSSES:
                message = f"this request was lost {MAX_LOSSES} times in a row: {crash}"
                logger.error("Request %s ends: %s", req_id, message)
                scheduler.grammar_compile_error_reqs[req_id] = RequestError(
                    code="generation_error", message=message
                )

    def _forgive(self, output: ModelRunnerOutput) -> None:
        """Requests that have got a token are suspected no more."""
        for req_id, tokens in zip(output.req_ids, output.sampled_token_ids, strict=True):
            if tokens:
                self.metal_rpc_losses.pop(req_id, None)

    def _most_active(self) -> int:
        """How many requests may run, so that there is one suspect among them."""
        scheduler: Any = self
        known = scheduler.requests
        losses = {name: count for name, count in self.metal_rpc_losses.items() if name in known}
        self.metal_rpc_losses = losses
        if max(losses.values(), default=0) < _ALONE_FROM_LOSSES:
            return sys.maxsize
        return 1 + sum(request.request_id not in losses for request in scheduler.running)


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
