//! From the request of a certificate to its being served, again and again.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, bail, ensure};
use certctl_client::Client;
use certctl_contract::{
    certificates::{
        ArchiveCertificate, Certificate, CertificateChanges, CreateCertificate, ListCertificateVersions,
        ListCertificates, NewCertificate, UpdateCertificate,
    },
    endpoint::NoBody,
    health::Health,
    jobs::{Job, JobFilter, ListJobs},
    list::List,
    query::{Id, NoParams},
    targets::{GetTarget, ListTargets, Target},
};
use certctl_model::id::TargetId;
use indicatif::{ProgressBar, ProgressStyle};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    cli::MainJob,
    report::{Report, Run},
    served::Viewer,
};

/// How exactly the moment of being served is known.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How often the API is asked whether a job has failed: seldom, so that asking does not slow what is measured.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Bare handshakes and round trips measured before each run.
const BARE_EACH: usize = 5;

/// Measures, and archives the certificates that were requested, whatever happened.
///
/// # Errors
/// The first run that fails, with the reason its job gives.
pub(crate) async fn measure(client: &Client, demo: SocketAddr, args: &MainJob) -> anyhow::Result<Report> {
    let target = target(client, demo, args.target.as_deref()).await?;
    let name = target.config["verify_server_name"]
        .as_str()
        .with_context(|| {
            format!(
                "target {} has no verify_server_name to request a certificate for",
                target.id
            )
        })?
        .to_owned();
    let mut bench = Bench {
        client,
        viewer: Viewer::new(demo, &name)?,
        target,
        name,
        patience: Duration::from_secs(args.run_timeout),
        holders: Vec::new(),
        requested: Vec::new(),
        seen: Vec::new(),
    };
    let before = bench.viewer.look().await?.leaf;
    bench.seen.push(before.clone());
    let outcome = tokio::select! {
        outcome = async {
            bench.take_over().await?;
            bench.runs(args).await
        } => outcome,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    bench
        .archive()
        .await
        .context("the certificates that were requested are not all archived")?;
    bench.put_back(&before).await?;
    outcome
}

/// The target that serves at `demo`, or the one that was named.
async fn target(client: &Client, demo: SocketAddr, named: Option<&str>) -> anyhow::Result<Target> {
    if let Some(id) = named {
        let id = id.parse().map_err(|e| anyhow::anyhow!("{id}: {e}"))?;
        return Ok(client.call::<GetTarget>(Id { id }, NoParams, NoBody).await?);
    }
    let mut pages = client.pages::<ListTargets>(List::default());
    while let Some(page) = pages.next().await? {
        let serves = |target: &Target| target.config["verify_address"] == demo.to_string();
        if let Some(target) = page.data.into_iter().find(|target| target.enabled && serves(target)) {
            return Ok(target);
        }
    }
    bail!("no target serves at {demo}; name one with --target")
}

struct Bench<'a> {
    client: &'a Client,
    viewer: Viewer,
    target: Target,
    name: String,
    patience: Duration,
    /// The certificates that had the target before; it has one at a time.
    holders: Vec<Certificate>,
    /// What is still to be archived.
    requested: Vec<Certificate>,
    /// What was served before the run; a process of nginx that is about to end may show it once more.
    seen: Vec<CertificateDer<'static>>,
}

