//! How many requests pass a rate limit, under more than it allows.

use std::time::Duration;

use certctl_contract::{
    endpoint::{Endpoint, NoBody},
    health::AuthCheck,
    query::NoParams,
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    ceilings,
    cli::Limits,
    load::{self, Done, round},
};

/// Asks at a constant rate and counts the answers.
///
/// `accepted` stands beside `budget`, which is the burst and the rate over `elapsed_s`: from when the first request was
/// sent to when the last answer came. `failed` counts what is neither accepted nor refused by the limit.
///
/// # Errors
/// When the server is not on this machine or does not answer.
pub(crate) async fn run(args: &Limits) -> anyhow::Result<Value> {
    let client = args.server.client().await?;
    let checked = client.call::<AuthCheck>(NoParams, NoParams, NoBody).await?;
    // What was used before is there again, and the budget whole.
    sleep(Duration::from_secs_f64((f64::from(args.burst) / args.rps).min(60.0))).await;
    let (asking, began) = (client.clone(), Instant::now());
    let length = Duration::from_secs(args.seconds);
    let report = load::at_rate(f64::from(args.offered), length, args.connections, move |_| {
        let client = asking.clone();
        async move {
            Done::of(
                AuthCheck::NAME,
                client.call::<AuthCheck>(NoParams, NoParams, NoBody).await,
            )
        }
    })
    .await;
    let elapsed = began.elapsed().as_secs_f64();
    let whole = report.whole();
    let (accepted, limited) = (whole.succeeded(), whole.refused(|status| status == 429));
    let budget = f64::from(args.burst) + args.rps * elapsed;
    let mut figures = json!({
        "name": "limits-3",
        "asked": accepted + whole.failed(),
        "accepted": accepted,
        "limited": limited,
        "failed": whole.failed() - limited,
        "elapsed_s": round(elapsed),
        "rps": args.rps,
        "burst": args.burst,
        "offered": args.offered,
        "budget": round(budget),
        "ratio": round(accepted as f64 / budget),
        "accepted_p99_ms": whole.percentile(99.0),
    });
    if args.ceilings {
        let none = || NoParams;
        let (bare, octets) = ceilings::bare::<AuthCheck>(&checked, args.connections, none, none, || NoBody).await?;
        figures["ceilings"] = json!({ "bare_hyper": ceilings::json(&bare), "octets": octets });
        figures["over_bare"] = json!(round(report.per_second() / bare.per_second().max(0.001)));
    }
    Ok(figures)
}
