//! Managed certificates.

use std::collections::BTreeMap;

use certctl_contract::{
    certificates::*,
    endpoint::{NoContent, Permission},
    health::Outcome,
    list::{Page, Sort},
    problem::Kind,
    targets::Target,
};
use certctl_model::{
    id::{CertificateId, IssuerId, JobId, OwnerId, PolicyId, ProfileId, RenewalPolicyId, TargetId, TeamId, VersionId},
    job::JobKind,
    name::{San, all_names, together},
    policy::Moment,
    profile::ProfileRules,
    revocation::RevocationReason,
    time::Time,
};
use certctl_store::{
    Tx,
    approvals::{self, Change},
    certificates as store, jobs,
    planning::{self, Planned},
    policies::{self, Broken},
    revocations::{self, Grounds},
    scope,
    tallies::Subject,
    validations,
};
use certctl_x509::{
    csr::{self, CertificationRequest},
    facts::CertificateFacts,
    keys::KeyPair,
    path::Path,
    pem,
};
use sqlx::{FromRow, PgConnection, Postgres, QueryBuilder, Row, postgres::PgRow, types::Json};
use zeroize::Zeroizing;

use super::{blocked_keys, targets::must_not_overlap};
use crate::{
    app::{Cx, Request, Routes},
    error::ApiError,
    listing::{self, Belongs, Column, Listed, Where, check_name},
    written::{self, Field, Shown, Written},
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on_written(list)
        .on(create)
        .on(get)
        .on(update)
        .on(archive)
        .on(versions)
        .on(deployments)
        .on(renew)
        .on(deploy)
        .on(validate)
        .on(revoke)
        .on(release)
        .on(revocation)
}

/// Names a certificate may have at most.
const MOST_NAMES: usize = 100;

/// When a certificate ends, as it is indexed: what has not been issued ends last.
const ENDS: &str = "(coalesce(c.not_after, 'infinity'))";

impl Listed for Certificate {
    type Filter = CertificateFilter;
    type Sort = CertificateSort;

    const KIND: &'static str = "certificate";
    const COLUMNS: &'static str =
        "c.id, c.name, c.common_name, c.sans, c.environment, c.owner_id, c.team_id, c.issuer_id,
        ARRAY(SELECT m.target_id FROM certificate_targets m WHERE m.certificate_id = c.id ORDER BY 1) AS target_ids,
        c.renewal_policy_id, c.profile_id AS certificate_profile_id, certificate_status(c, clock.at) AS status,
        c.not_after AS expires_at, c.tags, c.last_renewal_at, c.last_deployment_at, c.revoked_at, c.revocation_reason,
        c.failure, c.renew_at, v.serial_number, v.fingerprint_sha256 AS fingerprint, v.key_algorithm, v.key_size,
        v.created_at AS issued_at, d.status AS deployment_status, d.since AS deployment_status_since,
        d.reason AS deployment_status_reason, c.created_at, c.updated_at,
        (SELECT k.blocked_at FROM blocked_keys k WHERE k.spki_sha256 = v.spki_sha256) AS key_blocked_at";
    const FROM: &'static str = "certificates c
        CROSS JOIN (SELECT {now}::timestamptz AS at) clock
        LEFT JOIN certificate_versions v ON v.id = c.current_version_id
        LEFT JOIN deployment_states d ON d.certificate_id = c.id";
    const ROWS: &'static str = "certificates c";
    const ID: &'static str = "c.id";
    const BELONGS: Belongs = Belongs::Certificate("c.id");
    const TALLY: Option<Subject> = Some(Subject::Certificate);
    const ORDERED: bool = true;
    const DEFAULT: Sort<CertificateSort> = Sort {
        key: CertificateSort::CreatedAt,
        descending: true,
    };

    fn column(key: CertificateSort) -> Column {
        match key {
            CertificateSort::CreatedAt => Column::date("c.created_at"),
            CertificateSort::UpdatedAt => Column::date("c.updated_at"),
            CertificateSort::NotAfter | CertificateSort::ExpiresAt => Column::date(ENDS),
            CertificateSort::CommonName => Column::text("c.common_name"),
            CertificateSort::Name => Column::text("c.name"),
            CertificateSort::Status => Column::group("c.status"),
            CertificateSort::Environment => Column::group("c.environment"),
        }
    }

    fn unsettled(f: &CertificateFilter, sort: CertificateSort) -> bool {
        f.status.is_some() || sort == CertificateSort::Status
    }

    fn restrict(f: &CertificateFilter, sql: &mut Where<'_>) {
        sql.eq("c.status", &f.status);
        if let Some(status) = f.deployment_status {
            // The word itself, so that the planner knows how many have it.
            sql.within("c.id", |sql| {
                sql.push("SELECT s.certificate_id FROM deployment_states s WHERE s.status = '")
                    .push(status.as_str())
                    .push("'");
            });
        }
        sql.eq("c.environment", &f.environment);
        sql.eq("c.owner_id", &f.owner_id);
        sql.eq("c.team_id", &f.team_id);
        sql.eq("c.issuer_id", &f.issuer_id);
        sql.eq("c.profile_id", &f.profile_id);
        // What has not been issued ends neither before nor after.
        sql.before(ENDS, &f.expires_before);
        sql.after_until(ENDS, &f.expires_after, "'infinity'");
        sql.after("c.created_at", &f.created_after);
        sql.before("c.created_at", &f.created_before);
        sql.after("c.updated_at", &f.updated_after);
        sql.before("c.updated_at", &f.updated_before);
        if let Some(agent) = &f.agent_id {
            let before = "c.id = ANY (ARRAY(SELECT m.certificate_id FROM targets t
                                              JOIN certificate_targets m ON m.target_id = t.id WHERE t.agent_id =";
            sql.with(before, agent.clone(), "))");
        }
        if let Some(key) = &f.spki_sha256 {
            let before = "c.id = ANY (ARRAY(SELECT k.certificate_id FROM certificate_versions k WHERE k.spki_sha256 =";
            sql.with(before, key.clone(), "))");
        }
        if let Some(q) = &f.q {
            let patterns = q.patterns();
            sql.within("c.id", |sql| push_found(sql, &patterns));
        }
    }

