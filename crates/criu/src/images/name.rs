//! What a file in the image directory is, from its name (`criu/image-desc.c`), with its magic numbers and size cap.

/// A file of an image directory. Names outside the ones that a dump in the container's own namespaces writes are
/// `Unknown`: CRIU would read some of them (namespaces, credentials in older formats), so none is let through.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum ImageName {
    Inventory,
    Pstree,
    /// By thread id.
    Core(u32),
    /// By pid.
    Ids(u32),
    /// By pid.
    Mm(u32),
    /// By pid.
    Fs(u32),
    /// By pid.
    Pagemap(u32),
    /// By shmid.
    PagemapShmem(u64),
    /// By the number in the page map's head. Never loaded.
    Pages(u32),
    Files,
    /// By files_id.
    Fdinfo(u32),
    Seccomp,
    /// By id.
    Timens(u32),
    RemapFpath,
    /// By remap id (hexadecimal in the name). Contents are not loaded.
    GhostFile(u32),
    Memfd,
    TtyInfo,
    /// By socket inode (hexadecimal in the name). Queues are not loaded.
    TcpStream(u32),
    Filelocks,
    /// Raw data that nobody need look into: queues of pipes, fifos, sockets and terminals.
    Data,
    /// Read by nobody at a restore in this design: cgroups (managed by the runtime), processor, statistics.
    Ignored,
    Unknown,
}

/// First number of every image file since version 1.1 (`IMG_COMMON_MAGIC`), except the inventory's.
pub(crate) const COMMON_MAGIC: u32 = 0x5456_4319;

impl ImageName {
    /// Tells what the file called `name` is.
    pub fn parse(name: &str) -> Self {
        if let Some(kind) = Self::plain(name) {
            return kind;
        }
        let Some((stem, number)) = name.strip_suffix(".img").and_then(|stem| stem.rsplit_once('-')) else {
            return Self::Unknown;
        };
        let id = canonical(number, 10).and_then(|n| u32::try_from(n).ok());
        let hex = canonical(number, 16).and_then(|n| u32::try_from(n).ok());
        match (stem, id) {
            ("pagemap-shmem", _) => canonical(number, 10).map_or(Self::Unknown, Self::PagemapShmem),
            ("ghost-file", _) => hex.map_or(Self::Unknown, Self::GhostFile),
            ("tcp-stream", _) => hex.map_or(Self::Unknown, Self::TcpStream),
            ("core", Some(tid)) => Self::Core(tid),
            ("ids", Some(pid)) => Self::Ids(pid),
            ("mm", Some(pid)) => Self::Mm(pid),
            ("fs", Some(pid)) => Self::Fs(pid),
            ("pagemap", Some(pid)) => Self::Pagemap(pid),
            ("pages", Some(id)) => Self::Pages(id),
            ("fdinfo", Some(id)) => Self::Fdinfo(id),
            ("timens", Some(id)) => Self::Timens(id),
            _ => Self::Unknown,
        }
    }

    fn plain(name: &str) -> Option<Self> {
        Some(match name {
            "inventory.img" => Self::Inventory,
            "pstree.img" => Self::Pstree,
            "files.img" => Self::Files,
            "seccomp.img" => Self::Seccomp,
            "remap-fpath.img" => Self::RemapFpath,
            "memfd.img" => Self::Memfd,
            "tty-info.img" => Self::TtyInfo,
            "filelocks.img" => Self::Filelocks,
            "pipes-data.img" | "fifo-data.img" | "sk-queues.img" | "tty-data.img" => Self::Data,
            "cgroup.img" | "cpuinfo.img" | "stats-dump" | "stats-restore" | "dump.log" => Self::Ignored,
            _ => return None,
        })
    }

