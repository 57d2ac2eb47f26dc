// SPDX-License-Identifier: Apache-2.0
//! Whole stories of volumes on a memory disk.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use plinth_disks::memory::{Cache, Cut, MemoryDisk};
use plinth_ids::{PoolId, SnapshotId, VolumeId};
use plinth_store::{FormatOptions, IoBuffer, LayoutLimits, Store, StoreOptions};
use plinth_volume::{
    SnapshotSpec, VolumeCompletion, VolumeHandle, VolumeRefusal, VolumeRequest, VolumeSpec,
    VolumeTag, Volumes,
};
use std::time::Duration;

type Pool = Volumes<Store<MemoryDisk>>;

const MIB: u64 = 1 << 20;
const POOL: PoolId = PoolId(1);

fn format(disk: &mut MemoryDisk) {
    let limits = LayoutLimits { journal_length: 1 << 20, slot_count: 256 };
    let options = FormatOptions { id: [9; 16], limits: Some(limits) };
    Store::format(disk, &options).unwrap();
}

fn start(disk: MemoryDisk) -> Pool {
    let store = Store::mount(disk, StoreOptions::default()).unwrap();
    let mut volumes = Volumes::start(store, POOL);
    settle(&mut volumes);
    volumes
}

fn fresh() -> Pool {
    let mut disk = MemoryDisk::new(64 * MIB);
    format(&mut disk);
    start(disk)
}

fn settle(volumes: &mut Pool) -> Vec<VolumeCompletion> {
    let mut done = Vec::new();
    for _ in 0..1_000_000 {
        volumes.poll(Duration::ZERO, &mut done);
        if volumes.is_idle() {
            return done;
        }
    }
    panic!("the volumes are stuck");
}

fn run(volumes: &mut Pool, request: VolumeRequest) -> Result<Option<IoBuffer>, VolumeRefusal> {
    volumes.submit(VolumeTag(1), request).expect("there is room");
    let mut done = settle(volumes);
    assert_eq!(done.len(), 1, "one request, one end");
    let done = done.pop().unwrap();
    done.result.map(|()| done.buffer)
}

fn spec(volume: u64, size: u64) -> VolumeSpec {
    let name = format!("disk-{volume}").parse().unwrap();
    VolumeSpec { volume: VolumeId(volume), name, size, created_at: 1000 }
}

fn clone_of(source: u64, snapshot: Option<u64>, spec: VolumeSpec) -> VolumeRequest {
    let snapshot = snapshot.map(SnapshotId);
    VolumeRequest::Clone { source: VolumeId(source), snapshot, spec }
}

fn create(volumes: &mut Pool, volume: u64, size: u64) -> VolumeHandle {
    run(volumes, VolumeRequest::Create { spec: spec(volume, size) }).unwrap();
    volumes.attach(VolumeId(volume)).unwrap()
}

fn write(volumes: &mut Pool, volume: VolumeHandle, offset: u64, bytes: &[u8]) {
    let head = usize::try_from(offset % 4096).unwrap();
    let mut buffer = IoBuffer::zeroed((head + bytes.len()).next_multiple_of(4096));
    buffer.as_bytes_mut()[head..head + bytes.len()].copy_from_slice(bytes);
    let length = u32::try_from(bytes.len()).unwrap();
    run(volumes, VolumeRequest::Write { volume, offset, length, buffer }).unwrap();
}

fn read(
    volumes: &mut Pool,
    volume: VolumeHandle,
    offset: u64,
    length: u32,
) -> Result<Vec<u8>, VolumeRefusal> {
    let head = usize::try_from(offset % 4096).unwrap();
    let length_bytes = length as usize;
    let buffer = IoBuffer::zeroed((head + length_bytes).next_multiple_of(4096));
    let buffer = run(volumes, VolumeRequest::Read { volume, offset, length, buffer })?;
    Ok(buffer.expect("a read gives its buffer back").as_bytes()[head..head + length_bytes].to_vec())
}

