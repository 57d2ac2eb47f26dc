// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "the helper functions of a test are test code too")]
//! What was kept is found again, whole, or its fault is named.

use plinth_manage::{KeepError, Kept, LoadError};
use std::path::PathBuf;

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("pk-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir(&path).unwrap();
    path
}

#[test]
fn the_newest_value_is_found_and_nothing_beside_it() {
    let folder = folder("newest");
    let kept = Kept::<Vec<u32>>::at(folder.join("value.json"));
    assert_eq!(kept.load().unwrap(), None);
    kept.save(&vec![1]).unwrap();
    kept.save(&vec![2, 3]).unwrap();
    assert_eq!(kept.load().unwrap(), Some(vec![2, 3]));
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_torn_temporary_file_changes_nothing() {
    let folder = folder("torn");
    let kept = Kept::<Vec<u32>>::at(folder.join("value.json"));
    kept.save(&vec![1]).unwrap();
    std::fs::write(folder.join("value.json.new"), "[2,").unwrap();
    assert_eq!(kept.load().unwrap(), Some(vec![1]));
    kept.save(&vec![2]).unwrap();
    assert_eq!(kept.load().unwrap(), Some(vec![2]));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_text_that_is_not_ours_is_named_and_left() {
    let folder = folder("foreign");
    let kept = Kept::<Vec<u32>>::at(folder.join("value.json"));
    std::fs::write(kept.path(), "[1,").unwrap();
    let error = kept.load().unwrap_err();
    assert!(matches!(error, LoadError::Decode { .. }));
    assert!(error.to_string().contains("value.json"), "{error}");
    assert_eq!(std::fs::read_to_string(kept.path()).unwrap(), "[1,");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_text_without_end_is_not_read_whole() {
    let folder = folder("long");
    let kept = Kept::<Vec<u32>>::at(folder.join("value.json"));
    std::fs::File::create(kept.path()).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(kept.load(), Err(LoadError::TooLong { .. })));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_folder_that_is_missing_is_an_error() {
    let folder = folder("missing");
    let kept = Kept::<u32>::at(folder.join("none/value.json"));
    assert!(matches!(kept.save(&1), Err(KeepError::Write { .. })));
    assert_eq!(kept.load().unwrap(), None);
    std::fs::remove_dir_all(folder).unwrap();
}
