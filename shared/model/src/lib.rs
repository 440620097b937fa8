//! The words and rules of certctl: what things are called, which states they have, which moves are allowed.
//!
//! | module | holds |
//! |---|---|
//! | [`id`] | prefixed identifiers of everything that has one |
//! | [`time`] | the instant on the wire and in the database; the clock |
//! | [`name`] | DNS names, subject alternative names |
//! | [`serial`] | certificate serial numbers |
//! | [`key`] | key algorithms and sizes |
//! | [`certificate`] | the statuses of a managed certificate |
//! | [`discovery`] | what becomes of certificates found on hosts |
//! | [`explain`] | why something stands where it stands, and what happens next |
//! | [`group`] | which agents belong together |
//! | [`job`] | kinds, states and the edges between them |
//! | [`policy`] | rules that certificates are held against |
//! | [`profile`] | what may be issued |
//! | [`renewal`] | when a certificate is due |
//! | [`revocation`] | reason codes |
//! | [`connector`] | issuer and target types and their configurations |
//! | [`notice`] | kinds and channels of notifications |
//! | [`approval`] | which issuances people have to agree to |
//! | [`audit`] | who did what to which |
//! | [`bulk`] | one thing done to many certificates |
//! | [`scope`] | to which certificates a key or a role is limited |
//! | [`secret`] | a text that is never shown |
//! | [`text`] | text that people read, and names that look alike |
//!
//! Not here: input and output of any kind, the time of day, the environment, JSON shapes of the API (they are in
//! `contract`), SQL (it is in `store`).
#![warn(missing_docs)]

pub mod approval;
pub mod audit;
pub mod bulk;
pub mod certificate;
pub mod connector;
pub mod discovery;
pub mod explain;
pub mod group;
pub mod id;
pub mod job;
pub mod key;
pub mod name;
pub mod notice;
pub mod policy;
pub mod profile;
pub mod renewal;
pub mod revocation;
pub mod scope;
pub mod secret;
pub mod serial;
pub mod text;
pub mod time;
pub mod validation;
pub mod window;

/// Declares an enum whose variants have one published spelling each: JSON, SQL text, `Display` and `FromStr` agree.
#[macro_export]
macro_rules! words {
    ($(#[$meta:meta])* $vis:vis enum $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal $(| $alias:literal)*),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        $vis enum $name { $($(#[$doc])* $variant),+ }

        impl $name {
            /// Every word, in declaration order.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// The published spelling.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                $(if text.eq_ignore_ascii_case($text) $(|| text.eq_ignore_ascii_case($alias))* { return Ok($name::$variant); })+
                Err(format!("\"{}\" is not one of {}", text.escape_debug(), [$($text),+].join(", ")))
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "enum": [$($text),+] })
            }
        }

        #[cfg(feature = "sqlx")]
        $crate::as_text!($name);
    };
}

/// For each octet whether it is an ASCII letter or digit, or one of the others.
const fn letters_digits_and(others: &[u8]) -> [bool; 256] {
    let mut allowed = [false; 256];
    let mut octet = 0;
    while octet < 128u8 {
        allowed[octet as usize] = octet.is_ascii_alphanumeric();
        octet += 1;
    }
    let mut n = 0;
    while n < others.len() {
        allowed[others[n] as usize] = true;
        n += 1;
    }
    allowed
}

/// Stores a type in Postgres as the text of its `Display`, read back by `FromStr` or the function given.
#[cfg(feature = "sqlx")]
#[macro_export]
macro_rules! as_text {
    ($name:ty) => {
        $crate::as_text!($name, |text| Ok(text.parse()?));
    };
    ($name:ty, |$text:ident| $read:expr) => {
        impl sqlx::Type<sqlx::Postgres> for $name {
            fn type_info() -> sqlx::postgres::PgTypeInfo {
                <String as sqlx::Type<sqlx::Postgres>>::type_info()
            }

            fn compatible(ty: &sqlx::postgres::PgTypeInfo) -> bool {
                <String as sqlx::Type<sqlx::Postgres>>::compatible(ty)
            }
        }

        impl sqlx::postgres::PgHasArrayType for $name {
            fn array_type_info() -> sqlx::postgres::PgTypeInfo {
                <String as sqlx::postgres::PgHasArrayType>::array_type_info()
            }
        }

        impl<'q> sqlx::Encode<'q, sqlx::Postgres> for $name {
            fn encode_by_ref(
                &self,
                buf: &mut sqlx::postgres::PgArgumentBuffer,
            ) -> Result<sqlx::encode::IsNull, sqlx::error::BoxDynError> {
                <String as sqlx::Encode<sqlx::Postgres>>::encode_by_ref(&self.to_string(), buf)
            }
        }

        impl<'r> sqlx::Decode<'r, sqlx::Postgres> for $name {
            fn decode(value: sqlx::postgres::PgValueRef<'r>) -> Result<Self, sqlx::error::BoxDynError> {
                let $text = <&str as sqlx::Decode<sqlx::Postgres>>::decode(value)?;
                $read
            }
        }
    };
}
