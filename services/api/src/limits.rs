//! How much a party may ask: GCRA in Redis, or in the process.
//!
//! A budget is one instant, the one at which it is full again; a request moves it ahead by the time that one request
//! is worth. Redis keeps it for all replicas, on its own clock. What Redis says is remembered here, and this is what
//! counts while Redis cannot be asked: a limiter that fails must not become an outage.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use aws_lc_rs::digest;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use certctl_contract::{endpoint::Access, problem::Kind};
use certctl_model::time::Clock;
use certctl_runtime::{client_addr::ClientAddr, places::network};
use redis::{RedisResult, Script, aio::MultiplexedConnection};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{
    auth::{Principal, Way},
    config::Limiting,
    error::ApiError,
    link::{Greeting, Link},
};

/// Whose budget it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Budget {
    /// A key, a session or a token of a person or program; an address when keys are not needed.
    Operators,
    /// An agent.
    Agents,
    /// An address that asks what is open to everyone.
    Open,
    /// An address that sends keys nobody knows.
    Failures,
}

impl Budget {
    fn name(self) -> &'static str {
        match self {
            Budget::Operators => "operators",
            Budget::Agents => "agents",
            Budget::Open => "open",
            Budget::Failures => "failures",
        }
    }
}

/// Microseconds.
type Micros = i64;

/// How fast a budget fills, and how much it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rate {
    /// Time that one request is worth.
    interval: Micros,
    burst: u32,
}

impl Rate {
    fn new(per_second: f64, burst: u32) -> Self {
        let interval = (1e6 / per_second).round() as Micros;
        Self {
            interval: interval.max(1),
            burst,
        }
    }

    fn capacity(self) -> Micros {
        self.interval.saturating_mul(self.burst.into())
    }

    /// The arithmetic of `limits.lua`.
    fn judge(self, full: Micros, now: Micros) -> Verdict {
        let ahead = (full - now).clamp(0, self.capacity());
        match ahead.saturating_add(self.interval) - self.capacity() {
            wait if wait > 0 => Verdict { ahead, wait },
            _ => Verdict {
                ahead: ahead + self.interval,
                wait: 0,
            },
        }
    }
}

/// The state of a budget after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Verdict {
    /// Time until it is full.
    ahead: Micros,
    /// Time until the request would be allowed; 0 if it is.
    wait: Micros,
}

/// Whose budget, as an index: a digest, so that names of any length and shape are equally good.
type Key = [u8; 16];

fn key(budget: Budget, owner: &str) -> Key {
    let text = format!("{}:{owner}", budget.name());
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    digest.as_ref()[..16].try_into().expect("SHA-256 has 32 octets")
}

/// Budgets of this process. Bounded: a full shard forgets what is full again, and then what is nearest to it.
struct Here([Mutex<HashMap<Key, Micros>>; SHARDS]);

const SHARDS: usize = 64;
const PER_SHARD: usize = 1024;

impl Here {
    fn new() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }

    fn shard(&self, key: Key) -> std::sync::MutexGuard<'_, HashMap<Key, Micros>> {
        let shard = &self.0[usize::from(key[0]) % SHARDS];
        shard.lock().expect("nobody panics with the lock")
    }

    /// Takes one request out of a budget.
    fn take(&self, key: Key, rate: Rate, now: Micros) -> Verdict {
        let mut shard = self.shard(key);
        let verdict = rate.judge(shard.get(&key).copied().unwrap_or(now), now);
        remember(&mut shard, key, verdict, now);
        verdict
    }

    /// Whether a request would be refused; nothing is taken.
    fn is_empty(&self, key: Key, rate: Rate, now: Micros) -> bool {
        rate.judge(self.shard(key).get(&key).copied().unwrap_or(now), now).wait > 0
    }

    /// Takes over what Redis said.
    fn learn(&self, key: Key, verdict: Verdict, now: Micros) {
        remember(&mut self.shard(key), key, verdict, now);
    }
}

