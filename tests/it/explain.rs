//! Why a certificate or a job stands where it stands: each situation is explained by its cause.

use std::{sync::Arc, time::Duration};

use certctl_model::time::Time;
use certctl_tests::world::{Host, World};
use serde_json::{Value, json};
use sqlx::PgPool;

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

async fn of_certificate(w: &World, id: &str) -> Value {
    w.get(&format!("/api/v1/certificates/{id}/explain")).await.expect(200)
}

#[track_caller]
fn is(explained: &Value, cause: &str, says: &str) {
    let summary = explained["summary"].as_str().unwrap();
    assert!(
        explained["cause"] == cause && summary.contains(says),
        "{cause}: {says:?} is wanted of {explained:#}"
    );
}

/// From when the planner plans the renewal of `mc-1`.
async fn planned(w: &World) -> Value {
    let text = w
        .text("SELECT utc_text(renew_at) FROM certificates WHERE id = 'mc-1'")
        .await;
    let at: Time = serde_json::from_value(json!(text)).unwrap();
    json!(at)
}

/// A world with an agent, its target and a certificate `mc-1` that waits for the agent's request.
async fn waiting(db: PgPool) -> (World, Arc<Host>) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    host.set_away(true);
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], json!({})).await;
    w.settle().await;
    (w, host)
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn why_a_certificate_is_or_is_not_renewed(db: PgPool) {
    let (w, host) = waiting(db).await;
    let agent = host.id();
    w.certificate("mc-none", &[], json!({})).await;
    let none = of_certificate(&w, "mc-none").await;
    is(&none, "NoTarget", "no enabled target");
    assert_eq!(
        none["would_change"],
        json!(["give it target_ids, or enable its targets"])
    );

    let asked = of_certificate(&w, "mc-1").await;
    let job = asked["jobs"][0]["id"].as_str().unwrap().to_owned();
    is(&asked, "InProgress", &job);
    is(
        &asked["jobs"][0],
        "AgentExpected",
        &format!("agent {agent} has to make a key and send a request"),
    );
    assert_eq!(
        w.get(&format!("/api/v1/jobs/{job}/explain")).await.expect(200),
        asked["jobs"][0]
    );
    w.clock.advance(HOUR);
    w.settle().await;
    let away = of_certificate(&w, "mc-1").await;
    is(&away["jobs"][0], "AgentAway", "has been offline since");
    assert_eq!(away["jobs"][0]["would_change"], json!([format!("start agent {agent}")]));
    w.clock.advance(DAY);
    w.settle().await;
    let failed = of_certificate(&w, "mc-1").await;
    is(&failed, "Retrying", "the last try failed");
    assert_eq!(failed["next"]["what"], "the next try is planned");
    let fact = failed["facts"].to_string();
    assert!(fact.contains("did not send a certification request"), "{fact}");
    assert_eq!(
        failed["next"]["at"],
        planned(&w).await,
        "what is told is what the planner goes by"
    );

    host.set_away(false);
    w.clock.advance(HOUR);
    w.settle().await;
    let fresh = of_certificate(&w, "mc-1").await;
    is(&fresh, "NotDue", "its renewal is due at");
    assert_eq!(fresh["jobs"], json!([]));
    let rule = fresh["facts"].to_string();
    assert!(
        rule.contains("renewal policy rp-default renews after 66.7 % of the lifetime"),
        "{rule}"
    );
    assert_eq!(fresh["next"]["at"], planned(&w).await);
    // As soon as it says so, it is planned.
    w.clock.advance(DAY * 80);
    is(&of_certificate(&w, "mc-1").await, "Due", "it is due");
    w.settle().await;
    assert_eq!(w.versions("mc-1").await.len(), 2);

    let manual = json!({ "id": "rp-manual", "name": "by hand", "auto_renew": false });
    w.post("/api/v1/renewal-policies", manual).await.expect(201);
    let of_manual = json!({ "renewal_policy_id": "rp-manual" });
    w.put("/api/v1/certificates/mc-1", of_manual).await.expect(200);
    let manual = of_certificate(&w, "mc-1").await;
    is(&manual, "NoAutoRenewal", "renewal policy rp-manual has no auto_renew");
    assert_eq!(manual["would_change"][0], "renew it by hand: certs renew mc-1");

    let revoke = |reason| w.post("/api/v1/certificates/mc-1/revoke", json!({ "reason": reason }));
    revoke("certificateHold").await.expect(200);
    let held = of_certificate(&w, "mc-1").await;
    is(&held, "Revoked", "for certificateHold");
    assert_eq!(held["would_change"], json!(["release it from hold"]));
    revoke("superseded").await.expect(200);
    is(&of_certificate(&w, "mc-1").await, "Revoked", "for superseded");
    w.delete("/api/v1/certificates/mc-1").await.expect(204);
    is(&of_certificate(&w, "mc-1").await, "Archived", "it was archived at");
    w.get("/api/v1/certificates/mc-x/explain").await.expect(404);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_a_job_waits_for(db: PgPool) {
    let (w, host) = waiting(db).await;
    let job = w.text("SELECT id FROM jobs").await;
    let path = format!("/api/v1/jobs/{job}/explain");
    let at = async |sets: &str, cause: &str, says: &str| {
        w.sql(&format!("UPDATE jobs SET {sets} WHERE id = '{job}'")).await;
        is(&w.get(&path).await.expect(200), cause, says);
    };
    const NOW: &str = "to_timestamp(1800000000)";
    at("status = 'Pending'", "SchedulerAway", "no scheduler runs").await;
    w.sql("INSERT INTO leases VALUES ('scheduler', 'here', 1, to_timestamp(1800000100))")
        .await;
    at("status = 'Pending'", "Queued", "its turn with issuer iss-local").await;
    at("status = 'Running', csr_der = ''", "Queued", "its turn").await;
    at(
        &format!("lease_until = {NOW} + interval '20 s'"),
        "InWork",
        "issuer iss-local is asked",
    )
    .await;
    let again = format!("lease_until = NULL, attempts = 1, last_error = 'busy', run_at = {NOW} + interval '9 s'");
    at(&again, "Retrying", "it is tried again at").await;
    let facts = w.get(&path).await.expect(200)["facts"].clone();
    assert_eq!(facts, json!(["it was tried 1 times of 3", "the last try: busy"]));
    w.sql("UPDATE issuers SET enabled = false").await;
    at("attempts = 1", "IssuerDisabled", "issuer iss-local is disabled").await;
    w.sql(&format!("INSERT INTO fences (mark, found_at) VALUES (1, {NOW})"))
        .await;
    at("attempts = 1", "Fenced", "restored from a backup").await;
    at(
        "status = 'AwaitingApproval'",
        "ApprovalMissing",
        "somebody has to approve it",
    )
    .await;
    let over = format!("finished_at = {NOW}, reason = 'too bad'");
    at(&format!("status = 'Failed', {over}"), "Failed", "too bad").await;
    let would = w.get(&path).await.expect(200)["would_change"].clone();
    assert_eq!(would, json!([format!("mend that, and retry it: jobs retry {job}")]));
    at("status = 'Cancelled'", "Cancelled", "too bad").await;
    at("status = 'Completed', reason = NULL", "Completed", "it was done at").await;
    w.get("/api/v1/jobs/j-x/explain").await.expect(404);

    // A deployment is its agent's.
    w.sql("DELETE FROM fences").await;
    w.sql("UPDATE issuers SET enabled = true").await;
    w.certificate("mc-2", &["tgt-1"], json!({})).await;
    host.set_away(false);
    w.settle().await;
    host.set_away(true);
    w.post("/api/v1/certificates/mc-2/deploy", json!({})).await.expect(202);
    let deployment = async || of_certificate(&w, "mc-2").await["jobs"][0].clone();
    is(
        &deployment().await,
        "AgentExpected",
        "has to put the certificate on the target",
    );
    w.sql("UPDATE jobs SET status = 'Running' WHERE type = 'Deployment' AND status = 'Pending'")
        .await;
    is(
        &deployment().await,
        "Deploying",
        "is putting the certificate on the target",
    );
    w.sql("UPDATE jobs SET agent_id = NULL, status = 'Pending' WHERE type = 'Deployment' AND status = 'Running'")
        .await;
    is(&deployment().await, "AgentAway", "its agent was deleted");
}
