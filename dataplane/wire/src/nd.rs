// SPDX-License-Identifier: Apache-2.0
//! Neighbor discovery (RFC 4861): solicitation in, advertisement out.

use crate::{
    Be16, Be32, ETHERTYPE_IPV6, EthernetHeader, Ipv6Header, PROTOCOL_ICMPV6, pseudo_header_ipv6,
    view,
};
use bytemuck::{Pod, Zeroable};
use plinth_ids::MacAddress;
use std::net::Ipv6Addr;

pub const ND_ROUTER_SOLICITATION: u8 = 133;
pub const ND_ROUTER_ADVERTISEMENT: u8 = 134;
pub const ND_SOLICITATION: u8 = 135;
pub const ND_ADVERTISEMENT: u8 = 136;
pub const ND_REDIRECT: u8 = 137;

/// The hop limit of every ND message, which shows that no router forwarded it.
const HOP_LIMIT: u8 = 255;
const OPTION_SOURCE_LINK_LAYER: u8 = 1;
const OPTION_TARGET_LINK_LAYER: u8 = 2;
const FLAG_ROUTER: u32 = 1 << 31;
const FLAG_SOLICITED: u32 = 1 << 30;
const FLAG_OVERRIDE: u32 = 1 << 29;

/// Solicitation and advertisement look alike: a word of flags and the address in question.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
struct Message {
    kind: u8,
    code: u8,
    checksum: Be16,
    flags: Be32,
    target: [u8; 16],
}

/// The option with a MAC, one unit of eight bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
struct LinkLayerOption {
    kind: u8,
    units: u8,
    mac: [u8; 6],
}

const _: () = assert!(size_of::<Message>() == 24);
const _: () = assert!(size_of::<LinkLayerOption>() == 8);

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NdError {
    #[error("packet is shorter than a neighbor solicitation")]
    Truncated,
    #[error("hop limit of a neighbor solicitation is not 255")]
    HopLimit,
    #[error("neighbor solicitation has a code")]
    Code,
    #[error("neighbor solicitation asks for a multicast address")]
    Target,
    #[error("an option of a neighbor solicitation has no length or runs past it")]
    Option,
    #[error("checksum of a neighbor solicitation is wrong")]
    Checksum,
}

/// A checked question (RFC 4861, section 7.1.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NdSolicitation {
    /// Unspecified in a probe for duplicates.
    pub source: Ipv6Addr,
    pub target: Ipv6Addr,
    /// The source link-layer address option, which the asker uses to tell its own MAC.
    pub source_mac: Option<MacAddress>,
}

/// Whether the checksum of a message is there to be checked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NdChecksum {
    Complete,
    /// The guest left it to the device: the field holds the pseudo header's sum.
    Partial,
}

impl NdSolicitation {
    /// Checks an ICMPv6 message of the kind [`ND_SOLICITATION`]. `message` is all of it.
    pub fn parse(ip: &Ipv6Header, message: &[u8], checksum: NdChecksum) -> Result<Self, NdError> {
        let (header, options) = view::<Message>(message).ok_or(NdError::Truncated)?;
        if ip.hop_limit() != HOP_LIMIT {
            return Err(NdError::HopLimit);
        }
        if header.code != 0 {
            return Err(NdError::Code);
        }
        let target = Ipv6Addr::from_octets(header.target);
        if target.is_multicast() {
            return Err(NdError::Target);
        }
        if checksum == NdChecksum::Complete {
            let length = u32::try_from(message.len()).map_err(|_| NdError::Truncated)?;
            let pseudo = pseudo_header_ipv6(ip.source(), ip.destination(), PROTOCOL_ICMPV6, length);
            if pseudo.with(message).fold() != 0xffff {
                return Err(NdError::Checksum);
            }
        }
        Ok(Self { source: ip.source(), target, source_mac: source_mac(options)? })
    }

