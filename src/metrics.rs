//! What an application writes into a scrape of its metrics: the [text format] of Prometheus, checked
//! and bounded.
//!
//! [text format]: https://prometheus.io/docs/instrumenting/exposition_formats/

use std::collections::BTreeSet;
use std::fmt::{self, Write};

use crate::log::debug;

/// The most text that one scrape takes from the application.
pub(crate) const TEXT_MAX: usize = 1 << 20;

/// Names that begin so are the library's.
const RESERVED: &str = "wheelhouse_";

/// Takes the application's own metrics in [`Handler::on_scrape`](crate::Handler::on_scrape).
///
/// A family of samples is begun by [`counter`](MetricsWriter::counter),
/// [`gauge`](MetricsWriter::gauge) or [`histogram`](MetricsWriter::histogram), which write its `HELP`
/// and `TYPE` lines before its first sample, and gets its samples from what they return. All samples
/// of a family come in a row: a family that was left cannot be begun again in the same scrape, as
/// the format forbids it.
///
/// What is written is bounded by 1 MiB for each scrape. A sample that does not fit is left out as a
/// whole, with its family's head if it would have been the first, and counted in
/// [`Stats::metrics_dropped`](crate::Stats::metrics_dropped). So are names that the format does not
/// allow or that are the library's (`wheelhouse_`), families that come twice, and labels that do; those
/// are mistakes of the program, and panic in debug builds. Names match `[a-zA-Z_:][a-zA-Z0-9_:]*`, those of labels
/// `[a-zA-Z_][a-zA-Z0-9_]*` without two underscores in front. Values of labels and help texts may be
/// any text: they are escaped. That two samples of a family have different labels is not checked.
///
/// ```
/// use bytes::BytesMut;
/// use wheelhouse::metrics::MetricsWriter;
/// use wheelhouse::{Conn, Context, Handler};
///
/// #[derive(Default)]
/// struct Shop {
///     orders: u64,
///     waiting: [u64; 2],
/// }
///
/// impl Handler for Shop {
///     type Session = ();
///
///     fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
///         Some(())
///     }
///
///     fn on_data(&mut self, _: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
///         self.orders += 1;
///         input.clear();
///     }
///
///     fn on_scrape(&mut self, _: &mut Context<'_>, out: &mut MetricsWriter) {
///         out.counter("shop_orders_total", "Orders taken.").value(self.orders);
///         let mut waiting = out.gauge("shop_waiting", "Orders that wait, by desk.");
///         for (desk, count) in ["books", "wine"].iter().zip(self.waiting) {
///             waiting.labelled(&[("desk", desk)], count);
///         }
///     }
/// }
/// # let mut out = MetricsWriter::new();
/// # let mut sim = wheelhouse::sim::Sim::new(1);
/// # let server = sim.serve("10.0.0.1:7", wheelhouse::Config::default(), Shop::default());
/// # server.with(|shop, cx| shop.on_scrape(cx, &mut out));
/// # let lines = ["shop_orders_total 0", "shop_waiting{desk=\"books\"} 0"];
/// # assert!(lines.iter().all(|line| out.as_str().lines().any(|it| it == *line)));
/// ```
#[derive(Debug)]
pub struct MetricsWriter {
    text: String,
    /// The names of the samples of the families that were begun.
    families: BTreeSet<String>,
    /// How long these are together.
    names: usize,
    /// Samples and families that were left out.
    dropped: u64,
    most: usize,
}

impl Default for MetricsWriter {
    fn default() -> Self {
        Self::new()
    }
}

/// What kind of family it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    const fn label(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }

    fn names_of_samples(self, name: &str) -> Vec<String> {
        let suffixes: &[&str] = match self {
            Self::Counter | Self::Gauge => &[""],
            Self::Histogram => &["", "_bucket", "_sum", "_count"],
        };
        suffixes.iter().map(|suffix| format!("{name}{suffix}")).collect()
    }
}

/// The value of a sample: a whole number, or one with a fraction.
///
/// It is made from `u64`, `u32`, `usize`, `i64` and `f64`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// A number from 0 on, in all its digits.
    Whole(u64),
    /// A number that may be negative, in all its digits.
    Signed(i64),
    /// Any number, `NaN` and the infinities included.
    Float(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Whole(value.into())
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Whole(value as u64)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Signed(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(value) => value.fmt(f),
            Self::Signed(value) => value.fmt(f),
            Self::Float(value) if value.is_nan() => f.write_str("NaN"),
            Self::Float(f64::INFINITY) => f.write_str("+Inf"),
            Self::Float(f64::NEG_INFINITY) => f.write_str("-Inf"),
            Self::Float(value) => value.fmt(f),
        }
    }
}

