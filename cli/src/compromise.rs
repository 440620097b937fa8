//! Showing that a private key is known: the signature that revokes what has it.

use std::{fs, path::PathBuf};

use certctl_contract::{
    endpoint::NoBody,
    key_compromise::{GetKeyChallenge, KeyProof, ReportKeyCompromise, signed_octets},
    query::NoParams,
};
use certctl_x509::keys::{self, KeyPair};
use clap::{Arg, ArgGroup, ArgMatches, Command, value_parser};
use serde_json::json;

use crate::{commands::Session, failure::Failure, output};

/// The command.
pub(crate) fn command() -> Command {
    let path = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help(help)
    };
    Command::new("prove-key-compromise")
        .about("Revoke a certificate, and all else that has its key, by a signature of its private key")
        .long_about(
            "Revoke a certificate, and all else that has its key, by a signature of its private key.\n\nWhoever has the \
             key may do so; no API key is needed. The key is read from the file, signs a challenge of the server, and is \
             not sent. It is blocked from then on.",
        )
        .args([
            path("key", "The private key, PEM").required(true),
            path("certificate", "The certificate, PEM").conflicts_with_all(["issuer", "serial"]),
            Arg::new("issuer").long("issuer").value_name("ID").requires("serial").help("Its issuer"),
            Arg::new("serial").long("serial").value_name("HEX").requires("issuer").help("Its serial number"),
        ])
        .group(ArgGroup::new("which").args(["certificate", "serial"]).required(true))
}

/// Signs and reports.
pub(crate) async fn run(session: &Session, matches: &ArgMatches) -> Result<(), Failure> {
    let read = |name: &str| match matches.get_one::<PathBuf>(name) {
        None => Ok(None),
        Some(path) => fs::read_to_string(path)
            .map(Some)
            .map_err(|e| Failure::Usage(format!("{}: {e}", path.display()))),
    };
    let parsed = |name: &str| matches.get_one::<String>(name).cloned();
    let text = read("key")?.unwrap_or_default();
    let key = KeyPair::from_pem(&text, None).map_err(|e| Failure::Usage(format!("the key: {e}")))?;
    let given = session
        .client
        .call::<GetKeyChallenge>(NoParams, NoParams, NoBody)
        .await?;
    let octets = signed_octets(&given.challenge, &keys::fingerprint(key.spki_der()));
    let signature = key
        .sign(&octets)
        .map_err(|e| Failure::Failed(format!("the key: {e}")))?;
    let unreadable = |name: &str, why: String| Failure::Usage(format!("--{name}: {why}"));
    let proof = KeyProof {
        certificate_pem: read("certificate")?,
        issuer_id: match parsed("issuer") {
            Some(id) => Some(id.parse().map_err(|e| unreadable("issuer", format!("{e}")))?),
            None => None,
        },
        serial_number: match parsed("serial") {
            Some(serial) => Some(serial.parse().map_err(|e| unreadable("serial", format!("{e}")))?),
            None => None,
        },
        challenge: given.challenge,
        signature: pem_text(&signature),
    };
    let done = session
        .client
        .call::<ReportKeyCompromise>(NoParams, NoParams, proof)
        .await?;
    Ok(output::json(&json!(done))?)
}

/// Base64 (RFC 4648 §4).
fn pem_text(octets: &[u8]) -> String {
    let armoured = pem::encode_config(
        &pem::Pem::new("SIGNATURE", octets),
        pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
    );
    armoured.lines().filter(|line| !line.starts_with('-')).collect()
}
