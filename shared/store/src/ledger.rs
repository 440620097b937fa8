//! What the signer is about to sign, and what it signed. A row is older than its signature.

use std::collections::HashSet;

use certctl_model::{id::IssuerId, serial::Serial, time::Time};
use sqlx::PgPool;

use crate::{column, error::*};

/// A recorded certificate, signed or about to be.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Entry {
    /// By whom.
    pub issuer_id: IssuerId,
    /// Its serial number.
    pub serial_number: Serial,
    /// What it was recorded for: a job's id, or the signer's own word for a certificate of its own.
    pub job_id: String,
    /// The to-be-signed certificate (RFC 5280 §4.1.1.1), DER.
    pub tbs_der: Vec<u8>,
    /// The certificate, once signed.
    pub der: Option<Vec<u8>>,
    /// When it ends.
    pub not_after: Time,
    /// Whether its revocation is not published.
    pub short_lived: bool,
    /// The shard of the CRL that it names as its distribution point; 0 when that is the full one.
    pub shard: i32,
}

/// The entries of those of these jobs that have one.
///
/// # Errors
/// When the database cannot be asked.
pub async fn by_jobs(pool: &PgPool, jobs: &[&str]) -> Result<Vec<Entry>> {
    Ok(sqlx::query_as(
        "SELECT issuer_id, serial_number, job_id, tbs_der, der, not_after, short_lived, shard
           FROM ledger WHERE job_id = ANY ($1)",
    )
    .bind(jobs)
    .fetch_all(pool)
    .await?)
}

/// Records what will be signed; of two calls for one job the first wins, and both get its entry.
///
/// # Errors
/// [`Error::Taken`] when the serial number is in use.
pub async fn record(pool: &PgPool, entry: &Entry, now: Time) -> Result<Entry> {
    let recorded = record_all(pool, vec![entry.clone()], now).await?.pop();
    recorded.ok_or_else(|| Error::Taken {
        constraint: "ledger_pkey".to_owned(),
    })
}

/// Records many as [`record`] does one. An entry is missing in the answer when its serial number is in use.
///
/// # Errors
/// When the database cannot be asked.
pub async fn record_all(pool: &PgPool, mut entries: Vec<Entry>, now: Time) -> Result<Vec<Entry>> {
    // In the order of the jobs, so that two that record the same do not wait in a circle.
    entries.sort_by(|a, b| a.job_id.cmp(&b.job_id));
    let inserted: Vec<String> = sqlx::query_scalar(
        "INSERT INTO ledger (issuer_id, serial_number, job_id, tbs_der, not_after, short_lived, shard,
                             recorded_at)
         SELECT e.issuer_id, e.serial_number, e.job_id, e.tbs_der, e.not_after, e.short_lived, e.shard, $8
           FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::timestamptz[], $6::boolean[],
                       $7::integer[])
                AS e (issuer_id, serial_number, job_id, tbs_der, not_after, short_lived, shard)
         ON CONFLICT DO NOTHING
         RETURNING job_id",
    )
    .bind(column(&entries, |e| e.issuer_id.as_str()))
    .bind(column(&entries, |e| e.serial_number.as_str()))
    .bind(column(&entries, |e| e.job_id.as_str()))
    .bind(column(&entries, |e| e.tbs_der.as_slice()))
    .bind(column(&entries, |e| e.not_after))
    .bind(column(&entries, |e| e.short_lived))
    .bind(column(&entries, |e| e.shard))
    .bind(now)
    .fetch_all(pool)
    .await?;
    let inserted: HashSet<String> = inserted.into_iter().collect();
    let (mut recorded, others): (Vec<_>, Vec<_>) =
        entries.into_iter().partition(|entry| inserted.contains(&entry.job_id));
    // Another call was first; its rows are visible by now.
    if !others.is_empty() {
        let jobs = column(&others, |entry| entry.job_id.as_str());
        recorded.extend(by_jobs(pool, &jobs).await?);
    }
    Ok(recorded)
}

/// Stores the signed certificate; of two signatures the first stays. Returns the one that is stored.
///
/// # Errors
/// When the database cannot be asked.
pub async fn sign(pool: &PgPool, issuer: &IssuerId, serial: &Serial, der: &[u8]) -> Result<Vec<u8>> {
    let stored = sign_all(pool, &[(issuer.clone(), serial.clone(), der.to_vec())]).await?;
    Ok(stored
        .into_iter()
        .next()
        .map(|(_, der)| der)
        .ok_or(sqlx::Error::RowNotFound)?)
}

/// Stores many as [`sign`] does one: of each entry the issuer, the serial number and the certificate in DER. Returns
/// what is stored, by what it was recorded for.
///
/// # Errors
/// When the database cannot be asked.
pub async fn sign_all(pool: &PgPool, signed: &[(IssuerId, Serial, Vec<u8>)]) -> Result<Vec<(String, Vec<u8>)>> {
    Ok(sqlx::query_as(
        "UPDATE ledger l SET der = coalesce(l.der, s.der)
           FROM unnest($1::text[], $2::text[], $3::bytea[]) AS s (issuer_id, serial_number, der)
          WHERE l.issuer_id = s.issuer_id AND l.serial_number = s.serial_number
         RETURNING l.job_id, l.der",
    )
    .bind(column(signed, |(issuer, ..)| issuer.as_str()))
    .bind(column(signed, |(_, serial, _)| serial.as_str()))
    .bind(column(signed, |(.., der)| der.as_slice()))
    .fetch_all(pool)
    .await?)
}
