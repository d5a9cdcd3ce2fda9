"""The session against a daemon that answers, dies, falls silent or refuses."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fake_daemon import FakeDaemon
from vllm_metal_rpc import messages as m
from vllm_metal_rpc.errors import (
    DaemonUnavailable,
    ErrorCode,
    InvalidStep,
    MetalRpcError,
    ModelNotFound,
    OutOfMemory,
    Scope,
    TooManySteps,
)
from vllm_metal_rpc.link import Server
from vllm_metal_rpc.opening import Options
from vllm_metal_rpc.session import Lost, Session, Step

LOAD = m.LoadModel("/m", "bfloat16", 128, 8, 64, "raw_logprobs")
PROMPT = [5, 6, 7]


def new_session(endpoint: str, timeout_s: float = 10.0) -> Session:
    return Session(Options(Server(endpoint), "0.33.0", "test", 1, timeout_s, None))


def set_up(session: Session) -> None:
    session.set_up(LOAD, m.ModelLoaded)
    session.set_up(m.ReserveMemory(0.5), m.MemoryReserved)
    session.set_up(m.CreateCache(64, 4, [[0, 1]]), m.CacheCreated)


@pytest.fixture
def session(daemon: FakeDaemon, endpoint: str) -> Iterator[Session]:
    session = new_session(endpoint)
    session.open()
    set_up(session)
    yield session
    session.close()


def exec_of(
    handle: int = 0, *, new: bool = True, computed: int = 0, sample_follows: bool = False
) -> m.Exec:
    request = m.NewRequest(
        handle,
        f"r{handle}",
        np.asarray(PROMPT, "<i4").tobytes(),
        len(PROMPT),
        [[1 + 4 * handle, 2 + 4 * handle]],
        m.SamplingParams(),
    )
    return m.Exec(
        sample_follows=sample_follows,
        finished=[],
        new_requests=[request] if new else [],
        handles=[handle],
        num_computed_tokens=[computed],
        num_scheduled_tokens=[len(PROMPT)] if new else [],
        new_blocks=[],
        block_copies=[],
        grammar=None,
    )


def submit(session: Session, step: m.Exec, generation: int = 0) -> Step:
    return session.submit(step, generation, lambda reply: reply)


def wait(step: Step) -> Any:
    return step.future.result()


def assert_crashed(reply: Any, generation: int = 1) -> None:
    assert isinstance(reply, Lost)
    assert reply.generation == generation
    assert reply.crash, "a step may be the cause, and nobody says so"


def until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def without_pings(daemon: FakeDaemon) -> list[m.Message]:
    """What has arrived, but for heartbeats, whose moments are nobody's choice."""
    return [message for message in daemon.received if not isinstance(message, m.Ping)]


def test_set_up_and_steps_are_answered_in_order(session: Session, daemon: FakeDaemon) -> None:
    first = submit(session, exec_of())
    second = submit(session, exec_of(new=False, computed=3))
    assert isinstance(wait(first), m.StepResult)
    assert isinstance(wait(second), m.StepResult)
    kinds = [type(message) for message in without_pings(daemon)]
    assert kinds == [m.Hello, m.LoadModel, m.ReserveMemory, m.CreateCache, m.Exec, m.Exec]


def test_a_grammar_follows_its_step(session: Session, daemon: FakeDaemon) -> None:
    step = submit(session, exec_of(sample_follows=True))
    until(lambda: daemon.count(m.Exec) == 1)
    assert not step.future.done()
    grammar = m.GrammarBitmask([0], b"\0\0\0\0")
    session.sample(step, grammar)
    assert isinstance(wait(step), m.StepResult)
    assert without_pings(daemon)[-1] == m.Sample(step.seq, grammar)


