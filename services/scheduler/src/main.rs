//! Parse, harden, build, run, drain.

use std::time::Duration;

use anyhow::{Context, ensure};
use certctl_client::Client;
use certctl_model::time::Clock;
use certctl_runtime::{
    config,
    serve::{self, Ready},
    tasks::{self, Tasks},
    telemetry,
};
use certctl_scheduler::{Scheduler, config::Config};
use tokio::{net::UnixStream, runtime::Builder};
use tracing::info;

/// Longer than an issuer may take by default, so that what was signed is recorded before the end.
const GRACE: Duration = Duration::from_secs(25);

fn main() -> anyhow::Result<()> {
    let config: Config = config::parse();
    telemetry::init(&config.settings, "scheduler")?;
    // Before there is a second thread, which would keep what this one gives up.
    config.harden()?;
    Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let signer = Client::builder("http://localhost")
        .unix_socket(&config.signer_socket)
        .timeout(config.issuer_timeout())
        .user_agent("certctl-scheduler")
        .build()?;
    let scheduler = Scheduler::build(&config, Clock::told(), signer)?;

    certctl_store::admit(scheduler.db()).await?;

    let tasks = Tasks::new();
    let listener = serve::listen(config.ops_listen).await?;
    serve::serve(listener, serve::ops_router(ready(&config, &scheduler)), &tasks).await;
    scheduler.run(&config, &tasks);
    info!("the scheduler runs; its state is served on {}", config.ops_listen);

    tasks::signal().await;
    tasks.drain(GRACE).await;
    Ok(())
}

fn ready(config: &Config, scheduler: &Scheduler) -> Ready {
    let (db, restored, socket) = (
        scheduler.db().clone(),
        scheduler.db().clone(),
        config.signer_socket.clone(),
    );
    Ready::new()
        .check("database", move || {
            let db = db.clone();
            async move { Ok(certctl_store::ready(&db).await?) }
        })
        .check("recovery", move || {
            let db = restored.clone();
            async move {
                let fenced = "SELECT EXISTS (SELECT 1 FROM fences WHERE lifted_at IS NULL)";
                ensure!(
                    !sqlx::query_scalar::<_, bool>(fenced).fetch_one(&db).await?,
                    "the database was restored from an older copy; nothing is issued until the recovery is finished \
                     (certctl-cli restore-revocations)"
                );
                Ok(())
            }
        })
        .check("signer", move || {
            let socket = socket.clone();
            async move {
                let connected = UnixStream::connect(&socket).await;
                connected.with_context(|| format!("cannot connect to {}", socket.display()))?;
                Ok(())
            }
        })
}
