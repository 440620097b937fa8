//! Fills a database with an estate.
//!
//! Indexes, unique constraints and references of the tables are taken off first and put back in the end, each as Postgres
//! itself describes it, so that rows go in quickly and everything is checked once. Triggers run. A run that is killed
//! leaves a database without them; one that fails puts them back.

use std::ops::Range;

use anyhow::{Context, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use tokio::time::Instant;

use crate::{
    cli::Seed,
    connect_with,
    copy::Rows,
    estate::{AREAS, Certificate, Estate, ISSUERS, Millis, PAST, POLICIES, PROFILES, Rng, Size, State, Version},
};

/// Certificates, or events, in one `COPY`.
const BATCH: u64 = 5_000;
/// Any certificate that can be parsed; fingerprints and serial numbers in the rows are their own.
const SPECIMEN: &str = include_str!("specimen.pem");
/// The empty SEQUENCE: no request, but DER.
const REQUEST: &str = "\\x3000";

/// The tables that grow, in the order in which they are filled.
const TABLES: [Table; 9] = [
    Table(
        "agents",
        "id, name, hostname, os, architecture, ip_address, version, capabilities, api_key_hash,
                     last_heartbeat_at, offline_since, registered_at, updated_at",
    ),
    Table("targets", "id, name, type, agent_id, config, created_at, updated_at"),
    Table(
        "certificates",
        "id, name, common_name, sans, environment, owner_id, team_id, issuer_id, renewal_policy_id,
                           profile_id, tags, current_version_id, not_before, not_after, renew_at, failed_at, failure,
                           revoked_at, revocation_reason, archived_at, last_renewal_at, last_deployment_at, created_at,
                           updated_at",
    ),
    Table(
        "certificate_versions",
        "id, certificate_id, job_id, issuer_id, agent_id, version, serial_number, not_before,
                                   not_after, fingerprint_sha256, spki_sha256, cert_pem, chain_pem, csr_der,
                                   key_algorithm, key_size, created_at",
    ),
    Table("certificate_targets", "certificate_id, target_id"),
    Table(
        "jobs",
        "id, type, certificate_id, agent_id, target_id, version_id, status, csr_der, attempts, last_error,
                   reason, run_at, started_at, finished_at, created_at",
    ),
    Table(
        "revocations",
        "id, issuer_id, serial_number, certificate_id, reason, revoked_by, not_after, short_lived,
                          revoked_at",
    ),
    Table(
        "audit_events",
        "id, actor, actor_type, action, resource_type, resource_id, details, at",
    ),
    Table(
        "notifications",
        "id, type, certificate_id, channel, recipient, subject, message, dedup_key, status, attempts,
                            not_before, sent_at, created_at",
    ),
];

const AGENTS: usize = 0;
const TARGETS: usize = 1;
const CERTIFICATES: usize = 2;
const VERSIONS: usize = 3;
const MAPPINGS: usize = 4;
const JOBS: usize = 5;
const REVOCATIONS: usize = 6;
const EVENTS: usize = 7;
const NOTICES: usize = 8;

/// A table and the columns that are given.
struct Table(&'static str, &'static str);

/// Fills the database, and says what went in and how fast.
///
/// # Errors
/// When the database is elsewhere, is not migrated, or holds something.
pub(crate) async fn run(args: &Seed) -> anyhow::Result<Value> {
    let settings = [
        ("synchronous_commit", "off"),
        ("maintenance_work_mem", "256MB"),
        ("timezone", "UTC"),
    ];
    let pool = connect_with(&args.database.database_url, args.connections, |o| o.options(settings)).await?;
    admit(&pool, args).await?;
    let now: i64 = sqlx::query_scalar("SELECT (extract(epoch FROM now()) * 1000)::bigint")
        .fetch_one(&pool)
        .await?;
    let estate = Estate::new(Size {
        seed: args.seed,
        now,
        certificates: args.certificates,
        agents: args.agents,
        versions_per: args.versions_per,
        jobs_per: args.jobs.unwrap_or(args.certificates) as f64 / args.certificates.max(1) as f64,
        settled: args.settled,
    });
    let events = args.audit.unwrap_or(args.certificates);
    let started = Instant::now();
    few(&pool, &estate).await?;
    let taken = take_off(&pool).await?;
    let filled = tokio::select! {
        filled = fill(&pool, &estate, events, args.connections) => filled,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    let copied = started.elapsed();
    put_back(&pool, &taken, args.connections).await?;
    let rows = filled?;
    // What the services do from time to time: settle what ended meanwhile, sum up what changed.
    for sql in [
        "UPDATE certificates SET status_at = now() WHERE status_until <= now()",
        "SELECT tallies_compact()",
    ] {
        sqlx::query(sql).execute(&pool).await?;
    }
    for name in TABLES.iter().map(|table| table.0).chain(["tallies"]) {
        sqlx::raw_sql(AssertSqlSafe(format!("VACUUM (ANALYZE) {name}")))
            .execute(&pool)
            .await?;
    }
    sqlx::raw_sql("ANALYZE").execute(&pool).await?;
    let seconds = started.elapsed().as_secs_f64();
    let all: u64 = rows.iter().sum();
    let of_tables = TABLES
        .iter()
        .zip(rows)
        .map(|(table, rows)| (table.0.to_owned(), json!(rows)));
    Ok(json!({
        "name": "seed",
        "seed": args.seed,
        "rows": all,
        "seconds": round(seconds),
        "rows_per_second": (all as f64 / seconds) as u64,
        "seconds_of_copying": round(copied.as_secs_f64()),
        "tables": serde_json::Map::from_iter(of_tables),
    }))
}

fn round(seconds: f64) -> f64 {
    (seconds * 10.0).round() / 10.0
}

/// Refuses a database that is not meant to be filled.
async fn admit(pool: &PgPool, args: &Seed) -> anyhow::Result<()> {
    let migrated: bool = sqlx::query_scalar("SELECT to_regclass('audit_events') IS NOT NULL")
        .fetch_one(pool)
        .await?;
    ensure!(migrated, "the database has no tables; run certctl-api --migrate first");
    let empty: bool = sqlx::query_scalar(
        "SELECT NOT EXISTS (SELECT 1 FROM certificates) AND NOT EXISTS (SELECT 1 FROM agents)
            AND NOT EXISTS (SELECT 1 FROM jobs)",
    )
    .fetch_one(pool)
    .await?;
    ensure!(
        empty || args.append,
        "the database holds certificates, agents or jobs; give an empty one, or add to it with --append"
    );
    let seeded: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM teams WHERE id = $1)")
        .bind(format!("t-{}-0", args.seed))
        .fetch_one(pool)
        .await?;
    ensure!(
        !seeded,
        "seed {} is in this database already; give another --seed",
        args.seed
    );
    Ok(())
}

/// The tables that stay small.
async fn few(pool: &PgPool, estate: &Estate) -> anyhow::Result<()> {
    let Size { seed, now, .. } = estate.size;
    let longest = now - PAST;
    let mut teams = Rows::default();
    for n in 0..estate.teams {
        let name = format!("{} {seed}.{n}", AREAS[n as usize % AREAS.len()]);
        teams.row(|r| {
            r.text(&estate.team_id(n)).text(&name).text("Answers for its services");
            r.time(longest).time(longest);
        });
    }
    copy(
        pool,
        &Table("teams", "id, name, description, created_at, updated_at"),
        teams,
    )
    .await?;
    let mut owners = Rows::default();
    for n in 0..estate.owners {
        owners.row(|r| {
            r.text(&estate.owner_id(n)).text(&format!("Group {seed}.{n}"));
            r.text(&format!("group-{n}@example.com"))
                .text(&estate.team_id(estate.team_of(n)));
            r.time(longest).time(longest);
        });
    }
    copy(
        pool,
        &Table("owners", "id, name, email, team_id, created_at, updated_at"),
        owners,
    )
    .await?;
    // These have ids of their own, and are shared by estates of several seeds.
    for (_, id) in ISSUERS {
        sqlx::query(
            "INSERT INTO issuers (id, name, type, created_at, updated_at) VALUES ($1, $1, 'local', now(), now())
             ON CONFLICT DO NOTHING",
        )
        .bind(id)
        .execute(pool)
        .await?;
    }
    for (_, name, days) in PROFILES {
        sqlx::query(
            "INSERT INTO profiles (id, name, max_ttl_seconds, created_at, updated_at)
             VALUES ('prof-' || $1, $1, $2, now(), now()) ON CONFLICT DO NOTHING",
        )
        .bind(name)
        .bind(i64::from(days) * 86_400)
        .execute(pool)
        .await?;
    }
    for (_, id) in POLICIES {
        sqlx::query(
            "INSERT INTO renewal_policies (id, name, auto_renew, created_at, updated_at)
             VALUES ($1, $1, $1 <> 'rp-manual', now(), now()) ON CONFLICT DO NOTHING",
        )
        .bind(id)
        .execute(pool)
        .await?;
    }
    Ok(())
}

/// What was taken off: how to make it again. Unique constraints and indexes first, references last.
#[derive(Default)]
struct Taken {
    indexes: Vec<String>,
    references: Vec<String>,
}

/// Indexes that triggers use while rows come in.
const USED: [&str; 1] = ["jobs_certificate_idx"];

async fn take_off(pool: &PgPool) -> anyhow::Result<Taken> {
    let tables: Vec<String> = TABLES.iter().map(|table| table.0.to_owned()).collect();
    let mut taken = Taken::default();
    let constraints: Vec<(String, String, String, bool)> = sqlx::query_as(
        "SELECT conrelid::regclass::text, quote_ident(conname), pg_get_constraintdef(oid), contype = 'f'
           FROM pg_constraint
          WHERE conrelid = ANY ($1::text[]::regclass[]) AND contype IN ('f', 'u')
          ORDER BY contype, conname",
    )
    .bind(&tables)
    .fetch_all(pool)
    .await?;
    let mut drops = Vec::new();
    for (table, name, definition, reference) in constraints {
        drops.push(format!("ALTER TABLE {table} DROP CONSTRAINT {name}"));
        let again = format!("ALTER TABLE {table} ADD CONSTRAINT {name} {definition}");
        match reference {
            true => taken.references.push(again),
            false => taken.indexes.push(again),
        }
    }
    let indexes: Vec<(String, String)> = sqlx::query_as(
        "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid)
           FROM pg_index
          WHERE indrelid = ANY ($1::text[]::regclass[])
            AND NOT EXISTS (SELECT 1 FROM pg_constraint WHERE conindid = indexrelid)
            AND indexrelid <> ALL ($2::text[]::regclass[])
          ORDER BY 1",
    )
    .bind(&tables)
    .bind(&USED[..])
    .fetch_all(pool)
    .await?;
    for (name, definition) in indexes {
        drops.push(format!("DROP INDEX {name}"));
        taken.indexes.push(definition);
    }
    // All or nothing.
    sqlx::raw_sql(AssertSqlSafe(drops.join(";\n"))).execute(pool).await?;
    Ok(taken)
}

async fn put_back(pool: &PgPool, taken: &Taken, connections: u32) -> anyhow::Result<()> {
    let bar = bar(taken.indexes.len() as u64, "{bar:40} {pos}/{len} indexes, {elapsed}");
    // ALTER TABLE wants its table for itself, so constraints go one after the other and before the rest.
    let (constraints, indexes): (Vec<_>, Vec<_>) = taken.indexes.iter().partition(|sql| sql.starts_with("ALTER"));
    for sql in constraints {
        again(pool, sql).await?;
        bar.inc(1);
    }
    stream::iter(indexes)
        .map(|sql| async {
            let made = again(pool, sql).await;
            bar.inc(1);
            made
        })
        .buffer_unordered(connections as usize)
        .try_collect::<Vec<()>>()
        .await?;
    for sql in &taken.references {
        again(pool, sql).await?;
    }
    bar.finish_and_clear();
    Ok(())
}

async fn again(pool: &PgPool, sql: &str) -> anyhow::Result<()> {
    let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await;
    done.with_context(|| format!("cannot put back: {sql}"))?;
    Ok(())
}

fn bar(length: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("a valid template");
    // Drawn on standard error, and only on a terminal.
    ProgressBar::new(length).with_style(style)
}

/// Writes the tables that grow; returns how many rows went into each.
async fn fill(pool: &PgPool, estate: &Estate, events: u64, connections: u32) -> anyhow::Result<[u64; 9]> {
    let Size {
        certificates, agents, ..
    } = estate.size;
    let bar = bar(
        agents + certificates + events,
        "{bar:40} {pos}/{len} agents, certificates and events, {per_sec}, {eta}",
    );
    let mut counts = [0; 9];
    // In the order of the tables: what refers to others comes after them.
    spread(pool, &bar, agents, connections, &mut counts, |range| {
        agents_of(estate, range)
    })
    .await?;
    spread(pool, &bar, certificates, connections, &mut counts, |range| {
        certificates_of(estate, range)
    })
    .await?;
    // The table keeps digests; Postgres makes them of the keys, which are there for everyone.
    sqlx::query("UPDATE agents SET api_key_hash = encode(sha256(api_key_hash::bytea), 'hex') WHERE id LIKE $1")
        .bind(format!("a-{}-%", estate.size.seed))
        .execute(pool)
        .await?;
    let made = |range| events_of(estate, range, events);
    spread(pool, &bar, events, connections, &mut counts, made).await?;
    bar.finish_and_clear();
    Ok(counts)
}

/// Makes and writes batches over several connections.
async fn spread(
    pool: &PgPool,
    bar: &ProgressBar,
    all: u64,
    connections: u32,
    counts: &mut [u64; 9],
    make: impl Fn(Range<u64>) -> Batch,
) -> anyhow::Result<()> {
    let starts = (0..all).step_by(BATCH as usize);
    let mut written = stream::iter(starts.map(|from| from..all.min(from + BATCH)))
        .map(|range| {
            let (length, batch) = (range.end - range.start, make(range));
            async move { write(pool, batch).await.inspect(|_| bar.inc(length)) }
        })
        .buffer_unordered(connections as usize);
    while let Some(more) = written.try_next().await? {
        counts.iter_mut().zip(more).for_each(|(sum, n)| *sum += n);
    }
    Ok(())
}

/// Rows of every table.
type Batch = [Rows; 9];

async fn write(pool: &PgPool, batch: Batch) -> anyhow::Result<[u64; 9]> {
    let counts = std::array::from_fn(|n| batch[n].count());
    for (table, rows) in TABLES.iter().zip(batch) {
        copy(pool, table, rows).await?;
    }
    Ok(counts)
}

async fn copy(pool: &PgPool, Table(name, columns): &Table, rows: Rows) -> anyhow::Result<()> {
    if rows.count() == 0 {
        return Ok(());
    }
    let mut db = pool.acquire().await?;
    let mut sink = db.copy_in_raw(&format!("COPY {name} ({columns}) FROM STDIN")).await?;
    sink.send(rows.octets()).await?;
    sink.finish()
        .await
        .with_context(|| format!("rows of {name} are refused"))?;
    Ok(())
}

fn agents_of(estate: &Estate, range: Range<u64>) -> Batch {
    let mut batch = Batch::default();
    let Size { now, agents, .. } = estate.size;
    let config = json!({
        "cert_path": "/etc/nginx/tls/site.pem", "chain_path": "/etc/nginx/tls/chain.pem",
        "key_path": "/etc/nginx/tls/site.key", "validate_command": "nginx -t", "reload_command": "nginx -s reload",
    })
    .to_string();
    for n in range {
        let rng = &mut Rng::of(estate.size.seed, "agent", n);
        let registered = estate.past(n, agents);
        let silent = rng.chance(0.08);
        let heard = match silent {
            true => now - 300_000 - (rng.unit() * (now - registered) as f64) as Millis,
            false => now - rng.below(60_000) as Millis,
        }
        .max(registered);
        let host = format!("host-{n}.example.com");
        batch[AGENTS].row(|r| {
            r.text(&estate.agent_id(n))
                .text(&format!("agent-{}-{n}", estate.size.seed))
                .text(&host);
            r.text(rng.weighted(&[(90, "linux"), (7, "windows"), (3, "darwin")]));
            r.text(rng.weighted(&[(80, "x86_64"), (20, "aarch64")]));
            r.text(&format!("10.{}.{}.{}", n >> 16 & 255, n >> 8 & 255, n & 255))
                .text("1.0.0")
                .list(&["NGINX"]);
            r.text(&estate.agent_key(n)).time(heard);
            r.maybe_time(silent.then_some(heard + 180_000))
                .time(registered)
                .time(heard);
        });
        for (number, target) in [n, n + agents].into_iter().enumerate() {
            batch[TARGETS].row(|r| {
                r.text(&estate.target_id(target))
                    .text(&format!("nginx-{number}"))
                    .text("NGINX");
                r.text(&estate.agent_id(n))
                    .text(&config)
                    .time(registered)
                    .time(registered);
            });
        }
    }
    batch
}

fn certificates_of(estate: &Estate, range: Range<u64>) -> Batch {
    let mut batch = Batch::default();
    for number in range {
        certificate(&mut batch, estate, number, &estate.certificate(number));
    }
    batch
}

fn certificate(batch: &mut Batch, estate: &Estate, number: u64, c: &Certificate) {
    let rng = &mut Rng::of(estate.size.seed, "what hangs on a certificate", number);
    let current = c.versions.last();
    let given_up = matches!(c.state, State::Failed | State::RenewalFailed);
    let tags = match c.tier {
        Some(tier) => json!({ "tier": tier, "cost-centre": format!("{}", 1_000 + c.team) }),
        None => json!({}),
    };
    batch[CERTIFICATES].row(|r| {
        r.text(&c.id)
            .text(&c.name)
            .text(&c.common_name)
            .list(&c.sans)
            .text(c.environment);
        r.text(&estate.owner_id(c.owner))
            .text(&estate.team_id(c.team))
            .text(c.issuer)
            .text(c.policy);
        r.maybe(c.profile.map(|name| format!("prof-{name}")).as_deref())
            .text(&tags.to_string());
        r.maybe(current.map(|v| v.id.as_str()));
        r.maybe_time(current.map(|v| v.not_before))
            .maybe_time(current.map(|v| v.not_after))
            .maybe_time(c.renew_at);
        r.maybe_time(given_up.then_some(c.ended))
            .maybe(given_up.then_some("no request came from the agent"));
        let revoked = c.state == State::Revoked;
        r.maybe_time(revoked.then_some(c.ended))
            .maybe(revoked.then_some(c.reason));
        r.maybe_time((c.state == State::Archived).then_some(c.ended));
        r.maybe_time(current.filter(|_| c.versions.len() > 1).map(|v| v.not_before));
        r.maybe_time(current.filter(|_| !c.targets.is_empty()).map(|v| v.not_before + 5_000));
        r.time(c.created).time(c.updated);
    });
    for target in &c.targets {
        batch[MAPPINGS].row(|r| {
            r.text(&c.id).text(&estate.target_id(*target));
        });
    }
    let agent = c
        .targets
        .first()
        .map(|target| estate.agent_id(target % estate.size.agents));
    for (n, v) in c.versions.iter().enumerate() {
        batch[VERSIONS].row(|r| {
            r.text(&v.id)
                .text(&c.id)
                .text(&v.job)
                .text(c.issuer)
                .maybe(agent.as_deref())
                .number(n as u64 + 1);
            r.text(&v.serial)
                .time(v.not_before)
                .time(v.not_after)
                .text(&v.fingerprint)
                .text(&v.spki);
            r.text(SPECIMEN).text(SPECIMEN).text(REQUEST);
            match rng.chance(0.8) {
                true => r.text("ECDSA").number(256),
                false => r.text("RSA").number(2048),
            };
            r.time(v.not_before);
        });
    }
    if let (State::Revoked, Some(v)) = (c.state, current) {
        batch[REVOCATIONS].row(|r| {
            r.text(&format!("{}-{}", rng.id("rev-", c.ended), v.serial))
                .text(c.issuer)
                .text(&v.serial)
                .text(&c.id);
            r.text(c.reason)
                .text("api-key-user")
                .time(v.not_after)
                .text("false")
                .time(c.ended);
        });
    }
    if let (State::Expiring | State::Expired | State::RenewalFailed, Some(v)) = (c.state, current) {
        let id = rng.id("ne-", v.not_after);
        batch[NOTICES].row(|r| {
            r.text(&id).text("ExpirationWarning").text(&c.id).text("email");
            r.text(&format!("group-{}@example.com", c.owner))
                .text(&format!("{} expires", c.common_name));
            r.text(&format!("The certificate of {} ends soon.", c.common_name))
                .text(&id)
                .text("sent")
                .number(1);
            r.time(v.not_after).time(v.not_after).time(v.not_after);
        });
    }
    jobs(batch, estate, c, agent.as_deref(), rng);
}

/// The jobs of a certificate: one that is open or was given up where its status says so, and so many that have ended.
fn jobs(batch: &mut Batch, estate: &Estate, c: &Certificate, agent: Option<&str>, rng: &mut Rng) {
    let now = estate.size.now;
    let mut job = |id: &str, kind: &str, target: Option<u64>, version: Option<&Version>, status: &str, at: Millis| {
        let asked = !matches!(status, "Pending" | "AwaitingCSR") && kind != "Deployment";
        let (failed, ended) = (
            status == "Failed",
            matches!(status, "Completed" | "Failed" | "Cancelled"),
        );
        let reason = match status {
            "Failed" => Some("no request came from the agent"),
            "Cancelled" => Some("cancelled by api-key-user"),
            _ => None,
        };
        batch[JOBS].row(|r| {
            r.text(id).text(kind).text(&c.id).maybe(agent);
            r.maybe(target.map(|target| estate.target_id(target)).as_deref())
                .maybe(version.map(|v| v.id.as_str()));
            r.text(status)
                .maybe(asked.then_some(REQUEST))
                .number(if failed { 3 } else { u64::from(ended) });
            r.maybe(reason.filter(|_| failed)).maybe(reason).time(at);
            r.maybe_time((ended || status == "Running").then_some(at + 1_000));
            r.maybe_time(ended.then_some(at + 3_000)).time(at);
        });
    };
    let (current, lately) = (c.versions.last(), now - rng.below(3_600_000) as Millis);
    match c.state {
        State::Renewing => {
            let status = rng.weighted(&[
                (50, "AwaitingCSR"),
                (20, "Pending"),
                (20, "Running"),
                (10, "AwaitingApproval"),
            ]);
            job(&rng.id("j-", lately), "Renewal", None, None, status, lately);
        }
        State::Pending if agent.is_some() => {
            let status = rng.weighted(&[(80, "AwaitingCSR"), (20, "Pending")]);
            job(&rng.id("j-", c.created), "Issuance", None, None, status, c.created);
        }
        State::Failed => job(&rng.id("j-", c.created), "Issuance", None, None, "Failed", c.created),
        State::RenewalFailed => job(&rng.id("j-", c.ended), "Renewal", None, None, "Failed", c.ended),
        _ => {}
    }
    if current.is_none() {
        return;
    }
    let mut left = rng.about(estate.size.jobs_per);
    for (n, v) in c.versions.iter().enumerate().rev() {
        let kind = if n == 0 { "Issuance" } else { "Renewal" };
        let at = v.not_before - 20_000;
        let steps = [
            (v.job.clone(), kind, None),
            (rng.id("j-", v.not_before), "Deployment", c.targets.first().copied()),
        ];
        for (id, kind, target) in steps {
            let belongs = kind != "Deployment" || target.is_some();
            if left > 0 && belongs {
                left -= 1;
                job(&id, kind, target, Some(v), "Completed", at);
            }
        }
    }
    // What more there is are tries that came to nothing.
    for _ in 0..left {
        let at = c.created + rng.below((now - c.created).max(1) as u64) as Millis;
        let status = rng.weighted(&[(70, "Failed"), (30, "Cancelled")]);
        job(&rng.id("j-", at), "Renewal", None, None, status, at);
    }
}

fn events_of(estate: &Estate, range: Range<u64>, all: u64) -> Batch {
    let mut batch = Batch::default();
    let actions = [
        (30, ("certificate_renewed", "System", "system")),
        (25, ("deployment_completed", "Agent", "")),
        (15, ("csr_accepted", "Agent", "")),
        (12, ("certificate_created", "User", "api-key-user")),
        (10, ("certificate_updated", "User", "api-key-user")),
        (5, ("certificate_revoked", "User", "api-key-user")),
        (3, ("certificate_archived", "User", "api-key-user")),
    ];
    for n in range {
        let rng = &mut Rng::of(estate.size.seed, "event", n);
        let at = estate.past(n, all);
        let (action, kind, actor) = rng.weighted(&actions);
        let agent = estate.agent_id(rng.below(estate.size.agents));
        let certificate = estate.certificate(rng.below(estate.size.certificates));
        batch[EVENTS].row(|r| {
            r.text(&rng.id("audit-", at))
                .text(if kind == "Agent" { &agent } else { actor })
                .text(kind)
                .text(action);
            r.text("certificate").text(&certificate.id);
            r.text(&json!({ "name": certificate.name }).to_string()).time(at);
        });
    }
    batch
}
