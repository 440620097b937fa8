//! Issuing: `Csr → Prepared → Recorded → Signed`, each step consuming the one before it.
//!
//! A caller names jobs. Everything that is signed comes from rows read here, and from the keys of the agents' requests.
//! Many jobs go through the steps together, one statement for all of them at each; what is wrong with one of them is its
//! own outcome. A single job is a batch of one.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    num::NonZero,
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::Context;
use certctl_contract::signer::Issued;
use certctl_model::{
    connector::IssuerType,
    id::{CertificateId, IssuerId, JobId, ProfileId},
    job::{JobKind, JobStatus},
    name::{San, all_names},
    profile::{ExtendedKeyUsage, KeyRule, ProfileRules},
    serial::Serial,
    time::Time,
};
use certctl_runtime::failpoint;
use certctl_store::{
    crls::{List, Scope},
    ledger,
};
use certctl_x509::{csr, csr::CertificationRequest, keys, name::common_name_to_name, pem};
use sqlx::{PgPool, types::Json};
use tracing::{info, warn};

use crate::{
    Shared,
    authority::Authority,
    der::{self, Contents, oid},
    error::{Error, Result},
    lint,
};

/// What the signer puts into certificates of its own accord.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    /// Lifetime unless the profile asks for a shorter one.
    pub(crate) leaf_validity: Duration,
    /// How far before the signature a certificate begins.
    pub(crate) backdate: Duration,
    /// Base of the URLs of CRL, OCSP and issuer, without a slash at its end.
    pub(crate) public_url: Option<String>,
}

/// Issues the certificate of a job, or returns the one that was issued and has not ended.
pub(crate) async fn issue(shared: &Arc<Shared>, job: JobId) -> Result<Issued> {
    let mut outcomes = together(shared, &[job]).await?;
    outcomes.pop().expect("each job has an outcome")
}

/// Issues the certificates of several jobs, each as if it were asked for alone; outcomes in the order of the jobs.
///
/// # Errors
/// When the database is away, for all of them.
pub(crate) async fn issue_all(shared: &Arc<Shared>, jobs: &[JobId]) -> Result<Vec<Result<Issued>>> {
    match together(shared, jobs).await {
        Err(error) if jobs.len() > 1 && !error.is_transient() => {
            // One of them spoils what is done for all: each is asked by itself which it is.
            warn!("{} jobs are not issued together but one by one: {error:#}", jobs.len());
            let mut outcomes = Vec::with_capacity(jobs.len());
            for job in jobs {
                outcomes.push(issue(shared, job.clone()).await);
            }
            Ok(outcomes)
        }
        outcomes => outcomes,
    }
}

