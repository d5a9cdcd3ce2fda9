"""Which messages a step becomes, for an executor without an engine."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import GrammarOutput, NewRequestData, SchedulerOutput
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT

from fake_daemon import FakeDaemon
from vllm_metal_rpc import messages as m
from vllm_metal_rpc.executor import MetalRpcExecutor


@pytest.fixture
def executor(daemon: FakeDaemon, tmp_path: Any) -> Iterator[MetalRpcExecutor]:
    model = SimpleNamespace(
        model=str(tmp_path),
        served_model_name="tiny",
        dtype="torch.bfloat16",
        max_model_len=64,
        logprobs_mode="raw_logprobs",
    )
    config = SimpleNamespace(
        model_config=model,
        cache_config=SimpleNamespace(block_size=16),
        scheduler_config=SimpleNamespace(max_num_seqs=4, max_num_batched_tokens=64),
        parallel_config=SimpleNamespace(data_parallel_index=1, data_parallel_size=2),
        **dict.fromkeys(
            (
                "lora_config",
                "load_config",
                "device_config",
                "speculative_config",
                "observability_config",
                "reasoning_config",
            )
        ),
    )
    executor = MetalRpcExecutor(config)  # type: ignore[arg-type]
    group = SimpleNamespace(
        layer_names=[f"model.layers.{i}.self_attn.attn" for i in (1, 0)],
        kv_cache_spec=SimpleNamespace(block_size=16),
    )
    executor.initialize_from_config(
        [SimpleNamespace(num_blocks=8, kv_cache_groups=[group])]  # type: ignore[list-item]
    )
    yield executor
    executor.shutdown()


def step_of(**changes: Any) -> SchedulerOutput:
    output = SchedulerOutput.make_empty()
    output.scheduled_new_reqs = [
        NewRequestData("a", [5, 6, 7], [], SamplingParams(), None, ([1],), 0, None)
    ]
    output.num_scheduled_tokens = {"a": 3}
    output.total_num_scheduled_tokens = 3
    for name, value in changes.items():
        setattr(output, name, value)
    output.metal_rpc_generation = 0  # type: ignore[attr-defined]
    return output


GRAMMAR = GrammarOutput(["a"], np.full((1, 32), -1, np.int32))
WIRE_GRAMMAR = m.GrammarBitmask([0], b"\xff" * 128)


def steps_of(daemon: FakeDaemon) -> list[m.Message]:
    return [message for message in daemon.received if isinstance(message, m.Exec | m.Sample)]


def test_a_plain_step_is_one_message(executor: MetalRpcExecutor, daemon: FakeDaemon) -> None:
    assert executor.execute_model(step_of(), non_block=True).result() is None
    output = executor.sample_tokens(None, non_block=True).result(10)
    assert output.req_ids == ["a"]
    assert len(output.sampled_token_ids[0]) == 1
    (step,) = steps_of(daemon)
    assert isinstance(step, m.Exec)
    assert not step.sample_follows


def test_a_grammar_that_is_at_hand_travels_with_its_step(
    executor: MetalRpcExecutor, daemon: FakeDaemon
) -> None:
    assert executor.execute_model(step_of(has_structured_output_requests=True)) is None
    assert executor.sample_tokens(GRAMMAR).sampled_token_ids[0]
    (step,) = steps_of(daemon)
    assert isinstance(step, m.Exec)
    assert (step.sample_follows, step.grammar) == (False, WIRE_GRAMMAR)


@pytest.mark.parametrize(("grammar", "wire"), [(GRAMMAR, WIRE_GRAMMAR), (None, None)])
def test_a_grammar_that_needs_earlier_tokens_follows(
    executor: MetalRpcExecutor, daemon: FakeDaemon, grammar: Any, wire: Any
) -> None:
    output = step_of(has_structured_output_requests=True, pending_structured_output_tokens=True)
    executor.execute_model(output, non_block=True)
    assert executor.sample_tokens(grammar).sampled_token_ids[0]
    step, sample = steps_of(daemon)
    assert isinstance(step, m.Exec)
    assert isinstance(sample, m.Sample)
    # The daemon of the tests notes the grammar in the step.
    assert step.sample_follows
    assert sample.grammar == wire


def test_a_step_without_tokens_gives_handles_back(
    executor: MetalRpcExecutor, daemon: FakeDaemon
) -> None:
    executor.execute_model(step_of())
    executor.sample_tokens(None)
    ends = SchedulerOutput.make_empty()
    ends.finished_req_ids = {"a"}
    ends.metal_rpc_generation = 0  # type: ignore[attr-defined]
    assert executor.execute_model(ends).req_ids == []
    (session,) = daemon.sessions.values()
    assert session.requests == {}
    # Nothing is left to say.
    num_messages = len(steps_of(daemon))
    again = executor.execute_model(ends, non_block=True)
    assert again.result() is EMPTY_MODEL_RUNNER_OUTPUT
    assert len(steps_of(daemon)) == num_messages


def test_sample_tokens_needs_a_step(executor: MetalRpcExecutor) -> None:
    with pytest.raises(RuntimeError, match="without execute_model"):
        executor.sample_tokens(None)


def test_layers_are_told_by_their_index(executor: MetalRpcExecutor, daemon: FakeDaemon) -> None:
    (create,) = (message for message in daemon.received if isinstance(message, m.CreateCache))
    assert create == m.CreateCache(8, 16, [[1, 0]])
    (hello,) = (message for message in daemon.received if isinstance(message, m.Hello))
    assert hello.frontend == "tiny/1"
