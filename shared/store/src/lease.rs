//! Named leases: of several replicas one runs a loop.

use std::time::Duration;

use certctl_model::time::Time;
use sqlx::PgPool;

use crate::error::*;

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
