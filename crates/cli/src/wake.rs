//! `woodfrog wake`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::json;
use woodfrog_protocol::agent::{Outcome, Wake, WokenBy, request, response};

use crate::args::Format;
use crate::client;
use crate::failure::Failure;
use crate::output;

/// Wakes a container; nothing happens to one that is awake.
pub(crate) fn run(socket: &Path, format: Format, container: String) -> Result<ExitCode, Failure> {
    let began = Instant::now();
    let wake = Wake { container: container.clone(), by: WokenBy::Command.into(), ..Wake::default() };
    let response::Kind::Started(started) = client::ask(socket, request::Kind::Wake(wake))? else {
        return client::unexpected(socket);
    };
    let ms = began.elapsed().as_secs_f64() * 1e3;
    let state = if started.outcome() == Outcome::Thawed { "thawed" } else { "cold" };
    match format {
        Format::Json => output::json(&json!({ "state": state, "reason": started.reason, "ms": ms }))?,
        Format::Table if started.reason.is_empty() => {
            output::line(&format!("{container}: {state}, {}", output::millis(ms)))?;
        }
        Format::Table => output::line(&format!("{container}: {state}: {}", started.reason))?,
    }
    Ok(ExitCode::SUCCESS)
}
