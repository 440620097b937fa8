//! The generic half of every resource: list, get, delete.
//!
//! WHERE, ORDER BY and cursor of a list come from the same [`Column`]. A cursor carries the order and the filter it was
//! made for and is refused by any other; `total` counts what matches the filter, wherever the cursor stands.

mod belongs;
mod conditions;
mod page;
mod totals;

use std::collections::{BTreeMap, BTreeSet};

pub use belongs::Belongs;
use certctl_contract::{
    list::{List, Page, Sort, SortKey},
    problem::Kind,
    query::Query,
};
use certctl_model::{text, time::Time};
use certctl_store::{
    Error as StoreError, Tx,
    tallies::{self, Subject},
};
use conditions::Shape;
pub use conditions::{Column, Where};
use page::Asked;
use serde::Serialize;
use serde_json::Value;
use sqlx::{Postgres, QueryBuilder, Row, Type, postgres::PgRow};
pub use totals::Totals;

use crate::{app::Cx, error::ApiError, reach::Reached};

/// A resource that can be listed and fetched by its id.
pub trait Listed: Sized + Send {
    /// Which rows.
    type Filter: Query + Sync;
    /// In which order.
    type Sort: SortKey;

    /// What it is called in messages.
    const KIND: &'static str;
    /// Columns, as the row is read.
    const COLUMNS: &'static str;
    /// Tables. `{now}` stands for the instant of the request.
    const FROM: &'static str;
    /// The tables that filters and orders look at, when these are fewer.
    const ROWS: &'static str = Self::FROM;
    /// The id's column.
    const ID: &'static str;
    /// The order when none is asked for.
    const DEFAULT: Sort<Self::Sort>;

    /// To which certificates its rows belong, so that a party which reaches only some of them is shown only those. Rows of
    /// which nothing is stated are not shown to such a party at all.
    const BELONGS: Belongs = Belongs::Unstated;

    /// What it is tallied as, in all and by `status`.
    const TALLY: Option<Subject> = None;
    /// Whether there is an index for each order of each column that can be asked for one value, and for each order of
    /// all rows. Then it is also counted along one.
    const ORDERED: bool = false;

    /// Whether this filter or order looks at what changes by itself and is settled first.
    fn unsettled(_: &Self::Filter, _: Self::Sort) -> bool {
        false
    }

    /// What a sort key stands for.
    fn column(key: Self::Sort) -> Column;

    /// Adds the conditions of a filter.
    fn restrict(filter: &Self::Filter, sql: &mut Where<'_>);

    /// Adds what follows from a filter for the column of an order: where in the order its rows begin or end.
    fn follows(_: &Self::Filter, _: Self::Sort, _: &mut Where<'_>) {}

    /// Reads a row.
    ///
    /// # Errors
    /// When it does not have the columns.
    fn read(row: &PgRow) -> Result<Self, sqlx::Error>;
}

/// The columns of a row, one after the other: to look each up by its name costs as much as to read it.
pub struct Cells<'r> {
    row: &'r PgRow,
    column: usize,
}

impl<'r> Cells<'r> {
    /// All of them, from the first one on.
    pub fn of(row: &'r PgRow) -> Self {
        Self { row, column: 0 }
    }

    /// Takes the next one. That its type is right lies with the text of the statement: programs under test look at it in
    /// every row, others read it as it is meant.
    ///
    /// # Errors
    /// When it cannot be read as this type, or there is none.
    pub fn take<T>(&mut self) -> Result<T, sqlx::Error>
    where
        T: sqlx::Decode<'r, Postgres> + Type<Postgres>,
    {
        self.column += 1;
        match cfg!(debug_assertions) {
            true => self.row.try_get(self.column - 1),
            false => self.row.try_get_unchecked(self.column - 1),
        }
    }
}

/// Up to here rows are counted; what is more is estimated, unless it is tallied.
const COUNTED: i64 = 10_000;
/// Up to here the rows of several things at once are collected without being counted first.
const TRIED: i64 = 1_000;
/// The same for something that is expected not to be frequent.
const COLLECTED: i64 = 3_000;
/// However many there are: they have been counted.
const ALL: i64 = i64::MAX - 1;

/// Answers a list.
pub async fn list<T: Listed>(cx: &Cx, query: List<T::Filter, T::Sort>) -> Result<Page<T>, ApiError> {
    let page = rows::<T>(cx, &query, |sql| T::restrict(&query.filter, sql), None).await?;
    Ok(page.as_ref().try_map(T::read)?)
}

/// The rows of a list for a party that reaches only some certificates: counts of all rows are not for it.
async fn rows_within_reach<T: Listed>(
    cx: &Cx,
    query: &List<T::Filter, T::Sort>,
    restrict: impl Fn(&mut Where<'_>),
) -> Result<Page<PgRow>, ApiError> {
    T::BELONGS.must_be_stated()?;
    let asked = Asked::<T, _>::new(cx.now(), query, |sql: &mut Where<'_>| {
        restrict(sql);
        T::BELONGS.restrict(&cx.reach, sql);
    })?;
    settle::<T>(cx, query).await?;
    let total = count(cx, &asked).await?;
    page(cx, &asked, total).await
}

/// Answers a list of the rows for which a further condition holds.
pub async fn list_where<T: Listed>(
    cx: &Cx,
    query: List<T::Filter, T::Sort>,
    narrow: impl Fn(&mut Where<'_>),
) -> Result<Page<T>, ApiError> {
    if cx.reach.limits().is_some() {
        let restrict = |sql: &mut Where<'_>| {
            T::restrict(&query.filter, sql);
            narrow(sql);
        };
        return Ok(rows_within_reach::<T>(cx, &query, restrict)
            .await?
            .as_ref()
            .try_map(T::read)?);
    }
    let asked = Asked::<T, _>::new(cx.now(), &query, |sql: &mut Where<'_>| {
        T::restrict(&query.filter, sql);
        narrow(sql);
    })?;
    settle::<T>(cx, &query).await?;
    let total = count(cx, &asked).await?;
    Ok(page(cx, &asked, total).await?.as_ref().try_map(T::read)?)
}

