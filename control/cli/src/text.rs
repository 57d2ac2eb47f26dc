// SPDX-License-Identifier: Apache-2.0
//! Small values as people write and read them.

use crate::args::{Cores, Interval};
use plinth_api::DhcpRouteSpec;
use plinth_ids::{DiskId, Prefix};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Seconds: `90`, `90s`, `5m`, `1h`, `7d`.
pub(crate) fn seconds(text: &str) -> Result<u32, String> {
    let error = || format!("{text:?} is no time: write a whole number and s, m, h or d, as in 30s");
    let units = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];
    let unit = units.into_iter().find(|(letter, _)| text.ends_with(*letter));
    let digits = unit.and_then(|(letter, _)| text.strip_suffix(letter)).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(error());
    }
    let number: u32 = digits.parse().map_err(|_| error())?;
    number.checked_mul(unit.map_or(1, |(_, factor)| factor)).ok_or_else(error)
}

/// Seconds, or `off`.
pub(crate) fn interval(text: &str) -> Result<Interval, String> {
    match text {
        "off" => Ok(Interval(None)),
        time => seconds(time).map(|seconds| Interval(Some(seconds.into()))),
    }
}

/// A disk's number in its pool: `2` or `disk-2`.
pub(crate) fn disk(text: &str) -> Result<DiskId, String> {
    let digits = text.strip_prefix("disk-").unwrap_or(text);
    let number = digits.parse().ok().filter(|_| digits.bytes().all(|one| one.is_ascii_digit()));
    number
        .map(DiskId)
        .ok_or_else(|| format!("{text:?} is no disk: give its number in the pool, as in 2"))
}

/// CPUs by their numbers: `2,3`, or `any`.
pub(crate) fn cores(text: &str) -> Result<Cores, String> {
    if text == "any" {
        return Ok(Cores(Vec::new()));
    }
    let core = |word: &str| {
        let digits = word.bytes().all(|one| one.is_ascii_digit());
        word.parse().ok().filter(|_| digits).ok_or_else(|| {
            format!("{word:?} is no core: write numbers with commas, as in 2,3, or any")
        })
    };
    text.split(',').map(core).collect::<Result<_, _>>().map(Cores)
}

/// An IPv4 address and a prefix length: `10.0.0.0/24`.
pub(crate) fn cidr(text: &str) -> Result<(Ipv4Addr, u8), String> {
    let error = || format!("{text:?} is no address range: write it as in 10.0.0.0/24");
    let (address, length) = text.split_once('/').ok_or_else(error)?;
    let address = address.parse().map_err(|_| error())?;
    let length: u8 = length.parse().map_err(|_| error())?;
    if length > 32 {
        return Err(error());
    }
    Ok((address, length))
}

/// A range of either family, or one address.
pub(crate) fn prefix(text: &str) -> Result<Prefix, String> {
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(Prefix::host(address)),
        Err(_) => text.parse().map_err(|err: plinth_ids::PrefixError| err.to_string()),
    }
}

/// A name server: its port is 53 unless it is said.
pub(crate) fn server(text: &str) -> Result<SocketAddr, String> {
    const DNS_PORT: u16 = 53;
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, DNS_PORT));
    }
    let error = || format!("{text:?} is no server: write it as in 192.0.2.53 or [fd00::53]:5353");
    text.parse().map_err(|_| error())
}

/// A route that guests are told: `10.9.0.0/16=10.0.0.5`.
pub(crate) fn told_route(text: &str) -> Result<DhcpRouteSpec, String> {
    let error = || format!("{text:?} is no route: write it as in 10.9.0.0/16=10.0.0.5");
    let (destination, gateway) = text.split_once('=').ok_or_else(error)?;
    let gateway = gateway.parse().map_err(|_| error())?;
    Ok(DhcpRouteSpec { destination: prefix(destination)?, gateway })
}

