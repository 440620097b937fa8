//! Issuers.

use certctl_contract::{
    endpoint::{NoBody, NoContent},
    health::Outcome,
    issuers::*,
    list::{Page, Sort},
    problem::Kind,
    query::{Id, NoParams},
    signer::IssuerChain,
};
use certctl_model::{connector::IssuerType, id::IssuerId};
use certctl_store::{Tx, wake::Channel};
use serde_json::{Map, Value};
use sqlx::{FromRow, postgres::PgRow};

use super::teams::keep_default;
use crate::{
    app::{Cx, Request, Routes},
    error::ApiError,
    listing::{self, Belongs, Column, Listed, Where, check_name},
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(list).on(create).on(get).on(update).on(delete).on(test)
}

impl Listed for Issuer {
    type Filter = IssuerFilter;
    type Sort = IssuerSort;

    const KIND: &'static str = "issuer";
    const COLUMNS: &'static str = "i.id, i.name, i.type, i.config, i.enabled,
        CASE WHEN NOT i.enabled THEN 'disabled' WHEN a.issuer_id IS NULL THEN 'uninitialised' ELSE 'active' END
            AS status,
        i.created_at, i.updated_at";
    const FROM: &'static str = "issuers i LEFT JOIN authorities a ON a.issuer_id = i.id";
    const ID: &'static str = "i.id";
    const BELONGS: Belongs = Belongs::Issuer("i.id");
    const DEFAULT: Sort<IssuerSort> = Sort {
        key: IssuerSort::CreatedAt,
        descending: true,
    };

    fn column(key: IssuerSort) -> Column {
        match key {
            IssuerSort::CreatedAt => Column::time("i.created_at"),
            IssuerSort::Name => Column::text("i.name"),
        }
    }

    fn restrict(f: &IssuerFilter, sql: &mut Where<'_>) {
        sql.eq("i.enabled", &f.enabled);
    }

    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Self::from_row(row)
    }
}

fn issuer_type(text: &str) -> Result<IssuerType, ApiError> {
    text.parse()
        .map_err(|what| ApiError::invalid("type", format!("{what}, the types available here")))
}

/// The settings in the form that is kept; what is unknown is refused rather than ignored.
fn settings(kind: IssuerType, config: &Value) -> Result<Value, ApiError> {
    let empty = Map::new();
    let config = match config {
        Value::Null => &empty,
        Value::Object(config) => config,
        _ => return Err(ApiError::invalid("config", "is an object")),
    };
    match kind {
        IssuerType::Local => local_settings(config),
    }
}

/// Into how many CRLs the revocations of an issuer are divided at most: with as many entries as a relying party may
/// want to fetch in each, more than anybody has.
const MOST_SHARDS: i64 = 1024;

/// Requests that an issuer may be given, of those with a budget.
const MOST_ORDERS: i64 = 1_000_000;

fn local_settings(config: &Map<String, Value>) -> Result<Value, ApiError> {
    for (key, value) in config {
        let (fits, wanted) = match key.as_str() {
            "ca_common_name" => (
                value.as_str().is_some_and(|name| {
                    !name.trim().is_empty()
                        && name.chars().count() <= 64
                        && !name.contains(certctl_model::text::is_hidden)
                }),
                "is a text of 1 to 64 characters",
            ),
            "validity_days" => (
                value.as_i64().is_some_and(|days| (1..=3650).contains(&days)),
                "is a number of days from 1 to 3650",
            ),
            "crl_shards" => (
                value.as_i64().is_some_and(|shards| (1..=MOST_SHARDS).contains(&shards)),
                "is a number of shards from 1 to 1024",
            ),
            "crl_delta" => (value.is_boolean(), "is true or false"),
            "max_under_way" | "max_per_hour" | "max_per_domain" => (
                value.as_i64().is_some_and(|most| (1..=MOST_ORDERS).contains(&most)),
                "is a number of requests from 1 to 1000000",
            ),
            "domain_days" => (
                config.contains_key("max_per_domain") && value.as_i64().is_some_and(|days| (1..=31).contains(&days)),
                "is a number of days from 1 to 31, beside max_per_domain",
            ),
            _ => (
                false,
                "is not a setting of a local issuer; known are ca_common_name, validity_days, crl_shards, \
                 crl_delta, max_under_way, max_per_hour, max_per_domain and domain_days",
            ),
        };
        if !fits {
            return Err(ApiError::invalid(
                "config",
                format!("\"{}\" {wanted}", key.escape_debug()),
            ));
        }
    }
    Ok(Value::Object(config.clone()))
}

