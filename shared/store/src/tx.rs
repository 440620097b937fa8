//! The unit of work.

use std::{
    collections::BTreeSet,
    ops::{Deref, DerefMut},
};

use certctl_model::{
    audit::{Actor, ActorType, Event},
    id::AuditEventId,
    time::Time,
};
use sqlx::{PgConnection, PgPool, Postgres, Transaction};

use crate::{
    error::*,
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
            now,
            events: vec![],
            wakes: BTreeSet::new(),
        })
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
