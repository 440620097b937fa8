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
    let failed = fails_precondition(asked, etag, modified);
    let same = failed || has_already(asked, || etag, modified);
    let mut response = match same {
        _ if failed => StatusCode::PRECONDITION_FAILED.into_response(),
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

/// Whether the client has it already: its tag (RFC 9110 §13.1.2), or else its date (§13.1.3).
fn has_already<'e>(asked: &HeaderMap, etag: impl Fn() -> &'e str, modified: Time) -> bool {
    let text = |name| asked.get(name).and_then(|value| value.to_str().ok());
    match text(header::IF_NONE_MATCH) {
        Some(tags) => tags
            .split(',')
            .map(str::trim)
            .any(|tag| tag == "*" || tag.trim_start_matches("W/") == etag()),
        None => text(header::IF_MODIFIED_SINCE)
            .and_then(read_http_date)
            .is_some_and(|since| modified.unix() <= since.unix()),
    }
}

/// Whether the client asks for what there is no more: `If-Match` (RFC 9110 §13.1.1), or else `If-Unmodified-Since`
/// (§13.1.4). It is looked at before everything else (§13.2.2).
fn fails_precondition(asked: &HeaderMap, etag: &str, modified: Time) -> bool {
    let mut tags = asked.get_all(header::IF_MATCH).iter().peekable();
    if tags.peek().is_some() {
        let mut tags = tags
            .filter_map(|tags| tags.to_str().ok())
            .flat_map(|tags| tags.split(','));
        return !tags.any(|tag| matches!(tag.trim(), "*") || tag.trim() == etag);
    }
    asked
        .get(header::IF_UNMODIFIED_SINCE)
        .and_then(|value| read_http_date(value.to_str().ok()?))
        .is_some_and(|since| modified.unix() > since.unix())
}

const HTTP_DATE: &[time::format_description::BorrowedFormatItem<'_>] = time::macros::format_description!(
    "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
);

fn http_date(at: Time) -> String {
    at.date_time().format(&HTTP_DATE).expect("the format fits any instant")
}

fn read_http_date(text: &str) -> Option<Time> {
    let date = time::PrimitiveDateTime::parse(text.trim(), &HTTP_DATE).ok()?;
    Some(Time::new(date.assume_utc()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_http() {
        assert_eq!(http_date(Time::from_unix(784_111_777)), "Sun, 06 Nov 1994 08:49:37 GMT");
    }

    #[test]
    fn what_a_client_has_has_already_by_tag_or_else_by_date() {
        let modified = Time::from_unix(784_111_777);
        let (same, before) = ("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:36 GMT");
        for (name, value, known) in [
            (header::IF_NONE_MATCH, "\"a\"", true),
            (header::IF_NONE_MATCH, "\"b\", W/\"a\"", true),
            (header::IF_NONE_MATCH, "*", true),
            (header::IF_NONE_MATCH, "\"b\"", false),
            (header::IF_MODIFIED_SINCE, same, true),
            (header::IF_MODIFIED_SINCE, before, false),
            (header::IF_MODIFIED_SINCE, "yesterday", false),
        ] {
            assert_eq!(
                has_already(
                    &HeaderMap::from_iter([(name, HeaderValue::from_static(value))]),
                    || "\"a\"",
                    modified
                ),
                known,
                "{value}"
            );
        }
        for (name, value, fails) in [
            (header::IF_MATCH, "\"a\"", false),
            (header::IF_MATCH, "\"b\", \"a\"", false),
            (header::IF_MATCH, "*", false),
            (header::IF_MATCH, "\"b\"", true),
            (header::IF_MATCH, "W/\"a\"", true),
            (header::IF_UNMODIFIED_SINCE, same, false),
            (header::IF_UNMODIFIED_SINCE, before, true),
            (header::IF_UNMODIFIED_SINCE, "yesterday", false),
        ] {
            let asked = HeaderMap::from_iter([(name, HeaderValue::from_static(value))]);
            assert_eq!(fails_precondition(&asked, "\"a\"", modified), fails, "{value}");
        }
        let both = HeaderMap::from_iter([
            (header::IF_MATCH, HeaderValue::from_static("\"a\"")),
            (header::IF_UNMODIFIED_SINCE, HeaderValue::from_static(before)),
        ]);
        assert!(!fails_precondition(&both, "\"a\"", modified), "the tag counts");
        let both = HeaderMap::from_iter([
            (header::IF_NONE_MATCH, HeaderValue::from_static("\"b\"")),
            (header::IF_MODIFIED_SINCE, HeaderValue::from_static(same)),
        ]);
        assert!(!has_already(&both, || "\"a\"", modified), "the tag counts");
    }
}
