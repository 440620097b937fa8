//! What an agent does all day: say that it is alive, and do the jobs it is given.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use certctl_contract::agents::{
    AgentGetWork, AgentHeartbeat, AgentPath, AgentPickupCertificate, AgentReportJobStatus, AgentSubmitCsr,
    CsrSubmission, JobPath, JobReport, PickupPath, PickupQuery, PlaceholderTarget, Wait, WorkItem, WorkQuery,
};
use certctl_contract::endpoint::NoBody;
use certctl_contract::query::{Id, NoParams};
use certctl_model::connector::TargetConfig;
use certctl_model::id::AgentId;
use certctl_model::job::{JobKind, JobStatus};
use certctl_model::key::{KeyAlgorithm, KeyFacts};
use certctl_model::time::Clock;
use certctl_runtime::failpoint;
use certctl_x509::{csr, pem};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use url::Url;

use crate::bundle::Issued;
use crate::deploy::{DeployError, Deployer};
use crate::keystore::Keystore;
use crate::program::Failure;
use crate::server::{Server, Trouble, backoff};
use crate::{host, placeholder, targets};

/// Says at intervals that the agent is alive, whatever else it is doing.
pub(crate) struct Heartbeats {
    pub(crate) server: Arc<Server>,
    pub(crate) agent: AgentId,
    pub(crate) url: Url,
    pub(crate) every: Duration,
    /// Whether the server heard the last one.
    pub(crate) heard: Arc<AtomicBool>,
    pub(crate) stop: CancellationToken,
    pub(crate) deployer: Arc<Deployer>,
    pub(crate) clock: Clock,
}

impl Heartbeats {
    pub(crate) async fn run(self) {
        let mut backoff = backoff();
        loop {
            let beat = tokio::select! {
                beat = self.beat() => beat,
                () = self.stop.cancelled() => return,
            };
            let pause = match beat {
                Ok(()) => {
                    backoff.reset();
                    self.every
                }
                Err(why) => {
                    warn!("the server did not hear the heartbeat: {why}");
                    backoff.next().min(self.every)
                }
            };
            if !pause_for(pause, &self.stop).await {
                return;
            }
        }
    }

    pub(crate) async fn beat(&self) -> Result<(), Trouble> {
        let about = host::describe(&self.url).await;
        let path = Id { id: self.agent.clone() };
        let beat = self.server.call::<AgentHeartbeat>(path, NoParams, about).await;
        self.heard.store(beat.is_ok(), Ordering::Relaxed);
        metrics::counter!("agent_heartbeats_total", "outcome" => if beat.is_ok() { "ok" } else { "error" })
            .increment(1);
        for target in beat?.placeholders {
            self.write_placeholder(&target).await;
        }
        Ok(())
    }

    async fn write_placeholder(&self, target: &PlaceholderTarget) {
        let id = &target.id;
        let written = async {
            let config =
                TargetConfig::read(target.kind, &target.config).map_err(|(field, why)| format!("{field}: {why}"))?;
            let now = self.clock.now();
            let plan = blocking(move || placeholder::plan(&config, now)).await?;
            self.deployer
                .apply_first(id.as_str(), plan)
                .await
                .map_err(|error| error.to_string())
        };
        match written.await {
            Ok(false) => {}
            Ok(true) => info!("wrote a placeholder for target {id}"),
            Err(why) => warn!("cannot write a placeholder for target {id}: {why}"),
        }
    }
}

/// Jobs that are taken from one answer. The server lists 100; it lists the others when these are done.
const MAX_JOBS: usize = 1_000;
/// Names of one request, common name included.
const MAX_NAMES: usize = 2_000;

/// Jobs that were done, in the state they were handed out in.
pub(crate) type Settled = HashSet<(String, JobStatus)>;

/// Fetches jobs and does them, one after another in the order of the list.
pub(crate) struct Worker {
    pub(crate) server: Arc<Server>,
    pub(crate) agent: AgentId,
    pub(crate) keys: Arc<Keystore>,
    pub(crate) deployer: Arc<Deployer>,
    pub(crate) clock: Clock,
    pub(crate) poll_interval: Duration,
    pub(crate) long_poll: Duration,
    pub(crate) stop: CancellationToken,
}