#[test]
fn a_volume_is_thin_and_crosses_its_objects() {
    let mut volumes = fresh();
    let disk = create(&mut volumes, 7, 400 * MIB);
    assert_eq!(volumes.status(VolumeId(7)).unwrap().written, 0);
    let bytes: Vec<u8> = (0..=250).cycle().take(20_480).collect();
    write(&mut volumes, disk, 4 * MIB - 10_240, &bytes);
    assert_eq!(read(&mut volumes, disk, 4 * MIB - 10_240, 20_480).unwrap(), bytes);
    assert_eq!(read(&mut volumes, disk, 4 * MIB - 512, 1024).unwrap(), bytes[9728..10_752]);
    assert_eq!(read(&mut volumes, disk, 200 * MIB, 512).unwrap(), [0; 512]);
    let status = volumes.status(VolumeId(7)).unwrap();
    assert_eq!((status.written, status.objects, status.size), (2 * 32_768, 2, 400 * MIB));
    volumes.store_mut().check().unwrap();
}

#[test]
fn volumes_and_their_bytes_survive_a_restart() {
    let mut volumes = fresh();
    for volume in 1..=5 {
        let disk = create(&mut volumes, volume, volume * 8 * MIB);
        write(&mut volumes, disk, 4096, &[u8::try_from(volume).unwrap(); 512]);
    }
    let listed = volumes.list();
    let grown = VolumeRequest::Grow { volume: VolumeId(2), size: 64 * MIB, now: 2000 };
    run(&mut volumes, grown).unwrap();
    let mut volumes = start(volumes.stop().unmount());
    let again = volumes.list();
    assert_eq!(again.len(), 5);
    for (before, after) in listed.iter().zip(&again) {
        assert_eq!((&before.name, before.written), (&after.name, after.written));
        let is_grown = after.volume == VolumeId(2);
        let expected = if is_grown { (64 * MIB, 2000) } else { (before.size, 1000) };
        assert_eq!((after.size, after.updated_at), expected);
        let handle = volumes.attach(after.volume).unwrap();
        let byte = u8::try_from(after.volume.0).unwrap();
        assert_eq!(read(&mut volumes, handle, 4096, 512).unwrap(), [byte; 512]);
    }
}

#[test]
fn a_clone_is_equal_and_apart_and_outlives_its_source() {
    let mut volumes = fresh();
    let image = create(&mut volumes, 1, 40 * MIB);
    for object in 0..4_u64 {
        write(&mut volumes, image, object * 8 * MIB, &[u8::try_from(object).unwrap() + 1; 65_536]);
    }
    // The source may be attached: the clone is what it is now.
    let capacity = volumes.store().capacity();
    run(&mut volumes, clone_of(1, None, spec(2, 80 * MIB))).unwrap();
    let cloned = volumes.store().capacity();
    // The clone's id and header, and the record of what it stands on.
    assert_eq!((cloned.used, cloned.objects), (capacity.used, capacity.objects + 3));
    let disk = volumes.attach(VolumeId(2)).unwrap();
    write(&mut volumes, image, 0, &[8; 512]);
    write(&mut volumes, disk, 512, &[9; 512]);
    assert_eq!(read(&mut volumes, image, 0, 1024).unwrap(), [[8; 512], [1; 512]].concat());
    volumes.detach(image).unwrap();
    run(&mut volumes, VolumeRequest::Delete { volume: VolumeId(1), wipe: false }).unwrap();
    assert_eq!(volumes.list().len(), 1, "nobody sees the source any more");
    assert_eq!(volumes.attach(VolumeId(1)), Err(VolumeRefusal::NotFound));
    let bytes = read(&mut volumes, disk, 0, 1536).unwrap();
    assert_eq!(
        (&bytes[..512], &bytes[512..1024], &bytes[1024..]),
        (&[1; 512][..], &[9; 512][..], &[1; 512][..])
    );
    assert_eq!(read(&mut volumes, disk, 24 * MIB, 512).unwrap(), [4; 512]);
    assert_eq!(read(&mut volumes, disk, 79 * MIB, 512).unwrap(), [0; 512]);
    volumes.detach(disk).unwrap();
    run(&mut volumes, VolumeRequest::Delete { volume: VolumeId(2), wipe: false }).unwrap();
    volumes.store_mut().check().unwrap();
    assert_eq!(volumes.store().capacity().used, 0, "the source goes with its last clone");
    assert_eq!(volumes.store().capacity().objects, 0);
}

