//! Questions to the table: what a scale or a rule can alter, which codes reach which reader, what
//! stands for a tensor that a mode does not make.

use super::{Block, Columns, Field, Format, Origin, Phase, Quantizer, Read, Row, Step, Weight};
use crate::mode::{Implementation, ModeSpec};
use crate::plan::ScaleUse;
use crate::profile::{Profile, QuantizerRule};
use crate::trace::TracePoint;

/// Codes on their way from a quantizer to a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Who makes them.
    pub quantizer: Quantizer,
    /// Where they can be seen.
    pub point: TracePoint,
    /// What the reader takes of them.
    pub columns: Columns,
    /// Who reads.
    pub reader: Step,
    /// With which scale; `None` for a dynamic one, which travels with the codes.
    pub scale: Option<ScaleUse>,
}

impl Row {
    /// The rule of its quantizer, as profiles hold it.
    pub fn quantizer_rule(&self) -> Option<QuantizerRule> {
        self.quantizer?;
        let path = self.rules.last()?.path;
        let mut all = QuantizerRule::ALL.into_iter();
        all.find(|rule| rule.path() == path)
    }

    /// The quantizer of a static scale that makes this tensor INT8, whether it does in this mode or not.
    pub fn grid(&self) -> Option<ScaleUse> {
        let site = self.point.site(Columns::All);
        let mut fields = self.fields.iter();
        let decides = fields.find(|field| field.point() == Some(site))?;
        decides.quantizer()
    }
}

impl Row {
    /// Whether it changes the form of one tensor between two steps, and computes nothing: a quantizer of
    /// its own, or a dequantization.
    pub fn is_between_steps(&self) -> bool {
        let read_by_them = [Step::Conv, Step::XProj, Step::Scan].contains(&self.step);
        read_by_them && self.weights.is_empty() && !self.point.is_state() && !self.point.is_scale()
    }
}

impl Block {
    /// The row behind the name of a report ([`TracePoint::site`]).
    pub fn site(&self, site: TracePoint) -> Option<&Row> {
        let names = site
            .stand_ins()
            .iter()
            .filter(|(point, _)| point.names().contains(&site));
        let mut points = [site].into_iter().chain(names.map(|(point, _)| *point));
        points.find_map(|point| self.row(point))
    }

    /// The tensors that the scale of a use goes into: the first ones that a wrong one alters.
    pub fn altered_by_scale(&self, scale: ScaleUse) -> Vec<TracePoint> {
        let rows = self
            .rows
            .iter()
            .filter(|row| row.scales().any(|s| s == scale));
        rows.map(|row| row.point).collect()
    }

    /// The tensors made by rules at or below a path (`linear`, `linear.x_proj`, `scan`) of an
    /// implementation.
    pub fn altered_by_rule(&self, by: Implementation, path: &str) -> Vec<TracePoint> {
        let below =
            |of: &str| of == path || of.strip_prefix(path).is_some_and(|p| p.starts_with('.'));
        let rows = self.rows.iter();
        let rows = rows.filter(|row| row.rules.iter().any(|r| r.by == by && below(r.path)));
        rows.map(|row| row.point).collect()
    }

    /// The tensors made by rules at or below a path, of either implementation.
    pub fn made_by_rule(&self, path: &str) -> Vec<TracePoint> {
        let both = [Implementation::Cuda, Implementation::Torch];
        let of = |by| self.altered_by_rule(by, path);
        both.into_iter().flat_map(of).collect()
    }

    /// The tensors whose quantizer has this rule.
    pub fn quantized_by(&self, rule: QuantizerRule) -> Vec<TracePoint> {
        let rows = self
            .rows
            .iter()
            .filter(|row| row.quantizer_rule() == Some(rule));
        rows.map(|row| row.point).collect()
    }

    /// The rows that read a tensor, each with how.
    pub fn readers(&self, point: TracePoint) -> impl Iterator<Item = (&Row, &Read)> {
        self.rows.iter().flat_map(move |row| {
            let reads = row
                .reads
                .iter()
                .filter(move |read| read.point() == Some(point));
            reads.map(move |read| (row, read))
        })
    }

    /// The readers of a tensor; of a state, those of the token after, which reads it under another name.
    fn next_readers(&self, point: TracePoint) -> impl Iterator<Item = (&Row, &Read)> {
        self.rows.iter().flat_map(move |row| {
            let from = [Origin::Here(point), Origin::TokenBefore(point)];
            let reads = row
                .reads
                .iter()
                .filter(move |read| from.contains(&read.from));
            reads.map(move |read| (row, read))
        })
    }

