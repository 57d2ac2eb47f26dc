// SPDX-License-Identifier: Apache-2.0
//! Volumes, snapshots, disks and scrubs, and what is measured of them, for people.

use super::{bytes, word};
use crate::table::{Details, Table};
use crate::text::age;
use plinth_api::{
    DiffRange, LimitView, PoolDiskView, ResourceState, ScheduleView, ScrubSchedule, ScrubView,
    SlowRequestView, SnapshotView, VolumeLimits, VolumeStatsView, VolumeView,
};
use plinth_planner::Size;

pub(super) fn volumes(views: &[VolumeView]) -> String {
    let mut table = Table::new([
        "NAME",
        "POOL",
        "NODE",
        "STATE",
        "SIZE",
        "WRITTEN",
        "SNAPSHOTS",
        "VM",
        "IMAGE",
    ]);
    for view in views {
        table.row([
            view.name.to_string(),
            view.pool.to_string(),
            view.node.to_string(),
            word(&view.state),
            Size(view.size).to_string(),
            bytes(view.written),
            view.snapshots.to_string(),
            view.vm.as_ref().map(ToString::to_string).unwrap_or_default(),
            view.image.as_ref().map(ToString::to_string).unwrap_or_default(),
        ]);
    }
    table.print()
}

pub(super) fn volume(view: &VolumeView, now: u64) -> String {
    let usage = view.usage.as_ref();
    let job = usage.and_then(|usage| usage.job.as_ref());
    Details::default()
        .line("name", &view.name)
        .line("id", view.id)
        .line("pool", &view.pool)
        .line("node", &view.node)
        .line("state", word(&view.state))
        .line("provisioned", Size(view.size))
        .line("written", bytes(view.written))
        .some("unique", usage.map(|usage| Size(usage.unique)))
        .some("snapshots", (view.snapshots > 0).then_some(view.snapshots))
        .some(
            "in snapshots",
            usage.filter(|_| view.snapshots > 0).map(|usage| Size(usage.snapshots_unique)),
        )
        .some("shares with", usage.and_then(|usage| usage.parent))
        .some(
            "under way",
            job.map(|job| format!("{}, {} of {} objects", word(&job.kind), job.done, job.total)),
        )
        .some("image", view.image.as_ref())
        .some("vm", view.vm.as_ref())
        .some("limits", view.limits.map(|limits| limits_text(&limits)))
        .line("kind", if view.is_system { "system disk" } else { "data" })
        .line("age", age(now, view.created_at))
        .print()
}

fn limits_text(limits: &VolumeLimits) -> String {
    let mut parts = Vec::new();
    if limits.iops > 0 {
        parts.push(format!("{} requests/s", limits.iops));
    }
    if limits.iops_burst > 0 {
        parts.push(format!("{} at once", limits.iops_burst));
    }
    if limits.bytes_per_second > 0 {
        parts.push(format!("{}B/s", Size(limits.bytes_per_second)));
    }
    if limits.bytes_burst > 0 {
        parts.push(format!("{}B at once", Size(limits.bytes_burst)));
    }
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}

pub(super) fn limits(view: &LimitView) -> String {
    let text = view.limits.map_or_else(|| "none".to_owned(), |limits| limits_text(&limits));
    Details::default()
        .line("volume", &view.volume)
        .line("limits", text)
        .line("from", if view.is_chosen { "an operator" } else { "the pool's class" })
        .print()
}

pub(super) fn snapshots(views: &[SnapshotView], now: u64) -> String {
    let mut table = Table::new(["NAME", "VOLUME", "STATE", "SIZE", "UNIQUE", "MADE BY", "AGE"]);
    for view in views {
        table.row([
            view.name.to_string(),
            view.volume.to_string(),
            word(&view.state),
            Size(view.size).to_string(),
            bytes(view.unique),
            if view.is_scheduled { "schedule" } else { "hand" }.to_owned(),
            age(now, view.created_at),
        ]);
    }
    table.print()
}

