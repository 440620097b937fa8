//! Running jobs: ask their issuer, check the answers, record them.

use std::collections::{HashMap, HashSet};

use certctl_model::{
    connector::IssuerType,
    id::JobId,
    name::{San, all_names},
};
use certctl_runtime::failpoint;
use certctl_store::{
    certificates::{self, NewVersion},
    jobs::{Claimed, Subject},
};
use certctl_x509::{csr, facts::CertificateFacts};
use futures_util::future::BoxFuture;
use tokio::{task::spawn_blocking, time::timeout};
use tracing::{error, info};

use crate::{
    Scheduler,
    issuers::{IssueError, Issued, Order},
    journal,
    worker::{GiveUp, together},
};

/// Issues the certificates of claimed jobs of one issuer that have their requests, and completes the jobs. Returns those
/// that did not get so far, and what the issuer, its answer or the database had against them.
///
/// The issuer is asked between two transactions. Dying after its answer is harmless: it gives the same one again.
pub(crate) async fn issue(scheduler: &Scheduler, claims: Vec<Claimed>) -> Vec<(Claimed, GiveUp)> {
    let subject = &claims[0].subject;
    let issuer = match issuer_type(subject) {
        Ok(kind) => scheduler.issuers.of(kind),
        Err(why) => {
            return claims
                .into_iter()
                .map(|claim| (claim, GiveUp::Refused(why.clone())))
                .collect();
        }
    };
    failpoint::hold("scheduler.claimed").await;

    let order = |claim: &Claimed| Order {
        job: claim.facts.id.clone(),
    };
    let orders: Vec<Order> = claims.iter().map(order).collect();
    let within = scheduler.issuer_timeout;
    let answers = timeout(within, issuer.issue(&orders)).await.unwrap_or_else(|_| {
        let late = IssueError::Retry {
            after: None,
            counts: false,
            reason: format!("issuer {} did not answer within {within:?}", subject.issuer_id),
        };
        vec![Err(late); claims.len()]
    });
    failpoint::hold("scheduler.signed").await;

    let mut given_up = Vec::new();
    let mut issued = Vec::with_capacity(claims.len());
    for (claim, answer) in claims.into_iter().zip(answers) {
        match answer {
            Ok(answer) => issued.push((claim, answer)),
            Err(error) => given_up.push((claim, error.into())),
        }
    }
    // Signatures are verified off the threads that wait for others.
    let checked = spawn_blocking(move || check_all(issued)).await;
    let (good, wrong) = checked.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    for (claim, why) in wrong {
        let (issuer, job) = (&claim.subject.issuer_id, &claim.facts.id);
        error!(issuer.id = %issuer, job.id = %job, "issuer {issuer} gave job {job} a wrong certificate: {why}");
        let why = format!("issuer {issuer} gave a certificate that was not asked for: {why}");
        given_up.push((claim, GiveUp::Refused(why)));
    }
    given_up.extend(together(scheduler, good, |(claim, _)| claim, record).await);
    failpoint::hold("scheduler.recorded").await;
    given_up
}

fn issuer_type(subject: &Subject) -> Result<IssuerType, String> {
    let id = &subject.issuer_id;
    if !subject.issuer_enabled {
        return Err(format!("issuer {id} is disabled"));
    }
    let kind = subject.issuer_type.parse();
    kind.map_err(|why| format!("issuer {id} is of a type nobody here can ask: {why}"))
}

fn names(subject: &Subject) -> Result<Vec<San>, String> {
    let read = |text: &String| text.parse::<San>().map_err(|why| why.to_string());
    let sans = subject.sans.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    Ok(match subject.common_name.parse() {
        Ok(name) => all_names(&name, &sans),
        Err(_) => sans,
    })
}

type Checked = (Vec<(Claimed, NewVersion)>, Vec<(Claimed, String)>);

/// Tells the right answers from the wrong ones. The chain of a batch is read once.
fn check_all(issued: Vec<(Claimed, Issued)>) -> Checked {
    let mut chains: HashMap<String, Result<Vec<CertificateFacts>, String>> = HashMap::new();
    let (mut good, mut wrong) = (Vec::with_capacity(issued.len()), Vec::new());
    for (claim, answer) in issued {
        let chain = chains
            .entry(answer.chain_pem.clone())
            .or_insert_with(|| parse(&answer.chain_pem));
        match chain.clone().and_then(|chain| check(&claim, answer, &chain)) {
            Ok(version) => good.push((claim, version)),
            Err(why) => wrong.push((claim, why)),
        }
    }
    (good, wrong)
}

fn parse(pem: &str) -> Result<Vec<CertificateFacts>, String> {
    CertificateFacts::parse_pem_chain(pem).map_err(|why| why.to_string())
}

/// Reads an answer: facts come from the certificate, never from the request. It must hold the key of the request and
/// the names of the record, and be signed by the chain that came with it.
fn check(claim: &Claimed, issued: Issued, chain: &[CertificateFacts]) -> Result<NewVersion, String> {
    let csr_der = claim.csr_der.clone().ok_or("the job has no request")?;
    let requested = csr::spki_of_accepted(&csr_der).map_err(|why| why.to_string())?;
    let leaves = parse(&issued.certificate_pem)?;
    let [leaf] = leaves.as_slice() else {
        return Err(format!("{} certificates instead of one", leaves.len()));
    };
    if leaf.spki_der != requested {
        return Err("its key is not the key of the request".into());
    }
    if leaf.is_ca {
        return Err("it is a certificate of an authority".into());
    }
    let wanted = names(&claim.subject)?;
    csr::names_within(None, &leaf.sans, &wanted).map_err(|_| "it has names the record does not have".to_owned())?;
    if let Some(missing) = wanted.iter().find(|name| !leaf.sans.contains(name)) {
        return Err(format!("the name {missing} is missing"));
    }
    leaf.verify_issued_by(&chain[0])?;
    Ok(NewVersion {
        issuer: claim.subject.issuer_id.clone(),
        serial: leaf.serial.clone(),
        not_before: leaf.not_before,
        not_after: leaf.not_after,
        fingerprint: leaf.fingerprint.clone(),
        spki_sha256: leaf.spki_sha256.clone(),
        key: leaf.key,
        cert_pem: leaf.to_pem(),
        chain_pem: issued.chain_pem,
        csr_der,
    })
}

/// Versions, deployments, news and the end of the jobs become visible together.
fn record<'a>(
    scheduler: &'a Scheduler,
    issued: &'a [(Claimed, NewVersion)],
) -> BoxFuture<'a, Result<Vec<JobId>, certctl_store::Error>> {
    Box::pin(async move {
        if issued.is_empty() {
            return Ok(vec![]);
        }
        let mut tx = scheduler.begin().await?;
        let recorded = certificates::record(&mut tx, issued).await?;
        if !recorded.is_empty() {
            journal::keep_issued(scheduler, issued.iter().map(|(_, version)| version)).await;
            tx.commit().await?;
        }
        let told: HashSet<&JobId> = recorded.iter().collect();
        for (Claimed { facts, .. }, version) in issued.iter().filter(|(claim, _)| told.contains(&claim.facts.id)) {
            metrics::counter!("certificates_issued_total", "type" => facts.kind.as_str()).increment(1);
            info!(
                job.id = %facts.id, certificate.id = %facts.certificate, serial = %version.serial,
                "job {} issued certificate {} with serial {}", facts.id, facts.certificate, version.serial
            );
        }
        Ok(recorded)
    })
}
