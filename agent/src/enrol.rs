//! Who this agent is: given, remembered, or registered for.

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use certctl_contract::agents::{NewAgent, RegisterAgent};
use certctl_contract::query::NoParams;
use certctl_model::id::AgentId;
use certctl_model::secret::Secret;
use certctl_model::time::Clock;
use certctl_runtime::private::PrivateDir;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::config::Config;
use crate::server::{Server, Trouble, backoff};
use crate::{files, host};

/// An agent's id and its own key.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The id.
    pub agent_id: AgentId,
    /// The key: its bearer token.
    pub api_key: Secret,
}

/// Finds out who this agent is, registering it when nobody has said so yet. None when `stop` came first.
///
/// While the server is away the registration is repeated; it carries an id and a key made here and written down before
/// they are sent, so that an answer that is lost costs nothing.
///
/// # Errors
/// The server refuses the agent, or the state directory cannot be used.
pub async fn identity(config: &Config, clock: &Clock, stop: &CancellationToken) -> Result<Option<Identity>> {
    if let (Some(agent_id), Some(api_key)) = (&config.agent_id, &config.api_key) {
        return Ok(Some(Identity {
            agent_id: agent_id.clone(),
            api_key: api_key.clone(),
        }));
    }
    let state = files::private_dir(&config.state_dir)
        .with_context(|| format!("cannot use the state directory {}", config.state_dir.display()))?;
    if let Some(identity) = load(&state, SETTLED)? {
        return match &config.agent_id {
            Some(id) if *id != identity.agent_id => bail!(
                "{} says that this agent is {}, CERTCTL_AGENT_ID says {id}; remove the one that is wrong",
                state.path().join(SETTLED).display(),
                identity.agent_id
            ),
            _ => Ok(Some(identity)),
        };
    }
    let proposal = propose(config, clock, &state)?;
    let Some(identity) = register(config, proposal, stop).await? else {
        return Ok(None);
    };
    save(&state, SETTLED, &identity)?;
    state
        .remove(PROPOSED)
        .with_context(|| format!("cannot remove {}", state.path().join(PROPOSED).display()))?;
    info!(agent.id = %identity.agent_id, "registered as agent {}", identity.agent_id);
    Ok(Some(identity))
}

/// The identity that the server agreed to.
const SETTLED: &str = "identity.json";
/// The one that it was asked for.
const PROPOSED: &str = "identity.json.new";

/// The one an earlier start may have sent already, else a new one.
fn propose(config: &Config, clock: &Clock, state: &PrivateDir) -> Result<Identity> {
    let wanted = config.agent_id.as_ref();
    if let Some(earlier) = load(state, PROPOSED)?.filter(|earlier| wanted.is_none_or(|id| *id == earlier.agent_id)) {
        return Ok(earlier);
    }
    let mut bytes = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(bytes.as_mut()).map_err(|_| anyhow::anyhow!("no random bytes for a key"))?;
    let proposal = Identity {
        agent_id: wanted.cloned().unwrap_or_else(|| AgentId::generate(clock.now())),
        api_key: Secret::new(URL_SAFE_NO_PAD.encode(bytes.as_ref())),
    };
    save(state, PROPOSED, &proposal)?;
    Ok(proposal)
}

async fn register(config: &Config, proposal: Identity, stop: &CancellationToken) -> Result<Option<Identity>> {
    let bearer = config.bearer()?;
    let server = Server::new(config, bearer.clone())?;
    let name = config.agent_name.clone().unwrap_or_else(host::name);
    let about = host::describe(&config.server_url).await;
    let new = NewAgent {
        id: Some(proposal.agent_id.clone()),
        name: name.clone(),
        hostname: about.hostname,
        os: about.os,
        architecture: about.architecture,
        ip_address: about.ip_address,
        version: about.version,
        capabilities: about.capabilities,
        api_key: Some(proposal.api_key.expose().to_owned()),
    };
    let mut backoff = backoff();
    loop {
        let answer = tokio::select! {
            answer = server.call::<RegisterAgent>(NoParams, NoParams, new.clone()) => answer,
            () = stop.cancelled() => return Ok(None),
        };
        let wait = match answer {
            Ok(registered) => {
                let api_key = match registered.api_key.as_str() {
                    "" => proposal.api_key,
                    key => Secret::new(key),
                };
                return Ok(Some(Identity {
                    agent_id: registered.agent.id,
                    api_key,
                }));
            }
            Err(Trouble::Refused {
                status: 401 | 403,
                said,
            }) if bearer.is_none() => bail!(
                "the server lets nobody register without a key ({said}); set CERTCTL_BOOTSTRAP_TOKEN or CERTCTL_API_KEY"
            ),
            Err(Trouble::Refused { status: 409, said }) => bail!(
                "the server knows another agent as \"{name}\" ({said}); choose another CERTCTL_AGENT_NAME, or continue \
                 as that agent by setting CERTCTL_AGENT_ID and CERTCTL_API_KEY to its id and key"
            ),
            Err(Trouble::Refused { status, said }) => bail!("the server refuses the registration ({status}): {said}"),
            Err(Trouble::Away(why)) => {
                let wait = backoff.next();
                warn!("cannot register yet, the next attempt is in {wait:.1?}: {why}");
                wait
            }
        };
        tokio::select! {
            () = sleep(wait) => {}
            () = stop.cancelled() => return Ok(None),
        }
    }
}

