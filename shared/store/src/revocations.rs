//! Revocations: recorded in one transaction with the certificate's own state, and read by the signer.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use certctl_model::{
    id::{CertificateId, IssuerId, RevocationId, VersionId},
    notice::NoticeKind,
    revocation::{RevocationReason, RevocationRecord},
    serial::Serial,
    time::Time,
};
use sqlx::{PgConnection, PgPool};

use crate::{
    Tx, certificates,
    error::*,
    jobs,
    outbox::{self, News},
    planning,
    wake::Channel,
};

/// Why something is revoked.
#[derive(Clone, Copy, Debug)]
pub struct Grounds {
    /// The reason.
    pub reason: RevocationReason,
    /// Since when the key is thought to be known to others, or the certificate wrong (RFC 5280 §5.3.2).
    pub invalidity_date: Option<Time>,
    /// Whether a certificate that is archived is revoked too.
    pub even_archived: bool,
}

impl From<RevocationReason> for Grounds {
    fn from(reason: RevocationReason) -> Self {
        Self {
            reason,
            invalidity_date: None,
            even_archived: false,
        }
    }
}

/// Revokes a certificate: its newest version, and every other that has not expired. Open jobs are cancelled. One that is
/// held can be revoked for good, as of the day of the hold. Returns the serials.
///
/// # Errors
/// [`Error::Missing`]; [`Error::Conflict`] when it is revoked or archived already, or nothing was issued.
pub async fn revoke(tx: &mut Tx, id: &CertificateId, grounds: Grounds) -> Result<Vec<Serial>> {
    let mut outcomes = revoke_all(tx, std::slice::from_ref(id), grounds).await?;
    outcomes.pop().expect("one outcome for one certificate").1
}

/// What became of each certificate.
pub type Outcomes<T> = Vec<(CertificateId, Result<T>)>;

/// Revokes certificates, all in a few statements, each as [`revoke`] would: one that is refused does not keep the
/// others. Returns what became of each, in the order of their ids.
///
/// # Errors
/// When the database cannot be asked; nothing is done then.
pub async fn revoke_all(tx: &mut Tx, ids: &[CertificateId], grounds: Grounds) -> Result<Outcomes<Vec<Serial>>> {
    let judged = judge_all(tx, ids, grounds).await?;
    let granted: Vec<&Case> = judged.iter().filter_map(|(_, case)| case.as_ref().ok()).collect();
    let mut serials = record(tx, &granted, grounds).await?;
    let mut news = Vec::with_capacity(granted.len());
    for case in &granted {
        let (id, serials) = (&case.id, serials.get(&case.id).map_or(&[][..], Vec::as_slice));
        let event = tx
            .event("certificate_revoked", "certificate", id)
            .with("common_name", &case.common_name)
            .with("serial", serials.first())
            .with("serials", serials)
            .with("reason", grounds.reason);
        tx.note(match grounds.invalidity_date {
            Some(date) => event.with("invalidity_date", date),
            None => event,
        });
        news.push(News {
            kind: NoticeKind::Revocation,
            certificate: id.clone(),
            // What was released may be revoked again, and that is news again.
            dedup: format!("{id}:{}", tx.now()),
            subject: format!("{} was revoked", case.common_name),
            message: format!(
                "Certificate {id} ({}) was revoked: {}.",
                case.common_name, grounds.reason
            ),
        });
    }
    if !granted.is_empty() {
        let ids: Vec<&CertificateId> = granted.iter().map(|case| &case.id).collect();
        jobs::cancel_open_of(tx, &ids, "the certificate was revoked").await?;
        outbox::announce_all(tx, &news).await?;
        tx.wake(Channel::Revocations);
    }
    let outcome = |(id, case): (CertificateId, Result<Case>)| {
        let revoked = case.map(|_| serials.remove(&id).unwrap_or_default());
        (id, revoked)
    };
    Ok(judged.into_iter().map(outcome).collect())
}

/// What would become of each certificate if it were revoked, in the order of their ids; the certificates are locked.
///
/// # Errors
/// When the database cannot be asked.
pub async fn try_all(tx: &mut Tx, ids: &[CertificateId], grounds: Grounds) -> Result<Outcomes<()>> {
    let judged = judge_all(tx, ids, grounds).await?.into_iter();
    Ok(judged.map(|(id, case)| (id, case.map(|_| ()))).collect())
}

