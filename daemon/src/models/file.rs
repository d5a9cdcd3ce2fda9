//! Small files of a model's folder.

use std::{fs::File, io::Read, path::Path};

use super::ModelError;

/// The whole of a file that has at most `limit_bytes`.
///
/// # Errors
/// [`ModelError::Read`], or [`ModelError::TooLarge`].
pub(super) fn read_limited(path: &Path, limit_bytes: u64) -> Result<Vec<u8>, ModelError> {
    let failed = |source| ModelError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let size_bytes = file.metadata().map_err(failed)?.len();
    let mut bytes = Vec::new();
    // One byte more, so that a file that grows meanwhile is noticed too.
    file.take(limit_bytes + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > limit_bytes {
        return Err(ModelError::TooLarge {
            path: path.to_owned(),
            size_bytes,
            limit_bytes,
        });
    }
    Ok(bytes)
}
