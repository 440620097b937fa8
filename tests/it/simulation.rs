//! Months of fleets on virtual time: large ones by the rules alone, small ones through the whole engine.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    thread,
    time::Duration,
};

use certctl_client::Client;
use certctl_model::{
    audit::Actor,
    job::{AwaitingCsr, Job, JobKind, Pending},
    time::{Clock, Time},
};
use certctl_scheduler::{Scheduler, config::Config, overdue, renewals, worker};
use certctl_sim::Fleet;
use certctl_store::{Tx, certificates, jobs};
use certctl_tests::{requests, world::World};
use clap::Parser;
use fastrand::Rng;
use sqlx::PgPool;

/// The one that is asked for, or all of them: `SIM_SEED=7`.
fn seeds(all: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let one = std::env::var_os("SIM_SEED").map(|text| text.to_str().and_then(|text| text.parse::<u64>().ok()));
    match one {
        Some(seed) => {
            let seed = seed.expect("SIM_SEED is a number");
            seed..seed + 1
        }
        None => all,
    }
}

#[test]
fn of_a_thousand_fleets_none_loses_a_certificate_whose_issuer_was_there_and_the_load_is_even() {
    let seeds = seeds(0..1_000);
    let next = AtomicU64::new(seeds.start);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            // Every tenth is calm: there the load is what the rules make it.
            let faults = !seed.is_multiple_of(10);
            let fleet = Fleet {
                certificates: 100_000,
                days: 90,
                lifetime_days: 47,
                faults,
            };
            let report = certctl_sim::run(seed, &fleet).unwrap_or_else(|wrong| panic!("{wrong}"));
            assert!(report.renewals >= 150_000, "seed {seed}: {report:?}");
            if !faults {
                assert!(report.peak_over_mean <= 1.2, "seed {seed}: {report:?}");
                assert_eq!((report.expired, report.failures), (0, 0), "seed {seed}");
            }
        }
    };
    thread::scope(|scope| {
        let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        for _ in 0..cores {
            scope.spawn(work);
        }
    });
}

/// Polls what it holds so many times, and then is gone: a process that dies in the middle.
struct Dies<F> {
    held: Pin<Box<F>>,
    polls_left: u32,
}

impl<F: Future> Future for Dies<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.polls_left == 0 {
            return Poll::Ready(None);
        }
        self.polls_left -= 1;
        self.held.as_mut().poll(cx).map(Some)
    }
}

const HOUR: Duration = Duration::from_secs(3_600);
const STEP: Duration = Duration::from_secs(86_400);
const STEPS: u32 = 90;
const LIFETIME: Duration = Duration::from_secs(47 * 86_400);
const AGENTS: usize = 4;
const FLEET: usize = 100;
const MOST_PER_HOUR: u32 = 30;
const MOST_PER_DOMAIN: u32 = 45;

/// The engine on a real store, with what the simulation plays: agents, and schedulers that are not as they should be.
struct Engine {
    w: World,
    /// One that does not reach the signer.
    cut_off: Arc<Scheduler>,
    /// Others, whose clocks are an hour fast and slow.
    skewed: [(Clock, Arc<Scheduler>); 2],
    requests: HashMap<String, Vec<u8>>,
}

fn scheduler(w: &World, clock: Clock, signer: Client) -> Arc<Scheduler> {
    let config = Config::parse_from([
        "certctl-scheduler",
        "--database-url",
        "postgres://nobody@localhost/nothing",
    ]);
    Scheduler::over(w.scheduler.db().clone(), &config, clock, signer).unwrap()
}