pub(super) fn schedule(view: &ScheduleView, now: u64) -> String {
    Details::default()
        .line("volume", &view.volume)
        .line("every", seconds(view.interval_seconds))
        .line("keep", view.keep)
        .line("next", format!("in {}", age(view.next_at, now)))
        .line("snapshots", view.snapshots)
        .some("fault", view.fault.as_ref())
        .print()
}

/// A time in its largest whole unit, as it is given to a verb.
fn seconds(time: u64) -> String {
    for (letter, factor) in [('d', 86_400), ('h', 3_600), ('m', 60)] {
        if time.is_multiple_of(factor) {
            return format!("{}{letter}", time / factor);
        }
    }
    format!("{time}s")
}

pub(super) fn scrub_schedule(schedule: &ScrubSchedule) -> String {
    let every = |time: Option<u64>| time.map_or_else(|| "off".to_owned(), seconds);
    format!(
        "light {}, deep {}, {}B/s",
        every(schedule.light_seconds),
        every(schedule.deep_seconds),
        Size(schedule.rate)
    )
}

pub(super) fn diff(ranges: &[DiffRange]) -> String {
    let mut table = Table::new(["OFFSET", "LENGTH", "NOW"]);
    for range in ranges {
        table.row([
            range.offset.to_string(),
            range.length.to_string(),
            if range.is_zero { "zeros" } else { "data" }.to_owned(),
        ]);
    }
    table.print()
}

pub(super) fn disks(views: &[PoolDiskView]) -> String {
    let mut table = Table::new([
        "POOL", "DISK", "NODE", "STATE", "LEVEL", "USED", "CAPACITY", "OBJECTS", "BAD", "DEVICE",
    ]);
    for view in views {
        let status = view.status.as_ref();
        table.row([
            view.pool.to_string(),
            view.disk.to_string(),
            view.node.to_string(),
            disk_state(view),
            status.map(|status| word(&status.level)).unwrap_or_default(),
            bytes(status.map(|status| status.used)),
            bytes(status.map(|status| status.capacity)),
            status.map(|status| status.objects.to_string()).unwrap_or_default(),
            status.map(|status| status.bad_blocks.to_string()).unwrap_or_default(),
            view.device.clone(),
        ]);
    }
    table.print()
}

fn disk_state(view: &PoolDiskView) -> String {
    match (view.resource, &view.status) {
        (ResourceState::Ready, Some(status)) => word(&status.state),
        (ResourceState::Ready, None) => String::new(),
        (resource, _) => word(&resource),
    }
}

pub(super) fn disk(view: &PoolDiskView, now: u64) -> String {
    let details = Details::default()
        .line("pool", &view.pool)
        .line("disk", view.disk)
        .line("node", &view.node)
        .line("device", &view.device)
        .line("state", disk_state(view));
    let Some(status) = &view.status else { return details.print() };
    let done = &status.counters;
    let mut text = details
        .some("reason", status.reason.as_ref())
        .line("capacity", Size(status.capacity))
        .line("used", Size(status.used))
        .line("level", word(&status.level))
        .line("objects", status.objects)
        .line("reads", format!("{} of {}B", done.reads, Size(done.read_bytes)))
        .line("writes", format!("{} of {}B", done.writes, Size(done.written_bytes)))
        .line("flushes", done.flushes)
        .line("discards", done.discards)
        .line("io errors", done.io_errors)
        .line("checksum errors", done.checksum_errors)
        .line("bad blocks", status.bad_blocks)
        .print();
    if !view.bad_blocks.is_empty() {
        let mut table =
            Table::new(["OBJECT", "BLOCK", "VOLUME", "AT", "ON DISK", "FOUND BY", "AGE"]);
        for block in &view.bad_blocks {
            table.row([
                block.object.clone(),
                block.block.to_string(),
                block.volume.map(|volume| volume.to_string()).unwrap_or_default(),
                block.volume_offset.map(|offset| offset.to_string()).unwrap_or_default(),
                block.offset.to_string(),
                word(&block.found_by),
                age(now, block.found_at),
            ]);
        }
        text.push('\n');
        text.push_str(&table.print());
    }
    text
}

