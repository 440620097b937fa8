//! CRLs: which there are, what makes them stale, the entries they have, and where their octets are.
//!
//! A revocation leaves a row in `crl_dirt` for its shard and one in `crl_changes` for its issuer, by triggers. Whoever
//! makes a CRL holds the [`lock`] of its numbers, [`clean`]s what it sees, and reads the entries after that: what
//! becomes visible in between leaves the CRL stale and is in the next one.

use std::{fmt, time::Duration};

use bytes::Bytes;
use certctl_model::{connector::IssuerType, id::IssuerId, time::Time};
use futures_util::{TryStreamExt, stream::BoxStream};
use sqlx::{PgConnection, PgPool, Postgres, Transaction};

use crate::{error::*, tx};

/// One of the CRLs of an issuer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct List {
    /// Whose.
    pub issuer: IssuerId,
    /// What it covers.
    pub scope: Scope,
}

/// What a CRL covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Every certificate of the issuer.
    Full,
    /// What changed since a full CRL (RFC 5280 §5.2.4).
    Delta,
    /// The certificates that name this shard, from 1 on (RFC 5280 §5.2.5).
    Shard(i32),
}

impl List {
    /// The full CRL of an issuer.
    pub fn full(issuer: IssuerId) -> Self {
        let scope = Scope::Full;
        Self { issuer, scope }
    }

    /// Its shard as a column has it: 0 for the full CRL and its deltas, which count in one sequence (RFC 5280 §5.2.3).
    pub fn shard(&self) -> i32 {
        match self.scope {
            Scope::Full | Scope::Delta => 0,
            Scope::Shard(shard) => shard,
        }
    }

    /// Where relying parties find it, below the public URL.
    pub fn path(&self) -> String {
        let issuer = &self.issuer;
        match self.scope {
            Scope::Full => format!("/crl/{issuer}.crl"),
            Scope::Delta => format!("/crl/{issuer}/delta.crl"),
            Scope::Shard(shard) => format!("/crl/{issuer}/{shard}.crl"),
        }
    }

    fn is_delta(&self) -> bool {
        self.scope == Scope::Delta
    }
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let issuer = &self.issuer;
        match self.scope {
            Scope::Full => write!(f, "the CRL of {issuer}"),
            Scope::Delta => write!(f, "the delta CRL of {issuer}"),
            Scope::Shard(shard) => write!(f, "shard {shard} of the CRL of {issuer}"),
        }
    }
}

/// How a CRL stands.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Which.
    pub list: List,
    /// The newest, if there is one.
    pub newest: Option<Newest>,
    /// The number of the newest full CRL of the issuer.
    pub full: Option<i64>,
    /// Whether the issuer has delta CRLs.
    pub has_delta: bool,
    /// Whether it lacks something that no other list tells.
    pub dirty: bool,
    /// Whether it lacks something that another list tells: a shard, or a delta.
    pub behind: bool,
}

/// The newest of a list.
#[derive(Clone, Copy, Debug)]
pub struct Newest {
    /// Its number.
    pub number: i64,
    /// How many entries it has.
    pub entries: i64,
    /// When it was made.
    pub this_update: Time,
    /// By when the next is due.
    pub next_update: Time,
    /// The number of the full CRL that it builds upon, if it is a delta.
    pub base: Option<i64>,
}

/// When a CRL is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// At once.
    Now,
    /// When the last one has rested: it takes long to make.
    At(Time),
    /// Not as things stand.
    Later,
}

