//! Step 5: the model families, and how a checkpoint becomes one.
//!
//! # Layout
//! - [`config`]: `config.json`, raw; [`args`]: resolved; `rope_args`, `moe_args`, `layer_types`:
//!   parts of it
//! - [`checkpoint`]: which tensors a folder holds, [`gguf`] in files of llama.cpp; [`weights`]:
//!   tensors as arrays; `rename`: what families do with their names
//! - [`quantization`]: how they are quantised; `packed`: formats of quantised weights
//! - `decoder`: embedding, blocks, norm and head, which all families have around their blocks
//! - `roots`: which folders models may be read from
//! - one file per family, named as its `model_type`
//!
//! # Adding a family
//! 1. A file named as the `model_type`, in the order args, sanitize, load, block; what it shares
//!    with the others comes from [`crate::layers`] and `decoder`.
//! 2. A link to the reference implementation in its header.
//! 3. A line in [`FAMILIES`].
//! 4. A row in `tests/golden/families.json`, whose tiny checkpoint is compared with transformers.
//! 5. A row in the README's table.
//!
//! Nothing else may need to change; if it does, the seam is wrong.
//!
//! # Invariants
//! - No model file names a backend.
//! - `sanitize` is the only place of a family where tensor names are changed or dropped.

pub mod args;
pub mod checkpoint;
pub mod config;
mod convert;
mod decoder;
mod dtype;
mod error;
mod file;
pub mod gguf;
mod layer_types;
pub mod loaded;
mod moe_args;
pub mod packed;
pub mod quantization;
mod rename;
mod roots;
mod rope_args;
pub mod weights;

pub mod gemma2;
pub mod gemma3_text;
pub mod gpt_oss;
pub mod granite;
pub mod llama;
pub mod ministral;
pub mod mistral;
pub mod mixtral;
pub mod olmo2;
pub mod olmo3;
pub mod phi;
pub mod phi3;
pub mod qwen;
pub mod qwen2;
pub mod qwen2_moe;
pub mod qwen3;
pub mod qwen3_moe;
pub mod smollm3;

use std::{fmt::Debug, path::Path};

use metal_rpc_kernels::AttentionMetadata;
use metal_rpc_protocol::KvCacheSpec;
use mlx_rs::{Array, DeviceType};

pub use self::{
    args::ModelArgs, config::Config, dtype::Dtype, error::ModelError, roots::ModelRoots,
};
use self::{checkpoint::Checkpoint, quantization::Quantization, weights::Weights};
use crate::kv_cache::{KvCache, LayerCache};

/// Builds a model from its configuration and its sanitized weights.
pub type LoadFn = fn(&Config, ModelArgs, Weights<'_>) -> Result<Box<dyn Model>, ModelError>;

/// A family: which checkpoints it is for, and how to load one.
#[derive(Debug)]
pub struct Family {
    /// `model_type` of its checkpoints.
    pub model_type: &'static str,
    /// The `architectures` that it runs.
    pub architectures: &'static [&'static str],
    /// Reads its dimensions.
    pub args: fn(&Config) -> Result<ModelArgs, ModelError>,
    /// Renames or drops tensors, so that the layers find what they know.
    pub sanitize: fn(&ModelArgs, &mut Checkpoint),
    /// Builds the model.
    pub load: LoadFn,
}

/// All families.
pub const FAMILIES: &[Family] = &[
    llama::FAMILY,
    mistral::FAMILY,
    ministral::FAMILY,
    mixtral::FAMILY,
    qwen::FAMILY,
    qwen2::FAMILY,
    qwen2_moe::FAMILY,
    qwen3::FAMILY,
    qwen3_moe::FAMILY,
    phi::FAMILY,
    phi3::FAMILY,
    gemma2::FAMILY,
    gemma3_text::FAMILY,
    smollm3::FAMILY,
    gpt_oss::FAMILY,
    granite::FAMILY,
    olmo2::FAMILY,
    olmo3::FAMILY,
];

/// A model with its weights, ready to run.
pub trait Model: Debug + Send {
    /// Its dimensions.
    fn args(&self) -> &ModelArgs;

    /// The format of each layer's cache, in the order of the layers.
    fn kv_cache_specs(&self) -> Vec<KvCacheSpec>;

    /// Entries of the logits.
    fn vocab_size(&self) -> u32 {
        self.args().vocab_size.unsigned_abs()
    }

    /// What the weights take in memory.
    fn weights_bytes(&self) -> u64;

    /// Runs all blocks over a batch and writes its keys and values into the cache.
    ///
    /// Builds the graph only; nothing has run when it returns.
    ///
    /// # Shapes
    /// Returns `[num_tokens, hidden_size]` after the final norm.
    ///
    /// # Errors
    /// If the shapes of `input` and `kv_cache` do not fit each other.
    fn forward(&self, input: &ForwardInput, kv_cache: &mut KvCache) -> Result<Array, ModelError>;

