//! Every service gives up what it does not need, and still does its work.

use certctl_tests::stage::Stage;

#[tokio::test]
async fn every_service_is_hardened_and_still_serves_a_certificate() {
    let mut stage = Stage::set(|builder, _| builder).await;
    stage.demo_is_served().await;
    for service in ["api", "signer", "scheduler", "notifier"] {
        let pid = stage.platform.service(service).pid().expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let says = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            line.unwrap_or_else(|| panic!("{service}: {field}")).trim().to_owned()
        };
        assert_eq!(
            (says("NoNewPrivs:"), says("CapEff:")),
            ("1".to_owned(), "0".repeat(16)),
            "{service}"
        );
        // A filter of system calls, where the kernel of this machine has them.
        assert_eq!(says("Seccomp:"), "2", "{service}");
    }
}
