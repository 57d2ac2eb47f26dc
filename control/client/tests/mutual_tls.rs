// SPDX-License-Identifier: Apache-2.0
//! Who may call whom, over loopback QUIC with real certificates.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use plinth_api::*;
use plinth_client::*;
use plinth_ids::{Epoch, Name, PoolId, SnapshotId, VmId, VolumeId};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

const LIMIT: Duration = Duration::from_secs(10);

/// A folder of its own, gone when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("plinth-tls-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn node() -> Name {
    "node-1".parse().unwrap()
}

/// A cluster's CA and one identity of each role.
fn cluster(folder: &Path) -> ClusterCa {
    let ca = ClusterCa::create().unwrap();
    ca.save(folder).unwrap();
    for (stem, role, name) in [
        ("service", Role::Service, None),
        ("node", Role::Node, Some(node())),
        ("operator", Role::Operator, None),
    ] {
        let (key, certificate) = ca.issue(role, name.as_ref()).unwrap();
        Identity::save(folder, stem, &certificate, &key, ca.certificate()).unwrap();
    }
    ca
}

fn identity(folder: &Folder, stem: &str) -> Identity {
    Identity::load(&folder.0, stem).unwrap()
}

fn anywhere() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// Counts the bytes of an import, echoes a console, and has no opinion else.
#[derive(Debug)]
struct EchoAgent;

impl Agent for EchoAgent {
    async fn apply(&self, spec: NodeSpec) -> Result<Epoch, Refusal> {
        Ok(spec.epoch)
    }

    async fn status(&self) -> NodeStatus {
        NodeStatus {
            epoch: None,
            version: "test".to_owned(),
            facts: Facts::default(),
            daemons: Vec::new(),
            vms: Vec::new(),
            pools: Vec::new(),
            volumes: Vec::new(),
            unfit: None,
            load: Load::default(),
        }
    }

