//! Principals that try to pass as another principal.

use std::time::Duration;

use certctl_contract::{
    catalogue,
    endpoint::{Access, Class},
};
use certctl_tests::{
    idp::Idp,
    world::{Answer, BEGIN, KEY, World},
};
use http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

const TEAMS: &str = "/api/v1/teams";
const AUDIENCE: &str = "certctl-api";

async fn key(w: &World, new: Value) -> (String, String) {
    let made = w.post("/api/v1/api-keys", new).await.expect(201);
    let text = |name: &str| made[name].as_str().unwrap().to_owned();
    (text("id"), text("api_key"))
}

/// An API that takes tokens of this provider.
async fn jwt_api(w: &World, idp: &Idp) -> String {
    let keys = format!("{}/keys", idp.url());
    let settings = [
        "--auth-type",
        "jwt",
        "--jwt-issuer",
        idp.url(),
        "--jwt-audience",
        AUDIENCE,
    ];
    let settings = [settings.as_slice(), &["--jwt-jwks-url", &keys]].concat();
    w.api(&settings).await.0
}

fn claims(idp: &Idp, more: Value) -> Value {
    let mut all = json!({ "iss": idp.url(), "aud": AUDIENCE, "sub": "ada", "exp": BEGIN + 600, "role": "operator" });
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    all
}

async fn post(w: &World, url: &str, path: &str, key: &str, once: Option<&str>, body: Value) -> Answer {
    let mut request = w.http.post(format!("{url}{path}")).bearer_auth(key).json(&body);
    if let Some(once) = once {
        request = request.header("idempotency-key", once);
    }
    w.ask(path, request).await
}

