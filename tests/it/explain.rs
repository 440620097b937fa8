//! Why a certificate or a job stands where it stands: each situation is explained by its cause.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use certctl_model::{explain::Cause, time::Time};
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
    w.shared_target("tgt-1", &host).await;
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
        json!([
            "give it target_ids, or enable its targets",
            "send a certification request: certctl-cli issue --renew mc-none --csr FILE"
        ])
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

const NOW: &str = "to_timestamp(1800000000)";

/// What makes a certificate due, a job of it that is open, and one that failed a minute ago.
const DUE: &str = "UPDATE certificate_versions SET not_before = {now} - interval '40 days', not_after = {now} + interval '7 days'
                    WHERE certificate_id = '{id}';
                   UPDATE certificates SET not_before = {now} - interval '40 days', not_after = {now} + interval '7 days',
                                           renew_at = {now} - interval '1 hour' WHERE id = '{id}';";
const JOB: &str = "INSERT INTO jobs (id, type, certificate_id, agent_id, target_id, status, run_at, created_at)
                   VALUES ('{id}', 'Renewal', '{id}', 'a-1', 't-1', 'Pending', {now}, {now});";
const FAILED: &str = "INSERT INTO jobs (id, type, certificate_id, agent_id, status, reason, run_at, created_at, finished_at)
                      VALUES ('{id}', 'Renewal', '{id}', 'a-1', 'Failed', 'the signer refused', {now}, {now}, {now} - interval '1 minute');
                      UPDATE certificates SET failed_at = {now} - interval '1 minute', failure = 'the signer refused' WHERE id = '{id}';";