    async fn perform(
        &self,
        command: Command,
        input: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<AgentAnswer, Refusal> {
        if matches!(command, Command::SwitchDrops) {
            return Err(Refusal::new(Code::Failed, "no switch"));
        }
        let mut bytes = Vec::new();
        match input.read_to_end(&mut bytes).await {
            Ok(size) => Ok(AgentAnswer::Imported { size: size as u64, has_snapshot: true }),
            Err(err) => Err(Refusal::new(Code::Invalid, err.to_string())),
        }
    }

    async fn console(&self, vm: VmId) -> Result<Box<dyn ByteStream>, Refusal> {
        if vm != VmId(1) {
            return Err(Refusal::new(Code::NotFound, format!("there is no {vm}")));
        }
        let (near, mut far) = tokio::io::duplex(64);
        tokio::spawn(async move {
            let mut byte = [0];
            while far.read_exact(&mut byte).await.is_ok() {
                far.write_all(&byte.map(|byte| byte.to_ascii_uppercase())).await.unwrap();
            }
        });
        Ok(Box::new(near))
    }
}

/// An agent at an address of its own, that the service may call.
async fn agent(folder: &Folder) -> SocketAddr {
    let listener = Listener::bind(anywhere(), &identity(folder, "node"), Role::Service).unwrap();
    let address = listener.address().unwrap();
    tokio::spawn(serve_agent(listener, Arc::new(EchoAgent)));
    address
}

async fn ask(peer: &Peer, request: AgentRequest) -> Result<AgentReply, CallError> {
    peer.call(&request, LIMIT).await
}

/// What a refused peer reads: at connecting or, since TLS 1.3 lets a client speak first, at its
/// first call.
async fn refusal(dialer: &Dialer, address: SocketAddr, name: &str) -> String {
    let failure: Box<dyn std::error::Error> = match dialer.connect(address, name).await {
        Err(err) => err.into(),
        Ok(peer) => ask(&peer, AgentRequest::Status).await.unwrap_err().into(),
    };
    failure.to_string()
}

#[tokio::test]
async fn the_service_reaches_an_agent_and_gets_its_answers() {
    let folder = Folder::new();
    cluster(&folder.0);
    let address = agent(&folder).await;
    let dialer = Dialer::new(&identity(&folder, "service")).unwrap();
    let peer = dialer.connect(address, &certificate_name(&node())).await.unwrap();
    let reply = ask(&peer, AgentRequest::Status).await.unwrap();
    assert!(matches!(reply.result, Ok(AgentAnswer::Status(status)) if status.version == "test"));
    let reply = ask(&peer, AgentRequest::Perform(Command::SwitchDrops)).await.unwrap();
    assert_eq!(reply.result, Err(Refusal::new(Code::Failed, "no switch")));
}

#[tokio::test]
async fn a_client_without_a_certificate_is_told_what_to_do() {
    let folder = Folder::new();
    cluster(&folder.0);
    let address = agent(&folder).await;
    let dialer = Dialer::anonymous(&folder.0.join("ca.pem")).unwrap();
    let text = refusal(&dialer, address, Role::Node.name()).await;
    assert!(text.contains("asks for a certificate"), "{text}");
    assert!(text.contains("--config-dir"), "{text}");
}

#[tokio::test]
async fn a_certificate_of_another_cluster_is_refused_by_both_ends() {
    let (ours, theirs) = (Folder::new(), Folder::new());
    cluster(&ours.0);
    cluster(&theirs.0);
    let address = agent(&ours).await;
    // The caller notices first: the agent's certificate is not of its CA.
    let stranger = Dialer::new(&identity(&theirs, "service")).unwrap();
    let text = refusal(&stranger, address, Role::Node.name()).await;
    assert!(text.contains("another cluster"), "{text}");
    // A caller that trusts the agent is refused by it.
    std::fs::copy(ours.0.join("ca.pem"), theirs.0.join("ca.pem")).unwrap();
    let forger = Dialer::new(&identity(&theirs, "service")).unwrap();
    let text = refusal(&forger, address, Role::Node.name()).await;
    assert!(text.contains("another cluster"), "{text}");
}

#[tokio::test]
async fn an_operator_may_not_call_an_agent() {
    let folder = Folder::new();
    cluster(&folder.0);
    let address = agent(&folder).await;
    let dialer = Dialer::new(&identity(&folder, "operator")).unwrap();
    let text = refusal(&dialer, address, Role::Node.name()).await;
    assert!(text.contains("not for the role \"service\""), "{text}");
}

#[tokio::test]
async fn a_node_in_the_place_of_another_is_not_called() {
    let folder = Folder::new();
    cluster(&folder.0);
    let address = agent(&folder).await;
    let dialer = Dialer::new(&identity(&folder, "service")).unwrap();
    let other: Name = "node-2".parse().unwrap();
    assert!(dialer.connect(address, &certificate_name(&other)).await.is_err());
    assert!(dialer.connect(address, &certificate_name(&node())).await.is_ok());
}

#[tokio::test]
async fn nobody_at_the_address_is_said_in_words() {
    let folder = Folder::new();
    cluster(&folder.0);
    let address = {
        let socket = std::net::UdpSocket::bind(anywhere()).unwrap();
        socket.local_addr().unwrap()
    };
    let dialer = Dialer::new(&identity(&folder, "service")).unwrap();
    let err = dialer.connect(address, Role::Node.name()).await.unwrap_err();
    assert!(matches!(err, ConnectError::Unreachable { .. }), "{err}");
    assert!(err.to_string().contains("is plinthd running"), "{err}");
}

fn import(length: u64) -> AgentRequest {
    AgentRequest::Perform(Command::ImageImport {
        pool: PoolId(1),
        volume: VolumeId(1),
        snapshot: SnapshotId(1),
        name: "small".parse().unwrap(),
        format: DiskFormat::Raw,
        source: ImportSource::Stream { length },
    })
}

#[tokio::test]
async fn an_import_has_exactly_its_bytes() {
    let folder = Folder::new();
    cluster(&folder.0);
    let address = agent(&folder).await;
    let dialer = Dialer::new(&identity(&folder, "service")).unwrap();
    let peer = dialer.connect(address, Role::Node.name()).await.unwrap();
    let mut exchange = peer.open(&import(1_000_000)).await.unwrap();
    for _ in 0..1000 {
        exchange.send_bytes(&[7; 1000]).await.unwrap();
    }
    let reply: AgentReply = exchange.receive().await.unwrap();
    assert_eq!(reply.result, Ok(AgentAnswer::Imported { size: 1_000_000, has_snapshot: true }));
    // One that ends early is an error for the agent, not a short image.
    let mut exchange = peer.open(&import(1000)).await.unwrap();
    exchange.send_bytes(&[7; 999]).await.unwrap();
    let reply: AgentReply = exchange.end_and_receive().await.unwrap();
    let refusal = reply.result.unwrap_err();
    assert_eq!(refusal.text, "1 announced bytes did not come");
}

#[tokio::test]
async fn a_console_carries_bytes_both_ways() {
    let folder = Folder::new();
    cluster(&folder.0);
    let address = agent(&folder).await;
    let dialer = Dialer::new(&identity(&folder, "service")).unwrap();
    let peer = dialer.connect(address, Role::Node.name()).await.unwrap();
    let mut exchange = peer.open(&AgentRequest::Console(VmId(1))).await.unwrap();
    let reply: AgentReply = exchange.receive().await.unwrap();
    assert_eq!(reply.result, Ok(AgentAnswer::Done));
    let mut console = exchange.into_stream();
    console.write_all(b"hello").await.unwrap();
    let mut echo = [0; 5];
    console.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"HELLO");
    let reply = ask(&peer, AgentRequest::Console(VmId(2))).await.unwrap();
    assert!(reply.result.is_err());
}

