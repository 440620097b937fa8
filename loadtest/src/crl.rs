//! CRLs: how long the signer takes for a large one and how much memory, and how soon one of many shards tells.

use std::{fs, net::SocketAddr, process::Stdio, time::Duration};

use anyhow::{Context, ensure};
use aws_lc_rs::digest;
use certctl_client::Client;
use certctl_contract::{
    query::NoParams,
    signer::{CrlPublished, CrlRequest, PublishCrl},
};
use futures_util::TryStreamExt;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::{
    process::Command,
    time::{Instant, sleep},
};

use crate::{cli::Crl, connect, cpu, loopback, memory::Memory, raw::Line};

const PATIENCE: Duration = Duration::from_secs(600);
/// How often each is measured; the median counts.
const ROUNDS: usize = 5;

/// Seeds revocations, has the lists made and checked, and measures.
///
/// # Errors
/// When a list is not what it should be: too few entries, out of order, or not verified by openssl.
pub(crate) async fn run(args: &Crl) -> anyhow::Result<Value> {
    let pool = connect(&args.database.database_url, 3).await?;
    let signer = Client::builder("http://localhost")
        .unix_socket(&args.signer_socket)
        .build()?;
    publish(&signer, 0).await.context("the first, without entries")?;
    seed(&pool, args).await?;
    match args.shards {
        1 => large(&pool, &signer, args).await,
        _ => sharded(&pool, &signer, args).await,
    }
}

async fn publish(signer: &Client, shard: i32) -> anyhow::Result<CrlPublished> {
    let request = CrlRequest {
        issuer_id: "iss-local".parse()?,
        shard,
        delta: false,
    };
    let made = signer.call_with_timeout::<PublishCrl>(NoParams, NoParams, request, PATIENCE);
    Ok(made.await?)
}

/// Small rows, in one statement for each million; what the triggers would note is noted once.
async fn seed(pool: &PgPool, args: &Crl) -> anyhow::Result<()> {
    const BATCH: i64 = 1_000_000;
    let mut db = pool.acquire().await?;
    sqlx::raw_sql(
        "INSERT INTO certificates (id, name, common_name, sans, owner_id, team_id, issuer_id, renewal_policy_id,
                                   created_at, updated_at)
         VALUES ('mc-crl', 'mc-crl', 'crl.example.com', '{}', 'o-unassigned', 't-unassigned', 'iss-local',
                 'rp-default', now(), now());
         SET session_replication_role = replica",
    )
    .execute(&mut *db)
    .await?;
    if args.shards > 1 {
        sqlx::query("UPDATE issuers SET config = jsonb_build_object('crl_shards', $1::int), crl_shards = $1")
            .bind(args.shards)
            .execute(&mut *db)
            .await?;
    }
    let mut from = 0;
    while from < args.rows {
        let to = args.rows.min(from + BATCH);
        sqlx::query(
            "INSERT INTO revocations (id, issuer_id, serial_number, certificate_id, reason, revoked_by, not_after,
                                      short_lived, revoked_at, shard)
             SELECT n::text, 'iss-local', ltrim(substr(encode(sha256(int8send(n)), 'hex'), 1, 40), '0'), 'mc-crl',
                    (ARRAY['keyCompromise', 'superseded', 'cessationOfOperation', 'unspecified'])[1 + n % 4], '',
                    now() + interval '30 days', false, now() - n * interval '1 millisecond',
                    CASE WHEN $3 > 1 THEN 1 + n % $3 ELSE 0 END
               FROM generate_series($1 + 1, $2) n",
        )
        .bind(from)
        .bind(to)
        .bind(args.shards)
        .execute(&mut *db)
        .await?;
        from = to;
    }
    for statement in [
        "RESET session_replication_role",
        "VACUUM (ANALYZE) revocations",
        "CHECKPOINT",
    ] {
        sqlx::raw_sql(statement).execute(&mut *db).await?;
    }
    Ok(())
}

/// One list with all of them.
async fn large(pool: &PgPool, signer: &Client, args: &Crl) -> anyhow::Result<Value> {
    let before = Memory::reset(args.signer_pid)?;
    let (mut walls, mut cpus) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        let (began, used) = (Instant::now(), cpu::of_process(args.signer_pid)?);
        let made = publish(signer, 0).await?;
        walls.push(began.elapsed());
        cpus.push(cpu::of_process(args.signer_pid)? - used);
        ensure!(made.entries == args.rows, "{} entries of {}", made.entries, args.rows);
    }
    let after = Memory::of(args.signer_pid)?;
    let der = octets(pool, 0).await?;
    let checked = check(&der)?;
    ensure!(checked == args.rows, "{checked} entries of {} can be read", args.rows);
    verify(pool, &der).await?;
    let read = median(async || read_bare(pool, 0).await).await?;
    let hash = median(async || {
        let began = Instant::now();
        std::hint::black_box(digest::digest(&digest::SHA256, &der));
        Ok(began.elapsed())
    })
    .await?;
    let (wall, cpu) = (middle(&mut walls), middle(&mut cpus));
    Ok(json!({
        "name": "crl-1m", "rows": args.rows, "octets": der.len(), "seconds": seconds(wall), "cpu_seconds": seconds(cpu),
        "rss_growth_mb": after.peak.saturating_sub(before.now) / 1024,
        "ceilings": { "read_rows_seconds": seconds(read), "hash_seconds": seconds(hash) },
        "seconds_over_read_and_hash": round(wall.as_secs_f64() / (read + hash).as_secs_f64()),
    }))
}

