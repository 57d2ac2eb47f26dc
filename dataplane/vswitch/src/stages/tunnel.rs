// SPDX-License-Identifier: Apache-2.0
//! Into the tunnel and out of it (RFC 7348).

use super::underlay::Datagram;
use crate::neighbors::Neighbors;
use crate::snapshot::{Snapshot, TUNNEL_MTU_OVERHEAD, TunnelIndex, UplinkTables};
use crate::{DropReason, Packet};
use plinth_ids::Vni;
use plinth_wire::checksum::RxChecksum;
use plinth_wire::{
    EthernetHeader, TunnelHeaders, UdpHeader, VXLAN_PORT, VXLAN_SOURCE_PORT_FIRST, VxlanError,
    VxlanHeader,
};

/// Whose frame came out of a tunnel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decapsulated {
    pub(crate) vni: Vni,
    /// The way back.
    pub(crate) tunnel: TunnelIndex,
}

/// Takes a datagram's outer headers off `packet`, which is then the inner frame.
pub(crate) fn decapsulate(
    snapshot: &Snapshot,
    packet: &mut Packet,
    datagram: Datagram,
) -> Result<Decapsulated, DropReason> {
    let bytes = packet.head();
    let upper = bytes.get(datagram.upper..).unwrap_or_default();
    let (udp, _) = UdpHeader::parse(upper).map_err(|_| DropReason::Truncated)?;
    if udp.destination_port() != VXLAN_PORT {
        return Err(DropReason::UnderlayProtocolUnsupported);
    }
    // Of a datagram shorter than its packet, the rest is nobody's.
    let end = datagram.upper + usize::from(udp.length());
    let inner = datagram.upper + UdpHeader::LENGTH + VxlanHeader::LENGTH;
    if end > datagram.end || inner + EthernetHeader::LENGTH > end {
        return Err(DropReason::Truncated);
    }
    if udp.checksum() != 0 && packet.offload().udp == RxChecksum::Wrong {
        return Err(DropReason::UnderlayChecksumWrong);
    }
    let payload = &upper[UdpHeader::LENGTH..];
    let (vxlan, _) = VxlanHeader::parse(payload).map_err(|error| match error {
        VxlanError::Truncated => DropReason::Truncated,
        VxlanError::NoVni => DropReason::VxlanInvalid,
    })?;
    let vni = vxlan.vni();
    if !snapshot.has_vni(vni) {
        return Err(DropReason::VniUnknown);
    }
    let tunnel = snapshot.remote_vtep(vni, datagram.source).ok_or(DropReason::VtepUnknown)?;
    packet.truncate(end);
    packet.strip(inner);
    Ok(Decapsulated { vni, tunnel })
}

/// Puts the outer headers in front of `packet`.
pub(crate) fn encapsulate(
    snapshot: &Snapshot,
    uplink: &UplinkTables,
    neighbors: &Neighbors,
    packet: &mut Packet,
    (tunnel, vni, source_port): (TunnelIndex, Vni, u16),
) -> Result<(), DropReason> {
    // Of a packet that is to be cut, every segment gets its own lengths when it is.
    let length = packet.frame_length();
    if length + u32::from(TUNNEL_MTU_OVERHEAD) > uplink.frame_length_max {
        return Err(DropReason::UnderlayMtuExceeded);
    }
    let inner_length = u16::try_from(length)
        .ok()
        .filter(|&length| length <= TunnelHeaders::INNER_LENGTH_MAX)
        .ok_or(DropReason::UnderlayMtuExceeded)?;
    let tunnel = snapshot.tunnel(tunnel);
    let mac = neighbors.mac(tunnel.next_hop).ok_or(DropReason::NextHopUnresolved)?;
    tunnel.headers.emit(packet.push(), mac, vni, source_port, inner_length);
    Ok(())
}

/// Spreads flows over the underlay's paths: the same flow takes the same one.
pub(crate) const fn source_port(hash: u64) -> u16 {
    VXLAN_SOURCE_PORT_FIRST | (hash >> 50) as u16
}

const _: () = assert!(VXLAN_SOURCE_PORT_FIRST == 0b11 << 14, "fourteen low bits are free");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Offload, PortIndex};
    use plinth_ids::{MacAddress, Moment};
    use std::net::Ipv4Addr;

    const HOP: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);

    fn uplink(frame_length_max: u32) -> UplinkTables {
        UplinkTables {
            vtep: Ipv4Addr::new(172, 16, 0, 1),
            mac: MacAddress([2, 0, 0, 0, 0, 1]),
            frame_length_max,
            next_hops: [HOP].into(),
        }
    }

    /// A configuration whose guests exceed the underlay's MTU is refused, so no story reaches
    /// this check; it is what stands in the way when a longer frame comes by another road.
    #[test]
    fn a_frame_longer_than_the_underlay_carries_is_refused() {
        let snapshot = Snapshot::with_tunnel(HOP);
        let mut neighbors = Neighbors::new(1);
        neighbors.install(Moment::ZERO, &[HOP]);
        neighbors.learn(Moment::ZERO, HOP, MacAddress([2, 0, 0, 0, 0, 2]));
        let vni = Vni::new(7).expect("7 is a VNI");
        let encapsulated = |length, frame_length_max| {
            let mut packet = Packet::empty();
            packet.load(PortIndex::UPLINK, length, Offload::default());
            let way = (TunnelIndex(0), vni, VXLAN_SOURCE_PORT_FIRST);
            encapsulate(&snapshot, &uplink(frame_length_max), &neighbors, &mut packet, way)
                .map(|()| packet.output_length())
        };
        assert_eq!(encapsulated(1464, 1514), Ok(1514));
        assert_eq!(encapsulated(1465, 1514), Err(DropReason::UnderlayMtuExceeded));
        assert_eq!(encapsulated(65_499, u32::MAX), Ok(65_549));
        assert_eq!(encapsulated(65_500, u32::MAX), Err(DropReason::UnderlayMtuExceeded));
    }

    #[test]
    fn every_hash_gives_a_dynamic_port() {
        assert_eq!(source_port(0), 49_152);
        assert_eq!(source_port(u64::MAX), 65_535);
    }
}
