// SPDX-License-Identifier: Apache-2.0
//! Answers to ARP and neighbor discovery, from configuration.
//!
//! Nobody else hears a question: a guest that asks is told by the switch, about ports here and
//! elsewhere; a remote that asks through a tunnel is told about ports here only, because its own
//! switch knows the others. Answers of guests go nowhere, so nobody's table can be poisoned.

use super::guard;
use super::parse::Parsed;
use crate::snapshot::{Destination, Port, Snapshot};
use crate::{DropReason, PortIndex};
use plinth_ids::{MacAddress, Vni};
use plinth_wire::{
    ArpError, ArpOperation, ArpPacket, EthernetHeader, Ipv6Header, ND_ADVERTISEMENT,
    ND_SOLICITATION, NdAdvertisement, NdChecksum, NdSolicitation,
};
use std::net::IpAddr;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asker<'a> {
    Guest { index: PortIndex, port: &'a Port },
    Tunnel { vni: Vni },
}

/// What there is to say.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    Arp([u8; EthernetHeader::LENGTH + plinth_wire::ARP_LENGTH]),
    Nd([u8; NdAdvertisement::FRAME_LENGTH]),
    /// It was an announcement, or about the asker itself: no answer is the answer.
    Silence,
}

impl Asker<'_> {
    const fn vni(&self) -> Vni {
        match self {
            Self::Guest { port, .. } => port.vni,
            Self::Tunnel { vni } => *vni,
        }
    }

    /// Whether the asker may speak of itself so.
    fn check_mac(&self, mac: MacAddress, parsed: &Parsed) -> Result<(), DropReason> {
        match self {
            Self::Guest { port, .. } => guard::check_mac(port, mac),
            Self::Tunnel { .. } if mac == parsed.expected.source() => Ok(()),
            Self::Tunnel { .. } => Err(DropReason::HeaderInvalid),
        }
    }

    fn check_address(&self, address: IpAddr) -> Result<(), DropReason> {
        match self {
            Self::Guest { port, .. } => guard::check_address(port, address),
            Self::Tunnel { .. } => Ok(()),
        }
    }

    /// The MAC of whoever has `target` and of whom this asker is told; `Ok(None)` when it is the
    /// asker. The router of a VPC is at every guest's side, so only guests are told of it.
    fn owner(&self, snapshot: &Snapshot, target: IpAddr) -> Result<Option<MacAddress>, ()> {
        if let Self::Guest { port, .. } = self
            && let Some(vpc) = snapshot.vpc(self.vni())
            && (vpc.is_router_address(target)
                || snapshot.balancers.has(vpc.vni, target)
                || port.answered.is_metadata(target))
        {
            return Ok(Some(vpc.router_mac));
        }
        let owner = snapshot.owner(self.vni(), target).ok_or(())?;
        match (self, owner.destination) {
            (Self::Guest { index, .. }, Destination::Local(at)) if at == *index => Ok(None),
            (Self::Tunnel { .. }, Destination::Remote(_)) => Err(()),
            _ => Ok(Some(owner.mac)),
        }
    }
}

/// Answers an ARP message; `bytes` are the frame's.
pub(crate) fn arp(
    snapshot: &Snapshot,
    asker: Asker<'_>,
    parsed: &Parsed,
    bytes: &[u8],
) -> Result<Answer, DropReason> {
    asker.check_mac(parsed.expected.source(), parsed)?;
    let arp = ArpPacket::parse(&bytes[EthernetHeader::LENGTH..]).map_err(|error| match error {
        ArpError::Truncated => DropReason::Truncated,
        ArpError::Family | ArpError::Operation => DropReason::HeaderInvalid,
    })?;
    asker.check_mac(arp.sender_mac(), parsed)?;
    let (sender, target) = (arp.sender_address(), arp.target_address());
    let is_request = arp.operation() == ArpOperation::Request;
    // A probe for duplicates has no sender (RFC 5227, section 2.1.1).
    if !(is_request && sender.is_unspecified()) {
        asker.check_address(sender.into())?;
    }
    if !is_request || sender == target {
        return Ok(Answer::Silence);
    }
    let owner = asker.owner(snapshot, target.into()).map_err(|()| DropReason::ArpTargetUnknown)?;
    let Some(owner) = owner else { return Ok(Answer::Silence) };
    let reply = ArpPacket::reply((owner, target), (arp.sender_mac(), sender));
    Ok(Answer::Arp(reply.frame(arp.sender_mac())))
}

/// Answers a neighbor discovery message of type `kind`; `bytes` are the frame's.
pub(crate) fn nd(
    snapshot: &Snapshot,
    asker: Asker<'_>,
    parsed: &Parsed,
    kind: u8,
    bytes: &[u8],
    checksum: NdChecksum,
) -> Result<Answer, DropReason> {
    asker.check_mac(parsed.expected.source(), parsed)?;
    let (source, _) = parsed.key.addresses();
    let is_probe = kind == ND_SOLICITATION && source.is_unspecified();
    if !is_probe {
        asker.check_address(source)?;
    }
    match kind {
        ND_SOLICITATION => solicitation(snapshot, asker, parsed, bytes, checksum),
        ND_ADVERTISEMENT => Ok(Answer::Silence),
        _ => Err(DropReason::RouterMessageForbidden),
    }
}

fn solicitation(
    snapshot: &Snapshot,
    asker: Asker<'_>,
    parsed: &Parsed,
    bytes: &[u8],
    checksum: NdChecksum,
) -> Result<Answer, DropReason> {
    let message =
        bytes.get(parsed.upper as usize..parsed.end as usize).ok_or(DropReason::HeadersTooLong)?;
    let packet = &bytes[EthernetHeader::LENGTH..];
    let ip = Ipv6Header::parse(packet, packet.len()).map_err(|_| DropReason::HeaderInvalid)?;
    let question = NdSolicitation::parse(ip.header, message, checksum)
        .map_err(|_| DropReason::HeaderInvalid)?;
    if let Some(mac) = question.source_mac {
        asker.check_mac(mac, parsed)?;
    }
    let target = question.target;
    let owner = asker.owner(snapshot, target.into()).map_err(|()| DropReason::NdTargetUnknown)?;
    let Some(owner) = owner else { return Ok(Answer::Silence) };
    let vpc = snapshot.vpc(asker.vni());
    let advertisement = NdAdvertisement {
        owner,
        target,
        asker: parsed.expected.source(),
        asker_address: question.source,
        is_router: vpc.is_some_and(|vpc| vpc.is_router_address(target.into())),
    };
    Ok(Answer::Nd(advertisement.frame()))
}
