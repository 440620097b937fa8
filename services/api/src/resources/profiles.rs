//! Profiles.

use std::time::Duration;

use certctl_contract::{
    endpoint::NoContent,
    list::{Page, Sort},
    profiles::*,
};
use certctl_model::{
    approval::{Approval, MOST_APPROVERS},
    id::ProfileId,
    key::KeyAlgorithm,
    profile::{ExtendedKeyUsage, KeyRule, ProfileRules},
    time::Time,
};
use sqlx::{PgConnection, Row, postgres::PgRow, types::Json};

use super::teams::{check_description, commit_deleted, release_archived};
use crate::{
    app::{Cx, Request, Routes},
    error::ApiError,
    listing::{self, Belongs, Column, Listed, Where, check_name},
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(list).on(create).on(get).on(update).on(delete)
}

/// Patterns and key rules a profile may have at most, and characters of a pattern.
const MOST_RULES: usize = 64;
const LONGEST_PATTERN: usize = 1024;

impl Listed for Profile {
    type Filter = ProfileFilter;
    type Sort = ProfileSort;

    const KIND: &'static str = "profile";
    const COLUMNS: &'static str = "p.id, p.name, p.description, p.allowed_key_algorithms, p.max_ttl_seconds,
        p.allowed_ekus, p.required_san_patterns, p.spiffe_uri_pattern, p.allow_short_lived, p.enabled, p.approval,
        p.approvers, p.created_at, p.updated_at";
    const FROM: &'static str = "profiles p";
    const ID: &'static str = "p.id";
    const BELONGS: Belongs = Belongs::Profile("p.id");
    const DEFAULT: Sort<ProfileSort> = Sort {
        key: ProfileSort::CreatedAt,
        descending: true,
    };

    fn column(key: ProfileSort) -> Column {
        match key {
            ProfileSort::CreatedAt => Column::time("p.created_at"),
            ProfileSort::Name => Column::text("p.name"),
        }
    }

    fn restrict(f: &ProfileFilter, sql: &mut Where<'_>) {
        sql.eq("p.enabled", &f.enabled);
    }

    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        let Json(allowed_key_algorithms) = row.try_get("allowed_key_algorithms")?;
        Ok(Self {
            id: row.try_get("id")?,
            name: row.try_get("name")?,
            description: row.try_get("description")?,
            allowed_key_algorithms,
            max_ttl_seconds: row.try_get("max_ttl_seconds")?,
            allowed_ekus: row.try_get("allowed_ekus")?,
            required_san_patterns: row.try_get("required_san_patterns")?,
            spiffe_uri_pattern: row.try_get("spiffe_uri_pattern")?,
            allow_short_lived: row.try_get("allow_short_lived")?,
            enabled: row.try_get("enabled")?,
            approval: row.try_get("approval")?,
            approvers: row.try_get("approvers")?,
            created_at: row.try_get("created_at")?,
            updated_at: row.try_get("updated_at")?,
        })
    }
}

/// The rules of a profile; none when there is no such profile.
pub(super) async fn rules(db: &mut PgConnection, id: &ProfileId) -> Result<Option<ProfileRules>, ApiError> {
    let row = sqlx::query(
        "SELECT id, name, description, allowed_key_algorithms, max_ttl_seconds, allowed_ekus, required_san_patterns,
                spiffe_uri_pattern, allow_short_lived, enabled, approval, approvers, created_at, updated_at
           FROM profiles WHERE id = $1",
    )
    .bind(id)
    .fetch_optional(db)
    .await?;
    Ok(row
        .as_ref()
        .map(Profile::read)
        .transpose()?
        .map(|profile| as_rules(&profile)))
}

fn as_rules(profile: &Profile) -> ProfileRules {
    ProfileRules {
        enabled: profile.enabled,
        keys: profile.allowed_key_algorithms.clone(),
        max_ttl: Duration::from_secs(u64::try_from(profile.max_ttl_seconds).unwrap_or(0)),
        ekus: profile.allowed_ekus.clone(),
        required_san_patterns: profile.required_san_patterns.clone(),
        spiffe_uri_pattern: profile.spiffe_uri_pattern.clone(),
        allow_short_lived: profile.allow_short_lived,
    }
}

