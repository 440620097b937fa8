//! The real binary against a small server.

use std::{
    process::{Output, Stdio},
    sync::{Arc, Mutex},
};

use axum::{Json, Router, extract::Request, http::StatusCode, response::IntoResponse, routing::get};
use serde_json::{Value, json};
use tokio::process::Command;

/// What the server was asked, and with which body.
type Asked = Arc<Mutex<Vec<(String, Value)>>>;

async fn against<T>(app: Router, story: impl AsyncFnOnce(String) -> T) -> T {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::select! {
        ended = axum::serve(listener, app).into_future() => panic!("the server ended: {ended:?}"),
        result = story(base) => result,
    }
}

async fn cli(server: &str, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_certctl-cli"))
        .args(line.split_whitespace())
        .env("CERTCTL_SERVER_URL", server)
        .env("CERTCTL_API_KEY", "s3cr3t")
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap()
}

fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}

/// Remembers what is asked and answers every list with one row of everything.
fn inventory(asked: Asked) -> Router {
    Router::new().fallback(async move |request: Request| {
        let what = format!("{} {}", request.method(), request.uri());
        let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap();
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        asked.lock().unwrap().push((what, body));
        let row = json!({
            "id": "mc-1", "common_name": "demo.test", "status": "Active", "expires_at": "2026-11-23T12:07:06.5Z",
            "issuer_id": "iss-local", "hostname": "web1", "type": "Renewal", "certificate_id": "mc-1", "attempts": 1,
        });
        Json(json!({ "data": [row], "total": 7, "next_cursor": "abc", "status": "healthy", "job_ids": ["j-1"] }))
    })
}

#[tokio::test]
async fn both_spellings_ask_the_same() {
    let asked = Asked::default();
    against(inventory(asked.clone()), async |server| {
        for (lines, request, body) in [
            (
                [
                    "list-certs --status Active --per-page 5",
                    "certs list --status Active --per-page 5",
                ],
                "GET /api/v1/certificates?per_page=5&status=Active",
                Value::Null,
            ),
            (
                ["get-cert mc-1", "certs get mc-1"],
                "GET /api/v1/certificates/mc-1",
                Value::Null,
            ),
            (
                ["renew-cert mc-1", "certs renew mc-1"],
                "POST /api/v1/certificates/mc-1/renew",
                json!({}),
            ),
            (
                [
                    "revoke-cert mc-1 --reason superseded",
                    "certs revoke mc-1 --reason superseded",
                ],
                "POST /api/v1/certificates/mc-1/revoke",
                json!({ "reason": "superseded" }),
            ),
            (
                ["list-agents --status Online", "agents list --status Online"],
                "GET /api/v1/agents?status=Online",
                Value::Null,
            ),
            (
                ["agents get a-1", "call get-agent --json {\"id\":\"a-1\"}"],
                "GET /api/v1/agents/a-1",
                Value::Null,
            ),
            (
                ["jobs get j-1", "call get_job --json {\"id\":\"j-1\"}"],
                "GET /api/v1/jobs/j-1",
                Value::Null,
            ),
            (
                ["jobs cancel j-1", "call certctl_cancel_job --json {\"id\":\"j-1\"}"],
                "POST /api/v1/jobs/j-1/cancel",
                Value::Null,
            ),
            (["health", "call health"], "GET /health", Value::Null),
            (["metrics", "call metrics"], "GET /api/v1/metrics", Value::Null),
            (
                [
                    "list-jobs --type Renewal --certificate mc-1",
                    "jobs list --type Renewal --certificate mc-1",
                ],
                "GET /api/v1/jobs?type=Renewal&certificate_id=mc-1",
                Value::Null,
            ),
        ] {
            for line in lines {
                let output = cli(&server, line).await;
                assert_eq!(output.status.code(), Some(0), "{line}: {}", text(&output.stderr));
                assert_eq!(
                    asked.lock().unwrap().pop(),
                    Some((request.to_owned(), body.clone())),
                    "{line}"
                );
            }
        }
    })
    .await;
}

