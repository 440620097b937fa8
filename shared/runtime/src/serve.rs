//! A bounded HTTP server that ends gracefully, and the three operational routes every service answers.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::header::{CONNECTION, CONTENT_TYPE, HOST};
use axum::http::{HeaderValue, StatusCode, Version};
use axum::routing::get;
use axum::serve::{Listener, ListenerExt};
use axum::{Json, Router};
use futures_util::future::{BoxFuture, Either, join_all, ready};
use hyper::body::{Bytes, Incoming};
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixSocket, UnixStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::{debug, warn};

use crate::client_addr::Proxies;
use crate::pace::{Answered, Open, Paced, Verdict, Watch};
use crate::places::{Place, Places};
use crate::rarely::Rarely;
use crate::tasks::{Tasks, caught};
use crate::telemetry;
use crate::tls::Tls;

/// What one server grants its clients.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections open at once. Beyond that the longest idle one is closed for a new one; while none is idle, new ones
    /// wait in the queue of the kernel.
    pub connections: usize,
    /// How many of them one address may hold, or one IPv6 network of 64 bits. Beyond that its own longest idle one is
    /// closed for a new one, or the new one is. Trusted proxies have no share.
    pub share: usize,
    /// How long the head of a request may take, and before it a TLS handshake or PROXY header. Looked at in steps of
    /// half of it.
    pub header_timeout: Duration,
    /// How long a connection is kept on which nothing is asked, and how long one whose client does not take its answer.
    pub idle_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            share: 2_500,
            header_timeout: Duration::from_secs(10),
            // Longer than a minute, so that what is asked once a minute finds its connection open.
            idle_timeout: Duration::from_secs(75),
        }
    }
}

/// How a public address faces the network.
#[derive(Clone, Default)]
pub struct Front {
    /// What clients are granted.
    pub limits: Limits,
    /// Who stands between them and us.
    pub proxies: Proxies,
    /// TLS, unless plain.
    pub tls: Option<Arc<Tls>>,
    /// Who looks at requests before the router.
    pub shortcut: Option<Arc<dyn Shortcut>>,
}

/// Answers some requests without the router and its layers. What it passes on goes the ordinary way; what it answers
/// carries only what it says itself.
pub trait Shortcut: Send + Sync {
    /// Looks at a request.
    fn take(&self, request: Request<Incoming>) -> Taken;
}

/// What becomes of a request.
pub enum Taken {
    /// It has its answer.
    Answered(Response<Bytes>),
    /// It goes on to the router.
    Passed(Request<Body>),
    /// That is known when its body is there.
    Reading(BoxFuture<'static, Taken>),
}

/// Binds a TCP address.
///
/// # Errors
///
/// The address cannot be bound; the error names it.
pub async fn listen(addr: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr)
        .await
        .with_context(|| format!("cannot listen on {addr}"))
}

/// Starts serving `router` on `listener` with the default [`Front`], and returns.
///
/// Requests carry `ConnectInfo<SocketAddr>` and [`ClientAddr`](crate::client_addr::ClientAddr). Stage one of `tasks`
/// stops accepting and lets requests in flight finish; a handler that waits, such as a long poll, waits for
/// `tasks.token()` as well. Stage two closes what is left.
pub async fn serve(listener: TcpListener, router: Router, tasks: &Tasks) {
    serve_front(Front::default(), listener, router, tasks);
}

/// Starts serving as [`serve`] does, with a front of the caller's choice.
pub fn serve_front(front: Front, listener: TcpListener, router: Router, tasks: &Tasks) {
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            debug!("a connection keeps Nagle's algorithm: {error}");
        }
    });
    let limits = front.limits;
    let (front, owner) = (Arc::new(front), tasks.clone());
    let proxies = front.clone();
    let counted = move |peer: &SocketAddr| {
        let peer = peer.ip().to_canonical();
        (!proxies.proxies.trust(peer)).then_some(peer)
    };
    let connected = move |stream, peer, place| open(stream, peer, place, front.clone(), router.clone(), owner.clone());
    tasks.spawn("accept", accept(listener, limits, tasks.clone(), counted, connected));
}

/// Starts serving `router` on a Unix socket that only this user can open, and returns.
///
/// Replaces a socket nobody listens on. The parent directory is created with mode 0700 if it does not exist; one that
/// exists keeps its mode.
///
/// # Errors
///
/// Another process listens on `path`, something else than a socket is there, or the socket cannot be created.
pub async fn serve_unix(path: &Path, router: Router, tasks: &Tasks) -> anyhow::Result<()> {
    serve_unix_to(path, Peers::default(), router, tasks).await
}

