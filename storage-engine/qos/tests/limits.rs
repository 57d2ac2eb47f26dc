// SPDX-License-Identifier: Apache-2.0
//! A limiter under a simulated clock: a guest that always has something more, a worker that looks
//! every so often.

use plinth_qos::{Direction, Limiter, Limits, Rate, RatePair};
use std::num::NonZeroU64;
use std::time::Duration;

fn rate(per_second: u64, burst: u64) -> Option<Rate> {
    Some(Rate { per_second: NonZeroU64::new(per_second).expect("a rate"), burst })
}

fn requests(per_second: u64, burst: u64) -> Limits {
    Limits {
        total: RatePair { requests: rate(per_second, burst), bytes: None },
        ..Limits::default()
    }
}

fn bytes(per_second: u64, burst: u64) -> Limits {
    Limits {
        total: RatePair { requests: None, bytes: rate(per_second, burst) },
        ..Limits::default()
    }
}

/// A worker that looks every `look` (and when the limiter says), at a guest that floods with
/// requests of `length`.
struct Flood {
    limiter: Limiter,
    now: Duration,
    look: Duration,
    length: u64,
    /// Whether the worker sleeps until the deadline instead of looking at fixed times.
    sleeps: bool,
}

impl Flood {
    fn new(limits: &Limits, look: Duration) -> Self {
        let limiter = Limiter::new(limits, Duration::ZERO);
        Self { limiter, now: Duration::ZERO, look, length: 4096, sleeps: false }
    }

    /// How many pass in `time`.
    fn run(&mut self, time: Duration) -> u64 {
        let end = self.now + time;
        let mut passed = 0;
        loop {
            self.limiter.refill(self.now);
            // A burst at most, as a worker takes it.
            for _ in 0..64 {
                if !self.limiter.admit(Direction::Read, self.length) {
                    break;
                }
                passed += 1;
            }
            let deadline = self.limiter.deadline().filter(|_| self.sleeps);
            let next = deadline.map_or(self.now, |deadline| deadline.max(self.now)) + self.look;
            if next >= end {
                self.now = end;
                return passed;
            }
            self.now = next;
        }
    }
}