async fn list(cx: Cx, rq: Request<ListIssuers>) -> Result<Page<Issuer>, ApiError> {
    listing::list(&cx, rq.query).await
}

async fn get(cx: Cx, rq: Request<GetIssuer>) -> Result<Issuer, ApiError> {
    listing::fetch(&cx, rq.path.id.as_str()).await
}

async fn create(cx: Cx, rq: Request<CreateIssuer>) -> Result<Issuer, ApiError> {
    let new = rq.body;
    check_name("name", &new.name, 255)?;
    let kind = issuer_type(&new.kind)?;
    let config = settings(kind, &new.config)?;
    let mut tx = cx.begin().await?;
    let now = tx.now();
    let id = new.id.unwrap_or_else(|| IssuerId::generate(now));
    sqlx::query(
        "INSERT INTO issuers (id, name, type, config, enabled, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $6)",
    )
    .bind(&id)
    .bind(&new.name)
    .bind(kind)
    .bind(&config)
    .bind(new.enabled.unwrap_or(true))
    .bind(now)
    .execute(&mut *tx)
    .await?;
    let created = listing::get(&mut tx, now, id.as_str()).await?;
    listing::commit(tx, "create_issuer", "issuer", id.as_str()).await?;
    Ok(created)
}

async fn update(cx: Cx, rq: Request<UpdateIssuer>) -> Result<Issuer, ApiError> {
    let (id, change) = (rq.path.id, rq.body);
    change
        .name
        .as_deref()
        .map_or(Ok(()), |name| check_name("name", name, 255))?;
    let mut tx = cx.begin().await?;
    let now = tx.now();
    sqlx::query("SELECT 1 FROM issuers WHERE id = $1 FOR UPDATE")
        .bind(&id)
        .fetch_optional(&mut *tx)
        .await?;
    let before: Issuer = listing::get(&mut tx, now, id.as_str()).await?;
    if let Some(kind) = &change.kind
        && issuer_type(kind)? != before.kind
    {
        return Err(ApiError::invalid(
            "type",
            format!("stays {}; create another issuer instead", before.kind),
        ));
    }
    let config = change
        .config
        .as_ref()
        .map(|config| settings(before.kind, config))
        .transpose()?;
    if config
        .as_ref()
        .is_some_and(|config| config.get("ca_common_name") != before.config.get("ca_common_name"))
    {
        must_have_no_root(&mut tx, &id).await?;
    }
    sqlx::query(
        "UPDATE issuers
            SET name = coalesce($2, name), config = coalesce($3, config), enabled = coalesce($4, enabled),
                updated_at = $5
          WHERE id = $1",
    )
    .bind(&id)
    .bind(&change.name)
    .bind(&config)
    .bind(change.enabled)
    .bind(now)
    .execute(&mut *tx)
    .await?;
    // Its budget may be another now: what waits for the old one is looked at again.
    if config.is_some() {
        sqlx::query(
            "UPDATE jobs SET run_at = $2
              WHERE issuer_id = $1 AND type IN ('Issuance', 'Renewal') AND status = 'Running' AND held_for IS NOT NULL",
        )
        .bind(&id)
        .bind(now)
        .execute(&mut *tx)
        .await?;
        tx.wake(Channel::Jobs);
    }
    let updated: Issuer = listing::get(&mut tx, now, id.as_str()).await?;
    listing::commit_change(tx, "update_issuer", "issuer", id.as_str(), (&before, &updated)).await?;
    Ok(updated)
}

