//! What the stories share.
//!
//! | module | what it gives |
//! |---|---|
//! | [`stage`] | the real binaries on this machine, one platform at a time, with short intervals |
//! | [`idp`] | an identity provider with keys of its own, good and bad |
//! | [`receivers`] | a webhook and a mail server that remember what they were told |
//! | [`beside`] | an HAProxy and a Redis |
//! | [`nginx`] | an nginx whose configuration the story writes |
//! | [`orders`] | a stand-in for issuers outside, which counts what is ordered |
//! | [`gate`] | a way to a server that can be shut |
//! | [`requests`] | certification requests, good and bad |
//! | [`foreign`] | certificates of an authority that certctl knows nothing of |
//! | [`token`] | a PKCS #11 token in software |
//! | [`world`] | all of certctl in one process, with a clock that the story sets |
//! | here | waiting, running programs, and where things are |
//!
//! # Not here
//!
//! Anything that certctl does: stories look at it from outside, and at its database.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

pub mod beside;
pub mod foreign;
pub mod gate;
pub mod idp;
pub mod nginx;
pub mod orders;
pub mod receivers;
pub mod requests;
pub mod stage;
pub mod token;
pub mod world;

/// Asks `probe` until it succeeds.
///
/// # Panics
///
/// It has not within `within`; the message says what it lacked last.
pub async fn eventually<T>(what: &str, within: Duration, mut probe: impl AsyncFnMut() -> anyhow::Result<T>) -> T {
    const PAUSE: Duration = Duration::from_millis(20);
    let started = Instant::now();
    loop {
        match probe().await {
            Ok(answer) => return answer,
            Err(why) if started.elapsed() > within => panic!("waited {within:?} for {what}: {why:#}"),
            Err(_) => sleep(PAUSE).await,
        }
    }
}

/// The repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate is a directory of the repository")
}

/// Where cargo puts programs: the directory above the one of this test.
pub fn target_dir() -> PathBuf {
    let test = std::env::current_exe().expect("a program knows where it is");
    let dir = test.parent().and_then(Path::parent);
    dir.expect("tests are in <target>/<profile>/deps").to_owned()
}

/// The Python that has `tests/requirements.txt`.
///
/// # Panics
///
/// There is none.
pub fn python() -> PathBuf {
    let python = match std::env::var_os("CERTCTL_TEST_PYTHON") {
        Some(path) => path.into(),
        None => repository().join(".venv/bin/python3"),
    };
    assert!(
        python.exists(),
        "there is no {}; run script/test once",
        python.display()
    );
    python
}

/// What a program said and how it ended.
#[derive(Debug)]
pub struct Ran {
    /// Whether it ended with 0.
    pub success: bool,
    /// Its exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// Standard output, and then standard error.
    pub text: String,
}

impl Ran {
    /// What it said.
    ///
    /// # Panics
    ///
    /// It did not end with 0.
    pub fn ok(self) -> String {
        assert!(self.success, "it ended with {:?}: {}", self.code, self.text);
        self.text
    }
}

/// Runs a program to its end, without input.
///
/// # Panics
///
/// It cannot be started, or takes longer than ten minutes.
pub async fn run<A: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: impl IntoIterator<Item = A>) -> Ran {
    let mut command = Command::new(program);
    command.args(args);
    run_command(command).await
}

/// Runs a command to its end, without input.
///
/// # Panics
///
/// As [`run`].
pub async fn run_command(mut command: Command) -> Ran {
    const LONGEST: Duration = Duration::from_secs(600);
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(LONGEST, output).await;
    let output = output.unwrap_or_else(|_| panic!("{command:?} takes longer than {LONGEST:?}"));
    let output = output.with_context(|| format!("cannot run {command:?}")).unwrap();
    let text = [output.stdout, output.stderr].concat();
    Ran {
        success: output.status.success(),
        code: output.status.code(),
        text: String::from_utf8_lossy(&text).into_owned(),
    }
}

/// Runs openssl; paths in `args` must not contain spaces.
///
/// # Panics
///
/// As [`run`].
pub async fn openssl(args: &str) -> Ran {
    run("openssl", args.split_whitespace()).await
}
