//! Completions and manual pages, made from the command line itself.

use std::{fs, path::Path};

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::{failure::Failure, output};

/// Prints the completions for a shell.
pub(crate) fn completions(shell: Shell, command: &mut Command) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, command, "certctl-cli", &mut text);
    Ok(output::write(&text)?)
}

/// Writes a page for each command into a directory, or the main one to standard output.
pub(crate) fn man(mut command: Command, directory: Option<&Path>) -> Result<(), Failure> {
    command.build();
    let Some(directory) = directory else {
        return Ok(output::write(&page(&command, "certctl-cli")?)?);
    };
    let failed = |e: std::io::Error| Failure::Failed(format!("{}: {e}", directory.display()));
    fs::create_dir_all(directory).map_err(failed)?;
    let mut all = vec![("certctl-cli".to_owned(), &command)];
    let mut count = 0;
    while let Some((name, command)) = all.pop() {
        fs::write(directory.join(format!("{name}.1")), page(command, &name)?).map_err(failed)?;
        count += 1;
        let shown = command
            .get_subcommands()
            .filter(|c| !c.is_hide_set() && c.get_name() != "help");
        all.extend(shown.map(|c| (format!("{name}-{}", c.get_name()), c)));
    }
    Ok(output::line(&format!("{count} pages in {}", directory.display()))?)
}

fn page(command: &Command, name: &str) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    // Hidden commands are other names of those shown: a page that lists them says everything twice.
    let command = command.clone().name(name.to_owned()).display_name(name.to_owned());
    Man::new(command)
        .title(name)
        .render(&mut text)
        .map_err(|e| Failure::Failed(e.to_string()))?;
    Ok(text)
}
