//! Relying parties and networks that attack the public listener.

use std::time::Duration;

use anyhow::ensure;
use certctl_tests::{beside::Redis, eventually, run, world::World};
use certctl_x509::ocsp::{CertStatus, IssuerId, OcspAnswerError, request_for, status_of};
use http::Method;
use rasn_ocsp::OcspRequest;
use serde_json::{Value, json};
use sqlx::PgPool;

const SOON: Duration = Duration::from_secs(10);

/// What Redis answers to a command, a line for each value.
async fn redis(redis: &Redis, command: &[&str]) -> Vec<String> {
    let url = redis.url();
    let all = [&["-u", url.as_str()], command].concat();
    run("redis-cli", all).await.ok().lines().map(str::to_owned).collect()
}

/// Puts an entry there.
async fn put(at: &Redis, name: &str, entry: &str) {
    assert_eq!(redis(at, &["SET", name, entry]).await, ["OK"]);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_forged_or_old_ocsp_response_in_redis_is_not_served(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web").await;
    w.target("t-web", &host).await;
    w.certificate("mc-web", &["t-web"], Value::Null).await;
    w.settle().await;
    let serial = w.versions("mc-web").await.remove(0)["serial_number"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let issuer = IssuerId::of_certificate(&w.get("/ca/iss-local.crt").await.octets).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let shared = Redis::start(dir.path()).await;
    let url = shared.url();
    let one = w.edge("one", &["--redis-url", &url]).await;
    let status = async |edge: &str| {
        let post = w.http.post(format!("{edge}/ocsp/iss-local"));
        let post = post.body(request_for(&issuer, &serial, None));
        status_of(&w.ask("an OCSP request", post).await.octets, &serial)
    };
    assert_eq!(status(&one.url).await, Ok(CertStatus::Good));
    let name = eventually("the response to be in Redis", SOON, async || {
        let names = redis(&shared, &["KEYS", "certctl:ocsp:response:*"]).await;
        ensure!(names.iter().any(|name| !name.is_empty()), "nothing is there");
        Ok(names[0].clone())
    })
    .await;
    let good = redis(&shared, &["GET", &name]).await.remove(0);
    let words = async || redis(&shared, &["HGETALL", "certctl:ocsp:words"]).await;
    let words_before = words().await;

    w.clock.advance(Duration::from_secs(5));
    w.post(
        "/api/v1/certificates/mc-web/revoke",
        json!({ "reason": "keyCompromise" }),
    )
    .await
    .expect(200);
    let is_revoked = |status: &Result<CertStatus, OcspAnswerError>| matches!(status, Ok(CertStatus::Revoked { .. }));
    eventually("the first to say so", SOON, async || {
        let said = status(&one.url).await;
        ensure!(is_revoked(&said), "{said:?}");
        Ok(())
    })
    .await;

    // A second replica, which has nothing in memory and has heard nothing but that it is connected.
    let two = w.edge("two", &["--redis-url", &url]).await;
    let (_, json) = good.split_once(':').unwrap();
    let mut forged: Value = serde_json::from_str(json).unwrap();
    let part = words_before
        .chunks(2)
        .find(|pair| pair[0] != "all")
        .map(|pair| pair[0].clone());
    let now = words().await;
    let word = |of: &str| now.chunks(2).find(|pair| pair[0] == of).map(|pair| json!(pair[1]));
    forged["words"] = json!([word("all"), part.as_deref().and_then(word)]);
    forged["answer"]["next_update"] = json!(4_000_000_000i64);
    let (mac, _) = good.split_once(':').unwrap();
    for entry in [
        forged.to_string(),
        format!("{mac}:{forged}"),
        format!("{}:{forged}", "0".repeat(64)),
    ] {
        put(&shared, &name, &entry).await;
        let said = status(&two.url).await;
        assert!(is_revoked(&said), "{said:?} from {entry}");
    }

    // An authentic entry and the words it was stored with, put back by a writer in Redis.
    let three = w.edge("three", &["--redis-url", &url]).await;
    assert_eq!(redis(&shared, &["DEL", "certctl:ocsp:words"]).await, ["1"]);
    let pairs: Vec<&str> = words_before.iter().map(String::as_str).collect();
    redis(&shared, &[&["HSET", "certctl:ocsp:words"], &pairs[..]].concat()).await;
    put(&shared, &name, &good).await;
    let said = status(&three.url).await;
    assert!(is_revoked(&said), "{said:?} from an entry that was put back");

    // Nothing is served past the end of the response itself, in memory or from Redis.
    w.clock.advance(Duration::from_secs(3_600));
    put(&shared, &name, &good).await;
    let said = status(&one.url).await;
    assert!(is_revoked(&said), "{said:?} after the end of the response");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn the_key_of_shared_ocsp_responses_is_readable_by_the_api_only(db: PgPool) {
    for (role, readable) in [
        ("api", true),
        ("signer", false),
        ("scheduler", false),
        ("notifier", false),
    ] {
        let all: Vec<bool> = sqlx::query_scalar(
            "SELECT has_table_privilege('certctl_' || $1, 'ocsp_cache_key', p)
               FROM unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE}'::text[]) WITH ORDINALITY AS t (p, n) ORDER BY n",
        )
        .bind(role)
        .fetch_all(&db)
        .await
        .unwrap();
        assert_eq!(all, [readable, false, false, false, false], "{role}");
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn more_certificates_than_a_responder_answers_are_unauthorized(db: PgPool) {
    let w = World::new(db).await;
    let issuer = IssuerId::of_certificate(&w.get("/ca/iss-local.crt").await.octets).unwrap();
    let one = request_for(&issuer, &"0abc".parse().unwrap(), None);
    let mut request: OcspRequest = rasn::der::decode(&one).unwrap();
    let single = request.tbs_request.request_list[0].clone();
    for (count, begin) in [(16, &[0x30, 0x82][..]), (17, &[0x30, 0x03, 0x0a, 0x01, 0x06])] {
        request.tbs_request.request_list = vec![single.clone(); count];
        let octets = rasn::der::encode(&request).unwrap();
        let answer = w.raw(Method::POST, "/ocsp/iss-local", None, octets).await;
        assert_eq!((answer.status, &answer.octets[..begin.len()]), (200, begin), "{count}");
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_crl_is_packed_once_whoever_asks_and_preconditions_are_honoured(db: PgPool) {
    let w = World::new(db).await;
    w.settle().await;
    let get = async |headers: &[(&str, &str)]| {
        w.with_headers(Method::GET, "/crl/iss-local.crl", None, headers, "")
            .await
    };
    let plain = get(&[]).await;
    assert_eq!(plain.status, 200);
    let packed = [("accept-encoding", "gzip")];
    let (a, b, c) = tokio::join!(get(&packed), get(&packed), get(&packed));
    for answer in [&a, &b, &c] {
        assert_eq!((answer.status, answer.header("content-encoding")), (200, "gzip"));
        assert_eq!(answer.octets, a.octets);
    }
    assert_eq!(w.app.packed.made(), 1);
    let tag = plain.header("etag").to_owned();
    let modified = plain.header("last-modified").to_owned();
    for (name, value, status) in [
        ("if-match", tag.as_str(), 200),
        ("if-match", "*", 200),
        ("if-match", "\"another\"", 412),
        ("if-unmodified-since", modified.as_str(), 200),
        ("if-unmodified-since", "Fri, 01 Jan 2021 00:00:00 GMT", 412),
    ] {
        assert_eq!(get(&[(name, value)]).await.status, status, "{name}: {value}");
    }
    let answer = get(&[
        ("if-match", "\"another\""),
        ("if-none-match", &tag),
        ("range", "bytes=0-9"),
    ])
    .await;
    assert_eq!(answer.status, 412, "it is looked at first");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn an_import_of_too_many_blocks_is_refused_before_they_are_read(db: PgPool) {
    let w = World::new(db).await;
    let pem = "-----BEGIN CERTIFICATE-----\n".repeat(500_000);
    let answer = w.post("/api/v1/certificates/import", json!({ "pem": pem })).await;
    assert_eq!(answer.problem().status, 422);
    assert!(answer.octets.len() < 2_000, "{} octets", answer.octets.len());
    assert!(
        answer.problem().detail.contains("10000 blocks"),
        "{:?}",
        answer.problem()
    );
}
