//! Which layers attend through a sliding window.

use serde_json::Value;

use super::{
    ModelArgs, ModelError,
    config::{Config, invalid},
};

/// The window of each layer in tokens, the query's own included; `None` attends to everything.
///
/// `layer_types` says which layers have the `window`; where it is absent, `is_sliding` does.
///
/// # Errors
/// [`ModelError::Config`] if there is not one type per layer, [`ModelError::Unsupported`] for a
/// type that we do not know.
pub(super) fn windows(
    config: &Config,
    args: &ModelArgs,
    window: Option<u32>,
    is_sliding: impl Fn(usize) -> bool,
) -> Result<Vec<Option<u32>>, ModelError> {
    let num_layers = args.num_layers;
    let Some(types) = config.list("layer_types")? else {
        let layers = 0..num_layers;
        return Ok(layers
            .map(|layer| window.filter(|_| is_sliding(layer)))
            .collect());
    };
    if types.len() != num_layers {
        return Err(ModelError::Config {
            key: "layer_types",
            rule: "one per layer",
            value: format!("{} for {num_layers} layers", types.len()),
        });
    }
    types
        .iter()
        .map(|kind| match (kind.as_str(), window) {
            (Some("full_attention"), _) => Ok(None),
            (Some("sliding_attention"), Some(window)) => Ok(Some(window)),
            (Some("sliding_attention"), None) => {
                Err(invalid("sliding_window", "a number of tokens", None))
            }
            _ => Err(ModelError::Unsupported {
                key: "layer_types",
                value: Value::to_string(kind),
                known: vec!["full_attention", "sliding_attention"],
            }),
        })
        .collect()
}

/// The windows of Qwen's families: of layers from `max_window_layers` on, if `use_sliding_window`.
///
/// # Errors
/// As [`windows`].
pub(super) fn upper_windows(
    config: &Config,
    args: &ModelArgs,
) -> Result<Vec<Option<u32>>, ModelError> {
    // The defaults of transformers' configurations.
    let window = match config.flag("use_sliding_window", false)? {
        true if config.is_null("sliding_window") => None,
        true => Some(sliding_window(config)?.unwrap_or(4096)),
        false => None,
    };
    let first = config.count("max_window_layers")?.unwrap_or(28) as usize;
    windows(config, args, window, |layer| layer >= first)
}

/// `sliding_window` as a number of tokens; `None` if it is absent or null.
///
/// # Errors
/// [`ModelError::Config`] if it is zero or no number.
pub(super) fn sliding_window(config: &Config) -> Result<Option<u32>, ModelError> {
    match config.count("sliding_window")? {
        Some(0) => Err(invalid(
            "sliding_window",
            "above 0",
            config.get("sliding_window"),
        )),
        window => Ok(window),
    }
}
