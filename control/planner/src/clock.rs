// SPDX-License-Identifier: Apache-2.0
//! Times of day as names.

use plinth_ids::Name;

/// The name of a scheduled snapshot, as in `auto-2026-11-22t21-00z`: UTC, to the minute.
pub(crate) fn scheduled_name(at: u64) -> Name {
    let (year, month, day) = date(at / 86_400);
    let (hour, minute) = (at / 3_600 % 24, at / 60 % 60);
    format!("auto-{year:04}-{month:02}-{day:02}t{hour:02}-{minute:02}z")
        .parse()
        .expect("letters, digits and dashes that start with a letter are a name")
}

/// Year, month and day of a day since 1970-01-01, in the Gregorian calendar. Years are counted
/// from March, so that the leap day is the last of its year (Hinnant, "chrono-compatible
/// low-level date algorithms").
const fn date(days: u64) -> (u64, u64, u64) {
    let since = days + 719_468;
    let (era, of_era) = (since / 146_097, since % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_dates() {
        for (days, expected) in [
            (0, (1970, 1, 1)),
            (58, (1970, 2, 28)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (20_779, (2026, 11, 22)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(date(days), expected, "day {days}");
        }
    }

    #[test]
    fn a_scheduled_snapshot_is_named_after_its_minute() {
        assert_eq!(scheduled_name(1_795_381_259).as_str(), "auto-2026-11-22t21-00z");
    }
}
