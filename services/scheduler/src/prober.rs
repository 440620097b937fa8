//! Looks from outside when a revocation can be seen: asks every edge by OCSP, and reads its CRL, as relying parties do.
//!
//! What is measured is the time from the revocation to the first answer that shows it. While more is revoked than can be
//! asked for, a part of it is.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use certctl_model::{id::IssuerId, serial::Serial, time::Time};
use certctl_x509::{
    crl::Crl,
    ocsp::{self, CertStatus},
};
use futures_util::future::join_all;
use tokio::sync::Mutex;
use url::Url;

use crate::Scheduler;

/// How often is looked while something is waiting to be seen.
pub const EVERY: Duration = Duration::from_millis(250);
/// After so long it is counted as missed.
const GIVE_UP_AFTER: Duration = Duration::from_secs(10 * 60);
/// Sightings are kept as long.
const KEEP_FOR: Duration = Duration::from_secs(30 * 86_400);
/// Revocations that are waited for at once at each edge; of further ones none is.
const MOST: usize = 2_000;
/// Questions on their way to one edge.
const ABREAST: usize = 8;
/// Questions to one edge in one round.
const A_ROUND: usize = 200;
/// How long an edge may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A larger CRL is not read.
const MOST_OCTETS: usize = 64 << 20;
/// A transaction may become visible after one that began later.
const OVERLAP: Duration = Duration::from_secs(60);

/// A revocation that is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, sqlx::FromRow)]
struct Revoked {
    revoked_at: Time,
    issuer_id: IssuerId,
    serial_number: Serial,
    shard: i32,
}

/// Who looks, and what is waited for.
pub struct Prober {
    edges: Vec<Edge>,
    http: reqwest::Client,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// From when on revocations are looked for; none before the first round.
    since: Option<Time>,
    /// What was taken since then less the overlap.
    taken: BTreeSet<Revoked>,
    by_ocsp: Vec<BTreeSet<Revoked>>,
    by_crl: Vec<BTreeSet<Revoked>>,
    /// Validators of the CRLs that were read, by their address.
    etags: HashMap<String, String>,
}

struct Edge {
    url: String,
}

impl Prober {
    /// One that looks at these edges; at none, it does nothing.
    ///
    /// # Errors
    /// When no client can be made.
    pub fn new(edges: &[Url]) -> anyhow::Result<Self> {
        let edge = |url: &Url| Edge {
            url: url.as_str().trim_end_matches('/').to_owned(),
        };
        let edges: Vec<Edge> = edges.iter().map(edge).collect();
        let waiting = || edges.iter().map(|_| BTreeSet::new()).collect();
        let state = State {
            by_ocsp: waiting(),
            by_crl: waiting(),
            ..State::default()
        };
        Ok(Self {
            http: reqwest::Client::builder().timeout(TIMEOUT).build()?,
            edges,
            state: Mutex::new(state),
        })
    }
}

/// One round. Returns nothing done: a round at once would see no more.
///
/// # Errors
/// When the database cannot be asked. An edge that does not answer is asked again.
pub async fn look(scheduler: Arc<Scheduler>) -> anyhow::Result<u64> {
    let prober = &scheduler.prober;
    if prober.edges.is_empty() {
        return Ok(0);
    }
    let mut state = prober.state.lock().await;
    let now = scheduler.now();
    take(&scheduler, &mut state, now).await?;
    let issuers = issuers(&scheduler, &state).await?;
    let State {
        by_ocsp, by_crl, etags, ..
    } = &mut *state;
    let seen = prober.edges.iter().zip(by_ocsp.iter()).map(|(edge, waiting)| {
        let asked = waiting.iter().take(A_ROUND).cloned().collect::<Vec<_>>();
        ask_all(prober, edge, asked, &issuers, &scheduler)
    });
    for (n, seen) in join_all(seen).await.into_iter().enumerate() {
        let edge = &prober.edges[n];
        for (revoked, at) in &seen {
            by_ocsp[n].remove(revoked);
            note(edge, "ocsp", revoked, *at);
        }
        record(&scheduler, edge, &seen, None).await?;
    }
    for (n, edge) in prober.edges.iter().enumerate() {
        let lists: BTreeSet<(IssuerId, i32)> = by_crl[n].iter().map(|r| (r.issuer_id.clone(), r.shard)).collect();
        for (issuer, shard) in lists {
            let Some((number, serials)) = read(prober, edge, &issuer, shard, etags).await else {
                continue;
            };
            let at = scheduler.now();
            let listed = |r: &&Revoked| r.issuer_id == issuer && r.shard == shard && serials.contains(&r.serial_number);
            let seen: Vec<(Revoked, Time)> = by_crl[n].iter().filter(listed).map(|r| (r.clone(), at)).collect();
            for (revoked, at) in &seen {
                by_crl[n].remove(revoked);
                note(edge, "crl", revoked, *at);
            }
            record(&scheduler, edge, &seen, Some(number)).await?;
        }
    }
    for (via, waiting) in [("ocsp", by_ocsp), ("crl", by_crl)] {
        for (edge, waiting) in prober.edges.iter().zip(waiting) {
            give_up(edge, via, waiting, scheduler.now());
        }
    }
    Ok(0)
}

