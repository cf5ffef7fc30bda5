//! The vectors of `scalescope export` in two simulators: our own RTL modules (`rtl/`) give the exported
//! bits, step by step and a whole block from end to end, and what is off is noticed. Needs Icarus Verilog and
//! Verilator (`apt-get install iverilog verilator`), and so runs on request:
//! `cargo test --test all rtl -- --ignored`.

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
    flip(path, 0);
}

/// Flips a bit of the first word of a file.
fn flip(path: &Path, bit: u32) {
    let text = std::fs::read_to_string(path).unwrap();
    let (first, rest) = text.split_once('\n').unwrap();
    let flipped = u64::from_str_radix(first, 16).unwrap() ^ (1 << bit);
    let width = first.len();
    std::fs::write(path, format!("{flipped:0width$x}\n{rest}")).unwrap();
}

#[test]
#[ignore = "needs iverilog; cargo test --test all rtl:: -- --ignored"]
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

/// A device with the ports of a step's testbench: it takes its inputs in two of three clocks, says so if they are
/// not the words of the export, and then gives the words of `NAME.device.hex`.
fn device(manifest: &Manifest) -> String {
    let of = |role: Role| manifest.arrays.iter().filter(move |a| a.role == role);
    let streams = (of(Role::Input).map(|a| (a, "input", "output")))
        .chain(of(Role::Expected).map(|a| (a, "output reg", "input")));
    let ports: Vec<String> = streams
        .map(|(a, from, back)| {
            let (name, high) = (&a.name, a.bits - 1);
            format!("{from} {name}_valid, {back} {name}_ready, {from} {name}_last, {from} [{high}:0] {name}_data")
        })
        .collect();
    let closed: Vec<String> = of(Role::Input)
        .map(|a| format!("{}_closed", a.name))
        .collect();
    let mut sv = format!(
        "`timescale 1ns/1ps\nmodule scalescope_{}(input clk, input rst, {});\n\
         integer clocks = 0;\nalways @(posedge clk) clocks <= clocks + 1;\n",
        manifest.step,
        ports.join(", ")
    );
    for a in of(Role::Input) {
        let (name, high, last) = (&a.name, a.bits - 1, a.depth - 1);
        sv += &format!(
            "reg [{high}:0] {name}_words [0:{last}]; integer {name}_at = 0; reg {name}_closed = 0;\n\
             initial $readmemh(\"{name}.hex\", {name}_words);\n\
             assign {name}_ready = !{name}_closed && clocks % 3 != 0;\n\
             always @(posedge clk) if (!rst && {name}_valid && {name}_ready) begin\n\
               if ({name}_data !== {name}_words[{name}_at] || {name}_last !== ({name}_at == {last}))\n\
                 $display(\"wrong input {name}[%0d]\", {name}_at);\n\
               {name}_at <= {name}_at + 1;\n\
               {name}_closed <= {name}_last;\n\
             end\n",
        );
    }
    for a in of(Role::Expected) {
        let (name, high, last, depth) = (&a.name, a.bits - 1, a.depth - 1, a.depth);
        sv += &format!(
            "reg [{high}:0] {name}_words [0:{last}]; integer {name}_at = 0;\n\
             initial $readmemh(\"{name}.device.hex\", {name}_words);\n\
             initial {name}_valid = 0;\n\
             always @(posedge clk) if (!rst && {0}) begin\n\
               if (!{name}_valid || {name}_ready) begin\n\
                 {name}_valid <= {name}_at < {depth};\n\
                 if ({name}_at < {depth}) begin\n\
                   {name}_data <= {name}_words[{name}_at]; {name}_last <= {name}_at == {last}; {name}_at <= {name}_at + 1;\n\
                 end\n\
               end\n\
             end\n",
            closed.join(" && "),
        );
    }
    sv + "endmodule\n"
}

