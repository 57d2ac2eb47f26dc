// SPDX-License-Identifier: Apache-2.0
//! When which guest is told of its router unasked (RFC 4861, section 6.2.4).

use plinth_ids::{Moment, PortId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// `MaxRtrAdvInterval` of the RFC, and a third of it: a third of the router's lifetime in an
/// advertisement.
const INTERVAL_MAX: Duration = Duration::from_secs(600);
const INTERVAL_MIN: Duration = Duration::from_secs(200);
/// The first ones come faster, so that a guest that missed one need not wait.
const INITIAL_INTERVAL_MAX: Duration = Duration::from_secs(16);
const INITIAL_COUNT: u8 = 3;

/// The times at which guests are told. It is asked what is due, and says when to ask again.
#[derive(Debug)]
pub struct Schedule {
    due: BTreeSet<(Moment, PortId)>,
    ports: BTreeMap<PortId, Told>,
    random: Random,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    next: Moment,
    times: u8,
}

impl Schedule {
    /// `seed` spreads the guests over time.
    pub const fn new(seed: u64) -> Self {
        Self { due: BTreeSet::new(), ports: BTreeMap::new(), random: Random(seed | 1) }
    }

    /// These guests are told from now on, and no others. Those that were told before keep their
    /// times; new ones are told first within a second.
    pub fn set(&mut self, now: Moment, ports: impl Iterator<Item = PortId>) {
        let wanted: BTreeSet<PortId> = ports.collect();
        self.ports.retain(|port, told| {
            let stays = wanted.contains(port);
            if !stays {
                self.due.remove(&(told.next, *port));
            }
            stays
        });
        for port in wanted {
            if !self.ports.contains_key(&port) {
                let next = now + self.random.between(Duration::ZERO, Duration::from_secs(1));
                self.due.insert((next, port));
                self.ports.insert(port, Told { next, times: 0 });
            }
        }
    }

    /// The next guest that is to be told now; to be asked until there is none.
    pub fn take_due(&mut self, now: Moment) -> Option<PortId> {
        let &(at, port) = self.due.first().filter(|(at, _)| *at <= now)?;
        self.due.remove(&(at, port));
        let told = self.ports.get_mut(&port)?;
        told.times = told.times.saturating_add(1);
        let wait = self.random.between(INTERVAL_MIN, INTERVAL_MAX);
        let is_initial = told.times < INITIAL_COUNT;
        told.next = now + if is_initial { wait.min(INITIAL_INTERVAL_MAX) } else { wait };
        self.due.insert((told.next, port));
        Some(port)
    }

    /// When something is due next.
    pub fn deadline(&self) -> Option<Moment> {
        self.due.first().map(|&(at, _)| at)
    }
}

/// Xorshift: spreads times, guards nothing.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn between(&mut self, least: Duration, most: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let span = u64::try_from((most - least).as_millis()).unwrap_or(u64::MAX).max(1);
        least + Duration::from_millis(self.0 % span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_due(schedule: &mut Schedule, now: Moment) -> Vec<PortId> {
        std::iter::from_fn(|| schedule.take_due(now)).collect()
    }

    #[test]
    fn a_guest_is_told_three_times_soon_and_then_within_ten_minutes() {
        let mut schedule = Schedule::new(7);
        let mut now = Moment::from_secs(100);
        schedule.set(now, [PortId(1)].into_iter());
        let mut waits = Vec::new();
        for _ in 0..50 {
            let next = schedule.deadline().unwrap();
            assert_eq!(all_due(&mut schedule, next - Duration::from_millis(1)), []);
            assert_eq!(all_due(&mut schedule, next), [PortId(1)]);
            waits.push(next - now);
            now = next;
        }
        assert!(waits[0] <= Duration::from_secs(1));
        assert!(waits[1..3].iter().all(|wait| *wait <= INITIAL_INTERVAL_MAX));
        assert!(waits[3..].iter().all(|wait| (INTERVAL_MIN..INTERVAL_MAX).contains(wait)));
        assert!(waits[3..].windows(2).any(|pair| pair[0] != pair[1]), "guests are spread");
    }

    #[test]
    fn who_is_configured_is_told_and_keeps_the_time() {
        let mut schedule = Schedule::new(7);
        let now = Moment::from_secs(1);
        schedule.set(now, [PortId(1), PortId(2)].into_iter());
        let later = now + Duration::from_secs(1);
        let mut told = all_due(&mut schedule, later);
        told.sort();
        assert_eq!(told, [PortId(1), PortId(2)]);
        schedule.set(later, [PortId(2), PortId(3)].into_iter());
        assert_eq!(all_due(&mut schedule, later + Duration::from_secs(1)), [PortId(3)]);
        schedule.set(later, std::iter::empty());
        assert_eq!(schedule.deadline(), None);
    }
}
