//! What relying parties fetch without a key: CRLs (RFC 5280 §4.2.1.13), OCSP (RFC 6960 appendix A) and the
//! certificates of our authorities (RFC 5280 §4.2.2.1). No key is held here: the signer signs, this serves octets.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use certctl_contract::{
    problem::Kind,
    query::NoParams,
    signer::{AnswerOcsp, OcspQuestion},
};
use certctl_model::{id::IssuerId, time::Time};
use certctl_x509::ocsp::{ErrorStatus, error_response};

use crate::{access_log::RequestId, app::App, error::ApiError};

/// A request for the status of a hundred certificates fits into a quarter of this.
const OCSP_REQUEST_LIMIT: usize = 64 * 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Adds the public routes.
pub fn mount(router: Router<Arc<App>>) -> Router<Arc<App>> {
    router
        .route("/ca/{file}", get(ca))
        .route("/crl/{file}", get(crl))
        .route("/ocsp/{issuer}", post(ocsp_post))
        .route("/ocsp/{issuer}/{*request}", get(ocsp_get))
}

/// A CRL as it is stored.
#[derive(sqlx::FromRow)]
pub struct StoredCrl {
    /// DER.
    pub der: Vec<u8>,
    number: i64,
    this_update: Time,
    next_update: Time,
}

impl StoredCrl {
    /// A revocation must be seen within a minute: caches ask again twice in it, and are told cheaply of no change.
    pub fn cache_control(&self, now: Time) -> String {
        kept_for(self.next_update.since(now).min(Duration::from_secs(30)))
    }
}

/// `Cache-Control` of RFC 5019 §6.2.
fn kept_for(age: Duration) -> String {
    format!("max-age={}, public, no-transform, must-revalidate", age.as_secs())
}

/// The newest CRL of an issuer.
///
/// # Errors
/// 404 for an issuer we do not know or that has none yet; 503 when the newest has ended: an old list is not served as
/// if it were current.
pub async fn newest_crl(app: &App, issuer: &IssuerId) -> Result<StoredCrl, ApiError> {
    let crl: Option<StoredCrl> = sqlx::query_as(
        "SELECT der, number, this_update, next_update FROM crls WHERE issuer_id = $1 ORDER BY number DESC LIMIT 1",
    )
    .bind(issuer)
    .fetch_optional(&app.pool)
    .await?;
    match crl {
        Some(crl) if crl.next_update > app.clock.now() => Ok(crl),
        Some(crl) => Err(ApiError::unavailable(format!(
            "the newest CRL of {issuer} ended at {}",
            crl.next_update
        ))),
        None => {
            known(app, issuer).await?;
            Err(ApiError::new(
                Kind::NotFound,
                format!("there is no CRL of {issuer} yet"),
            ))
        }
    }
}

async fn known(app: &App, issuer: &IssuerId) -> Result<(), ApiError> {
    let found: Option<i32> = sqlx::query_scalar("SELECT 1 FROM issuers WHERE id = $1")
        .bind(issuer)
        .fetch_optional(&app.pool)
        .await?;
    found.map(|_| ()).ok_or_else(|| ApiError::missing("issuer", issuer))
}

/// The certificate of an authority of ours.
#[derive(sqlx::FromRow)]
pub struct StoredAuthority {
    /// DER.
    pub certificate_der: Vec<u8>,
    published_at: Time,
}

/// The certificate of an issuer.
///
/// # Errors
/// 404 for an issuer we do not know or that has none yet.
pub async fn authority(app: &App, issuer: &IssuerId) -> Result<StoredAuthority, ApiError> {
    let found = sqlx::query_as("SELECT certificate_der, published_at FROM authorities WHERE issuer_id = $1")
        .bind(issuer)
        .fetch_optional(&app.pool)
        .await?;
    match found {
        Some(authority) => Ok(authority),
        None => {
            known(app, issuer).await?;
            Err(ApiError::new(
                Kind::NotFound,
                format!("issuer {issuer} has no certificate yet"),
            ))
        }
    }
}

fn issuer_of(file: &str, suffix: &str) -> Result<IssuerId, ApiError> {
    file.strip_suffix(suffix).and_then(|id| id.parse().ok()).ok_or_else(|| {
        ApiError::new(
            Kind::NotFound,
            format!("the path is that of an issuer's id and {suffix}"),
        )
    })
}

async fn ca(
    State(app): State<Arc<App>>,
    id: axum::Extension<RequestId>,
    Path(file): Path<String>,
    headers: HeaderMap,
) -> Response {
    let answer = async {
        let authority = authority(&app, &issuer_of(&file, ".crt")?).await?;
        let etag = format!(
            "\"{}\"",
            hex::encode(
                &aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &authority.certificate_der).as_ref()[..16]
            )
        );
        let cache = kept_for(Duration::from_secs(3600));
        let modified = authority.published_at;
        Ok::<_, ApiError>(octets(
            &headers,
            authority.certificate_der,
            "application/pkix-cert",
            &etag,
            modified,
            cache,
        ))
    };
    answer
        .await
        .unwrap_or_else(|error| error.into_problem(&id.0).into_response())
}

async fn crl(
    State(app): State<Arc<App>>,
    id: axum::Extension<RequestId>,
    Path(file): Path<String>,
    headers: HeaderMap,
) -> Response {
    let answer = async {
        let issuer = issuer_of(&file, ".crl")?;
        let crl = newest_crl(&app, &issuer).await?;
        let etag = format!("\"{issuer}-{}\"", crl.number);
        let cache = crl.cache_control(app.clock.now());
        let modified = crl.this_update;
        Ok::<_, ApiError>(octets(
            &headers,
            crl.der,
            "application/pkix-crl",
            &etag,
            modified,
            cache,
        ))
    };
    answer
        .await
        .unwrap_or_else(|error| error.into_problem(&id.0).into_response())
}

