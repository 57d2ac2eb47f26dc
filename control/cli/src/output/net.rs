// SPDX-License-Identifier: Apache-2.0
//! What a switch says of its packets, for people.

use crate::table::Table;
use plinth_planner::Size;
use plinth_switch_api::{
    AnswerCounts, DropRow, ExternalStatus, FlowPage, Sight, Status, Trace, TraceVerdict,
};
use std::fmt::Write;
use std::time::Duration;

/// A `Sight` of the switch, given as its JSON. One of a newer switch is shown as it came.
pub(super) fn text(sight: &str) -> String {
    match serde_json::from_str(sight) {
        Ok(Sight::Status(view)) => status(&view),
        Ok(Sight::Drops(rows)) => drops(&rows),
        Ok(Sight::Flows(page)) => flows(&page),
        Ok(Sight::External(list)) => external(&list),
        Ok(Sight::Trace(view)) => trace(&view),
        // All have a verb of their own.
        Ok(Sight::CaptureBegun(_) | Sight::Capture(_) | Sight::Backends(_)) | Err(_) => {
            format!("{sight}\n")
        }
    }
}

/// A row for each stage of each worker, with its cycles a packet since the switch started.
fn status(view: &Status) -> String {
    let mut text = format!("switch {} process {} {}\n", view.version, view.process, view.memory);
    for (number, worker) in view.workers.iter().enumerate() {
        let cpu = worker.cpu.map_or_else(String::new, |cpu| format!(" cpu {cpu}"));
        let _ = writeln!(
            text,
            "worker {number}{cpu} busy {:.1}% packets {} sleeps {}",
            worker.busy * 100.0,
            worker.packets,
            worker.sleeps
        );
        let mut table = Table::new(["STAGE", "PACKETS", "CYCLES", "CYCLES/PACKET"]);
        for stage in &worker.stages {
            let each = stage.cycles.checked_div(stage.packets);
            table.row([
                stage.name.clone(),
                stage.packets.to_string(),
                stage.cycles.to_string(),
                each.map(|cycles| cycles.to_string()).unwrap_or_default(),
            ]);
        }
        text += &table.print();
    }
    let AnswerCounts { questions, answers, forwarded, metadata, advertisements, lost } =
        view.answers;
    let _ = writeln!(
        text,
        "answers to guests: questions {questions} answered {answers} forwarded {forwarded} \
         metadata {metadata} advertisements {advertisements} lost {lost}"
    );
    text
}

/// A row for each external address.
fn external(list: &[ExternalStatus]) -> String {
    let mut table = Table::new([
        "ADDRESS",
        "PACKETS OUT",
        "BYTES OUT",
        "DROPPED",
        "PACKETS IN",
        "BYTES IN",
        "DROPPED",
    ]);
    for one in list {
        table.row([
            one.address.to_string(),
            one.packets_out.to_string(),
            Size(one.bytes_out).to_string(),
            one.dropped_out.to_string(),
            one.packets_in.to_string(),
            Size(one.bytes_in).to_string(),
            one.dropped_in.to_string(),
        ]);
    }
    table.print()
}

fn drops(rows: &[DropRow]) -> String {
    let mut table = Table::new(["PORT", "NAME", "VPC", "REASON", "PACKETS"]);
    for row in rows {
        table.row(cells(row, row.packets.to_string()));
    }
    table.print()
}

/// Drops of one interval.
pub(crate) fn live_drops(rows: &[DropRow], interval: Duration) -> String {
    let mut table = Table::new(["PORT", "NAME", "VPC", "REASON", "PACKETS/S"]);
    for row in rows {
        let rate = row.packets.div_ceil(interval.as_secs().max(1));
        table.row(cells(row, rate.to_string()));
    }
    table.print()
}

fn cells(row: &DropRow, packets: String) -> [String; 5] {
    let vni = row.vni.map(|vni| vni.to_string()).unwrap_or_default();
    [
        row.port.to_string(),
        row.name.clone(),
        row.vpc.clone().unwrap_or(vni),
        row.reason.clone(),
        packets,
    ]
}

