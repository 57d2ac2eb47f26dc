// SPDX-License-Identifier: Apache-2.0
//! `plinth net trace`: the packet that is imagined, or the packets that are looked at.

use super::capture::filter;
use super::net::{NetDeed, protocol};
use crate::text;
use clap::{ArgGroup, Args};
use plinth_ids::Name;
use plinth_switch_api::{
    CAPTURE_SECONDS_MAX, CAPTURE_SNAP_MAX, CaptureQuery, CaptureWish, Look, TraceFrom, TracePacket,
    TraceQuery,
};
use std::net::{IpAddr, Ipv4Addr};

/// The most packets that are sampled: each is printed with all its stages.
const SAMPLE_MAX: u64 = 1000;

#[derive(Args, Debug)]
#[command(group = ArgGroup::new("from").required(true).args(["port", "from_wire", "outside"]))]
pub struct TraceArguments {
    /// [default: the only one]
    #[arg(long)]
    pub(super) node: Option<Name>,
    /// Comes in at this port: a NIC's name or number
    #[arg(long)]
    port: Option<String>,
    /// Comes through the tunnel of this VTEP
    #[arg(long, value_name = "VTEP", requires = "vpc", requires = "source")]
    from_wire: Option<Ipv4Addr>,
    /// With --from-wire: the vpc's name or VNI in the tunnel
    #[arg(long, requires = "from_wire")]
    vpc: Option<String>,
    /// Comes from outside, to an external address
    #[arg(long, requires = "source")]
    outside: bool,
    /// [default: the port's own address]
    #[arg(long = "src", value_name = "ADDRESS")]
    source: Option<IpAddr>,
    #[arg(long = "dst", value_name = "ADDRESS", required_unless_present = "sample")]
    destination: Option<IpAddr>,
    /// tcp, udp, icmp, icmpv6 or a number
    #[arg(long = "proto", value_parser = protocol, required_unless_present = "sample")]
    protocol: Option<u8>,
    #[arg(long = "sport", value_name = "PORT", default_value = "40000")]
    source_port: u16,
    #[arg(
        long = "dport",
        value_name = "PORT",
        default_value = "0",
        required_if_eq_any([("protocol", "tcp"), ("protocol", "udp")])
    )]
    destination_port: u16,
    /// Of TCP, joined by commas: fin, syn, rst, psh, ack, urg
    #[arg(long, default_value = "syn", value_parser = flags)]
    flags: u8,
    #[arg(long, value_name = "HOPS", default_value = "64")]
    ttl: u8,
    /// Bytes behind the last header
    #[arg(long, value_name = "BYTES", default_value = "0")]
    payload: u16,
    /// Instead: the next so many packets that really come in at the port
    #[arg(
        long,
        value_name = "PACKETS",
        requires = "port",
        conflicts_with_all = ["source", "destination", "protocol"],
        value_parser = clap::value_parser!(u64).range(1..=SAMPLE_MAX)
    )]
    sample: Option<u64>,
    /// With --sample: which of them, as of plinth net capture
    #[arg(
        long,
        value_parser = filter,
        default_value = "",
        hide_default_value = true,
        requires = "sample"
    )]
    filter: CaptureWish,
    /// With --sample: wait for them so long, as 30s; at most 1h
    #[arg(long, default_value = "60s", value_parser = text::seconds, requires = "sample")]
    time: u32,
}

impl TraceArguments {
    pub(super) fn deed(self) -> NetDeed {
        let from = match (&self.port, self.from_wire, &self.vpc) {
            (Some(port), ..) => TraceFrom::Port(port.clone()),
            (None, Some(vtep), Some(vpc)) => TraceFrom::Tunnel { vpc: vpc.clone(), vtep },
            (None, ..) => TraceFrom::Outside,
        };
        let packet = match (self.sample, self.destination, self.protocol) {
            (None, Some(destination), Some(protocol)) => TracePacket::Imagined {
                source: self.source,
                destination,
                protocol,
                source_port: self.source_port,
                destination_port: self.destination_port,
                tcp_flags: self.flags,
                time_to_live: self.ttl,
                payload: self.payload,
            },
            (packets, ..) => {
                let query = CaptureQuery {
                    port: self.port,
                    filter: CaptureWish { inbound: true, outbound: false, ..self.filter },
                    packets: packets.unwrap_or(1),
                    bytes: packets.unwrap_or(1) * u64::from(CAPTURE_SNAP_MAX),
                    seconds: self.time.clamp(1, CAPTURE_SECONDS_MAX),
                    snap: CAPTURE_SNAP_MAX,
                };
                return NetDeed::Sample { query, from };
            }
        };
        NetDeed::Once(Look::Trace(TraceQuery { from, packet }))
    }
}

/// Flags of TCP as one number.
fn flags(text: &str) -> Result<u8, String> {
    const NAMES: [&str; 6] = ["fin", "syn", "rst", "psh", "ack", "urg"];
    let mut flags = 0;
    for word in text.split(',').filter(|word| !word.is_empty()) {
        let place = NAMES.iter().position(|name| *name == word);
        let known = NAMES.join(", ");
        flags |= 1 << place.ok_or_else(|| format!("{word:?} is no flag of TCP: {known}"))?;
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_added_up_and_others_refused() {
        assert_eq!(flags("syn"), Ok(2));
        assert_eq!(flags("syn,ack"), Ok(0x12));
        assert_eq!(flags(""), Ok(0));
        assert!(flags("syn,ece").unwrap_err().starts_with("\"ece\" is no flag"));
    }
}
