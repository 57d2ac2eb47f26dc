// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]
//! Snapshots, clones and deltas of the real daemon, under load and over `kill -9`.

mod support;

use plinth_ids::{Name, SnapshotId, VolumeId};
use plinth_store_api::{Answer, Refusal, SnapshotStatus, Verb, VolumeDetail};
use std::fs;
use std::path::Path;
use support::guest::{Guest, OK};
use support::pattern::bytes;
use support::{Daemon, Folder, MIB, POOL, VOLUME, attachment, config, serving, wait_for};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 512;
const SIZE: u64 = BLOCKS * BLOCK as u64;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn content(block: u64, stamp: u64) -> Vec<u8> {
    bytes(stamp << 16 | block, BLOCK)
}

fn take(daemon: &Daemon, volume: VolumeId, id: u64) -> Result<SnapshotStatus, Refusal> {
    let snapshot = SnapshotId(id);
    let name = name(&format!("day-{id}"));
    match daemon.call(Verb::SnapshotCreate { pool: POOL, volume, snapshot, name })? {
        Answer::Snapshot(status) => Ok(status),
        other => panic!("{other:?}"),
    }
}

fn show(daemon: &Daemon, volume: VolumeId) -> VolumeDetail {
    match daemon.call(Verb::VolumeShow { pool: POOL, volume }).unwrap() {
        Answer::VolumeDetail(detail) => *detail,
        other => panic!("{other:?}"),
    }
}

fn clone_of(daemon: &Daemon, snapshot: u64, volume: u64) -> VolumeId {
    let (snapshot, volume) = (Some(SnapshotId(snapshot)), VolumeId(volume));
    let name = name(&format!("clone-{}", volume.0));
    let verb = Verb::VolumeClone { pool: POOL, source: VOLUME, snapshot, volume, name, size: SIZE };
    daemon.call(verb).unwrap();
    volume
}

/// All bytes of a volume that nobody has attached.
fn exported(daemon: &Daemon, volume: VolumeId, target: &Path) -> Vec<u8> {
    daemon.call(Verb::VolumeExport { pool: POOL, volume, target: target.into() }).unwrap();
    fs::read(target).unwrap()
}

#[test]
fn a_snapshot_taken_under_load_is_whole_after_a_kill_and_so_is_the_volume() {
    let folder = Folder::new();
    let socket = folder.path("blk.sock");
    let mut daemon = serving(&folder, 64 * MIB, SIZE, 1);
    let mut guest = Guest::boot(&socket, 1);
    for block in 0..BLOCKS {
        assert_eq!(guest.write(block * 8, &content(block, 1)), OK);
    }
    guest.flush();
    // The guest overwrites block after block, round after round, while the snapshot is taken.
    let (mut before, mut after) = (0, 0);
    std::thread::scope(|scope| {
        let taking = scope.spawn(|| take(&daemon, VOLUME, 5).unwrap());
        while !taking.is_finished() || after < BLOCKS * 2 {
            let (round, block) = (after / BLOCKS + 2, after % BLOCKS);
            assert_eq!(guest.write(block * 8, &content(block, round)), OK);
            after += 1;
            if !taking.is_finished() {
                before = after;
            }
        }
        assert_eq!(taking.join().unwrap().size, SIZE);
    });
    guest.flush();
    let newest = |block: u64, writes: u64| (writes + BLOCKS - 1 - block) / BLOCKS + 1;
    daemon.kill();
    daemon = Daemon::start(&folder);
    guest.connect(&socket);
    for block in 0..BLOCKS {
        let expected = content(block, newest(block, after));
        assert!(guest.read(block * 8, BLOCK) == expected, "block {block} of the volume");
    }
    // The writes came one after the other, so the snapshot has the first so many of them.
    let clone = clone_of(&daemon, 5, 8);
    let found = exported(&daemon, clone, &folder.path("clone.raw"));
    let has = |writes: u64| {
        (0..BLOCKS)
            .zip(found.chunks(BLOCK))
            .all(|(block, found)| found == content(block, newest(block, writes)))
    };
    let count = (0..=before + 1).find(|&writes| has(writes));
    assert!(count.is_some(), "the snapshot is no state that the volume ever had");
    // And the volume goes on after it.
    assert_eq!(guest.write(0, &content(0, 99)), OK);
    assert!(exported(&daemon, clone, &folder.path("again.raw")) == found);
}

