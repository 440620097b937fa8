//! Agent groups: agents that match, and those named.

use certctl_contract::{
    agent_groups::*,
    agents::Agent,
    endpoint::NoContent,
    list::{MAX_PER_PAGE, Page, Sort},
};
use certctl_model::{
    group::{self, Membership, Versions},
    id::AgentGroupId,
};
use futures_util::TryStreamExt;
use sqlx::{FromRow, PgPool, postgres::PgRow};

use super::teams::check_description;
use crate::{
    app::{Cx, Request, Routes},
    error::ApiError,
    listing::{self, Column, Listed, Where, check_name},
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(list)
        .on(create)
        .on(get)
        .on(update)
        .on(delete)
        .on(members)
        .on(set_member)
        .on(remove_member)
        .on(overrides)
}

impl Listed for AgentGroup {
    type Filter = AgentGroupFilter;
    type Sort = AgentGroupSort;

    const KIND: &'static str = "agent group";
    const COLUMNS: &'static str = "g.id, g.name, g.description, g.match_os, g.match_architecture, g.match_ip_cidr,
        g.match_version, g.enabled, g.created_at, g.updated_at";
    const FROM: &'static str = "agent_groups g";
    const ID: &'static str = "g.id";
    const DEFAULT: Sort<AgentGroupSort> = Sort {
        key: AgentGroupSort::Name,
        descending: false,
    };

    fn column(key: AgentGroupSort) -> Column {
        match key {
            AgentGroupSort::Name => Column::text("g.name"),
            AgentGroupSort::CreatedAt => Column::time("g.created_at"),
        }
    }

    fn restrict(f: &AgentGroupFilter, sql: &mut Where<'_>) {
        sql.eq("g.name", &f.name);
        sql.eq("g.enabled", &f.enabled);
    }

    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Self::from_row(row)
    }
}

impl Listed for Member {
    type Filter = MemberFilter;
    type Sort = MemberSort;

    const KIND: &'static str = "override";
    const COLUMNS: &'static str = "m.group_id AS agent_group_id, m.agent_id, m.membership_type, m.created_at";
    const FROM: &'static str = "agent_group_members m";
    const ID: &'static str = "m.agent_id";
    const DEFAULT: Sort<MemberSort> = Sort {
        key: MemberSort::CreatedAt,
        descending: true,
    };

    fn column(key: MemberSort) -> Column {
        match key {
            MemberSort::CreatedAt => Column::time("m.created_at"),
        }
    }

    fn restrict(f: &MemberFilter, sql: &mut Where<'_>) {
        sql.eq("m.membership_type", &f.membership_type);
    }

    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Self::from_row(row)
    }
}

/// Checks the whole of a group as it is about to be written, and gives its criteria their one form.
fn check(group: &mut AgentGroup) -> Result<(), ApiError> {
    check_name("name", &group.name, 255)?;
    check_description(&group.description)?;
    for (field, text) in [
        ("match_os", &mut group.match_os),
        ("match_architecture", &mut group.match_architecture),
        ("match_version", &mut group.match_version),
        ("match_ip_cidr", &mut group.match_ip_cidr),
    ] {
        *text = text.trim().to_owned();
        if !text.is_empty() {
            check_name(field, text, 128)?;
        }
    }
    if !group.match_version.is_empty() {
        Versions::read(&group.match_version).map_err(|why| ApiError::invalid("match_version", why))?;
    }
    if !group.match_ip_cidr.is_empty() {
        let block = group::block(&group.match_ip_cidr).map_err(|why| ApiError::invalid("match_ip_cidr", why))?;
        group.match_ip_cidr = block.to_string();
    }
    Ok(())
}

async fn list(cx: Cx, rq: Request<ListAgentGroups>) -> Result<Page<AgentGroup>, ApiError> {
    listing::list(&cx, rq.query).await
}

async fn get(cx: Cx, rq: Request<GetAgentGroup>) -> Result<AgentGroup, ApiError> {
    listing::fetch(&cx, rq.path.id.as_str()).await
}

