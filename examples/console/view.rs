//! The live view: like top(1), for one server.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table};
use serde_json::Value;

use crate::client::Client;
use crate::sample::{SORTS, Sample, short, short_time};

/// What is shown.
#[derive(Default)]
pub(crate) struct View {
    pub(crate) now: Sample,
    pub(crate) before: Sample,
    /// Which of [`SORTS`] the connections are sorted by.
    pub(crate) sort: usize,
}

/// Shows a server until `q` is pressed, or it hangs up.
pub(crate) fn run(client: &mut Client, interval: Duration) -> io::Result<()> {
    if !io::stdout().is_terminal() {
        return Err(io::Error::other("the live view needs a terminal; ask a question instead"));
    }
    let mut terminal = ratatui::try_init()?;
    let outcome = show(client, interval, &mut terminal);
    ratatui::try_restore()?;
    outcome
}

fn show(
    client: &mut Client,
    interval: Duration,
    terminal: &mut ratatui::DefaultTerminal,
) -> io::Result<()> {
    let mut view = View::default();
    loop {
        let now = Sample::take(client, SORTS[view.sort])?;
        view.before = std::mem::replace(&mut view.now, now);
        terminal.draw(|frame| view.draw(frame))?;
        if !wait_for_keys(&mut view, interval)? {
            return Ok(());
        }
    }
}

/// Waits for the time of the next sample, or a key that wants one. Returns whether the view goes on.
fn wait_for_keys(view: &mut View, interval: Duration) -> io::Result<bool> {
    #[expect(clippy::disallowed_methods, reason = "the view is for people, in their time")]
    let now = Instant::now;
    let until = end_of(interval, now());
    while event::poll(until.saturating_duration_since(now()))? {
        let Event::Key(key) = event::read()? else { return Ok(true) };
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Ok(false),
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                return Ok(false);
            }
            KeyCode::Char('s') => {
                view.sort = (view.sort + 1) % SORTS.len();
                return Ok(true);
            }
            _ => {}
        }
    }
    Ok(true)
}

/// When an interval that begins now is over. None is longer than a year, as the clock has an end.
fn end_of(interval: Duration, now: Instant) -> Instant {
    now + interval.min(Duration::from_secs(365 * 24 * 60 * 60))
}

