//! CRLs as relying parties fetch them: full, of one shard, deltas, in parts, packed, or not again.

use std::{fs, io::Read, path::PathBuf, time::Duration};

use certctl_tests::{openssl, world::World};
use flate2::read::GzDecoder;
use http::Method;
use serde_json::json;
use sqlx::PgPool;
use tempfile::TempDir;

const HOUR: Duration = Duration::from_secs(3600);

struct Party {
    dir: TempDir,
    at: i64,
}

impl Party {
    /// A relying party that trusts the local authority.
    async fn new(w: &World) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = w.get("/ca/iss-local.crt").await.octets;
        fs::write(dir.path().join("ca.pem"), certctl_x509::pem::encode("CERTIFICATE", &ca)).unwrap();
        let at = w.clock.now().unix();
        Self { dir, at }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Fetches a list, has openssl verify it, keeps it as PEM, and returns what it says.
    async fn fetch(&self, w: &World, path: &str, name: &str) -> String {
        let answer = w.raw(Method::GET, path, None, "").await;
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, "application/pkix-crl"),
            "{answer:?}"
        );
        let file = self.path(name).display().to_string();
        fs::write(&file, certctl_x509::pem::encode("X509 CRL", &answer.octets)).unwrap();
        let ca = self.path("ca.pem").display().to_string();
        let said = openssl(&format!("crl -in {file} -CAfile {ca} -noout -text")).await.ok();
        assert!(said.contains("verify OK"), "{said}");
        said
    }

    /// What openssl says of a certificate with these lists.
    async fn verify(&self, w: &World, leaf: &str, lists: &[&str], options: &str) -> Result<(), String> {
        let all: Vec<String> = lists
            .iter()
            .map(|name| fs::read_to_string(self.path(name)).unwrap())
            .collect();
        fs::write(self.path("lists.pem"), all.concat()).unwrap();
        let [ca, lists, leaf] = ["ca.pem", "lists.pem", leaf].map(|name| self.path(name).display().to_string());
        let at = w.clock.now().unix().max(self.at);
        let ran = openssl(&format!(
            "verify -attime {at} {options} -CAfile {ca} -CRLfile {lists} {leaf}"
        ))
        .await;
        if ran.success { Ok(()) } else { Err(ran.text) }
    }

    /// Keeps the newest version of a certificate, and returns its serial number.
    async fn keep(&self, w: &World, id: &str) -> String {
        let version = w.versions(id).await.remove(0);
        fs::write(self.path(&format!("{id}.pem")), version["cert_pem"].as_str().unwrap()).unwrap();
        version["serial_number"].as_str().unwrap().to_owned()
    }

    /// Where a certificate says that its CRL is.
    async fn distribution_point(&self, w: &World, id: &str) -> String {
        let file = self.path(&format!("{id}.pem")).display().to_string();
        let text = openssl(&format!("x509 -in {file} -noout -ext crlDistributionPoints"))
            .await
            .ok();
        let url = text.lines().find_map(|line| line.trim().strip_prefix("URI:")).unwrap();
        url.strip_prefix(&w.url).unwrap().to_owned()
    }
}

async fn configure(w: &World, config: serde_json::Value) {
    w.put("/api/v1/issuers/iss-local", json!({ "config": config }))
        .await
        .expect(200);
}

