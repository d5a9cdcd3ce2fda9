//! What can be wrong with the header of a GGUF file.

use std::io;

use thiserror::Error;

/// Why a GGUF file cannot be read.
#[derive(Debug, Error)]
pub enum GgufError {
    /// It is something else.
    #[error("it must begin with \"GGUF\"")]
    Magic,
    /// It is of a version that we do not read, or big-endian.
    #[error("its version must be 2 or 3, little-endian, but is {version}")]
    Version {
        /// What stands there.
        version: u32,
    },
    /// It is shorter than its header says.
    #[error("it ends early; download it again")]
    End,
    /// The operating system cannot read it.
    #[error("it cannot be read: {0}")]
    Read(io::Error),
    /// It promises more things than it has room for.
    #[error("it has {count} entries in {what}, more than it has bytes for; download it again")]
    Count {
        /// Where.
        what: &'static str,
        /// What it promises.
        count: u64,
    },
    /// A key or the name of a tensor is absurd.
    #[error("a name must be UTF-8 of at most 4096 bytes, but has {len} bytes")]
    Name {
        /// Its length.
        len: u64,
    },
    /// A value is of a type that the format does not have.
    #[error("values must be of types 0 to 12, but one is of type {kind}")]
    ValueType {
        /// ggml's number of it.
        kind: u32,
    },
    /// A key that must be there is not, or is no number or text.
    #[error("it must have the key {key}")]
    Key {
        /// The key.
        key: String,
    },
    /// The alignment of tensors is not one.
    #[error("general.alignment must be a power of two up to 65536, but is {alignment}")]
    Alignment {
        /// What stands there.
        alignment: u64,
    },
    /// A tensor has dimensions that cannot be.
    #[error(
        "tensor {name} must have 1 to 4 dimensions, rows of whole blocks and fewer than 2^40 weights, but has {shape:?}"
    )]
    TensorShape {
        /// The tensor.
        name: String,
        /// Its dimensions, the slowest first.
        shape: Vec<u64>,
    },
    /// A tensor's data is not in the file.
    #[error(
        "tensor {name} must lie in the file, but ends at byte {end_bytes} of {size_bytes}; download it again"
    )]
    TensorEnd {
        /// The tensor.
        name: String,
        /// Where its data ends.
        end_bytes: u64,
        /// How long the file is.
        size_bytes: u64,
    },
    /// Rotated rows do not divide into heads.
    #[error("tensor {name} must have rows for {heads} heads of even size, but has {rows}")]
    Heads {
        /// The tensor.
        name: String,
        /// How many heads the file has.
        heads: u64,
        /// Rows of the tensor.
        rows: u64,
    },
}

impl GgufError {
    pub(super) fn key(key: &str) -> Self {
        Self::Key {
            key: key.to_owned(),
        }
    }

    pub(super) fn of_read(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::End,
            _ => Self::Read(error),
        }
    }
}
