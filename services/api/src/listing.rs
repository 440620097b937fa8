//! The generic half of every resource: list, get, delete.
//!
//! WHERE, ORDER BY and cursor of a list come from the same [`Column`]. A cursor carries the order and the filter it was
//! made for and is refused by any other; `total` counts what matches the filter, wherever the cursor stands.
//!
//! Statements are written so that an index gives the order: how many rows is part of their text, and those whose best
//! plan depends on the values are planned for the values.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use certctl_contract::{
    list::{List, Page, Sort, SortKey},
    problem::Kind,
    query::{Query, Several},
};
use certctl_model::time::Time;
use certctl_store::{
    Error as StoreError, Tx,
    tallies::{self, Subject},
};
use sqlx::{
    Encode, Postgres, QueryBuilder, Row, Type,
    postgres::{PgHasArrayType, PgRow},
};

use crate::{
    app::Cx,
    cursor::{self, Cursor},
    error::ApiError,
    readers::Statement,
};

/// What a list is sorted by: an expression that is never NULL, and its type.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    expression: &'static str,
    cast: &'static str,
    /// Whether it has so few values that many rows are equal under it.
    groups: bool,
}

impl Column {
    /// A text.
    pub const fn text(expression: &'static str) -> Self {
        Self {
            expression,
            cast: "text",
            groups: false,
        }
    }

    /// A text of few values. There is an index for it followed by each expression that is asked for a range.
    pub const fn group(expression: &'static str) -> Self {
        Self {
            groups: true,
            ..Self::text(expression)
        }
    }

    /// A whole number.
    pub const fn integer(expression: &'static str) -> Self {
        Self {
            expression,
            cast: "integer",
            groups: false,
        }
    }

    /// An instant.
    pub const fn time(expression: &'static str) -> Self {
        Self {
            expression,
            cast: "timestamptz",
            groups: false,
        }
    }
}

impl Column {
    /// What orders rows that are equal under it, before their ids do: what the filter asks a range of, because the rows
    /// outside of that may be many, and side by side.
    fn tie(self, shape: &Shape) -> Option<&str> {
        match shape {
            Shape::Range(expression) if self.groups => Some(expression),
            _ => None,
        }
    }
}

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

/// Conditions under construction.
pub struct Where<'a> {
    sql: &'a mut QueryBuilder<Postgres>,
    /// The instant of the request.
    pub now: Time,
    /// Whether values are kept from the planner.
    hidden: bool,
    values: Vec<String>,
    ranges: Vec<String>,
    others: bool,
}

impl<'a> Where<'a> {
    fn new(sql: &'a mut QueryBuilder<Postgres>, now: Time) -> Self {
        Self {
            sql,
            now,
            hidden: false,
            values: vec![],
            ranges: vec![],
            others: false,
        }
    }

    /// What is asked.
    fn shape(mut self) -> Shape {
        self.ranges.dedup();
        match (self.values.pop(), self.ranges.pop(), self.others) {
            (value, None, false) if self.values.is_empty() => Shape::Value(value),
            (None, Some(range), false) if self.ranges.is_empty() => Shape::Range(range),
            _ => Shape::Mixed,
        }
    }
}

/// What a filter asks.
enum Shape {
    /// Nothing, or that one expression has one value: with the right index its rows are in order.
    Value(Option<String>),
    /// That one expression lies in a range: an index has the rows, in the order of that expression only.
    Range(String),
    /// Anything else.
    Mixed,
}

