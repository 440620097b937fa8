//! OCSP answers that are given again, until what they speak of was revoked or they are about to end.
//!
//! Nothing is looked for and removed when something is revoked. Serial numbers fall into parts, and each part remembers
//! when news of one of its serial numbers came last; an answer remembers when it was asked for, and is given only while
//! there was no news since. So an answer that was on its way while its certificate was revoked is not given either.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::http::{
    HeaderMap, HeaderValue,
    header::{ETAG, EXPIRES, LAST_MODIFIED},
};
use bytes::Bytes;
use certctl_contract::signer::OcspQuestion;
use certctl_model::{id::IssuerId, time::Time};
use certctl_store::wake::Revoked;
use metrics::Counter;
use quick_cache::{Weighter, sync::Cache};

use super::{digest_tag, http_date, shelf::Shelf};

/// A revocation forgets one answer in so many besides its own.
const PARTS: usize = 1 << 16;
/// What an answer takes in memory besides its octets and its name.
const OVERHEAD: u64 = 900;
/// Octets of answers about what was never issued. There is no end of those, so they have a place of their own, and a
/// small one: a flood of them displaces nothing but itself.
const NEVER_ISSUED: u64 = 4 * 1024 * 1024;
/// How long something may be said never to have been issued: it may be issued next.
const NEVER_ISSUED_FOR: Duration = Duration::from_secs(5);
/// An answer is not given in the last part of its life, whatever it is: it must reach its client, and serve there.
const MARGIN: Duration = Duration::from_secs(60);

/// When something was asked: before or after which news.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

/// An answer that may be given again. What is looked at whenever it is given stands together: there are many, and to
/// fetch each piece from memory takes longer than to give it.
pub struct Kept {
    der: Bytes,
    /// What headers say of it, in the octets before DER.
    tag: HeaderValue,
    begin: HeaderValue,
    end: HeaderValue,
    asked: Moment,
    part: usize,
    /// From when another is asked for while this one is still given.
    refreshed_at: Time,
    /// From when it is not given any more.
    ends_at: Time,
    refreshing: AtomicBool,
    issued: bool,
    /// Of the further serial numbers it speaks of.
    more_parts: Vec<usize>,
    /// From when it speaks.
    pub this_update: Time,
    /// What it answers.
    pub question: OcspQuestion,
}

impl Kept {
    /// DER.
    pub fn der(&self) -> Bytes {
        self.der.clone()
    }

    /// Its validator.
    pub fn tag(&self) -> &str {
        self.tag.to_str().expect("is printable ASCII")
    }

    /// Says of it what is not said of all, where there is room for it.
    pub fn say(&self, headers: &mut HeaderMap) {
        // To look at each costs less than to look three up.
        for (name, value) in headers {
            let own = match () {
                () if name == ETAG => &self.tag,
                () if name == LAST_MODIFIED => &self.begin,
                () if name == EXPIRES => &self.end,
                () => continue,
            };
            *value = own.clone();
        }
    }

    /// Whether the caller is the one to ask for the next.
    pub fn is_to_be_refreshed(&self, now: Time) -> bool {
        now >= self.refreshed_at && !self.refreshing.swap(true, SeqCst)
    }

    /// Lets somebody else try.
    pub fn was_not_refreshed(&self) {
        self.refreshing.store(false, SeqCst);
    }
}

/// A new answer, and what decides how long it is kept.
pub struct Fresh<'a> {
    /// DER.
    pub der: &'a [u8],
    /// What it answers.
    pub question: OcspQuestion,
    /// When it was asked for.
    pub asked: Moment,
    /// The serial numbers it speaks of.
    pub serials: Vec<&'a str>,
    /// Whether all of them were issued.
    pub issued: bool,
    /// From when it speaks.
    pub this_update: Time,
    /// Until when it may be used.
    pub next_update: Time,
}

/// Answers by the octets of the request they answer.
pub struct Answers {
    issued: Cache<Box<[u8]>, Arc<Kept>, Octets>,
    never_issued: Cache<Box<[u8]>, Arc<Kept>, Octets>,
    /// How much news there was.
    news: AtomicU64,
    /// Which piece of news was the last about each part.
    parts: Box<[AtomicU64]>,
    hasher: RandomState,
    given: OnceLock<Counter>,
    /// What replicas share.
    pub(super) shelf: Option<Shelf>,
}

