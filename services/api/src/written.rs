//! Rows as the JSON of their type, written as they come.
//!
//! A list of a type that has [`Field`]s does not build its values: what the database gives is written where it belongs.
//! Where a value is needed after all, it is read from that JSON, so that there is one table of what a row holds.

use std::marker::PhantomData;

use certctl_contract::list::Page;
use certctl_model::time::Time;
use serde::{
    Serialize, Serializer,
    de::DeserializeOwned,
    ser::{Error, SerializeSeq},
};
use sqlx::{
    Column, Decode, Postgres, Row, Type,
    error::BoxDynError,
    postgres::{PgRow, PgTypeInfo, PgValueRef},
    types::Json,
};

use crate::{error::ApiError, listing::Cells};

/// A field of a type, and the column it is written from.
pub struct Field {
    name: &'static str,
    kind: Kind,
    when_null: WhenNull,
}

enum Kind {
    Text,
    Texts,
    Integer,
    Time,
    Json,
}

enum WhenNull {
    Omitted,
    Shown,
}

impl Field {
    const fn new(name: &'static str, kind: Kind) -> Self {
        Self {
            name,
            kind,
            when_null: WhenNull::Omitted,
        }
    }

    /// A text, or a value that is stored as one.
    pub const fn text(name: &'static str) -> Self {
        Self::new(name, Kind::Text)
    }

    /// An array of texts.
    pub const fn texts(name: &'static str) -> Self {
        Self::new(name, Kind::Texts)
    }

    /// An `integer`.
    pub const fn integer(name: &'static str) -> Self {
        Self::new(name, Kind::Integer)
    }

    /// An instant.
    pub const fn time(name: &'static str) -> Self {
        Self::new(name, Kind::Time)
    }

    /// JSON.
    pub const fn json(name: &'static str) -> Self {
        Self::new(name, Kind::Json)
    }

    /// The same, written as `null` when there is no value.
    pub const fn or_null(mut self) -> Self {
        self.when_null = WhenNull::Shown;
        self
    }
}

/// A row, to be written.
pub struct Shown<'r> {
    /// The row: its first columns are those of the fields.
    pub row: &'r PgRow,
    /// What it holds.
    pub fields: &'static [Field],
}

impl Shown<'_> {
    /// Writes it behind what is there.
    fn write(&self, out: &mut Vec<u8>) -> Result<(), sqlx::Error> {
        let mut cells = Cells::of(self.row);
        out.push(b'{');
        for (n, field) in self.fields.iter().enumerate() {
            debug_assert_eq!(self.row.column(n).name(), field.name);
            match field.kind {
                Kind::Text => field.write(out, cells.take::<Option<&str>>()?, json),
                Kind::Texts => field.write(out, cells.take::<Option<Texts<'_>>>()?, json),
                Kind::Integer => field.write(out, cells.take::<Option<i32>>()?, json),
                Kind::Time => field.write(out, cells.take::<Option<Time>>()?, json),
                Kind::Json => field.write(out, cells.take::<Option<JsonText<'_>>>()?, |out, text| {
                    out.extend_from_slice(text.0);
                    Ok(())
                }),
            }
            .map_err(|error| sqlx::Error::Decode(error.into()))?;
        }
        out.push(b'}');
        Ok(())
    }

    /// The value that the JSON of the row is.
    ///
    /// # Errors
    /// When the row does not have the columns of the fields, or what they hold is not of the type.
    pub fn read<T: DeserializeOwned>(self) -> Result<T, sqlx::Error> {
        let mut json = vec![];
        self.write(&mut json)?;
        serde_json::from_slice(&json).map_err(|error| sqlx::Error::Decode(error.into()))
    }
}

fn json(out: &mut Vec<u8>, value: impl Serialize) -> serde_json::Result<()> {
    serde_json::to_writer(out, &value)
}

