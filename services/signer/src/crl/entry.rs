//! Entries of `revokedCertificates` (RFC 5280 §5.1.2.6), written one after the other.
//!
//! A list has millions of them, so they are written by hand rather than built and encoded: octets to the end of a
//! buffer, nothing else. What a library writes for the same entries is compared in the tests.

use certctl_model::{revocation::RevocationReason, time::Time};
use certctl_store::crls;

/// The most octets that an entry has: two of its own, a serial number, a date, a reason and an invalidity date.
pub(super) const LONGEST: usize = 2 + 23 + 17 + 2 + 12 + 26;

/// `removeFromCRL` (RFC 5280 §5.3.1).
const REMOVE_FROM_CRL: u8 = 8;

/// Writes entries in ascending order of their numbers.
#[derive(Default)]
pub(super) struct Writer {
    /// What was written and not taken.
    pub(super) octets: Vec<u8>,
    /// How many there are.
    pub(super) count: i64,
    last: Option<Serial>,
}

impl Writer {
    /// Writes an entry.
    ///
    /// # Errors
    /// What is wrong with it, for a log: it is in the database in a form that no CRL has.
    pub(super) fn write(&mut self, entry: &crls::Entry<'_>) -> Result<(), String> {
        let wrong = |what: &str| format!("the revocation of {} {what}", entry.serial_number.escape_debug());
        let serial = Serial::parse(entry.serial_number).ok_or_else(|| wrong("has no serial number"))?;
        if self.last.as_ref().is_some_and(|last| *last >= serial) {
            return Err(wrong("is not in the order of serial numbers"));
        }
        let reason: RevocationReason = entry.reason.parse().map_err(|_| wrong("has no reason"))?;
        let code = match entry.released {
            true => REMOVE_FROM_CRL,
            false => reason.code(),
        };
        self.octets.reserve(LONGEST);
        let at = self.begin(0x30);
        self.integer(&serial);
        self.date(entry.revoked_at);
        // §5.3.1: `unspecified` is not written.
        if code != 0 || entry.invalidity_date.is_some() {
            let extensions = self.begin(0x30);
            if code != 0 {
                // reasonCode, an ENUMERATED within an OCTET STRING
                self.octets
                    .extend([0x30, 10, 0x06, 3, 0x55, 0x1d, 0x15, 0x04, 3, 0x0a, 1, code]);
            }
            if let Some(date) = entry.invalidity_date {
                // §5.3.2: invalidityDate, always a GeneralizedTime
                self.octets.extend([0x30, 24, 0x06, 3, 0x55, 0x1d, 0x18, 0x04, 17]);
                self.generalized(date);
            }
            self.end(extensions);
        }
        self.end(at);
        self.count += 1;
        self.last = Some(serial);
        Ok(())
    }

    /// What was written since the last time.
    pub(super) fn take(&mut self) -> Vec<u8> {
        let room = self.octets.capacity();
        std::mem::replace(&mut self.octets, Vec::with_capacity(room))
    }

    /// Begins a value whose length is not known.
    fn begin(&mut self, tag: u8) -> usize {
        self.octets.extend([tag, 0]);
        self.octets.len()
    }

    /// Writes the length of what began there.
    fn end(&mut self, begin: usize) {
        let length = self.octets.len() - begin;
        debug_assert!(length < 128, "an entry has at most {LONGEST} octets");
        self.octets[begin - 1] = length as u8;
    }

    fn integer(&mut self, serial: &Serial) {
        let octets = serial.octets();
        // A first bit would be a sign.
        let zero = octets[0] & 0x80 != 0;
        self.octets.extend([0x02, octets.len() as u8 + u8::from(zero)]);
        if zero {
            self.octets.push(0);
        }
        self.octets.extend_from_slice(octets);
    }

    /// UTCTime from 1950 until 2049, GeneralizedTime otherwise (§5.1.2.6).
    fn date(&mut self, at: i64) {
        const YEAR_1950: i64 = -631_152_000;
        const YEAR_2050: i64 = 2_524_608_000;
        match (YEAR_1950..YEAR_2050).contains(&at) {
            true => {
                self.octets.extend([0x17, 13]);
                self.digits(at, 2);
            }
            false => self.generalized(at),
        }
    }

    fn generalized(&mut self, at: i64) {
        self.octets.extend([0x18, 15]);
        self.digits(at, 0);
    }

    /// `YYYYMMDDHHMMSSZ`, without the first digits of the year.
    fn digits(&mut self, at: i64, without: usize) {
        let at = Time::from_unix(at).date_time();
        let (year, month, day) = at.to_calendar_date();
        let (hour, minute, second) = at.to_hms();
        let year = year as u16;
        let pairs = [
            (year / 100) as u8,
            (year % 100) as u8,
            month as u8,
            day,
            hour,
            minute,
            second,
        ];
        for pair in &pairs[without / 2..] {
            self.octets.extend([b'0' + pair / 10, b'0' + pair % 10]);
        }
        self.octets.push(b'Z');
    }
}

