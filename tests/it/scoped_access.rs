//! Keys and roles that reach only some certificates: what they may, asked of every operation, and a CI job that has one.

use std::collections::BTreeSet;

use certctl_contract::{
    catalogue,
    endpoint::{Access, Class, Operation, Permission, Role, Scoping},
};
use certctl_tests::{
    idp::Key,
    world::{Answer, BEGIN, World},
};
use http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

const CERTIFICATES: &str = "/api/v1/certificates";

async fn key(w: &World, name: &str, role: &str, scope: Value) -> String {
    let mut new = json!({ "name": name, "role": role });
    if !scope.is_null() {
        new["scope"] = scope;
    }
    let made = w.post("/api/v1/api-keys", new).await.expect(201);
    made["api_key"].as_str().unwrap().to_owned()
}

/// A world with two certificates that have nothing in common, each with a version and jobs: `mc-in`, which every scope of
/// the tests includes, and `mc-out`, which none does.
async fn world(db: PgPool) -> World {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    for side in ["in", "out"] {
        w.target(&format!("tgt-{side}"), &host).await;
        w.post("/api/v1/teams", json!({ "id": format!("t-{side}"), "name": side }))
            .await
            .expect(201);
        let profile = json!({ "id": format!("prof-{side}"), "name": side });
        w.post("/api/v1/profiles", profile).await.expect(201);
        let issuer = json!({ "id": format!("iss-{side}"), "name": side, "type": "local" });
        w.post("/api/v1/issuers", issuer).await.expect(201);
        let new = json!({
            "id": format!("mc-{side}"), "common_name": format!("www.{side}.example.net"), "team_id": format!("t-{side}"),
            "sans": [format!("*.{side}.example.net")], "environment": side, "issuer_id": format!("iss-{side}"),
            "certificate_profile_id": format!("prof-{side}"), "target_ids": [format!("tgt-{side}")]
        });
        w.post(CERTIFICATES, new).await.expect(201);
    }
    w.target("tgt-free", &host).await;
    w.settle().await;
    for side in ["in", "out"] {
        assert_eq!(w.versions(&format!("mc-{side}")).await.len(), 1);
    }
    w
}

