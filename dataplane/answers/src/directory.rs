// SPDX-License-Identifier: Apache-2.0
//! One configuration, as the answers need it.

use crate::dns::Zone;
use crate::frame::{Kind, Received};
use crate::settings::Settings;
use crate::{Question, Segment, Service, dhcp4, dhcp6, dns, router};
use plinth_ids::{MacAddress, PortId, Vni};
use plinth_switch_api::{
    GuestPort, METADATA_IPV4, METADATA_IPV6, METADATA_PORT, Subnet, SubnetDhcp, SwitchConfig,
};
use plinth_wire::{DHCP_SERVER_PORT, DHCPV6_SERVER_PORT, ND_ROUTER_SOLICITATION};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Of DNS (RFC 1035, section 4.2).
pub(crate) const DNS_PORT: u16 = 53;

/// What there is to say to a guest's frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Answer {
    /// A whole frame for the guest that asked.
    Reply(Vec<u8>),
    /// A name that is not the VPC's: ask upstream, and make the frame with
    /// [`Question::reply`].
    Forward(Question),
    /// A piece of a conversation: give it to [`crate::Streams`].
    Segment(Segment),
    Silence(Silence),
}

/// Why a guest gets no answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Silence {
    /// No such port, or its subnet gives nothing out.
    NotServed,
    /// The message breaks the rules of its protocol.
    Malformed,
    /// The message speaks for another client than the NIC's guest.
    Foreign,
    /// The message asks for no answer: a release, or a request to another server.
    Nothing,
}

/// A NIC, as far as its guest is told about it.
#[derive(Clone, Debug)]
pub(crate) struct Nic {
    pub(crate) mac: MacAddress,
    pub(crate) mtu: u16,
    pub(crate) host_name: Option<String>,
    /// Of the gateway.
    pub(crate) router_mac: MacAddress,
    pub(crate) ipv4: Option<Lease<Ipv4Addr>>,
    pub(crate) ipv6: Option<Lease<Ipv6Addr>>,
    pub(crate) terms: Terms,
    vni: Vni,
}

/// An address in its subnet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lease<A> {
    pub(crate) address: A,
    pub(crate) gateway: A,
    pub(crate) network: A,
    pub(crate) prefix_length: u8,
}

/// [`SubnetDhcp`] with its defaults filled in.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) dhcp: Option<SubnetDhcp>,
    pub(crate) dns: Vec<IpAddr>,
    pub(crate) domain: Option<String>,
}

/// See the crate's page. Compiled on any thread.
#[derive(Debug, Default)]
pub struct Directory {
    nics: BTreeMap<PortId, Nic>,
    zones: BTreeMap<Vni, Zone>,
    /// VPCs whose guests have metadata.
    metadata: BTreeSet<Vni>,
}

impl Directory {
    /// Of a configuration that the switch has taken: what does not fit together there is
    /// answered with silence here.
    pub fn new(config: &SwitchConfig) -> Self {
        let settings = &Settings::of(&config.answers);
        let mut nics = BTreeMap::new();
        let mut zones = BTreeMap::new();
        for vpc in &config.vpcs {
            let subnets: BTreeMap<_, _> = vpc.subnets.iter().map(|net| (&net.name, net)).collect();
            for port in config.ports.iter().filter(|port| port.vni == vpc.vni) {
                let subnet = port.subnet.as_ref().and_then(|name| subnets.get(name));
                if let Some(subnet) = subnet {
                    let nic = Nic::new(port, subnet, vpc.router_mac, settings);
                    nics.insert(port.id, nic);
                }
            }
            if let Some(dns) = settings.dns.get(&vpc.vni) {
                zones.insert(vpc.vni, Zone::new(vpc, dns, config, settings));
            }
        }
        Self { nics, zones, metadata: config.answers.metadata.iter().copied().collect() }
    }

    /// Answers a whole frame that came from the guest at `port`.
    pub fn answer(&self, port: PortId, frame: &[u8]) -> Answer {
        let Some(nic) = self.nics.get(&port) else { return Answer::Silence(Silence::NotServed) };
        let Some(received) = Received::parse(frame) else {
            return Answer::Silence(Silence::Malformed);
        };
        if received.macs.source != nic.mac {
            return Answer::Silence(Silence::Foreign);
        }
        match received.kind {
            Kind::Udp { destination: DHCP_SERVER_PORT, payload, .. } => {
                said(dhcp4::answer(nic, payload))
            }
            Kind::Udp { destination: DHCPV6_SERVER_PORT, payload, source } => {
                said(dhcp6::answer(nic, (received.source, source), payload))
            }
            Kind::Udp { destination: DNS_PORT, payload, .. } => match self.zones.get(&nic.vni) {
                Some(zone) => dns::answer(zone, &received, payload),
                None => Answer::Silence(Silence::NotServed),
            },
            Kind::Icmpv6 { message: [ND_ROUTER_SOLICITATION, ..], hop_limit } => {
                said(router::answer(nic, &received, hop_limit))
            }
            Kind::Tcp { destination, packet } => {
                let service = self.service(nic.vni, received.destination, destination);
                let segment =
                    service.map(|service| Segment::new(service, nic.mtu, received.macs, packet));
                segment.map_or(Answer::Silence(Silence::NotServed), Answer::Segment)
            }
            _ => Answer::Silence(Silence::NotServed),
        }
    }

