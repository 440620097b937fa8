//! From a revocation to where relying parties see it: OCSP and the CRL of every edge, read by a reader of their own.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, ensure};
use certctl_client::Client;
use certctl_contract::{
    certificates::{RevokeCertificate, RevokeRequest},
    endpoint::NoBody,
    health::ApiHealth,
    query::{Id, NoParams},
    revocation::{GetDerCrl, IssuerPath, OcspCheck, SerialPath},
};
use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    cli::{Server, Visible},
    connect,
    load::{Figures, round},
};

const ISSUER: &str = "iss-local";
/// Of the certificates that are made for this.
pub(crate) const ENVIRONMENT: &str = "bench";
/// How often an edge is asked again.
const ASK_EVERY: Duration = Duration::from_millis(50);
const READ_EVERY: Duration = Duration::from_millis(500);
/// What is not seen by then is missed.
const WAIT_AT_MOST: Duration = Duration::from_secs(120);

/// What is to be revoked: `mc-visible-<n>`, and its serial number.
struct Specimen {
    id: String,
    serial: String,
}

/// Revokes at a constant rate, and looks at every edge until it shows.
///
/// # Errors
/// When the edges or the database are not on this machine or do not answer.
pub(crate) async fn run(args: &Visible) -> anyhow::Result<Value> {
    let pool = connect(&args.database.database_url, 4).await?;
    let edges = edges(args).await?;
    let count = u64::from(args.per_minute) * args.seconds / 60;
    let mut specimens = specimens(&pool, count).await?;
    // Those that stay good are asked for beside the measurement.
    let good: Arc<[Specimen]> = specimens.split_off(specimens.len() / 2).into();
    let seen = Arc::new(Seen::new(edges.len()));
    let mut tasks = JoinSet::new();
    for edge in &edges {
        for lane in 0..args.readers {
            tasks.spawn(load(edge.clone(), lane, good.clone(), seen.clone()));
        }
    }
    for (n, edge) in edges.iter().enumerate() {
        tasks.spawn(read_crls(n, edge.clone(), seen.clone()));
        tasks.spawn(round_trips(edge.clone(), seen.clone()));
    }
    let (began, step) = (Instant::now(), Duration::from_secs(60) / args.per_minute);
    let mut revocations = JoinSet::new();
    for (n, specimen) in specimens.into_iter().enumerate() {
        sleep_until(began + step * u32::try_from(n)?).await;
        let by = edges[n % edges.len()].clone();
        revocations.spawn(follow(by, edges.clone(), specimen, seen.clone()));
    }
    let mut failed = 0;
    while let Some(revoked) = revocations.join_next().await {
        failed += u64::from(revoked?.is_err());
    }
    let until = Instant::now() + WAIT_AT_MOST;
    while seen.waits_for_crl() && Instant::now() < until {
        sleep(READ_EVERY).await;
    }
    tasks.shutdown().await;
    figures(args, &pool, &seen, count, failed, began.elapsed()).await
}

async fn figures(
    args: &Visible,
    pool: &PgPool,
    seen: &Seen,
    count: u64,
    failed: u64,
    elapsed: Duration,
) -> anyhow::Result<Value> {
    let probed: Vec<(String, i64, Option<f64>, Option<f64>)> = sqlx::query_as(
        "SELECT edge, count(*),
                percentile_cont(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM ocsp_at - revoked_at)::float8),
                percentile_cont(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM crl_at - revoked_at)::float8)
           FROM revocation_sightings GROUP BY edge ORDER BY edge",
    )
    .fetch_all(pool)
    .await?;
    let state = seen.0.lock().expect("nobody panics with it");
    let looked = (count - failed) * state.by_ocsp.len() as u64;
    let whole = |each: &[Figures]| {
        let mut whole = Figures::default();
        each.iter().for_each(|figures| whole.add(figures));
        whole
    };
    let (by_ocsp, by_crl) = (whole(&state.by_ocsp), whole(&state.by_crl));
    let probed = probed.into_iter().map(|(edge, seen, ocsp, crl)| {
        json!({
            "edge": edge, "seen": seen, "ocsp_p99_ms": ocsp.map(|s| round(s * 1000.0)), "crl_p99_s": crl.map(round),
        })
    });
    Ok(json!({
        "name": "revoke-visible",
        "ocsp_p99_ms": by_ocsp.percentile(99.0),
        "crl_p99_s": round(by_crl.percentile(99.0) / 1000.0),
        "revoked": count - failed,
        "failed": failed,
        "edges": state.by_ocsp.len(),
        "per_minute": args.per_minute,
        "missed_by_ocsp": looked - by_ocsp.succeeded(),
        "missed_by_crl": looked - by_crl.succeeded(),
        "ocsp_per_second": round(state.answers as f64 / elapsed.as_secs_f64()),
        "ocsp": by_ocsp.json(),
        "crl": by_crl.json(),
        "prober": probed.collect::<Vec<_>>(),
        "ceilings": { "round_trip": state.round_trip.json() },
        "over_round_trip": round(by_ocsp.percentile(99.0) / state.round_trip.percentile(99.0).max(0.001)),
    }))
}

