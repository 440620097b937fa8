//! Every API call in the trail, and attempts that were denied.
//!
//! A request hands its record to a bounded queue and goes on. What does not fit is counted, in `audit_calls_dropped_total`
//! and in one record that says how many calls are missing, and from when to when. [`spool`](crate::spool) does the rest.

use std::{
    collections::HashMap,
    mem,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::http::{Method, StatusCode};
use certctl_model::{
    audit::{Actor, ActorType},
    id::AuditEventId,
    time::Time,
};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::app::App;

/// Records that wait to be written to disk.
const QUEUE: usize = 16_384;
/// Of each address and reason, this many a minute are recorded one by one.
const SINGLY: u32 = 10;
/// Addresses that are told apart in one minute.
const ADDRESSES: usize = 10_000;
/// nginx's word for a client that went away before it was answered.
const WENT_AWAY: u16 = 499;

/// Which calls are recorded. Denied attempts always are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Which {
    /// All.
    All,
    /// All but the heartbeats and polls of agents, health, readiness and metrics.
    People,
    /// Those that are not reads, but no heartbeats.
    Changes,
}

impl Which {
    fn includes(self, method: &Method, operation: Option<&str>) -> bool {
        const HEARTBEAT: &str = "AgentHeartbeat";
        const POLLS: [&str; 5] = ["AgentGetWork", "Health", "Ready", "ApiHealth", "Metrics"];
        match self {
            Which::All => true,
            Which::People => operation.is_none_or(|name| name != HEARTBEAT && !POLLS.contains(&name)),
            Which::Changes => {
                !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) && operation != Some(HEARTBEAT)
            }
        }
    }
}

/// A row of the trail on its way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: AuditEventId,
    pub(crate) actor: String,
    pub(crate) actor_type: ActorType,
    pub(crate) action: String,
    pub(crate) resource_id: String,
    pub(crate) details: Value,
    pub(crate) at: Time,
}

impl Record {
    fn new(actor: &Actor, action: impl Into<String>, resource_id: impl Into<String>, details: Value, at: Time) -> Self {
        Self {
            id: AuditEventId::generate(at),
            actor: actor.name.clone(),
            actor_type: actor.kind,
            action: action.into(),
            resource_id: resource_id.into(),
            details,
            at,
        }
    }
}

/// What is known of a call, filled in by whoever finds out. It outlives a handler that panics.
#[derive(Clone, Debug, Default)]
pub struct Call(Arc<Mutex<Facts>>);

#[derive(Clone, Debug, Default)]
struct Facts {
    operation: Option<&'static str>,
    actor: Option<Actor>,
    body_hash: String,
}

impl Call {
    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes which operation it is.
    pub fn of(&self, operation: &'static str) {
        self.facts().operation = Some(operation);
    }

    /// Notes who calls.
    pub fn by(&self, actor: &Actor) {
        self.facts().actor = Some(actor.clone());
    }

    /// Notes the SHA-256 of the body.
    pub fn hashed(&self, digest: &[u8]) {
        self.facts().body_hash = hex::encode(&digest[..8]);
    }
}

/// Records that are missing.
#[derive(Clone, Copy, Debug)]
struct Gap {
    count: u64,
    from: Time,
    to: Time,
}

/// Where records go.
pub struct Trail {
    which: Which,
    queue: mpsc::Sender<Record>,
    waiting: Mutex<Option<mpsc::Receiver<Record>>>,
    gap: Mutex<Option<Gap>>,
    denied: Mutex<Sampler>,
    open: AtomicUsize,
}