/// Who may connect to a Unix socket, besides its owner and root.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    /// The group that may open the socket.
    pub group: Option<u32>,
    /// Users that are answered. When there is none, every user is whose primary group is that of the socket.
    pub users: Vec<u32>,
}

impl Peers {
    /// By what the kernel says of the process that connected (SO_PEERCRED, unix(7)).
    fn admit(&self, user: u32, group: u32) -> bool {
        let by_group = self.users.is_empty() && self.group == Some(group);
        user == 0 || user == rustix::process::geteuid().as_raw() || self.users.contains(&user) || by_group
    }
}

/// As [`serve_unix`], for peers of other users too. A peer that is not admitted is disconnected.
///
/// # Errors
/// When the socket cannot be bound, or given to the group.
pub async fn serve_unix_to(path: &Path, peers: Peers, router: Router, tasks: &Tasks) -> anyhow::Result<()> {
    let listener = bind_unix(path, peers.group)
        .await
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    let (limits, owner) = (Limits::default(), tasks.clone());
    let connected = move |stream: UnixStream, _, place| {
        let peer = stream.peer_cred().map(|peer| (peer.uid(), peer.gid()));
        let is_admitted = matches!(peer, Ok((user, group)) if peers.admit(user, group));
        let (router, owner) = (router.clone(), owner.clone());
        async move {
            match is_admitted {
                true => connection(stream, place, None, limits, router, owner).await,
                false => warn!("a connection to the socket is refused: its user and group are {peer:?}"),
            }
        }
    };
    tasks.spawn("accept", accept(listener, limits, tasks.clone(), |_| None, connected));
    Ok(())
}

async fn bind_unix(path: &Path, group: Option<u32>) -> anyhow::Result<UnixListener> {
    const BACKLOG: u32 = 1024;
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) => {
            ensure!(found.file_type().is_socket(), "there is a file that is not a socket");
            if UnixStream::connect(path).await.is_ok() {
                bail!("another process listens there");
            }
            std::fs::remove_file(path)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    // Before it listens: until then nothing can connect.
    let mode = match group {
        Some(group) => {
            let given = std::os::unix::fs::chown(path, None, Some(group));
            given.with_context(|| format!("the socket cannot be given to group {group}; its user must be a member"))?;
            0o660
        }
        None => 0o600,
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(socket.listen(BACKLOG)?)
}

async fn accept<L: Listener, F>(
    mut listener: L,
    limits: Limits,
    tasks: Tasks,
    counted: impl Fn(&L::Addr) -> Option<IpAddr> + Send + 'static,
    connected: impl Fn(L::Io, L::Addr, Place) -> F + Send + 'static,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let places = Places::new(limits.connections, limits.share);
    let stop = tasks.token();
    loop {
        let next = async {
            let (stream, addr) = listener.accept().await;
            // At most this one connection beyond the bound is taken from the kernel.
            let place = places.take(counted(&addr)).await;
            (stream, addr, place)
        };
        let (stream, addr, place) = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            next = next => next,
        };
        if let Ok(place) = place {
            tasks.spawn("connection", connected(stream, addr, place));
        }
    }
}

/// What is known of the client of a connection.
struct Source {
    peer: SocketAddr,
    addr: IpAddr,
    front: Arc<Front>,
}

