//! Jobs that wait for a person, and jobs as they are found.

use std::time::Duration;

use certctl_model::{
    audit::Actor,
    job::{AwaitingCsr, Job},
};
use certctl_store::{Tx, jobs};
use certctl_tests::{
    requests,
    world::{Host, World},
};
use serde_json::{Value, json};
use sqlx::PgPool;

/// A certificate `mc-1` whose agent's request waits for approval, and the job.
async fn waiting(db: PgPool) -> (World, std::sync::Arc<Host>, String) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    host.set_away(true);
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], Value::Null).await;
    w.settle().await;
    let job = w.text("SELECT id FROM jobs WHERE status = 'AwaitingCSR'").await;
    hold_back(&w, &job).await;
    (w, host, job)
}

/// Hands the agent's request in and has it wait for approval.
async fn hold_back(w: &World, job: &str) {
    let by = Actor::system();
    let mut tx = Tx::begin(&w.db, &by, w.clock.now()).await.unwrap();
    let awaiting: Job<AwaitingCsr> = jobs::lock(&mut tx, &job.parse().unwrap()).await.unwrap();
    let pem = requests::good("mc-1.example.net");
    let der = pem::parse(pem).unwrap().into_contents();
    jobs::keep_request(&mut tx, &awaiting.facts.id, &der).await.unwrap();
    jobs::apply(&mut tx, awaiting.csr_needs_approval(&by)).await.unwrap();
    tx.commit().await.unwrap();
}

