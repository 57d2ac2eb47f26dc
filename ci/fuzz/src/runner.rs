// SPDX-License-Identifier: Apache-2.0
//! Runs one target for a time and keeps what broke it.

use crate::mutate::Mutator;
use std::fmt::Write;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, io, process, thread};

/// An input that takes longer than this hangs.
const HANG: Duration = Duration::from_secs(10);

/// The clock is read once in this many inputs.
const CLOCK_EVERY: u64 = 64;

/// How many attempts a finding gets to become shorter.
const SHRINK_ATTEMPTS: usize = 2000;

/// Something that takes any bytes and must not panic.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Valid inputs, made by the product's own code.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// An input that made a target panic.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// As short as the runner could make it.
    pub input: Vec<u8>,
    /// The panic's message and place.
    pub panic: String,
    /// How many inputs came before it.
    pub after: u64,
}

/// The last panic's message and place, noted by the hook for the thread that catches it.
static LAST_PANIC: Mutex<String> = Mutex::new(String::new());

/// Replaces the panic hook by one that notes instead of printing. Once for the process.
pub fn note_panics() {
    panic::set_hook(Box::new(|info| {
        let message = info.payload_as_str().unwrap_or("a panic without text");
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let mut note = LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner);
        *note = format!("{message}, at {place}");
    }));
}

/// Gives `target` inputs for at most `limit`.
///
/// # Errors
/// The first input that made it panic, shortened.
pub fn fuzz(
    target: &Target,
    seed: u64,
    extra: Vec<Vec<u8>>,
    limit: Duration,
) -> Result<u64, Box<Finding>> {
    let mut corpus = (target.seeds)();
    corpus.extend(extra);
    let mut mutator = Mutator::new(seed, corpus);
    let begin = Instant::now();
    let watch = Watch::start(target.name, seed);
    let mut count: u64 = 0;
    while !count.is_multiple_of(CLOCK_EVERY) || begin.elapsed() < limit {
        let input = mutator.take();
        watch.tick(count);
        if let Some(panic) = attempt(target, &input) {
            let (input, panic) = shrink(target, input, panic);
            return Err(Box::new(Finding { input, panic, after: count }));
        }
        count += 1;
    }
    Ok(count)
}

/// The panic that `input` causes, if any.
#[must_use]
pub fn attempt(target: &Target, input: &[u8]) -> Option<String> {
    let result = panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    result.err().map(|_| LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// Takes away pieces, large ones first, as long as some panic remains.
fn shrink(target: &Target, mut input: Vec<u8>, mut panic: String) -> (Vec<u8>, String) {
    let mut attempts = 0;
    let mut piece = input.len().div_ceil(2);
    while piece > 0 && attempts < SHRINK_ATTEMPTS {
        let mut at = 0;
        let mut is_shorter = false;
        while at < input.len() && attempts < SHRINK_ATTEMPTS {
            let mut candidate = input.clone();
            candidate.drain(at..(at + piece).min(input.len()));
            attempts += 1;
            match attempt(target, &candidate) {
                Some(text) => {
                    (input, panic) = (candidate, text);
                    is_shorter = true;
                }
                None => at += piece,
            }
        }
        if !is_shorter {
            piece /= 2;
        }
    }
    (input, panic)
}

/// Ends the process with a word when one input takes too long: a loop cannot be unwound.
struct Watch {
    progress: Arc<AtomicU64>,
}

/// The progress of a watch whose run is over.
const OVER: u64 = u64::MAX;

impl Watch {
    fn start(name: &'static str, seed: u64) -> Self {
        let progress = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&progress);
        thread::spawn(move || {
            let mut last = (0, Instant::now());
            loop {
                thread::sleep(Duration::from_millis(200));
                // Relaxed: the number orders nothing, it only has to arrive some time.
                let now = seen.load(Ordering::Relaxed);
                if now == OVER {
                    return;
                }
                if now != last.0 {
                    last = (now, Instant::now());
                } else if last.1.elapsed() > HANG {
                    println!("test {name} ... FAILED\n   input {now} of seed {seed} hangs");
                    process::exit(1);
                }
            }
        });
        Self { progress }
    }

    fn tick(&self, count: u64) {
        self.progress.store(count, Ordering::Relaxed);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.progress.store(OVER, Ordering::Relaxed);
    }
}

/// Writes a finding's input to `folder` and says where.
///
/// # Errors
/// When the folder cannot be made or the file not be written.
pub fn save(folder: &Path, target: &str, finding: &Finding) -> io::Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let path = folder.join(format!("{target}-{}.bin", finding.after));
    fs::write(&path, &finding.input)?;
    Ok(path)
}

/// Bytes as hex digits, for reports.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        write!(text, "{byte:02x}").expect("writing to a String does not fail");
    }
    text
}
