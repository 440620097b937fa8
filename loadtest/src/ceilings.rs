//! What this machine can do at most: a bare HTTP server that gives the same octets, and a database that does nothing.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use bytes::Bytes;
use certctl_client::Client;
use certctl_contract::endpoint::{Endpoint, Reply};
use http::{HeaderMap, HeaderName, HeaderValue, Response, header};
use http_body_util::Full;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::{net::TcpListener, task::JoinSet};

use crate::{
    cli,
    load::{self, Done, Report},
};

/// How long a ceiling is measured.
const LENGTH: Duration = Duration::from_secs(3);

/// An HTTP server that answers everything with the same octets, until it is dropped.
pub(crate) struct Bare {
    pub(crate) address: SocketAddr,
    task: JoinSet<()>,
}

impl Bare {
    pub(crate) async fn serve(octets: Vec<u8>) -> anyhow::Result<Self> {
        let json = HeaderValue::from_static("application/json");
        Self::serve_with(HeaderMap::from_iter([(header::CONTENT_TYPE, json)]), octets).await
    }

    async fn serve_with(headers: HeaderMap, octets: Vec<u8>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, octets) = (listener.local_addr()?, Bytes::from(octets));
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (headers, octets) = (headers.clone(), octets.clone());
                let answer = service_fn(move |_| {
                    let mut response = Response::new(Full::new(octets.clone()));
                    *response.headers_mut() = headers.clone();
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

/// Serves so many octets, or an answer as another server gave it, until told to stop; after a line that says where.
pub(crate) async fn stand_alone(args: &cli::Bare) -> anyhow::Result<()> {
    let mut server = match &args.like {
        None => Bare::serve(vec![b' '; args.octets as usize]).await?,
        Some(path) => {
            let (headers, octets) = answer(&std::fs::read(path)?)?;
            Bare::serve_with(headers, octets).await?
        }
    };
    println!("{}", server.address);
    tokio::select! {
        () = server.ended() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    Ok(())
}

/// The headers that a server does not write by itself, and the body.
fn answer(octets: &[u8]) -> anyhow::Result<(HeaderMap, Vec<u8>)> {
    let mut found = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut found);
    let httparse::Status::Complete(head) = response.parse(octets)? else {
        anyhow::bail!("the answer is not whole");
    };
    let mut headers = HeaderMap::new();
    for found in response.headers {
        let name = HeaderName::from_bytes(found.name.as_bytes())?;
        if ![header::DATE, header::CONTENT_LENGTH].contains(&name) {
            headers.append(name, HeaderValue::from_bytes(found.value)?);
        }
    }
    Ok((headers, octets[head..].to_vec()))
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
