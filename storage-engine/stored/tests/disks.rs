// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]
//! Pools of several disks, under a guest that writes and reads: disks come, drain, leave, fail and
//! are missing, and no byte changes.

mod support;

use plinth_ids::{DiskId, VolumeId};
use plinth_store_api::{
    Answer, Attachment, DiskState, DiskStatus, Durability, Pool, PoolDisk, StoreConfig, Verb,
};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use support::guest::{Guest, Io, OK};
use support::pattern::{Random, bytes};
use support::{Daemon, Folder, MIB, PATIENCE, POOL, VOLUME, attachment, config, wait_for};

const BLOCK: usize = 4096;
/// Each object is in a placement group of its own, or nearly. Which disk has a group depends on the
/// disks' serials, which nobody chooses: of 16 groups, none fell to a new fourth disk once in a
/// hundred runs. Of 128 none does once in 10^16.
const OBJECTS: u64 = 128;
const OBJECT_SIZE: u64 = 4 * MIB;
const VOLUME_SIZE: u64 = OBJECTS * OBJECT_SIZE;
/// Only the beginning of each object is used, so that all fit on small disks.
const OBJECT_BLOCKS: u64 = 128;
const BLOCKS: u64 = OBJECTS * OBJECT_BLOCKS;
const DISK_SIZE: u64 = 96 * MIB;

/// A pool of disks in a folder, and a guest with an array of what it wrote.
struct Scene {
    folder: Folder,
    daemon: Daemon,
    guest: Guest,
    disks: Vec<PoolDisk>,
    workers: usize,
    epoch: u64,
    stamps: Vec<u64>,
    random: Random,
    next_stamp: u64,
}

impl Scene {
    fn new(disks: u32, workers: usize, seed: u64) -> Self {
        let folder = Folder::fast();
        let daemon = Daemon::start(&folder);
        let disk = |number| PoolDisk {
            id: DiskId(number),
            device: device(&folder, number),
            is_draining: false,
            worker: None,
        };
        let disks: Vec<PoolDisk> = (1..=disks).map(disk).collect();
        for disk in &disks {
            format(&daemon, disk);
        }
        daemon.apply(of(1, workers, &disks, &[]));
        daemon.create(VOLUME, VOLUME_SIZE).unwrap();
        let socket = folder.path("blk.sock");
        daemon.apply(of(2, workers, &disks, &[served(workers, &socket)]));
        let guest = Guest::boot(&socket, 1);
        let stamps = vec![0; usize::try_from(BLOCKS).unwrap()];
        let (random, epoch, next_stamp) = (Random(seed), 2, 1);
        Self { folder, daemon, guest, disks, workers, epoch, stamps, random, next_stamp }
    }

    fn apply(&mut self) {
        self.epoch += 1;
        let attachments = [served(self.workers, &self.folder.path("blk.sock"))];
        self.daemon.apply(of(self.epoch, self.workers, &self.disks, &attachments));
    }

    fn disk(&self, number: u32) -> DiskStatus {
        let found = self.statuses().into_iter().find(|disk| disk.id == DiskId(number));
        found.expect("a disk of the pool")
    }

    fn statuses(&self) -> Vec<DiskStatus> {
        match self.daemon.call(Verb::Disks { pool: POOL }) {
            Ok(Answer::Disks(disks)) => disks,
            other => panic!("{other:?}"),
        }
    }

    /// The first of `count` blocks, all in one object.
    fn stretch(&mut self, count: u64) -> u64 {
        let object = self.random.below(OBJECTS);
        object * OBJECT_BLOCKS + self.random.below(OBJECT_BLOCKS - count + 1)
    }

    fn begin_write(&mut self) -> (u64, usize, usize) {
        let count = 1 + self.random.below(8);
        let first = self.stretch(count);
        let stamp = self.next_stamp;
        self.next_stamp += 1;
        let data = (first..first + count).flat_map(|block| content(block, stamp)).collect();
        let id = self.guest.submit(0, &Io::Write { sector: sector(first), data });
        let (first, count) = (usize::try_from(first).unwrap(), usize::try_from(count).unwrap());
        (id, first, count)
    }