async fn together(shared: &Arc<Shared>, jobs: &[JobId]) -> Result<Vec<Result<Issued>>> {
    let (pool, now) = (&shared.pool, shared.clock.now());
    let mut recorded = ledger_of(ledger::by_jobs(pool, &jobs.iter().map(JobId::as_str).collect::<Vec<_>>()).await?);
    let mut batch = Batch::default();
    let mut waiting = Vec::new();
    for job in jobs.iter().collect::<BTreeSet<_>>() {
        match recorded.get(job.as_str()) {
            Some(ledger::Entry {
                der: Some(der),
                issuer_id,
                not_after,
                ..
            }) => {
                let answer = first_answer(shared, job, issuer_id, der, *not_after, now).await;
                batch.outcomes.insert(job.clone(), answer);
            }
            _ => waiting.push(job.clone()),
        }
    }
    let mut cases = Vec::new();
    for (job, case) in Case::read(pool, waiting).await? {
        match with_authority(shared, case, now).await {
            Ok((case, authority)) => {
                let is_recorded = recorded.contains_key(job.as_str());
                cases.push((job, (case, authority, is_recorded)));
            }
            Err(error) => batch.refuse(job, error),
        }
    }

    let terms = shared.terms.clone();
    let judged = batch.compute(
        cases,
        move |(case, authority, is_recorded): (Case, Arc<Authority>, bool)| {
            let csr = case.judge()?;
            // Recorded and not signed: a crash came between. What was recorded is signed, and nothing else.
            let prepared = (!is_recorded).then(|| csr.prepare(&authority, &terms, now));
            Ok((authority, prepared.transpose()?))
        },
    );
    let judged = judged.await?;
    failpoint::hold("signer.prepared").await;

    let (mut authorities, mut prepared) = (Vec::new(), Vec::new());
    for (job, (authority, one)) in judged {
        authorities.push((job, authority));
        prepared.extend(one);
    }
    recorded.extend(record(pool, prepared, now).await?);
    failpoint::hold("signer.recorded").await;

    let entries = authorities.into_iter().map(|(job, authority)| {
        let entry = recorded.remove(job.as_str());
        (job, (authority, entry))
    });
    let signed = batch.compute(
        entries.collect(),
        move |(authority, entry): (Arc<Authority>, Option<ledger::Entry>)| {
            // Serial numbers have 128 random bits; whatever took this one, another try has another.
            let entry = entry.ok_or_else(|| anyhow::anyhow!("the serial number that was drawn is in use"))?;
            Recorded::resume(&authority, entry, now)?
                .sign()
                .map(|signed| (authority, signed))
        },
    );
    let signed = signed.await?;
    let (mut authorities, mut certificates) = (HashMap::new(), Vec::new());
    for (job, (authority, one)) in signed {
        let serial = one.entry.serial_number.clone();
        authorities.insert(job.to_string(), (job, authority, serial));
        certificates.push(one);
    }
    let stored = Signed::store(certificates, pool).await?;
    failpoint::hold("signer.signed").await;
    for (job, der) in stored {
        let Some((job, authority, serial)) = authorities.remove(&job) else {
            continue;
        };
        info!(job.id = %job, issuer.id = %authority.issuer, serial = %serial, "job {job} has its certificate {serial}");
        batch.outcomes.insert(job, Ok(answer(&authority, &der)));
    }
    Ok(jobs.iter().map(|job| batch.outcome(job)).collect())
}

/// What became of the jobs of a batch so far.
#[derive(Default)]
struct Batch {
    outcomes: HashMap<JobId, Result<Issued>>,
}

impl Batch {
    fn refuse(&mut self, job: JobId, error: Error) {
        self.outcomes.insert(job, Err(error));
    }

    /// Takes every job through a step that computes, on all cores. Those that fail have their outcome; the others go on.
    async fn compute<T: Send + 'static, R: Send + 'static>(
        &mut self,
        jobs: Vec<(JobId, T)>,
        step: impl Fn(T) -> Result<R> + Clone + Send + 'static,
    ) -> Result<Vec<(JobId, R)>> {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let share = jobs.len().div_ceil(cores);
        let mut jobs = jobs.into_iter();
        let mut parts = Vec::with_capacity(cores);
        while jobs.len() > 0 {
            let part: Vec<_> = jobs.by_ref().take(share).collect();
            let step = step.clone();
            parts.push(tokio::task::spawn_blocking(move || {
                let done = part.into_iter().map(|(job, value)| (job, step(value)));
                done.collect::<Vec<_>>()
            }));
        }
        let mut done = Vec::new();
        for part in parts {
            for (job, outcome) in part.await.context("a computation was cut short")? {
                match outcome {
                    Ok(value) => done.push((job, value)),
                    Err(error) => self.refuse(job, error),
                }
            }
        }
        Ok(done)
    }

    fn outcome(&mut self, job: &JobId) -> Result<Issued> {
        let outcome = self.outcomes.remove(job);
        outcome.unwrap_or_else(|| Err(Error::Malformed(format!("job {job} is named twice"))))
    }
}

async fn first_answer(
    shared: &Shared,
    job: &JobId,
    issuer: &IssuerId,
    der: &[u8],
    not_after: Time,
    now: Time,
) -> Result<Issued> {
    if not_after <= now {
        return Err(Error::WrongState(format!(
            "the certificate of job {job} ended at {not_after}; ask for another issuance"
        )));
    }
    let authority = shared.authorities.get(issuer).await?;
    Ok(answer(&authority, der))
}

