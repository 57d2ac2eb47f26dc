// SPDX-License-Identifier: Apache-2.0
//! Ethernet II (IEEE 802.3) and the 802.1Q tag.

use crate::{Be16, view};
use bytemuck::{Pod, Zeroable};
use plinth_ids::MacAddress;

pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_ARP: u16 = 0x0806;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// The customer tag of 802.1Q and the service tag of 802.1ad.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
pub const ETHERTYPE_QINQ: u16 = 0x88a8;

#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct EthernetHeader {
    destination: [u8; 6],
    source: [u8; 6],
    ethertype: Be16,
}

const _: () = assert!(size_of::<EthernetHeader>() == EthernetHeader::LENGTH);

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("frame is shorter than an Ethernet header")]
pub struct EthernetTruncated;

impl EthernetHeader {
    pub const LENGTH: usize = 14;

    pub const fn new(destination: MacAddress, source: MacAddress, ethertype: u16) -> Self {
        Self { destination: destination.0, source: source.0, ethertype: Be16::new(ethertype) }
    }

    /// The header, and what follows it.
    #[inline]
    pub fn parse(frame: &[u8]) -> Result<(&Self, &[u8]), EthernetTruncated> {
        view(frame).ok_or(EthernetTruncated)
    }

    pub const fn destination(&self) -> MacAddress {
        MacAddress(self.destination)
    }

    pub const fn set_destination(&mut self, destination: MacAddress) {
        self.destination = destination.0;
    }

    pub const fn source(&self) -> MacAddress {
        MacAddress(self.source)
    }

    /// Of what follows. Less than 0x600 is the length of an 802.3 frame, which nobody here takes.
    pub const fn ethertype(&self) -> u16 {
        self.ethertype.get()
    }

    pub const fn is_tagged(&self) -> bool {
        matches!(self.ethertype(), ETHERTYPE_VLAN | ETHERTYPE_QINQ)
    }
}

/// What follows [`ETHERTYPE_VLAN`]: priority and id, and the ethertype of what is inside.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct VlanTag {
    control: Be16,
    ethertype: Be16,
}

const _: () = assert!(size_of::<VlanTag>() == 4);

impl VlanTag {
    /// The tag, and what follows it; `payload` is that of an Ethernet header that
    /// [`is_tagged`](EthernetHeader::is_tagged).
    pub fn parse(payload: &[u8]) -> Result<(&Self, &[u8]), EthernetTruncated> {
        view(payload).ok_or(EthernetTruncated)
    }

    /// 1 to 4094; 0 is a priority tag without a VLAN, 4095 is reserved.
    pub const fn id(&self) -> u16 {
        self.control.get() & 0x0fff
    }

    pub const fn ethertype(&self) -> u16 {
        self.ethertype.get()
    }
}
