"""The protocol's messages, written from protocol/PROTOCOL.md and from nothing else.

A message is a dictionary of named fields. It is checked against `protocol/golden/` and so against
the daemon's types; it shares nothing with the shim's structs.
"""

from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

Body = dict[str, Any]

# Requests, replies and structures, each with its fields in the order of the wire. After a colon: a
# structure or an array of raw numbers; `*` is a list of them, `?` one that may be nil.
_SPECS: Final = {
    "Hello": "min_protocol_version max_protocol_version vllm_version frontend pid weight",
    "LoadModel": "path dtype max_model_len max_num_seqs max_num_batched_tokens logprobs_mode",
    "ReserveMemory": "memory_fraction",
    "CreateCache": "num_blocks block_size groups",
    "Exec": (
        "sample_follows finished new_requests:NewRequest* handles num_computed_tokens "
        "num_scheduled_tokens new_blocks:NewBlocks* block_copies grammar:GrammarBitmask?"
    ),
    "Sample": "exec_seq grammar:GrammarBitmask?",
    "Ping": "",
    "Goodbye": "",
    "Status": "",
    "Welcome": ("protocol_version daemon_version pid epoch session heartbeat_ms lease_ms device"),
    "LoadProgress": "loaded_bytes total_bytes",
    "ModelLoaded": "model_type vocab_size weights_bytes load_ms kv_cache_specs:KvCacheSpec*",
    "MemoryReserved": "available_bytes",
    "CacheCreated": "num_blocks block_bytes",
    "StepResult": (
        "token_ids:i32 logprobs:Logprobs? prompt_logprobs:PromptLogprobs* "
        "prompt_token_id_logprobs:PromptTokenIdLogprobs* row_errors:RowError* queue_us run_us"
    ),
    "Pong": "",
    "Farewell": "",
    "StatusReport": (
        "pid epoch version uptime_s restarts previous_end device sessions:SessionStatus* "
        "models:ModelStatus* kv:KvStatus served:ServedStatus footprint_bytes engine_us"
    ),
    "Error": "code scope message",
    "NewRequest": (
        "handle req_id token_ids:i32 num_prompt_tokens block_ids sampling_params:SamplingParams"
    ),
    "SamplingParams": (
        "temperature top_p top_k min_p seed presence_penalty frequency_penalty "
        "repetition_penalty min_tokens stop_token_ids logit_bias allowed_token_ids "
        "bad_words_token_ids logprobs prompt_logprobs logprob_token_ids "
        "thinking_budget:ThinkingBudget? prompt_logprob_token_ids:PromptLogprobTokenIds? "
        "trace_decode_token_ids"
    ),
    "ThinkingBudget": "max_tokens start_token_ids natural_end_token_ids end_token_ids",
    "PromptLogprobTokenIds": "start num_columns token_ids:i32",
    "NewBlocks": "row block_ids",
    "GrammarBitmask": "rows bitmask:i32",
    "Logprobs": "num_columns token_ids:i32 logprobs:f32 ranks:i32",
    "PromptLogprobs": "row logprobs:Logprobs",
    "PromptTokenIdLogprobs": "row num_columns logprobs:f32",
    "RowError": "row message",
    "KvCacheSpec": "layer_name num_kv_heads head_dim dtype sliding_window",
    "SessionStatus": (
        "frontend pid vllm_version model running_requests reserved_bytes granted_blocks "
        "used_blocks steps tokens weight silent_ms lease_left_ms"
    ),
    "ModelStatus": "path model_type dtype weights_bytes sessions",
    "KvStatus": "budget_bytes granted_bytes used_bytes",
    "ServedStatus": "forwards steps tokens submit_us",
}
# Opcodes count from 1 in this order.
_NAMES: Final = list(_SPECS)
_REQUESTS: Final = _NAMES[: _NAMES.index("Status") + 1]
_REPLIES: Final = _NAMES[_NAMES.index("Welcome") : _NAMES.index("Error") + 1]
_RAW: Final = {"i32": "<i4", "f32": "<f4"}

ERROR_CODES: Final = {
    1: "BadMessage",
    2: "UnsupportedProtocol",
    3: "UnknownSession",
    4: "TooManySessions",
    5: "OutOfOrder",
    6: "TooManySteps",
    7: "ModelNotFound",
    8: "UnsupportedModel",
    9: "InvalidModel",
    10: "OutOfMemory",
    11: "InvalidStep",
    12: "Unsupported",
    13: "StepFailed",
    14: "ShuttingDown",
}


class Reply(NamedTuple):
    """A message from the daemon."""

    name: str
    seq: int
    body: Body


def encode_request(name: str, session: bytes, seq: int, body: Body) -> bytes:
    """Writes one request."""
    opcode = _REQUESTS.index(name) + 1
    return msgspec.msgpack.encode([opcode, session, seq, _to_wire(name, body)])


def decode_request(frame: bytes) -> tuple[str, bytes, int, Body]:
    """Reads one request, for comparison with the goldens."""
    opcode, session, seq, body = msgspec.msgpack.decode(frame)
    name = _REQUESTS[opcode - 1]
    return name, session, seq, _from_wire(name, body)


def encode_reply(reply: Reply) -> bytes:
    """Writes one reply, for comparison with the goldens."""
    opcode = _REPLIES.index(reply.name) + 1
    return msgspec.msgpack.encode([opcode, reply.seq, _to_wire(reply.name, reply.body)])


def decode_reply(frame: bytes) -> Reply:
    """Reads one reply."""
    opcode, seq, body = msgspec.msgpack.decode(frame)
    name = _REPLIES[opcode - 1]
    return Reply(name, seq, _from_wire(name, body))


def _fields(structure: str) -> list[tuple[str, str, str]]:
    """The fields of a structure: name, kind or "", and `*`, `?` or ""."""
    fields = []
    for field in _SPECS[structure].split():
        name, _, kind = field.partition(":")
        bare = kind.rstrip("*?")
        fields.append((name, bare, kind[len(bare) :]))
    return fields


def _to_wire(structure: str, body: Body) -> list:
    fields = _fields(structure)
    if set(body) != {name for name, _, _ in fields}:
        raise ValueError(f"{structure} has the fields {_SPECS[structure]}, not {sorted(body)}")
    return [_value(body[name], kind, repeat, _to_wire, _to_raw) for name, kind, repeat in fields]


def _from_wire(structure: str, values: list) -> Body:
    fields = _fields(structure)
    if len(values) != len(fields):
        raise ValueError(f"{structure} has {len(fields)} fields, {len(values)} arrived")
    return {
        name: _value(value, kind, repeat, _from_wire, _from_raw)
        for (name, kind, repeat), value in zip(fields, values, strict=True)
    }


def _value(value: Any, kind: str, repeat: str, structure: Any, raw: Any) -> Any:
    if not kind or (repeat == "?" and value is None):
        return value
    if kind in _RAW:
        return raw(kind, value)
    if repeat == "*":
        return [structure(kind, element) for element in value]
    return structure(kind, value)


def _to_raw(kind: str, values: list) -> bytes:
    return np.asarray(values, dtype=_RAW[kind]).tobytes()


def _from_raw(kind: str, data: bytes) -> list:
    return np.frombuffer(data, dtype=_RAW[kind]).tolist()