async fn create(cx: Cx, rq: Request<CreateAgentGroup>) -> Result<AgentGroup, ApiError> {
    let new = rq.body;
    let mut tx = cx.begin().await?;
    let now = tx.now();
    let mut group = AgentGroup {
        id: new.id.unwrap_or_else(|| AgentGroupId::generate(now)),
        name: new.name,
        description: new.description,
        match_os: new.match_os,
        match_architecture: new.match_architecture,
        match_ip_cidr: new.match_ip_cidr,
        match_version: new.match_version,
        enabled: new.enabled.unwrap_or(true),
        created_at: now,
        updated_at: now,
    };
    check(&mut group)?;
    sqlx::query(
        "INSERT INTO agent_groups (id, name, description, match_os, match_architecture, match_ip_cidr, match_version,
                                   enabled, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)",
    )
    .bind(&group.id)
    .bind(&group.name)
    .bind(&group.description)
    .bind(&group.match_os)
    .bind(&group.match_architecture)
    .bind(&group.match_ip_cidr)
    .bind(&group.match_version)
    .bind(group.enabled)
    .bind(now)
    .execute(&mut *tx)
    .await?;
    listing::commit(tx, "create_agent_group", "agent_group", group.id.as_str()).await?;
    Ok(group)
}

async fn update(cx: Cx, rq: Request<UpdateAgentGroup>) -> Result<AgentGroup, ApiError> {
    let (id, change) = (rq.path.id, rq.body);
    let mut tx = cx.begin().await?;
    let now = tx.now();
    sqlx::query("SELECT 1 FROM agent_groups WHERE id = $1 FOR UPDATE")
        .bind(&id)
        .execute(&mut *tx)
        .await?;
    let before: AgentGroup = listing::get(&mut tx, now, id.as_str()).await?;
    let old = before.clone();
    let mut group = AgentGroup {
        name: change.name.unwrap_or(before.name),
        description: change.description.unwrap_or(before.description),
        match_os: change.match_os.unwrap_or(before.match_os),
        match_architecture: change.match_architecture.unwrap_or(before.match_architecture),
        match_ip_cidr: change.match_ip_cidr.unwrap_or(before.match_ip_cidr),
        match_version: change.match_version.unwrap_or(before.match_version),
        enabled: change.enabled.unwrap_or(before.enabled),
        updated_at: now,
        ..before
    };
    check(&mut group)?;
    sqlx::query(
        "UPDATE agent_groups
            SET name = $2, description = $3, match_os = $4, match_architecture = $5, match_ip_cidr = $6,
                match_version = $7, enabled = $8, updated_at = $9
          WHERE id = $1",
    )
    .bind(&group.id)
    .bind(&group.name)
    .bind(&group.description)
    .bind(&group.match_os)
    .bind(&group.match_architecture)
    .bind(&group.match_ip_cidr)
    .bind(&group.match_version)
    .bind(group.enabled)
    .bind(now)
    .execute(&mut *tx)
    .await?;
    let id = group.id.as_str();
    listing::commit_change(tx, "update_agent_group", "agent_group", id, (&old, &group)).await?;
    Ok(group)
}

async fn delete(cx: Cx, rq: Request<DeleteAgentGroup>) -> Result<NoContent, ApiError> {
    let id = rq.path.id;
    let mut tx = cx.begin().await?;
    let done = sqlx::query("DELETE FROM agent_groups WHERE id = $1")
        .bind(&id)
        .execute(&mut *tx)
        .await;
    listing::deleted(done, AgentGroup::KIND, id.as_str())?;
    listing::commit(tx, "delete_agent_group", "agent_group", id.as_str()).await?;
    Ok(NoContent)
}

async fn members(cx: Cx, rq: Request<ListAgentGroupMembers>) -> Result<Page<Agent>, ApiError> {
    let group: AgentGroup = listing::fetch(&cx, rq.path.id.as_str()).await?;
    let versions = match group.match_version.as_str() {
        "" => None,
        range => Some(versions_within(cx.pool(), range).await?),
    };
    let mut query = rq.query;
    let whole = query.page.is_none() && query.per_page.is_none() && query.page_size.is_none() && query.cursor.is_none();
    if whole {
        query.per_page = Some(MAX_PER_PAGE);
    }
    let mut page: Page<Agent> = listing::list_where(&cx, query, |sql| belongs(&group, &versions, sql)).await?;
    if whole && page.next_cursor.is_none() {
        page.per_page = u32::try_from(page.total).ok();
    }
    Ok(page)
}

