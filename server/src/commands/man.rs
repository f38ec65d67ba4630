//! `trefoil man`.

use std::io::{Write, stdout};
use std::path::Path;

use clap::CommandFactory;
use clap_mangen::Man;

use crate::cli::Cli;
use crate::exit::Outcome;

/// Writes the page of the program to standard output, or pages of it and of each command into a folder.
pub(crate) fn run(folder: Option<&Path>) -> Outcome {
    let command = Cli::command();
    if let Some(folder) = folder {
        std::fs::create_dir_all(folder)?;
        clap_mangen::generate_to(command, folder)?;
        return Ok(());
    }
    let mut page = Vec::new();
    Man::new(command).render(&mut page)?;
    stdout().write_all(&page)?;
    Ok(())
}
