//! Parse, harden, build, run, drain.

use std::time::Duration;

use certctl_model::time::Clock;
use certctl_notifier::{Notifier, config::Config};
use certctl_runtime::{
    config,
    serve::{self, Ready},
    tasks::{self, Tasks},
    telemetry,
};
use tokio::runtime::Builder;
use tracing::info;

/// Longer than a delivery may take by default, so that what was delivered is settled before the end.
const GRACE: Duration = Duration::from_secs(25);

fn main() -> anyhow::Result<()> {
    let config: Config = config::parse();
    telemetry::init(&config.settings, "notifier")?;
    // Before there is a second thread, which would keep what this one gives up.
    config.harden()?;
    Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let notifier = Notifier::build(&config, Clock::told())?;

    certctl_store::admit(notifier.db()).await?;

    let tasks = Tasks::new();
    let db = notifier.db().clone();
    let ready = Ready::new().check("database", move || {
        let db = db.clone();
        async move { Ok(certctl_store::ready(&db).await?) }
    });
    let listener = serve::listen(config.ops_listen).await?;
    serve::serve(listener, serve::ops_router(ready), &tasks).await;
    notifier.run(&config, &tasks);
    info!("the notifier runs; its state is served on {}", config.ops_listen);

    tasks::signal().await;
    tasks.drain(GRACE).await;
    Ok(())
}
