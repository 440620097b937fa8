use std::{sync::Mutex, time::Duration};

use axum::{
    Json, Router,
    extract::Request,
    http::{StatusCode, header::AUTHORIZATION},
    response::{IntoResponse, Redirect, Response},
};
use certctl_contract::{
    catalogue,
    certificates::{GetCertificate, ListCertificates, RevokeCertificate, RevokeRequest},
    endpoint::{NoBody, Operation},
    list::List,
    query::{Id, NoParams},
    signer::IssuerChain,
    teams::ListTeams,
};
use serde_json::{Map, Value, json};

use super::*;

const TOKEN: &str = "s3cr3t-token";

/// Runs a story against a server on a port of its own.
async fn against<T>(app: Router, story: impl AsyncFnOnce(String) -> T) -> T {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::select! {
        ended = axum::serve(listener, app).into_future() => panic!("the server ended: {ended:?}"),
        result = story(base) => result,
    }
}

fn client(base: &str) -> Client {
    Client::builder(base).token(Secret::new(TOKEN)).build().unwrap()
}

/// Answers with what was asked.
async fn echo(request: Request) -> Json<Value> {
    let asked = format!("{} {}", request.method(), request.uri());
    let key = request
        .headers()
        .get(AUTHORIZATION)
        .map(|v| v.to_str().unwrap().to_owned());
    let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap();
    Json(json!({ "asked": asked, "key": key, "body": String::from_utf8_lossy(&body) }))
}

