//! OCSP answers (RFC 6960), signed by a responder whose key lives in this process alone.

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::Context;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use certctl_contract::signer::{OcspAnswer, OcspQuestion, OcspSigned};
use certctl_model::{id::IssuerId, key::KeyFacts, serial::Serial, time::Time};
use certctl_store::{
    ledger,
    revocations::{self, Status},
};
use certctl_x509::{
    keys::KeyPair,
    ocsp::{self as wire, CertId, ErrorStatus, OcspRequest},
};
use rasn::{
    AsnType, Encode, Encoder as _,
    types::{Any, BitString, Integer, OctetString},
};
use rasn_ocsp::{
    CertStatus, OcspResponse, OcspResponseStatus, ResponderId, ResponseBytes, ResponseData, RevokedInfo, SingleResponse,
};
use rasn_pkix::{AlgorithmIdentifier, Extensions};
use sqlx::PgPool;
use tracing::{info, warn};

use crate::{
    Shared,
    authority::Authority,
    base64_text,
    der::{self, Contents, Usage, oid},
    error::{Error, Result},
    lint,
};

/// How long a responder's certificate lives. It carries no revocation (id-pkix-ocsp-nocheck), so not for long.
const RESPONDER_LIFE: Duration = Duration::from_secs(24 * 3600);

/// Each costs a look-up, and anyone may ask; clients ask for one, or for a chain.
const MOST_CERT_IDS: usize = 16;

/// Signs answers in the name of an authority (RFC 6960 §4.2.2.2).
pub(crate) struct Responder {
    key: KeyPair,
    key_hash: Vec<u8>,
    certificate_der: Vec<u8>,
    not_before: Time,
    not_after: Time,
    /// From when another is made: two thirds of its life.
    remade_at: Time,
}

/// Answers requests, each by itself. What cannot be answered truthfully gets an unsigned error (RFC 6960 §2.3), never a
/// guess.
pub(crate) async fn answer(shared: &Shared, questions: Vec<OcspQuestion>) -> Result<Vec<OcspAnswer>> {
    let mut answers: Vec<Option<OcspAnswer>> = vec![None; questions.len()];
    let mut asked: HashMap<IssuerId, Vec<Asked>> = HashMap::new();
    for (place, question) in questions.into_iter().enumerate() {
        let request = STANDARD
            .decode(&question.request)
            .map_err(|_| Error::Malformed("request is DER in base64".to_owned()))?;
        match wire::parse_request(&request) {
            Ok(request) if request.cert_ids.len() <= MOST_CERT_IDS => {
                let asked = asked.entry(question.issuer_id).or_default();
                asked.push(Asked { place, request });
            }
            // It is well-formed, and more than this responder answers (RFC 5019 §2.2.3).
            Ok(_) => answers[place] = Some(unsigned(ErrorStatus::Unauthorized)),
            Err(_) => answers[place] = Some(unsigned(ErrorStatus::MalformedRequest)),
        }
    }
    for (issuer, asked) in asked {
        let places: Vec<usize> = asked.iter().map(|asked| asked.place).collect();
        match of_issuer(shared, &issuer, asked).await {
            Ok(known) => known
                .into_iter()
                .for_each(|(place, answer)| answers[place] = Some(answer)),
            Err(error) => {
                let instead = instead(&issuer, error)?;
                places
                    .into_iter()
                    .for_each(|place| answers[place] = Some(instead.clone()));
            }
        }
    }
    let all: Option<Vec<_>> = answers.into_iter().collect();
    Ok(all.context("a question was left without an answer")?)
}

/// What is said when there is no status to tell.
fn instead(issuer: &IssuerId, error: Error) -> Result<OcspAnswer> {
    match error {
        Error::NotFound(_) => Ok(OcspAnswer::NoIssuer),
        Error::Store(error) => {
            warn!(issuer.id = %issuer, "OCSP answers \"try later\": {error}");
            Ok(unsigned(ErrorStatus::TryLater))
        }
        // Of one issuer among many; the others are answered.
        Error::NoAuthority(why) => {
            warn!(issuer.id = %issuer, "OCSP answers \"try later\": {why}");
            Ok(unsigned(ErrorStatus::TryLater))
        }
        Error::WrongState(_) => Ok(unsigned(ErrorStatus::Unauthorized)),
        error => Err(error),
    }
}

/// A request, and where its answer belongs.
struct Asked {
    place: usize,
    request: OcspRequest,
}

