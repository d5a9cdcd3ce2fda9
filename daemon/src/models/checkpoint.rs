//! Which tensors a model's folder holds, and where in which file.
//!
//! Only headers are read here. Data is read later, tensor by tensor, with positioned reads: a file
//! that is truncated meanwhile is then an error, where a mapping would end the daemon with SIGBUS,
//! and no pages stay charged to the process.
//!
//! # Source
//! The safetensors format, and Hugging Face's `model.safetensors.index.json`; GGUF in [`gguf`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use safetensors::tensor::Metadata;
use serde::Deserialize;

use super::{Dtype, ModelError, file::read_limited, gguf, packed::BlockType};

/// Most bytes of a header: the limit of the safetensors format itself.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Most bytes of an index. The largest in use, of models with 60,000 tensors, have some 5 MB.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// Bytes before the header: its length.
const HEADER_LEN_BYTES: u64 = 8;

/// One weights file.
#[derive(Debug)]
pub struct WeightsFile {
    /// Where it is.
    pub path: PathBuf,
    /// Open for reading.
    pub file: File,
}

/// One tensor as its file describes it.
#[derive(Clone, Debug)]
pub struct TensorEntry {
    /// Index of its file in [`Checkpoint::files`].
    pub file_index: usize,
    /// Element format.
    pub dtype: safetensors::Dtype,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Where its data starts in the file.
    pub offset_bytes: u64,
    /// How long its data is.
    pub size_bytes: u64,
    /// What GGUF files and some families do in their own way.
    pub gguf: GgufEntry,
}

/// How a tensor's data differs from that of a plain one; by default not at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct GgufEntry {
    /// It consists of blocks; its dtype stands for bytes, its shape counts weights.
    pub block: Option<BlockType>,
    /// Its rows are interleaved in pairs, by this number of heads.
    pub paired_heads: Option<usize>,
    /// It is a matrix that is stored column by column.
    pub is_transposed: bool,
    /// It holds what a norm multiplies with, where checkpoints have that less one.
    pub is_one_more: bool,
}

impl TensorEntry {
    /// What it takes in memory when floats are held as `dtype`.
    #[must_use]
    pub fn held_bytes(&self, dtype: Dtype) -> u64 {
        let len = self.shape.iter().product::<usize>() as u64;
        match (self.gguf.block, Dtype::from_safetensors(self.dtype)) {
            (Some(block), _) => len * block.held_bits() / 8,
            (None, Some(_)) => len * dtype.size_bytes(),
            (None, None) => self.size_bytes,
        }
    }

    /// The name of its element format.
    #[must_use]
    pub fn dtype_name(&self) -> String {
        match self.gguf.block {
            Some(block) => block.name().to_owned(),
            None => self.dtype.to_string(),
        }
    }
}

