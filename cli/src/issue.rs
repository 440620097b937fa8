//! Obtaining a certificate for a key that stays here.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use certctl_client::Client;
use certctl_contract::{
    certificates::{
        CertificateVersion, CreateCertificate, GetCertificate, ListCertificateVersions, NewCertificate, RenewRequest,
        TriggerRenewal, Triggered,
    },
    endpoint::NoBody,
    jobs::{JobFilter, JobSort, ListJobs},
    list::{List, Sort},
    query::{Id, NoParams},
};
use certctl_model::{
    id::CertificateId,
    key::{KeyAlgorithm, KeyFacts},
    name::{San, all_names},
};
use certctl_runtime::private::NewFile;
use certctl_x509::{
    csr::{self, CertificationRequest},
    keys::KeyPair,
    pem,
};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde_json::json;
use tokio::time::Instant;

use crate::{args::Format, commands::Session, failure::Failure, output, renew};

const KEY_TYPES: [(&str, KeyAlgorithm, u32); 6] = [
    ("ecdsa-p256", KeyAlgorithm::Ecdsa, 256),
    ("ecdsa-p384", KeyAlgorithm::Ecdsa, 384),
    ("rsa-2048", KeyAlgorithm::Rsa, 2048),
    ("rsa-3072", KeyAlgorithm::Rsa, 3072),
    ("rsa-4096", KeyAlgorithm::Rsa, 4096),
    ("ed25519", KeyAlgorithm::Ed25519, 256),
];
/// The key until its certificate is issued, and after that.
const NEW_KEY: &str = "privkey.new.pem";
const KEY: &str = "privkey.pem";

/// The command.
pub(crate) fn command() -> Command {
    let path = |name: &'static str, value: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name(value)
            .value_parser(value_parser!(PathBuf))
    };
    let flag = |name: &'static str, help: &'static str| {
        let flag = Arg::new(name).long(name).value_name("TEXT").help(help);
        flag.conflicts_with("renew")
    };
    Command::new("issue")
        .about("Obtain a certificate for a key of your own, without an agent")
        .long_about(
            "Obtain a certificate for a key of your own, without an agent.\n\nWith --csr the certification request is \
             sent as it is. With names the key is made here, and written to the directory of --out as privkey.new.pem \
             before anything is sent; when the certificate is issued it becomes privkey.pem, beside cert.pem, chain.pem \
             and fullchain.pem. The private key is not sent. With --renew the certificate gets a further version; \
             certificates obtained this way are not renewed by themselves.\n\nRenewal policy, profile and policy rules \
             apply as to any other certificate, approval included.",
        )
        .args([
            Arg::new("names")
                .value_name("NAME")
                .num_args(1..)
                .required_unless_present_any(["csr", "renew"])
                .conflicts_with_all(["csr", "renew"])
                .help("DNS names, IP addresses, e-mail addresses, URIs; the first is the common name"),
            path("csr", "FILE").help("A certification request (PKCS #10), PEM; - for standard input"),
            Arg::new("renew")
                .long("renew")
                .value_name("ID")
                .help("Issue a further version of this certificate; without --csr for a new key"),
            path("out", "DIR").help(
                "Directory for the files; with --csr they are written only when this is given, without it the directory \
                 is named after the certificate",
            ),
            Arg::new("key-type")
                .long("key-type")
                .value_name("TYPE")
                .value_parser(KEY_TYPES.map(|(name, ..)| name))
                .default_value("ecdsa-p256")
                .conflicts_with("csr")
                .help("Which key is made"),
            Arg::new("wait")
                .long("wait")
                .action(ArgAction::SetTrue)
                .help("Wait until the certificate is issued, as happens anyway unless --csr is given without --out"),
            Arg::new("timeout")
                .long("timeout")
                .value_name("SECONDS")
                .value_parser(value_parser!(u64))
                .default_value("300")
                .help("How many seconds to wait at most"),
            flag("name", "Name of the certificate; its common name when absent"),
            flag("owner", "Id of its owner").visible_alias("owner-id"),
            flag("team", "Id of its team").visible_alias("team-id"),
            flag("issuer", "Id of its issuer; iss-local when absent").visible_alias("issuer-id"),
            flag("renewal-policy", "Id of its renewal policy; rp-default when absent").visible_alias("renewal-policy-id"),
            flag("profile", "Id of its profile").visible_alias("certificate-profile-id"),
            flag("environment", "Its environment"),
        ])
}

