//! Places where a crash test can hold a process, in order to kill it between two lines.
//!
//! A test puts a file named after the failpoint into the configured directory, waits for `<name>.reached`, and then
//! kills the process or removes the file to let it go on. Release builds contain none of this.

use std::path::PathBuf;

#[cfg(debug_assertions)]
static DIRECTORY: std::sync::OnceLock<Option<PathBuf>> = std::sync::OnceLock::new();

/// Sets the directory of failpoints, once per process; later calls change nothing.
#[cfg(debug_assertions)]
pub fn configure(directory: Option<PathBuf>) {
    DIRECTORY.get_or_init(|| directory);
}

/// Holds the caller while `<directory>/<name>` exists, after writing its process id to `<name>.reached` beside it.
#[cfg(debug_assertions)]
pub async fn hold(name: &str) {
    if let Some(directory) = DIRECTORY.get().and_then(Option::as_ref) {
        hold_in(directory, name).await;
    }
}

#[cfg(debug_assertions)]
async fn hold_in(directory: &std::path::Path, name: &str) {
    const POLL: std::time::Duration = std::time::Duration::from_millis(20);
    let held = async || tokio::fs::try_exists(directory.join(name)).await.unwrap_or(false);
    if !held().await {
        return;
    }
    if let Err(error) = tokio::fs::write(
        directory.join(format!("{name}.reached")),
        std::process::id().to_string(),
    )
    .await
    {
        tracing::warn!("failpoint {name} cannot say that it was reached: {error}");
    }
    while held().await {
        tokio::time::sleep(POLL).await;
    }
}

/// Does nothing in release builds.
#[cfg(not(debug_assertions))]
pub fn configure(_: Option<PathBuf>) {}

/// Does nothing in release builds.
#[cfg(not(debug_assertions))]
#[inline]
pub async fn hold(_: &str) {}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failpoint_holds_until_its_file_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        hold_in(dir.path(), "absent").await;
        assert!(!dir.path().join("absent.reached").exists());

        let file = dir.path().join("before_commit");
        std::fs::write(&file, "").unwrap();
        let release = async {
            while !dir.path().join("before_commit.reached").exists() {
                tokio::task::yield_now().await;
            }
            std::fs::remove_file(&file).unwrap();
        };
        tokio::join!(hold_in(dir.path(), "before_commit"), release);
    }

    #[tokio::test]
    async fn without_a_directory_nothing_is_held() {
        hold("anything").await;
    }
}
