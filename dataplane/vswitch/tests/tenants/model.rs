// SPDX-License-Identifier: Apache-2.0
//! Where a datagram goes and who may send it, said slowly: lists that are searched from end to
//! end, and one record for every connection.

use super::world::*;
use plinth_ids::{GroupId, MacAddress, Vni};
use plinth_switch_api::{
    Direction, GuestPort, NextHop, Remote, Rule, RulePeer, RuleVerdict, SwitchConfig,
};
use plinth_vswitch::DropReason;
use plinth_wire::{PROTOCOL_UDP, checksum};
use std::net::IpAddr;

/// Where packets come in or go out: a tenant's NIC here, or his tunnel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Place {
    Nic(usize, usize),
    Tunnel(usize),
}

impl Place {
    const fn tenant(self) -> usize {
        match self {
            Self::Nic(tenant, _) | Self::Tunnel(tenant) => tenant,
        }
    }
}

/// The way of a packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    pub(crate) to: Place,
    /// Of the router that forwards it, and of whoever it is for.
    routed: Option<(MacAddress, MacAddress)>,
    by_vm: bool,
}

impl Way {
    /// The frame as it arrives.
    pub(crate) fn arrives(&self, mut frame: Vec<u8>) -> Vec<u8> {
        let Some((router, owner)) = self.routed else { return frame };
        frame[..6].copy_from_slice(&owner.0);
        frame[6..12].copy_from_slice(&router.0);
        if frame[12..14] == [8, 0] {
            frame[22] -= 1;
            frame[24..26].fill(0);
            let sum = checksum::checksum(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        } else {
            frame[21] -= 1;
        }
        frame
    }

    pub(crate) fn name(&self, from: Place) -> &'static str {
        match (from, self.to) {
            (Place::Tunnel(_), _) => "in by a tunnel",
            _ if self.by_vm => "by a routing VM",
            (Place::Nic(from, _), Place::Tunnel(to)) if from != to => "to a peer's tunnel",
            (Place::Nic(from, _), Place::Nic(to, _)) if from != to => "to a peer",
            (_, Place::Tunnel(_)) => "out by a tunnel",
            _ => "to a neighbor",
        }
    }
}

/// How packets of one direction come in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Coming {
    place: Place,
    ends: (IpAddr, IpAddr),
    ports: (u16, u16),
}

