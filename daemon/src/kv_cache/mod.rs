//! The paged KV cache: its arrays, and who owns which block of them.
//!
//! # Layout
//! - [`groups`]: which layers share block tables and arrays
//! - [`layer`]: the arrays that hold keys and values
//! - [`block_pool`]: which blocks of the arrays are free
//! - [`block_map`]: which of them a frontend's block numbers mean: the wall between frontends

pub mod block_map;
pub mod block_pool;
pub mod groups;
pub mod layer;

pub use block_map::{BlockError, BlockMap, SessionBlockId};
pub use block_pool::{BlockPool, PoolBlockId};
pub use groups::{CacheGroups, GroupError, LayerPlace};
pub use layer::{KvCache, LayerCache};
