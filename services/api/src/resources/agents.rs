//! Agents: registration, heartbeat, work, requests, pickup, reports.

use std::{net::IpAddr, time::Duration};

use certctl_contract::{
    agents::*,
    endpoint::{NoContent, Permission},
    health::Outcome,
    list::{Page, Sort},
    problem::Kind,
};
use certctl_model::{
    connector::{TargetConfig, TargetType},
    id::{AgentId, CertificateId, JobId, TargetId, VersionId},
    job::{AwaitingCsr, Job, JobFacts, JobKind, JobStatus, Pending, Running},
    name::{San, all_names},
    time::Time,
};
use certctl_runtime::failpoint::hold;
use certctl_store::{Tx, agents::SignOfLife, approvals, certificates, jobs, outbox, wake::Channel};
use serde_json::Value;
use sqlx::{Row, postgres::PgRow, types::Json};

use super::{
    certificates::{admit_request, check_tags, newest_of_agent, read_request},
    profiles,
};
use crate::{
    app::{Cx, Request, Routes},
    auth::{self, Way, random, sha256},
    error::ApiError,
    listing::{self, Column, Listed, Where, check_name},
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(list)
        .on(register)
        .on(get)
        .on(update)
        .on(delete)
        .on(heartbeat)
        .on(work)
        .on(submit_csr)
        .on(pickup)
        .on(report)
}

/// The longest a request for work is held.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How often a held request looks by itself, should it not be woken.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Facts of an agent that an operator can set.
const FACTS: [&str; 4] = ["os", "architecture", "version", "ip_address"];

impl Listed for Agent {
    type Filter = AgentFilter;
    type Sort = AgentSort;

    const KIND: &'static str = "agent";
    const COLUMNS: &'static str = "a.id, a.name, a.hostname, a.os, a.architecture, a.ip_address, a.version,
        a.capabilities, a.tags, host(a.peer_address) AS peer_address, a.operator_set, a.last_heartbeat_at, a.registered_at, a.updated_at,
        CASE WHEN a.offline_since IS NULL AND a.last_heartbeat_at IS NOT NULL THEN 'Online' ELSE 'Offline' END AS status";
    const FROM: &'static str = "agents a";
    const ID: &'static str = "a.id";
    const DEFAULT: Sort<AgentSort> = Sort {
        key: AgentSort::CreatedAt,
        descending: true,
    };

    fn column(key: AgentSort) -> Column {
        match key {
            AgentSort::CreatedAt => Column::time("a.registered_at"),
            AgentSort::Name => Column::text("a.name"),
            AgentSort::Version => Column::text("a.version"),
            AgentSort::LastHeartbeatAt => Column::time("(coalesce(a.last_heartbeat_at, '-infinity'))"),
        }
    }

    fn restrict(f: &AgentFilter, sql: &mut Where<'_>) {
        match f.status {
            Some(AgentStatus::Online) => sql.and("a.offline_since IS NULL AND a.last_heartbeat_at IS NOT NULL"),
            Some(AgentStatus::Offline) => sql.and("(a.offline_since IS NOT NULL OR a.last_heartbeat_at IS NULL)"),
            Some(AgentStatus::Degraded) => sql.and("false"),
            None => {}
        }
        sql.eq("a.name", &f.name);
        sql.eq("lower(a.os)", &f.os.as_deref().map(str::to_lowercase));
        sql.eq(
            "lower(a.architecture)",
            &f.architecture.as_deref().map(str::to_lowercase),
        );
        sql.eq("a.version", &f.version);
    }

    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        let last: Option<Time> = row.try_get("last_heartbeat_at")?;
        let registered: Time = row.try_get("registered_at")?;
        let status: String = row.try_get("status")?;
        let set: Vec<String> = row.try_get("operator_set")?;
        let states_itself = |fact: &&&str| !set.iter().any(|set| set == **fact);
        let self_reported = FACTS.iter().filter(states_itself).map(ToString::to_string);
        Ok(Self {
            id: row.try_get("id")?,
            name: row.try_get("name")?,
            hostname: row.try_get("hostname")?,
            status: if status == "Online" {
                AgentStatus::Online
            } else {
                AgentStatus::Offline
            },
            last_heartbeat_at: last,
            last_heartbeat: last,
            registered_at: registered,
            created_at: registered,
            updated_at: row.try_get("updated_at")?,
            api_key_hash: String::new(),
            os: row.try_get("os")?,
            architecture: row.try_get("architecture")?,
            ip_address: row.try_get("ip_address")?,
            peer_address: row.try_get("peer_address")?,
            version: row.try_get("version")?,
            capabilities: row.try_get("capabilities")?,
            self_reported: self_reported
                .chain(["hostname".to_owned(), "capabilities".to_owned()])
                .collect(),
            tags: row.try_get::<Json<_>, _>("tags")?.0,
        })
    }
}