    /// A burst of writes, all of which must succeed; then some of it is read.
    fn load(&mut self) {
        // One after the other where they touch: the last answered is not the last submitted.
        let mut busy = vec![false; self.stamps.len()];
        let mut open = Vec::new();
        for _ in 0..16 {
            let saved = self.random.clone();
            let count = 1 + self.random.below(8);
            let first = usize::try_from(self.stretch(count)).unwrap();
            let range = first..first + usize::try_from(count).unwrap();
            if busy[range.clone()].iter().any(|&busy| busy) {
                continue;
            }
            busy[range].fill(true);
            self.random = saved;
            let stamp = self.next_stamp;
            open.push((self.begin_write(), stamp));
        }
        while self.guest.open() > 0 {
            for answered in self.guest.wait() {
                assert_eq!(answered.status, OK, "the guest saw an error");
            }
        }
        for ((_, first, count), stamp) in open {
            self.stamps[first..first + count].fill(stamp);
        }
        let at = self.stretch(32);
        self.compare(at);
    }

    fn compare(&mut self, first: u64) {
        let data = self.guest.read(sector(first), 32 * BLOCK);
        for (block, found) in (first..).zip(data.chunks(BLOCK)) {
            let stamp = self.stamps[usize::try_from(block).unwrap()];
            assert!(found == content(block, stamp), "block {block} is not of write {stamp}");
        }
    }

    fn verify(&mut self) {
        for first in (0..BLOCKS).step_by(32) {
            self.compare(first);
        }
    }

    fn fill(&mut self) {
        for _ in 0..200 {
            self.load();
        }
    }