/// Takes what was revoked since the last round.
async fn take(scheduler: &Scheduler, state: &mut State, now: Time) -> anyhow::Result<()> {
    let since = state.since.unwrap_or(now) - OVERLAP;
    let found: Vec<Revoked> = sqlx::query_as(
        "SELECT revoked_at, issuer_id, serial_number, shard FROM revocations
          WHERE issuer_id IN (SELECT issuer_id FROM authorities) AND revoked_at >= $1
            AND released_at IS NULL AND NOT short_lived AND not_after > $2
          ORDER BY revoked_at LIMIT 10000",
    )
    .bind(since)
    .bind(now)
    .fetch_all(&scheduler.db)
    .await?;
    let first = state.since.is_none();
    for revoked in found {
        // What was there before we began to look says nothing about how long it took.
        if !state.taken.insert(revoked.clone()) || first {
            continue;
        }
        for waiting in state.by_ocsp.iter_mut().chain(&mut state.by_crl) {
            match waiting.len() < MOST {
                true => drop(waiting.insert(revoked.clone())),
                false => metrics::counter!("revocation_probes_skipped_total").increment(1),
            }
        }
    }
    let newest = state.taken.last().map_or(now, |newest| newest.revoked_at);
    state.since = Some(newest.max(now - OVERLAP));
    let since = newest.min(now) - OVERLAP - OVERLAP;
    state.taken.retain(|revoked| revoked.revoked_at >= since);
    Ok(())
}

/// By which names issuers are asked for, of those that something is waited for.
async fn issuers(scheduler: &Scheduler, state: &State) -> anyhow::Result<BTreeMap<IssuerId, ocsp::IssuerId>> {
    let waiting: BTreeSet<&IssuerId> = state.by_ocsp.iter().flatten().map(|r| &r.issuer_id).collect();
    if waiting.is_empty() {
        return Ok(BTreeMap::new());
    }
    let rows: Vec<(IssuerId, Vec<u8>)> =
        sqlx::query_as("SELECT issuer_id, certificate_der FROM authorities WHERE issuer_id = ANY ($1)")
            .bind(waiting.into_iter().collect::<Vec<_>>())
            .fetch_all(&scheduler.db)
            .await?;
    let named = |(issuer, der): (IssuerId, Vec<u8>)| Ok((issuer, ocsp::IssuerId::of_certificate(&der)?));
    rows.into_iter().map(named).collect()
}

/// Asks one edge for several, some abreast. Returns which it calls revoked, and when.
async fn ask_all(
    prober: &Prober,
    edge: &Edge,
    waiting: Vec<Revoked>,
    issuers: &BTreeMap<IssuerId, ocsp::IssuerId>,
    scheduler: &Scheduler,
) -> Vec<(Revoked, Time)> {
    let mut seen = vec![];
    for some in waiting.chunks(ABREAST) {
        let asked = some.iter().map(async |revoked| {
            let issuer = issuers.get(&revoked.issuer_id)?;
            let visible = ask(prober, edge, revoked, issuer).await?;
            visible.then(|| (revoked.clone(), scheduler.now()))
        });
        seen.extend(join_all(asked).await.into_iter().flatten());
    }
    seen
}

/// Whether an edge calls it revoked; nothing, when it does not answer.
async fn ask(prober: &Prober, edge: &Edge, revoked: &Revoked, issuer: &ocsp::IssuerId) -> Option<bool> {
    let request = ocsp::request_for(issuer, &revoked.serial_number, None);
    let address = format!("{}/ocsp/{}", edge.url, revoked.issuer_id);
    let post = prober
        .http
        .post(address)
        .header("content-type", "application/ocsp-request");
    let answer = post.body(request).send().await.ok()?.bytes().await.ok()?;
    let status = ocsp::status_of(&answer, &revoked.serial_number).ok()?;
    Some(matches!(status, CertStatus::Revoked { .. }))
}

