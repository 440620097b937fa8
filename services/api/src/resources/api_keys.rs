//! Named API keys with roles.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use certctl_contract::{
    api_keys::*,
    endpoint::{NoContent, Role},
    list::{Page, Sort},
    problem::Kind,
};
use certctl_model::{
    id::{AgentId, ApiKeyId, JobId},
    scope::Scope,
    secret::Secret,
    text,
    time::Time,
};
use certctl_store::{Tx, approvals, wake::Channel};
use sqlx::{FromRow, postgres::PgRow, types::Json};

use crate::{
    app::{Cx, Request, Routes},
    auth::{self, random, sha256},
    error::ApiError,
    listing::{self, Column, Listed, Where, check_name},
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(list).on(create).on(get).on(update).on(rotate).on(revoke)
}

/// Characters of a secret that are shown: enough to tell one from another.
const PREFIX: usize = 8;

impl Listed for ApiKey {
    type Filter = ApiKeyFilter;
    type Sort = ApiKeySort;

    const KIND: &'static str = "API key";
    const COLUMNS: &'static str =
        "k.id, k.name, k.role, k.agent_id, k.scope, s.prefix, k.created_by, k.created_at, k.updated_at,
        k.expires_at, k.last_used_at, o.valid_until AS previous_valid_until";
    const FROM: &'static str = "api_keys k
        JOIN api_key_secrets s ON s.key_id = k.id AND s.ends_at IS NULL
        LEFT JOIN LATERAL (SELECT max(e.ends_at) AS valid_until FROM api_key_secrets e
                            WHERE e.key_id = k.id AND e.ends_at > {now}) o ON true";
    const ID: &'static str = "k.id";
    const DEFAULT: Sort<ApiKeySort> = Sort {
        key: ApiKeySort::CreatedAt,
        descending: true,
    };

    fn column(key: ApiKeySort) -> Column {
        match key {
            ApiKeySort::CreatedAt => Column::time("k.created_at"),
            ApiKeySort::Name => Column::text("k.name"),
            ApiKeySort::LastUsedAt => Column::time("(coalesce(k.last_used_at, '-infinity'))"),
        }
    }

    fn restrict(f: &ApiKeyFilter, sql: &mut Where<'_>) {
        sql.eq("k.role", &f.role);
        sql.eq("k.agent_id", &f.agent_id);
    }

    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Self::from_row(row)
    }
}

async fn list(cx: Cx, rq: Request<ListApiKeys>) -> Result<Page<ApiKey>, ApiError> {
    listing::list(&cx, rq.query).await
}

async fn get(cx: Cx, rq: Request<GetApiKey>) -> Result<ApiKey, ApiError> {
    listing::fetch(&cx, rq.path.id.as_str()).await
}

async fn create(cx: Cx, rq: Request<CreateApiKey>) -> Result<IssuedApiKey, ApiError> {
    let new = rq.body;
    check_key_name(&new.name)?;
    match (new.role, &new.agent_id) {
        (Role::Agent, None) => return Err(ApiError::invalid("agent_id", "is needed with the role agent")),
        (Role::Agent, Some(_)) => {}
        (_, Some(_)) => return Err(ApiError::invalid("agent_id", "goes with the role agent only")),
        (_, None) if new.replaces_others => {
            return Err(ApiError::invalid("replaces_others", "goes with the role agent only"));
        }
        (_, None) => {}
    }
    let mut tx = cx.begin().await?;
    let now = tx.now();
    check_end(new.expires_at, now)?;
    check_scope(new.role, new.scope.as_ref())?;
    must_be_distinct(&mut tx, &new.name, None).await?;
    if let (Some(agent), true) = (&new.agent_id, new.replaces_others) {
        end_keys_of(&mut tx, agent).await?;
    }
    let id = ApiKeyId::generate(now);
    sqlx::query(
        "INSERT INTO api_keys (id, name, role, agent_id, created_by, created_at, updated_at, expires_at, scope)
         VALUES ($1, $2, $3, $4, $5, $6, $6, $7, $8)",
    )
    .bind(&id)
    .bind(&new.name)
    .bind(new.role)
    .bind(&new.agent_id)
    .bind(tx.actor().name)
    .bind(now)
    .bind(new.expires_at)
    .bind(Json(new.scope.unwrap_or_default()))
    .execute(&mut *tx)
    .await?;
    let secret = fresh_secret(&mut tx, &id).await?;
    let key: ApiKey = listing::get(&mut tx, now, id.as_str()).await?;
    let event = tx
        .event("create_api_key", "api_key", &id)
        .with("name", &key.name)
        .with("role", key.role)
        .with("scope", &key.scope)
        .with("agent_id", &key.agent_id);
    tx.note(event);
    tx.commit().await?;
    Ok(issued(key, &secret))
}

