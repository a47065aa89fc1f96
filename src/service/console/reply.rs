//! The two forms of a reply: text for people, and JSON for programs.
//!
//! A reply in text is some lines and an empty one behind them; none of its lines is empty. A reply in
//! JSON is one line.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::time::Duration;

use bytes::BytesMut;

/// In which form replies are written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Form {
    #[default]
    Text,
    Json,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Cell<'a> {
    Text(Cow<'a, str>),
    Count(u64),
    Time(Duration),
    Flag(bool),
    Nothing,
}

impl<'a> From<&'a str> for Cell<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

impl From<String> for Cell<'_> {
    fn from(text: String) -> Self {
        Self::Text(Cow::Owned(text))
    }
}

impl From<u64> for Cell<'_> {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<usize> for Cell<'_> {
    fn from(count: usize) -> Self {
        Self::Count(count as u64)
    }
}

impl From<Duration> for Cell<'_> {
    fn from(time: Duration) -> Self {
        Self::Time(time)
    }
}

impl From<bool> for Cell<'_> {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl<T: Into<Self>> From<Option<T>> for Cell<'_> {
    fn from(cell: Option<T>) -> Self {
        cell.map_or(Self::Nothing, Into::into)
    }
}

/// As people read it.
impl fmt::Display for Cell<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.pad(text),
            Self::Count(count) => f.pad(&count.to_string()),
            Self::Time(time) if time.as_secs() == 0 => f.pad(&format!("{}ms", time.as_millis())),
            Self::Time(time) => f.pad(&format!("{:.1}s", time.as_secs_f64())),
            Self::Flag(flag) => f.pad(if *flag { "yes" } else { "no" }),
            Self::Nothing => f.pad("-"),
        }
    }
}

/// A value as programs read it.
struct Json<'a, 'b>(&'a Cell<'b>);

impl fmt::Display for Json<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Cell::Text(text) => quote(f, text),
            Cell::Count(count) => count.fmt(f),
            Cell::Time(time) => write!(f, "{:.3}", time.as_secs_f64()),
            Cell::Flag(flag) => flag.fmt(f),
            Cell::Nothing => f.write_str("null"),
        }
    }
}

/// RFC 8259, 7. What ends a script in a page, or a line for some readers, is escaped too.
pub(crate) fn quote(f: &mut impl Write, text: &str) -> fmt::Result {
    f.write_char('"')?;
    for letter in text.chars() {
        match letter {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\u{7f}' | '\0'..='\u{1f}' => {
                write!(f, "\\u{:04x}", letter as u32)?;
            }
            letter => f.write_char(letter)?,
        }
    }
    f.write_char('"')
}