    fn follows(f: &CertificateFilter, sort: CertificateSort, sql: &mut Where<'_>) {
        // Nothing is updated before it is created.
        match sort {
            CertificateSort::UpdatedAt => sql.after("c.updated_at", &f.created_after),
            CertificateSort::CreatedAt => sql.before("c.created_at", &f.updated_before),
            _ => {}
        }
    }

    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Shown { row, fields: &FIELDS }.read()
    }
}

/// A certificate as JSON, by the columns of its list.
const FIELDS: [Field; 31] = [
    Field::text("id"),
    Field::text("name"),
    Field::text("common_name"),
    Field::texts("sans"),
    Field::text("environment"),
    Field::text("owner_id"),
    Field::text("team_id"),
    Field::text("issuer_id"),
    Field::texts("target_ids"),
    Field::text("renewal_policy_id"),
    Field::text("certificate_profile_id"),
    Field::text("status"),
    Field::time("expires_at").or_null(),
    Field::json("tags"),
    Field::time("last_renewal_at"),
    Field::time("last_deployment_at"),
    Field::time("revoked_at"),
    Field::text("revocation_reason"),
    Field::text("failure"),
    Field::time("renew_at"),
    Field::text("serial_number"),
    Field::text("fingerprint"),
    Field::text("key_algorithm"),
    Field::integer("key_size"),
    Field::time("issued_at"),
    Field::text("deployment_status"),
    Field::time("deployment_status_since"),
    Field::text("deployment_status_reason"),
    Field::time("created_at"),
    Field::time("updated_at"),
    Field::time("key_blocked_at"),
];

/// Adds the statement for the ids that a search finds.
fn push_found(sql: &mut QueryBuilder<Postgres>, [names, serial, fingerprint]: &[String; 3]) {
    sql.push("SELECT n.certificate_id FROM certificate_names n WHERE n.names LIKE searched(")
        .push_bind(names.clone())
        .push(") OR n.certificate_id = ANY (ARRAY(SELECT certificate_id FROM certificate_versions WHERE serial_number LIKE ")
        .push_bind(serial.clone())
        .push(" UNION ALL SELECT certificate_id FROM certificate_versions WHERE fingerprint_sha256 LIKE ")
        .push_bind(fingerprint.clone())
        .push("))");
}

async fn list(cx: Cx, rq: Request<ListCertificates>) -> Result<Written<Page<Certificate>>, ApiError> {
    let expected = match &rq.query.filter.q {
        Some(q) => Some(listing::expected(&cx, |sql| push_found(sql, &q.patterns())).await?),
        None => None,
    };
    let restrict = |sql: &mut Where<'_>| Certificate::restrict(&rq.query.filter, sql);
    let page = listing::rows::<Certificate>(&cx, &rq.query, restrict, expected).await?;
    written::page(page, &FIELDS)
}

async fn get(cx: Cx, rq: Request<GetCertificate>) -> Result<Certificate, ApiError> {
    listing::fetch(&cx, rq.path.id.as_str()).await
}

/// The common name: a DNS name or an IP address.
fn common_name(text: &str) -> Result<San, ApiError> {
    match text.parse::<San>() {
        Ok(name @ (San::Dns(_) | San::Ip(_))) => Ok(name),
        Ok(_) => Err(ApiError::invalid(
            "common_name",
            "is a DNS name or an IP address; put other names into sans",
        )),
        Err(error) => Err(ApiError::invalid("common_name", error.to_string())),
    }
}

fn other_names(texts: &[String]) -> Result<Vec<San>, ApiError> {
    if texts.len() > MOST_NAMES {
        return Err(ApiError::invalid("sans", format!("has at most {MOST_NAMES} names")));
    }
    let read = |text: &String| text.parse().map_err(|e| ApiError::invalid("sans", format!("{e}")));
    let names: Vec<San> = texts.iter().map(read).collect::<Result<_, _>>()?;
    together(&names).map_err(|why| ApiError::invalid("sans", why))?;
    Ok(names)
}

/// Reads a certification request, whose signature must have been made by its key.
pub(super) fn read_request(pem: &str) -> Result<CertificationRequest, ApiError> {
    CertificationRequest::parse_pem(pem.trim()).map_err(|e| ApiError::invalid("csr_pem", e.to_string()))
}

/// Refuses a request that must not be signed for a certificate: its key is blocked, it asks for other names, or the profile
/// does not admit it.
pub(super) async fn admit_request(
    tx: &mut Tx,
    id: &CertificateId,
    request: &CertificationRequest,
) -> Result<(), ApiError> {
    blocked_keys::must_not_be_blocked(tx, "csr_pem", &request.key_fingerprint()).await?;
    let (names, rules) = names_and_rules(tx, id).await?;
    csr::names_within(request.common_name(), request.sans(), &names).map_err(|e| ApiError::invalid("csr_pem", e))?;
    rules
        .admits(request.key(), &names)
        .map_err(|e| ApiError::invalid("csr_pem", e))
}

/// The names of a certificate, the common name first, and the rules of its profile.
async fn names_and_rules(tx: &mut Tx, id: &CertificateId) -> Result<(Vec<San>, ProfileRules), ApiError> {
    let (common, sans, profile): (San, Vec<San>, Option<ProfileId>) =
        sqlx::query_as("SELECT common_name, sans, profile_id FROM certificates WHERE id = $1")
            .bind(id)
            .fetch_one(&mut **tx)
            .await?;
    let rules = match &profile {
        Some(id) => super::profiles::rules(tx, id)
            .await?
            .ok_or_else(|| ApiError::internal(format!("profile {id} is gone though a certificate refers to it")))?,
        None => ProfileRules::default(),
    };
    Ok((all_names(&common, &sans), rules))
}

/// A key that is made here, as the configuration allows, and its request: the key is given to the one who asked and is not
/// kept.
async fn make_key(tx: &mut Tx, id: &CertificateId) -> Result<(Vec<u8>, Zeroizing<String>), ApiError> {
    let (names, rules) = names_and_rules(tx, id).await?;
    let facts = rules.preferred_key();
    let made = tokio::task::spawn_blocking(move || {
        let key = KeyPair::generate(facts).map_err(|e| e.to_string())?;
        let common = names.first().map(San::to_string).unwrap_or_default();
        let request = csr::generate(&key, &common, &names).map_err(|e| e.to_string())?;
        Ok::<_, String>((request, key.to_pkcs8_pem().map_err(|e| e.to_string())?))
    });
    let made = made.await.map_err(|error| ApiError::internal(error.to_string()))?;
    made.map_err(ApiError::internal)
}

