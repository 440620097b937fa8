//! The signer judged by `openssl` and by Postgres.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use axum::{Router, body::Body, http::Request};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use certctl_model::{
    id::IssuerId,
    key::{KeyAlgorithm, KeyFacts},
    name::San,
    profile::ProfileRules,
    revocation::RevocationReason,
    time::{Clock, Time},
};
use certctl_store::{crls::Entry, ledger};
use certctl_x509::{
    csr,
    facts::CertificateFacts,
    keys::KeyPair,
    ocsp::{self as wire, CertStatus},
    pem,
    scheme::RsaPadding,
};
use clap::Parser;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tower::ServiceExt;

use crate::{
    Signer,
    authority::{self, Authority},
    config::Config,
    crl,
    issue::{self, Case, Csr, Terms},
    keeping::{Brought, BroughtKey},
    lint::{self, Wanted},
};

/// A directory and the `openssl` program in it.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, octets: impl AsRef<[u8]>) {
        fs::write(self.path(name), octets).unwrap();
    }

    /// What `openssl` printed, and whether it was content.
    fn ask(&self, command: &str) -> (bool, String) {
        let output = Command::new("openssl")
            .args(command.split_whitespace())
            .current_dir(&self.0)
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    fn openssl(&self, command: &str) -> String {
        let (content, text) = self.ask(command);
        assert!(content, "openssl {command}: {text}");
        text
    }

    /// A self-signed authority made by `openssl`, in `ca.pem` and `ca.key`.
    fn authority(&self, key: &str, extensions: &[&str]) -> Result<Authority, String> {
        let (made, text) = self.ask(&format!("genpkey {key} -out ca.key"));
        assert!(made, "{text}");
        let mut config =
            "[req]\ndistinguished_name=dn\nx509_extensions=ext\nprompt=no\n[dn]\nCN=Sub CA\n[ext]\n".to_owned();
        config.extend(extensions.iter().map(|line| format!("{line}\n")));
        self.write("req.cnf", config);
        self.openssl("req -x509 -new -key ca.key -out ca.pem -days 30 -config req.cnf");
        self.brought()
    }

    fn brought(&self) -> Result<Authority, String> {
        self.brought_with(RsaPadding::Pkcs1)
    }

    fn brought_with(&self, padding: RsaPadding) -> Result<Authority, String> {
        let brought = Brought {
            certificate: self.path("ca.pem"),
            key: BroughtKey::File(self.path("ca.key")),
            padding,
        };
        let (key, chain) = brought.load(None).map_err(|error| format!("{error:#}"))?;
        Authority::new(local(), key, chain, now())
    }
}

const CA: [&str; 3] = [
    "basicConstraints=critical,CA:TRUE",
    "keyUsage=critical,keyCertSign,cRLSign",
    "subjectKeyIdentifier=hash",
];

fn local() -> IssuerId {
    "iss-local".parse().unwrap()
}

/// `openssl` reads the clock of this machine.
fn now() -> Time {
    Clock::system().now().whole_seconds()
}

fn terms() -> Terms {
    Terms {
        leaf_validity: Duration::from_secs(90 * 86_400),
        backdate: Duration::from_secs(300),
        public_url: Some("http://pki.example.com".to_owned()),
    }
}

pub(crate) fn root() -> Authority {
    let key = KeyPair::generate(KeyFacts::P256).unwrap();
    let der = authority::root(&key, "Test CA", now() - Duration::from_secs(300)).unwrap();
    Authority::new(
        local(),
        Box::new(key),
        vec![CertificateFacts::parse_der(&der).unwrap()],
        now(),
    )
    .unwrap()
}

fn request(key: KeyFacts, names: &[&str]) -> Vec<u8> {
    let sans: Vec<San> = names.iter().map(|name| name.parse().unwrap()).collect();
    let common_name = names.first().filter(|name| name.len() <= 64).unwrap_or(&"");
    csr::generate(&KeyPair::generate(key).unwrap(), common_name, &sans).unwrap()
}

/// Issues without a database: to-be-signed octets, signed.
fn leaf(authority: &Authority, key: KeyFacts, names: &[&str], rules: ProfileRules) -> CertificateFacts {
    let sans: Vec<String> = names.iter().map(ToString::to_string).collect();
    let request = request(key, names);
    let csr = Csr::admit(&"j-1".parse().unwrap(), local(), &request, names[0], &sans, rules).unwrap();
    let prepared = csr.prepare(authority, &terms(), now()).unwrap();
    let der = authority.sign(&prepared.entry.tbs_der).unwrap();
    CertificateFacts::parse_der(&der).unwrap()
}

const NAMES: [&str; 5] = [
    "api.example.com",
    "10.0.0.1",
    "2001:db8::1",
    "ops@example.com",
    "spiffe://example.org/api",
];

#[test]
fn openssl_accepts_root_leaf_and_crl() {
    let scratch = Scratch::new();
    let root = root();
    scratch.write("ca.pem", &root.chain_pem);
    scratch.openssl("verify -x509_strict -check_ss_sig -CAfile ca.pem ca.pem");
    let rsa = KeyFacts {
        algorithm: KeyAlgorithm::Rsa,
        bits: 2048,
    };
    let long = format!("{}.example.com", ["a".repeat(50), "b".repeat(50)].join("."));
    for (key, names) in [
        (KeyFacts::P256, &NAMES[..]),
        (rsa, &NAMES[..1]),
        (KeyFacts::P256, &[long.as_str()]),
    ] {
        let leaf = leaf(&root, key, names, ProfileRules::default());
        scratch.write("leaf.pem", leaf.to_pem());
        scratch.openssl("verify -x509_strict -purpose sslserver -CAfile ca.pem leaf.pem");
        assert_eq!(leaf.sans.iter().map(San::to_string).collect::<Vec<_>>(), names, "{key}");
        assert_eq!(leaf.key_usage.unwrap().key_encipherment, key == rsa);
        let text = scratch.openssl("x509 -in leaf.pem -noout -text");
        let critical = text.contains("X509v3 Subject Alternative Name: critical");
        assert_eq!(
            (critical, leaf.common_name.is_none()),
            (names[0].len() > 64, names[0].len() > 64),
            "{text}"
        );
        for url in ["crl/iss-local.crl", "ocsp/iss-local", "ca/iss-local.crt"] {
            assert!(text.contains(&format!("URI:http://pki.example.com/{url}\n")), "{text}");
        }

        let list = |number: i64, entries: &[Entry<'_>]| {
            let der = crl::whole(&root, number, entries, now(), now() + Duration::from_secs(3600));
            scratch.write("crl.pem", pem::encode("X509 CRL", &der));
            assert!(
                scratch
                    .openssl("crl -in crl.pem -CAfile ca.pem -noout")
                    .contains("verify OK")
            );
        };
        list(1, &[]);
        scratch.openssl("verify -crl_check -CRLfile crl.pem -CAfile ca.pem leaf.pem");
        list(
            2,
            &[Entry {
                serial_number: leaf.serial.as_str(),
                revoked_at: now().unix(),
                reason: RevocationReason::KeyCompromise.as_str(),
                invalidity_date: None,
                released: false,
            }],
        );
        let (content, text) = scratch.ask("verify -crl_check -CRLfile crl.pem -CAfile ca.pem leaf.pem");
        assert!(!content && text.contains("certificate revoked"), "{text}");
        let text = scratch.openssl("crl -in crl.pem -noout -text");
        assert!(
            text.contains("Key Compromise") && text.contains("X509v3 CRL Number: \n                2\n"),
            "{text}"
        );
    }
}

