// SPDX-License-Identifier: Apache-2.0
//! A daemon in a folder of its own, and guests without machines around them.

use plinth_frontend::{Buffer, Memory, Session, SlotQueue, Wish};
use plinth_guest_memory::GuestAddress;
use plinth_ids::{Epoch, MacAddress, PortId, Vni};
use plinth_manage::Client;
use plinth_switch_api::{Answer, GuestPort, Refusal, Reply, Request, SwitchConfig, Verb};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Long enough for a loaded machine; a test that has to wait for it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Tries until it works, or fails the test with the last words.
pub(crate) fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        std::thread::yield_now();
    }
}

/// plinth-switchd with folders of its own, both gone with the value.
pub(crate) struct Daemon {
    pub(crate) folder: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    pub(crate) fn start() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("psw-{}-{number}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let mut daemon = Self { folder, child: None };
        daemon.start_again();
        daemon
    }

    pub(crate) fn command(&self) -> Command {
        self.command_with(&self.folder.join("state"))
    }

    /// With another folder of kept things.
    pub(crate) fn command_with(&self, state: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_plinth-switchd"));
        command.arg("--run-dir").arg(self.folder.join("run")).arg("--state-dir").arg(state).args([
            "--memory-mb",
            "64",
            "--no-hugepages",
            "--flows",
            "1024",
        ]);
        command
    }

    /// Starts the process and waits until it answers.
    pub(crate) fn start_again(&mut self) {
        assert!(self.child.is_none(), "it is running");
        let log = std::fs::File::create(self.log()).unwrap();
        self.child = Some(self.command().stderr(log).stdout(Stdio::null()).spawn().unwrap());
        eventually("the daemon answers", || {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().unwrap()) {
                panic!("it ended with {status}: {}", self.read_log());
            }
            self.try_ask(Verb::Status)
        })
        .unwrap();
    }

    /// Has a new process take over, and waits for the old one's end. Gives its last words.
    pub(crate) fn upgrade(&mut self, mut meanwhile: impl FnMut()) -> String {
        let before = self.read_log();
        let log = std::fs::File::options().append(true).open(self.log()).unwrap();
        let mut command = self.command();
        command.args(["--take-over", "--grace", "0"]).stderr(log).stdout(Stdio::null());
        let mut successor = command.spawn().unwrap();
        let mut old = self.child.take().unwrap();
        let status = eventually("the old one ends", || {
            meanwhile();
            if let Some(status) = successor.try_wait().unwrap() {
                panic!("the successor ended with {status}: {}", self.read_log());
            }
            old.try_wait().unwrap()
        });
        assert!(status.success(), "{status}");
        self.child = Some(successor);
        eventually("the successor answers", || self.try_ask(Verb::Status)).unwrap();
        let log = self.read_log().split_off(before.len());
        let words = log.lines().find(|line| line.contains("gap=")).unwrap_or_default();
        words.to_owned()
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    pub(crate) fn read_log(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    pub(crate) fn management_socket(&self) -> PathBuf {
        self.folder.join("run/switchd.sock")
    }

    pub(crate) fn process(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM; the exit code comes back.
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        let mut child = self.child.take().unwrap();
        let sent = Command::new("kill").arg(child.id().to_string()).status().unwrap();
        assert!(sent.success());
        let status = eventually("the daemon ends", || child.try_wait().unwrap());
        status.code()
    }

    pub(crate) fn try_ask(&self, verb: Verb) -> Option<Result<Answer, Refusal>> {
        let mut client = Client::connect(&self.management_socket(), PATIENCE).ok()?;
        let reply: Reply = client.call(&Request { id: 7, verb }).ok()?;
        assert_eq!(reply.id, 7);
        Some(reply.result)
    }

    pub(crate) fn ask(&self, verb: Verb) -> Result<Answer, Refusal> {
        self.try_ask(verb).expect("the daemon answers")
    }

    pub(crate) fn apply(&self, config: &SwitchConfig) -> Result<(), Refusal> {
        match self.ask(Verb::Apply(config.clone()))? {
            Answer::Applied { epoch } => {
                assert_eq!(epoch, config.epoch);
                Ok(())
            }
            other => panic!("{other:?} is no answer to a configuration"),
        }
    }

    pub(crate) fn port(&self, id: u32, vni: u32) -> GuestPort {
        GuestPort {
            id: PortId(id),
            name: format!("port-{id}").parse().unwrap(),
            vni: Vni::new(vni).unwrap(),
            mac: mac(id),
            addresses: vec![address(id).into()],
            socket: self.folder.join(format!("run/net/{id}.sock")),
            mtu: 1450,
            queue_pairs: 1,
            subnet: None,
            security_groups: None,
            allowed: Vec::new(),
            limits: plinth_switch_api::PortLimits::NONE,
        }
    }

    pub(crate) fn drops(&self) -> Vec<(String, u64)> {
        match self.ask(Verb::Drops) {
            Ok(Answer::Drops(drops)) => {
                drops.into_iter().map(|count| (count.reason, count.packets)).collect()
            }
            other => panic!("{other:?} is no list of drops"),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.read_log());
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

pub(crate) fn config(epoch: u64, ports: Vec<GuestPort>) -> SwitchConfig {
    SwitchConfig { ports, ..SwitchConfig::empty(Epoch(epoch)) }
}

pub(crate) fn mac(number: u32) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0, u8::try_from(number).unwrap()])
}

