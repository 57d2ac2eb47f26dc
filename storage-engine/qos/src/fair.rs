// SPDX-License-Identifier: Apache-2.0
//! Fairness between the volumes of one worker that share a pool.
//!
//! ```text
//!   alone                everything at once: no bound
//!   several, alike       a round gives each the same cost (deficit round robin), and each may
//!                        have its share of a large window under way
//!   heavy beside light   heavy ones share a window of cost under way that shrinks until light
//!                        ones are answered about as fast as alone (`window.rs`)
//! ```
//!
//! A volume is light when it asks for little at once, and for a quarter or less of what the heaviest
//! asks for.
//! Light ones are never held by others. A volume that has nothing under way may always start
//! something, so nobody stops for ever, whatever the window says.
//!
//! Cost is in bytes: what is moved, and 12 KiB for having to move it at all. Both a disk (70 k
//! requests of 4 KiB, or 1 GB/s) and the store on memory (1 µs, or 14 GB/s) come out near that.

use crate::window::Window;
use plinth_ids::Moment;
use std::time::Duration;

const REQUEST_COST: u64 = 12 << 10;

/// What a round gives each of several heavy volumes: 16 requests of 4 KiB.
const QUANTUM: i64 = 256 << 10;

/// The window: one small request at least; 256 of them at most, which no device's queue is made
/// faster by exceeding.
const WINDOW_MIN: u64 = 16 << 10;
const WINDOW_MAX: u64 = 4 << 20;

/// How long a volume counts as there after its last request.
const PRESENCE: Duration = Duration::from_millis(200);

/// How often it is judged again who is light.
const JUDGE_EVERY: Duration = Duration::from_millis(1);

/// A light volume asks for at most this part of what the heaviest asks for, and for no more than 32
/// requests of 4 KiB.
const LIGHT_SHARE: u64 = 4;
const LIGHT_MAX: u64 = 512 << 10;

/// What a piece of `bytes` costs; zero for what moves no data.
pub const fn cost_of(bytes: u64) -> u64 {
    REQUEST_COST + bytes
}

/// A volume's place in the books.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Account(usize);

#[derive(Clone, Debug, Default)]
struct Book {
    is_open: bool,
    /// Cost and number of what is under way.
    cost: u64,
    depth: u32,
    /// The most cost at once, wanted or under way, since the judgment and before the last one.
    peak: u64,
    peak_before: u64,
    /// What it may start before others had theirs. Negative after something large.
    deficit: i64,
    seen_at: Option<Moment>,
    is_light: bool,
}

impl Book {
    fn is_present(&self, now: Moment) -> bool {
        self.is_open
            && (self.depth > 0
                || self.seen_at.is_some_and(|seen| now.saturating_sub(seen) < PRESENCE))
    }

    fn peak(&self) -> u64 {
        self.peak.max(self.peak_before)
    }
}

/// What a volume may start in this round.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    budget: i64,
    spent: u64,
    pieces: u32,
}

impl Turn {
    const fn empty() -> Self {
        Self { budget: 0, spent: 0, pieces: 0 }
    }

    const fn unbounded() -> Self {
        Self { budget: i64::MAX, spent: 0, pieces: 0 }
    }

    /// Whether a piece of that cost may start. The first of a turn may be larger than what is left:
    /// the rest is owed.
    pub const fn may_start(&self, cost: u64) -> bool {
        self.budget > 0 && (self.pieces == 0 || self.budget.cast_unsigned() >= cost)
    }

    pub const fn start(&mut self, cost: u64) {
        self.budget = self.budget.saturating_sub_unsigned(cost);
        self.spent += cost;
        self.pieces += 1;
    }
}

#[derive(Clone, Debug)]
pub struct Fair {
    books: Vec<Book>,
    window: Window,
    /// Cost and number of what is under way of volumes that are not light.
    heavy_cost: u64,
    heavy_depth: u64,
    now: Moment,
    judged_at: Option<Moment>,
    mode: Mode,
    /// Somebody was held in this round by nothing that a completion would announce the end of.
    is_owed: bool,
    /// A light volume started something in this round, and in the one before.
    has_light: bool,
    had_light: bool,
}

/// What the volumes that are there make of each other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Mode {
    Alone,
    Alike { heavy: u64 },
    Mixed { heavy: u64 },
}

impl Default for Fair {
    fn default() -> Self {
        Self::new()
    }
}

impl Fair {
    pub fn new() -> Self {
        Self {
            books: Vec::new(),
            window: Window::new(WINDOW_MIN, WINDOW_MAX),
            heavy_cost: 0,
            heavy_depth: 0,
            now: Moment::ZERO,
            judged_at: None,
            mode: Mode::Alone,
            is_owed: false,
            has_light: false,
            had_light: false,
        }
    }

    /// Opens an account for a volume.
    pub fn join(&mut self) -> Account {
        let book = Book { is_open: true, ..Book::default() };
        match self.books.iter().position(|book| !book.is_open && book.depth == 0) {
            Some(place) => {
                self.books[place] = book;
                Account(place)
            }
            None => {
                self.books.push(book);
                Account(self.books.len() - 1)
            }
        }
    }

    pub fn leave(&mut self, account: Account) {
        self.books[account.0].is_open = false;
    }