impl MetricsWriter {
    /// One that is empty: for tests of [`on_scrape`](crate::Handler::on_scrape). The library hands the
    /// handler its own.
    pub fn new() -> Self {
        Self::bounded(TEXT_MAX)
    }

    /// One that takes at most so much text.
    fn bounded(most: usize) -> Self {
        Self { text: String::new(), families: BTreeSet::new(), names: 0, dropped: 0, most }
    }

    /// Begins a counter: a number that only grows while the program runs. By convention its name ends
    /// with `_total`.
    ///
    /// # Panics
    ///
    /// In debug builds, if the name is not allowed, or was used in this scrape.
    pub fn counter(&mut self, name: &str, help: &str) -> Family<'_> {
        self.family(name, help, Kind::Counter)
    }

    /// Begins a gauge: a number that goes up and down.
    ///
    /// # Panics
    ///
    /// In debug builds, if the name is not allowed, or was used in this scrape.
    pub fn gauge(&mut self, name: &str, help: &str) -> Family<'_> {
        self.family(name, help, Kind::Gauge)
    }

    /// Begins a histogram, whose samples are written by [`Histogram::observed`].
    ///
    /// # Panics
    ///
    /// In debug builds, if the name is not allowed, or was used in this scrape.
    pub fn histogram(&mut self, name: &str, help: &str) -> Histogram<'_> {
        Histogram(self.family(name, help, Kind::Histogram))
    }

    /// What has been written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// How many samples and families were left out.
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    fn family(&mut self, name: &str, help: &str, kind: Kind) -> Family<'_> {
        let allowed = is_name(name, true) && !name.starts_with(RESERVED);
        debug_assert!(allowed, "{name:?} is no name for metrics of an application");
        let names = kind.names_of_samples(name);
        let is_new = !names.iter().any(|name| self.families.contains(name));
        debug_assert!(is_new, "the metrics {name} come twice");
        let size = names.iter().map(String::len).sum::<usize>();
        let begins = allowed && is_new && self.names + size <= TEXT_MAX;
        if begins {
            self.names += size;
            self.families.extend(names);
        } else {
            debug!(
                name,
                "metrics are left out: their name is not allowed or comes twice, or all are long"
            );
            self.dropped += 1;
            return Family { out: self, name: None, head: String::new() };
        }
        let kind = kind.label();
        let help = Escaped { text: help, quotes: false };
        let head = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
        Family { out: self, name: Some(name.to_owned()), head }
    }

    /// Adds lines, or leaves them out if they do not fit.
    fn add(&mut self, head: &mut String, lines: &str) {
        if self.text.len() + head.len() + lines.len() > self.most {
            self.dropped += 1;
            return;
        }
        self.text.push_str(head);
        self.text.push_str(lines);
        head.clear();
    }
}

/// A family that was begun, and takes samples.
#[derive(Debug)]
pub struct Family<'a> {
    out: &'a mut MetricsWriter,
    /// `None` if it was refused.
    name: Option<String>,
    /// Its first lines, until they are written before the first sample.
    head: String,
}

impl Family<'_> {
    /// Writes its only sample, which has no labels.
    pub fn value(&mut self, value: impl Into<Value>) {
        self.labelled(&[], value);
    }

    /// Writes a sample that has these labels.
    ///
    /// # Panics
    ///
    /// In debug builds, if the name of a label is not allowed, or comes twice.
    pub fn labelled(&mut self, labels: &[(&str, &str)], value: impl Into<Value>) {
        let Some(name) = &self.name else { return };
        let mut line = String::new();
        if sample(&mut line, name, "", labels, None, value.into()).is_ok() {
            self.out.add(&mut self.head, &line);
        } else {
            self.out.dropped += 1;
        }
    }
}

/// A histogram that was begun.
#[derive(Debug)]
pub struct Histogram<'a>(Family<'a>);