async fn edges(args: &Visible) -> anyhow::Result<Vec<Client>> {
    let mut edges = vec![];
    for server in &args.edges {
        let server = Server {
            server: server.clone(),
            api_key: args.api_key.clone(),
        };
        edges.push(server.client().await?);
    }
    ensure!(!edges.is_empty(), "at least one edge is needed");
    Ok(edges)
}

/// Certificates as if the authority had issued them, in [`ENVIRONMENT`].
pub(crate) async fn issue(pool: &PgPool, count: u64) -> anyhow::Result<()> {
    let count = i64::try_from(count)?;
    for sql in [
        "INSERT INTO certificates (id, name, common_name, environment, owner_id, team_id, issuer_id, renewal_policy_id,
                                   created_at, updated_at)
         SELECT 'mc-visible-' || n, 'visible-' || n, 'visible-' || n || '.example.net', 'bench', 'o-unassigned',
                't-unassigned', 'iss-local', 'rp-default', now(), now() FROM generate_series(1, $1) n",
        "INSERT INTO certificate_versions (id, certificate_id, job_id, issuer_id, version, serial_number, not_before,
                                           not_after, fingerprint_sha256, spki_sha256, cert_pem, chain_pem, csr_der,
                                           key_algorithm, key_size, created_at)
         SELECT 'cv-visible-' || n, 'mc-visible-' || n, 'j-visible-' || n, 'iss-local', 1, '7' || md5('visible' || n),
                now(), now() + interval '30 days', md5('f' || n), md5('k' || n), '', '', '', 'ECDSA', 256, now()
           FROM generate_series(1, $1) n",
        "INSERT INTO ledger (issuer_id, serial_number, job_id, tbs_der, der, not_after, short_lived, recorded_at)
         SELECT issuer_id, serial_number, job_id, '', '', not_after, false, created_at
           FROM certificate_versions WHERE id LIKE 'cv-visible-%' AND $1 > 0",
        "UPDATE certificates c SET current_version_id = v.id, not_before = v.not_before, not_after = v.not_after
           FROM certificate_versions v WHERE v.certificate_id = c.id AND c.environment = 'bench' AND $1 > 0",
    ] {
        sqlx::query(sql).bind(count).execute(pool).await?;
    }
    Ok(())
}

/// As many that are revoked, and as many that are only asked for.
async fn specimens(pool: &PgPool, count: u64) -> anyhow::Result<Vec<Specimen>> {
    issue(pool, count * 2).await?;
    let serials: Vec<(String, String)> = sqlx::query_as(
        "SELECT certificate_id, serial_number FROM certificate_versions
          WHERE id LIKE 'cv-visible-%' ORDER BY split_part(id, '-', 3)::bigint",
    )
    .fetch_all(pool)
    .await?;
    Ok(serials
        .into_iter()
        .map(|(id, serial)| Specimen { id, serial })
        .collect())
}

/// What was seen so far.
struct Seen(Mutex<State>);

struct State {
    by_ocsp: Vec<Figures>,
    by_crl: Vec<Figures>,
    /// Serial numbers that no CRL of the edge has listed yet, as they stand in it, and since when.
    waiting: Vec<Vec<(Vec<u8>, Instant)>>,
    /// OCSP answers of all readers.
    answers: u64,
    round_trip: Figures,
}

impl Seen {
    fn new(edges: usize) -> Self {
        let figures = || (0..edges).map(|_| Figures::default()).collect();
        Self(Mutex::new(State {
            by_ocsp: figures(),
            by_crl: figures(),
            waiting: vec![vec![]; edges],
            answers: 0,
            round_trip: Figures::default(),
        }))
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().expect("nobody panics with it"))
    }

    fn waits_for_crl(&self) -> bool {
        self.with(|state| state.waiting.iter().any(|waiting| !waiting.is_empty()))
    }
}

