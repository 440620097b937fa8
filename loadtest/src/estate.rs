//! A believable estate, computed: the same seed, sizes and instant give the same certificates, each for itself, so that
//! several connections can write it without knowing of each other.

/// Instants are milliseconds since 1970.
pub(crate) type Millis = i64;

const MINUTE: Millis = 60_000;
const HOUR: Millis = 60 * MINUTE;
const DAY: Millis = 24 * HOUR;
/// How far back the estate goes.
pub(crate) const PAST: Millis = 730 * DAY;

/// SplitMix64: enough for data that must look mixed, and the same everywhere.
pub(crate) struct Rng(u64);

impl Rng {
    /// The generator of one thing; others of its kind and other kinds draw something else.
    pub(crate) fn of(seed: u64, kind: &str, number: u64) -> Self {
        let kind = kind
            .bytes()
            .fold(seed, |hash, byte| mix(hash ^ u64::from(byte)).wrapping_add(1));
        Self(mix(kind ^ mix(number)))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// From 0 up to but not including 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// From 0 up to but not including `n`, or 0.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub(crate) fn chance(&mut self, share: f64) -> bool {
        self.unit() < share
    }

    /// The whole part of `mean`, or one more, so that it is kept on average.
    pub(crate) fn about(&mut self, mean: f64) -> u64 {
        mean as u64 + u64::from(self.chance(mean.fract()))
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }

    /// One of several by their weights.
    pub(crate) fn weighted<T: Copy>(&mut self, from: &[(u32, T)]) -> T {
        let mut at = self.below(from.iter().map(|(weight, _)| u64::from(*weight)).sum());
        for (weight, item) in from {
            match at.checked_sub(u64::from(*weight)) {
                Some(rest) => at = rest,
                None => return *item,
            }
        }
        unreachable!("the weights add up to what was drawn from")
    }

    /// So many lower-case hexadecimal digits.
    pub(crate) fn hex(&mut self, digits: usize) -> String {
        let mut text = String::with_capacity(digits + 16);
        while text.len() < digits {
            text.push_str(&format!("{:016x}", self.next()));
        }
        text.truncate(digits);
        text
    }

    /// An id as the services make them: its prefix and a UUIDv7, so that ids sort by age.
    pub(crate) fn id(&mut self, prefix: &str, at: Millis) -> String {
        let (a, b) = (self.next(), self.next());
        format!(
            "{prefix}{at:012x}7{:03x}{:x}{:015x}",
            a & 0xfff,
            8 | (a >> 60 & 3),
            b >> 4
        )
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Few have most: the n-th of them is drawn in proportion to 1/n.
pub(crate) struct Zipf(Vec<f64>);

impl Zipf {
    pub(crate) fn new(n: u64) -> Self {
        Self::without_the_first(0, n)
    }

    /// The same without the greatest: the others differ less from each other.
    fn without_the_first(greatest: u64, n: u64) -> Self {
        let mut sum = 0.0;
        let weights = (1..=n).map(|rank| {
            sum += 1.0 / (greatest + rank) as f64;
            sum
        });
        Self(weights.collect())
    }

    /// The number of one of them, from 0.
    pub(crate) fn draw(&self, rng: &mut Rng) -> u64 {
        let at = rng.unit() * self.0.last().copied().unwrap_or(0.0);
        self.0.partition_point(|sum| *sum <= at) as u64
    }
}

/// How large, and which.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) seed: u64,
    pub(crate) now: Millis,
    pub(crate) certificates: u64,
    pub(crate) agents: u64,
    /// Versions of a certificate that was issued, on average; at least 1.
    pub(crate) versions_per: f64,
    /// Jobs that have ended, for each certificate, on average.
    pub(crate) jobs_per: f64,
    /// Whether every certificate is issued and no job is open.
    pub(crate) settled: bool,
}

/// What everything else is drawn from.
pub(crate) struct Estate {
    pub(crate) size: Size,
    pub(crate) teams: u64,
    pub(crate) owners: u64,
    by_owner: Zipf,
    by_team: Zipf,
    by_agent: Zipf,
}

/// What a certificate is, as its status will tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Active,
    Expiring,
    Expired,
    Renewing,
    Revoked,
    Archived,
    /// Never issued: its only try was given up.
    Failed,
    /// Issued, and its renewal was given up.
    RenewalFailed,
    Pending,
}

const STATES: [(u32, State); 9] = [
    (700, State::Active),
    (90, State::Expiring),
    (50, State::Expired),
    (20, State::Renewing),
    (35, State::Revoked),
    (60, State::Archived),
    (5, State::Failed),
    (10, State::RenewalFailed),
    (30, State::Pending),
];

