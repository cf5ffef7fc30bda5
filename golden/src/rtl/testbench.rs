//! The self-checking SystemVerilog testbench of a step: streams every input into the device under
//! test, one word a clock, compares every word that comes out, and writes them to dumps that
//! `scalescope check export` reads.
//!
//! It passes only if its own words are those of the export, every output gave every word, equal, and nothing
//! came after the last one; otherwise it ends with `$fatal`, so that the simulator's exit code says so. Its
//! words have no unknown bits once their checksum is right, so that unknown bits differ from them.

use super::manifest::{Entry, Manifest, Role, StepVectors};
use super::words::words_of;
use scalescope_sim::error::Result;
use std::fmt::Write;

/// Clocks after the last word in which nothing more may come.
const QUIET: usize = 1000;

/// The testbench's file name.
pub fn file_name(manifest: &Manifest) -> String {
    format!("tb_{}.sv", manifest.step)
}

/// The testbench of a folder of vectors. The device is a module `scalescope_STEP` of the user's, with the
/// ports listed in its head.
///
/// # Errors
///
/// A manifest of other arrays than the vectors.
pub fn testbench(manifest: &Manifest, vectors: &StepVectors) -> Result<String> {
    let of = |role| {
        let arrays = manifest.arrays.iter();
        arrays.filter(move |a: &&Entry| a.role == role)
    };
    let (inputs, outputs): (Vec<&Entry>, Vec<&Entry>) =
        (of(Role::Input).collect(), of(Role::Expected).collect());
    let both = || inputs.iter().chain(&outputs);
    let step = &manifest.step;
    let constants: Vec<&str> = of(Role::Constant).map(|a| a.name.as_str()).collect();
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
        constants.join(", "),
    );
    sv += "  reg clk = 0;\n  reg rst = 1;\n  always #5 clk = ~clk;\n  \
           integer errors = 0;\n  integer cycles = 0;\n  integer quiet = 0;\n  integer i;\n  \
           reg [63:0] sum;\n\n";
    for a in both() {
        let (name, high) = (&a.name, a.bits - 1);
        let _ = writeln!(sv, "  reg [{high}:0] {name}_mem [0:{}];", a.depth - 1);
        let _ = writeln!(sv, "  integer {name}_at = 0;");
    }
    for a in &inputs {
        let (name, high) = (&a.name, a.bits - 1);
        let _ = writeln!(
            sv,
            "  reg {name}_valid = 0;\n  reg [{high}:0] {name}_data = 0;"
        );
    }
    for a in &outputs {
        let (name, high) = (&a.name, a.bits - 1);
        let _ = writeln!(sv, "  wire {name}_valid;\n  wire [{high}:0] {name}_data;");
        let _ = writeln!(sv, "  integer {name}_dump;");
    }
    let port = |a: &&Entry| format!(".{0}_valid({0}_valid), .{0}_data({0}_data)", a.name);
    let ports: Vec<String> = both().map(port).collect();
    let ports = ports.join(",\n    ");
    let _ = write!(
        sv,
        "\n  scalescope_{step} dut (.clk(clk), .rst(rst),\n    {ports});\n\n  initial begin\n"
    );
    for a in both() {
        let array = &vectors.get(&a.name)?.array;
        let _ = write!(
            sv,
            "    $readmemh(\"{file}\", {name}_mem);\n    sum = 0;\n    \
             for (i = 0; i < {depth}; i = i + 1) sum = sum * 64'd31 + {{{zeros}{name}_mem[i]}};\n    \
             if (sum !== 64'h{sum:016x}) begin\n      \
             $display(\"FAIL {step}: {file} does not hold the words of the export: not found, \
             shortened or altered\");\n      \
             $fatal(1);\n    end\n",
            file = a.file,
            name = a.name,
            depth = a.depth,
            zeros = zeros(64 - a.bits),
            sum = checksum(&words_of(array)),
        );
    }
    for a in &outputs {
        let name = &a.name;
        let _ = writeln!(sv, "    {name}_dump = $fopen(\"{name}.dump.hex\", \"w\");");
    }
    sv += "    repeat (4) @(negedge clk);\n    rst = 0;\n  end\n\n  \
           always @(posedge clk) if (!rst) begin\n    cycles <= cycles + 1;\n";
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
            "    if ({0}_valid !== 1'b0 && {0}_valid !== 1'b1) begin\n      errors = errors + 1;\n      if (errors < 20) $display(\"{0}_valid is unknown in cycle %0d\", cycles);\n    end\n    if ({0}_valid) begin\n      $fwrite({0}_dump, \"%0{digits}h\\n\", {0}_data);\n      quiet = 0;\n      if ({0}_at >= {1}) begin\n        errors = errors + 1;\n        if (errors < 20) $display(\"{0}: more than {1} words\");\n      end else if ({0}_data !== {0}_mem[{0}_at]) begin\n        if (errors < 20) $display(\"{0}[%0d]: expected %h, found %h\", {0}_at, {0}_mem[{0}_at], {0}_data);\n        errors = errors + 1;\n      end\n      {0}_at = {0}_at + 1;\n    end",
            a.name, a.depth
        );
    }
    let every = |of: &dyn Fn(&Entry) -> String, between: &str| {
        let parts: Vec<String> = outputs.iter().map(|a| of(a)).collect();
        parts.join(between)
    };
    let done = every(&|a| format!("{}_at >= {}", a.name, a.depth), " && ");
    let format = every(&|a| format!("{} %0d of {} words", a.name, a.depth), ", ");
    let counts = every(&|a| format!("{}_at", a.name), ", ");
    let close = every(&|a| format!("$fclose({}_dump);", a.name), " ");
    let words: usize = manifest.arrays.iter().map(|a| a.depth).sum();
    let limit = 1000 * words.max(1000);
    let _ = write!(
        sv,
        "    if ({done}) begin\n      quiet = quiet + 1;\n      if (quiet > {QUIET}) begin\n        {close}\n        \
         if (errors == 0) begin\n          $display(\"PASS {step}: {format}\", {counts});\n          $finish;\n        \
         end else begin\n          $display(\"FAIL {step}: %0d mismatches: {format}\", errors, {counts});\n          \
         $fatal(1);\n        end\n      end\n    end\n    if (cycles > {limit}) begin\n      {close}\n      \
         $display(\"FAIL {step}: no more output after %0d cycles: {format}\", cycles, {counts});\n      \
         $fatal(1);\n    end\n  end\nendmodule\n"
    );
    Ok(sv)
}

/// So many zero bits before a word, in SystemVerilog.
fn zeros(bits: usize) -> String {
    match bits {
        0 => String::new(),
        bits => format!("{bits}'d0, "),
    }
}

/// What the testbench makes of words, to know its files by.
fn checksum(words: &[u64]) -> u64 {
    let add = |sum: u64, word: &u64| sum.wrapping_mul(31).wrapping_add(*word);
    words.iter().fold(0, add)
}
