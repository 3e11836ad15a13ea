//! Writing tar, the way that every reader of OCI layers understands: ustar headers, and PAX records for what
//! does not fit in them (long names, large numbers, nanoseconds, extended attributes).
//!
//! The same entries give the same bytes: no access times, no user names, no field that the caller did not set.

use std::io::{self, Read, Write};

/// One entry without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Relative, without a leading slash; a directory's without a trailing one.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permission bits with set-user-ID, set-group-ID and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Seconds and nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    File { size: u64 },
    Directory,
    Symlink { target: Vec<u8> },
    HardLink { target: Vec<u8> },
    Fifo,
    CharacterDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
}

impl Entry {
    /// A directory or file that belongs to root.
    pub(crate) fn of_root(path: impl Into<Vec<u8>>, kind: Kind, mode: u32, mtime: Time) -> Self {
        Self { path: path.into(), kind, mode, uid: 0, gid: 0, mtime, xattrs: Vec::new() }
    }
}

/// Size of a tar block; headers and contents are padded to it.
const BLOCK: u64 = 512;
/// The largest number in an octal field of 12 bytes (size, mtime).
const MAX_LONG: u64 = 0o77_777_777_777;
/// The largest number in an octal field of 8 bytes (uid, gid, device numbers).
const MAX_SHORT: u64 = 0o7_777_777;
/// Length of the name and link name fields.
const NAME: usize = 100;

/// What happened to a file's content while it was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copied {
    Whole,
    /// The file became shorter; the rest is zeros.
    Padded,
}

/// What comes before and after the content of a file that is an archive's last entry, behind some directories.
pub(crate) fn around(directories: &[Entry], file: &Entry) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let Kind::File { size } = file.kind else { return Err(no_content()) };
    let mut archive = Archive::new(Vec::new());
    for directory in directories {
        archive.append(directory)?;
    }
    archive.header(file, &[])?;
    let head = std::mem::take(&mut archive.out);
    archive.pad(size)?;
    Ok((head, archive.finish()?))
}

fn no_content() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "only files have content")
}

/// Writes a tar stream.
#[derive(Debug)]
pub(crate) struct Archive<W> {
    out: W,
    buffer: Vec<u8>,
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, buffer: vec![0; 256 << 10] }
    }

    /// Writes an entry that has no content.
    pub(crate) fn append(&mut self, entry: &Entry) -> io::Result<()> {
        self.header(entry, &[])
    }

    /// Writes a file. Exactly `size` bytes of content are written, whatever the reader gives.
    pub(crate) fn append_file(&mut self, entry: &Entry, content: impl Read) -> io::Result<Copied> {
        self.append_file_with(entry, &[], content)
    }

    /// Like [`Self::append_file`], with further PAX records.
    pub(crate) fn append_file_with(
        &mut self,
        entry: &Entry,
        records: &[(&[u8], &[u8])],
        mut content: impl Read,
    ) -> io::Result<Copied> {
        let Kind::File { size } = entry.kind else { return Err(no_content()) };
        self.header(entry, records)?;
        let mut left = size;
        let mut copied = Copied::Whole;
        while left > 0 {
            let most = left.min(self.buffer.len() as u64) as usize;
            let read = match content.read(&mut self.buffer[..most]) {
                Ok(0) => {
                    copied = Copied::Padded;
                    self.buffer[..most].fill(0);
                    most
                }
                Ok(read) => read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            self.out.write_all(&self.buffer[..read])?;
            left -= read as u64;
        }
        self.pad(size)?;
        Ok(copied)
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK as usize])?;
        Ok(self.out)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let rest = (BLOCK - size % BLOCK) % BLOCK;
        self.out.write_all(&[0; BLOCK as usize][..rest as usize])
    }

    fn header(&mut self, entry: &Entry, further: &[(&[u8], &[u8])]) -> io::Result<()> {
        let mut path = entry.path.clone();
        let (flag, size, link, device) = match &entry.kind {
            Kind::File { size } => (b'0', *size, None, None),
            Kind::HardLink { target } => (b'1', 0, Some(target), None),
            Kind::Symlink { target } => (b'2', 0, Some(target), None),
            Kind::CharacterDevice { major, minor } => (b'3', 0, None, Some((*major, *minor))),
            Kind::BlockDevice { major, minor } => (b'4', 0, None, Some((*major, *minor))),
            Kind::Directory => {
                path.push(b'/');
                (b'5', 0, None, None)
            }
            Kind::Fifo => (b'6', 0, None, None),
        };
        let mut records = Records::default();
        if path.len() > NAME {
            records.add(b"path", &path);
        }
        if let Some(link) = link
            && link.len() > NAME
        {
            records.add(b"linkpath", link);
        }
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::new(flag));
        header.set_mode(entry.mode & 0o7777);
        header.set_uid(records.number(b"uid", entry.uid.into(), MAX_SHORT));
        header.set_gid(records.number(b"gid", entry.gid.into(), MAX_SHORT));
        header.set_size(records.number(b"size", size, MAX_LONG));
        header.set_mtime(records.time(b"mtime", entry.mtime));
        if let Some((major, minor)) = device {
            header.set_device_major(major)?;
            header.set_device_minor(minor)?;
        }
        let bytes = header.as_mut_bytes();
        let most = path.len().min(NAME);
        bytes[..most].copy_from_slice(&path[..most]);
        if let Some(link) = link {
            let most = link.len().min(NAME);
            bytes[157..157 + most].copy_from_slice(&link[..most]);
        }
        header.set_cksum();
        for (name, value) in &entry.xattrs {
            records.add(&[b"SCHILY.xattr.", name.as_slice()].concat(), value);
        }
        for (key, value) in further {
            records.add(key, value);
        }
        self.records(&records.0)?;
        self.out.write_all(header.as_bytes())
    }

    fn records(&mut self, records: &[u8]) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let mut header = tar::Header::new_ustar();
        header.set_path("PaxHeaders/entry")?;
        header.set_entry_type(tar::EntryType::XHeader);
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(records.len() as u64);
        header.set_cksum();
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(records)?;
        self.pad(records.len() as u64)
    }
}

