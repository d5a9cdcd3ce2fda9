//! GGUF files: which tensors they hold, under the names that families know.
//!
//! Only headers are read here. Configuration and tokenizer lie beside the file, as in every model's
//! folder; whoever puts a single file into one writes them from the same header.
//!
//! # Source
//! ggml `docs/gguf.md`.

mod error;
mod names;
mod reader;

use std::{collections::BTreeMap, path::Path};

use self::{
    names::{ARCHITECTURES, Architecture},
    reader::{Reader, Value},
};
use super::{
    ModelError,
    checkpoint::{GgufEntry, TensorEntry, WeightsFile},
    packed::BlockType,
};

pub use self::error::GgufError;

/// Where tensors begin if the file does not say: at multiples of this.
const ALIGNMENT_BYTES: u64 = 32;

/// Bytes of the smallest description of a tensor, and of a key with its value.
const LEAST_TENSOR_BYTES: u64 = 8 + 4 + 8 + 4 + 8;
const LEAST_VALUE_BYTES: u64 = 8 + 4 + 1;

/// Most weights of a tensor: 128 times what MLX can be given.
const MAX_WEIGHTS: u64 = 1 << 40;

/// ggml's types of tensors that do not consist of blocks, with bytes of an element.
const FLOATS: [(u32, safetensors::Dtype, u64); 3] = [
    (0, safetensors::Dtype::F32, 4),
    (1, safetensors::Dtype::F16, 2),
    (30, safetensors::Dtype::BF16, 2),
];

/// ggml's names of the types that we do not read.
const OTHER_TYPES: [(u32, &str); 18] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

/// How the tensors of a model's files are to be read: what its first file says.
#[derive(Debug)]
pub(super) struct Conversion {
    architecture: &'static Architecture,
    heads: u64,
    kv_heads: u64,
}

/// The tensors of a file, by the names that families know.
///
/// `conversion` is that of the model's first file: the others, if there are several, say nothing of
/// the model.
///
/// # Errors
/// [`ModelError::Gguf`] if the header makes no sense, [`ModelError::GgufUnsupported`] if the
/// architecture or a type of tensors is not known.
pub(super) fn read(
    weights: &WeightsFile,
    file_index: usize,
    conversion: &mut Option<Conversion>,
) -> Result<Vec<(String, TensorEntry)>, ModelError> {
    let damaged = |problem| ModelError::Gguf {
        file: weights.path.clone(),
        problem,
    };
    let size_bytes = match weights.file.metadata() {
        Ok(metadata) => metadata.len(),
        Err(error) => return Err(damaged(GgufError::Read(error))),
    };
    let header = Header::read(weights, size_bytes).map_err(damaged)?;
    let conversion = match conversion {
        Some(conversion) => conversion,
        None => conversion.insert(Conversion::of(&weights.path, &header.values)?),
    };
    let mut tensors = Vec::with_capacity(header.tensors.len());
    for info in &header.tensors {
        let Some(name) = conversion.architecture.rename(&info.name) else {
            continue;
        };
        let mut entry = info.entry(&weights.path, file_index)?;
        let end = header.locate(info, &mut entry);
        if end.is_none_or(|end| end > size_bytes) {
            return Err(damaged(GgufError::TensorEnd {
                name: info.name.clone(),
                end_bytes: end.unwrap_or(u64::MAX),
                size_bytes,
            }));
        }
        conversion.mark(&name, &mut entry).map_err(damaged)?;
        tensors.push((name, entry));
    }
    Ok(tensors)
}

/// Whether names, in order, are all parts of one file: `NAME-00001-of-00003.gguf` and so on.
pub(super) fn are_parts(names: &[String]) -> bool {
    let count = names.len();
    let Some(prefix) = names[0].strip_suffix(&format!("-00001-of-{count:05}.gguf")) else {
        return false;
    };
    (1..)
        .zip(names)
        .all(|(part, name)| *name == format!("{prefix}-{part:05}-of-{count:05}.gguf"))
}

type Values = BTreeMap<String, Value>;

/// What stands before the tensors' data.
struct Header {
    values: Values,
    tensors: Vec<Info>,
    data_start_bytes: u64,
}

/// One tensor as the header describes it.
struct Info {
    name: String,
    /// ggml's number of its type.
    kind: u32,
    /// From the start of the data on.
    offset_bytes: u64,
    /// The slowest dimension first, which is the last in the file.
    shape: Vec<u64>,
}

impl Header {
    fn read(weights: &WeightsFile, size_bytes: u64) -> Result<Self, GgufError> {
        let mut reader = Reader::new(&weights.file, size_bytes);
        if reader.u32()? != u32::from_le_bytes(*b"GGUF") {
            return Err(GgufError::Magic);
        }
        let version = reader.u32()?;
        if !(2..=3).contains(&version) {
            return Err(GgufError::Version { version });
        }
        let num_tensors = reader.count("its list of tensors", LEAST_TENSOR_BYTES)?;
        let num_values = reader.count("its metadata", LEAST_VALUE_BYTES)?;
        let values = (0..num_values).map(|_| Ok::<_, GgufError>((reader.name()?, reader.value()?)));
        let values = values.collect::<Result<Values, _>>()?;
        let tensors = (0..num_tensors).map(|_| Info::read(&mut reader));
        let tensors = tensors.collect::<Result<_, _>>()?;
        let alignment = match values.get("general.alignment") {
            None => ALIGNMENT_BYTES,
            Some(Value::Number(alignment @ 1..=65536)) if alignment.is_power_of_two() => *alignment,
            Some(Value::Number(alignment)) => {
                return Err(GgufError::Alignment {
                    alignment: *alignment,
                });
            }
            Some(_) => return Err(GgufError::key("general.alignment")),
        };
        Ok(Self {
            values,
            tensors,
            data_start_bytes: reader.at_bytes().next_multiple_of(alignment),
        })
    }

