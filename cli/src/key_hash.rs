//! `--key FILE` and `--cert FILE` in place of the SHA-256 of a SubjectPublicKeyInfo.

use std::{fs, path::PathBuf};

use certctl_contract::endpoint::Operation;
use certctl_x509::{
    facts::CertificateFacts,
    keys::{self, KeyPair},
};
use clap::{Arg, ArgMatches, Command, value_parser};
use serde_json::{Map, Value};

use crate::failure::Failure;

/// The input that the flags stand for.
const INPUT: &str = "spki_sha256";

/// Whether an operation has the flags.
fn has_flags(operation: &Operation) -> bool {
    matches!(operation.id().as_str(), "block_key" | "list_certificates")
}

/// Adds the flags where an operation takes the hash.
pub(crate) fn describe(command: Command, operation: &Operation) -> Command {
    if !has_flags(operation) {
        return command;
    }
    let path = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .conflicts_with(INPUT)
            .help(help)
    };
    let command = command
        .arg(path("key", "The key: a private or public key, PEM. Only its SHA-256 is sent").conflicts_with("cert"))
        .arg(path(
            "cert",
            "A certificate with the key, PEM or DER. Only the SHA-256 of its key is sent",
        ));
    match operation.body.is_some() {
        true => command.mut_arg(INPUT, |arg| {
            arg.required(false).required_unless_present_any(["json", "key", "cert"])
        }),
        false => command,
    }
}

/// Puts the hash of the file among the inputs.
pub(crate) fn read(operation: &Operation, matches: &ArgMatches, input: &mut Map<String, Value>) -> Result<(), Failure> {
    if !has_flags(operation) {
        return Ok(());
    }
    for flag in ["key", "cert"] {
        let Some(path) = matches.get_one::<PathBuf>(flag) else {
            continue;
        };
        let unreadable = |why: String| Failure::Usage(format!("--{flag} {}: {why}", path.display()));
        let octets = fs::read(path).map_err(|e| unreadable(e.to_string()))?;
        let hash = match flag {
            "key" => of_key(&octets),
            _ => of_certificate(&octets),
        };
        input.insert(INPUT.to_owned(), hash.map_err(unreadable)?.into());
    }
    Ok(())
}

fn of_key(octets: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(octets).map_err(|_| "is not PEM".to_owned())?;
    let blocks = pem::parse_many(text).map_err(|e| e.to_string())?;
    match blocks.iter().find(|block| block.tag() == "PUBLIC KEY") {
        Some(block) => Ok(keys::fingerprint(block.contents()).to_string()),
        None => {
            let key = KeyPair::from_pem(text, None).map_err(|e| e.to_string())?;
            Ok(keys::fingerprint(key.spki_der()).to_string())
        }
    }
}

fn of_certificate(octets: &[u8]) -> Result<String, String> {
    let decoded = match std::str::from_utf8(octets) {
        Ok(text) if text.contains("-----BEGIN") => {
            let blocks = pem::parse_many(text).map_err(|e| e.to_string())?;
            let block = blocks.into_iter().find(|block| block.tag() == "CERTIFICATE");
            block.ok_or("holds no certificate")?.into_contents()
        }
        _ => octets.to_vec(),
    };
    let certificate = CertificateFacts::inventory_der(&decoded).map_err(|e| e.to_string())?;
    Ok(certificate.spki_sha256)
}
