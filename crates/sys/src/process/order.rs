//! What a waiting process is told: the message through its socket, written with all conveniences by the caller and read
//! without any allocation by the child.

use std::ffi::{CStr, CString, c_char};
use std::ptr;

use rustix::io::Errno;

/// The most descriptors that come along (the kernel's own bound is 253).
pub(super) const MAX_DESCRIPTORS: usize = crate::scm::MAX_DESCRIPTORS;
/// The longest message, in bytes.
pub(super) const MAX_BYTES: usize = 16 << 10;
/// Room for arguments or variables, and the null that ends them.
pub(super) const MAX_STRINGS: usize = 64;

/// Integers before the strings, 4 bytes each.
const FIELDS: usize = 9;
const HEADER: usize = FIELDS * 4;

/// Everything but the strings. Descriptors come in this order: the program's own, then its executable if it has one,
/// then the PID cursor if it is to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Order {
    /// How many descriptors the program has; they are numbered as they come.
    pub(super) descriptors: usize,
    /// What to execute; without it the child exits with 0 when all else is done.
    pub(super) executable: bool,
    pub(super) last_pid: Option<i32>,
    pub(super) real_ids: Option<(u32, u32)>,
    /// Drop the supplementary groups: they are the caller's, and mean something else in a container.
    pub(super) forget_groups: bool,
}

/// Arguments and variables of a received order, in its buffer.
pub(super) struct Strings<'a> {
    rest: &'a [u8],
    arguments: usize,
    variables: usize,
}

impl Order {
    /// The message.
    ///
    /// # Errors
    /// `E2BIG`: more than the child has room for.
    pub(super) fn encode(&self, arguments: &[CString], variables: &[CString]) -> Result<Vec<u8>, Errno> {
        let (uid, gid) = self.real_ids.unwrap_or_default();
        let fields: [u32; FIELDS] = [
            self.descriptors as u32,
            self.executable.into(),
            self.last_pid.is_some().into(),
            self.last_pid.unwrap_or_default() as u32,
            self.real_ids.is_some().into(),
            uid,
            gid,
            self.forget_groups.into(),
            (arguments.len() as u32) << 16 | variables.len() as u32,
        ];
        let mut bytes: Vec<u8> = fields.into_iter().flat_map(u32::to_ne_bytes).collect();
        for string in arguments.iter().chain(variables) {
            bytes.extend_from_slice(string.as_bytes_with_nul());
        }
        let fits = bytes.len() <= MAX_BYTES
            && arguments.len().max(variables.len()) < MAX_STRINGS
            && self.descriptors + 2 <= MAX_DESCRIPTORS;
        if fits { Ok(bytes) } else { Err(Errno::TOOBIG) }
    }

    /// Reads a message. None if it was cut off.
    pub(super) fn decode(bytes: &[u8]) -> Option<(Self, Strings<'_>)> {
        let (header, rest) = bytes.split_at_checked(HEADER)?;
        let mut fields = [0; FIELDS];
        for (field, bytes) in fields.iter_mut().zip(header.chunks_exact(4)) {
            *field = u32::from_ne_bytes(bytes.try_into().ok()?);
        }
        let [descriptors, executable, sets_pid, last_pid, sets_ids, uid, gid, forget_groups, counts] = fields;
        let order = Self {
            descriptors: descriptors as usize,
            executable: executable != 0,
            last_pid: (sets_pid != 0).then_some(last_pid as i32),
            real_ids: (sets_ids != 0).then_some((uid, gid)),
            forget_groups: forget_groups != 0,
        };
        let (arguments, variables) = ((counts >> 16) as usize, (counts & 0xffff) as usize);
        Some((order, Strings { rest, arguments, variables }))
    }
}

impl<'a> Strings<'a> {
    /// Pointers to the arguments and to the variables, each ended by a null, as `execveat` wants them. None if the
    /// message was cut off.
    pub(super) fn pointers(self) -> Option<[[*const c_char; MAX_STRINGS]; 2]> {
        let mut both = [[ptr::null(); MAX_STRINGS]; 2];
        let mut rest: &'a [u8] = self.rest;
        for (pointers, count) in both.iter_mut().zip([self.arguments, self.variables]) {
            for pointer in pointers.get_mut(..count.min(MAX_STRINGS - 1))? {
                let string = CStr::from_bytes_until_nul(rest).ok()?;
                *pointer = string.as_ptr();
                rest = rest.get(string.count_bytes() + 1..)?;
            }
        }
        Some(both)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> Order {
        Order {
            descriptors: 3,
            executable: true,
            last_pid: Some(4000),
            real_ids: Some((1000, u32::MAX - 1)),
            forget_groups: true,
        }
    }

    fn strings(all: &[*const c_char]) -> Vec<&CStr> {
        // SAFETY: the pointers are to C strings in a message that outlives them.
        all.iter().take_while(|p| !p.is_null()).map(|p| unsafe { CStr::from_ptr(*p) }).collect()
    }

    #[test]
    fn an_order_is_read_as_it_was_written() {
        let (arguments, variables) = ([c"sh".into(), c"".into(), c"-c".into()], [c"A=1".into()]);
        let bytes = order().encode(&arguments, &variables).unwrap();
        let (read, rest) = Order::decode(&bytes).unwrap();
        assert_eq!(read, order());
        let [got_arguments, got_variables] = rest.pointers().unwrap();
        assert_eq!(strings(&got_arguments), [c"sh", c"", c"-c"]);
        assert_eq!(strings(&got_variables), [c"A=1"]);
    }

    #[test]
    fn an_order_that_was_cut_off_is_none() {
        let bytes = order().encode(&[c"argument".into()], &[]).unwrap();
        for length in 0..bytes.len() {
            let pointers = Order::decode(&bytes[..length]).and_then(|(_, strings)| strings.pointers());
            assert!(pointers.is_none(), "{length}");
        }
    }

    #[test]
    fn an_order_with_too_much_is_refused() {
        let many = vec![CString::default(); MAX_STRINGS];
        assert_eq!(order().encode(&many, &[]), Err(Errno::TOOBIG));
        let long = CString::new(vec![b'x'; MAX_BYTES]).unwrap();
        assert_eq!(order().encode(&[long], &[]), Err(Errno::TOOBIG));
        let order = Order { descriptors: MAX_DESCRIPTORS, ..order() };
        assert_eq!(order.encode(&[], &[]), Err(Errno::TOOBIG));
    }
}
