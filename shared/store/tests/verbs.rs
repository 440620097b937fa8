//! The verbs on a real Postgres: what is lost in a race, and what is refused.

use std::{collections::HashMap, slice, time::Duration};

use certctl_model::{
    audit::Actor,
    id::{CertificateId, JobId},
    job::{AwaitingCsr, Job, JobKind, JobStatus, Pending, Running},
    key::KeyFacts,
    notice::Channel,
    revocation::RevocationReason,
    time::{Clock, Time},
};
use certctl_store::{
    Error, Tx, agents,
    certificates::{self, NewVersion},
    freezes::Holds,
    jobs::{self, Claimed},
    lease,
    ledger::{self, Entry},
    loops::{Board, Run},
    outbox::{self, Settlement},
    planning, revocations,
};
use sqlx::PgPool;

const LEASE: Duration = Duration::from_secs(30);

fn now() -> Time {
    Time::from_unix(1_800_000_000)
}

async fn tx(db: &PgPool) -> Tx {
    Tx::begin(db, &Actor::system(), now()).await.unwrap()
}

/// An agent with a target, and a certificate mapped to it whose issuance is Pending.
async fn world(db: &PgPool) -> (CertificateId, JobId) {
    for sql in [
        "INSERT INTO agents (id, name, hostname, api_key_hash, registered_at, updated_at, last_heartbeat_at)
         VALUES ('a-1', 'one', 'host', 'x', '2027-01-01Z', '2027-01-01Z', '2027-01-01Z')",
        "INSERT INTO targets (id, name, type, agent_id, created_at, updated_at)
         VALUES ('tgt-1', 'web', 'NGINX', 'a-1', '2027-01-01Z', '2027-01-01Z')",
        "UPDATE owners SET email = 'ops@example.com' WHERE id = 'o-unassigned'",
        "INSERT INTO certificates (id, name, common_name, owner_id, team_id, issuer_id, renewal_policy_id, created_at,
                                   updated_at)
         VALUES ('mc-1', 'one', 'one.example.com', 'o-unassigned', 't-unassigned', 'iss-local', 'rp-default',
                 '2027-01-01Z', '2027-01-01Z')",
        "INSERT INTO certificate_targets VALUES ('mc-1', 'tgt-1')",
    ] {
        sqlx::query(sql).execute(db).await.unwrap();
    }
    let id: CertificateId = "mc-1".parse().unwrap();
    let mut tx = tx(db).await;
    let certificate = certificates::lock(&mut tx, &id).await.unwrap();
    let jobs = certificates::request_issuance(&mut tx, &certificate, JobKind::Issuance)
        .await
        .unwrap();
    assert_eq!(jobs.len(), 1);
    assert!(
        certificates::request_issuance(&mut tx, &certificate, JobKind::Renewal)
            .await
            .unwrap()
            .is_empty()
    );
    tx.commit().await.unwrap();
    (id, jobs.into_iter().next().unwrap())
}

async fn to_running(db: &PgPool, id: &JobId) {
    let by = Actor::system();
    let mut tx = tx(db).await;
    let job = jobs::lock::<Pending>(&mut tx, id).await.unwrap();
    let job: Job<AwaitingCsr> = jobs::apply(&mut tx, job.await_csr(&by)).await.unwrap();
    jobs::keep_request(&mut tx, id, b"request").await.unwrap();
    jobs::apply(&mut tx, job.csr_accepted(&by)).await.unwrap();
    tx.commit().await.unwrap();
}

fn version(serial: &str) -> NewVersion {
    NewVersion {
        issuer: "iss-local".parse().unwrap(),
        serial: serial.parse().unwrap(),
        not_before: now(),
        not_after: now() + Duration::from_secs(90 * 86_400),
        fingerprint: format!("f{serial}"),
        spki_sha256: "s".into(),
        key: KeyFacts::P256,
        cert_pem: "cert".into(),
        chain_pem: "chain".into(),
        csr_der: b"request".to_vec(),
    }
}

async fn claimed(db: &PgPool, at: Time) -> Vec<Claimed> {
    jobs::claim(db, at, LEASE, 10, 10, &HashMap::new()).await.unwrap()
}

/// Records what was issued in a unit of work of its own.
async fn record(db: &PgPool, issued: &[(Claimed, NewVersion)]) -> Result<Vec<JobId>, Error> {
    let mut tx = tx(db).await;
    let recorded = certificates::record(&mut tx, issued).await?;
    match recorded.is_empty() {
        true => Ok(recorded),
        false => tx.commit().await.map(|()| recorded),
    }
}