/// The rows of a list.
///
/// When nothing but the filter's one thing is asked for, and about so many rows as `expected` match, so many that any
/// order shows them soon, they are not counted.
pub async fn rows<T: Listed>(
    cx: &Cx,
    query: &List<T::Filter, T::Sort>,
    restrict: impl Fn(&mut Where<'_>),
    expected: Option<i64>,
) -> Result<Page<PgRow>, ApiError> {
    if cx.reach.limits().is_some() {
        return rows_within_reach::<T>(cx, query, restrict).await;
    }
    let asked = Asked::<T, _>::new(cx.now(), query, restrict)?;
    settle::<T>(cx, query).await?;
    let expected = expected.filter(|_| asked.things == 1);
    let key = (T::KIND, asked.filter.clone());
    let known = match expected {
        Some(_) => None,
        None => cx.app.totals.known(&key, cx.now()),
    };
    let few = if expected.is_some() { COLLECTED } else { TRIED };
    if matches!(asked.shape, Shape::Mixed)
        && known.is_none()
        && expected.is_none_or(|expected| expected < COUNTED)
        && let Some(page) = all_if_few(cx, &asked, few).await?
    {
        return Ok(page);
    }
    let total = match (known, expected) {
        (Some(total), _) => total,
        (None, Some(expected)) => {
            let many = expected.max(few + 1);
            return asked.answer(read(cx, &asked, None).await?, many);
        }
        (None, None) => {
            let total = match (T::TALLY, asked.filter.split_once('=')) {
                (Some(subject), None) => tallies::count(cx.pool(), subject, None).await?,
                (Some(subject), Some(("status", word))) if word.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                    tallies::count(cx.pool(), subject, Some(word)).await?
                }
                _ => count(cx, &asked).await?,
            };
            if total > COUNTED {
                cx.app.totals.keep(key, cx.now(), total);
            }
            total
        }
    };
    page(cx, &asked, total).await
}

/// A page of so many rows.
async fn page<T: Listed, R: Fn(&mut Where<'_>)>(
    cx: &Cx,
    asked: &Asked<'_, T, R>,
    total: i64,
) -> Result<Page<PgRow>, ApiError> {
    let few = (total <= COUNTED).then_some(ALL);
    asked.answer(read(cx, asked, few).await?, total)
}

/// The page in one go with how many rows there are, unless they are more than `most`.
async fn all_if_few<T: Listed, R: Fn(&mut Where<'_>)>(
    cx: &Cx,
    asked: &Asked<'_, T, R>,
    most: i64,
) -> Result<Option<Page<PgRow>>, ApiError> {
    let rows = read(cx, asked, Some(most)).await?;
    let found = match rows.first() {
        Some(row) => row.try_get("found")?,
        None if asked.is_first() => 0,
        // Behind the last one.
        None => return Ok(None),
    };
    match found <= most {
        true => asked.answer(rows, found).map(Some),
        false => Ok(None),
    }
}

/// The rows of a page, and one more if there is one.
async fn read<T: Listed, R: Fn(&mut Where<'_>)>(
    cx: &Cx,
    asked: &Asked<'_, T, R>,
    few: Option<i64>,
) -> Result<Vec<PgRow>, ApiError> {
    let rows = cx.app.readers.rows(|| asked.statement("", few)).await;
    rows.map_err(|error| asked.error(error))
}

