//! What has to be undone when a deployment is cut off: one journal for each deployment, on disk before the first file is
//! changed.
//!
//! A journal names files and holds digests, no contents. Its files are those that the deployment changes, each in a
//! [`Place`] of its own. A file counts as replaced when it has the content that the deployment wrote: only then is it
//! undone, so that a file that was never reached, or that an operator has repaired since, is left alone. Every step may
//! be repeated, and a journal that cannot be carried out stays for the next attempt without any effect on others.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use certctl_runtime::private::PrivateDir;
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};
use zeroize::Zeroizing;

use crate::attributes::Attributes;
use crate::files;
use crate::place::{Place, failed};
use crate::program::Argv;

/// A file of a target and its backup.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;
const MAX_JOURNAL_BYTES: u64 = 1024 * 1024;
const BACKUP: &str = ".certctl-old";
/// A backup that is being copied. A backup that exists is believed, so it gets its name only when it is complete.
const BACKUP_PART: &str = ".certctl-old-part";
/// The one journal of earlier agents.
const EARLIER: &str = "deployment.json";

/// Everything needed to undo a deployment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Journal {
    /// The target, for messages. Earlier agents did not write it.
    #[serde(default = "unnamed")]
    pub(crate) target: String,
    /// Whether the new files stay, and only backups are left to remove.
    #[serde(default)]
    pub(crate) kept: bool,
    pub(crate) files: Vec<Entry>,
    pub(crate) validate: Option<Argv>,
    pub(crate) reload: Option<Argv>,
}

fn unnamed() -> String {
    "without a name".to_owned()
}

/// A file that is between old and new.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Without symbolic links.
    pub(crate) path: PathBuf,
    /// The new file, until it is renamed. In the same directory.
    pub(crate) new: PathBuf,
    /// Whether there is an old file.
    pub(crate) existed: bool,
    /// SHA-256 of the new content, in lower-case hex. Earlier agents did not write it.
    #[serde(default)]
    pub(crate) sha256: Option<String>,
}

impl Entry {
    fn new_name(&self) -> io::Result<&OsStr> {
        let beside = self.new.parent() == self.path.parent();
        let name = self.new.file_name().filter(|_| beside);
        name.ok_or_else(|| {
            failed(
                "use",
                &self.new,
                io::Error::other("it is not beside the file that it replaces"),
            )
        })
    }

    /// Undoes one file, however far its change had come.
    fn undo(&self, place: &Place) -> io::Result<()> {
        let (name, new, old) = (place.name(), self.new_name()?, place.name_with(BACKUP));
        let replaced = match &self.sha256 {
            Some(sha256) if place.has(name)? => place
                .read(name, MAX_FILE_BYTES)?
                .is_some_and(|bytes| sha256_hex(&Zeroizing::new(bytes)) == *sha256),
            Some(_) => false,
            // All new files were written before any was moved, and none is moved twice.
            None => !place.has(new)?,
        };
        match (replaced, self.existed) {
            (true, true) if place.has(&old)? => place.rename(&old, name)?,
            // Cut off before the backup was made.
            (true, true) => debug!("{} has no backup", self.path.display()),
            (true, false) => place.remove(name)?,
            (false, _) => {}
        }
        self.tidy(place)
    }

    /// Removes what lies beside the file.
    fn tidy(&self, place: &Place) -> io::Result<()> {
        place.remove(self.new_name()?)?;
        // Renaming one name of a file onto another name of the same file leaves both (POSIX rename).
        remove_backups(place)?;
        place.sync()
    }
}

/// Removes the backup of a file, and one that is half copied.
pub(crate) fn remove_backups(place: &Place) -> io::Result<()> {
    place.remove(&place.name_with(BACKUP_PART))?;
    place.remove(&place.name_with(BACKUP))
}

/// Makes the backup of a file: a second name for it, or a copy where the file system has no such names.
pub(crate) fn back_up(place: &Place) -> io::Result<()> {
    let old = place.name_with(BACKUP);
    if place.link(place.name(), &old) {
        return Ok(());
    }
    let about = |error: io::Error| failed("back up", &place.path(), error);
    let file = place
        .open(place.name())?
        .ok_or_else(|| about(io::ErrorKind::NotFound.into()))?;
    let attributes = Attributes::of(&file, &file.metadata().map_err(about)?).map_err(about)?;
    let bytes = place.read(place.name(), MAX_FILE_BYTES)?.unwrap_or_default();
    let part = place.name_with(BACKUP_PART);
    place.remove(&part)?;
    write_new(place, &part, &Zeroizing::new(bytes), |file| attributes.apply(file))?;
    place.rename(&part, &old)
}

/// Writes and syncs a file that must not exist. `prepare` gives it owner and mode before it has content.
pub(crate) fn write_new(
    place: &Place,
    name: &OsStr,
    bytes: &[u8],
    prepare: impl FnOnce(&std::fs::File) -> io::Result<()>,
) -> io::Result<()> {
    let mut file = place.create(name)?;
    let written = prepare(&file)
        .and_then(|()| io::Write::write_all(&mut file, bytes))
        .and_then(|()| file.sync_all());
    written.map_err(|error| failed("write", &place.path_of(name), error))
}

