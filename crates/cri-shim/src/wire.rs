//! Protobuf's wire format, as far as needed to change a message and keep every byte that is not meant.
//!
//! ```text
//!   message = field*
//!   field   = tag value            tag: varint of (number << 3 | type)
//!   type 0  varint      1  8 bytes      2  length, bytes      3…4  group      5  4 bytes
//! ```
//!
//! Decoding into types and encoding again would drop the fields of newer CRI releases; here they are copied.
//! Source: <https://protobuf.dev/programming-guides/encoding/>.

/// Deepest nesting of groups that is skipped; CRI has none.
const MAX_GROUPS: u32 = 16;

/// Why bytes cannot be changed as a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("malformed protobuf at byte {0}")]
    Malformed(usize),
    #[error("field {0} is not there")]
    Absent(u32),
    #[error("field {0} occurs more than once, which would have to be merged")]
    Repeated(u32),
    #[error("field {0} is no message")]
    NotMessage(u32),
}

/// One field: its number, all its bytes with the tag, and its content if it is length-delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Field<'a> {
    pub(crate) number: u32,
    pub(crate) raw: &'a [u8],
    pub(crate) content: Option<&'a [u8]>,
}

/// The fields of `message` in order; ends after the first error.
pub(crate) fn fields(message: &[u8]) -> Fields<'_> {
    Fields { message, at: 0 }
}

/// See [`fields`].
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.message.len() {
            return None;
        }
        let start = self.at;
        let field = read_field(self.message, start).ok_or(WireError::Malformed(start));
        self.at = field.as_ref().map_or(self.message.len(), |field| start + field.raw.len());
        Some(field)
    }
}

fn read_field(message: &[u8], start: usize) -> Option<Field<'_>> {
    let mut at = start;
    let tag = varint(message, &mut at)?;
    let number = u32::try_from(tag >> 3).ok().filter(|n| (1..1 << 29).contains(n))?;
    let content = skip(message, &mut at, number, (tag & 7) as u8, 0)?;
    Some(Field { number, raw: &message[start..at], content })
}

/// Moves `at` behind a value; `Some(Some(…))` is the content of a length-delimited one.
fn skip<'a>(
    message: &'a [u8],
    at: &mut usize,
    number: u32,
    kind: u8,
    depth: u32,
) -> Option<Option<&'a [u8]>> {
    let fixed = match kind {
        0 => {
            varint(message, at)?;
            return Some(None);
        }
        1 => 8,
        2 => {
            let len = usize::try_from(varint(message, at)?).ok()?;
            let content = message.get(*at..at.checked_add(len)?)?;
            *at += len;
            return Some(Some(content));
        }
        3 if depth < MAX_GROUPS => loop {
            let tag = varint(message, at)?;
            let inner = u32::try_from(tag >> 3).ok()?;
            if tag & 7 == 4 {
                return (inner == number).then_some(None);
            }
            skip(message, at, inner, (tag & 7) as u8, depth + 1)?;
        },
        5 => 4,
        _ => return None,
    };
    *at += fixed;
    (*at <= message.len()).then_some(None)
}

