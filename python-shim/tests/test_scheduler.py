"""Which scheduler class is used; what it does is tested end to end."""

import pytest
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler

from vllm_metal_rpc.scheduler import (
    MetalRpcAsyncScheduler,
    MetalRpcScheduler,
    Recomputing,
    extended_path,
    generation_of,
)


@pytest.mark.parametrize(
    ("asynchronous", "expected"), [(True, MetalRpcAsyncScheduler), (False, MetalRpcScheduler)]
)
def test_the_default_fits_the_way_of_stepping(asynchronous: bool, expected: type) -> None:
    assert resolve_obj_by_qualname(extended_path(None, asynchronous=asynchronous)) is expected


@pytest.mark.parametrize(
    "own",
    [
        AsyncScheduler,
        "vllm.v1.core.sched.async_scheduler.AsyncScheduler",
    ],
)
def test_a_users_scheduler_is_extended(own: type | str) -> None:
    path = extended_path(own, asynchronous=True)
    extended = resolve_obj_by_qualname(path)
    assert issubclass(extended, AsyncScheduler)
    assert extended.__mro__[1] is Recomputing
    # vLLM completes a configuration twice.
    assert extended_path(path, asynchronous=True) == path


def test_another_kind_of_scheduler_is_refused() -> None:
    with pytest.raises(ValueError, match=r"builtins.dict"):
        extended_path(dict, asynchronous=True)


def test_a_step_of_a_foreign_scheduler_is_refused() -> None:
    assert not issubclass(Scheduler, Recomputing)
    with pytest.raises(RuntimeError, match="own scheduler class"):
        generation_of(SchedulerOutput.make_empty())
