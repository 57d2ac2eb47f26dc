// SPDX-License-Identifier: Apache-2.0
//! VXLAN framing (RFC 7348): the header, and the whole stack of outer headers.

use crate::{ETHERTYPE_IPV4, EthernetHeader, Ipv4Header, PROTOCOL_UDP, UdpHeader, view};
use bytemuck::{Pod, Zeroable};
use plinth_ids::{MacAddress, Vni};
use std::net::Ipv4Addr;

/// The bit that says the VNI field is valid.
const FLAG_VNI: u8 = 0x08;

/// The UDP port that IANA gave to VXLAN.
pub const VXLAN_PORT: u16 = 4789;

/// Source ports are taken from here up, the dynamic range that RFC 7348 section 5 recommends.
pub const VXLAN_SOURCE_PORT_FIRST: u16 = 49_152;

/// What a tunnel adds to an inner frame, in bytes of outer frame: 14 + 20 + 8 + 8. Counted in
/// bytes of IP packet it is the same: the outer Ethernet header goes, the inner one comes.
pub const TUNNEL_OVERHEAD: usize = 50;

/// The same in 16 bits, for the length fields: what stands between an inner frame and the outer
/// UDP header's first byte, and the outer IP header's.
const UDP_OVERHEAD: u16 = 8 + 8;
const IP_OVERHEAD: u16 = 20 + UDP_OVERHEAD;
const _: () = assert!(EthernetHeader::LENGTH + IP_OVERHEAD as usize == TUNNEL_OVERHEAD);

#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct VxlanHeader {
    flags: u8,
    reserved_high: [u8; 3],
    vni: [u8; 3],
    reserved_low: u8,
}

// The wire fixes the size; a field added here must not compile.
const _: () = assert!(size_of::<VxlanHeader>() == VxlanHeader::LENGTH);

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum VxlanError {
    #[error("datagram is shorter than a VXLAN header")]
    Truncated,
    #[error("VNI-valid bit is clear")]
    NoVni,
}

impl VxlanHeader {
    pub const LENGTH: usize = 8;

    pub const fn new(vni: Vni) -> Self {
        let [_, a, b, c] = vni.get().to_be_bytes();
        Self { flags: FLAG_VNI, reserved_high: [0; 3], vni: [a, b, c], reserved_low: 0 }
    }

    /// The header, and the inner frame behind it.
    ///
    /// Reserved bits are not looked at: the RFC has receivers ignore them, and the group-policy
    /// extension sets some.
    #[inline]
    pub fn parse(payload: &[u8]) -> Result<(&Self, &[u8]), VxlanError> {
        let (header, inner) = view::<Self>(payload).ok_or(VxlanError::Truncated)?;
        if header.flags & FLAG_VNI == 0 {
            return Err(VxlanError::NoVni);
        }
        Ok((header, inner))
    }

    #[inline]
    pub fn vni(&self) -> Vni {
        let [a, b, c] = self.vni;
        Vni::new(u32::from_be_bytes([0, a, b, c])).expect("three bytes are 24 bits")
    }
}

/// Everything in front of an inner frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct TunnelHeaders {
    pub ethernet: EthernetHeader,
    pub ip: Ipv4Header,
    pub udp: UdpHeader,
    pub vxlan: VxlanHeader,
}

const _: () = assert!(size_of::<TunnelHeaders>() == TUNNEL_OVERHEAD);

impl TunnelHeaders {
    /// The longest inner frame whose outer packet still has a length in 16 bits.
    pub const INNER_LENGTH_MAX: u16 = u16::MAX - IP_OVERHEAD;

    /// Headers of a tunnel from `source` to `destination` for a segment, around an inner frame of
    /// `inner_length` bytes, at most [`Self::INNER_LENGTH_MAX`]. The UDP checksum is zero, as the
    /// RFC recommends; the packet is not to be fragmented.
    ///
    /// # Panics
    /// If the inner frame is longer.
    pub fn new(
        macs: (MacAddress, MacAddress),
        addresses: (Ipv4Addr, Ipv4Addr),
        vni: Vni,
        source_port: u16,
        inner_length: u16,
    ) -> Self {
        assert!(inner_length <= Self::INNER_LENGTH_MAX, "an inner frame fits its outer packet");
        let (source_mac, destination_mac) = macs;
        let (source, destination) = addresses;
        let udp_length = inner_length + UDP_OVERHEAD;
        let total_length = inner_length + IP_OVERHEAD;
        Self {
            ethernet: EthernetHeader::new(destination_mac, source_mac, ETHERTYPE_IPV4),
            ip: Ipv4Header::new(source, destination, PROTOCOL_UDP, total_length),
            udp: UdpHeader::new(source_port, VXLAN_PORT, udp_length),
            vxlan: VxlanHeader::new(vni),
        }
    }

    /// Writes these headers, made for an inner frame of no bytes, in front of one of
    /// `inner_length`, with another destination MAC, segment and source port. What [`Self::new`]
    /// would give, for less: nothing is summed anew.
    ///
    /// # Panics
    /// If the inner frame is longer than [`Self::INNER_LENGTH_MAX`].
    #[inline]
    pub fn emit(
        &self,
        into: &mut [u8; TUNNEL_OVERHEAD],
        destination_mac: MacAddress,
        vni: Vni,
        source_port: u16,
        inner_length: u16,
    ) {
        assert!(inner_length <= Self::INNER_LENGTH_MAX, "an inner frame fits its outer packet");
        let headers: &mut Self = bytemuck::cast_mut(into);
        *headers = *self;
        headers.ethernet.set_destination(destination_mac);
        headers.ip.set_total_length(inner_length + IP_OVERHEAD);
        headers.udp = UdpHeader::new(source_port, VXLAN_PORT, inner_length + UDP_OVERHEAD);
        headers.vxlan = VxlanHeader::new(vni);
    }

    /// Bytes of these headers.
    pub const LENGTH: usize = TUNNEL_OVERHEAD;

    /// Makes the lengths in front of `frame` those of the frame as it is, for a frame that was cut
    /// out of a longer one behind headers like these.
    ///
    /// # Panics
    /// If the frame is shorter than the headers or longer than an IP packet.
    pub fn set_length(frame: &mut [u8]) {
        let inner = u16::try_from(frame.len() - Self::LENGTH).expect("a frame fits an IP packet");
        let headers = frame.first_chunk_mut::<{ Self::LENGTH }>().expect("the headers are there");
        let headers: &mut Self = bytemuck::cast_mut(headers);
        headers.ip.set_total_length(inner + IP_OVERHEAD);
        let source_port = headers.udp.source_port();
        headers.udp = UdpHeader::new(source_port, VXLAN_PORT, inner + UDP_OVERHEAD);
    }
}