/// A count with a decimal unit, as networks have it: `500`, `200K`, `100M`, `1G`.
pub(crate) fn decimal(text: &str) -> Result<u64, String> {
    let error = || format!("{text:?} is no rate: write a whole number and K, M or G, as in 100M");
    let units = [('K', 1000), ('M', 1_000_000), ('G', 1_000_000_000)];
    let unit = units.into_iter().find(|(letter, _)| text.ends_with(*letter));
    let digits = unit.and_then(|(letter, _)| text.strip_suffix(letter)).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(error());
    }
    let number: u64 = digits.parse().map_err(|_| error())?;
    number.checked_mul(unit.map_or(1, |(_, factor)| factor)).ok_or_else(error)
}

/// Bytes: `256M`, `20G`.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    text.parse::<plinth_planner::Size>().map(|size| size.0).map_err(|err| err.to_string())
}

/// A time as how long ago it was.
pub(crate) fn age(now: u64, then: u64) -> String {
    let seconds = now.saturating_sub(then);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(
            ["90", "90s", "5m", "1h", "7d"].map(seconds).map(Result::unwrap),
            [90, 90, 300, 3600, 604_800]
        );
        for text in ["", "s", "-1s", "1.5h", "1w", "99999999d"] {
            assert!(seconds(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn a_disk_is_its_number() {
        assert_eq!(["2", "disk-2"].map(disk), [Ok(DiskId(2)), Ok(DiskId(2))]);
        for text in ["", "disk-", "-2", "+2", "disk2", "4294967296"] {
            assert!(disk(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn cores_are_numbers_or_any() {
        assert_eq!(cores("2"), Ok(Cores(vec![2])));
        assert_eq!(cores("2,0,13"), Ok(Cores(vec![2, 0, 13])));
        assert_eq!(cores("any"), Ok(Cores(Vec::new())));
        for text in ["", ",", "2,", "2, 3", "-1", "+1", "0-3", "all", "4294967296"] {
            assert!(cores(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn an_interval_can_be_off() {
        assert_eq!(interval("off"), Ok(Interval(None)));
        assert_eq!(interval("1d"), Ok(Interval(Some(86_400))));
        assert!(interval("on").is_err());
    }

    #[test]
    fn ranges_have_an_address_and_a_length() {
        assert_eq!(cidr("10.0.0.0/24"), Ok((Ipv4Addr::new(10, 0, 0, 0), 24)));
        for text in ["10.0.0.0", "10.0.0/24", "10.0.0.0/33", "10.0.0.0/-1", "fd00::/64"] {
            assert!(cidr(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn a_prefix_may_be_one_address() {
        assert_eq!(prefix("10.0.0.5").map(|one| one.to_string()), Ok("10.0.0.5/32".to_owned()));
        assert_eq!(prefix("fd00::/64").map(|one| one.to_string()), Ok("fd00::/64".to_owned()));
        assert!(prefix("10.0.0.5/24").unwrap_err().contains("did you mean 10.0.0.0/24?"));
        assert!(prefix("blue").is_err());
    }

    #[test]
    fn servers_and_told_routes_are_read_as_they_are_written() {
        let servers = ["192.0.2.53", "192.0.2.53:5353", "fd00::53", "[fd00::53]:5353"];
        let shown = ["192.0.2.53:53", "192.0.2.53:5353", "[fd00::53]:53", "[fd00::53]:5353"];
        assert_eq!(servers.map(|one| server(one).unwrap().to_string()), shown);
        assert!(server("ns.example.org").is_err());
        let route = told_route("10.9.0.0/16=10.0.0.5").unwrap();
        assert_eq!(route.destination.to_string(), "10.9.0.0/16");
        assert_eq!(route.gateway, Ipv4Addr::new(10, 0, 0, 5));
        for text in ["10.9.0.0/16", "10.9.0.0/16=", "10.9.0.1/16=10.0.0.5", "=10.0.0.5"] {
            assert!(told_route(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn ages_are_short() {
        assert_eq!(
            [0, 119, 120, 7200, 172_800].map(|ago| age(200_000, 200_000 - ago)),
            ["0s", "119s", "2m", "2h", "2d"]
        );
        assert_eq!(age(5, 9), "0s");
    }
}
