//! What `kubectl get` prints, and the times.

use anyhow::{Context as _, Result};
use comfy_table::Table;
use serde::Deserialize;
use serde_json::{Value, json};
use woodfrog_api::Checkpoint;
use woodfrog_testcluster::Cluster;

use crate::clock::median;
use crate::report;

/// All that was measured of an application. Times in milliseconds.
#[derive(Clone, Debug)]
pub(super) struct Row {
    application: String,
    compressed_bytes: i64,
    memory_bytes: i64,
    freeze: f64,
    pub(super) cold: Vec<f64>,
    pub(super) warm: Vec<f64>,
    pub(super) scale: Vec<f64>,
}

impl Row {
    /// What a Checkpoint that is Ready says of itself.
    pub(super) fn new(checkpoint: &Checkpoint) -> Self {
        let containers =
            checkpoint.status.as_ref().map(|status| status.containers.as_slice()).unwrap_or_default();
        Self {
            application: checkpoint.metadata.name.clone().unwrap_or_default(),
            compressed_bytes: containers.iter().map(|container| container.compressed_bytes).sum(),
            memory_bytes: containers.iter().map(|container| container.memory_bytes).sum(),
            freeze: containers.iter().map(|container| container.freeze_ms).max().unwrap_or(0) as f64,
            cold: Vec::new(),
            warm: Vec::new(),
            scale: Vec::new(),
        }
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        let median = |values: &[f64]| median(values).map(|ms| (ms * 10.0).round() / 10.0);
        json!({
            "application": self.application,
            "compressed_bytes": self.compressed_bytes,
            "memory_bytes": self.memory_bytes,
            "freeze_ms": self.freeze,
            "cold_pod_ms": median(&self.cold),
            "warm_pod_ms": median(&self.warm),
            "scale_ms": median(&self.scale),
        })
    }
}

/// The times, an application a line.
pub(super) fn times(rows: &[Row]) -> Table {
    let mut table = report::table();
    table.set_header([
        "application",
        "memory",
        "pushed",
        "freeze",
        "cold pod",
        "warm pod",
        "cold ÷ warm",
        "scale",
    ]);
    let ms = |values: &[f64]| median(values).map_or("–".to_owned(), |ms| format!("{ms:.0} ms"));
    for row in rows {
        let ratio = median(&row.cold).zip(median(&row.warm)).map(|(cold, warm)| cold / warm);
        table.add_row([
            row.application.clone(),
            format!("{:.0} MB", row.memory_bytes as f64 / 1e6),
            format!("{:.0} MB", row.compressed_bytes as f64 / 1e6),
            ms(&[row.freeze]),
            ms(&row.cold),
            ms(&row.warm),
            ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.1}")),
            ms(&row.scale),
        ]);
    }
    report::right(&mut table);
    table
}

/// What `kubectl get RESOURCE` prints: the server makes that table, for kubectl as for us (meta.k8s.io/v1 Table).
pub(super) async fn get(cluster: &Cluster<'_>, resource: &str) -> Result<String> {
    let path = format!("/apis/woodfrog.dev/v1alpha1/namespaces/{}/{resource}", cluster.namespace);
    let request = http::Request::get(path).header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let answer: Answer = cluster.client.request(request.body(Vec::new())?).await.context("no table")?;
    Ok(answer.text())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    column_definitions: Vec<Column>,
    rows: Vec<Cells>,
}

#[derive(Deserialize)]
struct Column {
    name: String,
    /// 0: shown without `-o wide`.
    priority: i32,
}

#[derive(Deserialize)]
struct Cells {
    cells: Vec<Value>,
}

impl Answer {
    fn text(&self) -> String {
        let shown: Vec<usize> = (0..self.column_definitions.len())
            .filter(|column| self.column_definitions[*column].priority == 0)
            .collect();
        let header =
            shown.iter().map(|column| self.column_definitions[*column].name.to_uppercase()).collect();
        let cell = |value: &Value| {
            value.as_str().map_or_else(|| value.to_string(), str::to_owned).replace("null", "")
        };
        let rows = self.rows.iter().map(|row| shown.iter().map(|column| cell(&row.cells[*column])).collect());
        let lines: Vec<Vec<String>> = std::iter::once(header).chain(rows).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..shown.len()).map(width).collect();
        let mut text = String::new();
        for line in &lines {
            let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}   "));
            text += cells.collect::<String>().trim_end();
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_looks_as_kubectl_prints_it() {
        let answer: Answer = serde_json::from_value(json!({
            "columnDefinitions": [
                { "name": "Name", "priority": 0 }, { "name": "Image", "priority": 1 }, { "name": "Ready", "priority": 0 },
                { "name": "Size", "priority": 0 },
            ],
            "rows": [{ "cells": ["python", "x", 2, null] }, { "cells": ["web", "x", 10, "61 MiB"] }],
        }))
        .unwrap();
        assert_eq!(answer.text(), "NAME     READY   SIZE\npython   2\nweb      10      61 MiB\n");
    }
}
