//! Taking over the certificates of PEM files: read as a stream, sent in batches.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek},
    path::{Path, PathBuf},
    time::Duration,
};

use certctl_client::{Body, ClientError, retry::Backoff};
use certctl_contract::{catalogue, endpoint::Operation};
use certctl_x509::{facts::CertificateFacts, pem};
use clap::ArgMatches;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use crate::{args::Format, commands::Session, failure::Failure, output};

/// Certificates in one request.
const BATCH: usize = 500;
/// Text in one request, which the server takes up to four times.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// A certificate in PEM has a few KiB.
const MAX_BLOCK_BYTES: usize = 256 * 1024;
/// CA certificates that are kept to go with what they signed; there are a few hundred public ones.
const MAX_AUTHORITIES: usize = 10_000;
/// How often a batch is sent to a server that is away; sending it twice creates nothing twice.
const TRIES: u32 = 6;

/// What became of the certificates.
#[derive(Default)]
struct Tally {
    created: usize,
    duplicates: usize,
    rejected: usize,
    authorities: usize,
    keys: usize,
}

/// A certificate of a file.
struct Certificate {
    pem: String,
    subject: Vec<u8>,
    issuer: Vec<u8>,
    is_ca: bool,
    place: String,
}

/// Sends every certificate of the files that is not a CA's.
///
/// What cannot be taken over is said and counted; the rest goes on, unless the server is gone.
pub(crate) async fn run(session: &Session, matches: &ArgMatches) -> Result<(), Failure> {
    let files = matches.get_many::<PathBuf>("files").into_iter().flatten();
    let files: Vec<Source> = files.map(|path| Source::new(path)).collect();
    let operation = catalogue()
        .into_iter()
        .find(|o| o.path() == "/api/v1/certificates/import");
    let operation = operation.ok_or_else(|| Failure::Failed("this program knows no import of certificates".into()))?;
    let mut wishes = Map::new();
    for (flag, key) in [
        ("owner", "owner_id"),
        ("team", "team_id"),
        ("issuer", "issuer_id"),
        ("renewal-policy", "renewal_policy_id"),
        ("environment", "environment"),
    ] {
        if let Some(text) = matches.get_one::<String>(flag) {
            wishes.insert(key.to_owned(), json!(text));
        }
    }
    let (authorities, leaves, mut tally) = survey(&files);
    // Drawn on standard error, and only when that is a terminal.
    let bar = ProgressBar::new(leaves).with_style(
        ProgressStyle::with_template("{bar:40} {pos}/{len} {per_sec} {eta}").expect("the template is a constant"),
    );
    let mut sender = Sender {
        session,
        operation,
        wishes,
        authorities,
        bar,
    };
    let sent = sender.all(&files, &mut tally).await;
    sender.bar.finish_and_clear();
    let Tally {
        created,
        duplicates,
        rejected,
        authorities,
        keys,
    } = tally;
    let counts = json!({
        "created": created, "duplicates": duplicates, "rejected": rejected, "authorities": authorities, "keys": keys,
    });
    match session.lists_as() {
        Format::Json => output::json(&counts)?,
        Format::Table => output::line(&format!(
            "{created} created, {duplicates} there already, {rejected} not taken over; left out: {authorities} CA \
             certificates, {keys} private keys"
        ))?,
    }
    sent.inspect_err(|_| output::note("not all was sent; the same command goes on where this ended"))?;
    match rejected {
        0 => Ok(()),
        n if created + duplicates > 0 => Err(Failure::Partly(format!("{n} not taken over"))),
        n => Err(Failure::Failed(format!("{n} not taken over"))),
    }
}