impl Bench<'_> {
    async fn runs(&mut self, args: &MainJob) -> anyhow::Result<Report> {
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} runs, {elapsed}").expect("a valid template");
        // Drawn on standard error, and only on a terminal.
        let bar = ProgressBar::new(u64::from(args.runs)).with_style(style);
        let (started, most) = (Instant::now(), Duration::from_secs(args.max_time));
        let mut report = Report::default();
        for number in 1..=args.runs {
            if started.elapsed() > most {
                bar.abandon();
                eprintln!("certctl-loadtest: {most:?} have passed; runs from {number} on are left out");
                return Ok(report);
            }
            self.bare(&mut report).await?;
            let run = timeout(self.patience, self.run()).await;
            let run = run.with_context(|| format!("run {number} takes longer than {:?}", self.patience))?;
            report.runs.push(run.with_context(|| format!("run {number}"))?);
            self.archive().await?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(report)
    }

    /// What one handshake and one round trip cost, to hold the runs against.
    async fn bare(&self, report: &mut Report) -> anyhow::Result<()> {
        for _ in 0..BARE_EACH {
            report.handshakes.push(self.viewer.look().await?.took);
            let started = Instant::now();
            self.client.call::<Health>(NoParams, NoParams, NoBody).await?;
            report.round_trips.push(started.elapsed());
        }
        Ok(())
    }

    async fn run(&mut self) -> anyhow::Result<Run> {
        let body: NewCertificate = serde_json::from_value(json!({
            "common_name": self.name, "sans": [self.name], "target_ids": [self.target.id], "environment": "loadtest",
        }))?;
        let started = Instant::now();
        let certificate = self.client.call::<CreateCertificate>(NoParams, NoParams, body).await?;
        self.requested.push(certificate.clone());
        let (served, leaf) = self.unseen(&certificate, started).await?;
        self.seen.push(leaf.clone());

        let jobs = self.finished(&certificate).await?;
        let of_kind = |wanted: &str| jobs.iter().find(|job| job.kind.as_str() == wanted);
        let issuance = of_kind("Issuance").context("the certificate has no issuance job")?;
        let deployment = of_kind("Deployment").context("the certificate has no deployment job")?;
        let id = Id {
            id: certificate.id.clone(),
        };
        let versions = self
            .client
            .call::<ListCertificateVersions>(id, List::default(), NoBody)
            .await?;
        let version = versions.data.first().context("the certificate has no version")?;
        ensure!(
            CertificateDer::from_pem_slice(version.cert_pem.as_bytes())? == leaf,
            "another certificate than that of {} was served; does something else deploy to {}?",
            certificate.id,
            self.target.id
        );
        // Server and measurement share a machine; both count from the request, give or take its way there.
        let asked = certificate.created_at;
        Ok(Run {
            csr: issuance
                .started_at
                .context("the request was never accepted")?
                .since(asked),
            issued: version.created_at.since(asked),
            deployed: deployment
                .completed_at
                .context("the deployment is not completed")?
                .since(asked),
            served,
        })
    }

    /// Looks until a certificate is served that was not before.
    async fn unseen(
        &self,
        certificate: &Certificate,
        started: Instant,
    ) -> anyhow::Result<(Duration, CertificateDer<'static>)> {
        let mut asked = Instant::now();
        loop {
            let view = self.viewer.look().await?;
            if !self.seen.contains(&view.leaf) {
                return Ok((started.elapsed(), view.leaf));
            }
            if asked.elapsed() > ASK_EVERY {
                asked = Instant::now();
                self.jobs(certificate).await?;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Waits for the jobs of a certificate that is served already: its agent looks too before it reports.
    async fn finished(&self, certificate: &Certificate) -> anyhow::Result<Vec<Job>> {
        loop {
            let jobs = self.jobs(certificate).await?;
            if jobs.iter().all(|job| job.status.is_terminal()) {
                return Ok(jobs);
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// The jobs of a certificate; an error if one has failed.
    async fn jobs(&self, certificate: &Certificate) -> anyhow::Result<Vec<Job>> {
        let filter = JobFilter {
            certificate_id: Some(certificate.id.clone()),
            ..JobFilter::default()
        };
        let query = List {
            filter,
            ..List::default()
        };
        let jobs = self.client.call::<ListJobs>(NoParams, query, NoBody).await?.data;
        if let Some(failed) = jobs.iter().find(|job| job.status.as_str() == "Failed") {
            let why = failed.last_error.as_deref().unwrap_or("no reason was given");
            bail!("the {} job {} failed: {why}", failed.kind, failed.id);
        }
        Ok(jobs)
    }

    async fn archive(&mut self) -> anyhow::Result<()> {
        while let Some(certificate) = self.requested.pop() {
            self.client
                .call::<ArchiveCertificate>(Id { id: certificate.id }, NoParams, NoBody)
                .await?;
        }
        Ok(())
    }

    fn is_here(&self, certificate: &Certificate) -> bool {
        certificate.target_ids.contains(&self.target.id) && certificate.status.as_str() != "Archived"
    }

    /// Takes the target from the certificates that have it.
    async fn take_over(&mut self) -> anyhow::Result<()> {
        let mut pages = self.client.pages::<ListCertificates>(List::default());
        let mut holders = Vec::new();
        while let Some(page) = pages.next().await? {
            holders.extend(page.data.into_iter().filter(|one| self.is_here(one)));
        }
        for holder in holders {
            let others = holder
                .target_ids
                .iter()
                .filter(|id| **id != self.target.id)
                .cloned()
                .collect();
            self.map(&holder, others).await?;
            self.holders.push(holder);
        }
        Ok(())
    }

    async fn map(&self, certificate: &Certificate, targets: Vec<TargetId>) -> anyhow::Result<()> {
        let id = Id {
            id: certificate.id.clone(),
        };
        let body = CertificateChanges {
            target_ids: Some(targets),
            ..CertificateChanges::default()
        };
        self.client.call::<UpdateCertificate>(id, NoParams, body).await?;
        Ok(())
    }

    /// Gives the target back, and waits for what was served before the first run if certctl manages it.
    async fn put_back(&self, before: &CertificateDer<'_>) -> anyhow::Result<()> {
        for holder in &self.holders {
            self.map(holder, holder.target_ids.clone()).await?;
            let id = Id { id: holder.id.clone() };
            let versions = self
                .client
                .call::<ListCertificateVersions>(id, List::default(), NoBody)
                .await?;
            let is_before = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).is_ok_and(|c| c == *before);
            if versions
                .data
                .first()
                .is_some_and(|version| is_before(&version.cert_pem))
            {
                let back = timeout(self.patience, self.until_served(before)).await;
                back.context("what was served before the runs is not served again")??;
            }
        }
        Ok(())
    }

    async fn until_served(&self, leaf: &CertificateDer<'_>) -> anyhow::Result<()> {
        while self.viewer.look().await?.leaf != *leaf {
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }
}