def test_lost_steps_are_resolved_once_and_the_set_up_is_repeated(
    session: Session, daemon: FakeDaemon
) -> None:
    wait(submit(session, exec_of()))
    daemon.script.step_delay_s = 0.2
    daemon.script.restart_after = [daemon.num_steps + 1]
    lost = [
        submit(session, exec_of(new=False, computed=3)),
        submit(session, exec_of(new=False, computed=4)),
    ]
    # The answer to the first may still get out before the daemon dies.
    assert_crashed(wait(lost[1]))
    assert wait(lost[0]) == wait(lost[1]) or isinstance(wait(lost[0]), m.StepResult)
    for kind in (m.Hello, m.LoadModel, m.ReserveMemory, m.CreateCache):
        assert daemon.count(kind) == 2
    reserved = [message for message in daemon.received if isinstance(message, m.ReserveMemory)]
    assert [message.memory_fraction for message in reserved] == [0.5, 1.0]
    daemon.script.step_delay_s = 0
    assert isinstance(wait(submit(session, exec_of(), generation=1)), m.StepResult)


def test_a_step_of_an_older_generation_is_never_sent(session: Session, daemon: FakeDaemon) -> None:
    wait(submit(session, exec_of()))
    daemon.restart()
    until(lambda: daemon.count(m.CreateCache) == 2)
    until(lambda: submit(session, exec_of(new=False, computed=3)).future.result(10) == Lost(1))
    assert isinstance(wait(submit(session, exec_of(), generation=1)), m.StepResult)
    assert daemon.count(m.Exec) == 2


def test_a_step_without_a_daemon_waits_and_is_lost(session: Session, daemon: FakeDaemon) -> None:
    wait(submit(session, exec_of()))
    daemon.script.down_s = 60
    daemon._restart.set()
    until(lambda: session._link is None)
    steps = [submit(session, exec_of(handle)) for handle in (1, 2, 3)]
    daemon.script.down_s = 0
    assert [wait(step) for step in steps] == [Lost(1)] * 3
    assert daemon.count(m.Exec) == 1


@pytest.mark.parametrize(
    "deaths",
    [
        [m.Exec],
        [m.Sample],
        [m.Exec, m.Hello, m.LoadModel, m.ReserveMemory, m.CreateCache],
    ],
    ids=lambda deaths: "+".join(kind.__name__ for kind in deaths),
)
def test_a_daemon_may_die_at_every_message(
    session: Session, daemon: FakeDaemon, deaths: list[type]
) -> None:
    daemon.script.die_at = list(deaths)
    step = submit(session, exec_of(sample_follows=True))
    session.sample(step, None)
    assert_crashed(wait(step))
    assert daemon.num_restarts == len(deaths)
    assert isinstance(wait(submit(session, exec_of(), generation=1)), m.StepResult)


def test_a_daemon_may_die_at_a_heartbeat(session: Session, daemon: FakeDaemon) -> None:
    wait(submit(session, exec_of()))
    daemon.script.die_at = [m.Ping]
    until(lambda: daemon.count(m.CreateCache) == 2)
    assert wait(submit(session, exec_of(new=False, computed=3))) == Lost(1)
    assert daemon.num_restarts == 1
    assert isinstance(wait(submit(session, exec_of(), generation=1)), m.StepResult)


@pytest.mark.parametrize("kind", [m.Hello, m.LoadModel, m.ReserveMemory, m.CreateCache])
def test_a_daemon_may_die_while_the_frontend_starts(
    daemon: FakeDaemon, endpoint: str, kind: type
) -> None:
    daemon.script.die_at = [kind]
    session = new_session(endpoint)
    session.open()
    set_up(session)
    assert daemon.num_restarts == 1
    assert isinstance(wait(submit(session, exec_of())), m.StepResult)
    session.close()


def test_every_daemon_that_dies_begins_a_generation(session: Session, daemon: FakeDaemon) -> None:
    for generation in range(3):
        daemon.script.die_at = [m.Exec]
        assert_crashed(wait(submit(session, exec_of(), generation)), generation + 1)
    assert isinstance(wait(submit(session, exec_of(), 3)), m.StepResult)


