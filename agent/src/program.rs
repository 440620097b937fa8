//! Commands: started from argument lists, bounded in time and output, ended together with all that they started.

use std::collections::HashSet;
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use std::{fmt, fs, pin};

use rustix::process::{Pid, Signal, WaitOptions, child_subreaper, getpid, kill_process, set_child_subreaper, waitpid};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::allowed::{AllowedCommands, PATH};
use crate::files;

/// A program and its arguments, never empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Argv(Vec<String>);

impl Argv {
    /// Splits a command at its spaces; none when there is nothing but space.
    pub fn split(command: &str) -> Option<Self> {
        let words: Vec<_> = command.split_whitespace().map(str::to_owned).collect();
        (!words.is_empty()).then_some(Self(words))
    }

    pub(crate) fn program(&self) -> &str {
        self.0.first().map_or("", String::as_str)
    }

    pub(crate) fn arguments(&self) -> &[String] {
        self.0.get(1..).unwrap_or_default()
    }
}

impl fmt::Display for Argv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" "))
    }
}

/// Why something failed on this host. What a command wrote is kept apart: it may hold lines of any file that the command
/// can read, and is shown to fewer people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// The agent's own words.
    pub cause: String,
    /// The end of what the command wrote; empty when there was none.
    pub output: String,
}

impl From<String> for Failure {
    fn from(cause: String) -> Self {
        Self {
            cause,
            output: String::new(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)
    }
}

/// How long a program may take. `nginx -t` resolves host names and may wait for a name server.
const TIME_LIMIT: Duration = Duration::from_secs(60);
/// How much of what a program says is kept.
const OUTPUT_BYTES: usize = 2048;
/// A variable that marks a command and everything that it starts.
const MARK: &str = "CERTCTL_COMMAND";

/// Makes this process the parent of every process whose parent ends before it, so that a command cannot hide from its
/// time limit. Called once, by the program that is an agent and nothing else.
///
/// # Errors
/// The kernel refuses.
pub fn adopt_orphans() -> std::io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// Runs a command to its end.
///
/// # Errors
/// It is not allowed, cannot be started, takes longer than a minute, or fails.
pub async fn run(allowed: &AllowedCommands, argv: &Argv) -> Result<(), Failure> {
    run_for(allowed, argv, TIME_LIMIT).await
}

async fn run_for(allowed: &AllowedCommands, argv: &Argv, limit: Duration) -> Result<(), Failure> {
    let program = allowed.program(argv)?;
    let mark = files::random_hex().map_err(|error| error.to_string())?;
    let mut family = Family::new(&mark);
    let mut child = Command::new(program)
        .args(argv.arguments())
        .env_clear()
        .env("PATH", PATH)
        .env(MARK, &mark)
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("\"{argv}\" cannot be started: {error}"))?;
    family.root = child.id().and_then(|id| i32::try_from(id).ok());
    let (out, err) = (Tail::default(), Tail::default());
    let status = watch(&mut child, &out, &err, limit, family).await;
    let output = [err, out]
        .map(Tail::into_text)
        .into_iter()
        .find(|text| !text.is_empty())
        .unwrap_or_default();
    reap();
    let cause = match status {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => format!("\"{argv}\" failed ({status})"),
        Err(error) => format!("\"{argv}\" {error}"),
    };
    Err(Failure { cause, output })
}