/// Every generated testbench elaborates without a warning, passes a device that gives the expected
/// words, writes dumps that `check export` finds equal, and fails one whose first word is a bit off.
#[test]
#[ignore = "needs iverilog; cargo test --test all rtl:: -- --ignored"]
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
            let judge_with = |started_in: &Path, options: &[&str]| {
                let mut compile = Command::new("iverilog");
                compile.current_dir(&folder);
                compile.args(["-g2012", "-Wall", "-o", "tb.vvp"]);
                compile.args([&format!("tb_{step}.sv"), "device.sv"]);
                let said = run(&mut compile);
                assert!(!said.contains("warning"), "{step}: {said}");
                let mut simulate = Command::new("vvp");
                simulate.arg(folder.join("tb.vvp")).args(options);
                end(simulate.current_dir(started_in))
            };
            let judge = |started_in: &Path| judge_with(started_in, &[]);
            let checked = || {
                let mut check = Command::new(env!("CARGO_BIN_EXE_scalescope"));
                let output = check
                    .args(["check", "export"])
                    .arg(&folder)
                    .output()
                    .unwrap();
                output.status.code().unwrap()
            };
            let (good, found) = judge(&folder);
            println!("{step}: {found}");
            assert!(
                good && found.contains(&format!("PASS {step}: {} ", outputs[0])),
                "{found}"
            );
            assert!(!found.contains("wrong input"), "{found}");
            assert!(folder.join(format!("{}.dump.hex", outputs[0])).is_file());
            assert_eq!(checked(), 0, "{step}");
            let first = folder.join(format!("{}.device.hex", outputs[0]));
            let words = std::fs::read_to_string(&first).unwrap();
            corrupt(&first);
            let (good, found) = judge(&folder);
            assert!(
                !good && found.contains(&format!("FAIL {step}: 1 mismatches")),
                "{found}"
            );
            assert_eq!(checked(), 1, "{step}");
            // Unknown bits are a mismatch; so is a simulation that found no words at all.
            let unknown = "x".repeat(words.find('\n').unwrap());
            std::fs::write(&first, words.replacen(&words[..unknown.len()], &unknown, 1)).unwrap();
            let (good, found) = judge(&folder);
            assert!(
                !good && found.contains(&format!("FAIL {step}: 1 mismatches")),
                "{found}"
            );
            assert_eq!(checked(), 1, "{step}");
            std::fs::write(&first, words).unwrap();
            let elsewhere = tempfile::tempdir().unwrap();
            let (good, found) = judge(elsewhere.path());
            assert!(
                !good && found.contains("does not hold the words of the export"),
                "{found}"
            );
            assert!(!found.contains("PASS"), "{found}");
            // A word after the last one; no word at all.
            let sound = std::fs::read_to_string(folder.join("device.sv")).unwrap();
            let depth = |name: &str| shape(&manifest, name).iter().product::<usize>();
            let limit = format!("{0}_at < {1}", outputs[0], depth(outputs[0]));
            let more = sound.replace(
                &limit,
                &format!("{0}_at < {1}", outputs[0], depth(outputs[0]) + 1),
            );
            assert_ne!(sound, more);
            std::fs::write(folder.join("device.sv"), more).unwrap();
            let (good, found) = judge(&folder);
            assert!(!good && found.contains("more than"), "{found}");
            assert_eq!(checked(), 1, "{step}");
            if step == "dt_proj" {
                // The last word is not marked; what is not yet taken is not held, and so is lost and waited for.
                for (kept, broken, said) in [
                    (
                        format!("{0}_last <= {0}_at == ", outputs[0]),
                        format!("{0}_last <= 0 == ", outputs[0]),
                        "_last is 0",
                    ),
                    (
                        format!("!{0}_valid || {0}_ready", outputs[0]),
                        "1".into(),
                        "changed in cycle",
                    ),
                ] {
                    let faulty = sound.replace(&kept, &broken);
                    assert_ne!(sound, faulty);
                    std::fs::write(folder.join("device.sv"), faulty).unwrap();
                    let (good, found) = judge(&folder);
                    assert!(!good && found.contains(said), "{step}, {said}: {found}");
                }
                // A device that cannot wait passes where it need not.
                let (good, found) = judge_with(&folder, &["+pause=0"]);
                assert!(good, "{step}: {found}");
                let silent = sound.replace(&limit, "0");
                std::fs::write(folder.join("device.sv"), silent).unwrap();
                let (good, found) = judge(&folder);
                assert!(
                    !good && found.contains("no word taken or given in"),
                    "{found}"
                );
                assert_eq!(checked(), 1, "{step}");
            }
        }
    }
}

/// f32 bits of a number among the parameters.
fn bits(manifest: &Manifest, name: &str) -> String {
    let value = manifest.parameters[name].as_f64().unwrap() as f32;
    format!("32'h{:08x}", value.to_bits())
}

