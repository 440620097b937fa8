//! `certctl-api`: parse, harden, build, run, drain.

use std::time::Duration;

use certctl_api::config::Config;
use certctl_model::time::Clock;
use certctl_runtime::{config, tasks, tasks::Tasks, telemetry};
use tokio::runtime::Builder;

/// Answers are built of many small pieces; the system's allocator takes a seventh of their time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let mut config: Config = config::parse();
    telemetry::init(&config.settings, "api")?;
    if !config.migrate {
        // Where it is depends on who owns what, which a hardened process does not see.
        config
            .audit
            .spool_dir
            .get_or_insert_with(certctl_api::spool::default_directory);
        // Before there is a second thread, which would keep what this one gives up.
        config.harden()?;
    }
    Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
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
