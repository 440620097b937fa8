//! What the engine does with jobs that nobody moves, and what it tells of itself.

use std::time::Duration;

use certctl_tests::world::World;
use serde_json::{Value, json};
use sqlx::PgPool;

const HOUR: Duration = Duration::from_secs(3_600);

async fn job(w: &World, kind: &str) -> Value {
    let jobs = w
        .get(&format!("/api/v1/jobs?type={kind}&sort=-createdAt"))
        .await
        .expect(200);
    jobs["data"][0].clone()
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_job_whose_agent_sends_no_request_fails_and_is_planned_again(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    host.set_away(true);
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], json!({})).await;
    w.settle().await;
    w.clock.advance(HOUR * 24 - Duration::from_secs(1));
    w.settle().await;
    assert_eq!(job(&w, "Issuance").await["status"], "AwaitingCSR");
    w.clock.advance(Duration::from_secs(1));
    w.settle().await;
    let failed = job(&w, "Issuance").await;
    assert_eq!(
        (&failed["status"], &failed["last_error"]),
        (
            &json!("Failed"),
            &json!("its agent did not send a certification request within 1day")
        )
    );
    assert_eq!(w.status("mc-1").await, "Failed");
    let told = w.text("SELECT string_agg(DISTINCT type, ',') FROM notifications").await;
    assert_eq!(told, "AgentOffline,RenewalFailure");

    w.clock.advance(HOUR);
    w.settle().await;
    assert_eq!(job(&w, "Issuance").await["status"], "AwaitingCSR", "asked again");
    host.set_away(false);
    w.settle().await;
    assert_eq!(w.status("mc-1").await, "Active");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_deployment_waits_for_its_agent_as_long_as_it_takes_but_not_for_its_report(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], json!({})).await;
    w.settle().await;
    host.set_away(true);
    w.clock.advance(HOUR);
    w.post("/api/v1/certificates/mc-1/deploy", json!({})).await.expect(202);
    w.clock.advance(HOUR * 48);
    w.settle().await;
    let waiting = job(&w, "Deployment").await;
    assert_eq!(waiting["status"], "Pending");

    // It begins, and is not heard of again.
    let path = format!(
        "/api/v1/agents/{}/jobs/{}/status",
        host.id(),
        waiting["id"].as_str().unwrap()
    );
    w.raw(
        http::Method::POST,
        &path,
        Some(&host.key()),
        json!({ "status": "Running" }).to_string(),
    )
    .await
    .expect(200);
    w.clock.advance(HOUR - Duration::from_secs(1));
    w.settle().await;
    assert_eq!(job(&w, "Deployment").await["status"], "Running");
    w.clock.advance(Duration::from_secs(1));
    w.settle().await;
    let failed = job(&w, "Deployment").await;
    assert_eq!(
        (&failed["status"], &failed["last_error"]),
        (
            &json!("Pending"),
            &json!("its agent began to deploy and did not tell what became of it within 1h")
        )
    );
    let told = "SELECT count(*)::text FROM notifications WHERE type = 'DeploymentFailure' AND channel = 'Webhook'";
    assert_eq!(w.text(told).await, "1");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn an_issuer_is_given_no_more_than_its_budget_and_those_with_the_least_time_left_go_first(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.shared_target("tgt-1", &host).await;
    let budget = json!({ "config": { "max_per_hour": 3, "max_under_way": 2 } });
    w.put("/api/v1/issuers/iss-local", budget).await.expect(200);
    for n in 1..=8 {
        w.certificate(&format!("mc-{n}"), &["tgt-1"], Value::Null).await;
    }
    for (hour, issued) in [(0, 3), (1, 6), (2, 8)] {
        w.settle().await;
        let count = w.text("SELECT count(*)::text FROM certificate_versions").await;
        assert_eq!(count, issued.to_string(), "after {hour} hours");
        if hour == 0 {
            let waiting = w.text("SELECT min(id) FROM jobs WHERE status = 'Running'").await;
            w.sql("INSERT INTO leases (name, holder, token, until) VALUES ('scheduler', 'x', 1, 'infinity')")
                .await;
            let why = w.get(&format!("/api/v1/jobs/{waiting}/explain")).await.expect(200);
            assert_eq!(why["cause"], "BudgetUsedUp", "{why}");
        }
        w.clock.advance(Duration::from_secs(3600));
    }
    assert_eq!(
        w.text("SELECT count(*)::text FROM jobs WHERE status = 'Failed'").await,
        "0"
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn an_issuer_is_given_no_more_for_a_registered_domain_than_its_budget_and_others_do_not_wait(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.shared_target("tgt-1", &host).await;
    let budget = |most: u32| json!({ "config": { "max_per_domain": most, "domain_days": 2 } });
    w.put("/api/v1/issuers/iss-local", budget(2)).await.expect(200);
    for n in 1..=5 {
        let names = json!({ "common_name": format!("a{n}.shop.example.co.uk"), "sans": [] });
        w.certificate(&format!("mc-{n}"), &["tgt-1"], names).await;
    }
    // Public suffixes are not registered: these two share none.
    for name in ["one.co.uk", "two.co.uk"] {
        let names = json!({ "common_name": name, "sans": [format!("*.{name}")] });
        w.certificate(&format!("mc-{}", &name[..3]), &["tgt-1"], names).await;
    }
    let issued = async |within: &str| {
        let sql =
            "SELECT count(*) FILTER (WHERE certificate_id ~ '[0-9]') || ' of ' || count(*) FROM certificate_versions";
        assert_eq!(w.text(sql).await, within);
    };
    w.settle().await;
    issued("2 of 4").await;
    w.sql("INSERT INTO leases (name, holder, token, until) VALUES ('scheduler', 'x', 1, 'infinity')")
        .await;
    let waiting = w.text("SELECT min(id) FROM jobs WHERE status = 'Running'").await;
    let why = w.get(&format!("/api/v1/jobs/{waiting}/explain")).await.expect(200);
    assert_eq!(why["cause"], "BudgetUsedUp", "{why}");
    assert_eq!(
        why["summary"],
        "issuer iss-local was given as many requests for names of example.co.uk as its budget allows"
    );
    assert_eq!(why["next"]["at"], (w.clock.now() + 48 * HOUR).to_string());
    // More room is used at once.
    w.put("/api/v1/issuers/iss-local", budget(3)).await.expect(200);
    w.settle().await;
    issued("3 of 5").await;
    w.clock.advance(48 * HOUR - Duration::from_secs(1));
    w.settle().await;
    issued("3 of 5").await;
    w.clock.advance(Duration::from_secs(1));
    w.settle().await;
    issued("5 of 7").await;
    let tries = "SELECT max(attempts)::text FROM jobs WHERE type = 'Issuance'";
    assert_eq!(w.text(tries).await, "1", "to wait is not to fail");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_ends_with_its_issuer_is_told_of_and_not_renewed_until_the_issuer_has_another_certificate(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], Value::Null).await;
    w.settle().await;
    let issuer_ends = async |at: &str| {
        w.sql(&format!(
            "UPDATE authorities a SET not_after = {at} FROM certificates c WHERE c.id = 'mc-1'"
        ))
        .await;
        let told = w.get("/api/v1/renewals/forecast?days=90").await.expect(200);
        let ends = &told["issuer_ends"][0];
        (
            told["total"].clone(),
            ends["issuer_id"].clone(),
            ends["cut_short"].clone(),
            ends["doomed"].clone(),
        )
    };
    let (none, local) = (Value::Null, json!("iss-local"));
    let later = issuer_ends("c.not_after + interval '5 years'").await;
    assert_eq!(later, (json!(1), none.clone(), none.clone(), none));
    // The next one would live for thirty days more, instead of ninety.
    let soon = issuer_ends("c.not_after + interval '1 hour'").await;
    assert_eq!(soon, (json!(1), local.clone(), json!(1), json!(0)));
    let with_it = issuer_ends("c.not_after").await;
    assert_eq!(with_it, (json!(0), local, json!(0), json!(1)));

    w.clock.advance(80 * 24 * HOUR);
    w.settle().await;
    let jobs = "SELECT count(*)::text FROM jobs WHERE type = 'Renewal'";
    assert_eq!(w.text(jobs).await, "0");
    let why = w.get("/api/v1/certificates/mc-1/explain").await.expect(200);
    assert_eq!(why["cause"], "EndsWithIssuer", "{why}");
    issuer_ends("c.not_after + interval '5 years'").await;
    w.settle().await;
    assert_eq!(w.text(jobs).await, "1");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_forecast_counts_each_renewal_on_its_day_and_says_where_it_is_more_than_the_budget(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], Value::Null).await;
    w.settle().await;
    let due = w.get("/api/v1/certificates/mc-1").await.expect(200)["renew_at"].clone();
    let due = due.as_str().unwrap()[..10].to_owned();
    let told = w.get("/api/v1/renewals/forecast?days=90").await.expect(200);
    let days = told["days"].as_array().unwrap();
    assert_eq!((days.len(), &told["total"]), (90, &json!(1)));
    let on: Vec<_> = days.iter().filter(|day| day["renewals"] != 0).collect();
    assert_eq!((on.len(), &on[0]["day"]), (1, &json!(due)));
    assert_eq!(on[0]["issuers"], json!([{ "issuer_id": "iss-local", "renewals": 1 }]));
    // With certificates of a day, it comes again after two thirds of one; with a budget of one an hour, thirty are too many.
    let again = w
        .get("/api/v1/renewals/forecast?days=90&lifetime_days=47")
        .await
        .expect(200);
    assert_eq!(
        again["total"], 1,
        "sixty days and thirty-one more are not within ninety"
    );
    w.sql(
        "INSERT INTO certificates (id, name, common_name, owner_id, team_id, issuer_id, renewal_policy_id, renew_at, created_at,
                                   updated_at)
         SELECT 'mc-many-' || n, 'many-' || n, 'many.example.net', 'o-unassigned', 't-unassigned', 'iss-local', 'rp-default',
                '2027-01-20T00:00:00Z', '2027-01-01', '2027-01-01' FROM generate_series(1, 30) n",
    )
    .await;
    let many = w
        .get("/api/v1/renewals/forecast?days=90&lifetime_days=47")
        .await
        .expect(200);
    assert_eq!((&many["total"], &many["peak"]), (&json!(30 * 3 + 1), &json!(30)));
    assert_eq!(many["breaks"], json!([]));
    w.put("/api/v1/issuers/iss-local", json!({ "config": { "max_per_hour": 1 } }))
        .await
        .expect(200);
    let broken = w
        .get("/api/v1/renewals/forecast?days=40&lifetime_days=47")
        .await
        .expect(200);
    let first = json!({ "issuer_id": "iss-local", "day": "2027-01-20", "renewals": 30, "budget": 24 });
    assert_eq!(broken["breaks"][0], first, "{broken}");
    for (query, status) in [
        ("days=0", 422),
        ("days=367", 422),
        ("lifetime_days=0", 422),
        ("days=x", 400),
    ] {
        let path = format!("/api/v1/renewals/forecast?{query}");
        assert_eq!(w.get(&path).await.problem().status, status, "{query}");
    }
}
