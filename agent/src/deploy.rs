//! Puts a certificate in its place: all of a plan comes into force and is seen being served, or the old files are back.

use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use certctl_runtime::failpoint;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::files::{self, Owner};
use crate::program::{AllowedPrograms, Argv};
use crate::served;

/// What is to be done on the host: a value, so that it can be compared.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Files that come into place together.
    pub writes: Vec<Write>,
    /// Checks the configuration with the new files in place.
    pub validate: Option<Argv>,
    /// Makes the server take them.
    pub reload: Option<Argv>,
    /// Where to look whether it did.
    pub verify: Option<Verify>,
}

/// A file of a plan.
#[derive(PartialEq, Eq)]
pub struct Write {
    /// Absolute path.
    pub path: PathBuf,
    /// The whole contents.
    pub bytes: Zeroizing<Vec<u8>>,
    /// The mode of a new file; an existing one keeps its own. 0600 says that the contents are secret.
    pub mode: u32,
}

/// Shows no bytes: they may be a private key.
impl std::fmt::Debug for Write {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Write({}, {} bytes, {:o})",
            self.path.display(),
            self.bytes.len(),
            self.mode
        )
    }
}

/// What should be seen after the reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verify {
    /// `host:port` to connect to.
    pub address: String,
    /// The server name to send; empty to send none.
    pub server_name: String,
    /// SHA-256 of the leaf's DER, lower-case hex.
    pub fingerprint: String,
}

/// What a deployment that succeeded had to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// New files are in place.
    Changed,
    /// They had been in place before.
    Unchanged,
}

/// Why a deployment did not succeed, and how the host was left.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeployError {
    /// It failed before any file was changed.
    #[error("{0}; nothing was changed")]
    Untouched(String),
    /// It failed later and was undone.
    #[error("{0}; the old files are back")]
    Restored(String),
    /// It failed, and undoing failed as well. It is tried again when the agent starts.
    #[error("{cause}; the old files could not all be put back: {undo}")]
    Broken {
        /// Why the deployment failed.
        cause: String,
        /// Why undoing did.
        undo: String,
    },
}

/// Applies plans, one at a time.
#[derive(Debug)]
pub struct Deployer {
    /// Present while files are between old and new.
    journal: PathBuf,
    programs: AllowedPrograms,
}

/// A server reloads on its own time; after this long it is not going to.
const VERIFY_FOR: Duration = Duration::from_secs(5);
/// A reload takes a few tens of milliseconds.
const VERIFY_EVERY: Duration = Duration::from_millis(25);
/// nginx lets its old processes accept beside the new ones for a tenth of a second, so one look does not tell.
const STEADY_FOR: Duration = Duration::from_millis(150);

impl Deployer {
    /// Keeps its journal in `state_dir`.
    pub fn new(state_dir: &Path, programs: AllowedPrograms) -> Self {
        Self {
            journal: state_dir.join("deployment.json"),
            programs,
        }
    }