#[tokio::test]
async fn a_damaged_frame_ends_its_exchange_and_nothing_else() {
    let folder = Folder::new();
    cluster(&folder.0);
    let address = agent(&folder).await;
    let dialer = Dialer::new(&identity(&folder, "service")).unwrap();
    let peer = dialer.connect(address, Role::Node.name()).await.unwrap();
    // A request of the operators' kind has no place here.
    let mut exchange = peer.open(&Request::NodeList).await.unwrap();
    let err = exchange.receive::<Reply>().await.unwrap_err();
    assert!(matches!(err, CallError::Ended), "{err}");
    assert!(ask(&peer, AgentRequest::Status).await.is_ok());
}

#[tokio::test]
async fn a_joining_node_knows_the_service_by_the_token_only() {
    let folder = Folder::new();
    let ca = cluster(&folder.0);
    let listener = Listener::bind_join(anywhere(), &identity(&folder, "service")).unwrap();
    let address = listener.address().unwrap();
    tokio::spawn(async move {
        while let Some(session) = listener.accept().await {
            while let Some(mut exchange) = session.accept().await {
                let join: Join = exchange.receive().await.unwrap();
                let result = Err(Refusal::new(Code::Denied, join.name.to_string()));
                exchange.send(&JoinReply { result }).await.unwrap();
                exchange.finish().await.unwrap();
            }
        }
    });
    let request = Join {
        name: node(),
        secret: [1; 32],
        public_key: NodeKey::generate().unwrap().public(),
        agent: anywhere(),
        underlay: None,
    };
    let token = Token { ca_fingerprint: ca.fingerprint(), secret: [1; 32] };
    let reply = join(address, &token, &request).await.unwrap();
    assert_eq!(reply.result.unwrap_err().text, "node-1");
    // Another cluster's token does not trust this service: the secret is never sent to it.
    let wrong = Token { ca_fingerprint: [9; 32], secret: [1; 32] };
    let err = join(address, &wrong, &request).await.unwrap_err();
    assert!(matches!(err, JoinError::Connect(ConnectError::Refused { .. })), "{err:?}");
    // The API's port is not the join port.
    let api = Listener::bind(anywhere(), &identity(&folder, "service"), Role::Operator).unwrap();
    let err = join(api.address().unwrap(), &token, &request).await.unwrap_err();
    let JoinError::Connect(ConnectError::Refused { words, .. }) = err else {
        panic!("joined at the API port: {err:?}")
    };
    assert!(words.contains("two ports"), "{words}");
}

#[test]
fn a_key_that_is_no_point_gets_no_certificate() {
    let ca = ClusterCa::create().unwrap();
    let err = ca.sign(&[4; 65], Role::Node, Some(&node())).unwrap_err();
    assert!(matches!(err, CaError::PublicKey), "{err}");
    assert!(ca.sign(&NodeKey::generate().unwrap().public(), Role::Node, Some(&node())).is_ok());
}

#[test]
fn private_keys_are_for_their_owner() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    cluster(&folder.0);
    for key in ["ca.key", "service.key", "node.key", "operator.key"] {
        let mode = std::fs::metadata(folder.0.join(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
}

#[test]
fn a_folder_without_certificates_says_which_file_is_missing() {
    let folder = Folder::new();
    let err = Identity::load(&folder.0, "operator").unwrap_err();
    assert!(err.to_string().contains("operator.pem"), "{err}");
    std::fs::write(folder.0.join("operator.pem"), "nonsense").unwrap();
    let err = Identity::load(&folder.0, "operator").unwrap_err();
    assert!(matches!(err, IdentityError::Pem { .. }), "{err}");
    assert!(matches!(ClusterCa::load(&folder.0), Err(CaError::Load(_))));
}