pub(crate) const ENVIRONMENTS: [(u32, &str); 6] = [
    (55, "production"),
    (20, "staging"),
    (15, "development"),
    (6, "test"),
    (3, "qa"),
    (1, "disaster-recovery"),
];

/// Issuers: the one that every database has, and more.
pub(crate) const ISSUERS: [(u32, &str); 4] = [(70, "iss-local"), (20, "iss-eu"), (9, "iss-us"), (1, "iss-lab")];

/// Profiles with the longest lifetime they allow, in days.
pub(crate) const PROFILES: [(u32, &str, u32); 6] = [
    (40, "web", 398),
    (25, "internal", 730),
    (15, "mesh", 47),
    (10, "api", 90),
    (8, "legacy", 730),
    (2, "lab", 30),
];

pub(crate) const POLICIES: [(u32, &str); 4] = [(70, "rp-default"), (15, "rp-early"), (10, "rp-manual"), (5, "rp-late")];

const SERVICES: [&str; 24] = [
    "api", "web", "auth", "billing", "cart", "catalog", "cdn", "chat", "crm", "db", "edge", "events", "gateway",
    "grafana", "ldap", "mail", "metrics", "orders", "portal", "queue", "search", "status", "vault", "vpn",
];

pub(crate) const AREAS: [&str; 20] = [
    "Payments",
    "Identity",
    "Platform",
    "Storefront",
    "Logistics",
    "Data",
    "Security",
    "Network",
    "Mobile",
    "Billing",
    "Support",
    "Search",
    "Media",
    "Risk",
    "Treasury",
    "Factory",
    "Fleet",
    "Archive",
    "Research",
    "Operations",
];

const REASONS: [(u32, &str); 4] = [
    (50, "superseded"),
    (30, "cessationOfOperation"),
    (15, "unspecified"),
    (5, "keyCompromise"),
];

/// One issued version.
pub(crate) struct Version {
    pub(crate) id: String,
    pub(crate) job: String,
    pub(crate) serial: String,
    pub(crate) fingerprint: String,
    pub(crate) spki: String,
    pub(crate) not_before: Millis,
    pub(crate) not_after: Millis,
}

/// One certificate with all that hangs on it.
pub(crate) struct Certificate {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) common_name: String,
    pub(crate) sans: Vec<String>,
    pub(crate) environment: &'static str,
    pub(crate) owner: u64,
    pub(crate) team: u64,
    pub(crate) issuer: &'static str,
    pub(crate) profile: Option<&'static str>,
    pub(crate) policy: &'static str,
    pub(crate) state: State,
    pub(crate) tier: Option<&'static str>,
    /// Numbers of targets, without repetition, of one agent: it has the one of its own number and one more, further on by
    /// the number of agents.
    pub(crate) targets: Vec<u64>,
    /// Oldest first.
    pub(crate) versions: Vec<Version>,
    pub(crate) created: Millis,
    pub(crate) updated: Millis,
    /// When it was revoked, archived or given up, for those it happened to.
    pub(crate) ended: Millis,
    pub(crate) reason: &'static str,
    pub(crate) renew_at: Option<Millis>,
}

impl Estate {
    pub(crate) fn new(size: Size) -> Self {
        let teams = (size.certificates / 5_000).clamp(4, 200);
        let owners = (size.certificates / 500).clamp(10, 5_000);
        Self {
            size,
            teams,
            owners,
            by_owner: Zipf::new(owners),
            by_team: Zipf::new(teams),
            // Hosts differ little: each has some hundreds when there are five hundred certificates for an agent.
            by_agent: Zipf::without_the_first(1_000, size.agents),
        }
    }

    pub(crate) fn team_id(&self, number: u64) -> String {
        format!("t-{}-{number}", self.size.seed)
    }

    pub(crate) fn owner_id(&self, number: u64) -> String {
        format!("o-{}-{number}", self.size.seed)
    }

    pub(crate) fn agent_id(&self, number: u64) -> String {
        format!("a-{}-{number}", self.size.seed)
    }

    /// The key of an agent: of no use anywhere but in a seeded database, and there for everyone.
    pub(crate) fn agent_key(&self, number: u64) -> String {
        Rng::of(self.size.seed, "agent key", number).hex(64)
    }

    pub(crate) fn target_id(&self, number: u64) -> String {
        format!("tgt-{}-{number}", self.size.seed)
    }

    /// The team that an owner belongs to.
    pub(crate) fn team_of(&self, owner: u64) -> u64 {
        self.by_team.draw(&mut Rng::of(self.size.seed, "owner", owner))
    }

