//! Everything together: started in order, waited for, tended, stopped.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::files;
use crate::nginx::{self, Demo};
use crate::ports::Ports;
use crate::postgres::Cluster;
use crate::process::{self, Service, Spec};

/// The name under which the platform's agent registers.
pub const AGENT_NAME: &str = "local";

/// The programs that are started, by the names that settings are given for.
pub const SERVICES: [&str; 5] = ["signer", "api", "scheduler", "notifier", "agent"];

/// Settings that are decided here: a different value of one service would not fit the others.
const DECIDED: [&str; 26] = [
    "CERTCTL_ALLOWED_COMMANDS",
    "CERTCTL_ALLOWED_DIRECTORIES",
    "CERTCTL_AGENT_ID",
    "CERTCTL_AGENT_NAME",
    "CERTCTL_API_KEY",
    "CERTCTL_AUDIT_SPOOL_DIR",
    "CERTCTL_AUTH_SECRET",
    "CERTCTL_AUTH_SECRET_FILE",
    "CERTCTL_AUTH_TYPE",
    "CERTCTL_BOOTSTRAP_TOKEN",
    "CERTCTL_BOOTSTRAP_TOKEN_FILE",
    "CERTCTL_CA_DIR",
    "CERTCTL_DATABASE_URL",
    "CERTCTL_DEMO_TLS",
    "CERTCTL_KEY_DIR",
    "CERTCTL_OPS_LISTEN",
    "CERTCTL_PROFILE",
    "CERTCTL_PUBLIC_URL",
    "CERTCTL_REVOCATION_JOURNAL_DIR",
    "CERTCTL_SERVER_HOST",
    "CERTCTL_SERVER_PORT",
    "CERTCTL_SERVER_URL",
    "CERTCTL_SIGNER_SOCKET",
    "CERTCTL_STATE_DIR",
    "CERTCTL_TLS_CERT_PATH",
    "CERTCTL_TLS_KEY_PATH",
];
/// Those of them that are used here, or that `<dir>/env` sets for clients: to have them is no mistake.
const EXPECTED: [&str; 7] = [
    "CERTCTL_ALLOWED_COMMANDS",
    "CERTCTL_ALLOWED_DIRECTORIES",
    "CERTCTL_API_KEY",
    "CERTCTL_DATABASE_URL",
    "CERTCTL_DEMO_TLS",
    "CERTCTL_PROFILE",
    "CERTCTL_SERVER_URL",
];

/// Settings of certctl in the environment.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// For every service; each reads what is its own.
    pub passed: BTreeMap<String, String>,
    /// Decided here, and therefore without effect.
    pub ignored: Vec<String>,
}

