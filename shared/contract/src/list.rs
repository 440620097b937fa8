//! What every list understands: filter, sort, pages by number or cursor, sparse fields.

use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::query::{Invalid, Param, Query, take_one};

/// Rows on a page when nobody says.
pub const DEFAULT_PER_PAGE: u32 = 50;
/// Rows on a page at most.
pub const MAX_PER_PAGE: u32 = 500;

/// The keys a list can be sorted by, in their published spelling.
pub trait SortKey: Copy + PartialEq + Send + Sync + 'static {
    /// All of them.
    fn all() -> &'static [Self];
    /// The spelling.
    fn as_str(self) -> &'static str;
}

/// Declares the sort keys of a list.
#[macro_export]
macro_rules! sort_keys {
    ($(#[$meta:meta])* pub enum $name:ident { $($variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $(#[doc = concat!("By `", $text, "`.")] $variant),+ }

        impl $crate::list::SortKey for $name {
            fn all() -> &'static [Self] {
                &[$($name::$variant),+]
            }

            fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text),+ }
            }
        }
    };
}

/// A sort key and its direction; a leading `-` on the wire means descending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sort<S> {
    /// The key.
    pub key: S,
    /// Whether the greatest comes first.
    pub descending: bool,
}

/// The query of a list: what is common to all, and the filter of this one.
#[derive(Clone, Debug)]
pub struct List<F, S> {
    /// Page number from 1.
    pub page: Option<u32>,
    /// Rows on a page, 1 to 500.
    pub per_page: Option<u32>,
    /// Where the page before ended; switches to pages by cursor.
    pub cursor: Option<String>,
    /// Rows on a page when paging by cursor.
    pub page_size: Option<u32>,
    /// Order.
    pub sort: Option<Sort<S>>,
    /// Keys to keep of each row; empty for all.
    pub fields: Vec<String>,
    /// Which rows.
    pub filter: F,
}

impl<F: Default, S> Default for List<F, S> {
    fn default() -> Self {
        let (page, per_page, cursor, page_size, sort) = (None, None, None, None, None);
        Self {
            page,
            per_page,
            cursor,
            page_size,
            sort,
            fields: vec![],
            filter: F::default(),
        }
    }
}

impl<F, S> List<F, S> {
    /// Rows on a page.
    pub fn limit(&self) -> u32 {
        self.page_size
            .or(self.per_page)
            .unwrap_or(DEFAULT_PER_PAGE)
            .clamp(1, MAX_PER_PAGE)
    }
}

fn text_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string" })
}

fn size_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "minimum": 0, "maximum": u32::MAX, "default": 50 })
}

fn sort_schema<S: SortKey>(_: &mut SchemaGenerator) -> Schema {
    let words: Vec<String> = S::all()
        .iter()
        .flat_map(|k| [k.as_str().to_owned(), format!("-{}", k.as_str())])
        .collect();
    json_schema!({ "type": "string", "enum": words })
}

impl<F: Query, S: SortKey> Query for List<F, S> {
    fn params() -> Vec<Param> {
        let mut all = vec![
            Param {
                name: "page",
                doc: "Page number, from 1; 0 counts as 1.",
                schema: |_| json_schema!({ "type": "integer", "minimum": 0, "maximum": u32::MAX, "default": 1 }),
            },
            Param {
                name: "per_page",
                doc: "Rows on a page; more than 500 counts as 500, and 0 as 50.",
                schema: size_schema,
            },
            Param {
                name: "cursor",
                doc: "The `next_cursor` of the page before: continues after its last row, whatever was inserted meanwhile.",
                schema: text_schema,
            },
            Param {
                name: "page_size",
                doc: "Rows on a page when paging by cursor; more than 500 counts as 500.",
                schema: size_schema,
            },
            Param {
                name: "sort",
                doc: "Order; a leading `-` turns it round.",
                schema: sort_schema::<S>,
            },
            Param {
                name: "sort_desc",
                doc: "`true` turns the order of `sort` round.",
                schema: |_| json_schema!({ "type": "boolean" }),
            },
            Param {
                name: "fields",
                doc: "Keys to keep of each row, separated by commas.",
                schema: text_schema,
            },
        ];
        all.extend(F::params());
        all
    }

