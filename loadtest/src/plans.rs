//! Plans that auto_explain wrote into the log of Postgres (`auto_explain.log_format = json`, `log_analyze = on`).

use std::{collections::BTreeMap, fs::File, io::BufRead, io::BufReader};

use anyhow::Context;
use serde_json::{Value, json};

use crate::cli::Plans;

/// Tables that grow with certificates and with time: reading one of them from end to end is never right.
const LARGE: [&str; 7] = [
    "certificates",
    "certificate_versions",
    "certificate_targets",
    "jobs",
    "audit_events",
    "notifications",
    "revocations",
];
/// Statements shown of each kind.
const SHOWN: usize = 10;
/// How much is shown of one: its end, where conditions and order are.
const SHOWN_CHARACTERS: usize = 240;

/// What is wrong with statements, and how often.
#[derive(Default)]
struct Findings {
    statements: u64,
    scans: BTreeMap<String, u64>,
    sorts: BTreeMap<String, u64>,
}

/// Counts sequential scans of large tables and sorts of more rows than a page has.
///
/// # Errors
/// When the log cannot be read.
pub(crate) fn read(args: &Plans) -> anyhow::Result<Value> {
    let file = File::open(&args.log).with_context(|| format!("cannot read {}", args.log.display()))?;
    let mut findings = Findings::default();
    let mut plan: Option<String> = None;
    for line in BufReader::new(file).lines() {
        let line = line?;
        match &mut plan {
            // What follows the first line of a message is indented.
            Some(text) if line.starts_with('\t') => text.push_str(line.trim_start()),
            _ => {
                findings.close(plan.take(), args.most);
                plan = line.contains("  plan:").then(String::new);
            }
        }
    }
    findings.close(plan, args.most);
    let shown = |found: &BTreeMap<String, u64>| found.keys().take(SHOWN).cloned().collect::<Vec<_>>();
    Ok(json!({
        "name": "plans",
        "statements": findings.statements,
        "sequential_scans": findings.scans.values().sum::<u64>(),
        "sorts_above_a_page": findings.sorts.values().sum::<u64>(),
        "shown_scans": shown(&findings.scans),
        "shown_sorts": shown(&findings.sorts),
    }))
}

impl Findings {
    fn close(&mut self, text: Option<String>, most: u64) {
        let Some(parsed) = text.and_then(|text| serde_json::from_str::<Value>(&text).ok()) else {
            return;
        };
        let words: Vec<&str> = parsed["Query Text"]
            .as_str()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        let statement = words.join(" ");
        // Nor are pages by number looked at: they count what they skip, and lead to the far cursors here.
        if !["SELECT", "WITH"].iter().any(|word| statement.starts_with(word)) || statement.contains(" OFFSET ") {
            return;
        }
        self.statements += 1;
        let end = statement.len().saturating_sub(SHOWN_CHARACTERS);
        self.node(
            &parsed["Plan"],
            "",
            &statement[statement.ceil_char_boundary(end)..],
            most,
        );
    }

    fn node(&mut self, node: &Value, above: &str, statement: &str, most: u64) {
        let children = node["Plans"].as_array().map(Vec::as_slice).unwrap_or_default();
        let kind = node["Node Type"].as_str().unwrap_or_default();
        let relation = node["Relation Name"].as_str().unwrap_or_default();
        if kind == "Seq Scan" && LARGE.contains(&relation) {
            *self.scans.entry(format!("{relation}: {statement}")).or_default() += 1;
        }
        // What is computed beforehand is not what is sorted.
        let inputs = children
            .iter()
            .filter(|child| child["Parent Relationship"] != "InitPlan");
        let taken_in: f64 = inputs.filter_map(|child| child["Actual Rows"].as_f64()).sum();
        // Under a limit Postgres keeps only the first few, as soon as there are twice as many.
        let keeps_few = node["Sort Method"] == "top-N heapsort" || (above == "Limit" && taken_in <= 2.0 * most as f64);
        if kind == "Sort" && taken_in > most as f64 && !keeps_few {
            *self.sorts.entry(format!("{taken_in} rows: {statement}")).or_default() += 1;
        }
        children
            .iter()
            .for_each(|child| self.node(child, kind, statement, most));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(plan: &Value) -> (u64, u64, u64) {
        let mut findings = Findings::default();
        let text = json!({ "Query Text": "SELECT 1", "Plan": plan }).to_string();
        findings.close(Some(text), 51);
        let count = |found: &BTreeMap<String, u64>| found.values().sum();
        (findings.statements, count(&findings.scans), count(&findings.sorts))
    }

    #[test]
    fn what_grows_with_the_estate_is_found() {
        let scan = |table: &str| json!({ "Node Type": "Seq Scan", "Relation Name": table, "Actual Rows": 4 });
        let sort = |rows: u64| {
            json!({ "Node Type": "Limit", "Plans": [
                { "Node Type": "Sort", "Plans": [{ "Node Type": "Index Scan", "Actual Rows": rows }] },
            ] })
        };
        for (plan, expected) in [
            (scan("jobs"), (1, 1, 0)),
            (scan("teams"), (1, 0, 0)),
            (scan("agents"), (1, 0, 0)),
            (sort(51), (1, 0, 0)),
            (sort(52), (1, 0, 0)),
            (sort(102), (1, 0, 0)),
            (sort(103), (1, 0, 1)),
            (sort(52)["Plans"][0].clone(), (1, 0, 1)),
            (
                json!({ "Node Type": "Sort", "Sort Method": "top-N heapsort", "Plans": [{ "Actual Rows": 900 }] }),
                (1, 0, 0),
            ),
            (
                json!({ "Node Type": "Sort", "Plans": [
                    { "Actual Rows": 51 }, { "Actual Rows": 900, "Parent Relationship": "InitPlan" },
                ] }),
                (1, 0, 0),
            ),
            (json!({ "Node Type": "Index Scan" }), (1, 0, 0)),
            (
                json!({ "Node Type": "Hash Join", "Plans": [scan("certificates"), sort(900)] }),
                (1, 1, 1),
            ),
        ] {
            assert_eq!(findings(&plan), expected, "{plan}");
        }
    }
}
