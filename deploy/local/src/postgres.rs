//! A private Postgres cluster made by the installed binaries, on a port of the loopback address.
//!
//! There is no Unix socket and nothing is trusted: the one superuser has a generated password.

use std::fs;
use std::os::unix::fs::{MetadataExt, lchown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use aws_lc_rs::digest;
use certctl_runtime::private::PrivateDir;
use rustix::process::{Signal, geteuid};
use tokio::time::{Instant, sleep};

use crate::files;
use crate::ports::Ports;
use crate::process::{self, Leftover, PATH, Service, Spec, User};

const SUPERUSER: &str = "certctl";
/// Where clusters are whose directory the server's user cannot reach. Not the directory of installed services, which is
/// closed to other users.
const ELSEWHERE: &str = "/var/lib/certctl-local";
/// Holds the password while a cluster is made.
const PASSWORD: &str = "initdb-password";

/// Recovery after a crash reads the log of a busy minute or two.
const START_TIMEOUT: Duration = Duration::from_secs(120);
const STOP_GRACE: Duration = Duration::from_secs(30);

/// A running cluster.
pub struct Cluster {
    bin: PathBuf,
    root: PathBuf,
    port: u16,
    password: String,
    server: Service,
    scratch: bool,
}

impl Cluster {
    /// Starts the cluster of `dir`, making it first if there is none.
    ///
    /// Its data are in `<dir>/postgres`. Postgres does not run as root; for root the user `postgres` runs it, and where
    /// that user cannot reach `dir`, the data are in `/var/lib/certctl-local/<hash of dir>` ([`Cluster::root`] says
    /// which).
    /// Without a `port` a free one is taken and remembered.
    ///
    /// # Errors
    ///
    /// Postgres is not installed, does not start (with the end of its log), or its password is lost.
    pub async fn start(dir: &Path, port: Option<u16>) -> anyhow::Result<Self> {
        Self::open(dir, port, false, Path::new(ELSEWHERE)).await
    }

    /// Starts a cluster for tests: quick instead of durable, and its data are removed when it is dropped.
    ///
    /// # Errors
    ///
    /// As [`Cluster::start`].
    pub async fn scratch(dir: &Path) -> anyhow::Result<Self> {
        Self::open(dir, None, true, Path::new(ELSEWHERE)).await
    }

    async fn open(dir: &Path, port: Option<u16>, scratch: bool, elsewhere: &Path) -> anyhow::Result<Self> {
        let home = PrivateDir::existing(dir)?.with_context(|| format!("there is no directory {}", dir.display()))?;
        let dir = home.path().to_owned();
        let user = server_user()?;
        let root = root_for(&dir, user, elsewhere);
        let data = root.join("data");
        let port = match port {
            Some(port) => port,
            None => Ports::open(&dir.join("postgres-port.json"))?.take("postgres", None)?,
        };
        let password_file = dir.join("postgres-password");
        ensure!(
            password_file.exists() || !data.exists(),
            "{} is lost, the password of the cluster in {}; put it back, or remove both to begin anew",
            password_file.display(),
            data.display()
        );
        let password = files::secret(&password_file)?;
        let version = fs::read_to_string(data.join("PG_VERSION")).ok();
        let bin = binaries(version.as_deref().map(str::trim_end))?;
        if !data.exists() {
            initialise(&bin, &root, user, &password, scratch)
                .with_context(|| format!("cannot make a cluster in {}", root.display()))?;
        }
        end_stale_server(&bin, &data).await?;

        let durability = if scratch { "off" } else { "on" };
        let settings = [
            format!("port={port}"),
            "listen_addresses=127.0.0.1".to_owned(),
            "unix_socket_directories=".to_owned(),
            "max_connections=200".to_owned(),
            "timezone=UTC".to_owned(),
            "log_timezone=UTC".to_owned(),
            "logging_collector=off".to_owned(),
            format!("fsync={durability}"),
            format!("full_page_writes={durability}"),
        ];
        let spec = Spec::new("postgres", &bin.join("postgres"), &dir)
            .args(["-D".as_ref(), data.as_os_str()])
            .args(settings.iter().flat_map(|setting| ["-c", setting]))
            // On SIGTERM it would wait for its clients to go.
            .stopped_by_interrupt()
            .user(user);
        let server = Service::spawn(spec)?;
        let mut cluster = Self {
            bin,
            root,
            port,
            password,
            server,
            scratch,
        };
        cluster.wait_ready().await?;
        Ok(cluster)
    }

    /// The URL of a database, for the superuser.
    pub fn url(&self, database: &str) -> String {
        let Self { port, password, .. } = self;
        format!("postgres://{SUPERUSER}:{password}@127.0.0.1:{port}/{database}?sslmode=disable")
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of its data.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Creates a database unless it exists.
    ///
    /// # Errors
    ///
    /// The name is not of lower-case letters, digits and underscores, or Postgres refuses.
    pub fn create_database(&self, name: &str) -> anyhow::Result<()> {
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        ensure!(
            !name.is_empty() && name.chars().all(is_plain),
            "{name:?} is no database name"
        );
        let exists = self.psql(&format!("SELECT 1 FROM pg_database WHERE datname = '{name}'"))?;
        if exists.trim().is_empty() {
            self.psql(&format!("CREATE DATABASE {name}"))?;
        }
        Ok(())
    }

    fn psql(&self, statement: &str) -> anyhow::Result<String> {
        let mut psql = Command::new(self.bin.join("psql"));
        psql.args([
            "-X",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            "127.0.0.1",
            "-U",
            SUPERUSER,
        ])
        .args(["-p", &self.port.to_string(), "-d", "postgres", "-c", statement])
        .env_clear()
        .env("PATH", PATH)
        .env("PGPASSWORD", &self.password)
        .env("PGCONNECT_TIMEOUT", "10")
        .stdin(Stdio::null());
        output_of(psql, "psql")
    }

    /// Whether the server runs now.
    pub fn is_running(&mut self) -> bool {
        self.server.is_running()
    }

    /// The process id of the server while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// Kills the server with SIGKILL, as a crash would. Its backends notice and end a moment later.
    pub fn kill9(&mut self) {
        self.server.kill9();
    }

    /// Stops the server: connections are closed, everything is on disk.
    pub async fn stop(&mut self) {
        self.server.terminate(STOP_GRACE).await;
    }

    /// Starts a server that was killed or stopped again, and waits until it answers.
    ///
    /// # Errors
    ///
    /// It does not start; the error has the end of its log.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.server.restart()?;
        self.wait_ready().await
    }

    /// After a crash the backends of the killed server hold its shared memory for a moment, and a new one refuses to
    /// start until they are gone; its lock file tells a crash from a mistake.
    async fn wait_ready(&mut self) -> anyhow::Result<()> {
        const RETRY_FOR: Duration = Duration::from_secs(30);
        const PAUSE: Duration = Duration::from_millis(50);
        let started = Instant::now();
        let lock = self.root.join("data/postmaster.pid");
        while !self.answers() {
            if !self.server.is_running() {
                if !lock.exists() || started.elapsed() > RETRY_FOR {
                    return Err(self.server.failure("did not start"));
                }
                self.server.start()?;
            }
            if started.elapsed() > START_TIMEOUT {
                return Err(self.server.failure("does not answer"));
            }
            sleep(PAUSE).await;
        }
        Ok(())
    }

    fn answers(&self) -> bool {
        let ready = Command::new(self.bin.join("pg_isready"))
            .args(["-q", "-t", "2", "-h", "127.0.0.1", "-p", &self.port.to_string()])
            .env_clear()
            .stdin(Stdio::null())
            .status();
        ready.is_ok_and(|status| status.success())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.server.kill9();
        if self.scratch {
            // Backends may write for another moment.
            let gone = (0..50).any(|_| match fs::remove_dir_all(&self.root) {
                Ok(()) => true,
                Err(_) if !self.root.exists() => true,
                Err(_) => {
                    std::thread::sleep(Duration::from_millis(20));
                    false
                }
            });
            if !gone {
                eprintln!("{} could not be removed", self.root.display());
            }
        }
    }
}

/// The user that runs the server: ourselves, unless we are root.
///
/// # Errors
///
/// We are root, and there is no user postgres.
pub fn server_user() -> anyhow::Result<Option<User>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let passwd = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    match user_in(&passwd, "postgres") {
        Some(user) => Ok(Some(user)),
        None => bail!("Postgres does not run as root, and there is no user postgres; install the package postgresql"),
    }
}