/// Sends the request, and waits for the certificate where something is done with it.
pub(crate) async fn run(session: &Session, matches: &ArgMatches) -> Result<(), Failure> {
    let client = &session.client;
    let renewed: Option<CertificateId> = parsed(matches, "renew")?;
    let file = matches.get_one::<PathBuf>("csr");
    let (request, out) = match file {
        Some(file) => (read(file)?, matches.get_one::<PathBuf>("out").cloned()),
        None => {
            let names = match &renewed {
                Some(id) => {
                    let id = id.clone();
                    let found = client.call::<GetCertificate>(Id { id }, NoParams, NoBody).await?;
                    all_names(&found.common_name, &found.sans)
                }
                None => names(matches)?,
            };
            let first = names.first().map(San::to_string).unwrap_or_default();
            let out = matches.get_one::<PathBuf>("out").cloned();
            let out = out.unwrap_or_else(|| PathBuf::from(first.replace('*', "_").replace(['/', ':'], "-")));
            (make(matches, names, &out)?, Some(out))
        }
    };
    let csr_pem = Some(pem::encode("CERTIFICATE REQUEST", request.der()));
    let (id, triggered) = match renewed {
        Some(id) => {
            let body = RenewRequest { csr_pem };
            let triggered = client
                .call::<TriggerRenewal>(Id { id: id.clone() }, NoParams, body)
                .await?;
            (id, triggered)
        }
        None => {
            let text = |name: &str| matches.get_one::<String>(name).cloned();
            let body = NewCertificate {
                csr_pem,
                name: text("name"),
                owner_id: parsed(matches, "owner")?,
                team_id: parsed(matches, "team")?,
                issuer_id: parsed(matches, "issuer")?,
                renewal_policy_id: parsed(matches, "renewal-policy")?,
                certificate_profile_id: parsed(matches, "profile")?,
                environment: text("environment"),
                ..NewCertificate::default()
            };
            let id = client.call::<CreateCertificate>(NoParams, NoParams, body).await?.id;
            let triggered = first_job(client, &id).await?;
            (id, triggered)
        }
    };
    if out.is_none() && !matches.get_flag("wait") {
        let jobs: Vec<&str> = triggered.job_ids.iter().map(|job| job.as_str()).collect();
        match session.lists_as() {
            Format::Json => output::json(&json!({ "certificate_id": id, "job_ids": jobs }))?,
            Format::Table => output::line(&format!("{id}: requested ({})", jobs.join(", ")))?,
        }
        return Ok(());
    }
    let seconds = matches.get_one::<u64>("timeout").copied().unwrap_or_default();
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let issued = renew::wait(client, id.as_str(), &triggered, deadline).await?;
    if issued.is_none() {
        let key = match (file, &out) {
            (None, Some(out)) => format!("; its key is in {}", out.join(NEW_KEY).display()),
            _ => String::new(),
        };
        return Err(Failure::Failed(format!(
            "{id} is not issued after {seconds} s{key}; it goes on: see `certctl-cli certs explain {id}`, and \
             `certctl-cli certs export {id}` when it is done"
        )));
    }
    let version = version_of(client, &id, &request).await?;
    if let Some(out) = &out {
        fs::create_dir_all(out).map_err(|e| failed(out, &e))?;
    }
    let full = format!("{}{}", version.cert_pem, version.chain_pem);
    let Some(out) = out else {
        return Ok(output::Passing::default().write(full.as_bytes())?);
    };
    write(&out, "cert.pem", 0o644, &version.cert_pem)?;
    write(&out, "chain.pem", 0o644, &version.chain_pem)?;
    write(&out, "fullchain.pem", 0o644, &full)?;
    if file.is_none() {
        let (from, to) = (out.join(NEW_KEY), out.join(KEY));
        fs::rename(&from, &to).map_err(|e| failed(&from, &e))?;
    }
    match session.lists_as() {
        Format::Json => output::json(&json!({
            "certificate_id": id, "serial_number": version.serial_number, "expires_at": version.not_after,
            "directory": out,
        }))?,
        Format::Table => output::line(&format!(
            "{id}: issued, serial number {}, expires at {}; the files are in {}",
            version.serial_number,
            version.not_after,
            out.display()
        ))?,
    }
    Ok(())
}

