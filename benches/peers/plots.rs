//! Draws what the comparisons measured: reads charts as JSON from its input and writes each as an SVG
//! to a directory.
//!
//! ```text
//! bench-plots DIRECTORY < CHARTS
//! ```
//!
//! A chart has a `file` and a `title`. One of ratios has an `axis` and `rows`, each with a `name`, `low`,
//! `middle` and `high`; one of lines has names of the axes, `x` and `y`, the `ticks` of x, and `lines`,
//! each with a `name` and its `points`, one for each tick.

use std::error::Error;
use std::path::PathBuf;
use std::{env, io};

use plotters::coord::Shift;
use plotters::prelude::*;
use serde_json::Value;

const WIDTH: u32 = 860;
const ROW_HEIGHT: u32 = 26;
/// Title, axis and margins.
const FRAME_HEIGHT: u32 = 110;
const LINES_HEIGHT: u32 = 420;
const TITLE: (&str, u32) = ("sans-serif", 18);
const MARK: i32 = 4;
/// Times the greatest value: the names of the lines stand above them.
const ROOM_FOR_LEGEND: f64 = 1.6;

const COLORS: [RGBColor; 8] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(255, 127, 14),
    RGBColor(23, 190, 207),
    RGBColor(140, 86, 75),
    RGBColor(127, 127, 127),
];

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let directory = PathBuf::from(env::args_os().nth(1).ok_or("usage: bench-plots DIRECTORY")?);
    let charts: Value = serde_json::from_reader(io::stdin())?;
    for chart in list(&charts)? {
        let path = directory.join(text(chart, "file")?);
        let ratios = chart["rows"].as_array();
        let height =
            ratios.map_or(LINES_HEIGHT, |rows| FRAME_HEIGHT + ROW_HEIGHT * rows.len() as u32);
        let area = SVGBackend::new(&path, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE)?;
        if ratios.is_some() {
            draw_ratios(&area, chart)?;
        } else {
            draw_lines(&area, chart)?;
        }
        area.present()?;
    }
    Ok(())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A row for each server: the quartiles as a line, the median as a dot on it.
fn draw_ratios(area: &Area<'_>, chart: &Value) -> Outcome<()> {
    let mut rows = Vec::new();
    // From the bottom up.
    for row in list(&chart["rows"])?.iter().rev() {
        let [low, middle, high] = ["low", "middle", "high"].map(|key| number(&row[key]));
        rows.push((text(row, "name")?, low?, middle?, high?));
    }
    let left = rows.iter().map(|row| row.1).fold(0.9, f64::min) - 0.02;
    let right = rows.iter().map(|row| row.3).fold(1.1, f64::max) + 0.02;
    let mut plot = ChartBuilder::on(area)
        .caption(text(chart, "title")?, TITLE)
        .margin(10)
        .x_label_area_size(44)
        .y_label_area_size(140)
        .build_cartesian_2d(left..right, (0..last(&rows)?).into_segmented())?;
    let name = |place: &SegmentValue<usize>| match place {
        SegmentValue::CenterOf(index) => rows.get(*index).map_or("", |row| row.0).to_owned(),
        _ => String::new(),
    };
    plot.configure_mesh()
        .disable_y_mesh()
        .max_light_lines(1)
        .y_labels(rows.len())
        .y_label_formatter(&name)
        .x_label_formatter(&|ratio| format!("{ratio:.2}"))
        .x_desc(text(chart, "axis")?)
        .draw()?;
    let bottom_and_top = [SegmentValue::Exact(0), SegmentValue::Exact(rows.len())];
    plot.draw_series([PathElement::new(bottom_and_top.map(|end| (1.0, end)), BLACK)])?;
    for (index, (_, low, middle, high)) in rows.iter().enumerate() {
        let at = |ratio: f64| (ratio, SegmentValue::CenterOf(index));
        let spread = COLORS[0].stroke_width(2);
        plot.draw_series([PathElement::new([at(*low), at(*high)], spread)])?;
        plot.draw_series([Circle::new(at(*middle), MARK, COLORS[0].filled())])?;
    }
    Ok(())
}

/// A line for each server, over ticks that are evenly spaced.
fn draw_lines(area: &Area<'_>, chart: &Value) -> Outcome<()> {
    let ticks = list(&chart["ticks"])?;
    let mut lines = Vec::new();
    for line in list(&chart["lines"])? {
        let points = list(&line["points"])?.iter().map(number).collect::<Outcome<Vec<_>>>()?;
        lines.push((text(line, "name")?, points));
    }
    let top = lines.iter().flat_map(|line| &line.1).fold(f64::MIN_POSITIVE, |top, y| top.max(*y));
    let mut plot = ChartBuilder::on(area)
        .caption(text(chart, "title")?, TITLE)
        .margin(10)
        .x_label_area_size(44)
        .y_label_area_size(70)
        .build_cartesian_2d((0..last(ticks)?).into_segmented(), 0.0..top * ROOM_FOR_LEGEND)?;
    let tick = |place: &SegmentValue<usize>| match place {
        SegmentValue::CenterOf(index) => {
            ticks.get(*index).and_then(Value::as_str).unwrap_or_default().to_owned()
        }
        _ => String::new(),
    };
    plot.configure_mesh()
        .disable_x_mesh()
        .max_light_lines(1)
        .x_labels(ticks.len())
        .x_label_formatter(&tick)
        .y_label_formatter(&|y| y.to_string())
        .x_desc(text(chart, "x")?)
        .y_desc(text(chart, "y")?)
        .draw()?;
    for ((name, points), color) in lines.into_iter().zip(COLORS.iter().cycle()) {
        let places = points.into_iter().enumerate().map(|(at, y)| (SegmentValue::CenterOf(at), y));
        let places: Vec<_> = places.collect();
        plot.draw_series(places.iter().map(|at| Circle::new(at.clone(), MARK, color.filled())))?;
        plot.draw_series([PathElement::new(places, color.stroke_width(2))])?
            .label(name)
            .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
    }
    plot.configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.4))
        .draw()?;
    Ok(())
}

/// The last index; an axis has one place at least.
fn last<T>(places: &[T]) -> Outcome<usize> {
    Ok(places.len().checked_sub(1).ok_or("a chart without anything on it")?)
}

fn list(value: &Value) -> Outcome<&[Value]> {
    Ok(value.as_array().ok_or("a list is needed")?)
}

fn text<'a>(chart: &'a Value, key: &str) -> Outcome<&'a str> {
    chart[key].as_str().ok_or_else(|| format!("a chart or a line without {key}").into())
}

fn number(value: &Value) -> Outcome<f64> {
    value.as_f64().ok_or_else(|| format!("no number: {value}").into())
}
