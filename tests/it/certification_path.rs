//! Authorities below others: what their chain forbids is refused before it is signed (RFC 5280 §6.1), names that are no names
//! are refused by the API and by the signer, and what the signer signs is accepted by OpenSSL.

use std::{path::PathBuf, time::Duration};

use certctl_model::time::Time;
use certctl_tests::{
    openssl,
    world::{BEGIN, Host, World},
};
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, NameConstraints,
};
use serde_json::{Value, json};
use sqlx::PgPool;
use tempfile::TempDir;

const DAY: Duration = Duration::from_secs(86_400);

/// An authority below a root, in files.
struct Chain {
    dir: TempDir,
}

impl Chain {
    /// The root ends after some days; the authority is made as `shape` says.
    fn new(root_days: u32, shape: impl Fn(&mut CertificateParams)) -> Self {
        let begin = Time::from_unix(BEGIN) - DAY;
        let authority = |name: &str, days: u32| {
            let mut params = CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params.not_before = begin.date_time();
            params.not_after = (begin + DAY * days).date_time();
            params
        };
        let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let root_params = authority("Root", root_days + 1);
        let root = root_params.self_signed(&root_key).unwrap();
        let mut params = authority("Issuing", 1000);
        params.use_authority_key_identifier_extension = true;
        shape(&mut params);
        let issuing = params.signed_by(&key, &Issuer::new(root_params, root_key)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
        write("root.pem", root.pem());
        write("chain.pem", issuing.pem() + &root.pem());
        write("key.pem", key.serialize_pem());
        let key = dir.path().join("key.pem");
        std::fs::set_permissions(key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn world(&self, db: PgPool) -> World {
        let [chain, key] = ["chain.pem", "key.pem"].map(|name| self.path(name).to_str().unwrap().to_owned());
        World::with(db, &["--ca-cert-path", &chain, "--ca-key-path", &key], "").await
    }

    /// Asks OpenSSL for a purpose, some days after the beginning.
    async fn verify(&self, host: &Host, target: &str, purpose: &str, day: i64) -> String {
        let file = self.path("live.pem");
        std::fs::write(&file, host.bundle(target)).unwrap();
        let (root, file, at) = (self.path("root.pem"), file.display(), BEGIN + day * 86_400 + 3600);
        openssl(&format!(
            "verify -x509_strict -purpose {purpose} -attime {at} -CAfile {} -untrusted {file} {file}",
            root.display()
        ))
        .await
        .ok()
    }
}

fn new(id: &str, name: &str, more: &Value) -> Value {
    let mut new = json!({ "id": id, "common_name": name });
    new.as_object_mut()
        .unwrap()
        .extend(more.as_object().cloned().unwrap_or_default());
    new
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn names_outside_the_constraints_of_an_authority_are_refused_and_others_verify(db: PgPool) {
    let chain = Chain::new(400, |params| {
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![
                GeneralSubtree::DnsName("corp.example".to_owned()),
                GeneralSubtree::IpAddress(CidrSubnet::V4([10, 0, 0, 0], [255, 0, 0, 0])),
            ],
            excluded_subtrees: vec![GeneralSubtree::DnsName("secret.corp.example".to_owned())],
        });
    });
    let w = chain.world(db).await;
    let host = w.host("web-1").await;
    for (name, more) in [
        ("host.other.example", json!({})),
        ("a.secret.corp.example", json!({})),
        ("*.corp.example", json!({})),
        ("192.0.2.1", json!({})),
        ("a.corp.example", json!({ "sans": ["host.other.example"] })),
    ] {
        let problem = w.post("/api/v1/certificates", new("mc-0", name, &more)).await.problem();
        assert_eq!(
            (problem.status, problem.errors[0].field.as_str()),
            (422, "sans"),
            "{name}"
        );
        let why = &problem.errors[0].detail;
        assert!(
            why.contains("name constraints of the authority \"CN=Issuing\""),
            "{why}"
        );
    }
    w.target("tgt-1", &host).await;
    w.target("tgt-2", &host).await;
    let names = json!({ "common_name": "a.corp.example", "sans": ["10.1.2.3", "ops@any.example"] });
    w.certificate("mc-1", &["tgt-1"], names).await;
    // Its subject is empty: OpenSSL would compare the address in it with constraints on DNS names.
    w.certificate("mc-2", &["tgt-2"], json!({ "common_name": "10.1.2.3" }))
        .await;
    w.settle().await;
    for target in ["tgt-1", "tgt-2"] {
        let said = chain.verify(&host, target, "sslserver", 0).await;
        assert!(said.ends_with("live.pem: OK\n"), "{target}: {said}");
    }
    let moved = w
        .put("/api/v1/certificates/mc-1", json!({ "common_name": "b.other.example" }))
        .await;
    assert_eq!(moved.problem().status, 422);

    // Names that came past the API are refused by the signer, and the explanation tells before it is tried.
    w.sql("UPDATE certificates SET common_name = 'x.other.example', sans = '{}' WHERE id = 'mc-1'")
        .await;
    let explained = w.get("/api/v1/certificates/mc-1/explain").await.expect(200);
    assert_eq!(explained["cause"], "IssuerForbids", "{explained}");
    w.post("/api/v1/certificates/mc-1/renew", json!({})).await.expect(202);
    w.settle().await;
    let failed = w
        .get("/api/v1/jobs?certificate_id=mc-1&status=Failed")
        .await
        .expect(200);
    let why = failed["data"][0]["last_error"].as_str().unwrap_or_default();
    assert!(
        why.contains("x.other.example is outside the name constraints"),
        "{failed:#}"
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn purposes_outside_those_of_an_authority_are_refused_and_others_verify(db: PgPool) {
    let chain = Chain::new(400, |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]
    });
    let w = chain.world(db).await;
    let host = w.host("web-1").await;
    let problem = w
        .post("/api/v1/certificates", new("mc-0", "a.example", &json!({})))
        .await
        .problem();
    assert_eq!(problem.errors[0].field, "certificate_profile_id");
    let why = &problem.errors[0].detail;
    assert!(
        why.contains("serverAuth is outside those of the authority \"CN=Issuing\", which are clientAuth"),
        "{why}"
    );

    w.post(
        "/api/v1/profiles",
        json!({ "id": "prof-client", "name": "client", "allowed_ekus": ["clientAuth"] }),
    )
    .await
    .expect(201);
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], json!({ "certificate_profile_id": "prof-client" }))
        .await;
    w.settle().await;
    let said = chain.verify(&host, "tgt-1", "sslclient", 0).await;
    assert!(said.ends_with("live.pem: OK\n"), "{said}");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn no_certificate_outlives_the_root_and_forecast_and_explanation_tell(db: PgPool) {
    let chain = Chain::new(10, |_| ());
    let w = chain.world(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], json!({})).await;
    w.settle().await;
    let end = Time::from_unix(BEGIN) + DAY * 10;
    assert_eq!(host.served("tgt-1").unwrap().not_after, end);
    let said = chain.verify(&host, "tgt-1", "sslserver", 9).await;
    assert!(said.ends_with("live.pem: OK\n"), "{said}");
    let forecast = w.get("/api/v1/renewals/forecast?days=60").await.expect(200);
    assert_eq!(forecast["issuer_ends"][0]["ends_at"], json!(end), "{forecast:#}");
    let explained = w.get("/api/v1/certificates/mc-1/explain").await.expect(200);
    assert_eq!(explained["cause"], "EndsWithIssuer", "{explained}");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn malformed_names_are_refused_by_the_api_and_by_the_signer(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    for sans in [
        "https://h.example.test/%zz",
        "https://h.example.test/a|b",
        "https://h.example.test/{x}",
        "https:///x",
        "spiffe://TD.example/x",
        "spiffe://td.example/x?y",
        "spiffe://td.example/x#y",
        "spiffe://td.example//x",
        "spiffe://td.example:8/x",
        "spiffe://td.example",
        "spiffe://td.example/x https://h.example.test/",
        "spiffe://td.example/x spiffe://td.example/y",
        "<ops@example.test",
        "user@example..com",
        "a..example.test",
        "192.0.2.300",
        "a|b.example.test",
        "xn--a.example.test",
    ] {
        let sans = json!({ "sans": sans.split(' ').collect::<Vec<_>>() });
        let problem = w
            .post("/api/v1/certificates", new("mc-0", "a.example", &sans))
            .await
            .problem();
        assert_eq!(
            (problem.status, problem.errors[0].field.as_str()),
            (422, "sans"),
            "{sans}: {problem:?}"
        );
    }
    let problem = w
        .post("/api/v1/certificates", new("mc-0", "192.0.2.300", &json!({})))
        .await
        .problem();
    assert_eq!(problem.errors[0].field, "common_name");

    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], json!({})).await;
    w.settle().await;
    w.sql("UPDATE certificates SET sans = '{https://h.example.test/%zz}' WHERE id = 'mc-1'")
        .await;
    // What was let in before can be read, and the other work of the host goes on.
    let kept = w.get("/api/v1/certificates/mc-1").await.expect(200);
    assert_eq!(kept["sans"], json!(["https://h.example.test/%zz"]));
    // A renewal is refused, here or by the signer.
    w.post("/api/v1/certificates/mc-1/renew", json!({})).await;
    w.target("tgt-2", &host).await;
    w.certificate("mc-2", &["tgt-2"], json!({})).await;
    w.settle().await;
    assert_eq!(w.status("mc-2").await, "Active");
    assert_eq!(w.versions("mc-1").await.len(), 1);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn internationalised_domains_become_a_labels_in_names_and_addresses(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    let names = json!({ "common_name": "bücher.example", "sans": ["ops@bücher.example", "*.bücher.example"] });
    w.certificate("mc-1", &["tgt-1"], names).await;
    w.settle().await;
    let served: Vec<_> = host
        .served("tgt-1")
        .unwrap()
        .sans
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        served,
        [
            "xn--bcher-kva.example",
            "ops@xn--bcher-kva.example",
            "*.xn--bcher-kva.example"
        ]
    );
    let owner = json!({ "name": "ops", "email": "user@bücher.example" });
    let owner = w.post("/api/v1/owners", owner).await.expect(201);
    assert_eq!(owner["email"], "user@xn--bcher-kva.example");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_certificate_for_time_stamps_has_that_purpose_alone_and_critical(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    let profile = |ekus: &[&str]| json!({ "id": "prof-tsa", "name": "tsa", "allowed_ekus": ekus });
    let mixed = w
        .post("/api/v1/profiles", profile(&["timeStamping", "serverAuth"]))
        .await
        .problem();
    assert_eq!(mixed.errors[0].field, "allowed_ekus");
    w.post("/api/v1/profiles", profile(&["timeStamping"])).await.expect(201);
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], json!({ "certificate_profile_id": "prof-tsa" }))
        .await;
    w.settle().await;
    let dir = tempfile::tempdir().unwrap();
    let (root, live) = (dir.path().join("root.pem"), dir.path().join("live.pem"));
    let chain = w.get("/api/v1/certificates/mc-1/export?format=chain").await;
    std::fs::write(&root, &chain.octets).unwrap();
    std::fs::write(&live, host.bundle("tgt-1")).unwrap();
    let said = openssl(&format!(
        "verify -purpose timestampsign -attime {} -CAfile {} {}",
        BEGIN + 60,
        root.display(),
        live.display()
    ))
    .await
    .ok();
    assert!(said.ends_with("live.pem: OK\n"), "{said}");
    let text = openssl(&format!("x509 -in {} -noout -text", live.display())).await.ok();
    assert!(text.contains("X509v3 Extended Key Usage: critical"), "{text}");
}