/// Reads the files once: collects the CA certificates, counts the others, and says what cannot be read.
fn survey(files: &[Source]) -> (Authorities, u64, Tally) {
    let (mut authorities, mut leaves, mut tally) = (Authorities::default(), 0, Tally::default());
    for file in files {
        let before = leaves;
        let (mut found, mut bad) = (0, 0);
        read(file, |item| {
            found += 1;
            match item {
                Item::Certificate(ca) if ca.is_ca => {
                    tally.authorities += 1;
                    authorities.add(*ca);
                }
                Item::Certificate(_) => leaves += 1,
                Item::Key => tally.keys += 1,
                Item::Bad(why) => {
                    bad += 1;
                    output::note(&why);
                }
            }
            Ok::<_, std::convert::Infallible>(())
        })
        .unwrap_or_else(|never| match never {});
        if found == 0 && leaves == before {
            bad += 1;
            output::note(&format!("{}: has no certificate in PEM", file.name));
        }
        tally.rejected += bad;
    }
    (authorities, leaves, tally)
}

/// CA certificates by their subject.
#[derive(Default)]
struct Authorities {
    all: Vec<Certificate>,
    by_subject: HashMap<Vec<u8>, Vec<usize>>,
    known: HashSet<String>,
}

impl Authorities {
    fn add(&mut self, ca: Certificate) {
        if self.all.len() < MAX_AUTHORITIES && self.known.insert(ca.pem.clone()) {
            self.by_subject
                .entry(ca.subject.clone())
                .or_default()
                .push(self.all.len());
            self.all.push(ca);
        }
    }

    /// Those that lead from these certificates to their roots.
    fn above(&self, leaves: &[Certificate]) -> Vec<&Certificate> {
        let mut wanted: Vec<&[u8]> = leaves.iter().map(|leaf| leaf.issuer.as_slice()).collect();
        let (mut found, mut chosen) = (vec![], HashSet::new());
        while let Some(subject) = wanted.pop() {
            for n in self.by_subject.get(subject).into_iter().flatten() {
                if chosen.insert(*n) {
                    found.push(&self.all[*n]);
                    wanted.push(&self.all[*n].issuer);
                }
            }
        }
        found
    }
}

struct Sender<'a> {
    session: &'a Session,
    operation: Operation,
    wishes: Map<String, Value>,
    authorities: Authorities,
    bar: ProgressBar,
}

impl Sender<'_> {
    async fn all(&mut self, files: &[Source], tally: &mut Tally) -> Result<(), Failure> {
        for file in files {
            let mut blocks = match Blocks::open(file) {
                Ok(blocks) => blocks,
                // Said and counted when the files were surveyed.
                Err(_) => continue,
            };
            let (mut batch, mut size) = (vec![], 0);
            while let Some(item) = blocks.next() {
                let Item::Certificate(leaf) = item else {
                    continue;
                };
                if leaf.is_ca {
                    continue;
                }
                size += leaf.pem.len();
                batch.push(*leaf);
                if batch.len() >= BATCH || size >= BATCH_BYTES {
                    self.send(&batch, tally).await?;
                    batch.clear();
                    size = 0;
                }
            }
            if !batch.is_empty() {
                self.send(&batch, tally).await?;
            }
        }
        Ok(())
    }

    async fn send(&self, batch: &[Certificate], tally: &mut Tally) -> Result<(), Failure> {
        let all = batch.iter().chain(self.authorities.above(batch));
        let mut input = self.wishes.clone();
        input.insert("pem".into(), all.map(|c| c.pem.as_str()).collect::<String>().into());
        let answer = self.answer(input).await?;
        for (n, leaf) in batch.iter().enumerate() {
            let item = &answer["data"][n];
            match item["outcome"].as_str() {
                Some("created") => {
                    tally.created += 1;
                    let names = item["uncertifiable_names"].as_array().into_iter().flatten();
                    let names: Vec<&str> = names.filter_map(Value::as_str).collect();
                    if !names.is_empty() {
                        let kept = format!(
                            "{}: it is not renewed until its names are edited, because these cannot be certified: {}",
                            leaf.place,
                            names.join(", ")
                        );
                        self.bar.suspend(|| output::note(&kept));
                    }
                }
                Some("duplicate") => tally.duplicates += 1,
                // A certificate of an authority that does not say so.
                Some("chain") => tally.authorities += 1,
                _ => {
                    tally.rejected += 1;
                    let why = item["reason"].as_str().unwrap_or("the server gave no reason");
                    self.bar.suspend(|| output::note(&format!("{}: {why}", leaf.place)));
                }
            }
        }
        self.bar.inc(batch.len() as u64);
        Ok(())
    }

    async fn answer(&self, input: Map<String, Value>) -> Result<Value, Failure> {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
        for left in (0..TRIES).rev() {
            match self.session.client.call_json(&self.operation, input.clone()).await {
                Ok(reply) => match reply.body {
                    Body::Json(answer) => return Ok(answer),
                    _ => break,
                },
                // Nobody is there at all: whoever typed this should know at once.
                Err(error @ ClientError::Unreachable(_)) if self.bar.position() == 0 => return Err(error.into()),
                Err(error) if error.is_retryable() && left > 0 => tokio::time::sleep(backoff.next()).await,
                Err(error) => return Err(error.into()),
            }
        }
        Err(Failure::Failed(
            "the server's answer is not JSON; is the address right?".into(),
        ))
    }
}

