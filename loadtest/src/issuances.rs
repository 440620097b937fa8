//! Many jobs that wait with their requests, through signer and scheduler until they are stored.

use std::{
    collections::HashMap,
    hint::black_box,
    num::NonZero,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use rcgen::{CertificateParams, DistinguishedName, DnType};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::{task::spawn_blocking, time::sleep};
use x509_parser::{
    certification_request::X509CertificationRequest,
    prelude::{FromDer, X509Certificate, parse_x509_pem},
};

use crate::{cli::Issuances, connect, cpu, load::round};

/// How long a ceiling is measured.
const LENGTH: Duration = Duration::from_secs(3);
/// How often it is asked whether jobs still wait.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Agents that made the requests; each has a target.
const AGENTS: i64 = 500;
/// Rows inserted by one statement.
const AT_ONCE: usize = 5000;

/// Puts the jobs there, waits until the last is stored, and looks at everything that was.
///
/// # Errors
/// When the database is not on this machine, when not all are stored in time, or when what is stored is not as it
/// should be.
pub(crate) async fn run(args: &Issuances) -> anyhow::Result<Value> {
    let pool = connect(&args.database.database_url, 4).await?;
    let jobs = usize::try_from(args.jobs)?;
    let requests = spawn_blocking(move || on_all_cores(jobs, request)).await??;
    let ceilings = spawn_blocking({
        let request = requests[0].clone();
        move || ceilings(&request)
    });
    let (sign, verify) = ceilings.await??;

    seed(&pool, &requests, args.deploy).await?;
    let before = cpu_of(args)?;
    let started = Instant::now();
    let waited = put(&pool, &requests).await?;
    let mut rates = Rates::default();
    loop {
        let stored = stored(&pool).await?;
        rates.note(waited.elapsed(), stored);
        if stored == args.jobs {
            break;
        }
        ensure!(
            started.elapsed() < Duration::from_secs(args.max_time),
            "after {} seconds {stored} of {jobs} are stored",
            args.max_time
        );
        sleep(LOOK_EVERY).await;
    }
    let seconds = waited.elapsed().as_secs_f64();
    let spent = cpu_of(args)?;
    let per_second = args.jobs as f64 / seconds;
    look(&pool, &requests).await?;

    let micros = |which: usize| round((spent[which] - before[which]).as_secs_f64() * 1e6 / args.jobs as f64);
    let ceiling = 1.0 / (1.0 / sign + 1.0 / verify);
    Ok(json!({
        "name": "issue-50k",
        "per_second": round(per_second),
        "ceiling_ratio": round(per_second / ceiling),
        "jobs": args.jobs,
        "deployments": args.deploy,
        "seconds": round(seconds),
        "slowest_second": rates.slowest(),
        "cpu_us_per_certificate": { "signer": micros(0), "scheduler": micros(1), "postgres": micros(2) },
        "share_of_raw_sign": round(per_second / sign),
        "share_of_csr_verify": round(per_second / verify),
        "ceilings": {
            "raw_sign_per_second": round(sign), "csr_verify_per_second": round(verify),
            "verify_and_sign_per_second": round(ceiling), "cores": cores(),
        },
    }))
}

/// How many versions are stored, as the tallies have it: to count them would cost more than to store them.
async fn stored(pool: &PgPool) -> anyhow::Result<i64> {
    let count = "SELECT coalesce(sum(delta), 0)::bigint FROM tallies WHERE subject = 'version'";
    Ok(sqlx::query_scalar(count).fetch_one(pool).await?)
}

fn cpu_of(args: &Issuances) -> anyhow::Result<[Duration; 3]> {
    Ok([
        cpu::of_process(args.signer_pid)?,
        cpu::of_process(args.scheduler_pid)?,
        cpu::of_family(args.postgres_pid)?,
    ])
}

/// What was stored from second to second.
#[derive(Default)]
struct Rates {
    whole: Vec<i64>,
}

impl Rates {
    fn note(&mut self, at: Duration, stored: i64) {
        if at.as_secs() as usize > self.whole.len() {
            self.whole.push(stored);
        }
    }

    /// The fewest of a whole second.
    fn slowest(&self) -> Option<i64> {
        let steps = self.whole.windows(2).map(|pair| pair[1] - pair[0]);
        steps.min()
    }
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

fn name(n: usize) -> String {
    format!("host-{n}.bench.certctl.test")
}

/// Makes one of each number, on all cores.
fn on_all_cores<T: Send>(count: usize, make: impl Fn(usize) -> anyhow::Result<T> + Sync) -> anyhow::Result<Vec<T>> {
    let share = count.div_ceil(cores());
    thread::scope(|scope| {
        let part = |from: usize| {
            scope.spawn({
                let make = &make;
                move || {
                    (from..count.min(from + share))
                        .map(make)
                        .collect::<anyhow::Result<Vec<T>>>()
                }
            })
        };
        let parts: Vec<_> = (0..count).step_by(share).map(part).collect();
        let mut all = Vec::with_capacity(count);
        for part in parts {
            all.extend(part.join().expect("making does not panic")?);
        }
        Ok(all)
    })
}

/// A request as an agent makes it: a P-256 key of its own, the name as common name and alternative name.
fn request(n: usize) -> anyhow::Result<Vec<u8>> {
    let mut params = CertificateParams::new(vec![name(n)])?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name(n));
    Ok(params.serialize_request(&rcgen::KeyPair::generate()?)?.der().to_vec())
}

/// Raw P-256 signatures a second, and requests a second whose signature is verified, on all cores.
fn ceilings(request: &[u8]) -> anyhow::Result<(f64, f64)> {
    let random = SystemRandom::new();
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)?;
    ensure!(!key.public_key().as_ref().is_empty(), "there is no key");
    let sign = as_often_as_possible(|| key.sign(&random, request).is_ok())?;
    let verify = as_often_as_possible(|| {
        X509CertificationRequest::from_der(request).is_ok_and(|(_, csr)| csr.verify_signature().is_ok())
    })?;
    Ok((sign, verify))
}

