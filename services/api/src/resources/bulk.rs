//! Many certificates at once. What is asked for is written down here; schedulers do it, certificate by certificate.

use certctl_contract::{
    bulk::*,
    certificates::{Certificate, CertificateFilter},
    health::Outcome,
    list::{Page, Sort},
    problem::Kind,
    query,
};
use certctl_model::{
    audit::Event,
    bulk::{BulkAction, BulkStatus},
    id::{BulkId, OwnerId, TeamId},
    key::KeyFingerprint,
    revocation::RevocationReason,
};
use certctl_store::{Tx, scope, tallies, wake::Channel};
use sqlx::{FromRow, postgres::PgRow, types::Json};

use crate::{
    app::{Cx, Request, Routes},
    error::ApiError,
    listing::{self, Belongs, Column, Listed, Where},
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(renew)
        .on(revoke)
        .on(reassign)
        .on(list)
        .on(get)
        .on(items)
        .on(cancel)
}

/// Certificates that can be named in one request.
const MOST_IDS: usize = 10_000;

impl Listed for BulkOperation {
    type Filter = BulkFilter;
    type Sort = BulkSort;

    const KIND: &'static str = "bulk operation";
    const COLUMNS: &'static str = "b.id, b.action, b.dry_run, b.status, b.total, n.done, n.refused,
        b.total - n.done - n.refused AS remaining, b.reason, b.owner_id, b.team_id, b.actor AS created_by, b.created_at,
        b.finished_at";
    // A finished one was counted when it ended.
    const FROM: &'static str = "bulk_operations b
        CROSS JOIN LATERAL (
            SELECT b.done, b.refused WHERE b.status <> 'Running'
            UNION ALL
            SELECT count(*) FILTER (WHERE i.outcome = 'done'), count(*) FILTER (WHERE i.outcome = 'refused')
              FROM bulk_items i WHERE i.bulk_id = b.id AND b.status = 'Running' HAVING b.status = 'Running') n";
    const ID: &'static str = "b.id";
    const BELONGS: Belongs = Belongs::Maker("b.actor");
    const DEFAULT: Sort<BulkSort> = Sort {
        key: BulkSort::CreatedAt,
        descending: true,
    };

    fn column(key: BulkSort) -> Column {
        match key {
            BulkSort::CreatedAt => Column::time("b.created_at"),
        }
    }

    fn restrict(f: &BulkFilter, sql: &mut Where<'_>) {
        sql.eq("b.status", &f.status);
        sql.eq("b.action", &f.action);
        sql.after("b.created_at", &f.created_after);
    }

    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Self::from_row(row)
    }
}

impl Listed for BulkItem {
    type Filter = BulkItemFilter;
    type Sort = BulkItemSort;

    const KIND: &'static str = "certificate of a bulk operation";
    const COLUMNS: &'static str = "i.certificate_id, i.outcome, i.message, i.finished_at";
    const FROM: &'static str = "bulk_items i";
    const ID: &'static str = "i.certificate_id";
    const BELONGS: Belongs = Belongs::Certificate("i.certificate_id");
    const DEFAULT: Sort<BulkItemSort> = Sort {
        key: BulkItemSort::CertificateId,
        descending: false,
    };

    fn column(key: BulkItemSort) -> Column {
        match key {
            BulkItemSort::CertificateId => Column::text("i.certificate_id"),
        }
    }

    fn restrict(f: &BulkItemFilter, sql: &mut Where<'_>) {
        sql.eq("i.outcome", &f.outcome);
    }

    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Self::from_row(row)
    }
}

/// What is to be done to each.
struct Order {
    action: BulkAction,
    reason: Option<RevocationReason>,
    owner: Option<OwnerId>,
    team: Option<TeamId>,
    /// Whether what is archived is revoked too.
    sweep: bool,
}

impl Order {
    fn of(action: BulkAction) -> Self {
        Self {
            action,
            reason: None,
            owner: None,
            team: None,
            sweep: false,
        }
    }
}

async fn renew(cx: Cx, rq: Request<BulkRenew>) -> Result<BulkOperation, ApiError> {
    let order = Order::of(BulkAction::Renew);
    let tx = cx.begin().await?;
    record(&cx, tx, rq.body.selection, order).await
}

async fn revoke(cx: Cx, rq: Request<BulkRevoke>) -> Result<BulkOperation, ApiError> {
    let order = Order {
        reason: Some(rq.body.reason.unwrap_or(RevocationReason::Unspecified)),
        ..Order::of(BulkAction::Revoke)
    };
    let tx = cx.begin().await?;
    record(&cx, tx, rq.body.selection, order).await
}

