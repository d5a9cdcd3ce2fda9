//! The paged KV cache: its arrays, and who owns which block of them.
//!
//! # Layout
//! - [`layer`]: the keys and values of one layer

pub mod layer;

pub use layer::{KvCache, LayerCache};
