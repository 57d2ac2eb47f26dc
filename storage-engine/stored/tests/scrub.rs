// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]
//! Scrubs by order and by schedule, and what is told of them.

mod support;

use plinth_ids::DiskId;
use plinth_store_api::{Answer, DiskDetail, FoundBy, ScrubKind, ScrubStatus, StoreConfig, Verb};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use support::pattern::bytes;
use support::{Daemon, Folder, MIB, POOL, VOLUME, config, wait_for};

fn scrubs(daemon: &Daemon) -> ScrubStatus {
    let answer = daemon.call(Verb::ScrubStatus { pool: POOL }).unwrap();
    let Answer::Scrubs(mut all) = answer else { panic!("{answer:?}") };
    all.remove(0)
}

fn start(daemon: &Daemon, kind: ScrubKind, rate: Option<u64>) {
    daemon.call(Verb::ScrubStart { pool: POOL, disk: None, kind, rate }).unwrap();
}

fn disk(daemon: &Daemon) -> DiskDetail {
    let answer = daemon.call(Verb::DiskShow { pool: POOL, disk: DiskId::FIRST }).unwrap();
    let Answer::Disk(detail) = answer else { panic!("{answer:?}") };
    *detail
}

/// A daemon with a volume of 8 MiB that is full, and the place of one block of it in the pool.
fn filled(folder: &Folder, change: impl Fn(&mut StoreConfig)) -> (Daemon, u64) {
    let daemon = Daemon::start(folder);
    daemon.format(&folder.path("pool"), 64 * MIB);
    let mut config = config(1, &folder.path("pool"), &[]);
    change(&mut config);
    daemon.apply(config);
    daemon.create(VOLUME, 8 * MIB).unwrap();
    let source = folder.path("in.raw");
    fs::write(&source, bytes(5, 8 << 20)).unwrap();
    daemon.call(Verb::VolumeImport { pool: POOL, volume: VOLUME, source }).unwrap();
    let (pool, wanted) = (fs::read(folder.path("pool")).unwrap(), bytes(5, 8 << 20));
    let block = &wanted[5 << 20..(5 << 20) + 4096];
    let place = pool.chunks(4096).position(|found| found == block).unwrap();
    (daemon, place as u64 * 4096)
}

fn spoil(folder: &Folder, place: u64) {
    let file = File::options().write(true).open(folder.path("pool")).unwrap();
    file.write_all_at(&[0xee; 64], place + 100).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn a_deep_scrub_names_the_block_with_its_volume() {
    let folder = Folder::new();
    let (daemon, place) = filled(&folder, |_| {});
    start(&daemon, ScrubKind::Light, Some(1 << 30));
    wait_for("the end of the light scrub", || scrubs(&daemon).last_light);
    assert_eq!((scrubs(&daemon).last_found, disk(&daemon).status.bad_blocks), (0, 0));
    spoil(&folder, place);
    start(&daemon, ScrubKind::Deep, Some(1 << 30));
    wait_for("the end of the deep scrub", || scrubs(&daemon).last_deep);
    assert_eq!(scrubs(&daemon).last_found, 1);
    let detail = disk(&daemon);
    assert_eq!((detail.status.bad_blocks, detail.bad_blocks.len()), (1, 1));
    let bad = &detail.bad_blocks[0];
    assert_eq!((bad.volume, bad.volume_offset), (Some(VOLUME), Some(5 * MIB)));
    assert_eq!((bad.offset, bad.block, bad.found_by), (place, 256, FoundBy::DeepScrub));
    assert!(bad.found_at > 1_000_000_000, "{bad:?}");
}

#[test]
fn a_scrub_is_begun_by_the_schedule_and_by_no_other() {
    let folder = Folder::new();
    let (daemon, place) = filled(&folder, |config| {
        config.pools[0].scrub.light_interval = None;
        config.pools[0].scrub.deep_interval = Some(1);
    });
    spoil(&folder, place);
    wait_for("a scheduled scrub", || scrubs(&daemon).last_deep);
    wait_for("the bad block", || (disk(&daemon).status.bad_blocks == 1).then_some(()));
    let status = scrubs(&daemon);
    assert_eq!((status.last_light, status.next_light), (None, None));
    assert!(status.next_deep.is_some());
}

#[test]
fn a_slow_scrub_shows_how_far_it_is_and_can_be_stopped() {
    let folder = Folder::new();
    let (daemon, _) = filled(&folder, |_| {});
    start(&daemon, ScrubKind::Deep, Some(1));
    let run = wait_for("some progress", || scrubs(&daemon).run.filter(|run| run.bytes > 0));
    assert_eq!((run.kind, run.rate), (ScrubKind::Deep, 64 << 10), "no slower than 64 KiB/s");
    daemon.call(Verb::ScrubStop { pool: POOL, disk: Some(DiskId::FIRST) }).unwrap();
    assert_eq!((scrubs(&daemon).run, scrubs(&daemon).last_deep), (None, None));
    let other = Some(DiskId(7));
    let refused = daemon.call(Verb::ScrubStop { pool: POOL, disk: other }).unwrap_err();
    assert_eq!(refused.code, "disk-missing");
}

/// The disk is not with its pool, so what is known of it comes from two workers.
#[test]
fn a_disk_of_another_worker_is_scrubbed_and_shown_as_one_at_hand() {
    let folder = Folder::new();
    let (daemon, place) = filled(&folder, |config| {
        config.workers = plinth_rt::allowed_cpus().unwrap()[..2].to_vec();
        config.pools[0].disks[0].worker = Some(1);
    });
    spoil(&folder, place);
    start(&daemon, ScrubKind::Deep, Some(1 << 30));
    wait_for("the end of the deep scrub", || scrubs(&daemon).last_deep);
    let disk = disk(&daemon);
    assert_eq!((disk.status.bad_blocks, disk.bad_blocks[0].found_by), (1, FoundBy::DeepScrub));
    assert_eq!(daemon.pools()[0].checksum_errors, 1);
    let nobody = Some(DiskId(9));
    let verb = Verb::ScrubStart { pool: POOL, disk: nobody, kind: ScrubKind::Light, rate: None };
    assert_eq!(daemon.call(verb).unwrap_err().code, "disk-missing");
    daemon.call(Verb::ScrubStop { pool: POOL, disk: None }).unwrap();
}
