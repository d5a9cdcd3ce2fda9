//! What `config.json` says of quantised weights.
//!
//! Which tensors are quantised, and with how many bits in groups of which size, shows in the tensors
//! themselves: layers may differ, and some are left alone. The configuration names the method, and
//! what the tensors cannot tell.

use serde_json::Value;

use super::{Config, ModelError};

/// How a checkpoint's weights are quantised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quantization {
    /// Not by its configuration. A GGUF file says it by itself.
    #[default]
    None,
    /// mlx-lm's: affine, or `mxfp4`.
    Mlx,
    /// AWQ with eight outputs in a word.
    Awq,
    /// GPTQ.
    Gptq {
        /// What is added to a stored zero point: 1, but 0 in the second version of the format.
        zero_offset: u32,
    },
    /// Experts in OCP's MXFP4, as gpt-oss is published.
    Mxfp4,
}

/// Methods that we know.
const KNOWN: [&str; 5] = ["affine (MLX)", "mxfp4 (MLX)", "mxfp4", "awq", "gptq"];

impl Quantization {
    /// Reads `quantization_config`, which all others write, or `quantization`, which mlx-lm does.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] names the method and what is known.
    pub fn from_config(config: &Config) -> Result<Self, ModelError> {
        let Some(values) = config
            .get("quantization_config")
            .or(config.get("quantization"))
        else {
            return Ok(Self::None);
        };
        match values.get("quant_method").and_then(Value::as_str) {
            // mlx-lm writes no method, or its own name.
            None | Some("mlx") => mlx(values),
            Some("awq") => awq(values),
            Some("gptq") => gptq(values),
            Some("mxfp4") => Ok(Self::Mxfp4),
            Some(other) => Err(unsupported("quant_method", other.to_owned(), &KNOWN)),
        }
    }
}

fn unsupported(key: &'static str, value: String, known: &[&'static str]) -> ModelError {
    ModelError::Unsupported {
        key,
        value,
        known: known.to_vec(),
    }
}

fn mlx(values: &Value) -> Result<Quantization, ModelError> {
    if values.get("bits").is_none() || values.get("group_size").is_none() {
        return Err(unsupported("quantization", values.to_string(), &KNOWN));
    }
    match values.get("mode").and_then(Value::as_str) {
        None | Some("affine" | "mxfp4") => Ok(Quantization::Mlx),
        Some(other) => Err(unsupported(
            "quantization mode",
            other.to_owned(),
            &["affine", "mxfp4"],
        )),
    }
}

fn awq(values: &Value) -> Result<Quantization, ModelError> {
    // transformers and AutoAWQ differ in names.
    let bits = values.get("bits").or(values.get("w_bit"));
    if bits.and_then(Value::as_u64) != Some(4) {
        let bits = bits.map_or("absent".to_owned(), Value::to_string);
        return Err(unsupported("AWQ bits", bits, &["4"]));
    }
    let version = values.get("version").and_then(Value::as_str);
    match version.map(str::to_lowercase).as_deref() {
        None | Some("gemm") => Ok(Quantization::Awq),
        Some(other) => Err(unsupported("AWQ version", other.to_owned(), &["gemm"])),
    }
}

fn gptq(values: &Value) -> Result<Quantization, ModelError> {
    let bits = values.get("bits").and_then(Value::as_u64);
    if !bits.is_some_and(|bits| [2, 4, 8].contains(&bits)) {
        let bits = values
            .get("bits")
            .map_or("absent".to_owned(), Value::to_string);
        return Err(unsupported("GPTQ bits", bits, &["2", "4", "8"]));
    }
    match values.get("checkpoint_format").and_then(Value::as_str) {
        None | Some("gptq") => Ok(Quantization::Gptq { zero_offset: 1 }),
        Some("gptq_v2") => Ok(Quantization::Gptq { zero_offset: 0 }),
        Some(other) => Err(unsupported(
            "GPTQ checkpoint_format",
            other.to_owned(),
            &["gptq", "gptq_v2"],
        )),
    }
}
