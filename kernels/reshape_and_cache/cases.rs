//! Values and slots that every backend must write alike.

use half::{bf16, f16};

/// `(num_blocks, block_size, num_kv_heads, head_dim, num_tokens)`; the last is large enough to be
/// shared by threads.
pub(crate) const SHAPES: [(usize, usize, usize, usize, usize); 4] = [
    (4, 16, 3, 64, 5),
    (7, 8, 1, 80, 20),
    (3, 32, 2, 7, 1),
    (40, 16, 4, 128, 300),
];

/// Values between two neighbours, too large, tiny and special, for both half types.
pub(crate) fn hard_values() -> Vec<f32> {
    let mut values = vec![
        0.0,
        -0.0,
        65504.0,
        65520.0,
        65519.0,
        1e-8,
        6e-8,
        3.4e38,
        f32::INFINITY,
        f32::NEG_INFINITY,
    ];
    for bits in [
        0x3f80_8000,
        0x3f81_8000,
        0x3f80_7fff,
        0x3f80_8001,
        0x3f80_1000,
        0x3f80_3000,
    ] {
        values.push(f32::from_bits(bits));
        values.push(-f32::from_bits(bits));
    }
    values.push(bf16::MIN_POSITIVE_SUBNORMAL.to_f32());
    values.push(f16::MIN_POSITIVE_SUBNORMAL.to_f32());
    values
}
