//! `woodfrog wake`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::json;
use woodfrog_protocol::agent::{Container, Empty, Outcome, Wake, WakeAll, WokenBy, request, response};

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

/// Wakes all that sleep; see [`WakeAll::for_good`].
pub(crate) fn all(socket: &Path, format: Format, for_good: bool) -> Result<ExitCode, Failure> {
    let woken = ask_all(socket, for_good)?;
    match format {
        Format::Json => output::json(&woken)?,
        Format::Table => {
            for woken in woken {
                output::line(&format!("{}/{}/{}: {}", woken.namespace, woken.pod, woken.name, woken.state))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes back what was meant for good.
pub(crate) fn sleep_again(socket: &Path) -> Result<ExitCode, Failure> {
    match client::ask(socket, request::Kind::SleepAgain(Empty {}))? {
        response::Kind::Ok(_) => Ok(ExitCode::SUCCESS),
        _ => client::unexpected(socket),
    }
}

/// Before the shim goes from a node, and its agent with it. Where no agent answers, which is said, those that sleep cannot be woken.
pub(crate) fn before_the_end(socket: &Path) -> Result<(), String> {
    match ask_all(socket, true) {
        Ok(_) => Ok(()),
        Err(e @ Failure::Unreachable { .. }) => {
            eprintln!("no container is woken: {e}");
            Ok(())
        }
        Err(e) => Err(e.to_string()),
    }
}

/// Those that slept, as they are awake.
fn ask_all(socket: &Path, for_good: bool) -> Result<Vec<Container>, Failure> {
    let request = request::Kind::WakeAll(WakeAll { for_good });
    match client::ask_and_watch(socket, request, &mut |_| {})? {
        response::Kind::Containers(woken) => Ok(woken.containers),
        _ => client::unexpected(socket),
    }
}
