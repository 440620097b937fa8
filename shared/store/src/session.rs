//! Sessions of the database: how they are opened, and what has to hold before one is used.
//!
//! A service sends its settings (role, schema, time zone, time-outs) when it connects, and asks the new session whether
//! they took effect: a connection pooler between the two may drop them. A session that cannot write is not used, as on a
//! primary that became a replica. After an error that says so, sessions that were open by then are closed instead of
//! used again.

use std::{
    path::PathBuf,
    str::FromStr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use certctl_model::time::{Clock, Time};
use sqlx::{
    Connection, PgConnection, PgPool,
    migrate::MigrateError,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
};
use tokio::time::timeout;
use url::Url;

use crate::{
    MIGRATOR,
    error::{Error, Result},
};

/// How long a caller waits for a connection before it hears [`Error::Busy`].
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a readiness check waits for a connection before it asks why there is none.
const READY_TIMEOUT: Duration = Duration::from_millis(800);
/// How long a notification of our own may take to come back.
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(10);

/// What every session is set to: names and values as PostgreSQL shows them. The first five decide what is done and how
/// long it may take, and are verified.
const SETTINGS: [(&str, &str); 7] = [
    // Temporary objects come last, so that none hides a table of ours.
    ("search_path", "public,pg_temp"),
    ("timezone", "UTC"),
    ("statement_timeout", "30s"),
    ("lock_timeout", "10s"),
    // A process that hangs in the middle keeps nobody waiting for longer.
    ("idle_in_transaction_session_timeout", "10s"),
    // Statements are short: to compile one, or to share it out, would cost more than it saves.
    ("jit", "off"),
    ("max_parallel_workers_per_gather", "0"),
];

const VERIFIED: usize = 5;

/// What is said of a session whose settings did not take effect.
const POOLER: &str = "the settings sent at connect have no effect: a connection pooler such as PgBouncer is between. \
    Connect to PostgreSQL directly, or use the pooler in session mode with logins that have these settings \
    themselves (docs/ARCHITECTURE.md, \"Connection poolers\")";

const TRANSACTION_MODE: &str = "a connection pooler in transaction mode does not work, because prepared statements and \
    LISTEN belong to a session: use session mode, or connect to PostgreSQL directly (docs/ARCHITECTURE.md, \
    \"Connection poolers\")";

/// When the database was last seen to be a replica or to shut down.
static SUSPECT_SINCE: Mutex<Option<Instant>> = Mutex::new(None);

/// Has sessions that are open by now closed before they would be used again.
pub(crate) fn suspect() {
    *SUSPECT_SINCE.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
}

fn is_suspect(age: Duration) -> bool {
    let since = *SUSPECT_SINCE.lock().unwrap_or_else(PoisonError::into_inner);
    since.is_some_and(|since| since.elapsed() <= age)
}

/// Opens a pool whose sessions run as `role` (`certctl_api`, …), in the schema `public`, in UTC, with bounded
/// statements.
///
/// The login in `url` must be that role or a member of it. No connection is made yet, so that a service starts while
/// the database is away and is ready when it is back. Each new connection tells `clock` what time it is in the database,
/// before anything is asked that depends on it.
///
/// # Errors
/// [`Error::Refused`] when `url` cannot be read, or asks for something that is not supported.
pub fn connect(url: &str, role: &str, max_connections: u32, clock: &Clock) -> Result<PgPool> {
    let options = options(url)?
        .application_name(role)
        .options([("role", role)])
        .options(SETTINGS);
    Ok(PgPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .before_acquire(|_, meta| Box::pin(async move { Ok(!is_suspect(meta.age)) }))
        .after_connect({
            let (clock, role) = (clock.clone(), role.to_owned());
            move |db, _| {
                let (clock, role) = (clock.clone(), role.clone());
                Box::pin(async move {
                    let asked = Instant::now();
                    let session = Session::of(db).await?;
                    agree(&clock, session.time, asked);
                    session
                        .must_serve(&role)
                        .map_err(|why| sqlx::Error::Configuration(why.into()))
                })
            }
        })
        .connect_lazy_with(options))
}

/// The TCP ports of a database's URL and the files that its parameters name, for a process that may reach nothing else.
///
/// # Errors
/// As [`connect`].
pub fn reaches(url: &str) -> Result<(Vec<u16>, Vec<PathBuf>)> {
    let port = options(url)?.get_port();
    let names_a_file = |name: &str| {
        matches!(
            name,
            "sslrootcert" | "ssl-root-cert" | "ssl-ca" | "sslcert" | "ssl-cert" | "sslkey" | "ssl-key"
        )
    };
    let pairs = Url::parse(url).map(|url| url.query_pairs().into_owned().collect::<Vec<_>>());
    let files = pairs
        .unwrap_or_default()
        .into_iter()
        .filter(|(name, _)| names_a_file(name));
    Ok((vec![port], files.map(|(_, file)| PathBuf::from(file)).collect()))
}

/// Reads the URL of a database. sqlx knows one host, and takes a list for a name.
fn options(url: &str) -> Result<PgConnectOptions> {
    const ONE_HOST: &str = "the URL of the database names several hosts, which is not supported: give one name that \
        follows the primary (a virtual address, a DNS name, or a proxy such as HAProxy). After a failover the services \
        close their sessions and connect to it again";
    let refused = |why: &str| Error::Refused(why.to_owned());
    let authority = url.split_once("://").map_or("", |(_, rest)| rest);
    let authority = authority.split(['/', '?']).next().unwrap_or_default();
    let hosts = authority.rsplit('@').next().unwrap_or_default();
    if hosts.contains(',') || hosts.to_ascii_lowercase().contains("%2c") {
        return Err(refused(ONE_HOST));
    }
    // Not what the parser says: it might quote the password.
    let unreadable = "the URL of the database cannot be read; it looks like \
        postgres://USER:PASSWORD@HOST:5432/DATABASE, with other characters of the password as %XX";
    let mut parsed = Url::parse(url).map_err(|_| refused(unreadable))?;
    let mut kept = vec![];
    for (key, value) in parsed.query_pairs() {
        match &*key {
            "host" | "hostaddr" | "port" if value.contains(',') => return Err(refused(ONE_HOST)),
            "target_session_attrs" => match &*value {
                // What holds anyway: a session that cannot write is not used.
                "any" | "read-write" | "primary" => {}
                _ => {
                    return Err(refused(
                        "target_session_attrs can be read-write, which is what holds without it: every service writes",
                    ));
                }
            },
            _ => kept.push((key.into_owned(), value.into_owned())),
        }
    }
    parsed.set_query(None);
    if !kept.is_empty() {
        parsed.query_pairs_mut().extend_pairs(kept);
    }
    PgConnectOptions::from_str(parsed.as_str()).map_err(|_| refused(unreadable))
}

/// All replicas go by the clock of the database: one whose own is wrong would see leases run out that did not, and
/// certificates expire that have not.
fn agree(clock: &Clock, said: Time, asked: Instant) {
    const WORTH_A_WORD: f64 = 5.0;
    if let Some(ahead) = clock.tell(said, asked).filter(|ahead| ahead.abs() > WORTH_A_WORD) {
        let (by, which) = (ahead.abs(), if ahead > 0.0 { "ahead of" } else { "behind" });
        tracing::warn!("this machine's clock is {by:.0} s {which} the database's, which counts");
    }
}

/// What a session says of itself.
#[derive(sqlx::FromRow)]
struct Session {
    time: Time,
    role: String,
    settings: Vec<String>,
    replica: bool,
    read_only: bool,
}

impl Session {
    /// In one round trip: it is asked of every new connection.
    async fn of(db: &mut PgConnection) -> sqlx::Result<Self> {
        sqlx::query_as(
            "SELECT clock_timestamp() AS time, current_user::text AS role, pg_is_in_recovery() AS replica,
                    current_setting('transaction_read_only') = 'on' AS read_only,
                    ARRAY(SELECT coalesce(current_setting(name, true), '') FROM unnest($1::text[]) AS name) AS settings",
        )
        .bind(SETTINGS[..VERIFIED].iter().map(|(name, _)| *name).collect::<Vec<_>>())
        .fetch_one(db)
        .await
    }

    /// Whether it can be used by a service that works as `role`.
    fn must_serve(&self, role: &str) -> Result<(), String> {
        if let Some(why) = self.misconfigured(role) {
            return Err(why);
        }
        match (self.replica, self.read_only) {
            (true, _) => Err("the database is a replica and cannot be written; waiting for the primary".to_owned()),
            (_, true) => Err("the database is read-only (default_transaction_read_only)".to_owned()),
            _ => Ok(()),
        }
    }

    fn misconfigured(&self, role: &str) -> Option<String> {
        let unset: Vec<String> = SETTINGS
            .iter()
            .zip(&self.settings)
            .filter(|((_, wanted), is)| is.replace(' ', "") != *wanted)
            .map(|((name, wanted), is)| format!("{name} is \"{is}\" and not \"{wanted}\""))
            .collect();
        let role = (self.role != role).then(|| format!("the session works as {} and not as {role}", self.role));
        let wrong: Vec<String> = role.into_iter().chain(unset).collect();
        (!wrong.is_empty()).then(|| format!("{}; {POOLER}", wrong.join(", ")))
    }
}

/// Verifies at the start of a service that sessions are as they have to be, and that notifications arrive.
///
/// A database that is away or read-only is none of its business: the service starts, and is ready when that is over.
///
/// # Errors
/// [`Error::Refused`] when the database cannot be used as it is reached, with what to change. The pool is closed.
pub async fn admit(pool: &PgPool) -> Result<()> {
    let refused = match examine(pool).await {
        Ok(()) => return Ok(()),
        Err(Error::Refused(why)) => why,
        Err(error) => {
            tracing::warn!(%error, "the database cannot be used yet");
            return Ok(());
        }
    };
    // A pooler that hands sessions from one client to another hands on prepared statements too.
    pool.close().await;
    Err(Error::Refused(refused))
}

async fn examine(pool: &PgPool) -> Result<()> {
    let options = pool.connect_options();
    let role = options.get_application_name().unwrap_or_default().to_owned();
    let mut db = open(&options).await?;
    let session = Session::of(&mut db).await.map_err(shared)?;
    if let Some(why) = session.misconfigured(&role) {
        return Err(Error::Refused(why));
    }
    if session.replica || session.read_only {
        return Ok(());
    }
    // Where two clients have one session, the second finds the prepared statement of the first.
    let mut other = open(&options).await?;
    Session::of(&mut other).await.map_err(shared)?;
    let own = PgPoolOptions::new().max_connections(1).acquire_timeout(ACQUIRE_TIMEOUT);
    let own = own.connect_lazy_with((*options).clone());
    let channel = format!("certctl_probe_{}", uuid::Uuid::new_v4().simple());
    let mut listener = PgListener::connect_with(&own).await.map_err(shared)?;
    listener.listen(&channel).await.map_err(shared)?;
    sqlx::query("SELECT pg_notify($1, '')")
        .bind(&channel)
        .execute(&mut other)
        .await
        .map_err(shared)?;
    for db in [db, other] {
        let _ = db.close().await;
    }
    match timeout(NOTIFY_TIMEOUT, listener.recv()).await {
        Ok(heard) => heard.map(|_| ()).map_err(shared),
        Err(_) => Err(Error::Refused(format!("LISTEN has no effect; {TRANSACTION_MODE}"))),
    }
}

async fn open(options: &PgConnectOptions) -> Result<PgConnection> {
    let opened = timeout(ACQUIRE_TIMEOUT, PgConnection::connect_with(options)).await;
    opened.map_err(|_| sqlx::Error::PoolTimedOut)?.map_err(connecting)
}

/// A pooler that hands one session to several clients mixes up their prepared statements.
fn shared(error: sqlx::Error) -> Error {
    // duplicate_prepared_statement, invalid_sql_statement_name, protocol_violation
    const MIXED_UP: [&str; 3] = ["42P05", "26000", "08P01"];
    match &error {
        sqlx::Error::Database(database) if database.code().is_some_and(|code| MIXED_UP.contains(&&*code)) => {
            Error::Refused(format!("{}; {TRANSACTION_MODE}", database.message()))
        }
        _ => error.into(),
    }
}

/// A pooler that does not know a setting refuses the connection.
fn connecting(error: sqlx::Error) -> Error {
    match &error {
        sqlx::Error::Database(database) if database.message().contains("unsupported startup parameter") => {
            Error::Refused(format!("{}; {POOLER}", database.message()))
        }
        _ => error.into(),
    }
}

/// Whether the database can be used: it answers, can be written, and has the schema of this program.
///
/// # Errors
/// When it cannot, with the reason.
pub async fn ready(pool: &PgPool) -> Result<()> {
    let Ok(Ok(mut db)) = timeout(READY_TIMEOUT, pool.acquire()).await else {
        return Err(why_not(pool).await);
    };
    let (replica, read_only, schema): (bool, bool, bool) = sqlx::query_as(
        "SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on',
                to_regclass('public._sqlx_migrations') IS NOT NULL",
    )
    .fetch_one(&mut *db)
    .await?;
    if replica || read_only {
        suspect();
        return Err(Error::Refused("the database cannot be written".to_owned()));
    }
    let missing = "the database lacks migrations; run certctl-api --migrate".to_owned();
    if !schema {
        return Err(Error::Refused(missing));
    }
    let newest = MIGRATOR.iter().map(|migration| migration.version).max();
    let applied: sqlx::Result<Option<i64>> =
        sqlx::query_scalar("SELECT max(version) FROM public._sqlx_migrations WHERE success")
            .fetch_one(&mut *db)
            .await;
    match applied {
        Ok(applied) if applied >= newest => Ok(()),
        Ok(_) => Err(Error::Refused(missing)),
        // Older than the grant.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42501") => Err(Error::Refused(missing)),
        Err(error) => Err(error.into()),
    }
}

/// Why there is no connection: the pool only says that there was none in time.
async fn why_not(pool: &PgPool) -> Error {
    let options = pool.connect_options();
    let role = options.get_application_name().unwrap_or_default().to_owned();
    let asked = async {
        let mut db = open(&options).await?;
        let session = Session::of(&mut db).await.map_err(shared)?;
        let _ = db.close().await;
        session.must_serve(&role).map_err(Error::Refused)
    };
    match timeout(READY_TIMEOUT, asked).await {
        Ok(Err(error)) => error,
        _ => Error::Busy(sqlx::Error::PoolTimedOut),
    }
}

/// Applies the migrations that are missing, as the owner of the database.
///
/// # Errors
/// When the database cannot be reached or its history differs from ours, or a connection pooler is between: migrations
/// hold a lock of their session from one transaction to the next.
pub async fn migrate(url: &str) -> Result<(), MigrateError> {
    let refused = |error: Error| MigrateError::Source(format!("migrations are not applied: {error}").into());
    let options = options(url)
        .map_err(refused)?
        .options([("search_path", "public,pg_temp")]);
    let mut db = PgConnection::connect_with(&options)
        .await
        .map_err(|error| refused(connecting(error)))?;
    let path: String = sqlx::query_scalar("SELECT current_setting('search_path')")
        .fetch_one(&mut db)
        .await
        .map_err(|error| refused(shared(error)))?;
    if path.replace(' ', "") != "public,pg_temp" {
        return Err(refused(Error::Refused(POOLER.to_owned())));
    }
    // Where an administrator has installed the extension that the schema needs.
    sqlx::query(
        "SELECT set_config('search_path', 'public,' || quote_ident(n.nspname) || ',pg_temp', false)
           FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
          WHERE e.extname = 'pg_trgm' AND n.nspname <> 'public'",
    )
    .execute(&mut db)
    .await?;
    MIGRATOR.run(&mut db).await?;
    // A dump of a database lacks the privileges on the database itself, so that a restored one has the default again.
    sqlx::raw_sql(
        "DO $$ BEGIN EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database()); END $$",
    )
    .execute(&mut db)
    .await?;
    db.close().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_hosts_are_refused_and_the_reason_says_what_to_do() {
        for url in [
            "postgres://u:secret@a,b/db",
            "postgres://u:secret@a:5432,b:5433/db",
            "postgres://u:secret@a%2Cb/db",
            "postgres://u:secret@a/db?host=a,b",
        ] {
            let error = options(url).unwrap_err().to_string();
            assert!(
                error.contains("names several hosts") && !error.contains("secret"),
                "{error}"
            );
        }
    }

    #[test]
    fn target_session_attrs_is_what_holds_anyway_or_refused() {
        for (value, accepted) in [
            ("read-write", true),
            ("primary", true),
            ("any", true),
            ("standby", false),
        ] {
            let url = format!("postgres://u:p@a/db?sslmode=disable&target_session_attrs={value}");
            assert_eq!(options(&url).is_ok(), accepted, "{value}");
        }
        let error = options("postgres://u:se#cret@a/db:x").unwrap_err().to_string();
        assert!(!error.contains("cret"), "{error}");
    }

    #[test]
    fn commas_in_a_password_are_no_hosts() {
        assert_eq!(options("postgres://u:a,b@host/db").unwrap().get_host(), "host");
        assert_eq!(
            options("postgres:///db?host=/run/postgresql").unwrap().get_database(),
            Some("db")
        );
    }
}