    /// Undoes a deployment during which the agent died.
    ///
    /// # Errors
    /// A file cannot be put back. The journal stays, so that the next start tries again.
    pub async fn recover(&self) -> anyhow::Result<()> {
        const MAX_BYTES: u64 = 1024 * 1024;
        let bytes = match files::read(&self.journal, MAX_BYTES) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            read => read.with_context(|| format!("cannot read {}", self.journal.display()))?,
        };
        let journal: Journal = serde_json::from_slice(&bytes)
            .with_context(|| format!("{} cannot be understood", self.journal.display()))?;
        warn!("a deployment was cut off; the old files are put back");
        let reload = (journal.validate.clone(), journal.reload.clone());
        self.undo(journal)
            .await
            .context("cannot undo a deployment that was cut off")?;
        if let Err(error) = self.activate(reload.0.as_ref(), reload.1.as_ref()).await {
            warn!("the old files are back, but could not be made active: {error}");
        }
        Ok(())
    }

    /// Applies a plan: writes beside, renames, validates, reloads, looks at what is served; undoes it all on failure.
    ///
    /// # Errors
    /// The text quotes the program that failed and says how the files were left.
    pub async fn apply(&self, plan: Plan) -> Result<Applied, DeployError> {
        // One that could not be undone still has the only copy of the old files beside them.
        let earlier = self.recover().await;
        earlier.map_err(|error| DeployError::Untouched(format!("{error:#}")))?;
        let Plan {
            writes,
            validate,
            reload,
            verify,
        } = plan;
        for argv in [&validate, &reload].into_iter().flatten() {
            self.programs.check(argv).map_err(DeployError::Untouched)?;
        }
        let changes = blocking(move || changes(writes))
            .await
            .map_err(|error| DeployError::Untouched(error.to_string()))?;
        if changes.is_empty() {
            let active = self.confirm(validate.as_ref(), reload.as_ref(), verify.as_ref()).await;
            return active.map(|()| Applied::Unchanged).map_err(DeployError::Untouched);
        }
        let journal = Journal {
            files: changes.iter().map(Change::entry).collect(),
            validate,
            reload,
        };
        let (path, kept) = (self.journal.clone(), journal.clone());
        let placed = blocking(move || place(&path, &kept, &changes)).await;
        failpoint::hold("agent.deploy_renamed").await;

        let mut reloaded = false;
        let active = match placed {
            Err(error) => Err(error.to_string()),
            Ok(()) => match run(&self.programs, journal.validate.as_ref()).await {
                Err(error) => Err(error),
                Ok(()) => {
                    reloaded = true;
                    match run(&self.programs, journal.reload.as_ref()).await {
                        Err(error) => Err(error),
                        Ok(()) => wait_for(verify.as_ref()).await,
                    }
                }
            },
        };
        match active {
            Ok(()) => self.keep(journal).await.map(|()| Applied::Changed),
            Err(cause) => Err(self.give_back(journal, cause, reloaded).await),
        }
    }

    /// The files are right already; makes sure that they are what is served.
    async fn confirm(
        &self,
        validate: Option<&Argv>,
        reload: Option<&Argv>,
        verify: Option<&Verify>,
    ) -> Result<(), String> {
        if let Some(verify) = verify
            && look(verify).await.is_ok()
        {
            return Ok(());
        }
        self.activate(validate, reload).await?;
        wait_for(verify).await
    }

    async fn activate(&self, validate: Option<&Argv>, reload: Option<&Argv>) -> Result<(), String> {
        run(&self.programs, validate).await?;
        run(&self.programs, reload).await
    }

    /// The new files stay: from the moment the journal is gone, nothing undoes them.
    async fn keep(&self, journal: Journal) -> Result<(), DeployError> {
        let path = self.journal.clone();
        let backups: Vec<_> = journal.files.iter().map(Entry::old).collect();
        let forgotten = blocking(move || {
            files::remove(&path)?;
            files::sync_parent(&path)?;
            // A backup that stays is taken away by the next deployment to its place.
            let left = backups
                .iter()
                .filter_map(|old| files::remove(old).err().map(|error| (old, error)));
            left.for_each(|(old, error)| warn!("cannot remove {}: {error}", old.display()));
            Ok(())
        });
        match forgotten.await {
            Ok(()) => Ok(()),
            Err(error) => {
                let cause = format!("the deployment cannot be recorded: {error}");
                Err(self.give_back(journal, cause, true).await)
            }
        }
    }

    async fn give_back(&self, journal: Journal, cause: String, reloaded: bool) -> DeployError {
        let (validate, reload) = (journal.validate.clone(), journal.reload.clone());
        if let Err(undo) = self.undo(journal).await {
            return DeployError::Broken {
                cause,
                undo: undo.to_string(),
            };
        }
        // A server that was not asked to reload still serves the old certificate.
        match reloaded {
            true => match self.activate(validate.as_ref(), reload.as_ref()).await {
                Ok(()) => DeployError::Restored(cause),
                Err(error) => {
                    DeployError::Restored(format!("{cause}; reloading the old files failed as well: {error}"))
                }
            },
            false => DeployError::Restored(cause),
        }
    }

    async fn undo(&self, journal: Journal) -> io::Result<()> {
        let path = self.journal.clone();
        blocking(move || {
            journal.files.iter().try_for_each(put_back)?;
            files::remove(&path)?;
            files::sync_parent(&path)?;
            info!("the old files are back");
            Ok(())
        })
        .await
    }
}

