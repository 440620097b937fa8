//! Certificates held against policy rules: what is broken is recorded, what holds again is closed.
//!
//! | moment | asked by |
//! |---|---|
//! | creation, change | the API, before it commits |
//! | issuance | whoever inserts the job, and the worker when it begins |
//! | deployment | whoever inserts the job |
//! | sweep | the scheduler, for all certificates |

use std::collections::{BTreeMap, HashMap, HashSet};

use certctl_model::{
    group::Versions,
    id::{
        AgentGroupId, AgentId, CertificateId, IssuerId, OwnerId, PolicyId, ProfileId, RenewalPolicyId, TeamId,
        ViolationId,
    },
    name::San,
    notice::NoticeKind,
    policy::{CertificateFacts, Moment, PolicyType, Rule, Severity},
    time::Time,
};
use sqlx::{PgConnection, types::Json};

use crate::{
    Tx, column,
    error::*,
    outbox::{self, News},
};

/// A rule, and where it holds.
#[derive(Clone, Debug)]
pub struct InForce {
    /// Its id.
    pub id: PolicyId,
    /// Its name.
    pub name: String,
    /// How bad it is to break it.
    pub severity: Severity,
    /// What it says.
    pub rule: Rule,
    /// Only certificates with an agent in one of these; all when there is none.
    pub groups: Vec<AgentGroupId>,
    /// Only certificates under one of these; all when there is none.
    pub policies: Vec<RenewalPolicyId>,
}

/// That a certificate breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Which rule.
    pub rule: PolicyId,
    /// Its name.
    pub name: String,
    /// What it is about.
    pub kind: PolicyType,
    /// How bad that is.
    pub severity: Severity,
    /// How.
    pub message: String,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            name,
            severity,
            message,
            ..
        } = self;
        write!(f, "policy rule {name} ({severity}): {message}")
    }
}

/// The rules that are enabled.
///
/// # Errors
/// When the database cannot be asked.
pub async fn in_force(db: &mut PgConnection) -> Result<Vec<InForce>> {
    #[derive(sqlx::FromRow)]
    struct Row {
        id: PolicyId,
        name: String,
        #[sqlx(rename = "type")]
        kind: PolicyType,
        severity: Severity,
        config: serde_json::Value,
        groups: Vec<AgentGroupId>,
        policies: Vec<RenewalPolicyId>,
    }
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT r.id, r.name, r.type, r.severity, r.config,
                coalesce(array_agg(s.agent_group_id) FILTER (WHERE s.agent_group_id IS NOT NULL), '{}') AS groups,
                coalesce(array_agg(s.renewal_policy_id) FILTER (WHERE s.renewal_policy_id IS NOT NULL), '{}') AS policies
           FROM policy_rules r LEFT JOIN policy_rule_scopes s ON s.rule_id = r.id
          WHERE r.enabled GROUP BY r.id ORDER BY r.id",
    )
    .fetch_all(db)
    .await?;
    let read = |row: Row| {
        let rule = Rule::read(row.kind, &row.config);
        Ok(InForce {
            rule: rule.map_err(|why| Error::Conflict(format!("policy rule {} cannot be read: {why}", row.id)))?,
            id: row.id,
            name: row.name,
            severity: row.severity,
            groups: row.groups,
            policies: row.policies,
        })
    };
    rows.into_iter().map(read).collect()
}

/// A certificate, as rules see it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Which.
    pub id: CertificateId,
    /// What rules are asked about.
    pub facts: CertificateFacts,
    common_name: String,
    policy: RenewalPolicyId,
    agents: Vec<AgentId>,
}

#[derive(sqlx::FromRow)]
struct SeenRow {
    id: CertificateId,
    common_name: String,
    sans: Vec<String>,
    issuer_id: IssuerId,
    owner_id: OwnerId,
    team_id: TeamId,
    environment: String,
    profile_id: Option<ProfileId>,
    tags: Json<BTreeMap<String, String>>,
    not_before: Option<Time>,
    not_after: Option<Time>,
    renewal_policy_id: RenewalPolicyId,
    agents: Vec<AgentId>,
}

