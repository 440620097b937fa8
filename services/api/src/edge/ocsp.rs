//! OCSP (RFC 6960 appendix A): the signer answers, this passes octets on.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Path, Request, State},
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
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
use certctl_model::id::IssuerId;
use certctl_x509::ocsp::{ErrorStatus, error_response};

use super::kept_for;
use crate::{access_log::RequestId, app::App, error::ApiError};

/// A request for the status of a hundred certificates fits into a quarter of this.
const OCSP_REQUEST_LIMIT: usize = 64 * 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

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

pub(super) async fn ocsp_post(
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
pub(super) async fn ocsp_get(
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
