// SPDX-License-Identifier: Apache-2.0
//! Volumes: data disks with a life of their own, and system disks that come and go with a VM.

use crate::change::{Change, Record};
use crate::cluster::{Cluster, Observed};
use crate::names;
use crate::record::{ImageRecord, Meta, PoolRecord, Source, State, VolumeRecord};
use crate::size::Size;
use crate::snapshot;
use plinth_api::{
    Code, Command, Level, PoolClass, Refusal, VolumeClone, VolumeCreate, VolumeLimits,
};
use plinth_ids::{Name, PoolId, VmId, VolumeId};

/// Largest volume: what the on-disk form can number.
const VOLUME_SIZE_MAX: u64 = 1 << 50;

impl Cluster {
    pub fn volume_create(
        &self,
        request: &VolumeCreate,
        observed: &Observed,
        now: u64,
    ) -> Result<Change, Refusal> {
        names::free(&self.volumes, "volume", &request.name)?;
        let pool = self.pick_pool(request.pool.as_ref())?;
        self.has_room(pool, observed, Level::Nearfull, "--pool")?;
        let image = request.image.as_ref().map(|name| self.ready_image(name)).transpose()?;
        if let Some((image, _)) = image {
            has_copy(image, pool)?;
        }
        let size = volume_size(request.size, image.map(|(_, size)| size))?;
        let image = image.map(|(image, _)| image.id);
        let volume = VolumeRecord { image, ..self.fresh_volume(&request.name, pool.id, size, now) };
        let meta = Meta { next_volume: self.meta.next_volume + 1, ..self.meta.clone() };
        Ok(Change::default().put(Record::Meta(meta)).put(Record::Volume(volume)))
    }

    /// A volume that its node is to make, with the next number.
    fn fresh_volume(&self, name: &Name, pool: PoolId, size: u64, now: u64) -> VolumeRecord {
        VolumeRecord {
            id: VolumeId(self.meta.next_volume),
            name: name.clone(),
            pool,
            size,
            served_size: size,
            image: None,
            source: None,
            system_of: None,
            limits: None,
            schedule: None,
            wipe: false,
            state: State::Creating,
            created_at: now,
        }
    }

    /// A volume with the contents of another, or of a snapshot of it.
    pub fn volume_clone(
        &self,
        request: &VolumeClone,
        observed: &Observed,
        now: u64,
    ) -> Result<Change, Refusal> {
        names::free(&self.volumes, "volume", &request.name)?;
        let source = self.usable_volume(&request.source, "SOURCE")?;
        let snapshot = match &request.snapshot {
            Some(name) => Some(self.ready_snapshot(&source.name, "--snapshot", name)?),
            None => None,
        };
        if let Some(pool) = self.pool(source.pool) {
            self.has_room(pool, observed, Level::Nearfull, "SOURCE")?;
        }
        let least = snapshot.map_or(source.served_size, |snapshot| snapshot.size);
        let size = match request.size {
            None => least,
            Some(size) if size < least => {
                let text = format!("{} is smaller than the source ({})", Size(size), Size(least));
                return Err(Refusal::new(Code::Invalid, text)
                    .field("--size")
                    .remedy("leave it out to take the source's size"));
            }
            Some(size) => check_size(size)?,
        };
        let snapshot = snapshot.map(|snapshot| snapshot.id);
        let volume = VolumeRecord {
            image: source.image,
            source: Some(Source { volume: source.id, snapshot }),
            ..self.fresh_volume(&request.name, source.pool, size, now)
        };
        let meta = Meta { next_volume: self.meta.next_volume + 1, ..self.meta.clone() };
        Ok(Change::default().put(Record::Meta(meta)).put(Record::Volume(volume)))
    }

    /// The command that gives a clone units of its own.
    pub fn volume_flatten(&self, name: &Name, observed: &Observed) -> Result<Command, Refusal> {
        let volume = self.usable_volume(name, "NAME")?;
        if let Some(pool) = self.pool(volume.pool) {
            self.has_room(pool, observed, Level::Nearfull, "NAME")?;
        }
        Ok(Command::VolumeFlatten { pool: volume.pool, volume: volume.id })
    }