fn user_in(passwd: &str, name: &str) -> Option<User> {
    let fields = |line: &str| -> Option<User> {
        let mut fields = line.split(':');
        (fields.next()? == name).then_some(())?;
        let mut number = |skip| fields.nth(skip)?.parse().ok();
        Some(User {
            uid: number(1)?,
            gid: number(0)?,
        })
    };
    passwd.lines().find_map(fields)
}

/// Where the data of the cluster of `dir` are: in it, or below `elsewhere` when the server's user cannot reach it.
fn root_for(dir: &Path, user: Option<User>, elsewhere: &Path) -> PathBuf {
    match user {
        Some(user) if !reaches(dir, user) => {
            let hash = digest::digest(&digest::SHA256, dir.as_os_str().as_encoded_bytes());
            let name = &hex::encode(hash)[..16];
            // Where earlier versions put them, as long as nothing was installed there.
            let earlier = Path::new("/var/lib/certctl").join(name);
            match earlier.join("data").exists() && reaches(&earlier, user) {
                true => earlier,
                false => elsewhere.join(name),
            }
        }
        _ => dir.join("postgres"),
    }
}

fn reaches(dir: &Path, user: User) -> bool {
    dir.ancestors().all(|dir| may_traverse(dir, user))
}

fn may_traverse(dir: &Path, user: User) -> bool {
    let Ok(found) = fs::metadata(dir) else { return false };
    let bit = match found {
        _ if found.uid() == user.uid => 0o100,
        _ if found.gid() == user.gid => 0o010,
        _ => 0o001,
    };
    found.mode() & bit != 0
}

