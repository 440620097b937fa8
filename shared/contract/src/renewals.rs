//! Renewals to come.

use certctl_model::{id::IssuerId, time::Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

crate::resource! {
    renewals "/api/v1/renewals";

    /// Tell how many renewals come on which day, of which issuer, and where that is more than its budget.
    ///
    /// Each certificate counts on the day for which its renewal is planned, and again one renewal later. What is overdue
    /// counts today. What ends with its issuer is renewed on no day.
    GET "/forecast" ForecastRenewals(query: ForecastQuery,) [Needs(View)] -> 200 Forecast;
}

crate::query! {
    /// How far, and of what lifetime.
    pub struct ForecastQuery {
        /// How many days, today among them; 1 to 366, 90 when absent.
        days: u16,
        /// The lifetime in days of what is issued from now on; 1 to 3650, that of each certificate today when absent.
        lifetime_days: u16,
    }
}

/// Renewals to come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Forecast {
    /// Renewals of all these days.
    pub total: i64,
    /// Of one day, in the middle.
    pub mean: f64,
    /// The most of one day.
    pub peak: i64,
    /// Every day, today first.
    pub days: Vec<ForecastDay>,
    /// Where the renewals of one day are more than their issuer is given in a day.
    pub breaks: Vec<BudgetBreak>,
    /// Issuers that end too early for what they are to sign: no certificate outlives its issuer.
    pub issuer_ends: Vec<IssuerEnd>,
}

/// A day.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ForecastDay {
    /// In UTC, like `2027-01-15`.
    pub day: String,
    /// Its renewals.
    pub renewals: i64,
    /// By issuer; those without renewals are left out.
    pub issuers: Vec<ForecastIssuer>,
}

/// What an issuer has to do on a day.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ForecastIssuer {
    /// The issuer.
    pub issuer_id: IssuerId,
    /// Renewals.
    pub renewals: i64,
}

/// A day on which an issuer has more to do than it is given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BudgetBreak {
    /// The issuer.
    pub issuer_id: IssuerId,
    /// The day, in UTC.
    pub day: String,
    /// Renewals.
    pub renewals: i64,
    /// What its `max_per_hour` lets through in a day.
    pub budget: i64,
}

/// An issuer that ends too early for what it is to sign.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct IssuerEnd {
    /// The issuer.
    pub issuer_id: IssuerId,
    /// When its certificate ends.
    pub ends_at: Time,
    /// Renewals of these days whose certificates would live less long than those they replace.
    pub cut_short: i64,
    /// Certificates that end with it. They are not renewed by themselves while it has no other certificate.
    pub doomed: i64,
}
