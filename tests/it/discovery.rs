//! Certificates found on hosts.

use std::time::Duration;

use certctl_tests::{
    foreign::Authority,
    world::{Host, World},
};
use http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

fn entry(path: &str, pem: &str) -> Value {
    json!({
        "fingerprint_sha256": "00", "common_name": "claimed", "sans": null, "serial_number": "00", "is_ca": true,
        "pem_data": pem, "source_path": path, "source_format": "PEM",
    })
}

async fn report(w: &World, host: &Host, report: Value) -> Value {
    let path = format!("/api/v1/agents/{}/discoveries", host.id());
    w.raw(Method::POST, &path, Some(&host.key()), report.to_string())
        .await
        .expect(202)
}

async fn found(w: &World, query: &str) -> Vec<Value> {
    let page = w
        .get(&format!("/api/v1/discovered-certificates?{query}"))
        .await
        .expect(200);
    page["data"].as_array().unwrap().clone()
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_report_is_stored_with_what_the_certificates_say_themselves_and_repeated_without_harm(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    let theirs = Authority::new("Other");
    let leaf = theirs.leaf(&["a.example.net", "b.example.net"], -10, 80);
    let whole = json!({
        "agent_id": "somebody-else", "directories": ["/etc/tls"], "scan_duration_ms": 5000, "errors": null,
        "certificates": [entry("/etc/tls/a.pem", &leaf), entry("/etc/tls/b.pem", &leaf), entry("/etc/tls/ca.pem", &theirs.root)],
    });
    let scan = report(&w, &host, whole.clone()).await;
    assert_eq!(
        json!([
            scan["agent_id"],
            scan["certificates_found"],
            scan["certificates_new"],
            scan["errors_count"]
        ]),
        json!([host.id(), 3, 3, 0])
    );
    assert_eq!(scan["directories"], json!(["/etc/tls"]));
    let time = |key: &str| {
        scan[key]
            .as_str()
            .unwrap()
            .parse::<certctl_model::time::Time>()
            .unwrap()
    };
    assert_eq!(time("completed_at").since(time("started_at")), Duration::from_secs(5));
    let one = &found(&w, "is_ca=false&sort=commonName").await[0];
    assert_eq!(
        (&one["common_name"], &one["sans"], &one["status"]),
        (
            &json!("a.example.net"),
            &json!(["a.example.net", "b.example.net"]),
            &json!("Unmanaged")
        )
    );
    assert_ne!(one["fingerprint_sha256"], "00");
    assert_eq!(one.get("pem_data"), None, "lists leave the certificate out");
    assert_eq!(found(&w, "fields=id,pem_data&is_ca=false").await[0]["pem_data"], leaf);
    let id = one["id"].as_str().unwrap();
    let detail = w
        .get(&format!("/api/v1/discovered-certificates/{id}"))
        .await
        .expect(200);
    assert_eq!(detail["pem_data"], leaf);

    w.clock.advance(Duration::from_secs(60));
    let again = report(&w, &host, whole).await;
    assert_eq!(
        (&again["certificates_found"], &again["certificates_new"]),
        (&json!(3), &json!(0))
    );
    let seen = w
        .get(&format!("/api/v1/discovered-certificates/{id}"))
        .await
        .expect(200);
    assert_eq!(
        (&seen["discovery_scan_id"], &seen["first_seen_at"]),
        (&again["id"], &detail["first_seen_at"])
    );
    assert_ne!(seen["last_seen_at"], detail["last_seen_at"]);
    let scans = w.get("/api/v1/discovery-scans").await.expect(200);
    assert_eq!((&scans["total"], &scans["data"][0]["id"]), (&json!(2), &again["id"]));
    let events = w
        .text(
            "SELECT string_agg(actor || ' ' || (details ->> 'certificates_new'), ',' ORDER BY sequence)
                           FROM audit_events WHERE action = 'discovery_scan_completed'",
        )
        .await;
    assert_eq!(events, format!("{0} 3,{0} 0", host.id()));
    assert_eq!(
        w.get("/api/v1/discovery-summary").await.expect(200),
        json!({ "Unmanaged": 3, "Managed": 0, "Dismissed": 0 })
    );
    for (query, count) in [
        ("expired=true", 0),
        ("expired=false", 3),
        ("is_ca=true", 1),
        ("status=Managed", 0),
        ("agent_id=a-none", 0),
        ("expires_before=2027-06-01T00:00:00Z", 2),
        ("missing=true", 0),
    ] {
        assert_eq!(found(&w, query).await.len(), count, "{query}");
    }
    w.get("/api/v1/discovered-certificates?status=Lost").await.expect(400);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn odd_reports_are_taken_as_far_as_they_make_sense_or_leave_no_trace(db: PgPool) {
    let w = World::new(db).await;
    let (host, other) = (w.host("web-1").await, w.host("web-2").await);
    for empty in [
        json!({}),
        json!({ "directories": null, "certificates": null, "errors": null }),
    ] {
        let scan = report(&w, &host, empty).await;
        assert_eq!(
            (&scan["certificates_found"], &scan["directories"]),
            (&json!(0), &json!([]))
        );
    }
    let leaf = Authority::new("Other").leaf(&["a.example.net"], -10, 80);
    let scan = report(
        &w,
        &host,
        json!({
            "directories": ["/a"], "errors": ["/a/x: permission denied", "a\u{0}b"],
            "certificates": [entry("/a/1", &leaf), entry("/a/1", &leaf), entry("/a/2", "nonsense"), entry(&"x".repeat(5000), &leaf), {}],
        }),
    )
    .await;
    assert_eq!(
        (&scan["certificates_new"], &scan["errors_count"]),
        (&json!(1), &json!(5))
    );
    let errors: Vec<&str> = scan["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e.as_str().unwrap())
        .collect();
    assert!(
        errors.contains(&"/a/x: permission denied") && errors.contains(&"ab"),
        "{errors:?}"
    );

    let before = w.contents().await;
    let path = format!("/api/v1/agents/{}/discoveries", host.id());
    let half = format!(r#"{{"certificates": [{}, "#, entry("/a/9", &leaf));
    for (body, status) in [("[]", 400), ("{", 400), (&half, 400), (r#"{"directories": 7}"#, 400)] {
        w.raw(Method::POST, &path, Some(&host.key()), body.to_owned())
            .await
            .expect(status);
    }
    w.raw(Method::POST, &path, Some(&other.key()), "{}").await.expect(403);
    w.post("/api/v1/agents/a-none/discoveries", json!({})).await.expect(404);
    let after = w.contents().await;
    for table in ["discovery_scans", "discovered_certificates", "discovered_tallies"] {
        assert_eq!(before[table], after[table], "{table}");
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_a_whole_scan_does_not_find_any_more_is_missing_and_what_comes_back_is_not(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    let leaf = Authority::new("Other").leaf(&["a.example.net"], -10, 80);
    let both = json!({ "directories": ["/a/", "/b"], "certificates": [entry("/a/1", &leaf), entry("/b/1", &leaf), entry("/ab/1", &leaf)] });
    report(&w, &host, both.clone()).await;
    let missing = async || {
        let rows = found(&w, "missing=true").await;
        let mut paths: Vec<String> = rows
            .iter()
            .map(|row| row["source_path"].as_str().unwrap().to_owned())
            .collect();
        paths.sort();
        paths.join(" ")
    };
    // Not the whole: errors, or said to be a part.
    report(&w, &host, json!({ "directories": ["/a"], "errors": ["/a/2"] })).await;
    report(&w, &host, json!({ "directories": ["/a"], "partial": true })).await;
    assert_eq!(missing().await, "");
    report(&w, &host, json!({ "directories": ["/a"] })).await;
    assert_eq!(missing().await, "/a/1");
    report(&w, &host, both).await;
    assert_eq!(missing().await, "");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_was_found_is_claimed_once_dismissed_once_and_claimed_again(db: PgPool) {
    let w = World::new(db).await;
    let (host, other) = (w.host("web-1").await, w.host("web-2").await);
    let theirs = Authority::new("Other");
    let (a, b) = (
        theirs.leaf(&["a.example.net"], -10, 80),
        theirs.leaf(&["b.example.net"], -10, 80),
    );
    let entries = json!([entry("/a", &a), entry("/b", &b), entry("/ca", &theirs.root)]);
    report(&w, &host, json!({ "directories": ["/"], "certificates": entries })).await;
    report(
        &w,
        &other,
        json!({ "directories": ["/"], "certificates": [entry("/a", &a)] }),
    )
    .await;
    let rows = found(&w, &format!("agent_id={}&sort=commonName", host.id())).await;
    let ids: Vec<String> = rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect();
    let [ca, a_row, b_row] = ["Other Root", "a.example.net", "b.example.net"].map(|name| {
        let at = rows.iter().position(|row| row["common_name"] == name).unwrap();
        format!("/api/v1/discovered-certificates/{}", ids[at])
    });
    w.certificate("mc-1", &[], json!({})).await;
    let link = json!({ "managed_certificate_id": "mc-1" });
    let claimed = w.post(&format!("{a_row}/claim"), link.clone()).await.expect(200);
    assert_eq!(
        (&claimed["status"], &claimed["managed_certificate_id"]),
        (&json!("claimed"), &json!("mc-1"))
    );
    w.post(&format!("{a_row}/claim"), link.clone()).await.expect(409);
    w.post(
        &format!("{b_row}/claim"),
        json!({ "managed_certificate_id": "mc-none" }),
    )
    .await
    .expect(404);
    w.post("/api/v1/discovered-certificates/dcert-none/claim", link.clone())
        .await
        .expect(404);
    w.post("/api/v1/discovered-certificates/dcert-none/dismiss", json!({}))
        .await
        .expect(404);
    w.post(&format!("{ca}/claim"), json!({})).await.expect(409);

    let dismissed = w
        .post(&format!("{a_row}/dismiss"), json!({ "reason": "a test" }))
        .await
        .expect(200);
    assert_eq!(dismissed["status"], "dismissed");
    let row = w.get(&a_row).await.expect(200);
    assert_eq!(
        json!([row["status"], row["managed_certificate_id"], row["dismissal_reason"]]),
        json!(["Dismissed", null, "a test"])
    );
    w.post(&format!("{a_row}/dismiss"), json!({})).await.expect(409);
    w.post(
        &format!("{a_row}/claim"),
        json!({ "managed_certificate_id": "mc-1", "all_with_fingerprint": true }),
    )
    .await
    .expect(200);
    assert_eq!(
        found(&w, "managed_certificate_id=mc-1").await.len(),
        2,
        "the other host's too"
    );
    assert_eq!(
        w.get("/api/v1/discovery-summary").await.expect(200),
        json!({ "Unmanaged": 2, "Managed": 2, "Dismissed": 0 })
    );

    // Without a certificate to link it to, one is made.
    let claimed = w
        .post(
            &format!("{b_row}/claim"),
            json!({ "create": { "environment": "found" } }),
        )
        .await
        .expect(200);
    let id = claimed["managed_certificate_id"].as_str().unwrap();
    let made = w.get(&format!("/api/v1/certificates/{id}")).await.expect(200);
    assert_eq!(
        (&made["common_name"], &made["environment"]),
        (&json!("b.example.net"), &json!("found"))
    );
    assert_eq!(w.versions(id).await[0]["cert_pem"], b);
    let events = w
        .text(
            "SELECT string_agg(action || ' ' || actor, ',' ORDER BY sequence) FROM audit_events
                          WHERE resource_type = 'discovered_certificate'",
        )
        .await;
    assert_eq!(
        events,
        [
            "discovery_cert_claimed api-key-user",
            "discovery_cert_dismissed api-key-user"
        ]
        .iter()
        .chain(&["discovery_cert_claimed api-key-user"; 3])
        .copied()
        .collect::<Vec<_>>()
        .join(",")
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn versions_of_managed_certificates_are_recognised_where_they_are_found(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], json!({})).await;
    w.settle().await;
    let ours = host.served("tgt-1").unwrap().to_pem();
    let theirs = Authority::new("Other").leaf(&["a.example.net"], -10, 80);
    report(
        &w,
        &host,
        json!({ "certificates": [entry("/ours", &ours), entry("/theirs", &theirs)] }),
    )
    .await;
    assert_eq!(found(&w, "status=Managed").await[0]["managed_certificate_id"], "mc-1");
    // What is imported later becomes managed where it was found.
    let result = w
        .post("/api/v1/certificates/import", json!({ "pem": theirs }))
        .await
        .expect(200);
    let managed = found(&w, "status=Managed&sort=commonName").await;
    assert_eq!(managed.len(), 2);
    assert_eq!(
        managed[0]["managed_certificate_id"],
        result["data"][0]["certificate_id"]
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_report_of_many_certificates_is_stored_whole_or_not_at_all(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    let theirs = Authority::new("Other");
    let leaves: Vec<String> = (0..20)
        .map(|n| theirs.leaf(&[&format!("h{n}.example.net")], -10, 80))
        .collect();
    // More than an ordinary body may have, and several batches.
    let entries: Vec<Value> = (0..3000)
        .map(|n| entry(&format!("/tls/{n}.pem"), &leaves[n % leaves.len()]))
        .collect();
    let whole = json!({ "directories": ["/tls"], "certificates": entries }).to_string();
    assert!(whole.len() > 1 << 20);
    let path = format!("/api/v1/agents/{}/discoveries", host.id());
    let cut = whole[..whole.len() - 3].to_owned();
    w.raw(Method::POST, &path, Some(&host.key()), cut).await.expect(400);
    assert_eq!(w.text("SELECT count(*)::text FROM discovered_certificates").await, "0");
    let scan = w.raw(Method::POST, &path, Some(&host.key()), whole).await.expect(202);
    assert_eq!(
        (&scan["certificates_found"], &scan["certificates_new"]),
        (&json!(3000), &json!(3000))
    );
    assert_eq!(w.get("/api/v1/discovery-summary").await.expect(200)["Unmanaged"], 3000);
    let tallies = w.text("SELECT count(*)::text FROM discovered_tallies").await;
    assert_eq!(tallies, "1", "folded at the end of the report");
}