/// Answers in the name of one issuer.
async fn of_issuer(shared: &Shared, issuer: &IssuerId, asked: Vec<Asked>) -> Result<Vec<(usize, OcspAnswer)>> {
    let unauthorized = |asked: Vec<Asked>| {
        let answers = asked
            .into_iter()
            .map(|asked| (asked.place, unsigned(ErrorStatus::Unauthorized)));
        answers.collect()
    };
    // An issuer without an authority has signed nothing to ask about.
    let Some(authority) = shared.authorities.existing(issuer).await? else {
        return Ok(unauthorized(asked));
    };
    let ours = |asked: &Asked| asked.request.cert_ids.iter().all(|id| authority.ocsp_id.matches(id));
    let (ours, others): (Vec<Asked>, Vec<Asked>) = asked.into_iter().partition(ours);
    let mut answers: Vec<(usize, OcspAnswer)> = unauthorized(others);
    if ours.is_empty() {
        return Ok(answers);
    }
    let now = shared.clock.now().whole_seconds();
    let serials: Vec<Serial> = ours
        .iter()
        .flat_map(|asked| asked.request.cert_ids.iter().filter_map(|id| id.serial.clone()))
        .collect();
    let mut db = shared.pool.acquire().await?;
    let mut statuses = revocations::statuses(&mut db, issuer, &serials).await?.into_iter();
    drop(db);
    let mut told = Vec::with_capacity(ours.len());
    for asked in ours {
        let status = |id: &CertId| match &id.serial {
            Some(_) => statuses.next(),
            None => Some(Status::Unknown),
        };
        let known: Option<Vec<Status>> = asked.request.cert_ids.iter().map(status).collect();
        told.push((asked, known.context("a serial number was left without a status")?));
    }
    let responder = {
        let mut slot = authority.responder.lock().await;
        current(&mut slot, &authority, &shared.pool, now, shared.terms.backdate).await?
    };
    let next_update = (now + shared.ocsp_lifetime).min(responder.not_after).whole_seconds();
    let count = told.len() as u64;
    let mut signing = Vec::new();
    for half in halves(told) {
        let responder = responder.clone();
        signing.push(tokio::task::spawn_blocking(move || {
            let signed = half.into_iter().map(|(asked, statuses)| {
                let answer = respond(&responder, &asked.request, &statuses, now, next_update)?;
                Ok::<_, Error>((asked.place, OcspAnswer::Signed(answer)))
            });
            signed.collect::<Result<Vec<_>>>()
        }));
    }
    for half in signing {
        let half = half.await.context("signing OCSP answers was cut short")?;
        answers.extend(half?);
    }
    metrics::counter!("signer_signatures_total", "kind" => "ocsp", "issuer" => issuer.to_string()).increment(count);
    Ok(answers)
}

/// Many are signed on two processors; handing over a few costs more than signing them.
fn halves<T>(mut all: Vec<T>) -> Vec<Vec<T>> {
    const FEW: usize = 16;
    match all.len() {
        0..FEW => vec![all],
        many => {
            let rest = all.split_off(many / 2);
            vec![all, rest]
        }
    }
}

fn unsigned(status: ErrorStatus) -> OcspAnswer {
    OcspAnswer::Unsigned(base64_text(&wire::error_response(status)))
}

