//! One message on a stream socket.
//!
//! ```text
//!   0      4        6        8          12
//!   ┌──────┬────────┬────────┬──────────┬───────────────┐
//!   │ WFRG │ version│ zero   │ length   │ protobuf      │   integers little-endian
//!   └──────┴────────┴────────┴──────────┴───────────────┘
//! ```

use prost::Message;

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"WFRG";
/// The version that this build speaks.
pub const VERSION: u16 = 1;
/// Largest accepted payload, in bytes.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// Size of the header, in bytes.
pub const HEADER: usize = 12;

/// Why bytes are not a frame of ours.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    /// The first four bytes are something else.
    #[error("not a woodfrog frame: starts with {0:02x?}")]
    Magic([u8; 4]),
    /// Another version of the protocol.
    #[error("frame version {0}, this build speaks {VERSION}: use binaries of one release on a node")]
    Version(u16),
    /// The payload is larger than [`MAX_PAYLOAD`].
    #[error("a frame of {0} bytes, at most {MAX_PAYLOAD} are accepted")]
    TooLarge(usize),
    /// The payload is not the expected message.
    #[error("malformed message: {0}")]
    Decode(String),
}

/// `message` as a frame.
///
/// # Errors
/// [`FrameError::TooLarge`].
pub fn encode(message: &impl Message) -> Result<Vec<u8>, FrameError> {
    let len = message.encoded_len();
    if len > MAX_PAYLOAD {
        return Err(FrameError::TooLarge(len));
    }
    let mut out = Vec::with_capacity(HEADER + len);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&(len as u32).to_le_bytes());
    message.encode_raw(&mut out);
    Ok(out)
}

/// The payload's length that a header announces.
///
/// # Errors
/// A wrong magic or version, or a length above [`MAX_PAYLOAD`].
pub fn payload_len(header: &[u8; HEADER]) -> Result<usize, FrameError> {
    let [a, b, c, d, v0, v1, _, _, l0, l1, l2, l3] = *header;
    if [a, b, c, d] != MAGIC {
        return Err(FrameError::Magic([a, b, c, d]));
    }
    let version = u16::from_le_bytes([v0, v1]);
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if len > MAX_PAYLOAD { Err(FrameError::TooLarge(len)) } else { Ok(len) }
}

/// The message in a payload.
///
/// # Errors
/// [`FrameError::Decode`].
pub fn decode<M: Message + Default>(payload: &[u8]) -> Result<M, FrameError> {
    M::decode(payload).map_err(|e| FrameError::Decode(e.to_string()))
}

/// The message in bytes that are one whole frame, such as a file.
///
/// # Errors
/// Any [`FrameError`].
pub fn whole<M: Message + Default>(bytes: &[u8]) -> Result<M, FrameError> {
    let length = || FrameError::Decode(format!("{} bytes are not one whole frame", bytes.len()));
    let header = bytes.first_chunk::<HEADER>().ok_or_else(length)?;
    if bytes.len() == HEADER + payload_len(header)? { decode(&bytes[HEADER..]) } else { Err(length()) }
}

/// Collects bytes as they come and gives out whole messages.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Adds received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` until more bytes come.
    ///
    /// # Errors
    /// Any [`FrameError`]; the stream is of no use afterwards.
    pub fn pop<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        let Some(header) = self.buffer.first_chunk::<HEADER>() else { return Ok(None) };
        let end = HEADER + payload_len(header)?;
        if self.buffer.len() < end {
            return Ok(None);
        }
        let message = decode(&self.buffer[HEADER..end])?;
        self.buffer.drain(..end);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::{Hello, ToInit};

    fn hello() -> Hello {
        Hello { version: "1.2.3".into(), application_pid: 300, ..Hello::default() }
    }

    #[test]
    fn a_message_survives_any_split_of_its_bytes() {
        let bytes = [encode(&hello()).unwrap(), encode(&hello()).unwrap()].concat();
        for split in 0..bytes.len() {
            let mut decoder = Decoder::default();
            let mut got = Vec::new();
            for part in [&bytes[..split], &bytes[split..]] {
                decoder.push(part);
                while let Some(message) = decoder.pop::<Hello>().unwrap() {
                    got.push(message);
                }
            }
            assert_eq!(got, [hello(), hello()]);
        }
    }

    #[test]
    fn foreign_bytes_versions_and_sizes_are_refused() {
        let mut bytes = encode(&hello()).unwrap();
        bytes[4] = 9;
        let mut decoder = Decoder::default();
        decoder.push(&bytes);
        assert_eq!(decoder.pop::<Hello>(), Err(FrameError::Version(9)));

        let mut decoder = Decoder::default();
        decoder.push(b"GET / HTTP/1.1\r\n");
        assert_eq!(decoder.pop::<Hello>(), Err(FrameError::Magic(*b"GET ")));

        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&MAGIC);
        header[4] = 1;
        header[8..].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(payload_len(&header), Err(FrameError::TooLarge(u32::MAX as usize)));
    }

    #[test]
    fn a_payload_of_garbage_is_an_error_not_a_panic() {
        assert!(matches!(decode::<ToInit>(&[0xff; 7]), Err(FrameError::Decode(_))));
    }
}
