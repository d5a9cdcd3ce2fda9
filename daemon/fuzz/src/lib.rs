//! What the step validator must stand: the wall between frontends.
//!
//! # Layout
//! - [`check_validator`]: what holds for any steps of two sessions on one pool; run by libFuzzer
//!   (`fuzz_targets/`) and by tests
//! - `steps`: steps out of bytes, sensible ones and others
//! - `oracle`: what is true of a step that was accepted
//!
//! The decoder is not part of it: `protocol/fuzz` has that.

mod oracle;
mod steps;

use std::time::Instant;

use metald::kv_cache::{BlockMap, BlockPool};
use metald::session::block_tables::TableRules;
use metald::session::state::{SeedSource, SessionLimits};
use metald::session::{SessionCache, StepError, TokenTable};

use steps::{Bytes, Scheduler};

/// Small, so that limits and collisions come at once.
pub(crate) const BLOCK_SIZE: u32 = 4;
pub(crate) const NUM_BLOCKS: u32 = 12;
pub(crate) const POOL_BLOCKS: u32 = 20;
pub(crate) const MAX_NUM_SEQS: u32 = 3;
pub(crate) const MAX_MODEL_LEN: u32 = 30;
pub(crate) const VOCAB_SIZE: u32 = 40;
/// By KV-cache group: how many keys a query sees.
pub(crate) const WINDOWS: [Option<u32>; 2] = [None, Some(6)];

/// What came of the steps of one input.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Steps that were accepted, with the number of their rows.
    pub accepted: Vec<usize>,
    /// Why others were refused.
    pub refused: Vec<StepError>,
}

/// Has two sessions send the steps that `bytes` stand for.
///
/// # Panics
/// If the validator accepts what it must not, or loses or shares a block.
pub fn check_validator(bytes: &[u8]) -> Outcome {
    let mut bytes = Bytes::new(bytes);
    let mut pool = BlockPool::new(POOL_BLOCKS);
    let mut sessions = [session(), session()];
    let mut schedulers = [Scheduler::default(), Scheduler::default()];
    let mut outcome = Outcome::default();
    let mut seq = 0;
    while let Some(choice) = bytes.next() {
        let who = usize::from(choice & 1);
        let exec = schedulers[who].next_step(&mut bytes);
        let asked = exec.clone();
        seq += 1;
        let before = oracle::Known::of(&sessions[who]);
        match sessions[who].apply((seq, Instant::now()), exec, &mut pool) {
            Ok(step) => {
                oracle::check_step(&asked, &step, &before, &sessions[who]);
                outcome.accepted.push(step.rows.len());
            }
            Err(error) => {
                oracle::check_error(&error);
                outcome.refused.push(error);
                // The session is over, and the frontend comes back with another one.
                let over = std::mem::replace(&mut sessions[who], session());
                over.block_map.release(&mut pool);
                schedulers[who] = Scheduler::default();
            }
        }
        oracle::check_pool(&sessions, &pool);
    }
    let [first, second] = sessions;
    first.block_map.release(&mut pool);
    second.block_map.release(&mut pool);
    assert_eq!(pool.num_granted(), 0, "blocks of no session");
    outcome
}

fn session() -> SessionCache {
    let num_handles = 2 * MAX_NUM_SEQS;
    SessionCache {
        limits: SessionLimits {
            max_model_len: MAX_MODEL_LEN,
            max_num_seqs: MAX_NUM_SEQS,
            max_num_batched_tokens: 2 * MAX_MODEL_LEN,
            vocab_size: VOCAB_SIZE,
        },
        table_rules: TableRules {
            block_size: BLOCK_SIZE,
            windows: WINDOWS.to_vec(),
            most_blocks: (MAX_MODEL_LEN + 2).div_ceil(BLOCK_SIZE) as usize,
        },
        block_map: BlockMap::new(NUM_BLOCKS),
        requests: (0..num_handles).map(|_| None).collect(),
        token_table: TokenTable::reserve(num_handles, MAX_MODEL_LEN + 2)
            .expect("a few pages of address space"),
        seeds: SeedSource::from_clock(),
    }
}