async fn list(cx: Cx, rq: Request<ListAgents>) -> Result<Page<Agent>, ApiError> {
    listing::list(&cx, rq.query).await
}

async fn get(cx: Cx, rq: Request<GetAgent>) -> Result<Agent, ApiError> {
    listing::fetch(&cx, rq.path.id.as_str()).await
}

async fn register(cx: Cx, rq: Request<RegisterAgent>) -> Result<RegisteredAgent, ApiError> {
    let new = rq.body;
    check_name("name", &new.name, 128)?;
    check_name("hostname", &new.hostname, 255)?;
    for (field, text) in [
        ("os", &new.os),
        ("architecture", &new.architecture),
        ("ip_address", &new.ip_address),
        ("version", &new.version),
    ] {
        if !plain(text, 128) {
            return Err(ApiError::invalid(
                field,
                "has at most 128 characters, without control characters",
            ));
        }
    }
    let api_key = match new.api_key {
        Some(key) if (32..=128).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic()) => key,
        Some(_) => {
            return Err(ApiError::invalid(
                "api_key",
                "is 32 to 128 printable ASCII characters from a random source",
            ));
        }
        None => hex::encode(random()?),
    };
    let hash = hex::encode(sha256(&api_key));
    let id = new.id.unwrap_or_else(|| AgentId::generate(cx.now()));

    let mut tx = cx.begin().await?;
    let now = tx.now();
    // Who registers an agent has seen its key. Holders of the shared key and the bootstrap token are the agents themselves.
    let registrar = match cx.principal.way {
        Way::Shared | Way::Bootstrap => None,
        _ => tx.person(),
    };
    // What a party states that may configure is set by an operator; what a new agent states, by the agent itself.
    let (set, peer) = match cx.principal.may(Permission::Configure) {
        true => {
            let address = new.ip_address.parse::<IpAddr>().is_ok();
            let given = [
                ("os", !new.os.is_empty()),
                ("architecture", !new.architecture.is_empty()),
                ("ip_address", address),
            ];
            let given = given.into_iter().filter(|(_, given)| *given).map(|(fact, _)| fact);
            (given.collect::<Vec<_>>(), None)
        }
        false => (vec![], cx.client.map(|client| client.to_canonical().to_string())),
    };
    must_be_its_own(&cx, &mut tx, &id, &api_key).await?;
    let inserted = sqlx::query(
        "INSERT INTO agents (id, name, hostname, os, architecture, ip_address, version, capabilities, api_key_hash,
                             last_heartbeat_at, registered_at, updated_at, registered_by, operator_set, peer_address)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10, $10, $11, $12, $13::text::inet)
         ON CONFLICT (id) DO NOTHING",
    )
    .bind(&id)
    .bind(&new.name)
    .bind(&new.hostname)
    .bind(&new.os)
    .bind(&new.architecture)
    .bind(&new.ip_address)
    .bind(&new.version)
    .bind(plain_capabilities(new.capabilities))
    .bind(&hash)
    .bind(now)
    .bind(registrar)
    .bind(set)
    .bind(peer)
    .execute(&mut *tx)
    .await?;
    let agent = listing::get(&mut tx, now, id.as_str()).await?;
    if inserted.rows_affected() == 0 {
        // The answer to the first attempt was lost, or somebody else wants this id.
        let known: String = sqlx::query_scalar("SELECT api_key_hash FROM agents WHERE id = $1")
            .bind(&id)
            .fetch_one(&mut *tx)
            .await?;
        return match known == hash {
            true => Ok(RegisteredAgent { agent, api_key }),
            false => Err(ApiError::new(
                Kind::Taken,
                format!("an agent {id} is registered with another key"),
            )),
        };
    }
    let event = tx
        .event("agent_registered", "agent", &id)
        .with("name", &new.name)
        .with("hostname", &new.hostname);
    tx.note(event);
    tx.commit().await?;
    Ok(RegisteredAgent { agent, api_key })
}

