//! The self-checking SystemVerilog testbench of a step: streams every input into the device under
//! test, one word a clock at most, compares every word that comes out, and writes them to dumps that
//! `scalescope check export` reads.
//!
//! Each array is a stream with `valid`, `ready` and `last`. It passes only if its own words are those of the export,
//! every output gave every word, equal, marked the last one, held what was not yet taken, and gave nothing after
//! the last one; otherwise it ends with `$fatal`, so that the simulator's exit code says so. Its words have no
//! unknown bits once their checksum is right, so that unknown bits differ from them.

use super::manifest::{Entry, Manifest, Role, StepVectors};
use super::words::words_of;
use scalescope_sim::error::Result;

/// Clocks after the last word in which nothing more may come.
const QUIET: usize = 1000;

/// Clocks for each word of the export in which a device may compute without a word taken or given.
const PATIENCE: usize = 100;

/// What a stream has on both sides, by its NAME: the words of the export and how many are done.
const DECLARED: &str = "
  reg [HIGH:0] NAME_mem [0:DEPTH-1];
  integer NAME_at = 0;";

/// An input, which the testbench drives.
const DRIVEN: &str = "
  reg NAME_valid = 0, NAME_last = 0;
  reg [HIGH:0] NAME_data = 0;
  wire NAME_ready;";

/// An output, which the device drives.
const TAKEN: &str = "
  wire NAME_valid, NAME_last;
  wire [HIGH:0] NAME_data;
  reg NAME_ready = 0;
  // A word that was given and not yet taken.
  reg NAME_held = 0, NAME_held_last = 0;
  reg [HIGH:0] NAME_held_data = 0;
  integer NAME_dump;";