/// A certificate that can be revoked.
#[derive(sqlx::FromRow)]
struct Case {
    id: CertificateId,
    common_name: String,
    current_version_id: Option<VersionId>,
    revoked_at: Option<Time>,
    revocation_reason: Option<RevocationReason>,
    archived_at: Option<Time>,
}

/// Who issued the versions of a certificate.
#[derive(sqlx::FromRow)]
struct Provenance {
    certificate_id: CertificateId,
    ours: bool,
    imported_from: Option<String>,
}

async fn judge_all(tx: &mut Tx, ids: &[CertificateId], grounds: Grounds) -> Result<Outcomes<Case>> {
    // In one order, so that two of these never wait for each other in a circle.
    let cases: Vec<Case> = sqlx::query_as(
        "SELECT id, common_name, current_version_id, revoked_at, revocation_reason, archived_at FROM certificates
          WHERE id = ANY ($1) ORDER BY id FOR UPDATE",
    )
    .bind(ids)
    .fetch_all(&mut **tx)
    .await?;
    let known: Vec<Provenance> = sqlx::query_as(
        "SELECT certificate_id, bool_or(issuer_id IS NOT NULL) AS ours, max(imported_from) AS imported_from
           FROM certificate_versions WHERE certificate_id = ANY ($1) GROUP BY certificate_id",
    )
    .bind(ids)
    .fetch_all(&mut **tx)
    .await?;
    let mut known: HashMap<_, _> = known.into_iter().map(|p| (p.certificate_id.clone(), p)).collect();
    let mut cases: HashMap<_, _> = cases.into_iter().map(|case| (case.id.clone(), case)).collect();
    let ids: BTreeSet<&CertificateId> = ids.iter().collect();
    let mut judge = |id: &CertificateId| match cases.remove(id) {
        Some(case) => case.judge(known.remove(id), grounds),
        None => Err(Error::Missing {
            kind: "certificate",
            id: id.to_string(),
        }),
    };
    Ok(ids.into_iter().map(|id| (id.clone(), judge(id))).collect())
}

impl Case {
    /// Refuses what is not live, and a certificate of which everything was imported: only who issued it can revoke it.
    fn judge(self, known: Option<Provenance>, grounds: Grounds) -> Result<Self> {
        let id = &self.id;
        let held = self.revocation_reason == Some(RevocationReason::CertificateHold);
        let revoked_at = self
            .revoked_at
            .filter(|_| !held || grounds.reason == RevocationReason::CertificateHold);
        let archived_at = self.archived_at.filter(|_| !grounds.even_archived);
        certificates::must_be_live(id, revoked_at, archived_at)?;
        if self.current_version_id.is_none() {
            return Err(Error::Conflict(format!(
                "nothing was issued for certificate {id} that could be revoked; archive it"
            )));
        }
        match known {
            Some(Provenance {
                ours: false,
                imported_from: Some(authority),
                ..
            }) => Err(Error::Conflict(format!(
                "certificate {id} was imported; ask the authority that issued it to revoke it: {authority}"
            ))),
            _ => Ok(self),
        }
    }
}