/// Refuses a key with which another agent or a person comes in: who calls would be a matter of chance.
async fn must_be_its_own(cx: &Cx, tx: &mut Tx, id: &AgentId, api_key: &str) -> Result<(), ApiError> {
    let digest = sha256(api_key);
    sqlx::query("SELECT pg_advisory_xact_lock(hashtext('agents.api_key_hash'))")
        .execute(&mut **tx)
        .await?;
    let taken: Option<i32> = sqlx::query_scalar(
        "SELECT 1 FROM agents WHERE api_key_hash = $1 AND id <> $2
          UNION ALL SELECT 1 FROM api_key_secrets WHERE hash = $1
          LIMIT 1",
    )
    .bind(hex::encode(digest))
    .bind(id)
    .fetch_optional(&mut **tx)
    .await?;
    match taken.is_some() || cx.app.gate.is_shared(&digest) {
        true => {
            let detail = "is the key of another party; give each agent a key of its own, or none, and it gets one";
            Err(ApiError::invalid("api_key", detail))
        }
        false => Ok(()),
    }
}

async fn update(cx: Cx, rq: Request<UpdateAgent>) -> Result<Agent, ApiError> {
    let (id, change) = (rq.path.id, rq.body);
    change
        .name
        .as_deref()
        .map_or(Ok(()), |name| check_name("name", name, 128))?;
    let tags = change.tags.map(check_tags).transpose()?;
    for (fact, value) in [
        ("os", &change.os),
        ("architecture", &change.architecture),
        ("version", &change.version),
        ("ip_address", &change.ip_address),
    ] {
        let is_address = |text: &str| text.is_empty() || text.parse::<IpAddr>().is_ok();
        match value.as_deref() {
            Some(text) if !plain(text, 128) => {
                let detail = "has at most 128 characters, without control characters";
                return Err(ApiError::invalid(fact, detail));
            }
            Some(text) if fact == "ip_address" && !is_address(text) => {
                return Err(ApiError::invalid(fact, "is an IPv4 or IPv6 address, as 192.0.2.7"));
            }
            _ => {}
        }
    }
    let mut tx = cx.begin().await?;
    let now = tx.now();
    sqlx::query("SELECT 1 FROM agents WHERE id = $1 FOR UPDATE")
        .bind(&id)
        .execute(&mut *tx)
        .await?;
    let before: Agent = listing::get(&mut tx, now, id.as_str()).await?;
    sqlx::query(
        "UPDATE agents
            SET name = coalesce($2, name), tags = coalesce($3, tags), updated_at = $4, os = coalesce(nullif($5, ''), os),
                architecture = coalesce(nullif($6, ''), architecture), version = coalesce(nullif($7, ''), version),
                ip_address = coalesce(nullif($8, ''), ip_address),
                operator_set = ARRAY(SELECT f.name FROM (VALUES ('os', $5), ('architecture', $6), ('version', $7),
                                                                ('ip_address', $8)) AS f (name, value)
                                      WHERE CASE WHEN f.value IS NULL THEN f.name = ANY (operator_set)
                                                 ELSE f.value <> '' END)
          WHERE id = $1",
    )
    .bind(&id)
    .bind(&change.name)
    .bind(tags.map(Json))
    .bind(now)
    .bind(&change.os)
    .bind(&change.architecture)
    .bind(&change.version)
    .bind(&change.ip_address)
    .execute(&mut *tx)
    .await?;
    let updated: Agent = listing::get(&mut tx, now, id.as_str()).await?;
    listing::commit_change(tx, "update_agent", "agent", id.as_str(), (&before, &updated)).await?;
    Ok(updated)
}

async fn delete(cx: Cx, rq: Request<DeleteAgent>) -> Result<NoContent, ApiError> {
    let id = rq.path.id;
    let mut tx = cx.begin().await?;
    // From here on nobody gives it a job.
    sqlx::query("SELECT 1 FROM agents WHERE id = $1 FOR UPDATE")
        .bind(&id)
        .execute(&mut *tx)
        .await?;
    let open: Option<JobId> = sqlx::query_scalar(
        "SELECT id FROM jobs WHERE agent_id = $1 AND status NOT IN ('Completed', 'Failed', 'Cancelled') LIMIT 1",
    )
    .bind(&id)
    .fetch_optional(&mut *tx)
    .await?;
    if let Some(job) = open {
        let detail = format!("job {job} of agent {id} is open; cancel it first, or let it finish");
        return Err(ApiError::new(Kind::Referenced, detail));
    }
    let done = sqlx::query("DELETE FROM agents WHERE id = $1")
        .bind(&id)
        .execute(&mut *tx)
        .await;
    listing::deleted(done, "agent", id.as_str())?;
    tx.wake(Channel::Jobs);
    listing::commit(tx, "delete_agent", "agent", id.as_str()).await?;
    Ok(NoContent)
}

