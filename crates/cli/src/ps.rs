//! `woodfrog ps`.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use indicatif::HumanDuration;
use woodfrog_protocol::agent::{Container, Empty, StoredImage, request, response};

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

/// Lists the images in the page store.
pub(crate) fn pages(socket: &Path, format: Format) -> Result<ExitCode, Failure> {
    let response::Kind::Containers(list) = client::ask(socket, request::Kind::List(Empty {}))? else {
        return client::unexpected(socket);
    };
    match format {
        Format::Json => output::json(&list.stored)?,
        Format::Table => {
            let header = ["DIGEST", "MEMORY", "USED", "LAST WANTED"];
            output::table(&header, &[1], list.stored.iter().map(stored).collect())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn stored(image: &StoredImage) -> Vec<String> {
    let wanted = SystemTime::UNIX_EPOCH + Duration::from_secs(image.wanted_unix);
    let ago = Duration::from_secs(wanted.elapsed().unwrap_or_default().as_secs());
    vec![
        image.digest.clone(),
        output::bytes(image.bytes),
        if image.used { "yes" } else { "no" }.into(),
        format!("{} ago", HumanDuration(ago)),
    ]
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
        // Of which others may have the most.
        output::bytes(container.resident_bytes) + if container.shares_memory { " shared" } else { "" },
        output::millis(container.thaw_ms),
        container.reason.clone(),
    ]
}