async fn run(programs: &AllowedPrograms, argv: Option<&Argv>) -> Result<(), String> {
    match argv {
        Some(argv) => programs.run(argv).await,
        None => Ok(()),
    }
}

/// Looks until the new certificate has been seen for a while without exception.
async fn wait_for(verify: Option<&Verify>) -> Result<(), String> {
    let Some(verify) = verify else { return Ok(()) };
    let deadline = Instant::now() + VERIFY_FOR;
    let mut since = None;
    loop {
        let seen = look(verify).await;
        let now = Instant::now();
        match seen {
            Ok(()) if now - *since.get_or_insert(now) >= STEADY_FOR => return Ok(()),
            Err(_) if now >= deadline => return seen,
            Ok(()) => {}
            Err(_) => since = None,
        }
        sleep(VERIFY_EVERY).await;
    }
}

async fn look(verify: &Verify) -> Result<(), String> {
    let Verify {
        address,
        server_name,
        fingerprint,
    } = verify;
    let served = served::fingerprint(address, server_name).await?;
    match served == *fingerprint {
        true => Ok(()),
        false => Err(format!(
            "{address} serves the certificate {served} for \"{server_name}\", not the new one, {fingerprint}"
        )),
    }
}

/// Everything needed to undo, written before anything is done. Holds paths, no contents.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Journal {
    files: Vec<Entry>,
    validate: Option<Argv>,
    reload: Option<Argv>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    path: PathBuf,
    new: PathBuf,
    existed: bool,
}

impl Entry {
    /// Where the old file is kept. The name is always the same, so that at most one is ever left behind.
    fn old(&self) -> PathBuf {
        files::beside(&self.path, ".certctl-old")
    }
}

/// A file that is not yet as the plan wants it.
struct Change {
    path: PathBuf,
    new: PathBuf,
    bytes: Zeroizing<Vec<u8>>,
    mode: u32,
    owner: Option<Owner>,
}

impl Change {
    fn entry(&self) -> Entry {
        Entry {
            path: self.path.clone(),
            new: self.new.clone(),
            existed: self.owner.is_some(),
        }
    }
}

/// Compares the writes with what is there, and leaves out what is right already.
fn changes(writes: Vec<Write>) -> io::Result<Vec<Change>> {
    let changes = writes.into_iter().map(change).collect::<io::Result<Vec<_>>>()?;
    Ok(changes.into_iter().flatten().collect())
}

