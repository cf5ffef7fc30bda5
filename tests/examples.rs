//! The programs of `examples/` run, and what each of them asserts holds.

#[path = "../examples/compare_traces.rs"]
mod compare_traces;
#[path = "../examples/own_mode.rs"]
mod own_mode;
#[path = "../examples/own_profile.rs"]
mod own_profile;
#[path = "../examples/probe.rs"]
mod probe;
#[path = "../examples/run_a_mode.rs"]
mod run_a_mode;

#[test]
fn every_example_runs() {
    let programs = [
        ("compare_traces", compare_traces::main as fn() -> _),
        ("own_mode", own_mode::main),
        ("own_profile", own_profile::main),
        ("probe", probe::main),
        ("run_a_mode", run_a_mode::main),
    ];
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
    let files = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path());
    let rust = files.filter(|path| path.extension().is_some_and(|e| e == "rs"));
    assert_eq!(rust.count(), programs.len(), "a program that is not run");
    for (name, main) in programs {
        let ended: scalescope_sim::Result<()> = main();
        ended.unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}
