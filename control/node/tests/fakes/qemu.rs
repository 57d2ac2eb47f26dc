// SPDX-License-Identifier: Apache-2.0
//! A QEMU without a guest: it locks its process file, speaks enough QMP, takes NICs and lets go of
//! them, and watches that the sockets it was given stay.
//!
//! Files in its folder steer it: `stubborn` makes it deaf to the power button and to `quit`,
//! `off` makes its guest switch itself off, `clinging` keeps its guest from letting go of NICs. It
//! writes `violation` when a socket is taken away, and the MACs of its NICs to `nics`.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What is plugged in.
#[derive(Default)]
struct Machine {
    /// Sockets of chardevs, by name.
    sockets: BTreeMap<String, PathBuf>,
    /// MACs of devices that have a name.
    devices: BTreeMap<String, String>,
    ports: Vec<String>,
    netdevs: Vec<String>,
}

impl Machine {
    fn of(arguments: &[String]) -> Self {
        let mut machine = Self::default();
        for argument in arguments {
            let part = |name: &str| argument.split(',').find_map(|part| part.strip_prefix(name));
            let id = part("id=").map(str::to_owned);
            let socket = part("path=").filter(|_| argument.contains("reconnect=1"));
            if let (Some(id), Some(path)) = (id.clone(), socket) {
                machine.sockets.insert(id, path.into());
            } else if let (Some(id), Some(mac)) = (id.clone(), part("mac=")) {
                machine.devices.insert(id, mac.to_owned());
            } else if let (Some(id), true) = (id, argument.starts_with("pcie-root-port")) {
                machine.ports.push(id);
            }
        }
        machine
    }

    /// The answer to a command, or why it is refused.
    fn answer(&mut self, name: &str, arguments: &Value, folder: &Path) -> Result<Value, String> {
        let text = |key: &str| arguments[key].as_str().unwrap_or_default().to_owned();
        let id = text("id");
        let gone = |is_gone: bool| if is_gone { Ok(json!({})) } else { Err(format!("no {id}")) };
        match name {
            "qom-list" => {
                let names = self.ports.iter().chain(self.devices.keys());
                Ok(names.map(|name| json!({"name": name, "type": "child"})).collect())
            }
            "qom-get" => {
                let path = text("path");
                let device = path.rsplit('/').next().unwrap_or_default();
                self.devices.get(device).map(|mac| json!(mac)).ok_or("no such device".to_owned())
            }
            "chardev-add" => {
                let path = PathBuf::from(
                    arguments["backend"]["data"]["addr"]["data"]["path"]
                        .as_str()
                        .expect("a socket has a path"),
                );
                self.sockets.insert(id, path);
                Ok(json!({}))
            }
            "chardev-remove" => gone(self.sockets.remove(&id).is_some()),
            "query-chardev" => Ok(self
                .sockets
                .iter()
                .map(|(id, path)| {
                    let state = if path.exists() { "" } else { "disconnected:" };
                    let filename = format!("{state}unix:{}", path.display());
                    json!({"label": id, "filename": filename, "frontend-open": true})
                })
                .collect()),
            "netdev_add" => {
                assert!(self.sockets.contains_key(&text("chardev")), "a netdev needs its chardev");
                self.netdevs.push(id);
                Ok(json!({}))
            }
            "netdev_del" => {
                let before = self.netdevs.len();
                self.netdevs.retain(|netdev| *netdev != id);
                gone(self.netdevs.len() < before)
            }
            "device_add" => {
                assert!(self.ports.contains(&text("bus")), "a device needs its port");
                self.devices.insert(id, text("mac"));
                Ok(json!({}))
            }
            "device_del" if folder.join("clinging").exists() => Ok(json!({})),
            "device_del" => gone(self.devices.remove(&id).is_some()),
            _ => Ok(json!({})),
        }
    }

