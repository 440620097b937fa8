//! Which certificates the caller of an operation reaches, and that every operation asks.
//!
//! A row of the table states how it is limited ([`Scoping`]); one that states nothing refuses parties that reach only some
//! certificates. Ids in paths are looked up here before the handler runs, lists add the condition in
//! [`listing`](crate::listing), and [`Tx`](certctl_store::Tx) refuses to commit a change beyond it. The condition itself is
//! [`certctl_store::scope`].

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use certctl_contract::endpoint::Scoping;
use certctl_model::scope::Reach;
use certctl_store::scope;

use crate::{app::App, auth::Principal, error::ApiError};

/// What the caller reaches, and whether a list has asked for it.
#[derive(Clone)]
pub struct Reached {
    /// The certificates.
    pub certificates: Arc<Reach>,
    /// The name of the caller, for what belongs to whoever made it.
    pub name: Arc<str>,
    asked: Arc<AtomicBool>,
}

impl Reached {
    /// What a principal reaches.
    pub fn of(principal: &Principal) -> Self {
        Self {
            certificates: Arc::new(principal.reach()),
            name: principal.name.as_str().into(),
            asked: Arc::default(),
        }
    }

    /// The limits, when there are any. To ask for them is to keep to them.
    pub fn limits(&self) -> Option<&Reach> {
        self.asked.store(true, Ordering::Relaxed);
        self.certificates.is_limited().then_some(&*self.certificates)
    }

    /// Looks up what the path names.
    ///
    /// # Errors
    /// 404 when it is not within reach, as when it does not exist.
    pub async fn must_include(&self, app: &App, scoping: Scoping, named: Option<&str>) -> Result<(), ApiError> {
        if !self.certificates.is_limited() {
            return Ok(());
        }
        let (kind, id) = match (scoping, named) {
            (Scoping::Certificate, Some(id)) => ("certificate", id),
            (Scoping::Job, Some(id)) => ("job", id),
            (Scoping::Certificate | Scoping::Job, None) => {
                return Err(ApiError::internal("the path of the operation names nothing"));
            }
            _ => return Ok(()),
        };
        let mut db = app.pool.acquire().await?;
        let certificate = match kind {
            "job" => scope::certificate_of_job(&mut db, id).await?,
            _ => Some(id.to_owned()),
        };
        let certificate = certificate.ok_or_else(|| ApiError::missing(kind, id))?;
        match scope::beyond(&mut db, &self.certificates, &[certificate]).await? {
            None => Ok(()),
            Some(_) => Err(ApiError::missing(kind, id)),
        }
    }

    /// Withholds an answer with rows that were read without asking what the caller reaches.
    ///
    /// # Errors
    /// 500: an error of ours.
    pub fn must_have_been_asked(&self, scoping: Scoping) -> Result<(), ApiError> {
        match scoping == Scoping::Rows && self.certificates.is_limited() && !self.asked.load(Ordering::Relaxed) {
            true => Err(ApiError::internal(
                "rows were read regardless of what the caller reaches",
            )),
            false => Ok(()),
        }
    }
}
