//! Local users and servers that try to make an agent read or replace other files.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use certctl_agent::Agent;
use certctl_model::time::Clock;
use certctl_tests::world::{Host, World};
use clap::Parser;
use rustix::fs::XattrFlags;
use serde_json::{Value, json};
use sqlx::PgPool;
use tempfile::TempDir;

const NOBODY: Option<u32> = Some(65534);

/// Only root can give files to another user.
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn temporary() -> TempDir {
    tempfile::Builder::new().prefix("certctl-files-").tempdir().unwrap()
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn to_nobody(path: &Path) {
    lchown(path, NOBODY, NOBODY).unwrap();
}

fn settings(cert: &Path) -> Value {
    json!({ "cert_path": cert, "validate_command": "true", "reload_command": "true" })
}

/// Makes a target with this certificate file and a certificate for it, and returns what its deployment ended with:
/// nothing, or the error.
async fn deploy(w: &World, host: &Host, id: &str, cert: &Path) -> String {
    let target = format!("tgt-{id}");
    let new = json!({ "id": target, "name": target, "type": "NGINX", "agent_id": host.id(), "config": settings(cert) });
    w.post("/api/v1/targets", new).await.expect(201);
    let certificate = format!("mc-{id}");
    w.certificate(&certificate, &[&target], json!({})).await;
    w.settle().await;
    outcome(w, &certificate).await
}

async fn outcome(w: &World, certificate: &str) -> String {
    let page = w
        .get(&format!("/api/v1/jobs?certificate_id={certificate}&type=Deployment"))
        .await
        .expect(200);
    let jobs = page["data"].as_array().unwrap();
    assert!(!jobs.is_empty(), "there is a deployment of {certificate}");
    jobs[0]["last_error"].as_str().unwrap_or_default().to_owned()
}

/// The names in a directory, sorted.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = entries.collect();
    names.sort();
    names
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_another_user_planted_leads_an_agent_to_no_file(db: PgPool) {
    if !is_root() {
        return;
    }
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    let dir = temporary();
    let at = |name: &str| dir.path().join(name);
    chmod(dir.path(), 0o755);
    fs::create_dir(at("victim")).unwrap();
    fs::write(at("victim/a.pem"), "kept").unwrap();
    fs::write(at("victim/a.key"), "kept").unwrap();

    // A directory of another user, with a link to a file of root.
    fs::create_dir(at("theirs")).unwrap();
    symlink(at("victim/a.pem"), at("theirs/a.pem")).unwrap();
    to_nobody(&at("theirs/a.pem"));
    to_nobody(&at("theirs"));
    // A link to a directory of root, and one among the parents.
    symlink(at("victim"), at("link")).unwrap();
    to_nobody(&at("link"));
    // A directory of another user above one of root.
    fs::create_dir_all(at("above/tls")).unwrap();
    to_nobody(&at("above"));
    // A directory to which every user can write, and one that is sticky with a file that would receive the key.
    fs::create_dir(at("open")).unwrap();
    chmod(&at("open"), 0o777);
    fs::create_dir(at("sticky")).unwrap();
    fs::write(at("sticky/a.key"), "").unwrap();
    to_nobody(&at("sticky/a.key"));
    chmod(&at("sticky"), 0o1777);

    for (id, path, said) in [
        ("1", "theirs/a.pem", "belongs to user 65534"),
        ("2", "link/a.pem", "link belongs to user 65534"),
        ("3", "above/tls/a.pem", "above belongs to user 65534"),
        ("4", "open/a.pem", "other users can replace what is in"),
        ("5", "sticky/a.pem", "to which every user can write"),
    ] {
        let error = deploy(&w, &host, id, &at(path)).await;
        assert!(
            error.contains(said) && error.contains("nothing was changed"),
            "{path}: {error}"
        );
    }
    assert_eq!(fs::read_to_string(at("victim/a.pem")).unwrap(), "kept");
    assert_eq!(fs::read_to_string(at("sticky/a.key")).unwrap(), "");
    for (name, files) in [
        ("victim", 2),
        ("theirs", 1),
        ("above/tls", 0),
        ("open", 0),
        ("sticky", 1),
    ] {
        assert_eq!(names(&at(name)).len(), files, "{name}");
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn links_of_certbot_and_kubernetes_and_dangling_links_are_followed(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    let dir = temporary();
    let at = |name: &str| dir.path().join(name);
    for made in ["live/x", "archive/x", "..2026_01", "real"] {
        fs::create_dir_all(at(made)).unwrap();
    }
    fs::write(at("archive/x/cert1.pem"), "old").unwrap();
    symlink("../../archive/x/cert1.pem", at("live/x/cert.pem")).unwrap();
    symlink("..2026_01", at("..data")).unwrap();
    fs::write(at("..2026_01/tls.pem"), "old").unwrap();
    symlink("..data/tls.pem", at("tls.pem")).unwrap();
    symlink(at("real/a.pem"), at("a.pem")).unwrap();
    for (id, link, file) in [
        ("1", "live/x/cert.pem", "archive/x/cert1.pem"),
        ("2", "tls.pem", "..2026_01/tls.pem"),
        ("3", "a.pem", "real/a.pem"),
    ] {
        assert_eq!(deploy(&w, &host, id, &at(link)).await, "");
        assert!(
            fs::symlink_metadata(at(link)).unwrap().is_symlink(),
            "{link} is still a link"
        );
        assert!(
            fs::read_to_string(at(file))
                .unwrap()
                .starts_with("-----BEGIN CERTIFICATE"),
            "{file}"
        );
    }
    let error = deploy(&w, &host, "4", &at("absent/a.pem")).await;
    let said = format!(
        "cannot open {}: No such file or directory",
        at("absent").canonicalize().unwrap_or(at("absent")).display()
    );
    assert!(error.contains(&said), "{error}");
}

/// A list as the kernel stores it: `user::rw-`, `user:nobody:r--`, `group::---`, `mask::r--`, `other::---`.
fn readable_by_nobody() -> Vec<u8> {
    let mut list = vec![2, 0, 0, 0];
    for (tag, permissions, id) in [
        (0x01_u16, 6_u16, u32::MAX),
        (0x02, 4, 65534),
        (0x04, 0, u32::MAX),
        (0x10, 4, u32::MAX),
        (0x20, 0, u32::MAX),
    ] {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    list
}

fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 1024];
    let length = rustix::fs::getxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_new_key_file_is_open_to_exactly_the_users_of_the_old_one(db: PgPool) {
    const LIST: &str = "system.posix_acl_access";
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    let dir = temporary();
    let at = |name: &str| dir.path().join(name);
    for name in ["listed.pem", "listed.key", "plain.pem", "plain.key"] {
        fs::write(at(name), "old").unwrap();
        chmod(&at(name), 0o600);
    }
    let set = |name: &str, attribute: &str, value: &[u8]| {
        rustix::fs::setxattr(at(name), attribute, value, XattrFlags::empty()).unwrap();
    };
    set("listed.key", LIST, &readable_by_nobody());
    set("listed.key", "user.note", b"kept");
    if is_root() {
        chown(at("listed.key"), None, Some(100)).unwrap();
    }
    let before = fs::metadata(at("listed.key")).unwrap();
    assert_eq!(deploy(&w, &host, "1", &at("listed.pem")).await, "");
    assert_ne!(fs::read_to_string(at("listed.key")).unwrap(), "old");
    assert_eq!(attribute(&at("listed.key"), LIST).unwrap(), readable_by_nobody());
    assert_eq!(attribute(&at("listed.key"), "user.note").unwrap(), b"kept");
    let after = fs::metadata(at("listed.key")).unwrap();
    assert_eq!(
        (after.mode(), after.uid(), after.gid()),
        (before.mode(), before.uid(), before.gid())
    );

    // A default list of the directory would open the new file to a user who could not read the old one.
    rustix::fs::setxattr(
        dir.path(),
        "system.posix_acl_default",
        &readable_by_nobody(),
        XattrFlags::empty(),
    )
    .unwrap();
    assert_eq!(deploy(&w, &host, "2", &at("plain.pem")).await, "");
    assert_eq!(attribute(&at("plain.key"), LIST), None);
    assert_eq!(fs::metadata(at("plain.key")).unwrap().mode() & 0o777, 0o600);
}

/// A mount that is taken away when the test ends.
struct Mount(PathBuf);

impl Mount {
    fn bind(from: &Path, to: &Path) -> Option<Self> {
        let done = Command::new("mount").arg("--bind").args([from, to]).status();
        done.is_ok_and(|status| status.success()).then(|| Self(to.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_file_that_is_a_mount_point_fails_alone_and_leaves_no_key(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    let dir = temporary();
    let at = |name: &str| dir.path().join(name);
    for made in ["a", "b"] {
        fs::create_dir(at(made)).unwrap();
    }
    for (name, text) in [("a/a.pem", "old"), ("a/a.key", "old key"), ("host.pem", "mounted")] {
        fs::write(at(name), text).unwrap();
    }
    // Where mounts are not allowed there is nothing to test.
    let Some(mount) = Mount::bind(&at("host.pem"), &at("a/a.pem")) else {
        return;
    };
    let error = deploy(&w, &host, "1", &at("a/a.pem")).await;
    let said = "a/a.pem: it is a mount point, and a file that is mounted by itself cannot be replaced in one step";
    assert!(error.contains(said) && error.contains("nothing was changed"), "{error}");
    assert_eq!(names(&at("a")), ["a.key", "a.pem"]);
    assert_eq!(fs::read_to_string(at("a/a.key")).unwrap(), "old key");
    assert_eq!(deploy(&w, &host, "2", &at("b/b.pem")).await, "");
    assert_eq!(names(&at("b")), ["b-chain.pem", "b.key", "b.pem"]);

    drop(mount);
    w.post("/api/v1/certificates/mc-1/renew", json!({})).await.expect(202);
    w.settle().await;
    assert_eq!(names(&at("a")), ["a-chain.pem", "a.key", "a.pem"]);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn paths_that_an_agent_refuses_are_refused_when_a_target_is_made(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    for (config, said) in [
        (
            json!({ "cert_path": "/tls/a.pem", "key_path": "/tls/a.pem" }),
            "three different files",
        ),
        (
            json!({ "cert_path": "/tls/a.pem", "key_path": "/tls/.//a.pem" }),
            "three different files",
        ),
        (
            json!({ "cert_path": "/tls/a.pem", "chain_path": "/tls/a.key" }),
            "three different files",
        ),
        (
            json!({ "cert_path": "/tls", "key_path": "/tls/a.key" }),
            "a directory of the other",
        ),
        (json!({ "cert_path": "/tls/../etc/shadow" }), "without \"..\""),
        (json!({ "cert_path": "/tls/a.pem.certctl-old" }), "reserved"),
        (
            json!({ "cert_path": format!("/tls/{}.pem", "a".repeat(250)) }),
            "too long",
        ),
    ] {
        let new = json!({ "name": "t", "type": "NGINX", "agent_id": host.id(), "config": config });
        let problem = w.post("/api/v1/targets", new).await.problem();
        assert_eq!(problem.status, 422, "{problem:?}");
        assert!(problem.errors[0].detail.contains(said), "{problem:?}");
    }
}

fn agent(state: &Path, keys: &Path) -> Result<Agent, String> {
    let [state, keys] = [state, keys].map(|path| path.to_str().unwrap());
    let args = [
        "certctl-agent",
        "--state-dir",
        state,
        "--key-dir",
        keys,
        "--server",
        "http://127.0.0.1:1",
    ];
    let config = certctl_agent::config::Config::parse_from(args);
    Agent::build(config, Clock::system()).map_err(|error| format!("{error:#}"))
}

#[test]
fn a_planted_state_or_key_directory_of_another_user_is_not_adopted() {
    if !is_root() {
        return;
    }
    let dir = temporary();
    let at = |name: &str| dir.path().join(name);
    let victim = at("victim");
    fs::write(&victim, "kept").unwrap();
    // As a user would prepare it below /tmp before the first start of an agent.
    for state in ["state", "keys"] {
        fs::create_dir(at(state)).unwrap();
        let journal = json!({ "files": [{ "path": victim, "new": at("x"), "existed": false }], "validate": null, "reload": null });
        fs::write(at(state).join("deployment.json"), journal.to_string()).unwrap();
        fs::write(
            at(state).join("identity.json"),
            r#"{"agent_id":"a-planted","api_key":"planted"}"#,
        )
        .unwrap();
        for planted in ["deployment.json", "identity.json", ""] {
            to_nobody(&at(state).join(planted));
        }
    }
    for (state, keys) in [("state", "own-keys"), ("own-state", "keys")] {
        let error = agent(&at(state), &at(keys)).unwrap_err();
        assert!(error.contains("belongs to user 65534"), "{error}");
    }
    symlink(at("state"), at("link")).unwrap();
    to_nobody(&at("link"));
    assert!(
        agent(&at("link"), &at("own-keys"))
            .unwrap_err()
            .contains("belongs to user 65534")
    );
    // Files that stayed in a directory that was taken over later.
    chown(at("state"), Some(0), Some(0)).unwrap();
    chmod(&at("state"), 0o700);
    let stays = agent(&at("state"), &at("own-keys")).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let tasks = certctl_runtime::tasks::Tasks::new();
    let error = runtime
        .block_on(stays.enrol(&tasks))
        .err()
        .map(|error| format!("{error:#}"))
        .unwrap();
    assert!(
        error.contains("identity.json") && error.contains("belongs to user 65534"),
        "{error}"
    );
    assert_eq!(fs::read_to_string(&victim).unwrap(), "kept");
}
