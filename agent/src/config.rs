//! Settings of the agent.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use certctl_model::id::AgentId;
use certctl_model::secret::Secret;
use certctl_runtime::config::{Settings, boolean, duration, secret_from};
use clap::{ArgAction, Parser};
use url::Url;

use crate::allowed::{AllowedCommands, AllowedDirectories, ProgramNames};

/// Makes keys on this host, asks certctl for certificates, deploys them and verifies that they are served.
///
/// On first start the agent registers itself with the bootstrap token or the shared key, and keeps its identity in the
/// state directory. Private keys never leave the key directory of this host, except into the files of its targets.
#[derive(Clone, Debug, Parser)]
#[command(name = "certctl-agent", version)]
pub struct Config {
    /// What every service has.
    #[command(flatten)]
    pub settings: Settings,

    /// Where the API of certctl is.
    #[arg(long = "server", env = "CERTCTL_SERVER_URL", default_value = "http://localhost:8443")]
    pub server_url: Url,

    /// Whether plain http is spoken to a server on another machine. All who can read the network read the agent's key then.
    #[arg(long, env = "CERTCTL_ALLOW_PLAIN_HTTP", default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    pub allow_plain_http: bool,

    /// PEM file of authorities that are trusted besides those of the system, for a server with a certificate of its own.
    #[arg(long, env = "CERTCTL_CA_CERT")]
    pub ca_cert: Option<PathBuf>,

    /// The agent's own key when its id is given as well; otherwise a key that allows it to register.
    #[arg(long, env = "CERTCTL_API_KEY", hide_env_values = true)]
    pub api_key: Option<Secret>,

    /// Token that allows the agent to register.
    #[arg(long, env = "CERTCTL_BOOTSTRAP_TOKEN", hide_env_values = true)]
    pub bootstrap_token: Option<Secret>,

    /// File that holds the bootstrap token.
    #[arg(long, env = "CERTCTL_BOOTSTRAP_TOKEN_FILE")]
    pub bootstrap_token_file: Option<PathBuf>,

    /// Id of an agent the server knows already; without it the agent registers itself.
    #[arg(long, env = "CERTCTL_AGENT_ID")]
    pub agent_id: Option<AgentId>,

    /// Name under which the agent registers, unique; the host's name when absent.
    #[arg(long = "name", env = "CERTCTL_AGENT_NAME")]
    pub agent_name: Option<String>,

    /// Directory of private keys, mode 0700.
    #[arg(long, env = "CERTCTL_KEY_DIR", default_value = "/var/lib/certctl/keys")]
    pub key_dir: PathBuf,

    /// Directory of the agent's identity and of the journal of deployments, mode 0700.
    #[arg(long, env = "CERTCTL_STATE_DIR", default_value = "/var/lib/certctl/agent")]
    pub state_dir: PathBuf,

    /// Command lines that targets may use, separated by semicolons: a program, by its name or its absolute path, and
    /// exactly these arguments. A vertical bar separates the alternatives of a word, `*` stands for letters, digits and
    /// `_.@+:=-` within one part of a path. `default` stands for the built-in lines, which check and reload nginx, Apache and HAProxy with
    /// their usual configuration.
    #[arg(long, env = "CERTCTL_ALLOWED_COMMANDS", default_value = "default")]
    pub allowed_commands: AllowedCommands,

    /// Directories that targets may have their files in, separated by commas. `default` stands for `/etc/nginx`,
    /// `/etc/apache2`, `/etc/httpd`, `/etc/haproxy`, `/etc/ssl/private`, `/etc/pki/nginx`, `/etc/pki/tls/private` and
    /// `/etc/certctl/tls`.
    #[arg(long, env = "CERTCTL_ALLOWED_DIRECTORIES", default_value = "default")]
    pub allowed_directories: AllowedDirectories,

    /// Earlier setting: names of programs, separated by commas, to which the built-in command lines are narrowed. It
    /// allows nothing more; CERTCTL_ALLOWED_COMMANDS does.
    #[arg(long, env = "CERTCTL_ALLOWED_PROGRAMS")]
    pub allowed_programs: Option<ProgramNames>,