impl Coming {
    /// What answers it, coming in somewhere.
    const fn answer(&self, place: Place) -> Self {
        let (ends, ports) = ((self.ends.1, self.ends.0), (self.ports.1, self.ports.0));
        Self { place, ends, ports }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Connection {
    begun: Coming,
    answers: Coming,
    /// The configuration by which it was allowed.
    epoch: u64,
}

pub(crate) struct Model {
    pub(crate) config: SwitchConfig,
    pub(crate) connections: Vec<Connection>,
}

type Judged<T> = Result<T, DropReason>;

impl Model {
    fn port(&self, place: Place) -> Option<&GuestPort> {
        let Place::Nic(tenant, nic) = place else { return None };
        self.config.ports.iter().find(|port| port.id.0 == port_id(tenant, nic))
    }

    /// Which of a tenant's NICs has an address.
    fn owner(&self, tenant: usize, of: IpAddr) -> Option<usize> {
        (1..=self.nics(tenant)).find(|&nic| address(tenant, nic, of.is_ipv6()) == of)
    }

    fn remote(&self, tenant: usize) -> Option<&Remote> {
        self.config.remotes.iter().find(|remote| remote.vni.get() == segment(tenant))
    }

    /// The last one may have gone.
    fn nics(&self, tenant: usize) -> usize {
        if self.remote(tenant).is_some() { NICS } else { NICS - 1 }
    }

    fn place(tenant: usize, nic: usize) -> Place {
        if nic == NICS { Place::Tunnel(tenant) } else { Place::Nic(tenant, nic) }
    }

    /// Somebody who may answer from an address, and his MAC.
    pub(crate) fn answerer(&self, of: IpAddr) -> Option<(Place, MacAddress)> {
        let tenant = (0..TENANTS).find(|&tenant| self.owner(tenant, of).is_some())?;
        let nic = self.owner(tenant, of)?;
        Some((Self::place(tenant, nic), mac_of(nic)))
    }

    fn check_source(&self, from: Place, mac: MacAddress, source: IpAddr) -> Judged<()> {
        let Place::Nic(_, nic) = from else {
            let remote = self.remote(from.tenant());
            return remote.map(|_| ()).ok_or(DropReason::VtepUnknown);
        };
        let port = self.port(from).unwrap();
        if mac != mac_of(nic) {
            return Err(DropReason::SourceMacSpoofed);
        }
        let is_its = port.addresses.contains(&source)
            || port.allowed.iter().any(|range| range.contains(source));
        if is_its { Ok(()) } else { Err(DropReason::SourceAddressSpoofed) }
    }

    fn tenant_of(vni: Vni) -> usize {
        (0..TENANTS).find(|&tenant| segment(tenant) == vni.get()).unwrap()
    }

    /// The route with the longest prefix, subnets among them: `None` in it is a subnet.
    fn longest(&self, tenant: usize, to: IpAddr) -> Option<Option<NextHop>> {
        let vpc = &self.config.vpcs[tenant];
        let subnets = vpc.subnets.iter().flat_map(|subnet| &subnet.prefixes);
        let subnets = subnets.map(|given| (given.prefix, None));
        let routes = vpc.routes.iter().map(|route| (route.destination, Some(route.next_hop)));
        let fitting = subnets.chain(routes).filter(|(prefix, _)| prefix.contains(to));
        fitting.max_by_key(|(prefix, _)| prefix.length()).map(|(_, hop)| hop)
    }

    /// Which NIC of which tenant the router of `tenant` sends a packet to, and whether a VM routes.
    fn route(&self, tenant: usize, to: IpAddr) -> Judged<(usize, usize, bool)> {
        let owned =
            |tenant, of, reason| self.owner(tenant, of).map(|nic| (tenant, nic)).ok_or(reason);
        if (1..=2).any(|subnet| gateway(tenant, subnet, to.is_ipv6()) == to) {
            return Err(DropReason::RouterUnserved);
        }
        let (tenant, nic, by_vm) = match self.longest(tenant, to) {
            None => return Err(DropReason::RouteUnknown),
            Some(None) => {
                let (tenant, nic) = owned(tenant, to, DropReason::DestinationUnknown)?;
                (tenant, nic, false)
            }
            Some(Some(NextHop::Blackhole)) => return Err(DropReason::RouteBlackhole),
            Some(Some(NextHop::Address(hop))) => {
                let (tenant, nic) = owned(tenant, hop, DropReason::RouteNextHopUnknown)?;
                (tenant, nic, true)
            }
            Some(Some(NextHop::Peer(peer))) => {
                let peer = Self::tenant_of(peer);
                let subnets = self.config.vpcs[peer].subnets.iter();
                let mut prefixes = subnets.flat_map(|subnet| &subnet.prefixes);
                if !prefixes.any(|given| given.prefix.contains(to)) {
                    return Err(DropReason::RouteUnknown);
                }
                let (tenant, nic) = owned(peer, to, DropReason::DestinationUnknown)?;
                (tenant, nic, false)
            }
            Some(Some(NextHop::External)) => unreachable!("there is no outside here"),
        };
        Ok((tenant, nic, by_vm))
    }

    fn way(&self, from: Place, mac: MacAddress, to: IpAddr) -> Judged<Way> {
        let tenant = from.tenant();
        let way = if mac == router_of(tenant) {
            let (to_tenant, nic, by_vm) = self.route(tenant, to)?;
            let routed = Some((router_of(to_tenant), mac_of(nic)));
            Way { to: Self::place(to_tenant, nic), routed, by_vm }
        } else {
            let nic = (1..=self.nics(tenant)).find(|&nic| mac_of(nic) == mac);
            let nic = nic.ok_or(DropReason::DestinationUnknown)?;
            Way { to: Self::place(tenant, nic), routed: None, by_vm: false }
        };
        match (from, way.to) {
            // What came through a tunnel goes into none.
            (Place::Tunnel(_), Place::Tunnel(_)) => Err(DropReason::DestinationUnknown),
            (from, to) if from == to => Err(DropReason::DestinationIsSource),
            _ => Ok(way),
        }
    }

    fn is_a_nics(&self, tenant: usize, mac: MacAddress) -> bool {
        (1..=self.nics(tenant)).any(|nic| mac_of(nic) == mac)
    }

    /// The groups of whoever has an address, here or in the peer that it leads to.
    fn groups_of(&self, tenant: usize, of: IpAddr) -> Vec<GroupId> {
        let (tenant, nic) = match (self.owner(tenant, of), self.longest(tenant, of)) {
            (Some(nic), _) => (tenant, nic),
            (None, Some(Some(NextHop::Peer(peer)))) => {
                let peer = Self::tenant_of(peer);
                match self.owner(peer, of) {
                    Some(nic) => (peer, nic),
                    None => return Vec::new(),
                }
            }
            _ => return Vec::new(),
        };
        match self.port(Self::place(tenant, nic)) {
            Some(port) => port.security_groups.clone().unwrap_or_default(),
            None => self.remote(tenant).unwrap().security_groups.clone(),
        }
    }

    /// The rules of a place, in their order; the first that matches decides.
    fn allows(&self, place: Place, peer: IpAddr, port: u16, direction: Direction) -> bool {
        let groups = self.port(place).and_then(|port| port.security_groups.clone());
        let Some(groups) = groups else { return true };
        let chosen = self.config.security_groups.iter().filter(|group| groups.contains(&group.id));
        let mut rules: Vec<&Rule> = chosen.flat_map(|group| &group.rules).collect();
        let bits = if peer.is_ipv6() { 128 } else { 32 };
        rules.sort_by_key(|rule| {
            let host_bits = match rule.peer {
                RulePeer::Any => bits,
                RulePeer::Prefix(prefix) => bits - prefix.length().min(bits),
                RulePeer::Group(_) => 0,
            };
            let width = rule.ports.map_or(65_536, |(first, last)| u32::from(last - first) + 1);
            (rule.priority, host_bits, width, rule.protocol.number().is_none(), rule.verdict)
        });
        let peer_groups = self.groups_of(place.tenant(), peer);
        let matches = |rule: &&&Rule| {
            rule.direction == direction
                && rule.protocol.number().is_none_or(|number| number == PROTOCOL_UDP)
                && rule.ports.is_none_or(|(first, last)| (first..=last).contains(&port))
                && match rule.peer {
                    RulePeer::Any => true,
                    RulePeer::Prefix(prefix) => prefix.contains(peer),
                    RulePeer::Group(group) => peer_groups.contains(&group),
                }
        };
        rules.iter().find(matches).is_some_and(|rule| rule.verdict == RuleVerdict::Allow)
    }

    fn permits(&self, begun: &Coming, to: Place) -> Judged<()> {
        let port = begun.ports.1;
        let is_allowed = self.allows(begun.place, begun.ends.1, port, Direction::Outbound)
            && self.allows(to, begun.ends.0, port, Direction::Inbound);
        if is_allowed { Ok(()) } else { Err(DropReason::SecurityGroupDenied) }
    }

    pub(crate) fn judge(
        &mut self,
        from: Place,
        macs: (MacAddress, MacAddress),
        ends: (IpAddr, IpAddr),
        ports: (u16, u16),
    ) -> Judged<Way> {
        self.check_source(from, macs.0, ends.0)?;
        let coming = Coming { place: from, ends, ports };
        let is_nobodys =
            macs.1 != router_of(from.tenant()) && !self.is_a_nics(from.tenant(), macs.1);
        if is_nobodys && matches!(from, Place::Nic(..)) {
            // The flow leads nowhere from then on, whatever it did before.
            self.connections.retain(|known| known.begun != coming && known.answers != coming);
        }
        let way = self.way(from, macs.1, ends.1)?;
        let is_filtered = [from, way.to]
            .iter()
            .any(|&place| self.port(place).is_some_and(|port| port.security_groups.is_some()));
        let found = self
            .connections
            .iter()
            .position(|known| known.begun == coming || known.answers == coming);
        let known = found.map(|place| self.connections.swap_remove(place));
        if !is_filtered {
            // Nobody asks, and what was known of it is of no use any more.
            return Ok(way);
        }
        self.connect(known, &coming, &way).map(|()| way)
    }

    /// Where the answers come in to what comes in at a place and goes to another: what goes into
    /// a tunnel is answered to the tenant that it came from.
    fn answered_at(coming: &Coming, way: &Way) -> Place {
        match way.to {
            Place::Tunnel(_) => Place::Tunnel(coming.place.tenant()),
            to => to,
        }
    }

    fn connect(&mut self, known: Option<Connection>, coming: &Coming, way: &Way) -> Judged<()> {
        let at = Self::answered_at(coming, way);
        let is_remote = |place| matches!(place, Place::Tunnel(_));
        let known = known.filter(|known| {
            let opener = known.begun.place;
            // An answer goes to nobody but him who has asked.
            known.begun == *coming || opener == at || is_remote(opener) || is_remote(at)
        });
        let epoch = self.config.epoch.0;
        let next = match known {
            None => Connection { begun: *coming, answers: coming.answer(at), epoch: 0 },
            Some(known) if known.begun == *coming => {
                let answers = coming.answer(at);
                // Another receiver has rules of his own.
                let epoch = if answers == known.answers { known.epoch } else { 0 };
                Connection { answers, epoch, ..known }
            }
            Some(known) => {
                let begun = coming.answer(at);
                let epoch = if begun == known.begun { known.epoch } else { 0 };
                Connection { begun, epoch, ..known }
            }
        };
        if next.epoch != epoch {
            self.permits(&next.begun, self.receiver(&next, coming, way))?;
        }
        self.connections.retain(|other| {
            let keys = [next.begun, next.answers];
            !keys.contains(&other.begun) && !keys.contains(&other.answers)
        });
        self.connections.push(Connection { epoch, ..next });
        Ok(())
    }

    /// Whose rules are asked about what comes in.
    fn receiver(&self, next: &Connection, coming: &Coming, way: &Way) -> Place {
        if next.begun == *coming { way.to } else { coming.place }
    }
}
