//! Every sort and filter of the list of certificates, on the first page and far behind it.
//!
//! The far page is where a walk by cursor stands after so many pages. The cursor to it is the one that the page before
//! gives, which is asked for by its number: the same cursor as a walk's, which one walk shows.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, ensure};
use certctl_client::Client;
use certctl_contract::{
    certificates::{Certificate, CertificateFilter, CertificateSort, ListCertificates},
    endpoint::{NoBody, Reply},
    list::{DEFAULT_PER_PAGE, List, Page, Sort, SortKey},
    metrics::DashboardSummary,
    query::{self, NoParams, Query},
};
use futures_util::future::try_join_all;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use tokio::time::Instant;

use crate::{
    ceilings,
    cli::{Combinations, Processes},
    connect_with, constant, cpu,
    estate::Rng,
    load::{Figures, round},
};

type Certificates = List<CertificateFilter, CertificateSort>;

/// In the comparison of costs: how many walk at once, as on a server that has something to do; pages of each in one
/// round; and rounds.
const WALKERS: u32 = 16;
const COST_PAGES: u32 = 128;
const COST_ROUNDS: u32 = 8;
/// Requests for totals, searches and summaries each.
const OTHERS: u64 = 300;
/// Two pages are near each other when the slower takes at most this many times what the faster does.
const NEAR: f64 = 1.2;
/// Of a filter with more values than this, the commonest, a middling and the rarest are asked for.
const MOST_VALUES: usize = 4;
/// Pages of the walk that is really made.
const WALKED: u32 = 100;

/// A filter that is set, and how many certificates it leaves.
#[derive(Clone)]
struct Chosen {
    filter: CertificateFilter,
    text: String,
    rows: u64,
}

/// What one combination took.
struct Taken {
    text: String,
    first: Figures,
    /// The first page once more: what is between both is chance.
    again: Figures,
    far: Option<Figures>,
    /// How many octets the first page has, and the far one, if there is one.
    octets: [usize; 2],
}

/// How far the first and the far page of each combination are apart, by one percentile, and by chance: how far the
/// first page is apart from itself.
fn apart(all: &[Taken], percentile: f64) -> Value {
    let ratio = |a: f64, b: f64| a.max(b) / a.min(b).max(0.001);
    let (mut by_chance, mut beyond, mut unlike) = (0, 0, vec![]);
    for taken in all {
        let Some(far) = &taken.far else { continue };
        let [first, again, far] = [&taken.first, &taken.again, far].map(|figures| figures.percentile(percentile));
        by_chance += u32::from(ratio(first, again) > NEAR);
        if ratio(first, far) > NEAR {
            beyond += 1;
            // What has not been issued is shorter, and sorts side by side.
            let [first_octets, far_octets] = taken.octets.map(|octets| octets as f64);
            let longer_is_slower = (far > first) == (far_octets > first_octets);
            if !longer_is_slower || ratio(first, far) > NEAR * ratio(first_octets, far_octets) {
                unlike.push((ratio(first, far), &taken.text, [first, far], taken.octets));
            }
        }
    }
    unlike.sort_by(|a, b| b.0.total_cmp(&a.0));
    let furthest = unlike.iter().take(10);
    let furthest = furthest.map(|(ratio, text, ms, octets)| json!([text, round(*ratio), ms, octets]));
    json!({
        "beyond": beyond,
        "beyond_by_more_than_their_octets": unlike.len(),
        "furthest_of_these": furthest.collect::<Vec<_>>(),
        "first_page_from_itself": by_chance,
    })
}

