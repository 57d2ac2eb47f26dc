// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]
//! A guest's disk from end to end: driver-side ring, vhost-user socket, daemon, file.

mod support;

use plinth_store_api::{Answer, Attachment, Verb};
use std::os::unix::fs::MetadataExt;
use support::guest::{DATA_MAX, Guest, IO_ERROR, Io, OK};
use support::pattern::{Random, bytes};
use support::{Daemon, Folder, MIB, POOL, VOLUME, attachment, config, serving, wait_for};

const SECTOR: usize = 512;

#[test]
fn what_a_guest_writes_it_reads_back() {
    let folder = Folder::new();
    let daemon = serving(&folder, 64 * MIB, 32 * MIB, 1);
    let mut guest = Guest::boot(&folder.path("blk.sock"), 1);
    assert_eq!(guest.capacity(), 32 * MIB / 512);
    assert!(guest.read(0, 64 << 10).iter().all(|&byte| byte == 0), "a new volume is zeros");
    // Whole blocks, parts of blocks, across a unit's end, across an object's end, the last one.
    let objects_end = 4 * MIB / 512;
    let last = 32 * MIB / 512 - 1;
    let places = [
        (0, 4096),
        (9, SECTOR),
        (63, 2 * SECTOR),
        (100, DATA_MAX),
        (objects_end - 1, 2 * SECTOR),
        (objects_end - 64, 128 * SECTOR),
        (last, SECTOR),
    ];
    for (stamp, (sector, length)) in (1..).zip(places) {
        assert_eq!(guest.write(sector, &bytes(stamp, length)), OK);
        assert!(guest.read(sector, length) == bytes(stamp, length), "write {stamp}");
    }
    guest.flush();
    assert!(guest.read(9, SECTOR) == bytes(2, SECTOR));
    let id = guest.run(&Io::Id);
    assert_eq!((id.status, &id.data[..8]), (OK, &b"volume-7"[..]));
    let (before, calls) = (daemon.status().costs, 8);
    for stamp in 0..calls {
        assert_eq!(guest.write(0, &bytes(stamp, 4096)), OK);
        guest.flush();
    }
    let after = daemon.status().costs;
    assert!(after.disk_bytes_written - before.disk_bytes_written >= 4096 * calls, "{after:?}");
    // Each of them waited for the disk, so the kernel was called for each.
    assert!(after.system_calls - before.system_calls >= calls, "{before:?} {after:?}");
}

#[test]
fn what_is_discarded_or_zeroed_reads_as_zeros_and_gives_space_back() {
    let folder = Folder::new();
    let daemon = serving(&folder, 64 * MIB, 32 * MIB, 1);
    let mut guest = Guest::boot(&folder.path("blk.sock"), 1);
    for step in 0..16 {
        assert_eq!(guest.write(step * 512, &bytes(step, DATA_MAX)), OK);
    }
    guest.flush();
    assert_eq!(daemon.volumes()[0].written, 4 * MIB);
    let on_host = || std::fs::metadata(folder.path("pool")).unwrap().blocks() * 512;
    let before = on_host();
    let (sector, sectors) = (1024, 2048);
    assert_eq!(guest.run(&Io::Discard { sector, sectors }).status, OK);
    assert!(guest.read(1024, DATA_MAX).iter().all(|&byte| byte == 0));
    assert!(guest.read(512, DATA_MAX) == bytes(1, DATA_MAX), "the neighbor is untouched");
    assert_eq!(daemon.volumes()[0].written, 3 * MIB);
    // A part of a block, with and without leave to unmap.
    for (sector, may_unmap) in [(3073, true), (3077, false)] {
        let zeroed = guest.run(&Io::WriteZeroes { sector, sectors: 3, may_unmap });
        assert_eq!(zeroed.status, OK);
        assert!(guest.read(sector, 3 * SECTOR).iter().all(|&byte| byte == 0));
    }
    let expected = bytes(6, DATA_MAX);
    assert!(guest.read(3072, SECTOR) == expected[..SECTOR]);
    assert!(guest.read(3076, SECTOR) == expected[4 * SECTOR..5 * SECTOR]);
    assert!(guest.read(3080, SECTOR) == expected[8 * SECTOR..9 * SECTOR]);
    // The pool's file gets its holes a quarter of a minute later, with nobody asking.
    wait_for("a smaller file", || (on_host() + 3 * MIB / 4 < before).then_some(()));
    assert!(guest.read(512, DATA_MAX) == bytes(1, DATA_MAX), "the neighbor is untouched");
}

