//! Every type of rule at every moment, of every severity and scope; and what was foretold beside what came.

use std::collections::BTreeMap;

use certctl_model::policy::Severity;
use certctl_tests::world::{Answer, World};
use serde_json::{Value, json};
use sqlx::PgPool;

/// Of each type: its settings, the field of a refusal, and what makes a certificate break it.
fn types() -> [(&'static str, Value, &'static str, Value); 5] {
    [
        (
            "AllowedIssuers",
            json!({ "issuers": ["iss-local"] }),
            "issuer_id",
            json!({ "issuer_id": "iss-other" }),
        ),
        (
            "AllowedDomains",
            json!({ "deny": ["*.bad.example.net"] }),
            "sans",
            json!({ "sans": ["a.bad.example.net"] }),
        ),
        (
            "RequiredMetadata",
            json!({ "tags": ["cost-centre"] }),
            "tags",
            json!({ "tags": {} }),
        ),
        (
            "AllowedEnvironments",
            json!({ "allowed": ["production"] }),
            "environment",
            json!({ "environment": "cellar" }),
        ),
        ("RenewalLeadTime", json!({ "min_days": 3000 }), "tags", json!({})),
    ]
}

/// Where a rule holds, and whether the certificate is there.
fn scopes() -> [(&'static str, Value, bool); 6] {
    [
        ("everywhere", json!({}), true),
        ("its group", json!({ "agent_group_ids": ["ag-in"] }), true),
        ("another group", json!({ "agent_group_ids": ["ag-out"] }), false),
        ("its policy", json!({ "renewal_policy_ids": ["rp-in"] }), true),
        ("another policy", json!({ "renewal_policy_ids": ["rp-out"] }), false),
        (
            "its group under another policy",
            json!({ "agent_group_ids": ["ag-in"], "renewal_policy_ids": ["rp-out"] }),
            false,
        ),
    ]
}

/// A body of all of these.
fn all(parts: &[&Value]) -> Value {
    let members = parts.iter().flat_map(|part| part.as_object().unwrap().clone());
    Value::Object(members.collect())
}

fn good() -> Value {
    json!({ "renewal_policy_id": "rp-in", "issuer_id": "iss-local", "environment": "production",
            "tags": { "cost-centre": "7" }, "target_ids": ["tgt-1"] })
}

struct Case<'a> {
    w: &'a World,
    name: String,
    rule: Value,
    field: &'static str,
    bad: Value,
    /// Whether it breaks the rule where the rule holds.
    breaks: bool,
    severity: Severity,
    /// Dates are mended by a new version, and of a new certificate there are none.
    is_of_dates: bool,
}

