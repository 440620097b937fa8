//! Puts a certificate in its place: all of a plan comes into force and is seen being served, or the old files are back.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use certctl_model::key::KeyAlgorithm;
use certctl_runtime::failpoint;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::allowed::Allowed;
use crate::attributes::Attributes;
use crate::journal::{self, Entry, Journal, Journals, Places};
use crate::place::{Place, failed};
use crate::program::{self, Argv, Failure};
use crate::{placeholder, served};

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
    /// The kind of its key.
    pub key: KeyAlgorithm,
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
    Untouched(Failure),
    /// It failed later and was undone.
    #[error("{0}; the old files are back")]
    Restored(Failure),
    /// There were no files before, and the new ones stay: a server that needs them to start can be started.
    #[error("the files are written, but the server does not serve them yet: {0}")]
    Written(Failure),
    /// The files were right before, but the server does not take them.
    #[error("the files are in place, but the server does not serve them: {0}")]
    Unserved(Failure),
    /// It failed, and undoing failed as well. It is tried again every minute and when the agent starts.
    #[error("{cause}; the old files could not all be put back: {undo}")]
    Broken {
        /// Why the deployment failed.
        cause: Failure,
        /// Why undoing did.
        undo: String,
    },
}

impl DeployError {
    /// What the command that failed wrote; empty when there was none.
    pub fn output(&self) -> &str {
        let (Self::Untouched(failure)
        | Self::Restored(failure)
        | Self::Written(failure)
        | Self::Unserved(failure)
        | Self::Broken { cause: failure, .. }) = self;
        &failure.output
    }
}

/// Applies plans, one at a time.
#[derive(Debug)]
pub struct Deployer {
    journals: Arc<Journals>,
    allowed: Allowed,
    /// Held while a plan is applied.
    turn: tokio::sync::Mutex<()>,
    /// When journals that could not be carried out are tried again, and why they could not, by name.
    stuck: Mutex<Stuck>,
}

#[derive(Debug)]
struct Stuck {
    retry_at: Instant,
    reasons: BTreeMap<String, String>,
}

/// A server reloads on its own time; after this long it is not going to.
const VERIFY_FOR: Duration = Duration::from_secs(5);
/// A reload takes a few tens of milliseconds.
const VERIFY_EVERY: Duration = Duration::from_millis(25);
/// nginx lets its old processes accept beside the new ones for a tenth of a second, so one look does not tell.
const STEADY_FOR: Duration = Duration::from_millis(150);
/// How often a deployment that could not be undone is tried again.
const RETRY_UNDO: Duration = Duration::from_secs(60);

impl Deployer {
    /// Keeps its journals in `state_dir`.
    ///
    /// # Errors
    /// Another user can write to the directory.
    pub fn new(state_dir: &Path, allowed: Allowed) -> io::Result<Self> {
        Ok(Self {
            journals: Arc::new(Journals::open(state_dir)?),
            allowed,
            turn: tokio::sync::Mutex::default(),
            stuck: Mutex::new(Stuck {
                retry_at: Instant::now(),
                reasons: BTreeMap::new(),
            }),
        })
    }

    /// Undoes the deployments during which the agent died. One that cannot be undone is logged, and stays for the next
    /// attempt; it keeps no other from being undone.
    pub async fn recover(&self) {
        // Not while a plan is applied: its journal is no leftover.
        let _turn = self.turn.lock().await;
        let journals = self.journals.clone();
        let journals = match blocking(move || journals.all()).await {
            Ok(journals) => journals,
            Err(error) => return warn!("deployments that were cut off cannot be undone: {error}"),
        };
        self.stuck()
            .reasons
            .retain(|name, _| journals.iter().any(|(found, _)| found == name));
        for (name, journal) in journals {
            // Logged there.
            let _ = self.carry_out(name, journal).await;
        }
        self.stuck().retry_at = Instant::now() + RETRY_UNDO;
    }

    /// As [`Deployer::recover`], when there is something to try again and it is time.
    pub async fn retry(&self) {
        let due = {
            let stuck = self.stuck();
            !stuck.reasons.is_empty() && Instant::now() >= stuck.retry_at
        };
        if due {
            self.recover().await;
        }
    }

