//! Named leases: of several replicas one runs a loop.

use std::time::Duration;

use certctl_model::time::Time;
use sqlx::PgPool;

use crate::{Tx, error::*};

/// Takes or keeps a lease. Returns its fencing token, or none while somebody else holds it.
///
/// # Errors
/// When the database cannot be asked; the lease is then not held.
pub async fn acquire(pool: &PgPool, name: &str, holder: &str, now: Time, ttl: Duration) -> Result<Option<i64>> {
    let token = sqlx::query_scalar(
        "INSERT INTO leases AS l (name, holder, token, until) VALUES ($1, $2, 1, $4)
         ON CONFLICT (name) DO UPDATE
            SET holder = excluded.holder,
                until  = excluded.until,
                token  = l.token + (l.holder <> excluded.holder)::int
          WHERE l.holder = excluded.holder OR l.until < $3
         RETURNING token",
    )
    .bind(name)
    .bind(holder)
    .bind(now)
    .bind(now + ttl)
    .fetch_optional(pool)
    .await?;
    Ok(token)
}

/// Makes a unit of work depend on a lease: it is committed only before another takes the lease, however long its process
/// slept. To be called first.
///
/// # Errors
/// [`Error::LeaseLost`] when another has it.
pub async fn fence(tx: &mut Tx, name: &str, token: i64) -> Result<()> {
    let held: Option<i32> = sqlx::query_scalar("SELECT 1 FROM leases WHERE name = $1 AND token = $2 FOR SHARE")
        .bind(name)
        .bind(token)
        .fetch_optional(&mut **tx)
        .await?;
    held.map(|_| ()).ok_or(Error::LeaseLost)
}