/// Writes the revocations of certificates that are locked. Returns the serials of each.
async fn record(tx: &mut Tx, cases: &[&Case], grounds: Grounds) -> Result<HashMap<CertificateId, Vec<Serial>>> {
    if cases.is_empty() {
        return Ok(HashMap::new());
    }
    let (actor, now) = (tx.actor(), tx.now());
    let ids: Vec<&CertificateId> = cases.iter().map(|case| &case.id).collect();
    // What was signed for their jobs and never came to be recorded as a version is revoked with the rest.
    let rows: Vec<(CertificateId, Serial)> = sqlx::query_as(
        "INSERT INTO revocations AS r (id, issuer_id, serial_number, certificate_id, reason, revoked_by, not_after,
                                       short_lived, shard, revoked_at, invalidity_date)
         SELECT c.revocation || '-' || s.serial_number, s.issuer_id, s.serial_number, c.id, $4, $5, s.not_after,
                coalesce(l.short_lived, false), coalesce(l.shard, 0), $6, $7
           FROM unnest($1::text[], $2::text[], $3::text[]) AS c (id, revocation, newest)
          CROSS JOIN LATERAL (
                SELECT v.issuer_id, v.serial_number, v.not_after FROM certificate_versions v
                 WHERE v.certificate_id = c.id AND v.issuer_id IS NOT NULL AND (v.not_after > $6 OR v.id = c.newest)
                 UNION
                SELECT g.issuer_id, g.serial_number, g.not_after FROM jobs j JOIN ledger g ON g.job_id = j.id
                 WHERE j.certificate_id = c.id AND g.der IS NOT NULL AND g.not_after > $6) s
           LEFT JOIN ledger l ON l.issuer_id = s.issuer_id AND l.serial_number = s.serial_number
         -- Held, and now revoked for good; or released, and now revoked again.
         ON CONFLICT (issuer_id, serial_number) DO UPDATE
            SET certificate_id = excluded.certificate_id, reason = excluded.reason, revoked_by = excluded.revoked_by,
                revoked_at = CASE WHEN r.released_at IS NULL THEN r.revoked_at ELSE excluded.revoked_at END,
                released_at = NULL, invalidity_date = excluded.invalidity_date
          WHERE r.released_at IS NOT NULL
             OR (r.reason = 'certificateHold' AND excluded.reason <> 'certificateHold')
         RETURNING certificate_id, serial_number",
    )
    .bind(&ids)
    .bind(ids.iter().map(|_| RevocationId::generate(now)).collect::<Vec<_>>())
    .bind(
        cases
            .iter()
            .map(|case| case.current_version_id.clone())
            .collect::<Vec<_>>(),
    )
    .bind(grounds.reason)
    .bind(&actor.name)
    .bind(now)
    .bind(grounds.invalidity_date)
    .fetch_all(&mut **tx)
    .await?;
    sqlx::query(
        "UPDATE certificates SET revoked_at = coalesce(revoked_at, $2), revocation_reason = $3, updated_at = $2
          WHERE id = ANY ($1)",
    )
    .bind(&ids)
    .bind(now)
    .bind(grounds.reason)
    .execute(&mut **tx)
    .await?;
    let mut serials: HashMap<CertificateId, Vec<Serial>> = HashMap::new();
    for (id, serial) in rows {
        serials.entry(id).or_default().push(serial);
    }
    Ok(serials)
}

/// Releases a certificate that is held: it is live again, and what was called off for its targets is planned anew.
/// Returns the serials.
///
/// # Errors
/// [`Error::Missing`]; [`Error::Conflict`] when it is archived, or not held.
pub async fn release(tx: &mut Tx, id: &CertificateId) -> Result<Vec<Serial>> {
    let held = certificates::lock(tx, id).await?;
    certificates::must_be_live(id, None, held.archived_at)?;
    let now = tx.now();
    let done = sqlx::query(
        "UPDATE certificates SET revoked_at = NULL, revocation_reason = NULL, updated_at = $2
          WHERE id = $1 AND revocation_reason = 'certificateHold'",
    )
    .bind(id)
    .bind(now)
    .execute(&mut **tx)
    .await?;
    if done.rows_affected() == 0 {
        return Err(Error::Conflict(match held.revoked_at {
            None => format!("certificate {id} is not revoked"),
            Some(_) => format!("certificate {id} is revoked for good; only certificateHold can be released"),
        }));
    }
    let serials: Vec<Serial> = sqlx::query_scalar(
        "UPDATE revocations SET released_at = $2
          WHERE certificate_id = $1 AND reason = 'certificateHold' AND released_at IS NULL
         RETURNING serial_number",
    )
    .bind(id)
    .bind(now)
    .fetch_all(&mut **tx)
    .await?;
    let event = tx
        .event("certificate_released", "certificate", id)
        .with("common_name", &held.common_name)
        .with("serials", &serials);
    tx.note(event);
    let live = certificates::lock(tx, id).await?;
    planning::retarget(tx, &live, None).await?;
    tx.wake(Channel::Revocations);
    Ok(serials)
}