    fn take(pairs: &mut Vec<(String, String)>, invalid: &mut Vec<Invalid>) -> Self {
        let size = |name, pairs: &mut Vec<_>, invalid: &mut Vec<Invalid>| -> Option<u32> {
            // Earlier servers took 0 for what counts when nothing is said, and clients send it.
            take_one(name, pairs, invalid).filter(|n| *n > 0)
        };
        let page = size("page", pairs, invalid);
        let per_page = size("per_page", pairs, invalid);
        let page_size = size("page_size", pairs, invalid);
        let cursor = take_one("cursor", pairs, invalid);
        if cursor.is_some() && page.is_some() {
            invalid.push(Invalid::new("cursor", "goes with page_size, not with page"));
        }
        let turned: bool = take_one("sort_desc", pairs, invalid).unwrap_or(false);
        let sort = take_one::<String>("sort", pairs, invalid).and_then(|text| {
            let (name, descending) = text
                .strip_prefix('-')
                .map_or((text.as_str(), turned), |name| (name, true));
            let found = S::all().iter().find(|k| k.as_str() == name);
            if found.is_none() {
                let keys: Vec<&str> = S::all().iter().map(|k| k.as_str()).collect();
                invalid.push(Invalid::new(
                    "sort",
                    format!("is one of {}, each also with a leading '-'", keys.join(", ")),
                ));
            }
            found.map(|key| Sort { key: *key, descending })
        });
        let fields = take_one::<String>("fields", pairs, invalid)
            .map(|text| {
                text.split(',')
                    .map(|f| f.trim().to_owned())
                    .filter(|f| !f.is_empty())
                    .collect()
            })
            .unwrap_or_default();
        Self {
            page,
            per_page,
            cursor,
            page_size,
            sort,
            fields,
            filter: F::take(pairs, invalid),
        }
    }

    fn pairs(&self, out: &mut Vec<(&'static str, String)>) {
        let mut set = |name, value: Option<String>| out.extend(value.map(|v| (name, v)));
        set("page", self.page.map(|n| n.to_string()));
        set("per_page", self.per_page.map(|n| n.to_string()));
        set("cursor", self.cursor.clone());
        set("page_size", self.page_size.map(|n| n.to_string()));
        set(
            "sort",
            self.sort
                .map(|s| format!("{}{}", if s.descending { "-" } else { "" }, s.key.as_str())),
        );
        set("fields", (!self.fields.is_empty()).then(|| self.fields.join(",")));
        self.filter.pairs(out);
    }

    fn fields(&self) -> &[String] {
        &self.fields
    }
}

/// One page of a list.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Page<T> {
    /// The rows.
    pub data: Vec<T>,
    /// Rows that match the filter, on all pages.
    pub total: i64,
    /// The page's number; absent when paging by cursor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<u32>,
    /// Rows on a page; absent when paging by cursor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_page: Option<u32>,
    /// Rows on a page when paging by cursor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_size: Option<u32>,
    /// Give it back as `cursor` for the page that follows; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

impl<T> Page<T> {
    /// The same page, its rows borrowed.
    pub fn as_ref(&self) -> Page<&T> {
        Page {
            data: self.data.iter().collect(),
            total: self.total,
            page: self.page,
            per_page: self.per_page,
            page_size: self.page_size,
            next_cursor: self.next_cursor.clone(),
        }
    }

    /// The same page of other rows.
    ///
    /// # Errors
    /// The first that `change` gives.
    pub fn try_map<U, E>(self, change: impl FnMut(T) -> Result<U, E>) -> Result<Page<U>, E> {
        Ok(Page {
            data: self.data.into_iter().map(change).collect::<Result<_, _>>()?,
            total: self.total,
            page: self.page,
            per_page: self.per_page,
            page_size: self.page_size,
            next_cursor: self.next_cursor,
        })
    }
}

/// What is searched for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search(String);

impl Search {
    /// Characters at least.
    pub const LEAST: usize = 3;
    /// Characters at most.
    pub const MOST: usize = 255;

    /// What names, serial numbers and fingerprints are like that are found: patterns of SQL's LIKE. Serial numbers and
    /// fingerprints are found by their beginning, in any spelling; by anything else they are not.
    pub fn patterns(&self) -> [String; 3] {
        let escaped: String = self
            .0
            .chars()
            .flat_map(|c| matches!(c, '%' | '_' | '\\').then_some('\\').into_iter().chain([c]))
            .collect();
        let digits = self.0.replace(':', "").to_ascii_lowercase();
        let digits = digits.strip_prefix("0x").unwrap_or(&digits);
        let prefix = |digits: &str| match digits.len() >= Self::LEAST && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            true => format!("{digits}%"),
            false => String::new(),
        };
        [
            format!("%{escaped}%"),
            prefix(digits.trim_start_matches('0')),
            prefix(digits),
        ]
    }
}

