//! Keeps the signer from going on over a database that is older than what it remembers.
//!
//! A number grows with what is signed, in the database and then in a file beside the keys. Where the database has the
//! smaller one, it was restored from a backup, and revocations are missing: nothing is signed until an administrator
//! has brought them back and says so. Who says so is written in the same database, so that an older one still has it
//! before it.

use std::{
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::Context;
use axum::{
    extract::{Request, State},
    http::Method,
    middleware::Next,
    response::{IntoResponse, Response},
};
use certctl_contract::{
    endpoint::Endpoint,
    signer::{AnswerOcsp, PublishCrl},
};
use certctl_model::time::Clock;
use sqlx::PgPool;
use tracing::{error, info, warn};

use crate::{
    Shared,
    error::{Error, Result},
    keeping,
};

/// How old a look at the fence may be for an answer about the status of a certificate, and how often the number grows
/// while certificates are signed.
const AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// The fence of one directory of keys.
pub(crate) struct Fence {
    pool: PgPool,
    clock: Clock,
    /// Holds the number.
    path: PathBuf,
    seen_open: Mutex<Option<Instant>>,
    advanced: Mutex<Option<Instant>>,
}

impl Fence {
    pub(crate) fn new(pool: PgPool, clock: Clock, directory: &Path) -> Self {
        Self {
            pool,
            clock,
            path: directory.join("high-water"),
            seen_open: Mutex::default(),
            advanced: Mutex::default(),
        }
    }

    /// Refuses while the database is older than what is remembered.
    ///
    /// # Errors
    /// [`Error::Fenced`]; or when the database or the file cannot be read.
    pub(crate) async fn check(&self) -> Result<()> {
        let remembered = remembered(&self.path)?;
        let (mark, fenced): (i64, bool) =
            sqlx::query_as("SELECT mark, EXISTS (SELECT 1 FROM fences WHERE lifted_at IS NULL) FROM high_water")
                .fetch_one(&self.pool)
                .await?;
        let outcome = match (fenced, mark < remembered) {
            (true, _) => Err(Error::Fenced),
            (false, true) => self.behind(remembered).await,
            (false, false) => Ok(()),
        };
        metrics::gauge!("signer_fenced").set(f64::from(u8::from(matches!(outcome, Err(Error::Fenced)))));
        *self.seen_open.lock().expect("nobody panics with it") = outcome.is_ok().then(Instant::now);
        outcome
    }

    /// The same, content with what was seen a moment ago.
    async fn check_roughly(&self) -> Result<()> {
        let seen = *self.seen_open.lock().expect("nobody panics with it");
        match seen {
            Some(at) if at.elapsed() < AT_MOST_EVERY => Ok(()),
            _ => self.check().await,
        }
    }

    async fn behind(&self, remembered: i64) -> Result<()> {
        let lifted: Option<String> = sqlx::query_scalar(
            "SELECT lifted_by FROM fences WHERE mark >= $1 AND lifted_at IS NOT NULL ORDER BY mark DESC LIMIT 1",
        )
        .bind(remembered)
        .fetch_optional(&self.pool)
        .await?;
        if let Some(by) = lifted {
            info!("the recovery of the database was finished by {by}: signing goes on");
            sqlx::query("UPDATE high_water SET mark = greatest(mark, $1)")
                .bind(remembered)
                .execute(&self.pool)
                .await?;
            return self.advance().await;
        }
        error!(
            "the database is older than what was signed: nothing is signed until revocations are restored and the \
             recovery is finished (certctl-cli restore-revocations)"
        );
        sqlx::query("INSERT INTO fences (mark, found_at) VALUES ($1, $2) ON CONFLICT (mark) DO NOTHING")
            .bind(remembered)
            .bind(self.clock.now())
            .execute(&self.pool)
            .await?;
        Err(Error::Fenced)
    }

    /// Has the number grow, first in the database.
    async fn advance(&self) -> Result<()> {
        let mark: i64 = sqlx::query_scalar("UPDATE high_water SET mark = mark + 1 RETURNING mark")
            .fetch_one(&self.pool)
            .await?;
        let path = self.path.clone();
        tokio::task::spawn_blocking(move || remember(&path, mark))
            .await
            .context("remembering was cut short")??;
        *self.advanced.lock().expect("nobody panics with it") = Some(Instant::now());
        Ok(())
    }

    fn advanced_lately(&self) -> bool {
        let advanced = *self.advanced.lock().expect("nobody panics with it");
        advanced.is_some_and(|at| at.elapsed() < AT_MOST_EVERY)
    }
}

fn remembered(path: &Path) -> Result<i64> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text
            .trim()
            .parse()
            .with_context(|| format!("{} does not hold a number", path.display()))?),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
        Err(error) => Err(anyhow::Error::new(error)
            .context(format!("cannot read {}", path.display()))
            .into()),
    }
}

/// Other signers may have the same directory; the file never shrinks.
fn remember(path: &Path, mark: i64) -> anyhow::Result<()> {
    keeping::make_directory(path.parent().unwrap_or(Path::new("/")))?;
    let lock =
        File::create(path.with_added_extension("lock")).context("cannot open the lock of the high-water mark")?;
    lock.lock().context("cannot lock the high-water mark")?;
    match remembered(path) {
        Ok(known) if known >= mark => Ok(()),
        _ => keeping::replace(path, 0o600, format!("{mark}\n").as_bytes()),
    }
}

/// Lets requests for signatures through while there is no fence, and has the number grow with what was signed.
pub(crate) async fn guard(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    if request.method() != Method::POST {
        return next.run(request).await;
    }
    let path = request.uri().path();
    // Of a status nothing is lost with the database, and there are many.
    let (of_status, of_crl) = (
        path.starts_with(&AnswerOcsp::path()),
        path.starts_with(&PublishCrl::path()),
    );
    let checked = match of_status {
        true => shared.fence.check_roughly().await,
        false => shared.fence.check().await,
    };
    if let Err(error) = checked {
        return error.into_response();
    }
    let response = next.run(request).await;
    if response.status().is_success() && !of_status && (of_crl || !shared.fence.advanced_lately()) {
        // What was signed is signed; the next signature has the number grow.
        if let Err(error) = shared.fence.advance().await {
            warn!("the high-water mark stays where it is: {error:#}");
        }
    }
    response
}
