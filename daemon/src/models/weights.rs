//! Takes tensors out of a checkpoint as arrays.
//!
//! # Invariants
//! - Every tensor is checked against the shape that the configuration implies before memory is
//!   taken for it.
//! - A tensor is taken once; what is left at the end is reported.
//!
//! # Cost
//! One tensor is in memory twice while it is handed to MLX.

use half::{bf16, f16};
use mlx_rs::Array;
use tracing::warn;

use super::{
    Dtype, LoadOptions, ModelError,
    checkpoint::Checkpoint,
    convert::{self, Element},
};

/// A tensor's name and its first dimension.
pub type Part = (String, i32);

/// A checkpoint that is being loaded.
#[derive(Debug)]
pub struct Weights<'a> {
    checkpoint: Checkpoint,
    options: LoadOptions<'a>,
    total_bytes: u64,
    read_bytes: u64,
    resident_bytes: u64,
}

impl<'a> Weights<'a> {
    /// Starts to load a sanitized checkpoint.
    ///
    /// # Errors
    /// [`ModelError::OutOfMemory`] if its tensors do not fit.
    pub fn new(checkpoint: Checkpoint, options: LoadOptions<'a>) -> Result<Self, ModelError> {
        let (mut total_bytes, mut needed_bytes) = (0, 0);
        for entry in checkpoint.tensors.values() {
            total_bytes += entry.size_bytes;
            let len = entry.shape.iter().product::<usize>() as u64;
            needed_bytes += len * options.dtype.size_bytes();
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
            options,
            total_bytes,
            read_bytes: 0,
            resident_bytes: 0,
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
        let floats = self.read::<f32>(&sources)?;
        self.resident_bytes += size_of_val(floats.as_slice()) as u64;
        self.read_bytes += sources.iter().map(|source| source.size_bytes).sum::<u64>();
        (self.options.progress)(self.read_bytes, self.total_bytes);
        Ok(floats)
    }

    /// Ends the load: reports tensors that nothing took, once.
    ///
    /// Returns the bytes that the weights take in memory.
    pub fn finish(self) -> u64 {
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
        let array = match self.options.dtype {
            Dtype::Float32 => Array::from_slice(&self.read::<f32>(&sources)?, &shape),
            Dtype::Float16 => Array::from_slice(&self.read::<f16>(&sources)?, &shape),
            Dtype::Bfloat16 => Array::from_slice(&self.read::<bf16>(&sources)?, &shape),
        };
        self.resident_bytes += array.nbytes() as u64;
        self.read_bytes += sources.iter().map(|source| source.size_bytes).sum::<u64>();
        (self.options.progress)(self.read_bytes, self.total_bytes);
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
        let Some(dtype) = Dtype::from_safetensors(entry.dtype) else {
            return Err(ModelError::TensorDtype {
                name: name.to_owned(),
                file: file(),
                actual: entry.dtype,
            });
        };
        Ok(Source {
            len: entry.shape.iter().product(),
            file_index: entry.file_index,
            dtype,
            offset_bytes: entry.offset_bytes,
            size_bytes: entry.size_bytes,
        })
    }

    fn read<T: Element>(&self, sources: &[Source]) -> Result<Vec<T>, ModelError> {
        let mut elements = vec![T::zeroed(); sources.iter().map(|source| source.len).sum()];
        let mut rest = elements.as_mut_slice();
        for source in sources {
            let (target, tail) = rest.split_at_mut(source.len);
            rest = tail;
            let file = &self.checkpoint.files[source.file_index];
            convert::read(&file.file, source.offset_bytes, source.dtype, target).map_err(
                |error| ModelError::Read {
                    path: file.path.clone(),
                    source: error,
                },
            )?;
        }
        Ok(elements)
    }
}

/// Where a tensor's elements stand, checked.
struct Source {
    file_index: usize,
    dtype: Dtype,
    offset_bytes: u64,
    size_bytes: u64,
    len: usize,
}