async fn trail(w: &World, action: &str) -> String {
    w.text(&format!(
        "SELECT string_agg(actor || ' ' || resource_id || ' ' || coalesce(details->>'reason', '-'), ', ' ORDER BY sequence)
           FROM audit_events WHERE action = '{action}'"
    ))
    .await
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_job_that_nobody_approves_fails_after_a_week(db: PgPool) {
    let (w, _host, job) = waiting(db).await;
    let path = format!("/api/v1/jobs/{job}");
    w.clock.advance(Duration::from_secs(7 * 86_400 - 1));
    w.settle().await;
    assert_eq!(w.get(&path).await.expect(200)["status"], "AwaitingApproval");
    w.clock.advance(Duration::from_secs(1));
    w.settle().await;
    let failed = w.get(&path).await.expect(200);
    assert_eq!(
        (&failed["status"], &failed["last_error"]),
        (&json!("Failed"), &json!("nobody approved it within 7days"))
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_job_that_is_approved_goes_on_to_a_certificate(db: PgPool) {
    let (w, _host, job) = waiting(db).await;
    w.settle().await;
    let path = format!("/api/v1/jobs/{job}");
    assert_eq!(
        w.get(&path).await.expect(200)["status"],
        "AwaitingApproval",
        "nothing happens before"
    );
    assert!(w.versions("mc-1").await.is_empty());
    let answer = w
        .post(&format!("{path}/approve"), json!({ "reason": "change 7" }))
        .await
        .expect(200);
    assert_eq!(answer, json!({ "status": "job_approved" }));
    assert_eq!(w.get(&path).await.expect(200)["status"], "Running");
    w.settle().await;
    assert_eq!(w.get(&path).await.expect(200)["status"], "Completed");
    assert_eq!(w.versions("mc-1").await.len(), 1);
    assert_eq!(trail(&w, "job_approved").await, format!("api-key-user {job} change 7"));
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_job_that_is_rejected_is_over_and_says_why(db: PgPool) {
    let (w, _host, job) = waiting(db).await;
    let path = format!("/api/v1/jobs/{job}");
    let answer = w
        .post(&format!("{path}/reject"), json!({ "reason": "not this week" }))
        .await
        .expect(200);
    assert_eq!(answer, json!({ "status": "job_rejected" }));
    let rejected = w.get(&path).await.expect(200);
    assert_eq!(
        (
            &rejected["status"],
            &rejected["last_error"],
            &rejected["error_message"],
            &rejected["completed_at"]
        ),
        (
            &json!("Cancelled"),
            &json!("not this week"),
            &json!("not this week"),
            &json!(w.clock.now())
        )
    );
    assert!(w.versions("mc-1").await.is_empty());
    assert_eq!(
        trail(&w, "job_rejected").await,
        format!("api-key-user {job} not this week")
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_decision_needs_no_body_and_no_reason(db: PgPool) {
    let (w, _host, job) = waiting(db).await;
    w.post(&format!("/api/v1/jobs/{job}/reject"), Value::Null)
        .await
        .expect(200);
    let rejected = w.get(&format!("/api/v1/jobs/{job}")).await.expect(200);
    assert_eq!(rejected["last_error"], "rejected by api-key-user");
    w.post("/api/v1/certificates/mc-1/renew", Value::Null).await.expect(202);
    w.settle().await;
    let next = w.text("SELECT id FROM jobs WHERE status = 'AwaitingCSR'").await;
    hold_back(&w, &next).await;
    w.post(&format!("/api/v1/jobs/{next}/approve"), Value::Null)
        .await
        .expect(200);
    assert_eq!(trail(&w, "job_approved").await, format!("api-key-user {next} -"));
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn only_what_waits_for_approval_is_decided_and_only_once(db: PgPool) {
    let (w, _host, job) = waiting(db).await;
    let before = w.contents().await;
    for verb in ["approve", "reject"] {
        let problem = w
            .post(&format!("/api/v1/jobs/j-none/{verb}"), Value::Null)
            .await
            .problem();
        assert!(
            problem.status == 404 && problem.detail.contains("j-none"),
            "{problem:?}"
        );
        let path = format!("/api/v1/jobs/{job}/{verb}");
        let problem = w.post(&path, json!({ "reason": "x\u{7}" })).await.problem();
        assert_eq!((problem.status, problem.errors[0].field.as_str()), (422, "reason"));
        let problem = w.post(&path, json!({ "reason": 7 })).await.problem();
        assert_eq!((problem.status, problem.errors[0].field.as_str()), (400, "reason"));
    }
    assert_eq!(w.contents().await, before);
    // Two who decide at the same instant: one of them does.
    let (approve, reject) = (
        format!("/api/v1/jobs/{job}/approve"),
        format!("/api/v1/jobs/{job}/reject"),
    );
    let (a, b) = tokio::join!(w.post(&approve, Value::Null), w.post(&reject, Value::Null));
    let mut statuses = [a.status, b.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409], "{a:?} {b:?}");
    for path in [approve, reject] {
        let problem = w.post(&path, Value::Null).await.problem();
        assert_eq!(
            (problem.status, problem.kind.as_str()),
            (409, "urn:certctl:problem:wrong-state")
        );
        assert!(problem.detail.contains("AwaitingApproval"), "{problem:?}");
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_waits_for_approval_ends_with_its_certificate_and_is_not_approved_without_a_request(db: PgPool) {
    let (w, _host, job) = waiting(db).await;
    w.sql("UPDATE jobs SET csr_der = NULL").await;
    let problem = w
        .post(&format!("/api/v1/jobs/{job}/approve"), Value::Null)
        .await
        .problem();
    assert!(
        problem.status == 409 && problem.detail.contains("request"),
        "{problem:?}"
    );
    w.delete("/api/v1/certificates/mc-1").await.expect(204);
    let problem = w
        .post(&format!("/api/v1/jobs/{job}/approve"), Value::Null)
        .await
        .problem();
    assert_eq!(problem.status, 409);
    assert_eq!(
        w.get(&format!("/api/v1/jobs/{job}")).await.expect(200)["status"],
        "Cancelled"
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn jobs_are_found_by_state_type_certificate_agent_target_and_time(db: PgPool) {
    let w = World::new(db).await;
    let (one, two) = (w.host("web-1").await, w.host("web-2").await);
    for (n, host) in [(1, &one), (2, &two)] {
        w.target(&format!("tgt-{n}"), host).await;
        w.certificate(&format!("mc-{n}"), &[&format!("tgt-{n}")], Value::Null)
            .await;
        if n == 1 {
            w.settle().await;
            w.clock.advance(std::time::Duration::from_secs(10));
        }
    }
    let now = w.clock.now();
    let (first, second) = (one.id().to_owned(), two.id().to_owned());
    for (query, total) in [
        (String::new(), 3),
        ("status=Completed".to_owned(), 2),
        ("status=Completed,Pending".to_owned(), 3),
        ("status=failed,%20Pending".to_owned(), 1),
        ("type=Deployment".to_owned(), 1),
        ("type=Deployment,Issuance".to_owned(), 3),
        ("certificate_id=mc-1".to_owned(), 2),
        (format!("agent_id={first}"), 2),
        (format!("agent_id={second}&status=Pending"), 1),
        ("target_id=tgt-1".to_owned(), 1),
        ("target_id=tgt-2".to_owned(), 0),
        (format!("created_before={now}"), 2),
        (format!("created_after={}", now - std::time::Duration::from_secs(1)), 1),
    ] {
        let page = w.get(&format!("/api/v1/jobs?{query}")).await.expect(200);
        assert_eq!(page["total"], json!(total), "{query}: {page}");
    }
    for query in ["status=Completed,Sleeping", "status=Completed,", "type=,"] {
        let problem = w.get(&format!("/api/v1/jobs?{query}")).await.problem();
        assert_eq!(problem.status, 400, "{query}");
    }
}
