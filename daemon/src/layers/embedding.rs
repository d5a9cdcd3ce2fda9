//! The table of token embeddings, which may be the head as well.

use mlx_rs::{Array, Dtype};

use super::Matrix;
use crate::models::{ModelError, weights::Weights};

/// One row per token of the vocabulary.
#[derive(Debug)]
pub struct Embedding {
    /// `[vocab_size, hidden_size]`.
    weight: Matrix,
    activation_dtype: Dtype,
}

impl Embedding {
    /// Loads the layer `name`.
    ///
    /// # Errors
    /// As [`Weights::matrices`].
    pub fn load(
        name: &str,
        vocab_size: i32,
        hidden_size: i32,
        weights: &mut Weights<'_>,
    ) -> Result<Self, ModelError> {
        let mut matrices = weights.matrices(&[(name.to_owned(), vocab_size)], hidden_size)?;
        Ok(Self {
            weight: matrices.remove(0),
            activation_dtype: weights.activation_dtype().mlx(),
        })
    }

    /// The first activations of a forward.
    ///
    /// # Shapes
    /// - `token_ids`: `[num_tokens]` i32
    /// - returns `[num_tokens, hidden_size]`
    ///
    /// # Errors
    /// If MLX refuses the indices' type.
    pub fn forward(&self, token_ids: &Array) -> Result<Array, ModelError> {
        let rows = self.weight.rows(token_ids)?;
        Ok(rows.as_dtype(self.activation_dtype)?)
    }

    /// The table as the head of a model with tied embeddings.
    ///
    /// # Shapes
    /// - `hidden`: `[rows, hidden_size]`
    /// - returns `[rows, vocab_size]`, dtype of `hidden`
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn as_linear(&self, hidden: &Array) -> Result<Array, ModelError> {
        self.weight.product(hidden, None)
    }
}