impl Where<'_> {
    /// `expression = value`, when there is a value.
    pub fn eq<T>(&mut self, expression: &str, value: &Option<T>)
    where
        T: Clone + Send + for<'q> Encode<'q, Postgres> + Type<Postgres> + 'static,
    {
        self.values.extend(value.as_ref().map(|_| expression.to_owned()));
        self.compare(expression, "=", value);
    }

    /// `expression` is one of the values, when there are any.
    pub fn among<T>(&mut self, expression: &str, values: &Option<Several<T>>)
    where
        T: Clone + Send + PgHasArrayType + for<'q> Encode<'q, Postgres> + Type<Postgres> + 'static,
    {
        if let Some(Several(values)) = values {
            self.with(&format!("{expression} = ANY("), values.clone(), ")");
        }
    }

    /// `expression < value`, when there is a value.
    pub fn before(&mut self, expression: &str, value: &Option<Time>) {
        self.ranges.extend(value.map(|_| expression.to_owned()));
        self.compare(expression, "<", value);
    }

    /// `expression > value`, when there is a value.
    pub fn after(&mut self, expression: &str, value: &Option<Time>) {
        self.ranges.extend(value.map(|_| expression.to_owned()));
        self.compare(expression, ">", value);
    }

    /// `value < expression < end`, when there is a value.
    pub fn after_until(&mut self, expression: &str, value: &Option<Time>, end: &'static str) {
        self.after(expression, value);
        if value.is_some() {
            self.sql.push(format!(" AND {expression} < {end}"));
        }
    }

    fn compare<T>(&mut self, expression: &str, operator: &str, value: &Option<T>)
    where
        T: Clone + Send + for<'q> Encode<'q, Postgres> + Type<Postgres> + 'static,
    {
        if let Some(value) = value {
            let (before, after) = if self.hidden { ("(SELECT ", ")") } else { ("", "") };
            self.sql
                .push(format!(" AND {expression} {operator} {before}"))
                .push_bind(value.clone())
                .push(after);
        }
    }

    /// A condition of the caller's own text around one value: `before value after`.
    pub fn with<T>(&mut self, before: &str, value: T, after: &str)
    where
        T: Send + for<'q> Encode<'q, Postgres> + Type<Postgres> + 'static,
    {
        self.others = true;
        self.sql
            .push(format!(" AND {before} "))
            .push_bind(value)
            .push(format!(" {after}"));
    }

    /// `expression` is among what a statement of the caller's own gives.
    pub fn within(&mut self, expression: &str, select: impl Fn(&mut QueryBuilder<Postgres>)) {
        self.others = true;
        self.sql.push(format!(" AND {expression} IN ("));
        select(self.sql);
        self.sql.push(")");
    }

    /// A condition without a value.
    pub fn and(&mut self, condition: &str) {
        self.others = true;
        self.sql.push(format!(" AND {condition}"));
    }
}

/// Whether a value was at fault (SQLSTATE class 22): here only a cursor that was not made by us can hold one.
fn is_of_data(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code.starts_with("22"))
}

/// Up to here rows are counted; what is more is estimated, unless it is tallied.
const COUNTED: i64 = 10_000;
/// Up to here the rows of several things at once are collected without being counted first.
const TRIED: i64 = 1_000;
/// The same for something that is expected not to be frequent.
const COLLECTED: i64 = 3_000;
/// However many there are: they have been counted.
const ALL: i64 = i64::MAX - 1;
/// How long the total of more rows than are counted is kept.
const KEPT: Duration = Duration::from_secs(5);
/// How many totals are kept.
const MOST_KEPT: usize = 1_000;