    /// Once before the turns of a round. At most one pass over the accounts each millisecond.
    pub fn begin_round(&mut self, now: Moment) {
        self.now = now;
        self.is_owed = false;
        // Every other round is for all, so that light volumes do not lock the others out.
        self.had_light = std::mem::take(&mut self.has_light) && !self.had_light;
        if self.judged_at.is_none_or(|judged| now.saturating_sub(judged) >= JUDGE_EVERY) {
            self.judged_at = Some(now);
            self.judge(now);
        }
        if matches!(self.mode, Mode::Mixed { .. }) {
            self.window.conclude(now);
        }
    }

    fn judge(&mut self, now: Moment) {
        let present = self.books.iter().filter(|book| book.is_present(now));
        let (count, heaviest) =
            present.fold((0_u64, 0_u64), |(count, peak), book| (count + 1, book.peak().max(peak)));
        let (mut heavy, mut heavy_cost, mut heavy_depth) = (0, 0, 0);
        for book in &mut self.books {
            let peak = book.peak();
            let is_light = peak <= LIGHT_MAX && peak * LIGHT_SHARE <= heaviest;
            if book.is_present(now) && !is_light {
                heavy += 1;
            }
            if !is_light {
                heavy_cost += book.cost;
                heavy_depth += u64::from(book.depth);
            }
            book.is_light = is_light;
            book.peak_before = std::mem::replace(&mut book.peak, book.cost);
        }
        (self.heavy_cost, self.heavy_depth) = (heavy_cost, heavy_depth);
        let was_mixed = matches!(self.mode, Mode::Mixed { .. });
        self.mode = match (count, heavy) {
            (0 | 1, _) => Mode::Alone,
            _ if heavy == count => Mode::Alike { heavy },
            _ => Mode::Mixed { heavy },
        };
        if matches!(self.mode, Mode::Mixed { .. }) && !was_mixed {
            self.window.start(now);
        }
    }

    /// Opens a volume's turn; [`Fair::close_turn`] ends it.
    pub fn open_turn(&mut self, account: Account) -> Turn {
        let book = &mut self.books[account.0];
        let (heavy, window) = match self.mode {
            Mode::Alone => return Turn::unbounded(),
            Mode::Mixed { .. } if book.is_light => return Turn::unbounded(),
            Mode::Alike { heavy } => (heavy, WINDOW_MAX),
            // On a disk that answers at once, a request of a light volume costs a round; the round
            // is kept short for it.
            Mode::Mixed { .. } if self.has_light && !self.had_light => return Turn::empty(),
            Mode::Mixed { heavy } => (heavy, self.window.allowed()),
        };
        let share = (window / heavy.max(1)).max(WINDOW_MIN);
        let quantum = i64::try_from(share).unwrap_or(QUANTUM).min(QUANTUM);
        book.deficit = (book.deficit + quantum).min(quantum);
        let room = share.saturating_sub(book.cost).max(u64::from(book.depth == 0));
        let budget = book.deficit.min(i64::try_from(room).unwrap_or(i64::MAX));
        Turn { budget, spent: 0, pieces: 0 }
    }

    /// Writes a turn into the books. `wants` is what the volume would have started beyond it.
    pub fn close_turn(&mut self, account: Account, turn: Turn, wants: u64) {
        let book = &mut self.books[account.0];
        if turn.pieces == 0 && wants == 0 {
            book.deficit = book.deficit.min(0);
            return;
        }
        book.seen_at = Some(self.now);
        book.cost += turn.spent;
        book.depth += turn.pieces;
        book.peak = book.peak.max(book.cost.saturating_add(wants));
        if !book.is_light {
            self.heavy_cost += turn.spent;
            self.heavy_depth += u64::from(turn.pieces);
        }
        let is_mixed = matches!(self.mode, Mode::Mixed { .. });
        if book.is_light {
            self.has_light |= is_mixed && turn.pieces > 0;
        } else if self.mode != Mode::Alone {
            book.deficit = book.deficit.saturating_sub_unsigned(turn.spent);
            let waits_its_turn = is_mixed && self.has_light;
            self.is_owed |= wants > 0 && (book.deficit <= 0 || waits_its_turn);
        }
    }

    /// A piece ended, `ticks` after its guest may have asked for it at the earliest.
    ///
    /// On a disk that answers within the round, most of what a light volume waits for is the
    /// round before the one that sees its request: counting from there sees that.
    pub fn end(&mut self, account: Account, cost: u64, ticks: u64) {
        let Some(book) = self.books.get_mut(account.0) else { return };
        book.cost = book.cost.saturating_sub(cost);
        book.depth = book.depth.saturating_sub(1);
        if book.is_light {
            if let Mode::Mixed { heavy } = self.mode {
                let is_held = self.heavy_cost <= self.window.allowed() || self.heavy_depth <= heavy;
                self.window.note(ticks, is_held);
            }
        } else {
            self.heavy_cost = self.heavy_cost.saturating_sub(cost);
            self.heavy_depth = self.heavy_depth.saturating_sub(1);
        }
    }

    /// Whether somebody waits for nothing but the next round: then there must be one.
    pub const fn is_owed(&self) -> bool {
        self.is_owed
    }

    /// Whether light volumes are there that must have their turns before the heavy ones.
    pub const fn has_order(&self) -> bool {
        matches!(self.mode, Mode::Mixed { .. })
    }

    pub fn is_light(&self, account: Account) -> bool {
        self.books[account.0].is_light
    }

    /// What heavy volumes may have under way together, if light ones are there too.
    pub fn window(&self) -> Option<u64> {
        matches!(self.mode, Mode::Mixed { .. }).then(|| self.window.allowed())
    }
}
