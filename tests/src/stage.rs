//! The real binaries on this machine, one platform at a time, with short intervals.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use certctl_local::nginx::Demo;
use certctl_local::platform::{Api, Builder, Platform};
use certctl_local::story;
use serde_json::{Value, json};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::sync::{Mutex, MutexGuard};

use crate::{Ran, run_command, target_dir};

/// Stories with real processes are about time; each has the machine for itself.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Waits until no other story with real processes runs.
pub async fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().await
}

/// The programs as they were built for this test: a story that builds anew must not take them away from another.
static PROGRAMS: LazyLock<PathBuf> = LazyLock::new(|| {
    let built = target_dir();
    let all = built.join("story-programs");
    for earlier in fs::read_dir(&all).into_iter().flatten().flatten() {
        if !Path::new("/proc").join(earlier.file_name()).exists() {
            let _ = fs::remove_dir_all(earlier.path());
        }
    }
    let dir = all.join(std::process::id().to_string());
    fs::create_dir_all(&dir).expect("the target directory is ours");
    for name in [
        "api",
        "signer",
        "scheduler",
        "notifier",
        "agent",
        "cli",
        "local",
        "loadtest",
    ] {
        let name = format!("certctl-{name}");
        let program = built.join(&name);
        assert!(
            program.exists(),
            "there is no {}; run cargo build --workspace --bins",
            program.display()
        );
        let here = dir.join(&name);
        let _ = fs::remove_file(&here);
        fs::hard_link(&program, &here).expect("one directory is on one file system");
    }
    dir
});

/// Where the programs under test are.
pub fn programs() -> &'static Path {
    &PROGRAMS
}

/// A directory for a platform: short, because of its socket, and open for Postgres to pass through.
///
/// # Panics
///
/// There is no space for it.
pub fn directory() -> TempDir {
    tempfile::Builder::new()
        .prefix("certctl-")
        .tempdir()
        .expect("there is a place for temporary files")
}