#[test]
fn authorities_of_every_kind_of_key_sign() {
    let (pkcs1, pss) = (RsaPadding::Pkcs1, RsaPadding::Pss);
    for (key, padding) in [
        ("-algorithm RSA -pkeyopt rsa_keygen_bits:2048", pkcs1),
        ("-algorithm RSA -pkeyopt rsa_keygen_bits:3072", pss),
        ("-algorithm EC -pkeyopt ec_paramgen_curve:P-384", pkcs1),
        ("-algorithm EC -pkeyopt ec_paramgen_curve:P-521", pkcs1),
        ("-algorithm ED25519", pss),
    ] {
        let scratch = Scratch::new();
        scratch.authority(key, &CA).unwrap();
        let authority = scratch.brought_with(padding).unwrap();
        let leaf = leaf(&authority, KeyFacts::P256, &NAMES, ProfileRules::default());
        assert!(leaf.not_after <= authority.certificate.not_after, "30 days, not 90");
        scratch.write("leaf.pem", leaf.to_pem());
        scratch.openssl("verify -x509_strict -CAfile ca.pem leaf.pem");
        let der = crl::whole(&authority, 7, &[], now(), now() + Duration::from_secs(60));
        scratch.write("crl.der", der);
        assert!(
            scratch
                .openssl("crl -inform DER -in crl.der -CAfile ca.pem -noout")
                .contains("verify OK"),
            "{key} {padding:?}"
        );
    }
}

#[test]
fn an_authority_below_others_publishes_its_whole_chain_in_order() {
    let scratch = Scratch::new();
    scratch.authority("-algorithm ED25519", &CA).unwrap();
    let top = fs::read_to_string(scratch.path("ca.pem")).unwrap();
    for from in ["ca.pem", "ca.key"] {
        fs::rename(scratch.path(from), scratch.path(&format!("top-{from}"))).unwrap();
    }
    scratch.write("ext.cnf", CA.join("\n"));
    scratch.openssl("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out sec1.key");
    // SEC 1, as older tools write it.
    scratch.openssl("ec -in sec1.key -out ca.key");
    scratch.openssl("req -new -key ca.key -subj /CN=Issuing -out sub.csr");
    scratch.openssl("x509 -req -in sub.csr -CA top-ca.pem -CAkey top-ca.key -days 9 -extfile ext.cnf -out sub.pem");
    let sub = fs::read_to_string(scratch.path("sub.pem")).unwrap();
    scratch.write("ca.pem", format!("{sub}{top}"));
    let authority = scratch.brought().unwrap();
    assert_eq!(
        CertificateFacts::parse_pem_chain(&authority.chain_pem).unwrap().len(),
        2
    );
    let leaf = leaf(&authority, KeyFacts::P256, &NAMES[..1], ProfileRules::default());
    scratch.write("leaf.pem", leaf.to_pem());
    scratch.openssl("verify -x509_strict -CAfile top-ca.pem -untrusted sub.pem leaf.pem");

    scratch.write("ca.pem", format!("{sub}{sub}"));
    assert!(scratch.brought().err().unwrap().contains("out of order"));
}

#[test]
fn a_chain_that_no_relying_party_accepts_is_refused_at_start() {
    let scratch = Scratch::new();
    let below = |top: &[&str], sub: &[&str]| {
        // Whether it would do by itself does not matter here.
        let _ = scratch.authority("-algorithm ED25519", top);
        let top = fs::read_to_string(scratch.path("ca.pem")).unwrap();
        for from in ["ca.pem", "ca.key"] {
            fs::rename(scratch.path(from), scratch.path(&format!("top-{from}"))).unwrap();
        }
        scratch.write("ext.cnf", sub.join("\n"));
        scratch.openssl("genpkey -algorithm ED25519 -out ca.key");
        scratch.openssl("req -new -key ca.key -subj /O=Acme/CN=Issuing -out sub.csr");
        scratch.openssl("x509 -req -in sub.csr -CA top-ca.pem -CAkey top-ca.key -days 9 -extfile ext.cnf -out sub.pem");
        let sub = fs::read_to_string(scratch.path("sub.pem")).unwrap();
        scratch.write("ca.pem", format!("{sub}{top}"));
        scratch.brought()
    };
    let with = |more: &'static str| [&CA[..], &[more]].concat();
    assert!(below(&CA, &CA).is_ok());
    let path_length = ["basicConstraints=critical,CA:TRUE,pathlen:0", CA[1], CA[2]];
    for (top, sub, why) in [
        (&path_length[..], &CA[..], "pathLenConstraint 0"),
        (
            &[
                "basicConstraints=critical,CA:TRUE",
                "keyUsage=critical,cRLSign,keyCertSign",
                "1.2.3.4=critical,DER:0500",
            ],
            &CA,
            "critical extension",
        ),
        (
            &with("nameConstraints=critical,permitted;dirName:dn"),
            &CA,
            "name constraints of the authority",
        ),
        (
            &with("extendedKeyUsage=serverAuth"),
            &with("extendedKeyUsage=clientAuth"),
            "no purpose in common",
        ),
    ] {
        let error = below(top, sub).err();
        assert!(
            error.as_ref().is_some_and(|error| error.contains(why)),
            "{why}: {error:?}"
        );
    }
}

#[test]
fn authorities_that_could_not_do_their_work_are_refused() {
    let ed25519 = "-algorithm ED25519";
    let scratch = Scratch::new();
    for (extensions, why) in [
        (&["basicConstraints=CA:FALSE", CA[1]][..], "CA:TRUE"),
        (&[CA[0], "keyUsage=critical,cRLSign"], "keyCertSign"),
        (&[CA[0], "keyUsage=critical,keyCertSign"], "cRLSign"),
        (&[CA[0]], "keyCertSign"),
    ] {
        let error = scratch.authority(ed25519, extensions).err().unwrap();
        assert!(error.contains(why), "{extensions:?}: {error}");
    }
    assert!(
        scratch
            .authority("-algorithm RSA -pkeyopt rsa_keygen_bits:1024", &CA)
            .is_err()
    );
    scratch.authority(ed25519, &CA).unwrap();
    let brought = Brought {
        certificate: scratch.path("ca.pem"),
        key: BroughtKey::File(scratch.path("ca.key")),
        padding: RsaPadding::Pkcs1,
    };
    let at = |at: Time| {
        let (key, chain) = brought.load(None).unwrap();
        Authority::new(local(), key, chain, at).err().unwrap()
    };
    assert!(at(now() + Duration::from_secs(40 * 86_400)).contains("expired"));
    assert!(at(now() - Duration::from_secs(86_400)).contains("not valid before"));
    scratch.openssl("genpkey -algorithm ED25519 -out ca.key");
    assert!(scratch.brought().err().unwrap().contains("not of this key"));
    scratch.openssl("x509 -in ca.pem -outform DER -out ca.pem");
    assert!(scratch.brought().err().unwrap().contains("PEM is needed, not DER"));
}

