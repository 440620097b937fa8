//! Certificates of others taken in, and ours given out.

use std::time::Instant;

use certctl_tests::{foreign::Authority, world::World};
use serde_json::{Value, json};
use sqlx::PgPool;

async fn import(w: &World, pem: &str) -> Value {
    w.post("/api/v1/certificates/import", json!({ "pem": pem }))
        .await
        .expect(200)
}

fn outcomes(result: &Value) -> Vec<&str> {
    let items = result["data"].as_array().unwrap();
    items.iter().map(|item| item["outcome"].as_str().unwrap()).collect()
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn each_certificate_of_a_bundle_is_managed_known_already_kept_as_chain_or_refused_with_a_reason(db: PgPool) {
    let w = World::new(db).await;
    let theirs = Authority::new("Other");
    let (a, b) = (
        theirs.leaf(&["a.example.net", "b.example.net", "10.0.0.1"], -10, 80),
        theirs.leaf(&["a.example.net"], -400, -30),
    );
    let nameless = theirs.leaf(&[], -10, 80);
    let broken = "-----BEGIN CERTIFICATE-----\nAQI=\n-----END CERTIFICATE-----\n";
    let csr = "-----BEGIN CERTIFICATE REQUEST-----\nAQI=\n-----END CERTIFICATE REQUEST-----\n";
    let bundle = [
        &*a,
        &*theirs.intermediate,
        &*theirs.root,
        &*a,
        &*b,
        broken,
        csr,
        &*nameless,
    ]
    .join("\n");
    let result = import(&w, &bundle).await;
    assert_eq!(
        outcomes(&result),
        [
            "created",
            "chain",
            "chain",
            "duplicate",
            "created",
            "rejected",
            "rejected",
            "created"
        ]
    );
    assert_eq!(
        json!([
            result["created"],
            result["duplicates"],
            result["chain"],
            result["rejected"]
        ]),
        json!([3, 1, 2, 2])
    );
    for item in result["data"].as_array().unwrap().iter().skip(5).take(2) {
        assert!(item["reason"].as_str().is_some_and(|why| !why.is_empty()), "{item}");
    }
    let id = result["data"][0]["certificate_id"].as_str().unwrap();
    assert_eq!(result["data"][3]["certificate_id"], id);
    let certificate = w.get(&format!("/api/v1/certificates/{id}")).await.expect(200);
    assert_eq!(certificate["name"], "a.example.net");
    assert_eq!(
        certificate["sans"],
        json!(["a.example.net", "b.example.net", "10.0.0.1"])
    );
    assert_eq!(
        (&certificate["status"], &certificate["environment"]),
        (&json!("Active"), &json!("imported"))
    );
    let version = w.versions(id).await[0].clone();
    assert_eq!(version["cert_pem"], a);
    assert_eq!(version["chain_pem"], format!("{}{}", theirs.intermediate, theirs.root));
    assert!(version["imported_from"].as_str().unwrap().contains("Other CA"));
    let old = result["data"][4]["certificate_id"].as_str().unwrap();
    assert_eq!(w.status(old).await, "Expired");
    let events = w
        .text("SELECT count(*)::text FROM audit_events WHERE action = 'certificate_imported'")
        .await;
    assert_eq!(events, "3");

    // Again: nothing new, and nothing changes.
    let before = w.contents().await;
    let again = import(&w, &bundle).await;
    assert_eq!(again["created"], 0);
    assert_eq!(again["duplicates"], 4);
    assert_eq!(
        w.contents().await["certificate_versions"],
        before["certificate_versions"]
    );
    assert_eq!(w.contents().await["certificates"], before["certificates"]);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_private_key_among_the_certificates_is_refused_and_nothing_is_stored(db: PgPool) {
    let w = World::new(db).await;
    let theirs = Authority::new("Other");
    let pem = format!("{}{}", theirs.leaf(&["a.example.net"], 0, 80), theirs.leaf_key());
    let answer = w.post("/api/v1/certificates/import", json!({ "pem": pem })).await;
    let problem = answer.problem();
    assert!(
        problem.status == 422 && problem.detail.contains("private key"),
        "{problem:?}"
    );
    assert_eq!(w.text("SELECT count(*)::text FROM certificates").await, "0");
    for body in [json!({}), json!({ "pem": "no armour" }), json!({ "der_base64": "%" })] {
        w.post("/api/v1/certificates/import", body).await.expect(422);
    }
    for (field, value) in [
        ("owner_id", "o-none"),
        ("issuer_id", "iss-none"),
        ("renewal_policy_id", "rp-none"),
        ("team_id", "t-none"),
    ] {
        let mut body = json!({ "pem": theirs.leaf(&["a.example.net"], 0, 80) });
        body[field] = json!(value);
        let problem = w.post("/api/v1/certificates/import", body).await.problem();
        assert_eq!((problem.status, problem.errors[0].field.as_str()), (422, field));
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_thousand_certificates_are_taken_in_by_one_call(db: PgPool) {
    let w = World::new(db).await;
    let theirs = Authority::new("Other");
    let bundle: String = (0..1000)
        .map(|n| theirs.leaf(&[&format!("h{n}.example.net")], -10, 80))
        .chain([theirs.intermediate.clone()])
        .collect();
    let began = Instant::now();
    let result = import(&w, &bundle).await;
    println!("1000 certificates imported in {:?}", began.elapsed());
    assert_eq!((&result["created"], &result["chain"]), (&json!(1000), &json!(1)));
    let stored = "SELECT count(*) || ' ' || count(DISTINCT c.name) || ' ' || bool_and(v.chain_pem <> '')
                    FROM certificates c JOIN certificate_versions v ON v.id = c.current_version_id";
    assert_eq!(w.text(stored).await, "1000 1000 true");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_version_is_exported_in_every_format_and_openssl_reads_it(db: PgPool) {
    let w = World::new(db).await;
    let theirs = Authority::new("Other");
    let leaf = theirs.leaf(&["*.example.net"], -10, 80);
    let chain = format!("{}{}", theirs.intermediate, theirs.root);
    let result = import(&w, &format!("{leaf}{chain}")).await;
    let id = result["data"][0]["certificate_id"].as_str().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    for (format, media, name, held, openssl) in [
        (
            "pem",
            "application/pem-certificate-chain",
            "_.example.net.pem",
            Some(leaf.clone()),
            "x509 -noout -subject -in",
        ),
        (
            "chain",
            "application/pem-certificate-chain",
            "_.example.net-chain.pem",
            Some(chain.clone()),
            "x509 -noout -subject -in",
        ),
        (
            "fullchain",
            "application/pem-certificate-chain",
            "_.example.net-fullchain.pem",
            Some(format!("{leaf}{chain}")),
            "x509 -noout -subject -in",
        ),
        (
            "der",
            "application/pkix-cert",
            "_.example.net.cer",
            None,
            "x509 -inform DER -noout -subject -in",
        ),
        (
            "p12",
            "application/x-pkcs12",
            "_.example.net.p12",
            None,
            "pkcs12 -info -nokeys -passin pass:changeit -in",
        ),
    ] {
        let answer = w
            .get(&format!("/api/v1/certificates/{id}/export?format={format}"))
            .await;
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, media),
            "{answer:?}"
        );
        assert_eq!(
            answer.header("content-disposition"),
            format!("attachment; filename=\"{name}\"")
        );
        if let Some(held) = held {
            assert_eq!(String::from_utf8_lossy(&answer.octets), held);
        }
        std::fs::write(&file, &answer.octets).unwrap();
        let said = certctl_tests::openssl(&format!("{openssl} {}", file.display()))
            .await
            .ok();
        assert!(
            said.contains("example.net") || said.contains("Other CA"),
            "{format}: {said}"
        );
        if format == "p12" {
            assert_eq!(said.matches("BEGIN CERTIFICATE").count(), 3, "{said}");
            assert!(!said.contains("PRIVATE"));
            // OpenSSL names each part: the one with the certificates is the only one.
            assert_eq!(said.matches("PKCS7").count(), 1, "{said}");
        }
    }
    w.get(&format!("/api/v1/certificates/{id}/export?version=2"))
        .await
        .expect(404);
    w.get("/api/v1/certificates/mc-none/export").await.expect(404);
    w.get(&format!("/api/v1/certificates/{id}/export?format=jks"))
        .await
        .expect(400);
    w.certificate("mc-none-yet", &[], json!({})).await;
    w.get("/api/v1/certificates/mc-none-yet/export").await.expect(404);
}
