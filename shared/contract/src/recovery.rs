//! After a restore of the database: what the backup forgot comes back, and until then nothing is issued.

use certctl_model::{revocation::RevocationRecord, time::Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

crate::resource! {
    recovery "/api/v1/recovery";

    /// Ask whether the database is older than what the signer remembers, so that nothing is issued.
    GET "" GetRecovery() [Needs(View)] -> 200 Recovery;
    /// Bring back revocations that the database does not have: records of a journal, in any order.
    ///
    /// What is there already stays, so that a batch can be sent again. A certificate that the database does not know
    /// is revoked all the same, by its issuer and serial number. `certctl-cli restore-revocations` sends the files of a
    /// journal.
    POST "/revocations" RestoreRevocationRecords(body: RevocationRecords,) [Needs(Administer); Import] -> 200 Restored;
    /// Declare that everything is brought back: issuance goes on, and CRLs are made again.
    POST "/finish" FinishRecovery() [Needs(Administer)] -> 200 Recovery;
}

/// Records that are taken at once.
pub const MOST_RECORDS: usize = 5_000;

/// Whether nothing is issued, and since when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Recovery {
    /// Whether nothing is issued until the recovery is finished.
    pub fenced: bool,
    /// When the signer found that the database is older than what it remembers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found_at: Option<Time>,
    /// When the last recovery was finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// By whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_by: Option<String>,
}

/// Lines of a journal.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct RevocationRecords {
    /// The records.
    #[schemars(length(min = 1, max = 5_000))]
    pub records: Vec<RevocationRecord>,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Restored {
    /// Records that told of something the database did not have.
    pub restored: i64,
    /// Records of what it had.
    pub known: i64,
}
