// SPDX-License-Identifier: Apache-2.0
//! Log-linear buckets: each power of two is cut into 64, so a bucket is at most 1.6 % wide.

/// Parts of a power of two, and their logarithm.
const PARTS: u64 = 64;
const PARTS_LOG: u32 = 6;

/// Values from 2^41 on (a quarter of an hour, at 2.6 GHz) share the last bucket.
const TOP_LOG: u32 = 41;

/// Buckets of a histogram.
pub const BUCKETS: usize = ((TOP_LOG - PARTS_LOG + 1) as usize) << PARTS_LOG;

/// The bucket of a value: up to 63 each its own, then by the leading seven bits.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "both are below 64")]
pub const fn bucket_of(value: u64) -> usize {
    if value < PARTS {
        return value as usize;
    }
    let log = value.ilog2();
    if log >= TOP_LOG {
        return BUCKETS - 1;
    }
    let part = (value >> (log - PARTS_LOG)) - PARTS;
    (((log - PARTS_LOG + 1) as usize) << PARTS_LOG) + part as usize
}

/// The largest value of a bucket.
const fn top_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < PARTS {
        return bucket;
    }
    let (log, part) = (bucket / PARTS - 1, bucket % PARTS);
    ((PARTS + part + 1) << log) - 1
}

/// Counts by bucket, of values in the ticks of whoever counted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Histogram {
    counts: Vec<u64>,
}

impl Histogram {
    pub(crate) fn new(counts: Vec<u64>) -> Self {
        Self { counts }
    }

    pub fn count(&self) -> u64 {
        u64::try_from(self.sum()).unwrap_or(u64::MAX)
    }

    /// Not in danger of overflow, whatever a file says.
    fn sum(&self) -> u128 {
        self.counts.iter().map(|&count| u128::from(count)).sum()
    }

    /// The value that so many of a thousand do not exceed, as the top of its bucket: at most 1.6 %
    /// too large. Zero of an empty histogram.
    pub fn quantile(&self, thousandths: u64) -> u64 {
        let rank = self.sum() * u128::from(thousandths.min(1000));
        let rank = rank.div_ceil(1000).max(1);
        let mut below = 0_u128;
        for (bucket, &count) in self.counts.iter().enumerate() {
            below += u128::from(count);
            if below >= rank {
                return top_of(bucket);
            }
        }
        0
    }

    /// The top of the last bucket in use.
    pub fn max(&self) -> u64 {
        self.counts.iter().rposition(|&count| count > 0).map_or(0, top_of)
    }

    /// What came since an earlier picture of the same histogram.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let counts = self.counts.iter().zip(&earlier.counts);
        Self { counts: counts.map(|(now, then)| now.saturating_sub(*then)).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket_and_buckets_are_narrow() {
        let mut values: Vec<u64> = (0..4096).collect();
        for log in 6..41 {
            for part in [0, 1, 17, 63] {
                let low = (64 + part) << (log - 6);
                values.extend([low - 1, low, low + 1]);
            }
        }
        values.sort_unstable();
        let mut last = 0;
        for value in values {
            let bucket = bucket_of(value);
            assert!(bucket >= last && bucket < BUCKETS, "{value}");
            last = bucket;
            let top = top_of(bucket);
            assert!(top >= value && (top - value) * 64 <= value, "{value}: {top}");
            assert!(bucket == 0 || top_of(bucket - 1) < value, "{value}");
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn a_quantile_is_the_value_that_sorting_gives_within_a_bucket() {
        let mut counts = vec![0; BUCKETS];
        let mut values: Vec<u64> = (1..=1000).map(|n| n * n * 37).collect();
        for &value in &values {
            counts[bucket_of(value)] += 1;
        }
        values.sort_unstable();
        let histogram = Histogram::new(counts);
        assert_eq!(histogram.count(), 1000);
        for thousandths in [1, 500, 990, 999, 1000] {
            let exact = values[usize::try_from(thousandths).unwrap() - 1];
            let seen = histogram.quantile(thousandths);
            assert!(seen >= exact && (seen - exact) * 64 <= exact, "{thousandths}: {seen} {exact}");
        }
        assert_eq!(histogram.max(), histogram.quantile(1000));
        assert_eq!(histogram.since(&histogram).count(), 0);
        assert_eq!(histogram.since(&histogram).quantile(500), 0);
        assert_eq!(Histogram::new(vec![u64::MAX; 3]).quantile(999), 2);
    }
}
