//! The page of figures: `docs/BENCHMARKS.md`.

use std::fs;

use anyhow::Context;
use serde_json::Value;

use crate::cli::Page;

/// A row of the page: the bench, what it shows, which figures, and which of them stands beside a ceiling.
type Shown = (&'static str, &'static str, &'static [&'static str], &'static str);

const SHOWN: [Shown; 15] = [
    (
        "main-job",
        "from the request of a certificate to nginx serving it; beside a bare TLS handshake",
        &["served_p50_ms"],
        "/served_p50_over/tls_handshake",
    ),
    (
        "list-1m",
        "every sort and filter of the list of certificates, page 1 and 10,000 pages behind it; beside the same octets \
         from a bare HTTP server",
        &[
            "rows",
            "p99_ms",
            "deep_over_first",
            "total_p99_ms",
            "search_p99_ms",
            "summary_p99_ms",
            "cpu_ratio",
        ],
        "/p99_over_bare",
    ),
    (
        "agents-5k",
        "heartbeats every 60 s and long polls; beside the processor time of a bare HTTP server for as many requests",
        &["agents", "seconds", "core_share", "missed"],
        "/core_share_over_bare",
    ),
    (
        "audit-25",
        "changes by 25 writers, each with its event; beside the same rows in bare SQL",
        &["per_second", "changes", "events", "failed"],
        "/over_bare_sql",
    ),
    (
        "ocsp-cached",
        "OCSP answers that are given again; beside the processor time of a bare HTTP server for the same octets",
        &["per_second", "post_per_second", "post_cpu_ratio", "failed"],
        "/cpu_ratio",
    ),
    (
        "ocsp-cold",
        "each of a million certificates asked about once; beside the processor time of a raw P-256 signature and an \
         indexed look-up",
        &["certificates", "per_second", "p99_ms", "failed"],
        "/cpu_ratio",
    ),
    (
        "issue-50k",
        "waiting jobs through signer and scheduler until they are stored and audited; beside verifying a request and \
         signing, and nothing else, on all cores",
        &[
            "per_second",
            "jobs",
            "share_of_raw_sign",
            "share_of_csr_verify",
            "cpu_us_per_certificate",
        ],
        "/ceiling_ratio",
    ),
    (
        "jobs-50k",
        "jobs from claim to completion with an issuer that does nothing, each with its event; beside a bare \
         UPDATE … SKIP LOCKED RETURNING of as many rows",
        &["per_second", "jobs", "workers", "batch"],
        "/ceiling_ratio",
    ),
    (
        "sim",
        "90 days of 100,000 certificates on virtual time; beside the decisions alone when each of them is due",
        &[
            "simulated_days_per_second",
            "seeds",
            "certificates",
            "renewals",
            "worst_peak_over_mean",
        ],
        "/seconds_over_decisions",
    ),
    (
        "planner-1m",
        "renewals that fall due at once among a million certificates, until two schedulers have planned each once; \
         beside a bare INSERT of as many jobs",
        &["due", "seconds", "rss_mb", "rss_growth_mb", "jobs", "events"],
        "/seconds_over_bare_insert",
    ),
    (
        "limits-3",
        "what three replicas and one Redis let through; beside the budget",
        &["accepted", "budget", "failed"],
        "/ratio",
    ),
    (
        "revoke-visible",
        "from a revocation to where each of three edges shows it, under OCSP load; beside any answer of an edge meanwhile",
        &[
            "ocsp_p99_ms",
            "crl_p99_s",
            "revoked",
            "per_minute",
            "missed_by_ocsp",
            "missed_by_crl",
            "ocsp_per_second",
        ],
        "/over_round_trip",
    ),
    (
        "revoke-100k",
        "one bulk operation, until every certificate is revoked and its event written; beside one bare UPDATE of as many \
         rows",
        &[
            "certificates",
            "seconds",
            "per_second",
            "revocations",
            "events",
            "events_doubled",
            "refused",
        ],
        "/seconds_over_bare_update",
    ),
    (
        "crl-1m",
        "a CRL of 1,000,000 entries, from the call to the signer to its commit; beside reading the same rows and \
         hashing the same octets",
        &["rows", "seconds", "cpu_seconds", "rss_growth_mb"],
        "/seconds_over_read_and_hash",
    ),
    (
        "crl-10m",
        "10,000,000 entries in 128 shards: the most memory of the signer, and a revocation until its shard is fetched \
         with it, the slowest of twenty; beside reading the rows of a shard",
        &["rows", "rss_mb", "dirty_shard_ms", "dirty_shard_p50_ms"],
        "/dirty_shard_p50_over_read",
    ),
];

/// Writes the page from the lines that the benches printed.
///
/// # Errors
/// When a line is no JSON object with a name.
pub(crate) fn write(args: &Page) -> anyhow::Result<String> {
    let text = fs::read_to_string(&args.lines).with_context(|| format!("cannot read {}", args.lines.display()))?;
    page(&text)
}

fn page(lines: &str) -> anyhow::Result<String> {
    let mut table = String::new();
    for line in lines.lines() {
        let figures: Value = serde_json::from_str(line).context("a line is no JSON")?;
        let name = figures["name"].as_str().context("a line has no name")?;
        let (_, about, keys, ratio) = SHOWN
            .iter()
            .find(|shown| shown.0 == name)
            .with_context(|| format!("{name} is not on the page"))?;
        let cells: Vec<String> = keys.iter().map(|key| format!("`{key}` {}", figures[*key])).collect();
        let ratio = figures.pointer(ratio).unwrap_or(&Value::Null);
        let machine = figures["machine"].as_str().context("a line has no machine")?;
        table += &format!(
            "| `script/bench {name}` | {about} | {} | {ratio} | {machine} |\n",
            cells.join(", ")
        );
    }
    Ok(format!(
        "# Benchmarks\n\nWritten by `script/bench`. A figure is of the machine it was measured on; the ratio to a \
         ceiling, which the same run\nmeasured on the same machine, says more. The machine has clients, API and \
         Postgres.\n\n\
         | command | what | figures | ratio | machine |\n|---|---|---|---|---|\n{table}\n\
         What each run printed, with its ceilings:\n\n```json\n{lines}```\n"
    ))
}

/// What this machine is, as the kernel tells.
pub(crate) fn machine() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("unknown", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{model}, {cores} cores")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_becomes_a_row_and_stays_as_it_is() {
        let line = r#"{"name":"audit-25","per_second":900.5,"changes":5,"events":5,"failed":0,"over_bare_sql":0.25,"machine":"m"}"#;
        let page = page(&format!("{line}\n")).unwrap();
        assert!(
            page.contains("| `per_second` 900.5, `changes` 5, `events` 5, `failed` 0 | 0.25 | m |\n"),
            "{page}"
        );
        assert!(page.contains(&format!("```json\n{line}\n```\n")), "{page}");
        assert!(super::page("{}\n").is_err());
    }
}
