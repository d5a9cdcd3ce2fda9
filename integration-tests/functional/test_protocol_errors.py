"""Whatever one frontend sends, it gets a typed error, and the other sessions go on."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from framework import wire
from framework.daemon import Daemon
from framework.frontend import DaemonError, Frontend, new_request, ready_frontend
from framework.greedy import generate
from framework.wire import Body

PROMPT = [5, 17, 200, 31, 8, 9]
PREFILL: Body = {"handles": [0], "num_computed_tokens": [0], "num_scheduled_tokens": [6]}

Break = Callable[[Frontend], object]


@pytest.fixture(scope="module")
def model(tiny: Callable[[str], Path]) -> Path:
    return tiny("gqa")


@pytest.fixture
def frontend(daemon: Daemon, model: Path) -> Iterator[Frontend]:
    with ready_frontend(daemon.endpoint, model, num_blocks=64, max_model_len=128) as ready:
        yield ready


@pytest.fixture
def bystander(daemon: Daemon, model: Path) -> Iterator[Frontend]:
    """Another session of the same model that must not notice anything."""
    with ready_frontend(daemon.endpoint, model) as other:
        before = generate(other, [PROMPT], 8)
        yield other
        assert generate(other, [PROMPT], 8) == before
        other.goodbye()


def opened(frontend: Frontend, **sampling: object) -> None:
    """Opens request 0 and computes its prompt."""
    frontend.step(new_requests=[new_request(0, PROMPT, [1], **sampling)], **PREFILL)


def decode(frontend: Frontend, **fields: object) -> Body:
    """One more token of request 0."""
    return frontend.step(**({"handles": [0], "num_computed_tokens": [6]} | fields))


INVALID_STEPS: dict[str, tuple[Break, str]] = {
    "an unknown handle": (lambda f: decode(f, handles=[5]), "handle 5"),
    "an unknown finished handle": (lambda f: f.step(finished=[9]), "handle 9"),
    "a handle beyond the limit": (
        lambda f: f.step(new_requests=[new_request(1 << 31, PROMPT, [2])]),
        f"handle {1 << 31}",
    ),
    "a handle twice": (
        lambda f: decode(f, handles=[0, 0], num_computed_tokens=[6, 7]),
        "twice",
    ),
    "a block beyond the grant": (
        lambda f: f.step(new_requests=[new_request(1, PROMPT, [64])], **PREFILL | {"handles": [1]}),
        "64",
    ),
    "the null block": (
        lambda f: f.step(new_requests=[new_request(1, PROMPT, [0])], **PREFILL | {"handles": [1]}),
        "block 0",
    ),
    "too few blocks": (
        lambda f: f.step(new_requests=[new_request(1, PROMPT, [])], **PREFILL | {"handles": [1]}),
        "needs 1 blocks",
    ),
    "blocks of two groups": (
        lambda f: decode(f, new_blocks=[{"row": 0, "block_ids": [[2], [3]]}]),
        "groups",
    ),
    "blocks for a row that is not there": (
        lambda f: decode(f, new_blocks=[{"row": 1, "block_ids": [[2]]}]),
        "row 1",
    ),
    "tokens that nobody knows": (lambda f: decode(f, num_computed_tokens=[40]), "40"),
    "no tokens": (lambda f: decode(f, num_scheduled_tokens=[0]), "no token"),
    "too many rows": (
        lambda f: decode(f, handles=list(range(33)), num_computed_tokens=[6] * 33),
        "max_num_seqs",
    ),
    "too many tokens": (
        lambda f: f.step(
            new_requests=[
                new_request(h, [7] * 127, list(range(8 * h, 8 * h + 8))) for h in range(1, 6)
            ],
            handles=[1, 2, 3, 4, 5],
            num_computed_tokens=[0] * 5,
            num_scheduled_tokens=[127] * 5,
        ),
        "max_num_batched_tokens",
    ),
    "counts that do not match": (
        lambda f: decode(f, num_computed_tokens=[]),
        "num_computed_tokens",
    ),
    "a prompt that is too long": (
        lambda f: f.step(new_requests=[new_request(1, [7] * 129, list(range(2, 12)))]),
        "max_model_len",
    ),
    "an empty prompt": (lambda f: f.step(new_requests=[new_request(1, [], [2])]), "prompt"),
    "a token beyond the vocabulary": (
        lambda f: f.step(new_requests=[new_request(1, [5, 320], [2])]),
        "token 1 of request",
    ),
    "a negative token": (
        lambda f: f.step(new_requests=[new_request(1, [5, -1], [2])]),
        "token 1 of request",
    ),
    "a bitmask of the wrong size": (
        lambda f: decode(f, grammar={"rows": [0], "bitmask": [0] * 9}),
        "bitmask",
    ),
    "a grammar for a row that is not there": (
        lambda f: decode(f, grammar={"rows": [3], "bitmask": [0] * 10}),
        "row 3",
    ),
}


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("case", INVALID_STEPS)
def test_an_invalid_step_ends_its_session(frontend: Frontend, case: str) -> None:
    cause, named = INVALID_STEPS[case]
    opened(frontend)
    with pytest.raises(DaemonError) as caught:
        cause(frontend)
    error = caught.value
    assert (error.code, error.scope) == ("InvalidStep", "session"), error
    assert named in error.message
    _wait_until_gone(frontend)


def _wait_until_gone(frontend: Frontend) -> None:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        frontend.send("Ping")
        reply = frontend.receive()
        if reply.name == "Error":
            assert wire.ERROR_CODES[reply.body["code"]] == "UnknownSession"
            return
        assert reply.name == "Pong"
        time.sleep(0.05)
    raise AssertionError("the session is still there")


OUT_OF_ORDER: dict[str, Break] = {
    "a second model": lambda f: f.load_model("/nowhere"),
    "a second cache": lambda f: f.create_cache(64),
    "memory after the cache": lambda f: f.call(
        "ReserveMemory", "MemoryReserved", memory_fraction=0.1
    ),
}


@pytest.mark.parametrize("case", OUT_OF_ORDER)
def test_what_is_not_legal_yet_or_any_more_changes_nothing(frontend: Frontend, case: str) -> None:
    opened(frontend)
    with pytest.raises(DaemonError) as caught:
        OUT_OF_ORDER[case](frontend)
    assert (caught.value.code, caught.value.scope) == ("OutOfOrder", "request"), caught.value
    assert decode(frontend)["token_ids"] != [-1]


def test_steps_before_the_cache_are_refused(daemon: Daemon, model: Path) -> None:
    with Frontend(daemon.endpoint) as early:
        early.hello()
        for send in (early.step, lambda: early.create_cache(64)):
            with pytest.raises(DaemonError) as caught:
                send()
            assert caught.value.code == "OutOfOrder"
        early.load_model(model)
        early.create_cache(64)
        opened(early)


def test_a_third_step_in_flight_is_refused(frontend: Frontend) -> None:
    opened(frontend)
    # Sampling waits for grammars that do not come, so the steps stay in flight.
    sent = [
        frontend.exec(handles=[0], num_computed_tokens=[6 + i], sample_follows=True)
        for i in range(3)
    ]
    with pytest.raises(DaemonError) as caught:
        frontend.expect("StepResult", sent[2])
    assert (caught.value.code, caught.value.scope) == ("TooManySteps", "request"), caught.value
    for seq in sent[:2]:
        frontend.send("Sample", exec_seq=seq, grammar=None)
        assert frontend.expect("StepResult", seq)["token_ids"] != [-1]


@pytest.mark.parametrize("session", [b"", b"x" * 16], ids=["none", "invented"])
def test_an_unknown_session_is_refused(daemon: Daemon, session: bytes) -> None:
    with Frontend(daemon.endpoint) as stranger:
        stranger.session = session
        for name in ("Ping", "Goodbye"):
            with pytest.raises(DaemonError) as caught:
                stranger.expect("Farewell", stranger.send(name))
            assert caught.value.code == "UnknownSession"


def test_a_session_ends_with_goodbye(frontend: Frontend) -> None:
    session = frontend.session
    frontend.goodbye()
    frontend.session = session
    with pytest.raises(DaemonError) as caught:
        frontend.step()
    assert caught.value.code == "UnknownSession"


def test_a_session_survives_its_socket(daemon: Daemon, frontend: Frontend) -> None:
    opened(frontend)
    with Frontend(daemon.endpoint) as again:
        again.session = frontend.session
        again._seq = frontend._seq
        assert decode(again)["token_ids"] != [-1]


def test_a_protocol_version_of_the_future_is_refused(daemon: Daemon) -> None:
    with Frontend(daemon.endpoint) as future, pytest.raises(DaemonError) as caught:
        future.call(
            "Hello",
            "Welcome",
            min_protocol_version=2,
            max_protocol_version=9,
            vllm_version="9.9",
            frontend="future",
            pid=1,
            weight=1,
        )
    assert caught.value.code == "UnsupportedProtocol"


@pytest.mark.parametrize("weight", [0, 101])
def test_a_weight_out_of_range_is_refused(daemon: Daemon, weight: int) -> None:
    with Frontend(daemon.endpoint) as frontend, pytest.raises(DaemonError) as caught:
        frontend.hello(weight=weight)
    assert caught.value.code == "BadMessage"
    assert "METAL_RPC_WEIGHT" in caught.value.message


GARBAGE: dict[str, bytes] = {
    "an empty frame": b"",
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "zeros": bytes(1000),
    "another msgpack value": b"\x81\xa1a\x01",
    "an unknown opcode": b"\x94\x63\xc4\x00\x01\x90",
    "a truncated message": b"\x94\x05\xc4\x10",
    "bytes after the message": b"\x94\x09\xc4\x00\x01\x90\x00",
    "nested arrays": b"\x91" * 100_000 + b"\xc0",
    "an announced array of four billion": b"\x94\x05\xc4\x00\x01\xdd\xff\xff\xff\xff",
    "an announced string of four billion": b"\x94\x01\xc4\x00\x01\x95\x01\x01\xdb\xff\xff\xff\xff",
}


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("case", GARBAGE)
def test_garbage_is_refused_and_the_session_goes_on(frontend: Frontend, case: str) -> None:
    opened(frontend)
    frontend.send_frame(GARBAGE[case])
    refused = frontend.receive()
    assert refused.name == "Error"
    assert wire.ERROR_CODES[refused.body["code"]] == "BadMessage"
    assert decode(frontend)["token_ids"] != [-1]


def test_a_message_of_several_frames_is_dropped(frontend: Frontend) -> None:
    opened(frontend)
    frontend.send_frame(*([b"\x94\x09\xc4\x00\x01\x90"] * 1000))
    assert decode(frontend)["token_ids"] != [-1]


def test_a_flood_of_garbage_does_not_stop_others(daemon: Daemon, bystander: Frontend) -> None:
    with Frontend(daemon.endpoint) as hostile:
        for _ in range(2000):
            hostile.send_frame(b"\xc1" * 100)
        assert generate(bystander, [PROMPT], 8)
    assert daemon.is_running()
