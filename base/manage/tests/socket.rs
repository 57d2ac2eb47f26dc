// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "the helper functions of a test are test code too")]
//! Whole conversations over real sockets, polite and hostile.

use plinth_manage::{
    CallError, Client, LINE_LENGTH_MAX, LineFault, ListenError, Server, ServerConfig, Service,
};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Deserialize, Serialize)]
struct Ask {
    text: String,
}

#[derive(Debug, Deserialize, PartialEq, Serialize)]
struct Told {
    text: String,
}

struct Upper;

impl Service for Upper {
    type Request = Ask;
    type Reply = Told;

    fn handle(&self, ask: Ask) -> Told {
        Told { text: ask.text.to_uppercase() }
    }

    fn refuse(&self, fault: LineFault) -> Told {
        Told { text: fault.code().to_owned() }
    }
}

/// A folder of this test's own, gone with the value.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("pm-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("s.sock")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn start(folder: &Folder) -> Server {
    Server::start(ServerConfig::new(folder.socket()), Arc::new(Upper)).unwrap()
}

fn call(folder: &Folder, text: &str) -> Result<Told, CallError> {
    Client::connect(&folder.socket(), PATIENCE)?.call(&Ask { text: text.to_owned() })
}

/// Sends bytes and gives everything that comes back until the server closes or we did.
fn raw(folder: &Folder, bytes: &[u8]) -> Vec<String> {
    let mut stream = UnixStream::connect(folder.socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // The server may close before it has read all: that is its right.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut lines = Vec::new();
    for line in BufReader::new(&mut stream).lines() {
        let Ok(line) = line else { break };
        lines.push(serde_json::from_str::<Told>(&line).unwrap().text);
    }
    lines
}

#[test]
fn requests_are_answered_in_order_on_one_connection() {
    let folder = Folder::new();
    let _server = start(&folder);
    let mut client = Client::connect(&folder.socket(), PATIENCE).unwrap();
    for text in ["one", "two", "three"] {
        let told: Told = client.call(&Ask { text: text.to_owned() }).unwrap();
        assert_eq!(told.text, text.to_uppercase());
    }
}

#[test]
fn a_wrong_line_is_refused_and_the_connection_goes_on() {
    let folder = Folder::new();
    let _server = start(&folder);
    let answers =
        raw(&folder, b"{\n\xff\xfe\n{\"text\":\"a\"}\n\n{\"text\":7}\n{\"text\":\"b\"}\n");
    let fault = "not-a-request";
    assert_eq!(answers, [fault, fault, "A", fault, fault, "B"]);
}

#[test]
fn half_a_line_is_refused_and_not_carried_out() {
    let folder = Folder::new();
    let _server = start(&folder);
    assert_eq!(raw(&folder, b"{\"text\":\"a\"}\n{\"text\":\"b\"}"), ["A", "line-unfinished"]);
}

#[test]
fn deep_nesting_is_an_error_and_not_a_crash() {
    let folder = Folder::new();
    let _server = start(&folder);
    let line = [vec![b'['; 1_000_000], vec![b'\n']].concat();
    assert_eq!(raw(&folder, &line), ["not-a-request"]);
    assert_eq!(call(&folder, "x").unwrap().text, "X");
}

#[test]
fn a_line_without_end_is_cut_off_at_the_limit_while_others_are_served() {
    let folder = Folder::new();
    let _server = start(&folder);
    let mut endless = UnixStream::connect(folder.socket()).unwrap();
    endless.write_all(&vec![b'x'; LINE_LENGTH_MAX - 1]).unwrap();
    assert_eq!(call(&folder, "meanwhile").unwrap().text, "MEANWHILE");
    endless.write_all(b"x").unwrap();
    endless.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = String::new();
    endless.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("line-too-long"), "{answer}");
}

