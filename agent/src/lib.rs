//! The agent: runs on the hosts that serve certificates, makes their keys, deploys, and looks whether it worked.
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | settings |
//! | [`enrol`] | who this agent is; registration |
//! | `work` | heartbeats, and the loop that fetches jobs and does them |
//! | `server` | the API as the agent sees it: answered, refused or away |
//! | [`keystore`] | private keys, one for every job |
//! | [`bundle`] | a certificate with its chain and key, checked |
//! | [`targets`] | what to do for each kind of target |
//! | [`deploy`] | doing it: all of it, or none |
//! | `place`, `attributes`, `journal` | where a file really is, who may use it, what to undo after a crash |
//! | [`allowed`] | command lines and directories that this host's configuration allows |
//! | [`program`], [`served`] | running those commands; what a server really serves |
//! | `placeholder` | a pair for a target that has no certificate yet |
//! | `files`, `host` | private directories, facts about the host |
//!
//! Invariants: a private key is on disk, mode 0600, before its request is sent, and goes nowhere but into the files of
//! this host's targets; a certificate is deployed only together with its key and in date; a deployment that fails or is
//! cut off leaves the old files, and one that cannot be undone keeps no other from being done; no file is read or written
//! where another user could decide which file it is.
//!
//! Not here: deciding what is issued or when, talking to issuers, a database.

pub mod allowed;
mod attributes;
pub mod bundle;
pub mod config;
pub mod deploy;
pub mod enrol;
mod files;
mod host;
mod journal;
pub mod keystore;
mod place;
mod placeholder;
pub mod program;
pub mod served;
mod server;
pub mod targets;
mod work;

use std::fs::{File, TryLockError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};
use certctl_model::id::AgentId;
use certctl_model::time::Clock;
use certctl_runtime::serve::{self, Ready};
use certctl_runtime::tasks::Tasks;
use tracing::{info, warn};

use crate::allowed::Allowed;
use crate::config::Config;
use crate::deploy::Deployer;
use crate::keystore::Keystore;
use crate::server::Server;
use crate::work::{Heartbeats, Settled, Worker};

/// An agent that is ready to run.
#[derive(Debug)]
pub struct Agent {
    config: Config,
    clock: Clock,
    keys: Arc<Keystore>,
    deployer: Deployer,
    /// Held as long as the agent lives: two agents would undo each other's deployments.
    lock: File,
}

impl Agent {
    /// Prepares the directories.
    ///
    /// # Errors
    /// They cannot be used, or another agent uses them.
    pub fn build(config: Config, clock: Clock) -> Result<Self> {
        let state = &config.state_dir;
        let dir = files::private_dir(state)
            .with_context(|| format!("cannot prepare the state directory {}", state.display()))?;
        let lock = dir.append("lock", 0o600).context("cannot open the lock")?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("another agent is running in {}", state.display()),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", state.join("lock").display()));
            }
        }
        let keys = Arc::new(Keystore::open(&config.key_dir)?);
        let deployer = Deployer::new(state, allowed(&config))
            .with_context(|| format!("cannot use the state directory {}", state.display()))?;
        Ok(Self {
            config,
            clock,
            keys,
            deployer,
            lock,
        })
    }

    /// Finds out who the agent is, and starts its tasks. Returns once they run, or when the tasks are asked to end
    /// before. The token of `tasks` is cancelled when one of them ends by itself.
    ///
    /// # Errors
    /// The server refuses the agent, or the listener for operations cannot be opened.
    pub async fn run(self, tasks: &Tasks) -> Result<()> {
        if let Some(enrolled) = self.enrol(tasks).await? {
            enrolled.run(tasks);
        }
        Ok(())
    }

    /// As [`Agent::run`], but only until the agent knows who it is; the caller decides when it works. None when the
    /// tasks are asked to end before.
    ///
    /// # Errors
    /// As for [`Agent::run`].
    pub async fn enrol(self, tasks: &Tasks) -> Result<Option<Enrolled>> {
        let Self {
            config,
            clock,
            keys,
            deployer,
            lock,
        } = self;
        let stop = tasks.token();
        let heard = Arc::new(AtomicBool::new(false));
        if let Some(address) = config.ops_listen {
            let heard = heard.clone();
            let ready = Ready::new().check("server", move || {
                let heard = heard.load(Ordering::Relaxed);
                async move {
                    ensure!(heard, "the server has not heard the last heartbeat");
                    Ok(())
                }
            });
            serve::serve(serve::listen(address).await?, serve::ops_router(ready), tasks).await;
        }
        let Some(identity) = enrol::identity(&config, &clock, &stop).await? else {
            return Ok(None);
        };
        let agent = identity.agent_id;
        let deployer = Arc::new(deployer);
        let server = Arc::new(Server::new(&config, Some(identity.api_key))?);
        info!(agent.id = %agent, "agent {agent} works for {}", config.server_url);
        let heartbeats = Heartbeats {
            server: server.clone(),
            agent: agent.clone(),
            url: config.server_url.clone(),
            every: config.heartbeat_interval,
            heard,
            stop: stop.clone(),
            deployer: deployer.clone(),
            clock: clock.clone(),
        };
        let worker = Worker {
            server,
            agent,
            keys,
            deployer,
            clock,
            poll_interval: config.poll_interval,
            long_poll: config.long_poll,
            stop,
        };
        Ok(Some(Enrolled {
            heartbeats,
            worker,
            lock,
        }))
    }
}

fn allowed(config: &Config) -> Allowed {
    let mut commands = config.allowed_commands.clone();
    if let Some(names) = &config.allowed_programs {
        let unknown = commands.keep_built_in(names);
        warn!(
            "CERTCTL_ALLOWED_PROGRAMS narrows the built-in command lines; CERTCTL_ALLOWED_COMMANDS lists whole lines"
        );
        if !unknown.is_empty() {
            let names = unknown.join(", ");
            warn!("no command of {names} is allowed by CERTCTL_ALLOWED_PROGRAMS; put it into CERTCTL_ALLOWED_COMMANDS");
        }
    }
    Allowed {
        commands,
        directories: config.allowed_directories.clone(),
    }
}

/// An agent that knows who it is.
pub struct Enrolled {
    heartbeats: Heartbeats,
    worker: Worker,
    lock: File,
}

impl Enrolled {
    /// The agent's id.
    pub fn id(&self) -> &AgentId {
        &self.worker.agent
    }

    /// Undoes what was cut off, says once that the agent is alive, fetches jobs once and does them. True when any of
    /// them moved.
    ///
    /// # Errors
    /// The server did not hear the agent, or gave no work.
    pub async fn work_once(&self) -> Result<bool> {
        self.worker.deployer.recover().await;
        let moved = match self.heartbeats.beat().await {
            Ok(()) => self.worker.pass(&mut Settled::new()).await,
            Err(why) => Err(why),
        };
        moved.map_err(|why| anyhow::anyhow!("{}: {why}", self.heartbeats.url))
    }

    fn run(self, tasks: &Tasks) {
        let Self {
            heartbeats,
            worker,
            lock,
        } = self;
        let stop = tasks.token();
        // An agent that seems alive but does no work is worse than none: when one task ends, however, so does the other.
        let ends = [stop.clone().drop_guard(), stop.drop_guard()];
        let [with_heartbeats, with_work] = ends;
        tasks.spawn("heartbeats", async move {
            let _ends_the_other = with_heartbeats;
            heartbeats.run().await;
        });
        tasks.spawn("work", async move {
            let _held_to_the_end = (with_work, lock);
            worker.run().await;
        });
    }
}
