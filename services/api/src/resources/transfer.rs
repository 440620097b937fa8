//! Certificates in and out.

use std::collections::{HashMap, HashSet};

use base64::{Engine, engine::general_purpose::STANDARD};
use certctl_contract::{endpoint::File, problem::Kind, transfer::*};
use certctl_model::{
    id::{IssuerId, OwnerId, ProfileId, RenewalPolicyId, TeamId},
    name::San,
};
use certctl_store::{
    Tx,
    approvals::{self, Change},
    certificates,
    imports::{self, Import, Imported, Management},
    planning,
};
use certctl_x509::{facts::CertificateFacts, pem, pkcs12};
use p12_keystore::{Certificate, KeyStore, KeyStoreEntry};

use super::certificates::{check_environment, check_tags, enabled_issuer, map_targets};
use crate::{
    app::{Cx, Request, Routes},
    error::ApiError,
    scan_report::cut,
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(import).on(export)
}

/// The longest text of certificates that is read, in octets.
const MAX_PEM: usize = 16 << 20;
/// How many blocks are read of a text: a short line of it would take a hundred times its octets in memory and in the answer.
const MAX_BLOCKS: usize = 10_000;
/// The longest chain that is followed.
const LONGEST_CHAIN: usize = 10;

async fn import(cx: Cx, rq: Request<ImportCertificates>) -> Result<ImportResult, ApiError> {
    let ImportRequest {
        pem,
        der_base64,
        enrolment,
    } = rq.body;
    let read = tokio::task::spawn_blocking(move || Bundle::read(pem.as_deref(), der_base64.as_deref()));
    let bundle = read.await.map_err(|error| ApiError::internal(error.to_string()))??;
    let leaves: Vec<Imported> = bundle.leaves();
    let mut tx = cx.begin().await?;
    let imports = enrol(&mut tx, &leaves, enrolment).await?;
    // A repetition changes nothing, and there is nothing to tell of it.
    if imports.iter().any(|import| matches!(import, Import::Created { .. })) {
        tx.commit().await?;
    }
    Ok(bundle.result(imports))
}

/// Makes managed certificates of these, puts them on the targets named, and says what became of each.
pub(super) async fn enrol(tx: &mut Tx, leaves: &[Imported], enrolment: Enrolment) -> Result<Vec<Import>, ApiError> {
    let targets = enrolment.target_ids.clone().unwrap_or_default();
    let management = management(tx, enrolment).await?;
    let imports = imports::import(tx, leaves, &management).await?;
    if !targets.is_empty() {
        for import in &imports {
            if let Import::Created { certificate, .. } = import {
                map_targets(tx, certificate, &targets).await?;
                approvals::participate(tx, &[certificate], &[Change::Targets]).await?;
                let locked = certificates::lock(tx, certificate).await?;
                planning::retarget(tx, &locked, None).await?;
            }
        }
    }
    Ok(imports)
}

async fn management(tx: &mut Tx, enrolment: Enrolment) -> Result<Management, ApiError> {
    let fixed = |id: &str| id.to_owned();
    let owner: OwnerId = enrolment
        .owner_id
        .unwrap_or_else(|| fixed("o-unassigned").try_into().expect("a valid id"));
    let policy: RenewalPolicyId = enrolment
        .renewal_policy_id
        .unwrap_or_else(|| fixed("rp-default").try_into().expect("a valid id"));
    let issuer: IssuerId = enrolment
        .issuer_id
        .unwrap_or_else(|| fixed("iss-local").try_into().expect("a valid id"));
    let environment = enrolment.environment.unwrap_or_else(|| fixed("imported"));
    check_environment(&environment)?;
    let tags = check_tags(enrolment.tags.unwrap_or_default())?;
    enabled_issuer(tx, &issuer).await?;
    let owners_team: Option<TeamId> = sqlx::query_scalar("SELECT team_id FROM owners WHERE id = $1")
        .bind(&owner)
        .fetch_optional(&mut **tx)
        .await?;
    let team = enrolment.team_id.or(owners_team);
    let team = team.ok_or_else(|| ApiError::invalid("owner_id", format!("there is no owner {owner}")))?;
    let profile: Option<Option<ProfileId>> =
        sqlx::query_scalar("SELECT certificate_profile_id FROM renewal_policies WHERE id = $1")
            .bind(&policy)
            .fetch_optional(&mut **tx)
            .await?;
    let profile = profile
        .ok_or_else(|| ApiError::invalid("renewal_policy_id", format!("there is no renewal policy {policy}")))?;
    Ok(Management {
        owner,
        team,
        issuer,
        policy,
        // Whether the names fit it is judged when the certificate is renewed: it was not issued under it.
        profile,
        environment,
        tags,
    })
}