/// A name; what is done to a certificate of which a share is over, `{id}` standing for it and for its job; what is
/// explained; the cause; and what is said.
const SITUATIONS: &[(&str, &[&str], &str, &str, &str)] = &[
    (
        "archived",
        &["UPDATE certificates SET archived_at = {now} WHERE id = '{id}'"],
        "certificates",
        "Archived",
        "it was archived at",
    ),
    (
        "revoked for good",
        &["UPDATE certificates SET revoked_at = {now}, revocation_reason = 'keyCompromise' WHERE id = '{id}'"],
        "certificates",
        "Revoked",
        "for keyCompromise",
    ),
    (
        "on hold",
        &["UPDATE certificates SET revoked_at = {now}, revocation_reason = 'certificateHold' WHERE id = '{id}'"],
        "certificates",
        "Revoked",
        "for certificateHold",
    ),
    (
        "no target",
        &["DELETE FROM certificate_targets WHERE certificate_id = '{id}'"],
        "certificates",
        "NoTarget",
        "no enabled target",
    ),
    (
        "a target that is disabled",
        &["UPDATE certificate_targets SET target_id = 't-off' WHERE certificate_id = '{id}'"],
        "certificates",
        "NoTarget",
        "no enabled target",
    ),
    (
        "being renewed",
        &[JOB],
        "certificates",
        "InProgress",
        "a new version is under way: {id}",
    ),
    (
        "one of two agents is asked",
        &["INSERT INTO certificate_targets VALUES ('{id}', 't-2')", JOB],
        "certificates",
        "InProgress",
        "{id}",
    ),
    (
        "a domain that is forbidden",
        &[
            "INSERT INTO policy_violations VALUES ('pv-{id}', 'rule-1', '{id}', 'b.example is not allowed', 'Error', {now})",
        ],
        "certificates",
        "PolicyForbids",
        "policy rule domains (Error): b.example is not allowed",
    ),
    (
        "a critical rule",
        &["INSERT INTO policy_violations VALUES ('pv-{id}', 'rule-2', '{id}', 'it has no owner', 'Critical', {now})"],
        "certificates",
        "PolicyForbids",
        "policy rule metadata (Critical)",
    ),
    (
        "names that cannot be certified",
        &["UPDATE certificates SET sans = ARRAY['f*.example'], names_certifiable = false WHERE id = '{id}'"],
        "certificates",
        "UncertifiableNames",
        "names that were imported cannot be certified here: f*.example",
    ),
    (
        "a deployment that failed",
        &["INSERT INTO jobs (id, type, certificate_id, agent_id, target_id, version_id, status, reason, attempts, run_at,
                             created_at, finished_at)
           VALUES ('{id}', 'Deployment', '{id}', 'a-1', 't-1', 'cv-{id}', 'Failed', 'nginx is broken', 3, {now}, {now}, {now})"],
        "certificates",
        "NotDeployed",
        "its deployment failed",
    ),
    (
        "another certificate is served",
        &[
            "UPDATE targets SET config = '{\"endpoints\": [\"a.example:443\"]}' WHERE id = 't-1'",
            "UPDATE certificate_targets SET deployed_version_id = 'cv-{id}', deployed_at = {now} WHERE certificate_id = '{id}'",
            "INSERT INTO endpoints (id, certificate_id, target_id, endpoint, address, outcome, detail, since, checked_at)
             VALUES ('ep-{id}', '{id}', 't-1', 'a.example:443', '192.0.2.1:443', 'Differs', 'another one', {now}, {now})",
        ],
        "certificates",
        "Drifted",
        "what was deployed is not served",
    ),
    (
        "a warning forbids nothing",
        &["INSERT INTO policy_violations VALUES ('pv-{id}', 'rule-1', '{id}', 'mind', 'Warning', {now})"],
        "certificates",
        "NotDue",
        "its renewal is due at",
    ),
    (
        "a rule that is mended forbids nothing",
        &["INSERT INTO policy_violations VALUES ('pv-{id}', 'rule-1', '{id}', 'was', 'Error', {now}, {now})"],
        "certificates",
        "NotDue",
        "its renewal is due at",
    ),
    (
        "not renewed by itself",
        &["UPDATE certificates SET renewal_policy_id = 'rp-hand' WHERE id = '{id}'"],
        "certificates",
        "NoAutoRenewal",
        "renewal policy rp-hand has no auto_renew",
    ),
    (
        "never issued, and not by itself",
        &[
            "UPDATE certificates SET renewal_policy_id = 'rp-hand', current_version_id = NULL, not_before = NULL, not_after = NULL WHERE id = '{id}'",
        ],
        "certificates",
        "NoAutoRenewal",
        "it is not issued by itself",
    ),
    (
        "as long as its issuer",
        &[
            DUE,
            "UPDATE certificates SET issuer_id = 'iss-ends' WHERE id = '{id}'",
            "UPDATE certificate_versions SET issuer_id = 'iss-ends', not_after = {now} + interval '1 day' WHERE id = 'cv-{id}'",
        ],
        "certificates",
        "EndsWithIssuer",
        "the certificate of issuer iss-ends ends at",
    ),
    (
        "due, and it failed a minute ago",
        &[DUE, FAILED],
        "certificates",
        "Retrying",
        "the next one is planned from",
    ),
    ("not due", &[], "certificates", "NotDue", "its renewal is due at"),
    (
        "due",
        &[DUE],
        "certificates",
        "Due",
        "planned when certificates are looked at next",
    ),
    (
        "over",
        &[
            DUE,
            "UPDATE certificates SET not_after = {now} - interval '1 day' WHERE id = '{id}'",
        ],
        "certificates",
        "Due",
        "it is due",
    ),
    (
        "due, and its last try is long ago",
        &[
            DUE,
            FAILED,
            "UPDATE jobs SET finished_at = {now} - interval '2 hours' WHERE id = '{id}'",
        ],
        "certificates",
        "Due",
        "it is due",
    ),
    (
        "held by a freeze of its policy",
        &[
            DUE,
            "UPDATE certificates SET renewal_policy_id = 'rp-frozen' WHERE id = '{id}'",
        ],
        "certificates",
        "Frozen",
        "by freeze \"of a policy\"",
    ),
    (
        "held by a freeze of a group",
        &[
            DUE,
            "UPDATE certificate_targets SET target_id = 't-2' WHERE certificate_id = '{id}'",
            "UPDATE certificate_versions SET agent_id = 'a-2' WHERE certificate_id = '{id}'",
        ],
        "certificates",
        "Frozen",
        "by freeze \"of a group\"",
    ),
    (
        "outside of the windows of its policy",
        &[
            DUE,
            "UPDATE certificates SET renewal_policy_id = 'rp-windows' WHERE id = '{id}'",
        ],
        "certificates",
        "Frozen",
        "held until 2027-01-16T22:00:00Z by the maintenance windows of renewal policy rp-windows",
    ),
    (
        "a freeze that it would not outlive",
        &[
            DUE,
            "UPDATE certificates SET renewal_policy_id = 'rp-frozen', not_after = {now} + interval '3 days' WHERE id = '{id}'",
        ],
        "certificates",
        "Due",
        "it is due",
    ),
    (
        "not due, in a freeze",
        &["UPDATE certificates SET renewal_policy_id = 'rp-frozen' WHERE id = '{id}'"],
        "certificates",
        "NotDue",
        "its renewal is due at",
    ),
    (
        "its agent has to send a request",
        &[JOB, "UPDATE jobs SET status = 'AwaitingCSR' WHERE id = '{id}'"],
        "jobs",
        "AgentExpected",
        "agent a-1 has to make a key and send a request",
    ),
    (
        "its agent is away",
        &[
            JOB,
            "UPDATE jobs SET status = 'AwaitingCSR', agent_id = 'a-away' WHERE id = '{id}'",
        ],
        "jobs",
        "AgentAway",
        "agent a-away has to make a key and send a request, and has been offline since",
    ),
    (
        "its agent was deleted",
        &[
            JOB,
            "UPDATE jobs SET status = 'AwaitingCSR', agent_id = NULL WHERE id = '{id}'",
        ],
        "jobs",
        "AgentAway",
        "its agent was deleted",
    ),
    (
        "approval is missing",
        &[
            JOB,
            "UPDATE jobs SET status = 'AwaitingApproval', csr_der = '' WHERE id = '{id}'",
        ],
        "jobs",
        "ApprovalMissing",
        "somebody has to approve it",
    ),
    ("new", &[JOB], "jobs", "Queued", "its turn with issuer iss-local"),
    (
        "waits for its issuer",
        &[
            JOB,
            "UPDATE jobs SET status = 'Running', csr_der = '' WHERE id = '{id}'",
        ],
        "jobs",
        "Queued",
        "its turn with issuer iss-local",
    ),
    (
        "its issuer is asked",
        &[
            JOB,
            "UPDATE jobs SET status = 'Running', csr_der = '', lease_until = {now} + interval '20 s' WHERE id = '{id}'",
        ],
        "jobs",
        "InWork",
        "issuer iss-local is asked",
    ),
    (
        "its worker died",
        &[
            JOB,
            "UPDATE jobs SET status = 'Running', csr_der = '', lease_until = {now} - interval '1 s' WHERE id = '{id}'",
        ],
        "jobs",
        "Queued",
        "its turn",
    ),
    (
        "its issuer is down",
        &[
            JOB,
            "UPDATE jobs SET status = 'Running', csr_der = '', run_at = {now} + interval '9 s', last_error = 'the signer: no answer' WHERE id = '{id}'",
        ],
        "jobs",
        "Retrying",
        "it is tried again at",
    ),
    (
        "its issuer is disabled",
        &["UPDATE certificates SET issuer_id = 'iss-off' WHERE id = '{id}'", JOB],
        "jobs",
        "IssuerDisabled",
        "issuer iss-off is disabled",
    ),
    (
        "as many for its domain",
        &[
            JOB,
            "UPDATE jobs SET status = 'Running', csr_der = '', held_for = 'example.org', run_at = {now} + interval '2 days' WHERE id = '{id}'",
        ],
        "jobs",
        "BudgetUsedUp",
        "for names of example.org",
    ),
    (
        "as many as its issuer takes are under way",
        &[
            "UPDATE certificates SET issuer_id = 'iss-few' WHERE id = '{id}'",
            JOB,
            "UPDATE jobs SET status = 'Running', csr_der = '' WHERE id = '{id}'",
        ],
        "jobs",
        "BudgetUsedUp",
        "issuer iss-few has as many requests as its budget allows",
    ),
    (
        "as many as its issuer takes in an hour were given",
        &[
            "UPDATE certificates SET issuer_id = 'iss-slow' WHERE id = '{id}'",
            JOB,
            "UPDATE jobs SET status = 'Running', csr_der = '' WHERE id = '{id}'",
            "INSERT INTO orders VALUES ('{id}', 'iss-slow', 1, {now} - interval '10 minutes')",
        ],
        "jobs",
        "BudgetUsedUp",
        "issuer iss-slow has as many requests",
    ),
    (
        "issued",
        &[
            JOB,
            "UPDATE jobs SET status = 'Completed', csr_der = '', finished_at = {now} WHERE id = '{id}'",
        ],
        "jobs",
        "Completed",
        "it was done at",
    ),
    (
        "the profile refuses",
        &[
            JOB,
            "UPDATE jobs SET status = 'Failed', finished_at = {now}, reason = 'the profile allows no RSA keys' WHERE id = '{id}'",
        ],
        "jobs",
        "Failed",
        "the profile allows no RSA keys",
    ),
    (
        "rejected",
        &[
            JOB,
            "UPDATE jobs SET status = 'Cancelled', finished_at = {now}, reason = 'not this one' WHERE id = '{id}'",
        ],
        "jobs",
        "Cancelled",
        "not this one",
    ),
    (
        "its agent has to deploy",
        &[
            JOB,
            "UPDATE jobs SET type = 'Deployment', version_id = 'cv-{id}' WHERE id = '{id}'",
        ],
        "jobs",
        "AgentExpected",
        "agent a-1 has to put the certificate on the target",
    ),
    (
        "its agent is away and has to deploy",
        &[
            JOB,
            "UPDATE jobs SET type = 'Deployment', version_id = 'cv-{id}', agent_id = 'a-away' WHERE id = '{id}'",
        ],
        "jobs",
        "AgentAway",
        "has to put the certificate on the target, and has been offline since",
    ),
    (
        "being deployed",
        &[
            JOB,
            "UPDATE jobs SET type = 'Deployment', version_id = 'cv-{id}', status = 'Running' WHERE id = '{id}'",
        ],
        "jobs",
        "Deploying",
        "agent a-1 is putting the certificate on the target",
    ),
    (
        "to be looked at",
        &[JOB, "UPDATE jobs SET type = 'Validation' WHERE id = '{id}'"],
        "jobs",
        "Queued",
        "the endpoints of its target are looked at next",
    ),
    (
        "looked at",
        &[
            JOB,
            "UPDATE jobs SET type = 'Validation', status = 'Running', lease_until = {now} + interval '9 s' WHERE id = '{id}'",
        ],
        "jobs",
        "InWork",
        "a scheduler looks at the endpoints",
    ),
    (
        "to be looked at again",
        &[
            JOB,
            "UPDATE jobs SET type = 'Validation', status = 'Running', run_at = {now} + interval '2 s' WHERE id = '{id}'",
        ],
        "jobs",
        "Retrying",
        "the endpoints are looked at again at",
    ),
    (
        "something else is served",
        &[
            JOB,
            "UPDATE jobs SET type = 'Validation', status = 'Failed', finished_at = {now}, reason = '192.0.2.1:443: serves another' WHERE id = '{id}'",
        ],
        "jobs",
        "Failed",
        "192.0.2.1:443: serves another",
    ),
    (
        "names outside the constraints of the authority",
        &[
            DUE,
            "INSERT INTO issuers (id, name, type, config, enabled, created_at, updated_at)
             VALUES ('iss-narrow', 'narrow', 'local', '{}', true, {now}, {now})",
            "INSERT INTO authorities VALUES ('iss-narrow', '', '{narrow}', {now} + interval '1 year', {now})",
            "UPDATE certificates SET issuer_id = 'iss-narrow' WHERE id = '{id}'",
        ],
        "certificates",
        "IssuerForbids",
        "is outside the name constraints of the authority",
    ),
    // From here on for everybody.
    (
        "a freeze for all",
        &[
            DUE,
            "INSERT INTO freezes VALUES ('fr-all', 'for all', '', {now}, {now} + interval '2 days', {now}, {now})",
        ],
        "certificates",
        "Frozen",
        "by freeze \"for all\"",
    ),
    (
        "no scheduler",
        &[JOB, "DELETE FROM leases"],
        "jobs",
        "SchedulerAway",
        "no scheduler runs",
    ),
    (
        "nobody looks",
        &[JOB, "UPDATE jobs SET type = 'Validation' WHERE id = '{id}'"],
        "jobs",
        "SchedulerAway",
        "no scheduler runs",
    ),
    (
        "the database was restored",
        &[JOB, "INSERT INTO fences (mark, found_at) VALUES (1, {now})"],
        "jobs",
        "Fenced",
        "restored from a backup",
    ),
];

