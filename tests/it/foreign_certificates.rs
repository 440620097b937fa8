//! Certificates from elsewhere that break a rule or have names that are not issued here: the inventory holds them as they
//! are, and nothing that is served is replaced by less.

use std::process::Command;

use certctl_tests::world::{KEY, World};
use serde_json::{Value, json};
use sqlx::PgPool;
use tempfile::TempDir;

const P256: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];

fn openssl(folder: &TempDir, args: &[&str]) -> Vec<u8> {
    let output = Command::new("openssl")
        .args(args)
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// A self-signed certificate, PEM.
fn made(folder: &TempDir, key: &[&str], subject: &str, extensions: &[&str]) -> String {
    let mut args = vec![
        "req", "-x509", "-nodes", "-keyout", "key.pem", "-days", "60", "-subj", subject,
    ];
    args.extend(key);
    for extension in extensions {
        args.extend(["-addext", extension]);
    }
    String::from_utf8(openssl(folder, &args)).unwrap()
}

async fn import(w: &World, body: Value) -> Value {
    let result = w.post("/api/v1/certificates/import", body).await.expect(200);
    result["data"][0].clone()
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn certificates_that_break_the_standard_are_inventoried(db: PgPool) {
    let w = World::new(db).await;
    let folder = tempfile::tempdir().unwrap();
    openssl(&folder, &["dsaparam", "-out", "dsa.pem", "1024"]);
    let end_entity = "basicConstraints=CA:FALSE";
    let serial = |number| [P256, &["-set_serial", number]].concat();
    let long = format!("0x7f{}", "00".repeat(20));
    for (what, key, subject, extensions, serial_number, algorithm) in [
        (
            "CA:TRUE",
            P256.to_vec(),
            "/CN=ca-true.example.net",
            vec!["subjectAltName=DNS:ca-true.example.net"],
            None,
            "ECDSA",
        ),
        (
            "a negative serial",
            serial("-5"),
            "/CN=negative.example.net",
            vec![end_entity],
            Some("-5"),
            "ECDSA",
        ),
        (
            "21 octets of serial",
            serial(&long),
            "/CN=long.example.net",
            vec![end_entity],
            Some(&long[2..]),
            "ECDSA",
        ),
        (
            "a broken extension",
            P256.to_vec(),
            "/CN=broken.example.net",
            vec![end_entity, "2.5.29.31=DER:0500"],
            None,
            "ECDSA",
        ),
        (
            "a curve that is not issued",
            vec!["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:brainpoolP256r1"],
            "/CN=brainpool.example.net",
            vec![end_entity],
            None,
            "Other",
        ),
        (
            "DSA",
            vec!["-newkey", "dsa:dsa.pem"],
            "/CN=dsa.example.net",
            vec![end_entity],
            None,
            "DSA",
        ),
        (
            "RSASSA-PSS",
            vec!["-newkey", "rsa-pss", "-pkeyopt", "rsa_keygen_bits:2048"],
            "/CN=pss.example.net",
            vec![end_entity],
            None,
            "RSASSA-PSS",
        ),
    ] {
        let item = import(&w, json!({ "pem": made(&folder, &key, subject, &extensions) })).await;
        assert_eq!(
            (&item["outcome"], &item["common_name"]),
            (&json!("created"), &json!(subject[4..])),
            "{what}: {item}"
        );
        let id = item["certificate_id"].as_str().unwrap();
        let version = w.versions(id).await[0].clone();
        assert_eq!(version["key_algorithm"], algorithm, "{what}");
        if let Some(number) = serial_number {
            assert_eq!(version["serial_number"], *number, "{what}");
            assert_eq!(item["notes"].as_array().unwrap().len(), 1, "{what}: {item}");
        }
        w.get(&format!("/api/v1/certificates/{id}")).await.expect(200);
    }
    let list = w.get("/api/v1/certificates?per_page=100").await.expect(200);
    assert_eq!(list["total"], 7);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn names_that_cannot_be_certified_are_kept_and_block_the_renewal(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    let folder = tempfile::tempdir().unwrap();
    let names = "subjectAltName=DNS:a.example.net,DNS:b.example.net.,DNS:f*.example.net";
    let pem = made(
        &folder,
        P256,
        "/CN=a.example.net",
        &["basicConstraints=CA:FALSE", names],
    );
    let item = import(&w, json!({ "pem": pem, "target_ids": ["tgt-1"] })).await;
    assert_eq!(item["uncertifiable_names"], json!(["b.example.net.", "f*.example.net"]));
    assert_eq!(item["notes"].as_array().unwrap().len(), 1, "{item}");
    let id = item["certificate_id"].as_str().unwrap();
    let path = format!("/api/v1/certificates/{id}");
    w.settle().await;
    assert_eq!(w.versions(id).await.len(), 1);
    assert!(host.served("tgt-1").is_none());
    let certificate = w.get(&path).await.expect(200);
    assert_eq!(
        certificate["sans"],
        json!(["a.example.net", "b.example.net.", "f*.example.net"])
    );

    let refused = w.post(&format!("{path}/renew"), json!({})).await.expect(409);
    assert!(
        refused["detail"]
            .as_str()
            .unwrap()
            .contains("edit common_name and sans"),
        "{refused}"
    );
    let explained = w.get(&format!("{path}/explain")).await.expect(200);
    assert_eq!(explained["cause"], "UncertifiableNames");
    assert!(
        explained["summary"].as_str().unwrap().contains("f*.example.net"),
        "{explained}"
    );
    // Fields beside the names are edited as ever, also when the names are sent back as they are.
    w.put(&path, json!({ "environment": "prod", "sans": certificate["sans"] }))
        .await
        .expect(200);
    w.settle().await;
    assert_eq!(w.versions(id).await.len(), 1);

    w.put(
        &path,
        json!({ "sans": ["a.example.net", "b.example.net", "foo.example.net"] }),
    )
    .await
    .expect(200);
    w.settle().await;
    let served = host.served("tgt-1").unwrap();
    let names: Vec<String> = served.sans.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["a.example.net", "b.example.net", "foo.example.net"]);

    // What a renewal leaves out of the subject is reported.
    let subject = "/O=Example/CN=Build server 7";
    let pem = made(
        &folder,
        P256,
        subject,
        &["basicConstraints=CA:FALSE", "subjectAltName=DNS:c.example.net"],
    );
    let item = import(&w, json!({ "pem": pem })).await;
    let note = item["notes"][0].as_str().unwrap();
    assert!(
        note.contains("CN=Build server 7") && note.contains("O=Example") && note.ends_with("CN=c.example.net"),
        "{note}"
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn the_command_line_reports_names_that_keep_a_certificate_from_being_renewed(db: PgPool) {
    let w = World::new(db).await;
    let folder = tempfile::tempdir().unwrap();
    let pem = made(
        &folder,
        P256,
        "/CN=a.example.net",
        &[
            "basicConstraints=CA:FALSE",
            "subjectAltName=DNS:a.example.net,DNS:f*.example.net",
        ],
    );
    let file = folder.path().join("a.pem");
    std::fs::write(&file, pem).unwrap();
    let ran = certctl_tests::stage::cli(&w.url, KEY, &["import", file.to_str().unwrap()]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.text.contains("cannot be certified: f*.example.net"), "{ran:?}");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_certificate_without_any_certifiable_name_is_inventoried(db: PgPool) {
    let w = World::new(db).await;
    let folder = tempfile::tempdir().unwrap();
    for (name, shown) in [
        ("DNS:f*.example.net", "f*.example.net"),
        ("DNS:dot.example.net.", "dot.example.net."),
    ] {
        let extensions = ["basicConstraints=CA:FALSE", &format!("subjectAltName={name}")];
        let item = import(&w, json!({ "pem": made(&folder, P256, "/", &extensions) })).await;
        assert_eq!(
            (&item["outcome"], &item["common_name"]),
            (&json!("created"), &json!(shown)),
            "{item}"
        );
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn base64_with_line_breaks_and_files_with_byte_order_marks_are_read(db: PgPool) {
    let w = World::new(db).await;
    let folder = tempfile::tempdir().unwrap();
    let made = |name: &str| {
        let pem = made(&folder, P256, &format!("/CN={name}"), &["basicConstraints=CA:FALSE"]);
        let base64: String = pem
            .lines()
            .filter(|line| !line.starts_with("-----"))
            .collect::<Vec<_>>()
            .join("\r\n");
        (pem, base64)
    };
    let item = import(&w, json!({ "der_base64": made("a.example.net").1 })).await;
    assert_eq!(item["outcome"], "created");
    let (b, c) = (made("b.example.net").0, made("c.example.net").0);
    let glued = format!("\u{feff}{}{c}", b.trim_end());
    let result = w
        .post("/api/v1/certificates/import", json!({ "pem": glued }))
        .await
        .expect(200);
    assert_eq!(result["created"], 2);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_certificate_with_more_names_than_are_issued_can_be_edited(db: PgPool) {
    let w = World::new(db).await;
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..120).map(|n| format!("DNS:n{n}.example.net")).collect();
    let names = format!("subjectAltName={}", names.join(","));
    let pem = made(
        &folder,
        P256,
        "/CN=n0.example.net",
        &["basicConstraints=CA:FALSE", &names],
    );
    let item = import(&w, json!({ "pem": pem })).await;
    let path = format!("/api/v1/certificates/{}", item["certificate_id"].as_str().unwrap());
    let mut certificate = w.get(&path).await.expect(200);
    certificate["environment"] = json!("prod");
    let edited = w.put(&path, certificate).await.expect(200);
    assert_eq!(
        (&edited["environment"], edited["sans"].as_array().unwrap().len()),
        (&json!("prod"), 120)
    );
}