fn parsed<T: FromStr<Err: std::fmt::Display>>(matches: &ArgMatches, flag: &str) -> Result<Option<T>, Failure> {
    let text = matches.get_one::<String>(flag);
    let parsed = text.map(|text| {
        text.parse()
            .map_err(|e| Failure::Usage(format!("--{flag} {text}: {e}")))
    });
    parsed.transpose()
}

fn names(matches: &ArgMatches) -> Result<Vec<San>, Failure> {
    let names = matches.get_many::<String>("names").into_iter().flatten();
    let read = |text: &String| text.parse().map_err(|e| Failure::Usage(format!("{e}")));
    names.map(read).collect()
}

/// The certification request of a file.
fn read(file: &Path) -> Result<CertificationRequest, Failure> {
    let text = match file.as_os_str() == "-" {
        true => io::read_to_string(io::stdin()),
        false => fs::read_to_string(file),
    };
    let text = text.map_err(|e| Failure::Usage(format!("--csr {}: {e}", file.display())))?;
    CertificationRequest::parse_pem(&text).map_err(|e| Failure::Usage(format!("--csr {}: {e}", file.display())))
}

/// Makes a key, which is on the disk before its request is known to anybody.
fn make(matches: &ArgMatches, names: Vec<San>, out: &Path) -> Result<CertificationRequest, Failure> {
    let wanted = matches.get_one::<String>("key-type").map(String::as_str);
    let (_, algorithm, bits) = KEY_TYPES
        .into_iter()
        .find(|(name, ..)| Some(*name) == wanted)
        .unwrap_or(KEY_TYPES[0]);
    let wrong = |e: &dyn std::fmt::Display| Failure::Failed(format!("the key: {e}"));
    let key = KeyPair::generate(KeyFacts { algorithm, bits }).map_err(|e| wrong(&e))?;
    let common = match names.first() {
        Some(name @ (San::Dns(_) | San::Ip(_))) => name.to_string(),
        _ => String::new(),
    };
    let der = csr::generate(&key, &common, &names).map_err(|e| wrong(&e))?;
    fs::create_dir_all(out).map_err(|e| failed(out, &e))?;
    write(out, NEW_KEY, 0o600, &key.to_pkcs8_pem().map_err(|e| wrong(&e))?)?;
    CertificationRequest::parse_der(&der).map_err(|e| wrong(&e))
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::Failed(format!("{}: {error}", path.display()))
}

/// Replaces a file, or makes it.
fn write(directory: &Path, name: &str, mode: u32, text: &str) -> Result<(), Failure> {
    let path = directory.join(name);
    let write = || {
        let mut file = NewFile::beside(&path, mode)?;
        file.write_all(text.as_bytes())?;
        file.commit()
    };
    write().map_err(|e| failed(&path, &e))
}

/// The job of a certificate that was just requested.
async fn first_job(client: &Client, id: &CertificateId) -> Result<Triggered, Failure> {
    let query = List {
        per_page: Some(1),
        sort: Some(Sort {
            key: JobSort::CreatedAt,
            descending: false,
        }),
        filter: JobFilter {
            certificate_id: Some(id.clone()),
            ..JobFilter::default()
        },
        ..List::default()
    };
    let page = client.call::<ListJobs>(NoParams, query, NoBody).await?;
    let job_ids: Vec<_> = page.data.into_iter().map(|job| job.id).collect();
    Ok(Triggered {
        status: "renewal_triggered".to_owned(),
        job_id: job_ids.first().cloned(),
        job_ids,
        private_key_pem: None,
    })
}

/// The newest version for the key of a request.
async fn version_of(
    client: &Client,
    id: &CertificateId,
    request: &CertificationRequest,
) -> Result<CertificateVersion, Failure> {
    let path = Id { id: id.clone() };
    let page = client
        .call::<ListCertificateVersions>(path, List::default(), NoBody)
        .await?;
    let key = request.key_fingerprint().to_string();
    let version = page.data.into_iter().find(|version| version.spki_sha256 == key);
    version.ok_or_else(|| Failure::Failed(format!("{id} has no version for the key of the request")))
}