/// The versions that agents give and that lie within a range: far fewer than there are agents.
async fn versions_within(db: &PgPool, range: &str) -> Result<Vec<String>, ApiError> {
    let range = Versions::read(range).map_err(|why| ApiError::internal(format!("a stored range {why}")))?;
    let said = sqlx::query_scalar("SELECT DISTINCT version FROM agents").fetch(db);
    let within = said.try_filter(|version: &String| std::future::ready(range.admit(version)));
    Ok(within.try_collect().await?)
}

/// Included, or matching without being excluded.
fn belongs(group: &AgentGroup, versions: &Option<Vec<String>>, sql: &mut Where<'_>) {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_lowercase());
    let (os, architecture, block) = (
        some(&group.match_os),
        some(&group.match_architecture),
        some(&group.match_ip_cidr),
    );
    let matches = group.enabled && (os.is_some() || architecture.is_some() || block.is_some() || versions.is_some());
    sql.with(
        "(EXISTS (SELECT 1 FROM agent_group_members m
                   WHERE m.agent_id = a.id AND m.membership_type = 'include' AND m.group_id =",
        group.id.clone(),
        match matches {
            true => ") OR (true",
            false => ") OR (false",
        },
    );
    sql.eq("lower(a.os)", &os);
    sql.eq("lower(a.architecture)", &architecture);
    if let Some(block) = block {
        sql.with("a.address <<=", block, "::inet");
    }
    if let Some(versions) = versions {
        sql.with("a.version = ANY(", versions.clone(), ")");
    }
    sql.with(
        "NOT EXISTS (SELECT 1 FROM agent_group_members m
                      WHERE m.agent_id = a.id AND m.membership_type = 'exclude' AND m.group_id =",
        group.id.clone(),
        ")))",
    );
}

async fn set_member(cx: Cx, rq: Request<SetAgentGroupMember>) -> Result<Member, ApiError> {
    let MemberPath { id, agent_id } = rq.path;
    let mut tx = cx.begin().await?;
    let now = tx.now();
    listing::get::<AgentGroup>(&mut tx, now, id.as_str()).await?;
    listing::get::<Agent>(&mut tx, now, agent_id.as_str()).await?;
    let membership = rq.body.membership_type.unwrap_or(Membership::Include);
    let member = sqlx::query_as(
        "INSERT INTO agent_group_members AS m (group_id, agent_id, membership_type, created_at)
         VALUES ($1, $2, $3, $4)
         ON CONFLICT (group_id, agent_id) DO UPDATE SET membership_type = excluded.membership_type
         RETURNING m.group_id AS agent_group_id, m.agent_id, m.membership_type, m.created_at",
    )
    .bind(&id)
    .bind(&agent_id)
    .bind(membership)
    .bind(now)
    .fetch_one(&mut *tx)
    .await?;
    let event = tx
        .event("agent_group_member_set", "agent_group", &id)
        .with("agent_id", &agent_id)
        .with("membership_type", membership);
    tx.note(event);
    tx.commit().await?;
    Ok(member)
}

async fn remove_member(cx: Cx, rq: Request<RemoveAgentGroupMember>) -> Result<NoContent, ApiError> {
    let MemberPath { id, agent_id } = rq.path;
    let mut tx = cx.begin().await?;
    let now = tx.now();
    listing::get::<AgentGroup>(&mut tx, now, id.as_str()).await?;
    let done = sqlx::query("DELETE FROM agent_group_members WHERE group_id = $1 AND agent_id = $2")
        .bind(&id)
        .bind(&agent_id)
        .execute(&mut *tx)
        .await;
    listing::deleted(done, Member::KIND, agent_id.as_str())?;
    let event = tx
        .event("agent_group_member_removed", "agent_group", &id)
        .with("agent_id", &agent_id);
    tx.note(event);
    tx.commit().await?;
    Ok(NoContent)
}

async fn overrides(cx: Cx, rq: Request<ListAgentGroupOverrides>) -> Result<Page<Member>, ApiError> {
    let id = rq.path.id;
    listing::fetch::<AgentGroup>(&cx, id.as_str()).await?;
    listing::list_where(&cx, rq.query, |sql| sql.eq("m.group_id", &Some(id.clone()))).await
}
