//! Blocks of 256 weights: scales of 16 or 32 weights are integers that share a float.

use super::{
    GROUP, Group,
    blocks::{float, group},
};

/// Scale and minimum of eight groups, six bits each, in twelve bytes.
fn scale_and_minimum(bytes: &[u8], index: usize) -> (f32, f32) {
    let (scale, minimum) = if index < 4 {
        (bytes[index] & 63, bytes[index + 4] & 63)
    } else {
        (
            (bytes[index + 4] & 15) | (bytes[index - 4] >> 6) << 4,
            (bytes[index + 4] >> 4) | (bytes[index] >> 6) << 4,
        )
    };
    (f32::from(scale), f32::from(minimum))
}

/// `d`, `dmin` f16, scales and minima, codes: 32 bytes hold the low halves of one group and the
/// high halves of the next.
pub(super) fn q4(block: &[u8], groups: &mut [Group]) {
    linear(block, &block[16..], groups, |_, _| 0);
}

/// As [`q4`], with 32 bytes of fifth bits before the codes: bit `g` is of group `g`.
pub(super) fn q5(block: &[u8], groups: &mut [Group]) {
    let high = &block[16..48];
    linear(block, &block[48..], groups, |index, i| {
        (high[i] >> index & 1) << 4
    });
}

fn linear(block: &[u8], codes: &[u8], groups: &mut [Group], high: impl Fn(usize, usize) -> u8) {
    let (d, dmin) = (float(block, 0), float(block, 2));
    for (index, to) in groups.iter_mut().enumerate() {
        let (scale, minimum) = scale_and_minimum(&block[4..16], index);
        let codes = &codes[index / 2 * GROUP..];
        let integers = std::array::from_fn(|i| codes[i] >> (4 * (index % 2)) & 15 | high(index, i));
        *to = group(d * scale, -dmin * minimum, integers);
    }
}

/// Two bits; scales and minima of 16 weights in the halves of a byte; `d`, `dmin` at the end.
pub(super) fn q2(block: &[u8], groups: &mut [Group]) {
    let (d, dmin) = (float(block, 80), float(block, 82));
    let weights: [f32; 256] = std::array::from_fn(|i| {
        let (half, within) = (i / 128, i % 128);
        let code = block[16 + half * 32 + within % 32] >> (2 * (within / 32)) & 3;
        let shared = block[i / 16];
        d * f32::from(shared & 15) * f32::from(code) - dmin * f32::from(shared >> 4)
    });
    for (to, weights) in groups.iter_mut().zip(weights.chunks_exact(GROUP)) {
        *to = Group::rounded(weights);
    }
}

/// Two bits and a mask of third bits (set: 0, clear: -4); scales of 16 weights in six bits.
///
/// All weights are multiples of `d` by -124 to 128, so that groups are held exactly.
pub(super) fn q3(block: &[u8], groups: &mut [Group]) {
    let (mask, codes, scales, d) = (
        &block[..32],
        &block[32..96],
        &block[96..108],
        float(block, 108),
    );
    let weights: [f32; 256] = std::array::from_fn(|i| {
        let (half, within) = (i / 128, i % 128);
        let low = codes[half * 32 + within % 32] >> (2 * (within / 32)) & 3;
        let is_high = mask[within % 32] >> (4 * half + within / 32) & 1 == 1;
        let code = f32::from(low) - if is_high { 0.0 } else { 4.0 };
        let index = i / 16;
        let low = scales[index % 8] >> (4 * (index / 8)) & 15;
        let scale = low | (scales[8 + index % 4] >> (2 * (index / 4)) & 3) << 4;
        d * (f32::from(scale) - 32.0) * code
    });
    for (to, weights) in groups.iter_mut().zip(weights.chunks_exact(GROUP)) {
        *to = Group::rounded_by(weights, d);
    }
}

/// Four low bits, two high bits, signed scales of 16 weights, `d`.
///
/// Of the two scales that meet in a group, the larger may be met exactly.
pub(super) fn q6(block: &[u8], groups: &mut [Group]) {
    let (low, high, d) = (&block[..128], &block[128..192], float(block, 208));
    let scales: [f32; 16] = std::array::from_fn(|i| d * f32::from(block[192 + i].cast_signed()));
    let weights: [f32; 256] = std::array::from_fn(|i| {
        let (half, within) = (i / 128, i % 128);
        let low = low[half * 64 + within % 64] >> (4 * (within / 64)) & 15;
        let high = high[half * 32 + within % 32] >> (2 * (within / 32)) & 3;
        scales[i / 16] * (f32::from(low | high << 4) - 32.0)
    });
    let parts = weights.chunks_exact(GROUP).zip(scales.chunks_exact(2));
    for (to, (weights, scales)) in groups.iter_mut().zip(parts) {
        *to = Group::rounded_by(weights, scales[0].abs().max(scales[1].abs()));
    }
}