#[test]
fn zeroes_and_discards_give_space_back() {
    let mut volumes = fresh();
    let disk = create(&mut volumes, 1, 40 * MIB);
    for object in 0..5_u64 {
        write(&mut volumes, disk, object * 4 * MIB, &[7; 1 << 20]);
    }
    // From inside a block in the first object to inside a block in the last one.
    let (offset, length) = (4096 * 3 + 512, 16 * MIB);
    run(&mut volumes, VolumeRequest::Zero { volume: disk, offset, length }).unwrap();
    assert_eq!(
        read(&mut volumes, disk, offset - 512, 1024).unwrap(),
        [[7; 512], [0; 512]].concat()
    );
    let end = offset + length;
    assert_eq!(read(&mut volumes, disk, end - 512, 1024).unwrap(), [[0; 512], [7; 512]].concat());
    let status = volumes.status(VolumeId(1)).unwrap();
    assert_eq!(status.objects, 2, "objects that were zeroed whole are gone");
    let (offset, length) = (16 * MIB + 512, 24 * MIB - 512);
    run(&mut volumes, VolumeRequest::Discard { volume: disk, offset, length }).unwrap();
    assert_eq!(read(&mut volumes, disk, 16 * MIB + 512 * 1024, 512).unwrap(), [0; 512]);
    volumes.store_mut().check().unwrap();
}

#[test]
fn each_refusal_has_its_reason() {
    let mut volumes = fresh();
    let disk = create(&mut volumes, 1, 8 * MIB);
    let mut refused = |request| run(&mut volumes, request).unwrap_err();
    let read = |offset, length, bytes| VolumeRequest::Read {
        volume: disk,
        offset,
        length,
        buffer: IoBuffer::zeroed(bytes),
    };
    assert_eq!(refused(read(8 * MIB - 512, 1024, 4096)), VolumeRefusal::BadRange);
    assert_eq!(refused(read(u64::MAX - 511, 512, 4096)), VolumeRefusal::BadRange);
    assert_eq!(refused(read(100, 512, 4096)), VolumeRefusal::BadRange);
    assert_eq!(refused(read(0, 0, 4096)), VolumeRefusal::BadRange);
    assert_eq!(refused(read(0, 8192, 4096)), VolumeRefusal::ShortBuffer);
    assert_eq!(
        refused(VolumeRequest::Flush { volume: VolumeHandle(99) }),
        VolumeRefusal::BadHandle
    );
    let create = |spec| VolumeRequest::Create { spec };
    assert_eq!(refused(create(spec(1, 9 * MIB))), VolumeRefusal::Exists);
    assert_eq!(refused(create(spec(2, 100))), VolumeRefusal::BadSize);
    let taken = VolumeSpec { name: "disk-1".parse().unwrap(), ..spec(3, MIB) };
    assert_eq!(refused(create(taken)), VolumeRefusal::NameTaken);
    let grow = |volume, size| VolumeRequest::Grow { volume: VolumeId(volume), size, now: 1 };
    assert_eq!(refused(grow(1, MIB)), VolumeRefusal::Shrink);
    assert_eq!(refused(grow(1, 9 * MIB + 1)), VolumeRefusal::BadSize);
    assert_eq!(refused(grow(4, MIB)), VolumeRefusal::NotFound);
    let delete = |volume| VolumeRequest::Delete { volume: VolumeId(volume), wipe: false };
    assert_eq!(refused(delete(1)), VolumeRefusal::Attached);
    assert_eq!(refused(delete(4)), VolumeRefusal::NotFound);
    let smaller = clone_of(1, None, spec(5, MIB));
    volumes.detach(disk).unwrap();
    assert_eq!(run(&mut volumes, smaller).unwrap_err(), VolumeRefusal::Shrink);
    assert_eq!(volumes.detach(disk), Err(VolumeRefusal::BadHandle));
    // Asking again for what is there already is no error.
    run(&mut volumes, VolumeRequest::Create { spec: spec(1, 8 * MIB) }).unwrap();
    let again = volumes.attach(VolumeId(1)).unwrap();
    assert_ne!(again, disk, "a handle is not used again");
}