fn as_often_as_possible(once: impl Fn() -> bool + Sync) -> anyhow::Result<f64> {
    let started = Instant::now();
    let done: u64 = thread::scope(|scope| {
        let count = || {
            let mut done = 0;
            while started.elapsed() < LENGTH {
                if !black_box(once()) {
                    return None;
                }
                done += 1;
            }
            Some(done)
        };
        let threads: Vec<_> = (0..cores()).map(|_| scope.spawn(count)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().ok().flatten())
            .sum::<Option<u64>>()
    })
    .context("a signature failed")?;
    Ok(done as f64 / started.elapsed().as_secs_f64())
}

/// Everything but the jobs.
async fn seed(pool: &PgPool, requests: &[Vec<u8>], deploy: bool) -> anyhow::Result<()> {
    let count = requests.len() as i64;
    for sql in [
        "INSERT INTO profiles (id, name, allowed_key_algorithms, max_ttl_seconds, required_san_patterns, created_at,
                               updated_at)
         SELECT 'prof-bench', 'bench', '[{\"algorithm\": \"ECDSA\", \"min_size\": 256}]', 7776000,
                '{\"^host-[0-9]+\\\\.bench\\\\.certctl\\\\.test$\"}', now(), now() WHERE $1 > 0",
        "INSERT INTO agents (id, name, hostname, api_key_hash, registered_at, updated_at)
         SELECT 'a-' || n, 'bench-' || n, 'bench-' || n, 'none', now(), now() FROM generate_series(0, $2 - 1) n
          WHERE $1 > 0",
        "INSERT INTO targets (id, name, type, agent_id, created_at, updated_at)
         SELECT 'tgt-' || n, 'web', 'NGINX', 'a-' || n, now(), now() FROM generate_series(0, $2 - 1) n WHERE $1 > 0",
        "INSERT INTO certificates (id, name, common_name, sans, environment, owner_id, team_id, issuer_id,
                                   renewal_policy_id, profile_id, created_at, updated_at)
         SELECT 'mc-' || n, 'bench-' || n, 'host-' || n || '.bench.certctl.test', '{}', 'production', 'o-unassigned',
                't-unassigned', 'iss-local', 'rp-default', 'prof-bench', now(), now()
           FROM generate_series(0, $1 - 1) n WHERE $2 > 0",
    ] {
        sqlx::query(sql).bind(count).bind(AGENTS).execute(pool).await?;
    }
    if deploy {
        sqlx::query(
            "INSERT INTO certificate_targets (certificate_id, target_id)
             SELECT 'mc-' || n, 'tgt-' || n % $2 FROM generate_series(0, $1 - 1) n",
        )
        .bind(count)
        .bind(AGENTS)
        .execute(pool)
        .await?;
    }
    sqlx::raw_sql("VACUUM ANALYZE").execute(pool).await?;
    sqlx::raw_sql("CHECKPOINT").execute(pool).await?;
    Ok(())
}

