//! `metald bench checkpoint`: a folder with random weights in the shape of a well-known model.
//!
//! What such a model says is noise; what it costs is what the real one costs.

use std::borrow::Cow;
use std::fs;
use std::io::Write;
use std::path::Path;

use half::bf16;
use rayon::prelude::*;
use safetensors::{Dtype, View};
use serde::Deserialize;

use super::BenchError;
use super::flags::CheckpointFlags;

/// Shapes that are known by name: their `config.json`.
const SHAPES: [(&str, &str); 4] = [
    ("tiny", include_str!("shapes/tiny.json")),
    ("smollm2-135m", include_str!("shapes/smollm2-135m.json")),
    ("qwen3-0.6b", include_str!("shapes/qwen3-0.6b.json")),
    ("qwen3-8b", include_str!("shapes/qwen3-8b.json")),
];

/// The families whose tensors are known here.
const FAMILIES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

/// Elements that one task fills.
const CHUNK: usize = 1 << 20;

/// What the names and shapes of the tensors depend on.
#[derive(Debug, Deserialize)]
struct Dimensions {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: Option<usize>,
    #[serde(default)]
    tie_word_embeddings: bool,
}

/// A tensor that is made when it is written.
#[derive(Debug)]
struct RandomTensor {
    shape: Vec<usize>,
    seed: u64,
}

/// Writes the folder.
///
/// # Errors
/// [`BenchError::Shape`], [`BenchError::Family`], or that something cannot be read or written.
pub fn run(flags: &CheckpointFlags) -> Result<(), BenchError> {
    let config = config(&flags.shape)?;
    let dimensions: Dimensions =
        serde_json::from_str(&config).map_err(|error| BenchError::Json {
            path: flags.shape.as_str().into(),
            error,
        })?;
    let tensors = dimensions.tensors()?;
    let num_params: usize = tensors.iter().map(|(_, tensor)| tensor.len()).sum();
    let folder = &flags.folder;
    fs::create_dir_all(folder).map_err(io(folder))?;
    let path = folder.join("model.safetensors");
    safetensors::serialize_to_file(tensors, None, &path).map_err(|error| {
        let path = path.clone();
        BenchError::Safetensors { path, error }
    })?;
    // Last: a folder with a configuration is whole.
    write_config(&flags.shape, folder)?;
    writeln!(
        std::io::stdout(),
        "{}: {num_params} parameters in bfloat16",
        folder.display()
    )?;
    Ok(())
}

/// Writes the configuration of a shape, and no weights.
///
/// # Errors
/// [`BenchError::Shape`], or that something cannot be read or written.
pub fn write_config(shape: &str, folder: &Path) -> Result<(), BenchError> {
    fs::create_dir_all(folder).map_err(io(folder))?;
    let path = folder.join("config.json");
    fs::write(&path, config(shape)?).map_err(io(&path))
}

