// SPDX-License-Identifier: Apache-2.0
//! What a switch refuses to be configured to, each with its own error.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod support;

use plinth_ids::{Epoch, MacAddress, PortId};
use plinth_switch_api::{SwitchConfig, Underlay};
use plinth_vswitch::{ConfigError, Limits, Place, Switch};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;
use support::*;

/// Applies [`two_vpcs`], changed, to a fresh switch.
fn refusal(change: impl FnOnce(&mut SwitchConfig)) -> ConfigError {
    let mut config = two_vpcs();
    change(&mut config);
    let mut switch = Switch::new(limits(), SEED);
    let error = switch.apply(Duration::ZERO, &config).expect_err("it is refused");
    assert_eq!(switch.epoch(), None, "nothing of it is in force");
    error
}

fn underlay(change: impl FnOnce(&mut Underlay)) -> ConfigError {
    refusal(|config| change(config.underlay.as_mut().unwrap()))
}

fn place(id: u32) -> Place {
    Place::Port { id: PortId(id), name: format!("nic-{id}").parse().unwrap() }
}

#[test]
fn the_version_must_be_known() {
    let error = refusal(|config| config.version = 2);
    assert_eq!(error, ConfigError::Version { found: 2 });
}

#[test]
fn an_epoch_goes_forward_and_what_was_in_force_stays() {
    let mut config = two_vpcs();
    config.epoch = Epoch(5);
    let mut rig = Rig::resolved(&config);
    config.epoch = Epoch(4);
    let error = rig.switch.apply(rig.now, &config).unwrap_err();
    assert_eq!(error, ConfigError::EpochBackwards { found: Epoch(4), in_force: Epoch(5) });
    config.epoch = Epoch(5);
    assert_eq!(rig.switch.apply(rig.now, &config), Ok(vec![]), "the same again is harmless");
    config.ports.pop();
    let error = rig.switch.apply(rig.now, &config).unwrap_err();
    assert_eq!(error, ConfigError::EpochReused { epoch: Epoch(5) });
    let frame = frames::udp((mac(1), mac(2)), (v4(1), v4(2)), (1, 2), b"still forwarded");
    assert!(matches!(rig.send(rig.index(3), frame), Outcome::Sent { .. }));
}

#[test]
fn limits_are_kept() {
    let few = |change: &dyn Fn(&mut Limits)| {
        let mut limits = limits();
        change(&mut limits);
        Switch::new(limits, SEED).apply(Duration::ZERO, &two_vpcs()).unwrap_err()
    };
    let ports = few(&|limits| limits.ports = 3);
    assert_eq!(ports, ConfigError::TooMany { what: "ports", found: 4, limit: 3 });
    let remotes = few(&|limits| limits.remotes = 2);
    assert_eq!(remotes, ConfigError::TooMany { what: "remotes", found: 3, limit: 2 });
    let hops = few(&|limits| limits.next_hops = 1);
    assert_eq!(hops, ConfigError::TooMany { what: "next hops", found: 2, limit: 1 });
    let addresses = few(&|limits| limits.addresses_per_nic = 1);
    assert_eq!(addresses, ConfigError::TooManyAddresses { place: place(1), found: 2, limit: 1 });
}

#[test]
fn a_port_is_itself_only() {
    let error = refusal(|config| config.ports[0].id = PortId(0));
    assert_eq!(error, ConfigError::PortIdReserved { name: "nic-1".parse().unwrap() });
    let error = refusal(|config| config.ports[1].id = PortId(1));
    let (first, second) = ("nic-1".parse().unwrap(), "nic-2".parse().unwrap());
    assert_eq!(error, ConfigError::PortIdTwice { id: PortId(1), first, second });
    let error = refusal(|config| config.ports[1].socket = config.ports[0].socket.clone());
    let path = two_vpcs().ports[0].socket.clone();
    assert_eq!(error, ConfigError::SocketTwice { path, first: PortId(1), second: PortId(2) });
}

#[test]
fn a_vpc_has_each_mac_and_address_once() {
    let error = refusal(|config| config.ports[1].mac = mac(1));
    let (first, second) = (place(1), place(2));
    assert_eq!(error, ConfigError::MacTwice { vni: vni(100), mac: mac(1), first, second });
    let error = refusal(|config| config.remotes[1].addresses = addresses(1));
    let (first, second) = (place(1), Place::Remote { index: 1 });
    let address = v4(1).into();
    assert_eq!(error, ConfigError::AddressTwice { vni: vni(100), address, first, second });
    // What another NIC makes of its MAC by itself is taken as well.
    let link_local = IpAddr::V6(plinth_wire::link_local_of(mac(2)));
    let error = refusal(|config| config.ports[0].addresses.push(link_local));
    assert!(matches!(error, ConfigError::AddressTwice { address, .. } if address == link_local));
    // Its own is allowed.
    let mut config = two_vpcs();
    config.ports[1].addresses.push(link_local);
    assert!(Switch::new(limits(), SEED).apply(Duration::ZERO, &config).is_ok());
}