    /// What a volume may do: as an operator chose, else as its pool's class has it.
    pub fn limits_of(&self, volume: &VolumeRecord) -> Option<VolumeLimits> {
        let class = self.pool(volume.pool).map(|pool| pool.class).unwrap_or_default();
        volume.limits.or_else(|| match class {
            PoolClass::Ordinary => None,
            PoolClass::Performance => {
                let limits = plinth_store_api::VolumeLimits::performance_default(volume.size);
                Some(VolumeLimits {
                    iops: limits.iops,
                    iops_burst: limits.iops_burst,
                    bytes_per_second: limits.bytes_per_second,
                    bytes_burst: limits.bytes_burst,
                })
            }
        })
    }

    /// Chooses limits, or goes back to those of the pool's class.
    pub fn limit_set(&self, name: &Name, limits: Option<VolumeLimits>) -> Result<Change, Refusal> {
        let volume = names::find(&self.volumes, "volume", "NAME", name)?;
        if let Some(limits) = limits {
            check_limits(&limits)?;
        }
        if volume.limits == limits {
            return Ok(Change::default());
        }
        Ok(Change::default().put(Record::Volume(VolumeRecord { limits, ..volume.clone() })))
    }

    pub fn volume_grow(
        &self,
        name: &Name,
        size: u64,
        observed: &Observed,
    ) -> Result<Change, Refusal> {
        let volume = self.usable_volume(name, "NAME")?;
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
        if let Some(pool) = self.pool(volume.pool) {
            self.has_room(pool, observed, Level::Nearfull, "--size")?;
        }
        let volume = VolumeRecord { size, state: State::Growing, ..volume.clone() };
        Ok(Change::default().put(Record::Volume(volume)))
    }

    /// Snapshots that a schedule made go with their volume; others keep it.
    pub fn volume_delete(&self, name: &Name, wipe: bool) -> Result<Change, Refusal> {
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
        let chosen = self.snapshots_of(name).filter(|one| !one.is_scheduled).count();
        if chosen > 0 {
            let text = format!("volume {name} has {chosen} snapshots");
            return Err(Refusal::new(Code::InUse, text)
                .field("NAME")
                .remedy(format!("delete them first: plinth volume snapshot delete {name} NAME")));
        }
        let cloning = |other: &&VolumeRecord| {
            other.state == State::Creating
                && other.source.is_some_and(|source| source.volume == volume.id)
        };
        if let Some(clone) = self.volumes.values().find(cloning) {
            let text = format!("volume {} is being cloned from {name}", clone.name);
            return Err(Refusal::new(Code::InUse, text)
                .field("NAME")
                .remedy("wait until it is made"));
        }
        Ok(self.doom(&VolumeRecord { wipe, ..volume.clone() }))
    }

    /// The end of a volume and of every snapshot that it has.
    pub(crate) fn doom(&self, volume: &VolumeRecord) -> Change {
        let snapshots = self.snapshots_of(&volume.name);
        let change = snapshots
            .filter(|one| one.state != State::Deleting)
            .fold(Change::default(), |change, one| change.put(snapshot::doomed(one)));
        let volume = VolumeRecord { state: State::Deleting, ..volume.clone() };
        change.put(Record::Volume(volume))
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
        let image = Some(image.0.id);
        let system_of = Some(vm.0);
        Ok(VolumeRecord { image, system_of, ..self.fresh_volume(&name, pool.id, size, now) })
    }
}

/// A rate of 0 is none; a burst without its rate says nothing.
fn check_limits(limits: &VolumeLimits) -> Result<(), Refusal> {
    for (field, rate, burst, least) in [
        ("--iops", limits.iops, limits.iops_burst, 1),
        ("--bandwidth", limits.bytes_per_second, limits.bytes_burst, 4096),
    ] {
        if rate > 0 && rate < least {
            return Err(Refusal::new(Code::Invalid, format!("{rate} bytes a second move nothing"))
                .field(field)
                .remedy("give 4K or more, as in 100M"));
        }
        if rate == 0 && burst > 0 {
            return Err(Refusal::new(Code::Invalid, "a burst needs a rate")
                .field(format!("{field}-burst"))
                .remedy(format!("give {field} too")));
        }
    }
    Ok(())
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