def test_a_daemon_that_says_that_it_stops_has_not_crashed(
    session: Session, daemon: FakeDaemon
) -> None:
    daemon.script.refuse[m.Exec] = m.ErrorReply(ErrorCode.SHUTTING_DOWN, Scope.DAEMON, "upgrade")
    assert wait(submit(session, exec_of())) == Lost(1)


def test_what_a_loss_took_is_logged_in_its_parts(
    session: Session, daemon: FakeDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "vllm.metal_rpc")
    daemon.script.die_at = [m.Exec]
    wait(submit(session, exec_of()))
    wait(submit(session, exec_of(), generation=1))
    wait(submit(session, exec_of(1), generation=1))
    (line,) = [text for text in caplog.messages if text.startswith("Recovered")]
    for part in ("noticing", "start", "load", "recompute", "1 steps lost", "closed the connection"):
        assert part in line


def test_a_daemon_that_forgot_us_is_asked_again(session: Session, daemon: FakeDaemon) -> None:
    wait(submit(session, exec_of()))
    daemon.sessions.clear()
    assert wait(submit(session, exec_of(new=False, computed=3))) == Lost(1)
    assert daemon.num_restarts == 0
    assert daemon.count(m.Hello) == 2


def test_an_idle_session_keeps_its_lease(session: Session, daemon: FakeDaemon) -> None:
    before = daemon.count(m.Ping)
    until(lambda: daemon.count(m.Ping) >= before + 3)
    assert isinstance(wait(submit(session, exec_of())), m.StepResult)


def test_a_silent_daemon_is_lost(daemon: FakeDaemon, endpoint: str) -> None:
    daemon.script.lease_ms = 1500
    session = new_session(endpoint)
    session.open()
    set_up(session)
    daemon.script.mute = True
    step = submit(session, exec_of())
    until(lambda: session._link is None)
    daemon.script.mute = False
    assert_crashed(wait(step))
    # It was the same one all along, and the session that it has lost is closed.
    until(lambda: len(daemon.sessions) == 1)
    assert daemon.count(m.Goodbye) >= 1
    session.close()


def test_the_wait_for_a_daemon_has_an_end(daemon: FakeDaemon, endpoint: str) -> None:
    session = new_session(endpoint, timeout_s=0.3)
    session.open()
    set_up(session)
    failed = threading.Event()
    session.on_failure(failed.set)
    daemon.script.down_s = 60
    daemon._restart.set()
    until(lambda: session._link is None)
    step = submit(session, exec_of())
    with pytest.raises(
        DaemonUnavailable, match=r"for 0.3 s .*was lost \(the daemon closed .*AUTOSTART=0"
    ):
        wait(step)
    assert failed.wait(60)
    with pytest.raises(DaemonUnavailable):
        wait(submit(session, exec_of()))
    late = threading.Event()
    session.on_failure(late.set)
    assert late.is_set()
    session.close()


def test_nobody_there_is_an_error_that_names_the_place(endpoint: str) -> None:
    session = new_session(endpoint, timeout_s=0.2)
    with pytest.raises(DaemonUnavailable, match=endpoint):
        session.open()


@pytest.mark.parametrize(
    ("code", "error"), [(ErrorCode.MODEL_NOT_FOUND, ModelNotFound), (10, OutOfMemory)]
)
def test_a_refused_set_up_raises_the_daemons_words(
    daemon: FakeDaemon, endpoint: str, code: int, error: type[MetalRpcError]
) -> None:
    daemon.script.refuse[m.LoadModel] = m.ErrorReply(code, Scope.REQUEST, "no folder /m")
    session = new_session(endpoint)
    session.open()
    with pytest.raises(error, match="no folder /m"):
        session.set_up(LOAD, m.ModelLoaded)
    # The session is as if it had not been asked.
    assert session.set_up(LOAD, m.ModelLoaded).model_type == "qwen3"
    session.close()


