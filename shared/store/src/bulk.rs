//! Bulk operations: one thing done to many certificates. Revocations are done by the hundred, everything else in a
//! transaction of its own for each certificate.
//!
//! What is to be done to which certificates stands in rows before anything is done; a certificate's outcome is written
//! in the transaction that does it. Whoever dies in between leaves certificates that wait, and somebody else goes on.

use certctl_model::{
    audit::{Actor, ActorType},
    bulk::{BulkAction, BulkOutcome},
    id::{BulkId, CertificateId, OwnerId, TeamId},
    revocation::RevocationReason,
    time::Time,
};
use sqlx::PgPool;

use crate::{
    Tx, certificates,
    error::*,
    revocations::{self, Grounds},
};

#[derive(sqlx::FromRow)]
struct Item {
    bulk_id: BulkId,
    certificate_id: CertificateId,
    action: BulkAction,
    owner_id: Option<OwnerId>,
    team_id: Option<TeamId>,
    dry_run: bool,
    actor: String,
    actor_type: ActorType,
}

/// Certificates that are revoked in one transaction.
const BATCH: i64 = 500;

/// Does what is next in an operation that is running, in the name of who asked for it: one certificate, or some hundred
/// that are to be revoked. Returns how many had their turn.
///
/// # Errors
/// When the database cannot be asked; the certificates still wait then.
pub async fn step(db: &PgPool, now: Time) -> Result<u64> {
    match revoke_some(db, now).await? {
        // What is to be renewed can wait.
        0 => step_one(db, now).await.map(u64::from),
        some => Ok(some),
    }
}

#[derive(sqlx::FromRow)]
struct Waiting {
    bulk_id: BulkId,
    reason: Option<RevocationReason>,
    sweep: bool,
    dry_run: bool,
    actor: String,
    actor_type: ActorType,
    certificates: Vec<CertificateId>,
}

async fn revoke_some(db: &PgPool, now: Time) -> Result<u64> {
    let mut tx = Tx::begin(db, &Actor::system(), now).await?;
    // Others that look at the same time skip these, and take the next.
    let waiting: Option<Waiting> = sqlx::query_as(
        "SELECT b.id AS bulk_id, b.reason, b.sweep, b.dry_run, b.actor, b.actor_type, w.certificates
           FROM (SELECT * FROM bulk_operations WHERE status = 'Running' AND action = 'revoke' ORDER BY id) b
          CROSS JOIN LATERAL (SELECT array_agg(i.certificate_id ORDER BY i.certificate_id) AS certificates
                                FROM (SELECT certificate_id FROM bulk_items
                                       WHERE bulk_id = b.id AND outcome = 'waiting'
                                       ORDER BY certificate_id LIMIT $1 FOR UPDATE SKIP LOCKED) i) w
          WHERE w.certificates IS NOT NULL
          LIMIT 1",
    )
    .bind(BATCH)
    .fetch_optional(&mut *tx)
    .await?;
    let Some(waiting) = waiting else { return Ok(0) };
    tx.act_for(Actor {
        kind: waiting.actor_type,
        name: waiting.actor.clone(),
    });
    let grounds = Grounds {
        even_archived: waiting.sweep,
        ..waiting.reason.unwrap_or(RevocationReason::Unspecified).into()
    };
    let outcomes = match waiting.dry_run {
        true => revocations::try_all(&mut tx, &waiting.certificates, grounds).await?,
        false => {
            let done = revocations::revoke_all(&mut tx, &waiting.certificates, grounds).await?;
            done.into_iter().map(|(id, done)| (id, done.map(|_| ()))).collect()
        }
    };
    let (mut ids, mut words, mut messages) = (vec![], vec![], vec![]);
    for (id, outcome) in outcomes {
        let refusal = outcome.err().map(|error| error.to_string());
        ids.push(id);
        words.push(if refusal.is_none() {
            BulkOutcome::Done
        } else {
            BulkOutcome::Refused
        });
        messages.push(refusal);
    }
    sqlx::query(
        "UPDATE bulk_items i SET outcome = o.outcome, message = o.message, finished_at = $5
           FROM unnest($2::text[], $3::text[], $4::text[]) AS o (certificate_id, outcome, message)
          WHERE i.bulk_id = $1 AND i.certificate_id = o.certificate_id AND i.outcome = 'waiting'",
    )
    .bind(&waiting.bulk_id)
    .bind(&ids)
    .bind(&words)
    .bind(&messages)
    .bind(now)
    .execute(&mut *tx)
    .await?;
    // Refusals and trials are no changes that the trail would tell of.
    tx.commit_outcomes().await?;
    Ok(ids.len() as u64)
}