/// PEM of an authority that certifies names below `corp.example` alone.
fn narrow_authority() -> String {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.name_constraints = Some(rcgen::NameConstraints {
        permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("corp.example".to_owned())],
        excluded_subtrees: vec![],
    });
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn in_more_than_forty_situations_the_cause_is_named(db: PgPool) {
    let w = World::new(db).await;
    let narrow = narrow_authority();
    let run = async |id: &str, sql: &str| {
        let sql = sql
            .replace("{id}", id)
            .replace("{now}", NOW)
            .replace("{narrow}", &narrow);
        for statement in sql.split(';').filter(|one| !one.trim().is_empty()) {
            w.sql(statement).await;
        }
    };
    run(
        "",
        "INSERT INTO agents (id, name, hostname, api_key_hash, last_heartbeat_at, registered_at, updated_at)
         SELECT id, id, id, id, {now}, {now}, {now} FROM unnest(array['a-1', 'a-2', 'a-away']) id;
         UPDATE agents SET offline_since = {now} - interval '1 hour' WHERE id = 'a-away';
         INSERT INTO agent_groups (id, name, created_at, updated_at) VALUES ('ag-1', 'second', {now}, {now});
         INSERT INTO agent_group_members VALUES ('ag-1', 'a-2', 'include', {now});
         INSERT INTO targets (id, name, type, agent_id, enabled, created_at, updated_at)
         VALUES ('t-1', '1', 'NGINX', 'a-1', true, {now}, {now}), ('t-2', '2', 'NGINX', 'a-2', true, {now}, {now}),
                ('t-off', 'off', 'NGINX', 'a-1', false, {now}, {now});
         INSERT INTO renewal_policies (id, name, auto_renew, created_at, updated_at)
         VALUES ('rp-hand', 'by hand', false, {now}, {now}), ('rp-frozen', 'frozen', true, {now}, {now}),
                ('rp-windows', 'windows', true, {now}, {now});
         UPDATE renewal_policies SET maintenance_windows = array['Sat 22:00-04:00'] WHERE id = 'rp-windows';
         INSERT INTO freezes VALUES
            ('fr-1', 'of a policy', '', {now} - interval '1 hour', {now} + interval '3 days', {now}, {now}),
            ('fr-2', 'of a group', '', {now} - interval '1 hour', {now} + interval '3 days', {now}, {now}),
            ('fr-3', 'to come', '', {now} + interval '1 hour', {now} + interval '3 days', {now}, {now}),
            ('fr-4', 'over', '', {now} - interval '2 hours', {now}, {now}, {now});
         INSERT INTO freeze_scopes VALUES ('fr-1', NULL, 'rp-frozen'), ('fr-2', 'ag-1', NULL);
         INSERT INTO issuers (id, name, type, config, enabled, created_at, updated_at)
         VALUES ('iss-off', 'off', 'local', '{}', false, {now}, {now}),
                ('iss-ends', 'ends', 'local', '{}', true, {now}, {now}),
                ('iss-few', 'few', 'local', '{\"max_under_way\": 0}', true, {now}, {now}),
                ('iss-slow', 'slow', 'local', '{\"max_per_hour\": 1}', true, {now}, {now});
         INSERT INTO authorities VALUES ('iss-ends', '', '', {now} + interval '1 day', {now});
         INSERT INTO policy_rules (id, name, type, severity, config, created_at, updated_at)
         VALUES ('rule-1', 'domains', 'AllowedDomains', 'Error', '{}', {now}, {now}),
                ('rule-2', 'metadata', 'RequiredMetadata', 'Critical', '{}', {now}, {now});
         INSERT INTO leases VALUES ('scheduler', 'here', 1, {now} + interval '1 minute')",
    )
    .await;
    let mut causes = BTreeSet::new();
    for (number, (name, given, of, cause, says)) in SITUATIONS.iter().enumerate() {
        let id = format!("mc-{number}");
        run(
            &id,
            "INSERT INTO certificates (id, name, common_name, owner_id, team_id, issuer_id, renewal_policy_id, created_at,
                                       updated_at)
             VALUES ('{id}', '{id}', '{id}.example', 'o-unassigned', 't-unassigned', 'iss-local', 'rp-default', {now}, {now});
             INSERT INTO certificate_targets VALUES ('{id}', 't-1');
             INSERT INTO certificate_versions (id, certificate_id, job_id, issuer_id, agent_id, version, serial_number,
                                               not_before, not_after, fingerprint_sha256, spki_sha256, cert_pem, chain_pem,
                                               csr_der, key_algorithm, key_size, created_at)
             VALUES ('cv-{id}', '{id}', 'j-{id}', 'iss-local', 'a-1', 1, md5('{id}'), {now} - interval '10 days',
                     {now} + interval '37 days', md5('{id}'), md5('{id}'), '', '', '', 'ECDSA', 256, {now});
             UPDATE certificates SET current_version_id = 'cv-{id}', not_before = {now} - interval '10 days',
                                     not_after = {now} + interval '37 days', renew_at = {now} + interval '21 days'
              WHERE id = '{id}'",
        )
        .await;
        for sql in *given {
            run(&id, sql).await;
        }
        let explained = w.get(&format!("/api/v1/{of}/{id}/explain")).await.expect(200);
        println!("{number} {}: {}", name, explained["summary"]);
        is(&explained, cause, &says.replace("{id}", &id));
        causes.insert(*cause);
    }
    assert!(SITUATIONS.len() >= 40);
    let all: BTreeSet<&str> = Cause::ALL.iter().map(|cause| cause.as_str()).collect();
    assert_eq!(causes, all, "every cause has a situation");
}
