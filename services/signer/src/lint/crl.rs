//! What a CRL must and must not say (RFC 5280 §5), asked of its octets as they pass on their way to the signature.
//!
//! A list has millions of entries, so nothing is kept but the entry that is being read and the serial number before it.

use certctl_model::time::Time;
use rasn_pkix::Extensions;

use super::{dotted, must};
use crate::{
    authority::Authority,
    der::{self, oid},
};

/// What this list in particular must say.
pub(crate) struct WantedList<'a> {
    /// Who signs it.
    pub(crate) authority: &'a Authority,
    /// Its number.
    pub(crate) number: i64,
    /// The number that it builds upon, if it is a delta.
    pub(crate) base: Option<i64>,
    /// Whether it speaks of some certificates only.
    pub(crate) is_partial: bool,
    /// When it was made.
    pub(crate) this_update: Time,
    /// When the next is due.
    pub(crate) next_update: Time,
}

/// A list that is read while it is written.
pub(crate) struct List<'a> {
    wanted: WantedList<'a>,
    at: At,
    /// What was not read yet: less than one value.
    unread: Vec<u8>,
    /// Octets of the whole that are still to come, once its length is known.
    left: Option<u64>,
    last_serial: Vec<u8>,
    this_update: Moment,
}

/// Which value comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Begin,
    Version,
    Algorithm,
    Issuer,
    ThisUpdate,
    NextUpdate,
    /// The header of the entries, or the extensions.
    Entries,
    /// An entry; how many octets of entries are to come.
    Entry(u64),
    Extensions,
    End,
}

/// Year to second as digits, so that a later one is a greater one.
type Moment = [u8; 14];

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 2;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const EXTENSIONS: u8 = 0xa0;

impl<'a> List<'a> {
    /// Begins with the first octet of a TBSCertList.
    pub(crate) fn new(wanted: WantedList<'a>) -> Self {
        Self {
            wanted,
            at: At::Begin,
            unread: Vec::new(),
            left: None,
            last_serial: Vec::new(),
            this_update: [0; 14],
        }
    }

    /// Reads on.
    ///
    /// # Errors
    /// The first rule the list breaks, with its section of RFC 5280.
    pub(crate) fn update(&mut self, octets: &[u8]) -> Result<(), String> {
        let mut unread = std::mem::take(&mut self.unread);
        let mut rest = match unread.is_empty() {
            true => octets,
            false => {
                unread.extend_from_slice(octets);
                &unread
            }
        };
        while let Some(read) = self.step(rest)? {
            rest = &rest[read..];
        }
        // Of what is signed here, no value but the list of entries is long.
        must(rest.len() <= 1 << 20, "a value in it has no end (5.1)")?;
        self.unread = rest.to_vec();
        Ok(())
    }

