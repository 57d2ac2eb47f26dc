// SPDX-License-Identifier: Apache-2.0
//! A handed device as bytes and descriptors. Descriptors are named by their place in the list
//! that travels beside the bytes.

use super::{HandedConnection, HandedDevice, HandedRecord, HandedRing, HandedState};
use plinth_guest_memory::{GuestAddress, RegionSpec};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

/// The version of the image. Another one is refused: then the old process goes on.
const VERSION: u32 = 1;

/// Why a device cannot be handed over or taken over.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    #[error("the other process speaks version {found} of the hand-over, this one {VERSION}")]
    Version { found: u32 },
    #[error("the message is not what a hand-over looks like")]
    Image { source: serde_json::Error },
    #[error("descriptor {place} of the message is missing or named twice")]
    Descriptor { place: u16 },
    #[error("the message has {length} bytes and {descriptors} descriptors; neither may be so many")]
    TooLong { length: usize, descriptors: usize },
    #[error("the other process has ended")]
    Ended,
    #[error("the line to the other process")]
    Line { source: io::Error },
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct DeviceImage {
    version: u32,
    path: PathBuf,
    listener: u16,
    connection: Option<ConnectionImage>,
}

/// Read first, so that another version is named as such and not as an unknown field.
#[derive(Debug, Deserialize)]
struct VersionImage {
    version: u32,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct ConnectionImage {
    stream: u16,
    backchannel: Option<u16>,
    features: u64,
    protocol_features: u64,
    regions: Vec<RegionImage>,
    record: Option<RecordImage>,
    rings: Vec<RingImage>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RegionImage {
    guest: u64,
    length: u64,
    frontend: u64,
    offset: u64,
    file: u16,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RecordImage {
    offset: u64,
    length: u64,
    queues: u16,
    size: u16,
    file: u16,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RingImage {
    size: u16,
    addresses: Option<[u64; 3]>,
    base: u16,
    kick: Option<u16>,
    call: Option<u16>,
    error: Option<u16>,
    is_started: bool,
    is_enabled: bool,
}

/// Descriptors that are sent, each with its place.
#[derive(Default)]
struct Outgoing<'a>(Vec<BorrowedFd<'a>>);

impl<'a> Outgoing<'a> {
    fn add(&mut self, descriptor: &'a impl AsFd) -> u16 {
        self.0.push(descriptor.as_fd());
        u16::try_from(self.0.len() - 1).expect("a device has some hundred descriptors at most")
    }
}

/// Descriptors that came, each to be taken once.
struct Incoming(Vec<Option<OwnedFd>>);

impl Incoming {
    fn take(&mut self, place: u16) -> Result<OwnedFd, HandOverError> {
        let found = self.0.get_mut(usize::from(place)).and_then(Option::take);
        found.ok_or(HandOverError::Descriptor { place })
    }

    fn file(&mut self, place: Option<u16>) -> Result<Option<File>, HandOverError> {
        place.map(|place| self.take(place).map(File::from)).transpose()
    }
}

impl HandedDevice {
    /// The device as bytes, and the descriptors that go with them. They stay its own.
    pub fn emit(&self) -> (Vec<u8>, Vec<BorrowedFd<'_>>) {
        let mut out = Outgoing::default();
        let listener = out.add(&self.listener);
        let connection = self.connection.as_ref().map(|connection| emit(connection, &mut out));
        let image = DeviceImage { version: VERSION, path: self.path.clone(), listener, connection };
        let bytes = serde_json::to_vec(&image).expect("numbers, and a path that came as UTF-8");
        (bytes, out.0)
    }

    /// A device from what another process has sent.
    ///
    /// # Errors
    /// Names what cannot be understood. The descriptors are closed then.
    pub fn parse(bytes: &[u8], descriptors: Vec<OwnedFd>) -> Result<Self, HandOverError> {
        let image = |source| HandOverError::Image { source };
        let VersionImage { version } = serde_json::from_slice(bytes).map_err(image)?;
        if version != VERSION {
            return Err(HandOverError::Version { found: version });
        }
        let DeviceImage { path, listener, connection, .. } =
            serde_json::from_slice(bytes).map_err(image)?;
        let mut incoming = Incoming(descriptors.into_iter().map(Some).collect());
        let listener = UnixListener::from(incoming.take(listener)?);
        let connection = connection.map(|image| parse(image, &mut incoming)).transpose()?;
        Ok(Self { path, listener, connection })
    }
}

fn emit<'a>(connection: &'a HandedConnection, out: &mut Outgoing<'a>) -> ConnectionImage {
    let HandedConnection { stream, backchannel, state } = connection;
    let stream = out.add(stream);
    let backchannel = backchannel.as_ref().map(|channel| out.add(channel));
    let regions = state.regions.iter().map(|(spec, file)| RegionImage {
        guest: spec.guest.0,
        length: spec.length,
        frontend: spec.frontend,
        offset: spec.offset,
        file: out.add(file),
    });
    let regions = regions.collect();
    let record = state.record.as_ref().map(|record| RecordImage {
        offset: record.offset,
        length: record.length,
        queues: record.queues,
        size: record.size,
        file: out.add(&record.file),
    });
    let rings = state.rings.iter().map(|ring| RingImage {
        size: ring.size,
        addresses: ring.addresses,
        base: ring.base,
        kick: ring.kick.as_ref().map(|file| out.add(file)),
        call: ring.call.as_ref().map(|file| out.add(file)),
        error: ring.error.as_ref().map(|file| out.add(file)),
        is_started: ring.is_started,
        is_enabled: ring.is_enabled,
    });
    let rings = rings.collect();
    let (features, protocol_features) = (state.features, state.protocol_features);
    ConnectionImage { stream, backchannel, features, protocol_features, regions, record, rings }
}

fn parse(
    image: ConnectionImage,
    incoming: &mut Incoming,
) -> Result<HandedConnection, HandOverError> {
    let stream = UnixStream::from(incoming.take(image.stream)?);
    let backchannel = image.backchannel.map(|place| incoming.take(place)).transpose()?;
    let mut state = HandedState {
        features: image.features,
        protocol_features: image.protocol_features,
        ..HandedState::default()
    };
    for RegionImage { guest, length, frontend, offset, file } in image.regions {
        let spec = RegionSpec { guest: GuestAddress(guest), length, frontend, offset };
        state.regions.push((spec, File::from(incoming.take(file)?)));
    }
    if let Some(RecordImage { offset, length, queues, size, file }) = image.record {
        let file = File::from(incoming.take(file)?);
        state.record = Some(HandedRecord { file, offset, length, queues, size });
    }
    for ring in image.rings {
        state.rings.push(HandedRing {
            size: ring.size,
            addresses: ring.addresses,
            base: ring.base,
            kick: incoming.file(ring.kick)?,
            call: incoming.file(ring.call)?,
            error: incoming.file(ring.error)?,
            is_started: ring.is_started,
            is_enabled: ring.is_enabled,
        });
    }
    Ok(HandedConnection { stream, backchannel: backchannel.map(UnixStream::from), state })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> HandedDevice {
        let (process, thread) = (std::process::id(), std::thread::current().id());
        let folder = std::env::temp_dir().join(format!("plinth-image-{process}-{thread:?}"));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("image.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (stream, _) = UnixStream::pair().unwrap();
        let file = || File::open("/dev/null").unwrap();
        let spec = RegionSpec { guest: GuestAddress(4096), length: 8192, frontend: 7, offset: 9 };
        let record = HandedRecord { file: file(), offset: 1, length: 2, queues: 3, size: 4 };
        let ring = HandedRing {
            size: 64,
            addresses: Some([1, 2, 3]),
            base: 5,
            kick: Some(file()),
            call: Some(file()),
            is_started: true,
            ..HandedRing::default()
        };
        let rings = vec![ring, HandedRing::default()];
        let (features, protocol_features, regions) = (11, 12, vec![(spec, file())]);
        let state =
            HandedState { features, protocol_features, regions, record: Some(record), rings };
        let connection = Some(HandedConnection { stream, backchannel: None, state });
        HandedDevice { path, listener, connection }
    }

    /// The socket and its folder.
    fn remove(device: &HandedDevice) {
        std::fs::remove_file(&device.path).unwrap();
        std::fs::remove_dir(device.path.parent().unwrap()).unwrap();
    }

    fn owned(descriptors: &[BorrowedFd<'_>]) -> Vec<OwnedFd> {
        descriptors.iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect()
    }

    #[test]
    fn a_device_comes_back_as_it_was() {
        let device = device();
        let (bytes, descriptors) = device.emit();
        assert_eq!(descriptors.len(), 6);
        let again = HandedDevice::parse(&bytes, owned(&descriptors)).unwrap();
        assert_eq!(again.emit().0, bytes);
        let state = again.connection.unwrap().state;
        assert_eq!((state.features, state.protocol_features), (11, 12));
        assert_eq!((state.rings[0].base, state.rings[0].addresses), (5, Some([1, 2, 3])));
        assert!(state.rings[0].kick.is_some() && state.rings[0].error.is_none());
        remove(&device);
    }

    #[test]
    fn what_is_no_image_is_refused_by_name() {
        let device = device();
        let (bytes, descriptors) = device.emit();
        let short = HandedDevice::parse(&bytes, owned(&descriptors[..5])).unwrap_err();
        assert!(matches!(short, HandOverError::Descriptor { place: 5 }), "{short}");
        let text = String::from_utf8(bytes).unwrap();
        let twice = text.replace(r#""stream":1"#, r#""stream":0"#);
        let twice = HandedDevice::parse(twice.as_bytes(), owned(&descriptors)).unwrap_err();
        assert!(matches!(twice, HandOverError::Descriptor { place: 0 }), "{twice}");
        let newer = text.replace(r#""version":1"#, r#""version":2"#);
        let newer = HandedDevice::parse(newer.as_bytes(), owned(&descriptors)).unwrap_err();
        assert!(matches!(newer, HandOverError::Version { found: 2 }), "{newer}");
        let cut = HandedDevice::parse(&text.as_bytes()[..40], Vec::new()).unwrap_err();
        assert!(matches!(cut, HandOverError::Image { .. }), "{cut}");
        remove(&device);
    }
}
