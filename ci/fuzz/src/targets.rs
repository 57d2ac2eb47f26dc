// SPDX-License-Identifier: Apache-2.0
//! The targets, by name: everything of ours that reads bytes of a guest, a peer, a disk or an
//! operator.
//!
//! | target | who sends the bytes | where they are read |
//! |---|---|---|
//! | `ring-walk` | a guest, as ring and memory | `hypervisor-glue/virtio` |
//! | `net-device`, `blk-device` | a guest, as ring and memory | `hypervisor-glue/backends` |
//! | `wire-headers` | a guest or the wire | `dataplane/wire` |
//! | `switch-handed` | the process before | `dataplane/vswitch` |
//! | `switch-guest`, `switch-uplink` | a guest, the wire | `dataplane/vswitch` |
//! | `switch-outside` | a guest or the wire, between a VPC and the outside | `dataplane/vswitch` |
//! | `answers-question`, `answers-stream` | a guest | `dataplane/answers` |
//! | `answers-upstream` | a name server | `dataplane/answers` |
//! | `control-frame` | anyone who reaches the QUIC port | `control/api` |
//! | `volume-delta` | whoever wrote a delta that is imported | `storage-engine/format` |
//! | `store-metadata`, `store-disk`, `store-keys` | a disk that lies | `storage-engine/store` |
//! | `switch-request`, `store-request` | whoever may open the unix socket | the two `-api` crates |

use crate::answers;
use crate::runner::Target;
use crate::streams;
use plinth_api::frame::{self, Message};
use plinth_api::v1;
use plinth_guest_memory::{GuestAddress, OwnMemory};
use plinth_virtio::{DriverQueue, QueueLayout, RingFeatures, Segment};
use std::fmt::Debug;

/// All targets, in the order they run.
#[must_use]
pub fn all() -> Vec<Target> {
    vec![
        Target { name: "ring-walk", run: plinth_virtio::fuzz::walk, seeds: rings },
        Target { name: "net-device", run: plinth_backends::fuzz::net, seeds: devices },
        Target { name: "blk-device", run: plinth_backends::fuzz::blk, seeds: devices },
        Target { name: "wire-headers", run: plinth_wire::fuzz::headers, seeds: packets },
        Target {
            name: "switch-guest",
            run: plinth_vswitch::fuzz::guest_packet,
            seeds: switch_packets,
        },
        Target {
            name: "switch-uplink",
            run: plinth_vswitch::fuzz::uplink_packet,
            seeds: switch_packets,
        },
        Target {
            name: "switch-outside",
            run: plinth_vswitch::fuzz::outside_packet,
            seeds: plinth_vswitch::fuzz::outside_stories,
        },
        Target { name: "answers-question", run: answers::question, seeds: answers::frames },
        Target { name: "answers-stream", run: streams::stream, seeds: streams::conversations },
        Target { name: "answers-upstream", run: answers::upstream, seeds: answers::responses },
        Target {
            name: "switch-handed",
            run: plinth_vswitch::fuzz::handed_connections,
            seeds: plinth_vswitch::fuzz::handed_examples,
        },
        Target { name: "control-frame", run: frame::fuzz_frame, seeds: control_frames },
        Target { name: "store-metadata", run: store_metadata, seeds: store_patches },
        Target { name: "store-disk", run: store_disk, seeds: store_disks },
        Target { name: "volume-delta", run: plinth_format::fuzz_delta, seeds: deltas },
        Target { name: "store-keys", run: store_keys, seeds: key_pages },
        Target { name: "switch-request", run: switch_request, seeds: switch_requests },
        Target { name: "store-request", run: store_request, seeds: store_requests },
    ]
}

/// The delta of the golden file, and one of a whole volume.
fn deltas() -> Vec<Vec<u8>> {
    use plinth_format::{DeltaEnd, DeltaHeader, DeltaKind, DeltaScan};
    let name = "whole".to_owned();
    let end = DeltaEnd { identity: [7; 16], size: 1 << 20, created_at: 1, name };
    let first = DeltaHeader { base: None, end }.emit();
    let mut scan = DeltaScan::new(&first).expect("it was just made");
    let mut whole = first.to_vec();
    for place in 0..4 {
        whole.extend(scan.emit(DeltaKind::Data, (place * 8192, 512), &[3; 512]));
        whole.extend([3; 512]);
    }
    whole.extend(scan.emit_end());
    vec![include_bytes!("../../../storage-engine/format/tests/golden/delta-1.bin").to_vec(), whole]
}

/// A ring of 16 entries with a chain of every kind in it, behind the byte that chooses features.
fn rings() -> Vec<Vec<u8>> {
    (0..4).map(ring).collect()
}