/// SHA-256 in lower-case hex.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

/// The journals of an agent, in a directory that no other user can write to.
#[derive(Debug)]
pub(crate) struct Journals {
    state: PrivateDir,
    dir: PrivateDir,
}

impl Journals {
    /// Opens the directory `deployments` of the state directory.
    ///
    /// # Errors
    /// Another user can write to it.
    pub(crate) fn open(state_dir: &Path) -> io::Result<Self> {
        let state = files::private_dir(state_dir)?;
        let dir = files::private_dir(&state_dir.join("deployments"))?;
        Ok(Self { state, dir })
    }

    /// The name of a new journal.
    ///
    /// # Errors
    /// There are no random bytes.
    pub(crate) fn new_name() -> io::Result<String> {
        Ok(format!("{}.json", files::random_hex()?))
    }

    /// Writes a journal, or another state of it.
    ///
    /// # Errors
    /// The disk failed.
    pub(crate) fn write(&self, name: &str, journal: &Journal) -> io::Result<()> {
        let bytes = serde_json::to_vec(journal)?;
        let about = |error| failed("record the deployment in", &self.of(name).path().join(name), error);
        self.of(name).write(name, 0o600, &bytes).map_err(about)
    }

    /// Removes a journal.
    ///
    /// # Errors
    /// The disk failed.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        let about = |error| failed("remove", &self.of(name).path().join(name), error);
        self.of(name).remove(name).map(|_| ()).map_err(about)
    }

    /// All journals that are there, sorted by name. One that cannot be read is logged and passed over: it must not keep
    /// others from being carried out.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub(crate) fn all(&self) -> io::Result<Vec<(String, Journal)>> {
        let about = |error| failed("read", self.dir.path(), error);
        let mut names = vec![EARLIER.to_owned()];
        for entry in std::fs::read_dir(self.dir.path()).map_err(about)? {
            let name = entry.map_err(about)?.file_name().into_string();
            names.extend(
                name.ok()
                    .filter(|name| name.ends_with(".json") && !name.starts_with('.')),
            );
        }
        names.sort();
        Ok(names
            .into_iter()
            .filter_map(|name| self.read(&name).map(|journal| (name, journal)))
            .collect())
    }

    fn read(&self, name: &str) -> Option<Journal> {
        let path = self.of(name).path().join(name);
        let bytes = match self.of(name).read(name, MAX_JOURNAL_BYTES) {
            Ok(bytes) => bytes?,
            Err(error) => {
                warn!("passed over a journal: {error}");
                return None;
            }
        };
        let journal = serde_json::from_slice(&bytes);
        journal
            .inspect_err(|error| warn!("passed over {}, which is no journal: {error}", path.display()))
            .ok()
    }

    fn of(&self, name: &str) -> &PrivateDir {
        match name {
            EARLIER => &self.state,
            _ => &self.dir,
        }
    }

    /// Undoes what was replaced, or, of a journal whose files stay, removes the backups. Goes on after a file that
    /// cannot be undone; that one alone remains in the journal.
    ///
    /// # Errors
    /// The text names each file that remains.
    pub(crate) fn carry_out(&self, name: &str, mut journal: Journal, places: &Places<'_>) -> io::Result<()> {
        let mut errors = Vec::new();
        let before = journal.files.len();
        journal.files.retain(|entry| {
            let done = places.with(entry, |place| match journal.kept {
                true => entry.tidy(place),
                false => entry.undo(place),
            });
            done.map_err(|error| errors.push(error.to_string())).is_err()
        });
        if journal.files.is_empty() {
            return self.remove(name);
        }
        if journal.files.len() < before
            && let Err(error) = self.write(name, &journal)
        {
            errors.push(error.to_string());
        }
        Err(io::Error::other(errors.join("; ")))
    }
}

/// Where the files of a journal are.
pub(crate) enum Places<'a> {
    /// In directories that are still held.
    Held(&'a [Place]),
    /// In directories that have to be found again.
    Found,
}

impl Places<'_> {
    fn with(&self, entry: &Entry, work: impl FnOnce(&Place) -> io::Result<()>) -> io::Result<()> {
        match self {
            Self::Held(places) => {
                let place = places.iter().find(|place| place.path() == entry.path);
                work(place.expect("a journal is made of the places that are held"))
            }
            Self::Found => match Place::resolved_before(&entry.path) {
                Ok(place) => work(&place),
                // Files, backups and all are gone with their directory.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            },
        }
    }
}

/// The name under which the new file is written.
///
/// # Errors
/// There are no random bytes.
pub(crate) fn new_name(place: &Place) -> io::Result<OsString> {
    Ok(place.name_with(&format!(".certctl-new-{}", files::random_hex()?)))
}
