// SPDX-License-Identifier: Apache-2.0
//! What asking costs: nanoseconds a request, the least of many short runs, so that a machine that
//! does other things too does not count.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "it measures time")]
#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use plinth_qos::{Direction, Fair, Limiter, Limits, Rate, RatePair, cost_of};
use std::hint::black_box;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

const ROUNDS: u64 = 2_000;

/// The least time of a request, when a round has `burst` of them.
fn least(burst: u64, mut round: impl FnMut(Duration)) -> f64 {
    let mut least = f64::MAX;
    for _ in 0..200 {
        let started = Instant::now();
        for number in 0..ROUNDS {
            round(Duration::from_micros(number));
        }
        let each = started.elapsed().as_secs_f64() * 1e9 / (ROUNDS * burst) as f64;
        least = least.min(each);
    }
    least
}

fn share(volumes: usize, burst: u64) -> f64 {
    let mut fair = Fair::new();
    let accounts: Vec<_> = (0..volumes).map(|_| fair.join()).collect();
    least(burst * volumes as u64, |now| {
        fair.begin_round(now);
        for &account in &accounts {
            let mut turn = fair.open_turn(account);
            for _ in 0..burst {
                if black_box(turn.may_start(cost_of(4096))) {
                    turn.start(cost_of(4096));
                }
            }
            fair.close_turn(account, turn, 0);
        }
        for &account in &accounts {
            for _ in 0..burst {
                fair.end(account, cost_of(4096), black_box(100));
            }
        }
    })
}

fn limits(burst: u64) -> f64 {
    let rate = |per_second| Rate { per_second, burst: u64::MAX };
    let pair = NonZeroU64::new(1_000_000_000)
        .map(|most| RatePair { requests: Some(rate(most)), bytes: Some(rate(most)) });
    let limits = Limits { total: pair.unwrap_or_default(), ..Limits::default() };
    let mut limiter = Limiter::new(&limits, Duration::ZERO);
    least(burst, |now| {
        limiter.refill(now);
        for _ in 0..burst {
            black_box(limiter.admit(black_box(Direction::Read), black_box(4096)));
        }
    })
}

fn main() {
    for burst in [1, 32] {
        println!("{burst:>3} a round: share, alone    {:6.1} ns a request", share(1, burst));
        println!("{burst:>3} a round: share, of four  {:6.1} ns a request", share(4, burst));
        println!("{burst:>3} a round: two limits      {:6.1} ns a request", limits(burst));
    }
}