/// The common name and the other names that a request asks for.
fn names_of(request: &CertificationRequest) -> Result<(San, Vec<San>), ApiError> {
    let named = match request.common_name() {
        Some(text) => Some(
            text.parse()
                .map_err(|e| ApiError::invalid("csr_pem", format!("its common name: {e}")))?,
        ),
        None => None,
    };
    let first = || {
        request
            .sans()
            .iter()
            .find(|name| matches!(name, San::Dns(_) | San::Ip(_)))
    };
    let common = named.or_else(|| first().cloned()).ok_or_else(|| {
        ApiError::invalid(
            "csr_pem",
            "asks for no DNS name and no IP address; give the certificate a common_name",
        )
    })?;
    Ok((common, request.sans().to_vec()))
}

fn texts_of(names: &[San]) -> Vec<String> {
    names.iter().map(San::to_string).collect()
}

/// Refuses names that the profile would not let through when it is too late to say so.
async fn within_profile(tx: &mut Tx, profile: Option<&ProfileId>, common: &San, sans: &[San]) -> Result<(), ApiError> {
    let Some(id) = profile else { return Ok(()) };
    let rules = super::profiles::rules(tx, id)
        .await?
        .ok_or_else(|| ApiError::invalid("certificate_profile_id", "names something that does not exist"))?;
    rules
        .admits_names(&all_names(common, sans))
        .map_err(|why| ApiError::invalid("certificate_profile_id", why))
}

/// Refuses names and purposes that the chain of the issuer's authority forbids, as soon as that is known: the signer
/// would refuse them, and relying parties what it signed (RFC 5280 §6.1).
async fn within_authority(
    tx: &mut Tx,
    issuer: &IssuerId,
    profile: Option<&ProfileId>,
    common: &San,
    sans: &[San],
) -> Result<(), ApiError> {
    match refused_by_authority(tx, issuer, profile, &all_names(common, sans)).await? {
        Some((field, why)) => Err(ApiError::invalid(
            field,
            format!("issuer {issuer} cannot certify this: {why}"),
        )),
        None => Ok(()),
    }
}

/// What the chain of an issuer's authority forbids of a certificate, and the field that is at fault; nothing while the
/// authority is not known.
pub(super) async fn refused_by_authority(
    db: &mut PgConnection,
    issuer: &IssuerId,
    profile: Option<&ProfileId>,
    names: &[San],
) -> Result<Option<(&'static str, String)>, ApiError> {
    let chain: Option<String> = sqlx::query_scalar("SELECT chain_pem FROM authorities WHERE issuer_id = $1")
        .bind(issuer)
        .fetch_optional(&mut *db)
        .await?;
    // The signer published it and judges again: what cannot be read here is its to refuse.
    let path = chain.and_then(|pem| CertificateFacts::parse_pem_chain(&pem).ok());
    let Some(path) = path
        .and_then(|chain| Path::of(&chain).ok())
        .filter(Path::is_constrained)
    else {
        return Ok(None);
    };
    if let Err(why) = path.admits_names(names) {
        return Ok(Some(("sans", why)));
    }
    let rules = match profile {
        Some(id) => super::profiles::rules(db, id).await?.unwrap_or_default(),
        None => ProfileRules::default(),
    };
    Ok(path
        .admits_purposes(&rules.purposes())
        .err()
        .map(|why| ("certificate_profile_id", why)))
}

pub(super) async fn enabled_issuer(tx: &mut Tx, id: &IssuerId) -> Result<(), ApiError> {
    match sqlx::query_scalar("SELECT enabled FROM issuers WHERE id = $1")
        .bind(id)
        .fetch_optional(&mut **tx)
        .await?
    {
        Some(true) => Ok(()),
        Some(false) => Err(ApiError::invalid("issuer_id", format!("issuer {id} is disabled"))),
        None => Err(ApiError::invalid("issuer_id", format!("there is no issuer {id}"))),
    }
}

/// Refuses to map targets that the caller does not reach: a requester maps none, and a party with a scope none that has a
/// certificate outside of it.
async fn may_map(tx: &mut Tx, id: &CertificateId, targets: &[TargetId]) -> Result<(), ApiError> {
    let reach = tx.reach().clone();
    if !reach.is_limited() {
        return Ok(());
    }
    let new: Vec<String> = sqlx::query_scalar(
        "SELECT t FROM unnest($2::text[]) AS t
          WHERE NOT EXISTS (SELECT 1 FROM certificate_targets m WHERE m.certificate_id = $1 AND m.target_id = t)",
    )
    .bind(id)
    .bind(targets)
    .fetch_all(&mut **tx)
    .await?;
    let refused = |detail: String| Err(ApiError::new(Kind::Forbidden, format!("target_ids: {detail}")));
    if reach.created_by.is_some() && !new.is_empty() {
        return refused("a key with the role requester maps no targets; an operator does".to_owned());
    }
    let others: Vec<String> = sqlx::query_scalar(
        "SELECT DISTINCT m.certificate_id FROM certificate_targets m
          WHERE m.target_id = ANY ($1) AND m.certificate_id <> $2",
    )
    .bind(&new)
    .bind(id)
    .fetch_all(&mut **tx)
    .await?;
    match scope::beyond(tx, &reach, &others).await? {
        None => Ok(()),
        Some(_) => refused(format!(
            "one has a certificate outside of the scope of this key ({reach})"
        )),
    }
}

pub(super) async fn map_targets(tx: &mut Tx, id: &CertificateId, targets: &[TargetId]) -> Result<(), ApiError> {
    may_map(tx, id, targets).await?;
    sqlx::query("DELETE FROM certificate_targets WHERE certificate_id = $1 AND NOT target_id = ANY ($2)")
        .bind(id)
        .bind(targets)
        .execute(&mut **tx)
        .await?;
    let added: Vec<TargetId> = sqlx::query_scalar(
        "INSERT INTO certificate_targets (certificate_id, target_id)
         SELECT DISTINCT $1, t FROM unnest($2::text[]) AS t ON CONFLICT DO NOTHING RETURNING target_id",
    )
    .bind(id)
    .bind(targets)
    .fetch_all(&mut **tx)
    .await?;
    must_not_overlap(tx, &added).await
}