#[derive(Clone)]
struct Octets;

impl Weighter<Box<[u8]>, Arc<Kept>> for Octets {
    fn weight(&self, key: &Box<[u8]>, kept: &Arc<Kept>) -> u64 {
        OVERHEAD + (key.len() + kept.der.len() + kept.question.request.len()) as u64
    }
}

impl Answers {
    /// Nothing yet, and room for so many octets.
    pub fn new(most_octets: u64, shelf: Option<Shelf>) -> Self {
        let room = |octets: u64| Cache::with_weighter((octets / 2_000) as usize, octets, Octets);
        Self {
            issued: room(most_octets),
            never_issued: room(NEVER_ISSUED.min(most_octets)),
            news: AtomicU64::new(1),
            parts: (0..PARTS).map(|_| AtomicU64::new(0)).collect(),
            hasher: RandomState::new(),
            given: OnceLock::new(),
            shelf,
        }
    }

    /// Now. To be taken before an answer is asked for.
    pub fn moment(&self) -> Moment {
        Moment(self.news.load(SeqCst))
    }

    /// The answer to a request, if there is one that still tells the truth.
    pub fn get(&self, key: &[u8], now: Time) -> Option<Arc<Kept>> {
        let kept = self.issued.get(key).or_else(|| self.never_issued.get(key))?;
        let is_true = |part: usize| self.parts[part].load(SeqCst) <= kept.asked.0;
        if now >= kept.ends_at || !is_true(kept.part) || !kept.more_parts.iter().all(|part| is_true(*part)) {
            return None;
        }
        // Found once: a counter is looked up by its name and labels otherwise.
        let given = || metrics::counter!("ocsp_answers_total", "from" => "memory");
        self.given.get_or_init(given).increment(1);
        Some(kept)
    }

    /// Keeps an answer under the octets of its request.
    pub fn keep(&self, key: Box<[u8]>, issuer: &IssuerId, fresh: Fresh<'_>) -> Arc<Kept> {
        let life = fresh.next_update.since(fresh.this_update);
        let (refreshed_at, ends_at) = match fresh.issued {
            true => (fresh.this_update + life / 2, fresh.next_update - MARGIN.min(life / 10)),
            false => {
                let ends_at = fresh.next_update.min(fresh.this_update + NEVER_ISSUED_FOR);
                (ends_at, ends_at)
            }
        };
        let mut parts = fresh.serials.iter().map(|serial| self.part(issuer.as_str(), serial));
        let (tag, begin, end) = (
            digest_tag(fresh.der),
            http_date(fresh.this_update),
            http_date(fresh.next_update),
        );
        let octets: Bytes = [tag.as_bytes(), begin.as_bytes(), end.as_bytes(), fresh.der]
            .concat()
            .into();
        let mut rest = octets;
        let mut next = |length: usize| rest.split_to(length);
        let [tag, begin, end] = [tag.len(), begin.len(), end.len()]
            .map(|length| HeaderValue::from_maybe_shared(next(length)).expect("is printable ASCII"));
        let kept = Arc::new(Kept {
            der: rest,
            tag,
            begin,
            end,
            asked: fresh.asked,
            // An answer speaks of some certificate.
            part: parts.next().unwrap_or_default(),
            more_parts: parts.collect(),
            refreshed_at,
            ends_at,
            refreshing: AtomicBool::new(false),
            issued: fresh.issued,
            this_update: fresh.this_update,
            question: fresh.question,
        });
        self.alias(key, &kept);
        kept
    }

    /// Keeps an answer under another spelling of its request as well.
    pub fn alias(&self, key: Box<[u8]>, kept: &Arc<Kept>) {
        match kept.issued {
            true => self.issued.insert(key, kept.clone()),
            false => self.never_issued.insert(key, kept.clone()),
        }
    }

    /// How many answers there are, and how many octets they take.
    pub fn size(&self) -> (usize, u64) {
        (
            self.issued.len() + self.never_issued.len(),
            self.issued.weight() + self.never_issued.weight(),
        )
    }

    fn part(&self, issuer: &str, serial: &str) -> usize {
        self.hasher.hash_one((issuer, serial)) as usize % PARTS
    }
}

