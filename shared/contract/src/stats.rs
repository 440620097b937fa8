//! Figures for charts. Days are those of UTC, and each is there, with zeros when nothing happened.

use std::{collections::BTreeMap, fmt, str::FromStr};

use certctl_model::certificate::CertificateStatus;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

crate::resource! {
    stats "/api/v1/stats";

    /// Count certificates by status: all eight, in no particular order.
    GET "/certificates-by-status" CertificatesByStatus() [Needs(View)] -> 200 Vec<StatusCount>;
    /// Count certificates by the day they end, from today on.
    GET "/expiration-timeline" ExpirationTimeline(query: Chart,) [Needs(View)] -> 200 Vec<ExpirationDay>;
    /// Count finished jobs by day, up to today.
    GET "/job-trends" JobTrends(query: Chart,) [Needs(View)] -> 200 Vec<JobDay>;
    /// Count issued versions by day, up to today.
    GET "/issuance-rate" IssuanceRate(query: Chart,) [Needs(View)] -> 200 Vec<IssuanceDay>;
}

crate::query! {
    /// How far a chart reaches.
    pub struct Chart {
        /// How many days, 1 to 365; 30 unless told.
        days: Days,
    }
}

/// A number of days, 1 to 365.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Days(i32);

impl Days {
    /// As a number.
    pub fn get(self) -> i32 {
        self.0
    }
}

impl Default for Days {
    fn default() -> Self {
        Self(30)
    }
}

impl FromStr for Days {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(days @ 1..=365) => Ok(Self(days)),
            _ => Err("is a number of days from 1 to 365"),
        }
    }
}

impl fmt::Display for Days {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl JsonSchema for Days {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Days".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 1, "maximum": 365, "default": 30 })
    }
}

/// How many certificates have a status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StatusCount {
    /// The status.
    pub status: CertificateStatus,
    /// How many.
    pub count: i64,
}

/// How many certificates end on a day and have not ended yet; revoked and archived ones are left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExpirationDay {
    /// The day, as `2027-01-15`.
    pub date: String,
    /// How many.
    pub count: i64,
    /// How many of each status there is among them.
    pub by_status: BTreeMap<String, i64>,
}

/// How many jobs were finished on a day.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct JobDay {
    /// The day, as `2027-01-15`.
    pub date: String,
    /// Completed.
    pub completed_count: i64,
    /// Failed.
    pub failed_count: i64,
    /// Completed of completed and failed, in percent; 0 when there were none.
    pub success_rate: f64,
}

/// How many versions were issued on a day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct IssuanceDay {
    /// The day, as `2027-01-15`.
    pub date: String,
    /// How many.
    pub issued_count: i64,
}
