//! Why a model could not be loaded or run.

use std::{io, path::PathBuf};

use metal_rpc_kernels::{KernelError, is_out_of_memory};
use metal_rpc_protocol::ErrorCode;
use mlx_rs::error::Exception;
use thiserror::Error;

use super::{Dtype, gguf::GgufError};

/// Why a model could not be loaded or run.
///
/// Scope: the session that asked; models that others use are untouched.
#[derive(Debug, Error)]
pub enum ModelError {
    /// A file of the model's folder is missing, or may not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The path, or a file in it, leads to where the daemon may not read models.
    #[error("{} is not under a folder that models may be read from ({}); start metald with --model-root, or METAL_RPC_MODEL_ROOTS", path.display(), shown(roots))]
    OutsideRoots {
        /// What was asked for.
        path: PathBuf,
        /// Where models may lie.
        roots: Vec<PathBuf>,
    },
    /// A JSON file is not what its name promises.
    #[error("{} is not valid: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        source: serde_json::Error,
    },
    /// A file is larger than any of its kind has reason to be.
    #[error("{} has {size_bytes} bytes, more than the {limit_bytes} that are read of such a file", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
        /// The most that we read.
        limit_bytes: u64,
    },
    /// A value of `config.json` breaks a rule.
    #[error("config.json: {key} must be {rule}, but is {value}")]
    Config {
        /// The key.
        key: &'static str,
        /// What it must be.
        rule: &'static str,
        /// What it is.
        value: String,
    },
    /// A value of `config.json` is legal but not supported.
    #[error("config.json: {key} {value} is not supported; supported: {}", known.join(", "))]
    Unsupported {
        /// The key.
        key: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        known: Vec<&'static str>,
    },
    /// A GGUF file has a header that cannot be understood.
    #[error("{} is not a GGUF file that can be read: {problem}", file.display())]
    Gguf {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        problem: GgufError,
    },
    /// A GGUF file is legal but not supported.
    #[error("{}: {key} {value} is not supported; supported: {}", file.display(), known.join(", "))]
    GgufUnsupported {
        /// The file.
        file: PathBuf,
        /// What is not.
        key: String,
        /// What it is.
        value: String,
        /// What it may be.
        known: Vec<&'static str>,
    },
    /// The folder has no weights.
    #[error("{} has no weights that can be read: model.safetensors, model.safetensors.index.json or a file *.gguf{}", folder.display(), shown_formats(found))]
    NoWeights {
        /// The model's folder.
        folder: PathBuf,
        /// Weights in formats that we do not read.
        found: Vec<String>,
    },
    /// The folder has several files any of which may be meant.
    #[error("{} must have one GGUF file, or all parts of one, but has {}; give the path of one of them", folder.display(), files.join(", "))]
    SeveralWeights {
        /// The model's folder.
        folder: PathBuf,
        /// The files.
        files: Vec<String>,
    },
    /// The index of shards names something that is not a file beside it.
    #[error("{}: shard {shard:?} must be the name of a file in the same folder", index.display())]
    ShardName {
        /// The index.
        index: PathBuf,
        /// What it names.
        shard: String,
    },
    /// A weights file has a header that cannot be understood.
    #[error("{} is not a safetensors file: {source}", file.display())]
    Header {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        source: safetensors::SafeTensorError,
    },
    /// A weights file has not the size that its header promises.
    #[error("{} must have {expected_bytes} bytes by its header, but has {actual_bytes}; download it again", file.display())]
    FileSize {
        /// The file.
        file: PathBuf,
        /// What its header promises.
        expected_bytes: u64,
        /// What it has.
        actual_bytes: u64,
    },
    /// Two files hold a tensor of the same name.
    #[error("tensor {name} must be in one file, but is in {} and {}", first.display(), second.display())]
    Duplicate {
        /// The tensor.
        name: String,
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A tensor that the model needs is in no file.
    #[error("tensor {name} is missing in {}", folder.display())]
    Missing {
        /// The tensor.
        name: String,
        /// The model's folder.
        folder: PathBuf,
    },
    /// A tensor contradicts `config.json`.
    #[error("tensor {name} in {} must have shape {expected:?} by config.json, but has {actual:?}", file.display())]
    Shape {
        /// The tensor.
        name: String,
        /// Where it is.
        file: PathBuf,
        /// What `config.json` implies.
        expected: Vec<i32>,
        /// What it has.
        actual: Vec<usize>,
    },
    /// A tensor is not of a floating-point format that we read.
    #[error("tensor {name} in {} must be F32, F16 or BF16, but is {actual}", file.display())]
    TensorDtype {
        /// The tensor.
        name: String,
        /// Where it is.
        file: PathBuf,
        /// What it is.
        actual: String,
    },
    /// The tensors of a quantised matrix do not fit each other, or `config.json`.
    #[error("tensor {name} in {} must have {rule}, but has shape {actual:?}", file.display())]
    Packing {
        /// The tensor.
        name: String,
        /// Where it is.
        file: PathBuf,
        /// What its shape must be.
        rule: String,
        /// What it has.
        actual: Vec<usize>,
    },
    /// The experts of a layer are stored in several formats.
    #[error("{name} must have all its experts in one format of weights, but has them in several")]
    MixedExperts {
        /// The layer.
        name: String,
    },
    /// A tensor, or several that are held as one, is larger than MLX can be given.
    #[error("tensor {name} must have at most {max} elements with those beside it, but has {actual}", max = i32::MAX)]
    TensorSize {
        /// The tensor, or the first of several.
        name: String,
        /// Its elements, and those of the others.
        actual: u64,
    },
    /// The weights do not fit.
    #[error(
        "the weights need {needed_bytes} bytes as {dtype}, but {free_bytes} are free; \
         stop a frontend of another model or raise VLLM_METAL_MEMORY_FRACTION"
    )]
    OutOfMemory {
        /// What the weights take.
        needed_bytes: u64,
        /// In this format.
        dtype: Dtype,
        /// What is left.
        free_bytes: u64,
    },
    /// A kernel refused its arguments.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// MLX refused an operation.
    #[error("MLX: {}", .0.what())]
    Mlx(#[from] Exception),
}