    /// An instant in the past that moves on with `number` of `all`, more and more of them the nearer it comes.
    pub(crate) fn past(&self, number: u64, all: u64) -> Millis {
        let left = 1.0 - (number as f64 + 0.5) / all.max(1) as f64;
        self.size.now - (PAST as f64 * left.powf(1.5)) as Millis
    }

    /// The certificate of a number.
    pub(crate) fn certificate(&self, number: u64) -> Certificate {
        let Size { seed, now, settled, .. } = self.size;
        let rng = &mut Rng::of(seed, "certificate", number);
        let state = match settled {
            true => State::Active,
            false => rng.weighted(&STATES),
        };
        let lifetime = lifetime(rng);
        let (not_before, not_after) = dates(rng, state, lifetime, now);
        let issued = !matches!(state, State::Pending | State::Failed);
        let count = match issued {
            true => 1 + rng.about(self.size.versions_per.max(1.0) - 1.0),
            false => 0,
        };
        // Renewed after two thirds of its lifetime, every time.
        let first = not_before - (count.max(1) as Millis - 1) * (lifetime * 2 / 3);
        let drawn = self.past(number, self.size.certificates);
        let created = if issued { drawn.min(first - MINUTE) } else { drawn };
        let versions = (0..count).map(|n| {
            let behind = (count - 1 - n) as Millis * (lifetime * 2 / 3);
            let at = not_before - behind;
            Version {
                id: rng.id("cv-", at),
                job: rng.id("j-", at - 20_000),
                // Positive, without leading zeros.
                serial: format!("{}{}", 1 + rng.below(7), rng.hex(31)),
                fingerprint: rng.hex(64),
                spki: rng.hex(64),
                not_before: at,
                not_after: not_after - behind,
            }
        });
        let versions: Vec<Version> = versions.collect();
        let since = if issued { not_before } else { created };
        let ended = since + ((now - since) as f64 * rng.unit()) as Millis;
        let updated = match state {
            State::Revoked | State::Archived | State::Failed | State::RenewalFailed => ended,
            // Most are touched by nothing but their renewals, some by people.
            _ if rng.chance(0.2) => since + ((now - since) as f64 * rng.unit()) as Millis,
            _ => since,
        };
        let owner = self.by_owner.draw(rng);
        let team = self.team_of(owner);
        let environment = rng.weighted(&ENVIRONMENTS);
        let (service, area) = (*rng.pick(&SERVICES), AREAS[team as usize % AREAS.len()].to_lowercase());
        let common_name = format!("{service}-{}.{area}.example.com", short(number));
        let mut sans = vec![common_name.clone()];
        for n in 0..rng.weighted(&[(60, 0), (25, 1), (12, 3), (3, 20)]) {
            sans.push(format!("{service}-{}-{n}.{environment}.example.net", short(number)));
        }
        if rng.chance(0.05) {
            sans.push(format!("10.{}.{}.{}", rng.below(256), rng.below(256), rng.below(256)));
        }
        let profiles = PROFILES.map(|(weight, name, _)| (weight, name));
        Certificate {
            id: rng.id("mc-", created),
            name: format!("{service}-{}-{seed}", short(number)),
            common_name,
            sans,
            environment,
            owner,
            team,
            issuer: rng.weighted(&ISSUERS),
            profile: rng.chance(0.7).then(|| rng.weighted(&profiles)),
            policy: rng.weighted(&POLICIES),
            state,
            tier: rng.chance(0.6).then(|| *rng.pick(&["gold", "silver", "bronze"])),
            targets: self.drawn_targets(rng),
            versions,
            created,
            updated: updated.max(created),
            ended,
            reason: rng.weighted(&REASONS),
            renew_at: (issued && !matches!(state, State::Revoked | State::Archived))
                .then_some(not_before + lifetime * 2 / 3),
        }
    }

    fn drawn_targets(&self, rng: &mut Rng) -> Vec<u64> {
        let agents = self.size.agents;
        if agents == 0 || rng.chance(0.15) {
            return vec![];
        }
        let agent = self.by_agent.draw(rng);
        let mut targets = vec![agent + agents * rng.below(2)];
        if rng.chance(0.06) {
            targets.push(agent + agents * u64::from(targets[0] < agents));
        }
        targets
    }
}

