//! Bulk operations: certificates wait in rows, and every scheduler takes some.

use std::sync::Arc;

use certctl_store::bulk;
use futures_util::future::join_all;

use crate::{Scheduler, journal};

/// How many transactions are under way side by side.
const LANES: usize = 8;

/// Does what is next, in each lane, and closes what is finished. Returns how many had their turn.
///
/// # Errors
/// When the database cannot be asked.
pub async fn round(scheduler: Arc<Scheduler>) -> anyhow::Result<u64> {
    let lanes = (0..LANES).map(|_| bulk::step(&scheduler.db, scheduler.now()));
    let mut done = 0;
    let mut trouble = None;
    for lane in join_all(lanes).await {
        match lane {
            Ok(moved) => done += moved,
            Err(error) => trouble = Some(error),
        }
    }
    // Before anybody is told that an operation is finished.
    journal::write(scheduler.clone()).await?;
    done += bulk::close(&scheduler.db, scheduler.now()).await?;
    match trouble {
        // Others move on; what could not be done is tried again in the next round.
        Some(error) if done == 0 => Err(error.into()),
        _ => Ok(done),
    }
}
