//! Durations as Kubernetes users write them: `90s`, `5m`, `1h30m`, `250ms`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A duration in whole milliseconds: numbers of up to six digits, each with `ms`, `s`, `m` or `h`.
///
/// A part of Go's syntax, without fractions and signs: what is accepted here is accepted everywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(time::Duration);

/// Why a text is no [`Duration`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a duration: write it as in \"90s\", \"5m\" or \"1h30m\"")]
pub struct ParseDurationError(String);

/// Milliseconds of each unit, the longest first.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// The same syntax for the API server.
const PATTERN: &str = "^([0-9]{1,6}(ms|s|m|h))+$";

/// Longest text; with [`PATTERN`] no sum can overflow.
const MAX_LENGTH: usize = 32;

impl Duration {
    /// So many seconds.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(time::Duration::from_secs(seconds))
    }

    /// As the standard library has it.
    #[must_use]
    pub const fn get(self) -> time::Duration {
        self.0
    }
}

impl From<Duration> for time::Duration {
    fn from(duration: Duration) -> Self {
        duration.0
    }
}

impl FromStr for Duration {
    type Err = ParseDurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseDurationError(text.chars().take(MAX_LENGTH).collect());
        if text.is_empty() || text.len() > MAX_LENGTH {
            return Err(error());
        }
        let mut rest = text;
        let mut millis = 0;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, after) = rest.split_at(digits);
            let letters = after.bytes().take_while(u8::is_ascii_lowercase).count();
            let (unit, after) = after.split_at(letters);
            let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(error)?;
            if digits > 6 {
                return Err(error());
            }
            millis += number.parse::<u64>().map_err(|_| error())? * factor;
            rest = after;
        }
        Ok(Self(time::Duration::from_millis(millis)))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if millis == 0 {
            return f.write_str("0s");
        }
        for (unit, factor) in UNITS {
            if millis >= factor {
                write!(f, "{}{unit}", millis / factor)?;
                millis %= factor;
            }
        }
        Ok(())
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Duration {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": MAX_LENGTH,
            "x-kubernetes-validations": [{
                "rule": format!("self.matches('{PATTERN}')"),
                "message": "this is not a duration: write it as in \"90s\", \"5m\" or \"1h30m\"",
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them_and_written_the_shortest_way() {
        for (text, millis, written) in [
            ("90s", 90_000, "1m30s"),
            ("5m", 300_000, "5m"),
            ("1h30m", 5_400_000, "1h30m"),
            ("250ms", 250, "250ms"),
            ("0s", 0, "0s"),
            ("999999h", 3_599_996_400_000, "999999h"),
        ] {
            let duration: Duration = text.parse().unwrap();
            assert_eq!(duration.get(), time::Duration::from_millis(millis), "{text}");
            assert_eq!(duration.to_string(), written, "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in [
            "",
            "90",
            "s",
            "-5m",
            "1.5h",
            "5 m",
            "1d",
            "1000000h",
            "5M",
            "1h1h1h1h1h1h1h1h1h1h1h1h1h1h1h1h1h",
        ] {
            let parsed = text.parse::<Duration>();
            assert!(parsed.is_err(), "{text}: {parsed:?}");
        }
    }
}
