// SPDX-License-Identifier: Apache-2.0
//! The machine: one door in, one effect out.

use plinth_ids::Moment;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long QEMU may take to end after it was told to.
pub const QUIT_TIME: Duration = Duration::from_secs(5);
/// Between two presses of the power button: a guest that is still booting misses the first.
pub const PRESS_PAUSE: Duration = Duration::from_secs(5);
/// Between two attempts to kill a process that does not go.
pub const KILL_PAUSE: Duration = Duration::from_secs(5);
/// How often a VM is started again before it is given up.
pub const RESTART_MAX: u32 = 5;
/// A VM that ran this long has a clean slate.
pub const STABLE_TIME: Duration = Duration::from_secs(600);
/// Between two looks at a launch whose surroundings are not ready.
const DEFER_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause before a start.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// What the operator wants.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wish {
    /// To run. `start_number` rises with every start that an operator asks for.
    Run { start_number: u64 },
    /// To be off. The guest may take `grace` to switch itself off; zero cuts it off.
    Stop { grace: Duration },
}

/// Everything that can happen to a VM.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Input {
    /// May be repeated at any time.
    Want(Wish),
    /// The process of [`Effect::Launch`] runs and answers.
    Launched,
    /// The launch was not tried: something it needs is not there yet. Not counted as a failure.
    LaunchDeferred { reason: String },
    /// The launch failed, and no process is left of it.
    LaunchFailed { reason: String },
    /// The guest has switched itself off; the process is still there.
    GuestOff,
    /// The process is gone.
    Exited { reason: String },
    /// Time went by. Safe to send at any time.
    Tick,
}

/// What to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Effect {
    /// Make a process; answer with one of the three launch inputs.
    Launch,
    /// Ask the guest to switch itself off.
    PressPower,
    /// Tell the process to end in good order.
    Quit,
    /// End the process by force.
    Kill,
}

/// Where the VM is, with the fields of that state only.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum State {
    Off,
    Launching,
    Running {
        since: Moment,
    },
    Stopping {
        until: Moment,
        press_at: Moment,
    },
    Quitting {
        until: Moment,
    },
    Killing {
        again_at: Moment,
    },
    /// No process; the next launch is at `until`.
    Waiting {
        until: Moment,
    },
    /// No process, and none is tried before an operator asks.
    Failed,
}

/// What must survive a restart of the node agent.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Record {
    /// Whether a process was there or on its way.
    pub has_process: bool,
    /// Of the last start that was tried or found done.
    pub start_number: u64,
    pub restarts: u32,
    /// Whether it was given up.
    pub is_failed: bool,
    pub reason: String,
}

/// One VM.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    state: State,
    wish: Wish,
    /// The highest start number that a start was tried for.
    start_number: u64,
    /// Starts that ended badly in a row.
    failures: u32,
    restarts: u32,
    reason: String,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self::restore(&Record::default(), Duration::ZERO)
    }
}

impl Lifecycle {
    /// Goes on from a record. A process that the record tells of is taken as running: the caller
    /// looks for it and says [`Input::Exited`] when it is not there.
    pub fn restore(record: &Record, now: Moment) -> Self {
        let state = match record {
            Record { has_process: true, .. } => State::Running { since: now },
            Record { is_failed: true, .. } => State::Failed,
            Record { .. } => State::Off,
        };
        Self {
            state,
            wish: Wish::Stop { grace: Duration::MAX },
            start_number: record.start_number,
            failures: 0,
            restarts: record.restarts,
            reason: record.reason.clone(),
        }
    }

    pub fn record(&self) -> Record {
        Record {
            has_process: self.has_process(),
            start_number: self.start_number,
            restarts: self.restarts,
            is_failed: self.state == State::Failed,
            reason: self.reason.clone(),
        }
    }

    pub const fn state(&self) -> &State {
        &self.state
    }

    /// Whether a process is there or on its way.
    pub const fn has_process(&self) -> bool {
        match self.state {
            State::Launching
            | State::Running { .. }
            | State::Stopping { .. }
            | State::Quitting { .. }
            | State::Killing { .. } => true,
            State::Off | State::Waiting { .. } | State::Failed => false,
        }
    }

    /// Why the VM is not as wished, for people; empty when it is.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// How often the VM was started again because it died unasked.
    pub const fn restarts(&self) -> u32 {
        self.restarts
    }

