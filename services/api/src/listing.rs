//! The generic half of every resource: list, get, delete.
//!
//! WHERE, ORDER BY and cursor of a list come from the same [`Column`]. A cursor carries the order and the filter it was
//! made for and is refused by any other; `total` counts what matches the filter, wherever the cursor stands.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use certctl_contract::{
    list::{List, Page, Sort, SortKey},
    problem::Kind,
    query::{Invalid, Query, Several},
};
use certctl_model::time::Time;
use certctl_store::{Error as StoreError, Tx};
use serde::{Deserialize, Serialize};
use sqlx::{
    Encode, PgPool, Postgres, QueryBuilder, Row, Type,
    postgres::{PgHasArrayType, PgRow},
};

use crate::{app::Cx, error::ApiError};

/// What a list is sorted by: an expression that is never NULL, and its type.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    expression: &'static str,
    cast: &'static str,
}

impl Column {
    /// A text.
    pub const fn text(expression: &'static str) -> Self {
        Self {
            expression,
            cast: "text",
        }
    }

    /// A whole number.
    pub const fn integer(expression: &'static str) -> Self {
        Self {
            expression,
            cast: "integer",
        }
    }

    /// An instant.
    pub const fn time(expression: &'static str) -> Self {
        Self {
            expression,
            cast: "timestamptz",
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
    /// The id's column.
    const ID: &'static str;
    /// The order when none is asked for.
    const DEFAULT: Sort<Self::Sort>;

    /// What a sort key stands for.
    fn column(key: Self::Sort) -> Column;

    /// Adds the conditions of a filter.
    fn restrict(filter: &Self::Filter, sql: &mut Where<'_>);

    /// Reads a row.
    ///
    /// # Errors
    /// When it does not have the columns.
    fn read(row: &PgRow) -> Result<Self, sqlx::Error>;
}

/// Conditions under construction.
pub struct Where<'a> {
    sql: &'a mut QueryBuilder<Postgres>,
    /// The instant of the request.
    pub now: Time,
}

impl Where<'_> {
    /// `expression = value`, when there is a value.
    pub fn eq<T>(&mut self, expression: &str, value: &Option<T>)
    where
        T: Clone + Send + for<'q> Encode<'q, Postgres> + Type<Postgres> + 'static,
    {
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
        self.compare(expression, "<", value);
    }

    /// `expression > value`, when there is a value.
    pub fn after(&mut self, expression: &str, value: &Option<Time>) {
        self.compare(expression, ">", value);
    }

    fn compare<T>(&mut self, expression: &str, operator: &str, value: &Option<T>)
    where
        T: Clone + Send + for<'q> Encode<'q, Postgres> + Type<Postgres> + 'static,
    {
        if let Some(value) = value {
            self.sql
                .push(format!(" AND {expression} {operator} "))
                .push_bind(value.clone());
        }
    }

    /// A condition of the caller's own text around one value: `before value after`.
    pub fn with<T>(&mut self, before: &str, value: T, after: &str)
    where
        T: Send + for<'q> Encode<'q, Postgres> + Type<Postgres> + 'static,
    {
        self.sql
            .push(format!(" AND {before} "))
            .push_bind(value)
            .push(format!(" {after}"));
    }

    /// A condition without a value.
    pub fn and(&mut self, condition: &str) {
        self.sql.push(format!(" AND {condition}"));
    }
}

#[derive(Serialize, Deserialize)]
struct Cursor {
    /// The order, as on the wire.
    s: String,
    /// The filter, as on the wire.
    f: String,
    /// The sort column of the last row.
    k: String,
    /// Its id.
    i: String,
}

impl Cursor {
    fn read(text: &str, order: &str, filter: &str) -> Result<Self, ApiError> {
        let octets = URL_SAFE_NO_PAD.decode(text).map_err(|_| bad_cursor(NOT_OURS))?;
        let cursor: Cursor = serde_json::from_slice(&octets).map_err(|_| bad_cursor(NOT_OURS))?;
        if cursor.s != order || cursor.f != filter {
            return Err(bad_cursor(
                "belongs to a list with another sort or filter; begin again without it",
            ));
        }
        Ok(cursor)
    }

    fn write(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).expect("texts are plain data"))
    }
}

const NOT_OURS: &str = "is not one of ours";

fn bad_cursor(why: &str) -> ApiError {
    ApiError::malformed("the query cannot be read", vec![Invalid::new("cursor", why)])
}