/// A name nobody else has: the common name, or with a number behind it.
async fn free_name(tx: &mut Tx, common: &San) -> Result<String, ApiError> {
    let base = common.to_string();
    sqlx::query("SELECT pg_advisory_xact_lock(hashtext('certificates.name'), hashtext($1))")
        .bind(&base)
        .execute(&mut **tx)
        .await?;
    Ok(sqlx::query_scalar(
        "SELECT n.name FROM (SELECT $1 AS name, 1 AS i UNION ALL
                             SELECT $1 || '-' || i, i FROM generate_series(2, 2 + (SELECT count(*) FROM certificates
                                                                       WHERE common_name = $1)) AS i) n
          WHERE NOT EXISTS (SELECT 1 FROM certificates c WHERE c.name = n.name)
          ORDER BY n.i LIMIT 1",
    )
    .bind(&base)
    .fetch_optional(&mut **tx)
    .await?
    .unwrap_or_else(|| format!("{base}-{}", CertificateId::generate(tx.now()))))
}

async fn create(cx: Cx, rq: Request<CreateCertificate>) -> Result<Certificate, ApiError> {
    let new = rq.body;
    let targets = new.target_ids.unwrap_or_default();
    let request = new.csr_pem.as_deref().map(read_request).transpose()?;
    if request.is_some() && !targets.is_empty() {
        return Err(ApiError::invalid(
            "csr_pem",
            "does not go together with target_ids, whose agents make the keys",
        ));
    }
    let requested = request
        .as_ref()
        .filter(|_| new.common_name.is_none() || new.sans.is_none());
    let requested = requested.map(names_of).transpose()?;
    let common = match (&new.common_name, &requested) {
        (Some(text), _) => common_name(text)?,
        (None, Some((common, _))) => common_name(&common.to_string())?,
        (None, None) => {
            return Err(ApiError::invalid(
                "common_name",
                "is required, unless there is a csr_pem",
            ));
        }
    };
    let sans = match (&new.sans, requested) {
        (None, Some((_, sans))) => other_names(&texts_of(&sans))?,
        (sans, _) => other_names(sans.as_deref().unwrap_or_default())?,
    };
    // Earlier programs write the year 1 for no time.
    let tracked_until = new.expires_at.filter(|at| *at > Time::from_unix(0));
    let tracked_until = tracked_until.filter(|_| targets.is_empty() && request.is_none());
    let fixed = |id: &str| id.to_owned();
    let reach = cx.reach.certificates.clone();
    let id = new.id.unwrap_or_else(|| CertificateId::generate(cx.now()));
    let owner: OwnerId = new
        .owner_id
        .unwrap_or_else(|| fixed("o-unassigned").try_into().expect("a valid id"));
    let policy: RenewalPolicyId = new
        .renewal_policy_id
        .unwrap_or_else(|| fixed("rp-default").try_into().expect("a valid id"));
    // Where the scope of the key leaves no choice, nothing has to be chosen.
    let issuer: IssuerId = new
        .issuer_id
        .or_else(|| reach.issuer())
        .unwrap_or_else(|| fixed("iss-local").try_into().expect("a valid id"));
    let environment = new.environment.or_else(|| reach.environment()).unwrap_or_default();
    check_environment(&environment)?;
    let tags = check_tags(new.tags.unwrap_or_default())?;

    let mut tx = cx.begin().await?;
    let now = tx.now();
    enabled_issuer(&mut tx, &issuer).await?;
    let name = match new.name {
        Some(name) => name,
        None => free_name(&mut tx, &common).await?,
    };
    check_name("name", &name, 255)?;
    let team: Option<TeamId> = match new.team_id.or_else(|| reach.team()) {
        Some(team) => Some(team),
        None => {
            sqlx::query_scalar("SELECT team_id FROM owners WHERE id = $1")
                .bind(&owner)
                .fetch_optional(&mut *tx)
                .await?
        }
    };
    let team = team.ok_or_else(|| ApiError::invalid("owner_id", format!("there is no owner {owner}")))?;
    let profile: Option<ProfileId> = match new.certificate_profile_id.or_else(|| reach.profile()) {
        Some(profile) => Some(profile),
        None => sqlx::query_scalar("SELECT certificate_profile_id FROM renewal_policies WHERE id = $1")
            .bind(&policy)
            .fetch_optional(&mut *tx)
            .await?
            .flatten(),
    };
    within_profile(&mut tx, profile.as_ref(), &common, &sans).await?;
    within_authority(&mut tx, &issuer, profile.as_ref(), &common, &sans).await?;
    sqlx::query(
        "INSERT INTO certificates (id, name, common_name, sans, environment, owner_id, team_id, issuer_id,
                                   renewal_policy_id, profile_id, tags, created_at, updated_at, not_after)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12, $13)",
    )
    .bind(&id)
    .bind(&name)
    .bind(&common)
    .bind(&sans)
    .bind(&environment)
    .bind(&owner)
    .bind(&team)
    .bind(&issuer)
    .bind(&policy)
    .bind(&profile)
    .bind(Json(&tags))
    .bind(now)
    .bind(tracked_until)
    .execute(&mut *tx)
    .await?;
    let event = tx
        .event("certificate_created", "certificate", &id)
        .with("common_name", &common)
        .with("issuer_id", &issuer);
    tx.note(event);
    approvals::participate(&mut tx, &[&id], &[Change::Created]).await?;
    map_targets(&mut tx, &id, &targets).await?;
    if let Some(broken) = policies::judge(&mut tx, &[&id], Moment::Creation).await?.remove(&id) {
        return Err(super::policies::refusal(&broken));
    }
    let certificate = store::lock(&mut tx, &id).await?;
    match request {
        Some(request) => {
            admit_request(&mut tx, &id, &request).await?;
            policies::must_not_block(&mut tx, &id, Moment::Issuance).await?;
            store::request_issuance_for(&mut tx, &certificate, request.der().to_vec()).await?;
        }
        None => {
            store::request_issuance(&mut tx, &certificate, JobKind::Issuance).await?;
        }
    }
    let created = listing::get(&mut tx, now, id.as_str()).await?;
    tx.commit().await?;
    certctl_runtime::failpoint::hold("api.certificate_created").await;
    Ok(created)
}