/// Waits for the child while reading what it says, and ends it with all it started when it takes too long.
async fn watch(
    child: &mut Child,
    out: &Tail,
    err: &Tail,
    limit: Duration,
    family: Family,
) -> Result<ExitStatus, String> {
    /// For the last words of a program that has ended. One that leaves a daemon behind never closes its output.
    const LAST_WORDS: Duration = Duration::from_millis(200);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let mut listening = pin::pin!(async { tokio::join!(out.read(stdout), err.read(stderr)) });
    let mut heard = false;
    let ended = timeout(limit, async {
        loop {
            tokio::select! {
                status = child.wait() => break status,
                _ = &mut listening, if !heard => heard = true,
            }
        }
    })
    .await;
    let status = match ended {
        Ok(status) => status.map_err(|error| format!("cannot be waited for: {error}")),
        Err(_) => {
            let all = tokio::task::spawn_blocking(move || family.end()).await.unwrap_or(false);
            let _ = child.wait().await;
            let left = if all {
                ""
            } else {
                ", but some of its processes are left"
            };
            Err(format!("took longer than {limit:?} and was ended{left}"))
        }
    };
    if !heard {
        let _ = timeout(LAST_WORDS, listening).await;
    }
    status
}

/// The processes of one command.
struct Family {
    /// The command itself.
    root: Option<i32>,
    /// What its environment holds, and that of every process it starts unless it clears it.
    mark: Vec<u8>,
    /// Processes that this process had adopted before: daemons that earlier commands left.
    before: HashSet<i32>,
}

impl Family {
    fn new(mark: &str) -> Self {
        Self {
            root: None,
            mark: format!("{MARK}={mark}").into_bytes(),
            before: own_children().map(|one| one.pid).collect(),
        }
    }

    /// Kills every process of the command, also those in sessions of their own. False when some do not end.
    fn end(&self) -> bool {
        const ROUNDS: usize = 200;
        const PAUSE: Duration = Duration::from_millis(10);
        for _ in 0..ROUNDS {
            let alive = self.alive();
            if alive.is_empty() {
                return true;
            }
            // A process that has ended meanwhile is as good.
            alive.into_iter().filter_map(Pid::from_raw).for_each(|pid| {
                let _ = kill_process(pid, Signal::KILL);
            });
            std::thread::sleep(PAUSE);
        }
        false
    }

    fn alive(&self) -> Vec<i32> {
        let all = processes();
        let adopts = adopts();
        let me = getpid().as_raw_nonzero().get();
        let is_root = |id: i32| Some(id) == self.root;
        let mut members: HashSet<i32> = all
            .iter()
            .filter(|one| {
                is_root(one.pid)
                    || is_root(one.group)
                    || is_root(one.session)
                    || (adopts && one.parent == me && !self.before.contains(&one.pid))
                    || self.marks(one.pid)
            })
            .map(|one| one.pid)
            .collect();
        loop {
            let known = members.len();
            members.extend(
                all.iter()
                    .filter(|one| members.contains(&one.parent))
                    .map(|one| one.pid)
                    .collect::<Vec<_>>(),
            );
            if members.len() == known {
                break;
            }
        }
        let alive = all
            .iter()
            .filter(|one| one.alive && one.pid != me && members.contains(&one.pid));
        alive.map(|one| one.pid).collect()
    }

    fn marks(&self, pid: i32) -> bool {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment
            .split(|octet| *octet == 0)
            .any(|variable| variable == self.mark)
    }
}

/// A row of the process table.
struct Process {
    pid: i32,
    parent: i32,
    group: i32,
    session: i32,
    /// Not a process that has ended and waits for its parent.
    alive: bool,
}

fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(process).collect()
}

/// proc(5): the name of the program stands in brackets and may have any character; fields follow.
fn process(pid: i32) -> Option<Process> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let mut number = || -> Option<i32> { fields.next()?.parse().ok() };
    Some(Process {
        pid,
        parent: number()?,
        group: number()?,
        session: number()?,
        alive: !matches!(state, "Z" | "X"),
    })
}

/// Whether orphans become children of this process.
fn adopts() -> bool {
    child_subreaper().is_ok_and(|adopted_by| adopted_by.is_some())
}

fn own_children() -> impl Iterator<Item = Process> {
    let me = getpid().as_raw_nonzero().get();
    let all = if adopts() { processes() } else { Vec::new() };
    all.into_iter().filter(move |one| one.parent == me)
}

