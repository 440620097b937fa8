//! CRLs as they are stored (RFC 5280 §4.2.1.13).

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Path, State},
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use certctl_contract::problem::Kind;
use certctl_model::{id::IssuerId, time::Time};

use super::{issuer_of, kept_for, known, octets};
use crate::{access_log::RequestId, app::App, error::ApiError};

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

pub(super) async fn crl(
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
