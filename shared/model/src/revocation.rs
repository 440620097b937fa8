//! Reasons for revocation (RFC 5280 §5.3.1).

crate::words! {
    /// Why a certificate was revoked; the eight reasons the API accepts.
    pub enum RevocationReason {
        /// No reason given; left out of CRL entries.
        Unspecified = "unspecified",
        /// The private key is known to others.
        KeyCompromise = "keyCompromise",
        /// The key of the authority is known to others.
        CaCompromise = "caCompromise" | "cACompromise",
        /// The subject's name or affiliation changed.
        AffiliationChanged = "affiliationChanged",
        /// Replaced by another certificate.
        Superseded = "superseded",
        /// No longer needed.
        CessationOfOperation = "cessationOfOperation",
        /// Suspended.
        CertificateHold = "certificateHold",
        /// A privilege in the certificate was withdrawn.
        PrivilegeWithdrawn = "privilegeWithdrawn",
    }
}

impl RevocationReason {
    /// The CRLReason code.
    pub const fn code(self) -> u8 {
        match self {
            Self::Unspecified => 0,
            Self::KeyCompromise => 1,
            Self::CaCompromise => 2,
            Self::AffiliationChanged => 3,
            Self::Superseded => 4,
            Self::CessationOfOperation => 5,
            Self::CertificateHold => 6,
            Self::PrivilegeWithdrawn => 9,
        }
    }
}
