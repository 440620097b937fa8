//! A revocation, as others see it: openssl asks by OCSP and reads the CRL.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use certctl_tests::stage::Stage;
use certctl_tests::{eventually, openssl};
use tokio::time::Instant;
use url::form_urlencoded::byte_serialize;

/// What openssl says of a serial number that keyCompromise ended.
const REVOKED: [&str; 3] = ["Response verify OK", ": revoked", "Reason: keyCompromise"];

#[tokio::test]
async fn a_revocation_is_seen_by_ocsp_within_a_second_and_in_the_crl_within_a_minute() {
    let stage = Stage::set(|builder, _| builder).await;
    stage.demo_is_served().await;
    let api = stage.api().url().to_owned();
    let version = stage.versions("mc-demo").await.remove(0);
    let serial = version["serial_number"].as_str().unwrap();
    let leaf = stage.path("leaf.pem");
    fs::write(&leaf, version["cert_pem"].as_str().unwrap()).unwrap();
    let (ca, leaf) = (stage.path("ca.pem").display().to_string(), leaf.display().to_string());
    let ask = |serial: &str, more: &str| {
        format!("ocsp -issuer {ca} -CAfile {ca} -serial 0x{serial} -url {api}/ocsp/iss-local {more}")
    };

    // Before.
    let good = openssl(&ask(serial, "")).await.ok();
    assert!(good.contains("Response verify OK") && good.contains(": good"), "{good}");
    let crl = eventually("the first CRL", Duration::from_secs(20), async || {
        fetch_crl(&stage).await
    })
    .await;
    let verify = |crl: &str| format!("verify -crl_check -CAfile {ca} -CRLfile {crl} {leaf}");
    openssl(&verify(&crl)).await.ok();

    let revoked = Instant::now();
    stage
        .cli(&["revoke-cert", "mc-demo", "--reason", "keyCompromise"])
        .await
        .ok();
    eventually("OCSP to say so", Duration::from_secs(10), async || {
        let said = openssl(&ask(serial, "")).await.ok();
        ensure!(said.contains(": revoked"), "{said}");
        Ok(())
    })
    .await;
    let visible = revoked.elapsed();
    println!("OCSP says revoked {visible:?} after the command line was started");
    assert!(visible <= Duration::from_secs(1), "it took {visible:?}");

    // POST with and without a nonce.
    for nonce in ["", "-no_nonce"] {
        let said = openssl(&ask(serial, nonce)).await.ok();
        assert!(REVOKED.iter().all(|part| said.contains(part)), "{nonce}: {said}");
        assert!(!said.contains("no nonce in response"), "{said}");
    }

    // GET (RFC 6960 appendix A.1), with the request in base64, percent-encoded.
    for nonce in ["", "-no_nonce"] {
        let request = stage.path("request.der");
        let made = format!(
            "ocsp -issuer {ca} -serial 0x{serial} {nonce} -reqout {}",
            request.display()
        );
        openssl(&made).await.ok();
        let text = STANDARD.encode(fs::read(&request).unwrap());
        let escaped: String = byte_serialize(text.as_bytes()).collect();
        let response = stage
            .api()
            .download(&format!("/ocsp/iss-local/{escaped}"))
            .await
            .unwrap();
        let said = read_response(&stage, &ca, serial, &response).await;
        assert!(REVOKED.iter().all(|part| said.contains(part)), "{nonce}: {said}");
    }

    // Any spelling of the serial number.
    for spelling in [
        serial.to_owned(),
        serial.to_uppercase(),
        format!("00{serial}"),
        format!("000{}", serial.to_uppercase()),
    ] {
        let response = stage
            .api()
            .download(&format!("/api/v1/ocsp/iss-local/{spelling}"))
            .await
            .unwrap();
        let said = read_response(&stage, &ca, serial, &response).await;
        assert!(REVOKED.iter().all(|part| said.contains(part)), "{spelling}: {said}");
    }

    // Never issued.
    let never = "7bad5e71a1";
    let said = openssl(&ask(never, "")).await.ok();
    assert!(
        said.contains("Response verify OK") && said.contains(": unknown"),
        "{said}"
    );
    let response = stage
        .api()
        .download(&format!("/api/v1/ocsp/iss-local/{never}"))
        .await
        .unwrap();
    let said = read_response(&stage, &ca, never, &response).await;
    assert!(
        said.contains("Response verify OK") && said.contains(": unknown"),
        "{said}"
    );

    // The CRL.
    let crl = eventually("the serial in the CRL", Duration::from_secs(60), async || {
        let crl = fetch_crl(&stage).await?;
        let text = openssl(&format!("crl -in {crl} -noout -text")).await.ok();
        ensure!(text.contains(&serial.to_uppercase()), "{text}");
        ensure!(text.contains("Key Compromise"), "{text}");
        Ok(crl)
    })
    .await;
    let listed = revoked.elapsed();
    println!("the CRL lists it {listed:?} after the command line was started");
    assert!(listed <= Duration::from_secs(60), "it took {listed:?}");
    let refused = openssl(&verify(&crl)).await;
    assert!(
        !refused.success && refused.text.contains("certificate revoked"),
        "{}",
        refused.text
    );

    // It is over for this certificate.
    let renewal = stage.cli(&["renew-cert", "mc-demo"]).await;
    assert_eq!(renewal.code, Some(1), "{}", renewal.text);
    let renewal = stage
        .api()
        .post("/api/v1/certificates/mc-demo/renew", &serde_json::json!({}))
        .await;
    let refusal = format!("{:#}", renewal.unwrap_err());
    assert!(refusal.contains("409") && refusal.contains("revoked"), "{refusal}");
    let listed = stage.cli(&["list-certs"]).await.ok();
    let row = listed.lines().find(|line| line.contains("mc-demo")).expect(&listed);
    assert!(row.contains("Revoked"), "{row}");
}

/// Fetches the newest CRL, has openssl verify it, and returns the path of its PEM.
async fn fetch_crl(stage: &Stage) -> anyhow::Result<String> {
    let (der, pem, ca) = (
        stage.path("newest.crl"),
        stage.path("newest-crl.pem"),
        stage.path("ca.pem"),
    );
    fs::write(&der, stage.api().download("/crl/iss-local.crl").await?)?;
    let (der, pem) = (der.display(), pem.display().to_string());
    let said = openssl(&format!(
        "crl -inform DER -in {der} -CAfile {} -out {pem}",
        ca.display()
    ))
    .await
    .ok();
    said.contains("verify OK")
        .then_some(pem)
        .with_context(|| format!("openssl does not verify the CRL: {said}"))
}

/// Has openssl verify a response it did not ask for itself.
async fn read_response(stage: &Stage, ca: &str, serial: &str, response: &[u8]) -> String {
    let path = stage.path("response.der");
    fs::write(&path, response).unwrap();
    let read = format!(
        "ocsp -respin {} -issuer {ca} -CAfile {ca} -serial 0x{serial} -no_nonce",
        path.display()
    );
    openssl(&read).await.ok()
}
