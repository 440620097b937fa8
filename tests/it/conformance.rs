//! Whatever key an authority has, in a file or in a token: openssl and pkilint have nothing against what it signs. And a
//! key in a token is not in the signer.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
};

use certctl_tests::{openssl, run, token::Token, world::World};
use certctl_x509::{ocsp, pem};
use serde_json::json;
use sqlx::PgPool;

use crate::linting::{lint, responder_of};

/// Has one of each document made: the paths of CA, leaf, revoked leaf, CRL, OCSP response and responder.
struct Made {
    dir: tempfile::TempDir,
    serials: [String; 2],
}

impl Made {
    async fn by(w: &World) -> Self {
        let host = w.host("web-1").await;
        for id in ["good", "revoked"] {
            w.target(&format!("tgt-{id}"), &host).await;
            w.certificate(&format!("mc-{id}"), &[&format!("tgt-{id}")], json!({}))
                .await;
        }
        w.settle().await;
        let body = json!({ "reason": "keyCompromise" });
        w.post("/api/v1/certificates/mc-revoked/revoke", body).await.expect(200);
        w.settle().await;
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, octets: &[u8]| fs::write(dir.path().join(name), octets).unwrap();
        let mut serials = vec![];
        for id in ["good", "revoked"] {
            let version = w.versions(&format!("mc-{id}")).await.remove(0);
            write(&format!("{id}.pem"), version["cert_pem"].as_str().unwrap().as_bytes());
            serials.push(version["serial_number"].as_str().unwrap().to_owned());
        }
        let ca = w.get("/ca/iss-local.crt").await.octets;
        write("ca.pem", pem::encode("CERTIFICATE", &ca).as_bytes());
        let crl = w.get("/crl/iss-local.crl").await.octets;
        write("crl.pem", pem::encode("X509 CRL", &crl).as_bytes());
        let issuer = ocsp::IssuerId::of_certificate(&ca).unwrap();
        let request = ocsp::request_for(&issuer, &serials[1].parse().unwrap(), None);
        let answer = w.raw(http::Method::POST, "/ocsp/iss-local", None, request).await;
        write("response.ocsp", &answer.octets);
        let responder = responder_of(&answer.octets);
        write("responder.pem", pem::encode("CERTIFICATE", &responder).as_bytes());
        Self {
            dir,
            serials: serials.try_into().expect("two"),
        }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// What openssl and pkilint find.
    async fn judge(&self, w: &World, algorithm: &str) {
        let [ca, crl, good, revoked] = ["ca.pem", "crl.pem", "good.pem", "revoked.pem"].map(|name| self.path(name));
        for document in [&ca, &good, &self.path("responder.pem")] {
            let text = openssl(&format!("x509 -in {document} -noout -text")).await.ok();
            assert!(
                text.contains(&format!("Signature Algorithm: {algorithm}")),
                "{document}: {text}"
            );
        }
        let trusted = format!("-x509_strict -CAfile {ca}");
        openssl(&format!("verify -check_ss_sig {trusted} {ca}")).await.ok();
        let said = openssl(&format!("crl -in {crl} -CAfile {ca} -noout -text")).await.ok();
        assert!(said.contains("verify OK") && said.contains(algorithm), "{said}");
        for crls in [
            format!("-crl_check_all -CRLfile {crl}"),
            "-crl_check -crl_download".to_owned(),
        ] {
            openssl(&format!("verify {trusted} {crls} {good}")).await.ok();
            let refused = openssl(&format!("verify {trusted} {crls} {revoked}")).await;
            assert!(
                !refused.success && refused.text.contains("certificate revoked"),
                "{}",
                refused.text
            );
        }
        for (serial, status) in self.serials.iter().zip([": good", ": revoked"]) {
            for how in ["", "-no_nonce", "-sha256"] {
                let url = format!("{}/ocsp/iss-local", w.url);
                let asked = format!("ocsp -issuer {ca} -CAfile {ca} {how} -serial 0x{serial} -url {url}");
                let said = openssl(&asked).await.ok();
                assert!(
                    said.contains("Response verify OK") && said.contains(status),
                    "{how}: {said}"
                );
            }
        }
        let mut findings = vec![];
        for (linter, options, document) in [
            ("lint_pkix_cert", &[][..], "ca.pem"),
            ("lint_pkix_cert", &[], "good.pem"),
            ("lint_pkix_cert", &[], "responder.pem"),
            ("lint_crl", &["-t", "CRL", "-p", "PKIX"], "crl.pem"),
            ("lint_ocsp_response", &[], "response.ocsp"),
        ] {
            findings.extend(lint(linter, options, Path::new(&self.path(document))).await);
        }
        assert!(findings.is_empty(), "{}", findings.join("\n"));
    }
}

/// A root that the signer makes.
async fn made_here(db: PgPool, kind: &str, padding: &str, algorithm: &str) {
    let more = ["--ca-key-algorithm", kind, "--ca-rsa-padding", padding];
    let w = World::beside_signer(db, &more, &[]).await;
    Made::by(&w).await.judge(&w, algorithm).await;
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn others_accept_what_a_p256_key_signs(db: PgPool) {
    made_here(db, "ecdsa-p256", "pkcs1", "ecdsa-with-SHA256").await;
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn others_accept_what_a_p384_key_signs(db: PgPool) {
    made_here(db, "ecdsa-p384", "pkcs1", "ecdsa-with-SHA384").await;
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn others_accept_what_an_rsa_2048_key_signs_by_pkcs1(db: PgPool) {
    made_here(db, "rsa-2048", "pkcs1", "sha256WithRSAEncryption").await;
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn others_accept_what_an_rsa_3072_key_signs_by_pss(db: PgPool) {
    made_here(db, "rsa-3072", "pss", "rsassaPss").await;
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn others_accept_what_an_rsa_4096_key_signs_by_pkcs1(db: PgPool) {
    made_here(db, "rsa-4096", "pkcs1", "sha256WithRSAEncryption").await;
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn others_accept_what_an_ed25519_key_signs(db: PgPool) {
    made_here(db, "ed25519", "pkcs1", "ED25519").await;
}

/// An authority made by openssl: its key and its certificate.
struct Authority {
    dir: tempfile::TempDir,
}

impl Authority {
    async fn new(key: &str, padding: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = "[req]\ndistinguished_name=dn\nx509_extensions=ext\nprompt=no\n[dn]\nCN=Brought CA\n[ext]\n\
                      basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n";
        fs::write(dir.path().join("req.cnf"), config).unwrap();
        let authority = Self { dir };
        let [key_file, certificate, config] = ["ca.key", "ca.pem", "req.cnf"].map(|name| authority.path(name));
        openssl(&format!("genpkey {key} -out {key_file}")).await.ok();
        let how = match padding {
            "pss" => "-sha256 -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:32",
            _ if key.contains("P-384") => "-sha384",
            _ => "",
        };
        openssl(&format!(
            "req -x509 -new -key {key_file} {how} -out {certificate} -days 30 -config {config}"
        ))
        .await
        .ok();
        run("chmod", ["600", &key_file]).await.ok();
        authority
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn key(&self) -> String {
        fs::read_to_string(self.path("ca.key")).unwrap()
    }

    /// The octets that only the private key has: the scalar of an elliptic curve, a prime of an RSA key.
    async fn secret(&self) -> Vec<u8> {
        let text = openssl(&format!("pkey -in {} -noout -text", self.path("ca.key")))
            .await
            .ok();
        let (begin, end) = match text.contains("prime1:") {
            true => ("prime1:", "prime2:"),
            false => ("priv:", "pub:"),
        };
        let (_, rest) = text.split_once(begin).unwrap();
        let digits: String = rest
            .split(end)
            .next()
            .unwrap()
            .chars()
            .filter(char::is_ascii_hexdigit)
            .collect();
        let octets = hex::decode(digits).unwrap();
        let zeros = octets.iter().take_while(|octet| **octet == 0).count();
        octets[zeros..].to_vec()
    }
}

/// A signer whose key is in a token that takes it from a file, which nobody keeps.
async fn in_a_token(db: PgPool, authority: &Authority, padding: &str) -> (World, Token) {
    let token = Token::with_key(&authority.key());
    fs::remove_file(authority.path("ca.key")).unwrap();
    let certificate = authority.path("ca.pem");
    let arguments = [
        token.arguments(&certificate),
        vec!["--ca-rsa-padding".to_owned(), padding.to_owned()],
    ]
    .concat();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let (name, value) = token.variable();
    let w = World::beside_signer(db, &arguments, &[(name, &value)]).await;
    (w, token)
}

async fn judged_in_a_token(db: PgPool, key: &str, padding: &str, algorithm: &str) {
    let authority = Authority::new(key, padding).await;
    let (w, _token) = in_a_token(db, &authority, padding).await;
    Made::by(&w).await.judge(&w, algorithm).await;
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn others_accept_what_a_p256_key_in_a_token_signs(db: PgPool) {
    judged_in_a_token(
        db,
        "-algorithm EC -pkeyopt ec_paramgen_curve:P-256",
        "pkcs1",
        "ecdsa-with-SHA256",
    )
    .await;
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn others_accept_what_a_p384_key_in_a_token_signs(db: PgPool) {
    judged_in_a_token(
        db,
        "-algorithm EC -pkeyopt ec_paramgen_curve:P-384",
        "pkcs1",
        "ecdsa-with-SHA384",
    )
    .await;
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn others_accept_what_an_rsa_key_in_a_token_signs_by_pkcs1(db: PgPool) {
    judged_in_a_token(
        db,
        "-algorithm RSA -pkeyopt rsa_keygen_bits:2048",
        "pkcs1",
        "sha256WithRSAEncryption",
    )
    .await;
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn others_accept_what_an_rsa_key_in_a_token_signs_by_pss(db: PgPool) {
    judged_in_a_token(db, "-algorithm RSA -pkeyopt rsa_keygen_bits:3072", "pss", "rsassaPss").await;
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn others_accept_what_an_ed25519_key_in_a_token_signs(db: PgPool) {
    judged_in_a_token(db, "-algorithm ED25519", "pkcs1", "ED25519").await;
}

/// How often the memory of a process holds some octets, in either order: numbers are kept in both.
fn count_in_memory(pid: u32, secret: &[u8]) -> usize {
    let turned: Vec<u8> = secret.iter().rev().copied().collect();
    let escaped = |octets: &[u8]| octets.iter().map(|octet| format!("\\x{octet:02x}")).collect::<String>();
    let pattern = format!("(?s-u:{}|{})", escaped(secret), escaped(&turned));
    let pattern = regex::bytes::Regex::new(&pattern).unwrap();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).expect("only root looks into a hardened process");
    let (mut found, mut searched) = (0, 0);
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next().unwrap(), words.next().unwrap());
        if !rights.starts_with('r') || line.contains("[v") {
            continue;
        }
        let (begin, end) = range.split_once('-').unwrap();
        let [begin, end] = [begin, end].map(|address| u64::from_str_radix(address, 16).unwrap());
        let mut octets = vec![0; usize::try_from(end - begin).unwrap()];
        // What was mapped and never touched beyond the end of a file cannot be read.
        if memory.read_exact_at(&mut octets, begin).is_ok() {
            searched += octets.len();
            found += pattern.find_iter(&octets).count();
        }
    }
    assert!(searched > 1 << 20, "{searched} octets were read");
    found
}

/// Looks for a key in the signer's memory: one from a file, where it must be found, and the same from a token.
async fn searched(db: PgPool, key: &str) {
    let authority = Authority::new(key, "pkcs1").await;
    let secret = authority.secret().await;
    let (certificate, file) = (authority.path("ca.pem"), authority.path("ca.key"));
    let from_file = World::beside_signer(
        db.clone(),
        &["--ca-cert-path", &certificate, "--ca-key-path", &file],
        &[],
    )
    .await;
    let found = count_in_memory(from_file.signer_pid().unwrap(), &secret);
    assert!(found > 0, "the search finds a key that is there");
    drop(from_file);

    let (w, _token) = in_a_token(db, &authority, "pkcs1").await;
    Made::by(&w).await;
    let found = count_in_memory(w.signer_pid().unwrap(), &secret);
    assert_eq!(found, 0, "a key in a token is not in the signer");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn the_signer_has_no_p256_key_that_is_in_a_token(db: PgPool) {
    searched(db, "-algorithm EC -pkeyopt ec_paramgen_curve:P-256").await;
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn the_signer_has_no_rsa_key_that_is_in_a_token(db: PgPool) {
    searched(db, "-algorithm RSA -pkeyopt rsa_keygen_bits:2048").await;
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn the_signer_says_what_it_gave_up_and_has_given_it_up(db: PgPool) {
    let w = World::beside_signer(db, &[], &[]).await;
    let log = w.signer_log();
    for measure in ["core dumps", "privileges", "capabilities", "system calls"] {
        assert!(log.contains(&format!("hardened: {measure}")), "{measure}: {log}");
    }
    let pid = w.signer_pid().unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for line in [
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "CapEff:\t0000000000000000",
        "CapPrm:\t0000000000000000",
    ] {
        assert!(status.contains(line), "{line}: {status}");
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let cores = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(cores.split_whitespace().nth(4), Some("0"), "{cores}");
}