fn ring(choice: u8) -> Vec<u8> {
    let why = "a ring of our own in memory of our own";
    let features = RingFeatures {
        event_index: choice & 1 != 0,
        indirect: choice & 2 != 0,
        ..RingFeatures::default()
    };
    let own = OwnMemory::new(GuestAddress(0), 64 << 10).expect(why);
    let layout = QueueLayout::contiguous(16, GuestAddress(0));
    let mut queue = DriverQueue::new(own.memory.clone(), &layout, features).expect(why);
    let segment = |at, length| Segment { address: GuestAddress(at), length };
    queue.add(&[segment(0x1000, 16)], &[segment(0x1100, 64), segment(0x1200, 1)]).expect(why);
    queue.add(&[segment(0x1400, 100)], &[]).expect(why);
    queue.add(&[], &[segment(0x1800, 200)]).expect(why);
    if features.indirect {
        let table = GuestAddress(0x800);
        queue.add_indirect(table, &[segment(0x1c00, 16)], &[segment(0x1d00, 32)]).expect(why);
    }
    queue.publish();
    let mut image = vec![0; 0x900];
    own.memory.copy_out(GuestAddress(0), &mut image).expect(why);
    image.insert(0, choice);
    image
}

/// Two rings a page apart, each with a request or packet of two segments and a place for its
/// answer, behind the bytes that choose features and the first entry. Memory begins at 1 MiB.
fn devices() -> Vec<Vec<u8>> {
    (0..8).map(device).collect()
}

fn device(choice: u8) -> Vec<u8> {
    let why = "rings of our own in memory of our own";
    let base = 0x10_0000;
    let own = OwnMemory::new(GuestAddress(base), 64 << 10).expect(why);
    let features = RingFeatures { event_index: true, indirect: true, ..RingFeatures::default() };
    let segment = |at: u64, length| Segment { address: GuestAddress(base + at), length };
    for ring in 0..2 {
        let layout = QueueLayout::contiguous(16, GuestAddress(base + 0x1000 * ring));
        let mut queue = DriverQueue::new(own.memory.clone(), &layout, features).expect(why);
        queue.add(&[segment(0x2000, 16)], &[segment(0x3000, 512), segment(0x3800, 1)]).expect(why);
        queue.add(&[segment(0x2000, 16), segment(0x4000, 512)], &[segment(0x3900, 1)]).expect(why);
        queue.add(&[segment(0x2000, 12), segment(0x4000, 300)], &[]).expect(why);
        queue.add(&[], &[segment(0x5000, 1024)]).expect(why);
        queue.publish();
    }
    let kind = u32::from(choice).to_le_bytes();
    own.memory.copy_in(GuestAddress(base + 0x2000), &kind).expect(why);
    let mut image = vec![0; 0x6000];
    own.memory.copy_out(GuestAddress(base), &mut image).expect(why);
    [&[choice, 0][..], &image].concat()
}

/// A store whose metadata was written by somebody else. That it mounts is as good as that it
/// does not; a panic is the finding.
fn store_metadata(data: &[u8]) {
    within_bounds(|| plinth_disks::hostile::mount_patched(data));
}

/// A disk of any bytes at all.
fn store_disk(data: &[u8]) {
    within_bounds(|| plinth_disks::hostile::mount_bytes(data));
}

/// Lying bytes must not have a mount take more memory than the store's size explains.
fn within_bounds(mount: impl FnOnce() -> bool) {
    let before = plinth_rt::allocated_bytes();
    mount();
    let bytes = plinth_rt::allocated_bytes() - before;
    let most = plinth_disks::hostile::MEMORY_MAX;
    assert!(bytes <= most, "a mount allocated {bytes} bytes, more than {most}");
}

/// A tree of keys whose pages are any bytes.
fn store_keys(data: &[u8]) {
    plinth_store::walk_key_pages(data);
}

/// A root with two leaves, and a leaf alone: magic, kind, count, used, then the entries.
fn key_pages() -> Vec<Vec<u8>> {
    let page = |kind: u8, entries: &[&[u8]]| {
        let entries_bytes = entries.concat();
        let (count, used) = (entries.len().to_le_bytes(), entries_bytes.len().to_le_bytes());
        let mut page = b"PLNk".to_vec();
        page.extend([kind, 0, count[0], count[1], used[0], used[1]]);
        page.resize(16, 0);
        page.extend(entries_bytes);
        page.resize(4096, 0);
        page
    };
    let leaf = |name: u8| page(1, &[&[1, 2, 0, name, 7, 7], &[2, 0, 0, name, name]]);
    let root = page(2, &[&[0, 1, 0], &[1, 2, 0, b'k']]);
    vec![leaf(b'a'), [root, leaf(b'a'), leaf(b'k')].concat()]
}

/// Patches of eight bytes for `mount_patched`: page, byte, length, checksum or not, bytes.
fn store_patches() -> Vec<Vec<u8>> {
    let one = |page: u8, byte: u8| vec![page, 0, byte, 0, 3, 1, 0xff, 0x01];
    let mut seeds: Vec<_> = (0..8).map(|page| one(page, page * 16)).collect();
    seeds.push(seeds.concat());
    seeds
}

/// Nothing, and pages that begin as ours do.
fn store_disks() -> Vec<Vec<u8>> {
    let mut page = vec![0; 4096];
    page[..8].copy_from_slice(b"PLNsuper");
    vec![Vec::new(), page.clone(), page.repeat(3)]
}