    /// Every flow of codes from a quantizer to a reader that dequantizes them, in the order of the data.
    /// Codes that are handed on flow from their quantizer.
    pub fn flows(&self) -> Vec<Flow> {
        let mut flows: Vec<Flow> = Vec::new();
        for row in &self.rows {
            let Some(quantizer) = row.quantizer else {
                continue;
            };
            // What is FP32 already is dequantized by nobody.
            if row.format == Format::F32 {
                continue;
            }
            let mut from = vec![(row.point, Columns::All)];
            // A state is handed on from token to token without end.
            let mut handed = vec![row.point];
            while let Some((point, taken)) = from.pop() {
                for (reader, read) in self.next_readers(point) {
                    if reader.point.is_scale() || reader.point == point {
                        continue;
                    }
                    let handed_on = read.scale.is_none() && !quantizer.is_dynamic();
                    let columns = match read.columns {
                        Columns::All => taken,
                        part => part,
                    };
                    if handed_on {
                        if !handed.contains(&reader.point) {
                            handed.push(reader.point);
                            from.push((reader.point, columns));
                        }
                        continue;
                    }
                    let flow = Flow {
                        quantizer,
                        point: row.point,
                        columns,
                        reader: reader.step,
                        scale: read.scale,
                    };
                    if !flows.contains(&flow) {
                        flows.push(flow);
                    }
                }
            }
        }
        flows
    }
}

/// The tables of both phases in a mode and a profile.
pub fn phases(mode: &ModeSpec, profile: &Profile) -> [Block; 2] {
    [Phase::Prefill, Phase::Decode].map(|phase| Block::of(mode, profile, phase))
}

impl TracePoint {
    /// The tensors that stand for this one where it is not made, the nearest first, each with the columns
    /// that do: what its readers read instead.
    pub fn stand_ins(self) -> &'static [(TracePoint, Columns)] {
        use Columns::{All, BAndC, X, Z};
        use TracePoint as P;
        match self {
            P::InProjX => &[(P::InProjOut, X)],
            P::InProjZ => &[(P::InProjOut, Z)],
            P::ConvIn => &[(P::InProjX, All), (P::InProjOut, X)],
            P::ConvOut => &[(P::ConvOutF32, All)],
            P::ConvOutF32 => &[(P::ConvOut, All)],
            P::XProjIn => &[(P::ConvOut, All), (P::ConvOutF32, All), (P::SsmU, All)],
            P::SsmBc => &[(P::XProjOut, BAndC)],
            P::HiddenIn
            | P::ResidualIn
            | P::ResidualOut
            | P::NormOut
            | P::NormOutScale
            | P::InProjOut
            | P::ConvStateIn
            | P::ConvInScale
            | P::ConvStateOut
            | P::XProjOut
            | P::DtProjOut
            | P::SsmU
            | P::SsmStateIn
            | P::SsmY
            | P::SsmState
            | P::SsmStateOut
            | P::HadOut
            | P::HadOutScale
            | P::OutProjOut
            | P::FinalResidual
            | P::NormFOut
            | P::Logits => &[],
        }
    }

    /// What its columns consist of, side by side; nothing if they are one.
    pub fn parts(self) -> &'static [Columns] {
        use TracePoint as P;
        match self {
            P::InProjOut => &[Columns::X, Columns::Z],
            P::XProjOut => &[Columns::Dt, Columns::B, Columns::C],
            P::HiddenIn
            | P::ResidualIn
            | P::ResidualOut
            | P::NormOut
            | P::NormOutScale
            | P::InProjX
            | P::InProjZ
            | P::ConvStateIn
            | P::ConvIn
            | P::ConvInScale
            | P::ConvStateOut
            | P::ConvOut
            | P::ConvOutF32
            | P::XProjIn
            | P::DtProjOut
            | P::SsmBc
            | P::SsmU
            | P::SsmStateIn
            | P::SsmY
            | P::SsmState
            | P::SsmStateOut
            | P::HadOut
            | P::HadOutScale
            | P::OutProjOut
            | P::FinalResidual
            | P::NormFOut
            | P::Logits => &[],
        }
    }

    /// The name under which reports speak of some columns of this tensor, in every mode alike: x and z
    /// apart, one name for the convolution's output.
    pub fn site(self, columns: Columns) -> TracePoint {
        match (self, columns) {
            (TracePoint::InProjOut, Columns::X) => TracePoint::InProjX,
            (TracePoint::InProjOut, Columns::Z) => TracePoint::InProjZ,
            (TracePoint::ConvOutF32, _) => TracePoint::ConvOut,
            (point, _) => point,
        }
    }

    /// The names of this tensor in every mode and phase, its own included.
    pub fn names(self) -> &'static [TracePoint] {
        use TracePoint as P;
        const FAMILIES: [&[TracePoint]; 3] = [
            &[P::InProjOut, P::InProjX, P::InProjZ],
            &[P::ConvOut, P::ConvOutF32],
            &[P::SsmState, P::SsmStateOut],
        ];
        let family = FAMILIES.into_iter().find(|names| names.contains(&self));
        family.unwrap_or_else(|| {
            let at = TracePoint::ALL.iter().position(|point| *point == self);
            std::slice::from_ref(&TracePoint::ALL[at.expect("every point is listed")])
        })
    }
}