/// A running platform and its database. Dropping it ends everything, and shows the logs if a test failed.
pub struct Stage {
    /// Everything that runs.
    pub platform: Platform,
    /// The database as its superuser.
    pub db: PgPool,
    dir: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Stage {
    /// Starts one of everything with short intervals and whatever `adjust` adds; it is given the platform's directory.
    ///
    /// # Panics
    ///
    /// Something does not start.
    pub async fn set(adjust: impl FnOnce(Builder, &Path) -> Builder) -> Self {
        let alone = alone().await;
        let dir = directory();
        let builder = short_intervals(Builder::new(dir.path(), programs()).scratch());
        let builder = adjust(builder, dir.path());
        let platform = builder.start(&mut |line| println!("{line}")).await;
        let platform = platform.unwrap_or_else(|error| panic!("{error:#}"));
        let db = PgPoolOptions::new()
            .max_connections(5)
            .acquire_timeout(std::time::Duration::from_secs(5))
            .connect_lazy(platform.database_url())
            .expect("the platform's URL is one");
        Self {
            platform,
            db,
            dir,
            _alone: alone,
        }
    }

    /// The API with the shared key.
    pub fn api(&self) -> &Api {
        self.platform.api()
    }

    /// The demo nginx.
    ///
    /// # Panics
    ///
    /// The platform was started without.
    pub fn demo(&self) -> &Demo {
        self.platform.demo().expect("the platform has the demo")
    }

    /// A path in the directory of the platform.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Requests `mc-demo` and waits until the demo serves it; the CA is in `ca.pem` afterwards.
    ///
    /// # Panics
    ///
    /// It does not come to pass.
    pub async fn demo_is_served(&self) {
        let told = story::tell(&self.platform, &mut |line| println!("{line}")).await;
        told.unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// Makes a target of type NGINX that has only files: its programs do nothing.
    ///
    /// # Panics
    ///
    /// The API refuses it.
    pub async fn file_target(&self, id: &str) -> FileTarget {
        self.target_of_files(id, "cert").await
    }

    /// The same for several certificates: `{id}` in the paths stands for the id of each.
    ///
    /// # Panics
    ///
    /// The API refuses it.
    pub async fn files_target(&self, id: &str) -> FileTarget {
        self.target_of_files(id, "{id}").await
    }

    async fn target_of_files(&self, id: &str, stem: &str) -> FileTarget {
        let agents = self.api().list("/api/v1/agents").await.unwrap();
        let dir = self.path(id);
        fs::create_dir_all(&dir).unwrap();
        let target = FileTarget {
            id: id.to_owned(),
            cert_path: dir.join(format!("{stem}.pem")),
            key_path: dir.join(format!("{stem}.key")),
        };
        let config = json!({
            "cert_path": target.cert_path, "key_path": target.key_path, "chain_path": dir.join(format!("{stem}-chain.pem")),
            "validate_command": "true", "reload_command": "true",
        });
        let body = json!({ "id": id, "name": id, "type": "NGINX", "agent_id": agents[0]["id"], "config": config, "enabled": true });
        self.api().post("/api/v1/targets", &body).await.unwrap();
        target
    }

    /// Runs the command line against this platform.
    pub async fn cli(&self, args: &[&str]) -> Ran {
        cli(self.api().url(), self.api().key(), args).await
    }

    /// The versions of a certificate, newest first.
    ///
    /// # Panics
    ///
    /// The API does not answer.
    pub async fn versions(&self, certificate: &str) -> Vec<Value> {
        let path = format!("/api/v1/certificates/{certificate}/versions");
        self.api().list(&path).await.unwrap()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            show_logs(self.dir.path());
        }
    }
}

/// A target that is nothing but files.
#[derive(Clone, Debug)]
pub struct FileTarget {
    /// Its id.
    pub id: String,
    /// The file of the leaf.
    pub cert_path: PathBuf,
    /// The file of the key.
    pub key_path: PathBuf,
}

/// Runs the command line.
pub async fn cli(server: &str, key: &str, args: &[&str]) -> Ran {
    let mut command = Command::new(programs().join("certctl-cli"));
    command
        .args(args)
        .env("CERTCTL_SERVER_URL", server)
        .env("CERTCTL_API_KEY", key);
    run_command(command).await
}

/// Prints the end of every log of a platform.
pub fn show_logs(dir: &Path) {
    const LINES: usize = 60;
    let mut logs: Vec<_> = fs::read_dir(dir.join("logs"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    logs.sort();
    for log in logs {
        let text = fs::read(&log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        println!("--- end of {}", log.display());
        lines[lines.len().saturating_sub(LINES)..]
            .iter()
            .for_each(|line| println!("{line}"));
    }
}

/// A library of Debian's that a program is started with, which changes what the system tells it.
///
/// # Panics
///
/// It is not there.
pub fn preloaded(library: &str) -> PathBuf {
    let found = fs::read_dir("/usr/lib").unwrap().flatten();
    found
        .map(|dir| dir.path().join(library))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("script/bootstrap test installs {library}"))
}

fn short_intervals(builder: Builder) -> Builder {
    let settings = [
        // Stories ask more often than people do.
        ("api", "CERTCTL_RATE_LIMIT_ENABLED", "false"),
        ("scheduler", "CERTCTL_SCHEDULER_RENEWAL_CHECK_INTERVAL", "1s"),
        ("scheduler", "CERTCTL_SCHEDULER_JOB_PROCESSOR_INTERVAL", "1s"),
        ("scheduler", "CERTCTL_SCHEDULER_AGENT_HEALTH_CHECK_INTERVAL", "1s"),
        ("scheduler", "CERTCTL_SCHEDULER_CRL_INTERVAL", "1s"),
        ("scheduler", "CERTCTL_JOB_LEASE", "3s"),
        ("notifier", "CERTCTL_SCHEDULER_NOTIFICATION_PROCESS_INTERVAL", "1s"),
        ("notifier", "CERTCTL_NOTIFIER_RETRY_BASE", "1s"),
        ("agent", "CERTCTL_HEARTBEAT_INTERVAL", "2s"),
        ("agent", "CERTCTL_POLL_INTERVAL", "1s"),
    ];
    let builder = builder.allow_commands("true");
    settings.into_iter().fold(builder, |builder, (service, name, value)| {
        builder.env(service, name, value)
    })
}
