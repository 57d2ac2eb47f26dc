// SPDX-License-Identifier: Apache-2.0
//! Why a packet ended. The list is closed: a packet that is not sent has one of these reasons,
//! under one name in code, counter, console and docs.

/// `VniUnknown` becomes `vni-unknown` (or `vni_unknown`): the one rule that makes a reason's
/// name. Unused bytes at the end stay zero.
const fn derive_name(ident: &str, separator: u8) -> ([u8; NAME_LENGTH_MAX], usize) {
    let ident = ident.as_bytes();
    let mut name = [0; NAME_LENGTH_MAX];
    let (mut from, mut to) = (0, 0);
    while from < ident.len() {
        if ident[from].is_ascii_uppercase() && from > 0 {
            name[to] = separator;
            to += 1;
        }
        name[to] = ident[from].to_ascii_lowercase();
        from += 1;
        to += 1;
    }
    (name, to)
}

/// Longer than any reason's name; a longer one does not compile.
const NAME_LENGTH_MAX: usize = 40;

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])* $variant:ident),+ $(,)?) => {
        /// Why a packet ended.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[doc = $doc])* $variant),+
        }

        impl DropReason {
            /// Every reason, in the order of declaration.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name on the console and in the docs, as in `vni-unknown`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => {
                        const NAME: ([u8; NAME_LENGTH_MAX], usize) =
                            derive_name(stringify!($variant), b'-');
                        text(&NAME.0, NAME.1)
                    })+
                }
            }

            /// What it means, in one sentence: the variant's own documentation.
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($doc),*)),+
                }
            }
        }
    };
}