    /// Carries out a journal that was left behind, and has the server take the old files.
    async fn carry_out(&self, name: String, journal: Journal) -> Result<(), String> {
        let Journal {
            target,
            kept,
            validate,
            reload,
            ..
        } = journal.clone();
        if !kept {
            warn!("a deployment to target {target} was cut off; the old files are put back");
        }
        let (journals, own) = (self.journals.clone(), name.clone());
        let done = blocking(move || journals.carry_out(&own, journal, &Places::Found)).await;
        self.note(&name, &target, done.as_ref().err());
        done.map_err(|error| format!("an earlier deployment to target {target} could not be undone: {error}"))?;
        if !kept && let Err(error) = self.activate(validate.as_ref(), reload.as_ref()).await {
            warn!("the old files of target {target} are back, but could not be made active: {error}");
        }
        Ok(())
    }

    /// Keeps account of the journals that could not be carried out; logs a reason once.
    fn note(&self, name: &str, target: &str, error: Option<&io::Error>) {
        let mut stuck = self.stuck();
        match error.map(ToString::to_string) {
            None => {
                stuck.reasons.remove(name);
            }
            Some(why) => {
                let before = stuck.reasons.insert(name.to_owned(), why.clone());
                if before.as_ref() != Some(&why) {
                    warn!(
                        "the old files of target {target} could not be put back, the next attempt is in {RETRY_UNDO:?}: {why}"
                    );
                }
            }
        }
        metrics::gauge!("agent_unfinished_deployments").set(stuck.reasons.len() as f64);
    }

    fn stuck(&self) -> std::sync::MutexGuard<'_, Stuck> {
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies a plan when none of its files exist. False when one does.
    ///
    /// # Errors
    /// As for [`Deployer::apply`].
    pub async fn apply_first(&self, target: &str, plan: Plan) -> Result<bool, DeployError> {
        let _turn = self.turn.lock().await;
        if plan.writes.iter().any(|write| write.path.symlink_metadata().is_ok()) {
            return Ok(false);
        }
        self.apply_now(target, plan).await.map(|_| true)
    }

    /// Applies the plan of a target: writes beside, renames, validates, reloads, looks at what is served; undoes it all
    /// on failure.
    ///
    /// # Errors
    /// The text quotes the program that failed and says how the files were left.
    pub async fn apply(&self, target: &str, plan: Plan) -> Result<Applied, DeployError> {
        let _turn = self.turn.lock().await;
        self.apply_now(target, plan).await
    }

    async fn apply_now(&self, target: &str, plan: Plan) -> Result<Applied, DeployError> {
        let Plan {
            writes,
            validate,
            reload,
            verify,
        } = plan;
        for argv in [&validate, &reload].into_iter().flatten() {
            let program = self.allowed.commands.program(argv);
            program.map_err(|error| DeployError::Untouched(error.into()))?;
        }
        for write in &writes {
            let checked = self.allowed.directories.check(&write.path);
            checked.map_err(|error| DeployError::Untouched(error.into()))?;
        }
        let untouched = |error: io::Error| DeployError::Untouched(error.to_string().into());
        let directories = self.allowed.directories.clone();
        let resolved = move || {
            let placed = resolve(writes)?;
            for Placed { place, .. } in &placed {
                directories.check_resolved(&place.path()).map_err(io::Error::other)?;
                must_be_key_material(place)?;
            }
            Ok(placed)
        };
        let placed = blocking(resolved).await.map_err(untouched)?;
        let way = self.make_way(&placed).await;
        way.map_err(|error| DeployError::Untouched(error.into()))?;
        let files = placed.len();
        let (changes, had_placeholder) = blocking(move || {
            let had_placeholder = placed.iter().any(Placed::is_placeholder);
            Ok((changes(placed)?, had_placeholder))
        })
        .await
        .map_err(untouched)?;
        if changes.is_empty() {
            let active = self.confirm(validate.as_ref(), reload.as_ref(), verify.as_ref()).await;
            return active.map(|()| Applied::Unchanged).map_err(DeployError::Unserved);
        }
        let is_new = changes.len() == files && changes.iter().all(|change| change.attributes.is_none());
        let is_first = is_new || had_placeholder;
        let name = Journals::new_name().map_err(untouched)?;
        let journal = Journal {
            target: target.to_owned(),
            kept: false,
            files: changes.iter().map(Change::entry).collect(),
            validate,
            reload,
        };
        let (journals, written) = (self.journals.clone(), (name.clone(), journal.clone()));
        let (placed, places) = blocking(move || {
            let placed = put(&journals, &written.0, &written.1, &changes);
            let places = changes.into_iter().map(|change| change.place).collect::<Vec<_>>();
            Ok((placed, places))
        })
        .await
        .map_err(untouched)?;
        let begun = Begun { name, journal, places };
        failpoint::hold("agent.deploy_renamed").await;

        let journal = &begun.journal;
        let mut reloaded = false;
        let is_placed = placed.is_ok();
        let active = match placed {
            Err(error) => Err(Failure::from(error.to_string())),
            Ok(()) => match self.run(journal.validate.as_ref()).await {
                Err(error) => Err(error),
                Ok(()) => {
                    reloaded = true;
                    match self.run(journal.reload.as_ref()).await {
                        Err(error) => Err(error),
                        Ok(()) => wait_for(verify.as_ref()).await.map_err(Failure::from),
                    }
                }
            },
        };
        match active {
            Ok(()) => self.keep(begun).await.map(|()| Applied::Changed),
            // Without them a server that was never started before could not be started now, and where several targets
            // are new each would wait for the files of the others.
            Err(cause) if is_first && is_placed => {
                self.keep(begun).await?;
                Err(DeployError::Written(cause))
            }
            Err(cause) => Err(self.give_back(begun, cause, reloaded).await),
        }
    }

