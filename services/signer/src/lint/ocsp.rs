//! What an OCSP response must and must not say (RFC 6960 §4.2), asked of its octets before they are signed.

use certctl_model::time::Time;
use rasn_ocsp::{CertId, ResponderId, ResponseData};

use super::must;

/// What this response in particular must say.
pub(crate) struct WantedResponse<'a> {
    /// SHA-1 of the responder's key.
    pub(crate) key_hash: &'a [u8],
    /// What was asked, in order.
    pub(crate) cert_ids: &'a [&'a CertId],
    /// The nonce that was sent.
    pub(crate) nonce: Option<&'a [u8]>,
    /// When it is made.
    pub(crate) produced_at: Time,
    /// When the responder's certificate ends.
    pub(crate) not_after: Time,
}

/// Checks a to-be-signed response.
///
/// # Errors
/// The first rule it breaks, with its section of RFC 6960.
pub(crate) fn response(tbs_der: &[u8], wanted: &WantedResponse<'_>) -> Result<(), String> {
    let data: ResponseData = rasn::der::decode(tbs_der).map_err(|_| "it is no ResponseData (4.2.1)".to_owned())?;
    must(
        data.version == rasn::types::Integer::from(0),
        "the version is not 1 (4.2.2.3)",
    )?;
    let own = matches!(&data.responder_id, ResponderId::ByKey(hash) if **hash == *wanted.key_hash);
    must(own, "the responder is not named by its key (4.2.2.3)")?;
    let now = wanted.produced_at.unix();
    must(
        data.produced_at.timestamp() == now,
        "producedAt is not when it is made (4.2.2.1)",
    )?;
    must(
        data.responses.len() == wanted.cert_ids.len() && !data.responses.is_empty(),
        "it does not answer each question once (4.2.2.3)",
    )?;
    for (single, asked) in data.responses.iter().zip(wanted.cert_ids) {
        must(single.cert_id == **asked, "it answers what was not asked (4.2.2.3)")?;
        let this_update = single.this_update.timestamp();
        must(this_update <= now, "thisUpdate is later than producedAt (4.2.2.1)")?;
        let next_update = single.next_update.as_ref().map(|at| at.timestamp());
        let next_update = next_update.ok_or("nextUpdate is missing (RFC 5019 2.2.4)")?;
        must(
            next_update > this_update,
            "nextUpdate is not later than thisUpdate (4.2.2.1)",
        )?;
        must(
            next_update <= wanted.not_after.unix(),
            "it holds longer than its responder's certificate (4.2.2.2)",
        )?;
        let extensions = single.single_extensions.iter().flat_map(|all| all.iter());
        must(
            extensions.into_iter().all(|one| !one.critical),
            "an extension is critical (4.4)",
        )?;
    }
    let extensions = data.response_extensions.iter().flat_map(|all| all.iter());
    let mut nonce = None;
    for extension in extensions {
        must(!extension.critical, "an extension is critical (4.4)")?;
        if *extension.extn_id == *NONCE {
            let octets: rasn::types::OctetString =
                rasn::der::decode(&extension.extn_value).map_err(|_| "the nonce cannot be read (4.4.1)".to_owned())?;
            must(nonce.replace(octets).is_none(), "the nonce stands twice (4.4.1)")?;
        }
    }
    must(
        nonce.as_deref() == wanted.nonce,
        "the nonce is not the one that was sent (4.4.1)",
    )
}

/// id-pkix-ocsp-nonce (RFC 9654 §2.1).
const NONCE: &[u32] = &[1, 3, 6, 1, 5, 5, 7, 48, 1, 2];
