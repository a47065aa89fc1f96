//! The page of a reactor at `/` of its metrics, and its state as the page's script asks for it.
//!
//! The tables are made here, once, and leave in two forms: as HTML, so that the page can be read
//! without scripts, and as JSON, from which the script renews them each second. What the script adds
//! are rates and plots, which take more than one moment.

mod text;
mod top;
mod view;

use std::fmt::{self, Display, Write};

use bytes::BytesMut;

use self::text::Html;
use self::top::Top;
use self::view::{Card, Column, Table, View};
use super::Desk;
use super::console::reply::quote;
use super::http::{Reply, Request, Status};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
const TEMPLATE: &str = include_str!("page.html");

/// Nothing is loaded and nothing runs but what the page itself has, named by its hash.
const POLICY: &str = "Content-Security-Policy: default-src 'none'; \
    script-src 'sha256-M5TG9E8C8w/Esvtu6UDn5mNzNiuyD/DMaYeICNsXT+8='; \
    style-src 'sha256-KpYBtYDUjsADD4eBmKMNYt5PvLZxWnkTw6NM4WT6Woc='; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n\
    Cross-Origin-Resource-Policy: same-origin\r\n\
    Referrer-Policy: no-referrer\r\n";

/// In which form the state is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Form {
    Html,
    Json,
}

/// A request for the page or for its state, while the table is walked for it.
#[derive(Debug)]
pub(super) struct Page {
    request: Request,
    form: Form,
    top: Top,
}

impl Page {
    /// The answer to a request, if it is for the page.
    pub(super) fn begin(request: &Request) -> Option<Self> {
        let form = match &request.path[..] {
            "/" => Form::Html,
            "/state" => Form::Json,
            _ => return None,
        };
        Some(Self { request: request.clone(), form, top: Top::default() })
    }

    /// Walks on over the connections, and writes the reply when all have been visited. Returns whether
    /// they have.
    pub(super) fn go_on(&mut self, desk: &Desk<'_>, output: &mut BytesMut) -> bool {
        if !self.top.walk(&desk.shared.table) {
            return false;
        }
        let names = desk.shows_peers && is_own_name(&self.request.host);
        let view = View::new(desk, &self.top, names);
        let (content_type, fields, body) = match self.form {
            Form::Html => ("text/html; charset=utf-8", POLICY, Document(&view).to_string()),
            Form::Json => ("application/json", "", State(&view).to_string()),
        };
        let reply = Reply { content_type, fields, ..Reply::to(&self.request, Status::Ok, &body) };
        reply.write(output);
        true
    }

    /// Whether the connection ends with the reply.
    pub(super) const fn closes(&self) -> bool {
        self.request.closes
    }
}

/// Whether a browser that asks for this host has not been sent here under another's name: a page of
/// `attacker.example` may let that name mean this machine, and then read what it serves.
fn is_own_name(host: &str) -> bool {
    host.is_empty()
        || host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok()
}

/// The page.
struct Document<'a>(&'a View);

impl Display for Document<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let view = self.0;
        let mut rest = TEMPLATE;
        while let Some((before, after)) = rest.split_once("<!--") {
            f.write_str(before)?;
            let (name, after) = after.split_once("-->").unwrap_or((after, ""));
            match name {
                "title" => Html(&view.title).fmt(f)?,
                "style" => f.write_str(STYLE)?,
                "script" => f.write_str(SCRIPT)?,
                "status" => status(f, view.unready)?,
                "cards" => view.cards.iter().try_for_each(|card| write_card(f, card))?,
                "tables" => view.tables.iter().try_for_each(|table| write_table(f, table))?,
                _ => debug_assert!(false, "{name} has no place in the page"),
            }
            rest = after;
        }
        f.write_str(rest)
    }
}

fn status(f: &mut fmt::Formatter<'_>, unready: Option<&str>) -> fmt::Result {
    let (class, text) = match unready {
        None => ("ready", "ready".to_owned()),
        Some(why) => ("unready", format!("not ready: {why}")),
    };
    write!(f, "<p id=\"status\" class=\"{class}\" role=\"status\">{}</p>", Html(&text))
}

