// SPDX-License-Identifier: Apache-2.0
//! Waiting for something to become true, with an end.

use anyhow::{Result, bail};
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks until `look` gives something, for at most `limit`.
///
/// # Errors
/// When the time is up; the error says what was waited for and what the last look said.
pub fn within<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        match look() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= end => {
                return Err(error.context(format!("{what}: not within {limit:?}")));
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

/// Looks until `is_true`, for at most `limit`.
///
/// # Errors
/// When the time is up.
pub fn until(limit: Duration, what: &str, mut is_true: impl FnMut() -> bool) -> Result<()> {
    within(limit, what, || {
        if is_true() {
            return Ok(());
        }
        bail!("it is not so")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_in_time_either_way() {
        let mut looks = 0;
        until(Duration::from_secs(5), "three looks", || {
            looks += 1;
            looks == 3
        })
        .unwrap();
        let begin = Instant::now();
        let error = until(Duration::from_millis(60), "never", || false).unwrap_err();
        assert!(begin.elapsed() < Duration::from_secs(5));
        assert!(error.to_string().starts_with("never: not within"), "{error}");
    }
}
