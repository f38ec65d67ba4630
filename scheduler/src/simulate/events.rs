//! Tasks on processors and links in virtual time: what is ready starts when its resource is free, and
//! tasks that run at the same time slow each other down.

use std::collections::BTreeSet;

use crate::profile::Profile;

/// Where a task runs: one at a time on each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Resource {
    /// A device of the profile.
    Device(usize),
    /// A link of the profile.
    Link(usize),
}

/// Something that takes time.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub(super) resource: Resource,
    /// Seconds that nothing else changes: hand-off, latency.
    pub(super) fixed: f64,
    /// Seconds after that, if nothing else runs.
    pub(super) work: f64,
    /// Bytes of a domain's DRAM that the work moves.
    pub(super) traffic: Vec<(usize, f64)>,
    /// Joules of other devices that work on it.
    pub(super) joules: f64,
    /// Tasks that must have ended, all of lower numbers.
    pub(super) after: Vec<usize>,
}

/// When a task ran.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Ran {
    pub(super) start: f64,
    pub(super) end: f64,
    /// Of its energy above waiting: seconds of its device's work, slowed or not.
    pub(super) working: f64,
}

struct Running {
    task: usize,
    fixed: f64,
    work: f64,
}

/// Runs all tasks; of those that are ready for a resource, the lowest number first.
pub(super) fn run(profile: &Profile, tasks: &[Task]) -> Vec<Ran> {
    let mut ran = vec![Ran::default(); tasks.len()];
    let mut missing: Vec<usize> = tasks.iter().map(|task| task.after.len()).collect();
    let mut followers: Vec<Vec<usize>> = vec![Vec::new(); tasks.len()];
    for (index, task) in tasks.iter().enumerate() {
        for &before in &task.after {
            debug_assert!(before < index, "tasks wait for earlier ones only");
            followers[before].push(index);
        }
    }
    // By resource, then by number.
    let mut ready: BTreeSet<(Resource, usize)> = BTreeSet::new();
    for (index, task) in tasks.iter().enumerate().filter(|(_, task)| task.after.is_empty()) {
        ready.insert((task.resource, index));
    }
    let mut running: Vec<Running> = Vec::new();
    let mut now = 0.0;
    loop {
        start_ready(tasks, &mut ready, &mut running, &mut ran, now);
        if running.is_empty() {
            return ran;
        }
        let rates = rates(profile, tasks, &running);
        // To the end of a fixed part or of a task: the rates hold until then.
        let left = running
            .iter()
            .zip(&rates)
            .map(|(one, rate)| if one.fixed > 0.0 { one.fixed } else { one.work / rate });
        let step = left.fold(f64::INFINITY, f64::min);
        now += step;
        let mut ended = Vec::new();
        for (one, rate) in running.iter_mut().zip(&rates) {
            if one.fixed > 0.0 {
                one.fixed = rest(one.fixed, step);
            } else {
                ran[one.task].working += step;
                one.work = rest(one.work, step * rate);
            }
            if one.fixed == 0.0 && one.work == 0.0 {
                ended.push(one.task);
            }
        }
        running.retain(|one| one.fixed > 0.0 || one.work > 0.0);
        for task in ended {
            ran[task].end = now;
            for &follower in &followers[task] {
                missing[follower] -= 1;
                if missing[follower] == 0 {
                    ready.insert((tasks[follower].resource, follower));
                }
            }
        }
    }
}

fn start_ready(
    tasks: &[Task],
    ready: &mut BTreeSet<(Resource, usize)>,
    running: &mut Vec<Running>,
    ran: &mut [Ran],
    now: f64,
) {
    let mut next: Vec<(Resource, usize)> = Vec::new();
    for &(resource, task) in ready.iter() {
        let busy = running.iter().any(|one| tasks[one.task].resource == resource);
        if !busy && next.last().is_none_or(|(other, _)| *other != resource) {
            next.push((resource, task));
        }
    }
    for (resource, task) in next {
        ready.remove(&(resource, task));
        ran[task].start = now;
        // Something that takes no time still ends in an event of its own.
        let (fixed, work) = (tasks[task].fixed, tasks[task].work.max(1e-15));
        running.push(Running { task, fixed, work });
    }
}

/// What is left; sums that differ in their last digits end together.
fn rest(left: f64, step: f64) -> f64 {
    let rest = left - step;
    if rest <= left * 1e-12 { 0.0 } else { rest }
}

