//! Pictures (SVG) of what `woodfrog-bench thaw` measures.

use std::path::Path;

use anyhow::{Context, Result};
use plotters::prelude::*;

use crate::args::Mode;
use crate::report::{Metric, Record};
use crate::thaw::Measured;

const SIZE: (u32, u32) = (900, 420);
const FONT: (&str, u32) = ("sans-serif", 14);

/// Draws all that there is something to draw for.
pub(crate) fn draw(directory: &Path, all: &[Measured]) -> Result<()> {
    std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let (sized, applications): (Vec<&Measured>, Vec<&Measured>) =
        all.iter().partition(|measured| measured.workload.megabytes().is_some());
    if !applications.is_empty() {
        responses(&directory.join("thaw-applications.svg"), &applications)?;
    }
    if !sized.is_empty() {
        sizes(&directory.join("thaw-sizes.svg"), &sized)?;
    }
    phases(&directory.join("thaw-phases.svg"), &all.iter().collect::<Vec<_>>())
}

/// A group of bars for each application, a bar for each mode.
fn responses(file: &Path, all: &[&Measured]) -> Result<()> {
    let modes: Vec<Mode> = all[0].records.iter().map(|(mode, _)| *mode).collect();
    let values = all.iter().flat_map(|measured| modes.iter().filter_map(|mode| response(measured, *mode)));
    let top = values.fold(10.0, f64::max) * 1.3;
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("From the trigger to the first response (median)", ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(60)
        // Room for the legend on the right.
        .build_cartesian_2d(0.0..all.len() as f64 + 0.8, (5.0..top).log_scale())?;
    let name = |x: &f64| all.get(*x as usize).map_or(String::new(), |m| m.workload.name().to_owned());
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(all.len() * 2 + 2)
        .x_label_formatter(&|x| if (x.fract() - 0.5).abs() < 0.01 { name(x) } else { String::new() })
        .y_label_formatter(&|ms| format!("{ms:.0} ms"))
        .label_style(FONT)
        .draw()?;
    let width = 0.84 / modes.len() as f64;
    for (index, mode) in modes.iter().enumerate() {
        let bars = all.iter().enumerate().filter_map(|(group, measured)| {
            let left = group as f64 + 0.08 + index as f64 * width;
            let corners = [(left, 5.0), (left + width * 0.9, response(measured, *mode)?)];
            Some(Rectangle::new(corners, colour(*mode).filled()))
        });
        chart
            .draw_series(bars)?
            .label(mode.name())
            .legend(|(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], colour(*mode).filled()));
    }
    legend(&mut chart, SeriesLabelPosition::UpperRight)?;
    root.present()?;
    Ok(())
}

/// A line for each mode, over the size of a synthetic server.
fn sizes(file: &Path, all: &[&Measured]) -> Result<()> {
    let modes: Vec<Mode> = all[0].records.iter().map(|(mode, _)| *mode).collect();
    let megabytes = |measured: &&&Measured| f64::from(measured.workload.megabytes().unwrap_or_default());
    let (low, high) = all
        .iter()
        .map(|measured| megabytes(&measured))
        .fold((f64::MAX, 1.0_f64), |(low, high), mb| (low.min(mb), high.max(mb)));
    let values = all.iter().flat_map(|measured| modes.iter().filter_map(|mode| response(measured, *mode)));
    let top = values.fold(10.0, f64::max) * 1.3;
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(
            "First response of a synthetic server, by its memory and threads (median)",
            ("sans-serif", 18),
        )
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d((low * 0.8..high * 1.25).log_scale(), (5.0..top).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("MB of memory")
        .x_label_formatter(&|mb| format!("{mb:.0}"))
        .y_label_formatter(&|ms| format!("{ms:.0} ms"))
        .label_style(FONT)
        .draw()?;
    for mode in &modes {
        let mut points: Vec<(f64, f64)> = all
            .iter()
            .filter_map(|measured| Some((megabytes(&measured), response(measured, *mode)?)))
            .collect();
        points.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 4, colour(*mode).filled())))?;
        chart
            .draw_series(LineSeries::new(points, colour(*mode).stroke_width(2)))?
            .label(mode.name())
            .legend(|(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], colour(*mode).filled()));
    }
    legend(&mut chart, SeriesLabelPosition::UpperLeft)?;
    root.present()?;
    Ok(())
}

