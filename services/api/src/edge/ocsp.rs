//! OCSP (RFC 6960 appendix A, RFC 5019): what was signed is given again while it tells the truth; else the signer is asked.

use std::{pin::pin, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::Bytes;
use certctl_contract::signer::{OcspAnswer, OcspQuestion, OcspSigned};
use certctl_model::{id::IssuerId, time::Time};
use certctl_runtime::serve::{Shortcut, Taken};
use certctl_x509::ocsp::{ErrorStatus, error_response};
use futures_util::future::poll_immediate;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::{
    answers::{Fresh, Kept, Moment},
    asking, has_already, kept_for,
};
use crate::{access_log::RequestId, app::App, error::ApiError, headers::Headers};

/// A request for the status of a hundred certificates fits into a quarter of this.
const OCSP_REQUEST_LIMIT: usize = 64 * 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Requests of most clients are shorter; a longer one is read on the way that all requests take.
const SHORT_REQUEST: u64 = 1024;

const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const MEDIA: HeaderValue = HeaderValue::from_static("application/ocsp-response");

/// An OCSP response.
pub enum Reply {
    /// Signed, and given to others as well.
    Kept(Arc<Kept>),
    /// An error, or an answer to a nonce: given once.
    Once(Bytes),
}

impl Reply {
    /// DER.
    pub fn der(&self) -> Bytes {
        match self {
            Self::Kept(kept) => kept.der(),
            Self::Once(der) => der.clone(),
        }
    }

    /// A revocation must be seen within a second, so no cache keeps an answer without asking again. An answer to a
    /// nonce, and an error, is not kept at all.
    pub fn cache_control(&self) -> String {
        match self {
            Self::Kept(_) => kept_for(Duration::ZERO),
            Self::Once(_) => "no-store".to_owned(),
        }
    }
}

/// The answer to a request: one there is, or the signer's. A signer that cannot be asked becomes `tryLater`: what is not
/// known is not guessed.
///
/// # Errors
/// 404 for an issuer we do not know.
pub async fn reply(app: &Arc<App>, issuer: &IssuerId, request: &[u8]) -> Result<Reply, ApiError> {
    let key = key(issuer, request);
    if let Some(kept) = given_again(app, &key) {
        return Ok(Reply::Kept(kept));
    }
    ask(app, issuer, request, key).await
}

/// By what an answer is found: the issuer's id, and DER of the request. The ids of issuers have no NUL.
fn key(issuer: &IssuerId, request: &[u8]) -> Box<[u8]> {
    [issuer.as_str().as_bytes(), b"\0", request].concat().into()
}

/// An answer there is. From the middle of its life the next one is asked for beside it.
fn given_again(app: &Arc<App>, key: &[u8]) -> Option<Arc<Kept>> {
    let now = app.clock.now();
    let kept = app.answers.get(key, now)?;
    if kept.is_to_be_refreshed(now) {
        let (app, kept) = (app.clone(), kept.clone());
        app.clone().tasks.spawn("ocsp", async move {
            let question = &kept.question;
            let request = BASE64.decode(&question.request).unwrap_or_default();
            let key = self::key(&question.issuer_id, &request);
            if !matches!(ask(&app, &question.issuer_id, &request, key).await, Ok(Reply::Kept(_))) {
                kept.was_not_refreshed();
            }
        });
    }
    Some(kept)
}

async fn ask(app: &Arc<App>, issuer: &IssuerId, request: &[u8], key: Box<[u8]>) -> Result<Reply, ApiError> {
    let Some(heard) = asking::ask(app, issuer, request).await else {
        metrics::counter!("ocsp_try_later_total").increment(1);
        return Ok(Reply::Once(error_response(ErrorStatus::TryLater).into()));
    };
    let decoded = |text: &str| {
        let der = BASE64.decode(text).map(Bytes::from);
        der.map_err(|error| ApiError::internal(format!("signer's answer: {error}")))
    };
    match &heard.1 {
        OcspAnswer::NoIssuer => Err(ApiError::missing("issuer", issuer)),
        OcspAnswer::Unsigned(der) => Ok(Reply::Once(decoded(der)?)),
        OcspAnswer::Signed(signed) if signed.nonce => Ok(Reply::Once(decoded(&signed.response)?)),
        OcspAnswer::Signed(signed) => {
            let der = decoded(&signed.response)?;
            Ok(Reply::Kept(keep(app, issuer, request, key, heard.0, signed, &der)))
        }
    }
}

fn keep(
    app: &App,
    issuer: &IssuerId,
    request: &[u8],
    key: Box<[u8]>,
    asked: Moment,
    signed: &OcspSigned,
    der: &[u8],
) -> Arc<Kept> {
    let fresh = Fresh {
        der,
        question: OcspQuestion {
            issuer_id: issuer.clone(),
            request: base64_text(request),
        },
        asked,
        serials: signed.serials.iter().map(|serial| serial.as_str()).collect(),
        issued: signed.issued,
        this_update: Time::from_unix(signed.this_update),
        next_update: Time::from_unix(signed.next_update),
    };
    app.answers.keep(key, issuer, fresh)
}

pub(super) fn base64_text(octets: &[u8]) -> String {
    BASE64.encode(octets)
}

/// What is said of every answer.
pub struct Said {
    to_get: HeaderMap,
    to_post: HeaderMap,
}

impl Said {
    /// Of an answer to a GET (RFC 5019 §6.2): validators, so that asking again costs little, and its end. One to a POST
    /// is kept by no cache (RFC 9110 §9.3.3).
    pub fn new(of_all: &Headers) -> Self {
        // Static: how often a text of its own is shared would be counted by all cores, at each answer.
        let kept = HeaderValue::from_static(kept_for(Duration::ZERO).leak());
        let of_each = HeaderValue::from_static("");
        let with = |more: &[(HeaderName, &HeaderValue)]| {
            let mut headers = HeaderMap::from_iter([(header::CONTENT_TYPE, MEDIA)]);
            let more = more.iter().map(|(name, value)| (name.clone(), (*value).clone()));
            headers.extend(more);
            of_all.secure(&mut headers);
            headers
        };
        Self {
            // Room is made for what each answer says itself.
            to_get: with(&[
                (header::CACHE_CONTROL, &kept),
                (header::ETAG, &of_each),
                (header::LAST_MODIFIED, &of_each),
                (header::EXPIRES, &of_each),
            ]),
            to_post: with(&[(header::CACHE_CONTROL, &NO_STORE)]),
        }
    }
}

/// The answer to a GET. A client that has it already is told so.
fn to_get(app: &App, kept: &Kept, asked: &HeaderMap) -> Response<Bytes> {
    let mut response = Response::new(kept.der());
    if has_already(asked, || kept.tag(), kept.this_update) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        *response.body_mut() = Bytes::new();
    }
    *response.headers_mut() = app.said_of_ocsp.to_get.clone();
    kept.say(response.headers_mut());
    response
}

