//! Certificates found on hosts: one row for each certificate, agent and path.

use std::collections::HashSet;

use certctl_model::{
    discovery::DiscoveryStatus,
    id::{AgentId, CertificateId, DiscoveredCertificateId, DiscoveryScanId},
    key::KeyFacts,
    serial::Serial,
    time::Time,
};

use crate::{Tx, error::*};

/// A certificate found on a host, read from itself.
#[derive(Clone, Debug)]
pub struct Found {
    /// SHA-256 of the DER, lower-case hexadecimal.
    pub fingerprint: String,
    /// The common name of its subject; empty when there is none.
    pub common_name: String,
    /// Its other names.
    pub sans: Vec<String>,
    /// Its serial number.
    pub serial: Serial,
    /// Its issuer's name.
    pub issuer: String,
    /// Its subject's name.
    pub subject: String,
    /// Begin of validity.
    pub not_before: Time,
    /// End of validity.
    pub not_after: Time,
    /// The key's algorithm and size.
    pub key: KeyFacts,
    /// Whether it is an authority's.
    pub is_ca: bool,
    /// The certificate.
    pub der: Vec<u8>,
    /// The file.
    pub path: String,
    /// How the file holds it: `PEM` or `DER`.
    pub format: String,
}

/// What a report says besides certificates.
#[derive(Clone, Debug, Default)]
pub struct Ending {
    /// The directories that were walked.
    pub directories: Vec<String>,
    /// How many certificates were found and stored.
    pub found: i32,
    /// How many of them are new.
    pub new: i32,
    /// How many things went wrong.
    pub errors_count: i32,
    /// The first of them.
    pub errors: Vec<String>,
    /// How long the agent took.
    pub duration_ms: i64,
    /// Whether nothing was left out, so that what was not found is not there.
    pub whole: bool,
}

/// Begins the record of a scan; its certificates refer to it.
///
/// # Errors
/// [`Error::Reference`] when there is no such agent.
pub async fn begin_scan(tx: &mut Tx, agent: &AgentId) -> Result<DiscoveryScanId> {
    let (id, now) = (DiscoveryScanId::generate(tx.now()), tx.now());
    sqlx::query("INSERT INTO discovery_scans (id, agent_id, started_at) VALUES ($1, $2, $3)")
        .bind(&id)
        .bind(agent)
        .bind(now)
        .execute(&mut **tx)
        .await?;
    Ok(id)
}

/// Records certificates of a scan. What was seen before is seen again, and stands as it stood; versions of managed
/// certificates are managed from the start. Returns how many were not known.
///
/// # Errors
/// When the database cannot be asked.
pub async fn record(tx: &mut Tx, agent: &AgentId, scan: &DiscoveryScanId, found: &[Found]) -> Result<i32> {
    let mut places = HashSet::new();
    let mut found: Vec<&Found> = found
        .iter()
        .filter(|one| places.insert((&one.fingerprint, &one.path)))
        .collect();
    // Two reports of one agent lock rows in one order.
    found.sort_by(|a, b| (&a.fingerprint, &a.path).cmp(&(&b.fingerprint, &b.path)));
    let now = tx.now();
    let texts = |of: fn(&Found) -> String| found.iter().map(|one| of(one)).collect::<Vec<_>>();
    let new: i64 = sqlx::query_scalar(
        "WITH seen AS (
             INSERT INTO discovered_certificates AS d (
                 id, fingerprint_sha256, common_name, sans, serial_number, issuer_dn, subject_dn, not_before, not_after,
                 key_algorithm, key_size, is_ca, der, source_path, source_format, agent_id, discovery_scan_id,
                 managed_certificate_id, status, first_seen_at, last_seen_at, created_at, updated_at)
             SELECT f.id, f.fingerprint, f.common_name, ARRAY(SELECT jsonb_array_elements_text(f.sans)), f.serial,
                    f.issuer, f.subject, f.not_before, f.not_after, f.key_algorithm, f.key_size, f.is_ca, f.der, f.path,
                    f.format, $16, $17, v.certificate_id,
                    CASE WHEN v.certificate_id IS NULL THEN 'Unmanaged' ELSE 'Managed' END, $18, $18, $18, $18
               FROM unnest($1::text[], $2::text[], $3::text[], $4::jsonb[], $5::text[], $6::text[], $7::text[],
                           $8::timestamptz[], $9::timestamptz[], $10::text[], $11::integer[], $12::boolean[],
                           $13::bytea[], $14::text[], $15::text[])
                    AS f (id, fingerprint, common_name, sans, serial, issuer, subject, not_before, not_after,
                          key_algorithm, key_size, is_ca, der, path, format)
               LEFT JOIN certificate_versions v ON v.fingerprint_sha256 = f.fingerprint
             ON CONFLICT ON CONSTRAINT discovered_certificates_place_key DO UPDATE
                SET last_seen_at = excluded.last_seen_at, discovery_scan_id = excluded.discovery_scan_id,
                    missing_since = NULL, updated_at = excluded.updated_at,
                    status = CASE WHEN d.status = 'Unmanaged' THEN excluded.status ELSE d.status END,
                    managed_certificate_id = CASE WHEN d.status = 'Unmanaged' THEN excluded.managed_certificate_id
                                                  ELSE d.managed_certificate_id END
             RETURNING (xmax = 0) AS new)
         SELECT count(*) FILTER (WHERE new) FROM seen",
    )
    .bind(
        (0..found.len())
            .map(|_| DiscoveredCertificateId::generate(now).to_string())
            .collect::<Vec<_>>(),
    )
    .bind(texts(|one| one.fingerprint.clone()))
    .bind(texts(|one| one.common_name.clone()))
    .bind(
        found
            .iter()
            .map(|one| sqlx::types::Json(one.sans.clone()))
            .collect::<Vec<_>>(),
    )
    .bind(texts(|one| one.serial.to_string()))
    .bind(texts(|one| one.issuer.clone()))
    .bind(texts(|one| one.subject.clone()))
    .bind(found.iter().map(|one| one.not_before).collect::<Vec<_>>())
    .bind(found.iter().map(|one| one.not_after).collect::<Vec<_>>())
    .bind(texts(|one| one.key.algorithm.to_string()))
    .bind(
        found
            .iter()
            .map(|one| i32::try_from(one.key.bits).unwrap_or(i32::MAX))
            .collect::<Vec<_>>(),
    )
    .bind(found.iter().map(|one| one.is_ca).collect::<Vec<_>>())
    .bind(found.iter().map(|one| one.der.as_slice()).collect::<Vec<_>>())
    .bind(texts(|one| one.path.clone()))
    .bind(texts(|one| one.format.clone()))
    .bind(agent)
    .bind(scan)
    .bind(now)
    .fetch_one(&mut **tx)
    .await?;
    Ok(i32::try_from(new).unwrap_or(i32::MAX))
}

