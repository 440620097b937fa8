//! The whole of certctl in one process, over one database, at a time that the test sets.
//!
//! The API and the signer are served as they are in production, on a loopback port and a Unix socket. What the
//! scheduler, the notifier and the agents do in loops is done by [`World::settle`], until nothing is due.

use std::{
    collections::BTreeMap,
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use certctl_agent::{Agent, Enrolled};
use certctl_api::app::App;
use certctl_client::Client;
use certctl_contract::{
    problem::Problem,
    query::{Id, NoParams},
    signer::IssuerChain,
};
use certctl_local::process::{Service, Spec};
use certctl_model::{
    secret::Secret,
    time::{Clock, Time},
};
use certctl_runtime::{serve, tasks::Tasks};
use certctl_scheduler::{
    Scheduler, agents, blocked_keys, bulk, crls, overdue, policies, prober, renewals, validations, worker,
};
use certctl_signer::Signer;
use certctl_store::wake::{Channel, Revoked};
use certctl_x509::{facts::CertificateFacts, keys::KeyPair};
use clap::Parser;
use http::{HeaderMap, Method};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, ConnectOptions, PgPool};
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::{eventually, gate::Gate, idp::Idp, receivers, stage};

/// The key of operators in every world.
pub const KEY: &str = "the-key-of-operators-in-the-tests";
/// The token with which agents register.
pub const BOOTSTRAP: &str = "the-token-with-which-agents-register";
/// When every world begins: 15 January 2027.
pub const BEGIN: i64 = 1_800_000_000;

/// Everything, and the typed client of an operator.
pub struct World {
    /// The database, as its owner.
    pub db: PgPool,
    /// The time of every part.
    pub clock: Clock,
    /// Where the API is, without a slash at the end.
    pub url: String,
    /// The client of an operator.
    pub client: Client,
    /// Plain HTTP.
    pub http: reqwest::Client,
    /// The signer's own client.
    pub signer: Client,
    /// What the webhook received.
    pub news: Arc<Mutex<Vec<Value>>>,
    /// What the handlers of the API share.
    pub app: Arc<App>,
    /// The scheduler; its loops are run by [`World::settle`].
    pub scheduler: Arc<Scheduler>,
    notifier: Arc<certctl_notifier::Notifier>,
    hosts: Mutex<Vec<Arc<Host>>>,
    beside: Option<Service>,
    tasks: Tasks,
    dir: TempDir,
}

/// Where the signer runs, and with which arguments and variables.
#[derive(Clone, Copy)]
enum Signing<'a> {
    Here(&'a [&'a str]),
    Beside(&'a [&'a str], &'a [(&'a str, &'a str)]),
}

/// How long a program may take to start.
const PATIENCE: Duration = Duration::from_secs(30);

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() && self.beside.is_some() {
            stage::show_logs(self.dir.path());
        }
    }
}

impl World {
    /// Starts the services over a migrated database. The local authority exists.
    pub async fn new(db: PgPool) -> Self {
        Self::start(db, Signing::Here(&[]), "", &[]).await
    }

    /// The same, but the signer is the program itself, with these arguments and variables, and the time is that of this
    /// machine.
    pub async fn beside_signer(db: PgPool, more: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::start(db, Signing::Beside(more, variables), "", &[]).await
    }

    /// The same, with more arguments for the signer and a query in the address of the webhook.
    pub async fn with(db: PgPool, more: &[&str], query: &str) -> Self {
        Self::start(db, Signing::Here(more), query, &[]).await
    }

    /// The same, with more settings of the API: flags and values, of which the last one counts.
    pub async fn with_api(db: PgPool, settings: &[(&str, &str)]) -> Self {
        Self::start(db, Signing::Here(&[]), "", settings).await
    }

    async fn start(db: PgPool, signing: Signing<'_>, query: &str, settings: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = match signing {
            Signing::Here(_) => Clock::manual(Time::from_unix(BEGIN)),
            Signing::Beside(..) => Clock::system(),
        };
        if let Signing::Here(_) = signing {
            // The time that a test sets is not the database's.
            let any = "CREATE OR REPLACE FUNCTION audit_skew() RETURNS interval LANGUAGE sql IMMUTABLE
                       AS $$ SELECT interval '1000 years' $$";
            sqlx::query(any).execute(&db).await.unwrap();
        }
        let tasks = Tasks::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let database = db.connect_options().to_url_lossy().to_string();
        let socket = dir.path().join("signer.sock");
        let socket = socket.to_str().unwrap();