impl Trail {
    /// Records these calls. They wait until somebody takes the queue.
    pub fn new(which: Which) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        Self {
            which,
            queue,
            waiting: Mutex::new(Some(waiting)),
            gap: Mutex::default(),
            denied: Mutex::default(),
            open: AtomicUsize::new(0),
        }
    }

    /// What waits, for the one who writes it.
    pub(crate) fn queue(&self) -> Option<mpsc::Receiver<Record>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Calls that are not answered yet.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    fn push(&self, record: Record) {
        let at = record.at;
        if self.queue.try_send(record).is_err() {
            self.lose(at);
        }
    }

    /// Counts a record that cannot be kept.
    pub(crate) fn lose(&self, at: Time) {
        metrics::counter!("audit_calls_dropped_total").increment(1);
        let mut gap = self.gap.lock().unwrap_or_else(PoisonError::into_inner);
        let gap = gap.get_or_insert(Gap {
            count: 0,
            from: at,
            to: at,
        });
        gap.count += 1;
        gap.from = gap.from.min(at);
        gap.to = gap.to.max(at);
    }

    /// What says how many records are missing, once, and how many attempts were denied that have none of their own.
    pub(crate) fn owed(&self, now: Time, gap_too: bool) -> Vec<Record> {
        let mut owed = self.sampler().rolled(minute(now));
        if gap_too && let Some(gap) = self.gap.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let details = json!({ "count": gap.count, "from": gap.from, "to": gap.to });
            tracing::error!(calls = gap.count, "{} API calls are missing in the trail", gap.count);
            owed.push(Record::new(&Actor::system(), "api_calls_lost", "trail", details, now));
        }
        owed
    }

    fn sampler(&self) -> MutexGuard<'_, Sampler> {
        self.denied.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn minute(at: Time) -> i64 {
    at.unix().div_euclid(60)
}

/// Attempts of one minute, by address and status.
#[derive(Default)]
struct Sampler {
    minute: i64,
    seen: HashMap<(Option<IpAddr>, u16), (u32, u64)>,
    rolled: Vec<Record>,
}

impl Sampler {
    fn admits(&mut self, remote: Option<IpAddr>, status: u16, minute: i64) -> bool {
        self.roll(minute);
        let crowded = self.seen.len() >= ADDRESSES && !self.seen.contains_key(&(remote, status));
        let remote = remote.filter(|_| !crowded);
        let (singly, more) = self.seen.entry((remote, status)).or_default();
        match *singly < SINGLY {
            true => *singly += 1,
            false => *more += 1,
        }
        *more == 0
    }

    fn roll(&mut self, minute: i64) {
        if minute == self.minute {
            return;
        }
        let at = Time::from_unix(minute * 60);
        for ((remote, status), (_, more)) in self.seen.drain().filter(|(_, (_, more))| *more > 0) {
            let mut details = json!({
                "status": status, "remote_address": remote, "unrecorded": more,
                "minute": Time::from_unix(self.minute * 60),
            });
            let action = match reason(status) {
                Some(reason) => {
                    details["reason"] = json!(reason);
                    "access_denied"
                }
                None => "api_calls_sampled",
            };
            let which = remote.map_or("unknown".to_owned(), |remote| remote.to_string());
            let nobody = Actor::user("anonymous");
            self.rolled.push(Record::new(&nobody, action, which, details, at));
        }
        self.minute = minute;
    }

    fn rolled(&mut self, minute: i64) -> Vec<Record> {
        self.roll(minute);
        mem::take(&mut self.rolled)
    }
}

/// Why an attempt was denied, if it was.
fn reason(status: u16) -> Option<&'static str> {
    match status {
        401 => Some("unauthenticated"),
        403 => Some("forbidden"),
        429 => Some("too-many-requests"),
        _ => None,
    }
}

/// A call that is being answered. Dropped without an answer, it is recorded as one whose client went away.
pub struct Open {
    app: Arc<App>,
    call: Call,
    method: Method,
    path: String,
    request_id: String,
    remote: Option<IpAddr>,
    began: Time,
    answered: bool,
}

impl Open {
    /// A call that begins now.
    pub fn new(app: &Arc<App>, call: Call, method: Method, path: &str, id: &str, remote: Option<IpAddr>) -> Self {
        app.trail.open.fetch_add(1, Ordering::AcqRel);
        Self {
            app: app.clone(),
            call,
            method,
            path: path.to_owned(),
            request_id: id.to_owned(),
            remote,
            began: app.clock.now(),
            answered: false,
        }
    }

    /// Records how it was answered.
    pub fn answered(mut self, status: StatusCode) {
        self.answered = true;
        self.record(status.as_u16());
    }

