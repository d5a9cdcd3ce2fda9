//! Python wheels as a source of prebuilt libraries.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::command::run;

/// Downloads the wheel that `requirement` names (`NAME==VERSION`) with pip and unpacks it into `into`.
///
/// # Errors
/// `python3 -m pip` is missing, or has no such wheel for Linux on x86-64.
pub fn unpack(requirement: &str, into: &Path) -> Result<()> {
    eprintln!("  downloading {requirement}");
    let download = into.join("download");
    run(Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--no-deps"])
        .arg("--only-binary=:all:")
        .args([
            "--platform=manylinux_2_35_x86_64",
            "--platform=manylinux2010_x86_64",
        ])
        .arg("--dest")
        .arg(&download)
        .arg(requirement))
    .with_context(|| format!("cannot download {requirement}"))?;
    for wheel in fs::read_dir(&download)? {
        run(Command::new("python3")
            .args(["-m", "zipfile", "--extract"])
            .arg(wheel?.path())
            .arg(into))?;
    }
    fs::remove_dir_all(&download)?;
    Ok(())
}
