//! The table of loaded models: one set of weights and one block pool, whoever asks.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::{Instant, UNIX_EPOCH};

use super::{Config, Dtype, Model, ModelError, rope_args};
use crate::kv_cache::{BlockPool, KvCache};

/// What makes two requests for a model the same model: folder, content and data type.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelKey {
    /// The folder, without links.
    pub path: PathBuf,
    /// Changes when a file of the folder does.
    fingerprint: u64,
    /// What the weights are held in.
    pub dtype: Dtype,
    /// The length of context that its rope is made for, if the rope depends on it.
    pub rope_len: Option<u32>,
}

impl ModelKey {
    /// Looks at the folder, for requests of up to `max_model_len` tokens.
    ///
    /// # Errors
    /// [`ModelError::Read`] if there is no such folder, or it cannot be read; others if its
    /// `config.json` makes no sense.
    pub fn of_folder(path: &Path, dtype: Dtype, max_model_len: u32) -> Result<Self, ModelError> {
        let not_found = |source| ModelError::Read {
            path: path.to_owned(),
            source,
        };
        let mut files = Vec::new();
        for entry in fs::read_dir(path).map_err(not_found)? {
            let entry = entry.map_err(not_found)?;
            let metadata = entry.metadata().map_err(not_found)?;
            let modified = metadata
                .modified()
                .ok()
                .and_then(|at| at.duration_since(UNIX_EPOCH).ok());
            files.push((entry.file_name(), metadata.len(), modified));
        }
        files.sort();
        let mut hasher = DefaultHasher::new();
        files.hash(&mut hasher);
        let path = path.canonicalize().map_err(not_found)?;
        let rope_len = rope_args::length(&Config::read(&path)?, max_model_len)?;
        Ok(Self {
            path,
            fingerprint: hasher.finish(),
            dtype,
            rope_len,
        })
    }

    /// A key of no folder.
    #[cfg(test)]
    pub(crate) fn for_tests(name: &str) -> Self {
        Self {
            path: name.into(),
            fingerprint: 0,
            dtype: Dtype::Float32,
            rope_len: None,
        }
    }
}

/// A model in memory.
#[derive(Debug)]
pub struct LoadedModel {
    /// Its weights.
    pub model: Box<dyn Model>,
    /// Its cache, from the first session that created one on.
    pub cache: Option<ModelCache>,
    /// Sessions that use it.
    pub num_sessions: u32,
    /// Since when no session uses it.
    pub idle_since: Option<Instant>,
}

/// The cache of a model, shared by its sessions.
#[derive(Debug)]
pub struct ModelCache {
    /// Keys and values.
    pub kv: KvCache,
    /// Which blocks are free.
    pub pool: BlockPool,
    /// Tokens in a block.
    pub block_size: u32,
    /// Bytes of one block in all arrays.
    pub block_bytes: u64,
}
