//! CRLs and OCSP under the API's own paths. The public forms (RFC 5280 §4.2.1.13, RFC 6960 appendix A) are at
//! `/crl/{issuer}.crl`, `/ocsp/{issuer}` and `/ca/{issuer}.crt`.

use certctl_model::{id::IssuerId, revocation::RevocationReason, serial::Serial, time::Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::endpoint::{CrlDer, OcspDer};

crate::resource! {
    revocation "/api/v1";

    /// List every revocation of every issuer as JSON, oldest first.
    GET "/crl" GetCrl() [Needs(View)] -> 200 JsonCrl;
    /// Fetch the newest CRL of an issuer (DER).
    GET "/crl/{issuer_id}" GetDerCrl(path: IssuerPath,) [Open] -> 200 CrlDer;
    /// Ask for the status of a serial number; the answer is a signed OCSP response (DER).
    GET "/ocsp/{issuer_id}/{serial}" OcspCheck(path: SerialPath,) [Open] -> 200 OcspDer;
}

crate::path! {
    /// An issuer.
    pub struct IssuerPath {
        /// Which issuer.
        issuer_id: IssuerId,
    }
}

crate::path! {
    /// A serial number of an issuer.
    pub struct SerialPath {
        /// Which issuer.
        issuer_id: IssuerId,
        /// Serial number in hexadecimal, any spelling.
        serial: Serial,
    }
}

/// Every revocation.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct JsonCrl {
    /// Always 1.
    pub version: i32,
    /// The revocations.
    pub entries: Vec<JsonCrlEntry>,
    /// How many.
    pub total: i64,
    /// When this answer was made.
    pub generated_at: Time,
}

/// One revocation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct JsonCrlEntry {
    /// Serial number, lower-case hexadecimal.
    pub serial_number: Serial,
    /// When, in whole seconds.
    pub revocation_date: Time,
    /// Why.
    pub revocation_reason: RevocationReason,
    /// By which issuer it was issued.
    pub issuer_id: IssuerId,
}