/// The first `length` bytes as text.
const fn text(name: &'static [u8; NAME_LENGTH_MAX], length: usize) -> &'static str {
    match std::str::from_utf8(name.split_at(length).0) {
        Ok(text) => text,
        Err(_) => panic!("identifiers of this enum are ASCII"),
    }
}

drop_reasons! {
    /// The frame ends before its headers do, or a length field says more than there is.
    Truncated,
    /// The headers are longer than the 256 bytes that are looked at.
    HeadersTooLong,
    /// A header breaks its own rules: IP version, header length, or the source is a group.
    HeaderInvalid,
    /// The frame carries an 802.1Q or 802.1ad tag.
    VlanTagged,
    /// Neither IPv4, IPv6 nor ARP.
    EthertypeUnsupported,
    /// The frame, or a segment that it is to be cut into, is longer than the port's MTU allows.
    PortMtuExceeded,
    /// The frame with its outer headers is longer than the underlay's MTU allows.
    UnderlayMtuExceeded,
    /// The guest asked for a checksum over a place where there can be none, or to have a packet cut
    /// that cannot be.
    OffloadInvalid,
    /// The source MAC is not the port's.
    SourceMacSpoofed,
    /// The IP source, or the sender of an ARP or ND message, is not an address of the port.
    SourceAddressSpoofed,
    /// A guest sent a router advertisement or a redirect.
    RouterMessageForbidden,
    /// A guest spoke to a DHCP client's port, as only servers do.
    DhcpServerForbidden,
    /// ARP asks for an address that nobody in the VPC has.
    ArpTargetUnknown,
    /// Neighbor solicitation asks for an address that nobody in the VPC has.
    NdTargetUnknown,
    /// A DHCP request in a subnet where nothing is given out by DHCP.
    DhcpUnanswered,
    /// A guest asks DHCP, DNS or for a router more often than is answered.
    QuestionRateExceeded,
    /// Broadcast other than ARP and DHCP: the overlay does not flood.
    BroadcastUnsupported,
    /// Multicast other than ND: the overlay does not flood.
    MulticastUnsupported,
    /// No port of the VPC has this destination MAC.
    DestinationUnknown,
    /// The destination is the port that sent the frame.
    DestinationIsSource,
    /// No route of the VPC leads to this address.
    RouteUnknown,
    /// The route to this address is a black hole.
    RouteBlackhole,
    /// The route leads to an address that no NIC has now.
    RouteNextHopUnknown,
    /// No rule of the port's security groups allows it, or one denies it.
    SecurityGroupDenied,
    /// A new connection of a filtered port finds the table, or the port's share of it, full of established ones.
    ConnectionTableFull,
    /// An ICMP error about, or an answer to, nothing that was sent.
    IcmpUnrelated,
    /// A piece of a packet whose first piece, which has the ports, did not come before it.
    FragmentUnmatched,
    /// A piece of a packet that could hide its ports or its TCP header from the rules.
    FragmentInvalid,
    /// Flags that no TCP sets together.
    TcpFlagsInvalid,
    /// The segment is outside of what the connection's ends can have sent.
    TcpOutOfWindow,
    /// A segment in the middle of a connection that the switch does not know.
    TcpNoConnection,
    /// The route leads outside, and neither an external address nor a NAT gateway is there for the NIC.
    ExternalAddressMissing,
    /// All ports that the NIC has at its NAT gateway are in use towards this destination.
    NatPortsExhausted,
    /// From the wire: an external address and port that nothing inside has asked for or is bound to.
    NatNoConnection,
    /// The external address carries as much as its limit of this direction lets it.
    ExternalRateExceeded,
    /// To a balancer's address and a port at which it serves nothing.
    BalancerNoListener,
    /// To a balancer that has no backend for new connections.
    BalancerNoBackend,
    /// To a balancer whose backends all have a connection from this port of the client already.
    BalancerBackendBusy,
    /// The packet is for the router itself, which answers ARP, ND and pings of its guests only.
    RouterUnserved,
    /// A router is to forward the packet, and its time to live ends there.
    TimeToLiveExceeded,
    /// The next hop to the remote VTEP has not answered ARP yet.
    NextHopUnresolved,
    /// From the wire: the destination MAC is another machine's.
    UnderlayMacForeign,
    /// From the wire: the destination address is not the VTEP's.
    UnderlayAddressForeign,
    /// From the wire: neither ARP nor IPv4.
    UnderlayEthertypeUnsupported,
    /// From the wire: a fragment; tunnels are set up so that nothing needs to be cut.
    UnderlayFragment,
    /// From the wire: not VXLAN over UDP, nor a ping of the VTEP.
    UnderlayProtocolUnsupported,
    /// From the wire: an IPv4 or UDP checksum is wrong.
    UnderlayChecksumWrong,
    /// From the wire: an ARP message of a form that nobody sends.
    UnderlayArpInvalid,
    /// From the wire: another machine says that it has the VTEP's address.
    UnderlayAddressConflict,
    /// The VXLAN header's VNI-valid bit is clear.
    VxlanInvalid,
    /// No port here belongs to this VNI.
    VniUnknown,
    /// The sending VTEP is not a configured remote of this VNI.
    VtepUnknown,
    /// The port has no configuration (yet, or any more).
    PortUnknown,
    /// The destination port has no frontend, or its queues are stopped.
    PortDown,
    /// The destination port gets as much as its limits let it.
    InboundRateExceeded,
    /// The destination port's queue is full.
    PortQueueFull,
    /// The destination's buffers are too small or not in its memory.
    PortBufferInvalid,
    /// The packet's payload could not be read from its source.
    PayloadUnreadable,
}

impl DropReason {
    pub const COUNT: usize = Self::ALL.len();

    /// The position in [`Self::ALL`], for tables of counters.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Whether it happens after the decision, when a port does not take the packet.
    pub const fn is_of_delivery(self) -> bool {
        matches!(
            self,
            Self::PortDown
                | Self::InboundRateExceeded
                | Self::PortQueueFull
                | Self::PortBufferInvalid
                | Self::PayloadUnreadable
        )
    }

    /// The name of its counter, as in `vswitch_drop_vni_unknown`.
    pub fn counter(self) -> String {
        format!("vswitch_drop_{}", self.name().replace('-', "_"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_rule_makes_every_name() {
        assert_eq!(DropReason::VniUnknown.name(), "vni-unknown");
        assert_eq!(DropReason::VniUnknown.counter(), "vswitch_drop_vni_unknown");
        for reason in DropReason::ALL {
            let words: Vec<String> = reason.name().split('-').map(capitalize).collect();
            assert_eq!(words.concat(), format!("{reason:?}"));
        }
    }

    fn capitalize(word: &str) -> String {
        let (first, rest) = word.split_at(1);
        first.to_uppercase() + rest
    }

    #[test]
    fn the_index_is_the_place_in_the_list() {
        for (place, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), place);
            assert!(reason.meaning().trim().ends_with('.'), "{reason:?} has no sentence");
        }
    }
}
