//! `woodfrog check`.

use std::path::Path;
use std::process::ExitCode;

use woodfrog_protocol::agent::{self, CheckRequest, request, response};

use crate::args::{Check, Format};
use crate::client;
use crate::failure::{FOUND, Failure};
use crate::output;

/// Says what would make a freeze fail.
pub(crate) fn run(socket: &Path, format: Format, check: Check) -> Result<ExitCode, Failure> {
    let name = check.container.clone();
    let connections = agent::Connections::from(check.connections).into();
    let request = request::Kind::Check(CheckRequest { container: check.container, connections });
    let response::Kind::Checked(checked) = client::ask(socket, request)? else {
        return client::unexpected(socket);
    };
    let clean = checked.findings.is_empty();
    match format {
        Format::Json => output::json(&checked)?,
        Format::Table if clean => output::line(&format!("{name}: nothing stands against a freeze"))?,
        Format::Table => {
            let rows = checked.findings.into_iter().map(|f| vec![f.category, f.message, f.advice]).collect();
            output::table(&["KIND", "FOUND", "ADVICE"], &[], rows)?;
        }
    }
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}