    /// What a guest of a VPC has a connection to at an address and port.
    fn service(&self, vni: Vni, address: IpAddr, port: u16) -> Option<Service> {
        let is_metadata = address == METADATA_IPV4 || address == METADATA_IPV6;
        match port {
            METADATA_PORT if is_metadata && self.metadata.contains(&vni) => Some(Service::Metadata),
            DNS_PORT if self.zones.get(&vni)?.is_at(address) => Some(Service::Dns),
            _ => None,
        }
    }

    /// Answers what the guest at `port` asked over a connection of [`Service::Dns`]; a reply is
    /// what is to be said on it.
    pub fn answer_stream(&self, port: PortId, message: &[u8]) -> Answer {
        let zone = self.nics.get(&port).and_then(|nic| self.zones.get(&nic.vni));
        zone.map_or(Answer::Silence(Silence::NotServed), |zone| dns::answer_stream(zone, message))
    }

    /// Whether what was begun with a guest may go on: its NIC is what it was, and the service is
    /// still there for it.
    pub fn still_serves(&self, port: PortId, whose: (Vni, MacAddress), service: Service) -> bool {
        let (vni, _) = whose;
        let is_there = match service {
            Service::Metadata => self.metadata.contains(&vni),
            Service::Dns => self.zones.contains_key(&vni),
        };
        self.nic(port) == Some(whose) && is_there
    }

    /// Of the port whose guest is answered: its VPC and its MAC.
    pub fn nic(&self, port: PortId) -> Option<(Vni, MacAddress)> {
        self.nics.get(&port).map(|nic| (nic.vni, nic.mac))
    }

    /// A router advertisement that nobody asked for, to the guest at `port`; `None` when its
    /// subnet has no IPv6 or gives nothing out.
    pub fn advertisement(&self, port: PortId) -> Option<Vec<u8>> {
        router::unsolicited(self.nics.get(&port)?)
    }

    /// The ports whose guests are told about a router, in order.
    pub fn advertised(&self) -> impl Iterator<Item = PortId> {
        let told = |nic: &Nic| nic.ipv6.is_some() && nic.terms.dhcp.is_some();
        self.nics.iter().filter(move |(_, nic)| told(nic)).map(|(&id, _)| id)
    }
}

fn said(answer: Result<Vec<u8>, Silence>) -> Answer {
    answer.map_or_else(Answer::Silence, Answer::Reply)
}

impl Nic {
    fn new(
        port: &GuestPort,
        subnet: &Subnet,
        router_mac: MacAddress,
        settings: &Settings<'_>,
    ) -> Self {
        let dns = settings.dns.get(&port.vni);
        let dhcp = settings.dhcp.get(&(port.vni, &subnet.name)).copied();
        let host_name = settings.host_names.get(&(port.vni, port.mac));
        let mut ipv4 = None;
        let mut ipv6 = None;
        for &address in &port.addresses {
            let within = subnet.prefixes.iter().find(|range| range.prefix.contains(address));
            let Some(range) = within else { continue };
            let prefix_length = range.prefix.length();
            match (address, range.gateway, range.prefix.network()) {
                (IpAddr::V4(address), IpAddr::V4(gateway), IpAddr::V4(network)) => {
                    ipv4.get_or_insert(Lease { address, gateway, network, prefix_length });
                }
                (IpAddr::V6(address), IpAddr::V6(gateway), IpAddr::V6(network)) => {
                    ipv6.get_or_insert(Lease { address, gateway, network, prefix_length });
                }
                _ => {}
            }
        }
        let gateways = || subnet.prefixes.iter().map(|range| range.gateway);
        let told = dhcp.map_or(&[][..], |dhcp| &dhcp.dns);
        let servers = match dns {
            Some(_) if told.is_empty() => gateways().collect(),
            _ => told.to_vec(),
        };
        let domain = dhcp.and_then(|dhcp| dhcp.domain.clone());
        Self {
            mac: port.mac,
            mtu: port.mtu,
            host_name: host_name.map(|name| name.as_str().to_owned()),
            router_mac,
            ipv4,
            ipv6,
            terms: Terms {
                dhcp: dhcp.cloned(),
                dns: servers,
                domain: domain.or_else(|| dns.map(|dns| dns.zone.clone())),
            },
            vni: port.vni,
        }
    }
}

impl Terms {
    pub(crate) fn dns_ipv4(&self) -> Vec<Ipv4Addr> {
        let ipv4 = |address: &IpAddr| match *address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        };
        self.dns.iter().filter_map(ipv4).collect()
    }

    pub(crate) fn dns_ipv6(&self) -> Vec<Ipv6Addr> {
        let ipv6 = |address: &IpAddr| match *address {
            IpAddr::V6(address) => Some(address),
            IpAddr::V4(_) => None,
        };
        self.dns.iter().filter_map(ipv6).collect()
    }
}
