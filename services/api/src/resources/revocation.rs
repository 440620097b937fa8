//! CRLs and OCSP under the API's own paths; the octets are those of the public ones.

use axum::{
    body::Body,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use certctl_contract::{endpoint::OcspDer, revocation::*};
use certctl_model::{id::IssuerId, revocation::RevocationReason, serial::Serial, time::Time};
use certctl_store::crls::List;
use certctl_x509::ocsp::{self, request_for};
use futures_util::stream;
use sqlx::{FromRow, PgPool};

use crate::{
    app::{Cx, Request, Routes, broken_off},
    edge,
    error::ApiError,
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on_written_by(json_crl).on_written_by(der_crl).on(ocsp_check)
}

/// Rows that are read at a time: nothing is held open in the database while the client reads.
const BATCH: usize = 1000;

async fn json_crl(cx: Cx, _: Request<GetCrl>) -> Result<Response, ApiError> {
    let walk = Walk {
        pool: cx.pool().clone(),
        generated_at: cx.now().whole_seconds(),
        total: 0,
        last: None,
        done: false,
    };
    let chunks = stream::unfold(walk, async |mut walk| {
        let chunk = walk.next().await.transpose()?;
        walk.done |= chunk.is_err();
        Some((chunk.map_err(broken_off), walk))
    });
    let kind = [(header::CONTENT_TYPE, "application/json")];
    Ok((kind, Body::from_stream(chunks)).into_response())
}

/// From the oldest revocation to the newest.
struct Walk {
    pool: PgPool,
    generated_at: Time,
    total: i64,
    /// When, and which.
    last: Option<(Time, Serial, IssuerId)>,
    done: bool,
}

#[derive(FromRow)]
struct Row {
    serial_number: Serial,
    revoked_at: Time,
    reason: RevocationReason,
    issuer_id: IssuerId,
}

impl Walk {
    /// The next piece of a [`JsonCrl`].
    async fn next(&mut self) -> Result<Option<Vec<u8>>, ApiError> {
        if self.done {
            return Ok(None);
        }
        let rows = self.read().await?;
        self.done = rows.len() < BATCH;
        let mut octets = match self.last {
            None => br#"{"version":1,"entries":["#.to_vec(),
            Some(_) => vec![],
        };
        for row in &rows {
            if self.total > 0 {
                octets.push(b',');
            }
            self.total += 1;
            let entry = JsonCrlEntry {
                serial_number: row.serial_number.clone(),
                revocation_date: row.revoked_at.whole_seconds(),
                revocation_reason: row.reason,
                issuer_id: row.issuer_id.clone(),
            };
            octets.extend(serde_json::to_vec(&entry).map_err(|error| ApiError::internal(error.to_string()))?);
        }
        if let Some(row) = rows.into_iter().next_back() {
            self.last = Some((row.revoked_at, row.serial_number, row.issuer_id));
        }
        if self.done {
            octets.extend(
                format!(
                    "],\"total\":{},\"generated_at\":\"{}\"}}",
                    self.total, self.generated_at
                )
                .bytes(),
            );
        }
        Ok(Some(octets))
    }

    async fn read(&self) -> Result<Vec<Row>, ApiError> {
        let (at, serial, issuer) = match &self.last {
            Some((at, serial, issuer)) => (Some(at), Some(serial), Some(issuer)),
            None => (None, None, None),
        };
        Ok(sqlx::query_as(
            "SELECT serial_number, revoked_at, reason, issuer_id
               FROM revocations
              WHERE released_at IS NULL
                AND (revoked_at, serial_number, issuer_id) > (coalesce($1::timestamptz, '-infinity'), coalesce($2::text, ''), coalesce($3::text, ''))
              ORDER BY revoked_at, serial_number, issuer_id
              LIMIT $4",
        )
        .bind(at)
        .bind(serial)
        .bind(issuer)
        .bind(BATCH as i64)
        .fetch_all(&self.pool)
        .await?)
    }
}

async fn der_crl(cx: Cx, rq: Request<GetDerCrl>) -> Result<Response, ApiError> {
    edge::crl::serve(&cx.app, &List::full(rq.path.issuer_id), &HeaderMap::new()).await
}

async fn ocsp_check(cx: Cx, rq: Request<OcspCheck>) -> Result<OcspDer, ApiError> {
    let issuer = rq.path.issuer_id;
    let authority = edge::authority(&cx.app, &issuer).await?;
    let id =
        ocsp::IssuerId::of_certificate(&authority.certificate_der).map_err(|e| ApiError::internal(e.to_string()))?;
    let answer = edge::ocsp::reply(&cx.app, &issuer, &request_for(&id, &rq.path.serial, None)).await?;
    let cache = Some(answer.cache_control());
    Ok(OcspDer {
        der: answer.der().to_vec(),
        cache,
    })
}
