//! Many certificates at once: chosen by id or filter, tried without effect, done one by one, called off.

use std::collections::BTreeMap;

use certctl_tests::world::World;
use serde_json::{Value, json};
use sqlx::PgPool;

/// Three certificates that can be renewed, one without a target, one that is archived.
async fn estate(w: &World) {
    let host = w.host("web").await;
    w.shared_target("tgt-1", &host).await;
    for id in ["mc-a", "mc-b", "mc-c"] {
        w.certificate(id, &["tgt-1"], json!({ "environment": "production" }))
            .await;
    }
    w.certificate("mc-bare", &[], json!({ "environment": "production" }))
        .await;
    w.certificate("mc-gone", &[], json!({})).await;
    w.delete("/api/v1/certificates/mc-gone").await.expect(204);
    w.settle().await;
}

async fn outcomes(w: &World, operation: &Value) -> BTreeMap<String, String> {
    let id = operation["id"].as_str().unwrap();
    let page = w.get(&format!("/api/v1/bulk/operations/{id}/items")).await.expect(200);
    let pair = |item: &Value| {
        let text = |key: &str| item[key].as_str().unwrap_or_default().to_owned();
        (text("certificate_id"), text("outcome"))
    };
    page["data"].as_array().unwrap().iter().map(pair).collect()
}

async fn progress(w: &World, operation: &Value) -> Value {
    let id = operation["id"].as_str().unwrap();
    w.get(&format!("/api/v1/bulk/operations/{id}")).await.expect(200)
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(id, outcome)| ((*id).to_owned(), (*outcome).to_owned()))
        .collect()
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_bulk_renewal_renews_what_it_can_and_says_what_it_could_not(db: PgPool) {
    let w = World::new(db).await;
    estate(&w).await;
    let ids = json!({ "ids": ["mc-a", "mc-b", "mc-bare", "mc-gone", "mc-nowhere", "mc-a"] });
    let asked = w.post("/api/v1/bulk/renew", ids).await.expect(202);
    assert_eq!(
        (&asked["status"], &asked["total"], &asked["remaining"]),
        (&json!("Running"), &json!(5), &json!(5))
    );
    w.settle().await;
    let expected = [
        ("mc-a", "done"),
        ("mc-b", "done"),
        ("mc-bare", "refused"),
        ("mc-gone", "refused"),
        ("mc-nowhere", "refused"),
    ];
    assert_eq!(outcomes(&w, &asked).await, map(&expected));
    let after = progress(&w, &asked).await;
    assert_eq!(
        (&after["status"], &after["done"], &after["refused"], &after["remaining"]),
        (&json!("Completed"), &json!(2), &json!(3), &json!(0))
    );
    for (id, versions) in [("mc-a", 2), ("mc-b", 2), ("mc-c", 1)] {
        assert_eq!(w.versions(id).await.len(), versions, "{id}");
    }
    let only = format!(
        "/api/v1/bulk/operations/{}/items?outcome=refused",
        asked["id"].as_str().unwrap()
    );
    let refused = w.get(&only).await.expect(200);
    assert!(
        refused["data"][0]["message"]
            .as_str()
            .unwrap()
            .contains("give it target_ids"),
        "{refused}"
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_dry_run_tells_what_would_become_of_each_and_changes_nothing(db: PgPool) {
    let w = World::new(db).await;
    estate(&w).await;
    for (path, more) in [("renew", json!({})), ("revoke", json!({ "reason": "superseded" }))] {
        let before = w
            .text("SELECT count(*)::text FROM audit_events WHERE resource_type = 'certificate'")
            .await;
        let mut body = json!({ "filter": { "environment": "production" }, "dry_run": true });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let asked = w.post(&format!("/api/v1/bulk/{path}"), body).await.expect(202);
        w.settle().await;
        let expected = [
            ("mc-a", "done"),
            ("mc-b", "done"),
            ("mc-bare", "refused"),
            ("mc-c", "done"),
        ];
        assert_eq!(outcomes(&w, &asked).await, map(&expected), "{path}");
        let after = w
            .text("SELECT count(*)::text FROM audit_events WHERE resource_type = 'certificate'")
            .await;
        assert_eq!(before, after, "{path}");
        assert_eq!(
            (w.status("mc-a").await, w.versions("mc-a").await.len()),
            ("Active".to_owned(), 1),
            "{path}"
        );
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_bulk_revocation_and_a_reassignment_are_done_in_the_name_of_who_asked(db: PgPool) {
    let w = World::new(db).await;
    estate(&w).await;
    w.post("/api/v1/teams", json!({ "id": "t-new", "name": "new" }))
        .await
        .expect(201);
    w.post(
        "/api/v1/owners",
        json!({ "id": "o-new", "name": "new", "team_id": "t-new" }),
    )
    .await
    .expect(201);
    let given = json!({ "filter": { "environment": "production" }, "owner_id": "o-new" });
    w.post("/api/v1/bulk/reassign", given).await.expect(202);
    w.settle().await;
    let mine = w
        .get("/api/v1/certificates?owner_id=o-new&team_id=t-new")
        .await
        .expect(200);
    assert_eq!(mine["total"], 4);

    let revoked = w
        .post(
            "/api/v1/bulk/revoke",
            json!({ "ids": ["mc-a"], "reason": "keyCompromise" }),
        )
        .await;
    revoked.expect(202);
    w.settle().await;
    assert_eq!(
        (w.status("mc-a").await, w.status("mc-b").await),
        ("Revoked".to_owned(), "Active".to_owned())
    );
    let who = w.text("SELECT actor FROM audit_events WHERE action = 'certificate_revoked' AND resource_id = 'mc-a'");
    assert_eq!(who.await, "api-key-user");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_bulk_operation_that_is_called_off_leaves_the_others_alone(db: PgPool) {
    let w = World::new(db).await;
    estate(&w).await;
    let asked = w
        .post("/api/v1/bulk/renew", json!({ "ids": ["mc-a", "mc-b"] }))
        .await
        .expect(202);
    let cancel = format!("/api/v1/bulk/operations/{}/cancel", asked["id"].as_str().unwrap());
    w.post(&cancel, Value::Null).await.expect(200);
    w.settle().await;
    assert_eq!(
        outcomes(&w, &asked).await,
        map(&[("mc-a", "cancelled"), ("mc-b", "cancelled")])
    );
    assert_eq!(progress(&w, &asked).await["status"], "Cancelled");
    assert_eq!(w.versions("mc-a").await.len(), 1);
    w.post(&cancel, Value::Null).await.expect(409);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_selection_that_is_none_or_two_or_unreadable_is_refused(db: PgPool) {
    let w = World::new(db).await;
    for (path, body, status) in [
        ("renew", json!({}), 422),
        ("renew", json!({ "ids": [] }), 422),
        ("renew", json!({ "filter": {} }), 422),
        (
            "renew",
            json!({ "ids": ["mc-a"], "filter": { "status": "Active" } }),
            422,
        ),
        ("renew", json!({ "filter": { "statsu": "Active" } }), 400),
        ("renew", json!({ "filter": { "status": "Actve" } }), 400),
        ("reassign", json!({ "ids": ["mc-a"] }), 422),
        ("reassign", json!({ "ids": ["mc-a"], "owner_id": "o-nobody" }), 422),
        ("revoke", json!({ "ids": ["mc-a"], "reason": "boredom" }), 400),
    ] {
        let answer = w.post(&format!("/api/v1/bulk/{path}"), body.clone()).await;
        assert_eq!(answer.status, status, "{path} {body}");
    }
    assert_eq!(w.text("SELECT count(*)::text FROM bulk_operations").await, "0");
}
