//! What is wrong is refused with a problem that says so, and nothing is half-done.

use std::collections::{BTreeMap, BTreeSet};

use certctl_contract::{
    catalogue,
    endpoint::{Access, Operation},
    tools,
};
use certctl_tests::{
    requests::{self, request},
    world::{Answer, BOOTSTRAP, Host, KEY, World},
};
use http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

/// A world with one of everything: `web-1` deploys `mc-1` (issued) to `tgt-1`; `mc-revoked`, `mc-archived` and
/// `mc-waiting`, whose request `web-1` has not sent.
async fn furnished(db: PgPool) -> (World, std::sync::Arc<Host>) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    for id in ["1", "revoked", "archived", "waiting"] {
        w.target(&format!("tgt-{id}"), &host).await;
        if id != "waiting" {
            w.certificate(&format!("mc-{id}"), &[&format!("tgt-{id}")], json!({}))
                .await;
        }
    }
    w.settle().await;
    w.post(
        "/api/v1/certificates/mc-revoked/revoke",
        json!({ "reason": "superseded" }),
    )
    .await
    .expect(200);
    w.delete("/api/v1/certificates/mc-archived").await.expect(204);
    host.set_away(true);
    w.certificate("mc-waiting", &["tgt-waiting"], json!({})).await;
    for (path, new) in [
        ("teams", json!({ "id": "t-1", "name": "one" })),
        (
            "owners",
            json!({ "id": "o-1", "name": "one", "email": "one@example.net" }),
        ),
        ("profiles", json!({ "id": "prof-1", "name": "one" })),
        ("renewal-policies", json!({ "id": "rp-1", "name": "one" })),
        (
            "policies",
            json!({ "id": "rule-1", "name": "one", "type": "AllowedIssuers" }),
        ),
        ("agent-groups", json!({ "id": "ag-1", "name": "one" })),
        ("blocked-keys", json!({ "spki_sha256": BLOCKED, "reason": "known" })),
    ] {
        w.post(&format!("/api/v1/{path}"), new).await.expect(201);
    }
    w.settle().await;
    // The first question for a status has a responder's certificate made, which the ledger records.
    w.get("/api/v1/ocsp/iss-local/01").await;
    assert_eq!(
        w.text("SELECT status FROM jobs WHERE certificate_id = 'mc-waiting'")
            .await,
        "AwaitingCSR"
    );
    (w, host)
}

/// What a refusal says: its status, the last part of its type, and a word of its detail or the field it names.
fn check(answer: &Answer, status: u16, kind: &str, word: &str) {
    let problem = answer.problem();
    let slug = problem.kind.rsplit(':').next().unwrap_or_default();
    assert_eq!((problem.status, slug), (status, kind), "{answer:?}");
    let fields = problem
        .errors
        .iter()
        .map(|e| format!("{} {}", e.field, e.detail))
        .collect::<String>();
    let said = format!("{} {fields}", problem.detail);
    assert!(said.contains(word), "\"{word}\" is not named: {answer:?}");
}

/// A key that is blocked, and one that is not.
const BLOCKED: &str = "0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f";
const NOT_BLOCKED: &str = "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a";

/// The path of an operation with these values for its placeholders.
fn path_of(operation: &Operation, values: &[&str]) -> String {
    let mut values = values.iter();
    let segment = |part: &str| match part.starts_with('{') {
        true => (*values.next().expect("a value for every placeholder")).to_owned(),
        false => part.to_owned(),
    };
    operation.path().split('/').map(segment).collect::<Vec<_>>().join("/")
}

/// A body that an operation takes.
fn body_of(operation: &str, host: &Host) -> Value {
    match operation {
        "create_certificate" => json!({ "common_name": "new.example.net" }),
        "create_issuer" => json!({ "name": "new", "type": "local" }),
        "create_target" => {
            json!({ "name": "new", "type": "NGINX", "agent_id": host.id(), "config": host.config("new") })
        }
        "register_agent" => json!({ "name": "new", "hostname": "new.example.net" }),
        "agent_submit_csr" => json!({ "csr_pem": requests::good("mc-waiting.example.net"), "job_id": "j-none" }),
        "agent_report_job_status" => json!({ "status": "Running" }),
        "create_policy" => json!({ "name": "new", "type": "AllowedDomains" }),
        "create_profile" | "create_renewal_policy" | "create_team" | "create_owner" | "create_agent_group" => {
            json!({ "name": "new" })
        }
        _ => json!({}),
    }
}

