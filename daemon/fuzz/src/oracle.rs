//! What is true of a step that was accepted, found out without the validator's own code.

use std::collections::BTreeSet;

use metal_rpc_protocol::Exec;
use metald::kv_cache::{BlockPool, PoolBlockId};
use metald::session::{SessionCache, StepError, ValidStep};

use crate::{BLOCK_SIZE, MAX_MODEL_LEN, MAX_NUM_SEQS, VOCAB_SIZE, WINDOWS};

/// The longest text of an error: it must not repeat what was sent.
const MAX_ERROR_BYTES: usize = 1000;

/// Tokens known of each request, by handle.
#[derive(Debug)]
pub(crate) struct Known(Vec<Option<u32>>);

impl Known {
    pub(crate) fn of(session: &SessionCache) -> Self {
        let requests = session.requests.iter();
        Self(requests.map(|r| r.as_ref().map(|r| r.num_tokens)).collect())
    }

    /// With what the step itself ends and opens.
    fn after(mut self, asked: &Exec) -> Self {
        for handle in &asked.finished {
            self.0[*handle as usize] = None;
        }
        for request in &asked.new_requests {
            let len = u32::try_from(request.token_ids.0.len()).expect("it was accepted");
            self.0[request.handle as usize] = Some(len);
        }
        self
    }
}

pub(crate) fn check_step(asked: &Exec, step: &ValidStep, before: &Known, session: &SessionCache) {
    let known = Known(before.0.clone()).after(asked);
    let handles: Vec<u32> = step.rows.iter().map(|row| row.handle).collect();
    assert_eq!(handles, asked.handles, "rows are the step's");
    let distinct: BTreeSet<_> = handles.iter().collect();
    assert_eq!(distinct.len(), handles.len(), "a handle stands twice");
    assert!(handles.len() <= MAX_NUM_SEQS as usize, "too many rows");
    let owned: BTreeSet<i32> = session
        .block_map
        .owned()
        .map(|block| block.index().cast_signed())
        .collect();
    let mut num_tokens = 0;
    let mut num_blocks = 0;
    for (index, row) in step.rows.iter().enumerate() {
        let is_known = known.0[row.handle as usize];
        assert_eq!(
            is_known,
            Some(row.num_tokens),
            "tokens known before the step"
        );
        assert!(row.num_scheduled_tokens > 0, "a row without tokens");
        assert_eq!(row.num_computed_tokens, asked.num_computed_tokens[index]);
        assert!(row.seq_len() <= row.num_tokens, "tokens that nobody knows");
        assert!(
            row.num_tokens < MAX_MODEL_LEN + 2,
            "no room for the next token"
        );
        assert!(
            row.num_blocks * BLOCK_SIZE >= row.seq_len(),
            "tokens without a block"
        );
        num_tokens += row.num_scheduled_tokens;
        num_blocks += row.num_blocks as usize;
    }
    assert_eq!(num_tokens, step.num_tokens, "the sum of the rows");
    assert!(
        num_tokens <= session.limits.max_num_batched_tokens,
        "too many tokens"
    );
    assert_eq!(
        step.block_tables.len(),
        WINDOWS.len(),
        "a table for each group"
    );
    for (table, window) in step.block_tables.iter().zip(WINDOWS) {
        assert_eq!(table.len(), num_blocks, "blocks of all rows");
        check_table(step, table, window, &owned);
    }
    for (handle, tokens) in &step.new_tokens {
        assert!(
            handles.contains(handle),
            "new tokens of a request that does not run"
        );
        let in_vocabulary = |id: &i32| u32::try_from(*id).is_ok_and(|id| id < VOCAB_SIZE);
        assert!(tokens.iter().all(in_vocabulary), "a token of no vocabulary");
    }
}

/// Every block that a query sees is the session's own.
fn check_table(step: &ValidStep, table: &[i32], window: Option<u32>, owned: &BTreeSet<i32>) {
    let mut rest = table;
    for row in &step.rows {
        let (blocks, others) = rest.split_at(row.num_blocks as usize);
        rest = others;
        let first_seen = match window {
            Some(window) => (row.num_computed_tokens + 1).saturating_sub(window),
            None => 0,
        };
        for (index, block) in (0_u32..).zip(blocks) {
            let is_seen = (index + 1) * BLOCK_SIZE > first_seen;
            assert!(
                owned.contains(block) || (!is_seen && *block == 0),
                "block {block} is not the session's own"
            );
        }
    }
}

pub(crate) fn check_error(error: &StepError) {
    let text = error.to_string();
    assert!(
        text.len() <= MAX_ERROR_BYTES,
        "an error of {} bytes",
        text.len()
    );
}

/// No block has two owners, and the pool knows all that are owned.
pub(crate) fn check_pool(sessions: &[SessionCache; 2], pool: &BlockPool) {
    let owned: Vec<PoolBlockId> = sessions.iter().flat_map(|s| s.block_map.owned()).collect();
    let distinct: BTreeSet<_> = owned.iter().collect();
    assert_eq!(distinct.len(), owned.len(), "a block has two owners");
    assert!(
        !distinct.contains(&PoolBlockId::NULL),
        "the null block has an owner"
    );
    assert_eq!(owned.len(), pool.num_granted(), "a block has no owner");
    for session in sessions {
        assert_eq!(
            session.block_map.num_used() as usize,
            session.block_map.owned().count()
        );
    }
}