/// What stands for nobody.
const UNASSIGNED: &str = "unassigned";

impl From<SeenRow> for Seen {
    fn from(row: SeenRow) -> Self {
        let claimed = |id: &str| id.rsplit('-').next() != Some(UNASSIGNED);
        // Every name was read once before it was stored.
        let names = std::iter::once(&row.common_name).chain(&row.sans);
        Self {
            facts: CertificateFacts {
                names: names.filter_map(|name| name.parse::<San>().ok()).collect(),
                issuer: row.issuer_id,
                owner: Some(row.owner_id).filter(|id| claimed(id.as_str())),
                team: Some(row.team_id).filter(|id| claimed(id.as_str())),
                environment: row.environment,
                profile: row.profile_id,
                tags: row.tags.0,
                validity: row.not_before.zip(row.not_after),
            },
            id: row.id,
            common_name: row.common_name,
            policy: row.renewal_policy_id,
            agents: row.agents,
        }
    }
}

macro_rules! seen {
    ($which:literal) => {
        concat!(
            "SELECT c.id, c.common_name, c.sans, c.issuer_id, c.owner_id, c.team_id, c.environment, c.profile_id, c.tags,
                    c.not_before, c.not_after, c.renewal_policy_id,
                    ARRAY(SELECT DISTINCT t.agent_id FROM certificate_targets m JOIN targets t ON t.id = m.target_id
                           WHERE m.certificate_id = c.id) AS agents
               FROM certificates c WHERE c.archived_at IS NULL AND c.revoked_at IS NULL AND ",
            $which
        )
    };
}

/// Up to `limit` certificates that live, in the order of their ids, `behind` one of them.
///
/// # Errors
/// When the database cannot be asked.
pub async fn page(db: &mut PgConnection, behind: &str, limit: i64) -> Result<Vec<Seen>> {
    let rows: Vec<SeenRow> = sqlx::query_as(seen!("c.id > $1 ORDER BY c.id LIMIT $2"))
        .bind(behind)
        .bind(limit)
        .fetch_all(db)
        .await?;
    Ok(rows.into_iter().map(Seen::from).collect())
}

/// Up to `limit` certificates, `behind` one of them in the order of their ids: all of them, because violations of those that
/// were revoked or archived are closed.
///
/// # Errors
/// When the database cannot be asked.
pub async fn ids_behind(db: &mut PgConnection, behind: &str, limit: i64) -> Result<Vec<CertificateId>> {
    Ok(
        sqlx::query_scalar("SELECT id FROM certificates WHERE id > $1 ORDER BY id LIMIT $2")
            .bind(behind)
            .bind(limit)
            .fetch_all(db)
            .await?,
    )
}

/// Rules, and who is in the groups that they name.
pub struct Judge {
    rules: Vec<InForce>,
    members: HashSet<(AgentGroupId, AgentId)>,
}

impl Judge {
    /// Prepares to judge these certificates by these rules.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn of(db: &mut PgConnection, rules: Vec<InForce>, seen: &[Seen]) -> Result<Self> {
        let groups: HashSet<&AgentGroupId> = rules.iter().flat_map(|rule| &rule.groups).collect();
        let agents: HashSet<&AgentId> = seen.iter().flat_map(|one| &one.agents).collect();
        let members = match groups.is_empty() || agents.is_empty() {
            true => HashSet::new(),
            false => members(db, groups, agents, Facts::Confirmed).await?,
        };
        Ok(Self { rules, members })
    }

    /// The rules that a certificate breaks.
    pub fn broken<'a>(&'a self, seen: &'a Seen, now: Time) -> impl Iterator<Item = Broken> + 'a {
        let within = |rule: &&InForce| {
            (rule.policies.is_empty() || rule.policies.contains(&seen.policy))
                && (rule.groups.is_empty()
                    || rule.groups.iter().any(|group| {
                        let agents = &mut seen.agents.iter();
                        agents.any(|agent| self.members.contains(&(group.clone(), agent.clone())))
                    }))
        };
        self.rules.iter().filter(within).filter_map(move |rule| {
            Some(Broken {
                message: rule.rule.broken_by(&seen.facts, now)?,
                rule: rule.id.clone(),
                name: rule.name.clone(),
                kind: rule.rule.kind(),
                severity: rule.severity,
            })
        })
    }
}

