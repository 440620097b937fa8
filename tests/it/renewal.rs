//! Renewal by itself: in time, once, with a new key, and never of what is over.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use certctl_tests::world::World;
use serde_json::json;
use sqlx::PgPool;

const DAY: Duration = Duration::from_secs(86_400);

async fn serials(w: &World, id: &str) -> Vec<String> {
    let text = |v: &serde_json::Value| v["serial_number"].as_str().unwrap().to_owned();
    w.versions(id).await.iter().map(text).collect()
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_certificate_of_five_minutes_is_renewed_for_an_hour_and_what_is_served_never_ends(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    let profile = json!({ "id": "prof-short", "name": "short", "max_ttl_seconds": 300 });
    w.post("/api/v1/profiles", profile).await.expect(201);
    w.certificate(
        "mc-short",
        &["tgt-1"],
        json!({ "certificate_profile_id": "prof-short" }),
    )
    .await;
    w.settle().await;
    let mut served = HashSet::new();
    for step in 0..240 {
        w.clock.advance(Duration::from_secs(15));
        w.settle().await;
        let leaf = host.served("tgt-1").expect("something is served");
        let now = w.clock.now();
        assert!(
            leaf.not_before <= now && now < leaf.not_after,
            "step {step}: {} at {now}",
            leaf.not_after
        );
        served.insert(leaf.serial.to_string());
    }
    let versions = w.versions("mc-short").await;
    assert!(
        (12..=25).contains(&versions.len()),
        "{} versions in an hour",
        versions.len()
    );
    assert_eq!(served.len(), versions.len(), "every version was served");
    let keys: HashSet<_> = versions.iter().map(|v| v["spki_sha256"].as_str().unwrap()).collect();
    assert_eq!(keys.len(), versions.len(), "no key was used twice");
    let issued = w
        .text("SELECT count(*) || ' ' || count(DISTINCT job_id) FROM ledger WHERE job_id LIKE 'j-%'")
        .await;
    assert_eq!(
        issued,
        format!("{0} {0}", versions.len()),
        "nothing was signed that is not a version"
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_certificate_of_ninety_days_is_renewed_when_two_thirds_are_over_and_not_before(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], json!({})).await;
    w.settle().await;
    let certificate = w.get("/api/v1/certificates/mc-1").await.expect(200);
    let due: certctl_model::time::Time = certificate["renew_at"].as_str().unwrap().parse().unwrap();
    let days = due.since(w.clock.now()).as_secs_f64() / 86_400.0;
    assert!((60.0..63.1).contains(&days), "due after {days} days");
    w.clock.advance(due.since(w.clock.now()) - Duration::from_secs(1));
    w.settle().await;
    assert_eq!(w.versions("mc-1").await.len(), 1, "a second before");
    w.clock.advance(Duration::from_secs(1));
    w.settle().await;
    assert_eq!(w.versions("mc-1").await.len(), 2, "at the due time");
    assert_eq!(
        host.served("tgt-1").unwrap().serial.to_string(),
        serials(&w, "mc-1").await[0]
    );
    w.settle().await;
    assert_eq!(w.versions("mc-1").await.len(), 2, "once");
    let trail = w.text("SELECT string_agg(action, ' ' ORDER BY sequence) FROM audit_events WHERE resource_id = 'mc-1'");
    let then = "certificate_issued deployment_job_created deployment_completed";
    assert_eq!(
        trail.await,
        format!("certificate_created issuance_job_created {then} renewal_job_created {then}")
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_policy_without_auto_renewal_lets_a_certificate_end(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    let policy = json!({ "id": "rp-never", "name": "never", "auto_renew": false });
    w.post("/api/v1/renewal-policies", policy).await.expect(201);
    w.certificate("mc-1", &["tgt-1"], json!({ "renewal_policy_id": "rp-never" }))
        .await;
    w.settle().await;
    for _ in 0..10 {
        w.clock.advance(DAY * 10);
        w.settle().await;
    }
    assert_eq!(w.versions("mc-1").await.len(), 1);
    assert_eq!(w.status("mc-1").await, "Expired");
    // Asking for it is another matter.
    w.post("/api/v1/certificates/mc-1/renew", json!({})).await.expect(202);
    w.settle().await;
    assert_eq!(
        (w.versions("mc-1").await.len(), w.status("mc-1").await.as_str()),
        (2, "Active")
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_failed_issuance_is_planned_again_after_the_retry_interval(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    let policy = json!({ "id": "rp-1", "name": "hourly", "retry_interval_seconds": 3600 });
    w.post("/api/v1/renewal-policies", policy).await.expect(201);
    w.certificate("mc-1", &["tgt-1"], json!({ "renewal_policy_id": "rp-1" }))
        .await;
    // The issuer is turned off after the request was taken.
    w.sql("UPDATE issuers SET enabled = false").await;
    w.settle().await;
    assert_eq!(w.status("mc-1").await, "Failed");
    assert_eq!(w.text("SELECT reason FROM jobs").await, "issuer iss-local is disabled");
    w.sql("UPDATE issuers SET enabled = true").await;
    w.clock.advance(Duration::from_secs(3599));
    w.settle().await;
    assert_eq!(w.status("mc-1").await, "Failed", "not before the interval is over");
    w.clock.advance(Duration::from_secs(1));
    w.settle().await;
    assert_eq!(w.status("mc-1").await, "Active");
    assert!(host.served("tgt-1").is_some());
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn an_agent_that_is_away_finds_its_job_when_it_is_back(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], json!({})).await;
    w.settle().await;
    host.set_away(true);
    w.clock.advance(DAY * 64);
    w.settle().await;
    w.clock.advance(DAY / 2);
    w.settle().await;
    assert_eq!(w.status("mc-1").await, "RenewalInProgress");
    let agent = w.get(&format!("/api/v1/agents/{}", host.id())).await.expect(200);
    assert_eq!(agent["status"], "Offline");
    let open = "SELECT string_agg(type || ' ' || status, ',') FROM jobs WHERE finished_at IS NULL";
    assert_eq!(w.text(open).await, "Renewal AwaitingCSR");
    host.set_away(false);
    w.settle().await;
    assert_eq!(
        (w.versions("mc-1").await.len(), w.status("mc-1").await.as_str()),
        (2, "Active")
    );
    assert_eq!(
        host.served("tgt-1").unwrap().serial.to_string(),
        serials(&w, "mc-1").await[0]
    );
    let agent = w.get(&format!("/api/v1/agents/{}", host.id())).await.expect(200);
    assert_eq!(agent["status"], "Online");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn two_agents_of_one_certificate_each_have_their_own_key_and_version(db: PgPool) {
    let w = World::new(db).await;
    let (a, b) = (w.host("web-a").await, w.host("web-b").await);
    w.target("tgt-a", &a).await;
    w.target("tgt-b", &b).await;
    w.certificate("mc-1", &["tgt-a", "tgt-b"], json!({})).await;
    w.settle().await;
    for (round, versions) in [("issued", 2), ("renewed", 4)] {
        let mut agents = BTreeMap::<String, usize>::new();
        for version in w.versions("mc-1").await {
            *agents
                .entry(version["agent_id"].as_str().unwrap().to_owned())
                .or_default() += 1;
        }
        let half = versions / 2;
        assert_eq!(
            agents,
            BTreeMap::from([(a.id().to_owned(), half), (b.id().to_owned(), half)]),
            "{round}"
        );
        let (at_a, at_b) = (a.served("tgt-a").unwrap(), b.served("tgt-b").unwrap());
        assert_ne!(at_a.spki_sha256, at_b.spki_sha256, "{round}");
        let newest: HashSet<_> = serials(&w, "mc-1").await.into_iter().take(2).collect();
        assert_eq!(
            newest,
            HashSet::from([at_a.serial.to_string(), at_b.serial.to_string()]),
            "{round}"
        );
        assert_eq!(w.status("mc-1").await, "Active", "{round}");
        w.clock.advance(DAY * 64);
        w.settle().await;
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_certificate_waits_without_targets_and_starts_when_it_is_given_some(db: PgPool) {
    let w = World::new(db).await;
    let (a, b) = (w.host("web-a").await, w.host("web-b").await);
    w.target("tgt-a", &a).await;
    w.target("tgt-b", &b).await;
    w.certificate("mc-1", &[], json!({})).await;
    w.settle().await;
    assert_eq!(
        (
            w.status("mc-1").await.as_str(),
            w.text("SELECT count(*)::text FROM jobs").await.as_str()
        ),
        ("Pending", "0")
    );
    w.put("/api/v1/certificates/mc-1", json!({ "target_ids": ["tgt-a"] }))
        .await
        .expect(200);
    w.settle().await;
    let first = a.served("tgt-a").expect("it started");
    // A target of another agent needs another key; what the first one serves stays within reach of its agent.
    w.put("/api/v1/certificates/mc-1", json!({ "target_ids": ["tgt-a", "tgt-b"] }))
        .await
        .expect(200);
    w.settle().await;
    let second = b.served("tgt-b").expect("it started there too");
    assert_ne!(first.spki_sha256, second.spki_sha256);
    assert_eq!(w.status("mc-1").await, "Active");
    assert_eq!(
        w.text("SELECT count(*)::text FROM jobs WHERE finished_at IS NULL")
            .await,
        "0"
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_is_revoked_or_archived_is_never_renewed(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    for id in ["revoked", "archived", "live"] {
        w.target(&format!("tgt-{id}"), &host).await;
        w.certificate(&format!("mc-{id}"), &[&format!("tgt-{id}")], json!({}))
            .await;
    }
    w.settle().await;
    w.post(
        "/api/v1/certificates/mc-revoked/revoke",
        json!({ "reason": "superseded" }),
    )
    .await
    .expect(200);
    w.delete("/api/v1/certificates/mc-archived").await.expect(204);
    for _ in 0..10 {
        w.clock.advance(DAY * 10);
        w.settle().await;
    }
    for (id, versions, status) in [
        ("revoked", 1, "Revoked"),
        ("archived", 1, "Archived"),
        ("live", 2, "Active"),
    ] {
        let id = format!("mc-{id}");
        assert_eq!(
            (w.versions(&id).await.len(), w.status(&id).await.as_str()),
            (versions, status),
            "{id}"
        );
        let renewed = w.post(&format!("/api/v1/certificates/{id}/renew"), json!({})).await;
        assert_eq!(
            renewed.status,
            if status == "Active" { 202 } else { 409 },
            "{renewed:?}"
        );
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn the_owner_is_told_once_of_a_renewal(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    let owner = json!({ "id": "o-1", "name": "Ops", "email": "ops@example.net" });
    w.post("/api/v1/owners", owner).await.expect(201);
    w.certificate("mc-1", &["tgt-1"], json!({ "owner_id": "o-1" })).await;
    w.settle().await;
    w.post("/api/v1/certificates/mc-1/renew", json!({})).await.expect(202);
    w.settle().await;
    w.settle().await;
    let news = w.news.lock().unwrap().clone();
    let renewals: Vec<_> = news
        .iter()
        .filter(|event| event["event_type"] == "RenewalSuccess")
        .collect();
    assert_eq!(renewals.len(), 1, "{news:?}");
    assert_eq!(renewals[0]["certificate_id"], "mc-1");
    let pending = w
        .text("SELECT count(*)::text FROM notifications WHERE status = 'pending'")
        .await;
    assert_eq!(pending, "0");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn an_agent_that_is_gone_does_not_keep_the_others_from_renewing(db: PgPool) {
    let w = World::new(db).await;
    let (gone, stays) = (w.host("web-a").await, w.host("web-b").await);
    w.target("tgt-a", &gone).await;
    w.target("tgt-b", &stays).await;
    w.post(
        "/api/v1/profiles",
        json!({ "id": "prof-short", "name": "short", "max_ttl_seconds": 300 }),
    )
    .await
    .expect(201);
    w.certificate(
        "mc-1",
        &["tgt-a", "tgt-b"],
        json!({ "certificate_profile_id": "prof-short" }),
    )
    .await;
    w.settle().await;
    gone.set_away(true);
    for step in 0..80 {
        w.clock.advance(Duration::from_secs(15));
        w.settle().await;
        let leaf = stays.served("tgt-b").unwrap();
        assert!(w.clock.now() < leaf.not_after, "step {step}: {}", leaf.not_after);
    }
    let of = |agent: &str| format!("SELECT count(*)::text FROM certificate_versions WHERE agent_id = '{agent}'");
    assert_eq!(w.text(&of(gone.id())).await, "1");
    let versions: usize = w.text(&of(stays.id())).await.parse().unwrap();
    assert!((5..=9).contains(&versions), "{versions} versions in twenty minutes");
    let open = "SELECT string_agg(type || ' ' || status, ',') FROM jobs WHERE finished_at IS NULL";
    assert_eq!(w.text(open).await, "Renewal AwaitingCSR", "one job waits for the other");
    gone.set_away(false);
    w.settle().await;
    assert!(w.clock.now() < gone.served("tgt-a").unwrap().not_after);
    assert_eq!(w.text(open).await, "");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn an_agent_that_always_fails_is_asked_at_the_retry_interval_and_the_others_in_time(db: PgPool) {
    let w = World::new(db).await;
    let (fails, works) = (w.host("web-a").await, w.host("web-b").await);
    w.target("tgt-a", &fails).await;
    w.target("tgt-b", &works).await;
    for (path, new) in [
        (
            "profiles",
            json!({ "id": "prof-short", "name": "short", "max_ttl_seconds": 300 }),
        ),
        (
            "renewal-policies",
            json!({ "id": "rp-1", "name": "slow", "retry_interval_seconds": 600 }),
        ),
    ] {
        w.post(&format!("/api/v1/{path}"), new).await.expect(201);
    }
    let more = json!({ "certificate_profile_id": "prof-short", "renewal_policy_id": "rp-1" });
    w.certificate("mc-1", &["tgt-a", "tgt-b"], more).await;
    w.settle().await;
    fails.set_away(true);
    for step in 0..120 {
        w.clock.advance(Duration::from_secs(15));
        w.settle().await;
        let job = "SELECT min(id) FROM jobs WHERE status = 'AwaitingCSR'";
        let job = w.text(job).await;
        if !job.is_empty() {
            let failed = json!({ "status": "Failed", "error": "the disk is full" });
            let path = format!("/api/v1/agents/{}/jobs/{job}/status", fails.id());
            w.post(&path, failed).await.expect(200);
        }
        let leaf = works.served("tgt-b").unwrap();
        assert!(w.clock.now() < leaf.not_after, "step {step}: {}", leaf.not_after);
    }
    let tries = w
        .text("SELECT count(*)::text FROM jobs WHERE status = 'Failed' AND reason = 'the disk is full'")
        .await;
    assert_eq!(tries, "3", "in half an hour");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_certificate_that_moves_to_another_host_waits_for_the_old_one_no_more(db: PgPool) {
    let w = World::new(db).await;
    let (old, new) = (w.host("web-a").await, w.host("web-b").await);
    w.target("tgt-a", &old).await;
    w.target("tgt-b", &new).await;
    w.certificate("mc-1", &["tgt-a"], json!({})).await;
    w.settle().await;
    old.set_away(true);
    w.clock.advance(DAY * 64);
    w.settle().await;
    w.put("/api/v1/certificates/mc-1", json!({ "target_ids": ["tgt-b"] }))
        .await
        .expect(200);
    w.settle().await;
    assert!(new.served("tgt-b").is_some());
    assert_eq!(w.status("mc-1").await, "Active");
    let jobs = "SELECT string_agg(status || coalesce(': ' || reason, ''), ', ') FROM jobs
                 WHERE status NOT IN ('Completed')";
    assert_eq!(
        w.text(jobs).await,
        "Cancelled: the certificate is not put there any more"
    );
    old.set_away(false);
    w.settle().await;
    assert_eq!(w.versions("mc-1").await.len(), 2);
}
