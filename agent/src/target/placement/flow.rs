//! The control flow of a function, from its machine code.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory};
use iced_x86::{OpAccess, OpKind, Register};

use super::is_emulated;

/// Bytes of the longest instruction.
const LONGEST: usize = 15;

/// The instructions that can run between a function's entry and its end, with
/// what is known of each.
#[derive(Debug)]
pub struct Flow<K = ()> {
    /// Where it begins.
    pub(super) entry: u64,
    /// By their addresses.
    pub(super) nodes: BTreeMap<u64, Node<K>>,
}

/// An instruction.
#[derive(Debug)]
pub(super) struct Node<K> {
    pub(super) instruction: Instruction,
    /// Whether the kernel emulates it.
    pub(super) emulated: bool,
    /// What can run after it.
    pub(super) next: Vec<u64>,
    pub(super) known: K,
}

impl<K: Default> Flow<K> {
    /// Follows the control flow from `entry`, over so many instructions at
    /// most; `code` gives the bytes at an address, at least one instruction of
    /// them, and `leads` where an indirect jump can lead, given what was
    /// followed before. None if the flow can lead where these do not tell.
    pub(super) fn follow(
        entry: u64,
        limit: usize,
        code: impl Fn(u64) -> Option<Vec<u8>>,
        leads: impl Fn(&Instruction, &BTreeMap<u64, Node<K>>) -> Option<Vec<u64>>,
    ) -> Option<Self> {
        let mut nodes: BTreeMap<u64, Node<K>> = BTreeMap::new();
        let mut pending = vec![entry];
        while let Some(address) = pending.pop() {
            if nodes.contains_key(&address) {
                continue;
            }
            if nodes.len() >= limit {
                return None;
            }
            let bytes = code(address)?;
            let bytes = bytes.get(..LONGEST.min(bytes.len()))?;
            let instruction = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE).decode();
            if instruction.is_invalid() {
                return None;
            }
            let after = instruction.next_ip();
            let next = match instruction.flow_control() {
                FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall => vec![after],
                FlowControl::Return | FlowControl::Exception => Vec::new(),
                FlowControl::ConditionalBranch => vec![after, target(&instruction)?],
                FlowControl::UnconditionalBranch => vec![target(&instruction)?],
                FlowControl::IndirectBranch => leads(&instruction, &nodes)?,
                FlowControl::Interrupt | FlowControl::XbeginXabortXend => return None,
            };
            pending.extend(&next);
            let node = Node {
                emulated: is_emulated(&instruction, bytes.get(..instruction.len())?),
                instruction,
                next,
                known: K::default(),
            };
            nodes.insert(address, node);
        }
        Some(Self { entry, nodes })
    }
}

impl<K> Flow<K> {
    /// The instructions, in the order of their addresses.
    pub fn instructions(&self) -> impl Iterator<Item = &Instruction> {
        self.nodes.values().map(|node| &node.instruction)
    }

    /// The instruction at an address.
    pub(super) fn instruction(&self, at: u64) -> Option<&Instruction> {
        self.nodes.get(&at).map(|node| &node.instruction)
    }

    /// What may run after the instruction there.
    pub(super) fn next(&self, at: u64) -> &[u64] {
        self.nodes.get(&at).map_or(&[], |node| &node.next)
    }

    /// What can be reached from the entry if each of these branches always leads
    /// to the second address.
    pub(super) fn reach_by(&self, branches: &BTreeMap<u64, u64>) -> BTreeSet<u64> {
        let mut seen = BTreeSet::new();
        let mut pending = vec![self.entry];
        while let Some(address) = pending.pop() {
            if seen.insert(address) {
                match branches.get(&address) {
                    Some(only) => pending.push(*only),
                    None => pending.extend(self.next(address)),
                }
            }
        }
        seen
    }
}

/// The registers that an instruction writes, or may write, in full.
pub(super) fn written(
    info: &mut InstructionInfoFactory,
    instruction: &Instruction,
) -> impl Iterator<Item = Register> {
    let used = info.info(instruction).used_registers().iter();
    used.filter(|used| !matches!(used.access(), OpAccess::Read | OpAccess::CondRead))
        .map(|used| used.register().full_register())
}

/// Where a branch or a call leads, if the code tells.
pub(super) fn target(instruction: &Instruction) -> Option<u64> {
    let near = instruction.op0_kind() == OpKind::NearBranch64;
    near.then(|| instruction.near_branch_target())
}
