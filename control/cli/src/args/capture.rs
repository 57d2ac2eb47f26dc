// SPDX-License-Identifier: Apache-2.0
//! `plinth net capture`, and the words of its filter.

use super::net::{NetDeed, protocol};
use crate::text;
use clap::Args;
use plinth_ids::Name;
use plinth_switch_api::{
    CAPTURE_PACKETS_MAX, CAPTURE_SECONDS_MAX, CAPTURE_SNAP_MAX, CaptureQuery, CaptureWish,
};
use std::path::PathBuf;

#[derive(Args, Debug)]
pub struct CaptureArguments {
    /// [default: the only one]
    #[arg(long)]
    pub(super) node: Option<Name>,
    /// Coming in or going out at this port: a NIC's name or number, or uplink
    #[arg(long)]
    port: Option<String>,
    /// Words joined by and: in, out, dropped, tcp, udp, icmp, icmpv6, proto N, host A, net P,
    /// port N, vni N
    #[arg(long, value_parser = filter, default_value = "", hide_default_value = true)]
    filter: CaptureWish,
    /// The file, as pcapng; one that is there is written over
    #[arg(short = 'w', long = "write", value_name = "FILE")]
    file: PathBuf,
    /// End after so many packets
    #[arg(
        short = 'c',
        long,
        default_value = "10000",
        value_parser = clap::value_parser!(u64).range(1..=CAPTURE_PACKETS_MAX)
    )]
    packets: u64,
    /// End after so much copied, as 16M
    #[arg(long, default_value = "16M", value_parser = text::size)]
    bytes: u64,
    /// End after so long, as 30s; at most 1h
    #[arg(long, default_value = "60s", value_parser = text::seconds)]
    time: u32,
    /// Bytes of each packet
    #[arg(
        long,
        default_value_t = CAPTURE_SNAP_MAX,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(CAPTURE_SNAP_MAX))
    )]
    snap: u32,
}

impl CaptureArguments {
    pub(super) fn deed(self) -> NetDeed {
        let Self { port, filter, file, packets, bytes, time, snap, .. } = self;
        let seconds = time.clamp(1, CAPTURE_SECONDS_MAX);
        let query = CaptureQuery { port, filter, packets, bytes, seconds, snap };
        NetDeed::Capture { query, file }
    }
}

/// A filter as `tcp and port 443 and host 10.0.0.1`. Every kind of word may be there once.
pub(super) fn filter(text: &str) -> Result<CaptureWish, String> {
    let mut wish = CaptureWish::default();
    let mut words = text.split_whitespace().peekable();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value after it"));
        match word {
            "in" => set_flag(&mut wish.inbound, word)?,
            "out" => set_flag(&mut wish.outbound, word)?,
            "dropped" => set_flag(&mut wish.dropped, word)?,
            "tcp" | "udp" | "icmp" | "icmpv6" => set(&mut wish.protocol, protocol(word)?, word)?,
            "proto" => set(&mut wish.protocol, protocol(value()?)?, word)?,
            "host" | "net" => set(&mut wish.address, text::prefix(value()?)?, word)?,
            "port" => set(&mut wish.number, number(word, value()?)?, word)?,
            "vni" => set(&mut wish.vni, number(word, value()?)?, word)?,
            _ => {
                return Err(format!(
                    "{word:?} is not known: in, out, dropped, tcp, udp, icmp, icmpv6, proto N, \
                     host A, net P, port N, vni N, joined by and"
                ));
            }
        }
        match words.next() {
            None => break,
            Some("and") if words.peek().is_some() => {}
            Some("and") => return Err("something is missing after the last and".to_owned()),
            Some(other) => return Err(format!("and is missing before {other:?}")),
        }
    }
    Ok(wish)
}

fn set<T>(place: &mut Option<T>, value: T, word: &str) -> Result<(), String> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("{word} asks a second time about the same thing; once is possible")),
    }
}

fn set_flag(place: &mut bool, word: &str) -> Result<(), String> {
    if std::mem::replace(place, true) {
        return Err(format!("{word} is there twice"));
    }
    Ok(())
}

fn number<T: std::str::FromStr>(word: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is no number for {word}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filters_words_are_understood() {
        let wish = filter("in and tcp and host 10.0.0.1 and port 443 and vni 7 and dropped");
        let expected = CaptureWish {
            inbound: true,
            outbound: false,
            address: Some("10.0.0.1/32".parse().unwrap()),
            protocol: Some(6),
            number: Some(443),
            vni: Some(7),
            dropped: true,
        };
        assert_eq!(wish, Ok(expected));
        assert_eq!(filter(""), Ok(CaptureWish::default()));
    }

    #[test]
    fn a_filter_that_is_not_understood_is_refused_with_the_reason() {
        for (text, reason) in [
            ("tcp or udp", "and is missing before \"or\""),
            ("tcp and udp", "udp asks a second time"),
            ("tcp and", "something is missing"),
            ("port", "port needs a value"),
            ("port many", "\"many\" is no number for port"),
            ("port 70000", "\"70000\" is no number for port"),
            ("src host 10.0.0.1", "\"src\" is not known"),
            ("in and in", "in is there twice"),
        ] {
            let error = filter(text).unwrap_err();
            assert!(error.starts_with(reason), "{text}: {error}");
        }
    }
}
