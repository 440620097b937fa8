//! Certificates that others issued, taken into the inventory: each becomes a managed certificate with its first version.

use std::collections::{BTreeMap, HashMap, HashSet};

use certctl_model::{
    id::{CertificateId, IssuerId, OwnerId, ProfileId, RenewalPolicyId, TeamId, VersionId},
    key::KeyFacts,
    name::San,
    serial::Serial,
    time::Time,
};
use sqlx::types::Json;

use crate::{
    Tx,
    approvals::{self, Change},
    column, discovery,
    error::*,
};

/// One certificate, read from itself.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The name it goes by.
    pub common_name: San,
    /// Its other names.
    pub sans: Vec<San>,
    /// Its serial number.
    pub serial: Serial,
    /// Begin of validity.
    pub not_before: Time,
    /// End of validity.
    pub not_after: Time,
    /// SHA-256 of the DER, lower-case hexadecimal.
    pub fingerprint: String,
    /// SHA-256 of the public key, lower-case hexadecimal.
    pub spki_sha256: String,
    /// The key's algorithm and size.
    pub key: KeyFacts,
    /// The name of the authority that issued it.
    pub issuer: String,
    /// The certificate, PEM.
    pub cert_pem: String,
    /// What is known of the chain above it, PEM.
    pub chain_pem: String,
    /// What is unusual about it, for the answer to the import; not stored.
    pub notes: Vec<String>,
}

impl Imported {
    /// Its names that cannot be certified here.
    pub fn uncertifiable_names(&self) -> impl Iterator<Item = &San> {
        let common_name = (!self.sans.contains(&self.common_name)).then_some(&self.common_name);
        common_name
            .into_iter()
            .chain(&self.sans)
            .filter(|name| !name.is_certifiable())
    }
}

/// How imported certificates are managed from now on.
#[derive(Clone, Debug)]
pub struct Management {
    /// Who answers for them.
    pub owner: OwnerId,
    /// The owner's team, or another.
    pub team: TeamId,
    /// Who signs their renewals.
    pub issuer: IssuerId,
    /// When they are renewed.
    pub policy: RenewalPolicyId,
    /// What may be issued for them.
    pub profile: Option<ProfileId>,
    /// Where they are used.
    pub environment: String,
    /// Free labels.
    pub tags: BTreeMap<String, String>,
}

/// What became of one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Import {
    /// It is managed now.
    Created {
        /// As which certificate.
        certificate: CertificateId,
        /// As which version of it.
        version: VersionId,
    },
    /// It was known already.
    Duplicate {
        /// As a version of which certificate.
        certificate: CertificateId,
    },
}

/// Rows inserted by one statement.
const BATCH: usize = 500;

/// Takes certificates in, in the order given; the same certificate once. Certificates found on hosts that are the same
/// become managed ones. None is due for renewal before it has a target: see [`retarget`](crate::planning::retarget).
///
/// # Errors
/// [`Error::Reference`] when owner, team, issuer, policy or profile do not exist.
pub async fn import(tx: &mut Tx, certificates: &[Imported], under: &Management) -> Result<Vec<Import>> {
    // One at a time: two that bring the same certificate would wait for each other, and then both fail.
    sqlx::query("SELECT pg_advisory_xact_lock(hashtext('certificates.import'))")
        .execute(&mut **tx)
        .await?;
    let mut outcomes = Vec::with_capacity(certificates.len());
    for batch in certificates.chunks(BATCH) {
        outcomes.extend(import_batch(tx, batch, under).await?);
    }
    Ok(outcomes)
}

async fn import_batch(tx: &mut Tx, batch: &[Imported], under: &Management) -> Result<Vec<Import>> {
    let fingerprints: Vec<&str> = batch.iter().map(|one| one.fingerprint.as_str()).collect();
    let known: Vec<(String, CertificateId)> = sqlx::query_as(
        "SELECT fingerprint_sha256, certificate_id FROM certificate_versions WHERE fingerprint_sha256 = ANY ($1)",
    )
    .bind(&fingerprints)
    .fetch_all(&mut **tx)
    .await?;
    let mut known: HashMap<String, CertificateId> = known.into_iter().collect();
    let mut new: Vec<(&Imported, CertificateId, VersionId)> = Vec::new();
    let mut outcomes = Vec::with_capacity(batch.len());
    for one in batch {
        if let Some(certificate) = known.get(&one.fingerprint).cloned() {
            outcomes.push(Import::Duplicate { certificate });
            continue;
        }
        let (certificate, version) = (CertificateId::generate(tx.now()), VersionId::generate(tx.now()));
        known.insert(one.fingerprint.clone(), certificate.clone());
        outcomes.push(Import::Created {
            certificate: certificate.clone(),
            version: version.clone(),
        });
        new.push((one, certificate, version));
    }
    if new.is_empty() {
        return Ok(outcomes);
    }
    let names = names(tx, &new).await?;
    insert(tx, &new, &names, under).await?;
    discovery::manage(tx, &fingerprints).await?;
    approvals::participate(tx, &column(&new, |(_, id, _)| id), &[Change::Imported]).await?;
    for (one, id, _) in &new {
        let event = tx
            .event("certificate_imported", "certificate", id)
            .with("common_name", &one.common_name)
            .with("serial", &one.serial)
            .with("fingerprint", &one.fingerprint)
            .with("issuer", &one.issuer)
            .with("not_after", one.not_after);
        let uncertifiable: Vec<String> = one.uncertifiable_names().map(San::to_string).collect();
        let event = match uncertifiable.is_empty() {
            true => event,
            false => event.with("uncertifiable_names", uncertifiable),
        };
        tx.note(event);
    }
    Ok(outcomes)
}