/// The name of a root is part of every certificate below it.
async fn must_have_no_root(tx: &mut Tx, id: &IssuerId) -> Result<(), ApiError> {
    let made: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM authorities WHERE issuer_id = $1)")
        .bind(id)
        .fetch_one(&mut **tx)
        .await?;
    match made {
        true => Err(ApiError::new(
            Kind::WrongState,
            format!("issuer {id} has its certificate, so ca_common_name stays; create another issuer instead"),
        )),
        false => Ok(()),
    }
}

async fn delete(cx: Cx, rq: Request<DeleteIssuer>) -> Result<NoContent, ApiError> {
    let id = rq.path.id;
    keep_default("issuer", id.as_str(), "iss-local")?;
    let mut tx = cx.begin().await?;
    let signed: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM ledger WHERE issuer_id = $1)")
        .bind(&id)
        .fetch_one(&mut *tx)
        .await?;
    if signed {
        let detail =
            format!("issuer {id} has signed certificates, whose CRL and OCSP answers need it; disable it instead");
        return Err(ApiError::new(Kind::Referenced, detail));
    }
    let done = sqlx::query("DELETE FROM issuers WHERE id = $1")
        .bind(&id)
        .execute(&mut *tx)
        .await;
    listing::deleted(done, "issuer", id.as_str())?;
    listing::commit(tx, "delete_issuer", "issuer", id.as_str()).await?;
    Ok(NoContent)
}

async fn test(cx: Cx, rq: Request<TestIssuer>) -> Result<Outcome, ApiError> {
    let id = rq.path.id;
    let issuer: Issuer = listing::fetch(&cx, id.as_str()).await?;
    if !issuer.enabled {
        return Err(ApiError::new(
            Kind::WrongState,
            format!("issuer {id} is disabled; enable it first"),
        ));
    }
    match issuer.kind {
        IssuerType::Local => cx.app.signer.call::<IssuerChain>(Id { id }, NoParams, NoBody).await?,
    };
    Ok(Outcome::of("connection_successful"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_of_a_local_issuer_are_known_or_refused() {
        let long = "x".repeat(65);
        for (config, fits) in [
            (json!(null), true),
            (json!({}), true),
            (json!({ "ca_common_name": "Example CA", "validity_days": 90 }), true),
            (json!([]), false),
            (json!("text"), false),
            (json!({ "ca_common_name": "" }), false),
            (json!({ "ca_common_name": long }), false),
            (json!({ "ca_common_name": "a\0b" }), false),
            (json!({ "validity_days": 0 }), false),
            (json!({ "validity_days": 3651 }), false),
            (json!({ "validity_days": "90" }), false),
            (json!({ "crl_shards": 128, "crl_delta": true }), true),
            (json!({ "max_under_way": 10, "max_per_hour": 300 }), true),
            (json!({ "max_under_way": 0 }), false),
            (json!({ "max_per_hour": "300" }), false),
            (json!({ "max_per_domain": 50 }), true),
            (json!({ "max_per_domain": 50, "domain_days": 7 }), true),
            (json!({ "max_per_domain": 50, "domain_days": 32 }), false),
            (json!({ "domain_days": 7 }), false),
            (json!({ "crl_shards": 0 }), false),
            (json!({ "crl_shards": 1025 }), false),
            (json!({ "crl_shards": 1.5 }), false),
            (json!({ "crl_delta": "yes" }), false),
            (json!({ "directory_url": "https://acme.example" }), false),
        ] {
            assert_eq!(settings(IssuerType::Local, &config).is_ok(), fits, "{config}");
        }
        assert_eq!(settings(IssuerType::Local, &json!(null)).unwrap(), json!({}));
    }
}