pub(super) fn check_environment(environment: &str) -> Result<(), ApiError> {
    match environment.chars().count() > 255 || environment.contains(certctl_model::text::is_hidden) {
        true => Err(ApiError::invalid(
            "environment",
            "has at most 255 characters, without control characters",
        )),
        false => Ok(()),
    }
}

pub(super) fn check_tags(tags: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, ApiError> {
    let fits = |text: &str, most| text.chars().count() <= most && !text.contains(certctl_model::text::is_hidden);
    match tags.len() <= 64
        && tags
            .iter()
            .all(|(key, value)| !key.is_empty() && fits(key, 128) && fits(value, 1024))
    {
        true => Ok(tags),
        false => Err(ApiError::invalid(
            "tags",
            "are at most 64, keys of 1 to 128 and values of up to 1024 characters",
        )),
    }
}

async fn update(cx: Cx, rq: Request<UpdateCertificate>) -> Result<Certificate, ApiError> {
    let (id, change) = (rq.path.id, rq.body);
    let mut tx = cx.begin().await?;
    let now = tx.now();
    let locked = store::lock(&mut tx, &id).await?;
    let before: Certificate = listing::get(&mut tx, now, id.as_str()).await?;
    let required = approvals::required(&mut tx, &id).await?;
    let broken_before = open_violations(&mut tx, &id).await?;
    if let Some(name) = &change.name {
        check_name("name", name, 255)?;
    }
    if let Some(environment) = &change.environment {
        check_environment(environment)?;
    }
    // Names that are sent back as they were stay, also where they could not be requested today.
    let new_common = change
        .common_name
        .as_deref()
        .filter(|text| *text != before.common_name.to_string());
    let new_sans = change
        .sans
        .as_deref()
        .filter(|texts| !texts.iter().eq(&texts_of(&before.sans)));
    let judged = new_common.is_some() || new_sans.is_some() || change.certificate_profile_id.is_some();
    let common = new_common
        .map(common_name)
        .transpose()?
        .unwrap_or_else(|| before.common_name.clone());
    let sans = new_sans
        .map(other_names)
        .transpose()?
        .unwrap_or_else(|| before.sans.clone());
    let profile = match change.certificate_profile_id {
        Some(profile) => profile.0,
        None => before.certificate_profile_id.clone(),
    };
    if judged || change.issuer_id.is_some() {
        not_while_signing(&mut tx, &id).await?;
    }
    let names_certifiable = all_names(&common, &sans).iter().all(San::is_certifiable);
    // Names that were let in before stay, whatever became of the profile: the signer asks it anyway.
    if judged {
        within_profile(&mut tx, profile.as_ref(), &common, &sans).await?;
    }
    if let Some(issuer) = &change.issuer_id {
        enabled_issuer(&mut tx, issuer).await?;
    }
    if judged || change.issuer_id.is_some() {
        let issuer = change.issuer_id.as_ref().unwrap_or(&before.issuer_id);
        within_authority(&mut tx, issuer, profile.as_ref(), &common, &sans).await?;
    }
    let tags = change
        .tags
        .map(check_tags)
        .transpose()?
        .unwrap_or_else(|| before.tags.clone());
    sqlx::query(
        "UPDATE certificates
            SET name = coalesce($2, name), common_name = $3, sans = $4, environment = coalesce($5, environment),
                owner_id = coalesce($6, owner_id), team_id = coalesce($7, team_id),
                issuer_id = coalesce($8, issuer_id), renewal_policy_id = coalesce($9, renewal_policy_id),
                profile_id = $10, tags = $11, updated_at = $12, names_certifiable = $13,
                not_after = CASE WHEN current_version_id IS NULL THEN coalesce($14, not_after) ELSE not_after END
          WHERE id = $1",
    )
    .bind(&id)
    .bind(&change.name)
    .bind(&common)
    .bind(&sans)
    .bind(&change.environment)
    .bind(&change.owner_id)
    .bind(&change.team_id)
    .bind(&change.issuer_id)
    .bind(&change.renewal_policy_id)
    .bind(&profile)
    .bind(Json(&tags))
    .bind(now)
    .bind(names_certifiable)
    .bind(change.expires_at.filter(|at| *at > Time::from_unix(0)))
    .execute(&mut *tx)
    .await?;
    if change.renewal_policy_id.is_some() {
        planning::plan_renewal(&mut tx, Planned::Certificates(std::slice::from_ref(&id))).await?;
    }
    if change.name.is_some() {
        let named: Vec<TargetId> = sqlx::query_scalar(
            "SELECT t.id FROM certificate_targets m JOIN targets t ON t.id = m.target_id
              WHERE m.certificate_id = $1 AND t.config::text LIKE '%{name}%' ORDER BY t.id",
        )
        .bind(&id)
        .fetch_all(&mut *tx)
        .await?;
        must_not_overlap(&mut tx, &named).await?;
    }
    if let Some(targets) = &change.target_ids {
        map_targets(&mut tx, &id, targets).await?;
    }
    if change.target_ids.is_some() || names_certifiable != locked.names_certifiable {
        let locked = store::lock(&mut tx, &id).await?;
        planning::retarget(&mut tx, &locked, None).await?;
    }
    must_break_nothing_new(&mut tx, &id, &broken_before).await?;
    if approvals::required(&mut tx, &id).await?.is_weaker_than(&required) {
        if !cx.principal.may(Permission::Configure) {
            return Err(ApiError::new(
                Kind::Forbidden,
                "fewer approvals would be required of the certificate; that needs the permission \"configure\"",
            ));
        }
        approvals::keep_required(&mut tx, &id, &required).await?;
    }
    let updated: Certificate = listing::get(&mut tx, now, id.as_str()).await?;
    approvals::participate(&mut tx, &[&id], &changes(&before, &updated)).await?;
    let event = tx
        .event("certificate_updated", "certificate", &id)
        .with("changes", listing::Changes::between(&before, &updated));
    tx.note(event);
    tx.commit().await?;
    Ok(updated)
}

/// What changed that approvals depend on.
fn changes(before: &Certificate, after: &Certificate) -> Vec<Change> {
    let names = before.common_name != after.common_name || before.sans != after.sans;
    let changed = [
        (names, Change::Names),
        (before.issuer_id != after.issuer_id, Change::Issuer),
        (before.renewal_policy_id != after.renewal_policy_id, Change::Policy),
        (
            before.certificate_profile_id != after.certificate_profile_id,
            Change::Profile,
        ),
        (before.target_ids != after.target_ids, Change::Targets),
    ];
    let changed = changed.into_iter().filter(|(changed, _)| *changed);
    changed.map(|(_, change)| change).collect()
}

/// The rules that a certificate breaks.
async fn open_violations(tx: &mut Tx, id: &CertificateId) -> Result<Vec<PolicyId>, ApiError> {
    Ok(
        sqlx::query_scalar("SELECT rule_id FROM policy_violations WHERE certificate_id = $1 AND closed_at IS NULL")
            .bind(id)
            .fetch_all(&mut **tx)
            .await?,
    )
}

/// Refuses a change by which a certificate comes to break a rule. What it broke before stands against nothing else.
async fn must_break_nothing_new(tx: &mut Tx, id: &CertificateId, before: &[PolicyId]) -> Result<(), ApiError> {
    let broken = policies::judge(tx, &[id], Moment::Change).await?.remove(id);
    let new = broken.unwrap_or_default().into_iter();
    let new: Vec<Broken> = new.filter(|one| !before.contains(&one.rule)).collect();
    match new.is_empty() {
        true => Ok(()),
        false => Err(super::policies::refusal(&new)),
    }
}

/// What is being signed is judged by the record: neither names nor issuer nor profile change until it is recorded.
async fn not_while_signing(tx: &mut Tx, id: &CertificateId) -> Result<(), ApiError> {
    let signing: Option<String> = sqlx::query_scalar(
        "SELECT id FROM jobs
          WHERE certificate_id = $1 AND type IN ('Issuance', 'Renewal') AND status = 'Running' LIMIT 1",
    )
    .bind(id)
    .fetch_optional(&mut **tx)
    .await?;
    match signing {
        Some(job) => {
            let detail = format!("certificate {id} is being signed by job {job}; change it when that is finished");
            Err(ApiError::new(Kind::WrongState, detail))
        }
        None => Ok(()),
    }
}

async fn archive(cx: Cx, rq: Request<ArchiveCertificate>) -> Result<NoContent, ApiError> {
    let id = rq.path.id;
    let mut tx = cx.begin().await?;
    if store::lock(&mut tx, &id).await?.archived_at.is_some() {
        return Ok(NoContent);
    }
    sqlx::query("UPDATE certificates SET archived_at = $2, updated_at = $2 WHERE id = $1")
        .bind(&id)
        .bind(tx.now())
        .execute(&mut *tx)
        .await?;
    jobs::cancel_open(&mut tx, &id, "the certificate was archived").await?;
    listing::commit(tx, "certificate_archived", "certificate", id.as_str()).await?;
    Ok(NoContent)
}

impl Listed for CertificateVersion {
    type Filter = VersionFilter;
    type Sort = VersionSort;

    const KIND: &'static str = "version";
    const COLUMNS: &'static str = "v.id, v.certificate_id, v.version, v.serial_number, v.not_before, v.not_after,
        v.fingerprint_sha256, v.spki_sha256, v.cert_pem, v.chain_pem, v.csr_der, v.key_algorithm, v.key_size,
        v.agent_id, v.imported_from, v.created_at, r.revoked_at,
        (SELECT k.blocked_at FROM blocked_keys k WHERE k.spki_sha256 = v.spki_sha256) AS key_blocked_at";
    const FROM: &'static str = "certificate_versions v
        LEFT JOIN revocations r ON r.issuer_id = v.issuer_id AND r.serial_number = v.serial_number
                               AND r.released_at IS NULL";
    const ID: &'static str = "v.id";
    const BELONGS: Belongs = Belongs::Certificate("v.certificate_id");
    const DEFAULT: Sort<VersionSort> = Sort {
        key: VersionSort::CreatedAt,
        descending: true,
    };

    fn column(key: VersionSort) -> Column {
        match key {
            // Numbered as they are created, also within one instant.
            VersionSort::CreatedAt => Column::integer("v.version"),
        }
    }

    fn restrict(f: &VersionFilter, sql: &mut Where<'_>) {
        sql.eq("v.serial_number", &f.serial_number);
    }

    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        let (cert_pem, chain_pem): (String, String) = (row.try_get("cert_pem")?, row.try_get("chain_pem")?);
        let fingerprint: String = row.try_get("fingerprint_sha256")?;
        Ok(Self {
            id: row.try_get("id")?,
            certificate_id: row.try_get("certificate_id")?,
            version: row.try_get("version")?,
            serial_number: row.try_get("serial_number")?,
            not_before: row.try_get("not_before")?,
            not_after: row.try_get("not_after")?,
            fingerprint_sha256: fingerprint.clone(),
            fingerprint,
            spki_sha256: row.try_get("spki_sha256")?,
            pem_chain: format!("{cert_pem}\n{chain_pem}"),
            cert_pem,
            chain_pem,
            csr_pem: row
                .try_get::<Option<&[u8]>, _>("csr_der")?
                .map_or_else(String::new, |der| pem::encode("CERTIFICATE REQUEST", der)),
            imported_from: row.try_get("imported_from")?,
            key_algorithm: row.try_get("key_algorithm")?,
            key_size: row.try_get("key_size")?,
            agent_id: row.try_get("agent_id")?,
            revoked_at: row.try_get("revoked_at")?,
            key_blocked_at: row.try_get("key_blocked_at")?,
            created_at: row.try_get("created_at")?,
        })
    }
}