impl View {
    pub(crate) fn draw(&self, frame: &mut Frame<'_>) {
        let rows = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(8),
            Constraint::Min(3),
            Constraint::Length(1),
        ]);
        let [head, middle, connections, foot] = rows.areas(frame.area());
        let thirds = Layout::horizontal([
            Constraint::Ratio(1, 3),
            Constraint::Ratio(1, 3),
            Constraint::Ratio(1, 3),
        ]);
        let [rates, states, reasons] = thirds.areas(middle);
        self.draw_head(frame, head);
        self.draw_rates(frame, rates);
        self.draw_loop(frame, states);
        self.draw_reasons(frame, reasons);
        self.draw_connections(frame, connections);
        frame.render_widget(Line::from("q quits, s sorts by another number"), foot);
    }

    fn draw_head(&self, frame: &mut Frame<'_>, area: Rect) {
        let now = &self.now;
        let is_ready = now.stats.get("ready").and_then(Value::as_bool).unwrap_or_default();
        let ready = if is_ready { "ready" } else { now.text("unready_because") };
        let text = format!(
            "wheelhouse {}  up {}  {ready}",
            now.text("version"),
            short_time(now.number("uptime"))
        );
        frame
            .render_widget(Line::from(text).style(Style::new().add_modifier(Modifier::BOLD)), area);
    }

    fn draw_rates(&self, frame: &mut Frame<'_>, area: Rect) {
        let names = [
            ("requests", "requests"),
            ("accepted", "accepted"),
            ("dialled", "dialled"),
            ("bytes in", "bytes_in"),
            ("bytes out", "bytes_out"),
            ("turns", "turns"),
        ];
        let lines = names.map(|(label, name)| {
            let (rate, total) = (self.now.rate(&self.before, name), self.now.number(name));
            format!("{label:<10}{:>9}/s{:>10}", short(rate), short(total))
        });
        draw_lines(frame, area, "Rates, and totals", &lines);
    }

    fn draw_loop(&self, frame: &mut Frame<'_>, area: Rect) {
        let now = &self.now;
        let count = |name: &str| short(now.number(&format!("state_{name}")));
        let lines = [
            format!("connected {:>7}  idle    {:>7}", count("connected"), count("idle")),
            format!("connecting {:>6}  closing {:>7}", count("connecting"), count("closing")),
            format!("buffered {:>8}", short(now.number("buffered"))),
            format!(
                "pressure {:>7.1}%  lag {:>10.1}%",
                now.number("pressure_permille") / 10.0,
                now.number("lag_permille") / 10.0
            ),
            format!(
                "worst turn {:>6} ({})",
                short_time(now.number("worst_turn")),
                now.text("worst_step")
            ),
            format!(
                "stalls {:>10}  panics {:>8}",
                short(now.number("stalls")),
                short(now.number("panics"))
            ),
        ];
        draw_lines(frame, area, "Connections, and the loop", &lines);
    }

    fn draw_reasons(&self, frame: &mut Frame<'_>, area: Rect) {
        let reasons = self.now.reasons();
        let lines: Vec<_> = reasons
            .iter()
            .take(6)
            .map(|(name, count)| {
                let rate = self.now.rate(&self.before, &format!("closed_{name}"));
                format!("{name:<20}{:>8}{:>9}/s", short(*count), short(rate))
            })
            .collect();
        draw_lines(frame, area, "Why connections ended", &lines);
    }

    fn draw_connections(&self, frame: &mut Frame<'_>, area: Rect) {
        const COLUMNS: [(&str, u16); 10] = [
            ("id", 10),
            ("peer", 21),
            ("state", 10),
            ("age", 7),
            ("requests", 8),
            ("bytes_in", 8),
            ("bytes_out", 9),
            ("queued", 7),
            ("unread", 7),
            ("next", 20),
        ];
        let rows = self.now.connections.iter().map(|it| {
            let text = |name: &str| it[name].as_str().unwrap_or("-").to_owned();
            let number = |name: &str| short(it[name].as_f64().unwrap_or_default());
            let next = match it["due_in"].as_f64() {
                Some(left) => format!("{} in {}", text("deadline"), short_time(left)),
                None => "-".into(),
            };
            Row::new(COLUMNS.map(|(name, _)| {
                Cell::from(match name {
                    "next" => next.clone(),
                    "age" => short_time(it["age"].as_f64().unwrap_or_default()),
                    "id" | "peer" | "state" => text(name),
                    name => number(name),
                })
            }))
        });
        let title = format!("Connections with the most by {}", SORTS[self.sort]);
        let head = Row::new(COLUMNS.map(|(name, _)| name))
            .style(Style::new().add_modifier(Modifier::BOLD));
        let table = Table::new(rows, COLUMNS.map(|(_, width)| Constraint::Length(width)))
            .header(head)
            .block(Block::new().borders(Borders::ALL).title(title));
        frame.render_widget(table, area);
    }
}

fn draw_lines(frame: &mut Frame<'_>, area: Rect, title: &str, lines: &[String]) {
    let lines: Vec<_> = lines.iter().map(|line| Line::from(line.as_str())).collect();
    let block = Block::new().borders(Borders::ALL).title(title);
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;

    fn sample(uptime: f64, requests: u64) -> Sample {
        let Value::Object(stats) = json!({
            "version": "0.1.0", "uptime": uptime, "ready": true, "requests": requests,
            "state_idle": 41, "worst_turn": 0.012, "worst_step": "posts", "closed_peer_eof": 7,
        }) else {
            panic!("an object")
        };
        let connections = vec![json!({
            "id": "3.1", "peer": "192.0.2.7:4000", "state": "idle", "age": 61.0,
            "queued": 12_000, "deadline": "idle", "due_in": 14.0,
        })];
        Sample { stats, connections }
    }

    fn drawn(width: u16, height: u16) -> String {
        let view = View { now: sample(12.0, 300), before: sample(10.0, 100), sort: 0 };
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn the_view_shows_rates_states_reasons_and_connections() {
        let text = drawn(132, 24);
        for part in [
            "up 12.0s  ready",
            "100/s",
            "worst turn   12ms (posts)",
            "peer_eof",
            "most by queued",
            "192.0.2.7:4000",
            "idle in 14.0s",
            "1m01s",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn any_interval_has_an_end() {
        #[expect(clippy::disallowed_methods, reason = "as above")]
        let now = Instant::now();
        assert_eq!(end_of(Duration::from_secs(1), now), now + Duration::from_secs(1));
        assert!(end_of(Duration::MAX, now) > now);
    }

    #[test]
    fn any_size_of_terminal_can_be_drawn_on() {
        for (width, height) in [(1, 1), (20, 5), (80, 24), (300, 100)] {
            drawn(width, height);
        }
    }
}
