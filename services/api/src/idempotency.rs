//! POSTs that are repeated with an `Idempotency-Key` are done once.
//!
//! The first statement of the handler's unit of work claims the key, so key and change commit together or not at all;
//! a request with the same key waits on the row. The work runs in a task of its own: a client that hangs up does not
//! cut it off, and finds its answer when it asks again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};
use certctl_contract::{
    agents::RegisterAgent,
    api_keys::{CreateApiKey, RotateApiKey},
    certificates::TriggerRenewal,
    endpoint::Endpoint,
    problem::Kind,
    query::Invalid,
    sessions::BeginSession,
};
use certctl_model::time::Time;
use certctl_store::Tx;
use sqlx::PgPool;
use tokio::sync::oneshot;
use tracing::Instrument;
use uuid::Uuid;

use crate::{
    app::{App, Cx},
    error::ApiError,
};

/// The request header.
pub const KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Tells a repeated answer from a first one.
pub const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// How long a key is remembered, in seconds.
const KEPT: i64 = 24 * 3600;
/// Answers above this are not kept.
const ANSWER_LIMIT: usize = 1 << 20;
/// How often, and how long each, a repeated request waits for the answer of the first.
const PATIENCE: (u32, Duration) = (40, Duration::from_millis(50));

/// Whether the answer may be kept: those that hold a secret are not.
pub fn is_kept<E: Endpoint>(app: &App) -> bool {
    const SECRET: [&str; 4] = [
        RegisterAgent::NAME,
        CreateApiKey::NAME,
        RotateApiKey::NAME,
        BeginSession::NAME,
    ];
    let is_secret = SECRET.contains(&E::NAME) || app.server_makes_keys && E::NAME == TriggerRenewal::NAME;
    !is_secret
}

/// A request that is to be done once.
pub struct Once {
    principal: String,
    key: String,
    operation: String,
    body_hash: Vec<u8>,
    claim: String,
    repeated: AtomicBool,
}

#[derive(sqlx::FromRow)]
struct Done {
    operation: String,
    body_hash: Vec<u8>,
    status: Option<i16>,
    answer: Option<Vec<u8>>,
    created_at: Time,
}

impl Once {
    /// Reads the key. `operation` is method, path and query.
    ///
    /// # Errors
    /// 400 when the key is empty, too long or not printable ASCII.
    pub fn new(principal: String, key: &HeaderValue, operation: String, body: &[u8]) -> Result<Self, ApiError> {
        let text = key.to_str().ok().map(str::trim).filter(|text| {
            let printable = text.bytes().all(|b| (0x20..0x7f).contains(&b));
            printable && (1..=255).contains(&text.len())
        });
        let key = text.ok_or_else(|| {
            let wrong = Invalid::new(KEY.as_str(), "has 1 to 255 printable ASCII characters");
            ApiError::malformed("the Idempotency-Key cannot be read", vec![wrong])
        })?;
        Ok(Self {
            principal,
            key: key.to_owned(),
            operation,
            body_hash: digest(&SHA256, body).as_ref().to_vec(),
            claim: Uuid::new_v4().to_string(),
            repeated: AtomicBool::new(false),
        })
    }

    /// Claims the key in this unit of work; waits for one that holds it.
    ///
    /// # Errors
    /// When another request has it.
    pub async fn claim(&self, tx: &mut Tx) -> Result<(), ApiError> {
        let now = tx.now();
        let mine: Option<i32> = sqlx::query_scalar(
            "INSERT INTO idempotency_keys (principal, key, operation, body_hash, claim, created_at)
             VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT ON CONSTRAINT idempotency_keys_pkey
                DO UPDATE SET claim = excluded.claim WHERE idempotency_keys.claim = excluded.claim
             RETURNING 1",
        )
        .bind(&self.principal)
        .bind(&self.key)
        .bind(&self.operation)
        .bind(&self.body_hash)
        .bind(&self.claim)
        .bind(now)
        .fetch_optional(&mut **tx)
        .await?;
        match mine {
            Some(_) => Ok(()),
            None => {
                self.repeated.store(true, Ordering::Relaxed);
                Err(not_kept())
            }
        }
    }

    /// What was answered before, if it was done before.
    async fn answered(&self, app: &App) -> Result<Option<Response>, ApiError> {
        let (tries, pause) = PATIENCE;
        for _ in 0..tries {
            let Some(done) = self.look(&app.pool).await? else {
                return Ok(None);
            };
            if app.clock.now().seconds_since(done.created_at) >= KEPT {
                self.forget(&app.pool, done.created_at).await?;
                return Ok(None);
            }
            if done.operation != self.operation || done.body_hash != self.body_hash {
                let detail = "was sent with another request; a key stands for one operation with one body";
                return Err(ApiError::invalid(KEY.as_str(), detail));
            }
            match (done.status, done.answer) {
                (Some(status), Some(answer)) => return replay(status, answer).map(Some),
                (Some(_), None) => return Err(not_kept()),
                // Committed, and not answered yet: by now, or never.
                (None, _) => tokio::time::sleep(pause).await,
            }
        }
        Err(not_kept())
    }

    async fn look(&self, db: &PgPool) -> Result<Option<Done>, ApiError> {
        let done = sqlx::query_as(
            "SELECT operation, body_hash, status, answer, created_at FROM idempotency_keys
              WHERE principal = $1 AND key = $2",
        )
        .bind(&self.principal)
        .bind(&self.key)
        .fetch_optional(db)
        .await?;
        Ok(done)
    }