impl Revoked for Answers {
    fn changed(&self, issuer: &str, serial: &str) {
        // Before our own news: who asks after it must not take from Redis what lacks it.
        if let Some(shelf) = &self.shelf {
            shelf.changed(issuer, serial);
        }
        let news = self.news.fetch_add(1, SeqCst) + 1;
        self.parts[self.part(issuer, serial)].fetch_max(news, SeqCst);
    }

    fn all_changed(&self) {
        if let Some(shelf) = &self.shelf {
            shelf.all_changed();
        }
        let news = self.news.fetch_add(1, SeqCst) + 1;
        for part in &self.parts {
            part.fetch_max(news, SeqCst);
        }
        self.issued.clear();
        self.never_issued.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn start() -> Time {
        Time::from_unix(1_800_000_000)
    }

    fn issuer() -> IssuerId {
        "iss-local".parse().unwrap()
    }

    fn keep(answers: &Answers, key: &str, serials: &[&str], asked: Moment, issued: bool) {
        let fresh = Fresh {
            der: &[0; 1000],
            question: OcspQuestion {
                issuer_id: issuer(),
                request: String::new(),
            },
            asked,
            serials: serials.to_vec(),
            issued,
            this_update: start(),
            next_update: start() + HOUR,
        };
        answers.keep(key.as_bytes().into(), &issuer(), fresh);
    }

    #[test]
    fn an_answer_is_given_until_it_is_about_to_end() {
        let answers = Answers::new(1 << 20, None);
        keep(&answers, "a", &["1"], answers.moment(), true);
        keep(&answers, "b", &["2"], answers.moment(), false);
        let given = |key: &str, seconds| {
            answers
                .get(key.as_bytes(), start() + Duration::from_secs(seconds))
                .is_some()
        };
        assert!(
            given("a", 0) && given("a", 3539) && !given("a", 3540),
            "a minute before its end"
        );
        assert!(
            given("b", 4) && !given("b", 5),
            "what was not issued may be issued next"
        );
        assert!(!given("c", 0));
    }

    #[test]
    fn one_asks_for_the_next_answer_from_the_middle_of_a_life() {
        let answers = Answers::new(1 << 20, None);
        keep(&answers, "a", &["1"], answers.moment(), true);
        let kept = answers.get(b"a", start()).unwrap();
        let half = start() + HOUR / 2;
        assert!(!kept.is_to_be_refreshed(start()));
        assert!(
            kept.is_to_be_refreshed(half) && !kept.is_to_be_refreshed(half),
            "one, not all"
        );
        kept.was_not_refreshed();
        assert!(kept.is_to_be_refreshed(half));
    }

    #[test]
    fn news_of_a_certificate_ends_its_answers_those_on_their_way_too() {
        let answers = Answers::new(1 << 20, None);
        let before = answers.moment();
        keep(&answers, "one", &["a1"], before, true);
        keep(&answers, "both", &["b2", "a1"], before, true);
        keep(&answers, "other", &["b2"], before, true);
        answers.changed("iss-local", "a1");
        let given = |key: &str| answers.get(key.as_bytes(), start()).is_some();
        assert_eq!(["one", "both", "other"].map(given), [false, false, true]);

        keep(&answers, "one", &["a1"], before, true);
        assert!(!given("one"), "it was asked for before the news");
        keep(&answers, "one", &["a1"], answers.moment(), true);
        assert!(given("one"));

        answers.changed("iss-other", "a1");
        assert!(given("one"), "another issuer's");
        let on_its_way = answers.moment();
        answers.all_changed();
        keep(&answers, "other", &["b2"], on_its_way, true);
        assert_eq!(["one", "both", "other"].map(given), [false; 3]);
    }

    #[test]
    fn a_flood_of_what_was_never_issued_displaces_nothing_and_takes_no_room() {
        let answers = Answers::new(64 << 20, None);
        keep(&answers, "a", &["1"], answers.moment(), true);
        for n in 0..50_000 {
            keep(&answers, &format!("flood {n}"), &["2"], answers.moment(), false);
        }
        let (count, octets) = answers.size();
        assert!(
            count < 4_000 && octets <= NEVER_ISSUED + 4_000,
            "{count} answers, {octets} octets"
        );
        assert!(answers.get(b"a", start()).is_some());
    }
}
