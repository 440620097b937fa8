//! The variables of the scheduler.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use certctl_model::secret::Secret;
use certctl_runtime::{
    config::{Settings, duration},
    hardening::{self, HardeningSetting, Needs},
};
use clap::Parser;
use url::Url;

/// Claims jobs, drives issuers, runs the loops.
#[derive(Clone, Debug, Parser)]
#[command(name = "certctl-scheduler", version)]
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
    #[arg(long, env = "CERTCTL_OPS_LISTEN", default_value = "127.0.0.1:9082")]
    pub ops_listen: SocketAddr,

    /// Unix socket of the signer.
    #[arg(long, env = "CERTCTL_SIGNER_SOCKET", default_value = "/run/certctl/signer.sock")]
    pub signer_socket: PathBuf,

    /// Directory where revocations are kept outside the database. Several processes may share it. Without one, none are
    /// kept.
    #[arg(long, env = "CERTCTL_REVOCATION_JOURNAL_DIR")]
    pub revocation_journal_dir: Option<PathBuf>,

    /// Addresses of the API's replicas, separated by commas, at which is looked when a revocation can be seen by OCSP and in
    /// the CRL: as relying parties see them, and not through what shares them out.
    #[arg(long, env = "CERTCTL_PROBE_EDGES", value_delimiter = ',')]
    pub probe_edges: Vec<Url>,

    /// How often certificates that are due for renewal are looked for. Must be well below a third of the shortest lifetime.
    #[arg(long, env = "CERTCTL_SCHEDULER_RENEWAL_CHECK_INTERVAL", default_value = "30s", value_parser = interval)]
    pub renewal_check_interval: Duration,

    /// How often jobs are looked for when nobody announces any.
    #[arg(long, env = "CERTCTL_SCHEDULER_JOB_PROCESSOR_INTERVAL", default_value = "30s", value_parser = interval)]
    pub job_processor_interval: Duration,

    /// How often one looks whether a certificate is served at the endpoints of its targets; after a deployment it is done at
    /// once.
    #[arg(long, env = "CERTCTL_SCHEDULER_VALIDATION_INTERVAL", default_value = "12h", value_parser = interval)]
    pub validation_interval: Duration,

    /// How long jobs that looked are kept after they ended. What was seen last, and the trail of what changed, stay.
    #[arg(long, env = "CERTCTL_SCHEDULER_KEEP_VALIDATIONS", default_value = "30d", value_parser = interval)]
    pub keep_validations: Duration,

    /// How often silent agents are looked for.
    #[arg(long, env = "CERTCTL_SCHEDULER_AGENT_HEALTH_CHECK_INTERVAL", default_value = "2m", value_parser = interval)]
    pub agent_health_check_interval: Duration,

    /// How long an agent may be silent before it counts as offline; three heartbeats, unless told.
    #[arg(long, env = "CERTCTL_AGENT_OFFLINE_AFTER", default_value = "180s", value_parser = interval)]
    pub agent_offline_after: Duration,

    /// How often CRLs are looked after when nothing is revoked.
    #[arg(long, env = "CERTCTL_SCHEDULER_CRL_INTERVAL", default_value = "5m", value_parser = interval)]
    pub crl_interval: Duration,

    /// How often all certificates are held against the policy rules when no rule changes.
    #[arg(long, env = "CERTCTL_SCHEDULER_POLICY_INTERVAL", default_value = "1h", value_parser = interval)]
    pub policy_interval: Duration,

    #[command(flatten)]
    pub patience: Patience,

    /// How long a claimed job belongs to its worker; an issuer has two thirds of it to answer.
    #[arg(long, env = "CERTCTL_JOB_LEASE", default_value = "30s", value_parser = interval)]
    pub job_lease: Duration,
}

/// How long jobs wait for somebody; then they fail.
#[derive(Clone, Debug, clap::Args)]
pub struct Patience {
    /// How long a job waits for its agent's certification request.
    #[arg(long, env = "CERTCTL_JOB_AWAITING_CSR_TIMEOUT", default_value = "24h", value_parser = interval)]
    pub csr: Duration,

    /// How long a job waits for its approval.
    #[arg(long, env = "CERTCTL_JOB_AWAITING_APPROVAL_TIMEOUT", default_value = "7d", value_parser = interval)]
    pub approval: Duration,

    /// How long an agent that has begun to deploy may take to tell what became of it. Before it begins, a deployment waits
    /// for its agent as long as it takes.
    #[arg(long, env = "CERTCTL_JOB_DEPLOYMENT_TIMEOUT", default_value = "1h", value_parser = interval)]
    pub deployment: Duration,
}

impl Config {
    /// Gives up what the service does not need. It writes its journal, connects to the database and to any endpoint that targets name, and
    /// listens on one port.
    ///
    /// # Errors
    /// A measure that is required and cannot be taken, or a directory that cannot be made.
    pub fn harden(&self) -> anyhow::Result<()> {
        let mut needs = Needs::of_every_service();
        let (_, certificates) = certctl_store::reaches(self.database_url.expose())?;
        needs.read_files(certificates);
        if let Some(directory) = &self.revocation_journal_dir {
            needs.write_below(directory)?;
        }
        needs.writes.extend(self.settings.failpoints.clone());
        needs.listens = vec![self.ops_listen.port()];
        hardening::harden("CERTCTL_HARDENING", self.hardening.hardening, &needs)
    }

    /// How long an issuer may take. Shorter than the lease, so that whoever waits for the answer still holds the job
    /// when it comes.
    pub fn issuer_timeout(&self) -> Duration {
        self.job_lease * 2 / 3
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(more: &[&str]) -> Result<Config, clap::Error> {
        Config::try_parse_from(
            ["certctl-scheduler", "--database-url", "postgres://u:geheim@h/d"]
                .iter()
                .chain(more),
        )
    }

    #[test]
    fn the_issuer_answers_within_the_lease_and_secrets_are_not_printed() {
        let config = parse(&["--job-lease", "30s"]).unwrap();
        assert_eq!(config.issuer_timeout(), Duration::from_secs(20));
        assert!(!format!("{config:?}").contains("geheim"));
    }

    #[test]
    fn a_loop_that_would_spin_is_refused() {
        assert!(parse(&["--crl-interval", "0s"]).is_err());
        assert!(parse(&["--crl-interval", "1s"]).is_ok());
    }

    #[test]
    fn a_connection_is_left_besides_the_one_that_listens() {
        assert!(parse(&["--database-max-conns", "1"]).is_err());
        assert!(parse(&["--database-max-conns", "2"]).is_ok());
    }
}