    /// Of the last start that was tried.
    pub const fn start_number(&self) -> u64 {
        self.start_number
    }

    /// When [`Input::Tick`] is next needed, if at all.
    pub fn deadline(&self) -> Option<Moment> {
        match self.state {
            State::Off | State::Launching | State::Running { .. } | State::Failed => None,
            State::Stopping { until, press_at } => Some(until.min(press_at)),
            State::Quitting { until } | State::Waiting { until } => Some(until),
            State::Killing { again_at } => Some(again_at),
        }
    }

    /// Takes one input and says what to do about it.
    pub fn handle(&mut self, now: Moment, input: Input) -> Option<Effect> {
        let effect = match input {
            Input::Want(wish) => {
                self.wish = wish;
                self.follow_wish(now)
            }
            Input::Launched => self.launched(now),
            Input::LaunchDeferred { reason } => self.launch_deferred(now, reason),
            Input::LaunchFailed { reason } => self.launch_failed(now, reason),
            Input::GuestOff => self.guest_off(now),
            Input::Exited { reason } => self.exited(now, reason),
            Input::Tick => self.tick(now),
        };
        self.check();
        effect
    }

    /// What must hold after every input.
    fn check(&self) {
        debug_assert!(
            self.failures <= RESTART_MAX + 1,
            "a VM that died too often is given up, not tried again"
        );
        debug_assert!(
            self.state != State::Failed || !self.reason.is_empty(),
            "a VM that was given up says why"
        );
    }

    fn follow_wish(&mut self, now: Moment) -> Option<Effect> {
        match (&self.state, self.wish) {
            (State::Off | State::Waiting { .. } | State::Failed, Wish::Run { start_number })
                if start_number > self.start_number =>
            {
                self.failures = 0;
                self.restarts = 0;
                self.start_number = start_number;
                Some(self.launch())
            }
            // The wish of an earlier start: answered, on its way, or given up.
            (State::Off | State::Waiting { .. } | State::Failed, Wish::Run { .. }) => None,
            // It runs already, so a newer start is answered too.
            (State::Launching | State::Running { .. }, Wish::Run { start_number }) => {
                self.start_number = self.start_number.max(start_number);
                None
            }
            // Decided when the process is gone.
            (
                State::Stopping { .. } | State::Quitting { .. } | State::Killing { .. },
                Wish::Run { .. },
            ) => None,
            (State::Running { .. }, Wish::Stop { grace }) if grace.is_zero() => {
                Some(self.quit(now))
            }
            (State::Running { .. }, Wish::Stop { grace }) => {
                let until = now.saturating_add(grace);
                self.state = State::Stopping { until, press_at: now + PRESS_PAUSE };
                Some(Effect::PressPower)
            }
            // A repeated wish may shorten the grace, never lengthen it.
            (&State::Stopping { until, press_at }, Wish::Stop { grace }) => {
                if grace.is_zero() {
                    return Some(self.quit(now));
                }
                let until = until.min(now.saturating_add(grace));
                self.state = State::Stopping { until, press_at };
                None
            }
            (State::Waiting { .. } | State::Failed, Wish::Stop { .. }) => {
                self.state = State::Off;
                self.reason.clear();
                None
            }
            // A launch cannot be taken back half way; what it makes is stopped when it is there.
            (
                State::Off | State::Launching | State::Quitting { .. } | State::Killing { .. },
                Wish::Stop { .. },
            ) => None,
        }
    }

    fn launched(&mut self, now: Moment) -> Option<Effect> {
        match self.state {
            State::Launching => {
                self.state = State::Running { since: now };
                self.reason.clear();
                self.follow_wish(now)
            }
            State::Off
            | State::Running { .. }
            | State::Stopping { .. }
            | State::Quitting { .. }
            | State::Killing { .. }
            | State::Waiting { .. }
            | State::Failed => None,
        }
    }

    fn launch_deferred(&mut self, now: Moment, reason: String) -> Option<Effect> {
        match self.state {
            State::Launching => {
                self.reason = reason;
                self.state = State::Waiting { until: now + DEFER_PAUSE };
                self.follow_wish(now)
            }
            State::Off
            | State::Running { .. }
            | State::Stopping { .. }
            | State::Quitting { .. }
            | State::Killing { .. }
            | State::Waiting { .. }
            | State::Failed => None,
        }
    }

