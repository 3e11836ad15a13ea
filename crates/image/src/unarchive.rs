//! Reading what [`crate::archive`] writes, and no more than that: an archive that comes with an image is not to be
//! trusted, so whatever a volume's archive never holds ends the reading. (The `tar` crate cannot be used here: it
//! ends a PAX record at a line break, which binary attributes contain.)

use std::io::{self, Read};

use tar::Header;

use crate::archive::{Entry, Kind, Time};

/// The most bytes of PAX records before an entry: a path, a link and a set of extended attributes.
const MAX_RECORDS: u64 = 1 << 20;

/// An entry and what its records say of its content.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) entry: Entry,
    /// The file's real size, if it is stored sparse: a map comes before its data.
    pub(crate) sparse: Option<u64>,
}

/// Why there is no next entry.
#[derive(Debug)]
pub(crate) enum Unreadable {
    /// The archive is damaged.
    Damaged(io::Error),
    /// An entry of a type that no volume holds: its path and tar's letter.
    Type(Vec<u8>, char),
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self::Damaged(error)
    }
}

/// An archive. Between two entries it reads as the content of the first.
#[derive(Debug)]
pub(crate) struct Unarchive<R> {
    input: R,
    content: u64,
    padding: u64,
}

impl<R: Read> Unarchive<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, content: 0, padding: 0 }
    }

    /// Goes to the next entry, past what is left of this one's content.
    pub(crate) fn next(&mut self) -> Result<Option<Found>, Unreadable> {
        let mut records = Records::default();
        loop {
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let letter = char::from(header.entry_type().as_byte());
            let size = if letter == 'x' { None } else { records.number(b"size")? };
            let size = size.map_or_else(|| header.entry_size(), Ok)?;
            self.content = size;
            self.padding = size.wrapping_neg() % 512;
            if letter == 'x' {
                if size > MAX_RECORDS {
                    return Err(invalid("an entry has too many records").into());
                }
                records = Records::default();
                self.read_to_end(&mut records.0)?;
                continue;
            }
            return found(&header, letter, size, &records).map(Some);
        }
    }

    fn header(&mut self) -> io::Result<Option<Header>> {
        let left = self.content.saturating_add(self.padding);
        if io::copy(&mut (&mut self.input).take(left), &mut io::sink())? != left {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut header = Header::new_ustar();
        self.input.read_exact(header.as_mut_bytes())?;
        (self.content, self.padding) = (0, 0);
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let fields = header.as_bytes();
        let sum: u32 = fields[..148].iter().chain(&fields[156..]).map(|byte| u32::from(*byte)).sum();
        if header.cksum()? != sum + 8 * u32::from(b' ') {
            return Err(invalid("a header's checksum is wrong"));
        }
        Ok(Some(header))
    }
}

impl<R: Read> Read for Unarchive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.content.min(buffer.len() as u64) as usize;
        let read = self.input.read(&mut buffer[..most])?;
        if read == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.content -= read as u64;
        Ok(read)
    }
}

fn found(header: &Header, letter: char, size: u64, records: &Records) -> Result<Found, Unreadable> {
    let path = records.get(b"path")?.map_or_else(|| field(header, 0, 100), <[u8]>::to_vec);
    let link = records.get(b"linkpath")?.map_or_else(|| field(header, 157, 100), <[u8]>::to_vec);
    let kind = match letter {
        '0' => Kind::File { size },
        '1' => Kind::HardLink { target: link },
        '2' => Kind::Symlink { target: link },
        '5' => Kind::Directory,
        '6' => Kind::Fifo,
        _ => return Err(Unreadable::Type(path, letter)),
    };
    if size > 0 && !matches!(kind, Kind::File { .. }) {
        return Err(invalid("something that is not a file has content").into());
    }
    let number = |key, other: io::Result<u64>| records.number(key)?.map_or(other, Ok);
    let id = |number: u64| u32::try_from(number).map_err(|_| invalid("an owner is out of range"));
    let mtime = match records.get(b"mtime")? {
        Some(text) => time(text)?,
        None => Time { seconds: header.mtime()? as i64, nanoseconds: 0 },
    };
    let sparse = if records.get(b"GNU.sparse.major")?.is_some() {
        Some(records.number(b"GNU.sparse.realsize")?.ok_or_else(|| invalid("a sparse file has no size"))?)
    } else {
        None
    };
    let entry = Entry {
        path,
        kind,
        mode: header.mode()? & 0o7777,
        uid: id(number(b"uid", header.uid())?)?,
        gid: id(number(b"gid", header.gid())?)?,
        mtime,
        xattrs: records.xattrs()?,
    };
    Ok(Found { entry, sparse })
}