/// Which facts of agents decide whether they meet the criteria of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Facts {
    /// Those that are known, the agents' own statements among them.
    Stated,
    /// Those that an operator set, and the address an agent connects from. A criterion on any other fact is met: what an
    /// agent states of itself takes no certificate out of the scope of a rule.
    Confirmed,
}

/// Which of these agents are in which of these groups: named as members, or meeting every criterion of the group without
/// being named as none.
pub(crate) async fn members(
    db: &mut PgConnection,
    groups: HashSet<&AgentGroupId>,
    agents: HashSet<&AgentId>,
    facts: Facts,
) -> Result<HashSet<(AgentGroupId, AgentId)>> {
    #[derive(sqlx::FromRow)]
    struct Candidate {
        group_id: AgentGroupId,
        agent_id: AgentId,
        is_named: bool,
        range: String,
        version: String,
        decides: bool,
    }
    let candidates: Vec<Candidate> = sqlx::query_as(
        "SELECT g.id AS group_id, a.id AS agent_id, m.membership_type IS NOT NULL AS is_named, g.match_version AS range,
                a.version, NOT $3 OR 'version' = ANY (a.operator_set) AS decides
           FROM agent_groups g CROSS JOIN agents a
           LEFT JOIN agent_group_members m ON m.group_id = g.id AND m.agent_id = a.id
          WHERE g.id = ANY ($1) AND a.id = ANY ($2) AND m.membership_type IS DISTINCT FROM 'exclude'
            AND (m.membership_type = 'include'
                 OR g.enabled AND concat(g.match_os, g.match_architecture, g.match_ip_cidr, g.match_version) <> ''
                    AND (g.match_os = '' OR lower(g.match_os) = lower(a.os)
                         OR $3 AND NOT 'os' = ANY (a.operator_set))
                    AND (g.match_architecture = '' OR lower(g.match_architecture) = lower(a.architecture)
                         OR $3 AND NOT 'architecture' = ANY (a.operator_set))
                    AND CASE g.match_ip_cidr WHEN '' THEN true
                             ELSE coalesce(a.address <<= g.match_ip_cidr::inet, $3) END)",
    )
    .bind(groups.into_iter().collect::<Vec<_>>())
    .bind(agents.into_iter().collect::<Vec<_>>())
    .bind(facts == Facts::Confirmed)
    .fetch_all(db)
    .await?;
    let fits = |one: &Candidate| {
        let free = one.is_named || one.range.is_empty() || !one.decides;
        free || Versions::read(&one.range).is_ok_and(|range| range.admit(&one.version))
    };
    let fitting = candidates.into_iter().filter(fits);
    Ok(fitting.map(|one| (one.group_id, one.agent_id)).collect())
}

/// Holds these certificates against the rules, and records what is broken and what holds again. Returns, of each, what
/// keeps it from what happens at this moment. Whoever goes on regardless has to leave those out.
///
/// # Errors
/// When the database cannot be asked.
pub async fn judge(
    tx: &mut Tx,
    certificates: &[&CertificateId],
    moment: Moment,
) -> Result<HashMap<CertificateId, Vec<Broken>>> {
    let rules = in_force(tx).await?;
    let open = open_violations(tx, certificates).await?;
    if certificates.is_empty() || (rules.is_empty() && open.is_empty()) {
        return Ok(HashMap::new());
    }
    let seen: Vec<SeenRow> = sqlx::query_as(seen!("c.id = ANY ($1) ORDER BY c.id"))
        .bind(certificates)
        .fetch_all(&mut **tx)
        .await?;
    let seen: Vec<Seen> = seen.into_iter().map(Seen::from).collect();
    let judge = Judge::of(tx, rules, &seen).await?;
    let now = tx.now();
    let judged: Vec<(&Seen, Vec<Broken>)> = seen.iter().map(|one| (one, judge.broken(one, now).collect())).collect();
    record(tx, open, &judged).await?;
    let blocking = judged.into_iter().filter_map(|(one, broken)| {
        let blocks = |one: &Broken| moment.is_blocked_by(one.kind, one.severity);
        let blocking: Vec<Broken> = broken.into_iter().filter(blocks).collect();
        (!blocking.is_empty()).then(|| (one.id.clone(), blocking))
    });
    Ok(blocking.collect())
}

