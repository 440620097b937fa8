//! Browsers: logging in, being somebody for a while, and not being made to act by other sites.

use std::time::Duration;

use certctl_tests::{
    idp::{CLIENT, Idp},
    world::{Answer, BEGIN, KEY, World},
};
use http::Method;
use reqwest::redirect::Policy;
use serde_json::{Value, json};
use sqlx::PgPool;

const TEAMS: &str = "/api/v1/teams";
const CURRENT: &str = "/api/v1/sessions/current";

/// A browser: it keeps cookies, and does not follow redirects unseen.
struct Browser<'a> {
    w: &'a World,
    url: String,
    http: reqwest::Client,
    cookies: Vec<(String, String)>,
    csrf: String,
}

impl<'a> Browser<'a> {
    fn new(w: &'a World, url: &str) -> Self {
        let http = reqwest::Client::builder()
            .redirect(Policy::none())
            .timeout(Duration::from_secs(30));
        Self {
            w,
            url: url.to_owned(),
            http: http.build().unwrap(),
            cookies: vec![],
            csrf: String::new(),
        }
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let cookies: Vec<_> = self
            .cookies
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        self.http
            .request(method, format!("{}{path}", self.url))
            .header("cookie", cookies.join("; "))
    }

    async fn ask(&mut self, what: &str, request: reqwest::RequestBuilder) -> Answer {
        let answer = self.w.ask(what, request).await;
        for line in answer.headers.get_all("set-cookie") {
            let line = line.to_str().unwrap();
            let (pair, attributes) = line.split_once("; ").unwrap();
            assert!(attributes.starts_with("Path=/; Secure; HttpOnly; SameSite="), "{line}");
            let (name, value) = pair.split_once('=').unwrap();
            assert!(name.starts_with("__Host-"), "{line}");
            self.cookies.retain(|(known, _)| known != name);
            if !attributes.ends_with("Max-Age=0") {
                self.cookies.push((name.to_owned(), value.to_owned()));
            }
        }
        answer
    }

    async fn get(&mut self, path: &str) -> Answer {
        let request = self.request(Method::GET, path);
        self.ask(path, request).await
    }

    /// As our own pages do.
    async fn send(&mut self, method: Method, path: &str, body: Value) -> Answer {
        let request = self.request(method, path).header("x-csrf-token", &self.csrf);
        let request = request.header("sec-fetch-site", "same-origin").body(body.to_string());
        self.ask(path, request).await
    }

    /// Logs in with a key.
    async fn with_key(&mut self, key: &str) {
        let request = self.request(Method::POST, "/api/v1/sessions").bearer_auth(key);
        let party = self.ask("log in", request).await.expect(201);
        self.csrf = party["csrf_token"].as_str().unwrap().to_owned();
    }

    /// Goes to the provider: the address it was sent to.
    async fn leave(&mut self, return_to: &str) -> String {
        let answer = self.get(&format!("/auth/login?return_to={return_to}")).await;
        assert_eq!(answer.status, 302, "{answer:?}");
        answer.header("location").to_owned()
    }
}

async fn api_with_login(w: &World, idp: &Idp) -> String {
    let args = idp.args("https://certctl.test/auth/callback");
    w.api(&args).await.0
}

