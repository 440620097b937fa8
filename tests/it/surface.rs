//! What is published, against a list that was written by hand: methods, paths, statuses, shapes, and who may without a
//! key. The router, the document and the page are held against the same table.

use std::collections::BTreeSet;

use certctl_contract::{
    catalogue,
    endpoint::{Access, Operation},
    openapi,
};
use certctl_tests::{python, run, world::World};
use http::Method;
use serde_json::Value;
use sqlx::PgPool;

/// What existing clients call: method, path, status, whether a key is needed, and the shape of the answer. `list` is an
/// envelope of pages, `one` an object, `keys …` an object with these keys at least.
const KNOWN: &str = "
    GET /health 200 open keys status
    GET /ready 200 open keys status
    GET /api/v1/auth/info 200 open keys auth_type required
    GET /api/v1/auth/check 200 key keys status
    GET /api/v1/certificates 200 key list
    POST /api/v1/certificates 201 key one
    GET /api/v1/certificates/{id} 200 key one
    PUT /api/v1/certificates/{id} 200 key one
    DELETE /api/v1/certificates/{id} 204 key empty
    GET /api/v1/certificates/{id}/versions 200 key list
    GET /api/v1/certificates/{id}/deployments 200 key keys data total
    POST /api/v1/certificates/{id}/renew 202 key keys status
    POST /api/v1/certificates/{id}/deploy 202 key keys status
    POST /api/v1/certificates/{id}/revoke 200 key keys status
    GET /api/v1/crl 200 key keys version entries total generated_at
    GET /api/v1/crl/{issuer_id} 200 open der
    GET /api/v1/ocsp/{issuer_id}/{serial} 200 open der
    GET /api/v1/issuers 200 key list
    POST /api/v1/issuers 201 key one
    GET /api/v1/issuers/{id} 200 key one
    PUT /api/v1/issuers/{id} 200 key one
    DELETE /api/v1/issuers/{id} 204 key empty
    POST /api/v1/issuers/{id}/test 200 key keys status
    GET /api/v1/targets 200 key list
    POST /api/v1/targets 201 key one
    GET /api/v1/targets/{id} 200 key one
    PUT /api/v1/targets/{id} 200 key one
    DELETE /api/v1/targets/{id} 204 key empty
    GET /api/v1/agents 200 key list
    POST /api/v1/agents 201 key one
    GET /api/v1/agents/{id} 200 key one
    POST /api/v1/agents/{id}/heartbeat 200 key keys status
    POST /api/v1/agents/{id}/csr 202 key keys status
    GET /api/v1/agents/{id}/certificates/{cert_id} 200 key keys certificate_pem
    GET /api/v1/agents/{id}/work 200 key keys jobs count
    POST /api/v1/agents/{id}/jobs/{job_id}/status 200 key keys status
    GET /api/v1/jobs 200 key list
    GET /api/v1/jobs/{id} 200 key one
    POST /api/v1/jobs/{id}/cancel 200 key keys status
    POST /api/v1/jobs/{id}/approve 200 key keys status
    POST /api/v1/jobs/{id}/reject 200 key keys status
    GET /api/v1/policies 200 key list
    POST /api/v1/policies 201 key one
    GET /api/v1/policies/{id} 200 key one
    PUT /api/v1/policies/{id} 200 key one
    DELETE /api/v1/policies/{id} 204 key empty
    GET /api/v1/policies/{id}/violations 200 key list
    GET /api/v1/profiles 200 key list
    POST /api/v1/profiles 201 key one
    GET /api/v1/profiles/{id} 200 key one
    PUT /api/v1/profiles/{id} 200 key one
    DELETE /api/v1/profiles/{id} 204 key empty
    GET /api/v1/teams 200 key list
    POST /api/v1/teams 201 key one
    GET /api/v1/teams/{id} 200 key one
    PUT /api/v1/teams/{id} 200 key one
    DELETE /api/v1/teams/{id} 204 key empty
    GET /api/v1/owners 200 key list
    POST /api/v1/owners 201 key one
    GET /api/v1/owners/{id} 200 key one
    PUT /api/v1/owners/{id} 200 key one
    DELETE /api/v1/owners/{id} 204 key empty
    GET /api/v1/agent-groups 200 key list
    POST /api/v1/agent-groups 201 key one
    GET /api/v1/agent-groups/{id} 200 key one
    PUT /api/v1/agent-groups/{id} 200 key one
    DELETE /api/v1/agent-groups/{id} 204 key empty
    GET /api/v1/agent-groups/{id}/members 200 key list
    GET /api/v1/audit 200 key list
    GET /api/v1/audit/{id} 200 key one
    GET /api/v1/notifications 200 key list
    GET /api/v1/notifications/{id} 200 key one
    POST /api/v1/notifications/{id}/read 200 key keys status
    GET /api/v1/stats/summary 200 key one
    GET /api/v1/stats/certificates-by-status 200 key array
    GET /api/v1/stats/expiration-timeline 200 key array
    GET /api/v1/stats/job-trends 200 key array
    GET /api/v1/stats/issuance-rate 200 key array
    GET /api/v1/metrics 200 key one
    POST /api/v1/agents/{id}/discoveries 202 key one
    GET /api/v1/discovered-certificates 200 key list
    GET /api/v1/discovered-certificates/{id} 200 key one
    POST /api/v1/discovered-certificates/{id}/claim 200 key keys status message
    POST /api/v1/discovered-certificates/{id}/dismiss 200 key keys status message
    GET /api/v1/discovery-scans 200 key list
    GET /api/v1/discovery-summary 200 key map";