/// Many lists; then one of them changes.
async fn sharded(pool: &PgPool, signer: &Client, args: &Crl) -> anyhow::Result<Value> {
    Memory::reset(args.signer_pid)?;
    let began = Instant::now();
    let mut entries = 0;
    for shard in 1..=args.shards {
        entries += publish(signer, shard).await?.entries;
    }
    let shards = began.elapsed();
    ensure!(entries == args.rows, "{entries} entries of {}", args.rows);
    let began = Instant::now();
    let full = publish(signer, 0).await?;
    let whole = began.elapsed();
    ensure!(
        full.entries == args.rows,
        "{} entries of {} in the full list",
        full.entries,
        args.rows
    );
    let mut checked = 0;
    for shard in 1..=args.shards {
        let der = octets(pool, shard).await?;
        checked += check(&der)?;
        verify(pool, &der).await?;
    }
    ensure!(checked == args.rows, "{checked} entries of {} can be read", args.rows);
    let address = address(args).await?;
    let mut visible = vec![];
    for n in 0..20 {
        let shard = 1 + (n * 7) % args.shards;
        visible.push(revoke_and_wait(pool, address, shard, n).await?);
    }
    let read = median(async || read_bare(pool, 1).await).await?;
    let slowest = visible.iter().max().copied().unwrap_or_default();
    let usual = middle(&mut visible);
    Ok(json!({
        "name": "crl-10m", "rows": args.rows, "shards": args.shards, "rss_mb": Memory::of(args.signer_pid)?.peak / 1024,
        "dirty_shard_ms": slowest.as_millis() as u64, "dirty_shard_p50_ms": usual.as_millis() as u64,
        "all_shards_seconds": seconds(shards), "full_seconds": seconds(whole),
        "ceilings": { "read_shard_ms": read.as_millis() as u64 },
        "dirty_shard_p50_over_read": round(usual.as_secs_f64() / read.as_secs_f64()),
    }))
}

/// Revokes what the API would, and asks for the shard until it has changed: from the commit to the last octet.
async fn revoke_and_wait(pool: &PgPool, address: SocketAddr, shard: i32, n: i32) -> anyhow::Result<Duration> {
    let mut line = Line::connect(address).await?;
    let get = |more: &str| format!("GET /crl/iss-local/{shard}.crl HTTP/1.1\r\nHost: localhost\r\n{more}\r\n");
    // The first octets have the length of the whole, which grows with every entry.
    let (whole, first) = (get(""), get("Range: bytes=0-63\r\n"));
    let mut ask = async |request: &str, status: u16| -> anyhow::Result<Vec<u8>> {
        let answer = line.ask(request.as_bytes()).await?;
        ensure!(
            answer.status == status,
            "shard {shard} is answered with {}",
            answer.status
        );
        Ok(line.body(&answer).to_vec())
    };
    let before = ask(&first, 206).await?;
    let began = Instant::now();
    sqlx::query(
        "WITH revoked AS (
             INSERT INTO revocations (id, issuer_id, serial_number, certificate_id, reason, revoked_by, not_after, revoked_at, shard)
             VALUES ($1, 'iss-local', $2, 'mc-crl', 'superseded', '', now() + interval '30 days', now(), $3))
         SELECT pg_notify('certctl_revocations', '')",
    )
    .bind(format!("dirty-{n}"))
    .bind(format!("{:x}", 0x7000_0000 + n))
    .bind(shard)
    .execute(pool)
    .await?;
    loop {
        if ask(&first, 206).await? != before {
            let list = ask(&whole, 200).await?;
            let elapsed = began.elapsed();
            check(&list)?;
            return Ok(elapsed);
        }
        ensure!(began.elapsed() < Duration::from_secs(60), "shard {shard} does not tell");
        sleep(Duration::from_millis(5)).await;
    }
}

async fn address(args: &Crl) -> anyhow::Result<SocketAddr> {
    let server = &args.server.server;
    let host = server.host_str().context("the server has no host")?;
    loopback(&format!("{host}:{}", server.port_or_known_default().unwrap_or(80))).await
}

/// The newest of a list, as it is served.
async fn octets(pool: &PgPool, shard: i32) -> anyhow::Result<Vec<u8>> {
    let chunks: Vec<Vec<u8>> = sqlx::query_scalar(
        "SELECT k.octets
           FROM (SELECT body FROM crls WHERE issuer_id = 'iss-local' AND shard = $1 ORDER BY number DESC LIMIT 1) c
           JOIN crl_chunks k ON k.issuer_id = 'iss-local' AND k.shard = $1 AND k.body = c.body
          ORDER BY k.seq",
    )
    .bind(shard)
    .fetch_all(pool)
    .await?;
    Ok(chunks.concat())
}

