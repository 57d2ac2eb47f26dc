// SPDX-License-Identifier: Apache-2.0
//! The model's own reading of frames, by offsets.

use super::model::Judged;
use plinth_ids::MacAddress;
use plinth_vswitch::DropReason as Reason;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) fn be16(bytes: &[u8], at: usize) -> usize {
    usize::from(bytes[at]) * 256 + usize::from(bytes[at + 1])
}

pub(crate) fn mac_at(bytes: &[u8], at: usize) -> MacAddress {
    MacAddress(bytes[at..at + 6].try_into().unwrap())
}

pub(crate) fn v4_at(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3])
}

pub(crate) fn v6_at(bytes: &[u8], at: usize) -> Ipv6Addr {
    Ipv6Addr::from_octets(bytes[at..at + 16].try_into().unwrap())
}

pub(crate) fn is_group(mac: MacAddress) -> bool {
    mac.0[0] % 2 == 1
}

/// A frame as far as it was understood.
pub(crate) struct Seen {
    pub(crate) kind: Kind,
    pub(crate) protocol: u8,
    pub(crate) fragment: bool,
    pub(crate) upper: usize,
    pub(crate) end: usize,
    pub(crate) addresses: Option<(IpAddr, IpAddr)>,
    pub(crate) destination_port: usize,
}

#[derive(PartialEq)]
pub(crate) enum Kind {
    Arp,
    Nd(u8),
    Other,
}

/// Reads an inner frame of which the first `visible` bytes were copied.
pub(crate) fn look(frame: &[u8], visible: usize) -> Judged<Seen> {
    if frame.len() < 14 {
        return Err(Reason::Truncated);
    }
    if is_group(mac_at(frame, 6)) {
        return Err(Reason::HeaderInvalid);
    }
    match be16(frame, 12) {
        0x0806 => Ok(Seen {
            kind: Kind::Arp,
            protocol: 0,
            fragment: false,
            upper: 14,
            end: 14,
            addresses: None,
            destination_port: 0,
        }),
        0x0800 => look_v4(frame, visible),
        0x86dd => look_v6(frame, visible),
        0x8100 | 0x88a8 => Err(Reason::VlanTagged),
        _ => Err(Reason::EthertypeUnsupported),
    }
}

pub(crate) fn look_v4(frame: &[u8], visible: usize) -> Judged<Seen> {
    if frame.len() < 34 {
        return Err(Reason::Truncated);
    }
    let header = usize::from(frame[14] % 16) * 4;
    if frame[14] / 16 != 4 || header < 20 {
        return Err(Reason::HeaderInvalid);
    }
    let total = be16(frame, 16);
    if frame.len() < 14 + header || total < header || 14 + total > frame.len() {
        return Err(Reason::Truncated);
    }
    let seen = Seen {
        kind: Kind::Other,
        protocol: frame[23],
        fragment: be16(frame, 20) & 0x3fff != 0,
        upper: 14 + header,
        end: 14 + total,
        addresses: Some((v4_at(frame, 26).into(), v4_at(frame, 30).into())),
        destination_port: 0,
    };
    look_upper(frame, visible, seen, false)
}

pub(crate) fn look_v6(frame: &[u8], visible: usize) -> Judged<Seen> {
    if frame.len() < 54 {
        return Err(Reason::Truncated);
    }
    if frame[14] / 16 != 6 {
        return Err(Reason::HeaderInvalid);
    }
    let end = 54 + be16(frame, 18);
    if end > frame.len() || (be16(frame, 18) == 0 && frame[20] == 0) {
        return Err(Reason::Truncated);
    }
    let (mut next, mut at, mut fragment, mut count) = (frame[20], 54, false, 0);
    while !fragment && [0, 43, 44, 51, 60].contains(&next) {
        count += 1;
        if count > 9 {
            return Err(Reason::HeaderInvalid);
        }
        if at + 8 > end {
            return Err(Reason::Truncated);
        }
        if at + 2 > visible {
            return Err(Reason::HeadersTooLong);
        }
        let length = usize::from(frame[at + 1]);
        let step = match next {
            44 => 8,
            51 => length * 4 + 8,
            _ => length * 8 + 8,
        };
        fragment = next == 44;
        next = frame[at];
        at += step;
        if at > end {
            return Err(Reason::Truncated);
        }
    }
    if count > 8 && !fragment {
        return Err(Reason::HeaderInvalid);
    }
    let seen = Seen {
        kind: Kind::Other,
        protocol: next,
        fragment,
        upper: at,
        end,
        addresses: Some((v6_at(frame, 22).into(), v6_at(frame, 38).into())),
        destination_port: 0,
    };
    look_upper(frame, visible, seen, true)
}

pub(crate) fn look_upper(
    frame: &[u8],
    visible: usize,
    mut seen: Seen,
    is_v6: bool,
) -> Judged<Seen> {
    let (at, length) = (seen.upper, seen.end - seen.upper);
    let least = match seen.protocol {
        _ if seen.fragment => return Ok(seen),
        6 => 20,
        1 | 17 | 58 => 8,
        _ => return Ok(seen),
    };
    if length < least {
        return Err(if seen.end > visible { Reason::HeadersTooLong } else { Reason::Truncated });
    }
    if at + least > visible {
        return Err(Reason::HeadersTooLong);
    }
    match seen.protocol {
        6 => {
            let offset = usize::from(frame[at + 12] / 16) * 4;
            if offset < 20 {
                return Err(Reason::HeaderInvalid);
            }
            if offset > length {
                return Err(Reason::Truncated);
            }
            seen.destination_port = be16(frame, at + 2);
        }
        17 => {
            if be16(frame, at + 4) < 8 {
                return Err(Reason::HeaderInvalid);
            }
            if be16(frame, at + 4) > length {
                return Err(Reason::Truncated);
            }
            seen.destination_port = be16(frame, at + 2);
        }
        58 if is_v6 && [134, 135, 136, 137].contains(&frame[at]) => {
            seen.kind = Kind::Nd(frame[at]);
        }
        _ => {}
    }
    Ok(seen)
}