    /// The second magic number and the most bytes that are read, for the kinds that are read.
    pub(crate) fn format(&self) -> Option<(u32, u64)> {
        const KIB: u64 = 1 << 10;
        const MIB: u64 = 1 << 20;
        Some(match self {
            Self::Inventory => (0x5831_3116, 64 * KIB),
            Self::Pstree => (0x5027_3030, 4 * MIB),
            Self::Core(_) => (0x5505_3847, MIB),
            Self::Ids(_) => (0x5443_2030, 4 * KIB),
            Self::Mm(_) => (0x5749_2820, 16 * MIB),
            Self::Fs(_) => (0x5140_3912, 4 * KIB),
            Self::Pagemap(_) | Self::PagemapShmem(_) => (0x5608_4025, 32 * MIB),
            Self::Files => (0x5630_3138, 16 * MIB),
            Self::Fdinfo(_) => (0x5621_3732, 4 * MIB),
            Self::Seccomp => (0x6441_3049, 4 * MIB),
            Self::Timens(_) => (0x4311_4433, 4 * KIB),
            Self::RemapFpath => (0x5913_3954, MIB),
            Self::GhostFile(_) => (0x5258_3605, 64 * KIB),
            Self::Memfd => (0x4845_3499, MIB),
            Self::TtyInfo => (0x5945_3036, MIB),
            Self::TcpStream(_) => (0x5146_5506, 64 * KIB),
            Self::Filelocks => (0x5432_3616, MIB),
            Self::Pages(_) | Self::Data | Self::Ignored | Self::Unknown => return None,
        })
    }

    /// The file's name in an image directory, for the kinds that are read or counted.
    pub fn file_name(&self) -> String {
        match self {
            Self::Inventory => "inventory.img".into(),
            Self::Pstree => "pstree.img".into(),
            Self::Core(tid) => format!("core-{tid}.img"),
            Self::Ids(pid) => format!("ids-{pid}.img"),
            Self::Mm(pid) => format!("mm-{pid}.img"),
            Self::Fs(pid) => format!("fs-{pid}.img"),
            Self::Pagemap(pid) => format!("pagemap-{pid}.img"),
            Self::PagemapShmem(id) => format!("pagemap-shmem-{id}.img"),
            Self::Pages(id) => format!("pages-{id}.img"),
            Self::Files => "files.img".into(),
            Self::Fdinfo(id) => format!("fdinfo-{id}.img"),
            Self::Seccomp => "seccomp.img".into(),
            Self::Timens(id) => format!("timens-{id}.img"),
            Self::RemapFpath => "remap-fpath.img".into(),
            Self::GhostFile(id) => format!("ghost-file-{id:x}.img"),
            Self::Memfd => "memfd.img".into(),
            Self::TtyInfo => "tty-info.img".into(),
            Self::TcpStream(ino) => format!("tcp-stream-{ino:x}.img"),
            Self::Filelocks => "filelocks.img".into(),
            Self::Data | Self::Ignored | Self::Unknown => String::new(),
        }
    }
}

/// The number, if it is written as CRIU's `%u` or `%x` writes it: two names must not mean one image.
fn canonical(text: &str, radix: u32) -> Option<u64> {
    let number = u64::from_str_radix(text, radix).ok()?;
    let again = if radix == 16 { format!("{number:x}") } else { number.to_string() };
    (again == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_dump_writes_are_known_and_written_back_the_same() {
        for name in [
            "inventory.img",
            "pstree.img",
            "core-300.img",
            "ids-300.img",
            "mm-300.img",
            "fs-300.img",
            "pagemap-300.img",
            "pagemap-shmem-1024.img",
            "pages-1.img",
            "files.img",
            "fdinfo-2.img",
            "seccomp.img",
            "timens-0.img",
            "remap-fpath.img",
            "ghost-file-1f.img",
            "memfd.img",
            "tty-info.img",
            "tcp-stream-5d2c.img",
            "filelocks.img",
        ] {
            assert_eq!(ImageName::parse(name).file_name(), name);
        }
    }

    #[test]
    fn names_of_namespaces_and_of_older_formats_are_unknown() {
        for name in [
            "userns-10.img",
            "netns-9.img",
            "mountpoints-12.img",
            "utsns-11.img",
            "ipcns-var-10.img",
            "pidns-1.img",
            "creds-300.img",
            "rlimit-300.img",
            "sigacts-300.img",
            "reg-files.img",
            "ns-files.img",
            "apparmor.img",
            "bpfmap-file.img",
            "binfmt-misc.img",
            "parent",
            "core-+300.img",
            "core-0300.img",
            "ghost-file-1F.img",
            "core-300.img.bak",
            "../core-300.img",
            "pages-4294967296.img",
            "",
        ] {
            assert_eq!(ImageName::parse(name), ImageName::Unknown, "{name}");
        }
    }
}