    /// Undoes earlier deployments to the same files: the only copies of the old ones are beside them.
    async fn make_way(&self, placed: &[Placed]) -> Result<(), String> {
        let journals = self.journals.clone();
        let earlier = blocking(move || journals.all())
            .await
            .map_err(|error| error.to_string())?;
        let paths: Vec<_> = placed.iter().map(|placed| placed.place.path()).collect();
        for (name, journal) in earlier {
            if journal.files.iter().any(|entry| paths.contains(&entry.path)) {
                self.carry_out(name, journal).await?;
            }
        }
        Ok(())
    }

    /// The files are right already; makes sure that they are what is served.
    async fn confirm(
        &self,
        validate: Option<&Argv>,
        reload: Option<&Argv>,
        verify: Option<&Verify>,
    ) -> Result<(), Failure> {
        if let Some(verify) = verify
            && look(verify).await.is_ok()
        {
            return Ok(());
        }
        self.activate(validate, reload).await?;
        Ok(wait_for(verify).await?)
    }

    async fn activate(&self, validate: Option<&Argv>, reload: Option<&Argv>) -> Result<(), Failure> {
        self.run(validate).await?;
        self.run(reload).await
    }

    async fn run(&self, argv: Option<&Argv>) -> Result<(), Failure> {
        match argv {
            Some(argv) => program::run(&self.allowed.commands, argv).await,
            None => Ok(()),
        }
    }

    /// The new files stay: from the moment the journal says so, nothing undoes them.
    async fn keep(&self, begun: Begun) -> Result<(), DeployError> {
        let (journals, name) = (self.journals.clone(), begun.name.clone());
        let kept = Journal {
            kept: true,
            ..begun.journal.clone()
        };
        let written = {
            let kept = kept.clone();
            blocking(move || journals.write(&name, &kept)).await
        };
        if let Err(error) = written {
            return Err(self.give_back(begun, error.to_string().into(), true).await);
        }
        let (journals, target) = (self.journals.clone(), kept.target.clone());
        let Begun { name, places, .. } = begun;
        let tidied = {
            let name = name.clone();
            blocking(move || journals.carry_out(&name, kept, &Places::Held(&places))).await
        };
        // What stays is removed later, with the journal.
        self.note(&name, &target, tidied.as_ref().err());
        Ok(())
    }