fn to_post(app: &App, kept: &Kept) -> Response<Bytes> {
    let mut response = Response::new(kept.der());
    *response.headers_mut() = app.said_of_ocsp.to_post.clone();
    response
}

fn once(der: Bytes) -> Response<Bytes> {
    let mut response = Response::new(der);
    response.headers_mut().insert(header::CONTENT_TYPE, MEDIA);
    response.headers_mut().insert(header::CACHE_CONTROL, NO_STORE);
    response
}

/// Gives answers there are before anything else is done about a request: no span, no layers, no route.
pub struct Short(pub Arc<App>);

impl Shortcut for Short {
    fn take(&self, request: axum::http::Request<Incoming>) -> Taken {
        let path = request.uri().path();
        // What concerns browsers is the business of the layers.
        let plain = path.starts_with("/ocsp/") && !request.headers().contains_key(header::ORIGIN);
        if !plain {
            return Taken::Passed(request.map(Body::new));
        }
        match *request.method() {
            Method::GET => match given_again(&self.0, path.as_bytes()) {
                Some(kept) => Taken::Answered(to_get(&self.0, &kept, request.headers())),
                None => Taken::Passed(request.map(Body::new)),
            },
            Method::POST
                if hyper::body::Body::size_hint(request.body())
                    .exact()
                    .is_some_and(|n| n <= SHORT_REQUEST) =>
            {
                let app = self.0.clone();
                Taken::Reading(Box::pin(posted(app, request)))
            }
            _ => Taken::Passed(request.map(Body::new)),
        }
    }
}

/// The body of a short request, if it comes. Nearly always it is one piece.
async fn short(mut body: Incoming) -> Option<Bytes> {
    let mut whole = Bytes::new();
    while let Some(frame) = body.frame().await {
        let more = frame.ok()?.into_data().unwrap_or_default();
        whole = match whole.is_empty() {
            true => more,
            false => [whole, more].concat().into(),
        };
        if whole.len() as u64 > SHORT_REQUEST {
            return None;
        }
    }
    Some(whole)
}

