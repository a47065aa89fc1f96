//! How the page writes numbers, sizes and times for people, and texts for browsers.

use std::fmt::{self, Display, Write};
use std::time::Duration;

/// A number with its digits in groups, as in `1,234,567`.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size in the greatest unit of which it is at least one, as in `1.5 MiB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut unit, mut scaled) = (0, bytes as f64);
    while scaled >= 1_024.0 && unit + 1 < UNITS.len() {
        scaled /= 1_024.0;
        unit += 1;
    }
    let decimals = usize::from(unit > 0 && scaled < 100.0 && scaled.fract() != 0.0);
    format!("{scaled:.decimals$} {}", UNITS[unit])
}

/// A time in its greatest unit, and of minutes and more the next one too, as in `3 h 4 min`.
pub(super) fn time(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 if time.is_zero() => "0 s".to_owned(),
        0 if time < Duration::from_millis(1) => format!("{} µs", time.as_micros()),
        0 => format!("{} ms", time.as_millis()),
        1..60 => format!("{:.1} s", time.as_millis() as f64 / 1_000.0),
        60..3_600 => two(seconds / 60, "min", seconds % 60, "s"),
        3_600..86_400 => two(seconds / 3_600, "h", seconds % 3_600 / 60, "min"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

fn two(great: u64, unit: &str, small: u64, small_unit: &str) -> String {
    match small {
        0 => format!("{great} {unit}"),
        _ => format!("{great} {unit} {small} {small_unit}"),
    }
}

/// A part in percent.
pub(super) fn percent(part: u64, whole: u64) -> String {
    format!("{:.0} %", part as f64 * 100.0 / whole.max(1) as f64)
}

/// A text inside an element or a quoted attribute.
pub(super) struct Html<'a>(pub(super) &'a str);

impl Display for Html<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|letter| match letter {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            // No document may have these, as characters or as references.
            '\0'..='\u{8}' | '\u{b}'..='\u{1f}' | '\u{7f}'..='\u{9f}' => f.write_char('\u{fffd}'),
            letter => f.write_char(letter),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_for_people() {
        let counts = [0, 999, 1_000, 12_345, 1_234_567, u64::MAX].map(count);
        let most = "18,446,744,073,709,551,615";
        assert_eq!(counts, ["0", "999", "1,000", "12,345", "1,234,567", most]);
        let sizes = [0, 1_023, 1_024, 1_536, 200 << 10, (3 << 20) + (1 << 18), u64::MAX].map(size);
        assert_eq!(sizes, ["0 B", "1023 B", "1 KiB", "1.5 KiB", "200 KiB", "3.2 MiB", "16384 PiB"]);
        let parts = [(0, 0), (1, 3), (3, 2)].map(|(part, whole)| percent(part, whole));
        assert_eq!(parts, ["0 %", "33 %", "150 %"]);
    }

    #[test]
    fn times_have_one_unit_or_two() {
        let millis = [0, 999, 1_000, 59_999, 60_000, 61_000, 3_600_000, 90_061_000];
        let texts = millis.map(|millis| time(Duration::from_millis(millis)));
        assert_eq!(
            texts,
            ["0 s", "999 ms", "1.0 s", "60.0 s", "1 min", "1 min 1 s", "1 h", "1 d 1 h"]
        );
        assert_eq!(time(Duration::from_nanos(1_500)), "1 µs");
    }

    #[test]
    fn a_text_makes_no_tag() {
        let text = Html("<script>alert('\"&\0\u{85}')").to_string();
        assert_eq!(text, "&lt;script&gt;alert(&#39;&quot;&amp;\u{fffd}\u{fffd}&#39;)");
    }

    proptest! {
        #[test]
        fn no_text_leaves_its_element(text in any::<String>()) {
            let escaped = Html(&text).to_string();
            prop_assert!(!escaped.contains(['<', '>', '"', '\'', '\0']));
        }
    }
}