const LOADED: &str = "
    $readmemh(\"FILE\", NAME_mem);
    sum = 0;
    for (i = 0; i < DEPTH; i = i + 1) sum = sum * 64'd31 + {ZEROSNAME_mem[i]};
    if (sum !== 64'hCHECKSUM) begin
      $display(\"FAIL STEP: FILE does not hold the words of the export: not found, shortened or altered\");
      $fatal(1);
    end";

/// One clock of an input: the next word, or a pause, once the one before is taken.
const DRIVE: &str = "
    if (NAME_ready !== 1'b0 && NAME_ready !== 1'b1) begin
      if (errors < 20) $display(\"NAME_ready is unknown in cycle %0d\", cycles);
      errors = errors + 1;
    end
    if (NAME_valid && NAME_ready) still = 0;
    if (!NAME_valid || NAME_ready) begin
      NAME_valid <= NAME_at < DEPTH && draw[DRAW] >= pause;
      if (NAME_at < DEPTH && draw[DRAW] >= pause) begin
        NAME_data <= NAME_mem[NAME_at];
        NAME_last <= NAME_at == DEPTH - 1;
        NAME_at <= NAME_at + 1;
      end
    end";

/// One clock of an output.
const TAKE: &str = "
    NAME_ready <= draw[DRAW] >= pause;
    if (NAME_valid !== 1'b0 && NAME_valid !== 1'b1) begin
      if (errors < 20) $display(\"NAME_valid is unknown in cycle %0d\", cycles);
      errors = errors + 1;
    end
    if (NAME_held && {NAME_valid, NAME_last, NAME_data} !== {1'b1, NAME_held_last, NAME_held_data}) begin
      if (errors < 20) $display(\"NAME[%0d]: changed in cycle %0d, before NAME_ready\", NAME_at, cycles);
      errors = errors + 1;
    end
    NAME_held <= NAME_valid && !NAME_ready;
    NAME_held_last <= NAME_last;
    NAME_held_data <= NAME_data;
    if (NAME_valid && NAME_ready) begin
      $fwrite(NAME_dump, \"%0DIGITSh\\n\", NAME_data);
      still = 0;
      if (NAME_at >= DEPTH) begin
        if (errors < 20) $display(\"NAME: more than DEPTH words\");
        errors = errors + 1;
      end else if (NAME_data !== NAME_mem[NAME_at]) begin
        if (errors < 20) $display(\"NAME[%0d]: expected %h, found %h\", NAME_at, NAME_mem[NAME_at], NAME_data);
        errors = errors + 1;
      end else if (NAME_last !== (NAME_at == DEPTH - 1)) begin
        if (errors < 20) $display(\"NAME[%0d]: NAME_last is %b\", NAME_at, NAME_last);
        errors = errors + 1;
      end
      NAME_at = NAME_at + 1;
    end";

const ENDED: &str = "
    if (DONE) begin
      quiet = quiet + 1;
      if (quiet > QUIET) begin
        CLOSE
        if (errors == 0) begin
          $display(\"PASS STEP: COUNTED\", COUNTS);
          $finish;
        end else begin
          $display(\"FAIL STEP: %0d mismatches: COUNTED\", errors, COUNTS);
          $fatal(1);
        end
      end
    end
    still = still + 1;
    if (still > patience) begin
      CLOSE
      $display(\"FAIL STEP: no word taken or given in %0d clocks: COUNTED\", patience, COUNTS);
      $fatal(1);
    end
  end
endmodule
";

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
    let of = |role| -> Vec<&Entry> {
        let arrays = manifest.arrays.iter();
        arrays.filter(|a| a.role == role).collect()
    };
    let (inputs, outputs) = (of(Role::Input), of(Role::Expected));
    let streams: Vec<&Entry> = inputs.iter().chain(&outputs).copied().collect();
    let step = &manifest.step;
    let constants: Vec<&str> = (of(Role::Constant).iter()).map(|a| &*a.name).collect();
    let port = |a: &&Entry| {
        ["valid", "ready", "last", "data"]
            .map(|p| format!(".{0}_{p}({0}_{p})", a.name))
            .join(", ")
    };
    let ports: Vec<String> = streams.iter().map(port).collect();
    let words: usize = manifest.arrays.iter().map(|a| a.depth).sum();
    let mut sv = format!(
        "// {step} of block {layer}, mode {mode}, profile {profile} ({hash}).
// Made by scalescope; docs/export.md says what every array is.
//
// The device under test, `module scalescope_{step}`, takes and gives each array as a stream, row-major: a word is
// taken at a rising edge at which NAME_valid and NAME_ready are high, and NAME_last is high with the last one. Constants
// ({constants}) are its own to load from the memory files.
// The testbench pauses every stream at random; `+pause=N` sets in how many of 16 clocks (0 to 15, otherwise 4). It gives
// up when no word was taken or given for {patience} clocks; `+patience=N` sets how many.
`timescale 1ns/1ps

module tb_{step};
  reg clk = 0;
  reg rst = 1;
  always #5 clk = ~clk;
  integer errors = 0;
  integer cycles = 0;
  integer quiet = 0;
  integer still = 0;
  integer pause = 4;
  integer patience = {patience};
  integer i;
  reg [31:0] draw = 32'd1;
  reg [63:0] sum;
",
        layer = manifest.layer,
        mode = manifest.mode,
        profile = manifest.profile.name,
        hash = &manifest.profile.hash[..12],
        constants = constants.join(", "),
        patience = PATIENCE * words.max(1000),
    );
    let each = |arrays: &[&Entry], template: &str| -> String {
        arrays.iter().map(|a| filled(template, a)).collect()
    };
    sv += &each(&streams, DECLARED);
    sv += &each(&inputs, DRIVEN);
    sv += &each(&outputs, TAKEN);
    sv += &format!(
        "\n\n  scalescope_{step} dut (.clk(clk), .rst(rst),\n    {});\n\n  initial begin\n    \
         i = $value$plusargs(\"pause=%d\", pause);\n    \
         i = $value$plusargs(\"patience=%d\", patience);",
        ports.join(",\n    ")
    );
    for a in &streams {
        let words = words_of(&vectors.get(&a.name)?.array);
        let loaded = LOADED
            .replace("ZEROS", &zeros(64 - a.bits))
            .replace("CHECKSUM", &format!("{:016x}", checksum(&words)))
            .replace("STEP", step);
        sv += &filled(&loaded, a);
    }
    sv += &each(
        &outputs,
        "\n    NAME_dump = $fopen(\"NAME.dump.hex\", \"w\");",
    );
    sv += "\n    repeat (4) @(negedge clk);\n    rst = 0;\n  end\n\n  \
           always @(posedge clk) if (!rst) begin\n    cycles <= cycles + 1;\n    \
           draw = draw ^ (draw << 13);\n    draw = draw ^ (draw >> 17);\n    draw = draw ^ (draw << 5);";
    for (i, a) in streams.iter().enumerate() {
        let template = match a.role {
            Role::Input => DRIVE,
            Role::Constant | Role::Internal | Role::Expected => TAKE,
        };
        // Each stream has four bits of the draw; eight have different ones.
        let bits = format!("{}:{}", 4 * (i % 8) + 3, 4 * (i % 8));
        sv += &filled(&template.replace("DRAW", &bits), a);
    }
    let every = |template: &str, between: &str| {
        let parts: Vec<String> = outputs.iter().map(|a| filled(template, a)).collect();
        parts.join(between)
    };
    sv += &ENDED
        .replace("DONE", &every("NAME_at >= DEPTH", " && "))
        .replace("CLOSE", &every("$fclose(NAME_dump);", " "))
        .replace("COUNTED", &every("NAME %0d of DEPTH words", ", "))
        .replace("COUNTS", &every("NAME_at", ", "))
        .replace("QUIET", &QUIET.to_string())
        .replace("STEP", step);
    Ok(sv)
}

/// A template with an array's name, file, depth and width.
fn filled(template: &str, a: &Entry) -> String {
    template
        .replace("NAME", &a.name)
        .replace("FILE", &a.file)
        .replace("DEPTH", &a.depth.to_string())
        .replace("HIGH", &(a.bits - 1).to_string())
        .replace("DIGITS", &a.bits.div_ceil(4).to_string())
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
