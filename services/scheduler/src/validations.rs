//! Looks whether what clients connect to serves what was deployed.

use std::{collections::BTreeMap, fmt::Write as _, net::SocketAddr, slice, sync::Arc, time::Duration};

use certctl_model::{
    audit::Actor,
    connector::{TargetConfig, TargetType},
    job::{Job, Pending, Running},
    key::KeyAlgorithm,
    name::San,
    time::Time,
    validation::EndpointOutcome,
};
use certctl_runtime::served::{self, KeyKind, Served};
use certctl_store::{
    Error, certificates,
    jobs::{self, Claimed},
    validations::{self, Expected, Seen},
};
use certctl_x509::{
    facts::CertificateFacts,
    ocsp::{self, CertStatus},
};
use futures_util::{StreamExt, stream};
use tokio::net::lookup_host;
use tracing::{info, warn};

use crate::{Scheduler, worker::pause};

/// How often jobs that ended long ago are removed, and how many at a time.
pub const FORGET_EVERY: Duration = Duration::from_secs(3600);
const FORGET: i64 = 1_000;
/// Mappings whose turn is planned in one unit of work.
const PLAN: i64 = 500;
/// How often is looked for turns that have come, and for jobs. Nobody wakes for them: jobs that are issued are far more, and
/// would do so all the time.
pub const EVERY: Duration = Duration::from_secs(2);
/// Jobs that are claimed together, and how many of them are done at a time.
const BATCH: i64 = 64;
const AT_A_TIME: usize = 32;
/// Addresses of one job that are looked at together.
const ADDRESSES: usize = 16;
/// Names can stand for many addresses; more are not looked at.
const MOST_ADDRESSES: usize = 256;
/// How long an address may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Creates the jobs of mappings whose turn has come. Returns how many had one.
///
/// # Errors
/// When the database cannot be asked.
pub async fn plan(scheduler: Arc<Scheduler>) -> anyhow::Result<u64> {
    let mut planned = 0;
    loop {
        let tx = scheduler.begin_as_leader().await?;
        let turns = validations::plan(tx, scheduler.validation_interval, PLAN).await?;
        planned += turns as u64;
        if turns < PLAN as usize {
            return Ok(planned);
        }
    }
}

/// Removes jobs that ended long ago. Returns how many; a run that removed some is followed by another.
///
/// # Errors
/// When the database cannot be asked.
pub async fn forget(scheduler: Arc<Scheduler>) -> anyhow::Result<u64> {
    let before = scheduler.now() - scheduler.keep_validations;
    Ok(validations::forget(&scheduler.db, before, FORGET).await?)
}

/// Does the validations that are due. Returns how many it claimed.
///
/// # Errors
/// When the database cannot be asked. What becomes of a single job is its own affair.
pub async fn round(scheduler: Arc<Scheduler>) -> anyhow::Result<u64> {
    let claims = jobs::claim_validations(&scheduler.db, scheduler.now(), scheduler.job_lease, BATCH).await?;
    if claims.is_empty() {
        return Ok(0);
    }
    begin(&scheduler, &claims).await?;
    let count = claims.len() as u64;
    let each = claims.into_iter().map(|claim| {
        let scheduler = scheduler.clone();
        async move {
            let id = claim.facts.id.clone();
            match validate(&scheduler, &claim).await {
                Ok(()) => {}
                Err(Error::LeaseLost | Error::WrongJobState { .. } | Error::Missing { .. }) => {
                    metrics::counter!("job_leases_lost_total").increment(1);
                }
                // The lease runs out, and whoever claims it then looks again.
                Err(error) => warn!(job.id = %id, "validation {id} cannot be recorded: {error}"),
            }
        }
    });
    stream::iter(each).buffer_unordered(AT_A_TIME).collect::<()>().await;
    Ok(count)
}

async fn begin(scheduler: &Scheduler, claims: &[Claimed]) -> Result<(), Error> {
    let mut tx = scheduler.begin().await?;
    let certificates: Vec<_> = claims.iter().map(|claim| &claim.facts.certificate).collect();
    certificates::lock_all(&mut tx, &certificates).await?;
    let by = Actor::system();
    let waiting = jobs::hold::<Pending>(&mut tx, claims).await?;
    let begun = waiting.into_iter().map(|job| job.start(&by)).collect();
    match jobs::apply_all(&mut tx, begun).await?.is_empty() {
        true => Ok(()),
        false => tx.commit().await,
    }
}

