//! Keeps revocations outside the database: those that are recorded here, and those whose recorder died too early. Keeps
//! certificates there too, so that after a restore those are known that the backup does not have.

use std::{sync::Arc, time::Duration};

use certctl_store::{certificates::NewVersion, journal};
use tracing::error;

use crate::Scheduler;

/// How often is looked for what others left.
pub const EVERY: Duration = Duration::from_secs(30);

/// Appends to the journal what is not in one, if there is a journal. Returns nothing done: what comes meanwhile is its
/// recorder's to append.
///
/// # Errors
/// When the disk or the database fails.
pub async fn write(scheduler: Arc<Scheduler>) -> anyhow::Result<u64> {
    if let Some(journal) = &scheduler.journal {
        journal::write(&scheduler.db, None, |lines| journal.append(lines)).await?;
    }
    Ok(0)
}

/// Appends certificates to their journal, if there is one, before they are recorded. A disk that does not take them stops no
/// issuance: the database has them.
pub(crate) async fn keep_issued(scheduler: &Scheduler, versions: impl Iterator<Item = &NewVersion>) {
    let Some(journal) = &scheduler.issued else { return };
    let mut lines = Vec::new();
    for version in versions {
        lines.extend_from_slice(version.cert_pem.trim_end().as_bytes());
        lines.push(b'\n');
    }
    if let Err(error) = journal.append(lines).await {
        error!(%error, "issued certificates are not in the journal: after a restore they would have to be found on hosts");
    }
}