fn remember(shard: &mut HashMap<Key, Micros>, key: Key, verdict: Verdict, now: Micros) {
    if shard.len() >= PER_SHARD && !shard.contains_key(&key) {
        shard.retain(|_, full| *full > now);
        if shard.len() >= PER_SHARD {
            let nearest = shard.iter().min_by_key(|(_, full)| **full).map(|(key, _)| *key);
            nearest.and_then(|nearest| shard.remove(&nearest));
        }
    }
    shard.insert(key, now + verdict.ahead);
}

/// The budgets of all replicas together.
struct Shared {
    link: Arc<Link>,
    script: Script,
}

impl Shared {
    /// `None` if Redis does not say.
    async fn take(&self, key: Key, rate: Rate) -> Option<Verdict> {
        let verdict = self
            .link
            .ask(async |link| call(&self.script, link, key, rate).await)
            .await;
        if verdict.is_none() {
            metrics::counter!("rate_limit_fallback_total").increment(1);
        }
        verdict
    }
}

async fn call(script: &Script, link: &mut MultiplexedConnection, key: Key, rate: Rate) -> RedisResult<Verdict> {
    let name = format!("certctl:limit:{}", hex::encode(key));
    let mut call = script.key(name);
    let (_, ahead, wait): (i64, Micros, Micros) = call.arg(rate.interval).arg(rate.burst).invoke_async(link).await?;
    Ok(Verdict { ahead, wait })
}

fn script() -> Script {
    Script::new(include_str!("limits.lua"))
}

/// Redis is of use once it runs the script.
pub fn greeting() -> Greeting {
    Box::new(|mut link| {
        Box::pin(async move {
            let probe = Rate { interval: 1, burst: 1 };
            call(&script(), &mut link, Key::default(), probe).await?;
            Ok(())
        })
    })
}

/// The limits of the service.
pub enum Limits {
    /// Nobody is limited.
    Off,
    /// As the settings say.
    On(Box<Active>),
}

/// Limits that are on.
pub struct Active {
    clock: Clock,
    operators: Rate,
    agents: Rate,
    addresses: Rate,
    here: Here,
    shared: Option<Shared>,
    /// Keys that are looked up at once for addresses whose budget of failures is empty: a flood of invalid ones must not
    /// take all connections to the database.
    suspects: Semaphore,
}

const SUSPECTS: usize = 4;

impl Limits {
    /// With Redis, if there is one.
    pub fn new(config: &Limiting, clock: Clock, link: Option<Arc<Link>>) -> Self {
        if !config.enabled {
            return Limits::Off;
        }
        Limits::On(Box::new(Active {
            clock,
            operators: Rate::new(config.rps, config.burst),
            agents: Rate::new(config.agent_rps, config.agent_burst),
            addresses: Rate::new(config.ip_rps, config.ip_burst),
            here: Here::new(),
            suspects: Semaphore::new(SUSPECTS),
            shared: link.map(|link| Shared { link, script: script() }),
        }))
    }
}

impl Active {
    fn rate(&self, budget: Budget) -> Rate {
        match budget {
            Budget::Operators => self.operators,
            Budget::Agents => self.agents,
            Budget::Open | Budget::Failures => self.addresses,
        }
    }

    fn now(&self) -> Micros {
        (self.clock.now().date_time().unix_timestamp_nanos() / 1000) as Micros
    }

    async fn take(&self, budget: Budget, owner: &str) -> Quota {
        let (key, rate) = (key(budget, owner), self.rate(budget));
        let told = match &self.shared {
            Some(shared) => shared.take(key, rate).await,
            None => None,
        };
        let now = self.now();
        let verdict = match told {
            Some(verdict) => {
                self.here.learn(key, verdict, now);
                verdict
            }
            None => self.here.take(key, rate, now),
        };
        Quota { budget, rate, verdict }
    }
}

/// What is left of a budget.
#[derive(Clone, Copy, Debug)]
struct Quota {
    budget: Budget,
    rate: Rate,
    verdict: Verdict,
}

fn whole_seconds(span: Micros) -> i64 {
    const SECOND: Micros = 1_000_000;
    (span + SECOND - 1) / SECOND
}