/// How a look ended.
enum Ended {
    /// Every address was looked at.
    Looked(Vec<Seen>),
    /// There is nothing to compare with yet.
    Later(String),
    /// There is nothing to look at, nor will be.
    Never(String),
}

async fn validate(scheduler: &Scheduler, claim: &Claimed) -> Result<(), Error> {
    let facts = &claim.facts;
    let expected = validations::expected(&scheduler.db, facts).await?;
    let version = expected.as_ref().and_then(|expected| expected.version_id.clone());
    let ended = match expected {
        Some(expected) => look(claim, &expected, scheduler.now()).await,
        None => Ended::Never("its target is gone".to_owned()),
    };
    let (seen, wrong) = match ended {
        Ended::Later(why) => {
            return jobs::put_back(&scheduler.db, claim, scheduler.now() + PATIENCE, &why, false).await;
        }
        Ended::Never(why) => (vec![], why),
        Ended::Looked(seen) => {
            let wrong = summary(&seen);
            (seen, wrong)
        }
    };
    if !wrong.is_empty() && facts.attempts + 1 < facts.max_attempts {
        return jobs::put_back(&scheduler.db, claim, scheduler.now() + pause(claim), &wrong, true).await;
    }
    let by = Actor::system();
    let mut tx = scheduler.begin().await?;
    certificates::lock(&mut tx, &facts.certificate).await?;
    let job: Job<Running> = jobs::hold(&mut tx, slice::from_ref(claim))
        .await?
        .pop()
        .ok_or(Error::LeaseLost)?;
    validations::record(&mut tx, facts, version.as_ref(), &seen).await?;
    match wrong.is_empty() {
        true => drop(jobs::apply(&mut tx, job.complete(&by)).await?),
        false => drop(jobs::apply(&mut tx, job.fail(&by, wrong.clone())).await?),
    }
    tx.commit().await?;
    let outcome = if wrong.is_empty() { "served" } else { "drifted" };
    metrics::counter!("validations_total", "outcome" => outcome).increment(1);
    let (id, certificate) = (&facts.id, &facts.certificate);
    match wrong.is_empty() {
        true => info!(job.id = %id, certificate.id = %certificate, "certificate {certificate} is served as deployed"),
        false => warn!(job.id = %id, certificate.id = %certificate, "certificate {certificate} is not served: {wrong}"),
    }
    Ok(())
}

/// What is wrong, for a person; empty when nothing is.
fn summary(seen: &[Seen]) -> String {
    let mut text = String::new();
    for one in seen.iter().filter(|one| one.outcome != EndpointOutcome::Served) {
        let separator = if text.is_empty() { "" } else { "; " };
        let _ = write!(text, "{separator}{}: {}", one.address, one.detail);
    }
    text
}

async fn look(claim: &Claimed, expected: &Expected, now: Time) -> Ended {
    if expected.under_way {
        return Ended::Later("a deployment to this target is under way".to_owned());
    }
    let (Some(leaf), Some(chain)) = (&expected.cert_pem, &expected.chain_pem) else {
        return Ended::Never("nothing was deployed to this target yet".to_owned());
    };
    let Some(config) = read_config(expected) else {
        return Ended::Never("the settings of its target cannot be read".to_owned());
    };
    let wanted = match Wanted::read(leaf, chain) {
        Ok(wanted) => wanted,
        Err(why) => return Ended::Never(format!("the version that was deployed cannot be read: {why}")),
    };
    let (endpoints, name) = config.endpoints();
    let name = match name {
        "" => server_name(&claim.subject.common_name, &claim.subject.sans),
        name => name.to_owned(),
    };
    let mut addresses: BTreeMap<(String, String), Result<SocketAddr, String>> = BTreeMap::new();
    for endpoint in endpoints {
        match lookup_host(endpoint).await {
            Ok(found) => addresses.extend(found.map(|one| ((endpoint.clone(), one.to_string()), Ok(one)))),
            Err(error) => {
                let why = format!("the name does not stand for an address: {error}");
                addresses.insert((endpoint.clone(), endpoint.clone()), Err(why));
            }
        }
    }
    let (wanted, name) = (&wanted, &name);
    let looks = addresses
        .into_iter()
        .take(MOST_ADDRESSES)
        .map(async |((endpoint, address), at)| {
            let served = match at {
                Ok(at) => served::look(at, name, wanted.key(), PATIENCE).await,
                Err(why) => Err(why),
            };
            let (outcome, detail, fingerprint) = match served {
                Err(why) => (EndpointOutcome::Unreachable, why, None),
                Ok(served) => {
                    let (differences, fingerprint) = wanted.compare(&served, now);
                    match differences.is_empty() {
                        true => (EndpointOutcome::Served, String::new(), fingerprint),
                        false => (EndpointOutcome::Differs, differences.join("; "), fingerprint),
                    }
                }
            };
            Seen {
                endpoint,
                address,
                outcome,
                detail,
                fingerprint,
            }
        });
    let mut seen: Vec<Seen> = stream::iter(looks).buffer_unordered(ADDRESSES).collect().await;
    seen.sort_by(|a, b| (&a.endpoint, &a.address).cmp(&(&b.endpoint, &b.address)));
    match seen.is_empty() {
        true => Ended::Never("its target has no endpoints".to_owned()),
        false => Ended::Looked(seen),
    }
}

