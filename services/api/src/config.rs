//! The variables of the API.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use certctl_model::secret::Secret;
use certctl_runtime::config::{Settings, secret_from};
use clap::{Args, Parser, ValueEnum};

/// The REST API of certctl.
#[derive(Debug, Parser)]
#[command(name = "certctl-api", version)]
pub struct Config {
    /// Apply the migrations that are missing and exit. Needs the database owner's URL.
    #[arg(long)]
    pub migrate: bool,

    /// Where the database is.
    #[command(flatten)]
    pub database: Database,

    /// Address to listen on.
    #[arg(long, env = "CERTCTL_SERVER_HOST", default_value = "127.0.0.1")]
    pub server_host: IpAddr,

    /// Port to listen on.
    #[arg(long, env = "CERTCTL_SERVER_PORT", default_value_t = 8080)]
    pub server_port: u16,

    /// Address of health, readiness and Prometheus metrics.
    #[arg(long, env = "CERTCTL_OPS_LISTEN", default_value = "127.0.0.1:9080")]
    pub ops_listen: SocketAddr,

    /// How clients authenticate. `none` lets everyone do everything.
    #[arg(long, env = "CERTCTL_AUTH_TYPE", value_enum, default_value_t = AuthType::ApiKey)]
    pub auth_type: AuthType,

    /// The API key, with every permission.
    #[arg(long, env = "CERTCTL_AUTH_SECRET", hide_env_values = true)]
    auth_secret: Option<Secret>,

    /// File that holds the API key.
    #[arg(long, env = "CERTCTL_AUTH_SECRET_FILE")]
    auth_secret_file: Option<PathBuf>,

    /// Token with which agents may register themselves, and nothing else.
    #[arg(long, env = "CERTCTL_BOOTSTRAP_TOKEN", hide_env_values = true)]
    bootstrap_token: Option<Secret>,

    /// File that holds the bootstrap token.
    #[arg(long, env = "CERTCTL_BOOTSTRAP_TOKEN_FILE")]
    bootstrap_token_file: Option<PathBuf>,

    /// Unix socket of the signer.
    #[arg(long, env = "CERTCTL_SIGNER_SOCKET", default_value = "/run/certctl/signer.sock")]
    pub signer_socket: PathBuf,

    /// Logs.
    #[command(flatten)]
    pub settings: Settings,
}

/// Where the database is.
#[derive(Clone, Debug, Args)]
pub struct Database {
    /// Postgres connection URL. The login must be the service's role, or a member of it.
    #[arg(
        long = "database-url",
        env = "CERTCTL_DATABASE_URL",
        default_value = "postgres://localhost/certctl",
        hide_env_values = true
    )]
    pub url: Secret,

    /// Connections at most; one of them listens for news.
    #[arg(long = "database-max-conns", env = "CERTCTL_DATABASE_MAX_CONNS", default_value_t = 25,
          value_parser = clap::value_parser!(u32).range(2..))]
    pub max_conns: u32,
}

/// How clients authenticate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AuthType {
    /// With the API key or an agent's own key as bearer token.
    ApiKey,
    /// Not at all.
    None,
}

/// How clients authenticate, with what that needs.
#[derive(Clone, Debug)]
pub enum Auth {
    /// With keys.
    Keys {
        /// The key of operators.
        secret: Secret,
        /// The token of agents that want to register.
        bootstrap: Option<Secret>,
    },
    /// Not at all.
    None,
}

impl Config {
    /// Reads the secrets.
    ///
    /// # Errors
    /// When one is given twice, is empty or cannot be read, or the API key is missing.
    pub fn auth(&self) -> anyhow::Result<Auth> {
        match self.auth_type {
            AuthType::None => Ok(Auth::None),
            AuthType::ApiKey => {
                let secret =
                    secret_from(exposed(&self.auth_secret), self.auth_secret_file.clone())?.ok_or_else(|| {
                        anyhow::anyhow!(
                            "CERTCTL_AUTH_SECRET or CERTCTL_AUTH_SECRET_FILE is needed (or CERTCTL_AUTH_TYPE=none)"
                        )
                    })?;
                let bootstrap = secret_from(exposed(&self.bootstrap_token), self.bootstrap_token_file.clone())?;
                Ok(Auth::Keys {
                    secret: Secret::new(secret),
                    bootstrap: bootstrap.map(Secret::new),
                })
            }
        }
    }
}

fn exposed(secret: &Option<Secret>) -> Option<String> {
    secret.as_ref().map(|secret| secret.expose().to_owned())
}