#[test]
fn a_short_life_keeps_to_the_limit_of_its_profile_and_says_there_is_no_status() {
    let root = root();
    let rules = |max_ttl, allow_short_lived| ProfileRules {
        max_ttl: Duration::from_secs(max_ttl),
        allow_short_lived,
        ..Default::default()
    };
    let scratch = Scratch::new();
    scratch.write("ca.pem", &root.chain_pem);
    for (rules, life, status) in [
        (rules(300, true), 300, false),
        (rules(300, false), 300, true),
        (rules(86_400, false), 86_400, true),
        (rules(0, false), 90 * 86_400 + 300, true),
        (rules(100 * 86_400, false), 90 * 86_400 + 300, true),
    ] {
        let leaf = leaf(&root, KeyFacts::P256, &NAMES[..1], rules.clone());
        assert_eq!(leaf.not_after.seconds_since(leaf.not_before), life, "{rules:?}");
        assert!(
            leaf.not_before <= now() && leaf.not_after.seconds_since(now()) >= life * 8 / 10,
            "{rules:?}"
        );
        scratch.write("leaf.pem", leaf.to_pem());
        scratch.openssl("verify -x509_strict -CAfile ca.pem leaf.pem");
        let text = scratch.openssl("x509 -in leaf.pem -noout -text");
        let found = [
            text.contains("OCSP"),
            text.contains("CRL Distribution"),
            !text.contains("No Revocation Available"),
        ];
        assert_eq!(found, [status; 3], "{text}");
    }
}

#[test]
fn the_lint_sees_what_differs_from_what_is_wanted() {
    let (root, other) = (root(), root());
    let request = request(KeyFacts::P256, &NAMES);
    let sans: Vec<String> = NAMES.iter().map(ToString::to_string).collect();
    let admitted = Csr::admit(
        &"j-1".parse().unwrap(),
        local(),
        &request,
        NAMES[0],
        &sans,
        ProfileRules::default(),
    );
    let tbs = admitted.unwrap().prepare(&root, &terms(), now()).unwrap().entry.tbs_der;
    let parsed = csr::CertificationRequest::parse_der(&request).unwrap();
    let spki = parsed.spki_der();
    let names = parsed.sans().to_vec();
    let right = || Wanted {
        spki_der: spki,
        key: KeyFacts::P256,
        names: &names,
        purposes: vec!["1.3.6.1.5.5.7.3.1".to_owned()],
        longest: None,
        publishes: true,
        no_rev_avail: false,
    };
    let check = |tbs: &[u8], authority: &Authority, wanted: Wanted<'_>, why: &str| {
        let found = lint::certificate(tbs, authority, &wanted).err().unwrap_or_default();
        assert!(
            found.contains(why) && found.is_empty() == why.is_empty(),
            "{why}: {found}"
        );
    };
    check(&tbs, &root, right(), "");
    check(&tbs, &other, right(), "authority's (4.2.1.1)");
    check(
        &tbs,
        &root,
        Wanted {
            spki_der: root.certificate.spki_der.as_slice(),
            ..right()
        },
        "4.1.2.7",
    );
    check(
        &tbs,
        &root,
        Wanted {
            names: &names[..4],
            ..right()
        },
        "the names differ",
    );
    check(&tbs, &root, Wanted { names: &[], ..right() }, "the names differ");
    check(
        &tbs,
        &root,
        Wanted {
            purposes: vec![],
            ..right()
        },
        "the purposes differ",
    );
    check(
        &tbs,
        &root,
        Wanted {
            longest: Some(Duration::from_secs(60)),
            ..right()
        },
        "longer",
    );
    check(
        &tbs,
        &root,
        Wanted {
            publishes: false,
            ..right()
        },
        "too much",
    );
    check(
        &tbs,
        &root,
        Wanted {
            no_rev_avail: true,
            ..right()
        },
        "RFC 9608",
    );
    check(&[&tbs[..], &[0]].concat(), &root, right(), "octets follow");
    // The root's own contents: an authority's, with the root's own name, key and serial.
    let (_, whole) = x509_parser::parse_x509_certificate(&root.certificate.der).unwrap();
    let own = Wanted {
        spki_der: &root.certificate.spki_der,
        names: &[],
        ..right()
    };
    check(whole.tbs_certificate.as_ref(), &root, own, "CA:TRUE");
}

/// A signer over a migrated database, under its own role.
struct World {
    admin: PgPool,
    pool: PgPool,
    clock: Clock,
    directory: tempfile::TempDir,
    router: Router,
    jobs: std::cell::Cell<u32>,
}

impl World {
    async fn new(options: PgPoolOptions, connect: PgConnectOptions) -> Self {
        let admin = options.clone().connect_with(connect.clone()).await.unwrap();
        let pool = options
            .connect_with(connect.options([("role", "certctl_signer")]))
            .await
            .unwrap();
        let clock = Clock::manual(now());
        let directory = tempfile::tempdir().unwrap();
        let router = signer(&directory, &pool, &clock).router();
        Self {
            admin,
            pool,
            clock,
            directory,
            router,
            jobs: Default::default(),
        }
    }