fn assert_within(what: &str, seen: u64, wanted: u64, percent: u64) {
    let off = seen.abs_diff(wanted);
    assert!(off * 100 <= wanted * percent, "{what}: {seen} instead of {wanted}");
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_rate_is_kept_whatever_it_is_and_however_often_the_worker_looks() {
    let looks = [1_003, 7_919, 50_021, 999_983, 3_333_337];
    for per_second in [100, 1_000, 100_000, 1_000_000] {
        for look in looks.map(Duration::from_nanos) {
            // 64 a look is what the worker takes: looking that seldom is no question of limits.
            if look.as_nanos() * u128::from(per_second) > 32_000_000_000 {
                continue;
            }
            let mut flood = Flood::new(&requests(per_second, 0), look);
            let passed = flood.run(2 * SECOND);
            assert_within(&format!("{per_second} IOPS, {look:?}"), passed, 2 * per_second, 2);
            // No drift: what comes after the first burst is right to a request or two.
            let passed = flood.run(5 * SECOND);
            assert!(passed.abs_diff(5 * per_second) <= 5 * per_second / 1000 + 2, "{passed}");
        }
    }
}

#[test]
fn a_worker_that_sleeps_until_the_deadline_and_wakes_late_loses_nothing() {
    for late in [50, 1_000, 30_000].map(Duration::from_micros) {
        for per_second in [100, 1_000] {
            let mut flood = Flood::new(&requests(per_second, 0), late);
            flood.sleeps = true;
            let passed = flood.run(10 * SECOND);
            assert_within(&format!("{per_second} IOPS, {late:?} late"), passed, 10 * per_second, 1);
        }
    }
}

#[test]
fn the_deadline_is_the_first_moment_at_which_the_held_request_passes() {
    for per_second in [1, 3, 7, 999_999_937] {
        let mut limiter = Limiter::spent(&requests(per_second, 0), Duration::from_nanos(17));
        assert!(!limiter.admit(Direction::Write, 1) && limiter.held_count() == 1);
        let deadline = limiter.deadline().unwrap();
        limiter.refill(deadline - Duration::from_nanos(1));
        assert!(!limiter.admit(Direction::Write, 1), "{per_second}: too early");
        limiter.refill(deadline);
        assert!(limiter.admit(Direction::Write, 1), "{per_second}: not at its deadline");
        assert_eq!((limiter.deadline(), limiter.held_count()), (None, 1));
    }
}

#[test]
fn an_idle_volume_saves_its_burst_and_no_more() {
    let mut flood = Flood::new(&requests(1_000, 500), Duration::from_micros(100));
    assert_within("the first second", flood.run(SECOND), 1_500, 1);
    assert_within("the second one", flood.run(SECOND), 1_000, 1);
    flood.limiter.settle();
    flood.now += 3600 * SECOND;
    assert_within("after an hour", flood.run(SECOND), 1_500, 1);
}

#[test]
fn a_volume_that_was_held_back_saves_no_more_than_its_burst_once_it_is_idle() {
    let mut flood = Flood::new(&requests(1_000, 10), Duration::from_micros(100));
    flood.run(SECOND);
    // Held at the end; then its guest has nothing more for a while.
    flood.now += SECOND;
    flood.limiter.refill(flood.now);
    flood.limiter.settle();
    assert_within("after idling", flood.run(SECOND), 1_010, 1);
}

#[test]
fn a_change_holds_from_then_on_and_gives_nothing_away() {
    let mut flood = Flood::new(&requests(10_000, 0), Duration::from_micros(77));
    flood.run(SECOND);
    flood.limiter.change(&requests(500, 0), flood.now);
    assert_within("fewer", flood.run(2 * SECOND), 1_000, 2);
    flood.limiter.change(&requests(40_000, 0), flood.now);
    assert_within("more", flood.run(2 * SECOND), 80_000, 2);
    // Changing all the time is no way to a burst again and again.
    let mut passed = 0;
    for round in 0..1_000 {
        flood.limiter.change(&requests(1_000, 200 + round % 2), flood.now);
        passed += flood.run(SECOND / 1_000);
    }
    assert!(passed <= 1_000 + 400, "{passed} by changing");
    flood.limiter.change(&Limits::default(), flood.now);
    assert!(flood.limiter.admit(Direction::Read, u64::MAX), "without limits all passes");
}

#[test]
fn limits_that_come_and_go_give_no_burst() {
    let mut flood = Flood::new(&Limits::default(), Duration::from_micros(100));
    flood.limiter.change(&requests(100, 100), flood.now);
    assert!(flood.run(SECOND) <= 101);
}

#[test]
fn bytes_are_limited_as_exactly_and_requests_larger_than_the_burst_pass_on_credit() {
    let mut flood = Flood::new(&bytes(10_000_000, 0), Duration::from_micros(333));
    flood.length = 4 << 20;
    // One every 0.42 s, though the burst is 100 kB.
    let passed = flood.run(42 * SECOND);
    assert!((100..=102).contains(&passed), "{passed} of 4 MiB");
    flood.length = 512;
    let passed = flood.run(10 * SECOND) * 512;
    assert_within("bytes", passed, 100_000_000, 5);
}

#[test]
fn the_tightest_of_several_limits_decides_and_directions_have_their_own() {
    let limits = Limits {
        total: RatePair { requests: rate(1_000, 0), bytes: rate(2_048_000, 0) },
        read: RatePair::default(),
        write: RatePair { requests: rate(100, 0), bytes: None },
    };
    // 500 requests of 4 KiB are 2 MB.
    let mut flood = Flood::new(&limits, Duration::from_micros(50));
    assert_within("reads of 4 KiB", flood.run(4 * SECOND), 2_000, 2);
    flood.length = 512;
    assert_within("reads of 512", flood.run(4 * SECOND), 4_000, 2);
    let mut limiter = Limiter::new(&limits, Duration::ZERO);
    let mut writes = 0;
    for millisecond in 0..4_000 {
        limiter.refill(Duration::from_millis(millisecond));
        writes += u64::from(limiter.admit(Direction::Write, 512));
    }
    assert_within("writes", writes, 400, 2);
}

#[test]
fn what_must_go_at_once_is_owed() {
    let mut flood = Flood::new(&requests(1_000, 0), Duration::from_micros(100));
    flood.run(SECOND);
    for _ in 0..500 {
        flood.limiter.charge(Direction::Write, 512);
    }
    assert_within("after 500 on credit", flood.run(2 * SECOND), 1_500, 2);
}

#[test]
fn nothing_overflows_at_the_ends() {
    let limits = Limits {
        total: RatePair { requests: rate(u64::MAX, u64::MAX), bytes: rate(1, u64::MAX) },
        ..Limits::default()
    };
    let mut limiter = Limiter::new(&limits, Duration::ZERO);
    for now in [Duration::ZERO, SECOND, Duration::MAX, Duration::MAX] {
        limiter.refill(now);
        limiter.admit(Direction::Write, u64::MAX);
        limiter.admit(Direction::Write, u64::MAX);
        let _ = limiter.deadline();
    }
}
