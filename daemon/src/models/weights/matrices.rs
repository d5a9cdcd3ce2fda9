//! Matrices that may be quantised: which of the formats a layer is in shows in its tensors.

use metal_rpc_kernels::QuantizedFormat;
use mlx_rs::DeviceType;
use safetensors::Dtype as Stored;

use super::{Part, Weights};
use crate::{
    layers::Matrix,
    models::{
        Dtype, ModelError,
        checkpoint::TensorEntry,
        packed::{self, Awq, Ggml, Gptq, Held, Mlx, PackedSource, ZeroPointed},
        quantization::Quantization,
    },
};

/// A layer before it is read: one of several formats, or dense.
enum Found<'a> {
    Dense(&'a Part),
    Packed(Box<PackedSource>),
}

impl Weights<'_> {
    /// Layers of equally many inputs, those of the first part first: those that are held alike as
    /// one matrix.
    ///
    /// `parts` are names of layers, without `.weight`, and their numbers of outputs.
    ///
    /// # Errors
    /// If a tensor is missing, of another shape or in a format that we do not read.
    pub fn matrices(&mut self, parts: &[Part], inputs: i32) -> Result<Vec<Matrix>, ModelError> {
        let found = parts
            .iter()
            .map(|part| self.find(part, inputs))
            .collect::<Result<Vec<_>, _>>()?;
        let mut matrices = Vec::new();
        let mut rest = found.into_iter().peekable();
        while let Some(first) = rest.next() {
            match first {
                Found::Dense((name, rows)) => {
                    let mut dense = vec![(format!("{name}.weight"), *rows)];
                    while let Some(Found::Dense((name, rows))) =
                        rest.next_if(|next| matches!(next, Found::Dense(_)))
                    {
                        dense.push((format!("{name}.weight"), *rows));
                    }
                    matrices.push(Matrix::Dense(self.matrix(&dense, inputs)?));
                }
                Found::Packed(source) => {
                    let held = source.held;
                    let mut sources = vec![*source];
                    while let Some(Found::Packed(source)) = rest.next_if(
                        |next| matches!(next, Found::Packed(source) if source.held == held),
                    ) {
                        sources.push(*source);
                    }
                    matrices.push(self.read_packed(&sources)?);
                }
            }
        }
        Ok(matrices)
    }

    fn read_packed(&mut self, sources: &[PackedSource]) -> Result<Matrix, ModelError> {
        let matrix = packed::build(sources, &self.checkpoint.files)?;
        let read_bytes = sources.iter().map(PackedSource::size_bytes).sum();
        self.count(read_bytes, matrix.nbytes());
        for source in sources {
            if let packed::Stored::Ggml(stored) = &source.stored {
                let weights = (source.rows * source.inputs) as u64;
                let held_bytes = weights * stored.block.held_bits() / 8;
                self.conversions
                    .add(stored.block, [source.size_bytes(), held_bytes]);
            }
        }
        Ok(Matrix::Quantized(matrix))
    }

    fn find<'a>(&mut self, part: &'a Part, inputs: i32) -> Result<Found<'a>, ModelError> {
        let (name, rows) = part;
        let layer = Layer {
            name,
            rows: size(*rows),
            inputs: size(inputs),
        };
        let weight = self.checkpoint.tensors.get(&format!("{name}.weight"));
        let source = if let Some(weight) = weight {
            match (weight.gguf.block, weight.dtype) {
                (Some(_), _) => self.ggml(layer)?,
                (None, Stored::U32) => self.mlx(layer, ["weight", "scales"])?,
                _ => return Ok(Found::Dense(part)),
            }
        } else {
            match self.quantization {
                Quantization::Awq => self.awq(layer)?,
                Quantization::Gptq { zero_offset } => self.gptq(layer, zero_offset)?,
                Quantization::Mxfp4 => self.mlx(layer, ["blocks", "scales"])?,
                // Dense: it will be reported as missing.
                Quantization::None | Quantization::Mlx => return Ok(Found::Dense(part)),
            }
        };
        Ok(Found::Packed(Box::new(source)))
    }

    /// MLX's tensors, or those of MXFP4, whose scales have a byte.
    fn mlx(
        &mut self,
        layer: Layer<'_>,
        [packed, scales]: [&str; 2],
    ) -> Result<PackedSource, ModelError> {
        let packed = self.part(layer, packed)?;
        let scales = self.part(layer, scales)?;
        let biases = self
            .checkpoint
            .tensors
            .remove(&format!("{}.biases", layer.name));
        let groups = scales.shape.last().copied().unwrap_or(0);
        // 32 weights are as many words as a weight has bits.
        let bits = packed.size_bytes * 8 / (layer.rows * layer.inputs).max(1) as u64;
        let group_size = layer.inputs / groups.max(1);
        let format = match biases {
            None => QuantizedFormat::Mxfp4,
            Some(_) => QuantizedFormat::Affine {
                bits: u8::try_from(bits).unwrap_or(0),
                group_size: u8::try_from(group_size).unwrap_or(0),
            },
        };
        let fits = format.is_known()
            && packed.shape.first() == Some(&layer.rows)
            && layer.inputs == groups * size(format.group_size())
            && packed.size_bytes * 8
                == (layer.rows * layer.inputs) as u64 * size(format.bits()) as u64;
        if !fits {
            let rule = format!(
                "{} rows of {} inputs in 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128, or in \
                 mxfp4",
                layer.rows, layer.inputs
            );
            return Err(self.packing(layer, "weight", &packed, rule));
        }
        let shared = match &biases {
            None => {
                let shape = [layer.rows, groups];
                self.check(layer, "scales", &scales, &shape, |dtype| {
                    dtype == Stored::U8
                })?;
                None
            }
            Some(biases) => {
                let shape = [layer.rows, groups];
                let is_float = |dtype| Dtype::from_safetensors(dtype).is_some();
                self.check(layer, "scales", &scales, &shape, is_float)?;
                self.check(layer, "biases", biases, &shape, is_float)?;
                Some(self.shared(&scales))
            }
        };
        let paired_heads = packed.gguf.paired_heads;
        let stored = packed::Stored::Mlx(Mlx {
            packed,
            scales,
            biases,
        });
        Ok(layer.source(Held { format, shared }, stored, paired_heads))
    }

    fn ggml(&mut self, layer: Layer<'_>) -> Result<PackedSource, ModelError> {
        let entry = self.part(layer, "weight")?;
        self.check(layer, "weight", &entry, &[layer.rows, layer.inputs], |_| {
            true
        })?;
        let block = entry.gguf.block.expect("the caller has looked");
        let mut held = block.held();
        held.shared = held.shared.map(|dtype| self.on_device(dtype));
        let paired_heads = entry.gguf.paired_heads;
        let stored = packed::Stored::Ggml(Ggml { entry, block });
        Ok(layer.source(held, stored, paired_heads))
    }

    fn awq(&mut self, layer: Layer<'_>) -> Result<PackedSource, ModelError> {
        let (stored, held) = self.zero_pointed(layer, 4, |columns| [layer.inputs, columns])?;
        Ok(layer.source(held, packed::Stored::Awq(Awq(stored)), None))
    }

    fn gptq(&mut self, layer: Layer<'_>, zero_offset: u32) -> Result<PackedSource, ModelError> {
        self.check_order(layer)?;
        // Words of `qweight` are along its inputs, so its first dimension tells the bits.
        let qweight = self
            .checkpoint
            .tensors
            .get(&format!("{}.qweight", layer.name));
        let words = qweight.map_or(0, |entry| entry.shape.first().copied().unwrap_or(0));
        let bits = words * 32 / layer.inputs.max(1);
        if ![2, 4, 8].contains(&bits) {
            let entry = self.part(layer, "qweight")?;
            let rule = format!("{} inputs in 2, 4 or 8 bits as words", layer.inputs);
            return Err(self.packing(layer, "qweight", &entry, rule));
        }
        let shape = |_| [layer.inputs * bits / 32, layer.rows];
        let (stored, held) = self.zero_pointed(layer, bits, shape)?;
        Ok(layer.source(held, packed::Stored::Gptq(Gptq(stored, zero_offset)), None))
    }

    /// The tensors of a matrix with zero points; `shape` is that of `qweight`, given the number of
    /// words of a row of zero points.
    fn zero_pointed(
        &mut self,
        layer: Layer<'_>,
        bits: usize,
        shape: impl Fn(usize) -> [usize; 2],
    ) -> Result<(ZeroPointed, Held), ModelError> {
        let qweight = self.part(layer, "qweight")?;
        let qzeros = self.part(layer, "qzeros")?;
        let scales = self.part(layer, "scales")?;
        let is_word = |dtype| matches!(dtype, Stored::I32 | Stored::U32);
        let is_float = |dtype| Dtype::from_safetensors(dtype).is_some();
        let groups = scales.shape.first().copied().unwrap_or(0);
        let columns = layer.rows * bits / 32;
        self.check(layer, "qweight", &qweight, &shape(columns), is_word)?;
        self.check(layer, "qzeros", &qzeros, &[groups, columns], is_word)?;
        self.check(layer, "scales", &scales, &[groups, layer.rows], is_float)?;
        // A larger group is held as several of the largest that we know.
        let group_size = layer.inputs / groups.max(1);
        let held_size = if QuantizedFormat::GROUP_SIZES
            .iter()
            .any(|&known| usize::from(known) == group_size)
        {
            group_size
        } else {
            128
        };
        let fits = groups > 0
            && layer.inputs == groups * group_size
            && group_size.is_multiple_of(held_size)
            && (columns * 32).is_multiple_of(layer.rows);
        if !fits {
            let rule = format!(
                "{} inputs in groups of 32, 64 or a multiple of 128",
                layer.inputs
            );
            return Err(self.packing(layer, "scales", &scales, rule));
        }
        let held = Held {
            format: QuantizedFormat::Affine {
                bits: u8::try_from(bits).expect("at most 8"),
                group_size: u8::try_from(held_size).expect("at most 128"),
            },
            shared: Some(self.shared(&scales)),
        };
        let stored = ZeroPointed {
            qweight,
            qzeros,
            scales,
            rows: layer.rows,
            groups,
            repeat: group_size / held_size,
            bits,
        };
        Ok((stored, held))
    }

    /// Refuses inputs that are grouped in another order than their own (`desc_act`).
    fn check_order(&mut self, layer: Layer<'_>) -> Result<(), ModelError> {
        let name = format!("{}.g_idx", layer.name);
        let Some(entry) = self.checkpoint.tensors.remove(&name) else {
            return Ok(());
        };
        self.check(layer, "g_idx", &entry, &[layer.inputs], |dtype| {
            dtype == Stored::I32
        })?;
        let file = &self.checkpoint.files[entry.file_index];
        let mut groups = vec![0_i32; layer.inputs];
        let bytes = bytemuck::cast_slice_mut(&mut groups);
        super::convert::read_bytes(&file.file, entry.offset_bytes, bytes).map_err(|source| {
            ModelError::Read {
                path: file.path.clone(),
                source,
            }
        })?;
        if groups.is_sorted() {
            return Ok(());
        }
        Err(ModelError::Unsupported {
            key: "GPTQ desc_act",
            value: format!("true (inputs of {} are not in order)", layer.name),
            known: vec!["false", "true with static_groups"],
        })
    }

    /// The type of scales in memory: on a GPU that of the activations, as MLX wants it.
    fn shared(&self, scales: &TensorEntry) -> Dtype {
        let stored = Dtype::from_safetensors(scales.dtype).expect("checked");
        self.on_device(stored)
    }

    fn on_device(&self, dtype: Dtype) -> Dtype {
        match self.options.device {
            DeviceType::Cpu => dtype,
            DeviceType::Gpu => self.options.dtype,
        }
    }

    fn part(&mut self, layer: Layer<'_>, kind: &str) -> Result<TensorEntry, ModelError> {
        let name = format!("{}.{kind}", layer.name);
        match self.checkpoint.tensors.remove(&name) {
            Some(entry) => Ok(entry),
            None => Err(self.checkpoint.missing(name)),
        }
    }

    fn check(
        &self,
        layer: Layer<'_>,
        kind: &str,
        entry: &TensorEntry,
        shape: &[usize],
        is_right: impl Fn(Stored) -> bool,
    ) -> Result<(), ModelError> {
        if !is_right(entry.dtype) {
            return Err(ModelError::TensorDtype {
                name: format!("{}.{kind}", layer.name),
                file: self.checkpoint.files[entry.file_index].path.clone(),
                actual: entry.dtype_name(),
            });
        }
        if entry.shape == shape {
            return Ok(());
        }
        Err(self.packing(layer, kind, entry, format!("shape {shape:?}")))
    }

    fn packing(
        &self,
        layer: Layer<'_>,
        kind: &str,
        entry: &TensorEntry,
        rule: String,
    ) -> ModelError {
        ModelError::Packing {
            name: format!("{}.{kind}", layer.name),
            file: self.checkpoint.files[entry.file_index].path.clone(),
            rule,
            actual: entry.shape.clone(),
        }
    }
}

/// What the configuration says of a layer.
#[derive(Clone, Copy)]
struct Layer<'a> {
    name: &'a str,
    rows: usize,
    inputs: usize,
}

impl Layer<'_> {
    fn source(
        self,
        held: Held,
        stored: packed::Stored,
        paired_heads: Option<usize>,
    ) -> PackedSource {
        PackedSource {
            rows: self.rows,
            inputs: self.inputs,
            held,
            stored,
            paired_heads,
        }
    }
}

fn size(dim: i32) -> usize {
    usize::try_from(dim).expect("dimensions are checked when the configuration is read")
}