async fn update(cx: Cx, rq: Request<UpdateApiKey>) -> Result<ApiKey, ApiError> {
    let (id, change) = (rq.path.id, rq.body);
    change.name.as_deref().map_or(Ok(()), check_key_name)?;
    let mut tx = cx.begin().await?;
    let now = tx.now();
    let end = change.expires_at.as_ref().map(|end| end.0);
    check_end(end.flatten(), now)?;
    let (name, role, scope) = lock(&mut tx, &id).await?;
    let before: ApiKey = listing::get(&mut tx, now, id.as_str()).await?;
    check_scope(change.role.unwrap_or(role), change.scope.as_ref().or(Some(&scope)))?;
    if let Some(wanted) = change.name.as_deref().filter(|wanted| *wanted != name) {
        must_be_distinct(&mut tx, wanted, Some(&id)).await?;
        must_stand_behind_nothing(&mut tx, &name).await?;
        approvals::renamed(&mut tx, &name, wanted).await?;
    }
    if change
        .role
        .is_some_and(|wanted| (wanted == Role::Agent) != (role == Role::Agent))
    {
        return Err(ApiError::invalid(
            "role",
            "of an agent's key stays agent, and of no other becomes it; create another key",
        ));
    }
    sqlx::query(
        "UPDATE api_keys
            SET name = coalesce($2, name), role = coalesce($3, role),
                expires_at = CASE WHEN $4 THEN $5 ELSE expires_at END, updated_at = $6,
                scope = coalesce($7, scope)
          WHERE id = $1",
    )
    .bind(&id)
    .bind(&change.name)
    .bind(change.role)
    .bind(end.is_some())
    .bind(end.flatten())
    .bind(now)
    .bind(change.scope.as_ref().map(Json))
    .execute(&mut *tx)
    .await?;
    // Requests that wait with the key as it was ask again what it may.
    tx.wake(Channel::Jobs);
    let key: ApiKey = listing::get(&mut tx, now, id.as_str()).await?;
    let event = tx
        .event("update_api_key", "api_key", &id)
        .with("name", &key.name)
        .with("role", key.role)
        .with("scope", &key.scope)
        .with("expires_at", key.expires_at)
        .with("changes", listing::Changes::between(&before, &key));
    tx.note(event);
    tx.commit().await?;
    Ok(key)
}

async fn rotate(cx: Cx, rq: Request<RotateApiKey>) -> Result<IssuedApiKey, ApiError> {
    let id = rq.path.id;
    let overlap = rq.body.overlap_seconds.unwrap_or(DEFAULT_OVERLAP_SECONDS);
    if overlap > MAX_OVERLAP_SECONDS {
        return Err(ApiError::invalid(
            "overlap_seconds",
            format!("is at most {MAX_OVERLAP_SECONDS}"),
        ));
    }
    let mut tx = cx.begin().await?;
    let now = tx.now();
    lock(&mut tx, &id).await?;
    // At once is at once on every replica, whatever its clock says. Those before the last one do not gain by it.
    let ends = match overlap {
        0 => sqlx::query("DELETE FROM api_key_secrets WHERE key_id = $1").bind(&id),
        _ => sqlx::query("UPDATE api_key_secrets SET ends_at = least(ends_at, $2) WHERE key_id = $1")
            .bind(&id)
            .bind(now + Duration::from_secs(overlap.into())),
    };
    ends.execute(&mut *tx).await?;
    tx.wake(Channel::Jobs);
    let secret = fresh_secret(&mut tx, &id).await?;
    sqlx::query("UPDATE api_keys SET updated_at = $2 WHERE id = $1")
        .bind(&id)
        .bind(now)
        .execute(&mut *tx)
        .await?;
    let key: ApiKey = listing::get(&mut tx, now, id.as_str()).await?;
    let event = tx
        .event("rotate_api_key", "api_key", &id)
        .with("name", &key.name)
        .with("overlap_seconds", overlap);
    tx.note(event);
    tx.commit().await?;
    Ok(issued(key, &secret))
}

async fn revoke(cx: Cx, rq: Request<RevokeApiKey>) -> Result<NoContent, ApiError> {
    let id = rq.path.id;
    let mut tx = cx.begin().await?;
    let name: Option<String> = sqlx::query_scalar("DELETE FROM api_keys WHERE id = $1 RETURNING name")
        .bind(&id)
        .fetch_optional(&mut *tx)
        .await?;
    let name = name.ok_or_else(|| ApiError::missing(ApiKey::KIND, &id))?;
    // A request that waits for work with this key ends.
    tx.wake(Channel::Jobs);
    let event = tx.event("revoke_api_key", "api_key", &id).with("name", name);
    tx.note(event);
    tx.commit().await?;
    Ok(NoContent)
}

