//! Which pool blocks belong to which frontend.
//!
//! A frontend numbers its blocks from 0, as vLLM's scheduler does. Two frontends therefore both
//! use block 7. This map is the only place where such a number becomes an address, so it is also
//! the wall between their contexts.
//!
//! A block takes memory when it is written for the first time, and keeps it until the session
//! closes: the frontend may still find it in its prefix cache. Which KV-cache group a block belongs
//! to is the frontend's affair, and may change: all groups number their blocks from this one map.
//!
//! # Invariants
//! - A [`PoolBlockId`] has at most one owner.
//! - Block 0 of every session is the null block, which is never read or written.
//!
//! # Cost
//! `translate` and `grant` are O(1) and do not allocate.

use super::block_pool::{BlockPool, PoolBlockId};

/// A block as a frontend numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionBlockId(pub u32);

/// Why a block of a step was refused. Scope: the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// Beyond the grant.
    #[error("block {} is not below the {granted} blocks granted to this session", block.0)]
    OutOfRange {
        /// The block named.
        block: SessionBlockId,
        /// Blocks granted.
        granted: u32,
    },
    /// Block 0 holds nothing.
    #[error("block 0 is the null block: it holds no tokens")]
    NullBlock,
    /// Read before it was written.
    #[error("block {} was never written in this session, so it holds no computed tokens", block.0)]
    NotWritten {
        /// The block named.
        block: SessionBlockId,
    },
    /// All memory of the pool is in use.
    #[error("all {num_blocks} blocks of the cache are in use")]
    PoolExhausted {
        /// Blocks in the pool.
        num_blocks: u32,
    },
}

/// The blocks of one session.
#[derive(Debug)]
pub struct BlockMap {
    /// By session block; the null block where nothing was written yet.
    blocks: Vec<PoolBlockId>,
    num_used: u32,
}

impl BlockMap {
    /// A map for a session that was granted `num_blocks` blocks, the null block included.
    #[must_use]
    pub fn new(num_blocks: u32) -> Self {
        Self {
            blocks: vec![PoolBlockId::NULL; num_blocks as usize],
            num_used: 0,
        }
    }

    /// The address of a block that was written before.
    ///
    /// # Errors
    /// [`BlockError::OutOfRange`], [`BlockError::NullBlock`], [`BlockError::NotWritten`].
    pub fn translate(&self, block: SessionBlockId) -> Result<PoolBlockId, BlockError> {
        match *self.entry(block)? {
            PoolBlockId::NULL if block.0 == 0 => Err(BlockError::NullBlock),
            PoolBlockId::NULL => Err(BlockError::NotWritten { block }),
            pool_block => Ok(pool_block),
        }
    }

    /// The address of a block that is about to be written; the first time takes it from `pool`.
    ///
    /// # Errors
    /// [`BlockError::OutOfRange`], [`BlockError::NullBlock`], [`BlockError::PoolExhausted`].
    pub fn translate_for_write(
        &mut self,
        block: SessionBlockId,
        pool: &mut BlockPool,
    ) -> Result<PoolBlockId, BlockError> {
        if block.0 == 0 {
            return Err(BlockError::NullBlock);
        }
        if *self.entry(block)? == PoolBlockId::NULL {
            let granted = pool.grant().ok_or(BlockError::PoolExhausted {
                num_blocks: pool.num_blocks(),
            })?;
            self.blocks[block.0 as usize] = granted;
            self.num_used += 1;
        }
        Ok(self.blocks[block.0 as usize])
    }

    /// Gives every block back.
    pub fn release(self, pool: &mut BlockPool) {
        for block in self.owned() {
            pool.free(block);
        }
    }

    /// The addresses of all blocks that hold something.
    pub fn owned(&self) -> impl Iterator<Item = PoolBlockId> {
        let blocks = self.blocks.iter().copied();
        blocks.filter(|block| *block != PoolBlockId::NULL)
    }

    /// Blocks granted to the session, the null block included.
    #[must_use]
    pub fn num_granted(&self) -> u32 {
        u32::try_from(self.blocks.len()).expect("made from a u32")
    }

    /// Blocks that hold something.
    #[must_use]
    pub fn num_used(&self) -> u32 {
        self.num_used
    }

    fn entry(&self, block: SessionBlockId) -> Result<&PoolBlockId, BlockError> {
        let granted = self.num_granted();
        self.blocks
            .get(block.0 as usize)
            .ok_or(BlockError::OutOfRange { block, granted })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Three sessions over a pool of 8 blocks: small, so that collisions come at once.
    #[derive(Debug)]
    struct Sim {
        pool: BlockPool,
        sessions: Vec<BlockMap>,
    }

    impl Sim {
        fn new() -> Self {
            Self {
                pool: BlockPool::new(8),
                sessions: (0..3).map(|_| BlockMap::new(6)).collect(),
            }
        }

        fn check_invariants(&self) {
            let mut owned: Vec<PoolBlockId> =
                self.sessions.iter().flat_map(BlockMap::owned).collect();
            assert_eq!(owned.len(), self.pool.num_granted());
            owned.sort_unstable();
            let count = owned.len();
            owned.dedup();
            assert_eq!(owned.len(), count, "a block has two owners");
            assert!(
                self.sessions
                    .iter()
                    .all(|map| map.blocks[0] == PoolBlockId::NULL)
            );
        }
    }

    proptest! {
        // Goal: isolation. Method: random writes, reads and closes; all invariants after each.
        #[test]
        fn no_block_is_ever_owned_twice(ops in prop::collection::vec((0..3_usize, 0..8_u32, 0..10_u8), 1..200)) {
            let mut sim = Sim::new();
            for (session, block, op) in ops {
                let id = SessionBlockId(block);
                let map = &mut sim.sessions[session];
                match op {
                    0 => std::mem::replace(map, BlockMap::new(6)).release(&mut sim.pool),
                    1..=3 => {
                        let written = map.blocks.get(block as usize).copied();
                        match map.translate(id) {
                            Ok(found) => prop_assert_eq!(Some(found), written),
                            Err(BlockError::OutOfRange { .. }) => prop_assert!(block >= 6),
                            Err(BlockError::NullBlock) => prop_assert_eq!(block, 0),
                            Err(error) => prop_assert_eq!(error, BlockError::NotWritten { block: id }),
                        }
                    }
                    _ => match map.translate_for_write(id, &mut sim.pool) {
                        Ok(found) => prop_assert_eq!(map.translate(id), Ok(found)),
                        Err(BlockError::OutOfRange { .. }) => prop_assert!(block >= 6),
                        Err(BlockError::NullBlock) => prop_assert_eq!(block, 0),
                        Err(error) => {
                            prop_assert_eq!(error, BlockError::PoolExhausted { num_blocks: 8 });
                            prop_assert_eq!(sim.pool.num_granted(), 7);
                        }
                    },
                }
                sim.check_invariants();
            }
        }
    }
}