impl FromStr for Search {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (Self::LEAST..=Self::MOST).contains(&text.trim().chars().count()) {
            true => Ok(Self(text.trim().to_owned())),
            false => Err(format!("has {} to {} characters", Self::LEAST, Self::MOST)),
        }
    }
}

impl std::fmt::Display for Search {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl JsonSchema for Search {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Search".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": Self::LEAST, "maxLength": Self::MOST })
    }
}

/// Reads an optional field in which the empty text means "not given".
///
/// # Errors
/// When the text is neither empty nor a `T`.
pub fn blank<'de, D, T>(d: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: FromStr<Err: std::fmt::Display>,
{
    match Option::<String>::deserialize(d)?.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(serde::de::Error::custom),
    }
}

/// A reference that can be taken away: the empty text clears it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clearable<T>(pub Option<T>);

impl<'de, T: FromStr<Err: std::fmt::Display>> Deserialize<'de> for Clearable<T> {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        blank(d).map(Clearable)
    }
}

impl<T: ToString> Serialize for Clearable<T> {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0.as_ref().map(T::to_string).unwrap_or_default())
    }
}

impl<T: JsonSchema> JsonSchema for Clearable<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Clearable".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [generator.subschema_for::<T>(), { "const": "" }] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        certificates::{CertificateFilter, CertificateSort},
        query::parse,
    };

    type Certificates = List<CertificateFilter, CertificateSort>;

    fn pairs(text: &str) -> Vec<(String, String)> {
        text.split('&')
            .filter_map(|p| p.split_once('='))
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .collect()
    }

    #[test]
    fn a_query_survives_being_written_and_read() {
        let text = "page=2&per_page=10&sort=-notAfter&fields=id,status&status=Active&owner_id=o-1";
        let query = parse::<Certificates>(pairs(text)).unwrap();
        let mut out = vec![];
        query.pairs(&mut out);
        let again: Vec<String> = out.iter().map(|(n, v)| format!("{n}={v}")).collect();
        assert_eq!(again.join("&"), text);
        assert_eq!(query.limit(), 10);
    }

    #[test]
    fn a_search_is_taken_literally_and_serials_in_any_spelling() {
        let patterns = |text: &str| text.parse::<Search>().unwrap().patterns();
        assert_eq!(patterns("a_b%"), ["%a\\_b\\%%", "", ""].map(str::to_owned));
        assert_eq!(
            patterns("0x00:AB:cd"),
            ["%0x00:AB:cd%", "abcd%", "00abcd%"].map(str::to_owned)
        );
        assert_eq!(patterns("0ab"), ["%0ab%", "", "0ab%"].map(str::to_owned));
        assert!("ab".parse::<Search>().is_err());
    }

    #[test]
    fn zero_counts_as_nothing_said_and_an_underscore_is_ignored() {
        let query = parse::<Certificates>(pairs("page=0&per_page=0&page_size=0&_=1700000000")).unwrap();
        assert_eq!((query.page, query.per_page, query.page_size), (None, None, None));
        assert_eq!(query.limit(), DEFAULT_PER_PAGE);
        assert!(parse::<Certificates>(pairs("_x=1")).is_err(), "another name");
    }

    #[test]
    fn whatever_is_wrong_is_named() {
        for (text, field) in [
            ("statsu=Active", "statsu"),
            ("status=Actve", "status"),
            ("page=x", "page"),
            ("per_page=-1", "per_page"),
            ("sort=colour", "sort"),
            ("expires_before=tomorrow", "expires_before"),
            ("status=Active&status=Expired", "status"),
            ("cursor=abc&page=2", "cursor"),
            ("q=ab", "q"),
        ] {
            let invalid = parse::<Certificates>(pairs(text)).unwrap_err();
            assert_eq!(
                invalid.iter().map(|i| i.field.as_str()).collect::<Vec<_>>(),
                [field],
                "{text}"
            );
        }
    }
}