/// Why a job is not done.
#[derive(Debug, PartialEq, Eq)]
enum Undone {
    /// It cannot be done, and the server is told why.
    Failed(Failure),
    /// Not now: the server still lists it and will hand it out again.
    Later(String),
    /// It is not this agent's to do any more.
    Gone(String),
}

impl Undone {
    fn failed(cause: impl Into<Failure>) -> Self {
        Self::Failed(cause.into())
    }
}

impl Worker {
    pub(crate) async fn run(self) {
        let mut backoff = backoff();
        let mut server_waits = false;
        let mut settled = Settled::new();
        // Beside the heartbeats: programs that reload may take their time.
        self.deployer.recover().await;
        while !self.stop.is_cancelled() {
            self.deployer.retry().await;
            let asked = Instant::now();
            let work = tokio::select! {
                work = self.fetch() => work,
                () = self.stop.cancelled() => return,
            };
            let pause = match work {
                Err(why) => {
                    let wait = backoff.next();
                    warn!("cannot fetch work, the next attempt is in {wait:.1?}: {why}");
                    wait
                }
                Ok(jobs) if jobs.is_empty() => {
                    backoff.reset();
                    settled.clear();
                    server_waits |= !self.long_poll.is_zero() && asked.elapsed() >= self.long_poll / 2;
                    self.pause_after_nothing(server_waits, asked.elapsed())
                }
                Ok(jobs) => {
                    let progress = self.do_all(jobs, &mut settled).await;
                    match progress {
                        true => {
                            backoff.reset();
                            Duration::ZERO
                        }
                        // Nothing but jobs that had to be left, or that were done before: ask less often.
                        false => backoff.next().min(self.poll_interval),
                    }
                }
            };
            if !pause_for(pause, &self.stop).await {
                return;
            }
        }
    }

    /// Fetches jobs once and does them. True when any of them moved.
    pub(crate) async fn pass(&self, settled: &mut Settled) -> Result<bool, Trouble> {
        let jobs = self.fetch().await?;
        Ok(self.do_all(jobs, settled).await)
    }

    /// A server that waits has waited; one that does not is asked at the poll interval.
    fn pause_after_nothing(&self, server_waits: bool, took: Duration) -> Duration {
        /// A server that stops answers before its time.
        const BREATH: Duration = Duration::from_secs(1);
        match server_waits {
            true if took >= self.long_poll / 2 => Duration::ZERO,
            true => BREATH,
            false => self.poll_interval,
        }
    }

    async fn fetch(&self) -> Result<Vec<WorkItem>, Trouble> {
        let path = Id { id: self.agent.clone() };
        let work = match self.long_poll.is_zero() {
            true => {
                self.server
                    .call::<AgentGetWork>(path, WorkQuery::default(), NoBody)
                    .await?
            }
            false => {
                let wait = Some(Wait::seconds(self.long_poll.as_secs().max(1)));
                self.server
                    .wait_for::<AgentGetWork>(path, WorkQuery { wait }, NoBody)
                    .await?
            }
        };
        let mut jobs = work.jobs;
        if jobs.len() > MAX_JOBS {
            warn!("the server lists {} jobs; the first {MAX_JOBS} are done", jobs.len());
            jobs.truncate(MAX_JOBS);
        }
        Ok(jobs)
    }

    /// Does the jobs and says whether any of them moved.
    async fn do_all(&self, jobs: Vec<WorkItem>, settled: &mut Settled) -> bool {
        let before = std::mem::take(settled);
        let mut progress = false;
        for job in jobs {
            if self.stop.is_cancelled() {
                break;
            }
            let mark = (job.id.as_str().to_owned(), job.status);
            if self.settle(&job).await {
                progress |= !before.contains(&mark);
                settled.insert(mark);
            }
        }
        progress
    }

