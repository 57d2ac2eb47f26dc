// SPDX-License-Identifier: Apache-2.0
//! Where everything of the demonstration is: all names, addresses and folders are made here.
//!
//! The addresses are of the range for benchmarks, 198.18.0.0/15 (RFC 2544), which no real
//! network should use.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// The management bridge of two nodes, in the root namespace.
pub(super) const BRIDGE: &str = "plinth-mgmt";
pub(super) const BRIDGE_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
pub(super) const PREFIX_LENGTH: u8 = 24;
/// The underlay's link inside each node's namespace.
pub(super) const UNDERLAY: &str = "underlay";
/// The management link inside each node's namespace.
pub(super) const MANAGEMENT: &str = "mgmt";

#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    nodes: u8,
}

impl Layout {
    pub(super) const fn new(nodes: u8) -> Self {
        Self { nodes }
    }

    /// Nodes count from one.
    pub(super) fn numbers(self) -> impl Iterator<Item = u8> {
        1..=self.nodes
    }

    const fn is_single(self) -> bool {
        self.nodes == 1
    }

    pub(super) fn name(self, number: u8) -> String {
        format!("node-{number}")
    }

    /// A single node has the places that every tool takes when nothing is said.
    fn below(self, root: &str, number: u8) -> PathBuf {
        if self.is_single() {
            PathBuf::from(root).join("plinth")
        } else {
            PathBuf::from(root).join("plinth-two").join(self.name(number))
        }
    }

    pub(super) fn state(self, number: u8) -> PathBuf {
        self.below("/var/lib", number)
    }

    pub(super) fn run(self, number: u8) -> PathBuf {
        self.below("/run", number)
    }

    /// What [`Self::run`] of all nodes lies in, to be removed at the end.
    pub(super) fn run_root(self) -> PathBuf {
        PathBuf::from(if self.is_single() { "/run/plinth" } else { "/run/plinth-two" })
    }

    /// The operator's folder.
    pub(super) fn config(self) -> PathBuf {
        PathBuf::from(if self.is_single() { "/etc/plinth" } else { "/var/lib/plinth-two/operator" })
    }

    /// What to write before a command so that it finds the cluster.
    pub(super) fn prefix(self) -> String {
        if self.is_single() {
            String::new()
        } else {
            format!("PLINTH_CONFIG={} ", self.config().display())
        }
    }

    /// A single node is in the root namespace.
    pub(super) fn namespace(self, number: u8) -> Option<String> {
        (!self.is_single()).then(|| format!("plinth-{}", self.name(number)))
    }

    /// Where a node is reached for management.
    pub(super) const fn management(self, number: u8) -> Ipv4Addr {
        if self.is_single() { Ipv4Addr::LOCALHOST } else { Ipv4Addr::new(198, 18, 0, 10 + number) }
    }

    /// The tunnel address of a node that has peers.
    pub(super) fn vtep(self, number: u8) -> Option<Ipv4Addr> {
        (!self.is_single()).then(|| Ipv4Addr::new(198, 19, 0, 10 + number))
    }

    pub(super) fn service(self) -> SocketAddr {
        (self.management(1), 7700).into()
    }

    pub(super) fn join(self) -> SocketAddr {
        (self.management(1), 7701).into()
    }

    pub(super) fn agent(self, number: u8) -> SocketAddr {
        (self.management(number), 7710).into()
    }

    /// The end of a node's management link that is in the bridge.
    pub(super) fn bridge_port(self, number: u8) -> String {
        format!("plinth-m{number}")
    }

    /// The pool of a node.
    pub(super) fn pool(self, number: u8) -> String {
        format!("demo-{number}")
    }

    /// The node of the second VM: another one, where there is one.
    pub(super) const fn second(self) -> u8 {
        self.nodes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_nodes_share_anything() {
        let layout = Layout::new(2);
        assert_ne!(layout.state(1), layout.state(2));
        assert_ne!(layout.run(1), layout.run(2));
        assert_ne!(layout.management(1), layout.management(2));
        assert_ne!(layout.vtep(1), layout.vtep(2));
        assert_ne!(layout.namespace(1), layout.namespace(2));
        assert_ne!(layout.agent(1), layout.agent(2));
    }

    #[test]
    fn every_address_is_of_the_benchmark_range_or_the_loopback() {
        let layout = Layout::new(2);
        for number in layout.numbers() {
            for address in [layout.management(number), layout.vtep(number).unwrap()] {
                assert!(matches!(address.octets(), [198, 18 | 19, ..]), "{address}");
            }
        }
        assert!(Layout::new(1).management(1).is_loopback());
        assert_eq!(Layout::new(1).vtep(1), None);
    }

    #[test]
    fn one_node_and_two_do_not_share_folders() {
        assert!(!Layout::new(2).state(1).starts_with(Layout::new(1).state(1)));
        assert!(!Layout::new(2).run(1).starts_with(Layout::new(1).run(1)));
    }
}