fn change(Write { path, bytes, mode }: Write) -> io::Result<Option<Change>> {
    let about = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    // The file behind a symbolic link is replaced, not the link.
    let (place, existing) = match fs::canonicalize(&path) {
        Ok(place) => {
            let metadata = fs::metadata(&place).map_err(about)?;
            (place, Some(metadata))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => (path.clone(), None),
        Err(error) => return Err(about(error)),
    };
    let directory = place.parent().is_some_and(Path::is_dir);
    if !directory || existing.as_ref().is_some_and(|found| !found.is_file()) {
        return Err(about(io::Error::other("it must be a file in a directory that exists")));
    }
    let wanted_mode = existing.as_ref().map_or(mode, |found| kept_mode(found, mode));
    if let Some(found) = &existing
        && found.len() == bytes.len() as u64
        && found.permissions().mode() & 0o7777 == wanted_mode
        && *Zeroizing::new(files::read(&place, found.len()).map_err(about)?) == *bytes
    {
        return Ok(None);
    }
    let new = files::beside(&place, &format!(".certctl-new-{}", files::random_hex()?));
    let owner = existing.map(|found| Owner {
        uid: found.uid(),
        gid: found.gid(),
    });
    Ok(Some(Change {
        path: place,
        new,
        bytes,
        mode: wanted_mode,
        owner,
    }))
}

/// A file keeps its mode; one with secrets is never open to others, and to its group only if it was to nobody else.
fn kept_mode(existing: &Metadata, wanted: u32) -> u32 {
    let found = existing.permissions().mode() & 0o777;
    match (wanted & 0o077 == 0, found & 0o007 == 0) {
        (false, _) => found,
        (true, true) => 0o600 | found & 0o040,
        (true, false) => 0o600,
    }
}

/// Writes the journal, then all files beside, then moves all into place.
fn place(path: &Path, journal: &Journal, changes: &[Change]) -> io::Result<()> {
    // A backup of an earlier deployment must not be taken for one of this.
    journal.files.iter().try_for_each(|entry| files::remove(&entry.old()))?;
    files::replace(path, &serde_json::to_vec(journal)?, 0o600)?;
    for change in changes {
        files::write_new(&change.new, &change.bytes, change.mode, change.owner)?;
    }
    for entry in journal.files.iter().filter(|entry| entry.existed) {
        back_up(&entry.path, &entry.old())?;
    }
    journal
        .files
        .iter()
        .try_for_each(|entry| files::sync_parent(&entry.path))?;
    for change in changes {
        fs::rename(&change.new, &change.path)?;
    }
    journal
        .files
        .iter()
        .try_for_each(|entry| files::sync_parent(&entry.path))
}

/// A second name for the same file; a copy where the file system has no such names.
fn back_up(path: &Path, old: &Path) -> io::Result<()> {
    const MAX_BYTES: u64 = 16 * 1024 * 1024;
    if fs::hard_link(path, old).is_ok() {
        return Ok(());
    }
    let found = fs::metadata(path)?;
    let bytes = Zeroizing::new(files::read(path, MAX_BYTES)?);
    let owner = Owner {
        uid: found.uid(),
        gid: found.gid(),
    };
    // Under its own name only when whole: a backup that exists is believed.
    let part = files::beside(old, "-part");
    files::remove(&part)?;
    files::write_new(&part, &bytes, found.permissions().mode() & 0o777, Some(owner))?;
    fs::rename(part, old)
}

/// Undoes one file, however far its change had come; harmless when repeated.
///
/// A missing backup of a file that existed means that it was not yet moved, or is back already.
fn put_back(entry: &Entry) -> io::Result<()> {
    let about = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", entry.path.display()));
    let undone = match entry.existed {
        true => match fs::rename(entry.old(), &entry.path) {
            // Renaming one name of a file onto another name of the same file leaves both (POSIX rename).
            Ok(()) => files::remove(&entry.old()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        },
        false => files::remove(&entry.path),
    };
    undone
        .and_then(|()| files::remove(&entry.new))
        .and_then(|()| files::sync_parent(&entry.path))
        .map_err(about)
}

/// Runs file work off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::sync::mpsc;

    use certctl_runtime::tasks::Tasks;
    use certctl_x509::facts::CertificateFacts;
    use tokio::net::TcpListener;

    use super::*;
    use crate::bundle::testing::{DEMO, issue, key};
    use crate::served::testing::acceptor;

    struct Host {
        dir: tempfile::TempDir,
        deployer: Deployer,
    }

    impl Host {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("tls")).unwrap();
            let deployer = Deployer::new(dir.path(), "true,false,test".parse().unwrap());
            Self { dir, deployer }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join("tls").join(name)
        }

        fn put(&self, name: &str, text: &str, mode: u32) {
            fs::write(self.path(name), text).unwrap();
            fs::set_permissions(self.path(name), Permissions::from_mode(mode)).unwrap();
        }

        /// Name, contents and mode of every file, sorted.
        fn files(&self) -> Vec<(String, String, u32)> {
            let entries = fs::read_dir(self.path("")).unwrap().map(|entry| entry.unwrap());
            let mut files: Vec<_> = entries
                .map(|entry| {
                    let text = fs::read_to_string(entry.path()).unwrap();
                    (
                        entry.file_name().into_string().unwrap(),
                        text,
                        entry.metadata().unwrap().mode() & 0o777,
                    )
                })
                .collect();
            files.sort();
            files
        }

        fn plan(&self, validate: &str, reload: &str) -> Plan {
            let write = |name, text: &str, mode| Write {
                path: self.path(name),
                bytes: text.as_bytes().to_vec().into(),
                mode,
            };
            Plan {
                writes: vec![
                    write("a.pem", "new cert", 0o644),
                    write("a.key", "new key", 0o600),
                    write("b.pem", "chain", 0o644),
                ],
                validate: Argv::split(validate),
                reload: Argv::split(reload),
                verify: None,
            }
        }

        fn journal(&self) -> bool {
            self.deployer.journal.exists()
        }
    }

    fn file(name: &str, text: &str, mode: u32) -> (String, String, u32) {
        (name.to_owned(), text.to_owned(), mode)
    }

    #[tokio::test]
    async fn a_plan_replaces_files_and_leaves_nothing_beside_them() {
        let host = Host::new();
        host.put("a.pem", "old cert", 0o640);
        host.put("a.key", "old key", 0o644);
        let validate = format!("test -s {}", host.path("b.pem").display());
        assert_eq!(
            host.deployer.apply(host.plan(&validate, "true")).await,
            Ok(Applied::Changed)
        );
        let expected = [
            file("a.key", "new key", 0o600),
            file("a.pem", "new cert", 0o640),
            file("b.pem", "chain", 0o644),
        ];
        assert_eq!(host.files(), expected);
        assert_eq!(
            host.deployer.apply(host.plan("true", "true")).await,
            Ok(Applied::Unchanged)
        );
        assert_eq!(host.files(), expected);
        assert!(!host.journal());
    }

    #[tokio::test]
    async fn a_failure_puts_every_old_file_back_and_removes_the_others() {
        for (validate, reload, cause) in [
            (
                "false",
                "true",
                "\"false\" failed (exit status: 1): ; the old files are back",
            ),
            (
                "true",
                "false",
                "\"false\" failed (exit status: 1): ; reloading the old files failed as well",
            ),
        ] {
            let host = Host::new();
            host.put("a.pem", "old cert", 0o644);
            host.put("a.key", "old key", 0o640);
            let before = (host.files(), fs::metadata(host.path("a.pem")).unwrap().ino());
            let error = host.deployer.apply(host.plan(validate, reload)).await.unwrap_err();
            assert!(
                matches!(&error, DeployError::Restored(_)) && error.to_string().starts_with(cause),
                "{error}"
            );
            assert_eq!((host.files(), fs::metadata(host.path("a.pem")).unwrap().ino()), before);
            assert!(!host.journal());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_serve_the_new_certificate_gets_the_old_files_back() {
        let host = Host::new();
        host.put("a.pem", "old cert", 0o644);
        let before = host.files();
        // A port that was free a moment ago, with nobody behind it. Without programs the clock may run ahead.
        let address = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .to_string();
        let verify = Some(Verify {
            address,
            server_name: "a.example".into(),
            fingerprint: "00".into(),
        });
        let error = host
            .deployer
            .apply(Plan {
                verify,
                ..host.plan("", "")
            })
            .await
            .unwrap_err();
        assert!(error.to_string().ends_with("; the old files are back"), "{error}");
        assert_eq!(host.files(), before);
    }

    #[tokio::test]
    async fn the_new_certificate_counts_as_served_only_once_the_old_one_is_seen_no_more() {
        let key = key();
        let [new, old] = [(); 2].map(|()| issue(&key, DEMO));
        let acceptors = [&new, &old].map(|pem| acceptor(&key, pem));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let verify = Verify {
            address: listener.local_addr().unwrap().to_string(),
            server_name: DEMO.into(),
            fingerprint: CertificateFacts::parse_pem_chain(&new).unwrap().remove(0).fingerprint,
        };
        let (seen, old_seen) = mpsc::channel();
        Tasks::new().spawn("server", async move {
            // Every other look meets an old process, for longer than it takes to count as steady.
            for turn in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let is_old = turn < 8 && turn % 2 == 1;
                if is_old {
                    seen.send(Instant::now()).unwrap();
                }
                let _ = acceptors[usize::from(is_old)].accept(stream).await;
            }
        });
        wait_for(Some(&verify)).await.unwrap();
        let old_seen: Vec<Instant> = old_seen.try_iter().collect();
        assert_eq!(old_seen.len(), 4);
        assert!(old_seen[3].elapsed() >= STEADY_FOR);
    }

    #[tokio::test]
    async fn what_cannot_be_done_is_refused_before_anything_is_touched() {
        let host = Host::new();
        host.put("a.pem", "old cert", 0o644);
        let before = host.files();
        let elsewhere = |path| Plan {
            writes: vec![Write {
                path,
                bytes: b"x".to_vec().into(),
                mode: 0o644,
            }],
            ..Plan::default()
        };
        for plan in [
            host.plan("sh -c true", "true"),
            host.plan("true", "/bin/rm"),
            elsewhere(host.path("absent/a.pem")),
            elsewhere(host.path("")),
        ] {
            let error = host.deployer.apply(plan).await.unwrap_err();
            assert!(error.to_string().ends_with("; nothing was changed"), "{error}");
        }
        assert_eq!(host.files(), before);
        assert!(!host.journal());
    }

    #[tokio::test]
    async fn a_deployment_that_was_cut_off_anywhere_is_undone_at_the_next_start() {
        for steps in 0..6_usize {
            let host = Host::new();
            host.put("a.pem", "old cert", 0o640);
            host.put("a.key", "old key", 0o600);
            let before = host.files();
            let changes = changes(host.plan("true", "true").writes).unwrap();
            let files: Vec<_> = changes.iter().map(Change::entry).collect();
            let journal = Journal {
                files,
                validate: Argv::split("true"),
                reload: Argv::split("true"),
            };
            files::replace(&host.deployer.journal, &serde_json::to_vec(&journal).unwrap(), 0o600).unwrap();
            if steps > 0 {
                changes
                    .iter()
                    .for_each(|c| files::write_new(&c.new, &c.bytes, c.mode, c.owner).unwrap());
            }
            if steps > 1 {
                let existing = journal.files.iter().filter(|entry| entry.existed);
                existing.for_each(|entry| back_up(&entry.path, &entry.old()).unwrap());
            }
            changes
                .iter()
                .take(steps.saturating_sub(2))
                .for_each(|c| fs::rename(&c.new, &c.path).unwrap());
            host.deployer.recover().await.unwrap();
            assert_eq!(host.files(), before, "after {steps} steps");
            assert!(!host.journal());
            host.deployer.recover().await.unwrap();
        }
    }

    #[test]
    fn the_file_behind_a_link_is_replaced_and_a_key_is_never_wider_than_its_group() {
        let host = Host::new();
        host.put("real", "old", 0o644);
        std::os::unix::fs::symlink(host.path("real"), host.path("link")).unwrap();
        for (found, mode) in [
            (0o600, 0o600),
            (0o640, 0o640),
            (0o660, 0o640),
            (0o644, 0o600),
            (0o400, 0o600),
        ] {
            fs::set_permissions(host.path("real"), Permissions::from_mode(found)).unwrap();
            let write = Write {
                path: host.path("link"),
                bytes: b"new".to_vec().into(),
                mode: 0o600,
            };
            let change = change(write).unwrap().unwrap();
            let real = fs::canonicalize(host.path("real")).unwrap();
            assert_eq!((change.path, change.mode), (real, mode), "{found:o}");
        }
    }
}
