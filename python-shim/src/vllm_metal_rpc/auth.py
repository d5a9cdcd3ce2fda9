"""What a TCP connection begins with, and the seals on what follows. Pure: no sockets, no clock.

protocol/src/auth.rs is the other half, and protocol/PROTOCOL.md has the exchange and what it
protects from.
"""

import hashlib
import hmac
import os
import stat
from pathlib import Path
from typing import Final

from vllm_metal_rpc.errors import MetalRpcError, Unauthorized

VERSION: Final = 1
NONCE_BYTES: Final = 32
SEAL_BYTES: Final = 33
FRONTEND: Final = b"frontend"
DAEMON: Final = b"daemon"

# A frame's first byte.
_KNOCK: Final = 1
_CHALLENGE: Final = 2
_RESPONSE: Final = 3
_ACCEPTED: Final = 4
_REFUSED: Final = 5
_SEALED: Final = 6

# As in protocol/src/limits.rs.
_MIN_TOKEN_BYTES: Final = 32
_MAX_TOKEN_BYTES: Final = 4096
_MAC_BYTES: Final = 32


class BrokenSeal(MetalRpcError):
    """A frame was changed, repeated, left out or moved on its way."""


def read_token(path: Path) -> bytes:
    """Reads a token; white space around it does not belong to it.

    Raises:
        MetalRpcError: Others could read it, or it is none.
    """
    try:
        with path.open("rb") as file:
            # Of the open file, so that nobody can put another in its place meanwhile.
            status = os.fstat(file.fileno())
            secret = file.read(_MAX_TOKEN_BYTES + 16).strip()
    except OSError as error:
        raise MetalRpcError(f"METAL_RPC_TOKEN_FILE cannot be read: {error}") from error
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise MetalRpcError(
            f"METAL_RPC_TOKEN_FILE names {path}, which must be a file of user {os.geteuid()}, "
            f"closed to others; run: chmod 600 {path}"
        )
    if not _MIN_TOKEN_BYTES <= len(secret) <= _MAX_TOKEN_BYTES:
        raise MetalRpcError(
            f"METAL_RPC_TOKEN_FILE names {path}, which has {len(secret)} bytes; a token has "
            f"{_MIN_TOKEN_BYTES} to {_MAX_TOKEN_BYTES}: make one with `openssl rand -hex 32`"
        )
    return secret


class Exchange:
    """The frontend's side of the exchange: three frames there, two back.

    Attributes:
        knock: The first frame.
    """

    def __init__(self, token: bytes, nonce: bytes) -> None:
        self._token = token
        self._ours = nonce
        self._theirs = b""
        self.knock = bytes((_KNOCK, VERSION)) + nonce

    def respond(self, challenge: bytes) -> bytes:
        """The frame that answers the daemon's challenge.

        Raises:
            Unauthorized: The daemon refuses.
        """
        self._theirs = _body(challenge, _CHALLENGE, NONCE_BYTES)
        return bytes((_RESPONSE,)) + self._mac(b"proof", FRONTEND)

    def check(self, accepted: bytes) -> None:
        """Checks that the daemon holds the token too.

        Raises:
            Unauthorized: It does not, or it refuses.
        """
        proof = _body(accepted, _ACCEPTED, _MAC_BYTES)
        if not hmac.compare_digest(proof, self._mac(b"proof", DAEMON)):
            raise Unauthorized(
                "what listens there does not hold our token, and gets no word of ours; "
                "METAL_RPC_TOKEN_FILE must name the same token on both sides"
            )

    def seal(self, side: bytes) -> "Seal":
        """Seals, or opens, what `side` says from now on."""
        return Seal(self._mac(b"seal", side))

    def _mac(self, purpose: bytes, side: bytes) -> bytes:
        label = b"metal-rpc 1 " + purpose + b" of " + side
        return hmac.digest(self._token, label + self._ours + self._theirs, hashlib.sha256)


class Seal:
    """One direction of a connection: its key, and how many frames went."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._count = 0

    def close(self, message: bytes) -> bytes:
        """Seals the next message."""
        return bytes((_SEALED,)) + self._next_mac(message) + message

    def open(self, frame: bytes) -> bytes:
        """Opens the next frame.

        Raises:
            BrokenSeal: The connection cannot go on.
        """
        mac, message = frame[1:SEAL_BYTES], frame[SEAL_BYTES:]
        if frame[:1] != bytes((_SEALED,)) or not hmac.compare_digest(mac, self._next_mac(message)):
            raise BrokenSeal("a frame of the daemon was changed on its way")
        return message

    def _next_mac(self, message: bytes) -> bytes:
        number = self._count.to_bytes(8, "big")
        self._count += 1
        return hmac.digest(self._key, number + message, hashlib.sha256)


def _body(frame: bytes, kind: int, length: int) -> bytes:
    """The body of a frame of the exchange."""
    if frame[:1] == bytes((_REFUSED,)):
        # Anybody may have said it, so it is shown as what it is: somebody's words.
        reason = frame[1:].decode(errors="replace")
        raise Unauthorized(f"the daemon refuses: {reason!r}")
    if frame[:1] != bytes((kind,)) or len(frame) != 1 + length:
        raise Unauthorized("what listens there does not speak our authentication")
    return frame[1:]
