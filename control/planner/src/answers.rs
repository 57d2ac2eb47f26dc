// SPDX-License-Identifier: Apache-2.0
//! What guests are told by DHCP and DNS.
//!
//! The switches refuse a configuration whole in which this is wrong, so it is refused here first,
//! by what an operator wrote.

use crate::change::{Change, Record};
use crate::cluster::Cluster;
use crate::names;
use crate::record::{State, SubnetRecord, VpcRecord};
use plinth_api::{Code, DhcpSpec, DnsSpec, HostSpec, Refusal};
use plinth_ids::{Name, Vni};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// As the switches have them.
const SERVERS_MAX: usize = 8;
const ROUTES_MAX: usize = 24;
const LEASE_MIN: u32 = 60;
const DOMAIN_MAX: usize = 189;

impl VpcRecord {
    /// The domain of its VMs.
    pub fn zone(&self) -> String {
        format!("{}.internal", self.name)
    }

    pub(crate) fn dns_spec(&self) -> DnsSpec {
        DnsSpec { zone: self.zone(), upstreams: self.upstreams.clone() }
    }
}

impl Cluster {
    /// Who is asked about names that are no VM's of the VPC.
    pub fn vpc_dns(&self, name: &Name, upstreams: Vec<SocketAddr>) -> Result<Change, Refusal> {
        let vpc = names::find(&self.vpcs, "vpc", "NAME", name)?;
        check_count("--upstream", upstreams.len(), SERVERS_MAX)?;
        let wrong = |server: &&SocketAddr| !is_host(server.ip()) || server.port() == 0;
        if let Some(server) = upstreams.iter().find(wrong) {
            return Err(Refusal::new(Code::Invalid, format!("{server} cannot be asked"))
                .field("--upstream")
                .remedy("give the address of a name server, as in 192.0.2.53"));
        }
        Ok(Change::default().put(Record::Vpc(VpcRecord { upstreams, ..vpc.clone() })))
    }

    /// Whether a VPC's guests are told their metadata from now on.
    pub fn vpc_metadata(&self, name: &Name, is_told: bool) -> Result<Change, Refusal> {
        let vpc = names::find(&self.vpcs, "vpc", "NAME", name)?;
        let is_metadata_off = !is_told;
        Ok(Change::default().put(Record::Vpc(VpcRecord { is_metadata_off, ..vpc.clone() })))
    }

    /// What guests of a subnet are told from now on; `None`: nothing.
    pub fn subnet_dhcp(&self, name: &Name, dhcp: Option<DhcpSpec>) -> Result<Change, Refusal> {
        let subnet = names::find(&self.subnets, "subnet", "NAME", name)?;
        if let Some(dhcp) = &dhcp {
            check_dhcp(subnet, dhcp)?;
        }
        Ok(Change::default().put(Record::Subnet(SubnetRecord { dhcp, ..subnet.clone() })))
    }

    /// The names of a VPC's VMs, on whatever node.
    pub(crate) fn host_specs(&self, vni: Vni) -> Vec<HostSpec> {
        let ready = self.vms.values().filter(|vm| vm.state == State::Ready);
        let nics = ready.flat_map(|vm| vm.nics.iter().map(move |nic| (vm, nic)));
        let ours = nics.filter(|(_, nic)| nic.vpc == vni && !nic.is_leaving);
        ours.map(|(vm, nic)| HostSpec { mac: nic.mac, name: vm.name.clone() }).collect()
    }
}

fn check_count(field: &'static str, found: usize, limit: usize) -> Result<(), Refusal> {
    if found <= limit {
        return Ok(());
    }
    Err(Refusal::new(Code::Invalid, format!("{found} are more than the {limit} that are told"))
        .field(field)
        .remedy(format!("give {limit} or fewer")))
}

fn is_host(address: IpAddr) -> bool {
    let is_broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    !(address.is_unspecified() || address.is_multicast() || is_broadcast)
}

fn check_dhcp(subnet: &SubnetRecord, dhcp: &DhcpSpec) -> Result<(), Refusal> {
    let refuse = |field: &'static str, text: String, remedy: &str| {
        Err(Refusal::new(Code::Invalid, text).field(field).remedy(remedy))
    };
    if dhcp.lease_seconds < LEASE_MIN {
        let text = format!("a lease of {} s is too short", dhcp.lease_seconds);
        return refuse("--lease", text, "give 60 seconds or more");
    }
    check_count("--dns", dhcp.dns.len(), SERVERS_MAX)?;
    check_count("--ntp", dhcp.ntp.len(), SERVERS_MAX)?;
    check_count("--route", dhcp.routes.len(), ROUTES_MAX)?;
    if let Some(server) = dhcp.dns.iter().find(|server| !is_host(**server)) {
        return refuse("--dns", format!("{server} is no server's"), "give a unicast address");
    }
    if let Some(server) = dhcp.ntp.iter().find(|server| !is_host(IpAddr::V4(**server))) {
        return refuse("--ntp", format!("{server} is no server's"), "give a unicast address");
    }
    for route in &dhcp.routes {
        if !route.destination.is_ipv4() {
            let text = format!("{} is no range of IPv4", route.destination);
            return refuse("--route", text, "DHCP tells routes of IPv4 only");
        }
        if !subnet.range().contains(route.gateway) {
            let text = format!("{} is no address of subnet {}", route.gateway, subnet.name);
            return refuse("--route", text, "lead it to the gateway or to a VM of the subnet");
        }
    }
    let is_domain = |domain: &String| {
        let mut labels = domain.split('.');
        domain.len() <= DOMAIN_MAX && labels.all(|label| label.parse::<Name>().is_ok())
    };
    match &dhcp.domain {
        Some(domain) if !is_domain(domain) => refuse(
            "--domain",
            format!("{domain:?} is no domain"),
            "use labels of a-z, 0-9 and - with dots between",
        ),
        _ => Ok(()),
    }
}