/// Measures all combinations, then totals, searches, the summary, and what a page costs.
///
/// # Errors
/// When server or database are not on this machine or do not answer.
pub(crate) async fn run(args: &Combinations) -> anyhow::Result<Value> {
    let client = args.server.client().await?;
    // The plans that are looked for are those of the API.
    let quiet = [("auto_explain.log_min_duration", "-1")];
    let pool = connect_with(&args.database.database_url, 4, |options| options.options(quiet)).await?;
    let filters = filters(&pool).await?;
    let rows = filters[0].rows;
    ensure!(rows > 0, "there are no certificates; seed some first");
    let walked = walk_agrees(&client, rows).await?;
    let sorts: Vec<Sort<CertificateSort>> = CertificateSort::all()
        .iter()
        .flat_map(|key| [false, true].map(|descending| Sort { key: *key, descending }))
        .collect();
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} combinations, {eta}").expect("a valid template");
    // Drawn on standard error, and only on a terminal.
    let bar = ProgressBar::new((sorts.len() * filters.len()) as u64).with_style(style);
    let mut all = Vec::new();
    for sort in &sorts {
        for chosen in &filters {
            all.push(combination(&client, *sort, chosen, args).await?);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    if args.once {
        searches(&client, &pool).await?;
        summary(&client).await?;
        return Ok(json!({ "name": "list-1m-once", "combinations": all.len() }));
    }
    let plans: Value = match &args.plans {
        Some(file) => serde_json::from_str(&std::fs::read_to_string(file)?)?,
        None => Value::Null,
    };
    let totals = totals(&client, &pool).await?;
    let [first_searches, searches] = searches(&client, &pool).await?;
    let summary = summary(&client).await?;
    let page = client
        .call::<ListCertificates>(NoParams, List::default(), NoBody)
        .await?;
    let cost = cost(&client, &args.processes).await?;
    let query = || Certificates::default();
    let (bare, octets) = ceilings::bare::<ListCertificates>(&page, 1, || NoParams, query, || NoBody).await?;
    let select_1 = ceilings::select_1(&pool, 1).await;

    let (mut first, mut far) = (Figures::default(), Figures::default());
    let mut slowest: Vec<(f64, String)> = Vec::new();
    // What is slow by itself, whatever else the machine did.
    let mut slow_medians: Vec<(f64, String)> = Vec::new();
    let mut slow = |figures: &Figures, text: String| {
        slow_medians.push((figures.percentile(50.0), text.clone()));
        slowest.push((figures.percentile(99.0), text));
    };
    for taken in &all {
        first.add(&taken.first);
        slow(&taken.first, format!("{} first page", taken.text));
        if let Some(there) = &taken.far {
            far.add(there);
            slow(there, format!("{} far page", taken.text));
        }
    }
    let failed = [&first, &far, &totals, &first_searches, &searches, &summary];
    let failed = failed.into_iter().chain(all.iter().map(|taken| &taken.again));
    let failed: u64 = failed.map(Figures::failed).sum();
    for times in [&mut slowest, &mut slow_medians] {
        times.sort_by(|a, b| b.0.total_cmp(&a.0));
    }
    let shown = |times: &[(f64, String)]| {
        times
            .iter()
            .take(10)
            .map(|(ms, text)| json!([text, ms]))
            .collect::<Vec<_>>()
    };
    let p99 = slowest.first().map_or(0.0, |(ms, _)| *ms);
    let bare_p99 = bare.whole().percentile(99.0);
    Ok(json!({
        "name": "list-1m",
        "rows": rows,
        "p99_ms": p99,
        "p99_of_all_first_ms": first.percentile(99.0),
        "p99_of_all_far_ms": far.percentile(99.0),
        "p50_first_ms": first.percentile(50.0),
        "p50_far_ms": far.percentile(50.0),
        "deep_over_first": round(far.percentile(99.0) / first.percentile(99.0).max(0.001)),
        "pairs_apart": { "more_than": NEAR, "medians": apart(&all, 50.0), "p99s": apart(&all, 99.0) },
        "combinations": all.len(),
        "combinations_with_far_page": all.iter().filter(|taken| taken.far.is_some()).count(),
        "repeat": args.repeat,
        "far_pages": args.pages,
        "pages_walked_with_the_same_cursor": walked,
        "slowest": shown(&slowest),
        "slowest_medians": shown(&slow_medians),
        "above_20_ms": slowest.iter().filter(|(ms, _)| *ms > 20.0).count(),
        "total_p99_ms": totals.percentile(99.0),
        "search_p99_ms": searches.percentile(99.0),
        "search_for_the_first_time_p99_ms": first_searches.percentile(99.0),
        "summary_p99_ms": summary.percentile(99.0),
        "failed": failed,
        "plans": plans,
        "cpu_ratio": cost["cpu_ratio"],
        "cpu": cost,
        "ceilings": {
            "bare_hyper": ceilings::json(&bare), "octets": octets, "select_1": ceilings::json(&select_1),
        },
        "p99_over_bare": round(p99 / bare_p99.max(0.001)),
    }))
}

async fn ask(client: &Client, query: Certificates) -> anyhow::Result<Page<Certificate>> {
    Ok(client.call::<ListCertificates>(NoParams, query, NoBody).await?)
}

/// The next page of a walk.
async fn next(client: &Client, cursor: &mut Option<String>) -> anyhow::Result<Page<Certificate>> {
    let query = Certificates {
        cursor: cursor.take(),
        page_size: Some(DEFAULT_PER_PAGE),
        ..List::default()
    };
    let page = ask(client, query).await?;
    cursor.clone_from(&page.next_cursor);
    Ok(page)
}

async fn timed(client: &Client, query: Certificates, figures: &mut Figures) {
    let began = Instant::now();
    let answer = client.call::<ListCertificates>(NoParams, query, NoBody).await;
    let status = answer.map_or_else(|error| error.status().unwrap_or(0), |_| 200);
    figures.note(status, began.elapsed());
}

/// Asks for the pages in turn, so that what else the machine does meets them all.
async fn combination(
    client: &Client,
    sort: Sort<CertificateSort>,
    chosen: &Chosen,
    args: &Combinations,
) -> anyhow::Result<Taken> {
    let first = Certificates {
        sort: Some(sort),
        filter: chosen.filter.clone(),
        ..List::default()
    };
    let direction = if sort.descending { "-" } else { "" };
    let text = format!("sort={direction}{}&{}", sort.key.as_str(), chosen.text);
    // The far page is full where the first one is.
    let before = (chosen.rows / u64::from(DEFAULT_PER_PAGE)).saturating_sub(1);
    let before = before.min(u64::from(args.pages)) as u32;
    let cursor = match before {
        0 => None,
        page => {
            let there = Certificates {
                page: Some(page),
                ..first.clone()
            };
            let there = ask(client, there).await;
            there.with_context(|| format!("page {page} of {text}"))?.next_cursor
        }
    };
    let mut taken = Taken {
        text,
        first: Figures::default(),
        again: Figures::default(),
        far: cursor.as_ref().map(|_| Figures::default()),
        octets: [0; 2],
    };
    let far = cursor.map(|cursor| Certificates {
        cursor: Some(cursor),
        page_size: Some(DEFAULT_PER_PAGE),
        ..first.clone()
    });
    if !args.once {
        // What is asked for the first time is read from disk.
        for (query, octets) in [Some(&first), far.as_ref()].into_iter().zip(&mut taken.octets) {
            if let Some(query) = query {
                *octets = ask(client, query.clone()).await?.encode().len();
            }
        }
    }
    for _ in 0..if args.once { 1 } else { args.repeat } {
        timed(client, first.clone(), &mut taken.first).await;
        if let (Some(far), Some(figures)) = (&far, &mut taken.far) {
            timed(client, far.clone(), figures).await;
            timed(client, first.clone(), &mut taken.again).await;
        }
    }
    Ok(taken)
}

/// Walks by cursor, and holds the last cursor against that of the page with its number. Returns how many pages it was.
async fn walk_agrees(client: &Client, rows: u64) -> anyhow::Result<u32> {
    let pages = (rows / u64::from(DEFAULT_PER_PAGE))
        .saturating_sub(1)
        .min(u64::from(WALKED)) as u32;
    if pages == 0 {
        return Ok(0);
    }
    let mut cursor = None;
    for _ in 0..pages {
        next(client, &mut cursor).await?;
    }
    let query = Certificates {
        page: Some(pages),
        per_page: Some(DEFAULT_PER_PAGE),
        ..List::default()
    };
    ensure!(
        ask(client, query).await?.next_cursor == cursor,
        "the cursor behind page {pages} is not the one a walk of {pages} pages gives"
    );
    Ok(pages)
}

/// No filter, and each filter the list offers with common, middling and rare values of the data.
async fn filters(pool: &PgPool) -> anyhow::Result<Vec<Chosen>> {
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM certificates")
        .fetch_one(pool)
        .await?;
    let mut all = vec![Chosen {
        filter: CertificateFilter::default(),
        text: String::new(),
        rows: rows as u64,
    }];
    for param in CertificateFilter::params() {
        // What is searched for is measured by itself.
        let Some(sql) = values_of(param.name) else { continue };
        let mut values: Vec<(String, i64)> = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(pool).await?;
        if values.len() > MOST_VALUES {
            values = vec![
                values[0].clone(),
                values[values.len() / 2].clone(),
                values[values.len() - 1].clone(),
            ];
        }
        for (value, rows) in values {
            let pairs = vec![(param.name.to_owned(), value.clone())];
            let filter = query::parse(pairs);
            let filter = filter.map_err(|invalid| anyhow::anyhow!("{}={value}: {invalid:?}", param.name))?;
            all.push(Chosen {
                filter,
                text: format!("{}={value}", param.name),
                rows: rows as u64,
            });
        }
    }
    Ok(all)
}

/// A statement for the values of a filter with the number of certificates each leaves, the commonest first; none for
/// the search.
fn values_of(filter: &str) -> Option<String> {
    let by = |expression: &str| {
        Some(format!(
            "SELECT {expression}, count(*) FROM certificates c WHERE {expression} IS NOT NULL AND {expression} <> ''
              GROUP BY 1 ORDER BY 2 DESC, 1"
        ))
    };
    let time = |column: &str, after: bool| {
        let (shares, operator) = match after {
            true => ("0.1, 0.5, 0.95, 0.999", ">"),
            false => ("0.9, 0.5, 0.05, 0.001", "<"),
        };
        Some(format!(
            "SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
                    (SELECT count(*) FROM certificates c WHERE {column} {operator} date_trunc('second', at))
               FROM (SELECT unnest(percentile_disc(ARRAY[{shares}]) WITHIN GROUP (ORDER BY {column})) AS at
                       FROM certificates) q"
        ))
    };
    match filter {
        "q" => None,
        "status" => by("certificate_status(c, now())"),
        "environment" => by("c.environment"),
        "owner_id" => by("c.owner_id"),
        "team_id" => by("c.team_id"),
        "issuer_id" => by("c.issuer_id"),
        "profile_id" => by("c.profile_id"),
        "deployment_status" => {
            Some("SELECT status, count(*) FROM deployment_states GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 3".to_owned())
        }
        "spki_sha256" => Some(
            "SELECT v.spki_sha256, count(DISTINCT v.certificate_id) FROM certificate_versions v
               GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 3"
                .to_owned(),
        ),
        "agent_id" => Some(
            "SELECT t.agent_id, count(DISTINCT m.certificate_id) FROM certificate_targets m
               JOIN targets t ON t.id = m.target_id GROUP BY 1 ORDER BY 2 DESC, 1"
                .to_owned(),
        ),
        other => {
            let (column, side) = other.rsplit_once('_')?;
            let column = match column {
                "expires" => "not_after",
                "created" => "created_at",
                "updated" => "updated_at",
                _ => return None,
            };
            time(column, side == "after")
        }
    }
}

/// Lists of one row, each with a filter nobody asked for before, so that no total is known already.
async fn totals(client: &Client, pool: &PgPool) -> anyhow::Result<Figures> {
    let ends: Vec<String> = sqlx::query_scalar(
        "SELECT to_char((now() + make_interval(hours => n) ) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')
           FROM generate_series(1, $1) n",
    )
    .bind(OTHERS as i32)
    .fetch_all(pool)
    .await?;
    let mut figures = Figures::default();
    for end in ends {
        let filter = query::parse(vec![("expires_before".to_owned(), end)]);
        let query = Certificates {
            filter: filter.map_err(|invalid| anyhow::anyhow!("{invalid:?}"))?,
            per_page: Some(1),
            ..List::default()
        };
        timed(client, query, &mut figures).await;
    }
    Ok(figures)
}

/// Searches for parts of names, serial numbers and fingerprints: when each is asked for the first time and Postgres may
/// have to read from disk, and when it is asked for once more.
async fn searches(client: &Client, pool: &PgPool) -> anyhow::Result<[Figures; 2]> {
    let found: Vec<(String, String, String, String)> = sqlx::query_as(
        "SELECT c.name, c.common_name, v.serial_number, v.fingerprint_sha256
           FROM certificates c TABLESAMPLE SYSTEM (1) REPEATABLE (1)
           JOIN certificate_versions v ON v.id = c.current_version_id LIMIT $1",
    )
    .bind(OTHERS as i64)
    .fetch_all(pool)
    .await?;
    let mut figures = [Figures::default(), Figures::default()];
    for (n, (name, common_name, serial, fingerprint)) in found.iter().cycle().take(OTHERS as usize).enumerate() {
        let rng = &mut Rng::of(1, "search", n as u64);
        let words = [
            name.clone(),
            name.chars().skip(2).take(6).collect(),
            common_name.clone(),
            "example.com".to_owned(),
            serial.clone(),
            fingerprint[..16].to_owned(),
            "nothing-has-this-name".to_owned(),
        ];
        let filter = query::parse(vec![("q".to_owned(), rng.pick(&words).clone())]);
        let query = Certificates {
            filter: filter.map_err(|invalid| anyhow::anyhow!("{invalid:?}"))?,
            ..List::default()
        };
        for figures in &mut figures {
            timed(client, query.clone(), figures).await;
        }
    }
    Ok(figures)
}

async fn summary(client: &Client) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    for _ in 0..OTHERS {
        let began = Instant::now();
        let answer = client.call::<DashboardSummary>(NoParams, NoParams, NoBody).await;
        let status = answer.map_or_else(|error| error.status().unwrap_or(0), |_| 200);
        figures.note(status, began.elapsed());
    }
    Ok(figures)
}