/// Revokes by one edge and asks all of them by OCSP until they say so.
async fn follow(by: Client, edges: Vec<Client>, specimen: Specimen, seen: Arc<Seen>) -> anyhow::Result<()> {
    let Specimen { id, serial } = specimen;
    let needle = integer(&serial).context("the serial number is hexadecimal")?;
    let reason = RevokeRequest {
        reason: Some("superseded".parse().map_err(anyhow::Error::msg)?),
        ..RevokeRequest::default()
    };
    let began = Instant::now();
    by.call::<RevokeCertificate>(Id { id: id.parse()? }, NoParams, reason)
        .await?;
    seen.with(|state| {
        for waiting in &mut state.waiting {
            waiting.push((needle.clone(), began));
        }
    });
    let asked = edges.iter().enumerate().map(|(n, edge)| {
        let (serial, needle, seen) = (&serial, &needle, &seen);
        async move {
            while began.elapsed() < WAIT_AT_MOST {
                let revoked = ask(edge, serial, needle).await;
                seen.with(|state| state.answers += u64::from(revoked.is_ok()));
                if matches!(revoked, Ok(true)) {
                    seen.with(|state| state.by_ocsp[n].note(200, began.elapsed()));
                    return;
                }
                sleep(ASK_EVERY).await;
            }
        }
    });
    join_all(asked).await;
    Ok(())
}

/// Whether an edge calls a serial number revoked.
async fn ask(edge: &Client, serial: &str, needle: &[u8]) -> anyhow::Result<bool> {
    let path = SerialPath {
        issuer_id: ISSUER.parse()?,
        serial: serial.parse()?,
    };
    let answer = edge.call::<OcspCheck>(path, NoParams, NoBody).await?;
    // RFC 6960 §4.2.1: the status follows the CertID, which ends with the serial number; [1] is revoked.
    const REVOKED: u8 = 0xa1;
    Ok(behind(&answer.der, needle) == Some(REVOKED))
}

/// OCSP questions beside the measurement, as fast as they are answered.
async fn load(edge: Client, lane: u32, good: Arc<[Specimen]>, seen: Arc<Seen>) {
    // The lanes begin at different places.
    const PRIME: usize = 7_919;
    for n in (lane as usize * PRIME).. {
        let Some(Specimen { serial, .. }) = good.get(n % good.len().max(1)) else {
            return;
        };
        let answered = ask(&edge, serial, &integer(serial).unwrap_or_default()).await.is_ok();
        seen.with(|state| state.answers += u64::from(answered));
        if !answered {
            sleep(ASK_EVERY).await;
        }
    }
}

/// Reads the CRL of an edge again and again.
async fn read_crls(n: usize, edge: Client, seen: Arc<Seen>) {
    let Ok(issuer_id) = ISSUER.parse() else { return };
    let path = IssuerPath { issuer_id };
    loop {
        let read = edge.call::<GetDerCrl>(path.clone(), NoParams, NoBody).await;
        if let Ok(crl) = read {
            let now = Instant::now();
            seen.with(|state| {
                let (waiting, figures) = (&mut state.waiting[n], &mut state.by_crl[n]);
                waiting.retain(|(needle, since)| {
                    let listed = behind(&crl.der, needle).is_some();
                    if listed {
                        figures.note(200, now - *since);
                    }
                    !listed
                });
            });
        }
        sleep(READ_EVERY).await;
    }
}

/// What any answer of an edge takes meanwhile.
async fn round_trips(edge: Client, seen: Arc<Seen>) {
    loop {
        let began = Instant::now();
        if edge.call::<ApiHealth>(NoParams, NoParams, NoBody).await.is_ok() {
            seen.with(|state| state.round_trip.note(200, began.elapsed()));
        }
        sleep(ASK_EVERY).await;
    }
}

/// A serial number as an INTEGER in DER.
fn integer(serial: &str) -> Option<Vec<u8>> {
    let even = format!("{}{serial}", if serial.len() % 2 == 1 { "0" } else { "" });
    let mut octets = (0..even.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&even[at..at + 2], 16).ok())
        .collect::<Option<Vec<u8>>>()?;
    if octets.first().is_some_and(|first| *first >= 0x80) {
        octets.insert(0, 0);
    }
    let mut der = vec![2, u8::try_from(octets.len()).ok()?];
    der.append(&mut octets);
    Some(der)
}

/// The octet behind the first occurrence of a needle.
fn behind(hay: &[u8], needle: &[u8]) -> Option<u8> {
    let at = hay.windows(needle.len()).position(|window| window == needle)?;
    hay.get(at + needle.len()).copied()
}
