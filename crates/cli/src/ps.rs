//! `woodfrog ps`.

use std::path::Path;
use std::process::ExitCode;

use woodfrog_protocol::agent::{Container, Empty, request, response};

use crate::args::Format;
use crate::client;
use crate::failure::Failure;
use crate::output;

/// Lists the managed containers.
pub(crate) fn run(socket: &Path, format: Format) -> Result<ExitCode, Failure> {
    let response::Kind::Containers(list) = client::ask(socket, request::Kind::List(Empty {}))? else {
        return client::unexpected(socket);
    };
    match format {
        Format::Json => output::json(&list.containers)?,
        Format::Table => {
            let header = [
                "ID",
                "NAMESPACE",
                "POD",
                "CONTAINER",
                "STATE",
                "PID",
                "GENERATION",
                "MEMORY",
                "THAW",
                "REASON",
            ];
            output::table(&header, &[5, 6, 7, 8], list.containers.iter().map(row).collect())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(container: &Container) -> Vec<String> {
    let number = |number: u64| if number == 0 { "-".into() } else { number.to_string() };
    vec![
        container.id.chars().take(12).collect(),
        container.namespace.clone(),
        container.pod.clone(),
        container.name.clone(),
        container.state.clone(),
        number(container.pid.max(0) as u64),
        number(container.generation),
        output::bytes(container.resident_bytes),
        output::millis(container.thaw_ms),
        container.reason.clone(),
    ]
}
