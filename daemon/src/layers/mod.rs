//! What model families share, and nothing else.
//!
//! Each layer knows the names of its tensors below a prefix, loads itself, and adds its nodes to
//! MLX's graph when it is called. Which backend runs them is the kernels' affair.

mod activation;
mod attention;
mod block;
mod embedding;
mod expert_linear;
mod linear;
mod matrix;
mod mlp;
mod moe;
mod norm;
mod rope;

pub use self::{
    activation::Activation,
    attention::{Attention, AttentionArgs, QkNorm},
    block::{Block, DecoderBlock, DenseArgs, FeedForward, NormPlacement, ResidualArgs, Stream},
    embedding::Embedding,
    expert_linear::ExpertLinear,
    linear::Linear,
    matrix::Matrix,
    mlp::{Mlp, MlpArgs, MlpInput},
    moe::{Moe, MoeArgs, SharedExpertArgs, SparseMlp},
    norm::{Norm, NormArgs, NormKind},
    rope::{RopeArgs, RopeScaling},
};