impl Engine {
    async fn new(db: PgPool) -> Self {
        let w = World::new(db).await;
        for sql in [
            "UPDATE issuers SET config = '{\"validity_days\": 47, \"max_per_hour\": 30, \"max_under_way\": 25,
                                           \"max_per_domain\": 45, \"domain_days\": 2}'",
            "UPDATE renewal_policies SET spread_percent = 50",
            "INSERT INTO agents (id, name, hostname, api_key_hash, registered_at, updated_at)
             SELECT 'a-' || n, 'sim-' || n, 'sim', 'none', now(), now() FROM generate_series(0, 3) n",
            "INSERT INTO targets (id, name, type, agent_id, created_at, updated_at)
             SELECT 't-' || n, 'sim-' || n, 'NGINX', 'a-' || n, now(), now() FROM generate_series(0, 3) n",
        ] {
            w.sql(sql).await;
        }
        let nowhere = Client::builder("http://localhost").unix_socket("/nonexistent/signer.sock");
        let cut_off = scheduler(&w, w.clock.clone(), nowhere.build().unwrap());
        let skewed = [w.clock.now() + HOUR, w.clock.now() - HOUR].map(|time| {
            let clock = Clock::manual(time);
            (clock.clone(), scheduler(&w, clock, w.signer.clone()))
        });
        Self {
            w,
            cut_off,
            skewed,
            requests: HashMap::new(),
        }
    }

    fn advance(&self) {
        self.w.clock.advance(STEP);
        for (clock, _) in &self.skewed {
            clock.advance(STEP);
        }
    }

