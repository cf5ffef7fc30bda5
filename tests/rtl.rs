//! The vectors of `scalescope export` in a simulator: our own RTL modules (`rtl/`) give the exported
//! bits, and a corrupted vector is noticed. Needs Icarus Verilog (`apt-get install iverilog`), and so
//! runs on request: `cargo test --test rtl -- --ignored`.

use scalescope_golden::rtl::manifest::{MANIFEST, Manifest};
use std::path::Path;
use std::process::Command;

fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{command:?}\n{text}");
    text
}

/// Compiles a testbench with parameters and simulates it in the folder of its vectors.
fn simulate(folder: &Path, top: &str, sources: &[&str], parameters: &[(&str, usize)]) -> String {
    let rtl = Path::new(env!("CARGO_MANIFEST_DIR")).join("rtl");
    let binary = folder.join(format!("{top}.vvp"));
    let mut compile = Command::new("iverilog");
    compile
        .args(["-g2012", "-Wall", "-s", top, "-o"])
        .arg(&binary);
    for (name, value) in parameters {
        compile.arg(format!("-P{top}.{name}={value}"));
    }
    for source in sources {
        compile.arg(rtl.join(source));
    }
    run(&mut compile);
    run(Command::new("vvp").arg(&binary).current_dir(folder))
}

fn shape<'a>(manifest: &'a Manifest, name: &str) -> &'a [usize] {
    let found = manifest.arrays.iter().find(|a| a.name == name);
    &found.unwrap_or_else(|| panic!("no {name}")).shape
}

/// Flips the low bit of the first word of a file.
fn corrupt(path: &Path) {
    let text = std::fs::read_to_string(path).unwrap();
    let (first, rest) = text.split_once('\n').unwrap();
    let flipped = u64::from_str_radix(first, 16).unwrap() ^ 1;
    let width = first.len();
    std::fs::write(path, format!("{flipped:0width$x}\n{rest}")).unwrap();
}

#[test]
#[ignore = "needs iverilog"]
fn exported_vectors_are_what_rtl_computes() {
    let folder = tempfile::tempdir().unwrap();
    run(Command::new(env!("CARGO_BIN_EXE_scalescope"))
        .args([
            "export",
            "--layer",
            "3",
            "--profile",
            "asic-int8",
            "--length",
            "8",
            "-o",
        ])
        .arg(folder.path()));
    let read = |step: &str| {
        let folder = folder.path().join(step);
        assert!(folder.join(MANIFEST).is_file());
        (Manifest::read(&folder).unwrap(), folder)
    };
    for step in ["in_proj", "x_proj", "dt_proj"] {
        let (manifest, folder) = read(step);
        let out = shape(&manifest, "out");
        let requantize = || {
            simulate(
                &folder,
                "tb_requantize",
                &["requantize.sv", "tb_requantize.sv"],
                &[
                    ("DEPTH", out[0] * out[1]),
                    ("COLUMNS", out[1]),
                    ("FACTORS", shape(&manifest, "shift")[0]),
                ],
            )
        };
        let found = requantize();
        println!("{step}: {found}");
        assert!(
            found.contains(&format!("PASS requantize: {} words", out[0] * out[1])),
            "{found}"
        );
        corrupt(&folder.join("out.hex"));
        assert!(requantize().contains("FAIL requantize: 1 of"), "{step}");
    }
    let (manifest, dt) = read("dt_proj");
    let (x, weight) = (shape(&manifest, "x"), shape(&manifest, "weight"));
    let mac = || {
        simulate(
            &dt,
            "tb_mac_lane",
            &["mac_lane.sv", "tb_mac_lane.sv"],
            &[
                ("ROWS", x[0]),
                ("OUTPUTS", weight[0]),
                ("LENGTH", x[1]),
                ("ACC", 28),
            ],
        )
    };
    let found = mac();
    println!("dt_proj: {found}");
    assert!(found.contains("PASS mac_lane"), "{found}");
    corrupt(&dt.join("sum.hex"));
    assert!(mac().contains("FAIL mac_lane: 1 of"));
    let (manifest, hadamard) = read("hadamard");
    let input = shape(&manifest, "input");
    let rotate = || {
        simulate(
            &hadamard,
            "tb_hadamard",
            &["hadamard_butterfly.sv", "tb_hadamard.sv"],
            &[
                ("ROWS", input[0]),
                ("SIZE", input[1]),
                ("BASE", shape(&manifest, "base")[0]),
                ("STAGES", shape(&manifest, "stage_shift")[0]),
            ],
        )
    };
    let found = rotate();
    println!("hadamard: {found}");
    assert!(found.contains("PASS hadamard"), "{found}");
    corrupt(&hadamard.join("rotated.hex"));
    assert!(rotate().contains("FAIL hadamard: 1 of"));
    // Every generated testbench is SystemVerilog that elaborates with a device of its ports.
    for step in [
        "norm", "in_proj", "conv", "x_proj", "dt_proj", "scan", "hadamard", "out_proj",
    ] {
        let (_, folder) = read(step);
        let mut compile = Command::new("iverilog");
        compile
            .args(["-g2012", "-t", "null", "-i"])
            .arg(folder.join(format!("tb_{step}.sv")));
        run(&mut compile);
    }
}
