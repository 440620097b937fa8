//! Revocation by whoever holds the key: open to everyone, because a signature by the key is all the right one needs.

use std::time::Duration;

use aws_lc_rs::hmac;
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use certctl_contract::key_compromise::*;
use certctl_model::{audit::Actor, key::KeyFingerprint, time::Time};
use certctl_x509::facts::CertificateFacts;

use super::blocked_keys;
use crate::{
    app::{Cx, Request, Routes},
    auth::random,
    error::ApiError,
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(challenge).on(report)
}

/// Long enough to carry a challenge to a machine that is not on the network, and a signature back.
const LIFETIME: Duration = Duration::from_secs(15 * 60);

/// What makes challenges: the same for every replica, so that nothing is kept of those that are given.
struct Challenges(hmac::Key);

impl Challenges {
    async fn of(cx: &Cx) -> Result<Self, ApiError> {
        let key: Vec<u8> = sqlx::query_scalar("SELECT key FROM challenge_keys")
            .fetch_one(cx.pool())
            .await?;
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }

    fn mac(&self, stated: &str) -> String {
        URL_SAFE_NO_PAD.encode(hmac::sign(&self.0, format!("{DOMAIN}\n{stated}").as_bytes()))
    }

    /// When it ends, in seconds since 1970; what nobody foresees; and that both are ours.
    fn give(&self, expires_at: Time, nonce: &str) -> String {
        let stated = format!("{}.{nonce}", expires_at.unix());
        format!("{stated}.{}", self.mac(&stated))
    }

    fn accept(&self, challenge: &str, now: Time) -> Result<(), ApiError> {
        let wrong = |why: &str| ApiError::invalid("challenge", format!("{why}; get another one"));
        let (stated, mac) = challenge.rsplit_once('.').ok_or_else(|| wrong("was not given here"))?;
        let mac = URL_SAFE_NO_PAD.decode(mac).map_err(|_| wrong("was not given here"))?;
        hmac::verify(&self.0, format!("{DOMAIN}\n{stated}").as_bytes(), &mac)
            .map_err(|_| wrong("was not given here"))?;
        let expires_at = stated.split_once('.').and_then(|(at, _)| at.parse().ok());
        match expires_at.map(Time::from_unix) {
            Some(expires_at) if expires_at > now => Ok(()),
            _ => Err(wrong("has expired")),
        }
    }
}

async fn challenge(cx: Cx, _: Request<GetKeyChallenge>) -> Result<KeyChallenge, ApiError> {
    let expires_at = (cx.now() + LIFETIME).whole_seconds();
    let nonce = URL_SAFE_NO_PAD.encode(random()?);
    Ok(KeyChallenge {
        challenge: Challenges::of(&cx).await?.give(expires_at, &nonce),
        expires_at,
    })
}

async fn report(cx: Cx, rq: Request<ReportKeyCompromise>) -> Result<KeyCompromise, ApiError> {
    let proof = rq.body;
    let signature = STANDARD
        .decode(proof.signature.trim())
        .map_err(|_| ApiError::invalid("signature", "is base64"))?;
    Challenges::of(&cx).await?.accept(&proof.challenge, cx.now())?;
    let facts = certificate(&cx, &proof).await?;
    let key: KeyFingerprint = facts
        .spki_sha256
        .parse()
        .map_err(|e| ApiError::internal(format!("{e}")))?;
    facts
        .verify_signed(&signed_octets(&proof.challenge, &key), &signature)
        .map_err(|why| ApiError::invalid("signature", why))?;
    let mut tx = cx.begin().await?;
    tx.act_for(Actor::user("key-holder"));
    // Anybody may repeat a report as often as the challenge is good: what was done is not done again.
    if let Some(bulk_id) = blocked_keys::swept(&mut tx, &key).await? {
        return Ok(KeyCompromise {
            spki_sha256: key,
            bulk_id,
        });
    }
    let bulk_id =
        blocked_keys::block_and_sweep(&mut tx, &key, "its holder showed that the private key is known").await?;
    tx.commit().await?;
    Ok(KeyCompromise {
        spki_sha256: key,
        bulk_id,
    })
}

/// The certificate a proof speaks of, which we issued.
async fn certificate(cx: &Cx, proof: &KeyProof) -> Result<CertificateFacts, ApiError> {
    let der: Option<Vec<u8>> = match (&proof.certificate_pem, &proof.issuer_id, &proof.serial_number) {
        (Some(pem), None, None) => {
            let unreadable = |why: String| ApiError::invalid("certificate_pem", why);
            let chain = CertificateFacts::parse_pem_chain(pem).map_err(|e| unreadable(e.to_string()))?;
            let [leaf] = <[CertificateFacts; 1]>::try_from(chain)
                .map_err(|_| unreadable("holds exactly one certificate".to_owned()))?;
            // By issuer and serial, as they are indexed: anybody may ask.
            sqlx::query_scalar(
                "SELECT l.der FROM authorities a
                   JOIN ledger l ON l.issuer_id = a.issuer_id AND l.serial_number = $1
                  WHERE l.der = $2",
            )
            .bind(&leaf.serial)
            .bind(&leaf.der)
            .fetch_optional(cx.pool())
            .await?
        }
        (None, Some(issuer), Some(serial)) => {
            sqlx::query_scalar("SELECT der FROM ledger WHERE issuer_id = $1 AND serial_number = $2 AND der IS NOT NULL")
                .bind(issuer)
                .bind(serial)
                .fetch_optional(cx.pool())
                .await?
        }
        _ => {
            return Err(ApiError::invalid(
                "certificate_pem",
                "or issuer_id and serial_number say which certificate: one of the two",
            ));
        }
    };
    let der = der.ok_or_else(|| {
        ApiError::new(
            certctl_contract::problem::Kind::NotFound,
            "no such certificate was issued here",
        )
    })?;
    CertificateFacts::parse_der(&der).map_err(|e| ApiError::internal(format!("a certificate of the ledger: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_accepted_until_it_expires_and_no_other_is() {
        let challenges = Challenges(hmac::Key::new(hmac::HMAC_SHA256, b"one"));
        let others = Challenges(hmac::Key::new(hmac::HMAC_SHA256, b"other"));
        let end = Time::from_unix(1_000);
        let given = challenges.give(end, "nonce");
        let before = Time::from_unix(999);
        assert!(challenges.accept(&given, before).is_ok());
        assert!(challenges.accept(&given, end).is_err());
        assert!(others.accept(&given, before).is_err());
        for changed in [
            "",
            ".",
            "1001.nonce.AAAA",
            &given.replace("1000", "9000"),
            &format!("{given}A"),
        ] {
            assert!(challenges.accept(changed, before).is_err(), "{changed}");
        }
    }
}