/// Ends the record of a scan. What a whole scan did not find any more in its directories is missing from now on.
///
/// # Errors
/// When the database cannot be asked.
pub async fn end_scan(tx: &mut Tx, agent: &AgentId, scan: &DiscoveryScanId, ending: &Ending) -> Result<()> {
    let now = tx.now();
    let took = std::time::Duration::from_millis(u64::try_from(ending.duration_ms).unwrap_or(0));
    sqlx::query(
        "UPDATE discovery_scans
            SET directories = $2, certificates_found = $3, certificates_new = $4, errors_count = $5, errors = $6,
                scan_duration_ms = $7, started_at = $8, completed_at = $9
          WHERE id = $1",
    )
    .bind(scan)
    .bind(&ending.directories)
    .bind(ending.found)
    .bind(ending.new)
    .bind(ending.errors_count)
    .bind(&ending.errors)
    .bind(ending.duration_ms)
    .bind(now - took)
    .bind(now)
    .execute(&mut **tx)
    .await?;
    if ending.whole && !ending.directories.is_empty() {
        sqlx::query(
            "UPDATE discovered_certificates c SET missing_since = $3, updated_at = $3
              WHERE c.agent_id = $1 AND c.missing_since IS NULL AND c.discovery_scan_id IS DISTINCT FROM $2
                AND EXISTS (SELECT 1 FROM unnest($4::text[]) AS d (directory)
                             WHERE starts_with(c.source_path, rtrim(d.directory, '/\\') || '/')
                                OR starts_with(c.source_path, rtrim(d.directory, '/\\') || '\\'))",
        )
        .bind(agent)
        .bind(scan)
        .bind(now)
        .bind(&ending.directories)
        .execute(&mut **tx)
        .await?;
    }
    fold_tallies(tx).await
}

