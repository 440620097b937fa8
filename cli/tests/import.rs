//! Taking over certificates, against a small server that answers as ours does.

use std::{
    process::{Output, Stdio},
    sync::{Arc, Mutex},
};

use axum::{Json, Router, extract::Request};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, process::Command};

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

/// A self-signed certificate in PEM.
fn pem(name: &str, is_ca: bool) -> String {
    let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    if is_ca {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    }
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
}

/// Certificates signed by an authority, which comes last.
fn issued(names: &[String]) -> Vec<String> {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "The CA");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let root = params.self_signed(&key).unwrap().pem();
    let issuer = rcgen::Issuer::new(params, key);
    let subject_key = rcgen::KeyPair::generate().unwrap();
    let leaf = |name: &String| {
        let params = rcgen::CertificateParams::new(vec![name.clone()]).unwrap();
        params.signed_by(&subject_key, &issuer).unwrap().pem()
    };
    names.iter().map(leaf).chain([root]).collect()
}

/// Answers an import as the server does: what it has seen before is a duplicate, `bad.test` is rejected.
fn importing(asked: Asked) -> Router {
    let seen = Arc::new(Mutex::new(std::collections::HashSet::new()));
    Router::new().fallback(move |request: Request| {
        let (asked, seen) = (asked.clone(), seen.clone());
        async move {
            let what = format!("{} {}", request.method(), request.uri());
            let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap();
            let blocks = pem_blocks(body["pem"].as_str().unwrap());
            asked.lock().unwrap().push((what, body));
            let mut seen = seen.lock().unwrap();
            let mut outcome = |der: &Vec<u8>| match seen.insert(der.clone()) {
                _ if der.windows(8).any(|w| w == b"bad.test") => {
                    json!({ "outcome": "rejected", "reason": "it is bad" })
                }
                true => json!({ "outcome": "created" }),
                false => json!({ "outcome": "duplicate" }),
            };
            Json(json!({ "data": blocks.iter().map(&mut outcome).collect::<Vec<_>>() }))
        }
    })
}

fn pem_blocks(text: &str) -> Vec<Vec<u8>> {
    pem::parse_many(text)
        .unwrap()
        .into_iter()
        .map(pem::Pem::into_contents)
        .collect()
}

#[tokio::test]
async fn an_import_goes_in_batches_with_its_authorities_and_can_be_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let names: Vec<String> = (0..501).map(|n| format!("host-{n}.test")).collect();
    let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let bundle = put(
        "bundle.pem",
        &format!("{key}{}{}", issued(&names).concat(), pem("Another CA", true)),
    );
    let asked = Asked::default();
    against(importing(asked.clone()), async |server| {
        for said in [
            "501 created, 0 there already, 0 not taken over; left out: 2 CA certificates, 1 private keys\n",
            "0 created, 501 there already, 0 not taken over; left out: 2 CA certificates, 1 private keys\n",
        ] {
            let output = cli(&server, &format!("import {bundle} --owner o-1")).await;
            assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
            assert_eq!(text(&output.stdout), said);
        }
    })
    .await;
    let asked = asked.lock().unwrap().clone();
    let sizes: Vec<usize> = asked
        .iter()
        .map(|(_, body)| pem_blocks(body["pem"].as_str().unwrap()).len())
        .collect();
    assert_eq!(
        sizes,
        [501, 2, 501, 2],
        "500 with the CA that signed them, the last one with it too"
    );
    for (what, body) in &asked {
        assert_eq!(
            (what.as_str(), &body["owner_id"]),
            ("POST /api/v1/certificates/import", &json!("o-1"))
        );
        assert!(
            !body["pem"].as_str().unwrap().contains("PRIVATE"),
            "keys stay where they are"
        );
    }
}

#[tokio::test]
async fn what_cannot_be_imported_is_said_and_the_exit_code_tells_some_from_all() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let good = put("good.pem", &pem("a.test", false));
    let bad = put("bad.pem", &pem("bad.test", false));
    let broken = put(
        "broken.pem",
        "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
    );
    let none = put("none.pem", "hello");
    against(importing(Asked::default()), async |server| {
        for (files, code, rejected, said) in [
            (format!("{good} {bad}"), 4, 1, "bad.pem line 1: it is bad"),
            (bad.clone(), 1, 1, "it is bad"),
            (format!("{good} {broken}"), 4, 1, "cannot be read"),
            (format!("{good} {none} /nonexistent"), 4, 2, "no certificate"),
            (format!("certs {good}").replace("certs ", ""), 0, 0, ""),
        ] {
            let output = cli(&server, &format!("import {files} --format json")).await;
            let heard = text(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{files}: {heard}");
            assert!(heard.contains(said), "{files}: {heard}");
            let counts: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(counts["rejected"], rejected, "{files}");
        }
    })
    .await;
    let output = cli("http://127.0.0.1:1", &format!("certs import {good}")).await;
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("the same command goes on"));
}

#[tokio::test]
async fn certificates_that_come_through_a_pipe_are_all_imported() {
    let asked = Asked::default();
    against(importing(asked.clone()), async |server| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_certctl-cli"))
            .args(["import", "/dev/stdin"])
            .env("CERTCTL_SERVER_URL", server)
            .env("CERTCTL_API_KEY", "s3cr3t")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let both = format!("{}{}", pem("a.test", false), pem("b.test", false));
        let mut input = child.stdin.take().unwrap();
        input.write_all(both.as_bytes()).await.unwrap();
        drop(input);
        let output = child.wait_with_output().await.unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert!(
            text(&output.stdout).starts_with("2 created"),
            "{}",
            text(&output.stdout)
        );
    })
    .await;
}