/// The directory of the binaries: of the version that made the data, else of the newest one, else where `PATH` has them.
fn binaries(version: Option<&str>) -> anyhow::Result<PathBuf> {
    let debian = Path::new("/usr/lib/postgresql");
    let installed = fs::read_dir(debian).into_iter().flatten().flatten();
    let newest = installed
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .map(|version| version.to_string())
        .filter(|found| version.is_none_or(|version| version == found))
        .filter(|found| debian.join(found).join("bin/postgres").is_file())
        .max_by_key(|version| version.parse::<u32>().unwrap_or_default());
    if let Some(newest) = newest {
        return Ok(debian.join(newest).join("bin"));
    }
    if let Some(dir) = process::find("postgres").and_then(|path| Some(path.parent()?.to_owned())) {
        return Ok(dir);
    }
    match version {
        Some(version) => bail!("the data were made by Postgres {version}, which is not installed any more"),
        None => bail!("Postgres is not installed: apt-get install postgresql"),
    }
}

/// Makes the cluster beside and renames it, so that a directory `data` is always whole.
fn initialise(bin: &Path, root: &Path, user: Option<User>, password: &str, scratch: bool) -> anyhow::Result<()> {
    // Ours alone, and open to the server's user, who gets a directory of its own in it.
    let parent = files::directory(root.parent().context("a cluster is in a directory")?, 0o711)?;
    match fs::symlink_metadata(root) {
        Ok(found) if user.is_some_and(|user| found.is_dir() && found.uid() == user.uid) => {}
        _ => drop(files::directory(root, 0o700)?),
    }
    let beside = root.join("data.new");
    if beside.exists() {
        fs::remove_dir_all(&beside).with_context(|| format!("cannot remove {}", beside.display()))?;
    }
    // initdb runs as the server's user and takes the password from a file only. It is not in the directory of that user,
    // who could put a link there.
    let password_file = parent.path().join(PASSWORD);
    parent.write(PASSWORD, 0o600, password.as_bytes())?;
    if let Some(user) = user {
        for path in [root, &password_file] {
            lchown(path, Some(user.uid), Some(user.gid))
                .with_context(|| format!("cannot give {} to the server's user", path.display()))?;
        }
    }
    let mut initdb = Command::new(bin.join("initdb"));
    initdb
        .args([
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            // The same order, by octets instead of by the system's library.
            "--lc-collate=C",
            "--auth=scram-sha-256",
            "-U",
            SUPERUSER,
        ])
        .args(["-D".as_ref(), beside.as_os_str()])
        .arg(format!("--pwfile={}", password_file.display()))
        .args(scratch.then_some("--no-sync"))
        .env_clear()
        .env("PATH", PATH)
        .current_dir("/")
        .stdin(Stdio::null());
    if let Some(user) = user {
        initdb.uid(user.uid).gid(user.gid);
    }
    let made = output_of(initdb, "initdb");
    let _ = parent.remove(PASSWORD);
    made?;
    fs::rename(&beside, root.join("data")).context("cannot move the new cluster into place")
}