/// Reads the CRL that certificates of a shard name, if it has changed: its number and what it lists.
async fn read(
    prober: &Prober,
    edge: &Edge,
    issuer: &IssuerId,
    shard: i32,
    etags: &mut HashMap<String, String>,
) -> Option<(i64, BTreeSet<Serial>)> {
    let address = match shard {
        0 => format!("{}/crl/{issuer}.crl", edge.url),
        shard => format!("{}/crl/{issuer}/{shard}.crl", edge.url),
    };
    let mut get = prober.http.get(&address);
    if let Some(etag) = etags.get(&address) {
        get = get.header("if-none-match", etag);
    }
    let mut response = get.send().await.ok()?;
    if response.status() != 200 {
        return None;
    }
    let etag = response
        .headers()
        .get("etag")
        .and_then(|v| v.to_str().ok())
        .map(str::to_owned);
    let mut der = vec![];
    while let Some(chunk) = response.chunk().await.ok()? {
        if der.len() + chunk.len() > MOST_OCTETS {
            tracing::warn!("{address} is larger than the prober reads");
            return None;
        }
        der.extend_from_slice(&chunk);
    }
    let crl = Crl::look_into(&der).ok()?;
    let number = i64::try_from(crl.number?).ok()?;
    let serials = crl.serials().collect();
    if let Some(etag) = etag {
        etags.insert(address, etag);
    }
    Some((number, serials))
}

fn note(edge: &Edge, via: &'static str, revoked: &Revoked, at: Time) {
    let took = at.since(revoked.revoked_at).as_secs_f64();
    metrics::histogram!("revocation_visible_seconds", "edge" => edge.url.clone(), "via" => via).record(took);
}

/// Counts what was not seen in time, and says how much is waited for.
fn give_up(edge: &Edge, via: &'static str, waiting: &mut BTreeSet<Revoked>, now: Time) {
    let before = waiting.len();
    waiting.retain(|revoked| now.since(revoked.revoked_at) < GIVE_UP_AFTER);
    let missed = before - waiting.len();
    if missed > 0 {
        tracing::warn!(
            "{missed} revocations were not seen at {} by {via} within {GIVE_UP_AFTER:?}",
            edge.url
        );
        metrics::counter!("revocation_probes_missed_total", "edge" => edge.url.clone(), "via" => via)
            .increment(missed as u64);
    }
    let oldest = waiting
        .first()
        .map_or(Duration::ZERO, |oldest| now.since(oldest.revoked_at));
    metrics::gauge!("revocation_probes_waiting", "edge" => edge.url.clone(), "via" => via).set(waiting.len() as f64);
    metrics::gauge!("revocation_probe_oldest_seconds", "edge" => edge.url.clone(), "via" => via)
        .set(oldest.as_secs_f64());
}

/// Keeps when they were first seen at an edge: in a CRL of this number, or by OCSP.
async fn record(
    scheduler: &Scheduler,
    edge: &Edge,
    seen: &[(Revoked, Time)],
    crl_number: Option<i64>,
) -> Result<(), sqlx::Error> {
    if seen.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO revocation_sightings AS s (issuer_id, serial_number, edge, revoked_at, ocsp_at, crl_at, crl_number)
         SELECT n.issuer_id, n.serial_number, $4, n.revoked_at, CASE WHEN $6::bigint IS NULL THEN n.at END,
                CASE WHEN $6::bigint IS NOT NULL THEN n.at END, $6
           FROM unnest($1::text[], $2::text[], $3::timestamptz[], $5::timestamptz[])
                AS n (issuer_id, serial_number, revoked_at, at)
         ON CONFLICT (issuer_id, serial_number, edge) DO UPDATE
            SET revoked_at = excluded.revoked_at,
                -- Of an earlier revocation nothing is kept.
                ocsp_at = coalesce(excluded.ocsp_at, CASE WHEN s.revoked_at = excluded.revoked_at THEN s.ocsp_at END),
                crl_at = coalesce(excluded.crl_at, CASE WHEN s.revoked_at = excluded.revoked_at THEN s.crl_at END),
                crl_number = coalesce(excluded.crl_number,
                                      CASE WHEN s.revoked_at = excluded.revoked_at THEN s.crl_number END)",
    )
    .bind(seen.iter().map(|(r, _)| r.issuer_id.clone()).collect::<Vec<_>>())
    .bind(seen.iter().map(|(r, _)| r.serial_number.clone()).collect::<Vec<_>>())
    .bind(seen.iter().map(|(r, _)| r.revoked_at).collect::<Vec<_>>())
    .bind(&edge.url)
    .bind(seen.iter().map(|(_, at)| *at).collect::<Vec<_>>())
    .bind(crl_number)
    .execute(&scheduler.db)
    .await?;
    Ok(())
}

/// How often old sightings are forgotten.
pub const FORGET_EVERY: Duration = Duration::from_secs(3600);

/// Forgets old sightings. Returns nothing done.
///
/// # Errors
/// When the database cannot be asked.
pub async fn forget(scheduler: Arc<Scheduler>) -> anyhow::Result<u64> {
    sqlx::query("DELETE FROM revocation_sightings WHERE revoked_at < $1")
        .bind(scheduler.now() - KEEP_FOR)
        .execute(&scheduler.db)
        .await?;
    Ok(0)
}