impl Histogram<'_> {
    /// Writes what was observed under these labels: how many observations were in each bucket, and the
    /// sum of all. Each bucket is its upper end, which is finite, and how many were in it, those of the
    /// buckets before it left out; what was above the last end is `beyond`.
    ///
    /// All its lines are written, or none if they do not fit.
    ///
    /// # Panics
    ///
    /// In debug builds, if the ends are not finite or do not grow, or the name of a label is not allowed,
    /// comes twice, or is `le`.
    pub fn observed(
        &mut self,
        labels: &[(&str, &str)],
        buckets: &[(f64, u64)],
        beyond: u64,
        sum: f64,
    ) {
        let Some(name) = &self.0.name else { return };
        let grows = buckets.iter().all(|(end, _)| end.is_finite())
            && buckets.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let named = labels.iter().all(|(label, _)| *label != "le");
        debug_assert!(
            grows && named,
            "the buckets of {name} are in order, and only they have `le`"
        );
        let mut lines = String::new();
        let mut count = 0_u64;
        let mut write = || {
            for (end, observed) in buckets.iter().copied().chain([(f64::INFINITY, beyond)]) {
                count = count.saturating_add(observed);
                let end = Some(Value::Float(end));
                sample(&mut lines, name, "_bucket", labels, end, Value::Whole(count))?;
            }
            sample(&mut lines, name, "_sum", labels, None, Value::Float(sum))?;
            sample(&mut lines, name, "_count", labels, None, Value::Whole(count))
        };
        if grows && named && write().is_ok() {
            self.0.out.add(&mut self.0.head, &lines);
        } else {
            self.0.out.dropped += 1;
        }
    }
}

/// Writes one line.
///
/// # Errors
///
/// If the name of a label is not allowed.
fn sample(
    lines: &mut String,
    name: &str,
    suffix: &str,
    labels: &[(&str, &str)],
    end: Option<Value>,
    value: Value,
) -> fmt::Result {
    write!(lines, "{name}{suffix}")?;
    let mut open = '{';
    for (at, (label, text)) in labels.iter().enumerate() {
        let comes_twice = labels[..at].iter().any(|(before, _)| before == label);
        let allowed = is_name(label, false) && !label.starts_with("__") && !comes_twice;
        debug_assert!(allowed, "{label:?} is no name for a label, or comes twice");
        if !allowed {
            return Err(fmt::Error);
        }
        write!(lines, "{open}{label}=\"{}\"", Escaped { text, quotes: true })?;
        open = ',';
    }
    if let Some(end) = end {
        write!(lines, "{open}le=\"{end}\"")?;
        open = ',';
    }
    if open == ',' {
        lines.push('}');
    }
    writeln!(lines, " {value}")
}

/// Whether the format allows it as a name: of metrics, which may have colons, or of a label.
fn is_name(text: &str, colons: bool) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_' || (colons && byte == b':');
    !text.is_empty()
        && !text.as_bytes()[0].is_ascii_digit()
        && text.bytes().all(|byte| allowed(byte) || byte.is_ascii_digit())
}

