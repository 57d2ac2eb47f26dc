// SPDX-License-Identifier: Apache-2.0
//! How the types of `plinth-ids` stand in a message.
//!
//! Numbers are archived as their raw value. Values with a rule (names, VNIs) are archived as
//! text or number and checked when they are read, so that a decoded message holds legal values
//! only.

use plinth_ids::{
    DiskId, Epoch, GroupId, ImageId, MacAddress, Name, NodeId, PoolId, PortId, Prefix, SnapshotId,
    VmId, Vni, VolumeId,
};
use rkyv::rancor::{Fallible, Source, fail};
use rkyv::string::{ArchivedString, StringResolver};
use rkyv::with::{ArchiveWith, DeserializeWith, SerializeWith};
use rkyv::{Archive, Archived, Place};

/// The field is archived as the raw form of its type.
#[derive(Debug)]
pub struct Raw;

/// Implements [`Raw`] for tuple structs of one public number.
macro_rules! raw_number {
    ($($name:ident: $raw:ty),* $(,)?) => {$(
        impl ArchiveWith<$name> for Raw {
            type Archived = Archived<$raw>;
            type Resolver = ();

            fn resolve_with(field: &$name, (): (), out: Place<Self::Archived>) {
                field.0.resolve((), out);
            }
        }

        impl<S: Fallible + ?Sized> SerializeWith<$name, S> for Raw {
            fn serialize_with(_: &$name, _: &mut S) -> Result<(), S::Error> {
                Ok(())
            }
        }

        impl<D: Fallible + ?Sized> DeserializeWith<Archived<$raw>, $name, D> for Raw {
            fn deserialize_with(field: &Archived<$raw>, _: &mut D) -> Result<$name, D::Error> {
                Ok($name(field.to_native()))
            }
        }
    )*};
}

raw_number!(
    DiskId: u32,
    SnapshotId: u64,
    Epoch: u64,
    GroupId: u32,
    ImageId: u64,
    NodeId: u32,
    PoolId: u32,
    PortId: u32,
    VmId: u64,
    VolumeId: u64,
);

impl ArchiveWith<MacAddress> for Raw {
    type Archived = [u8; 6];
    type Resolver = [(); 6];

    fn resolve_with(field: &MacAddress, resolver: [(); 6], out: Place<[u8; 6]>) {
        field.0.resolve(resolver, out);
    }
}

impl<S: Fallible + ?Sized> SerializeWith<MacAddress, S> for Raw {
    fn serialize_with(_: &MacAddress, _: &mut S) -> Result<[(); 6], S::Error> {
        Ok([(); 6])
    }
}

impl<D: Fallible + ?Sized> DeserializeWith<[u8; 6], MacAddress, D> for Raw {
    fn deserialize_with(field: &[u8; 6], _: &mut D) -> Result<MacAddress, D::Error> {
        Ok(MacAddress(*field))
    }
}

impl ArchiveWith<Vni> for Raw {
    type Archived = Archived<u32>;
    type Resolver = ();

    fn resolve_with(field: &Vni, (): (), out: Place<Self::Archived>) {
        field.get().resolve((), out);
    }
}

impl<S: Fallible + ?Sized> SerializeWith<Vni, S> for Raw {
    fn serialize_with(_: &Vni, _: &mut S) -> Result<(), S::Error> {
        Ok(())
    }
}

impl<D: Fallible + ?Sized> DeserializeWith<Archived<u32>, Vni, D> for Raw
where
    D::Error: Source,
{
    fn deserialize_with(field: &Archived<u32>, _: &mut D) -> Result<Vni, D::Error> {
        match Vni::try_from(field.to_native()) {
            Ok(vni) => Ok(vni),
            Err(err) => fail!(err),
        }
    }
}

impl ArchiveWith<Name> for Raw {
    type Archived = ArchivedString;
    type Resolver = StringResolver;

    fn resolve_with(field: &Name, resolver: StringResolver, out: Place<ArchivedString>) {
        ArchivedString::resolve_from_str(field.as_str(), resolver, out);
    }
}

impl<S> SerializeWith<Name, S> for Raw
where
    S: Fallible + ?Sized,
    S::Error: Source,
    str: rkyv::SerializeUnsized<S>,
{
    fn serialize_with(field: &Name, serializer: &mut S) -> Result<StringResolver, S::Error> {
        ArchivedString::serialize_from_str(field.as_str(), serializer)
    }
}

impl<D: Fallible + ?Sized> DeserializeWith<ArchivedString, Name, D> for Raw
where
    D::Error: Source,
{
    fn deserialize_with(field: &ArchivedString, _: &mut D) -> Result<Name, D::Error> {
        match field.as_str().parse() {
            Ok(name) => Ok(name),
            Err(err) => fail!(err),
        }
    }
}

/// As text, like a name: what is read is checked to be a prefix without bits behind it.
impl ArchiveWith<Prefix> for Raw {
    type Archived = ArchivedString;
    type Resolver = StringResolver;

    fn resolve_with(field: &Prefix, resolver: StringResolver, out: Place<ArchivedString>) {
        ArchivedString::resolve_from_str(&field.to_string(), resolver, out);
    }
}

impl<S> SerializeWith<Prefix, S> for Raw
where
    S: Fallible + ?Sized,
    S::Error: Source,
    str: rkyv::SerializeUnsized<S>,
{
    fn serialize_with(field: &Prefix, serializer: &mut S) -> Result<StringResolver, S::Error> {
        ArchivedString::serialize_from_str(&field.to_string(), serializer)
    }
}

impl<D: Fallible + ?Sized> DeserializeWith<ArchivedString, Prefix, D> for Raw
where
    D::Error: Source,
{
    fn deserialize_with(field: &ArchivedString, _: &mut D) -> Result<Prefix, D::Error> {
        match field.as_str().parse() {
            Ok(prefix) => Ok(prefix),
            Err(err) => fail!(err),
        }
    }
}