/// Share of its lone speed that each running task has. Devices keep what the profile measured for each
/// other device at work; a domain whose DRAM is asked for more than it has gives each its part. Of
/// these the lower holds: what was measured together has the DRAM's limit in it.
fn rates(profile: &Profile, tasks: &[Task], running: &[Running]) -> Vec<f64> {
    let working = |one: &&Running| one.fixed <= 0.0;
    let at_work: Vec<&Running> = running.iter().filter(working).collect();
    let device = |one: &Running| match tasks[one.task].resource {
        Resource::Device(device) => Some(profile.devices[device].name.as_str()),
        Resource::Link(_) => None,
    };
    let mut given = vec![1.0; profile.domains.len()];
    for (domain, given) in given.iter_mut().enumerate() {
        let asked = at_work.iter().filter_map(|one| {
            let task = &tasks[one.task];
            let bytes = task.traffic.iter().filter(|(at, _)| *at == domain).map(|(_, b)| b);
            let bytes: f64 = bytes.sum();
            (bytes > 0.0).then(|| bytes / task.work.max(1e-15))
        });
        let asked: Vec<f64> = asked.collect();
        // Alone a device has the speed that the profile gives it.
        if asked.len() > 1 {
            let has = profile.domains[domain].bandwidth.get();
            *given = (has / asked.iter().sum::<f64>()).min(1.0);
        }
    }
    let rate = |one: &Running| {
        if one.fixed > 0.0 {
            return 1.0;
        }
        let kept = device(one).map_or(1.0, |name| {
            let others = at_work.iter().filter_map(|other| device(other));
            others.filter(|other| *other != name).map(|other| profile.keeps(name, other)).product()
        });
        let traffic = tasks[one.task].traffic.iter().filter(|(_, bytes)| *bytes > 0.0);
        let dram = traffic.map(|(domain, _)| given[*domain]).fold(1.0, f64::min);
        // A device that keeps nothing would never end.
        f64::min(kept, dram).max(1e-3)
    };
    running.iter().map(rate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::shipped;

    fn task(resource: Resource, fixed: f64, work: f64, after: &[usize]) -> Task {
        Task { resource, fixed, work, traffic: Vec::new(), joules: 0.0, after: after.to_vec() }
    }

    fn ends(profile: &Profile, tasks: &[Task]) -> Vec<f64> {
        run(profile, tasks).iter().map(|ran| ran.end).collect()
    }

    fn near(got: &[f64], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (a, b) in got.iter().zip(want) {
            assert!((a - b).abs() < 1e-9 * b.max(1.0), "{got:?}, expected {want:?}");
        }
    }

    /// strix-point: cpu0, gpu0, npu0, in one domain of 89.6 GB/s.
    fn machine() -> Profile {
        shipped("strix-point").expect("ships")
    }

    const CPU: Resource = Resource::Device(0);
    const GPU: Resource = Resource::Device(1);
    const NPU: Resource = Resource::Device(2);

    #[test]
    fn a_resource_runs_one_task_at_a_time_and_the_first_first() {
        let tasks = [
            task(GPU, 0.0, 1.0, &[]),
            task(GPU, 0.5, 1.0, &[]),
            task(GPU, 0.0, 2.0, &[]),
            task(NPU, 0.0, 1.0, &[2]),
            task(GPU, 0.0, 0.0, &[3]),
        ];
        near(&ends(&machine(), &tasks), &[1.0, 2.5, 4.5, 5.5, 5.5]);
    }

    #[test]
    fn devices_at_work_together_slow_each_other_and_hand_offs_do_not() {
        let profile = machine();
        let (gpu, npu) = (profile.keeps("gpu0", "npu0"), profile.keeps("npu0", "gpu0"));
        assert!((gpu, npu) == (0.84, 0.71));
        let got = ends(&profile, &[task(GPU, 0.0, 0.84, &[]), task(NPU, 0.0, 1.71, &[])]);
        // Together for a second; then the NPU has 1 left.
        near(&got, &[1.0, 2.0]);
        let got = ends(&profile, &[task(GPU, 1.0, 1.0, &[]), task(NPU, 0.0, 1.0, &[])]);
        near(&got, &[2.0, 1.0]);
    }

    #[test]
    fn dram_is_shared_by_what_is_asked_of_it() {
        let profile = machine();
        let mut a = task(CPU, 0.0, 1.0, &[]);
        let mut b = task(NPU, 0.0, 1.0, &[]);
        a.traffic = vec![(0, 89.6e9)];
        near(&ends(&profile, std::slice::from_ref(&a)), &[1.0]);
        b.traffic = vec![(0, 89.6e9)];
        near(&ends(&profile, &[a.clone(), b.clone()]), &[2.0, 2.0]);
        b.traffic = vec![(0, 0.0)];
        near(&ends(&profile, &[a, b]), &[1.0, 1.0]);
    }
}
