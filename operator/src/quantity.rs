//! Quantities of Kubernetes (`500m`, `1.5Gi`, `1e3`) as numbers: the API server writes them otherwise than people do, so texts cannot be
//! compared. The syntax is that of `k8s.io/apimachinery/pkg/api/resource`.

/// How many of our units are one.
const UNIT: i128 = 1_000_000_000;

/// The powers of ten that a quantity may have: those that have a letter.
const EXPONENTS: std::ops::RangeInclusive<i32> = -9..=18;

/// A quantity in billionths, which is as exact as Kubernetes is; none if it is not one, or too large to be one of a pod.
pub(crate) fn nano(text: &str) -> Option<i128> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if number.len() > 18 || fraction.len() > 9 || fraction.contains('.') || whole.len() + fraction.len() == 0
    {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let number = digits * UNIT / 10_i128.pow(fraction.len() as u32);
    scale(number, suffix)
}

fn scale(number: i128, suffix: &str) -> Option<i128> {
    let binary = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].iter().position(|known| *known == suffix);
    if let Some(power) = binary {
        return number.checked_mul(1 << (10 * power));
    }
    let exponent = match suffix {
        "n" => -9,
        "u" => -6,
        "m" => -3,
        "k" => 3,
        "M" => 6,
        "G" => 9,
        "T" => 12,
        "P" => 15,
        "E" => 18,
        _ => suffix.strip_prefix(['e', 'E'])?.parse().ok().filter(|exponent| EXPONENTS.contains(exponent))?,
    };
    let factor = 10_i128.pow(exponent.unsigned_abs());
    if exponent < 0 { Some(number / factor) } else { number.checked_mul(factor) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantity_is_the_same_number_however_it_is_written() {
        for (one, other) in [
            ("1", "1000m"),
            ("0.5", "500m"),
            (".5", "500000u"),
            ("1Gi", "1024Mi"),
            ("1.5Gi", "1536Mi"),
            ("1e3", "1k"),
            ("2E", "2E18"),
            ("100e-3", "100m"),
        ] {
            assert!(nano(one).is_some() && nano(one) == nano(other), "{one} {other}");
        }
        assert!(nano("1G") < nano("1Gi") && nano("999m") < nano("1"));
    }

    #[test]
    fn what_is_no_quantity_is_none() {
        for text in
            ["", ".", "m", "1.2.3", "1e99", "1x", "-1", "one", "1234567890123456789", "99999999999999999Ei"]
        {
            assert_eq!(nano(text), None, "{text}");
        }
    }
}
