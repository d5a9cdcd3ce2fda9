//! The device code of metald: kernels that join MLX's graph.
//!
//! # Layout
//! Each folder beside `src/` is one kernel: `contract.md`, `mod.rs` (the safe function, its checks),
//! `native.rs` (the fast CPU version), and for the tests `reference.rs` (plain loops) and `cases.rs`.
//!
//! | module | what |
//! |---|---|
//! | `ffi` | the C face of `primitive/`; the only place that names `mlx_sys` |
//! | `node` | a host kernel as a node of MLX's graph |
//! | `gpu` | a kernel of the dialect as a node: Metal, CUDA, or emulated for tests |
//! | `pool` | the threads that kernels share |
//! | `simd`, `dot`, `element` | eight lanes; dot products of rows; f32, bf16, f16 |
//! | `product` | rows times weights of any format: the algorithm of all linear layers |
//! | `check`, `error` | what every function checks, and says when it fails |
//! | `footprint` | memory of this process, as the system counts it |
//! | `memory` | reserved pools, and reading results from other threads |
//! | `evaluation` | starting to compute, and whether what was computed is whole |
//! | `scratch` | memory that kernels compute in |
//! | `replay` | a step's kernels, recorded and run again |
//! | `delay` | a node that takes time, to measure what surrounds a model |
//! | `exit` | the end of a process that MLX must not hold up |
//!
//! # Invariants
//! - Results do not depend on the batch: every output row is the same bits whatever rows are
//!   computed with it, and however many threads compute it.
//! - Nodes go on the calling thread's default stream, as those of `mlx_rs` do.
//! - An array that a kernel writes in place keeps its buffer for ever; who owns it holds the only
//!   handle, and replaces it by the kernel's result.

mod check;
mod delay;
mod dot;
mod element;
mod error;
mod evaluation;
mod exit;
mod ffi;
mod footprint;
mod gpu;
mod memory;
mod node;
mod pool;
mod product;
mod replay;
mod scratch;
mod simd;

#[path = "../act_mul/mod.rs"]
mod act_mul;
#[path = "../add_rms_norm/mod.rs"]
mod add_rms_norm;
#[path = "../argmax/mod.rs"]
mod argmax;
#[path = "../dispatch/mod.rs"]
mod dispatch;
#[path = "../expert_linear/mod.rs"]
mod expert_linear;
#[path = "../linear/mod.rs"]
mod linear;
#[path = "../paged_attention/mod.rs"]
mod paged_attention;
#[path = "../quantized_linear/mod.rs"]
mod quantized_linear;
#[path = "../reshape_and_cache/mod.rs"]
mod reshape_and_cache;
#[path = "../rms_norm/mod.rs"]
mod rms_norm;
#[path = "../rope/mod.rs"]
mod rope;
#[path = "../rope_and_cache/mod.rs"]
mod rope_and_cache;
#[path = "../route/mod.rs"]
mod route;
#[path = "../sample/mod.rs"]
mod sample;
#[path = "../scale/mod.rs"]
mod scale;
#[path = "../slots/mod.rs"]
mod slots;
#[path = "../upload/mod.rs"]
mod upload;

pub use act_mul::{gelu_tanh_mul, silu_mul};
pub use add_rms_norm::add_rms_norm;
pub use argmax::argmax;
pub use delay::delay;
pub use dispatch::{Dispatched, ExpertGroups, combine, dispatch};
pub use error::{KernelError, Result, is_out_of_memory};
pub use evaluation::{Evaluation, eval, start};
pub use exit::exit_now;
pub use expert_linear::{expert_linear, quantized_expert_linear};
pub use footprint::footprint_bytes;
pub use linear::{linear, rows};
pub use memory::{data_ptr, filled, gpu_memory_bytes, part, reserve, to_vec_f32, to_vec_i32};
pub use paged_attention::{AttentionMetadata, AttentionParams, paged_attention};
pub use quantized_linear::{QuantizedFormat, QuantizedMatrix, quantized_linear, quantized_rows};
pub use replay::{Recording, RecordingKind, recording_kind, rehearse};
pub use reshape_and_cache::reshape_and_cache;
pub use rms_norm::rms_norm;
pub use rope::{RopePairing, rope};
pub use rope_and_cache::{QkNorm, QkvParams, RopeParams, rope_and_cache};
pub use route::{GroupRank, RouteGroups, RouteParams, RouteScores, Routes, route};
pub use sample::{
    GREEDY_TEMPERATURE, History, LogprobsMode, SAMPLE_WORDS, SampleBatch, SampleParams, Span,
    TokenScores, sample, sample_plain, score_token_ids, score_tokens,
};
pub use scale::scale;
pub use slots::{gather_slots, gather_slots_of, write_slots};
pub use upload::{download, upload};

/// The slot of a token that is not written anywhere, as in vLLM.
pub const PAD_SLOT: i32 = -1;

/// The token of a row that has none. Its embedding is zeros on the CPU and some token's on a GPU: a step
/// that is built on it before anybody knows is run, and nobody reads the row.
pub const NO_TOKEN: i32 = -1;
