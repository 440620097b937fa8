//! docs/FAILURES.md and docs/SECURITY.md name tests; each of them exists.

use std::{collections::BTreeSet, fs, path::Path};

fn sources(under: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(under).unwrap().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir()
            && !["target", ".git", ".venv", "node_modules"]
                .iter()
                .any(|skip| name == *skip)
        {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(fs::read_to_string(&path).unwrap());
        }
    }
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The names of all functions of the workspace.
fn functions() -> BTreeSet<String> {
    let mut texts = vec![];
    sources(root(), &mut texts);
    let lines = texts.iter().flat_map(|text| text.lines());
    let names = lines.filter_map(|line| {
        let function = line.trim().trim_start_matches("async ").strip_prefix("fn ")?;
        function.split(['(', '<']).next().map(str::to_owned)
    });
    names.collect()
}

/// What stands between backquotes.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_known_failure_is_closed_by_tests_that_exist() {
    let tests = functions();
    let page = fs::read_to_string(root().join("docs/FAILURES.md")).unwrap();
    let rows = page
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| Row"));
    let mut count = 0;
    for row in rows {
        let shown_by = row.split('|').nth(3).unwrap();
        let named = quoted(shown_by);
        assert!(!named.is_empty(), "no test closes {row}");
        for name in named {
            assert!(tests.contains(name), "there is no test {name}, which is to close {row}");
        }
        count += 1;
    }
    assert!(count > 100, "the page has {count} rows");
}

#[test]
fn every_statement_of_the_security_page_is_shown_by_tests_that_exist() {
    let tests = functions();
    let page = fs::read_to_string(root().join("docs/SECURITY.md")).unwrap();
    let (statements, notes) = page.split_once("\n## Tests\n").unwrap();
    let mut defined = BTreeSet::new();
    for note in notes.lines().filter(|line| line.starts_with("[^")) {
        let (name, shown_by) = note.trim_start_matches("[^").split_once("]:").unwrap();
        assert!(defined.insert(name), "{name} is defined twice");
        let named = quoted(shown_by);
        assert!(!named.is_empty(), "{name} names no test");
        for test in named {
            assert!(tests.contains(test), "there is no test {test}, which is to show {name}");
        }
    }
    let used: BTreeSet<&str> = statements
        .split("[^")
        .skip(1)
        .map(|rest| rest.split(']').next().unwrap())
        .collect();
    assert_eq!(used, defined, "used and defined");
    assert!(used.len() > 80, "the page has {} references", used.len());
    let unproven = ["Not protected", "Reporting problems"];
    for section in statements.split("\n## ").skip(1) {
        let (heading, text) = section.split_once('\n').unwrap();
        if unproven.contains(&heading) {
            continue;
        }
        assert!(text.contains("[^"), "nothing shows {heading}");
        for statement in text.split("\n* ").skip(1) {
            assert!(statement.contains("[^"), "{heading}: nothing shows {statement}");
        }
    }
}