/// What a file holds.
enum Item {
    Certificate(Box<Certificate>),
    /// A private key: it is not sent.
    Key,
    /// Something that cannot be read, and why.
    Bad(String),
}

/// Hands out what a file holds, one by one.
fn read<E>(file: &Source, mut each: impl FnMut(Item) -> Result<(), E>) -> Result<(), E> {
    match Blocks::open(file) {
        Ok(mut blocks) => {
            while let Some(item) = blocks.next() {
                each(item)?;
            }
            Ok(())
        }
        Err(why) => each(Item::Bad(format!("{}: {why}", file.name))),
    }
}

/// A file that is read twice: once for what it holds, once to send it.
struct Source {
    name: String,
    origin: Result<Origin, String>,
}

enum Origin {
    Path(PathBuf),
    /// What came through a pipe, which can be read once.
    Copy(File),
}

impl Source {
    fn new(path: &Path) -> Self {
        let origin = || {
            let mut file = File::open(path)?;
            if file.metadata()?.is_file() {
                return Ok(Origin::Path(path.to_owned()));
            }
            let mut copy = tempfile::tempfile()?;
            io::copy(&mut file, &mut copy)?;
            Ok(Origin::Copy(copy))
        };
        Self {
            name: path.display().to_string(),
            origin: origin().map_err(|error: io::Error| error.to_string()),
        }
    }

    fn open(&self) -> io::Result<File> {
        match &self.origin {
            Ok(Origin::Path(path)) => File::open(path),
            Ok(Origin::Copy(copy)) => {
                let mut copy = copy.try_clone()?;
                copy.rewind()?;
                Ok(copy)
            }
            Err(why) => Err(io::Error::other(why.clone())),
        }
    }
}

/// The PEM blocks of a file, one in memory at a time.
struct Blocks<R> {
    reader: R,
    name: String,
    parser: Option<pem::Parser>,
    found: VecDeque<pem::Found>,
}

impl Blocks<BufReader<File>> {
    fn open(file: &Source) -> io::Result<Self> {
        Ok(Self::new(BufReader::with_capacity(1 << 16, file.open()?), &file.name))
    }
}

impl<R: BufRead> Blocks<R> {
    fn new(reader: R, name: &str) -> Self {
        Self {
            reader,
            name: name.to_owned(),
            parser: Some(pem::Parser::new(MAX_BLOCK_BYTES)),
            found: VecDeque::new(),
        }
    }

    fn next(&mut self) -> Option<Item> {
        loop {
            if let Some(found) = self.found.pop_front() {
                if let Some(item) = self.item(found) {
                    return Some(item);
                }
                continue;
            }
            let parser = self.parser.as_mut()?;
            match next_line(&mut self.reader) {
                Ok(Some(line)) => parser.line(line.trim_end_matches(['\r', '\n']), |found| self.found.push_back(found)),
                Ok(None) => self.found.extend(self.parser.take()?.finish()),
                // What cannot be read further is reported once.
                Err(why) => {
                    self.parser = None;
                    return Some(Item::Bad(format!("{}: {why}", self.name)));
                }
            }
        }
    }