async fn must_exist(cx: &Cx, id: &CertificateId) -> Result<(), ApiError> {
    let found: Option<i32> = sqlx::query_scalar("SELECT 1 FROM certificates WHERE id = $1")
        .bind(id)
        .fetch_optional(cx.pool())
        .await?;
    found.map(|_| ()).ok_or_else(|| ApiError::missing("certificate", id))
}

async fn versions(cx: Cx, rq: Request<ListCertificateVersions>) -> Result<Page<CertificateVersion>, ApiError> {
    let id = rq.path.id;
    must_exist(&cx, &id).await?;
    listing::list_where(&cx, rq.query, |sql| sql.eq("v.certificate_id", &Some(id.clone()))).await
}

async fn deployments(cx: Cx, rq: Request<ListCertificateDeployments>) -> Result<Deployments, ApiError> {
    let id = rq.path.id;
    must_exist(&cx, &id).await?;
    let rows = sqlx::query(
        "SELECT t.id, t.name, t.type, t.agent_id, a.hostname, t.config, t.enabled,
                CASE WHEN t.enabled THEN 'active' ELSE 'disabled' END AS status, t.created_at, t.updated_at
           FROM certificate_targets m JOIN targets t ON t.id = m.target_id JOIN agents a ON a.id = t.agent_id
          WHERE m.certificate_id = $1
          ORDER BY t.created_at DESC, t.id",
    )
    .bind(&id)
    .fetch_all(cx.pool())
    .await?;
    let data = rows.iter().map(Target::from_row).collect::<Result<Vec<_>, _>>()?;
    Ok(Deployments {
        total: data.len() as i64,
        data,
    })
}

