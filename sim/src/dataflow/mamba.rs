//! The rows of a Mamba-1 block.

use super::{
    Block, Choices, Columns, Dim, Field, Format, Origin, Phase, Quantizer, Read, Row, Rule, Step,
    Weight,
};
use crate::mode::{
    ConvInput, Implementation, Precision, Projected, RouteA, ScanBc, ScanInput, Stream, XOutput,
};
use crate::plan::ScaleUse as U;
use crate::trace::TracePoint as P;

/// Reads of a tensor of the same block.
fn read(point: P, columns: Columns, scale: Option<U>) -> Read {
    Read {
        from: Origin::Here(point),
        columns,
        scale,
    }
}

fn from_before(point: P) -> Read {
    Read {
        from: Origin::BlockBefore(point),
        columns: Columns::All,
        scale: None,
    }
}

fn state(point: P) -> Read {
    Read {
        from: Origin::TokenBefore(point),
        columns: Columns::All,
        scale: None,
    }
}

fn rule(by: Implementation, path: &'static str) -> Vec<Rule> {
    vec![Rule { by, path }]
}

/// A row without what most rows lack.
fn row(point: P, step: Step, shape: [Dim; 2], format: Format, reads: Vec<Read>) -> Row {
    let quantizer = match format {
        Format::Int8(by) => Some(Quantizer::Static(by)),
        Format::Codes | Format::F16 | Format::F32 => None,
    };
    Row {
        point,
        step,
        shape,
        reads,
        format,
        quantizer,
        register_scale: None,
        rules: Vec::new(),
        weights: &[],
        fields: &[],
        shown: true,
    }
}

/// INT8 on the static grid of a use, or FP32.
fn format(precision: Precision, by: U) -> Format {
    match precision {
        Precision::Int8 => Format::Int8(by),
        Precision::Float => Format::F32,
    }
}

fn stream(stream: Stream) -> Format {
    match stream {
        Stream::F16 => Format::F16,
        Stream::Float => Format::F32,
    }
}

impl Row {
    /// Of codes on a static grid: dequantized with the scale of `by`.
    fn codes_at(&self, by: U) -> Option<U> {
        match self.format {
            Format::Int8(_) => Some(by),
            Format::Codes | Format::F16 | Format::F32 => None,
        }
    }

    /// All of it, dequantized with the scale of `by` if it is codes.
    fn all(&self, by: U) -> Read {
        self.columns(Columns::All, by)
    }

    fn columns(&self, columns: Columns, by: U) -> Read {
        read(self.point, columns, self.codes_at(by))
    }

    /// A dynamic quantizer in place of a static one, and the row of its scales.
    fn with_dynamic(self, quantizer: Quantizer, scales: P) -> [Row; 2] {
        let rows = match quantizer {
            Quantizer::Tensor(_) => Dim::One,
            Quantizer::Static(_) | Quantizer::Token(_) => Dim::L,
        };
        let column = Row {
            point: scales,
            shape: [rows, Dim::One],
            format: Format::F32,
            quantizer: None,
            ..self.clone()
        };
        let codes = Row {
            format: Format::Codes,
            quantizer: Some(quantizer),
            ..self
        };
        [codes, column]
    }
}

impl Block {
    pub(super) fn mamba(choices: Choices, phase: Phase) -> Self {
        let mut table = Table {
            choices,
            phase,
            rows: Vec::new(),
        };
        table.norm();
        let (x, z) = table.in_proj();
        let conv = table.conv(&x);
        // Route B comes first where route A begins at its end.
        let (x_proj_out, u) = match table.choices.mode.x_proj_from {
            RouteA::Conv => (table.x_proj(&conv), None),
            RouteA::U => {
                let u = table.scan_input(&conv);
                (table.x_proj(&u), Some(u))
            }
        };
        let dt = table.dt_proj(&x_proj_out);
        let u = match u {
            Some(u) => u,
            None => table.scan_input(&conv),
        };
        let bc = table.scan_bc(&x_proj_out);
        table.scan(&u, &dt, &bc, &z);
        table.out_proj();
        table.head();
        Block {
            rows: table.rows,
            phase,
        }
    }
}

/// A half of in_proj's output: its own tensor, or columns of x‖z.
struct Half {
    row: Row,
    columns: Columns,
}

impl Half {
    fn read(&self, by: U) -> Read {
        self.row.columns(self.columns, by)
    }
}