pub(super) fn scrubs(views: &[ScrubView], now: u64) -> String {
    let mut table = Table::new([
        "DISK",
        "RUNNING",
        "DONE",
        "FOUND",
        "RATE",
        "LAST LIGHT",
        "LAST DEEP",
        "LAST FOUND",
    ]);
    let ago = |then: Option<u64>| then.map(|then| age(now, then)).unwrap_or_default();
    for view in views {
        let run = view.run.as_ref();
        table.row([
            view.disk.to_string(),
            run.map(|run| word(&run.kind)).unwrap_or_default(),
            run.map(|run| format!("{} of {}", run.objects_done, run.objects_total))
                .unwrap_or_default(),
            run.map(|run| run.found.to_string()).unwrap_or_default(),
            run.map(|run| format!("{}B/s", Size(run.rate))).unwrap_or_default(),
            ago(view.last_light),
            ago(view.last_deep),
            view.last_found.to_string(),
        ]);
    }
    table.print()
}

pub(super) fn stats(views: &[VolumeStatsView]) -> String {
    let mut table =
        Table::new(["VOLUME", "KIND", "REQUESTS", "P50", "P99", "P99.9", "MAX", "THROTTLED"]);
    for view in views {
        let metrics = &view.metrics;
        for (kind, latency) in
            [("read", &metrics.read), ("write", &metrics.write), ("flush", &metrics.flush)]
        {
            let throttled =
                if kind == "read" { metrics.throttled.to_string() } else { String::new() };
            table.row([
                view.volume.to_string(),
                kind.to_owned(),
                latency.count.to_string(),
                duration(latency.p50),
                duration(latency.p99),
                duration(latency.p999),
                duration(latency.max),
                throttled,
            ]);
        }
    }
    table.print()
}

/// Nanoseconds with three digits at most and a unit.
fn duration(ns: u64) -> String {
    let (whole, unit) = match ns {
        0..1_000 => return format!("{ns}ns"),
        1_000..1_000_000 => (1_000, "us"),
        1_000_000..1_000_000_000 => (1_000_000, "ms"),
        _ => (1_000_000_000, "s"),
    };
    if ns / whole < 10 {
        format!("{}.{}{unit}", ns / whole, ns % whole / (whole / 10))
    } else {
        format!("{}{unit}", ns / whole)
    }
}

pub(super) fn slow(views: &[SlowRequestView], now: u64) -> String {
    let mut table = Table::new(["AGE", "VOLUME", "KIND", "OFFSET", "LENGTH", "TOOK", "WAITED FOR"]);
    for view in views {
        let request = &view.request;
        let waits: Vec<String> = request
            .waits
            .iter()
            .map(|wait| format!("{} {}", wait.stage, duration(wait.ns)))
            .collect();
        table.row([
            age(now, request.at_ms / 1000),
            view.volume.to_string(),
            request.kind.clone(),
            request.offset.to_string(),
            Size(request.length).to_string(),
            duration(request.total_ns),
            waits.join(", "),
        ]);
    }
    table.print()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_have_few_digits() {
        let shown = [0, 999, 1_000, 9_999, 10_000, 1_500_000, 2_000_000_000].map(duration);
        assert_eq!(shown, ["0ns", "999ns", "1.0us", "9.9us", "10us", "1.5ms", "2.0s"]);
    }

    #[test]
    fn a_time_is_said_as_it_is_given() {
        let shown = [86_400, 3_600, 5_400, 90].map(seconds);
        assert_eq!(shown, ["1d", "1h", "90m", "90s"]);
    }
}
