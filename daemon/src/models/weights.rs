//! Takes tensors out of a checkpoint as arrays.
//!
//! # Invariants
//! - Every tensor is checked against the shape that the configuration implies before memory is
//!   taken for it.
//! - A tensor is taken once; what is left at the end is reported.
//!
//! # Cost
//! Tensors are read into the memory that MLX then has: they are never there twice.

mod conversions;
mod matrices;

use bytemuck::cast_slice_mut;
use half::{bf16, f16};
use metal_rpc_kernels as kernels;
use mlx_rs::Array;
use tracing::warn;

use self::conversions::Conversions;
use super::{
    Dtype, LoadOptions, ModelError,
    checkpoint::{Checkpoint, TensorEntry},
    convert::{self, Element},
    packed::pairs_to_halves,
    quantization::Quantization,
};

/// A tensor's name and its first dimension.
pub type Part = (String, i32);

/// A checkpoint that is being loaded.
#[derive(Debug)]
pub struct Weights<'a> {
    checkpoint: Checkpoint,
    quantization: Quantization,
    options: LoadOptions<'a>,
    total_bytes: u64,
    read_bytes: u64,
    resident_bytes: u64,
    conversions: Conversions,
}

impl<'a> Weights<'a> {
    /// Starts to load a sanitized checkpoint.
    ///
    /// # Errors
    /// [`ModelError::OutOfMemory`] if its tensors do not fit.
    pub fn new(
        checkpoint: Checkpoint,
        quantization: Quantization,
        options: LoadOptions<'a>,
    ) -> Result<Self, ModelError> {
        let (mut total_bytes, mut needed_bytes) = (0, 0);
        for entry in checkpoint.tensors.values() {
            total_bytes += entry.size_bytes;
            needed_bytes += entry.held_bytes(options.dtype);
        }
        if needed_bytes > options.free_bytes {
            return Err(ModelError::OutOfMemory {
                needed_bytes,
                dtype: options.dtype,
                free_bytes: options.free_bytes,
            });
        }
        Ok(Self {
            checkpoint,
            quantization,
            options,
            total_bytes,
            read_bytes: 0,
            resident_bytes: 0,
            conversions: Conversions::default(),
        })
    }

