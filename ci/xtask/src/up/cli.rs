// SPDX-License-Identifier: Apache-2.0
//! The CLI as a user would type it.

use super::layout::Layout;
use super::text;
use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long the cluster may take until it answers.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Cli {
    program: String,
    config: String,
}

impl Cli {
    pub(super) fn new(layout: &Layout) -> Self {
        Self {
            program: text(&crate::shell::programs().join("plinth")),
            config: text(&layout.config()),
        }
    }

    /// Runs a verb; gives its answer.
    pub(super) fn ask(&self, words: &[&str]) -> Result<Value> {
        let output = Command::new(&self.program)
            .args(["--json", "--config-dir", &self.config])
            .args(words)
            .output()
            .with_context(|| format!("{} does not start: build it first", self.program))?;
        let said = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let complaint = format!("{said}{}", String::from_utf8_lossy(&output.stderr));
            bail!("plinth {}: {}", words.join(" "), complaint.trim());
        }
        serde_json::from_str(said.trim())
            .with_context(|| format!("plinth {} answered {said:?}", words.join(" ")))
    }

    /// Makes something unless a list has its name already.
    pub(super) fn ensure(&self, area: &str, name: &str, make: &[&str]) -> Result<()> {
        if self.find(area, name)?.is_none() {
            self.ask(make)?;
        }
        Ok(())
    }

    /// The thing of that name, as the area lists it.
    pub(super) fn find(&self, area: &str, name: &str) -> Result<Option<Value>> {
        let list = self.ask(&[area, "list"])?;
        let list = list.as_array().ok_or_else(|| anyhow!("plinth {area} list gave no list"))?;
        Ok(list.iter().find(|entry| entry["name"] == name).cloned())
    }

    pub(super) fn wait_for_service(&self) -> Result<()> {
        self.wait(|cli| cli.ask(&["cluster", "status"]).map(|_| ()))
    }

    /// Waits until so many nodes live and both daemons of each are up.
    pub(super) fn wait_for_nodes(&self, wanted: u64) -> Result<()> {
        self.wait(|cli| {
            let nodes = cli.ask(&["node", "list"])?;
            let nodes = nodes.as_array().ok_or_else(|| anyhow!("no list of nodes"))?;
            let good = nodes.iter().filter(|node| is_good(node)).count() as u64;
            if good < wanted {
                bail!("{good} of {wanted} nodes are in service: {}", complaints(nodes));
            }
            Ok(())
        })
    }

    /// Tries until it works; the last error is told when the time is over.
    pub(super) fn wait<T>(&self, act: impl Fn(&Self) -> Result<T>) -> Result<T> {
        let start = Instant::now();
        loop {
            match act(self) {
                Err(_) if start.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(200));
                }
                other => return other,
            }
        }
    }
}

fn is_good(node: &Value) -> bool {
    let daemons = node["status"]["daemons"].as_array();
    let all_up = |daemons: &Vec<Value>| daemons.iter().all(|daemon| daemon["state"] == "up");
    // The try of KVM is part of it: before, no VM is started.
    node["is_alive"] == true
        && daemons.is_some_and(all_up)
        && node["status"]["facts"]["accelerator"] != ""
}

/// Why nodes are not in service, as far as they say.
fn complaints(nodes: &[Value]) -> String {
    let mut words = Vec::new();
    for node in nodes {
        let daemons = node["status"]["daemons"].as_array().into_iter().flatten();
        for daemon in daemons.filter(|daemon| daemon["state"] != "up") {
            words.push(format!("{} on {}: {}", daemon["name"], node["name"], daemon["text"]));
        }
    }
    words.join("; ")
}
