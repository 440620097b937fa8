//! The variables of the notifier.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use certctl_model::secret::Secret;
use certctl_runtime::{
    config::{Settings, duration, secret_from},
    hardening::{self, HardeningSetting, Needs},
};
use clap::{Parser, ValueEnum};
use lettre::message::Mailbox;
use url::Url;

/// Delivers the outbox: e-mail, webhooks.
#[derive(Clone, Debug, Parser)]
#[command(name = "certctl-notifier", version)]
pub struct Config {
    #[command(flatten)]
    pub settings: Settings,

    #[command(flatten)]
    pub hardening: HardeningSetting,

    /// Address of the database: postgres://user:password@host:port/name.
    #[arg(long, env = "CERTCTL_DATABASE_URL", hide_env_values = true)]
    pub database_url: Secret,

    // At least two, because one of them listens for news.
    /// Most connections to the database.
    #[arg(long, env = "CERTCTL_DATABASE_MAX_CONNS", default_value_t = 25, value_parser = clap::value_parser!(u32).range(2..))]
    pub database_max_conns: u32,

    /// Address of /health, /ready and /metrics.
    #[arg(long, env = "CERTCTL_OPS_LISTEN", default_value = "127.0.0.1:9083")]
    pub ops_listen: SocketAddr,

    /// How often notifications are looked for when nobody announces any.
    #[arg(long, env = "CERTCTL_SCHEDULER_NOTIFICATION_PROCESS_INTERVAL", default_value = "1m", value_parser = period)]
    pub interval: Duration,

    /// How often a notification is tried before it is given up.
    #[arg(long, env = "CERTCTL_NOTIFIER_MAX_ATTEMPTS", default_value_t = 8, value_parser = clap::value_parser!(i32).range(1..))]
    pub max_attempts: i32,

    /// Pause before the second try; doubles with each further one, up to an hour.
    #[arg(long, env = "CERTCTL_NOTIFIER_RETRY_BASE", default_value = "30s", value_parser = period)]
    pub retry_base: Duration,

    /// How long a claimed notification belongs to its notifier; a delivery has a third of it.
    #[arg(long, env = "CERTCTL_NOTIFIER_LEASE", default_value = "60s", value_parser = period)]
    pub lease: Duration,

    #[command(flatten)]
    pub smtp: Smtp,

    #[command(flatten)]
    pub webhook: Webhook,
}

/// Where e-mail goes out.
#[derive(Clone, Debug, clap::Args)]
pub struct Smtp {
    /// SMTP server; without one no e-mail is sent.
    #[arg(long = "smtp-host", env = "CERTCTL_SMTP_HOST")]
    pub host: Option<String>,

    /// Its port.
    #[arg(long = "smtp-port", env = "CERTCTL_SMTP_PORT", default_value_t = 587)]
    pub port: u16,

    /// User to authenticate as; without one no authentication is tried.
    #[arg(long = "smtp-username", env = "CERTCTL_SMTP_USERNAME")]
    pub username: Option<String>,

    /// Its password.
    #[arg(long = "smtp-password", env = "CERTCTL_SMTP_PASSWORD", hide_env_values = true)]
    pub password: Option<Secret>,

    /// File that holds the password.
    #[arg(long = "smtp-password-file", env = "CERTCTL_SMTP_PASSWORD_FILE")]
    pub password_file: Option<PathBuf>,

    /// Sender: an address, or a name and an address in angle brackets.
    #[arg(
        long = "smtp-from",
        env = "CERTCTL_SMTP_FROM",
        default_value = "certctl <certctl@localhost>"
    )]
    pub from: Mailbox,

    /// How the connection is secured: starttls, tls from the start, or none.
    #[arg(
        long = "smtp-security",
        env = "CERTCTL_SMTP_SECURITY",
        value_enum,
        default_value = "starttls"
    )]
    pub security: Security,

    /// PEM file of an authority that is trusted besides those of the system.
    #[arg(long = "smtp-ca-file", env = "CERTCTL_SMTP_CA_FILE")]
    pub ca_file: Option<PathBuf>,
}

/// How an SMTP connection is secured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Security {
    /// Upgraded before anything is said (RFC 3207); refused if the server cannot.
    Starttls,
    /// TLS from the start (RFC 8314).
    Tls,
    /// Not at all.
    None,
}

/// Where events are posted.
#[derive(Clone, Debug, clap::Args)]
pub struct Webhook {
    /// Address that events are posted to; without one none are.
    #[arg(long = "webhook-url", env = "CERTCTL_WEBHOOK_URL", value_parser = web_address, hide_env_values = true)]
    pub url: Option<Url>,

    /// Secret that events are signed with; without one they are not signed.
    #[arg(long = "webhook-secret", env = "CERTCTL_WEBHOOK_SECRET", hide_env_values = true)]
    pub secret: Option<Secret>,

    /// File that holds the secret.
    #[arg(long = "webhook-secret-file", env = "CERTCTL_WEBHOOK_SECRET_FILE")]
    pub secret_file: Option<PathBuf>,
}

impl Smtp {
    /// The password, wherever it is given.
    ///
    /// # Errors
    /// Given twice, or not readable.
    pub fn password(&self) -> anyhow::Result<Option<Secret>> {
        secret(&self.password, &self.password_file)
    }
}

impl Webhook {
    /// The secret, wherever it is given.
    ///
    /// # Errors
    /// Given twice, or not readable.
    pub fn secret(&self) -> anyhow::Result<Option<Secret>> {
        secret(&self.secret, &self.secret_file)
    }
}

fn secret(value: &Option<Secret>, file: &Option<PathBuf>) -> anyhow::Result<Option<Secret>> {
    let value = value.as_ref().map(|secret| secret.expose().to_owned());
    Ok(secret_from(value, file.clone())?.map(Secret::new))
}

/// A duration that a loop can wait for without spinning.
fn period(text: &str) -> Result<Duration, String> {
    const LEAST: Duration = Duration::from_millis(100);
    match duration(text)? {
        short if short < LEAST => Err(format!("at least {LEAST:?} is needed")),
        period => Ok(period),
    }
}

fn web_address(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        _ => Err("an address that begins with http:// or https:// is needed".into()),
    }
}

impl Config {
    /// Gives up what the service does not need. It reads its secrets, connects to the database, the mail server and webhooks wherever they
    /// are, and listens on one port.
    ///
    /// # Errors
    /// A measure that is required and cannot be taken, or a directory that cannot be made.
    pub fn harden(&self) -> anyhow::Result<()> {
        let mut needs = Needs::of_every_service();
        let (_, certificates) = certctl_store::reaches(self.database_url.expose())?;
        let told = [&self.smtp.ca_file, &self.smtp.password_file, &self.webhook.secret_file];
        needs.read_files(told.into_iter().flatten().cloned().chain(certificates));
        needs.writes.extend(self.settings.failpoints.clone());
        needs.listens = vec![self.ops_listen.port()];
        hardening::harden("CERTCTL_HARDENING", self.hardening.hardening, &needs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_left_besides_the_one_that_listens() {
        for (most, accepted) in [("0", false), ("1", false), ("2", true)] {
            let arguments = [
                "certctl-notifier",
                "--database-url",
                "postgres://h/d",
                "--database-max-conns",
                most,
            ];
            assert_eq!(Config::try_parse_from(arguments).is_ok(), accepted, "{most}");
        }
    }
}
