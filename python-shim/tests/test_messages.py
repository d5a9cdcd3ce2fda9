"""The golden messages of the protocol crate, read and written again."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from vllm_metal_rpc import codec, messages
from vllm_metal_rpc.errors import DaemonError, ErrorCode, ProtocolViolation, daemon_error

GOLDEN = Path(__file__).resolve().parents[2] / "protocol" / "golden"
FLOAT_ARRAYS = {
    (messages.Logprobs, "logprobs"),
    (messages.PromptTokenIdLogprobs, "logprobs"),
}
BYTES = {(messages.Welcome, "session")}


def named(value: Any) -> Any:
    """A struct as the golden's JSON shows it."""
    if isinstance(value, messages.Message):
        return {
            field: array(type(value), field, getattr(value, field))
            for field in value.__struct_fields__
        }
    if isinstance(value, list | tuple):
        return [named(element) for element in value]
    return value


def array(struct: type, field: str, value: Any) -> Any:
    if not isinstance(value, bytes):
        return named(value)
    if (struct, field) in BYTES:
        return value.hex()
    dtype = "<f4" if (struct, field) in FLOAT_ARRAYS else "<i4"
    return np.frombuffer(value, dtype).tolist()


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_golden_has_the_same_fields_and_bytes(path: Path) -> None:
    expected = json.loads(path.read_text())
    frame = path.with_suffix(".msgpack").read_bytes()
    if "session" in expected:
        message, session, seq = codec.decode_request(frame)
        assert session.hex() == (expected["session"] or "")
        assert codec.encode_request(message, session, seq) == frame
        known = codec.REQUESTS
    else:
        message, seq = codec.decode_reply(frame)
        assert codec.encode_reply(message, seq) == frame
        known = codec.REPLIES
    assert type(message) is known[expected["opcode"]]
    assert type(message).__name__.removesuffix("Reply") == expected["name"]
    assert seq == expected["seq"]
    assert named(message) == expected["body"]


def test_every_message_has_a_golden() -> None:
    seen = {json.loads(path.read_text())["name"] for path in GOLDEN.glob("*.json")}
    structs = [*codec.REQUESTS.values(), *codec.REPLIES.values()]
    assert seen == {struct.__name__.removesuffix("Reply") for struct in structs}


@pytest.mark.parametrize(
    "frame", [b"", b"\xc1", b"\x93\x01\x01", b"\x93\x63\x01\x90", b"\x93\x01\x01\x91\xa1x"]
)
def test_other_bytes_are_refused(frame: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        codec.decode_reply(frame)


@pytest.mark.parametrize("code", ErrorCode)
def test_every_error_code_has_its_exception(code: ErrorCode) -> None:
    error = daemon_error(code, 1, "no room")
    assert isinstance(error, DaemonError)
    assert error.code is code
    assert str(error) == "no room"


def test_an_unknown_error_code_is_not_swallowed() -> None:
    error = daemon_error(999, 0, "something new")
    assert isinstance(error, ProtocolViolation)
    assert "something new" in str(error)
