//! Bounded measurements against a certctl that runs on this machine.
//!
//! | module | holds |
//! |---|---|
//! | [`cli`] | the command line |
//! | [`main_job`] | from the request of a certificate to its being served |
//! | [`seed`] | filling a database; [`estate`] has what goes in, [`copy`] how it is written |
//! | [`mixes`] | mixes of requests at a constant rate |
//! | [`combinations`] | every sort and filter of the list of certificates |
//! | [`agents`] | heartbeats and waiting for work |
//! | [`changes`] | writers, and the events that tell of what they did |
//! | [`issuances`] | jobs that wait with their requests, until they are stored |
//! | [`limits`] | what passes a rate limit |
//! | [`sim`] | months of a fleet on virtual time |
//! | [`throughput`] | jobs from claim to end, with an issuer that does nothing |
//! | [`planner`] | renewals that fall due at once, until each is planned |
//! | [`revoke_many`] | one bulk operation over many certificates |
//! | [`visible`] | from a revocation to where relying parties see it |
//! | [`crl`] | making large CRLs, and one of many shards |
//! | [`load`] | driving an operation, latencies by percentile |
//! | [`ceilings`] | what this machine can do at most |
//! | [`constant`] | the constant body that the API gives away for measurements |
//! | [`cpu`] | processor time of processes |
//! | [`plans`] | what Postgres says about its plans |
//! | [`page`] | the page of figures |
//! | [`served`] | what a TLS server shows, and how long the handshake takes |
//! | [`report`] | figures of the main job, as a table and as JSON |
//!
//! Not here: verdicts. It prints what it measured; other addresses than loopback are refused.

mod agents;
mod ceilings;
mod changes;
mod cli;
mod combinations;
mod constant;
mod copy;
mod cpu;
mod crl;
mod estate;
mod issuances;
mod limits;
mod load;
mod main_job;
mod memory;
mod mixes;
mod ocsp;
mod page;
mod planner;
mod plans;
mod raw;
mod report;
mod revoke_many;
mod seed;
mod served;
mod sim;
mod throughput;
mod visible;

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use anyhow::{Context, ensure};
use clap::Parser;
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use crate::cli::{Cli, What};

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse().what).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("certctl-loadtest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(what: What) -> anyhow::Result<()> {
    // The last line is one JSON object, for programs.
    let mut json = match what {
        What::MainJob(args) => {
            let demo = loopback(&args.demo_tls).await?;
            let report = main_job::measure(&args.server.client().await?, demo, &args).await?;
            match args.json {
                true => report.json(),
                false => {
                    print!("{}", report.table());
                    return Ok(());
                }
            }
        }
        What::Run(args) => {
            let measured = mixes::run(&args).await?;
            if !args.json {
                print!("{}", measured.table);
                return Ok(());
            }
            measured.json
        }
        What::Seed(args) => seed::run(&args).await?,
        What::Combinations(args) => combinations::run(&args).await?,
        What::Agents(args) => agents::run(&args).await?,
        What::Changes(args) => changes::run(&args).await?,
        What::Issuances(args) => issuances::run(&args).await?,
        What::Limits(args) => limits::run(&args).await?,
        What::Ocsp(args) => ocsp::run(&args).await?,
        What::Visible(args) => visible::run(&args).await?,
        What::Planner(args) => planner::run(&args).await?,
        What::Throughput(args) => throughput::run(&args).await?,
        What::Sim(args) => sim::run(&args)?,
        What::RevokeMany(args) => revoke_many::run(&args).await?,
        What::Crl(args) => crl::run(&args).await?,
        What::Plans(args) => plans::read(&args)?,
        What::Page(args) => {
            print!("{}", page::write(&args)?);
            return Ok(());
        }
        What::Bare(args) => return ceilings::stand_alone(&args).await,
    };
    json["machine"] = page::machine().into();
    println!("{json}");
    Ok(())
}

/// Opens a database, which is on this machine.
async fn connect(url: &str, connections: u32) -> anyhow::Result<PgPool> {
    connect_with(url, connections, |options| options).await
}

async fn connect_with(
    url: &str,
    connections: u32,
    settings: impl FnOnce(PgConnectOptions) -> PgConnectOptions,
) -> anyhow::Result<PgPool> {
    let options: PgConnectOptions = url.parse().context("the database's URL cannot be read")?;
    loopback(&format!("{}:{}", options.get_host(), options.get_port())).await?;
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(30))
        .connect_with(settings(options.application_name("certctl-loadtest")))
        .await
        .context("the database does not answer")
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
