"""The tests' own codec against the goldens: two people read PROTOCOL.md the same way."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from framework import paths, wire

GOLDENS = sorted(path.stem for path in paths.GOLDEN.glob("*.json"))


def test_there_are_goldens() -> None:
    assert len(GOLDENS) >= 20


@pytest.mark.parametrize("name", GOLDENS)
def test_golden_encodes_and_decodes(name: str) -> None:
    frame = (paths.GOLDEN / f"{name}.msgpack").read_bytes()
    form = _read(paths.GOLDEN / f"{name}.json")
    if "session" in form:
        session = bytes.fromhex(form["session"] or "")
        arguments = (form["name"], session, form["seq"], form["body"])
        assert wire.decode_request(frame) == arguments
        assert wire.encode_request(*arguments) == frame
    else:
        reply = wire.Reply(form["name"], form["seq"], form["body"])
        _assert_alike(wire.decode_reply(frame)._asdict(), reply._asdict())
        assert wire.encode_reply(reply) == frame


def _read(path: Path) -> dict[str, Any]:
    form = json.loads(path.read_text())
    if form["name"] == "Welcome":
        form["body"]["session"] = bytes.fromhex(form["body"]["session"])
    return form


def _assert_alike(actual: Any, expected: Any) -> None:
    """Equal, where JSON shows a float of 32 bits with the fewest digits that mean it."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            _assert_alike(actual[key], value)
    elif isinstance(expected, list):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            _assert_alike(one, other)
    elif isinstance(expected, float):
        assert math.isclose(actual, expected, rel_tol=2**-24)
    else:
        assert actual == expected