    /// What weights are held in.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.options.dtype
    }

    /// What the model computes in.
    #[must_use]
    pub fn activation_dtype(&self) -> Dtype {
        self.options.activation_dtype()
    }

    /// Matrices of equally many columns as one, rows of the first part first.
    ///
    /// # Shapes
    /// `[sum of the parts' rows, columns]`, in the weights' dtype.
    ///
    /// # Errors
    /// If a part is missing, of another shape or not floating-point, or cannot be read.
    pub fn matrix(&mut self, parts: &[Part], columns: i32) -> Result<Array, ModelError> {
        self.take(parts, &[columns])
    }

    /// Vectors as one, the first part first; `[sum of lengths]`, in the weights' dtype.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub fn vector(&mut self, parts: &[Part]) -> Result<Array, ModelError> {
        self.take(parts, &[])
    }

    /// Vectors as one, in f32 whatever the weights' dtype is: for what is computed with at load.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub fn floats(&mut self, parts: &[Part]) -> Result<Vec<f32>, ModelError> {
        let sources = parts
            .iter()
            .map(|(name, rows)| self.source(name, *rows, &[]))
            .collect::<Result<Vec<_>, _>>()?;
        let mut floats = vec![0.0; sources.iter().map(|source| source.len).sum()];
        self.read::<f32>(&sources, &mut floats)?;
        self.has_read(&sources, size_of_val(floats.as_slice()));
        Ok(floats)
    }

    /// Whether the checkpoint has a tensor of the layer `name`.
    #[must_use]
    pub fn has_layer(&self, name: &str) -> bool {
        let from = format!("{name}.");
        let next = self.checkpoint.tensors.range(from.clone()..).next();
        next.is_some_and(|(tensor, _)| tensor.starts_with(&from))
    }

    /// Ends the load: reports what was converted, and tensors that nothing took, once.
    ///
    /// Returns the bytes that the weights take in memory.
    pub fn finish(self) -> u64 {
        self.conversions.report();
        let unused = &self.checkpoint.tensors;
        if !unused.is_empty() {
            let first: Vec<&str> = unused.keys().take(3).map(String::as_str).collect();
            warn!(
                folder = %self.checkpoint.folder.display(),
                num_tensors = unused.len(),
                first = first.join(", "),
                "the checkpoint holds tensors that the model does not use",
            );
        }
        (self.options.progress)(self.total_bytes, self.total_bytes);
        self.resident_bytes
    }

    fn take(&mut self, parts: &[Part], row_shape: &[i32]) -> Result<Array, ModelError> {
        let mut sources = Vec::with_capacity(parts.len());
        let mut rows = 0;
        for (name, part_rows) in parts {
            sources.push(self.source(name, *part_rows, row_shape)?);
            rows += part_rows;
        }
        let num_elements: usize = sources.iter().map(|source| source.len).sum();
        // `Array::from_slice` multiplies the dimensions as i32.
        if i32::try_from(num_elements).is_err() {
            return Err(ModelError::TensorSize {
                name: parts[0].0.clone(),
                actual: num_elements as u64,
            });
        }
        let shape: Vec<i32> = [&[rows], row_shape].concat();
        let dtype = self.options.dtype;
        let array = kernels::filled(&shape, dtype.mlx(), |bytes| match dtype {
            Dtype::Float32 => self.read::<f32>(&sources, cast_slice_mut(bytes)),
            Dtype::Float16 => self.read::<f16>(&sources, cast_slice_mut(bytes)),
            Dtype::Bfloat16 => self.read::<bf16>(&sources, cast_slice_mut(bytes)),
        })?;
        self.has_read(&sources, array.nbytes());
        Ok(array)
    }

    /// Removes a tensor from the checkpoint's list and checks what it is.
    fn source(&mut self, name: &str, rows: i32, row_shape: &[i32]) -> Result<Source, ModelError> {
        let Some(entry) = self.checkpoint.tensors.remove(name) else {
            return Err(self.checkpoint.missing(name.to_owned()));
        };
        let file = || self.checkpoint.files[entry.file_index].path.clone();
        let expected: Vec<i32> = [&[rows], row_shape].concat();
        let matches = expected.len() == entry.shape.len()
            && std::iter::zip(&expected, &entry.shape)
                .all(|(&expected, &actual)| usize::try_from(expected) == Ok(actual));
        if !matches {
            return Err(ModelError::Shape {
                name: name.to_owned(),
                file: file(),
                expected,
                actual: entry.shape,
            });
        }
        let dtype = match Dtype::from_safetensors(entry.dtype) {
            Some(dtype) if entry.gguf.block.is_none() => dtype,
            _ => {
                return Err(ModelError::TensorDtype {
                    name: name.to_owned(),
                    file: file(),
                    actual: entry.dtype_name(),
                });
            }
        };
        Ok(Source {
            len: entry.shape.iter().product(),
            dtype,
            entry,
        })
    }

    fn read<T: Element>(&self, sources: &[Source], target: &mut [T]) -> Result<(), ModelError> {
        let mut rest = target;
        for source in sources {
            let (target, tail) = rest.split_at_mut(source.len);
            rest = tail;
            let entry = &source.entry;
            let file = &self.checkpoint.files[entry.file_index];
            convert::read(&file.file, entry.offset_bytes, source.dtype, target).map_err(
                |error| ModelError::Read {
                    path: file.path.clone(),
                    source: error,
                },
            )?;
            if entry.gguf.is_transposed {
                let stored = target.to_vec();
                transpose(&stored, entry.shape[0], target);
            }
            if let Some(heads) = entry.gguf.paired_heads {
                pairs_to_halves(cast_slice_mut(target), entry.shape[0], heads);
            }
            if entry.gguf.is_one_more {
                T::subtract_one(target);
            }
        }
        Ok(())
    }

    fn has_read(&mut self, sources: &[Source], held_bytes: usize) {
        let read_bytes = sources.iter().map(|source| source.entry.size_bytes).sum();
        self.count(read_bytes, held_bytes);
    }

    fn count(&mut self, read_bytes: u64, held_bytes: usize) {
        self.resident_bytes += held_bytes as u64;
        self.read_bytes += read_bytes;
        (self.options.progress)(self.read_bytes, self.total_bytes);
    }
}

/// Writes a matrix of `num_rows` rows that is stored column by column.
fn transpose<T: Element>(columns: &[T], num_rows: usize, rows: &mut [T]) {
    let num_columns = columns.len() / num_rows.max(1);
    for (row, values) in rows.chunks_exact_mut(num_columns.max(1)).enumerate() {
        let stored = columns[row..].iter().step_by(num_rows);
        values
            .iter_mut()
            .zip(stored)
            .for_each(|(to, from)| *to = *from);
    }
}

/// A tensor of floats, checked.
struct Source {
    entry: TensorEntry,
    dtype: Dtype,
    len: usize,
}
