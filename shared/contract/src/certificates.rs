//! Managed certificates, their versions, and what can be done with them.

use std::collections::BTreeMap;

use certctl_model::{
    certificate::{CertificateStatus, DeploymentStatus},
    id::{AgentId, CertificateId, IssuerId, JobId, OwnerId, ProfileId, RenewalPolicyId, TargetId, TeamId, VersionId},
    key::{KeyAlgorithm, KeyFingerprint},
    name::San,
    revocation::RevocationReason,
    serial::Serial,
    time::Time,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    endpoint::NoContent,
    health::Outcome,
    list::{Clearable, List, Page, Search, blank},
    query::Id,
    targets::Target,
};

crate::resource! {
    certificates "/api/v1/certificates";

    /// List certificates, newest first unless sorted.
    GET "" ListCertificates(query: List<CertificateFilter, CertificateSort>,) [Needs(View), Rows] -> 200 Page<Certificate>;
    /// Request a certificate.
    ///
    /// The agent of each target makes a key and sends a certification request; what is issued is deployed to the
    /// targets. With `csr_pem` the request is there already, and what is issued for it is exported. With neither it waits
    /// until one is given, or is tracked only: `expires_at` says until when the certificate is valid that is in use
    /// elsewhere.
    POST "" CreateCertificate(body: NewCertificate,) [Needs(Request), Change] -> 201 Certificate;
    /// Fetch one certificate.
    GET "/{id}" GetCertificate(path: Id<CertificateId>,) [Needs(View), Certificate] -> 200 Certificate;
    /// Change a certificate. Keys that are absent keep their value; names changed here are certified at the next renewal.
    PUT "/{id}" UpdateCertificate(path: Id<CertificateId>, body: CertificateChanges,) [Needs(Operate), Certificate] -> 200 Certificate;
    /// Archive a certificate. It is no longer renewed; open jobs are cancelled.
    DELETE "/{id}" ArchiveCertificate(path: Id<CertificateId>,) [Needs(Operate), Certificate] -> 204 NoContent;
    /// List the versions of a certificate, newest first.
    GET "/{id}/versions" ListCertificateVersions(path: Id<CertificateId>, query: List<VersionFilter, VersionSort>,)
        [Needs(View), Certificate] -> 200 Page<CertificateVersion>;
    /// List the targets a certificate is deployed to.
    GET "/{id}/deployments" ListCertificateDeployments(path: Id<CertificateId>,) [Needs(View), Certificate] -> 200 Deployments;
    /// Renew a certificate now: a new key, a new version, deployed to its targets. One without targets is renewed for
    /// the certification request in `csr_pem`.
    POST "/{id}/renew" TriggerRenewal(path: Id<CertificateId>, body: RenewRequest,) [Needs(Request), Certificate] -> 202 Triggered;
    /// Deploy the newest version again, or an older one, to one target or to all.
    ///
    /// A target that is not one of the certificate's becomes one. Where its agent holds no valid version, one is issued.
    ///
    /// An older version goes to targets whose agent holds its key; it stays there until another is deployed or the
    /// certificate is renewed. Refused when it has expired or is revoked.
    POST "/{id}/deploy" TriggerDeployment(path: Id<CertificateId>, body: DeployRequest,) [Needs(Operate), Certificate] -> 202 Triggered;
    /// Look now whether what was deployed last is served at every address of the endpoints of its targets: of one, or of all
    /// that have endpoints. What is seen can be read at `/api/v1/endpoints`.
    POST "/{id}/validate" TriggerValidation(path: Id<CertificateId>, body: ValidateRequest,) [Needs(Operate), Certificate]
        -> 202 Triggered;
    /// Revoke a certificate: all its versions that have not expired.
    ///
    /// `certificateHold` suspends it: it can be released, or revoked for good by another reason.
    POST "/{id}/revoke" RevokeCertificate(path: Id<CertificateId>, body: RevokeRequest,) [Needs(Revoke), Certificate] -> 200 Outcome;
    /// Ask how far the revocation of a certificate has come: when it was recorded, and when it was first seen by OCSP and in
    /// the CRL at each edge that is probed.
    GET "/{id}/revocation" GetCertificateRevocation(path: Id<CertificateId>,) [Needs(View), Certificate] -> 200 CertificateRevocation;
    /// Release a certificate that was revoked with `certificateHold`: it is live again.
    POST "/{id}/release" ReleaseCertificate(path: Id<CertificateId>,) [Needs(Revoke), Certificate] -> 200 Outcome;
}

