//! The command line.

use std::{path::PathBuf, time::Duration};

use certctl_client::{Client, Secret};
use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};
use url::Url;

use crate::loopback;

/// Measures a certctl that runs on this machine.
#[derive(Debug, Parser)]
#[command(name = "certctl-loadtest", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) what: What,
}

#[derive(Debug, Subcommand)]
pub(crate) enum What {
    /// From POST /api/v1/certificates to the demo's nginx serving the certificate, one run after the other.
    MainJob(MainJob),
    /// Fill a migrated, empty database with a believable estate.
    Seed(Seed),
    /// Send a mix of requests at a constant rate.
    Run(Run),
    /// Every sort and filter of the list of certificates, on the first page and far behind it.
    Combinations(Combinations),
    /// Agents that send heartbeats and wait for work.
    Agents(Agents),
    /// Writers that change something again and again, and the events that tell of it.
    Changes(Changes),
    /// Jobs that wait with their requests, until all are issued and stored.
    Issuances(Issuances),
    /// How many requests pass the rate limit under more than it allows; prints one line of JSON.
    Limits(Limits),
    /// Answers about certificates, and what they cost.
    #[command(subcommand)]
    Ocsp(Ocsp),
    /// From a revocation to where OCSP and the CRLs of several edges show it; prints one line of JSON.
    Visible(Visible),
    /// One bulk operation over many certificates; prints one line of JSON.
    RevokeMany(RevokeMany),
    /// Renewals that fall due at once, until each is planned; prints one line of JSON.
    Planner(Planner),
    /// Jobs from claim to end, with an issuer that does nothing; prints one line of JSON.
    Throughput(Throughput),
    /// Months of a fleet on virtual time; prints one line of JSON.
    Sim(Sim),
    /// CRLs: time and memory for a large one, or how soon one of many shards tells.
    Crl(Crl),
    /// Read the plans that auto_explain wrote into the log of Postgres.
    Plans(Plans),
    /// Make a page of the lines of several benches.
    Page(Page),
    /// Answer everything with the same octets.
    #[command(hide = true)]
    Bare(Bare),
}

/// The API under test.
#[derive(Debug, Args)]
pub(crate) struct Server {
    /// Address of the API, on loopback.
    #[arg(
        long,
        env = "CERTCTL_SERVER_URL",
        default_value = "http://localhost:8443",
        value_name = "URL"
    )]
    pub(crate) server: Url,

    /// API key.
    #[arg(long, env = "CERTCTL_API_KEY", hide_env_values = true, value_name = "KEY")]
    pub(crate) api_key: Option<Secret>,
}

impl Server {
    /// A client of it.
    ///
    /// # Errors
    /// When it is not on this machine.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        self.client_with(self.api_key.clone().unwrap_or_default()).await
    }

    /// A client of it with another key.
    ///
    /// # Errors
    /// When it is not on this machine.
    pub(crate) async fn client_with(&self, key: Secret) -> anyhow::Result<Client> {
        use anyhow::Context;
        let host = self.server.host_str().context("the server's address has no host")?;
        let port = self.server.port_or_known_default();
        let port = port.context("the server's address has no port")?;
        loopback(&format!("{host}:{port}")).await?;
        Ok(Client::builder(self.server.as_str())
            .token(key)
            .timeout(std::time::Duration::from_secs(90))
            .user_agent(concat!("certctl-loadtest/", env!("CARGO_PKG_VERSION")))
            .build()?)
    }
}

/// The database under test.
#[derive(Debug, Args)]
pub(crate) struct Database {
    /// URL of the database, for its owner, on loopback.
    #[arg(long, env = "CERTCTL_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub(crate) database_url: String,
}

/// The processes whose time is counted.
#[derive(Debug, Args)]
pub(crate) struct Processes {
    /// Process id of the API.
    #[arg(long, value_name = "PID")]
    pub(crate) api_pid: u32,

    /// Process id of the Postgres server.
    #[arg(long, value_name = "PID")]
    pub(crate) postgres_pid: u32,
}

#[derive(Debug, Args)]
pub(crate) struct MainJob {
    /// How many certificates to request.
    #[arg(long, default_value_t = 20, value_parser = value_parser!(u32).range(1..=1000))]
    pub(crate) runs: u32,

    /// Seconds after which a run counts as failed.
    #[arg(long, default_value_t = 60, value_parser = value_parser!(u64).range(1..=600))]
    pub(crate) run_timeout: u64,

