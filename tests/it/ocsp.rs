//! OCSP as relying parties see it: answers that are given again, and what is said while something is away.

use std::time::Duration;

use anyhow::ensure;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use certctl_model::serial::Serial;
use certctl_tests::beside::Redis;
use certctl_tests::eventually;
use certctl_tests::world::{Answer, World};
use certctl_x509::ocsp::{CertStatus, IssuerId, OcspAnswerError, request_for, status_of};
use http::Method;
use serde_json::json;
use sqlx::PgPool;

const TRY_LATER: u8 = 3;
const SOON: Duration = Duration::from_secs(10);

/// A relying party, and a certificate it asks about.
struct Party<'w> {
    world: &'w World,
    issuer: IssuerId,
}

impl<'w> Party<'w> {
    async fn of(world: &'w World) -> Self {
        let ca = world.get("/ca/iss-local.crt").await;
        assert_eq!(ca.status, 200);
        let issuer = IssuerId::of_certificate(&ca.octets).unwrap();
        Self { world, issuer }
    }

    /// Has a certificate issued, and returns its serial number.
    async fn certificate(&self, id: &str) -> Serial {
        self.world.certificate(id, &["t-web"], json!({})).await;
        self.world.settle().await;
        let version = self.world.versions(id).await.remove(0);
        version["serial_number"].as_str().unwrap().parse().unwrap()
    }

    fn request(&self, serial: &Serial, nonce: Option<&[u8]>) -> Vec<u8> {
        request_for(&self.issuer, serial, nonce)
    }

    async fn posted(&self, edge: &str, request: Vec<u8>) -> Answer {
        let post = self.world.http.post(format!("{edge}/ocsp/iss-local"));
        let post = post.header("content-type", "application/ocsp-request").body(request);
        self.world.ask("an OCSP request", post).await
    }

    async fn got(&self, edge: &str, request: &[u8], escaped: bool, tag: Option<&str>) -> Answer {
        let mut text = STANDARD.encode(request);
        if escaped {
            text = text.replace('/', "%2F").replace('+', "%2B").replace('=', "%3D");
        }
        let mut get = self.world.http.get(format!("{edge}/ocsp/iss-local/{text}"));
        if let Some(tag) = tag {
            get = get.header("if-none-match", tag);
        }
        self.world.ask("an OCSP request", get).await
    }

    /// What the edge says of a certificate.
    async fn status(&self, edge: &str, serial: &Serial) -> Result<CertStatus, OcspAnswerError> {
        let answer = self.posted(edge, self.request(serial, None)).await;
        assert_eq!(answer.status, 200);
        status_of(&answer.octets, serial)
    }

    async fn revoke(&self, id: &str) {
        let reason = json!({ "reason": "keyCompromise" });
        let revoked = self
            .world
            .post(&format!("/api/v1/certificates/{id}/revoke"), reason)
            .await;
        revoked.expect(200);
    }
}

async fn world(db: PgPool) -> World {
    let world = World::new(db).await;
    let host = world.host("web").await;
    world.shared_target("t-web", &host).await;
    world
}

#[sqlx::test(migrations = "../migrations")]
async fn an_answer_is_given_again_by_get_and_post_until_its_certificate_is_revoked(db: PgPool) {
    let world = world(db).await;
    let party = Party::of(&world).await;
    let serial = party.certificate("mc-web").await;
    let edge = world.edge("edge", &[]).await;
    let request = party.request(&serial, None);

    let first = party.posted(&edge.url, request.clone()).await;
    assert_eq!(status_of(&first.octets, &serial), Ok(CertStatus::Good));
    assert_eq!(first.header("content-type"), "application/ocsp-response");
    assert_eq!(first.header("cache-control"), "no-store");
    for _ in 0..2 {
        assert!(party.posted(&edge.url, request.clone()).await.octets == first.octets);
        for escaped in [true, false] {
            let got = party.got(&edge.url, &request, escaped, None).await;
            assert_eq!(
                (got.status, &got.octets),
                (200, &first.octets),
                "the same octets to GET and POST"
            );
        }
    }

    // RFC 5019 §6.2.
    let got = party.got(&edge.url, &request, true, None).await;
    assert_eq!(got.header("content-type"), "application/ocsp-response");
    assert_eq!(
        got.header("cache-control"),
        "max-age=0, public, no-transform, must-revalidate"
    );
    assert_eq!(got.header("last-modified"), "Fri, 15 Jan 2027 08:00:00 GMT");
    assert_eq!(got.header("expires"), "Fri, 15 Jan 2027 09:00:00 GMT");
    assert_eq!(got.header("x-content-type-options"), "nosniff");
    let tag = got.header("etag").to_owned();
    let same = party.got(&edge.url, &request, true, Some(&tag)).await;
    assert_eq!(
        (same.status, same.octets.len(), same.header("etag")),
        (304, 0, tag.as_str())
    );

    // A nonce is answered afresh, and not for others.
    let with_nonce = party.request(&serial, Some(b"a nonce of the client"));
    let one = party.posted(&edge.url, with_nonce.clone()).await;
    let two = party.posted(&edge.url, with_nonce).await;
    assert_ne!(one.octets, two.octets);

    party.revoke("mc-web").await;
    eventually("the edge to say so", SOON, async || {
        let said = party.status(&edge.url, &serial).await;
        ensure!(matches!(said, Ok(CertStatus::Revoked { .. })), "{said:?}");
        Ok(())
    })
    .await;
    let got = party.got(&edge.url, &request, true, Some(&tag)).await;
    assert_eq!(got.status, 200, "what the client has is no longer true");
    assert!(matches!(
        status_of(&got.octets, &serial),
        Ok(CertStatus::Revoked { .. })
    ));
}

