//! Issuing: `Csr → Prepared → Recorded → Signed`, each step consuming the one before it.
//!
//! A caller names a job. Everything that is signed comes from rows read here, and from the key of the agent's request.

use std::time::Duration;

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
use certctl_x509::{csr, csr::CertificationRequest, name::common_name_to_name, pem};
use sqlx::{PgPool, types::Json};
use tracing::info;

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
pub(crate) async fn issue(shared: &Shared, job: &JobId) -> Result<Issued> {
    let now = shared.clock.now();
    let recorded = ledger::by_job(&shared.pool, job).await?;
    if let Some(ledger::Entry {
        issuer_id,
        der: Some(der),
        not_after,
        ..
    }) = &recorded
    {
        if *not_after <= now {
            return Err(Error::WrongState(format!(
                "the certificate of job {job} ended at {not_after}; ask for another issuance"
            )));
        }
        let authority = shared.authorities.get(issuer_id).await?;
        return Ok(answer(&authority, der));
    }
    let csr = Csr::read(&shared.pool, job).await?;
    let authority = shared.authorities.get(&csr.issuer).await?;
    authority.must_be_valid(now)?;
    let recorded = match recorded {
        // Recorded and not signed: a crash came between. What was recorded is signed, and nothing else.
        Some(entry) => Recorded::resume(&authority, entry, now)?,
        None => {
            let prepared = csr.prepare(&authority, &shared.terms, now)?;
            failpoint::hold("signer.prepared").await;
            prepared.record(&shared.pool, now).await?
        }
    };
    failpoint::hold("signer.recorded").await;
    let serial = recorded.entry.serial_number.clone();
    let der = recorded.sign()?.store(&shared.pool).await?;
    failpoint::hold("signer.signed").await;
    info!(job.id = %job, issuer.id = %authority.issuer, serial = %serial, "job {job} has its certificate {serial}");
    Ok(answer(&authority, &der))
}

fn answer(authority: &Authority, der: &[u8]) -> Issued {
    Issued {
        certificate_pem: pem::encode("CERTIFICATE", der),
        chain_pem: authority.chain_pem.clone(),
    }
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
pub(crate) struct Prepared<'a> {
    authority: &'a Authority,
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
}

#[derive(sqlx::FromRow)]
struct ProfileRow {
    enabled: bool,
    allowed_key_algorithms: Json<Vec<KeyRule>>,
    max_ttl_seconds: i64,
    allowed_ekus: Vec<ExtendedKeyUsage>,
    required_san_patterns: Vec<String>,
    spiffe_uri_pattern: String,
    allow_short_lived: bool,
}

impl Csr {
    /// Reads the request of a job and everything it is judged by, as they stood at one instant.
    pub(crate) async fn read(pool: &PgPool, job: &JobId) -> Result<Self> {
        const SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        let mut tx = certctl_store::tx::begin(pool, Some(SNAPSHOT)).await?;
        let case: Option<CaseRow> = sqlx::query_as(
            "SELECT j.type AS kind, j.status, j.csr_der, c.id AS certificate, c.common_name, c.sans, c.profile_id,
                    c.revoked_at IS NOT NULL AS revoked, c.archived_at IS NOT NULL AS archived,
                    i.id AS issuer, i.type AS issuer_type, i.enabled AS issuer_enabled,
                    (i.config->>'validity_days')::int AS validity_days,
                    (i.config->>'crl_shards')::int AS crl_shards
               FROM jobs j
               JOIN certificates c ON c.id = j.certificate_id
               JOIN issuers i ON i.id = c.issuer_id
              WHERE j.id = $1",
        )
        .bind(job)
        .fetch_optional(&mut *tx)
        .await?;
        let case = case.ok_or_else(|| Error::NotFound(format!("there is no job {job}")))?;
        let rules = match &case.profile_id {
            Some(id) => rules(&mut tx, id).await?,
            None => ProfileRules::default(),
        };
        let csr = case.judge(job, rules)?;
        must_not_be_blocked(&mut tx, &csr.request).await?;
        tx.commit().await?;
        Ok(csr)
    }

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
    pub(crate) fn prepare<'a>(self, authority: &'a Authority, terms: &Terms, now: Time) -> Result<Prepared<'a>> {
        let short_lived = self.is_short_lived();
        let (not_before, not_after) = self.validity(authority, terms, now);
        let subject = self.subject();
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
            purposes: self.purposes().iter().map(ToString::to_string).collect(),
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
        Ok(Prepared { authority, entry })
    }

    /// The common name, if it fits into a subject (RFC 5280 appendix A.1: at most 64 characters).
    fn subject(&self) -> String {
        let name = self.common_name.to_string();
        match name.len() <= 64 {
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
            der::key_usage(der::leaf_usages(self.request.key())),
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
            .min(own.not_after);
        (not_before, not_after.whole_seconds())
    }

    fn unencodable(&self) -> Error {
        Error::Invalid("the names or the key of the request have no encoding in a certificate".to_owned())
    }
}

