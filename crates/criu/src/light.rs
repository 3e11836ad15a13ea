//! A program without some of the libraries that it names, none of whose functions it calls: to load them can take longer than all the rest.
//!
//! Programs that are not linked with `-z now` have their functions bound when they are first called, so that one whose list of libraries is shorter starts as
//! any other. It ends (`undefined symbol`) where it calls what is missing. What is changed is, in terms of elf(5) and of the Linux Standard Base:
//! the `DT_NEEDED` entries, the records in `DT_VERNEED` of the versions that are needed of these libraries, and their symbols, which have no version then, and may be missing
//! (`STB_WEAK`) if they are variables, which are bound at the start.

use elf::ElfBytes;
use elf::abi::{
    DF_1_NOW, DF_BIND_NOW, DT_BIND_NOW, DT_FLAGS, DT_FLAGS_1, DT_LOOS, DT_NEEDED, DT_STRTAB, DT_SYMTAB,
    DT_VERNEED, DT_VERNEEDNUM, DT_VERSYM, PT_DYNAMIC, PT_LOAD, SHN_UNDEF, STB_WEAK, VER_NDX_GLOBAL,
};
use elf::endian::NativeEndian;
use elf::file::Class;

/// Sizes of `Elf64_Dyn` and `Elf64_Sym`.
const DYNAMIC: usize = 16;
const SYMBOL: usize = 24;
/// Bits of a symbol's version that number it.
const VERSION: u16 = 0x7fff;

/// Changes a program so that it does without `libraries`. None, and it is to be thrown away, if it cannot: it binds everything at its start, is no ELF
/// program of 64 bits, or needs none of them.
pub(crate) fn without(program: &mut [u8], libraries: &[&str]) -> Option<()> {
    let elf = ElfBytes::<NativeEndian>::minimal_parse(program).ok()?;
    if elf.ehdr.class != Class::ELF64 {
        return None;
    }
    let segments: Vec<_> = elf.segments()?.iter().collect();
    let (symbols, _) = elf.dynamic_symbol_table().ok()??;
    let symbols = symbols.len();
    let place = |address: u64| {
        let of = |p: &&elf::segment::ProgramHeader| {
            p.p_type == PT_LOAD
                && (p.p_vaddr..p.p_vaddr.checked_add(p.p_filesz).unwrap_or(0)).contains(&address)
        };
        let segment = segments.iter().find(of)?;
        usize::try_from(address - segment.p_vaddr + segment.p_offset).ok()
    };
    let at = usize::try_from(segments.iter().find(|p| p.p_type == PT_DYNAMIC)?.p_offset).ok()?;
    let entries: Vec<(i64, u64)> =
        elf.dynamic().ok()??.iter().map(|entry| (entry.d_tag, entry.d_val())).collect();

    let entry = |tag: i64| {
        let index = entries.iter().position(|entry| entry.0 == tag)?;
        Some((index, entries[index].1))
    };
    let value = |tag: i64| entry(tag).map(|entry| entry.1);
    let has = |tag: i64, flag: i64| value(tag).is_some_and(|flags| flags & flag as u64 != 0);
    if value(DT_BIND_NOW).is_some() || has(DT_FLAGS, DF_BIND_NOW) || has(DT_FLAGS_1, DF_1_NOW) {
        return None;
    }
    let names = place(value(DT_STRTAB)?)?;
    let is_left_out =
        |program: &[u8], name: u64| {
            let name = program.get(names.checked_add(usize::try_from(name).ok()?)?..)?;
            Some(libraries.iter().any(|library| {
                name.strip_prefix(library.as_bytes()).is_some_and(|rest| rest.starts_with(&[0]))
            }))
        };

    let mut some = false;
    for (index, (tag, name)) in entries.iter().enumerate() {
        if *tag == DT_NEEDED && is_left_out(program, *name)? {
            // One that no loader knows.
            put(program, at + index * DYNAMIC, DT_LOOS.to_ne_bytes())?;
            some = true;
        }
    }
    if !some {
        return None;
    }

    let mut versions = Vec::new();
    let (mut first, (number, mut left)) = (entry(DT_VERNEED)?, entry(DT_VERNEEDNUM)?);
    let (mut record, mut kept) = (place(first.1)?, None::<usize>);
    loop {
        // `Elf64_Verneed`: version, number of names, library, first name, next record.
        let count = u16::from_ne_bytes(get(program, record + 2)?);
        let library = u32::from_ne_bytes(get(program, record + 4)?);
        let mut name = record.checked_add(u32::from_ne_bytes(get(program, record + 8)?) as usize)?;
        let next = u32::from_ne_bytes(get(program, record + 12)?);
        if is_left_out(program, library.into())? {
            for _ in 0..count {
                // `Elf64_Vernaux`: hash, flags, number, name, next.
                versions.push(u16::from_ne_bytes(get(program, name + 6)?) & VERSION);
                name = name.checked_add(u32::from_ne_bytes(get(program, name + 12)?) as usize)?;
            }
            // What led to it leads to the one after.
            let after = if next == 0 { None } else { Some(record.checked_add(next as usize)?) };
            match kept {
                Some(before) => {
                    let next = after.map_or(Some(0), |after| after.checked_sub(before))?;
                    put(program, before + 12, u32::try_from(next).ok()?.to_ne_bytes())?;
                }
                None => {
                    first.1 += u64::from(after.map(|_| next)?);
                    put(program, at + first.0 * DYNAMIC + 8, first.1.to_ne_bytes())?;
                }
            }
            left = left.checked_sub(1)?;
        } else {
            kept = Some(record);
        }
        if next == 0 {
            break;
        }
        record = record.checked_add(next as usize)?;
    }
    put(program, at + number * DYNAMIC + 8, left.to_ne_bytes())?;

    let (of_symbols, table) = (place(value(DT_VERSYM)?)?, place(value(DT_SYMTAB)?)?);
    for index in 0..symbols {
        let version = of_symbols + index * 2;
        if !versions.contains(&(u16::from_ne_bytes(get(program, version)?) & VERSION)) {
            continue;
        }
        put(program, version, VER_NDX_GLOBAL.to_ne_bytes())?;
        // `Elf64_Sym`: name, binding and type, visibility, section.
        let symbol = table + index * SYMBOL;
        if u16::from_ne_bytes(get(program, symbol + 6)?) != SHN_UNDEF {
            let [info] = get(program, symbol + 4)?;
            put(program, symbol + 4, [info & 0xf | STB_WEAK << 4])?;
        }
    }
    Some(())
}

