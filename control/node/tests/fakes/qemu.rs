// SPDX-License-Identifier: Apache-2.0
//! A QEMU without a guest: it locks its process file, speaks enough QMP, and watches that the
//! sockets it was given stay.
//!
//! Files in its folder steer it: `stubborn` makes it deaf to the power button and to `quit`,
//! `off` makes its guest switch itself off. It writes `violation` when a socket is taken away.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub(crate) fn run(arguments: &[String]) {
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name);
        at.and_then(|at| arguments.get(at + 1)).cloned().unwrap_or_default()
    };
    let process_file = PathBuf::from(value("-pidfile"));
    let folder = process_file.parent().expect("it is a path").to_path_buf();
    let lock = File::create(&process_file).expect("the run folder can be written");
    if lock.try_lock().is_err() {
        eprintln!("cannot create PID file: it is locked");
        std::process::exit(1);
    }
    let sockets: Vec<PathBuf> = arguments
        .iter()
        .filter(|argument| argument.contains("reconnect=1"))
        .filter_map(|argument| argument.split(',').find_map(|part| part.strip_prefix("path=")))
        .map(PathBuf::from)
        .collect();
    assert!(sockets.iter().all(|socket| socket.exists()), "a socket is not there yet");
    let path = folder.join("qmp.sock");
    // As QEMU does: the lock on the process file says that nobody else uses it.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(path).expect("the path is free");
    let is_off = Arc::new(AtomicBool::new(false));
    let watched = Arc::clone(&is_off);
    let watched_folder = folder.clone();
    std::thread::spawn(move || watch(&watched_folder, &sockets, &watched));
    for stream in listener.incoming() {
        // A client that breaks off is no affair of ours.
        let _ = stream.and_then(|stream| talk(stream, &value("-uuid"), &folder, &is_off));
    }
}

fn watch(folder: &Path, sockets: &[PathBuf], is_off: &AtomicBool) {
    loop {
        if let Some(gone) = sockets.iter().find(|socket| !socket.exists()) {
            let text = format!("{} was taken from a living VM\n", gone.display());
            std::fs::write(folder.join("violation"), text).expect("the folder is there");
        }
        if folder.join("off").exists() {
            is_off.store(true, Ordering::SeqCst);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn talk(stream: UnixStream, uuid: &str, folder: &Path, is_off: &AtomicBool) -> std::io::Result<()> {
    let mut writer = stream.try_clone()?;
    writeln!(
        writer,
        r#"{{"QMP":{{"version":{{"qemu":{{"major":7,"minor":2,"micro":0}},"package":""}},"capabilities":[]}}}}"#
    )?;
    for line in BufReader::new(stream).lines() {
        let line = line?;
        let is_stubborn = folder.join("stubborn").exists();
        let has = |command: &str| line.contains(&format!("\"{command}\""));
        let off = is_off.load(Ordering::SeqCst);
        let answer = if has("query-uuid") {
            format!(r#"{{"UUID":"{uuid}"}}"#)
        } else if has("query-status") {
            let status = if off { "shutdown" } else { "running" };
            format!(r#"{{"running":{},"singlestep":false,"status":"{status}"}}"#, !off)
        } else {
            if has("system_powerdown") && !is_stubborn {
                is_off.store(true, Ordering::SeqCst);
            }
            "{}".to_owned()
        };
        writeln!(writer, r#"{{"return":{answer}}}"#)?;
        if has("quit") && !is_stubborn {
            std::process::exit(0);
        }
    }
    Ok(())
}
