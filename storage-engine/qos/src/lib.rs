// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! Who may start a request now: a volume's own limits, and fairness between volumes.
//!
//! ```text
//!   guest's ring ─▶ Limiter (what was sold) ─▶ Fair (what others leave) ─▶ store, device queue
//! ```
//!
//! [`Limiter`] holds a volume to its rates, exactly: what is spent is subtracted in full, in
//! integers, and nothing is rounded away. [`Fair`] bounds what one volume has in the store and in
//! the device's queue as soon as another volume wants something too: a queue that is full of a
//! neighbor's requests is the one thing that no order in front of it can mend.
//!
//! Both are asked by one worker, keep nothing for each request, and take the time as an argument.

mod fair;
mod limiter;
mod window;

pub use fair::{Account, Fair, Turn, cost_of};
pub use limiter::{Direction, Limiter, Limits, RatePair};
pub use plinth_bucket::Rate;