impl ModelError {
    /// The code that travels to the frontend.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            // A file that ends too early was damaged after its header was read.
            Self::Read { source, .. } if source.kind() == io::ErrorKind::UnexpectedEof => {
                ErrorCode::InvalidModel
            }
            Self::Read { .. } | Self::OutsideRoots { .. } | Self::NoWeights { .. } => {
                ErrorCode::ModelNotFound
            }
            Self::Unsupported { .. }
            | Self::GgufUnsupported { .. }
            | Self::MixedExperts { .. }
            | Self::TensorDtype { .. }
            | Self::TensorSize { .. } => ErrorCode::UnsupportedModel,
            Self::Json { .. }
            | Self::TooLarge { .. }
            | Self::Config { .. }
            | Self::ShardName { .. }
            | Self::Header { .. }
            | Self::Gguf { .. }
            | Self::SeveralWeights { .. }
            | Self::FileSize { .. }
            | Self::Duplicate { .. }
            | Self::Missing { .. }
            | Self::Shape { .. }
            | Self::Packing { .. } => ErrorCode::InvalidModel,
            Self::OutOfMemory { .. } => ErrorCode::OutOfMemory,
            Self::Kernel(error) if error.is_out_of_memory() => ErrorCode::OutOfMemory,
            Self::Mlx(error) if is_out_of_memory(error) => ErrorCode::OutOfMemory,
            Self::Kernel(_) | Self::Mlx(_) => ErrorCode::StepFailed,
        }
    }
}

fn shown(roots: &[PathBuf]) -> String {
    let shown: Vec<_> = roots
        .iter()
        .map(|root| root.display().to_string())
        .collect();
    shown.join(", ")
}

fn shown_formats(found: &[String]) -> String {
    match found {
        [] => String::new(),
        found => format!(
            "; it has {}, which vLLM's shim converts, or any tool that writes safetensors",
            found.join(", ")
        ),
    }
}