        let ca_dir = dir.path().join("ca");
        let args = [
            "--database-url",
            &database,
            "--database-max-conns",
            "5",
            "--ca-dir",
            ca_dir.to_str().unwrap(),
            "--public-url",
            &url,
        ];
        let beside = match signing {
            Signing::Here(more) => {
                let args = ["certctl-signer"].into_iter().chain(args).chain(more.iter().copied());
                let config = certctl_signer::config::Config::parse_from(args);
                let signer = Signer::build(config, clock.clone()).unwrap();
                serve::serve_unix(socket.as_ref(), signer.router(), &tasks)
                    .await
                    .unwrap();
                None
            }
            Signing::Beside(more, variables) => {
                let more = [&["--signer-socket", socket, "--ops-listen", "127.0.0.1:0"], more].concat();
                let spec = Spec::new("signer", &stage::programs().join("certctl-signer"), dir.path());
                let spec = spec.args(args).args(more);
                let spec = variables.iter().fold(spec, |spec, (name, value)| spec.env(name, value));
                Some(Service::spawn(spec).unwrap())
            }
        };
        let signer = Client::builder("http://localhost").unix_socket(socket).build().unwrap();
        let first = Id {
            id: "iss-local".parse().unwrap(),
        };
        let chain = async || {
            Ok(signer
                .call::<IssuerChain>(first.clone(), NoParams, Default::default())
                .await?)
        };
        match beside {
            None => chain().await.map(drop).expect("the local authority is made"),
            Some(_) => drop(eventually("the signer to have its authority", PATIENCE, chain).await),
        }

        let ordinary = [
            ("--database-url", &*database),
            ("--database-max-conns", "8"),
            ("--auth-secret", KEY),
            ("--bootstrap-token", BOOTSTRAP),
            ("--signer-socket", socket),
            // The clock stands still, so budgets would never fill.
            ("--rate-limit-enabled", "false"),
        ];
        let settings: BTreeMap<&str, &str> = ordinary.into_iter().chain(settings.iter().copied()).collect();
        let flags = settings.iter().flat_map(|(flag, value)| [*flag, *value]);
        let config = certctl_api::config::Config::parse_from(std::iter::once("certctl-api").chain(flags));
        let app = certctl_api::build(&config, clock.clone(), &tasks).unwrap();
        let front = certctl_api::front(&config, &app).unwrap();
        certctl_api::hear(&app, &tasks);
        serve::serve_front(front, listener, certctl_api::router(&app), &tasks);

        let journal = settings.get("--revocation-journal-dir");
        let journal = journal
            .into_iter()
            .flat_map(|directory| ["--revocation-journal-dir", directory]);
        let args = [
            "certctl-scheduler",
            "--database-url",
            &database,
            "--database-max-conns",
            "5",
            "--probe-edges",
            &url,
        ];
        let config = certctl_scheduler::config::Config::parse_from(args.into_iter().chain(journal));
        let scheduler = Scheduler::build(&config, clock.clone(), signer.clone()).unwrap();

        let news = Arc::new(Mutex::new(vec![]));
        let hook = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/hook{query}", hook.local_addr().unwrap());
        let router = Router::new().route("/hook", post(receive)).with_state(news.clone());
        serve::serve(hook, router, &tasks).await;
        let mail = receivers::any_mail(&tasks).await.to_string();
        let config = certctl_notifier::config::Config::parse_from([
            "certctl-notifier",
            "--smtp-host",
            "127.0.0.1",
            "--smtp-security",
            "none",
            "--smtp-port",
            &mail,
            "--database-url",
            &database,
            "--database-max-conns",
            "3",
            "--webhook-url",
            &address,
            "--webhook-secret",
            "the-secret-of-the-webhook",
        ]);
        let notifier = certctl_notifier::Notifier::build(&config, clock.clone()).unwrap();