    fn record(&self, status: u16) {
        // What relying parties fetch is no call of the API.
        let public = ["/crl/", "/ocsp/", "/ca/", "/api/docs", "/api/v1/openapi.json"];
        if public.iter().any(|prefix| self.path.starts_with(prefix)) {
            return;
        }
        let (trail, now) = (&self.app.trail, self.app.clock.now());
        let Facts {
            operation,
            actor,
            body_hash,
        } = self.call.facts().clone();
        let denied = reason(status);
        // Whoever is nobody must not be able to fill the trail.
        let nobody = !self.app.gate.is_open() && actor.as_ref().is_none_or(|actor| actor.name == "anonymous");
        if denied.is_none() && !trail.which.includes(&self.method, operation) {
            return;
        }
        if (denied.is_some() || nobody) && !trail.sampler().admits(self.remote, status, minute(now)) {
            return;
        }
        let path = bounded(&self.path);
        let mut details = json!({
            "method": bounded(self.method.as_str()), "path": path, "status": status, "body_hash": body_hash,
            "latency_ms": now.since(self.began).as_millis() as u64, "request_id": self.request_id,
            "remote_address": self.remote,
        });
        let action = match denied {
            Some(reason) => {
                details["reason"] = json!(reason);
                "access_denied".to_owned()
            }
            None => action(&self.method),
        };
        let actor = actor.unwrap_or_else(|| Actor::user("anonymous"));
        trail.push(Record::new(&actor, action, path, details, now));
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.answered {
            self.record(WENT_AWAY);
        }
        self.app.trail.open.fetch_sub(1, Ordering::AcqRel);
    }
}

fn action(method: &Method) -> String {
    const KNOWN: [Method; 7] = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::OPTIONS,
    ];
    match KNOWN.contains(method) {
        true => format!("api_{}", method.as_str().to_ascii_lowercase()),
        false => "api_other".to_owned(),
    }
}

/// The text, or as much as 255 octets can hold with a hash that tells it from others.
fn bounded(text: &str) -> String {
    const MOST: usize = 255;
    if text.len() <= MOST {
        return text.to_owned();
    }
    let hash = hex::encode(&crate::auth::sha256(text)[..8]);
    let mut end = MOST - hash.len() - 1;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}~{hash}", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_paths_are_cut_and_told_apart() {
        let (a, b) = ("/x".repeat(200) + "a", "/x".repeat(200) + "b");
        assert_eq!((bounded(&a).len(), bounded(&b).len()), (255, 255));
        assert_ne!(bounded(&a), bounded(&b));
        assert!(bounded(&"ü".repeat(200)).len() <= 255);
        assert_eq!(bounded("/api"), "/api");
    }

    #[test]
    fn which_calls_are_recorded() {
        let (get, post) = (Method::GET, Method::POST);
        for (which, method, operation, included) in [
            (Which::All, &post, Some("AgentHeartbeat"), true),
            (Which::People, &post, Some("AgentHeartbeat"), false),
            (Which::People, &get, Some("AgentGetWork"), false),
            (Which::People, &get, Some("ListTeams"), true),
            (Which::People, &get, None, true),
            (Which::Changes, &get, Some("ListTeams"), false),
            (Which::Changes, &post, Some("CreateTeam"), true),
            (Which::Changes, &post, Some("AgentHeartbeat"), false),
        ] {
            assert_eq!(
                which.includes(method, operation),
                included,
                "{which:?} {method} {operation:?}"
            );
        }
    }

    #[test]
    fn of_each_address_ten_attempts_a_minute_are_recorded_and_the_rest_is_counted() {
        let mut sampler = Sampler::default();
        let remote: Option<IpAddr> = Some([192, 0, 2, 1].into());
        let admitted = (0..25).filter(|_| sampler.admits(remote, 401, 7)).count();
        assert_eq!(admitted, 10);
        assert!(sampler.admits(remote, 403, 7));
        assert!(sampler.admits(None, 401, 7));
        let owed = sampler.rolled(8);
        assert_eq!(owed.len(), 1);
        assert_eq!(owed[0].details["unrecorded"], 15);
        assert!(sampler.admits(remote, 401, 8));
    }

    #[test]
    fn what_does_not_fit_is_told_once() {
        let trail = Trail::new(Which::All);
        let at = Time::from_unix(1_800_000_000);
        for n in 0..=(QUEUE as u64 + 4) {
            let at = Time::from_unix(at.unix() + n as i64);
            trail.push(Record::new(&Actor::system(), "api_get", "/", json!({}), at));
        }
        assert!(trail.owed(at, false).is_empty());
        let owed = trail.owed(at, true);
        let (first, last) = (QUEUE as i64, QUEUE as i64 + 4);
        let (from, to) = (Time::from_unix(at.unix() + first), Time::from_unix(at.unix() + last));
        assert_eq!(owed[0].details, json!({ "count": 5, "from": from, "to": to }));
        assert!(trail.owed(at, true).is_empty());
    }
}