fn write_card(f: &mut fmt::Formatter<'_>, card: &Card) -> fmt::Result {
    let Card { id, title, value, note } = card;
    writeln!(
        f,
        "<section class=\"card\" id=\"{id}\" aria-labelledby=\"{id}-title\">\
         <h2 id=\"{id}-title\">{title}</h2><p class=\"value\">{}</p><p class=\"note\">{}</p>\
         </section>",
        Html(value),
        Html(note),
    )
}

fn write_table(f: &mut fmt::Formatter<'_>, table: &Table) -> fmt::Result {
    let Table { id, title, columns, rows, note, optional } = table;
    let [section, scroll] =
        [*optional && rows.is_empty(), rows.is_empty()].map(|it| if it { " hidden" } else { "" });
    write!(
        f,
        "<section class=\"table\" id=\"{id}\"{section}><h2 id=\"{id}-title\">{title}</h2>\
         <div class=\"scroll\" role=\"region\" aria-labelledby=\"{id}-title\" tabindex=\"0\"{scroll}>\
         <table aria-labelledby=\"{id}-title\"><thead><tr>"
    )?;
    for column in columns {
        let (Column::Text(name) | Column::Number(name) | Column::Live(name)) = column;
        write!(f, "<th scope=\"col\"{}>{name}</th>", class(*column))?;
    }
    f.write_str("</tr></thead><tbody>")?;
    for row in rows {
        f.write_str("<tr>")?;
        let mut cells = row.iter();
        for (at, column) in columns.iter().enumerate() {
            let cell = match column {
                Column::Live(_) => "",
                Column::Text(_) | Column::Number(_) => cells.next().map_or("", String::as_str),
            };
            let (cell, class) = (Html(cell), class(*column));
            match at {
                0 => write!(f, "<th scope=\"row\"{class}>{cell}</th>")?,
                _ => write!(f, "<td{class}>{cell}</td>")?,
            }
        }
        f.write_str("</tr>")?;
    }
    writeln!(f, "</tbody></table></div><p class=\"note\">{}</p></section>", Html(note))
}

const fn class(column: Column) -> &'static str {
    match column {
        Column::Text(_) => "",
        Column::Number(_) => " class=\"number\"",
        Column::Live(_) => " class=\"number live\"",
    }
}

/// The state, as the page's script reads it.
struct State<'a>(&'a View);

impl Display for State<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let view = self.0;
        write!(f, "{{\"title\":{},\"unready\":", Json(&view.title))?;
        match view.unready {
            None => f.write_str("null")?,
            Some(why) => Json(why).fmt(f)?,
        }
        f.write_str(",\"numbers\":")?;
        write_numbers(f, &view.numbers)?;
        f.write_str(",\"counts\":")?;
        write_object(f, view.counts.iter().map(|(name, _)| *name), |f, at| {
            write_numbers(f, &view.counts[at].1)
        })?;
        f.write_str(",\"cards\":")?;
        write_object(f, view.cards.iter().map(|card| card.id), |f, at| {
            let card = &view.cards[at];
            write!(f, "[{},{}]", Json(&card.value), Json(&card.note))
        })?;
        f.write_str(",\"tables\":")?;
        write_object(f, view.tables.iter().map(|table| table.id), |f, at| {
            let table = &view.tables[at];
            write!(f, "{{\"note\":{},\"rows\":[", Json(&table.note))?;
            for (at, row) in table.rows.iter().enumerate() {
                f.write_str(if at == 0 { "[" } else { ",[" })?;
                for (at, cell) in row.iter().enumerate() {
                    write!(f, "{}{}", if at == 0 { "" } else { "," }, Json(cell))?;
                }
                f.write_char(']')?;
            }
            f.write_str("]}")
        })?;
        f.write_char('}')
    }
}

/// A text as a string of JSON.
struct Json<'a>(&'a str);

impl Display for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        quote(f, self.0)
    }
}