/// Does the next certificate. Returns whether there was one.
async fn step_one(db: &PgPool, now: Time) -> Result<bool> {
    let mut tx = Tx::begin(db, &Actor::system(), now).await?;
    let item: Option<Item> = sqlx::query_as(
        "SELECT i.bulk_id, i.certificate_id, b.action, b.owner_id, b.team_id, b.dry_run, b.actor, b.actor_type
           FROM (SELECT * FROM bulk_operations WHERE status = 'Running' AND action <> 'revoke' ORDER BY id) b
          CROSS JOIN LATERAL (SELECT bulk_id, certificate_id FROM bulk_items
                               WHERE bulk_id = b.id AND outcome = 'waiting'
                               ORDER BY certificate_id LIMIT 1 FOR UPDATE SKIP LOCKED) i
          LIMIT 1",
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(item) = item else { return Ok(false) };
    tx.act_for(Actor {
        kind: item.actor_type,
        name: item.actor.clone(),
    });
    let refusal = match act(&mut tx, &item).await {
        Ok(()) => None,
        Err(error @ (Error::Missing { .. } | Error::Conflict(_) | Error::WrongJobState { .. })) => {
            Some(error.to_string())
        }
        Err(Error::Reference { .. }) => Some("what it was to be given to is gone".to_owned()),
        Err(error) => return Err(error),
    };
    let outcome = match refusal {
        None => BulkOutcome::Done,
        Some(_) => BulkOutcome::Refused,
    };
    let settle = sqlx::query(
        "UPDATE bulk_items SET outcome = $3, message = $4, finished_at = $5
          WHERE bulk_id = $1 AND certificate_id = $2 AND outcome = 'waiting'",
    )
    .bind(&item.bulk_id)
    .bind(&item.certificate_id)
    .bind(outcome)
    .bind(&refusal)
    .bind(now);
    if refusal.is_none() && !item.dry_run {
        settle.execute(&mut *tx).await?;
        tx.commit().await?;
    } else {
        // What was tried is undone first.
        drop(tx);
        settle.execute(db).await?;
    }
    Ok(true)
}

async fn act(tx: &mut Tx, item: &Item) -> Result<()> {
    let id = &item.certificate_id;
    match item.action {
        BulkAction::Renew => certificates::renew(tx, id, None).await.map(|_| ()),
        BulkAction::Revoke => unreachable!("revocations are taken by the hundred"),
        BulkAction::Reassign => certificates::reassign(tx, id, item.owner_id.as_ref(), item.team_id.as_ref()).await,
    }
}

/// Closes operations in which no certificate waits any more. Returns how many.
///
/// # Errors
/// When the database cannot be asked.
pub async fn close(db: &PgPool, now: Time) -> Result<u64> {
    let mut tx = Tx::begin(db, &Actor::system(), now).await?;
    let closed: Vec<(BulkId, i64, i64)> = sqlx::query_as(
        "UPDATE bulk_operations b
            SET status = 'Completed', finished_at = $1, done = n.done, refused = n.refused
           FROM (SELECT o.id FROM bulk_operations o
                  WHERE o.status = 'Running'
                    AND NOT EXISTS (SELECT 1 FROM bulk_items i WHERE i.bulk_id = o.id AND i.outcome = 'waiting')
                  ORDER BY o.id LIMIT 100 FOR UPDATE SKIP LOCKED) o
          CROSS JOIN LATERAL (SELECT count(*) FILTER (WHERE i.outcome = 'done') AS done,
                                     count(*) FILTER (WHERE i.outcome = 'refused') AS refused
                                FROM bulk_items i WHERE i.bulk_id = o.id) n
          WHERE b.id = o.id
         RETURNING b.id, b.done, b.refused",
    )
    .bind(now)
    .fetch_all(&mut *tx)
    .await?;
    if closed.is_empty() {
        return Ok(0);
    }
    for (id, done, refused) in &closed {
        let event = tx
            .event("bulk_completed", "bulk_operation", id)
            .with("done", done)
            .with("refused", refused);
        tx.note(event);
    }
    tx.commit().await?;
    Ok(closed.len() as u64)
}