/// Cuts the power at many moments of a clone or a delete: afterwards the volume is there whole
/// or not at all, and nothing is leaked.
#[test]
fn a_clone_or_delete_that_is_cut_off_leaves_all_or_nothing() {
    let mut outcomes = [0; 2];
    for seed in 0..40_u64 {
        let mut disk = MemoryDisk::new(64 * MIB);
        format(&mut disk);
        let mut volumes = start(disk);
        let image = create(&mut volumes, 1, 40 * MIB);
        for object in 0..10_u64 {
            write(&mut volumes, image, object * 4 * MIB, &[5; 4096]);
        }
        volumes.detach(image).unwrap();
        let mut disk = volumes.stop().unmount();
        disk.restart(Cache::Volatile, seed);
        let mut volumes = start(disk);
        let is_delete = seed % 2 == 0;
        let request = if is_delete {
            VolumeRequest::Delete { volume: VolumeId(1), wipe: seed % 4 == 0 }
        } else {
            clone_of(1, None, spec(2, 40 * MIB))
        };
        volumes.submit(VolumeTag(1), request).unwrap();
        let mut done = Vec::new();
        for _ in 0..seed / 2 {
            volumes.poll(Duration::ZERO, &mut done);
        }
        let is_acknowledged = done.iter().any(|done| done.result.is_ok());
        assert_eq!(is_acknowledged, !done.is_empty(), "{done:?}");
        let mut volumes = start(volumes.store().disk().cut(Cut::Any(seed)));
        let report = volumes.store_mut().check().unwrap();
        let found: Vec<u64> = volumes.list().iter().map(|status| status.volume.0).collect();
        let is_done = if is_delete { found.is_empty() } else { found == [1, 2] };
        assert!(is_done || (found == [1] && !is_acknowledged), "seed {seed}: {found:?}");
        // Id, header and ten objects of data; the clone has no data of its own, and a record.
        let expected = [0, 12, 15][found.len()];
        assert_eq!(report.objects, expected, "seed {seed}");
        for volume in found {
            let handle = volumes.attach(VolumeId(volume)).unwrap();
            for object in 0..10_u64 {
                let bytes = read(&mut volumes, handle, object * 4 * MIB, 4096).unwrap();
                assert_eq!(bytes, [5; 4096], "seed {seed}");
            }
        }
        outcomes[usize::from(is_done)] += 1;
    }
    assert!(outcomes.iter().all(|&count| count > 3), "both outcomes are met: {outcomes:?}");
}

const SECRET: [u8; 8] = *b"secrets.";

/// Sectors of the disk that have the mark.
fn marked(disk: &MemoryDisk) -> usize {
    let mut bytes = vec![0; usize::try_from(64 * MIB).unwrap()];
    disk.peek(0, &mut bytes);
    let is_marked = |sector: &&[u8]| sector.chunks_exact(8).any(|eight| eight == SECRET);
    bytes.chunks_exact(512).filter(is_marked).count()
}

/// A volume of ten objects, some of it overwritten in small pieces.
fn fill(volumes: &mut Volumes<Store<MemoryDisk>>, number: u64) {
    let disk = create(volumes, number, 40 * MIB);
    for object in 0..10_u64 {
        write(volumes, disk, object * 4 * MIB, &SECRET.repeat(16 << 10));
        write(volumes, disk, object * 4 * MIB + 1024, &SECRET.repeat(64));
    }
    volumes.detach(disk).unwrap();
}

#[test]
fn a_wiped_volume_is_gone_from_the_disk_and_its_clone_goes_on() {
    let mut volumes = fresh();
    fill(&mut volumes, 1);
    run(&mut volumes, clone_of(1, None, spec(2, 40 * MIB))).unwrap();
    let wipe = |volume| VolumeRequest::Delete { volume: VolumeId(volume), wipe: true };
    run(&mut volumes, wipe(1)).unwrap();
    assert_eq!(volumes.wipes(), [], "its clone needs it");
    let clone = volumes.attach(VolumeId(2)).unwrap();
    assert_eq!(read(&mut volumes, clone, 4 * MIB, 4096).unwrap(), SECRET.repeat(512));
    write(&mut volumes, clone, 0, &SECRET.repeat(64));
    volumes.detach(clone).unwrap();
    // The clone goes as volumes do; what it stood on is wiped, as was asked, after a restart too.
    let mut volumes = start(volumes.stop().unmount());
    run(&mut volumes, VolumeRequest::Delete { volume: VolumeId(2), wipe: false }).unwrap();
    assert_eq!(volumes.list().len() + volumes.wipes().len(), 0);
    let own = marked(volumes.store().disk());
    assert!(own > 0 && own <= 64 + 64, "the clone's own units, and no more: {own}");
    volumes.store_mut().check().unwrap();
    assert_eq!(volumes.store().capacity().objects, 0);
}

