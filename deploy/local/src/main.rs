//! `certctl-local`: certctl on this machine with one command.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Command, ExitCode, Stdio, exit};
use std::time::Duration;

use anyhow::{Context, bail};
use certctl_local::instance::{self, Instance};
use certctl_local::platform::{self, Builder, Platform};
use certctl_local::postgres::Cluster;
use certctl_local::{files, nginx, process, story};
use certctl_runtime::{config, tasks};
use clap::{Args, Parser, Subcommand};
use tokio::time::{Instant, sleep};

/// Runs certctl on this machine: Postgres, the services, an agent and a demo nginx.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Directory of all data, keys and logs.
    #[arg(long, global = true, default_value = "./.certctl")]
    dir: PathBuf,

    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Starts everything and shows a certificate being issued and served; Ctrl-C stops everything.
    Up(Up),
    /// Stops what `up` started.
    Down,
    /// Says whether it runs, and where.
    Status,
    /// Runs only Postgres, and prints the URL of an empty database once it answers.
    Db {
        /// Quick instead of durable, and gone at the end.
        #[arg(long)]
        scratch: bool,
    },
}

#[derive(Args)]
struct Up {
    /// Return once everything is ready; `down` stops it.
    #[arg(long)]
    detach: bool,

    /// Start no nginx and request no certificate.
    #[arg(long)]
    no_demo: bool,

    /// Directory of the binaries; the one of this program unless given.
    #[arg(long)]
    bin_dir: Option<PathBuf>,

    /// Use this database instead of a private Postgres; its user owns it and may create roles.
    #[arg(long, env = "CERTCTL_DATABASE_URL", hide_env_values = true)]
    database_url: Option<String>,

    /// Command lines that targets of the agent may use besides those of the demo, separated by semicolons
    #[arg(long, env = "CERTCTL_ALLOWED_COMMANDS", default_value = "")]
    allowed_commands: String,

    /// Directories that targets of the agent may have files in besides the platform's and /tmp, separated by commas
    #[arg(long, env = "CERTCTL_ALLOWED_DIRECTORIES", default_value = "")]
    allowed_directories: String,

    /// Leave the session of the terminal.
    #[arg(long, hide = true)]
    daemon: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli: Cli = config::parse();
    match run(cli).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("certctl-local: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    if matches!(cli.action, Action::Down | Action::Status) && !cli.dir.exists() {
        println!("certctl does not run in {}", cli.dir.display());
        return Ok(code(matches!(cli.action, Action::Down)));
    }
    let dir = files::directory(&cli.dir, 0o711)?.path().to_owned();
    match cli.action {
        Action::Up(up) if up.detach => detach(&dir).await,
        Action::Up(up) => foreground(&dir, up).await,
        Action::Down => down(&dir).await,
        Action::Status => status(&dir),
        Action::Db { scratch } => db(&dir, scratch).await,
    }
}