impl Quota {
    fn refusal(&self) -> Option<ApiError> {
        if self.verdict.wait == 0 {
            return None;
        }
        metrics::counter!("rate_limited_total", "budget" => self.budget.name()).increment(1);
        let why = match self.budget {
            Budget::Operators | Budget::Agents => "too many requests",
            Budget::Open => "too many requests from this address",
            Budget::Failures => "too many attempts from this address without a key that is known",
        };
        let seconds = whole_seconds(self.verdict.wait);
        Some(ApiError::new(Kind::TooMany, format!("{why}; try again in {seconds} s")))
    }

    /// `draft-ietf-httpapi-ratelimit-headers-10`, and the headers that were in use before it.
    fn write(&self, headers: &mut HeaderMap) {
        const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
        const STATE: HeaderName = HeaderName::from_static("ratelimit");
        const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
        const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
        const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
        let (name, quota) = (self.budget.name(), self.rate.burst);
        let window = whole_seconds(self.rate.capacity());
        let left = (self.rate.capacity() - self.verdict.ahead) / self.rate.interval;
        let reset = whole_seconds(self.verdict.ahead);
        let mut set = |name, text: String| {
            headers.insert(name, HeaderValue::try_from(text).expect("is printable ASCII"));
        };
        set(POLICY, format!("\"{name}\";q={quota};w={window}"));
        set(STATE, format!("\"{name}\";r={left};t={reset}"));
        set(LIMIT, quota.to_string());
        set(REMAINING, left.to_string());
        set(RESET, reset.to_string());
        if self.verdict.wait > 0 {
            set(header::RETRY_AFTER, whole_seconds(self.verdict.wait).to_string());
        }
    }
}

/// One request on its way past the limits.
pub struct Turn {
    address: String,
    /// Probes and what relying parties fetch are for everyone, as often as they like.
    free: bool,
    quota: Option<Quota>,
}