/// The tensors of a model's folder.
#[derive(Debug)]
pub struct Checkpoint {
    /// The model's folder.
    pub folder: PathBuf,
    /// The weights files, open.
    pub files: Vec<WeightsFile>,
    /// Tensors by name.
    pub tensors: BTreeMap<String, TensorEntry>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Reads the headers of a folder's weights, one file or several.
    ///
    /// # Errors
    /// If there are none, if a file is damaged or has not the size that its header promises, or if
    /// the index and the files disagree.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let mut checkpoint = Self {
            folder: folder.to_owned(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
        };
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        if index.is_file() {
            checkpoint.add_shards(&index)?;
        } else if single.is_file() {
            checkpoint.add_file(single)?;
        } else {
            checkpoint.add_gguf()?;
        }
        Ok(checkpoint)
    }

    /// One GGUF file, or all parts of one.
    fn add_gguf(&mut self) -> Result<(), ModelError> {
        let files = self.names_ending_in(&[".gguf"])?;
        if files.is_empty() {
            return Err(ModelError::NoWeights {
                folder: self.folder.clone(),
                found: self.names_ending_in(&[".bin", ".pt", ".pth", ".npz"])?,
            });
        }
        if files.len() > 1 && !gguf::are_parts(&files) {
            return Err(ModelError::SeveralWeights {
                folder: self.folder.clone(),
                files,
            });
        }
        let mut conversion = None;
        for file in files {
            let weights_file = open(self.folder.join(file))?;
            let tensors = gguf::read(&weights_file, self.files.len(), &mut conversion)?;
            for (name, entry) in tensors {
                self.insert(name, entry, &weights_file)?;
            }
            self.files.push(weights_file);
        }
        Ok(())
    }

    /// Names of files in the folder, in order.
    fn names_ending_in(&self, ends: &[&str]) -> Result<Vec<String>, ModelError> {
        let failed = |source| ModelError::Read {
            path: self.folder.clone(),
            source,
        };
        let mut names = Vec::new();
        for entry in self.folder.read_dir().map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if let Some(name) = name
                .to_str()
                .filter(|name| ends.iter().any(|end| name.ends_with(end)))
            {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    fn add_shards(&mut self, index: &Path) -> Result<(), ModelError> {
        let bytes = read_limited(index, MAX_INDEX_BYTES)?;
        let parsed: Index = serde_json::from_slice(&bytes).map_err(|source| ModelError::Json {
            path: index.to_owned(),
            source,
        })?;
        let shards: BTreeSet<&String> = parsed.weight_map.values().collect();
        for shard in shards {
            // The name comes from a file: it must not lead out of the folder.
            if Path::new(shard).file_name() != Some(shard.as_ref()) {
                return Err(ModelError::ShardName {
                    index: index.to_owned(),
                    shard: shard.clone(),
                });
            }
            self.add_file(self.folder.join(shard))?;
        }
        match parsed
            .weight_map
            .into_keys()
            .find(|name| !self.tensors.contains_key(name))
        {
            Some(name) => Err(self.missing(name)),
            None => Ok(()),
        }
    }

    fn add_file(&mut self, path: PathBuf) -> Result<(), ModelError> {
        let weights_file = open(path)?;
        let (metadata, data_start_bytes) = read_header(&weights_file)?;
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let entry = TensorEntry {
                file_index: self.files.len(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                offset_bytes: data_start_bytes + start as u64,
                size_bytes: (end - start) as u64,
                gguf: GgufEntry::default(),
            };
            self.insert(name, entry, &weights_file)?;
        }
        self.files.push(weights_file);
        Ok(())
    }

    fn insert(
        &mut self,
        name: String,
        entry: TensorEntry,
        file: &WeightsFile,
    ) -> Result<(), ModelError> {
        match self.tensors.insert(name.clone(), entry) {
            None => Ok(()),
            Some(other) => {
                let first = self.files.get(other.file_index).unwrap_or(file);
                Err(ModelError::Duplicate {
                    name,
                    first: first.path.clone(),
                    second: file.path.clone(),
                })
            }
        }
    }

    /// The error for a tensor that is not there.
    #[must_use]
    pub fn missing(&self, name: String) -> ModelError {
        ModelError::Missing {
            name,
            folder: self.folder.clone(),
        }
    }
}

fn open(path: PathBuf) -> Result<WeightsFile, ModelError> {
    match File::open(&path) {
        Ok(file) => Ok(WeightsFile { path, file }),
        Err(source) => Err(ModelError::Read { path, source }),
    }
}

/// The header, and where the data starts.
fn read_header(weights: &WeightsFile) -> Result<(Metadata, u64), ModelError> {
    let failed = |source| ModelError::Read {
        path: weights.path.clone(),
        source,
    };
    let damaged = |source| ModelError::Header {
        file: weights.path.clone(),
        source,
    };
    let file_bytes = weights.file.metadata().map_err(failed)?.len();
    let mut length = [0; 8];
    if file_bytes < HEADER_LEN_BYTES {
        return Err(damaged(safetensors::SafeTensorError::HeaderTooSmall));
    }
    weights.file.read_exact_at(&mut length, 0).map_err(failed)?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > MAX_HEADER_BYTES {
        return Err(damaged(safetensors::SafeTensorError::HeaderTooLarge));
    }
    if header_bytes > file_bytes - HEADER_LEN_BYTES {
        return Err(ModelError::FileSize {
            file: weights.path.clone(),
            expected_bytes: HEADER_LEN_BYTES + header_bytes,
            actual_bytes: file_bytes,
        });
    }
    let mut header = vec![0; usize::try_from(header_bytes).expect("bounded by MAX_HEADER_BYTES")];
    weights
        .file
        .read_exact_at(&mut header, HEADER_LEN_BYTES)
        .map_err(failed)?;
    // Deserialising checks that shapes, formats and offsets agree and leave no holes.
    let metadata: Metadata = serde_json::from_slice(&header)
        .map_err(safetensors::SafeTensorError::InvalidHeaderDeserialization)
        .map_err(damaged)?;
    let data_start_bytes = HEADER_LEN_BYTES + header_bytes;
    let expected_bytes = data_start_bytes + metadata.data_len() as u64;
    if expected_bytes != file_bytes {
        return Err(ModelError::FileSize {
            file: weights.path.clone(),
            expected_bytes,
            actual_bytes: file_bytes,
        });
    }
    Ok((metadata, data_start_bytes))
}