/// A bar of phases for each workload and way of Woodfrog's: where the milliseconds to the first response go.
fn phases(file: &Path, all: &[&Measured]) -> Result<()> {
    let bars: Vec<(String, Vec<(&str, f64)>)> = all.iter().flat_map(|measured| bars_of(measured)).collect();
    let longest = bars.iter().map(|(_, parts)| parts.iter().map(|(_, ms)| ms).sum::<f64>());
    let longest = longest.fold(1.0, f64::max);
    let root = SVGBackend::new(file, (SIZE.0, 150 + 28 * bars.len() as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("A thaw by its phases, and CRIU's steps within it (medians)", ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(190)
        .build_cartesian_2d(0.0..longest * 1.3, 0.0..bars.len() as f64)?;
    let name = |y: &f64| bars.get(*y as usize).map_or(String::new(), |(name, _)| name.clone());
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(bars.len() * 2 + 1)
        .y_label_formatter(&|y| if (y.fract() - 0.5).abs() < 0.01 { name(y) } else { String::new() })
        .x_label_formatter(&|ms| format!("{ms:.0} ms"))
        .label_style(FONT)
        .draw()?;
    for (index, title) in parts().map(|part| part.title()).chain([ANSWER]).enumerate() {
        let colour = Palette99::pick(index).to_rgba();
        let rectangles = bars.iter().enumerate().filter_map(|(row, (_, parts))| {
            let part = parts.iter().position(|(other, _)| *other == title)?;
            let left: f64 = parts[..part].iter().map(|(_, ms)| ms).sum();
            let corners = [(left, row as f64 + 0.15), (left + parts[part].1, row as f64 + 0.85)];
            Some(Rectangle::new(corners, colour.filled()))
        });
        chart
            .draw_series(rectangles)?
            .label(title)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], colour.filled()));
    }
    legend(&mut chart, SeriesLabelPosition::UpperRight)?;
    root.present()?;
    Ok(())
}

/// What comes after the phases: the application's own part.
const ANSWER: &str = "first response";

/// The phases in order, with CRIU's steps before what else there is of the same phase.
fn parts() -> impl Iterator<Item = Metric> {
    Metric::PHASES.into_iter().flat_map(|phase| steps_of(phase).iter().copied().chain([phase]))
}

const fn steps_of(phase: Metric) -> &'static [Metric] {
    match phase {
        Metric::Check => &[Metric::CriuImages],
        Metric::Restore => &[Metric::CriuTasks],
        Metric::Resume => &[Metric::CriuCatch, Metric::CriuRelease],
        _ => &[],
    }
}

fn bars_of(measured: &Measured) -> Vec<(String, Vec<(&'static str, f64)>)> {
    let ours = measured.records.iter().filter(|(mode, _)| mode.is_ours());
    let bar = |(mode, record): &(Mode, Record)| {
        let own = |part| {
            let steps: f64 = steps_of(part).iter().filter_map(|step| record.median(*step)).sum();
            Some((part.title(), (record.median(part)? - steps).max(0.0)))
        };
        let mut bar: Vec<_> = parts().filter_map(own).collect();
        let phases: f64 = bar.iter().map(|(_, ms)| ms).sum();
        bar.push((ANSWER, (record.median(Metric::Response)? - phases).max(0.0)));
        Some((format!("{}, {}", measured.workload.name(), mode.name()), bar))
    };
    ours.filter_map(bar).collect()
}

fn legend<'a, X: plotters::coord::ranged1d::Ranged, Y: plotters::coord::ranged1d::Ranged>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>,
    position: SeriesLabelPosition,
) -> Result<()> {
    chart
        .configure_series_labels()
        .position(position)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .label_font(FONT)
        .draw()?;
    Ok(())
}

fn response(measured: &Measured, mode: Mode) -> Option<f64> {
    measured.median(mode, Metric::Response)
}

const fn colour(mode: Mode) -> RGBColor {
    match mode {
        Mode::Cold => RGBColor(0x99, 0x99, 0x99),
        Mode::Runc => RGBColor(0xc4, 0x4e, 0x52),
        Mode::Containerd => RGBColor(0x93, 0x78, 0x60),
        Mode::Criu => RGBColor(0xdd, 0x84, 0x52),
        Mode::CriuLazy => RGBColor(0xcc, 0xb9, 0x74),
        Mode::Copied => RGBColor(0x4c, 0x72, 0xb0),
        Mode::Shared => RGBColor(0x55, 0xa8, 0x68),
    }
}