async fn with_authority(shared: &Shared, case: Result<Case>, now: Time) -> Result<(Case, Arc<Authority>)> {
    let case = case?;
    case.must_be_signable()?;
    let authority = shared.authorities.get(&case.row.issuer).await?;
    authority.must_be_valid(now)?;
    Ok((case, authority))
}

fn ledger_of(entries: Vec<ledger::Entry>) -> HashMap<String, ledger::Entry> {
    entries.into_iter().map(|entry| (entry.job_id.clone(), entry)).collect()
}

fn answer(authority: &Authority, der: &[u8]) -> Issued {
    Issued {
        certificate_pem: pem::encode("CERTIFICATE", der),
        chain_pem: authority.chain_pem.clone(),
    }
}

/// A job and everything it is judged by, as they stood at one instant.
pub(crate) struct Case {
    row: CaseRow,
    rules: ProfileRules,
    /// Whether the key of the request was blocked, since it was accepted too.
    is_blocked: bool,
}

/// A request that may be granted: its signature is right, its names are the certificate's, the profile takes it.
#[derive(Debug)]
pub(crate) struct Csr {
    job: JobId,
    request: CertificationRequest,
    issuer: IssuerId,
    common_name: San,
    /// The common name first, each once.
    names: Vec<San>,
    rules: ProfileRules,
    /// The issuer's own lifetime of certificates, if it sets one.
    validity: Option<Duration>,
    /// Into how many CRLs the issuer's revocations are divided.
    shards: u32,
}

/// A to-be-signed certificate that passed the lint. Cannot sign: it is not in the ledger.
pub(crate) struct Prepared {
    pub(crate) entry: ledger::Entry,
}

/// A to-be-signed certificate that the ledger holds.
pub(crate) struct Recorded<'a> {
    authority: &'a Authority,
    entry: ledger::Entry,
}

/// A certificate that the ledger does not hold yet, though what it signs.
pub(crate) struct Signed {
    entry: ledger::Entry,
    der: Vec<u8>,
}

#[derive(sqlx::FromRow)]
struct CaseRow {
    job: JobId,
    kind: JobKind,
    status: JobStatus,
    csr_der: Option<Vec<u8>>,
    certificate: CertificateId,
    common_name: String,
    sans: Vec<String>,
    profile_id: Option<ProfileId>,
    revoked: bool,
    archived: bool,
    issuer: IssuerId,
    issuer_type: String,
    issuer_enabled: bool,
    validity_days: Option<i32>,
    crl_shards: Option<i32>,
    approved: bool,
}

#[derive(sqlx::FromRow)]
struct ProfileRow {
    id: ProfileId,
    enabled: bool,
    allowed_key_algorithms: Json<Vec<KeyRule>>,
    max_ttl_seconds: i64,
    allowed_ekus: Vec<ExtendedKeyUsage>,
    required_san_patterns: Vec<String>,
    spiffe_uri_pattern: String,
    allow_short_lived: bool,
}