#[test]
fn space_is_accounted_and_comes_back() {
    let folder = Folder::new();
    let daemon = serving(&folder, 64 * MIB, SIZE, 1);
    let mut guest = Guest::boot(&folder.path("blk.sock"), 1);
    for block in 0..BLOCKS {
        guest.write(block * 8, &content(block, 1));
    }
    guest.flush();
    let used = daemon.pools()[0].used;
    assert_eq!((show(&daemon, VOLUME).status.written, used), (SIZE, SIZE));
    take(&daemon, VOLUME, 1).unwrap();
    assert_eq!(show(&daemon, VOLUME).unique, SIZE, "nothing is shared before anything changes");
    // Eight blocks are a unit: a sixteenth of the volume is written anew.
    for block in 0..BLOCKS / 16 {
        guest.write(block * 8, &content(block, 2));
    }
    guest.flush();
    let detail = show(&daemon, VOLUME);
    assert_eq!((detail.status.written, detail.unique), (SIZE, SIZE / 16));
    assert_eq!((detail.snapshots_unique, detail.snapshots[0].unique), (SIZE / 16, SIZE / 16));
    assert_eq!(daemon.pools()[0].used, SIZE + SIZE / 16);
    let snapshot = SnapshotId(1);
    daemon.call(Verb::SnapshotDelete { pool: POOL, volume: VOLUME, snapshot }).unwrap();
    wait_for("the space of the snapshot", || {
        let detail = show(&daemon, VOLUME);
        let is_back = detail.snapshots.is_empty() && daemon.pools()[0].used == SIZE;
        is_back.then_some(())
    });
}

#[test]
fn a_volume_goes_back_and_clones_stand_on_snapshots_until_they_are_flat() {
    let folder = Folder::new();
    let socket = folder.path("blk.sock");
    let daemon = serving(&folder, 64 * MIB, SIZE, 1);
    let mut guest = Guest::boot(&socket, 1);
    guest.write(0, &content(0, 1));
    guest.flush();
    take(&daemon, VOLUME, 1).unwrap();
    assert_eq!(take(&daemon, VOLUME, 1).unwrap().name, name("day-1"), "asked again");
    guest.write(0, &content(0, 2));
    guest.write(64, &content(8, 2));
    guest.flush();
    let snapshot = SnapshotId(1);
    let back = Verb::SnapshotRollback { pool: POOL, volume: VOLUME, snapshot };
    let delete = Verb::SnapshotDelete { pool: POOL, volume: VOLUME, snapshot };
    let code = |verb: &Verb| daemon.call(verb.clone()).unwrap_err().code;
    assert_eq!(code(&back), "volume-attached");
    let clone = clone_of(&daemon, 1, 8);
    assert_eq!(show(&daemon, clone).parent.unwrap().snapshot, Some(snapshot));
    assert_eq!(code(&delete), "snapshot-has-clones");
    guest.disconnect();
    daemon.apply(config(3, &folder.path("pool"), &[]));
    let gone = Verb::VolumeDelete { pool: POOL, volume: VOLUME, wipe: false };
    assert_eq!(code(&gone), "volume-has-snapshots");
    daemon.call(back).unwrap();
    daemon.call(Verb::VolumeFlatten { pool: POOL, volume: clone }).unwrap();
    assert_eq!(show(&daemon, clone).parent, None);
    daemon.call(delete).unwrap();
    let unknown = Verb::SnapshotDelete { pool: POOL, volume: VOLUME, snapshot: SnapshotId(99) };
    assert_eq!(code(&unknown), "snapshot-missing");
    daemon.call(gone).unwrap();
    daemon.apply(config(4, &folder.path("pool"), &[attachment(clone, &socket, 1)]));
    let mut guest = Guest::boot(&socket, 1);
    assert!(guest.read(0, BLOCK) == content(0, 1));
    assert!(guest.read(64, BLOCK) == vec![0; BLOCK]);
}

/// What the tests of deltas start with: a volume with two snapshots, their deltas as files, and
/// an empty volume of the same size.
struct Deltas {
    folder: Folder,
    daemon: Daemon,
    guest: Guest,
    copy: VolumeId,
}