fn object(output: &mut BytesMut, cells: &[(&str, Cell<'_>)]) -> fmt::Result {
    let mut before = '{';
    for (name, cell) in cells {
        write!(output, "{before}\"{name}\":{}", Json(cell))?;
        before = ',';
    }
    output.write_str(if before == '{' { "{}" } else { "}" })
}

/// A buffer takes any text.
fn written(outcome: fmt::Result) {
    debug_assert!(outcome.is_ok(), "a buffer takes any text");
}

impl Form {
    /// A reply that is one thing, with a name for each value.
    pub(crate) fn record(self, output: &mut BytesMut, cells: &[(&str, Cell<'_>)]) {
        let mut write = || match self {
            Self::Json => {
                object(output, cells)?;
                output.write_str("\n")
            }
            Self::Text => {
                let width = cells.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
                for (name, cell) in cells {
                    writeln!(output, "{name:width$}  {cell}")?;
                }
                output.write_str("\n")
            }
        };
        written(write());
    }

    /// The reply to what was done.
    pub(crate) fn done(self, output: &mut BytesMut, text: &str) {
        match self {
            Self::Json => self.record(output, &[("done", text.into())]),
            Self::Text => written(write!(output, "{text}\n\n")),
        }
    }

    /// The reply to what cannot be done.
    pub(crate) fn error(self, output: &mut BytesMut, text: &str) {
        match self {
            Self::Json => self.record(output, &[("error", text.into())]),
            Self::Text => written(write!(output, "error: {text}\n\n")),
        }
    }
}

/// A column of a list: its name, its width for people, and whether it is a number.
pub(crate) type Column = (&'static str, usize, bool);

/// A reply that is a list, row by row.
#[derive(Debug)]
pub(crate) struct List {
    form: Form,
    columns: &'static [Column],
    rows: u64,
}

impl List {
    /// Begins a list of this name.
    pub(crate) fn begin(
        form: Form,
        output: &mut BytesMut,
        name: &str,
        columns: &'static [Column],
    ) -> Self {
        match form {
            Form::Json => written(write!(output, "{{\"{name}\":[")),
            Form::Text => {
                let names = columns.iter().map(|(name, ..)| Cell::from(*name));
                written(line(output, columns, names));
            }
        }
        Self { form, columns, rows: 0 }
    }

    pub(crate) const fn rows(&self) -> u64 {
        self.rows
    }

    /// Adds a row, with a value for each column.
    pub(crate) fn row<const N: usize>(&mut self, output: &mut BytesMut, cells: [Cell<'_>; N]) {
        debug_assert_eq!(self.columns.len(), N);
        let before = if self.rows > 0 { "," } else { "" };
        self.rows += 1;
        let mut write = || match self.form {
            Form::Json => {
                output.write_str(before)?;
                let names = self.columns.iter().map(|(name, ..)| *name);
                let mut start = '{';
                for (name, cell) in names.zip(&cells) {
                    write!(output, "{start}\"{name}\":{}", Json(cell))?;
                    start = ',';
                }
                output.write_str("}")
            }
            Form::Text => line(output, self.columns, cells.iter().cloned()),
        };
        written(write());
    }

    /// Ends the list, with what there is to say of all of it.
    pub(crate) fn end(&self, output: &mut BytesMut, cells: &[(&str, Cell<'_>)]) {
        let mut write = || match self.form {
            Form::Json => {
                output.write_str("]")?;
                for (name, cell) in cells {
                    write!(output, ",\"{name}\":{}", Json(cell))?;
                }
                output.write_str("}\n")
            }
            Form::Text => {
                let texts: Vec<_> =
                    cells.iter().map(|(name, cell)| format!("{name} {cell}")).collect();
                writeln!(output, "{}\n", texts.join(", "))
            }
        };
        written(write());
    }
}

/// Writes a line for people; numbers are aligned to the right, and nothing stands behind the last.
fn line<'a>(
    output: &mut BytesMut,
    columns: &[Column],
    cells: impl Iterator<Item = Cell<'a>>,
) -> fmt::Result {
    let last = columns.len() - 1;
    for (at, ((_, width, right), cell)) in columns.iter().zip(cells).enumerate() {
        match right {
            true => write!(output, "{cell:>width$}")?,
            false if at == last => write!(output, "{cell}")?,
            false => write!(output, "{cell:width$}")?,
        }
        output.write_str(if at == last { "\n" } else { "  " })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column] = &[("id", 5, false), ("count", 6, true), ("why", 4, false)];

    fn list(form: Form) -> String {
        let mut output = BytesMut::new();
        let mut list = List::begin(form, &mut output, "things", COLUMNS);
        list.row(&mut output, ["1.1".into(), 7_u64.into(), Cell::Nothing]);
        list.row(&mut output, ["22.1".into(), 70_u64.into(), "a \"b\"".into()]);
        list.end(&mut output, &[("shown", list.rows().into())]);
        String::from_utf8(output.to_vec()).unwrap()
    }

    #[test]
    fn a_list_is_lines_and_an_empty_one() {
        let text = "id      count  why\n1.1         7  -\n22.1       70  a \"b\"\nshown 2\n\n";
        assert_eq!(list(Form::Text), text);
    }

    #[test]
    fn a_list_is_an_object_in_one_line() {
        let rows = "{\"id\":\"1.1\",\"count\":7,\"why\":null},\
                    {\"id\":\"22.1\",\"count\":70,\"why\":\"a \\\"b\\\"\"}";
        assert_eq!(list(Form::Json), format!("{{\"things\":[{rows}],\"shown\":2}}\n"));
    }

    #[test]
    fn any_text_is_a_string() {
        for (text, quoted) in [
            ("", r#""""#),
            ("\\\"</b>&\u{2028}", r#""\\\"\u003c/b\u003e\u0026\u2028""#),
            ("\0\u{1f}\u{7f}\n", r#""\u0000\u001f\u007f\u000a""#),
            ("ä\u{1f600}", "\"ä\u{1f600}\""),
        ] {
            let mut output = String::new();
            quote(&mut output, text).unwrap();
            assert_eq!(output, quoted);
        }
    }

    #[test]
    fn values_have_two_forms() {
        let mut output = BytesMut::new();
        let cells: [(&str, Cell<'_>); 3] = [
            ("age", Duration::from_millis(1_250).into()),
            ("reads", true.into()),
            ("end", None::<u64>.into()),
        ];
        Form::Text.record(&mut output, &cells);
        assert_eq!(&output[..], b"age    1.2s\nreads  yes\nend    -\n\n");
        output.clear();
        Form::Json.record(&mut output, &cells);
        assert_eq!(&output[..], b"{\"age\":1.250,\"reads\":true,\"end\":null}\n");
    }
}