/// The processor time of a page against that of a constant body of its size on the same way through the API.
async fn cost(client: &Client, processes: &Processes) -> anyhow::Result<Value> {
    let mut cursor: Option<String> = None;
    let mut octets = 0;
    for _ in 0..COST_PAGES {
        let page = next(client, &mut cursor).await?;
        octets += page.encode().len() as u32;
    }
    octets /= COST_PAGES;
    if constant::ask(client, octets)
        .await
        .is_err_and(|error| error.status() == Some(404))
    {
        return Ok(json!({ "cpu_ratio": null, "why": "the API runs without CERTCTL_BENCH_ROUTE=true" }));
    }
    let mut cursors = vec![None; WALKERS as usize];
    let mut used: BTreeMap<&str, [Duration; 2]> = BTreeMap::new();
    for _ in 0..COST_ROUNDS {
        for what in ["page", "constant"] {
            let before = [
                cpu::of_process(processes.api_pid)?,
                cpu::of_family(processes.postgres_pid)?,
            ];
            let walks = cursors.iter_mut().map(|cursor| async move {
                for _ in 0..COST_PAGES {
                    if what == "page" {
                        next(client, cursor).await?;
                    } else {
                        constant::ask(client, octets).await?;
                    }
                }
                anyhow::Ok(())
            });
            try_join_all(walks).await?;
            let after = [
                cpu::of_process(processes.api_pid)?,
                cpu::of_family(processes.postgres_pid)?,
            ];
            let sum = used.entry(what).or_default();
            (0..2).for_each(|n| sum[n] += after[n].saturating_sub(before[n]));
        }
    }
    let requests = WALKERS * COST_PAGES * COST_ROUNDS;
    let each = |what: &str, n: usize| used[what][n].as_secs_f64() * 1e6 / f64::from(requests);
    Ok(json!({
        "cpu_ratio": round(each("page", 0) / each("constant", 0).max(0.001)),
        "octets": octets,
        "requests": requests,
        "in_flight": WALKERS,
        "api_us_per_page": round(each("page", 0)),
        "api_us_per_constant": round(each("constant", 0)),
        "postgres_us_per_page": round(each("page", 1)),
        "postgres_us_per_constant": round(each("constant", 1)),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_filter_of_the_list_has_values() {
        for param in CertificateFilter::params() {
            assert!(param.name == "q" || values_of(param.name).is_some(), "{}", param.name);
        }
    }
}