/// Ten minutes to two years, with the peaks that rules of the trade and of authorities make.
fn lifetime(rng: &mut Rng) -> Millis {
    match rng.weighted(&[
        (5, 'm'),
        (15, 'h'),
        (80, 'w'),
        (270, '1'),
        (320, '3'),
        (230, 'y'),
        (80, 'o'),
    ]) {
        'm' => 10 * MINUTE + (rng.unit() * 50.0 * MINUTE as f64) as Millis,
        'h' => HOUR * (1 + rng.below(24) as Millis),
        'w' => DAY * (2 + rng.below(28) as Millis),
        '1' => 47 * DAY,
        '3' => 90 * DAY,
        'y' => 398 * DAY,
        _ => DAY * (30 + rng.below(700) as Millis),
    }
}

/// Dates with which a certificate of this lifetime has this status now.
fn dates(rng: &mut Rng, state: State, lifetime: Millis, now: Millis) -> (Millis, Millis) {
    let expiring = (30 * DAY).min(lifetime / 3);
    let share = rng.unit();
    let left = match state {
        State::Expiring | State::Renewing | State::RenewalFailed => (expiring as f64 * share) as Millis,
        State::Expired => -(share * share * (400 * DAY) as f64) as Millis - 1,
        // Long ago or lately: what has ended was issued at any time.
        State::Revoked | State::Archived => lifetime - (share * (lifetime + 200 * DAY) as f64) as Millis,
        _ => expiring + 1 + ((lifetime - expiring) as f64 * share) as Millis,
    };
    let not_after = (now + left).div_euclid(1000) * 1000;
    (not_after - lifetime, not_after)
}

/// A number in few letters, each another.
fn short(mut number: u64) -> String {
    const LETTERS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    // An odd factor moves every number below 2^30 to another one, so that neighbours differ in their first letters.
    let (low, high) = (number & 0x3fff_ffff, number >> 30);
    number = (high << 30) | (low.wrapping_mul(0x2545_F491) & 0x3fff_ffff);
    let mut letters = Vec::new();
    while number > 0 || letters.len() < 6 {
        letters.push(LETTERS[(number % 32) as usize]);
        number /= 32;
    }
    letters.reverse();
    String::from_utf8(letters).expect("letters are ASCII")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn estate(seed: u64) -> Estate {
        Estate::new(Size {
            seed,
            now: 1_800_000_000_000,
            certificates: 5_000,
            agents: 50,
            versions_per: 1.5,
            jobs_per: 1.0,
            settled: false,
        })
    }

    #[test]
    fn the_same_seed_gives_the_same_certificates_and_another_one_others() {
        let ids = |seed| -> Vec<String> { (0..100).map(|n| estate(seed).certificate(n).id).collect() };
        assert_eq!(ids(1), ids(1));
        assert!(ids(1).iter().all(|id| !ids(2).contains(id)));
    }

    #[test]
    fn names_ids_and_serials_are_each_used_once() {
        let estate = estate(1);
        let (mut names, mut serials) = (HashSet::new(), HashSet::new());
        for certificate in (0..5_000).map(|n| estate.certificate(n)) {
            assert!(names.insert(certificate.name.clone()), "{}", certificate.name);
            assert_eq!(certificate.id.len(), "mc-".len() + 32);
            for version in certificate.versions {
                assert!(!version.serial.starts_with('0') && serials.insert(version.serial));
            }
        }
    }

    #[test]
    fn few_owners_have_most_and_every_status_occurs() {
        let estate = estate(1);
        let certificates: Vec<Certificate> = (0..5_000).map(|n| estate.certificate(n)).collect();
        let of_owner = |owner| certificates.iter().filter(|c| c.owner == owner).count();
        assert!(of_owner(0) > 3 * of_owner(5), "{} {}", of_owner(0), of_owner(5));
        for (_, state) in STATES {
            assert!(certificates.iter().any(|c| c.state == state), "{state:?}");
        }
    }

    #[test]
    fn dates_follow_one_another() {
        let estate = estate(3);
        for c in (0..5_000).map(|n| estate.certificate(n)) {
            assert!(c.created <= c.updated, "{}", c.id);
            for version in &c.versions {
                assert!(c.created < version.not_before && version.not_before < version.not_after);
            }
            assert!(c.targets.iter().all(|target| *target < estate.size.agents * 2));
        }
    }

    #[test]
    fn weights_are_kept() {
        let mut rng = Rng::of(1, "test", 1);
        let drawn = (0..10_000).filter(|_| rng.weighted(&[(90, true), (10, false)])).count();
        assert!((8_800..9_200).contains(&drawn), "{drawn}");
        let sum: u64 = (0..10_000).map(|_| rng.about(1.3)).sum();
        assert!((12_700..13_300).contains(&sum), "{sum}");
    }
}