fn switch_packets() -> Vec<Vec<u8>> {
    let [guest, wire] = plinth_vswitch::fuzz::examples();
    let twice = guest.repeat(2);
    let mut seeds = vec![guest, wire, twice];
    seeds.extend(plinth_vswitch::fuzz::stories());
    seeds
}

/// The same frames from each header on, because a parser of one header starts there.
fn packets() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for frame in plinth_vswitch::fuzz::examples() {
        // Preamble, Ethernet, IPv4, UDP, VXLAN.
        for skip in [8, 8 + 14, 8 + 14 + 20, 8 + 14 + 20 + 8] {
            seeds.push(frame[skip.min(frame.len())..].to_vec());
        }
    }
    seeds
}

fn control_frames() -> Vec<Vec<u8>> {
    fn made<M: Message>(message: &M) -> Vec<u8> {
        frame::encode(message).expect("a small message is below every limit")
    }
    let name = || "node-1".parse().expect("it is a name");
    vec![
        made(&v1::Request::ClusterStatus),
        made(&v1::Request::TokenCreate { lifetime_seconds: 600 }),
        made(&v1::Request::NodeShow(name())),
        made(&v1::Reply { result: Ok(v1::Answer::Done) }),
    ]
}

/// Any line is a request or an error, and what is a request says the same after a round trip.
fn line<T: serde::de::DeserializeOwned + serde::Serialize + PartialEq + Debug>(data: &[u8]) {
    let Ok(request) = serde_json::from_slice::<T>(data) else { return };
    let text = serde_json::to_vec(&request).expect("what was read can be written");
    let again: T = serde_json::from_slice(&text).expect("what was written can be read");
    assert_eq!(again, request);
}

fn switch_request(data: &[u8]) {
    line::<plinth_switch_api::Request>(data);
}

fn store_request(data: &[u8]) {
    line::<plinth_store_api::Request>(data);
}

fn switch_requests() -> Vec<Vec<u8>> {
    let texts = [
        r#"{"id":1,"verb":"drops"}"#,
        r#"{"id":2,"verb":{"flows":{"limit":10}}}"#,
        r#"{"id":3,"verb":{"apply":{"version":1,"epoch":1,"underlay":{"device":"net_af_packet0,iface=e","vtep":"172.16.0.1","prefix_length":24,"gateway":null,"mac":"02:00:00:00:01:01","mtu":1600},"ports":[{"id":1,"name":"vm1","vni":100,"mac":"02:00:00:00:00:01","addresses":["10.0.0.1","fd00::1"],"socket":"/s","mtu":1450,"queue_pairs":1}],"remotes":[{"vni":100,"mac":"02:00:00:00:00:02","addresses":["10.0.0.2"],"vtep":"172.16.0.2"}]}}}"#,
    ];
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn store_requests() -> Vec<Vec<u8>> {
    let texts = [
        r#"{"id":1,"verb":"pools"}"#,
        r#"{"id":2,"verb":{"volume-grow":{"pool":1,"volume":2,"size":4096}}}"#,
        r#"{"id":3,"verb":{"pool-format":{"id":1,"device":"/d","size":1048576,"overwrite":false}}}"#,
        r#"{"id":4,"verb":{"apply":{"version":1,"epoch":1,"pools":[{"id":1,"device":"/d","durability":"flush"}],"attachments":[{"pool":1,"volume":2,"socket":"/s","queues":1,"is_read_only":false}]}}}"#,
        r#"{"id":5,"verb":{"apply":{"version":2,"epoch":2,"workers":[1],"pools":[{"id":1,"disks":[{"id":1,"device":"/d","is_draining":true}],"durability":"flush","class":"performance","scrub":{"light_interval":null,"deep_interval":1,"rate":1},"ladder":{"warn":1,"nearfull":2,"full":3}}],"attachments":[{"pool":1,"volume":2,"socket":"/s","queues":1,"is_read_only":false,"limits":{"iops":1,"iops_burst":2,"bytes_per_second":3,"bytes_burst":4}}]}}}"#,
        r#"{"id":6,"verb":{"snapshot-create":{"pool":1,"volume":2,"snapshot":3,"name":"a"}}}"#,
    ];
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_every_target_takes_its_own_seeds() {
        let targets = all();
        let names: BTreeSet<_> = targets.iter().map(|target| target.name).collect();
        assert_eq!(names.len(), targets.len());
        for target in &targets {
            let seeds = (target.seeds)();
            assert!(!seeds.is_empty(), "{}", target.name);
            seeds.iter().for_each(|seed| (target.run)(seed));
        }
    }

    #[test]
    fn seeds_of_the_management_targets_are_requests() {
        for seed in switch_requests() {
            serde_json::from_slice::<plinth_switch_api::Request>(&seed).unwrap();
        }
        for seed in store_requests() {
            serde_json::from_slice::<plinth_store_api::Request>(&seed).unwrap();
        }
    }
}
