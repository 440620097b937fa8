//! Parameters in queries and paths: declared once, parsed strictly, documented from the declaration.

use std::{fmt::Display, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator};

/// What is wrong with one field or parameter.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, JsonSchema)]
pub struct Invalid {
    /// Its name.
    pub field: String,
    /// What would be right.
    pub detail: String,
}

impl Invalid {
    /// Names a field and says what would be right.
    pub fn new(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            detail: detail.into(),
        }
    }
}

/// A parameter as data.
#[derive(Clone)]
pub struct Param {
    /// Its name.
    pub name: &'static str,
    /// Its description.
    pub doc: &'static str,
    /// Its schema.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
}

/// Parameters of a query, all optional.
pub trait Query: Sized + Send + 'static {
    /// Their declarations.
    fn params() -> Vec<Param>;

    /// Takes what is ours out of `pairs` and reports what cannot be read.
    fn take(pairs: &mut Vec<(String, String)>, invalid: &mut Vec<Invalid>) -> Self;

    /// Writes what is set.
    fn pairs(&self, out: &mut Vec<(&'static str, String)>);

    /// Keys to keep of each row of the answer; empty for all.
    fn fields(&self) -> &[String] {
        &[]
    }
}

/// Reads a whole query.
///
/// # Errors
/// One entry for every parameter that is unknown, given twice or malformed. A parameter `_` is ignored.
pub fn parse<Q: Query>(mut pairs: Vec<(String, String)>) -> Result<Q, Vec<Invalid>> {
    // What programs add to a URL so that no cache answers.
    pairs.retain(|(name, _)| name != "_");
    let mut invalid = Vec::new();
    let query = Q::take(&mut pairs, &mut invalid);
    let known = Q::params();
    // Nobody needs to be told of more, and an answer must not outgrow its question.
    for (name, _) in pairs.into_iter().take(10) {
        invalid.push(match known.iter().any(|p| p.name == name) {
            true => Invalid::new(name, "is given more than once"),
            false => {
                let names: Vec<&str> = known.iter().map(|p| p.name).collect();
                Invalid::new(
                    name,
                    format!("is not a parameter here; known are: {}", names.join(", ")),
                )
            }
        });
    }
    if invalid.is_empty() { Ok(query) } else { Err(invalid) }
}

/// The name of a field as it is published: without the `r#` that Rust needs before its own words.
pub fn plain(field: &'static str) -> &'static str {
    field.strip_prefix("r#").unwrap_or(field)
}

/// Takes one parameter out of `pairs`.
pub fn take_one<T: FromStr<Err: Display>>(
    name: &str,
    pairs: &mut Vec<(String, String)>,
    invalid: &mut Vec<Invalid>,
) -> Option<T> {
    let at = pairs.iter().position(|(n, _)| n == name)?;
    let (_, text) = pairs.remove(at);
    if text.is_empty() {
        return None;
    }
    text.parse()
        .map_err(|e| invalid.push(Invalid::new(name, format!("{e}"))))
        .ok()
}

/// Several words, separated by commas: a row fits that has one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Several<T>(pub Vec<T>);

impl<T: FromStr> FromStr for Several<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        text.split(',')
            .map(|word| word.trim().parse())
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl<T: Display> Display for Several<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (n, word) in self.0.iter().enumerate() {
            write!(f, "{}{word}", if n > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

impl<T: JsonSchema> JsonSchema for Several<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("Several{}", T::schema_name()).into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let schema = T::json_schema(generator);
        let words = schema.get("enum").and_then(|words| words.as_array());
        let words: Vec<&str> = words.into_iter().flatten().filter_map(|word| word.as_str()).collect();
        let word = format!("({})", words.join("|"));
        schemars::json_schema!({ "type": "string", "pattern": format!("^{word}(,{word})*$") })
    }
}

/// Parameters of a path, all present.
pub trait PathParams: Sized + Send + 'static {
    /// Their declarations, in the order of the path.
    fn params() -> Vec<Param>;

    /// Reads them, in the order of the path.
    ///
    /// # Errors
    /// The first that cannot be read.
    fn parse(texts: &[&str]) -> Result<Self, Invalid>;

    /// Writes them, in the order of the path.
    fn texts(&self) -> Vec<String>;
}

/// No parameters.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoParams;

impl Query for NoParams {
    fn params() -> Vec<Param> {
        vec![]
    }

    fn take(_: &mut Vec<(String, String)>, _: &mut Vec<Invalid>) -> Self {
        NoParams
    }

    fn pairs(&self, _: &mut Vec<(&'static str, String)>) {}
}

impl PathParams for NoParams {
    fn params() -> Vec<Param> {
        vec![]
    }

    fn parse(_: &[&str]) -> Result<Self, Invalid> {
        Ok(NoParams)
    }

    fn texts(&self) -> Vec<String> {
        vec![]
    }
}

/// The `{id}` of a path.
#[derive(Clone, Debug)]
pub struct Id<T> {
    /// Which one.
    pub id: T,
}

impl<T: FromStr<Err: Display> + Display + JsonSchema + Send + 'static> PathParams for Id<T> {
    fn params() -> Vec<Param> {
        vec![Param {
            name: "id",
            doc: "Which one.",
            schema: |g| g.subschema_for::<T>(),
        }]
    }

    fn parse(texts: &[&str]) -> Result<Self, Invalid> {
        let id = texts
            .first()
            .copied()
            .unwrap_or("")
            .parse()
            .map_err(|e| Invalid::new("id", format!("{e}")))?;
        Ok(Self { id })
    }

    fn texts(&self) -> Vec<String> {
        vec![self.id.to_string()]
    }
}

/// Declares the parameters of a query: a struct whose fields are all optional.
#[macro_export]
macro_rules! query {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[doc = $doc:literal])+ $field:ident: $ty:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default)]
        pub struct $name { $($(#[doc = $doc])+ pub $field: Option<$ty>),* }

        impl $crate::query::Query for $name {
            fn params() -> Vec<$crate::query::Param> {
                vec![$($crate::query::Param {
                    name: $crate::query::plain(stringify!($field)),
                    doc: concat!($($doc),+).trim_ascii(),
                    schema: |g| g.subschema_for::<$ty>(),
                }),*]
            }

            fn take(pairs: &mut Vec<(String, String)>, invalid: &mut Vec<$crate::query::Invalid>) -> Self {
                Self { $($field: $crate::query::take_one($crate::query::plain(stringify!($field)), pairs, invalid)),* }
            }

            fn pairs(&self, out: &mut Vec<(&'static str, String)>) {
                $(if let Some(value) = &self.$field { out.push(($crate::query::plain(stringify!($field)), value.to_string())); })*
            }
        }
    };
}

/// Declares the parameters of a path, in its order.
#[macro_export]
macro_rules! path {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[doc = $doc:literal])+ $field:ident: $ty:ty),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Debug)]
        pub struct $name { $($(#[doc = $doc])+ pub $field: $ty),+ }

        impl $crate::query::PathParams for $name {
            fn params() -> Vec<$crate::query::Param> {
                vec![$($crate::query::Param {
                    name: $crate::query::plain(stringify!($field)),
                    doc: concat!($($doc),+).trim_ascii(),
                    schema: |g| g.subschema_for::<$ty>(),
                }),+]
            }

            fn parse(texts: &[&str]) -> Result<Self, $crate::query::Invalid> {
                let mut texts = texts.iter();
                Ok(Self { $($field: texts.next().copied().unwrap_or("").parse()
                    .map_err(|e| $crate::query::Invalid::new(stringify!($field), format!("{e}")))?),+ })
            }

            fn texts(&self) -> Vec<String> {
                vec![$(self.$field.to_string()),+]
            }
        }
    };
}
