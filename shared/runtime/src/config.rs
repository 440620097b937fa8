//! Configuration: what every service shares, parsers for single values, and the page that documents the variables.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::builder::Resettable;
use clap::{Arg, Args, Command, CommandFactory, Parser, ValueEnum};
use tracing_subscriber::filter::LevelFilter;

/// The settings every service has; flattened into the `clap` struct of each.
#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// Least severe level that is logged: error, warn, info, debug or trace.
    #[arg(long, env = "CERTCTL_LOG_LEVEL", default_value = "info")]
    pub log_level: LevelFilter,

    /// Form of the log lines on standard error: json or text.
    #[arg(long, env = "CERTCTL_LOG_FORMAT", value_enum, default_value = "json")]
    pub log_format: LogFormat,

    /// Directory of failpoints; crash tests only, and without effect in release builds.
    #[arg(long, env = "CERTCTL_FAILPOINTS", hide = true)]
    pub failpoints: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            log_level: LevelFilter::INFO,
            log_format: LogFormat::Json,
            failpoints: None,
        }
    }
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Lines for people.
    Text,
}

/// Parses the command line and the environment, or exits with a message.
///
/// A variable that is set to nothing counts as not set, because compose files and unit files cannot leave one out.
pub fn parse<C: Parser>() -> C {
    let mut command = without_empty_variables(C::command());
    let matches = command.get_matches_mut();
    C::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut command).exit())
}

fn without_empty_variables(command: Command) -> Command {
    let is_empty = |arg: &Arg| {
        arg.get_env()
            .and_then(std::env::var_os)
            .is_some_and(|value| value.is_empty())
    };
    command.mut_args(|arg| {
        if is_empty(&arg) {
            arg.env(Resettable::Reset)
        } else {
            arg
        }
    })
}

/// Parses a duration such as `30s`, `1h 30m` or `500ms`; a `value_parser` for `clap`.
pub fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write for example 30s, 5m or 1h"))
}

/// Parses a truth value; a `value_parser` for `clap`.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        _ => Err("write true, 1 or yes, or false, 0 or no".into()),
    }
}

/// Parses a user, by name or number; a `value_parser` for `clap`.
pub fn user(text: &str) -> Result<u32, String> {
    number_of(text, "/etc/passwd").ok_or_else(|| format!("there is no user {text} in /etc/passwd; write its number"))
}

/// Parses a group, by name or number; a `value_parser` for `clap`.
pub fn group(text: &str) -> Result<u32, String> {
    number_of(text, "/etc/group").ok_or_else(|| format!("there is no group {text} in /etc/group; write its number"))
}

fn number_of(text: &str, file: &str) -> Option<u32> {
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let known = std::fs::read_to_string(file).ok()?;
    let mut entries = known.lines().map(|line| line.split(':').collect::<Vec<_>>());
    entries.find_map(|entry| (entry.first() == Some(&text)).then(|| entry.get(2)?.parse().ok())?)
}

/// Chooses a secret given directly or through a file, without the line end that editors leave.
///
/// # Errors
///
/// Both given, an empty secret, or a file that cannot be read. Messages never contain the secret.
pub fn secret_from(value: Option<String>, file: Option<PathBuf>) -> anyhow::Result<Option<String>> {
    let secret = match (value, file) {
        (None, None) => return Ok(None),
        (Some(_), Some(file)) => bail!("a secret is given both directly and as the file {}", file.display()),
        (Some(value), None) => value,
        (None, Some(file)) => read_secret(&file)
            .with_context(|| format!("cannot read a secret from {}", file.display()))?
            .trim_end_matches(['\r', '\n'])
            .to_owned(),
    };
    ensure!(!secret.is_empty(), "a secret is empty; leave it out or give it a value");
    Ok(Some(secret))
}

fn read_secret(file: &Path) -> anyhow::Result<String> {
    const MAX_BYTES: u64 = 64 * 1024;
    let mut text = String::new();
    let read = File::open(file)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    ensure!(read as u64 <= MAX_BYTES, "it is larger than {MAX_BYTES} bytes");
    Ok(text)
}

