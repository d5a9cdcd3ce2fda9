"""The wire structs, one to one with the `protocol` crate: same names, same fields, same order.

Each is encoded as the array of its fields; `codec.py` makes messages of them. `PROTOCOL.md` says
what they mean; `golden/` holds an encoded example of each, which the tests of both languages read.

Number arrays (`bytes` here, `I32Array` and `F32Array` there) hold little-endian values.
"""

from typing import Final

import msgspec

PROTOCOL_VERSION: Final = 1
NO_SESSION: Final = b""


class Message(msgspec.Struct, array_like=True):
    """Base of all wire structs: encoded as the array of its fields."""


# ---- Handshake: protocol/src/handshake.rs ----


class Hello(Message):
    """Opens a session."""

    min_protocol_version: int
    max_protocol_version: int
    vllm_version: str
    frontend: str
    pid: int
    weight: int


class Welcome(Message):
    """A session was opened."""

    protocol_version: int
    daemon_version: str
    pid: int
    epoch: int
    session: bytes
    heartbeat_ms: int
    lease_ms: int
    device: str


class LoadModel(Message):
    """Makes a model ready for a session."""

    path: str
    dtype: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    logprobs_mode: str


class LoadProgress(Message):
    """How far a load has come."""

    loaded_bytes: int
    total_bytes: int


class KvCacheSpec(Message):
    """The format of one layer's cache."""

    layer_name: str
    num_kv_heads: int
    head_dim: int
    dtype: str
    sliding_window: int | None


class ModelLoaded(Message):
    """A model is ready."""

    model_type: str
    vocab_size: int
    weights_bytes: int
    load_ms: int
    kv_cache_specs: list[KvCacheSpec]


class ReserveMemory(Message):
    """Asks for a share of the KV-cache memory."""

    memory_fraction: float


class MemoryReserved(Message):
    """What a session may use for its cache."""

    available_bytes: int


class CreateCache(Message):
    """Creates the session's cache."""

    num_blocks: int
    block_size: int
    groups: list[list[int]]


class CacheCreated(Message):
    """The cache is ready."""

    num_blocks: int
    block_bytes: int


# ---- Sampling: protocol/src/sampling.rs ----


class ThinkingBudget(Message):
    """How long a request may think, and what thinking looks like."""

    max_tokens: int
    start_token_ids: list[int]
    natural_end_token_ids: list[int]
    end_token_ids: list[int]


class PromptLogprobTokenIds(Message):
    """Tokens to score at places of a prompt; `token_ids` holds i32 values, -1 pads a row."""

    start: int
    num_columns: int
    token_ids: bytes


class SamplingParams(Message):
    """The part of vLLM's `SamplingParams` that a worker has to honour."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    stop_token_ids: list[int] = msgspec.field(default_factory=list)
    logit_bias: list[tuple[int, float]] = msgspec.field(default_factory=list)
    allowed_token_ids: list[int] | None = None
    bad_words_token_ids: list[list[int]] = msgspec.field(default_factory=list)
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: list[int] | None = None
    thinking_budget: ThinkingBudget | None = None
    prompt_logprob_token_ids: PromptLogprobTokenIds | None = None
    trace_decode_token_ids: list[int] | None = None


class GrammarBitmask(Message):
    """Allowed tokens of structured requests; `bitmask` holds i32 words."""

    rows: list[int]
    bitmask: bytes


class Logprobs(Message):
    """Log probabilities of a number of positions; arrays of i32, f32 and i32."""

    num_columns: int
    token_ids: bytes
    logprobs: bytes
    ranks: bytes


# ---- Steps: protocol/src/step.rs ----


class NewRequest(Message):
    """A request's first appearance; `token_ids` holds i32 values."""

    handle: int
    req_id: str
    token_ids: bytes
    num_prompt_tokens: int
    block_ids: list[list[int]]
    sampling_params: SamplingParams


class NewBlocks(Message):
    """Blocks appended to a request's table."""

    row: int
    block_ids: list[list[int]]


class Exec(Message):
    """One scheduling decision of one frontend."""

    sample_follows: bool
    finished: list[int]
    new_requests: list[NewRequest]
    handles: list[int]
    num_computed_tokens: list[int]
    num_scheduled_tokens: list[int]
    new_blocks: list[NewBlocks]
    block_copies: list[tuple[int, int]]
    grammar: GrammarBitmask | None


class Sample(Message):
    """The grammar of an earlier step, computed while its forward ran."""

    exec_seq: int
    grammar: GrammarBitmask | None


class PromptLogprobs(Message):
    """Log probabilities of one request's prompt."""

    row: int
    logprobs: Logprobs


class PromptTokenIdLogprobs(Message):
    """Scores of the tokens that one request named for places of its prompt; f32 values."""

    row: int
    num_columns: int
    logprobs: bytes


class RowError(Message):
    """Why a row has no token."""

    row: int
    message: str


class StepResult(Message):
    """What a step produced; `token_ids` holds one i32 a row, -1 where there is no token."""

    token_ids: bytes
    logprobs: Logprobs | None
    prompt_logprobs: list[PromptLogprobs]
    prompt_token_id_logprobs: list[PromptTokenIdLogprobs]
    row_errors: list[RowError]
    queue_us: int
    run_us: int


# ---- Status: protocol/src/status.rs ----


class SessionStatus(Message):
    """One frontend."""

    frontend: str
    pid: int
    vllm_version: str
    model: str | None
    running_requests: int
    reserved_bytes: int
    granted_blocks: int
    used_blocks: int
    steps: int
    tokens: int
    weight: int
    silent_ms: int
    lease_left_ms: int


class ModelStatus(Message):
    """One model."""

    path: str
    model_type: str
    dtype: str
    weights_bytes: int
    sessions: int


class KvStatus(Message):
    """The KV cache."""

    budget_bytes: int
    granted_bytes: int
    used_bytes: int


class ServedStatus(Message):
    """What the daemon did since its start."""

    forwards: int
    steps: int
    tokens: int
    submit_us: int


class StatusReport(Message):
    """The daemon at one moment."""

    pid: int
    epoch: int
    version: str
    uptime_s: int
    restarts: int
    previous_end: str | None
    device: str
    sessions: list[SessionStatus]
    models: list[ModelStatus]
    kv: KvStatus
    served: ServedStatus
    footprint_bytes: int
    engine_us: int | None


# ---- Messages without fields, and errors ----


class Ping(Message):
    """Renews the lease."""


class Pong(Message):
    """Answers `Ping`."""


class Goodbye(Message):
    """Closes the session."""


class Farewell(Message):
    """Answers `Goodbye`."""


class Status(Message):
    """Asks what the daemon is doing."""


class ErrorReply(Message):
    """A request that cannot be served; `code` and `scope` as in `errors.py`."""

    code: int
    scope: int
    message: str