/// What there is besides: method, path and status.
const ADDED: &str = "
    POST /api/v1/notifications/{id}/resend 200
    GET /api/v1/health 200
    POST /api/v1/sessions 201
    GET /api/v1/sessions/current 200
    DELETE /api/v1/sessions/current 204
    GET /api/v1/api-keys 200
    POST /api/v1/api-keys 201
    GET /api/v1/api-keys/{id} 200
    PUT /api/v1/api-keys/{id} 200
    DELETE /api/v1/api-keys/{id} 204
    POST /api/v1/api-keys/{id}/rotate 200
    POST /api/v1/certificates/import 200
    GET /api/v1/certificates/{id}/export 200
    GET /api/v1/certificates/{id}/revocation 200
    POST /api/v1/certificates/{id}/release 200
    GET /api/v1/blocked-keys 200
    POST /api/v1/blocked-keys 201
    GET /api/v1/blocked-keys/{id} 200
    DELETE /api/v1/blocked-keys/{id} 204
    GET /api/v1/key-compromise/challenge 200
    POST /api/v1/key-compromise 202
    GET /api/v1/recovery 200
    POST /api/v1/recovery/revocations 200
    POST /api/v1/recovery/finish 200
    GET /api/v1/certificates/{id}/explain 200
    GET /api/v1/jobs/{id}/explain 200
    GET /api/v1/jobs/{id}/approval 200
    POST /api/v1/policies/preview 200
    GET /api/v1/renewals/forecast 200
    POST /api/v1/certificates/{id}/validate 202
    GET /api/v1/endpoints 200
    GET /api/v1/freezes 200
    POST /api/v1/freezes 201
    GET /api/v1/freezes/{id} 200
    PUT /api/v1/freezes/{id} 200
    DELETE /api/v1/freezes/{id} 204
    GET /api/v1/scheduler 200
    POST /api/v1/bulk/renew 202
    POST /api/v1/bulk/revoke 202
    POST /api/v1/bulk/reassign 202
    GET /api/v1/bulk/operations 200
    GET /api/v1/bulk/operations/{id} 200
    GET /api/v1/bulk/operations/{id}/items 200
    POST /api/v1/bulk/operations/{id}/cancel 200
    PUT /api/v1/agents/{id} 200
    DELETE /api/v1/agents/{id} 204
    GET /api/v1/agent-groups/{id}/overrides 200
    PUT /api/v1/agent-groups/{id}/members/{agent_id} 200
    DELETE /api/v1/agent-groups/{id}/members/{agent_id} 204
    POST /api/v1/jobs/{id}/retry 200
    GET /api/v1/policy-violations 200
    GET /api/v1/renewal-policies 200
    POST /api/v1/renewal-policies 201
    GET /api/v1/renewal-policies/{id} 200
    PUT /api/v1/renewal-policies/{id} 200
    DELETE /api/v1/renewal-policies/{id} 204
    GET /api/v1/audit/export 200
";

fn rows(table: &str) -> Vec<Vec<&str>> {
    let lines = table.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(|line| line.split_whitespace().collect()).collect()
}

/// Placeholders without their names, which are no part of the surface.
fn anonymous(path: &str) -> String {
    let part = |segment: &str| {
        if segment.starts_with('{') {
            "{}".to_owned()
        } else {
            segment.to_owned()
        }
    };
    path.split('/').map(part).collect::<Vec<_>>().join("/")
}

fn find<'a>(all: &'a [Operation], method: &str, path: &str) -> Option<&'a Operation> {
    all.iter()
        .find(|o| o.method.as_str() == method && anonymous(&o.path()) == anonymous(path))
}

/// The schema itself, where it is a reference.
fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => document.pointer(&reference[1..]).unwrap_or(&Value::Null),
        None => schema,
    }
}