    /// A hundred certificates that are all requested now.
    async fn begin(&self, seed: u64) {
        let w = &self.w;
        w.sql(&format!(
            "INSERT INTO certificates (id, name, common_name, owner_id, team_id, issuer_id, renewal_policy_id, created_at,
                                       updated_at)
             SELECT 'mc-{seed}-' || n, 'mc-{seed}-' || n, 'h' || n || '.example.net', 'o-unassigned', 't-unassigned',
                    'iss-local', 'rp-default', '{now}', '{now}' FROM generate_series(1, {FLEET}) n",
            now = w.clock.now()
        ))
        .await;
        w.sql(&format!(
            "INSERT INTO certificate_targets (certificate_id, target_id)
             SELECT 'mc-{seed}-' || n, 't-' || n % {AGENTS} FROM generate_series(1, {FLEET}) n"
        ))
        .await;
        let mut tx = Tx::begin(&w.db, &Actor::system(), w.clock.now()).await.unwrap();
        for n in 1..=FLEET {
            let id = format!("mc-{seed}-{n}").parse().unwrap();
            let certificate = certificates::lock(&mut tx, &id).await.unwrap();
            certificates::request_issuance(&mut tx, &certificate, JobKind::Issuance)
                .await
                .unwrap();
        }
        tx.commit().await.unwrap();
    }

    /// What an agent does when it asks for work; now and then it fails.
    async fn agent(&mut self, agent: usize, random: &mut Rng) -> u64 {
        let rows: Vec<(String, String, String)> = sqlx::query_as(
            "SELECT j.id, j.type, c.common_name FROM jobs j JOIN certificates c ON c.id = j.certificate_id
              WHERE j.agent_id = $1 AND (j.status = 'AwaitingCSR' OR j.type = 'Deployment' AND j.status = 'Pending')
              ORDER BY j.id",
        )
        .bind(format!("a-{agent}"))
        .fetch_all(&self.w.db)
        .await
        .unwrap();
        if rows.is_empty() {
            return 0;
        }
        let by = Actor::agent(&format!("a-{agent}").parse().unwrap());
        let mut tx = Tx::begin(&self.w.db, &by, self.w.clock.now()).await.unwrap();
        let (mut accepted, mut started, mut given_up) = (vec![], vec![], vec![]);
        for (id, kind, name) in &rows {
            let (facts, _) = jobs::lock_any(&mut tx, &id.parse().unwrap()).await.unwrap();
            let fails = random.u32(0..100) < 2;
            if kind == "Deployment" {
                started.push(Job::<Pending>::known(facts).start(&by));
            } else if fails {
                certificates::note_failure(&mut tx, &facts, "no room for a key")
                    .await
                    .unwrap();
                given_up.push(Job::<AwaitingCsr>::known(facts).fail(&by, "no room for a key".to_owned()));
            } else {
                let request = self.requests.entry(name.clone()).or_insert_with(|| {
                    let pem = requests::good(name);
                    pem::parse(pem).unwrap().into_contents()
                });
                jobs::keep_request(&mut tx, &facts.id, request).await.unwrap();
                accepted.push(Job::<AwaitingCsr>::known(facts).csr_accepted(&by));
            }
        }
        jobs::apply_all(&mut tx, accepted).await.unwrap();
        jobs::apply_all(&mut tx, given_up).await.unwrap();
        for job in jobs::apply_all(&mut tx, started).await.unwrap() {
            let (facts, is) = jobs::lock_any(&mut tx, &job.facts.id).await.unwrap();
            if random.u32(0..100) < 2 {
                certificates::note_not_deployed(&mut tx, &by, &facts, is, "nginx is broken")
                    .await
                    .unwrap();
            } else {
                certificates::note_deployed(&mut tx, &facts).await.unwrap();
                jobs::apply(&mut tx, job.complete(&by)).await.unwrap();
            }
        }
        tx.commit().await.unwrap();
        rows.len() as u64
    }

    /// A day: schedulers and agents do what there is to do, some of them die in between.
    async fn step(&mut self, random: &mut Rng, signer_is_away: bool) {
        let who = match (signer_is_away, random.u32(0..8)) {
            (true, _) => self.cut_off.clone(),
            (false, 0) => self.skewed[0].1.clone(),
            (false, 1) => self.skewed[1].1.clone(),
            _ => self.w.scheduler.clone(),
        };
        for round in 0..5 {
            let polls_left = match random.u32(0..4) {
                0 => random.u32(1..60),
                _ => u32::MAX,
            };
            let mut moved = 0;
            if round < 2 {
                let held = Box::pin(renewals::sweep(who.clone()));
                moved += Dies { held, polls_left }.await.map_or(0, Result::unwrap);
            }
            let held = Box::pin(worker::drain(who.clone()));
            moved += Dies { held, polls_left }.await.map_or(0, Result::unwrap);
            for agent in 0..AGENTS {
                if random.u32(0..10) > 0 {
                    moved += self.agent(agent, random).await;
                }
            }
            if moved == 0 && polls_left == u32::MAX {
                break;
            }
        }
        overdue::sweep(who.clone()).await.unwrap();
        worker::reap(who).await.unwrap();
    }

    /// What must hold at any time.
    async fn check(&self, seed: u64, step: u32) {
        let now = self.w.clock.now();
        let wrong = self
            .w
            .text(&format!(
                "SELECT concat_ws('; ',
                   (SELECT 'over budget: ' || count(*) FROM orders WHERE started_at > '{now}'::timestamptz - interval '1 hour'
                                                                     AND started_at <= '{now}' HAVING count(*) > {MOST_PER_HOUR}),
                   (SELECT 'over the budget of a domain: ' || count(*) FROM domain_orders
                     WHERE started_at > '{now}'::timestamptz - interval '2 days' AND started_at <= '{now}'
                    HAVING count(*) > {MOST_PER_DOMAIN}),
                   (SELECT 'versions without a completed job: ' || count(*) FROM certificate_versions v
                      JOIN jobs j ON j.id = v.job_id WHERE v.certificate_id LIKE '{fleet}' AND j.status <> 'Completed'
                    HAVING count(*) > 0),
                   (SELECT 'completed without a version: ' || count(*) FROM jobs j
                     WHERE j.certificate_id LIKE '{fleet}' AND j.status = 'Completed' AND j.type IN ('Issuance', 'Renewal')
                       AND NOT EXISTS (SELECT 1 FROM certificate_versions v WHERE v.job_id = j.id) HAVING count(*) > 0),
                   (SELECT 'told twice, or not at all: ' || min(j.id) FROM jobs j
                     CROSS JOIN LATERAL (SELECT count(*) AS n, count(DISTINCT action) AS different,
                                                count(*) FILTER (WHERE action IN ('job_completed', 'job_failed', 'job_cancelled'))
                                                    AS ends
                                           FROM audit_events e WHERE e.resource_id = j.id) told
                     WHERE j.certificate_id LIKE '{fleet}'
                       -- A deployment is begun anew after an attempt that failed.
                       AND (told.n <> told.different AND j.type <> 'Deployment' OR told.ends <> CASE WHEN j.finished_at IS NULL THEN 0 ELSE 1 END)
                    HAVING count(*) > 0))",
                fleet = format!("mc-{seed}-%")
            ))
            .await;
        assert_eq!(wrong, "", "seed {seed}, step {step}; again: script/bench sim {seed}");
    }

    /// Ninety days of a fleet.
    async fn live(&mut self, seed: u64) {
        let mut random = Rng::with_seed(seed);
        let mut outages = Vec::new();
        let mut away_until = 0;
        self.begin(seed).await;
        for step in 0..STEPS {
            // Not while the fleet is new: there is nothing yet that could end.
            if step > 10 && away_until <= step && random.u32(0..30) == 0 {
                away_until = step + random.u32(1..10);
                outages.push((self.w.clock.now(), self.w.clock.now() + STEP * (away_until - step)));
            }
            self.step(&mut random, step < away_until).await;
            if step % 10 == 0 || step + 1 == STEPS {
                self.check(seed, step).await;
            }
            let ended: Vec<(String, Time)> = sqlx::query_as(
                "SELECT id, not_after FROM certificates WHERE id LIKE $1 AND not_after <= $2 AND archived_at IS NULL",
            )
            .bind(format!("mc-{seed}-%"))
            .bind(self.w.clock.now())
            .fetch_all(&self.w.db)
            .await
            .unwrap();
            for (id, end) in ended {
                let third = end - LIFETIME / 3;
                let excused = outages.iter().any(|(from, to)| *from < end && third < *to);
                assert!(
                    excused,
                    "seed {seed}: {id} ended at {end} though its issuer was there; again: script/bench sim {seed}"
                );
            }
            self.advance();
        }
        let (issued, renewed) = self.counts(seed).await;
        assert_eq!(issued, FLEET as i64, "seed {seed}: every certificate has versions");
        assert!(renewed >= FLEET as i64, "seed {seed}: {renewed} renewals");
        self.w
            .sql(&format!(
                "UPDATE certificates SET archived_at = updated_at WHERE id LIKE 'mc-{seed}-%'"
            ))
            .await;
        // Nobody works for it any more.
        self.w
            .sql(&format!(
                "UPDATE jobs SET status = 'Cancelled', reason = 'over', finished_at = run_at
                  WHERE finished_at IS NULL AND certificate_id LIKE 'mc-{seed}-%'"
            ))
            .await;
    }

    async fn counts(&self, seed: u64) -> (i64, i64) {
        sqlx::query_as(
            "SELECT count(DISTINCT certificate_id), count(*) - count(DISTINCT certificate_id) FROM certificate_versions
              WHERE certificate_id LIKE $1",
        )
        .bind(format!("mc-{seed}-%"))
        .fetch_one(&self.w.db)
        .await
        .unwrap()
    }
}

async fn lives(db: PgPool, all: std::ops::Range<u64>) {
    let mut engine = Engine::new(db).await;
    for seed in seeds(all) {
        engine.live(seed).await;
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn twenty_fleets_live_for_ninety_days_with_faults_and_crashes(db: PgPool) {
    lives(db, 0..20).await;
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn twenty_more_fleets_live_for_ninety_days_with_faults_and_crashes(db: PgPool) {
    lives(db, 20..40).await;
}