/// Names nobody else has: the common name, or with the begin of the fingerprint behind it.
async fn names(tx: &mut Tx, new: &[(&Imported, CertificateId, VersionId)]) -> Result<Vec<String>> {
    let base = |one: &Imported| one.common_name.to_string().chars().take(200).collect::<String>();
    let bases: Vec<String> = new.iter().map(|(one, ..)| base(one)).collect();
    let taken: Vec<String> = sqlx::query_scalar("SELECT name FROM certificates WHERE name = ANY ($1)")
        .bind(&bases)
        .fetch_all(&mut **tx)
        .await?;
    let mut taken: HashSet<String> = taken.into_iter().collect();
    let mut names = Vec::with_capacity(new.len());
    for (base, (one, ..)) in bases.into_iter().zip(new) {
        let name = match taken.insert(base.clone()) {
            true => base,
            false => format!("{base}-{}", &one.fingerprint[..16]),
        };
        names.push(name);
    }
    Ok(names)
}

async fn insert(
    tx: &mut Tx,
    new: &[(&Imported, CertificateId, VersionId)],
    names: &[String],
    under: &Management,
) -> Result<()> {
    fn column<T>(
        new: &[(&Imported, CertificateId, VersionId)],
        of: impl Fn(&(&Imported, CertificateId, VersionId)) -> T,
    ) -> Vec<T> {
        new.iter().map(of).collect()
    }
    // One statement: certificate and version refer to each other.
    sqlx::query(
        "WITH i AS (
             SELECT *, ARRAY(SELECT jsonb_array_elements_text(sans_json)) AS sans
               FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::jsonb[], $6::text[], $7::timestamptz[],
                           $8::timestamptz[], $9::text[], $10::text[], $11::text[], $12::integer[], $13::text[],
                           $14::text[], $15::text[], $24::boolean[])
                    AS i (id, version_id, name, common_name, sans_json, serial, not_before, not_after, fingerprint,
                          spki, key_algorithm, key_size, issuer, cert_pem, chain_pem, names_certifiable)),
         c AS (
             INSERT INTO certificates (id, name, common_name, sans, environment, owner_id, team_id, issuer_id,
                                       renewal_policy_id, profile_id, tags, current_version_id, not_before, not_after,
                                       created_at, updated_at, names_certifiable)
             SELECT id, name, common_name, sans, $16, $17, $18, $19, $20, $21, $22, version_id, not_before, not_after,
                    $23, $23, names_certifiable
               FROM i)
         INSERT INTO certificate_versions (id, certificate_id, version, serial_number, not_before, not_after,
                                           fingerprint_sha256, spki_sha256, cert_pem, chain_pem, key_algorithm,
                                           key_size, imported_from, created_at)
         SELECT version_id, id, 1, serial, not_before, not_after, fingerprint, spki, cert_pem, chain_pem,
                key_algorithm, key_size, issuer, $23
           FROM i",
    )
    .bind(column(new, |(_, id, _)| id.to_string()))
    .bind(column(new, |(.., version)| version.to_string()))
    .bind(names)
    .bind(column(new, |(one, ..)| one.common_name.to_string()))
    .bind(column(new, |(one, ..)| Json(one.sans.clone())))
    .bind(column(new, |(one, ..)| one.serial.to_string()))
    .bind(column(new, |(one, ..)| one.not_before))
    .bind(column(new, |(one, ..)| one.not_after))
    .bind(column(new, |(one, ..)| one.fingerprint.clone()))
    .bind(column(new, |(one, ..)| one.spki_sha256.clone()))
    .bind(column(new, |(one, ..)| one.key.algorithm.to_string()))
    .bind(column(new, |(one, ..)| i32::try_from(one.key.bits).unwrap_or(i32::MAX)))
    .bind(column(new, |(one, ..)| one.issuer.clone()))
    .bind(column(new, |(one, ..)| one.cert_pem.clone()))
    .bind(column(new, |(one, ..)| one.chain_pem.clone()))
    .bind(&under.environment)
    .bind(&under.owner)
    .bind(&under.team)
    .bind(&under.issuer)
    .bind(&under.policy)
    .bind(&under.profile)
    .bind(Json(&under.tags))
    .bind(tx.now())
    .bind(column(new, |(one, ..)| one.uncertifiable_names().next().is_none()))
    .execute(&mut **tx)
    .await?;
    Ok(())
}