    /// Does one job and reports how it went. False when it was left for another time.
    async fn settle(&self, job: &WorkItem) -> bool {
        let id = &job.id;
        let (done, what) = match (job.status, job.kind) {
            (JobStatus::AwaitingCsr, _) => (self.request(job).await, "request"),
            (JobStatus::Pending | JobStatus::Running, JobKind::Deployment) => (self.deploy(job).await, "deployment"),
            (status, kind) => {
                debug!(job.id = %id, "passed over job {id}: {kind} {status}");
                return false;
            }
        };
        let outcome = match &done {
            Ok(()) => "done",
            Err(Undone::Failed(_)) => "failed",
            Err(Undone::Later(_)) => "left",
            Err(Undone::Gone(_)) => "gone",
        };
        metrics::counter!("agent_jobs_total", "job" => what, "outcome" => outcome).increment(1);
        match done {
            Ok(()) => true,
            Err(Undone::Failed(why)) => {
                warn!(job.id = %id, certificate.id = %job.certificate_id, "job {id} failed: {why}");
                self.report(job, JobStatus::Failed, Some(why)).await;
                true
            }
            Err(Undone::Gone(why)) => {
                info!(job.id = %id, "job {id} is not ours to do any more: {why}");
                true
            }
            Err(Undone::Later(why)) => {
                warn!(job.id = %id, "job {id} is left for later: {why}");
                false
            }
        }
    }

    /// Makes a key, which is on disk before anything is sent, and hands in a certification request.
    async fn request(&self, job: &WorkItem) -> Result<(), Undone> {
        let csr_pem = self.make_request(job).await.map_err(Undone::failed)?;
        failpoint::hold("agent.csr_ready").await;
        let submission = CsrSubmission {
            csr_pem,
            certificate_id: Some(job.certificate_id.clone()),
            job_id: Some(job.id.clone()),
        };
        let path = AgentPath {
            agent_id: self.agent.clone(),
        };
        match self.server.call::<AgentSubmitCsr>(path, NoParams, submission).await {
            Ok(_) => {}
            // The job has moved on: the request was accepted although the answer got lost, or somebody called it off.
            Err(Trouble::Refused {
                status: 403 | 404 | 409,
                said,
            }) => return Err(Undone::Gone(said)),
            Err(Trouble::Refused { status: 401, said }) => return Err(Undone::Later(said)),
            Err(Trouble::Refused { said, .. }) => return Err(Undone::failed(said)),
            Err(Trouble::Away(why)) => return Err(Undone::Later(why)),
        }
        failpoint::hold("agent.csr_sent").await;
        info!(job.id = %job.id, certificate.id = %job.certificate_id, "handed in the request of job {}", job.id);
        Ok(())
    }

    async fn make_request(&self, job: &WorkItem) -> Result<String, String> {
        /// RFC 5280 appendix A.1, ub-common-name. Longer names stand among the alternative names only.
        const MAX_COMMON_NAME: usize = 64;
        let common_name = job.common_name.clone().ok_or("the work item has no common name")?;
        let sans = job.sans.clone().unwrap_or_default();
        if sans.len() >= MAX_NAMES {
            return Err(format!(
                "the work item has {} names; a request has at most {MAX_NAMES}",
                sans.len() + 1
            ));
        }
        let algorithm = job.key_algorithm.unwrap_or(KeyAlgorithm::Ecdsa);
        let kind = match (algorithm, job.key_size) {
            (algorithm, Some(bits)) => KeyFacts { algorithm, bits },
            (KeyAlgorithm::Ecdsa, None) => KeyFacts::P256,
            (KeyAlgorithm::Rsa, None) => KeyFacts { algorithm, bits: 2048 },
            (KeyAlgorithm::Ed25519, None) => KeyFacts { algorithm, bits: 256 },
            (other, None) => return Err(format!("keys of algorithm {other} are not made")),
        };
        let (keys, certificate, id) = (self.keys.clone(), job.certificate_id.clone(), job.id.clone());
        blocking(move || {
            let key = keys
                .for_job(&certificate, &id, kind)
                .map_err(|error| format!("{error:#}"))?;
            let names = certctl_model::name::all_names(&common_name, &sans);
            let text = common_name.to_string();
            let subject = if text.len() <= MAX_COMMON_NAME {
                text.as_str()
            } else {
                ""
            };
            let der = csr::generate(&key, subject, &names).map_err(|error| error.to_string())?;
            Ok(pem::encode("CERTIFICATE REQUEST", &der))
        })
        .await
    }