impl Standing {
    /// When it is to be made: at once when it is missing, older than a third of its life, or lacks something.
    ///
    /// Large lists rest between two, so that they leave the signer time for others: a list that alone tells of a
    /// revocation for 20 seconds at most, and the full one of an issuer whose shards or deltas tell first for longer.
    pub fn due(&self, now: Time) -> Due {
        let Some(newest) = &self.newest else {
            return match self.list.is_delta() && self.full.is_none() {
                true => Due::Later,
                false => Due::Now,
            };
        };
        let life = newest.next_update.since(newest.this_update);
        if now > newest.this_update + life / 3 {
            return Due::Now;
        }
        if self.list.is_delta() && newest.base != self.full {
            return Due::Now;
        }
        let entries = u64::try_from(newest.entries).unwrap_or(0);
        let told_elsewhere = self.has_delta && self.list.scope == Scope::Full;
        let rest = match (self.dirty && !told_elsewhere, self.dirty || self.behind) {
            (true, _) => Duration::from_secs((entries * 15 / 1_000_000).min(20)),
            (false, true) => {
                let rest = Duration::from_secs(entries * 60 / 1_000_000);
                if self.has_delta { rest.max(life / 24) } else { rest }
            }
            (false, false) => return Due::Later,
        };
        match newest.this_update + rest {
            at if at <= now => Due::Now,
            at => Due::At(at),
        }
    }

    /// Whether the newest has less than half of the time left that it should have: a third of its life is over when the
    /// next is made, so two thirds should be left. One that was never made is late as well.
    pub fn is_late(&self, now: Time) -> bool {
        self.newest.is_none_or(|newest| {
            let life = newest.next_update.since(newest.this_update);
            newest.next_update.since(now) < life / 3
        })
    }
}

#[derive(sqlx::FromRow)]
struct StandingRow {
    issuer_id: IssuerId,
    shard: i32,
    delta: bool,
    has_delta: bool,
    number: Option<i64>,
    entries: Option<i64>,
    this_update: Option<Time>,
    next_update: Option<Time>,
    base: Option<i64>,
    full_number: Option<i64>,
    dirty: bool,
    behind: bool,
}

impl From<StandingRow> for Standing {
    fn from(row: StandingRow) -> Self {
        let scope = match (row.delta, row.shard) {
            (true, _) => Scope::Delta,
            (false, 0) => Scope::Full,
            (false, shard) => Scope::Shard(shard),
        };
        let newest = match (row.number, row.entries, row.this_update, row.next_update) {
            (Some(number), Some(entries), Some(this_update), Some(next_update)) => Some(Newest {
                number,
                entries,
                this_update,
                next_update,
                base: row.base,
            }),
            _ => None,
        };
        Self {
            list: List {
                issuer: row.issuer_id,
                scope,
            },
            newest,
            full: row.full_number,
            has_delta: row.has_delta,
            dirty: row.dirty,
            behind: row.behind,
        }
    }
}

/// How the CRLs of all local issuers that have an authority stand, by issuer and shard. A disabled issuer issues
/// nothing, but what it issued can still be revoked.
///
/// # Errors
/// When the database cannot be asked.
pub async fn standings(pool: &PgPool) -> Result<Vec<Standing>> {
    let rows: Vec<StandingRow> = sqlx::query_as(
        "SELECT l.issuer_id, l.shard, l.delta, l.has_delta, n.number, n.entries, n.this_update, n.next_update, n.base,
                f.number AS full_number,
                CASE WHEN l.delta
                     THEN EXISTS (SELECT 1 FROM crl_changes c WHERE c.issuer_id = l.issuer_id AND NOT c.in_delta)
                     ELSE EXISTS (SELECT 1 FROM crl_dirt d WHERE d.issuer_id = l.issuer_id AND d.shard = l.shard)
                END AS dirty,
                l.shard = 0 AND NOT l.delta
                    AND EXISTS (SELECT 1 FROM crl_changes c WHERE c.issuer_id = l.issuer_id) AS behind
           FROM (SELECT i.id AS issuer_id, s.shard, d.delta,
                        coalesce((i.config->>'crl_delta')::boolean, false) AS has_delta
                   FROM issuers i
                   JOIN authorities a ON a.issuer_id = i.id
                  CROSS JOIN LATERAL generate_series(0, i.crl_shards) AS s (shard)
                  CROSS JOIN (VALUES (false), (true)) AS d (delta)
                  WHERE i.type = $1
                    AND (NOT d.delta OR (s.shard = 0 AND coalesce((i.config->>'crl_delta')::boolean, false)))) l
           LEFT JOIN LATERAL (SELECT c.number, c.entries, c.this_update, c.next_update, c.base
                                FROM crls c
                               WHERE c.issuer_id = l.issuer_id AND c.shard = l.shard AND (c.base IS NOT NULL) = l.delta
                               ORDER BY c.number DESC LIMIT 1) n ON true
           LEFT JOIN LATERAL (SELECT c.number FROM crls c
                               WHERE c.issuer_id = l.issuer_id AND c.shard = 0 AND c.base IS NULL AND l.delta
                               ORDER BY c.number DESC LIMIT 1) f ON true
          ORDER BY l.issuer_id, l.shard, l.delta",
    )
    .bind(IssuerType::Local)
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(Standing::from).collect())
}