/// Learns who is there and agrees on keys, before HTTP.
async fn open(mut stream: TcpStream, peer: SocketAddr, place: Place, front: Arc<Front>, router: Router, tasks: Tasks) {
    let limits = front.limits;
    let opening = async {
        let addr = front.proxies.source(peer, &mut stream).await?;
        let stream = match &front.tls {
            None => Err(stream),
            Some(tls) => Ok(TlsAcceptor::from(tls.config()).accept(stream).await?),
        };
        io::Result::Ok((addr, stream))
    };
    let stop = tasks.token();
    let opened = tokio::select! {
        () = stop.cancelled() => return,
        () = place.gives_way.cancelled() => return debug!("a connection that had not begun made room for another"),
        opened = timeout(limits.header_timeout, opening) => opened,
    };
    let (addr, stream) = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => return debug!("a connection did not begin: {error}"),
        Err(_) => return debug!("a connection took too long to begin"),
    };
    let source = Some(Source { peer, addr, front });
    match stream {
        Ok(encrypted) => connection(encrypted, place, source, limits, router, tasks).await,
        Err(plain) => connection(plain, place, source, limits, router, tasks).await,
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    place: Place,
    source: Option<Source>,
    limits: Limits,
    router: Router,
    tasks: Tasks,
) {
    let pace = place.pace.clone();
    let service = {
        let pace = pace.clone();
        let source = source.map(Arc::new);
        service_fn(move |request: Request<Incoming>| {
            let open = pace.asked(request.version());
            let shortcut = source.as_ref().and_then(|source| source.front.shortcut.as_ref());
            let taken = match shortcut {
                _ if !names_one_host(&request) => Taken::Answered(no_host()),
                Some(shortcut) => shortcut.take(request),
                None => Taken::Passed(request.map(Body::new)),
            };
            // Only what needs the router pays for it.
            match taken {
                Taken::Answered(answer) => {
                    let answer = answer.map(|octets| Answered::whole(octets, open));
                    Either::Left(ready(Ok::<_, Infallible>(answer)))
                }
                taken => Either::Right(Box::pin(settle(taken, router.clone(), source.clone(), open))),
            }
        })
    };
    let builder = builder(tasks.clone());
    let mut watch = Watch::new(pace.clone());
    let stream = TokioIo::new(Paced(stream, pace));
    let mut connection = pin!(builder.serve_connection(stream, service));
    let events = Events {
        every: limits.header_timeout / 2,
        stop: tasks.token(),
        kill: tasks.kill_token(),
        gives_way: place.gives_way.clone(),
    };
    // The tokens are shared by all connections, and a connection moves often.
    let mut next = Rarely::new(events.next(false, false));
    let (mut stopping, mut asked_to_give_way) = (false, false);
    loop {
        let event = tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    debug!("a connection ended early: {error}");
                }
                return;
            }
            event = &mut next => event,
        };
        match event {
            Event::Kill => return,
            Event::Time => match watch.verdict(&limits) {
                Verdict::Stuck => return debug!("a connection was too slow"),
                Verdict::Idle if stopping => return,
                Verdict::Idle => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
                Verdict::Fine => {}
            },
            Event::GiveWay if place.ends() => return debug!("an idle connection made room for another"),
            // A request came first: it is answered, and the connection, which counts no longer, ends with it.
            Event::GiveWay => {
                asked_to_give_way = true;
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
            Event::Stop => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
        next = Rarely::new(events.next(stopping, asked_to_give_way));
    }
}

/// RFC 9112 §3.2: a request of HTTP/1.1 has one `Host`. Programs in front could take another of two for the one that
/// counts.
fn names_one_host(request: &Request<Incoming>) -> bool {
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(_), None) => true,
        (None, _) => request.version() != Version::HTTP_11,
        _ => false,
    }
}

fn no_host() -> Response<Bytes> {
    const PROBLEM: &[u8] = br#"{"type":"about:blank","title":"Bad Request","status":400,"detail":"a request has exactly one Host header"}"#;
    let mut response = Response::new(Bytes::from_static(PROBLEM));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// What a connection is to look at besides its client.
enum Event {
    Time,
    Stop,
    Kill,
    GiveWay,
}

struct Events {
    every: Duration,
    stop: CancellationToken,
    kill: CancellationToken,
    gives_way: CancellationToken,
}

impl Events {
    fn next(&self, stopping: bool, asked_to_give_way: bool) -> BoxFuture<'static, Event> {
        let (every, stop, kill) = (self.every, self.stop.clone(), self.kill.clone());
        let gives_way = self.gives_way.clone();
        Box::pin(async move {
            tokio::select! {
                () = sleep(every) => Event::Time,
                () = stop.cancelled(), if !stopping => Event::Stop,
                () = kill.cancelled() => Event::Kill,
                () = gives_way.cancelled(), if !asked_to_give_way => Event::GiveWay,
            }
        })
    }
}

async fn settle(
    mut taken: Taken,
    router: Router,
    source: Option<Arc<Source>>,
    open: Open,
) -> Result<Response<Answered>, Infallible> {
    loop {
        match taken {
            Taken::Answered(answer) => return Ok(answer.map(|octets| Answered::whole(octets, open))),
            Taken::Reading(reading) => taken = reading.await,
            Taken::Passed(mut request) => {
                if let Some(source) = source {
                    let client = source.front.proxies.client(source.addr, request.headers());
                    request.extensions_mut().insert(ConnectInfo(source.peer));
                    request.extensions_mut().insert(client);
                }
                let answer = router.oneshot(request).await?;
                return Ok(answer.map(|body| Answered::new(body, open)));
            }
        }
    }
}