async fn heartbeat(cx: Cx, rq: Request<AgentHeartbeat>) -> Result<Heard, ApiError> {
    let Heartbeat {
        version,
        hostname,
        os,
        architecture,
        ip_address,
        capabilities,
    } = rq.body;
    // An odd text must not make a living agent look dead: it is passed over, and what was known stays.
    let short = |text: String| if plain(&text, 128) { text } else { String::new() };
    let word = |text: String| {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-._+~:".contains(c);
        if text.chars().all(fits) {
            short(text)
        } else {
            String::new()
        }
    };
    let address = ip_address.trim().parse::<IpAddr>();
    let life = SignOfLife {
        version: word(version),
        hostname: if plain(&hostname, 255) { hostname } else { String::new() },
        os: short(os),
        architecture: word(architecture),
        ip_address: address.map_or_else(|_| String::new(), |address| address.to_string()),
        peer: cx.client.map(|client| client.to_canonical()),
        capabilities: plain_capabilities(capabilities),
    };
    certctl_store::agents::heartbeat(cx.pool(), &rq.path.id, &life, cx.now()).await?;
    const MOST: i64 = 100;
    let placeholders = sqlx::query_as(
        "SELECT t.id, t.type, t.config FROM targets t
          WHERE t.agent_id = $1 AND t.enabled AND t.config @> '{\"placeholder\": true}'
            AND NOT EXISTS (SELECT 1 FROM jobs j
                             WHERE j.target_id = t.id AND j.type = 'Deployment' AND j.status = 'Completed')
          ORDER BY t.id LIMIT $2",
    )
    .bind(&rq.path.id)
    .bind(MOST)
    .fetch_all(cx.pool())
    .await?;
    Ok(Heard {
        status: "heartbeat_recorded".to_owned(),
        placeholders,
    })
}

async fn work(cx: Cx, rq: Request<AgentGetWork>) -> Result<Work, ApiError> {
    let wait = rq.query.wait.map_or(Duration::ZERO, |wait| wait.duration);
    let agent = rq.path.id;
    let deadline = tokio::time::Instant::now() + wait.min(LONGEST_WAIT);
    // Subscribed before looking: what appears in between wakes us.
    let mut wakes = cx.app.wakes.subscribe(Channel::Jobs);
    loop {
        let jobs = open_work(&cx, &agent).await?;
        let now = tokio::time::Instant::now();
        if !jobs.is_empty() || now >= deadline || cx.app.stop.is_cancelled() {
            return Ok(Work {
                count: jobs.len() as i64,
                jobs,
            });
        }
        tokio::select! {
            _ = wakes.changed() => {}
            () = tokio::time::sleep_until(deadline.min(now + LOOK_AGAIN)) => {}
            () = cx.app.stop.cancelled() => {}
        }
        // The key may have been revoked meanwhile.
        auth::still_admits(&cx.app, &cx.principal).await?;
    }
}

#[derive(sqlx::FromRow)]
struct WorkRow {
    id: JobId,
    #[sqlx(rename = "type")]
    kind: JobKind,
    status: JobStatus,
    certificate_id: CertificateId,
    common_name: San,
    sans: Vec<San>,
    profile_id: Option<certctl_model::id::ProfileId>,
    target_id: Option<TargetId>,
    target_type: Option<TargetType>,
    target_config: Option<Value>,
    version_id: Option<VersionId>,
    certificate_name: String,
}

