// SPDX-License-Identifier: Apache-2.0
//! What a spec's outside means for the switch: a pure function.
//!
//! A port is on the switch while its VM has a process, or is to have one. What leads to a port
//! that is not there is left out, because the switch would refuse all of the configuration for it.

use crate::network;
use plinth_api::{
    EipBinding, EipSpec, ForwardProtocol, ForwardSpec, NatMapping, NatSpec, NicSpec, NodeSpec,
    ServesSpec,
};
use plinth_ids::PortId;
use plinth_switch_api as switch;
use std::net::{IpAddr, Ipv4Addr};

/// The outside for these NICs.
pub(crate) fn external(spec: &NodeSpec, nics: &[NicSpec]) -> switch::External {
    if spec.underlay.is_none() {
        return switch::External::NONE;
    }
    let here = Here { spec, nics };
    let lines = spec.external.lines.iter();
    switch::External {
        lines: lines
            .map(|line| switch::Line { name: line.name.clone(), next_hop: line.next_hop })
            .collect(),
        addresses: spec.external.eips.iter().filter_map(|eip| here.address(eip)).collect(),
        gateways: spec.external.gateways.iter().filter_map(|one| here.gateway(one)).collect(),
    }
}

struct Here<'a> {
    spec: &'a NodeSpec,
    nics: &'a [NicSpec],
}