/// The form on disk, mode 0600: the one place where an agent's key is written.
#[derive(Serialize, Deserialize)]
struct Stored {
    agent_id: AgentId,
    api_key: String,
}

fn load(state: &PrivateDir, name: &str) -> Result<Option<Identity>> {
    const MAX_BYTES: u64 = 16 * 1024;
    let path = state.path().join(name);
    let bytes = state
        .read(name, MAX_BYTES)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let Some(bytes) = bytes.map(Zeroizing::new) else {
        return Ok(None);
    };
    let Stored { agent_id, api_key } =
        serde_json::from_slice(&bytes).with_context(|| format!("{} is not an agent's identity", path.display()))?;
    Ok(Some(Identity {
        agent_id,
        api_key: Secret::new(api_key),
    }))
}

fn save(state: &PrivateDir, name: &str, identity: &Identity) -> Result<()> {
    let stored = Stored {
        agent_id: identity.agent_id.clone(),
        api_key: identity.api_key.expose().to_owned(),
    };
    let bytes = Zeroizing::new(serde_json::to_vec(&stored)?);
    state
        .write(name, 0o600, &bytes)
        .with_context(|| format!("cannot write {}", state.path().join(name).display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use clap::Parser;

    use super::*;

    fn config(dir: &Path, args: &[&str]) -> Config {
        let dir = dir.to_str().unwrap();
        Config::parse_from([&["certctl-agent", "--state-dir", dir, "--key-dir", dir], args].concat())
    }

    async fn found(config: &Config) -> Result<Option<Identity>> {
        let stop = CancellationToken::new();
        stop.cancel();
        identity(config, &Clock::system(), &stop).await
    }

    #[tokio::test]
    async fn an_identity_is_given_or_remembered_and_the_two_may_not_differ() {
        let dir = tempfile::tempdir().unwrap();
        let given = found(&config(dir.path(), &["--agent-id", "a-given", "--api-key", "k"]))
            .await
            .unwrap()
            .unwrap();
        assert_eq!((given.agent_id.as_str(), given.api_key.expose()), ("a-given", "k"));

        let state = files::private_dir(dir.path()).unwrap();
        save(
            &state,
            SETTLED,
            &Identity {
                agent_id: "a-kept".parse().unwrap(),
                api_key: Secret::new("own"),
            },
        )
        .unwrap();
        assert_eq!(
            std::fs::metadata(dir.path().join(SETTLED))
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o600
        );
        let remembered = found(&config(dir.path(), &["--api-key", "shared"]))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            (remembered.agent_id.as_str(), remembered.api_key.expose()),
            ("a-kept", "own")
        );
        assert!(found(&config(dir.path(), &["--agent-id", "a-other"])).await.is_err());
    }

    #[tokio::test]
    async fn what_is_proposed_is_written_first_and_proposed_again() {
        let dir = tempfile::tempdir().unwrap();
        let state = files::private_dir(dir.path()).unwrap();
        let first = propose(&config(dir.path(), &[]), &Clock::system(), &state).unwrap();
        let again = propose(&config(dir.path(), &[]), &Clock::system(), &state).unwrap();
        assert_eq!(
            (&first.agent_id, first.api_key.expose()),
            (&again.agent_id, again.api_key.expose())
        );
        assert!(first.agent_id.as_str().starts_with("a-") && first.api_key.expose().len() == 43);
        let named = propose(&config(dir.path(), &["--agent-id", "a-mine"]), &Clock::system(), &state).unwrap();
        assert_eq!(named.agent_id.as_str(), "a-mine");
        assert!(found(&config(dir.path(), &[])).await.unwrap().is_none());
    }
}
