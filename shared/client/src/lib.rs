//! The typed client of the contract: whoever speaks to a certctl service speaks through it.
//!
//! | module | holds |
//! |---|---|
//! | here | [`Client`]: one call by type, and its settings |
//! | [`error`] | what can go wrong, and whether to try again |
//! | [`json`] | one call by name, with JSON in and out |
//! | [`pages`] | a whole list, page by page |
//! | [`retry`] | how long to wait before trying again |
//!
//! Not here: what operations exist (`contract` says), retries by itself (the caller knows whether a call may be
//! repeated), printing.
#![warn(missing_docs)]

pub mod error;
pub mod json;
pub mod pages;
pub mod retry;

use std::{any::TypeId, path::PathBuf, sync::Arc, time::Duration};

use certctl_contract::{
    endpoint::{Endpoint, NoBody, Reply},
    query::{PathParams, Query},
};
use http::{
    HeaderName, HeaderValue, Method, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_DISPOSITION, CONTENT_TYPE, LOCATION},
};
use hyper_util::client::proxy::matcher::Matcher;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use url::{Host, Url};

pub use certctl_model::secret::Secret;
pub use error::ClientError;
pub use json::{Body, JsonReply};
pub use pages::{Listing, Pages};

/// Answers above this are refused unless set otherwise, so that a broken server cannot fill our memory.
const MAX_REPLY_BYTES: usize = 64 * 1024 * 1024;
/// A server that is there accepts a connection within this time.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Speaks to one server. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    token: Arc<Secret>,
    idempotency_key: Option<HeaderValue>,
    max_reply_bytes: usize,
}

/// Settings of a [`Client`].
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    base: String,
    token: Secret,
    timeout: Duration,
    unix_socket: Option<PathBuf>,
    user_agent: String,
    authorities: Vec<u8>,
    plain_http: bool,
    max_reply_bytes: usize,
}

impl ClientBuilder {
    /// Also speaks plain http to servers on other machines. Without it only servers on this one are reached without TLS:
    /// all who can read the network read the API key otherwise.
    pub fn allow_plain_http(self, plain_http: bool) -> Self {
        Self { plain_http, ..self }
    }

    /// Refuses answers that are larger; 64 MiB when not set. Files that are handed out as they arrive have no limit.
    pub fn max_reply_bytes(self, max_reply_bytes: usize) -> Self {
        Self {
            max_reply_bytes,
            ..self
        }
    }

    /// Also trusts the authorities in this PEM text, besides those of the system.
    pub fn ca_cert(self, pem: impl Into<Vec<u8>>) -> Self {
        Self {
            authorities: pem.into(),
            ..self
        }
    }

    /// Sets the bearer token. The empty one, which is the default, is not sent.
    pub fn token(self, token: Secret) -> Self {
        Self { token, ..self }
    }

    /// Sets how long a call may take from connecting to the last octet; 30 seconds when not set.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Connects to this Unix socket, whatever host the base names; `http://localhost` is the usual base then.
    pub fn unix_socket(self, path: impl Into<PathBuf>) -> Self {
        Self {
            unix_socket: Some(path.into()),
            ..self
        }
    }

    /// Sets the `User-Agent`.
    pub fn user_agent(self, user_agent: &str) -> Self {
        Self {
            user_agent: user_agent.to_owned(),
            ..self
        }
    }

