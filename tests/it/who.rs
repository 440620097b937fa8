//! Who may what: the table, asked through the door; and what nobody is ever told.

use std::{
    io,
    sync::{Arc, Mutex},
};

use certctl_contract::{
    catalogue,
    endpoint::{Access, Operation, Permission, Role, Scoping},
};
use certctl_tests::{
    idp::{CLIENT_SECRET, Key},
    requests,
    world::{BEGIN, BOOTSTRAP, KEY, World},
};
use http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

/// The path of an operation, with these values for its first placeholder and the others.
fn path(operation: &Operation, first: &str, others: &str) -> String {
    let mut values = std::iter::once(first).chain(std::iter::repeat(others));
    let path = operation.path();
    let parts = path.split('/').map(|part| match part.starts_with('{') {
        true => values.next().expect("there is always another"),
        false => part,
    });
    parts.collect::<Vec<_>>().join("/")
}

async fn key(w: &World, name: &str, role: Role, agent: Option<&str>) -> String {
    let new = json!({ "name": name, "role": role, "agent_id": agent });
    let made = w.post("/api/v1/api-keys", new).await.expect(201);
    made["api_key"].as_str().unwrap().to_owned()
}

#[test]
fn roles_hold_the_permissions_that_are_published() {
    let held = |role: Role| {
        let words = Permission::ALL.iter().filter(|p| role.may(**p)).map(|p| p.as_str());
        words.collect::<Vec<_>>().join(" ")
    };
    for (role, permissions) in [
        (
            Role::Admin,
            "view request operate revoke approve configure audit administer",
        ),
        (Role::Operator, "view request operate revoke approve"),
        (Role::Viewer, "view"),
        (Role::Auditor, "view audit"),
        (Role::Requester, "view request"),
        (Role::Approver, "view approve"),
        (Role::Agent, ""),
    ] {
        assert_eq!(held(role), permissions, "{role}");
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn every_party_is_let_in_to_exactly_what_the_table_says(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    let mut parties = vec![
        (
            "the shared key".to_owned(),
            Some(KEY.to_owned()),
            Some(Role::Admin),
            false,
        ),
        (
            "the bootstrap token".to_owned(),
            Some(BOOTSTRAP.to_owned()),
            None,
            false,
        ),
        ("an agent".to_owned(), Some(host.key()), None, true),
        ("nobody".to_owned(), None, None, false),
        ("an unknown key".to_owned(), Some("unknown".to_owned()), None, false),
    ];
    for role in Role::ALL {
        let agent = (*role == Role::Agent).then(|| host.id());
        let key = key(&w, &format!("key of {role}"), *role, agent).await;
        parties.push((format!("a key of {role}"), Some(key), Some(*role), agent.is_some()));
    }
    // Administrators may do away with what the others are.
    parties.sort_by_key(|(_, _, role, _)| *role == Some(Role::Admin));
    let mut asked = 0;
    for (who, key, role, is_agent) in parties {
        let may = |permission| role.is_some_and(|role| role.may(permission));
        for operation in catalogue() {
            for first in [host.id(), "a-other"] {
                let allowed = match operation.access {
                    Access::Open => true,
                    Access::Anyone => role.is_some() || is_agent,
                    Access::Agent => may(Permission::Operate) || (is_agent && first == host.id()),
                    Access::AgentItself => key.as_deref() == Some(KEY) || (is_agent && first == host.id()),
                    Access::Bootstrap => may(Permission::Configure) || key.as_deref() == Some(BOOTSTRAP),
                    // Who reaches only what it created is refused where nothing is that somebody created.
                    Access::Needs(_) if role == Some(Role::Requester) && operation.scoping == Scoping::Refused => false,
                    Access::Needs(permission) => may(permission),
                };
                let known = !matches!(key.as_deref(), None | Some("unknown"));
                let path = path(&operation, first, "x-1");
                let answer = w.raw(operation.method.clone(), &path, key.as_deref(), "{}").await;
                let said = match answer.status {
                    401 => "who are you",
                    403 => "no",
                    _ => "come in",
                };
                let should = match (allowed, known) {
                    (true, _) => "come in",
                    (false, true) => "no",
                    (false, false) => "who are you",
                };
                assert_eq!(said, should, "{who} at {}: {answer:?}", operation.id());
                asked += 1;
                if !operation.path().contains('{') {
                    break;
                }
            }
        }
    }
    assert!(asked > 500, "{asked}");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn an_agent_sees_and_touches_nothing_of_another(db: PgPool) {
    let w = World::new(db).await;
    let (ours, theirs) = (w.host("web-1").await, w.host("web-2").await);
    w.target("tgt-2", &theirs).await;
    w.certificate("mc-done", &["tgt-2"], Value::Null).await;
    w.settle().await;
    theirs.set_away(true);
    w.target("tgt-3", &theirs).await;
    w.certificate("mc-open", &["tgt-3"], Value::Null).await;
    w.settle().await;
    let waiting = w.text("SELECT id FROM jobs WHERE status = 'AwaitingCSR'").await;
    let done = w.text("SELECT min(id) FROM jobs WHERE type = 'Deployment'").await;
    assert!(!waiting.is_empty() && !done.is_empty());

    let key = ours.key();
    let request = requests::good("mc-open.example.net");
    // What it reports of itself: that it is there, and that it looked around.
    let own_tables = ["agents", "audit_events", "discovery_scans"];
    let contents = async || {
        let mut all = w.contents().await;
        all.retain(|table, _| !own_tables.contains(&table.as_str()));
        all
    };
    let before = contents().await;
    let mut tried = 0;
    for operation in catalogue()
        .into_iter()
        .filter(|o| matches!(o.access, Access::Agent | Access::AgentItself))
    {
        for thing in [&waiting, &done, "mc-done", "mc-open", "tgt-2"] {
            for job in [&waiting, &done] {
                for status in ["Running", "Completed", "Failed"] {
                    let body =
                        json!({ "csr_pem": request, "job_id": job, "certificate_id": "mc-open", "status": status });
                    let body = body.to_string();
                    let method = operation.method.clone();
                    let at_theirs = path(&operation, theirs.id(), thing);
                    let answer = w.raw(method.clone(), &at_theirs, Some(&key), body.clone()).await;
                    assert_eq!(answer.status, 403, "{answer:?}");
                    let at_ours = path(&operation, ours.id(), thing);
                    let answer = w.raw(method, &at_ours, Some(&key), body).await;
                    let text = String::from_utf8_lossy(&answer.octets).into_owned();
                    match (operation.id().as_str(), operation.path().matches('{').count()) {
                        // Its own affairs; nothing of the other in them.
                        ("agent_get_work", _) => assert_eq!(answer.expect(200)["count"], 0),
                        (_, 1) if answer.status < 300 => assert!(!text.contains("mc-open"), "{answer:?}"),
                        ("agent_submit_csr", _) => assert_eq!(answer.status, 404, "{answer:?}"),
                        (_, 1) => {}
                        _ => assert_eq!(answer.status, 404, "{answer:?}"),
                    }
                    assert!(!text.contains("BEGIN CERTIFICATE"), "{answer:?}");
                    tried += 1;
                }
            }
        }
    }
    assert!(tried > 100, "{tried}");
    assert_eq!(contents().await, before, "nothing was changed");
    let scans = w
        .text("SELECT string_agg(DISTINCT agent_id, ' ') FROM discovery_scans")
        .await;
    assert_eq!(scans, ours.id(), "what was found was found by itself");
}

/// What was logged on this thread, where all of a test runs.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(octets)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_secret_is_in_no_answer_no_log_line_and_no_metric(db: PgPool) {
    certctl_runtime::telemetry::metrics();
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(move || writer.clone())
        .finish();
    let _here = tracing::subscriber::set_default(subscriber);
    // With a single subscriber tracing asks the thread that comes first to a line whether it is wanted, for all threads; a
    // second one makes it ask each.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());

    let (passphrase, hook) = (
        "the-passphrase-of-the-authority",
        "the-token-in-the-address-of-the-webhook",
    );
    let w = World::with(db, &["--ca-key-passphrase", passphrase], &format!("?token={hook}")).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], Value::Null).await;
    w.settle().await;
    assert!(!w.news.lock().unwrap().is_empty());
    let made = w
        .post("/api/v1/api-keys", json!({ "name": "ci", "role": "admin" }))
        .await
        .expect(201);
    let id = made["id"].as_str().unwrap();
    let named = made["api_key"].as_str().unwrap().to_owned();
    let rotated = w
        .post(&format!("/api/v1/api-keys/{id}/rotate"), Value::Null)
        .await
        .expect(200);
    let rotated = rotated["api_key"].as_str().unwrap().to_owned();
    let begun = w.raw(Method::POST, "/api/v1/sessions", Some(&named), "").await;
    let csrf = begun.expect(201)["csrf_token"].as_str().unwrap().to_owned();
    let cookie = begun.header("set-cookie").split_once(';').unwrap().0.to_owned();
    let cookie_value = cookie.split_once('=').unwrap().1.to_owned();
    let hs256 = "the-secret-that-tokens-are-signed-with";
    let (jwt_url, _) = w.api(&["--auth-type", "jwt", "--auth-secret", hs256]).await;
    let said = json!({ "sub": "ada", "exp": BEGIN + 600, "role": "admin" });
    let token = Key::Hmac(hs256.as_bytes().to_vec()).token("", Value::Null, &said);
    let expired = Key::Hmac(hs256.as_bytes().to_vec()).token("", Value::Null, &json!({ "sub": "ada", "exp": 1 }));
    let offered = "a-key-that-somebody-offered-without-success";

    let mut seen: Vec<u8> = vec![];
    let things = [
        "mc-1",
        "tgt-1",
        host.id(),
        "iss-local",
        "t-unassigned",
        "o-unassigned",
        "rp-default",
        id,
        "none",
    ];
    for operation in catalogue().into_iter().filter(|o| o.method == Method::GET) {
        for thing in things {
            let path = path(&operation, thing, "mc-1");
            let answers = [
                w.raw(Method::GET, &path, Some(&named), "").await,
                w.ask("jwt", w.http.get(format!("{jwt_url}{path}")).bearer_auth(&token))
                    .await,
            ];
            seen.extend(answers.into_iter().flat_map(|answer| answer.octets));
            if !operation.path().contains('{') {
                break;
            }
        }
    }
    let jwt = |token: &str| w.http.get(format!("{jwt_url}/api/v1/teams")).bearer_auth(token);
    // A login that fails at its last step.
    let idp = w.idp().await;
    let (login_url, _) = w.api(&idp.args("http://127.0.0.1/auth/callback")).await;
    let http = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap();
    let left = w.ask("leave", http.get(format!("{login_url}/auth/login"))).await;
    let left_with = left.header("set-cookie").split_once(';').unwrap().0.to_owned();
    let back = idp.log_in(left.header("location"), json!({ "sub": "ada" }));
    let back = back.replace("code=", &format!("code={offered}"));
    let back = http
        .get(format!("{login_url}/auth/callback?{back}"))
        .header("cookie", &left_with);
    let browser = w.http.post(format!("{}/api/v1/teams", w.url)).header("cookie", &cookie);
    let short = json!({ "name": "x", "hostname": "x", "api_key": &offered[..31] }).to_string();
    let answers = [
        w.ask("back", back).await,
        w.ask("expired", jwt(&expired)).await,
        w.ask("bare", jwt(hs256)).await,
        w.ask("offered", jwt(offered)).await,
        w.ask("no token", browser.try_clone().unwrap().body("{}")).await,
        w.ask("token", browser.header("x-csrf-token", &csrf).body("{")).await,
        w.raw(Method::GET, "/api/v1/teams", Some(offered), "").await,
        w.raw(Method::GET, "/api/v1/teams", Some(&host.key()), "").await,
        w.raw(Method::GET, "/api/v1/teams", Some(BOOTSTRAP), "").await,
        w.raw(Method::POST, "/api/v1/agents", Some(BOOTSTRAP), short).await,
        w.raw(
            Method::POST,
            "/api/v1/agents",
            Some(BOOTSTRAP),
            format!("{{\"api_key\": [\"{offered}\"]}}"),
        )
        .await,
        w.get(&format!("/api/v1/teams?api_key={offered}")).await,
        w.get(&format!("/auth/callback?code={offered}&state={offered}")).await,
    ];
    for answer in answers {
        assert!(answer.status >= 400, "{answer:?}");
        seen.extend(&answer.octets);
    }
    w.settle().await;

    let logged = lines.0.lock().unwrap().clone();
    let logged = String::from_utf8_lossy(&logged);
    for looked_for in ["\"level\":\"DEBUG\"", "GET /api/v1/teams 401"] {
        assert!(
            logged.contains(looked_for),
            "logs are looked at: {looked_for} is not among {} octets",
            logged.len()
        );
    }
    let metrics = certctl_runtime::telemetry::render();
    assert!(metrics.contains("http_requests_total"));
    let trail = w.text("SELECT string_agg(e::text, ' ') FROM audit_events e").await;
    let news = serde_json::to_string(&*w.news.lock().unwrap()).unwrap();
    let answers = String::from_utf8_lossy(&seen);
    for (what, secret) in [
        ("the shared key", KEY),
        ("the bootstrap token", BOOTSTRAP),
        ("a named key", &named),
        ("a rotated key", &rotated),
        ("an agent's key", &host.key()),
        ("the secret of tokens", hs256),
        ("a token", &token),
        ("a refused token", &expired),
        ("a session", &cookie_value),
        ("a CSRF token", &csrf),
        ("the cookie of a login", left_with.split_once('=').unwrap().1),
        ("the secret at the provider", CLIENT_SECRET),
        ("the authority's passphrase", passphrase),
        ("the webhook's address", hook),
        ("the webhook's secret", "the-secret-of-the-webhook"),
        ("what was offered", &offered[..31]),
    ] {
        for (place, text) in [
            ("an answer", &*answers),
            ("the log", &*logged),
            ("the metrics", &metrics),
            ("the trail", &trail),
            ("the news", &news),
        ] {
            if let Some(at) = text.find(secret) {
                let from = text[..at].char_indices().rev().nth(300).map_or(0, |(i, _)| i);
                panic!("{what} is in {place}: …{}", &text[from..at]);
            }
        }
    }
}