    async fn give_back(&self, begun: Begun, cause: Failure, reloaded: bool) -> DeployError {
        let Begun { name, journal, places } = begun;
        let Journal {
            target,
            validate,
            reload,
            ..
        } = journal.clone();
        let journals = self.journals.clone();
        let undone = {
            let name = name.clone();
            blocking(move || journals.carry_out(&name, journal, &Places::Held(&places))).await
        };
        self.note(&name, &target, undone.as_ref().err());
        if let Err(undo) = undone {
            return DeployError::Broken {
                cause,
                undo: undo.to_string(),
            };
        }
        info!("the old files of target {target} are back");
        // A server that was not asked to reload still serves the old certificate.
        match reloaded {
            true => match self.activate(validate.as_ref(), reload.as_ref()).await {
                Ok(()) => DeployError::Restored(cause),
                Err(error) => DeployError::Restored(Failure {
                    cause: format!("{cause}; reloading the old files failed as well: {error}"),
                    output: cause.output,
                }),
            },
            false => DeployError::Restored(cause),
        }
    }
}

/// A deployment whose journal is written.
struct Begun {
    name: String,
    journal: Journal,
    places: Vec<Place>,
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
        key,
    } = verify;
    let served = served::fingerprint(address, server_name, *key).await?;
    match served == *fingerprint {
        true => Ok(()),
        false => Err(format!(
            "{address} serves the certificate {served} for \"{server_name}\", not the new one, {fingerprint}"
        )),
    }
}

/// A write whose place was found.
struct Placed {
    place: Place,
    bytes: Zeroizing<Vec<u8>>,
    mode: u32,
}

impl Placed {
    fn is_placeholder(&self) -> bool {
        const MOST_OCTETS: u64 = 16 * 1024;
        let content = self.place.read(self.place.name(), MOST_OCTETS);
        content
            .ok()
            .flatten()
            .is_some_and(|content| placeholder::is_one(&Zeroizing::new(content)))
    }
}

/// A file that is not yet as the plan wants it.
struct Change {
    place: Place,
    new: OsString,
    bytes: Zeroizing<Vec<u8>>,
    mode: u32,
    /// Those of the old file, as far as the new one may have them.
    attributes: Option<Attributes>,
}

impl Change {
    fn entry(&self) -> Entry {
        Entry {
            path: self.place.path(),
            new: self.place.path_of(&self.new),
            existed: self.attributes.is_some(),
            sha256: Some(journal::sha256_hex(&self.bytes)),
        }
    }
}

/// Finds the places of all writes, which must be different files.
fn resolve(writes: Vec<Write>) -> io::Result<Vec<Placed>> {
    let mut placed: Vec<Placed> = Vec::with_capacity(writes.len());
    for Write { path, bytes, mode } in writes {
        let place = Place::resolve(&path)?;
        if let Some(other) = placed.iter().find(|other| other.place.is(&place)) {
            let text = format!(
                "{} and another path of the target lead to the same file",
                path.display()
            );
            return Err(failed("use", &other.place.path(), io::Error::other(text)));
        }
        placed.push(Placed { place, bytes, mode });
    }
    Ok(placed)
}

/// Refuses to write over what is neither a certificate nor a key, such as a configuration file or a script that another
/// program would run: by its name, or by its content.
fn must_be_key_material(place: &Place) -> io::Result<()> {
    const EXTENSIONS: [&str; 8] = ["pem", "crt", "cer", "cert", "key", "chain", "ca", "bundle"];
    // As much as a certificate with its chain, or comments before it, can have.
    const MOST: u64 = 1 << 20;
    let extension = Path::new(place.name()).extension().map(OsStr::to_ascii_lowercase);
    if extension
        .as_ref()
        .is_some_and(|found| EXTENSIONS.iter().any(|one| found == *one))
    {
        return Ok(());
    }
    let right = match place.read(place.name(), MOST)?.map(Zeroizing::new) {
        Some(content) => content.is_empty() || content.windows(11).any(|octets| octets == b"-----BEGIN "),
        None => extension.is_none(),
    };
    match right {
        true => Ok(()),
        false => Err(failed(
            "replace",
            &place.path(),
            io::Error::other(format!(
                "it is no certificate or key; a target's files hold PEM, or have a name that ends in one of .{}",
                EXTENSIONS.join(", .")
            )),
        )),
    }
}