    async fn deploy(&self, job: &WorkItem) -> Result<(), Undone> {
        // One that is running already was cut off by a crash; putting it in place again does no harm.
        if job.status != JobStatus::Running {
            self.tell(job, JobStatus::Running, None)
                .await
                .map_err(|trouble| match trouble {
                    Trouble::Refused { said, .. } => Undone::Gone(said),
                    Trouble::Away(why) => Undone::Later(why),
                })?;
        }
        failpoint::hold("agent.deploy_started").await;
        self.put_in_place(job).await?;
        failpoint::hold("agent.deployed").await;
        self.report(job, JobStatus::Completed, None).await;
        Ok(())
    }

    async fn put_in_place(&self, job: &WorkItem) -> Result<(), Undone> {
        let certificate = &job.certificate_id;
        let kind = job
            .target_type
            .ok_or_else(|| Undone::failed("the work item names no target".to_owned()))?;
        let target = targets::read(kind, job.target_config.as_ref().unwrap_or_default()).map_err(Undone::failed)?;
        let path = PickupPath {
            agent_id: self.agent.clone(),
            cert_id: certificate.clone(),
        };
        let query = PickupQuery {
            version_id: job.version_id.clone(),
        };
        let pickup = self.server.call::<AgentPickupCertificate>(path, query, NoBody).await;
        let pickup = pickup.map_err(|trouble| match trouble {
            Trouble::Refused { status: 401, said } => Undone::Later(said),
            Trouble::Refused { said, .. } => Undone::failed(format!("the certificate cannot be fetched: {said}")),
            Trouble::Away(why) => Undone::Later(why),
        })?;
        let (plan, spki) = {
            let (keys, certificate, now) = (self.keys.clone(), certificate.clone(), self.clock.now());
            let plan = blocking(move || {
                let issued = Issued::read(&pickup.certificate_pem, now)?;
                let spki = issued.spki_sha256().to_owned();
                let key = keys.find(&certificate, &spki).map_err(|error| format!("{error:#}"))?;
                let key = key.ok_or_else(|| {
                    format!(
                        "this agent holds no key for this version of {certificate}, or not any more; renew the certificate"
                    )
                })?;
                Ok((target.plan(&issued.with_key(&key)?), spki))
            });
            plan.await.map_err(Undone::failed)?
        };
        let target = job.target_id.as_ref().map_or(job.id.as_str(), |target| target.as_str());
        let applied = match self.deployer.apply(target, plan).await {
            Ok(applied) => applied,
            Err(error) => {
                let failure = Failure {
                    cause: error.to_string(),
                    output: error.output().to_owned(),
                };
                // A job that was begun before and whose files are in place waits for its server.
                let waits = match error {
                    DeployError::Written(_) => true,
                    DeployError::Unserved(_) => job.status == JobStatus::Running,
                    _ => false,
                };
                return Err(match waits {
                    true => self.wait_for_server(job, failure).await,
                    false => Undone::Failed(failure),
                });
            }
        };
        info!(job.id = %job.id, certificate.id = %certificate, "deployed {certificate} for job {}: {applied:?}", job.id);
        let (keys, certificate) = (self.keys.clone(), certificate.clone());
        let tidied = blocking(move || keys.deployed(&certificate, &spki).map_err(|error| format!("{error:#}"))).await;
        if let Err(error) = tidied {
            warn!("the certificate is deployed, but its old keys could not be tidied up: {error}");
        }
        Ok(())
    }

    /// Says why a deployment is not finished yet; it is tried again.
    async fn wait_for_server(&self, job: &WorkItem, failure: Failure) -> Undone {
        let why = failure.cause.clone();
        match self.tell(job, JobStatus::Running, Some(failure)).await {
            Err(Trouble::Refused { said, .. }) => Undone::Gone(said),
            Ok(()) | Err(Trouble::Away(_)) => Undone::Later(why),
        }
    }