#[tokio::test]
async fn lists_are_tables_and_things_are_json_unless_the_format_is_given() {
    against(inventory(Asked::default()), async |server| {
        let table = text(&cli(&server, "list-certs").await.stdout);
        let lines: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(
            lines[0],
            ["ID", "COMMON", "NAME", "STATUS", "DEPLOYMENT", "EXPIRES", "ISSUER"]
        );
        assert_eq!(
            lines[1],
            [
                "mc-1",
                "demo.test",
                "Active",
                "-",
                "2026-11-23",
                "12:07:06Z",
                "iss-local"
            ]
        );
        assert_eq!(table.lines().nth(2), Some("1 of 7"));

        for line in [
            "--format json list-certs",
            "list-certs --format json",
            "get-cert mc-1",
            "metrics",
        ] {
            let output = cli(&server, line).await;
            let value: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(value["total"], 7, "{line}");
        }
        assert_eq!(text(&cli(&server, "health").await.stdout), "healthy\n");
        let status: Value = serde_json::from_slice(&cli(&server, "status --format json").await.stdout).unwrap();
        assert_eq!(
            (&status["health"]["status"], &status["summary"]["total"]),
            (&json!("healthy"), &json!(7))
        );
        assert!(text(&cli(&server, "get-cert mc-1 --format table").await.stdout).contains("next_cursor"));
    })
    .await;
}

