//! Texts of serial numbers: whatever is sent is read or refused, and what is read has one spelling.
#![no_main]

use certctl_model::serial::Serial;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &str| {
    if let Ok(serial) = data.parse::<Serial>() {
        let text = serial.to_string();
        assert_eq!(text.parse::<Serial>().as_ref(), Ok(&serial));
        assert_eq!(data.to_ascii_uppercase().parse::<Serial>().as_ref(), Ok(&serial));
        let octets = serial.octets();
        assert!((1..=20).contains(&octets.len()));
        assert_eq!(Serial::from_octets(&octets).as_ref(), Ok(&serial));
    }
});