    /// Reports until the server has answered, or the agent stops.
    ///
    /// A report that never arrives does no harm: the job is handed out again, and doing it again changes nothing.
    async fn report(&self, job: &WorkItem, status: JobStatus, error: Option<Failure>) {
        let mut backoff = backoff();
        loop {
            match self.tell(job, status, error.clone()).await {
                Ok(()) => break,
                Err(Trouble::Refused { said, .. }) => {
                    warn!(job.id = %job.id, "the server does not take the report that job {} is {status}: {said}", job.id);
                    return;
                }
                Err(Trouble::Away(why)) => {
                    let wait = backoff.next();
                    warn!(job.id = %job.id, "cannot report that job {} is {status}, again in {wait:.1?}: {why}", job.id);
                    if !pause_for(wait, &self.stop).await {
                        return;
                    }
                }
            }
        }
        failpoint::hold("agent.reported").await;
    }

    async fn tell(&self, job: &WorkItem, status: JobStatus, failure: Option<Failure>) -> Result<(), Trouble> {
        let path = JobPath {
            agent_id: self.agent.clone(),
            job_id: job.id.clone(),
        };
        let (error, output) = failure.map(|failure| (failure.cause, failure.output)).unzip();
        let report = JobReport {
            status: status.to_string(),
            error,
            output,
        };
        self.server
            .call::<AgentReportJobStatus>(path, NoParams, report)
            .await
            .map(|_| ())
    }
}

/// False when the agent is to stop.
async fn pause_for(time: Duration, stop: &CancellationToken) -> bool {
    tokio::select! {
        () = sleep(time) => true,
        () = stop.cancelled() => false,
    }
}

