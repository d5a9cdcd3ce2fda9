"""The exchange that a TCP connection begins with, against numbers that protocol/ has too."""

import hashlib
import hmac
from pathlib import Path

import pytest

from vllm_metal_rpc import auth
from vllm_metal_rpc.errors import MetalRpcError, Unauthorized

TOKEN = bytes([7] * 40)
OURS, THEIRS = bytes([1] * 32), bytes([2] * 32)
CHALLENGE = b"\x02" + THEIRS
# As in protocol/src/auth.rs.
PROOF_OF_FRONTEND = "8600772d0bfdbff86fd6aa4e4de338fc6bd3124103faadb4ae2feba22ecc0727"
PROOF_OF_DAEMON = "d4ddb0c7170958ddd5d10b12b8efdb0008850fa857062120209f65d6143da012"
SEAL_OF_MESSAGE = "39c8389eb2d0c157acf00d25211c0305433427aaf5c3d1ec6bddf2ee5bad6578"


@pytest.fixture
def exchange() -> auth.Exchange:
    begun = auth.Exchange(TOKEN, OURS)
    assert begun.knock == b"\x01\x01" + OURS
    assert begun.respond(CHALLENGE) == b"\x03" + bytes.fromhex(PROOF_OF_FRONTEND)
    return begun


def test_the_daemon_has_to_hold_the_token(exchange: auth.Exchange) -> None:
    exchange.check(b"\x04" + bytes.fromhex(PROOF_OF_DAEMON))
    for proof in (bytes(32), bytes.fromhex(PROOF_OF_FRONTEND)):
        with pytest.raises(Unauthorized, match="METAL_RPC_TOKEN_FILE"):
            exchange.check(b"\x04" + proof)


def test_a_refusal_is_told_as_somebodys_words(exchange: auth.Exchange) -> None:
    with pytest.raises(Unauthorized, match=r"refuses: 'because\\n'"):
        exchange.check(b"\x05because\n")


@pytest.mark.parametrize("frame", [b"", b"\x02", b"\x02" + bytes(31), b"\x93\x0a\x00\x93"])
def test_what_does_not_speak_it_is_told_apart(frame: bytes) -> None:
    with pytest.raises(Unauthorized, match="does not speak our authentication"):
        auth.Exchange(TOKEN, OURS).respond(frame)


def test_a_sealed_message_opens_once_in_its_place_and_direction(exchange: auth.Exchange) -> None:
    ours = exchange.seal(auth.FRONTEND)
    frames = [ours.close(message) for message in (b"message", b"", b"three")]
    assert frames[0] == b"\x06" + bytes.fromhex(SEAL_OF_MESSAGE) + b"message"
    opener = exchange.seal(auth.FRONTEND)
    assert [opener.open(frame) for frame in frames] == [b"message", b"", b"three"]
    first = frames[0]
    changed = [first[:at] + bytes([first[at] ^ 1]) + first[at + 1 :] for at in range(len(first))]
    for frame in (frames[1], b"", first[:-1], *changed):
        with pytest.raises(auth.BrokenSeal):
            exchange.seal(auth.FRONTEND).open(frame)
    with pytest.raises(auth.BrokenSeal):
        exchange.seal(auth.DAEMON).open(first)
    repeated = exchange.seal(auth.FRONTEND)
    repeated.open(first)
    with pytest.raises(auth.BrokenSeal):
        repeated.open(first)


def test_a_token_is_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(b"x" * 64 + b"\n")
    path.chmod(0o600)
    assert auth.read_token(path) == b"x" * 64
    path.chmod(0o640)
    with pytest.raises(MetalRpcError, match="chmod 600"):
        auth.read_token(path)
    path.chmod(0o600)
    for content in (b"", b"short", b" " * 64, b"x" * 4097):
        path.write_bytes(content)
        with pytest.raises(MetalRpcError, match="openssl rand"):
            auth.read_token(path)
    with pytest.raises(MetalRpcError, match="cannot be read"):
        auth.read_token(tmp_path / "nothing")


def test_a_proof_is_what_the_page_says(exchange: auth.Exchange) -> None:
    """protocol/PROTOCOL.md, written down once more."""
    label = b"metal-rpc 1 proof of frontend"
    expected = hmac.new(TOKEN, label + OURS + THEIRS, hashlib.sha256).hexdigest()
    assert expected == PROOF_OF_FRONTEND
