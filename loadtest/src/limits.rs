//! How many requests a limit lets through while more are sent than it allows.

use std::time::Duration;

use certctl_contract::{
    endpoint::NoBody,
    list::List,
    query::NoParams,
    teams::ListTeams,
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    ceilings,
    cli::Limits,
    load::{self, Done, round},
};

/// Sends more than the limit allows, and holds what was let through against the budget: the burst, and the rate for as
/// long as it took.
///
/// # Errors
/// When the server is not on this machine or does not answer.
pub(crate) async fn run(args: &Limits) -> anyhow::Result<Value> {
    let client = args.server.client().await?;
    let page = client.call::<ListTeams>(NoParams, List::default(), NoBody).await?;
    // What that call used up is there again, and the budget whole, before the first request that counts.
    sleep(Duration::from_secs_f64((f64::from(args.burst) + 1.0) / args.limit)).await;
    let began = Instant::now();
    let asking = client.clone();
    let report = load::at_rate(
        args.rate,
        Duration::from_secs(args.seconds),
        args.connections,
        move |_| {
            let client = asking.clone();
            async move {
                let answer = client.call::<ListTeams>(NoParams, List::default(), NoBody).await;
                Done::of("ListTeams", answer)
            }
        },
    )
    .await;
    let elapsed = began.elapsed().as_secs_f64();
    let whole = report.whole();
    let budget = f64::from(args.burst) + args.limit * elapsed;
    let (bare, octets) =
        ceilings::bare::<ListTeams>(&page, args.connections, || NoParams, List::default, || NoBody).await?;
    Ok(json!({
        "name": "limits-3",
        "sent": whole.succeeded() + whole.failed(),
        "accepted": whole.succeeded(),
        "budget": round(budget),
        "accepted_over_budget": round(whole.succeeded() as f64 / budget),
        "limited": whole.refused(|status| status == 429),
        "server_errors": whole.refused(|status| status >= 500),
        "unanswered": whole.refused(|status| status == 0),
        "seconds": round(elapsed),
        "limit": args.limit,
        "burst": args.burst,
        "rate": args.rate,
        "accepted_p99_ms": whole.percentile(99.0),
        "ceilings": { "bare_hyper": ceilings::json(&bare), "octets": octets },
        "accepted_over_bare": round(report.per_second() / bare.per_second().max(0.001)),
    }))
}