/// Puts the jobs there, all at one instant, and tells the scheduler.
async fn put(pool: &PgPool, requests: &[Vec<u8>]) -> anyhow::Result<Instant> {
    let mut db = pool.acquire().await?;
    sqlx::raw_sql("BEGIN").execute(&mut *db).await?;
    for (part, requests) in requests.chunks(AT_ONCE).enumerate() {
        sqlx::query(
            "INSERT INTO jobs (id, type, certificate_id, agent_id, status, csr_der, run_at, started_at, created_at)
             SELECT 'j-' || ($2 + r.n - 1), 'Issuance', 'mc-' || ($2 + r.n - 1), 'a-' || ($2 + r.n - 1) % $3, 'Running',
                    r.csr_der, now(), now(), now()
               FROM unnest($1::bytea[]) WITH ORDINALITY AS r (csr_der, n)",
        )
        .bind(requests)
        .bind((part * AT_ONCE) as i64)
        .bind(AGENTS)
        .execute(&mut *db)
        .await?;
    }
    sqlx::raw_sql("ANALYZE jobs; SELECT pg_notify('certctl_jobs', ''); COMMIT")
        .execute(&mut *db)
        .await?;
    Ok(Instant::now())
}

/// Looks at all that was stored: every certificate is of its request and of the authority, once, in the ledger and in
/// the trail.
async fn look(pool: &PgPool, requests: &[Vec<u8>]) -> anyhow::Result<()> {
    let numbers: Vec<(String, i64)> = sqlx::query_as(
        "SELECT 'jobs completed', count(*) FROM jobs WHERE type = 'Issuance' AND status = 'Completed' AND attempts = 1
          UNION ALL
         SELECT 'jobs with their version', count(*) FROM jobs j JOIN certificate_versions v ON v.id = j.version_id
          WHERE v.job_id = j.id AND v.certificate_id = j.certificate_id
          UNION ALL
         SELECT 'certificates with their version', count(*) FROM certificates c
           JOIN certificate_versions v ON v.id = c.current_version_id
          WHERE v.version = 1 AND c.not_after = v.not_after AND c.open_issuances = 0
            AND c.status = 'Active'
          UNION ALL
         SELECT 'versions', count(DISTINCT job_id) FROM certificate_versions
          UNION ALL
         SELECT 'signed ledger entries of versions', count(*) FROM ledger l
           JOIN certificate_versions v ON v.job_id = l.job_id
          WHERE l.serial_number = v.serial_number AND l.der IS NOT NULL
          UNION ALL
         SELECT 'ledger entries', count(*) FROM ledger WHERE job_id LIKE 'j-%'
          UNION ALL
         SELECT 'events that tell of an issuance', count(*) FROM audit_events WHERE action = 'certificate_issued'
          UNION ALL
         SELECT 'certificates with such an event', count(DISTINCT resource_id) FROM audit_events
          WHERE action = 'certificate_issued'
          UNION ALL
         SELECT 'events that tell of a completed job', count(*) FROM audit_events WHERE action = 'job_completed'",
    )
    .fetch_all(pool)
    .await?;
    for (what, number) in numbers {
        ensure!(
            number == requests.len() as i64,
            "of {} there are {number} {what}",
            requests.len()
        );
    }
    let authority: Vec<u8> =
        sqlx::query_scalar("SELECT certificate_der FROM authorities WHERE issuer_id = 'iss-local'")
            .fetch_one(pool)
            .await?;
    let versions: Vec<(String, String)> = sqlx::query_as("SELECT job_id, cert_pem FROM certificate_versions")
        .fetch_all(pool)
        .await?;
    let versions: HashMap<String, String> = versions.into_iter().collect();
    let requests = requests.to_vec();
    let verified = spawn_blocking(move || {
        on_all_cores(requests.len(), |n| {
            let pem = versions.get(&format!("j-{n}")).context("a job has no version")?;
            verify(n, pem, &requests[n], &authority).with_context(|| format!("the certificate of job j-{n}"))
        })
    });
    verified.await??;
    Ok(())
}

fn verify(n: usize, pem: &str, request: &[u8], authority: &[u8]) -> anyhow::Result<()> {
    let (_, pem) = parse_x509_pem(pem.as_bytes())?;
    let (_, certificate) = X509Certificate::from_der(&pem.contents)?;
    let (_, authority) = X509Certificate::from_der(authority)?;
    let (_, request) = X509CertificationRequest::from_der(request)?;
    certificate.verify_signature(Some(authority.public_key()))?;
    ensure!(
        certificate.public_key().raw == request.certification_request_info.subject_pki.raw,
        "its key is not that of the request"
    );
    let names = certificate.subject_alternative_name()?.context("it has no names")?;
    ensure!(
        names.value.general_names == [x509_parser::extensions::GeneralName::DNSName(&name(n))],
        "it has other names"
    );
    Ok(())
}
