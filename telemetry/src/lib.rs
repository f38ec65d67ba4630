//! Clock, units, metrics and tracing set-up of trefoil.
