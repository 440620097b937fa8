//! The REST API: the rows of the contract table, each with its handler.
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | the variables |
//! | [`app`] | what handlers share; how a row of the table becomes a route |
//! | [`body`] | bodies of requests: how much, and how fast |
//! | [`auth`] | who calls, and whether the row lets them |
//! | [`jwt`] | tokens of other issuers |
//! | [`session`], [`oidc`] | sessions of browsers; login with an identity provider |
//! | [`outbound`] | requests to identity providers |
//! | [`limits`] | how much a party may ask |
//! | [`idempotency`] | repeated POSTs are done once |
//! | [`calls`], [`spool`] | every API call in the trail: what is recorded, and how it gets there |
//! | [`headers`] | origins and security headers |
//! | [`reach`] | which certificates the caller reaches |
//! | [`readers`] | connections for statements that only read |
//! | [`cursor`] | where a walk through a list stands |
//! | [`listing`] | the generic half of every resource: list, get, delete |
//! | [`written`] | rows as the JSON of their type |
//! | [`scan_report`] | what agents found, read as it arrives |
//! | [`error`] | what went wrong, in the caller's words; the one place that knows status codes |
//! | [`access_log`] | request ids, one span and one line per request |
//! | [`resources`] | one file per resource: SQL and handlers |
//! | [`docs_page`] | the document of the API and a page that shows it |
//! | [`mod@bench`] | constant bodies, for measurements |
//! | [`edge`] | the public CRL, OCSP and CA routes that relying parties fetch |
//!
//! Not here: CA keys, signatures, protocols of issuers.

pub mod access_log;
pub mod app;
pub mod auth;
pub mod bench;
pub mod body;
pub mod calls;
pub mod config;
pub mod cursor;
pub mod docs_page;
pub mod edge;
pub mod error;
pub mod headers;
pub mod idempotency;
pub mod jwt;
pub mod limits;
pub mod link;
pub mod listing;
pub mod oidc;
pub mod outbound;
pub mod reach;
pub mod readers;
pub mod resources;
pub mod scan_report;
pub mod session;
pub mod spool;
pub mod written;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use certctl_client::Client;
use certctl_model::time::Clock;
use certctl_runtime::{
    serve::{self, Front, Ready},
    tasks::Tasks,
    tls::Tls,
};
use certctl_x509::facts::CertificateFacts;

use self::{
    app::{App, Routes},
    config::Config,
    limits::Limits,
    link::Link,
};

/// How long the signer may take for one answer.
const SIGNER_TIMEOUT: Duration = Duration::from_secs(20);
/// How often uses of keys are written down, what has ended is removed and what others left is journaled.
const KEEP_HOUSE_EVERY: Duration = Duration::from_secs(60);

/// Opens what the service needs; connects to nothing yet.
pub fn build(config: &Config, clock: Clock, stop: &Tasks) -> anyhow::Result<Arc<App>> {
    let pool = certctl_store::connect(
        config.database.url.expose(),
        "certctl_api",
        config.database.max_conns,
        &clock,
    )?;
    let signer = Client::builder("http://localhost")
        .unix_socket(&config.signer_socket)
        .timeout(SIGNER_TIMEOUT)
        .build()?;
    if config.keygen_mode == config::KeygenMode::Server {
        tracing::warn!(
            "CERTCTL_KEYGEN_MODE is server: keys of certificates without targets are made here and shown in the answer to \
             the renewal; for production let agents make them, or send certification requests"
        );
    }
    let link = config.limiting.redis()?.map(|url| Link::new(&url)).transpose()?;
    let limits = Limits::new(&config.limiting, clock.clone(), link.clone());
    if let Some(link) = link.clone() {
        let token = stop.token();
        let greetings = vec![limits::greeting(), edge::greeting()];
        stop.spawn("redis", async move { link.keep(greetings, token).await });
    }
    App::new(config, clock, pool, signer, limits, link, stop)
}

/// The whole surface as a router.
pub fn router(app: &Arc<App>) -> axum::Router {
    let routes = resources::mount(Routes::default());
    let router = docs_page::mount(oidc::mount(edge::mount(routes.finish())));
    let router = bench::mount(router, app.bench_route);
    access_log::wrap(router.with_state(app.clone()), app)
}

/// How the surface faces the network.
///
/// # Errors
/// When the certificate and its key cannot be read, or do not fit each other.
pub fn front(config: &Config, app: &Arc<App>) -> anyhow::Result<Front> {
    let mut front = config.edge.front()?;
    front.shortcut = Some(Arc::new(edge::ocsp::Short(app.clone())));
    Ok(front)
}

/// Hears news from the database until told to stop. OCSP answers are given again only because of it.
pub fn hear(app: &Arc<App>, tasks: &Tasks) {
    let (app, stop) = (app.clone(), tasks.token());
    tasks.spawn("wakes", async move {
        tokio::select! { () = app.wakes.run(&app.pool, &app.answers) => {}, () = stop.cancelled() => {} }
    });
}

/// Serves until told to stop.
pub async fn run(config: &Config, app: Arc<App>, tasks: &Tasks) -> anyhow::Result<()> {
    let pool = app.pool.clone();
    certctl_store::admit(&pool).await?;
    let ready = Ready::new().check("database", move || {
        let pool = pool.clone();
        async move { Ok(certctl_store::ready(&pool).await?) }
    });
    let ops = serve::listen(config.ops_listen).await?;
    let public = serve::listen(SocketAddr::new(config.server_host, config.server_port)).await?;
    hear(&app, tasks);
    let spool = config.audit.spool_dir.clone().unwrap_or_else(spool::default_directory);
    spool::start(&app, &spool, config.audit.spool_limit, tasks)?;
    let (keeper, stop) = (app.clone(), tasks.token());
    tasks.spawn("access", async move {
        while !stop.is_cancelled() {
            tokio::select! { () = tokio::time::sleep(KEEP_HOUSE_EVERY) => {}, () = stop.cancelled() => {} }
            if let Err(error) = auth::keep_house(&keeper).await {
                tracing::warn!(?error, "uses of keys are not written down; trying again");
            }
            if let Err(error) = idempotency::keep_house(&keeper).await {
                tracing::warn!(?error, "old idempotency keys stay; trying again");
            }
            keeper.journal_rest().await;
        }
    });
    serve::serve(ops, serve::ops_router(ready), tasks).await;
    let front = front(config, &app)?;
    if let Some(tls) = &front.tls {
        ends_at(tls);
        tasks.spawn("tls", tls.clone().follow(tasks.token(), ends_at));
    }
    // The first requests are counted together with those of other replicas.
    if let Some(link) = &app.link {
        link.settled().await;
    }
    serve::serve_front(front, public, router(&app), tasks);
    tracing::info!(address = %SocketAddr::new(config.server_host, config.server_port), "serving the API");
    Ok(())
}

/// Publishes when our own certificate ends.
fn ends_at(tls: &Tls) {
    match CertificateFacts::parse_der(&tls.leaf()) {
        Ok(facts) => metrics::gauge!("tls_certificate_not_after_timestamp").set(facts.not_after.unix() as f64),
        Err(error) => tracing::warn!("the end of the TLS certificate cannot be read: {error}"),
    }
}
