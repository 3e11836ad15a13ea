//! gRPC over HTTP/2 as far as a proxy must know it: message frames, statuses of its own, timeouts.
//!
//! ```text
//!   0       1         5
//!   ┌───────┬─────────┬───────────────┐
//!   │ flag  │ length  │ message       │   flag 1: compressed; length big-endian
//!   └───────┴─────────┴───────────────┘
//! ```
//!
//! Source: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

/// Bytes before each message.
pub(crate) const PREFIX: usize = 5;

/// The status codes that the shim gives by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    ResourceExhausted = 8,
    Unavailable = 14,
}

/// A status for the client, made by the shim and not by the runtime.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl Status {
    pub(crate) fn unavailable(message: String) -> Self {
        Self { code: Code::Unavailable, message }
    }

    /// Worded as grpc-go words it, which is what operators search for.
    pub(crate) fn too_large(len: usize, max: usize) -> Self {
        let message = format!("cri-shim: received message larger than max ({len} vs. {max} bytes)");
        Self { code: Code::ResourceExhausted, message }
    }

    /// As the trailers of a response that has begun.
    pub(crate) fn trailers(&self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(2);
        map.insert("grpc-status", HeaderValue::from(self.code as u16));
        // Percent-encoded text is printable ASCII, hence always a header value.
        if let Ok(message) = HeaderValue::try_from(percent_encode(&self.message)) {
            map.insert("grpc-message", message);
        }
        map
    }

    /// As a whole response, "trailers only".
    pub(crate) fn response(&self) -> Response<()> {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::OK;
        *response.headers_mut() = self.trailers();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response
    }
}

fn percent_encode(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(byte as char),
            _ => _ = write!(out, "%{byte:02X}"),
        }
        out
    })
}

/// `grpc-status` of a finished call; a call without one did not end as gRPC.
pub(crate) fn status_of(head: &HeaderMap, trailers: Option<&HeaderMap>) -> Option<u16> {
    let value = trailers.and_then(|t| t.get("grpc-status")).or_else(|| head.get("grpc-status"))?;
    value.to_str().ok()?.parse().ok()
}

/// `grpc-message` of a finished call, as it was sent.
pub(crate) fn message_of(head: &HeaderMap, trailers: Option<&HeaderMap>) -> String {
    let value = trailers.and_then(|t| t.get("grpc-message")).or_else(|| head.get("grpc-message"));
    value.map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()).unwrap_or_default()
}

/// The client's `grpc-timeout`: at most eight digits and a unit.
pub(crate) fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

/// The message of a body that is exactly one uncompressed message.
pub(crate) fn single_message(body: &Bytes) -> Option<Bytes> {
    let prefix = body.first_chunk::<PREFIX>()?;
    let [flag, length @ ..] = *prefix;
    let whole = flag == 0 && u32::from_be_bytes(length) as usize == body.len() - PREFIX;
    whole.then(|| body.slice(PREFIX..))
}

/// `message` as a body of one uncompressed message.
pub(crate) fn frame(message: &[u8]) -> Bytes {
    let mut body = BytesMut::with_capacity(PREFIX + message.len());
    body.put_u8(0);
    body.put_u32(message.len() as u32);
    body.put_slice(message);
    body.freeze()
}

/// Watches the message lengths in a body that passes by in pieces.
#[derive(Debug)]
pub(crate) struct Meter {
    max: usize,
    prefix: [u8; PREFIX],
    have: usize,
    rest: usize,
}

impl Meter {
    pub(crate) fn new(max: usize) -> Self {
        Self { max, prefix: [0; PREFIX], have: 0, rest: 0 }
    }

    /// Takes note of the next piece; fails at a message larger than the maximum.
    pub(crate) fn see(&mut self, mut piece: &[u8]) -> Result<(), Status> {
        while !piece.is_empty() {
            if self.rest > 0 {
                let n = self.rest.min(piece.len());
                self.rest -= n;
                piece = &piece[n..];
                continue;
            }
            self.prefix[self.have] = piece[0];
            piece = &piece[1..];
            self.have += 1;
            if self.have == PREFIX {
                let [_, length @ ..] = self.prefix;
                let length = u32::from_be_bytes(length) as usize;
                if length > self.max {
                    return Err(Status::too_large(length, self.max));
                }
                (self.have, self.rest) = (0, length);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_timeout(value: &str) -> Option<Duration> {
        timeout(&HeaderMap::from_iter([(
            header::HeaderName::from_static("grpc-timeout"),
            HeaderValue::from_str(value).unwrap(),
        )]))
    }

    #[test]
    fn timeouts_are_read_in_every_unit_and_garbage_is_no_timeout() {
        assert_eq!(with_timeout("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(with_timeout("99999999m"), Some(Duration::from_millis(99_999_999)));
        assert_eq!(with_timeout("1n"), Some(Duration::from_nanos(1)));
        for garbage in ["", "m", "1", "-1m", "100000000m", "1d"] {
            assert_eq!(with_timeout(garbage), None, "{garbage}");
        }
    }

    #[test]
    fn a_status_message_survives_as_percent_encoding() {
        let status = Status::unavailable("100 % of “it”\n".into());
        assert_eq!(status.trailers()["grpc-message"], "100 %25 of %E2%80%9Cit%E2%80%9D%0A");
    }

    #[test]
    fn the_meter_finds_lengths_wherever_the_body_is_cut() {
        let body = [&frame(b"abc")[..], &frame(b"")[..], &frame(&[7; 11])[..]].concat();
        for size in 1..body.len() {
            let mut meter = Meter::new(11);
            assert!(body.chunks(size).all(|piece| meter.see(piece).is_ok()));
            let mut meter = Meter::new(10);
            assert!(body.chunks(size).any(|piece| meter.see(piece).is_err()));
        }
    }

    #[test]
    fn only_one_whole_uncompressed_message_is_read() {
        let body = frame(b"abc");
        assert_eq!(single_message(&body).unwrap(), "abc");
        assert_eq!(single_message(&body.slice(..7)), None);
        assert_eq!(single_message(&Bytes::from([&body[..], &body[..]].concat())), None);
        let mut compressed = body.to_vec();
        compressed[0] = 1;
        assert_eq!(single_message(&compressed.into()), None);
    }
}
