//! Routers that every backend must get right.

use super::route_reference::Rule;

/// `(number of experts, with a correction, rule)`, after the families that route so.
pub(crate) fn cases() -> Vec<(usize, bool, Rule)> {
    let softmax = Rule {
        k: 2,
        sigmoid: false,
        groups: None,
        normalize: true,
        scale: 1.0,
    };
    vec![
        // Mixtral.
        (8, false, softmax),
        // Qwen3-MoE, gpt-oss; OLMoE without normalization.
        (128, false, Rule { k: 8, ..softmax }),
        (
            64,
            false,
            Rule {
                k: 8,
                normalize: false,
                ..softmax
            },
        ),
        // DeepSeek-V2: groups by their best.
        (
            160,
            false,
            Rule {
                k: 6,
                groups: Some((8, 3, 1)),
                normalize: false,
                scale: 16.0,
                ..softmax
            },
        ),
        // DeepSeek-V3: groups by their best two.
        (
            256,
            true,
            Rule {
                k: 8,
                sigmoid: true,
                groups: Some((8, 4, 2)),
                scale: 2.5,
                ..softmax
            },
        ),
        // One expert, all experts, a single one that there is.
        (5, true, Rule { k: 1, ..softmax }),
        (5, false, Rule { k: 5, ..softmax }),
        (
            1,
            false,
            Rule {
                k: 1,
                sigmoid: true,
                normalize: false,
                ..softmax
            },
        ),
    ]
}
