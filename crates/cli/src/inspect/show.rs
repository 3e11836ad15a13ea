//! The tables of `woodfrog inspect`.

use std::collections::BTreeMap;
use std::io;

use chrono::{DateTime, SecondsFormat, Utc};

use super::Inspection;
use super::contents::{Contents, Process};
use crate::output::{bytes, line, table};

/// Writes everything.
pub(super) fn show(inspection: &Inspection) -> io::Result<()> {
    facts(inspection)?;
    match (&inspection.contents, &inspection.contents_error) {
        (Some(contents), _) => contents_tables(contents)?,
        (None, why) => {
            let why = why.as_deref().unwrap_or_default();
            line(&format!("\nwhat CRIU wrote cannot be shown: {why}"))?;
        }
    }
    if !inspection.record.volumes.is_empty() {
        line("")?;
        let volume = |v: &woodfrog_image::VolumeRecord| vec![v.mount_path.clone(), bytes(v.bytes)];
        table(&["VOLUME", "DATA"], &[1], inspection.record.volumes.iter().map(volume).collect())?;
    }
    Ok(())
}

fn facts(inspection: &Inspection) -> io::Result<()> {
    let record = &inspection.record;
    let source = &record.source;
    let created = DateTime::<Utc>::from(record.created).to_rfc3339_opts(SecondsFormat::Secs, true);
    let verdict = if inspection.compatible { "can be thawed here" } else { "cannot be thawed here" };
    let facts = [
        ("Image", inspection.image.clone()),
        ("Digest", inspection.digest.clone()),
        (
            "Frozen from",
            format!("{}/{}/{} ({})", source.namespace, source.pod, source.container, source.image),
        ),
        ("Frozen at", created),
        ("Generation", record.generation.to_string()),
        ("Memory", bytes(inspection.memory_bytes)),
        ("Compressed", format!("{} with the base image", bytes(inspection.compressed_bytes))),
        ("Frozen on", record.compatibility.to_string()),
        ("This node", verdict.to_owned()),
    ];
    for (name, value) in facts {
        line(&format!("{name:<12} {value}"))?;
    }
    inspection.incompatibilities.iter().try_for_each(|reason| line(&format!("{:<12} - {reason}", "")))
}

fn contents_tables(contents: &Contents) -> io::Result<()> {
    line("")?;
    let header = [
        "PID",
        "PARENT",
        "NAME",
        "STATE",
        "UID",
        "THREADS",
        "STORED",
        "ANONYMOUS",
        "HEAP",
        "STACK",
        "FILES",
        "SHARED",
    ];
    let rows = contents.processes.iter().map(process).collect();
    table(&header, &[0, 1, 4, 5, 6, 7, 8, 9, 10, 11], rows)?;

    // One line a file, with all who have it open.
    let mut files: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
    for process in &contents.processes {
        for file in &process.files {
            let holder = format!("{}:{}", process.pid, file.fd);
            files.entry((file.kind, file.target.as_str())).or_default().push(holder);
        }
    }
    line("")?;
    let rows = files
        .into_iter()
        .map(|((kind, target), holders)| vec![kind.to_owned(), target.to_owned(), shortened(&holders)]);
    table(&["KIND", "FILE", "PID:FD"], &[], rows.collect())?;

    if !contents.sockets.is_empty() {
        line("")?;
        let rows = contents.sockets.iter().map(|socket| {
            let peer = socket.peer.clone().unwrap_or_else(|| "-".into());
            vec![socket.protocol.clone(), socket.state.to_owned(), socket.local.clone(), peer]
        });
        table(&["SOCKET", "STATE", "LOCAL", "PEER"], &[], rows.collect())?;
    }
    Ok(())
}

fn process(process: &Process) -> Vec<String> {
    let memory = &process.memory;
    vec![
        process.pid.to_string(),
        process.parent.to_string(),
        process.name.clone(),
        process.state.to_owned(),
        process.uid.map_or_else(|| "-".into(), |uid| uid.to_string()),
        process.threads.to_string(),
        bytes(memory.stored_bytes),
        bytes(memory.anonymous_bytes),
        bytes(memory.heap_bytes),
        bytes(memory.stack_bytes),
        bytes(memory.file_private_bytes + memory.file_shared_bytes),
        bytes(memory.shared_bytes),
    ]
}

/// A few, and how many more.
fn shortened(holders: &[String]) -> String {
    const SHOWN: usize = 4;
    let list = holders.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(" ");
    if holders.len() > SHOWN { format!("{list} +{}", holders.len() - SHOWN) } else { list }
}
