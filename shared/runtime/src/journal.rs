//! A journal: lines appended to files, on the disk before anybody is told that they are.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    thread,
};

use anyhow::Context;
use tokio::sync::{mpsc, oneshot};
use tracing::error;
use uuid::Uuid;

use crate::private::PrivateDir;

/// A file is closed when it has so many octets, and another begun.
const FULL: u64 = 16 << 20;
/// Callers that may wait for the disk at once; further ones wait for their place.
const WAITING: usize = 1024;

/// A directory of append-only files, each of one process. Many callers share one flush of the disk.
pub struct Journal {
    queue: mpsc::Sender<Entry>,
}

struct Entry {
    lines: Vec<u8>,
    written: oneshot::Sender<Result<(), String>>,
}

impl Journal {
    /// Opens a directory, which is made if it is not there, for files named `<name>-<UUID version 7>.ndjson`: they sort
    /// by their age. Files have mode 0600; what is in the directory already is left alone.
    ///
    /// # Errors
    /// When the directory cannot be made, belongs to somebody else or can be written by others.
    pub fn open(directory: &Path, name: &'static str) -> anyhow::Result<Self> {
        Self::with_ending(directory, name, "ndjson")
    }

    /// Opens one as [`Journal::open`] does, for files whose names end otherwise.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn with_ending(directory: &Path, name: &'static str, ending: &'static str) -> anyhow::Result<Self> {
        private_directory(directory).with_context(|| format!("the journal in {}", directory.display()))?;
        let mut writer = Writer {
            directory: directory.to_owned(),
            name,
            ending,
            open: None,
        };
        // Found out now, and not with the first line.
        writer
            .begin()
            .with_context(|| format!("the journal in {}", directory.display()))?;
        let (queue, entries) = mpsc::channel(WAITING);
        // On a thread of its own: a flush takes as long as the disk pleases. It ends when the journal is dropped.
        thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run(entries))?;
        Ok(Self { queue })
    }

    /// Appends whole lines, each with its line feed. Returns when they are on the disk.
    ///
    /// # Errors
    /// When the disk did not take them: some of them may be there all the same.
    pub async fn append(&self, lines: Vec<u8>) -> io::Result<()> {
        let (written, answer) = oneshot::channel();
        let gone = || io::Error::other("the journal has ended");
        self.queue.send(Entry { lines, written }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?.map_err(io::Error::other)
    }
}

struct Writer {
    directory: PathBuf,
    name: &'static str,
    ending: &'static str,
    open: Option<OpenFile>,
}

struct OpenFile {
    file: File,
    path: PathBuf,
    octets: u64,
}

impl Writer {
    fn run(mut self, mut entries: mpsc::Receiver<Entry>) {
        let mut waiting = Vec::new();
        while entries.blocking_recv_many(&mut waiting, WAITING) > 0 {
            let lines: Vec<u8> = waiting.iter().flat_map(|entry| &entry.lines).copied().collect();
            let written = self.write(&lines).map_err(|error| error.to_string());
            if let Err(error) = &written {
                error!(%error, "the journal cannot be written");
                metrics::counter!("journal_failures_total").increment(1);
                // What a failed flush leaves is not known, and a line may be torn: the next begins in another file.
                self.open = None;
            }
            for entry in waiting.drain(..) {
                // Who asked may have gone.
                let _ = entry.written.send(written.clone());
            }
        }
        if let Some(open) = self.open.filter(|open| open.octets == 0) {
            let _ = fs::remove_file(open.path);
        }
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.open.as_ref().is_none_or(|open| open.octets >= FULL) {
            self.begin()?;
        }
        let open = self.open.as_mut().expect("one was begun");
        open.file.write_all(lines)?;
        open.octets += lines.len() as u64;
        open.file.sync_data()
    }

    /// Begins a file; its name is on the disk too.
    fn begin(&mut self) -> io::Result<()> {
        let name = format!("{}-{}.{}", self.name, Uuid::now_v7(), self.ending);
        let path = self.directory.join(name);
        let file = OpenOptions::new()
            .create_new(true)
            .append(true)
            .mode(0o600)
            .open(&path)?;
        File::open(&self.directory)?.sync_all()?;
        self.open = Some(OpenFile { file, path, octets: 0 });
        Ok(())
    }
}

/// Makes a directory that only this user can write to.
///
/// # Errors
/// When it cannot be made or is not private.
pub fn private_directory(path: &Path) -> io::Result<()> {
    PrivateDir::open(path, 0o700).map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn files(directory: &Path) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        files
    }

    #[tokio::test]
    async fn what_was_appended_is_in_the_file_when_the_caller_hears_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("journal");
        let journal = Journal::open(&directory, "test").unwrap();
        let lines = (0..50).map(|n| journal.append(format!("{n}\n").into_bytes()));
        for written in futures_util::future::join_all(lines).await {
            written.unwrap();
        }
        let [file] = files(&directory).try_into().unwrap();
        let text = fs::read_to_string(&file).unwrap();
        let mut numbers: Vec<u32> = text.lines().map(|line| line.parse().unwrap()).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..50).collect::<Vec<_>>());
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_full_file_is_followed_by_another_and_every_process_begins_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), "test").unwrap();
        let line = vec![b'a'; FULL as usize];
        for _ in 0..2 {
            journal.append(line.clone()).await.unwrap();
        }
        assert_eq!(files(dir.path()).len(), 2);
        let _other = Journal::open(dir.path(), "test").unwrap();
        assert_eq!(files(dir.path()).len(), 3);
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let refused = Journal::open(dir.path(), "test").err().unwrap();
        assert!(
            format!("{refused:#}").contains("other users can write to"),
            "{refused:#}"
        );
    }
}
