//! What can be said of a managed certificate.

crate::words! {
    /// The status of a managed certificate: a question put to its dates and open jobs, not a stored word.
    pub enum CertificateStatus {
        /// Requested, nothing issued yet.
        Pending = "Pending",
        /// Issued and not near its end.
        Active = "Active",
        /// In the last third of its life, or within 30 days of its end if that is shorter.
        Expiring = "Expiring",
        /// Past its end.
        Expired = "Expired",
        /// A renewal is under way.
        RenewalInProgress = "RenewalInProgress" | "renewal_in_progress",
        /// The last issuance or renewal failed; it is tried again.
        Failed = "Failed",
        /// Revoked.
        Revoked = "Revoked",
        /// Put aside by an operator; never renewed.
        Archived = "Archived",
    }
}

crate::words! {
    /// Whether the targets of a certificate have what they should.
    pub enum DeploymentStatus {
        /// Every target has its version, and every endpoint that was checked serves it.
        Deployed = "Deployed",
        /// Some targets have their version, others do not.
        Partial = "Partial",
        /// No target has its version yet, or it was not checked yet whether it is served; nothing has failed.
        Pending = "Pending",
        /// The last attempt to deploy failed; it is tried again.
        Failed = "Failed",
        /// An endpoint was seen that does not serve what was deployed.
        Drifted = "Drifted",
    }
}
