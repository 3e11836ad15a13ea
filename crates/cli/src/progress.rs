//! Progress bars on standard error, one a container; none when it is no terminal.

use std::collections::HashMap;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use woodfrog_protocol::agent::Progress;

/// The bars.
pub(crate) struct Bars {
    all: MultiProgress,
    by_container: HashMap<String, ProgressBar>,
}

impl Bars {
    /// No bars yet.
    pub(crate) fn new() -> Self {
        Self { all: MultiProgress::new(), by_container: HashMap::new() }
    }

    /// Shows how far a container is.
    pub(crate) fn show(&mut self, step: Progress) {
        let bar = self.by_container.entry(step.container.clone()).or_insert_with(|| {
            let bar = self.all.add(ProgressBar::new(0).with_prefix(step.container));
            bar.enable_steady_tick(std::time::Duration::from_millis(100));
            bar
        });
        let template = match step.total {
            0 => "{spinner} {prefix}  {msg}  {elapsed}",
            _ => {
                "{spinner} {prefix}  {msg:10} {bar:30} {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}"
            }
        };
        bar.set_style(ProgressStyle::with_template(template).expect("a valid template"));
        if bar.message() != step.phase {
            bar.reset();
            bar.set_message(step.phase);
        }
        bar.set_length(step.total);
        bar.set_position(step.done);
    }

    /// Takes the bars away, for the result.
    pub(crate) fn clear(self) {
        // A terminal that cannot be written to shows no bars either.
        let _ = self.all.clear();
    }
}
