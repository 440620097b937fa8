//! The unit of work.

use std::{
    collections::BTreeSet,
    ops::{Deref, DerefMut},
};

use certctl_model::{
    audit::{Actor, ActorType, Event},
    id::AuditEventId,
    scope::Reach,
    time::Time,
};
use sqlx::{PgConnection, PgPool, Postgres, Transaction};

use crate::{
    error::*,
    scope,
    wake::{self, Channel},
};

/// Begins a transaction, with a statement of the caller's own if it brings one.
///
/// In a task of its own, because a `begin` of sqlx that is dropped between asking and hearing of it (a client hung up, a
/// time-out) gives its connection back to the pool inside a transaction that nobody knows of, and what is done on it
/// next is never committed. The task goes on to the end, and drops a transaction that is known.
///
/// # Errors
/// [`Error::Busy`] when there is no connection.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the place that makes begin and spawn safe; it awaits its task"
)]
pub async fn begin(pool: &PgPool, statement: Option<&'static str>) -> Result<Transaction<'static, Postgres>> {
    let pool = pool.clone();
    let task = tokio::spawn(async move {
        match statement {
            Some(statement) => pool.begin_with(statement).await,
            None => pool.begin().await,
        }
    });
    Ok(task.await.map_err(|_| sqlx::Error::WorkerCrashed)??)
}

/// Changes that become visible together with the events that tell of them. Dropped, it leaves no trace.
pub struct Tx {
    inner: Transaction<'static, Postgres>,
    actor: Actor,
    principal: Option<String>,
    reach: Reach,
    now: Time,
    events: Vec<Event>,
    wakes: BTreeSet<Channel>,
}

impl Tx {
    /// Begins one for this actor at this instant.
    ///
    /// # Errors
    /// [`Error::Busy`] when there is no connection.
    pub async fn begin(pool: &PgPool, actor: &Actor, now: Time) -> Result<Self> {
        let inner = begin(pool, None).await?;
        Ok(Self {
            inner,
            actor: actor.clone(),
            principal: None,
            reach: Reach::default(),
            now,
            events: vec![],
            wakes: BTreeSet::new(),
        })
    }

    /// From here on, acts for this principal, which reaches only some certificates. What it creates is recorded as created
    /// by it, and a change of anything that it does not reach is not committed.
    pub fn limit(&mut self, principal: String, reach: Reach) {
        self.principal = Some(principal);
        self.reach = reach;
    }

    /// What the principal reaches.
    pub fn reach(&self) -> &Reach {
        &self.reach
    }

    /// Who acts.
    pub fn actor(&self) -> Actor {
        self.actor.clone()
    }

    /// What tells the acting principal from every other. Approvals compare principals by this alone, in the database with
    /// `is_same_principal`.
    pub fn principal(&self) -> String {
        self.actor.name.clone()
    }

    /// The [principal](Self::principal) when a person acts.
    pub fn person(&self) -> Option<String> {
        (self.actor.kind == ActorType::User).then(|| self.principal())
    }

    /// From here on, acts for somebody else: a worker for the one who asked.
    pub fn act_for(&mut self, actor: Actor) {
        self.actor = actor;
    }

    /// When.
    pub fn now(&self) -> Time {
        self.now
    }

    /// An event of this actor, to be completed and [noted](Self::note).
    pub fn event(&self, action: &'static str, resource_type: &'static str, id: impl ToString) -> Event {
        Event::new(&self.actor, action, resource_type, id)
    }

    /// Remembers what was done.
    pub fn note(&mut self, event: Event) {
        self.events.push(event);
    }

    /// How many things were noted so far.
    pub fn events(&self) -> usize {
        self.events.len()
    }

    /// Remembers whom to wake once it is visible.
    pub fn wake(&mut self, channel: Channel) {
        self.wakes.insert(channel);
    }

    /// Forgets whom to wake: the caller does it when more is there.
    pub fn let_sleep(&mut self) {
        self.wakes.clear();
    }

    /// Writes the events, wakes who waits, and commits.
    ///
    /// # Errors
    /// [`Error::Silent`] when nothing was noted: a change that nobody could trace is not made.
    pub async fn commit(self) -> Result<()> {
        match self.events.is_empty() {
            true => Err(Error::Silent),
            false => self.finish().await,
        }
    }

    /// Commits even when nothing was noted: for outcomes of a bulk operation, of which some may be refusals alone.
    pub(crate) async fn commit_outcomes(self) -> Result<()> {
        match self.events.is_empty() {
            true => Ok(self.inner.commit().await?),
            false => self.finish().await,
        }
    }

    async fn finish(mut self) -> Result<()> {
        let (now, count) = (self.now, self.events.len());
        let events = std::mem::take(&mut self.events);
        self.record_creator(&events).await?;
        self.must_be_within_reach(&events).await?;
        let column = |f: fn(&Event) -> String| events.iter().map(f).collect::<Vec<String>>();
        sqlx::query(
            "INSERT INTO audit_events (id, actor, actor_type, action, resource_type, resource_id, details, at)
             SELECT e.id, e.actor, e.actor_type, e.action, e.resource_type, e.resource_id, e.details, $8
               FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::jsonb[])
                    AS e (id, actor, actor_type, action, resource_type, resource_id, details)",
        )
        .bind(
            (0..count)
                .map(|_| AuditEventId::generate(now).to_string())
                .collect::<Vec<_>>(),
        )
        .bind(column(|e| e.actor.name.clone()))
        .bind(column(|e| e.actor.kind.to_string()))
        .bind(column(|e| e.action.to_owned()))
        .bind(column(|e| e.resource_type.to_owned()))
        .bind(column(|e| e.resource_id.clone()))
        .bind(events.iter().map(|e| e.details.clone()).collect::<Vec<_>>())
        .bind(now)
        .execute(&mut *self.inner)
        .await?;
        for channel in &self.wakes {
            wake::wake(&mut *self.inner, *channel).await?;
        }
        self.inner.commit().await?;
        Ok(())
    }

    /// Records who created the certificates that these events say are new.
    async fn record_creator(&mut self, events: &[Event]) -> Result<()> {
        const NEW: [&str; 2] = ["certificate_created", "certificate_imported"];
        let Some(principal) = &self.principal else {
            return Ok(());
        };
        let new = events.iter().filter(|event| NEW.contains(&event.action));
        let new: Vec<&str> = new.map(|event| &*event.resource_id).collect();
        if !new.is_empty() {
            sqlx::query("UPDATE certificates SET created_by = $2 WHERE id = ANY ($1) AND created_by IS NULL")
                .bind(&new)
                .bind(principal)
                .execute(&mut *self.inner)
                .await?;
        }
        Ok(())
    }

    /// Refuses events of anything that a limited principal does not reach as it is now, and of every kind of resource that
    /// is not known to belong to a certificate.
    async fn must_be_within_reach(&mut self, events: &[Event]) -> Result<()> {
        if !self.reach.is_limited() {
            return Ok(());
        }
        let outside = |what: String, reach: &Reach| {
            let scope = reach.to_string();
            Err(Error::OutOfScope { what, scope })
        };
        let mut certificates = vec![];
        for event in events {
            match event.resource_type {
                "certificate" => certificates.push(event.resource_id.clone()),
                "job" => certificates.extend(scope::certificate_of_job(&mut self.inner, &event.resource_id).await?),
                // Its own session; what it began for several certificates, which were chosen among those it reaches; what a
                // rule says of a certificate that it changed.
                "session" | "bulk_operation" => {}
                "policy" if event.action == "policy_violation_changed" => {}
                other => return outside(format!("{other} {}", event.resource_id), &self.reach),
            }
        }
        match scope::beyond(&mut self.inner, &self.reach, &certificates).await? {
            Some(id) => outside(format!("certificate {id}, as it would be,"), &self.reach),
            None => Ok(()),
        }
    }
}

impl Deref for Tx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.inner
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.inner
    }
}
