//! Step 5: the model families, and how a checkpoint becomes one.
//!
//! # Layout
//! - [`config`]: `config.json`, raw and resolved; `rope_args`: the rope in it
//! - [`checkpoint`]: which tensors a folder holds; [`weights`]: tensors as arrays
//! - one file per family, named as its `model_type`: [`llama`], [`mistral`]
//!
//! # Adding a family
//! 1. A file named as the `model_type`, in the order Args, Block, Model; what it shares with the
//!    others comes from [`crate::layers`].
//! 2. A link to the reference implementation in its header.
//! 3. A line in [`FAMILIES`].
//! 4. A tiny checkpoint in `integration-tests/framework/models.py`.
//! 5. A golden of its logits: a case in `tests/golden/make_model_goldens.py`, and its name in
//!    `tests/models/logits.rs`.
//! 6. A row in the README's table.
//!
//! Nothing else may need to change; if it does, the seam is wrong.
//!
//! # Invariants
//! - No model file names a backend.
//! - `sanitize` is the only place of a family where tensor names are changed or dropped.

pub mod checkpoint;
pub mod config;
mod convert;
mod dtype;
mod error;
mod file;
pub mod llama;
pub mod loaded;
pub mod mistral;
mod rope_args;
pub mod weights;

use std::{fmt::Debug, path::Path};

use metal_rpc_kernels::AttentionMetadata;
use metal_rpc_protocol::KvCacheSpec;
use mlx_rs::{Array, DeviceType};

pub use self::{
    config::{Config, ModelArgs},
    dtype::Dtype,
    error::ModelError,
};
use crate::kv_cache::KvCache;

/// Loads the checkpoint in a folder whose configuration is read already.
pub type LoadFn = fn(&Config, &Path, LoadOptions<'_>) -> Result<Box<dyn Model>, ModelError>;

/// A family: which checkpoints it is for, and how to load one.
#[derive(Debug)]
pub struct Family {
    /// `model_type` of its checkpoints.
    pub model_type: &'static str,
    /// The `architectures` that it runs.
    pub architectures: &'static [&'static str],
    /// Loads a checkpoint of it.
    pub load: LoadFn,
}

/// All families.
pub const FAMILIES: &[Family] = &[llama::FAMILY, mistral::FAMILY];

/// A model with its weights, ready to run.
pub trait Model: Debug + Send {
    /// Its dimensions.
    fn args(&self) -> &ModelArgs;

    /// The format of each layer's cache, in the order of [`KvCache::layers`].
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
    /// - returns `[rows, vocab_size]` f32
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
    /// `[num_tokens]` i32, pool slot of each token.
    pub slot_mapping: Array,
    /// Whose context each token attends to.
    pub attention: AttentionMetadata,
}

/// How to load a checkpoint.
pub struct LoadOptions<'a> {
    /// What weights and KV cache are held in.
    pub dtype: Dtype,
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

/// Loads the checkpoint in a folder of Hugging Face's layout.
///
/// # Errors
/// [`ModelError`] says which file, tensor or key is at fault, and why.
pub fn load(folder: &Path, options: LoadOptions<'_>) -> Result<Box<dyn Model>, ModelError> {
    let config = Config::read(folder)?;
    let family = family(&config)?;
    config.check_architecture(family.architectures)?;
    (family.load)(&config, folder, options)
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