impl Case {
    /// Reads the cases of jobs; each has one, or what is missing for it.
    pub(crate) async fn read(pool: &PgPool, jobs: Vec<JobId>) -> Result<Vec<(JobId, Result<Self>)>> {
        const SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        if jobs.is_empty() {
            return Ok(vec![]);
        }
        let mut tx = certctl_store::tx::begin(pool, Some(SNAPSHOT)).await?;
        let rows: Vec<CaseRow> = sqlx::query_as(
            "SELECT j.id AS job, j.type AS kind, j.status, j.csr_der, c.id AS certificate, c.common_name, c.sans,
                    c.profile_id, c.revoked_at IS NOT NULL AS revoked, c.archived_at IS NOT NULL AS archived,
                    i.id AS issuer, i.type AS issuer_type, i.enabled AS issuer_enabled,
                    (i.config->>'validity_days')::int AS validity_days,
                    (i.config->>'crl_shards')::int AS crl_shards,
                    -- Asked of the few that may need it: it costs as much as all the rest.
                    CASE WHEN p.approval = 'none' AND coalesce(f.approval, 'none') = 'none'
                          AND j.planned_approvals = 0 AND j.requested_approvals = 0
                          AND NOT EXISTS (SELECT 1 FROM participations q
                                           WHERE q.certificate_id = c.id AND q.id > j.participations_from
                                             AND greatest(q.planned_approvals, q.requested_approvals) > 0)
                         THEN true ELSE job_approved(j, c) END AS approved
               FROM jobs j
               JOIN certificates c ON c.id = j.certificate_id
               JOIN issuers i ON i.id = c.issuer_id
               JOIN renewal_policies p ON p.id = c.renewal_policy_id
               LEFT JOIN profiles f ON f.id = c.profile_id
              WHERE j.id = ANY ($1)",
        )
        .bind(&jobs)
        .fetch_all(&mut *tx)
        .await?;
        let named: BTreeSet<&ProfileId> = rows.iter().filter_map(|row| row.profile_id.as_ref()).collect();
        let profiles = profiles(&mut tx, named.into_iter().collect()).await?;
        let blocked = blocked(&mut tx, &rows).await?;
        tx.commit().await?;
        let mut rows: HashMap<JobId, CaseRow> = rows.into_iter().map(|row| (row.job.clone(), row)).collect();
        let case = |job: JobId| {
            let case = match rows.remove(&job) {
                Some(row) => Self::of(row, &profiles, &blocked),
                None => Err(Error::NotFound(format!("there is no job {job}"))),
            };
            (job, case)
        };
        Ok(jobs.into_iter().map(case).collect())
    }

    fn of(row: CaseRow, profiles: &HashMap<ProfileId, ProfileRules>, blocked: &HashSet<JobId>) -> Result<Self> {
        let missing = |id| Error::WrongState(format!("there is no profile {id}, and nothing is issued without it"));
        let rules = match &row.profile_id {
            Some(id) => profiles.get(id).cloned().ok_or_else(|| missing(id))?,
            None => ProfileRules::default(),
        };
        let is_blocked = blocked.contains(&row.job);
        Ok(Self { row, rules, is_blocked })
    }
}

impl Csr {
    /// Judges a request by the names of its certificate and the rules of its profile.
    pub(crate) fn admit(
        job: &JobId,
        issuer: IssuerId,
        der: &[u8],
        common_name: &str,
        sans: &[String],
        rules: ProfileRules,
    ) -> Result<Self> {
        let invalid = |error: &dyn std::fmt::Display| Error::Invalid(error.to_string());
        let request = CertificationRequest::parse_der(der).map_err(|error| invalid(&error))?;
        let common_name: San = common_name.parse().map_err(|error| invalid(&error))?;
        let sans = sans.iter().map(|name| name.parse()).collect::<Result<Vec<San>, _>>();
        let names = all_names(&common_name, &sans.map_err(|error| invalid(&error))?);
        csr::names_within(request.common_name(), request.sans(), &names).map_err(Error::Invalid)?;
        rules.check_purposes().map_err(Error::Invalid)?;
        rules.admits(request.key(), &names).map_err(Error::Invalid)?;
        Ok(Self {
            job: job.clone(),
            request,
            issuer,
            common_name,
            names,
            rules,
            validity: None,
            shards: 1,
        })
    }