fn flows(page: &FlowPage) -> String {
    let mut table = Table::new([
        "PORT",
        "VNI",
        "FLOW",
        "ACTION",
        "STATE",
        "AGE",
        "IDLE",
        "PACKETS",
        "BYTES",
        "BACK",
        "BYTES BACK",
    ]);
    for row in &page.flows {
        table.row([
            row.name.clone(),
            row.vni.to_string(),
            row.key.clone(),
            row.action.clone(),
            row.state.clone().unwrap_or_default(),
            tenths(row.age_ms),
            tenths(row.idle_ms),
            row.packets.to_string(),
            Size(row.bytes).to_string(),
            row.packets_back.map(|packets| packets.to_string()).unwrap_or_default(),
            row.bytes_back.map(|bytes| Size(bytes).to_string()).unwrap_or_default(),
        ]);
    }
    let mut text = table.print();
    if let Some(next) = page.next {
        let _ = writeln!(text, "there is more: --cursor {next}");
    }
    text
}

/// A line for each stage, and the verdict.
pub(crate) fn trace(view: &Trace) -> String {
    let mut text = String::new();
    for step in &view.steps {
        let _ = match &step.refused {
            None => writeln!(text, "{:<11} {}", step.stage, step.text),
            Some(reason) if step.text.is_empty() => {
                writeln!(text, "{:<11} refused: {reason}", step.stage)
            }
            Some(reason) => {
                writeln!(text, "{:<11} {}: refused: {reason}", step.stage, step.text)
            }
        };
    }
    let _ = match &view.verdict {
        TraceVerdict::Sent(to) => writeln!(text, "verdict     sent to {to}"),
        TraceVerdict::Answered => writeln!(text, "verdict     answered by the switch"),
        TraceVerdict::Asked => writeln!(text, "verdict     answered beside the worker"),
        TraceVerdict::Absorbed => writeln!(text, "verdict     absorbed"),
        TraceVerdict::Dropped(reason) => writeln!(text, "verdict     dropped: {reason}"),
    };
    text
}

fn tenths(milliseconds: u64) -> String {
    format!("{}.{}s", milliseconds / 1000, milliseconds % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use plinth_ids::Epoch;
    use plinth_switch_api::TraceStep;

    #[test]
    fn a_trace_has_a_line_for_each_stage_and_ends_with_the_verdict() {
        let step = |stage: &str, text: &str, refused: Option<&str>| TraceStep {
            stage: stage.to_owned(),
            text: text.to_owned(),
            refused: refused.map(str::to_owned),
        };
        let steps = vec![
            step("parse", "udp 10.0.0.1:1 > 10.0.0.2:2", None),
            step("rules in", "port a: denied by rule 2 of group web", Some("denied")),
        ];
        let view = Trace { steps, verdict: TraceVerdict::Dropped("denied".to_owned()) };
        assert_eq!(
            trace(&view),
            "parse       udp 10.0.0.1:1 > 10.0.0.2:2\n\
             rules in    port a: denied by rule 2 of group web: refused: denied\n\
             verdict     dropped: denied\n"
        );
        let steps = vec![step("output", "", Some("no-hop"))];
        let view = Trace { steps, verdict: TraceVerdict::Sent("uplink".to_owned()) };
        assert_eq!(trace(&view), "output      refused: no-hop\nverdict     sent to uplink\n");
    }

    #[test]
    fn a_status_ends_with_what_the_switch_answered() {
        let counts = AnswerCounts {
            questions: 9,
            answers: 7,
            forwarded: 2,
            metadata: 3,
            advertisements: 4,
            lost: 1,
        };
        let view = Status {
            process: 12,
            version: "0.1.0".to_owned(),
            epoch: Some(Epoch(3)),
            memory: "ordinary pages".to_owned(),
            workers: Vec::new(),
            answers: counts,
        };
        assert_eq!(
            status(&view),
            "switch 0.1.0 process 12 ordinary pages\nanswers to guests: questions 9 answered 7 \
             forwarded 2 metadata 3 advertisements 4 lost 1\n"
        );
    }
}
