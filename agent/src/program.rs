//! Programs: started from argument lists, bounded in time and output, ended together with their children.

use std::process::{ExitStatus, Stdio};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use std::{fmt, pin};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// A program and its arguments, never empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Argv(Vec<String>);

impl Argv {
    /// Splits a command at its spaces; none when there is nothing but space.
    pub fn split(command: &str) -> Option<Self> {
        let words: Vec<_> = command.split_whitespace().map(str::to_owned).collect();
        (!words.is_empty()).then_some(Self(words))
    }

    fn base_name(&self) -> &str {
        self.0[0].rsplit('/').next().unwrap_or_default()
    }
}

impl fmt::Display for Argv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" "))
    }
}

/// The programs that targets may name, by base name.
#[derive(Clone, Debug)]
pub struct AllowedPrograms(Vec<String>);

impl FromStr for AllowedPrograms {
    type Err = String;

    fn from_str(list: &str) -> Result<Self, String> {
        let names: Vec<_> = list
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        match names.iter().find(|name| name.contains('/')) {
            Some(path) => Err(format!("\"{path}\" is a path; programs are allowed by name")),
            None => Ok(Self(names)),
        }
    }
}

/// How long a program may take. `nginx -t` resolves host names and may wait for a name server.
const TIME_LIMIT: Duration = Duration::from_secs(60);
/// Where programs are looked for; the agent's own environment is not handed on.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How much of what a program says is kept.
const OUTPUT_BYTES: usize = 2048;

impl AllowedPrograms {
    /// Says whether the program may be started.
    ///
    /// # Errors
    /// What would have to be set to allow it.
    pub fn check(&self, argv: &Argv) -> Result<(), String> {
        match self.0.iter().any(|name| name == argv.base_name()) {
            true => Ok(()),
            false => Err(format!(
                "the program \"{}\" may not be started on this host; CERTCTL_ALLOWED_PROGRAMS allows {}",
                argv.base_name(),
                self.0.join(", ")
            )),
        }
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// It may not be started, cannot be, takes longer than a minute, or fails; the text ends with what it said itself.
    pub async fn run(&self, argv: &Argv) -> Result<(), String> {
        self.check(argv)?;
        let mut child = Command::new(&argv.0[0])
            .args(&argv.0[1..])
            .env_clear()
            .env("PATH", PATH)
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("\"{argv}\" cannot be started: {error}"))?;
        let (out, err) = (Tail::default(), Tail::default());
        let status = watch(&mut child, &out, &err).await;
        let said = [err, out]
            .map(Tail::into_text)
            .into_iter()
            .find(|text| !text.is_empty())
            .unwrap_or_default();
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("\"{argv}\" failed ({status}): {said}")),
            Err(error) => Err(format!("\"{argv}\" {error}: {said}")),
        }
    }
}

/// Waits for the child while reading what it says, and ends its whole group when it takes too long.
async fn watch(child: &mut Child, out: &Tail, err: &Tail) -> Result<ExitStatus, String> {
    /// For the last words of a program that has ended. One that leaves a daemon behind never closes its output.
    const LAST_WORDS: Duration = Duration::from_millis(200);
    let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let mut listening = pin::pin!(async { tokio::join!(out.read(stdout), err.read(stderr)) });
    let mut heard = false;
    let ended = timeout(TIME_LIMIT, async {
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
            if let Some(group) = group {
                // It may have ended this moment, which is as good.
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = child.wait().await;
            Err(format!("took longer than {TIME_LIMIT:?} and was ended"))
        }
    };
    if !heard {
        let _ = timeout(LAST_WORDS, listening).await;
    }
    status
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

    #[test]
    fn a_program_is_allowed_by_its_base_name() {
        let allowed: AllowedPrograms = " nginx, systemctl ,".parse().unwrap();
        for (command, is_allowed) in [
            ("nginx -t", true),
            ("/usr/sbin/nginx -s reload", true),
            ("systemctl reload nginx", true),
            ("sh -c nginx", false),
            ("nginx/evil", false),
            ("/bin/", false),
            ("NGINX", false),
        ] {
            assert_eq!(allowed.check(&argv(command)).is_ok(), is_allowed, "{command}");
        }
        assert!("/usr/sbin/nginx".parse::<AllowedPrograms>().is_err());
        assert_eq!(Argv::split(" \t "), None);
    }

    #[tokio::test]
    async fn a_failing_program_is_quoted_and_gets_neither_a_shell_nor_our_environment() {
        let allowed: AllowedPrograms = "true,false,ls,env".parse().unwrap();
        assert_eq!(allowed.run(&argv("true $(reboot) ; false")).await, Ok(()));
        assert_eq!(allowed.run(&argv("env --unset PATH -u HOME true")).await, Ok(()));
        assert_eq!(
            allowed.run(&argv("false")).await.unwrap_err(),
            "\"false\" failed (exit status: 1): "
        );
        let error = allowed.run(&argv("ls /absent-file")).await.unwrap_err();
        assert!(
            error.starts_with("\"ls /absent-file\" failed") && error.contains("No such file"),
            "{error}"
        );
        let error = allowed.run(&argv("reboot")).await.unwrap_err();
        assert!(
            error.contains("may not be started") && error.contains("true, false, ls, env"),
            "{error}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_does_not_end_is_ended() {
        let allowed: AllowedPrograms = "sleep".parse().unwrap();
        let error = allowed.run(&argv("sleep 600")).await.unwrap_err();
        assert_eq!(error, "\"sleep 600\" took longer than 60s and was ended: ");
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
