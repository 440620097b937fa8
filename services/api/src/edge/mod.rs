//! What relying parties fetch without a key: CRLs (RFC 5280 §4.2.1.13), OCSP (RFC 6960 appendix A) and the
//! certificates of our authorities (RFC 5280 §4.2.2.1). No key is held here: the signer signs, this serves octets.

mod answers;
mod asking;
pub mod crl;
pub mod ocsp;
mod shelf;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use certctl_contract::problem::Kind;
use certctl_model::{id::IssuerId, time::Time};

pub use self::{
    answers::Answers,
    asking::Asking,
    shelf::{Shelf, greeting},
};
use crate::{access_log::RequestId, app::App, error::ApiError};

/// Adds the public routes.
pub fn mount(router: Router<Arc<App>>) -> Router<Arc<App>> {
    router
        .route("/ca/{file}", get(ca))
        .route("/crl/{issuer}", get(crl::full))
        .route("/crl/{issuer}/{file}", get(crl::part))
        .route("/ocsp/{issuer}", post(ocsp::ocsp_post))
        .route("/ocsp/{issuer}/{*request}", get(ocsp::ocsp_get))
}

/// `Cache-Control` of RFC 5019 §6.2.
fn kept_for(age: Duration) -> String {
    format!("max-age={}, public, no-transform, must-revalidate", age.as_secs())
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
        let etag = digest_tag(&authority.certificate_der);
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

/// A strong validator of octets (RFC 9110 §8.8.3).
fn digest_tag(octets: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, octets);
    format!("\"{}\"", hex::encode(&digest.as_ref()[..16]))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_http() {
        assert_eq!(http_date(Time::from_unix(784_111_777)), "Sun, 06 Nov 1994 08:49:37 GMT");
    }
}
