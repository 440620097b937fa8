//! At most one platform per directory, and how to find and stop it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use crate::files;

const POLL: Duration = Duration::from_millis(50);

/// The right to run in a directory, held by a lock that ends with the process.
pub struct Instance {
    lock: File,
    dir: PathBuf,
}

impl Instance {
    /// Takes the directory, or returns `None` if another process has it.
    ///
    /// # Errors
    ///
    /// The directory is not ours.
    pub fn acquire(dir: &Path) -> anyhow::Result<Option<Self>> {
        files::directory(&dir.join("run"), 0o700)?;
        // Whoever asks for the holder has the lock for a moment.
        let taken = (0..10).find_map(|_| match lock(dir) {
            Ok(None) => {
                std::thread::sleep(Duration::from_millis(10));
                None
            }
            other => Some(other),
        });
        let Some(mut lock) = taken.transpose()?.flatten() else {
            return Ok(None);
        };
        forget_ready(dir);
        lock.set_len(0)?;
        write!(lock, "{}", std::process::id())?;
        Ok(Some(Self {
            lock,
            dir: dir.to_owned(),
        }))
    }

    /// Tells others that everything runs, and what to tell their users.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn announce(&self, summary: &str) -> anyhow::Result<()> {
        files::write_private(&ready_file(&self.dir), summary)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        forget_ready(&self.dir);
        let _ = self.lock.set_len(0);
    }
}

/// The process that has the directory.
///
/// # Errors
///
/// The directory is not ours.
pub fn holder(dir: &Path) -> anyhow::Result<Option<u32>> {
    if !lock_file(dir).exists() || lock(dir)?.is_some() {
        return Ok(None);
    }
    // Between taking the lock and writing the id lies a moment.
    for _ in 0..40 {
        if let Ok(pid) = fs::read_to_string(lock_file(dir))?.trim().parse() {
            return Ok(Some(pid));
        }
        std::thread::sleep(POLL);
    }
    bail!("{} names no process", lock_file(dir).display())
}

/// What the process that has the directory announced.
pub fn announced(dir: &Path) -> Option<String> {
    fs::read_to_string(ready_file(dir)).ok()
}

/// Asks the process that has the directory to end, waits, and after `grace` kills it.
///
/// Returns the id of the process, or `None` if there was none.
///
/// # Errors
///
/// The process is not ours.
pub async fn stop(dir: &Path, grace: Duration) -> anyhow::Result<Option<u32>> {
    let Some(id) = holder(dir)? else { return Ok(None) };
    let pid = i32::try_from(id)
        .ok()
        .and_then(Pid::from_raw)
        .context("no process id")?;
    let deadline = Instant::now() + grace;
    let mut signal = Signal::TERM;
    kill_process(pid, signal).with_context(|| format!("cannot stop process {id}"))?;
    while holder(dir)? == Some(id) {
        if Instant::now() > deadline && signal == Signal::TERM {
            signal = Signal::KILL;
            let _ = kill_process(pid, signal);
        }
        sleep(POLL).await;
    }
    Ok(Some(id))
}

fn lock(dir: &Path) -> anyhow::Result<Option<File>> {
    let path = lock_file(dir);
    let open = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path);
    let file = open.with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

fn lock_file(dir: &Path) -> PathBuf {
    dir.join("run/certctl-local.lock")
}

fn ready_file(dir: &Path) -> PathBuf {
    dir.join("run/ready")
}

fn forget_ready(dir: &Path) {
    let _ = fs::remove_file(ready_file(dir));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_has_one_holder_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(holder(dir.path()).unwrap(), None);
        assert_eq!(stop(dir.path(), Duration::ZERO).await.unwrap(), None);

        let first = Instance::acquire(dir.path()).unwrap().unwrap();
        assert!(Instance::acquire(dir.path()).unwrap().is_none());
        assert_eq!(holder(dir.path()).unwrap(), Some(std::process::id()));
        first.announce("hello").unwrap();
        assert_eq!(announced(dir.path()).as_deref(), Some("hello"));

        drop(first);
        assert_eq!(announced(dir.path()), None);
        assert!(Instance::acquire(dir.path()).unwrap().is_some());
    }
}
