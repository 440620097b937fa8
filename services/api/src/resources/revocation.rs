//! CRLs and OCSP under the API's own paths; the octets are those of the public ones.

use certctl_contract::{
    endpoint::{CrlDer, OcspDer},
    revocation::*,
};
use certctl_x509::ocsp::{IssuerId, request_for};

use crate::{
    app::{Cx, Request, Routes},
    edge,
    error::ApiError,
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(json_crl).on(der_crl).on(ocsp_check)
}

async fn json_crl(cx: Cx, _: Request<GetCrl>) -> Result<JsonCrl, ApiError> {
    let entries: Vec<JsonCrlEntry> = sqlx::query_as(
        "SELECT serial_number, date_trunc('second', revoked_at) AS revocation_date, reason AS revocation_reason,
                issuer_id
           FROM revocations ORDER BY revoked_at, serial_number",
    )
    .fetch_all(cx.pool())
    .await?;
    Ok(JsonCrl {
        version: 1,
        total: entries.len() as i64,
        entries,
        generated_at: cx.now().whole_seconds(),
    })
}

async fn der_crl(cx: Cx, rq: Request<GetDerCrl>) -> Result<CrlDer, ApiError> {
    let crl = edge::crl::newest_crl(&cx.app, &rq.path.issuer_id).await?;
    let cache = Some(crl.cache_control(cx.now()));
    Ok(CrlDer { der: crl.der, cache })
}

async fn ocsp_check(cx: Cx, rq: Request<OcspCheck>) -> Result<OcspDer, ApiError> {
    let issuer = rq.path.issuer_id;
    let authority = edge::authority(&cx.app, &issuer).await?;
    let id = IssuerId::of_certificate(&authority.certificate_der).map_err(|e| ApiError::internal(e.to_string()))?;
    let answer = edge::ocsp::reply(&cx.app, &issuer, &request_for(&id, &rq.path.serial, None)).await?;
    let cache = Some(answer.cache_control());
    Ok(OcspDer {
        der: answer.der().to_vec(),
        cache,
    })
}
