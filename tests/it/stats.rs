//! Figures: counts that are kept agree with counting, and charts have a value for each day.

use std::time::Duration;

use certctl_store::tallies;
use certctl_tests::world::World;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};

/// Where the tallies and a recount differ; empty when they agree.
async fn differences(w: &World) -> String {
    w.text(
        "WITH counted AS (
             SELECT 'certificate' AS subject, '' AS kind, status, utc_day(not_after) AS day, count(*) AS n
               FROM certificates GROUP BY 3, 4
             UNION ALL SELECT 'job', type, status, utc_day(finished_at), count(*) FROM jobs GROUP BY 2, 3, 4
             UNION ALL SELECT 'version', '', '', utc_day(created_at), count(*) FROM certificate_versions GROUP BY 4
         ), tallied AS (
             SELECT subject, kind, status, day, sum(delta) AS n FROM tallies GROUP BY 1, 2, 3, 4 HAVING sum(delta) <> 0
         )
         SELECT coalesce(string_agg(d::text, E'\n'), '') FROM (
             (SELECT 'tallied', * FROM tallied EXCEPT ALL SELECT 'tallied', * FROM counted)
             UNION ALL (SELECT 'counted', * FROM counted EXCEPT ALL SELECT 'counted', * FROM tallied)) d",
    )
    .await
}

async fn open_issuances_are_right(w: &World) {
    let wrong = w
        .text(
            "SELECT count(*)::text FROM certificates c
              WHERE open_issuances <> (SELECT count(*) FROM jobs j
                                        WHERE j.certificate_id = c.id AND j.type IN ('Issuance', 'Renewal')
                                          AND j.status NOT IN ('Completed', 'Failed', 'Cancelled')
                                          AND (j.status <> 'Pending' OR j.requested_by IS NOT NULL))",
        )
        .await;
    assert_eq!(wrong, "0");
}

async fn certificates(w: &World, count: u32) {
    w.sql(&format!(
        "INSERT INTO certificates (id, name, common_name, owner_id, team_id, issuer_id, renewal_policy_id, created_at,
                                   updated_at)
         SELECT 'mc-' || n, 'mc-' || n, 'host-' || n || '.example.net', 'o-unassigned', 't-unassigned', 'iss-local',
                'rp-default', to_timestamp(1800000000), to_timestamp(1800000000)
           FROM generate_series(1, {count}) n"
    ))
    .await;
}