/// What this agent can do now: requests first; no deployment of a certificate that is being issued, since agents that
/// keep one key for each certificate hold the next one's key by then. Where a version was chosen for a target no other
/// goes there, else none that is older than what is there.
async fn open_work(cx: &Cx, agent: &AgentId) -> Result<Vec<WorkItem>, ApiError> {
    let known: Option<i32> = sqlx::query_scalar("SELECT 1 FROM agents WHERE id = $1")
        .bind(agent)
        .fetch_optional(cx.pool())
        .await?;
    known.ok_or_else(|| ApiError::missing("agent", agent))?;
    let rows: Vec<WorkRow> = sqlx::query_as(
        "SELECT j.id, j.type, j.status, j.certificate_id, c.common_name, c.sans, c.profile_id, j.target_id,
                t.type AS target_type, t.config AS target_config, j.version_id,
                c.name AS certificate_name
           FROM jobs j
           JOIN certificates c ON c.id = j.certificate_id
           LEFT JOIN targets t ON t.id = j.target_id
           LEFT JOIN certificate_targets m ON m.certificate_id = j.certificate_id AND m.target_id = j.target_id
          WHERE j.agent_id = $1
            AND (j.status = 'AwaitingCSR'
                 OR (j.type = 'Deployment' AND j.status IN ('Pending', 'Running') AND t.enabled AND j.run_at <= $2
                     AND t.agent_id = j.agent_id
                     AND CASE WHEN m.chosen_version_id IS NOT NULL THEN m.chosen_version_id = j.version_id
                         ELSE NOT EXISTS (SELECT 1 FROM jobs n
                                            JOIN certificate_versions nv ON nv.id = n.version_id
                                            JOIN certificate_versions jv ON jv.id = j.version_id
                                           WHERE n.certificate_id = j.certificate_id AND n.target_id = j.target_id
                                             AND n.type = 'Deployment' AND n.status = 'Completed'
                                             AND nv.version > jv.version) END
                     AND NOT EXISTS (SELECT 1 FROM jobs o
                                      WHERE o.certificate_id = j.certificate_id AND o.agent_id = j.agent_id
                                        AND o.type IN ('Issuance', 'Renewal')
                                        AND o.status IN ('AwaitingCSR', 'AwaitingApproval', 'Running'))))
          ORDER BY j.status = 'AwaitingCSR' DESC, j.created_at
          LIMIT 100",
    )
    .bind(agent)
    .bind(cx.now())
    .fetch_all(cx.pool())
    .await?;
    let mut items = Vec::with_capacity(rows.len());
    for row in rows {
        let csr = row.status == JobStatus::AwaitingCsr;
        let key = match (csr, &row.profile_id) {
            (true, Some(profile)) => {
                let mut db = cx.pool().acquire().await?;
                profiles::rules(&mut db, profile)
                    .await?
                    .unwrap_or_default()
                    .preferred_key()
            }
            _ => certctl_model::key::KeyFacts::P256,
        };
        let target_config = match (row.target_type, row.target_config) {
            (Some(kind), Some(config)) => Some(match TargetConfig::read(kind, &config) {
                Ok(config) => {
                    let config = config.for_certificate(row.certificate_id.as_str(), &row.certificate_name);
                    config.to_value()
                }
                Err(_) => config,
            }),
            (_, config) => config,
        };
        items.push(WorkItem {
            id: row.id,
            kind: row.kind,
            certificate_id: row.certificate_id,
            status: row.status,
            sans: csr.then(|| all_names(&row.common_name, &row.sans)),
            common_name: csr.then_some(row.common_name),
            key_algorithm: csr.then_some(key.algorithm),
            key_size: csr.then_some(key.bits),
            target_id: row.target_id,
            target_type: row.target_type,
            target_config,
            version_id: row.version_id,
        });
    }
    Ok(items)
}

/// The job a request is for: the one it names, or the agent's oldest that awaits one for the certificate.
async fn awaited(tx: &mut Tx, agent: &AgentId, rq: &CsrSubmission) -> Result<JobId, ApiError> {
    if let Some(job) = &rq.job_id {
        return Ok(job.clone());
    }
    let certificate = rq.certificate_id.as_ref().ok_or_else(|| {
        ApiError::invalid(
            "certificate_id",
            "is needed, or job_id: a request is signed for a job that awaits it",
        )
    })?;
    let job: Option<JobId> = sqlx::query_scalar(
        "SELECT id FROM jobs WHERE certificate_id = $1 AND agent_id = $2 AND status = 'AwaitingCSR'
          ORDER BY created_at LIMIT 1",
    )
    .bind(certificate)
    .bind(agent)
    .fetch_optional(&mut **tx)
    .await?;
    job.ok_or_else(|| {
        ApiError::new(
            Kind::WrongState,
            format!("no job of agent {agent} awaits a request for certificate {certificate}"),
        )
    })
}

