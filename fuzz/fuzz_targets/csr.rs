//! Certification requests: whatever is sent is read or refused. The key of a request that is read signed it, so an
//! invented one is only read when it is a seed's; what is said of names and keys is reached before that.
#![no_main]

use certctl_x509::{csr::CertificationRequest, pem};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(request) = CertificationRequest::parse_der(data) {
        let text = pem::encode("CERTIFICATE REQUEST", request.der());
        let again = CertificationRequest::parse_pem(&text).expect("what was read can be read again");
        assert_eq!(again, request);
        assert!(request.sans().len() <= data.len() / 2, "a name takes room in the request");
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = CertificationRequest::parse_pem(text);
    }
});