#[test]
fn values_have_their_ranges() {
    let error = refusal(|config| config.remotes[2].vni = vni(0));
    assert_eq!(error, ConfigError::VniZero { place: Place::Remote { index: 2 } });
    for bad in [MacAddress([0; 6]), MacAddress::BROADCAST, MacAddress([1, 0, 0, 0, 0, 1])] {
        let error = refusal(|config| config.ports[0].mac = bad);
        assert_eq!(error, ConfigError::Mac { place: place(1), mac: bad });
    }
    let bad: [IpAddr; 6] = [
        Ipv4Addr::UNSPECIFIED.into(),
        Ipv4Addr::BROADCAST.into(),
        Ipv4Addr::LOCALHOST.into(),
        Ipv4Addr::new(224, 0, 0, 1).into(),
        Ipv6Addr::UNSPECIFIED.into(),
        Ipv6Addr::LOCALHOST.into(),
    ];
    for address in bad {
        let error = refusal(|config| config.ports[0].addresses.push(address));
        assert_eq!(error, ConfigError::Address { place: place(1), address });
    }
    for mtu in [0, 575, 65_001] {
        let error = refusal(|config| config.ports[0].mtu = mtu);
        assert!(matches!(error, ConfigError::Mtu { .. }), "{mtu}: {error}");
    }
    for found in [0, 9] {
        let error = refusal(|config| config.ports[0].queue_pairs = found);
        assert_eq!(error, ConfigError::QueuePairs { place: place(1), found });
    }
}

#[test]
fn a_guest_that_does_not_fit_its_tunnel_is_told_both_remedies() {
    let error = refusal(|config| config.ports[0].mtu = 1451);
    let expected = ConfigError::MtuExceedsUnderlay { place: place(1), mtu: 1451, underlay: 1500 };
    assert_eq!(error, expected);
    assert_eq!(
        error.to_string(),
        "port-1 (nic-1): mtu 1451 does not fit the tunnel: use 1450 or less, or raise the \
         underlay's mtu from 1500 to 1501 or more"
    );
    // Without an underlay there is nothing to fit.
    let mut config = two_vpcs();
    config.underlay = None;
    config.remotes.clear();
    config.ports[0].mtu = 9000;
    assert!(Switch::new(limits(), SEED).apply(Duration::ZERO, &config).is_ok());
}

#[test]
fn the_underlay_must_lead_somewhere() {
    for found in [0, 33] {
        let error = underlay(|underlay| underlay.prefix_length = found);
        assert_eq!(error, ConfigError::PrefixLength { found });
    }
    let error = underlay(|underlay| underlay.mtu = 600);
    assert!(matches!(error, ConfigError::Mtu { place: Place::Underlay, least: 626, .. }));
    let error = underlay(|underlay| underlay.mac = MacAddress::BROADCAST);
    assert!(matches!(error, ConfigError::Mac { place: Place::Underlay, .. }));
    for vtep in [Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST, Ipv4Addr::BROADCAST] {
        let error = underlay(|underlay| underlay.vtep = vtep);
        assert_eq!(error, ConfigError::Vtep { place: Place::Underlay, vtep });
    }
    for gateway in [OUR_VTEP, FAR_VTEP] {
        let error = underlay(|underlay| underlay.gateway = Some(gateway));
        assert_eq!(error, ConfigError::Gateway { gateway, vtep: OUR_VTEP });
    }
}

#[test]
fn a_remote_must_be_reachable_and_elsewhere() {
    let place = Place::Remote { index: 0 };
    let error = refusal(|config| config.underlay = None);
    assert_eq!(error, ConfigError::RemoteWithoutUnderlay { place: place.clone() });
    let error = refusal(|config| config.remotes[0].vtep = OUR_VTEP);
    assert_eq!(error, ConfigError::RemoteIsLocal { place: place.clone(), vtep: OUR_VTEP });
    let error = underlay(|underlay| underlay.gateway = None);
    let far = Place::Remote { index: 1 };
    assert_eq!(error, ConfigError::NoRoute { place: far, vtep: FAR_VTEP });
    let group = Ipv4Addr::new(239, 1, 1, 1);
    let error = refusal(|config| config.remotes[0].vtep = group);
    assert_eq!(error, ConfigError::Vtep { place, vtep: group });
}

#[test]
fn every_refusal_has_a_code_and_a_sentence() {
    let error = refusal(|config| config.remotes[0].vtep = OUR_VTEP);
    assert_eq!(error.code(), "remote-is-local");
    assert_eq!(
        error.to_string(),
        "remotes[0]: vtep 172.16.0.1 is this switch's own: remotes are behind other switches"
    );
    assert_eq!(refusal(|config| config.ports[0].mtu = 0).code(), "mtu");
    assert_eq!(refusal(|config| config.version = 9).code(), "version");
}