/// A serial number: its octets without leading zeros, at the end of the array. Compares as the number does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Serial([u8; 20]);

impl Serial {
    fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.is_empty() || digits.len() > 40 || (digits[0] == b'0' && digits.len() > 1) {
            return None;
        }
        let mut octets = [0; 20];
        let mut digits = digits.iter().rev();
        for octet in octets.iter_mut().rev() {
            let Some(low) = digits.next() else { break };
            *octet = digit(*low)? | digits.next().map_or(Some(0), |high| digit(*high))? << 4;
        }
        Some(Self(octets))
    }

    /// At least one octet.
    fn octets(&self) -> &[u8] {
        let zeros = self.0.iter().take_while(|octet| **octet == 0).count();
        &self.0[zeros.min(19)..]
    }
}

fn digit(text: u8) -> Option<u8> {
    match text {
        b'0'..=b'9' => Some(text - b'0'),
        b'a'..=b'f' => Some(text - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use certctl_x509::name::serial_to_integer;
    use rasn_pkix::{CrlReason, Extensions, RevokedCertificate};

    use super::*;
    use crate::der::{self, oid};

    fn entry<'a>(serial_number: &'a str, reason: &'a str) -> crls::Entry<'a> {
        crls::Entry {
            serial_number,
            revoked_at: 1_800_000_000,
            reason,
            invalidity_date: None,
            released: false,
        }
    }

    /// What rasn writes.
    fn expected(entry: &crls::Entry<'_>) -> Vec<u8> {
        let mut extensions = vec![];
        let reason = match entry.released {
            true => Some(CrlReason::RemoveFromCRL),
            false => der::crl_reason(entry.reason.parse().unwrap()),
        };
        if let Some(reason) = reason {
            extensions.push(der::extension(oid::REASON_CODE, false, der::encode(&reason)));
        }
        if let Some(at) = entry.invalidity_date {
            let date = der::encode(&der::generalized(Time::from_unix(at)));
            extensions.push(der::extension(oid::INVALIDITY_DATE, false, date));
        }
        der::encode(&RevokedCertificate {
            user_certificate: serial_to_integer(&entry.serial_number.parse().unwrap()),
            revocation_date: der::date(Time::from_unix(entry.revoked_at)),
            crl_entry_extensions: (!extensions.is_empty()).then(|| Extensions::from(extensions)),
        })
    }

    #[test]
    fn entries_are_those_that_a_library_writes() {
        let longest = "f".repeat(40);
        let serials = [
            "0",
            "1",
            "7f",
            "80",
            "ff",
            "100",
            "7fff",
            "8000",
            "123456789abcdef",
            &longest,
        ];
        let dates = [
            -631_152_000,
            0,
            946_684_799,
            951_782_400,
            1_800_000_000,
            2_524_607_999,
            2_524_608_000,
            4_107_542_400,
            253_402_300_799,
        ];
        let mut longest = 0;
        for reason in RevocationReason::ALL {
            for revoked_at in dates {
                for invalidity_date in [None, Some(1_700_000_000), Some(-1)] {
                    for released in [false, true] {
                        let mut writer = Writer::default();
                        let mut whole = vec![];
                        for serial_number in serials {
                            let entry = crls::Entry {
                                serial_number,
                                revoked_at,
                                reason: reason.as_str(),
                                invalidity_date,
                                released,
                            };
                            writer.write(&entry).unwrap();
                            let one = expected(&entry);
                            longest = longest.max(one.len());
                            whole.extend(one);
                            assert_eq!(writer.octets, whole, "{entry:?}");
                        }
                        assert_eq!(writer.count, serials.len() as i64);
                    }
                }
            }
        }
        assert!(longest <= LONGEST, "{longest}");
    }

    #[test]
    fn what_is_no_entry_is_refused_and_leaves_nothing() {
        for serial in ["", "0f", "F", "g", "-1", "5f:3a", &"f".repeat(41)] {
            let mut writer = Writer::default();
            assert!(writer.write(&entry(serial, "superseded")).is_err(), "{serial}");
            assert!(writer.octets.is_empty() && writer.count == 0);
        }
        let mut writer = Writer::default();
        assert!(writer.write(&entry("1", "because")).is_err());
        writer.write(&entry("ff", "superseded")).unwrap();
        for late in ["ff", "fe", "1"] {
            assert!(writer.write(&entry(late, "superseded")).is_err(), "{late}");
        }
        writer.write(&entry("100", "superseded")).unwrap();
        assert_eq!(writer.count, 2);
    }
}
