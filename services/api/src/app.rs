//! What handlers share, and how a row of the table becomes a route.

use std::{collections::HashSet, future::Future, net::IpAddr, sync::Arc};

use aws_lc_rs::digest;
use axum::{
    Router,
    body::Body,
    extract::{OriginalUri, RawPathParams, RawQuery, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::MethodFilter,
};
use bytes::Bytes;
use certctl_client::Client;
use certctl_contract::{
    catalogue,
    endpoint::{Access, Class, Endpoint, File, Media, NoBody, Reply, repeatable},
    problem::Problem,
    query::{self, Invalid, PathParams, Query},
};
use certctl_model::{
    audit::Actor,
    id::CertificateId,
    text,
    time::{Clock, Time},
};
use certctl_runtime::{client_addr::ClientAddr, journal::Journal, tasks::Tasks};
use certctl_store::{Tx, journal, wake::Wakes};
use futures_util::{StreamExt, stream::BoxStream};
use serde_json::Value;
use sqlx::PgPool;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    access_log::RequestId,
    auth::{self, Gate, Principal},
    body::Upload,
    calls::{Call, Trail},
    config::{Config, KeygenMode},
    edge::{Answers, Asking, Shelf, crl, ocsp},
    error::ApiError,
    headers::Headers,
    idempotency::{self, Once},
    limits::{Limits, Turn},
    link::Link,
    reach::Reached,
    readers::Readers,
    written::Written,
};

/// Imports that are read at once. Certificates take several times their octets while they are looked at.
const HEAVY: usize = 2;

/// What every handler can reach.
pub struct App {
    /// The database.
    pub pool: PgPool,
    /// The same, for lists.
    pub readers: Readers,
    /// The signer.
    pub signer: Client,
    /// The time.
    pub clock: Clock,
    /// Who may come in.
    pub gate: Gate,
    /// How much a party may ask.
    pub limits: Limits,
    /// What every answer says.
    pub headers: Headers,
    /// News from the database.
    pub wakes: Arc<Wakes>,
    /// Cancelled when the service stops; long polls end then.
    pub stop: CancellationToken,
    /// The tasks of the service, for work that must not be cut off.
    pub tasks: Tasks,
    /// Where calls are recorded.
    pub trail: Trail,
    /// Where revocations are kept outside the database, if they are.
    pub journal: Option<Journal>,
    /// When the service started.
    pub started: Time,
    /// Whether constant bodies are given, for measurements.
    pub bench_route: bool,
    /// Whether keys are made here for certificates without targets.
    pub server_makes_keys: bool,
    /// Redis.
    pub link: Option<Arc<Link>>,
    /// OCSP answers that are given again.
    pub answers: Answers,
    /// What is said of them all.
    pub said_of_ocsp: ocsp::Said,
    /// OCSP questions that wait for the signer.
    pub asking: Asking,
    /// CRLs in their packed form.
    pub packed: crl::Packed,
    /// Turns of requests that can take much more memory than they have octets.
    pub heavy: Semaphore,
    /// How long the large lists are.
    pub totals: crate::listing::Totals,
}

impl App {
    /// Puts it together.
    ///
    /// # Errors
    /// When the secrets cannot be read.
    pub fn new(
        config: &Config,
        clock: Clock,
        pool: PgPool,
        signer: Client,
        limits: Limits,
        link: Option<Arc<Link>>,
        tasks: &Tasks,
    ) -> anyhow::Result<Arc<Self>> {
        let (gate, started) = (Gate::new(config.auth()?)?, clock.now());
        Ok(Arc::new(Self {
            readers: Readers::new(pool.clone()),
            signer,
            gate,
            limits,
            headers: config.edge.headers(),
            wakes: Arc::new(Wakes::default()),
            stop: tasks.token(),
            tasks: tasks.clone(),
            trail: Trail::new(config.audit.calls),
            journal: match &config.revocation_journal_dir {
                Some(directory) => Some(Journal::open(directory, "revocations")?),
                None => None,
            },
            started,
            bench_route: config.bench_route,
            server_makes_keys: config.keygen_mode == KeygenMode::Server,
            answers: Answers::new(
                config.edge.ocsp_octets(),
                link.clone()
                    .map(|link| Shelf::new(link, pool.clone(), clock.clone(), tasks)),
            ),
            said_of_ocsp: ocsp::Said::new(&config.edge.headers()),
            pool,
            clock,
            link,
            asking: Asking::default(),
            packed: crl::Packed::default(),
            heavy: Semaphore::new(HEAVY),
            totals: crate::listing::Totals::default(),
        }))
    }
}

