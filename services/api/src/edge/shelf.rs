//! OCSP answers that replicas share through Redis, so that each is signed once for all of them.
//!
//! As in memory, nothing is looked for and removed when something is revoked: each part of all serial numbers has a word
//! in Redis, which every replica that hears the news replaces, and an answer is stored with the words that stood when it
//! was asked for. All words stand in one hash: when Redis drops that, nothing is given any more. Whoever connects anew,
//! to Redis or to the database, replaces the word that all answers have.
//!
//! Redis is not trusted: an entry carries an HMAC-SHA-256 over the name of the entry, its words and the response, with a
//! key that only the API can read from the database. An entry that does not verify counts as absent, and so does one that
//! was signed before the last news that this process heard of its serial numbers: a writer in Redis gains nothing from
//! putting back an older entry together with its words.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use anyhow::Context;
use aws_lc_rs::{digest, hmac};
use certctl_contract::signer::{OcspAnswer, OcspSigned};
use certctl_model::{
    id::IssuerId,
    serial::Serial,
    time::{Clock, Time},
};
use certctl_runtime::tasks::Tasks;
use certctl_x509::ocsp::parse_request;
use redis::{RedisResult, aio::MultiplexedConnection};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tokio::{
    sync::{OnceCell, mpsc},
    time::timeout,
};

use crate::link::{Greeting, Link};

/// The hash of all words.
const WORDS: &str = "certctl:ocsp:words";
/// The word of all answers.
const ALL: &str = "all";

/// The words that an answer is true under: that of all, then those of its serial numbers' parts.
type Words = Vec<Option<String>>;

/// An answer in Redis.
#[derive(Serialize, Deserialize)]
struct Stored {
    words: Words,
    answer: OcspSigned,
}

/// Authenticates entries. An entry is the MAC in hexadecimal, a colon and JSON of [`Stored`].
#[derive(Clone)]
struct Seal(hmac::Key);

impl Seal {
    fn new(key: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    fn close(&self, name: &str, stored: &Stored) -> serde_json::Result<String> {
        let json = serde_json::to_string(stored)?;
        Ok(format!(
            "{}:{json}",
            hex::encode(hmac::sign(&self.0, &sealed(name, &json)))
        ))
    }

    /// The entry, if it was closed under this name.
    fn open(&self, name: &str, text: &str) -> Option<Stored> {
        let (mac, json) = text.split_once(':')?;
        let mac = hex::decode(mac).ok()?;
        hmac::verify(&self.0, &sealed(name, json), &mac).ok()?;
        serde_json::from_str(json).ok()
    }
}

/// Names of entries have no NUL.
fn sealed(name: &str, json: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0", json.as_bytes()].concat()
}

/// A question that others may have asked: by what its answer is found, and under which words.
struct Sought {
    key: String,
    fields: Vec<String>,
}

/// What was found, and what is needed to put more.
pub(super) struct Looked {
    /// In the order of the questions.
    pub(super) found: Vec<Option<OcspSigned>>,
    places: Vec<Option<(String, Words)>>,
    seal: Seal,
}

/// The answers in Redis.
pub struct Shelf {
    link: Arc<Link>,
    news: mpsc::UnboundedSender<String>,
    /// News that Redis does not have yet. Until then nothing is taken from it.
    untold: Arc<AtomicUsize>,
    pool: PgPool,
    clock: Clock,
    seal: OnceCell<Seal>,
    forged: AtomicBool,
    heard: Heard,
}

/// When this process heard news last, in seconds since 1970: of each part, and of all.
struct Heard {
    parts: Box<[AtomicI64]>,
    all: AtomicI64,
}

impl Heard {
    fn new() -> Self {
        Self {
            parts: (0..=u16::MAX).map(|_| AtomicI64::new(i64::MIN)).collect(),
            all: AtomicI64::new(i64::MIN),
        }
    }

    fn of(&self, part: &str) -> Option<&AtomicI64> {
        self.parts.get(usize::from(u16::from_str_radix(part, 16).ok()?))
    }

    /// Whether a response about these parts was signed after the last news of them.
    fn admits(&self, parts: &[String], answer: &OcspSigned) -> bool {
        let heard = parts.iter().filter_map(|part| self.of(part)).chain([&self.all]);
        heard.into_iter().all(|heard| heard.load(SeqCst) <= answer.this_update)
    }
}

impl Shelf {
    /// Begins to pass news on. The key of entries is read from the database when it is needed first.
    pub fn new(link: Arc<Link>, pool: PgPool, clock: Clock, tasks: &Tasks) -> Self {
        let (news, mut heard) = mpsc::unbounded_channel::<String>();
        let untold = Arc::new(AtomicUsize::new(0));
        let (tells, left, stop) = (link.clone(), untold.clone(), tasks.token());
        tasks.spawn("ocsp news", async move {
            let mut fields = Vec::new();
            loop {
                let count = tokio::select! {
                    count = heard.recv_many(&mut fields, 1_000) => count,
                    () = stop.cancelled() => return,
                };
                if count == 0 {
                    return;
                }
                let words: BTreeMap<String, String> = fields.drain(..).map(|field| (field, word())).collect();
                tells.tell(async |link| replace(link, &words).await).await;
                left.fetch_sub(count, SeqCst);
            }
        });
        Self {
            link,
            news,
            untold,
            pool,
            clock,
            seal: OnceCell::new(),
            forged: AtomicBool::new(false),
            heard: Heard::new(),
        }
    }

