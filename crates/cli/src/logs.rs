//! `woodfrog logs`.

use std::path::Path;
use std::process::ExitCode;

use chrono::{DateTime, SecondsFormat};
use woodfrog_protocol::agent::{ContainerName, request, response};

use crate::args::Format;
use crate::client;
use crate::failure::Failure;
use crate::output;

/// Shows what the agent did with a container.
pub(crate) fn run(socket: &Path, format: Format, container: String) -> Result<ExitCode, Failure> {
    let request = request::Kind::Log(ContainerName { container });
    let response::Kind::Log(log) = client::ask(socket, request)? else {
        return client::unexpected(socket);
    };
    match format {
        Format::Json => output::json(&log.lines)?,
        Format::Table => {
            for line in log.lines {
                output::line(&format!("{}  {}", time(line.unix_ms), line.message))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn time(unix_ms: u64) -> String {
    let time = i64::try_from(unix_ms).ok().and_then(DateTime::from_timestamp_millis);
    time.map_or_else(|| unix_ms.to_string(), |time| time.to_rfc3339_opts(SecondsFormat::Millis, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_with_milliseconds_and_nonsense_is_shown_as_it_is() {
        assert_eq!(time(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert_eq!(time(u64::MAX), u64::MAX.to_string());
    }
}
