//! Hostile and odd input of relying parties and agents: certification requests, OCSP requests, serial numbers. Every row
//! of a table has the outcome that is defined for it.

use std::sync::Arc;

use aws_lc_rs::digest;
use certctl_contract::catalogue;
use certctl_tests::{
    requests::{self, Crafted, alternative_names, der, extension},
    stage,
    world::{Answer, Host, KEY, World},
};
use certctl_x509::{
    facts::CertificateFacts,
    ocsp::{self, CertStatus, Hash},
};
use http::Method;
use serde_json::json;
use sqlx::PgPool;

const DNS: u8 = 2;
const IP: u8 = 7;

/// Two certificates whose requests are awaited.
async fn waiting(db: PgPool) -> (World, Arc<Host>) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    host.set_away(true);
    for id in ["1", "2", "3", "4"] {
        w.target(&format!("tgt-{id}"), &host).await;
        let more = match id {
            "1" => json!({}),
            _ => json!({ "common_name": "xn--bcher-kva.example.net", "name": id, "sans": ["10.0.0.7"] }),
        };
        w.certificate(&format!("mc-{id}"), &[&format!("tgt-{id}")], more).await;
    }
    w.settle().await;
    (w, host)
}

async fn submit(w: &World, host: &Host, certificate: &str, csr: &str) -> Answer {
    let path = format!("/api/v1/agents/{}/csr", host.id());
    let body = json!({ "csr_pem": csr, "certificate_id": certificate });
    w.raw(Method::POST, &path, Some(&host.key()), body.to_string()).await
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn odd_certification_requests_are_refused_for_what_is_wrong_with_them(db: PgPool) {
    let (w, host) = waiting(db).await;
    let before = w.contents().await;
    let name = "mc-1.example.net";
    let asks = |names: &[(u8, &[u8])]| Crafted::new(name, vec![alternative_names(names)]);
    let own = || alternative_names(&[(DNS, name.as_bytes())]);
    let usage = || extension(&[0x55, 0x1d, 0x0f], &[3, 2, 7, 0x80]);
    let many = |count: usize| {
        let names: Vec<_> = (0..count).map(|n| format!("n{n}.example.net")).collect();
        let names: Vec<_> = names.iter().map(|name| (DNS, name.as_bytes())).collect();
        asks(&names).pem()
    };
    let with_key = |spki: Vec<u8>| Crafted {
        spki: Some(spki),
        ..Crafted::new(name, vec![own()])
    };
    // Whoever knows that the exponent is 1 signs anything: the signature is the padded digest itself (RFC 8017 §9.2).
    let exponent_one = with_key(requests::rsa_key(&[&[0, 0xc1][..], &[1; 255]].concat(), &[1])).signed(
        |_, message| {
            let digest = digest::digest(&digest::SHA256, message);
            let info = [
                &[
                    0x30, 0x31, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0, 4, 0x20,
                ][..],
                digest.as_ref(),
            ]
            .concat();
            [&[0, 1][..], &vec![0xff; 256 - 3 - info.len()], &[0], &info].concat()
        },
        &[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11, 5, 0],
    );
    let (unprocessable, too_large) = ((422, "invalid"), (413, "too-large"));
    for (what, csr, (status, kind), word) in [
        (
            "a bad signature",
            requests::with_bad_signature(name),
            unprocessable,
            "signature",
        ),
        (
            "names twice",
            Crafted::new(name, vec![own(), own()]).pem(),
            unprocessable,
            "twice",
        ),
        (
            "usages twice",
            Crafted::new(name, vec![own(), usage(), usage()]).pem(),
            unprocessable,
            "twice",
        ),
        ("100,000 names", many(100_000), too_large, "1048576"),
        ("10,000 names", many(10_000), unprocessable, "65536"),
        ("2,000 names", many(2_000), unprocessable, "n0.example.net"),
        (
            "a name beyond ASCII",
            asks(&[(DNS, "bücher.example.net".as_bytes())]).pem(),
            unprocessable,
            "csr_pem",
        ),
        (
            "a wildcard in the middle",
            asks(&[(DNS, b"a.*.example.net")]).pem(),
            unprocessable,
            "whole first label",
        ),
        (
            "a wildcard within a label",
            asks(&[(DNS, b"a*.example.net")]).pem(),
            unprocessable,
            "whole first label",
        ),
        (
            "a wildcard alone",
            asks(&[(DNS, b"*")]).pem(),
            unprocessable,
            "whole first label",
        ),
        (
            "a foreign address as a DNS name",
            asks(&[(DNS, b"10.0.0.7")]).pem(),
            unprocessable,
            "10.0.0.7",
        ),
        (
            "a foreign address",
            asks(&[(IP, &[10, 0, 0, 7])]).pem(),
            unprocessable,
            "10.0.0.7",
        ),
        (
            "an address of five octets",
            asks(&[(IP, &[10, 0, 0, 7, 1])]).pem(),
            unprocessable,
            "csr_pem",
        ),
        (
            "a name of no octets",
            asks(&[(DNS, b"")]).pem(),
            unprocessable,
            "csr_pem",
        ),
        (
            "a directory name",
            asks(&[(0x24, &[0x30, 0])]).pem(),
            unprocessable,
            "only DNS names",
        ),
        ("no names in the extension", asks(&[]).pem(), unprocessable, "csr_pem"),
        (
            "a common name of 65 characters",
            Crafted::new(&"a".repeat(65), vec![own()]).pem(),
            unprocessable,
            "aaaa",
        ),
        ("an RSA exponent of 1", exponent_one, unprocessable, "exponent"),
        (
            "a negative modulus",
            with_key(requests::rsa_key(&[0xc1; 256], &[1, 0, 1])).pem(),
            unprocessable,
            "positive",
        ),
        (
            "an even modulus",
            with_key(requests::rsa_key(&[&[0, 0xc1][..], &[2; 255]].concat(), &[1, 0, 1])).pem(),
            unprocessable,
            "odd",
        ),
        (
            "a modulus of 16,384 bits",
            with_key(requests::rsa_key(&[&[0, 0xc1][..], &[1; 2047]].concat(), &[1, 0, 1])).pem(),
            unprocessable,
            "8192",
        ),
        (
            "a point of P-384 under the name of P-256",
            with_key(requests::p256(&[&[4][..], &[7; 96]].concat())).pem(),
            unprocessable,
            "signature",
        ),
        (
            "a point that is not on its curve",
            with_key(requests::p256(&[&[4][..], &[7; 64]].concat())).pem(),
            unprocessable,
            "signature",
        ),
        (
            "an ECDSA key that signs as an RSA key",
            Crafted::new(name, vec![own()]).signed(
                |_, _| vec![1; 256],
                &[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11, 5, 0],
            ),
            unprocessable,
            "does not go with",
        ),
        (
            "another version",
            Crafted {
                version: 1,
                ..Crafted::new(name, vec![own()])
            }
            .pem(),
            unprocessable,
            "PKCS #10",
        ),
    ] {
        let answer = submit(&w, &host, "mc-1", &csr).await;
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        let problem = answer.problem();
        assert_eq!(
            (problem.status, problem.kind.rsplit(':').next()),
            (status, Some(kind)),
            "{what}: {answer:?}"
        );
        let said = format!("{} {:?}", problem.detail, problem.errors);
        assert!(said.contains(word), "{what}: \"{word}\" is not named: {answer:?}");
        assert_eq!(w.contents().await, before, "{what}");
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn requests_that_other_software_reads_are_accepted(db: PgPool) {
    let (w, host) = waiting(db).await;
    let name = "mc-1.example.net";
    // DirectoryString has five types (RFC 5280 §4.1.2.4).
    let common_name_of_type = |tag: u8, text: &[u8]| Crafted {
        subject: der(
            0x30,
            &[&der(0x31, &[&der(0x30, &[&[6, 3, 0x55, 4, 3], &*der(tag, &[text])])])],
        ),
        ..Crafted::new(name, vec![])
    };
    let bmp: Vec<u8> = name.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let universal: Vec<u8> = name.bytes().flat_map(|byte| u32::from(byte).to_be_bytes()).collect();
    let without_attributes = Crafted {
        attributes: false,
        ..Crafted::new(name, vec![])
    };
    for (what, csr) in [
        ("BMPString", common_name_of_type(0x1e, &bmp).pem()),
        ("UniversalString", common_name_of_type(0x1c, &universal).pem()),
        ("TeletexString", common_name_of_type(0x14, name.as_bytes()).pem()),
        ("no attributes", without_attributes.pem()),
        (
            "a byte order mark",
            format!("\u{feff}{}", Crafted::new(name, vec![]).pem()),
        ),
    ] {
        let answer = submit(&w, &host, "mc-1", &csr).await;
        assert_eq!(answer.status, 202, "{what}: {answer:?}");
        w.settle().await;
        let version = w.versions("mc-1").await[0].clone();
        assert!(version["csr_pem"].as_str().unwrap().len() > 100, "{what}: {version}");
        w.post("/api/v1/certificates/mc-1/renew", json!({})).await.expect(202);
        w.settle().await;
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn odd_certification_requests_that_ask_for_nothing_more_are_signed_by_the_record(db: PgPool) {
    let (w, host) = waiting(db).await;
    let a_label = "xn--bcher-kva.example.net";
    let empty = |extensions| Crafted {
        subject: der(0x30, &[]),
        ..Crafted::new("", extensions)
    };
    for (certificate, csr) in [
        // An empty subject, and no names at all: the record has them.
        ("mc-1", empty(vec![])),
        // An address as a DNS name is an address; an A-label is a DNS name.
        (
            "mc-2",
            empty(vec![alternative_names(&[
                (DNS, b"10.0.0.7"),
                (DNS, a_label.as_bytes()),
            ])]),
        ),
        (
            "mc-3",
            Crafted::new(a_label, vec![alternative_names(&[(IP, &[10, 0, 0, 7])])]),
        ),
        // What else it asks for, CA:TRUE here, is not heard.
        (
            "mc-4",
            Crafted::new(a_label, vec![extension(&[0x55, 0x1d, 0x13], &[0x30, 3, 1, 1, 0xff])]),
        ),
    ] {
        submit(&w, &host, certificate, &csr.pem()).await.expect(202);
        w.settle().await;
        let version = w.versions(certificate).await.remove(0);
        let leaf = CertificateFacts::parse_pem_chain(version["cert_pem"].as_str().unwrap())
            .unwrap()
            .remove(0);
        let names: Vec<_> = leaf.sans.iter().map(ToString::to_string).collect();
        let (common_name, all) = match certificate {
            "mc-1" => ("mc-1.example.net", vec!["mc-1.example.net"]),
            _ => (a_label, vec![a_label, "10.0.0.7"]),
        };
        assert_eq!(
            (leaf.common_name.as_deref(), names),
            (Some(common_name), all.iter().map(ToString::to_string).collect())
        );
        assert!(
            leaf.sans
                .iter()
                .skip(1)
                .all(|san| matches!(san, certctl_model::name::San::Ip(_)))
        );
        assert!(!leaf.is_ca, "{certificate}");
    }
}

/// A request of these parts, each DER, with more behind the list of CertIDs.
fn ocsp_request(requests: &[Vec<u8>], more: &[u8]) -> Vec<u8> {
    der(0x30, &[&der(0x30, &[&der(0x30, &[&requests.concat()]), more])])
}

fn single(cert_id: &[u8]) -> Vec<u8> {
    der(0x30, &[cert_id])
}

/// requestExtensions with one in it.
fn ocsp_extension(content: &[u8]) -> Vec<u8> {
    der(0xa2, &[&der(0x30, &[&der(0x30, &[content])])])
}

const NONCE: &[u8] = &[6, 9, 0x2b, 6, 1, 5, 5, 7, 0x30, 1, 2];

fn nonce(length: usize) -> Vec<u8> {
    ocsp_extension(&[NONCE, &der(4, &[&der(4, &[&vec![9; length]])])].concat())
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn odd_ocsp_requests_get_the_answer_that_is_defined_for_them(db: PgPool) {
    let w = World::new(db).await;
    let ca = w.get("/ca/iss-local.crt").await;
    let issuer = ocsp::IssuerId::of_certificate(&ca.octets).unwrap();
    let serial = |text: &str| text.parse::<certctl_model::serial::Serial>().unwrap();
    let named = |hash, text: &str| rasn::der::encode(&issuer.cert_id(hash, &serial(text))).unwrap();
    let one = || single(&named(Hash::Sha1, "77"));
    // A CertID of the right issuer, with an INTEGER of any content.
    let hashes = |hash: &digest::Digest| der(4, &[hash.as_ref()]);
    let sha1 = |octets: &[u8]| digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, octets);
    let own = CertificateFacts::parse_der(&ca.octets).unwrap();
    let key_hash = own
        .subject_key_id
        .clone()
        .expect("method 1 of RFC 5280 §4.2.1.2: the hash of CertIDs");
    let cert_id = |algorithm: &[u8], integer: &[u8]| {
        single(&der(
            0x30,
            &[
                &der(0x30, &[algorithm, &[5, 0]]),
                &hashes(&sha1(&own.subject_der)),
                &der(4, &[&key_hash]),
                &der(2, &[integer]),
            ],
        ))
    };
    let sha1_oid = &[6, 5, 0x2b, 0x0e, 3, 2, 0x1a][..];
    let unknown_hash = &[6, 5, 0x2b, 0x0e, 3, 2, 0x1b][..];
    let foreign = ocsp::IssuerId::new(b"another", b"issuer");
    let foreign = single(&rasn::der::encode(&foreign.cert_id(Hash::Sha1, &serial("77"))).unwrap());
    let critical = ocsp_extension(&[&[6, 3, 0x2a, 3, 4][..], &[1, 1, 0xff], &[4, 2, 5, 0]].concat());
    let not_critical = ocsp_extension(&[&[6, 3, 0x2a, 3, 4][..], &[4, 2, 5, 0]].concat());
    let indefinite = [&[0x30, 0x80][..], &ocsp_request(&[one()], &[])[2..], &[0, 0]].concat();
    let (malformed, unauthorized) = (Err(1), Err(6));
    let unknown = |count| Ok((count, None));
    for (what, request, answer) in [
        ("nothing", vec![], malformed),
        ("noise", vec![0x30; 500], malformed),
        ("no CertID", ocsp_request(&[], &[]), malformed),
        ("16 CertIDs", ocsp_request(&vec![one(); 16], &[]), unknown(16)),
        ("17 CertIDs", ocsp_request(&vec![one(); 17], &[]), unauthorized),
        ("800 CertIDs", ocsp_request(&vec![one(); 800], &[]), unauthorized),
        ("10,000 CertIDs", ocsp_request(&vec![one(); 10_000], &[]), malformed),
        (
            "SHA-256",
            ocsp_request(&[single(&named(Hash::Sha256, "77"))], &[]),
            unknown(1),
        ),
        (
            "SHA-512",
            ocsp_request(&[single(&named(Hash::Sha512, "77"))], &[]),
            unknown(1),
        ),
        (
            "an unknown digest",
            ocsp_request(&[cert_id(unknown_hash, &[0x77])], &[]),
            unauthorized,
        ),
        (
            "another issuer",
            ocsp_request(std::slice::from_ref(&foreign), &[]),
            unauthorized,
        ),
        ("another issuer too", ocsp_request(&[one(), foreign], &[]), unauthorized),
        (
            "a negative serial",
            ocsp_request(&[cert_id(sha1_oid, &[0x80])], &[]),
            unknown(1),
        ),
        (
            "a serial of 21 octets",
            ocsp_request(&[cert_id(sha1_oid, &[7; 21])], &[]),
            unknown(1),
        ),
        (
            "a serial of 5,000 octets",
            ocsp_request(&[cert_id(sha1_oid, &[7; 5000])], &[]),
            unknown(1),
        ),
        (
            "a serial of no octets",
            ocsp_request(&[cert_id(sha1_oid, &[])], &[]),
            malformed,
        ),
        (
            "a nonce of 1 octet",
            ocsp_request(&[one()], &nonce(1)),
            Ok((1, Some(1))),
        ),
        (
            "a nonce of 128 octets",
            ocsp_request(&[one()], &nonce(128)),
            Ok((1, Some(128))),
        ),
        ("a nonce of no octets", ocsp_request(&[one()], &nonce(0)), malformed),
        ("a nonce of 129 octets", ocsp_request(&[one()], &nonce(129)), malformed),
        (
            "a nonce of 60,000 octets",
            ocsp_request(&[one()], &nonce(60_000)),
            malformed,
        ),
        (
            "a nonce of 100,000 octets",
            ocsp_request(&[one()], &nonce(100_000)),
            malformed,
        ),
        (
            "a nonce without its wrapping",
            ocsp_request(&[one()], &ocsp_extension(&[NONCE, &der(4, &[&[9; 16]])].concat())),
            malformed,
        ),
        (
            "two nonces",
            ocsp_request(
                &[one()],
                &der(
                    0xa2,
                    &[&der(
                        0x30,
                        &[
                            &der(0x30, &[NONCE, &der(4, &[&[4, 1, 9]])]),
                            &der(0x30, &[NONCE, &der(4, &[&[4, 1, 8]])]),
                        ],
                    )],
                ),
            ),
            malformed,
        ),
        (
            "an extension few know",
            ocsp_request(&[one()], &not_critical),
            unknown(1),
        ),
        (
            "a critical extension nobody knows",
            ocsp_request(&[one()], &critical),
            malformed,
        ),
        (
            "trailing octets",
            [ocsp_request(&[one()], &[]), vec![0]].concat(),
            malformed,
        ),
        ("half of it", ocsp_request(&[one()], &[])[..40].to_vec(), malformed),
        ("an indefinite length", indefinite, malformed),
        (
            "version 2",
            der(0x30, &[&der(0x30, &[&[0xa0, 3, 2, 1, 1], &*der(0x30, &[&one()])])]),
            malformed,
        ),
        (
            "a signature that nobody checks",
            der(
                0x30,
                &[
                    &der(0x30, &[&der(0x30, &[&one()])]),
                    &der(
                        0xa0,
                        &[&der(0x30, &[&der(0x30, &[&[6, 3, 0x2b, 0x65, 0x70]]), &[3, 2, 0, 1]])],
                    ),
                ],
            ),
            unknown(1),
        ),
    ] {
        let got = w.raw(Method::POST, "/ocsp/iss-local", None, request).await;
        assert_eq!(
            (got.status, got.header("content-type")),
            (200, "application/ocsp-response"),
            "{what}: {got:?}"
        );
        match answer {
            Err(status) => assert_eq!(got.octets, [0x30, 3, 0x0a, 1, status], "{what}"),
            Ok((count, nonce)) => {
                let basic = basic(&got.octets);
                let data = basic.tbs_response_data;
                assert_eq!(data.responses.len(), count, "{what}");
                let is_unknown = |status: &rasn_ocsp::CertStatus| matches!(status, rasn_ocsp::CertStatus::Unknown(()));
                assert!(data.responses.iter().all(|one| is_unknown(&one.cert_status)), "{what}");
                let echoed = data.response_extensions.map(|all| all[0].extn_value.len());
                assert_eq!(
                    echoed.map(|length| if length > 129 { length - 3 } else { length - 2 }),
                    nonce,
                    "{what}"
                );
            }
        }
    }
    // And an ordinary one is still answered.
    let good = ocsp::request_for(&issuer, &serial("77"), None);
    let got = w.raw(Method::POST, "/ocsp/iss-local", None, good).await;
    assert_eq!(ocsp::status_of(&got.octets, &serial("77")), Ok(CertStatus::Unknown));
}

fn basic(response: &[u8]) -> rasn_ocsp::BasicOcspResponse {
    let response: rasn_ocsp::OcspResponse = rasn::der::decode(response).unwrap();
    rasn::der::decode(&response.bytes.expect("a basic response").response).unwrap()
}

/// Texts of serial numbers, and whether each is one.
fn serials() -> Vec<(String, bool)> {
    let yes = ["77", "0077", "AB", "5f:3a", "5F:3A", "0", "00:00"].map(str::to_owned);
    let no = [
        "-1", "-0x5f", "0x5f", "5f 3a", "5g", ":", "٣", "5f\u{0}", "1e400000", "+5f", "5f.0",
    ]
    .map(str::to_owned);
    let more = [
        ("f".repeat(40), true),
        ("0".repeat(128), true),
        ("f".repeat(41), false),
        ("f".repeat(65), false),
        ("0".repeat(129), false),
        ("f".repeat(4000), false),
    ];
    let mut all: Vec<_> = yes.into_iter().map(|text| (text, true)).collect();
    all.extend(no.into_iter().map(|text| (text.clone(), text == "1e400000")));
    all.extend(more);
    all
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn serial_numbers_are_read_in_any_spelling_and_refused_otherwise_wherever_they_are_taken(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], json!({})).await;
    w.settle().await;
    w.get("/api/v1/ocsp/iss-local/01").await;
    let before = w.contents().await;
    let mut takers = vec![];
    for operation in catalogue() {
        let params = [(operation.path_params)(), (operation.query_params)()].concat();
        if let Some(param) = params.iter().find(|param| param.name.contains("serial")) {
            takers.push((operation.id(), param.name));
        }
    }
    takers.sort();
    assert_eq!(
        takers,
        [
            ("list_certificate_versions".to_owned(), "serial_number"),
            ("ocsp_check".to_owned(), "serial")
        ],
        "an operation that takes a serial number is tried below"
    );
    let escaped = |text: &str| -> String { url::form_urlencoded::byte_serialize(text.as_bytes()).collect() };
    for (text, is_one) in serials() {
        let shown = &text[..text.len().min(70)];
        let path = format!("/api/v1/ocsp/iss-local/{}", escaped(&text).replace('+', "%20"));
        let answer = w.raw(Method::GET, &path, None, "").await;
        match is_one {
            true => {
                assert_eq!(answer.status, 200, "{shown}: {answer:?}");
                let serial = text.parse().unwrap();
                assert_eq!(
                    ocsp::status_of(&answer.octets, &serial),
                    Ok(CertStatus::Unknown),
                    "{shown}"
                );
            }
            false => {
                let problem = answer.problem();
                assert_eq!((problem.status, problem.errors.len()), (400, 1), "{shown}: {answer:?}");
                assert_eq!(problem.errors[0].field, "serial");
            }
        }
        let path = format!("/api/v1/certificates/mc-1/versions?serial_number={}", escaped(&text));
        let answer = w.get(&path).await;
        match is_one {
            true => assert_eq!(answer.expect(200)["total"], 0, "{shown}"),
            false => {
                let problem = answer.problem();
                assert_eq!((problem.status, problem.errors.len()), (400, 1), "{shown}: {answer:?}");
                assert_eq!(problem.errors[0].field, "serial_number");
            }
        }
        // A search is for any text of its length.
        let text = text.replace('\0', "");
        let status = if (3..=255).contains(&text.chars().count()) {
            200
        } else {
            400
        };
        let answer = w.get(&format!("/api/v1/certificates?q={}", escaped(&text))).await;
        assert_eq!(answer.status, status, "{shown}: {answer:?}");
        // NUL ends what a program can be told.
        if !shown.contains('\0') {
            let told = json!({ "issuer_id": "iss-local", "serial": text }).to_string();
            let file = tempfile::NamedTempFile::new().unwrap();
            let output = file.path().to_str().unwrap();
            let ran = stage::cli(
                &w.url,
                KEY,
                &["--output", output, "call", "ocsp_check", "--json", &told],
            )
            .await;
            assert_eq!(ran.success, is_one, "{shown}: {}", ran.text);
            assert!(is_one || ran.text.contains("serial"), "{shown}: {}", ran.text);
        }
    }
    assert_eq!(w.contents().await, before);
}
