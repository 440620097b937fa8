//! Why a certificate or a job stands where it stands.

use certctl_model::{
    explain::Explanation,
    id::{CertificateId, JobId},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::query::Id;

crate::resource! {
    explain "/api/v1";

    /// Explain why a certificate is, or is not, being renewed or deployed, and what happens next.
    GET "/certificates/{id}/explain" ExplainCertificate(path: Id<CertificateId>,) [Needs(View), Certificate] -> 200 CertificateExplanation;
    /// Explain what a job waits for, and what happens next.
    GET "/jobs/{id}/explain" ExplainJob(path: Id<JobId>,) [Needs(View), Job] -> 200 Explanation;
}

/// Why a certificate stands where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CertificateExplanation {
    /// The certificate.
    #[serde(flatten)]
    pub explanation: Explanation,
    /// Its jobs that are open or tried again, oldest first: issuances, renewals and deployments.
    pub jobs: Vec<Explanation>,
}