fn builder(tasks: Tasks) -> Builder<Tasks> {
    const PING: Duration = Duration::from_secs(20);
    const STREAMS: u32 = 200;
    /// The longest head; a longer one is a 431.
    const HEAD: usize = 64 * 1024;
    /// Streams that a client opens and resets before we have looked at them, and those that we reset for its faults.
    const RESETS: usize = 20;
    let mut builder = Builder::new(tasks);
    // How long a head may take is the business of `Pace`.
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEAD as u32)
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(RESETS);
    builder
}

/// HTTP/2 streams are tasks of the process like any other.
impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, stream: F) {
        self.spawn("stream", stream);
    }
}

type Check = Box<dyn Fn() -> BoxFuture<'static, anyhow::Result<()>> + Send + Sync>;

/// The dependencies without which a service is not ready, each with a check.
#[derive(Default)]
pub struct Ready {
    checks: Vec<(&'static str, Check)>,
}

impl Ready {
    /// Creates a readiness that depends on nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a dependency. Checks run side by side, and one that takes longer than 2 s has failed.
    pub fn check<F, C>(mut self, name: &'static str, check: F) -> Self
    where
        F: Fn() -> C + Send + Sync + 'static,
        C: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.checks.push((name, Box::new(move || Box::pin(check()))));
        self
    }

    /// Asks all dependencies and names those that failed, in the order they were added; empty means ready.
    pub async fn failing(&self) -> Vec<&'static str> {
        let asked = self
            .checks
            .iter()
            .map(|(name, check)| async move { (!passes(name, check).await).then_some(*name) });
        join_all(asked).await.into_iter().flatten().collect()
    }
}

async fn passes(name: &str, check: &Check) -> bool {
    const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
    let failure = match timeout(CHECK_TIMEOUT, caught(async { check().await })).await {
        Ok(Ok(Ok(()))) => return true,
        Ok(Ok(Err(error))) => format!("{error:#}"),
        Ok(Err(panic)) => format!("the check panicked: {panic}"),
        Err(_) => format!("no answer in {CHECK_TIMEOUT:?}"),
    };
    warn!(dependency = name, "not ready, {name} fails: {failure}");
    false
}

/// Builds the operational routes: `/health` (the process runs), `/ready` (its dependencies answer) and `/metrics`.
pub fn ops_router(ready: Ready) -> Router {
    let ready = Arc::new(ready);
    Router::new()
        .route("/health", get(async || Json(json!({ "status": "healthy" }))))
        .route("/ready", get(move || async move { readiness(&ready).await }))
        .route(
            "/metrics",
            get(async || ([(CONTENT_TYPE, "text/plain; version=0.0.4")], telemetry::render())),
        )
}

