//! `--device`: what a build without GPUs, or a machine without one, says.

use crate::common::refusal;

#[cfg(not(feature = "cuda"))]
#[test]
fn a_build_without_gpus_says_how_to_get_one() {
    let golden = "golden/data/trace/none.npz";
    for args in [
        &["run", "--text", "a", "--device", "cuda"][..],
        &["check", "--golden", golden, "--device", "cuda:1"],
        &["eval", "--data", "none.jsonl", "--device", "cuda:0,cuda:1"],
        &["check", "gpu"],
        &["bench", "--device", "cuda"],
    ] {
        assert!(refusal(args).contains("--features cuda"), "{args:?}");
    }
}

#[test]
fn devices_that_are_none_are_refused() {
    for device in ["gpu", "cuda:x", "cuda:0,cuda:0"] {
        let out = crate::common::run(&["run", "--text", "a", "--device", device]);
        assert_eq!(out.status.code(), Some(2), "{device}");
    }
    for command in ["run --text a", "check gpu", "bench"] {
        let mut args: Vec<&str> = command.split(' ').collect();
        args.extend(["--device", "cuda:0,cuda:1"]);
        assert!(refusal(&args).contains("one device"), "{command}");
    }
}
