//! OCSP answers that replicas share through Redis, so that each is signed once for all of them.
//!
//! As in memory, nothing is looked for and removed when something is revoked: each part of all serial numbers has a word
//! in Redis, which every replica that hears the news replaces, and an answer is stored with the words that stood when it
//! was asked for. All words stand in one hash: when Redis drops that, nothing is given any more. Whoever connects anew,
//! to Redis or to the database, replaces the word that all answers have.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use aws_lc_rs::digest;
use certctl_contract::signer::{OcspAnswer, OcspSigned};
use certctl_model::{id::IssuerId, serial::Serial, time::Time};
use certctl_runtime::tasks::Tasks;
use certctl_x509::ocsp::parse_request;
use redis::{RedisResult, aio::MultiplexedConnection};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

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
}

/// The answers in Redis.
pub struct Shelf {
    link: Arc<Link>,
    news: mpsc::UnboundedSender<String>,
    /// News that Redis does not have yet. Until then nothing is taken from it.
    untold: Arc<AtomicUsize>,
}

impl Shelf {
    /// Begins to pass news on.
    pub fn new(link: Arc<Link>, tasks: &Tasks) -> Self {
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
        Self { link, news, untold }
    }

    /// Hears that the status of one serial number has changed.
    pub(super) fn changed(&self, issuer: &str, serial: &str) {
        self.pass_on(part(issuer, serial));
    }

    /// Hears that anything may have changed.
    pub(super) fn all_changed(&self) {
        self.pass_on(ALL.to_owned());
    }

    fn pass_on(&self, field: String) {
        self.untold.fetch_add(1, SeqCst);
        if self.news.send(field).is_err() {
            // The service ends; nothing is taken from Redis any more.
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
        };
        for one in sought {
            let Some(one) = one else {
                looked.found.push(None);
                looked.places.push(None);
                continue;
            };
            let parts = words.by_ref().take(one.fields.len());
            let words: Words = std::iter::once(all.clone()).chain(parts).collect();
            let found = stored.next().flatten();
            let found = found.and_then(|text| serde_json::from_str::<Stored>(&text).ok());
            looked.found.push(
                found
                    .filter(|found| found.words == words && is_young(&found.answer, now))
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
                && let Ok(text) = serde_json::to_string(&Stored {
                    words,
                    answer: answer.clone(),
                })
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
    let life = answer.next_update - answer.this_update;
    now.unix() < answer.this_update + life / 2
}

/// What may be shared: what others may ask in the same octets.
fn sought(issuer: &IssuerId, der: &[u8]) -> Option<Sought> {
    let request = parse_request(der).ok().filter(|request| request.nonce.is_none())?;
    let serials: Option<Vec<Serial>> = request.cert_ids.into_iter().map(|id| id.serial).collect();
    let digest = digest::digest(&digest::SHA256, &[issuer.as_str().as_bytes(), b"\0", der].concat());
    Some(Sought {
        key: format!("certctl:ocsp:answer:{}", hex::encode(digest)),
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
