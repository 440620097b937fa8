//! Certificates found on hosts, and what becomes of them.

use certctl_model::{
    discovery::DiscoveryStatus,
    id::{AgentId, CertificateId, DiscoveredCertificateId, DiscoveryScanId},
    key::KeyAlgorithm,
    serial::Serial,
    time::Time,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    list::{List, Page, blank},
    query::Id,
    transfer::Enrolment,
};

crate::resource! {
    discovery "/api/v1";

    /// Report the certificates found on an agent's host.
    ///
    /// Up to 64 MiB and 200,000 certificates, stored together or not at all. What a certificate says is read from its
    /// PEM; what else the report says of it is ignored.
    POST "/agents/{id}/discoveries" SubmitDiscoveries(path: Id<AgentId>, body: DiscoveryReport,) [Agent; Upload]
        -> 202 DiscoveryScan;
    /// List certificates found on hosts, last seen first. `pem_data` is left out unless `fields` asks for it.
    GET "/discovered-certificates" ListDiscoveredCertificates(query: List<DiscoveredFilter, DiscoveredSort>,)
        [Needs(View)] -> 200 Page<DiscoveredCertificate>;
    /// Fetch one certificate that was found on a host.
    GET "/discovered-certificates/{id}" GetDiscoveredCertificate(path: Id<DiscoveredCertificateId>,) [Needs(View)]
        -> 200 DiscoveredCertificate;
    /// Claim a certificate that was found: link it to a managed certificate, or begin to manage it.
    ///
    /// With `managed_certificate_id` it is linked. Without, a managed certificate of the same names is made of it. What
    /// was dismissed can be claimed; what is claimed already cannot.
    POST "/discovered-certificates/{id}/claim" ClaimDiscoveredCertificate(
        path: Id<DiscoveredCertificateId>, body: ClaimRequest,) [Needs(Operate)] -> 200 Triaged;
    /// Dismiss a certificate that was found: it is not to be managed. If it was claimed, the link is taken away.
    POST "/discovered-certificates/{id}/dismiss" DismissDiscoveredCertificate(
        path: Id<DiscoveredCertificateId>, body: DismissRequest,) [Needs(Operate)] -> 200 Triaged;
    /// List scans of hosts, newest first.
    GET "/discovery-scans" ListDiscoveryScans(query: List<ScanFilter, ScanSort>,) [Needs(View)]
        -> 200 Page<DiscoveryScan>;
    /// Count the certificates found on hosts by status.
    GET "/discovery-summary" GetDiscoverySummary() [Needs(View)] -> 200 DiscoverySummary;
}

crate::query! {
    /// Which certificates.
    pub struct DiscoveredFilter {
        /// Only certificates on the host of this agent.
        agent_id: AgentId,
        /// Only certificates of this status.
        status: DiscoveryStatus,
        /// Only certificates that have, or have not, expired.
        expired: bool,
        /// Only certificates of authorities, or of others.
        is_ca: bool,
        /// Only certificates that are, or are not, missing where they were found.
        missing: bool,
        /// Only the certificate with this SHA-256, lower-case hexadecimal.
        fingerprint: String,
        /// Only certificates linked to this managed certificate.
        managed_certificate_id: CertificateId,
        /// Only certificates that expire before this time.
        expires_before: Time,
        /// Only certificates that expire after this time.
        expires_after: Time,
    }
}

crate::sort_keys! {
    /// How certificates that were found are sorted.
    pub enum DiscoveredSort {
        LastSeenAt = "lastSeenAt",
        FirstSeenAt = "firstSeenAt",
        NotAfter = "notAfter",
        CommonName = "commonName",
    }
}

crate::query! {
    /// Which scans.
    pub struct ScanFilter {
        /// Only scans of this agent.
        agent_id: AgentId,
    }
}

crate::sort_keys! {
    /// How scans are sorted.
    pub enum ScanSort { StartedAt = "startedAt" }
}

/// What an agent found.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct DiscoveryReport {
    /// The directories that were walked.
    #[serde(default)]
    pub directories: Option<Vec<String>>,
    /// The certificates found there.
    #[serde(default)]
    pub certificates: Option<Vec<DiscoveryEntry>>,
    /// What could not be read.
    #[serde(default)]
    pub errors: Option<Vec<String>>,
    /// How long it took, in milliseconds.
    #[serde(default)]
    pub scan_duration_ms: Option<i64>,
    /// Whether certificates of these directories were left out, so that what is not in the report may still be there.
    #[serde(default)]
    pub partial: Option<bool>,
}

