//! What the signer signs, judged by pkilint.

use std::path::Path;

use certctl_tests::{python, run, world::World};
use certctl_x509::{facts::CertificateFacts, ocsp, pem};
use serde_json::{Value, json};
use sqlx::PgPool;

/// Findings that are a matter of profile: the code, what its message says, and why it stands. docs/SECURITY.md repeats
/// the reasons.
const ACCEPTED: &[(&str, &str, &str)] = &[
    (
        "pkix.invalid_domain_name_syntax",
        "\"*.example.net\"",
        "a wildcard is no host name, but the form that TLS servers and clients agree on (RFC 9525 §6.3)",
    ),
    (
        "pkix.invalid_uri_syntax",
        "\"spiffe://example.net/web\"",
        "the linter reads schemes of the web only; this is a URI with a host (RFC 3986, RFC 5280 §4.2.1.6)",
    ),
];

/// Findings of severity ERROR or FATAL that are not accepted.
pub(crate) async fn lint(linter: &str, options: &[&str], file: &Path) -> Vec<String> {
    let program = python().parent().expect("python is in a directory").join(linter);
    let mut args = vec!["lint", "-s", "ERROR", "-f", "JSON"];
    args.extend(options);
    args.push(file.to_str().unwrap());
    let ran = run(&program, &args).await;
    let start = ran
        .text
        .find('{')
        .unwrap_or_else(|| panic!("{linter} {args:?}: {}", ran.text));
    let mut report = serde_json::Deserializer::from_str(&ran.text[start..]).into_iter::<Value>();
    let report = report
        .next()
        .unwrap()
        .unwrap_or_else(|why| panic!("{linter}: {why}: {}", ran.text));
    let results = report["results"]
        .as_array()
        .unwrap_or_else(|| panic!("{linter}: {report}"));
    let mut findings = vec![];
    for result in results {
        for finding in result["finding_descriptions"].as_array().into_iter().flatten() {
            let text = |key: &str| finding[key].as_str().unwrap_or_default();
            let accepted =
                |&&(code, says, _): &&(&str, &str, &str)| text("code") == code && text("message").ends_with(says);
            if ACCEPTED.iter().find(accepted).is_none() {
                findings.push(format!(
                    "{linter} {}: {finding} at {}",
                    file.display(),
                    result["node_path"]
                ));
            }
        }
    }
    findings
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_linter_of_other_people_finds_no_error_in_what_is_signed(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, octets: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, octets).unwrap();
        path
    };
    w.post(
        "/api/v1/profiles",
        json!({ "id": "prof-rsa", "name": "rsa", "allowed_key_algorithms": [{ "algorithm": "RSA", "min_size": 2048 }],
                "allowed_ekus": ["serverAuth", "clientAuth"], "max_ttl_seconds": 86400 * 40 }),
    )
    .await
    .expect(201);
    w.post(
        "/api/v1/profiles",
        json!({ "id": "prof-short", "name": "short", "max_ttl_seconds": 300, "allow_short_lived": true }),
    )
    .await
    .expect(201);
    // Leaves name shards, the full CRL names its delta.
    w.put(
        "/api/v1/issuers/iss-local",
        json!({ "config": { "crl_shards": 2, "crl_delta": true } }),
    )
    .await
    .expect(200);
    for (id, more) in [
        ("mc-plain", json!({})),
        (
            "mc-names",
            json!({ "sans": ["*.example.net", "10.0.0.7", "2001:db8::7", "a@example.net", "spiffe://example.net/web"] }),
        ),
        ("mc-rsa", json!({ "certificate_profile_id": "prof-rsa" })),
        ("mc-short", json!({ "certificate_profile_id": "prof-short" })),
        ("mc-revoked", json!({})),
        (
            "mc-long",
            json!({ "common_name": format!("{}.{}.example.net", "a".repeat(60), "b".repeat(60)) }),
        ),
    ] {
        w.target(&id.replace("mc-", "tgt-"), &host).await;
        w.certificate(id, &[&id.replace("mc-", "tgt-")], more).await;
    }
    w.settle().await;
    w.post(
        "/api/v1/certificates/mc-revoked/revoke",
        json!({ "reason": "keyCompromise" }),
    )
    .await
    .expect(200);
    w.settle().await;

    let ca = w.get("/ca/iss-local.crt").await;
    let ca_file = write("ca.pem", pem::encode("CERTIFICATE", &ca.octets).as_bytes());
    let mut findings = lint("lint_pkix_cert", &[], &ca_file).await;
    for id in ["mc-plain", "mc-names", "mc-rsa", "mc-short", "mc-revoked", "mc-long"] {
        let version = w.versions(id).await.remove(0);
        let leaf = write(&format!("{id}.pem"), version["cert_pem"].as_str().unwrap().as_bytes());
        findings.extend(lint("lint_pkix_cert", &[], &leaf).await);
    }
    for (name, path) in [
        ("full", "/crl/iss-local.crl"),
        ("delta", "/crl/iss-local/delta.crl"),
        ("shard-1", "/crl/iss-local/1.crl"),
        ("shard-2", "/crl/iss-local/2.crl"),
    ] {
        let answer = w.get(path).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let file = write(
            &format!("{name}.pem"),
            pem::encode("X509 CRL", &answer.octets).as_bytes(),
        );
        for profile in ["PKIX", "BR"] {
            findings.extend(lint("lint_crl", &["-t", "CRL", "-p", profile], &file).await);
        }
    }
    let issuer = ocsp::IssuerId::of_certificate(&ca.octets).unwrap();
    let revoked = w.versions("mc-revoked").await.remove(0)["serial_number"]
        .as_str()
        .unwrap()
        .to_owned();
    for (name, serial, nonce) in [
        ("revoked", revoked.as_str(), None),
        ("unknown", "1234567890abcdef", None),
        ("nonce", revoked.as_str(), Some(&[7_u8; 32][..])),
    ] {
        let request = ocsp::request_for(&issuer, &serial.parse().unwrap(), nonce);
        let answer = w.raw(http::Method::POST, "/ocsp/iss-local", None, request).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let file = write(&format!("{name}.ocsp"), &answer.octets);
        findings.extend(lint("lint_ocsp_response", &[], &file).await);
        if name == "revoked" {
            let responder = responder_of(&answer.octets);
            let file = write("responder.pem", pem::encode("CERTIFICATE", &responder).as_bytes());
            findings.extend(lint("lint_pkix_cert", &[], &file).await);
        }
    }
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}

/// The certificate that comes with an OCSP response: the SEQUENCE in it that reads as a certificate.
pub(crate) fn responder_of(response: &[u8]) -> Vec<u8> {
    (0..response.len())
        .filter(|at| response[*at..].starts_with(&[0x30, 0x82]))
        .filter_map(|at| {
            let length = usize::from(u16::from_be_bytes([*response.get(at + 2)?, *response.get(at + 3)?]));
            let der = response.get(at..at + 4 + length)?;
            CertificateFacts::parse_der(der).ok().map(|_| der.to_vec())
        })
        .next()
        .expect("a delegated responder sends its certificate")
}