impl Case<'_> {
    async fn ask(&self, moment: &str, answer: Answer, blocked: bool, otherwise: u16) {
        let status = if blocked { 422 } else { otherwise };
        assert_eq!(answer.status, status, "{} at {moment}: {answer:?}", self.name);
        if blocked {
            let problem = answer.problem();
            assert_eq!(problem.errors[0].field, self.field, "{}: {problem:?}", self.name);
            assert!(problem.detail.contains("policy rule one"), "{}: {problem:?}", self.name);
        }
    }

    fn blocks(&self) -> bool {
        self.breaks && self.severity != Severity::Warning
    }

    async fn make_rule(&self) {
        self.w.post("/api/v1/policies", self.rule.clone()).await.expect(201);
    }

    async fn drop_rule(&self) {
        self.w.delete("/api/v1/policies/rule-1").await.expect(204);
    }

    /// The violations of a certificate that are open.
    async fn open(&self, certificate: &str) -> String {
        let sql = format!(
            "SELECT count(*)::text FROM policy_violations WHERE certificate_id = '{certificate}' AND closed_at IS NULL"
        );
        self.w.text(&sql).await
    }

    fn expect_open(&self, count: &str, moment: &str) {
        let expected = if self.breaks { "1" } else { "0" };
        assert_eq!(count, expected, "{} at {moment}", self.name);
    }

    async fn creation_and_change(&self, n: usize) {
        let w = self.w;
        self.make_rule().await;
        let path = |id: &str| format!("/api/v1/certificates/{id}");
        let id = format!("mc-new-{n}");
        let named = |id: &str| json!({ "id": id, "common_name": format!("{id}.example.net") });
        let body = all(&[&named(&id), &good(), &self.bad]);
        let answer = w.post("/api/v1/certificates", body).await;
        let blocked = self.blocks() && !self.is_of_dates;
        self.ask("creation", answer, blocked, 201).await;
        if !blocked {
            if !self.is_of_dates {
                self.expect_open(&self.open(&id).await, "creation");
            }
            w.delete(&path(&id)).await.expect(204);
        }
        if self.is_of_dates {
            return self.drop_rule().await;
        }
        let id = format!("mc-changed-{n}");
        w.post("/api/v1/certificates", all(&[&named(&id), &good()]))
            .await
            .expect(201);
        let answer = w.put(&path(&id), self.bad.clone()).await;
        self.ask("change", answer, blocked, 200).await;
        if !blocked {
            self.expect_open(&self.open(&id).await, "change");
            w.put(&path(&id), all(&[&good(), &json!({ "sans": [] })]))
                .await
                .expect(200);
            assert_eq!(self.open(&id).await, "0", "{}: mended", self.name);
        }
        w.delete(&path(&id)).await.expect(204);
        self.drop_rule().await;
    }

    /// On `id`, which has a version and breaks the rule.
    async fn later(&self, id: &str) {
        let w = self.w;
        let path = format!("/api/v1/certificates/{id}");
        let job = "SELECT id FROM jobs WHERE status NOT IN ('Completed', 'Failed', 'Cancelled')";
        let cancel = async || {
            for job in w
                .text(&format!("SELECT string_agg(id, ' ') FROM ({job}) j"))
                .await
                .split_whitespace()
            {
                w.post(&format!("/api/v1/jobs/{job}/cancel"), Value::Null)
                    .await
                    .expect(200);
            }
        };
        // The rule is made between the request and its turn.
        w.post(&format!("{path}/renew"), Value::Null).await.expect(202);
        let waiting = w.text(job).await;
        self.make_rule().await;
        w.settle().await;
        let is = w.get(&format!("/api/v1/jobs/{waiting}")).await.expect(200);
        let issued = if self.blocks() && !self.is_of_dates {
            "Failed"
        } else {
            "AwaitingCSR"
        };
        assert_eq!(is["status"], issued, "{} at issuance: {is}", self.name);
        if issued == "Failed" {
            assert!(is["last_error"].as_str().unwrap().contains("policy rule one"), "{is}");
            let why = w.get(&format!("{path}/explain")).await.expect(200);
            assert_eq!(why["cause"], "PolicyForbids", "{}: {why}", self.name);
        }
        cancel().await;
        // What was looked at stays as it was found.
        self.expect_open(&self.open(id).await, "sweep");
        let answer = w.post(&format!("{path}/renew"), Value::Null).await;
        let status = if self.blocks() && !self.is_of_dates { 409 } else { 202 };
        assert_eq!(answer.status, status, "{} at renewal: {answer:?}", self.name);
        cancel().await;
        let answer = w.post(&format!("{path}/deploy"), Value::Null).await;
        let status = if self.blocks() { 409 } else { 202 };
        assert_eq!(answer.status, status, "{} at deployment: {answer:?}", self.name);
        cancel().await;
        w.put("/api/v1/policies/rule-1", json!({ "enabled": false }))
            .await
            .expect(200);
        w.settle().await;
        assert_eq!(self.open(id).await, "0", "{}: disabled", self.name);
        cancel().await;
        self.drop_rule().await;
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn every_type_of_rule_is_asked_at_every_moment_and_blocks_by_severity_and_scope(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.shared_target("tgt-1", &host).await;
    for id in ["rp-in", "rp-out"] {
        w.post("/api/v1/renewal-policies", json!({ "id": id, "name": id }))
            .await
            .expect(201);
    }
    for id in ["ag-in", "ag-out"] {
        w.post("/api/v1/agent-groups", json!({ "id": id, "name": id }))
            .await
            .expect(201);
    }
    let member = format!("/api/v1/agent-groups/ag-in/members/{}", host.id());
    w.put(&member, json!({})).await.expect(200);
    let other = json!({ "id": "iss-other", "name": "other", "type": "local" });
    w.post("/api/v1/issuers", other).await.expect(201);
    // One for each type, with a version.
    for (n, (.., bad)) in types().into_iter().enumerate() {
        let id = format!("mc-{n}");
        // The other issuer has no key here: what it breaks comes after the version.
        w.certificate(&id, &["tgt-1"], good()).await;
        w.settle().await;
        w.put(&format!("/api/v1/certificates/{id}"), bad).await.expect(200);
    }
    host.set_away(true);
    let mut asked = 0;
    for (n, (kind, config, field, bad)) in types().into_iter().enumerate() {
        for severity in Severity::ALL {
            for (scope, place, is_there) in scopes() {
                let rule =
                    json!({ "id": "rule-1", "name": "one", "type": kind, "severity": severity, "config": config });
                let case = Case {
                    w: &w,
                    name: format!("{severity} {kind}, {scope}"),
                    rule: all(&[&rule, &place]),
                    field,
                    bad: bad.clone(),
                    breaks: is_there,
                    severity: *severity,
                    is_of_dates: kind == "RenewalLeadTime",
                };
                case.creation_and_change(asked).await;
                case.later(&format!("mc-{n}")).await;
                asked += 1;
            }
        }
    }
    assert_eq!(asked, 5 * 3 * 6);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_a_preview_foretells_is_what_the_rule_finds(db: PgPool) {
    let w = World::new(db).await;
    for n in 0..30 {
        let environment = ["production", "staging", "cellar"][n % 3];
        let more =
            json!({ "environment": environment, "tags": if n % 2 == 0 { json!({ "a": "b" }) } else { json!({}) } });
        w.certificate(&format!("mc-{n:02}"), &[], more).await;
    }
    w.delete("/api/v1/certificates/mc-02").await.expect(204);
    let found = |list: &Value| -> BTreeMap<String, String> {
        let rows = list["first"].as_array().unwrap().iter();
        let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
        rows.map(|row| (text(row, "certificate_id"), text(row, "message")))
            .collect()
    };
    let violations = async || -> BTreeMap<String, String> {
        w.settle().await;
        let page = w
            .get("/api/v1/policy-violations?open=true&per_page=500")
            .await
            .expect(200);
        let rows = page["data"].as_array().unwrap().iter();
        let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
        rows.map(|row| (text(row, "certificate_id"), text(row, "message")))
            .collect()
    };
    let first = json!({ "type": "AllowedEnvironments", "severity": "Error", "config": { "allowed": ["production"] } });
    let foretold = w.post("/api/v1/policies/preview", first.clone()).await.expect(200);
    assert_eq!(foretold["certificates"], 29);
    assert_eq!(
        (&foretold["starts"]["count"], &foretold["breaking"]),
        (&json!(19), &json!(19))
    );
    assert_eq!(foretold["blocks_renewal"]["count"], 19);
    assert!(violations().await.is_empty(), "a preview keeps nothing");
    let rule = all(&[&first, &json!({ "id": "rule-1", "name": "one" })]);
    w.post("/api/v1/policies", rule).await.expect(201);
    let before = violations().await;
    assert_eq!(found(&foretold["starts"]), before);

    // Other settings for the same rule: some start, some stop, some go on.
    let second = json!({ "rule_id": "rule-1", "type": "RequiredMetadata", "config": { "tags": ["a"] } });
    let foretold = w.post("/api/v1/policies/preview", second).await.expect(200);
    let change = json!({ "type": "RequiredMetadata", "severity": "Warning", "config": { "tags": ["a"] } });
    w.put("/api/v1/policies/rule-1", change).await.expect(200);
    let after = violations().await;
    let ids = |map: &BTreeMap<String, String>| map.keys().cloned().collect::<Vec<_>>();
    let started = after.iter().filter(|(id, _)| !before.contains_key(*id));
    let stopped = before.iter().filter(|(id, _)| !after.contains_key(*id));
    assert_eq!(
        found(&foretold["starts"]),
        started.map(|(a, b)| (a.clone(), b.clone())).collect()
    );
    assert_eq!(
        ids(&found(&foretold["stops"])),
        stopped.map(|(id, _)| id.clone()).collect::<Vec<_>>()
    );
    assert_eq!(foretold["breaking"], json!(after.len()));
    assert_eq!(foretold["blocks_renewal"]["count"], 0, "a warning blocks nothing");
    // Each list is cut, and counted whole.
    let short = json!({ "type": "RequiredMetadata", "config": { "tags": ["none"] }, "limit": 3 });
    let cut = w.post("/api/v1/policies/preview", short).await.expect(200);
    assert_eq!(cut["starts"]["count"], 29);
    assert_eq!(cut["starts"]["first"].as_array().unwrap().len(), 3);
    for (body, status) in [
        (json!({ "type": "colour" }), 422),
        (json!({ "type": "AllowedIssuers", "limit": 0 }), 422),
        (json!({ "type": "AllowedIssuers", "rule_id": "rule-x" }), 404),
    ] {
        assert_eq!(w.post("/api/v1/policies/preview", body).await.status, status);
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_violation_is_told_once_and_renewed_again_when_it_is_mended(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], json!({ "environment": "cellar" }))
        .await;
    w.settle().await;
    let rule = json!({ "id": "rule-1", "name": "one", "type": "AllowedEnvironments", "severity": "Critical",
                       "config": { "allowed": ["production"] } });
    w.post("/api/v1/policies", rule).await.expect(201);
    for _ in 0..3 {
        w.settle().await;
    }
    let told = "SELECT count(*)::text FROM notifications WHERE type = 'PolicyViolation' AND channel = 'Webhook'";
    assert_eq!(w.text(told).await, "1");
    // Due, and not renewed; nobody fails again and again.
    w.clock.advance(std::time::Duration::from_secs(85 * 86_400));
    w.settle().await;
    assert_eq!(w.versions("mc-1").await.len(), 1);
    assert_eq!(
        w.text("SELECT count(*)::text FROM jobs WHERE type = 'Renewal'").await,
        "0"
    );
    let why = w.get("/api/v1/certificates/mc-1/explain").await.expect(200);
    assert_eq!(why["cause"], "PolicyForbids");
    assert!(
        why["summary"].as_str().unwrap().contains("policy rule one (Critical)"),
        "{why}"
    );
    // A change of something else is not held up by it.
    w.put("/api/v1/certificates/mc-1", json!({ "tags": { "a": "b" } }))
        .await
        .expect(200);
    w.put("/api/v1/certificates/mc-1", json!({ "environment": "production" }))
        .await
        .expect(200);
    w.settle().await;
    assert_eq!(
        w.versions("mc-1").await.len(),
        2,
        "it is renewed as soon as it is mended"
    );
    assert_eq!(
        w.text(
            "SELECT string_agg(action, ' ' ORDER BY sequence) FROM audit_events WHERE action LIKE 'policy_violation%'"
        )
        .await,
        "policy_violation_opened policy_violation_closed"
    );
    // What a rule or a group is needed for is not deleted.
    w.post("/api/v1/agent-groups", json!({ "id": "ag-1", "name": "g" }))
        .await
        .expect(201);
    w.put("/api/v1/policies/rule-1", json!({ "agent_group_ids": ["ag-1"] }))
        .await
        .expect(200);
    assert_eq!(w.delete("/api/v1/agent-groups/ag-1").await.problem().status, 409);
    let missing = w
        .put("/api/v1/policies/rule-1", json!({ "renewal_policy_ids": ["rp-none"] }))
        .await
        .problem();
    assert_eq!(
        (missing.status, missing.errors[0].field.as_str()),
        (422, "renewal_policy_ids")
    );
    let shown = w.get("/api/v1/policies/rule-1").await.expect(200);
    assert_eq!(
        (&shown["agent_group_ids"], &shown["renewal_policy_ids"]),
        (&json!(["ag-1"]), &json!([]))
    );
}