crate::query! {
    /// Which certificates.
    pub struct CertificateFilter {
        /// Only certificates found by this text: at least three characters anywhere in the name, the common name or another
        /// name, in any case; or the beginning of the serial number or fingerprint of any version.
        q: Search,
        /// Only certificates of this status.
        status: CertificateStatus,
        /// Only certificates of this deployment status.
        deployment_status: DeploymentStatus,
        /// Only certificates of this environment.
        environment: String,
        /// Only certificates of this owner.
        owner_id: OwnerId,
        /// Only certificates of this team.
        team_id: TeamId,
        /// Only certificates of this issuer.
        issuer_id: IssuerId,
        /// Only certificates under this profile.
        profile_id: ProfileId,
        /// Only certificates deployed by this agent.
        agent_id: AgentId,
        /// Only certificates of which a version has this public key: SHA-256 of its SubjectPublicKeyInfo.
        spki_sha256: KeyFingerprint,
        /// Only certificates that expire before this time.
        expires_before: Time,
        /// Only certificates that expire after this time.
        expires_after: Time,
        /// Only certificates created after this time.
        created_after: Time,
        /// Only certificates created before this time.
        created_before: Time,
        /// Only certificates changed after this time.
        updated_after: Time,
        /// Only certificates changed before this time.
        updated_before: Time,
    }
}

crate::sort_keys! {
    /// How certificates are sorted.
    pub enum CertificateSort {
        CreatedAt = "createdAt",
        NotAfter = "notAfter",
        ExpiresAt = "expiresAt",
        UpdatedAt = "updatedAt",
        CommonName = "commonName",
        Name = "name",
        Status = "status",
        Environment = "environment",
    }
}

crate::query! {
    /// Which versions.
    pub struct VersionFilter {
        /// Only the version with this serial number, in any spelling.
        serial_number: Serial,
    }
}

crate::sort_keys! {
    /// How versions are sorted.
    pub enum VersionSort { CreatedAt = "createdAt" }
}

/// A managed certificate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Certificate {
    /// Its id.
    pub id: CertificateId,
    /// Its name, unique.
    pub name: String,
    /// The common name of its subject.
    pub common_name: San,
    /// Its other names.
    pub sans: Vec<San>,
    /// Where it is used: free text.
    pub environment: String,
    /// Who answers for it.
    pub owner_id: OwnerId,
    /// The team of its owner.
    pub team_id: TeamId,
    /// Who signs it.
    pub issuer_id: IssuerId,
    /// Where it is put.
    pub target_ids: Vec<TargetId>,
    /// When it is renewed.
    pub renewal_policy_id: RenewalPolicyId,
    /// What may be issued for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_profile_id: Option<ProfileId>,
    /// How it stands.
    pub status: CertificateStatus,
    /// When the oldest version expires that a target still has, or, before the first deployment, the newest; null before the
    /// first is issued.
    pub expires_at: Option<Time>,
    /// Free labels.
    pub tags: BTreeMap<String, String>,
    /// When it was last renewed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_renewal_at: Option<Time>,
    /// When it was last deployed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_deployment_at: Option<Time>,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Time>,
    /// Why it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocation_reason: Option<RevocationReason>,
    /// Why the last issuance or renewal failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// When it will be renewed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renew_at: Option<Time>,
    /// Serial number of the newest version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial_number: Option<Serial>,
    /// SHA-256 of the newest version's DER.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// Key algorithm of the newest version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_algorithm: Option<KeyAlgorithm>,
    /// Key size of the newest version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_size: Option<i32>,
    /// When the newest version was issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_at: Option<Time>,
    /// Whether its targets have what they should; absent without enabled targets, and once it is revoked or archived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment_status: Option<DeploymentStatus>,
    /// Since when the deployment status is this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment_status_since: Option<Time>,
    /// What it follows from: each target that does not have what it should, and why. Of `Deployed`, whether it was not checked
    /// what is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment_status_reason: Option<String>,
    /// When it was created.
    pub created_at: Time,
    /// When it was last changed.
    pub updated_at: Time,
    /// When the key of the newest version was blocked; absent when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_blocked_at: Option<Time>,
}