    /// Seconds after which no further run is begun.
    #[arg(long, default_value_t = 600, value_parser = value_parser!(u64).range(1..=7200))]
    pub(crate) max_time: u64,

    #[command(flatten)]
    pub(crate) server: Server,

    /// Where the demo serves TLS, on loopback.
    #[arg(
        long,
        env = "CERTCTL_DEMO_TLS",
        default_value = "127.0.0.1:8444",
        value_name = "HOST:PORT"
    )]
    pub(crate) demo_tls: String,

    /// The target to deploy to; the one that serves there unless given.
    #[arg(long, value_name = "ID")]
    pub(crate) target: Option<String>,

    /// Print the figures as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Seed {
    #[command(flatten)]
    pub(crate) database: Database,

    /// Certificates.
    #[arg(long, default_value_t = 100_000, value_parser = value_parser!(u64).range(1..=20_000_000))]
    pub(crate) certificates: u64,

    /// Agents, each with two targets.
    #[arg(long, default_value_t = 500, value_parser = value_parser!(u64).range(1..=100_000))]
    pub(crate) agents: u64,

    /// Versions of an issued certificate, on average.
    #[arg(long, default_value_t = 1.3, value_name = "MEAN", value_parser = mean)]
    pub(crate) versions_per: f64,

    /// Jobs that have ended; as many as certificates unless given.
    #[arg(long, value_parser = value_parser!(u64).range(0..=50_000_000))]
    pub(crate) jobs: Option<u64>,

    /// Events of the trail; as many as certificates unless given.
    #[arg(long, value_parser = value_parser!(u64).range(0..=50_000_000))]
    pub(crate) audit: Option<u64>,

    /// The same number gives the same estate, but for the present instant.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,

    /// Make every certificate an issued one, and leave no job open.
    #[arg(long)]
    pub(crate) settled: bool,

    /// Add to a database that holds something already.
    #[arg(long)]
    pub(crate) append: bool,

    /// Connections to the database.
    #[arg(long, default_value_t = 4, value_parser = value_parser!(u32).range(1..=16))]
    pub(crate) connections: u32,
}

fn mean(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(mean) if (1.0..=100.0).contains(&mean) => Ok(mean),
        _ => Err("a number from 1 to 100 is needed".to_owned()),
    }
}

/// A mix of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mix {
    /// Reading: lists with all sorts and filters, single certificates, jobs, the summary.
    Lists,
    /// Changes of teams.
    Writes,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Which mix.
    #[arg(value_enum)]
    pub(crate) scenario: Mix,

    #[command(flatten)]
    pub(crate) server: Server,

    /// Also measure SELECT 1 on this database.
    #[arg(long, env = "CERTCTL_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub(crate) database_url: Option<String>,

    /// Requests a second.
    #[arg(long, default_value_t = 100.0, value_parser = rate)]
    pub(crate) rate: f64,

    /// For how long.
    #[arg(long, default_value_t = 30, value_parser = value_parser!(u64).range(1..=3600))]
    pub(crate) seconds: u64,

    /// Connections.
    #[arg(long, default_value_t = 16, value_parser = value_parser!(u32).range(1..=1000))]
    pub(crate) connections: u32,

    /// Print the figures as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.1..=100_000.0).contains(&rate) => Ok(rate),
        _ => Err("a number from 0.1 to 100000 is needed".to_owned()),
    }
}

#[derive(Debug, Args)]
pub(crate) struct Combinations {
    #[command(flatten)]
    pub(crate) server: Server,

    #[command(flatten)]
    pub(crate) database: Database,

    #[command(flatten)]
    pub(crate) processes: Processes,

    /// How often each page is asked for.
    #[arg(long, default_value_t = 100, value_parser = value_parser!(u32).range(1..=10_000))]
    pub(crate) repeat: u32,

    /// Ask for every page once, and measure nothing: for the plans that Postgres writes into its log meanwhile.
    #[arg(long)]
    pub(crate) once: bool,

    /// What was read from that log, to be printed with the figures.
    #[arg(long, value_name = "FILE")]
    pub(crate) plans: Option<PathBuf>,

    /// How many pages of 50 the far page lies behind the first, where there are so many.
    #[arg(long, default_value_t = 10_000, value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub(crate) pages: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Agents {
    #[command(flatten)]
    pub(crate) server: Server,

    #[command(flatten)]
    pub(crate) database: Database,

    #[command(flatten)]
    pub(crate) processes: Processes,

    /// How many of the seeded agents.
    #[arg(long, default_value_t = 5_000, value_parser = value_parser!(u64).range(1..=9_000))]
    pub(crate) agents: u64,