impl Here<'_> {
    /// A NIC here, with its address, whose VPC the spec still has.
    fn nic(&self, port: PortId) -> Option<(&NicSpec, Ipv4Addr)> {
        let nic = self.nics.iter().find(|nic| nic.port == port)?;
        let is_known = self.spec.vpcs.iter().any(|vpc| vpc.vni == nic.vni);
        let address = nic.addresses.iter().find_map(|address| match address.ip {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        });
        is_known.then_some(nic).zip(address)
    }

    fn address(&self, eip: &EipSpec) -> Option<switch::ExternalAddress> {
        let (nic, address) = self.nic(eip.port)?;
        // The port of a VM that is being deleted has the ranges of its last spec.
        let is_allowed = nic.allowed.iter().any(|range| range.contains(eip.address.into()));
        let binding = match eip.binding {
            EipBinding::Translated => switch::Binding::Translated,
            EipBinding::Carried if !is_allowed => return None,
            EipBinding::Carried => switch::Binding::Carried,
        };
        Some(switch::ExternalAddress {
            address: eip.address,
            line: eip.line.clone(),
            vni: nic.vni,
            nic: address,
            binding,
            limits: switch::AddressLimits {
                outbound: network::rate_limit(eip.limits.outbound),
                inbound: network::rate_limit(eip.limits.inbound),
            },
        })
    }

    fn gateway(&self, nat: &NatSpec) -> Option<switch::NatGateway> {
        let vpc = self.spec.vpcs.iter().find(|vpc| vpc.vni == nat.vni)?;
        let serves = match &nat.serves {
            ServesSpec::Vpc => switch::Serves::Vpc,
            ServesSpec::Subnet(name) => {
                vpc.subnets.iter().find(|subnet| subnet.name == *name)?;
                switch::Serves::Subnet(name.clone())
            }
            ServesSpec::Nic(port) => switch::Serves::Nic(self.nic(*port)?.1),
        };
        let forwards = nat.forwards.iter().filter_map(|one| self.forward(one)).collect();
        Some(switch::NatGateway {
            name: nat.name.clone(),
            vni: nat.vni,
            line: nat.line.clone(),
            addresses: nat.addresses.clone(),
            ports_per_nic: nat.ports_per_nic,
            serves,
            mapping: match nat.mapping {
                NatMapping::PerConnection => switch::PortMapping::PerConnection,
                NatMapping::Independent => switch::PortMapping::Independent,
                NatMapping::Open => switch::PortMapping::Open,
            },
            forwards,
        })
    }

    fn forward(&self, forward: &ForwardSpec) -> Option<switch::Forward> {
        Some(switch::Forward {
            address: forward.address,
            protocol: match forward.protocol {
                ForwardProtocol::Tcp => switch::ForwardProtocol::Tcp,
                ForwardProtocol::Udp => switch::ForwardProtocol::Udp,
            },
            ports: forward.ports,
            nic: self.nic(forward.port)?.1,
            nic_port: forward.nic_port,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plinth_api::{
        Address, EipLimits, ExternalSpec, GatewaySpec, LineSpec, NicLimits, NicRate, SubnetSpec,
        Underlay, VpcSpec,
    };
    use plinth_ids::{Epoch, MacAddress, NodeId, Vni};

    fn nic(port: u32) -> NicSpec {
        NicSpec {
            port: PortId(port),
            name: format!("web-{port}-0").parse().unwrap(),
            vni: Vni::new(5).unwrap(),
            mac: MacAddress([2, 0x50, 0, 0, 0, 1]),
            addresses: vec![Address { ip: [10, 0, 0, 5].into(), prefix_length: 24 }],
            gateway: None,
            mtu: 1450,
            subnet: "blue-a".parse().unwrap(),
            groups: None,
            allowed: Vec::new(),
            limits: NicLimits::default(),
        }
    }

    fn blue() -> VpcSpec {
        let gateway =
            GatewaySpec { prefix: "10.0.0.0/24".parse().unwrap(), gateway: [10, 0, 0, 1].into() };
        VpcSpec {
            vni: Vni::new(5).unwrap(),
            name: "blue".parse().unwrap(),
            router_mac: MacAddress([2, 0x52, 0, 0, 0, 5]),
            subnets: vec![SubnetSpec {
                name: "blue-a".parse().unwrap(),
                prefixes: vec![gateway],
                dhcp: None,
            }],
            routes: Vec::new(),
            dns: None,
            has_metadata: true,
            hosts: Vec::new(),
        }
    }

    fn spec() -> NodeSpec {
        let carrier = || "carrier".parse().unwrap();
        let eip = |last, port, binding| EipSpec {
            address: [198, 51, 100, last].into(),
            line: carrier(),
            port: PortId(port),
            binding,
            limits: EipLimits {
                outbound: NicRate { bits_per_second: 8000, ..NicRate::default() },
                ..EipLimits::default()
            },
        };
        let forward = |port, ports| ForwardSpec {
            address: [198, 51, 100, 9].into(),
            protocol: ForwardProtocol::Udp,
            ports,
            port: PortId(port),
            nic_port: 80,
        };
        NodeSpec {
            epoch: Epoch(1),
            node: NodeId(1),
            name: "node-1".parse().unwrap(),
            underlay: Some(Underlay {
                device: "net_null0".to_owned(),
                vtep: [172, 16, 0, 1].into(),
                prefix_length: 24,
                gateway: None,
                mac: MacAddress([2, 0x51, 172, 16, 0, 1]),
                mtu: 1500,
            }),
            pools: Vec::new(),
            balancers: Vec::new(),
            store_cores: Vec::new(),
            vms: Vec::new(),
            remotes: Vec::new(),
            vpcs: vec![blue()],
            groups: Vec::new(),
            external: ExternalSpec {
                lines: vec![LineSpec { name: carrier(), next_hop: [172, 16, 0, 254].into() }],
                eips: vec![
                    eip(1, 1, EipBinding::Translated),
                    eip(2, 2, EipBinding::Translated),
                    eip(3, 1, EipBinding::Carried),
                ],
                gateways: vec![NatSpec {
                    name: "out".parse().unwrap(),
                    vni: Vni::new(5).unwrap(),
                    line: carrier(),
                    addresses: vec![[198, 51, 100, 9].into()],
                    ports_per_nic: 1024,
                    serves: ServesSpec::Subnet("blue-a".parse().unwrap()),
                    mapping: NatMapping::Open,
                    forwards: vec![forward(1, (1, 2)), forward(2, (3, 4))],
                }],
            },
        }
    }

    #[test]
    fn what_leads_to_a_port_that_is_not_here_is_left_out() {
        let found = external(&spec(), &[nic(1)]);
        let [address] = &found.addresses[..] else { panic!("one of three: {found:?}") };
        assert_eq!((address.address.octets()[3], address.nic), (1, [10, 0, 0, 5].into()));
        assert_eq!(address.limits.outbound.bits_per_second, Some(8000));
        assert_eq!(address.limits.inbound, switch::RateLimit::NONE);
        let forwards = &found.gateways[0].forwards;
        assert_eq!((forwards.len(), forwards[0].ports), (1, (1, 2)));
        let carrier = NicSpec { allowed: vec!["198.51.100.3/32".parse().unwrap()], ..nic(1) };
        assert_eq!(external(&spec(), &[carrier]).addresses.len(), 2);
    }

    #[test]
    fn without_its_vpc_or_an_underlay_nothing_is_said_of_the_outside() {
        let gone = NodeSpec { vpcs: Vec::new(), ..spec() };
        let found = external(&gone, &[nic(1)]);
        assert!(found.addresses.is_empty() && found.gateways.is_empty());
        let alone = NodeSpec { underlay: None, ..spec() };
        assert_eq!(external(&alone, &[nic(1)]), switch::External::NONE);
    }
}
