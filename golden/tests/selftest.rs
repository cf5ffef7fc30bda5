//! The self-test of the program notices every flip.

use scalescope_golden::selftest::selftest;

#[test]
fn every_flip_that_matters_is_noticed() {
    let report = selftest(1).unwrap();
    assert!(report.passed(), "{report:#?}");
    for kind in &report.kinds {
        if kind.kind.starts_with("golden values") || kind.kind.ends_with("coefficients") {
            assert_eq!(kind.detected, kind.flips(), "{}", kind.kind);
        }
    }
    let flips: usize = report.kinds.iter().map(|k| k.flips()).sum();
    assert!(flips > 10_000, "{flips}");
}
