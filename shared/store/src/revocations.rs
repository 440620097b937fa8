//! Revocations: recorded in one transaction with the certificate's own state, and read by the signer.

use certctl_model::{
    id::{CertificateId, IssuerId, RevocationId},
    notice::NoticeKind,
    revocation::RevocationReason,
    serial::Serial,
    time::Time,
};
use sqlx::PgConnection;

use crate::{
    Tx, certificates,
    error::*,
    jobs,
    outbox::{self, News},
    wake::Channel,
};

/// Revokes a certificate: its newest version, and every other that has not expired. Open jobs are cancelled. Returns the serials.
///
/// # Errors
/// [`Error::Missing`]; [`Error::Conflict`] when it is revoked or archived already, or nothing was issued.
pub async fn revoke(tx: &mut Tx, id: &CertificateId, reason: RevocationReason) -> Result<Vec<Serial>> {
    let certificate = certificates::lock(tx, id).await?;
    certificate.must_be_live()?;
    if certificate.current_version_id.is_none() {
        return Err(Error::Conflict(format!(
            "nothing was issued for certificate {id} that could be revoked; archive it"
        )));
    }
    ours_to_revoke(tx, id).await?;
    let (actor, now) = (tx.actor(), tx.now());
    // What was signed for its jobs and never came to be recorded as a version is revoked with the rest.
    let serials: Vec<Serial> = sqlx::query_scalar(
        "INSERT INTO revocations (id, issuer_id, serial_number, certificate_id, reason, revoked_by, not_after,
                                  short_lived, revoked_at)
         SELECT $1 || '-' || s.serial_number, s.issuer_id, s.serial_number, $2, $3, $4, s.not_after,
                coalesce(l.short_lived, false), $5
           FROM (SELECT v.issuer_id, v.serial_number, v.not_after FROM certificate_versions v
                  WHERE v.certificate_id = $2 AND v.issuer_id IS NOT NULL AND (v.not_after > $5 OR v.id = $6)
                  UNION
                 SELECT g.issuer_id, g.serial_number, g.not_after FROM jobs j JOIN ledger g ON g.job_id = j.id
                  WHERE j.certificate_id = $2 AND g.der IS NOT NULL AND g.not_after > $5) s
           LEFT JOIN ledger l ON l.issuer_id = s.issuer_id AND l.serial_number = s.serial_number
         ON CONFLICT (issuer_id, serial_number) DO NOTHING
         RETURNING serial_number",
    )
    .bind(RevocationId::generate(now))
    .bind(id)
    .bind(reason)
    .bind(&actor.name)
    .bind(now)
    .bind(&certificate.current_version_id)
    .fetch_all(&mut **tx)
    .await?;
    sqlx::query("UPDATE certificates SET revoked_at = $2, revocation_reason = $3, updated_at = $2 WHERE id = $1")
        .bind(id)
        .bind(now)
        .bind(reason)
        .execute(&mut **tx)
        .await?;
    let event = tx
        .event("certificate_revoked", "certificate", id)
        .with("common_name", &certificate.common_name)
        .with("serial", serials.first())
        .with("serials", &serials)
        .with("reason", reason);
    tx.note(event);
    jobs::cancel_open(tx, id, "the certificate was revoked").await?;
    let news = News {
        kind: NoticeKind::Revocation,
        certificate: id.clone(),
        dedup: id.to_string(),
        subject: format!("{} was revoked", certificate.common_name),
        message: format!("Certificate {id} ({}) was revoked: {reason}.", certificate.common_name),
    };
    outbox::announce(tx, &news).await?;
    tx.wake(Channel::Revocations);
    Ok(serials)
}

/// Refuses a certificate of which everything was imported: only who issued it can revoke it.
async fn ours_to_revoke(tx: &mut Tx, id: &CertificateId) -> Result<()> {
    let (ours, theirs): (bool, Option<String>) = sqlx::query_as(
        "SELECT coalesce(bool_or(issuer_id IS NOT NULL), false), max(imported_from)
           FROM certificate_versions WHERE certificate_id = $1",
    )
    .bind(id)
    .fetch_one(&mut **tx)
    .await?;
    match theirs {
        Some(authority) if !ours => Err(Error::Conflict(format!(
            "certificate {id} was imported; ask the authority that issued it to revoke it: {authority}"
        ))),
        _ => Ok(()),
    }
}

/// An entry of a CRL.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Entry {
    /// Serial number.
    pub serial_number: Serial,
    /// When.
    pub revoked_at: Time,
    /// Why.
    pub reason: RevocationReason,
}

/// What a CRL lists: revocations of certificates that had not ended at `ended_before`, but for short-lived ones.
///
/// # Errors
/// When the database cannot be asked.
pub async fn entries(db: &mut PgConnection, issuer: &IssuerId, ended_before: Time) -> Result<Vec<Entry>> {
    Ok(sqlx::query_as(
        "SELECT serial_number, revoked_at, reason FROM revocations
          WHERE issuer_id = $1 AND not_after >= $2 AND NOT short_lived
          ORDER BY revoked_at, serial_number",
    )
    .bind(issuer)
    .bind(ended_before)
    .fetch_all(db)
    .await?)
}

/// What is known of a serial number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Issued and not revoked.
    Good,
    /// Revoked.
    Revoked {
        /// When.
        at: Time,
        /// Why.
        reason: RevocationReason,
    },
    /// Never issued.
    Unknown,
}

/// What is known of serial numbers of an issuer, in their order. A certificate that was recorded but never signed is
/// unknown; one that was revoked is so whatever else is known of it.
///
/// # Errors
/// When the database cannot be asked: the caller must not guess.
pub async fn statuses(db: &mut PgConnection, issuer: &IssuerId, serials: &[Serial]) -> Result<Vec<Status>> {
    let rows: Vec<(bool, Option<Time>, Option<RevocationReason>)> = sqlx::query_as(
        "SELECT coalesce(l.signed, false), r.revoked_at, r.reason
           FROM unnest($2::text[]) WITH ORDINALITY AS asked (serial_number, n)
           LEFT JOIN LATERAL (SELECT l.der IS NOT NULL AS signed FROM ledger l
                               WHERE l.issuer_id = $1 AND l.serial_number = asked.serial_number) l ON true
           LEFT JOIN LATERAL (SELECT r.revoked_at, r.reason FROM revocations r
                               WHERE r.issuer_id = $1 AND r.serial_number = asked.serial_number) r ON true
          ORDER BY asked.n",
    )
    .bind(issuer)
    .bind(serials)
    .fetch_all(db)
    .await?;
    let status = |row| match row {
        (_, Some(at), Some(reason)) => Status::Revoked { at, reason },
        (true, _, _) => Status::Good,
        _ => Status::Unknown,
    };
    Ok(rows.into_iter().map(status).collect())
}