    /// Checks the settings and makes the client; connects to nothing yet.
    ///
    /// Servers on other machines are reached through the proxy of `HTTPS_PROXY` or `ALL_PROXY` unless `NO_PROXY` lists
    /// them; servers on this machine, and Unix sockets, never are.
    ///
    /// # Errors
    /// [`ClientError::BadInput`] when the base is not an http or https address, the token cannot be sent, or the way to
    /// the server is not safe for it: plain http to another machine unless that is allowed, or through a proxy.
    pub fn build(self) -> Result<Client, ClientError> {
        let base = base_url(&self.base)?;
        let here = self.unix_socket.is_some() || is_loopback(&base);
        if base.scheme() == "http" && !here {
            self.check_plain_http(&base)?;
        }
        let mut headers = http::HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json, */*;q=0.5"));
        if !self.token.is_empty() {
            let mut bearer = HeaderValue::from_str(&format!("Bearer {}", self.token.expose()))
                .map_err(|_| ClientError::BadInput("the API key has characters that a header cannot carry".into()))?;
            bearer.set_sensitive(true);
            headers.insert(AUTHORIZATION, bearer);
        }
        let mut http = reqwest::Client::builder()
            .default_headers(headers)
            .user_agent(self.user_agent)
            .timeout(self.timeout)
            .connect_timeout(CONNECT_WITHIN.min(self.timeout))
            .redirect(reqwest::redirect::Policy::none());
        if let Some(path) = self.unix_socket {
            http = http.unix_socket(path);
        }
        if here {
            http = http.no_proxy();
        }
        if !self.authorities.is_empty() {
            let authorities = reqwest::Certificate::from_pem_bundle(&self.authorities).unwrap_or_default();
            if authorities.is_empty() {
                return Err(ClientError::BadInput("the CA certificates are not PEM".into()));
            }
            http = http.tls_certs_merge(authorities);
        }
        if base.scheme() == "http" {
            // Without redirects TLS is never spoken here; hosts without CA certificates can still use plain HTTP.
            http = http.tls_certs_only([]);
        }
        Ok(Client {
            http: http.build().map_err(|e| ClientError::BadInput(error::chain(&e)))?,
            base,
            token: Arc::new(self.token),
            idempotency_key: None,
            max_reply_bytes: self.max_reply_bytes,
        })
    }
}

impl ClientBuilder {
    /// Refuses what would show the token to others than the server.
    fn check_plain_http(&self, base: &Url) -> Result<(), ClientError> {
        if !self.plain_http {
            return Err(ClientError::BadInput(format!(
                "{base} is plain http to another machine, where the API key could be read; use https, or set \
                 CERTCTL_ALLOW_PLAIN_HTTP=true for a network that only you can read"
            )));
        }
        let asked: Option<http::Uri> = base.as_str().parse().ok();
        let proxy = asked.and_then(|asked| Matcher::from_env().intercept(&asked));
        match proxy {
            Some(proxy) if !self.token.is_empty() => Err(ClientError::BadInput(format!(
                "the API key would go to the proxy {} in plain text, because {base} is plain http; use https, or list {} \
                 in NO_PROXY",
                proxy.uri().host().unwrap_or_default(),
                base.host_str().unwrap_or_default()
            ))),
            _ => Ok(()),
        }
    }
}

/// Whether the server is on this machine.
fn is_loopback(base: &Url) -> bool {
    match base.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.to_canonical().is_loopback(),
        None => false,
    }
}

fn base_url(text: &str) -> Result<Url, ClientError> {
    let wrong = |why: &str| {
        ClientError::BadInput(format!(
            "{why}; the server's address is needed, like https://certctl.example.com or http://localhost:8443"
        ))
    };
    let url = Url::parse(text.trim()).map_err(|e| wrong(&format!("the server's address cannot be read: {e}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong("the server's address does not begin with http:// or https://"));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("the server's address has a user, a query or a fragment"));
    }
    Ok(url)
}

/// A file that is arriving.
#[derive(Debug)]
pub struct Download {
    /// Its media type.
    pub content_type: String,
    /// The name that the server proposes.
    pub file_name: Option<String>,
    client: Client,
    response: reqwest::Response,
}

impl Download {
    /// The next octets, or nothing at the end.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] when the file breaks off.
    pub async fn chunk(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        let chunk = self.response.chunk().await.map_err(|e| self.client.unreachable(e))?;
        Ok(chunk.map(Vec::from))
    }
}

fn text_of(response: &reqwest::Response, name: HeaderName) -> String {
    let text = response.headers().get(name).and_then(|v| v.to_str().ok());
    text.unwrap_or_default().to_owned()
}

/// The `filename` of a `Content-Disposition` (RFC 6266 §4.1), without what could lead out of a directory.
fn file_name(response: &reqwest::Response) -> Option<String> {
    let disposition = text_of(response, CONTENT_DISPOSITION);
    let (_, name) = disposition.split_once("filename=\"")?;
    let (name, _) = name.split_once('"')?;
    let harmless = !name.starts_with('.') && !name.contains(['/', '\\']) && !name.is_empty();
    harmless.then(|| name.to_owned())
}

/// An answer with a status of success.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) content_type: String,
    pub(crate) file_name: Option<String>,
    pub(crate) octets: Vec<u8>,
}

impl Client {
    /// Begins the settings of a client for the server at `base`, which may have a path.
    pub fn builder(base: &str) -> ClientBuilder {
        ClientBuilder {
            base: base.to_owned(),
            token: Secret::default(),
            timeout: Duration::from_secs(30),
            unix_socket: None,
            user_agent: "certctl".to_owned(),
            authorities: Vec::new(),
            plain_http: false,
            max_reply_bytes: MAX_REPLY_BYTES,
        }
    }

    /// The same client, which sends this `Idempotency-Key` with every POST: a call that is repeated with the same body
    /// is done once.
    ///
    /// # Errors
    /// [`ClientError::BadInput`] when a header cannot carry the key.
    pub fn with_idempotency_key(&self, key: &str) -> Result<Self, ClientError> {
        let key = HeaderValue::from_str(key)
            .map_err(|_| ClientError::BadInput("an idempotency key is printable ASCII".into()))?;
        Ok(Self {
            idempotency_key: Some(key),
            ..self.clone()
        })
    }

    /// Calls an operation.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn call<E: Endpoint>(
        &self,
        path: E::Path,
        query: E::Query,
        body: E::Body,
    ) -> Result<E::Reply, ClientError> {
        self.typed::<E>(&path, &query, &body, None).await
    }

    /// Calls an operation that may take longer, or shorter, than the client's own time-out.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn call_with_timeout<E: Endpoint>(
        &self,
        path: E::Path,
        query: E::Query,
        body: E::Body,
        timeout: Duration,
    ) -> Result<E::Reply, ClientError> {
        self.typed::<E>(&path, &query, &body, Some(timeout)).await
    }

    /// Calls an operation whose answer is a file, and hands the file out as it arrives, however large it is. `timeout`
    /// is for all of it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn download<E: Endpoint>(
        &self,
        path: E::Path,
        query: E::Query,
        timeout: Duration,
    ) -> Result<Download, ClientError> {
        let mut pairs = Vec::new();
        query.pairs(&mut pairs);
        let url = self.url(&E::path(), &path.texts(), &pairs)?;
        Ok(self.arriving(self.ask(E::METHOD, url, None, Some(timeout)).await?))
    }

    pub(crate) fn arriving(&self, response: reqwest::Response) -> Download {
        Download {
            content_type: text_of(&response, CONTENT_TYPE),
            file_name: file_name(&response),
            client: self.clone(),
            response,
        }
    }

    pub(crate) async fn typed<E: Endpoint>(
        &self,
        path: &E::Path,
        query: &E::Query,
        body: &E::Body,
        timeout: Option<Duration>,
    ) -> Result<E::Reply, ClientError> {
        let mut pairs = Vec::new();
        query.pairs(&mut pairs);
        let url = self.url(&E::path(), &path.texts(), &pairs)?;
        let body = (TypeId::of::<E::Body>() != TypeId::of::<NoBody>())
            .then(|| serde_json::to_vec(body).expect("representations are plain data"));
        let answer = self.send(E::METHOD, url, body, timeout).await?;
        E::Reply::receive(answer.octets, &answer.content_type, answer.file_name.as_deref())
            .map_err(|e| ClientError::BadReply(format!("the answer to {} cannot be read: {e}", E::NAME)))
    }

    /// The address of an operation: texts take the places of the template's placeholders, percent-encoded.
    pub(crate) fn url(&self, template: &str, texts: &[String], pairs: &[(&str, String)]) -> Result<Url, ClientError> {
        let mut path = self.base.path().trim_end_matches('/').to_owned();
        let mut texts = texts.iter();
        for segment in template.split('/').skip(1) {
            path.push('/');
            match segment.strip_prefix('{').and_then(|s| s.strip_suffix('}')) {
                None => path.push_str(segment),
                Some(name) => path.extend(argument(name, texts.next().map_or("", String::as_str))?),
            }
        }
        let mut url = self.base.clone();
        url.set_path(&path);
        if !pairs.is_empty() {
            url.query_pairs_mut().extend_pairs(pairs);
        }
        Ok(url)
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        url: Url,
        body: Option<Vec<u8>>,
        timeout: Option<Duration>,
    ) -> Result<Answer, ClientError> {
        let response = self.ask(method, url, body, timeout).await?;
        Ok(Answer {
            status: response.status(),
            content_type: text_of(&response, CONTENT_TYPE),
            file_name: file_name(&response),
            octets: self.read(response).await?,
        })
    }

    pub(crate) async fn ask(
        &self,
        method: Method,
        url: Url,
        body: Option<Vec<u8>>,
        timeout: Option<Duration>,
    ) -> Result<reqwest::Response, ClientError> {
        let key = self.idempotency_key.as_ref().filter(|_| method == Method::POST);
        let mut request = self.http.request(method, url);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        if let Some(timeout) = timeout {
            request = request.timeout(timeout);
        }
        let response = request.send().await.map_err(|e| self.unreachable(e))?;
        self.succeeded(response).await
    }

    /// Turns what is no success into an error.
    async fn succeeded(&self, response: reqwest::Response) -> Result<reqwest::Response, ClientError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        if status.as_u16() < 400 {
            let location = text_of(&response, LOCATION);
            return Err(ClientError::BadReply(format!(
                "the server answered {status} {location}, which is no answer of certctl; is the address right?"
            )));
        }
        let octets = self.read(response).await?;
        let text = String::from_utf8_lossy(&octets);
        Err(ClientError::Problem(Box::new(error::problem(
            status,
            &self.redacted(&text),
        ))))
    }

    async fn read(&self, mut response: reqwest::Response) -> Result<Vec<u8>, ClientError> {
        let mut octets = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.unreachable(e))? {
            if octets.len() + chunk.len() > self.max_reply_bytes {
                let most = self.max_reply_bytes / (1024 * 1024);
                return Err(ClientError::BadReply(format!("the answer is larger than {most} MiB")));
            }
            octets.extend_from_slice(&chunk);
        }
        Ok(octets)
    }

    fn unreachable(&self, error: reqwest::Error) -> ClientError {
        ClientError::Unreachable(format!("{}: {}", self.base, error::chain(&error.without_url())))
    }

    /// Servers and proxies sometimes repeat what they were sent.
    fn redacted(&self, text: &str) -> String {
        if self.token.is_empty() {
            text.to_owned()
        } else {
            text.replace(self.token.expose(), "***")
        }
    }
}

/// What stands for itself in a path (RFC 3986 §2.3).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// An argument as a segment of a path. Texts that would change which operation is called are refused: parsers of
/// addresses resolve dot segments, and remove tabs and line breaks before they look for them.
fn argument<'t>(name: &str, text: &'t str) -> Result<percent_encoding::PercentEncode<'t>, ClientError> {
    if matches!(text, "" | "." | "..") {
        return Err(ClientError::BadInput(format!(
            "{name}: cannot be empty, \".\" or \"..\""
        )));
    }
    if text.chars().any(char::is_control) {
        return Err(ClientError::BadInput(format!("{name}: cannot have control characters")));
    }
    Ok(utf8_percent_encode(text, ENCODED))
}

#[cfg(test)]
mod tests;
