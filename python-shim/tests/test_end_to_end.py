"""vLLM's real engine, front end and scheduler on the Python daemon: exact tokens, come what may."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from vllm import LLM, SamplingParams
from vllm.exceptions import VLLMValidationError

import own_scheduler
from fake_daemon import FakeDaemon, generate
from vllm_metal_rpc import messages as m
from vllm_metal_rpc.errors import DaemonUnavailable, ErrorCode, ModelNotFound, Scope
from vllm_metal_rpc.scheduler import MAX_LOSSES

NUM_OUTPUT_TOKENS = 40
PROMPTS = [[5 + i] * (20 + 3 * i) for i in range(6)]
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_OUTPUT_TOKENS, ignore_eos=True)


@contextmanager
def engine(folder: Path, **arguments: Any) -> Iterator[LLM]:
    options: dict[str, Any] = {"max_model_len": 128, "num_gpu_blocks_override": 64} | arguments
    llm = LLM(str(folder), distributed_executor_backend="metal-rpc", **options)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def tokens_of(llm: LLM, prompts: list[list[int]] = PROMPTS) -> list[list[int]]:
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], GREEDY, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def expected_tokens(daemon: FakeDaemon, prompts: list[list[int]] = PROMPTS) -> list[list[int]]:
    return [generate(prompt, NUM_OUTPUT_TOKENS, daemon.script) for prompt in prompts]


@pytest.mark.parametrize("asynchronous", [True, False], ids=["overlapping", "plain"])
@pytest.mark.parametrize(
    ("num_blocks", "restarts"),
    [(64, []), (15, []), (64, [12]), (15, [8, 30, 31, 75])],
    ids=["calm", "preemption", "restart", "preemption and restarts"],
)
def test_tokens_are_exact(
    daemon: FakeDaemon,
    model_folder: Path,
    asynchronous: bool,
    num_blocks: int,
    restarts: list[int],
) -> None:
    with engine(
        model_folder, async_scheduling=asynchronous, num_gpu_blocks_override=num_blocks
    ) as llm:
        daemon.script.restart_after = [daemon.num_steps + count for count in restarts]
        assert tokens_of(llm) == expected_tokens(daemon)
        assert daemon.num_restarts == len(restarts)
        resumed = sum(
            len(step.new_requests) for step in daemon.received if isinstance(step, m.Exec)
        )
        assert (resumed > len(PROMPTS)) == bool(restarts or num_blocks < 64)


@pytest.mark.parametrize(
    ("asynchronous", "name"), [(True, "OwnAsyncScheduler"), (False, "OwnScheduler")]
)
def test_a_users_scheduler_recomputes_too(
    daemon: FakeDaemon, model_folder: Path, asynchronous: bool, name: str
) -> None:
    with engine(
        model_folder, async_scheduling=asynchronous, scheduler_cls=f"own_scheduler.{name}"
    ) as llm:
        daemon.script.restart_after = [daemon.num_steps + 12]
        assert tokens_of(llm) == expected_tokens(daemon)
        assert daemon.num_restarts == 1
        scheduler = llm.llm_engine.engine_core.engine_core.scheduler
        assert isinstance(scheduler, getattr(own_scheduler, name))
        assert scheduler.num_steps > NUM_OUTPUT_TOKENS


def test_a_request_that_kills_every_daemon_is_ended_and_others_are_served(
    daemon: FakeDaemon, model_folder: Path
) -> None:
    daemon.script.die_token = 11
    with engine(model_folder) as llm:
        (bad,) = llm.generate([{"prompt_token_ids": [11] * 20}], GREEDY, use_tqdm=False)
        assert bad.outputs[0].finish_reason == "error"
        assert daemon.num_restarts == MAX_LOSSES
        assert tokens_of(llm) == expected_tokens(daemon)


@pytest.mark.parametrize("asynchronous", [True, False], ids=["overlapping", "plain"])
def test_a_step_that_fails_is_computed_again(
    daemon: FakeDaemon, model_folder: Path, asynchronous: bool
) -> None:
    with engine(model_folder, async_scheduling=asynchronous) as llm:
        daemon.script.refuse[m.Exec] = m.ErrorReply(
            ErrorCode.OUT_OF_MEMORY, Scope.SESSION, "the step failed: no memory"
        )
        assert tokens_of(llm) == expected_tokens(daemon)
        assert (daemon.count(m.Hello), daemon.num_restarts) == (2, 0)


@pytest.mark.parametrize("asynchronous", [True, False], ids=["overlapping", "plain"])
@pytest.mark.parametrize("place", [0, 3], ids=["first", "last"])
@pytest.mark.parametrize("max_tokens", [48, 512], ids=["in chunks", "together"])
def test_a_request_that_fails_every_step_is_ended_and_others_go_on(
    daemon: FakeDaemon, model_folder: Path, asynchronous: bool, place: int, max_tokens: int
) -> None:
    """In chunks, its first is answered each time, which proves nothing."""
    daemon.script.lost_token = 11
    prompts = PROMPTS[:3]
    prompts.insert(place, [5] * 60 + [11] * 9)
    options = {"max_num_batched_tokens": max_tokens, "max_num_seqs": 4}
    with engine(model_folder, async_scheduling=asynchronous, **options) as llm:
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        answers = [answer.outputs[0] for answer in llm.generate(asked, GREEDY, use_tqdm=False)]
        assert answers.pop(place).finish_reason == "error"
        tokens = [list(answer.token_ids) for answer in answers]
        assert tokens == expected_tokens(daemon, PROMPTS[:3])
        assert daemon.num_restarts == 0
        assert tokens_of(llm) == expected_tokens(daemon)


def test_prompts_are_cut_into_chunks_and_prefixes_are_used_again(
    daemon: FakeDaemon, model_folder: Path
) -> None:
    prompts = [list(range(10, 90)), list(range(10, 74)) + [7] * 9]
    with engine(model_folder, max_num_batched_tokens=32, max_num_seqs=4) as llm:
        assert tokens_of(llm, prompts) == expected_tokens(daemon, prompts)
        assert tokens_of(llm, prompts) == expected_tokens(daemon, prompts)
    execs = [step for step in daemon.received if isinstance(step, m.Exec)]
    hits = [
        computed
        for step in execs
        for new in step.new_requests
        if (computed := step.num_computed_tokens[step.handles.index(new.handle)]) > 0
    ]
    assert hits, "no prefix was found in the cache"
    assert max(sum(step.num_scheduled_tokens) for step in execs) <= 32


def test_a_daemon_that_died_while_nobody_asked_is_noticed_by_the_next_request(
    daemon: FakeDaemon, model_folder: Path
) -> None:
    with engine(model_folder) as llm:
        assert tokens_of(llm) == expected_tokens(daemon)
        daemon.restart()
        # Every prompt is in the prefix cache of the scheduler, and none in that of the daemon.
        assert tokens_of(llm) == expected_tokens(daemon)
    assert daemon.num_restarts == 1


def test_all_handles_come_back(daemon: FakeDaemon, model_folder: Path) -> None:
    with engine(model_folder) as llm:
        for _ in range(3):
            tokens_of(llm)
        # The step without tokens that tells of the last requests; a server does it by itself.
        core = llm.llm_engine.engine_core.engine_core
        while core.scheduler.has_requests():
            core.step_fn()
        (session,) = daemon.sessions.values()
        deadline = time.monotonic() + 10
        while session.requests:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    assert daemon.count(m.Goodbye) == 1
    handles = [
        new.handle for e in daemon.received if isinstance(e, m.Exec) for new in e.new_requests
    ]
    assert len(handles) == 3 * len(PROMPTS)
    assert max(handles) < len(PROMPTS)


def test_the_set_up_says_what_the_options_say(
    daemon: FakeDaemon, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_METAL_MEMORY_FRACTION", "0.25")
    monkeypatch.setenv("METAL_RPC_WEIGHT", "3")
    with engine(
        model_folder, dtype="float16", block_size=8, max_num_seqs=3, max_num_batched_tokens=50
    ):
        hello, load, reserve, create = (
            message for message in daemon.received if not isinstance(message, m.Ping)
        )
    assert isinstance(hello, m.Hello)
    assert hello.frontend == model_folder.name
    assert hello.weight == 3
    assert load == m.LoadModel(str(model_folder), "float16", 128, 3, 50, "raw_logprobs")
    assert reserve == m.ReserveMemory(0.25)
    assert create == m.CreateCache(64, 8, [[0, 1]])


def test_layers_of_two_kinds_are_two_groups(daemon: FakeDaemon, model_folder: Path) -> None:
    daemon.script.sliding_window = 16
    with engine(model_folder):
        pass
    (create,) = (message for message in daemon.received if isinstance(message, m.CreateCache))
    assert sorted(layer for group in create.groups for layer in group) == [0, 1]


def test_a_refused_model_ends_the_start_with_the_daemons_words(
    daemon: FakeDaemon, model_folder: Path
) -> None:
    words = "model_type `qwen3` needs tensors that are missing"
    daemon.script.refuse[m.LoadModel] = m.ErrorReply(
        ErrorCode.MODEL_NOT_FOUND, Scope.SESSION, words
    )
    with pytest.raises(ModelNotFound, match=words), engine(model_folder):
        pass


def test_too_little_memory_ends_the_start(daemon: FakeDaemon, model_folder: Path) -> None:
    with (
        pytest.raises(ValueError, match="--kv-cache-memory-bytes 2097152"),
        engine(model_folder, kv_cache_memory_bytes=2 << 20),
    ):
        pass


def test_an_unsupported_parameter_is_refused_before_it_is_scheduled(
    daemon: FakeDaemon, model_folder: Path
) -> None:
    with engine(model_folder) as llm:
        with pytest.raises(VLLMValidationError, match="thinking_token_budget"):
            llm.generate([{"prompt_token_ids": [5]}], SamplingParams(thinking_token_budget=3))
        assert daemon.count(m.Exec) == 0


def test_a_daemon_that_does_not_come_back_fails_the_request(
    daemon: FakeDaemon, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAL_RPC_RECOVERY_TIMEOUT_S", "0.3")
    with engine(model_folder) as llm:
        daemon.script.down_s = 60
        daemon.script.restart_after = [daemon.num_steps + 5]
        with pytest.raises(DaemonUnavailable, match="METAL_RPC_RECOVERY_TIMEOUT_S"):
            tokens_of(llm)


def test_one_request_may_fail_alone(daemon: FakeDaemon, model_folder: Path) -> None:
    daemon.script.fail_token = 11
    prompts = [[5] * 20, [11] * 20]
    with engine(model_folder) as llm:
        good, bad = llm.generate([{"prompt_token_ids": p} for p in prompts], GREEDY, use_tqdm=False)
    assert list(good.outputs[0].token_ids) == expected_tokens(daemon, prompts[:1])[0]
    assert bad.outputs[0].finish_reason == "error"


def test_calls_by_name(daemon: FakeDaemon, model_folder: Path) -> None:
    with engine(model_folder) as llm:
        assert llm.collective_rpc("synchronize_device") == [None]
        with pytest.raises(NotImplementedError, match="LoRA"):
            llm.collective_rpc("add_lora", args=(None,))
        with pytest.raises(NotImplementedError, match="profile"):
            llm.start_profile()
        llm.reset_prefix_cache()
        assert tokens_of(llm) == expected_tokens(daemon)
