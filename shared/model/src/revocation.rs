//! Reasons for revocation (RFC 5280 §5.3.1), and a revocation as it is kept outside the database.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    id::{CertificateId, IssuerId},
    serial::Serial,
    time::Time,
};

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

/// How a serial number stands after a revocation or a release: all that is needed to say so again, whatever else is
/// lost. A line of a journal is one of these as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct RevocationRecord {
    /// Which issuer.
    pub issuer_id: IssuerId,
    /// Which serial number of it.
    pub serial_number: Serial,
    /// The managed certificate it was issued for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_id: Option<CertificateId>,
    /// Why it was revoked.
    pub reason: RevocationReason,
    /// By whom.
    pub revoked_by: String,
    /// When.
    pub revoked_at: Time,
    /// When a hold was released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released_at: Option<Time>,
    /// Since when the key is thought to be known to others, or the certificate wrong (RFC 5280 §5.3.2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invalidity_date: Option<Time>,
    /// When the certificate ends.
    pub not_after: Time,
    /// Whether the revocation is not published, because the certificate's life is short.
    #[serde(default)]
    pub short_lived: bool,
    /// The shard of the CRL that the certificate names; 0 is the full one.
    #[serde(default)]
    pub shard: i32,
}

impl RevocationRecord {
    /// When it came to stand so.
    pub fn changed_at(&self) -> Time {
        self.released_at.unwrap_or(self.revoked_at)
    }

    /// Whether it tells more than another of the same serial number: it is of a later day, or makes a hold final as of
    /// the same.
    pub fn outdoes(&self, other: &Self) -> bool {
        let held = |record: &Self| record.reason == RevocationReason::CertificateHold;
        (self.changed_at(), !held(self)) > (other.changed_at(), !held(other))
    }

    /// Whether it could have come to be: only a hold is released, after it began, and nothing lies in the future.
    pub fn is_consistent(&self, now: Time) -> bool {
        let released = self
            .released_at
            .is_none_or(|at| self.reason == RevocationReason::CertificateHold && at >= self.revoked_at);
        released && self.changed_at() <= now && self.invalidity_date.is_none_or(|date| date <= now) && self.shard >= 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(reason: RevocationReason, revoked: i64, released: Option<i64>) -> RevocationRecord {
        RevocationRecord {
            issuer_id: "iss-local".parse().unwrap(),
            serial_number: "5f".parse().unwrap(),
            certificate_id: None,
            reason,
            revoked_by: "somebody".to_owned(),
            revoked_at: Time::from_unix(revoked),
            released_at: released.map(Time::from_unix),
            invalidity_date: None,
            not_after: Time::from_unix(1_000),
            short_lived: false,
            shard: 0,
        }
    }

    #[test]
    fn the_later_of_two_records_counts_and_of_two_of_one_day_the_final_one() {
        use RevocationReason::{CertificateHold as Hold, KeyCompromise as Final};
        let story = [
            record(Hold, 1, None),
            record(Final, 1, None),
            record(Hold, 1, Some(2)),
            record(Hold, 3, None),
        ];
        for (earlier, a) in story.iter().enumerate() {
            for (later, b) in story.iter().enumerate() {
                assert_eq!(b.outdoes(a), later > earlier, "{earlier} and {later}");
            }
        }
    }

    #[test]
    fn what_could_not_be_is_noticed() {
        let now = Time::from_unix(10);
        for (reason, revoked, released, fits) in [
            (RevocationReason::CertificateHold, 1, Some(2), true),
            (RevocationReason::CertificateHold, 2, Some(1), false),
            (RevocationReason::KeyCompromise, 1, Some(2), false),
            (RevocationReason::KeyCompromise, 10, None, true),
            (RevocationReason::KeyCompromise, 11, None, false),
        ] {
            assert_eq!(
                record(reason, revoked, released).is_consistent(now),
                fits,
                "{reason} {revoked} {released:?}"
            );
        }
    }
}
