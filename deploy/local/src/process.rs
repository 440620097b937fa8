//! One program as a child that does not outlive us.
//!
//! Two nets hold: the kernel asks the child to end when we die (`setpriv --pdeathsig`), and a file with its process
//! id lets the next start end what is still there.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::time::{Instant, sleep};

use crate::files;

/// Where programs are looked for, and the `PATH` that children get.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const POLL: Duration = Duration::from_millis(20);

/// Finds a program in [`PATH`].
pub fn find(program: &str) -> Option<PathBuf> {
    PATH.split(':')
        .map(|dir| Path::new(dir).join(program))
        .find(|path| path.is_file())
}

/// A user of this machine, by numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
}

/// What to start: a program with a clean environment.
#[derive(Clone)]
pub struct Spec {
    name: String,
    program: PathBuf,
    dir: PathBuf,
    args: Vec<OsString>,
    env: Vec<(String, String)>,
    user: Option<User>,
    stop: Signal,
}

impl Spec {
    /// Describes a program whose output goes to `<dir>/logs/<name>.log`; `dir` is absolute.
    pub fn new(name: &str, program: &Path, dir: &Path) -> Self {
        Self {
            name: name.to_owned(),
            program: program.to_owned(),
            dir: dir.to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            user: None,
            stop: Signal::TERM,
        }
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Adds a variable; of two with the same name the last one counts.
    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.env.push((name.to_owned(), value.to_string()));
        self
    }

    /// Runs the program as another user; only root can.
    pub fn user(mut self, user: Option<User>) -> Self {
        self.user = user;
        self
    }

    /// Asks the program to end by SIGINT instead of SIGTERM.
    pub fn stopped_by_interrupt(mut self) -> Self {
        self.stop = Signal::INT;
        self
    }

    fn log(&self) -> PathBuf {
        self.dir.join("logs").join(format!("{}.log", self.name))
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join("run").join(format!("{}.pid", self.name))
    }

    fn command(&self, log: File) -> io::Result<Command> {
        let mut command = match find("setpriv") {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                let signal = if self.stop == Signal::INT { "INT" } else { "TERM" };
                command.args(["--pdeathsig", signal, "--"]).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        command
            .args(&self.args)
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", &self.dir)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if let Some(user) = self.user {
            command.uid(user.uid).gid(user.gid);
        }
        Ok(command)
    }
}

/// A program that was started, and may be started again.
pub struct Service {
    spec: Spec,
    child: Option<Child>,
    ended: Option<ExitStatus>,
    log_start: u64,
}

impl Service {
    /// Starts the program in its own process group.
    ///
    /// # Errors
    ///
    /// The program cannot be started, or the log cannot be written.
    pub fn spawn(spec: Spec) -> anyhow::Result<Self> {
        let mut service = Self {
            spec,
            child: None,
            ended: None,
            log_start: 0,
        };
        service.start()?;
        Ok(service)
    }

    /// Starts the program unless it runs.
    ///
    /// # Errors
    ///
    /// As [`Service::spawn`].
    pub fn start(&mut self) -> anyhow::Result<()> {
        if self.is_running() {
            return Ok(());
        }
        let spec = &self.spec;
        let start = || -> anyhow::Result<(Child, u64)> {
            if !spec.program.is_file() {
                bail!("there is no program {}", spec.program.display());
            }
            files::directory(&spec.dir.join("run"), 0o700)?;
            let logs = files::directory(&spec.dir.join("logs"), 0o700)?;
            let log = logs.append(&format!("{}.log", spec.name), 0o600)?;
            let log_start = log.metadata()?.len();
            let child = spawn_from_lasting_thread(spec.command(log)?)?;
            let id = child.id();
            let (since, stop) = (started_at(id).unwrap_or_default(), spec.stop.as_raw());
            let record = format!("{id} {since} {stop} {}\n", spec.program.display());
            files::write_private(&spec.pid_file(), &record)?;
            Ok((child, log_start))
        };
        let (child, log_start) = start().with_context(|| format!("cannot start {}", spec.name))?;
        self.child = Some(child);
        self.ended = None;
        self.log_start = log_start;
        Ok(())
    }

    /// The name it was given.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Its process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Whether it runs now.
    pub fn is_running(&mut self) -> bool {
        if let Some(child) = &mut self.child
            && let Ok(Some(status)) = child.try_wait()
        {
            // Workers of a dead master would keep its port.
            let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
            self.gone(status);
        }
        self.child.is_some()
    }

