//! CRLs (RFC 5280 §5): complete, numbered without gaps or repetition, signed by the authority itself.

use std::sync::Arc;

use certctl_contract::signer::CrlPublished;
use certctl_model::{id::IssuerId, time::Time};
use certctl_store::revocations::{self, Entry};
use certctl_x509::name::serial_to_integer;
use rasn::types::Integer;
use rasn_pkix::{Extensions, RevokedCertificate, TbsCertList, Version};
use tracing::info;

use crate::{
    Shared,
    authority::Authority,
    der::{self, oid},
    error::{Error, Result},
};

/// Makes, stores and publishes the next CRL of an issuer.
pub(crate) async fn publish(shared: &Shared, issuer: &IssuerId) -> Result<CrlPublished> {
    let authority = shared.authorities.get(issuer).await?;
    let mut tx = certctl_store::tx::begin(&shared.pool, None).await?;
    // The next to ask for this issuer sees our number.
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('crl:' || $1, 0))")
        .bind(issuer)
        .execute(&mut *tx)
        .await?;
    let now = shared.clock.now().whole_seconds();
    authority.must_be_valid(now)?;
    let (number, covers): (i64, i64) = sqlx::query_as(
        "SELECT coalesce((SELECT max(number) FROM crls WHERE issuer_id = $1), 0) + 1,
                (SELECT count(*) FROM revocations WHERE issuer_id = $1)",
    )
    .bind(issuer)
    .fetch_one(&mut *tx)
    .await?;
    // Read after `covers`, so that nothing it covers is missing. An entry stays in one CRL beyond the end of its
    // certificate (RFC 5280 §3.3).
    let entries = revocations::entries(&mut tx, issuer, now - shared.crl_lifetime).await?;
    let count = i64::try_from(entries.len()).expect("fewer entries than memory has octets");
    let next_update = (now + shared.crl_lifetime)
        .min(authority.certificate.not_after)
        .whole_seconds();
    let signer = Arc::clone(&authority);
    let sign = move || signer.sign(&list(&signer, number, &entries, now, next_update));
    let der = tokio::task::spawn_blocking(sign)
        .await
        .map_err(|error| Error::Internal(anyhow::Error::new(error).context("signing a CRL was cut short")))??;
    sqlx::query(
        "INSERT INTO crls (issuer_id, number, der, entries, this_update, next_update, covers)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(issuer)
    .bind(number)
    .bind(&der)
    .bind(count)
    .bind(now)
    .bind(next_update)
    .bind(covers)
    .execute(&mut *tx)
    .await?;
    sqlx::query("DELETE FROM crls WHERE issuer_id = $1 AND number <= $2 - 3")
        .bind(issuer)
        .bind(number)
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    metrics::counter!("signer_signatures_total", "kind" => "crl", "issuer" => issuer.to_string()).increment(1);
    info!(issuer.id = %issuer, crl_number = number, entries = count, "CRL {number} of issuer {issuer} is published");
    Ok(CrlPublished { number, entries: count })
}

/// DER of the TBSCertList.
pub(crate) fn list(
    authority: &Authority,
    number: i64,
    entries: &[Entry],
    this_update: Time,
    next_update: Time,
) -> Vec<u8> {
    let extensions = vec![
        der::authority_key_id(&authority.key_id),
        der::extension(oid::CRL_NUMBER, false, der::encode(&Integer::from(number))),
    ];
    der::encode(&TbsCertList {
        // §5.1.2.1
        version: Version::V2,
        signature: authority.algorithm(),
        issuer: authority.name.clone(),
        this_update: der::date(this_update),
        next_update: Some(der::date(next_update)),
        revoked_certificates: entries.iter().map(revoked).collect(),
        crl_extensions: Some(Extensions::from(extensions)),
    })
}

fn revoked(entry: &Entry) -> RevokedCertificate {
    let reason = der::crl_reason(entry.reason)
        .map(|reason| Extensions::from(vec![der::extension(oid::REASON_CODE, false, der::encode(&reason))]));
    RevokedCertificate {
        user_certificate: serial_to_integer(&entry.serial_number),
        revocation_date: der::date(entry.revoked_at),
        crl_entry_extensions: reason,
    }
}