fn triggered(status: &str, job_ids: Vec<JobId>) -> Triggered {
    Triggered {
        status: status.to_owned(),
        job_id: job_ids.first().cloned(),
        job_ids,
        private_key_pem: None,
    }
}

async fn renew(cx: Cx, rq: Request<TriggerRenewal>) -> Result<Triggered, ApiError> {
    let id = rq.path.id;
    let request = rq.body.csr_pem.as_deref().map(read_request).transpose()?;
    let mut tx = cx.begin().await?;
    store::lock(&mut tx, &id).await?.must_be_live()?;
    let (request, key) = match request {
        Some(request) => {
            admit_request(&mut tx, &id, &request).await?;
            (Some(request.der().to_vec()), None)
        }
        None if cx.app.server_makes_keys && !store::has_targets(&mut tx, &id).await? => {
            let (request, key) = make_key(&mut tx, &id).await?;
            (Some(request), Some(key))
        }
        None => (None, None),
    };
    let jobs = store::renew(&mut tx, &id, request).await?;
    tx.commit().await?;
    certctl_runtime::failpoint::hold("api.renewal_triggered").await;
    Ok(Triggered {
        private_key_pem: key.map(|key| key.to_string()),
        ..triggered("renewal_triggered", jobs)
    })
}

async fn deploy(cx: Cx, rq: Request<TriggerDeployment>) -> Result<Triggered, ApiError> {
    let (id, only) = (rq.path.id, rq.body.target_id);
    let mut tx = cx.begin().await?;
    let certificate = store::lock(&mut tx, &id).await?;
    certificate.must_be_live()?;
    let chosen = chosen_version(&mut tx, &id, rq.body.version_id, rq.body.version).await?;
    if let Some(target) = &only {
        map_target(&mut tx, &id, target).await?;
    }
    let mut jobs = store::request_deployment(&mut tx, &certificate, only.as_ref(), chosen.as_ref()).await?;
    if jobs.is_empty() && chosen.is_none() {
        certificate.ensure_certifiable()?;
        jobs = store::request_missing(&mut tx, &certificate, only.as_ref()).await?;
    }
    if jobs.is_empty() {
        let detail = format!(
            "there is nothing to deploy for certificate {id}: it has no enabled target, or is being issued or deployed already"
        );
        return Err(ApiError::new(Kind::WrongState, detail));
    }
    let event = tx
        .event("deployment_triggered", "certificate", &id)
        .with("common_name", &certificate.common_name)
        .with("version_id", &chosen);
    tx.note(event);
    tx.commit().await?;
    Ok(triggered("deployment_triggered", jobs))
}

async fn validate(cx: Cx, rq: Request<TriggerValidation>) -> Result<Triggered, ApiError> {
    let (id, only) = (rq.path.id, rq.body.target_id);
    let mut tx = cx.begin().await?;
    let certificate = store::lock(&mut tx, &id).await?;
    certificate.must_be_live()?;
    must_be_mapped(&mut tx, &id, only.as_ref()).await?;
    let jobs = validations::request(&mut tx, &certificate, only.as_ref()).await?;
    if jobs.is_empty() {
        let detail = format!(
            "there is nowhere to look for certificate {id}: no enabled target with endpoints, or one looks there already"
        );
        return Err(ApiError::new(Kind::WrongState, detail));
    }
    let event = tx
        .event("validation_triggered", "certificate", &id)
        .with("common_name", &certificate.common_name);
    tx.note(event);
    tx.commit().await?;
    Ok(triggered("validation_triggered", jobs))
}

/// Makes a target one of the certificate's, unless it is already.
async fn map_target(tx: &mut Tx, id: &CertificateId, target: &TargetId) -> Result<(), ApiError> {
    let now = tx.now();
    let before: Certificate = listing::get(tx, now, id.as_str()).await?;
    if before.target_ids.contains(target) {
        return Ok(());
    }
    let known: Option<i32> = sqlx::query_scalar("SELECT 1 FROM targets WHERE id = $1")
        .bind(target)
        .fetch_optional(&mut **tx)
        .await?;
    if known.is_none() {
        return Err(ApiError::invalid("target_id", format!("there is no target {target}")));
    }
    let broken = open_violations(tx, id).await?;
    let all: Vec<TargetId> = before.target_ids.iter().chain([target]).cloned().collect();
    map_targets(tx, id, &all).await?;
    // What is tracked only, or was certified for a request, is from now on what the agent gets.
    planning::plan_renewal(tx, Planned::Certificates(std::slice::from_ref(id))).await?;
    must_break_nothing_new(tx, id, &broken).await?;
    let after: Certificate = listing::get(tx, now, id.as_str()).await?;
    approvals::participate(tx, &[id], &changes(&before, &after)).await?;
    let event = tx
        .event("certificate_updated", "certificate", id)
        .with("changes", listing::Changes::between(&before, &after));
    tx.note(event);
    Ok(())
}

async fn must_be_mapped(tx: &mut Tx, id: &CertificateId, target: Option<&TargetId>) -> Result<(), ApiError> {
    let Some(target) = target else {
        return Ok(());
    };
    let mapped: Option<i32> =
        sqlx::query_scalar("SELECT 1 FROM certificate_targets WHERE certificate_id = $1 AND target_id = $2")
            .bind(id)
            .bind(target)
            .fetch_optional(&mut **tx)
            .await?;
    mapped.map(|_| ()).ok_or_else(|| {
        ApiError::invalid(
            "target_id",
            format!("certificate {id} is not mapped to target {target}"),
        )
    })
}