async fn issue(w: &World, ids: &[&str]) {
    let host = w.host("web-1").await;
    for id in ids {
        let target = id.replace("mc-", "tgt-");
        w.target(&target, &host).await;
        w.certificate(id, &[&target], json!({})).await;
    }
    w.settle().await;
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_certificate_names_its_shard_which_tells_of_it_for_as_long_as_it_lives(db: PgPool) {
    let w = World::new(db).await;
    configure(&w, json!({ "crl_shards": 4 })).await;
    let ids = ["mc-1", "mc-2", "mc-3", "mc-4", "mc-5", "mc-6"];
    issue(&w, &ids).await;
    let party = Party::new(&w).await;
    // Fewer shards do not orphan what was issued before.
    configure(&w, json!({})).await;
    let mut serials = vec![];
    for id in ids {
        serials.push(party.keep(&w, id).await);
    }
    for id in ["mc-1", "mc-2"] {
        w.post(
            &format!("/api/v1/certificates/{id}/revoke"),
            json!({ "reason": "keyCompromise" }),
        )
        .await
        .expect(200);
    }
    w.settle().await;
    let full = party.fetch(&w, "/crl/iss-local.crl", "full.pem").await;
    assert!(!full.contains("Issuing Distribution Point"), "{full}");
    for (n, id) in ids.iter().enumerate() {
        let path = party.distribution_point(&w, id).await;
        let shard = path
            .strip_prefix("/crl/iss-local/")
            .and_then(|path| path.strip_suffix(".crl"));
        assert!(
            shard.is_some_and(|shard| (1..=4).contains(&shard.parse::<u8>().unwrap())),
            "{path}"
        );
        let said = party.fetch(&w, &path, "shard.pem").await;
        let named = format!("URI:{}{path}", w.url);
        assert!(
            said.contains("X509v3 Issuing Distribution Point: critical") && said.contains(&named),
            "{said}"
        );
        let leaf = format!("{id}.pem");
        let revoked = n < 2;
        for (lists, options) in [
            (&["shard.pem", "full.pem"][..], "-extended_crl -crl_check_all"),
            (&["shard.pem"], "-extended_crl -crl_check"),
            (&["full.pem"], "-crl_check_all"),
        ] {
            let verified = party.verify(&w, &leaf, lists, options).await;
            let expected = match &verified {
                Ok(()) => !revoked,
                Err(text) => revoked && text.contains("certificate revoked"),
            };
            assert!(expected, "{id} {lists:?}: {verified:?}");
        }
        let listed = |text: &str| text.contains(&format!("Serial Number: {}", padded(&serials[n])));
        assert_eq!((listed(&said), listed(&full)), (revoked, revoked), "{id}");
    }
    for path in [
        "/crl/iss-local/5.crl",
        "/crl/iss-local/0.crl",
        "/crl/iss-local/x.crl",
        "/crl/iss-none/1.crl",
    ] {
        assert_eq!(w.get(path).await.problem().status, 404, "{path}");
    }
}

/// As openssl writes it.
fn padded(serial: &str) -> String {
    let even = if serial.len() % 2 == 1 {
        format!("0{serial}")
    } else {
        serial.to_owned()
    };
    even.to_uppercase()
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_delta_takes_a_released_hold_off_the_full_crl(db: PgPool) {
    let w = World::new(db).await;
    configure(&w, json!({ "crl_delta": true })).await;
    issue(&w, &["mc-1", "mc-2"]).await;
    let party = Party::new(&w).await;
    party.keep(&w, "mc-1").await;
    const DELTAS: &str = "-crl_check -extended_crl -use_deltas";
    let state = async |full_has: bool, delta_says: &str, revoked: (bool, bool)| {
        let full = party.fetch(&w, "/crl/iss-local.crl", "full.pem").await;
        let delta = party.fetch(&w, "/crl/iss-local/delta.crl", "delta.pem").await;
        let named = format!("URI:{}/crl/iss-local/delta.crl", w.url);
        assert!(full.contains("X509v3 Freshest CRL") && full.contains(&named), "{full}");
        assert!(delta.contains("X509v3 Delta CRL Indicator: critical"), "{delta}");
        assert_eq!(full.contains("Certificate Hold"), full_has, "{full}");
        for word in ["Certificate Hold", "Remove From CRL"] {
            assert_eq!(delta.contains(word), delta_says == word, "{delta}");
        }
        let alone = party.verify(&w, "mc-1.pem", &["full.pem"], "-crl_check").await;
        let both = party.verify(&w, "mc-1.pem", &["full.pem", "delta.pem"], DELTAS).await;
        assert_eq!((alone.is_err(), both.is_err()), revoked, "{alone:?} {both:?}");
    };
    state(false, "", (false, false)).await;
    w.post(
        "/api/v1/certificates/mc-1/revoke",
        json!({ "reason": "certificateHold" }),
    )
    .await
    .expect(200);
    w.settle().await;
    state(false, "Certificate Hold", (false, true)).await;
    w.clock.advance(HOUR * 2);
    w.settle().await;
    state(true, "", (true, true)).await;
    w.sql("UPDATE revocations SET released_at = revoked_at + interval '2 hours'")
        .await;
    w.settle().await;
    state(true, "Remove From CRL", (true, false)).await;
    w.clock.advance(HOUR * 2);
    w.settle().await;
    state(false, "", (false, false)).await;
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_crl_comes_whole_in_parts_packed_or_not_again(db: PgPool) {
    let w = World::new(db).await;
    issue(&w, &["mc-1"]).await;
    // Several chunks, of which the last is short.
    w.sql(
        "INSERT INTO revocations (id, issuer_id, serial_number, certificate_id, reason, revoked_by, not_after, revoked_at)
         SELECT 'r-' || n, 'iss-local', to_hex(n), 'mc-1', 'superseded', 'test', now() + interval '9 years', now()
           FROM generate_series(1, 30000) n",
    )
    .await;
    w.settle().await;
    const PATH: &str = "/crl/iss-local.crl";
    let get = async |headers: &[(&str, &str)]| w.with_headers(Method::GET, PATH, None, headers, "").await;
    let whole = get(&[]).await;
    let (etag, modified) = (
        whole.header("etag").to_owned(),
        whole.header("last-modified").to_owned(),
    );
    assert!(
        whole.octets.len() > 1 << 20,
        "longer than what is read at once: {}",
        whole.octets.len()
    );
    assert_eq!(whole.header("content-length"), whole.octets.len().to_string());
    assert!(
        etag.starts_with('"') && whole.header("accept-ranges") == "bytes",
        "{whole:?}"
    );
    assert!(
        whole
            .header("cache-control")
            .starts_with("max-age=30, public, no-transform"),
        "{whole:?}"
    );
    for path in ["/api/v1/crl/iss-local", PATH] {
        assert_eq!(w.get(path).await.octets, whole.octets, "{path}");
    }

    let last = whole.octets.len() - 1;
    for (first, end) in [
        (0, 0),
        (0, 99),
        (200_000, 600_000),
        (262_000, 262_200),
        (last - 5, last),
        (1, last),
    ] {
        let part = get(&[("range", &format!("bytes={first}-{end}"))]).await;
        let content = format!("bytes {first}-{end}/{}", whole.octets.len());
        assert_eq!(
            (part.status, part.header("content-range"), part.header("etag")),
            (206, &*content, &*etag)
        );
        assert!(part.octets == whole.octets[first..=end], "{first}-{end}");
    }
    let part = get(&[("range", "bytes=-100"), ("if-range", &etag)]).await;
    assert!(part.status == 206 && part.octets == whole.octets[last - 99..]);
    for headers in [
        &[("range", "bytes=0-1,5-6")][..],
        &[("range", "bytes=0-9"), ("if-range", "\"other\"")],
    ] {
        let answer = get(headers).await;
        assert!(answer.status == 200 && answer.octets == whole.octets, "{headers:?}");
    }
    let none = get(&[("range", &format!("bytes={}-", last + 1))]).await;
    assert_eq!(
        (none.status, none.header("content-range")),
        (416, &*format!("bytes */{}", last + 1))
    );

    for (name, value) in [("if-none-match", &etag), ("if-modified-since", &modified)] {
        let answer = get(&[(name, value)]).await;
        assert_eq!(
            (answer.status, answer.header("etag"), answer.octets.len()),
            (304, &*etag, 0),
            "{name}"
        );
    }
    assert_eq!(
        get(&[("if-none-match", "\"other\""), ("if-modified-since", &modified)])
            .await
            .status,
        200
    );

    let packed = get(&[("accept-encoding", "gzip")]).await;
    assert_eq!(
        (packed.header("content-encoding"), packed.header("vary")),
        ("gzip", "accept-encoding")
    );
    assert_ne!(packed.header("etag"), etag);
    assert!(packed.octets.len() < whole.octets.len() / 2, "{}", packed.octets.len());
    let mut unpacked = vec![];
    GzDecoder::new(&*packed.octets).read_to_end(&mut unpacked).unwrap();
    assert!(unpacked == whole.octets);
    let part = get(&[("accept-encoding", "gzip"), ("range", "bytes=0-9")]).await;
    assert_eq!((part.status, part.header("content-encoding")), (206, ""));

    // Everything as JSON, however much it is, oldest first.
    let all = w.get("/api/v1/crl").await.expect(200);
    assert_eq!(
        (all["version"].clone(), all["total"].clone()),
        (json!(1), json!(30_000))
    );
    let entries = all["entries"].as_array().unwrap();
    assert_eq!(entries.len(), 30_000);
    assert_eq!(entries[0]["revocation_reason"], "superseded");

    // An old list is not served as if it were current.
    w.clock.advance(HOUR * 25);
    assert_eq!(get(&[]).await.problem().status, 503);
    w.settle().await;
    let newer = get(&[("if-none-match", &etag)]).await;
    assert_eq!(newer.status, 200);
    assert_ne!(newer.header("etag"), etag);
}
