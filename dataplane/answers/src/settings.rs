// SPDX-License-Identifier: Apache-2.0
//! What guests are to be told beside what the switch's own configuration says of their NICs, in
//! the order in which it is looked up.

use plinth_ids::{MacAddress, Name, Vni};
use plinth_switch_api::{Answers, SubnetDhcp, VpcDns};
use std::collections::BTreeMap;

#[derive(Debug)]
pub(crate) struct Settings<'a> {
    /// A VPC that is not here has no DNS.
    pub(crate) dns: BTreeMap<Vni, &'a VpcDns>,
    /// By VPC and subnet.
    pub(crate) dhcp: BTreeMap<(Vni, &'a Name), &'a SubnetDhcp>,
    pub(crate) host_names: BTreeMap<(Vni, MacAddress), &'a Name>,
}

impl<'a> Settings<'a> {
    pub(crate) fn of(answers: &'a Answers) -> Self {
        let dhcp = answers.dhcp.iter().map(|dhcp| ((dhcp.vni, &dhcp.subnet), dhcp));
        let names = answers.names.iter().map(|host| ((host.vni, host.mac), &host.name));
        Self {
            dns: answers.dns.iter().map(|dns| (dns.vni, dns)).collect(),
            dhcp: dhcp.collect(),
            host_names: names.collect(),
        }
    }
}
