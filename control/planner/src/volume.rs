// SPDX-License-Identifier: Apache-2.0
//! Volumes: data disks with a life of their own, and system disks that come and go with a VM.

use crate::change::{Change, Record};
use crate::cluster::Cluster;
use crate::names;
use crate::record::{ImageRecord, Meta, PoolRecord, State, VolumeRecord};
use crate::size::Size;
use plinth_api::{Code, Refusal, VolumeCreate};
use plinth_ids::{Name, VmId, VolumeId};

/// Largest volume: what the on-disk form can number.
const VOLUME_SIZE_MAX: u64 = 1 << 50;

impl Cluster {
    pub fn volume_create(&self, request: &VolumeCreate, now: u64) -> Result<Change, Refusal> {
        names::free(&self.volumes, "volume", &request.name)?;
        let pool = self.pick_pool(request.pool.as_ref())?;
        let image = request.image.as_ref().map(|name| self.ready_image(name)).transpose()?;
        if let Some((image, _)) = image {
            has_copy(image, pool)?;
        }
        let size = volume_size(request.size, image.map(|(_, size)| size))?;
        let volume = VolumeRecord {
            id: VolumeId(self.meta.next_volume),
            name: request.name.clone(),
            pool: pool.id,
            size,
            served_size: size,
            image: image.map(|(image, _)| image.id),
            system_of: None,
            state: State::Creating,
            created_at: now,
        };
        let meta = Meta { next_volume: self.meta.next_volume + 1, ..self.meta.clone() };
        Ok(Change::default().put(Record::Meta(meta)).put(Record::Volume(volume)))
    }

    pub fn volume_grow(&self, name: &Name, size: u64) -> Result<Change, Refusal> {
        let volume = names::find(&self.volumes, "volume", "NAME", name)?;
        match volume.state {
            State::Ready | State::Growing => {}
            State::Creating | State::Deleting => {
                return Err(Refusal::new(Code::State, format!("volume {name} is not ready"))
                    .field("NAME")
                    .remedy("`plinth volume show` says its state"));
            }
        }
        check_size(size)?;
        if size < volume.size {
            return Err(Refusal::new(
                Code::Invalid,
                format!("volume {name} has {} already and cannot shrink", Size(volume.size)),
            )
            .field("--size")
            .remedy(format!("give more than {}", Size(volume.size))));
        }
        if size == volume.size {
            return Ok(Change::default());
        }
        let volume = VolumeRecord { size, state: State::Growing, ..volume.clone() };
        Ok(Change::default().put(Record::Volume(volume)))
    }

    pub fn volume_delete(&self, name: &Name) -> Result<Change, Refusal> {
        let volume = names::find(&self.volumes, "volume", "NAME", name)?;
        if let Some(vm) = self.holder(volume.id) {
            return Err(Refusal::new(
                Code::InUse,
                format!("volume {name} is a disk of VM {}", vm.name),
            )
            .field("NAME")
            .remedy(format!("delete the VM first: plinth vm delete {}", vm.name)));
        }
        if volume.state == State::Creating {
            return Err(Refusal::new(Code::State, format!("volume {name} is being made"))
                .field("NAME")
                .remedy("wait until its node has made it"));
        }
        Ok(Change::default().put(Record::Volume(doomed(volume))))
    }

    /// The record of a VM's system disk, named after the VM.
    pub(crate) fn system_volume(
        &self,
        vm: (VmId, &Name),
        pool: &PoolRecord,
        image: (&ImageRecord, u64),
        size: Option<u64>,
        now: u64,
    ) -> Result<VolumeRecord, Refusal> {
        let name: Name = format!("{}-system", vm.1)
            .parse()
            .expect("the VM's name was checked to leave room for the ending");
        if self.volumes.contains_key(&name) {
            return Err(Refusal::new(
                Code::Exists,
                format!("the system disk would be volume {name}, which exists"),
            )
            .field("NAME")
            .remedy("choose another name"));
        }
        let size = volume_size(size, Some(image.1))?;
        Ok(VolumeRecord {
            id: VolumeId(self.meta.next_volume),
            name,
            pool: pool.id,
            size,
            served_size: size,
            image: Some(image.0.id),
            system_of: Some(vm.0),
            state: State::Creating,
            created_at: now,
        })
    }
}

/// The volume as it is while its node removes it.
pub(crate) fn doomed(volume: &VolumeRecord) -> VolumeRecord {
    VolumeRecord { state: State::Deleting, ..volume.clone() }
}

/// A clone shares objects with its source, so both lie in one pool.
pub(crate) fn has_copy(image: &ImageRecord, pool: &PoolRecord) -> Result<(), Refusal> {
    if image.copies.iter().any(|copy| copy.pool == pool.id) {
        return Ok(());
    }
    Err(Refusal::new(
        Code::NotFound,
        format!("image {} has no copy in pool {}", image.name, pool.name),
    )
    .field("--image")
    .remedy("import it again under another name, into that pool too"))
}

fn volume_size(wanted: Option<u64>, image: Option<u64>) -> Result<u64, Refusal> {
    match (wanted, image) {
        (Some(wanted), Some(image)) if wanted < image => Err(Refusal::new(
            Code::Invalid,
            format!("{} is smaller than the image ({})", Size(wanted), Size(image)),
        )
        .field("--size")
        .remedy("leave it out to take the image's size")),
        (Some(wanted), _) => check_size(wanted),
        (None, Some(image)) => Ok(image),
        (None, None) => Err(Refusal::new(Code::Invalid, "an empty volume needs a size")
            .field("--size")
            .remedy("give for example --size 20G, or an --image to clone")),
    }
}

fn check_size(size: u64) -> Result<u64, Refusal> {
    if size == 0 || !size.is_multiple_of(4096) || size > VOLUME_SIZE_MAX {
        return Err(Refusal::new(Code::Invalid, format!("{size} bytes is no volume size"))
            .field("--size")
            .remedy("give 4K to 1024T in whole KiB by four, as in 20G"));
    }
    Ok(size)
}