    /// The scores of every token of the vocabulary as the next one.
    ///
    /// # Shapes
    /// - `hidden`: `[rows, hidden_size]`, of [`Self::forward`]
    /// - returns `[rows, vocab_size]`, f32 or the dtype of `hidden`
    ///
    /// # Errors
    /// If the shape does not fit.
    fn logits(&self, hidden: &Array) -> Result<Array, ModelError>;
}

/// One flat batch, as arrays on the device.
#[derive(Debug)]
pub struct ForwardInput {
    /// `[num_tokens]` i32, each below the vocabulary's size.
    pub token_ids: Array,
    /// `[num_tokens]` i32, position of each token in its request.
    pub positions: Array,
    /// Where the layers of each KV-cache group find keys and values.
    pub groups: Vec<GroupInput>,
}

/// Where the layers of one KV-cache group find keys and values.
#[derive(Debug)]
pub struct GroupInput {
    /// `[num_tokens]` i32, pool slot of each token.
    pub slot_mapping: Array,
    /// Whose context each token attends to.
    pub attention: AttentionMetadata,
}

/// What one layer needs of a batch.
#[derive(Debug)]
pub struct LayerInput<'a> {
    /// `[num_tokens]` i32, position of each token in its request.
    pub positions: &'a Array,
    /// The layer's KV-cache group.
    pub group: &'a GroupInput,
    /// Where the layer's keys and values are.
    pub cache: &'a mut LayerCache,
}

/// How to load a checkpoint.
pub struct LoadOptions<'a> {
    /// What weights and KV cache are held in.
    pub dtype: Dtype,
    /// The length of context that its rope is made for, if not the checkpoint's own.
    pub rope_len: Option<u32>,
    /// Where the model runs.
    pub device: DeviceType,
    /// Memory that the weights may take.
    pub free_bytes: u64,
    /// Told now and then how many bytes of how many are read.
    pub progress: &'a mut dyn FnMut(u64, u64),
}

impl Debug for LoadOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadOptions")
            .field("dtype", &self.dtype)
            .field("rope_len", &self.rope_len)
            .field("device", &self.device)
            .field("free_bytes", &self.free_bytes)
            .finish_non_exhaustive()
    }
}

impl LoadOptions<'_> {
    /// What the model computes in.
    ///
    /// The CPU converts to f32 in registers and would only lose time and digits by rounding
    /// between kernels; a GPU's matrix units want both sides in the weights' dtype.
    #[must_use]
    pub fn activation_dtype(&self) -> Dtype {
        match self.device {
            DeviceType::Cpu => Dtype::Float32,
            DeviceType::Gpu => self.dtype,
        }
    }
}

/// Where the engine gets its models from.
pub trait Loader: Debug + Send + Sync {
    /// Makes the model of a folder of Hugging Face's layout.
    ///
    /// # Errors
    /// [`ModelError`] says which file, tensor or key is at fault, and why.
    fn load(&self, folder: &Path, options: LoadOptions<'_>) -> Result<Box<dyn Model>, ModelError>;
}

/// The models of [`FAMILIES`], with the weights of their checkpoints.
#[derive(Debug)]
pub struct Checkpoints;

impl Loader for Checkpoints {
    fn load(&self, folder: &Path, options: LoadOptions<'_>) -> Result<Box<dyn Model>, ModelError> {
        load(folder, options)
    }
}

/// Loads the checkpoint in a folder of Hugging Face's layout.
///
/// # Errors
/// [`ModelError`] says which file, tensor or key is at fault, and why.
pub fn load(folder: &Path, options: LoadOptions<'_>) -> Result<Box<dyn Model>, ModelError> {
    let config = Config::read(folder)?;
    let family = family(&config)?;
    config.check_architecture(family.architectures)?;
    let quantization = Quantization::from_config(&config)?;
    let mut args = (family.args)(&config)?;
    args.rope_len = options.rope_len.unwrap_or(args.rope_len);
    let mut checkpoint = Checkpoint::open(folder)?;
    (family.sanitize)(&args, &mut checkpoint);
    let weights = Weights::new(checkpoint, quantization, options)?;
    (family.load)(&config, args, weights)
}

/// The dimensions of the model in a folder, whatever its weights are.
///
/// # Errors
/// [`ModelError`] says which key of its `config.json` is at fault, and why.
pub fn args_of(folder: &Path) -> Result<ModelArgs, ModelError> {
    let config = Config::read(folder)?;
    (family(&config)?.args)(&config)
}

fn family(config: &Config) -> Result<&'static Family, ModelError> {
    let model_type = config.model_type()?;
    FAMILIES
        .iter()
        .find(|family| family.model_type == model_type)
        .ok_or_else(|| ModelError::Unsupported {
            key: "model_type",
            value: model_type.to_owned(),
            known: FAMILIES.iter().map(|family| family.model_type).collect(),
        })
}
