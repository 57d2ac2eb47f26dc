// SPDX-License-Identifier: Apache-2.0
//! Whose turn it is: the worker's time, shared among ports by weight.
//!
//! Deficit round robin (Shreedhar and Varghese, 1995) in cycles of the worker instead of bytes:
//! what one guest's packets cost beside another's (64 bytes or 64 KiB, a hit or a new connection)
//! only the counter knows. Every round a port is given cycles in proportion to its weight; a port
//! that has none left is passed over until it has; what a burst cost is taken off afterwards, into
//! debt. When all who want to send are in debt, the rounds that would pass until one is not are
//! given at once, so that no cycle of the worker is lost to fairness.
//!
//! ```text
//!   share of a port that always has packets = its weight / weights of all such ports
//! ```
//!
//! A port saves nothing: it never has more than one round's cycles.

/// Cycles that a port of weight 1 is given in a round. A port of the usual weight of 100 gets
/// 12 800: a burst of 32 small packets takes some 8000, so that ports of usual weight that send
/// such are never passed over.
const CYCLES: i64 = 128;

/// The most that a port can owe, some 1.6 ms: more than the dearest burst, of 32 packets of
/// 64 KiB, and less than the kernel may have taken the worker's CPU away for meanwhile, which is
/// not the port's doing.
const DEBT_MAX: i64 = 1 << 22;

#[derive(Clone, Copy, Debug, Default)]
struct Account {
    /// Cycles that the port may use.
    left: i64,
    weight: i64,
    /// Passed over in this round.
    is_waiting: bool,
}

/// The accounts of all places.
#[derive(Debug)]
pub(crate) struct Turns {
    accounts: Box<[Account]>,
    /// Whether any port was passed over in this round.
    has_waiting: bool,
}

impl Turns {
    pub(crate) fn new(places: usize) -> Self {
        Self { accounts: vec![Account::default(); places].into(), has_waiting: false }
    }

    /// A place has another weight from now on; what its port owes stays owed.
    pub(crate) fn set_weight(&mut self, place: usize, weight: u16) {
        self.accounts[place].weight = i64::from(weight.max(1));
    }

    /// A round begins for this place. Whether the port may send in it.
    #[inline]
    pub(crate) fn begin(&mut self, place: usize) -> bool {
        let account = &mut self.accounts[place];
        let quantum = account.weight * CYCLES;
        account.left = (account.left + quantum).min(quantum);
        account.is_waiting = account.left <= 0;
        self.has_waiting |= account.is_waiting;
        !account.is_waiting
    }

    /// Whether a port that has sent something in this round may send more.
    #[inline]
    pub(crate) fn may_go_on(&self, place: usize) -> bool {
        self.accounts[place].left > 0
    }

    /// Takes what a burst cost off.
    #[inline]
    pub(crate) fn charge(&mut self, place: usize, cycles: u64) {
        let account = &mut self.accounts[place];
        let cycles = i64::try_from(cycles).unwrap_or(DEBT_MAX);
        account.left = account.left.saturating_sub(cycles).max(-DEBT_MAX);
    }

    /// A round in which nothing moved has ended. If ports were passed over in it, gives all of them
    /// the rounds that the first needs, and says so: then it is to be begun again.
    pub(crate) fn catch_up(&mut self) -> bool {
        if !std::mem::take(&mut self.has_waiting) {
            return false;
        }
        let rounds = |account: &Account| {
            let quantum = account.weight * CYCLES;
            // `begin` gives one more.
            (-account.left) / quantum.max(1)
        };
        let waiting = self.accounts.iter().filter(|account| account.is_waiting);
        let Some(least) = waiting.map(rounds).min() else { return false };
        for account in self.accounts.iter_mut().filter(|account| account.is_waiting) {
            account.left = account.left.saturating_add(account.weight * CYCLES * least);
            account.is_waiting = false;
        }
        true
    }

    /// A round in which something moved has ended.
    pub(crate) const fn end(&mut self) {
        self.has_waiting = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ports that always have a burst, which costs so much; gives each one's share of the cycles.
    fn shares(ports: &[(u16, u64)], rounds: usize) -> Vec<f64> {
        let mut turns = Turns::new(ports.len());
        for (place, &(weight, _)) in ports.iter().enumerate() {
            turns.set_weight(place, weight);
        }
        let mut used = vec![0u64; ports.len()];
        for _ in 0..rounds {
            let mut moved = false;
            for (place, &(_, cost)) in ports.iter().enumerate() {
                if turns.begin(place) {
                    turns.charge(place, cost);
                    used[place] += cost;
                    moved = true;
                }
            }
            if moved {
                turns.end();
            } else {
                assert!(turns.catch_up(), "whoever waits gets a turn");
            }
        }
        let all: u64 = used.iter().sum();
        used.iter().map(|&used| used as f64 / all as f64).collect()
    }

    fn assert_shares(ports: &[(u16, u64)], wanted: &[f64]) {
        let found = shares(ports, 20_000);
        for (found, wanted) in found.iter().zip(wanted) {
            assert!((found - wanted).abs() < 0.02, "{found} is not {wanted}: {ports:?}");
        }
    }

    #[test]
    fn the_worker_is_shared_by_weight_whatever_a_burst_costs() {
        assert_shares(&[(100, 500_000), (100, 500_000)], &[0.5, 0.5]);
        // Long packets beside middling ones.
        assert_shares(&[(100, 2_000_000), (100, 50_000)], &[0.5, 0.5]);
        assert_shares(&[(100, 300_000), (300, 300_000)], &[0.25, 0.75]);
        assert_shares(&[(100, 40_000), (200, 900_000), (700, 150_000)], &[0.1, 0.2, 0.7]);
    }

    #[test]
    fn one_that_asks_for_little_gets_it_in_every_round() {
        let mut turns = Turns::new(2);
        turns.set_weight(0, 1000);
        turns.set_weight(1, 100);
        for _ in 0..1000 {
            if turns.begin(0) {
                turns.charge(0, 5_000_000);
            }
            assert!(turns.begin(1), "a modest port is never passed over");
            turns.charge(1, 8000);
            turns.end();
        }
    }

    #[test]
    fn nothing_is_saved_and_nobody_waits_for_nobody() {
        let mut turns = Turns::new(2);
        turns.set_weight(0, 100);
        turns.set_weight(1, 100);
        // Idle for long: not more than one round's cycles.
        (0..1000).for_each(|_| assert!(turns.begin(0)));
        turns.charge(0, 100 * 128 + 1);
        assert!(!turns.may_go_on(0));
        // Alone with a debt, it goes on after one catching up.
        turns.charge(0, 77_000_000);
        assert!(!turns.begin(0) && turns.begin(1));
        assert!(turns.catch_up());
        assert!(turns.begin(0));
        // An idle round in which nobody waits is the end.
        turns.end();
        assert!(!turns.catch_up());
    }

    #[test]
    fn a_clock_that_jumps_owes_a_bounded_time() {
        let mut turns = Turns::new(1);
        turns.set_weight(0, 1);
        turns.charge(0, u64::MAX);
        turns.charge(0, u64::MAX);
        assert!(!turns.begin(0));
        assert!(turns.catch_up() && turns.begin(0));
    }
}
