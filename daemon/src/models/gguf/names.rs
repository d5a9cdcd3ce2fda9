//! How llama.cpp's names of tensors become the ones that families know, and what it has done to the
//! tensors.
//!
//! # Source
//! llama.cpp `gguf-py/gguf/constants.py` (names), `convert_hf_to_gguf.py` (what is done to them).

/// What llama.cpp calls an architecture, and how its tensors differ from a checkpoint's.
#[derive(Debug)]
pub(super) struct Architecture {
    /// `general.architecture`.
    pub(super) name: &'static str,
    /// Names of a block's tensors that are not those of [`BLOCK`].
    block: &'static [(&'static str, &'static str)],
    /// Names outside of blocks that are not those of [`MODEL`].
    model: &'static [(&'static str, &'static str)],
    /// Rows of queries and keys are in interleaved pairs.
    pub(super) is_paired: bool,
    /// Norms hold what they multiply with, where checkpoints have that less one.
    pub(super) is_one_more: bool,
}

const PLAIN: Architecture = Architecture {
    name: "",
    block: &[],
    model: &[],
    is_paired: false,
    is_one_more: false,
};

const GEMMA_BLOCK: &[(&str, &str)] = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// All that we read.
pub(super) const ARCHITECTURES: &[Architecture] = &[
    // Mistral and Mixtral call themselves so too.
    Architecture {
        name: "llama",
        is_paired: true,
        ..PLAIN
    },
    Architecture {
        name: "qwen2",
        ..PLAIN
    },
    Architecture {
        name: "qwen2moe",
        ..PLAIN
    },
    Architecture {
        name: "qwen3",
        ..PLAIN
    },
    Architecture {
        name: "qwen3moe",
        ..PLAIN
    },
    Architecture {
        name: "phi2",
        block: &[
            ("attn_output", "self_attn.dense"),
            ("ffn_up", "mlp.fc1"),
            ("ffn_down", "mlp.fc2"),
        ],
        model: &[("output_norm", "model.final_layernorm")],
        ..PLAIN
    },
    Architecture {
        name: "phi3",
        block: &[("ffn_up", "mlp.gate_up_proj")],
        ..PLAIN
    },
    Architecture {
        name: "gemma2",
        block: GEMMA_BLOCK,
        is_one_more: true,
        ..PLAIN
    },
    Architecture {
        name: "gemma3",
        block: GEMMA_BLOCK,
        is_one_more: true,
        ..PLAIN
    },
    Architecture {
        name: "gpt-oss",
        block: &[
            ("post_attention_norm", "post_attention_layernorm"),
            ("attn_sinks", "self_attn.sinks"),
        ],
        ..PLAIN
    },
    Architecture {
        name: "smollm3",
        is_paired: true,
        ..PLAIN
    },
    Architecture {
        name: "granite",
        is_paired: true,
        ..PLAIN
    },
    Architecture {
        name: "olmo2",
        block: &[
            ("post_attention_norm", "post_attention_layernorm"),
            ("post_ffw_norm", "post_feedforward_layernorm"),
        ],
        ..PLAIN
    },
];

/// Names outside of blocks.
const MODEL: &[(&str, &str)] = &[
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
];

/// Names inside `blk.N.`, which become names inside `model.layers.N.`.
const BLOCK: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_gate_inp", "mlp.gate"),
    // Stacks of all experts, as mlx-lm calls them.
    ("ffn_gate_exps", "mlp.switch_mlp.gate_proj"),
    ("ffn_up_exps", "mlp.switch_mlp.up_proj"),
    ("ffn_down_exps", "mlp.switch_mlp.down_proj"),
    ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
    ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
    ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
];

/// Factors of the rope's frequencies, which the configuration has.
const UNUSED: &[&str] = &[
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
];

impl Architecture {
    /// The architecture that llama.cpp calls so.
    pub(super) fn find(name: &str) -> Option<&'static Self> {
        ARCHITECTURES.iter().find(|known| known.name == name)
    }

    /// A tensor's name in a checkpoint; `None` if it is of no use. One that is not known stays as it
    /// is, and will be reported.
    pub(super) fn rename(&self, name: &str) -> Option<String> {
        if UNUSED.contains(&name) {
            return None;
        }
        let Some((stem, kind)) = name.rsplit_once('.') else {
            return Some(name.to_owned());
        };
        let (prefix, stem, tables) = match stem
            .strip_prefix("blk.")
            .and_then(|rest| rest.split_once('.'))
        {
            Some((layer, stem)) => (format!("model.layers.{layer}."), stem, [self.block, BLOCK]),
            None => (String::new(), stem, [self.model, MODEL]),
        };
        let found = tables.into_iter().flatten().find(|(from, _)| *from == stem);
        Some(found.map_or_else(|| name.to_owned(), |(_, to)| format!("{prefix}{to}.{kind}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_have_the_names_of_checkpoints() {
        let cases = [
            ("llama", "token_embd.weight", "model.embed_tokens.weight"),
            ("llama", "output.weight", "lm_head.weight"),
            (
                "llama",
                "blk.17.attn_q.bias",
                "model.layers.17.self_attn.q_proj.bias",
            ),
            (
                "gemma3",
                "blk.0.ffn_norm.weight",
                "model.layers.0.pre_feedforward_layernorm.weight",
            ),
            ("phi2", "output_norm.bias", "model.final_layernorm.bias"),
            (
                "phi3",
                "blk.3.ffn_up.weight",
                "model.layers.3.mlp.gate_up_proj.weight",
            ),
            (
                "qwen3moe",
                "blk.3.ffn_up_exps.weight",
                "model.layers.3.mlp.switch_mlp.up_proj.weight",
            ),
            (
                "gpt-oss",
                "blk.3.attn_sinks.weight",
                "model.layers.3.self_attn.sinks.weight",
            ),
            // Reported later as what nothing uses.
            ("llama", "blk.0.nonsense.weight", "blk.0.nonsense.weight"),
            ("llama", "v", "v"),
        ];
        for (architecture, from, to) in cases {
            let architecture = Architecture::find(architecture).expect("known");
            assert_eq!(architecture.rename(from).as_deref(), Some(to));
        }
        let llama = Architecture::find("llama").expect("known");
        assert_eq!(llama.rename("rope_freqs.weight"), None);
        assert!(Architecture::find("bert").is_none());
    }
}