        Self {
            client: Client::builder(&url).token(Secret::new(KEY)).build().unwrap(),
            http: reqwest::Client::builder()
                .timeout(Duration::from_secs(60))
                .build()
                .unwrap(),
            db,
            clock,
            url,
            signer,
            news,
            app,
            scheduler,
            notifier,
            hosts: Mutex::default(),
            beside,
            tasks,
            dir,
        }
    }

    /// The process of the signer, if it is a program.
    pub fn signer_pid(&self) -> Option<u32> {
        self.beside.as_ref().and_then(Service::pid)
    }

    /// What the signer, if it is a program, has logged.
    pub fn signer_log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("logs/signer.log")).unwrap_or_default()
    }

    /// Starts another API over the same database, which authenticates as these arguments say: where it is, and what its
    /// handlers share.
    pub async fn api(&self, auth: &[&str]) -> (String, Arc<App>) {
        let database = self.db.connect_options().to_url_lossy().to_string();
        let socket = self.dir.path().join("signer.sock");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let args = [
            "certctl-api",
            "--database-url",
            &database,
            "--database-max-conns",
            "4",
            "--bootstrap-token",
            BOOTSTRAP,
            "--signer-socket",
            socket.to_str().unwrap(),
        ];
        let config = certctl_api::config::Config::parse_from(args.iter().chain(auth));
        let app = certctl_api::build(&config, self.clock.clone(), &self.tasks).unwrap();
        let front = certctl_api::front(&config, &app).unwrap();
        certctl_api::hear(&app, &self.tasks);
        serve::serve_front(front, listener, certctl_api::router(&app), &self.tasks);
        (url, app)
    }

    /// Starts another API and another signer over the same database and authorities, of which either, and the way to the
    /// database, can be taken away. `settings` are more flags and values of the API.
    pub async fn edge(&self, name: &str, settings: &[&str]) -> Edge {
        let options = self.db.connect_options();
        let postgres = format!("{}:{}", options.get_host(), options.get_port());
        let postgres = tokio::net::lookup_host(postgres).await.unwrap().next().unwrap();
        let database = Gate::before(postgres).await;
        let through = (*options).clone().port(database.address().port()).host("127.0.0.1");
        let through = through.to_url_lossy().to_string();
        let socket = self.dir.path().join(format!("{name}.sock"));
        let ordinary = [
            "certctl-api",
            "--database-url",
            &through,
            "--database-max-conns",
            "4",
            "--auth-secret",
            KEY,
            "--signer-socket",
            socket.to_str().unwrap(),
            "--rate-limit-enabled",
            "false",
        ];
        let config = certctl_api::config::Config::parse_from(ordinary.iter().chain(settings));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = certctl_api::build(&config, self.clock.clone(), &self.tasks).unwrap();
        let front = certctl_api::front(&config, &app).unwrap();
        certctl_api::hear(&app, &self.tasks);
        serve::serve_front(front, listener, certctl_api::router(&app), &self.tasks);
        let mut edge = Edge {
            url,
            database,
            app,
            through,
            socket,
            ca_dir: self.dir.path().join("ca"),
            clock: self.clock.clone(),
            signer: Tasks::new(),
        };
        edge.start_signer().await;
        let mut hears = edge.app.wakes.subscribe(Channel::Revocations);
        hears.wait_for(|n| *n > 0).await.unwrap();
        if let Some(link) = &edge.app.link {
            link.settled().await;
        }
        edge
    }

    /// Starts an identity provider.
    pub async fn idp(&self) -> Idp {
        Idp::start(&self.tasks).await
    }

    /// Where calls wait on their way into the trail.
    pub fn spool(&self) -> PathBuf {
        let spool = self.dir.path().join("spool");
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&spool)
            .unwrap();
        spool
    }

    /// Has calls recorded from now on, as a server does; the answer is where they wait on their way.
    pub fn record_calls(&self) -> PathBuf {
        let spool = self.spool();
        certctl_api::spool::start(&self.app, &spool, 64 << 20, &self.tasks).unwrap();
        spool
    }

    /// Starts an agent of this name on a host of its own.
    pub async fn host(&self, name: &str) -> Arc<Host> {
        self.start_host(name, &[], &[std::env::temp_dir().to_str().unwrap()])
            .await
    }

    /// The same, with these command lines besides `true` and `false` for its targets, whose files are in the directory of
    /// the host alone; elsewhere in that for temporary files as well.
    pub async fn host_with(&self, name: &str, commands: &[&str]) -> Arc<Host> {
        self.start_host(name, commands, &[]).await
    }

    async fn start_host(&self, name: &str, commands: &[&str], directories: &[&str]) -> Arc<Host> {
        let commands = [&["true", "false"][..], commands].concat().join("; ");
        let dir = self.dir.path().join(name);
        let under = |part: &str| dir.join(part).to_str().unwrap().to_owned();
        std::fs::create_dir_all(dir.join("tls")).unwrap();
        let config = certctl_agent::config::Config::parse_from([
            "certctl-agent",
            "--server",
            &self.url,
            "--bootstrap-token",
            BOOTSTRAP,
            "--name",
            name,
            "--key-dir",
            &under("keys"),
            "--state-dir",
            &under("state"),
            "--allowed-commands",
            &commands,
            "--allowed-directories",
            &[&[under("tls").as_str()][..], directories].concat().join(","),
            "--long-poll",
            "0",
        ]);
        let agent = Agent::build(config, self.clock.clone()).unwrap();
        let agent = agent
            .enrol(&self.tasks)
            .await
            .unwrap()
            .expect("nobody asked it to stop");
        let host = Arc::new(Host {
            name: name.to_owned(),
            dir,
            agent,
            away: AtomicBool::new(false),
        });
        self.hosts.lock().unwrap().push(host.clone());
        host
    }

    /// Does all that loops would do now, until nothing is left to do.
    ///
    /// # Panics
    /// When there is no end to it.
    pub async fn settle(&self) {
        for _ in 0..50 {
            if !self.round().await {
                // As whoever listens to the database would have heard by now.
                self.app.answers.all_changed();
                return;
            }
        }
        panic!(
            "there is no end to the work: {}",
            self.text("SELECT string_agg(j::text, E'\\n') FROM jobs j").await
        );
    }

    async fn round(&self) -> bool {
        let s = &self.scheduler;
        let mut moved = policies::sweep(s.clone()).await.unwrap();
        moved += renewals::sweep(s.clone()).await.unwrap();
        moved += worker::drain(s.clone()).await.unwrap();
        moved += bulk::round(s.clone()).await.unwrap();
        moved += blocked_keys::sweep(s.clone()).await.unwrap();
        moved += overdue::sweep(s.clone()).await.unwrap();
        moved += validations::plan(s.clone()).await.unwrap();
        moved += validations::round(s.clone()).await.unwrap();
        moved += validations::forget(s.clone()).await.unwrap();
        worker::reap(s.clone()).await.unwrap();
        let hosts = self.hosts.lock().unwrap().clone();
        for host in hosts.iter().filter(|host| !host.away.load(Ordering::Relaxed)) {
            moved += u64::from(host.agent.work_once().await.unwrap());
        }
        agents::mark_silent(s.clone()).await.unwrap();
        crls::refresh(s.clone()).await.unwrap();
        moved += self.notifier.drain().await.unwrap();
        moved > 0
    }

    /// Has the scheduler look from outside at what was revoked.
    pub async fn probe(&self) {
        prober::look(self.scheduler.clone()).await.unwrap();
    }

    /// Sends JSON as an operator.
    pub async fn send(&self, method: Method, path: &str, body: Value) -> Answer {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.raw(method, path, Some(KEY), body).await
    }

    /// Sends anything with any key.
    pub async fn raw(&self, method: Method, path: &str, key: Option<&str>, body: impl Into<reqwest::Body>) -> Answer {
        self.with_headers(method, path, key, &[], body).await
    }

    /// The same with more headers.
    pub async fn with_headers(
        &self,
        method: Method,
        path: &str,
        key: Option<&str>,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Answer {
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.url));
        request = request.header("content-type", "application/json").body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        self.ask(&format!("{method} {path}"), request).await
    }

    /// Sends a request of the test's own making.
    pub async fn ask(&self, what: &str, request: reqwest::RequestBuilder) -> Answer {
        let response = request.send().await.unwrap_or_else(|why| panic!("{what}: {why}"));
        Answer {
            what: what.to_owned(),
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            octets: response.bytes().await.unwrap().to_vec(),
        }
    }

    /// GET as an operator.
    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, Value::Null).await
    }

    /// POST as an operator.
    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, body).await
    }

    /// PUT as an operator.
    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.send(Method::PUT, path, body).await
    }

    /// DELETE as an operator.
    pub async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, Value::Null).await
    }

    /// A target whose files are on this host.
    pub async fn target(&self, id: &str, host: &Host) {
        let new = json!({ "id": id, "name": id, "type": "NGINX", "agent_id": host.id(), "config": host.config(id) });
        self.post("/api/v1/targets", new).await.expect(201);
    }

    /// A target that takes several certificates: the files of each have its id.
    pub async fn shared_target(&self, id: &str, host: &Host) {
        let new =
            json!({ "id": id, "name": id, "type": "NGINX", "agent_id": host.id(), "config": host.config("{id}") });
        self.post("/api/v1/targets", new).await.expect(201);
    }

    /// A certificate for `<id>.example.net`, put on these targets, with `more` in its request.
    pub async fn certificate(&self, id: &str, targets: &[&str], more: Value) {
        let mut new = json!({ "id": id, "common_name": format!("{id}.example.net"), "target_ids": targets });
        new.as_object_mut()
            .unwrap()
            .extend(more.as_object().cloned().unwrap_or_default());
        self.post("/api/v1/certificates", new).await.expect(201);
    }

    /// How a certificate stands.
    pub async fn status(&self, id: &str) -> String {
        let certificate = self.get(&format!("/api/v1/certificates/{id}")).await.expect(200);
        certificate["status"].as_str().unwrap().to_owned()
    }

    /// The versions of a certificate, newest first.
    pub async fn versions(&self, id: &str) -> Vec<Value> {
        let page = self
            .get(&format!("/api/v1/certificates/{id}/versions?per_page=500"))
            .await
            .expect(200);
        page["data"].as_array().unwrap().clone()
    }

    /// What a query says, as one text.
    pub async fn text(&self, sql: &str) -> String {
        let text: Option<String> = sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_one(&self.db)
            .await
            .unwrap();
        text.unwrap_or_default()
    }

    /// Runs a statement as the owner of the database.
    pub async fn sql(&self, sql: &str) {
        sqlx::query(AssertSqlSafe(sql)).execute(&self.db).await.unwrap();
    }

    /// What every table holds, as one digest each: two that are the same mean that nothing was changed.
    pub async fn contents(&self) -> BTreeMap<String, String> {
        let tables: Vec<String> = sqlx::query_scalar(
            "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public' AND tablename <> '_sqlx_migrations'",
        )
        .fetch_all(&self.db)
        .await
        .unwrap();
        let mut contents = BTreeMap::new();
        for table in tables {
            let sql = format!(
                "SELECT count(*) || ' ' || md5(coalesce(string_agg(t::text, E'\\n' ORDER BY t::text), '')) FROM {table} t"
            );
            let digest = self.text(&sql).await;
            contents.insert(table, digest);
        }
        contents
    }
}

