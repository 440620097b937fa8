//! Who has to agree to what, on every way to a certificate.

use std::time::Duration;

use certctl_tests::world::{Host, KEY, World};
use http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

const DAY: Duration = Duration::from_secs(86_400);

async fn key(w: &World, name: &str, role: &str) -> String {
    let made = w.post("/api/v1/api-keys", json!({ "name": name, "role": role })).await;
    made.expect(201)["api_key"].as_str().unwrap().to_owned()
}

/// A world with a target, and a policy `rp-1` and a profile `prof-1` that want these approvals.
async fn world(db: PgPool, policy: Value, profile: Value) -> (World, std::sync::Arc<Host>) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.shared_target("tgt-1", &host).await;
    let with = |mut base: Value, more: Value| {
        base.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        base
    };
    let new = with(json!({ "id": "prof-1", "name": "strict" }), profile);
    w.post("/api/v1/profiles", new).await.expect(201);
    let new = with(
        json!({ "id": "rp-1", "name": "strict", "certificate_profile_id": "prof-1" }),
        policy,
    );
    w.post("/api/v1/renewal-policies", new).await.expect(201);
    (w, host)
}

async fn waiting(w: &World) -> String {
    w.settle().await;
    w.text("SELECT coalesce(min(id), '') FROM jobs WHERE status = 'AwaitingApproval'")
        .await
}