fn write_numbers(f: &mut fmt::Formatter<'_>, numbers: &[(&str, u64)]) -> fmt::Result {
    write_object(f, numbers.iter().map(|(name, _)| *name), |f, at| numbers[at].1.fmt(f))
}

/// Writes an object of JSON with these names; `value` writes the value of each, by its number.
fn write_object<'a>(
    f: &mut fmt::Formatter<'_>,
    names: impl Iterator<Item = &'a str>,
    value: impl Fn(&mut fmt::Formatter<'_>, usize) -> fmt::Result,
) -> fmt::Result {
    f.write_char('{')?;
    for (at, name) in names.enumerate() {
        write!(f, "{}{}:", if at == 0 { "" } else { "," }, Json(name))?;
        value(f, at)?;
    }
    f.write_char('}')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SHA-256 (FIPS 180-4) in base64, as a policy names what may run.
    fn hash(text: &str) -> String {
        // Bits of the roots of the first primes: square roots for the state, cube roots for the rounds.
        let primes = (2_u32..).filter(|number| (2..*number).all(|it| !number.is_multiple_of(it)));
        let root = |prime: u32, power: u32| {
            let target = u128::from(prime) << (32 * power);
            let (mut low, mut high) = (0_u128, 1 << 40);
            while high - low > 1 {
                let middle = (low + high) / 2;
                if middle.pow(power) <= target { low = middle } else { high = middle }
            }
            low as u32
        };
        let rounds: Vec<_> = primes.clone().take(64).map(|prime| root(prime, 3)).collect();
        let mut state: Vec<_> = primes.take(8).map(|prime| root(prime, 2)).collect();
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0x80);
        bytes.resize((bytes.len() + 8).next_multiple_of(64), 0);
        let end = bytes.len() - 8;
        bytes[end..].copy_from_slice(&(text.len() as u64 * 8).to_be_bytes());
        for block in bytes.chunks(64) {
            let words = block.chunks(4).map(|word| u32::from_be_bytes(word.try_into().unwrap()));
            let mut words: Vec<_> = words.collect();
            for at in 16..64 {
                let [before, after] = [words[at - 15], words[at - 2]];
                let one = before.rotate_right(7) ^ before.rotate_right(18) ^ (before >> 3);
                let two = after.rotate_right(17) ^ after.rotate_right(19) ^ (after >> 10);
                let sum = words[at - 16].wrapping_add(one).wrapping_add(words[at - 7]);
                words.push(sum.wrapping_add(two));
            }
            let mut mixed = state.clone();
            for (word, round) in words.iter().zip(&rounds) {
                let [a, b, c, d, e, f, g, h] = mixed[..].try_into().unwrap();
                let one = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
                let choice = (e & f) ^ (!e & g);
                let sum = [one, choice, *round, *word].into_iter().fold(h, u32::wrapping_add);
                let two = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
                let majority = (a & b) ^ (a & c) ^ (b & c);
                let first = sum.wrapping_add(two).wrapping_add(majority);
                mixed = vec![first, a, b, c, d.wrapping_add(sum), e, f, g];
            }
            for (word, more) in state.iter_mut().zip(mixed) {
                *word = word.wrapping_add(more);
            }
        }
        const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let digest: Vec<u8> = state.iter().flat_map(|word| word.to_be_bytes()).collect();
        let letters = digest.chunks(3).flat_map(|three| {
            let bits = three.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte));
            let bits = bits << (8 * (3 - three.len()));
            (0..=three.len()).map(move |at| LETTERS[(bits >> (18 - 6 * at) & 63) as usize] as char)
        });
        letters.chain("=".chars()).collect()
    }

    #[test]
    fn the_policy_allows_what_the_page_has() {
        assert_eq!(hash("abc"), "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=");
        for (kind, text) in [("script", SCRIPT), ("style", STYLE)] {
            let allowed = format!("{kind}-src 'sha256-{}'", hash(text));
            assert!(POLICY.contains(&allowed), "the policy lacks {allowed}");
            assert!(!text.contains("</") && !text.contains("<!--") && !text.contains('\r'));
        }
    }
}