async fn receive(State(news): State<Arc<Mutex<Vec<Value>>>>, Json(event): Json<Value>) -> StatusCode {
    news.lock().unwrap().push(event);
    StatusCode::OK
}

/// What relying parties ask: an API, with a signer of its own.
pub struct Edge {
    /// Where the API is, without a slash at the end.
    pub url: String,
    /// The way to the database, of both.
    pub database: Gate,
    /// What the handlers of the API share.
    pub app: Arc<App>,
    through: String,
    socket: PathBuf,
    ca_dir: PathBuf,
    clock: Clock,
    signer: Tasks,
}

impl Edge {
    /// Starts the signer, which finds the authorities that are there.
    pub async fn start_signer(&mut self) {
        let config = certctl_signer::config::Config::parse_from([
            "certctl-signer",
            "--database-url",
            &self.through,
            "--database-max-conns",
            "3",
            "--ca-dir",
            self.ca_dir.to_str().unwrap(),
            "--public-url",
            &self.url,
        ]);
        let signer = Signer::build(config, self.clock.clone()).unwrap();
        self.signer = Tasks::new();
        serve::serve_unix(&self.socket, signer.router(), &self.signer)
            .await
            .unwrap();
    }

    /// Ends the signer, with all connections to it.
    pub async fn stop_signer(&mut self) {
        self.signer.drain(Duration::ZERO).await;
    }
}

