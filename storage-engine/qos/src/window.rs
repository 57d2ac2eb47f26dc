// SPDX-License-Identifier: Apache-2.0
//! How much those who ask for much may have under way, so that those who ask for little do not
//! notice them.
//!
//! ```text
//!            32 answers to light volumes                     every 10 s
//!   Probe ───────────────────────────────▶ Follow ────────────────────────────▶ Probe
//!   window 1, learn what light             slow answer: half the window, at once
//!   volumes' answers cost alone            fast ones:   more, slowly where it failed before
//! ```
//!
//! Times are in whatever the caller measures in: they are only compared with each other. What
//! "alone" costs is learned by holding the others down for a moment, because a device does not
//! say and a volume may never be alone.

use plinth_ids::Moment;
use std::time::Duration;

/// Answers from which an average is made.
const SAMPLES: u32 = 32;

/// Answers that are not looked at after the window was made smaller: they waited in the old one.
const SKIPPED: u32 = 8;

/// After this long, fewer samples do.
const PATIENCE: Duration = Duration::from_millis(500);
const SAMPLES_MIN: u32 = 4;

/// What is learned of a device holds for so long.
const PROBE_EVERY: Duration = Duration::from_secs(10);

/// The window is halved as soon as an answer takes 5/4 of the slowest of those alone, or when the
/// average is 5/4 of theirs. It grows when the average is below 9/8: by an eighth up to 3/4 of where
/// it was halved, then by a 64th. So a slow answer comes once in several hundred: it is the p99
/// that is to be kept, and an average would not see what one large request in the way does.
const SHRINK: (u64, u64) = (5, 4);
const GROW: (u64, u64) = (9, 8);

#[derive(Clone, Copy, Debug)]
enum Phase {
    Probe,
    Follow { alone: u64, slow: u64, until: Moment },
}

#[derive(Clone, Debug)]
pub(crate) struct Window {
    phase: Phase,
    /// In the same unit as the costs.
    size: u64,
    least: u64,
    most: u64,
    sum: u64,
    longest: u64,
    count: u32,
    since: Moment,
    /// Where it was too large.
    ceiling: u64,
    /// Answers to leave out, because they began before the window was made smaller.
    skip: u32,
}

impl Window {
    pub(crate) fn new(least: u64, most: u64) -> Self {
        let since = Moment::ZERO;
        Self {
            phase: Phase::Probe,
            size: least,
            least,
            most,
            sum: 0,
            longest: 0,
            count: 0,
            since,
            ceiling: most,
            skip: SKIPPED,
        }
    }

    /// Light volumes meet heavy ones: learn again what they are used to.
    pub(crate) fn start(&mut self, now: Moment) {
        if let Phase::Follow { until, .. } = self.phase
            && now < until
        {
            self.clear(now);
            return;
        }
        self.probe(now);
    }

    fn probe(&mut self, now: Moment) {
        self.phase = Phase::Probe;
        self.skip = SKIPPED;
        self.clear(now);
    }

    fn clear(&mut self, now: Moment) {
        (self.sum, self.longest, self.count, self.since) = (0, 0, 0, now);
    }

    /// What heavy volumes may have together now.
    pub(crate) const fn allowed(&self) -> u64 {
        match self.phase {
            Phase::Probe => self.least,
            Phase::Follow { .. } => self.size,
        }
    }

    /// An answer to a light volume took `ticks`. `is_held`: no more is under way of heavy ones than
    /// is allowed.
    pub(crate) fn note(&mut self, ticks: u64, is_held: bool) {
        if self.skip > 0 {
            self.skip = if is_held { self.skip - 1 } else { SKIPPED };
            return;
        }
        if let Phase::Follow { slow, .. } = self.phase
            && ticks > slow
        {
            self.shrink();
            return;
        }
        self.sum = self.sum.saturating_add(ticks);
        self.longest = self.longest.max(ticks);
        self.count += 1;
    }

    fn shrink(&mut self) {
        self.ceiling = self.size;
        self.size = (self.size / 2).max(self.least);
        self.skip = SKIPPED;
        (self.sum, self.longest, self.count) = (0, 0, 0);
    }

    fn grow(&mut self) {
        let is_free = self.size < self.ceiling / 4 * 3;
        let (part, least) = if is_free { (8, self.least / 2) } else { (64, self.least / 16) };
        self.size = (self.size + (self.size / part).max(least)).min(self.most);
        self.ceiling = self.ceiling.max(self.size);
    }

    /// Draws the conclusion, if there is enough to conclude from.
    pub(crate) fn conclude(&mut self, now: Moment) {
        let is_late = now.saturating_sub(self.since) >= PATIENCE;
        if self.count < SAMPLES && !(is_late && self.count >= SAMPLES_MIN) {
            return;
        }
        let mean = self.sum / u64::from(self.count);
        match self.phase {
            Phase::Probe => {
                let (alone, slow) = (mean.max(1), above(self.longest, SHRINK).max(1));
                self.phase = Phase::Follow { alone, slow, until: now + PROBE_EVERY };
                self.clear(now);
            }
            Phase::Follow { until, .. } if now >= until => self.probe(now),
            Phase::Follow { alone, .. } => {
                if mean > above(alone, SHRINK) {
                    self.shrink();
                } else if mean < above(alone, GROW) {
                    self.grow();
                }
                self.clear(now);
            }
        }
    }
}

const fn above(ticks: u64, part: (u64, u64)) -> u64 {
    ticks.saturating_mul(part.0) / part.1
}