/// The version somebody chose by id or number, if any, and that can be deployed.
async fn chosen_version(
    tx: &mut Tx,
    certificate: &CertificateId,
    id: Option<VersionId>,
    number: Option<i32>,
) -> Result<Option<VersionId>, ApiError> {
    if id.is_none() && number.is_none() {
        return Ok(None);
    }
    let found: Option<VersionId> = sqlx::query_scalar(
        "SELECT id FROM certificate_versions
          WHERE certificate_id = $1 AND ($2::text IS NULL OR id = $2) AND ($3::integer IS NULL OR version = $3)",
    )
    .bind(certificate)
    .bind(&id)
    .bind(number)
    .fetch_optional(&mut **tx)
    .await?;
    let field = if id.is_some() { "version_id" } else { "version" };
    let found =
        found.ok_or_else(|| ApiError::invalid(field, format!("certificate {certificate} has no such version")))?;
    store::must_be_deployable(tx, &found).await?;
    Ok(Some(found))
}

async fn revoke(cx: Cx, rq: Request<RevokeCertificate>) -> Result<Outcome, ApiError> {
    let id = rq.path.id;
    let grounds = Grounds {
        reason: rq.body.reason.unwrap_or(RevocationReason::Unspecified),
        invalidity_date: rq.body.invalidity_date,
        even_archived: false,
    };
    let mut tx = cx.begin().await?;
    if let Some(date) = grounds.invalidity_date {
        plausible(&mut tx, &id, date).await?;
    }
    revocations::revoke(&mut tx, &id, grounds).await?;
    tx.commit().await?;
    certctl_runtime::failpoint::hold("api.revoked").await;
    cx.app.journal(&id).await?;
    Ok(Outcome::of("revoked"))
}

/// Refuses a day on which nothing could have been wrong yet.
async fn plausible(tx: &mut Tx, id: &CertificateId, date: Time) -> Result<(), ApiError> {
    if date > tx.now() {
        return Err(ApiError::invalid("invalidity_date", "lies in the future"));
    }
    match revocations::issued_since(tx, id).await? {
        Some(since) if date < since => Err(ApiError::invalid(
            "invalidity_date",
            format!("lies before {since}, when the certificate began"),
        )),
        _ => Ok(()),
    }
}

async fn release(cx: Cx, rq: Request<ReleaseCertificate>) -> Result<Outcome, ApiError> {
    let id = rq.path.id;
    let mut tx = cx.begin().await?;
    revocations::release(&mut tx, &id).await?;
    // While it was held, its targets could be given to another.
    let targets: Vec<TargetId> =
        sqlx::query_scalar("SELECT target_id FROM certificate_targets WHERE certificate_id = $1 ORDER BY target_id")
            .bind(&id)
            .fetch_all(&mut *tx)
            .await?;
    must_not_overlap(&mut tx, &targets).await?;
    tx.commit().await?;
    cx.app.journal(&id).await?;
    Ok(Outcome::of("released"))
}

async fn revocation(cx: Cx, rq: Request<GetCertificateRevocation>) -> Result<CertificateRevocation, ApiError> {
    let id = rq.path.id;
    must_exist(&cx, &id).await?;
    let rows = sqlx::query(
        "SELECT r.issuer_id, r.serial_number, r.reason, r.revoked_by, r.revoked_at, r.released_at, r.invalidity_date,
                NOT r.short_lived AS published, r.shard,
                -- What is recorded before a list is made is in it; its day has whole seconds.
                (SELECT min(l.number) FROM crls l
                  WHERE l.issuer_id = r.issuer_id AND l.shard = r.shard AND l.base IS NULL AND NOT r.short_lived
                    AND r.released_at IS NULL AND l.this_update > r.revoked_at) AS crl_number,
                (SELECT coalesce(jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
                            'edge', s.edge, 'ocsp_at', utc_text(s.ocsp_at), 'crl_at', utc_text(s.crl_at),
                            'crl_number', s.crl_number)) ORDER BY s.edge), '[]')
                   FROM revocation_sightings s
                  WHERE s.issuer_id = r.issuer_id AND s.serial_number = r.serial_number
                    AND s.revoked_at = r.revoked_at) AS sightings
           FROM revocations r
          WHERE r.certificate_id = $1
          ORDER BY r.revoked_at DESC, r.not_after DESC, r.serial_number",
    )
    .bind(&id)
    .fetch_all(cx.pool())
    .await?;
    if rows.is_empty() {
        return Err(ApiError::new(
            Kind::NotFound,
            format!("certificate {id} was never revoked"),
        ));
    }
    let serial = |row: &PgRow| {
        Ok::<_, sqlx::Error>(RevokedSerial {
            issuer_id: row.try_get("issuer_id")?,
            serial_number: row.try_get("serial_number")?,
            reason: row.try_get("reason")?,
            revoked_by: row.try_get("revoked_by")?,
            revoked_at: row.try_get("revoked_at")?,
            released_at: row.try_get("released_at")?,
            invalidity_date: row.try_get("invalidity_date")?,
            published: row.try_get("published")?,
            crl_shard: row.try_get("shard")?,
            crl_number: row.try_get("crl_number")?,
            sightings: row.try_get::<Json<Vec<Sighting>>, _>("sightings")?.0,
        })
    };
    Ok(CertificateRevocation {
        certificate_id: id,
        serials: rows.iter().map(serial).collect::<Result<_, _>>()?,
    })
}

/// The newest version of a certificate whose key an agent holds, as leaf and chain.
pub(super) async fn newest_of_agent(
    cx: &Cx,
    agent: &certctl_model::id::AgentId,
    certificate: &CertificateId,
    version: Option<&VersionId>,
) -> Result<Option<(String, String, Time)>, ApiError> {
    Ok(sqlx::query_as(
        "SELECT cert_pem, chain_pem, created_at FROM certificate_versions
          WHERE certificate_id = $1 AND agent_id = $2 AND ($3::text IS NULL OR id = $3)
          ORDER BY version DESC LIMIT 1",
    )
    .bind(certificate)
    .bind(agent)
    .bind(version)
    .fetch_optional(cx.pool())
    .await?)
}
