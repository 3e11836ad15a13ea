//! Progress on stderr: a bar an application on a terminal, lines elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// All bars.
#[derive(Debug)]
pub(crate) struct Progress {
    bars: MultiProgress,
    terminal: bool,
}

/// The bar of one application.
#[derive(Debug)]
pub(crate) struct Bar {
    name: String,
    bar: ProgressBar,
    terminal: bool,
}

impl Progress {
    /// No bar yet.
    pub(crate) fn new() -> Self {
        Self { bars: MultiProgress::new(), terminal: std::io::stderr().is_terminal() }
    }

    /// Adds a bar of so many steps.
    pub(crate) fn bar(&self, name: &str, steps: u64) -> Bar {
        let bar = self.bars.add(ProgressBar::new(steps));
        if let Ok(style) = ProgressStyle::with_template("{prefix:10} {bar:30} {pos:>3}/{len} {msg} {elapsed}")
        {
            bar.set_style(style);
        }
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        Bar { name: name.to_owned(), bar, terminal: self.terminal }
    }
}

impl Bar {
    /// Says what is being done.
    pub(crate) fn step(&self, what: &str) {
        self.bar.set_message(what.to_owned());
    }

    /// One step is done, with this result.
    pub(crate) fn done(&self, what: &str) {
        self.bar.inc(1);
        if !self.terminal {
            eprintln!(
                "{} {}/{}: {what}",
                self.name,
                self.bar.position(),
                self.bar.length().unwrap_or_default()
            );
        }
    }

    /// The same of something that takes long: on a line of its own where there is no terminal.
    pub(crate) fn say(&self, what: &str) {
        if !self.terminal {
            eprintln!("{}: {what}", self.name);
        }
        self.step(what);
    }

    /// So many steps are done in all.
    pub(crate) fn at(&self, position: u64) {
        self.bar.set_position(position);
    }

    /// One step of very many is done.
    pub(crate) fn advance(&self) {
        self.bar.inc(1);
    }

    /// Takes so many steps away, since they will not be done.
    pub(crate) fn skip(&self, steps: u64) {
        self.bar.dec_length(steps);
    }

    /// All is done.
    pub(crate) fn finish(&self) {
        self.bar.finish_with_message("done");
    }
}