    /// The seed they were made with.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,

    /// Seconds between the heartbeats of one agent.
    #[arg(long, default_value_t = 60, value_parser = value_parser!(u64).range(1..=600))]
    pub(crate) every: u64,

    /// For how long, in seconds.
    #[arg(long, default_value_t = 300, value_parser = value_parser!(u64).range(1..=3600))]
    pub(crate) seconds: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Changes {
    #[command(flatten)]
    pub(crate) server: Server,

    #[command(flatten)]
    pub(crate) database: Database,

    /// How many write at once.
    #[arg(long, default_value_t = 25, value_parser = value_parser!(u32).range(1..=100))]
    pub(crate) writers: u32,

    /// How many changes they make together.
    #[arg(long, default_value_t = 100_000, value_parser = value_parser!(u64).range(1..=1_000_000))]
    pub(crate) changes: u64,

    /// Seconds after which no further change is begun.
    #[arg(long, default_value_t = 900, value_parser = value_parser!(u64).range(1..=7200))]
    pub(crate) max_time: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Issuances {
    #[command(flatten)]
    pub(crate) database: Database,

    /// Process id of the signer.
    #[arg(long, value_name = "PID")]
    pub(crate) signer_pid: u32,

    /// Process id of the scheduler.
    #[arg(long, value_name = "PID")]
    pub(crate) scheduler_pid: u32,

    /// Process id of the Postgres server.
    #[arg(long, value_name = "PID")]
    pub(crate) postgres_pid: u32,

    /// How many jobs.
    #[arg(long, default_value_t = 50_000, value_parser = value_parser!(i64).range(1..=1_000_000))]
    pub(crate) jobs: i64,

    /// Each certificate has a target, so that issuing it also makes a job that deploys it.
    #[arg(long)]
    pub(crate) deploy: bool,

    /// Seconds within which all must be stored.
    #[arg(long, default_value_t = 300, value_parser = value_parser!(u64).range(1..=7200))]
    pub(crate) max_time: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Limits {
    #[command(flatten)]
    pub(crate) server: Server,

    /// Requests a second that are sent.
    #[arg(long, default_value_t = 200, value_parser = value_parser!(u32).range(1..=20_000))]
    pub(crate) offered: u32,

    /// Seconds.
    #[arg(long, default_value_t = 30, value_parser = value_parser!(u64).range(1..=600))]
    pub(crate) seconds: u64,

    /// Requests open at once.
    #[arg(long, default_value_t = 16, value_parser = value_parser!(u32).range(1..=1000))]
    pub(crate) connections: u32,

    /// Requests a second that the limit lets pass.
    #[arg(long, default_value_t = 50.0, value_parser = rate)]
    pub(crate) rps: f64,

    /// Requests that it lets pass at once.
    #[arg(long, default_value_t = 100, value_parser = value_parser!(u32).range(0..=100_000))]
    pub(crate) burst: u32,

    /// Also measure what this machine can do at most.
    #[arg(long)]
    pub(crate) ceilings: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Ocsp {
    /// Answers that are given again, beside a bare server with the same octets.
    Cached(OcspProcesses),
    /// Each certificate asked about once, beside a signature and a look-up; then a flood of what was never issued.
    Cold(OcspProcesses),
}

#[derive(Debug, Args)]
pub(crate) struct OcspProcesses {
    #[command(flatten)]
    pub(crate) server: Server,

    #[command(flatten)]
    pub(crate) database: Database,

    /// The issuer whose certificates are asked about.
    #[arg(long, default_value = "iss-local")]
    pub(crate) issuer: String,

    /// Certificates that are recorded and asked about.
    #[arg(long, default_value_t = 10_000, value_parser = value_parser!(u64).range(1_000..=10_000_000))]
    pub(crate) certificates: u64,

    /// Requests open at once.
    #[arg(long, default_value_t = 64, value_parser = value_parser!(u32).range(1..=1000))]
    pub(crate) connections: u32,

    /// Seconds that each part takes at most.
    #[arg(long, default_value_t = 12, value_parser = value_parser!(u64).range(1..=600))]
    pub(crate) seconds: u64,

    /// Process id of the API.
    #[arg(long, value_name = "PID")]
    pub(crate) api_pid: u32,

    /// Process id of the signer.
    #[arg(long, value_name = "PID")]
    pub(crate) signer_pid: Option<u32>,

    /// Process id of the Postgres server.
    #[arg(long, value_name = "PID")]
    pub(crate) postgres_pid: Option<u32>,
}

impl OcspProcesses {
    pub(crate) fn time(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

#[derive(Debug, Args)]
pub(crate) struct Visible {
    /// Addresses of the replicas of the API, on loopback, separated by commas.
    #[arg(long, value_delimiter = ',', required = true)]
    pub(crate) edges: Vec<Url>,

    /// API key.
    #[arg(long, env = "CERTCTL_API_KEY", hide_env_values = true, value_name = "KEY")]
    pub(crate) api_key: Option<Secret>,

    #[command(flatten)]
    pub(crate) database: Database,

    /// Revocations a minute.
    #[arg(long, default_value_t = 1_000, value_parser = value_parser!(u32).range(1..=60_000))]
    pub(crate) per_minute: u32,

    /// Seconds.
    #[arg(long, default_value_t = 60, value_parser = value_parser!(u64).range(1..=600))]
    pub(crate) seconds: u64,

    /// Questions open at once at each edge, beside those that measure.
    #[arg(long, default_value_t = 2, value_parser = value_parser!(u32).range(0..=100))]
    pub(crate) readers: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Planner {
    #[command(flatten)]
    pub(crate) database: Database,

    /// Certificates.
    #[arg(long, default_value_t = 1_000_000, value_parser = value_parser!(i64).range(1..=10_000_000))]
    pub(crate) rows: i64,

    /// How many of them fall due.
    #[arg(long, default_value_t = 20_000, value_parser = value_parser!(i64).range(1..=1_000_000))]
    pub(crate) due: i64,

    /// Process ids of the schedulers, separated by commas.
    #[arg(long, value_name = "PIDS", value_delimiter = ',', required = true)]
    pub(crate) scheduler_pids: Vec<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct Sim {
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,

    /// How many seeds.
    #[arg(long, default_value_t = 20, value_parser = value_parser!(u64).range(1..=100_000))]
    pub(crate) seeds: u64,

    /// Certificates of a fleet.
    #[arg(long, default_value_t = 100_000)]
    pub(crate) certificates: usize,

    /// For how many days.
    #[arg(long, default_value_t = 90, value_parser = value_parser!(i64).range(1..=3650))]
    pub(crate) days: i64,
}

#[derive(Debug, Args)]
pub(crate) struct Throughput {
    #[command(flatten)]
    pub(crate) database: Database,

    /// Jobs.
    #[arg(long, default_value_t = 50_000, value_parser = value_parser!(i64).range(1..=1_000_000))]
    pub(crate) jobs: i64,

    /// Workers, each with a connection.
    #[arg(long, default_value_t = 4, value_parser = value_parser!(u32).range(1..=64))]
    pub(crate) workers: u32,
}

#[derive(Debug, Args)]
pub(crate) struct RevokeMany {
    #[command(flatten)]
    pub(crate) server: Server,

    #[command(flatten)]
    pub(crate) database: Database,

    /// How many.
    #[arg(long, default_value_t = 100_000, value_parser = value_parser!(u64).range(1..=1_000_000))]
    pub(crate) certificates: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Plans {
    /// The log of Postgres.
    #[arg(long)]
    pub(crate) log: PathBuf,

    /// Rows that a sort may take in: a page and one more.
    #[arg(long, default_value_t = 51)]
    pub(crate) most: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Page {
    /// A file with one JSON object a line.
    #[arg(long)]
    pub(crate) lines: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Bare {
    /// How many octets.
    #[arg(long, default_value_t = 100, value_parser = value_parser!(u32).range(0..=16_777_216))]
    pub(crate) octets: u32,

    /// A file with an answer, head and all.
    #[arg(long)]
    pub(crate) like: Option<PathBuf>,
}
/// CRLs of how many revocations, and who makes them.
#[derive(Debug, Args)]
pub(crate) struct Crl {
    #[command(flatten)]
    pub(crate) server: Server,

    #[command(flatten)]
    pub(crate) database: Database,

    /// Revocations that are seeded.
    #[arg(long, default_value_t = 1_000_000, value_parser = value_parser!(i64).range(1_000..=20_000_000))]
    pub(crate) rows: i64,

    /// Shards that they are divided into; with one there is the full list alone.
    #[arg(long, default_value_t = 1, value_parser = value_parser!(i32).range(1..=1024))]
    pub(crate) shards: i32,

    /// The signer's socket.
    #[arg(long, value_name = "PATH")]
    pub(crate) signer_socket: PathBuf,

    /// Process id of the signer.
    #[arg(long, value_name = "PID")]
    pub(crate) signer_pid: u32,
}