    /// Ends with the last octet.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub(crate) fn finish(self) -> Result<(), String> {
        must(
            self.at == At::End && self.left == Some(0) && self.unread.is_empty(),
            "it is no TBSCertList (5.1)",
        )
    }

    /// Reads one value, and returns how many octets it has; nothing when they are not all there.
    fn step(&mut self, octets: &[u8]) -> Result<Option<usize>, String> {
        let Some((tag, header, content)) = value(octets)? else {
            return Ok(None);
        };
        // Of these two only the header is read: what is in them follows.
        let opens = self.at == At::Begin || (self.at == At::Entries && tag == SEQUENCE);
        let whole = match opens {
            true => header,
            false => header + usize::try_from(content).map_err(|error| error.to_string())?,
        };
        let Some(read) = octets.get(..whole) else {
            return Ok(None);
        };
        if let Some(left) = &mut self.left {
            let size = if opens { header as u64 + content } else { whole as u64 };
            must(*left >= size, "a value is longer than what it is in (5.1)")?;
            *left -= whole as u64;
        }
        self.at = self.judge(tag, content, read, &read[header..])?;
        Ok(Some(whole))
    }

    fn judge(&mut self, tag: u8, length: u64, whole: &[u8], content: &[u8]) -> Result<At, String> {
        let is = |wanted: &[u8], otherwise: &str| must(whole == wanted, otherwise);
        let authority = self.wanted.authority;
        Ok(match self.at {
            At::Begin => {
                must(tag == SEQUENCE, "it is no TBSCertList (5.1)")?;
                self.left = Some(length);
                At::Version
            }
            At::Version => {
                is(&[INTEGER, 1, 1], "the version is not 2 (5.1.2.1)")?;
                At::Algorithm
            }
            At::Algorithm => {
                is(
                    &der::encode(&authority.algorithm()),
                    "the signature is of another kind (5.1.2.2)",
                )?;
                At::Issuer
            }
            At::Issuer => {
                let subject = &authority.certificate.subject_der;
                must(
                    whole == subject.as_slice() && length > 0,
                    "the issuer is not the authority's subject (5.1.2.3)",
                )?;
                At::ThisUpdate
            }
            At::ThisUpdate => {
                is(
                    &der::encode(&der::date(self.wanted.this_update)),
                    "thisUpdate is not when it was made (5.1.2.4)",
                )?;
                self.this_update = moment(tag, content)?;
                At::NextUpdate
            }
            At::NextUpdate => {
                is(
                    &der::encode(&der::date(self.wanted.next_update)),
                    "nextUpdate is not when the next is due (5.1.2.5)",
                )?;
                must(
                    moment(tag, content)? > self.this_update,
                    "it ends before it begins (5.1.2.5)",
                )?;
                At::Entries
            }
            At::Entries if tag == SEQUENCE => {
                must(length > 0, "a list of entries that is empty must be absent (5.1.2.6)")?;
                At::Entry(length)
            }
            At::Entry(left) => {
                self.entry(tag, content)?;
                match left.checked_sub(whole.len() as u64) {
                    Some(0) => At::Extensions,
                    Some(left) => At::Entry(left),
                    None => return Err("an entry is longer than the list of entries (5.1.2.6)".to_owned()),
                }
            }
            At::Entries | At::Extensions => {
                must(tag == EXTENSIONS, "its extensions are missing (5.1.2.7)")?;
                self.extensions(content)?;
                At::End
            }
            At::End => return Err(FOLLOWED.to_owned()),
        })
    }

    fn entry(&mut self, tag: u8, entry: &[u8]) -> Result<(), String> {
        must(tag == SEQUENCE, "an entry is no SEQUENCE (5.1.2.6)")?;
        let (tag, serial, rest) = next(entry)?;
        must(
            tag == INTEGER && is_serial(serial),
            "the serial number of an entry is none (5.1.2.6)",
        )?;
        let order = (self.last_serial.len(), self.last_serial.as_slice()).cmp(&(serial.len(), serial));
        must(order.is_lt(), "its entries are not in order, each once (5.1.2.6)")?;
        self.last_serial.clear();
        self.last_serial.extend_from_slice(serial);
        let (tag, date, rest) = next(rest)?;
        // When clocks differ it may be later than the list. A list that is not published for that helps nobody.
        moment(tag, date)?;
        if rest.is_empty() {
            return Ok(());
        }
        let (tag, mut extensions, rest) = next(rest)?;
        must(
            tag == SEQUENCE && !extensions.is_empty() && rest.is_empty(),
            "the extensions of an entry cannot be read (5.3)",
        )?;
        let mut seen = [false; 2];
        while !extensions.is_empty() {
            let (_, extension, others) = next(extensions)?;
            extensions = others;
            let (_, oid, rest) = next(extension)?;
            // A critical one would have a BOOLEAN here.
            let (tag, value, rest) = next(rest)?;
            must(
                tag == 4 && rest.is_empty(),
                "an extension of an entry is critical (5.3)",
            )?;
            let which = match oid {
                [0x55, 0x1d, 0x15] => {
                    self.reason(value)?;
                    0
                }
                [0x55, 0x1d, 0x18] => {
                    let (tag, date, rest) = next(value)?;
                    let readable = tag == GENERALIZED_TIME && rest.is_empty() && moment(tag, date).is_ok();
                    must(readable, "an invalidity date is no GeneralizedTime (5.3.2)")?;
                    1
                }
                _ => return Err("an entry has an extension few know (5.3)".to_owned()),
            };
            must(
                !std::mem::replace(&mut seen[which], true),
                "an extension of an entry stands twice (5.3)",
            )?;
        }
        Ok(())
    }

    fn reason(&self, value: &[u8]) -> Result<(), String> {
        let [0x0a, 1, code] = value else {
            return Err("a reason cannot be read (5.3.1)".to_owned());
        };
        match code {
            0 => Err("the reason unspecified must be left out (5.3.1)".to_owned()),
            8 => must(
                self.wanted.base.is_some(),
                "removeFromCRL stands in a list that is no delta (5.3.1)",
            ),
            1..=6 | 9 | 10 => Ok(()),
            _ => Err("a reason is none of the table (5.3.1)".to_owned()),
        }
    }

    fn extensions(&self, content: &[u8]) -> Result<(), String> {
        let all: Extensions =
            rasn::der::decode(content).map_err(|_| "its extensions cannot be read (5.2)".to_owned())?;
        let number = |number: i64| der::encode(&rasn::types::Integer::from(number));
        let mut seen: Vec<String> = Vec::new();
        for extension in all.iter() {
            let name = extension.extn_id.to_string();
            must(!seen.contains(&name), "an extension stands twice (5.2)")?;
            let critical = |wanted: bool, what: &str| {
                let word = if wanted { "" } else { "not " };
                must(
                    extension.critical == wanted,
                    &format!("{what} must {word}be critical (5.2)"),
                )
            };
            let value: &[u8] = &extension.extn_value;
            match name.as_str() {
                name if name == dotted(oid::AUTHORITY_KEY_ID) => {
                    critical(false, "authorityKeyIdentifier")?;
                    let own = der::authority_key_id(&self.wanted.authority.key_id);
                    must(
                        *value == *own.extn_value,
                        "authorityKeyIdentifier is not the authority's (5.2.1)",
                    )?;
                }
                name if name == dotted(oid::CRL_NUMBER) => {
                    critical(false, "cRLNumber")?;
                    must(value == number(self.wanted.number), "the number is not its own (5.2.3)")?;
                }
                name if name == dotted(oid::DELTA_CRL_INDICATOR) => {
                    critical(true, "deltaCRLIndicator")?;
                    let base = self.wanted.base.ok_or("it says that it is a delta (5.2.4)")?;
                    must(
                        base <= self.wanted.number,
                        "a delta has a lower number than what it builds upon (5.2.4)",
                    )?;
                    must(
                        value == number(base),
                        "the number that it builds upon is another (5.2.4)",
                    )?;
                }
                name if name == dotted(oid::ISSUING_DISTRIBUTION_POINT) => {
                    critical(true, "issuingDistributionPoint")?;
                    must(
                        self.wanted.is_partial,
                        "it says that it is of some certificates only (5.2.5)",
                    )?;
                    must(value.len() > 2, "issuingDistributionPoint says nothing (5.2.5)")?;
                }
                name if name == dotted(oid::FRESHEST_CRL) => {
                    critical(false, "freshestCRL")?;
                    must(self.wanted.base.is_none(), "a delta has no deltas (5.2.6)")?;
                }
                _ => critical(false, "an extension few know")?,
            }
            seen.push(name);
        }
        let has = |oid: &[u32]| seen.contains(&dotted(oid));
        must(has(oid::AUTHORITY_KEY_ID), "authorityKeyIdentifier is missing (5.2.1)")?;
        must(has(oid::CRL_NUMBER), "cRLNumber is missing (5.2.3)")?;
        must(
            has(oid::DELTA_CRL_INDICATOR) == self.wanted.base.is_some(),
            "deltaCRLIndicator is missing (5.2.4)",
        )?;
        must(
            has(oid::ISSUING_DISTRIBUTION_POINT) == self.wanted.is_partial,
            "issuingDistributionPoint is missing (5.2.5)",
        )
    }
}