/// What was given to import, in its order.
#[derive(Debug)]
struct Bundle {
    items: Vec<Item>,
}

#[derive(Debug)]
enum Item {
    Leaf(Box<Imported>),
    Authority(Box<CertificateFacts>),
    Bad(String),
}

impl Bundle {
    fn read(pem: Option<&str>, der_base64: Option<&str>) -> Result<Self, ApiError> {
        let mut facts = Vec::new();
        if let Some(text) = pem {
            facts.extend(read_pem(text)?);
        }
        if let Some(text) = der_base64 {
            // base64(1) and MIME (RFC 2045 §6.8) break lines.
            let text: String = text.split_ascii_whitespace().collect();
            let der = STANDARD
                .decode(text)
                .map_err(|_| ApiError::invalid("der_base64", "is not base64"))?;
            facts.push(read_der(&der));
        }
        if facts.is_empty() {
            return Err(ApiError::invalid(
                "pem",
                "holds no certificate; send blocks CERTIFICATE, or the DER of one in der_base64",
            ));
        }
        Ok(Self::sort(facts))
    }

    fn sort(facts: Vec<Result<CertificateFacts, String>>) -> Self {
        let issuers: HashSet<Vec<u8>> = facts
            .iter()
            .flatten()
            .filter(|one| one.issuer_der != one.subject_der)
            .map(|one| one.issuer_der.clone())
            .collect();
        let is_authority =
            |one: &CertificateFacts| one.is_ca && (issuers.contains(&one.subject_der) || !one.is_self_signed_server());
        let authorities: Vec<CertificateFacts> = facts
            .iter()
            .flatten()
            .filter(|one| is_authority(one))
            .cloned()
            .collect();
        let mut chains = Chains::new(&authorities);
        let item = |one: Result<CertificateFacts, String>| match one {
            Ok(facts) if is_authority(&facts) => Item::Authority(Box::new(facts)),
            Ok(facts) => {
                let chain = chains.above(&facts);
                Item::Leaf(Box::new(imported(&facts, chain)))
            }
            Err(why) => Item::Bad(why),
        };
        Self {
            items: facts.into_iter().map(item).collect(),
        }
    }

    fn leaves(&self) -> Vec<Imported> {
        let leaf = |item: &Item| match item {
            Item::Leaf(leaf) => Some((**leaf).clone()),
            _ => None,
        };
        self.items.iter().filter_map(leaf).collect()
    }

    fn result(self, imports: Vec<Import>) -> ImportResult {
        let mut imports = imports.into_iter();
        let mut item = |(index, item): (usize, Item)| {
            let mut result = ImportedItem {
                index: index as i64,
                outcome: ImportOutcome::Rejected,
                certificate_id: None,
                version_id: None,
                common_name: None,
                fingerprint: None,
                reason: None,
                uncertifiable_names: Vec::new(),
                notes: Vec::new(),
            };
            match item {
                Item::Bad(why) => result.reason = Some(why),
                Item::Authority(facts) => {
                    result.outcome = ImportOutcome::Chain;
                    result.fingerprint = Some(facts.fingerprint);
                }
                Item::Leaf(leaf) => {
                    result.uncertifiable_names = leaf.uncertifiable_names().map(San::to_string).collect();
                    if !result.uncertifiable_names.is_empty() {
                        result.notes.push(
                            "it is not renewed while it has names that cannot be certified; edit common_name and sans to \
                             decide what the next version is for"
                                .to_owned(),
                        );
                    }
                    result.notes.extend(leaf.notes);
                    result.common_name = Some(leaf.common_name);
                    result.fingerprint = Some(leaf.fingerprint);
                    match imports.next().expect("each leaf was imported") {
                        Import::Created { certificate, version } => {
                            result.outcome = ImportOutcome::Created;
                            (result.certificate_id, result.version_id) = (Some(certificate), Some(version));
                        }
                        Import::Duplicate { certificate } => {
                            result.outcome = ImportOutcome::Duplicate;
                            result.certificate_id = Some(certificate);
                        }
                    }
                }
            }
            result
        };
        let data: Vec<ImportedItem> = self.items.into_iter().enumerate().map(&mut item).collect();
        let count = |outcome| data.iter().filter(|item| item.outcome == outcome).count() as i64;
        ImportResult {
            created: count(ImportOutcome::Created),
            duplicates: count(ImportOutcome::Duplicate),
            chain: count(ImportOutcome::Chain),
            rejected: count(ImportOutcome::Rejected),
            data,
        }
    }
}

