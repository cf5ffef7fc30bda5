//! How much of a text a report takes, so that it ends in about a minute of two cores and keeps within its memory.

use scalescope_golden::diagnosis::cost::sites::sites;
use scalescope_sim::bench::linear_work;
use scalescope_sim::datapath::Datapath;

/// Multiplications of all runs of the modes together.
const WORK: u64 = 4_000_000_000_000;
/// Runs of one mode with a part switched, about.
const PARTS: usize = 14;
/// Tokens that a report never goes below, nor beyond, unless they are asked for.
const TOKENS: std::ops::RangeInclusive<usize> = 512..=4096;
/// Tokens of each window of a sampled text.
const WINDOW: usize = 256;

/// Values of hidden states, over tokens, blocks and modes, that steps and scales are looked at with, and the tokens.
const DEEP_VALUES: usize = 40_000_000;
const DEEP_TOKENS: std::ops::RangeInclusive<usize> = 128..=2048;
/// Bytes of a token's tensors that a mode and its reference are held against each other with, for each block and
/// channel of the hidden state, and for each word of the vocabulary.
const BYTES: (usize, usize) = (450, 20);
/// Bytes of the tensors that are held at a time.
const MEMORY: usize = 640 << 20;
/// Multiplications of all tokens that are decoded one by one, of which a run does fewer at a time.
const DECODE_WORK: u64 = 200_000_000_000;
/// Tokens along which the state's error is followed.
const DECODED: std::ops::RangeInclusive<usize> = 32..=256;
/// Multiplications of all runs with a site switched, where every mode has its turn.
const SITE_WORK: u64 = 650_000_000_000;
/// Multiplications of everything that the page shows of single modes. What is left of them beside errors and states
/// is for the sites of some modes, where all of them would take too long.
const PAGE_WORK: u64 = 3_800_000_000_000;
/// Runs of a mode and the reference that its errors take (the clean run is shared).
const ERROR_RUNS: u64 = 4;
/// How much longer a multiplication takes when one token is decoded: it waits for the weight.
const DECODE_WEIGHT: u64 = 8;
/// Tokens of each of the sequences that sites are switched on.
const SITE_TOKENS: std::ops::RangeInclusive<usize> = 32..=128;
/// Sequences that sites are switched on.
pub(super) const SITE_SEQUENCES: usize = 2;

/// Multiplications of a token in the blocks, and in the head.
fn products(path: &Datapath) -> (u64, u64) {
    let [blocks @ .., head] = linear_work(path);
    (blocks.iter().map(|step| step.products).sum(), head.products)
}

/// Windows of long sequences, evenly spread, and of how many tokens they were taken; all of them if that is
/// not too much for so many modes.
pub fn sampled(
    sequences: Vec<Vec<u32>>,
    reference: &Datapath,
    modes: usize,
) -> (Vec<Vec<u32>>, Option<usize>) {
    let (blocks, head) = products(reference);
    let work = (blocks + head) * (modes + PARTS) as u64;
    let all: usize = sequences.iter().map(Vec::len).sum();
    let most = ((WORK / work.max(1)) as usize).clamp(*TOKENS.start(), *TOKENS.end());
    if all <= most {
        return (sequences, None);
    }
    let windows = sequences.iter().flat_map(|s| s.chunks(WINDOW));
    let mut windows: Vec<&[u32]> = windows.filter(|w| w.len() > 1).collect();
    // Short ones only where there are no long ones.
    if windows.iter().filter(|w| w.len() == WINDOW).count() >= most / WINDOW {
        windows.retain(|w| w.len() == WINDOW);
    }
    (evenly(&windows, most), Some(all))
}

/// As many of some sequences as have so many tokens, at least one, evenly spread.
fn evenly(sequences: &[&[u32]], tokens: usize) -> Vec<Vec<u32>> {
    let mean = sequences.iter().map(|w| w.len()).sum::<usize>() / sequences.len().max(1);
    let count = (tokens / mean.max(1)).clamp(1, sequences.len().max(1));
    let chosen = (0..count).map(|i| sequences[i * sequences.len() / count].to_vec());
    chosen.collect()
}

/// What the page's details are measured on.
#[derive(Clone, Debug)]
pub struct Depth {
    /// Sequences that steps and scales are looked at with.
    pub sequences: Vec<Vec<u32>>,
    /// Tokens of the first one along which the state's error is followed.
    pub decoded: usize,
    /// Tokens of each sequence that sites are switched on.
    pub site_tokens: usize,
    /// Modes whose sites are switched, none of them where that would take too long.
    pub site_modes: usize,
}

impl Depth {
    /// What `paths` can be examined on.
    pub fn of(sequences: &[Vec<u32>], paths: &[Datapath], reference: &Datapath) -> Self {
        let config = reference.config();
        let (blocks, head) = products(reference);
        let token = config.n_layers * config.d_model * BYTES.0 + config.vocab_size * BYTES.1;
        let window = (MEMORY / token).max(*DECODED.start());
        let cut = |s: &'_ Vec<u32>| s.len().min(window);
        let beginnings: Vec<&[u32]> = sequences.iter().map(|s| &s[..cut(s)]).collect();
        let modes = paths.len().max(1) as u64;
        let within = |tokens: u64, range: std::ops::RangeInclusive<usize>| {
            (tokens as usize).clamp(*range.start(), *range.end())
        };
        let decoded = DECODE_WORK / (3 * modes * (blocks + head)).max(1);
        let decoded = within(decoded, DECODED);
        let quantized: Vec<u64> = (paths.iter())
            .filter(|path| path.mode().needs_quantized())
            .map(|path| sites(path, reference).len() as u64)
            .collect();
        // Half of the blocks follow a site on the mean; it is switched off and on, and one position in four has
        // logits.
        let a_site = SITE_SEQUENCES as u64 * (blocks + head / 2);
        let all: u64 = quantized.iter().sum::<u64>() * a_site;
        let least =
            quantized.first().map_or(1, |sites| sites * a_site) * *SITE_TOKENS.start() as u64;
        let deep = DEEP_VALUES / (config.n_layers * config.d_model * paths.len().max(1));
        let deep = within(deep as u64, DEEP_TOKENS);
        let errors = modes * ERROR_RUNS * deep as u64 * (blocks + head);
        let states = modes * 2 * decoded as u64 * blocks * DECODE_WEIGHT;
        let room = PAGE_WORK.saturating_sub(errors + states);
        Self {
            sequences: evenly(&beginnings, deep),
            decoded,
            site_tokens: within(SITE_WORK / all.max(1), SITE_TOKENS),
            site_modes: match all * *SITE_TOKENS.start() as u64 <= SITE_WORK {
                true => usize::MAX,
                false => (room / least.max(1)) as usize,
            },
        }
    }

    /// Tokens of the sequences.
    pub fn tokens(&self) -> usize {
        self.sequences.iter().map(Vec::len).sum()
    }
}
