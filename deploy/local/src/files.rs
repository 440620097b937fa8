//! Directories and secrets with the right modes.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, ensure};

/// Creates a directory, and its parents, with `mode`; one that exists is given that mode.
///
/// # Errors
///
/// The directory cannot be created or is not ours.
pub fn directory(path: &Path, mode: u32) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
        .with_context(|| format!("cannot create the directory {}", path.display()))
}

/// Replaces a file by one with mode 0600: written beside, then renamed.
///
/// # Errors
///
/// The directory does not allow it.
pub fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let beside = path.with_added_extension("new");
    let write = || -> io::Result<()> {
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Reads a secret kept in a file, generating it first if there is none: 64 lower-case hexadecimal digits.
///
/// # Errors
///
/// The file cannot be read or written, or is empty.
pub fn secret(path: &Path) -> anyhow::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) => {
            let secret = text.trim_end().to_owned();
            ensure!(
                !secret.is_empty(),
                "{} is empty; remove it to have a new secret made",
                path.display()
            );
            Ok(secret)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut bytes = [0; 32];
            aws_lc_rs::rand::fill(&mut bytes).context("the system has no random numbers")?;
            let secret = hex::encode(bytes);
            write_private(path, &secret)?;
            Ok(secret)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_made_once_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let made = secret(&path).unwrap();
        assert_eq!(made.len(), 64);
        assert_eq!(secret(&path).unwrap(), made);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "\n").unwrap();
        assert!(secret(&path).is_err());
    }
}
