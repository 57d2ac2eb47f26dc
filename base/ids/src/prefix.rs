// SPDX-License-Identifier: Apache-2.0
//! Ranges of addresses, as in `10.0.0.0/24`.

use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// The addresses that share their first bits. The bits behind the prefix are zero, so that one
/// range is written in one way only.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    network: IpAddr,
    length: u8,
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PrefixError {
    #[error("{text:?} is no prefix: write an address and a length, as in 10.0.0.0/24")]
    Form { text: String },
    #[error("/{length} is longer than an address of {bits} bits: use /0 to /{bits}")]
    Length { length: u8, bits: u8 },
    #[error("{address}/{length} has bits behind its prefix: did you mean {network}/{length}?")]
    HostBits { address: IpAddr, length: u8, network: IpAddr },
}

/// How many bits the address has.
const fn bits_of(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// `address` with all bits after the first `length` cleared.
fn masked(address: IpAddr, length: u8) -> IpAddr {
    let keep = |bits: u32| bits - u32::from(length);
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(keep(32)).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(keep(128)).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}

impl Prefix {
    /// # Errors
    /// When the length is longer than the address, or the address has bits behind the prefix.
    pub fn new(network: IpAddr, length: u8) -> Result<Self, PrefixError> {
        let bits = bits_of(network);
        if length > bits {
            return Err(PrefixError::Length { length, bits });
        }
        let first = masked(network, length);
        if first != network {
            return Err(PrefixError::HostBits { address: network, length, network: first });
        }
        Ok(Self { network, length })
    }

    /// The range that has this one address.
    pub const fn host(address: IpAddr) -> Self {
        Self { network: address, length: bits_of(address) }
    }

    /// The first address.
    pub const fn network(self) -> IpAddr {
        self.network
    }

    pub const fn length(self) -> u8 {
        self.length
    }

    /// Of an address of this family: 32 or 128.
    pub const fn bits(self) -> u8 {
        bits_of(self.network)
    }

    pub const fn is_ipv4(self) -> bool {
        self.network.is_ipv4()
    }

    /// Whether it is one address.
    pub const fn is_host(self) -> bool {
        self.length == self.bits()
    }

    pub fn contains(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_ipv4() && masked(address, self.length) == self.network
    }

    /// Whether some address is in both: then one of them is inside the other.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }

    /// The last address: of IPv4, the subnet's broadcast address.
    pub fn last(self) -> IpAddr {
        match self.network {
            IpAddr::V4(network) => {
                let hosts = u32::MAX.checked_shr(self.length.into()).unwrap_or(0);
                Ipv4Addr::from_bits(network.to_bits() | hosts).into()
            }
            IpAddr::V6(network) => {
                let hosts = u128::MAX.checked_shr(self.length.into()).unwrap_or(0);
                Ipv6Addr::from_bits(network.to_bits() | hosts).into()
            }
        }
    }
}

/// By the first address, and what holds more before what it holds: prefixes that overlap stand
/// together.
impl Ord for Prefix {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.network, self.length).cmp(&(other.network, other.length))
    }
}

impl PartialOrd for Prefix {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let form = || PrefixError::Form { text: text.to_owned() };
        let (address, length) = text.split_once('/').ok_or_else(form)?;
        if length.is_empty() || !length.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(form());
        }
        let address = address.parse().map_err(|_| form())?;
        Self::new(address, length.parse().map_err(|_| form())?)
    }
}

impl TryFrom<String> for Prefix {
    type Error = PrefixError;

    fn try_from(text: String) -> Result<Self, PrefixError> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn a_prefix_prints_as_it_was_read() {
        for text in ["0.0.0.0/0", "10.0.0.0/8", "10.1.2.3/32", "::/0", "fd00::/64", "fd00::1/128"] {
            assert_eq!(prefix(text).to_string(), text);
        }
    }

    #[test]
    fn each_fault_has_its_own_error() {
        let fault = |text: &str| text.parse::<Prefix>().unwrap_err();
        for text in ["", "10.0.0.0", "10.0.0.0/", "10.0.0.0/+8", "10.0.0/8", "x/8", "10.0.0.0/999"]
        {
            assert!(matches!(fault(text), PrefixError::Form { .. }), "{text}");
        }
        assert_eq!(fault("10.0.0.0/33"), PrefixError::Length { length: 33, bits: 32 });
        assert_eq!(fault("::/129"), PrefixError::Length { length: 129, bits: 128 });
        assert_eq!(
            fault("10.0.0.1/8").to_string(),
            "10.0.0.1/8 has bits behind its prefix: did you mean 10.0.0.0/8?"
        );
        assert!(matches!(fault("fd00::1/64"), PrefixError::HostBits { .. }));
    }

    #[test]
    fn a_prefix_has_its_own_addresses_and_no_other() {
        let has = |range: &str, address: &str| prefix(range).contains(address.parse().unwrap());
        assert!(has("10.0.0.0/24", "10.0.0.255") && !has("10.0.0.0/24", "10.0.1.0"));
        assert!(has("0.0.0.0/0", "255.1.2.3") && !has("0.0.0.0/0", "::1"));
        assert!(has("::/0", "fd00::1") && !has("::/0", "10.0.0.1"));
        assert!(has("10.0.0.1/32", "10.0.0.1") && !has("10.0.0.1/32", "10.0.0.0"));
        assert!(has("fd00::/127", "fd00::1") && !has("fd00::/127", "fd00::2"));
        assert_eq!(prefix("10.0.0.0/30").last().to_string(), "10.0.0.3");
        assert_eq!(prefix("0.0.0.0/0").last().to_string(), "255.255.255.255");
        assert_eq!(prefix("10.0.0.7/32").last().to_string(), "10.0.0.7");
        assert_eq!(prefix("fd00::/126").last().to_string(), "fd00::3");
    }

    #[test]
    fn prefixes_overlap_when_one_is_inside_the_other() {
        let overlap = |one: &str, other: &str| prefix(one).overlaps(prefix(other));
        assert!(overlap("10.0.0.0/8", "10.1.0.0/16") && overlap("10.1.0.0/16", "10.0.0.0/8"));
        assert!(!overlap("10.0.0.0/16", "10.1.0.0/16") && !overlap("0.0.0.0/0", "::/0"));
    }
}
