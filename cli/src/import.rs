//! Registering the certificates of PEM files.

use std::{
    collections::HashSet,
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use certctl_client::{Client, ClientError};
use certctl_contract::{certificates::CreateCertificate, endpoint::Operation};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::{args::Format, commands, failure::Failure, output};

/// A bundle of all the CAs there are has a few hundred KiB.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// A certificate in a file.
#[derive(Debug, PartialEq)]
enum Found {
    /// One to register.
    Leaf { common_name: String, sans: Vec<String> },
    /// A CA certificate: it is not ours to manage.
    Ca,
}

#[derive(Default)]
struct Tally {
    created: usize,
    skipped: usize,
    failed: usize,
}

/// Registers every certificate of the files that is not a CA's.
///
/// What fails is said and counted; the rest goes on, unless the server is gone.
pub(crate) async fn run(client: &Client, files: &[PathBuf], format: Format) -> Result<(), Failure> {
    let mut tally = Tally::default();
    let mut leaves = Vec::new();
    let mut seen = HashSet::new();
    for file in files {
        for found in read(file) {
            match found {
                Ok((_, Found::Ca)) => tally.skipped += 1,
                Ok((der, Found::Leaf { common_name, sans })) => match seen.insert(der) {
                    true => leaves.push((common_name, sans)),
                    false => tally.skipped += 1,
                },
                Err(why) => {
                    tally.failed += 1;
                    output::note(&format!("{}: {why}", file.display()));
                }
            }
        }
    }
    // Drawn on standard error, and only when that is a terminal.
    let bar = ProgressBar::new(leaves.len() as u64);
    for (common_name, sans) in leaves {
        match register(client, &common_name, sans).await {
            Ok(()) => tally.created += 1,
            Err(error @ ClientError::Unreachable(_)) => {
                bar.abandon();
                output::note(&format!(
                    "stopped at {common_name} after {} were created",
                    tally.created
                ));
                return Err(error.into());
            }
            Err(error) => {
                tally.failed += 1;
                bar.suspend(|| output::note(&format!("{common_name}: {error}")));
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let Tally {
        created,
        skipped,
        failed,
    } = tally;
    commands::tell(
        &json!({ "created": created, "skipped": skipped, "failed": failed }),
        &format!("{created} created, {skipped} skipped (CA certificates and repetitions), {failed} failed"),
        format,
    )?;
    match failed {
        0 => Ok(()),
        _ => Err(Failure::Failed(format!("{failed} not imported"))),
    }
}

async fn register(client: &Client, common_name: &str, sans: Vec<String>) -> Result<(), ClientError> {
    let input = json!({ "common_name": common_name, "sans": sans, "environment": "imported" });
    let Value::Object(input) = input else {
        unreachable!("the literal above is an object")
    };
    let create = Operation::of::<CreateCertificate>("", "");
    client.call_json(&create, input).await.map(drop)
}

/// The certificates of a file with their DER, or what is wrong with them or with the file.
fn read(file: &Path) -> Vec<Result<(Vec<u8>, Found), String>> {
    let blocks = match blocks(file) {
        Ok(blocks) => blocks,
        Err(why) => return vec![Err(why)],
    };
    if blocks.is_empty() {
        return vec![Err("has no certificate in PEM".to_owned())];
    }
    blocks
        .into_iter()
        .map(|der| inspect(&der).map(|found| (der, found)))
        .collect()
}

fn blocks(file: &Path) -> Result<Vec<Vec<u8>>, String> {
    let size = fs::metadata(file).map_err(|e| e.to_string())?.len();
    if size > MAX_FILE_BYTES {
        return Err(format!("is larger than {} MiB", MAX_FILE_BYTES / 1024 / 1024));
    }
    let octets = fs::read(file).map_err(|e| e.to_string())?;
    let blocks = pem::parse_many(octets).map_err(|e| format!("is not PEM: {e}"))?;
    let certificates = blocks
        .into_iter()
        .filter(|b| matches!(b.tag(), "CERTIFICATE" | "X509 CERTIFICATE"));
    Ok(certificates.map(pem::Pem::into_contents).collect())
}

fn inspect(der: &[u8]) -> Result<Found, String> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|e| format!("holds a certificate that cannot be read: {e}"))?;
    if certificate.is_ca() {
        return Ok(Found::Ca);
    }
    let sans: Vec<String> = match certificate.subject_alternative_name() {
        Ok(Some(names)) => names.value.general_names.iter().filter_map(name).collect(),
        _ => vec![],
    };
    let common_name = certificate.subject().iter_common_name().next();
    let common_name = common_name.and_then(|cn| cn.as_str().ok()).map(str::to_owned);
    let common_name = common_name
        .or_else(|| sans.first().cloned())
        .ok_or("holds a certificate without any name")?;
    Ok(Found::Leaf { common_name, sans })
}

/// A name of a kind that certificates are requested for.
fn name(name: &GeneralName) -> Option<String> {
    match name {
        GeneralName::DNSName(text) | GeneralName::RFC822Name(text) | GeneralName::URI(text) => Some((*text).to_owned()),
        GeneralName::IPAddress(octets) => <[u8; 4]>::try_from(*octets)
            .map(|four| Ipv4Addr::from(four).to_string())
            .or_else(|_| <[u8; 16]>::try_from(*octets).map(|sixteen| Ipv6Addr::from(sixteen).to_string()))
            .ok(),
        _ => None,
    }
}
