//! One clock for all processes of the machine, and medians.

use rustix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC` in microseconds: the same in every process outside of time namespaces.
pub(crate) fn now_us() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() / 1_000
}

/// Milliseconds between two times of [`now_us`].
pub(crate) fn ms(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 / 1e3
}

/// The median; of an even number of values the mean of the two in the middle. None of nothing.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 0 => Some(sorted[middle - 1].midpoint(sorted[middle])),
        _ => Some(sorted[middle]),
    }
}

/// The smallest value that so many of 100 do not exceed. None of nothing.
pub(crate) fn percentile(values: &[f64], hundredths: usize) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get((sorted.len() * hundredths).div_ceil(100).checked_sub(1)?).copied()
}

/// The same of 95.
pub(crate) fn p95(values: &[f64]) -> Option<f64> {
    percentile(values, 95)
}

#[cfg(test)]
mod tests {
    use super::{median, p95};

    #[test]
    fn of_few_values_the_95th_percentile_is_the_largest() {
        assert_eq!(p95(&[]), None);
        assert_eq!(p95(&[3.0, 1.0, 2.0]), Some(3.0));
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(p95(&hundred), Some(95.0));
    }

    #[test]
    fn a_median_does_not_depend_on_order_or_outliers() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[900.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
