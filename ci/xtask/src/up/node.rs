// SPDX-License-Identifier: Apache-2.0
//! One node: its configuration and its plinthd.

use super::cli::Cli;
use super::layout::{Layout, PREFIX_LENGTH, UNDERLAY};
use super::text;
use anyhow::{Context, Result, anyhow};
use plinth_qemu::{Identity, Process, detached};
use std::path::{Path, PathBuf};

/// Makes the cluster on the first node, joins the others, unless that is done.
pub(super) fn configure(layout: &Layout, number: u8, cli: &Cli) -> Result<()> {
    let state = layout.state(number);
    if state.join("plinthd.toml").exists() {
        return Ok(());
    }
    let name = layout.name(number);
    let state = text(&state);
    let agent = layout.agent(number).to_string();
    let join = layout.join().to_string();
    let service = layout.service().to_string();
    let underlay = layout.vtep(number).map(|vtep| {
        (format!("{vtep}/{PREFIX_LENGTH}"), format!("net_af_packet0,iface={UNDERLAY}"))
    });
    let mut words = if number == 1 {
        vec!["cluster", "init", "--node", &name, "--listen", &service]
    } else {
        vec!["node", "join"]
    };
    let token;
    if number != 1 {
        token = cli.ask(&["node", "token"])?;
        let token = token["token"].as_str().ok_or_else(|| anyhow!("no token was given"))?;
        words.extend([token, "--name", &name]);
    }
    words.extend(["--join", &join, "--agent", &agent, "--state-dir", &state]);
    if let Some((vtep, device)) = &underlay {
        words.extend(["--vtep", vtep, "--underlay-device", device]);
    }
    cli.ask(&words).map(drop)
}

/// Where it is written which process a node's plinthd is.
fn record(layout: &Layout, number: u8) -> PathBuf {
    layout.run(number).join("plinthd.process")
}

/// Starts plinthd in its namespace, unless it runs.
pub(super) fn start(layout: &Layout, number: u8) -> Result<()> {
    if is_running(layout, number) {
        return Ok(());
    }
    let (state, run) = (layout.state(number), layout.run(number));
    std::fs::create_dir_all(&run).with_context(|| format!("cannot make {}", run.display()))?;
    let daemon = text(&crate::shell::programs().join("plinthd"));
    let mut words = Vec::new();
    let program = match layout.namespace(number) {
        Some(namespace) => {
            words.extend([format!("--net=/run/netns/{namespace}"), "--".to_owned(), daemon]);
            "nsenter".to_owned()
        }
        None => daemon,
    };
    words.extend(["--state-dir".to_owned(), text(&state), "--run-dir".to_owned(), text(&run)]);
    let process = detached(Path::new(&program), &words, &run.join("plinthd.log"))?;
    let identity = serde_json::to_string(&process.identity())?;
    std::fs::write(record(layout, number), identity)
        .with_context(|| format!("cannot write in {}", run.display()))
}

pub(super) fn is_running(layout: &Layout, number: u8) -> bool {
    process(&record(layout, number)).is_some()
}

/// Why a node does not answer: what its plinthd has said last, if it has ended.
pub(super) fn explain(layout: &Layout, number: u8, error: anyhow::Error) -> anyhow::Error {
    if is_running(layout, number) {
        return error;
    }
    let path = layout.run(number).join("plinthd.log");
    let log = std::fs::read_to_string(&path).unwrap_or_default();
    let last = log.lines().last().unwrap_or("nothing");
    anyhow!(
        "plinthd of {} has ended, and said last in {}: {last}",
        layout.name(number),
        text(&path)
    )
}

/// The living process that a file tells of.
pub(super) fn process(record: &Path) -> Option<Process> {
    let text = std::fs::read(record).ok()?;
    let identity: Identity = serde_json::from_slice(&text).ok()?;
    Process::find(identity, record)
}