const FOLLOWED: &str = "octets follow it (5.1)";

/// Tag, octets of the header and octets of the content of the value that stands first; nothing when its header is cut.
fn value(octets: &[u8]) -> Result<Option<(u8, usize, u64)>, String> {
    let [tag, first, rest @ ..] = octets else {
        return Ok(None);
    };
    let count = match first {
        short @ 0..0x80 => return Ok(Some((*tag, 2, u64::from(*short)))),
        long => usize::from(long & 0x7f),
    };
    must((1..=8).contains(&count), "a length is not definite (X.690 10.1)")?;
    let Some(length) = rest.get(..count) else {
        return Ok(None);
    };
    let length = length.iter().fold(0, |sum, octet| sum << 8 | u64::from(*octet));
    must(
        rest[0] != 0 && length >= 0x80,
        "a length is longer than needed (X.690 10.1)",
    )?;
    Ok(Some((*tag, 2 + count, length)))
}

/// The value that stands first, its content, and what follows.
fn next(octets: &[u8]) -> Result<(u8, &[u8], &[u8]), String> {
    let cut = || "an entry is cut off (5.1.2.6)".to_owned();
    let (tag, header, content) = value(octets)?.ok_or_else(cut)?;
    let end = header + usize::try_from(content).map_err(|error| error.to_string())?;
    let content = octets.get(header..end).ok_or_else(cut)?;
    Ok((tag, content, &octets[end..]))
}

