//! Which folders models may be read from.
//!
//! A frontend names a path and the daemon reads it with its own rights. Whoever may talk to the
//! daemon but not read the disk must not learn from it what lies there.

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::ModelError;

/// The folders below which models may lie, without links.
#[derive(Clone, Debug)]
pub struct ModelRoots(Vec<PathBuf>);

impl ModelRoots {
    /// Everything that this user may read. A frontend that reaches a private Unix socket runs as
    /// the same user and reads all this by itself.
    #[must_use]
    pub fn everything() -> Self {
        Self(vec![PathBuf::from("/")])
    }

    /// These folders.
    ///
    /// # Errors
    /// [`ModelError::Read`] if one of them is not there.
    pub fn new(folders: &[PathBuf]) -> Result<Self, ModelError> {
        let canonical = folders.iter().map(|folder| {
            folder.canonicalize().map_err(|source| ModelError::Read {
                path: folder.clone(),
                source,
            })
        });
        canonical.collect::<Result<_, _>>().map(Self)
    }

    /// Follows all links of a model's path and of the files in it.
    ///
    /// # Errors
    /// [`ModelError::OutsideRoots`] if one of them leads out of the roots; [`ModelError::Read`] if
    /// there is nothing.
    pub fn admit(&self, path: &Path) -> Result<PathBuf, ModelError> {
        let folder = path.canonicalize().map_err(|source| {
            // Whether something exists outside of the roots is not told.
            if self.holds(path) {
                ModelError::Read {
                    path: path.to_owned(),
                    source,
                }
            } else {
                self.outside(path)
            }
        })?;
        if !self.holds(&folder) {
            return Err(self.outside(path));
        }
        for file in links_in(&folder) {
            // A link to nowhere is found missing when it is needed.
            if file.canonicalize().is_ok_and(|target| !self.holds(&target)) {
                return Err(self.outside(&file));
            }
        }
        Ok(folder)
    }

    fn holds(&self, path: &Path) -> bool {
        let is_plain = !path.components().any(|part| part == Component::ParentDir);
        is_plain && self.0.iter().any(|root| path.starts_with(root))
    }

    fn outside(&self, path: &Path) -> ModelError {
        ModelError::OutsideRoots {
            path: path.to_owned(),
            roots: self.0.clone(),
        }
    }
}

/// The links in a folder; none if it is a file.
fn links_in(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()))
        .map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_before_the_roots_are_asked() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| directory.path().join(name);
        for folder in ["allowed/model", "allowed/cache", "secret"] {
            fs::create_dir_all(at(folder)).expect("it is new");
        }
        for file in ["allowed/cache/blob", "secret/key", "allowed/file.gguf"] {
            fs::write(at(file), "x").expect("it is new");
        }
        let link = |target: &str, name: &str| symlink(at(target), at(name)).expect("it is new");
        link("allowed/cache/blob", "allowed/model/weights");
        link("secret", "allowed/way-out");
        link("allowed/model", "way-in");
        let roots = ModelRoots::new(&[at("allowed")]).expect("it is there");
        let admitted = |name: &str| roots.admit(&at(name));
        let is_outside = |name| matches!(admitted(name), Err(ModelError::OutsideRoots { .. }));

        for name in [
            "allowed/model",
            "allowed/file.gguf",
            "way-in",
            "secret/../allowed/model",
        ] {
            assert!(admitted(name).is_ok(), "{name}");
        }
        for name in [
            "secret",
            "secret/missing",
            "allowed/way-out",
            "allowed/../secret",
            "allowed/../x",
        ] {
            assert!(is_outside(name), "{name}");
        }
        assert!(matches!(
            admitted("allowed/missing"),
            Err(ModelError::Read { .. })
        ));
        assert!(ModelRoots::everything().admit(&at("secret")).is_ok());

        link("secret/key", "allowed/model/config.json");
        assert!(is_outside("allowed/model"), "a file of it leads out");
        assert!(ModelRoots::new(&[at("missing")]).is_err());
    }
}