/// Whether a value was at fault (SQLSTATE class 22): here only a cursor that was not made by us can hold one.
fn is_of_data(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code.starts_with("22"))
}

/// Answers a list.
pub async fn list<T: Listed>(cx: &Cx, query: List<T::Filter, T::Sort>) -> Result<Page<T>, ApiError> {
    list_where::<T>(cx.pool(), cx.now(), query, |_| {}).await
}

/// Answers a list of the rows for which a further condition holds.
pub async fn list_where<T: Listed>(
    pool: &PgPool,
    now: Time,
    query: List<T::Filter, T::Sort>,
    narrow: impl Fn(&mut Where<'_>),
) -> Result<Page<T>, ApiError> {
    let sort = query.sort.unwrap_or(T::DEFAULT);
    let (direction, beyond) = if sort.descending { ("DESC", "<") } else { ("ASC", ">") };
    let order = format!("{}{}", if sort.descending { "-" } else { "" }, sort.key.as_str());
    let mut pairs = vec![];
    query.filter.pairs(&mut pairs);
    let filter = serde_urlencoded::to_string(&pairs).unwrap_or_default();
    let Column { expression, cast } = T::column(sort.key);
    let limit = query.limit();

    let mut sql = select::<T>("count(*)", now);
    let restrict = |sql: &mut QueryBuilder<Postgres>| {
        let mut conditions = Where { sql, now };
        T::restrict(&query.filter, &mut conditions);
        narrow(&mut conditions);
    };
    restrict(&mut sql);
    let total: i64 = sql.build_query_scalar().fetch_one(pool).await?;

    let columns = format!(
        "{}, ({expression})::text AS sort_key, {}::text AS sort_id",
        T::COLUMNS,
        T::ID
    );
    let mut sql = select::<T>(&columns, now);
    restrict(&mut sql);
    if let Some(text) = &query.cursor {
        let cursor = Cursor::read(text, &order, &filter)?;
        sql.push(format!(" AND ({expression}, {}) {beyond} (", T::ID))
            .push_bind(cursor.k)
            .push(format!("::{cast}, "))
            .push_bind(cursor.i)
            .push(")");
    }
    sql.push(format!(
        " ORDER BY {expression} {direction}, {} {direction} LIMIT ",
        T::ID
    ))
    .push_bind(i64::from(limit) + 1);
    if let Some(page) = query.page {
        sql.push(" OFFSET ").push_bind(i64::from(page - 1) * i64::from(limit));
    }
    let rows = sql.build().fetch_all(pool).await;
    let mut rows = rows.map_err(|error| match query.cursor.is_some() && is_of_data(&error) {
        true => bad_cursor(NOT_OURS),
        false => error.into(),
    })?;

    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next_cursor = match rows.last() {
        Some(last) if more => Some(
            Cursor {
                s: order,
                f: filter,
                k: last.try_get("sort_key")?,
                i: last.try_get("sort_id")?,
            }
            .write(),
        ),
        _ => None,
    };
    let data = rows.iter().map(T::read).collect::<Result<_, _>>()?;
    Ok(
        match query.cursor.is_some() || (query.page_size.is_some() && query.page.is_none()) {
            true => Page {
                data,
                total,
                page: None,
                per_page: None,
                page_size: Some(limit),
                next_cursor,
            },
            false => Page {
                data,
                total,
                page: Some(query.page.unwrap_or(1)),
                per_page: Some(limit),
                page_size: None,
                next_cursor,
            },
        },
    )
}

/// Adds the rows that a list with this filter has: tables and conditions, for a statement of the caller's own.
pub fn matching<T: Listed>(sql: &mut QueryBuilder<Postgres>, filter: &T::Filter, now: Time) {
    from::<T>(sql, now);
    T::restrict(filter, &mut Where { sql, now });
}

fn select<T: Listed>(columns: &str, now: Time) -> QueryBuilder<Postgres> {
    let mut sql = QueryBuilder::new(format!("SELECT {columns} FROM "));
    from::<T>(&mut sql, now);
    sql
}

fn from<T: Listed>(sql: &mut QueryBuilder<Postgres>, now: Time) {
    for (n, part) in T::FROM.split("{now}").enumerate() {
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
    Where { sql: &mut sql, now }.eq(T::ID, &Some(id.to_owned()));
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