impl TracePoint {
    /// Whether it lies in a buffer of a row for each token that one step writes and another reads (which
    /// may be written and read in different layouts). Of several names of a tensor, the first counts.
    pub fn is_buffer(self) -> bool {
        use TracePoint as P;
        match self {
            P::NormOut
            | P::InProjOut
            | P::ConvOut
            | P::XProjIn
            | P::XProjOut
            | P::DtProjOut
            | P::SsmBc
            | P::SsmU
            | P::SsmY
            | P::HadOut
            | P::OutProjOut => true,
            P::InProjX
            | P::InProjZ
            | P::ConvOutF32
            | P::ConvIn
            | P::HiddenIn
            | P::ResidualIn
            | P::ResidualOut
            | P::NormOutScale
            | P::ConvStateIn
            | P::ConvInScale
            | P::ConvStateOut
            | P::SsmStateIn
            | P::SsmState
            | P::SsmStateOut
            | P::HadOutScale
            | P::FinalResidual
            | P::NormFOut
            | P::Logits => false,
        }
    }

    /// Every buffer between two steps.
    pub fn buffers() -> impl Iterator<Item = TracePoint> {
        TracePoint::ALL
            .into_iter()
            .filter(|point| point.is_buffer())
    }
}

impl Weight {
    /// The step that reads it.
    pub fn step(self) -> Step {
        match self {
            Weight::Norm => Step::Norm,
            Weight::InProj => Step::InProj,
            Weight::Conv => Step::Conv,
            Weight::XProj => Step::XProj,
            Weight::DtProj => Step::DtProj,
            Weight::Scan => Step::Scan,
            Weight::OutProj => Step::OutProj,
            Weight::FinalNorm | Weight::Head => Step::Head,
        }
    }
}

impl Field {
    /// Every field, in the order of the data.
    pub const ALL: [Field; 22] = [
        Field::Weights,
        Field::NormOut,
        Field::X,
        Field::Z,
        Field::ConvIn,
        Field::ConvInQuotient,
        Field::ConvOut,
        Field::XProjFrom,
        Field::XProjIn,
        Field::XProjOut,
        Field::DtProjOut,
        Field::Projected,
        Field::ScanBc,
        Field::U,
        Field::UQuantizer,
        Field::RequantizeRounding,
        Field::State,
        Field::Stream,
        Field::HadOut,
        Field::Conv,
        Field::Scan,
        Field::Rotated,
    ];