/// A text field of the header up to its first zero byte.
fn field(header: &Header, start: usize, length: usize) -> Vec<u8> {
    let field = &header.as_bytes()[start..start + length];
    field.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

/// PAX records: `LENGTH KEY=VALUE\n`, where the length counts all of it.
#[derive(Debug, Default)]
struct Records(Vec<u8>);

impl Records {
    fn iter(&self) -> impl Iterator<Item = io::Result<(&[u8], &[u8])>> {
        let mut rest = self.0.as_slice();
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let Some((key, value, after)) = record(rest) else {
                rest = &[];
                return Some(Err(invalid("a record is malformed")));
            };
            rest = after;
            Some(Ok((key, value)))
        })
    }

    fn get(&self, wanted: &[u8]) -> io::Result<Option<&[u8]>> {
        let mut found = None;
        for record in self.iter() {
            let (key, value) = record?;
            if key == wanted {
                found = Some(value);
            }
        }
        Ok(found)
    }

    fn number(&self, key: &[u8]) -> io::Result<Option<u64>> {
        self.get(key)?.map(number).transpose()
    }

    fn xattrs(&self) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut xattrs = Vec::new();
        for record in self.iter() {
            let (key, value) = record?;
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                xattrs.push((name.to_vec(), value.to_vec()));
            }
        }
        Ok(xattrs)
    }
}

/// Key, value and the rest.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(8).position(|byte| *byte == b' ')?;
    let length = number(&bytes[..space]).ok()? as usize;
    if length <= space + 1 || length > bytes.len() {
        return None;
    }
    let (record, rest) = bytes.split_at(length);
    let body = record[space + 1..].strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    Some((&body[..equals], &body[equals + 1..], rest))
}

fn number(text: &[u8]) -> io::Result<u64> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|c| c.is_ascii_digit()));
    text.and_then(|text| text.parse().ok()).ok_or_else(|| invalid("a record is not a number"))
}

/// Seconds and nanoseconds of a decimal number; before 1970 the fraction counts the other way.
fn time(text: &[u8]) -> io::Result<Time> {
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |text| (true, text));
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let seconds = number(parts.next().unwrap_or_default())?;
    let mut fraction = parts.next().unwrap_or_default().to_vec();
    fraction.resize(9, b'0');
    let nanoseconds = number(&fraction)? as u32;
    let seconds = i64::try_from(seconds).map_err(|_| invalid("a time is out of range"))?;
    Ok(match (negative, nanoseconds) {
        (true, 1..) => Time { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
        (true, 0) => Time { seconds: -seconds, nanoseconds },
        (false, _) => Time { seconds, nanoseconds },
    })
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::Archive;

    fn entry() -> Entry {
        Entry {
            path: [b"long \xff".repeat(40), b"/name".to_vec()].concat(),
            kind: Kind::File { size: 5 },
            mode: 0o4751,
            uid: u32::MAX - 1,
            gid: 7,
            mtime: Time { seconds: -2, nanoseconds: 500_000_000 },
            xattrs: vec![(b"user.a".to_vec(), b"line\nbreak\0=".to_vec())],
        }
    }

    #[test]
    fn everything_that_is_written_is_read_back() {
        let link = Entry { kind: Kind::HardLink { target: vec![b't'; 200] }, xattrs: Vec::new(), ..entry() };
        let mut archive = Archive::new(Vec::new());
        archive.append_file(&entry(), &b"first"[..]).unwrap();
        archive.append(&link).unwrap();
        archive.append_file(&entry(), &b"again"[..]).unwrap();
        let bytes = archive.finish().unwrap();
        let mut archive = Unarchive::new(bytes.as_slice());
        assert_eq!(archive.next().unwrap().unwrap().entry, entry());
        // Content that is not read is passed over.
        assert_eq!(archive.next().unwrap().unwrap().entry, link);
        assert_eq!(archive.next().unwrap().unwrap().entry, entry());
        let mut content = Vec::new();
        archive.read_to_end(&mut content).unwrap();
        assert_eq!(content, b"again");
        assert!(archive.next().unwrap().is_none());
    }

    #[test]
    fn damage_is_noticed_wherever_it_is() {
        let mut archive = Archive::new(Vec::new());
        archive.append_file(&entry(), &b"first"[..]).unwrap();
        let bytes = archive.finish().unwrap();
        for cut in [0, 100, 600, 1200, bytes.len() - 1100] {
            let mut archive = Unarchive::new(&bytes[..cut]);
            let read = archive.next().and_then(|_| Ok(archive.read_to_end(&mut Vec::new())?));
            assert!(read.is_err() || archive.next().is_err(), "cut at {cut}");
        }
        let mut flipped = bytes.clone();
        flipped[105] ^= 1;
        assert!(matches!(Unarchive::new(flipped.as_slice()).next(), Err(Unreadable::Damaged(_))));
    }

    #[test]
    fn malformed_records_are_refused() {
        for records in [&b"5 a=b\n"[..], b"99 a=b\n", b"x a=b\n", b"6 abc\n", b"0 ", b"7 a=bc\n "] {
            let records = Records(records.to_vec());
            assert!(records.iter().any(|record| record.is_err()), "{records:?}");
        }
    }
}