/// The configuration of a shape, by name or from a file.
fn config(shape: &str) -> Result<String, BenchError> {
    if let Some((_, config)) = SHAPES.iter().find(|(name, _)| *name == shape) {
        return Ok((*config).to_owned());
    }
    let path = Path::new(shape);
    if !path.is_file() {
        return Err(BenchError::Shape {
            name: shape.to_owned(),
            known: SHAPES.map(|(name, _)| name).join(", "),
        });
    }
    fs::read_to_string(path).map_err(io(path))
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> BenchError {
    let path = path.to_owned();
    move |error| BenchError::Io { path, error }
}

impl Dimensions {
    /// All tensors, as transformers names them.
    fn tensors(&self) -> Result<Vec<(String, RandomTensor)>, BenchError> {
        if !FAMILIES.contains(&self.model_type.as_str()) {
            return Err(BenchError::Family {
                model_type: self.model_type.clone(),
                known: FAMILIES.join(", "),
            });
        }
        let (hidden, vocab) = (self.hidden_size, self.vocab_size);
        let mut shapes = vec![
            ("model.embed_tokens.weight".to_owned(), vec![vocab, hidden]),
            ("model.norm.weight".to_owned(), vec![hidden]),
        ];
        if !self.tie_word_embeddings {
            shapes.push(("lm_head.weight".to_owned(), vec![vocab, hidden]));
        }
        for layer in 0..self.num_hidden_layers {
            for (name, shape) in self.layer() {
                shapes.push((format!("model.layers.{layer}.{name}"), shape));
            }
        }
        let tensor = |(seed, (name, shape))| (name, RandomTensor { shape, seed });
        Ok((0..).zip(shapes).map(tensor).collect())
    }

    /// The tensors of one layer.
    fn layer(&self) -> Vec<(&'static str, Vec<usize>)> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let head_dim = self.head_dim.unwrap_or(hidden / self.num_attention_heads);
        let queries = self.num_attention_heads * head_dim;
        let keys = self.num_key_value_heads * head_dim;
        let mut tensors = vec![
            ("input_layernorm.weight", vec![hidden]),
            ("post_attention_layernorm.weight", vec![hidden]),
            ("self_attn.q_proj.weight", vec![queries, hidden]),
            ("self_attn.k_proj.weight", vec![keys, hidden]),
            ("self_attn.v_proj.weight", vec![keys, hidden]),
            ("self_attn.o_proj.weight", vec![hidden, queries]),
            ("mlp.gate_proj.weight", vec![inner, hidden]),
            ("mlp.up_proj.weight", vec![inner, hidden]),
            ("mlp.down_proj.weight", vec![hidden, inner]),
        ];
        match self.model_type.as_str() {
            "qwen2" => tensors.extend([
                ("self_attn.q_proj.bias", vec![queries]),
                ("self_attn.k_proj.bias", vec![keys]),
                ("self_attn.v_proj.bias", vec![keys]),
            ]),
            "qwen3" => tensors.extend([
                ("self_attn.q_norm.weight", vec![head_dim]),
                ("self_attn.k_norm.weight", vec![head_dim]),
            ]),
            _ => {}
        }
        tensors
    }
}

impl RandomTensor {
    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Matrices are uniform with a standard deviation of 0.02, as models are initialised; vectors
    /// are ones, as norms are.
    fn values(&self) -> Vec<bf16> {
        let mut values = vec![bf16::ONE; self.len()];
        if self.shape.len() == 1 {
            return values;
        }
        let scale = 0.02 * 3.0_f32.sqrt() / f32::from(i16::MAX);
        let fill = |(index, chunk): (usize, &mut [bf16])| {
            let mut state =
                (self.seed << 32 | index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            for four in chunk.chunks_mut(4) {
                // xorshift64 (Marsaglia 2003)
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                for (value, bits) in four.iter_mut().zip(state.to_le_bytes().as_chunks().0) {
                    *value = bf16::from_f32(f32::from(i16::from_le_bytes(*bits)) * scale);
                }
            }
        };
        values.par_chunks_mut(CHUNK).enumerate().for_each(fill);
        values
    }
}

impl View for RandomTensor {
    fn dtype(&self) -> Dtype {
        Dtype::BF16
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        bytemuck::cast_slice(&self.values()).to_vec().into()
    }

    fn data_len(&self) -> usize {
        self.len() * size_of::<bf16>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{self, Dtype as Held, LoadOptions};
    use mlx_rs::DeviceType;

    /// A configuration of each family, small.
    fn small(model_type: &str, architecture: &str) -> String {
        format!(
            r#"{{"model_type": "{model_type}", "architectures": ["{architecture}"],
                "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "head_dim": 8,
                "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                "max_position_embeddings": 128, "rms_norm_eps": 1e-6}}"#
        )
    }

    #[test]
    fn what_is_written_can_be_loaded() {
        let families = [
            ("llama", "LlamaForCausalLM"),
            ("mistral", "MistralForCausalLM"),
            ("qwen2", "Qwen2ForCausalLM"),
            ("qwen3", "Qwen3ForCausalLM"),
        ];
        for (model_type, architecture) in families {
            let folder = tempfile::tempdir().expect("a folder");
            let source = folder.path().join("shape.json");
            fs::write(&source, small(model_type, architecture)).expect("it can be written");
            let flags = CheckpointFlags {
                shape: source.display().to_string(),
                folder: folder.path().join("model"),
            };
            run(&flags).expect("it is written");
            let options = LoadOptions {
                dtype: Held::Bfloat16,
                rope_len: None,
                device: DeviceType::Cpu,
                free_bytes: 1 << 30,
                progress: &mut |_, _| {},
            };
            let model = models::load(&flags.folder, options).expect(model_type);
            assert_eq!(model.vocab_size(), 64);
        }
    }

    #[test]
    fn named_shapes_have_the_size_of_their_name() {
        let millions = |name: &str| {
            let config = config(name).expect("it is known");
            let dimensions: Dimensions = serde_json::from_str(&config).expect("it is a shape");
            let tensors = dimensions.tensors().expect("the family is known");
            tensors
                .iter()
                .map(|(_, tensor)| tensor.len())
                .sum::<usize>()
                / 1_000_000
        };
        assert_eq!(millions("smollm2-135m"), 134);
        assert_eq!(millions("qwen3-0.6b"), 596);
        assert_eq!(millions("qwen3-8b"), 8190);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert!(matches!(config("gpt-5"), Err(BenchError::Shape { .. })));
        let dimensions: Result<Dimensions, _> = serde_json::from_str(&small("mamba", "Mamba"));
        let tensors = dimensions.expect("it is a shape").tensors();
        assert!(matches!(tensors, Err(BenchError::Family { .. })));
    }

    #[test]
    fn weights_vary_and_are_small() {
        let tensor = RandomTensor {
            shape: vec![3, 5],
            seed: 1,
        };
        let values: Vec<f32> = tensor.values().iter().map(|value| value.to_f32()).collect();
        assert!(values.iter().all(|value| value.abs() < 0.04));
        assert!(values.iter().any(|value| *value > 0.0));
        assert!(values.iter().any(|value| *value < 0.0));
        assert_eq!(tensor.data().len(), tensor.data_len());
    }
}