/// A certificate an agent found. Agents may say more of it; that is ignored.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct DiscoveryEntry {
    /// The certificate, in PEM.
    #[serde(default)]
    pub pem_data: Option<String>,
    /// The file, at most 1024 octets.
    #[serde(default)]
    pub source_path: Option<String>,
    /// How the file holds it: `PEM` or `DER`.
    #[serde(default)]
    pub source_format: Option<String>,
}

/// A certificate found on a host: one entry for each host and file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DiscoveredCertificate {
    /// Its id.
    pub id: DiscoveredCertificateId,
    /// SHA-256 of the DER, lower-case hexadecimal.
    pub fingerprint_sha256: String,
    /// The common name of its subject; empty when it has none.
    pub common_name: String,
    /// Its other names.
    pub sans: Vec<String>,
    /// Serial number, lower-case hexadecimal.
    pub serial_number: Serial,
    /// Its issuer's name.
    pub issuer_dn: String,
    /// Its subject's name.
    pub subject_dn: String,
    /// Begin of validity.
    pub not_before: Time,
    /// End of validity.
    pub not_after: Time,
    /// Key algorithm.
    pub key_algorithm: KeyAlgorithm,
    /// Key size in bits.
    pub key_size: i32,
    /// Whether it is an authority's.
    pub is_ca: bool,
    /// SHA-256 of its SubjectPublicKeyInfo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spki_sha256: Option<String>,
    /// When its key was blocked; absent when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_blocked_at: Option<Time>,
    /// The certificate, in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pem_data: Option<String>,
    /// The file it was found in.
    pub source_path: String,
    /// How the file holds it: `PEM` or `DER`.
    pub source_format: String,
    /// The agent on the host.
    pub agent_id: AgentId,
    /// The last scan that found it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discovery_scan_id: Option<DiscoveryScanId>,
    /// The managed certificate it is linked to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed_certificate_id: Option<CertificateId>,
    /// What became of it.
    pub status: DiscoveryStatus,
    /// When it was found first.
    pub first_seen_at: Time,
    /// When it was found last.
    pub last_seen_at: Time,
    /// Since when scans of its directory do not find it any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing_since: Option<Time>,
    /// When it was dismissed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dismissed_at: Option<Time>,
    /// Why it was dismissed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dismissal_reason: Option<String>,
    /// When it was recorded.
    pub created_at: Time,
    /// When it was last changed.
    pub updated_at: Time,
}

/// A scan of a host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct DiscoveryScan {
    /// Its id.
    pub id: DiscoveryScanId,
    /// The agent on the host.
    pub agent_id: AgentId,
    /// The directories that were walked.
    pub directories: Vec<String>,
    /// How many certificates were found.
    pub certificates_found: i32,
    /// How many of them were not known.
    pub certificates_new: i32,
    /// How many things could not be read.
    pub errors_count: i32,
    /// The first hundred of them.
    pub errors: Vec<String>,
    /// How long it took, in milliseconds.
    pub scan_duration_ms: i64,
    /// When it began.
    pub started_at: Time,
    /// When its report was stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
}

/// How a certificate that was found is to be managed.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct ClaimRequest {
    /// The managed certificate to link it to; a new one is made when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub managed_certificate_id: Option<CertificateId>,
    /// How the new one is managed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create: Option<Enrolment>,
    /// Whether to claim it wherever the same certificate was found.
    #[serde(default)]
    pub all_with_fingerprint: bool,
}

/// Why a certificate that was found is not to be managed.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct DismissRequest {
    /// The reason, up to 1024 characters.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
    /// Whether to dismiss it wherever the same certificate was found and nobody has decided.
    #[serde(default)]
    pub all_with_fingerprint: bool,
}

/// What was decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Triaged {
    /// `claimed` or `dismissed`.
    pub status: String,
    /// The same in a sentence.
    pub message: String,
    /// The managed certificate it is linked to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed_certificate_id: Option<CertificateId>,
}

/// How many certificates were found, by status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "PascalCase")]
pub struct DiscoverySummary {
    /// Nobody has decided yet.
    pub unmanaged: i64,
    /// Linked to a managed certificate.
    pub managed: i64,
    /// Not to be managed.
    pub dismissed: i64,
}
