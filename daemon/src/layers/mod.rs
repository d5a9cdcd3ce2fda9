//! What model families share, and nothing else.
//!
//! Each layer knows the names of its tensors below a prefix, loads itself, and adds its nodes to
//! MLX's graph when it is called. Which backend runs them is the kernels' affair.

mod attention;
mod embedding;
mod linear;
mod mlp;
mod norm;
mod rope;

pub use self::{
    attention::{Attention, AttentionArgs},
    embedding::Embedding,
    linear::Linear,
    mlp::{Mlp, MlpArgs},
    norm::RmsNorm,
    rope::{Rope, RopeArgs, RopeScaling},
};