/// Ends a server that still runs on the data, and removes a lock file whose process is gone or is another program:
/// Postgres itself cannot tell a reused process id of the same user from a running server.
async fn end_stale_server(bin: &Path, data: &Path) -> anyhow::Result<()> {
    let lock = data.join("postmaster.pid");
    let Ok(text) = fs::read_to_string(&lock) else {
        return Ok(());
    };
    let Some(pid) = text.lines().next().and_then(|line| line.trim().parse::<u32>().ok()) else {
        return Ok(());
    };
    let works_on_the_data = fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data);
    match Leftover::of(pid, &bin.join("postgres"), Signal::INT) {
        Some(server) if works_on_the_data => server.end().await,
        _ if Path::new(&format!("/proc/{pid}")).exists() => {
            fs::remove_file(&lock).with_context(|| format!("cannot remove {}", lock.display()))?;
        }
        _ => {}
    }
    Ok(())
}

fn output_of(mut command: Command, name: &str) -> anyhow::Result<String> {
    let Output { status, stdout, stderr } = command.output().with_context(|| format!("cannot run {name}"))?;
    ensure!(
        status.success(),
        "{name} failed: {}",
        String::from_utf8_lossy(&stderr).trim_end()
    );
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_user_is_found_by_the_whole_name() {
        let passwd =
            "root:x:0:0:root:/root:/bin/bash\npostgres2:x:1:2::/:/bin/sh\npostgres:x:101:104:,,,:/var:/bin/sh\n";
        assert_eq!(user_in(passwd, "postgres"), Some(User { uid: 101, gid: 104 }));
        assert_eq!(user_in(passwd, "absent"), None);
    }

    #[tokio::test]
    async fn a_cluster_keeps_its_data_over_stop_crash_and_a_second_start() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o711)).unwrap();
        let mut cluster = Cluster::start(dir.path(), None).await.unwrap();
        assert!(cluster.root().starts_with(dir.path()));
        cluster.create_database("story").unwrap();
        cluster.create_database("story").unwrap();
        assert!(cluster.create_database("a b").is_err());
        cluster.psql("CREATE TABLE kept AS SELECT 7 AS value").unwrap();
        let mode = fs::metadata(dir.path().join("postgres-password"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);

        let first = cluster.pid();
        cluster.kill9();
        assert!(!cluster.is_running());
        cluster.restart().await.unwrap();
        assert_ne!(cluster.pid(), first);
        assert_eq!(cluster.psql("SELECT value FROM kept").unwrap(), "7\n");

        // A crash of ours: the next start finds the lock file of a killed server.
        let port = cluster.port();
        drop(cluster);
        let mut cluster = Cluster::start(dir.path(), None).await.unwrap();
        assert_eq!(cluster.port(), port);
        assert_eq!(cluster.psql("SELECT value FROM kept").unwrap(), "7\n");
        cluster.stop().await;
        assert!(!dir.path().join("postgres/data/postmaster.pid").exists());
        drop(cluster);

        fs::remove_file(dir.path().join("postgres-password")).unwrap();
        let error = Cluster::start(dir.path(), None).await.err().unwrap();
        assert!(error.to_string().contains("is lost"), "{error:#}");
    }

    #[tokio::test]
    async fn a_scratch_cluster_ends_an_earlier_server_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        // Where the server's user cannot reach the directory, the data are elsewhere, in a directory that is opened to it.
        for path in [dir.path(), elsewhere.path()] {
            fs::set_permissions(path, Permissions::from_mode(0o700)).unwrap();
        }
        let mut first = Cluster::open(dir.path(), None, true, elsewhere.path()).await.unwrap();
        let root = first.root().to_owned();
        let root_of = |path: &Path| root.starts_with(path.canonicalize().unwrap());
        assert_eq!(
            (root_of(dir.path()), root_of(elsewhere.path())),
            (!geteuid().is_root(), geteuid().is_root())
        );
        let earlier = first.pid();
        // Another run on the same directory, as after a crash that left the server running.
        let second = Cluster::open(dir.path(), None, false, elsewhere.path()).await.unwrap();
        assert!(!first.is_running());
        assert_ne!(second.pid(), earlier);
        drop(second);
        drop(first);
        assert!(!root.exists());
    }
}
