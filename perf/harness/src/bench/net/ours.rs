// SPDX-License-Identifier: Apache-2.0
//! plinth-switchd at the job of a case.

use super::cases::Case;
use super::contender::Job;
use anyhow::{Result, bail, ensure};
use plinth_ids::{GroupId, MacAddress};
use plinth_stage::{Scratch, Switch};
use plinth_switch_api::{
    Answer, Direction, Priority, Rule, RulePeer, RuleProtocol, RuleVerdict, SecurityGroup,
    Underlay, Verb,
};
use std::net::Ipv4Addr;
use std::path::PathBuf;

const VNI: u32 = 100;
const MAC_A: MacAddress = MacAddress([2, 0, 0, 0, 0, 10]);
const MAC_B: MacAddress = MacAddress([2, 0, 0, 0, 0, 11]);
const ADDRESS_A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const ADDRESS_B: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// The defaults of `plinth-perf net --vxlan`.
const VTEP: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);
const REMOTE_VTEP: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);
const WIRE_MAC: MacAddress = MacAddress([2, 0, 0, 0, 1, 1]);

#[derive(Debug)]
pub(super) struct Ours(Switch);

impl Ours {
    /// The switch, and the sockets of ports a and b.
    pub(super) fn start(scratch: &Scratch, case: &Case) -> Result<(Self, [PathBuf; 2])> {
        let mut switch = Switch::start_for_load(scratch, "s", case.table)?;
        let a = switch.add_port(1, VNI, MAC_A, ADDRESS_A);
        let b = match case.job {
            Job::Plain | Job::Groups => switch.add_port(2, VNI, MAC_B, ADDRESS_B),
            Job::Tunnel => {
                let wire = scratch.join("wire.sock");
                switch.add_remote(VNI, MAC_B, ADDRESS_B, REMOTE_VTEP);
                switch.config().underlay = Some(underlay(&wire));
                wire
            }
            Job::Snat => bail!("this switch does not translate addresses yet"),
        };
        if case.job != Job::Plain {
            follow_connections(&mut switch);
        }
        switch.apply()?;
        Ok((Self(switch), [a, b]))
    }

    /// Busy cycles of the worker for a packet that it received, since its start.
    pub(super) fn cycles_a_packet(&self) -> Result<Option<f64>> {
        let Answer::Status(status) = self.0.call(Verb::Status)? else {
            bail!("status was answered with something else");
        };
        ensure!(!status.workers.is_empty(), "the switch has no worker");
        let busy: u64 = status.workers.iter().map(|worker| worker.busy_cycles).sum();
        let packets: u64 = status.workers.iter().map(|worker| worker.packets).sum();
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
        let each = (packets > 0).then(|| busy as f64 / packets as f64);
        Ok(each)
    }
}

/// A wire that the generator is at the other end of, by the driver that testpmd uses.
fn underlay(socket: &std::path::Path) -> Underlay {
    Underlay {
        device: format!("net_vhost0,iface={}", socket.display()),
        vtep: VTEP,
        prefix_length: 24,
        gateway: None,
        mac: WIRE_MAC,
        mtu: 1600,
    }
}

/// Every port is in one group, which lets UDP out to anybody and in from its members.
fn follow_connections(switch: &mut Switch) {
    let group = GroupId(1);
    let rule = |direction, peer| Rule {
        direction,
        priority: Priority::Mid,
        verdict: RuleVerdict::Allow,
        protocol: RuleProtocol::Udp,
        ports: None,
        icmp: None,
        peer,
    };
    let config = switch.config();
    config.security_groups = vec![SecurityGroup {
        id: group,
        name: "measured".parse().expect("a short name of letters"),
        rules: vec![
            rule(Direction::Outbound, RulePeer::Any),
            rule(Direction::Inbound, RulePeer::Group(group)),
        ],
    }];
    for port in &mut config.ports {
        port.security_groups = Some(vec![group]);
    }
    for remote in &mut config.remotes {
        remote.security_groups = vec![group];
    }
}