async fn approve(w: &World, job: &str, key: &str, body: Value) -> (u16, String) {
    let path = format!("/api/v1/jobs/{job}/approve");
    let answer = w.raw(Method::POST, &path, Some(key), body.to_string()).await;
    let said = answer.json();
    let word = said["status"].as_str().or(said["detail"].as_str()).unwrap_or_default();
    (answer.status, word.to_owned())
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn on_every_way_to_a_certificate_as_many_agree_as_the_stricter_of_policy_and_profile_wants(db: PgPool) {
    let (w, _host) = world(db, json!({}), json!({})).await;
    let (ann, bob) = (key(&w, "ann", "operator").await, key(&w, "bob", "operator").await);
    w.certificate("mc-1", &["tgt-1"], json!({ "renewal_policy_id": "rp-1" }))
        .await;
    w.settle().await;
    let mut versions = w.versions("mc-1").await.len();
    assert_eq!(versions, 1);
    let ways = ["by hand", "in bulk", "planned", "retried", "created", "retargeted"];
    for (policy, profile, of_person, of_plan) in [
        (("none", 1), ("none", 3), 0, 0),
        (("manual", 1), ("none", 1), 1, 0),
        (("none", 1), ("manual", 2), 2, 0),
        (("always", 1), ("manual", 2), 2, 1),
        (("manual", 2), ("always", 1), 2, 1),
        (("always", 2), ("none", 1), 2, 2),
    ] {
        let wants = |(approval, approvers): (&str, i32)| json!({ "approval": approval, "approvers": approvers });
        w.put("/api/v1/renewal-policies/rp-1", wants(policy)).await.expect(200);
        w.put("/api/v1/profiles/prof-1", wants(profile)).await.expect(200);
        for way in ways {
            let case = format!("{way}, policy {policy:?}, profile {profile:?}");
            let mut id = "mc-1".to_owned();
            let before = versions;
            match way {
                "by hand" => {
                    w.post("/api/v1/certificates/mc-1/renew", Value::Null).await.expect(202);
                }
                "in bulk" => {
                    w.post("/api/v1/bulk/renew", json!({ "ids": ["mc-1"] }))
                        .await
                        .expect(202);
                }
                "planned" => w.clock.advance(DAY * 85),
                "retried" => {
                    w.post("/api/v1/certificates/mc-1/renew", Value::Null).await.expect(202);
                    let job = w.text("SELECT id FROM jobs WHERE status = 'Pending'").await;
                    w.sql(&format!(
                        "UPDATE jobs SET status = 'Failed', reason = 'x', finished_at = run_at WHERE id = '{job}'"
                    ))
                    .await;
                    let retry = format!("/api/v1/jobs/{job}/retry");
                    w.post(&retry, Value::Null).await.expect(200);
                }
                _ => {
                    id = format!("mc-{}-{policy:?}-{profile:?}", &way[..2])
                        .to_lowercase()
                        .replace(['(', ')', '"', ',', ' '], "");
                    let targets: &[&str] = if way == "created" { &["tgt-1"] } else { &[] };
                    w.certificate(&id, targets, json!({ "renewal_policy_id": "rp-1" }))
                        .await;
                    if way == "retargeted" {
                        let path = format!("/api/v1/certificates/{id}");
                        w.put(&path, json!({ "target_ids": ["tgt-1"] })).await.expect(200);
                    }
                }
            }
            let needed = if way == "planned" { of_plan } else { of_person };
            let count = async |w: &World| w.versions(&id).await.len();
            let (start, end) = if id == "mc-1" { (before, before + 1) } else { (0, 1) };
            // Planned are the others too, whose time has come; they are agreed to as they come.
            for n in 0..needed {
                w.settle().await;
                let job = w
                    .text(&format!(
                        "SELECT coalesce(min(id), '') FROM jobs WHERE status = 'AwaitingApproval' AND certificate_id = '{id}'"
                    ))
                    .await;
                assert_ne!(job, "", "{case}: {n} of {needed}");
                assert_eq!(count(&w).await, start, "{case}");
                let by = [&ann, &bob][n as usize];
                let word = if n + 1 == needed {
                    "job_approved"
                } else {
                    "approval_given"
                };
                assert_eq!(approve(&w, &job, by, json!({})).await, (200, word.to_owned()), "{case}");
            }
            w.settle().await;
            assert_eq!(count(&w).await, end, "{case}");
            if id == "mc-1" {
                versions = end;
            } else {
                w.delete(&format!("/api/v1/certificates/{id}")).await.expect(204);
            }
        }
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn nobody_agrees_to_what_he_asked_for_and_nobody_twice(db: PgPool) {
    let (w, _host) = world(db, json!({ "approval": "manual", "approvers": 2 }), json!({})).await;
    let keys = [
        ("ann", key(&w, "ann", "operator").await),
        ("bob", key(&w, "bob", "operator").await),
        ("eve", key(&w, "eve", "admin").await),
    ];
    let [(_, ann), (_, bob), (_, eve)] = &keys;
    let viewer = key(&w, "vic", "viewer").await;
    let auditor = key(&w, "aud", "auditor").await;
    let new = json!({ "id": "mc-1", "common_name": "mc-1.example.net", "target_ids": ["tgt-1"], "renewal_policy_id": "rp-1" });
    let made = w
        .raw(
            Method::POST,
            "/api/v1/certificates",
            Some(ann.as_str()),
            new.to_string(),
        )
        .await;
    made.expect(201);
    let job = waiting(&w).await;
    let told = w
        .text("SELECT count(*)::text FROM notifications WHERE type = 'ApprovalRequested'")
        .await;
    assert_eq!(told, "2", "by mail and by webhook");
    for (who, word) in [(ann, "ann asked for job"), (&viewer, "approve"), (&auditor, "approve")] {
        let (status, said) = approve(&w, &job, who, json!({})).await;
        assert!(status == 403 && said.contains(word), "{status} {said}");
    }
    let shown = w.get(&format!("/api/v1/jobs/{job}/approval")).await.expect(200);
    assert_eq!((&shown["needed"], &shown["requested_by"]), (&json!(2), &json!("ann")));
    assert_eq!(shown["approvals"], json!([]));
    assert_eq!(
        (&shown["common_name"], &shown["target_ids"]),
        (&json!("mc-1.example.net"), &json!(["tgt-1"]))
    );
    assert!(
        shown["csr_pem"]
            .as_str()
            .unwrap()
            .starts_with("-----BEGIN CERTIFICATE REQUEST-----")
    );
    let pinned = json!({ "digest": shown["digest"], "reason": "change 7" });
    assert_eq!(
        approve(&w, &job, bob, pinned.clone()).await,
        (200, "approval_given".to_owned())
    );
    assert_eq!(
        approve(&w, &job, bob, pinned).await,
        (200, "approval_given".to_owned()),
        "the same person is no second one"
    );
    let other = json!({ "digest": "00" });
    let (status, said) = approve(&w, &job, eve, other).await;
    assert!(status == 409 && said.contains("has changed"), "{status} {said}");
    assert_eq!(
        approve(&w, &job, eve, json!({})).await,
        (200, "job_approved".to_owned())
    );
    w.settle().await;
    assert_eq!(w.versions("mc-1").await.len(), 1);
    let shown = w.get(&format!("/api/v1/jobs/{job}/approval")).await.expect(200);
    let given: Vec<_> = shown["approvals"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            (
                one["approver"].as_str().unwrap(),
                one["reason"].as_str().unwrap(),
                one["valid"].as_bool().unwrap(),
            )
        })
        .collect();
    assert_eq!(given, [("bob", "change 7", true), ("eve", "", true)]);
    let trail = w
        .text(
            "SELECT string_agg(actor || ' ' || action, ', ' ORDER BY sequence) FROM audit_events
              WHERE action LIKE 'job_appro%' AND resource_type = 'job'",
        )
        .await;
    assert_eq!(
        trail,
        format!(
            "{} job_approval_requested, bob job_approval_given, bob job_approval_given, eve job_approved",
            { w.text("SELECT agent_id FROM jobs LIMIT 1").await }
        )
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_changed_after_it_was_approved_needs_a_new_approval(db: PgPool) {
    let (w, host) = world(db, json!({ "approval": "always", "approvers": 2 }), json!({})).await;
    let (ann, bob) = (key(&w, "ann", "operator").await, key(&w, "bob", "operator").await);
    w.certificate(
        "mc-1",
        &["tgt-1"],
        json!({ "renewal_policy_id": "rp-1", "sans": ["a.example.net"] }),
    )
    .await;
    let job = waiting(&w).await;
    let given = |status: &str| (200, status.to_owned());
    let path = "/api/v1/certificates/mc-1";
    // Each time somebody agrees to what is there, and it changes before the other one does: that is never two.
    w.target("tgt-2", &host).await;
    let other = json!({ "id": "iss-other", "name": "other", "type": "local" });
    w.post("/api/v1/issuers", other).await.expect(201);
    let profile = "/api/v1/profiles/prof-1";
    for (n, (path, change)) in [
        (path, json!({ "sans": ["a.example.net", "b.example.net"] })),
        (path, json!({ "target_ids": ["tgt-1", "tgt-2"] })),
        // The rules of the profile are part of it.
        (profile, json!({ "max_ttl_seconds": 86_400 })),
        (path, json!({ "certificate_profile_id": "" })),
        (path, json!({ "issuer_id": "iss-other" })),
        (
            path,
            json!({ "issuer_id": "iss-local", "sans": ["a.example.net"], "target_ids": ["tgt-1"] }),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let who = [&ann, &bob][n % 2];
        assert_eq!(
            approve(&w, &job, who, json!({})).await,
            given("approval_given"),
            "{change}"
        );
        w.put(path, change).await.expect(200);
    }
    assert_eq!(approve(&w, &job, &ann, json!({})).await, given("approval_given"));
    assert_eq!(approve(&w, &job, &bob, json!({})).await, given("job_approved"));
    // While it is signed the API refuses a change; and past the API, the signer refuses what nobody agreed to.
    let problem = w.put(path, json!({ "sans": ["evil.example.net"] })).await.problem();
    assert_eq!(problem.status, 409);
    w.sql("UPDATE certificates SET sans = '{evil.example.net}' WHERE id = 'mc-1'")
        .await;
    w.settle().await;
    let failed = w.get(&format!("/api/v1/jobs/{job}")).await.expect(200);
    assert_eq!(failed["status"], "Failed");
    let why = failed["last_error"].as_str().unwrap();
    assert!(why.contains("is not what was approved"), "{why}");
    assert!(w.versions("mc-1").await.is_empty());
    // Past every check but the signer's: a job that was put to work by hand.
    w.post(&format!("/api/v1/jobs/{job}/retry"), Value::Null)
        .await
        .expect(200);
    let next = waiting(&w).await;
    w.sql(&format!("UPDATE jobs SET status = 'Running' WHERE id = '{next}'"))
        .await;
    w.settle().await;
    assert_eq!(
        w.get(&format!("/api/v1/jobs/{next}")).await.expect(200)["status"],
        "Failed"
    );
    assert!(w.versions("mc-1").await.is_empty());
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn in_an_emergency_an_administrator_goes_on_alone_and_says_why(db: PgPool) {
    let (w, _host) = world(db, json!({ "approval": "always", "approvers": 3 }), json!({})).await;
    let ann = key(&w, "ann", "operator").await;
    w.certificate("mc-1", &["tgt-1"], json!({ "renewal_policy_id": "rp-1" }))
        .await;
    let job = waiting(&w).await;
    let override_with = |reason: Value| json!({ "override": true, "reason": reason });
    let (status, said) = approve(&w, &job, &ann, override_with(json!("fire"))).await;
    assert!(status == 403 && said.contains("administrators"), "{said}");
    let (status, said) = approve(&w, &job, KEY, override_with(Value::Null)).await;
    assert!(status == 422 && said.contains("reason"), "{said}");
    assert!(w.versions("mc-1").await.is_empty());
    // The shared key asked for it, too.
    assert_eq!(
        approve(&w, &job, KEY, override_with(json!("the old one leaked"))).await,
        (200, "job_approved".to_owned())
    );
    w.settle().await;
    assert_eq!(w.versions("mc-1").await.len(), 1);
    let told = w
        .text("SELECT message FROM notifications WHERE type = 'ApprovalOverridden' AND channel = 'Webhook'")
        .await;
    assert!(told.contains("the old one leaked") && told.contains(&job), "{told}");
    let trail = "SELECT details->>'reason' FROM audit_events WHERE action = 'job_approval_overridden'";
    assert_eq!(w.text(trail).await, "the old one leaked");
}
