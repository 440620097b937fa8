//! The pages of a list: the statement that reads one, and the answer that shows it.
//!
//! Statements are written so that an index gives the order: how many rows is part of their text, and those whose best
//! plan depends on the values are planned for the values.

use certctl_contract::list::{List, Page, Sort, SortKey};
use certctl_model::time::Time;
use sqlx::{Postgres, QueryBuilder, Row, postgres::PgRow};

use super::{
    Listed,
    conditions::{Column, FORTNIGHT, Key, Shape, Where, Window, fortnight, push_behind},
    filter_text, push_ids, push_select,
};
use crate::{
    cursor::{self, Cursor},
    error::ApiError,
    readers::Statement,
};

/// What part of a page's rows is first looked for in each fortnight: so many of them make a page.
const SHARES: u32 = 8;

/// A page as it is asked for.
pub(super) struct Asked<'a, T: Listed, R> {
    pub(super) now: Time,
    query: &'a List<T::Filter, T::Sort>,
    pub(super) restrict: R,
    pub(super) shape: Shape,
    /// The filter, as on the wire.
    pub(super) filter: String,
    /// How many things it asks for.
    pub(super) things: usize,
    sort: Sort<T::Sort>,
    cursor: Option<Cursor>,
}

impl<'a, T: Listed, R: Fn(&mut Where<'_>)> Asked<'a, T, R> {
    /// What `query` asks for, of the rows that `restrict` leaves.
    ///
    /// # Errors
    /// When its cursor is not one of ours, or belongs to another list.
    pub(super) fn new(now: Time, query: &'a List<T::Filter, T::Sort>, restrict: R) -> Result<Self, ApiError> {
        let (filter, things) = filter_text::<T>(&query.filter);
        let mut asked = Self {
            now,
            query,
            shape: Shape::of(now, &restrict),
            restrict,
            filter,
            things,
            sort: query.sort.unwrap_or(T::DEFAULT),
            cursor: None,
        };
        if let Some(text) = &query.cursor {
            let cursor = Cursor::read(text, &asked.order_text(), &asked.filter)?;
            if cursor.t.is_some() != asked.tie().is_some() {
                return Err(cursor::not_ours());
            }
            asked.cursor = Some(cursor);
        }
        Ok(asked)
    }

    fn order_text(&self) -> String {
        format!(
            "{}{}",
            if self.sort.descending { "-" } else { "" },
            self.sort.key.as_str()
        )
    }

    fn column(&self) -> Column {
        T::column(self.sort.key)
    }

    /// What orders rows that are equal under the sort, before their ids do.
    fn tie(&self) -> Option<&str> {
        self.column().tie(&self.shape)
    }

    /// Whether it begins with the first row.
    pub(super) fn is_first(&self) -> bool {
        self.cursor.is_none() && self.skipped() == 0
    }

    /// How many rows come before a page with a number.
    fn skipped(&self) -> u64 {
        u64::from(self.query.page.unwrap_or(1) - 1) * u64::from(self.query.limit())
    }

    /// One row more than the page has, which shows whether there is another page.
    fn rows(&self) -> u32 {
        self.query.limit() + 1
    }

    /// The answer, from the rows of the statement and how many there are in all.
    ///
    /// # Errors
    /// When a row is not of the statement.
    pub(super) fn answer(&self, mut data: Vec<PgRow>, total: i64) -> Result<Page<PgRow>, ApiError> {
        let limit = self.query.limit();
        let more = data.len() > limit as usize;
        data.truncate(limit as usize);
        let next_cursor = match data.last() {
            Some(last) if more => Some(Cursor {
                s: self.order_text(),
                f: self.filter.clone(),
                k: last.try_get("sort_key")?,
                t: last.try_get("sort_tie")?,
                i: last.try_get("sort_id")?,
            }),
            _ => None,
        };
        let by_cursor = self.query.cursor.is_some() || (self.query.page_size.is_some() && self.query.page.is_none());
        Ok(Page {
            data,
            total,
            page: (!by_cursor).then(|| self.query.page.unwrap_or(1)),
            per_page: (!by_cursor).then_some(limit),
            page_size: by_cursor.then_some(limit),
            next_cursor: next_cursor.map(|cursor| cursor.write()),
        })
    }

    /// What an error of the statement means: a value that the database cannot read (SQLSTATE class 22) can only be of a
    /// cursor that was not made by us.
    pub(super) fn error(&self, error: sqlx::Error) -> ApiError {
        let code = error.as_database_error().and_then(|error| error.code());
        match self.cursor.is_some() && code.is_some_and(|code| code.starts_with("22")) {
            true => cursor::not_ours(),
            false => error.into(),
        }
    }

    /// The statement of the page, behind `prefix`, with one row more than the page has. It is planned for its values when
    /// no index can be relied on to give both the rows and their order.
    ///
    /// Then, of up to `few` rows all are looked at and the first of them kept, however rare they are in the order, each
    /// with how many there are (one more than `few` when they are more); of many, those that match are soon met on the
    /// way along the order.
    pub(super) fn statement(&self, prefix: &str, few: Option<i64>) -> Statement {
        let mut sql = QueryBuilder::new(prefix);
        let in_order = matches!(self.shape, Shape::Value(_));
        if in_order && self.skipped() == 0 {
            self.push_in_order(&mut sql);
            return (sql, true);
        }
        if let (Some(most), false) = (few, in_order) {
            self.push_first_of_all(&mut sql, most);
            return (sql, false);
        }
        let in_parts = self.skipped() == 0;
        match (self.tie(), self.column().other_date(&self.shape)) {
            (Some(tie), _) if in_parts => self.push_from_group_to_group(&mut sql, tie),
            (_, Some(date)) if in_parts => self.push_from_fortnight_to_fortnight(&mut sql, date),
            _ => {
                self.push_along_the_order(&mut sql);
                return (sql, false);
            }
        }
        (sql, true)
    }

    /// An index has the rows in their order.
    fn push_in_order(&self, sql: &mut QueryBuilder<Postgres>) {
        push_select::<T>(sql, &self.shown(), self.now);
        let keys = self.keys();
        if self.group().is_none() {
            (self.restrict)(&mut Where::hidden(sql, self.now));
            return self.push_window(sql, &keys);
        }
        let window = Window {
            keys: keys.join(", "),
            beyond: self.beyond(),
            behind: self.behind(),
        };
        (self.restrict)(&mut Where::in_window(&window, sql, self.now));
        self.push_order(sql, &keys);
    }

    /// Collects all rows, up to so many and one, and takes the first of them.
    fn push_first_of_all(&self, sql: &mut QueryBuilder<Postgres>, most: i64) {
        let tie = self.tie();
        let tie_of = tie.map(|tie| format!("{tie} AS t, ")).unwrap_or_default();
        let columns = format!("{} AS k, {tie_of}{} AS i", self.column().expression, T::ID);
        sql.push("WITH found AS MATERIALIZED (");
        push_ids::<T>(sql, &columns, self.now);
        (self.restrict)(&mut Where::new(sql, self.now));
        sql.push(format!(" LIMIT {}) ", most + 1));
        let shown = format!("{}, (SELECT count(*) FROM found) AS found", self.shown());
        self.push_shown(sql, &shown, |sql| {
            sql.push("SELECT i FROM found WHERE true");
            self.push_window(sql, if tie.is_some() { &["k", "t", "i"] } else { &["k", "i"] });
        });
    }

    /// Goes from group to group until there are enough rows: in each the index is entered where the range begins, or the
    /// page.
    fn push_from_group_to_group(&self, sql: &mut QueryBuilder<Postgres>, tie: &str) {
        let (group, id, rows) = (self.column().expression, T::ID, self.rows());
        let (direction, beyond) = (self.direction(), self.beyond());
        let push_nearest = |sql: &mut QueryBuilder<Postgres>, condition: &str| {
            sql.push("SELECT (");
            push_ids::<T>(sql, group, self.now);
            sql.push(condition).push(self.order(&[group])).push(" LIMIT 1) AS k");
        };
        let push_ids_in_it = |sql: &mut QueryBuilder<Postgres>, place: &[Key<'_>]| {
            // Without OFFSET both would be put in for each mention, and looked for as often.
            sql.push(" OFFSET 0) g CROSS JOIN LATERAL (SELECT ARRAY(");
            push_ids::<T>(sql, id, self.now);
            (self.restrict)(&mut Where::hidden(sql, self.now));
            sql.push(format!(" AND {group} = g.k"));
            push_behind(sql, &[tie, id], beyond, place);
            sql.push(self.order(&[tie, id]))
                .push(format!(" LIMIT {rows}) AS ids OFFSET 0) found"));
        };
        sql.push("WITH RECURSIVE walk (k, ids, n) AS (SELECT g.k, ids, cardinality(ids) FROM (");
        match &self.cursor {
            Some(cursor) => {
                sql.push("SELECT ").push_bind(cursor.k.clone()).push("::text AS k");
            }
            None => push_nearest(sql, ""),
        }
        // What is behind the first key, the group.
        push_ids_in_it(sql, self.behind().get(1..).unwrap_or_default());
        sql.push(" UNION ALL SELECT g.k, ids, g.n + cardinality(ids) FROM (");
        push_nearest(sql, &format!(" AND {group} {beyond} walk.k"));
        sql.push(format!(", n FROM walk WHERE k IS NOT NULL AND n < {rows}"));
        push_ids_in_it(sql, &[]);
        sql.push(") ");
        self.push_shown(sql, &self.shown(), |sql| {
            sql.push(format!(
                "SELECT i FROM walk CROSS JOIN LATERAL unnest(ids) WITH ORDINALITY AS one (i, place)
                  ORDER BY k {direction}, place LIMIT {rows}"
            ));
        });
    }

    /// Takes the first few rows of each fortnight that the range has rows in. Behind the last of these it goes on only
    /// where that one is on the page, as in fewer than [`SHARES`] fortnights.
    fn push_from_fortnight_to_fortnight(&self, sql: &mut QueryBuilder<Postgres>, date: &str) {
        let fortnight = fortnight(date);
        let (sort, id, rows, beyond) = (self.column().expression, T::ID, self.rows(), self.beyond());
        let few = rows.div_ceil(SHARES);
        let order = self.order(&[sort, id]);
        let push_next = |sql: &mut QueryBuilder<Postgres>, condition: &str| {
            push_ids::<T>(sql, &fortnight, self.now);
            (self.restrict)(&mut Where::hidden(sql, self.now));
            sql.push(format!("{condition} ORDER BY {date} LIMIT 1)"));
        };
        let push_in_it = |sql: &mut QueryBuilder<Postgres>, columns: &str| {
            push_ids::<T>(sql, columns, self.now);
            (self.restrict)(&mut Where::in_fortnight(sql, self.now));
            sql.push(format!(" AND {fortnight} = fortnight"));
        };
        sql.push("WITH RECURSIVE walk (fortnight) AS ((");
        push_next(sql, "");
        sql.push(" UNION ALL SELECT (");
        push_next(sql, &format!(" AND {date} >= fortnight + {FORTNIGHT}"));
        sql.push(" FROM walk WHERE fortnight IS NOT NULL), firsts AS (SELECT fortnight, k, i, n FROM walk CROSS JOIN LATERAL (");
        push_in_it(
            sql,
            &format!("{sort} AS k, {id} AS i, row_number() OVER ({order}) AS n"),
        );
        push_behind(sql, &[sort, id], beyond, &self.behind());
        sql.push(format!("{order} LIMIT {few}) f) "));
        self.push_shown(sql, &self.shown(), |sql| {
            sql.push(
                "SELECT i FROM (SELECT k, i FROM firsts UNION ALL SELECT f.k, f.i FROM firsts CROSS JOIN LATERAL (",
            );
            push_in_it(sql, &format!("{sort} AS k, {id} AS i"));
            sql.push(format!(
                " AND ({sort}, {id}) {beyond} (firsts.k, firsts.i){order} LIMIT {}) f
                 WHERE n = {few} AND ((firsts.k, firsts.i) {beyond} (SELECT k, i FROM firsts{} OFFSET {} LIMIT 1)) IS NOT TRUE) found",
                rows - few,
                self.order(&["k", "i"]),
                rows - 1
            ));
            self.push_order(sql, &["k", "i"]);
        });
    }

    /// Goes along the order and takes what matches.
    fn push_along_the_order(&self, sql: &mut QueryBuilder<Postgres>) {
        self.push_shown(sql, &self.shown(), |sql| {
            push_ids::<T>(sql, T::ID, self.now);
            let mut conditions = Where::new(sql, self.now);
            (self.restrict)(&mut conditions);
            T::follows(&self.query.filter, self.sort.key, &mut conditions);
            self.push_window(sql, &self.keys());
        });
    }

    /// First which rows, by as little as possible; then what they hold.
    fn push_shown(
        &self,
        sql: &mut QueryBuilder<Postgres>,
        shown: &str,
        push_ids: impl Fn(&mut QueryBuilder<Postgres>),
    ) {
        push_select::<T>(sql, shown, self.now);
        sql.push(format!(" AND {} IN (", T::ID));
        push_ids(sql);
        sql.push(")").push(self.order(&self.keys()));
    }

    /// The columns of a row, and its place in the order.
    fn shown(&self) -> String {
        format!(
            "{}, ({})::text AS sort_key, {}::text AS sort_tie, {}::text AS sort_id",
            T::COLUMNS,
            self.column().expression,
            self.tie().unwrap_or("NULL"),
            T::ID
        )
    }

    /// What is asked for one value, when an index has the rows with it in their order.
    fn group(&self) -> Option<&str> {
        match &self.shape {
            Shape::Value(value) if T::ORDERED => value.as_deref(),
            _ => None,
        }
    }

    /// What orders the rows behind the value that all have.
    fn sort(&self) -> Option<&'static str> {
        let sort = self.column().expression;
        match &self.shape {
            Shape::Value(Some(value)) if value == sort => None,
            _ => Some(sort),
        }
    }

    /// What the rows are ordered by, one after the other.
    fn keys(&self) -> Vec<&str> {
        let keys = [self.group(), self.sort(), self.tie(), Some(T::ID)];
        keys.into_iter().flatten().collect()
    }

    /// Where the page before ended in this order, behind the value that all rows have.
    fn behind(&self) -> Vec<Key<'_>> {
        let Some(cursor) = &self.cursor else { return vec![] };
        let sort = self.sort().map(|_| (cursor.k.as_str(), self.column().cast));
        let tie = cursor.t.as_deref().map(|text| (text, "timestamptz"));
        [sort, tie, Some((cursor.i.as_str(), "text"))]
            .into_iter()
            .flatten()
            .collect()
    }

    fn direction(&self) -> &'static str {
        if self.sort.descending { "DESC" } else { "ASC" }
    }

    fn beyond(&self) -> &'static str {
        if self.sort.descending { "<" } else { ">" }
    }

    fn order(&self, keys: &[&str]) -> String {
        let direction = self.direction();
        format!(" ORDER BY {} {direction}", keys.join(&format!(" {direction}, ")))
    }

    /// Adds where the page begins, its order, and where it ends.
    ///
    /// Subselects hide from the planner where an index has all rows in order: it would take rows beyond a frequent value
    /// for few, and an index that has only some of the columns for the best.
    fn push_window(&self, sql: &mut QueryBuilder<Postgres>, keys: &[&str]) {
        push_behind(sql, keys, self.beyond(), &self.behind());
        self.push_order(sql, keys);
    }

    /// Adds the order, and where the page ends.
    fn push_order(&self, sql: &mut QueryBuilder<Postgres>, keys: &[&str]) {
        sql.push(self.order(keys)).push(format!(" LIMIT {}", self.rows()));
        if self.skipped() > 0 {
            sql.push(format!(" OFFSET {}", self.skipped()));
        }
    }
}