/// The name of a list and its filter as text.
type Counted = (&'static str, String);

/// Totals of large lists, and when each was counted. They are kept for a few seconds; small ones are counted each time.
#[derive(Default)]
pub struct Totals(Mutex<HashMap<Counted, (Time, i64)>>);

impl Totals {
    fn known(&self, key: &Counted, now: Time) -> Option<i64> {
        let kept = self.0.lock().expect("nobody panics with the lock");
        let (at, total) = *kept.get(key)?;
        (at <= now && now < at + KEPT).then_some(total)
    }

    fn keep(&self, key: Counted, now: Time, total: i64) {
        let mut kept = self.0.lock().expect("nobody panics with the lock");
        if kept.len() >= MOST_KEPT {
            kept.retain(|_, (at, _)| *at <= now && now < *at + KEPT);
        }
        if kept.len() < MOST_KEPT {
            kept.insert(key, (now, total));
        }
    }
}

/// Answers a list.
pub async fn list<T: Listed>(cx: &Cx, query: List<T::Filter, T::Sort>) -> Result<Page<T>, ApiError> {
    let page = rows::<T>(cx, &query, |sql| T::restrict(&query.filter, sql), None).await?;
    Ok(page.as_ref().try_map(T::read)?)
}

/// Answers a list of the rows for which a further condition holds.
pub async fn list_where<T: Listed>(
    cx: &Cx,
    query: List<T::Filter, T::Sort>,
    narrow: impl Fn(&mut Where<'_>),
) -> Result<Page<T>, ApiError> {
    let restrict = |sql: &mut Where<'_>| {
        T::restrict(&query.filter, sql);
        narrow(sql);
    };
    settle::<T>(cx, &query).await?;
    let total = count::<T>(cx, &restrict).await?;
    let page = page::<T>(cx, &query, &restrict, total).await?;
    Ok(page.as_ref().try_map(T::read)?)
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
    settle::<T>(cx, query).await?;
    let (filter, asked) = filter_text::<T>(&query.filter);
    let expected = expected.filter(|_| asked == 1);
    let key = (T::KIND, filter);
    let known = match expected {
        Some(_) => None,
        None => cx.app.totals.known(&key, cx.now()),
    };
    let few = if expected.is_some() { COLLECTED } else { TRIED };
    let mixed = matches!(shape(cx.now(), &restrict), Shape::Mixed);
    if mixed
        && known.is_none()
        && expected.is_none_or(|expected| expected < COUNTED)
        && let Some(page) = all_if_few::<T>(cx, query, &restrict, few).await?
    {
        return Ok(page);
    }
    let total = match (known, expected) {
        (Some(total), _) => total,
        (None, Some(expected)) => {
            let many = expected.max(few + 1);
            return assemble::<T>(query, read::<T>(cx, query, &restrict, None).await?, many);
        }
        (None, None) => {
            let total = match (T::TALLY, key.1.split_once('=')) {
                (Some(subject), None) => tallies::count(cx.pool(), subject, None).await?,
                (Some(subject), Some(("status", word))) if word.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                    tallies::count(cx.pool(), subject, Some(word)).await?
                }
                _ => count::<T>(cx, &restrict).await?,
            };
            if total > COUNTED {
                cx.app.totals.keep(key, cx.now(), total);
            }
            total
        }
    };
    page::<T>(cx, query, &restrict, total).await
}

