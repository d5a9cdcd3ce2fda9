//! Running other programs.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Runs `command` to its end and returns its standard output.
///
/// # Errors
/// The program cannot be started, or fails; the error then carries all that it said.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot start {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed ({})\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}