#[cfg(test)]
mod tests {
    use certctl_contract::{
        certificates::{Certificate, CertificateFilter, CertificateSort},
        list::MAX_PER_PAGE,
    };
    use serde_json::Value;
    use sqlx::PgPool;

    use super::{super::ALL, *};

    type Certificates = List<CertificateFilter, CertificateSort>;

    /// A page behind this place in the order.
    fn asked(
        now: Time,
        query: &Certificates,
        sort: Sort<CertificateSort>,
        cursor: Option<Cursor>,
    ) -> Asked<'_, Certificate, impl Fn(&mut Where<'_>)> {
        let restrict = |sql: &mut Where<'_>| Certificate::restrict(&query.filter, sql);
        let asked = Asked::new(now, query, restrict).expect("there is no cursor to refuse");
        Asked { sort, cursor, ..asked }
    }

    fn behind(key: &str, tie: Option<&str>, id: &str) -> Cursor {
        Cursor {
            s: String::new(),
            f: String::new(),
            k: key.to_owned(),
            t: tie.map(str::to_owned),
            i: id.to_owned(),
        }
    }

    /// An inventory large enough that reading all of it is the wrong plan, with rare and frequent values.
    async fn inventory(db: &PgPool) {
        for sql in [
            "INSERT INTO profiles (id, name, created_at, updated_at)
             SELECT 'p-' || n, 'p-' || n, now(), now() FROM generate_series(1, 10) n",
            "INSERT INTO owners (id, name, team_id, created_at, updated_at)
             SELECT 'o-' || n, 'o-' || n, 't-unassigned', now(), now() FROM generate_series(1, 50) n",
            // Which versions they have is not looked at.
            "ALTER TABLE certificates DROP CONSTRAINT certificates_current_version_fkey",
            "INSERT INTO certificates (id, name, common_name, environment, owner_id, team_id, issuer_id,
                                       renewal_policy_id, profile_id, archived_at, current_version_id, not_after, created_at,
                                       updated_at)
             SELECT 'mc-' || n, 'name-' || n, 'host-' || n % 9000, 'env-' || n % 7, 'o-' || 1 + n * n % 50, 't-unassigned',
                    'iss-local', 'rp-default', 'p-' || 1 + n % 10, CASE WHEN n % 100 = 0 THEN now() END,
                    CASE WHEN n % 9 > 0 THEN 'v-' || n END, CASE WHEN n % 9 > 0 THEN to_timestamp(1701000000 + n * 3571 % 20000 * 600) END,
                    to_timestamp(1700000000 + n * 7919 % 20000 * 600), to_timestamp(1700000000 + n * 104729 % 20000 * 600)
               FROM generate_series(1, 20000) n",
            "VACUUM (ANALYZE)",
        ] {
            sqlx::query(sqlx::AssertSqlSafe(sql)).execute(db).await.unwrap();
        }
    }

    /// How Postgres reads the page, when there are many rows, and whether it would for other values too.
    async fn plan(db: &PgPool, asked: &Asked<'_, Certificate, impl Fn(&mut Where<'_>)>) -> (Value, bool) {
        let (mut sql, fits_all) = asked.statement("EXPLAIN (FORMAT JSON) ", None);
        let plan = sql.build_query_scalar().persistent(false).fetch_one(db).await;
        (plan.unwrap(), fits_all)
    }

    /// What a plan does that it should not: reads all certificates, passes those that do not match, or sorts more than
    /// `most` rows.
    fn faults(node: &Value, most: f64, out: &mut Vec<String>) {
        let of = |key: &str| node[key].as_str().unwrap_or_default();
        if of("Node Type") == "Seq Scan" && of("Relation Name") == "certificates" {
            out.push("reads every certificate".to_owned());
        }
        if of("Relation Name") == "certificates" && !of("Filter").is_empty() {
            out.push(format!("passes what is not {}", of("Filter")));
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
                    let key_of_last = match Certificate::column(*key).cast {
                        "timestamptz" => "2024-01-23T00:00:00Z",
                        _ => "host-5",
                    };
                    let cursor = deep.then(|| behind(key_of_last, None, "mc-5"));
                    let (plan, fits_all) = plan(&db, &asked(now, &query, sort, cursor)).await;
                    assert!(fits_all, "{filter}: one plan fits all values");
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
                created_after: Some(Time::from_unix(1_706_000_000)),
                ..CertificateFilter::default()
            },
            ..List::default()
        };
        for (descending, deep) in [(false, false), (false, true), (true, false), (true, true)] {
            let cursor = deep.then(|| behind("env-3", Some("2024-01-23T03:00:00Z"), "mc-5"));
            let sort = Sort {
                key: CertificateSort::Environment,
                descending,
            };
            let (plan, _) = plan(&db, &asked(now, &query, sort, cursor)).await;
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

    #[sqlx::test(migrator = "certctl_store::MIGRATOR")]
    async fn what_a_range_leaves_out_of_an_order_is_passed_in_the_index(db: PgPool) {
        inventory(&db).await;
        let now = Time::from_unix(1_800_000_000);
        let middle = Some(Time::from_unix(1_706_000_000));
        let none = CertificateFilter::default();
        for filter in [
            CertificateFilter {
                created_before: middle,
                ..none.clone()
            },
            CertificateFilter {
                created_after: middle,
                ..none.clone()
            },
            CertificateFilter {
                updated_before: middle,
                ..none.clone()
            },
            CertificateFilter {
                updated_after: middle,
                ..none.clone()
            },
            CertificateFilter {
                expires_before: middle,
                ..none.clone()
            },
            CertificateFilter {
                expires_after: middle,
                ..none.clone()
            },
        ] {
            let query = List {
                filter,
                ..List::default()
            };
            for key in CertificateSort::all()
                .iter()
                .filter(|key| !Certificate::column(**key).groups)
            {
                for descending in [false, true] {
                    let sort = Sort { key: *key, descending };
                    let asked = asked(now, &query, sort, None);
                    let by_fortnight = asked.column().other_date(&asked.shape).is_some();
                    let (plan, _) = plan(&db, &asked).await;
                    let (mut found, mut conditions_of) = (vec![], vec![]);
                    // How many rows fortnights have is not known to the planner; of all theirs only a page is kept.
                    let most = if by_fortnight {
                        f64::MAX
                    } else {
                        f64::from(query.limit() + 1)
                    };
                    faults(&plan[0]["Plan"], most, &mut found);
                    conditions(&plan[0]["Plan"], &mut conditions_of);
                    assert!(
                        found.is_empty(),
                        "{:?} by {}: {found:?}\n{plan:#}",
                        query.filter,
                        key.as_str()
                    );
                    let entered = conditions_of.iter().any(|condition| condition.contains("date_bin"));
                    assert_eq!(entered, by_fortnight, "{plan:#}");
                }
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
            ("created_after=2024-01-23T00:00:00Z", CertificateSort::Status),
            ("updated_before=2024-01-23T00:00:00Z", CertificateSort::Environment),
            ("created_before=2024-01-23T00:00:00Z", CertificateSort::Name),
            ("created_after=2024-01-23T00:00:00Z", CertificateSort::UpdatedAt),
            ("created_before=2024-01-23T00:00:00Z", CertificateSort::NotAfter),
            ("updated_after=2024-01-23T00:00:00Z", CertificateSort::NotAfter),
            ("updated_before=2024-01-23T00:00:00Z", CertificateSort::CreatedAt),
            ("expires_after=2024-01-23T00:00:00Z", CertificateSort::CreatedAt),
            ("expires_before=2024-01-23T00:00:00Z", CertificateSort::UpdatedAt),
        ] {
            let (name, value) = filter.split_once('=').unwrap();
            let filter_of = certctl_contract::query::parse::<CertificateFilter>(vec![(name.into(), value.into())]);
            let query = List {
                filter: filter_of.unwrap(),
                page_size: Some(MAX_PER_PAGE),
                ..List::default()
            };
            let mut count = QueryBuilder::new("SELECT count(*) FROM (");
            push_ids::<Certificate>(&mut count, "1", now);
            Certificate::restrict(&query.filter, &mut Where::new(&mut count, now));
            let count: i64 = count.push(") c").build_query_scalar().fetch_one(&db).await.unwrap();
            for descending in [false, true] {
                let sort = Sort { key, descending };
                let walk = async |few| {
                    let (mut met, mut cursor) = (vec![], None);
                    loop {
                        let (mut sql, _) = asked(now, &query, sort, cursor).statement("", few);
                        let rows = sql.build().fetch_all(&db).await.unwrap();
                        let page = rows.len().min(MAX_PER_PAGE as usize);
                        let of = |row: &PgRow, column: &str| row.get::<Option<String>, _>(column);
                        let places = rows[..page].iter();
                        met.extend(places.map(|row| ["sort_key", "sort_tie", "sort_id"].map(|column| of(row, column))));
                        if page == rows.len() {
                            return met;
                        }
                        let [key, tie, id] = met.last().unwrap().each_ref().map(Option::as_deref);
                        cursor = Some(behind(key.unwrap(), tie, id.unwrap()));
                    }
                };
                let (few, many) = (walk(Some(ALL)).await, walk(None).await);
                assert_eq!(few.len() as i64, count, "{filter}");
                assert!(few == many, "{filter} by {} {descending}", key.as_str());
            }
        }
    }
}