    /// Hears that the status of one serial number has changed.
    pub(super) fn changed(&self, issuer: &str, serial: &str) {
        let part = part(issuer, serial);
        if let Some(heard) = self.heard.of(&part) {
            heard.fetch_max(self.clock.now().unix(), SeqCst);
        }
        self.pass_on(part);
    }

    /// Hears that anything may have changed.
    pub(super) fn all_changed(&self) {
        self.heard.all.fetch_max(self.clock.now().unix(), SeqCst);
        self.pass_on(ALL.to_owned());
    }

    fn pass_on(&self, field: String) {
        self.untold.fetch_add(1, SeqCst);
        if self.news.send(field).is_err() {
            // The service ends; nothing is taken from Redis any more.
        }
    }

    /// The key of entries; nothing while the database does not give it.
    async fn seal(&self) -> Option<Seal> {
        const PATIENCE: Duration = Duration::from_millis(500);
        let read = async || {
            let key = sqlx::query_scalar("SELECT key FROM ocsp_cache_key").fetch_one(&self.pool);
            let key: Vec<u8> = timeout(PATIENCE, key).await.context("no answer in time")??;
            anyhow::Ok(Seal::new(&key))
        };
        let seal = self.seal.get_or_try_init(read).await;
        let seal =
            seal.inspect_err(|error| tracing::debug!("the key of OCSP responses in Redis cannot be read: {error:#}"));
        seal.ok().cloned()
    }

    fn is_forged(&self, key: &str) {
        metrics::counter!("ocsp_cache_rejected_total").increment(1);
        if !self.forged.swap(true, SeqCst) {
            tracing::warn!(
                key,
                "Redis holds an OCSP response that no replica of this installation wrote; it is not used. \
                 Check who can write to Redis"
            );
        }
    }

    /// Looks for answers; nothing when Redis cannot be asked, or lacks news. The moment from which the answers count is
    /// to be taken before.
    pub(super) async fn look(&self, questions: &[(IssuerId, Box<[u8]>)], now: Time) -> Option<Looked> {
        if self.untold.load(SeqCst) > 0 {
            return None;
        }
        let sought: Vec<Option<Sought>> = questions.iter().map(|(issuer, der)| sought(issuer, der)).collect();
        let (mut fields, mut keys) = (vec![ALL.to_owned()], Vec::new());
        for one in sought.iter().flatten() {
            fields.extend_from_slice(&one.fields);
            keys.push(one.key.clone());
        }
        if keys.is_empty() {
            return None;
        }
        let seal = self.seal().await?;
        let (words, stored) = self.link.ask(async |link| read(link, &fields, &keys).await).await?;
        let mut words = words.into_iter();
        let all = words.next().flatten();
        if all.is_none() {
            let anew = BTreeMap::from([(ALL.to_owned(), word())]);
            self.link.tell(async |link| replace(link, &anew).await).await;
            return None;
        }
        let mut stored = stored.into_iter();
        let mut looked = Looked {
            found: Vec::with_capacity(sought.len()),
            places: Vec::with_capacity(sought.len()),
            seal,
        };
        for one in sought {
            let Some(one) = one else {
                looked.found.push(None);
                looked.places.push(None);
                continue;
            };
            let parts = words.by_ref().take(one.fields.len());
            let words: Words = std::iter::once(all.clone()).chain(parts).collect();
            let found = stored.next().flatten().and_then(|text| {
                let opened = looked.seal.open(&one.key, &text);
                if opened.is_none() {
                    self.is_forged(&one.key);
                }
                opened
            });
            looked.found.push(
                found
                    .filter(|found| found.words == words && is_young(&found.answer, now))
                    .filter(|found| self.heard.admits(&one.fields, &found.answer))
                    .map(|found| found.answer),
            );
            looked.places.push(Some((one.key, words)));
        }
        Some(looked)
    }

