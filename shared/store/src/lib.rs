//! The tables that more than one process writes, as verbs.
//!
//! | module | holds |
//! |---|---|
//! | [`tx`] | the unit of work: changes and the audit events that tell of them |
//! | [`jobs`] | insert, claim under a lease, lock in a state, apply a transition |
//! | [`certificates`] | ask for issuance and deployment, record a version, note a failure |
//! | [`approvals`] | who has to agree before a request is signed, and who did |
//! | [`bulk`] | one thing done to many certificates, each in a transaction of its own |
//! | [`imports`] | take in what others issued |
//! | [`discovery`] | certificates found on hosts: reports, claims, dismissals |
//! | [`policies`] | certificates held against rules |
//! | [`freezes`] | times in which nothing is renewed by itself |
//! | [`planning`] | dates, what is due, and jobs in line with targets and policy |
//! | [`journal`] | what has to be kept outside the database, and is not yet |
//! | [`revocations`] | revoke, release; the status of a serial number |
//! | [`crls`] | which CRLs there are, when they are due, their entries and octets |
//! | [`ledger`] | what the signer is about to sign, and what it signed |
//! | [`agents`] | signs of life and their absence |
//! | [`outbox`] | notifications on their way out |
//! | [`tallies`] | counts kept as differences; statuses that change by themselves |
//! | [`validations`] | whether what clients connect to serves what was deployed |
//! | [`lease`] | who runs a periodic loop |
//! | [`loops`] | how periodic loops went |
//! | [`wake`] | LISTEN and NOTIFY |
//! | [`error`] | what can happen to data |
//!
//! Not here: SQL of tables with a single writer and reads for lists (they are in the API), HTTP, the time of day.
#![warn(missing_docs)]

pub mod agents;
pub mod approvals;
mod budgets;
pub mod bulk;
pub mod certificates;
pub mod crls;
pub mod discovery;
pub mod error;
pub mod freezes;
pub mod imports;
pub mod jobs;
pub mod journal;
pub mod lease;
pub mod ledger;
pub mod loops;
pub mod outbox;
pub mod planning;
pub mod policies;
pub mod revocations;
pub mod tallies;
pub mod tx;
pub mod validations;
pub mod wake;

use std::{
    str::FromStr,
    time::{Duration, Instant},
};

use certctl_model::time::{Clock, Time};
use sqlx::{
    PgConnection, PgPool,
    migrate::Migrator,
    postgres::{PgConnectOptions, PgPoolOptions},
};

pub use self::{
    error::{Error, Result},
    tx::Tx,
};

/// The schema: forward-only, applied in one transaction each, under an advisory lock.
pub static MIGRATOR: Migrator = sqlx::migrate!("../../migrations");

/// How long a caller waits for a connection before it hears [`Error::Busy`].
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens a pool whose sessions run as `role` (`certctl_api`, …), in UTC, with bounded statements.
///
/// The login in `url` must be that role or a member of it. No connection is made yet, so that a service starts while
/// the database is away and is ready when it is back. Each new connection tells `clock` what time it is in the database,
/// before anything is asked that depends on it.
///
/// # Errors
/// When `url` cannot be read.
pub fn connect(url: &str, role: &str, max_connections: u32, clock: &Clock) -> Result<PgPool> {
    let options = PgConnectOptions::from_str(url)?.application_name(role).options([
        ("role", role),
        ("timezone", "UTC"),
        ("statement_timeout", "30s"),
        ("lock_timeout", "10s"),
        // A process that hangs in the middle keeps nobody waiting for longer.
        ("idle_in_transaction_session_timeout", "10s"),
        // Statements are short: to compile one, or to share it out, would cost more than it saves.
        ("jit", "off"),
        ("max_parallel_workers_per_gather", "0"),
    ]);
    Ok(PgPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .after_connect({
            let clock = clock.clone();
            move |db, _| {
                let clock = clock.clone();
                Box::pin(async move { agree(db, &clock).await })
            }
        })
        .connect_lazy_with(options))
}

/// All replicas go by the clock of the database: one whose own is wrong would see leases run out that did not, and
/// certificates expire that have not.
async fn agree(db: &mut PgConnection, clock: &Clock) -> sqlx::Result<()> {
    const WORTH_A_WORD: f64 = 5.0;
    let asked = Instant::now();
    let said: Time = sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(db).await?;
    if let Some(ahead) = clock.tell(said, asked).filter(|ahead| ahead.abs() > WORTH_A_WORD) {
        let (by, which) = (ahead.abs(), if ahead > 0.0 { "ahead of" } else { "behind" });
        tracing::warn!("this machine's clock is {by:.0} s {which} the database's, which counts");
    }
    Ok(())
}

/// One value of each row, to be bound as an array.
fn column<'a, T, V>(rows: &'a [T], of: impl Fn(&'a T) -> V) -> Vec<V> {
    rows.iter().map(of).collect()
}

/// Applies the migrations that are missing, as the owner of the database.
///
/// # Errors
/// When the database cannot be reached or its history differs from ours.
pub async fn migrate(url: &str) -> Result<(), sqlx::migrate::MigrateError> {
    let pool = PgPoolOptions::new().max_connections(1).connect(url).await?;
    MIGRATOR.run(&pool).await?;
    pool.close().await;
    Ok(())
}
