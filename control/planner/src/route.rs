// SPDX-License-Identifier: Apache-2.0
//! Routes of VPCs, and what nodes are told of VPCs.

use crate::change::{Change, Record};
use crate::cluster::Cluster;
use crate::names;
use crate::record::{RouteRecord, VpcRecord};
use plinth_api::{Code, HopSpec, Refusal, RouteHop, RouteSpec, RouteView, SubnetSpec, VpcSpec};
use plinth_ids::{MacAddress, Name, Prefix, Vni};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Of one VPC; the switch takes as many.
const ROUTES_MAX: usize = 1000;

/// The MAC of a VPC's gateways, on every node the same.
pub(crate) fn router_mac(vni: Vni) -> MacAddress {
    let [_, a, b, c] = vni.get().to_be_bytes();
    MacAddress([0x02, 0x52, 0, a, b, c])
}

impl Cluster {
    pub fn route_add(
        &self,
        vpc: &Name,
        destination: Prefix,
        next_hop: &RouteHop,
        now: u64,
    ) -> Result<Change, Refusal> {
        let record = names::find(&self.vpcs, "vpc", "VPC", vpc)?;
        let exists = |text: String, remedy: &str| {
            Err(Refusal::new(Code::Exists, text).field("DESTINATION").remedy(remedy))
        };
        if record.routes.iter().any(|route| route.destination == destination) {
            let text = format!("vpc {vpc} has a route to {destination}");
            return exists(text, "remove it first: plinth route remove");
        }
        let mut subnets = self.subnets.values().filter(|subnet| subnet.vpc == record.vni);
        let is_range = |prefix| move |given: &plinth_api::GatewaySpec| given.prefix == prefix;
        if let Some(subnet) =
            subnets.find(|subnet| subnet.prefixes().iter().any(is_range(destination)))
        {
            let text = format!("{destination} is subnet {}", subnet.name);
            return exists(
                text,
                "a subnet is a route by itself; a longer prefix may lead elsewhere",
            );
        }
        if record.routes.len() >= ROUTES_MAX {
            let text = format!("vpc {vpc} has {ROUTES_MAX} routes, which is the limit");
            return Err(Refusal::new(Code::NoRoom, text).field("VPC").remedy("remove one"));
        }
        let next_hop = self.plan_hop(record, destination, next_hop)?;
        let mut record = record.clone();
        record.routes.push(RouteRecord { destination, next_hop, created_at: now });
        Ok(Change::default().put(Record::Vpc(record)))
    }

    fn plan_hop(
        &self,
        vpc: &VpcRecord,
        destination: Prefix,
        next_hop: &RouteHop,
    ) -> Result<HopSpec, Refusal> {
        let refuse = |field: &str, text: String, remedy: String| {
            Err(Refusal::new(Code::Invalid, text).field(field).remedy(remedy))
        };
        match next_hop {
            RouteHop::Blackhole => Ok(HopSpec::Blackhole),
            RouteHop::External if !destination.is_ipv4() => {
                let text = format!("{destination} cannot lead outside: the outside is IPv4");
                refuse("--external", text, "give a range of IPv4".to_owned())
            }
            RouteHop::External => Ok(HopSpec::External),
            RouteHop::Peer(name) => {
                let peer = names::find(&self.vpcs, "vpc", "--peer", name)?;
                if peer.vni == vpc.vni {
                    let text = format!("vpc {name} cannot be its own peer");
                    return refuse("--peer", text, "name another vpc".to_owned());
                }
                Ok(HopSpec::Peer(peer.vni))
            }
            RouteHop::Address(hop) => {
                if hop.is_ipv4() != destination.is_ipv4() {
                    let text = format!("{hop} and {destination} are of two address families");
                    return refuse(
                        "--via",
                        text,
                        "give an address of the destination's".to_owned(),
                    );
                }
                let mut subnets = self.subnets.values().filter(|subnet| subnet.vpc == vpc.vni);
                let Some(subnet) = subnets.find(|subnet| subnet.has_address(*hop)) else {
                    let text = format!("{hop} is in no subnet of vpc {}", vpc.name);
                    let remedy = "give the address of a NIC; `plinth nic list` shows them";
                    return refuse("--via", text, remedy.to_owned());
                };
                if subnet.prefixes().iter().any(|given| given.gateway == *hop) {
                    let text = format!("{hop} is the router's own address in {}", subnet.name);
                    let remedy = "give the address of a NIC; `plinth nic list` shows them";
                    return refuse("--via", text, remedy.to_owned());
                }
                Ok(HopSpec::Address(*hop))
            }
        }
    }

