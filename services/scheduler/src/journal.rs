//! Keeps revocations outside the database: those that are recorded here, and those whose recorder died too early.

use std::{sync::Arc, time::Duration};

use certctl_store::journal;

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