/// Reads each block by itself, so that a broken one does not spoil the others. A private key spoils all of them: it must
/// not have come here.
fn read_pem(text: &str) -> Result<Vec<Result<CertificateFacts, String>>, ApiError> {
    if text.contains("PRIVATE KEY-----") {
        return Err(ApiError::invalid(
            "pem",
            "holds a private key; nothing was stored. Send certificates only, and replace the key: it has left its host",
        ));
    }
    if text.matches("-----BEGIN ").nth(MAX_BLOCKS).is_some() {
        return Err(ApiError::invalid(
            "pem",
            format!("holds more than {MAX_BLOCKS} blocks; send them in several requests"),
        ));
    }
    let blocks = pem::decode_each(text, MAX_PEM).map_err(|error| ApiError::invalid("pem", error.to_string()))?;
    Ok(blocks
        .into_iter()
        .map(|found| match found.block {
            Ok(block) if matches!(block.label.as_str(), "CERTIFICATE" | "X509 CERTIFICATE") => read_der(&block.der),
            Ok(block) => Err(format!(
                "the block \"{}\" is not a certificate",
                shown(&block.label, 80)
            )),
            Err(error) => Err(shown(&error.to_string(), 300)),
        })
        .collect())
}

/// Text of a certificate or a file as it stands in a message: bounded, with invisible characters escaped.
fn shown(text: &str, most: usize) -> String {
    let mut shown = String::new();
    for c in text.chars().take(most) {
        match certctl_model::text::is_hidden(c) {
            true => shown.extend(c.escape_unicode()),
            false => shown.push(c),
        }
    }
    shown
}

fn read_der(der: &[u8]) -> Result<CertificateFacts, String> {
    CertificateFacts::inventory_der(der).map_err(|error| error.to_string())
}

/// What is stored of a certificate that others issued.
pub(super) fn imported(facts: &CertificateFacts, chain_pem: String) -> Imported {
    let own: Option<San> = facts.common_name.as_deref().map(San::recorded);
    let host = |name: &&San| matches!(name, San::Dns(_) | San::Ip(_));
    let certifiable = |name: &&San| name.is_certifiable();
    let common_name = own
        .iter()
        .filter(certifiable)
        .chain(&facts.sans)
        .find(host)
        .or_else(|| own.iter().chain(&facts.sans).find(certifiable))
        .or_else(|| facts.sans.first())
        .or(own.as_ref())
        .cloned()
        // Neither name: its number is what it can be found by.
        .unwrap_or_else(|| San::recorded(&format!("serial number {}", facts.serial)));
    let mut notes: Vec<String> = facts.defects.iter().map(ToString::to_string).collect();
    let next = format!("CN={common_name}");
    if common_name.is_certifiable() && !facts.subject.is_empty() && !facts.subject.eq_ignore_ascii_case(&next) {
        let subject = shown(&facts.subject, 300);
        notes.push(format!("its subject is {subject}; that of the next version is {next}"));
    }
    Imported {
        common_name,
        sans: facts.sans.clone(),
        notes,
        serial: facts.serial.clone(),
        not_before: facts.not_before,
        not_after: facts.not_after,
        fingerprint: facts.fingerprint.clone(),
        spki_sha256: facts.spki_sha256.clone(),
        key: facts.key,
        issuer: cut(&facts.issuer, 1024),
        cert_pem: facts.to_pem(),
        chain_pem,
    }
}

/// PKCS #12 wants a password even where nothing is secret; this is the one that tools try first.
const P12_PASSWORD: &str = "changeit";

async fn export(cx: Cx, rq: Request<ExportCertificate>) -> Result<File<CertificateFile>, ApiError> {
    let (id, ExportQuery { format, version }) = (rq.path.id, rq.query);
    let row: Option<(San, Option<String>, Option<String>)> = sqlx::query_as(
        "SELECT c.common_name, v.cert_pem, v.chain_pem FROM certificates c
           LEFT JOIN certificate_versions v ON v.certificate_id = c.id AND ($2::integer IS NULL OR v.version = $2)
          WHERE c.id = $1 ORDER BY v.version DESC NULLS LAST LIMIT 1",
    )
    .bind(&id)
    .bind(version)
    .fetch_optional(cx.pool())
    .await?;
    let (name, certificate, chain) = row.ok_or_else(|| ApiError::missing("certificate", &id))?;
    let (Some(certificate), Some(chain)) = (certificate, chain) else {
        return Err(ApiError::new(
            Kind::NotFound,
            format!("certificate {id} has no such version"),
        ));
    };
    let (format, name) = (format.unwrap_or(ExportFormat::Fullchain), stem(&name.to_string()));
    if format == ExportFormat::Chain && chain.is_empty() {
        let detail = format!("nothing is known of the chain above certificate {id}");
        return Err(ApiError::new(Kind::NotFound, detail));
    }
    Ok(match format {
        ExportFormat::Pem => File::new(PEM_CHAIN, format!("{name}.pem"), certificate.into_bytes()),
        ExportFormat::Chain => File::new(PEM_CHAIN, format!("{name}-chain.pem"), chain.into_bytes()),
        ExportFormat::Fullchain => File::new(
            PEM_CHAIN,
            format!("{name}-fullchain.pem"),
            (certificate + &chain).into_bytes(),
        ),
        ExportFormat::Der => {
            let der = ders(&certificate)?.into_iter().next().unwrap_or_default();
            File::new(PKIX_CERT, format!("{name}.cer"), der)
        }
        ExportFormat::P12 => File::new(PKCS12, format!("{name}.p12"), p12(&ders(&(certificate + &chain))?)?),
    })
}