fn scopes() -> [(&'static str, Value); 6] {
    [
        ("team", json!({ "teams": ["t-in", "t-unassigned"] })),
        ("environment", json!({ "environments": ["in"] })),
        ("issuer", json!({ "issuers": ["iss-in"] })),
        ("profile", json!({ "profiles": ["prof-in"] })),
        ("domain", json!({ "domains": ["in.example.net"] })),
        (
            "all",
            json!({
                "teams": ["t-in"], "environments": ["in"], "issuers": ["iss-in"], "profiles": ["prof-in"],
                "domains": ["in.example.net"]
            }),
        ),
    ]
}

/// The path of an operation with this value for every placeholder.
fn path(operation: &Operation, value: &str) -> String {
    let path = operation.path();
    let parts = path
        .split('/')
        .map(|part| if part.starts_with('{') { value } else { part });
    parts.collect::<Vec<_>>().join("/")
}

async fn ask(w: &World, operation: &Operation, value: &str, key: &str) -> Answer {
    w.raw(operation.method.clone(), &path(operation, value), Some(key), "{}")
        .await
}

/// Everything that is known of a certificate, but for when something was looked at.
async fn all_of(w: &World, certificate: &str) -> String {
    w.text(&format!(
        "SELECT concat_ws(E'\\n',
            (SELECT c::text FROM certificates c WHERE id = '{certificate}'),
            (SELECT string_agg(v.id, ' ' ORDER BY v.id) FROM certificate_versions v WHERE certificate_id = '{certificate}'),
            (SELECT string_agg(j::text, ' ' ORDER BY j.id) FROM jobs j WHERE certificate_id = '{certificate}'),
            (SELECT string_agg(r::text, ' ') FROM revocations r WHERE certificate_id = '{certificate}'),
            (SELECT string_agg(i::text, ' ') FROM bulk_items i WHERE certificate_id = '{certificate}'),
            (SELECT string_agg(m::text, ' ') FROM certificate_targets m WHERE certificate_id = '{certificate}'))"
    ))
    .await
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn every_role_reaches_with_every_scope_exactly_what_the_table_says(db: PgPool) {
    let w = world(db).await;
    let job_of = async |certificate: &str| {
        w.text(&format!(
            "SELECT min(id) FROM jobs WHERE certificate_id = '{certificate}'"
        ))
        .await
    };
    let out_job = job_of("mc-out").await;
    let before = all_of(&w, "mc-out").await;
    let roles = [
        Role::Operator,
        Role::Viewer,
        Role::Auditor,
        Role::Approver,
        Role::Requester,
    ];
    let (mut asked, mut limited) = (0, BTreeSet::new());
    for role in roles {
        for (dimension, scope) in scopes() {
            let who = format!("{role} by {dimension}");
            let key = key(&w, &who, role.as_str(), scope).await;
            // A requester reaches what it created, of what is in its scope.
            let own = match role {
                Role::Requester => {
                    let new = json!({
                        "common_name": format!("{dimension}.in.example.net"), "team_id": "t-in", "environment": "in",
                        "issuer_id": "iss-in", "certificate_profile_id": "prof-in"
                    });
                    let made = w.raw(Method::POST, CERTIFICATES, Some(&key), new.to_string()).await;
                    made.expect(201)["id"].as_str().unwrap().to_owned()
                }
                _ => "mc-in".to_owned(),
            };
            let foreign = if role == Role::Requester {
                vec!["mc-out", "mc-in"]
            } else {
                vec!["mc-out"]
            };
            let own_job = job_of(&own).await;
            for operation in catalogue() {
                let name = format!("{who} at {}", operation.id());
                let may = match operation.access {
                    Access::Needs(permission) => role.may(permission),
                    Access::Anyone => true,
                    Access::Open => continue,
                    Access::Agent | Access::AgentItself | Access::Bootstrap => false,
                };
                asked += 1;
                if !may || operation.scoping == Scoping::Refused {
                    let answer = ask(&w, &operation, &own, &key).await;
                    assert_eq!(answer.status, 403, "{name}: {answer:?}");
                    continue;
                }
                limited.insert(operation.name);
                match operation.scoping {
                    Scoping::Refused => unreachable!(),
                    Scoping::Caller => {
                        let answer = ask(&w, &operation, "", &key).await;
                        assert!(![401, 403].contains(&answer.status), "{name}: {answer:?}");
                    }
                    Scoping::Certificate => {
                        for id in &foreign {
                            let answer = ask(&w, &operation, id, &key).await;
                            let missing = format!("there is no certificate {id}");
                            assert_eq!((answer.status, answer.problem().detail), (404, missing), "{name}");
                        }
                        let answer = ask(&w, &operation, &own, &key).await;
                        assert!(![401, 403].contains(&answer.status), "{name}: {answer:?}");
                        let text = String::from_utf8_lossy(&answer.octets);
                        assert!(!text.contains("there is no certificate"), "{name}: {answer:?}");
                    }
                    Scoping::Job => {
                        let answer = ask(&w, &operation, &out_job, &key).await;
                        let missing = format!("there is no job {out_job}");
                        assert_eq!((answer.status, answer.problem().detail), (404, missing), "{name}");
                        if !own_job.is_empty() {
                            let answer = ask(&w, &operation, &own_job, &key).await;
                            let text = String::from_utf8_lossy(&answer.octets);
                            assert!(![401, 403].contains(&answer.status), "{name}: {answer:?}");
                            assert!(!text.contains("there is no job"), "{name}: {answer:?}");
                        }
                    }
                    Scoping::Rows => {
                        let answer = ask(&w, &operation, "x-out", &key).await;
                        let one = operation.path().contains('{');
                        assert_eq!(answer.status, if one { 404 } else { 200 }, "{name}: {answer:?}");
                        let text = String::from_utf8_lossy(&answer.octets);
                        for id in foreign.iter().copied().chain([&*out_job, "www.out.example.net"]) {
                            assert!(!text.contains(id), "{name} tells of {id}: {answer:?}");
                        }
                        if operation.name == "ListCertificates" {
                            assert!(text.contains(&own), "{name}: {answer:?}");
                        }
                    }
                    Scoping::Change => {
                        let answer = ask(&w, &operation, "", &key).await;
                        assert!([400, 422].contains(&answer.status), "{name}: {answer:?}");
                    }
                }
            }
        }
    }
    assert!(asked > 3000, "{asked}");
    // What a scope makes no difference to is refused by it; the rest is all of what people do with certificates.
    assert!(limited.len() > 35, "{limited:?}");
    assert_eq!(all_of(&w, "mc-out").await, before, "nothing was changed");
}

#[test]
fn an_operation_without_a_scoping_is_refused_to_limited_keys() {
    let open = |operation: &Operation| operation.scoping != Scoping::Refused;
    for operation in catalogue() {
        let needs = |permission| operation.access == Access::Needs(permission);
        if needs(Permission::Configure) || needs(Permission::Administer) || operation.class == Class::Import {
            assert!(!open(&operation), "{}", operation.name);
        }
        // A row that names a certificate or a job in its path is about it.
        let about = match operation.path() {
            path if path.starts_with("/api/v1/certificates/{id}") => Some(Scoping::Certificate),
            path if path.starts_with("/api/v1/jobs/{id}") => Some(Scoping::Job),
            _ => None,
        };
        if let Some(about) = about {
            assert_eq!(operation.scoping, about, "{}", operation.name);
        }
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_change_that_leads_out_of_the_scope_is_not_committed(db: PgPool) {
    let w = world(db).await;
    let all = scopes()[5].1.clone();
    let operator = key(&w, "operator", "operator", all.clone()).await;
    let requester = key(&w, "requester", "requester", all).await;
    let base = json!({
        "common_name": "new.in.example.net", "team_id": "t-in", "environment": "in", "issuer_id": "iss-in",
        "certificate_profile_id": "prof-in"
    });
    let certificates = w
        .text("SELECT string_agg(c::text, ' ' ORDER BY id) FROM certificates c")
        .await;
    for (field, value) in [
        ("common_name", json!("new.out.example.net")),
        ("common_name", json!("evilin.example.net")),
        ("common_name", json!("in.example.net.evil.test")),
        ("common_name", json!("192.0.2.1")),
        ("sans", json!(["new.in.example.net", "www.out.example.net"])),
        ("sans", json!(["x@mail.in.example.net"])),
        ("sans", json!(["spiffe://x/a.in.example.net"])),
        ("sans", json!(["192.0.2.1"])),
        ("team_id", json!("t-out")),
        ("environment", json!("out")),
        ("issuer_id", json!("iss-out")),
        ("certificate_profile_id", json!("prof-out")),
        ("target_ids", json!(["tgt-out"])),
    ] {
        let mut new = base.clone();
        new[field] = value.clone();
        for key in [&operator, &requester] {
            let answer = w.raw(Method::POST, CERTIFICATES, Some(key), new.to_string()).await;
            assert_eq!(answer.status, 403, "{field}: {answer:?}");
        }
        let changes = json!({ field: value }).to_string();
        let answer = w
            .raw(Method::PUT, &format!("{CERTIFICATES}/mc-in"), Some(&operator), changes)
            .await;
        assert_eq!(answer.status, 403, "{field}: {answer:?}");
    }
    // A requester has no target at all, not even one that nothing is on.
    let mut new = base.clone();
    new["target_ids"] = json!(["tgt-free"]);
    let answer = w
        .raw(Method::POST, CERTIFICATES, Some(&requester), new.to_string())
        .await;
    assert_eq!(answer.status, 403, "{answer:?}");
    let after = w
        .text("SELECT string_agg(c::text, ' ' ORDER BY id) FROM certificates c")
        .await;
    assert_eq!(after, certificates, "nothing was changed");

    // Many at once: by id those of the scope alone may be named; by filter they alone are chosen.
    let bulk = async |body: Value| {
        let path = "/api/v1/certificates/bulk/renew";
        let paths: Vec<String> = catalogue()
            .iter()
            .filter(|o| o.name == "BulkRenew")
            .map(Operation::path)
            .collect();
        let path = paths.first().map_or(path, String::as_str);
        w.raw(Method::POST, path, Some(&operator), body.to_string()).await
    };
    let answer = bulk(json!({ "ids": ["mc-in", "mc-out"] })).await;
    assert_eq!(answer.status, 404, "{answer:?}");
    let chosen = bulk(json!({ "filter": { "created_after": "2020-01-01T00:00:00Z" } }))
        .await
        .expect(202);
    assert_eq!(chosen["total"], 1);
    w.settle().await;
    assert_eq!(
        (w.versions("mc-in").await.len(), w.versions("mc-out").await.len()),
        (2, 1)
    );
    // Within the scope everything goes on as without one.
    let mut new = base;
    new["id"] = json!("mc-new");
    new["target_ids"] = json!(["tgt-free"]);
    w.raw(Method::POST, CERTIFICATES, Some(&operator), new.to_string())
        .await
        .expect(201);
    w.settle().await;
    assert_eq!(w.versions("mc-new").await.len(), 1);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn sessions_and_tokens_have_the_scope_of_the_key_or_role_they_come_with(db: PgPool) {
    let w = world(db).await;
    let idp = w.idp().await;
    let secret = "the-secret-that-tokens-are-signed-with";
    let roles = "ci=requester;domains=in.example.net,ops=operator;teams=t-in,more=operator;environments=out";
    let settings = [
        "--auth-type",
        "jwt",
        "--auth-secret",
        secret,
        "--jwt-role-claim",
        "groups",
        "--jwt-roles",
        roles,
    ];
    let (url, _) = w.api(&settings).await;
    let visible = async |url: &str, headers: &[(&str, String)]| {
        let mut request = w.http.get(format!("{url}{CERTIFICATES}"));
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let page = w.ask("list", request).await.expect(200);
        assert_eq!(page["total"], page["data"].as_array().unwrap().len());
        let ids = page["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["id"].as_str().unwrap().to_owned());
        ids.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(" ")
    };
    let bearer = |token: &str| vec![("authorization", format!("Bearer {token}"))];
    let session = async |url: &str, token: &str| {
        let begun = w
            .ask(
                "begin",
                w.http.post(format!("{url}/api/v1/sessions")).bearer_auth(token),
            )
            .await;
        let cookie = begun.header("set-cookie").split_once(';').unwrap().0.to_owned();
        begun.expect(201);
        vec![("cookie", cookie)]
    };
    let named = key(&w, "ops", "operator", json!({ "teams": ["t-in"] })).await;
    let of_key = session(&w.url, &named).await;
    assert_eq!(visible(&w.url, &bearer(&named)).await, "mc-in");
    assert_eq!(visible(&w.url, &of_key).await, "mc-in");
    // The key decides, also for sessions that it began before.
    let id = w.text("SELECT id FROM api_keys").await;
    w.put(
        &format!("/api/v1/api-keys/{id}"),
        json!({ "scope": { "teams": ["t-out"] } }),
    )
    .await
    .expect(200);
    assert_eq!(visible(&w.url, &of_key).await, "mc-out");
    w.put(&format!("/api/v1/api-keys/{id}"), json!({ "scope": {} }))
        .await
        .expect(200);
    assert_eq!(visible(&w.url, &of_key).await, "mc-in mc-out");

    for (groups, ids) in [
        (json!(["ops"]), "mc-in"),
        (json!(["more"]), "mc-out"),
        (json!(["ops", "more"]), "mc-in mc-out"),
        (json!(["ci"]), ""),
    ] {
        let said = json!({ "sub": "ada", "exp": BEGIN + 600, "groups": groups });
        let token = Key::Hmac(secret.as_bytes().to_vec()).token("", Value::Null, &said);
        assert_eq!(visible(&url, &bearer(&token)).await, ids, "{groups}");
        assert_eq!(visible(&url, &session(&url, &token).await).await, ids, "{groups}");
    }

    // Login with an identity provider.
    let mut login = idp.args("http://127.0.0.1/auth/callback").to_vec();
    login.extend(["--jwt-role-claim", "groups", "--jwt-roles", roles]);
    let (url, _) = w.api(&login).await;
    let http = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap();
    let left = w.ask("leave", http.get(format!("{url}/auth/login"))).await;
    let with = left.header("set-cookie").split_once(';').unwrap().0.to_owned();
    let back = idp.log_in(
        left.header("location"),
        json!({ "sub": "ada", "groups": ["ops"], "iat": BEGIN, "exp": BEGIN + 600 }),
    );
    let back = w
        .ask(
            "back",
            http.get(format!("{url}/auth/callback?{back}")).header("cookie", with),
        )
        .await;
    assert_eq!(back.status, 302, "{back:?}");
    let cookies: Vec<&str> = back
        .headers
        .get_all("set-cookie")
        .iter()
        .map(|v| v.to_str().unwrap())
        .collect();
    let cookie = cookies.iter().find(|cookie| cookie.contains("session=")).unwrap();
    let cookie = cookie.split_once(';').unwrap().0.to_owned();
    assert_eq!(visible(&url, &[("cookie", cookie)]).await, "mc-in");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_ci_job_obtains_exactly_its_own_certificates_with_a_requesters_key(db: PgPool) {
    let w = world(db).await;
    let scope = json!({ "teams": ["t-in"], "environments": ["in"], "domains": ["ci.in.example.net"] });
    let ci = key(&w, "ci", "requester", scope.clone()).await;
    let other = key(&w, "other-ci", "requester", scope).await;
    let by = async |key: &str, method: Method, path: &str, body: Value| {
        w.raw(method, path, Some(key), body.to_string()).await
    };
    // What the scope leaves no choice of need not be said.
    let new = json!({ "id": "mc-ci", "common_name": "build-1.ci.in.example.net" });
    let made = by(&ci, Method::POST, CERTIFICATES, new).await.expect(201);
    assert_eq!((&made["team_id"], &made["environment"]), (&json!("t-in"), &json!("in")));
    // Where it is put is for an operator to say.
    w.put(&format!("{CERTIFICATES}/mc-ci"), json!({ "target_ids": ["tgt-free"] }))
        .await
        .expect(200);
    w.settle().await;
    let exported = by(
        &ci,
        Method::GET,
        &format!("{CERTIFICATES}/mc-ci/export?format=pem"),
        json!({}),
    )
    .await;
    assert_eq!(exported.status, 200, "{exported:?}");
    assert!(String::from_utf8_lossy(&exported.octets).contains("BEGIN CERTIFICATE"));
    by(&ci, Method::POST, &format!("{CERTIFICATES}/mc-ci/renew"), json!({}))
        .await
        .expect(202);
    w.settle().await;
    let versions = by(&ci, Method::GET, &format!("{CERTIFICATES}/mc-ci/versions"), json!({})).await;
    assert_eq!(versions.expect(200)["total"], 2);

    let listed = by(&ci, Method::GET, CERTIFICATES, json!({})).await.expect(200);
    assert_eq!(
        (&listed["total"], &listed["data"][0]["id"]),
        (&json!(1), &json!("mc-ci"))
    );
    let none = by(&other, Method::GET, CERTIFICATES, json!({})).await.expect(200);
    assert_eq!(none["total"], 0, "another key of the same scope created none");
    for path in ["mc-in", "mc-out"].map(|id| format!("{CERTIFICATES}/{id}")) {
        for (method, path) in [
            (Method::GET, path.clone()),
            (Method::GET, format!("{path}/export?format=pem")),
            (Method::POST, format!("{path}/renew")),
        ] {
            let answer = by(&ci, method, &path, json!({})).await;
            assert_eq!(answer.status, 404, "{answer:?}");
        }
    }
    for (method, path) in [
        (Method::PUT, format!("{CERTIFICATES}/mc-ci")),
        (Method::POST, format!("{CERTIFICATES}/mc-ci/revoke")),
        (Method::GET, "/api/v1/api-keys".to_owned()),
        (Method::GET, "/api/v1/agents".to_owned()),
        (Method::GET, "/api/v1/audit".to_owned()),
        (Method::GET, "/api/v1/stats/summary".to_owned()),
    ] {
        let answer = by(&ci, method, &path, json!({ "environment": "in" })).await;
        assert_eq!(answer.status, 403, "{answer:?}");
    }
    // The key may get another secret and another name, and reaches what it created.
    let id = w.text("SELECT id FROM api_keys WHERE name = 'ci'").await;
    w.put(&format!("/api/v1/api-keys/{id}"), json!({ "name": "build" }))
        .await
        .expect(200);
    let rotated = w
        .post(
            &format!("/api/v1/api-keys/{id}/rotate"),
            json!({ "overlap_seconds": 0 }),
        )
        .await
        .expect(200);
    let rotated = rotated["api_key"].as_str().unwrap();
    by(rotated, Method::GET, &format!("{CERTIFICATES}/mc-ci"), json!({}))
        .await
        .expect(200);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn scopes_that_would_limit_nothing_are_refused(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    for (role, scope, status) in [
        ("admin", json!({ "teams": ["t-unassigned"] }), 422),
        ("agent", json!({ "teams": ["t-unassigned"] }), 422),
        ("viewer", json!({ "team": ["t-unassigned"] }), 400),
        ("viewer", json!({ "teams": [] }), 400),
        ("viewer", json!({ "domains": ["*.example.net"] }), 400),
        ("viewer", json!(["t-unassigned"]), 400),
        ("viewer", json!({ "domains": ["example.net"] }), 201),
    ] {
        let agent = (role == "agent").then(|| host.id());
        let new = json!({ "name": "k", "role": role, "scope": scope, "agent_id": agent });
        let answer = w.post("/api/v1/api-keys", new).await;
        assert_eq!(answer.status, status, "{answer:?}");
    }
    let id = w.text("SELECT id FROM api_keys WHERE name = 'k'").await;
    let answer = w
        .put(&format!("/api/v1/api-keys/{id}"), json!({ "role": "admin" }))
        .await;
    assert_eq!(answer.status, 422, "it would keep its scope: {answer:?}");
    w.put(
        &format!("/api/v1/api-keys/{id}"),
        json!({ "role": "admin", "scope": {} }),
    )
    .await
    .expect(200);
}
