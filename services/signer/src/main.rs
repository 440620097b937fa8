//! `certctl-signer`: parse, build, run, drain.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use certctl_model::time::Clock;
use certctl_runtime::{
    config,
    tasks::{Tasks, signal},
    telemetry,
};
use certctl_signer::{Signer, config::Config};
use rustix::process::{Resource, Rlimit, setrlimit};
use tracing::error;

/// A signature is quick; the longest is a large CRL.
const GRACE: Duration = Duration::from_secs(20);

#[tokio::main]
async fn main() -> ExitCode {
    let config: Config = config::parse();
    if let Err(why) = telemetry::init(&config.settings, "signer") {
        eprintln!("certctl-signer: {why:#}");
        return ExitCode::FAILURE;
    }
    let tasks = Tasks::new();
    let ended = run(config, &tasks).await;
    let drained = tasks.drain(GRACE).await;
    match ended {
        Ok(()) if drained => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(why) => {
            error!("the signer ends: {why:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns when the signer is asked to end, or cannot go on.
async fn run(config: Config, tasks: &Tasks) -> Result<()> {
    leave_no_core()?;
    let signer = Signer::build(config, Clock::system())?;
    let works = async {
        signer.run(tasks).await?;
        tasks.token().cancelled().await;
        bail!("the tasks ended by themselves")
    };
    tokio::select! {
        ended = works => ended,
        () = signal() => Ok(()),
    }
}

/// A core file would hold the keys.
fn leave_no_core() -> Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).context("cannot turn core dumps off")
}