/// Compares the writes with what is there, and leaves out what is right already.
fn changes(placed: Vec<Placed>) -> io::Result<Vec<Change>> {
    let changes = placed.into_iter().map(change).collect::<io::Result<Vec<_>>>()?;
    Ok(changes.into_iter().flatten().collect())
}

fn change(Placed { place, bytes, mode }: Placed) -> io::Result<Option<Change>> {
    let about = |error| failed("read the attributes of", &place.path(), error);
    let mut attributes = None;
    if let Some(file) = place.open(place.name())? {
        let metadata = file.metadata().map_err(about)?;
        let found = Attributes::of(&file, &metadata).map_err(about)?;
        let wanted = match mode & 0o077 {
            0 => found.clone().secret(),
            _ => found.clone(),
        };
        if found == wanted
            && metadata.len() == bytes.len() as u64
            && let Some(content) = place.read(place.name(), metadata.len())?.map(Zeroizing::new)
            && *content == *bytes
        {
            return Ok(None);
        }
        attributes = Some(wanted);
    }
    Ok(Some(Change {
        new: journal::new_name(&place)?,
        place,
        bytes,
        mode,
        attributes,
    }))
}

/// Writes the journal, then all files beside, then moves all into place.
fn put(journals: &Journals, name: &str, journal: &Journal, changes: &[Change]) -> io::Result<()> {
    // A backup of an earlier deployment must not be taken for one of this.
    changes
        .iter()
        .try_for_each(|change| journal::remove_backups(&change.place))?;
    journals.write(name, journal)?;
    for change in changes {
        journal::write_new(&change.place, &change.new, &change.bytes, |file| {
            match &change.attributes {
                Some(attributes) => attributes.apply(file),
                None => file.set_permissions(Permissions::from_mode(change.mode)),
            }
        })?;
    }
    let replaced = changes.iter().filter(|change| change.attributes.is_some());
    replaced
        .clone()
        .try_for_each(|change| journal::back_up(&change.place))?;
    changes.iter().try_for_each(|change| change.place.sync())?;
    for change in changes {
        let (new, name) = (&change.new, change.place.name());
        match change.attributes {
            Some(_) => change.place.rename(new, name)?,
            // A file that has appeared meanwhile is not ours to replace.
            None => change.place.rename_new(new, name)?,
        }
    }
    changes.iter().try_for_each(|change| change.place.sync())
}