    /// How often the agent says that it is alive.
    #[arg(long, env = "CERTCTL_HEARTBEAT_INTERVAL", default_value = "60s", value_parser = interval)]
    pub heartbeat_interval: Duration,

    /// How often the agent asks for work when the server does not answer as soon as there is some.
    #[arg(long, env = "CERTCTL_POLL_INTERVAL", default_value = "30s", value_parser = interval)]
    pub poll_interval: Duration,

    /// How long the server may hold a question for work until there is some; 0s to poll plainly.
    #[arg(long, env = "CERTCTL_LONG_POLL", default_value = "30s", value_parser = long_poll)]
    pub long_poll: Duration,

    /// Address for /health, /ready and /metrics; none when absent.
    #[arg(long, env = "CERTCTL_OPS_LISTEN")]
    pub ops_listen: Option<SocketAddr>,
}

impl Config {
    /// What allows the agent to register: the bootstrap token, else the key.
    ///
    /// # Errors
    /// The token is given twice, or its file cannot be read.
    pub fn bearer(&self) -> Result<Option<Secret>> {
        let token = self.bootstrap_token.as_ref().map(|token| token.expose().to_owned());
        let token = secret_from(token, self.bootstrap_token_file.clone())?.map(Secret::new);
        Ok(token.or_else(|| self.api_key.clone()))
    }
}

/// A duration that a loop can wait for without spinning.
fn interval(text: &str) -> Result<Duration, String> {
    const LEAST: Duration = Duration::from_millis(100);
    match duration(text)? {
        short if short < LEAST => Err(format!("at least {LEAST:?} is needed")),
        interval => Ok(interval),
    }
}

/// `0` needs no unit.
fn long_poll(text: &str) -> Result<Duration, String> {
    const MOST: Duration = Duration::from_secs(60);
    match text {
        "0" => Ok(Duration::ZERO),
        text => duration(text).and_then(|wait| match wait <= MOST {
            true => Ok(wait),
            false => Err(format!("the server waits at most {MOST:?}")),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Config, clap::Error> {
        Config::try_parse_from([&["certctl-agent"], args].concat())
    }

    #[test]
    fn settings_are_read_or_refused() {
        let config = parsed(&["--long-poll", "0", "--agent-id", "a-1", "--heartbeat-interval", "1m"]).unwrap();
        assert_eq!(
            (config.long_poll, config.heartbeat_interval),
            (Duration::ZERO, Duration::from_secs(60))
        );
        assert_eq!(config.server_url.as_str(), "http://localhost:8443/");
        for bad in [
            ["--long-poll", "61s"],
            ["--agent-id", "a/1"],
            ["--server", "localhost"],
            ["--allowed-programs", "/x"],
            ["--allowed-commands", "bin/nginx -t"],
            ["--allowed-directories", "tls"],
            ["--heartbeat-interval", "0"],
        ] {
            assert!(parsed(&bad).is_err(), "{bad:?}");
        }
        for flag in ["--heartbeat-interval", "--poll-interval"] {
            for short in ["0s", "99ms"] {
                let error = parsed(&[flag, short]).unwrap_err().to_string();
                assert!(error.contains("at least 100ms is needed"), "{error}");
            }
            assert!(parsed(&[flag, "100ms"]).is_ok(), "{flag}");
        }
    }

    #[test]
    fn the_bootstrap_token_goes_before_the_key_and_neither_is_shown() {
        let config = parsed(&["--api-key", "k3y", "--bootstrap-token", "t0ken"]).unwrap();
        assert_eq!(config.bearer().unwrap().unwrap().expose(), "t0ken");
        assert!(!format!("{config:?}").contains("t0ken"));
        assert_eq!(
            parsed(&["--api-key", "k3y"])
                .unwrap()
                .bearer()
                .unwrap()
                .unwrap()
                .expose(),
            "k3y"
        );
        assert!(parsed(&[]).unwrap().bearer().unwrap().is_none());
    }
}