fn read_config(expected: &Expected) -> Option<TargetConfig> {
    let kind: TargetType = expected.target_type.parse().ok()?;
    TargetConfig::read(kind, &expected.target_config).ok()
}

/// The name a client would ask for: the first that is one, and for a wildcard some name that it covers (RFC 6125 §6.4.3).
fn server_name(common_name: &str, sans: &[String]) -> String {
    let names = [common_name].into_iter().chain(sans.iter().map(String::as_str));
    let named = names.filter_map(|text| match text.parse::<San>().ok()? {
        San::Dns(name) => Some(name.to_string()),
        _ => None,
    });
    let first = named.into_iter().next().unwrap_or_default();
    match first.strip_prefix("*.") {
        Some(below) => format!("validation.{below}"),
        None => first,
    }
}

/// What should be served.
struct Wanted {
    leaf: CertificateFacts,
    chain: Vec<CertificateFacts>,
}

impl Wanted {
    fn read(leaf: &str, chain: &str) -> Result<Self, String> {
        let parse = |pem| CertificateFacts::parse_pem_chain(pem).map_err(|why| why.to_string());
        let leaf = parse(leaf)?.into_iter().next().ok_or("there is no certificate")?;
        Ok(Self {
            leaf,
            chain: parse(chain)?,
        })
    }

    fn key(&self) -> Option<KeyKind> {
        match self.leaf.key.algorithm {
            KeyAlgorithm::Rsa => Some(KeyKind::Rsa),
            KeyAlgorithm::Ecdsa => Some(KeyKind::Ecdsa),
            KeyAlgorithm::Ed25519 => Some(KeyKind::Ed25519),
            // What was imported and cannot be asked for by itself.
            _ => None,
        }
    }

    /// What is wrong with what is served, and the fingerprint of the certificate.
    fn compare(&self, served: &Served, now: Time) -> (Vec<String>, Option<String>) {
        let mut wrong = Vec::new();
        let Ok(leaf) = CertificateFacts::parse_der(&served.chain[0]) else {
            return (vec!["serves something that is no certificate".to_owned()], None);
        };
        let fingerprint = Some(leaf.fingerprint.clone());
        if leaf.fingerprint != self.leaf.fingerprint {
            wrong.push(format!(
                "serves the certificate with serial {}, valid from {} to {}, instead of the one with serial {}",
                leaf.serial, leaf.not_before, leaf.not_after, self.leaf.serial
            ));
            return (wrong, fingerprint);
        }
        if leaf.not_after <= now {
            wrong.push(format!("serves a certificate that ended at {}", leaf.not_after));
        }
        wrong.extend(self.compare_chain(&served.chain[1..]));
        wrong.extend(self.compare_staple(&served.ocsp, now));
        (wrong, fingerprint)
    }

    /// The chain in its order; the root may be left out (RFC 8446 §4.4.2).
    fn compare_chain(&self, served: &[Vec<u8>]) -> Option<String> {
        let wanted: Vec<&[u8]> = self.chain.iter().map(|one| one.der.as_slice()).collect();
        let root = self.chain.last().is_some_and(|last| last.subject == last.issuer);
        let without_root = &wanted[..wanted.len() - usize::from(root)];
        if served == wanted || served == without_root {
            return None;
        }
        if let Some(missing) = without_root.iter().find(|one| !served.iter().any(|it| it == *one)) {
            let missing = CertificateFacts::parse_der(missing)
                .map(|one| one.subject)
                .unwrap_or_default();
            return Some(format!("the chain lacks {missing}"));
        }
        match served.iter().any(|one| !wanted.contains(&one.as_slice())) {
            true => Some("the chain has certificates that do not belong to it".to_owned()),
            false => Some("the chain is in another order, or has something twice".to_owned()),
        }
    }

