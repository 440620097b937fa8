//! Times in which nothing is renewed by itself.

use std::time::Duration;

use certctl_tests::world::World;
use serde_json::{Value, json};
use sqlx::PgPool;

const DAY: Duration = Duration::from_secs(86_400);

async fn versions(w: &World, id: &str) -> usize {
    w.versions(id).await.len()
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_freeze_holds_what_would_renew_by_itself_for_its_policies_and_groups_until_it_ends(db: PgPool) {
    let w = World::new(db).await;
    let (one, two) = (w.host("web-1").await, w.host("web-2").await);
    w.shared_target("tgt-1", &one).await;
    w.target("tgt-2", &two).await;
    w.post("/api/v1/renewal-policies", json!({ "id": "rp-other", "name": "other" }))
        .await
        .expect(201);
    w.post("/api/v1/agent-groups", json!({ "id": "ag-two", "name": "two" }))
        .await
        .expect(201);
    let member = format!("/api/v1/agent-groups/ag-two/members/{}", two.id());
    w.put(&member, json!({ "membership_type": "include" }))
        .await
        .expect(200);
    w.certificate("mc-both", &["tgt-1", "tgt-2"], json!({})).await;
    w.certificate("mc-other", &["tgt-1"], json!({ "renewal_policy_id": "rp-other" }))
        .await;
    w.certificate("mc-free", &["tgt-1"], json!({})).await;
    w.settle().await;

    // Due two thirds through their ninety days.
    let at = |days: u32| json!(w.clock.now() + DAY * days);
    let group = json!({ "id": "fr-group", "name": "group", "reason": "moving", "starts_at": at(50), "ends_at": at(75),
                        "agent_group_ids": ["ag-two"] });
    let policy = json!({ "id": "fr-policy", "name": "policy", "starts_at": at(50), "ends_at": at(80),
                         "renewal_policy_ids": ["rp-other"] });
    for freeze in [&group, &policy] {
        let made = w.post("/api/v1/freezes", freeze.clone()).await.expect(201);
        for (field, given) in freeze.as_object().unwrap() {
            assert_eq!(&made[field], given, "{field}");
        }
    }
    w.clock.advance(DAY * 70);
    w.settle().await;
    // One of two agents is not in the group.
    assert_eq!(
        (
            versions(&w, "mc-free").await,
            versions(&w, "mc-both").await,
            versions(&w, "mc-other").await
        ),
        (2, 3, 1)
    );
    let why = w.get("/api/v1/certificates/mc-other/explain").await.expect(200);
    assert_eq!(
        (&why["cause"], &why["next"]["at"]),
        (&json!("Frozen"), &policy["ends_at"])
    );

    // A person goes ahead; the end comes, and is brought forward.
    w.post("/api/v1/certificates/mc-other/renew", Value::Null)
        .await
        .expect(202);
    w.clock.advance(DAY * 6);
    w.settle().await;
    assert_eq!((versions(&w, "mc-both").await, versions(&w, "mc-other").await), (4, 2));

    // Two days before the end of what is served, a freeze of weeks does not hold.
    let long = json!({ "id": "fr-long", "name": "long", "ends_at": w.clock.now() + DAY * 200 });
    w.post("/api/v1/freezes", long).await.expect(201);
    w.clock.advance(DAY * 70);
    w.settle().await;
    assert_eq!(versions(&w, "mc-free").await, 3, "it would have ended in the freeze");
    let ends = json!({ "ends_at": w.clock.now() + DAY * 15 });
    w.put("/api/v1/freezes/fr-long", ends).await.expect(200);
    w.clock.advance(DAY * 14);
    assert_eq!(
        w.get("/api/v1/freezes?ends_after=2027-01-01T00:00:00Z&sort=-startsAt")
            .await
            .expect(200)["total"],
        3
    );

    for (wrong, status) in [
        (json!({ "name": "x", "ends_at": "2020-01-01T00:00:00Z" }), 422),
        (json!({ "name": "", "ends_at": at(1) }), 422),
        (json!({ "name": "policy", "ends_at": at(1) }), 409),
        (
            json!({ "name": "y", "ends_at": at(1), "agent_group_ids": ["ag-none"] }),
            422,
        ),
    ] {
        let refused = w.post("/api/v1/freezes", wrong.clone()).await.problem();
        assert_eq!(refused.status, status, "{wrong}: {refused:?}");
    }
    w.delete("/api/v1/freezes/fr-long").await.expect(204);
    assert_eq!(w.delete("/api/v1/freezes/fr-long").await.problem().status, 404);
    let used = w.delete("/api/v1/renewal-policies/rp-other").await.problem();
    assert_eq!(used.status, 409, "a freeze refers to it");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn certificates_are_renewed_by_themselves_within_the_maintenance_windows_of_their_policy(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    // The world begins on a Friday at eight.
    let policy =
        json!({ "id": "rp-night", "name": "night", "maintenance_windows": ["Sat 22:00-04:00", "daily 03:00-03:30"] });
    let policy = w.post("/api/v1/renewal-policies", policy).await.expect(201);
    assert_eq!(
        policy["maintenance_windows"],
        json!(["Sat 22:00-04:00", "daily 03:00-03:30"])
    );
    w.certificate("mc-1", &["tgt-1"], json!({ "renewal_policy_id": "rp-night" }))
        .await;
    w.settle().await;
    w.clock.advance(DAY * 70);
    w.settle().await;
    assert_eq!(versions(&w, "mc-1").await, 1, "it is a Friday at eight");
    let why = w.get("/api/v1/certificates/mc-1/explain").await.expect(200);
    assert_eq!(
        (&why["cause"], &why["next"]["at"]),
        (&json!("Frozen"), &json!("2027-03-27T03:00:00Z"))
    );
    w.clock.advance(Duration::from_secs(19 * 3_600 + 60));
    w.settle().await;
    assert_eq!(versions(&w, "mc-1").await, 2, "it is three in the night");

    let none = json!({ "maintenance_windows": [] });
    let none = w.put("/api/v1/renewal-policies/rp-night", none).await.expect(200);
    assert_eq!(none["maintenance_windows"], json!([]));
    let wrong = json!({ "maintenance_windows": ["at night"] });
    let wrong = w.put("/api/v1/renewal-policies/rp-night", wrong).await.problem();
    assert!(
        wrong.status == 422 && wrong.detail.contains("Sat 22:00-04:00"),
        "{wrong:?}"
    );
}
