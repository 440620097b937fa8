//! The tables that more than one process writes, as verbs.
//!
//! | module | holds |
//! |---|---|
//! | [`tx`] | the unit of work: changes and the audit events that tell of them |
//! | [`jobs`] | insert, claim under a lease, lock in a state, apply a transition, retry deployments |
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
//! | [`scope`] | which certificates a party reaches |
//! | [`tallies`] | counts kept as differences; statuses that change by themselves |
//! | [`validations`] | whether what clients connect to serves what was deployed |
//! | [`lease`] | who runs a periodic loop |
//! | [`loops`] | how periodic loops went |
//! | [`wake`] | LISTEN and NOTIFY |
//! | [`connect`], [`migrate`] | sessions, what has to hold before one is used, and the schema |
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
pub mod scope;
mod session;
pub mod tallies;
pub mod tx;
pub mod validations;
pub mod wake;

use sqlx::migrate::Migrator;

pub use self::{
    error::{Error, Result},
    session::{admit, connect, migrate, reaches, ready},
    tx::Tx,
};

/// The schema: forward-only, applied in one transaction each, under an advisory lock.
pub static MIGRATOR: Migrator = sqlx::migrate!("../../migrations");

/// One value of each row, to be bound as an array.
fn column<'a, T, V>(rows: &'a [T], of: impl Fn(&'a T) -> V) -> Vec<V> {
    rows.iter().map(of).collect()
}
