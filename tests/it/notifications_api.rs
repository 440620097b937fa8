//! Notifications as operators see them.

use certctl_tests::world::World;
use serde_json::{Value, json};
use sqlx::PgPool;

fn ids(page: &Value) -> Vec<&str> {
    let rows = page["data"].as_array().unwrap().iter();
    rows.map(|row| row["id"].as_str().unwrap()).collect()
}

async fn four(w: &World) {
    w.certificate("mc-1", &[], Value::Null).await;
    w.certificate("mc-2", &[], Value::Null).await;
    w.sql(
        "INSERT INTO notifications (id, type, certificate_id, channel, recipient, subject, message, dedup_key, status,
                                    not_before, error, sent_at, read_at, created_at) VALUES
           ('ne-1', 'Revocation', 'mc-1', 'Webhook', 'webhook', 's1', 'm1', 'k1', 'pending', '2027-01-15', NULL, NULL, NULL, '2027-01-01'),
           ('ne-2', 'ExpirationWarning', 'mc-1', 'Email', 'a@example.net', 's2', 'm2', 'k2', 'failed', '2027-01-02', 'refused', NULL, NULL, '2027-01-02'),
           ('ne-3', 'Revocation', 'mc-2', 'Email', 'a@example.net', 's3', 'm3', 'k3', 'sent', '2027-01-03', NULL, '2027-01-05', '2027-01-06', '2027-01-03'),
           ('ne-4', 'RenewalSuccess', 'mc-2', 'Email', '', 's4', 'm4', 'k4', 'skipped', '2027-01-04', 'nobody', NULL, NULL, '2027-01-04')",
    )
    .await;
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn notifications_are_listed_filtered_and_fetched_by_their_id(db: PgPool) {
    let w = World::new(db).await;
    four(&w).await;
    for (query, expected) in [
        ("", &["ne-4", "ne-3", "ne-2", "ne-1"][..]),
        ("sort=-sentAt&per_page=1", &["ne-3"]),
        ("status=pending", &["ne-1"]),
        ("status=failed", &["ne-2"]),
        ("status=sent", &[]),
        ("status=read", &["ne-3"]),
        ("status=skipped", &["ne-4"]),
        ("delivery=sent", &["ne-3"]),
        ("type=Revocation", &["ne-3", "ne-1"]),
        ("channel=email", &["ne-4", "ne-3", "ne-2"]),
        ("certificate_id=mc-1", &["ne-2", "ne-1"]),
        ("created_after=2027-01-02T00:00:00Z", &["ne-4", "ne-3"]),
        ("created_before=2027-01-02T00:00:00Z", &["ne-1"]),
    ] {
        let page = w.get(&format!("/api/v1/notifications?{query}")).await.expect(200);
        assert_eq!(ids(&page), expected, "{query}");
        let total = if query.contains("per_page") { 4 } else { expected.len() };
        assert_eq!(page["total"], json!(total), "{query}: all that match are counted");
    }
    for id in ["ne-1", "ne-2", "ne-3", "ne-4"] {
        assert_eq!(
            w.get(&format!("/api/v1/notifications/{id}")).await.expect(200)["id"],
            id
        );
    }
    assert_eq!(
        w.get("/api/v1/notifications/ne-3").await.expect(200),
        json!({ "id": "ne-3", "type": "Revocation", "certificate_id": "mc-2", "channel": "Email",
                "recipient": "a@example.net", "subject": "s3", "message": "m3", "status": "read", "delivery": "sent",
                "attempts": 0, "sent_at": "2027-01-05T00:00:00Z", "read_at": "2027-01-06T00:00:00Z",
                "created_at": "2027-01-03T00:00:00Z" })
    );
    assert_eq!(w.get("/api/v1/notifications/none").await.problem().status, 404);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn reading_touches_neither_the_delivery_nor_its_time(db: PgPool) {
    let w = World::new(db).await;
    four(&w).await;
    let read = async |id: &str| w.post(&format!("/api/v1/notifications/{id}/read"), Value::Null).await;
    let first = w.clock.now();
    for id in ["ne-1", "ne-2", "ne-3"] {
        assert_eq!(read(id).await.expect(200), json!({ "status": "marked_as_read" }));
    }
    let get = async |id: &str| w.get(&format!("/api/v1/notifications/{id}")).await.expect(200);
    let pending = get("ne-1").await;
    assert_eq!(
        (
            &pending["status"],
            &pending["delivery"],
            &pending["read_at"],
            pending.get("sent_at")
        ),
        (&json!("read"), &json!("pending"), &json!(first), None)
    );
    assert_eq!(get("ne-2").await["delivery"], "failed");
    assert_eq!(get("ne-3").await["sent_at"], "2027-01-05T00:00:00Z");
    assert_eq!(
        get("ne-3").await["read_at"],
        "2027-01-06T00:00:00Z",
        "it was read before"
    );
    // It is sent all the same.
    w.settle().await;
    let sent = get("ne-1").await;
    assert_eq!((&sent["status"], &sent["delivery"]), (&json!("read"), &json!("sent")));
    assert_eq!(w.news.lock().unwrap().len(), 1);
    w.clock.advance(std::time::Duration::from_secs(60));
    read("ne-1").await.expect(200);
    assert_eq!(get("ne-1").await["read_at"], json!(first), "the first time counts");
    assert_eq!(read("none").await.problem().status, 404);
    let trail =
        "SELECT string_agg(resource_id, ' ' ORDER BY sequence) FROM audit_events WHERE action = 'notification_read'";
    assert_eq!(w.text(trail).await, "ne-1 ne-2");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_settled_notification_is_sent_again_on_request(db: PgPool) {
    let w = World::new(db).await;
    four(&w).await;
    let resend = async |id: &str| w.post(&format!("/api/v1/notifications/{id}/resend"), Value::Null).await;
    let delivery = async |id: &str| {
        let found = w.get(&format!("/api/v1/notifications/{id}")).await.expect(200);
        (
            found["delivery"].as_str().unwrap().to_owned(),
            found.get("error").cloned(),
            found["attempts"].clone(),
        )
    };
    assert_eq!(resend("ne-1").await.problem().status, 409, "it is pending");
    assert_eq!(resend("none").await.problem().status, 404);
    for id in ["ne-2", "ne-3"] {
        assert_eq!(resend(id).await.expect(200), json!({ "status": "pending" }));
        assert_eq!(delivery(id).await, ("pending".to_owned(), None, json!(0)), "{id}");
    }
    w.settle().await;
    for id in ["ne-2", "ne-3"] {
        assert_eq!(delivery(id).await, ("sent".to_owned(), None, json!(1)), "{id}");
    }
    let trail =
        "SELECT string_agg(resource_id, ' ' ORDER BY sequence) FROM audit_events WHERE action = 'notification_resent'";
    assert_eq!(w.text(trail).await, "ne-2 ne-3");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_team_is_told_from_the_severity_on_that_it_wants_and_programs_of_what_begins(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    let team = json!({ "id": "t-web", "name": "web", "email": "web@example.org", "notify_from": "Critical" });
    let team = w.post("/api/v1/teams", team).await.expect(201);
    assert_eq!(
        (&team["email"], &team["notify_from"]),
        (&json!("web@example.org"), &json!("Critical"))
    );
    let owner = json!({ "id": "o-anna", "name": "Anna", "email": "anna@example.org", "team_id": "t-web" });
    w.post("/api/v1/owners", owner).await.expect(201);
    let owned = json!({ "owner_id": "o-anna", "team_id": "t-web" });
    w.certificate("mc-1", &["tgt-1"], owned).await;
    w.settle().await;
    let told = async |kind: &str| {
        let recipients = w
            .text(&format!("SELECT coalesce(string_agg(recipient, ' ' ORDER BY recipient), '') FROM notifications WHERE type = '{kind}'"))
            .await;
        w.sql(&format!("DELETE FROM notifications WHERE type = '{kind}'")).await;
        recipients
    };
    let renewed = async || {
        w.clock.advance(std::time::Duration::from_secs(60));
        w.post("/api/v1/certificates/mc-1/renew", Value::Null).await.expect(202);
        w.settle().await;
    };
    assert_eq!(told("RenewalStarted").await, "", "a first certificate is no renewal");
    renewed().await;
    assert_eq!(told("RenewalStarted").await, "webhook");
    assert_eq!(told("RenewalSuccess").await, "anna@example.org webhook");

    w.put("/api/v1/teams/t-web", json!({ "notify_from": "Info" }))
        .await
        .expect(200);
    renewed().await;
    assert_eq!(told("RenewalStarted").await, "webhook");
    assert_eq!(told("RenewalSuccess").await, "anna@example.org web@example.org webhook");

    // One address is written to once; and an address can be taken away.
    w.put("/api/v1/teams/t-web", json!({ "email": "anna@example.org" }))
        .await
        .expect(200);
    renewed().await;
    assert_eq!(told("RenewalSuccess").await, "anna@example.org webhook");
    let changed = w
        .put(
            "/api/v1/teams/t-web",
            json!({ "email": "web@example.org", "notify_from": "Critical" }),
        )
        .await;
    changed.expect(200);
    w.post("/api/v1/certificates/mc-1/revoke", json!({ "reason": "superseded" }))
        .await
        .expect(200);
    assert_eq!(told("Revocation").await, "anna@example.org web@example.org webhook");
    let silent = w.put("/api/v1/teams/t-web", json!({ "email": "" })).await.expect(200);
    assert_eq!(silent.get("email"), None);

    for wrong in [json!({ "email": "nobody" }), json!({ "notify_from": "loud" })] {
        assert_eq!(w.put("/api/v1/teams/t-web", wrong).await.problem().status, 422);
    }
}
