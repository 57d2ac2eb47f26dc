// SPDX-License-Identifier: Apache-2.0
//! Security groups: which connections a NIC may open and accept.
//!
//! The rules of all groups of a NIC are one list. The first rule that matches decides; when none
//! does, the answer is no. The list is in this order:
//!
//! 1. priority: high, mid, low;
//! 2. the peer with fewer addresses: a group counts as one host, any peer as a prefix of length 0;
//! 3. the narrower range of ports (of ICMP: type and code, type, neither);
//! 4. a protocol that is named before any protocol;
//! 5. deny before allow.
//!
//! Rules judge the first packet of a connection; what belongs to it passes both ways.

use plinth_ids::{GroupId, Name, Prefix};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SecurityGroup {
    pub id: GroupId,
    pub name: Name,
    pub rules: Vec<Rule>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    pub direction: Direction,
    pub priority: Priority,
    pub verdict: RuleVerdict,
    pub protocol: RuleProtocol,
    /// Destination ports, both ends included; `None`: all. Only with TCP and UDP.
    #[serde(default)]
    pub ports: Option<(u16, u16)>,
    /// Type, and code unless all; `None`: all. Only with ICMP and ICMPv6.
    #[serde(default)]
    pub icmp: Option<(u8, Option<u8>)>,
    pub peer: RulePeer,
}

/// Seen from the guest.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// To the guest.
    Inbound,
    /// From the guest.
    Outbound,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    High,
    Mid,
    Low,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleVerdict {
    Deny,
    Allow,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum RuleProtocol {
    Any,
    Tcp,
    Udp,
    Icmp,
    Icmpv6,
    /// Another one, by its number of RFC 791.
    Number(u8),
}

impl RuleProtocol {
    /// As in the IP header; `None`: any.
    pub const fn number(self) -> Option<u8> {
        match self {
            Self::Any => None,
            Self::Tcp => Some(6),
            Self::Udp => Some(17),
            Self::Icmp => Some(1),
            Self::Icmpv6 => Some(58),
            Self::Number(number) => Some(number),
        }
    }
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum RulePeer {
    Any,
    Prefix(Prefix),
    /// A NIC that is in this group, by the addresses assigned to it.
    Group(GroupId),
}
