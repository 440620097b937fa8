//! Targets.

use std::collections::HashMap;

use certctl_contract::{
    endpoint::NoContent,
    list::{Page, Sort},
    problem::Kind,
    targets::*,
};
use certctl_model::{
    connector::{TargetConfig, TargetType},
    id::{AgentId, CertificateId, JobId, TargetId},
};
use certctl_store::{
    Tx,
    approvals::{self, Change},
    certificates, planning, validations,
};
use serde_json::Value;
use sqlx::{FromRow, postgres::PgRow};

use crate::{
    app::{Cx, Request, Routes},
    error::ApiError,
    listing::{self, Column, Listed, Where, check_name},
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(list).on(create).on(get).on(update).on(delete)
}

impl Listed for Target {
    type Filter = TargetFilter;
    type Sort = TargetSort;

    const KIND: &'static str = "target";
    const COLUMNS: &'static str = "t.id, t.name, t.type, t.agent_id, a.hostname, t.config, t.enabled,
        CASE WHEN t.enabled THEN 'active' ELSE 'disabled' END AS status, t.created_at, t.updated_at";
    const FROM: &'static str = "targets t JOIN agents a ON a.id = t.agent_id";
    const ID: &'static str = "t.id";
    const DEFAULT: Sort<TargetSort> = Sort {
        key: TargetSort::CreatedAt,
        descending: true,
    };

    fn column(key: TargetSort) -> Column {
        match key {
            TargetSort::CreatedAt => Column::time("t.created_at"),
            TargetSort::Name => Column::text("t.name"),
        }
    }

    fn restrict(f: &TargetFilter, sql: &mut Where<'_>) {
        sql.eq("t.agent_id", &f.agent_id);
        sql.eq("t.name", &f.name);
        sql.eq("t.enabled", &f.enabled);
    }

    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Self::from_row(row)
    }
}

fn target_type(text: &str) -> Result<TargetType, ApiError> {
    text.parse().map_err(|_| {
        let available: Vec<&str> = TargetType::ALL.iter().map(|kind| kind.as_str()).collect();
        let text = text.escape_debug();
        ApiError::invalid(
            "type",
            format!("\"{text}\" is not available; there are: {}", available.join(", ")),
        )
    })
}

/// The settings in the one form that agents read.
fn settings(kind: TargetType, config: &Value) -> Result<Value, ApiError> {
    TargetConfig::read(kind, config)
        .map(|config| config.to_value())
        .map_err(|(field, text)| ApiError::invalid(field, text))
}

/// A file of a target, and whose it is.
struct Place {
    agent: AgentId,
    target: TargetId,
    target_name: String,
    certificate: Option<(CertificateId, String)>,
    path: String,
}

#[derive(FromRow)]
struct PlacesRow {
    agent_id: AgentId,
    id: TargetId,
    name: String,
    #[sqlx(rename = "type")]
    kind: TargetType,
    config: Value,
    certificate: Option<CertificateId>,
    certificate_name: Option<String>,
}

/// Refuses what would have two certificates, or two targets of one agent, write the same file. Called when the change is
/// made but not committed; holds the agents of the targets until then, so that two changes at once see each other.
/// Revoked and archived certificates and disabled targets hold no files.
pub(super) async fn must_not_overlap(tx: &mut Tx, targets: &[TargetId]) -> Result<(), ApiError> {
    if targets.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "SELECT 1 FROM agents WHERE id IN (SELECT agent_id FROM targets WHERE id = ANY ($1)) ORDER BY id FOR NO KEY UPDATE",
    )
    .bind(targets)
    .execute(&mut **tx)
    .await?;
    let rows: Vec<PlacesRow> = sqlx::query_as(
        "SELECT t.agent_id, t.id, t.name, t.type, t.config, c.id AS certificate, c.name AS certificate_name
           FROM targets t
           LEFT JOIN (certificate_targets m JOIN certificates c ON c.id = m.certificate_id AND c.archived_at IS NULL
                                                                  AND c.revoked_at IS NULL) ON m.target_id = t.id
          WHERE t.enabled AND t.agent_id IN (SELECT agent_id FROM targets WHERE id = ANY ($1))
          ORDER BY t.agent_id, t.id = ANY ($1), t.created_at, t.id, c.created_at, c.id",
    )
    .bind(targets)
    .fetch_all(&mut **tx)
    .await?;
    let mut taken: HashMap<(AgentId, String), Place> = HashMap::new();
    for place in rows.into_iter().flat_map(places) {
        let is_checked = targets.contains(&place.target);
        let key = (place.agent.clone(), place.path.clone());
        let Some(first) = taken.get(&key).filter(|_| is_checked) else {
            taken.entry(key).or_insert(place);
            continue;
        };
        if let Some(detail) = overlap(first, &place) {
            return Err(ApiError::new(Kind::WrongState, detail));
        }
    }
    Ok(())
}

