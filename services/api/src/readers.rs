//! Connections for statements that only read and stand alone.
//!
//! The pool asks the server before and after every use of a connection whether it still stands: two round trips around
//! one. Here a connection goes from one statement to the next for a second before the pool sees it again, and a
//! statement whose connection turns out to be gone is put once more, on one that the pool has asked.

use std::{sync::Mutex, time::Duration};

use sqlx::{
    PgPool, Postgres, QueryBuilder,
    pool::PoolConnection,
    postgres::{PgConnection, PgRow},
};
use tokio::time::Instant;
use tracing::{Dispatch, instrument::WithSubscriber};

/// How long a connection is kept from the pool.
const KEPT: Duration = Duration::from_secs(1);
/// Of how many connections of the pool one may be kept.
const SHARE: u32 = 4;

/// A statement, and whether its plan serves other values too.
pub type Statement = (QueryBuilder<Postgres>, bool);

/// A connection, and until when it is kept.
type Kept = (PoolConnection<Postgres>, Instant);

/// What reads go through.
pub struct Readers {
    pool: PgPool,
    kept: Mutex<Vec<Kept>>,
}

impl Readers {
    /// On connections of `pool`.
    pub fn new(pool: PgPool) -> Self {
        Self {
            pool,
            kept: Mutex::default(),
        }
    }

    /// The rows of a statement, which is made anew for each attempt.
    ///
    /// # Errors
    /// When the database refuses, or cannot be reached.
    pub async fn rows(&self, statement: impl Fn() -> Statement) -> Result<Vec<PgRow>, sqlx::Error> {
        if let Some((mut connection, until)) = self.take() {
            match run(&mut connection, statement()).await {
                // Every other is as old: what ended this one ended them.
                Err(error) if is_gone(&error) => self.kept.lock().expect("nobody panics with the lock").clear(),
                done => {
                    self.keep(connection, until);
                    return done;
                }
            }
        }
        let mut connection = self.pool.acquire().await?;
        let done = run(&mut connection, statement()).await;
        self.keep(connection, Instant::now() + KEPT);
        done
    }

    /// What has its time behind it goes back to the pool.
    fn take(&self) -> Option<Kept> {
        let now = Instant::now();
        let mut kept = self.kept.lock().expect("nobody panics with the lock");
        kept.retain(|(_, until)| now < *until);
        kept.pop()
    }

    /// Only whoever has read to the end gives a connection back this way; the pool looks after what was cut off.
    fn keep(&self, connection: PoolConnection<Postgres>, until: Instant) {
        let mut kept = self.kept.lock().expect("nobody panics with the lock");
        if (kept.len() as u32) < self.pool.options().get_max_connections() / SHARE {
            kept.push((connection, until));
        }
    }
}

/// Unobserved: sqlx would enter the span of the request several times for every row.
async fn run(connection: &mut PgConnection, (mut sql, persistent): Statement) -> Result<Vec<PgRow>, sqlx::Error> {
    let rows = sql.build().persistent(persistent).fetch_all(connection);
    rows.with_subscriber(Dispatch::none()).await
}

/// Whether the connection is no longer there: it broke, or the server ended the session (SQLSTATE class 57P).
fn is_gone(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| code.starts_with("57P")),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use sqlx::Row;

    use super::*;

    async fn session(readers: &Readers) -> i32 {
        let rows = readers
            .rows(|| (QueryBuilder::new("SELECT pg_backend_pid()"), true))
            .await;
        rows.unwrap()[0].get(0)
    }

    #[sqlx::test(migrator = "certctl_store::MIGRATOR")]
    async fn a_connection_serves_one_statement_after_the_other_and_another_one_when_it_is_gone(db: PgPool) {
        let options = db.options().clone().max_connections(8);
        let readers = Readers::new(options.connect_lazy_with((*db.connect_options()).clone()));
        let first = session(&readers).await;
        assert_eq!(session(&readers).await, first);
        sqlx::query("SELECT pg_terminate_backend($1, 5000)")
            .bind(first)
            .execute(&db)
            .await
            .unwrap();
        assert_ne!(session(&readers).await, first);
    }

    #[sqlx::test(migrator = "certctl_store::MIGRATOR")]
    async fn most_connections_stay_with_the_pool(db: PgPool) {
        let options = db.options().clone().max_connections(4);
        let readers = Readers::new(options.connect_lazy_with((*db.connect_options()).clone()));
        let held = || (QueryBuilder::new("SELECT pg_sleep(0.05)"), true);
        let all = futures_util::future::join_all((0..4).map(|_| readers.rows(held))).await;
        assert!(all.iter().all(Result::is_ok), "{all:?}");
        assert_eq!(readers.kept.lock().unwrap().len(), 1);
    }
}