/// Name, role and scope of a key that nobody else changes meanwhile.
async fn lock(tx: &mut Tx, id: &ApiKeyId) -> Result<(String, Role, Scope), ApiError> {
    let found: Option<(String, Role, Json<Scope>)> =
        sqlx::query_as("SELECT name, role, scope FROM api_keys WHERE id = $1 FOR UPDATE")
            .bind(id)
            .fetch_optional(&mut **tx)
            .await?;
    let (name, role, scope) = found.ok_or_else(|| ApiError::missing(ApiKey::KIND, id))?;
    Ok((name, role, scope.0))
}

/// Refuses a scope where it would limit nothing: who may do everything may also change it.
fn check_scope(role: Role, scope: Option<&Scope>) -> Result<(), ApiError> {
    match scope.is_some_and(|scope| !scope.is_empty()) && !role.may_be_scoped() {
        true => Err(ApiError::invalid(
            "scope",
            format!("goes with every role but admin and agent, and the role is {role}"),
        )),
        false => Ok(()),
    }
}

/// Refuses a name that is taken for that of another key. Keys are as few as their holders.
async fn must_be_distinct(tx: &mut Tx, name: &str, of: Option<&ApiKeyId>) -> Result<(), ApiError> {
    sqlx::query("SELECT pg_advisory_xact_lock(hashtext('api_keys.name'))")
        .execute(&mut **tx)
        .await?;
    let others: Vec<String> = sqlx::query_scalar("SELECT name FROM api_keys WHERE id IS DISTINCT FROM $1")
        .bind(of)
        .fetch_all(&mut **tx)
        .await?;
    // The very same name is refused by the constraint, as before.
    match others
        .iter()
        .find(|other| *other != name && text::look_alike(other, name))
    {
        Some(other) => Err(ApiError::invalid(
            "name",
            format!("looks like that of the key \"{other}\"; choose another"),
        )),
        None => Ok(()),
    }
}

/// Refuses another name for a key while a job waits that it took part in or approved under the name it has: the job would
/// no longer show that it was the same party.
async fn must_stand_behind_nothing(tx: &mut Tx, name: &str) -> Result<(), ApiError> {
    let job: Option<JobId> = sqlx::query_scalar(
        "SELECT j.id FROM jobs j JOIN certificates c ON c.id = j.certificate_id
          WHERE j.status IN ('Pending', 'AwaitingCSR', 'AwaitingApproval', 'Running')
            AND (EXISTS (SELECT 1 FROM job_participants(j, c) p WHERE p.participant = $1)
                 OR EXISTS (SELECT 1 FROM approvals a WHERE a.job_id = j.id AND a.approver = $1))
          LIMIT 1",
    )
    .bind(name)
    .fetch_optional(&mut **tx)
    .await?;
    match job {
        Some(job) => Err(ApiError::new(
            Kind::WrongState,
            format!("{name} took part in job {job} or approved it; name the key anew when the job is finished"),
        )),
        None => Ok(()),
    }
}

/// Makes the secret that stays and keeps its digest.
async fn fresh_secret(tx: &mut Tx, id: &ApiKeyId) -> Result<Secret, ApiError> {
    let secret = Secret::new(format!("ck_{}", URL_SAFE_NO_PAD.encode(random()?)));
    let now = tx.now();
    sqlx::query(
        "INSERT INTO api_key_secrets (hash, key_id, prefix, created_at, created_by) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(hex::encode(sha256(secret.expose())))
    .bind(id)
    .bind(&secret.expose()[..PREFIX])
    .bind(now)
    .bind(tx.person())
    .execute(&mut **tx)
    .await?;
    Ok(secret)
}

/// Ends what an agent has come with so far; the key of its registration too, which no text hashes to any more.
async fn end_keys_of(tx: &mut Tx, agent: &AgentId) -> Result<(), ApiError> {
    // The agent first, as deleting it does.
    sqlx::query("UPDATE agents SET api_key_hash = '', registered_by = NULL WHERE id = $1")
        .bind(agent)
        .execute(&mut **tx)
        .await?;
    sqlx::query("DELETE FROM api_keys WHERE agent_id = $1")
        .bind(agent)
        .execute(&mut **tx)
        .await?;
    tx.wake(Channel::Jobs);
    let event = tx.event("agent_keys_ended", "agent", agent);
    tx.note(event);
    Ok(())
}

fn issued(key: ApiKey, secret: &Secret) -> IssuedApiKey {
    IssuedApiKey {
        key,
        api_key: secret.expose().to_owned(),
    }
}

/// A name that the trail does not give to somebody else.
fn check_key_name(name: &str) -> Result<(), ApiError> {
    check_name("name", name, 255)?;
    match auth::is_reserved(name) {
        true => Err(ApiError::invalid(
            "name",
            "stands for another party in the trail; choose another",
        )),
        false => Ok(()),
    }
}

fn check_end(end: Option<Time>, now: Time) -> Result<(), ApiError> {
    match end.is_some_and(|end| end <= now) {
        true => Err(ApiError::invalid("expires_at", "lies in the future")),
        false => Ok(()),
    }
}