/// The begin of a file name: what every system takes, and nothing that a header could be ended with.
fn stem(name: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || "-._".contains(c) {
            c
        } else {
            '_'
        }
    };
    let name: String = name.chars().map(plain).take(64).collect();
    name.trim_start_matches('.').to_owned()
}

fn ders(text: &str) -> Result<Vec<Vec<u8>>, ApiError> {
    let blocks = pem::decode_all(text, MAX_PEM).map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(blocks.into_iter().map(|block| block.der).collect())
}

/// Certificates, leaf first, in PKCS #12.
fn p12(ders: &[Vec<u8>]) -> Result<Vec<u8>, ApiError> {
    let broken = |error: p12_keystore::error::Error| ApiError::internal(error.to_string());
    let mut store = KeyStore::new();
    for (above, der) in ders.iter().enumerate() {
        // Written in the order of their aliases.
        let alias = match above {
            0 => "certificate".to_owned(),
            above => format!("chain-{above:02}"),
        };
        store.add_entry(
            &alias,
            KeyStoreEntry::Certificate(Certificate::from_der(der).map_err(broken)?),
        );
    }
    let written = store.writer(P12_PASSWORD).write().map_err(broken)?;
    pkcs12::without_empty_parts(&written, P12_PASSWORD).map_err(|why| ApiError::internal(why.to_owned()))
}

/// The chains above the certificates of a bundle, each link verified once.
struct Chains<'a> {
    authorities: &'a [CertificateFacts],
    by_subject: HashMap<&'a [u8], Vec<usize>>,
    above: HashMap<usize, String>,
}

impl<'a> Chains<'a> {
    fn new(authorities: &'a [CertificateFacts]) -> Self {
        let mut by_subject: HashMap<&[u8], Vec<usize>> = HashMap::new();
        for (index, authority) in authorities.iter().enumerate() {
            by_subject.entry(&authority.subject_der).or_default().push(index);
        }
        Self {
            authorities,
            by_subject,
            above: HashMap::new(),
        }
    }

    /// PEM of the authorities above a certificate, as far as the bundle has them.
    fn above(&mut self, leaf: &CertificateFacts) -> String {
        match self.issuer_of(leaf) {
            None => String::new(),
            Some(first) => {
                if let Some(known) = self.above.get(&first) {
                    return known.clone();
                }
                let chain = self.from(first);
                self.above.insert(first, chain.clone());
                chain
            }
        }
    }

    fn from(&self, first: usize) -> String {
        let (mut chain, mut next, mut length) = (String::new(), Some(first), 0);
        while let Some(index) = next.filter(|_| length < LONGEST_CHAIN) {
            let authority = &self.authorities[index];
            chain.push_str(&authority.to_pem());
            length += 1;
            let is_root = authority.subject_der == authority.issuer_der;
            next = if is_root { None } else { self.issuer_of(authority) };
        }
        chain
    }

    fn issuer_of(&self, certificate: &CertificateFacts) -> Option<usize> {
        let candidates = self.by_subject.get(certificate.issuer_der.as_slice())?;
        candidates
            .iter()
            .copied()
            .find(|index| certificate.verify_issued_by(&self.authorities[*index]).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_is_harmless_whatever_the_certificate_is_called() {
        for (name, file) in [
            ("a.example.com", "a.example.com"),
            ("*.example.com", "_.example.com"),
            ("../../etc/passwd", "_.._etc_passwd"),
            ("spiffe://x/\"; filename=\"y", "spiffe___x____filename__y"),
            ("2001:db8::1", "2001_db8__1"),
        ] {
            assert_eq!(stem(name), file);
        }
    }
}