/// A short POST: answered by its octets, or passed on with them.
async fn posted(app: Arc<App>, request: axum::http::Request<Incoming>) -> Taken {
    let (head, body) = request.into_parts();
    let mut read = pin!(short(body));
    // It nearly always came with its head, and a timer costs more than reading it.
    let read = match poll_immediate(&mut read).await {
        Some(read) => Ok(read),
        None => tokio::time::timeout(BODY_TIMEOUT, read).await,
    };
    let Ok(Some(octets)) = read else {
        return Taken::Answered(once(error_response(ErrorStatus::MalformedRequest).into()));
    };
    let issuer = head.uri.path().trim_start_matches("/ocsp/");
    let key = [issuer.as_bytes(), b"\0", &octets].concat();
    match given_again(&app, &key) {
        Some(kept) => Taken::Answered(to_post(&app, &kept)),
        None => Taken::Passed(Request::from_parts(head, Body::from(octets))),
    }
}

/// What a request asks, or nothing when that cannot be read.
type Read<T> = Option<T>;

async fn answer(
    app: &Arc<App>,
    issuer: &str,
    request: Read<&[u8]>,
    respond: impl FnOnce(&Arc<Kept>) -> Response<Bytes>,
) -> Result<Response, ApiError> {
    let issuer: IssuerId = issuer
        .parse()
        .map_err(|_| ApiError::missing("issuer", issuer.escape_debug()))?;
    let Some(request) = request else {
        return Ok(once(error_response(ErrorStatus::MalformedRequest).into()).map(Body::from));
    };
    match reply(app, &issuer, request).await? {
        Reply::Kept(kept) => Ok(respond(&kept).map(Body::from)),
        Reply::Once(der) => Ok(once(der).map(Body::from)),
    }
}

pub(super) async fn ocsp_post(
    State(app): State<Arc<App>>,
    id: axum::Extension<RequestId>,
    Path(issuer): Path<String>,
    body: Body,
) -> Response {
    let read = axum::body::to_bytes(body, OCSP_REQUEST_LIMIT);
    let request = tokio::time::timeout(BODY_TIMEOUT, read).await.ok().and_then(Result::ok);
    answer(&app, &issuer, request.as_deref(), |kept| to_post(&app, kept))
        .await
        .unwrap_or_else(|error| error.into_problem(&id.0).into_response())
}

/// The request stands in base64 at the end of the path, percent-encoded or not; a `/` of base64 may stand bare.
pub(super) async fn ocsp_get(
    State(app): State<Arc<App>>,
    id: axum::Extension<RequestId>,
    Path((issuer, _)): Path<(String, String)>,
    rq: Request,
) -> Response {
    // Read from the raw path: decoding it as UTF-8 text and splitting it is not what RFC 6960 appendix A.1 means.
    let (uri, asked) = (rq.uri().clone(), rq.headers().clone());
    let raw = uri.path();
    let text = raw.splitn(4, '/').nth(3).unwrap_or("");
    let decoded: Vec<u8> = percent_decoded(text);
    let short = (decoded.len() <= OCSP_REQUEST_LIMIT).then_some(decoded);
    let request = short.and_then(|text| BASE64.decode(text).ok());
    let respond = |kept: &Arc<Kept>| {
        // Under this spelling too, so that it is found without being decoded.
        app.answers.alias(raw.as_bytes().into(), kept);
        to_get(&app, kept, &asked)
    };
    answer(&app, &issuer, request.as_deref(), respond)
        .await
        .unwrap_or_else(|error| error.into_problem(&id.0).into_response())
}

/// The octets that a path stands for.
pub fn percent_decoded(text: &str) -> Vec<u8> {
    let octets = text.as_bytes();
    let mut out = Vec::with_capacity(octets.len());
    let mut i = 0;
    while i < octets.len() {
        let escaped = (octets[i] == b'%').then(|| octets.get(i + 1..i + 3)).flatten();
        match escaped.and_then(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok()) {
            Some(octet) => {
                out.push(octet);
                i += 3;
            }
            None => {
                out.push(octets[i]);
                i += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_in_paths_are_read_escaped_or_bare() {
        for (text, octets) in [
            ("a%2Fb%2B%3d", &b"a/b+="[..]),
            ("a/b+=", b"a/b+="),
            ("%", b"%"),
            ("%zz%4", b"%zz%4"),
        ] {
            assert_eq!(percent_decoded(text), octets, "{text}");
        }
    }
}