/// Checks the whole of a profile as it is about to be written.
fn check(profile: &Profile) -> Result<(), ApiError> {
    check_name("name", &profile.name, 255)?;
    check_description(&profile.description)?;
    if profile.max_ttl_seconds < 0 {
        return Err(ApiError::invalid(
            "max_ttl_seconds",
            "is a number of seconds, or 0 for no limit",
        ));
    }
    if !(1..=MOST_APPROVERS).contains(&profile.approvers) {
        let range = format!("is a number from 1 to {MOST_APPROVERS}");
        return Err(ApiError::invalid("approvers", range));
    }
    let most = |field, count| match count > MOST_RULES {
        true => Err(ApiError::invalid(field, format!("has at most {MOST_RULES} entries"))),
        false => Ok(()),
    };
    most("allowed_key_algorithms", profile.allowed_key_algorithms.len())?;
    most("allowed_ekus", profile.allowed_ekus.len())?;
    most("required_san_patterns", profile.required_san_patterns.len())?;
    let pattern = |field, text: &str, empty: bool| match (text.is_empty() && !empty)
        || text.chars().count() > LONGEST_PATTERN
        || text.contains(certctl_model::text::is_hidden)
    {
        true => Err(ApiError::invalid(
            field,
            format!("is a regular expression of up to {LONGEST_PATTERN} characters, without control characters"),
        )),
        false => Ok(()),
    };
    profile
        .required_san_patterns
        .iter()
        .try_for_each(|text| pattern("required_san_patterns", text, false))?;
    pattern("spiffe_uri_pattern", &profile.spiffe_uri_pattern, true)?;
    as_rules(profile)
        .check()
        .map_err(|(field, text)| ApiError::invalid(field, text))
}

async fn list(cx: Cx, rq: Request<ListProfiles>) -> Result<Page<Profile>, ApiError> {
    listing::list(&cx, rq.query).await
}

async fn get(cx: Cx, rq: Request<GetProfile>) -> Result<Profile, ApiError> {
    listing::fetch(&cx, rq.path.id.as_str()).await
}

async fn create(cx: Cx, rq: Request<CreateProfile>) -> Result<Profile, ApiError> {
    let mut tx = cx.begin().await?;
    let profile = with_defaults(rq.body, tx.now())?;
    check(&profile)?;
    sqlx::query(
        "INSERT INTO profiles (id, name, description, allowed_key_algorithms, max_ttl_seconds, allowed_ekus,
                               required_san_patterns, spiffe_uri_pattern, allow_short_lived, enabled, approval,
                               approvers, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $13)",
    )
    .bind(&profile.id)
    .bind(&profile.name)
    .bind(&profile.description)
    .bind(Json(&profile.allowed_key_algorithms))
    .bind(profile.max_ttl_seconds)
    .bind(&profile.allowed_ekus)
    .bind(&profile.required_san_patterns)
    .bind(&profile.spiffe_uri_pattern)
    .bind(profile.allow_short_lived)
    .bind(profile.enabled)
    .bind(profile.approval)
    .bind(profile.approvers)
    .bind(profile.created_at)
    .execute(&mut *tx)
    .await?;
    listing::commit(tx, "create_profile", "certificate_profile", profile.id.as_str()).await?;
    Ok(profile)
}

/// What is absent, or an empty list, gets the default of a new profile.
fn with_defaults(new: NewProfile, now: Time) -> Result<Profile, ApiError> {
    let rule = |algorithm, min_size| KeyRule { algorithm, min_size };
    let keys = new.allowed_key_algorithms.filter(|rules| !rules.is_empty());
    let ekus = new.allowed_ekus.filter(|ekus| !ekus.is_empty());
    let approval = new.approval.as_deref().map(approval).transpose()?;
    Ok(Profile {
        id: new.id.unwrap_or_else(|| ProfileId::generate(now)),
        name: new.name,
        description: new.description.unwrap_or_default(),
        allowed_key_algorithms: keys
            .unwrap_or_else(|| vec![rule(KeyAlgorithm::Ecdsa, 256), rule(KeyAlgorithm::Rsa, 2048)]),
        max_ttl_seconds: new.max_ttl_seconds.unwrap_or(0),
        allowed_ekus: ekus.unwrap_or_else(|| vec![ExtendedKeyUsage::ServerAuth]),
        required_san_patterns: new.required_san_patterns.unwrap_or_default(),
        spiffe_uri_pattern: new.spiffe_uri_pattern.unwrap_or_default(),
        allow_short_lived: new.allow_short_lived.unwrap_or(false),
        enabled: new.enabled.unwrap_or(true),
        approval: approval.unwrap_or(Approval::Never),
        approvers: new.approvers.unwrap_or(1),
        created_at: now,
        updated_at: now,
    })
}

