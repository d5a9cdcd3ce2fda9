//! Blocks of 32 weights, and the 4-bit tables.

use half::f16;

use super::{BlockType, GROUP, Group, k_quants};

/// The values that the codes of `IQ4_NL` and `IQ4_XS` stand for.
const NON_LINEAR: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

impl BlockType {
    /// Writes the groups of one block.
    pub(super) fn decode(self, block: &[u8], groups: &mut [Group]) {
        match self {
            Self::Q4_0 => {
                let scale = float(block, 0);
                groups[0] = group(scale, -8.0 * scale, nibbles(&block[2..]));
            }
            Self::Q4_1 => {
                groups[0] = group(float(block, 0), float(block, 2), nibbles(&block[4..]));
            }
            Self::Q5_0 => {
                let scale = float(block, 0);
                let integers = with_fifth_bits(nibbles(&block[6..]), &block[2..6]);
                groups[0] = group(scale, -16.0 * scale, integers);
            }
            Self::Q5_1 => {
                let integers = with_fifth_bits(nibbles(&block[8..]), &block[4..8]);
                groups[0] = group(float(block, 0), float(block, 2), integers);
            }
            Self::Q8_0 => {
                let scale = float(block, 0);
                // From -128 .. 127 to 0 .. 255.
                let integers = std::array::from_fn(|i| block[2 + i] ^ 0x80);
                groups[0] = group(scale, -128.0 * scale, integers);
            }
            Self::Iq4Nl => groups[0] = non_linear(float(block, 0), &block[2..]),
            Self::Iq4Xs => non_linear_by_eight(block, groups),
            Self::Q4K => k_quants::q4(block, groups),
            Self::Q5K => k_quants::q5(block, groups),
            Self::Q2K => k_quants::q2(block, groups),
            Self::Q3K => k_quants::q3(block, groups),
            Self::Q6K => k_quants::q6(block, groups),
            Self::Mxfp4 => unreachable!("it has no integers"),
        }
    }
}

pub(super) fn float(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Sixteen bytes as 32 codes: first the low halves, then the high ones.
pub(super) fn nibbles(bytes: &[u8]) -> [u8; GROUP] {
    std::array::from_fn(|i| bytes[i % 16] >> (4 * (i / 16)) & 15)
}

pub(super) fn group(scale: f32, bias: f32, integers: [u8; GROUP]) -> Group {
    Group {
        scale,
        bias,
        integers,
    }
}

fn with_fifth_bits(low: [u8; GROUP], high: &[u8]) -> [u8; GROUP] {
    std::array::from_fn(|i| low[i] | (high[i / 8] >> (i % 8) & 1) << 4)
}

fn non_linear(scale: f32, codes: &[u8]) -> Group {
    let value = |code: u8| NON_LINEAR[usize::from(code)].cast_unsigned() ^ 0x80;
    group(scale, -128.0 * scale, nibbles(codes).map(value))
}

/// `d` f16, two high bits of each scale, four low bits, codes.
fn non_linear_by_eight(block: &[u8], groups: &mut [Group]) {
    let high = u16::from_le_bytes([block[2], block[3]]);
    for (index, to) in groups.iter_mut().enumerate() {
        let low = block[4 + index / 2] >> (4 * (index % 2)) & 15;
        let scale = u16::from(low) | (high >> (2 * index) & 3) << 4;
        let scale = float(block, 0) * (f32::from(scale) - 32.0);
        *to = non_linear(scale, &block[8 + 16 * index..]);
    }
}
