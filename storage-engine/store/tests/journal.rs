// SPDX-License-Identifier: Apache-2.0
//! A journal that is damaged in its middle is refused by name; one that a power cut has torn at its
//! end is replayed.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod support;

use plinth_disks::memory::{Fault, FaultRule, MemoryDisk};
use plinth_store::{
    Access, DiskError, Durability, MountError, Omit, ReadOnlyReason, Store, StoreAnswer,
    StoreOptions, StoreRefusal, StoreRequest, StoreState,
};
use support::{FORMAT, formatted, fresh, key, read, write};

const LENGTH: u64 = 4 << 20;
const PAGE: u64 = 4096;
const JOURNAL: u64 = 65536;
const WRITES: u8 = 12;

fn options() -> StoreOptions {
    StoreOptions { cache_pages: 64, overlay_blocks: 64, ..StoreOptions::default() }
}

fn page(disk: &MemoryDisk, at: u64) -> [u8; 4096] {
    let mut bytes = [0; 4096];
    disk.peek(at, &mut bytes);
    bytes
}

fn number(bytes: &[u8; 4096], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Number and place of every entry in the journal, in order.
fn entries(disk: &MemoryDisk) -> Vec<(u64, u64)> {
    let end = JOURNAL + FORMAT.limits.unwrap().journal_length;
    let pages = (JOURNAL..end).step_by(4096).map(|at| (at, page(disk, at)));
    let found = pages.filter(|(_, bytes)| bytes.starts_with(b"PLNentry"));
    let mut found: Vec<(u64, u64)> = found.map(|(at, bytes)| (number(&bytes, 48), at)).collect();
    found.sort_unstable();
    found
}

/// A store with writes that were acknowledged, one after the other, and are in the journal only.
fn cut_off(atomic: u32, options: StoreOptions) -> MemoryDisk {
    let mut disk = formatted(MemoryDisk::new(LENGTH));
    disk.set_atomic_write_size(atomic);
    let mut store = Store::mount(disk, options).unwrap();
    for value in 1..=WRITES {
        write(&mut store, 1, u32::from(value) * 4096, &[value; 4096]).unwrap();
    }
    store.abandon()
}

/// What a bad disk may do to a page.
const HARMS: [&str; 4] = ["a wrong bit", "a lost write", "a misdirected write", "a read error"];

fn harm(disk: &mut MemoryDisk, how: &str, at: u64) {
    match how {
        "a wrong bit" => {
            let mut bytes = page(disk, at);
            bytes[200] ^= 4;
            disk.overwrite(at, &bytes);
        }
        "a lost write" => disk.overwrite(at, &[0; 4096]),
        "a misdirected write" => {
            let bytes = page(disk, 0);
            disk.overwrite(at, &bytes);
        }
        _ => disk.add_rule(FaultRule {
            is_write: false,
            bytes: at..at + PAGE,
            skip: 0,
            times: u32::MAX,
            fault: Fault::Fail(DiskError::Device { errno: 5 }),
        }),
    }
}

fn values(store: &mut Store<MemoryDisk>) -> Vec<u8> {
    let value = |value: u8| read(store, 1, u32::from(value) * 4096, 4096).unwrap()[0];
    (1..=WRITES).map(value).collect()
}

#[test]
fn damage_before_an_entry_that_vouches_is_refused_and_named() {
    for durability in [Durability::Flush, Durability::Device] {
        let options = StoreOptions { durability, ..options() };
        let all = entries(&cut_off(512, options));
        assert!(all.len() >= usize::from(WRITES), "{all:?}");
        // Of the last two nobody says that they were durable but the last.
        let last = all[all.len() - 2].0;
        for (harmed, how) in all[..all.len() - 1].iter().flat_map(|one| HARMS.map(|how| (one, how)))
        {
            let mut disk = cut_off(512, options);
            harm(&mut disk, how, harmed.1);
            let before = disk.writes_completed();
            let error = Store::mount(&mut disk, options).map(drop).unwrap_err();
            let wanted = MountError::Journal { seq: harmed.0, last, offset: harmed.1 };
            assert_eq!(error, wanted, "{how}");
            assert_eq!(disk.writes_completed(), before, "the disk is as it was");
            let words = error.to_string();
            assert!(words.contains("damaged") && words.contains("restore"), "{words}");
            // Whoever mounts it again is told the same.
            assert_eq!(Store::mount(disk, options).map(drop).unwrap_err(), wanted, "{how}");
        }
    }
}

#[test]
fn the_check_left_out_loses_changes_without_a_word() {
    let options = StoreOptions { omit: Omit::JournalVouched, ..options() };
    let all = entries(&cut_off(512, options));
    let mut disk = cut_off(512, options);
    harm(&mut disk, "a wrong bit", all[3].1);
    let mut store = Store::mount(disk, options).unwrap();
    assert!(values(&mut store).contains(&0), "that is what the check is for");
}

#[test]
fn the_last_entry_is_the_end_where_a_cut_may_have_torn_it() {
    let all = entries(&cut_off(512, options()));
    for how in HARMS {
        let mut disk = cut_off(512, options());
        harm(&mut disk, how, all.last().unwrap().1);
        let mut store = Store::mount(disk, options()).unwrap();
        let found = values(&mut store);
        let mut wanted: Vec<u8> = (1..=WRITES).collect();
        *wanted.last_mut().unwrap() = 0;
        assert_eq!(found, wanted, "{how}");
    }
}

/// Lets a quiet time pass: the store is polled at its deadlines, and at no other time.
fn rest(store: &mut Store<MemoryDisk>) -> u64 {
    let before = store.counters().journal_entries;
    for _ in 0..100 {
        let Some(due) = store.deadline() else {
            return store.counters().journal_entries - before;
        };
        let mut done = Vec::new();
        while store.poll(due, &mut done) || !store.is_idle() {}
    }
    panic!("the store never comes to rest");
}

/// A store as of [`cut_off`] that was left alone for a while before the cut.
fn rested(options: StoreOptions) -> MemoryDisk {
    let disk = cut_off(512, StoreOptions { omit: Omit::Nothing, ..options });
    let mut store = Store::mount(disk, options).unwrap();
    write(&mut store, 1, 4096, &[1; 4096]).unwrap();
    let written = rest(&mut store);
    assert!(written <= 1, "{written} entries in a quiet time");
    store.abandon()
}

#[test]
fn a_quiet_time_vouches_for_the_last_entry_with_one_page() {
    for durability in [Durability::Flush, Durability::Device] {
        let discard = plinth_store::DiscardOptions { rate: 0, ..Default::default() };
        let options = StoreOptions { durability, discard, ..options() };
        let all = entries(&rested(options));
        let (last, harmed) = (all[all.len() - 1].0, all[all.len() - 2]);
        for how in HARMS {
            let mut disk = rested(options);
            harm(&mut disk, how, harmed.1);
            let error = Store::mount(disk, options).map(drop).unwrap_err();
            let wanted = MountError::Journal { seq: harmed.0, last: last - 1, offset: harmed.1 };
            assert_eq!(error, wanted, "{how}");
            // The one that vouches may be lost, and nothing with it.
            let mut disk = rested(options);
            harm(&mut disk, how, all[all.len() - 1].1);
            let mut store = Store::mount(disk, options).unwrap();
            assert_eq!(values(&mut store), (1..=WRITES).collect::<Vec<_>>(), "{how}");
        }
        let omitted = StoreOptions { omit: Omit::VouchWhenQuiet, ..options };
        let disk = rested(omitted);
        assert_eq!(entries(&disk).len(), all.len() - 1, "nothing else is written in the quiet");
    }
}

#[test]
fn a_store_at_rest_writes_nothing_more() {
    let discard = plinth_store::DiscardOptions { rate: 0, ..Default::default() };
    let options = StoreOptions { discard, ..options() };
    let mut store = fresh(LENGTH, options);
    assert_eq!(store.deadline(), None, "nobody was told of anything");
    for round in 1..4_u8 {
        write(&mut store, 1, 0, &[round; 4096]).unwrap();
        let mut done = Vec::new();
        store.poll(std::time::Duration::from_millis(500), &mut done);
        assert!(store.deadline().is_some());
        assert_eq!(rest(&mut store), 1);
        assert_eq!((store.deadline(), rest(&mut store)), (None, 0));
    }
    // What a checkpoint has taken out of the journal needs nobody to vouch for it.
    write(&mut store, 1, 0, &[9; 4096]).unwrap();
    store.request_checkpoint();
    support::settle(&mut store);
    let entries = store.counters().journal_entries;
    rest(&mut store);
    assert!(store.counters().journal_entries <= entries + 1);
    store.check().unwrap();
}

#[test]
fn a_wrong_bit_in_the_last_entry_is_damage_where_no_cut_tears_a_page() {
    let all = entries(&cut_off(4096, options()));
    let &(seq, offset) = all.last().unwrap();
    let mut disk = cut_off(4096, options());
    harm(&mut disk, "a wrong bit", offset);
    let error = Store::mount(disk, options()).map(drop).unwrap_err();
    assert_eq!(error, MountError::Journal { seq, last: seq, offset });
}

#[test]
fn a_page_that_knows_of_an_entry_vouches_for_it() {
    let mut store = fresh(LENGTH, options());
    write(&mut store, 1, 0, &[1; 4096]).unwrap();
    // From here on replay has a page to begin with.
    let mut store = Store::mount(store.unmount(), options()).unwrap();
    write(&mut store, 1, 4096, &[2; 4096]).unwrap();
    write(&mut store, 1, 8192, &[3; 4096]).unwrap();
    let mut disk = store.abandon();
    let last = entries(&disk).last().unwrap().0;
    // A recovery that comes as far as the maps.
    disk.add_rule(FaultRule {
        is_write: true,
        bytes: 0..JOURNAL,
        skip: 2,
        times: u32::MAX,
        fault: Fault::Fail(DiskError::Gone),
    });
    assert!(Store::mount(&mut disk, options()).is_err());
    let mut bytes = vec![0; usize::try_from(LENGTH).unwrap()];
    disk.peek(0, &mut bytes);
    let mut disk = MemoryDisk::new(LENGTH);
    disk.overwrite(0, &bytes);
    // Neither superblock was written since, but for the two that say what was judged.
    for copy in [0, 32768] {
        let mut bytes = page(&disk, copy);
        bytes[168..176].fill(0);
        plinth_store::repair_checksum(&mut bytes);
        disk.overwrite(copy, &bytes);
    }
    let offset = entries(&disk).iter().find(|(seq, _)| *seq == last).unwrap().1;
    harm(&mut disk, "a lost write", offset);
    let before = page(&disk, 32768);
    let wanted = MountError::PageAhead { key: key(1), seq: last, last, offset };
    assert_eq!(Store::mount(&mut disk, options()).map(drop).unwrap_err(), wanted);
    // It does not say that nothing was written, because something was; and it stands by its word.
    assert!(page(&disk, 32768) != before && !wanted.to_string().contains("nothing was written"));
    assert_eq!(Store::mount(disk, options()).map(drop).unwrap_err(), wanted);
}

#[test]
fn a_journal_that_goes_round_is_told_from_one_that_is_damaged() {
    // Old entries lie behind the head, many times over, and vouch for nothing.
    let mut store = fresh(LENGTH, options());
    for round in 0..400_u32 {
        let value = u8::try_from(round % 200 + 1).unwrap();
        write(&mut store, 1, round % 16 * 4096, &[value; 4096]).unwrap();
        if round % 37 == 0 {
            store = Store::mount(store.abandon(), options()).unwrap();
        }
    }
    assert!(store.object(&key(1)).is_some());
    store.check().unwrap();
}

/// As [`cut_off`], with a part of each block overwritten by an entry of its own, which has the bytes
/// and no place of its own for them.
fn overwritten() -> MemoryDisk {
    let mut disk = formatted(MemoryDisk::new(LENGTH));
    disk.set_atomic_write_size(512);
    let mut store = Store::mount(disk, options()).unwrap();
    for value in 1..=WRITES {
        write(&mut store, 1, u32::from(value) * 4096, &[value; 4096]).unwrap();
        write(&mut store, 1, u32::from(value) * 4096 + 512, &[value + 100; 512]).unwrap();
    }
    store.abandon()
}

#[test]
fn a_damaged_store_is_read_for_rescue_up_to_the_damage_and_stays_as_it_is() {
    let all = entries(&overwritten());
    for how in HARMS {
        let mut disk = overwritten();
        harm(&mut disk, how, all[12].1);
        let wanted = Store::mount(&mut disk, options()).map(drop).unwrap_err();
        assert!(wanted.to_string().contains("rescue"), "{wanted}");
        let before: Vec<_> = (0..LENGTH / PAGE).map(|at| page(&disk, at * PAGE)).collect();
        let rescue = StoreOptions { access: Access::Rescue, ..options() };
        let mut store = Store::mount(disk, rescue).unwrap();
        assert_eq!(store.rescued_from(), Some(wanted), "{how}");
        assert_eq!(store.state(), StoreState::ReadOnly(ReadOnlyReason::Rescue));
        let found = values(&mut store);
        let right: Vec<u8> = (1..=WRITES).map(|value| if value <= 6 { value } else { 0 }).collect();
        assert_eq!(found, right, "{how}");
        for value in 1..=6_u8 {
            let block = read(&mut store, 1, u32::from(value) * 4096, 4096).unwrap();
            assert_eq!((block[511], block[512], block[1024]), (value, value + 100, value), "{how}");
        }
        assert_eq!(write(&mut store, 1, 0, &[9; 4096]), Err(StoreRefusal::ReadOnly));
        let flushed = support::run(&mut store, StoreRequest::Flush).result;
        assert_eq!(flushed, Ok(StoreAnswer::Flushed), "nothing is to be flushed");
        assert_eq!(store.deadline(), None);
        let disk = store.unmount();
        let after: Vec<_> = (0..LENGTH / PAGE).map(|at| page(&disk, at * PAGE)).collect();
        assert!(before == after, "{how}: a rescue has written");
    }
}

#[test]
fn of_a_whole_store_a_rescue_misses_nothing() {
    let rescue = StoreOptions { access: Access::Rescue, ..options() };
    let mut store = Store::mount(cut_off(512, options()), rescue).unwrap();
    assert_eq!(store.rescued_from(), None);
    assert_eq!(values(&mut store), (1..=WRITES).collect::<Vec<_>>());
}