    /// How it ended, once it has.
    pub fn status(&self) -> Option<ExitStatus> {
        self.ended
    }

    /// Kills its whole process group with SIGKILL, as a crash would, and returns when it is gone.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            // An error says that it has ended by itself.
            let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
            if let Ok(status) = child.wait() {
                self.gone(status);
            }
        }
    }

    /// Stops it where it is, as a machine does that hangs, until it is [resumed](Self::resume).
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            // An error says that it has ended by itself.
            let _ = kill_process_group(Pid::from_child(child), signal);
        }
    }

    /// Asks it to end, and kills it if it has not within `grace`. Returns whether it ended by itself.
    pub async fn terminate(&mut self, grace: Duration) -> bool {
        if let Some(child) = &self.child {
            let _ = kill_process(Pid::from_child(child), self.spec.stop);
        }
        let deadline = Instant::now() + grace;
        while self.is_running() {
            if Instant::now() > deadline {
                self.kill9();
                return false;
            }
            sleep(POLL).await;
        }
        true
    }

    /// Kills it if it runs, and starts it again with the same settings.
    ///
    /// # Errors
    ///
    /// As [`Service::spawn`].
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.kill9();
        self.start()
    }

    /// Sets variables for later starts.
    pub fn set_env(&mut self, name: &str, value: impl ToString) {
        self.spec.env.push((name.to_owned(), value.to_string()));
    }

    /// The path of its log.
    pub fn log(&self) -> PathBuf {
        self.spec.log()
    }

    /// The last lines it wrote since its last start, at most 4 KiB.
    pub fn log_tail(&self) -> String {
        const MOST: u64 = 4096;
        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::open(self.spec.log())?;
            let end = file.metadata()?.len();
            file.seek(SeekFrom::Start(end.saturating_sub(MOST).max(self.log_start)))?;
            let mut bytes = Vec::new();
            file.take(MOST).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
    }

    /// An error about this program: what went wrong, how it ended if it did, and the end of its log.
    pub fn failure(&self, what: &str) -> anyhow::Error {
        let end = match self.ended {
            Some(status) => match status.signal() {
                Some(signal) => format!("; it was ended by signal {signal}"),
                None => format!("; it ended with status {}", status.code().unwrap_or_default()),
            },
            None => String::new(),
        };
        let log = self.log();
        let tail = self.log_tail();
        let (log, tail) = (log.display(), tail.trim_end());
        anyhow!("{} {what}{end}\n--- end of {log}\n{tail}\n---", self.spec.name)
    }

    fn gone(&mut self, status: ExitStatus) {
        self.child = None;
        self.ended = Some(status);
        let _ = fs::remove_file(self.spec.pid_file());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// The death signal comes when the *thread* that started the child ends, so a thread that lasts as long as the process
/// starts them all.
fn spawn_from_lasting_thread(command: Command) -> io::Result<Child> {
    type Order = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, queue) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, reply) in queue {
                let _ = reply.send(command.spawn());
            }
        });
        orders
    });
    let (reply, child) = mpsc::channel();
    let ended = |_| io::Error::other("the thread that starts programs has ended");
    spawner.send((command, reply)).map_err(|_| ended(()))?;
    child.recv().map_err(|_| ended(()))?
}

/// Ends what an earlier run in `dir` left behind, and returns the names of what it ended.
///
/// Only a process with the recorded id, start time and program is touched.
pub async fn end_leftovers(dir: &Path) -> Vec<String> {
    let mut ended = Vec::new();
    for entry in fs::read_dir(dir.join("run")).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension() != Some(OsStr::new("pid")) {
            continue;
        }
        let record = files::read(&path).ok().flatten();
        if let Some(leftover) = record.and_then(|text| Leftover::read(&text)) {
            leftover.end().await;
            ended.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
        let _ = fs::remove_file(&path);
    }
    ended
}

pub(crate) struct Leftover {
    pid: Pid,
    program: PathBuf,
    started_at: String,
    stop: Signal,
}

impl Leftover {
    /// Reads a record, if its process still runs.
    fn read(record: &str) -> Option<Self> {
        let mut words = record.trim_end().splitn(4, ' ');
        let (pid, started_at, stop, program) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let leftover = Self {
            pid: Pid::from_raw(pid.parse().ok()?)?,
            program: program.into(),
            started_at: started_at.to_owned(),
            stop: Signal::from_named_raw(stop.parse().ok()?)?,
        };
        leftover.runs().then_some(leftover)
    }

