//! Certificates in and out: PEM, DER, PKCS #12.

use std::collections::BTreeMap;

use certctl_model::{
    id::{CertificateId, IssuerId, OwnerId, RenewalPolicyId, TargetId, TeamId, VersionId},
    name::San,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    endpoint::{File, Media},
    list::blank,
    query::Id,
};

crate::resource! {
    transfer "/api/v1/certificates";

    /// Import certificates that others issued: each becomes a managed certificate with its first version.
    ///
    /// Certificates of authorities are not managed; those in the bundle that signed another are kept as its chain. What
    /// is known already is named and left alone, so that an import can be repeated. Private keys are refused. Imported
    /// certificates are renewed by our own issuer once they have targets.
    POST "/import" ImportCertificates(body: ImportRequest,) [Needs(Operate); Import] -> 200 ImportResult;
    /// Export a version of a certificate as a file. No format has a private key in it: those stay on their hosts.
    ///
    /// `pem` is the certificate, `chain` what is above it, `fullchain` both, `der` the certificate in DER, `p12` both in
    /// PKCS #12 with the password `changeit`.
    GET "/{id}/export" ExportCertificate(path: Id<CertificateId>, query: ExportQuery,) [Needs(View), Certificate]
        -> 200 File<CertificateFile>;
}

crate::query! {
    /// What to export.
    pub struct ExportQuery {
        /// The format; `fullchain` when absent.
        format: ExportFormat,
        /// The number of the version; the newest when absent.
        version: i32,
    }
}

certctl_model::words! {
    /// What a file of a certificate holds, and how.
    pub enum ExportFormat {
        /// The certificate, PEM.
        Pem = "pem",
        /// What is above it, PEM.
        Chain = "chain",
        /// The certificate and what is above it, PEM.
        Fullchain = "fullchain",
        /// The certificate, DER.
        Der = "der",
        /// The certificate and what is above it, PKCS #12 (RFC 7292).
        P12 = "p12",
    }
}

/// Media types of exported certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateFile {}

impl Media for CertificateFile {
    const TYPES: &'static [&'static str] = &[PEM_CHAIN, PKIX_CERT, PKCS12];
}

/// PEM of certificates (RFC 8555 §9.1).
pub const PEM_CHAIN: &str = "application/pem-certificate-chain";
/// DER of one certificate (RFC 2585 §4.1).
pub const PKIX_CERT: &str = "application/pkix-cert";
/// PKCS #12 (RFC 7292).
pub const PKCS12: &str = "application/x-pkcs12";

/// Certificates to import, up to 16 MiB.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct ImportRequest {
    /// Certificates in PEM, in any order.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub pem: Option<String>,
    /// One certificate: its DER in base64.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub der_base64: Option<String>,
    /// How they are managed from now on.
    #[serde(flatten)]
    pub enrolment: Enrolment,
}

/// How a certificate that others issued is managed from now on.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Enrolment {
    /// Who answers for it; `o-unassigned` when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub owner_id: Option<OwnerId>,
    /// The team; the owner's when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub team_id: Option<TeamId>,
    /// Who signs its renewals; `iss-local` when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub issuer_id: Option<IssuerId>,
    /// When it is renewed; `rp-default` when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub renewal_policy_id: Option<RenewalPolicyId>,
    /// Where it is used: free text; `imported` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// Free labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
    /// Where it is put. Agents hold no key of it, so each makes one and asks for a new version at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ids: Option<Vec<TargetId>>,
}

certctl_model::words! {
    /// What became of a certificate of an import.
    pub enum ImportOutcome {
        /// It is managed now.
        Created = "created",
        /// It was known already.
        Duplicate = "duplicate",
        /// It is an authority's: kept as chain of what it signed.
        Chain = "chain",
        /// It cannot be managed.
        Rejected = "rejected",
    }
}

/// What became of the certificates of an import.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ImportResult {
    /// Each of them, in the order given.
    pub data: Vec<ImportedItem>,
    /// How many were created.
    pub created: i64,
    /// How many were known already.
    pub duplicates: i64,
    /// How many are of authorities.
    pub chain: i64,
    /// How many cannot be managed.
    pub rejected: i64,
}

/// What became of one of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ImportedItem {
    /// Its place in the input, from 0.
    pub index: i64,
    /// What became of it.
    pub outcome: ImportOutcome,
    /// The managed certificate it is, or was already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_id: Option<CertificateId>,
    /// The version it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_id: Option<VersionId>,
    /// The name it goes by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub common_name: Option<San>,
    /// SHA-256 of its DER, lower-case hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// Why it cannot be managed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Names in it that cannot be certified here. They are kept; the certificate is not renewed while it has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uncertifiable_names: Vec<String>,
    /// What else is unusual about it, and what to do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}
