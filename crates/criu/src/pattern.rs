//! Patterns for log lines: literal text with `{}` where something is to be captured.

/// What stands in the places of `{}`, if the pattern is found anywhere in the text. A capture ends where the literal text
/// after it begins; the last one, at the end of a pattern, takes the rest. After a capture, a pattern's literal text may
/// stand anywhere further on.
pub(crate) fn captures<'a>(pattern: &str, text: &'a str) -> Option<Vec<&'a str>> {
    let mut literals = pattern.split("{}");
    let first = literals.next()?;
    let mut rest = &text[text.find(first)? + first.len()..];
    let mut captures = Vec::new();
    for literal in literals {
        let end = if literal.is_empty() { rest.len() } else { rest.find(literal)? };
        captures.push(rest[..end].trim());
        rest = &rest[end + literal.len()..];
    }
    Some(captures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captures_end_where_the_text_after_them_begins() {
        let text = "inet: File tmp/a b has bad size 5 (expect 3)";
        assert_eq!(captures("File {} has bad size {} (expect {})", text), Some(vec!["tmp/a b", "5", "3"]));
    }

    #[test]
    fn a_pattern_that_is_not_there_captures_nothing() {
        assert_eq!(captures("File {} has bad mode {}", "File a has bad size 5"), None);
    }

    #[test]
    fn a_pattern_without_captures_is_found_anywhere() {
        assert_eq!(captures("has bad", "File a has bad size 5"), Some(vec![]));
    }
}
