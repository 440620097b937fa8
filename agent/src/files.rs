//! The private directories of the agent, and names for new files.

use std::io;
use std::path::Path;

use certctl_runtime::private::PrivateDir;

/// Opens a directory that only this user can enter, which is made when absent; one of this user that is wider is
/// narrowed to 0700.
///
/// # Errors
/// It belongs to another user, or another user can write to it or replace it.
pub(crate) fn private_dir(path: &Path) -> io::Result<PrivateDir> {
    const MODE: u32 = 0o700;
    let dir = PrivateDir::open(path, MODE)?;
    dir.set_mode(MODE)?;
    Ok(dir)
}

/// 16 random hexadecimal digits.
pub(crate) fn random_hex() -> io::Result<String> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| io::Error::other("no random bytes"))?;
    Ok(hex::encode(bytes))
}
