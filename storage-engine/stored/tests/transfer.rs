// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]
//! Filling volumes from files and writing them to files.

mod support;

use plinth_store_api::{Answer, Verb};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use support::guest::{Guest, OK};
use support::pattern::bytes;
use support::{Daemon, Folder, MIB, POOL, VOLUME, attachment, config, serving};

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
