//! How the loops of a process went, for everybody to see.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use certctl_model::time::Time;
use sqlx::PgPool;

use crate::{column, error::*};

/// How long the rows of a process stay that does not write any more.
const KEPT: Duration = Duration::from_secs(3_600);

/// One run of a loop.
#[derive(Clone, Debug)]
pub struct Run {
    /// Which loop.
    pub name: &'static str,
    /// How often it runs when nobody wakes it.
    pub every: Duration,
    /// `ok`, `error`, `panic`, `timeout`, or `skipped` when it was another's to do.
    pub outcome: &'static str,
    /// What went wrong.
    pub error: Option<String>,
    /// How much it did.
    pub done: u64,
    /// How long it took.
    pub took: Duration,
    /// When it ended.
    pub ended: Time,
    /// How long until the next.
    pub rests: Duration,
}

#[derive(Clone, Debug)]
struct Row {
    last: Run,
    runs: i64,
    failures: i64,
    last_success_at: Option<Time>,
}

/// What a process writes of its loops.
#[derive(Debug)]
pub struct Board {
    service: &'static str,
    holder: String,
    rows: Mutex<BTreeMap<&'static str, Row>>,
}

impl Board {
    /// An empty one of a service and the process that holds it.
    pub fn new(service: &'static str, holder: String) -> Self {
        Self {
            service,
            holder,
            rows: Mutex::default(),
        }
    }

    /// Notes a run.
    pub fn note(&self, run: Run) {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let row = rows.entry(run.name).or_insert_with(|| Row {
            last: run.clone(),
            runs: 0,
            failures: 0,
            last_success_at: None,
        });
        match run.outcome {
            "skipped" => {}
            "ok" => {
                row.runs += 1;
                row.last_success_at = Some(run.ended);
            }
            _ => {
                row.runs += 1;
                row.failures += 1;
            }
        }
        row.last = run;
    }

    /// Writes how all loops stand, in one statement, and forgets processes that do not write any more. A loop that rests
    /// for long is written again meanwhile: its process is there.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn write(&self, pool: &PgPool, now: Time) -> Result<()> {
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match rows.is_empty() {
            true => Ok(()),
            false => self.insert(pool, now, &rows.values().collect::<Vec<_>>()).await,
        }
    }

    async fn insert(&self, pool: &PgPool, now: Time, rows: &[&Row]) -> Result<()> {
        let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        sqlx::query(
            "WITH gone AS (DELETE FROM loop_runs WHERE written_at < $4)
             INSERT INTO loop_runs (service, holder, written_at, name, every_ms, runs, failures, outcome, error, done,
                                    duration_ms, last_run_at, last_success_at, next_run_at)
             SELECT $1, $2, $3, * FROM unnest($5::text[], $6::bigint[], $7::bigint[], $8::bigint[], $9::text[],
                                              $10::text[], $11::bigint[], $12::bigint[], $13::timestamptz[],
                                              $14::timestamptz[], $15::timestamptz[])
             ON CONFLICT (service, name, holder) DO UPDATE
                SET (written_at, every_ms, runs, failures, outcome, error, done, duration_ms, last_run_at,
                     last_success_at, next_run_at)
                  = (excluded.written_at, excluded.every_ms, excluded.runs, excluded.failures, excluded.outcome,
                     excluded.error, excluded.done, excluded.duration_ms, excluded.last_run_at,
                     excluded.last_success_at, excluded.next_run_at)",
        )
        .bind(self.service)
        .bind(&self.holder)
        .bind(now)
        .bind(now - KEPT)
        .bind(column(rows, |row| row.last.name))
        .bind(column(rows, |row| millis(row.last.every)))
        .bind(column(rows, |row| row.runs))
        .bind(column(rows, |row| row.failures))
        .bind(column(rows, |row| row.last.outcome))
        .bind(column(rows, |row| row.last.error.as_deref()))
        .bind(column(rows, |row| i64::try_from(row.last.done).unwrap_or(i64::MAX)))
        .bind(column(rows, |row| millis(row.last.took)))
        .bind(column(rows, |row| row.last.ended - row.last.took))
        .bind(column(rows, |row| row.last_success_at))
        .bind(column(rows, |row| row.last.ended + row.last.rests))
        .execute(pool)
        .await?;
        Ok(())
    }
}