/// The responder there is, or a new one when it is due. One that is still valid goes on while no new one can be made.
async fn current(
    slot: &mut Option<Arc<Responder>>,
    authority: &Authority,
    pool: &PgPool,
    now: Time,
    backdate: Duration,
) -> Result<Arc<Responder>> {
    let is_due = slot
        .as_ref()
        .is_none_or(|responder| now >= responder.remade_at || now < responder.not_before);
    if is_due {
        match Responder::make(authority, pool, now, backdate).await {
            Ok(made) => *slot = Some(Arc::new(made)),
            Err(error)
                if slot
                    .as_ref()
                    .is_some_and(|old| old.not_before <= now && now < old.not_after) =>
            {
                warn!(issuer.id = %authority.issuer, "the OCSP responder cannot be remade yet: {error}");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(slot.clone().expect("made just now, or there before"))
}

impl Responder {
    async fn make(authority: &Authority, pool: &PgPool, now: Time, backdate: Duration) -> Result<Self> {
        authority.must_be_valid(now)?;
        let draft = Draft::new(authority, now, backdate)?;
        let entry = ledger::record(pool, &draft.entry, now).await?;
        let der = authority.sign(&entry.tbs_der)?;
        let der = ledger::sign(pool, &entry.issuer_id, &entry.serial_number, &der).await?;
        metrics::counter!("signer_signatures_total", "kind" => "responder", "issuer" => authority.issuer.to_string())
            .increment(1);
        let serial = &entry.serial_number;
        info!(issuer.id = %authority.issuer, serial = %serial, "issuer {} has OCSP responder {serial}", authority.issuer);
        Ok(draft.into_responder(der))
    }
}

/// A responder whose certificate is not signed yet.
struct Draft {
    key: KeyPair,
    key_hash: Vec<u8>,
    not_before: Time,
    entry: ledger::Entry,
}

impl Draft {
    fn new(authority: &Authority, now: Time, backdate: Duration) -> Result<Self> {
        let own = &authority.certificate;
        let not_before = (now - backdate).whole_seconds().max(own.not_before);
        let not_after = (now + RESPONDER_LIFE).min(authority.not_after()).whole_seconds();
        let key = KeyPair::generate(KeyFacts::P256)?;
        let key_hash = der::key_id(key.spki_der()).context("a public key of our own cannot be read")?;
        let serial: Serial = der::random_serial()?;
        let mut common_name = format!("OCSP Responder {}", authority.issuer);
        common_name.truncate(64);
        let subject = authority.subject_below(&common_name).map_err(|why| {
            Error::NoAuthority(format!(
                "the OCSP responder of issuer {} has no subject: {why}",
                authority.issuer
            ))
        })?;
        let contents = Contents {
            serial: &serial,
            algorithm: authority.algorithm(),
            issuer: authority.name.clone(),
            not_before,
            not_after,
            subject,
            spki_der: key.spki_der(),
            extensions: vec![
                der::key_usage(&[Usage::DigitalSignature]),
                der::extended_key_usage(vec![der::identifier(oid::OCSP_SIGNING)]),
                der::subject_key_id(&key_hash),
                der::authority_key_id(&authority.key_id),
                der::marker(oid::OCSP_NO_CHECK),
            ],
        };
        let tbs_der = contents.encode().context("a public key of our own cannot be read")?;
        let wanted = lint::Wanted {
            spki_der: key.spki_der(),
            key: key.facts(),
            names: &[],
            purposes: vec![der::identifier(oid::OCSP_SIGNING).to_string()],
            longest: None,
            publishes: false,
            no_rev_avail: false,
        };
        lint::certificate(&tbs_der, authority, &wanted)
            .map_err(|why| anyhow::anyhow!("the responder's certificate is not signed: {why}"))?;
        let entry = ledger::Entry {
            issuer_id: authority.issuer.clone(),
            job_id: format!("ocsp-responder:{serial}"),
            serial_number: serial,
            tbs_der,
            der: None,
            not_after,
            short_lived: false,
            shard: 0,
        };
        Ok(Self {
            key,
            key_hash,
            not_before,
            entry,
        })
    }

    fn into_responder(self, certificate_der: Vec<u8>) -> Responder {
        let not_after = self.entry.not_after;
        Responder {
            key: self.key,
            key_hash: self.key_hash,
            certificate_der,
            not_before: self.not_before,
            not_after,
            remade_at: self.not_before + not_after.since(self.not_before) * 2 / 3,
        }
    }
}

/// `BasicOCSPResponse` (RFC 6960 §4.2.1), over octets that are signed already.
#[derive(AsnType, Encode)]
struct Basic {
    tbs: Any,
    algorithm: AlgorithmIdentifier,
    signature: BitString,
    #[rasn(tag(explicit(0)))]
    certificates: Option<Vec<Any>>,
}

/// A signed answer.
fn respond(
    responder: &Responder,
    request: &OcspRequest,
    statuses: &[Status],
    now: Time,
    next_update: Time,
) -> Result<OcspSigned> {
    let single = |(id, status): (&CertId, &Status)| SingleResponse {
        cert_id: id.raw.clone(),
        cert_status: match status {
            Status::Good => CertStatus::Good,
            Status::Unknown => CertStatus::Unknown(()),
            Status::Revoked { at, reason } => CertStatus::Revoked(RevokedInfo {
                revocation_time: der::generalized(*at),
                revocation_reason: der::crl_reason(*reason),
            }),
        },
        this_update: der::generalized(now),
        next_update: Some(der::generalized(next_update)),
        single_extensions: None,
    };
    let tbs = der::encode(&ResponseData {
        version: Integer::from(0),
        responder_id: ResponderId::ByKey(OctetString::from(responder.key_hash.as_slice())),
        produced_at: der::generalized(now),
        responses: request.cert_ids.iter().zip(statuses).map(single).collect(),
        response_extensions: request
            .nonce
            .as_deref()
            .map(|nonce| Extensions::from(vec![wire::nonce_extension(nonce)])),
    });
    let asked: Vec<_> = request.cert_ids.iter().map(|id| &id.raw).collect();
    let wanted = lint::ocsp::WantedResponse {
        key_hash: &responder.key_hash,
        cert_ids: &asked,
        nonce: request.nonce.as_deref(),
        produced_at: now,
        not_after: responder.not_after,
    };
    lint::ocsp::response(&tbs, &wanted)
        .map_err(|why| Error::Internal(anyhow::anyhow!("the response that was built is not signed: {why}")))?;
    let signature = responder.key.sign(&tbs)?;
    let basic = Basic {
        tbs: Any::new(tbs),
        algorithm: responder.key.signature_algorithm(),
        signature: BitString::from_slice(&signature),
        certificates: Some(vec![Any::new(responder.certificate_der.clone())]),
    };
    let response = der::encode(&OcspResponse {
        status: OcspResponseStatus::Successful,
        bytes: Some(ResponseBytes {
            r#type: der::identifier(oid::OCSP_BASIC),
            response: OctetString::from(der::encode(&basic)),
        }),
    });
    Ok(OcspSigned {
        response: base64_text(&response),
        serials: request.cert_ids.iter().filter_map(|id| id.serial.clone()).collect(),
        issued: statuses.iter().all(|status| *status != Status::Unknown),
        nonce: request.nonce.is_some(),
        this_update: now.unix(),
        next_update: next_update.unix(),
    })
}
