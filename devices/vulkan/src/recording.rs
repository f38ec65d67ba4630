//! Dispatches recorded as commands, for one step size and one set of buffers.

use std::collections::HashSet;
use std::sync::Arc;

use ash::vk;
use trefoil_devices_api::{DeviceError, RunArgs};
use trefoil_kernels_vulkan::{Counts, Dispatch, Place, Push};

use crate::context::Context;
use crate::memory::Allocation;
use crate::pipelines::{PUSH_BYTES, Pipelines};
use crate::profile::Profile;
use crate::stopwatch::Stopwatch;
use crate::transfer::Commands;

/// What a recording is good for.
#[derive(Clone, Debug)]
pub(crate) struct RecordingKey {
    pub(crate) counts: Counts,
    pub(crate) args: Arc<RunArgs>,
    /// Generations of the device's scratch and step buffers.
    pub(crate) generation: (u64, u64),
}

impl RecordingKey {
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.counts == other.counts
            && Arc::ptr_eq(&self.args, &other.args)
            && self.generation == other.generation
    }
}

/// Commands that can be run again and again.
pub(crate) struct Recording {
    pub(crate) key: RecordingKey,
    pub(crate) commands: Commands,
    /// Times of the dispatches, if somebody wants to know.
    pub(crate) profile: Option<Profile>,
    /// Time of all of them together, where the device measures it.
    pub(crate) stopwatch: Option<Stopwatch>,
    /// Dispatches and barriers in it.
    pub(crate) size: (usize, usize),
    /// Memory that the commands reach by address.
    pub(crate) _kept: Vec<Arc<Allocation>>,
}

impl std::fmt::Debug for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (dispatches, barriers) = self.size;
        write!(f, "Recording({dispatches} dispatches, {barriers} barriers)")
    }
}

/// Which places were read and written since the last barrier.
#[derive(Default)]
struct Hazards {
    read: HashSet<Place>,
    written: HashSet<Place>,
}

impl Hazards {
    /// Must a barrier come before this dispatch?
    fn conflict(&self, dispatch: &Dispatch) -> bool {
        dispatch.push.iter().any(|push| match *push {
            Push::Read(place, _) => self.written.contains(&place),
            Push::Write(place, _) | Push::Update(place, _) => {
                self.written.contains(&place) || self.read.contains(&place)
            }
            _ => false,
        })
    }

    fn note(&mut self, dispatch: &Dispatch) {
        for push in &dispatch.push {
            match *push {
                Push::Read(place, _) => drop(self.read.insert(place)),
                Push::Write(place, _) | Push::Update(place, _) => {
                    self.written.insert(place);
                }
                _ => {}
            }
        }
    }
}

/// Push constants of a dispatch, `address` naming each place. Addresses come first, so that each
/// value lies on its own boundary.
fn push_bytes(
    dispatch: &Dispatch,
    address: &impl Fn(Place) -> Result<u64, DeviceError>,
) -> Result<Vec<u8>, DeviceError> {
    let mut bytes = Vec::with_capacity(PUSH_BYTES as usize);
    for push in &dispatch.push {
        match *push {
            Push::Read(place, offset)
            | Push::Write(place, offset)
            | Push::Update(place, offset) => {
                bytes.extend(address(place)?.wrapping_add(offset).to_le_bytes());
            }
            Push::Nowhere => bytes.extend(0u64.to_le_bytes()),
            Push::Word(word) => bytes.extend(word.to_le_bytes()),
        }
    }
    assert!(bytes.len() <= PUSH_BYTES as usize, "{}: push constants", dispatch.kernel.shader);
    Ok(bytes)
}

