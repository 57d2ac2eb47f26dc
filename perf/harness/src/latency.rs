// SPDX-License-Identifier: Apache-2.0
//! Latencies as percentiles.
//!
//! With a rate limit a request's time is counted from when it was due, not from when it could
//! be sent: a backend that stalls makes every request late that should have been sent in the
//! meantime (coordinated omission).

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Longer than this counts as this.
const NANOSECONDS_MAX: u64 = 600_000_000_000;

#[derive(Debug)]
pub(crate) struct Latencies {
    nanoseconds: Histogram<u64>,
}

/// In microseconds.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Percentiles {
    pub min: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
    pub mean: f64,
}

impl Latencies {
    pub(crate) fn new() -> Self {
        let nanoseconds = Histogram::new_with_bounds(1, NANOSECONDS_MAX, 3);
        Self { nanoseconds: nanoseconds.expect("the bounds are constants that are fine") }
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(NANOSECONDS_MAX);
        self.nanoseconds.saturating_record(nanoseconds.max(1));
    }

    pub(crate) fn percentiles(&self) -> Percentiles {
        // A float holds every nanosecond count below 2^53, which is three months.
        #[expect(clippy::cast_precision_loss, reason = "the histogram ends at ten minutes")]
        let microseconds = |nanoseconds: u64| nanoseconds as f64 / 1000.0;
        let at = |quantile| microseconds(self.nanoseconds.value_at_quantile(quantile));
        Percentiles {
            min: microseconds(self.nanoseconds.min()),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: microseconds(self.nanoseconds.max()),
            mean: self.nanoseconds.mean() / 1000.0,
        }
    }
}

/// When requests are due under a rate limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    interval: Duration,
    sent: u32,
    batch_begin: Duration,
}

impl Schedule {
    /// `None` without a limit.
    pub(crate) fn new(per_second: Option<u64>) -> Option<Self> {
        let per_second = u32::try_from(per_second?).ok().filter(|rate| *rate > 0)?;
        let interval = Duration::from_secs(1) / per_second;
        Some(Self { interval, sent: 0, batch_begin: Duration::ZERO })
    }

    /// When the next request is due, counted from the begin of the run.
    pub(crate) fn due(&self) -> Duration {
        self.batch_begin + self.interval * self.sent
    }

    pub(crate) fn sent(&mut self) {
        self.sent += 1;
        // Kept small, so that the product above stays exact for runs of any length.
        if self.sent == 1 << 16 {
            self.batch_begin += self.interval * self.sent;
            self.sent = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_what_was_recorded() {
        let mut latencies = Latencies::new();
        (1..=1000).for_each(|us| latencies.record(Duration::from_micros(us)));
        let percentiles = latencies.percentiles();
        assert!((percentiles.p50 - 500.0).abs() < 2.0, "{percentiles:?}");
        assert!((percentiles.p99 - 990.0).abs() < 2.0, "{percentiles:?}");
        assert!((percentiles.max - 1000.0).abs() < 2.0, "{percentiles:?}");
    }

    #[test]
    fn a_schedule_keeps_its_rate_over_many_requests() {
        let mut schedule = Schedule::new(Some(1000)).unwrap();
        (0..100_000).for_each(|_| schedule.sent());
        assert_eq!(schedule.due(), Duration::from_secs(100));
        assert!(Schedule::new(None).is_none());
    }
}