/// Issues a version that is valid for these days from then on, without anybody signing it.
fn issue(id: &str, version: &str, from: &str, days: i64) -> String {
    format!(
        "WITH v AS (
             INSERT INTO certificate_versions (id, certificate_id, job_id, issuer_id, version, serial_number, not_before,
                 not_after, fingerprint_sha256, spki_sha256, cert_pem, chain_pem, csr_der, key_algorithm, key_size, created_at)
             SELECT '{id}-{version}', '{id}', 'job-{id}-{version}', 'iss-local',
                    1 + (SELECT count(*) FROM certificate_versions WHERE certificate_id = '{id}'),
                    'ab' || left(encode(sha256('{id}{version}'), 'hex'), 38), {from}, {from} + interval '{days} days',
                    encode(sha256('{id}{version}'), 'hex'), '', '', '', '', 'ECDSA', 256, {from}
             RETURNING 1)
         UPDATE certificates SET current_version_id = '{id}-{version}', not_before = {from},
                not_after = {from} + interval '{days} days' WHERE id = '{id}' AND EXISTS (SELECT 1 FROM v)"
    )
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn tallies_are_what_counting_gives_after_any_change(db: PgPool) {
    let w = World::new(db).await;
    certificates(&w, 40).await;
    // A generator of our own, so that a failure comes again.
    let mut state = 7_u64;
    let mut random = |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for step in 0..300_u32 {
        let id = format!("mc-{}", 1 + random(40));
        let at = format!("to_timestamp({})", 1_800_000_000 + random(200 * 86_400));
        let sql = match random(9) {
            0 => issue(&id, &step.to_string(), &at, 1 + i64::try_from(random(90)).unwrap()),
            1 => format!(
                "INSERT INTO jobs (id, type, certificate_id, agent_id, status, run_at, created_at)
                 VALUES ('j-{step}', 'Renewal', '{id}', NULL, 'Pending', {at}, {at}) ON CONFLICT DO NOTHING"
            ),
            2 => format!(
                "UPDATE jobs SET status = 'Failed', reason = 'x', finished_at = {at} WHERE certificate_id = '{id}'"
            ),
            3 => format!(
                "UPDATE jobs SET status = 'Cancelled', reason = 'x', finished_at = {at} WHERE status = 'Pending'"
            ),
            4 => format!("UPDATE certificates SET archived_at = {at} WHERE id = '{id}'"),
            5 => "UPDATE certificates SET archived_at = NULL".to_owned(),
            6 => {
                format!("UPDATE certificates SET failed_at = {at}, failure = 'x', updated_at = {at} WHERE id = '{id}'")
            }
            7 => format!("DELETE FROM jobs WHERE certificate_id = '{id}'"),
            _ => {
                w.clock.advance(Duration::from_secs(random(5 * 86_400)));
                tallies::settle(&w.db, w.clock.now()).await.unwrap();
                tallies::compact(&w.db).await.unwrap();
                let late = w
                    .text(&format!(
                        "SELECT coalesce(string_agg(id || status || certificate_status(c, '{0}'), ' '), '')
                           FROM certificates c WHERE status <> certificate_status(c, greatest('{0}', status_at))",
                        w.clock.now()
                    ))
                    .await;
                assert_eq!(late, "", "what is settled is what the facts say");
                continue;
            }
        };
        w.sql(&sql).await;
        if step % 10 == 0 {
            assert_eq!(differences(&w).await, "", "after step {step}: {sql}");
            open_issuances_are_right(&w).await;
        }
    }
    tallies::compact(&w.db).await.unwrap();
    assert_eq!(differences(&w).await, "");
    let again = w
        .text("SELECT (count(*) - count(DISTINCT (subject, kind, status, day)))::text FROM tallies")
        .await;
    assert_eq!(again, "0", "what is compacted is there once");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn tallies_are_right_after_many_writers_and_two_who_sum_up(db: PgPool) {
    let w = World::new(db).await;
    certificates(&w, 30).await;
    let writer = |n: u32| {
        let db = w.db.clone();
        async move {
            for step in 0..20_u32 {
                let id = format!("mc-{}", 1 + (n * 7 + step) % 30);
                let open = format!(
                    "INSERT INTO jobs (id, type, certificate_id, status, run_at, created_at)
                     SELECT 'j-{n}-{step}', 'Renewal', id, 'Pending', now(), now() FROM certificates WHERE id = '{id}'
                        FOR UPDATE ON CONFLICT DO NOTHING"
                );
                let close = format!(
                    "UPDATE jobs SET status = 'Failed', reason = 'x', finished_at = now()
                      WHERE id IN (SELECT j.id FROM jobs j JOIN certificates c ON c.id = j.certificate_id
                                    WHERE j.id = 'j-{n}-{step}' FOR UPDATE OF c)"
                );
                for sql in [open, close] {
                    sqlx::query(AssertSqlSafe(sql)).execute(&db).await.unwrap();
                }
            }
        }
    };
    let summing = async || {
        for _ in 0..15 {
            tallies::compact(&w.db).await.unwrap();
        }
    };
    tokio::join!(writer(0), writer(1), writer(2), writer(3), summing(), summing());
    assert_eq!(differences(&w).await, "");
    open_issuances_are_right(&w).await;
}

fn dates(chart: &Value) -> Vec<&str> {
    let days = chart.as_array().unwrap().iter();
    days.map(|day| day["date"].as_str().unwrap()).collect()
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn charts_have_every_day_and_count_what_happened_on_it(db: PgPool) {
    let w = World::new(db).await;
    // The world begins on 15 January 2027 at 08:00 UTC.
    certificates(&w, 6).await;
    for (id, from, days) in [
        ("mc-1", "'2026-10-17Z'::timestamptz", 90),       // ended today, at midnight
        ("mc-2", "'2026-10-17T12:00Z'::timestamptz", 90), // ends today
        ("mc-3", "'2026-12-01Z'::timestamptz", 90),       // ends on 1 March
        ("mc-4", "'2026-12-01Z'::timestamptz", 90),
        ("mc-5", "'2027-01-14Z'::timestamptz", 20),
    ] {
        w.sql(&issue(id, "1", from, days)).await;
    }
    w.sql("UPDATE certificates SET revoked_at = '2027-01-14Z', revocation_reason = 'superseded' WHERE id = 'mc-4'")
        .await;
    for (id, status, at) in [
        ("a", "Completed", "2027-01-14T23:59:59Z"),
        ("b", "Completed", "2027-01-15Z"),
        ("c", "Failed", "2027-01-15Z"),
    ] {
        let reason = if status == "Failed" { "'x'" } else { "NULL" };
        w.sql(&format!(
            "INSERT INTO jobs (id, type, certificate_id, status, reason, csr_der, run_at, created_at, finished_at)
             VALUES ('{id}', 'Renewal', 'mc-1', '{status}', {reason}, '', '{at}', '{at}', '{at}')"
        ))
        .await;
    }

    let timeline = w.get("/api/v1/stats/expiration-timeline?days=90").await.expect(200);
    assert_eq!(
        (dates(&timeline).len(), dates(&timeline)[0], dates(&timeline)[89]),
        (90, "2027-01-15", "2027-04-14")
    );
    assert_eq!(
        timeline[0],
        json!({ "date": "2027-01-15", "count": 1, "by_status": { "Expiring": 1 } })
    );
    assert_eq!(
        timeline[1],
        json!({ "date": "2027-01-16", "count": 0, "by_status": {} })
    );
    assert_eq!(
        timeline[45],
        json!({ "date": "2027-03-01", "count": 1, "by_status": { "Active": 1 } })
    );

    let trends = w.get("/api/v1/stats/job-trends?days=2").await.expect(200);
    assert_eq!(
        trends,
        json!([
            { "date": "2027-01-14", "completed_count": 1, "failed_count": 0, "success_rate": 100.0 },
            { "date": "2027-01-15", "completed_count": 1, "failed_count": 1, "success_rate": 50.0 },
        ])
    );
    let rate = w.get("/api/v1/stats/issuance-rate").await.expect(200);
    assert_eq!((dates(&rate).len(), dates(&rate)[29]), (30, "2027-01-15"));
    assert_eq!(
        (&rate[28]["issued_count"], &rate[29]["issued_count"]),
        (&json!(1), &json!(0))
    );

    let statuses = w.get("/api/v1/stats/certificates-by-status").await.expect(200);
    let count = |status: &str| {
        let all = statuses.as_array().unwrap();
        all.iter().find(|one| one["status"] == status).unwrap()["count"].clone()
    };
    assert_eq!(statuses.as_array().unwrap().len(), 8);
    assert_eq!(
        [
            "Pending",
            "Active",
            "Expiring",
            "Expired",
            "RenewalInProgress",
            "Failed",
            "Revoked",
            "Archived"
        ]
        .map(count),
        [1, 2, 1, 1, 0, 0, 1, 0].map(|n| json!(n))
    );
    let summary = w.get("/api/v1/stats/summary").await.expect(200);
    let figures =
        ["total", "expiring", "expired", "revoked"].map(|what| summary[format!("{what}_certificates")].clone());
    assert_eq!(figures, [6, 2, 1, 1].map(|n| json!(n)));
    assert_eq!(
        (&summary["complete_jobs"], &summary["failed_jobs"]),
        (&json!(2), &json!(1))
    );
    let metrics = w.get("/api/v1/metrics").await.expect(200);
    assert_eq!(metrics["gauge"]["certificate_active"], 1);
    assert_eq!(metrics["gauge"]["certificate_by_status"]["Archived"], 0);
    assert_eq!(
        metrics["counter"],
        json!({ "job_completed_total": 2, "job_failed_total": 1, "issuance_total": 5, "renewal_total": 2 })
    );

    for days in ["0", "366", "-1", "x"] {
        for chart in ["expiration-timeline", "job-trends", "issuance-rate"] {
            let problem = w.get(&format!("/api/v1/stats/{chart}?days={days}")).await.problem();
            assert_eq!((problem.status, problem.errors[0].field.as_str()), (400, "days"));
        }
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn lists_by_status_are_right_at_any_time_though_nothing_runs(db: PgPool) {
    let w = World::new(db).await;
    certificates(&w, 3).await;
    w.sql(&issue("mc-1", "1", "to_timestamp(1800000000)", 90)).await;
    for (days, status) in [
        (0, "Active"),
        (59, "Active"),
        (2, "Expiring"),
        (28, "Expiring"),
        (1, "Expired"),
    ] {
        w.clock.advance(Duration::from_secs(days * 86_400));
        for query in [format!("status={status}"), format!("status={status}&sort=-status")] {
            let page = w.get(&format!("/api/v1/certificates?{query}")).await.expect(200);
            assert_eq!(
                (&page["total"], &page["data"][0]["id"]),
                (&json!(1), &json!("mc-1")),
                "{query}"
            );
            assert_eq!(page["data"][0]["status"], status);
        }
        let order = w.get("/api/v1/certificates?sort=status").await.expect(200);
        assert_eq!(order["data"][0]["id"], "mc-1", "before Pending: {status}");
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_search_finds_names_in_any_case_and_serials_in_any_spelling(db: PgPool) {
    let w = World::new(db).await;
    certificates(&w, 12).await;
    w.sql("UPDATE certificates SET name = 'Payments_EU', sans = '{alt.example.org}' WHERE id = 'mc-2'")
        .await;
    w.sql(&issue("mc-3", "1", "to_timestamp(1790000000)", 90)).await;
    w.sql(&issue("mc-3", "2", "to_timestamp(1800000000)", 90)).await;
    let old = w
        .text("SELECT serial_number FROM certificate_versions WHERE id = 'mc-3-1'")
        .await;
    let print = w
        .text("SELECT fingerprint_sha256 FROM certificate_versions WHERE id = 'mc-3-1'")
        .await;
    let spelled = format!("0x00{}", old[..10].to_uppercase());
    let colons = format!("{}:{}:{}", &old[..2], &old[2..4], &old[4..8]);
    for (q, found) in [
        ("payments_", vec!["mc-2"]),
        ("PAYMENTS%25", vec![]),
        ("nts_eu", vec!["mc-2"]),
        ("ntsxeu", vec![]),
        ("ALT.example", vec!["mc-2"]),
        ("host-11.", vec!["mc-11"]),
        (&old, vec!["mc-3"]),
        (&old[..12], vec!["mc-3"]),
        (&spelled, vec!["mc-3"]),
        (&colons, vec!["mc-3"]),
        (&print[..16], vec!["mc-3"]),
        (
            "example.net",
            vec![
                "mc-1", "mc-10", "mc-11", "mc-12", "mc-2", "mc-3", "mc-4", "mc-5", "mc-6", "mc-7", "mc-8", "mc-9",
            ],
        ),
    ] {
        let page = w.get(&format!("/api/v1/certificates?q={q}")).await.expect(200);
        let rows = page["data"].as_array().unwrap().iter();
        let mut ids: Vec<&str> = rows.map(|row| row["id"].as_str().unwrap()).collect();
        ids.sort_unstable();
        assert_eq!((&page["total"], ids), (&json!(found.len()), found), "{q}");
    }
    let page = w
        .get("/api/v1/certificates?q=example&sort=name&page_size=5")
        .await
        .expect(200);
    let next = page["next_cursor"].as_str().unwrap();
    let page = w
        .get(&format!(
            "/api/v1/certificates?q=example&sort=name&page_size=5&cursor={next}"
        ))
        .await
        .expect(200);
    assert_eq!((&page["total"], &page["data"][0]["id"]), (&json!(12), &json!("mc-3")));
    assert_eq!(w.get("/api/v1/certificates?q=ab").await.problem().errors[0].field, "q");
    w.sql("DELETE FROM certificates WHERE id = 'mc-2'").await;
    assert_eq!(w.get("/api/v1/certificates?q=payments").await.expect(200)["total"], 0);
}
