// SPDX-License-Identifier: Apache-2.0
//! Moves of what takes more than one run to copy: many keys, a long log.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod support;

use plinth_ids::DiskId;
use plinth_store::{
    IoBuffer, KEY_MAX, ObjectKey, ObjectStore, Operation, PgId, StoreAnswer, StoreRequest,
    VALUE_MAX,
};
use std::time::Duration;
use support::{Life, POOL, key};

const PG: PgId = PgId(0);

fn name(number: u32) -> Vec<u8> {
    format!("name {number:05}").into_bytes()
}

fn value(number: u32) -> Vec<u8> {
    number.to_le_bytes().repeat(1 + number as usize * 37 % 700)
}

fn apply(life: &mut Life, transaction: Vec<Operation>) -> u64 {
    match life.run(StoreRequest::Apply { transaction }).unwrap().result {
        Ok(StoreAnswer::Changed { version, .. }) => version,
        other => panic!("a change was answered by {other:?}"),
    }
}

fn set(life: &mut Life, key: ObjectKey, numbers: impl Iterator<Item = u32>, add: u32) {
    let pairs: Vec<_> = numbers.map(|number| (name(number), value(number + add))).collect();
    for pairs in pairs.chunks(8) {
        apply(life, vec![Operation::SetKeys { key, pairs: pairs.to_vec() }]);
    }
}

fn keys(life: &mut Life, key: ObjectKey) -> Vec<(Vec<u8>, Vec<u8>)> {
    let request = StoreRequest::ListKeys { key, after: None, limit: 1000 };
    match life.run(request).unwrap().result {
        Ok(StoreAnswer::Keys { pairs, more: false }) => pairs,
        other => panic!("keys were answered by {other:?}"),
    }
}

fn log(life: &mut Life) -> StoreAnswer {
    let request = StoreRequest::ReadLog { pool: POOL, pg: PG, after: 0, limit: 1000 };
    life.run(request).unwrap().result.unwrap()
}

fn status(life: &mut Life, key: ObjectKey) -> StoreAnswer {
    life.run(StoreRequest::Status { key }).unwrap().result.unwrap()
}

/// Moves all that there is to a disk that was not there before.
fn drain(life: &mut Life, from: u32, to: u32) {
    life.join(to).unwrap();
    life.span.set_draining(DiskId(from), true).unwrap();
    life.come_to_rest().unwrap();
    let disks = life.span.disks();
    assert!(disks.iter().all(|disk| disk.disk != DiskId(from) || disk.groups == 0), "{disks:?}");
}

#[test]
fn many_keys_and_a_long_log_arrive_whole_and_are_shared_again() {
    let mut life = Life::quiet(1);
    let (head, snapshot) = (key(0, 0, 0), key(0, 0, 1));
    // Who shares no data is not looked at for a relative.
    let (length, buffer) = (65_536, IoBuffer::zeroed(65_536));
    apply(&mut life, vec![Operation::WriteFull { key: head, length, buffer }]);
    set(&mut life, head, 0..400, 0);
    apply(&mut life, vec![Operation::Clone { source: head, target: snapshot }]);
    // Something new at the beginning, in the middle, and behind the end; a gap; the snapshot stays.
    set(&mut life, head, [0, 200, 500, 501].into_iter(), 1);
    let cut = Operation::RemoveKeyRange { key: head, from: name(30), to: Some(name(60)) };
    apply(&mut life, vec![cut]);
    for first in (1..=200_u64).step_by(20) {
        let append = |version: u64| {
            let entry = value(u32::try_from(version).unwrap());
            Operation::LogAppend { pool: POOL, pg: PG, version: version * 3, entry }
        };
        apply(&mut life, (first..first + 20).map(append).collect());
    }
    apply(&mut life, vec![Operation::LogTrim { pool: POOL, pg: PG, up_to: 100 }]);
    let look = |life: &mut Life| {
        let (head_keys, snapshot_keys) = (keys(life, head), keys(life, snapshot));
        assert_eq!((head_keys.len(), snapshot_keys.len()), (372, 400));
        (head_keys, snapshot_keys, log(life), status(life, head), status(life, snapshot))
    };
    let (before, used) = (look(&mut life), life.span.capacity().used);
    drain(&mut life, 1, 2);
    assert_eq!(look(&mut life), before);
    let now = life.span.capacity().used;
    assert!(now < used + used / 4, "{now} bytes are used, {used} were");
    // The same way back, to a disk that has had others.
    drain(&mut life, 2, 3);
    assert_eq!(look(&mut life), before);
}

#[test]
fn a_log_of_which_nothing_is_left_remembers_its_last_version_on_its_new_disk() {
    let mut life = Life::quiet(1);
    let append = |version| Operation::LogAppend { pool: POOL, pg: PG, version, entry: vec![1] };
    apply(&mut life, vec![append(7), append(9)]);
    apply(&mut life, vec![Operation::LogTrim { pool: POOL, pg: PG, up_to: 9 }]);
    drain(&mut life, 1, 2);
    let nothing = StoreAnswer::Log { entries: Vec::new(), last: 9, more: false };
    assert_eq!(log(&mut life), nothing);
    // And one that was removed is forgotten: its versions begin anew.
    apply(&mut life, vec![Operation::LogRemove { pool: POOL, pg: PG }]);
    drain(&mut life, 2, 3);
    assert_eq!(log(&mut life), StoreAnswer::Log { entries: Vec::new(), last: 0, more: false });
    apply(&mut life, vec![append(1)]);
}