fn varint(message: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *message.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a length-delimited field: a string, bytes or a message.
pub(crate) fn append(out: &mut Vec<u8>, number: u32, content: &[u8]) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

/// `message` without any field `number`.
///
/// # Errors
/// [`WireError::Malformed`].
pub(crate) fn without(message: &[u8], number: u32) -> Result<Vec<u8>, WireError> {
    let mut out = Vec::with_capacity(message.len());
    for field in fields(message) {
        let field = field?;
        if field.number != number {
            out.extend_from_slice(field.raw);
        }
    }
    Ok(out)
}

/// Makes a message of another.
pub(crate) type Change<'a> = dyn FnMut(&[u8]) -> Result<Vec<u8>, WireError> + 'a;

/// `message` with the message at `path` (field numbers from the outside in) replaced by what `change` makes of it,
/// in its place.
///
/// # Errors
/// Malformed bytes, a path that leads nowhere or to more than one place, or an error of `change`.
pub(crate) fn change(message: &[u8], path: &[u32], change_it: &mut Change<'_>) -> Result<Vec<u8>, WireError> {
    let Some((&number, rest)) = path.split_first() else { return change_it(message) };
    let mut out = Vec::with_capacity(message.len() + 1024);
    let mut found = false;
    for field in fields(message) {
        let field = field?;
        if field.number != number {
            out.extend_from_slice(field.raw);
            continue;
        }
        if std::mem::replace(&mut found, true) {
            return Err(WireError::Repeated(number));
        }
        let inner = field.content.ok_or(WireError::NotMessage(number))?;
        append(&mut out, number, &change(inner, rest, change_it)?);
    }
    if found { Ok(out) } else { Err(WireError::Absent(number)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Fields of every type, with numbers from 1 to 9.
    fn message() -> impl Strategy<Value = Vec<u8>> {
        let field = (1u32..10, 0u8..5, any::<u64>(), prop::collection::vec(any::<u8>(), 0..200)).prop_map(
            |(number, kind, value, content)| {
                let mut out = Vec::new();
                let tag = |kind: u64| u64::from(number) << 3 | kind;
                match kind {
                    0 => {
                        put_varint(&mut out, tag(0));
                        put_varint(&mut out, value);
                    }
                    1 => {
                        put_varint(&mut out, tag(1));
                        out.extend_from_slice(&value.to_le_bytes());
                    }
                    2 => append(&mut out, number, &content),
                    3 => {
                        put_varint(&mut out, tag(3));
                        append(&mut out, 1, &content);
                        put_varint(&mut out, tag(4));
                    }
                    _ => {
                        put_varint(&mut out, tag(5));
                        out.extend_from_slice(&value.to_le_bytes()[..4]);
                    }
                }
                out
            },
        );
        prop::collection::vec(field, 0..20).prop_map(|fields| fields.concat())
    }

    proptest! {
        #[test]
        fn the_fields_are_the_message(message in message()) {
            let raw: Vec<u8> = fields(&message).flat_map(|f| f.unwrap().raw.to_vec()).collect();
            prop_assert_eq!(raw, message);
        }

        #[test]
        fn nothing_panics_and_no_byte_is_made_up(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let read: usize = fields(&bytes).map_while(Result::ok).map(|f| f.raw.len()).sum();
            prop_assert!(read <= bytes.len());
            _ = without(&bytes, 3);
            _ = change(&bytes, &[1, 2], &mut |inner| Ok(inner.to_vec()));
        }

        #[test]
        fn an_unchanged_path_gives_the_same_bytes(a in message(), inner in message(), b in message()) {
            let mut whole = without(&a, 7).unwrap();
            append(&mut whole, 7, &inner);
            whole.extend(without(&b, 7).unwrap());
            prop_assert_eq!(change(&whole, &[7], &mut |inner| Ok(inner.to_vec())).unwrap(), whole);
        }

        #[test]
        fn a_change_touches_its_place_only(a in message(), inner in message(), b in message(), new in message()) {
            let (a, b) = (without(&a, 7).unwrap(), without(&b, 7).unwrap());
            let mut whole = a.clone();
            append(&mut whole, 7, &inner);
            whole.extend(&b);
            let mut expected = a;
            append(&mut expected, 7, &new);
            expected.extend(b);
            prop_assert_eq!(change(&whole, &[7], &mut |_| Ok(new.clone())).unwrap(), expected);
        }

        #[test]
        fn a_removed_field_is_gone_and_the_others_stay(message in message(), number in 1u32..10) {
            let expected: Vec<u8> = fields(&message)
                .map(Result::unwrap).filter(|f| f.number != number).flat_map(|f| f.raw.to_vec()).collect();
            prop_assert_eq!(without(&message, number).unwrap(), expected);
        }
    }

    #[test]
    fn a_path_that_is_absent_repeated_or_a_number_is_an_error() {
        let same = &mut |inner: &[u8]| Ok(inner.to_vec());
        assert_eq!(change(&[], &[2], same), Err(WireError::Absent(2)));
        assert_eq!(change(&[0x12, 0, 0x12, 0], &[2], same), Err(WireError::Repeated(2)));
        assert_eq!(change(&[0x10, 0], &[2], same), Err(WireError::NotMessage(2)));
        assert_eq!(change(&[0x12, 9], &[2], same), Err(WireError::Malformed(0)));
    }

    #[test]
    fn field_zero_and_overlong_varints_are_malformed() {
        assert_eq!(without(&[0x00, 0x01], 1), Err(WireError::Malformed(0)));
        assert_eq!(without(&[0xff; 11], 1), Err(WireError::Malformed(0)));
    }
}
