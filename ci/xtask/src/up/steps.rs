// SPDX-License-Identifier: Apache-2.0
//! Progress: one bar on a terminal, one line a step elsewhere.

use std::io::{IsTerminal, Write};
use std::time::Instant;

pub(super) struct Steps {
    all: usize,
    done: usize,
    begun: Option<(String, Instant)>,
    is_terminal: bool,
}

impl Steps {
    pub(super) fn new(all: usize) -> Self {
        Self { all, done: 0, begun: None, is_terminal: std::io::stdout().is_terminal() }
    }

    /// Ends the step before, and begins one.
    pub(super) fn begin(&mut self, what: &str) {
        self.finish();
        if self.is_terminal {
            print!("\r\x1b[K{} {what} …", bar(self.done, self.all));
            // A terminal that cannot be written to shows nothing; the work goes on.
            let _ = std::io::stdout().flush();
        }
        self.begun = Some((what.to_owned(), Instant::now()));
    }

    pub(super) fn end(&mut self) {
        self.finish();
        if self.is_terminal {
            println!("\r\x1b[K{}", bar(self.done, self.all));
        }
    }

    fn finish(&mut self) {
        let Some((what, start)) = self.begun.take() else { return };
        self.done += 1;
        if !self.is_terminal {
            let seconds = start.elapsed().as_secs_f32();
            println!("[{:>2}/{}] {what}: {seconds:.1} s", self.done, self.all);
        }
    }
}

fn bar(done: usize, all: usize) -> String {
    const WIDTH: usize = 24;
    let full = (done * WIDTH).checked_div(all).unwrap_or(WIDTH).min(WIDTH);
    format!("[{}{}] {done}/{all}", "#".repeat(full), ".".repeat(WIDTH - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_full_when_all_is_done() {
        assert_eq!(bar(0, 4), "[........................] 0/4");
        assert_eq!(bar(4, 4), "[########################] 4/4");
        assert_eq!(bar(9, 0), "[########################] 9/0");
    }
}
