//! OCSP answers (RFC 6960), signed by a responder whose key lives in this process alone.

use std::time::Duration;

use anyhow::Context;
use certctl_contract::signer::OcspAnswer;
use certctl_model::{id::IssuerId, key::KeyFacts, serial::Serial, time::Time};
use certctl_store::{
    ledger,
    revocations::{self, Status},
};
use certctl_x509::{
    keys::KeyPair,
    name::common_name_to_name,
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
    authority::{self, Authority},
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

/// Answers a request. What cannot be answered truthfully gets an unsigned error (RFC 6960 §2.3), never a guess.
pub(crate) async fn answer(shared: &Shared, issuer: &IssuerId, request: &[u8]) -> Result<OcspAnswer> {
    let request = match wire::parse_request(request) {
        Ok(request) if request.cert_ids.len() <= MOST_CERT_IDS => request,
        _ => return Ok(unsigned(ErrorStatus::MalformedRequest)),
    };
    let answered = signed(shared, issuer, &request).await;
    match answered {
        Ok(answer) => Ok(answer),
        Err(Error::Store(error)) => {
            warn!(issuer.id = %issuer, "OCSP answers \"try later\": {error}");
            Ok(unsigned(ErrorStatus::TryLater))
        }
        Err(error) => Err(error),
    }
}

async fn signed(shared: &Shared, issuer: &IssuerId, request: &OcspRequest) -> Result<OcspAnswer> {
    // An issuer without an authority has signed nothing to ask about.
    let Some(authority) = shared.authorities.existing(issuer).await? else {
        return Ok(unsigned(ErrorStatus::Unauthorized));
    };
    if !request.cert_ids.iter().all(|id| authority.ocsp_id.matches(id)) {
        return Ok(unsigned(ErrorStatus::Unauthorized));
    }
    let now = shared.clock.now().whole_seconds();
    let mut responses = Vec::with_capacity(request.cert_ids.len());
    let mut db = shared.pool.acquire().await?;
    for id in &request.cert_ids {
        let status = match &id.serial {
            Some(serial) => revocations::status(&mut db, issuer, serial).await?,
            None => Status::Unknown,
        };
        responses.push((id, status));
    }
    drop(db);
    let mut responder = authority.responder.lock().await;
    let responder = current(&mut responder, &authority, &shared.pool, now, shared.terms.backdate).await?;
    let next_update = (now + shared.ocsp_lifetime).min(responder.not_after).whole_seconds();
    let response = respond(responder, &responses, request.nonce.as_deref(), now, next_update)?;
    metrics::counter!("signer_signatures_total", "kind" => "ocsp", "issuer" => issuer.to_string()).increment(1);
    Ok(OcspAnswer {
        response: base64_text(&response),
        max_age_seconds: match request.nonce {
            Some(_) => 0,
            None => next_update.seconds_since(now),
        },
    })
}

fn unsigned(status: ErrorStatus) -> OcspAnswer {
    OcspAnswer {
        response: base64_text(&wire::error_response(status)),
        max_age_seconds: 0,
    }
}

/// The responder there is, or a new one when it is due. One that is still valid goes on while no new one can be made.
async fn current<'a>(
    slot: &'a mut Option<Responder>,
    authority: &Authority,
    pool: &PgPool,
    now: Time,
    backdate: Duration,
) -> Result<&'a Responder> {
    let is_due = slot
        .as_ref()
        .is_none_or(|responder| now >= responder.remade_at || now < responder.not_before);
    if is_due {
        match Responder::make(authority, pool, now, backdate).await {
            Ok(made) => *slot = Some(made),
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
    Ok(slot.as_ref().expect("made just now, or there before"))
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
        let not_after = (now + RESPONDER_LIFE).min(own.not_after).whole_seconds();
        let key = KeyPair::generate(KeyFacts::P256)?;
        let key_hash = der::key_id(key.spki_der()).context("a public key of our own cannot be read")?;
        let serial: Serial = der::random_serial()?;
        let mut subject = format!("OCSP Responder {}", authority.issuer);
        subject.truncate(64);
        let contents = Contents {
            serial: &serial,
            algorithm: authority.algorithm(),
            issuer: authority.name.clone(),
            not_before,
            not_after,
            subject: common_name_to_name(&subject),
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

/// DER of a signed answer.
fn respond(
    responder: &Responder,
    responses: &[(&CertId, Status)],
    nonce: Option<&[u8]>,
    now: Time,
    next_update: Time,
) -> Result<Vec<u8>> {
    let single = |(id, status): &(&CertId, Status)| SingleResponse {
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
        responses: responses.iter().map(single).collect(),
        response_extensions: nonce.map(|nonce| Extensions::from(vec![wire::nonce_extension(nonce)])),
    });
    let signature = authority::signature(&responder.key, &tbs)?;
    let basic = Basic {
        tbs: Any::new(tbs),
        algorithm: responder.key.signature_algorithm(),
        signature: BitString::from_slice(&signature),
        certificates: Some(vec![Any::new(responder.certificate_der.clone())]),
    };
    Ok(der::encode(&OcspResponse {
        status: OcspResponseStatus::Successful,
        bytes: Some(ResponseBytes {
            r#type: der::identifier(oid::OCSP_BASIC),
            response: OctetString::from(der::encode(&basic)),
        }),
    }))
}
