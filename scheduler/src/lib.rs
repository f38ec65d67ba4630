//! Plans: which unit of a model runs on which device in which phase.
