//! What several commands share: options from flags, loading, progress.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use trefoil_engine::backends::{BackendOptions, Backends, Gpus, Npus, Refused};
use trefoil_engine::cache;
use trefoil_engine::calibrate::CalibrationOptions;
use trefoil_engine::kv::KvType;
use trefoil_engine::loaded::Loaded;
use trefoil_engine::model::ModelOptions;
use trefoil_scheduler::Plan;

use crate::cli::{KvForm, PlacementArgs};
use crate::exit::{Failure, Status};

/// Finds the devices; those that the flags, pins or plan name are opened whatever they are.
pub(crate) fn backends(args: &PlacementArgs, options: &ModelOptions) -> Backends {
    detect(args, backend_options(args, options))
}

/// Finds the devices that the configuration lets be used.
pub(crate) fn detect(args: &PlacementArgs, options: BackendOptions) -> Backends {
    restrict(Backends::detect(options), args)
}

/// Without the devices that the configuration forbids.
pub(crate) fn restrict(mut found: Backends, args: &PlacementArgs) -> Backends {
    let refused = found.devices.iter().filter_map(|device| {
        let name = device.info().name.clone();
        let reason = args.settings.devices.refusal(&name)?;
        Some(Refused {
            name,
            reason: format!("the configuration does not let it be used: {reason}"),
        })
    });
    let refused: Vec<Refused> = refused.collect();
    found.devices.retain(|device| refused.iter().all(|other| other.name != device.info().name));
    found.refused.extend(refused);
    found
}

/// How the devices are set up.
pub(crate) fn backend_options(args: &PlacementArgs, options: &ModelOptions) -> BackendOptions {
    let pinned = options.pins.iter().map(|pin| pin.device.clone());
    let planned = options.plan.iter().flat_map(|plan| &plan.buckets);
    let planned = planned.flat_map(|bucket| bucket.devices()).map(str::to_owned);
    let devices = options.devices.iter().cloned();
    let mut named: Vec<String> =
        options.device.iter().cloned().chain(devices).chain(pinned).chain(planned).collect();
    named.sort_unstable();
    named.dedup();
    BackendOptions {
        // Where nobody says what runs where, costs choose among all devices.
        gpus: if named.is_empty() { Gpus::All } else { Gpus::Named },
        npus: if named.is_empty() { args.settings.npus } else { Npus::Named },
        npu: args.settings.npu.clone(),
        threads: args.threads(),
        exact: args.exact,
        named,
        cache: cache::user_folder(),
        ..BackendOptions::default()
    }
}

/// The names of a list such as `cpu0,gpu0`.
pub(crate) fn list(names: &str) -> Vec<String> {
    let names = names.split(',').map(str::trim).filter(|name| !name.is_empty());
    names.map(str::to_owned).collect()
}

/// A model's options from the flags.
pub(crate) fn options(args: &PlacementArgs) -> Result<ModelOptions, Failure> {
    let plan = match &args.plan {
        None => None,
        Some(path) => {
            let text = if path == Path::new("-") {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text)?;
                text
            } else {
                read_text(path, Status::Usage)?
            };
            Some(Plan::from_json(&text).map_err(|error| Failure::new(Status::Usage, error))?)
        }
    };
    let named = args.named_device().map(list).unwrap_or_default();
    let (device, devices) = match &named[..] {
        [one] => (Some(one.clone()), Vec::new()),
        _ => (None, named),
    };
    Ok(ModelOptions {
        device,
        devices,
        calibration: CalibrationOptions {
            when: args.settings.calibrate,
            cache: cache::user_folder(),
            cost_tables: args.settings.cost_tables.clone(),
        },
        policy: Some(Arc::new(args.settings.policy.clone())),
        pins: args.all_pins().to_vec(),
        npu_fallback: args.settings.npu_fallback,
        plan,
        context: args.context(),
        page_tokens: args.settings.page_tokens,
        kv_type: match args.kv_type() {
            KvForm::F16 => KvType::F16,
            KvForm::F32 => KvType::F32,
        },
        chunk: args.prefill_chunk(),
        ..ModelOptions::default()
    })
}

/// Loads a model as the flags say.
pub(crate) fn load(
    model: &str,
    args: &PlacementArgs,
    template: Option<&Path>,
) -> Result<(Backends, Loaded), Failure> {
    let options = options(args)?;
    let backends = backends(args, &options);
    let loaded = open(model, args, &backends, &options, template)?;
    Ok((backends, loaded))
}

/// Loads a model on devices that were found, with what the configuration says of it.
pub(crate) fn open(
    model: &str,
    args: &PlacementArgs,
    backends: &Backends,
    options: &ModelOptions,
    template: Option<&Path>,
) -> Result<Loaded, Failure> {
    let settings = &args.settings;
    let template = settings.template(template).map(|path| read_text(path, Status::Usage));
    let template = template.transpose()?;
    let spinner = spinner(&format!("loading {model}"));
    let loaded = Loaded::open(settings.path(model), backends, options, template.as_deref());
    spinner.finish_and_clear();
    let mut loaded = loaded?;
    if let Some(text) = Arc::get_mut(&mut loaded.text) {
        text.sampling = settings.sampling(text.sampling);
    }
    Ok(loaded)
}

/// Reads a UTF-8 file, naming it in the error.
pub(crate) fn read_text(path: &Path, status: Status) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|error| Failure::new(status, format!("{}: {error}", path.display())))
}

/// A sign of life for work of unknown length; shown after a moment, on a terminal only.
pub(crate) fn spinner(message: &str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(message.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(120));
    spinner
}

/// A bar for work of known length, on a terminal only.
pub(crate) fn bar(total: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("the template is valid");
    ProgressBar::new(total).with_style(style.progress_chars("=> "))
}
