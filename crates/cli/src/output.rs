//! Tables for people, JSON for programs, on standard output.

use std::io::{self, Write};

use comfy_table::{CellAlignment, Table, presets};
use indicatif::BinaryBytes;
use serde::Serialize;

/// Writes a value as indented JSON.
pub(crate) fn json(value: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    quietly(writeln!(out))
}

/// Writes a line of text.
pub(crate) fn line(text: &str) -> io::Result<()> {
    quietly(writeln!(io::stdout(), "{text}"))
}

/// Writes a table without borders; the columns in `numbers` are flush right.
pub(crate) fn table(header: &[&str], numbers: &[usize], rows: Vec<Vec<String>>) -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if numbers.contains(&i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for text in table.lines() {
        line(text.trim_end())?;
    }
    Ok(())
}

/// Bytes as people read them; nothing for 0.
pub(crate) fn bytes(count: u64) -> String {
    if count == 0 { "-".into() } else { BinaryBytes(count).to_string() }
}

/// Milliseconds as people read them; nothing for 0.
pub(crate) fn millis(ms: f64) -> String {
    match ms {
        0.0 => "-".into(),
        ms if ms < 1000.0 => format!("{ms:.1} ms"),
        ms => format!("{:.2} s", ms / 1000.0),
    }
}

/// Who reads us may have seen enough (`| head`).
fn quietly(done: io::Result<()>) -> io::Result<()> {
    done.or_else(|e| if e.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(e) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_units_and_nothing_is_a_dash() {
        assert_eq!((bytes(0), bytes(3 << 20)), ("-".into(), "3.00 MiB".into()));
        assert_eq!(
            (millis(0.0), millis(12.34), millis(1500.0)),
            ("-".into(), "12.3 ms".into(), "1.50 s".into())
        );
    }
}
