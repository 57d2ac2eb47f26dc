// SPDX-License-Identifier: Apache-2.0
//! Prefixes with a value each: the longest one that contains an address is found.

use plinth_ids::Prefix;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Both families, each as its lengths and, length by length, its networks in order.
///
/// A lookup halves the networks of one length after the other, longest first. A VPC has few
/// lengths (subnets of one size, some routes, a default), so this is a handful of short searches;
/// it is done once a flow.
#[derive(Debug)]
pub(crate) struct PrefixTable<T> {
    ipv4: Family<T>,
    ipv6: Family<T>,
}

#[derive(Debug)]
struct Family<T> {
    /// Longest first.
    lengths: Box<[Length]>,
    entries: Box<[(u128, T)]>,
}

#[derive(Debug)]
struct Length {
    mask: u128,
    /// Of the entries of this length.
    first: usize,
    end: usize,
}

/// The address in the upper bits, so that both families have their prefixes at one end.
const fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => (address.to_bits() as u128) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}

impl<T> Family<T> {
    fn new(pairs: impl Iterator<Item = (Prefix, T)>) -> Self {
        let mut by_length: BTreeMap<u8, BTreeMap<u128, T>> = BTreeMap::new();
        for (prefix, value) in pairs {
            by_length.entry(prefix.length()).or_default().insert(bits(prefix.network()), value);
        }
        let mut lengths = Vec::new();
        let mut entries = Vec::new();
        for (length, networks) in by_length.into_iter().rev() {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            let first = entries.len();
            entries.extend(networks);
            lengths.push(Length { mask, first, end: entries.len() });
        }
        Self { lengths: lengths.into(), entries: entries.into() }
    }

    fn get(&self, address: u128) -> Option<&T> {
        self.longest(address).map(|(_, value)| value)
    }

    /// With the bits of the prefix's mask.
    fn longest(&self, address: u128) -> Option<(u128, &T)> {
        self.lengths.iter().find_map(|length| {
            let entries = &self.entries[length.first..length.end];
            let network = address & length.mask;
            let place = entries.binary_search_by_key(&network, |(found, _)| *found).ok()?;
            Some((length.mask, &entries[place].1))
        })
    }
}

impl<T> PrefixTable<T> {
    /// The value of the longest prefix that contains `address`.
    pub(crate) fn get(&self, address: IpAddr) -> Option<&T> {
        let family = if address.is_ipv4() { &self.ipv4 } else { &self.ipv6 };
        family.get(bits(address))
    }

    /// The same, with the prefix.
    pub(crate) fn longest(&self, address: IpAddr) -> Option<(Prefix, &T)> {
        let family = if address.is_ipv4() { &self.ipv4 } else { &self.ipv6 };
        let (mask, value) = family.longest(bits(address))?;
        let network: IpAddr = match address {
            IpAddr::V4(address) => {
                let bits = address.to_bits() & u32::try_from(mask >> 96).unwrap_or(0);
                Ipv4Addr::from_bits(bits).into()
            }
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & mask).into(),
        };
        let length = u8::try_from(mask.count_ones()).unwrap_or(u8::MAX);
        Some((Prefix::new(network, length).ok()?, value))
    }
}

impl<T> Default for PrefixTable<T> {
    fn default() -> Self {
        Self::from_iter([])
    }
}

/// Of equal prefixes, the last is kept.
impl<T> FromIterator<(Prefix, T)> for PrefixTable<T> {
    fn from_iter<I: IntoIterator<Item = (Prefix, T)>>(pairs: I) -> Self {
        let pairs = pairs.into_iter();
        let (ipv4, ipv6): (Vec<_>, Vec<_>) = pairs.partition(|(prefix, _)| prefix.is_ipv4());
        Self { ipv4: Family::new(ipv4.into_iter()), ipv6: Family::new(ipv6.into_iter()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Few distinct bits, so that prefixes overlap and addresses fall into them.
    fn address() -> impl Strategy<Value = IpAddr> {
        (any::<bool>(), any::<u8>(), any::<u8>(), any::<bool>()).prop_map(|(is_v4, a, b, low)| {
            let low = u8::from(low);
            if is_v4 {
                Ipv4Addr::new(a & 0xc1, b & 0xc1, 0, low).into()
            } else {
                let high = u16::from_be_bytes([a & 0xc1, b & 0xc1]);
                Ipv6Addr::new(high, 0, 0, 0, 0, 0, 0, low.into()).into()
            }
        })
    }

    fn prefix() -> impl Strategy<Value = Prefix> {
        (address(), any::<u8>()).prop_map(|(address, length)| {
            let bits: u8 = if address.is_ipv4() { 32 } else { 128 };
            let length = length % (bits + 1);
            match Prefix::new(address, length) {
                Ok(prefix) => prefix,
                Err(plinth_ids::PrefixError::HostBits { network, .. }) => {
                    Prefix::new(network, length).unwrap()
                }
                Err(error) => panic!("{error}"),
            }
        })
    }

    proptest! {
        #[test]
        fn the_longest_prefix_that_contains_an_address_decides(
            prefixes in proptest::collection::btree_set(prefix(), 0..24),
            addresses in proptest::collection::vec(address(), 32),
        ) {
            let table: PrefixTable<Prefix> =
                prefixes.iter().map(|&prefix| (prefix, prefix)).collect();
            for address in addresses {
                let containing = prefixes.iter().filter(|prefix| prefix.contains(address));
                let longest = containing.max_by_key(|prefix| prefix.length());
                prop_assert_eq!(table.get(address), longest);
                let named = table.longest(address).map(|(prefix, _)| prefix);
                prop_assert_eq!(named, longest.copied());
            }
        }
    }
}