/// Sorts the variables of an environment: those of certctl are passed on, or reported because they have no effect.
pub fn given(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Given {
    let mut given = Given::default();
    for (name, value) in variables {
        let Some(name) = name.to_str().filter(|name| name.starts_with("CERTCTL_")) else {
            continue;
        };
        if EXPECTED.contains(&name) || value.is_empty() {
            continue;
        }
        match value.into_string() {
            Ok(value) if !DECIDED.contains(&name) => drop(given.passed.insert(name.to_owned(), value)),
            _ => given.ignored.push(name.to_owned()),
        }
    }
    given.ignored.sort();
    given
}

impl Given {
    /// What is said of them: names, and no values, which may be secrets.
    pub fn report(&self) -> Vec<String> {
        let names: Vec<&str> = self.passed.keys().map(String::as_str).collect();
        let mut lines = vec![];
        if !names.is_empty() {
            lines.push(format!(
                "  settings     passed on from the environment: {}",
                names.join(", ")
            ));
        }
        if !self.ignored.is_empty() {
            let names = self.ignored.join(", ");
            lines.push(format!(
                "  settings     ignored, because certctl-local decides them: {names}"
            ));
        }
        lines
    }
}

/// Where progress is told, line by line.
pub type Say<'a> = &'a mut (dyn FnMut(&str) + Send);

/// What to start.
pub struct Builder {
    dir: PathBuf,
    bin_dir: PathBuf,
    database_url: Option<String>,
    failpoints: Option<PathBuf>,
    apis: usize,
    schedulers: usize,
    notifiers: usize,
    demo: bool,
    scratch: bool,
    preferred: Option<(u16, u16)>,
    commands: String,
    directories: String,
    env: Vec<(String, String, String)>,
}

impl Builder {
    /// A platform in `dir`, made of the binaries in `bin_dir`: one of everything, with a private Postgres and the demo.
    pub fn new(dir: &Path, bin_dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            bin_dir: bin_dir.to_owned(),
            database_url: None,
            failpoints: None,
            apis: 1,
            schedulers: 1,
            notifiers: 1,
            demo: true,
            scratch: false,
            preferred: None,
            commands: String::new(),
            directories: String::new(),
            env: Vec::new(),
        }
    }

    /// Uses this database, of whose objects the URL's user is the owner, instead of a private Postgres.
    pub fn database_url(mut self, url: Option<String>) -> Self {
        self.database_url = url;
        self
    }

    /// Sets the directory of failpoints, which debug builds obey.
    pub fn failpoints(mut self, dir: &Path) -> Self {
        self.failpoints = Some(dir.to_owned());
        self
    }

    /// Starts this many APIs, named `api`, `api-2`, …, each with an address of its own.
    pub fn apis(mut self, count: usize) -> Self {
        self.apis = count;
        self
    }

    /// Starts this many schedulers, named `scheduler`, `scheduler-2`, ….
    pub fn schedulers(mut self, count: usize) -> Self {
        self.schedulers = count;
        self
    }

    /// Starts this many notifiers, named `notifier`, `notifier-2`, ….
    pub fn notifiers(mut self, count: usize) -> Self {
        self.notifiers = count;
        self
    }

    /// Starts no nginx.
    pub fn without_demo(mut self) -> Self {
        self.demo = false;
        self
    }

    /// Makes Postgres quick instead of durable, and removes its data in the end.
    pub fn scratch(mut self) -> Self {
        self.scratch = true;
        self
    }

    /// Takes these ports for the API and the demo while they are free and none are remembered.
    pub fn preferred_ports(mut self, api: u16, demo: u16) -> Self {
        self.preferred = Some((api, demo));
        self
    }

    /// Adds a variable for every process of a service (`api`, `signer`, `scheduler`, `notifier`, `agent`), or for one of
    /// several (`api-2`).
    pub fn env(mut self, service: &str, name: &str, value: impl ToString) -> Self {
        self.env.push((service.to_owned(), name.to_owned(), value.to_string()));
        self
    }

    /// Lets targets of the agent use these command lines besides those of the demo, as in `CERTCTL_ALLOWED_COMMANDS`.
    pub fn allow_commands(mut self, lines: &str) -> Self {
        self.commands = lines.to_owned();
        self
    }

    /// Lets targets of the agent have files in these directories besides the platform's and `/tmp`, as in
    /// `CERTCTL_ALLOWED_DIRECTORIES`.
    pub fn allow_directories(mut self, directories: &str) -> Self {
        self.directories = directories.to_owned();
        self
    }

    /// Starts everything and waits until it is ready.
    ///
    /// # Errors
    ///
    /// The first part that does not start, with the end of its log. Everything that was started is ended.
    pub async fn start(self, say: Say<'_>) -> anyhow::Result<Platform> {
        let mut steps = Steps::new(say);
        // Postgres may run as another user and passes through; the files are private each by itself.
        let dir = files::directory(&self.dir, 0o711)?.path().to_owned();
        let bin_dir =
            fs::canonicalize(&self.bin_dir).with_context(|| format!("there is no {}", self.bin_dir.display()))?;
        let socket = dir.join("run/signer.sock");
        // The kernel's limit of a socket's address is 108 bytes.
        ensure!(
            socket.as_os_str().len() < 108,
            "the path {} is too long for a socket; choose a shorter one with --dir",
            socket.display()
        );
        let leftovers = process::end_leftovers(&dir).await;
        if !leftovers.is_empty() {
            steps.done("earlier run", &format!("ended {}", leftovers.join(", ")));
        }
        let mut ports = Ports::open(&dir.join("ports.json"))?;

        let postgres = match &self.database_url {
            Some(_) => None,
            None if self.scratch => Some(Cluster::scratch(&dir).await?),
            None => Some(Cluster::start(&dir, Some(ports.take("postgres", None)?)).await?),
        };
        let database_url = match (&postgres, self.database_url.clone()) {
            (Some(cluster), _) => {
                cluster.create_database("certctl")?;
                let port = cluster.port();
                steps.done(
                    "postgres",
                    &format!("127.0.0.1:{port}, data in {}", cluster.root().display()),
                );
                cluster.url("certctl")
            }
            (None, url) => {
                steps.done("postgres", "the one of CERTCTL_DATABASE_URL");
                url.expect("without a cluster there is a URL")
            }
        };

        let mut port = |name: &str, preferred| -> anyhow::Result<SocketAddr> {
            Ok((Ipv4Addr::LOCALHOST, ports.take(name, preferred)?).into())
        };
        let api = port("api", self.preferred.map(|(api, _)| api))?;
        let demo_address = port("demo", self.preferred.map(|(_, demo)| demo))?;
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(Duration::from_secs(2))
            .timeout(Duration::from_secs(30))
            .build()?;
        let mut platform = Platform {
            api: Api {
                http,
                url: format!("http://{api}"),
                key: files::secret(&dir.join("api-key"))?,
            },
            apis: vec![api],
            members: Vec::new(),
            demo: None,
            postgres,
            database_url,
            dir: dir.clone(),
        };
        files::secret(&dir.join("bootstrap-token"))?;

        let settings = Settings {
            builder: &self,
            dir: &dir,
            bin_dir: &bin_dir,
            socket: &socket,
            database_url: &platform.database_url,
            api,
        };
        let migrations = settings.api("migrate").args(["--migrate"]);
        let counts = [
            ("signer", 1),
            ("api", self.apis),
            ("scheduler", self.schedulers),
            ("notifier", self.notifiers),
            ("agent", 1),
        ];
        let mut specs = Vec::new();
        for (kind, count) in counts {
            for number in 1..=count {
                let name = if number == 1 {
                    kind.to_owned()
                } else {
                    format!("{kind}-{number}")
                };
                let ops = port(&format!("{name}-ops"), None)?;
                let mut spec = settings.service(kind, &name).env("CERTCTL_OPS_LISTEN", ops);
                if kind == "api" && number > 1 {
                    let address = port(&name, None)?;
                    spec = spec.env("CERTCTL_SERVER_PORT", address.port());
                    platform.apis.push(address);
                }
                specs.push((spec, ops));
            }
        }

        migrate(migrations).await?;
        steps.done("migrations", "applied");
        for (spec, ops) in specs {
            let mut member = Member::new(Service::spawn(spec)?, ops);
            match member.wait_ready(&platform.api.http).await? {
                Readiness::Ready => steps.done(member.service.name(), "ready"),
                Readiness::Recovering => steps.done(
                    member.service.name(),
                    "runs; the database was restored from an older copy, and nothing is issued until \
                     certctl-cli restore-revocations has brought revocations back",
                ),
            }
            platform.members.push(member);
        }
        if self.demo {
            platform.demo = Some(Demo::start(&dir, demo_address).await?);
            steps.done("nginx", &format!("serves TLS on {demo_address}"));
        }
        platform.write_env()?;
        Ok(platform)
    }
}

