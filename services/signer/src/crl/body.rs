//! The octets of a CRL between being written and being signed, in memory that does not grow with them.
//!
//! A list of the usual size stays in memory and is stored in the transaction that publishes it. A large one flows into
//! the database by another connection while its entries are still being read; what is signed is then read back, and so
//! is what will be served.

use certctl_store::{crls::Body, tx};
use sqlx::{PgPool, Postgres, Transaction};
use tokio::sync::mpsc;

use crate::error::{Error, Result};

/// Octets of a chunk, but for the first and the last.
pub(super) const CHUNK: usize = 256 * 1024;
/// Chunks that stay in memory.
const KEPT: usize = 32;

/// Takes chunks in their order.
pub(super) struct Sink {
    kept: Vec<Vec<u8>>,
    overflowed: bool,
    sender: mpsc::Sender<Vec<u8>>,
    /// Octets so far.
    pub(super) length: u64,
}

/// Chunks that are in the database: a transaction that alone sees them, and how many they are.
pub(super) type Stored = Option<(Transaction<'static, Postgres>, i32)>;

/// A sink, and what stores the chunks that do not stay in memory: awaited beside whatever fills the sink.
pub(super) fn open(pool: &PgPool, body: &Body) -> (Sink, impl Future<Output = Result<Stored>> + use<>) {
    let (sender, mut chunks) = mpsc::channel::<Vec<u8>>(4);
    let (pool, body) = (pool.clone(), body.clone());
    let store = async move {
        let Some(first) = chunks.recv().await else {
            return Ok(None);
        };
        let mut tx = tx::begin(&pool, None).await?;
        sqlx::query("SELECT set_config('idle_in_transaction_session_timeout', '10min', true)")
            .execute(&mut *tx)
            .await?;
        let (mut seq, mut next) = (0, Some(first));
        while let Some(chunk) = next {
            seq += 1;
            body.put(&mut tx, seq, &chunk).await?;
            next = chunks.recv().await;
        }
        Ok(Some((tx, seq)))
    };
    let sink = Sink {
        kept: Vec::new(),
        overflowed: false,
        sender,
        length: 0,
    };
    (sink, store)
}

impl Sink {
    /// Takes the next chunk.
    ///
    /// # Errors
    /// When chunks cannot be stored; why is what the other half of [`open`] says.
    pub(super) async fn put(&mut self, chunk: Vec<u8>) -> Result<()> {
        self.length += chunk.len() as u64;
        self.kept.push(chunk);
        self.overflowed |= self.kept.len() > KEPT;
        if self.overflowed {
            for chunk in self.kept.drain(..) {
                let sent = self.sender.send(chunk).await;
                sent.map_err(|_| Error::Internal(anyhow::anyhow!("chunks of a CRL could not be stored")))?;
            }
        }
        Ok(())
    }

    /// Says that there are no more; what stayed in memory is returned.
    pub(super) fn close(self) -> Vec<Vec<u8>> {
        self.kept
    }
}