/// Text as it stands in a help line, or between quotes as the value of a label.
struct Escaped<'a> {
    text: &'a str,
    quotes: bool,
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.text.chars() {
            match letter {
                '\\' => f.write_str("\\\\")?,
                '\n' => f.write_str("\\n")?,
                '"' if self.quotes => f.write_str("\\\"")?,
                letter => f.write_char(letter)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_has_one_head_and_its_samples_behind_it() {
        let mut out = MetricsWriter::new();
        let mut sizes = out.gauge("sizes", "How large,\nwith a \\ in it.");
        sizes.labelled(&[("of", "a \"b\"\\\n"), ("x", "")], 1_u64);
        sizes.labelled(&[("of", "c")], -2_i64);
        out.counter("seen_total", "Seen.").value(3.5);
        assert_eq!(
            out.as_str(),
            "# HELP sizes How large,\\nwith a \\\\ in it.\n# TYPE sizes gauge\n\
             sizes{of=\"a \\\"b\\\"\\\\\\n\",x=\"\"} 1\nsizes{of=\"c\"} -2\n\
             # HELP seen_total Seen.\n# TYPE seen_total counter\nseen_total 3.5\n"
        );
        assert_eq!(out.dropped(), 0);
    }

    #[test]
    fn a_family_without_samples_has_no_head() {
        let mut out = MetricsWriter::new();
        let _ = out.gauge("none", "None.");
        assert_eq!(out.as_str(), "");
    }

    #[test]
    fn buckets_add_up() {
        let mut out = MetricsWriter::new();
        let mut took = out.histogram("took_seconds", "How long.");
        took.observed(&[("of", "a")], &[(0.1, 2), (1.0, 3)], 4, 9.5);
        assert_eq!(
            out.as_str(),
            "# HELP took_seconds How long.\n# TYPE took_seconds histogram\n\
             took_seconds_bucket{of=\"a\",le=\"0.1\"} 2\n\
             took_seconds_bucket{of=\"a\",le=\"1\"} 5\n\
             took_seconds_bucket{of=\"a\",le=\"+Inf\"} 9\n\
             took_seconds_sum{of=\"a\"} 9.5\ntook_seconds_count{of=\"a\"} 9\n"
        );
    }

    #[test]
    fn the_samples_of_a_histogram_are_no_other_family() {
        let mut out = MetricsWriter::new();
        out.gauge("a_count", "A.").value(1_u64);
        let taken = crate::unwind::catch(|| _ = out.histogram("a", "A.")).is_err();
        assert_eq!((taken, out.dropped()), (cfg!(debug_assertions), 1 - u64::from(taken)));
        out.histogram("b", "B.").observed(&[], &[], 1, 1.0);
        assert!(crate::unwind::catch(|| _ = out.gauge("b_sum", "B.")).is_err() == taken);
        assert!(MetricsWriter::default().most > 0);
    }

    #[test]
    fn what_is_no_number_has_a_name() {
        let texts =
            [f64::NAN, f64::INFINITY, f64::NEG_INFINITY].map(|it| Value::from(it).to_string());
        assert_eq!(texts, ["NaN", "+Inf", "-Inf"]);
        assert_eq!(Value::from(u64::MAX).to_string(), "18446744073709551615");
    }

    #[test]
    fn names_are_checked() {
        for (name, metrics, label) in [
            ("a_b:c9", true, false),
            ("_a", true, true),
            ("A", true, true),
            ("9a", false, false),
            ("", false, false),
            ("a-b", false, false),
            ("a b", false, false),
            ("ä", false, false),
            ("a\n", false, false),
        ] {
            assert_eq!((is_name(name, true), is_name(name, false)), (metrics, label), "{name:?}");
        }
    }

    /// What panics in debug builds is left out, and counted, in others.
    #[test]
    fn a_mistake_is_left_out() {
        type Mistake = fn(&mut MetricsWriter);
        let mistakes: [Mistake; 9] = [
            |out| out.gauge("a b", "").value(1_u64),
            |out| out.gauge("wheelhouse_turns", "").value(1_u64),
            |out| out.gauge("good", "").value(1_u64),
            |out| out.gauge("labels", "").labelled(&[("a-b", "")], 1_u64),
            |out| out.gauge("labels", "").labelled(&[("a", ""), ("b", ""), ("a", "")], 1_u64),
            |out| out.histogram("good", "").observed(&[], &[], 0, 0.0),
            |out| out.histogram("order", "").observed(&[], &[(2.0, 1), (1.0, 1)], 0, 0.0),
            |out| out.histogram("order", "").observed(&[], &[(f64::INFINITY, 1)], 0, 0.0),
            |out| out.histogram("order", "").observed(&[], &[(f64::NAN, 1)], 0, 0.0),
        ];
        for mistake in mistakes {
            let mut out = MetricsWriter::new();
            out.gauge("good", "Good.").value(1_u64);
            let before = out.text.clone();
            let panicked = crate::unwind::catch(|| mistake(&mut out)).is_err();
            assert_eq!(panicked, cfg!(debug_assertions));
            assert_eq!(out.text, before);
            assert!(panicked || out.dropped() == 1);
        }
    }

    #[test]
    fn what_does_not_fit_is_left_out_as_a_whole() {
        let head = "# HELP a A.\n# TYPE a gauge\n";
        let sample = "a{of=\"b\"} 7\n";
        for most in 0..head.len() + 3 * sample.len() {
            let mut out = MetricsWriter::bounded(most);
            let mut family = out.gauge("a", "A.");
            for _ in 0..3 {
                family.labelled(&[("of", "b")], 7_u64);
            }
            let fit = most.saturating_sub(head.len()) / sample.len();
            let expected =
                if fit == 0 { String::new() } else { format!("{head}{}", sample.repeat(fit)) };
            assert_eq!(out.as_str(), expected);
            assert_eq!(out.dropped(), 3 - fit as u64);
        }
    }
}