    fn show(&self, folder: &Path) {
        let macs: Vec<_> = self.devices.values().map(String::as_str).collect();
        let file = folder.join("nics.new");
        std::fs::write(&file, macs.join("\n")).expect("the folder is there");
        std::fs::rename(file, folder.join("nics")).expect("the folder is there");
    }
}

pub(crate) fn run(arguments: &[String]) {
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name);
        at.and_then(|at| arguments.get(at + 1)).cloned().unwrap_or_default()
    };
    let process_file = PathBuf::from(value("-pidfile"));
    let folder = process_file.parent().expect("it is a path").to_path_buf();
    let lock = File::options().create(true).truncate(false).write(true).open(&process_file);
    let lock = lock.expect("the run folder can be written");
    if lock.try_lock().is_err() {
        eprintln!("cannot create PID file: it is locked");
        std::process::exit(1);
    }
    lock.set_len(0).expect("the run folder can be written");
    writeln!(&lock, "{}", std::process::id()).expect("the run folder can be written");
    let machine = Machine::of(arguments);
    assert!(machine.sockets.values().all(|socket| socket.exists()), "a socket is not there yet");
    machine.show(&folder);
    let machine = Arc::new(Mutex::new(machine));
    let path = folder.join("qmp.sock");
    // As QEMU does: the lock on the process file says that nobody else uses it.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(path).expect("the path is free");
    let is_off = Arc::new(AtomicBool::new(false));
    let (watched, watched_machine) = (Arc::clone(&is_off), Arc::clone(&machine));
    let watched_folder = folder.clone();
    std::thread::spawn(move || watch(&watched_folder, &watched_machine, &watched));
    let place = Place { uuid: value("-uuid"), folder, machine, is_off };
    for stream in listener.incoming() {
        // A client that breaks off is no affair of ours.
        let _ = stream.and_then(|stream| place.talk(stream));
    }
}

fn watch(folder: &Path, machine: &Mutex<Machine>, is_off: &AtomicBool) {
    loop {
        let machine = machine.lock().expect("nobody panics with it");
        if let Some(gone) = machine.sockets.values().find(|socket| !socket.exists()) {
            let text = format!("{} was taken from a living VM\n", gone.display());
            std::fs::write(folder.join("violation"), text).expect("the folder is there");
        }
        drop(machine);
        if folder.join("off").exists() {
            is_off.store(true, Ordering::SeqCst);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What every client finds.
struct Place {
    uuid: String,
    folder: PathBuf,
    machine: Arc<Mutex<Machine>>,
    is_off: Arc<AtomicBool>,
}

impl Place {
    fn talk(&self, stream: UnixStream) -> std::io::Result<()> {
        let mut writer = stream.try_clone()?;
        let version = json!({"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""});
        writeln!(writer, "{}", json!({"QMP": {"version": version, "capabilities": []}}))?;
        for line in BufReader::new(stream).lines() {
            let line: Value = serde_json::from_str(&line?)?;
            let name = line["execute"].as_str().unwrap_or_default();
            let is_stubborn = self.folder.join("stubborn").exists();
            let answer = match name {
                "query-uuid" => Ok(json!({"UUID": self.uuid})),
                "query-status" => {
                    let off = self.is_off.load(Ordering::SeqCst);
                    let status = if off { "shutdown" } else { "running" };
                    Ok(json!({"running": !off, "singlestep": false, "status": status}))
                }
                _ => {
                    if name == "system_powerdown" && !is_stubborn {
                        self.is_off.store(true, Ordering::SeqCst);
                    }
                    let mut machine = self.machine.lock().expect("nobody panics with it");
                    let answer = machine.answer(name, &line["arguments"], &self.folder);
                    machine.show(&self.folder);
                    answer
                }
            };
            let answer = match answer {
                Ok(answer) => json!({"return": answer}),
                Err(text) => json!({"error": {"class": "GenericError", "desc": text}}),
            };
            writeln!(writer, "{answer}")?;
            if name == "quit" && !is_stubborn {
                std::process::exit(0);
            }
        }
        Ok(())
    }
}