/// Octets with validators and lifetime (RFC 9110 §8.8, RFC 9111 §5.2.2); 304 when the client has them already.
fn octets(
    asked: &HeaderMap,
    body: Vec<u8>,
    media: &'static str,
    etag: &str,
    modified: Time,
    cache: String,
) -> Response {
    let same = asked
        .get(header::IF_NONE_MATCH)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.split(',').any(|t| t.trim() == etag));
    let mut response = match same {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => body.into_response(),
    };
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    let mut set = |name, value: String| headers.insert(name, HeaderValue::try_from(value).expect("is printable ASCII"));
    set(header::ETAG, etag.to_owned());
    set(header::LAST_MODIFIED, http_date(modified));
    set(header::CACHE_CONTROL, cache);
    if !same {
        set(header::CONTENT_TYPE, media.to_owned());
    }
    response
}

fn http_date(at: Time) -> String {
    let format = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    at.date_time().format(&format).expect("the format fits any instant")
}

/// An OCSP response and how long it may be kept.
pub struct OcspReply {
    /// DER.
    pub der: Vec<u8>,
    max_age: Duration,
}

const NO_STORE: &str = "no-store";

impl OcspReply {
    /// A revocation must be seen within a second, so no cache keeps an answer without asking again. An answer to a nonce,
    /// and an error, is not kept at all.
    pub fn cache_control(&self) -> String {
        match self.max_age.is_zero() {
            true => NO_STORE.to_owned(),
            false => kept_for(Duration::ZERO),
        }
    }
}

/// Has the signer answer. A signer that cannot be reached becomes `tryLater`: what cannot be asked is not guessed.
///
/// # Errors
/// 404 for an issuer we do not know.
pub async fn ask_signer(app: &App, issuer: &IssuerId, request: &[u8]) -> Result<OcspReply, ApiError> {
    let question = OcspQuestion {
        issuer_id: issuer.clone(),
        request: BASE64.encode(request),
    };
    match app.signer.call::<AnswerOcsp>(NoParams, NoParams, question).await {
        Ok(answer) => {
            let der = BASE64
                .decode(answer.response)
                .map_err(|e| ApiError::internal(format!("signer's answer: {e}")))?;
            Ok(OcspReply {
                der,
                max_age: Duration::from_secs(answer.max_age_seconds.max(0).unsigned_abs()),
            })
        }
        Err(error) => match ApiError::from(error) {
            refused if matches!(refused.kind(), Kind::NotFound | Kind::Unsupported) => Err(refused),
            _ => {
                metrics::counter!("ocsp_try_later_total").increment(1);
                Ok(OcspReply {
                    der: error_response(ErrorStatus::TryLater),
                    max_age: Duration::ZERO,
                })
            }
        },
    }
}

async fn answer(
    app: &App,
    issuer: &str,
    request: Result<Vec<u8>, ()>,
    method_allows_caching: bool,
) -> Result<Response, ApiError> {
    let issuer: IssuerId = issuer
        .parse()
        .map_err(|_| ApiError::missing("issuer", issuer.escape_debug()))?;
    let reply = match request {
        Ok(request) => ask_signer(app, &issuer, &request).await?,
        Err(()) => OcspReply {
            der: error_response(ErrorStatus::MalformedRequest),
            max_age: Duration::ZERO,
        },
    };
    let cache = match method_allows_caching {
        true => reply.cache_control(),
        false => NO_STORE.to_owned(),
    };
    let mut response = reply.der.into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/ocsp-response"),
    );
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::try_from(cache).expect("is printable ASCII"),
    );
    Ok(response)
}

async fn ocsp_post(
    State(app): State<Arc<App>>,
    id: axum::Extension<RequestId>,
    Path(issuer): Path<String>,
    body: Body,
) -> Response {
    let read = axum::body::to_bytes(body, OCSP_REQUEST_LIMIT);
    let request = match tokio::time::timeout(BODY_TIMEOUT, read).await {
        Ok(Ok(octets)) => Ok(octets.to_vec()),
        _ => Err(()),
    };
    answer(&app, &issuer, request, false)
        .await
        .unwrap_or_else(|error| error.into_problem(&id.0).into_response())
}

/// The request stands in base64 at the end of the path, percent-encoded or not; a `/` of base64 may stand bare.
async fn ocsp_get(
    State(app): State<Arc<App>>,
    id: axum::Extension<RequestId>,
    Path((issuer, _)): Path<(String, String)>,
    rq: Request,
) -> Response {
    // Read from the raw path: decoding it as UTF-8 text and splitting it is not what RFC 6960 appendix A.1 means.
    let raw = rq.uri().path();
    let text = raw.splitn(4, '/').nth(3).unwrap_or("");
    let decoded: Vec<u8> = percent_decoded(text);
    let request = match decoded.len() <= OCSP_REQUEST_LIMIT {
        true => BASE64.decode(decoded).map_err(|_| ()),
        false => Err(()),
    };
    answer(&app, &issuer, request, true)
        .await
        .unwrap_or_else(|error| error.into_problem(&id.0).into_response())
}

/// The octets that a path stands for.
pub(crate) fn percent_decoded(text: &str) -> Vec<u8> {
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

    #[test]
    fn dates_are_those_of_http() {
        assert_eq!(http_date(Time::from_unix(784_111_777)), "Sun, 06 Nov 1994 08:49:37 GMT");
    }
}