/// A certificate to be.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct NewCertificate {
    /// An id of your choice; one is made when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub id: Option<CertificateId>,
    /// Its name; the common name, made unique, when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The common name: a DNS name or an IP address. Required without `csr_pem`; else, when absent, that of the request,
    /// or the first DNS name or IP address among its other names.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub common_name: Option<String>,
    /// Other names: DNS names, IP addresses, e-mail addresses, URIs. When absent, those of the request in `csr_pem`.
    #[serde(default)]
    pub sans: Option<Vec<String>>,
    /// A certification request (PKCS #10) in PEM, of a key that no agent holds; not together with `target_ids`. The
    /// names it asks for are among the certificate's. Its certificate is not renewed by itself: renew it with another
    /// request.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub csr_pem: Option<String>,
    /// When the certificate expires that is in use elsewhere, of one that is tracked only: it is warned about and not
    /// renewed, and its status follows from this. Without effect together with `target_ids` or `csr_pem`.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// Where it is used: free text.
    #[serde(default)]
    pub environment: Option<String>,
    /// Who answers for it; `o-unassigned` when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub owner_id: Option<OwnerId>,
    /// The team; the owner's when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub team_id: Option<TeamId>,
    /// Who signs it; `iss-local` when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub issuer_id: Option<IssuerId>,
    /// Where it is put.
    #[serde(default)]
    pub target_ids: Option<Vec<TargetId>>,
    /// When it is renewed; `rp-default` when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub renewal_policy_id: Option<RenewalPolicyId>,
    /// What may be issued for it; the policy's profile when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub certificate_profile_id: Option<ProfileId>,
    /// Free labels.
    #[serde(default)]
    pub tags: Option<BTreeMap<String, String>>,
}

/// What to change of a certificate.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct CertificateChanges {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The common name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub common_name: Option<String>,
    /// Other names, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sans: Option<Vec<String>>,
    /// Where it is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// Who answers for it.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub owner_id: Option<OwnerId>,
    /// The team.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub team_id: Option<TeamId>,
    /// Who signs it from now on.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub issuer_id: Option<IssuerId>,
    /// Where it is put, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ids: Option<Vec<TargetId>>,
    /// When it is renewed.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub renewal_policy_id: Option<RenewalPolicyId>,
    /// What may be issued for it; empty for no profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_profile_id: Option<Clearable<ProfileId>>,
    /// When the certificate expires that is in use elsewhere. Without effect once a version was issued or imported.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// Free labels, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
}