/// PAX records: `LENGTH KEY=VALUE\n`, where the length counts itself.
#[derive(Debug, Default)]
struct Records(Vec<u8>);

impl Records {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        self.0.extend_from_slice(format!("{length} ").as_bytes());
        self.0.extend_from_slice(key);
        self.0.push(b'=');
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }

    /// What to put in the header's field: the number, or zero if only a record can hold it.
    fn number(&mut self, key: &[u8], number: u64, most: u64) -> u64 {
        if number <= most {
            return number;
        }
        self.add(key, number.to_string().as_bytes());
        0
    }

    fn time(&mut self, key: &[u8], time: Time) -> u64 {
        let field = u64::try_from(time.seconds).ok().filter(|seconds| *seconds <= MAX_LONG);
        if time.nanoseconds != 0 || field.is_none() {
            self.add(key, render(time).as_bytes());
        }
        field.unwrap_or(0)
    }
}

/// A time as a decimal number. Before 1970 the fraction counts the other way: -0.5 s is (-1 s, 500000000 ns).
fn render(time: Time) -> String {
    if time.seconds >= 0 || time.nanoseconds == 0 {
        return format!("{}.{:09}", time.seconds, time.nanoseconds);
    }
    format!("-{}.{:09}", -(time.seconds + 1), 1_000_000_000 - time.nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Time = Time { seconds: 0, nanoseconds: 0 };

    fn file(path: &[u8], size: u64) -> Entry {
        Entry::of_root(path, Kind::File { size }, 0o644, EPOCH)
    }

    fn read(bytes: &[u8]) -> Vec<(Vec<u8>, u64, Vec<u8>)> {
        let mut archive = tar::Archive::new(bytes);
        let mut found = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            found.push((entry.path_bytes().into_owned(), entry.size(), content));
        }
        found
    }

    #[test]
    fn long_and_odd_names_survive() {
        let long = vec![b'n'; 300];
        let odd = b"not \xff utf-8".to_vec();
        let both = [odd.repeat(30), b"/end".to_vec()].concat();
        let mut archive = Archive::new(Vec::new());
        for name in [&long, &odd, &both] {
            archive.append_file(&file(name, 1), &b"x"[..]).unwrap();
        }
        let names: Vec<_> = read(&archive.finish().unwrap()).into_iter().map(|e| e.0).collect();
        assert_eq!(names, [long, odd, both]);
    }

    #[test]
    fn a_file_that_shrinks_is_padded_and_the_archive_stays_whole() {
        let mut archive = Archive::new(Vec::new());
        assert_eq!(archive.append_file(&file(b"a", 600), &b"short"[..]).unwrap(), Copied::Padded);
        assert_eq!(archive.append_file(&file(b"b", 3), &b"longer"[..]).unwrap(), Copied::Whole);
        let entries = read(&archive.finish().unwrap());
        assert_eq!(entries[0].2.len(), 600);
        assert_eq!(entries[1], (b"b".to_vec(), 3, b"lon".to_vec()));
    }

    #[test]
    fn numbers_that_do_not_fit_in_a_header_go_into_records() {
        let mut entry = file(b"a", 0);
        entry.uid = u32::MAX - 1;
        entry.mtime = Time { seconds: 1, nanoseconds: 5 };
        let mut archive = Archive::new(Vec::new());
        archive.append_file(&entry, io::empty()).unwrap();
        let bytes = archive.finish().unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
        let records: Vec<_> = entry
            .pax_extensions()
            .unwrap()
            .unwrap()
            .map(|r| r.map(|r| (r.key().unwrap().to_owned(), r.value().unwrap().to_owned())).unwrap())
            .collect();
        assert_eq!(records[0], ("uid".to_owned(), "4294967294".to_owned()));
        assert_eq!(records[1], ("mtime".to_owned(), "1.000000005".to_owned()));
    }

    #[test]
    fn times_before_1970_are_negative_numbers() {
        assert_eq!(render(Time { seconds: -1, nanoseconds: 500_000_000 }), "-0.500000000");
        assert_eq!(render(Time { seconds: -3, nanoseconds: 0 }), "-3.000000000");
    }

    #[test]
    fn a_record_counts_its_own_length() {
        let mut records = Records::default();
        records.add(b"path", &[b'x'; 90]);
        let text = String::from_utf8(records.0.clone()).unwrap();
        assert_eq!(text.split(' ').next().unwrap().parse::<usize>().unwrap(), records.0.len());
    }
}