/// Adds up tallies that nobody else is adding up now.
async fn fold_tallies(tx: &mut Tx) -> Result<()> {
    sqlx::query(
        "WITH folded AS (
             DELETE FROM discovered_tallies
              WHERE ctid = ANY (ARRAY(SELECT ctid FROM discovered_tallies LIMIT 1000 FOR UPDATE SKIP LOCKED))
             RETURNING status, delta)
         INSERT INTO discovered_tallies SELECT status, sum(delta) FROM folded GROUP BY status",
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Links what was found, and nobody has decided on, to the managed certificates of which it is a version.
pub(crate) async fn manage(tx: &mut Tx, fingerprints: &[&str]) -> Result<()> {
    sqlx::query(
        "UPDATE discovered_certificates d
            SET status = 'Managed', managed_certificate_id = v.certificate_id, updated_at = $2
           FROM certificate_versions v
          WHERE d.fingerprint_sha256 = ANY ($1) AND d.status = 'Unmanaged'
            AND v.fingerprint_sha256 = d.fingerprint_sha256",
    )
    .bind(fingerprints)
    .bind(tx.now())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// A certificate that was found; the row is locked.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Locked {
    /// Its id.
    pub id: DiscoveredCertificateId,
    /// How it stands.
    pub status: DiscoveryStatus,
    /// SHA-256 of the DER, lower-case hexadecimal.
    #[sqlx(rename = "fingerprint_sha256")]
    pub fingerprint: String,
    /// The common name of its subject.
    pub common_name: String,
    /// Whether it is an authority's.
    pub is_ca: bool,
    /// The certificate.
    pub der: Vec<u8>,
    /// What it is linked to.
    pub managed_certificate_id: Option<CertificateId>,
}

/// Locks one.
///
/// # Errors
/// [`Error::Missing`].
pub async fn lock(tx: &mut Tx, id: &DiscoveredCertificateId) -> Result<Locked> {
    sqlx::query_as(
        "SELECT id, status, fingerprint_sha256, common_name, is_ca, der, managed_certificate_id
           FROM discovered_certificates WHERE id = $1 FOR UPDATE",
    )
    .bind(id)
    .fetch_optional(&mut **tx)
    .await?
    .ok_or_else(|| Error::Missing {
        kind: "discovered certificate",
        id: id.to_string(),
    })
}

/// Where else the same decision applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Only here.
    One,
    /// Wherever the same certificate was found, on any host.
    Fingerprint,
}

impl Locked {
    /// Refuses what is claimed already.
    ///
    /// # Errors
    /// [`Error::Conflict`] naming what it is linked to.
    pub fn must_be_claimable(&self) -> Result<()> {
        match self.status.can_be_claimed() {
            true => Ok(()),
            false => {
                let linked = self.managed_certificate_id.as_ref().map_or("", CertificateId::as_str);
                Err(Error::Conflict(format!(
                    "discovered certificate {} is claimed already, for certificate {linked}; dismiss it first",
                    self.id
                )))
            }
        }
    }

    /// Links it to a managed certificate. Returns how many rows were.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it is linked already.
    pub async fn claim(&self, tx: &mut Tx, certificate: &CertificateId, reach: Reach) -> Result<u64> {
        self.must_be_claimable()?;
        let done: Vec<DiscoveredCertificateId> = sqlx::query_scalar(
            "UPDATE discovered_certificates
                SET status = 'Managed', managed_certificate_id = $2, dismissed_at = NULL, dismissal_reason = NULL,
                    updated_at = $3
              WHERE id = $1 OR ($4 AND fingerprint_sha256 = $5 AND status <> 'Managed')
             RETURNING id",
        )
        .bind(&self.id)
        .bind(certificate)
        .bind(tx.now())
        .bind(reach == Reach::Fingerprint)
        .bind(&self.fingerprint)
        .fetch_all(&mut **tx)
        .await?;
        for id in &done {
            let event = tx
                .event("discovery_cert_claimed", "discovered_certificate", id)
                .with("managed_certificate_id", certificate)
                .with("fingerprint", &self.fingerprint)
                .with("common_name", &self.common_name);
            tx.note(event);
        }
        Ok(done.len() as u64)
    }

    /// Decides not to manage it; it is linked to nothing then. Returns how many rows were dismissed.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it is dismissed already.
    pub async fn dismiss(&self, tx: &mut Tx, reason: Option<&str>, reach: Reach) -> Result<u64> {
        if !self.status.can_be_dismissed() {
            return Err(Error::Conflict(format!(
                "discovered certificate {} is dismissed already",
                self.id
            )));
        }
        let done: Vec<DiscoveredCertificateId> = sqlx::query_scalar(
            "UPDATE discovered_certificates
                SET status = 'Dismissed', managed_certificate_id = NULL, dismissed_at = $2, dismissal_reason = $3,
                    updated_at = $2
              WHERE id = $1 OR ($4 AND fingerprint_sha256 = $5 AND status = 'Unmanaged')
             RETURNING id",
        )
        .bind(&self.id)
        .bind(tx.now())
        .bind(reason)
        .bind(reach == Reach::Fingerprint)
        .bind(&self.fingerprint)
        .fetch_all(&mut **tx)
        .await?;
        for id in &done {
            let event = tx
                .event("discovery_cert_dismissed", "discovered_certificate", id)
                .with("fingerprint", &self.fingerprint)
                .with("common_name", &self.common_name)
                .with("reason", reason);
            tx.note(event);
        }
        Ok(done.len() as u64)
    }
}