    /// What is stapled, if something is.
    fn compare_staple(&self, staple: &[u8], now: Time) -> Option<String> {
        if staple.is_empty() {
            return None;
        }
        match ocsp::answered(staple, &self.leaf.serial) {
            Err(why) => Some(format!("the stapled OCSP response cannot be used: {why}")),
            Ok(answer) if answer.status != CertStatus::Good => {
                Some("the stapled OCSP response does not call the certificate good".to_owned())
            }
            Ok(answer) => match answer.next_update {
                Some(ended) if ended <= now => Some(format!("the stapled OCSP response ended at {ended}")),
                _ => None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    use super::*;

    /// A root, an intermediate and a leaf, DER.
    fn chain() -> [Vec<u8>; 3] {
        let authority = |name: &str| {
            let mut params = CertificateParams::new(vec![]).unwrap();
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params
        };
        let keys = [(); 3].map(|()| KeyPair::generate().unwrap());
        let root = authority("Root").self_signed(&keys[0]).unwrap();
        let by_root = Issuer::new(authority("Root"), &keys[0]);
        let below = authority("Intermediate").signed_by(&keys[1], &by_root).unwrap();
        let by_below = Issuer::new(authority("Intermediate"), &keys[1]);
        let leaf = CertificateParams::new(vec!["www.example.com".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&keys[2], &by_below).unwrap();
        [root.der().to_vec(), below.der().to_vec(), leaf.der().to_vec()]
    }

    #[test]
    fn a_chain_may_lack_its_root_and_nothing_else_and_has_one_order() {
        let [root, below, leaf] = chain();
        let [_, other, stranger] = chain();
        let facts = |der: &Vec<u8>| CertificateFacts::parse_der(der).unwrap();
        let wanted = Wanted {
            leaf: facts(&leaf),
            chain: vec![facts(&below), facts(&root)],
        };
        let now = wanted.leaf.not_before + Duration::from_secs(1);
        for (served, wrong) in [
            (vec![&leaf, &below], None),
            (vec![&leaf, &below, &root], None),
            (vec![&leaf], Some("the chain lacks CN=Intermediate")),
            (vec![&leaf, &root], Some("the chain lacks CN=Intermediate")),
            (vec![&leaf, &root, &below], Some("the chain is in another order")),
            (
                vec![&leaf, &below, &below],
                Some("the chain is in another order, or has something twice"),
            ),
            (
                vec![&leaf, &below, &other],
                Some("the chain has certificates that do not belong to it"),
            ),
            (vec![&stranger, &below], Some("serves the certificate with serial")),
        ] {
            let served = Served {
                chain: served.into_iter().cloned().collect(),
                ocsp: vec![],
            };
            let found = wanted.compare(&served, now).0.join("; ");
            match wrong {
                None => assert_eq!(found, ""),
                Some(wrong) => assert!(found.contains(wrong) && !found.contains("; "), "{found}"),
            }
        }
        let served = |ocsp: &[u8]| Served {
            chain: vec![leaf.clone(), below.clone()],
            ocsp: ocsp.to_vec(),
        };
        let stale = wanted
            .compare(&served(&ocsp::error_response(ocsp::ErrorStatus::TryLater)), now)
            .0;
        assert!(
            stale[0].contains("the stapled OCSP response cannot be used"),
            "{stale:?}"
        );
        let ended = wanted.compare(&served(&[]), wanted.leaf.not_after).0;
        assert!(ended[0].starts_with("serves a certificate that ended at"), "{ended:?}");
    }

    #[test]
    fn the_name_that_is_asked_for_is_one_that_the_certificate_covers() {
        let sans = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        for (common_name, others, asked) in [
            ("www.example.com", vec![], "www.example.com"),
            ("*.example.com", vec![], "validation.example.com"),
            ("192.0.2.1", sans(&["192.0.2.1", "www.example.com"]), "www.example.com"),
            ("a person", sans(&["mail@example.com"]), ""),
        ] {
            assert_eq!(server_name(common_name, &others), asked);
        }
    }
}