/// A host with an agent and the files of its targets.
pub struct Host {
    name: String,
    dir: PathBuf,
    agent: Enrolled,
    away: AtomicBool,
}

impl Host {
    /// The agent's id.
    pub fn id(&self) -> &str {
        self.agent.id().as_str()
    }

    /// The agent's own key.
    pub fn key(&self) -> String {
        let identity = std::fs::read(self.dir.join("state/identity.json")).unwrap();
        let identity: Value = serde_json::from_slice(&identity).unwrap();
        identity["api_key"].as_str().unwrap().to_owned()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes the agent off the network, or puts it back.
    pub fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::Relaxed);
    }

    /// Takes the keys of a certificate away from the agent, but for the newest.
    pub fn forget_keys(&self, certificate: &str) {
        let mut keys: Vec<_> = std::fs::read_dir(self.dir.join("keys").join(certificate))
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "key"))
            .collect();
        keys.sort_by_key(|entry| entry.metadata().unwrap().modified().unwrap());
        keys.pop();
        for key in keys {
            std::fs::remove_file(key.path()).unwrap();
        }
    }

    /// Settings of a target of this host.
    pub fn config(&self, target: &str) -> Value {
        let file = self.dir.join(format!("tls/{target}.pem"));
        json!({ "cert_path": file, "validate_command": "true", "reload_command": "true" })
    }

    /// What a server needs to serve a target: the certificate, the intermediates and the key, PEM.
    pub fn bundle(&self, target: &str) -> String {
        let read = |suffix: &str| std::fs::read_to_string(self.dir.join(format!("tls/{target}{suffix}"))).unwrap();
        read(".pem") + &read(".key")
    }

    /// What a server of this host would serve for a target: its certificate file, which pairs with its key file.
    pub fn served(&self, target: &str) -> Option<CertificateFacts> {
        let read = |suffix: &str| std::fs::read_to_string(self.dir.join(format!("tls/{target}{suffix}"))).ok();
        let leaf = CertificateFacts::parse_pem_chain(&read(".pem")?).unwrap().remove(0);
        let key = KeyPair::from_pem(&read(".key").expect("a certificate has its key beside it"), None).unwrap();
        assert!(leaf.pairs_with(&key), "the files of {target} are a pair");
        Some(leaf)
    }
}