#[test]
fn a_connection_past_the_bound_is_told_so_and_a_closed_one_makes_room() {
    let folder = Folder::new();
    let config = ServerConfig { connections_max: 2, ..ServerConfig::new(folder.socket()) };
    let _server = Server::start(config, Arc::new(Upper)).unwrap();
    let mut held: Vec<_> = (0..2)
        .map(|_| {
            let mut client = Client::connect(&folder.socket(), PATIENCE).unwrap();
            // Answered, so it is certainly on the list.
            let _: Told = client.call(&Ask { text: "x".to_owned() }).unwrap();
            client
        })
        .collect();
    assert_eq!(raw(&folder, b""), ["too-many-connections"]);
    held.pop();
    let end = std::time::Instant::now() + PATIENCE;
    while call(&folder, "x").map(|told| told.text).ok().as_deref() != Some("X") {
        assert!(std::time::Instant::now() < end, "the closed connection still counts");
    }
}

#[test]
fn a_silent_connection_is_closed_after_a_while() {
    let folder = Folder::new();
    let idle_max = Duration::from_millis(20);
    let config = ServerConfig { idle_max, ..ServerConfig::new(folder.socket()) };
    let _server = Server::start(config, Arc::new(Upper)).unwrap();
    let mut silent = UnixStream::connect(folder.socket()).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
}

#[test]
fn only_the_owner_may_connect() {
    let folder = Folder::new();
    let _server = start(&folder);
    let mode = std::fs::metadata(folder.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_dead_servers_socket_is_replaced_and_a_living_ones_is_not() {
    let folder = Folder::new();
    drop(UnixListener::bind(folder.socket()).unwrap());
    let server = start(&folder);
    let second = Server::start(ServerConfig::new(folder.socket()), Arc::new(Upper));
    assert!(matches!(second, Err(ListenError::InUse { .. })));
    assert_eq!(call(&folder, "x").unwrap().text, "X");
    server.stop();
    assert!(!folder.socket().exists());
}

#[test]
fn a_file_in_the_sockets_place_is_left_alone() {
    let folder = Folder::new();
    std::fs::write(folder.socket(), "precious").unwrap();
    let server = Server::start(ServerConfig::new(folder.socket()), Arc::new(Upper));
    assert!(matches!(server, Err(ListenError::NotASocket { .. })));
    assert_eq!(std::fs::read_to_string(folder.socket()).unwrap(), "precious");
}

#[test]
fn a_path_that_is_too_long_is_named() {
    let config = ServerConfig::new(format!("/tmp/{}", "x".repeat(200)));
    let error = Server::start(config, Arc::new(Upper)).unwrap_err();
    assert!(matches!(error, ListenError::PathTooLong { .. }));
    assert!(error.to_string().contains("205 bytes"), "{error}");
}

#[test]
fn a_folder_that_is_missing_is_named() {
    let folder = Folder::new();
    let config = ServerConfig::new(folder.0.join("none/s.sock"));
    let error = Server::start(config, Arc::new(Upper)).unwrap_err();
    assert!(matches!(error, ListenError::Bind { .. }));
}

#[test]
fn a_server_stops_while_connections_are_open() {
    let folder = Folder::new();
    let server = start(&folder);
    let mut open = Client::connect(&folder.socket(), PATIENCE).unwrap();
    let _: Told = open.call(&Ask { text: "x".to_owned() }).unwrap();
    server.stop();
    let error = open.call::<_, Told>(&Ask { text: "x".to_owned() }).unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert!(matches!(call(&folder, "x"), Err(CallError::Connect { .. })));
}

#[test]
fn a_caller_does_not_wait_longer_than_it_said() {
    let folder = Folder::new();
    let _mute = UnixListener::bind(folder.socket()).unwrap();
    let mut client = Client::connect(&folder.socket(), Duration::from_millis(20)).unwrap();
    let error = client.call::<_, Told>(&Ask { text: "x".to_owned() }).unwrap_err();
    assert!(matches!(error, CallError::Receive { .. }), "{error}");
}

#[test]
fn an_answer_of_another_shape_is_not_retried() {
    let folder = Folder::new();
    let _server = start(&folder);
    let mut client = Client::connect(&folder.socket(), PATIENCE).unwrap();
    let error = client.call::<_, u32>(&Ask { text: "x".to_owned() }).unwrap_err();
    assert!(matches!(error, CallError::Decode { .. }) && !error.is_retryable());
}