async fn reassign(cx: Cx, rq: Request<BulkReassign>) -> Result<BulkOperation, ApiError> {
    let (owner, team) = (rq.body.owner_id, rq.body.team_id);
    let mut tx = cx.begin().await?;
    let owners_team: Option<TeamId> = match &owner {
        None => None,
        Some(owner) => Some(
            sqlx::query_scalar("SELECT team_id FROM owners WHERE id = $1")
                .bind(owner)
                .fetch_optional(&mut *tx)
                .await?
                .ok_or_else(|| ApiError::invalid("owner_id", format!("there is no owner {owner}")))?,
        ),
    };
    if let Some(team) = &team {
        let found: Option<i32> = sqlx::query_scalar("SELECT 1 FROM teams WHERE id = $1")
            .bind(team)
            .fetch_optional(&mut *tx)
            .await?;
        found.ok_or_else(|| ApiError::invalid("team_id", format!("there is no team {team}")))?;
    }
    if owner.is_none() && team.is_none() {
        return Err(ApiError::invalid(
            "owner_id",
            "or team_id is needed: to whom the certificates go",
        ));
    }
    let order = Order {
        owner,
        team: team.or(owners_team),
        ..Order::of(BulkAction::Reassign)
    };
    record(&cx, tx, rq.body.selection, order).await
}

/// Writes an operation down. Which certificates it is about comes next, in the same unit of work.
async fn begin(
    tx: &mut Tx,
    order: &Order,
    dry_run: bool,
    filter: Option<&CertificateConditions>,
) -> Result<BulkId, ApiError> {
    let (id, now, actor) = (BulkId::generate(tx.now()), tx.now(), tx.actor());
    sqlx::query(
        "INSERT INTO bulk_operations (id, action, dry_run, status, reason, owner_id, team_id, filter, sweep, actor,
                                      actor_type, created_at)
         VALUES ($1, $2, $3, 'Running', $4, $5, $6, $7, $8, $9, $10, $11)",
    )
    .bind(&id)
    .bind(order.action)
    .bind(dry_run)
    .bind(order.reason)
    .bind(&order.owner)
    .bind(&order.team)
    .bind(filter.map(Json))
    .bind(order.sweep)
    .bind(&actor.name)
    .bind(actor.kind)
    .bind(now)
    .execute(&mut **tx)
    .await?;
    Ok(id)
}

/// Says how many certificates an operation is about, and has somebody do it.
async fn set_going(tx: &mut Tx, id: &BulkId, total: u64, event: Event) -> Result<(), ApiError> {
    sqlx::query("UPDATE bulk_operations SET total = $2 WHERE id = $1")
        .bind(id)
        .bind(i64::try_from(total).unwrap_or(i64::MAX))
        .execute(&mut **tx)
        .await?;
    tx.note(event.with("total", total));
    tx.wake(Channel::Bulk);
    Ok(())
}

/// Begins to revoke everything of ours that has a key and has not ended, be it archived or held. Returns the operation.
pub(super) async fn sweep(tx: &mut Tx, key: &KeyFingerprint) -> Result<BulkId, ApiError> {
    let order = Order {
        reason: Some(RevocationReason::KeyCompromise),
        sweep: true,
        ..Order::of(BulkAction::Revoke)
    };
    let filter = CertificateConditions([("spki_sha256".to_owned(), key.to_string())].into());
    let id = begin(tx, &order, false, Some(&filter)).await?;
    let total = sqlx::query(
        "INSERT INTO bulk_items (bulk_id, certificate_id)
         SELECT DISTINCT $1, v.certificate_id
           FROM certificate_versions v JOIN certificates c ON c.id = v.certificate_id
          WHERE v.spki_sha256 = $2 AND v.issuer_id IS NOT NULL AND v.not_after > $3
            AND (c.revoked_at IS NULL OR c.revocation_reason = 'certificateHold')",
    )
    .bind(&id)
    .bind(key)
    .bind(tx.now())
    .execute(&mut **tx)
    .await?
    .rows_affected();
    let event = tx
        .event("bulk_requested", "bulk_operation", &id)
        .with("action", order.action)
        .with("filter", &filter);
    set_going(tx, &id, total, event).await?;
    Ok(id)
}

