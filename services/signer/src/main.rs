//! `certctl-signer`: parse, harden, build, run, drain.

use std::{process::ExitCode, time::Duration};

use anyhow::{Result, bail};
use certctl_model::time::Clock;
use certctl_runtime::{
    config,
    tasks::{Tasks, signal},
    telemetry,
};
use certctl_signer::{Signer, config::Config, hardening};
use tokio::runtime::Builder;
use tracing::error;

/// A signature is quick; the longest is a large CRL.
const GRACE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let config: Config = config::parse();
    if let Err(why) = telemetry::init(&config.settings, "signer") {
        eprintln!("certctl-signer: {why:#}");
        return ExitCode::FAILURE;
    }
    // Before there is a second thread, which would keep what this one gives up.
    let runtime = hardening::harden(&config).and_then(|()| Ok(Builder::new_multi_thread().enable_all().build()?));
    match runtime {
        Ok(runtime) => runtime.block_on(serve(config)),
        Err(why) => {
            error!("the signer does not start: {why:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: Config) -> ExitCode {
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
    let signer = Signer::build(config, Clock::told())?;
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
