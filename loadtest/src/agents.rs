//! Agents: each sends heartbeats at set instants and waits for work all the time.

use std::{process::Stdio, time::Duration};

use anyhow::Context;
use certctl_client::{Client, Secret};
use certctl_contract::{
    agents::{AgentGetWork, AgentHeartbeat, Heartbeat, Wait, WorkQuery},
    query::{Id, NoParams},
};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    ceilings,
    cli::Agents,
    connect, cpu,
    estate::{Estate, Size},
    load::{Done, Figures, round},
};

/// How long a request for work is held.
const WAIT: Duration = Duration::from_secs(55);
/// How late a heartbeat may be recorded.
const GRACE: Duration = Duration::from_secs(5);
/// In which time all agents appear, as after a restart of the server.
const ARRIVAL: Duration = Duration::from_secs(20);
/// How long an agent pauses that has work or was refused.
const PAUSE: Duration = Duration::from_secs(5);

/// What one agent saw.
#[derive(Default)]
struct Seen {
    beats: Figures,
    late: u64,
    polls: Figures,
    work: u64,
}

/// Lets the agents live for a while.
///
/// # Errors
/// When server or database are not on this machine, or the agents are not in the database.
pub(crate) async fn run(args: &Agents) -> anyhow::Result<Value> {
    let pool = connect(&args.database.database_url, 4).await?;
    let estate = Estate::new(Size {
        seed: args.seed,
        now: 0,
        certificates: 0,
        agents: args.agents,
        versions_per: 1.0,
        jobs_per: 0.0,
        settled: true,
    });
    let known: i64 = sqlx::query_scalar("SELECT count(*) FROM agents WHERE id = ANY ($1)")
        .bind((0..args.agents).map(|n| estate.agent_id(n)).collect::<Vec<_>>())
        .fetch_one(&pool)
        .await?;
    anyhow::ensure!(
        known as u64 == args.agents,
        "{known} of {} agents are in the database; seed them first",
        args.agents
    );
    let (every, length) = (Duration::from_secs(args.every), Duration::from_secs(args.seconds));
    let began = Instant::now() + Duration::from_secs(1);
    let end = began + ARRIVAL + length;
    let mut agents = JoinSet::new();
    for n in 0..args.agents {
        let client = args.server.client_with(Secret::new(estate.agent_key(n))).await?;
        let id = estate.agent_id(n);
        let first = began + ARRIVAL.mul_f64(n as f64 / args.agents as f64);
        // The same share of the interval later, so that beats are spread evenly.
        let due = began + every.mul_f64(n as f64 / args.agents as f64);
        agents.spawn(async move {
            let (beats, polls) = tokio::join!(beat(&client, &id, due, every, end), poll(&client, &id, first, end));
            Seen {
                beats: beats.0,
                late: beats.1,
                polls: polls.0,
                work: polls.1,
            }
        });
    }
    sleep_until(began + ARRIVAL).await;
    let (api, postgres) = (
        cpu::of_process(args.processes.api_pid)?,
        cpu::of_family(args.processes.postgres_pid)?,
    );
    let measured = Instant::now();
    let mut stale = 0;
    while Instant::now() + Duration::from_secs(1) < end {
        sleep(Duration::from_secs(10).min(end - Instant::now())).await;
        // Everyone has had its first beat after one interval.
        if measured.elapsed() > every {
            stale = stale.max(silent(&pool, args, &estate).await?);
        }
    }
    let seconds = measured.elapsed().as_secs_f64();
    let api = (cpu::of_process(args.processes.api_pid)? - api).as_secs_f64();
    let postgres = (cpu::of_family(args.processes.postgres_pid)? - postgres).as_secs_f64();
    let mut all = Seen::default();
    while let Some(seen) = agents.join_next().await {
        let seen = seen?;
        all.beats.add(&seen.beats);
        all.polls.add(&seen.polls);
        all.late += seen.late;
        all.work += seen.work;
    }
    let requests = (all.beats.succeeded() + all.polls.succeeded()) as f64 * seconds / (ARRIVAL + length).as_secs_f64();
    let bare = bare_share(requests / seconds).await?;
    let select_1 = ceilings::select_1(&pool, 4).await;
    let share = api / seconds;
    Ok(json!({
        "name": "agents-5k",
        "agents": args.agents,
        "seconds": round(seconds),
        "core_share": round(share),
        "missed": all.beats.failed() + all.late + stale,
        "beats": all.beats.json(),
        "beats_late": all.late,
        "agents_silent_in_the_database": stale,
        "polls": all.polls.succeeded(),
        "polls_failed": all.polls.failed(),
        "polls_with_work": all.work,
        "requests_per_second": round(requests / seconds),
        "postgres_core_share": round(postgres / seconds),
        "ceilings": { "bare_hyper_core_share": round(bare), "select_1": ceilings::json(&select_1) },
        "core_share_over_bare": round(share / bare.max(0.000_001)),
    }))
}

