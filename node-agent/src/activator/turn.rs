//! Turns a gate from one way to stand to another without a program: one transaction of nf_tables, by which the kernel has also
//! what `iptables-nft` writes (formats from `linux/netfilter/nf_tables.h`).
//!
//! ```text
//!   BATCH_BEGIN  if the rules are those of generation N
//!   DELRULE      all of the gate's chain     ┐ of each table
//!   NEWRULE      jump to another chain       ┘
//!   BATCH_END                                  the rules are generation N + 1
//! ```
//!
//! The kernel counts the changes of a namespace's rules: whoever else has changed them makes it fail, and they are written anew.

use std::io;

use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, NlaBuffer, NlasIterator,
};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::nfnetlink::{acknowledged, body, emitted, field, kind, message, receive};

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const BATCH_GENERATION: u16 = 1;

const NF_TABLES: u16 = 10;
const NEW_RULE: u16 = NF_TABLES << 8 | 6;
const DELETE_RULE: u16 = NF_TABLES << 8 | 8;
const NEW_GENERATION: u16 = NF_TABLES << 8 | 15;
const GET_GENERATION: u16 = NF_TABLES << 8 | 16;

const NESTED: u16 = 1 << 15;
const GENERATION: u16 = 1;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4 | NESTED;
const LIST_ELEMENT: u16 = 1 | NESTED;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2 | NESTED;
const IMMEDIATE_REGISTER: u16 = 1;
const IMMEDIATE_DATA: u16 = 2 | NESTED;
const DATA_VERDICT: u16 = 2 | NESTED;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const JUMP: i32 = -3;
/// The register that takes a verdict.
const VERDICT: u32 = 0;

/// A table with the chain of a gate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table<'a> {
    /// Its family, `NFPROTO_*`.
    pub(super) family: u8,
    /// Its name.
    pub(super) name: &'a str,
}

/// How often the rules of the calling thread's network namespace have been changed.
///
/// # Errors
/// The kernel has no nf_tables.
pub(super) fn generation() -> io::Result<u32> {
    let socket = Socket::new(NETLINK_NETFILTER)?;
    socket.send(&message(GET_GENERATION, NLM_F_REQUEST, 0, 0, &[]), 0)?;
    let answer = receive(&socket)?;
    if let Some(refused) = acknowledged(&answer) {
        refused?;
    }
    let told = (kind(&answer) == Some(NEW_GENERATION)).then(|| body(&answer)).flatten().and_then(|body| {
        NlasIterator::new(body)
            .filter_map(|attribute: Result<NlaBuffer<&[u8]>, _>| attribute.ok())
            .find(|attribute| attribute.kind() == GENERATION)
            .and_then(|attribute| field(attribute.value(), 0))
    });
    told.map(u32::from_be_bytes).ok_or_else(|| io::Error::other("the kernel does not count changes of rules"))
}

/// Makes a jump to the chain `to` all there is in the chain `chain` of these tables, in the calling thread's network namespace, if nobody has
/// changed its rules since they were those of `generation`. Without `to` nothing is in it. Which generation they are then.
///
/// # Errors
/// Somebody has (`ERESTART`), or there are no such chains.
pub(super) fn turn(generation: u32, tables: &[Table<'_>], chain: &str, to: Option<&str>) -> io::Result<u32> {
    let expected = DefaultNla::new(BATCH_GENERATION, generation.to_be_bytes().to_vec());
    let mut batch = message(BATCH_BEGIN, NLM_F_REQUEST, 0, NF_TABLES, &[expected]);
    for table in tables {
        let place = [string(RULE_TABLE, table.name), string(RULE_CHAIN, chain)];
        batch.extend(message(DELETE_RULE, NLM_F_REQUEST | NLM_F_ACK, table.family, 0, &place));
        if let Some(to) = to {
            let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND;
            let [table_name, chain] = place;
            batch.extend(message(NEW_RULE, flags, table.family, 0, &[table_name, chain, jump(to)]));
        }
    }
    batch.extend(message(BATCH_END, NLM_F_REQUEST, 0, NF_TABLES, &[]));
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.send(&batch, 0)?;
    // The kernel has done all by now, and has said so of each message, or has refused the whole with one error.
    socket.set_non_blocking(true)?;
    let mut acknowledgements = 0;
    loop {
        match receive(&socket) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            answer => acknowledged(&answer?).unwrap_or(Ok(()))?,
        }
        acknowledgements += 1;
    }
    if acknowledgements == 0 {
        return Err(io::Error::other("the kernel does not say what became of the rules"));
    }
    // It leaves 0 out.
    Ok(generation.checked_add(1).unwrap_or(1))
}

fn jump(to: &str) -> DefaultNla {
    let code = DefaultNla::new(VERDICT_CODE, JUMP.to_be_bytes().to_vec());
    let verdict = nested(DATA_VERDICT, &[code, string(VERDICT_CHAIN, to)]);
    let register = DefaultNla::new(IMMEDIATE_REGISTER, VERDICT.to_be_bytes().to_vec());
    let immediate = nested(EXPRESSION_DATA, &[register, nested(IMMEDIATE_DATA, &[verdict])]);
    let expression = nested(LIST_ELEMENT, &[string(EXPRESSION_NAME, "immediate"), immediate]);
    nested(RULE_EXPRESSIONS, &[expression])
}

fn nested(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    DefaultNla::new(kind, emitted(attributes))
}

fn string(kind: u16, text: &str) -> DefaultNla {
    DefaultNla::new(kind, [text.as_bytes(), &[0]].concat())
}