pub(crate) fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, u8::try_from(number).unwrap())
}

/// What virtio-net puts before every packet.
const HEADER: usize = 12;
const BUFFER: usize = 2048;
const SLOTS: u16 = 64;
/// VIRTIO_NET_F_CSUM, GUEST_CSUM and MRG_RXBUF.
const FEATURES: u64 = 1 | 1 << 1 | 1 << 15;

/// A guest: its memory and rings outlive the daemon, as a machine's do.
pub(crate) struct Guest {
    socket: PathBuf,
    memory: Memory,
    rings: [SlotQueue; 2],
    buffers: [GuestAddress; 2],
    session: Option<Session>,
}

const RECEIVE: usize = 0;
const SEND: usize = 1;

impl Guest {
    /// Connects to a port's socket and starts both rings.
    pub(crate) fn connect(socket: &Path) -> Self {
        let mut memory = Memory::new(1 << 20).unwrap();
        let mut ring = || memory.ring(SLOTS, 1).unwrap();
        let mut rings = [ring(), ring()];
        let length = usize::from(SLOTS) * BUFFER;
        let mut buffer = || memory.take(length as u64, 4096).unwrap();
        let buffers = [buffer(), buffer()];
        for slot in 0..SLOTS {
            let address = place(buffers[RECEIVE], slot);
            let buffer =
                Buffer { address, length: u32::try_from(BUFFER).unwrap(), is_writable: true };
            rings[RECEIVE].set_chain(slot, &[buffer]);
            rings[RECEIVE].offer(slot);
        }
        let mut guest = Self { socket: socket.to_owned(), memory, rings, buffers, session: None };
        guest.reconnect();
        guest
    }

    /// What QEMU's `reconnect=1` does.
    pub(crate) fn reconnect(&mut self) {
        self.session = None;
        let wish = Wish { queues: 2, features: FEATURES, event_idx: true };
        let session = eventually("the port's socket answers", || {
            let mut session = Session::connect(&self.socket, &wish).ok()?;
            let has_event_idx = session.has_event_idx();
            let plans: Vec<_> =
                self.rings.iter_mut().map(|ring| ring.restart(false, has_event_idx)).collect();
            session.start(&self.memory, &plans, &mut None).ok()?;
            Some(session)
        });
        // What was offered before the backend was there has not been kicked for.
        session.kick(RECEIVE);
        session.kick(SEND);
        self.session = Some(session);
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.session.as_ref().is_none_or(Session::is_lost)
    }

    /// Sends a frame, with its whole UDP or TCP checksum left to the other side if `partial`.
    pub(crate) fn send(&mut self, frame: &[u8], partial: Option<(u16, u16)>) {
        let session = self.session.as_ref().unwrap();
        let ring = &mut self.rings[SEND];
        while ring.take_used().unwrap().is_some() {}
        let slot = eventually("a send slot is free", || {
            while ring.take_used().unwrap().is_some() {}
            (0..SLOTS).find(|&slot| !ring.is_out(slot))
        });
        let mut bytes = [0u8; HEADER].to_vec();
        if let Some((start, offset)) = partial {
            bytes[0] = 1;
            bytes[6..8].copy_from_slice(&start.to_le_bytes());
            bytes[8..10].copy_from_slice(&offset.to_le_bytes());
        }
        bytes.extend_from_slice(frame);
        let address = place(self.buffers[SEND], slot);
        self.memory.guest().copy_in(address, &bytes).unwrap();
        let length = u32::try_from(bytes.len()).unwrap();
        ring.set_chain(slot, &[Buffer { address, length, is_writable: false }]);
        ring.offer(slot);
        if ring.publish() {
            session.kick(SEND);
        }
    }

    /// The next frame that has arrived, with the flags of its header.
    pub(crate) fn try_receive(&mut self) -> Option<(u8, Vec<u8>)> {
        let session = self.session.as_ref().unwrap();
        let ring = &mut self.rings[RECEIVE];
        let used = ring.take_used().unwrap()?;
        let mut bytes = vec![0; usize::try_from(used.length).unwrap()];
        let address = place(self.buffers[RECEIVE], used.slot);
        self.memory.guest().copy_out(address, &mut bytes).unwrap();
        ring.offer(used.slot);
        if ring.publish() {
            session.kick(RECEIVE);
        }
        let frame = bytes.split_off(HEADER);
        Some((bytes[0], frame))
    }

    pub(crate) fn receive(&mut self) -> (u8, Vec<u8>) {
        eventually("a frame arrives", || self.try_receive())
    }
}

fn place(buffers: GuestAddress, slot: u16) -> GuestAddress {
    GuestAddress(buffers.0 + u64::from(slot) * BUFFER as u64)
}