/// Waits for adopted processes that have ended, which would otherwise stay in the process table.
fn reap() {
    let ended = own_children().filter(|one| !one.alive);
    ended.filter_map(|one| Pid::from_raw(one.pid)).for_each(|pid| {
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
    });
}

/// The last bytes of a stream.
#[derive(Default)]
struct Tail(Mutex<Vec<u8>>);

impl Tail {
    async fn read(&self, stream: Option<impl AsyncRead + Unpin>) {
        let Some(mut stream) = stream else { return };
        let mut buffer = [0; OUTPUT_BYTES];
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend_from_slice(&buffer[..read]);
            let surplus = kept.len().saturating_sub(OUTPUT_BYTES);
            kept.drain(..surplus);
        }
    }

    /// As text that can be stored and shown: valid UTF-8 without control characters, lines joined by "; ".
    fn into_text(self) -> String {
        let bytes = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        lines.collect::<Vec<_>>().join("; ").replace(char::is_control, " ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(command: &str) -> Argv {
        Argv::split(command).unwrap()
    }

    async fn ran(allowed: &AllowedCommands, command: &str) -> Result<(), (String, String)> {
        let ran = run(allowed, &argv(command)).await;
        ran.map_err(|failure| (failure.cause, failure.output))
    }

    #[tokio::test]
    async fn what_a_failing_command_wrote_is_kept_apart_and_it_gets_no_shell_and_no_environment() {
        let allowed = "true a ;false; ls /absent-file; env --unset PATH -u HOME true"
            .parse()
            .unwrap();
        assert_eq!(ran(&allowed, "env --unset PATH -u HOME true").await, Ok(()));
        let failed = |cause: &str| Err((cause.to_owned(), String::new()));
        assert_eq!(
            ran(&allowed, "false").await,
            failed("\"false\" failed (exit status: 1)")
        );
        let (cause, output) = ran(&allowed, "ls /absent-file").await.unwrap_err();
        assert_eq!(cause, "\"ls /absent-file\" failed (exit status: 2)");
        assert!(output.contains("No such file"), "{output}");
        let (cause, _) = ran(&allowed, "true $(reboot)").await.unwrap_err();
        assert!(cause.contains("is not allowed on this host"), "{cause}");
        assert_eq!(Argv::split(" \t "), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_does_not_end_is_ended() {
        let allowed = "sleep 600".parse().unwrap();
        let (cause, _) = ran(&allowed, "sleep 600").await.unwrap_err();
        assert_eq!(cause, "\"sleep 600\" took longer than 60s and was ended");
    }

    #[tokio::test]
    async fn a_process_in_a_session_of_its_own_is_ended_with_its_command() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("hides");
        let text = "#!/bin/sh\nsetsid sleep 987654 &\nenv -i setsid sleep 987654 &\nexec sleep 987654\n";
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let command = script.display().to_string();
        let allowed: AllowedCommands = command.parse().unwrap();
        let failure = run_for(&allowed, &argv(&command), Duration::from_millis(500))
            .await
            .unwrap_err();
        assert!(
            failure.cause.ends_with("took longer than 500ms and was ended"),
            "{}",
            failure.cause
        );
        let left = processes().into_iter().filter(|one| one.alive).filter(|one| {
            let line = fs::read(format!("/proc/{}/cmdline", one.pid)).unwrap_or_default();
            line.split(|octet| *octet == 0).any(|word| word == b"987654")
        });
        assert_eq!(left.count(), 0);
    }

    #[tokio::test]
    async fn only_the_end_of_what_a_program_says_is_kept() {
        let said = "x".repeat(3 * OUTPUT_BYTES) + "é\u{1b} \0last\nwords \n";
        let tail = Tail::default();
        tail.read(Some(said.as_bytes())).await;
        let text = tail.into_text();
        assert!(
            text.len() <= OUTPUT_BYTES && text.ends_with("xé   last; words"),
            "{text}"
        );
    }
}