async fn readiness(ready: &Ready) -> (StatusCode, Json<Value>) {
    let failing = ready.failing().await;
    if failing.is_empty() {
        return (StatusCode::OK, Json(json!({ "status": "ready" })));
    }
    (
        StatusCode::SERVICE_UNAVAILABLE,
        Json(json!({ "status": "unavailable", "failing": failing })),
    )
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;
    use axum::body::Body;
    use futures_util::FutureExt;
    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::Notify;

    use super::*;

    const GRACE: Duration = Duration::from_secs(5);
    const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    async fn local(router: Router, limits: Limits, tasks: &Tasks) -> SocketAddr {
        let listener = listen(LOCAL).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let front = Front {
            limits,
            ..Front::default()
        };
        serve_front(front, listener, router, tasks);
        addr
    }

    async fn ask(stream: &mut (impl AsyncWriteExt + Unpin), path: &str) {
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
    }

    async fn rest(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    /// A route that says when it was entered and answers when it is told to.
    fn slow() -> (Router, Arc<Notify>, Arc<Notify>) {
        let (entered, answer) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (enter, wait) = (entered.clone(), answer.clone());
        let route = get(move || async move {
            enter.notify_one();
            wait.notified().await;
            "done"
        });
        (Router::new().route("/slow", route), entered, answer)
    }

    #[tokio::test]
    async fn an_occupied_address_is_an_error_that_names_it() {
        let first = listen(LOCAL).await.unwrap();
        let addr = first.local_addr().unwrap();
        let error = listen(addr).await.unwrap_err();
        assert_eq!(error.to_string(), format!("cannot listen on {addr}"));
    }

    #[tokio::test]
    async fn a_request_in_flight_is_answered_and_no_connection_is_taken_after_stage_one() {
        let tasks = Tasks::new();
        let (router, entered, answer) = slow();
        let addr = local(router, Limits::default(), &tasks).await;
        let mut client = TcpStream::connect(addr).await.unwrap();
        ask(&mut client, "/slow").await;
        entered.notified().await;
        let story = async {
            tasks.token().cancelled().await;
            answer.notify_one();
            rest(&mut client).await
        };
        let (in_grace, text) = tokio::join!(tasks.drain(GRACE), story);
        assert!(in_grace);
        assert!(
            text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("done"),
            "{text}"
        );
        assert!(TcpStream::connect(addr).await.is_err());
    }

    #[tokio::test]
    async fn a_long_poll_that_watches_stage_one_ends_with_an_answer_and_idle_connections_close() {
        let tasks = Tasks::new();
        let (stop, entered) = (tasks.token(), Arc::new(Notify::new()));
        let enter = entered.clone();
        let poll = get(move || async move {
            enter.notify_one();
            stop.cancelled().await;
            StatusCode::NO_CONTENT
        });
        let addr = local(Router::new().route("/poll", poll), Limits::default(), &tasks).await;
        let mut client = TcpStream::connect(addr).await.unwrap();
        let mut idle = TcpStream::connect(addr).await.unwrap();
        ask(&mut client, "/poll").await;
        entered.notified().await;
        let (in_grace, text, nothing) = tokio::join!(tasks.drain(GRACE), rest(&mut client), async {
            let mut bytes = Vec::new();
            // A reset is as good an end as a close.
            let _ = idle.read_to_end(&mut bytes).await;
            bytes
        });
        assert!(in_grace);
        assert!(text.starts_with("HTTP/1.1 204"), "{text}");
        assert!(nothing.is_empty());
    }

    #[tokio::test]
    async fn a_client_that_sends_no_request_is_dropped_whatever_it_began_with() {
        let limits = Limits {
            header_timeout: Duration::from_millis(50),
            ..Limits::default()
        };
        for beginning in ["", "P", "PRI * HTTP/2", "GET / HTTP/1.1\r\nhost:"] {
            let tasks = Tasks::new();
            let addr = local(Router::new(), limits, &tasks).await;
            let mut client = TcpStream::connect(addr).await.unwrap();
            client.write_all(beginning.as_bytes()).await.unwrap();
            let mut bytes = Vec::new();
            let end = timeout(GRACE, client.read_to_end(&mut bytes)).await;
            assert!(end.is_ok(), "{beginning:?} keeps its connection");
            assert!(tasks.drain(GRACE).await);
        }
    }

    #[tokio::test]
    async fn connections_beyond_the_bound_wait_for_a_place() {
        let tasks = Tasks::new();
        let (router, entered, answer) = slow();
        let addr = local(
            router,
            Limits {
                connections: 1,
                ..Limits::default()
            },
            &tasks,
        )
        .await;
        let mut first = TcpStream::connect(addr).await.unwrap();
        ask(&mut first, "/slow").await;
        entered.notified().await;
        let mut second = TcpStream::connect(addr).await.unwrap();
        ask(&mut second, "/slow").await;
        assert!(entered.notified().now_or_never().is_none());
        drop(first);
        answer.notify_one();
        entered.notified().await;
        answer.notify_one();
        let mut head = [0; 15];
        second.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200 OK");
        assert!(tasks.drain(GRACE).await);
    }

    #[tokio::test]
    async fn a_request_without_one_host_is_a_bad_request() {
        let tasks = Tasks::new();
        let addr = local(ops_router(Ready::new()), Limits::default(), &tasks).await;
        for (version, hosts, status) in [
            ("1.1", "", "400"),
            ("1.1", "host: a\r\nhost: b\r\n", "400"),
            ("1.1", "host: a\r\nHost: a\r\n", "400"),
            ("1.0", "host: a\r\nhost: b\r\n", "400"),
            ("1.1", "host: a\r\n", "200"),
            ("1.0", "", "200"),
        ] {
            let mut client = TcpStream::connect(addr).await.unwrap();
            let request = format!("GET /health HTTP/{version}\r\n{hosts}connection: close\r\n\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
            let text = rest(&mut client).await;
            assert_eq!(text.split(' ').nth(1), Some(status), "{version} {hosts:?}: {text}");
        }
        assert!(tasks.drain(GRACE).await);
    }

    #[tokio::test]
    async fn an_idle_connection_makes_room_for_a_new_one_at_once() {
        let tasks = Tasks::new();
        let limits = Limits {
            connections: 2,
            share: 2,
            ..Limits::default()
        };
        let addr = local(ops_router(Ready::new()), limits, &tasks).await;
        let mut idle = vec![];
        for _ in 0..2 {
            let mut client = TcpStream::connect(addr).await.unwrap();
            ask(&mut client, "/health").await;
            let mut head = [0; 15];
            client.read_exact(&mut head).await.unwrap();
            idle.push(client);
        }
        for _ in 0..5 {
            let mut client = TcpStream::connect(addr).await.unwrap();
            ask(&mut client, "/health").await;
            let mut head = [0; 15];
            client.read_exact(&mut head).await.unwrap();
            assert_eq!(&head, b"HTTP/1.1 200 OK");
            idle.push(client);
        }
        let mut end = Vec::new();
        // A reset is as good an end as a close.
        let _ = timeout(GRACE, idle[0].read_to_end(&mut end))
            .await
            .expect("the longest idle one is closed");
        assert!(tasks.drain(GRACE).await);
    }

    #[tokio::test]
    async fn a_unix_socket_is_private_replaces_a_stale_one_and_respects_a_live_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/service.sock");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;

        drop(bind_unix(&path, None).await.unwrap());
        let tasks = Tasks::new();
        serve_unix(&path, ops_router(Ready::new()), &tasks).await.unwrap();
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let error = serve_unix(&path, Router::new(), &tasks).await.unwrap_err();
        assert!(
            format!("{error:#}").ends_with("another process listens there"),
            "{error:#}"
        );

        let mut client = UnixStream::connect(&path).await.unwrap();
        client
            .write_all(b"GET /health HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        assert!(rest(&mut client).await.ends_with(r#"{"status":"healthy"}"#));
        assert!(tasks.drain(GRACE).await);

        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(bind_unix(&file, None).await.is_err());
        assert!(file.exists());
    }

    #[tokio::test]
    async fn a_unix_socket_is_for_its_owner_and_the_peers_it_is_told_of() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let listener = bind_unix(&path, Some(group)).await.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        drop(listener);
        let peers = |group, users: &[u32]| Peers {
            group,
            users: users.to_vec(),
        };
        let other = user + 1000;
        for (peers, peer, admits) in [
            (peers(None, &[]), (user, other), true),
            (peers(None, &[]), (0, other), true),
            (peers(None, &[]), (other, group), false),
            (peers(Some(other), &[]), (other, other), true),
            (peers(Some(other), &[]), (other, other + 1), false),
            (peers(Some(other), &[other]), (other, other + 1), true),
            (peers(Some(other), &[other]), (other + 1, other), false),
        ] {
            assert_eq!(peers.admit(peer.0, peer.1), admits, "{peers:?} {peer:?}");
        }
    }

    async fn fetch(router: Router, path: &str) -> (StatusCode, String) {
        let response = router
            .oneshot(Request::get(path).body(Body::empty()).unwrap())
            .await
            .unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn readiness_names_every_dependency_that_fails_panics_or_is_silent() {
        let ready = || Ready::new().check("database", || async { Ok(()) });
        let (status, body) = fetch(ops_router(ready()), "/ready").await;
        assert_eq!((status.as_u16(), body.as_str()), (200, r#"{"status":"ready"}"#));

        let ready = ready()
            .check("signer", || async { Err(anyhow!("refused")) })
            .check("cache", std::future::pending)
            .check("queue", || async { panic!("on purpose") });
        let (status, body) = fetch(ops_router(ready), "/ready").await;
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(
            body,
            json!({ "status": "unavailable", "failing": ["signer", "cache", "queue"] })
        );
    }

    #[tokio::test]
    async fn health_and_metrics_answer_without_any_dependency() {
        telemetry::metrics();
        metrics::counter!("serve_test_total").increment(1);
        let ready = || Ready::new().check("database", || async { Err(anyhow!("down")) });
        assert_eq!(
            fetch(ops_router(ready()), "/health").await,
            (StatusCode::OK, r#"{"status":"healthy"}"#.into())
        );
        let (status, body) = fetch(ops_router(ready()), "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert!(body.contains("serve_test_total 1"), "{body}");
    }
}