    async fn forget(&self, db: &PgPool, made: Time) -> Result<(), ApiError> {
        sqlx::query("DELETE FROM idempotency_keys WHERE principal = $1 AND key = $2 AND created_at = $3")
            .bind(&self.principal)
            .bind(&self.key)
            .bind(made)
            .execute(db)
            .await?;
        Ok(())
    }

    /// Keeps the answer, also that of work that changed no row.
    async fn keep(&self, app: &App, status: StatusCode, answer: Option<Vec<u8>>) -> Result<(), ApiError> {
        sqlx::query(
            "INSERT INTO idempotency_keys (principal, key, operation, body_hash, claim, status, answer, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
             ON CONFLICT ON CONSTRAINT idempotency_keys_pkey
                DO UPDATE SET status = excluded.status, answer = excluded.answer
                        WHERE idempotency_keys.claim = excluded.claim",
        )
        .bind(&self.principal)
        .bind(&self.key)
        .bind(&self.operation)
        .bind(&self.body_hash)
        .bind(&self.claim)
        .bind(i16::try_from(status.as_u16()).expect("statuses have three digits"))
        .bind(answer.filter(|octets| octets.len() <= ANSWER_LIMIT))
        .bind(app.clock.now())
        .execute(&app.pool)
        .await?;
        Ok(())
    }
}

fn not_kept() -> ApiError {
    ApiError::new(
        Kind::WrongState,
        "a request with this Idempotency-Key was done, but its answer was not kept; look at what it made",
    )
}

fn replay(status: i16, answer: Vec<u8>) -> Result<Response, ApiError> {
    let status = u16::try_from(status).ok().and_then(|n| StatusCode::from_u16(n).ok());
    let empty = answer.is_empty();
    let mut response = Response::new(Body::from(answer));
    *response.status_mut() = status.ok_or_else(|| ApiError::internal("a stored status is none"))?;
    let headers = response.headers_mut();
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    if !empty {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    Ok(response)
}

/// Does the work once, or says what was answered when it was done. The work returns the octets to keep with its answer.
///
/// # Errors
/// Those of the work; 422 when the key stands for something else; 409 when the answer was not kept.
pub async fn once<W, F>(mut cx: Cx, once: Once, work: W) -> Result<Response, ApiError>
where
    W: FnOnce(Cx) -> F + Send + 'static,
    F: Future<Output = Result<(Response, Option<Vec<u8>>), ApiError>> + Send + 'static,
{
    let (answer, answered) = oneshot::channel();
    let (app, once) = (cx.app.clone(), Arc::new(once));
    cx.once = Some(once.clone());
    let tasks = app.tasks.clone();
    let doing = async move {
        let _ = answer.send(attempt(&app, &once, cx, work).await);
    };
    tasks.spawn("once", doing.in_current_span());
    answered
        .await
        .unwrap_or_else(|_| Err(ApiError::internal("the work ended without an answer")))
}

async fn attempt<W, F>(app: &App, once: &Once, cx: Cx, work: W) -> Result<Response, ApiError>
where
    W: FnOnce(Cx) -> F,
    F: Future<Output = Result<(Response, Option<Vec<u8>>), ApiError>>,
{
    if let Some(response) = once.answered(app).await? {
        return Ok(response);
    }
    match work(cx).await {
        Ok((response, octets)) => {
            certctl_runtime::failpoint::hold("api.answer_not_kept").await;
            if let Err(error) = once.keep(app, response.status(), octets).await {
                tracing::warn!(?error, "the answer for an Idempotency-Key is not kept");
            }
            Ok(response)
        }
        Err(_) if once.repeated.load(Ordering::Relaxed) => {
            let response = once.answered(app).await?;
            response.ok_or_else(|| ApiError::unavailable("the request before was undone"))
        }
        Err(error) => Err(error),
    }
}

/// Forgets keys whose time has passed, some at a time.
///
/// # Errors
/// When the database refuses.
pub async fn keep_house(app: &App) -> Result<(), ApiError> {
    const BATCH: i64 = 1000;
    let before = Time::from_unix(app.clock.now().unix() - KEPT);
    loop {
        let gone = sqlx::query(
            "DELETE FROM idempotency_keys
              WHERE (principal, key) IN (SELECT principal, key FROM idempotency_keys WHERE created_at < $1
                                          ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED)",
        )
        .bind(before)
        .bind(BATCH)
        .execute(&app.pool)
        .await?;
        if gone.rows_affected() < BATCH.unsigned_abs() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use certctl_contract::catalogue;
    use schemars::generate::SchemaSettings;

    #[test]
    fn answers_with_secrets_are_known_by_name() {
        let settings = SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
        let mut generator = settings.into_generator();
        let holds_a_secret: Vec<&str> = catalogue()
            .into_iter()
            .filter(|operation| operation.is_repeatable())
            .filter(|operation| {
                let schema = (operation.reply)(&mut generator).map(|schema| schema.to_value().to_string());
                schema.is_some_and(|text| text.contains("\"api_key\"") || text.contains("\"secret\""))
            })
            .map(|operation| operation.name)
            .collect();
        assert_eq!(holds_a_secret, ["CreateApiKey", "RotateApiKey", "RegisterAgent"]);
    }
}
