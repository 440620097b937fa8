//! What a list asks of its rows, and what it sorts them by.

use certctl_contract::query::Several;
use certctl_model::time::Time;
use sqlx::{Encode, Postgres, QueryBuilder, Type, postgres::PgHasArrayType};

/// What a list is sorted by: an expression that is never NULL, and its type.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    pub(super) expression: &'static str,
    pub(super) cast: &'static str,
    /// Whether it has so few values that many rows are equal under it.
    pub(super) groups: bool,
    /// Whether there is an index for it behind the fortnight of each other date.
    pub(super) by_fortnight: bool,
}

impl Column {
    /// A text.
    pub const fn text(expression: &'static str) -> Self {
        Self {
            expression,
            cast: "text",
            groups: false,
            by_fortnight: false,
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
            cast: "integer",
            ..Self::text(expression)
        }
    }

    /// An instant.
    pub const fn time(expression: &'static str) -> Self {
        Self {
            cast: "timestamptz",
            ..Self::text(expression)
        }
    }

    /// An instant that is one of several by which there are ranges and orders. There is an index for it behind the
    /// fortnight of each other.
    pub const fn date(expression: &'static str) -> Self {
        Self {
            by_fortnight: true,
            ..Self::time(expression)
        }
    }
}

impl Column {
    /// What orders rows that are equal under it, before their ids do: what the filter asks a range of, because the rows
    /// outside of that may be many, and side by side.
    pub(super) fn tie(self, shape: &Shape) -> Option<&str> {
        match shape {
            Shape::Range(expression) if self.groups => Some(expression),
            _ => None,
        }
    }

    /// The date that the filter asks a range of, where the order is that of another one: what lies outside of the range
    /// may be side by side in it too.
    pub(super) fn other_date(self, shape: &Shape) -> Option<&str> {
        match shape {
            Shape::Range(expression) if self.by_fortnight && expression != self.expression => Some(expression),
            _ => None,
        }
    }
}

/// Two weeks, also where clocks change.
pub(super) const FORTNIGHT: &str = "interval '336 hours'";

/// The fortnight of a date, by its first instant, as it is indexed.
pub(super) fn fortnight(date: &str) -> String {
    format!("date_bin({FORTNIGHT}, {date}, '2000-01-03Z')")
}

/// Conditions under construction.
pub struct Where<'a> {
    sql: &'a mut QueryBuilder<Postgres>,
    /// The instant of the request.
    pub now: Time,
    told: Told<'a>,
    values: Vec<String>,
    ranges: Vec<String>,
    others: bool,
}

impl<'a> Where<'a> {
    /// Adds conditions to a statement, as of an instant.
    pub(super) fn new(sql: &'a mut QueryBuilder<Postgres>, now: Time) -> Self {
        Self {
            sql,
            now,
            told: Told::Values,
            values: vec![],
            ranges: vec![],
            others: false,
        }
    }

    /// The same, with values kept from the planner.
    pub(super) fn hidden(sql: &'a mut QueryBuilder<Postgres>, now: Time) -> Self {
        Self {
            told: Told::Nothing,
            ..Self::new(sql, now)
        }
    }

    /// The same, for a part of the rows that have the one value asked for.
    pub(super) fn in_window(window: &'a Window<'a>, sql: &'a mut QueryBuilder<Postgres>, now: Time) -> Self {
        Self {
            told: Told::Window(window),
            ..Self::new(sql, now)
        }
    }

    /// The same, for the rows of one fortnight of the date asked for.
    pub(super) fn in_fortnight(sql: &'a mut QueryBuilder<Postgres>, now: Time) -> Self {
        Self {
            told: Told::Passed,
            ..Self::new(sql, now)
        }
    }
}

/// What the planner is told of values.
enum Told<'a> {
    /// What they are.
    Values,
    /// That there are some.
    Nothing,
    /// Where the page lies among the rows that have the one value asked for.
    Window(&'a Window<'a>),
    /// That what lies outside of a range of dates is passed: they are compared as no other index has them.
    Passed,
}

/// What a row has in a column that orders it, as a text, and the column's type.
pub(super) type Key<'a> = (&'a str, &'static str);

