//! Renewals to come.

use std::{collections::BTreeMap, time::Duration};

use certctl_contract::renewals::*;
use certctl_model::{id::IssuerId, time::Time};

use crate::{
    app::{Cx, Request, Routes},
    error::ApiError,
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(forecast)
}

const DAY: Duration = Duration::from_secs(86_400);

/// Certificates of one issuer that are renewed on one day, and again after so many days.
#[derive(sqlx::FromRow)]
struct Bucket {
    issuer_id: IssuerId,
    /// Days from today.
    first: i64,
    /// Days.
    period: f64,
    /// Days.
    lifetime: f64,
    certificates: i64,
    /// When the issuer ends, once it has a certificate.
    ends_at: Option<Time>,
    /// What the issuer is given in a day.
    budget: Option<i64>,
}

async fn forecast(cx: Cx, rq: Request<ForecastRenewals>) -> Result<Forecast, ApiError> {
    let days = within("days", rq.query.days.unwrap_or(90), 366)?;
    let lifetime = rq.query.lifetime_days;
    let lifetime = lifetime.map(|days| within("lifetime_days", days, 3650)).transpose()?;
    let today = Time::from_unix(cx.now().unix() / 86_400 * 86_400);
    // As many groups as there are issuers, policies, days and lifetimes: however many certificates.
    let buckets: Vec<Bucket> = sqlx::query_as(
        "SELECT b.issuer_id, b.first, b.period, b.lifetime, b.certificates, b.ends_at,
                (i.config->>'max_per_hour')::bigint * 24 AS budget
           FROM (SELECT c.issuer_id, greatest(utc_day(c.renew_at) - utc_day($1), 0)::bigint AS first,
                        round((l.days * p.renew_at_permille / 1000)::numeric, 1)::float8 AS period,
                        round(l.days::numeric, 1)::float8 AS lifetime,
                        a.not_after AS ends_at, count(*) AS certificates
                   FROM certificates c
                   JOIN renewal_policies p ON p.id = c.renewal_policy_id
                   LEFT JOIN authorities a ON a.issuer_id = c.issuer_id
                  CROSS JOIN LATERAL (
                        SELECT coalesce($3::float8, extract(epoch FROM c.not_after - c.not_before)::float8 / 86400)
                               AS days) l
                  WHERE c.renew_at < $2 AND c.revoked_at IS NULL AND c.archived_at IS NULL AND p.auto_renew
                    AND NOT coalesce(a.not_after <= c.not_after, false)
                  GROUP BY 1, 2, 3, 4, 5) b
           JOIN issuers i ON i.id = b.issuer_id
          ORDER BY b.issuer_id",
    )
    .bind(today)
    .bind(today + DAY * u32::from(days))
    .bind(lifetime.map(f64::from))
    .fetch_all(cx.pool())
    .await?;
    let doomed: Vec<(IssuerId, Time, i64)> = sqlx::query_as(
        "SELECT a.issuer_id, a.not_after, count(*)
           FROM authorities a JOIN certificates c ON c.issuer_id = a.issuer_id
            AND coalesce(c.not_after, 'infinity') BETWEEN a.not_after AND timestamptz 'infinity' - interval '1 second'
          WHERE c.revoked_at IS NULL AND c.archived_at IS NULL AND c.current_version_id IS NOT NULL
          GROUP BY a.issuer_id",
    )
    .fetch_all(cx.pool())
    .await?;
    let mut load: BTreeMap<(u16, &IssuerId), i64> = BTreeMap::new();
    // How many are cut short, and how many doomed.
    let mut ends: BTreeMap<(&IssuerId, Time), (i64, i64)> = BTreeMap::new();
    let days_until = |at: Time| at.seconds_since(today) as f64 / 86_400.0;
    for bucket in &buckets {
        for day in repeated(bucket.first, bucket.period, days) {
            *load.entry((day, &bucket.issuer_id)).or_default() += bucket.certificates;
            // A day of grace, because it is not known at which hour of it.
            if let Some(ends_at) = bucket.ends_at
                && f64::from(day) + bucket.lifetime > days_until(ends_at) + 1.0
            {
                ends.entry((&bucket.issuer_id, ends_at)).or_default().0 += bucket.certificates;
            }
        }
    }
    for (issuer, ends_at, certificates) in &doomed {
        ends.entry((issuer, *ends_at)).or_default().1 = *certificates;
    }
    let budgets: BTreeMap<&IssuerId, i64> = buckets
        .iter()
        .filter_map(|bucket| Some((&bucket.issuer_id, bucket.budget?)))
        .collect();
    let name = |day: u16| (today + DAY * u32::from(day)).to_string()[..10].to_owned();
    let days: Vec<ForecastDay> = (0..days)
        .map(|day| {
            let issuers = load.iter().filter(|((on, _), _)| *on == day);
            let issuers: Vec<ForecastIssuer> = issuers
                .map(|((_, issuer), renewals)| ForecastIssuer {
                    issuer_id: (*issuer).clone(),
                    renewals: *renewals,
                })
                .collect();
            ForecastDay {
                day: name(day),
                renewals: issuers.iter().map(|one| one.renewals).sum(),
                issuers,
            }
        })
        .collect();
    let breaks = load.iter().filter_map(|((day, issuer), renewals)| {
        let budget = *budgets.get(issuer)?;
        (*renewals > budget).then(|| BudgetBreak {
            issuer_id: (*issuer).clone(),
            day: name(*day),
            renewals: *renewals,
            budget,
        })
    });
    let total: i64 = days.iter().map(|day| day.renewals).sum();
    Ok(Forecast {
        total,
        mean: (total as f64 / days.len() as f64 * 10.0).round() / 10.0,
        peak: days.iter().map(|day| day.renewals).max().unwrap_or(0),
        breaks: breaks.collect(),
        issuer_ends: ends
            .into_iter()
            .map(|((issuer, ends_at), (cut_short, doomed))| IssuerEnd {
                issuer_id: issuer.clone(),
                ends_at,
                cut_short,
                doomed,
            })
            .collect(),
        days,
    })
}

fn within(field: &'static str, days: u16, most: u16) -> Result<u16, ApiError> {
    match (1..=most).contains(&days) {
        true => Ok(days),
        false => Err(ApiError::invalid(
            field,
            format!("is a number of days from 1 to {most}"),
        )),
    }
}

/// The days before `end` on which something happens that begins on one and comes again after each period.
fn repeated(first: i64, period: f64, end: u16) -> impl Iterator<Item = u16> {
    // What lives for minutes is renewed many times a day; it is counted once.
    let period = period.max(1.0);
    let days = (0u32..).map(move |n| (first as f64 + f64::from(n) * period) as i64);
    days.take_while(move |day| *day < i64::from(end))
        .filter_map(|day| u16::try_from(day).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewal_comes_again_one_period_later() {
        let days = |first, period| repeated(first, period, 90).collect::<Vec<_>>();
        assert_eq!(days(3, 31.3), [3, 34, 65]);
        assert_eq!(days(89, 31.3), [89]);
        assert_eq!(days(0, 0.01).len(), 90);
        assert!(days(90, 1.0).is_empty());
    }
}