/// What a CRL is made from, besides its entries.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Prior {
    /// The highest shard of the issuer; 0 when it has none.
    pub shards: i32,
    /// Whether the issuer has delta CRLs.
    pub has_delta: bool,
    /// The highest number of the list in the database; 0 when there is none.
    pub number: i64,
    /// The number of the newest full CRL of the issuer.
    pub full: Option<i64>,
    /// When the newest full CRL of the issuer was made, if it has no delta yet and no revocation has changed since.
    pub unchanged_since: Option<Time>,
}

/// Begins a transaction in which nobody else numbers this list. A delta counts with the full CRL.
///
/// # Errors
/// [`Error::Busy`] when another holds it for longer than a few seconds.
pub async fn lock(pool: &PgPool, list: &List) -> Result<Transaction<'static, Postgres>> {
    let mut tx = tx::begin(pool, None).await?;
    // The largest takes longer than statements are given otherwise.
    sqlx::query("SELECT set_config('statement_timeout', '10min', true), set_config('idle_in_transaction_session_timeout', '10min', true)")
        .execute(&mut *tx)
        .await?;
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('crl:' || $1 || ':' || $2, 0))")
        .bind(&list.issuer)
        .bind(list.shard())
        .execute(&mut *tx)
        .await?;
    Ok(tx)
}

/// What was published before.
///
/// # Errors
/// [`Error::Missing`] for an issuer that does not exist.
pub async fn prior(db: &mut PgConnection, list: &List) -> Result<Prior> {
    sqlx::query_as(
        "SELECT i.crl_shards AS shards, coalesce((i.config->>'crl_delta')::boolean, false) AS has_delta,
                coalesce((SELECT max(number) FROM crls WHERE issuer_id = i.id AND shard = $2), 0) AS number,
                (SELECT max(number) FROM crls WHERE issuer_id = i.id AND shard = 0 AND base IS NULL) AS full,
                (SELECT f.this_update FROM crls f
                  WHERE f.issuer_id = i.id AND f.shard = 0 AND f.base IS NULL
                    AND f.number = (SELECT max(number) FROM crls WHERE issuer_id = i.id AND shard = 0)
                    AND NOT EXISTS (SELECT 1 FROM crls d WHERE d.issuer_id = i.id AND d.shard = 0 AND d.base = f.number)
                    AND NOT EXISTS (SELECT 1 FROM crl_changes c WHERE c.issuer_id = i.id)) AS unchanged_since
           FROM issuers i WHERE i.id = $1",
    )
    .bind(&list.issuer)
    .bind(list.shard())
    .fetch_optional(db)
    .await?
    .ok_or_else(|| Error::Missing {
        kind: "issuer",
        id: list.issuer.to_string(),
    })
}

/// Forgets why the list is stale; the entries are read after this.
///
/// # Errors
/// When the database cannot be asked.
pub async fn clean(db: &mut PgConnection, list: &List) -> Result<()> {
    if list.is_delta() {
        sqlx::query("UPDATE crl_changes SET in_delta = true WHERE issuer_id = $1 AND NOT in_delta")
            .bind(&list.issuer)
            .execute(db)
            .await?;
        return Ok(());
    }
    sqlx::query("DELETE FROM crl_dirt WHERE issuer_id = $1 AND shard = $2")
        .bind(&list.issuer)
        .bind(list.shard())
        .execute(&mut *db)
        .await?;
    if list.scope == Scope::Full {
        sqlx::query("DELETE FROM crl_changes WHERE issuer_id = $1")
            .bind(&list.issuer)
            .execute(db)
            .await?;
    }
    Ok(())
}

