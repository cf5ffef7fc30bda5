//! The vectors of `scalescope export` in a simulator: our own RTL modules (`rtl/`) give the exported
//! bits, and a corrupted vector is noticed. Needs Icarus Verilog (`apt-get install iverilog`), and so
//! runs on request: `cargo test --test all rtl -- --ignored`.

use scalescope_golden::rtl::manifest::{MANIFEST, Manifest, Role};
use scalescope_golden::rtl::simulate::STEPS;
use std::path::Path;
use std::process::Command;

fn run(command: &mut Command) -> String {
    let (good, text) = end(command);
    assert!(good, "{command:?}\n{text}");
    text
}

/// Whether a program ended well, and what it said.
fn end(command: &mut Command) -> (bool, String) {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    (output.status.success(), text)
}

/// Compiles a testbench with parameters and simulates it in the folder of its vectors.
fn simulate(
    folder: &Path,
    top: &str,
    sources: &[&str],
    parameters: &[(&str, usize)],
) -> (bool, String) {
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
    end(Command::new("vvp").arg(&binary).current_dir(folder))
}

/// A simulation that passes, and fails with an exit code of its own once a file is a bit off.
fn passes_and_notices(simulate: impl Fn() -> (bool, String), what: &str, file: &Path) {
    let (good, found) = simulate();
    println!("{found}");
    assert!(good && found.contains(&format!("PASS {what}")), "{found}");
    corrupt(file);
    let (good, found) = simulate();
    let words = what.split(':').next().expect("a name");
    assert!(
        !good && found.contains(&format!("FAIL {words}: 1 of")),
        "{found}"
    );
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
        let what = format!("requantize: {} words", out[0] * out[1]);
        passes_and_notices(requantize, &what, &folder.join("out.hex"));
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
    passes_and_notices(mac, "mac_lane", &dt.join("sum.hex"));
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
    passes_and_notices(rotate, "hadamard", &hadamard.join("rotated.hex"));
}

/// A device with the ports of a step's testbench, which gives the words of `NAME.device.hex` once its
/// inputs begin.
fn device(manifest: &Manifest) -> String {
    let of = |role: Role| manifest.arrays.iter().filter(move |a| a.role == role);
    let ports: Vec<String> = (of(Role::Input).map(|a| (a, "input")))
        .chain(of(Role::Expected).map(|a| (a, "output reg")))
        .map(|(a, kind)| {
            format!(
                "{kind} {0}_valid, {kind} [{1}:0] {0}_data",
                a.name,
                a.bits - 1
            )
        })
        .collect();
    let first = &of(Role::Input).next().expect("a step has inputs").name;
    let mut sv = format!(
        "`timescale 1ns/1ps\nmodule scalescope_{}(input clk, input rst, {});\n",
        manifest.step,
        ports.join(", ")
    );
    for a in of(Role::Expected) {
        sv += &format!(
            "reg [{1}:0] {0}_words [0:{2}]; integer {0}_at = 0;\n\
             initial $readmemh(\"{0}.device.hex\", {0}_words);\n\
             initial {0}_valid = 0;\n\
             always @(posedge clk) begin\n\
               {0}_valid <= !rst && {first}_valid !== 1'bx && {0}_at < {3};\n\
               if (!rst && {0}_at < {3}) begin {0}_data <= {0}_words[{0}_at]; {0}_at <= {0}_at + 1; end\n\
             end\n",
            a.name,
            a.bits - 1,
            a.depth - 1,
            a.depth
        );
    }
    sv + "endmodule\n"
}

/// Every generated testbench elaborates without a warning, passes a device that gives the expected
/// words, writes dumps that `check-export` finds equal, and fails one whose first word is a bit off.
#[test]
#[ignore = "needs iverilog"]
fn generated_testbenches_judge_a_device() {
    let folder = tempfile::tempdir().unwrap();
    let profile = folder.path().join("tokens.toml");
    std::fs::write(
        &profile,
        "version = 1\nextends = \"asic-int8\"\n[activations]\ngranularity = \"token\"\n",
    )
    .unwrap();
    for profile in ["asic-int8", profile.to_str().unwrap()] {
        run(Command::new(env!("CARGO_BIN_EXE_scalescope"))
            .args([
                "export",
                "--layer",
                "3",
                "--length",
                "4",
                "--profile",
                profile,
            ])
            .arg("-o")
            .arg(folder.path().join("vectors")));
        for step in STEPS {
            let folder = folder.path().join("vectors").join(step);
            let manifest = Manifest::read(&folder).unwrap();
            std::fs::write(folder.join("device.sv"), device(&manifest)).unwrap();
            let outputs: Vec<&str> = (manifest.arrays.iter())
                .filter(|a| a.role == Role::Expected)
                .map(|a| a.name.as_str())
                .collect();
            for name in &outputs {
                let words = folder.join(format!("{name}.hex"));
                std::fs::copy(words, folder.join(format!("{name}.device.hex"))).unwrap();
            }
            let judge = || {
                let mut compile = Command::new("iverilog");
                compile.current_dir(&folder);
                compile.args(["-g2012", "-Wall", "-o", "tb.vvp"]);
                compile.args([&format!("tb_{step}.sv"), "device.sv"]);
                let said = run(&mut compile);
                assert!(!said.contains("warning"), "{step}: {said}");
                run(Command::new("vvp").arg("tb.vvp").current_dir(&folder))
            };
            let checked = || {
                let mut check = Command::new(env!("CARGO_BIN_EXE_scalescope"));
                let output = check.arg("check-export").arg(&folder).output().unwrap();
                output.status.code().unwrap()
            };
            let found = judge();
            println!("{step}: {found}");
            assert!(found.contains(&format!("PASS {step}")), "{found}");
            assert!(folder.join(format!("{}.dump.hex", outputs[0])).is_file());
            assert_eq!(checked(), 0, "{step}");
            corrupt(&folder.join(format!("{}.device.hex", outputs[0])));
            let found = judge();
            assert!(
                found.contains(&format!("FAIL {step}: 1 mismatches")),
                "{found}"
            );
            assert_eq!(checked(), 1, "{step}");
        }
    }
}
