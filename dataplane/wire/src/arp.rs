// SPDX-License-Identifier: Apache-2.0
//! ARP for IPv4 over Ethernet (RFC 826; probes and announcements: RFC 5227).

use crate::{Be16, ETHERTYPE_ARP, ETHERTYPE_IPV4, EthernetHeader, view};
use bytemuck::{Pod, Zeroable};
use plinth_ids::MacAddress;
use std::net::Ipv4Addr;

const HARDWARE_ETHERNET: u16 = 1;

/// Of an ARP message behind its Ethernet header, in bytes.
pub const ARP_LENGTH: usize = 28;

#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct ArpPacket {
    hardware: Be16,
    protocol: Be16,
    hardware_length: u8,
    protocol_length: u8,
    operation: Be16,
    sender_mac: [u8; 6],
    sender_address: [u8; 4],
    target_mac: [u8; 6],
    target_address: [u8; 4],
}

const _: () = assert!(size_of::<ArpPacket>() == ARP_LENGTH);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ArpOperation {
    Request,
    Reply,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ArpError {
    #[error("packet is shorter than an ARP message")]
    Truncated,
    #[error("ARP message is not for IPv4 over Ethernet")]
    Family,
    #[error("ARP operation is neither request nor reply")]
    Operation,
}

impl ArpPacket {
    pub fn parse(payload: &[u8]) -> Result<&Self, ArpError> {
        let (arp, _) = view::<Self>(payload).ok_or(ArpError::Truncated)?;
        let family = (arp.hardware.get(), arp.protocol.get());
        let lengths = (arp.hardware_length, arp.protocol_length);
        if family != (HARDWARE_ETHERNET, ETHERTYPE_IPV4) || lengths != (6, 4) {
            return Err(ArpError::Family);
        }
        if !matches!(arp.operation.get(), 1 | 2) {
            return Err(ArpError::Operation);
        }
        Ok(arp)
    }

    fn new(
        operation: ArpOperation,
        sender: (MacAddress, Ipv4Addr),
        target: (MacAddress, Ipv4Addr),
    ) -> Self {
        let operation = match operation {
            ArpOperation::Request => 1,
            ArpOperation::Reply => 2,
        };
        Self {
            hardware: Be16::new(HARDWARE_ETHERNET),
            protocol: Be16::new(ETHERTYPE_IPV4),
            hardware_length: 6,
            protocol_length: 4,
            operation: Be16::new(operation),
            sender_mac: sender.0.0,
            sender_address: sender.1.octets(),
            target_mac: target.0.0,
            target_address: target.1.octets(),
        }
    }

    /// Who has `target`? Tell `sender`. A request for the sender's own address is an announcement.
    pub fn request(sender: (MacAddress, Ipv4Addr), target: Ipv4Addr) -> Self {
        Self::new(ArpOperation::Request, sender, (MacAddress([0; 6]), target))
    }

    /// `owner` is the answer to what `asker` wanted to know.
    pub fn reply(owner: (MacAddress, Ipv4Addr), asker: (MacAddress, Ipv4Addr)) -> Self {
        Self::new(ArpOperation::Reply, owner, asker)
    }

    /// The whole frame around this message.
    pub fn frame(&self, destination: MacAddress) -> [u8; EthernetHeader::LENGTH + ARP_LENGTH] {
        let mut frame = [0; EthernetHeader::LENGTH + ARP_LENGTH];
        let header = EthernetHeader::new(destination, self.sender_mac(), ETHERTYPE_ARP);
        let (first, second) = frame.split_at_mut(EthernetHeader::LENGTH);
        first.copy_from_slice(bytemuck::bytes_of(&header));
        second.copy_from_slice(bytemuck::bytes_of(self));
        frame
    }

    pub const fn operation(&self) -> ArpOperation {
        match self.operation.get() {
            1 => ArpOperation::Request,
            _ => ArpOperation::Reply,
        }
    }

    pub const fn sender_mac(&self) -> MacAddress {
        MacAddress(self.sender_mac)
    }

    pub const fn sender_address(&self) -> Ipv4Addr {
        let [a, b, c, d] = self.sender_address;
        Ipv4Addr::new(a, b, c, d)
    }

    pub const fn target_mac(&self) -> MacAddress {
        MacAddress(self.target_mac)
    }

    pub const fn target_address(&self) -> Ipv4Addr {
        let [a, b, c, d] = self.target_address;
        Ipv4Addr::new(a, b, c, d)
    }
}
