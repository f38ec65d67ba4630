//! Identifiers of answers and requests.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// `prefix` and 24 characters that no other id of this process or of another start has.
pub(crate) fn new(prefix: &str) -> String {
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let mut hasher = blake3::Hasher::new();
    hasher.update(&now.to_le_bytes());
    hasher.update(&count.to_le_bytes());
    hasher.update(&std::process::id().to_le_bytes());
    format!("{prefix}{}", &hasher.finalize().to_hex()[..24])
}

/// A random seed for requests that name none.
pub(crate) fn seed() -> i64 {
    let id = blake3::hash(new("").as_bytes());
    let bytes: [u8; 8] = id.as_bytes()[..8].try_into().expect("a hash has 32 bytes");
    // Positive and exact in a double, so that every client can send it back.
    i64::from_le_bytes(bytes) & ((1 << 53) - 1)
}

/// Seconds since 1970.
pub(crate) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
