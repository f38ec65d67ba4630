//! Sizes as users write them: bytes, KiB/MiB/GiB, KB/MB/GB.

/// Reads a size in bytes.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, f64); 10] = [
        ("tib", 1024.0 * 1024.0 * 1024.0 * 1024.0),
        ("gib", 1024.0 * 1024.0 * 1024.0),
        ("mib", 1024.0 * 1024.0),
        ("kib", 1024.0),
        ("tb", 1e12),
        ("gb", 1e9),
        ("mb", 1e6),
        ("kb", 1e3),
        ("g", 1024.0 * 1024.0 * 1024.0),
        ("b", 1.0),
    ];
    let lower = text.trim().to_lowercase();
    let (number, unit) = UNITS
        .iter()
        .find_map(|(name, unit)| lower.strip_suffix(name).map(|number| (number, *unit)))
        .unwrap_or((&lower, 1.0));
    match number.trim().parse::<f64>() {
        Ok(number) if number >= 0.0 && number * unit < u64::MAX as f64 => {
            Ok((number * unit) as u64)
        }
        _ => Err(format!("expected a size such as 16GiB, 800MB or 1048576, got {text:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_nonsense_refused() {
        assert_eq!(parse("16GiB"), Ok(16 << 30));
        assert_eq!(parse("1.5 kb"), Ok(1500));
        assert_eq!(parse("77"), Ok(77));
        for bad in ["", "GiB", "-1GB", "many", "1e300GiB"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