    fn launch_failed(&mut self, now: Moment, reason: String) -> Option<Effect> {
        match self.state {
            State::Launching => self.try_again(now, reason),
            State::Off
            | State::Running { .. }
            | State::Stopping { .. }
            | State::Quitting { .. }
            | State::Killing { .. }
            | State::Waiting { .. }
            | State::Failed => None,
        }
    }

    fn guest_off(&mut self, now: Moment) -> Option<Effect> {
        match self.state {
            State::Running { .. } => {
                "the guest switched itself off".clone_into(&mut self.reason);
                Some(self.quit(now))
            }
            State::Stopping { .. } => Some(self.quit(now)),
            State::Off
            | State::Launching
            | State::Quitting { .. }
            | State::Killing { .. }
            | State::Waiting { .. }
            | State::Failed => None,
        }
    }

    fn exited(&mut self, now: Moment, reason: String) -> Option<Effect> {
        match self.state {
            State::Running { since } => {
                if now >= since + STABLE_TIME {
                    self.failures = 0;
                }
                self.try_again(now, reason)
            }
            State::Launching => self.try_again(now, reason),
            State::Stopping { .. } | State::Quitting { .. } | State::Killing { .. } => {
                self.state = State::Off;
                if matches!(self.wish, Wish::Stop { .. }) {
                    self.reason.clear();
                }
                self.follow_wish(now)
            }
            State::Off | State::Waiting { .. } | State::Failed => None,
        }
    }

    fn tick(&mut self, now: Moment) -> Option<Effect> {
        match self.state {
            State::Stopping { until, .. } if until <= now => Some(self.quit(now)),
            State::Stopping { until, press_at } if press_at <= now => {
                self.state = State::Stopping { until, press_at: now + PRESS_PAUSE };
                Some(Effect::PressPower)
            }
            State::Quitting { until } if until <= now => {
                self.state = State::Killing { again_at: now + KILL_PAUSE };
                Some(Effect::Kill)
            }
            State::Killing { again_at } if again_at <= now => {
                self.state = State::Killing { again_at: now + KILL_PAUSE };
                Some(Effect::Kill)
            }
            State::Waiting { until } if until <= now => Some(self.launch()),
            State::Off
            | State::Launching
            | State::Running { .. }
            | State::Stopping { .. }
            | State::Quitting { .. }
            | State::Killing { .. }
            | State::Waiting { .. }
            | State::Failed => None,
        }
    }

    fn launch(&mut self) -> Effect {
        self.state = State::Launching;
        Effect::Launch
    }

    fn quit(&mut self, now: Moment) -> Effect {
        self.state = State::Quitting { until: now + QUIT_TIME };
        Effect::Quit
    }

