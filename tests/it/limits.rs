//! How much a party may ask: one budget each, however many replicas there are and whatever becomes of Redis.

use std::time::Duration;

use anyhow::ensure;
use certctl_tests::beside::{HaProxy, Redis};
use certctl_tests::stage::{Stage, directory, programs};
use certctl_tests::world::{Answer, KEY, World};
use certctl_tests::{eventually, run_command};
use http::Method;
use serde_json::Value;
use sqlx::PgPool;
use tokio::process::Command;

const CHECK: &str = "/api/v1/auth/check";

/// A world whose requests come through a proxy that is believed.
async fn limited(db: PgPool) -> World {
    World::with_api(
        db,
        &[
            ("--rate-limit-enabled", "true"),
            ("--trusted-proxies", "127.0.0.1"),
            ("--rate-limit-ip-burst", "10"),
            ("--rate-limit-agent-burst", "5"),
        ],
    )
    .await
}

async fn ask(world: &World, from: &str, key: &str) -> Answer {
    let headers = [("x-forwarded-for", from)];
    world.with_headers(Method::GET, CHECK, Some(key), &headers, "").await
}

async fn statuses(world: &World, from: &str, key: &str, times: usize) -> Vec<u16> {
    let mut statuses = vec![];
    for _ in 0..times {
        statuses.push(ask(world, from, key).await.status);
    }
    statuses
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_party_has_its_burst_and_then_its_rate_and_is_told_so(db: PgPool) {
    let w = limited(db).await;
    let first = ask(&w, "192.0.2.1", KEY).await;
    first.expect(200);
    assert_eq!(first.header("ratelimit-policy"), "\"operators\";q=100;w=2");
    assert_eq!(first.header("ratelimit"), "\"operators\";r=99;t=1");
    assert_eq!(first.header("x-ratelimit-remaining"), "99");
    assert_eq!(statuses(&w, "192.0.2.1", KEY, 99).await, [200; 99]);

    // From wherever it asks.
    let refused = ask(&w, "192.0.2.2", KEY).await;
    let problem = refused.problem();
    assert!(problem.is(certctl_contract::problem::Kind::TooMany));
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(refused.header("ratelimit"), "\"operators\";r=0;t=2");

    // Others have budgets of their own, and probes and relying parties need none.
    let host = w.host("web-1").await;
    let beat = format!("/api/v1/agents/{}/heartbeat", host.id());
    let key = host.key();
    let beat = async || w.raw(Method::POST, &beat, Some(&key), "{}").await;
    eventually("the agent's budget to end", Duration::from_secs(10), async || {
        let answer = beat().await;
        ensure!(answer.status == 429, "{answer:?}");
        assert!(answer.header("ratelimit").starts_with("\"agents\""), "{answer:?}");
        Ok(())
    })
    .await;
    for path in [
        "/health",
        "/api/v1/health",
        "/api/v1/crl/iss-local",
        "/crl/iss-local.crl",
    ] {
        for _ in 0..30 {
            let answer = w.raw(Method::GET, path, None, "").await;
            assert!(answer.status != 429, "{answer:?}");
            assert_eq!(answer.header("ratelimit"), "");
        }
    }

    w.clock.advance(Duration::from_millis(500));
    let mut after = [200; 26];
    after[25] = 429;
    assert_eq!(statuses(&w, "192.0.2.1", KEY, 26).await, after);
    assert_eq!(beat().await.status, 200);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn failures_empty_the_budget_of_their_address_and_lock_out_no_valid_key(db: PgPool) {
    let w = limited(db).await;
    assert_eq!(statuses(&w, "192.0.2.1", KEY, 20).await, [200; 20]);
    assert_eq!(statuses(&w, "192.0.2.1", "wrong", 10).await, [401; 10]);
    let refused = ask(&w, "192.0.2.1", "wrong").await;
    refused.problem();
    assert_eq!((refused.status, refused.header("retry-after")), (429, "1"));
    assert!(
        refused.header("ratelimit").starts_with("\"failures\";r=0"),
        "{refused:?}"
    );
    // A valid key of the same address is let in during the flood.
    w.clock.advance(Duration::from_secs(1));
    for _ in 0..5 {
        assert!(statuses(&w, "192.0.2.1", "wrong", 40).await.contains(&429));
        ask(&w, "192.0.2.1", KEY).await.expect(200);
    }
    // A new address in front of the header of the same client changes nothing.
    assert_eq!(ask(&w, "203.0.113.7, 192.0.2.1", "wrong").await.status, 429);
    assert_eq!(ask(&w, "192.0.2.2", "wrong").await.status, 401);
    w.clock.advance(Duration::from_millis(50));
    assert_eq!(ask(&w, "192.0.2.1", "wrong").await.status, 401);
    assert_eq!(ask(&w, "192.0.2.1", "wrong").await.status, 429);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn nobody_is_believed_about_addresses_unless_listed(db: PgPool) {
    let w = World::with_api(db, &[("--rate-limit-enabled", "true"), ("--rate-limit-ip-burst", "10")]).await;
    for n in 0..10 {
        assert_eq!(ask(&w, &format!("192.0.2.{n}"), "wrong").await.status, 401);
    }
    assert_eq!(ask(&w, "192.0.2.99", "wrong").await.status, 429);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_is_open_to_everyone_has_a_budget_for_each_address_apart_from_failures(db: PgPool) {
    let w = limited(db).await;
    let ask = async || w.raw(Method::GET, "/api/v1/auth/info", None, "").await;
    for _ in 0..10 {
        ask().await.expect(200);
    }
    let refused = ask().await;
    assert_eq!(refused.status, 429);
    assert!(refused.header("ratelimit").starts_with("\"open\";r=0"), "{refused:?}");
    // Keys are looked at all the same.
    w.get(CHECK).await.expect(200);
}

/// Runs the load of `certctl-loadtest limits` through an address.
async fn flood(stage: &Stage, through: &HaProxy, seconds: u32) -> Value {
    let mut command = Command::new(programs().join("certctl-loadtest"));
    command
        .args(["limits", "--offered", "200", "--seconds", &seconds.to_string()])
        .env("CERTCTL_SERVER_URL", format!("http://{}", through.address))
        .env("CERTCTL_API_KEY", stage.api().key());
    let said = run_command(command).await.ok();
    let figures: Value = serde_json::from_str(said.lines().last().unwrap_or_default()).unwrap();
    println!("{figures}");
    figures
}

fn assert_one_budget(figures: &Value) {
    assert_eq!(figures["failed"], 0, "{figures}");
    let ratio = figures["ratio"].as_f64().unwrap();
    assert!((0.99..=1.01).contains(&ratio), "{figures}");
}

/// A counter of all replicas together.
async fn counted(stage: &Stage, name: &str) -> f64 {
    let mut sum = 0.0;
    for replica in ["api", "api-2", "api-3"] {
        let url = format!("http://{}/metrics", stage.platform.ops(replica));
        let text = reqwest::get(url).await.unwrap().text().await.unwrap();
        let lines = text.lines().filter_map(|line| line.strip_prefix(name));
        sum += lines.filter_map(|line| line.trim().parse::<f64>().ok()).sum::<f64>();
    }
    sum
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_give_one_budget_and_outlive_their_redis() {
    let dir = directory();
    let mut redis = Redis::start(dir.path()).await;
    let mut stage = Stage::set(|builder, _| {
        builder
            .apis(3)
            .env("api", "CERTCTL_RATE_LIMIT_ENABLED", "true")
            .env("api", "CERTCTL_REDIS_URL", redis.url())
            .without_demo()
    })
    .await;
    let proxy = HaProxy::start(dir.path(), stage.platform.apis(), "").await;

    assert_one_budget(&flood(&stage, &proxy, 8).await);
    // An answer of Redis may come late on a busy machine; but it is asked.
    assert!(counted(&stage, "rate_limit_fallback_total").await < 50.0);

    // Without it nobody is turned away who would not be by one replica, and the replicas limit for themselves.
    let without = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        redis.kill();
    };
    let (figures, ()) = tokio::join!(flood(&stage, &proxy, 7), without);
    assert_eq!(figures["failed"], 0, "{figures}");
    assert!(figures["limited"].as_u64() > Some(100), "{figures}");
    let fallbacks = counted(&stage, "rate_limit_fallback_total").await;
    assert!(fallbacks > 500.0, "{fallbacks}");
    for replica in ["api", "api-2", "api-3"] {
        let log = std::fs::read_to_string(stage.platform.service(replica).log()).unwrap();
        let told = log
            .matches("each process limits rates and keeps answers for itself")
            .count();
        assert_eq!(told, 1, "{replica} says it once");
    }

    // And without a restart of the replicas they are one again.
    redis.restart().await;
    eventually("the replicas to ask Redis again", Duration::from_secs(20), async || {
        let before = counted(&stage, "rate_limit_fallback_total").await;
        for _ in 0..6 {
            let asked = reqwest::Client::builder()
                .no_proxy()
                .build()?
                .get(format!("http://{}{CHECK}", proxy.address));
            asked.bearer_auth(stage.api().key()).send().await?.error_for_status()?;
        }
        let after = counted(&stage, "rate_limit_fallback_total").await;
        ensure!(after == before, "{} requests were not counted together", after - before);
        Ok(())
    })
    .await;
    // The budget is whole after two seconds.
    tokio::time::sleep(Duration::from_millis(2200)).await;
    assert_one_budget(&flood(&stage, &proxy, 6).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_hangs_costs_no_more_than_a_few_requests_a_moment() {
    let dir = directory();
    let redis = Redis::start(dir.path()).await;
    let stage = Stage::set(|builder, _| {
        builder
            .env("api", "CERTCTL_RATE_LIMIT_ENABLED", "true")
            .env("api", "CERTCTL_RATE_LIMIT_RPS", "10000")
            .env("api", "CERTCTL_RATE_LIMIT_BURST", "10000")
            .env("api", "CERTCTL_REDIS_URL", redis.url())
            .without_demo()
    })
    .await;
    let url = format!("{}{CHECK}", stage.api().url());
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let ask = async || {
        let began = tokio::time::Instant::now();
        let answer = http.get(&url).bearer_auth(stage.api().key()).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        began.elapsed()
    };
    ask().await;
    let pid = redis.pid().to_string();
    certctl_tests::run("kill", ["-STOP", &pid]).await.ok();
    let mut slow = 0;
    for _ in 0..100 {
        slow += usize::from(ask().await >= Duration::from_millis(45));
    }
    certctl_tests::run("kill", ["-CONT", &pid]).await.ok();
    assert!(slow <= 15, "{slow} of 100 requests waited for Redis");
}
