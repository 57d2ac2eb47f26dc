// SPDX-License-Identifier: Apache-2.0
//! The table by which a client's address says its backend (Eisenbud et al., "Maglev", NSDI 2016,
//! section 3.4; ADR-127).
//!
//! Every backend has an order of preference over all places of the table, made of its address and
//! port alone. Backends take places by turns, each the first free one of its order, until none is
//! free. So all nodes make the same table, each backend has its share to within a place, and when
//! one goes, its places go to the others and few others change.

use plinth_switch_api::hash_places;
use std::net::IpAddr;

/// One backend as the table sees it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Seat {
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    pub(crate) weight: u16,
}

/// Fills a table with numbers of `seats`, of which there are fewer than [`FREE`] and at least one.
pub(crate) fn fill(seats: &[Seat]) -> Box<[u16]> {
    let size = hash_places(seats.len());
    let mut table: Box<[u16]> = vec![FREE; size as usize].into();
    let heaviest = seats.iter().map(|seat| u32::from(seat.weight)).max().unwrap_or(1).max(1);
    let mut orders: Vec<Order> =
        seats.iter().map(|seat| Order::new(seat, size, heaviest)).collect();
    let mut left = size;
    while left > 0 {
        for (order, number) in orders.iter_mut().zip(0..) {
            if left == 0 {
                break;
            }
            if !order.has_turn(heaviest) {
                continue;
            }
            while table[order.at as usize] != FREE {
                order.go_on(size);
            }
            table[order.at as usize] = number;
            left -= 1;
        }
    }
    table
}

/// What stands at a place that nobody has taken.
const FREE: u16 = u16::MAX;

/// A backend's way through the table, and its right to a turn.
struct Order {
    at: u32,
    step: u32,
    weight: u32,
    credit: u32,
}

impl Order {
    fn new(seat: &Seat, size: u32, heaviest: u32) -> Self {
        let hash = mix(hash_of(seat.address) ^ u64::from(seat.port).rotate_left(32));
        Self {
            at: reduced(hash, size),
            step: 1 + reduced(mix(hash), size - 1),
            weight: u32::from(seat.weight).max(1),
            // So that a share is rounded and not cut.
            credit: heaviest / 2,
        }
    }

    /// The heaviest has one every round, the others as often as their weight is part of its.
    const fn has_turn(&mut self, heaviest: u32) -> bool {
        self.credit += self.weight;
        let has_turn = self.credit >= heaviest;
        if has_turn {
            self.credit -= heaviest;
        }
        has_turn
    }

    const fn go_on(&mut self, size: u32) {
        self.at = (self.at + self.step) % size;
    }
}

/// A hash of an address that is the same everywhere.
pub(crate) fn hash_of(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => mix(u64::from(address.to_bits())),
        IpAddr::V6(address) => {
            let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address.octets();
            let network = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
            mix(mix(network) ^ u64::from_be_bytes([i, j, k, l, m, n, o, p]))
        }
    }
}

/// SplitMix64's last step, which is a bijection.
pub(crate) const fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A number below `bound`, each as probable.
pub(crate) const fn reduced(hash: u64, bound: u32) -> u32 {
    (((hash >> 32) * bound as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn seats(count: u16) -> Vec<Seat> {
        let seat = |number: u16| Seat {
            address: Ipv4Addr::from_bits(0x0a00_0000 | u32::from(number)).into(),
            port: 80,
            weight: 10,
        };
        (0..count).map(seat).collect()
    }

    fn shares(table: &[u16], count: usize) -> Vec<u32> {
        let mut shares = vec![0; count];
        for &number in table {
            shares[usize::from(number)] += 1;
        }
        shares
    }

    #[test]
    fn every_backend_of_one_weight_has_its_share_to_within_a_place() {
        for count in [1, 2, 3, 7, 10, 33, 100, 640, 1000] {
            let table = fill(&seats(count));
            let shares = shares(&table, count.into());
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(most - least <= 1, "{count} backends have {least} to {most} places");
        }
    }

    #[test]
    fn weights_are_shares_to_within_a_place_or_two() {
        let mut seats = seats(30);
        for (seat, weight) in seats.iter_mut().zip((1..=100).step_by(3).cycle()) {
            seat.weight = weight;
        }
        let total: u32 = seats.iter().map(|seat| u32::from(seat.weight)).sum();
        let table = fill(&seats);
        let size = u32::try_from(table.len()).unwrap();
        for (seat, share) in seats.iter().zip(shares(&table, 30)) {
            let fair = f64::from(u32::from(seat.weight) * size) / f64::from(total);
            assert!((f64::from(share) - fair).abs() < 2.0, "{seat:?} has {share} of {fair}");
        }
    }

    /// Places that had somebody who is there before and after, and have another now, in parts of
    /// the table.
    fn disturbed(before: &[Seat], after: &[Seat]) -> f64 {
        let (old, new) = (fill(before), fill(after));
        assert_eq!(old.len(), new.len(), "a change of size disturbs everybody");
        let pairs = old
            .iter()
            .zip(&new)
            .map(|(&old, &new)| (before[usize::from(old)], after[usize::from(new)]));
        let extra = pairs.filter(|(old, new)| {
            let stays = after.contains(old) && before.contains(new);
            stays && old != new
        });
        extra.count() as f64 / old.len() as f64
    }

    #[test]
    fn a_change_of_one_in_a_hundred_backends_disturbs_less_than_one_percent_beside_its_share() {
        let all = seats(101);
        let mut worst: f64 = 0.0;
        for gone in 0..100 {
            let mut without = all[..100].to_vec();
            without.remove(gone);
            worst = worst.max(disturbed(&all[..100], &without));
        }
        assert!(worst < 0.01, "a backend that goes disturbs {worst}");
        let come = disturbed(&all[..100], &all);
        assert!(come < 0.01, "a backend that comes disturbs {come}");
    }

    #[test]
    fn a_table_grows_with_its_backends_up_to_a_bound() {
        assert_eq!(hash_places(0), 251);
        assert_eq!(hash_places(100), 65_537);
        assert_eq!(hash_places(100_000), 65_537);
    }

    #[test]
    fn clients_are_spread() {
        let mut shares = [0_u32; 10];
        for client in 0..100_000_u32 {
            let hash = hash_of(Ipv4Addr::from_bits(0xc000_0000 | client).into());
            shares[reduced(hash, 10) as usize] += 1;
        }
        assert!(shares.iter().all(|&share| (9_500..10_500).contains(&share)), "{shares:?}");
    }
}