/// Keys are made and read off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use certctl_model::name::San;
    use certctl_runtime::tasks::Tasks;
    use certctl_x509::csr::CertificationRequest;
    use clap::Parser;
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::allowed::Allowed;
    use crate::bundle::testing::{DEMO, at, issue};
    use crate::config::Config;

    /// A server that gives prepared answers, and what it was asked.
    #[derive(Clone)]
    struct Script {
        answers: Arc<Mutex<VecDeque<(u16, Value)>>>,
        asked: Arc<Mutex<Vec<(String, Value)>>>,
        url: String,
    }

    impl Script {
        async fn start(tasks: &Tasks, answers: impl IntoIterator<Item = (u16, Value)>) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let answers = Arc::new(Mutex::new(answers.into_iter().collect()));
            let script = Self {
                answers,
                asked: Arc::default(),
                url,
            };
            let served = script.clone();
            tasks.spawn("script", async move {
                while let Ok((stream, _)) = listener.accept().await {
                    served.serve(stream).await;
                }
            });
            script
        }

        /// One request a connection is enough.
        async fn serve(&self, mut stream: TcpStream) {
            let mut octets = Vec::new();
            let (head, body) = loop {
                let text = String::from_utf8_lossy(&octets).into_owned();
                if let Some((head, body)) = text.split_once("\r\n\r\n") {
                    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                    if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                        break (head.to_owned(), body.to_owned());
                    }
                }
                if stream.read_buf(&mut octets).await.unwrap() == 0 {
                    return;
                }
            };
            let line = head.lines().next().unwrap().trim_end_matches(" HTTP/1.1").to_owned();
            self.asked
                .lock()
                .unwrap()
                .push((line, serde_json::from_str(&body).unwrap_or_default()));
            let (status, answer) = self.answers.lock().unwrap().pop_front().unwrap_or((503, json!({})));
            let answer = answer.to_string();
            let text = format!(
                "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{answer}",
                answer.len()
            );
            stream.write_all(text.as_bytes()).await.unwrap();
        }

        fn asked(&self) -> Vec<(String, Value)> {
            std::mem::take(&mut self.asked.lock().unwrap())
        }
    }

    struct Host {
        dir: tempfile::TempDir,
        worker: Worker,
        script: Script,
        tasks: Tasks,
    }

    async fn host(answers: impl IntoIterator<Item = (u16, Value)>) -> Host {
        let tasks = Tasks::new();
        let script = Script::start(&tasks, answers).await;
        let dir = tempfile::tempdir().unwrap();
        let config = Config::parse_from(["certctl-agent", "--server", &script.url]);
        let worker = Worker {
            server: Arc::new(Server::new(&config, None).unwrap()),
            agent: "a-1".parse().unwrap(),
            keys: Arc::new(Keystore::open(&dir.path().join("keys")).unwrap()),
            deployer: Arc::new(
                Deployer::new(
                    &dir.path().join("state"),
                    Allowed {
                        commands: "true; false".parse().unwrap(),
                        directories: dir.path().display().to_string().parse().unwrap(),
                    },
                )
                .unwrap(),
            ),
            clock: Clock::manual(at("2026-06-01T00:00:00Z")),
            poll_interval: Duration::from_secs(30),
            long_poll: Duration::from_secs(30),
            stop: tasks.token(),
        };
        Host {
            dir,
            worker,
            script,
            tasks,
        }
    }

    fn item(value: Value) -> WorkItem {
        serde_json::from_value(value).unwrap()
    }

    fn request() -> WorkItem {
        item(json!({
            "id": "j-1", "type": "Issuance", "certificate_id": "mc-1", "status": "AwaitingCSR",
            "common_name": DEMO, "sans": ["10.0.0.1"],
        }))
    }

    impl Host {
        fn deployment(&self, validate: &str) -> WorkItem {
            let path = |name| self.dir.path().join(name).to_str().unwrap().to_owned();
            item(json!({
                "id": "j-2", "type": "Deployment", "certificate_id": "mc-1", "status": "Pending", "version_id": "cv-1",
                "target_type": "NGINX", "target_config": {
                    "cert_path": path("a.pem"), "key_path": path("a.key"),
                    "validate_command": validate, "reload_command": "true",
                },
            }))
        }
    }

    fn fine() -> (u16, Value) {
        (200, json!({ "status": "updated" }))
    }

    #[tokio::test]
    async fn a_request_is_handed_in_with_typed_names_and_the_same_key_every_time() {
        let host = host([(500, json!({})), (202, json!({ "status": "csr_signed" }))]).await;
        assert!(!host.worker.settle(&request()).await, "a broken server gets it again");
        assert!(host.worker.settle(&request()).await);
        let asked = host.script.asked();
        let csrs: Vec<_> = asked
            .iter()
            .map(|(line, body)| {
                assert_eq!(line, "POST /api/v1/agents/a-1/csr");
                assert_eq!(
                    (&body["certificate_id"], &body["job_id"]),
                    (&json!("mc-1"), &json!("j-1"))
                );
                CertificationRequest::parse_pem(body["csr_pem"].as_str().unwrap()).unwrap()
            })
            .collect();
        let names: [San; 2] = [DEMO.parse().unwrap(), "10.0.0.1".parse().unwrap()];
        assert_eq!(
            (csrs.len(), csrs[1].sans(), csrs[1].common_name()),
            (2, &names[..], Some(DEMO))
        );
        assert_eq!(csrs[0].spki_der(), csrs[1].spki_der());
    }

    #[tokio::test]
    async fn a_refused_request_fails_its_job_unless_the_job_has_moved_on() {
        let problem = json!({ "detail": "RSA is needed" });
        let host = host([(422, problem.clone()), fine(), (409, problem)]).await;
        assert!(host.worker.settle(&request()).await);
        assert!(host.worker.settle(&request()).await);
        let asked = host.script.asked();
        let lines: Vec<_> = asked.iter().map(|(line, _)| line.as_str()).collect();
        let (csr, status) = ("POST /api/v1/agents/a-1/csr", "POST /api/v1/agents/a-1/jobs/j-1/status");
        assert_eq!(lines, [csr, status, csr]);
        assert_eq!(asked[1].1["status"], "Failed");
        assert!(asked[1].1["error"].as_str().unwrap().contains("RSA is needed"));
    }

    #[tokio::test]
    async fn a_deployment_is_reported_running_and_then_completed() {
        let host = host([fine()]).await;
        let key = host
            .worker
            .keys
            .for_job(&"mc-1".parse().unwrap(), &"j-1".parse().unwrap(), KeyFacts::P256)
            .unwrap();
        let pem = issue(&key, DEMO);
        host.script
            .answers
            .lock()
            .unwrap()
            .extend([(200, json!({ "certificate_pem": pem })), fine()]);
        assert!(host.worker.settle(&host.deployment("true")).await);
        let asked = host.script.asked();
        let asked: Vec<_> = asked
            .iter()
            .map(|(line, body)| (line.as_str(), body["status"].as_str()))
            .collect();
        let status = "POST /api/v1/agents/a-1/jobs/j-2/status";
        let pickup = "GET /api/v1/agents/a-1/certificates/mc-1?version_id=cv-1";
        assert_eq!(
            asked,
            [(status, Some("Running")), (pickup, None), (status, Some("Completed"))]
        );
        assert!(pem.starts_with(&std::fs::read_to_string(host.dir.path().join("a.pem")).unwrap()));
        assert!(host.dir.path().join("a.key").exists());
    }

    #[tokio::test]
    async fn a_deployment_that_cannot_succeed_is_reported_with_its_reason_and_writes_nothing() {
        let other = issue(&crate::bundle::testing::key(), DEMO);
        for (validate, pickup, said) in [
            (
                "true",
                (200, json!({ "certificate_pem": other })),
                "holds no key for this version of mc-1, or not any more; renew",
            ),
            ("true", (200, json!({ "certificate_pem": "" })), "no certificate found"),
            ("true", (404, json!({ "detail": "no version" })), "no version"),
            ("rm x", (200, json!({ "certificate_pem": other })), "holds no key"),
        ] {
            let host = host([fine(), pickup, fine()]).await;
            assert!(host.worker.settle(&host.deployment(validate)).await);
            let (line, report) = host.script.asked().pop().unwrap();
            assert_eq!(
                (line.as_str(), &report["status"]),
                ("POST /api/v1/agents/a-1/jobs/j-2/status", &json!("Failed"))
            );
            assert!(report["error"].as_str().unwrap().contains(said), "{report}");
            assert!(!host.dir.path().join("a.pem").exists());
        }
    }

    #[tokio::test]
    async fn a_job_that_was_called_off_is_not_begun_and_one_that_was_cut_off_is_begun_again() {
        let host = host([(409, json!({ "detail": "it is Cancelled" })), (503, json!({}))]).await;
        let job = host.deployment("true");
        assert!(host.worker.settle(&job).await);
        assert_eq!(host.script.asked().len(), 1);
        assert!(
            !host
                .worker
                .settle(&WorkItem {
                    status: JobStatus::Running,
                    ..job
                })
                .await
        );
        assert_eq!(
            host.script.asked()[0].0,
            "GET /api/v1/agents/a-1/certificates/mc-1?version_id=cv-1"
        );
    }

    #[tokio::test]
    async fn a_report_is_not_repeated_for_a_server_that_refuses_it_or_while_stopping() {
        let host = host([(404, json!({})), (503, json!({}))]).await;
        host.worker.report(&request(), JobStatus::Completed, None).await;
        host.worker.stop.cancel();
        host.worker.report(&request(), JobStatus::Completed, None).await;
        assert_eq!(host.script.asked().len(), 2);
        assert!(!host.tasks.kill_token().is_cancelled());
    }

    #[tokio::test]
    async fn jobs_that_come_back_unchanged_are_no_progress() {
        let accepted = || (202, json!({ "status": "csr_signed" }));
        let host = host([accepted(), accepted(), fine()]).await;
        let mut settled = HashSet::new();
        assert!(host.worker.do_all(vec![request()], &mut settled).await);
        assert!(!host.worker.do_all(vec![request()], &mut settled).await);
        let unknown = WorkItem {
            status: JobStatus::Pending,
            ..request()
        };
        assert!(!host.worker.do_all(vec![unknown], &mut settled).await);
    }

    #[tokio::test]
    async fn a_server_that_does_not_wait_is_asked_at_the_poll_interval() {
        let host = host([]).await;
        for (server_waits, took, pause) in [(false, 0, 30), (true, 30, 0), (true, 2, 1)] {
            let (took, pause) = (Duration::from_secs(took), Duration::from_secs(pause));
            assert_eq!(host.worker.pause_after_nothing(server_waits, took), pause);
        }
    }
}