    /// Tells an entry where its data begins; returns where it ends, if there is such a place.
    fn locate(&self, info: &Info, entry: &mut TensorEntry) -> Option<u64> {
        entry.offset_bytes = self.data_start_bytes.checked_add(info.offset_bytes)?;
        entry.offset_bytes.checked_add(entry.size_bytes)
    }
}

impl Info {
    fn read(reader: &mut Reader<'_>) -> Result<Self, GgufError> {
        let name = reader.name()?;
        let num_dims = reader.u32()?;
        let mut shape = Vec::new();
        for _ in 0..num_dims.min(5) {
            shape.insert(0, reader.u64()?);
        }
        let weights = shape
            .iter()
            .try_fold(1_u64, |product, &dim| product.checked_mul(dim));
        if !(1..=4).contains(&num_dims) || weights.is_none_or(|weights| weights >= MAX_WEIGHTS) {
            return Err(GgufError::TensorShape { name, shape });
        }
        Ok(Self {
            name,
            kind: reader.u32()?,
            offset_bytes: reader.u64()?,
            shape,
        })
    }

    /// The tensor, still without a place.
    fn entry(&self, path: &Path, file_index: usize) -> Result<TensorEntry, ModelError> {
        let weights: u64 = self.shape.iter().product();
        let block = BlockType::from_id(self.kind);
        let (dtype, size_bytes) = match block {
            Some(block) => {
                let row = self.shape.last().expect("it has dimensions");
                if !row.is_multiple_of(block.weights() as u64) {
                    return Err(ModelError::Gguf {
                        file: path.to_owned(),
                        problem: GgufError::TensorShape {
                            name: self.name.clone(),
                            shape: self.shape.clone(),
                        },
                    });
                }
                let num_blocks = weights / block.weights() as u64;
                (
                    safetensors::Dtype::U8,
                    num_blocks * block.size_bytes() as u64,
                )
            }
            None => match FLOATS.iter().find(|row| row.0 == self.kind) {
                Some(&(_, dtype, element_bytes)) => (dtype, weights * element_bytes),
                None => return Err(self.unsupported(path)),
            },
        };
        let size = |&dim: &u64| usize::try_from(dim).expect("below 2^40");
        Ok(TensorEntry {
            file_index,
            dtype,
            shape: self.shape.iter().map(size).collect(),
            offset_bytes: 0,
            size_bytes,
            gguf: GgufEntry {
                block,
                ..GgufEntry::default()
            },
        })
    }

    fn unsupported(&self, path: &Path) -> ModelError {
        let name = OTHER_TYPES.iter().find(|row| row.0 == self.kind);
        let mut known = vec!["F32", "F16", "BF16"];
        known.extend(BlockType::names());
        ModelError::GgufUnsupported {
            file: path.to_owned(),
            key: format!("the type of tensor {},", self.name),
            value: name.map_or_else(|| self.kind.to_string(), |row| row.1.to_owned()),
            known,
        }
    }
}

impl Conversion {
    fn of(path: &Path, values: &Values) -> Result<Self, ModelError> {
        let damaged = |key: &str| ModelError::Gguf {
            file: path.to_owned(),
            problem: GgufError::key(key),
        };
        const ARCHITECTURE: &str = "general.architecture";
        let Some(Value::Text(name)) = values.get(ARCHITECTURE) else {
            return Err(damaged(ARCHITECTURE));
        };
        let Some(architecture) = Architecture::find(name) else {
            return Err(ModelError::GgufUnsupported {
                file: path.to_owned(),
                key: ARCHITECTURE.to_owned(),
                value: name.clone(),
                known: ARCHITECTURES.iter().map(|known| known.name).collect(),
            });
        };
        let key = format!("{name}.attention.head_count");
        let Some(&Value::Number(heads)) = values.get(&key) else {
            return Err(damaged(&key));
        };
        let kv_heads = match values.get(&format!("{key}_kv")) {
            Some(&Value::Number(kv_heads)) => kv_heads,
            _ => heads,
        };
        Ok(Self {
            architecture,
            heads,
            kv_heads,
        })
    }

    /// Notes what llama.cpp has done to a tensor.
    fn mark(&self, name: &str, entry: &mut TensorEntry) -> Result<(), GgufError> {
        let is_norm = name.ends_with("norm.weight");
        entry.gguf.is_one_more = self.architecture.is_one_more && is_norm;
        if name.ends_with("shared_expert_gate.weight") && entry.shape.len() == 1 {
            entry.shape.insert(0, 1);
        }
        let heads = match self.architecture.is_paired {
            true if name.contains(".q_proj.") => self.heads,
            true if name.contains(".k_proj.") => self.kv_heads,
            _ => return Ok(()),
        };
        let rows = entry.shape[0] as u64;
        let heads_of_pairs = heads.checked_mul(2).filter(|&pairs| pairs > 0);
        if !heads_of_pairs.is_some_and(|pairs| rows > 0 && rows.is_multiple_of(pairs)) {
            return Err(GgufError::Heads {
                name: name.to_owned(),
                heads,
                rows,
            });
        }
        entry.gguf.paired_heads = usize::try_from(heads).ok();
        Ok(())
    }
}
