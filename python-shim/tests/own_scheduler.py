"""A scheduler as a user might bring one along."""

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler


class _Counting:
    """Counts the steps that it decides."""

    num_steps = 0

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        self.num_steps += 1
        return super().schedule(*args, **kwargs)  # type: ignore[misc, no-any-return]


class OwnScheduler(_Counting, Scheduler):
    """For steps one after the other."""


class OwnAsyncScheduler(_Counting, AsyncScheduler):
    """For steps that overlap."""
