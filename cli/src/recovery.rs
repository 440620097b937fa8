//! Bringing back the revocations that a restored database does not have, from the files of a journal.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use certctl_contract::{
    endpoint::NoBody,
    query::NoParams,
    recovery::{FinishRecovery, RestoreRevocationRecords, Restored, RevocationRecords},
};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde_json::json;

use crate::{args::Format, commands::Session, failure::Failure, output};

/// Records in one request.
const BATCH: usize = 1_000;
/// No record is longer.
const MAX_LINE: u64 = 64 * 1024;

/// The command.
pub(crate) fn command() -> Command {
    Command::new("restore-revocations")
        .about("After a restore of the database, bring back the revocations it does not have, and let issuance go on")
        .long_about(
            "After a restore of the database, bring back the revocations it does not have, and let issuance go on.\n\nReads \
             the files of the journals (CERTCTL_REVOCATION_JOURNAL_DIR) of every API and scheduler; name all of them. \
             What the database has stays, so that the command can be repeated. Then the recovery is declared finished: \
             the signer, which refuses to sign over a database that is older than what it remembers, goes on. Of a file \
             whose last line was torn by a crash the rest counts; other lines that cannot be read are said, and the \
             recovery is not finished.",
        )
        .args([
            Arg::new("journals")
                .required(true)
                .num_args(1..)
                .value_name("PATH")
                .value_parser(value_parser!(PathBuf))
                .help("Directories of journals, or single files"),
            Arg::new("keep-fence")
                .long("keep-fence")
                .action(ArgAction::SetTrue)
                .help("Do not finish the recovery: more journals follow"),
        ])
}

/// Sends what the files hold, and finishes the recovery.
pub(crate) async fn run(session: &Session, matches: &ArgMatches) -> Result<(), Failure> {
    let mut files = vec![];
    for path in matches.get_many::<PathBuf>("journals").into_iter().flatten() {
        files.extend(journals(path)?);
    }
    if files.is_empty() {
        return Err(Failure::Failed("there is no file *.ndjson to read".to_owned()));
    }
    let mut told = Told::default();
    for file in &files {
        send(session, file, &mut told).await?;
    }
    let keep = matches.get_flag("keep-fence") || told.broken > 0;
    if !keep {
        session
            .client
            .call::<FinishRecovery>(NoParams, NoParams, NoBody)
            .await?;
    }
    let Told {
        restored,
        known,
        torn,
        broken,
    } = told;
    match session.lists_as() {
        Format::Json => output::json(&json!({
            "files": files.len(), "restored": restored, "known": known, "torn": torn, "broken": broken, "finished": !keep,
        }))?,
        Format::Table => output::line(&format!(
            "{restored} revocations restored, {known} known already, {torn} lines torn; the recovery is {}finished",
            if keep { "not " } else { "" }
        ))?,
    }
    match broken {
        0 => Ok(()),
        n => Err(Failure::Partly(format!(
            "{n} lines cannot be read; the recovery is not finished"
        ))),
    }
}

#[derive(Default)]
struct Told {
    restored: i64,
    known: i64,
    torn: usize,
    broken: usize,
}

/// The files of a directory, oldest first, or the one file.
fn journals(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let failed = |e: std::io::Error| Failure::Failed(format!("{}: {e}", path.display()));
    if !fs::metadata(path).map_err(failed)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = vec![];
    for entry in fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        if file.extension().is_some_and(|end| end == "ndjson") {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

async fn send(session: &Session, path: &Path, told: &mut Told) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::Failed(format!("{}: {e}", path.display()));
    let mut reader = BufReader::new(File::open(path).map_err(failed)?);
    let mut batch = RevocationRecords::default();
    for number in 1.. {
        let mut line = vec![];
        let read = reader
            .by_ref()
            .take(MAX_LINE)
            .read_until(b'\n', &mut line)
            .map_err(failed)?;
        if read > 0 {
            let whole = line.ends_with(b"\n");
            // Read as what it is sent as: a list of one.
            let text = [br#"{"records":["#, line.trim_ascii(), b"]}"].concat();
            match serde_json::from_slice::<RevocationRecords>(&text) {
                Ok(record) if record.records.len() == 1 => batch.records.extend(record.records),
                _ if !whole && read < MAX_LINE as usize => told.torn += 1,
                _ => {
                    told.broken += 1;
                    output::note(&format!("{}:{number}: is no record of a revocation", path.display()));
                }
            }
        }
        if batch.records.len() == BATCH || (read == 0 && !batch.records.is_empty()) {
            let records = std::mem::take(&mut batch);
            let Restored { restored, known } = session
                .client
                .call::<RestoreRevocationRecords>(NoParams, NoParams, records)
                .await?;
            told.restored += restored;
            told.known += known;
        }
        if read == 0 {
            break;
        }
    }
    Ok(())
}