/// Whether the answer that is documented has the shape.
fn has_shape(document: &Value, operation: &Operation, shape: &[&str]) -> bool {
    let method = operation.method.as_str().to_ascii_lowercase();
    let answer = &document["paths"][operation.path()][method]["responses"][operation.status.to_string()];
    let content = answer["content"].as_object();
    let json = content
        .and_then(|c| c.get("application/json"))
        .map(|media| &media["schema"]);
    let schema = json.map(|schema| resolved(document, schema));
    let is = |kind: &str| schema.is_some_and(|s| s["type"] == kind);
    let key = |name: &str| schema.map(|s| &s["properties"][name]).filter(|p| !p.is_null());
    match shape {
        ["list"] => {
            is("object")
                && key("data").is_some_and(|data| data["type"] == "array")
                && key("total").is_some_and(|total| total["type"] == "integer")
                && key("page").is_some()
                && key("per_page").is_some()
        }
        ["one"] => is("object") && key("data").is_none() && schema.is_some_and(|s| s["properties"].is_object()),
        ["array"] => is("array"),
        ["map"] => is("object"),
        ["empty"] => content.is_none(),
        ["der"] => content.is_some_and(|c| c.keys().all(|m| m.starts_with("application/") && !m.ends_with("json"))),
        ["keys", names @ ..] => is("object") && names.iter().all(|name| key(name).is_some()),
        other => panic!("{other:?} is no shape"),
    }
}

