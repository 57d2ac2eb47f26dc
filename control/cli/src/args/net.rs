// SPDX-License-Identifier: Apache-2.0
//! `plinth net`.

use super::Deed;
use super::capture::CaptureArguments;
use super::trace::TraceArguments;
use crate::text;
use clap::{Args, Subcommand};
use plinth_ids::{Name, Prefix};
use plinth_switch_api::{CaptureQuery, DropQuery, FlowQuery, Look, TraceFrom};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Subcommand)]
pub enum NetVerb {
    /// How busy the switch's workers are, and where their cycles go
    Status {
        /// [default: the only one]
        #[arg(long)]
        node: Option<Name>,
    },
    /// Conversations that the switch knows
    #[command(after_help = "Example:\n  plinth net flows --vpc blue --protocol tcp --number 443 \
        --state established")]
    Flows(FlowArguments),
    /// Packets that ended in the switch, by port and reason
    #[command(after_help = "Example:\n  plinth net drops --vpc blue --follow")]
    Drops(DropArguments),
    /// Copies packets' heads into a pcapng file
    #[command(
        after_help = "Example:\n  plinth net capture --port web-1-0 --filter 'tcp and port 443' \
        -w web.pcapng\n  plinth net capture --filter dropped --time 10s -w drops.pcapng"
    )]
    Capture(CaptureArguments),
    /// What every stage of the switch says of a packet
    #[command(
        after_help = "Examples:\n  plinth net trace --port web-1-0 --dst 10.0.1.2 --proto tcp \
        --dport 443\n  plinth net trace --from-wire 172.16.0.2 --vpc blue --src 10.0.1.3 --dst \
        10.0.0.1 --proto icmp\n  plinth net trace --port web-1-0 --sample 5 --filter 'tcp and \
        port 443'"
    )]
    Trace(TraceArguments),
    /// What went through external addresses
    External {
        /// [default: the only one]
        #[arg(long)]
        node: Option<Name>,
    },
}

#[derive(Args, Debug)]
pub struct FlowArguments {
    /// [default: the only one]
    #[arg(long)]
    node: Option<Name>,
    /// Coming in at this port: a NIC's name or number, or uplink
    #[arg(long)]
    port: Option<String>,
    /// A vpc's name or VNI
    #[arg(long)]
    vpc: Option<String>,
    /// At either end: an address or a range
    #[arg(long, value_parser = text::prefix)]
    address: Option<Prefix>,
    /// tcp, udp, icmp, icmpv6 or a number
    #[arg(long, value_parser = protocol)]
    protocol: Option<u8>,
    /// A port number of TCP or UDP, at either end
    #[arg(long)]
    number: Option<u16>,
    /// Of the connection, as established or one-way
    #[arg(long)]
    state: Option<String>,
    /// Rows of a page, 1 to 4096
    #[arg(long, default_value = "100")]
    limit: u32,
    /// Where the page before ended, as it said
    #[arg(long)]
    cursor: Option<u32>,
}

#[derive(Args, Debug)]
pub struct DropArguments {
    /// [default: the only one]
    #[arg(long)]
    node: Option<Name>,
    /// A NIC's name or number, or uplink
    #[arg(long)]
    port: Option<String>,
    /// A vpc's name or VNI
    #[arg(long)]
    vpc: Option<String>,
    /// As security-group-denied
    #[arg(long)]
    reason: Option<String>,
    /// Go on, and show what was dropped since the look before
    #[arg(long, visible_alias = "watch")]
    follow: bool,
    /// Between two looks, as 1s
    #[arg(long, default_value = "1s", value_parser = text::seconds, requires = "follow")]
    interval: u32,
    /// End after so many looks
    #[arg(long, requires = "follow", value_parser = clap::value_parser!(u32).range(1..))]
    count: Option<u32>,
}

/// What is asked, and how often.
#[derive(Debug)]
pub enum NetDeed {
    Once(Look),
    /// Again and again, with the differences.
    Follow {
        query: DropQuery,
        interval: Duration,
        count: Option<u32>,
    },
    /// Until it is over, into a file.
    Capture {
        query: CaptureQuery,
        file: PathBuf,
    },
    /// Real packets with what every stage says of them.
    Sample {
        query: CaptureQuery,
        from: TraceFrom,
    },
}

impl NetVerb {
    pub(super) fn deed(self) -> Deed {
        match self {
            Self::Status { node } => Deed::Net(node, NetDeed::Once(Look::Status)),
            Self::External { node } => Deed::Net(node, NetDeed::Once(Look::External)),
            Self::Capture(mut capture) => Deed::Net(capture.node.take(), capture.deed()),
            Self::Trace(mut trace) => Deed::Net(trace.node.take(), trace.deed()),
            Self::Flows(flows) => {
                let FlowArguments { node, port, vpc, address, .. } = flows;
                let FlowArguments { protocol, number, state, limit, cursor, .. } = flows;
                let query =
                    FlowQuery { port, vpc, address, protocol, number, state, limit, cursor };
                Deed::Net(node, NetDeed::Once(Look::Flows(query)))
            }
            Self::Drops(drops) => {
                let DropArguments { node, port, vpc, reason, follow, interval, count } = drops;
                let query = DropQuery { port, vpc, reason };
                let interval = Duration::from_secs(interval.max(1).into());
                let deed = if follow {
                    NetDeed::Follow { query, interval, count }
                } else {
                    NetDeed::Once(Look::Drops(query))
                };
                Deed::Net(node, deed)
            }
        }
    }
}

/// A protocol by name or number.
pub(crate) fn protocol(text: &str) -> Result<u8, String> {
    match text {
        "icmp" => Ok(1),
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "icmpv6" => Ok(58),
        number => number
            .parse()
            .map_err(|_| format!("{text:?} is no protocol: tcp, udp, icmp, icmpv6 or 0 to 255")),
    }
}