#[tokio::test]
async fn exit_codes_tell_refused_from_misused_from_unreachable() {
    async fn refuse() -> impl IntoResponse {
        let problem = json!({
            "title": "Unprocessable Content", "status": 422, "detail": "this cannot be",
            "errors": [{ "field": "reason", "detail": "is one of a, b" }],
        });
        (StatusCode::UNPROCESSABLE_ENTITY, Json(problem))
    }
    against(Router::new().fallback(refuse), async |server| {
        for (server, line, code, needles) in [
            (
                server.as_str(),
                "revoke-cert mc-1 --reason x",
                1,
                &["422 Unprocessable Content: this cannot be", "  reason: is one of a, b"][..],
            ),
            (&server, "frobnicate", 2, &["frobnicate"]),
            (&server, "renew-cert", 2, &["<ID>"]),
            (&server, "list-certs --colour red", 2, &["--colour"]),
            (&server, "call frobnicate", 2, &["no operation frobnicate"]),
            (&server, "call get_job --json [1]", 2, &["an object is needed"]),
            (&server, "call get_job --json @/nonexistent", 2, &["/nonexistent"]),
            (&server, "call get_job", 2, &["id is missing"]),
            ("nonsense", "health", 2, &["address"]),
            ("http://127.0.0.1:1", "health", 3, &["cannot reach http://127.0.0.1:1/"]),
        ] {
            let output = cli(server, line).await;
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{line}: {said}");
            for needle in needles {
                assert!(said.contains(needle) && !said.contains("s3cr3t"), "{line}: {said}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn der_goes_out_as_it_came_and_the_catalogue_is_listed() {
    let app = Router::new().route(
        "/api/v1/crl/iss-local",
        get(async || ([("content-type", "application/pkix-crl")], vec![0x30u8, 0x00, 0xff])),
    );
    against(app, async |server| {
        let output = cli(&server, "call get_der_crl --json {\"issuer_id\":\"iss-local\"}").await;
        assert_eq!(output.stdout, [0x30, 0x00, 0xff]);
        let list = text(&cli(&server, "call --list").await.stdout);
        assert!(list.contains("trigger_renewal") && list.contains("/api/v1/certificates/{id}/renew"));
    })
    .await;
}

#[tokio::test]
async fn a_reader_that_leaves_early_is_no_error() {
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        writer
    };
    let output = Command::new(env!("CARGO_BIN_EXE_certctl-cli"))
        .args(["call", "--list"])
        .stdout(closed())
        .stderr(Stdio::piped())
        .output()
        .await
        .unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
    let status = Command::new(env!("CARGO_BIN_EXE_certctl-cli"))
        .args(["call", "frobnicate"])
        .stderr(closed())
        .status()
        .await
        .unwrap();
    assert_eq!(status.code(), Some(2));
}

#[tokio::test]
async fn waiting_for_a_renewal_ends_with_its_last_job() {
    let job = |id: &str, kind: &str, status: &str, at: u32| {
        json!({
            "id": id, "type": kind, "certificate_id": "mc-1", "status": status, "attempts": 1, "max_attempts": 3,
            "last_error": "nginx said no", "scheduled_at": "2026-11-23T12:00:00Z",
            "created_at": format!("2026-11-23T12:00:0{at}Z"),
        })
    };
    for (last, code, said) in [
        ("Completed", 0, "mc-1 is renewed: 2 jobs completed"),
        ("Failed", 1, "nginx said no"),
    ] {
        let polls = Arc::new(Mutex::new(0));
        let first = job("j-1", "Renewal", "Completed", 1);
        let list = async move || {
            let mut polls = polls.lock().unwrap();
            *polls += 1;
            let status = if *polls > 1 { last } else { "Running" };
            let older = job("j-0", "Renewal", "Failed", 0);
            let data = [
                job("j-2", "Deployment", status, 2),
                job("j-1", "Renewal", "Completed", 1),
                older,
            ];
            Json(json!({ "data": data, "total": 3 }))
        };
        let triggered = json!({ "status": "renewal_triggered", "job_id": "j-1", "job_ids": ["j-1"] });
        let app = Router::new()
            .route(
                "/api/v1/certificates/mc-1/renew",
                axum::routing::post(async move || Json(triggered)),
            )
            .route("/api/v1/jobs/j-1", get(async move || Json(first)))
            .route("/api/v1/jobs", get(list));
        against(app, async |server| {
            let output = cli(&server, "renew-cert mc-1 --wait").await;
            let all = text(&output.stdout) + &text(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{all}");
            assert!(all.contains(said), "{all}");
        })
        .await;
    }
}

#[tokio::test]
async fn every_resource_has_its_verbs_and_flags_become_bodies() {
    let asked = Asked::default();
    against(inventory(asked.clone()), async |server| {
        for (line, request, body) in [
            (
                "teams list --per-page 2 --sort name",
                "GET /api/v1/teams?per_page=2&sort=name",
                Value::Null,
            ),
            ("team get t-1", "GET /api/v1/teams/t-1", Value::Null),
            (
                "teams create --name web",
                "POST /api/v1/teams",
                json!({ "name": "web" }),
            ),
            ("create-team --name web", "POST /api/v1/teams", json!({ "name": "web" })),
            (
                "teams update t-1 --description x",
                "PUT /api/v1/teams/t-1",
                json!({ "description": "x" }),
            ),
            ("teams delete t-1", "DELETE /api/v1/teams/t-1", Value::Null),
            ("certs delete mc-1", "DELETE /api/v1/certificates/mc-1", Value::Null),
            (
                "certs versions mc-1",
                "GET /api/v1/certificates/mc-1/versions",
                Value::Null,
            ),
            (
                "certs deploy mc-1 --target tgt-1",
                "POST /api/v1/certificates/mc-1/deploy",
                json!({ "target_id": "tgt-1" }),
            ),
            (
                "certs create --common-name a.test --sans a.test,b.test --tags tier=low",
                "POST /api/v1/certificates",
                json!({ "common_name": "a.test", "sans": ["a.test", "b.test"], "tags": { "tier": "low" } }),
            ),
            (
                "issuers test iss-local",
                "POST /api/v1/issuers/iss-local/test",
                Value::Null,
            ),
            ("jobs retry j-1", "POST /api/v1/jobs/j-1/retry", Value::Null),
            (
                "audit list --actor x --fields id,action",
                "GET /api/v1/audit?fields=id%2Caction&actor=x",
                Value::Null,
            ),
            ("stats summary", "GET /api/v1/stats/summary", Value::Null),
            (
                "certs list --page 1 --per-page 50 --status Active",
                "GET /api/v1/certificates?page=1&per_page=50&status=Active",
                Value::Null,
            ),
        ] {
            let output = cli(&server, line).await;
            assert_eq!(output.status.code(), Some(0), "{line}: {}", text(&output.stderr));
            assert_eq!(asked.lock().unwrap().pop(), Some((request.to_owned(), body)), "{line}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_whole_list_is_walked_and_what_was_done_is_one_line() {
    let page = async |uri: axum::http::Uri| {
        let query = uri.query().unwrap_or_default().to_owned();
        let row = |n: u32| json!({ "id": format!("t-{n}"), "name": format!("team {n}") });
        Json(match query.contains("cursor=next") {
            false => json!({ "data": [row(1), row(2)], "total": 3, "page_size": 2, "next_cursor": "next" }),
            true => json!({ "data": [row(3)], "total": 3, "page_size": 2 }),
        })
    };
    let app = Router::new().route("/api/v1/teams", get(page)).route(
        "/api/v1/jobs/j-1/cancel",
        axum::routing::post(async || Json(json!({ "status": "job_cancelled" }))),
    );
    against(app, async |server| {
        let output = cli(&server, "teams list --all --per-page 2").await;
        let table = text(&output.stdout);
        let lines: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["ID", "NAME"], "{table}");
        assert_eq!(lines[3], ["t-3", "team", "3"], "{table}");
        assert_eq!(lines[4], ["3", "in", "all"], "{table}");
        let json: Value = serde_json::from_slice(&cli(&server, "teams list --all --format json").await.stdout).unwrap();
        assert_eq!((json["data"].as_array().unwrap().len(), &json["total"]), (3, &json!(3)));
        assert_eq!(
            text(&cli(&server, "jobs cancel j-1").await.stdout),
            "j-1: job_cancelled\n"
        );
        let json: Value = serde_json::from_slice(&cli(&server, "jobs cancel j-1 --format json").await.stdout).unwrap();
        assert_eq!(json, json!({ "status": "job_cancelled" }));
    })
    .await;
}

#[tokio::test]
async fn watching_ends_with_the_job_and_its_end_is_the_exit_code() {
    for (last, code) in [("Completed", 0), ("Failed", 1), ("Cancelled", 1)] {
        let looks = Arc::new(Mutex::new(0));
        let job = async move || {
            let mut looks = looks.lock().unwrap();
            *looks += 1;
            Json(json!({ "id": "j-1", "status": if *looks > 1 { last } else { "Running" } }))
        };
        against(Router::new().route("/api/v1/jobs/j-1", get(job)), async |server| {
            let output = cli(&server, "jobs get j-1 --watch --interval 1 --fields status").await;
            assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
            let said = text(&output.stdout);
            assert!(said.contains("Running") && said.contains(last), "{said}");
        })
        .await;
    }
}

#[tokio::test]
async fn answers_go_to_a_file_whole_or_not_at_all_and_calls_can_be_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("crl.der").display().to_string();
    let keys = Arc::new(Mutex::new(vec![]));
    let seen = keys.clone();
    let app = Router::new()
        .route(
            "/api/v1/crl/iss-local",
            get(async || ([("content-type", "application/pkix-crl")], vec![0x30u8, 0x00])),
        )
        .route(
            "/api/v1/teams",
            axum::routing::post(async move |request: Request| {
                let key = request
                    .headers()
                    .get("idempotency-key")
                    .map(|v| v.to_str().unwrap().to_owned());
                seen.lock().unwrap().push(key);
                (StatusCode::CREATED, Json(json!({ "id": "t-1" })))
            }),
        );
    against(app, async |server| {
        let output = cli(&server, &format!("revocation get-der-crl iss-local --output {file}")).await;
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert_eq!(
            (std::fs::read(&file).unwrap(), output.stdout),
            (vec![0x30, 0x00], vec![])
        );
        let output = cli(&server, &format!("revocation get-der-crl iss-none -o {file}")).await;
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(std::fs::read(&file).unwrap(), [0x30, 0x00]);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        cli(&server, "teams create --name a --idempotency-key once").await;
        cli(&server, "teams create --name a").await;
    })
    .await;
    assert_eq!(*keys.lock().unwrap(), [Some("once".to_owned()), None]);
}

#[tokio::test]
async fn completions_and_manual_pages_are_made_for_every_command_that_is_shown() {
    let nowhere = "http://127.0.0.1:1";
    for (shell, needle) in [
        ("bash", "_certctl__cli()"),
        ("zsh", "#compdef certctl-cli"),
        ("fish", "complete -c certctl-cli"),
    ] {
        let output = cli(nowhere, &format!("completions {shell}")).await;
        let said = text(&output.stdout);
        assert!(
            output.status.success() && said.contains(needle) && said.contains("renewal-policies"),
            "{shell}"
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let output = cli(nowhere, &format!("man {}", folder.path().display())).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    for page in [
        "certctl-cli",
        "certctl-cli-certs",
        "certctl-cli-certs-renew",
        "certctl-cli-jobs-list",
        "certctl-cli-import",
    ] {
        let page =
            std::fs::read_to_string(folder.path().join(format!("{page}.1"))).unwrap_or_else(|e| panic!("{page}: {e}"));
        assert!(page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"));
    }
    let main = text(&cli(nowhere, "man").await.stdout);
    assert!(main.contains("Exit codes"), "{main}");
}

#[tokio::test]
async fn colours_are_for_those_who_ask_or_look() {
    against(inventory(Asked::default()), async |server| {
        for (flag, coloured) in [("", false), ("--color always", true), ("--color never", false)] {
            let said = text(&cli(&server, &format!("certs list {flag}")).await.stdout);
            assert_eq!(said.contains('\u{1b}'), coloured, "{flag}: {said:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_key_is_named_by_a_file_that_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
    let certificate = certificate.self_signed(&key).unwrap();
    let write = |name: &str, octets: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, octets).unwrap();
        path.display().to_string()
    };
    let parsed = certctl_x509::facts::CertificateFacts::parse_der(certificate.der()).unwrap();
    let public = pem::encode(&pem::Pem::new("PUBLIC KEY", parsed.spki_der.clone()));
    let files = [
        ("key", write("key.pem", key.serialize_pem().as_bytes())),
        ("key", write("public.pem", public.as_bytes())),
        ("cert", write("cert.pem", certificate.pem().as_bytes())),
        ("cert", write("cert.der", certificate.der())),
    ];
    let hash = parsed.spki_sha256;
    let asked = Asked::default();
    against(inventory(asked.clone()), async |server| {
        for (flag, file) in &files {
            let output = cli(&server, &format!("blocked-keys block --{flag} {file} --reason leaked")).await;
            assert_eq!(output.status.code(), Some(0), "{file}: {}", text(&output.stderr));
            let sent = asked.lock().unwrap().pop().unwrap();
            assert_eq!(sent.0, "POST /api/v1/blocked-keys");
            assert_eq!(sent.1, json!({ "spki_sha256": hash, "reason": "leaked" }), "{file}");
            let output = cli(&server, &format!("certs list --{flag} {file}")).await;
            assert_eq!(output.status.code(), Some(0), "{file}: {}", text(&output.stderr));
            let sent = asked.lock().unwrap().pop().unwrap();
            assert!(sent.0.ends_with(&format!("?spki_sha256={hash}")), "{}", sent.0);
        }
        for line in [
            "blocked-keys block --reason leaked".to_owned(),
            format!(
                "blocked-keys block --key {} --spki-sha256 {hash} --reason leaked",
                files[0].1
            ),
            format!("blocked-keys block --cert {} --reason leaked", files[0].1),
        ] {
            let output = cli(&server, &line).await;
            assert_eq!(output.status.code(), Some(2), "{line}");
            assert!(asked.lock().unwrap().is_empty(), "{line}: nothing is sent");
        }
    })
    .await;
}