/// Writes an operation down, with the certificates it is about.
async fn record(cx: &Cx, mut tx: Tx, selection: Selection, order: Order) -> Result<BulkOperation, ApiError> {
    let now = tx.now();
    if let (Some(reach), Some(ids)) = (cx.reach.limits(), &selection.ids) {
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        if let Some(id) = scope::beyond(&mut tx, reach, &ids).await? {
            return Err(ApiError::missing("certificate", id));
        }
    }
    let id = begin(&mut tx, &order, selection.dry_run, selection.filter.as_ref()).await?;
    let total =
        match (selection.ids, &selection.filter) {
            (Some(ids), None) if (1..=MOST_IDS).contains(&ids.len()) => sqlx::query(
                "INSERT INTO bulk_items (bulk_id, certificate_id) SELECT DISTINCT $1, c FROM unnest($2::text[]) AS c",
            )
            .bind(&id)
            .bind(ids)
            .execute(&mut *tx)
            .await?,
            (Some(_), None) => {
                return Err(ApiError::invalid(
                    "ids",
                    format!("are 1 to {MOST_IDS}; choose more by filter"),
                ));
            }
            (None, Some(conditions)) => {
                let pairs: Vec<(String, String)> = conditions.0.clone().into_iter().collect();
                if pairs.is_empty() {
                    return Err(ApiError::invalid("filter", "has at least one condition"));
                }
                let filter: CertificateFilter =
                    query::parse(pairs).map_err(|wrong| ApiError::malformed("the filter cannot be read", wrong))?;
                tallies::settle_in(&mut tx, now).await?;
                let mut sql = sqlx::QueryBuilder::new("INSERT INTO bulk_items (bulk_id, certificate_id) SELECT ");
                sql.push_bind(&id).push(", c.id FROM ");
                listing::matching::<Certificate>(&cx.reach, &mut sql, &filter, now)?;
                sql.build().execute(&mut *tx).await?
            }
            _ => {
                return Err(ApiError::invalid(
                    "ids",
                    "or filter says which certificates: one of the two",
                ));
            }
        }
        .rows_affected();
    let event = tx
        .event("bulk_requested", "bulk_operation", &id)
        .with("action", order.action)
        .with("dry_run", selection.dry_run)
        .with("filter", &selection.filter);
    set_going(&mut tx, &id, total, event).await?;
    let created = listing::get(&mut tx, now, id.as_str()).await?;
    tx.commit().await?;
    Ok(created)
}

async fn list(cx: Cx, rq: Request<ListBulkOperations>) -> Result<Page<BulkOperation>, ApiError> {
    listing::list(&cx, rq.query).await
}

async fn get(cx: Cx, rq: Request<GetBulkOperation>) -> Result<BulkOperation, ApiError> {
    listing::fetch(&cx, rq.path.id.as_str()).await
}

async fn items(cx: Cx, rq: Request<ListBulkItems>) -> Result<Page<BulkItem>, ApiError> {
    let id = rq.path.id;
    let _: BulkOperation = listing::fetch(&cx, id.as_str()).await?;
    listing::list_where(&cx, rq.query, |sql| sql.eq("i.bulk_id", &Some(id.clone()))).await
}

async fn cancel(cx: Cx, rq: Request<CancelBulkOperation>) -> Result<Outcome, ApiError> {
    let id = rq.path.id;
    let mut tx = cx.begin().await?;
    let now = tx.now();
    let status: Option<BulkStatus> = sqlx::query_scalar("SELECT status FROM bulk_operations WHERE id = $1 FOR UPDATE")
        .bind(&id)
        .fetch_optional(&mut *tx)
        .await?;
    match status {
        None => return Err(ApiError::missing("bulk operation", &id)),
        Some(BulkStatus::Running) => {}
        Some(status) => {
            let detail = format!("bulk operation {id} is {status}; only a running one can be called off");
            return Err(ApiError::new(Kind::WrongState, detail));
        }
    }
    // Waits for those that are having their turn.
    sqlx::query(
        "UPDATE bulk_items SET outcome = 'cancelled', finished_at = $2 WHERE bulk_id = $1 AND outcome = 'waiting'",
    )
    .bind(&id)
    .bind(now)
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "UPDATE bulk_operations b SET status = 'Cancelled', finished_at = $2, done = n.done, refused = n.refused
           FROM (SELECT count(*) FILTER (WHERE outcome = 'done') AS done,
                        count(*) FILTER (WHERE outcome = 'refused') AS refused
                   FROM bulk_items WHERE bulk_id = $1) n
          WHERE b.id = $1",
    )
    .bind(&id)
    .bind(now)
    .execute(&mut *tx)
    .await?;
    let event = tx.event("bulk_cancelled", "bulk_operation", &id);
    tx.note(event);
    tx.commit().await?;
    Ok(Outcome::of("bulk_cancelled"))
}
