//! The file with the token of a TCP endpoint.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use metal_rpc_protocol::auth::Token;
use metal_rpc_protocol::limits::MAX_TOKEN_BYTES;
use nix::unistd::geteuid;

use super::EndpointError;

/// Reads a token; white space around it does not belong to it.
///
/// # Errors
/// [`EndpointError::OpenToken`], [`EndpointError::Token`], [`EndpointError::Io`].
pub(super) fn read(path: &Path) -> Result<Token, EndpointError> {
    let io = |error| EndpointError::Io {
        path: path.to_owned(),
        error,
    };
    let file = File::open(path).map_err(io)?;
    // Of the open file, so that nobody can put another in its place meanwhile.
    let metadata = file.metadata().map_err(io)?;
    let is_private =
        metadata.is_file() && metadata.uid() == geteuid().as_raw() && metadata.mode() & 0o077 == 0;
    if !is_private {
        return Err(EndpointError::OpenToken {
            path: path.to_owned(),
        });
    }
    let mut secret = Vec::new();
    // One more than a token has, and some white space: longer ones are noticed, not cut.
    let limit = MAX_TOKEN_BYTES as u64 + 16;
    file.take(limit).read_to_end(&mut secret).map_err(io)?;
    Token::new(secret.trim_ascii()).map_err(|error| EndpointError::Token {
        path: path.to_owned(),
        error,
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn token_in(content: &[u8], mode: u32) -> Result<Token, EndpointError> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("token");
        fs::write(&path, content).expect("it is new");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("it is ours");
        read(&path)
    }

    #[test]
    fn a_private_file_with_a_secret_is_a_token() {
        let secret = [b'x'; 64];
        for mode in [0o600, 0o400] {
            token_in(&[&secret[..], b"\n"].concat(), mode).expect("it is private");
        }
        for mode in [0o640, 0o604, 0o620, 0o601] {
            let refused = token_in(&secret, mode);
            assert!(
                matches!(refused, Err(EndpointError::OpenToken { .. })),
                "{mode:o}"
            );
        }
        for content in [
            &b""[..],
            b"short",
            &[b' '; 64],
            &[b'x'; MAX_TOKEN_BYTES + 1],
        ] {
            let refused = token_in(content, 0o600);
            assert!(
                matches!(refused, Err(EndpointError::Token { .. })),
                "{refused:?}"
            );
        }
        let missing = read(Path::new("/nowhere/token"));
        assert!(matches!(missing, Err(EndpointError::Io { .. })));
        let folder = read(Path::new("/"));
        assert!(matches!(folder, Err(EndpointError::OpenToken { .. })));
    }
}
