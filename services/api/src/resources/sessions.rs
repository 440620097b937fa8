//! Logging in with a browser.

use certctl_contract::{problem::Kind, sessions::*};

use crate::{
    app::{Cx, Request, Routes},
    auth::Way,
    error::ApiError,
    session::{self, Newcomer},
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(begin).on(current).on(end)
}

async fn begin(cx: Cx, _: Request<BeginSession>) -> Result<Begun, ApiError> {
    let who = &cx.principal;
    let (display_name, secret, until) = match &who.way {
        Way::Shared => (who.name.clone(), None, None),
        Way::Key { secret, .. } => (who.name.clone(), Some(secret.clone()), None),
        Way::Jwt { display_name, until } => (display_name.clone(), None, Some(*until)),
        Way::Session(_) => {
            return Err(ApiError::new(
                Kind::WrongState,
                "this request has a session already; end it before you begin another",
            ));
        }
        Way::Off | Way::Nobody | Way::Agent(_) | Way::Bootstrap => {
            return Err(ApiError::new(
                Kind::WrongState,
                "there is nothing a session could stand for",
            ));
        }
    };
    let role = who
        .role
        .ok_or_else(|| ApiError::internal("a party without a role was let in"))?;
    let newcomer = Newcomer {
        name: who.name.clone(),
        display_name,
        principal: who.key(),
        role,
        scopes: who.scopes().to_vec(),
        secret,
        until,
    };
    let (party, cookie) = session::begin(&cx.app, cx.begin().await?, newcomer).await?;
    Ok(Begun {
        party,
        cookie: Some(cookie),
    })
}

async fn current(cx: Cx, _: Request<CurrentSession>) -> Result<Party, ApiError> {
    let who = cx.principal;
    let party = |via: &str| Party {
        name: who.name.clone(),
        display_name: who.name.clone(),
        role: who.role,
        scopes: who.scopes().to_vec(),
        via: via.to_owned(),
        csrf_token: None,
        expires_at: None,
    };
    Ok(match &who.way {
        Way::Session(session) => Party {
            display_name: session.display_name.clone(),
            csrf_token: Some(session.csrf.expose().to_owned()),
            expires_at: Some(session.expires_at),
            ..party("session")
        },
        Way::Jwt { display_name, until } => Party {
            display_name: display_name.clone(),
            expires_at: Some(*until),
            ..party("jwt")
        },
        Way::Shared => party("shared-key"),
        Way::Key { .. } => party("api-key"),
        Way::Agent(_) => party("agent"),
        Way::Off | Way::Nobody | Way::Bootstrap => party("none"),
    })
}

async fn end(cx: Cx, _: Request<EndSession>) -> Result<Ended, ApiError> {
    match &cx.principal.way {
        Way::Session(session) => Ok(Ended {
            cookie: Some(session::end(cx.begin().await?, session).await?),
        }),
        _ => Err(ApiError::new(Kind::NotFound, "this request came without a session")),
    }
}
