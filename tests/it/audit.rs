//! The trail for reading: filters, files, and what every answer has in common.

use certctl_tests::world::{Answer, KEY, World};
use http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

async fn three_thousand_events(w: &World) {
    w.sql(
        "INSERT INTO audit_events (id, actor, actor_type, action, resource_type, resource_id, details, at)
         SELECT format('audit-%s', lpad(n::text, 6, '0')), (ARRAY['anna', 'ben', '=cmd()'])[1 + n % 3], 'User',
                (ARRAY['made', 'unmade'])[1 + n % 2], (ARRAY['team', 'owner'])[1 + n % 2], 't-' || n % 10, '{}',
                to_timestamp(1700000000 + n / 2)
           FROM generate_series(0, 2999) n",
    )
    .await;
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn every_filter_of_the_trail_narrows_it(db: PgPool) {
    let w = World::new(db).await;
    three_thousand_events(&w).await;
    for (filter, total) in [
        ("actor=anna", 1000),
        ("action=made", 1500),
        ("resource=team", 1500),
        ("resource=t-3", 300),
        ("resource_type=owner", 1500),
        ("resource_id=t-3", 300),
        ("resource_id=t-3&actor=anna", 100),
        ("actor=an", 1000),
        ("action=mad", 1500),
        ("action=ade", 0),
        ("resource_type=own", 1500),
        ("actor=an%25", 0),
        ("before=2023-11-14T22:13:25Z&actor=anna", 4),
        ("to=2023-11-14T22:13:25Z&actor=anna", 4),
        ("after=2023-11-14T22:38:18Z&resource=team", 1),
        ("from=2023-11-14T22:38:18Z&resource=team", 1),
    ] {
        let page = w.get(&format!("/api/v1/audit?{filter}")).await.expect(200);
        assert_eq!(page["total"], total, "{filter}");
        let file = w.get(&format!("/api/v1/audit/export?format=json&{filter}")).await;
        assert_eq!(file.json().as_array().unwrap().len(), total, "{filter}");
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn the_trail_is_written_whole_as_csv_and_as_json(db: PgPool) {
    let w = World::new(db).await;
    three_thousand_events(&w).await;
    let file = w.get("/api/v1/audit/export").await;
    assert_eq!(file.header("content-type"), "text/csv; charset=utf-8");
    assert_eq!(file.header("content-disposition"), "attachment; filename=\"audit.csv\"");
    let text = String::from_utf8(file.octets).unwrap();
    let lines: Vec<&str> = text.split_terminator("\r\n").collect();
    assert_eq!(
        lines[0],
        "id,timestamp,actor,actor_type,action,resource_type,resource_id,details"
    );
    let count = w.text("SELECT count(*)::text FROM audit_events").await;
    assert_eq!((lines.len() - 1).to_string(), count);
    assert!(
        lines.contains(&"audit-000002,2023-11-14T22:13:21Z,'=cmd(),User,made,team,t-2,{}"),
        "{}",
        lines[lines.len() - 3]
    );

    let file = w.get("/api/v1/audit/export?format=json&actor=ben").await;
    assert_eq!(file.header("content-type"), "application/json");
    let events = file.expect(200);
    let ids: Vec<&str> = events
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids.len(), 1000);
    assert!(ids.is_sorted_by(|a, b| a > b));
    let none = w.get("/api/v1/audit/export?format=json&actor=nobody").await;
    assert_eq!(none.expect(200), json!([]));
    assert_eq!(w.get("/api/v1/audit/export?format=xml").await.problem().status, 400);
    assert_eq!(
        w.raw(Method::GET, "/api/v1/audit/export", None, "")
            .await
            .problem()
            .status,
        401
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_has_not_changed_is_not_sent_again(db: PgPool) {
    let w = World::new(db).await;
    let ask = async |path: &str, tag: &str| -> Answer {
        let request = w.http.get(format!("{}{path}", w.url)).bearer_auth(KEY);
        w.ask(path, request.header("if-none-match", tag)).await
    };
    let made = w.post("/api/v1/teams", json!({ "name": "a" })).await.expect(201);
    let item = format!("/api/v1/teams/{}", made["id"].as_str().unwrap());
    for path in ["/api/v1/teams", &item] {
        let first = w.get(path).await;
        let tag = first.header("etag").to_owned();
        assert!(tag.starts_with("W/\""), "{tag}");
        assert_eq!(first.header("cache-control"), "private, no-cache");
        for known in [
            tag.clone(),
            format!("\"x\", {tag}"),
            tag[2..].to_owned(),
            "*".to_owned(),
        ] {
            let again = ask(path, &known).await;
            assert_eq!(
                (again.status, again.octets.len(), again.header("etag")),
                (304, 0, tag.as_str())
            );
            assert!(!again.header("x-request-id").is_empty());
        }
        w.put(&item, json!({ "name": format!("b{}", path.len()) }))
            .await
            .expect(200);
        assert_ne!(ask(path, &tag).await.expect(200), Value::Null);
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn head_unknown_paths_and_unknown_methods_are_answered_alike(db: PgPool) {
    let w = World::new(db).await;
    for path in ["/api/v1/teams", "/health", "/api/v1/audit", "/api/v1/audit/export"] {
        let (head, get) = (w.raw(Method::HEAD, path, Some(KEY), "").await, w.get(path).await);
        assert_eq!((head.status, head.octets.len()), (200, 0), "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
        assert_eq!(head.header("etag"), get.header("etag"), "{path}");
    }
    assert_eq!(w.get("/api/v1/nothing").await.problem().status, 404);
    let odd = w.raw(Method::PATCH, "/api/v1/teams", Some(KEY), "").await;
    assert_eq!(odd.problem().status, 405);
    assert!(odd.header("allow").contains("POST"), "{}", odd.header("allow"));
}