fn places(row: PlacesRow) -> Vec<Place> {
    // What cannot be read is refused by its agent.
    let Ok(config) = TargetConfig::read(row.kind, &row.config) else {
        return vec![];
    };
    let certificate = row.certificate.zip(row.certificate_name);
    let config = match &certificate {
        Some((id, name)) => config.for_certificate(id.as_str(), name),
        None => config,
    };
    let place = |path: &str| Place {
        agent: row.agent_id.clone(),
        target: row.id.clone(),
        target_name: row.name.clone(),
        certificate: certificate.clone(),
        path: path.to_owned(),
    };
    config.paths().into_iter().map(place).collect()
}

/// Why a file cannot belong to both; none when they are the same certificate on the same target.
fn overlap(first: &Place, second: &Place) -> Option<String> {
    let Place {
        target,
        target_name,
        path,
        ..
    } = first;
    match (&first.certificate, &second.certificate) {
        _ if *target != second.target => Some(format!(
            "target {target} ({target_name}) of the same agent writes {path} already; give target {} other files",
            second.target
        )),
        (Some((one, name)), Some((other, _))) if one != other => Some(format!(
            "certificate {one} ({name}) is put on target {target} ({target_name}) already, into the same file {path}; give \
             {other} a target of its own, take {target} from the target_ids of {one}, or put {{id}} or {{name}} into the \
             target's paths"
        )),
        _ => None,
    }
}

async fn list(cx: Cx, rq: Request<ListTargets>) -> Result<Page<Target>, ApiError> {
    listing::list(&cx, rq.query).await
}

async fn get(cx: Cx, rq: Request<GetTarget>) -> Result<Target, ApiError> {
    listing::fetch(&cx, rq.path.id.as_str()).await
}

async fn create(cx: Cx, rq: Request<CreateTarget>) -> Result<Target, ApiError> {
    let new = rq.body;
    check_name("name", &new.name, 255)?;
    let kind = target_type(&new.kind)?;
    let config = settings(kind, &new.config)?;
    let mut tx = cx.begin().await?;
    let now = tx.now();
    let id = new.id.unwrap_or_else(|| TargetId::generate(now));
    sqlx::query(
        "INSERT INTO targets (id, name, type, agent_id, config, enabled, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $7)",
    )
    .bind(&id)
    .bind(&new.name)
    .bind(kind)
    .bind(&new.agent_id)
    .bind(&config)
    .bind(new.enabled.unwrap_or(true))
    .bind(now)
    .execute(&mut *tx)
    .await?;
    must_not_overlap(&mut tx, std::slice::from_ref(&id)).await?;
    let mut created: Target = listing::get(&mut tx, now, id.as_str()).await?;
    created.ignored = TargetConfig::ignored(kind, &new.config);
    listing::commit(tx, "create_target", "target", id.as_str()).await?;
    Ok(created)
}

