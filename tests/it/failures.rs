//! docs/FAILURES.md names tests; each of them exists.

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

#[test]
fn every_known_failure_is_closed_by_tests_that_exist() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let mut texts = vec![];
    sources(root, &mut texts);
    let tests: BTreeSet<&str> = texts
        .iter()
        .flat_map(|text| text.lines())
        .filter_map(|line| {
            line.trim()
                .trim_start_matches("async ")
                .strip_prefix("fn ")?
                .split(['(', '<'])
                .next()
        })
        .collect();
    let page = fs::read_to_string(root.join("docs/FAILURES.md")).unwrap();
    let rows = page
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| Row"));
    let mut count = 0;
    for row in rows {
        let shown_by = row.split('|').nth(3).unwrap();
        let named: Vec<&str> = shown_by.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "no test closes {row}");
        for name in named {
            assert!(tests.contains(name), "there is no test {name}, which is to close {row}");
        }
        count += 1;
    }
    assert!(count > 100, "the page has {count} rows");
}