/// Begins a session with a key, and sends a request in it.
async fn in_session(w: &World, url: &str, key: &str, path: &str, once: Option<&str>, body: Value) -> Answer {
    let begun = post(w, url, "/api/v1/sessions", key, None, json!({})).await;
    let cookie = begun.header("set-cookie").split_once(';').unwrap().0.to_owned();
    let csrf = begun.expect(201)["csrf_token"].as_str().unwrap().to_owned();
    let mut request = w.http.post(format!("{url}{path}")).json(&body);
    request = request.header("cookie", cookie).header("x-csrf-token", csrf);
    request = request.header("sec-fetch-site", "same-origin");
    if let Some(once) = once {
        request = request.header("idempotency-key", once);
    }
    w.ask(path, request).await
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_key_and_a_token_of_one_name_are_two_principals_and_a_session_none_of_its_own(db: PgPool) {
    let w = World::new(db).await;
    let idp = w.idp().await;
    idp.publish(vec![idp.key.jwk("k")]);
    let url = jwt_api(&w, &idp).await;
    let (_, named) = key(&w, json!({ "name": "ada", "role": "operator" })).await;
    let token = idp.key.token("k", Value::Null, &claims(&idp, json!({})));
    let certificate = |name: &str| json!({ "id": name, "common_name": format!("{name}.example.net") });
    let path = "/api/v1/certificates";

    // One idempotency key: what one of them did is not told to the other, and neither stands in its way.
    let by_key = post(&w, &url, path, &named, Some("one"), certificate("mc-key")).await;
    let by_token = post(&w, &url, path, &token, Some("one"), certificate("mc-token")).await;
    assert_eq!(
        (&by_key.expect(201)["id"], &by_token.expect(201)["id"]),
        (&json!("mc-key"), &json!("mc-token"))
    );
    // A session is of the principal that began it.
    for (credential, id) in [(&named, "mc-key"), (&token, "mc-token")] {
        let again = in_session(&w, &url, credential, path, Some("one"), certificate(id)).await;
        assert_eq!(again.header("idempotency-replayed"), "true", "{again:?}");
        assert_eq!(again.expect(201)["id"], id);
    }
    let trail = w
        .text(
            "SELECT string_agg(DISTINCT resource_id || ' ' || actor, ', ') FROM audit_events
              WHERE action = 'certificate_created'",
        )
        .await;
    assert_eq!(trail, format!("mc-key ada, mc-token jwt:{}#ada", idp.url()));
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn nobody_approves_in_a_session_what_was_requested_with_the_key(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    let policy = json!({ "id": "rp-1", "name": "two persons", "approval": "always" });
    w.post("/api/v1/renewal-policies", policy).await.expect(201);
    let idp = w.idp().await;
    idp.publish(vec![idp.key.jwk("k")]);
    let url = jwt_api(&w, &idp).await;
    let (id, named) = key(&w, json!({ "name": "ada", "role": "operator" })).await;
    let new = json!({ "id": "mc-1", "common_name": "mc-1.example.net", "target_ids": ["tgt-1"], "renewal_policy_id": "rp-1" });
    post(&w, &url, "/api/v1/certificates", &named, None, new)
        .await
        .expect(201);
    w.settle().await;
    let job = w
        .text("SELECT min(id) FROM jobs WHERE status = 'AwaitingApproval'")
        .await;
    let path = format!("/api/v1/jobs/{job}/approve");
    for answer in [
        post(&w, &url, &path, &named, None, json!({})).await,
        in_session(&w, &url, &named, &path, None, json!({})).await,
    ] {
        assert_eq!(answer.status, 403, "{answer:?}");
    }
    // Another name does not make another person of it.
    let renamed = w.put(&format!("/api/v1/api-keys/{id}"), json!({ "name": "bob" })).await;
    assert_eq!(renamed.status, 409, "{renamed:?}");
    // A person whom the provider calls by the same name is another one.
    let token = idp.key.token("k", Value::Null, &claims(&idp, json!({})));
    post(&w, &url, &path, &token, None, json!({})).await.expect(200);
    w.settle().await;
    w.put(&format!("/api/v1/api-keys/{id}"), json!({ "name": "bob" }))
        .await
        .expect(200);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn no_key_has_the_name_of_another_principal_in_any_disguise(db: PgPool) {
    let w = World::new(db).await;
    let (id, _) = key(&w, json!({ "name": "operations", "role": "viewer" })).await;
    for name in [
        "System",
        "api\u{2010}key\u{2010}user",
        "ѕystem",
        "ａｎｏｎｙｍｏｕｓ",
        "bootstrap\u{200b}",
        "\u{202e}ada",
        "jwt:https://idp.example.test#ada",
        "Operations",
        "оperations",
        "operatіons",
    ] {
        let answer = w
            .post("/api/v1/api-keys", json!({ "name": name, "role": "viewer" }))
            .await;
        assert_eq!(answer.status, 422, "{name:?} {answer:?}");
    }
    // A key that had such a name before goes by its id.
    w.sql("UPDATE api_keys SET name = 'system'").await;
    let made = w
        .post(&format!("/api/v1/api-keys/{id}/rotate"), json!({}))
        .await
        .expect(200);
    let secret = made["api_key"].as_str().unwrap();
    let party = w
        .raw(Method::GET, "/api/v1/sessions/current", Some(secret), "")
        .await
        .expect(200);
    assert_eq!(party["name"], format!("key:{id}"));
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn no_text_of_a_request_holds_an_invisible_character(db: PgPool) {
    let w = World::new(db).await;
    let before = w.contents().await;
    let mut asked = 0;
    for operation in catalogue() {
        let of_people = matches!(operation.access, Access::Needs(_) | Access::Bootstrap);
        let streams = matches!(operation.class, Class::Import | Class::Upload | Class::Export);
        if operation.body.is_none() || !of_people || streams {
            continue;
        }
        let parts = operation.path();
        let path: Vec<&str> = parts
            .split('/')
            .map(|part| if part.starts_with('{') { "x-1" } else { part })
            .collect();
        for odd in [
            "a\u{0}b",
            "a\u{200b}b",
            "a\u{202e}b",
            "\u{feff}a",
            "a\u{1b}[2Jb",
            "a\u{ad}b",
        ] {
            for body in [
                json!({ "name": odd, "reason": odd }),
                json!({ "tags": { "team": odd } }),
                json!({ "tags": { odd: "x" } }),
                json!({ "config": { "list": ["x", odd] } }),
            ] {
                let answer = w.send(operation.method.clone(), &path.join("/"), body).await;
                let problem = answer.problem();
                assert!(
                    answer.status == 422 && problem.detail.contains("invisible"),
                    "{answer:?}"
                );
                asked += 1;
            }
        }
    }
    assert!(asked > 500, "{asked}");
    assert_eq!(w.contents().await, before, "nothing was changed");
    // Lines, other alphabets and encoded data are no such thing.
    let team = json!({ "name": "Größe 名前 اسم", "description": "one\nand\ttwo" });
    w.post(TEAMS, team).await.expect(201);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_request_that_waits_ends_when_its_key_is_revoked(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    let (id, secret) = key(
        &w,
        json!({ "name": "of web-1", "role": "agent", "agent_id": host.id() }),
    )
    .await;
    let (_, operator) = key(&w, json!({ "name": "ops", "role": "operator" })).await;
    let work = format!("{}/api/v1/agents/{}/work?wait=60s", w.url, host.id());
    let ops = w.text("SELECT id FROM api_keys WHERE name = 'ops'").await;
    let (revoke, rotate) = (
        format!("/api/v1/api-keys/{id}"),
        format!("/api/v1/api-keys/{ops}/rotate"),
    );
    for (secret, method, path) in [(&secret, Method::DELETE, revoke), (&operator, Method::POST, rotate)] {
        let began = std::time::Instant::now();
        let waiting = w.ask("work", w.http.get(&work).bearer_auth(secret));
        // By the time that others were answered it waits; one that is not there yet is refused at once.
        let (answer, ended) = tokio::join!(waiting, async {
            for _ in 0..20 {
                w.get(TEAMS).await.expect(200);
            }
            w.send(method, &path, json!({ "overlap_seconds": 0 })).await
        });
        assert!(ended.status < 300, "{ended:?}");
        assert_eq!(answer.status, 401, "{answer:?}");
        assert!(began.elapsed() < Duration::from_secs(30), "it did not wait to the end");
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn no_agent_registers_with_the_key_of_another_party(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    let (_, named) = key(&w, json!({ "name": "ci", "role": "viewer" })).await;
    let new = |id: &str, key: &str| json!({ "id": id, "name": id, "hostname": id, "api_key": key });
    for taken in [
        host.key(),
        named,
        KEY.to_owned(),
        certctl_tests::world::BOOTSTRAP.to_owned(),
    ] {
        let answer = w.post("/api/v1/agents", new("a-2", &taken)).await;
        assert_eq!(answer.status, 422, "{answer:?}");
        assert_eq!(answer.problem().errors[0].field, "api_key");
    }
    let own = "a-key-of-32-characters-or-more-of-its-own";
    w.post("/api/v1/agents", new("a-2", own)).await.expect(201);
    w.post("/api/v1/agents", new("a-2", own)).await.expect(201);
    // Two agents that came to one key before it was looked at are neither of them.
    w.sql(&format!(
        "UPDATE agents SET api_key_hash = (SELECT api_key_hash FROM agents WHERE id = 'a-2') WHERE id = '{}'",
        host.id()
    ))
    .await;
    for agent in ["a-2", host.id()] {
        let path = format!("/api/v1/agents/{agent}/work");
        let answer = w.raw(Method::GET, &path, Some(own), "").await;
        assert_eq!(answer.status, 401, "{answer:?}");
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn tokens_that_readers_could_understand_differently_are_refused(db: PgPool) {
    let w = World::new(db).await;
    let idp = w.idp().await;
    idp.publish(vec![idp.key.jwk("k")]);
    let url = jwt_api(&w, &idp).await;
    let with = |header: Value, more: Value| idp.key.token("k", header, &claims(&idp, more));
    let none = Value::Null;
    for (what, token, status) in [
        ("no kind", with(none.clone(), json!({})), 200),
        ("JWT", with(json!({ "typ": "JWT" }), json!({})), 200),
        ("access token", with(json!({ "typ": "at+jwt" }), json!({})), 200),
        ("logout token", with(json!({ "typ": "logout+jwt" }), json!({})), 401),
        (
            "proof of possession",
            with(json!({ "typ": "dpop+jwt" }), json!({})),
            401,
        ),
        (
            "issuers",
            with(none.clone(), json!({ "iss": [idp.url(), "https://other.test"] })),
            401,
        ),
        (
            "issuer in a list",
            with(none.clone(), json!({ "iss": [idp.url()] })),
            401,
        ),
        (
            "audience of an object",
            with(none.clone(), json!({ "aud": { AUDIENCE: true } })),
            401,
        ),
        (
            "audiences with a number",
            with(none.clone(), json!({ "aud": [AUDIENCE, 7] })),
            401,
        ),
        ("party in a list", with(none.clone(), json!({ "azp": ["other"] })), 401),
        ("party", with(none.clone(), json!({ "azp": "other" })), 200),
        (
            "a hidden character in its subject",
            with(none.clone(), json!({ "sub": "a\u{200b}da" })),
            401,
        ),
        ("a name of ours", with(none.clone(), json!({ "sub": "SYSTEM" })), 401),
    ] {
        let answer = w
            .ask(what, w.http.get(format!("{url}{TEAMS}")).bearer_auth(token))
            .await;
        assert_eq!(answer.status, status, "{what}: {answer:?}");
    }
    // The same claim twice: a library that takes the first reads another role than one that takes the last.
    let said = claims(&idp, json!({})).to_string();
    let twice = said.replacen('{', "{\"role\":\"admin\",", 1);
    let token = idp.key.token_of("k", Value::Null, &twice);
    let answer = w
        .ask("twice", w.http.get(format!("{url}{TEAMS}")).bearer_auth(token))
        .await;
    assert_eq!(answer.status, 401, "{answer:?}");
    assert!(answer.problem().detail.contains("twice"), "{answer:?}");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_page_that_points_its_own_name_here_learns_nothing(db: PgPool) {
    let w = World::new(db).await;
    let settings = [
        "--auth-type",
        "none",
        "--allowed-hosts",
        "certctl.corp.example, Other.example",
    ];
    let (url, _) = w.api(&settings).await;
    let port = url.rsplit(':').next().unwrap();
    for (host, status) in [
        (format!("127.0.0.1:{port}"), 200),
        (format!("localhost:{port}"), 200),
        (format!("app.localhost:{port}"), 200),
        ("[::1]:8080".to_owned(), 200),
        ("certctl-server:8443".to_owned(), 200),
        ("certctl.corp.example".to_owned(), 200),
        ("other.EXAMPLE:8080".to_owned(), 200),
        (format!("rebound.attacker.example:{port}"), 403),
        ("127.0.0.1.attacker.example".to_owned(), 403),
        ("localhost.attacker.example".to_owned(), 403),
        ("certctl.corp.example.attacker.example".to_owned(), 403),
        ("user@127.0.0.1.attacker.example".to_owned(), 403),
    ] {
        let answer = w
            .ask(&host, w.http.get(format!("{url}{TEAMS}")).header("host", &host))
            .await;
        assert_eq!(answer.status, status, "{host}: {answer:?}");
    }
    // With authentication a foreign page has nothing to show.
    let asked = w
        .http
        .get(format!("{}{TEAMS}", w.url))
        .header("host", "rebound.attacker.example");
    w.ask("rebound", asked.bearer_auth(KEY)).await.expect(200);
}
