// SPDX-License-Identifier: Apache-2.0
//! `plinth security-group`.

use crate::text;
use clap::{Args, Subcommand, ValueEnum};
use plinth_api::{
    Request, RuleDirection, RulePeer, RulePriority, RuleProtocol, RuleScope, RuleVerdict,
};
use plinth_ids::{Name, Prefix};

#[derive(Debug, Subcommand)]
pub enum SecurityGroupVerb {
    /// Make a group; without rules it allows nothing
    #[command(after_help = "Example:\n  plinth security-group create web --vpc blue")]
    Create {
        name: Name,
        #[arg(long)]
        vpc: Name,
    },
    /// The groups of a vpc, or of all
    List { vpc: Option<Name> },
    /// A group's rules and NICs
    Show { name: Name },
    /// Delete a group that no NIC is in
    Delete { name: Name },
    /// Rules of a group
    #[command(subcommand)]
    Rule(RuleVerb),
}

#[derive(Debug, Subcommand)]
pub enum RuleVerb {
    /// Add a rule
    ///
    /// Of all rules of a NIC's groups that match, the first decides: higher priority first, then
    /// the peer with fewer addresses (a group counts as one host), then fewer ports, then a named
    /// protocol, then deny. When none matches, the answer is no.
    #[command(after_help = "Examples:\n  plinth security-group rule add web in --protocol tcp \
        --port 80-81\n  plinth security-group rule add db in --protocol tcp --port 5432 \
        --peer-group web\n  plinth security-group rule add web out --peer 10.9.0.0/16 --deny \
        --priority high")]
    Add(Box<RuleArguments>),
    /// Remove a rule
    Remove {
        group: Name,
        /// As `show` has it
        number: u32,
    },
}

#[derive(Args, Clone, Debug)]
pub struct RuleArguments {
    pub group: Name,
    /// To the guest, or from it
    pub direction: DirectionWord,
    /// any, tcp, udp, icmp, icmpv6 or a number
    #[arg(long, default_value = "any", value_parser = protocol)]
    pub protocol: RuleProtocol,
    /// Destination port or ports [default: all]
    #[arg(long, value_parser = ports, value_name = "PORT[-PORT]")]
    pub port: Option<(u16, u16)>,
    /// Type, and maybe code, of ICMP [default: all]
    #[arg(long, value_parser = icmp, value_name = "TYPE[/CODE]")]
    pub icmp_type: Option<(u8, Option<u8>)>,
    /// Addresses at the other end [default: any]
    #[arg(long, value_parser = text::prefix, value_name = "ADDRESS[/LENGTH]")]
    pub peer: Option<Prefix>,
    /// NICs in this group at the other end
    #[arg(long, value_name = "GROUP", conflicts_with = "peer")]
    pub peer_group: Option<Name>,
    #[arg(long, default_value = "mid")]
    pub priority: PriorityWord,
    /// Deny instead of allow
    #[arg(long)]
    pub deny: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum DirectionWord {
    In,
    Out,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum PriorityWord {
    High,
    Mid,
    Low,
}

impl SecurityGroupVerb {
    pub(super) fn request(self) -> Request {
        match self {
            Self::Create { name, vpc } => Request::GroupCreate { name, vpc },
            Self::List { vpc } => Request::GroupList(vpc),
            Self::Show { name } => Request::GroupShow(name),
            Self::Delete { name } => Request::GroupDelete(name),
            Self::Rule(RuleVerb::Add(rule)) => rule.request(),
            Self::Rule(RuleVerb::Remove { group, number }) => Request::RuleRemove { group, number },
        }
    }
}

impl RuleArguments {
    fn request(self) -> Request {
        let scope = RuleScope {
            direction: match self.direction {
                DirectionWord::In => RuleDirection::Inbound,
                DirectionWord::Out => RuleDirection::Outbound,
            },
            priority: match self.priority {
                PriorityWord::High => RulePriority::High,
                PriorityWord::Mid => RulePriority::Mid,
                PriorityWord::Low => RulePriority::Low,
            },
            verdict: if self.deny { RuleVerdict::Deny } else { RuleVerdict::Allow },
            protocol: self.protocol,
            ports: self.port,
            icmp: self.icmp_type,
        };
        let peer = match (self.peer, self.peer_group) {
            (Some(prefix), _) => RulePeer::Prefix(prefix),
            (None, Some(group)) => RulePeer::Group(group),
            (None, None) => RulePeer::Any,
        };
        Request::RuleAdd { group: self.group, scope, peer }
    }
}

fn protocol(text: &str) -> Result<RuleProtocol, String> {
    Ok(match text {
        "any" => RuleProtocol::Any,
        "tcp" => RuleProtocol::Tcp,
        "udp" => RuleProtocol::Udp,
        "icmp" => RuleProtocol::Icmp,
        "icmpv6" => RuleProtocol::Icmpv6,
        number => RuleProtocol::Number(number.parse().map_err(|_| {
            format!("{text:?} is no protocol: say any, tcp, udp, icmp, icmpv6 or 0 to 255")
        })?),
    })
}

pub(super) fn ports(text: &str) -> Result<(u16, u16), String> {
    let error = |_| format!("{text:?} is no port: write one, as in 80, or a range, as in 80-90");
    match text.split_once('-') {
        None => text.parse().map(|port| (port, port)).map_err(error),
        Some((first, last)) => Ok((first.parse().map_err(error)?, last.parse().map_err(error)?)),
    }
}

fn icmp(text: &str) -> Result<(u8, Option<u8>), String> {
    let error =
        |_| format!("{text:?} is no ICMP type: write one, as in 8, with its code, as in 3/4");
    match text.split_once('/') {
        None => Ok((text.parse().map_err(error)?, None)),
        Some((kind, code)) => {
            Ok((kind.parse().map_err(error)?, Some(code.parse().map_err(error)?)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_values_are_read_as_people_write_them() {
        assert_eq!((ports("80"), ports("80-90")), (Ok((80, 80)), Ok((80, 90))));
        assert_eq!((icmp("8"), icmp("3/4")), (Ok((8, None)), Ok((3, Some(4)))));
        assert_eq!(protocol("47"), Ok(RuleProtocol::Number(47)));
        assert_eq!(protocol("icmpv6"), Ok(RuleProtocol::Icmpv6));
        for text in ["", "x", "80-", "-80", "65536", "1-2-3"] {
            assert!(ports(text).is_err(), "{text:?} was taken");
        }
        for text in ["", "256", "8/", "8/x"] {
            assert!(icmp(text).is_err(), "{text:?} was taken");
        }
        assert!(protocol("TCP").is_err() && protocol("256").is_err());
    }
}
