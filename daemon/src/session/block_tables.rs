//! Block tables of a step: from the frontend's numbers to places in the pool.

use super::step_error::StepError;
use crate::kv_cache::{BlockMap, BlockPool, PoolBlockId, SessionBlockId};

/// A request's blocks as it names them: one table for each KV-cache group.
#[derive(Debug, Default)]
pub struct RequestBlocks(Vec<Vec<SessionBlockId>>);

/// What a step computes of one request.
#[derive(Clone, Copy, Debug)]
pub struct RowTokens {
    /// Tokens whose keys and values are in the cache.
    pub num_computed: u32,
    /// Tokens that will be when the step has run.
    pub seq_len: u32,
}

/// What all tables of a session have in common.
#[derive(Clone, Debug)]
pub struct TableRules {
    /// Tokens in a block.
    pub block_size: u32,
    /// By group: how many keys a query sees at most, its own included; `None` if all.
    pub windows: Vec<Option<u32>>,
    /// Blocks that the longest request needs.
    pub most_blocks: usize,
}

impl RequestBlocks {
    /// Adds blocks to the table of each group.
    ///
    /// # Errors
    /// [`StepError::GroupCount`] and [`StepError::TooManyBlocks`].
    pub fn append(
        &mut self,
        req_id: &str,
        block_ids: Vec<Vec<u32>>,
        rules: &TableRules,
    ) -> Result<(), StepError> {
        let expected = rules.windows.len();
        if block_ids.len() != expected {
            return Err(StepError::GroupCount {
                req_id: req_id.to_owned(),
                actual: block_ids.len(),
                expected,
            });
        }
        self.0.resize_with(expected, Vec::new);
        for (table, blocks) in self.0.iter_mut().zip(block_ids) {
            let actual = table.len() + blocks.len();
            // A table that is longer than the longest request needs would grow without end.
            if actual > rules.most_blocks {
                return Err(StepError::TooManyBlocks {
                    req_id: req_id.to_owned(),
                    actual,
                    limit: rules.most_blocks,
                });
            }
            table.extend(blocks.into_iter().map(SessionBlockId));
        }
        Ok(())
    }

    /// Appends the pool blocks of the request's tokens to the table of each group.
    ///
    /// Blocks that no query sees any more are the null block there, whatever the request's own
    /// table says: the frontend may have given them to somebody else and does not tell.
    ///
    /// # Errors
    /// [`StepError::MissingBlocks`] and [`StepError::Block`].
    pub fn translate(
        &self,
        (req_id, tokens): (&str, RowTokens),
        rules: &TableRules,
        (map, pool): (&mut BlockMap, &mut BlockPool),
        tables: &mut [Vec<i32>],
    ) -> Result<(), StepError> {
        let needed = tokens.seq_len.div_ceil(rules.block_size);
        let first_written = tokens.num_computed / rules.block_size;
        for ((group, window), table) in self.0.iter().zip(&rules.windows).zip(tables) {
            let Some(blocks) = group.get(..needed as usize) else {
                return Err(StepError::MissingBlocks {
                    req_id: req_id.to_owned(),
                    needed,
                    actual: group.len(),
                });
            };
            // The first query sees farther back than the others.
            let first_seen = match window {
                Some(window) => (tokens.num_computed + 1).saturating_sub(*window),
                None => 0,
            };
            let first_seen = first_seen / rules.block_size;
            for (index, block) in (0..needed).zip(blocks) {
                let translated = match index {
                    index if index < first_seen => Ok(PoolBlockId::NULL),
                    index if index < first_written => map.translate(*block),
                    _ => map.translate_for_write(*block, pool),
                };
                let block = translated.map_err(|error| StepError::Block {
                    req_id: req_id.to_owned(),
                    error,
                })?;
                table.push(block.index().cast_signed());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOWS: [Option<u32>; 2] = [None, Some(6)];

    /// The tables of the two groups of `WINDOWS`, in blocks of 4 tokens, for a step that runs
    /// `num_computed..seq_len`; blocks 1 to 9 were written before, block `n` at place `n`.
    fn check(
        block_ids: [&[u32]; 2],
        (num_computed, seq_len): (u32, u32),
        expected: Result<[&[i32]; 2], &str>,
    ) {
        let rules = TableRules {
            block_size: 4,
            windows: WINDOWS.to_vec(),
            most_blocks: 6,
        };
        let (mut map, mut pool) = (BlockMap::new(20), BlockPool::new(20));
        for block in 1..10 {
            map.translate_for_write(SessionBlockId(block), &mut pool)
                .expect("there is room");
        }
        let mut blocks = RequestBlocks::default();
        let mut tables = vec![Vec::new(); 2];
        let tokens = RowTokens {
            num_computed,
            seq_len,
        };
        let result = blocks
            .append("r", block_ids.map(<[u32]>::to_vec).to_vec(), &rules)
            .and_then(|()| {
                blocks.translate(("r", tokens), &rules, (&mut map, &mut pool), &mut tables)
            });
        match (result, expected) {
            (Ok(()), Ok(expected)) => assert_eq!(tables, expected.map(<[i32]>::to_vec)),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (result, expected) => panic!("{result:?} with {tables:?}, not {expected:?}"),
        }
    }

    #[test]
    fn a_block_that_no_query_sees_is_not_looked_at() {
        let full: &[u32] = &[1, 2, 3, 4];
        // Query 8 sees 3..=8, query 9 sees 4..=9: the first block is out of sight from then on.
        check([full, &[5, 6, 7]], (8, 9), Ok([&[1, 2, 3], &[5, 6, 7]]));
        check([full, &[5, 6, 7]], (9, 10), Ok([&[1, 2, 3], &[0, 6, 7]]));
        check([full, &[0, 6, 7]], (9, 10), Ok([&[1, 2, 3], &[0, 6, 7]]));
        // Neither is what it may be by now: beyond the grant, or never written.
        check([full, &[99, 6, 7]], (9, 10), Ok([&[1, 2, 3], &[0, 6, 7]]));
        check(
            [full, &[15, 15, 7, 8]],
            (13, 14),
            Ok([&[1, 2, 3, 4], &[0, 0, 7, 8]]),
        );
        // In a chunk, the first query decides.
        check(
            [full, &[0, 6, 7, 8]],
            (9, 16),
            Ok([&[1, 2, 3, 4], &[0, 6, 7, 8]]),
        );
    }

    #[test]
    fn a_block_that_a_query_sees_must_hold_something() {
        let full: &[u32] = &[1, 2, 3];
        check([full, &[0, 6, 7]], (8, 9), Err("block 0 is the null block"));
        check(
            [full, &[0, 0, 7]],
            (9, 10),
            Err("block 0 is the null block"),
        );
        check(
            [full, &[0, 6, 0]],
            (9, 10),
            Err("block 0 is the null block"),
        );
        check(
            [&[0, 2, 3], &[0, 6, 7]],
            (9, 10),
            Err("block 0 is the null"),
        );
        check(
            [full, &[15, 6, 7]],
            (8, 9),
            Err("block 15 was never written"),
        );
        check(
            [full, &[0, 6]],
            (9, 10),
            Err("needs 3 blocks, its table has 2"),
        );
        check([full, &[1; 7]], (0, 1), Err("has 7 blocks"));
    }
}
