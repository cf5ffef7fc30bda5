//! Arrays from npz files of measurements.

use npyz::npz::NpzArchive;
use npyz::{Deserialize, NpyFile};
use std::path::Path;

/// One array of a file, flattened; its path begins at this crate.
pub fn read<T: Deserialize>(file: &str, key: &str) -> Vec<T> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let mut archive = NpzArchive::open(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    let array: NpyFile<_> = archive
        .by_name(key)
        .unwrap_or_else(|e| panic!("{path:?} {key}: {e}"))
        .unwrap_or_else(|| panic!("{path:?} has no array {key}"));
    array.into_vec().unwrap()
}

/// The measured corrections of the special-function unit, -1, 0 or 1 for each of the 2^23
/// mantissas. Four 2-bit codes to a byte, lowest bits first, code = correction + 1.
pub fn corrections(key: &str) -> Vec<i8> {
    let packed: Vec<u8> = read("../golden/data/sfu/mufu_corrections_h200.npz", key);
    assert_eq!(packed.len(), 1 << 21);
    let mut codes = Vec::with_capacity(1 << 23);
    for byte in packed {
        for i in 0..4 {
            let code = byte >> (2 * i) & 3;
            assert_ne!(code, 3, "not a code");
            codes.push(code as i8 - 1);
        }
    }
    codes
}
