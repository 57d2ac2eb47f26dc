// SPDX-License-Identifier: Apache-2.0
//! The program as it is run: exit codes, words, files.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder of its own, gone when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("plinth-cli-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn plinth(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_plinth"))
            .args(arguments)
            .env("PLINTH_CONFIG", self.0.join("etc"))
            .env_remove("PLINTH_SERVICE")
            .output()
            .unwrap()
    }

    fn init(&self, more: &[&str]) -> Output {
        let state = self.0.join("var");
        let mut arguments = vec!["cluster", "init", "--state-dir", state.to_str().unwrap()];
        arguments.extend(more);
        self.plinth(&arguments)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn a_cluster_is_made_once_and_its_keys_are_private() {
    let folder = Folder::new();
    let output = folder.init(&["--name", "lab", "--agent", "127.0.0.1:17710"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).contains("cluster lab is made"));
    for file in ["var/tls/ca.key", "var/tls/service.key", "var/tls/node.key", "etc/operator.key"] {
        let mode = std::fs::metadata(folder.0.join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let config = std::fs::read_to_string(folder.0.join("var/plinthd.toml")).unwrap();
    assert!(config.contains("127.0.0.1:17710"), "{config}");
    let key = std::fs::read(folder.0.join("var/tls/ca.key")).unwrap();
    let again = folder.init(&[]);
    assert_eq!(code(&again), 1);
    assert!(stderr(&again).contains("this machine has a cluster already"), "{}", stderr(&again));
    assert_eq!(std::fs::read(folder.0.join("var/tls/ca.key")).unwrap(), key);
}

#[test]
fn a_machine_without_a_certificate_is_told_how_to_get_one() {
    let folder = Folder::new();
    let output = folder.plinth(&["vm", "list"]);
    assert_eq!(code(&output), 3);
    let text = stderr(&output);
    assert!(text.starts_with("plinth: this machine has no operator certificate"), "{text}");
    assert!(text.contains("--config-dir"), "{text}");
    let output = folder.plinth(&["vm", "list", "--json"]);
    assert_eq!(code(&output), 3);
    assert!(stderr(&output).starts_with(r#"{"error":{"code":"unreachable""#));
}

#[test]
fn a_service_that_is_not_there_is_said_so() {
    let folder = Folder::new();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap().to_string();
    drop(socket);
    assert_eq!(code(&folder.init(&["--listen", &address])), 0);
    let output = folder.plinth(&["cluster", "status"]);
    assert_eq!(code(&output), 3);
    assert!(stderr(&output).contains("is plinthd running there"), "{}", stderr(&output));
}

#[test]
fn a_line_that_is_not_understood_is_answered_with_the_remedy() {
    let folder = Folder::new();
    for (arguments, words) in [
        (&["vm", "crate"][..], "tip: a similar subcommand exists: 'create'"),
        (&["vm", "start", "Web"][..], "a name has only a-z, 0-9 and '-'"),
        (&["vm", "create", "a", "--memory", "1X"][..], "as in 20G"),
        (&["vm", "create", "a", "--nic", "x,mtu=9"][..], "it has subnet, address and group"),
        (&["subnet", "create", "a", "--vpc", "b", "--cidr", "10.0.0.0"][..], "as in 10.0.0.0/24"),
        (&["route", "add", "b", "10.0.0.1/8", "--blackhole"][..], "did you mean 10.0.0.0/8?"),
        (&["route", "add", "b", "10.0.0.0/8"][..], "--via"),
        (&["security-group", "rule", "add", "web", "in", "--port", "x"][..], "as in 80-90"),
        (&["vm", "stop", "a", "--wait", "soon"][..], "as in 30s"),
        (&["disk", "show", "trial", "sda"][..], "give its number in the pool, as in 2"),
        (&["scrub", "schedule", "trial", "--deep", "never"][..], "as in 30s"),
        (&["volume", "snapshot", "create", "a", "Mon"][..], "a name has only a-z, 0-9 and '-'"),
        (&["snapshot", "schedule", "set", "a", "--every", "1d"][..], "--keep <COUNT>"),
        (&["cluster", "init", "--vtep", "172.16.0.1/24"][..], "--underlay-device"),
    ] {
        let output = folder.plinth(arguments);
        assert_eq!(code(&output), 2, "{arguments:?}");
        assert!(stderr(&output).contains(words), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn a_bad_token_is_refused_before_anybody_is_called() {
    let folder = Folder::new();
    let state = folder.0.join("var");
    let output = folder.plinth(&[
        "node",
        "join",
        "plinth1.12",
        "--name",
        "node-2",
        "--join",
        "127.0.0.1:9",
        "--agent",
        "127.0.0.1:9",
        "--state-dir",
        state.to_str().unwrap(),
    ]);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("it was cut when it was copied"), "{}", stderr(&output));
    assert!(!state.exists());
}

#[test]
fn every_shell_gets_a_completion() {
    let folder = Folder::new();
    for shell in ["bash", "zsh", "fish"] {
        let output = folder.plinth(&["completion", shell]);
        assert_eq!(code(&output), 0);
        assert!(stdout(&output).contains("console"), "{shell}");
    }
}

/// The page and the program say the same exit codes, and the page has every verb.
#[test]
fn the_page_in_the_docs_is_true() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operate/cli.md");
    let page = std::fs::read_to_string(page).unwrap();
    use plinth_cli::exit;
    for (code, words) in [
        (exit::DONE, "done"),
        (exit::REFUSED, "refused or failed"),
        (exit::USAGE, "the command line is not understood"),
        (exit::UNREACHABLE, "the control service cannot be reached"),
        (exit::NOT_YET, "taken, but not done in time"),
    ] {
        assert!(page.contains(&format!("| {code} | {words} |")), "exit code {code} is not there");
    }
    let mut verbs = 0;
    let command = <plinth_cli::args::Arguments as clap::CommandFactory>::command();
    for area in command.get_subcommands() {
        for verb in area.get_subcommands() {
            let line = format!("`plinth {} {}", area.get_name(), verb.get_name());
            assert!(page.contains(&line), "{line} is not there");
            verbs += 1;
            for part in verb.get_subcommands() {
                let line = format!("{line} {}", part.get_name());
                assert!(page.contains(&line), "{line} is not there");
                verbs += 1;
            }
        }
    }
    assert!(verbs > 60, "{verbs} verbs only");
}