fn of_agent(facts: &JobFacts, agent: &AgentId) -> Result<(), ApiError> {
    match facts.agent.as_ref() == Some(agent) {
        true => Ok(()),
        // Another agent's jobs do not exist for this one.
        false => Err(ApiError::missing("job", &facts.id)),
    }
}

/// The words that clients know; signing follows.
fn taken(rq: &CsrSubmission) -> Outcome {
    match rq.certificate_id {
        Some(_) => Outcome::of("csr_signed"),
        None => Outcome::of("csr_accepted"),
    }
}

async fn submit_csr(cx: Cx, rq: Request<AgentSubmitCsr>) -> Result<Outcome, ApiError> {
    let agent = rq.path.agent_id;
    let request = read_request(&rq.body.csr_pem)?;
    let mut tx = cx.begin().await?;
    let id = awaited(&mut tx, &agent, &rq.body).await?;
    let (facts, status) = jobs::lock_any(&mut tx, &id).await?;
    of_agent(&facts, &agent)?;
    if status != JobStatus::AwaitingCsr {
        let kept: Option<Vec<u8>> = sqlx::query_scalar("SELECT csr_der FROM jobs WHERE id = $1")
            .bind(&id)
            .fetch_one(&mut *tx)
            .await?;
        // The answer to the first submission was lost.
        if kept.as_deref() == Some(request.der()) && !matches!(status, JobStatus::Failed | JobStatus::Cancelled) {
            return Ok(taken(&rq.body));
        }
        let detail = format!("job {id} is {status}; it does not await a request");
        return Err(ApiError::new(Kind::WrongState, detail));
    }
    let certificate = certificates::lock(&mut tx, &facts.certificate).await?;
    certificate.must_be_live()?;
    admit_request(&mut tx, &facts.certificate, &request).await?;
    jobs::keep_request(&mut tx, &id, request.der()).await?;
    approvals::submitted(&mut tx, &id).await?;
    let by = tx.actor();
    let needed = approvals::standing(&mut tx, &id, None).await?.needed;
    if needed > 0 && matches!(cx.principal.way, Way::Shared) {
        let detail = format!(
            "certificate {} needs approval, and the shared key does not say which agent made the request; \
             agent {agent} needs a key of its own",
            facts.certificate
        );
        return Err(ApiError::new(Kind::Forbidden, detail));
    }
    let job = Job::<AwaitingCsr>::known(facts);
    match needed {
        0 => {
            jobs::apply(&mut tx, job.csr_accepted(&by)).await?;
        }
        needed => {
            outbox::announce(&mut tx, &approvals::requested(&certificate, &id, needed)).await?;
            jobs::apply(&mut tx, job.csr_needs_approval(&by)).await?;
        }
    }
    tx.commit().await?;
    hold("api.csr_accepted").await;
    Ok(taken(&rq.body))
}

async fn pickup(cx: Cx, rq: Request<AgentPickupCertificate>) -> Result<Pickup, ApiError> {
    let (agent, certificate) = (rq.path.agent_id, rq.path.cert_id);
    let found = newest_of_agent(&cx, &agent, &certificate, rq.query.version_id.as_ref()).await?;
    let (leaf, chain, _) = found.ok_or_else(|| {
        ApiError::new(
            Kind::NotFound,
            format!("agent {agent} holds the key of no version of certificate {certificate}"),
        )
    })?;
    Ok(Pickup {
        certificate_pem: format!("{leaf}\n{chain}"),
    })
}

/// The longest error text of a report that is kept, in characters.
const LONGEST_ERROR: usize = 4096;

