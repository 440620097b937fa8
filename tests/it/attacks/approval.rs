//! Operators who try to approve what they took part in.

use std::{sync::Arc, time::Duration};

use certctl_tests::{
    foreign::Authority,
    requests,
    world::{Host, KEY, World},
};
use http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

const DAY: Duration = Duration::from_secs(86_400);

/// A world with a target, the policies `rp-strict` (approval as given) and `rp-loose` (none), and keys of persons.
struct Office {
    w: World,
    host: Arc<Host>,
    ann: String,
    bob: String,
    carl: String,
    eve: String,
}

impl Office {
    async fn open(db: PgPool, approval: &str, approvers: i32) -> Self {
        let w = World::new(db).await;
        let host = w.host("web-1").await;
        w.target("tgt-1", &host).await;
        for (id, approval) in [("rp-strict", approval), ("rp-loose", "none")] {
            let new = json!({ "id": id, "name": id, "approval": approval, "approvers": approvers });
            w.post("/api/v1/renewal-policies", new).await.expect(201);
        }
        let (ann, bob) = (key(&w, "ann", "operator").await, key(&w, "bob", "operator").await);
        let (carl, eve) = (key(&w, "carl", "operator").await, key(&w, "eve", "admin").await);
        Self {
            w,
            host,
            ann,
            bob,
            carl,
            eve,
        }
    }

    async fn as_(&self, who: &str, method: Method, path: &str, body: Value) -> (u16, Value) {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let answer = self.w.raw(method, path, Some(who), body).await;
        (answer.status, answer.json())
    }

    /// Ann creates `mc-1` under the strict policy.
    async fn requested(&self) {
        let new = json!({ "id": "mc-1", "common_name": "mc-1.example.net", "target_ids": ["tgt-1"],
                          "renewal_policy_id": "rp-strict" });
        let (status, said) = self.as_(&self.ann, Method::POST, "/api/v1/certificates", new).await;
        assert_eq!(status, 201, "{said}");
    }

    async fn put(&self, who: &str, change: Value) -> (u16, Value) {
        self.as_(who, Method::PUT, "/api/v1/certificates/mc-1", change).await
    }

    async fn renew(&self, who: &str) {
        let path = "/api/v1/certificates/mc-1/renew";
        let (status, said) = self.as_(who, Method::POST, path, Value::Null).await;
        assert_eq!(status, 202, "{said}");
    }

    /// The job that waits for approval, or nothing.
    async fn waiting(&self) -> String {
        self.w.settle().await;
        self.w
            .text("SELECT coalesce(min(id), '') FROM jobs WHERE status = 'AwaitingApproval'")
            .await
    }

    async fn approve(&self, who: &str, job: &str) -> (u16, String) {
        let path = format!("/api/v1/jobs/{job}/approve");
        let (status, said) = self.as_(who, Method::POST, &path, json!({})).await;
        let word = said["status"].as_str().or(said["detail"].as_str()).unwrap_or_default();
        (status, word.to_owned())
    }

    async fn refuses(&self, who: &str, job: &str, why: &str) {
        let (status, said) = self.approve(who, job).await;
        assert!(status == 403 && said.contains(why), "{status} {said}");
    }

    async fn approves(&self, who: &str, job: &str) {
        assert_eq!(self.approve(who, job).await, (200, "job_approved".to_owned()));
    }

    async fn versions(&self) -> usize {
        self.w.settle().await;
        self.w.versions("mc-1").await.len()
    }
}