/// The reference device of a step: a module `NAME` with the ports of the testbench around a device of `rtl/`,
/// whose constants lie in `dir`.
fn reference(manifest: &Manifest, name: &str, dir: &str) -> String {
    let at = |array: &str, axis: usize| shape(manifest, array)[axis];
    let has = |array: &str| manifest.arrays.iter().any(|a| a.name == array);
    let (kind, parameters) = match manifest.step.as_str() {
        "norm" => (
            "norm",
            vec![
                ("ROWS", at("hidden", 0).to_string()),
                ("WIDTH", at("hidden", 1).to_string()),
                ("RESIDUAL", usize::from(has("residual")).to_string()),
                ("EPS", bits(manifest, "eps")),
                ("SCALE", bits(manifest, "output_scale")),
                ("TIES_UP", "1".into()),
            ],
        ),
        "conv" => (
            "conv",
            vec![
                ("ROWS", at("out", 0).to_string()),
                ("CHANNELS", at("out", 1).to_string()),
                ("TAPS", at("weight", 1).to_string()),
            ],
        ),
        "scan" => (
            "scan",
            vec![
                ("ROWS", at("u", 0).to_string()),
                ("CHANNELS", at("u", 1).to_string()),
                ("STATES", at("b", 1).to_string()),
                ("STATE_SCALE", bits(manifest, "state_scale")),
            ],
        ),
        "hadamard" => (
            "hadamard",
            vec![
                ("ROWS", at("y", 0).to_string()),
                ("SIZE", at("y", 1).to_string()),
                ("BASE", at("base", 0).to_string()),
                ("STAGES", at("stage_shift", 0).to_string()),
                ("SCALE", bits(manifest, "output_scale")),
            ],
        ),
        _ => {
            let half = manifest.parameters["output"] == "f16";
            (
                "linear",
                vec![
                    ("ROWS", at("x", 0).to_string()),
                    ("LENGTH", at("x", 1).to_string()),
                    ("OUTPUTS", at("weight", 0).to_string()),
                    ("FACTORS", at("multiplier", 0).to_string()),
                    ("HALF", usize::from(half).to_string()),
                    ("WORD", if half { "16" } else { "8" }.into()),
                ],
            )
        }
    };
    let parameters: Vec<String> = (parameters.iter())
        .map(|(name, value)| format!(".{name}({value})"))
        .collect();
    let (mut ports, mut wires) = (Vec::new(), Vec::new());
    for a in &manifest.arrays {
        let (way, back) = match a.role {
            Role::Input => ("input", "output"),
            Role::Expected => ("output", "input"),
            Role::Constant | Role::Internal => continue,
        };
        let (name, high) = (&a.name, a.bits - 1);
        ports.push(format!(
            "{way} {name}_valid, {back} {name}_ready, {way} {name}_last, {way} [{high}:0] {name}_data"
        ));
        let wire = |part| format!(".{name}_{part}({name}_{part})");
        wires.extend(["valid", "ready", "last", "data"].map(wire));
    }
    format!(
        "module {name}(input clk, input rst,\n  {});\n  {kind}_device #(.DIR(\"{dir}\"), {}) device (.clk(clk), .rst(rst),\n    {});\nendmodule\n",
        ports.join(",\n  "),
        parameters.join(", "),
        wires.join(", "),
    )
}

const MODULES: [&str; 11] = [
    "mac_lane.sv",
    "requantize.sv",
    "requantize_wide.sv",
    "function_table.sv",
    "scan_lane.sv",
    "norm_device.sv",
    "linear_device.sv",
    "conv_device.sv",
    "scan_device.sv",
    "hadamard_device.sv",
    "hadamard_butterfly.sv",
];

/// Compiles a testbench in its folder with every module of `rtl/`, and simulates it there.
fn in_simulator(simulator: &str, folder: &Path, top: &str, sources: &[&str]) -> (bool, String) {
    let rtl = Path::new(env!("CARGO_MANIFEST_DIR")).join("rtl");
    let modules = MODULES.map(|module| rtl.join(module));
    let mut compile = Command::new(simulator);
    compile.current_dir(folder);
    let mut simulate = match simulator {
        "iverilog" => {
            compile
                .args(["-g2012", "-s", top, "-o", "reference.vvp", "-I"])
                .arg(&rtl);
            let mut simulate = Command::new("vvp");
            simulate.arg("reference.vvp");
            simulate
        }
        _ => {
            let include = format!("-I{}", rtl.display());
            compile.args([
                "--binary",
                "--timing",
                "-Wno-fatal",
                "-Wno-WIDTH",
                "-CFLAGS",
                "-O0",
            ]);
            compile.args([
                "--Mdir",
                "verilated",
                "-o",
                "reference",
                "--top-module",
                top,
            ]);
            compile.arg(include);
            Command::new(folder.join("verilated/reference"))
        }
    };
    // By their whole path: `rtl/` has testbenches too.
    compile.args(sources.iter().map(|source| folder.join(source)));
    run(compile.args(&modules));
    end(simulate.current_dir(folder))
}

/// Exports every step of a block, and puts the reference device beside each.
fn exported(folder: &Path, length: &str) -> Vec<Manifest> {
    run(Command::new(env!("CARGO_BIN_EXE_scalescope"))
        .args([
            "export",
            "--layer",
            "3",
            "--profile",
            "asic-int8",
            "--length",
            length,
            "-o",
        ])
        .arg(folder));
    let manifests = STEPS.iter().map(|step| {
        let manifest = Manifest::read(&folder.join(step)).unwrap();
        let device = reference(&manifest, &format!("scalescope_{step}"), "./");
        std::fs::write(folder.join(step).join("reference.sv"), device).unwrap();
        manifest
    });
    manifests.collect()
}