/// Records `dispatches` with a barrier where one must see what another wrote. Returns the number of
/// barriers.
pub(crate) fn record(
    context: &Context,
    pipelines: &Pipelines,
    commands: &Commands,
    (profile, stopwatch): (Option<&Profile>, Option<&Stopwatch>),
    dispatches: &[Dispatch],
    address: &impl Fn(Place) -> Result<u64, DeviceError>,
) -> Result<usize, DeviceError> {
    let mut ready = Vec::with_capacity(dispatches.len());
    for dispatch in dispatches {
        ready.push((pipelines.get(&dispatch.kernel)?, push_bytes(dispatch, address)?));
    }
    let limits = context.adapter.max_groups;
    for dispatch in dispatches {
        let fits = dispatch.groups.iter().zip(limits).all(|(&count, most)| count <= most);
        if !fits {
            return Err(DeviceError::BadRequest {
                what: format!("workgroups of {}", dispatch.kernel.shader),
                expected: format!("at most {limits:?}"),
                got: format!("{:?}", dispatch.groups),
            });
        }
    }
    let mut barriers = 0;
    commands.record(false, |device, buffer| {
        let mut hazards = Hazards::default();
        let mut bound = vk::Pipeline::null();
        if let Some(profile) = profile {
            profile.begin(device, buffer);
        }
        if let Some(stopwatch) = stopwatch {
            stopwatch.begin(device, buffer);
        }
        for (index, (dispatch, (pipeline, push))) in dispatches.iter().zip(&ready).enumerate() {
            if hazards.conflict(dispatch) {
                barrier(device, buffer);
                barriers += 1;
                hazards = Hazards::default();
            }
            hazards.note(dispatch);
            let [x, y, z] = dispatch.groups;
            // SAFETY: recording is under way; the pipeline and layout are of this device, the push
            // constants fit the layout, and the group counts the device's limits (checked).
            unsafe {
                if *pipeline != bound {
                    device.cmd_bind_pipeline(buffer, vk::PipelineBindPoint::COMPUTE, *pipeline);
                    bound = *pipeline;
                }
                let stage = vk::ShaderStageFlags::COMPUTE;
                device.cmd_push_constants(buffer, pipelines.layout, stage, 0, push);
                device.cmd_dispatch(buffer, x, y, z);
            }
            if let Some(profile) = profile {
                profile.mark(device, buffer, index);
            }
        }
        if let Some(stopwatch) = stopwatch {
            stopwatch.end(device, buffer);
        }
        finish(device, buffer);
    })?;
    Ok(barriers)
}

fn barrier(device: &ash::Device, buffer: vk::CommandBuffer) {
    let memory = [vk::MemoryBarrier::default()
        .src_access_mask(vk::AccessFlags::SHADER_WRITE)
        .dst_access_mask(vk::AccessFlags::SHADER_READ | vk::AccessFlags::SHADER_WRITE)];
    let stage = vk::PipelineStageFlags::COMPUTE_SHADER;
    // SAFETY: recording is under way.
    unsafe {
        let none = vk::DependencyFlags::empty();
        device.cmd_pipeline_barrier(buffer, stage, stage, none, &memory, &[], &[]);
    }
}

/// Results become visible to the host, to copies and to the next recording.
fn finish(device: &ash::Device, buffer: vk::CommandBuffer) {
    let memory = [vk::MemoryBarrier::default()
        .src_access_mask(vk::AccessFlags::SHADER_WRITE)
        .dst_access_mask(
            vk::AccessFlags::HOST_READ
                | vk::AccessFlags::TRANSFER_READ
                | vk::AccessFlags::SHADER_READ
                | vk::AccessFlags::SHADER_WRITE,
        )];
    // SAFETY: recording is under way.
    unsafe {
        device.cmd_pipeline_barrier(
            buffer,
            vk::PipelineStageFlags::COMPUTE_SHADER,
            vk::PipelineStageFlags::HOST
                | vk::PipelineStageFlags::TRANSFER
                | vk::PipelineStageFlags::COMPUTE_SHADER,
            vk::DependencyFlags::empty(),
            &memory,
            &[],
            &[],
        );
    }
}