/// Takes over what records of a journal tell and the database does not know; a certificate that is gone is revoked all
/// the same, by its serial number. Certificates stand as their revocations do, and their open jobs are cancelled.
/// Returns how many records told of something new.
///
/// # Errors
/// When the database cannot be asked.
pub async fn restore(tx: &mut Tx, records: Vec<RevocationRecord>) -> Result<usize> {
    let mut newest: BTreeMap<(IssuerId, Serial), RevocationRecord> = BTreeMap::new();
    for record in records {
        let key = (record.issuer_id.clone(), record.serial_number.clone());
        match newest.get(&key) {
            Some(known) if !record.outdoes(known) => {}
            _ => {
                newest.insert(key, record);
            }
        }
    }
    let records: Vec<RevocationRecord> = newest.into_values().collect();
    let named: BTreeSet<&CertificateId> = records.iter().filter_map(|r| r.certificate_id.as_ref()).collect();
    let named: Vec<&CertificateId> = named.into_iter().collect();
    sqlx::query("SELECT 1 FROM certificates WHERE id = ANY ($1) ORDER BY id FOR UPDATE")
        .bind(&named)
        .execute(&mut **tx)
        .await?;
    let now = tx.now();
    let restored: Vec<(IssuerId, Serial, Option<CertificateId>)> = sqlx::query_as(
        "INSERT INTO revocations AS r (id, issuer_id, serial_number, certificate_id, reason, revoked_by, revoked_at,
                                       released_at, invalidity_date, not_after, short_lived, shard)
         SELECT n.id, n.issuer_id, n.serial_number, c.id, n.reason, n.revoked_by, n.revoked_at, n.released_at,
                n.invalidity_date, n.not_after, n.short_lived, n.shard
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::timestamptz[],
                       $8::timestamptz[], $9::timestamptz[], $10::timestamptz[], $11::boolean[], $12::integer[])
                AS n (id, issuer_id, serial_number, certificate_id, reason, revoked_by, revoked_at, released_at,
                      invalidity_date, not_after, short_lived, shard)
           LEFT JOIN certificates c ON c.id = n.certificate_id
         ON CONFLICT (issuer_id, serial_number) DO UPDATE
            SET certificate_id = coalesce(r.certificate_id, excluded.certificate_id), reason = excluded.reason,
                revoked_by = excluded.revoked_by, revoked_at = excluded.revoked_at,
                released_at = excluded.released_at, invalidity_date = excluded.invalidity_date
          WHERE r.reason = 'certificateHold'
            AND (coalesce(excluded.released_at, excluded.revoked_at), excluded.reason <> 'certificateHold')
              > (coalesce(r.released_at, r.revoked_at), false)
         RETURNING issuer_id, serial_number, certificate_id",
    )
    .bind(records.iter().map(|_| RevocationId::generate(now)).collect::<Vec<_>>())
    .bind(records.iter().map(|r| r.issuer_id.clone()).collect::<Vec<_>>())
    .bind(records.iter().map(|r| r.serial_number.clone()).collect::<Vec<_>>())
    .bind(records.iter().map(|r| r.certificate_id.clone()).collect::<Vec<_>>())
    .bind(records.iter().map(|r| r.reason).collect::<Vec<_>>())
    .bind(records.iter().map(|r| r.revoked_by.clone()).collect::<Vec<_>>())
    .bind(records.iter().map(|r| r.revoked_at).collect::<Vec<_>>())
    .bind(records.iter().map(|r| r.released_at).collect::<Vec<_>>())
    .bind(records.iter().map(|r| r.invalidity_date).collect::<Vec<_>>())
    .bind(records.iter().map(|r| r.not_after).collect::<Vec<_>>())
    .bind(records.iter().map(|r| r.short_lived).collect::<Vec<_>>())
    .bind(records.iter().map(|r| r.shard).collect::<Vec<_>>())
    .fetch_all(&mut **tx)
    .await?;
    for (issuer, serial, certificate) in &restored {
        let event = match certificate {
            Some(id) => tx.event("revocation_restored", "certificate", id),
            None => tx.event("revocation_restored", "issuer", issuer),
        };
        tx.note(event.with("issuer_id", issuer).with("serial", serial));
    }
    let touched: BTreeSet<&CertificateId> = restored.iter().filter_map(|(.., id)| id.as_ref()).collect();
    stand_as_revoked(tx, &touched.into_iter().collect::<Vec<_>>()).await?;
    if !restored.is_empty() {
        tx.wake(Channel::Revocations);
    }
    Ok(restored.len())
}