fn get<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) -> Option<()> {
    bytes.get_mut(at..at.checked_add(N)?)?.copy_from_slice(&value);
    Some(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::{Command, Output};

    use super::*;

    /// Debian's `ls` needs a library for security labels, and calls it where they are asked for.
    const PROGRAM: &str = "/bin/ls";
    const LIBRARY: &str = "libselinux.so.1";

    fn run(program: &[u8], arguments: &[&str]) -> Output {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        fs::write(&path, program).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        Command::new(&path).args(arguments).output().unwrap()
    }

    #[test]
    fn what_is_left_is_loaded_and_works_until_it_calls_what_is_missing() {
        let mut program = fs::read(PROGRAM).unwrap();
        without(&mut program, &[LIBRARY]).unwrap();
        let works = run(&program, &["/proc/self/maps"]);
        assert!(works.status.success(), "{works:?}");
        let calls = run(&program, &["-Z", "/proc/self/maps"]);
        let said = String::from_utf8_lossy(&calls.stderr);
        assert!(!calls.status.success() && said.contains("undefined symbol"), "{said}");
    }

    #[test]
    fn the_library_is_not_mapped() {
        let mut program = fs::read(PROGRAM).unwrap();
        let needed = |program: &[u8]| {
            let elf = ElfBytes::<NativeEndian>::minimal_parse(program).unwrap();
            let needs = |entry: &elf::dynamic::Dyn| entry.d_tag == DT_NEEDED;
            elf.dynamic().unwrap().unwrap().iter().filter(needs).count()
        };
        let before = needed(&program);
        without(&mut program, &[LIBRARY]).unwrap();
        assert_eq!(needed(&program), before - 1);
    }

    #[test]
    fn a_program_that_does_not_need_it_is_left_alone() {
        let mut program = fs::read(PROGRAM).unwrap();
        assert_eq!(without(&mut program, &["libnothing.so.1"]), None);
        assert_eq!(program, fs::read(PROGRAM).unwrap());
    }

    #[test]
    fn a_damaged_program_is_refused() {
        let whole = fs::read(PROGRAM).unwrap();
        for length in (0..whole.len()).step_by(4093) {
            let mut program = whole[..length].to_vec();
            let _ = without(&mut program, &[LIBRARY]);
        }
        assert_eq!(without(&mut b"#!/bin/sh\n".to_vec(), &[LIBRARY]), None);
    }
}
