//! Strict decoding: an entry is understood only if encoding it again gives the same bytes.
//!
//! protobuf decoders skip what they do not know and let a later field override an earlier one, so two of them can
//! read one entry differently. Here nothing is skipped: what CRIU will read is what was judged, and a rewrite that
//! encodes the typed entry loses nothing.

use prost::Message;

use super::error::ImageError;

/// Most fields directly in one entry. An address space of 262,144 mappings (four times the kernel's default limit)
/// fits; a file of millions of empty fields, which would be large in memory, does not.
const MAX_FIELDS: usize = 300_000;

/// Decodes entry number `entry` of `file`, refusing whatever encoding it again would change.
///
/// # Errors
/// [`ImageError::Malformed`] for bytes that are not protobuf of this type, [`ImageError::NotUnderstood`] naming the
/// first field that this version does not know or that CRIU would not have written so.
pub fn decode<M: Message + Default>(
    file: &str,
    entry: usize,
    kind: &'static str,
    bytes: &[u8],
) -> Result<M, ImageError> {
    let malformed = |reason: String| ImageError::Malformed { file: file.into(), entry, kind, reason };
    let mut fields = 0;
    let mut rest = bytes;
    while !rest.is_empty() {
        next_field(&mut rest).ok_or_else(|| malformed("its fields run past its end".into()))?;
        fields += 1;
        if fields > MAX_FIELDS {
            return Err(ImageError::TooMany {
                what: format!("fields in {file} entry {entry}"),
                limit: MAX_FIELDS,
            });
        }
    }
    let message = M::decode(bytes).map_err(|e| malformed(e.to_string()))?;
    let again = message.encode_to_vec();
    if again != bytes {
        let field = first_difference(bytes, &again);
        return Err(ImageError::NotUnderstood { file: file.into(), entry, kind, field });
    }
    Ok(message)
}

struct Field<'a> {
    tag: u64,
    wire: u64,
    /// Everything after the key; for a length-delimited field without its length.
    value: &'a [u8],
}

fn next_field<'a>(rest: &mut &'a [u8]) -> Option<Field<'a>> {
    let key = varint(rest)?;
    let (tag, wire) = (key >> 3, key & 7);
    let length = match wire {
        0 => {
            let before = *rest;
            varint(rest)?;
            let value = &before[..before.len() - rest.len()];
            return Some(Field { tag, wire, value });
        }
        1 => 8,
        2 => usize::try_from(varint(rest)?).ok()?,
        5 => 4,
        _ => return None,
    };
    let value = rest.get(..length)?;
    *rest = &rest[length..];
    Some(Field { tag, wire, value })
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, tail) = rest.split_first()?;
        *rest = tail;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Path of tags to the first field in which the two encodings differ.
fn first_difference(mut given: &[u8], mut again: &[u8]) -> String {
    loop {
        let (a, b) = (next_field(&mut given), next_field(&mut again));
        match (a, b) {
            (Some(a), Some(b)) if a.tag == b.tag && a.wire == b.wire => {
                if a.value != b.value {
                    let inner = if a.wire == 2 { first_difference(a.value, b.value) } else { String::new() };
                    return if inner.is_empty() { a.tag.to_string() } else { format!("{}.{inner}", a.tag) };
                }
            }
            // A field that vanished on encoding was unknown or doubled; one that appeared was required.
            (Some(a), Some(b)) => return a.tag.min(b.tag).to_string(),
            (Some(field), None) | (None, Some(field)) => return field.tag.to_string(),
            (None, None) => return String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::messages::task::{Core, Creds, Fs, ThreadCore};

    fn fs() -> Vec<u8> {
        Fs { cwd_id: 1, root_id: 300, umask: Some(18) }.encode_to_vec()
    }

    #[test]
    fn what_criu_writes_is_understood() {
        assert_eq!(decode::<Fs>("f", 0, "fs", &fs()).unwrap().root_id, 300);
    }

    #[test]
    fn an_unknown_field_is_refused_by_its_path() {
        let mut creds = Creds { uid: 1, ..Creds::default() }.encode_to_vec();
        creds.extend_from_slice(&[0xa0, 0x01, 7]); // tag 20, varint
        let mut thread = ThreadCore::default().encode_to_vec();
        thread.push(10 << 3 | 2);
        thread.push(creds.len() as u8);
        thread.extend_from_slice(&creds);
        let mut core = Core { mtype: 1, ..Core::default() }.encode_to_vec();
        core.push(5 << 3 | 2);
        core.push(thread.len() as u8);
        core.extend_from_slice(&thread);
        let error = decode::<Core>("core-300.img", 0, "core_entry", &core).unwrap_err();
        let ImageError::NotUnderstood { field, .. } = &error else { panic!("{error}") };
        assert_eq!(field, "5.10.20");
    }

    #[test]
    fn a_field_given_twice_a_missing_one_and_an_overlong_number_are_refused() {
        let twice = [fs(), vec![8, 2]].concat();
        let missing = vec![8, 1];
        let overlong = vec![8, 0x81, 0x00, 16, 1];
        for bytes in [twice, missing, overlong] {
            let error = decode::<Fs>("f", 0, "fs", &bytes).unwrap_err();
            assert!(matches!(error, ImageError::NotUnderstood { .. }), "{error}");
        }
    }
}
