//! Agents and their groups, through the API.

use certctl_tests::world::{KEY, World};
use http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

fn ids(page: &Value) -> Vec<&str> {
    let rows = page["data"].as_array().unwrap().iter();
    rows.map(|row| row["id"].as_str().unwrap()).collect()
}

/// Agents of all kinds; `a-odd` says nothing of itself that makes sense.
async fn fleet(w: &World) {
    for (n, (id, os, architecture, address, version)) in [
        ("a-1", "linux", "amd64", "10.1.2.3", "2.0.0"),
        ("a-2", "Linux", "arm64", "10.200.0.1", "v2.10.1"),
        ("a-3", "windows", "amd64", "192.168.1.7", "3.0.0"),
        ("a-4", "linux", "amd64", "2001:db8:1::5", "1.9.0"),
        ("a-odd", "", "", "somewhere", "dev"),
    ]
    .into_iter()
    .enumerate()
    {
        w.clock.advance(std::time::Duration::from_secs(n as u64));
        let new = json!({ "id": id, "name": format!("{id} name"), "hostname": "h", "os": os, "architecture": architecture,
                          "ip_address": address, "version": version });
        w.post("/api/v1/agents", new).await.expect(201);
    }
}

async fn members(w: &World, group: &str, query: &str) -> Vec<String> {
    let page = w
        .get(&format!("/api/v1/agent-groups/{group}/members?sort=name{query}"))
        .await
        .expect(200);
    ids(&page).into_iter().map(str::to_owned).collect()
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn agents_are_members_that_meet_every_criterion(db: PgPool) {
    let w = World::new(db).await;
    fleet(&w).await;
    for (n, (criteria, expected)) in [
        (json!({}), &[][..]),
        (json!({ "match_os": "linux" }), &["a-1", "a-2", "a-4"]),
        (
            json!({ "match_os": "LINUX", "match_architecture": "amd64" }),
            &["a-1", "a-4"],
        ),
        (json!({ "match_ip_cidr": "10.0.0.0/8" }), &["a-1", "a-2"]),
        (json!({ "match_ip_cidr": "10.1.2.3" }), &["a-1"]),
        (json!({ "match_ip_cidr": "2001:db8::/32" }), &["a-4"]),
        (json!({ "match_ip_cidr": "0.0.0.0/0" }), &["a-1", "a-2", "a-3"]),
        (json!({ "match_version": ">=2.0.0, <3.0.0" }), &["a-1", "a-2"]),
        (json!({ "match_version": "2.10.1" }), &["a-2"]),
        (json!({ "match_version": ">=9" }), &[]),
        (
            json!({ "match_os": "linux", "match_ip_cidr": "10.0.0.0/8", "match_version": ">2.0.0" }),
            &["a-2"],
        ),
        (json!({ "match_os": "linux", "enabled": false }), &[]),
        (json!({ "match_os": "linux' OR true --" }), &[]),
    ]
    .into_iter()
    .enumerate()
    {
        let mut new = json!({ "id": format!("ag-{n}"), "name": format!("group {n}") });
        new.as_object_mut()
            .unwrap()
            .extend(criteria.as_object().unwrap().clone());
        w.post("/api/v1/agent-groups", new).await.expect(201);
        assert_eq!(members(&w, &format!("ag-{n}"), "").await, expected, "{criteria}");
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn agents_are_included_and_excluded_by_name_whatever_they_match(db: PgPool) {
    let w = World::new(db).await;
    fleet(&w).await;
    w.post(
        "/api/v1/agent-groups",
        json!({ "id": "ag-1", "name": "one", "match_os": "linux" }),
    )
    .await
    .expect(201);
    let member = |agent: &str| format!("/api/v1/agent-groups/ag-1/members/{agent}");
    let included = w.put(&member("a-odd"), Value::Null).await.expect(200);
    assert_eq!(
        included,
        json!({ "agent_group_id": "ag-1", "agent_id": "a-odd", "membership_type": "include", "created_at": w.clock.now() })
    );
    w.put(&member("a-1"), json!({ "membership_type": "exclude" }))
        .await
        .expect(200);
    assert_eq!(members(&w, "ag-1", "").await, ["a-2", "a-4", "a-odd"]);
    assert_eq!(
        members(&w, "ag-1", "&version=dev").await,
        ["a-odd"],
        "filters of agents hold for members"
    );
    let overrides = w.get("/api/v1/agent-groups/ag-1/overrides").await.expect(200);
    assert_eq!(overrides["total"], 2);
    let excluded = w
        .get("/api/v1/agent-groups/ag-1/overrides?membership_type=exclude")
        .await
        .expect(200);
    assert_eq!(
        (&excluded["total"], &excluded["data"][0]["agent_id"]),
        (&json!(1), &json!("a-1"))
    );

    w.put("/api/v1/agent-groups/ag-1", json!({ "enabled": false }))
        .await
        .expect(200);
    assert_eq!(
        members(&w, "ag-1", "").await,
        ["a-odd"],
        "nobody matches a group that is disabled"
    );
    w.put("/api/v1/agent-groups/ag-1", json!({ "enabled": true }))
        .await
        .expect(200);
    // The last word counts, and it can be taken back.
    w.put(&member("a-odd"), json!({ "membership_type": "exclude" }))
        .await
        .expect(200);
    w.delete(&member("a-1")).await.expect(204);
    assert_eq!(members(&w, "ag-1", "").await, ["a-1", "a-2", "a-4"]);
    for (path, missing) in [
        (member("a-1"), "a-1"),
        (member("a-none"), "a-none"),
        ("/api/v1/agent-groups/none/members/a-1".to_owned(), "none"),
    ] {
        let problem = w.delete(&path).await.problem();
        assert!(problem.status == 404 && problem.detail.contains(missing), "{problem:?}");
    }
    let problem = w.put(&member("a-none"), Value::Null).await.problem();
    assert!(
        problem.status == 404 && problem.detail.contains("agent a-none"),
        "{problem:?}"
    );
    let problem = w
        .put(&member("a-1"), json!({ "membership_type": "perhaps" }))
        .await
        .problem();
    assert_eq!(
        (problem.status, problem.errors[0].field.as_str()),
        (400, "membership_type")
    );
    let trail = "SELECT string_agg(action || ' ' || coalesce(details->>'agent_id', ''), ', ' ORDER BY sequence)
                   FROM audit_events WHERE resource_type = 'agent_group'";
    assert_eq!(
        w.text(trail).await,
        "create_agent_group , agent_group_member_set a-odd, agent_group_member_set a-1, update_agent_group , \
         update_agent_group , agent_group_member_set a-odd, agent_group_member_removed a-1"
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn members_are_on_one_page_unless_pages_are_asked_for(db: PgPool) {
    let w = World::new(db).await;
    w.sql(
        "INSERT INTO agents (id, name, hostname, os, api_key_hash, registered_at, updated_at)
         SELECT 'a-' || n, 'a-' || n, 'h', 'linux', n::text, now(), now() FROM generate_series(1, 501) n",
    )
    .await;
    w.post(
        "/api/v1/agent-groups",
        json!({ "id": "ag-1", "name": "one", "match_os": "linux" }),
    )
    .await
    .expect(201);
    let path = "/api/v1/agent-groups/ag-1/members";
    let page = w.get(path).await.expect(200);
    assert_eq!(
        (&page["total"], &page["page"], &page["per_page"], ids(&page).len()),
        (&json!(501), &json!(1), &json!(500), 500)
    );
    let cursor = page["next_cursor"].as_str().unwrap();
    let rest = w
        .get(&format!("{path}?cursor={cursor}&page_size=500"))
        .await
        .expect(200);
    assert_eq!(ids(&rest).len(), 1);
    w.sql("DELETE FROM agents WHERE id = 'a-501'").await;
    let page = w.get(path).await.expect(200);
    assert_eq!(
        (
            &page["total"],
            &page["page"],
            &page["per_page"],
            page.get("next_cursor")
        ),
        (&json!(500), &json!(1), &json!(500), None)
    );
    w.sql("DELETE FROM agents WHERE id <> 'a-7'").await;
    let page = w.get(path).await.expect(200);
    assert_eq!((&page["total"], &page["per_page"]), (&json!(1), &json!(1)));
    let page = w.get(&format!("{path}?per_page=20")).await.expect(200);
    assert_eq!((&page["total"], &page["per_page"]), (&json!(1), &json!(20)));
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_group_is_listed_by_name_changed_in_part_and_deleted(db: PgPool) {
    let w = World::new(db).await;
    fleet(&w).await;
    for (id, name) in [("ag-1", "zebra"), ("ag-2", "ant")] {
        let new = json!({ "id": id, "name": name, "match_ip_cidr": "10.1.2.3/8", "match_version": "^2" });
        let group = w.post("/api/v1/agent-groups", new).await.expect(201);
        assert_eq!(
            group,
            json!({ "id": id, "name": name, "description": "", "match_os": "", "match_architecture": "",
                    "match_ip_cidr": "10.0.0.0/8", "match_version": "^2", "enabled": true,
                    "created_at": w.clock.now(), "updated_at": w.clock.now() })
        );
        assert_eq!(w.get(&format!("/api/v1/agent-groups/{id}")).await.expect(200), group);
    }
    assert_eq!(ids(&w.get("/api/v1/agent-groups").await.expect(200)), ["ag-2", "ag-1"]);
    let path = "/api/v1/agent-groups/ag-1";
    let changed = w
        .put(path, json!({ "description": "d", "match_version": "" }))
        .await
        .expect(200);
    assert_eq!(
        (
            &changed["name"],
            &changed["description"],
            &changed["match_version"],
            &changed["match_ip_cidr"]
        ),
        (&json!("zebra"), &json!("d"), &json!(""), &json!("10.0.0.0/8"))
    );
    let before = w.contents().await;
    for (body, status, field) in [
        (json!({ "name": "ant" }), 409, "name"),
        (json!({ "name": "" }), 422, "name"),
        (json!({ "match_ip_cidr": "10.0.0.0/33" }), 422, "match_ip_cidr"),
        (json!({ "match_version": "newest" }), 422, "match_version"),
        (json!({ "match_os": "a\u{7}" }), 422, "match_os"),
    ] {
        let problem = w.put(path, body.clone()).await.problem();
        assert_eq!(
            (problem.status, problem.errors[0].field.as_str()),
            (status, field),
            "{body}"
        );
        let mut new = body.clone();
        if new.get("name").is_none() {
            new["name"] = json!("new");
        }
        let problem = w.post("/api/v1/agent-groups", new).await.problem();
        assert_eq!(
            (problem.status, problem.errors[0].field.as_str()),
            (status, field),
            "{body}"
        );
    }
    assert_eq!(w.contents().await, before);
    w.put(&format!("{path}/members/a-1"), Value::Null).await.expect(200);
    w.delete(path).await.expect(204);
    for rest in ["", "/members", "/overrides"] {
        let problem = w.get(&format!("{path}{rest}")).await.problem();
        assert!(problem.status == 404 && problem.detail.contains("ag-1"), "{problem:?}");
    }
    w.get("/api/v1/agents/a-1").await.expect(200);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn agents_are_found_by_what_they_say_of_themselves(db: PgPool) {
    let w = World::new(db).await;
    fleet(&w).await;
    for (query, expected) in [
        ("os=linux", &["a-1", "a-2", "a-4"][..]),
        ("os=linux&architecture=AMD64", &["a-1", "a-4"]),
        ("version=3.0.0", &["a-3"]),
        ("name=a-3%20name", &["a-3"]),
        ("status=Online&os=windows", &["a-3"]),
        ("status=Offline", &[]),
    ] {
        let page = w.get(&format!("/api/v1/agents?sort=name&{query}")).await.expect(200);
        assert_eq!(ids(&page), expected, "{query}");
    }
    let page = w.get("/api/v1/agents?sort=version").await.expect(200);
    assert_eq!(ids(&page), ["a-4", "a-1", "a-3", "a-odd", "a-2"]);
    let page = w
        .get("/api/v1/agents?sort=-lastHeartbeatAt&per_page=1")
        .await
        .expect(200);
    assert_eq!(ids(&page), ["a-odd"]);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn an_agent_is_renamed_and_labelled_and_goes_when_nothing_needs_it(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], Value::Null).await;
    w.settle().await;
    let path = format!("/api/v1/agents/{}", host.id());
    let change = json!({ "name": "renamed", "tags": { "site": "north" } });
    let agent = w.put(&path, change).await.expect(200);
    assert_eq!(
        (&agent["name"], &agent["tags"]),
        (&json!("renamed"), &json!({ "site": "north" }))
    );
    w.settle().await;
    let agent = w.put(&path, json!({ "hostname": "not taken" })).await.expect(200);
    assert_eq!(
        (&agent["name"], &agent["tags"]),
        (&json!("renamed"), &json!({ "site": "north" }))
    );
    assert_ne!(agent["hostname"], "not taken");
    w.post("/api/v1/agents", json!({ "name": "other", "hostname": "h" }))
        .await
        .expect(201);
    let problem = w.put(&path, json!({ "name": "other" })).await.problem();
    assert_eq!((problem.status, problem.errors[0].field.as_str()), (409, "name"));
    let problem = w.put(&path, json!({ "tags": { "": "x" } })).await.problem();
    assert_eq!((problem.status, problem.errors[0].field.as_str()), (422, "tags"));

    // Its targets need it, and so do its open jobs.
    assert_eq!(w.delete(&path).await.problem().status, 409);
    host.set_away(true);
    w.post("/api/v1/certificates/mc-1/renew", Value::Null).await.expect(202);
    let problem = w.delete(&path).await.problem();
    assert!(
        problem.status == 409 && problem.detail.contains("is open"),
        "{problem:?}"
    );
    let job = w
        .text("SELECT id FROM jobs WHERE status NOT IN ('Completed', 'Failed', 'Cancelled')")
        .await;
    w.post(&format!("/api/v1/jobs/{job}/cancel"), Value::Null)
        .await
        .expect(200);
    w.delete("/api/v1/targets/tgt-1").await.expect(204);
    w.delete(&path).await.expect(204);
    for (method, rest) in [(Method::GET, "work"), (Method::POST, "heartbeat")] {
        let answer = w.raw(method, &format!("{path}/{rest}"), Some(&host.key()), "").await;
        assert_eq!(answer.problem().status, 401, "its key opens nothing any more");
    }
    let answer = w.raw(Method::GET, &path, Some(KEY), "").await;
    assert_eq!(answer.problem().status, 404);
    // What it did is still known, and cannot be asked of it again.
    assert_eq!(w.versions("mc-1").await.len(), 1);
    let problem = w
        .post(&format!("/api/v1/jobs/{job}/retry"), Value::Null)
        .await
        .problem();
    assert_eq!(problem.status, 409);
    let trail = format!(
        "SELECT string_agg(action, ' ' ORDER BY sequence) FROM audit_events
          WHERE resource_id = '{}' AND action LIKE '%\\_agent'",
        host.id()
    );
    assert_eq!(w.text(&trail).await, "update_agent update_agent delete_agent");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_an_agent_states_takes_it_out_of_no_rule(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], Value::Null).await;
    w.settle().await;
    let heartbeat = format!("/api/v1/agents/{}/heartbeat", host.id());
    let state = async |facts: Value| {
        let answer = w
            .raw(Method::POST, &heartbeat, Some(&host.key()), facts.to_string())
            .await;
        answer.expect(200);
    };
    let agent = format!("/api/v1/agents/{}", host.id());
    let operator = |facts: Value| w.put(&agent, facts);
    // Within the group by where it connects from; then by what an operator says.
    for (criterion, lie, outside, inside) in [
        (
            json!({ "match_ip_cidr": "127.0.0.0/8" }),
            json!({ "ip_address": "10.9.9.9" }),
            json!({ "ip_address": "10.9.9.9" }),
            json!({ "ip_address": "127.0.0.9" }),
        ),
        (
            json!({ "match_os": "linux" }),
            json!({ "os": "plan9" }),
            json!({ "os": "plan9" }),
            json!({ "os": "Linux" }),
        ),
        (
            json!({ "match_architecture": "amd64" }),
            json!({ "architecture": "mips" }),
            json!({ "architecture": "mips" }),
            json!({ "architecture": "amd64" }),
        ),
        (
            json!({ "match_version": "<90" }),
            json!({ "version": "99.0.0" }),
            json!({ "version": "99.0.0" }),
            json!({ "version": "1.0.0" }),
        ),
    ] {
        let mut group = criterion.clone();
        group["id"] = json!("ag-1");
        group["name"] = json!("one");
        w.post("/api/v1/agent-groups", group).await.expect(201);
        let rule = json!({ "id": "pol-1", "name": "no", "type": "AllowedDomains", "severity": "Critical",
                           "config": { "allow": ["example.org"] }, "agent_group_ids": ["ag-1"] });
        w.post("/api/v1/policies", rule).await.expect(201);
        let renewed = async || w.post("/api/v1/certificates/mc-1/renew", Value::Null).await.status;
        state(lie).await;
        assert_eq!(renewed().await, 409, "{criterion}: a statement of the agent");
        operator(outside).await.expect(200);
        assert_eq!(renewed().await, 202, "{criterion}: an operator puts it outside");
        w.settle().await;
        operator(inside.clone()).await.expect(200);
        assert_eq!(renewed().await, 409, "{criterion}: an operator puts it inside");
        let fact = inside.as_object().unwrap().keys().next().unwrap().clone();
        state(json!({ (fact.clone()): "9.9.9" })).await;
        let shown = w.get(&agent).await.expect(200);
        assert_eq!(
            shown[&fact], inside[&fact],
            "an agent does not replace what an operator set"
        );
        let own: Vec<&str> = shown["self_reported"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one.as_str().unwrap())
            .collect();
        assert!(!own.contains(&fact.as_str()) && own.contains(&"hostname"), "{own:?}");
        w.delete("/api/v1/policies/pol-1").await.expect(204);
        w.delete("/api/v1/agent-groups/ag-1").await.expect(204);
    }
    assert_eq!(w.get(&agent).await.expect(200)["peer_address"], "127.0.0.1");
    let problem = operator(json!({ "ip_address": "somewhere" })).await.problem();
    assert_eq!((problem.status, problem.errors[0].field.as_str()), (422, "ip_address"));
    let back = operator(json!({ "os": "" })).await.expect(200);
    assert!(
        back["self_reported"].as_array().unwrap().contains(&json!("os")),
        "{back}"
    );
    state(json!({ "os": "plan9", "ip_address": "nowhere" })).await;
    let shown = w.get(&agent).await.expect(200);
    assert_eq!(
        (&shown["os"], &shown["ip_address"]),
        (&json!("plan9"), &json!("127.0.0.9"))
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn only_the_agent_itself_sends_its_heartbeat(db: PgPool) {
    let w = World::new(db).await;
    let (host, other) = (w.host("web-1").await, w.host("web-2").await);
    let made = w
        .post("/api/v1/api-keys", json!({ "name": "eve", "role": "admin" }))
        .await
        .expect(201);
    let path = format!("/api/v1/agents/{}/heartbeat", host.id());
    for (key, status) in [
        (made["api_key"].as_str().unwrap(), 403),
        (&*other.key(), 403),
        (&*host.key(), 200),
        (KEY, 200),
    ] {
        let answer = w.raw(Method::POST, &path, Some(key), "{}").await;
        assert_eq!(answer.status, status, "{answer:?}");
    }
}