/// The rows of a list in their order, and nothing done with them.
async fn read_bare(pool: &PgPool, shard: i32) -> anyhow::Result<Duration> {
    let mut db = pool.acquire().await?;
    let began = Instant::now();
    let mut rows = db
        .copy_out_raw(&format!(
            "COPY (SELECT serial_number, revoked_at, reason FROM revocations
                    WHERE issuer_id = 'iss-local' AND shard = {shard} AND released_at IS NULL AND NOT short_lived
                    ORDER BY length(serial_number), serial_number COLLATE \"C\") TO STDOUT (FORMAT binary)"
        ))
        .await?;
    while let Some(row) = rows.try_next().await? {
        std::hint::black_box(row);
    }
    Ok(began.elapsed())
}

/// Walks a CertificateList (RFC 5280 §5.1), and returns how many entries it has; their numbers ascend.
fn check(der: &[u8]) -> anyhow::Result<i64> {
    let (list, rest) = value(der)?;
    ensure!(rest.is_empty(), "octets follow the list");
    let (mut tbs, _) = value(list)?;
    // Version, algorithm, issuer, this update, next update.
    for _ in 0..5 {
        tbs = value(tbs)?.1;
    }
    if tbs.first() != Some(&0x30) {
        return Ok(0);
    }
    let (mut entries, _) = value(tbs)?;
    let (mut count, mut last) = (0, (0, &[][..]));
    while !entries.is_empty() {
        let (entry, rest) = value(entries)?;
        let (serial, _) = value(entry)?;
        let serial = serial.strip_prefix(&[0]).unwrap_or(serial);
        ensure!(
            (serial.len(), serial) > last,
            "entry {count} is not above the one before it"
        );
        last = (serial.len(), serial);
        (entries, count) = (rest, count + 1);
    }
    Ok(count)
}

/// The content of the first value, and what follows it.
fn value(der: &[u8]) -> anyhow::Result<(&[u8], &[u8])> {
    let read = || {
        let (first, rest) = der.get(1..)?.split_first()?;
        let (length, rest) = match first {
            0..0x80 => (usize::from(*first), rest),
            long => {
                let (octets, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
                (
                    octets.iter().fold(0, |length, octet| length << 8 | usize::from(*octet)),
                    rest,
                )
            }
        };
        rest.split_at_checked(length)
    };
    read().context("a value of DER ends too early")
}

/// Has openssl parse and verify a list.
async fn verify(pool: &PgPool, der: &[u8]) -> anyhow::Result<()> {
    let chain: String = sqlx::query_scalar("SELECT chain_pem FROM authorities WHERE issuer_id = 'iss-local'")
        .fetch_one(pool)
        .await?;
    let directory = std::env::temp_dir().join(format!("certctl-crl-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("ca.pem"), chain)?;
    fs::write(directory.join("list.der"), der)?;
    let said = Command::new("openssl")
        .args([
            "crl", "-inform", "DER", "-in", "list.der", "-CAfile", "ca.pem", "-noout",
        ])
        .current_dir(&directory)
        .stderr(Stdio::piped())
        .output()
        .await
        .context("openssl cannot be started");
    fs::remove_dir_all(&directory)?;
    let said = said?;
    let text = String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.success() && text.contains("verify OK"), "openssl: {text}");
    Ok(())
}

async fn median(one: impl AsyncFn() -> anyhow::Result<Duration>) -> anyhow::Result<Duration> {
    let mut all = vec![];
    for _ in 0..ROUNDS {
        all.push(one().await?);
    }
    Ok(middle(&mut all))
}

fn middle(all: &mut [Duration]) -> Duration {
    all.sort();
    all.get(all.len() / 2).copied().unwrap_or_default()
}

fn seconds(time: Duration) -> f64 {
    round(time.as_secs_f64())
}

fn round(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_counted_and_their_order_is_checked() {
        let list = |serials: &[&[u8]]| {
            let wrap = |tag: u8, content: &[u8]| [&[tag, content.len() as u8], content].concat();
            let entry = |serial: &&[u8]| wrap(0x30, &wrap(2, serial));
            let entries: Vec<u8> = serials.iter().flat_map(entry).collect();
            let five = [
                wrap(2, &[1]),
                wrap(0x30, &[]),
                wrap(0x30, &[]),
                wrap(0x17, &[]),
                wrap(0x17, &[]),
            ]
            .concat();
            wrap(0x30, &wrap(0x30, &[five, wrap(0x30, &entries)].concat()))
        };
        assert_eq!(check(&list(&[&[1], &[0, 0x80], &[1, 0]])).unwrap(), 3);
        assert!(check(&list(&[&[0, 0x80], &[1]])).is_err());
        assert!(check(&list(&[&[1], &[1]])).is_err());
        assert!(check(&[0x30, 0x82, 1]).is_err());
    }
}
