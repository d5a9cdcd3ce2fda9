//! The token ids of a session's running requests, on the device.
//!
//! The sampler writes a token here as part of its step's graph, and the next step's input is
//! gathered from here. A step can therefore be built while the one before it still runs, however
//! its tokens are sampled; penalties and bad words read a request's history from here too.

use metal_rpc_kernels::{self as kernels, KernelError};
use mlx_rs::{Array, Dtype};

/// `[num_rows * row_len]` i32, one row per handle; memory is taken as rows are written.
///
/// Written in place; this struct holds the only handle of the array.
#[derive(Debug)]
pub struct TokenTable {
    table: Array,
    num_rows: u32,
    row_len: u32,
}

impl TokenTable {
    /// Room for `num_rows` requests of up to `row_len` tokens.
    ///
    /// # Errors
    /// If the operating system refuses the address space.
    pub fn reserve(num_rows: u32, row_len: u32) -> Result<Self, KernelError> {
        let num_slots = i32::try_from(u64::from(num_rows) * u64::from(row_len)).map_err(|_| {
            KernelError::Value {
                kernel: "token_table",
                argument: "2 * max_num_seqs * (max_model_len + 2)",
                rule: "below 2^31; lower one of the two",
            }
        })?;
        Ok(Self {
            table: kernels::reserve(&[num_slots], Dtype::Int32)?,
            num_rows,
            row_len,
        })
    }

    /// Requests that fit.
    #[must_use]
    pub fn num_rows(&self) -> u32 {
        self.num_rows
    }

    /// Tokens of one request that fit.
    #[must_use]
    pub fn row_len(&self) -> u32 {
        self.row_len
    }

    /// Where the token at `position` of the request `handle` lies.
    #[must_use]
    pub fn slot(&self, handle: u32, position: u32) -> i32 {
        assert!(
            handle < self.num_rows,
            "handles are checked when a request arrives"
        );
        assert!(
            position < self.row_len,
            "positions are checked when a step arrives"
        );
        i32::try_from(handle * self.row_len + position).expect("`reserve` checked the last slot")
    }

    /// Writes tokens at slots; `PAD_SLOT` skips one.
    ///
    /// # Shapes
    /// - `token_ids`, `slots`: `[n]` i32
    ///
    /// # Errors
    /// If MLX refuses the operation.
    pub fn write(&mut self, token_ids: &Array, slots: &Array) -> Result<(), KernelError> {
        kernels::write_slots(&mut self.table, token_ids, slots)
    }

    /// The tokens at slots: `[n]` i32.
    ///
    /// # Errors
    /// If MLX refuses the operation.
    pub fn gather(&self, slots: &Array) -> Result<Array, KernelError> {
        kernels::gather_slots(&self.table, slots)
    }

    /// The array itself, as of the last write.
    #[must_use]
    pub fn array(&self) -> &Array {
        &self.table
    }
}