/// A filter as on the wire, and how many things it asks for.
fn filter_text<T: Listed>(filter: &T::Filter) -> (String, usize) {
    let mut pairs = vec![];
    filter.pairs(&mut pairs);
    (serde_urlencoded::to_string(&pairs).unwrap_or_default(), pairs.len())
}

/// Brings up to date what changes by itself, if the list looks at it.
async fn settle<T: Listed>(cx: &Cx, query: &List<T::Filter, T::Sort>) -> Result<(), ApiError> {
    match T::unsettled(&query.filter, query.sort.unwrap_or(T::DEFAULT).key) {
        true => settle_statuses(cx).await,
        false => Ok(()),
    }
}

/// Brings statuses up to date.
pub async fn settle_statuses(cx: &Cx) -> Result<(), ApiError> {
    let unsettled = cx.app.readers.rows(|| (tallies::unsettled(cx.now()), true));
    if only(&unsettled.await?)? {
        tallies::settle(cx.pool(), cx.now()).await?;
    }
    Ok(())
}

/// Adds the rows that a list with this filter has for the caller: tables and conditions, for a statement of the caller's own.
///
/// # Errors
/// 403 when the caller reaches only some certificates, and it is not stated to which of them the rows belong.
pub fn matching<T: Listed>(
    reach: &Reached,
    sql: &mut QueryBuilder<Postgres>,
    filter: &T::Filter,
    now: Time,
) -> Result<(), ApiError> {
    from(sql, T::FROM, now);
    let mut conditions = Where::new(sql, now);
    T::restrict(filter, &mut conditions);
    if reach.limits().is_some() {
        T::BELONGS.must_be_stated()?;
        T::BELONGS.restrict(reach, &mut conditions);
    }
    Ok(())
}

/// How many rows there are: counted, or what Postgres expects when it is more than [`COUNTED`].
async fn count<T: Listed, R: Fn(&mut Where<'_>)>(cx: &Cx, asked: &Asked<'_, T, R>) -> Result<i64, ApiError> {
    let counted = cx.app.readers.rows(|| {
        let mut sql = QueryBuilder::new("SELECT count(*) FROM (");
        push_ids::<T>(&mut sql, "1", cx.now());
        (asked.restrict)(&mut Where::new(&mut sql, cx.now()));
        // In an order that an index has: what is in it alone is counted without looking at rows.
        match &asked.shape {
            Shape::Value(_) if T::ORDERED => {
                sql.push(format!(" ORDER BY {}, {}", T::column(T::DEFAULT.key).expression, T::ID));
            }
            Shape::Range(expression) if T::ORDERED => {
                sql.push(format!(" ORDER BY {expression}"));
            }
            _ => {}
        }
        sql.push(format!(" LIMIT {}) counted", COUNTED + 1));
        // Planned for the values: what is right for a frequent one reads everything for a rare one.
        (sql, false)
    });
    let counted = only(&counted.await?)?;
    if counted <= COUNTED {
        return Ok(counted);
    }
    let expected = expected(cx, |sql| {
        push_ids::<T>(sql, "1", cx.now());
        (asked.restrict)(&mut Where::new(sql, cx.now()));
    });
    Ok(expected.await?.max(counted))
}

/// How many rows Postgres expects of a statement.
pub async fn expected(cx: &Cx, select: impl Fn(&mut QueryBuilder<Postgres>)) -> Result<i64, ApiError> {
    let plan = cx.app.readers.rows(|| {
        let mut sql = QueryBuilder::new("EXPLAIN (FORMAT JSON) ");
        select(&mut sql);
        (sql, false)
    });
    let plan: serde_json::Value = only(&plan.await?)?;
    let rows = plan.pointer("/0/Plan/Plan Rows").and_then(serde_json::Value::as_i64);
    Ok(rows.unwrap_or_default())
}

/// The only value of an answer.
fn only<'r, V>(rows: &'r [PgRow]) -> Result<V, sqlx::Error>
where
    V: sqlx::Decode<'r, Postgres> + Type<Postgres>,
{
    rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)
}

fn select<T: Listed>(columns: &str, now: Time) -> QueryBuilder<Postgres> {
    let mut sql = QueryBuilder::new("");
    push_select::<T>(&mut sql, columns, now);
    sql
}

fn push_select<T: Listed>(sql: &mut QueryBuilder<Postgres>, columns: &str, now: Time) {
    sql.push(format!("SELECT {columns} FROM "));
    from(sql, T::FROM, now);
}

/// The same where only filter and order matter.
fn push_ids<T: Listed>(sql: &mut QueryBuilder<Postgres>, columns: &str, now: Time) {
    sql.push(format!("SELECT {columns} FROM "));
    from(sql, T::ROWS, now);
}

