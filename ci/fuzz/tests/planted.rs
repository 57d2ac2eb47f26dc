// SPDX-License-Identifier: Apache-2.0
//! The runner finds what it is meant to find: bugs that were planted.

use plinth_fuzz::runner::{Target, attempt, fuzz, hex, note_panics, save};
use std::time::Duration;

/// A record {length: u16 LE, kind: u8, body} whose reader believes the length.
fn trusting(data: &[u8]) {
    let Some((length, rest)) = data.split_first_chunk::<2>() else { return };
    let length = usize::from(u16::from_le_bytes(*length));
    if rest.len() > 4 {
        let _body = &rest[1..1 + length];
    }
}

/// The same reader with the check.
fn careful(data: &[u8]) {
    let Some((length, rest)) = data.split_first_chunk::<2>() else { return };
    let length = usize::from(u16::from_le_bytes(*length));
    let _body = rest.get(1..1 + length);
}

/// An addition that overflows only for a number near its end.
fn overflowing(data: &[u8]) {
    if let Some(bytes) = data.first_chunk::<8>() {
        let end = u64::from_le_bytes(*bytes);
        assert!(end + 4096 > 0);
    }
}

fn seeds() -> Vec<Vec<u8>> {
    vec![b"\x08\x00\x01abcdefgh".to_vec(), 4096_u64.to_le_bytes().to_vec()]
}

const fn target(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, run, seeds }
}

/// The hook is the process's, so these stories share one test.
#[test]
fn planted_bugs_are_found_shortened_saved_and_repeated() {
    note_panics();
    let limit = Duration::from_secs(20);
    let bug = target("trusting", trusting);
    let finding = fuzz(&bug, 1, Vec::new(), limit).unwrap_err();
    assert!(finding.panic.contains("out of range"), "{}", finding.panic);
    assert!(finding.panic.contains("planted.rs"), "{}", finding.panic);
    // Two bytes of length and five more: nothing shorter reaches the bug.
    assert_eq!(finding.input.len(), 7, "{}", hex(&finding.input));
    assert_eq!(fuzz(&bug, 1, Vec::new(), limit).unwrap_err(), finding, "the seed repeats it");

    let folder = std::env::temp_dir().join(format!("plinth-fuzz-{}", std::process::id()));
    let path = save(&folder, bug.name, &finding).unwrap();
    let saved = std::fs::read(&path).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(attempt(&bug, &saved).is_some());

    let finding = fuzz(&target("overflowing", overflowing), 1, Vec::new(), limit).unwrap_err();
    assert!(finding.panic.contains("overflow"), "{}", finding.panic);

    let count = fuzz(&target("careful", careful), 1, Vec::new(), Duration::from_secs(1)).unwrap();
    assert!(count > 10_000, "{count} inputs in a second");
}