    /// Builds the certificate and lints it.
    pub(crate) fn prepare(self, authority: &Authority, terms: &Terms, now: Time) -> Result<Prepared> {
        if self.issuer != authority.issuer {
            return Err(Error::WrongState(format!(
                "the request is for issuer {}, not for {}",
                self.issuer, authority.issuer
            )));
        }
        let short_lived = self.is_short_lived();
        let (not_before, not_after) = self.validity(authority, terms, now);
        let outside = |why: String| Error::Invalid(format!("issuer {} cannot certify this: {why}", self.issuer));
        let purposes = self.purposes();
        let dotted: Vec<String> = purposes.iter().map(ToString::to_string).collect();
        authority.path.admits_purposes(&dotted).map_err(outside)?;
        authority.path.admits_names(&self.names).map_err(outside)?;
        let subject = self.subject(authority);
        let mut extensions = self.extensions(subject.is_empty()).ok_or_else(|| self.unencodable())?;
        extensions.push(der::authority_key_id(&authority.key_id));
        let serial_number = der::random_serial()?;
        let crl = match terms.public_url.is_some() && !short_lived {
            true => crl_of(&authority.issuer, &serial_number, self.shards),
            false => List::full(authority.issuer.clone()),
        };
        let shard = crl.shard();
        extensions.extend(publication(&crl, terms, short_lived).ok_or_else(|| self.unencodable())?);
        let contents = Contents {
            serial: &serial_number,
            algorithm: authority.algorithm(),
            issuer: authority.name.clone(),
            not_before,
            not_after,
            subject: common_name_to_name(&subject),
            spki_der: self.request.spki_der(),
            extensions,
        };
        let tbs_der = contents.encode().ok_or_else(|| self.unencodable())?;
        let wanted = lint::Wanted {
            spki_der: self.request.spki_der(),
            key: self.request.key(),
            names: &self.names,
            purposes: dotted,
            longest: (!self.rules.max_ttl.is_zero()).then_some(self.rules.max_ttl),
            publishes: terms.public_url.is_some() && !short_lived,
            no_rev_avail: short_lived,
        };
        lint::certificate(&tbs_der, authority, &wanted)
            .map_err(|why| Error::Internal(anyhow::anyhow!("the certificate that was built is not signed: {why}")))?;
        let entry = ledger::Entry {
            issuer_id: authority.issuer.clone(),
            serial_number,
            job_id: self.job.to_string(),
            tbs_der,
            der: None,
            not_after,
            short_lived,
            shard,
        };
        Ok(Prepared { entry })
    }

    /// The common name, if it fits into a subject (RFC 5280 appendix A.1: at most 64 characters) and the chain allows a
    /// subject of it alone. Otherwise the subject is empty: the name is among the subject alternative names anyway.
    fn subject(&self, authority: &Authority) -> String {
        let name = self.common_name.to_string();
        let allowed = || {
            let der = der::encode(&common_name_to_name(&name));
            authority.path.admits_subject(&der, &self.names).is_ok()
        };
        match name.len() <= 64 && allowed() {
            true => name,
            false => String::new(),
        }
    }

    fn purposes(&self) -> Vec<rasn::types::ObjectIdentifier> {
        let mut purposes: Vec<_> = self.rules.ekus.iter().copied().map(der::purpose).collect();
        if purposes.is_empty() {
            purposes.push(der::purpose(ExtendedKeyUsage::ServerAuth));
        }
        purposes.sort();
        purposes.dedup();
        purposes
    }

    fn extensions(&self, subject_is_empty: bool) -> Option<Vec<rasn_pkix::Extension>> {
        Some(vec![
            der::key_usage(der::leaf_usages(self.request.key(), &self.rules.ekus)),
            der::extended_key_usage(self.purposes()),
            der::subject_alt_name(&self.names, subject_is_empty)?,
            der::subject_key_id(&der::key_id(self.request.spki_der())?),
        ])
    }

    /// Whether revocations are not published.
    fn is_short_lived(&self) -> bool {
        const HOUR: Duration = Duration::from_secs(3600);
        self.rules.allow_short_lived && !self.rules.max_ttl.is_zero() && self.rules.max_ttl < HOUR
    }

    /// From when to when, in whole seconds and within the authority's own validity. The profile's limit is one on the
    /// whole of it.
    fn validity(&self, authority: &Authority, terms: &Terms, now: Time) -> (Time, Time) {
        let now = now.whole_seconds();
        let longest = match self.rules.max_ttl.is_zero() {
            true => Duration::MAX,
            false => self.rules.max_ttl,
        };
        // Of a short life not all may lie in the past.
        let backdate = terms.backdate.min(longest / 10);
        let own = &authority.certificate;
        let not_before = (now - backdate).whole_seconds().max(own.not_before);
        let not_after = (now + self.validity.unwrap_or(terms.leaf_validity))
            .min(not_before + longest)
            .min(authority.not_after());
        (not_before, not_after.whole_seconds())
    }