    pub fn route_remove(&self, vpc: &Name, destination: Prefix) -> Result<Change, Refusal> {
        let mut record = names::find(&self.vpcs, "vpc", "VPC", vpc)?.clone();
        let before = record.routes.len();
        record.routes.retain(|route| route.destination != destination);
        if record.routes.len() == before {
            let text = format!("vpc {vpc} has no route to {destination}");
            return Err(Refusal::new(Code::NotFound, text)
                .field("DESTINATION")
                .remedy(format!("`plinth route list {vpc}` shows what there is")));
        }
        Ok(Change::default().put(Record::Vpc(record)))
    }

    /// Whether the other VPC has a route back: nobody reaches a VPC that has not agreed.
    fn is_mutual(&self, vpc: &VpcRecord, peer: Vni) -> bool {
        let back = HopSpec::Peer(vpc.vni);
        self.vpc(peer).is_some_and(|peer| peer.routes.iter().any(|route| route.next_hop == back))
    }

    /// The routes of one VPC, or of all.
    pub fn route_views(&self, vpc: Option<&Name>) -> Result<Vec<RouteView>, Refusal> {
        if let Some(name) = vpc {
            names::find(&self.vpcs, "vpc", "VPC", name)?;
        }
        let chosen = self.vpcs.values().filter(|one| vpc.is_none_or(|name| one.name == *name));
        Ok(chosen
            .flat_map(|vpc| vpc.routes.iter().map(move |route| self.route_view(vpc, route)))
            .collect())
    }

    pub fn route_view(&self, vpc: &VpcRecord, route: &RouteRecord) -> RouteView {
        let (next_hop, pending) = match route.next_hop {
            HopSpec::Blackhole => (RouteHop::Blackhole, None),
            HopSpec::External => (RouteHop::External, None),
            HopSpec::Address(hop) => {
                let is_there = self.nics().any(|(_, _, nic)| {
                    nic.vpc == vpc.vni && self.nic_addresses(nic).contains(&hop)
                });
                let pending = (!is_there).then(|| "no NIC has the address".to_owned());
                (RouteHop::Address(hop), pending)
            }
            HopSpec::Peer(peer) => {
                let name = self.vpc_name(peer);
                let pending = (!self.is_mutual(vpc, peer))
                    .then(|| format!("vpc {name} has no route to vpc {}", vpc.name));
                (RouteHop::Peer(name), pending)
            }
        };
        RouteView {
            vpc: vpc.name.clone(),
            destination: route.destination,
            next_hop,
            pending,
            created_at: route.created_at,
        }
    }

    /// These VPCs and those that they share routes with.
    pub(crate) fn with_peers(&self, own: &BTreeSet<Vni>) -> BTreeSet<Vni> {
        let mut all = own.clone();
        for vpc in own.iter().filter_map(|&vni| self.vpc(vni)) {
            for route in &vpc.routes {
                match route.next_hop {
                    HopSpec::Peer(peer) if self.is_mutual(vpc, peer) => all.insert(peer),
                    _ => false,
                };
            }
        }
        all
    }

    pub(crate) fn vpc_specs(&self, vnis: &BTreeSet<Vni>) -> Vec<VpcSpec> {
        let chosen = self.vpcs.values().filter(|vpc| vnis.contains(&vpc.vni));
        chosen
            .map(|vpc| VpcSpec {
                vni: vpc.vni,
                name: vpc.name.clone(),
                router_mac: router_mac(vpc.vni),
                subnets: self
                    .subnets
                    .values()
                    .filter(|subnet| subnet.vpc == vpc.vni)
                    .map(|subnet| SubnetSpec {
                        name: subnet.name.clone(),
                        prefixes: subnet.prefixes(),
                        dhcp: subnet.dhcp.clone(),
                    })
                    .collect(),
                routes: vpc.routes.iter().map(|route| self.route_spec(vpc, route, vnis)).collect(),
                dns: Some(vpc.dns_spec()),
                has_metadata: !vpc.is_metadata_off,
                hosts: self.host_specs(vpc.vni),
            })
            .collect()
    }

    /// A route as a switch is told of it. One to a peer that has not agreed is a black hole:
    /// left out, its packets would take a shorter prefix, which was not meant.
    fn route_spec(&self, vpc: &VpcRecord, route: &RouteRecord, vnis: &BTreeSet<Vni>) -> RouteSpec {
        let next_hop = match route.next_hop {
            HopSpec::Peer(peer) if !vnis.contains(&peer) || !self.is_mutual(vpc, peer) => {
                HopSpec::Blackhole
            }
            next_hop => next_hop,
        };
        RouteSpec { destination: route.destination, next_hop }
    }

    /// Every address that a NIC carries.
    pub(crate) fn nic_addresses(&self, nic: &crate::record::Nic) -> Vec<IpAddr> {
        let ipv6 = self.subnets.get(&nic.subnet).and_then(|subnet| subnet.ipv6_of(nic.mac));
        std::iter::once(nic.address.into()).chain(ipv6.map(IpAddr::V6)).collect()
    }
}