async fn report(cx: Cx, rq: Request<AgentReportJobStatus>) -> Result<Outcome, ApiError> {
    let (agent, id) = (rq.path.agent_id, rq.path.job_id);
    let status: JobStatus = rq
        .body
        .status
        .parse()
        .map_err(|e: String| ApiError::invalid("status", e))?;
    let plain = |text: String| -> String {
        let text = text.chars().filter(|c| !certctl_model::text::is_hidden_in_lines(*c));
        text.take(LONGEST_ERROR).collect()
    };
    let error = rq.body.error.map(plain).filter(|error| !error.is_empty());
    let output = rq.body.output.map(plain);
    let mut tx = cx.begin().await?;
    let (facts, is) = jobs::lock_any(&mut tx, &id).await?;
    of_agent(&facts, &agent)?;
    let by = match &cx.principal.way {
        // The shared key speaks for the agent in the path.
        Way::Shared => certctl_model::audit::Actor::agent(&agent),
        _ => tx.actor(),
    };
    let deploys = facts.kind == JobKind::Deployment;
    let error = match error {
        Some(error) if deploys => Some(jobs::keep_report(&mut tx, &id, error, output.as_deref()).await?),
        error => error,
    };
    if is == status {
        if let (JobStatus::Running, Some(error)) = (status, &error) {
            match jobs::note_error(&mut tx, &id, error).await? {
                true => tx.commit().await?,
                false => {
                    drop(tx);
                    jobs::is_still_tried(cx.pool(), &id, cx.now()).await?;
                }
            }
        }
        // Else it was said before; the answer was lost.
        return Ok(Outcome::of("updated"));
    }
    let reason = || error.clone().unwrap_or_else(|| "the agent gave no reason".to_owned());
    match (status, is) {
        (JobStatus::Running, JobStatus::Pending) if deploys => {
            jobs::apply(&mut tx, Job::<Pending>::known(facts).start(&by)).await?;
        }
        // The report that it began was lost.
        (JobStatus::Completed, JobStatus::Pending) if deploys => {
            certificates::note_deployed(&mut tx, &facts).await?;
            outdo(&mut tx, &by, &facts).await?;
            let started = jobs::apply(&mut tx, Job::<Pending>::known(facts).start(&by)).await?;
            jobs::apply(&mut tx, started.complete(&by)).await?;
        }
        (JobStatus::Completed, JobStatus::Running) if deploys => {
            certificates::note_deployed(&mut tx, &facts).await?;
            outdo(&mut tx, &by, &facts).await?;
            jobs::apply(&mut tx, Job::<Running>::known(facts).complete(&by)).await?;
        }
        (JobStatus::Failed, JobStatus::Running | JobStatus::Pending) if deploys => {
            if !certificates::note_not_deployed(&mut tx, &by, &facts, is, &reason()).await? {
                return Ok(Outcome::of("updated"));
            }
        }
        (JobStatus::Failed, JobStatus::AwaitingCsr) => {
            certificates::note_failure(&mut tx, &facts, &reason()).await?;
            jobs::apply(&mut tx, Job::<AwaitingCsr>::known(facts).fail(&by, reason())).await?;
        }
        _ => {
            let detail = format!("{} job {id} is {is}; an agent cannot make it {status}", facts.kind);
            return Err(ApiError::new(Kind::WrongState, detail));
        }
    }
    tx.commit().await?;
    match status {
        JobStatus::Running => hold("api.deployment_started").await,
        _ => hold("api.deployment_reported").await,
    }
    Ok(Outcome::of("updated"))
}

/// Deployments to the same target of versions that are older, or were not the chosen one, and that were begun and left,
/// or never begun: nothing more comes of them.
async fn outdo(tx: &mut Tx, by: &certctl_model::audit::Actor, job: &JobFacts) -> Result<(), ApiError> {
    let older: Vec<JobId> = sqlx::query_scalar(
        "SELECT j.id FROM jobs j
           JOIN certificate_versions v ON v.id = j.version_id
           JOIN certificate_versions done ON done.id = $3
          WHERE j.certificate_id = $1 AND j.target_id = $2 AND j.type = 'Deployment'
            AND j.status IN ('Pending', 'Running') AND v.id <> done.id
            AND (v.version < done.version
                 OR EXISTS (SELECT 1 FROM certificate_targets m
                             WHERE m.certificate_id = $1 AND m.target_id = $2 AND m.chosen_version_id = done.id))
          ORDER BY j.id",
    )
    .bind(&job.certificate)
    .bind(&job.target)
    .bind(&job.version)
    .fetch_all(&mut **tx)
    .await?;
    for id in &older {
        let why = "another version was put on this target".to_owned();
        match jobs::lock_any(tx, id).await? {
            (facts, JobStatus::Running) => {
                jobs::apply(tx, Job::<Running>::known(facts).fail(by, why)).await?;
            }
            _ => jobs::call_off(tx, id, &why).await?,
        }
    }
    Ok(())
}

/// Texts an agent says of itself: short, without control characters.
fn plain(text: &str, most: usize) -> bool {
    text.len() <= most && !text.contains(certctl_model::text::is_hidden)
}

/// Keeps target types an agent names that could be one.
fn plain_capabilities(names: Vec<String>) -> Vec<String> {
    names
        .into_iter()
        .filter(|name| !name.is_empty() && plain(name, 64))
        .take(32)
        .collect()
}
