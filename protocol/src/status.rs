//! What `metald status` shows. `metald status --json` prints these structs with their field names.

use serde::{Deserialize, Serialize};

/// The daemon at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// Process id of the daemon.
    pub pid: u32,
    /// As in [`Welcome`](crate::Welcome).
    pub epoch: u64,
    /// Version of `metald`.
    pub version: String,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// Daemons that have served this endpoint before.
    pub restarts: u64,
    /// How the last of them ended: `stopped`, `step_timeout` or `failed`; absent if it was killed,
    /// or there was none.
    pub previous_end: Option<String>,
    /// `cpu` or `gpu`.
    pub device: String,
    /// Open sessions.
    pub sessions: Vec<SessionStatus>,
    /// Models in memory.
    pub models: Vec<ModelStatus>,
    /// The KV cache over all models.
    pub kv: KvStatus,
    /// What was done since the start.
    pub served: ServedStatus,
    /// Memory of the daemon's process, as the system counts it, in bytes.
    pub footprint_bytes: u64,
    /// How long the engine took to answer, in microseconds. Absent if it did not answer within a
    /// second: what it knows (`models`, `kv`, `served`, parts of `sessions`) is missing then.
    pub engine_us: Option<u32>,
}

/// What the daemon did since its start, sessions that are closed included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedStatus {
    /// Passes of a model, each of which may serve several steps.
    pub forwards: u64,
    /// Steps served.
    pub steps: u64,
    /// Tokens computed.
    pub tokens: u64,
    /// Processor time that the engine took to build and submit the forwards, in microseconds.
    pub submit_us: u64,
}

/// One frontend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// What the frontend calls itself.
    pub frontend: String,
    /// Process id of the frontend.
    pub pid: u32,
    /// Its version of vLLM.
    pub vllm_version: String,
    /// Path of its model, once loaded.
    pub model: Option<String>,
    /// Requests that it runs.
    pub running_requests: u32,
    /// Bytes of KV cache that it was promised, or granted.
    pub reserved_bytes: u64,
    /// Blocks that it may use.
    pub granted_blocks: u32,
    /// Blocks that hold something.
    pub used_blocks: u32,
    /// Steps served.
    pub steps: u64,
    /// Tokens computed.
    pub tokens: u64,
    /// As in [`Hello`](crate::Hello).
    pub weight: u32,
    /// Milliseconds since its last message.
    pub silent_ms: u64,
    /// Milliseconds of silence after which it will be closed.
    pub lease_left_ms: u64,
}

/// One model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelStatus {
    /// Folder that it was loaded from.
    pub path: String,
    /// `model_type` of its configuration.
    pub model_type: String,
    /// `float32`, `float16` or `bfloat16`.
    pub dtype: String,
    /// Bytes of its weights.
    pub weights_bytes: u64,
    /// Sessions that use it.
    pub sessions: u32,
}

/// The KV cache.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KvStatus {
    /// Bytes that weights and caches together may take.
    pub budget_bytes: u64,
    /// Bytes granted to sessions.
    pub granted_bytes: u64,
    /// Bytes of blocks that hold something.
    pub used_bytes: u64,
}
