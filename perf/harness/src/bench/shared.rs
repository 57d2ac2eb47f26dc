// SPDX-License-Identifier: Apache-2.0
//! What measurements of the switch and of the store have in common.

use super::Folder;
use anyhow::{Context, Result, ensure};
use plinth_stage::Scratch;
use plinth_stage::daemon::program;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A folder on a disk, not in memory: beside what cargo builds.
pub(super) fn disk_folder() -> Result<Folder> {
    let own = program("plinth-perf")?;
    folder_in(own.ancestors().nth(2).context("the target folder")?)
}

/// A folder in memory, for so many bytes.
pub(super) fn memory_folder(bytes: u64) -> Result<Folder> {
    // A process that has just been killed gives back what it had mapped a second or two later.
    let mut available = available_memory()?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while available << 10 < bytes && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(500));
        available = available_memory()?;
    }
    ensure!(
        available << 10 >= bytes,
        "{} MiB of free memory are needed and {} are there: --skip this case, or stop something",
        bytes >> 20,
        available >> 10
    );
    folder_in(Path::new("/dev/shm"))
}

/// KiB that could be taken without swapping.
fn available_memory() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok());
    kilobytes.context("the memory that is available")
}

fn folder_in(parent: &Path) -> Result<Folder> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Only makes names differ; publishes nothing.
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = parent.join(format!("plinth-bench-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
    Ok(Folder(path))
}

/// A run of ours as the load, on CPU 0, bounded.
pub(super) fn perf(scratch: &Scratch, verb: &str, seconds: f64) -> Result<Command> {
    let mut command = Command::new("timeout");
    command.arg("900").arg(program("plinth-perf")?).arg(verb);
    command.args(["--seconds", &seconds.to_string(), "--cpu", "0"]);
    command.arg("--json").arg(scratch.join("result.json"));
    Ok(command)
}

pub(super) fn read<T: serde::de::DeserializeOwned>(scratch: &Scratch) -> Result<T> {
    let text = std::fs::read_to_string(scratch.join("result.json")).context("a run's result")?;
    serde_json::from_str(&text).context("a run's result")
}

/// Nanoseconds that the threads of a process have run, as the kernel counts them.
pub(super) fn cpu_time(process: u32) -> u64 {
    let threads =
        std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    threads
        .filter_map(|thread| {
            let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        })
        .sum()
}