#[derive(sqlx::FromRow)]
struct Open {
    id: ViolationId,
    rule_id: PolicyId,
    certificate_id: CertificateId,
    message: String,
    severity: Severity,
}

async fn open_violations(tx: &mut Tx, certificates: &[&CertificateId]) -> Result<Vec<Open>> {
    Ok(sqlx::query_as(
        "SELECT id, rule_id, certificate_id, message, severity FROM policy_violations
          WHERE certificate_id = ANY ($1) AND closed_at IS NULL",
    )
    .bind(certificates)
    .fetch_all(&mut **tx)
    .await?)
}

/// Opens what is new, corrects what is said differently, closes what is over.
async fn record(tx: &mut Tx, open: Vec<Open>, judged: &[(&Seen, Vec<Broken>)]) -> Result<()> {
    let mut open: HashMap<(CertificateId, PolicyId), Open> = open
        .into_iter()
        .map(|one| ((one.certificate_id.clone(), one.rule_id.clone()), one))
        .collect();
    let (mut new, mut changed) = (Vec::new(), Vec::new());
    for (seen, broken) in judged {
        for one in broken {
            match open.remove(&(seen.id.clone(), one.rule.clone())) {
                None => new.push((ViolationId::generate(tx.now()), *seen, one)),
                Some(was) if was.message != one.message || was.severity != one.severity => changed.push((was.id, one)),
                Some(_) => {}
            }
        }
    }
    let over: Vec<Open> = open.into_values().collect();
    insert(tx, &new).await?;
    if !changed.is_empty() {
        sqlx::query(
            "UPDATE policy_violations v SET message = n.message, severity = n.severity
               FROM unnest($1::text[], $2::text[], $3::text[]) AS n (id, message, severity) WHERE v.id = n.id",
        )
        .bind(column(&changed, |(id, _)| id))
        .bind(column(&changed, |(_, broken)| broken.message.as_str()))
        .bind(column(&changed, |(_, broken)| broken.severity))
        .execute(&mut **tx)
        .await?;
        for (id, broken) in &changed {
            let event = tx
                .event("policy_violation_changed", "policy", &broken.rule)
                .with("violation_id", id)
                .with("message", &broken.message);
            tx.note(event);
        }
    }
    if !over.is_empty() {
        sqlx::query("UPDATE policy_violations SET closed_at = $2 WHERE id = ANY ($1)")
            .bind(column(&over, |one| &one.id))
            .bind(tx.now())
            .execute(&mut **tx)
            .await?;
        for one in &over {
            let event = tx
                .event("policy_violation_closed", "certificate", &one.certificate_id)
                .with("rule_id", &one.rule_id);
            tx.note(event);
        }
    }
    Ok(())
}

async fn insert(tx: &mut Tx, new: &[(ViolationId, &Seen, &Broken)]) -> Result<()> {
    if new.is_empty() {
        return Ok(());
    }
    // Another may have found it at the same time.
    let opened: Vec<ViolationId> = sqlx::query_scalar(
        "INSERT INTO policy_violations (id, rule_id, certificate_id, message, severity, created_at)
         SELECT n.id, n.rule_id, n.certificate_id, n.message, n.severity, $6
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
                AS n (id, rule_id, certificate_id, message, severity)
         ON CONFLICT (rule_id, certificate_id) WHERE closed_at IS NULL DO NOTHING
         RETURNING id",
    )
    .bind(column(new, |(id, ..)| id))
    .bind(column(new, |(.., broken)| &broken.rule))
    .bind(column(new, |(_, seen, _)| &seen.id))
    .bind(column(new, |(.., broken)| broken.message.as_str()))
    .bind(column(new, |(.., broken)| broken.severity))
    .bind(tx.now())
    .fetch_all(&mut **tx)
    .await?;
    let opened: HashSet<ViolationId> = opened.into_iter().collect();
    let mut news = Vec::with_capacity(opened.len());
    for (id, seen, broken) in new.iter().filter(|(id, ..)| opened.contains(id)) {
        let event = tx
            .event("policy_violation_opened", "certificate", &seen.id)
            .with("rule_id", &broken.rule)
            .with("severity", broken.severity)
            .with("message", &broken.message);
        tx.note(event);
        news.push(News {
            kind: NoticeKind::PolicyViolation,
            certificate: seen.id.clone(),
            dedup: id.to_string(),
            subject: format!("{} breaks policy rule {}", seen.common_name, broken.name),
            message: format!("Certificate {} ({}) breaks {broken}", seen.id, seen.common_name),
        });
    }
    outbox::announce_all(tx, &news).await
}