#[test]
fn a_wipe_goes_at_its_rate_is_seen_and_goes_on_after_a_crash() {
    let mut volumes = fresh();
    fill(&mut volumes, 1);
    volumes.set_wipe_rate(Some(5));
    volumes
        .submit(VolumeTag(1), VolumeRequest::Delete { volume: VolumeId(1), wipe: true })
        .unwrap();
    let (mut done, mut now) = (Vec::new(), Duration::from_secs(100));
    let mut live = |volumes: &mut Volumes<Store<MemoryDisk>>, seconds: u64| {
        let end = now + Duration::from_secs(seconds);
        while now < end {
            volumes.poll(now, &mut done);
            now += Duration::from_millis(1);
        }
        done.drain(..).filter(|done| done.result.is_ok()).count()
    };
    assert_eq!(live(&mut volumes, 1), 1, "it is answered at the beginning");
    assert_eq!(volumes.list().len(), 0);
    let [wipe] = volumes.wipes()[..] else { panic!("{:?}", volumes.wipes()) };
    assert_eq!((wipe.volume, wipe.total), (VolumeId(1), 10));
    assert!((4..=6).contains(&wipe.done), "{wipe:?}");
    assert!(volumes.store().capacity().used > 0);
    let disk = volumes.stop().abandon();
    assert!(marked(&disk) > 4 * 64);
    let store = Store::mount(disk, StoreOptions::default()).unwrap();
    let mut volumes = Volumes::start(store, POOL);
    volumes.set_wipe_rate(Some(5));
    live(&mut volumes, 1);
    assert_eq!(volumes.wipes().len(), 1);
    assert!(marked(volumes.store().disk()) > 0);
    live(&mut volumes, 3);
    assert_eq!(volumes.wipes(), []);
    assert_eq!(marked(volumes.store().disk()), 0);
    let capacity = volumes.store().capacity();
    assert_eq!((capacity.used, capacity.objects), (0, 0));
    volumes.store_mut().check().unwrap();
    // Its number and name are free again.
    create(&mut volumes, 1, 8 * MIB);
}

#[test]
fn the_first_write_of_what_a_clone_inherits_is_one_transaction() {
    let mut volumes = fresh();
    let disk = create(&mut volumes, 1, 8 * MIB);
    write(&mut volumes, disk, 0, &[7; 65_536]);
    run(&mut volumes, clone_of(1, None, spec(2, 8 * MIB))).unwrap();
    let clone = volumes.attach(VolumeId(2)).unwrap();
    let spec = SnapshotSpec {
        volume: VolumeId(2),
        snapshot: SnapshotId(9),
        name: "before".parse().unwrap(),
        identity: [1; 16],
        created_at: 3000,
    };
    run(&mut volumes, VolumeRequest::SnapshotCreate { spec }).unwrap();
    let before = volumes.store().counters();
    write(&mut volumes, clone, 5120, &[8; 512]);
    let after = volumes.store().counters();
    assert_eq!(after.changes - before.changes, 1, "head, snapshot's copy and write at once");
    assert_eq!(after.journal_entries - before.journal_entries, 1);
    let mut expected = vec![7; 65_536];
    assert_eq!(read(&mut volumes, disk, 0, 65_536).unwrap(), expected);
    let kept = volumes.attach_snapshot(VolumeId(2), SnapshotId(9)).unwrap();
    assert_eq!(read(&mut volumes, kept, 0, 65_536).unwrap(), expected);
    expected[5120..5632].fill(8);
    assert_eq!(read(&mut volumes, clone, 0, 65_536).unwrap(), expected);
    volumes.store_mut().check().unwrap();
}
