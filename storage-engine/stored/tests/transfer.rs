// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]
//! Filling volumes from files and writing them to files.

mod support;

use plinth_ids::Epoch;
use plinth_store_api::{Answer, PoolAccess, Verb};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use support::guest::{Guest, OK};
use support::pattern::bytes;
use support::{Daemon, Folder, MIB, POOL, VOLUME, attachment, config, serving, wait_for};

/// A sparse file of 48 MiB with three islands.
fn island_file(path: &Path) -> Vec<u8> {
    let file = File::create_new(path).unwrap();
    file.set_len(48 * MIB).unwrap();
    let mut whole = vec![0; usize::try_from(48 * MIB).unwrap()];
    for (stamp, at, length) in [(1, 0, 4096), (2, 9 * MIB + 512, 300_000), (3, 48 * MIB - 512, 512)]
    {
        let island = bytes(stamp, length);
        file.write_all_at(&island, at).unwrap();
        let at = usize::try_from(at).unwrap();
        whole[at..at + length].copy_from_slice(&island);
    }
    whole
}

fn import(daemon: &Daemon, source: &Path) -> Result<Answer, plinth_store_api::Refusal> {
    daemon.call(Verb::VolumeImport { pool: POOL, volume: VOLUME, source: source.into() })
}

fn export(daemon: &Daemon, target: &Path) -> Result<Answer, plinth_store_api::Refusal> {
    daemon.call(Verb::VolumeExport { pool: POOL, volume: VOLUME, target: target.into() })
}

/// A daemon with one volume that nobody uses.
fn unattached(folder: &Folder, size: u64) -> Daemon {
    let daemon = Daemon::start(folder);
    daemon.format(&folder.path("pool"), 64 * MIB);
    daemon.apply(config(1, &folder.path("pool"), &[]));
    daemon.create(VOLUME, size).unwrap();
    daemon
}

#[test]
fn a_round_trip_keeps_every_byte_and_every_hole() {
    let folder = Folder::new();
    let (source, target) = (folder.path("in.raw"), folder.path("out.raw"));
    let whole = island_file(&source);
    // Larger than all the space there is without its holes.
    let daemon = unattached(&folder, 64 * MIB);
    let Answer::Volume(filled) = import(&daemon, &source).unwrap() else { panic!() };
    assert!(filled.written <= MIB, "{} bytes for three islands", filled.written);
    assert_eq!(export(&daemon, &target).map(|_| ()), Ok(()));
    let exported = fs::read(&target).unwrap();
    assert_eq!(exported.len() as u64, 64 * MIB);
    assert!(exported[..whole.len()] == whole);
    assert!(exported[whole.len()..].iter().all(|&byte| byte == 0));
    let blocks = fs::metadata(&target).unwrap().blocks();
    assert!(blocks * 512 <= MIB, "{blocks} sectors for three islands");
    // What is there is not written over, and a second import leaves nothing of the first.
    assert_eq!(export(&daemon, &target).unwrap_err().code, "target-exists");
    fs::write(&source, bytes(9, 8192)).unwrap();
    import(&daemon, &source).unwrap();
    fs::remove_file(&target).unwrap();
    export(&daemon, &target).unwrap();
    let exported = fs::read(&target).unwrap();
    assert!(exported[..8192] == bytes(9, 8192));
    assert!(exported[8192..].iter().all(|&byte| byte == 0));
}

#[test]
fn what_is_imported_is_what_the_guest_finds() {
    let folder = Folder::new();
    let source = folder.path("in.raw");
    // Not whole sectors: the rest of the last one is zeros.
    fs::write(&source, bytes(5, 100_001)).unwrap();
    let daemon = unattached(&folder, MIB);
    import(&daemon, &source).unwrap();
    let socket = folder.path("blk.sock");
    daemon.apply(config(2, &folder.path("pool"), &[attachment(VOLUME, &socket, 1)]));
    let mut guest = Guest::boot(&socket, 1);
    let found = guest.read(0, 102_400);
    assert!(found[..100_001] == bytes(5, 100_001));
    assert!(found[100_001..].iter().all(|&byte| byte == 0));
}