    async fn call(&self, path: &str, body: Value) -> (u16, Value) {
        let request = Request::post(path).body(Body::from(body.to_string())).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let octets = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&octets).unwrap())
    }

    async fn sql(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(&self.admin).await.unwrap();
    }

    /// A running issuance of a certificate of its own for `api.example.com`.
    async fn job(&self, csr: &[u8]) -> String {
        let number = self.jobs.get() + 1;
        self.jobs.set(number);
        let certificate = format!("mc-{number}");
        sqlx::query(
            "INSERT INTO certificates (id, name, common_name, sans, owner_id, team_id, issuer_id, renewal_policy_id,
                                       created_at, updated_at)
             VALUES ($1, $1, 'api.example.com', '{www.example.com}', 'o-unassigned', 't-unassigned', 'iss-local',
                     'rp-default', now(), now())",
        )
        .bind(&certificate)
        .execute(&self.admin)
        .await
        .unwrap();
        sqlx::query(
            "INSERT INTO jobs (id, type, certificate_id, status, csr_der, run_at, created_at)
             VALUES ($2, 'Issuance', $1, 'Running', $3, now(), now())",
        )
        .bind(&certificate)
        .bind(format!("j-{number}"))
        .bind(csr)
        .execute(&self.admin)
        .await
        .unwrap();
        format!("j-{number}")
    }

    async fn good_job(&self) -> String {
        self.job(&request(KeyFacts::P256, &["api.example.com", "www.example.com"]))
            .await
    }

    async fn issued(&self, job: &str) -> (CertificateFacts, String) {
        let (status, body) = self.call("/v1/issue", json!({ "job_id": job })).await;
        assert_eq!(status, 200, "{body}");
        let certificate = CertificateFacts::parse_pem_chain(body["certificate_pem"].as_str().unwrap()).unwrap();
        (certificate[0].clone(), body["chain_pem"].as_str().unwrap().to_owned())
    }

    /// The response, and for how many seconds it may be given again.
    async fn ocsp(&self, request: &[u8]) -> (Vec<u8>, i64) {
        let (status, body) = self.call("/v1/ocsp", question("iss-local", request)).await;
        assert_eq!(status, 200, "{body}");
        let answer = &body["answers"][0];
        let signed = &answer["signed"];
        let response = signed["response"].as_str().or(answer["unsigned"].as_str());
        let response = STANDARD.decode(response.unwrap_or_else(|| panic!("{body}"))).unwrap();
        let again = match (signed["this_update"].as_i64(), signed["next_update"].as_i64()) {
            (Some(this_update), Some(next_update)) if signed["nonce"] == false => next_update - this_update,
            _ => 0,
        };
        (response, again)
    }

    async fn revoke(&self, certificate: &CertificateFacts, reason: &str) {
        sqlx::query(
            "INSERT INTO revocations (id, issuer_id, serial_number, certificate_id, reason, revoked_by, not_after,
                                      revoked_at)
             VALUES ($1, 'iss-local', $1, 'mc-1', $2, 'test', $3, $4)",
        )
        .bind(&certificate.serial)
        .bind(reason)
        .bind(certificate.not_after)
        .bind(self.clock.now())
        .execute(&self.admin)
        .await
        .unwrap();
    }

    async fn crl(&self) -> (i64, Vec<u8>) {
        self.list(0, false).await
    }

    async fn list(&self, shard: i32, delta: bool) -> (i64, Vec<u8>) {
        let question = json!({ "issuer_id": "iss-local", "shard": shard, "delta": delta });
        let (status, body) = self.call("/v1/crl", question).await;
        assert_eq!(status, 200, "{body}");
        let number = body["number"].as_i64().unwrap();
        (number, self.stored(shard, number, delta).await)
    }

    /// The octets that would be served.
    async fn stored(&self, shard: i32, number: i64, delta: bool) -> Vec<u8> {
        let (der, length): (Vec<u8>, i64) = sqlx::query_as(
            "SELECT string_agg(k.octets, '' ORDER BY k.seq), max(c.length)
               FROM crls c JOIN crl_chunks k USING (issuer_id, shard, body)
              WHERE c.issuer_id = 'iss-local' AND c.shard = $1 AND c.number = $2 AND (c.base IS NOT NULL) = $3",
        )
        .bind(shard)
        .bind(number)
        .bind(delta)
        .fetch_one(&self.pool)
        .await
        .unwrap();
        assert_eq!(der.len() as i64, length);
        der
    }
}