    /// Puts answers there that were asked for after [`look`](Self::look), in the order of its questions.
    pub(super) async fn put(&self, looked: Looked, answers: &[Option<OcspAnswer>], now: Time) {
        let mut pipe = redis::pipe();
        let mut count = 0;
        for (place, answer) in looked.places.into_iter().zip(answers) {
            if let (Some((key, words)), Some(OcspAnswer::Signed(answer))) = (place, answer)
                && answer.issued
                && !answer.nonce
                && let Ok(seconds @ 1..) = u64::try_from(answer.next_update - now.unix())
                && let Ok(text) = looked.seal.close(
                    &key,
                    &Stored {
                        words,
                        answer: answer.clone(),
                    },
                )
            {
                pipe.set_ex(key, text, seconds).ignore();
                count += 1;
            }
        }
        if count > 0 {
            // Who cannot put an answer there goes on without.
            let _put = self.link.ask(async |link| pipe.query_async::<()>(link).await).await;
        }
    }
}

/// From the middle of its life the next one is asked for.
fn is_young(answer: &OcspSigned, now: Time) -> bool {
    let life = answer.next_update.saturating_sub(answer.this_update);
    now.unix() < answer.this_update.saturating_add(life / 2).min(answer.next_update)
}

/// What may be shared: what others may ask in the same octets.
fn sought(issuer: &IssuerId, der: &[u8]) -> Option<Sought> {
    let request = parse_request(der).ok().filter(|request| request.nonce.is_none())?;
    let serials: Option<Vec<Serial>> = request.cert_ids.into_iter().map(|id| id.serial).collect();
    let digest = digest::digest(&digest::SHA256, &[issuer.as_str().as_bytes(), b"\0", der].concat());
    Some(Sought {
        key: format!("certctl:ocsp:response:{}", hex::encode(digest)),
        fields: serials?
            .iter()
            .map(|serial| part(issuer.as_str(), serial.as_str()))
            .collect(),
    })
}

/// One of 65,536 parts of all serial numbers; the same for every replica.
fn part(issuer: &str, serial: &str) -> String {
    let digest = digest::digest(&digest::SHA256, format!("{issuer}/{serial}").as_bytes());
    hex::encode(&digest.as_ref()[..2])
}

fn word() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

async fn read(
    link: &mut MultiplexedConnection,
    fields: &[String],
    keys: &[String],
) -> RedisResult<(Words, Vec<Option<String>>)> {
    let mut pipe = redis::pipe();
    pipe.cmd("HMGET").arg(WORDS).arg(fields).cmd("MGET").arg(keys);
    pipe.query_async(link).await
}

async fn replace(link: &mut MultiplexedConnection, words: &BTreeMap<String, String>) -> RedisResult<()> {
    let mut call = redis::cmd("HSET");
    call.arg(WORDS);
    for (field, word) in words {
        call.arg(field).arg(word);
    }
    call.query_async::<()>(link).await
}

/// Whoever was not connected may have missed news, or failed to pass it on.
pub fn greeting() -> Greeting {
    Box::new(|mut link| Box::pin(async move { replace(&mut link, &BTreeMap::from([(ALL.to_owned(), word())])).await }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored() -> Stored {
        Stored {
            words: vec![Some("word".to_owned()), None],
            answer: OcspSigned {
                response: "AAAA".to_owned(),
                serials: vec!["a1".parse().unwrap()],
                issued: true,
                nonce: false,
                this_update: 1_000,
                next_update: 4_600,
            },
        }
    }

    #[test]
    fn an_entry_opens_only_unchanged_under_its_name_and_key() {
        let seal = Seal::new(&[7; 32]);
        let text = seal.close("a", &stored()).unwrap();
        let opened = seal.open("a", &text).unwrap();
        assert_eq!((opened.words, opened.answer.next_update), (stored().words, 4_600));
        assert!(seal.open("b", &text).is_none(), "another name");
        assert!(Seal::new(&[8; 32]).open("a", &text).is_none(), "another key");
        for (old, new) in [("4600", "9999"), ("word", "wore"), ("AAAA", "AAAB"), ("a1", "a2")] {
            assert!(
                text.contains(old) && seal.open("a", &text.replace(old, new)).is_none(),
                "{old}"
            );
        }
        let (_, json) = text.split_once(':').unwrap();
        for text in [json, "", ":", "00:{}"] {
            assert!(seal.open("a", text).is_none(), "{text}");
        }
    }

    #[test]
    fn an_entry_signed_before_the_last_news_of_its_part_is_not_used() {
        let heard = Heard::new();
        let (one, other) = (part("iss-local", "a1"), part("iss-local", "a2"));
        let admits = |part: &String| heard.admits(std::slice::from_ref(part), &stored().answer);
        heard.of(&one).unwrap().store(1_000, SeqCst);
        assert!(admits(&one), "signed in the same second");
        heard.of(&one).unwrap().store(1_001, SeqCst);
        assert!(!admits(&one) && admits(&other));
        heard.all.store(1_001, SeqCst);
        assert!(!admits(&other));
    }

    #[test]
    fn an_entry_is_used_in_the_first_half_of_its_life() {
        let answer = stored().answer;
        let used = |at| is_young(&answer, Time::from_unix(at));
        assert!(used(1_000) && used(2_799) && !used(2_800) && !used(4_600));
        let odd = OcspSigned {
            next_update: i64::MAX,
            this_update: i64::MIN,
            ..answer
        };
        assert!(!is_young(&odd, Time::from_unix(1_800_000_000)), "no overflow");
    }
}
