// SPDX-License-Identifier: Apache-2.0
//! How busy the node is.

use crate::Surroundings;
use plinth_api::Load;
use std::time::{Duration, Instant};

/// A shorter interval says more about who asked than about the load.
const INTERVAL_MIN: Duration = Duration::from_secs(1);

/// The processors' times at the last look.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CpuSample {
    taken_at: Option<Instant>,
    busy: u64,
    all: u64,
    permille: u32,
}

impl CpuSample {
    /// The load since the last call that was a while ago.
    pub(crate) fn load(&mut self, surroundings: &Surroundings) -> Load {
        if self.taken_at.is_none_or(|at| at.elapsed() >= INTERVAL_MIN) {
            let (busy, all) = cpu_times(&surroundings.text("proc/stat")).unwrap_or_default();
            self.permille = permille(busy.saturating_sub(self.busy), all.saturating_sub(self.all));
            (self.busy, self.all, self.taken_at) = (busy, all, Some(Instant::now()));
        }
        let memory = meminfo(&surroundings.text("proc/meminfo"), "MemAvailable").unwrap_or(0);
        Load { cpu_permille: self.permille, memory_available: memory }
    }
}

fn permille(part: u64, whole: u64) -> u32 {
    let share = u128::from(part) * 1000 / u128::from(whole.max(1));
    u32::try_from(share).unwrap_or(1000).min(1000)
}

/// Busy and all ticks of all processors together (proc(5), stat).
fn cpu_times(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    // Guests' time is in user time already, so only the first eight columns count.
    let ticks: Vec<u64> =
        line.split_whitespace().take(8).map_while(|word| word.parse().ok()).collect();
    let all = ticks.iter().sum::<u64>();
    let idle = ticks.get(3)? + ticks.get(4)?;
    Some((all - idle, all))
}

/// A line of /proc/meminfo, in bytes.
pub(crate) fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_all_but_idle_and_waiting_for_disks() {
        let stat = "cpu  10 0 20 60 10 0 0 0 5 0\ncpu0 1 1 1 1\n";
        assert_eq!(cpu_times(stat), Some((30, 100)));
        assert_eq!(permille(30, 100), 300);
        assert_eq!(permille(0, 0), 0);
    }

    #[test]
    fn memory_is_found_by_its_whole_name() {
        let text = "MemTotalX: 1 kB\nMemTotal:  2048 kB\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(2 << 20));
        assert_eq!(meminfo(text, "MemFree"), None);
    }
}
