//! Directories and secrets with the right modes, safe from other users of the machine.

use std::io;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use certctl_runtime::private::PrivateDir;

/// Longer than any file of ours that is read whole.
const MOST: u64 = 1 << 20;

/// Opens a directory of this user, which is created with its parents if it is absent, and gives it `mode`.
///
/// # Errors
///
/// The directory cannot be created, or another user owns it or could replace what is in it.
pub fn directory(path: &Path, mode: u32) -> anyhow::Result<PrivateDir> {
    let open = || -> io::Result<PrivateDir> {
        let directory = PrivateDir::open(path, mode)?;
        directory.set_mode(mode)?;
        Ok(directory)
    };
    open().with_context(|| format!("cannot use the directory {}", path.display()))
}

/// The private directory and the name of a file.
fn place(path: &Path) -> anyhow::Result<(PrivateDir, &str)> {
    let name = path.file_name().and_then(|name| name.to_str());
    let (Some(parent), Some(name)) = (path.parent(), name) else {
        bail!("{} names no file", path.display());
    };
    let directory = PrivateDir::existing(parent)?.with_context(|| format!("there is no {}", parent.display()))?;
    Ok((directory, name))
}

/// Replaces a file by one with mode 0600.
///
/// # Errors
///
/// The directory is not private, or does not allow it.
pub fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    write(path, 0o600, text)
}

/// Replaces a file in a private directory.
///
/// # Errors
///
/// As [`write_private`].
pub fn write(path: &Path, mode: u32, text: &str) -> anyhow::Result<()> {
    let write = || -> anyhow::Result<()> {
        let (directory, name) = place(path)?;
        Ok(directory.write(name, mode, text.as_bytes())?)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Reads a text in a private directory; `None` if there is none.
///
/// # Errors
///
/// The file or its directory could be another user's, or cannot be read.
pub fn read(path: &Path) -> anyhow::Result<Option<String>> {
    let Some(parent) = path.parent().filter(|parent| parent.exists()) else {
        return Ok(None);
    };
    let read = || -> anyhow::Result<Option<String>> {
        let (directory, name) = place(path)?;
        Ok(directory.read_text(name, MOST)?)
    };
    read().with_context(|| format!("cannot read {} in {}", path.display(), parent.display()))
}

/// Reads a secret kept in a file, generating it first if there is none: 64 lower-case hexadecimal digits.
///
/// # Errors
///
/// The file cannot be read or written, is empty, or could be another user's.
pub fn secret(path: &Path) -> anyhow::Result<String> {
    if let Some(text) = read(path)? {
        let secret = text.trim_end().to_owned();
        ensure!(
            !secret.is_empty(),
            "{} is empty; remove it to have a new secret made",
            path.display()
        );
        return Ok(secret);
    }
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes).context("the system has no random numbers")?;
    let secret = hex::encode(bytes);
    write_private(path, &secret)?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

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