/// An answer of the API.
pub struct Answer {
    what: String,
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub octets: Vec<u8>,
}

impl Answer {
    /// The body, which is JSON; null when there is none.
    pub fn json(&self) -> Value {
        match self.octets.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&self.octets).unwrap_or_else(|why| panic!("{self:?}: {why}")),
        }
    }

    /// One header.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The body of an answer that has this status.
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        self.json()
    }

    /// The problem, whole: its parts agree with each other, with the status and with the headers.
    pub fn problem(&self) -> Problem {
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        let problem: Problem = serde_json::from_slice(&self.octets).unwrap_or_else(|why| panic!("{self:?}: {why}"));
        let kind = certctl_contract::problem::Kind::ALL
            .iter()
            .find(|kind| problem.is(**kind));
        let kind = kind.unwrap_or_else(|| panic!("a kind of the table: {self:?}"));
        assert_eq!(
            (problem.status, problem.title.as_str()),
            (kind.status(), kind.title()),
            "{self:?}"
        );
        assert_eq!(problem.status, self.status, "{self:?}");
        assert_eq!(
            (&problem.error, &problem.message),
            (&problem.title, &problem.detail),
            "{self:?}"
        );
        assert_eq!(
            problem.request_id.as_deref(),
            Some(self.header("x-request-id")),
            "{self:?}"
        );
        assert!(!problem.detail.is_empty(), "{self:?}");
        assert!(!problem.detail.contains("error returned from database"), "{self:?}");
        problem
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = String::from_utf8_lossy(&self.octets);
        write!(
            f,
            "{} -> {} {}",
            self.what,
            self.status,
            text.chars().take(2000).collect::<String>()
        )
    }
}
