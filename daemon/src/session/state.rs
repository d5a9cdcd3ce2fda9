//! Model, blocks and requests of a session: the engine's side of it.

use std::collections::VecDeque;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use metal_rpc_protocol::{Exec, LoadModel};

use super::block_tables::TableRules;
use super::request_state::CachedRequestState;
use super::token_table::TokenTable;
use crate::kv_cache::BlockMap;
use crate::models::loaded::ModelKey;
use crate::outbox::Outbox;
use crate::sampler::LogprobsMode;

/// One frontend, as the engine knows it.
#[derive(Debug)]
pub struct Session {
    /// What people call it.
    pub frontend: String,
    /// Where its replies go.
    pub outbox: Outbox,
    /// What it asked for, once it asked.
    pub load: Option<LoadModel>,
    /// Its model, once loaded.
    pub model: Option<ModelKey>,
    /// What its log probabilities are.
    pub logprobs_mode: LogprobsMode,
    /// Bytes of KV cache that it was promised or granted.
    pub reserved_bytes: u64,
    /// Its cache, once created.
    pub cache: Option<SessionCache>,
    /// Steps that have arrived and not been submitted, oldest first.
    pub waiting: VecDeque<WaitingStep>,
    /// Steps that were submitted and not answered.
    pub num_in_flight: usize,
    /// Steps answered since it was opened.
    pub num_steps: u64,
    /// Tokens run since it was opened.
    pub num_tokens: u64,
}

impl Session {
    /// A session that has only said hello.
    #[must_use]
    pub fn new(frontend: String, outbox: Outbox) -> Self {
        Self {
            frontend,
            outbox,
            load: None,
            model: None,
            logprobs_mode: LogprobsMode::RawLogprobs,
            reserved_bytes: 0,
            cache: None,
            waiting: VecDeque::new(),
            num_in_flight: 0,
            num_steps: 0,
            num_tokens: 0,
        }
    }
}

/// A step as it arrived.
#[derive(Debug)]
pub struct WaitingStep {
    /// `seq` of its message.
    pub seq: u64,
    /// When it arrived.
    pub received: Instant,
    /// The message.
    pub exec: Exec,
}

/// The cache of a session, and the requests that live in it.
#[derive(Debug)]
pub struct SessionCache {
    /// What this session agreed to.
    pub limits: SessionLimits,
    /// What block tables have in common.
    pub table_rules: TableRules,
    /// Which pool blocks its block numbers mean.
    pub block_map: BlockMap,
    /// By handle.
    pub requests: Vec<Option<CachedRequestState>>,
    /// Token ids of `requests`.
    pub token_table: TokenTable,
    /// Seeds of requests that bring none.
    pub seeds: SeedSource,
}

/// What steps of a session may ask for.
#[derive(Clone, Debug)]
pub struct SessionLimits {
    /// Longest request, in tokens.
    pub max_model_len: u32,
    /// Most requests in one step.
    pub max_num_seqs: u32,
    /// Most tokens in one step.
    pub max_num_batched_tokens: u32,
    /// Entries of the model's vocabulary.
    pub vocab_size: u32,
}

/// Draws seeds for requests that bring none.
#[derive(Debug)]
pub struct SeedSource(u64);

impl SeedSource {
    /// Starts from the clock.
    #[must_use]
    pub fn from_clock() -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self(now.as_secs() << 32 | u64::from(now.subsec_nanos()))
    }

    /// The next seed: SplitMix64 (Steele, Lea, Flood 2014).
    pub fn next_seed(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
