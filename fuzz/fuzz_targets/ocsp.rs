//! OCSP requests: whatever is sent is read or refused, and what is read names certificates.
#![no_main]

use certctl_x509::ocsp;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(request) = ocsp::parse_request(data) {
        assert!(!request.cert_ids.is_empty(), "an answer has something to say");
        assert!(request.nonce.is_none_or(|nonce| (1..=128).contains(&nonce.len())));
        assert!(request.cert_ids.len() <= data.len() / 8, "a CertID takes room in the request");
    }
});