    /// The whole frame of a question, as a host sends it to the target's solicited-node group.
    pub fn frame(
        source: (MacAddress, Ipv6Addr),
        target: Ipv6Addr,
    ) -> [u8; NdAdvertisement::FRAME_LENGTH] {
        let (mac, address) = source;
        let group = solicited_node(target);
        let [.., a, b, c, d] = group.octets();
        let headers = (
            EthernetHeader::new(MacAddress([0x33, 0x33, a, b, c, d]), mac, ETHERTYPE_IPV6),
            Ipv6Header::new(address, group, PROTOCOL_ICMPV6, HOP_LIMIT, MESSAGE_LENGTH),
        );
        let message = Message {
            kind: ND_SOLICITATION,
            code: 0,
            checksum: Be16::new(0),
            flags: Be32::new(0),
            target: target.octets(),
        };
        assemble(headers, message, OPTION_SOURCE_LINK_LAYER, mac)
    }
}

/// The first source link-layer address among the options.
fn source_mac(mut options: &[u8]) -> Result<Option<MacAddress>, NdError> {
    let mut found = None;
    while let [kind, units, ..] = *options {
        let length = usize::from(units) * 8;
        let (option, rest) = options.split_at_checked(length).ok_or(NdError::Option)?;
        if length == 0 {
            return Err(NdError::Option);
        }
        if kind == OPTION_SOURCE_LINK_LAYER && found.is_none() {
            let (option, _) = view::<LinkLayerOption>(option).ok_or(NdError::Option)?;
            found = Some(MacAddress(option.mac));
        }
        options = rest;
    }
    if options.is_empty() { Ok(found) } else { Err(NdError::Option) }
}

/// Message and option, in bytes.
const MESSAGE_LENGTH: u16 = 32;

/// An answer: this address is at this MAC.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NdAdvertisement {
    pub owner: MacAddress,
    pub target: Ipv6Addr,
    pub asker: MacAddress,
    /// Unspecified when the asker probes for duplicates: the answer then goes to all nodes.
    pub asker_address: Ipv6Addr,
    /// A host that is told by its router that this is none gives up its routes by it (RFC 4861,
    /// section 7.2.5).
    pub is_router: bool,
}

impl NdAdvertisement {
    pub const FRAME_LENGTH: usize =
        EthernetHeader::LENGTH + Ipv6Header::LENGTH + MESSAGE_LENGTH as usize;

    /// The whole frame. It goes to the asker's MAC even when its IP destination is all nodes,
    /// so that nobody else hears it.
    pub fn frame(&self) -> [u8; Self::FRAME_LENGTH] {
        let is_probe = self.asker_address.is_unspecified();
        let destination =
            if is_probe { Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1) } else { self.asker_address };
        let solicited = if is_probe { 0 } else { FLAG_SOLICITED };
        let router = if self.is_router { FLAG_ROUTER } else { 0 };
        let headers = (
            EthernetHeader::new(self.asker, self.owner, ETHERTYPE_IPV6),
            Ipv6Header::new(self.target, destination, PROTOCOL_ICMPV6, HOP_LIMIT, MESSAGE_LENGTH),
        );
        let message = Message {
            kind: ND_ADVERTISEMENT,
            code: 0,
            checksum: Be16::new(0),
            flags: Be32::new(router | solicited | FLAG_OVERRIDE),
            target: self.target.octets(),
        };
        assemble(headers, message, OPTION_TARGET_LINK_LAYER, self.owner)
    }
}

/// Puts a message with one link-layer option behind its headers and fills in its checksum.
fn assemble(
    (ethernet, ip): (EthernetHeader, Ipv6Header),
    message: Message,
    option: u8,
    mac: MacAddress,
) -> [u8; NdAdvertisement::FRAME_LENGTH] {
    let option = LinkLayerOption { kind: option, units: 1, mac: mac.0 };
    let length = u32::from(MESSAGE_LENGTH);
    let sum = pseudo_header_ipv6(ip.source(), ip.destination(), PROTOCOL_ICMPV6, length)
        .with(bytemuck::bytes_of(&message))
        .with(bytemuck::bytes_of(&option));
    let message = Message { checksum: Be16::new(sum.checksum()), ..message };
    let parts: [&[u8]; 4] = [
        bytemuck::bytes_of(&ethernet),
        bytemuck::bytes_of(&ip),
        bytemuck::bytes_of(&message),
        bytemuck::bytes_of(&option),
    ];
    let mut frame = [0; NdAdvertisement::FRAME_LENGTH];
    let mut at = 0;
    for part in parts {
        frame[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    frame
}

/// The group to which questions about `address` are sent (RFC 4291, section 2.7.1).
pub const fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::from_octets([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}
