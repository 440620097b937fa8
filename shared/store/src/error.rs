//! What can happen to data, in our words.

use certctl_model::job::JobStatus;

use crate::session;

/// What happened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such thing.
    #[error("there is no {kind} {id}")]
    Missing {
        /// What kind of thing.
        kind: &'static str,
        /// Which.
        id: String,
    },
    /// The job is in another state.
    #[error("job {id} is {is}; this needs {wanted}")]
    WrongJobState {
        /// Which job.
        id: String,
        /// How it stands.
        is: JobStatus,
        /// How it would have to.
        wanted: String,
    },
    /// The thing stands in a way that does not allow this.
    #[error("{0}")]
    Conflict(String),
    /// A unique constraint is violated.
    #[error("the value is in use ({constraint})")]
    Taken {
        /// Its name.
        constraint: String,
    },
    /// A foreign key is violated: what a row refers to is missing, or what is deleted is still referred to.
    #[error("a reference does not hold ({constraint})")]
    Reference {
        /// Its name.
        constraint: String,
    },
    /// A change concerns something that the party does not reach.
    #[error("{what} is outside of the scope of this key ({scope})")]
    OutOfScope {
        /// What the change concerns.
        what: String,
        /// What the party reaches.
        scope: String,
    },
    /// A text holds a NUL character, which Postgres cannot keep.
    #[error("a text holds a NUL character")]
    Unstorable,
    /// Somebody else holds the lease by now.
    #[error("the lease was lost")]
    LeaseLost,
    /// A unit of work wanted to commit without saying what it did.
    #[error("a change without an audit event is not committed")]
    Silent,
    /// The database has no time for us or cannot be reached; worth trying again.
    #[error("the database is busy or away: {0}")]
    Busy(#[source] sqlx::Error),
    /// The database cannot be used as it is reached; says what to change.
    #[error("{0}")]
    Refused(String),
    /// Something is wrong with us.
    #[error("database error: {0}")]
    Broken(#[source] sqlx::Error),
}

/// The result of a verb.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed => {
                Error::Busy(error)
            }
            sqlx::Error::Database(database) => {
                let constraint = || database.constraint().unwrap_or_default().to_owned();
                // Classes and codes of PostgreSQL, appendix A.
                match database.code().as_deref().unwrap_or_default() {
                    "23505" => Error::Taken {
                        constraint: constraint(),
                    },
                    // 23001: ON DELETE RESTRICT, from PostgreSQL 18 on
                    "23503" | "23001" => Error::Reference {
                        constraint: constraint(),
                    },
                    // lock_not_available, query_canceled, serialization_failure, deadlock_detected
                    "55P03" | "57014" | "40001" | "40P01" => Error::Busy(error),
                    // read_only_sql_transaction: the primary has become a replica, or is locked; the session is given up
                    "25006" => {
                        session::suspect();
                        Error::Busy(error)
                    }
                    // admin_shutdown, crash_shutdown, cannot_connect_now, database_dropped
                    "57P01" | "57P02" | "57P03" | "57P04" => {
                        session::suspect();
                        Error::Busy(error)
                    }
                    // connection exceptions, operator intervention, insufficient resources
                    code if ["08", "57P", "53"].iter().any(|class| code.starts_with(class)) => Error::Busy(error),
                    // character_not_in_repertoire, untranslatable_character
                    "22021" | "22P05" => Error::Unstorable,
                    _ => Error::Broken(error),
                }
            }
            _ => Error::Broken(error),
        }
    }
}

impl Error {
    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Error::Busy(_))
    }
}