    /// The name in mode files.
    pub fn name(self) -> &'static str {
        match self {
            Field::Weights => "weights",
            Field::NormOut => "norm_out",
            Field::X => "x",
            Field::Z => "z",
            Field::ConvIn => "conv_in",
            Field::ConvInQuotient => "conv_in_quotient",
            Field::ConvOut => "conv_out",
            Field::XProjFrom => "x_proj_from",
            Field::XProjIn => "x_proj_in",
            Field::XProjOut => "x_proj_out",
            Field::DtProjOut => "dt_proj_out",
            Field::Projected => "projected",
            Field::ScanBc => "scan_bc",
            Field::U => "u",
            Field::UQuantizer => "u_quantizer",
            Field::RequantizeRounding => "requantize_rounding",
            Field::State => "state",
            Field::Stream => "stream",
            Field::HadOut => "had_out",
            Field::Conv => "conv",
            Field::Scan => "scan",
            Field::Rotated => "rotated",
        }
    }

    /// The tensor that it is about, under its name in reports; `None` for what is about several or none.
    pub fn point(self) -> Option<TracePoint> {
        use TracePoint as P;
        match self {
            Field::NormOut => Some(P::NormOut),
            Field::X => Some(P::InProjX),
            Field::Z => Some(P::InProjZ),
            Field::ConvIn => Some(P::ConvIn),
            Field::ConvOut => Some(P::ConvOut),
            Field::XProjIn => Some(P::XProjIn),
            Field::XProjOut => Some(P::XProjOut),
            Field::DtProjOut => Some(P::DtProjOut),
            Field::U => Some(P::SsmU),
            Field::State => Some(P::SsmState),
            Field::HadOut => Some(P::HadOut),
            Field::Weights
            | Field::ConvInQuotient
            | Field::XProjFrom
            | Field::Projected
            | Field::ScanBc
            | Field::UQuantizer
            | Field::RequantizeRounding
            | Field::Stream
            | Field::Conv
            | Field::Scan
            | Field::Rotated => None,
        }
    }

    /// The step that makes that tensor (of several, the first).
    pub fn step(self) -> Step {
        match self {
            Field::NormOut => Step::Norm,
            Field::Weights | Field::X | Field::Z => Step::InProj,
            Field::ConvIn | Field::ConvInQuotient | Field::ConvOut | Field::Conv => Step::Conv,
            Field::XProjFrom | Field::XProjIn | Field::XProjOut | Field::Projected => Step::XProj,
            Field::DtProjOut => Step::DtProj,
            Field::ScanBc
            | Field::U
            | Field::UQuantizer
            | Field::RequantizeRounding
            | Field::State
            | Field::Stream
            | Field::Scan => Step::Scan,
            Field::HadOut | Field::Rotated => Step::Hadamard,
        }
    }

    /// The quantizer that makes that tensor INT8.
    pub fn quantizer(self) -> Option<ScaleUse> {
        match self {
            Field::NormOut => Some(ScaleUse::NormOut),
            Field::X | Field::Z => Some(ScaleUse::InProjOut),
            Field::ConvIn => Some(ScaleUse::ConvIn),
            Field::ConvOut => Some(ScaleUse::ConvOut),
            Field::XProjIn => Some(ScaleUse::XProjQuant),
            Field::XProjOut => Some(ScaleUse::XProjOut),
            Field::DtProjOut => Some(ScaleUse::DtProjOut),
            Field::U => Some(ScaleUse::ScanUQuant),
            Field::State => Some(ScaleUse::StateOut),
            Field::HadOut => Some(ScaleUse::HadOut),
            Field::Weights
            | Field::ConvInQuotient
            | Field::XProjFrom
            | Field::Projected
            | Field::ScanBc
            | Field::UQuantizer
            | Field::RequantizeRounding
            | Field::Stream
            | Field::Conv
            | Field::Scan
            | Field::Rotated => None,
        }
    }

    /// Gives `mode` this field of `other`.
    pub fn copy(self, mode: &mut ModeSpec, other: &ModeSpec) {
        match self {
            Field::Weights => mode.weights = other.weights,
            Field::NormOut => mode.norm_out = other.norm_out,
            Field::X => mode.x = other.x,
            Field::Z => mode.z = other.z,
            Field::ConvIn => mode.conv_in = other.conv_in,
            Field::ConvInQuotient => mode.conv_in_quotient = other.conv_in_quotient,
            Field::ConvOut => mode.conv_out = other.conv_out,
            Field::XProjFrom => mode.x_proj_from = other.x_proj_from,
            Field::XProjIn => mode.x_proj_in = other.x_proj_in,
            Field::XProjOut => mode.x_proj_out = other.x_proj_out,
            Field::DtProjOut => mode.dt_proj_out = other.dt_proj_out,
            Field::Projected => mode.projected = other.projected,
            Field::ScanBc => mode.scan_bc = other.scan_bc,
            Field::U => mode.u = other.u,
            Field::UQuantizer => mode.u_quantizer.clone_from(&other.u_quantizer),
            Field::RequantizeRounding => mode.requantize_rounding = other.requantize_rounding,
            Field::State => mode.state = other.state,
            Field::Stream => mode.stream = other.stream,
            Field::HadOut => mode.had_out = other.had_out,
            Field::Conv => mode.conv = other.conv,
            Field::Scan => mode.scan = other.scan,
            Field::Rotated => mode.rotated = other.rotated,
        }
    }

    /// Whether two modes differ in it.
    pub fn differs(self, a: &ModeSpec, b: &ModeSpec) -> bool {
        let mut changed = a.clone();
        self.copy(&mut changed, b);
        changed != *a
    }
}