/// What the services are told.
struct Settings<'a> {
    builder: &'a Builder,
    dir: &'a Path,
    bin_dir: &'a Path,
    socket: &'a Path,
    database_url: &'a str,
    api: SocketAddr,
}

impl Settings<'_> {
    fn service(&self, kind: &str, name: &str) -> Spec {
        let public_url = format!("http://{}", self.api);
        let spec = match kind {
            "api" => self.api(name),
            "signer" => self
                .server(kind, name)
                .env("CERTCTL_SIGNER_SOCKET", self.socket.display())
                .env("CERTCTL_CA_DIR", self.dir.join("ca").display())
                .env("CERTCTL_PUBLIC_URL", public_url),
            "scheduler" => self
                .server(kind, name)
                .env("CERTCTL_REVOCATION_JOURNAL_DIR", self.journal())
                .env("CERTCTL_SIGNER_SOCKET", self.socket.display()),
            "agent" => self
                .binary(kind, name)
                .env("CERTCTL_SERVER_URL", public_url)
                .env("CERTCTL_AGENT_NAME", AGENT_NAME)
                .env(
                    "CERTCTL_BOOTSTRAP_TOKEN_FILE",
                    self.dir.join("bootstrap-token").display(),
                )
                .env("CERTCTL_ALLOWED_COMMANDS", self.commands())
                .env("CERTCTL_ALLOWED_DIRECTORIES", self.directories())
                .env("CERTCTL_KEY_DIR", self.dir.join("agent/keys").display())
                .env("CERTCTL_STATE_DIR", self.dir.join("agent/state").display()),
            _ => self.server(kind, name),
        };
        let ours = self
            .builder
            .env
            .iter()
            .filter(|(service, ..)| service == kind || service == name);
        ours.fold(spec, |spec, (_, name, value)| spec.env(name, value))
    }

    fn api(&self, name: &str) -> Spec {
        self.server("api", name)
            .env("CERTCTL_SERVER_HOST", self.api.ip())
            .env("CERTCTL_SERVER_PORT", self.api.port())
            .env("CERTCTL_AUTH_TYPE", "api-key")
            .env("CERTCTL_AUTH_SECRET_FILE", self.dir.join("api-key").display())
            .env("CERTCTL_AUDIT_SPOOL_DIR", self.dir.join("audit-spool").display())
            .env("CERTCTL_REVOCATION_JOURNAL_DIR", self.journal())
            .env(
                "CERTCTL_BOOTSTRAP_TOKEN_FILE",
                self.dir.join("bootstrap-token").display(),
            )
            .env("CERTCTL_SIGNER_SOCKET", self.socket.display())
    }

    /// Besides the built-in lines: those of the demo, and one that does nothing, for targets that are files alone.
    fn commands(&self) -> String {
        let demo = nginx::target_commands(self.dir).into_iter().flatten();
        let lines = ["default".to_owned(), "nginx -v".to_owned()].into_iter().chain(demo);
        let lines = lines.chain([self.builder.commands.clone()]);
        lines.collect::<Vec<_>>().join("; ")
    }

    /// A platform for trying things out: files of targets may be anywhere in its directory or below `/tmp`.
    fn directories(&self) -> String {
        format!("default,{},/tmp,{}", self.dir.display(), self.builder.directories)
    }

    fn journal(&self) -> String {
        self.dir.join("revocations").display().to_string()
    }

    fn server(&self, kind: &str, name: &str) -> Spec {
        self.binary(kind, name).env("CERTCTL_DATABASE_URL", self.database_url)
    }

    fn binary(&self, kind: &str, name: &str) -> Spec {
        let spec = Spec::new(name, &self.bin_dir.join(format!("certctl-{kind}")), self.dir);
        match &self.builder.failpoints {
            Some(dir) => spec.env("CERTCTL_FAILPOINTS", dir.display()),
            None => spec,
        }
    }
}

