//! Which crate may use which. A new arrow is a design decision: change the table here and in docs/ARCHITECTURE.md.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use serde_json::Value;

/// Crate, what of ours it may use, and what it must never depend on directly.
const TABLE: &[(&str, &[&str], &[&str])] = &[
    ("model", &[], &["tokio", "axum", "hyper", "reqwest", "clap", "tracing"]),
    ("runtime", &[], &["sqlx", "reqwest", "x509-parser", "rcgen", "redis"]),
    (
        "x509",
        &["model"],
        &["tokio", "axum", "hyper", "reqwest", "sqlx", "rustls"],
    ),
    ("contract", &["model"], &["tokio", "axum", "hyper", "reqwest"]),
    ("client", &["model", "contract"], &["axum", "sqlx", "hyper"]),
    (
        "store",
        &["model"],
        &["axum", "hyper", "reqwest", "http", "rcgen", "x509-parser"],
    ),
    (
        "api",
        &["model", "contract", "store", "x509", "runtime", "client"],
        &["rcgen", "rasn", "pkcs8", "lettre"],
    ),
    (
        "signer",
        &["model", "contract", "store", "x509", "runtime"],
        &["reqwest", "rustls", "lettre", "redis"],
    ),
    (
        "scheduler",
        &["model", "contract", "store", "x509", "runtime", "client"],
        &["axum", "rcgen", "pkcs8", "lettre"],
    ),
    (
        "notifier",
        &["model", "store", "runtime"],
        &["axum", "rcgen", "x509-parser", "rasn"],
    ),
    (
        "agent",
        &["model", "contract", "client", "x509", "runtime"],
        &["sqlx", "axum", "reqwest", "redis"],
    ),
    // It signs with a key of its user, to show that it is known; files that it writes follow no planted link.
    (
        "cli",
        &["model", "contract", "client", "x509", "runtime"],
        &["sqlx", "axum", "reqwest"],
    ),
    ("mcp", &["contract", "client"], &["sqlx", "axum", "reqwest"]),
    (
        "loadtest",
        &["contract", "client", "model", "store", "sim"],
        &["axum", "reqwest"],
    ),
    ("sim", &["model"], &["sqlx", "tokio"]),
    ("local", &["client", "runtime"], &["sqlx", "axum"]),
];

struct Crate {
    ours: BTreeSet<String>,
    /// What is linked without asking for a feature.
    others: BTreeSet<String>,
}

fn crates() -> BTreeMap<String, Crate> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
            "--manifest-path",
            manifest,
        ])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut crates = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"]
            .as_str()
            .unwrap()
            .strip_prefix("certctl-")
            .expect("all are named certctl-<folder>");
        assert_eq!(
            (&package["version"], &package["publish"]),
            (&"0.0.0".into(), &Value::Array(vec![])),
            "{name}"
        );
        let linked = package["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|d| d["kind"].is_null());
        let (mut ours, mut others) = (BTreeSet::new(), BTreeSet::new());
        for dependency in linked {
            let used = dependency["name"].as_str().unwrap();
            match used.strip_prefix("certctl-") {
                Some(used) => ours.insert(used.to_owned()),
                None if dependency["optional"] == true => false,
                None => others.insert(used.to_owned()),
            };
        }
        crates.insert(name.to_owned(), Crate { ours, others });
    }
    crates
}

#[test]
fn arrows_between_crates_are_those_of_the_table() {
    let crates = crates();
    let named: BTreeSet<_> = TABLE.iter().map(|(name, ..)| *name).chain(["tests"]).collect();
    assert_eq!(
        named,
        crates.keys().map(String::as_str).collect(),
        "every crate has a row"
    );
    for (name, may_use, never) in TABLE {
        let found = &crates[*name];
        let may_use: BTreeSet<_> = may_use.iter().map(|used| (*used).to_owned()).collect();
        let new: Vec<_> = found.ours.difference(&may_use).collect();
        assert!(new.is_empty(), "certctl-{name} may not use {new:?}");
        let seen: Vec<_> = never.iter().filter(|used| found.others.contains(**used)).collect();
        assert!(seen.is_empty(), "certctl-{name} must never see {seen:?}");
    }
}

#[test]
fn nothing_depends_on_the_tests() {
    for (name, found) in crates() {
        assert!(!found.ours.contains("tests"), "certctl-{name} uses the tests");
    }
}