/// Sends heartbeats at their instants; returns also how many were not answered in time.
async fn beat(client: &Client, id: &str, first: Instant, every: Duration, end: Instant) -> (Figures, u64) {
    let (mut figures, mut late, mut due) = (Figures::default(), 0, first);
    while due < end {
        sleep_until(due).await;
        let body = Heartbeat {
            version: "1.0.0".to_owned(),
            ..Heartbeat::default()
        };
        let path = Id {
            id: id.parse().expect("an id of ours"),
        };
        let done = Done::of("beat", client.call::<AgentHeartbeat>(path, NoParams, body).await);
        figures.note(done.status, due.elapsed());
        late += u64::from(done.status == 200 && due.elapsed() > GRACE);
        due += every;
    }
    (figures, late)
}

/// Waits for work until the end; returns also how often there was some.
async fn poll(client: &Client, id: &str, first: Instant, end: Instant) -> (Figures, u64) {
    let (mut figures, mut work) = (Figures::default(), 0);
    sleep_until(first).await;
    while Instant::now() < end {
        let left = (end - Instant::now()).min(WAIT);
        let query = WorkQuery {
            wait: Some(Wait::seconds(left.as_secs().max(1))),
        };
        let path = Id {
            id: id.parse().expect("an id of ours"),
        };
        let asked = Instant::now();
        let answer = client
            .call::<AgentGetWork>(path, query, certctl_contract::endpoint::NoBody)
            .await;
        let busy = answer.as_ref().is_ok_and(|found| found.count > 0);
        let done = Done::of("poll", answer);
        figures.note(done.status, asked.elapsed());
        work += u64::from(busy);
        if busy || done.status != 200 {
            sleep_until((Instant::now() + PAUSE).min(end)).await;
        }
    }
    (figures, work)
}

/// How many agents the database has not heard of for longer than an interval.
async fn silent(pool: &PgPool, args: &Agents, estate: &Estate) -> anyhow::Result<u64> {
    let silent: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM agents
          WHERE id = ANY ($1) AND last_heartbeat_at < now() - make_interval(secs => $2)",
    )
    .bind((0..args.agents).map(|n| estate.agent_id(n)).collect::<Vec<_>>())
    .bind((Duration::from_secs(args.every) + GRACE).as_secs_f64())
    .fetch_one(pool)
    .await?;
    Ok(silent as u64)
}

/// The share of a core that a bare HTTP server in a process of its own would need for so many requests a second.
async fn bare_share(per_second: f64) -> anyhow::Result<f64> {
    let mut server: Child = Command::new(std::env::current_exe()?)
        .args(["bare", "--octets", "100"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (pid, stdout) = (server.id(), server.stdout.take());
    let mut lines = BufReader::new(stdout.context("it has an output")?).lines();
    let address = lines.next_line().await?.context("the bare server did not start")?;
    let pid = pid.context("the bare server did not start")?;
    // What it answers is no reply of ours, and so is counted as refused: only its work matters.
    let client = Client::builder(&format!("http://{address}")).build()?;
    let before = cpu::of_process(pid)?;
    let report = ceilings::calls::<AgentHeartbeat>(
        &client,
        16,
        || Id {
            id: "a-1".parse().expect("an id of ours"),
        },
        || NoParams,
        Heartbeat::default,
    )
    .await;
    let used = (cpu::of_process(pid)? - before).as_secs_f64();
    let whole = report.whole();
    server.kill().await?;
    Ok(used / (whole.succeeded() + whole.failed()).max(1) as f64 * per_second)
}