    fn unencodable(&self) -> Error {
        Error::Invalid("the names or the key of the request have no encoding in a certificate".to_owned())
    }
}

impl Case {
    /// Refuses what is not to be signed, whatever the request says.
    fn must_be_signable(&self) -> Result<()> {
        let CaseRow {
            job,
            certificate,
            issuer,
            ..
        } = &self.row;
        let wrong = |text: String| Err(Error::WrongState(text));
        if !matches!(self.row.kind, JobKind::Issuance | JobKind::Renewal) {
            return wrong(format!(
                "job {job} is a {}; only issuances and renewals are signed",
                self.row.kind
            ));
        }
        if self.row.status != JobStatus::Running {
            return wrong(format!(
                "job {job} is {}; only running jobs are signed",
                self.row.status
            ));
        }
        if self.row.revoked || self.row.archived {
            let is = if self.row.revoked { "revoked" } else { "archived" };
            return wrong(format!(
                "certificate {certificate} is {is}; nothing more is issued for it"
            ));
        }
        if self.row.issuer_type.parse() != Ok(IssuerType::Local) {
            return wrong(format!(
                "issuer {issuer} is of type {}; only local issuers sign here",
                self.row.issuer_type
            ));
        }
        if !self.row.issuer_enabled {
            return wrong(format!("issuer {issuer} is disabled"));
        }
        if !self.row.approved {
            return wrong(format!(
                "what job {job} would have signed is not what was approved, or not enough people approved it"
            ));
        }
        Ok(())
    }

    /// Judges the request, its signature first.
    pub(crate) fn judge(self) -> Result<Csr> {
        const DAY: Duration = Duration::from_secs(86_400);
        self.must_be_signable()?;
        let Self { row, rules, is_blocked } = self;
        let Some(der) = &row.csr_der else {
            return Err(Error::WrongState(format!(
                "job {} has no certification request",
                row.job
            )));
        };
        let days = row.validity_days.and_then(|days| u32::try_from(days).ok());
        let csr = Csr::admit(&row.job, row.issuer, der, &row.common_name, &row.sans, rules)?;
        if is_blocked {
            let key = csr.request.key_fingerprint();
            return Err(Error::Invalid(format!("the key {key} is blocked; make another key")));
        }
        Ok(Csr {
            validity: days.map(|days| DAY * days),
            shards: row
                .crl_shards
                .and_then(|shards| u32::try_from(shards).ok())
                .unwrap_or(1),
            ..csr
        })
    }
}

/// Puts them into the ledger. When another call for a job was first, that one's certificate goes on.
pub(crate) async fn record(
    pool: &PgPool,
    prepared: Vec<Prepared>,
    now: Time,
) -> Result<HashMap<String, ledger::Entry>> {
    let entries = prepared.into_iter().map(|one| one.entry).collect();
    Ok(ledger_of(ledger::record_all(pool, entries, now).await?))
}

impl<'a> Recorded<'a> {
    /// Goes on with what the ledger holds.
    pub(crate) fn resume(authority: &'a Authority, entry: ledger::Entry, now: Time) -> Result<Self> {
        if entry.issuer_id != authority.issuer {
            return Err(Error::WrongState(format!(
                "the job was recorded for issuer {}, not for {}; ask for another issuance",
                entry.issuer_id, authority.issuer
            )));
        }
        if entry.not_after <= now {
            return Err(Error::WrongState(format!(
                "the certificate recorded for the job ended at {} before it was signed; ask for another issuance",
                entry.not_after
            )));
        }
        Ok(Self { authority, entry })
    }

    /// Signs what the ledger holds.
    pub(crate) fn sign(self) -> Result<Signed> {
        let der = self.authority.sign(&self.entry.tbs_der)?;
        metrics::counter!("signer_signatures_total", "kind" => "certificate", "issuer" => self.authority.issuer.to_string())
            .increment(1);
        Ok(Signed { entry: self.entry, der })
    }
}