impl Field {
    /// Writes it into an object. Its name is a word, and is not looked at again in every row.
    fn write<V>(
        &self,
        out: &mut Vec<u8>,
        value: Option<V>,
        write: impl FnOnce(&mut Vec<u8>, V) -> serde_json::Result<()>,
    ) -> serde_json::Result<()> {
        if value.is_none() && matches!(self.when_null, WhenNull::Omitted) {
            return Ok(());
        }
        if out.last() != Some(&b'{') {
            out.push(b',');
        }
        out.push(b'"');
        out.extend_from_slice(self.name.as_bytes());
        out.extend_from_slice(b"\":");
        match value {
            Some(value) => write(out, value),
            None => json(out, ()),
        }
    }
}

/// `jsonb`, which is JSON already.
struct JsonText<'r>(&'r [u8]);

impl Type<Postgres> for JsonText<'_> {
    fn type_info() -> PgTypeInfo {
        <Json<()> as Type<Postgres>>::type_info()
    }
}

impl<'r> Decode<'r, Postgres> for JsonText<'r> {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        match value.as_bytes()?.split_first() {
            // The version of its form.
            Some((1, text)) => Ok(Self(text)),
            _ => Err("not jsonb".into()),
        }
    }
}

/// An array of texts, read where it lies.
struct Texts<'r>(&'r [u8]);

impl Type<Postgres> for Texts<'_> {
    fn type_info() -> PgTypeInfo {
        <Vec<String> as Type<Postgres>>::type_info()
    }
}

impl<'r> Decode<'r, Postgres> for Texts<'r> {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        Ok(Self(value.as_bytes()?))
    }
}

impl Serialize for Texts<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (dimensions, mut rest) = word(self.0).ok_or(NO_ARRAY).map_err(S::Error::custom)?;
        let mut seq = serializer.serialize_seq(None)?;
        if dimensions > 0 {
            // Whether there are nulls, the type of the texts, how many they are, the number of the first.
            rest = rest.get(16..).unwrap_or_default();
            while let Some((length, text)) = word(rest) {
                let (text, others) = text
                    .split_at_checked(length as usize)
                    .ok_or(NO_ARRAY)
                    .map_err(S::Error::custom)?;
                seq.serialize_element(str::from_utf8(text).map_err(S::Error::custom)?)?;
                rest = others;
            }
        }
        seq.end()
    }
}

const NO_ARRAY: &str = "not an array of texts";

/// Takes four octets.
fn word(octets: &[u8]) -> Option<(u32, &[u8])> {
    let (word, rest) = octets.split_first_chunk()?;
    Some((u32::from_be_bytes(*word), rest))
}

/// A reply of type `R` that is written already.
pub struct Written<R> {
    /// JSON.
    pub octets: Vec<u8>,
    of: PhantomData<R>,
}

/// Room for a row: growing to the size of a page would copy it several times.
const ROOM: usize = 1024;
/// What a page begins with.
const ROWS: &[u8] = br#"{"data":["#;

/// Writes a page of rows.
///
/// # Errors
/// When the rows do not have the columns of the fields.
pub fn page<T>(page: Page<PgRow>, fields: &'static [Field]) -> Result<Written<Page<T>>, ApiError> {
    let Page {
        data: rows,
        total,
        page,
        per_page,
        page_size,
        next_cursor,
    } = page;
    let mut octets = Vec::with_capacity((rows.len() + 1) * ROOM);
    octets.extend_from_slice(ROWS);
    for (n, row) in rows.iter().enumerate() {
        if n > 0 {
            octets.push(b',');
        }
        Shown { row, fields }.write(&mut octets)?;
    }
    let frame = Page::<()> {
        data: vec![],
        total,
        page,
        per_page,
        page_size,
        next_cursor,
    };
    let frame = serde_json::to_vec(&frame).expect("numbers and a text are plain data");
    octets.extend_from_slice(frame.strip_prefix(ROWS).expect("the rows are first"));
    Ok(Written {
        octets,
        of: PhantomData,
    })
}
