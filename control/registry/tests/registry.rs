// SPDX-License-Identifier: Apache-2.0
//! One list of claims over both registries, and what a kill leaves of the one on disk.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use plinth_registry::*;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A file of its own, gone when dropped.
struct File(PathBuf);

impl File {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("plinth-registry-{}-{number}.redb", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    fn open(&self) -> DiskRegistry {
        DiskRegistry::open(&self.0).unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn put(key: &str, value: &str) -> Transaction {
    Transaction::default().put(key, value.as_bytes().to_vec())
}

/// What every registry does.
fn keeps_the_laws(registry: &dyn Registry) {
    assert_eq!(registry.list("").unwrap(), Listing::default());
    let mut watch = registry.watch();
    let first = registry.commit(put("vm/a", "1").put("vm/b", b"2".to_vec())).unwrap();
    assert_eq!(first, Revision(1));
    assert!(watch.has_changed().unwrap());
    assert_eq!(*watch.borrow_and_update(), first);
    // Only one of two who read the same revision may write.
    let second = registry.commit(put("vm/a", "3").compare("vm/a", first)).unwrap();
    let late = registry.commit(put("vm/a", "4").delete("vm/b").compare("vm/a", first));
    assert!(matches!(
        late.unwrap_err(),
        CommitError::Conflict { key, expected, found }
            if key == "vm/a" && expected == first && found == second
    ));
    assert_eq!(registry.get("vm/a").unwrap().unwrap().value, b"3");
    assert_eq!(registry.get("vm/b").unwrap().unwrap().revision, first, "nothing of it happened");
    // What is to be new must not be there.
    let exists = registry.commit(put("vm/b", "5").compare("vm/b", Revision(0)));
    assert!(matches!(exists, Err(CommitError::Conflict { .. })));
    registry.commit(put("volume/a", "6").delete("vm/b").compare("vm/c", Revision(0))).unwrap();
    let keys = |prefix: &str| {
        let entries = registry.list(prefix).unwrap().entries;
        entries.into_iter().map(|entry| entry.key).collect::<Vec<_>>()
    };
    assert_eq!(keys("vm/"), ["vm/a"]);
    assert_eq!(keys(""), ["vm/a", "volume/a"]);
    assert_eq!(registry.list("vm/").unwrap().revision, Revision(3));
    assert_eq!(registry.get("vm/b").unwrap(), None);
}

#[test]
fn the_memory_registry_keeps_the_laws() {
    keeps_the_laws(&MemoryRegistry::new());
}

#[test]
fn the_disk_registry_keeps_the_laws_and_its_entries() {
    let file = File::new();
    keeps_the_laws(&file.open());
    let registry = file.open();
    assert_eq!(registry.get("vm/a").unwrap().unwrap().value, b"3");
    assert_eq!(registry.commit(put("vm/z", "7")).unwrap(), Revision(4));
}

#[test]
fn a_failed_commit_changes_nothing() {
    let registry = MemoryRegistry::new();
    registry.commit(put("a", "1")).unwrap();
    registry.fail_after(0);
    assert!(matches!(registry.commit(put("a", "2")), Err(CommitError::Storage(_))));
    assert_eq!(registry.get("a").unwrap().unwrap().value, b"1");
}

#[test]
fn a_second_opener_and_a_strange_file_are_refused_by_name() {
    let file = File::new();
    let held = file.open();
    let err = DiskRegistry::open(&file.0).unwrap_err();
    assert!(matches!(err, OpenError::InUse { .. }), "{err:?}");
    drop(held);
    let strange = File::new();
    std::fs::write(&strange.0, vec![0x5a; 8192]).unwrap();
    let err = DiskRegistry::open(&strange.0).unwrap_err();
    assert!(matches!(err, OpenError::Open { .. }), "{err:?}");
    assert!(err.to_string().contains(strange.0.to_str().unwrap()));
}

#[test]
fn a_newer_schema_is_refused() {
    let file = File::new();
    drop(file.open());
    {
        let table: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("meta");
        let database = redb::Database::create(&file.0).unwrap();
        let write = database.begin_write().unwrap();
        write.open_table(table).unwrap().insert("schema", 2).unwrap();
        write.commit().unwrap();
    }
    let err = DiskRegistry::open(&file.0).unwrap_err();
    assert!(matches!(err, OpenError::Schema { found: 2, .. }), "{err:?}");
}

const CHILD: &str = "PLINTH_REGISTRY_CHILD";

/// Not a test of its own: what the killed process does. Each commit moves one unit from one
/// account to the other and is told on stdout only after it returned.
#[test]
fn a_child_that_commits_until_it_is_killed() {
    let Ok(path) = std::env::var(CHILD) else { return };
    let registry = DiskRegistry::open(path.as_ref()).unwrap();
    let mut moved = registry.get("to").unwrap().map_or(0, |entry| number(&entry));
    loop {
        moved += 1;
        let from = (1_000_000 - moved).to_string();
        registry.commit(put("from", &from).put("to", moved.to_string().into_bytes())).unwrap();
        println!("\nmoved {moved}");
    }
}

fn number(entry: &Entry) -> u64 {
    String::from_utf8(entry.value.clone()).unwrap().parse().unwrap()
}

#[test]
fn a_killed_process_leaves_every_commit_it_told_and_none_by_half() {
    let file = File::new();
    for round in 0..6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_child_that_commits_until_it_is_killed", "--nocapture"])
            .env(CHILD, &file.0)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut told = 0;
        let reports = lines.map_while(Result::ok).filter_map(|line| {
            line.strip_prefix("moved ").map(|moved| moved.parse::<u64>().unwrap())
        });
        // Killed in the middle of whatever it does after so many commits.
        for moved in reports.take(3 + 7 * round) {
            told = moved;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(told > 0, "the child committed nothing");
        let registry = file.open();
        let moved = number(&registry.get("to").unwrap().unwrap());
        let left = number(&registry.get("from").unwrap().unwrap());
        assert!(moved >= told, "{told} were told, {moved} are kept");
        assert_eq!(moved + left, 1_000_000, "half a commit was kept");
    }
}
