//! `certctl-api`: parse, build, run, drain.

use std::time::Duration;

use certctl_api::config::Config;
use certctl_model::time::Clock;
use certctl_runtime::{config, tasks, tasks::Tasks, telemetry};

/// Answers are built of many small pieces; the system's allocator takes a seventh of their time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config: Config = config::parse();
    telemetry::init(&config.settings, "api")?;
    if config.migrate {
        certctl_store::migrate(config.database.url.expose()).await?;
        tracing::info!("the database is up to date");
        return Ok(());
    }
    let tasks = Tasks::new();
    let app = certctl_api::build(&config, Clock::told(), &tasks)?;
    certctl_api::run(&config, app, &tasks).await?;
    tasks::signal().await;
    tasks.drain(Duration::from_secs(30)).await;
    Ok(())
}