async fn key(w: &World, name: &str, role: &str) -> String {
    let made = w.post("/api/v1/api-keys", json!({ "name": name, "role": role })).await;
    made.expect(201)["api_key"].as_str().unwrap().to_owned()
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn an_operator_cannot_submit_the_request_that_it_approves(db: PgPool) {
    let o = Office::open(db, "always", 1).await;
    o.host.set_away(true);
    o.requested().await;
    o.w.settle().await;
    let csr = json!({ "certificate_id": "mc-1", "csr_pem": requests::good("mc-1.example.net") });
    let path = format!("/api/v1/agents/{}/csr", o.host.id());
    for (who, why) in [
        (&*o.bob, "the agent itself"),
        (&*o.eve, "the agent itself"),
        (KEY, "a key of its own"),
    ] {
        let (status, said) = o.as_(who, Method::POST, &path, csr.clone()).await;
        assert!(
            status == 403 && said["detail"].as_str().unwrap().contains(why),
            "{status} {said}"
        );
    }
    let awaiting =
        o.w.text("SELECT count(*)::text FROM jobs WHERE status = 'AwaitingCSR'")
            .await;
    assert_eq!(awaiting, "1");
    // An administrator who makes a key for the agent can act as the agent, and then does not approve.
    let new = json!({ "name": "spare", "role": "agent", "agent_id": o.host.id() });
    let (status, made) = o.as_(&o.eve, Method::POST, "/api/v1/api-keys", new).await;
    assert_eq!(status, 201, "{made}");
    let (status, said) = o.as_(made["api_key"].as_str().unwrap(), Method::POST, &path, csr).await;
    assert_eq!(status, 202, "{said}");
    let job = o.waiting().await;
    o.refuses(&o.eve, &job, "created a key of its agent").await;
    // Nor when the key is gone.
    let path = format!("/api/v1/api-keys/{}", made["id"].as_str().unwrap());
    let (status, said) = o.as_(&o.eve, Method::DELETE, &path, Value::Null).await;
    assert_eq!(status, 204, "{said}");
    o.refuses(&o.eve, &job, "created a key of its agent").await;
    o.approves(&o.bob, &job).await;
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn the_signer_keeps_to_what_was_required_at_the_request(db: PgPool) {
    let o = Office::open(db, "manual", 1).await;
    o.requested().await;
    let job = o.waiting().await;
    // Past the API: nobody requested it, and nothing is required any more.
    let requester = format!("SELECT requested_by FROM jobs WHERE id = '{job}'");
    assert_eq!(o.w.text(&requester).await, "ann");
    o.w.sql(&format!("UPDATE jobs SET requested_by = NULL WHERE id = '{job}'"))
        .await;
    assert_eq!(o.w.text(&requester).await, "ann", "it stays");
    o.w.sql("UPDATE renewal_policies SET approval = 'none' WHERE id = 'rp-strict'")
        .await;
    o.w.sql(&format!("UPDATE jobs SET status = 'Running' WHERE id = '{job}'"))
        .await;
    o.w.settle().await;
    let failed = o.w.get(&format!("/api/v1/jobs/{job}")).await.expect(200);
    assert_eq!(failed["status"], "Failed", "{failed}");
    assert_eq!(o.versions().await, 0);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_switch_to_weaker_rules_needs_configure_and_the_approval_in_force(db: PgPool) {
    let o = Office::open(db, "manual", 1).await;
    o.requested().await;
    let job = o.waiting().await;
    let (status, said) = o.put(&o.ann, json!({ "renewal_policy_id": "rp-loose" })).await;
    assert!(
        status == 403 && said["detail"].as_str().unwrap().contains("configure"),
        "{said}"
    );
    let (status, said) = o.put(&o.eve, json!({ "renewal_policy_id": "rp-loose" })).await;
    assert_eq!(status, 200, "{said}");
    // What was requested under the strict policy needs its approval still, and so does what is requested now.
    o.refuses(&o.ann, &job, "ann asked for job").await;
    o.refuses(&o.eve, &job, "took part").await;
    let cancel = format!("/api/v1/jobs/{job}/cancel");
    o.w.post(&cancel, Value::Null).await.expect(200);
    o.renew(&o.eve).await;
    let job = o.waiting().await;
    assert_ne!(job, "", "the approval in force before the switch is still required");
    o.refuses(&o.eve, &job, "eve asked for job").await;
    assert_eq!(o.versions().await, 0);
    o.approves(&o.bob, &job).await;
    assert_eq!(o.versions().await, 1);
    // Approved once, the weaker rules are in force.
    o.renew(&o.ann).await;
    assert_eq!(o.versions().await, 2);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_policy_made_weaker_changes_nothing_for_open_jobs(db: PgPool) {
    let o = Office::open(db, "manual", 2).await;
    o.requested().await;
    let job = o.waiting().await;
    for weaker in [
        json!({ "approvers": 1 }),
        json!({ "approval": "none" }),
        json!({ "self_approval": true }),
    ] {
        o.w.put("/api/v1/renewal-policies/rp-strict", weaker).await.expect(200);
    }
    let shown = o.w.get(&format!("/api/v1/jobs/{job}/approval")).await.expect(200);
    assert_eq!((&shown["needed"], &shown["self_approval"]), (&json!(2), &json!(false)));
    o.refuses(&o.ann, &job, "ann asked for job").await;
    assert_eq!(o.approve(&o.bob, &job).await, (200, "approval_given".to_owned()));
    assert_eq!(o.versions().await, 0);
    o.approves(&o.carl, &job).await;
    assert_eq!(o.versions().await, 1);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn who_changes_a_certificate_cannot_approve_its_next_issuance(db: PgPool) {
    let o = Office::open(db, "manual", 1).await;
    o.w.target("tgt-2", &o.host).await;
    let profile = json!({ "id": "prof-1", "name": "other" });
    o.w.post("/api/v1/profiles", profile).await.expect(201);
    let policy = json!({ "id": "rp-other", "name": "other", "approval": "manual" });
    o.w.post("/api/v1/renewal-policies", policy).await.expect(201);
    o.requested().await;
    let job = o.waiting().await;
    o.approves(&o.bob, &job).await;
    let mut versions = o.versions().await;
    for (change, action) in [
        (json!({ "sans": ["evil.example.net"] }), "changed its names"),
        (json!({ "certificate_profile_id": "prof-1" }), "changed its profile"),
        (json!({ "renewal_policy_id": "rp-other" }), "changed its renewal policy"),
        (json!({ "target_ids": ["tgt-1", "tgt-2"] }), "changed its targets"),
    ] {
        o.renew(&o.ann).await;
        let job = o.waiting().await;
        let (status, said) = o.put(&o.bob, change).await;
        assert_eq!(status, 200, "{said}");
        o.refuses(&o.bob, &job, action).await;
        let shown = o.w.get(&format!("/api/v1/jobs/{job}/approval")).await.expect(200);
        let participants = [
            json!({ "name": "ann", "action": "asked for it" }),
            json!({ "name": "bob", "action": action }),
        ];
        assert_eq!(shown["participants"], json!(participants));
        o.approves(&o.carl, &job).await;
        versions += 1;
        assert_eq!(o.versions().await, versions, "{action}");
        // The change is approved now: whoever made it may approve what follows.
        o.renew(&o.carl).await;
        let job = o.waiting().await;
        o.approves(&o.bob, &job).await;
        versions += 1;
        assert_eq!(o.versions().await, versions, "{action}");
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn an_import_and_a_cancelled_job_lead_to_no_renewal_without_approval(db: PgPool) {
    let o = Office::open(db, "manual", 1).await;
    let pem = Authority::new("Other").leaf(&["a.example.net"], -60, 30);
    let body = json!({ "pem": pem, "renewal_policy_id": "rp-strict", "target_ids": ["tgt-1"] });
    let path = "/api/v1/certificates/import";
    let (status, said) = o.as_(&o.ann, Method::POST, path, body).await;
    assert_eq!(status, 200, "{said}");
    let job = o.waiting().await;
    assert_ne!(job, "");
    o.w.post(&format!("/api/v1/jobs/{job}/cancel"), Value::Null)
        .await
        .expect(200);
    o.w.clock.advance(DAY * 29);
    let job = o.waiting().await;
    let planned =
        o.w.text(&format!(
            "SELECT coalesce(requested_by, 'nobody') FROM jobs WHERE id = '{job}'"
        ))
        .await;
    assert_eq!(planned, "nobody", "the renewal is planned, and waits all the same");
    o.refuses(&o.ann, &job, "imported the certificate").await;
    o.approves(&o.bob, &job).await;
    o.w.settle().await;
    let issued = "SELECT count(*)::text FROM certificate_versions WHERE job_id IS NOT NULL";
    assert_eq!(o.w.text(issued).await, "1");
    // What follows is planned by nobody: under this policy it goes on by itself.
    o.w.clock.advance(DAY * 85);
    o.w.settle().await;
    assert_eq!(o.w.text(issued).await, "2");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_retry_by_another_keeps_the_requester_and_adds_a_participant(db: PgPool) {
    let o = Office::open(db, "manual", 1).await;
    o.requested().await;
    let job = o.w.text("SELECT id FROM jobs").await;
    let fail = "UPDATE jobs SET status = 'Failed', reason = 'x', finished_at = run_at";
    o.w.sql(fail).await;
    let (status, said) = o
        .as_(&o.bob, Method::POST, &format!("/api/v1/jobs/{job}/retry"), Value::Null)
        .await;
    assert_eq!(status, 200, "{said}");
    assert_eq!(o.waiting().await, job);
    o.refuses(&o.ann, &job, "ann asked for job").await;
    o.refuses(&o.bob, &job, "retried it").await;
    o.approves(&o.carl, &job).await;
    assert_eq!(o.versions().await, 1);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_key_with_another_name_has_still_taken_part(db: PgPool) {
    let o = Office::open(db, "always", 1).await;
    let new = json!({ "id": "mc-1", "common_name": "mc-1.example.net", "renewal_policy_id": "rp-strict" });
    let (status, said) = o.as_(&o.ann, Method::POST, "/api/v1/certificates", new).await;
    assert_eq!(status, 201, "{said}");
    let id = o.w.text("SELECT id FROM api_keys WHERE name = 'ann'").await;
    o.w.put(&format!("/api/v1/api-keys/{id}"), json!({ "name": "anna" }))
        .await
        .expect(200);
    let targets = json!({ "target_ids": ["tgt-1"] });
    let (status, said) = o.as_(&o.bob, Method::PUT, "/api/v1/certificates/mc-1", targets).await;
    assert_eq!(status, 200, "{said}");
    o.w.settle().await;
    let job = o.waiting().await;
    o.refuses(&o.ann, &job, "created the certificate").await;
    o.approves(&o.carl, &job).await;
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn the_signer_counts_no_approval_of_a_participant(db: PgPool) {
    let o = Office::open(db, "manual", 1).await;
    o.requested().await;
    let job = o.waiting().await;
    // Past the API: the approval of the person who asked, for exactly what would be signed.
    o.w.sql(&format!(
        "INSERT INTO approvals (job_id, approver, digest, reason, overrides, created_at)
         SELECT j.id, 'ann', job_digest(j, c), '', false, now() FROM jobs j JOIN certificates c ON c.id = j.certificate_id
          WHERE j.id = '{job}'"
    ))
    .await;
    let shown = o.w.get(&format!("/api/v1/jobs/{job}/approval")).await.expect(200);
    assert_eq!(shown["approvals"][0]["valid"], false);
    o.w.sql(&format!("UPDATE jobs SET status = 'Running' WHERE id = '{job}'"))
        .await;
    o.w.settle().await;
    let failed = o.w.get(&format!("/api/v1/jobs/{job}")).await.expect(200);
    assert_eq!(failed["status"], "Failed");
    assert_eq!(o.versions().await, 0);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_was_required_at_the_request_is_written_by_the_database_alone(db: PgPool) {
    let o = Office::open(db, "manual", 2).await;
    o.requested().await;
    let job = o.waiting().await;
    o.w.sql("UPDATE jobs SET requested_approvals = 0, planned_approvals = 0, participations_from = 99")
        .await;
    let kept = "SELECT concat_ws(' ', planned_approvals, requested_approvals, participations_from) FROM jobs";
    assert_eq!(o.w.text(kept).await, "0 2 0");
    o.refuses(&o.ann, &job, "ann asked for job").await;
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn with_self_approval_one_administrator_suffices(db: PgPool) {
    let o = Office::open(db, "manual", 1).await;
    let (status, _) = o
        .as_(
            &o.ann,
            Method::PUT,
            "/api/v1/renewal-policies/rp-strict",
            json!({ "self_approval": true }),
        )
        .await;
    assert_eq!(status, 403);
    let policy =
        o.w.put("/api/v1/renewal-policies/rp-strict", json!({ "self_approval": true }))
            .await;
    assert_eq!(policy.expect(200)["self_approval"], true);
    let made =
        o.w.post("/api/v1/renewal-policies", json!({ "name": "other" }))
            .await
            .expect(201);
    assert_eq!(made["self_approval"], false, "off unless asked for");
    o.requested().await;
    let job = o.waiting().await;
    assert_ne!(job, "", "it waits for approval all the same");
    o.approves(&o.ann, &job).await;
    assert_eq!(o.versions().await, 1);
    // To move a certificate from rules without it to rules with it is to weaken them.
    let new = json!({ "id": "rp-2", "name": "two", "approval": "manual" });
    o.w.post("/api/v1/renewal-policies", new).await.expect(201);
    assert_eq!(o.put(&o.ann, json!({ "renewal_policy_id": "rp-2" })).await.0, 200);
    assert_eq!(o.put(&o.ann, json!({ "renewal_policy_id": "rp-strict" })).await.0, 403);
    assert_eq!(o.put(&o.eve, json!({ "renewal_policy_id": "rp-strict" })).await.0, 200);
    o.renew(&o.ann).await;
    let job = o.waiting().await;
    o.refuses(&o.ann, &job, "ann asked for job").await;
    o.approves(&o.bob, &job).await;
    assert_eq!(o.versions().await, 2);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn an_update_is_in_the_trail_with_old_and_new_values(db: PgPool) {
    let o = Office::open(db, "manual", 2).await;
    o.requested().await;
    let agent = format!("/api/v1/agents/{}", o.host.id());
    for (path, id, base) in [
        ("/api/v1/teams", "t-1", json!({ "name": "old" })),
        (
            "/api/v1/owners",
            "o-1",
            json!({ "name": "old", "email": "o@example.net", "team_id": "t-1" }),
        ),
        ("/api/v1/profiles", "prof-1", json!({ "name": "old" })),
        ("/api/v1/agent-groups", "ag-1", json!({ "name": "old" })),
        (
            "/api/v1/policies",
            "pol-1",
            json!({ "name": "old", "type": "AllowedDomains", "config": { "allow": ["example.net"] } }),
        ),
        ("/api/v1/issuers", "iss-1", json!({ "name": "old", "type": "local" })),
    ] {
        let mut new = base;
        new["id"] = json!(id);
        o.w.post(path, new).await.expect(201);
    }
    let freeze = json!({ "id": "fr-1", "name": "old", "starts_at": o.w.clock.now(), "ends_at": o.w.clock.now() + DAY });
    let freeze = o.w.post("/api/v1/freezes", freeze).await.expect(201);
    let freeze = format!("/api/v1/freezes/{}", freeze["id"].as_str().unwrap());
    let made =
        o.w.post("/api/v1/api-keys", json!({ "name": "old", "role": "viewer" }))
            .await
            .expect(201);
    let own_key = format!("/api/v1/api-keys/{}", made["id"].as_str().unwrap());
    for (path, action) in [
        ("/api/v1/teams/t-1", "update_team"),
        ("/api/v1/owners/o-1", "update_owner"),
        ("/api/v1/profiles/prof-1", "update_profile"),
        ("/api/v1/agent-groups/ag-1", "update_agent_group"),
        ("/api/v1/policies/pol-1", "policy_rule_updated"),
        ("/api/v1/issuers/iss-1", "update_issuer"),
        ("/api/v1/renewal-policies/rp-loose", "update_renewal_policy"),
        ("/api/v1/targets/tgt-1", "update_target"),
        ("/api/v1/certificates/mc-1", "certificate_updated"),
        (&*agent, "update_agent"),
        (&*freeze, "freeze_updated"),
        (&*own_key, "update_api_key"),
    ] {
        let page = o.w.get(path.rsplit_once('/').unwrap().0).await.expect(200);
        let id = path.rsplit('/').next().unwrap();
        let rows = page["data"].as_array().unwrap();
        let old = rows.iter().find(|row| row["id"] == id).unwrap()["name"].clone();
        o.w.put(path, json!({ "name": "new name" })).await.expect(200);
        let changes =
            o.w.text(&format!(
                "SELECT details->>'changes' FROM audit_events WHERE action = '{action}'"
            ))
            .await;
        let changes: Value = serde_json::from_str(&changes).unwrap_or_default();
        assert_eq!(
            changes,
            json!({ "name": { "old": old, "new": "new name" } }),
            "{action}"
        );
    }
    o.w.put(
        "/api/v1/renewal-policies/rp-strict",
        json!({ "approval": "none", "approvers": 1 }),
    )
    .await
    .expect(200);
    let changes = o.w.text("SELECT details->>'changes' FROM audit_events WHERE resource_id = 'rp-strict' AND action = 'update_renewal_policy'").await;
    assert_eq!(
        serde_json::from_str::<Value>(&changes).unwrap(),
        json!({ "approval": { "old": "manual", "new": "none" }, "approvers": { "old": 2, "new": 1 } })
    );
    let body = json!({ "ids": ["mc-1"], "owner_id": "o-1" });
    o.w.post("/api/v1/bulk/reassign", body).await.expect(202);
    o.w.settle().await;
    let changes = o.w.text("SELECT details->'changes'->>'owner_id' FROM audit_events WHERE action = 'certificate_updated' ORDER BY sequence DESC LIMIT 1").await;
    assert_eq!(
        serde_json::from_str::<Value>(&changes).unwrap(),
        json!({ "old": "o-unassigned", "new": "o-1" })
    );
}