/// An entry of a CRL, as the database has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Serial number, lower-case hexadecimal.
    pub serial_number: &'a str,
    /// When, in seconds since 1970.
    pub revoked_at: i64,
    /// Why, by its word.
    pub reason: &'a str,
    /// Since when the key is thought to be known, in seconds since 1970.
    pub invalidity_date: Option<i64>,
    /// Whether it was a hold that is over: only in deltas.
    pub released: bool,
}

/// Entries on their way out of the database, in the order of their numbers, whatever their count. [`Self::drain`] is
/// called before it is dropped early: the connection would go on with what was left unread.
pub struct Entries<'c> {
    messages: BoxStream<'c, sqlx::Result<Bytes>>,
    unread: Vec<u8>,
    begun: bool,
}

/// The entries of a list: certificates that had not ended at `ended_before`, but for short-lived ones, whose revocation
/// is not published. `shards` is the highest of the issuer.
///
/// # Errors
/// When the database cannot be asked.
pub async fn entries<'c>(
    db: &'c mut PgConnection,
    list: &List,
    shards: i32,
    ended_before: Time,
) -> Result<Entries<'c>> {
    // COPY takes no parameters, but reads settings of the transaction.
    sqlx::query(
        "SELECT set_config('certctl.issuer', $1, true), set_config('certctl.shard', $2::text, true),
                set_config('certctl.ended_before', $3::text, true)",
    )
    .bind(&list.issuer)
    .bind(list.shard())
    .bind(ended_before)
    .execute(&mut *db)
    .await?;
    let statement = match list.scope {
        Scope::Delta => DELTA,
        // Sorted, because the index has the entries by shard.
        Scope::Full if shards > 0 => FULL_OF_SHARDS,
        Scope::Full | Scope::Shard(_) => SHARD,
    };
    Ok(Entries {
        messages: db.copy_out_raw(statement).await?,
        unread: Vec::new(),
        begun: false,
    })
}

/// Read from `revocations_crl_idx` alone.
const SHARD: &str = "COPY (
    SELECT serial_number, revoked_at, reason, invalidity_date, false
      FROM revocations
     WHERE issuer_id = current_setting('certctl.issuer') AND shard = current_setting('certctl.shard')::integer
       AND released_at IS NULL AND NOT short_lived
       AND not_after >= current_setting('certctl.ended_before')::timestamptz
     ORDER BY length(serial_number), serial_number COLLATE \"C\") TO STDOUT (FORMAT binary)";

const FULL_OF_SHARDS: &str = "COPY (
    SELECT serial_number, revoked_at, reason, invalidity_date, false
      FROM revocations
     WHERE issuer_id = current_setting('certctl.issuer')
       AND released_at IS NULL AND NOT short_lived
       AND not_after >= current_setting('certctl.ended_before')::timestamptz
     ORDER BY length(serial_number), serial_number COLLATE \"C\") TO STDOUT (FORMAT binary)";

const DELTA: &str = "COPY (
    SELECT serial_number, revoked_at, reason, invalidity_date, released_at IS NOT NULL
      FROM revocations
     WHERE issuer_id = current_setting('certctl.issuer') AND NOT short_lived
       AND not_after >= current_setting('certctl.ended_before')::timestamptz
       AND serial_number IN (SELECT serial_number FROM crl_changes
                              WHERE issuer_id = current_setting('certctl.issuer'))
     ORDER BY length(serial_number), serial_number COLLATE \"C\") TO STDOUT (FORMAT binary)";

