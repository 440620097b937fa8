//! Other users of a machine on which certctl-local or a command of root runs.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::Path;

use certctl_tests::stage::{alone, directory, programs, show_logs};
use certctl_tests::{Ran, run_command};
use tempfile::TempDir;
use tokio::process::Command;

/// A user that has nothing to do with certctl.
const NOBODY: u32 = 65534;

async fn local(dir: &Path, args: &[&str]) -> Ran {
    let mut command = Command::new(programs().join("certctl-local"));
    command.arg("--dir").arg(dir).args(args);
    run_command(command).await
}

/// As `/tmp`: every user can create files here, and only the owner of a file can remove it.
fn shared_directory() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o1777)).unwrap();
    dir
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// What can be run in a directory. `up` comes last: it is the one that would use what was planted.
const ACTIONS: [&[&str]; 4] = [&["status"], &["down"], &["db", "--scratch"], &["up", "--no-demo"]];

async fn refused(dir: &Path, actions: &[&[&str]], why: &str) {
    for action in actions {
        let ran = local(dir, action).await;
        assert!(!ran.success, "{action:?}");
        assert!(ran.text.contains(why), "{action:?}: {}", ran.text);
    }
}

#[tokio::test]
async fn a_directory_that_other_users_can_write_to_is_not_used() {
    let shared = shared_directory();
    let dir = shared.path().join("instance");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("api-key"), "planted-planted-planted").unwrap();
    chmod(&dir, 0o777);
    refused(&dir, &ACTIONS, "other users can write to").await;
    // Nor one whose parent lets them replace it.
    chmod(&dir, 0o700);
    chmod(shared.path(), 0o777);
    refused(&dir, &ACTIONS, "other users can replace").await;
    assert_eq!(
        fs::read_to_string(dir.join("api-key")).unwrap(),
        "planted-planted-planted"
    );
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
}

#[tokio::test]
async fn the_directory_of_another_user_is_not_adopted() {
    let shared = shared_directory();
    let dir = shared.path().join("planted");
    fs::create_dir(&dir).unwrap();
    for (name, text) in [
        ("api-key", "planted-planted-planted"),
        ("postgres-password", "planted"),
        ("bootstrap-token", "planted-planted-planted"),
    ] {
        fs::write(dir.join(name), text).unwrap();
    }
    let link = shared.path().join("link");
    symlink("/", &link).unwrap();
    if lchown(&link, Some(NOBODY), Some(NOBODY)).is_err() {
        // Only root can give files away, and only root has something to lose here.
        return;
    }
    chown(&dir, Some(NOBODY), Some(NOBODY)).unwrap();
    refused(&dir, &ACTIONS, "belongs to user 65534").await;
    refused(&dir.join("below"), &ACTIONS[2..], "belongs to user 65534").await;
    refused(&link.join("tmp"), &ACTIONS, "belongs to user 65534").await;
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 3, "nothing was created");
}

#[tokio::test]
async fn links_in_the_directory_are_not_followed() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("instance");
    for name in ["", "logs", "run"] {
        fs::create_dir(dir.join(name)).unwrap();
        chmod(&dir.join(name), 0o700);
    }
    let victim = home.path().join("victim");
    fs::write(&victim, "kept").unwrap();
    for name in [
        "logs/postgres.log",
        "run/certctl-local.lock",
        "postgres-port.json",
        "postgres-password",
    ] {
        let link = dir.join(name);
        // An earlier pass of this loop may have created the file.
        let _ = fs::remove_file(&link);
        symlink(&victim, &link).unwrap();
        let ran = local(&dir, &["db", "--scratch"]).await;
        assert!(
            !ran.success && ran.text.contains("is a symbolic link"),
            "{name}: {}",
            ran.text
        );
        assert_eq!(fs::read_to_string(&victim).unwrap(), "kept", "{name}");
        fs::remove_file(link).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_key_is_shown_and_not_logged() {
    let _alone = alone().await;
    let home = directory();
    let dir = home.path().join("instance");
    let mut command = Command::new(programs().join("certctl-local"));
    command.arg("--dir").arg(&dir).args(["up", "--no-demo", "--detach"]);
    command
        .env("CERTCTL_LEAF_VALIDITY", "2h")
        .env("CERTCTL_SERVER_PORT", "1");
    chmod(home.path(), 0o711);
    let ran = run_command(command).await;
    let down = local(&dir, &["down"]).await;
    if !ran.success {
        show_logs(&dir);
    }
    assert!(ran.success && down.success, "{} {}", ran.text, down.text);
    let key = fs::read_to_string(dir.join("api-key")).unwrap();
    assert!(ran.text.contains(&format!("API key      {key}")), "{}", ran.text);
    assert!(
        ran.text
            .contains("passed on from the environment: CERTCTL_LEAF_VALIDITY\n"),
        "{}",
        ran.text
    );
    assert!(
        ran.text.contains("certctl-local decides them: CERTCTL_SERVER_PORT\n"),
        "{}",
        ran.text
    );
    for log in fs::read_dir(dir.join("logs")).unwrap() {
        let log = log.unwrap().path();
        let text = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
        assert!(!text.contains(&key), "{} has the key", log.display());
        assert_eq!(
            fs::metadata(&log).unwrap().permissions().mode() & 0o077,
            0,
            "{}",
            log.display()
        );
    }
}