#[sqlx::test(migrations = "../migrations")]
async fn while_the_signer_is_away_what_is_known_is_given_until_it_ends_and_nothing_new_is_good(db: PgPool) {
    let world = world(db).await;
    let party = Party::of(&world).await;
    let (known, other) = (party.certificate("mc-known").await, party.certificate("mc-other").await);
    let mut edge = world.edge("edge", &[]).await;
    assert_eq!(party.status(&edge.url, &known).await, Ok(CertStatus::Good));

    edge.stop_signer().await;
    assert_eq!(party.status(&edge.url, &known).await, Ok(CertStatus::Good));
    let later = Err(OcspAnswerError::Status(TRY_LATER));
    assert_eq!(
        party.status(&edge.url, &other).await,
        later,
        "not known, so not guessed"
    );
    world.clock.advance(Duration::from_secs(3_539));
    assert_eq!(party.status(&edge.url, &known).await, Ok(CertStatus::Good));
    world.clock.advance(Duration::from_secs(1));
    assert_eq!(party.status(&edge.url, &known).await, later, "a minute before its end");

    edge.start_signer().await;
    for serial in [&known, &other] {
        assert_eq!(party.status(&edge.url, serial).await, Ok(CertStatus::Good));
    }

    // Revoked while nobody can sign that: not known any more, and never good.
    edge.stop_signer().await;
    party.revoke("mc-known").await;
    eventually("the edge to hear of it", SOON, async || {
        let said = party.status(&edge.url, &known).await;
        ensure!(said == later, "{said:?}");
        Ok(())
    })
    .await;
    assert_eq!(
        party.status(&edge.url, &other).await,
        Ok(CertStatus::Good),
        "no news of this one"
    );
    edge.start_signer().await;
    let said = party.status(&edge.url, &known).await;
    assert!(matches!(said, Ok(CertStatus::Revoked { .. })), "{said:?}");
}

#[sqlx::test(migrations = "../migrations")]
async fn while_the_database_is_away_what_is_known_is_given_and_what_was_missed_is_asked_again(db: PgPool) {
    let world = world(db).await;
    let party = Party::of(&world).await;
    let (known, other) = (party.certificate("mc-known").await, party.certificate("mc-other").await);
    let edge = world.edge("edge", &[]).await;
    assert_eq!(party.status(&edge.url, &known).await, Ok(CertStatus::Good));

    edge.database.set_open(false);
    assert_eq!(party.status(&edge.url, &known).await, Ok(CertStatus::Good));
    let later = Err(OcspAnswerError::Status(TRY_LATER));
    assert_eq!(party.status(&edge.url, &other).await, later);
    // The edge cannot hear of this.
    party.revoke("mc-known").await;
    assert_eq!(
        party.status(&edge.url, &known).await,
        Ok(CertStatus::Good),
        "it is true until it ends"
    );
    world.clock.advance(Duration::from_secs(3_540));
    assert_eq!(party.status(&edge.url, &known).await, later);

    edge.database.set_open(true);
    eventually("the edge to come back by itself", SOON, async || {
        let said = party.status(&edge.url, &known).await;
        ensure!(matches!(said, Ok(CertStatus::Revoked { .. })), "{said:?}");
        let said = party.status(&edge.url, &other).await;
        ensure!(said == Ok(CertStatus::Good), "{said:?}");
        Ok(())
    })
    .await;
}

#[sqlx::test(migrations = "../migrations")]
async fn news_that_was_missed_ends_all_answers_when_the_database_is_back(db: PgPool) {
    let world = world(db).await;
    let party = Party::of(&world).await;
    let serial = party.certificate("mc-web").await;
    let edge = world.edge("edge", &[]).await;
    assert_eq!(party.status(&edge.url, &serial).await, Ok(CertStatus::Good));
    edge.database.set_open(false);
    party.revoke("mc-web").await;
    edge.database.set_open(true);
    eventually("the edge to say so", SOON, async || {
        let said = party.status(&edge.url, &serial).await;
        ensure!(matches!(said, Ok(CertStatus::Revoked { .. })), "{said:?}");
        Ok(())
    })
    .await;
}