struct Table<'a> {
    choices: Choices<'a>,
    phase: Phase,
    rows: Vec<Row>,
}

impl Table<'_> {
    fn push(&mut self, row: Row) -> Row {
        self.rows.push(row.clone());
        row
    }

    /// Reads of codes with scales of tokens, or of one tensor.
    fn operand(&self, point: P, by: U) -> Vec<Read> {
        let row = self.rows.iter().find(|row| row.point == point);
        let row = row.expect("rows come in the order of the data");
        let scales = match row.format {
            Format::Codes => row.point.scales(),
            Format::Int8(_) | Format::F16 | Format::F32 => None,
        };
        let scales = scales.map(|point| read(point, Columns::All, None));
        [row.all(by)].into_iter().chain(scales).collect()
    }

    fn norm(&mut self) {
        let mode = self.choices.mode;
        let norm = |point, format, reads| row(point, Step::Norm, [Dim::L, Dim::M], format, reads);
        let before = from_before(P::OutProjOut);
        self.push(Row {
            fields: &[Field::Stream],
            ..norm(P::HiddenIn, stream(mode.stream), vec![before])
        });
        let before = from_before(P::ResidualOut);
        self.push(norm(P::ResidualIn, Format::F32, vec![before]));
        let inputs = [P::HiddenIn, P::ResidualIn].map(|point| read(point, Columns::All, None));
        self.push(norm(P::ResidualOut, Format::F32, inputs.to_vec()));
        let format = format(mode.norm_out, U::NormOut);
        let residual = read(P::ResidualOut, Columns::All, None);
        let normed = Row {
            rules: rule(Implementation::Cuda, Step::Norm.rule()),
            weights: &[Weight::Norm],
            fields: &[Field::NormOut, Field::Weights],
            ..norm(P::NormOut, format, vec![residual])
        };
        self.push_by_token(normed, U::NormOut, P::NormOutScale);
    }

    /// A row whose codes have a scale for each token if the profile says so.
    fn push_by_token(&mut self, row: Row, by: U, scales: P) {
        match row.format {
            Format::Int8(_) if self.choices.by_token => {
                let dynamic = row.with_dynamic(Quantizer::Token(by), scales);
                self.rows.extend(dynamic);
            }
            _ => self.rows.push(row),
        }
    }

    fn in_proj(&mut self) -> (Half, Half) {
        let mode = self.choices.mode;
        let x = match mode.x {
            XOutput::Int8 => Format::Int8(U::InProjOut),
            XOutput::F16 => Format::F16,
            XOutput::Float => Format::F32,
        };
        let z = format(mode.z, U::InProjOut);
        let reads = self.operand(P::NormOut, U::InProjIn);
        let projected = |point, width, format| Row {
            rules: rule(Implementation::Cuda, Step::InProj.rule()),
            weights: &[Weight::InProj],
            ..row(point, Step::InProj, [Dim::L, width], format, reads.clone())
        };
        if x == z {
            let both = self.push(Row {
                fields: &[Field::Weights, Field::X, Field::Z],
                ..projected(P::InProjOut, Dim::TwoE, x)
            });
            let half = |columns| Half {
                row: both.clone(),
                columns,
            };
            return (half(Columns::X), half(Columns::Z));
        }
        let x = self.push(Row {
            fields: &[Field::Weights, Field::X],
            ..projected(P::InProjX, Dim::E, x)
        });
        let z = self.push(Row {
            fields: &[Field::Weights, Field::Z],
            ..projected(P::InProjZ, Dim::E, z)
        });
        let half = |row| Half {
            row,
            columns: Columns::All,
        };
        (half(x), half(z))
    }

    /// Returns the conv's output.
    fn conv(&mut self, x: &Half) -> Row {
        let mode = self.choices.mode;
        let decode = self.phase == Phase::Decode;
        let conv = |point, shape, format, reads| row(point, Step::Conv, shape, format, reads);
        // The history holds what the conv reads: codes of the static grid, or real values.
        let history = match mode.conv_in {
            ConvInput::Static => Format::Int8(U::ConvIn),
            ConvInput::DynamicTensor | ConvInput::DynamicToken | ConvInput::Float => Format::F32,
        };
        let before = decode.then(|| {
            self.push(Row {
                quantizer: None,
                fields: &[Field::ConvIn, Field::X],
                ..conv(
                    P::ConvStateIn,
                    [Dim::E, Dim::K],
                    history,
                    vec![state(P::ConvStateOut)],
                )
            })
        });
        // Codes go into the history as they are.
        let kept = match history {
            Format::Int8(_) => before.as_ref().map(|b| read(b.point, Columns::All, None)),
            _ => before.as_ref().map(|b| b.all(U::ConvIn)),
        };
        // What a quantizer makes of x, and how the window reads x.
        let own = |table: &mut Self, quantizer: Quantizer| -> Vec<Read> {
            let dynamic = quantizer.is_dynamic();
            // One scale for the whole window; a token's own scale is its own row's.
            let whole = matches!(quantizer, Quantizer::Tensor(_));
            let with_history = [x.read(U::ConvIn)]
                .into_iter()
                .chain(kept.filter(|_| whole));
            let made = Row {
                // A scale that is found at run time is found, and used, by PyTorch.
                rules: match dynamic {
                    true => rule(Implementation::Torch, "requantize"),
                    false => rule(Implementation::Cuda, "conv_in"),
                },
                fields: &[Field::ConvIn, Field::ConvInQuotient, Field::X],
                ..conv(
                    P::ConvIn,
                    [Dim::L, Dim::E],
                    Format::Int8(U::ConvIn),
                    with_history.collect(),
                )
            };
            match quantizer {
                Quantizer::Static(_) => vec![table.push(made).all(U::ConvIn)],
                Quantizer::Tensor(_) | Quantizer::Token(_) => {
                    let rows = made.with_dynamic(quantizer, P::ConvInScale);
                    let reads = rows.each_ref().map(|row| row.all(U::ConvIn));
                    table.rows.extend(rows);
                    reads.to_vec()
                }
            }
        };
        let window = match mode.conv_in {
            ConvInput::Static if x.row.codes_at(U::ConvIn).is_some() => vec![x.read(U::ConvIn)],
            ConvInput::Static => own(self, Quantizer::Static(U::ConvIn)),
            ConvInput::DynamicTensor => own(self, Quantizer::Tensor(U::ConvIn)),
            ConvInput::DynamicToken => own(self, Quantizer::Token(U::ConvIn)),
            ConvInput::Float => vec![x.read(U::ConvIn)],
        };
        let into_history = match history {
            // Codes: x's own, or those of the quantizer.
            Format::Int8(_) => Read {
                scale: None,
                ..window[0]
            },
            _ => x.read(U::ConvIn),
        };
        self.push(Row {
            quantizer: None,
            fields: &[Field::ConvIn, Field::X],
            shown: decode,
            ..conv(
                P::ConvStateOut,
                [Dim::E, Dim::K],
                history,
                [into_history].into_iter().chain(kept).collect(),
            )
        });
        let (point, format) = match mode.conv_out {
            Precision::Int8 => (P::ConvOut, Format::Int8(U::ConvOut)),
            Precision::Float => (P::ConvOutF32, Format::F32),
        };
        // The rows of the history are quantized with the scale that x has a part in.
        let in_scale = decode && mode.conv_in == ConvInput::DynamicTensor;
        let rescaled = in_scale.then(|| x.read(U::ConvIn));
        let before = before
            .as_ref()
            .map(|b| b.all(U::ConvIn))
            .into_iter()
            .chain(rescaled);
        self.push(Row {
            rules: rule(mode.conv, Step::Conv.rule()),
            weights: &[Weight::Conv],
            fields: &[
                Field::Weights,
                Field::ConvIn,
                Field::ConvOut,
                Field::Conv,
                Field::X,
            ],
            ..conv(
                point,
                [Dim::L, Dim::E],
                format,
                window.into_iter().chain(before).collect(),
            )
        })
    }

    /// Route A. Returns x_proj's output.
    fn x_proj(&mut self, conv: &Row) -> Row {
        let mode = self.choices.mode;
        let step =
            |point, width, format, reads| row(point, Step::XProj, [Dim::L, width], format, reads);
        let codes = conv.codes_at(U::XProjIn).is_some();
        let fields = &[
            Field::ConvOut,
            Field::XProjFrom,
            Field::XProjIn,
            Field::RequantizeRounding,
        ];
        let input = match (codes, mode.x_proj_in) {
            (true, Precision::Int8) | (false, Precision::Float) => None,
            (true, Precision::Float) => Some(Row {
                fields,
                ..step(P::XProjIn, Dim::E, Format::F32, vec![conv.all(U::XProjIn)])
            }),
            (false, Precision::Int8) => Some(Row {
                fields,
                rules: rule(Implementation::Torch, "requantize"),
                ..step(
                    P::XProjIn,
                    Dim::E,
                    Format::Int8(U::XProjQuant),
                    vec![conv.all(U::XProjIn)],
                )
            }),
        };
        let input = input.map(|row| self.push(row));
        let input = input.as_ref().unwrap_or(conv).all(U::XProjIn);
        let format = format(mode.x_proj_out, U::XProjOut);
        let row = Row {
            rules: rule(Implementation::Cuda, Step::XProj.rule()),
            weights: &[Weight::XProj],
            fields: &[
                Field::Weights,
                Field::XProjFrom,
                Field::XProjIn,
                Field::XProjOut,
                Field::Projected,
                Field::RequantizeRounding,
            ],
            ..step(P::XProjOut, Dim::XProj, format, vec![input])
        };
        let row = self.projected(row, input.scale.is_none(), U::XProjOut);
        self.push(row)
    }

    fn dt_proj(&mut self, x_proj_out: &Row) -> Row {
        let dt = x_proj_out.columns(Columns::Dt, U::DtProjIn);
        let format = format(self.choices.mode.dt_proj_out, U::DtProjOut);
        let made = Row {
            rules: rule(Implementation::Cuda, Step::DtProj.rule()),
            weights: &[Weight::DtProj],
            fields: &[
                Field::Weights,
                Field::DtProjOut,
                Field::Projected,
                Field::RequantizeRounding,
            ],
            ..row(
                P::DtProjOut,
                Step::DtProj,
                [Dim::L, Dim::E],
                format,
                vec![dt],
            )
        };
        let made = self.projected(made, dt.scale.is_none(), U::DtProjOut);
        self.push(made)
    }

    /// A projection whose product or output is FP32: PyTorch quantizes, if anything does.
    fn projected(&self, row: Row, real_input: bool, by: U) -> Row {
        let grid = row.format == Format::F32 && self.choices.mode.projected == Projected::Grid;
        let requantize = rule(Implementation::Torch, "requantize");
        let quantizer = match grid {
            true => Some(Quantizer::Static(by)),
            false => row.quantizer,
        };
        let rules = match (real_input, quantizer.is_some()) {
            (true, true) => requantize,
            (true, false) => row.rules,
            (false, _) if grid => [row.rules, requantize].concat(),
            (false, _) => row.rules,
        };
        Row {
            quantizer,
            rules,
            ..row
        }
    }

    /// B and C as the scan reads them.
    fn scan_bc(&mut self, x_proj_out: &Row) -> Row {
        let late = self.choices.mode.scan_bc == ScanBc::Int8;
        if !late || x_proj_out.format != Format::F32 {
            return x_proj_out.clone();
        }
        let reads = [Columns::B, Columns::C].map(|part| read(P::XProjOut, part, None));
        let format = Format::Int8(U::XProjOut);
        self.push(Row {
            rules: rule(Implementation::Torch, "requantize"),
            fields: &[Field::XProjOut, Field::ScanBc, Field::RequantizeRounding],
            ..row(
                P::SsmBc,
                Step::Scan,
                [Dim::L, Dim::TwoN],
                format,
                reads.to_vec(),
            )
        })
    }

    /// Route B. Returns u.
    fn scan_input(&mut self, conv: &Row) -> Row {
        let mode = self.choices.mode;
        let codes = conv.codes_at(U::ScanU).is_some();
        let as_it_is = read(conv.point, Columns::All, None);
        let (format_of_u, quantized, input) = match (codes, mode.u) {
            (true, ScanInput::Int8) | (false, ScanInput::Float) => (conv.format, false, as_it_is),
            (true, ScanInput::Float) => (Format::F32, false, conv.all(U::ScanU)),
            (true, ScanInput::RoundTrip) | (false, ScanInput::Int8 | ScanInput::RoundTrip) => {
                (Format::Int8(U::ScanUQuant), true, conv.all(U::ScanU))
            }
        };
        let on_grids = mode.u_quantizer.is_some() && format_of_u == Format::F32;
        let u = row(
            P::SsmU,
            Step::Scan,
            [Dim::L, Dim::E],
            format_of_u,
            vec![input],
        );
        let quantizer = match on_grids {
            true => Some(Quantizer::Static(U::ScanUQuant)),
            false => u.quantizer.filter(|_| quantized),
        };
        self.push(Row {
            quantizer,
            register_scale: mode.needs_second_scale().then_some(U::ScanUMax),
            rules: match quantized || on_grids {
                true => rule(Implementation::Torch, "requantize"),
                false => Vec::new(),
            },
            fields: &[
                Field::ConvOut,
                Field::U,
                Field::UQuantizer,
                Field::RequantizeRounding,
            ],
            ..u
        })
    }

    /// The scan.
    fn scan(&mut self, u: &Row, dt: &Row, bc: &Row, z: &Half) {
        let mode = self.choices.mode;
        let decode = self.phase == Phase::Decode;
        let scan = |point, shape, format, reads| row(point, Step::Scan, shape, format, reads);
        let state_format = format(mode.state, U::StateOut);
        let before = decode.then(|| {
            self.push(Row {
                quantizer: None,
                fields: &[Field::State],
                ..scan(
                    P::SsmStateIn,
                    [Dim::E, Dim::N],
                    state_format,
                    vec![state(P::SsmState), state(P::SsmStateOut)],
                )
            })
        });
        let mut reads = vec![
            u.all(U::ScanU),
            dt.all(U::ScanDt),
            bc.columns(Columns::B, U::ScanB),
        ];
        reads.extend(before.as_ref().map(|b| b.all(U::StateIn)));
        let gated = [bc.columns(Columns::C, U::ScanC), z.read(U::ScanZ)];
        let scanned = |point, shape, format, reads| Row {
            rules: rule(mode.scan, Step::Scan.rule()),
            weights: &[Weight::Scan],
            register_scale: self.choices.fixed_point_scan.then_some(U::StateOut),
            ..scan(point, shape, format, reads)
        };
        let y = Row {
            fields: &[
                Field::Weights,
                Field::U,
                Field::Scan,
                Field::State,
                Field::Stream,
            ],
            ..scanned(
                P::SsmY,
                [Dim::L, Dim::E],
                stream(mode.stream),
                reads.iter().copied().chain(gated).collect(),
            )
        };
        let after = match self.phase {
            Phase::Prefill => P::SsmState,
            Phase::Decode => P::SsmStateOut,
        };
        let last = Row {
            fields: &[Field::Weights, Field::U, Field::Scan, Field::State],
            ..scanned(after, [Dim::E, Dim::N], state_format, reads)
        };
        self.rows.extend([y, last]);
    }

    fn out_proj(&mut self) {
        let mode = self.choices.mode;
        let y = read(P::SsmY, Columns::All, None);
        let by_token = self.choices.by_token && mode.had_out == Precision::Int8;
        let rotated = Row {
            rules: rule(Implementation::Cuda, Step::Hadamard.rule()),
            fields: &[Field::HadOut, Field::Rotated],
            // Integers are laid out around the calibrated grid, whatever the tokens' own scales are.
            register_scale: (by_token && self.choices.integer_rotation).then_some(U::HadOut),
            ..row(
                P::HadOut,
                Step::Hadamard,
                [Dim::L, Dim::E],
                format(mode.had_out, U::HadOut),
                vec![y],
            )
        };
        self.push_by_token(rotated, U::HadOut, P::HadOutScale);
        let reads = self.operand(P::HadOut, U::OutProjIn);
        self.push(Row {
            rules: rule(Implementation::Cuda, Step::OutProj.rule()),
            weights: &[Weight::OutProj],
            fields: &[Field::Weights, Field::HadOut, Field::Stream],
            ..row(
                P::OutProjOut,
                Step::OutProj,
                [Dim::L, Dim::M],
                stream(mode.stream),
                reads,
            )
        });
    }

    fn head(&mut self) {
        let head =
            |point, width, format, reads| row(point, Step::Head, [Dim::L, width], format, reads);
        let inputs = vec![from_before(P::OutProjOut), from_before(P::ResidualOut)];
        self.push(head(P::FinalResidual, Dim::M, Format::F32, inputs));
        let residual = read(P::FinalResidual, Columns::All, None);
        let format = stream(self.choices.mode.stream);
        self.push(Row {
            rules: rule(Implementation::Cuda, Step::Head.rule()),
            weights: &[Weight::FinalNorm, Weight::Head],
            fields: &[Field::Weights, Field::Stream],
            ..head(P::Logits, Dim::V, format, vec![residual])
        });
    }
}
