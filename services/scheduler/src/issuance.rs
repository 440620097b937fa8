//! One running job: ask its issuer, check the answer, record it.

use certctl_model::{
    audit::Actor,
    connector::IssuerType,
    id::IssuerId,
    job::Running,
    name::{San, all_names},
};
use certctl_runtime::failpoint;
use certctl_store::{
    certificates::{self, NewVersion},
    jobs::{self, Claimed},
};
use certctl_x509::{
    csr::{self, CertificationRequest},
    facts::CertificateFacts,
};
use tokio::time::timeout;
use tracing::{error, info};

use crate::{
    Scheduler,
    issuers::{IssueError, Issued, Order},
    worker::GiveUp,
};

/// Issues the certificate of a claimed job that has its request, and completes the job.
///
/// The issuer is asked between two transactions. Dying after its answer is harmless: it gives the same one again.
///
/// # Errors
/// What the issuer, the answer or the database had against it.
pub(crate) async fn issue(scheduler: &Scheduler, claim: &Claimed) -> Result<(), GiveUp> {
    let subject = subject(scheduler, claim).await?;
    let issuer = scheduler.issuers.of(subject.issuer_type()?);
    failpoint::hold("scheduler.claimed").await;

    let order = Order {
        job: claim.facts.id.clone(),
    };
    let within = scheduler.issuer_timeout;
    let issued = match timeout(within, issuer.issue(&order)).await {
        Ok(answer) => answer?,
        Err(_) => {
            return Err(GiveUp::from(IssueError::Retry {
                after: None,
                counts: false,
                reason: format!("issuer {} did not answer within {within:?}", subject.issuer_id),
            }));
        }
    };
    failpoint::hold("scheduler.signed").await;

    let version = check(&subject, claim, &issued).map_err(|why| {
        let (issuer, job) = (&subject.issuer_id, &claim.facts.id);
        error!(issuer.id = %issuer, job.id = %job, "issuer {issuer} gave job {job} a wrong certificate: {why}");
        GiveUp::Refused(format!(
            "issuer {issuer} gave a certificate that was not asked for: {why}"
        ))
    })?;
    record(scheduler, claim, &version).await?;
    failpoint::hold("scheduler.recorded").await;

    metrics::counter!("certificates_issued_total", "type" => claim.facts.kind.as_str()).increment(1);
    info!(
        job.id = %claim.facts.id, certificate.id = %claim.facts.certificate, serial = %version.serial,
        "job {} issued certificate {} with serial {}", claim.facts.id, claim.facts.certificate, version.serial
    );
    Ok(())
}

/// What the record says the certificate has to be.
#[derive(Debug, sqlx::FromRow)]
struct Subject {
    common_name: String,
    sans: Vec<String>,
    issuer_id: IssuerId,
    issuer_type: String,
    issuer_enabled: bool,
}

async fn subject(scheduler: &Scheduler, claim: &Claimed) -> Result<Subject, GiveUp> {
    let subject = sqlx::query_as(
        "SELECT c.common_name, c.sans, c.issuer_id, i.type AS issuer_type, i.enabled AS issuer_enabled
           FROM certificates c JOIN issuers i ON i.id = c.issuer_id WHERE c.id = $1",
    )
    .bind(&claim.facts.certificate)
    .fetch_one(&scheduler.db)
    .await
    .map_err(certctl_store::Error::from)?;
    Ok(subject)
}

impl Subject {
    fn issuer_type(&self) -> Result<IssuerType, GiveUp> {
        let id = &self.issuer_id;
        if !self.issuer_enabled {
            return Err(GiveUp::Refused(format!("issuer {id} is disabled")));
        }
        let kind = self.issuer_type.parse();
        kind.map_err(|why| GiveUp::Refused(format!("issuer {id} is of a type nobody here can ask: {why}")))
    }

    fn names(&self) -> Result<Vec<San>, String> {
        let read = |text: &String| text.parse::<San>().map_err(|why| why.to_string());
        let sans = self.sans.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(match self.common_name.parse() {
            Ok(name) => all_names(&name, &sans),
            Err(_) => sans,
        })
    }
}

/// Reads the answer: facts come from the certificate, never from the request. It must hold the key of the request and
/// the names of the record, and be signed by the chain that came with it.
fn check(subject: &Subject, claim: &Claimed, issued: &Issued) -> Result<NewVersion, String> {
    let csr_der = claim.csr_der.clone().ok_or("the job has no request")?;
    let request = CertificationRequest::parse_der(&csr_der).map_err(|why| why.to_string())?;
    let parse = |pem: &str| CertificateFacts::parse_pem_chain(pem).map_err(|why| why.to_string());
    let (leaves, chain) = (parse(&issued.certificate_pem)?, parse(&issued.chain_pem)?);
    let [leaf] = leaves.as_slice() else {
        return Err(format!("{} certificates instead of one", leaves.len()));
    };
    if leaf.spki_der != request.spki_der() {
        return Err("its key is not the key of the request".into());
    }
    if leaf.is_ca {
        return Err("it is a certificate of an authority".into());
    }
    let wanted = subject.names()?;
    csr::names_within(None, &leaf.sans, &wanted).map_err(|_| "it has names the record does not have".to_owned())?;
    if let Some(missing) = wanted.iter().find(|name| !leaf.sans.contains(name)) {
        return Err(format!("the name {missing} is missing"));
    }
    leaf.verify_issued_by(&chain[0])?;
    Ok(NewVersion {
        issuer: subject.issuer_id.clone(),
        serial: leaf.serial.clone(),
        not_before: leaf.not_before,
        not_after: leaf.not_after,
        fingerprint: leaf.fingerprint.clone(),
        spki_sha256: leaf.spki_sha256.clone(),
        key: leaf.key,
        cert_pem: leaf.to_pem(),
        chain_pem: issued.chain_pem.clone(),
        csr_der,
    })
}

/// Version, deployments, news and the end of the job become visible together. The certificate is locked before the
/// job, in the order everyone does.
async fn record(scheduler: &Scheduler, claim: &Claimed, version: &NewVersion) -> Result<(), certctl_store::Error> {
    let mut tx = scheduler.begin().await?;
    certificates::lock(&mut tx, &claim.facts.certificate).await?;
    let job = jobs::lock::<Running>(&mut tx, &claim.facts.id).await?;
    certificates::record_version(&mut tx, &job.facts, version).await?;
    jobs::apply_claimed(&mut tx, job.complete(&Actor::system()), claim).await?;
    tx.commit().await
}
