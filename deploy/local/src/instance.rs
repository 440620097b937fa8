//! At most one platform per directory, and how to find and stop it.

use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use crate::files;

const LOCK: &str = "certctl-local.lock";
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
        let Some(mut lock) = lock(dir)? else { return Ok(None) };
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
    // Its id is written after the lock is taken, and removed before the lock is released: without an id there is no
    // holder yet or no more, unless that lasts.
    for _ in 0..40 {
        let Some(text) = files::read(&lock_file(dir))? else {
            return Ok(None);
        };
        if !is_locked(dir)? {
            return Ok(None);
        }
        if let Ok(pid) = text.trim().parse() {
            return Ok(Some(pid));
        }
        std::thread::sleep(POLL);
    }
    bail!(
        "a process holds {} and has not written its id; see who does with: fuser {0}",
        lock_file(dir).display()
    )
}

/// Whether a process holds the lock. The lock of the one who asks is shared and lasts for this question, so that two
/// who ask do not take each other for the holder.
fn is_locked(dir: &Path) -> anyhow::Result<bool> {
    let path = lock_file(dir);
    match open_lock(dir)?.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// What the process that has the directory announced.
pub fn announced(dir: &Path) -> Option<String> {
    files::read(&ready_file(dir)).ok().flatten()
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
    let file = open_lock(dir)?;
    // One that asks whether there is a holder has the lock for a moment.
    for _ in 0..50 {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", lock_file(dir).display()));
            }
        }
        if files::read(&lock_file(dir))?.is_some_and(|text| !text.is_empty()) && is_locked(dir)? {
            return Ok(None);
        }
    }
    Ok(None)
}

fn open_lock(dir: &Path) -> anyhow::Result<File> {
    let run = files::directory(&dir.join("run"), 0o700)?;
    let open = run.append(LOCK, 0o600);
    open.with_context(|| format!("cannot open {}", lock_file(dir).display()))
}

fn lock_file(dir: &Path) -> PathBuf {
    dir.join("run").join(LOCK)
}

fn ready_file(dir: &Path) -> PathBuf {
    dir.join("run/ready")
}

fn forget_ready(dir: &Path) {
    let _ = std::fs::remove_file(ready_file(dir));
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

    #[test]
    fn a_holder_that_leaves_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let leaving = Instance::acquire(dir.path()).unwrap().unwrap();
        // Its id is gone, its lock not yet.
        leaving.lock.set_len(0).unwrap();
        let asked = std::thread::scope(|scope| {
            let asked = scope.spawn(|| holder(dir.path()).unwrap());
            drop(leaving);
            asked.join().unwrap()
        });
        assert_eq!(asked, None);
        // What a holder that was killed has left behind.
        std::fs::write(lock_file(dir.path()), "1").unwrap();
        assert_eq!(holder(dir.path()).unwrap(), None);
        assert!(Instance::acquire(dir.path()).unwrap().is_some());
    }
}