/// Random requests on all queues, many under way, against a plain array. Requests under way never
/// overlap, because a disk promises nothing about those.
#[test]
fn four_queues_agree_with_an_array() {
    const QUEUES: usize = 4;
    const AREA: usize = 2048;
    let folder = Folder::new();
    let daemon = serving(&folder, 64 * MIB, 16 * MIB, 4);
    let mut guest = Guest::boot(&folder.path("blk.sock"), 4);
    let mut array = vec![0_u8; QUEUES * AREA * SECTOR];
    let mut random = Random(4);
    let mut compared = 0;
    for round in 0..400_u64 {
        // One request a queue, each in the queue's own area.
        let mut expected = Vec::new();
        for queue in 0..QUEUES {
            let length = 1 + random.below(64);
            let sector = (queue * AREA) as u64 + random.below(AREA as u64 - length);
            let length = usize::try_from(length).unwrap() * SECTOR;
            let at = usize::try_from(sector).unwrap() * SECTOR;
            let sectors = u32::try_from(length / SECTOR).unwrap();
            let io = match random.below(8) {
                0..3 => Io::Write { sector, data: bytes(round * 7 + sector, length) },
                3 => Io::Discard { sector, sectors },
                4 => Io::WriteZeroes { sector, sectors, may_unmap: true },
                _ => Io::Read { sector, length },
            };
            let id = guest.submit(queue, &io);
            match io {
                Io::Write { data, .. } => array[at..at + length].copy_from_slice(&data),
                Io::WriteZeroes { .. } => array[at..at + length].fill(0),
                Io::Read { .. } => expected.push((id, at)),
                // Whole blocks read as zeros afterwards, the rest is as it was.
                _ => {
                    let (from, to) = (at.next_multiple_of(4096), (at + length) / 4096 * 4096);
                    if from < to {
                        array[from..to].fill(0);
                    }
                }
            }
        }
        while guest.open() > 0 {
            for answered in guest.wait() {
                assert_eq!(answered.status, OK);
                if let Some((_, at)) = expected.iter().find(|(id, _)| *id == answered.id) {
                    compared += 1;
                    let range = *at..at + answered.data.len();
                    assert!(answered.data == array[range], "round {round}, byte {at}");
                }
            }
        }
    }
    assert!(compared > 400, "{compared} reads were compared");
    let status = &daemon.status().attachments[0];
    assert!(status.is_up && status.errors == 0, "{status:?}");
    assert_eq!(status.reads, compared);
}

#[test]
fn a_request_outside_the_disk_is_an_error_and_the_next_one_is_not() {
    let folder = Folder::new();
    let daemon = serving(&folder, 64 * MIB, MIB, 1);
    let mut guest = Guest::boot(&folder.path("blk.sock"), 1);
    let end = MIB / 512;
    assert_eq!(guest.run(&Io::Read { sector: end, length: SECTOR }).status, IO_ERROR);
    assert_eq!(guest.write(end - 1, &bytes(1, 2 * SECTOR)), IO_ERROR);
    assert_eq!(guest.write(end - 1, &bytes(1, SECTOR)), OK);
    let status = daemon.status();
    assert_eq!((status.attachments[0].errors, status.attachments[0].writes), (2, 1));
}

#[test]
fn a_read_only_disk_refuses_writes_and_keeps_its_data() {
    let folder = Folder::new();
    let daemon = serving(&folder, 64 * MIB, MIB, 1);
    let (device, socket) = (folder.path("pool"), folder.path("blk.sock"));
    let mut guest = Guest::boot(&socket, 1);
    assert_eq!(guest.write(8, &bytes(1, 4096)), OK);
    drop(guest);
    let read_only = Attachment { is_read_only: true, ..attachment(VOLUME, &socket, 1) };
    daemon.apply(config(3, &device, &[read_only]));
    let mut guest = Guest::boot(&socket, 1);
    assert_ne!(guest.write(8, &bytes(2, 4096)), OK);
    assert!(guest.read(8, 4096) == bytes(1, 4096));
}

