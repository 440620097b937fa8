//! To which certificates the rows of a list belong.

use certctl_contract::problem::Kind;
use certctl_model::scope::{Reach, Scope};
use certctl_store::scope;

use super::Where;
use crate::{error::ApiError, reach::Reached};

/// To which certificates a row belongs, by an expression of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Belongs {
    /// Nobody has said.
    Unstated,
    /// To the certificate with this id.
    Certificate(&'static str),
    /// To the party with this name.
    Maker(&'static str),
    /// It is the team with this id.
    Team(&'static str),
    /// It is the issuer with this id.
    Issuer(&'static str),
    /// It is the profile with this id.
    Profile(&'static str),
    /// To the certificate, or to the certificate of the job, that these are type and id of.
    Resource(&'static str, &'static str),
}

impl Belongs {
    /// Refuses rows of which nobody has said it.
    pub(super) fn must_be_stated(self) -> Result<(), ApiError> {
        let detail = "this key is limited to some certificates, and this concerns more than those";
        match self {
            Belongs::Unstated => Err(ApiError::new(Kind::Forbidden, detail)),
            _ => Ok(()),
        }
    }

    /// Adds that rows belong to what the caller reaches, which is limited.
    pub(super) fn restrict(self, reached: &Reached, sql: &mut Where<'_>) {
        let reach = &*reached.certificates;
        match self {
            Belongs::Unstated => sql.and("false"),
            Belongs::Certificate(id) => sql.within(id, |sql| scope::push_ids(sql, reach)),
            Belongs::Maker(name) => sql.with(&format!("{name} ="), reached.name.to_string(), ""),
            Belongs::Team(id) => among(sql, id, listed(reach, |scope| &scope.teams)),
            Belongs::Issuer(id) => among(sql, id, listed(reach, |scope| &scope.issuers)),
            Belongs::Profile(id) => among(sql, id, listed(reach, |scope| &scope.profiles)),
            Belongs::Resource(kind, id) => {
                let of_job = format!(
                    "(CASE {kind} WHEN 'certificate' THEN {id} WHEN 'job' THEN \
                                      (SELECT about.certificate_id FROM jobs about WHERE about.id = {id}) END)"
                );
                sql.within(&of_job, |sql| scope::push_ids(sql, reach));
            }
        }
    }
}

/// What the scopes list; nothing for no limit. Who reaches only what it created is shown what is listed for it alone.
fn listed<T: ToString>(reach: &Reach, list: fn(&Scope) -> &Option<Vec<T>>) -> Option<Vec<String>> {
    let lists = || reach.scopes.iter().map(list);
    match reach.created_by.is_none() && lists().any(Option::is_none) {
        true => None,
        false => Some(lists().flatten().flatten().map(ToString::to_string).collect()),
    }
}

fn among(sql: &mut Where<'_>, id: &str, listed: Option<Vec<String>>) {
    if let Some(listed) = listed {
        sql.with(&format!("{id} = ANY ("), listed, ")");
    }
}