#[test]
fn what_cannot_be_transferred_is_refused_by_name() {
    let folder = Folder::new();
    let daemon = serving(&folder, 64 * MIB, MIB, 1);
    let source = folder.path("in.raw");
    fs::write(&source, bytes(5, 4096)).unwrap();
    let code = |outcome: Result<Answer, plinth_store_api::Refusal>| outcome.unwrap_err().code;
    assert_eq!(code(import(&daemon, &source)), "volume-attached");
    assert_eq!(code(export(&daemon, &folder.path("out.raw"))), "volume-attached");
    assert!(!folder.path("out.raw").exists());
    daemon.apply(config(3, &folder.path("pool"), &[]));
    assert_eq!(code(import(&daemon, &folder.path("nothing"))), "source");
    assert_eq!(code(import(&daemon, Path::new("relative"))), "path-relative");
    fs::write(&source, bytes(5, 2 << 20)).unwrap();
    assert_eq!(code(import(&daemon, &source)), "source-too-large");
    assert_eq!(code(export(&daemon, &folder.path("no/folder"))), "target");
}

#[test]
fn guests_are_served_while_a_volume_is_filled() {
    let folder = Folder::new();
    let daemon = serving(&folder, 256 * MIB, MIB, 1);
    let other = plinth_ids::VolumeId(8);
    daemon.create(other, 96 * MIB).unwrap();
    let source = folder.path("in.raw");
    fs::write(&source, bytes(6, 96 << 20)).unwrap();
    let mut guest = Guest::boot(&folder.path("blk.sock"), 1);
    std::thread::scope(|scope| {
        let filling = scope.spawn(|| {
            let verb = Verb::VolumeImport { pool: POOL, volume: other, source: source.clone() };
            daemon.call(verb)
        });
        let mut served = 0;
        while !filling.is_finished() {
            assert_eq!(guest.write(served % 256 * 8, &bytes(served, 4096)), OK);
            served += 1;
        }
        filling.join().unwrap().unwrap();
        assert!(served > 10, "{served} writes were served meanwhile");
    });
}

/// Places of the journal's entries in a pool's file, oldest first.
fn journal_entries(pool: &[u8]) -> Vec<usize> {
    let is_entry = |at: &usize| pool[*at..].starts_with(b"PLNentry");
    let number = |at: &usize| u64::from_le_bytes(pool[at + 48..at + 56].try_into().unwrap());
    let mut found: Vec<usize> = (0..pool.len()).step_by(4096).filter(is_entry).collect();
    found.sort_by_key(number);
    found
}

#[test]
fn what_is_left_behind_a_damaged_journal_is_exported_from_a_rescue_that_writes_nothing() {
    let folder = Folder::new();
    let (device, target) = (folder.path("pool"), folder.path("out.raw"));
    let mut daemon = serving(&folder, 64 * MIB, MIB, 1);
    let mut guest = Guest::boot(&folder.path("blk.sock"), 1);
    for at in 0..40_u64 {
        assert_eq!(guest.write(at * 8, &bytes(at, 4096)), OK);
    }
    guest.flush();
    drop(guest);
    daemon.kill();
    let mut pool = fs::read(&device).unwrap();
    let entries = journal_entries(&pool);
    assert!(entries.len() > 20, "{} entries", entries.len());
    let middle = entries[entries.len() - 20];
    pool[middle + 200] ^= 4;
    fs::write(&device, &pool).unwrap();
    daemon = Daemon::start(&folder);
    let fault = wait_for("the fault", || {
        daemon.pools()[0].fault.clone().filter(|fault| fault.contains("damaged"))
    });
    assert!(fault.contains("rescue"), "{fault}");
    assert_eq!(export(&daemon, &target).unwrap_err().code, "pool-missing");
    let mut config = config(1000, &device, &[]);
    config.pools[0].access = PoolAccess::Rescue;
    daemon.apply(config.clone());
    let fault = wait_for("the rescue", || {
        daemon.pools()[0].fault.clone().filter(|fault| fault.contains("mounted for rescue"))
    });
    assert!(fault.contains("takes no changes"), "{fault}");
    assert!(fault.contains("disk-1: journal entry"), "it says what is lost: {fault}");
    assert_eq!(daemon.create(plinth_ids::VolumeId(9), MIB).unwrap_err().code, "pool-read-only");
    export(&daemon, &target).unwrap();
    let saved = fs::read(&target).unwrap();
    let is_right = |at: &u64| {
        let start = usize::try_from(*at).unwrap() * 4096;
        saved[start..start + 4096] == bytes(*at, 4096)
    };
    let right = (0..40_u64).filter(is_right).count();
    assert!((15..40).contains(&right), "{right} blocks of 40 were saved");
    assert!((0..15_u64).all(|at| is_right(&at)), "what was written first is there");
    // Looked at for as long as one likes, and it is as it was.
    config.epoch = Epoch(1001);
    config.pools.clear();
    daemon.apply(config);
    assert!(fs::read(&device).unwrap() == pool, "the rescue has written to the device");
}