/// When people have to agree.
pub(super) fn approval(text: &str) -> Result<Approval, ApiError> {
    text.parse().map_err(|why: String| ApiError::invalid("approval", why))
}

async fn update(cx: Cx, rq: Request<UpdateProfile>) -> Result<Profile, ApiError> {
    let (id, change) = (rq.path.id, rq.body);
    let mut tx = cx.begin().await?;
    let now = tx.now();
    // The rules make sense together or not at all, so the row stays as it is while they are checked.
    sqlx::query("SELECT 1 FROM profiles WHERE id = $1 FOR UPDATE")
        .bind(&id)
        .fetch_optional(&mut *tx)
        .await?;
    let before: Profile = listing::get(&mut tx, now, id.as_str()).await?;
    let old = before.clone();
    let profile = Profile {
        id: before.id,
        name: change.name.unwrap_or(before.name),
        description: change.description.unwrap_or(before.description),
        allowed_key_algorithms: change.allowed_key_algorithms.unwrap_or(before.allowed_key_algorithms),
        max_ttl_seconds: change.max_ttl_seconds.unwrap_or(before.max_ttl_seconds),
        allowed_ekus: change.allowed_ekus.unwrap_or(before.allowed_ekus),
        required_san_patterns: change.required_san_patterns.unwrap_or(before.required_san_patterns),
        spiffe_uri_pattern: change.spiffe_uri_pattern.unwrap_or(before.spiffe_uri_pattern),
        allow_short_lived: change.allow_short_lived.unwrap_or(before.allow_short_lived),
        enabled: change.enabled.unwrap_or(before.enabled),
        approval: change.approval.as_deref().map_or(Ok(before.approval), approval)?,
        approvers: change.approvers.unwrap_or(before.approvers),
        created_at: before.created_at,
        updated_at: now,
    };
    check(&profile)?;
    sqlx::query(
        "UPDATE profiles
            SET name = $2, description = $3, allowed_key_algorithms = $4, max_ttl_seconds = $5, allowed_ekus = $6,
                required_san_patterns = $7, spiffe_uri_pattern = $8, allow_short_lived = $9, enabled = $10,
                approval = $11, approvers = $12, updated_at = $13
          WHERE id = $1",
    )
    .bind(&profile.id)
    .bind(&profile.name)
    .bind(&profile.description)
    .bind(Json(&profile.allowed_key_algorithms))
    .bind(profile.max_ttl_seconds)
    .bind(&profile.allowed_ekus)
    .bind(&profile.required_san_patterns)
    .bind(&profile.spiffe_uri_pattern)
    .bind(profile.allow_short_lived)
    .bind(profile.enabled)
    .bind(profile.approval)
    .bind(profile.approvers)
    .bind(profile.updated_at)
    .execute(&mut *tx)
    .await?;
    let id = profile.id.as_str();
    listing::commit_change(tx, "update_profile", "certificate_profile", id, (&old, &profile)).await?;
    Ok(profile)
}

async fn delete(cx: Cx, rq: Request<DeleteProfile>) -> Result<NoContent, ApiError> {
    let id = rq.path.id;
    let mut tx = cx.begin().await?;
    let archived = release_archived(
        &mut tx,
        "UPDATE certificates SET profile_id = NULL, updated_at = $2 WHERE profile_id = $1 AND archived_at IS NOT NULL",
        id.as_str(),
    )
    .await?;
    let done = sqlx::query("DELETE FROM profiles WHERE id = $1")
        .bind(&id)
        .execute(&mut *tx)
        .await;
    listing::deleted(done, "profile", id.as_str())?;
    commit_deleted(tx, "delete_profile", "certificate_profile", id.as_str(), archived).await?;
    Ok(NoContent)
}
