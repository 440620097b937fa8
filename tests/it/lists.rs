//! Lists: every row once, whatever happens meanwhile.

use std::collections::BTreeSet;

use certctl_tests::world::World;
use serde_json::{Value, json};
use sqlx::PgPool;

fn ids(page: &Value) -> Vec<String> {
    page["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["id"].as_str().unwrap().to_owned())
        .collect()
}

/// Walks a list by cursor; `meanwhile` happens before each page but the first.
async fn walk(w: &World, path: &str, meanwhile: impl AsyncFn(usize)) -> Vec<String> {
    let (mut seen, mut cursor) = (vec![], String::new());
    for n in 0.. {
        if n > 0 {
            meanwhile(n).await;
        }
        let page = w.get(&format!("{path}&page_size=7{cursor}")).await.expect(200);
        assert!(page["total"].is_i64() && page["page_size"] == 7, "{page}");
        let rows = ids(&page);
        assert!(rows.len() <= 7);
        seen.extend(rows);
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
        assert!(n < 100, "the walk ends");
    }
    seen
}

/// Certificates in pairs of ties: names, times, environments and ends are shared by two or more.
async fn certificates(w: &World, prefix: &str, count: usize) {
    w.sql(&format!(
        "INSERT INTO certificates (id, name, common_name, environment, owner_id, team_id, issuer_id, renewal_policy_id,
                                   created_at, updated_at)
         SELECT '{prefix}-' || n, '{prefix}-' || n, 'host-' || n / 3 || '.example.net', 'env-' || n % 4,
                'o-unassigned', 't-unassigned', 'iss-local', 'rp-default',
                to_timestamp(1800000000 + n / 5), to_timestamp(1800000000 - n / 2)
           FROM generate_series(1, {count}) n"
    ))
    .await;
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_walk_sees_every_row_that_stays_exactly_once_while_others_come_and_go(db: PgPool) {
    let w = World::new(db).await;
    certificates(&w, "stay", 40).await;
    let stay: BTreeSet<String> = (1..=40).map(|n| format!("stay-{n}")).collect();
    for (round, sort) in [
        "createdAt",
        "notAfter",
        "expiresAt",
        "updatedAt",
        "commonName",
        "name",
        "status",
        "environment",
    ]
    .iter()
    .flat_map(|key| [(*key).to_owned(), format!("-{key}"), format!("{key}&sort_desc=true")])
    .enumerate()
    {
        certificates(&w, &format!("go{round}"), 12).await;
        let meanwhile = async |n: usize| {
            w.sql(&format!("DELETE FROM certificates WHERE id = 'go{round}-{n}'"))
                .await;
            certificates(&w, &format!("come{round}x{n}"), 2).await;
        };
        let seen = walk(&w, &format!("/api/v1/certificates?sort={sort}"), meanwhile).await;
        let unique: BTreeSet<_> = seen.iter().cloned().collect();
        assert_eq!(unique.len(), seen.len(), "nothing twice by {sort}");
        assert!(
            stay.is_subset(&unique),
            "by {sort} missing: {:?}",
            stay.difference(&unique).collect::<Vec<_>>()
        );
        w.sql("DELETE FROM certificates WHERE id NOT LIKE 'stay-%'").await;
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_walk_is_in_order_and_its_reverse_is_the_reverse(db: PgPool) {
    let w = World::new(db).await;
    certificates(&w, "mc", 30).await;
    // What is asked: nothing, one value, a range, and two things at once; each in every order, that of what is asked too.
    for filter in [
        "",
        "&environment=env-1",
        "&status=Pending",
        "&created_before=2027-01-15T08:00:03Z",
        "&created_after=2020-01-01T00:00:00Z",
        "&expires_after=2020-01-01T00:00:00Z",
        "&environment=env-1&status=Pending",
        "&q=host",
    ] {
        let mut found = None;
        for key in ["createdAt", "commonName", "environment", "name", "status", "notAfter"] {
            let list = format!("/api/v1/certificates?sort={key}{filter}");
            let up = walk(&w, &list, async |_| ()).await;
            let mut down = walk(&w, &list.replace("sort=", "sort=-"), async |_| ()).await;
            down.reverse();
            assert_eq!(up, down, "{list}");
            let whole = w.get(&format!("{list}&per_page=500")).await.expect(200);
            assert_eq!((ids(&whole), &whole["total"]), (up.clone(), &json!(up.len())), "{list}");
            let second = w.get(&format!("{list}&per_page=4&page=2")).await.expect(200);
            assert_eq!(
                ids(&second),
                up.iter().skip(4).take(4).cloned().collect::<Vec<_>>(),
                "{list}"
            );
            let all: BTreeSet<_> = up.into_iter().collect();
            assert_eq!(
                found.get_or_insert_with(|| all.clone()),
                &all,
                "{list}: the same rows in every order"
            );
        }
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn pages_by_number_have_the_size_and_the_total_that_was_asked_for(db: PgPool) {
    let w = World::new(db).await;
    certificates(&w, "mc", 23).await;
    let mut seen = BTreeSet::new();
    for (page, rows) in [(1, 10), (2, 10), (3, 3), (4, 0), (1_000_000, 0)] {
        let answer = w
            .get(&format!("/api/v1/certificates?page={page}&per_page=10"))
            .await
            .expect(200);
        assert_eq!(
            (&answer["total"], &answer["page"], &answer["per_page"]),
            (&json!(23), &json!(page), &json!(10))
        );
        assert_eq!(answer["data"].as_array().unwrap().len(), rows);
        seen.extend(ids(&answer));
    }
    assert_eq!(seen.len(), 23);
    for (query, total) in [
        ("environment=env-1", 6),
        ("environment=none", 0),
        ("status=Pending", 23),
        ("status=Active", 0),
    ] {
        let answer = w
            .get(&format!("/api/v1/certificates?{query}&per_page=2"))
            .await
            .expect(200);
        assert_eq!(answer["total"], json!(total), "{query}");
    }
    // What is asked for beyond the most is the most.
    let answer = w.get("/api/v1/certificates?per_page=100000").await.expect(200);
    assert_eq!(answer["per_page"], 500);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn rows_have_the_fields_that_were_asked_for_and_no_others(db: PgPool) {
    let w = World::new(db).await;
    certificates(&w, "mc", 3).await;
    let answer = w
        .get("/api/v1/certificates?fields=id,common_name&sort=name")
        .await
        .expect(200);
    let first = json!({ "id": "mc-1", "common_name": "host-0.example.net" });
    assert_eq!((&answer["data"][0], &answer["total"]), (&first, &json!(3)));
    let problem = w.get("/api/v1/certificates?fields=id,colour").await.problem();
    assert_eq!((problem.status, problem.errors[0].field.as_str()), (400, "fields"));
    assert!(problem.errors[0].detail.contains("colour"), "{problem:?}");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_cursor_continues_its_own_list_only(db: PgPool) {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let w = World::new(db).await;
    certificates(&w, "mc", 20).await;
    let first = w
        .get("/api/v1/certificates?sort=createdAt&page_size=5")
        .await
        .expect(200);
    let cursor = first["next_cursor"].as_str().unwrap();
    let forged = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let no_time = forged(r#"{"s":"createdAt","f":"","k":"nonsense","i":"mc-1"}"#);
    let nul = forged(r#"{"s":"name","f":"","k":"\u0000","i":"\u0000"}"#);
    for (query, why) in [
        (format!("sort=-createdAt&cursor={cursor}"), "the other direction"),
        (format!("sort=name&cursor={cursor}"), "another order"),
        (format!("cursor={cursor}"), "the order of its own list"),
        (
            format!("sort=createdAt&environment=env-1&cursor={cursor}"),
            "another filter",
        ),
        (
            format!("sort=createdAt&page=2&cursor={cursor}"),
            "page and cursor at once",
        ),
        ("sort=createdAt&cursor=nonsense".to_owned(), "not a cursor"),
        (format!("sort=createdAt&cursor={}", forged("{}")), "not one of ours"),
        (format!("sort=createdAt&cursor={no_time}"), "no instant"),
        (format!("sort=name&cursor={nul}"), "a NUL"),
    ] {
        let problem = w.get(&format!("/api/v1/certificates?{query}")).await.problem();
        assert_eq!(problem.status, 400, "{why}: {problem:?}");
        assert_eq!(problem.errors[0].field, "cursor", "{why}");
    }
    w.get(&format!(
        "/api/v1/certificates?sort=createdAt&cursor={cursor}&page_size=5"
    ))
    .await
    .expect(200);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn every_list_pages_sorts_and_counts_in_the_same_way(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], Value::Null).await;
    w.settle().await;
    for list in [
        "certificates",
        "certificates/mc-1/versions",
        "issuers",
        "targets",
        "agents",
        "jobs",
        "profiles",
        "renewal-policies",
        "teams",
        "owners",
        "audit",
    ] {
        let path = format!("/api/v1/{list}");
        let all = w.get(&format!("{path}?per_page=500")).await.expect(200);
        let total = all["total"].as_i64().unwrap();
        assert_eq!(total as usize, all["data"].as_array().unwrap().len(), "{list}");
        let mut walked = vec![];
        let mut cursor = String::new();
        loop {
            let page = w.get(&format!("{path}?page_size=1{cursor}")).await.expect(200);
            assert_eq!(page["total"], all["total"], "{list}");
            walked.extend(ids(&page));
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(walked, ids(&all), "{list}");
        let problem = w.get(&format!("{path}?colour=red")).await.problem();
        assert_eq!(
            (problem.status, problem.errors[0].field.as_str()),
            (400, "colour"),
            "{list}"
        );
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_certificate_in_a_list_is_what_it_is_alone(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web").await;
    w.target("tgt-web", &host).await;
    let more = json!({ "sans": ["www.example.net", "10.0.0.1", "spiffe://example.net/web"],
                       "tags": { "quote": "\"\u{1f511}\"", "of": "line\\" }, "environment": "prüfung" });
    w.certificate("mc-full", &["tgt-web"], more).await;
    w.settle().await;
    w.certificate("mc-empty", &[], json!({})).await;
    w.post("/api/v1/certificates/mc-full/revoke", json!({ "reason": "superseded" }))
        .await
        .expect(200);
    w.sql("UPDATE certificates SET failure = 'none', failed_at = now(), renew_at = now(), last_renewal_at = now() WHERE id = 'mc-full'")
        .await;
    let page = w.get("/api/v1/certificates?sort=name").await.expect(200);
    let rows = page["data"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for row in rows {
        let path = format!("/api/v1/certificates/{}", row["id"].as_str().unwrap());
        assert_eq!(*row, w.get(&path).await.expect(200));
    }
    // As many fields as there are, none of them invented.
    let counts: Vec<usize> = rows.iter().map(|row| row.as_object().unwrap().len()).collect();
    assert_eq!(counts, [15, 26], "{page}");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_only_archived_certificates_use_can_be_deleted(db: PgPool) {
    let w = World::new(db).await;
    let things = [
        ("/api/v1/teams", "t-1", json!({})),
        (
            "/api/v1/owners",
            "o-1",
            json!({ "email": "o@example.net", "team_id": "t-unassigned" }),
        ),
        ("/api/v1/profiles", "prof-1", json!({})),
        ("/api/v1/renewal-policies", "rp-1", json!({})),
    ];
    for (path, id, base) in &things {
        let mut new = base.clone();
        new["id"] = json!(id);
        new["name"] = json!(id);
        w.post(path, new).await.expect(201);
    }
    let more =
        json!({ "owner_id": "o-1", "team_id": "t-1", "certificate_profile_id": "prof-1", "renewal_policy_id": "rp-1" });
    for id in ["mc-1", "mc-2"] {
        w.certificate(id, &[], more.clone()).await;
    }
    w.delete("/api/v1/certificates/mc-1").await.expect(204);
    for (path, id, _) in &things {
        assert_eq!(
            w.delete(&format!("{path}/{id}")).await.problem().status,
            409,
            "{id}: mc-2 lives"
        );
    }
    let kept = w.get("/api/v1/certificates/mc-1").await.expect(200);
    assert_eq!(kept["owner_id"], "o-1", "a deletion that is refused changes nothing");
    w.delete("/api/v1/certificates/mc-2").await.expect(204);
    for (path, id, _) in &things {
        w.delete(&format!("{path}/{id}")).await.expect(204);
    }
    let kept = w.get("/api/v1/certificates/mc-1").await.expect(200);
    assert_eq!(
        json!([
            kept["owner_id"],
            kept["team_id"],
            kept["certificate_profile_id"],
            kept["renewal_policy_id"]
        ]),
        json!(["o-unassigned", "t-unassigned", null, "rp-default"])
    );
    let told = "SELECT string_agg(action || ' ' || (details->>'archived_certificates'), ', ' ORDER BY sequence)
                  FROM audit_events WHERE action LIKE 'delete%'";
    assert_eq!(
        w.text(told).await,
        "delete_team 2, delete_owner 2, delete_profile 2, delete_renewal_policy 2"
    );
}