#[sqlx::test(migrations = "../migrations")]
async fn many_ask_at_once_and_each_has_the_answer_to_its_own_question(db: PgPool) {
    let world = world(db).await;
    let party = Party::of(&world).await;
    let good = party.certificate("mc-good").await;
    let revoked = party.certificate("mc-bad").await;
    party.revoke("mc-bad").await;
    let edge = world.edge("edge", &[]).await;
    let asked = (0..120).map(|n| {
        let (party, edge, good, revoked) = (&party, &edge, &good, &revoked);
        async move {
            let unknown: Serial = format!("{:x}", 0xabc000 + n).parse().unwrap();
            match n % 4 {
                0 => assert_eq!(party.status(&edge.url, good).await, Ok(CertStatus::Good)),
                1 => assert!(matches!(
                    party.status(&edge.url, revoked).await,
                    Ok(CertStatus::Revoked { .. })
                )),
                2 => assert_eq!(party.status(&edge.url, &unknown).await, Ok(CertStatus::Unknown)),
                _ => {
                    let answer = party.posted(&edge.url, b"not DER".to_vec()).await;
                    assert_eq!(answer.octets, [0x30, 3, 0x0a, 1, 1], "malformedRequest");
                }
            }
        }
    });
    futures_util::future::join_all(asked).await;
    let other = world
        .http
        .post(format!("{}/ocsp/iss-none", edge.url))
        .body(party.request(&good, None));
    assert_eq!(world.ask("another issuer", other).await.status, 404);
    let get = world.raw(Method::GET, "/ocsp/iss-local/AAAA", None, "").await;
    assert_eq!(get.octets, [0x30, 3, 0x0a, 1, 1]);
}

#[sqlx::test(migrations = "../migrations")]
async fn replicas_share_answers_through_redis_and_each_is_right_without_it(db: PgPool) {
    let world = world(db).await;
    let party = Party::of(&world).await;
    let (known, other) = (party.certificate("mc-known").await, party.certificate("mc-other").await);
    let dir = tempfile::tempdir().unwrap();
    let mut redis = Redis::start(dir.path()).await;
    let url = redis.url();
    let settings = ["--redis-url", url.as_str()];
    let one = world.edge("one", &settings).await;
    let mut two = world.edge("two", &settings).await;
    let request = party.request(&known, None);
    // Each that connects ends what is there; from now on nobody does.
    let first = eventually("both to be connected", SOON, async || {
        let first = party.posted(&one.url, request.clone()).await;
        two.stop_signer().await;
        let second = party.posted(&two.url, request.clone()).await;
        two.start_signer().await;
        ensure!(
            first.octets == second.octets,
            "the second has no answer, or one of its own"
        );
        Ok(first)
    })
    .await;
    assert_eq!(status_of(&first.octets, &known), Ok(CertStatus::Good));
    two.stop_signer().await;
    assert_eq!(
        party.status(&two.url, &other).await,
        Err(OcspAnswerError::Status(TRY_LATER)),
        "nobody asked for it yet"
    );
    assert_eq!(party.status(&one.url, &other).await, Ok(CertStatus::Good));
    assert_eq!(
        party.status(&two.url, &other).await,
        Ok(CertStatus::Good),
        "asked by the first, without a signer"
    );

    // Once one says so, no other takes the old answer from Redis.
    party.revoke("mc-known").await;
    eventually("the first to say so", SOON, async || {
        let said = party.status(&one.url, &known).await;
        ensure!(matches!(said, Ok(CertStatus::Revoked { .. })), "{said:?}");
        Ok(())
    })
    .await;
    // From Redis, if the first put it there, or nothing: there is no signer to say so.
    eventually("the second to hear of it", SOON, async || {
        let said = party.status(&two.url, &known).await;
        let is_right =
            matches!(said, Ok(CertStatus::Revoked { .. })) || said == Err(OcspAnswerError::Status(TRY_LATER));
        ensure!(is_right, "{said:?}");
        Ok(())
    })
    .await;
    two.start_signer().await;
    let said = party.status(&two.url, &known).await;
    assert!(matches!(said, Ok(CertStatus::Revoked { .. })), "{said:?}");

    redis.kill();
    party.revoke("mc-other").await;
    for edge in [&one, &two] {
        eventually("each to say so by itself", SOON, async || {
            let said = party.status(&edge.url, &other).await;
            ensure!(matches!(said, Ok(CertStatus::Revoked { .. })), "{said:?}");
            Ok(())
        })
        .await;
    }
    // What Redis kept meanwhile, had it kept anything, is not given after it is back.
    redis.restart().await;
    for edge in [&one, &two] {
        let said = party.status(&edge.url, &other).await;
        assert!(matches!(said, Ok(CertStatus::Revoked { .. })), "{said:?}");
    }
}
