//! The report as a page of its own, which needs no network.

use std::fmt::Write as _;

use plotters::prelude::*;

use crate::report::{Report, time};
use crate::tally::Second;

const SIZE: (u32, u32) = (860, 320);

/// The page, with its plots in it.
pub(crate) fn page(report: &Report<'_>) -> String {
    let title = escape(&report.title);
    let mut rows = String::new();
    let mut row = |name: &str, value: &str| {
        let _ = write!(rows, "<tr><th>{}</th><td>{}</td></tr>", escape(name), escape(value));
    };
    row("measured", &format!("{:.1} s", report.measured.as_secs_f64()));
    row("replies", &format!("{} ({:.1}/s)", report.tally.replies(), report.rate()));
    for (name, latency) in report.quantiles() {
        row(name, &time(latency));
    }
    for (kind, count) in report.tally.errors() {
        row(kind, &count.to_string());
    }
    let seconds = report.tally.seconds();
    let millis = |second: &Second| second.p99 as f64 / 1e6;
    let mut plots = String::new();
    for (heading, plot) in [
        ("Latency by percentile, in milliseconds", percentiles(report)),
        ("Replies in each second", over_time(seconds, |second| second.rate)),
        ("99th percentile of each second, in milliseconds", over_time(seconds, millis)),
    ] {
        let plot = plot.unwrap_or_else(|error| format!("<p>{}</p>", escape(&error)));
        let _ = write!(plots, "<h2>{heading}</h2>{plot}");
    }
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title><style>\
         body{{font:16px system-ui,sans-serif;margin:2em auto;max-width:{}px;padding:0 1em}}\
         svg{{width:100%;height:auto}}th{{text-align:left;padding-right:2em}}h2{{font-size:1em}}\
         </style></head><body><h1>{title}</h1><table>{rows}</table>{plots}</body></html>\n",
        SIZE.0
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The latency of each percentile. To the right each decade is ten times as rare.
fn percentiles(report: &Report<'_>) -> Result<String, String> {
    let latencies = report.tally.latencies();
    let rarest = (latencies.len() as f64).max(10.0);
    let decades = rarest.log10();
    let steps = 200;
    let points: Vec<_> = (0..=steps)
        .map(|step| {
            let decade = decades * f64::from(step) / f64::from(steps);
            let latency = latencies.value_at_quantile(1.0 - 10_f64.powf(-decade));
            (decade, latency as f64 / 1e6)
        })
        .collect();
    let name = |decade: &f64| match decade.round() as usize {
        0 => "0 %".to_owned(),
        1 => "90 %".to_owned(),
        2 => "99 %".to_owned(),
        nines => format!("99.{} %", "9".repeat(nines - 2)),
    };
    draw(&points, decades, decades as usize + 1, &name)
}

fn over_time(seconds: &[Second], value: impl Fn(&Second) -> f64) -> Result<String, String> {
    let points: Vec<_> = seconds.iter().map(|second| (second.ended_at, value(second))).collect();
    let right = points.last().map_or(1.0, |point| point.0);
    draw(&points, right, 10, &|at| format!("{at:.1} s"))
}

/// A line through `points`, from 0 to `right`.
fn draw(
    points: &[(f64, f64)],
    right: f64,
    labels: usize,
    name: &dyn Fn(&f64) -> String,
) -> Result<String, String> {
    let top = points.iter().map(|point| point.1).fold(f64::MIN_POSITIVE, f64::max) * 1.1;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let draw = || {
            let mut chart = ChartBuilder::on(&area)
                .margin(8)
                .x_label_area_size(28)
                .y_label_area_size(64)
                .build_cartesian_2d(0.0..right, 0.0..top)?;
            chart.configure_mesh().x_labels(labels).x_label_formatter(&name).draw()?;
            chart.draw_series(LineSeries::new(points.iter().copied(), &BLUE))?;
            area.present()
        };
        draw().map_err(|error| error.to_string())?;
    }
    Ok(svg)
}