fn signer(directory: &tempfile::TempDir, pool: &PgPool, clock: &Clock) -> Signer {
    let ca = directory.path().join("ca");
    let arguments = [
        "signer",
        "--public-url",
        "http://pki.example.com/",
        "--ca-dir",
        ca.to_str().unwrap(),
    ];
    Signer::with_pool(Config::parse_from(arguments), pool.clone(), clock.clone()).unwrap()
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_job_has_one_certificate_however_often_it_is_asked_for(options: PgPoolOptions, connect: PgConnectOptions) {
    let world = World::new(options, connect).await;
    let job = world.good_job().await;
    let all = tokio::join!(world.issued(&job), world.issued(&job), world.issued(&job));
    let first = world.issued(&job).await;
    assert!(all.0 == first && all.1 == first && all.2 == first);
    // What is signed is answered whatever became of the job; other replicas and later lives answer the same.
    world
        .sql("UPDATE jobs SET status = 'Completed', finished_at = now()")
        .await;
    let again = World {
        router: signer(&world.directory, &world.pool, &world.clock).router(),
        ..world
    };
    assert_eq!(again.issued(&job).await, first);
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM ledger")
        .fetch_one(&again.pool)
        .await
        .unwrap();
    assert_eq!(rows, 1);
    let trail: Vec<String> = sqlx::query_scalar("SELECT action FROM audit_events")
        .fetch_all(&again.admin)
        .await
        .unwrap();
    assert_eq!(trail, ["authority_published"]);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn of_many_jobs_each_has_its_own_outcome_and_the_first_answer_again(
    options: PgPoolOptions,
    connect: PgConnectOptions,
) {
    let world = World::new(options, connect).await;
    let (mut jobs, mut broken) = (Vec::new(), request(KeyFacts::P256, &["api.example.com"]));
    *broken.last_mut().unwrap() ^= 1;
    let alone = world.good_job().await;
    let (first, _) = world.issued(&alone).await;
    for _ in 0..20 {
        jobs.push(world.good_job().await);
    }
    jobs.insert(3, world.job(&broken).await);
    jobs.insert(7, world.job(&request(KeyFacts::P256, &["evil.example.net"])).await);
    jobs.insert(11, "j-none".to_owned());
    jobs.insert(13, alone);
    // Recorded by a call that was cut short.
    let half = signer(&world.directory, &world.pool, &world.clock);
    let authority = half.shared.authorities.get(&local()).await.unwrap();
    let mut cases = Case::read(&world.pool, vec![jobs[0].parse().unwrap()]).await.unwrap();
    let csr = cases.pop().unwrap().1.unwrap().judge().unwrap();
    let prepared = csr.prepare(&authority, &terms(), world.clock.now()).unwrap();
    let serial = prepared.entry.serial_number.clone();
    issue::record(&world.pool, vec![prepared], world.clock.now())
        .await
        .unwrap();

    let (status, answer) = world.call("/v1/issue-batch", json!({ "job_ids": jobs })).await;
    assert_eq!(status, 200, "{answer}");
    let outcomes = answer["outcomes"].as_array().unwrap();
    assert_eq!(outcomes.len(), jobs.len());
    let detail = |n: usize| {
        (
            outcomes[n]["refused"]["status"].as_i64(),
            outcomes[n]["refused"]["detail"].as_str(),
        )
    };
    let (status, why) = detail(3);
    assert!(status == Some(422) && why.unwrap().contains("signature"), "{why:?}");
    let (status, why) = detail(7);
    assert!(
        status == Some(422) && why.unwrap().contains("evil.example.net"),
        "{why:?}"
    );
    assert_eq!(detail(11), (Some(404), Some("there is no job j-none")));
    let issued = |n: usize| {
        let pem = outcomes[n]["issued"]["certificate_pem"].as_str().unwrap();
        CertificateFacts::parse_pem_chain(pem).unwrap().remove(0)
    };
    assert_eq!(issued(13), first);
    assert_eq!(issued(0).serial, serial);
    let good: Vec<usize> = (0..jobs.len()).filter(|n| ![3, 7, 11].contains(n)).collect();
    let serials: std::collections::BTreeSet<_> = good.iter().map(|n| issued(*n).serial).collect();
    assert_eq!(serials.len(), 21);
    for n in good {
        issued(n).verify_issued_by(&authority.certificate).unwrap();
        let request: Vec<u8> = sqlx::query_scalar("SELECT csr_der FROM jobs WHERE id = $1")
            .bind(&jobs[n])
            .fetch_one(&world.admin)
            .await
            .unwrap();
        assert_eq!(
            issued(n).spki_der,
            csr::spki_of_accepted(&request).unwrap(),
            "{}",
            jobs[n]
        );
    }
    let ledger: Vec<(i64, i64)> = sqlx::query_as("SELECT count(*), count(der) FROM ledger")
        .fetch_all(&world.pool)
        .await
        .unwrap();
    assert_eq!(ledger, [(21, 21)]);
    assert_eq!(
        world.call("/v1/issue-batch", json!({ "job_ids": jobs })).await.1,
        answer
    );

    let twice = json!({ "job_ids": [jobs[0], jobs[0]] });
    let (_, twice) = world.call("/v1/issue-batch", twice).await;
    assert_eq!(twice["outcomes"][0], outcomes[0]);
    assert_eq!(twice["outcomes"][1]["refused"]["status"], 400);
    let many: Vec<String> = (0..513).map(|n| format!("j-{n}")).collect();
    assert_eq!(world.call("/v1/issue-batch", json!({ "job_ids": many })).await.0, 400);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_job_that_spoils_what_is_done_for_all_is_refused_alone(options: PgPoolOptions, connect: PgConnectOptions) {
    let world = World::new(options, connect).await;
    let (good, bad) = (world.good_job().await, world.good_job().await);
    world
        .sql(
            "INSERT INTO issuers (id, name, type, config, created_at, updated_at)
             VALUES ('iss-bad', 'bad', 'local', '{\"validity_days\": \"many\"}', now(), now());
             UPDATE certificates SET issuer_id = 'iss-bad' WHERE id = 'mc-2'",
        )
        .await;
    let (_, answer) = world.call("/v1/issue-batch", json!({ "job_ids": [good, bad] })).await;
    assert!(answer["outcomes"][0]["issued"].is_object(), "{answer}");
    assert_eq!(answer["outcomes"][1]["refused"]["status"], 500, "{answer}");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_was_recorded_before_a_crash_is_signed_after_it(options: PgPoolOptions, connect: PgConnectOptions) {
    let world = World::new(options, connect).await;
    let job = world.good_job().await;
    let signer = signer(&world.directory, &world.pool, &world.clock);
    let authority = signer.shared.authorities.get(&local()).await.unwrap();
    let prepare = async |job: &str| {
        let mut cases = Case::read(&world.pool, vec![job.parse().unwrap()]).await.unwrap();
        let csr = cases.pop().unwrap().1.unwrap().judge().unwrap();
        csr.prepare(&authority, &terms(), world.clock.now()).unwrap()
    };
    let prepared = prepare(&job).await;
    let tbs = prepared.entry.tbs_der.clone();
    issue::record(&world.pool, vec![prepared], world.clock.now())
        .await
        .unwrap();

    // The job was called off while the signer was down: what is recorded stays unsigned.
    world.sql("UPDATE certificates SET archived_at = now()").await;
    assert_eq!(world.call("/v1/issue", json!({ "job_id": job })).await.0, 409);
    world.sql("UPDATE certificates SET archived_at = NULL").await;
    let (certificate, _) = world.issued(&job).await;
    assert!(certificate.der.windows(tbs.len()).any(|window| window == tbs));

    let late = world.good_job().await;
    let prepared = prepare(&late).await;
    issue::record(&world.pool, vec![prepared], world.clock.now())
        .await
        .unwrap();
    world.clock.advance(Duration::from_secs(91 * 86_400));
    let (status, body) = world.call("/v1/issue", json!({ "job_id": late })).await;
    assert_eq!(status, 409, "{body}");
    let entries = ledger::by_jobs(&world.pool, &[late.as_str()]).await.unwrap();
    assert_eq!(entries[0].der, None);
    // Nor is a signed one that has ended worth handing out.
    let (status, body) = world.call("/v1/issue", json!({ "job_id": job })).await;
    assert!(
        status == 409 && body["detail"].as_str().unwrap().ends_with("ask for another issuance"),
        "{status} {body}"
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_must_not_be_signed_is_refused_and_leaves_no_record(options: PgPoolOptions, connect: PgConnectOptions) {
    let world = World::new(options, connect).await;
    let good = request(KeyFacts::P256, &["api.example.com"]);
    let foreign = request(KeyFacts::P256, &["api.example.com", "evil.example.net"]);
    let mut broken = good.clone();
    *broken.last_mut().unwrap() ^= 1;
    let scratch = Scratch::new();
    scratch.openssl(
        "req -new -newkey rsa:1024 -nodes -keyout k.pem -subj /CN=api.example.com -outform DER -out short.der",
    );
    let short = fs::read(scratch.path("short.der")).unwrap();
    let profile = |set: &'static str| {
        format!(
            "INSERT INTO profiles (id, name, created_at, updated_at) VALUES ('p', 'p', now(), now());
             UPDATE certificates SET profile_id = 'p'; UPDATE profiles SET {set}"
        )
    };
    let sql = |text: &str| text.to_owned();
    let cases = [
        (
            &good,
            sql("UPDATE jobs SET status = 'AwaitingApproval'"),
            409,
            "running",
        ),
        (
            &good,
            sql("UPDATE jobs SET type = 'Validation'"),
            409,
            "issuances and renewals",
        ),
        (
            &good,
            sql("UPDATE certificates SET archived_at = now()"),
            409,
            "archived",
        ),
        (&good, sql("UPDATE issuers SET enabled = false"), 409, "disabled"),
        (
            &good,
            sql("UPDATE issuers SET enabled = true, type = 'acme'"),
            409,
            "only local issuers",
        ),
        (
            &good,
            sql("UPDATE issuers SET type = 'GenericCA'; UPDATE certificates SET common_name = 'a b'"),
            422,
            "a b",
        ),
        (&foreign, sql("SELECT 1"), 422, "evil.example.net"),
        (&broken, sql("SELECT 1"), 422, "signature"),
        (&short, sql("SELECT 1"), 422, "RSA of 1024 bits"),
        (&vec![1, 2, 3], sql("SELECT 1"), 422, "not a DER"),
        (&good, profile("enabled = false"), 422, "disabled"),
        (
            &good,
            profile("allowed_key_algorithms = '[{\"algorithm\": \"RSA\", \"min_size\": 2048}]'"),
            422,
            "RSA of at least",
        ),
        (
            &good,
            profile("required_san_patterns = '{.*\\.prod\\.example\\.com}'"),
            422,
            "pattern",
        ),
        (
            &good,
            profile("spiffe_uri_pattern = 'spiffe://example.org/.+'"),
            422,
            "SPIFFE",
        ),
    ];
    for (csr, change, status, why) in cases {
        let job = world.job(csr).await;
        sqlx::raw_sql(sqlx::AssertSqlSafe(change.clone()))
            .execute(&world.admin)
            .await
            .unwrap();
        let (found, body) = world.call("/v1/issue", json!({ "job_id": job })).await;
        assert!(
            found == status && body["detail"].as_str().unwrap().contains(why),
            "{change}: {found} {body}"
        );
        world
            .sql("DELETE FROM jobs; DELETE FROM certificates; DELETE FROM profiles")
            .await;
    }
    for (path, body, status) in [
        ("/v1/issue", json!({ "job_id": "j-none" }), 404),
        ("/v1/issue", json!({ "job_id": "j/../1" }), 400),
        ("/v1/issue", json!({}), 400),
        ("/v1/crl", json!({ "issuer_id": "iss-none" }), 404),
        (
            "/v1/ocsp",
            json!({ "questions": [{ "issuer_id": "iss-local", "request": "*" }] }),
            400,
        ),
        ("/v1/none", json!({}), 404),
    ] {
        let (found, problem) = world.call(path, body.clone()).await;
        assert_eq!(
            (found, problem["status"].as_u64()),
            (status, Some(status.into())),
            "{path} {body}"
        );
    }
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM ledger")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert_eq!(rows, 0);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_revoked_certificate_gets_no_other(options: PgPoolOptions, connect: PgConnectOptions) {
    let world = World::new(options, connect).await;
    let job = world.good_job().await;
    let version = "INSERT INTO certificate_versions (id, certificate_id, job_id, issuer_id, version, serial_number,
                       not_before, not_after, fingerprint_sha256, spki_sha256, cert_pem, chain_pem, csr_der,
                       key_algorithm, key_size, created_at)
                   VALUES ('cv-1', 'mc-1', 'j-0', 'iss-local', 1, '1', now(), now(), '', '', '', '', '', 'ECDSA', 256, now());
                   UPDATE certificates SET current_version_id = 'cv-1', not_after = now(), revoked_at = now(),
                                           revocation_reason = 'superseded'";
    world.sql(version).await;
    let (status, body) = world.call("/v1/issue", json!({ "job_id": job })).await;
    assert_eq!(
        (status, body["detail"].as_str()),
        (409, Some("certificate mc-1 is revoked; nothing more is issued for it"))
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn crls_are_numbered_and_keep_what_ended_for_one_period(options: PgPoolOptions, connect: PgConnectOptions) {
    let world = World::new(options, connect).await;
    let scratch = Scratch::new();
    let job = world.good_job().await;
    let (certificate, chain) = world.issued(&job).await;
    scratch.write("ca.pem", chain);
    scratch.write("leaf.pem", certificate.to_pem());
    let both = tokio::join!(world.crl(), world.crl());
    let mut numbers = [both.0.0, both.1.0];
    numbers.sort();
    assert_eq!(numbers, [1, 2]);
    world.revoke(&certificate, "keyCompromise").await;
    let (number, der) = world.crl().await;
    assert_eq!(number, 3);
    scratch.write("crl.pem", pem::encode("X509 CRL", &der));
    assert!(
        scratch
            .openssl("crl -in crl.pem -CAfile ca.pem -noout")
            .contains("verify OK")
    );
    let (content, text) = scratch.ask("verify -crl_check -CRLfile crl.pem -CAfile ca.pem leaf.pem");
    assert!(!content && text.contains("certificate revoked"), "{text}");

    let lists = async |der: Vec<u8>| {
        scratch.write("crl.der", der);
        let serial = certificate.serial.as_str().to_uppercase();
        scratch
            .openssl("crl -inform DER -in crl.der -noout -text")
            .contains(&serial)
    };
    world.clock.advance(Duration::from_secs(90 * 86_400 + 3600));
    assert!(lists(world.crl().await.1).await, "it ended an hour ago");
    world.clock.advance(Duration::from_secs(24 * 3600));
    assert!(!lists(world.crl().await.1).await, "it ended a day and an hour ago");
    let kept: Vec<i64> = sqlx::query_scalar("SELECT number FROM crls ORDER BY number")
        .fetch_all(&world.pool)
        .await
        .unwrap();
    assert_eq!(kept, [3, 4, 5]);
}

/// One question for a status.
fn question(issuer: &str, request: &[u8]) -> Value {
    json!({ "questions": [{ "issuer_id": issuer, "request": STANDARD.encode(request) }] })
}

/// `count` revocations of serial numbers that no one issued, in the shard.
async fn revoked(world: &World, count: i64, shard: i32) {
    world.good_job().await;
    sqlx::query(
        "INSERT INTO revocations (id, issuer_id, serial_number, certificate_id, reason, revoked_by, not_after,
                                  revoked_at, shard, invalidity_date)
         SELECT 'r-' || $2 || '-' || n, 'iss-local', ltrim(substr(encode(sha256(int8send(n * 2000 + $2)), 'hex'), 1, 40), '0'),
                'mc-1', (ARRAY['keyCompromise', 'superseded', 'unspecified', 'certificateHold'])[1 + n % 4], 'test',
                $3::timestamptz + interval '90 days', $3::timestamptz - n * interval '1 minute', $2,
                CASE WHEN n % 3 = 0 THEN $3::timestamptz - interval '2 years' END
           FROM generate_series(1, $1) n",
    )
    .bind(count)
    .bind(shard)
    .bind(world.clock.now())
    .execute(&world.admin)
    .await
    .unwrap();
}

/// The serial numbers of a CRL in their order, as openssl reads them, and that it verifies.
fn read(scratch: &Scratch, der: &[u8]) -> Vec<String> {
    scratch.write("list.der", der);
    assert!(
        scratch
            .openssl("crl -inform DER -in list.der -CAfile ca.pem -noout")
            .contains("verify OK")
    );
    let text = scratch.openssl("crl -inform DER -in list.der -noout -text");
    let serials = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Serial Number: "));
    serials
        .map(|serial| serial.to_lowercase().trim_start_matches('0').to_owned())
        .collect()
}

fn ascending(serials: &[String]) -> bool {
    serials.is_sorted_by(|a, b| (a.len(), a) < (b.len(), b))
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn large_and_small_lists_have_every_entry_once_in_order(options: PgPoolOptions, connect: PgConnectOptions) {
    let world = World::new(options, connect).await;
    let scratch = Scratch::new();
    let (_, chain) = world.issued(&world.good_job().await).await;
    scratch.write("ca.pem", chain);
    assert!(read(&scratch, &world.crl().await.1).is_empty());
    // Beyond what stays in memory: the chunks flow through another connection and are read back.
    for count in [1, 5_000, 200_000] {
        world.sql("DELETE FROM revocations").await;
        revoked(&world, count, 0).await;
        let (_, der) = world.crl().await;
        let serials = read(&scratch, &der);
        assert_eq!((serials.len() as i64, ascending(&serials)), (count, true));
    }
    let waiting: i64 =
        sqlx::query_scalar("SELECT (SELECT count(*) FROM crl_dirt) + (SELECT count(*) FROM crl_changes)")
            .fetch_one(&world.admin)
            .await
            .unwrap();
    assert_eq!(waiting, 0, "everything was told");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_shard_names_itself_and_has_its_own_entries_only(options: PgPoolOptions, connect: PgConnectOptions) {
    let world = World::new(options, connect).await;
    let scratch = Scratch::new();
    let (_, chain) = world.issued(&world.good_job().await).await;
    scratch.write("ca.pem", chain);
    world.sql("UPDATE issuers SET config = '{\"crl_shards\": 2}'").await;
    revoked(&world, 20, 1).await;
    revoked(&world, 30, 2).await;
    revoked(&world, 10, 0).await;
    for (shard, entries) in [(1, 20), (2, 30), (0, 60)] {
        let (number, der) = world.list(shard, false).await;
        assert_eq!(number, 1, "each list counts for itself");
        let serials = read(&scratch, &der);
        assert_eq!((serials.len(), ascending(&serials)), (entries, true), "{shard}");
        let text = scratch.openssl("crl -inform DER -in list.der -noout -text");
        let names_itself = text.contains("X509v3 Issuing Distribution Point: critical")
            && text.contains(&format!("URI:http://pki.example.com/crl/iss-local/{shard}.crl"));
        assert_eq!(names_itself, shard > 0, "{text}");
    }
    for (shard, delta, status) in [(3, false, 409), (0, true, 409), (-1, false, 400), (1, true, 400)] {
        let question = json!({ "issuer_id": "iss-local", "shard": shard, "delta": delta });
        assert_eq!(world.call("/v1/crl", question).await.0, status, "{shard} {delta}");
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_delta_tells_what_changed_since_the_full_crl(options: PgPoolOptions, connect: PgConnectOptions) {
    let world = World::new(options, connect).await;
    let scratch = Scratch::new();
    let (_, chain) = world.issued(&world.good_job().await).await;
    scratch.write("ca.pem", chain);
    world.sql("UPDATE issuers SET config = '{\"crl_delta\": true}'").await;
    revoked(&world, 8, 0).await;
    let (base, full) = world.crl().await;
    assert_eq!(read(&scratch, &full).len(), 8);
    let text = scratch.openssl("crl -inform DER -in list.der -noout -text");
    assert!(
        text.contains("X509v3 Freshest CRL") && text.contains("/crl/iss-local/delta.crl"),
        "{text}"
    );

    let (number, empty) = world.list(0, true).await;
    assert_eq!(
        (base, number),
        (1, 1),
        "issued together, they have one number (RFC 5280 §5.2.3)"
    );
    assert!(read(&scratch, &empty).is_empty());
    let dates = "SELECT count(DISTINCT this_update) FROM crls WHERE number = 1";
    let dates: i64 = sqlx::query_scalar(dates).fetch_one(&world.pool).await.unwrap();
    assert_eq!(dates, 1);
    // One hold is over, one revocation has another reason, one is new and already over, one is new.
    world
        .sql("UPDATE revocations SET released_at = now() WHERE id = 'r-0-3'; UPDATE revocations SET reason = 'keyCompromise' WHERE id = 'r-0-7'")
        .await;
    world
        .sql("INSERT INTO revocations (id, issuer_id, serial_number, certificate_id, reason, revoked_by, not_after, revoked_at)
              SELECT 'n-' || n, 'iss-local', n::text, 'mc-1', 'certificateHold', 'test', not_after, revoked_at
                FROM generate_series(1, 2) n, revocations WHERE id = 'r-0-1';
              UPDATE revocations SET released_at = now() WHERE id = 'n-1'")
        .await;
    for number in [2, 3] {
        let (numbered, der) = world.list(0, true).await;
        assert_eq!(numbered, number);
        let serials = read(&scratch, &der);
        assert_eq!(
            (serials.len(), ascending(&serials)),
            (4, true),
            "the same until there is another full CRL"
        );
        let text = scratch.openssl("crl -inform DER -in list.der -noout -text");
        assert!(
            text.contains("X509v3 Delta CRL Indicator: critical") && text.matches("Remove From CRL").count() == 2,
            "{text}"
        );
    }
    let (number, full) = world.crl().await;
    assert_eq!(
        (number, read(&scratch, &full).len()),
        (4, 8),
        "eight, without the released, with the new"
    );
    assert!(read(&scratch, &world.list(0, true).await.1).is_empty());
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn numbers_never_fall_though_the_database_is_older(options: PgPoolOptions, connect: PgConnectOptions) {
    let world = World::new(options, connect).await;
    world.issued(&world.good_job().await).await;
    for number in 1..=3 {
        assert_eq!(world.crl().await.0, number);
    }
    world.sql("DELETE FROM crls WHERE number > 1").await;
    assert_eq!(world.crl().await.0, 4);
    world.sql("DELETE FROM crls").await;
    assert_eq!(world.crl().await.0, 5);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_cannot_be_written_is_not_published_and_the_next_can_be(
    options: PgPoolOptions,
    connect: PgConnectOptions,
) {
    let world = World::new(options, connect).await;
    world.issued(&world.good_job().await).await;
    revoked(&world, 5_000, 0).await;
    assert_eq!(world.crl().await.0, 1);
    world
        .sql("UPDATE revocations SET serial_number = '0x' WHERE id = 'r-0-7'")
        .await;
    for _ in 0..3 {
        assert_eq!(world.call("/v1/crl", json!({ "issuer_id": "iss-local" })).await.0, 500);
    }
    let dirty: i64 = sqlx::query_scalar("SELECT count(*) FROM crl_dirt")
        .fetch_one(&world.admin)
        .await
        .unwrap();
    assert_eq!(dirty, 1, "it is still stale");
    world
        .sql("UPDATE revocations SET serial_number = '7' WHERE id = 'r-0-7'")
        .await;
    assert_eq!(world.crl().await.0, 2);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn ocsp_tells_good_revoked_and_unknown_and_openssl_believes_it(
    options: PgPoolOptions,
    connect: PgConnectOptions,
) {
    let world = World::new(options, connect).await;
    let scratch = Scratch::new();
    let job = world.good_job().await;
    let (certificate, chain) = world.issued(&job).await;
    scratch.write("ca.pem", &chain);
    scratch.write("leaf.pem", certificate.to_pem());
    let asked = |options: &str| {
        scratch.openssl(&format!("ocsp -issuer ca.pem -reqout req.der {options}"));
        fs::read(scratch.path("req.der")).unwrap()
    };
    let told = |response: &[u8], options: &str| {
        scratch.write("resp.der", response);
        let text = scratch.openssl(&format!(
            "ocsp -respin resp.der -issuer ca.pem -CAfile ca.pem {options}"
        ));
        assert!(text.contains("Response verify OK"), "{text}");
        text
    };
    for hash in ["-sha1", "-sha256", "-sha384", "-sha512"] {
        let (response, max_age) = world.ocsp(&asked(&format!("-no_nonce {hash} -cert leaf.pem"))).await;
        assert!(
            told(&response, &format!("-no_nonce {hash} -cert leaf.pem")).contains("leaf.pem: good"),
            "{hash}"
        );
        assert_eq!(max_age, 3600);
    }
    let (response, max_age) = world.ocsp(&asked("-nonce -cert leaf.pem -serial 0x1234")).await;
    assert_eq!(max_age, 0);
    let text = told(&response, "-reqin req.der -no_nonce -cert leaf.pem -serial 0x1234");
    assert!(
        text.contains("leaf.pem: good") && text.contains("0x1234: unknown"),
        "{text}"
    );
    assert!(!text.to_lowercase().contains("warning"), "{text}");

    world.revoke(&certificate, "keyCompromise").await;
    let (response, _) = world.ocsp(&asked("-no_nonce -cert leaf.pem")).await;
    let text = told(&response, "-no_nonce -cert leaf.pem");
    assert!(
        text.contains("leaf.pem: revoked") && text.contains("Reason: keyCompromise"),
        "{text}"
    );
    assert_eq!(
        wire::status_of(&response, &certificate.serial),
        Ok(CertStatus::Revoked {
            at: world.clock.now().whole_seconds(),
            reason: Some(RevocationReason::KeyCompromise)
        })
    );

    // Every certificate in the ledger was recorded before it was signed, the responder's too, and it is one.
    let rows: Vec<String> = sqlx::query_scalar("SELECT job_id FROM ledger ORDER BY recorded_at, job_id")
        .fetch_all(&world.pool)
        .await
        .unwrap();
    assert!(
        rows.len() == 2 && rows.iter().any(|row| row.starts_with("ocsp-responder:")),
        "{rows:?}"
    );
    world.clock.advance(Duration::from_secs(17 * 3600));
    world.ocsp(&asked("-no_nonce -cert leaf.pem")).await;
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM ledger")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert_eq!(rows, 3, "remade after two thirds of its life");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn ocsp_never_guesses(options: PgPoolOptions, connect: PgConnectOptions) {
    let world = World::new(options, connect).await;
    let job = world.good_job().await;
    let (certificate, chain) = world.issued(&job).await;
    let ca = CertificateFacts::parse_pem_chain(&chain).unwrap().remove(0);
    let request = |issuer: &[u8]| {
        let issuer = wire::IssuerId::of_certificate(issuer).unwrap();
        wire::request_for(&issuer, &certificate.serial, None)
    };
    let status = |response: &[u8]| wire::status_of(response, &certificate.serial);
    let (response, _) = world.ocsp(b"no request").await;
    assert_eq!(status(&response), Err(wire::OcspAnswerError::Status(1)));
    let (response, _) = world.ocsp(&request(&certificate.der)).await;
    assert_eq!(status(&response), Err(wire::OcspAnswerError::Status(6)));
    world.sql("UPDATE ledger SET der = NULL").await;
    let (response, _) = world.ocsp(&request(&ca.der)).await;
    assert_eq!(status(&response), Ok(CertStatus::Unknown), "recorded, but never signed");
    world.pool.close().await;
    let (response, max_age) = world.ocsp(&request(&ca.der)).await;
    assert_eq!((status(&response), max_age), (Err(wire::OcspAnswerError::Status(3)), 0));
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn ocsp_makes_no_root(options: PgPoolOptions, connect: PgConnectOptions) {
    let world = World::new(options, connect).await;
    let issuer = wire::IssuerId::of_certificate(&root().certificate.der).unwrap();
    let serial = root().certificate.serial.clone();
    let request = wire::request_for(&issuer, &serial, None);
    let (response, max_age) = world.ocsp(&request).await;
    let status = wire::status_of(&response, &serial);
    assert_eq!((status, max_age), (Err(wire::OcspAnswerError::Status(6)), 0));
    assert!(!world.directory.path().join("ca").exists());
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM authorities")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert_eq!(rows, 0);
    let (found, body) = world.call("/v1/ocsp", question("iss-none", &request)).await;
    assert_eq!((found, &body["answers"]), (200, &json!(["no_issuer"])));
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_failure_to_load_is_repeated_for_five_seconds_and_then_tried_again(
    options: PgPoolOptions,
    connect: PgConnectOptions,
) {
    let world = World::new(options, connect).await;
    let job = world.good_job().await;
    let (certificate, chain) = world.issued(&job).await;
    let ca = CertificateFacts::parse_pem_chain(&chain).unwrap().remove(0);
    let issuer = wire::IssuerId::of_certificate(&ca.der).unwrap();
    let request = wire::request_for(&issuer, &certificate.serial, None);
    let [place, away] = ["ca", "away"].map(|name| world.directory.path().join(name));
    fs::rename(&place, &away).unwrap();
    let world = World {
        router: signer(&world.directory, &world.pool, &world.clock).router(),
        ..world
    };
    let try_later = Err(wire::OcspAnswerError::Status(3));
    let status = async || wire::status_of(&world.ocsp(&request).await.0, &certificate.serial);
    assert_eq!(status().await, try_later);
    fs::remove_dir_all(&place).unwrap();
    fs::rename(&away, &place).unwrap();
    for (wait, said) in [(0, &try_later), (4, &try_later), (1, &Ok(CertStatus::Good))] {
        world.clock.advance(Duration::from_secs(wait));
        assert_eq!(status().await, *said, "{wait} seconds later");
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_signer_without_the_directory_makes_no_second_root(options: PgPoolOptions, connect: PgConnectOptions) {
    let world = World::new(options, connect).await;
    let job = world.good_job().await;
    let (_, chain) = world.issued(&job).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let lost = signer(&elsewhere, &world.pool, &world.clock);
    let error = lost.load().await.unwrap_err();
    assert!(
        format!("{error:#}").contains("restore the directory from a backup"),
        "{error:#}"
    );
    assert_eq!(lost.ready().failing().await, ["authority"]);
    let published: String = sqlx::query_scalar("SELECT chain_pem FROM authorities")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert_eq!(published, chain);
    let found = signer(&world.directory, &world.pool, &world.clock);
    found.load().await.unwrap();
    assert!(found.ready().failing().await.is_empty());
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn an_authority_brought_by_an_operator_may_be_renewed_and_not_exchanged(
    options: PgPoolOptions,
    connect: PgConnectOptions,
) {
    let world = World::new(options, connect).await;
    let scratch = Scratch::new();
    scratch.authority("-algorithm ED25519", &CA).unwrap();
    let (certificate, key) = (scratch.path("ca.pem"), scratch.path("ca.key"));
    // OpenSSL has its own clock, which goes on.
    world.clock.advance(Duration::from_secs(60));
    let signer = || {
        let [certificate, key] = [&certificate, &key].map(|path| path.to_str().unwrap());
        let config = Config::parse_from(["signer", "--ca-cert-path", certificate, "--ca-key-path", key]);
        Signer::with_pool(config, world.pool.clone(), world.clock.clone())
    };
    let published = async || {
        let der: Vec<u8> = sqlx::query_scalar("SELECT certificate_der FROM authorities")
            .fetch_one(&world.pool)
            .await
            .unwrap();
        CertificateFacts::parse_der(&der).unwrap().to_pem() == fs::read_to_string(&certificate).unwrap()
    };
    signer().unwrap().load().await.unwrap();
    assert!(published().await);
    scratch.openssl("req -x509 -new -key ca.key -out ca.pem -days 60 -config req.cnf");
    assert!(!published().await);
    signer().unwrap().load().await.unwrap();
    assert!(published().await);
    scratch.authority("-algorithm ED25519", &CA).unwrap();
    let error = signer().unwrap().load().await.unwrap_err();
    assert!(format!("{error:#}").contains("Add another issuer"), "{error:#}");
    assert!(!published().await);
    scratch.openssl("genpkey -algorithm ED25519 -out ca.key");
    assert!(signer().err().unwrap().to_string().contains("not of this key"));
}
