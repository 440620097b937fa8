//! What this machine can do at most: a bare HTTP server that gives the same octets, and a database that does nothing.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use bytes::Bytes;
use certctl_client::Client;
use certctl_contract::endpoint::{Endpoint, Reply};
use http::{Response, header};
use http_body_util::Full;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::{net::TcpListener, task::JoinSet};

use crate::load::{self, Done, Report};

/// How long a ceiling is measured.
const LENGTH: Duration = Duration::from_secs(3);

/// An HTTP server that answers everything with the same octets, until it is dropped.
pub(crate) struct Bare {
    pub(crate) address: SocketAddr,
    task: JoinSet<()>,
}

impl Bare {
    pub(crate) async fn serve(octets: Vec<u8>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, octets) = (listener.local_addr()?, Bytes::from(octets));
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let octets = octets.clone();
                let answer = service_fn(move |_| {
                    let response = Response::builder().header(header::CONTENT_TYPE, "application/json");
                    let response = response.body(Full::new(octets.clone())).expect("a constant answer");
                    async { Ok::<_, Infallible>(response) }
                });
                let _ = stream.set_nodelay(true);
                let served = http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
                // A client that hangs up is no matter here.
                connections.spawn(async move { served.await.unwrap_or(()) });
            }
        });
        Ok(Self { address, task })
    }

    async fn ended(&mut self) {
        self.task.join_next().await;
    }
}

/// Serves so many octets until told to stop, after a line that says where.
pub(crate) async fn stand_alone(octets: u32) -> anyhow::Result<()> {
    let mut server = Bare::serve(vec![b' '; octets as usize]).await?;
    println!("{}", server.address);
    tokio::select! {
        () = server.ended() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    Ok(())
}

/// Calls an operation as often as it is answered; `None` when the server refuses.
pub(crate) async fn calls<E>(
    client: &Client,
    connections: u32,
    path: impl Fn() -> E::Path + Clone + Send + 'static,
    query: impl Fn() -> E::Query + Clone + Send + 'static,
    body: impl Fn() -> E::Body + Clone + Send + 'static,
) -> Report
where
    E: Endpoint<Path: Sync, Query: Sync, Body: Sync>,
{
    let client = client.clone();
    load::closed(u64::MAX, LENGTH, connections, move |_| {
        let (client, path, query, body) = (client.clone(), path(), query(), body());
        async move { Done::of(E::NAME, client.call::<E>(path, query, body).await) }
    })
    .await
}

/// The same operation through the same client, answered by a bare server with the octets of `reply`.
pub(crate) async fn bare<E>(
    reply: &E::Reply,
    connections: u32,
    path: impl Fn() -> E::Path + Clone + Send + 'static,
    query: impl Fn() -> E::Query + Clone + Send + 'static,
    body: impl Fn() -> E::Body + Clone + Send + 'static,
) -> anyhow::Result<(Report, usize)>
where
    E: Endpoint<Path: Sync, Query: Sync, Body: Sync>,
{
    let octets = reply.encode();
    let size = octets.len();
    let server = Bare::serve(octets).await?;
    let client = Client::builder(&format!("http://{}", server.address)).build()?;
    Ok((calls::<E>(&client, connections, path, query, body).await, size))
}

/// `SELECT 1`, as often as it is answered.
pub(crate) async fn select_1(pool: &PgPool, connections: u32) -> Report {
    let pool = pool.clone();
    load::closed(u64::MAX, LENGTH, connections, move |_| {
        let pool = pool.clone();
        async move {
            let answered = sqlx::query("SELECT 1").execute(&pool).await.is_ok();
            Done {
                operation: "SELECT 1",
                status: if answered { 200 } else { 0 },
            }
        }
    })
    .await
}

/// A ceiling as JSON.
pub(crate) fn json(report: &Report) -> Value {
    let whole = report.whole();
    json!({
        "per_second": report.per_second(), "p50_ms": whole.percentile(50.0), "p99_ms": whole.percentile(99.0),
        "failed": whole.failed(),
    })
}