impl Turn {
    /// A request to an operation, from this address.
    pub fn new(client: Option<ClientAddr>, access: Access, path: &str) -> Self {
        const FREE: [&str; 5] = ["/health", "/ready", "/api/v1/health", "/api/v1/crl", "/api/v1/ocsp"];
        let below = |root: &str| {
            path.strip_prefix(root)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        Self {
            address: client.map_or_else(|| "local".to_owned(), |client| network(client.0).to_string()),
            free: access == Access::Open && FREE.into_iter().any(below),
            quota: None,
        }
    }

    /// Waits until the key of the request may be looked up: at once, unless the address has sent many that are invalid.
    pub async fn to_authenticate<'l>(&self, limits: &'l Limits) -> Option<SemaphorePermit<'l>> {
        let Limits::On(active) = limits else { return None };
        let key = key(Budget::Failures, &self.address);
        match self.free || !active.here.is_empty(key, active.addresses, active.now()) {
            true => None,
            false => active.suspects.acquire().await.ok(),
        }
    }

    /// Counts the request to whom it belongs.
    ///
    /// # Errors
    /// 429 when the budget is empty.
    pub async fn take(&mut self, limits: &Limits, access: Access, principal: &Principal) -> Result<(), ApiError> {
        let Limits::On(active) = limits else { return Ok(()) };
        if self.free {
            return Ok(());
        }
        let (budget, owner) = match &principal.way {
            _ if access == Access::Open => (Budget::Open, self.address.clone()),
            Way::Nobody | Way::Off => (Budget::Operators, self.address.clone()),
            Way::Agent(_) => (Budget::Agents, principal.key()),
            _ => (Budget::Operators, principal.key()),
        };
        let quota = active.take(budget, &owner).await;
        self.quota = Some(quota);
        quota.refusal().map_or(Ok(()), Err)
    }

    /// Counts a failed authentication to its address. Beyond the budget the answer is 429; a key that is valid is let in
    /// all the same, so that a flood of invalid ones locks out no other client of the address.
    pub async fn failed(&mut self, limits: &Limits, error: ApiError) -> ApiError {
        let Limits::On(active) = limits else { return error };
        if error.kind() != Kind::Unauthenticated {
            return error;
        }
        let quota = active.take(Budget::Failures, &self.address).await;
        self.quota = Some(quota);
        quota.refusal().unwrap_or(error)
    }

    /// Says what is left.
    pub fn write(&self, headers: &mut HeaderMap) {
        if let Some(quota) = &self.quota {
            quota.write(headers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_gives_its_burst_at_once_and_then_its_rate() {
        let rate = Rate::new(50.0, 100);
        let here = Here::new();
        let own = key(Budget::Operators, "a");
        let allowed = |key, from: Micros, to: Micros, step: usize| {
            let times = (from..to).step_by(step);
            times.filter(|now| here.take(key, rate, *now).wait == 0).count()
        };
        assert_eq!(allowed(own, 0, 1000, 1), 100);
        assert_eq!(
            here.take(own, rate, 1000),
            Verdict {
                ahead: 1_999_000,
                wait: 19_000
            }
        );
        // Ten seconds under load, after which the burst is still spent.
        assert_eq!(allowed(own, 1000, 10_001_000, 500), 500);
        // Others are not touched, and a second of rest gives a second's worth.
        assert_eq!(allowed(key(Budget::Operators, "b"), 10_001_000, 10_001_500, 1), 100);
        assert_eq!(allowed(own, 11_001_000, 11_001_500, 1), 50);
    }

    #[test]
    fn a_clock_that_was_set_back_costs_at_most_one_budget() {
        let (rate, here, own) = (Rate::new(10.0, 5), Here::new(), key(Budget::Agents, "a"));
        assert_eq!(here.take(own, rate, 1_000_000_000_000).wait, 0);
        assert_eq!(
            here.take(own, rate, 0),
            Verdict {
                ahead: 500_000,
                wait: 100_000
            }
        );
        assert_eq!(here.take(own, rate, 100_000).wait, 0);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_emptiest_budgets_are_kept() {
        let (rate, here) = (Rate::new(1.0, 10), Here::new());
        let attacker = key(Budget::Failures, "192.0.2.1");
        for _ in 0..10 {
            assert_eq!(here.take(attacker, rate, 0).wait, 0);
        }
        for n in 0..200_000u32 {
            here.take(key(Budget::Failures, &n.to_string()), rate, 1);
        }
        assert!(here.0.iter().all(|shard| shard.lock().unwrap().len() <= PER_SHARD));
        assert!(here.take(attacker, rate, 2).wait > 0);
    }

    #[test]
    fn headers_tell_the_policy_what_is_left_and_when_to_come_back() {
        let rate = Rate::new(50.0, 100);
        let text = |verdict| {
            let mut headers = HeaderMap::new();
            let budget = Budget::Operators;
            Quota { budget, rate, verdict }.write(&mut headers);
            let text = |name: &str| {
                headers
                    .get(name)
                    .map(|v| v.to_str().unwrap().to_owned())
                    .unwrap_or_default()
            };
            assert_eq!(text("ratelimit-policy"), "\"operators\";q=100;w=2");
            assert_eq!(text("x-ratelimit-limit"), "100");
            [
                text("ratelimit"),
                text("x-ratelimit-remaining"),
                text("x-ratelimit-reset"),
                text("retry-after"),
            ]
        };
        let some = Verdict {
            ahead: 1_260_000,
            wait: 0,
        };
        assert_eq!(text(some), ["\"operators\";r=37;t=2", "37", "2", ""]);
        let none = Verdict {
            ahead: 1_999_000,
            wait: 19_000,
        };
        assert_eq!(text(none), ["\"operators\";r=0;t=2", "0", "2", "1"]);
    }

    #[test]
    fn probes_and_relying_parties_are_free() {
        let free = |access, path| Turn::new(None, access, path).free;
        assert!(free(Access::Open, "/health"));
        assert!(free(Access::Open, "/api/v1/crl/{issuer_id}"));
        assert!(!free(Access::Open, "/api/v1/auth/info"));
        assert!(!free(Access::Anyone, "/api/v1/crl"));
    }
}