/// Brings certificates in line with the revocations of what was issued for them.
async fn stand_as_revoked(tx: &mut Tx, ids: &[&CertificateId]) -> Result<()> {
    sqlx::query(
        "UPDATE certificates c SET revoked_at = s.revoked_at, revocation_reason = s.reason, updated_at = $2
           FROM (SELECT DISTINCT ON (certificate_id) certificate_id, revoked_at, reason FROM revocations
                  WHERE certificate_id = ANY ($1) AND released_at IS NULL
                  ORDER BY certificate_id, reason = 'certificateHold', revoked_at) s
          WHERE c.id = s.certificate_id AND c.current_version_id IS NOT NULL
            AND (c.revoked_at IS NULL OR c.revocation_reason = 'certificateHold')",
    )
    .bind(ids)
    .bind(tx.now())
    .execute(&mut **tx)
    .await?;
    sqlx::query(
        "UPDATE certificates c SET revoked_at = NULL, revocation_reason = NULL, updated_at = $2
          WHERE c.id = ANY ($1) AND c.revocation_reason = 'certificateHold'
            AND NOT EXISTS (SELECT 1 FROM revocations r WHERE r.certificate_id = c.id AND r.released_at IS NULL)",
    )
    .bind(ids)
    .bind(tx.now())
    .execute(&mut **tx)
    .await?;
    let revoked: Vec<CertificateId> = sqlx::query_scalar(
        "SELECT DISTINCT certificate_id FROM revocations WHERE certificate_id = ANY ($1) AND released_at IS NULL",
    )
    .bind(ids)
    .fetch_all(&mut **tx)
    .await?;
    jobs::cancel_open_of(tx, &revoked.iter().collect::<Vec<_>>(), "the certificate was revoked").await?;
    Ok(())
}

/// When the oldest version of a certificate that has not ended begins; none before the first.
///
/// # Errors
/// When the database cannot be asked.
pub async fn issued_since(tx: &mut Tx, id: &CertificateId) -> Result<Option<Time>> {
    Ok(sqlx::query_scalar(
        "SELECT min(v.not_before) FROM certificate_versions v JOIN certificates c ON c.id = v.certificate_id
          WHERE c.id = $1 AND (v.not_after > $2 OR v.id = c.current_version_id)",
    )
    .bind(id)
    .bind(tx.now())
    .fetch_one(&mut **tx)
    .await?)
}

/// Certificates that have a blocked key and are not revoked for good, though something of theirs has not ended: what was
/// recorded after the key was blocked.
///
/// # Errors
/// When the database cannot be asked.
pub async fn with_blocked_keys(db: &PgPool, now: Time, limit: i64) -> Result<Vec<CertificateId>> {
    Ok(sqlx::query_scalar(
        "SELECT DISTINCT v.certificate_id
           FROM blocked_keys b
           JOIN certificate_versions v ON v.spki_sha256 = b.spki_sha256
           JOIN certificates c ON c.id = v.certificate_id
          WHERE v.issuer_id IS NOT NULL AND v.not_after > $1
            AND (c.revoked_at IS NULL OR c.revocation_reason = 'certificateHold')
          LIMIT $2",
    )
    .bind(now)
    .bind(limit)
    .fetch_all(db)
    .await?)
}

/// What is known of a serial number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Issued and not revoked.
    Good,
    /// Revoked.
    Revoked {
        /// When.
        at: Time,
        /// Why.
        reason: RevocationReason,
    },
    /// Never issued.
    Unknown,
}

/// What is known of serial numbers of an issuer, in their order. A certificate that was recorded but never signed is
/// unknown; one that was revoked is so whatever else is known of it.
///
/// # Errors
/// When the database cannot be asked: the caller must not guess.
pub async fn statuses(db: &mut PgConnection, issuer: &IssuerId, serials: &[Serial]) -> Result<Vec<Status>> {
    let rows: Vec<(bool, Option<Time>, Option<RevocationReason>)> = sqlx::query_as(
        "SELECT coalesce(l.signed, false), r.revoked_at, r.reason
           FROM unnest($2::text[]) WITH ORDINALITY AS asked (serial_number, n)
           LEFT JOIN LATERAL (SELECT l.der IS NOT NULL AS signed FROM ledger l
                               WHERE l.issuer_id = $1 AND l.serial_number = asked.serial_number) l ON true
           LEFT JOIN LATERAL (SELECT r.revoked_at, r.reason FROM revocations r
                               WHERE r.issuer_id = $1 AND r.serial_number = asked.serial_number
                                 AND r.released_at IS NULL) r ON true
          ORDER BY asked.n",
    )
    .bind(issuer)
    .bind(serials)
    .fetch_all(db)
    .await?;
    let status = |row| match row {
        (_, Some(at), Some(reason)) => Status::Revoked { at, reason },
        (true, _, _) => Status::Good,
        _ => Status::Unknown,
    };
    Ok(rows.into_iter().map(status).collect())
}
