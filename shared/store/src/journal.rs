//! What has to be in a journal outside the database, and is not yet.
//!
//! Every change of a revocation leaves a row in the transaction that makes it. Whoever keeps a journal appends what these
//! rows tell of, and removes them once it is on the disk: a process that dies in between leaves the rows, and somebody
//! appends them later. What is appended twice says the same twice.

use std::io;

use certctl_model::{id::CertificateId, revocation::RevocationRecord};
use sqlx::PgPool;

use crate::error::*;

/// Rows that are appended at once.
const MOST: i64 = 1000;

#[derive(sqlx::FromRow)]
struct Due {
    id: i64,
    #[sqlx(flatten)]
    record: RevocationRecord,
}

/// Appends what is due of these certificates, or of all, and returns how many lines. `append` returns when they are on
/// the disk.
///
/// # Errors
/// What `append` says; or when the database cannot be asked. What was not appended is still due.
pub async fn write<F>(
    pool: &PgPool,
    certificates: Option<&[CertificateId]>,
    append: impl Fn(Vec<u8>) -> F,
) -> Result<u64, WriteError>
where
    F: Future<Output = io::Result<()>>,
{
    let mut written = 0;
    loop {
        let due = due(pool, certificates).await?;
        if due.is_empty() {
            return Ok(written);
        }
        let mut lines = Vec::new();
        for Due { record, .. } in &due {
            serde_json::to_writer(&mut lines, record).map_err(io::Error::from)?;
            lines.push(b'\n');
        }
        append(lines).await?;
        let ids: Vec<i64> = due.iter().map(|due| due.id).collect();
        sqlx::query("DELETE FROM journal_due WHERE id = ANY ($1)")
            .bind(&ids)
            .execute(pool)
            .await
            .map_err(Error::from)?;
        written += due.len() as u64;
        if due.len() < MOST as usize {
            return Ok(written);
        }
    }
}

/// Why a journal was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The disk.
    #[error("the journal of revocations cannot be written: {0}")]
    Disk(#[from] io::Error),
    /// The database.
    #[error(transparent)]
    Store(#[from] Error),
}

async fn due(pool: &PgPool, certificates: Option<&[CertificateId]>) -> Result<Vec<Due>> {
    const OF_SOME: &str = "SELECT d.id, r.issuer_id, r.serial_number, r.certificate_id, r.reason, r.revoked_by,
                r.revoked_at, r.released_at, r.invalidity_date, r.not_after, r.short_lived,
                r.shard
           FROM revocations r
           JOIN journal_due d ON d.issuer_id = r.issuer_id AND d.serial_number = r.serial_number
          WHERE r.certificate_id = ANY ($2)
          LIMIT $1";
    const OF_ALL: &str = "SELECT d.id, r.issuer_id, r.serial_number, r.certificate_id, r.reason, r.revoked_by,
                r.revoked_at, r.released_at, r.invalidity_date, r.not_after, r.short_lived,
                r.shard
           FROM (SELECT id, issuer_id, serial_number FROM journal_due ORDER BY id LIMIT $1) d
           JOIN revocations r ON r.issuer_id = d.issuer_id AND r.serial_number = d.serial_number
          ORDER BY d.id";
    let due = match certificates {
        Some(certificates) => sqlx::query_as(OF_SOME).bind(MOST).bind(certificates),
        None => sqlx::query_as(OF_ALL).bind(MOST),
    };
    Ok(due.fetch_all(pool).await?)
}