/// Renders one section of the configuration page: every argument of `C` that has a variable and is not hidden.
pub fn markdown<C: CommandFactory>(title: &str) -> String {
    let head = format!("## {title}\n\n| variable | flag | default | meaning |\n|---|---|---|---|\n");
    let rows = C::command()
        .get_arguments()
        .filter(|arg| !arg.is_hide_set())
        .filter_map(row)
        .collect::<String>();
    head + &rows
}

fn row(arg: &Arg) -> Option<String> {
    let variable = arg.get_env()?.to_string_lossy();
    let flag = arg.get_long().map(|long| format!("`--{long}`")).unwrap_or_default();
    let defaults: Vec<_> = arg
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy())
        .collect();
    let default = if defaults.is_empty() {
        String::new()
    } else {
        format!("`{}`", cell(&defaults.join(",")))
    };
    let help = arg
        .get_long_help()
        .or(arg.get_help())
        .map(ToString::to_string)
        .unwrap_or_default();
    Some(format!("| `{variable}` | {flag} | {default} | {} |\n", cell(&help)))
}

/// One line without an unescaped pipe.
fn cell(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Parser)]
    struct Example {
        #[command(flatten)]
        settings: Settings,
        /// Where to listen: host|port.
        ///
        /// Second paragraph.
        #[arg(long, env = "RUNTIME_EXAMPLE_LISTEN")]
        listen: Option<String>,
        /// Has no variable.
        #[arg(long)]
        once: bool,
    }

    #[test]
    fn durations_and_truth_values_are_read_or_refused() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        for bad in ["", "30", "soon", "-1s"] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
        for (text, value) in [
            ("true", true),
            ("1", true),
            ("YES", true),
            ("false", false),
            ("0", false),
            ("no", false),
        ] {
            assert_eq!(boolean(text), Ok(value), "{text:?}");
        }
        for bad in ["", "on", "2", " true"] {
            assert!(boolean(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_secret_comes_from_one_place_and_is_never_empty() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            Some(path)
        };
        assert_eq!(secret_from(None, None).unwrap(), None);
        assert_eq!(secret_from(Some("a b".into()), None).unwrap().as_deref(), Some("a b"));
        assert_eq!(
            secret_from(None, file("line", " s3 \r\n")).unwrap().as_deref(),
            Some(" s3 ")
        );
        assert!(secret_from(Some("a".into()), file("both", "b")).is_err());
        assert!(secret_from(Some(String::new()), None).is_err());
        assert!(secret_from(None, file("empty", "\n")).is_err());
        assert!(secret_from(None, file("large", &"x".repeat(64 * 1024 + 1))).is_err());
        assert!(secret_from(None, Some(dir.path().join("absent"))).is_err());
    }

    #[test]
    fn the_page_lists_every_public_variable_and_escapes_pipes() {
        assert_eq!(
            markdown::<Example>("Example"),
            "## Example\n\n| variable | flag | default | meaning |\n|---|---|---|---|\n\
             | `CERTCTL_LOG_LEVEL` | `--log-level` | `info` | Least severe level that is logged: error, warn, info, debug or trace |\n\
             | `CERTCTL_LOG_FORMAT` | `--log-format` | `json` | Form of the log lines on standard error: json or text |\n\
             | `RUNTIME_EXAMPLE_LISTEN` | `--listen` |  | Where to listen: host\\|port. Second paragraph. |\n"
        );
    }

    #[test]
    fn the_shared_settings_have_the_documented_defaults() {
        let example = Example::try_parse_from(["example", "--log-format", "text"]).unwrap();
        assert_eq!(example.settings.log_level, LevelFilter::INFO);
        assert_eq!(example.settings.log_format, LogFormat::Text);
        assert!(example.listen.is_none() && !example.once);
        assert!(Example::try_parse_from(["example", "--log-level", "loud"]).is_err());
    }
}
