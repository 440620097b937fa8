//! A route that is no part of the API: measurements hold the cost of an answer against that of a constant one.
//!
//! Not in the catalogue, and so in no document; the server has it under `CERTCTL_BENCH_ROUTE=true` only.

use schemars::{Schema, SchemaGenerator};

use crate::endpoint::Reply;

crate::resource! {
    bench "/api/v1/bench";

    /// Give a body that costs nothing to make.
    GET "/constant" Constant(query: ConstantQuery,) [Needs(View)] -> 200 Blank;
}

crate::query! {
    /// How much.
    pub struct ConstantQuery {
        /// Octets of the body, at most 1,048,576.
        octets: u32,
    }
}

/// Nothing but spaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blank(pub Vec<u8>);

impl Blank {
    /// So many spaces, at most 1,048,576.
    pub fn new(octets: u32) -> Self {
        Self(vec![b' '; octets.min(1 << 20) as usize])
    }
}

impl Reply for Blank {
    const CONTENT_TYPES: &'static [&'static str] = &["application/json"];

    fn schema(_: &mut SchemaGenerator) -> Option<Schema> {
        None
    }

    fn encode(&self) -> Vec<u8> {
        self.0.clone()
    }

    fn decode(octets: &[u8]) -> Result<Self, serde_json::Error> {
        Ok(Self(octets.to_vec()))
    }
}