/// The exported testbench of every step passes our reference device in both simulators, its dumps are equal,
/// and a constant that is a bit off fails it.
fn every_step(simulator: &str) {
    let folder = tempfile::tempdir().unwrap();
    for manifest in exported(folder.path(), "3") {
        let step = &manifest.step;
        let folder = folder.path().join(step);
        let sources = [format!("tb_{step}.sv"), "reference.sv".into()];
        let sources = sources.each_ref().map(String::as_str);
        let judge = || in_simulator(simulator, &folder, &format!("tb_{step}"), &sources);
        let (good, found) = judge();
        println!("{simulator} {step}: {found}");
        assert!(
            good && found.contains(&format!("PASS {step}: ")),
            "{simulator} {step}: {found}"
        );
        let mut check = Command::new(env!("CARGO_BIN_EXE_scalescope"));
        run(check.args(["check", "export"]).arg(&folder));
        // The largest bit of a factor, or of a weight of the norm.
        let constant = ["multiplier", "drive_multiplier", "weight"];
        let constant = constant
            .into_iter()
            .find(|c| manifest.arrays.iter().any(|a| a.name == *c));
        let file = folder.join(format!("{}.hex", constant.unwrap()));
        let words = std::fs::read_to_string(&file).unwrap();
        let other: String = words.lines().map(|_| "3f000001\n").collect();
        std::fs::write(&file, other).unwrap();
        let (good, found) = judge();
        assert!(
            !good && found.contains(&format!("FAIL {step}")),
            "{simulator} {step}: {found}"
        );
    }
}

#[test]
#[ignore = "needs iverilog; cargo test --test all rtl:: -- --ignored"]
fn reference_devices_pass_every_exported_testbench_in_icarus() {
    every_step("iverilog");
}

#[test]
#[ignore = "needs verilator; cargo test --test all rtl:: -- --ignored"]
fn reference_devices_pass_every_exported_testbench_in_verilator() {
    every_step("verilator");
}

/// A testbench of the whole block: its inputs go in at the norm, every step feeds the next, and what comes out
/// (the residual stream, the hidden state, the scan's state) is compared word by word.
fn block(manifests: &[Manifest]) -> String {
    let of = |step: &str| manifests.iter().find(|m| m.step == step).unwrap();
    let at = |step: &str, array: &str, axis: usize| shape(of(step), array)[axis];
    let (l, m) = (at("norm", "hidden", 0), at("norm", "hidden", 1));
    let (e, n, r) = (
        at("scan", "u", 1),
        at("scan", "b", 1),
        at("dt_proj", "x", 1),
    );
    let taps = at("conv", "weight", 1);
    format!(
        "`timescale 1ns/1ps\nmodule tb_block;\n\
         localparam L = {l}, M = {m}, E = {e}, N = {n}, R = {r}, HISTORY = {};\n{}endmodule\n",
        (taps - 1) * e,
        include_str!("../rtl/tb_block.svh"),
    )
}

fn whole_block(simulator: &str) {
    let folder = tempfile::tempdir().unwrap();
    let manifests = exported(folder.path(), "3");
    let devices: String = (manifests.iter())
        .map(|m| reference(m, &format!("block_{}", m.step), &format!("{}/", m.step)))
        .collect();
    std::fs::write(folder.path().join("devices.sv"), devices).unwrap();
    std::fs::write(folder.path().join("tb_block.sv"), block(&manifests)).unwrap();
    let judge = || {
        in_simulator(
            simulator,
            folder.path(),
            "tb_block",
            &["tb_block.sv", "devices.sv"],
        )
    };
    let (good, found) = judge();
    println!("{simulator}: {found}");
    assert!(
        good && found.contains("PASS block: "),
        "{simulator}: {found}"
    );
    // An expected word is off by its lowest bit.
    let expected = folder.path().join("out_proj/out.hex");
    corrupt(&expected);
    let (good, found) = judge();
    println!("{simulator}, an expected word off: {found}");
    assert!(
        !good && found.contains("FAIL block: 1 mismatches"),
        "{simulator}: {found}"
    );
    corrupt(&expected);
    // The factor of the first projection is off by a quarter or more: the words at the end are.
    flip(&folder.path().join("in_proj/multiplier.hex"), 13);
    let (good, found) = judge();
    println!("{simulator}, a factor off: {found}");
    assert!(
        !good && found.contains("FAIL block: "),
        "{simulator}: {found}"
    );
}

#[test]
#[ignore = "needs iverilog; cargo test --test all rtl:: -- --ignored"]
fn a_block_of_reference_devices_is_the_simulators_in_icarus() {
    whole_block("iverilog");
}

#[test]
#[ignore = "needs verilator; cargo test --test all rtl:: -- --ignored"]
fn a_block_of_reference_devices_is_the_simulators_in_verilator() {
    whole_block("verilator");
}
