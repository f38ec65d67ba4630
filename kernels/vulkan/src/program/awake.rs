//! Something to do for a card that waits.

use crate::dispatch::{Dispatch, Place};

/// A launch that keeps a card busy until the first word behind [`Place::Input`] 0 (two words) is not zero,
/// or it looked there `looks` times.
pub fn awake(looks: u32) -> Dispatch {
    Dispatch::new("awake", &[], [1, 1, 1]).update((Place::Input(0), 0)).words([looks])
}