impl CaseRow {
    fn judge(self, job: &JobId, rules: ProfileRules) -> Result<Csr> {
        let Self {
            certificate, issuer, ..
        } = &self;
        let wrong = |text: String| Err(Error::WrongState(text));
        if !matches!(self.kind, JobKind::Issuance | JobKind::Renewal) {
            return wrong(format!(
                "job {job} is a {}; only issuances and renewals are signed",
                self.kind
            ));
        }
        if self.status != JobStatus::Running {
            return wrong(format!("job {job} is {}; only running jobs are signed", self.status));
        }
        if self.revoked || self.archived {
            let is = if self.revoked { "revoked" } else { "archived" };
            return wrong(format!(
                "certificate {certificate} is {is}; nothing more is issued for it"
            ));
        }
        if self.issuer_type.parse() != Ok(IssuerType::Local) {
            return wrong(format!(
                "issuer {issuer} is of type {}; only local issuers sign here",
                self.issuer_type
            ));
        }
        if !self.issuer_enabled {
            return wrong(format!("issuer {issuer} is disabled"));
        }
        let Some(der) = &self.csr_der else {
            return wrong(format!("job {job} has no certification request"));
        };
        const DAY: Duration = Duration::from_secs(86_400);
        let days = self.validity_days.and_then(|days| u32::try_from(days).ok());
        let csr = Csr::admit(job, self.issuer, der, &self.common_name, &self.sans, rules)?;
        Ok(Csr {
            validity: days.map(|days| DAY * days),
            shards: self
                .crl_shards
                .and_then(|shards| u32::try_from(shards).ok())
                .unwrap_or(1),
            ..csr
        })
    }
}

impl<'a> Prepared<'a> {
    /// Puts it into the ledger. When another call for the job was first, that one's certificate goes on.
    pub(crate) async fn record(self, pool: &PgPool, now: Time) -> Result<Recorded<'a>> {
        let entry = ledger::record(pool, &self.entry, now).await?;
        Recorded::resume(self.authority, entry, now)
    }
}

impl<'a> Recorded<'a> {
    /// Goes on with what the ledger holds.
    fn resume(authority: &'a Authority, entry: ledger::Entry, now: Time) -> Result<Self> {
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
    /// Stores the certificate; when another call stored one first, that one is returned.
    pub(crate) async fn store(self, pool: &PgPool) -> Result<Vec<u8>> {
        let Self { entry, der } = self;
        Ok(ledger::sign(pool, &entry.issuer_id, &entry.serial_number, &der).await?)
    }
}

/// Refuses a request whose key was blocked, since it was accepted too.
async fn must_not_be_blocked(db: &mut sqlx::PgConnection, request: &CertificationRequest) -> Result<()> {
    let key = request.key_fingerprint();
    let blocked: Option<i32> = sqlx::query_scalar("SELECT 1 FROM blocked_keys WHERE spki_sha256 = $1")
        .bind(&key)
        .fetch_optional(db)
        .await?;
    match blocked {
        Some(_) => Err(Error::Invalid(format!("the key {key} is blocked; make another key"))),
        None => Ok(()),
    }
}

async fn rules(db: &mut sqlx::PgConnection, id: &ProfileId) -> Result<ProfileRules> {
    let row: Option<ProfileRow> = sqlx::query_as(
        "SELECT enabled, allowed_key_algorithms, max_ttl_seconds, allowed_ekus, required_san_patterns,
                spiffe_uri_pattern, allow_short_lived
           FROM profiles WHERE id = $1",
    )
    .bind(id)
    .fetch_optional(db)
    .await?;
    let row =
        row.ok_or_else(|| Error::WrongState(format!("there is no profile {id}, and nothing is issued without it")))?;
    Ok(ProfileRules {
        enabled: row.enabled,
        keys: row.allowed_key_algorithms.0,
        max_ttl: Duration::from_secs(row.max_ttl_seconds.unsigned_abs()),
        ekus: row.allowed_ekus,
        required_san_patterns: row.required_san_patterns,
        spiffe_uri_pattern: row.spiffe_uri_pattern,
        allow_short_lived: row.allow_short_lived,
    })
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