impl Signed {
    /// Stores certificates; when another call stored one first, that one is returned. By the ids of their jobs.
    async fn store(signed: Vec<Self>, pool: &PgPool) -> Result<Vec<(String, Vec<u8>)>> {
        let rows = signed
            .into_iter()
            .map(|Self { entry, der }| (entry.issuer_id, entry.serial_number, der));
        Ok(ledger::sign_all(pool, &rows.collect::<Vec<_>>()).await?)
    }
}

/// The jobs whose requests carry blocked keys. A request that cannot be read is refused for that.
async fn blocked(db: &mut sqlx::PgConnection, rows: &[CaseRow]) -> Result<HashSet<JobId>> {
    let key = |row: &CaseRow| {
        let spki = csr::spki_of_accepted(row.csr_der.as_deref()?).ok()?;
        Some((row.job.clone(), keys::fingerprint(&spki).to_string()))
    };
    let (jobs, keys): (Vec<JobId>, Vec<String>) = rows.iter().filter_map(key).unzip();
    let blocked: Vec<JobId> = sqlx::query_scalar(
        "SELECT r.job FROM unnest($1::text[], $2::text[]) AS r (job, key) JOIN blocked_keys b ON b.spki_sha256 = r.key",
    )
    .bind(jobs)
    .bind(keys)
    .fetch_all(db)
    .await?;
    Ok(blocked.into_iter().collect())
}

async fn profiles(db: &mut sqlx::PgConnection, ids: Vec<&ProfileId>) -> Result<HashMap<ProfileId, ProfileRules>> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let rows: Vec<ProfileRow> = sqlx::query_as(
        "SELECT id, enabled, allowed_key_algorithms, max_ttl_seconds, allowed_ekus, required_san_patterns,
                spiffe_uri_pattern, allow_short_lived
           FROM profiles WHERE id = ANY ($1)",
    )
    .bind(ids)
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (row.id.clone(), row.rules())).collect())
}

impl ProfileRow {
    fn rules(self) -> ProfileRules {
        ProfileRules {
            enabled: self.enabled,
            keys: self.allowed_key_algorithms.0,
            max_ttl: Duration::from_secs(self.max_ttl_seconds.unsigned_abs()),
            ekus: self.allowed_ekus,
            required_san_patterns: self.required_san_patterns,
            spiffe_uri_pattern: self.spiffe_uri_pattern,
            allow_short_lived: self.allow_short_lived,
        }
    }
}

/// The CRL that will tell of a certificate: one of the issuer's shards, by its serial number, which is random.
fn crl_of(issuer: &IssuerId, serial: &Serial, shards: u32) -> List {
    let number = serial
        .octets()
        .iter()
        .take(4)
        .fold(0, |number, octet| number << 8 | u32::from(*octet));
    let scope = match shards {
        0 | 1 => Scope::Full,
        shards => Scope::Shard(i32::try_from(1 + number % shards).unwrap_or(1)),
    };
    List {
        issuer: issuer.clone(),
        scope,
    }
}

/// Where to learn of revocation, or that there will be nothing to learn (RFC 9608).
fn publication(crl: &List, terms: &Terms, short_lived: bool) -> Option<Vec<rasn_pkix::Extension>> {
    let issuer = &crl.issuer;
    let mut extensions = Vec::new();
    if short_lived {
        extensions.push(der::marker(oid::NO_REV_AVAIL));
    }
    if let Some(base) = &terms.public_url {
        let certificate = format!("{base}/ca/{issuer}.crt");
        let ocsp = format!("{base}/ocsp/{issuer}");
        extensions.push(der::authority_info_access(
            (!short_lived).then_some(ocsp.as_str()),
            &certificate,
        )?);
        if !short_lived {
            extensions.push(der::crl_distribution_point(&format!("{base}{}", crl.path()))?);
        }
    }
    Some(extensions)
}