/// One issued X.509 certificate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CertificateVersion {
    /// Its id.
    pub id: VersionId,
    /// Of which certificate.
    pub certificate_id: CertificateId,
    /// 1 for the oldest.
    pub version: i32,
    /// Serial number, lower-case hexadecimal.
    pub serial_number: Serial,
    /// Begin of validity.
    pub not_before: Time,
    /// End of validity.
    pub not_after: Time,
    /// SHA-256 of the DER, lower-case hexadecimal.
    pub fingerprint_sha256: String,
    /// The same.
    pub fingerprint: String,
    /// SHA-256 of the public key's DER (SubjectPublicKeyInfo), lower-case hexadecimal.
    pub spki_sha256: String,
    /// The certificate, then its issuer's chain, in PEM.
    pub pem_chain: String,
    /// The certificate alone, in PEM.
    pub cert_pem: String,
    /// The issuer's chain, in PEM.
    pub chain_pem: String,
    /// The certification request it was issued for, in PEM; empty when it was imported.
    pub csr_pem: String,
    /// Key algorithm.
    pub key_algorithm: KeyAlgorithm,
    /// Key size in bits.
    pub key_size: i32,
    /// The agent that holds the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// The name of the authority that issued it; only of an imported version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imported_from: Option<String>,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Time>,
    /// When its key was blocked; absent when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_blocked_at: Option<Time>,
    /// When it was recorded.
    pub created_at: Time,
}

/// The targets of a certificate.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Deployments {
    /// The targets, newest first.
    pub data: Vec<Target>,
    /// How many.
    pub total: i64,
}

/// What was set going.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Triggered {
    /// `renewal_triggered`, `deployment_triggered` or `validation_triggered`.
    pub status: String,
    /// The first job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<JobId>,
    /// All jobs: one for each agent or target.
    #[serde(default)]
    pub job_ids: Vec<JobId>,
    /// The private key that the server made for the certificate, PKCS #8 in PEM: shown here and nowhere else, and not kept.
    /// Only where the server is configured to make keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_key_pem: Option<String>,
}

/// The revocation of a certificate, and how far it has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CertificateRevocation {
    /// Which certificate.
    pub certificate_id: CertificateId,
    /// Of each serial number that was issued for it, newest first.
    pub serials: Vec<RevokedSerial>,
}

/// The revocation of one serial number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RevokedSerial {
    /// Which issuer.
    pub issuer_id: IssuerId,
    /// Which serial number of it.
    pub serial_number: Serial,
    /// Why.
    pub reason: RevocationReason,
    /// By whom.
    pub revoked_by: String,
    /// When it was recorded.
    pub revoked_at: Time,
    /// When a hold was released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released_at: Option<Time>,
    /// Since when the key is thought to be known to others, or the certificate wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invalidity_date: Option<Time>,
    /// Whether it is published at all; of a certificate whose life is short it is not.
    pub published: bool,
    /// The shard of the CRL that lists it; 0 is the full one.
    pub crl_shard: i32,
    /// The number of the CRL that lists it: the lowest of those that are kept. Absent until there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crl_number: Option<i64>,
    /// What was seen from outside, at each edge that is probed.
    pub sightings: Vec<Sighting>,
}

/// When a revocation was first seen at an edge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sighting {
    /// The address of the edge.
    pub edge: String,
    /// When OCSP called it revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ocsp_at: Option<Time>,
    /// When the CRL listed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crl_at: Option<Time>,
    /// The number of that CRL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crl_number: Option<i64>,
}

/// How to renew.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct RenewRequest {
    /// A certification request (PKCS #10) in PEM, of a certificate without enabled targets.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub csr_pem: Option<String>,
}

/// Where to deploy.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct DeployRequest {
    /// One target, which becomes one of the certificate's; all of the certificate's when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub target_id: Option<TargetId>,
    /// Which version; the newest when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub version_id: Option<VersionId>,
    /// The same by its number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<i32>,
}

/// Where to look.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct ValidateRequest {
    /// One target; all of the certificate's that have endpoints when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub target_id: Option<TargetId>,
}

/// Why to revoke.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct RevokeRequest {
    /// The reason; `unspecified` when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub reason: Option<RevocationReason>,
    /// Since when the key is thought to be known to others, or the certificate wrong (RFC 5280 §5.3.2): not before the
    /// certificate began, and not in the future.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub invalidity_date: Option<Time>,
}