fn operation(id: &str) -> Operation {
    catalogue().into_iter().find(|o| o.id() == id).unwrap()
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

#[tokio::test]
async fn flat_input_is_split_into_path_query_and_body() {
    against(Router::new().fallback(echo), async |base| {
        for (id, input, asked, body) in [
            ("list_certificates", json!({}), "GET /at/api/v1/certificates", ""),
            (
                "list_certificates",
                json!({ "status": "Active", "per_page": 5, "fields": ["id", "status"], "cursor": null }),
                "GET /at/api/v1/certificates?per_page=5&fields=id%2Cstatus&status=Active",
                "",
            ),
            (
                "ocsp_check",
                json!({ "issuer_id": "a/b ü?%#", "serial": "0a" }),
                "GET /at/api/v1/ocsp/a%2Fb%20%C3%BC%3F%25%23/0a",
                "",
            ),
            (
                "revoke_certificate",
                json!({ "id": "mc-1", "reason": "keyCompromise" }),
                "POST /at/api/v1/certificates/mc-1/revoke",
                r#"{"reason":"keyCompromise"}"#,
            ),
            (
                "revoke_certificate",
                json!({ "id": "mc-1" }),
                "POST /at/api/v1/certificates/mc-1/revoke",
                "{}",
            ),
            (
                "trigger_renewal",
                json!({ "id": "mc-1" }),
                "POST /at/api/v1/certificates/mc-1/renew",
                "{}",
            ),
        ] {
            let reply = client(&format!("{base}/at/"))
                .call_json(&operation(id), object(input))
                .await
                .unwrap();
            let key = format!("Bearer {TOKEN}");
            assert_eq!(
                reply.body,
                Body::Json(json!({ "asked": asked, "key": key, "body": body })),
                "{id}"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn input_that_cannot_be_sent_is_named_and_nothing_is_sent() {
    let client = client("http://127.0.0.1:1");
    for (id, input, needle) in [
        (
            "list_certificates",
            json!({ "statsu": "Active" }),
            "no input statsu; known are: page",
        ),
        ("health", json!({ "a": 1, "b": 2 }), "no input a, b; known are: none"),
        ("get_certificate", json!({}), "id is missing"),
        ("get_certificate", json!({ "id": "" }), "id: cannot be empty"),
        ("get_certificate", json!({ "id": ".." }), "id: cannot be empty"),
        (
            "get_certificate",
            json!({ "id": {} }),
            "id: a text or a number is needed",
        ),
    ] {
        match client.call_json(&operation(id), object(input)).await {
            Err(ClientError::BadInput(text)) => assert!(text.contains(needle), "{text}"),
            other => panic!("{id}: {other:?}"),
        }
    }
}

#[test]
fn addresses_and_keys_that_cannot_work_are_refused() {
    for base in [
        "",
        "localhost:8443",
        "ftp://host",
        "http://user:pass@host",
        "http://host/?a=b",
        "http://host/#x",
    ] {
        let error = Client::builder(base).build().unwrap_err();
        assert!(matches!(error, ClientError::BadInput(_)), "{base}: {error}");
    }
    for pem in ["nothing", "-----BEGIN CERTIFICATE-----\nAA\n"] {
        let error = Client::builder("https://host").ca_cert(pem).build().unwrap_err();
        assert!(matches!(error, ClientError::BadInput(_)), "{pem}: {error}");
    }
    let error = Client::builder("https://host")
        .token(Secret::new("s3cr3t\n"))
        .build()
        .unwrap_err();
    assert!(!error.to_string().contains("s3cr3t"), "{error}");
}

#[tokio::test]
async fn refusals_become_problems_and_never_show_the_token() {
    async fn refuse(request: Request) -> Response {
        let key = request.headers()[AUTHORIZATION].to_str().unwrap().to_owned();
        match request.uri().path().rsplit('/').next().unwrap() {
            "document" => {
                let body = json!({
                    "type": "urn:certctl:problem:invalid", "title": "Unprocessable Content", "status": 422,
                    "detail": "the reason is not one", "errors": [{ "field": "reason", "detail": "is one of a, b" }],
                });
                (StatusCode::UNPROCESSABLE_ENTITY, Json(body)).into_response()
            }
            "older" => {
                let body = json!({ "error": "Not Found", "message": "no such certificate" });
                (StatusCode::NOT_FOUND, Json(body)).into_response()
            }
            "text" => (StatusCode::BAD_GATEWAY, format!("sent {key} {}", "é".repeat(4_000))).into_response(),
            "empty" => StatusCode::SERVICE_UNAVAILABLE.into_response(),
            _ => Redirect::to("https://elsewhere.example/").into_response(),
        }
    }
    against(Router::new().fallback(refuse), async |base| {
        for (id, status, retryable, text) in [
            (
                "document",
                Some(422),
                false,
                "422 Unprocessable Content: the reason is not one; reason: is one of a, b",
            ),
            ("older", Some(404), false, "404 Not Found: no such certificate"),
            ("text", Some(502), true, "502 Bad Gateway: sent Bearer *** é"),
            ("empty", Some(503), true, "503 Service Unavailable: "),
            (
                "moved",
                None,
                false,
                "the server answered 303 See Other https://elsewhere.example/",
            ),
        ] {
            let path = Id {
                id: id.parse().unwrap(),
            };
            let error = client(&base)
                .call::<GetCertificate>(path, NoParams, NoBody)
                .await
                .unwrap_err();
            assert_eq!((error.status(), error.is_retryable()), (status, retryable), "{id}");
            assert!(error.to_string().starts_with(text), "{id}: {error}");
            assert!(
                error.to_string().len() < 2_200 && !format!("{error:?}").contains(TOKEN),
                "{id}"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn a_typed_call_sends_its_body_and_reads_its_reply() {
    async fn revoke(body: String) -> Json<Value> {
        Json(json!({ "status": body }))
    }
    let app = Router::new().route("/api/v1/certificates/mc-1/revoke", axum::routing::post(revoke));
    against(app, async |base| {
        let (path, body) = (
            Id {
                id: "mc-1".parse().unwrap(),
            },
            RevokeRequest::default(),
        );
        let reply = client(&base)
            .call::<RevokeCertificate>(path, NoParams, body)
            .await
            .unwrap();
        assert_eq!(reply.status, "{}");
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_is_not_of_the_contract_is_a_bad_reply() {
    async fn nonsense() -> &'static str {
        "<html>"
    }
    against(Router::new().fallback(nonsense), async |base| {
        let path = Id {
            id: "mc-1".parse().unwrap(),
        };
        let result = client(&base).call::<GetCertificate>(path, NoParams, NoBody).await;
        assert!(matches!(result, Err(ClientError::BadReply(_))));
    })
    .await;
}

#[tokio::test]
async fn a_list_is_followed_to_its_last_page() {
    static ASKED: Mutex<Vec<String>> = Mutex::new(Vec::new());
    async fn page(request: Request) -> Json<Value> {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let next = (!query.contains("cursor")).then_some("c/2");
        ASKED.lock().unwrap().push(query);
        Json(json!({ "data": [], "total": 2, "page_size": 50, "next_cursor": next }))
    }
    against(Router::new().fallback(page), async |base| {
        let mut pages = client(&base).pages::<ListTeams>(List {
            page: Some(3),
            ..List::default()
        });
        let mut count = 0;
        while pages.next().await.unwrap().is_some() {
            count += 1;
        }
        assert_eq!(count, 2);
        assert_eq!(*ASKED.lock().unwrap(), ["page_size=50", "cursor=c%2F2&page_size=50"]);
    })
    .await;
}

#[tokio::test]
async fn nobody_there_and_too_late_are_unreachable() {
    let nobody = Client::builder("http://127.0.0.1:1").build().unwrap();
    let error = nobody
        .call::<ListCertificates>(NoParams, List::default(), NoBody)
        .await
        .unwrap_err();
    assert!(error.is_retryable() && error.status().is_none(), "{error:?}");
    assert!(
        error.to_string().starts_with("cannot reach http://127.0.0.1:1/: "),
        "{error}"
    );

    async fn never() {
        std::future::pending().await
    }
    against(Router::new().fallback(never), async |base| {
        let result = client(&base)
            .call_with_timeout::<ListCertificates>(NoParams, List::default(), NoBody, Duration::from_millis(20))
            .await;
        assert!(matches!(result, Err(ClientError::Unreachable(_))));
    })
    .await;
}

#[tokio::test]
async fn a_service_behind_a_unix_socket_is_reached() {
    async fn chain() -> Json<Value> {
        Json(json!({ "chain_pem": "pem" }))
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("signer.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let app = Router::new().route("/v1/issuers/iss-local/chain", axum::routing::get(chain));
    let client = Client::builder("http://localhost").unix_socket(path).build().unwrap();
    let id = "iss-local".parse().unwrap();
    tokio::select! {
        ended = axum::serve(listener, app).into_future() => panic!("the server ended: {ended:?}"),
        reply = client.call::<IssuerChain>(Id { id }, NoParams, NoBody) => assert_eq!(reply.unwrap().chain_pem, "pem"),
    }
}

#[tokio::test]
async fn an_answer_without_end_is_refused() {
    async fn endless() -> Vec<u8> {
        vec![b' '; MAX_REPLY_BYTES + 1]
    }
    against(Router::new().fallback(endless), async |base| {
        let result = client(&base)
            .call::<ListCertificates>(NoParams, List::default(), NoBody)
            .await;
        assert!(matches!(result, Err(ClientError::BadReply(text)) if text.contains("64 MiB")));
    })
    .await;
}

#[test]
fn arguments_of_paths_cannot_change_which_operation_is_called() {
    let client = client("http://127.0.0.1:1/at/");
    let url = |text: &str| client.url("/api/v1/groups/{id}/members/{member}", &["g".into(), text.into()], &[]);
    for text in [
        "", ".", "..", ".\t.", "\t..", "..\n", ".\r", "a\tb", "a\u{0}", "\u{7f}", "\u{85}",
    ] {
        assert!(matches!(url(text), Err(ClientError::BadInput(_))), "{text:?}");
    }
    for (text, segment) in [
        ("a/b", "a%2Fb"),
        ("../..", "..%2F.."),
        ("%2e%2e", "%252e%252e"),
        ("a\\b", "a%5Cb"),
        ("a;b?c#d", "a%3Bb%3Fc%23d"),
        (" a ", "%20a%20"),
        ("...", "..."),
        ("ü", "%C3%BC"),
    ] {
        let expected = format!("http://127.0.0.1:1/at/api/v1/groups/g/members/{segment}");
        assert_eq!(url(text).unwrap().as_str(), expected, "{text:?}");
    }
}

#[test]
fn plain_http_is_for_this_machine_unless_it_is_allowed() {
    for (base, here) in [
        ("http://127.0.0.1:8443", true),
        ("http://127.9.9.9", true),
        ("http://[::1]:8443", true),
        ("http://[::ffff:127.0.0.1]", true),
        ("http://localhost:8443", true),
        ("http://LOCALHOST", true),
        ("http://api.localhost", false),
        ("http://localhost.example.test", false),
        ("http://certctl.example.test", false),
        ("http://192.0.2.1:8443", false),
        ("http://0.0.0.0", false),
        ("http://[2001:db8::1]", false),
        ("https://certctl.example.test", true),
    ] {
        let refused = Client::builder(base).build().err();
        assert_eq!(refused.is_none(), here, "{base}");
        if let Some(error) = refused {
            assert!(error.to_string().contains("CERTCTL_ALLOW_PLAIN_HTTP"), "{error}");
            Client::builder(base).allow_plain_http(true).build().unwrap();
        }
    }
    let socket = Client::builder("http://certctl.example.test").unix_socket("/run/x.sock");
    assert!(socket.build().is_ok(), "a socket is of this machine");
}