def test_a_cache_that_does_not_fit_after_a_restart_is_asked_for_again(
    session: Session, daemon: FakeDaemon
) -> None:
    wait(submit(session, exec_of()))
    daemon.script.refuse[m.CreateCache] = m.ErrorReply(10, Scope.SESSION, "held by others")
    daemon._restart.set()
    until(lambda: daemon.count(m.CreateCache) == 3)
    until(lambda: wait(submit(session, exec_of(new=False, computed=3))) == Lost(1))


def test_a_broken_step_ends_all_steps_with_its_error(session: Session) -> None:
    bad = submit(session, exec_of(7, new=False, computed=3))
    with pytest.raises(InvalidStep, match="handle 7 is not in use"):
        wait(bad)


def test_a_refused_step_is_an_error_of_that_step(session: Session, daemon: FakeDaemon) -> None:
    daemon.script.refuse[m.Exec] = m.ErrorReply(6, Scope.REQUEST, "3 steps are in flight")
    with pytest.raises(TooManySteps, match="3 steps are in flight"):
        wait(submit(session, exec_of()))
    assert isinstance(wait(submit(session, exec_of())), m.StepResult)


@pytest.mark.parametrize("code", [ErrorCode.STEP_FAILED, ErrorCode.OUT_OF_MEMORY])
def test_a_failed_step_is_lost_and_the_session_is_opened_again(
    session: Session, daemon: FakeDaemon, code: ErrorCode
) -> None:
    wait(submit(session, exec_of()))
    daemon.script.refuse[m.Exec] = m.ErrorReply(code, Scope.SESSION, "the device gave up")
    failed = submit(session, exec_of(new=False, computed=3))
    assert wait(failed) == Lost(1, "the device gave up")
    assert daemon.num_restarts == 0
    assert isinstance(wait(submit(session, exec_of(), generation=1)), m.StepResult)


def test_a_refused_grammar_is_an_error_of_its_step(session: Session, daemon: FakeDaemon) -> None:
    step = submit(session, exec_of(sample_follows=True))
    daemon.script.refuse[m.Sample] = m.ErrorReply(11, Scope.REQUEST, "too many rows")
    session.sample(step, None)
    with pytest.raises(InvalidStep, match="too many rows"):
        wait(step)


def test_close_says_goodbye(session: Session, daemon: FakeDaemon) -> None:
    session.close()
    assert isinstance(daemon.received[-1], m.Goodbye)
    assert not daemon.sessions
    with pytest.raises(DaemonUnavailable, match="closed"):
        wait(submit(session, exec_of()))


def test_many_steps_under_random_restarts_are_each_answered_once(
    session: Session, daemon: FakeDaemon
) -> None:
    # Goal: no step is forgotten or answered twice. Method: a new request and its first decode step
    # overlap, with a restart of the daemon after a random one; a third step ends the request.
    seed = 0x5EED
    rng = np.random.default_rng(seed)
    generation, num_lost = 0, 0
    ends = exec_of()
    ends.new_requests, ends.handles, ends.finished = [], [], [0]
    ends.num_computed_tokens, ends.num_scheduled_tokens = [], []
    for _ in range(60):
        if rng.random() < 0.2:
            daemon.script.restart_after = [daemon.num_steps + int(rng.integers(1, 4))]
        answers: list[Any] = []
        steps = [
            session.submit(request, generation, answers.append)
            for request in (exec_of(), exec_of(new=False, computed=3), ends)
        ]
        for step in steps:
            wait(step)
        assert len(answers) == len(steps), f"seed {seed:#x}"
        lost = [answer.generation for answer in answers if isinstance(answer, Lost)]
        num_lost += len(lost)
        generation = max([generation, *lost])
    assert num_lost > 0, f"seed {seed:#x}"
