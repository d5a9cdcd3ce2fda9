"""Structs to frames and back: the opcodes, and the envelope around each struct.

A message is one msgpack array, `[opcode, session, seq, body]` as a request and
`[opcode, seq, body]` as a reply; `body` is the array of the struct's fields.
"""

from typing import Any, Final

import msgspec

from vllm_metal_rpc import messages
from vllm_metal_rpc.messages import Message

REQUESTS: Final[dict[int, type[Message]]] = {
    1: messages.Hello,
    2: messages.LoadModel,
    3: messages.ReserveMemory,
    4: messages.CreateCache,
    5: messages.Exec,
    6: messages.Sample,
    7: messages.Ping,
    8: messages.Goodbye,
    9: messages.Status,
}
REPLIES: Final[dict[int, type[Message]]] = {
    1: messages.Welcome,
    2: messages.LoadProgress,
    3: messages.ModelLoaded,
    4: messages.MemoryReserved,
    5: messages.CacheCreated,
    6: messages.StepResult,
    7: messages.Pong,
    8: messages.Farewell,
    9: messages.StatusReport,
    10: messages.ErrorReply,
}

_request_opcodes = {struct: opcode for opcode, struct in REQUESTS.items()}
_reply_opcodes = {struct: opcode for opcode, struct in REPLIES.items()}
_encode = msgspec.msgpack.Encoder().encode
_request_decoder = msgspec.msgpack.Decoder(tuple[int, bytes, int, msgspec.Raw])
_reply_decoder = msgspec.msgpack.Decoder(tuple[int, int, msgspec.Raw])
_request_bodies = {opcode: msgspec.msgpack.Decoder(struct) for opcode, struct in REQUESTS.items()}
_reply_bodies = {opcode: msgspec.msgpack.Decoder(struct) for opcode, struct in REPLIES.items()}


def encode_request(request: Message, session: bytes, seq: int) -> bytes:
    """Writes one request; `session` is `NO_SESSION` in `Hello` and `Status`."""
    return _encode((_request_opcodes[type(request)], session, seq, request))


def encode_reply(reply: Message, seq: int) -> bytes:
    """Writes one reply, as the daemon does."""
    return _encode((_reply_opcodes[type(reply)], seq, reply))


def decode_request(frame: bytes) -> tuple[Message, bytes, int]:
    """Reads one request, as the daemon does.

    Returns:
        The request, the session's token and the sequence number.

    Raises:
        msgspec.DecodeError: The bytes are not a request of this protocol.
    """
    opcode, session, seq, body = _request_decoder.decode(frame)
    return _body(_request_bodies, opcode, body), session, seq


def decode_reply(frame: bytes) -> tuple[Message, int]:
    """Reads one reply.

    Returns:
        The reply and the sequence number of the request that it answers.

    Raises:
        msgspec.DecodeError: The bytes are not a reply of this protocol.
    """
    opcode, seq, body = _reply_decoder.decode(frame)
    return _body(_reply_bodies, opcode, body), seq


def _body(decoders: dict[int, Any], opcode: int, body: msgspec.Raw) -> Message:
    decoder = decoders.get(opcode)
    if decoder is None:
        raise msgspec.DecodeError(f"opcode {opcode} is not known")
    return decoder.decode(body)