impl Deltas {
    fn new() -> Self {
        let folder = Folder::new();
        let daemon = serving(&folder, 64 * MIB, SIZE, 1);
        let mut guest = Guest::boot(&folder.path("blk.sock"), 1);
        for block in 0..64 {
            guest.write(block * 8, &content(block, 1));
        }
        guest.flush();
        take(&daemon, VOLUME, 1).unwrap();
        guest.write(8, &content(1, 2));
        guest.write(8 * 300, &content(300, 2));
        guest.flush();
        take(&daemon, VOLUME, 2).unwrap();
        let copy = VolumeId(9);
        let spec = Verb::VolumeCreate { pool: POOL, volume: copy, name: name("copy"), size: SIZE };
        daemon.call(spec).unwrap();
        let deltas = Self { folder, daemon, guest, copy };
        deltas.export(None, 1, "first");
        deltas.export(Some(1), 2, "second");
        deltas
    }

    fn export(&self, from: Option<u64>, to: u64, file: &str) {
        let (from, to, target) = (from.map(SnapshotId), SnapshotId(to), self.folder.path(file));
        let verb = Verb::DeltaExport { pool: POOL, volume: VOLUME, from, to, target };
        self.daemon.call(verb).unwrap();
    }

    fn import(&self, file: &str, id: u64) -> Result<Answer, Refusal> {
        let (snapshot, source) = (SnapshotId(id), self.folder.path(file));
        let verb = Verb::DeltaImport { pool: POOL, volume: self.copy, snapshot, source };
        self.daemon.call(verb)
    }

    fn code(&self, file: &str, id: u64) -> String {
        self.import(file, id).unwrap_err().code
    }
}

#[test]
fn deltas_bring_a_volume_from_snapshot_to_snapshot() {
    let deltas = Deltas::new();
    let Deltas { folder, daemon, copy, .. } = &deltas;
    let length = fs::metadata(folder.path("second")).unwrap().len();
    assert!(length < 80 * 1024, "two units and some heads: {length}");
    assert_eq!(deltas.code("second", 11), "delta-base");
    deltas.import("first", 11).unwrap();
    deltas.import("first", 11).unwrap();
    assert_eq!(show(daemon, *copy).snapshots[0].name, name("day-1"));
    deltas.import("second", 12).unwrap();
    assert_eq!(deltas.code("first", 13), "volume-not-empty");
    let found = exported(daemon, *copy, &folder.path("copy.raw"));
    let original = clone_of(daemon, 2, 10);
    assert!(found == exported(daemon, original, &folder.path("original.raw")));
    let (from, to, volume) = (Some(SnapshotId(11)), SnapshotId(12), *copy);
    let diff = Verb::VolumeDiff { pool: POOL, volume, from, to, start: 0 };
    let Answer::Diff(diff) = daemon.call(diff).unwrap() else { panic!() };
    let holds = |at: u64| {
        diff.ranges.iter().any(|range| (range.offset..range.offset + range.length).contains(&at))
    };
    assert!(holds(4096) && !holds(MIB) && diff.next.is_none(), "{diff:?}");
}

/// A file that is cut off or changed is refused, and nothing of it is carried out.
#[test]
fn a_damaged_delta_changes_nothing() {
    let deltas = Deltas::new();
    let good = fs::read(deltas.folder.path("first")).unwrap();
    for (at, file) in [(good.len() - 1, "torn"), (300, "short"), (10, "shorter")] {
        fs::write(deltas.folder.path(file), &good[..at]).unwrap();
        assert_eq!(deltas.code(file, 11), "delta-bad");
    }
    for at in [100, 5000, good.len() - 20] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(deltas.folder.path("bad"), &bad).unwrap();
        assert_eq!(deltas.code("bad", 11), "delta-bad");
    }
    assert_eq!(show(&deltas.daemon, deltas.copy).status.written, 0);
}

#[test]
fn a_delta_does_not_fit_a_volume_that_was_written_until_it_is_rolled_back() {
    let mut deltas = Deltas::new();
    deltas.import("first", 11).unwrap();
    deltas.guest.disconnect();
    let (pool, socket) = (deltas.folder.path("pool"), deltas.folder.path("other.sock"));
    let copy = deltas.copy;
    deltas.daemon.apply(config(3, &pool, &[attachment(copy, &socket, 1)]));
    let mut other = Guest::boot(&socket, 1);
    other.write(0, &content(0, 9));
    other.flush();
    other.disconnect();
    deltas.daemon.apply(config(4, &pool, &[]));
    assert_eq!(deltas.code("second", 12), "volume-written");
    let back = Verb::SnapshotRollback { pool: POOL, volume: copy, snapshot: SnapshotId(11) };
    deltas.daemon.call(back).unwrap();
    deltas.import("second", 12).unwrap();
}
