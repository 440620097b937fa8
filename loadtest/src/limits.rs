//! How many requests pass a rate limit, under more than it allows.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use certctl_client::{Client, ClientError};
use certctl_contract::{health::AuthCheck, query::NoParams};
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// How much is asked for, and what should pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flood {
    /// Requests a second.
    pub(crate) offered: u32,
    /// How long.
    pub(crate) window: Duration,
    /// Requests open at once.
    pub(crate) connections: u32,
    /// Requests a second that the limit lets pass.
    pub(crate) rps: f64,
    /// Requests that it lets pass at once.
    pub(crate) burst: u32,
}

#[derive(Default)]
struct Seen {
    answers: BTreeMap<String, u64>,
    first: Option<Instant>,
    last: Option<Instant>,
}

/// Asks at a constant rate and counts the answers.
///
/// `accepted` stands beside `budget`, which is the burst and the rate over `elapsed_s`: from when the first request was
/// sent to when the last answer came. `failed` counts what is neither accepted nor refused by the limit.
pub(crate) async fn measure(client: &Client, flood: Flood) -> Value {
    let began = Instant::now();
    let end = began + flood.window;
    let seen: Arc<Mutex<Seen>> = Arc::default();
    let mut askers = JoinSet::new();
    for asker in 0..flood.connections {
        let (client, seen) = (client.clone(), seen.clone());
        askers.spawn(async move {
            for turn in 0.. {
                let number = turn * flood.connections + asker;
                let due = began + Duration::from_secs_f64(f64::from(number) / f64::from(flood.offered));
                if due >= end {
                    return;
                }
                sleep_until(due).await;
                let sent = Instant::now();
                let answer = client.call::<AuthCheck>(NoParams, NoParams, Default::default()).await;
                let what = match answer {
                    Ok(_) => "accepted".to_owned(),
                    Err(ClientError::Problem(problem)) => problem.status.to_string(),
                    Err(_) => "unreachable".to_owned(),
                };
                let mut seen = seen.lock().expect("nobody panics with the lock");
                *seen.answers.entry(what).or_default() += 1;
                seen.first = Some(seen.first.unwrap_or(sent).min(sent));
                seen.last = Some(Instant::now());
            }
        });
    }
    askers.join_all().await;
    let seen = seen.lock().expect("nobody panics with the lock");
    let elapsed = seen
        .first
        .zip(seen.last)
        .map_or(0.0, |(first, last)| (last - first).as_secs_f64());
    let count = |what: &str| seen.answers.get(what).copied().unwrap_or(0);
    let (accepted, limited) = (count("accepted"), count("429"));
    let asked: u64 = seen.answers.values().sum();
    let budget = f64::from(flood.burst) + flood.rps * elapsed;
    json!({
        "name": "limits", "asked": asked, "accepted": accepted, "limited": limited,
        "failed": asked - accepted - limited, "answers": seen.answers, "elapsed_s": elapsed,
        "rps": flood.rps, "burst": flood.burst, "budget": budget, "ratio": accepted as f64 / budget,
    })
}