impl Entries<'_> {
    /// Reads on, and gives what it read to `each`; `false` at the end.
    ///
    /// # Errors
    /// When the connection breaks, the octets are no entries, or `each` says so.
    pub async fn read<E: From<Error>>(&mut self, each: &mut impl FnMut(Entry<'_>) -> Result<(), E>) -> Result<bool, E> {
        let Some(message) = self.messages.try_next().await.map_err(Error::from)? else {
            return match self.unread.is_empty() {
                true => Ok(false),
                false => Err(malformed("ends within an entry").into()),
            };
        };
        // A message is one row as a rule, and the protocol does not promise it.
        let mut octets = &message[..];
        if !self.unread.is_empty() {
            self.unread.extend_from_slice(&message);
            octets = &self.unread;
        }
        if !self.begun {
            octets = wire::header(octets).ok_or_else(|| malformed("does not begin as COPY does"))?;
            self.begun = true;
        }
        loop {
            match wire::entry(octets) {
                wire::Read::Entry(entry, rest) => {
                    each(entry)?;
                    octets = rest;
                }
                wire::Read::End(rest) | wire::Read::Partial(rest) => {
                    self.unread = rest.to_vec();
                    return Ok(true);
                }
                wire::Read::Malformed => return Err(malformed("has an entry that cannot be read").into()),
            }
        }
    }

    /// Reads to the end, whatever comes.
    pub async fn drain(&mut self) {
        while let Ok(Some(_)) = self.messages.try_next().await {}
    }
}

fn malformed(what: &str) -> Error {
    Error::Broken(sqlx::Error::Protocol(format!("what the database copies out {what}")))
}

/// The binary format of COPY (PostgreSQL, COPY, "Binary Format").
mod wire {
    use super::Entry;

    pub(super) enum Read<'a> {
        Entry(Entry<'a>, &'a [u8]),
        End(&'a [u8]),
        Partial(&'a [u8]),
        Malformed,
    }

    /// What follows the header.
    pub(super) fn header(octets: &[u8]) -> Option<&[u8]> {
        const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
        let rest = octets.strip_prefix(SIGNATURE)?;
        let (flags, rest) = rest.split_first_chunk::<4>()?;
        let (extension, rest) = rest.split_first_chunk::<4>()?;
        (*flags == [0; 4] && *extension == [0; 4]).then_some(rest)
    }

    pub(super) fn entry(octets: &[u8]) -> Read<'_> {
        const FIELDS: i16 = 5;
        let Some((count, mut rest)) = octets.split_first_chunk::<2>() else {
            return Read::Partial(octets);
        };
        match i16::from_be_bytes(*count) {
            FIELDS => {}
            -1 => return Read::End(rest),
            _ => return Read::Malformed,
        }
        let mut fields = [None; FIELDS as usize];
        for field in &mut fields {
            let Some((length, after)) = rest.split_first_chunk::<4>() else {
                return Read::Partial(octets);
            };
            rest = after;
            // -1 is NULL.
            if let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) {
                let Some((value, after)) = rest.split_at_checked(length) else {
                    return Read::Partial(octets);
                };
                (*field, rest) = (Some(value), after);
            }
        }
        match fields {
            [Some(serial), Some(at), Some(reason), invalidity, Some(released)] => {
                let read = || {
                    Some(Entry {
                        serial_number: str::from_utf8(serial).ok()?,
                        revoked_at: seconds(at)?,
                        reason: str::from_utf8(reason).ok()?,
                        invalidity_date: invalidity.map(|at| seconds(at).ok_or(())).transpose().ok()?,
                        released: released == [1],
                    })
                };
                read().map_or(Read::Malformed, |entry| Read::Entry(entry, rest))
            }
            _ => Read::Malformed,
        }
    }

    /// A timestamp: microseconds since 2000, in whole seconds since 1970. The infinite ones are none.
    fn seconds(octets: &[u8]) -> Option<i64> {
        const SINCE_1970: i64 = 946_684_800;
        let micros = i64::from_be_bytes(octets.try_into().ok()?);
        (micros != i64::MIN && micros != i64::MAX).then(|| micros.div_euclid(1_000_000) + SINCE_1970)
    }
}

/// Where the octets of one CRL are.
#[derive(Clone, Debug)]
pub struct Body {
    issuer: IssuerId,
    shard: i32,
    id: i64,
}