    /// After a start that ended badly: waits for the next, or gives up.
    fn try_again(&mut self, now: Moment, reason: String) -> Option<Effect> {
        self.reason = reason;
        self.failures += 1;
        if self.failures > RESTART_MAX {
            self.state = State::Failed;
            return self.follow_wish(now);
        }
        self.restarts += 1;
        let pause = Duration::from_secs(1 << (self.failures - 1).min(6)).min(BACKOFF_MAX);
        self.state = State::Waiting { until: now + pause };
        self.follow_wish(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);
    const RUN: Wish = Wish::Run { start_number: 1 };
    const STOP: Wish = Wish::Stop { grace: Duration::from_secs(30) };
    const CUT: Wish = Wish::Stop { grace: Duration::ZERO };

    fn exited() -> Input {
        Input::Exited { reason: "killed by signal 11".to_owned() }
    }

    fn running() -> Lifecycle {
        let mut vm = Lifecycle::default();
        assert_eq!(vm.handle(SECOND, Input::Want(RUN)), Some(Effect::Launch));
        assert_eq!(vm.handle(SECOND, Input::Launched), None);
        assert_eq!(vm.state(), &State::Running { since: SECOND });
        vm
    }

    #[test]
    fn a_repeated_wish_starts_one_process() {
        let mut vm = Lifecycle::default();
        assert_eq!(vm.handle(SECOND, Input::Want(RUN)), Some(Effect::Launch));
        assert_eq!(vm.handle(SECOND, Input::Want(RUN)), None);
        vm.handle(SECOND, Input::Launched);
        assert_eq!(vm.handle(SECOND, Input::Want(RUN)), None);
    }

    #[test]
    fn a_guest_that_ignores_the_button_is_cut_off_in_three_steps() {
        let mut vm = running();
        assert_eq!(vm.handle(2 * SECOND, Input::Want(STOP)), Some(Effect::PressPower));
        assert_eq!(vm.handle(6 * SECOND, Input::Tick), None);
        assert_eq!(vm.handle(7 * SECOND, Input::Tick), Some(Effect::PressPower));
        assert_eq!(vm.handle(32 * SECOND, Input::Tick), Some(Effect::Quit));
        assert_eq!(vm.handle(36 * SECOND, Input::Tick), None);
        assert_eq!(vm.handle(37 * SECOND, Input::Tick), Some(Effect::Kill));
        assert_eq!(vm.handle(38 * SECOND, exited()), None);
        assert_eq!((vm.state(), vm.reason()), (&State::Off, ""));
    }

    #[test]
    fn repeating_the_wish_to_stop_does_not_lengthen_the_grace() {
        let mut vm = running();
        vm.handle(2 * SECOND, Input::Want(STOP));
        for second in 3..32 {
            vm.handle(second * SECOND, Input::Want(STOP));
        }
        assert_eq!(vm.handle(32 * SECOND, Input::Tick), Some(Effect::Quit));
    }

    #[test]
    fn a_second_stop_without_grace_cuts_off_at_once() {
        let mut vm = running();
        vm.handle(2 * SECOND, Input::Want(STOP));
        assert_eq!(vm.handle(3 * SECOND, Input::Want(CUT)), Some(Effect::Quit));
    }

    #[test]
    fn a_guest_that_switched_itself_off_stays_off_until_the_next_start() {
        let mut vm = running();
        assert_eq!(vm.handle(2 * SECOND, Input::GuestOff), Some(Effect::Quit));
        vm.handle(3 * SECOND, exited());
        assert_eq!(vm.handle(4 * SECOND, Input::Want(RUN)), None);
        assert_eq!((vm.state(), vm.reason()), (&State::Off, "the guest switched itself off"));
        let next = Wish::Run { start_number: 2 };
        assert_eq!(vm.handle(5 * SECOND, Input::Want(next)), Some(Effect::Launch));
    }

    #[test]
    fn a_start_during_a_stop_is_done_after_it() {
        let mut vm = running();
        vm.handle(2 * SECOND, Input::Want(STOP));
        assert_eq!(vm.handle(3 * SECOND, Input::Want(Wish::Run { start_number: 2 })), None);
        assert_eq!(vm.handle(4 * SECOND, Input::GuestOff), Some(Effect::Quit));
        assert_eq!(vm.handle(5 * SECOND, exited()), Some(Effect::Launch));
    }

    #[test]
    fn a_stop_during_a_launch_is_done_after_it() {
        let mut vm = Lifecycle::default();
        vm.handle(SECOND, Input::Want(RUN));
        assert_eq!(vm.handle(SECOND, Input::Want(CUT)), None);
        assert_eq!(vm.handle(SECOND, Input::Launched), Some(Effect::Quit));
    }

    #[test]
    fn a_crash_is_mended_with_growing_pauses_until_it_happens_too_often() {
        let mut vm = running();
        let mut now = SECOND;
        let mut pauses = Vec::new();
        while vm.state() != &State::Failed {
            assert_eq!(vm.handle(now, exited()), None);
            let Some(until) = vm.deadline() else { break };
            pauses.push((until - now).as_secs());
            now = until;
            assert_eq!(vm.handle(now, Input::Tick), Some(Effect::Launch));
            vm.handle(now, Input::Launched);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16]);
        assert_eq!((vm.restarts(), vm.reason()), (5, "killed by signal 11"));
        assert_eq!(vm.handle(now, Input::Want(RUN)), None);
        let next = Wish::Run { start_number: 2 };
        assert_eq!(vm.handle(now, Input::Want(next)), Some(Effect::Launch));
    }

    #[test]
    fn a_long_life_clears_the_slate() {
        let mut vm = running();
        vm.handle(2 * SECOND, exited());
        vm.handle(3 * SECOND, Input::Tick);
        vm.handle(3 * SECOND, Input::Launched);
        vm.handle(3 * SECOND + STABLE_TIME, exited());
        assert_eq!(vm.deadline(), Some(4 * SECOND + STABLE_TIME));
    }

