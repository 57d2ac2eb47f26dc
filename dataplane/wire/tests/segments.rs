// SPDX-License-Identifier: Apache-2.0
//! Segments against a slow model that builds each of them from its fields.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "the numbers of these tests are small")]

use plinth_ids::{MacAddress, Vni};
use plinth_wire::{SEGMENTS_MAX, Segmentation, Segments, TUNNEL_OVERHEAD, TunnelHeaders};
use proptest::prelude::*;

/// What a frame is made of, as a person would list it.
#[derive(Clone, Debug)]
struct Model {
    is_ipv6: bool,
    identification: u16,
    sequence: u32,
    flags: u8,
    options: Vec<u8>,
    payload: Vec<u8>,
    has_tunnel: bool,
}

/// RFC 1071 as it is written there.
fn sum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let mut total: u64 = 0;
    for pair in bytes.chunks(2) {
        total += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
    }
    while total > 0xFFFF {
        total = (total & 0xFFFF) + (total >> 16);
    }
    !(total as u16)
}

const SOURCE: [u8; 16] = [0xfd, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
const TARGET: [u8; 16] = [0xfd, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 1, 2, 3, 4, 5];

fn frame(model: &Model) -> Vec<u8> {
    let tcp_length = 20 + model.options.len() + model.payload.len();
    let (ip, addresses) = if model.is_ipv6 {
        let mut ip = vec![0x60, 0, 0, 0];
        ip.extend((tcp_length as u16).to_be_bytes());
        ip.extend([6, 64]);
        ip.extend(SOURCE);
        ip.extend(TARGET);
        (ip, [SOURCE, TARGET].concat())
    } else {
        let mut ip = vec![0x45, 0];
        ip.extend(((20 + tcp_length) as u16).to_be_bytes());
        ip.extend(model.identification.to_be_bytes());
        ip.extend([0x40, 0, 64, 6, 0, 0]);
        ip.extend(&SOURCE[..4]);
        ip.extend(&TARGET[..4]);
        let check = sum(&[&ip]);
        ip[10..12].copy_from_slice(&check.to_be_bytes());
        (ip, [&SOURCE[..4], &TARGET[..4]].concat())
    };
    let mut tcp = vec![0x10, 0x20, 0x30, 0x40];
    tcp.extend(model.sequence.to_be_bytes());
    tcp.extend([0, 0, 0, 7, (((20 + model.options.len()) / 4) << 4) as u8, model.flags]);
    tcp.extend([0x20, 0, 0, 0, 0, 0]);
    tcp.extend(&model.options);
    tcp.extend(&model.payload);
    let check = sum(&[&addresses, &[0, 6], &(tcp_length as u16).to_be_bytes(), &tcp]);
    tcp[16..18].copy_from_slice(&check.to_be_bytes());
    let mut inner = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    inner.extend(if model.is_ipv6 { [0x86, 0xdd] } else { [8, 0] });
    inner.extend(ip);
    inner.extend(tcp);
    if !model.has_tunnel {
        return inner;
    }
    let macs = (MacAddress([2; 6]), MacAddress([4; 6]));
    let ends = ([172, 16, 0, 1].into(), [172, 16, 0, 2].into());
    let vni = Vni::new(77).unwrap();
    let outer = TunnelHeaders::new(macs, ends, vni, 50_000, inner.len() as u16);
    [bytemuck::bytes_of(&outer), &inner].concat()
}

fn plan(model: &Model, size: u16, has_ecn: bool) -> Segmentation {
    let network = 14 + if model.has_tunnel { TUNNEL_OVERHEAD as u16 } else { 0 };
    let transport = network + if model.is_ipv6 { 40 } else { 20 };
    let headers = transport + 20 + model.options.len() as u16;
    Segmentation { size, is_ipv6: model.is_ipv6, has_ecn, network, transport, headers }
}

/// What the segments must be, by the book.
fn expected(model: &Model, size: usize, has_ecn: bool) -> Vec<Vec<u8>> {
    let pieces: Vec<&[u8]> = model.payload.chunks(size).collect();
    let last = pieces.len() - 1;
    let segment = |(nth, piece): (usize, &&[u8])| {
        let mut flags = model.flags;
        if nth != last {
            flags &= !0x09;
        }
        if nth != 0 && has_ecn {
            flags &= !0x80;
        }
        frame(&Model {
            identification: model.identification.wrapping_add(nth as u16),
            sequence: model.sequence.wrapping_add((nth * size) as u32),
            flags,
            payload: piece.to_vec(),
            ..model.clone()
        })
    };
    pieces.iter().enumerate().map(segment).collect()
}

fn cut(whole: &[u8], plan: Segmentation) -> Vec<Vec<u8>> {
    let segments = Segments::new(plan, whole.len()).unwrap();
    let one = |nth| {
        let mut frame = whole[..segments.headers()].to_vec();
        let range = segments.payload(nth);
        frame.extend(&whole[segments.headers()..][range]);
        segments.finish(nth, &mut frame);
        frame
    };
    (0..segments.count()).map(one).collect()
}

fn models() -> impl Strategy<Value = Model> {
    let options = prop::collection::vec(any::<u8>(), 0..=40).prop_map(|mut options| {
        options.truncate(options.len() / 4 * 4);
        options
    });
    let payload = prop::collection::vec(any::<u8>(), 1..5000);
    (any::<(bool, u16, u32, u8, bool)>(), options, payload).prop_map(
        |(fields, options, payload)| {
            let (is_ipv6, identification, sequence, flags, has_tunnel) = fields;
            Model { is_ipv6, identification, sequence, flags, options, payload, has_tunnel }
        },
    )
}

proptest! {
    /// Bytes, lengths, sums, identifications, sequence numbers and flags of every segment.
    #[test]
    fn every_segment_is_that_of_the_model(model in models(), size in 40..3000u16, has_ecn: bool) {
        let whole = frame(&model);
        prop_assert_eq!(
            cut(&whole, plan(&model, size, has_ecn)),
            expected(&model, usize::from(size), has_ecn)
        );
    }

    /// Any plan is refused or can be carried out.
    #[test]
    fn no_plan_makes_the_cutter_panic(
        fields in any::<(u16, bool, bool, u16)>(),
        network in prop::sample::select(vec![0u16, 13, 14, 50, 64, 65]),
        transport in 0..200u16,
        headers in 0..300u16,
        bytes in prop::collection::vec(any::<u8>(), 0..3000),
    ) {
        let (size, is_ipv6, has_ecn, _) = fields;
        let plan = Segmentation { size, is_ipv6, has_ecn, network, transport, headers };
        if let Some(segments) = Segments::new(plan, bytes.len()) {
            prop_assert!(segments.count() <= SEGMENTS_MAX);
            let frames = cut(&bytes, plan);
            let payload: usize = frames.iter().map(|frame| frame.len() - segments.headers()).sum();
            prop_assert_eq!(payload, bytes.len() - usize::from(headers));
        }
    }
}

#[test]
fn a_plan_that_is_none_is_refused() {
    let model = Model {
        is_ipv6: false,
        identification: 1,
        sequence: 1,
        flags: 0x10,
        options: Vec::new(),
        payload: vec![1; 1000],
        has_tunnel: false,
    };
    let good = plan(&model, 100, false);
    let length = frame(&model).len();
    assert_eq!(Segments::new(good, length).unwrap().count(), 10);
    assert!(Segments::new(good, usize::from(good.headers)).is_none(), "no payload");
    for size in [0, 7] {
        assert!(Segments::new(Segmentation { size, ..good }, length).is_none(), "size {size}");
    }
    assert_eq!(Segments::new(Segmentation { size: 8, ..good }, length).unwrap().count(), 125);
    assert!(Segments::new(Segmentation { network: 16, ..good }, length).is_none());
    assert!(Segments::new(Segmentation { is_ipv6: true, ..good }, length).is_none());
    assert!(Segments::new(Segmentation { headers: 53, ..good }, length).is_none());
}
