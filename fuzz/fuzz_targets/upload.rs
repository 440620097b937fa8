//! Uploaded certificates and requests, PEM and DER: whatever is sent is read or refused, and what is read is read again.
#![no_main]

use certctl_x509::{csr::CertificationRequest, facts::CertificateFacts, pem};
use libfuzzer_sys::fuzz_target;

/// As much as an upload may have.
const LIMIT: usize = 16 << 20;

fuzz_target!(|data: &[u8]| {
    if let Ok(facts) = CertificateFacts::parse_der(data) {
        let again = CertificateFacts::parse_pem_chain(&facts.to_pem()).expect("what we write can be read");
        assert_eq!(again.len(), 1);
    }
    let _ = CertificationRequest::parse_der(data);
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = pem::decode_all(text, LIMIT);
        let _ = CertificateFacts::parse_pem_chain(text);
        let _ = CertificationRequest::parse_pem(text);
    }
});