#[test]
fn the_longest_keys_values_and_entries_arrive_and_longer_ones_are_refused() {
    let mut life = Life::quiet(1);
    let head = key(0, 0, 0);
    let name = |number: u8| vec![number; KEY_MAX];
    for number in 1..=40 {
        let pairs = vec![(name(number), vec![number; VALUE_MAX])];
        let (version, entry) = (u64::from(number), vec![number; VALUE_MAX]);
        let append = Operation::LogAppend { pool: POOL, pg: PG, version, entry };
        apply(&mut life, vec![Operation::SetKeys { key: head, pairs }, append]);
    }
    let too_long = [
        Operation::SetKeys { key: head, pairs: vec![(name(99), vec![1; VALUE_MAX + 1])] },
        Operation::LogAppend { pool: POOL, pg: PG, version: 99, entry: vec![1; VALUE_MAX + 1] },
    ];
    for operation in too_long {
        let transaction = vec![operation];
        life.run(StoreRequest::Apply { transaction }).unwrap().result.unwrap_err();
    }
    drain(&mut life, 1, 2);
    // The store cuts a list by its bytes, too.
    for number in 1..=40_u8 {
        let after = (number > 1).then(|| name(number - 1));
        let request = StoreRequest::ListKeys { key: head, after, limit: 1 };
        let Ok(StoreAnswer::Keys { pairs, more }) = life.run(request).unwrap().result else {
            panic!("keys were refused");
        };
        assert_eq!(pairs, [(name(number), vec![number; VALUE_MAX])]);
        assert_eq!(more, number < 40);
        let after = u64::from(number) - 1;
        let request = StoreRequest::ReadLog { pool: POOL, pg: PG, after, limit: 1 };
        let Ok(StoreAnswer::Log { entries, last: 40, .. }) = life.run(request).unwrap().result
        else {
            panic!("the log was refused, or ends early");
        };
        assert_eq!(entries, [(u64::from(number), vec![number; VALUE_MAX])]);
    }
}

/// Moves what is on the only disk to another one, and says how long that took.
fn timed(life: &mut Life, rate: u64) -> Duration {
    // Before there is a second disk: the rate must not get lost.
    life.span.set_rate(rate);
    life.join(2).unwrap();
    let begin = life.now;
    life.span.set_draining(DiskId(1), true).unwrap();
    life.come_to_rest().unwrap();
    life.now - begin
}

/// A pool of one disk with what `fill` puts there, moved at two rates: it takes as long as the rate
/// wants, and at the higher one less than that.
fn check_rate(what: &str, fill: impl Fn(&mut Life) -> usize) {
    // At most a quarter of a megabyte goes at once.
    let (rate, burst) = (64_u64 << 10, 256_u64 << 10);
    // What groups without anything take, whose maps are written one after the other.
    let nothing = timed(&mut Life::quiet(1), rate);
    let [slow, fast] = [rate, 1 << 40].map(|rate| {
        let mut life = Life::quiet(1);
        let bytes = fill(&mut life) as u64;
        (bytes, timed(&mut life, rate))
    });
    let seconds = |bytes: u64| Duration::from_millis(bytes * 1000 / rate);
    let (least, most) = (seconds(slow.0 - burst), seconds(slow.0 * 9 / 8));
    let is_right = slow.1 > nothing + least && slow.1 < fast.1 + most;
    assert!(
        is_right,
        "{what}: {slow:?} at {rate} bytes/s, {fast:?} without, {nothing:?} of nothing"
    );
    assert!(fast.1 < nothing + least, "{what}: {fast:?} is no less than {least:?} and {nothing:?}");
}

#[test]
fn keys_and_logs_are_copied_at_the_rate_of_all_the_rest() {
    check_rate("keys", |life| {
        set(life, key(0, 0, 0), 0..700, 0);
        (0..700).map(|number| name(number).len() + value(number).len()).sum()
    });
    let entry = |version: u64| value(u32::try_from(version).unwrap());
    check_rate("a log", |life| {
        for first in (1..=600_u64).step_by(20) {
            let append = |version| Operation::LogAppend {
                pool: POOL,
                pg: PG,
                version,
                entry: entry(version),
            };
            apply(life, (first..first + 20).map(append).collect());
        }
        (1..=600).map(|version| entry(version).len()).sum()
    });
    // An object without keys owes nothing besides its data.
    check_rate("data", |life| {
        for object in 0..100 {
            let (length, buffer) = (4096, IoBuffer::zeroed(4096));
            let key = key(0, object, 0);
            apply(life, vec![Operation::WriteFull { key, length, buffer }]);
        }
        100 * 4096
    });
}

#[test]
fn a_move_that_is_paused_while_it_waits_for_its_rate_is_settled_and_goes_on_later() {
    let mut life = Life::quiet(1);
    set(&mut life, key(0, 0, 0), 0..700, 0);
    let before = keys(&mut life, key(0, 0, 0));
    life.join(2).unwrap();
    // A run takes 16 KiB of it: a quarter of a minute each.
    life.span.set_rate(1 << 10);
    life.span.set_draining(DiskId(1), true).unwrap();
    life.rest(60_000).unwrap();
    assert!(life.span.moving().is_some(), "it waits in the middle of a move");
    life.span.pause(true);
    life.rest(1000).unwrap();
    assert!(life.span.is_settled(), "{:?}", life.span.moving());
    life.span.pause(false);
    life.span.set_rate(1 << 40);
    life.come_to_rest().unwrap();
    assert_eq!(keys(&mut life, key(0, 0, 0)), before);
}