impl App {
    /// Has what became of a certificate's revocation in the journal before anybody is told of it.
    ///
    /// # Errors
    /// 503: it is done, but not on the disk. It is appended later.
    pub async fn journal(&self, certificate: &CertificateId) -> Result<(), ApiError> {
        let Some(journal) = &self.journal else { return Ok(()) };
        let written = journal::write(&self.pool, Some(std::slice::from_ref(certificate)), |lines| {
            journal.append(lines)
        });
        written
            .await
            .map(|_| ())
            .map_err(|error| ApiError::unavailable(error.to_string()))
    }

    /// Appends what others left when they died before it was in a journal.
    pub async fn journal_rest(&self) {
        let Some(journal) = &self.journal else { return };
        if let Err(error) = journal::write(&self.pool, None, |lines| journal.append(lines)).await {
            tracing::warn!(%error, "revocations wait for the journal; trying again");
        }
    }
}

/// Who asks, and what the handler works with.
#[derive(Clone)]
pub struct Cx {
    /// What every handler can reach.
    pub app: Arc<App>,
    /// Who asks.
    pub principal: Principal,
    /// The same, for the trail.
    pub actor: Actor,
    /// Which certificates the caller reaches.
    pub reach: Reached,
    /// What the first unit of work claims, when the request is to be done once.
    pub once: Option<Arc<Once>>,
    /// The address the request came from, behind trusted proxies.
    pub client: Option<IpAddr>,
    asked: Conditions,
}

/// Headers that decide how a request is answered.
#[derive(Clone)]
struct Conditions {
    none_match: Option<HeaderValue>,
    key: Option<HeaderValue>,
}

impl Cx {
    /// The time.
    pub fn now(&self) -> Time {
        self.app.clock.now()
    }

    /// The database, for reading.
    pub fn pool(&self) -> &PgPool {
        &self.app.pool
    }

    /// Begins a unit of work in the caller's name.
    ///
    /// # Errors
    /// When there is no connection.
    pub async fn begin(&self) -> Result<Tx, ApiError> {
        let mut tx = Tx::begin(&self.app.pool, &self.actor, self.now()).await?;
        tx.limit(self.principal.key(), (*self.reach.certificates).clone());
        if let Some(once) = &self.once {
            once.claim(&mut tx).await?;
        }
        Ok(tx)
    }
}

/// A request, parsed. `B` is [`Upload`] where the handler reads the body itself.
pub struct Request<E: Endpoint, B = <E as Endpoint>::Body> {
    /// What the path says.
    pub path: E::Path,
    /// What the query says.
    pub query: E::Query,
    /// What the body says.
    pub body: B,
}

/// A file that is written while it is read: an answer of operations whose reply is a
/// [`File`].
pub struct Download {
    /// Its media type, parameters included.
    pub content_type: String,
    /// Its name, ASCII without quotes.
    pub name: String,
    /// Its octets. An error breaks the answer off, so that nobody takes a part for the whole.
    pub chunks: BoxStream<'static, Result<Bytes, ApiError>>,
}

/// Routes under construction.
#[derive(Default)]
pub struct Routes {
    router: Router<Arc<App>>,
    mounted: HashSet<&'static str>,
}