async fn text(db: &PgPool, sql: &'static str) -> String {
    sqlx::query_scalar(sql).fetch_one(db).await.unwrap()
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_change_without_an_event_is_not_committed(db: PgPool) {
    let mut tx = tx(&db).await;
    sqlx::query("UPDATE teams SET name = 'x'")
        .execute(&mut *tx)
        .await
        .unwrap();
    assert!(matches!(tx.commit().await, Err(Error::Silent)));
    assert_eq!(text(&db, "SELECT name FROM teams").await, "Unassigned");
}

#[sqlx::test(migrations = "../../migrations")]
async fn of_two_workers_one_claims_a_job_until_its_lease_ends(db: PgPool) {
    let (_, id) = world(&db).await;
    let (a, b) = tokio::join!(claimed(&db, now()), claimed(&db, now()));
    assert_eq!(a.len() + b.len(), 1);
    let first = a.into_iter().chain(b).next().unwrap();
    assert_eq!(first.facts.id, id);
    assert!(claimed(&db, now() + LEASE / 2).await.is_empty());

    let second = claimed(&db, now() + LEASE).await.remove(0);
    assert!(second.token > first.token);
    let mut tx = tx(&db).await;
    let late = jobs::hold::<Pending>(&mut tx, slice::from_ref(&first)).await.unwrap();
    assert!(late.is_empty(), "the first holder slept through its lease");
    let held = jobs::hold::<Pending>(&mut tx, slice::from_ref(&second)).await.unwrap();
    assert_eq!(held[0].facts.id, id);
    assert!(matches!(
        jobs::put_back(&db, &first, now(), "late", true).await,
        Err(Error::LeaseLost)
    ));
}

#[sqlx::test(migrations = "../../migrations")]
async fn every_issuer_has_its_turn_and_of_its_jobs_those_with_the_least_time_left(db: PgPool) {
    for sql in [
        "INSERT INTO issuers (id, name, type, created_at, updated_at) VALUES ('iss-2', 'two', 'local', now(), now())",
        // Of the first issuer thirty, the last of which ends first; of the second two, of which one has no certificate yet.
        "INSERT INTO certificates (id, name, common_name, owner_id, team_id, issuer_id, renewal_policy_id, created_at,
                                   updated_at)
         SELECT 'mc-' || n, 'c' || n, 'c.example.com', 'o-unassigned', 't-unassigned',
                CASE WHEN n > 30 THEN 'iss-2' ELSE 'iss-local' END, 'rp-default', '2027-01-01Z', '2027-01-01Z'
           FROM generate_series(1, 32) n",
        "INSERT INTO certificate_versions (id, certificate_id, job_id, issuer_id, version, serial_number, not_before,
                                           not_after, fingerprint_sha256, spki_sha256, cert_pem, chain_pem, csr_der,
                                           key_algorithm, key_size, created_at)
         SELECT 'cv-' || n, 'mc-' || n, 'j-old-' || n, 'iss-local', 1, to_hex(n), '2027-01-01Z',
                timestamptz '2027-02-01Z' - n * interval '1 hour', n, '', '', '', '', 'ECDSA', 256, '2027-01-01Z'
           FROM generate_series(1, 31) n",
        "UPDATE certificates c SET current_version_id = v.id, not_before = v.not_before, not_after = v.not_after
           FROM certificate_versions v WHERE v.certificate_id = c.id",
        "INSERT INTO jobs (id, type, certificate_id, status, csr_der, run_at, created_at)
         SELECT 'j-' || n, 'Renewal', 'mc-' || n, 'Running', '', '2027-01-14Z', '2027-01-14Z'
           FROM generate_series(1, 32) n",
    ] {
        sqlx::query(sql).execute(&db).await.unwrap();
    }
    let claim = async |busy: &[(&str, i64)]| {
        let busy = busy.iter().map(|(issuer, jobs)| (issuer.parse().unwrap(), *jobs));
        let claimed = jobs::claim(&db, now(), LEASE, 10, 12, &busy.collect()).await.unwrap();
        let mut ids: Vec<String> = claimed.iter().map(|one| one.facts.id.to_string()).collect();
        ids.sort();
        ids.join(" ")
    };
    assert_eq!(claim(&[]).await, "j-26 j-27 j-28 j-29 j-30 j-31 j-32");
    // Alone it has the whole turn, as far as it has room.
    assert_eq!(claim(&[("iss-local", 9)]).await, "j-23 j-24 j-25");
    assert_eq!(claim(&[("iss-local", 12)]).await, "");
    // Who issues from now on has the turn.
    sqlx::query("UPDATE certificates SET issuer_id = 'iss-2' WHERE id = 'mc-1'")
        .execute(&db)
        .await
        .unwrap();
    assert_eq!(claim(&[("iss-local", 12)]).await, "j-1");
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_job_moves_along_its_edges_only(db: PgPool) {
    let (_, id) = world(&db).await;
    let mut tx = tx(&db).await;
    let wrong = jobs::lock::<Running>(&mut tx, &id).await.unwrap_err();
    assert_eq!(wrong.to_string(), format!("job {id} is Pending; this needs Running"));
    let missing = jobs::lock::<Running>(&mut tx, &"j-none".parse().unwrap())
        .await
        .unwrap_err();
    assert!(matches!(missing, Error::Missing { kind: "job", .. }));
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_recorded_version_plans_the_renewal_and_the_deployment_and_is_recorded_once(db: PgPool) {
    let (id, job) = world(&db).await;
    to_running(&db, &job).await;
    let claim = claimed(&db, now()).await.remove(0);
    assert_eq!(
        (claim.status, claim.csr_der.as_deref()),
        (JobStatus::Running, Some(&b"request"[..]))
    );
    let issued = [(claim, version("a1"))];
    assert_eq!(record(&db, &issued).await.unwrap(), slice::from_ref(&job));
    assert_eq!(record(&db, &issued).await.unwrap(), [], "it is not running any more");
    // And if it were, by a mistake of ours: a job has one version.
    let again = "UPDATE jobs SET status = 'Running', finished_at = NULL WHERE type = 'Issuance'";
    sqlx::query(again).execute(&db).await.unwrap();
    match record(&db, &issued).await {
        Err(Error::Taken { constraint }) => assert!(constraint.starts_with("certificate_versions"), "{constraint}"),
        other => panic!("{other:?}"),
    }
    let done = "UPDATE jobs SET status = 'Completed', finished_at = now() WHERE type = 'Issuance'";
    sqlx::query(done).execute(&db).await.unwrap();
    assert_eq!(
        text(
            &db,
            "SELECT string_agg(type || ' ' || status, ', ' ORDER BY created_at, type DESC) FROM jobs"
        )
        .await,
        "Issuance Completed, Deployment Pending"
    );
    assert_eq!(
        text(&db, "SELECT certificate_status(c, '2027-01-20Z') FROM certificates c").await,
        "Active"
    );
    assert!(
        planning::due(&db, now(), &Holds::default(), None, 10)
            .await
            .unwrap()
            .is_empty()
    );
    let later = now() + Duration::from_secs(64 * 86_400);
    let due = planning::due(&db, later, &Holds::default(), None, 10).await.unwrap();
    assert_eq!(due.iter().map(|one| &one.id).collect::<Vec<_>>(), [&id]);
    assert!(
        planning::due(&db, later, &Holds::default(), due.last(), 10)
            .await
            .unwrap()
            .is_empty()
    );
}

#[sqlx::test(migrations = "../../migrations")]
async fn what_was_revoked_while_it_was_signed_is_recorded_as_revoked(db: PgPool) {
    let (id, job) = world(&db).await;
    to_running(&db, &job).await;
    let claim = claimed(&db, now()).await.remove(0);
    assert_eq!(record(&db, &[(claim, version("a1"))]).await.unwrap(), [job]);

    let mut renewal = tx(&db).await;
    let certificate = certificates::lock(&mut renewal, &id).await.unwrap();
    let next = certificates::request_issuance(&mut renewal, &certificate, JobKind::Renewal)
        .await
        .unwrap()
        .remove(0);
    renewal.commit().await.unwrap();
    to_running(&db, &next).await;
    let claim = claimed(&db, now()).await.remove(0);

    let mut revocation = tx(&db).await;
    let serials = revocations::revoke(&mut revocation, &id, RevocationReason::KeyCompromise.into())
        .await
        .unwrap();
    assert_eq!(serials, ["a1".parse().unwrap()]);
    revocation.commit().await.unwrap();

    assert_eq!(record(&db, &[(claim, version("a2"))]).await.unwrap(), [next]);
    assert_eq!(
        text(
            &db,
            "SELECT string_agg(serial_number, ',' ORDER BY serial_number) FROM revocations"
        )
        .await,
        "a1,a2"
    );
    assert_eq!(
        text(&db, "SELECT certificate_status(c, now()) FROM certificates c").await,
        "Revoked"
    );

    let mut again = tx(&db).await;
    let refused = revocations::revoke(&mut again, &id, RevocationReason::Superseded.into())
        .await
        .unwrap_err();
    assert_eq!(refused.to_string(), "certificate mc-1 is revoked; request a new one");
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_job_has_one_ledger_entry_and_one_signature(db: PgPool) {
    let entry = |serial: &str, tbs: u8| Entry {
        issuer_id: "iss-local".parse().unwrap(),
        serial_number: serial.parse().unwrap(),
        job_id: "j-1".into(),
        tbs_der: vec![tbs],
        der: None,
        not_after: now(),
        short_lived: false,
        shard: 0,
    };
    let (one, two) = (entry("1", 1), entry("2", 2));
    let (a, b) = tokio::join!(ledger::record(&db, &one, now()), ledger::record(&db, &two, now()));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!((&a.serial_number, &a.tbs_der), (&b.serial_number, &b.tbs_der));
    let mut conn = db.acquire().await.unwrap();
    let unsigned = revocations::statuses(&mut conn, &a.issuer_id, std::slice::from_ref(&a.serial_number))
        .await
        .unwrap();
    assert_eq!(unsigned, [revocations::Status::Unknown], "recorded, not signed");
    assert_eq!(
        ledger::sign(&db, &a.issuer_id, &a.serial_number, b"first")
            .await
            .unwrap(),
        b"first"
    );
    assert_eq!(
        ledger::sign(&db, &a.issuer_id, &a.serial_number, b"second")
            .await
            .unwrap(),
        b"first"
    );
    let signed = revocations::statuses(&mut conn, &a.issuer_id, std::slice::from_ref(&a.serial_number))
        .await
        .unwrap();
    assert_eq!(signed, [revocations::Status::Good]);
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_lease_has_one_holder_and_its_token_grows_with_each(db: PgPool) {
    let take = |holder: &'static str, at| lease::acquire(&db, "crls", holder, at, LEASE);
    assert_eq!(take("a", now()).await.unwrap(), Some(1));
    assert_eq!(take("a", now()).await.unwrap(), Some(1));
    assert_eq!(take("b", now()).await.unwrap(), None);
    let later = now() + LEASE + Duration::from_secs(1);
    let (b, c) = tokio::join!(take("b", later), take("c", later));
    assert_eq!([b.unwrap(), c.unwrap()].into_iter().flatten().collect::<Vec<_>>(), [2]);
}

#[sqlx::test(migrations = "../../migrations")]
async fn who_slept_while_another_took_the_lease_commits_nothing(db: PgPool) {
    let take = |holder: &'static str, at| lease::acquire(&db, "scheduler", holder, at, LEASE);
    let token = take("a", now()).await.unwrap().unwrap();
    let mut slow = tx(&db).await;
    lease::fence(&mut slow, "scheduler", token).await.unwrap();
    // Another waits for what is under way, and what begins later is refused.
    let later = now() + LEASE + Duration::from_secs(1);
    let taken = take("b", later);
    let commit = async {
        let event = slow.event("test", "team", "t-1");
        slow.note(event);
        slow.commit().await
    };
    let (taken, committed) = tokio::join!(taken, commit);
    committed.unwrap();
    assert_eq!(taken.unwrap(), Some(token + 1));
    let mut late = tx(&db).await;
    let refused = lease::fence(&mut late, "scheduler", token).await;
    assert!(matches!(refused, Err(Error::LeaseLost)), "{refused:?}");
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_loop_that_rests_for_long_stays_on_the_board_of_a_process_that_is_there(db: PgPool) {
    let run = |ended| Run {
        name: "slow",
        every: Duration::from_secs(7_200),
        outcome: "ok",
        error: None,
        done: 0,
        took: Duration::from_millis(5),
        ended,
        rests: Duration::from_secs(7_200),
    };
    let (there, gone) = (
        Board::new("scheduler", "there".to_owned()),
        Board::new("scheduler", "gone".to_owned()),
    );
    for board in [&there, &gone] {
        board.note(run(now()));
        board.write(&db, now()).await.unwrap();
    }
    for minutes in [40, 80] {
        there
            .write(&db, now() + Duration::from_secs(minutes * 60))
            .await
            .unwrap();
    }
    let left = "SELECT string_agg(holder || ' ' || runs, ',') FROM loop_runs";
    assert_eq!(text(&db, left).await, "there 1");
}

#[sqlx::test(migrations = "../../migrations")]
async fn news_is_enqueued_once_claimed_once_and_settled_by_its_holder(db: PgPool) {
    let (id, job) = world(&db).await;
    for _ in 0..2 {
        let mut tx = tx(&db).await;
        let facts = jobs::lock_any(&mut tx, &job).await.unwrap().0;
        certificates::note_failure(&mut tx, &facts, "no").await.unwrap();
        let event = tx.event("test", "certificate", &id);
        tx.note(event);
        tx.commit().await.unwrap();
    }
    let claim = |channel, at| outbox::claim(&db, channel, at, LEASE, 10);
    let mut claimed = vec![];
    for (channel, recipient) in [(Channel::Email, "ops@example.com"), (Channel::Webhook, "webhook")] {
        let (a, b) = tokio::join!(claim(channel, now()), claim(channel, now()));
        let both = [a.unwrap(), b.unwrap()].concat();
        let recipients: Vec<_> = both.iter().map(|n| n.recipient.as_str()).collect();
        assert_eq!(recipients, [recipient]);
        claimed.extend(both);
    }
    let mut again = vec![];
    for channel in [Channel::Email, Channel::Webhook] {
        again.extend(claim(channel, now() + LEASE).await.unwrap());
    }
    assert_eq!(again.len(), 2);
    assert!(matches!(
        outbox::settle(&db, &claimed[0], &Settlement::Sent, now()).await,
        Err(Error::LeaseLost)
    ));
    for notice in &again {
        outbox::settle(&db, notice, &Settlement::Sent, now()).await.unwrap();
    }
    for channel in [Channel::Email, Channel::Webhook] {
        assert!(claim(channel, now() + LEASE * 3).await.unwrap().is_empty());
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_silent_agent_goes_offline_once_and_returns_with_its_next_heartbeat(db: PgPool) {
    world(&db).await;
    let system = Actor::system();
    let silent = || agents::mark_silent(&db, &system, now(), Duration::from_secs(180));
    assert_eq!((silent().await.unwrap(), silent().await.unwrap()), (1, 0));
    let id = "a-1".parse().unwrap();
    agents::heartbeat(&db, &id, &Default::default(), now()).await.unwrap();
    assert_eq!(silent().await.unwrap(), 0);
    assert_eq!(
        text(&db, "SELECT action FROM audit_events WHERE resource_id = 'a-1'").await,
        "agent_offline"
    );
    assert_eq!(
        text(
            &db,
            "SELECT string_agg(concat_ws(' ', type, channel, subject), ', ') FROM notifications"
        )
        .await,
        "AgentOffline Webhook Agent one is offline"
    );
    let nobody = agents::heartbeat(&db, &"a-2".parse().unwrap(), &Default::default(), now()).await;
    assert!(matches!(nobody, Err(Error::Missing { kind: "agent", .. })));
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_unit_of_work_that_is_cut_off_while_it_begins_leaves_no_transaction_behind(db: PgPool) {
    let options = (*db.connect_options()).clone();
    let one = sqlx::postgres::PgPoolOptions::new()
        .max_connections(1)
        .connect_with(options)
        .await
        .unwrap();
    for micros in 0..300 {
        let cut = Duration::from_micros(micros * 3);
        let _ = tokio::time::timeout(cut, Tx::begin(&one, &Actor::system(), now())).await;
        // In a statement of its own, the transaction is as old as the statement.
        let alone: bool = sqlx::Row::get(
            &sqlx::raw_sql("SELECT now() = statement_timestamp()")
                .fetch_one(&one)
                .await
                .unwrap(),
            0,
        );
        assert!(alone, "cut off after {cut:?}");
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_pool_has_as_many_connections_as_it_was_told_and_no_more(db: PgPool) {
    let url = sqlx::ConnectOptions::to_url_lossy(&*db.connect_options()).to_string();
    let pool = certctl_store::connect(&url, "certctl_api", 3, &Clock::told()).unwrap();
    let mut held = vec![];
    for _ in 0..3 {
        held.push(pool.acquire().await.unwrap());
    }
    assert!(pool.try_acquire().is_none());
    assert_eq!((pool.size(), pool.options().get_max_connections()), (3, 3));
    held.pop();
    assert!(pool.acquire().await.is_ok());
}
