// SPDX-License-Identifier: Apache-2.0
//! What the agent's tests put in the place of its daemons and of QEMU.
//!
//! The first argument is the part to play. Every part keeps what was asked of it in files, so
//! that a test can look, and breaks off with a message when the agent breaks a law.

mod daemons;
mod qemu;

use std::path::{Path, PathBuf};
use std::time::Duration;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name);
        at.and_then(|at| arguments.get(at + 1)).map(PathBuf::from).unwrap_or_default()
    };
    match arguments.first().map(String::as_str) {
        Some("switchd") => daemons::switchd(&value("--state-dir"), &value("--run-dir")),
        Some("stored") => daemons::stored(&value("--state-dir"), &value("--run-dir")),
        Some("qemu") => qemu::run(&arguments[1..]),
        Some("agent") => agent(&value("--folder")),
        other => panic!("no part is called {other:?}"),
    }
}

/// The real agent in a process of its own, so that a test can kill it.
fn agent(folder: &Path) {
    let text = std::fs::read(folder.join("spec.json")).expect("the test wrote a spec");
    let spec: plinth_api::NodeSpec = serde_json::from_slice(&text).expect("a spec is JSON");
    let places = plinth_node::Places::new(folder.join("s"), folder.join("r"));
    let agent = plinth_node::NodeAgent::start(plinth_node::NodeConfig {
        places: places.expect("a test folder's path is short"),
        switchd: folder.join("switchd"),
        stored: folder.join("stored"),
        qemu: folder.join("qemu"),
        qemu_img: "qemu-img".into(),
        surroundings: plinth_node::Surroundings { root: folder.join("root") },
    })
    .expect("the agent starts again after every kill");
    agent.take(spec).expect("the same spec is taken again");
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}
