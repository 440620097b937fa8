//! PKCS #12 (RFC 7292) without empty parts: some readers take an empty SafeContents, which libraries write where a key
//! would be, for a broken file.

use aws_lc_rs::{digest, hmac};
use rasn::{
    AsnType, Decode, Decoder as _, Encode, Encoder as _,
    types::{Any, Integer, ObjectIdentifier, OctetString},
};
use rasn_pkix::AlgorithmIdentifier;

use crate::Der;

/// RFC 7292 §4
#[derive(AsnType, Decode, Encode)]
struct Pfx {
    version: Integer,
    auth_safe: ContentInfo,
    mac_data: MacData,
}

#[derive(AsnType, Decode, Encode)]
struct ContentInfo {
    content_type: ObjectIdentifier,
    #[rasn(tag(explicit(0)))]
    content: Any,
}

#[derive(AsnType, Decode, Encode)]
struct MacData {
    mac: DigestInfo,
    salt: OctetString,
    iterations: Integer,
}

#[derive(AsnType, Decode, Encode)]
struct DigestInfo {
    algorithm: AlgorithmIdentifier,
    digest: OctetString,
}

/// id-data (RFC 5652 §4)
const DATA: &[u32] = &[1, 2, 840, 113_549, 1, 7, 1];
const SHA256: &[u32] = &[2, 16, 840, 1, 101, 3, 4, 2, 1];

/// The file without its empty parts, with a new MAC. `password` is ASCII.
///
/// # Errors
/// When it is not a file with an HMAC-SHA-256 of this password.
pub fn without_empty_parts(der: &[u8], password: &str) -> Result<Der, &'static str> {
    const BROKEN: &str = "it is not PKCS #12 with an HMAC-SHA-256";
    let mut pfx: Pfx = rasn::der::decode(der).map_err(|_| BROKEN)?;
    let parts: OctetString = rasn::der::decode(pfx.auth_safe.content.as_bytes()).map_err(|_| BROKEN)?;
    let mut contents: Vec<ContentInfo> = rasn::der::decode(&parts).map_err(|_| BROKEN)?;
    let MacData { mac, salt, iterations } = &mut pfx.mac_data;
    let iterations = u32::try_from(&*iterations).map_err(|_| BROKEN)?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, &mac_key(password, salt, iterations));
    let is_sha256 = *mac.algorithm.algorithm == *SHA256;
    if !is_sha256 || hmac::verify(&key, &parts, &mac.digest).is_err() {
        return Err(BROKEN);
    }
    let empty = encoded(&OctetString::from_static(&[0x30, 0]));
    contents.retain(|part| *part.content_type != *DATA || part.content.as_bytes() != empty);
    let parts = encoded(&contents);
    mac.digest = OctetString::from(hmac::sign(&key, &parts).as_ref());
    pfx.auth_safe.content = Any::new(encoded(&OctetString::from(parts)));
    Ok(encoded(&pfx))
}

fn encoded(value: &impl Encode) -> Der {
    rasn::der::encode(value).expect("a structure of valid parts has an encoding")
}

/// The key of the MAC (RFC 7292 appendix B.2): as long as one digest, so the loop over blocks ends with the first.
fn mac_key(password: &str, salt: &[u8], iterations: u32) -> Der {
    const BLOCK: usize = 64;
    const MAC: u8 = 3;
    let whole_blocks = |octets: Vec<u8>| {
        let length = octets.len().div_ceil(BLOCK) * BLOCK;
        octets.into_iter().cycle().take(length).collect::<Vec<_>>()
    };
    let password = password.encode_utf16().chain([0]).flat_map(u16::to_be_bytes).collect();
    let mut block = [vec![MAC; BLOCK], whole_blocks(salt.to_vec()), whole_blocks(password)].concat();
    for _ in 0..iterations.max(1) {
        block = digest::digest(&digest::SHA256, &block).as_ref().to_vec();
    }
    block
}