#[test]
fn every_operation_that_existing_clients_call_is_there_as_they_know_it() {
    let all = catalogue();
    let document = openapi::document(&all);
    let known = rows(KNOWN);
    assert_eq!(known.len(), 86);
    let mut wrong = vec![];
    for row in known {
        let [method, path, status, access, shape @ ..] = row.as_slice() else {
            panic!("{row:?} is no row");
        };
        let Some(operation) = find(&all, method, path) else {
            wrong.push(format!("{method} {path} is not there"));
            continue;
        };
        let open = operation.access == Access::Open;
        if operation.status.to_string() != *status || open != (*access == "open") {
            wrong.push(format!("{method} {path}: {} {:?}", operation.status, operation.access));
        }
        if !has_shape(&document, operation, shape) {
            wrong.push(format!("{method} {path}: its answer is not {shape:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn nothing_is_published_that_is_not_on_the_lists() {
    let route = |method: &str, path: &str, status: &str| format!("{method} {} {status}", anonymous(path));
    let listed: BTreeSet<String> = rows(KNOWN)
        .iter()
        .chain(&rows(ADDED))
        .map(|row| route(row[0], row[1], row[2]))
        .collect();
    let published: BTreeSet<String> = catalogue()
        .iter()
        .map(|o| route(o.method.as_str(), &o.path(), &o.status.to_string()))
        .collect();
    let unlisted: Vec<_> = published.difference(&listed).collect();
    let missing: Vec<_> = listed.difference(&published).collect();
    assert!(
        unlisted.is_empty() && missing.is_empty(),
        "not listed: {unlisted:#?}, not there: {missing:#?}"
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn the_router_serves_what_the_document_says_and_nothing_else(db: PgPool) {
    let w = World::new(db).await;
    let document = w.raw(Method::GET, "/api/v1/openapi.json", None, "").await.expect(200);
    assert_eq!(document, openapi::document(&catalogue()));
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() > 40);
    for (path, item) in paths {
        let address = path.split('/').map(|s| if s.starts_with('{') { "x-1" } else { s });
        let address = address.collect::<Vec<_>>().join("/");
        for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
            let described = &item[method.as_str().to_ascii_lowercase()];
            let status = w.raw(method.clone(), &address, None, "").await.status;
            match described.is_object() {
                // Paths share templates: another row may answer this address.
                false => assert!(matches!(status, 405 | 401), "{method} {path} answers {status}"),
                true if described["security"] == serde_json::json!([]) => {
                    assert!(!matches!(status, 401 | 403 | 405), "{method} {path} answers {status}");
                }
                true => assert_eq!(status, 401, "{method} {path} without a key"),
            }
        }
    }
}

/// Every example under the operations of a document against its schema, with references into the document.
const VALIDATE: &str = r##"
import json, sys
from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012
text = open(sys.argv[1]).read().replace('"#/components/', '"urn:document#/components/')
document = json.loads(text)
resource = Resource(contents=document, specification=DRAFT202012)
registry = Registry().with_resource("urn:document", resource)
count, wrong = 0, []
def check(where, schema, value):
    global count
    count += 1
    validator = Draft202012Validator(schema, registry=registry, format_checker=FormatChecker())
    wrong.extend(f"{where}: {e.json_path}: {e.message}" for e in validator.iter_errors(value))
for path, item in document["paths"].items():
    for method, operation in item.items():
        where = f"{method} {path}"
        for parameter in operation["parameters"]:
            if "example" in parameter:
                check(f"{where} {parameter['name']}", parameter["schema"], parameter["example"])
        bodies = [operation.get("requestBody", {})] + list(operation["responses"].values())
        for body in bodies:
            for media in body.get("content", {}).values():
                if "example" in media:
                    check(where, media["schema"], media["example"])
for name, response in document["components"]["responses"].items():
    for media in response.get("content", {}).values():
        for example in media.get("examples", {}).values():
            check(name, media["schema"], example["value"])
for name, parameter in document["components"]["parameters"].items():
    check(name, parameter["schema"], parameter["example"])
print("\n".join(wrong))
print(count, "examples,", len(wrong), "wrong")
sys.exit(bool(wrong) or count < 100)
"##;

#[tokio::test]
async fn every_example_of_the_document_fits_its_schema() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("openapi.json");
    std::fs::write(&file, openapi::document(&catalogue()).to_string()).unwrap();
    let file = file.to_str().unwrap();
    run(python(), ["-c", VALIDATE, file]).await.ok();
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn every_example_of_a_body_is_understood_by_the_server(db: PgPool) {
    let w = World::new(db).await;
    let document = openapi::document(&catalogue());
    let mut refused = vec![];
    for operation in catalogue().iter().filter(|o| o.body.is_some()) {
        let described = &document["paths"][operation.path()][operation.method.as_str().to_ascii_lowercase()];
        let example = &described["requestBody"]["content"]["application/json"]["example"];
        let path = operation.path().replace('{', "x-").replace('}', "");
        let answer = w.send(operation.method.clone(), &path, example.clone()).await;
        // What it names may be missing, or in the way; what it says must be readable.
        if matches!(answer.status, 400 | 401) || answer.status >= 500 {
            refused.push(format!("{example} {answer:?}"));
        }
    }
    assert!(refused.is_empty(), "{refused:#?}");
}

#[test]
fn every_operation_that_answers_with_json_or_takes_it_shows_an_example() {
    let document = openapi::document(&catalogue());
    for operation in catalogue() {
        let method = operation.method.as_str().to_ascii_lowercase();
        let described = &document["paths"][operation.path()][method];
        let answer = &described["responses"][operation.status.to_string()]["content"]["application/json"];
        for media in [answer, &described["requestBody"]["content"]["application/json"]] {
            assert!(
                media["schema"].is_null() || !media["example"].is_null(),
                "{}: {media}",
                operation.id()
            );
        }
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn the_page_of_the_api_and_all_it_loads_come_from_this_server(db: PgPool) {
    let w = World::new(db).await;
    let fetch = async |path: &str| {
        let answer = w.raw(Method::GET, path, None, "").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let text = String::from_utf8_lossy(&answer.octets).into_owned();
        (answer.header("content-type").to_owned(), answer, text)
    };
    let (media, answer, page) = fetch("/api/docs").await;
    assert_eq!(media, "text/html; charset=utf-8");
    let policy = answer.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
    assert!(!policy.contains("http") && !policy.contains('*'), "{policy}");
    let named = |text: &str, marks: &[&str]| -> Vec<String> {
        let each = marks
            .iter()
            .flat_map(|mark| text.split(mark).skip(1).collect::<Vec<_>>());
        each.map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
    };
    let mut files = named(&page, &["src=\"", "href=\""]);
    assert!(files.len() >= 5, "{files:?}");
    assert!(
        page.matches("<script").count() == page.matches("<script src=").count(),
        "no script stands in the page"
    );
    let (_, _, start) = fetch("/api/docs/start.js").await;
    files.extend(named(&start, &["url: \""]));
    for file in &files {
        assert!(
            !file.contains(':') && !file.starts_with('/'),
            "{file} is of another place"
        );
        let (media, ..) = fetch(&format!("/api/{file}")).await;
        let expected = match file.rsplit('.').next().unwrap() {
            "js" => "text/javascript; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            "png" => "image/png",
            "json" => "application/json",
            other => panic!("{other}"),
        };
        assert_eq!(media, expected, "{file}");
    }
    assert!(!page.contains("://") && !start.contains("://"));
    let (_, answer, _) = fetch("/api/v1/openapi.json").await;
    let again = w
        .http
        .get(format!("{}/api/v1/openapi.json", w.url))
        .header("if-none-match", answer.header("etag"));
    assert_eq!(again.send().await.unwrap().status(), 304);
}