impl Body {
    /// A place for the octets of the next of a list.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn new(db: &mut PgConnection, list: &List) -> Result<Self> {
        let id = sqlx::query_scalar("SELECT nextval('crl_bodies')").fetch_one(db).await?;
        Ok(Self {
            issuer: list.issuer.clone(),
            shard: list.shard(),
            id,
        })
    }

    /// Puts a chunk there; 0 is the first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn put(&self, db: &mut PgConnection, seq: i32, octets: &[u8]) -> Result<()> {
        sqlx::query("INSERT INTO crl_chunks (issuer_id, shard, body, seq, octets) VALUES ($1, $2, $3, $4, $5)")
            .bind(&self.issuer)
            .bind(self.shard)
            .bind(self.id)
            .bind(seq)
            .bind(octets)
            .execute(db)
            .await?;
        Ok(())
    }

    /// Reads one chunk.
    ///
    /// # Errors
    /// When the database cannot be asked, or it is not there.
    pub async fn get(&self, db: &mut PgConnection, seq: i32) -> Result<Vec<u8>> {
        Ok(sqlx::query_scalar(
            "SELECT octets FROM crl_chunks WHERE issuer_id = $1 AND shard = $2 AND body = $3 AND seq = $4",
        )
        .bind(&self.issuer)
        .bind(self.shard)
        .bind(self.id)
        .bind(seq)
        .fetch_one(db)
        .await?)
    }
}

/// A CRL that was signed.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its number.
    pub number: i64,
    /// The number of the full CRL that it builds upon, if it is a delta.
    pub base: Option<i64>,
    /// Octets of its DER.
    pub length: i64,
    /// SHA-256 of its DER.
    pub digest: Vec<u8>,
    /// How many entries it has.
    pub entries: i64,
    /// When it was made.
    pub this_update: Time,
    /// By when the next is due.
    pub next_update: Time,
}