    fn wait_until(&mut self, what: &str, mut is_so: impl FnMut(&[DiskStatus]) -> bool) {
        let begun = Instant::now();
        loop {
            self.load();
            let statuses = self.statuses();
            if is_so(&statuses) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{what} did not come about: {statuses:#?}");
        }
    }
}

/// Where a block of those that are used begins in the volume.
fn sector(block: u64) -> u64 {
    (block / OBJECT_BLOCKS * OBJECT_SIZE + block % OBJECT_BLOCKS * BLOCK as u64) / 512
}

fn device(folder: &Folder, number: u32) -> PathBuf {
    folder.path(&format!("disk-{number}"))
}

fn format(daemon: &Daemon, disk: &PoolDisk) {
    let device = disk.device.clone();
    let size = Some(DISK_SIZE);
    let verb = Verb::PoolDiskAdd { pool: POOL, disk: disk.id, device, size, overwrite: false };
    assert_eq!(daemon.call(verb), Ok(Answer::Done));
}

/// With several workers, the disks are spread over them, and the queues are not with the pool.
fn of(epoch: u64, workers: usize, disks: &[PoolDisk], attachments: &[Attachment]) -> StoreConfig {
    let mut config = config(epoch, &disks[0].device, attachments);
    if workers > 1 {
        config.workers = plinth_rt::allowed_cpus().unwrap();
        config.workers.truncate(workers);
        assert_eq!(config.workers.len(), workers, "each worker needs a CPU");
    }
    let pool = Pool::of_one(POOL, &disks[0].device, Durability::Flush);
    config.pools = vec![Pool { disks: disks.to_vec(), ..pool }];
    config
}

fn served(workers: usize, socket: &Path) -> Attachment {
    let worker = (workers > 1).then_some(1);
    Attachment { worker, ..attachment(VOLUME, socket, 1) }
}

fn content(block: u64, stamp: u64) -> Vec<u8> {
    if stamp == 0 { vec![0; BLOCK] } else { bytes(stamp << 16 | block, BLOCK) }
}

#[test]
fn disks_come_and_go_under_a_guest_and_every_byte_stays() {
    come_and_go(1);
}

#[test]
fn it_is_the_same_when_disks_and_queues_are_of_two_workers() {
    come_and_go(2);
}

fn come_and_go(workers: usize) {
    let mut scene = Scene::new(3, workers, 1);
    scene.fill();
    // Also of a disk that another worker owns, whose figures come now and then.
    scene.wait_until("data on each disk", |disks| {
        let has = |disk: &DiskStatus| {
            let counters = disk.counters;
            let is_written = counters.writes > 0 && counters.written_bytes > MIB;
            disk.state == DiskState::In && disk.used > MIB && is_written
        };
        disks.len() == 3 && disks.iter().all(has)
    });
    let number = PoolDisk {
        id: DiskId(4),
        device: device(&scene.folder, 4),
        is_draining: false,
        worker: None,
    };
    format(&scene.daemon, &number);
    scene.disks.push(number);
    scene.apply();
    scene.wait_until("data on the new disk", |disks| disks.len() == 4 && disks[3].used > MIB);
    scene.disks[0].is_draining = true;
    scene.apply();
    assert_eq!(scene.disk(1).state, DiskState::Draining);
    let remove = || Verb::PoolDiskRemove { pool: POOL, disk: DiskId(1) };
    assert_eq!(scene.daemon.call(remove()).unwrap_err().code, "disk-needed");
    scene.wait_until("a drained disk", |disks| disks[0].objects == 0);
    assert_eq!(scene.daemon.call(remove()), Ok(Answer::Done));
    scene.disks.remove(0);
    scene.apply();
    assert_eq!(scene.statuses().len(), 3);
    scene.load();
    scene.verify();
    assert_eq!(scene.daemon.pools()[0].fault, None);
    // It is nobody's any more, and the pool does not want it back.
    let old = PoolDisk {
        id: DiskId(1),
        device: device(&scene.folder, 1),
        is_draining: false,
        worker: None,
    };
    scene.disks.push(old);
    scene.apply();
    let disk = scene.disk(1);
    assert_eq!(disk.state, DiskState::Missing);
    assert!(disk.reason.unwrap().contains("left the pool"));
    scene.verify();
}

#[test]
fn killed_in_the_middle_of_a_drain_it_goes_on_and_no_byte_is_lost() {
    killed_while_draining(1);
}

#[test]
fn killed_in_a_drain_from_one_worker_to_another_no_byte_is_lost() {
    killed_while_draining(2);
}

fn killed_while_draining(workers: usize) {
    let mut scene = Scene::new(2, workers, 2);
    scene.fill();
    scene.disks[1].is_draining = true;
    scene.apply();
    let before = scene.disk(2).objects;
    for kill in 0..6 {
        scene.load();
        // Some requests are on their way when it is killed.
        let open: Vec<_> = (0..4)
            .map(|_| {
                let stamp = scene.next_stamp;
                (scene.begin_write(), stamp)
            })
            .collect();
        let daemon = Daemon::start_after_kill(&mut scene.daemon, &scene.folder);
        scene.daemon = daemon;
        scene.guest.connect(&scene.folder.path("blk.sock"));
        while scene.guest.open() > 0 {
            for answered in scene.guest.wait() {
                let fault = &scene.daemon.pools()[0];
                assert_eq!(answered.status, OK, "kill {kill}: {fault:?}");
            }
        }
        // Those that overlap may have gone either way, so they are written once more.
        for ((_, first, count), _) in open {
            let stamp = scene.next_stamp;
            scene.next_stamp += 1;
            let range = first as u64..(first + count) as u64;
            let data: Vec<u8> = range.flat_map(|block| content(block, stamp)).collect();
            assert_eq!(scene.guest.write(sector(first as u64), &data), OK);
            scene.stamps[first..first + count].fill(stamp);
        }
        scene.verify();
    }
    assert!(scene.disk(2).objects <= before, "a drain goes on");
    scene.wait_until("a drained disk", |disks| disks[1].objects == 0);
    scene.verify();
}

/// Starts the daemon without disk `away` and says where the disk was put.
fn start_without(scene: &mut Scene, away: u32) -> PathBuf {
    let folder = std::mem::replace(&mut scene.folder, Folder::fast());
    let (from, to) = (device(&folder, away), folder.path("away"));
    let daemon = std::mem::replace(&mut scene.daemon, Daemon::start(&scene.folder));
    assert_eq!(daemon.stop(), Some(0));
    std::fs::rename(&from, &to).unwrap();
    scene.daemon = Daemon::start(&folder);
    scene.folder = folder;
    let name = format!("disk-{away}");
    wait_for("a degraded pool", || {
        let fault = scene.daemon.pools()[0].fault.clone();
        fault.filter(|fault| fault.contains("degraded") && fault.contains(&name))
    });
    to
}

/// What the daemon says of the volume while the disk with its header is away.
fn hears_of_missing_headers(scene: &Scene, away: u32) -> bool {
    let name = format!("on disk-{away}, which is missing");
    // The socket is there before the pool is opened.
    let answer = wait_for("the pool", || {
        let answer = scene.daemon.call(Verb::Volumes { pool: POOL });
        let is_early = answer.as_ref().is_err_and(|refusal| refusal.code == "pool-missing");
        (!is_early).then_some(answer)
    });
    let refused = match answer {
        Ok(Answer::Volumes(volumes)) => {
            assert_eq!(volumes.len(), 1, "a volume is forgotten without a word");
            return false;
        }
        other => other.unwrap_err(),
    };
    assert!(refused.code == "disk-out" && refused.text.contains(&name), "{refused:?}");
    // A volume that is not known is not said to be gone, nor made a second time.
    let delete = Verb::VolumeDelete { pool: POOL, volume: VOLUME, wipe: false };
    assert_eq!(scene.daemon.call(delete).unwrap_err().code, "disk-out");
    assert_eq!(scene.daemon.create(VOLUME, MIB).unwrap_err().code, "disk-out");
    let fault = wait_for("the reason at the attachment", || {
        let Ok(Answer::Status(status)) = scene.daemon.call(Verb::Status) else { panic!() };
        status.attachments[0].fault.clone()
    });
    assert!(fault.contains(&name), "{fault}");
    true
}

#[test]
fn a_missing_disk_is_named_and_what_is_on_it_refused_until_it_comes_back() {
    let mut scene = Scene::new(3, 1, 3);
    scene.fill();
    // Which of them has the header is the placement's to decide, so each is away once.
    let mut had_header = 0;
    for away in 1..=3 {
        scene.guest.disconnect();
        let to = start_without(&mut scene, away);
        let from = device(&scene.folder, away);
        let disk = scene.disk(away);
        assert!(disk.state == DiskState::Missing && disk.reason.is_some(), "{disk:?}");
        had_header += u32::from(hears_of_missing_headers(&scene, away));
        std::fs::rename(&to, &from).unwrap();
        wait_for("the disk", || (scene.disk(away).state == DiskState::In).then_some(()));
        let socket = scene.folder.path("blk.sock");
        wait_for("the socket", || socket.exists().then_some(()));
        scene.guest.connect(&socket);
        scene.verify();
        assert_eq!(scene.daemon.pools()[0].fault, None);
    }
    assert_eq!(had_header, 1, "one disk has the headers");
}

/// A file system with little room, so that writes to a sparse file in it fail.
struct SmallTmpfs(PathBuf);

impl SmallTmpfs {
    fn mount(path: PathBuf) -> Option<Self> {
        std::fs::create_dir(&path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=12m", "tmpfs"]).arg(&path);
        mount.status().is_ok_and(|status| status.success()).then_some(Self(path))
    }
}

impl Drop for SmallTmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_disk_that_fails_writes_is_out_with_its_reason_and_the_others_go_on() {
    failing_disk(1);
}

#[test]
fn a_disk_of_another_worker_that_fails_writes_is_out_with_its_reason() {
    failing_disk(2);
}

fn failing_disk(workers: usize) {
    let folder = Folder::fast();
    let Some(small) = SmallTmpfs::mount(folder.path("small")) else {
        println!("skipped: no right to mount a tmpfs");
        return;
    };
    let daemon = Daemon::start(&folder);
    let disk =
        |number, device| PoolDisk { id: DiskId(number), device, is_draining: false, worker: None };
    let disks = [disk(1, device(&folder, 1)), disk(2, small.0.join("disk-2"))];
    for disk in &disks {
        format(&daemon, disk);
    }
    daemon.apply(of(1, workers, &disks, &[]));
    daemon.create(VOLUME, VOLUME_SIZE).unwrap();
    let socket = folder.path("blk.sock");
    daemon.apply(of(2, workers, &disks, &[served(workers, &socket)]));
    let mut guest = Guest::boot(&socket, 1);
    let step = 64 * BLOCK;
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for at in (0..BLOCKS).step_by(64) {
        let is_good = guest.write(sector(at), &bytes(at, step)) == OK;
        if is_good { good.push(at) } else { bad.push(at) }
    }
    assert!(!bad.is_empty(), "the small disk had room");
    let Ok(Answer::Disks(statuses)) = daemon.call(Verb::Disks { pool: POOL }) else { panic!() };
    assert_eq!(statuses[0].state, DiskState::In);
    assert_eq!(statuses[1].state, DiskState::Failed);
    let reason = statuses[1].reason.clone().unwrap();
    assert!(reason.contains("errno 28"), "{reason}");
    let fault = daemon.pools()[0].fault.clone().unwrap();
    assert!(fault.contains("degraded") && fault.contains("disk-2"), "{fault}");
    // Writes after the failure that went well are on the other disk; nothing answered is lost.
    assert!(good.iter().any(|at| at > &bad[0]), "the other disk goes on");
    for at in good {
        assert!(guest.read(sector(at), step) == bytes(at, step), "block {at}");
    }
    guest.flush();
    let other = VolumeId(8);
    drop(guest);
    // Whatever happens to this one, the process lives and answers.
    let _ = daemon.create(other, MIB);
    assert_eq!(daemon.pools().len(), 1);
    assert_eq!(daemon.stop(), Some(0));
}