impl Routes {
    /// Mounts the handler of an operation; which one is read off its argument.
    pub fn on<E, H, F>(self, handler: H) -> Self
    where
        E: Endpoint,
        H: Fn(Cx, Request<E>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<E::Reply, ApiError>> + Send + 'static,
    {
        self.mount::<E, _, _>(move |cx, rq| {
            let handler = handler.clone();
            async move {
                let Request { path, query, body } = rq;
                let fields = query.fields().to_vec();
                let operation = body.operation().to_owned();
                let octets = body.whole().await?;
                let app = cx.app.clone();
                let _turn = match E::CLASS {
                    Class::Import => Some(app.heavy.acquire().await),
                    Class::Ordinary | Class::Upload | Class::Export => None,
                };
                check_texts::<E>(&octets)?;
                let body = read_json::<E>(&octets)?;
                let rq = Request { path, query, body };
                let Conditions { none_match, key } = cx.asked.clone();
                let key = key.filter(|_| repeatable(&E::METHOD, E::ACCESS, E::CLASS));
                let Some(key) = key else {
                    return respond::<E>(handler(cx, rq).await?, &fields, none_match.as_ref());
                };
                let once = Once::new(cx.principal.key(), &key, operation, &octets)?;
                let is_kept = idempotency::is_kept::<E>(&app);
                let work = async move |cx| {
                    let reply = handler(cx, rq).await?;
                    let kept = is_kept.then(|| reply.encode());
                    Ok((respond::<E>(reply, &fields, None)?, kept))
                };
                idempotency::once(cx, once, work).await
            }
        })
    }

    /// Mounts a handler that writes the JSON of its reply itself: a list.
    pub fn on_written<E, H, F>(self, handler: H) -> Self
    where
        E: Endpoint<Body = NoBody>,
        H: Fn(Cx, Request<E>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<Written<E::Reply>, ApiError>> + Send + 'static,
    {
        self.mount::<E, _, _>(move |cx, rq| {
            let handler = handler.clone();
            async move {
                let Request { path, query, .. } = rq;
                let (fields, none_match) = (query.fields().to_vec(), cx.asked.none_match.clone());
                let body = NoBody;
                let written = handler(cx, Request { path, query, body }).await?;
                validated::<E>(written.octets, &fields, none_match.as_ref())
            }
        })
    }

    /// Mounts a handler that reads the body itself, while it arrives.
    pub fn on_upload<E, H, F>(self, handler: H) -> Self
    where
        E: Endpoint,
        H: Fn(Cx, Request<E, Upload>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<E::Reply, ApiError>> + Send + 'static,
    {
        self.mount::<E, _, _>(move |cx, rq| {
            let answer = handler(cx, rq);
            async move { respond::<E>(answer.await?, &[], None) }
        })
    }

    /// Mounts a handler that writes the response itself, in the shape that the table says: one too large to be held.
    pub fn on_written_by<E, H, F>(self, handler: H) -> Self
    where
        E: Endpoint<Body = NoBody>,
        H: Fn(Cx, Request<E>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<Response, ApiError>> + Send + 'static,
    {
        self.mount::<E, _, _>(move |cx, rq| {
            let Request { path, query, .. } = rq;
            let body = NoBody;
            handler(cx, Request { path, query, body })
        })
    }

    /// Mounts a handler whose answer is a file that is written while it is read.
    pub fn on_download<E, M, H, F>(self, handler: H) -> Self
    where
        E: Endpoint<Reply = File<M>>,
        M: Media,
        H: Fn(Cx, Request<E>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<Download, ApiError>> + Send + 'static,
    {
        self.mount::<E, _, _>(move |cx, rq| {
            let handler = handler.clone();
            async move {
                let Request { path, query, body } = rq;
                let body = read_json::<E>(&body.whole().await?)?;
                let file = handler(cx, Request { path, query, body }).await?;
                stream::<E>(file)
            }
        })
    }

    fn mount<E, H, F>(mut self, handler: H) -> Self
    where
        E: Endpoint,
        H: Fn(Cx, Request<E, Upload>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<Response, ApiError>> + Send,
    {
        assert!(self.mounted.insert(E::NAME), "{} is mounted twice", E::NAME);
        let filter = MethodFilter::try_from(E::METHOD).expect("methods of the table are ordinary ones");
        let route = move |State(app): State<Arc<App>>,
                          id: axum::Extension<RequestId>,
                          call: axum::Extension<Call>,
                          client: Option<axum::Extension<ClientAddr>>,
                          OriginalUri(uri): OriginalUri,
                          params: RawPathParams,
                          RawQuery(query): RawQuery,
                          headers: HeaderMap,
                          body: Body| {
            let handler = handler.clone();
            async move {
                let began = std::time::Instant::now();
                call.of(E::NAME);
                let host = uri.authority().map(|authority| authority.as_str().to_owned());
                let asked = Asked {
                    host: host.or_else(|| text(&headers, header::HOST)),
                    params: params.iter().map(|(_, text)| text.to_owned()).collect(),
                    query,
                    operation: format!("{} {uri}", E::METHOD),
                    headers,
                    body,
                    call: call.0,
                    client: client.as_ref().map(|client| client.0.0),
                };
                let mut turn = Turn::new(client.map(|client| client.0), E::ACCESS, &E::path());
                let answer = answer::<E, H, F>(app.clone(), &mut turn, handler, asked);
                let answer = tokio::time::timeout(E::CLASS.answer_timeout(), answer);
                let mut response = match answer.await {
                    Ok(Ok(response)) => response,
                    Ok(Err(error)) => {
                        let error = turn.failed(&app.limits, error).await;
                        error.into_problem(&id.0).into_response()
                    }
                    Err(_) => ApiError::unavailable("the answer took too long")
                        .into_problem(&id.0)
                        .into_response(),
                };
                turn.write(response.headers_mut());
                let status = response.status().as_u16().to_string();
                metrics::counter!("http_requests_total", "operation" => E::NAME, "status" => status).increment(1);
                metrics::histogram!("http_request_duration_seconds", "operation" => E::NAME)
                    .record(began.elapsed().as_secs_f64());
                response
            }
        };
        self.router = self
            .router
            .route(&positional(&E::path()), axum::routing::on(filter, route));
        self
    }

    /// What is mounted, which is beside the catalogue.
    pub fn beside(self) -> Router<Arc<App>> {
        self.router
    }

    /// Checks that what is mounted is the catalogue, no less and no more.
    ///
    /// # Panics
    /// When it is not: the service must not start half-built.
    pub fn finish(self) -> Router<Arc<App>> {
        let expected: HashSet<&str> = catalogue().iter().map(|o| o.name).collect();
        let missing: Vec<_> = expected.difference(&self.mounted).collect();
        assert!(missing.is_empty(), "operations without a handler: {missing:?}");
        assert_eq!(
            expected.len(),
            self.mounted.len(),
            "handlers of operations outside the catalogue"
        );
        self.router
    }
}

/// Names the placeholders by position: the router wants one name where operations have several.
fn positional(path: &str) -> String {
    let mut n = 0;
    let part = |segment: &str| match segment.starts_with('{') {
        true => {
            n += 1;
            format!("{{p{n}}}")
        }
        false => segment.to_owned(),
    };
    path.split('/').map(part).collect::<Vec<_>>().join("/")
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?;
    Some(value.to_owned())
}

/// A request, not yet parsed.
struct Asked {
    /// The name that it was sent to.
    host: Option<String>,
    params: Vec<String>,
    query: Option<String>,
    operation: String,
    headers: HeaderMap,
    body: Body,
    call: Call,
    client: Option<IpAddr>,
}

async fn answer<E, H, F>(app: Arc<App>, turn: &mut Turn, handler: H, asked: Asked) -> Result<Response, ApiError>
where
    E: Endpoint,
    H: Fn(Cx, Request<E, Upload>) -> F,
    F: Future<Output = Result<Response, ApiError>>,
{
    let principal = {
        let _turn = turn.to_authenticate(&app.limits).await;
        auth::authenticate(&app, E::ACCESS, &E::METHOD, asked.host.as_deref(), &asked.headers).await?
    };
    let actor = principal.actor();
    asked.call.by(&actor);
    turn.take(&app.limits, E::ACCESS, &principal).await?;
    let texts: Vec<&str> = asked.params.iter().map(String::as_str).collect();
    auth::authorise(&principal, E::ACCESS, texts.first().copied())?;
    auth::admits_reach(&principal, E::ACCESS, E::SCOPING)?;
    let reach = Reached::of(&principal);
    let path =
        E::Path::parse(&texts).map_err(|invalid| ApiError::malformed("the path cannot be read", vec![invalid]))?;
    let pairs = serde_urlencoded::from_str(asked.query.as_deref().unwrap_or(""))
        .map_err(|_| ApiError::malformed("the query is not percent-encoded UTF-8", vec![]))?;
    let pairs: Vec<(String, String)> = pairs;
    if let Some((name, _)) = pairs.iter().find(|(_, value)| value.contains('\0')) {
        let invalid = vec![Invalid::new(name, "holds a NUL character")];
        return Err(ApiError::malformed("the query cannot be read", invalid));
    }
    reach.must_include(&app, E::SCOPING, texts.first().copied()).await?;
    let query: E::Query =
        query::parse(pairs).map_err(|invalid| ApiError::malformed("the query cannot be read", invalid))?;
    check_fields::<E>(query.fields())?;
    let body = Upload::new(asked.body, E::CLASS, asked.operation, &asked.headers, asked.call);
    let header = |name| asked.headers.get(name).cloned();
    let cx = Cx {
        app,
        principal,
        actor,
        reach: reach.clone(),
        once: None,
        client: asked.client,
        asked: Conditions {
            none_match: header(header::IF_NONE_MATCH),
            key: header(idempotency::KEY),
        },
    };
    let response = handler(cx, Request { path, query, body }).await?;
    reach.must_have_been_asked(E::SCOPING)?;
    Ok(response)
}

/// The answer of a whole reply.
fn respond<E: Endpoint>(
    reply: E::Reply,
    fields: &[String],
    none_match: Option<&HeaderValue>,
) -> Result<Response, ApiError> {
    let octets = reply.encode();
    let mut response = match E::METHOD == Method::GET && reply.cache_control().is_none() && is_json::<E>() {
        true => validated::<E>(octets, fields, none_match)?,
        false => headed::<E>(reply.content_type(), reply.file_name(), pruned(octets, fields))?,
    };
    if let Some(cache) = reply.cache_control() {
        response.headers_mut().insert(header::CACHE_CONTROL, value(cache)?);
    }
    if let Some(cookie) = reply.set_cookie() {
        response.headers_mut().insert(header::SET_COOKIE, value(cookie)?);
    }
    Ok(response)
}

fn is_json<E: Endpoint>() -> bool {
    E::Reply::CONTENT_TYPES == ["application/json"]
}

/// JSON with an entity tag, or that the client has it already.
fn validated<E: Endpoint>(
    octets: Vec<u8>,
    fields: &[String],
    none_match: Option<&HeaderValue>,
) -> Result<Response, ApiError> {
    let octets = pruned(octets, fields);
    let etag = etag(&octets);
    let mut response = match none_match.is_some_and(|known| names(known, &etag)) {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => headed::<E>(Some("application/json"), None, octets)?,
    };
    let headers = response.headers_mut();
    headers.insert(header::ETAG, value(&format!("W/{etag}"))?);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    Ok(response)
}

fn pruned(octets: Vec<u8>, fields: &[String]) -> Vec<u8> {
    match fields.is_empty() {
        true => octets,
        false => prune(&octets, fields),
    }
}

/// An entity tag for these octets, quoted.
fn etag(octets: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, octets);
    format!("\"{}\"", hex::encode(&digest.as_ref()[..16]))
}

/// Whether an `If-None-Match` names the tag (RFC 9110 §13.1.2: the comparison is weak).
fn names(known: &HeaderValue, etag: &str) -> bool {
    let known = known.to_str().unwrap_or_default();
    let mut tags = known.split(',').map(str::trim);
    tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// The answer of a file that is written while it is read.
fn stream<E: Endpoint>(file: Download) -> Result<Response, ApiError> {
    let end = tokio::time::Instant::now() + E::CLASS.stream_timeout();
    let chunks = file.chunks.map(move |chunk| {
        let chunk = match tokio::time::Instant::now() < end {
            true => chunk,
            false => Err(ApiError::unavailable("the file took too long")),
        };
        chunk.map_err(broken_off)
    });
    let mut response = headed::<E>(Some(&file.content_type), Some(&file.name), Body::from_stream(chunks))?;
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// What becomes of a body that cannot be finished: the head has gone, and breaking off is all that can be said.
pub(crate) fn broken_off(error: ApiError) -> std::io::Error {
    tracing::warn!(error = ?error, "a file breaks off");
    std::io::Error::other("the file breaks off")
}

fn headed<E: Endpoint>(media: Option<&str>, file: Option<&str>, body: impl Into<Body>) -> Result<Response, ApiError> {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(E::STATUS).expect("status codes of the table are constants");
    let headers = response.headers_mut();
    if let Some(media) = media {
        headers.insert(header::CONTENT_TYPE, value(media)?);
    }
    if let Some(name) = file {
        let disposition = format!("attachment; filename=\"{name}\"");
        headers.insert(header::CONTENT_DISPOSITION, value(&disposition)?);
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    }
    Ok(response)
}

fn value(text: &str) -> Result<HeaderValue, ApiError> {
    HeaderValue::try_from(text).map_err(|_| ApiError::internal(format!("no header can hold {text:?}")))
}

fn read_json<E: Endpoint>(octets: &[u8]) -> Result<E::Body, ApiError> {
    let text = octets.trim_ascii();
    let json = if text.is_empty() || text == b"null" {
        b"{}"
    } else {
        text
    };
    // What takes no body ignores what is sent.
    let json = if std::any::TypeId::of::<E::Body>() == std::any::TypeId::of::<NoBody>() {
        b"{}"
    } else {
        json
    };
    // An array would be read as the values of the fields, in their order.
    if json.first() != Some(&b'{') {
        return Err(ApiError::malformed("the body is not a JSON object", vec![]));
    }
    let mut reader = serde_json::Deserializer::from_slice(json);
    let parsed = match serde_path_to_error::deserialize(&mut reader) {
        Ok(parsed) => parsed,
        Err(error) => return with_whole_numbers(json).ok_or_else(|| unreadable(error)),
    };
    match reader.end() {
        Ok(()) => Ok(parsed),
        Err(_) => Err(ApiError::malformed("the body goes on after its JSON object", vec![])),
    }
}

/// Refuses invisible characters in the texts of a body: all that people write and read passes here. Encoded data has lines
/// and marks of its own, and what agents and imported certificates say of themselves is read tolerantly where it is stored.
fn check_texts<E: Endpoint>(octets: &[u8]) -> Result<(), ApiError> {
    let is_written_by_people = matches!(E::ACCESS, Access::Needs(_) | Access::Bootstrap) && E::CLASS != Class::Import;
    // Only other alphabets and escapes can spell such a character.
    let may_hold_one = || !octets.is_ascii() || octets.windows(2).any(|two| matches!(two, b"\\u" | b"\\b" | b"\\f"));
    if !is_written_by_people || !may_hold_one() {
        return Ok(());
    }
    // What cannot be read is refused with better words where it is read.
    let Ok(body) = serde_json::from_slice::<Value>(octets) else {
        return Ok(());
    };
    match hidden_in(&body, "") {
        Some(field) => Err(ApiError::invalid(
            &field,
            "holds a control or format character, which is invisible",
        )),
        None => Ok(()),
    }
}

/// The field of a text with an invisible character, if there is one.
fn hidden_in(value: &Value, field: &str) -> Option<String> {
    let encoded = ["pem", "der", "base64"].iter().any(|end| field.ends_with(end));
    match value {
        Value::String(text) if !encoded && text.contains(text::is_hidden_in_lines) => Some(field.to_owned()),
        Value::Array(items) => items.iter().find_map(|item| hidden_in(item, field)),
        // Of an object within the body, the field that it is the value of is named.
        Value::Object(map) => map.iter().find_map(|(key, value)| {
            let inner = if field.is_empty() || key.ends_with("pem") {
                key
            } else {
                field
            };
            match key.contains(text::is_hidden) {
                true => Some(field.to_owned()),
                false => hidden_in(value, inner),
            }
        }),
        _ => None,
    }
}

fn unreadable(error: serde_path_to_error::Error<serde_json::Error>) -> ApiError {
    let field = error.path().to_string();
    let inner = error.into_inner();
    match inner.is_data() && field != "." {
        true => ApiError::malformed("the body cannot be read", vec![Invalid::new(field, inner.to_string())]),
        false => ApiError::malformed(format!("the body is not the JSON that is needed: {inner}"), vec![]),
    }
}

/// Reads a body once more with `5.0` as `5`: to JSON Schema both are integers.
fn with_whole_numbers<T: serde::de::DeserializeOwned>(json: &[u8]) -> Option<T> {
    fn walk(value: &mut Value) {
        /// Above this a float no longer tells whole numbers apart.
        const MOST: f64 = 9_007_199_254_740_992.0;
        match value {
            Value::Array(items) => items.iter_mut().for_each(walk),
            Value::Object(map) => map.values_mut().for_each(walk),
            Value::Number(number) => {
                let whole = number
                    .as_f64()
                    .filter(|n| number.is_f64() && n.fract() == 0.0 && n.abs() < MOST);
                if let Some(whole) = whole {
                    *value = Value::from(whole as i64);
                }
            }
            _ => {}
        }
    }
    /// A value takes many times the octets of its text.
    const LONGEST: usize = 256 * 1024;
    if json.len() > LONGEST {
        return None;
    }
    let mut value: Value = serde_json::from_slice(json).ok()?;
    walk(&mut value);
    serde_json::from_value(value).ok()
}

/// No row has so many keys.
const MOST_FIELDS: usize = 64;

fn check_fields<E: Endpoint>(fields: &[String]) -> Result<(), ApiError> {
    if fields.is_empty() {
        return Ok(());
    }
    if fields.len() > MOST_FIELDS {
        let invalid = vec![Invalid::new("fields", format!("are at most {MOST_FIELDS}"))];
        return Err(ApiError::malformed("the query cannot be read", invalid));
    }
    let mut generator = schemars::generate::SchemaSettings::draft2020_12()
        .with(|s| s.inline_subschemas = true)
        .into_generator();
    let schema = E::Reply::schema(&mut generator)
        .map(|s| s.to_value())
        .unwrap_or_default();
    let known = schema
        .pointer("/properties/data/items/properties")
        .and_then(Value::as_object);
    let unknown: Vec<Invalid> = fields
        .iter()
        .filter(|field| !known.is_some_and(|known| known.contains_key(*field)))
        .map(|field| {
            let names: Vec<&str> = known.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
            Invalid::new("fields", format!("\"{field}\" is not one of {}", names.join(", ")))
        })
        .collect();
    if unknown.is_empty() {
        Ok(())
    } else {
        Err(ApiError::malformed("the query cannot be read", unknown))
    }
}

/// Keeps only these keys of each row of a page.
fn prune(page: &[u8], fields: &[String]) -> Vec<u8> {
    let mut page: Value = serde_json::from_slice(page).expect("we wrote it");
    for row in page["data"]
        .as_array_mut()
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
    {
        row.retain(|key, _| fields.iter().any(|field| field == key));
    }
    serde_json::to_vec(&page).expect("it was JSON")
}

/// A problem as an answer.
pub struct ProblemResponse {
    /// The document.
    pub problem: Problem,
    /// `Retry-After`, in seconds.
    pub retry_after: Option<u32>,
}

impl IntoResponse for ProblemResponse {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.problem.status).expect("statuses of problems are constants");
        let mut response = (status, self.problem.encode()).into_response();
        let headers = response.headers_mut();
        let media = HeaderValue::from_static(certctl_contract::problem::CONTENT_TYPE);
        headers.insert(header::CONTENT_TYPE, media);
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"certctl\""),
            );
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_of_the_catalogue_has_exactly_one_handler() {
        let _router = crate::resources::mount(Routes::default()).finish();
    }

    #[test]
    fn placeholders_are_named_by_position() {
        assert_eq!(
            positional("/a/{agent_id}/jobs/{job_id}/status"),
            "/a/{p1}/jobs/{p2}/status"
        );
    }
}