/// Adds that rows lie behind a place in the order of these columns, when there is one.
pub(super) fn push_behind(sql: &mut QueryBuilder<Postgres>, columns: &[&str], beyond: &str, place: &[Key<'_>]) {
    if place.is_empty() {
        return;
    }
    sql.push(format!(" AND ({}) {beyond} (", columns.join(", ")));
    let mut keys = sql.separated(", ");
    for (text, cast) in place {
        keys.push("(SELECT ")
            .push_bind_unseparated((*text).to_owned())
            .push_unseparated(format!("::{cast})"));
    }
    sql.push(")");
}

/// A part of the rows that have one value, in an order that begins with it.
///
/// Postgres forgets that an order begins with what is said to be equal in all rows, and then may take an index without
/// that, along which it passes whatever has another value. So it is told where the value begins and where it ends.
pub(super) struct Window<'a> {
    /// What the rows are ordered by, the value first.
    pub(super) keys: String,
    /// What is behind a place compares with it like this.
    pub(super) beyond: &'static str,
    /// Where the page before ended: the keys behind the value.
    pub(super) behind: Vec<Key<'a>>,
}

impl Window<'_> {
    fn push<T>(&self, sql: &mut QueryBuilder<Postgres>, expression: &str, value: &T)
    where
        T: Clone + Send + for<'q> Encode<'q, Postgres> + Type<Postgres> + 'static,
    {
        for operator in [">=", "<="] {
            sql.push(format!(" AND {expression} {operator} (SELECT "))
                .push_bind(value.clone())
                .push(")");
        }
        if self.behind.is_empty() {
            return;
        }
        sql.push(format!(" AND ({}) {} ((SELECT ", self.keys, self.beyond))
            .push_bind(value.clone())
            .push(")");
        for (text, cast) in &self.behind {
            sql.push(", (SELECT ")
                .push_bind((*text).to_owned())
                .push(format!("::{cast})"));
        }
        sql.push(")");
    }
}

/// What a filter asks.
pub(super) enum Shape {
    /// Nothing, or that one expression has one value: with the right index its rows are in order.
    Value(Option<String>),
    /// That one expression lies in a range: an index has the rows, in the order of that expression only.
    Range(String),
    /// Anything else.
    Mixed,
}

impl Shape {
    /// Of these conditions.
    pub(super) fn of(now: Time, restrict: impl Fn(&mut Where<'_>)) -> Self {
        let mut scratch = QueryBuilder::new("");
        let mut asked = Where::new(&mut scratch, now);
        restrict(&mut asked);
        asked.ranges.dedup();
        match (asked.values.pop(), asked.ranges.pop(), asked.others) {
            (value, None, false) if asked.values.is_empty() => Self::Value(value),
            (None, Some(range), false) if asked.ranges.is_empty() => Self::Range(range),
            _ => Self::Mixed,
        }
    }
}

impl Where<'_> {
    /// `expression = value`, when there is a value.
    pub fn eq<T>(&mut self, expression: &str, value: &Option<T>)
    where
        T: Clone + Send + for<'q> Encode<'q, Postgres> + Type<Postgres> + 'static,
    {
        self.values.extend(value.as_ref().map(|_| expression.to_owned()));
        match (&self.told, value) {
            (Told::Window(window), Some(value)) => window.push(self.sql, expression, value),
            _ => self.compare(expression, "=", value),
        }
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
            let zone = self.zone();
            self.sql.push(format!(" AND {expression}{zone} < {end}"));
        }
    }

    /// What dates are compared in.
    fn zone(&self) -> &'static str {
        match self.told {
            Told::Passed => " AT TIME ZONE 'UTC'",
            _ => "",
        }
    }

    fn compare<T>(&mut self, expression: &str, operator: &str, value: &Option<T>)
    where
        T: Clone + Send + for<'q> Encode<'q, Postgres> + Type<Postgres> + 'static,
    {
        if let Some(value) = value {
            let (before, after) = match self.told {
                Told::Values => ("", ""),
                _ => ("(SELECT ", ")"),
            };
            let zone = self.zone();
            self.sql
                .push(format!(" AND {expression}{zone} {operator} {before}"))
                .push_bind(value.clone())
                .push(format!("{zone}{after}"));
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
