// SPDX-License-Identifier: Apache-2.0
//! Tests of real daemons in network namespaces, against the kernel's own stack.
//!
//! A guest is the kernel's stack in a namespace behind `plinth-tap`; a node is a namespace with
//! plinth-switchd on a veth. Everything is as on a real node but for the VM around the guest,
//! which is what `ci/guest` adds.

mod answers;
mod balance;
mod disk;
mod hostile;
mod lab;
mod metadata;
mod network;
mod operator;
mod outside;
mod peers;
mod storage;
mod upgrade;
mod vpc;

use plinth_stage::runner::{self, Need, Test};
use std::process::ExitCode;

const NETWORK: &[Need] = &[
    Need::Root,
    Need::Path("/dev/net/tun"),
    Need::Program("ip", "iproute2"),
    Need::Program("ethtool", "ethtool"),
    Need::Program("busybox", "busybox-static"),
    Need::Program("ping", "iputils-ping"),
    Need::Program("iperf3", "iperf3"),
    Need::Program("curl", "curl"),
    Need::Program("tcpdump", "tcpdump"),
];

const CLIENTS: &[Need] = &[
    Need::Root,
    Need::Path("/dev/net/tun"),
    Need::Program("ip", "iproute2"),
    Need::Program("dig", "bind9-dnsutils"),
    Need::Program("dhclient", "isc-dhcp-client"),
];

const fn network(name: &'static str, run: runner::Run) -> Test {
    Test { name, needs: NETWORK, limit_seconds: 90, run }
}

const fn disk(name: &'static str, limit_seconds: u64, run: runner::Run) -> Test {
    Test { name, needs: &[], limit_seconds, run }
}

const TESTS: &[Test] = &[
    network("guests_of_a_vpc_meet_and_others_hear_nothing", network::one_node),
    network("the_kernels_vxlan_device_is_a_remote_vtep", network::kernel_vtep),
    network("guests_on_two_nodes_meet_in_vxlan", network::two_nodes),
    network("ping_resumes_after_the_switch_was_killed", network::killed_switch),
    network("connections_outlive_upgrades_of_the_switch", upgrade::under_streams),
    network("connections_outlive_a_killed_switch", upgrade::killed),
    network("a_switch_that_does_not_take_over_leaves_the_old_one", upgrade::failed),
    network("lying_packets_are_counted_and_harm_nobody", hostile::lying_packets),
    network("two_subnets_are_routed_and_two_vpcs_stay_deaf", vpc::routed),
    network("curl_is_served_by_turns_and_not_by_one_that_is_down", balance::shared),
    network("a_backend_that_drains_ends_what_it_has_begun", balance::drained),
    network("a_server_that_ends_gets_nothing_and_is_back_when_it_is", balance::checked),
    network("a_guest_that_answers_no_pings_gets_nothing", balance::pinged),
    network("guests_are_given_leases_routers_and_names", answers::leases_and_names),
    Test {
        name: "dig_and_dhclient_are_answered_over_udp_and_tcp",
        needs: CLIENTS,
        limit_seconds: 90,
        run: answers::other_clients,
    },
    network("curl_is_told_who_its_guest_is_and_no_other", metadata::told),
    network("guests_reach_the_outside_and_are_reached_from_it", outside::reached),
    network("errors_come_back_through_translation", outside::errors),
    network("an_external_address_moves_and_ends", outside::unbound),
    network("a_changed_rule_cuts_an_open_connection", vpc::rules),
    Test {
        name: "peers_and_a_routing_guest_meet_over_both_families",
        needs: CLIENTS,
        limit_seconds: 120,
        run: peers::both_families,
    },
    network("groups_reach_through_vxlan_while_the_wire_loses", peers::groups_over_a_lossy_wire),
    network("a_spoofing_guest_is_dropped_and_counted", hostile::spoofing_guest),
    disk("every_byte_survives_kills_of_the_store", 300, disk::killed_store),
    disk("a_disk_is_added_drained_and_removed_from_the_command_line", 180, operator::disks),
    disk("snapshots_clones_and_deltas_from_the_command_line", 180, storage::snapshots),
    disk("scrubs_and_snapshots_come_by_schedule", 600, storage::schedules),
    disk("limits_change_and_the_store_is_replaced_under_load", 180, storage::under_load),
    disk("a_store_that_does_not_take_over_leaves_the_old_one", 120, storage::failed_upgrade),
    disk("two_disks_are_served_by_two_workers", 120, storage::two_workers),
    disk("a_corrupted_superblock_is_a_fault_of_its_pool_alone", 60, hostile::superblock),
    disk("nonsense_on_the_management_sockets_is_refused", 60, hostile::management),
];

fn main() -> ExitCode {
    runner::main(TESTS)
}