fn person(more: Value) -> Value {
    let mut claims = json!({ "sub": "u-17", "name": "Ada", "role": "operator", "exp": BEGIN + 300, "iat": BEGIN });
    claims
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    claims
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_person_logs_in_with_the_identity_provider_acts_and_logs_out(db: PgPool) {
    let w = World::new(db).await;
    let idp = w.idp().await;
    let url = api_with_login(&w, &idp).await;
    let mut browser = Browser::new(&w, &url);
    let info = browser.get("/api/v1/auth/info").await.expect(200);
    assert_eq!(
        info,
        json!({ "auth_type": "api-key", "required": true, "login": "/auth/login" })
    );
    let address = browser.leave("/certificates%3Fstatus=Active").await;
    assert!(address.starts_with(&format!("{}/authorize?", idp.url())), "{address}");
    let back = idp.log_in(&address, person(json!({})));
    let answer = browser.get(&format!("/auth/callback?{back}")).await;
    assert_eq!(
        (answer.status, answer.header("location")),
        (302, "/certificates?status=Active"),
        "{answer:?}"
    );
    let names: Vec<_> = browser.cookies.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["__Host-certctl-session"], "the cookie of the login is gone");

    let who = browser.get(CURRENT).await.expect(200);
    let name = format!("jwt:{}#u-17", idp.url());
    assert_eq!(
        (&who["name"], &who["display_name"], &who["role"], &who["via"]),
        (&json!(name), &json!("Ada"), &json!("operator"), &json!("session"))
    );
    browser.csrf = who["csrf_token"].as_str().unwrap().to_owned();
    assert_eq!(browser.get(TEAMS).await.status, 200);
    let owner = browser
        .send(Method::POST, "/api/v1/owners", json!({ "name": "o" }))
        .await;
    assert_eq!(owner.status, 403, "an operator does not configure");
    let renewed = browser
        .send(Method::POST, "/api/v1/certificates/mc-none/renew", json!({}))
        .await;
    assert_eq!(renewed.status, 404, "but may renew: {renewed:?}");

    let value = browser.cookies[0].1.clone();
    assert_eq!(w.text("SELECT count(*)::text FROM sessions").await, "1");
    assert!(
        !w.text("SELECT s::text FROM sessions s").await.contains(&value),
        "only its digest is kept"
    );
    browser.send(Method::DELETE, CURRENT, json!({})).await.expect(204);
    assert!(browser.cookies.is_empty());
    browser.cookies.push(("__Host-certctl-session".to_owned(), value));
    assert_eq!(browser.get(TEAMS).await.status, 401);
    let trail = w
        .text("SELECT string_agg(actor || ' ' || action, ', ' ORDER BY action) FROM audit_events WHERE resource_type = 'session'")
        .await;
    assert_eq!(trail, format!("{name} session_begun, {name} session_ended"));
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_login_that_is_not_the_browsers_own_or_not_ours_is_refused(db: PgPool) {
    let w = World::new(db).await;
    let idp = w.idp().await;
    let url = api_with_login(&w, &idp).await;
    for (what, claims) in [
        ("another nonce", person(json!({ "nonce": "another" }))),
        ("no nonce", person(json!({ "nonce": "" }))),
        ("for another client", person(json!({ "aud": "others" }))),
        (
            "for another party",
            person(json!({ "aud": [CLIENT, "others"], "azp": "others" })),
        ),
        ("of another issuer", person(json!({ "iss": "https://evil.test" }))),
        ("expired", person(json!({ "exp": BEGIN - 60 }))),
        ("no role", person(json!({ "role": null }))),
        ("an unknown role", person(json!({ "role": "root" }))),
    ] {
        let mut browser = Browser::new(&w, &url);
        let back = idp.log_in(&browser.leave("/").await, claims);
        let answer = browser.get(&format!("/auth/callback?{back}")).await;
        assert!(matches!(answer.status, 401 | 403), "{what}: {answer:?}");
        answer.problem();
        assert_eq!(browser.get(TEAMS).await.status, 401, "{what}");
    }

    let mut browser = Browser::new(&w, &url);
    let back = idp.log_in(&browser.leave("/").await, person(json!({})));
    let mut other = Browser::new(&w, &url);
    assert_eq!(
        other.get(&format!("/auth/callback?{back}")).await.status,
        403,
        "no cookie"
    );
    other.leave("/").await;
    assert_eq!(
        other.get(&format!("/auth/callback?{back}")).await.status,
        403,
        "another cookie"
    );
    let denied = back.replace("code=", "error=access_denied&was=");
    let iss = format!("{back}&iss=https%3A%2F%2Fevil.test");
    for (what, query) in [("refused there", denied), ("another issuer's answer", iss)] {
        let address = browser.leave("/").await;
        let state = idp.log_in(&address, person(json!({})));
        let (_, state) = state.split_once("state=").unwrap();
        let query = query.replace(back.split_once("state=").unwrap().1.split('&').next().unwrap(), state);
        let answer = browser.get(&format!("/auth/callback?{query}")).await;
        assert_eq!(answer.status, 403, "{what}: {answer:?}");
    }
    let back = idp.log_in(&browser.leave("/").await, person(json!({})));
    let cookies = browser.cookies.clone();
    assert_eq!(browser.get(&format!("/auth/callback?{back}")).await.status, 302);
    browser.cookies = cookies;
    assert_eq!(browser.get(&format!("/auth/callback?{back}")).await.status, 403, "once");
    let back = idp.log_in(&browser.leave("/").await, person(json!({ "exp": BEGIN + 10_000 })));
    w.clock.advance(Duration::from_secs(600));
    assert_eq!(
        browser.get(&format!("/auth/callback?{back}")).await.status,
        403,
        "too late"
    );
    for evil in [
        "https://evil.test",
        "//evil.test",
        "/%5Cevil.test",
        "/%09/evil.test",
        "certificates",
    ] {
        let answer = browser.get(&format!("/auth/login?return_to={evil}")).await;
        assert_eq!(answer.problem().errors[0].field, "return_to", "{evil}");
    }
    assert_eq!(
        Browser::new(&w, &w.url).get("/auth/login").await.status,
        404,
        "no provider is configured there"
    );
    let begun = w.text("SELECT count(*)::text FROM sessions").await;
    assert_eq!(begun, "1", "of all these one began a session");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_session_cannot_be_made_to_act_by_another_site(db: PgPool) {
    let w = World::new(db).await;
    let mut browser = Browser::new(&w, &w.url);
    browser.with_key(KEY).await;
    let csrf = browser.csrf.clone();
    let host = w.url.strip_prefix("http://").unwrap();
    let own = format!("http://{host}");
    for (what, headers, status) in [
        ("nothing", &[][..], 403),
        ("only the token", &[("x-csrf-token", &*csrf)], 403),
        ("only the origin", &[("sec-fetch-site", "same-origin")], 403),
        (
            "another token",
            &[("x-csrf-token", "0"), ("sec-fetch-site", "same-origin")],
            403,
        ),
        (
            "another site",
            &[("x-csrf-token", &csrf), ("sec-fetch-site", "cross-site")],
            403,
        ),
        (
            "another host of the site",
            &[("x-csrf-token", &csrf), ("sec-fetch-site", "same-site")],
            403,
        ),
        (
            "another origin",
            &[("x-csrf-token", &csrf), ("origin", "http://evil.test")],
            403,
        ),
        (
            "our page",
            &[("x-csrf-token", &csrf), ("sec-fetch-site", "same-origin")],
            201,
        ),
        (
            "our page in an old browser",
            &[("x-csrf-token", &csrf), ("origin", &own)],
            201,
        ),
    ] {
        let mut request = browser.request(Method::POST, TEAMS).json(&json!({ "name": what }));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = browser.ask(what, request).await;
        assert_eq!(answer.status, status, "{what}: {answer:?}");
    }
    assert_eq!(browser.get(TEAMS).await.status, 200, "reading needs no token");
    // A bearer token is sent on purpose, and counts.
    let request = browser
        .request(Method::POST, TEAMS)
        .bearer_auth(KEY)
        .json(&json!({ "name": "bearer" }));
    browser.ask("bearer", request).await.expect(201);
    let request = browser.request(Method::GET, TEAMS).bearer_auth("unknown");
    assert_eq!(browser.ask("bearer", request).await.status, 401);
    let again = browser.send(Method::POST, "/api/v1/sessions", json!({})).await;
    assert_eq!(again.status, 409, "a session does not beget another: {again:?}");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_session_ends_with_its_time_its_key_its_secret_or_its_role(db: PgPool) {
    let w = World::new(db).await;
    let path = "/api/v1/api-keys";
    let made = w
        .post(path, json!({ "name": "ada", "role": "operator" }))
        .await
        .expect(201);
    let (id, key) = (made["id"].as_str().unwrap(), made["api_key"].as_str().unwrap());
    let one = format!("{path}/{id}");

    let mut browser = Browser::new(&w, &w.url);
    browser.with_key(key).await;
    for _ in 0..3 {
        w.clock.advance(Duration::from_secs(7 * 3600));
        assert_eq!(browser.get(TEAMS).await.status, 200, "it is used");
    }
    w.clock.advance(Duration::from_secs(3 * 3600));
    assert_eq!(browser.get(TEAMS).await.status, 401, "a day is over");
    browser.with_key(key).await;
    w.clock.advance(Duration::from_secs(8 * 3600));
    assert_eq!(browser.get(TEAMS).await.status, 401, "it was not used");

    browser.with_key(key).await;
    w.put(&one, json!({ "role": "viewer" })).await.expect(200);
    assert_eq!(browser.get(CURRENT).await.expect(200)["role"], "viewer");
    let renew = browser
        .send(Method::POST, "/api/v1/certificates/mc-none/renew", json!({}))
        .await;
    assert_eq!(renew.status, 403, "{renew:?}");
    let rotated = w
        .post(&format!("{one}/rotate"), json!({ "overlap_seconds": 60 }))
        .await
        .expect(200);
    assert_eq!(
        browser.get(TEAMS).await.status,
        200,
        "the secret it began with overlaps"
    );
    w.clock.advance(Duration::from_secs(60));
    assert_eq!(browser.get(TEAMS).await.status, 401, "and has ended");

    browser.with_key(rotated["api_key"].as_str().unwrap()).await;
    w.delete(&one).await.expect(204);
    assert_eq!(browser.get(TEAMS).await.status, 401, "its key is revoked");

    browser.with_key(KEY).await;
    assert_eq!(browser.get(TEAMS).await.status, 200);
    let (other, _) = w.api(&["--auth-secret", "another-secret-than-before"]).await;
    browser.url = other;
    assert_eq!(browser.get(TEAMS).await.status, 401, "the shared key was changed");
    certctl_api::auth::keep_house(&w.app).await.unwrap();
    assert_eq!(w.text("SELECT count(*)::text FROM sessions").await, "1");
}