/// Says which rules keep a certificate from this.
pub fn because(broken: &[Broken]) -> String {
    column(broken, Broken::to_string).join("; ")
}

/// Refuses what rules keep from happening.
///
/// # Errors
/// [`Error::Conflict`] that says which.
pub async fn must_not_block(tx: &mut Tx, certificate: &CertificateId, moment: Moment) -> Result<()> {
    match judge(tx, &[certificate], moment).await?.remove(certificate) {
        Some(broken) => Err(Error::Conflict(because(&broken))),
        None => Ok(()),
    }
}

/// What a rule would do to the certificates there are.
#[derive(Clone, Debug, Default)]
pub struct Preview {
    /// How many were looked at.
    pub looked_at: i64,
    /// Those that would break it and do not break the rule it replaces, and how.
    pub starts: Found,
    /// Those that break the rule it replaces and would not break it.
    pub stops: Found,
    /// Those that would break it, all in all.
    pub breaking: i64,
    /// Those that would not be renewed any more.
    pub blocked: Found,
}

/// Certificates that were found: the first of them, and how many.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// How many.
    pub count: i64,
    /// The first of them, and what is to be said.
    pub first: Vec<(CertificateId, String)>,
}

impl Found {
    fn add(&mut self, id: &CertificateId, message: impl FnOnce() -> String, most: usize) {
        self.count += 1;
        if self.first.len() < most {
            self.first.push((id.clone(), message()));
        }
    }
}

/// Certificates that are looked at together.
const PAGE: i64 = 2_000;

/// Holds every certificate against a rule that is not kept. Each list has up to `most`.
///
/// # Errors
/// When the database cannot be asked.
pub async fn preview(db: &mut PgConnection, proposed: InForce, now: Time, most: usize) -> Result<Preview> {
    let mut preview = Preview::default();
    let mut behind = String::new();
    let blocks = Moment::Issuance.is_blocked_by(proposed.rule.kind(), proposed.severity);
    loop {
        let seen = page(db, &behind, PAGE).await?;
        let judge = Judge::of(db, vec![proposed.clone()], &seen).await?;
        let ids: Vec<&CertificateId> = column(&seen, |one| &one.id);
        let broken_now: HashSet<CertificateId> = sqlx::query_scalar::<_, CertificateId>(
            "SELECT certificate_id FROM policy_violations
              WHERE rule_id = $1 AND certificate_id = ANY ($2) AND closed_at IS NULL",
        )
        .bind(&proposed.id)
        .bind(&ids)
        .fetch_all(&mut *db)
        .await?
        .into_iter()
        .collect();
        for one in &seen {
            preview.looked_at += 1;
            let was = broken_now.contains(&one.id);
            match judge.broken(one, now).next() {
                Some(broken) => {
                    preview.breaking += 1;
                    if !was {
                        preview.starts.add(&one.id, || broken.message.clone(), most);
                    }
                    if blocks {
                        preview.blocked.add(&one.id, || broken.message, most);
                    }
                }
                None if was => preview.stops.add(&one.id, String::new, most),
                None => {}
            }
        }
        match seen.last() {
            Some(last) if seen.len() as i64 == PAGE => behind = last.id.to_string(),
            _ => return Ok(preview),
        }
    }
}