    fn item(&self, found: pem::Found) -> Option<Item> {
        let place = format!("{} line {}", self.name, found.line);
        let block = match found.block {
            Ok(block) => block,
            Err(why) => return Some(Item::Bad(format!("{place}: {why}"))),
        };
        match block.label.as_str() {
            "CERTIFICATE" | "X509 CERTIFICATE" => Some(certificate(&block.der, place)),
            "TRUSTED CERTIFICATE" => Some(Item::Bad(format!(
                "{place}: a block TRUSTED CERTIFICATE is not read; convert it with `openssl x509 -in FILE`"
            ))),
            "PKCS7" | "CMS" => Some(Item::Bad(format!(
                "{place}: a block {} is not read; convert it with `openssl pkcs7 -print_certs -in FILE`",
                block.label
            ))),
            label if label.ends_with("PRIVATE KEY") => Some(Item::Key),
            // Parameters, requests and CRLs hold no certificate.
            _ => None,
        }
    }
}

/// A line; one that is longer than a block comes in pieces.
fn next_line(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    match reader.take(MAX_BLOCK_BYTES as u64).read_until(b'\n', &mut bytes)? {
        0 => Ok(None),
        _ => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
    }
}

fn certificate(der: &[u8], place: String) -> Item {
    match CertificateFacts::inventory_der(der) {
        Ok(facts) => Item::Certificate(Box::new(Certificate {
            is_ca: facts.is_ca && !facts.is_self_signed_server(),
            pem: facts.to_pem(),
            subject: facts.subject_der,
            issuer: facts.issuer_der,
            place,
        })),
        Err(why) => Item::Bad(format!("{place}: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(text: &str) -> Vec<String> {
        let mut blocks = Blocks::new(text.as_bytes(), "x.pem");
        let mut said = vec![];
        while let Some(item) = blocks.next() {
            said.push(match item {
                Item::Certificate(certificate) => certificate.place.clone(),
                Item::Key => "key".to_owned(),
                Item::Bad(why) => why,
            });
        }
        said
    }

    #[test]
    fn blocks_are_read_one_by_one_and_keys_are_told_apart() {
        let good = rcgen::generate_simple_self_signed(vec!["a.test".to_owned()]).unwrap();
        let (pem, key) = (good.cert.pem(), good.signing_key.serialize_pem());
        let text = format!(
            "subject=/CN=a.test\n{pem}{key}-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n{pem}"
        );
        let said = items(&text.replace('\n', "\r\n"));
        assert_eq!(said.len(), 4, "{said:?}");
        assert_eq!((said[0].as_str(), said[1].as_str()), ("x.pem line 2", "key"));
        assert!(
            said[2].contains("cannot be read") || said[2].contains("not DER"),
            "{said:?}"
        );
        assert!(said[3].starts_with("x.pem line"));
        assert!(items("-----BEGIN CERTIFICATE-----\nMAA=")[0].contains("no matching END"));
        assert_eq!(items("hello"), Vec::<String>::new());
        let endless = format!("-----BEGIN CERTIFICATE-----\n{}", "A".repeat(MAX_BLOCK_BYTES * 3));
        assert!(items(&endless)[0].contains("at most"), "{:?}", items(&endless)[0]);
    }

    #[test]
    fn every_certificate_of_a_file_is_read_or_reported() {
        let pem = |name: &str| {
            let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
            made.cert.pem()
        };
        let (a, b) = (pem("a.test"), pem("b.test"));
        let glued = format!("{}{}", a.trim_end(), b);
        assert_eq!(items(&glued).len(), 2);
        assert_eq!(items(&format!("\u{feff}{a}\u{feff}{b}")).len(), 2);
        let trusted = a.replace("CERTIFICATE", "TRUSTED CERTIFICATE");
        assert!(items(&trusted)[0].contains("openssl x509"));
    }
}
