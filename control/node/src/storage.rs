// SPDX-License-Identifier: Apache-2.0
//! The store's answers in the words of the control messages.

use plinth_api as api;
use plinth_store_api as store;

pub(crate) fn usage(detail: store::VolumeDetail) -> api::VolumeUsage {
    api::VolumeUsage {
        size: detail.status.size,
        written: detail.status.written,
        unique: detail.unique,
        snapshots_unique: detail.snapshots_unique,
        snapshots: detail.snapshots.into_iter().map(snapshot).collect(),
        parent: detail.parent.map(|parent| parent.volume),
        job: detail.job.map(job),
    }
}

fn job(job: store::Job) -> api::Job {
    let kind = match job.kind {
        store::JobKind::Clone => api::JobKind::Clone,
        store::JobKind::Flatten => api::JobKind::Flatten,
        store::JobKind::Rollback => api::JobKind::Rollback,
        store::JobKind::Delete => api::JobKind::Delete,
        store::JobKind::SnapshotDelete => api::JobKind::SnapshotDelete,
        store::JobKind::Wipe => api::JobKind::Wipe,
    };
    api::Job { kind, done: job.done, total: job.total }
}

pub(crate) fn snapshot(status: store::SnapshotStatus) -> api::SnapshotUsage {
    api::SnapshotUsage {
        id: status.snapshot,
        name: status.name,
        size: status.size,
        unique: status.unique,
        created_at: status.created_at,
    }
}

pub(crate) const fn level(level: store::Level) -> api::Level {
    match level {
        store::Level::Ok => api::Level::Ok,
        store::Level::Warn => api::Level::Warn,
        store::Level::Nearfull => api::Level::Nearfull,
        store::Level::Full => api::Level::Full,
    }
}

pub(crate) fn disk(status: &store::DiskStatus) -> api::DiskStatus {
    api::DiskStatus {
        id: status.id,
        device: status.device.to_string_lossy().into_owned(),
        state: match status.state {
            store::DiskState::In => api::DiskState::In,
            store::DiskState::Draining => api::DiskState::Draining,
            store::DiskState::Failed => api::DiskState::Failed,
            store::DiskState::Missing => api::DiskState::Missing,
        },
        reason: status.reason.clone(),
        capacity: status.capacity,
        used: status.used,
        level: level(status.level),
        objects: status.objects,
        bad_blocks: status.bad_blocks,
        counters: counters(&status.counters),
    }
}

const fn counters(counters: &store::DiskCounters) -> api::DiskCounters {
    api::DiskCounters {
        reads: counters.reads,
        writes: counters.writes,
        flushes: counters.flushes,
        discards: counters.discards,
        read_bytes: counters.read_bytes,
        written_bytes: counters.written_bytes,
        io_errors: counters.io_errors,
        checksum_errors: counters.checksum_errors,
    }
}

pub(crate) fn bad_block(block: store::BadBlock) -> api::BadBlock {
    api::BadBlock {
        object: block.object,
        volume: block.volume,
        volume_offset: block.volume_offset,
        block: block.block,
        offset: block.offset,
        found_by: match block.found_by {
            store::FoundBy::Read => api::FoundBy::Read,
            store::FoundBy::LightScrub => api::FoundBy::LightScrub,
            store::FoundBy::DeepScrub => api::FoundBy::DeepScrub,
        },
        found_at: block.found_at,
    }
}

pub(crate) const fn range(range: store::DiffRange) -> api::DiffRange {
    api::DiffRange { offset: range.offset, length: range.length, is_zero: range.is_zero }
}

pub(crate) const fn scrub_kind(kind: api::ScrubKind) -> store::ScrubKind {
    match kind {
        api::ScrubKind::Light => store::ScrubKind::Light,
        api::ScrubKind::Deep => store::ScrubKind::Deep,
    }
}

pub(crate) fn scrub(status: store::ScrubStatus) -> api::ScrubView {
    let run = |run: store::ScrubRun| api::ScrubRun {
        kind: match run.kind {
            store::ScrubKind::Light => api::ScrubKind::Light,
            store::ScrubKind::Deep => api::ScrubKind::Deep,
        },
        started_at: run.started_at,
        objects_done: run.objects_done,
        objects_total: run.objects_total,
        bytes: run.bytes,
        found: run.found,
        rate: run.rate,
    };
    api::ScrubView {
        disk: status.disk,
        run: status.run.map(run),
        last_light: status.last_light,
        last_deep: status.last_deep,
        next_light: status.next_light,
        next_deep: status.next_deep,
        last_found: status.last_found,
    }
}

pub(crate) const fn metrics(metrics: &store::AttachmentMetrics) -> api::VolumeMetrics {
    api::VolumeMetrics {
        pool: metrics.pool,
        volume: metrics.volume,
        read: latency(&metrics.read),
        write: latency(&metrics.write),
        flush: latency(&metrics.flush),
        read_bytes: metrics.read_bytes,
        written_bytes: metrics.written_bytes,
        errors: metrics.errors,
        throttled: metrics.throttled,
    }
}

const fn latency(latency: &store::Latency) -> api::Latency {
    api::Latency {
        count: latency.count,
        p50: latency.p50,
        p99: latency.p99,
        p999: latency.p999,
        max: latency.max,
    }
}

pub(crate) fn slow(request: store::SlowRequest) -> api::SlowRequest {
    let wait = |wait: store::Wait| api::Wait { stage: wait.stage, ns: wait.ns };
    api::SlowRequest {
        at_ms: request.at_ms,
        pool: request.pool,
        volume: request.volume,
        kind: request.kind,
        offset: request.offset,
        length: request.length,
        total_ns: request.total_ns,
        waits: request.waits.into_iter().map(wait).collect(),
    }
}