fn code(success: bool) -> ExitCode {
    if success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn foreground(dir: &Path, up: Up) -> anyhow::Result<ExitCode> {
    if up.daemon {
        rustix::process::setsid().context("cannot leave the session")?;
    }
    let Some(instance) = Instance::acquire(dir)? else {
        return already_running(dir).await;
    };
    let mut signal = pin!(tasks::signal());
    let started = tokio::select! {
        started = start(dir, &up) => started,
        () = &mut signal => {
            println!("stopped before everything was ready");
            return Ok(ExitCode::FAILURE);
        }
    };
    let (mut platform, failure) = match started {
        Ok(platform) => (platform, None),
        Err((Some(platform), error)) => (platform, Some(error)),
        Err((None, error)) => return Err(error),
    };
    if failure.is_none() {
        let summary = summary(&platform, &bin_dir(&up)?);
        instance.announce(&summary)?;
        // The output of a daemon is a log, and the summary has the API key: who started it shows it.
        if !up.daemon {
            println!(
                "\n{summary}\nCtrl-C stops everything; what is in {} stays.",
                dir.display()
            );
        }
        loop {
            tokio::select! {
                () = &mut signal => break,
                () = async {
                    platform.tend(&mut |line| println!("{line}")).await;
                    sleep(Duration::from_millis(500)).await;
                } => {}
            }
        }
        println!("\nstopping");
    }
    tokio::select! {
        () = platform.stop() => {}
        () = tasks::signal() => exit(1), // The children end with us.
    }
    drop(instance);
    match failure {
        Some(error) => Err(error),
        None => {
            println!("stopped");
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Starts the platform and tells the story. A platform whose story failed is handed back to be stopped in order.
async fn start(dir: &Path, up: &Up) -> Result<Platform, (Option<Platform>, anyhow::Error)> {
    let say = &mut |line: &str| println!("{line}");
    say(&format!("certctl starts in {}", dir.display()));
    let bin_dir = bin_dir(up).map_err(|error| (None, error))?;
    // A variable that is set to nothing counts as not set.
    let given = |url: &Option<String>| url.clone().filter(|url| !url.is_empty());
    let mut builder = Builder::new(dir, &bin_dir)
        .database_url(given(&up.database_url))
        .preferred_ports(8443, 8444)
        .allow_commands(&up.allowed_commands)
        .allow_directories(&up.allowed_directories);
    let given = platform::given(std::env::vars_os());
    for (name, value) in &given.passed {
        builder = platform::SERVICES
            .iter()
            .fold(builder, |builder, service| builder.env(service, name, value));
    }
    for line in given.report() {
        say(&line);
    }
    if up.no_demo {
        builder = builder.without_demo();
    }
    let platform = builder.start(say).await.map_err(|error| (None, error))?;
    if !up.no_demo {
        say("\nThe demo");
        if let Err(error) = story::tell(&platform, say).await {
            return Err((Some(platform), error.context("the demo failed")));
        }
    }
    Ok(platform)
}

fn bin_dir(up: &Up) -> anyhow::Result<PathBuf> {
    match &up.bin_dir {
        Some(dir) => Ok(dir.clone()),
        None => {
            let program = std::env::current_exe().context("cannot find this program")?;
            Ok(program.parent().context("a program is in a directory")?.to_owned())
        }
    }
}

fn summary(platform: &Platform, bin_dir: &Path) -> String {
    let (api, dir) = (platform.api(), platform.dir().display());
    let cli = bin_dir.join("certctl-cli");
    let cli = cli.display();
    let mut text = format!("API          {}\nAPI key      {}\n", api.url(), api.key());
    text += &format!("metrics      http://{}/metrics (the API's; ", platform.ops("api"));
    text += &format!("ports of the others: {dir}/ports.json)\n");
    text += &format!("logs         {dir}/logs\n");
    match platform.demo() {
        Some(demo) => {
            let (address, name) = (demo.address(), nginx::SERVER_NAME);
            text += &format!("demo TLS     {address} ({name})\n\nTry, after  . {dir}/env\n");
            text +=
                &format!("  openssl s_client -connect {address} -servername {name} -CAfile {dir}/ca.pem </dev/null\n");
            text += &format!("  {cli} list-certs\n  {cli} renew-cert {}\n", story::CERTIFICATE);
        }
        None => {
            text += &format!("\nTry, after  . {dir}/env\n  {cli} health\n  {cli} list-agents\n  {cli} list-certs\n");
        }
    }
    text
}

/// Another process has the directory: waits until it is ready, and shows where it is.
async fn already_running(dir: &Path) -> anyhow::Result<ExitCode> {
    const TIMEOUT: Duration = Duration::from_secs(180);
    let started = Instant::now();
    while let Some(pid) = instance::holder(dir)? {
        if let Some(summary) = instance::announced(dir) {
            println!("certctl already runs (process {pid})\n\n{summary}");
            return Ok(ExitCode::SUCCESS);
        }
        if started.elapsed() > TIMEOUT {
            bail!("process {pid} is starting and does not become ready");
        }
        sleep(Duration::from_millis(100)).await;
    }
    bail!("another process was starting and has ended")
}

/// Starts this program again as a daemon, shows what it prints, and returns once it is ready or has failed.
async fn detach(dir: &Path) -> anyhow::Result<ExitCode> {
    const LOG: &str = "certctl-local.log";
    if instance::holder(dir)?.is_some() {
        return already_running(dir).await;
    }
    let logs = files::directory(&dir.join("logs"), 0o700)?;
    let path = logs.path().join(LOG);
    let log = logs.append(LOG, 0o600)?;
    let mut tail = logs.file(LOG)?.context("the log was removed")?;
    tail.seek(SeekFrom::End(0))?;
    let mut daemon = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1).filter(|arg| arg != "--detach"))
        .arg("--daemon")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start the daemon")?;
    let mut said = Vec::new();
    loop {
        let ended = daemon.try_wait()?;
        let summary = instance::announced(dir);
        let mut text = Vec::new();
        tail.read_to_end(&mut text)?;
        std::io::stdout().write_all(&text)?;
        said.extend_from_slice(&text);
        match ended {
            Some(status) if !status.success() => {
                let said = String::from_utf8_lossy(&said);
                // What a program of ours says when it ends.
                let why = said.lines().rev().find_map(|line| line.strip_prefix("Error: "));
                let why = why.map(|why| format!(": {why}")).unwrap_or_default();
                bail!("it did not start{why}; the lines above are in {}", path.display())
            }
            Some(_) => return Ok(ExitCode::SUCCESS),
            None => match summary.filter(|_| text.is_empty()) {
                Some(summary) => {
                    println!("\n{summary}\nIt runs as process {}; script/down stops it.", daemon.id());
                    return Ok(ExitCode::SUCCESS);
                }
                None => sleep(Duration::from_millis(50)).await,
            },
        }
    }
}

async fn down(dir: &Path) -> anyhow::Result<ExitCode> {
    const GRACE: Duration = Duration::from_secs(120);
    match instance::stop(dir, GRACE).await? {
        Some(pid) => println!("stopped process {pid}; what is in {} stays", dir.display()),
        None => println!("certctl does not run in {}", dir.display()),
    }
    process::end_leftovers(dir).await;
    Ok(ExitCode::SUCCESS)
}

fn status(dir: &Path) -> anyhow::Result<ExitCode> {
    let Some(pid) = instance::holder(dir)? else {
        println!("certctl does not run in {}", dir.display());
        return Ok(ExitCode::FAILURE);
    };
    match instance::announced(dir) {
        Some(summary) => println!("certctl runs (process {pid})\n\n{summary}"),
        None => println!("certctl is starting (process {pid})"),
    }
    Ok(ExitCode::SUCCESS)
}

async fn db(dir: &Path, scratch: bool) -> anyhow::Result<ExitCode> {
    let Some(_instance) = Instance::acquire(dir)? else {
        bail!("another process runs in {}", dir.display());
    };
    let mut signal = pin!(tasks::signal());
    let start = async {
        process::end_leftovers(dir).await;
        if scratch {
            Cluster::scratch(dir).await
        } else {
            Cluster::start(dir, None).await
        }
    };
    let mut cluster = tokio::select! {
        cluster = start => cluster?,
        () = &mut signal => return Ok(ExitCode::FAILURE),
    };
    cluster.create_database("certctl")?;
    println!("{}", cluster.url("certctl"));
    loop {
        tokio::select! {
            () = &mut signal => break,
            () = sleep(Duration::from_millis(200)) => {}
        }
        if !cluster.is_running() {
            bail!(
                "Postgres ended; its log is in {}",
                dir.join("logs/postgres.log").display()
            );
        }
    }
    cluster.stop().await;
    Ok(ExitCode::SUCCESS)
}