async fn update(cx: Cx, rq: Request<UpdateTarget>) -> Result<Target, ApiError> {
    let (id, change) = (rq.path.id, rq.body);
    change
        .name
        .as_deref()
        .map_or(Ok(()), |name| check_name("name", name, 255))?;
    let mut tx = cx.begin().await?;
    let now = tx.now();
    let certificates = lock_certificates(&mut tx, &id).await?;
    let before: Target = listing::get(&mut tx, now, id.as_str()).await?;
    let kind = change
        .kind
        .as_deref()
        .map(target_type)
        .transpose()?
        .unwrap_or(before.kind);
    let config = settings(kind, change.config.as_ref().unwrap_or(&before.config))?;
    let moves = change.agent_id.as_ref().is_some_and(|agent| *agent != before.agent_id);
    if moves && !certificates.is_empty() {
        // Keys do not leave the host that made them, so what is served here cannot move along.
        let detail = format!(
            "certificates are put on target {id}, and their keys stay with agent {}; take the target from their \
             target_ids first, or create another target",
            before.agent_id
        );
        return Err(ApiError::new(Kind::Referenced, detail));
    }
    sqlx::query(
        "UPDATE targets
            SET name = coalesce($2, name), type = $3, agent_id = coalesce($4, agent_id), config = $5,
                enabled = coalesce($6, enabled), updated_at = $7
          WHERE id = $1",
    )
    .bind(&id)
    .bind(&change.name)
    .bind(kind)
    .bind(&change.agent_id)
    .bind(&config)
    .bind(change.enabled)
    .bind(now)
    .execute(&mut *tx)
    .await?;
    let mut updated: Target = listing::get(&mut tx, now, id.as_str()).await?;
    if let Some(config) = &change.config {
        updated.ignored = TargetConfig::ignored(kind, config);
    }
    // What overlapped before can still be renamed or disabled.
    if updated.config != before.config || updated.agent_id != before.agent_id || (updated.enabled && !before.enabled) {
        must_not_overlap(&mut tx, std::slice::from_ref(&id)).await?;
    }
    let again = (deployed_by(&updated) != deployed_by(&before)).then_some(&id);
    validations::look_soon(&mut tx, &id).await?;
    if again.is_some() || updated.enabled != before.enabled {
        for certificate in &certificates {
            planning::retarget(&mut tx, certificate, again).await?;
        }
    }
    if updated != before {
        let ids: Vec<&CertificateId> = certificates.iter().map(|certificate| &certificate.id).collect();
        approvals::participate(&mut tx, &ids, &[Change::TargetSettings]).await?;
    }
    listing::commit_change(tx, "update_target", "target", id.as_str(), (&before, &updated)).await?;
    Ok(updated)
}

/// The settings that files and programs depend on.
fn deployed_by(target: &Target) -> Value {
    let mut config = target.config.clone();
    if let Some(config) = config.as_object_mut() {
        config.remove("endpoints");
    }
    config
}

async fn delete(cx: Cx, rq: Request<DeleteTarget>) -> Result<NoContent, ApiError> {
    let id = rq.path.id;
    let mut tx = cx.begin().await?;
    let certificates = lock_certificates(&mut tx, &id).await?;
    let running: Option<JobId> = sqlx::query_scalar(
        "SELECT id FROM jobs WHERE target_id = $1 AND type = 'Deployment' AND status = 'Running' LIMIT 1",
    )
    .bind(&id)
    .fetch_optional(&mut *tx)
    .await?;
    if let Some(job) = running {
        let detail = format!("job {job} is deploying to target {id} now; try again when it is finished");
        return Err(ApiError::new(Kind::Referenced, detail));
    }
    sqlx::query("DELETE FROM certificate_targets WHERE target_id = $1")
        .bind(&id)
        .execute(&mut *tx)
        .await?;
    for certificate in &certificates {
        planning::retarget(&mut tx, certificate, None).await?;
    }
    let done = sqlx::query("DELETE FROM targets WHERE id = $1")
        .bind(&id)
        .execute(&mut *tx)
        .await;
    listing::deleted(done, "target", id.as_str())?;
    listing::commit(tx, "delete_target", "target", id.as_str()).await?;
    Ok(NoContent)
}

/// Locks the certificates of a target, then the target: everyone takes certificates first, so that nobody waits in a
/// circle.
async fn lock_certificates(tx: &mut Tx, id: &TargetId) -> Result<Vec<certificates::Locked>, ApiError> {
    const MAPPED: &str = "SELECT certificate_id FROM certificate_targets WHERE target_id = $1 ORDER BY certificate_id";
    let before: Vec<CertificateId> = sqlx::query_scalar(MAPPED).bind(id).fetch_all(&mut **tx).await?;
    let mut locked = Vec::with_capacity(before.len());
    for certificate in &before {
        locked.push(certificates::lock(tx, certificate).await?);
    }
    sqlx::query("SELECT 1 FROM targets WHERE id = $1 FOR UPDATE")
        .bind(id)
        .execute(&mut **tx)
        .await?;
    let after: Vec<CertificateId> = sqlx::query_scalar(MAPPED).bind(id).fetch_all(&mut **tx).await?;
    match before == after {
        true => Ok(locked),
        false => Err(ApiError::unavailable(format!(
            "the certificates of target {id} were changed meanwhile"
        ))),
    }
}
