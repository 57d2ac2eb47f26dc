// SPDX-License-Identifier: Apache-2.0
//! What a configuration says about a packet that begins something: where the router sends it, and
//! whether the rules of a port let it begin.
//!
//! Slow path only: a flow asks once, and what it was told is in its entry.

use crate::DropReason;
use crate::security::{GroupSet, Question, Ruling, SecurityTables};
use crate::snapshot::{Owner, Port, Snapshot};
use crate::vpc::{Hop, VpcTables, is_routable};
use plinth_ids::Vni;
use std::net::IpAddr;

/// Where the router sends a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Routed {
    /// To this NIC, in the VPC of `vni`, which is another one through a peering.
    Owner { vni: Vni, owner: Owner },
    /// It is for the router itself.
    Router,
    /// Out of all VPCs.
    External,
}

impl Snapshot {
    /// The router and subnets of a VNI; `None`: it is a flat segment.
    pub(crate) fn vpc(&self, vni: Vni) -> Option<&VpcTables> {
        self.vpcs.get(&vni)
    }

    /// Where the router of `vni` sends a packet to `destination`: the longest prefix decides.
    pub(crate) fn route(&self, vni: Vni, destination: IpAddr) -> Result<Routed, DropReason> {
        let vpc = self.vpc(vni).ok_or(DropReason::RouteUnknown)?;
        if vpc.is_router_address(destination) {
            return Ok(Routed::Router);
        }
        if !is_routable(destination) {
            return Err(DropReason::RouteUnknown);
        }
        let to = |vni, address, reason| {
            let owner = self.owner(vni, address).ok_or(reason)?;
            Ok(Routed::Owner { vni, owner })
        };
        match vpc.hop(destination) {
            None => Err(DropReason::RouteUnknown),
            Some(Hop::Blackhole) => Err(DropReason::RouteBlackhole),
            Some(Hop::External) => Ok(Routed::External),
            Some(Hop::Connected) => to(vni, destination, DropReason::DestinationUnknown),
            Some(Hop::Address(hop)) => to(vni, hop, DropReason::RouteNextHopUnknown),
            // Only the subnets of the peer: nobody gets through it to a third, and no two routes
            // can send a packet round in a circle.
            Some(Hop::Peer(peer)) => {
                let other = self.vpc(peer).ok_or(DropReason::RouteUnknown)?;
                other.subnet_of(destination).ok_or(DropReason::RouteUnknown)?;
                to(peer, destination, DropReason::DestinationUnknown)
            }
        }
    }

    /// The groups of the NIC that has `address` in `vni`, for [`Question::peer_groups`].
    pub(crate) fn groups_of(&self, vni: Vni, address: IpAddr) -> GroupSet {
        self.owner(vni, address).map_or_else(GroupSet::default, |owner| owner.groups)
    }

    /// What the rules of a port say to a new connection, and which one says it.
    pub(crate) fn judge(&self, port: &Port, question: &Question) -> Ruling {
        match port.groups {
            None => Ruling { is_allowed: true, rule: None },
            Some(groups) => self.security.judge(groups, question),
        }
    }

    /// Whether the rules of a port let a connection begin.
    pub(crate) fn permits(&self, port: &Port, question: &Question) -> Result<(), DropReason> {
        if self.judge(port, question).is_allowed {
            Ok(())
        } else {
            Err(DropReason::SecurityGroupDenied)
        }
    }

    /// The security groups, for names.
    pub(crate) fn security(&self) -> &SecurityTables {
        &self.security
    }
}

#[cfg(test)]
mod tests;