#[test]
fn a_volume_grows_under_its_guest() {
    let folder = Folder::new();
    let daemon = serving(&folder, 64 * MIB, MIB, 1);
    let mut guest = Guest::boot(&folder.path("blk.sock"), 1);
    let sector = MIB / 512;
    assert_eq!(guest.write(sector, &bytes(1, 4096)), IO_ERROR);
    daemon.call(Verb::VolumeGrow { pool: POOL, volume: VOLUME, size: 2 * MIB }).unwrap();
    assert_eq!(guest.capacity(), 2 * MIB / 512);
    assert_eq!(guest.write(sector, &bytes(1, 4096)), OK);
    assert!(guest.read(sector, 4096) == bytes(1, 4096));
    let shrink = daemon.call(Verb::VolumeGrow { pool: POOL, volume: VOLUME, size: MIB });
    assert_eq!(shrink.unwrap_err().code, "volume-shrink");
}

#[test]
fn a_guest_that_goes_makes_room_for_the_next() {
    let folder = Folder::new();
    let daemon = serving(&folder, 64 * MIB, 16 * MIB, 2);
    for round in 0..5 {
        let mut guest = Guest::boot(&folder.path("blk.sock"), 2);
        if round > 0 {
            assert!(guest.read(round - 1, SECTOR) == bytes(round - 1, SECTOR));
        }
        assert_eq!(guest.write(round, &bytes(round, SECTOR)), OK);
        // Gone in the middle of its work.
        for queue in [0, 1] {
            guest.submit(queue, &Io::Write { sector: 4096, data: bytes(9, DATA_MAX) });
        }
        guest.disconnect();
        drop(guest);
        wait_for("the guest's end", || (!daemon.status().attachments[0].is_up).then_some(()));
    }
    assert_eq!(daemon.status().attachments[0].errors, 0);
}

#[test]
fn two_volumes_are_two_disks() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder);
    let device = folder.path("pool");
    daemon.format(&device, 64 * MIB);
    daemon.apply(config(1, &device, &[]));
    let sockets = [folder.path("a.sock"), folder.path("b.sock")];
    let volumes = [plinth_ids::VolumeId(1), plinth_ids::VolumeId(2)];
    for volume in volumes {
        assert!(matches!(daemon.create(volume, 8 * MIB), Ok(Answer::Volume(_))));
    }
    let attachments: Vec<_> = volumes
        .iter()
        .zip(&sockets)
        .map(|(&volume, socket)| attachment(volume, socket, 1))
        .collect();
    daemon.apply(config(2, &device, &attachments));
    let mut guests = sockets.each_ref().map(|socket| Guest::boot(socket, 1));
    for (stamp, guest) in (1..).zip(&mut guests) {
        assert_eq!(guest.write(0, &bytes(stamp, 8192)), OK);
    }
    for (stamp, guest) in (1..).zip(&mut guests) {
        assert!(guest.read(0, 8192) == bytes(stamp, 8192));
    }
    // One goes, the other stays.
    daemon.apply(config(3, &device, &attachments[1..]));
    assert!(!sockets[0].exists());
    assert!(guests[1].read(0, 8192) == bytes(2, 8192));
}

/// A null pool would lose a guest's data without a word, so it takes a switch to have one.
#[test]
fn a_null_pool_is_served_to_measure_and_not_otherwise() {
    let folder = Folder::new();
    let device = std::path::Path::new("null:64MiB");
    let daemon = Daemon::start(&folder);
    daemon.apply(config(1, device, &[]));
    let fault = daemon.pools()[0].fault.clone().unwrap_or_default();
    assert!(fault.contains("--measuring"), "{fault}");
    drop(daemon);
    let daemon = Daemon::start_with(&folder, &["--measuring"]);
    wait_for("the pool", || daemon.pools()[0].fault.is_none().then_some(()));
    daemon.create(VOLUME, 32 * MIB).unwrap();
    let attachment = attachment(VOLUME, &folder.path("blk.sock"), 1);
    daemon.apply(config(2, device, &[attachment]));
    let mut guest = Guest::boot(&folder.path("blk.sock"), 1);
    assert_eq!(guest.write(8, &bytes(1, 4096)), OK);
    assert_eq!(guest.run(&Io::Read { sector: 8, length: 4096 }).status, OK);
    assert_eq!(daemon.volumes()[0].written, 0, "nothing was carried out");
    assert_eq!(daemon.status().requests, 2);
}
