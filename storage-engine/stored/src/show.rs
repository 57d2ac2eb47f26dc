// SPDX-License-Identifier: Apache-2.0
//! What was measured, in the words of the interface and for people.

use crate::meter::{
    BAD_BLOCKS, DISCARDS, FAILED, HELD, READ_BYTES, REFUSED, UNDER_WAY, WRITTEN_BYTES,
};
use crate::slow::Slow;
use plinth_backends::blk::{BlkOperation, SECTOR_SIZE};
use plinth_ids::{DiskId, PoolId, VolumeId};
use plinth_metrics::{Kind, Operation, Picture, Row};
use plinth_store_api::{
    AttachmentMetrics, DiskCounters, DiskMetrics, Latency, Metrics, SlowRequest, Wait,
};
use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

fn latency(picture: &Picture, row: &Row, operation: Operation) -> Latency {
    let histogram = row.histogram(operation);
    let at = |thousandths| picture.nanoseconds(histogram.quantile(thousandths));
    Latency {
        count: histogram.count(),
        p50: at(500),
        p99: at(990),
        p999: at(999),
        max: picture.nanoseconds(histogram.max()),
    }
}

/// The answer to `metrics`.
pub(crate) fn metrics(picture: &Picture) -> Metrics {
    let of = |kind| picture.rows.iter().filter(move |row| row.kind == kind);
    let attachment = |row: &Row| AttachmentMetrics {
        pool: PoolId(row.pool),
        volume: VolumeId(row.id),
        read: latency(picture, row, Operation::Read),
        write: latency(picture, row, Operation::Write),
        flush: latency(picture, row, Operation::Flush),
        read_bytes: row.counters[READ_BYTES],
        written_bytes: row.counters[WRITTEN_BYTES],
        errors: row.counters[FAILED].saturating_add(row.counters[REFUSED]),
        throttled: row.counters[HELD],
    };
    let disk = |row: &Row| {
        let count = |operation| row.histogram(operation).count();
        DiskMetrics {
            pool: PoolId(row.pool),
            disk: DiskId(u32::try_from(row.id).unwrap_or(u32::MAX)),
            read: latency(picture, row, Operation::Read),
            write: latency(picture, row, Operation::Write),
            flush: latency(picture, row, Operation::Flush),
            counters: DiskCounters {
                reads: count(Operation::Read),
                writes: count(Operation::Write),
                flushes: count(Operation::Flush),
                discards: row.counters[DISCARDS],
                read_bytes: row.counters[READ_BYTES],
                written_bytes: row.counters[WRITTEN_BYTES],
                io_errors: row.counters[FAILED],
                checksum_errors: row.counters[BAD_BLOCKS],
            },
        }
    };
    Metrics {
        attachments: of(Kind::Attachment).map(attachment).collect(),
        disks: of(Kind::Disk).map(disk).collect(),
    }
}

/// The answer to `slow-requests`: times of the cycle counter become times of day and nanoseconds.
/// `rate` is of the counter, which is at `cycles` now.
pub(crate) fn slow_requests(slow: &[Slow], rate: u64, cycles: u64) -> Vec<SlowRequest> {
    // A clock before 1970 is no reason to show nothing.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let between = |from: u64, to: u64| {
        let ticks = u128::from(to.saturating_sub(from));
        u64::try_from(ticks * 1_000_000_000 / u128::from(rate.max(1))).unwrap_or(u64::MAX)
    };
    let bytes = |sectors: u32| u64::from(sectors) * SECTOR_SIZE;
    let request = |slow: &Slow| {
        let (kind, sector, length) = match slow.operation {
            BlkOperation::Read { sector, length } => ("read", sector, u64::from(length)),
            BlkOperation::Write { sector, length } => ("write", sector, u64::from(length)),
            BlkOperation::Flush => ("flush", 0, 0),
            BlkOperation::Discard { sector, sectors } => ("discard", sector, bytes(sectors)),
            BlkOperation::WriteZeroes { sector, sectors, .. } => {
                ("write-zeroes", sector, bytes(sectors))
            }
        };
        let times = slow.times;
        let waits = [
            ("limits", times.taken, times.admitted),
            ("share", times.admitted, times.started),
            ("store", times.started, slow.ended),
        ];
        SlowRequest {
            at_ms: now.saturating_sub(between(times.taken, cycles) / 1_000_000),
            pool: slow.pool,
            volume: slow.volume,
            kind: kind.to_owned(),
            offset: sector * SECTOR_SIZE,
            length,
            total_ns: between(times.taken, slow.ended),
            waits: waits
                .into_iter()
                .map(|(stage, from, to)| Wait { stage: stage.to_owned(), ns: between(from, to) })
                .collect(),
        }
    };
    slow.iter().map(request).collect()
}

/// A picture for people, times in microseconds.
pub(crate) fn print(picture: &Picture) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "process {}, {} rows", picture.process, picture.rows.len())?;
    if picture.unread > 0 {
        writeln!(out, "{} rows could not be read: try again", picture.unread)?;
    }
    writeln!(
        out,
        "{:<24} {:<5} {:>12} {:>10} {:>10} {:>10} {:>10}",
        "", "", "count", "p50 us", "p99 us", "p99.9 us", "max us"
    )?;
    for row in &picture.rows {
        let pool = PoolId(row.pool);
        let name = match row.kind {
            Kind::Attachment => format!("{pool} {}", VolumeId(row.id)),
            Kind::Disk => format!("{pool} disk-{}", row.id),
        };
        for (what, operation) in
            [("read", Operation::Read), ("write", Operation::Write), ("flush", Operation::Flush)]
        {
            let Latency { count, p50, p99, p999, max } = latency(picture, row, operation);
            let us = |ns: u64| format!("{}.{}", ns / 1000, ns % 1000 / 100);
            let (p50, p99, p999, max) = (us(p50), us(p99), us(p999), us(max));
            writeln!(
                out,
                "{name:<24} {what:<5} {count:>12} {p50:>10} {p99:>10} {p999:>10} {max:>10}"
            )?;
        }
        let [read, written] = [READ_BYTES, WRITTEN_BYTES].map(|place| row.counters[place]);
        let (failed, now) = (row.counters[FAILED], row.counters[UNDER_WAY]);
        writeln!(
            out,
            "{name:<24} {read} bytes read, {written} written, {failed} failed, {now} under way"
        )?;
    }
    Ok(())
}