/// Not negative, a number of at most 20 octets, and no more octets than are needed. Zero, and a twenty-first octet for the
/// sign, are no serials of ours, but authorities that were brought may have such certificates (§4.1.2.2).
fn is_serial(content: &[u8]) -> bool {
    match content {
        [] => false,
        [0] => true,
        [0, next, ..] => next & 0x80 != 0 && content.len() <= 21,
        [first, ..] => first & 0x80 == 0 && content.len() <= 20,
    }
}

/// Reads UTCTime until 2049 and GeneralizedTime otherwise, in whole seconds with a `Z` (§5.1.2.4).
fn moment(tag: u8, content: &[u8]) -> Result<Moment, String> {
    let wrong = || "a date is none that CRLs have (5.1.2.4)".to_owned();
    let [digits @ .., b'Z'] = content else {
        return Err(wrong());
    };
    let mut moment = [0; 14];
    match (tag, digits) {
        (UTC_TIME, [decade, _, ..]) if digits.len() == 12 => {
            let century = if *decade >= b'5' { b"19" } else { b"20" };
            moment[..2].copy_from_slice(century);
            moment[2..].copy_from_slice(digits);
        }
        (GENERALIZED_TIME, _) if digits.len() == 14 => moment.copy_from_slice(digits),
        _ => return Err(wrong()),
    }
    match digits.iter().all(u8::is_ascii_digit) {
        true => Ok(moment),
        false => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::tests::root;

    fn at() -> Time {
        Time::from_unix(1_800_000_000)
    }

    fn tlv(tag: u8, contents: &[&[u8]]) -> Vec<u8> {
        let content = contents.concat();
        let mut out = vec![tag];
        match content.len() {
            short @ 0..0x80 => out.push(short as u8),
            long @ 0x80..0x100 => out.extend([0x81, long as u8]),
            long => out.extend([0x82, (long >> 8) as u8, long as u8]),
        }
        [out, content].concat()
    }

    fn entry(serial: &[u8], at: Time, extensions: &[u8]) -> Vec<u8> {
        tlv(
            SEQUENCE,
            &[&tlv(INTEGER, &[serial]), &der::encode(&der::date(at)), extensions],
        )
    }

    /// Extensions of an entry: one with this object identifier and value.
    fn extended(oid: &[u8], value: &[u8]) -> Vec<u8> {
        tlv(SEQUENCE, &[&tlv(SEQUENCE, &[&tlv(6, &[oid]), &tlv(4, &[value])])])
    }

    const REASON: &[u8] = &[0x55, 0x1d, 0x15];
    const INVALID_FROM: &[u8] = &[0x55, 0x1d, 0x18];

    /// A list of these parts, and what is said of it as a full one, a delta upon 5, and a partial one.
    struct Parts {
        version: Vec<u8>,
        issuer: Option<Vec<u8>>,
        next_update: Time,
        entries: Vec<Vec<u8>>,
        extensions: Vec<rasn_pkix::Extension>,
        more: Vec<u8>,
    }

    impl Parts {
        fn found(&self, authority: &Authority, base: Option<i64>, is_partial: bool) -> String {
            let entries = match self.entries.is_empty() {
                true => vec![],
                false => tlv(SEQUENCE, &[&self.entries.concat()]),
            };
            let extensions = der::encode(&Extensions::from(self.extensions.clone()));
            let tbs = tlv(
                SEQUENCE,
                &[
                    &self.version,
                    &der::encode(&authority.algorithm()),
                    self.issuer.as_ref().unwrap_or(&authority.certificate.subject_der),
                    &der::encode(&der::date(at())),
                    &der::encode(&der::date(self.next_update)),
                    &entries,
                    &tlv(EXTENSIONS, &[&extensions]),
                ],
            );
            let tbs = [tbs, self.more.clone()].concat();
            let read = |size: usize| {
                let mut list = List::new(WantedList {
                    authority,
                    number: 7,
                    base,
                    is_partial,
                    this_update: at(),
                    next_update: at() + HOUR,
                });
                tbs.chunks(size).try_for_each(|octets| list.update(octets))?;
                list.finish()
            };
            let found = read(tbs.len());
            for size in [1, 2, 3, 64] {
                assert_eq!(read(size), found, "in pieces of {size}");
            }
            found.err().unwrap_or_default()
        }
    }

    const HOUR: Duration = Duration::from_secs(3600);

    fn parts(authority: &Authority) -> Parts {
        let number = |number: i64| der::encode(&rasn::types::Integer::from(number));
        Parts {
            version: vec![INTEGER, 1, 1],
            issuer: None,
            next_update: at() + HOUR,
            entries: vec![
                entry(&[5], at(), &[]),
                entry(&[0, 0x80], at() - HOUR, &extended(REASON, &[0x0a, 1, 1])),
                entry(&[7; 20], at(), &extended(INVALID_FROM, b"\x18\x0f20260102030405Z")),
            ],
            extensions: vec![
                der::authority_key_id(&authority.key_id),
                der::extension(oid::CRL_NUMBER, false, number(7)),
            ],
            more: vec![],
        }
    }

    #[test]
    fn a_list_that_keeps_the_rules_passes_in_pieces_of_any_size() {
        let authority = root();
        let all = parts(&authority);
        assert_eq!(all.found(&authority, None, false), "");
        let empty = Parts {
            entries: vec![],
            ..parts(&authority)
        };
        assert_eq!(empty.found(&authority, None, false), "");
        let many = Parts {
            entries: (1..=255_u8).map(|n| entry(&[1, n], at(), &[])).collect(),
            ..parts(&authority)
        };
        assert_eq!(many.found(&authority, None, false), "");
    }

    #[test]
    fn what_breaks_a_rule_of_lists_is_named_by_its_section() {
        let authority = root();
        type Change<'a> = &'a dyn Fn(&mut Parts);
        let one = |entry: Vec<u8>| move |parts: &mut Parts| parts.entries = vec![entry.clone()];
        let reason = |value: &'static [u8]| one(entry(&[5], at(), &extended(REASON, value)));
        let critical = tlv(
            SEQUENCE,
            &[&tlv(
                SEQUENCE,
                &[&tlv(6, &[REASON]), &[1, 1, 0xff], &tlv(4, &[&[0x0a, 1, 1]])],
            )],
        );
        let twice = tlv(
            SEQUENCE,
            &[
                &extended(REASON, &[0x0a, 1, 1])[2..],
                &extended(REASON, &[0x0a, 1, 1])[2..],
            ],
        );
        let number = |number: i64| der::encode(&rasn::types::Integer::from(number));
        let delta = |critical, base| der::extension(oid::DELTA_CRL_INDICATOR, critical, number(base));
        let cases: [(&str, Option<i64>, bool, Change<'_>); 23] = [
            ("5.1.2.1", None, false, &|parts| parts.version = vec![INTEGER, 1, 0]),
            ("5.1.2.3", None, false, &|parts| parts.issuer = Some(vec![SEQUENCE, 0])),
            ("5.1.2.5", None, false, &|parts| parts.next_update = at() + HOUR * 2),
            ("is none (5.1.2.6)", None, false, &one(entry(&[0x80], at(), &[]))),
            ("is none (5.1.2.6)", None, false, &one(entry(&[0, 1], at(), &[]))),
            ("is none (5.1.2.6)", None, false, &one(entry(&[7; 21], at(), &[]))),
            ("not in order", None, false, &|parts| parts.entries.swap(0, 1)),
            ("not in order", None, false, &|parts| {
                parts.entries[1] = parts.entries[0].clone()
            }),
            ("unspecified", None, false, &reason(&[0x0a, 1, 0])),
            ("none of the table", None, false, &reason(&[0x0a, 1, 7])),
            ("removeFromCRL", None, false, &reason(&[0x0a, 1, 8])),
            ("cannot be read (5.3.1)", None, false, &reason(&[2, 1, 1])),
            (
                "5.3.2",
                None,
                false,
                &one(entry(&[5], at(), &extended(INVALID_FROM, b"\x17\x0d260102030405Z"))),
            ),
            ("critical (5.3)", None, false, &one(entry(&[5], at(), &critical))),
            ("twice (5.3)", None, false, &one(entry(&[5], at(), &twice))),
            (
                "few know (5.3)",
                None,
                false,
                &one(entry(&[5], at(), &extended(&[0x2a, 3], &[5, 0]))),
            ),
            ("5.2.1", None, false, &|parts| drop(parts.extensions.remove(0))),
            ("5.2.3", None, false, &|parts| drop(parts.extensions.remove(1))),
            ("twice (5.2)", None, false, &|parts| {
                parts.extensions.push(parts.extensions[0].clone())
            }),
            ("says that it is a delta", None, false, &|parts| {
                parts.extensions.push(delta(true, 5))
            }),
            ("must be critical", Some(5), false, &|parts| {
                parts.extensions.push(delta(false, 5))
            }),
            ("5.2.4", Some(5), false, &|_| ()),
            ("longer than what it is in", None, false, &|parts| {
                parts.more = vec![5, 0]
            }),
        ];
        for (why, base, is_partial, change) in cases {
            let mut changed = parts(&authority);
            change(&mut changed);
            let found = changed.found(&authority, base, is_partial);
            assert!(found.contains(why), "{why}: {found}");
        }
        // And what is wanted of deltas and of shards is heard.
        let mut right = parts(&authority);
        right.entries = vec![entry(&[5], at(), &extended(REASON, &[0x0a, 1, 8]))];
        right.extensions.push(delta(true, 5));
        assert_eq!(right.found(&authority, Some(5), false), "");
        assert!(right.found(&authority, Some(6), false).contains("5.2.4"));
        let mut shard = parts(&authority);
        assert!(shard.found(&authority, None, true).contains("5.2.5"));
        let point = tlv(SEQUENCE, &[&[0x81, 1, 0xff]]);
        shard
            .extensions
            .push(der::extension(oid::ISSUING_DISTRIBUTION_POINT, true, point));
        assert_eq!(shard.found(&authority, None, true), "");
        assert!(shard.found(&authority, None, false).contains("5.2.5"));
    }
}
