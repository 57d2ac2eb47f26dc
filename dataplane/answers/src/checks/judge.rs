// SPDX-License-Identifier: Apache-2.0
//! Whether a backend is fit, by the outcomes of its checks.
//!
//! ```text
//!   unknown ──first success──▶ fit
//!   unknown, fit ──`fall` failures in a row──▶ unfit
//!   unfit ──`rise` successes in a row──▶ fit
//! ```
//!
//! Who was not judged yet counts as fit: a switch that starts again would else take every backend
//! out of service.

use plinth_switch_api::Fitness;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Judge {
    fitness: Fitness,
    /// Outcomes in a row that speak against `fitness`.
    against: u8,
}

impl Judge {
    pub(crate) const fn new() -> Self {
        Self { fitness: Fitness::Unknown, against: 0 }
    }

    pub(crate) const fn fitness(&self) -> Fitness {
        self.fitness
    }

    /// Takes an outcome. Says whether what is thought of the backend has changed.
    pub(crate) fn take(&mut self, is_success: bool, rise: u8, fall: u8) -> bool {
        let before = self.fitness;
        let needed = match (self.fitness, is_success) {
            (Fitness::Fit, true) | (Fitness::Unfit, false) => {
                self.against = 0;
                return false;
            }
            (Fitness::Unknown, true) => 1,
            (Fitness::Unfit, true) => rise,
            (Fitness::Unknown | Fitness::Fit, false) => fall,
        };
        self.against = self.against.saturating_add(1);
        if self.against >= needed {
            self.fitness = if is_success { Fitness::Fit } else { Fitness::Unfit };
            self.against = 0;
        }
        self.fitness != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is thought after each outcome: `+` success, `-` failure; rise 2, fall 3.
    fn story(outcomes: &str) -> String {
        let mut judge = Judge::new();
        let letter = |outcome| {
            judge.take(outcome == '+', 2, 3);
            match judge.fitness() {
                Fitness::Unknown => '?',
                Fitness::Fit => 'f',
                Fitness::Unfit => 'u',
            }
        };
        outcomes.chars().map(letter).collect()
    }

    #[test]
    fn fall_failures_in_a_row_make_a_backend_unfit() {
        assert_eq!(story("+--+---"), "ffffffu");
        assert_eq!(story("--+---"), "??fffu");
    }

    #[test]
    fn rise_successes_in_a_row_make_it_fit_again() {
        assert_eq!(story("---+-++"), "??uuuuf");
    }

    #[test]
    fn the_first_word_is_one_success_or_fall_failures() {
        assert_eq!(story("+"), "f");
        assert_eq!(story("---"), "??u");
    }

    #[test]
    fn a_change_is_told_once() {
        let mut judge = Judge::new();
        assert!(judge.take(true, 1, 1));
        assert!(!judge.take(true, 1, 1));
        assert!(judge.take(false, 1, 1));
        assert!(!judge.take(false, 1, 1));
        assert!(judge.take(true, 1, 1));
    }
}