async fn migrate(spec: Spec) -> anyhow::Result<()> {
    const TIMEOUT: Duration = Duration::from_secs(120);
    let mut migrations = Service::spawn(spec)?;
    let started = Instant::now();
    while migrations.is_running() {
        if started.elapsed() > TIMEOUT {
            return Err(migrations.failure("takes too long"));
        }
        sleep(Duration::from_millis(20)).await;
    }
    if !migrations.status().is_some_and(|status| status.success()) {
        return Err(migrations.failure("failed"));
    }
    Ok(())
}

/// Says each step with the time since the one before.
struct Steps<'a> {
    say: Say<'a>,
    last: Instant,
}

impl<'a> Steps<'a> {
    fn new(say: Say<'a>) -> Self {
        Self {
            say,
            last: Instant::now(),
        }
    }

    fn done(&mut self, step: &str, what: &str) {
        let seconds = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        (self.say)(&format!("  {step:<12} {seconds:>5.1} s  {what}"));
    }
}

/// What a service says of itself.
enum Readiness {
    Ready,
    /// It does what it can until revocations are brought back, which needs it to run.
    Recovering,
}

/// A service with the address of its operational routes.
struct Member {
    service: Service,
    ops: SocketAddr,
    failures: u32,
    retry_at: Instant,
    up_since: Instant,
}

impl Member {
    fn new(service: Service, ops: SocketAddr) -> Self {
        let now = Instant::now();
        Self {
            service,
            ops,
            failures: 0,
            retry_at: now,
            up_since: now,
        }
    }