/// Publishes a CRL whose chunks are there, and removes what nobody fetches any more: all but the newest three of its
/// kind, and chunks that belong to none because a signer died.
///
/// # Errors
/// [`Error::Taken`] when the number was used, which the lock prevents.
pub async fn publish(db: &mut PgConnection, list: &List, body: &Body, record: &Record) -> Result<()> {
    sqlx::query(
        "INSERT INTO crls (issuer_id, shard, number, base, body, length, digest, entries, this_update, next_update)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(&list.issuer)
    .bind(list.shard())
    .bind(record.number)
    .bind(record.base)
    .bind(body.id)
    .bind(record.length)
    .bind(&record.digest)
    .bind(record.entries)
    .bind(record.this_update)
    .bind(record.next_update)
    .execute(&mut *db)
    .await?;
    sqlx::query(
        "DELETE FROM crls
          WHERE issuer_id = $1 AND shard = $2 AND (base IS NOT NULL) = $3
            AND number < (SELECT min(number) FROM (SELECT number FROM crls
                                                    WHERE issuer_id = $1 AND shard = $2 AND (base IS NOT NULL) = $3
                                                    ORDER BY number DESC LIMIT 3) newest)",
    )
    .bind(&list.issuer)
    .bind(list.shard())
    .bind(list.is_delta())
    .execute(&mut *db)
    .await?;
    sqlx::query(
        "DELETE FROM crl_chunks
          WHERE issuer_id = $1 AND shard = $2
            AND body NOT IN (SELECT body FROM crls WHERE issuer_id = $1 AND shard = $2 AND body IS NOT NULL)",
    )
    .bind(&list.issuer)
    .bind(list.shard())
    .execute(db)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_made_when_missing_old_or_silent_about_a_revocation_and_large_ones_rest() {
        let made = Time::from_unix(1_800_000_000);
        let day = Duration::from_secs(86_400);
        let after = |seconds: u64| made + Duration::from_secs(seconds);
        let standing = |scope, entries, dirty, behind, has_delta| Standing {
            list: List {
                issuer: "iss-1".parse().unwrap(),
                scope,
            },
            newest: Some(Newest {
                number: 7,
                entries,
                this_update: made,
                next_update: made + day,
                base: (scope == Scope::Delta).then_some(5),
            }),
            full: Some(5),
            has_delta,
            dirty,
            behind,
        };
        let at = |seconds| Due::At(after(seconds));
        use Scope::{Delta, Full, Shard};
        for (standing, seconds, due) in [
            (standing(Full, 1_000, false, false, false), 28_800, Due::Later),
            (standing(Full, 1_000, false, false, false), 28_801, Due::Now),
            (standing(Full, 1_000, true, true, false), 0, Due::Now),
            (standing(Full, 1_000_000, true, true, false), 1, at(15)),
            (standing(Full, 1_000_000, true, true, false), 15, Due::Now),
            (standing(Full, 10_000_000, true, true, false), 1, at(20)),
            // Its shards tell at once.
            (standing(Full, 10_000_000, false, true, false), 1, at(600)),
            (standing(Full, 1_000, false, true, false), 0, Due::Now),
            // Its deltas do.
            (standing(Full, 1_000, true, true, true), 1, at(3_600)),
            (standing(Delta, 1_000, true, false, true), 0, Due::Now),
            (standing(Delta, 1_000, false, false, true), 0, Due::Later),
            (standing(Shard(3), 80_000, true, false, false), 0, at(1)),
            (standing(Shard(3), 50_000, true, false, false), 0, Due::Now),
            (standing(Shard(3), 50_000, false, false, false), 0, Due::Later),
        ] {
            assert_eq!(standing.due(after(seconds)), due, "{standing:?} after {seconds} s");
        }
        let newer_full = Standing {
            full: Some(6),
            ..standing(Delta, 0, false, false, true)
        };
        assert_eq!(newer_full.due(made), Due::Now);
        let none = |scope, full| Standing {
            newest: None,
            full,
            ..standing(scope, 0, false, false, true)
        };
        assert_eq!(none(Full, None).due(made), Due::Now);
        assert_eq!(
            none(Delta, None).due(made),
            Due::Later,
            "there is nothing to build upon"
        );
        assert_eq!(none(Delta, Some(1)).due(made), Due::Now);

        let fresh = standing(Full, 0, false, false, false);
        assert!(!fresh.is_late(after(57_600)) && fresh.is_late(after(57_601)) && none(Full, None).is_late(made));
    }

    #[test]
    fn entries_are_read_wherever_a_message_ends() {
        let mut octets = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
        let field = |octets: &mut Vec<u8>, value: &[u8]| {
            octets.extend(i32::try_from(value.len()).unwrap().to_be_bytes());
            octets.extend(value);
        };
        for (serial, invalidity) in [("5f3a", None), ("ffff", Some(-1_i64))] {
            octets.extend(5_i16.to_be_bytes());
            field(&mut octets, serial.as_bytes());
            field(&mut octets, &1_999_999_i64.to_be_bytes());
            field(&mut octets, b"superseded");
            match invalidity {
                Some(at) => field(&mut octets, &at.to_be_bytes()),
                None => octets.extend((-1_i32).to_be_bytes()),
            }
            field(&mut octets, &[u8::from(invalidity.is_some())]);
        }
        octets.extend((-1_i16).to_be_bytes());
        let body = wire::header(&octets).unwrap();
        let mut found = vec![];
        let mut rest = body;
        loop {
            match wire::entry(rest) {
                wire::Read::Entry(entry, after) => {
                    found.push(entry);
                    for end in 0..rest.len() - after.len() {
                        assert!(matches!(wire::entry(&rest[..end]), wire::Read::Partial(_)), "{end}");
                    }
                    rest = after;
                }
                wire::Read::End(after) => {
                    assert!(after.is_empty());
                    break;
                }
                _ => panic!("{rest:?}"),
            }
        }
        let entry = |serial_number, invalidity_date: Option<i64>| Entry {
            serial_number,
            revoked_at: 946_684_801,
            reason: "superseded",
            invalidity_date,
            released: invalidity_date.is_some(),
        };
        assert_eq!(found, [entry("5f3a", None), entry("ffff", Some(946_684_799))]);
        assert!(matches!(wire::entry(&[0, 4]), wire::Read::Malformed));
        assert!(wire::header(b"PGCOPY\n").is_none());
    }
}
