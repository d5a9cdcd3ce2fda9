//! What `sanitize` functions of several families do with the names of tensors.

use super::checkpoint::Checkpoint;

/// Renames every tensor whose name contains the left side of a pair: that becomes the right side.
pub(super) fn rename(checkpoint: &mut Checkpoint, pairs: &[(&str, &str)]) {
    let tensors = std::mem::take(&mut checkpoint.tensors);
    let renamed = |name: String| {
        pairs
            .iter()
            .fold(name, |name, (from, to)| name.replace(from, to))
    };
    checkpoint.tensors = tensors
        .into_iter()
        .map(|(name, entry)| (renamed(name), entry))
        .collect();
}

/// Replaces each tensor whose name contains `stack`, which holds those of all experts, by theirs:
/// `{..}{stack}{kind}` by `{..}.experts.{expert}.{kind}`. Nothing is copied.
pub(super) fn unstack(checkpoint: &mut Checkpoint, stack: &str) {
    let tensors = std::mem::take(&mut checkpoint.tensors);
    for (name, entry) in tensors {
        let Some((layer, kind)) = name.split_once(stack) else {
            checkpoint.tensors.insert(name, entry);
            continue;
        };
        let (num_experts, shape) = match *entry.shape.as_slice() {
            [num_experts, ref shape @ ..] if num_experts > 0 => (num_experts, shape),
            // Not a stack: a missing or unused tensor will be reported.
            _ => continue,
        };
        let size_bytes = entry.size_bytes / num_experts as u64;
        for expert in 0..num_experts {
            let mut part = entry.clone();
            part.shape = shape.to_vec();
            part.offset_bytes += expert as u64 * size_bytes;
            part.size_bytes = size_bytes;
            let name = format!("{layer}.experts.{expert}.{kind}");
            checkpoint.tensors.insert(name, part);
        }
    }
}