    async fn wait_ready(&mut self, http: &reqwest::Client) -> anyhow::Result<Readiness> {
        const TIMEOUT: Duration = Duration::from_secs(60);
        let started = Instant::now();
        let url = format!("http://{}/ready", self.ops);
        let mut last = "it does not answer".to_owned();
        loop {
            match http.get(&url).send().await {
                Ok(response) if response.status().is_success() => return Ok(Readiness::Ready),
                Ok(response) => {
                    last = response.text().await.unwrap_or_default();
                    let said: Value = serde_json::from_str(&last).unwrap_or_default();
                    if said["failing"] == json!(["recovery"]) {
                        return Ok(Readiness::Recovering);
                    }
                }
                Err(_) => {}
            }
            if !self.service.is_running() {
                return Err(self.service.failure("did not start"));
            }
            if started.elapsed() > TIMEOUT {
                return Err(self.service.failure(&format!("is not ready: {last}")));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A running platform. Dropping it kills everything; [`Platform::stop`] ends it in order.
pub struct Platform {
    // Dropped from the first field to the last: the database goes when nobody uses it any more.
    members: Vec<Member>,
    demo: Option<Demo>,
    postgres: Option<Cluster>,
    api: Api,
    apis: Vec<SocketAddr>,
    database_url: String,
    dir: PathBuf,
}

impl Platform {
    /// The first API with the shared key.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// The addresses of all APIs.
    pub fn apis(&self) -> &[SocketAddr] {
        &self.apis
    }

    /// The absolute path of its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The URL of the database, for its owner.
    pub fn database_url(&self) -> &str {
        &self.database_url
    }

    /// The private Postgres, if there is one.
    pub fn postgres(&mut self) -> Option<&mut Cluster> {
        self.postgres.as_mut()
    }

    /// The demo nginx, if there is one.
    pub fn demo(&self) -> Option<&Demo> {
        self.demo.as_ref()
    }

    /// The demo nginx, to stop and start it.
    pub fn demo_mut(&mut self) -> Option<&mut Demo> {
        self.demo.as_mut()
    }

    /// A service by name: `signer`, `api`, `api-2`, `scheduler`, `scheduler-2`, `notifier`, `agent`.
    ///
    /// # Panics
    ///
    /// There is no such service.
    pub fn service(&mut self, name: &str) -> &mut Service {
        &mut self.member(name).service
    }

    /// The address of the operational routes (`/health`, `/ready`, `/metrics`) of a service.
    ///
    /// # Panics
    ///
    /// There is no such service.
    pub fn ops(&self, name: &str) -> SocketAddr {
        let found = self.members.iter().find(|member| member.service.name() == name);
        found
            .unwrap_or_else(|| panic!("the platform has no service {name}"))
            .ops
    }

    /// Kills a service if it runs, starts it again and waits until it is ready.
    ///
    /// # Errors
    ///
    /// It does not start, with the end of its log.
    pub async fn restart(&mut self, name: &str) -> anyhow::Result<()> {
        let http = self.api.http.clone();
        let member = self.member(name);
        member.service.restart()?;
        member.wait_ready(&http).await.map(|_| ())
    }

    fn member(&mut self, name: &str) -> &mut Member {
        let found = self.members.iter_mut().find(|member| member.service.name() == name);
        found.unwrap_or_else(|| panic!("the platform has no service {name}"))
    }

    /// Starts again what has died, each with its own growing pause, and says so. Called about twice a second.
    pub async fn tend(&mut self, say: Say<'_>) {
        const LONGEST: Duration = Duration::from_secs(30);
        const STEADY: Duration = Duration::from_secs(60);
        let now = Instant::now();
        if let Some(postgres) = &mut self.postgres
            && !postgres.is_running()
        {
            say("postgres ended unexpectedly; starting it again");
            if let Err(error) = postgres.restart().await {
                say(&format!("{error:#}"));
            }
        }
        if let Some(demo) = &mut self.demo
            && !demo.is_running()
        {
            say("nginx ended unexpectedly; starting it again");
            if let Err(error) = demo.restart().await {
                say(&format!("{error:#}"));
            }
        }
        for member in &mut self.members {
            if member.service.is_running() {
                if now - member.up_since > STEADY {
                    member.failures = 0;
                }
                member.retry_at = now + (Duration::from_millis(250) * 2u32.pow(member.failures.min(10))).min(LONGEST);
            } else if now >= member.retry_at {
                member.failures += 1;
                member.up_since = now;
                say(&format!(
                    "{} Starting it again.",
                    member.service.failure("ended unexpectedly")
                ));
                if let Err(error) = member.service.start() {
                    say(&format!("{error:#}"));
                    member.retry_at = now + LONGEST;
                }
            }
        }
    }

    /// Stops everything in order: the users of a service before the service.
    pub async fn stop(mut self) {
        const GRACE: Duration = Duration::from_secs(15);
        for member in self.members.iter_mut().rev() {
            member.service.terminate(GRACE).await;
        }
        if let Some(demo) = &mut self.demo {
            demo.stop().await;
        }
        if let Some(postgres) = &mut self.postgres {
            postgres.stop().await;
        }
    }

    /// Writes `<dir>/env`, which other shells source.
    fn write_env(&self) -> anyhow::Result<()> {
        let Api { url, key, .. } = &self.api;
        let mut text = format!("export CERTCTL_SERVER_URL={url}\nexport CERTCTL_API_KEY={key}\n");
        if let Some(demo) = &self.demo {
            text += &format!("export CERTCTL_DEMO_TLS={}\n", demo.address());
        }
        files::write_private(&self.dir.join("env"), &text)
    }
}

/// The API as JSON, with the shared key.
pub struct Api {
    http: reqwest::Client,
    url: String,
    key: String,
}

impl Api {
    /// Its base URL, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The shared key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Asks for a resource; `None` if there is none.
    ///
    /// # Errors
    ///
    /// No answer, or a status that is neither a success nor 404.
    pub async fn get(&self, path: &str) -> anyhow::Result<Option<Value>> {
        let request = self.http.get(format!("{}{path}", self.url));
        let response = request.bearer_auth(&self.key).send().await?;
        if response.status() == reqwest::StatusCode::NOT_FOUND {
            return Ok(None);
        }
        answer(response).await.with_context(|| format!("GET {path}")).map(Some)
    }

    /// Asks for the items of a list.
    ///
    /// # Errors
    ///
    /// No answer, or no list.
    pub async fn list(&self, path: &str) -> anyhow::Result<Vec<Value>> {
        let list = self.get(path).await?.with_context(|| format!("there is no {path}"))?;
        Ok(list["data"].as_array().cloned().unwrap_or_default())
    }

    /// Posts a body.
    ///
    /// # Errors
    ///
    /// No answer, or a status that is no success, with the body of the answer.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let request = self.http.post(format!("{}{path}", self.url)).json(body);
        let response = request.bearer_auth(&self.key).send().await?;
        answer(response).await.with_context(|| format!("POST {path}"))
    }

    /// Changes a resource.
    ///
    /// # Errors
    ///
    /// As [`Api::post`].
    pub async fn put(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let request = self.http.put(format!("{}{path}", self.url)).json(body);
        let response = request.bearer_auth(&self.key).send().await?;
        answer(response).await.with_context(|| format!("PUT {path}"))
    }

    /// Downloads something public.
    ///
    /// # Errors
    ///
    /// No answer, or a status that is no success.
    pub async fn download(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        let response = self.http.get(format!("{}{path}", self.url)).send().await?;
        Ok(response.error_for_status()?.bytes().await?.to_vec())
    }
}

async fn answer(response: reqwest::Response) -> anyhow::Result<Value> {
    let status = response.status();
    let text = response.text().await?;
    if !status.is_success() {
        bail!("{status}: {text}");
    }
    if text.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&text).context("the answer is not JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_the_environment_are_passed_on_or_reported() {
        let variables = [
            ("CERTCTL_LEAF_VALIDITY", "1h"),
            ("CERTCTL_WEBHOOK_SECRET", "hunter2"),
            ("CERTCTL_SERVER_PORT", "9999"),
            ("CERTCTL_API_KEY", "of-the-client"),
            ("CERTCTL_CRL_LIFETIME", ""),
            ("HOME", "/root"),
        ];
        let given = given(variables.map(|(name, value)| (name.into(), value.into())));
        assert_eq!(
            given.passed.keys().collect::<Vec<_>>(),
            ["CERTCTL_LEAF_VALIDITY", "CERTCTL_WEBHOOK_SECRET"]
        );
        assert_eq!(given.ignored, ["CERTCTL_SERVER_PORT"]);
        let report = given.report().join("\n");
        assert!(
            report.contains("CERTCTL_LEAF_VALIDITY, CERTCTL_WEBHOOK_SECRET") && report.contains("CERTCTL_SERVER_PORT")
        );
        assert!(!report.contains("hunter2"), "{report}");
    }

    #[test]
    fn settings_that_are_decided_here_exist() {
        let documented = include_str!("../../../docs/CONFIGURATION.md");
        for name in DECIDED.iter().filter(|name| !EXPECTED.contains(name)) {
            assert!(documented.contains(&format!("`{name}`")), "{name}");
        }
    }
}
