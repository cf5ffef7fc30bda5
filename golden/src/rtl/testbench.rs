//! The self-checking SystemVerilog testbench of a step: streams every input into the device under
//! test, one word a clock, compares every word that comes out, and writes them to dumps that
//! `scalescope check-export` reads.

use super::manifest::{Entry, Manifest, Role};
use std::fmt::Write;

/// The testbench's file name.
pub fn file_name(manifest: &Manifest) -> String {
    format!("tb_{}.sv", manifest.step)
}

/// The testbench. The device is a module `scalescope_STEP` of the user's, with the ports listed in
/// its head.
pub fn testbench(manifest: &Manifest) -> String {
    let of = |role| {
        manifest
            .arrays
            .iter()
            .filter(move |a: &&Entry| a.role == role)
    };
    let (inputs, outputs): (Vec<&Entry>, Vec<&Entry>) =
        (of(Role::Input).collect(), of(Role::Expected).collect());
    let step = &manifest.step;
    let mut sv = format!(
        "// {step} of block {}, mode {}, profile {} ({}).\n\
         // Made by scalescope; docs/export.md says what every array is.\n//\n\
         // The device under test, `module scalescope_{step}`, gets each input word by word, row-major,\n\
         // while NAME_valid is high, and gives each output the same way. Constants ({}) are its own to\n\
         // load from the memory files.\n`timescale 1ns/1ps\n\nmodule tb_{step};\n",
        manifest.layer,
        manifest.mode,
        manifest.profile.name,
        &manifest.profile.hash[..12],
        of(Role::Constant)
            .map(|a| a.name.as_str())
            .collect::<Vec<_>>()
            .join(", "),
    );
    sv += "  reg clk = 0;\n  reg rst = 1;\n  always #5 clk = ~clk;\n  integer errors = 0;\n  integer cycles = 0;\n\n";
    for a in inputs.iter().chain(&outputs) {
        let _ = writeln!(
            sv,
            "  reg [{}:0] {}_mem [0:{}];",
            a.bits - 1,
            a.name,
            a.depth - 1
        );
        let _ = writeln!(sv, "  integer {}_at = 0;", a.name);
    }
    for a in &inputs {
        let _ = writeln!(
            sv,
            "  reg {0}_valid = 0;\n  reg [{1}:0] {0}_data = 0;",
            a.name,
            a.bits - 1
        );
    }
    for a in &outputs {
        let _ = writeln!(
            sv,
            "  wire {0}_valid;\n  wire [{1}:0] {0}_data;\n  integer {0}_dump;",
            a.name,
            a.bits - 1
        );
    }
    let ports: Vec<String> = inputs
        .iter()
        .chain(&outputs)
        .flat_map(|a| {
            [
                format!(".{0}_valid({0}_valid)", a.name),
                format!(".{0}_data({0}_data)", a.name),
            ]
        })
        .collect();
    let _ = write!(
        sv,
        "\n  scalescope_{step} dut (.clk(clk), .rst(rst),\n    {});\n\n",
        ports.join(", ")
    );
    sv += "  initial begin\n";
    for a in inputs.iter().chain(&outputs) {
        let _ = writeln!(sv, "    $readmemh(\"{}\", {}_mem);", a.file, a.name);
    }
    for a in &outputs {
        let _ = writeln!(
            sv,
            "    {0}_dump = $fopen(\"{0}.dump.hex\", \"w\");",
            a.name
        );
    }
    sv += "    repeat (4) @(posedge clk);\n    rst <= 0;\n  end\n\n  always @(posedge clk) if (!rst) begin\n    cycles <= cycles + 1;\n";
    for a in &inputs {
        let _ = writeln!(
            sv,
            "    {0}_valid <= {0}_at < {1};\n    if ({0}_at < {1}) begin\n      {0}_data <= {0}_mem[{0}_at];\n      {0}_at <= {0}_at + 1;\n    end",
            a.name, a.depth
        );
    }
    for a in &outputs {
        let digits = a.bits / 4;
        let _ = writeln!(
            sv,
            "    if ({0}_valid) begin\n      $fwrite({0}_dump, \"%0{digits}h\\n\", {0}_data);\n      if ({0}_at >= {1}) begin\n        errors = errors + 1;\n        $display(\"{0}: more than {1} words\");\n      end else if ({0}_data !== {0}_mem[{0}_at]) begin\n        if (errors < 20) $display(\"{0}[%0d]: expected %h, found %h\", {0}_at, {0}_mem[{0}_at], {0}_data);\n        errors = errors + 1;\n      end\n      {0}_at = {0}_at + 1;\n    end",
            a.name, a.depth
        );
    }
    let done: Vec<String> = outputs
        .iter()
        .map(|a| format!("{}_at >= {}", a.name, a.depth))
        .collect();
    let words: usize = manifest.arrays.iter().map(|a| a.depth).sum();
    let _ = write!(
        sv,
        "    if ({}) begin\n      if (errors == 0) $display(\"PASS {step}\");\n      else $display(\"FAIL {step}: %0d mismatches\", errors);\n      $finish;\n    end\n    if (cycles > {}) begin\n      $display(\"FAIL {step}: no more output after %0d cycles\", cycles);\n      $finish;\n    end\n  end\nendmodule\n",
        done.join(" && "),
        1000 * words.max(1000)
    );
    sv
}
