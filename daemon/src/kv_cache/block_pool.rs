//! Which blocks of a model's cache are free.
//!
//! Block 0 is the null block: it stands for "nothing here" in block tables, is never granted and
//! never written.
//!
//! # Cost
//! `grant` and `free` are O(1). The list of free blocks holds only blocks that were used before, so
//! a pool of a million blocks costs nothing until they are.

/// A block as the arrays of the cache number it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolBlockId(u32);

impl PoolBlockId {
    /// The null block.
    pub const NULL: Self = Self(0);

    /// The block's index in the first axis of the cache's arrays.
    #[must_use]
    pub fn index(self) -> u32 {
        self.0
    }
}

/// The blocks of one model's cache.
#[derive(Debug)]
pub struct BlockPool {
    num_blocks: u32,
    /// Blocks from this one on were never granted.
    next_unused: u32,
    returned: Vec<PoolBlockId>,
}

impl BlockPool {
    /// A pool of `num_blocks` blocks, the null block included.
    #[must_use]
    pub fn new(num_blocks: u32) -> Self {
        assert!(num_blocks > 0, "a pool has at least its null block");
        Self {
            num_blocks,
            next_unused: 1,
            returned: Vec::new(),
        }
    }

    /// Takes a free block, the most recently freed one first: its memory is already in use.
    pub fn grant(&mut self) -> Option<PoolBlockId> {
        self.returned.pop().or_else(|| {
            (self.next_unused < self.num_blocks).then(|| {
                self.next_unused += 1;
                PoolBlockId(self.next_unused - 1)
            })
        })
    }

    /// Gives a granted block back.
    pub fn free(&mut self, block: PoolBlockId) {
        assert!(
            block != PoolBlockId::NULL,
            "the null block is never granted"
        );
        assert!(
            block.0 < self.next_unused,
            "only granted blocks are given back"
        );
        debug_assert!(
            !self.returned.contains(&block),
            "a block is given back once"
        );
        self.returned.push(block);
    }

    /// Blocks that somebody owns.
    #[must_use]
    pub fn num_granted(&self) -> usize {
        self.next_unused as usize - 1 - self.returned.len()
    }

    /// Blocks in all, the null block included.
    #[must_use]
    pub fn num_blocks(&self) -> u32 {
        self.num_blocks
    }
}