/// Runs file work off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
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
            let deployer = deployer(dir.path());
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
            !self.deployer.journals.all().unwrap().is_empty()
        }

        /// Changes for the plan, as they are found now.
        fn changes(&self) -> Vec<Change> {
            changes(resolve(self.plan("true", "true").writes).unwrap()).unwrap()
        }

        async fn apply(&self, plan: Plan) -> Result<Applied, DeployError> {
            self.deployer.apply("t-1", plan).await
        }
    }

    fn deployer(dir: &Path) -> Deployer {
        let tls = dir.join("tls");
        let allowed = Allowed {
            commands: format!("true; false; test -s {}/b.pem", tls.display()).parse().unwrap(),
            directories: dir.display().to_string().parse().unwrap(),
        };
        Deployer::new(&dir.join("state"), allowed).unwrap()
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
        assert_eq!(host.apply(host.plan(&validate, "true")).await, Ok(Applied::Changed));
        let expected = [
            file("a.key", "new key", 0o600),
            file("a.pem", "new cert", 0o640),
            file("b.pem", "chain", 0o644),
        ];
        assert_eq!(host.files(), expected);
        assert_eq!(host.apply(host.plan("true", "true")).await, Ok(Applied::Unchanged));
        assert_eq!(host.files(), expected);
        assert!(!host.journal());
    }

    #[tokio::test]
    async fn a_failure_puts_every_old_file_back_and_removes_the_others() {
        for (validate, reload, cause) in [
            (
                "false",
                "true",
                "\"false\" failed (exit status: 1); the old files are back",
            ),
            (
                "true",
                "false",
                "\"false\" failed (exit status: 1); reloading the old files failed as well",
            ),
        ] {
            let host = Host::new();
            host.put("a.pem", "old cert", 0o644);
            host.put("a.key", "old key", 0o640);
            let before = (host.files(), fs::metadata(host.path("a.pem")).unwrap().ino());
            let error = host.apply(host.plan(validate, reload)).await.unwrap_err();
            assert!(
                matches!(&error, DeployError::Restored(_)) && error.to_string().starts_with(cause),
                "{error}"
            );
            assert_eq!((host.files(), fs::metadata(host.path("a.pem")).unwrap().ino()), before);
            assert!(!host.journal());
        }
    }

    #[tokio::test]
    async fn where_no_file_was_before_the_new_ones_stay_until_the_server_takes_them() {
        let host = Host::new();
        let error = host.apply(host.plan("true", "false")).await.unwrap_err();
        assert!(matches!(error, DeployError::Written(_)), "{error}");
        assert_eq!(host.files().len(), 3);
        assert!(!host.journal());
        let error = host.apply(host.plan("true", "false")).await.unwrap_err();
        assert!(matches!(error, DeployError::Unserved(_)), "{error}");
        let taken = host.apply(host.plan("true", "true")).await;
        assert_eq!(taken, Ok(Applied::Unchanged));
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
            key: KeyAlgorithm::Ecdsa,
        });
        let error = host
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
            key: KeyAlgorithm::Ecdsa,
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
            elsewhere(host.path(".")),
            elsewhere("/etc/cron.d/x".into()),
            elsewhere(host.path("../../outside.pem")),
        ] {
            let error = host.apply(plan).await.unwrap_err();
            assert!(error.to_string().ends_with("; nothing was changed"), "{error}");
        }
        assert_eq!(host.files(), before);
        assert!(!host.journal());
    }

    #[tokio::test]
    async fn a_deployment_that_was_cut_off_anywhere_is_undone_at_the_next_start() {
        // Also by a journal as earlier agents wrote it: one file, without digests.
        for earlier in [false, true] {
            for steps in 0..7_usize {
                let host = Host::new();
                host.put("a.pem", "old cert", 0o640);
                host.put("a.key", "old key", 0o600);
                let before = host.files();
                let changes = host.changes();
                let mut journal = Journal {
                    target: "t-1".into(),
                    kept: false,
                    files: changes.iter().map(Change::entry).collect(),
                    validate: Argv::split("true"),
                    reload: Argv::split("true"),
                };
                let journals = &host.deployer.journals;
                if earlier {
                    journal.files.iter_mut().for_each(|entry| entry.sha256 = None);
                }
                let name = if earlier { "deployment.json" } else { "1.json" };
                journals.write(name, &journal).unwrap();
                for change in changes.iter().take(if steps > 0 { 3 } else { 0 }) {
                    journal::write_new(&change.place, &change.new, &change.bytes, |_| Ok(())).unwrap();
                }
                for change in changes.iter().filter(|change| steps > 1 && change.attributes.is_some()) {
                    journal::back_up(&change.place).unwrap();
                }
                for change in changes.iter().take(steps.saturating_sub(2)) {
                    change.place.rename(&change.new, change.place.name()).unwrap();
                }
                if steps == 6 {
                    // Cut off again while it was undone.
                    let mut first = journal.clone();
                    first.files.truncate(1);
                    journals.carry_out("2.json", first, &Places::Found).unwrap();
                }
                host.deployer.recover().await;
                assert_eq!(host.files(), before, "after {steps} steps, {earlier}");
                assert!(!host.journal());
                host.deployer.recover().await;
            }
        }
    }

    #[tokio::test]
    async fn a_deployment_that_succeeded_is_not_undone_and_its_backups_are_removed_later() {
        let host = Host::new();
        host.put("a.key", "old key", 0o600);
        let changes = host.changes();
        let journal = Journal {
            target: "t-1".into(),
            kept: true,
            files: changes.iter().map(Change::entry).collect(),
            validate: Argv::split("false"),
            reload: None,
        };
        put(&host.deployer.journals, "1.json", &journal, &changes).unwrap();
        assert!(
            host.files()
                .iter()
                .any(|(name, text, _)| name == "a.key.certctl-old" && text == "old key")
        );
        host.deployer.recover().await;
        let expected = [
            file("a.key", "new key", 0o600),
            file("a.pem", "new cert", 0o644),
            file("b.pem", "chain", 0o644),
        ];
        assert_eq!(host.files(), expected);
        assert!(!host.journal());
    }

    #[tokio::test]
    async fn what_an_operator_repaired_is_left_alone_by_a_later_undo() {
        let host = Host::new();
        host.put("a.pem", "old cert", 0o640);
        let changes = host.changes();
        let journal = Journal {
            target: "t-1".into(),
            kept: false,
            files: changes.iter().map(Change::entry).collect(),
            validate: None,
            reload: None,
        };
        put(&host.deployer.journals, "1.json", &journal, &changes).unwrap();
        fs::remove_file(host.path("a.pem")).unwrap();
        host.put("a.pem", "repaired", 0o600);
        host.put("a.key", "repaired key", 0o600);
        host.deployer.recover().await;
        assert_eq!(
            host.files(),
            [file("a.key", "repaired key", 0o600), file("a.pem", "repaired", 0o600)]
        );
    }

    #[tokio::test]
    async fn a_target_that_is_stuck_keeps_no_other_from_being_served_and_is_undone_after_repair() {
        let host = Host::new();
        host.put("a.pem", "old cert", 0o640);
        host.put("a.key", "old key", 0o600);
        let before = host.files();
        let changes = host.changes();
        let journal = Journal {
            target: "t-1".into(),
            kept: false,
            files: changes.iter().map(Change::entry).collect(),
            validate: None,
            reload: None,
        };
        put(&host.deployer.journals, "1.json", &journal, &changes).unwrap();
        // A directory in the place of the backup: the old certificate cannot be put back.
        let old = host.path("a.pem.certctl-old");
        fs::rename(&old, host.path("aside")).unwrap();
        fs::create_dir(&old).unwrap();

        let deployer = deployer(host.dir.path());
        deployer.recover().await;
        assert_eq!(deployer.stuck().reasons.len(), 1);
        // The others of the same target are back, and no copy of a key is left.
        assert_eq!(fs::read_to_string(host.path("a.key")).unwrap(), "old key");
        assert!(!host.path("b.pem").exists() && !host.path("a.key.certctl-old").exists());
        let error = deployer.apply("t-1", host.plan("true", "true")).await.unwrap_err();
        assert!(
            error
                .to_string()
                .contains("an earlier deployment to target t-1 could not be undone"),
            "{error}"
        );
        assert!(error.to_string().contains("a.pem.certctl-old"), "{error}");
        let elsewhere = host.dir.path().join("elsewhere.pem");
        let other = Plan {
            writes: vec![Write {
                path: elsewhere.clone(),
                bytes: b"x".to_vec().into(),
                mode: 0o644,
            }],
            ..Plan::default()
        };
        assert_eq!(deployer.apply("t-2", other).await, Ok(Applied::Changed));
        assert!(elsewhere.exists());

        fs::remove_dir(&old).unwrap();
        fs::rename(host.path("aside"), &old).unwrap();
        deployer.recover().await;
        assert_eq!((deployer.stuck().reasons.len(), host.files()), (0, before));
        assert_eq!(
            deployer.apply("t-1", host.plan("true", "true")).await,
            Ok(Applied::Changed)
        );
    }

    #[tokio::test]
    async fn a_file_that_appears_meanwhile_is_not_replaced() {
        let host = Host::new();
        let changes = host.changes();
        host.put("a.key", "of another program", 0o600);
        let journal = Journal {
            target: "t-1".into(),
            kept: false,
            files: changes.iter().map(Change::entry).collect(),
            validate: None,
            reload: None,
        };
        let error = put(&host.deployer.journals, "1.json", &journal, &changes).unwrap_err();
        assert!(error.to_string().contains("a.key: File exists"), "{error}");
        host.deployer.recover().await;
        assert_eq!(host.files(), [file("a.key", "of another program", 0o600)]);
    }

    #[tokio::test]
    async fn two_paths_that_lead_to_one_file_are_refused() {
        let host = Host::new();
        host.put("a.pem", "old", 0o644);
        std::os::unix::fs::symlink("a.pem", host.path("b.pem")).unwrap();
        let error = host.apply(host.plan("true", "true")).await.unwrap_err();
        assert!(error.to_string().contains("lead to the same file"), "{error}");
        assert_eq!(fs::read_to_string(host.path("a.pem")).unwrap(), "old");
    }
}
