"""vLLM's dataclasses to messages and back."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.core.kv_cache_utils import KVCacheBlockCopy
from vllm.v1.core.sched.output import (
    CachedRequestData,
    GrammarOutput,
    NewRequestData,
    SchedulerOutput,
)
from vllm.v1.kv_cache_interface import (
    AttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    SlidingWindowSpec,
)

from fake_daemon import FakeDaemon, FakeSession, Script, generate
from simulation import BLOCK_SIZE, Simulation
from vllm_metal_rpc import codec, convert, messages
from vllm_metal_rpc.errors import ProtocolViolation, UnsupportedFeature


def new_request(req_id: str = "a", **changes: Any) -> NewRequestData:
    values: dict[str, Any] = {
        "req_id": req_id,
        "prompt_token_ids": [5, 6, 7],
        "mm_features": [],
        "sampling_params": SamplingParams(),
        "pooling_params": None,
        "block_ids": ([1, 2],),
        "num_computed_tokens": 0,
        "lora_request": None,
    }
    return NewRequestData(**values | changes)


def output_of(
    new: list[NewRequestData], scheduled: dict[str, int], **changes: Any
) -> SchedulerOutput:
    output = SchedulerOutput.make_empty()
    output.scheduled_new_reqs = new
    output.num_scheduled_tokens = scheduled
    output.total_num_scheduled_tokens = sum(scheduled.values())
    return dataclasses.replace(output, **changes)


def decode_of(req_ids: list[str], computed: list[int], blocks: list[Any]) -> SchedulerOutput:
    cached = CachedRequestData.make_empty()
    cached.req_ids, cached.num_computed_tokens, cached.new_block_ids = req_ids, computed, blocks
    return output_of([], dict.fromkeys(req_ids, 1), scheduled_cached_reqs=cached)


@pytest.mark.parametrize("seed", range(8))
def test_random_schedules_are_understood_by_a_worker(seed: int) -> None:
    # Goal: handles never collide, block tables and tokens are right. Method: a worker that checks
    # every handle and every cached token, and generates from the whole history.
    daemon = FakeDaemon("", Script())
    session = FakeSession(cache=messages.CreateCache(24, BLOCK_SIZE, [[0]]))
    encoder = convert.StepEncoder()
    simulation = Simulation(seed)
    for _ in range(300):
        output = simulation.schedule()
        result = daemon._step(session, encoder.encode(output))
        rows = list(output.num_scheduled_tokens)
        answer, errors = convert.model_runner_output(result, rows)
        assert not errors
        assert answer.req_id_to_index == {req_id: i for i, req_id in enumerate(rows)}
        simulation.update(dict(zip(rows, answer.sampled_token_ids, strict=True)))
        running = [r for r in simulation.requests.values() if r.running]
        assert len(session.requests) >= len(running), f"seed {seed}"
        assert max(session.requests, default=0) < 16, f"seed {seed}: handles are not reused"
    assert simulation.num_preemptions > 10, f"seed {seed}"
    for request in simulation.requests.values():
        expected = generate(request.prompt, len(request.outputs), daemon.script)
        assert request.outputs == expected, f"seed {seed}"


def spec_of(block_size: int = 16, **window: int) -> AttentionSpec:
    shape: dict[str, Any] = {"num_kv_heads": 1, "head_size": 256, "dtype": torch.bfloat16}
    kind: type[AttentionSpec] = SlidingWindowSpec if window else FullAttentionSpec
    return kind(block_size=block_size, **shape, **window)


def test_groups_name_layers_by_their_index() -> None:
    groups = [
        KVCacheGroupSpec(["layer.2"], spec_of()),
        KVCacheGroupSpec(["layer.0"], spec_of(sliding_window=512)),
        KVCacheGroupSpec(["layer.1"], spec_of(sliding_window=512)),
    ]
    layers = [f"layer.{i}" for i in range(3)]
    created = convert.create_cache(KVCacheConfig(30, [], groups), layers)
    assert created == messages.CreateCache(30, 16, [[2], [0], [1]])
    groups[1].kv_cache_spec = spec_of(block_size=32, sliding_window=512)
    with pytest.raises(UnsupportedFeature, match=r"gives them \[16, 32\]"):
        convert.create_cache(KVCacheConfig(30, [], groups), layers)


def test_a_table_for_each_group_keeps_a_step_small() -> None:
    """64 requests of a model with one group of full and five of windowed layers, as Gemma 3 has."""
    encoder = convert.StepEncoder()
    names = [f"cmpl-{i:032x}-0" for i in range(64)]
    tables = tuple([0, 0, 40_000 + group] for group in range(6))
    opened = encoder.encode(
        output_of([new_request(name, block_ids=tables) for name in names], dict.fromkeys(names, 3))
    )
    assert opened.new_requests[0].block_ids == list(tables)
    # One request in sixteen enters a new block.
    grown = tuple([50_000 + group] for group in range(6))
    blocks = [grown if i % 16 == 0 else None for i in range(64)]
    step = encoder.encode(decode_of(names, list(range(30_000, 30_064)), blocks))
    assert step.new_blocks == [messages.NewBlocks(row, list(grown)) for row in (0, 16, 32, 48)]
    assert len(codec.encode_request(step, b"s" * 16, 70_000)) <= 600


def test_a_handle_is_free_in_the_step_that_ends_its_request() -> None:
    encoder = convert.StepEncoder()
    first = encoder.encode(output_of([new_request("a")], {"a": 3}))
    second = encoder.encode(
        output_of([new_request("b")], {"b": 3}, finished_req_ids={"a", "never scheduled"})
    )
    assert second.finished == first.handles == second.handles


def test_a_preempted_request_gives_its_handle_back_before_it_is_resumed() -> None:
    encoder = convert.StepEncoder()
    encoder.encode(output_of([new_request("a"), new_request("b")], {"a": 3, "b": 3}))
    resumed = new_request("b", prefill_token_ids=[5, 6, 7, 8], num_computed_tokens=2)
    step = encoder.encode(output_of([resumed], {"b": 2}, preempted_req_ids={"b"}))
    assert step.finished == [1]
    (request,) = step.new_requests
    assert np.frombuffer(request.token_ids, "<i4").tolist() == [5, 6, 7, 8]
    assert request.num_prompt_tokens == 3
    assert step.num_computed_tokens == [2]


@pytest.mark.parametrize(("outputs", "expected"), [([], 2), ([8], None)])
def test_prompt_logprobs_are_asked_for_until_the_first_token(
    outputs: list[int], expected: int | None
) -> None:
    new = new_request(
        sampling_params=SamplingParams(prompt_logprobs=2), prefill_token_ids=[5, 6, 7, *outputs]
    )
    (request,) = convert.StepEncoder().encode(output_of([new], {"a": 3})).new_requests
    assert request.sampling_params.prompt_logprobs == expected


def test_a_known_request_sent_as_new_is_replaced() -> None:
    encoder = convert.StepEncoder()
    encoder.encode(output_of([new_request("a")], {"a": 3}))
    step = encoder.encode(output_of([new_request("a")], {"a": 3}))
    assert step.finished == [0]
    assert step.handles == [0]


def test_after_a_reset_no_handle_is_known() -> None:
    encoder = convert.StepEncoder()
    encoder.encode(output_of([new_request("a"), new_request("b")], {"a": 3, "b": 3}))
    encoder.reset()
    step = encoder.encode(output_of([new_request("b")], {"b": 3}, preempted_req_ids={"a", "b"}))
    assert step.finished == []
    assert step.handles == [0]


def test_a_steady_decode_step_carries_only_what_changed() -> None:
    encoder = convert.StepEncoder()
    names = [f"r{i}" for i in range(64)]
    encoder.encode(output_of([new_request(n) for n in names], dict.fromkeys(names, 3)))
    blocks = [([7],) if i % 16 == 0 else None for i in range(64)]
    step = encoder.encode(decode_of(names, [4000 + i for i in range(64)], blocks))
    assert step.num_scheduled_tokens == []
    assert [grown.row for grown in step.new_blocks] == [0, 16, 32, 48]
    assert len(codec.encode_request(step, b"s" * 16, 70_000)) < 400


def test_rows_follow_the_order_of_the_step() -> None:
    encoder = convert.StepEncoder()
    encoder.encode(output_of([new_request("a"), new_request("b")], {"a": 3, "b": 3}))
    output = decode_of(["b", "a"], [9, 4], [None, ([3],)])
    output.num_scheduled_tokens = {"a": 1, "b": 2}
    output.total_num_scheduled_tokens = 3
    step = encoder.encode(output)
    assert (step.handles, step.num_computed_tokens) == ([0, 1], [4, 9])
    assert step.num_scheduled_tokens == [1, 2]
    assert step.new_blocks == [messages.NewBlocks(0, [[3]])]


def test_block_copies_and_structure_are_told() -> None:
    step = convert.StepEncoder().encode(
        output_of(
            [new_request()],
            {"a": 3},
            kv_cache_block_copies=[KVCacheBlockCopy(4, 9)],
            has_structured_output_requests=True,
        )
    )
    assert step.block_copies == [(4, 9)]
    assert step.sample_follows


NON_DEFAULT = {
    "scheduled_spec_decode_tokens": {"a": [1]},
    "scheduled_encoder_inputs": {"a": [0]},
    "free_encoder_mm_hashes": ["x"],
    "encoder_input_updates": {"a": {}},
    "has_sync_kv_loads": True,
    "new_block_ids_to_zero": [4],
    "num_spec_tokens_to_schedule": 2,
}


@pytest.mark.parametrize("name", convert._MUST_BE_EMPTY)
def test_what_is_not_understood_is_refused(name: str) -> None:
    output = output_of([], {}, **{name: NON_DEFAULT.get(name, object())})
    with pytest.raises(UnsupportedFeature, match=name):
        convert.StepEncoder().encode(output)


@pytest.mark.parametrize("name", convert._NEW_REQUEST_MUST_BE_EMPTY)
def test_a_new_request_that_is_not_understood_is_refused(name: str) -> None:
    value = torch.zeros(0) if name == "prompt_embeds" else 1
    with pytest.raises(UnsupportedFeature, match=name):
        convert.StepEncoder().encode(output_of([new_request(**{name: value})], {"a": 3}))


@pytest.mark.parametrize("name", convert._CACHED_MUST_BE_EMPTY)
def test_the_other_dialect_is_refused(name: str) -> None:
    output = decode_of([], [], [])
    setattr(output.scheduled_cached_reqs, name, ["a"])
    with pytest.raises(UnsupportedFeature, match=name):
        convert.StepEncoder().encode(output)


def test_a_field_that_a_newer_vllm_adds_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    convert.check_vllm_fields()
    monkeypatch.setattr(convert, "_IGNORED", convert._IGNORED - {"skip_drafts"})
    with pytest.raises(UnsupportedFeature, match="skip_drafts"):
        convert.check_vllm_fields()


def test_sampling_params_are_those_of_vllm() -> None:
    assert convert.sampling_params(SamplingParams()) == messages.SamplingParams()
    params = SamplingParams(
        temperature=0.5,
        top_p=0.9,
        top_k=-1,
        min_p=0.1,
        seed=-(2**53) - 1,
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=2,
        min_tokens=3,
        stop_token_ids=[9, 4],
        logit_bias={7: 1},
        allowed_token_ids=[1, 2],
        logprobs=2,
        prompt_logprobs=0,
        logprob_token_ids=[8],
    )
    params._bad_words_token_ids = [[3, 4]]
    wire = convert.sampling_params(params)
    assert wire == messages.SamplingParams(
        temperature=0.5,
        top_p=0.9,
        top_k=0,
        min_p=0.1,
        seed=-(2**53) - 1,
        presence_penalty=1.0,
        frequency_penalty=-1.0,
        repetition_penalty=2.0,
        min_tokens=3,
        stop_token_ids=[4, 9],
        logit_bias=[(7, 1.0)],
        allowed_token_ids=[1, 2],
        bad_words_token_ids=[[3, 4]],
        logprobs=2,
        prompt_logprobs=0,
        logprob_token_ids=[8],
    )
    # Whole numbers would change their type on the wire.
    assert all(isinstance(getattr(wire, f), float) for f in ("presence_penalty", "temperature"))


def test_stop_tokens_are_told_only_if_they_are_to_be_masked() -> None:
    assert convert.sampling_params(SamplingParams(stop_token_ids=[9])).stop_token_ids == []


def test_a_grammar_is_copied_row_by_row() -> None:
    bitmask = np.arange(8, dtype=np.int32).reshape(4, 2)[::2]
    grammar = convert.grammar_bitmask(GrammarOutput(["c", "a"], bitmask), ["a", "b", "c"])
    assert grammar is not None
    assert grammar.rows == [2, 0]
    bitmask[:] = -1
    assert np.frombuffer(grammar.bitmask, "<i4").tolist() == [0, 1, 4, 5]
    assert convert.grammar_bitmask(None, ["a"]) is None


def i32(*values: int) -> bytes:
    return np.asarray(values, "<i4").tobytes()


def f32(*values: float) -> bytes:
    return np.asarray(values, "<f4").tobytes()


def test_logprobs_and_errors_find_their_rows() -> None:
    result = messages.StepResult(
        token_ids=i32(42, -1),
        logprobs=messages.Logprobs(2, i32(42, 7, -1, -1), f32(-0.5, -1, 0, 0), i32(1, 0)),
        prompt_logprobs=[
            messages.PromptLogprobs(0, messages.Logprobs(1, i32(6, 7), f32(-2, -3), i32(4, 5))),
            messages.PromptLogprobs(1, messages.Logprobs(1, i32(6), f32(-2), i32(4))),
        ],
        prompt_token_id_logprobs=[
            messages.PromptTokenIdLogprobs(0, 2, f32(-1, -2, -3, -np.inf)),
            messages.PromptTokenIdLogprobs(1, 1, f32(-1)),
        ],
        row_errors=[messages.RowError(1, "no token is allowed")],
        queue_us=1,
        run_us=2,
    )
    output, errors = convert.model_runner_output(result, ["a", "b"])
    assert output.sampled_token_ids == [[42], []]
    assert errors == {"b": "no token is allowed"}
    assert output.logprobs is not None
    assert output.logprobs.logprob_token_ids.tolist() == [[42, 7], [-1, -1]]
    assert output.logprobs.sampled_token_ranks.tolist() == [1, 0]
    assert set(output.prompt_logprobs_dict) == {"a"}
    prompt = output.prompt_logprobs_dict["a"]
    assert prompt is not None
    assert prompt.logprob_token_ids.tolist() == [[6], [7]]
    assert prompt.logprobs.tolist() == [[-2.0], [-3.0]]
    assert prompt.selected_token_ranks.tolist() == [4, 5]
    assert set(output.prompt_token_id_logprobs_dict) == {"a"}
    scores = output.prompt_token_id_logprobs_dict["a"]
    assert scores.tolist() == [[-1.0, -2.0], [-3.0, -np.inf]]


def test_a_result_of_another_step_is_refused() -> None:
    result = messages.StepResult(i32(1), None, [], [], [], 0, 0)
    with pytest.raises(ProtocolViolation, match="1 rows answer a step of 2 requests"):
        convert.model_runner_output(result, ["a", "b"])