    /// The process `pid`, if it runs `program` now, to be ended by `stop`.
    pub(crate) fn of(pid: u32, program: &Path, stop: Signal) -> Option<Self> {
        Self::read(&format!(
            "{pid} {} {} {}",
            started_at(pid)?,
            stop.as_raw(),
            program.display()
        ))
    }

    fn runs(&self) -> bool {
        let id = self.pid.as_raw_pid() as u32;
        let exe = fs::read_link(format!("/proc/{id}/exe")).unwrap_or_default();
        // Rebuilt binaries show up as deleted.
        let exe = exe.to_string_lossy();
        let program = fs::canonicalize(&self.program).unwrap_or_else(|_| self.program.clone());
        started_at(id).is_some_and(|time| time == self.started_at)
            && Path::new(exe.trim_end_matches(" (deleted)")) == program
    }

    pub(crate) async fn end(self) {
        const GRACE: Duration = Duration::from_secs(10);
        let deadline = Instant::now() + GRACE;
        let _ = kill_process(self.pid, self.stop);
        while self.runs() {
            if Instant::now() > deadline {
                let _ = kill_process_group(self.pid, Signal::KILL);
                let _ = kill_process(self.pid, Signal::KILL);
            }
            sleep(POLL).await;
        }
    }
}

/// The start time of a process in clock ticks, which with its id names it for as long as the machine is up;
/// `None` for one that is gone or a zombie.
fn started_at(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name and may contain anything; fields are counted behind its parenthesis.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    (state != "Z").then(|| fields.nth(18).map(str::to_owned))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(dir: &Path) -> Service {
        Service::spawn(Spec::new("sleeper", Path::new("/usr/bin/sleep"), dir).args(["600"])).unwrap()
    }

    #[tokio::test]
    async fn a_program_has_a_clean_environment_and_a_log() {
        let dir = tempfile::tempdir().unwrap();
        let spec = Spec::new("env", Path::new("/usr/bin/env"), dir.path());
        let mut service = Service::spawn(spec.env("GREETING", "hello").env("GREETING", "again")).unwrap();
        while service.is_running() {
            tokio::task::yield_now().await;
        }
        let tail = service.log_tail();
        let mut lines: Vec<_> = tail.lines().collect();
        lines.sort_unstable();
        let home = format!("HOME={}", dir.path().display());
        assert_eq!(lines, ["GREETING=again", &home, &format!("PATH={PATH}")]);
        let failure = service.failure("is no service").to_string();
        assert!(
            failure.starts_with("env is no service; it ended with status 0\n"),
            "{failure}"
        );
    }

    #[tokio::test]
    async fn a_program_is_killed_restarted_and_asked_to_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut service = sleeper(dir.path());
        let first = service.pid();
        assert!(service.is_running());
        service.kill9();
        assert!(!service.is_running() && service.pid().is_none());
        service.restart().unwrap();
        assert!(service.is_running() && service.pid() != first);
        assert!(service.terminate(Duration::from_secs(10)).await);
        assert!(!dir.path().join("run/sleeper.pid").exists());
    }

    #[tokio::test]
    async fn leftovers_are_ended_and_strangers_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut service = sleeper(dir.path());
        while fs::read_link(format!("/proc/{}/exe", service.pid().unwrap())).unwrap() != Path::new("/usr/bin/sleep") {
            tokio::task::yield_now().await;
        }
        let record = fs::read_to_string(dir.path().join("run/sleeper.pid")).unwrap();
        for stranger in [
            record.replace("/sleep", "/sh"),
            format!("{} 1 15 /usr/bin/sleep", service.pid().unwrap()),
            "not a record".to_owned(),
        ] {
            assert!(Leftover::read(&stranger).is_none(), "{stranger}");
        }
        assert_eq!(end_leftovers(dir.path()).await, ["sleeper"]);
        assert!(!service.is_running());
        assert!(end_leftovers(dir.path()).await.is_empty());
    }

    #[test]
    fn a_missing_program_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Service::spawn(Spec::new("gone", &dir.path().join("absent"), dir.path()))
            .err()
            .unwrap();
        assert!(
            format!("{error:#}").contains("cannot start gone: there is no program"),
            "{error:#}"
        );
    }
}
