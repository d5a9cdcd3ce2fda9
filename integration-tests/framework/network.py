"""What is said on a daemon's TCP endpoint, written from protocol/PROTOCOL.md."""

import hashlib
import hmac
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from framework.frontend import REPLY_TIMEOUT_S, Frontend, Peer

KNOCK, CHALLENGE, RESPONSE, ACCEPTED, REFUSED, SEALED = range(1, 7)
_MAC_BYTES: Final = 32


def refusal(peer: Peer) -> str:
    """Waits to be refused. Returns the reason."""
    frame = peer.receive_frame()
    assert frame[0] == REFUSED, frame
    return frame[1:].decode()


@dataclass(frozen=True)
class Keys:
    """What both sides make of the token and of the first two frames."""

    token: bytes
    knock: bytes
    challenge: bytes

    def derive(self, purpose: str, side: str) -> bytes:
        """A MAC of both nonces for one use."""
        label = f"metal-rpc 1 {purpose} of {side}".encode()
        nonces = self.knock[2:] + self.challenge[1:]
        return hmac.digest(self.token, label + nonces, hashlib.sha256)


def seal(key: bytes, count: int, message: bytes) -> bytes:
    """A message as it travels: the `count`-th of its direction."""
    mac = hmac.digest(key, count.to_bytes(8, "big") + message, hashlib.sha256)
    return bytes((SEALED,)) + mac + message


def knock(peer: Peer, token_file: Path) -> Keys:
    """The first two frames. Returns the keys, if the daemon's token is that of `token_file`."""
    ours = bytes((KNOCK, 1)) + os.urandom(32)
    peer.send_frame(ours)
    challenge = peer.receive_frame()
    assert challenge[0] == CHALLENGE, challenge
    return Keys(token_file.read_bytes().strip(), ours, challenge)


def enter(peer: Peer, token_file: Path) -> Keys:
    """The whole exchange."""
    keys = knock(peer, token_file)
    peer.send_frame(response(keys))
    accepted = peer.receive_frame()
    assert accepted == bytes((ACCEPTED,)) + keys.derive("proof", "daemon"), accepted
    return keys


def response(keys: Keys) -> bytes:
    """The frame that proves that we hold the token."""
    return bytes((RESPONSE,)) + keys.derive("proof", "frontend")


class NetworkFrontend(Frontend):
    """A frontend on a TCP endpoint: it has shown its token, and seals what it sends.

    Attributes:
        sent: The frames as they went, for those who listen in.
    """

    def __init__(self, endpoint: str, token_file: Path) -> None:
        super().__init__(endpoint)
        self.sent: list[bytes] = []
        self._num_received = 0
        self._keys: Keys | None = None
        self._keys = enter(self, token_file)

    def send_frame(self, *frames: bytes) -> None:
        """Seals a message, once it may."""
        if self._keys is None:
            return super().send_frame(*frames)
        (message,) = frames
        sealed = seal(self._keys.derive("seal", "frontend"), len(self.sent), message)
        self.sent.append(sealed)
        return super().send_frame(sealed)

    def receive_frame(self, timeout_s: float = REPLY_TIMEOUT_S) -> bytes:
        """Opens a message, once it is sealed."""
        frame = super().receive_frame(timeout_s)
        if self._keys is None:
            return frame
        message = frame[1 + _MAC_BYTES :]
        expected = seal(self._keys.derive("seal", "daemon"), self._num_received, message)
        assert frame == expected, "the daemon's seal is broken"
        self._num_received += 1
        return message
