//! Mistral 7B from version 0.2 on, and Nemo: Llama's blocks under another name.
//!
//! Version 0.1 attends through a sliding window, which is refused.
//!
//! # Source
//! transformers 5.20 `models/mistral/modeling_mistral.py`, which is generated from Llama's.

use std::path::Path;

use super::{Config, Family, LoadOptions, Model, ModelError, llama};

/// How the registry knows this family.
pub const FAMILY: Family = Family {
    model_type: "mistral",
    architectures: &["MistralForCausalLM"],
    load,
};

fn load(
    config: &Config,
    folder: &Path,
    options: LoadOptions<'_>,
) -> Result<Box<dyn Model>, ModelError> {
    // An absent window is one of 4096: the default of transformers' `MistralConfig`.
    if !config.is_null("sliding_window") {
        return Err(ModelError::Unsupported {
            key: "sliding_window",
            value: config
                .get("sliding_window")
                .map_or("4096".to_owned(), ToString::to_string),
            known: vec!["null"],
        });
    }
    llama::load(config, folder, options)
}