/// Values of the placeholders that name things which exist.
fn known(operation: &Operation, host: &Host) -> Vec<String> {
    let of = |name: &str| match (operation.tag, name) {
        ("certificates", _) | (_, "cert_id") => "mc-1",
        ("agents", "id" | "agent_id") | ("agent_groups", "agent_id") => host.id(),
        ("discovery", _) if operation.id() == "submit_discoveries" => host.id(),
        ("agent_groups", _) => "ag-1",
        ("policies", _) => "rule-1",
        ("issuers" | "revocation", "id" | "issuer_id") => "iss-local",
        (_, "serial") => "01",
        ("blocked_keys", _) => BLOCKED,
        ("targets", _) => "tgt-1",
        ("profiles", _) => "prof-1",
        ("renewal_policies", _) => "rp-1",
        ("teams", _) => "t-1",
        ("owners", _) => "o-1",
        _ => "none-of-this-name",
    };
    (operation.path_params)()
        .iter()
        .map(|param| of(param.name).to_owned())
        .collect()
}

fn texts(values: &[String]) -> Vec<&str> {
    values.iter().map(String::as_str).collect()
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn ids_that_name_nothing_are_404_on_every_operation(db: PgPool) {
    let (w, host) = furnished(db).await;
    let before = w.contents().await;
    let mut tried = 0;
    for operation in catalogue() {
        let (id, count) = (operation.id(), (operation.path_params)().len());
        for wrong in 0..count {
            if id == "ocsp_check" && wrong == 1 {
                continue; // A serial number that was never issued has an answer: unknown.
            }
            let nothing = match operation.tag {
                "blocked_keys" => NOT_BLOCKED,
                _ => "none-of-this-name",
            };
            let mut values = known(&operation, &host);
            nothing.clone_into(&mut values[wrong]);
            let answer = w
                .send(
                    operation.method.clone(),
                    &path_of(&operation, &texts(&values)),
                    body_of(&id, &host),
                )
                .await;
            // The thing that is not there, or the agent's job that is not either.
            let word = if id == "agent_submit_csr" { "j-none" } else { nothing };
            check(&answer, 404, "not-found", word);
            tried += 1;
        }
    }
    assert!(tried > 40, "{tried} operations have ids");
    assert_eq!(w.contents().await, before);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn nobody_gets_in_without_a_key_that_opens(db: PgPool) {
    let (w, host) = furnished(db).await;
    let other = w.host("web-2").await;
    w.settle().await;
    let before = w.contents().await;
    let agent = host.key();
    for operation in catalogue() {
        let id = operation.id();
        let values = known(&operation, &host);
        let path = path_of(&operation, &texts(&values));
        let send = async |key: Option<&str>| {
            w.raw(operation.method.clone(), &path, key, body_of(&id, &host).to_string())
                .await
        };
        if operation.access == Access::Open {
            assert_ne!(send(None).await.status, 401, "{id}");
            continue;
        }
        for key in [None, Some("wrong"), Some(""), Some(&KEY[1..])] {
            let answer = send(key).await;
            check(&answer, 401, "unauthenticated", "ey");
            assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"certctl\"", "{id}");
        }
        for scheme in ["Basic ", "Bearer\t", ""] {
            let request = w.http.request(operation.method.clone(), format!("{}{path}", w.url));
            let answer = request
                .header("authorization", format!("{scheme}{KEY}"))
                .send()
                .await
                .unwrap();
            assert_eq!(answer.status(), 401, "{id} {scheme:?}");
        }
        if matches!(operation.access, Access::Needs(_) | Access::Bootstrap) {
            check(&send(Some(&agent)).await, 403, "forbidden", "key");
        }
        if operation.access != Access::Bootstrap {
            check(&send(Some(BOOTSTRAP)).await, 403, "forbidden", "key");
        }
        if matches!(operation.access, Access::Agent | Access::AgentItself) {
            let path = path.replace(host.id(), other.id());
            let answer = w
                .raw(
                    operation.method.clone(),
                    &path,
                    Some(&agent),
                    body_of(&id, &host).to_string(),
                )
                .await;
            check(&answer, 403, "forbidden", "own");
        }
    }
    assert_eq!(w.contents().await, before);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn requests_that_must_not_be_signed_are_refused_and_the_job_still_waits(db: PgPool) {
    let (w, host) = furnished(db).await;
    let before = w.contents().await;
    let name = "mc-waiting.example.net";
    let path = format!("/api/v1/agents/{}/csr", host.id());
    let good = requests::good(name);
    for (csr, word) in [
        (requests::with_bad_signature(name), "signature"),
        (requests::good("other.example.net"), "other.example.net"),
        (request(name, &[name, "evil.example.com"]), "evil.example.com"),
        (request(name, &["*.example.net"]), "*.example.net"),
        (requests::rsa(1024, name), "1024"),
        (request(name, &["mc-waiting.example.net\0.evil.example.com"]), "csr_pem"),
        (request(name, &["two words.example.net"]), "csr_pem"),
        (
            good.replace("CERTIFICATE REQUEST", "CERTIFICATE"),
            "CERTIFICATE REQUEST",
        ),
        (good[..good.len() / 2].to_owned(), "csr_pem"),
        (format!("{good}{good}"), "one"),
        ("nonsense".to_owned(), "csr_pem"),
        (String::new(), "csr_pem"),
        ("A".repeat(900_000), "csr_pem"),
    ] {
        let body = json!({ "csr_pem": csr, "certificate_id": "mc-waiting" });
        check(&w.post(&path, body.clone()).await, 422, "invalid", word);
        let answer = w.raw(Method::POST, &path, Some(&host.key()), body.to_string()).await;
        check(&answer, 422, "invalid", word);
        assert_eq!(w.contents().await, before, "{word}");
    }
    check(
        &w.post(&path, json!({ "certificate_id": "mc-waiting" })).await,
        400,
        "malformed",
        "csr_pem",
    );
    check(
        &w.post(&path, json!({ "csr_pem": good })).await,
        422,
        "invalid",
        "certificate_id",
    );
    let body = json!({ "csr_pem": requests::good("mc-1.example.net"), "certificate_id": "mc-1" });
    check(&w.post(&path, body).await, 409, "wrong-state", "mc-1");
    assert_eq!(w.contents().await, before);
    // And a good one is still welcome; the same again is answered in the same way, another one is not.
    let body = json!({ "csr_pem": good, "certificate_id": "mc-waiting" });
    w.post(&path, body.clone()).await.expect(202);
    let job = w.text("SELECT id FROM jobs WHERE certificate_id = 'mc-waiting'").await;
    w.post(&path, json!({ "csr_pem": good, "job_id": job }))
        .await
        .expect(202);
    let another = w
        .post(&path, json!({ "csr_pem": requests::good(name), "job_id": job }))
        .await;
    check(&another, 409, "wrong-state", &job);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn another_agents_job_does_not_exist(db: PgPool) {
    let (w, host) = furnished(db).await;
    let other = w.host("web-2").await;
    w.settle().await;
    let job = w.text("SELECT id FROM jobs WHERE certificate_id = 'mc-waiting'").await;
    let before = w.contents().await;
    let (mine, theirs) = (other.id(), host.id());
    for key in [other.key(), KEY.to_owned()] {
        let send = async |path: &str, body: Value| {
            let method = if body.is_null() { Method::GET } else { Method::POST };
            w.raw(method, &format!("/api/v1/agents/{path}"), Some(&key), body.to_string())
                .await
        };
        for status in ["Running", "Completed", "Failed"] {
            let answer = send(&format!("{mine}/jobs/{job}/status"), json!({ "status": status })).await;
            check(&answer, 404, "not-found", &job);
        }
        let csr = json!({ "csr_pem": requests::good("mc-waiting.example.net"), "job_id": job });
        check(&send(&format!("{mine}/csr"), csr).await, 404, "not-found", &job);
        check(
            &send(&format!("{mine}/certificates/mc-1"), Value::Null).await,
            404,
            "not-found",
            "mc-1",
        );
        let work = send(&format!("{mine}/work"), Value::Null).await.expect(200);
        assert_eq!(work, json!({ "jobs": [], "count": 0 }));
    }
    // In the other's name it is not let in at all.
    let answer = w
        .raw(
            Method::GET,
            &format!("/api/v1/agents/{theirs}/work"),
            Some(&other.key()),
            "",
        )
        .await;
    check(&answer, 403, "forbidden", "own");
    assert_eq!(w.contents().await, before);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn bodies_that_are_not_the_json_that_is_needed_are_400_and_large_ones_413(db: PgPool) {
    let (w, host) = furnished(db).await;
    let before = w.contents().await;
    for operation in catalogue().iter().filter(|operation| operation.body.is_some()) {
        let id = operation.id();
        let path = path_of(operation, &texts(&known(operation, &host)));
        let mut long = body_of(&id, &host);
        long["description"] = json!("x".repeat(operation.class.body_limit() as usize + 1));
        let whole = long.to_string();
        for (body, status, kind) in [
            (r#"{"name": "x"#.to_owned(), 400, "malformed"),
            ("name=x&hostname=y".to_owned(), 400, "malformed"),
            ("[]".to_owned(), 400, "malformed"),
            (r#"["x", "y", "z"]"#.to_owned(), 400, "malformed"),
            ("\"x\"".to_owned(), 400, "malformed"),
            ("7".to_owned(), 400, "malformed"),
            ("{\"name\": \"\u{fffd}\", ".to_owned(), 400, "malformed"),
            (whole, 413, "too-large"),
        ] {
            let short: String = body.chars().take(40).collect();
            let answer = w.raw(operation.method.clone(), &path, Some(KEY), body).await;
            let problem = answer.problem();
            let said = (problem.status, problem.kind.rsplit(':').next().unwrap_or_default());
            assert_eq!(said, (status, kind), "{id} {short}: {answer:?}");
        }
        let answer = w
            .raw(operation.method.clone(), &path, Some(KEY), vec![b'{', b'"', 0xff, b'"'])
            .await;
        check(&answer, 400, "malformed", "");
    }
    assert_eq!(w.contents().await, before);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_refers_to_nothing_or_is_in_use_is_refused_by_its_field(db: PgPool) {
    let (w, host) = furnished(db).await;
    w.target("tgt-free", &host).await;
    let before = w.contents().await;
    let config = host.config("x");
    let cn = "new.example.net";
    let target = |more: Value| {
        let mut new = json!({ "name": "new", "type": "NGINX", "agent_id": host.id(), "config": config });
        new.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        new
    };
    let (invalid, taken) = ((422, "invalid"), (409, "taken"));
    for (method, path, body, (status, kind), field) in [
        (
            "POST",
            "certificates",
            json!({ "common_name": cn, "owner_id": "o-none" }),
            invalid,
            "owner_id",
        ),
        (
            "POST",
            "certificates",
            json!({ "common_name": cn, "team_id": "t-none" }),
            invalid,
            "team_id",
        ),
        (
            "POST",
            "certificates",
            json!({ "common_name": cn, "issuer_id": "iss-none" }),
            invalid,
            "issuer_id",
        ),
        (
            "POST",
            "certificates",
            json!({ "common_name": cn, "renewal_policy_id": "rp-none" }),
            invalid,
            "renewal_policy_id",
        ),
        (
            "POST",
            "certificates",
            json!({ "common_name": cn, "certificate_profile_id": "p-none" }),
            invalid,
            "certificate_profile_id",
        ),
        (
            "POST",
            "certificates",
            json!({ "common_name": cn, "target_ids": ["tgt-1", "tgt-none"] }),
            invalid,
            "target_ids",
        ),
        (
            "POST",
            "certificates",
            json!({ "common_name": cn, "name": "mc-1.example.net" }),
            taken,
            "name",
        ),
        (
            "POST",
            "certificates",
            json!({ "common_name": cn, "id": "mc-1" }),
            taken,
            "id",
        ),
        (
            "PUT",
            "certificates/mc-1",
            json!({ "owner_id": "o-none" }),
            invalid,
            "owner_id",
        ),
        (
            "PUT",
            "certificates/mc-1",
            json!({ "team_id": "t-none" }),
            invalid,
            "team_id",
        ),
        (
            "PUT",
            "certificates/mc-1",
            json!({ "issuer_id": "iss-none" }),
            invalid,
            "issuer_id",
        ),
        (
            "PUT",
            "certificates/mc-1",
            json!({ "renewal_policy_id": "rp-none" }),
            invalid,
            "renewal_policy_id",
        ),
        (
            "PUT",
            "certificates/mc-1",
            json!({ "certificate_profile_id": "p-none" }),
            invalid,
            "certificate_profile_id",
        ),
        (
            "PUT",
            "certificates/mc-1",
            json!({ "target_ids": ["tgt-none"] }),
            invalid,
            "target_ids",
        ),
        (
            "PUT",
            "certificates/mc-1",
            json!({ "name": "mc-waiting.example.net" }),
            taken,
            "name",
        ),
        (
            "POST",
            "certificates/mc-1/deploy",
            json!({ "target_id": "tgt-none" }),
            invalid,
            "target_id",
        ),
        (
            "POST",
            "owners",
            json!({ "name": "x", "team_id": "t-none" }),
            invalid,
            "team_id",
        ),
        ("PUT", "owners/o-1", json!({ "team_id": "t-none" }), invalid, "team_id"),
        ("POST", "owners", json!({ "id": "o-1", "name": "x" }), taken, "id"),
        ("POST", "teams", json!({ "name": "one" }), taken, "name"),
        ("PUT", "teams/t-1", json!({ "name": "Unassigned" }), taken, "name"),
        ("POST", "profiles", json!({ "name": "one" }), taken, "name"),
        ("POST", "renewal-policies", json!({ "name": "one" }), taken, "name"),
        (
            "POST",
            "renewal-policies",
            json!({ "name": "x", "certificate_profile_id": "p-none" }),
            invalid,
            "certificate_profile_id",
        ),
        (
            "POST",
            "issuers",
            json!({ "name": "Local CA", "type": "local" }),
            taken,
            "name",
        ),
        ("POST", "targets", target(json!({ "name": "tgt-1" })), taken, "name"),
        (
            "POST",
            "targets",
            target(json!({ "agent_id": "a-none" })),
            invalid,
            "agent_id",
        ),
        (
            "PUT",
            "targets/tgt-free",
            json!({ "agent_id": "a-none" }),
            invalid,
            "agent_id",
        ),
        (
            "PUT",
            "targets/tgt-1",
            json!({ "agent_id": "a-none" }),
            (409, "referenced"),
            "tgt-1",
        ),
        (
            "POST",
            "agents",
            json!({ "name": "web-1", "hostname": "x" }),
            taken,
            "name",
        ),
        (
            "DELETE",
            "teams/t-unassigned",
            Value::Null,
            (409, "referenced"),
            "t-unassigned",
        ),
        (
            "DELETE",
            "owners/o-unassigned",
            Value::Null,
            (409, "referenced"),
            "o-unassigned",
        ),
        (
            "DELETE",
            "renewal-policies/rp-default",
            Value::Null,
            (409, "referenced"),
            "rp-default",
        ),
        (
            "DELETE",
            "issuers/iss-local",
            Value::Null,
            (409, "referenced"),
            "iss-local",
        ),
    ] {
        let answer = w.send(method.parse().unwrap(), &format!("/api/v1/{path}"), body).await;
        check(&answer, status, kind, field);
        let names: Vec<_> = answer.problem().errors.into_iter().map(|e| e.field).collect();
        assert!(kind == "referenced" || names == [field], "{field}: {answer:?}");
        assert_eq!(w.contents().await, before, "{answer:?}");
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn values_that_cannot_be_accepted_are_refused_by_their_field(db: PgPool) {
    let (w, host) = furnished(db).await;
    let before = w.contents().await;
    let cn = "new.example.net";
    let target =
        |kind: &str, config: Value| json!({ "name": "new", "type": kind, "agent_id": host.id(), "config": config });
    for (method, path, body, field) in [
        ("POST", "certificates", json!({}), "common_name"),
        ("POST", "certificates", json!({ "common_name": "" }), "common_name"),
        (
            "POST",
            "certificates",
            json!({ "common_name": "two words" }),
            "common_name",
        ),
        (
            "POST",
            "certificates",
            json!({ "common_name": "a\u{0}b.example.net" }),
            "common_name",
        ),
        (
            "POST",
            "certificates",
            json!({ "common_name": "-a.example.net" }),
            "common_name",
        ),
        (
            "POST",
            "certificates",
            json!({ "common_name": "a..example.net" }),
            "common_name",
        ),
        (
            "POST",
            "certificates",
            json!({ "common_name": "a@example.net" }),
            "common_name",
        ),
        (
            "POST",
            "certificates",
            json!({ "common_name": format!("{}.net", "a".repeat(64)) }),
            "common_name",
        ),
        (
            "POST",
            "certificates",
            json!({ "common_name": cn, "sans": ["a\u{0}.example.net"] }),
            "sans",
        ),
        (
            "POST",
            "certificates",
            json!({ "common_name": cn, "sans": ["a.example.net\u{0}.evil.example"] }),
            "sans",
        ),
        (
            "POST",
            "certificates",
            json!({ "common_name": cn, "sans": [""] }),
            "sans",
        ),
        (
            "POST",
            "certificates",
            json!({ "common_name": cn, "sans": vec!["a.example.net"; 101] }),
            "sans",
        ),
        (
            "POST",
            "certificates",
            json!({ "common_name": cn, "name": "x".repeat(256) }),
            "name",
        ),
        (
            "POST",
            "certificates",
            json!({ "common_name": cn, "name": "a\u{0}b" }),
            "name",
        ),
        (
            "POST",
            "certificates",
            json!({ "common_name": cn, "environment": "a\u{0}b" }),
            "environment",
        ),
        (
            "POST",
            "certificates",
            json!({ "common_name": cn, "tags": { "a": "\u{0}" } }),
            "tags",
        ),
        ("PUT", "certificates/mc-1", json!({ "name": "" }), "name"),
        (
            "PUT",
            "certificates/mc-1",
            json!({ "sans": ["a\u{0}.example.net"] }),
            "sans",
        ),
        (
            "PUT",
            "certificates/mc-1",
            json!({ "environment": "a\u{0}b" }),
            "environment",
        ),
        ("POST", "teams", json!({ "name": "" }), "name"),
        ("POST", "teams", json!({ "name": "x".repeat(256) }), "name"),
        (
            "POST",
            "teams",
            json!({ "name": "new", "description": "a\u{0}b" }),
            "description",
        ),
        ("PUT", "teams/t-1", json!({ "name": " " }), "name"),
        ("POST", "owners", json!({ "name": "new", "email": "nobody" }), "email"),
        (
            "POST",
            "owners",
            json!({ "name": "new", "email": "a@b.net\r\nBcc: c@d.net" }),
            "email",
        ),
        (
            "POST",
            "profiles",
            json!({ "name": "new", "max_ttl_seconds": -1 }),
            "max_ttl_seconds",
        ),
        (
            "POST",
            "profiles",
            json!({ "name": "new", "required_san_patterns": ["("] }),
            "required_san_patterns",
        ),
        (
            "POST",
            "profiles",
            json!({ "name": "new", "spiffe_uri_pattern": "[" }),
            "spiffe_uri_pattern",
        ),
        (
            "POST",
            "profiles",
            json!({ "name": "new", "allowed_key_algorithms": [{ "algorithm": "RSA", "min_size": 1024 }] }),
            "allowed_key_algorithms",
        ),
        (
            "POST",
            "renewal-policies",
            json!({ "name": "new", "renew_at_permille": 0 }),
            "renew_at_permille",
        ),
        (
            "POST",
            "renewal-policies",
            json!({ "name": "new", "renew_at_permille": 1000 }),
            "renew_at_permille",
        ),
        (
            "POST",
            "renewal-policies",
            json!({ "name": "new", "renewal_window_days": -1 }),
            "renewal_window_days",
        ),
        (
            "POST",
            "renewal-policies",
            json!({ "name": "new", "max_retries": -1 }),
            "max_retries",
        ),
        (
            "POST",
            "renewal-policies",
            json!({ "name": "new", "retry_interval_seconds": -1 }),
            "retry_interval_seconds",
        ),
        (
            "PUT",
            "renewal-policies/rp-1",
            json!({ "renew_at_permille": 1000 }),
            "renew_at_permille",
        ),
        ("POST", "issuers", json!({ "name": "new", "type": "Magic" }), "type"),
        ("POST", "targets", target("Magic", json!({})), "type"),
        ("POST", "targets", target("NGINX", json!({})), "config.cert_path"),
        (
            "POST",
            "targets",
            target(
                "NGINX",
                json!({ "cert_path": "/a.pem", "reload_command": "nginx; rm x" }),
            ),
            "config",
        ),
        (
            "PUT",
            "targets/tgt-1",
            json!({ "config": { "cert_path": "a.pem" } }),
            "config",
        ),
        ("POST", "agents", json!({ "name": "new", "hostname": "" }), "hostname"),
        (
            "POST",
            "agents",
            json!({ "name": "new", "hostname": "x", "api_key": "short" }),
            "api_key",
        ),
    ] {
        let answer = w.send(method.parse().unwrap(), &format!("/api/v1/{path}"), body).await;
        check(&answer, 422, "invalid", field);
        assert_eq!(w.contents().await, before, "{answer:?}");
    }
    for (path, body, field) in [
        ("certificates", json!({ "common_name": 7 }), "common_name"),
        ("certificates", json!({ "common_name": cn, "id": "a/b" }), "id"),
        (
            "certificates",
            json!({ "common_name": cn, "sans": "a.example.net" }),
            "sans",
        ),
        ("certificates", json!({ "common_name": cn, "tags": { "a": 1 } }), "tags"),
        ("certificates/mc-1/revoke", json!({ "reason": "because" }), "reason"),
        (
            "profiles",
            json!({ "name": "new", "allowed_ekus": ["everything"] }),
            "allowed_ekus",
        ),
        (
            "profiles",
            json!({ "name": "new", "max_ttl_seconds": "long" }),
            "max_ttl_seconds",
        ),
        ("targets", json!({ "type": "NGINX" }), "name"),
    ] {
        let answer = w.post(&format!("/api/v1/{path}"), body).await;
        check(&answer, 400, "malformed", field);
        assert_eq!(w.contents().await, before, "{answer:?}");
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_is_over_stays_over(db: PgPool) {
    let (w, _) = furnished(db).await;
    let before = w.contents().await;
    for (path, word) in [
        ("certificates/mc-revoked/renew", "revoked"),
        ("certificates/mc-revoked/deploy", "revoked"),
        ("certificates/mc-revoked/revoke", "revoked"),
        ("certificates/mc-archived/renew", "archived"),
        ("certificates/mc-archived/deploy", "archived"),
        ("certificates/mc-archived/revoke", "archived"),
        ("certificates/mc-waiting/renew", "already"),
        ("certificates/mc-waiting/revoke", "nothing was issued"),
        ("certificates/mc-waiting/deploy", "nothing to deploy"),
    ] {
        check(
            &w.post(&format!("/api/v1/{path}"), json!({})).await,
            409,
            "wrong-state",
            word,
        );
        assert_eq!(w.contents().await, before, "{path}");
    }
    let done = w
        .text("SELECT min(id) FROM jobs WHERE status = 'Completed' AND certificate_id = 'mc-1'")
        .await;
    for verb in ["cancel", "retry"] {
        check(
            &w.post(&format!("/api/v1/jobs/{done}/{verb}"), json!({})).await,
            409,
            "wrong-state",
            "Completed",
        );
    }
    assert_eq!(w.contents().await, before);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn queries_paths_and_methods_that_are_not_known_are_named(db: PgPool) {
    let (w, host) = furnished(db).await;
    let before = w.contents().await;
    let mut methods = BTreeMap::<String, BTreeSet<String>>::new();
    for operation in catalogue() {
        let id = operation.id();
        let path = path_of(&operation, &texts(&known(&operation, &host)));
        let answer = w
            .send(
                operation.method.clone(),
                &format!("{path}?nonsense=1"),
                body_of(&id, &host),
            )
            .await;
        check(&answer, 400, "malformed", "nonsense");
        assert_eq!(answer.problem().errors[0].field, "nonsense", "{id}");
        methods.entry(path).or_default().insert(operation.method.to_string());
    }
    for (path, known) in methods {
        for method in ["PATCH", "PUT", "DELETE", "POST"]
            .iter()
            .filter(|method| !known.contains(**method))
        {
            let answer = w.send(method.parse().unwrap(), &path, json!({})).await;
            check(&answer, 405, "method-not-allowed", "Allow");
            let allow: BTreeSet<_> = answer.header("allow").split(',').map(|m| m.trim().to_owned()).collect();
            let allow: BTreeSet<_> = allow.into_iter().filter(|method| method != "HEAD").collect();
            assert_eq!(allow, known, "{method} {path}");
        }
    }
    for path in [
        "/",
        "/api",
        "/api/v1",
        "/api/v1/nonsense",
        "/api/v1/teams/",
        "/api/v1/teams/t-1/x",
        "/api/v2/teams",
        "//api/v1/teams",
        "/health/",
    ] {
        check(&w.get(path).await, 404, "not-found", "nothing at this path");
    }
    for id in ["a%2Fb", "a%00b", "-a", "a%20b", "a%0Ab"] {
        let answer = w.get(&format!("/api/v1/teams/{id}")).await;
        check(&answer, 400, "malformed", "id");
    }
    for path in ["/api/v1/teams/%ff", "/ca/%ff.crt", "/crl/%ff", "/ocsp/%ff/AAAA", "/%ff"] {
        check(&w.get(path).await, 400, "malformed", "UTF-8");
    }
    check(
        &w.get(&format!("/api/v1/teams/{}", "a".repeat(129))).await,
        400,
        "malformed",
        "id",
    );
    for (path, field) in [
        ("certificates?status=Actve", "status"),
        ("certificates?per_page=x", "per_page"),
        ("certificates?page=1&page=2", "page"),
        ("certificates?sort=colour", "sort"),
        ("certificates?expires_before=tomorrow", "expires_before"),
        ("certificates?cursor=%21", "cursor"),
        ("certificates?owner_id=a%2Fb", "owner_id"),
        ("jobs?status=Sleeping", "status"),
        ("jobs?type=Magic", "type"),
        ("agents?status=Asleep", "status"),
        ("profiles?enabled=perhaps", "enabled"),
    ] {
        let answer = w.get(&format!("/api/v1/{path}")).await;
        check(&answer, 400, "malformed", field);
        assert_eq!(answer.problem().errors[0].field, field, "{path}");
    }
    assert_eq!(w.contents().await, before);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn no_value_of_any_field_breaks_the_server(db: PgPool) {
    let (w, host) = furnished(db).await;
    let values = [
        json!("a\u{0}b"),
        json!("\u{202e}\u{feff}"),
        json!("x".repeat(100_000)),
        json!(""),
        json!(-1),
        json!(9_223_372_036_854_775_807_i64),
        json!(1e308),
        json!(true),
        json!(null),
        json!([null]),
        json!(["a\u{0}b"]),
        json!({ "a": { "b\u{0}": "\u{0}" } }),
    ];
    for operation in catalogue() {
        let id = operation.id();
        let path = path_of(&operation, &texts(&known(&operation, &host)));
        let in_query: Vec<_> = (operation.query_params)().iter().map(|param| param.name).collect();
        for name in &in_query {
            for value in [
                "%00",
                "a%00b",
                "%ff",
                "-1",
                "99999999999999999999",
                "0001-01-01T00:00:00Z",
                "9999-12-31T23:59:59Z",
                "true",
                "%F0%9F%98%80",
                "",
            ] {
                if *name == "wait" {
                    continue;
                }
                let answer = w
                    .send(operation.method.clone(), &format!("{path}?{name}={value}"), Value::Null)
                    .await;
                assert!(answer.status < 500, "{answer:?}");
            }
        }
        if operation.body.is_none() {
            continue;
        }
        let tool = tools::tool(&operation);
        let in_path: Vec<_> = (operation.path_params)().iter().map(|param| param.name).collect();
        for field in tool.input["properties"].as_object().unwrap().keys() {
            for value in values.iter().filter(|_| !in_path.contains(&field.as_str())) {
                let mut body = body_of(&id, &host);
                body[field] = value.clone();
                let answer = w.send(operation.method.clone(), &path, body).await;
                assert!(
                    answer.status < 500,
                    "{field} = {}: {answer:?}",
                    value.to_string().chars().take(60).collect::<String>()
                );
                if answer.status >= 400 {
                    answer.problem();
                }
            }
        }
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_the_server_decides_is_not_taken_from_requests(db: PgPool) {
    let (w, _) = furnished(db).await;
    let claims = json!({
        "status": "Revoked", "revoked_at": "2020-01-01T00:00:00Z", "revocation_reason": "keyCompromise",
        "serial_number": "1", "created_at": "2020-01-01T00:00:00Z",
        "archived_at": "2020-01-01T00:00:00Z", "renew_at": "2020-01-01T00:00:00Z", "fingerprint": "00"
    });
    let mut new = claims.clone();
    new["id"] = json!("mc-new");
    new["common_name"] = json!("new.example.net");
    for answer in [
        w.post("/api/v1/certificates", new).await.expect(201),
        w.put("/api/v1/certificates/mc-new", claims).await.expect(200),
    ] {
        assert_eq!(
            (&answer["status"], &answer["expires_at"]),
            (&json!("Pending"), &Value::Null)
        );
        for absent in [
            "revoked_at",
            "revocation_reason",
            "serial_number",
            "renew_at",
            "fingerprint",
        ] {
            assert!(answer.get(absent).is_none(), "{absent}: {answer}");
        }
        assert_eq!(answer["created_at"], json!(w.clock.now()));
    }
    let job = w
        .text("SELECT count(*)::text FROM jobs WHERE certificate_id = 'mc-new'")
        .await;
    assert_eq!(job, "0", "it has no targets yet");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_body_without_a_declared_length_is_bounded_too(db: PgPool) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let w = World::new(db).await;
    let before = w.contents().await;
    let stream = tokio::net::TcpStream::connect(w.url.strip_prefix("http://").unwrap())
        .await
        .unwrap();
    let (mut from, mut to) = stream.into_split();
    let head = format!(
        "POST /api/v1/teams HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    let send = async {
        let chunk = [&b"10000\r\n"[..], &[b' '; 0x10000], b"\r\n"].concat();
        to.write_all(head.as_bytes()).await?;
        for _ in 0..80 {
            to.write_all(&chunk).await?;
        }
        std::io::Result::Ok(())
    };
    let read = async {
        let mut answer = vec![0; 64 * 1024];
        let n = from.read(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[..n]).into_owned()
    };
    // The server need not read what it will not take.
    let (_, answer) = tokio::join!(send, read);
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert_eq!(w.contents().await, before);
}