    #[test]
    fn surroundings_that_are_not_ready_do_not_count_as_failures() {
        let mut vm = Lifecycle::default();
        let mut now = SECOND;
        vm.handle(now, Input::Want(RUN));
        for _ in 0..100 {
            vm.handle(now, Input::LaunchDeferred { reason: "no socket".to_owned() });
            assert_eq!(vm.reason(), "no socket");
            now = vm.deadline().unwrap();
            assert_eq!(vm.handle(now, Input::Tick), Some(Effect::Launch));
        }
        assert_eq!(vm.restarts(), 0);
    }

    #[test]
    fn a_record_brings_each_state_back() {
        let mut vm = running();
        let again = Lifecycle::restore(&vm.record(), 9 * SECOND);
        assert_eq!(again.state(), &State::Running { since: 9 * SECOND });
        vm.handle(2 * SECOND, Input::GuestOff);
        vm.handle(2 * SECOND, exited());
        let mut again = Lifecycle::restore(&vm.record(), 9 * SECOND);
        assert_eq!(again.handle(9 * SECOND, Input::Want(RUN)), None);
        assert_eq!(again.reason(), "the guest switched itself off");
    }

    fn input() -> impl Strategy<Value = Input> {
        prop_oneof![
            (0..4u64).prop_map(|start_number| Input::Want(Wish::Run { start_number })),
            (0..40u64).prop_map(|s| Input::Want(Wish::Stop { grace: Duration::from_secs(s) })),
            Just(Input::Launched),
            Just(Input::LaunchDeferred { reason: "not ready".to_owned() }),
            Just(Input::LaunchFailed { reason: "no".to_owned() }),
            Just(Input::GuestOff),
            Just(exited()),
            Just(Input::Tick),
        ]
    }

    proptest! {
        /// A world that knows only whether a process is there. Launches answer late; everything
        /// else may come at any time.
        #[test]
        fn there_is_never_a_second_process(steps in prop::collection::vec((0..5000u64, input()), 1..200)) {
            let mut vm = Lifecycle::default();
            let mut now = Duration::ZERO;
            let mut is_launching = false;
            let mut is_up = false;
            let mut launches = 0;
            for (pause, input) in steps {
                now += Duration::from_millis(pause);
                // What the world cannot say in its state is not said.
                let is_possible = match &input {
                    Input::Launched | Input::LaunchDeferred { .. } | Input::LaunchFailed { .. } => is_launching,
                    Input::GuestOff | Input::Exited { .. } => is_up,
                    Input::Want(_) | Input::Tick => true,
                };
                if !is_possible { continue }
                match &input {
                    Input::Launched => { is_launching = false; is_up = true }
                    Input::LaunchDeferred { .. } | Input::LaunchFailed { .. } => is_launching = false,
                    Input::Exited { .. } => is_up = false,
                    _ => {}
                }
                match vm.handle(now, input) {
                    Some(Effect::Launch) => {
                        prop_assert!(!is_up && !is_launching);
                        is_launching = true;
                        launches += 1;
                    }
                    Some(Effect::PressPower | Effect::Quit | Effect::Kill) => prop_assert!(is_up),
                    None => {}
                }
                prop_assert_eq!(vm.has_process(), is_up || is_launching);
            }
            prop_assert!(launches < 200);
        }

        /// Whatever happened, a wish to stop ends without a process once time passes and the
        /// process obeys.
        #[test]
        fn a_wish_to_stop_always_ends_off(inputs in prop::collection::vec(input(), 0..50)) {
            let mut vm = Lifecycle::default();
            for input in inputs { vm.handle(SECOND, input); }
            let mut effect = vm.handle(SECOND, Input::Want(CUT));
            let mut now = SECOND;
            for _ in 0..10 {
                if vm.state() == &State::Launching { effect = vm.handle(now, Input::Launched); }
                if matches!(effect, Some(Effect::Kill)) { vm.handle(now, exited()); }
                if let Some(deadline) = vm.deadline() { now = now.max(deadline); }
                effect = vm.handle(now, Input::Tick);
            }
            prop_assert_eq!(vm.state(), &State::Off);
        }
    }
}