fn from(sql: &mut QueryBuilder<Postgres>, tables: &str, now: Time) {
    for (n, part) in tables.split("{now}").enumerate() {
        if n > 0 {
            sql.push_bind(now);
        }
        sql.push(part);
    }
    sql.push(" WHERE true");
}

/// Fetches one by its id.
///
/// # Errors
/// 404.
pub async fn get<T: Listed>(db: &mut sqlx::PgConnection, now: Time, id: &str) -> Result<T, ApiError> {
    one(db, now, id, |_| {}).await
}

async fn one<T: Listed>(
    db: &mut sqlx::PgConnection,
    now: Time,
    id: &str,
    restrict: impl FnOnce(&mut Where<'_>),
) -> Result<T, ApiError> {
    let mut sql = select::<T>(T::COLUMNS, now);
    let mut conditions = Where::new(&mut sql, now);
    conditions.eq(T::ID, &Some(id.to_owned()));
    restrict(&mut conditions);
    let row = sql
        .build()
        .fetch_optional(db)
        .await?
        .ok_or_else(|| ApiError::missing(T::KIND, id))?;
    Ok(T::read(&row)?)
}

/// Fetches one by its id, outside a unit of work, if the caller reaches what it belongs to.
///
/// # Errors
/// 404.
pub async fn fetch<T: Listed>(cx: &Cx, id: &str) -> Result<T, ApiError> {
    let mut db = cx.pool().acquire().await?;
    match cx.reach.limits() {
        None => get(&mut db, cx.now(), id).await,
        Some(_) => {
            T::BELONGS.must_be_stated()?;
            one(&mut db, cx.now(), id, |sql| T::BELONGS.restrict(&cx.reach, sql)).await
        }
    }
}

/// Says that a delete did what it should, or why not: nothing there, or others refer to it.
///
/// # Errors
/// 404 and 409.
pub fn deleted(
    done: Result<sqlx::postgres::PgQueryResult, sqlx::Error>,
    kind: &'static str,
    id: &str,
) -> Result<(), ApiError> {
    match done.map_err(StoreError::from) {
        Ok(done) if done.rows_affected() == 0 => Err(ApiError::missing(kind, id)),
        Ok(_) => Ok(()),
        Err(StoreError::Reference { .. }) => Err(ApiError::new(
            Kind::Referenced,
            format!("{kind} {id} is in use; change what refers to it first"),
        )),
        Err(error) => Err(error.into()),
    }
}

/// Checks the length of a name, in characters.
///
/// # Errors
/// 422.
pub fn check_name(field: &str, name: &str, most: usize) -> Result<(), ApiError> {
    match name.trim().is_empty() || name.chars().count() > most || name.contains(text::is_hidden) {
        true => Err(ApiError::invalid(
            field,
            format!("has 1 to {most} characters, without control and format characters"),
        )),
        false => Ok(()),
    }
}

/// Commits a change of one resource; the event has the old and the new value of every field that differs.
///
/// # Errors
/// When the database refuses.
pub async fn commit_change<T: Serialize>(
    mut tx: Tx,
    action: &'static str,
    resource: &'static str,
    id: &str,
    (before, after): (&T, &T),
) -> Result<(), ApiError> {
    let event = tx
        .event(action, resource, id)
        .with("changes", Changes::between(before, after));
    tx.note(event);
    Ok(tx.commit().await?)
}

/// The fields of a resource that differ, each with its old and new value; when it was updated is not one of them.
#[derive(Debug, PartialEq, Serialize)]
pub struct Changes(BTreeMap<String, Change>);

#[derive(Debug, PartialEq, Serialize)]
struct Change {
    old: Value,
    new: Value,
}

impl Changes {
    /// Compares two states of a resource, which is a JSON object.
    pub fn between<T: Serialize>(before: &T, after: &T) -> Self {
        let fields = |state: &T| match serde_json::to_value(state) {
            Ok(Value::Object(fields)) => fields,
            _ => serde_json::Map::new(),
        };
        let (mut old, mut new) = (fields(before), fields(after));
        let names: BTreeSet<String> = old.keys().chain(new.keys()).cloned().collect();
        let change = |name: String| {
            let (old, new) = (
                old.remove(&name).unwrap_or_default(),
                new.remove(&name).unwrap_or_default(),
            );
            (old != new && name != "updated_at").then_some((name, Change { old, new }))
        };
        Self(names.into_iter().filter_map(change).collect())
    }
}

/// Commits a unit of work that did one thing.
///
/// # Errors
/// When the database refuses.
pub async fn commit(mut tx: Tx, action: &'static str, resource: &'static str, id: &str) -> Result<(), ApiError> {
    let event = tx.event(action, resource, id);
    tx.note(event);
    Ok(tx.commit().await?)
}
