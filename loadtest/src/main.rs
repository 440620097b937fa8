//! Bounded measurements against a certctl that runs on this machine.
//!
//! | module | holds |
//! |---|---|
//! | [`main_job`] | from the request of a certificate to its being served |
//! | [`limits`] | what passes a rate limit |
//! | [`served`] | what a TLS server shows, and how long the handshake takes |
//! | [`report`] | percentiles, as a table and as JSON |
//!
//! Not here: verdicts. It prints what it measured; other addresses than loopback are refused.

mod limits;
mod main_job;
mod report;
mod served;

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use anyhow::{Context, ensure};
use certctl_client::{Client, Secret};
use clap::{Args, Parser, Subcommand, value_parser};
use url::Url;

/// Measures a certctl that runs on this machine.
#[derive(Debug, Parser)]
#[command(name = "certctl-loadtest", version)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// From POST /api/v1/certificates to the demo's nginx serving the certificate, one run after the other.
    MainJob(MainJob),
    /// How many requests pass the rate limit under more than it allows; prints one line of JSON.
    Limits(Limits),
}

#[derive(Debug, Args)]
struct Limits {
    /// Address of the API, on loopback.
    #[arg(
        long,
        env = "CERTCTL_SERVER_URL",
        default_value = "http://localhost:8443",
        value_name = "URL"
    )]
    server: Url,

    /// API key.
    #[arg(long, env = "CERTCTL_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<Secret>,

    /// Requests a second that are sent.
    #[arg(long, default_value_t = 200, value_parser = value_parser!(u32).range(1..=20_000))]
    offered: u32,

    /// Seconds.
    #[arg(long, default_value_t = 30, value_parser = value_parser!(u64).range(1..=600))]
    seconds: u64,

    /// Requests open at once.
    #[arg(long, default_value_t = 16, value_parser = value_parser!(u32).range(1..=1000))]
    connections: u32,

    /// Requests a second that the limit lets pass.
    #[arg(long, default_value_t = 50.0)]
    rps: f64,

    /// Requests that it lets pass at once.
    #[arg(long, default_value_t = 100)]
    burst: u32,
}

#[derive(Debug, Args)]
struct MainJob {
    /// How many certificates to request.
    #[arg(long, default_value_t = 20, value_parser = value_parser!(u32).range(1..=1000))]
    runs: u32,

    /// Seconds after which a run counts as failed.
    #[arg(long, default_value_t = 60, value_parser = value_parser!(u64).range(1..=600))]
    run_timeout: u64,

    /// Seconds after which no further run is begun.
    #[arg(long, default_value_t = 600, value_parser = value_parser!(u64).range(1..=7200))]
    max_time: u64,

    /// Address of the API, on loopback.
    #[arg(
        long,
        env = "CERTCTL_SERVER_URL",
        default_value = "http://localhost:8443",
        value_name = "URL"
    )]
    server: Url,

    /// API key.
    #[arg(long, env = "CERTCTL_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<Secret>,

    /// Where the demo serves TLS, on loopback.
    #[arg(
        long,
        env = "CERTCTL_DEMO_TLS",
        default_value = "127.0.0.1:8444",
        value_name = "HOST:PORT"
    )]
    demo_tls: String,

    /// The target to deploy to; the one that serves there unless given.
    #[arg(long, value_name = "ID")]
    target: Option<String>,

    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Cli::parse().what {
        What::MainJob(args) => run(args).await,
        What::Limits(args) => flood(args).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("certctl-loadtest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: MainJob) -> anyhow::Result<()> {
    let host = args.server.host_str().context("the server's address has no host")?;
    let port = args
        .server
        .port_or_known_default()
        .context("the server's address has no port")?;
    loopback(&format!("{host}:{port}")).await?;
    let demo = loopback(&args.demo_tls).await?;
    let client = Client::builder(args.server.as_str())
        .token(args.api_key.clone().unwrap_or_default())
        .user_agent(concat!("certctl-loadtest/", env!("CARGO_PKG_VERSION")))
        .build()?;
    let report = main_job::measure(&client, demo, &args).await?;
    match args.json {
        true => println!("{:#}", report.json()),
        false => print!("{}", report.table()),
    }
    Ok(())
}

async fn flood(args: Limits) -> anyhow::Result<()> {
    let host = args.server.host_str().context("the server's address has no host")?;
    let port = args
        .server
        .port_or_known_default()
        .context("the server's address has no port")?;
    loopback(&format!("{host}:{port}")).await?;
    let client = Client::builder(args.server.as_str())
        .token(args.api_key.unwrap_or_default())
        .build()?;
    let flood = limits::Flood {
        offered: args.offered,
        window: Duration::from_secs(args.seconds),
        connections: args.connections,
        rps: args.rps,
        burst: args.burst,
    };
    println!("{}", limits::measure(&client, flood).await);
    Ok(())
}

/// Resolves an address, and refuses it unless it is this machine: load is not for others.
async fn loopback(address: &str) -> anyhow::Result<SocketAddr> {
    let found = tokio::net::lookup_host(address)
        .await
        .with_context(|| format!("{address} cannot be resolved"))?;
    let found: Vec<SocketAddr> = found.collect();
    ensure!(
        found.iter().all(|address| address.ip().is_loopback()),
        "{address} is not on this machine; only loopback addresses are measured"
    );
    found
        .first()
        .copied()
        .with_context(|| format!("{address} has no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_this_machine_is_measured() {
        for (address, allowed) in [
            ("127.0.0.1:8443", true),
            ("[::1]:8443", true),
            ("192.0.2.1:8443", false),
            ("0.0.0.0:8443", false),
            ("[2001:db8::1]:443", false),
        ] {
            assert_eq!(loopback(address).await.is_ok(), allowed, "{address}");
        }
    }

    #[test]
    fn runs_and_times_are_bounded() {
        for (flag, allowed) in [
            ("--runs=20", true),
            ("--runs=0", false),
            ("--runs=1001", false),
            ("--max-time=100000", false),
        ] {
            assert_eq!(
                Cli::try_parse_from(["certctl-loadtest", "main-job", flag]).is_ok(),
                allowed,
                "{flag}"
            );
        }
    }
}
