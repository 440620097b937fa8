//! OCSP: answers that are given again, beside a bare server with the same octets; and answers to what nobody asked
//! before, beside a signature and a look-up.

use std::{fs, net::SocketAddr, process::Stdio, sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::Instant,
};

use crate::{
    cli::{Ocsp, OcspProcesses},
    connect, cpu,
    load::{Report, round},
    loopback,
    memory::Memory,
    raw::{self, Asks, Line},
};

/// A flood is sent for so long.
const FLOOD: Duration = Duration::from_secs(8);
/// Rounds of what is held against each other, one after the other.
const ROUNDS: u32 = 3;
/// Requests a second for answers there are, beside a flood.
const BESIDE: f64 = 500.0;

/// What is asked of an issuer, with serial numbers of 20 octets: one request, in which the serial number is replaced.
struct Template {
    der: Vec<u8>,
    at: usize,
}

impl Template {
    /// Has OpenSSL write the request.
    async fn make(args: &OcspProcesses) -> anyhow::Result<Self> {
        let serial = "5a".repeat(20);
        let directory = std::env::temp_dir().join(format!("certctl-ocsp-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let (ca, request) = (directory.join("ca.der"), directory.join("request.der"));
        let url = format!("{}ca/{}.crt", args.server.server, args.issuer);
        let address = address(&args.server.server).await?;
        let mut line = Line::connect(address).await?;
        let get = format!("GET /ca/{}.crt HTTP/1.1\r\nHost: localhost\r\n\r\n", args.issuer);
        let answer = line.ask(get.as_bytes()).await?;
        ensure!(answer.status == 200, "{url} answers {}", answer.status);
        fs::write(&ca, line.body(&answer))?;
        let made = Command::new("openssl")
            .args(["ocsp", "-no_nonce", "-issuer"])
            .arg(&ca)
            .args(["-serial", &format!("0x{serial}")])
            .arg("-reqout")
            .arg(&request)
            .stderr(Stdio::piped())
            .output()
            .await
            .context("openssl cannot be started")?;
        let der = fs::read(&request);
        fs::remove_dir_all(&directory)?;
        ensure!(
            made.status.success(),
            "openssl: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        let der = der?;
        let at = der
            .windows(20)
            .position(|octets| octets == [0x5a; 20])
            .context("the request does not have its serial number")?;
        Ok(Self { der, at })
    }

    fn of(&self, serial: &[u8; 20]) -> Vec<u8> {
        let mut der = self.der.clone();
        der[self.at..self.at + 20].copy_from_slice(serial);
        der
    }
}

async fn address(server: &url::Url) -> anyhow::Result<SocketAddr> {
    let host = server.host_str().context("the server has no host")?;
    loopback(&format!("{host}:{}", server.port_or_known_default().unwrap_or(80))).await
}

/// The serial number of the n-th certificate; the database makes the same.
fn serial(n: u64, kind: u8) -> [u8; 20] {
    let mut octets = [kind; 20];
    octets[12..].copy_from_slice(&(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_be_bytes());
    octets
}

const ISSUED: u8 = 0x41;
const NEVER_ISSUED: u8 = 0x42;

/// Records certificates as signed: what an answer looks at.
async fn record(pool: &PgPool, issuer: &str, from: u64, to: u64) -> anyhow::Result<()> {
    const BATCH: u64 = 50_000;
    let mut n = from;
    while n < to {
        let next = to.min(n + BATCH);
        let serials: Vec<String> = (n..next).map(|n| hex(&serial(n, ISSUED))).collect();
        sqlx::query(
            "INSERT INTO ledger (issuer_id, serial_number, job_id, tbs_der, der, not_after, short_lived, recorded_at)
             SELECT $1, s, 'bench-' || s, '', '', now() + interval '90 days', false, now() FROM unnest($2::text[]) s
             ON CONFLICT DO NOTHING",
        )
        .bind(issuer)
        .bind(&serials)
        .execute(pool)
        .await?;
        n = next;
    }
    sqlx::raw_sql("VACUUM (ANALYZE) ledger").execute(pool).await?;
    Ok(())
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

/// Asks about certificates in turn.
#[derive(Clone)]
struct Questions {
    template: Arc<Template>,
    issuer: Arc<str>,
    count: u64,
    from: u64,
    kind: u8,
    post: bool,
    /// Whether another answer than "successful" is right: a flood may be told to come back later.
    any: bool,
}

impl Asks for Questions {
    fn request(&self, n: u64) -> Vec<u8> {
        let der = self.template.of(&serial(self.from + n % self.count, self.kind));
        match self.post {
            true => {
                let mut request = format!(
                    "POST /ocsp/{} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/ocsp-request\r\n\
                     Content-Length: {}\r\n\r\n",
                    self.issuer,
                    der.len()
                )
                .into_bytes();
                request.extend_from_slice(&der);
                request
            }
            false => {
                let text = STANDARD
                    .encode(der)
                    .replace('/', "%2F")
                    .replace('+', "%2B")
                    .replace('=', "%3D");
                format!("GET /ocsp/{}/{text} HTTP/1.1\r\nHost: localhost\r\n\r\n", self.issuer).into_bytes()
            }
        }
    }

    /// OCSPResponse ::= SEQUENCE { responseStatus ENUMERATED { successful (0) … } … }
    fn judge(&self, status: u16, body: &[u8]) -> u16 {
        let successful = body.first() == Some(&0x30) && body.windows(3).take(6).any(|w| w == [0x0a, 1, 0]);
        match status == 200 && !self.any && !successful {
            true => 503,
            false => status,
        }
    }
}

/// Prepared requests, so that making them costs nothing while it is measured.
#[derive(Clone)]
struct Prepared(Arc<Vec<Vec<u8>>>);

impl Asks for Prepared {
    fn request(&self, n: u64) -> Vec<u8> {
        self.0[n as usize % self.0.len()].clone()
    }

    fn judge(&self, status: u16, _: &[u8]) -> u16 {
        status
    }
}

/// Runs one of the two.
///
/// # Errors
/// When server or database are not on this machine, or do not answer.
pub(crate) async fn run(args: &Ocsp) -> anyhow::Result<Value> {
    match args {
        Ocsp::Cached(args) => cached(args).await,
        Ocsp::Cold(args) => cold(args).await,
    }
}

/// A bare server in a process of its own, which gives an answer as it was given.
async fn bare(answer: &[u8]) -> anyhow::Result<(Child, SocketAddr, u32)> {
    let path = std::env::temp_dir().join(format!("certctl-ocsp-answer-{}", std::process::id()));
    fs::write(&path, answer)?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg("bare")
        .arg("--like")
        .arg(&path)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut said = String::new();
    let stdout = child.stdout.take().context("the bare server says nothing")?;
    BufReader::new(stdout).read_line(&mut said).await?;
    fs::remove_file(&path)?;
    let pid = child.id().context("the bare server is gone")?;
    Ok((child, said.trim().parse()?, pid))
}

async fn cached(args: &OcspProcesses) -> anyhow::Result<Value> {
    let pool = connect(&args.database.database_url, 4).await?;
    let server = address(&args.server.server).await?;
    record(&pool, &args.issuer, 0, args.certificates).await?;
    let template = Arc::new(Template::make(args).await?);
    let mut out = json!({ "name": "ocsp-cached", "certificates": args.certificates });
    let mut failed = 0;
    for (method, post) in [("get", false), ("post", true)] {
        let questions = Questions {
            template: template.clone(),
            issuer: args.issuer.as_str().into(),
            count: args.certificates,
            from: 0,
            kind: ISSUED,
            post,
            any: false,
        };
        let first = raw::drive(
            server,
            "ocsp",
            args.connections,
            args.certificates,
            args.time(),
            None,
            questions.clone(),
        )
        .await;
        failed += first.whole().failed();
        let requests: Vec<Vec<u8>> = (0..args.certificates).map(|n| questions.request(n)).collect();
        let requests = Prepared(Arc::new(requests));
        let mut line = Line::connect(server).await?;
        line.ask(&requests.request(0)).await?;
        let (_child, bare, bare_pid) = bare(line.octets()).await?;
        let (mut ours, mut theirs) = (Spent::default(), Spent::default());
        for _ in 0..ROUNDS {
            for (spent, address, pid) in [(&mut ours, server, args.api_pid), (&mut theirs, bare, bare_pid)] {
                let before = cpu::of_process(pid)?;
                let report = raw::drive(
                    address,
                    "ocsp",
                    args.connections,
                    u64::MAX,
                    args.time() / ROUNDS,
                    None,
                    requests.clone(),
                )
                .await;
                spent.add(cpu::of_process(pid)?.saturating_sub(before), &report);
            }
        }
        failed += ours.failed + theirs.failed;
        let prefix = if post { "post_" } else { "" };
        out[format!("{prefix}cpu_ratio")] = json!(round(ours.micros() / theirs.micros()));
        out[format!("{prefix}per_second")] = json!(round(ours.per_second()));
        out[format!("{prefix}p99_ms")] = json!(ours.p99_ms);
        out["cpu"][method] = json!({
            "api_us_per_answer": round(ours.micros()),
            "bare_us_per_answer": round(theirs.micros()),
            "bare_per_second": round(theirs.per_second()),
            "octets": line.octets().len(),
        });
    }
    out["connections"] = json!(args.connections);
    out["failed"] = json!(failed);
    Ok(out)
}

/// Processor time, and what was done with it.
#[derive(Default)]
struct Spent {
    time: Duration,
    answers: u64,
    failed: u64,
    elapsed: Duration,
    p99_ms: f64,
}

impl Spent {
    fn add(&mut self, time: Duration, report: &Report) {
        let whole = report.whole();
        self.time += time;
        self.answers += whole.succeeded();
        self.failed += whole.failed();
        self.elapsed += report.elapsed;
        self.p99_ms = self.p99_ms.max(whole.percentile(99.0));
    }

    fn micros(&self) -> f64 {
        self.time.as_secs_f64() * 1e6 / self.answers.max(1) as f64
    }

    fn per_second(&self) -> f64 {
        self.answers as f64 / self.elapsed.as_secs_f64()
    }
}

async fn cold(args: &OcspProcesses) -> anyhow::Result<Value> {
    let pool = connect(&args.database.database_url, 4).await?;
    let server = address(&args.server.server).await?;
    let signer = args.signer_pid.context("--signer-pid is needed")?;
    // Further ones for the latencies, since nothing is asked twice.
    let extra = args.certificates / 4;
    record(&pool, &args.issuer, 0, args.certificates + extra).await?;
    let template = Arc::new(Template::make(args).await?);
    let questions = |from, count, kind, any| Questions {
        template: template.clone(),
        issuer: args.issuer.as_str().into(),
        count,
        from,
        kind,
        post: true,
        any,
    };
    let sign = signature_micros()?;
    let look_up = look_up_micros(&pool, args).await?;
    let used = || -> anyhow::Result<[Duration; 3]> {
        Ok([
            cpu::of_process(args.api_pid)?,
            cpu::of_process(signer)?,
            cpu::of_family(args.postgres_pid.context("--postgres-pid is needed")?)?,
        ])
    };
    let before = used()?;
    let walk = raw::drive(
        server,
        "ocsp",
        args.connections,
        args.certificates,
        Duration::from_secs(3_600),
        None,
        questions(0, args.certificates, ISSUED, false),
    )
    .await;
    let after = used()?;
    let answers = walk.whole().succeeded();
    let micros = |n: usize| (after[n] - before[n]).as_secs_f64() * 1e6 / answers.max(1) as f64;
    let spent = micros(0) + micros(1);
    let saturated = walk.per_second();
    let half = raw::drive(
        server,
        "ocsp",
        args.connections,
        extra,
        args.time(),
        Some(saturated / 2.0),
        questions(args.certificates, extra, ISSUED, false),
    )
    .await;

    // Answers there are, alone and beside a flood of what was never issued.
    let known = 1_000.min(extra);
    let warm = questions(args.certificates, known, ISSUED, false);
    raw::drive(server, "ocsp", args.connections, known, args.time(), None, warm.clone()).await;
    let calm = raw::drive(server, "ocsp", 16, u64::MAX, FLOOD, Some(BESIDE), warm.clone()).await;
    let memory_before = Memory::of(args.api_pid)?.now + Memory::of(signer)?.now;

    let flood = async {
        let flood = questions(0, u64::MAX, NEVER_ISSUED, true);
        raw::drive(server, "flood", args.connections, u64::MAX, FLOOD, None, flood).await
    };
    let beside = raw::drive(server, "ocsp", 16, u64::MAX, FLOOD, Some(BESIDE), warm);
    let (flood, beside) = tokio::join!(flood, beside);
    let memory_after = Memory::of(args.api_pid)?.now + Memory::of(signer)?.now;
    Ok(json!({
        "name": "ocsp-cold",
        "certificates": args.certificates,
        "cpu_ratio": round(spent / (sign + look_up[0] + look_up[1])),
        "p99_ms": half.whole().percentile(99.0),
        "per_second": saturated,
        "failed": walk.whole().failed() + half.whole().failed() + calm.whole().failed() + beside.whole().failed(),
        "cpu": {
            "api_us_per_answer": round(micros(0)),
            "signer_us_per_answer": round(micros(1)),
            "postgres_us_per_answer": round(micros(2)),
        },
        "at_half_rate": half.whole().json(),
        "flood": {
            "per_second": flood.per_second(),
            "known_p99_ms_alone": calm.whole().percentile(99.0),
            "known_p99_ms_beside": beside.whole().percentile(99.0),
            "rss_growth_mb": round((memory_after as f64 - memory_before as f64) / 1024.0),
        },
        "ceilings": {
            "signature_us": round(sign),
            "look_up_client_us": round(look_up[0]),
            "look_up_postgres_us": round(look_up[1]),
        },
    }))
}

/// What a raw P-256 signature takes of a processor.
fn signature_micros() -> anyhow::Result<f64> {
    const COUNT: u32 = 20_000;
    let random = SystemRandom::new();
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)?;
    let before = cpu::of_process(std::process::id())?;
    for n in 0..COUNT {
        std::hint::black_box(key.sign(&random, &n.to_be_bytes())?);
    }
    Ok((cpu::of_process(std::process::id())? - before).as_secs_f64() * 1e6 / f64::from(COUNT))
}

/// What an indexed look-up takes, here and in Postgres.
async fn look_up_micros(pool: &PgPool, args: &OcspProcesses) -> anyhow::Result<[f64; 2]> {
    const COUNT: u64 = 20_000;
    let postgres = args.postgres_pid.context("--postgres-pid is needed")?;
    let mut db = pool.acquire().await?;
    let before = [cpu::of_process(std::process::id())?, cpu::of_family(postgres)?];
    let began = Instant::now();
    for n in 0..COUNT {
        let found: Option<bool> =
            sqlx::query_scalar("SELECT der IS NOT NULL FROM ledger WHERE issuer_id = $1 AND serial_number = $2")
                .bind(&args.issuer)
                .bind(hex(&serial(n % args.certificates, ISSUED)))
                .fetch_optional(&mut *db)
                .await?;
        ensure!(found == Some(true), "a certificate that was recorded is not there");
        ensure!(began.elapsed() < Duration::from_secs(120), "look-ups take too long");
    }
    let after = [cpu::of_process(std::process::id())?, cpu::of_family(postgres)?];
    Ok([0, 1].map(|n: usize| (after[n] - before[n]).as_secs_f64() * 1e6 / COUNT as f64))
}
