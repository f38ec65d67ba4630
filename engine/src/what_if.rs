//! The plan that a model would get under another policy, for another request or on another machine.
//! Nothing changes by asking.

use trefoil_devices_api::Bucket;
use trefoil_scheduler::Plan;
use trefoil_scheduler::cost::Corrections;
use trefoil_scheduler::planner::{PlanRequest, Workload, plan as make_plan};
use trefoil_scheduler::policy::Resolved;
use trefoil_scheduler::profile::Profile;

use crate::calibrate::{Costs, without_power};
use crate::model::{Lowered, ModelError};

/// What would be planned.
#[derive(Clone, Copy, Debug)]
pub struct WhatIf<'a> {
    /// The model.
    pub lowered: &'a Lowered,
    /// The plan in force: sizes of steps and context are its.
    pub plan: &'a Plan,
    /// Bytes of one stored key or value element.
    pub kv_element_bytes: usize,
    /// What counts. Its pins hold, and its lists of devices.
    pub policy: &'a Resolved,
    /// The request that is planned for.
    pub workload: Workload,
}

impl WhatIf<'_> {
    /// The plan on this machine, by its measured costs.
    ///
    /// # Errors
    /// A policy that fits nothing here, pins that cannot be met, too little memory.
    pub fn here(&self, costs: &Costs) -> Result<Plan, ModelError> {
        let mut plan = self.plan_by(&costs.profile, &costs.corrections)?;
        costs.set_domains(&mut plan);
        plan.reasons.push(costs.source.clone());
        Ok(plan)
    }

    /// The plan on a machine of this profile.
    ///
    /// # Errors
    /// As [`Self::here`].
    pub fn on(&self, profile: &Profile) -> Result<Plan, ModelError> {
        self.plan_by(profile, &Corrections::default())
    }

    fn plan_by(&self, profile: &Profile, corrections: &Corrections) -> Result<Plan, ModelError> {
        let Self { lowered, plan, .. } = *self;
        let buckets: Vec<Bucket> = plan.buckets.iter().map(|bucket| bucket.bucket).collect();
        let (model, graph) = (lowered.model_ref(), &*lowered.graph);
        let mut request = PlanRequest::new(model, graph, profile, corrections, &buckets);
        self.policy.apply(&mut request)?;
        request.workload = self.workload;
        request.context = plan.context;
        request.kv_element_bytes = self.kv_element_bytes;
        let note = without_power(&mut request);
        let mut plan = make_plan(&request)?.plan;
        plan.reasons.extend(note);
        Ok(plan)
    }
}
