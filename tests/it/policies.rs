//! Policy rules and their violations, through the API.

use certctl_tests::world::{Answer, World};
use serde_json::{Value, json};
use sqlx::PgPool;

fn ids(page: &Value) -> Vec<&str> {
    let rows = page["data"].as_array().unwrap().iter();
    rows.map(|row| row["id"].as_str().unwrap()).collect()
}

/// A refusal: its status, the field, and what of its detail must be there.
fn refused(answer: &Answer, status: u16, field: &str, word: &str) {
    let problem = answer.problem();
    assert_eq!(
        (problem.status, problem.errors[0].field.as_str()),
        (status, field),
        "{answer:?}"
    );
    assert!(problem.detail.contains(word), "{answer:?}");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_rule_of_every_type_is_kept_in_its_one_form(db: PgPool) {
    let w = World::new(db).await;
    let begin = w.clock.now();
    for (n, (kind, config, kept)) in [
        (
            "AllowedIssuers",
            json!({ "allowed": ["iss-local"] }),
            json!({ "issuers": ["iss-local"] }),
        ),
        (
            "AllowedDomains",
            json!({ "allow": ["*.Example.com"], "deny": ["x.example.com"] }),
            json!({ "allow": ["*.example.com"], "deny": ["x.example.com"] }),
        ),
        ("ownership", Value::Null, json!({ "fields": ["owner_id", "team_id"] })),
        (
            "environment",
            json!({ "environments": ["prod"] }),
            json!({ "allowed": ["prod"] }),
        ),
        (
            "RenewalLeadTime",
            json!({ "max_days": 90 }),
            json!({ "max_lifetime_days": 90 }),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let new = json!({ "id": format!("rule-{n}"), "name": format!("Rule {n}"), "type": kind, "config": config });
        let rule = w.post("/api/v1/policies", new).await.expect(201);
        let canonical = [
            "AllowedIssuers",
            "AllowedDomains",
            "RequiredMetadata",
            "AllowedEnvironments",
            "RenewalLeadTime",
        ];
        assert_eq!(
            rule,
            json!({ "id": format!("rule-{n}"), "name": format!("Rule {n}"), "type": canonical[n], "severity": "Warning",
                    "config": kept, "enabled": true, "agent_group_ids": [], "renewal_policy_ids": [],
                    "created_at": begin, "updated_at": begin })
        );
        assert_eq!(w.get(&format!("/api/v1/policies/rule-{n}")).await.expect(200), rule);
    }
    // Without settings, and without an id.
    let rule = w
        .post(
            "/api/v1/policies",
            json!({ "name": "bare", "type": "AllowedDomains", "severity": "critical" }),
        )
        .await
        .expect(201);
    assert_eq!((&rule["config"], &rule["severity"]), (&json!({}), &json!("Critical")));
    assert!(rule["id"].as_str().unwrap().starts_with("rule-"));
    for (query, found) in [
        ("type=RequiredMetadata", "rule-2"),
        ("name=Rule%203", "rule-3"),
        ("severity=Critical&enabled=true", rule["id"].as_str().unwrap()),
    ] {
        let page = w.get(&format!("/api/v1/policies?{query}")).await.expect(200);
        assert_eq!(ids(&page), [found], "{query}");
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_a_rule_cannot_mean_is_refused_and_what_would_be_right_is_said(db: PgPool) {
    let w = World::new(db).await;
    w.post(
        "/api/v1/policies",
        json!({ "id": "rule-1", "name": "one", "type": "RenewalLeadTime" }),
    )
    .await
    .expect(201);
    w.post("/api/v1/policies", json!({ "name": "two", "type": "AllowedIssuers" }))
        .await
        .expect(201);
    let before = w.contents().await;
    for (body, status, field, word) in [
        (json!({ "type": "AllowedIssuers" }), 400, "", "name"),
        (json!({ "name": "x" }), 400, "", "type"),
        (json!({ "name": "", "type": "AllowedIssuers" }), 422, "name", "1 to 255"),
        (
            json!({ "name": "x", "type": "colour" }),
            422,
            "type",
            "AllowedIssuers, AllowedDomains",
        ),
        (
            json!({ "name": "x", "type": "AllowedIssuers", "severity": "bad" }),
            422,
            "severity",
            "Warning, Error",
        ),
        (
            json!({ "name": "x", "type": "AllowedIssuers", "config": { "colour": 1 } }),
            422,
            "config",
            "{\"issuers\":",
        ),
        (
            json!({ "name": "x", "type": "AllowedIssuers", "config": [] }),
            422,
            "config",
            "{\"issuers\":",
        ),
        (
            json!({ "name": "x", "type": "AllowedIssuers", "config": { "issuers": [] } }),
            422,
            "config",
            "leave it out",
        ),
        (
            json!({ "name": "x", "type": "RenewalLeadTime", "config": { "min_days": "9" } }),
            422,
            "config",
            "{\"min_days\":",
        ),
        (
            json!({ "name": "one", "type": "AllowedIssuers" }),
            409,
            "name",
            "in use",
        ),
        (
            json!({ "id": "rule-1", "name": "x", "type": "AllowedIssuers" }),
            409,
            "id",
            "in use",
        ),
    ] {
        let answer = w.post("/api/v1/policies", body).await;
        match field {
            "" => assert!(
                answer.problem().status == status && answer.problem().detail.contains(word),
                "{answer:?}"
            ),
            field => refused(&answer, status, field, word),
        }
    }
    let path = "/api/v1/policies/rule-1";
    refused(&w.put(path, json!({ "name": "two" })).await, 409, "name", "in use");
    // Settings of the old type are none of the new one's.
    refused(
        &w.put(path, json!({ "type": "AllowedDomains" })).await,
        422,
        "config",
        "{\"allow\":",
    );
    for (method, rest) in [("GET", ""), ("PUT", ""), ("DELETE", ""), ("GET", "/violations")] {
        let path = format!("/api/v1/policies/none{rest}");
        let answer = w.send(method.parse().unwrap(), &path, Value::Null).await;
        assert_eq!(answer.problem().status, 404, "{method} {path}");
    }
    assert_eq!(w.contents().await, before);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_change_keeps_what_it_does_not_name_and_every_change_is_in_the_trail(db: PgPool) {
    let w = World::new(db).await;
    let new = json!({ "id": "rule-1", "name": "one", "type": "AllowedIssuers", "severity": "Error",
                      "config": { "issuers": ["iss-1"] } });
    let mut rule = w.post("/api/v1/policies", new).await.expect(201);
    // As the dashboard sends it.
    rule["enabled"] = json!(false);
    let changed = w
        .put("/api/v1/policies/rule-1", json!({ "enabled": false }))
        .await
        .expect(200);
    assert_eq!(changed, rule);
    let change =
        json!({ "id": "other", "type": "RenewalLeadTime", "config": { "min_days": 7 }, "severity": "Warning" });
    let changed = w.put("/api/v1/policies/rule-1", change).await.expect(200);
    assert_eq!(
        (
            &changed["id"],
            &changed["name"],
            &changed["type"],
            &changed["config"],
            &changed["severity"]
        ),
        (
            &json!("rule-1"),
            &json!("one"),
            &json!("RenewalLeadTime"),
            &json!({ "min_days": 7 }),
            &json!("Warning")
        )
    );
    w.delete("/api/v1/policies/rule-1").await.expect(204);
    let trail = "SELECT string_agg(action || ' ' || resource_type, ', ' ORDER BY sequence) FROM audit_events
                  WHERE resource_id = 'rule-1'";
    assert_eq!(
        w.text(trail).await,
        "policy_rule_created policy, policy_rule_updated policy, policy_rule_updated policy, policy_rule_deleted policy"
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn violations_are_listed_by_their_rule_and_go_with_it(db: PgPool) {
    let w = World::new(db).await;
    for n in 1..=2 {
        let new = json!({ "id": format!("rule-{n}"), "name": format!("{n}"), "type": "AllowedIssuers" });
        w.post("/api/v1/policies", new).await.expect(201);
        w.certificate(&format!("mc-{n}"), &[], Value::Null).await;
    }
    w.sql(
        "INSERT INTO policy_violations (id, rule_id, certificate_id, message, severity, created_at, closed_at) VALUES
           ('pv-1', 'rule-1', 'mc-1', 'm', 'Warning', '2027-01-01', NULL),
           ('pv-2', 'rule-1', 'mc-2', 'm', 'Error', '2027-01-02', NULL),
           ('pv-3', 'rule-1', 'mc-1', 'm', 'Error', '2027-01-03', '2027-01-04'),
           ('pv-4', 'rule-2', 'mc-1', 'm', 'Critical', '2027-01-05', NULL)",
    )
    .await;
    for (path, expected) in [
        ("policies/rule-1/violations", &["pv-3", "pv-2", "pv-1"][..]),
        ("policies/rule-1/violations?sort=createdAt", &["pv-1", "pv-2", "pv-3"]),
        ("policies/rule-1/violations?open=true", &["pv-2", "pv-1"]),
        ("policies/rule-1/violations?open=false", &["pv-3"]),
        ("policies/rule-1/violations?severity=Error", &["pv-3", "pv-2"]),
        ("policies/rule-1/violations?certificate_id=mc-2", &["pv-2"]),
        ("policies/rule-1/violations?rule_id=rule-2", &[]),
        ("policies/rule-2/violations", &["pv-4"]),
        ("policy-violations", &["pv-4", "pv-3", "pv-2", "pv-1"]),
        ("policy-violations?rule_id=rule-2", &["pv-4"]),
        (
            "policy-violations?created_after=2027-01-01T12:00:00Z&created_before=2027-01-03T12:00:00Z",
            &["pv-3", "pv-2"],
        ),
    ] {
        let page = w.get(&format!("/api/v1/{path}")).await.expect(200);
        assert_eq!(
            (ids(&page), &page["total"]),
            (expected.to_vec(), &json!(expected.len())),
            "{path}"
        );
    }
    let first = w
        .get("/api/v1/policies/rule-1/violations?page_size=2")
        .await
        .expect(200);
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = w
        .get(&format!(
            "/api/v1/policies/rule-1/violations?page_size=2&cursor={cursor}"
        ))
        .await
        .expect(200);
    assert_eq!((ids(&first), ids(&second)), (vec!["pv-3", "pv-2"], vec!["pv-1"]));
    let one = &w.get("/api/v1/policy-violations?severity=Critical").await.expect(200)["data"][0];
    assert_eq!(
        *one,
        json!({ "id": "pv-4", "rule_id": "rule-2", "certificate_id": "mc-1", "message": "m", "severity": "Critical",
                "created_at": "2027-01-05T00:00:00Z" })
    );
    w.delete("/api/v1/policies/rule-1").await.expect(204);
    assert_eq!(ids(&w.get("/api/v1/policy-violations").await.expect(200)), ["pv-4"]);
}
