//! `certctl-agent`: parse, build, run, drain.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use certctl_agent::Agent;
use certctl_agent::config::Config;
use certctl_agent::program;
use certctl_model::time::Clock;
use certctl_runtime::tasks::{Tasks, signal};
use certctl_runtime::{config, telemetry};
use tracing::{error, warn};

/// A job that has begun is finished first; its programs may take this long.
const GRACE: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> ExitCode {
    let config: Config = config::parse();
    if let Err(why) = telemetry::init(&config.settings, "agent") {
        eprintln!("certctl-agent: {why:#}");
        return ExitCode::FAILURE;
    }
    if let Err(why) = program::adopt_orphans() {
        warn!("commands could hide from their time limit: {why}");
    }
    let tasks = Tasks::new();
    let ended = run(config, &tasks).await;
    let drained = tasks.drain(GRACE).await;
    match ended {
        Ok(()) if drained => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(why) => {
            error!("the agent ends: {why:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns when the agent is asked to end, or cannot go on.
async fn run(config: Config, tasks: &Tasks) -> Result<()> {
    let agent = Agent::build(config, Clock::system())?;
    let works = async {
        agent.run(tasks).await?;
        tasks.token().cancelled().await;
        bail!("a task ended by itself")
    };
    tokio::select! {
        ended = works => ended,
        () = signal() => Ok(()),
    }
}
