//! Keys and tokens: who holds one is known, until it ends.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use certctl_tests::{
    idp::{Idp, Key},
    world::{BEGIN, BOOTSTRAP, KEY, World},
};
use http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

const TEAMS: &str = "/api/v1/teams";

/// Makes a key: its id and its secret.
async fn key(w: &World, new: Value) -> (String, String) {
    let made = w.post("/api/v1/api-keys", new).await.expect(201);
    let text = |name: &str| made[name].as_str().unwrap().to_owned();
    (text("id"), text("api_key"))
}

/// What a bearer token gets at this API.
async fn tried(w: &World, url: &str, token: &str, path: &str) -> u16 {
    let request = w.http.get(format!("{url}{path}")).bearer_auth(token);
    w.ask(path, request).await.status
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_named_key_is_shown_once_and_is_named_in_the_trail(db: PgPool) {
    let w = World::new(db).await;
    let new = json!({ "name": "ci", "role": "admin", "expires_at": "2027-02-01T00:00:00Z" });
    let made = w.post("/api/v1/api-keys", new).await.expect(201);
    let secret = made["api_key"].as_str().unwrap();
    assert!(
        secret.starts_with("ck_") && secret.len() == 3 + 43,
        "256 bits as base64url"
    );
    let id = made["id"].as_str().unwrap();
    let shown = w.get(&format!("/api/v1/api-keys/{id}")).await.expect(200);
    assert_eq!(
        shown,
        json!({
            "id": id, "name": "ci", "role": "admin", "prefix": &secret[..8], "created_by": "api-key-user",
            "created_at": w.clock.now(), "updated_at": w.clock.now(), "expires_at": "2027-02-01T00:00:00Z"
        })
    );
    assert_eq!(w.get("/api/v1/api-keys").await.expect(200)["data"], json!([shown]));
    let hash = w.text("SELECT hash FROM api_key_secrets").await;
    assert!(hash.len() == 64 && !hash.contains(secret));

    let team = json!({ "name": "made by ci" }).to_string();
    w.raw(Method::POST, TEAMS, Some(secret), team).await.expect(201);
    let actor = w
        .text("SELECT actor FROM audit_events WHERE action = 'create_team'")
        .await;
    assert_eq!(actor, "ci");

    certctl_api::auth::keep_house(&w.app).await.unwrap();
    let used = w.get(&format!("/api/v1/api-keys/{id}")).await.expect(200);
    assert_eq!(used["last_used_at"], json!(w.clock.now()));

    w.clock.advance(Duration::from_secs(20 * 24 * 3600));
    assert_eq!(tried(&w, &w.url, secret, TEAMS).await, 401, "it has ended");
    let changes = json!({ "expires_at": "", "role": "viewer", "name": "was ci" });
    let changed = w.put(&format!("/api/v1/api-keys/{id}"), changes).await.expect(200);
    assert_eq!(
        (&changed["role"], &changed["expires_at"]),
        (&json!("viewer"), &Value::Null)
    );
    assert_eq!(tried(&w, &w.url, secret, TEAMS).await, 200);
    let team = json!({ "name": "no longer" }).to_string();
    assert_eq!(w.raw(Method::POST, TEAMS, Some(secret), team).await.status, 403);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn keys_that_make_no_sense_are_refused(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    key(&w, json!({ "name": "taken", "role": "viewer" })).await;
    for (new, status, field) in [
        (json!({ "name": "taken", "role": "viewer" }), 409, "name"),
        (json!({ "name": "", "role": "viewer" }), 422, "name"),
        (json!({ "name": "api-key-user", "role": "viewer" }), 422, "name"),
        (json!({ "name": "System", "role": "viewer" }), 422, "name"),
        (json!({ "name": "a", "role": "root" }), 400, "role"),
        (json!({ "name": "a", "role": "agent" }), 422, "agent_id"),
        (
            json!({ "name": "a", "role": "agent", "agent_id": "a-none" }),
            422,
            "agent_id",
        ),
        (
            json!({ "name": "a", "role": "viewer", "agent_id": host.id() }),
            422,
            "agent_id",
        ),
        (
            json!({ "name": "a", "role": "viewer", "replaces_others": true }),
            422,
            "replaces_others",
        ),
        (
            json!({ "name": "a", "role": "viewer", "expires_at": "2027-01-01T00:00:00Z" }),
            422,
            "expires_at",
        ),
    ] {
        let answer = w.post("/api/v1/api-keys", new).await;
        let problem = answer.problem();
        assert_eq!(
            (answer.status, problem.errors[0].field.as_str()),
            (status, field),
            "{answer:?}"
        );
    }
    let (id, _) = key(
        &w,
        json!({ "name": "of web-1", "role": "agent", "agent_id": host.id() }),
    )
    .await;
    let changed = w
        .put(&format!("/api/v1/api-keys/{id}"), json!({ "role": "admin" }))
        .await;
    assert_eq!(changed.status, 422, "{changed:?}");
    let rotated = w
        .post(
            &format!("/api/v1/api-keys/{id}/rotate"),
            json!({ "overlap_seconds": 9_999_999 }),
        )
        .await;
    assert_eq!(rotated.status, 422, "{rotated:?}");
    for (method, path) in [
        (Method::GET, "/api/v1/api-keys/key-none"),
        (Method::PUT, "/api/v1/api-keys/key-none"),
        (Method::POST, "/api/v1/api-keys/key-none/rotate"),
        (Method::DELETE, "/api/v1/api-keys/key-none"),
    ] {
        assert_eq!(w.send(method, path, Value::Null).await.status, 404, "{path}");
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_rotated_secret_overlaps_as_long_as_was_asked_for(db: PgPool) {
    let w = World::new(db).await;
    let (id, first) = key(&w, json!({ "name": "ci", "role": "viewer" })).await;
    let path = format!("/api/v1/api-keys/{id}/rotate");
    let rotated = w.post(&path, Value::Null).await.expect(200);
    let second = rotated["api_key"].as_str().unwrap().to_owned();
    assert_eq!(
        rotated["previous_valid_until"],
        json!(w.clock.now() + Duration::from_secs(24 * 3600))
    );
    let both = [&first, &second];
    let statuses = async || {
        let mut all = vec![];
        for secret in both {
            all.push(tried(&w, &w.url, secret, TEAMS).await);
        }
        all
    };
    assert_eq!(statuses().await, [200, 200]);
    w.clock.advance(Duration::from_secs(24 * 3600 - 1));
    assert_eq!(statuses().await, [200, 200]);
    w.clock.advance(Duration::from_secs(1));
    assert_eq!(statuses().await, [401, 200], "the day is over");
    let third = w.post(&path, json!({ "overlap_seconds": 0 })).await.expect(200);
    assert_eq!(statuses().await, [401, 401], "at once");
    assert_eq!(tried(&w, &w.url, third["api_key"].as_str().unwrap(), TEAMS).await, 200);
    certctl_api::auth::keep_house(&w.app).await.unwrap();
    assert_eq!(w.text("SELECT count(*)::text FROM api_key_secrets").await, "1");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_revoked_key_is_refused_by_every_replica_from_the_next_request_on(db: PgPool) {
    let w = World::new(db).await;
    let (replica, _) = w.api(&["--auth-secret", KEY]).await;
    let (id, secret) = key(&w, json!({ "name": "ci", "role": "viewer" })).await;
    for url in [&w.url, &replica] {
        assert_eq!(tried(&w, url, &secret, TEAMS).await, 200);
    }
    w.delete(&format!("/api/v1/api-keys/{id}")).await.expect(204);
    for url in [&w.url, &replica] {
        assert_eq!(tried(&w, url, &secret, TEAMS).await, 401);
    }
    let trail = w
        .text("SELECT string_agg(action || ' ' || (details ->> 'name'), ', ' ORDER BY action) FROM audit_events WHERE resource_type = 'api_key'")
        .await;
    assert_eq!(trail, "create_api_key ci, revoke_api_key ci");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn an_agents_key_can_be_replaced_and_the_one_of_its_registration_ended(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    let work = format!("/api/v1/agents/{}/work", host.id());
    let (_, first) = key(&w, json!({ "name": "web-1 a", "role": "agent", "agent_id": host.id() })).await;
    for secret in [&host.key(), &first] {
        assert_eq!(tried(&w, &w.url, secret, &work).await, 200);
        assert_eq!(tried(&w, &w.url, secret, TEAMS).await, 403);
    }
    let new = json!({ "name": "web-1 b", "role": "agent", "agent_id": host.id(), "replaces_others": true });
    let (_, second) = key(&w, new).await;
    for (secret, status) in [(&host.key(), 401), (&first, 401), (&second, 200)] {
        assert_eq!(tried(&w, &w.url, secret, &work).await, status);
    }
}

const AUDIENCE: &str = "certctl-api";

/// Claims of a good token, with `more`; null takes one away.
fn claims(issuer: &str, more: Value) -> Value {
    let mut all = json!({
        "iss": issuer, "aud": AUDIENCE, "sub": "ada", "exp": BEGIN + 600, "role": "operator"
    });
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    all.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    all
}

async fn jwt_api(w: &World, idp: &Idp) -> String {
    let keys = format!("{}/keys", idp.url());
    let args = [
        "--auth-type",
        "jwt",
        "--jwt-issuer",
        idp.url(),
        "--jwt-audience",
        AUDIENCE,
        "--jwt-jwks-url",
        &keys,
    ];
    w.api(&args).await.0
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn tokens_of_the_issuer_are_taken_and_every_other_is_refused(db: PgPool) {
    let w = World::new(db).await;
    let idp = w.idp().await;
    let (rsa, ec, ed) = (Key::rsa(), Key::ec(), Key::ed());
    idp.publish(vec![rsa.jwk("r"), ec.jwk("e"), ed.jwk("d")]);
    let url = jwt_api(&w, &idp).await;
    let good = |more: Value| claims(idp.url(), more);
    let none = Value::Null;
    let with = |more: Value| rsa.token("r", Value::Null, &good(more));
    for (what, token) in [
        ("RS256", with(json!({}))),
        ("ES256", ec.token("e", none.clone(), &good(json!({})))),
        ("EdDSA", ed.token("d", none.clone(), &good(json!({})))),
        ("just expired", with(json!({ "exp": BEGIN - 59 }))),
        ("valid in a moment", with(json!({ "nbf": BEGIN + 60 }))),
        ("for several", with(json!({ "aud": ["others", AUDIENCE] }))),
        ("parts of seconds", with(json!({ "exp": BEGIN as f64 + 0.5 }))),
        (
            "an unused key inside",
            rsa.token("r", json!({ "jwk": Key::rsa().jwk("x") }), &good(json!({}))),
        ),
    ] {
        assert_eq!(tried(&w, &url, &token, TEAMS).await, 200, "{what}");
    }

    let (forger, forger_ec) = (Key::rsa(), Key::ec());
    let other_payload = {
        let (head, sign) = (with(json!({})), with(json!({})));
        let payload = URL_SAFE_NO_PAD.encode(good(json!({ "role": "admin" })).to_string());
        let signature = sign.rsplit('.').next().unwrap().to_owned();
        format!("{}.{payload}.{signature}", head.split('.').next().unwrap())
    };
    let spki = pem::encode(&pem::Pem::new("RSA PUBLIC KEY", rsa.public()));
    let hs = |secret: &[u8], kid: &str| Key::Hmac(secret.to_vec()).token(kid, Value::Null, &good(json!({})));
    let jwk = forger.jwk("x");
    let refused = [
        (
            "signed by somebody else",
            forger.token("r", none.clone(), &good(json!({}))),
        ),
        ("with another payload", other_payload),
        (
            "without its signature",
            format!("{}.", with(json!({})).rsplit_once('.').unwrap().0),
        ),
        ("expired", with(json!({ "exp": BEGIN - 60 }))),
        ("not valid yet", with(json!({ "nbf": BEGIN + 61 }))),
        ("for another audience", with(json!({ "aud": "others" }))),
        ("for no audience", with(json!({ "aud": null }))),
        ("of another issuer", with(json!({ "iss": "https://evil.test" }))),
        ("of no issuer", with(json!({ "iss": null }))),
        ("without an end", with(json!({ "exp": null }))),
        ("with a text as end", with(json!({ "exp": "2030-01-01" }))),
        ("without a subject", with(json!({ "sub": null }))),
        ("with an empty subject", with(json!({ "sub": " " }))),
        ("with a name of ours", with(json!({ "sub": "api-key-user" }))),
        ("alg none", Key::None.token("r", none.clone(), &good(json!({})))),
        (
            "alg None",
            Key::None.token("r", json!({ "alg": "None" }), &good(json!({}))),
        ),
        ("HS256 with the RSA key", hs(rsa.public(), "r")),
        ("HS256 with the RSA key as PEM", hs(spki.as_bytes(), "r")),
        ("HS256 with the shared key", hs(KEY.as_bytes(), "r")),
        ("HS256 with nothing", hs(b"", "r")),
        (
            "signed with RS256, says ES256",
            rsa.token("r", json!({ "alg": "ES256" }), &good(json!({}))),
        ),
        (
            "signed with RS256, says RS512",
            rsa.token("r", json!({ "alg": "RS512" }), &good(json!({}))),
        ),
        (
            "of a key of another type",
            forger_ec.token("r", none.clone(), &good(json!({}))),
        ),
        (
            "of an unknown key",
            forger.token("unheard-of", none.clone(), &good(json!({}))),
        ),
        (
            "of no key by name",
            rsa.token("", json!({ "kid": null }), &good(json!({}))),
        ),
        (
            "with its key inside",
            forger.token("x", json!({ "jwk": jwk }), &good(json!({}))),
        ),
        (
            "with its key inside, by a known name",
            forger.token("r", json!({ "jwk": jwk }), &good(json!({}))),
        ),
        (
            "with the address of its keys",
            forger.token("x", json!({ "jku": "http://127.0.0.1:1/keys" }), &good(json!({}))),
        ),
        (
            "with critical parameters",
            rsa.token("r", json!({ "crit": ["b64"], "b64": false }), &good(json!({}))),
        ),
        ("only dots", "..".to_owned()),
        ("no JSON", "a.b.c".to_owned()),
        ("the shared key", KEY.to_owned()),
    ];
    for (what, token) in refused {
        assert_eq!(tried(&w, &url, &token, TEAMS).await, 401, "{what}");
    }
    for (what, role) in [
        ("no role", json!(null)),
        ("an unknown role", json!("root")),
        ("the role of agents", json!("agent")),
        ("a number", json!(1)),
        ("unknown roles", json!(["a", "b"])),
    ] {
        let token = with(json!({ "role": role }));
        assert_eq!(tried(&w, &url, &token, TEAMS).await, 403, "{what}");
        assert_eq!(
            tried(&w, &url, &token, "/api/v1/auth/check").await,
            200,
            "{what}: but it is somebody"
        );
    }
    let own_keys = format!("{url}/api/v1/api-keys");
    let answer = w.ask("keys", w.http.get(own_keys).bearer_auth(with(json!({})))).await;
    assert_eq!(answer.status, 403, "an operator does not administer");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn tokens_signed_with_the_shared_secret_name_who_acts_beside_named_keys(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    let (_, named) = key(&w, json!({ "name": "ci", "role": "viewer" })).await;
    let args = [
        "--auth-type",
        "jwt",
        "--auth-secret",
        KEY,
        "--jwt-role-claim",
        "realm.roles",
        "--jwt-roles",
        "tls=admin",
    ];
    let (url, _) = w.api(&args).await;
    let info = w.ask("info", w.http.get(format!("{url}/api/v1/auth/info"))).await;
    assert_eq!(info.expect(200), json!({ "auth_type": "jwt", "required": true }));
    let said = json!({ "sub": "ada", "exp": BEGIN + 600, "realm": { "roles": ["other", "tls"] } });
    let secret = Key::Hmac(KEY.as_bytes().to_vec());
    let token = secret.token("", Value::Null, &said);
    let made = w
        .http
        .post(format!("{url}{TEAMS}"))
        .bearer_auth(&token)
        .json(&json!({ "name": "t" }));
    w.ask("create", made).await.expect(201);
    let actor = w
        .text("SELECT actor FROM audit_events WHERE action = 'create_team'")
        .await;
    assert_eq!(actor, "jwt:ada");
    let work = format!("/api/v1/agents/{}/work", host.id());
    for (what, token, path, status) in [
        ("the bare secret", KEY, TEAMS, 401),
        ("a named key", &named, TEAMS, 200),
        ("an agent's key", &host.key(), &work, 200),
        ("the bootstrap token", BOOTSTRAP, TEAMS, 403),
        (
            "another secret",
            &Key::Hmac(vec![7; 32]).token("", Value::Null, &said),
            TEAMS,
            401,
        ),
        ("an RSA key", &Key::rsa().token("", Value::Null, &said), TEAMS, 401),
        ("no signature", &Key::None.token("", Value::Null, &said), TEAMS, 401),
    ] {
        assert_eq!(tried(&w, &url, token, path).await, status, "{what}");
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn published_keys_are_kept_renewed_and_not_asked_for_too_often(db: PgPool) {
    let w = World::new(db).await;
    let idp = w.idp().await;
    idp.set_away(true);
    // By discovery.
    let args = [
        "--auth-type",
        "jwt",
        "--jwt-issuer",
        idp.url(),
        "--jwt-audience",
        AUDIENCE,
    ];
    let (url, _) = w.api(&args).await;
    let said = claims(idp.url(), json!({ "exp": BEGIN + 10_000 }));
    let token = idp.key.token("k1", Value::Null, &said);
    let statuses = async |token: &str| tried(&w, &url, token, TEAMS).await;
    assert_eq!(statuses(&token).await, 503, "nobody knows the keys yet");
    idp.set_away(false);
    assert_eq!((statuses(&token).await, idp.asked()), (503, 0), "asked just now");
    w.clock.advance(Duration::from_secs(10));
    for _ in 0..5 {
        assert_eq!((statuses(&token).await, idp.asked()), (200, 1), "kept");
    }
    w.clock.advance(Duration::from_secs(299));
    assert_eq!((statuses(&token).await, idp.asked()), (200, 1), "five minutes");
    w.clock.advance(Duration::from_secs(1));
    assert_eq!((statuses(&token).await, idp.asked()), (200, 2), "renewed");

    let next = Key::ed();
    let with_next = next.token("k2", Value::Null, &said);
    w.clock.advance(Duration::from_secs(10));
    assert_eq!((statuses(&with_next).await, idp.asked()), (401, 3), "looked for");
    idp.publish(vec![idp.key.jwk("k1"), next.jwk("k2")]);
    for _ in 0..5 {
        assert_eq!((statuses(&with_next).await, idp.asked()), (401, 3), "not again so soon");
    }
    w.clock.advance(Duration::from_secs(10));
    assert_eq!((statuses(&with_next).await, idp.asked()), (200, 4), "found");

    idp.set_away(true);
    w.clock.advance(Duration::from_secs(3600));
    assert_eq!(statuses(&token).await, 200, "the last good keys stay");
    assert_eq!(statuses(&with_next).await, 200);
    idp.set_away(false);
    idp.publish(vec![next.jwk("k2")]);
    w.clock.advance(Duration::from_secs(10));
    assert_eq!(
        (statuses(&with_next).await, statuses(&token).await),
        (200, 401),
        "a key that is gone is gone"
    );
}