/// A page of so many rows.
async fn page<T: Listed>(
    cx: &Cx,
    query: &List<T::Filter, T::Sort>,
    restrict: &impl Fn(&mut Where<'_>),
    total: i64,
) -> Result<Page<PgRow>, ApiError> {
    let few = (total <= COUNTED).then_some(ALL);
    assemble::<T>(query, read::<T>(cx, query, restrict, few).await?, total)
}

/// The page in one go with how many rows there are, unless they are more than `most`.
async fn all_if_few<T: Listed>(
    cx: &Cx,
    query: &List<T::Filter, T::Sort>,
    restrict: &impl Fn(&mut Where<'_>),
    most: i64,
) -> Result<Option<Page<PgRow>>, ApiError> {
    let rows = read::<T>(cx, query, restrict, Some(most)).await?;
    let found = match rows.first() {
        Some(row) => row.try_get("found")?,
        None if query.cursor.is_none() && query.page.unwrap_or(1) == 1 => 0,
        // Behind the last one.
        None => return Ok(None),
    };
    match found <= most {
        true => assemble::<T>(query, rows, found).map(Some),
        false => Ok(None),
    }
}

fn order_text<T: Listed>(query: &List<T::Filter, T::Sort>) -> String {
    let sort = query.sort.unwrap_or(T::DEFAULT);
    format!("{}{}", if sort.descending { "-" } else { "" }, sort.key.as_str())
}

/// The rows of a page, and one more if there is one.
async fn read<T: Listed>(
    cx: &Cx,
    query: &List<T::Filter, T::Sort>,
    restrict: &impl Fn(&mut Where<'_>),
    few: Option<i64>,
) -> Result<Vec<PgRow>, ApiError> {
    let sort = query.sort.unwrap_or(T::DEFAULT);
    let cursor = query.cursor.as_deref();
    let cursor = cursor.map(|text| Cursor::read(text, &order_text::<T>(query), &filter_text::<T>(&query.filter).0));
    let cursor = cursor.transpose()?;
    let tied = T::column(sort.key).tie(&shape(cx.now(), restrict)).is_some();
    if cursor.as_ref().is_some_and(|cursor| cursor.t.is_some() != tied) {
        return Err(cursor::not_ours());
    }
    let page = || statement::<T>("", cx.now(), query, sort, cursor.as_ref(), few, restrict);
    let rows = cx.app.readers.rows(page).await;
    rows.map_err(|error| match cursor.is_some() && is_of_data(&error) {
        true => cursor::not_ours(),
        false => error.into(),
    })
}

fn assemble<T: Listed>(
    query: &List<T::Filter, T::Sort>,
    mut data: Vec<PgRow>,
    total: i64,
) -> Result<Page<PgRow>, ApiError> {
    let limit = query.limit();
    let more = data.len() > limit as usize;
    data.truncate(limit as usize);
    let next_cursor = match data.last() {
        Some(last) if more => Some(Cursor {
            s: order_text::<T>(query),
            f: filter_text::<T>(&query.filter).0,
            k: last.try_get("sort_key")?,
            t: last.try_get("sort_tie")?,
            i: last.try_get("sort_id")?,
        }),
        _ => None,
    };
    let by_cursor = query.cursor.is_some() || (query.page_size.is_some() && query.page.is_none());
    Ok(Page {
        data,
        total,
        page: (!by_cursor).then(|| query.page.unwrap_or(1)),
        per_page: (!by_cursor).then_some(limit),
        page_size: by_cursor.then_some(limit),
        next_cursor: next_cursor.map(|cursor| cursor.write()),
    })
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

/// Adds the rows that a list with this filter has: tables and conditions, for a statement of the caller's own.
pub fn matching<T: Listed>(sql: &mut QueryBuilder<Postgres>, filter: &T::Filter, now: Time) {
    from(sql, T::FROM, now);
    T::restrict(filter, &mut Where::new(sql, now));
}

/// What a list asks.
fn shape(now: Time, restrict: &impl Fn(&mut Where<'_>)) -> Shape {
    let mut scratch = QueryBuilder::new("");
    let mut conditions = Where::new(&mut scratch, now);
    restrict(&mut conditions);
    conditions.shape()
}

/// The statement of a page, behind `prefix`, with one row more than the page has. It is planned for its values when no
/// index can be relied on to give both the rows and their order.
///
/// Then, of up to `few` rows all are looked at and the first of them kept, however rare they are in the order, each with
/// how many there are (one more than `few` when they are more); of many, those that match are soon met on the way along
/// the order.
fn statement<T: Listed>(
    prefix: &str,
    now: Time,
    query: &List<T::Filter, T::Sort>,
    sort: Sort<T::Sort>,
    cursor: Option<&Cursor>,
    few: Option<i64>,
    restrict: &impl Fn(&mut Where<'_>),
) -> Statement {
    let column = T::column(sort.key);
    let (direction, beyond) = if sort.descending { ("DESC", "<") } else { ("ASC", ">") };
    let (id, rows) = (T::ID, query.limit() + 1);
    let shape = shape(now, restrict);
    let tie = column.tie(&shape);
    let same = matches!(&shape, Shape::Value(Some(value)) if value == column.expression);
    let shown = format!(
        "{}, ({})::text AS sort_key, {}::text AS sort_tie, {id}::text AS sort_id",
        T::COLUMNS,
        column.expression,
        tie.unwrap_or("NULL")
    );
    let skipped = u64::from(query.page.unwrap_or(1) - 1) * u64::from(query.limit());
    let order = |keys: &[&str]| format!(" ORDER BY {} {direction}", keys.join(&format!(" {direction}, ")));
    // Subselects hide from the planner where an index has all rows in order: it would take rows beyond a frequent value
    // for few, and an index that has only some of the columns for the best.
    let window = |sql: &mut QueryBuilder<Postgres>, keys: &[&str]| {
        if let Some(cursor) = cursor {
            let tie = tie.and(cursor.t.as_ref()).map(|text| (text, "timestamptz"));
            let ends = [
                Some((&cursor.k, column.cast)).filter(|_| !same),
                tie,
                Some((&cursor.i, "text")),
            ];
            sql.push(format!(" AND ({}) {beyond} (", keys.join(", ")));
            let mut ends_of = sql.separated(", ");
            for (text, cast) in ends.into_iter().flatten() {
                ends_of
                    .push("(SELECT ")
                    .push_bind_unseparated(text.clone())
                    .push_unseparated(format!("::{cast})"));
            }
            sql.push(")");
        }
        sql.push(order(keys)).push(format!(" LIMIT {rows}"));
        if skipped > 0 {
            sql.push(format!(" OFFSET {skipped}"));
        }
    };
    let matching = |sql: &mut QueryBuilder<Postgres>| {
        let mut conditions = Where::new(sql, now);
        restrict(&mut conditions);
        T::follows(&query.filter, sort.key, &mut conditions);
    };
    let keys: Vec<&str> = [Some(column.expression).filter(|_| !same), tie, Some(id)]
        .into_iter()
        .flatten()
        .collect();
    let mut sql = QueryBuilder::new(prefix);
    let in_order = matches!(shape, Shape::Value(_));
    if in_order && skipped == 0 {
        push_select::<T>(&mut sql, &shown, now);
        let mut conditions = Where::new(&mut sql, now);
        conditions.hidden = true;
        restrict(&mut conditions);
        window(&mut sql, &keys);
        return (sql, true);
    }
    // First which rows, by as little as possible; then what they hold.
    if let Some(most) = few.filter(|_| !in_order) {
        let tie_of = tie.map(|tie| format!("{tie} AS t, ")).unwrap_or_default();
        sql.push("WITH found AS MATERIALIZED (");
        push_ids::<T>(&mut sql, &format!("{} AS k, {tie_of}{id} AS i", column.expression), now);
        restrict(&mut Where::new(&mut sql, now));
        sql.push(format!(" LIMIT {}) ", most + 1));
        let shown = format!("{shown}, (SELECT count(*) FROM found) AS found");
        push_select::<T>(&mut sql, &shown, now);
        sql.push(format!(" AND {id} IN (SELECT i FROM found WHERE true"));
        window(&mut sql, if tie.is_some() { &["k", "t", "i"] } else { &["k", "i"] });
    } else if let Some(tie) = tie.filter(|_| skipped == 0) {
        // From group to group until there are enough: in each the index is entered where the range begins, or the page.
        let group = column.expression;
        let nearest = |sql: &mut QueryBuilder<Postgres>, condition: &str| {
            sql.push("SELECT (");
            push_ids::<T>(sql, group, now);
            sql.push(condition).push(order(&[group])).push(" LIMIT 1) AS k");
        };
        let found_in_it = |sql: &mut QueryBuilder<Postgres>, cursor: Option<&Cursor>| {
            // Without OFFSET both would be put in for each mention, and looked for as often.
            sql.push(" OFFSET 0) g CROSS JOIN LATERAL (SELECT ARRAY(");
            push_ids::<T>(sql, id, now);
            matching(sql);
            sql.push(format!(" AND {group} = g.k"));
            if let Some(cursor) = cursor {
                sql.push(format!(" AND ({tie}, {id}) {beyond} ("));
                sql.push_bind(cursor.t.clone()).push("::timestamptz, ");
                sql.push_bind(cursor.i.clone()).push("::text)");
            }
            sql.push(order(&[tie, id]))
                .push(format!(" LIMIT {rows}) AS ids OFFSET 0) found"));
        };
        sql.push("WITH RECURSIVE walk (k, ids, n) AS (SELECT g.k, ids, cardinality(ids) FROM (");
        match cursor {
            Some(cursor) => {
                sql.push("SELECT ").push_bind(cursor.k.clone()).push("::text AS k");
            }
            None => nearest(&mut sql, ""),
        }
        found_in_it(&mut sql, cursor);
        sql.push(" UNION ALL SELECT g.k, ids, g.n + cardinality(ids) FROM (");
        nearest(&mut sql, &format!(" AND {group} {beyond} walk.k"));
        sql.push(format!(", n FROM walk WHERE k IS NOT NULL AND n < {rows}"));
        found_in_it(&mut sql, None);
        sql.push(") ");
        push_select::<T>(&mut sql, &shown, now);
        sql.push(format!(
            " AND {id} IN (SELECT i FROM walk CROSS JOIN LATERAL unnest(ids) WITH ORDINALITY AS one (i, place)
                ORDER BY k {direction}, place LIMIT {rows}"
        ));
    } else {
        push_select::<T>(&mut sql, &shown, now);
        sql.push(format!(" AND {id} IN ("));
        push_ids::<T>(&mut sql, id, now);
        matching(&mut sql);
        window(&mut sql, &keys);
    }
    sql.push(")").push(order(&keys));
    (sql, false)
}

/// How many rows there are: counted, or what Postgres expects when it is more than [`COUNTED`].
async fn count<T: Listed>(cx: &Cx, restrict: &impl Fn(&mut Where<'_>)) -> Result<i64, ApiError> {
    let counted = cx.app.readers.rows(|| {
        let mut sql = QueryBuilder::new("SELECT count(*) FROM (");
        push_ids::<T>(&mut sql, "1", cx.now());
        let mut conditions = Where::new(&mut sql, cx.now());
        restrict(&mut conditions);
        let shape = conditions.shape();
        // In an order that an index has: what is in it alone is counted without looking at rows.
        match &shape {
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
        restrict(&mut Where::new(sql, cx.now()));
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
    let mut sql = select::<T>(T::COLUMNS, now);
    Where::new(&mut sql, now).eq(T::ID, &Some(id.to_owned()));
    let row = sql
        .build()
        .fetch_optional(db)
        .await?
        .ok_or_else(|| ApiError::missing(T::KIND, id))?;
    Ok(T::read(&row)?)
}

/// Fetches one by its id, outside a unit of work.
///
/// # Errors
/// 404.
pub async fn fetch<T: Listed>(cx: &Cx, id: &str) -> Result<T, ApiError> {
    let mut db = cx.pool().acquire().await?;
    get(&mut db, cx.now(), id).await
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
    match name.trim().is_empty() || name.chars().count() > most || name.contains(char::is_control) {
        true => Err(ApiError::invalid(
            field,
            format!("has 1 to {most} characters, without control characters"),
        )),
        false => Ok(()),
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

#[cfg(test)]
mod tests {
    use certctl_contract::{
        certificates::{Certificate, CertificateFilter, CertificateSort},
        list::MAX_PER_PAGE,
    };
    use serde_json::Value;
    use sqlx::PgPool;

    use super::*;

    /// An inventory large enough that reading all of it is the wrong plan, with rare and frequent values.
    async fn inventory(db: &PgPool) {
        for sql in [
            "INSERT INTO profiles (id, name, created_at, updated_at)
             SELECT 'p-' || n, 'p-' || n, now(), now() FROM generate_series(1, 10) n",
            "INSERT INTO owners (id, name, team_id, created_at, updated_at)
             SELECT 'o-' || n, 'o-' || n, 't-unassigned', now(), now() FROM generate_series(1, 50) n",
            "INSERT INTO certificates (id, name, common_name, environment, owner_id, team_id, issuer_id,
                                       renewal_policy_id, profile_id, archived_at, created_at, updated_at)
             SELECT 'mc-' || n, 'name-' || n, 'host-' || n % 9000, 'env-' || n % 7, 'o-' || 1 + n * n % 50, 't-unassigned',
                    'iss-local', 'rp-default', 'p-' || 1 + n % 10, CASE WHEN n % 100 = 0 THEN now() END,
                    to_timestamp(1700000000 + n * 7919 % 20000), to_timestamp(1700000000 + n * 104729 % 20000)
               FROM generate_series(1, 20000) n",
            "ANALYZE",
        ] {
            sqlx::query(sqlx::AssertSqlSafe(sql)).execute(db).await.unwrap();
        }
    }

    /// What a plan does that it should not: reads all certificates, or sorts more than `most` rows.
    fn faults(node: &Value, most: f64, out: &mut Vec<String>) {
        let of = |key: &str| node[key].as_str().unwrap_or_default();
        if of("Node Type") == "Seq Scan" && of("Relation Name") == "certificates" {
            out.push("reads every certificate".to_owned());
        }
        if of("Node Type") == "Sort" && node["Plan Rows"].as_f64().unwrap_or(f64::MAX) > most {
            out.push(format!("sorts {} rows", node["Plan Rows"]));
        }
        for child in node["Plans"].as_array().into_iter().flatten() {
            faults(child, most, out);
        }
    }

    #[sqlx::test(migrator = "certctl_store::MIGRATOR")]
    async fn every_order_of_every_filter_is_read_from_an_index_wherever_the_page_begins(db: PgPool) {
        inventory(&db).await;
        let now = Time::from_unix(1_800_000_000);
        let filters = [
            "",
            "status=Pending",
            "status=Archived",
            "environment=env-3",
            "owner_id=o-2",
            "team_id=t-unassigned",
            "issuer_id=iss-local",
            "profile_id=p-4",
        ];
        for filter in filters {
            for key in CertificateSort::all() {
                for (descending, deep) in [(false, false), (false, true), (true, false), (true, true)] {
                    let sort = Sort { key: *key, descending };
                    let pairs = filter.split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned()));
                    let filter_of = certctl_contract::query::parse::<CertificateFilter>(pairs.into_iter().collect());
                    let query = List {
                        filter: filter_of.unwrap(),
                        ..List::default()
                    };
                    let cursor = deep.then(|| Cursor {
                        s: String::new(),
                        f: String::new(),
                        k: match Certificate::column(*key).cast {
                            "timestamptz" => "2023-11-15T00:00:00Z".to_owned(),
                            _ => "host-5".to_owned(),
                        },
                        t: None,
                        i: "mc-5".to_owned(),
                    });
                    let explain = "EXPLAIN (FORMAT JSON) ";
                    let (mut sql, one_plan) = statement::<Certificate>(
                        explain,
                        now,
                        &query,
                        sort,
                        cursor.as_ref(),
                        None,
                        &|sql: &mut Where<'_>| Certificate::restrict(&query.filter, sql),
                    );
                    assert!(one_plan, "{filter}: one plan fits all values");
                    let plan: Value = sql.build_query_scalar().persistent(false).fetch_one(&db).await.unwrap();
                    let mut found = vec![];
                    faults(&plan[0]["Plan"], f64::from(query.limit() + 1), &mut found);
                    assert!(
                        found.is_empty(),
                        "{filter} by {} {deep}: {found:?}\n{plan:#}",
                        key.as_str()
                    );
                }
            }
        }
    }

    #[sqlx::test(migrator = "certctl_store::MIGRATOR")]
    async fn a_range_is_entered_in_each_group_where_it_begins(db: PgPool) {
        inventory(&db).await;
        let now = Time::from_unix(1_800_000_000);
        let query = List {
            filter: CertificateFilter {
                created_after: Some(Time::from_unix(1_700_010_000)),
                ..CertificateFilter::default()
            },
            ..List::default()
        };
        let cursor = Cursor {
            s: String::new(),
            f: String::new(),
            k: "env-3".to_owned(),
            t: Some("2023-11-15T03:00:00Z".to_owned()),
            i: "mc-5".to_owned(),
        };
        for (descending, cursor) in [
            (false, None),
            (false, Some(&cursor)),
            (true, None),
            (true, Some(&cursor)),
        ] {
            let sort = Sort {
                key: CertificateSort::Environment,
                descending,
            };
            let restrict = |sql: &mut Where<'_>| Certificate::restrict(&query.filter, sql);
            let (mut sql, _) =
                statement::<Certificate>("EXPLAIN (FORMAT JSON) ", now, &query, sort, cursor, None, &restrict);
            let plan: Value = sql.build_query_scalar().persistent(false).fetch_one(&db).await.unwrap();
            let mut entered = vec![];
            conditions(&plan[0]["Plan"], &mut entered);
            entered.retain(|condition| condition.contains("created_at"));
            assert_eq!(
                entered.len(),
                2,
                "in the first group, and in those that follow: {plan:#}"
            );
            for condition in entered {
                assert!(condition.contains("(environment = "), "{condition}");
            }
        }
    }

    /// What the indexes of a plan are asked for.
    fn conditions(node: &Value, out: &mut Vec<String>) {
        out.extend(node["Index Cond"].as_str().map(str::to_owned));
        for child in node["Plans"].as_array().into_iter().flatten() {
            conditions(child, out);
        }
    }

    #[sqlx::test(migrator = "certctl_store::MIGRATOR")]
    async fn a_walk_meets_the_same_rows_in_the_same_order_whether_they_are_few_or_many(db: PgPool) {
        inventory(&db).await;
        let now = Time::from_unix(1_800_000_000);
        for (filter, key) in [
            ("created_after=2023-11-15T00:00:00Z", CertificateSort::Status),
            ("updated_before=2023-11-15T00:00:00Z", CertificateSort::Environment),
            ("created_before=2023-11-15T00:00:00Z", CertificateSort::Name),
            ("created_after=2023-11-15T00:00:00Z", CertificateSort::UpdatedAt),
            ("updated_before=2023-11-15T00:00:00Z", CertificateSort::CreatedAt),
        ] {
            let (name, value) = filter.split_once('=').unwrap();
            let filter_of = certctl_contract::query::parse::<CertificateFilter>(vec![(name.into(), value.into())]);
            let query = List {
                filter: filter_of.unwrap(),
                page_size: Some(MAX_PER_PAGE),
                ..List::default()
            };
            let restrict = |sql: &mut Where<'_>| Certificate::restrict(&query.filter, sql);
            let mut count = QueryBuilder::new("SELECT count(*) FROM (");
            push_ids::<Certificate>(&mut count, "1", now);
            restrict(&mut Where::new(&mut count, now));
            let count: i64 = count.push(") c").build_query_scalar().fetch_one(&db).await.unwrap();
            for descending in [false, true] {
                let sort = Sort { key, descending };
                let walk = async |few| {
                    let (mut met, mut cursor) = (vec![], None);
                    loop {
                        let (mut sql, _) =
                            statement::<Certificate>("", now, &query, sort, cursor.as_ref(), few, &restrict);
                        let rows = sql.build().fetch_all(&db).await.unwrap();
                        let page = rows.len().min(MAX_PER_PAGE as usize);
                        let of = |row: &PgRow, column: &str| row.get::<Option<String>, _>(column);
                        let places = rows[..page].iter();
                        met.extend(places.map(|row| ["sort_key", "sort_tie", "sort_id"].map(|column| of(row, column))));
                        if page == rows.len() {
                            return met;
                        }
                        let [k, t, i] = met.last().unwrap().clone();
                        cursor = Some(Cursor {
                            s: String::new(),
                            f: String::new(),
                            k: k.unwrap(),
                            t,
                            i: i.unwrap(),
                        });
                    }
                };
                let (few, many) = (walk(Some(ALL)).await, walk(None).await);
                assert_eq!(few.len() as i64, count, "{filter}");
                assert!(few == many, "{filter} by {} {descending}", key.as_str());
            }
        }
    }

    #[test]
    fn totals_of_large_lists_are_kept_for_a_while() {
        let (totals, now) = (Totals::default(), Time::from_unix(1_800_000_000));
        let key = ("certificate", "status=Active".to_owned());
        assert_eq!(totals.known(&key, now), None);
        totals.keep(key.clone(), now, 20_000);
        assert_eq!(totals.known(&key, now + KEPT / 2), Some(20_000));
        assert_eq!(totals.known(&key, now + KEPT), None);
        for n in 0..2 * MOST_KEPT {
            totals.keep(("job", n.to_string()), now, 20_000);
        }
        assert_eq!(totals.0.lock().unwrap().len(), MOST_KEPT);
        totals.keep(("job", "later".to_owned()), now + KEPT, 20_000);
        assert_eq!(totals.0.lock().unwrap().len(), 1);
    }
}
