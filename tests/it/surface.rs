//! What is published: the router, the document and the page are held against the same table.

use certctl_contract::{catalogue, openapi};
use certctl_tests::{python, run, world::World};
use http::Method;
use sqlx::PgPool;

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
