//! NumPy's file form for f32 matrices (NPY version 1.0).

use std::io::Write;
use std::path::Path;

const MAGIC: &[u8] = b"\x93NUMPY\x01\x00";

/// Writes `[rows, cols]` values; the file appears whole or not at all.
pub(crate) fn write(path: &Path, rows: usize, cols: usize, values: &[f32]) -> std::io::Result<()> {
    let mut header =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {cols}), }}");
    // Magic, length and header together are a multiple of 64 and end in a new line.
    let padding = 64 - (MAGIC.len() + 2 + header.len() + 1) % 64;
    header.extend(std::iter::repeat_n(' ', padding % 64));
    header.push('\n');
    let temporary = path.with_extension("npy.part");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&temporary)?);
    file.write_all(MAGIC)?;
    file.write_all(&(header.len() as u16).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    for value in values {
        file.write_all(&value.to_le_bytes())?;
    }
    file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
    std::fs::rename(&temporary, path)
}

/// Reads `(rows, cols, values)`; the error says what was expected and what came.
pub(crate) fn read(path: &Path) -> Result<(usize, usize, Vec<f32>), String> {
    let name = path.display();
    let bytes = std::fs::read(path).map_err(|error| format!("{name}: {error}"))?;
    let wrong = |got: &str| format!("{name}: expected a NumPy file of f32 [rows, cols], got {got}");
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| wrong("another format or version"))?;
    let (length, rest) = rest.split_at_checked(2).ok_or_else(|| wrong("a cut header"))?;
    let length = usize::from(u16::from_le_bytes([length[0], length[1]]));
    let (header, data) = rest.split_at_checked(length).ok_or_else(|| wrong("a cut header"))?;
    let header = std::str::from_utf8(header).map_err(|_| wrong("a damaged header"))?;
    if !header.contains("'<f4'") || header.contains("True") {
        return Err(wrong(header.trim()));
    }
    let shape = header
        .split_once("'shape': (")
        .and_then(|(_, rest)| rest.split_once(')'))
        .map(|(shape, _)| shape.split(',').map_while(|n| n.trim().parse::<usize>().ok()));
    let [rows, cols] = shape
        .and_then(|shape| <[usize; 2]>::try_from(shape.collect::<Vec<_>>()).ok())
        .ok_or_else(|| wrong(header.trim()))?;
    let expected = rows.checked_mul(cols).and_then(|n| n.checked_mul(4));
    if expected != Some(data.len()) {
        return Err(wrong(&format!("{} bytes for {rows} x {cols}", data.len())));
    }
    let values = data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    Ok((rows, cols, values.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_damage_is_refused() {
        let path = std::env::temp_dir().join(format!("trefoil-npy-{}.npy", std::process::id()));
        write(&path, 2, 3, &[1.0, -2.0, 3.5, 0.0, 5.0, 6.0]).expect("writes");
        let bytes = std::fs::read(&path).expect("reads");
        assert_eq!((bytes.len() - 24) % 64, 0, "the data begins on a multiple of 64");
        assert_eq!(read(&path), Ok((2, 3, vec![1.0, -2.0, 3.5, 0.0, 5.0, 6.0])));
        for cut in [0, 5, 9, 40, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..cut]).expect("writes");
            assert!(read(&path).is_err(), "{cut}");
        }
        std::fs::remove_file(&path).expect("removes");
    }
}
