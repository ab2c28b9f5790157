//! Places that a function passes exactly once whenever it passes a certain
//! instruction.
//!
//! A function that does one of several things is probed where it does the one
//! that is of interest, on an instruction that the kernel emulates: one that
//! every way to that instruction passes, or every way on from it, and that no
//! other way does.

use std::collections::BTreeSet;
use std::ops::Range;

use iced_x86::{Code, FlowControl, Instruction, InstructionInfoFactory};
use iced_x86::{OpKind, Register};

use super::flow::{Flow, Node, written};
use super::result::Holder;

/// Instructions of the largest function that is looked at.
const MAX_INSTRUCTIONS: usize = 8192;
/// Instructions before a jump through a table among which the table's address
/// is looked for.
const MAX_SWITCH: usize = 12;
/// Entries of such a table.
const MAX_TABLE: u64 = 512;

/// A place that is probed, and the register that holds what is wanted there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Passage {
    /// Virtual address.
    pub address: u64,
    /// The register.
    pub register: Holder,
}

/// Follows the control flow from the entry of a function of so many bytes;
/// `code` gives the bytes at an address, and `linked` where a jump through the
/// slot at an address leads. None if it can lead where that does not tell.
pub fn follow(
    entry: u64,
    size: u64,
    code: impl Fn(u64) -> Option<Vec<u8>>,
    linked: impl Fn(u64) -> Option<u64>,
) -> Option<Flow> {
    let extent = entry..entry.saturating_add(size);
    Flow::follow(entry, MAX_INSTRUCTIONS, &code, |jump, nodes| {
        if jump.is_ip_rel_memory_operand() {
            // Where it leaves for another file it does not come back.
            let leads = linked(jump.ip_rel_memory_address());
            return Some(leads.into_iter().collect());
        }
        let before = nodes.range(..jump.ip()).rev();
        let before = before.map(|(_, node)| &node.instruction);
        switch(jump, before.take(MAX_SWITCH), &extent, &code)
    })
}

impl Flow {
    /// The nearest place that is passed exactly once whenever `at` is, and
    /// never otherwise, with `register` as it is there: after it, or else
    /// before it.
    pub fn passage(&self, at: u64, register: Register) -> Option<Passage> {
        let holder = Holder::of(register)?;
        let emulated = || {
            let near = |address: &u64| address.abs_diff(at);
            let nodes = self.nodes.iter().filter(|(_, node)| node.emulated);
            let mut found: Vec<u64> = nodes.map(|(&address, _)| address).collect();
            found.sort_by_key(near);
            found.into_iter().filter(|&address| address != at)
        };
        let is_passage = |first: u64, second: u64| {
            // No way to the second but through the first, and from the first
            // none but to the second.
            !self.reach(&[self.entry], first).contains(&second)
                && self.always_leads(first, second)
                && self.keeps(first, second, register)
        };
        let after = emulated().find(|&place| is_passage(at, place));
        let place = after.or_else(|| emulated().find(|&place| is_passage(place, at)));
        place.map(|address| Passage {
            address,
            register: holder,
        })
    }

    /// What can be reached from these places, themselves included, without
    /// passing one.
    fn reach(&self, from: &[u64], without: u64) -> BTreeSet<u64> {
        let mut seen = BTreeSet::new();
        let mut pending: Vec<u64> = from.to_vec();
        while let Some(address) = pending.pop() {
            if address == without || !seen.insert(address) {
                continue;
            }
            if let Some(node) = self.nodes.get(&address) {
                pending.extend(&node.next);
            }
        }
        seen
    }

    /// Whether every way on from `first` passes `second`, before it ends or
    /// comes back.
    fn always_leads(&self, first: u64, second: u64) -> bool {
        let Some(node) = self.nodes.get(&first) else {
            return false;
        };
        let between = self.reach(&node.next, second);
        let ends = |address: &u64| {
            self.nodes
                .get(address)
                .is_none_or(|node| node.next.is_empty())
        };
        !node.next.is_empty() && !between.contains(&first) && !between.iter().any(ends)
    }

    /// Whether nothing between two places changes a register.
    fn keeps(&self, first: u64, second: u64, register: Register) -> bool {
        let Some(node) = self.nodes.get(&first) else {
            return false;
        };
        let mut info = InstructionInfoFactory::new();
        let mut changes = |node: &Node<()>| {
            let calls = matches!(
                node.instruction.flow_control(),
                FlowControl::Call | FlowControl::IndirectCall
            );
            calls && !PRESERVED.contains(&register)
                || written(&mut info, &node.instruction).any(|written| written == register)
        };
        let between = self.reach(&node.next, second);
        let mut nodes = between.iter().filter_map(|address| self.nodes.get(address));
        !changes(node) && !nodes.any(&mut changes)
    }
}

/// Registers that a call leaves as they were (System V ABI, x86_64).
pub(super) const PRESERVED: [Register; 6] = [
    Register::RBX,
    Register::RBP,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];

/// Where a jump through a table of distances leads. More than the table's
/// entries may be taken for some, as nothing tells where it ends; none if it
/// is no such jump.
fn switch<'a>(
    jump: &Instruction,
    mut before: impl Iterator<Item = &'a Instruction>,
    extent: &Range<u64>,
    code: impl Fn(u64) -> Option<Vec<u8>>,
) -> Option<Vec<u64>> {
    if jump.op0_kind() != OpKind::Register {
        return None;
    }
    // The table's address is put into a register, and then added to what was
    // read from there.
    let table = before.find(|instruction| {
        instruction.code() == Code::Lea_r64_m && instruction.is_ip_rel_memory_operand()
    })?;
    let table = table.ip_rel_memory_address();
    let mut found = BTreeSet::new();
    for entry in 0..MAX_TABLE {
        let Some(bytes) = code(table.wrapping_add(4 * entry)) else {
            break;
        };
        let distance = i32::from_le_bytes(*bytes.first_chunk()?);
        let target = table.wrapping_add_signed(distance.into());
        if !extent.contains(&target) {
            break;
        }
        found.insert(target);
    }
    (!found.is_empty()).then(|| found.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: u64 = 0x1000;

    fn passage(code: &[u8], at: u64, register: Register) -> Option<(u64, Holder)> {
        let bytes = |address: u64| {
            let from = usize::try_from(address.checked_sub(ENTRY)?).ok()?;
            code.get(from..).map(<[u8]>::to_vec)
        };
        let flow = follow(ENTRY, code.len() as u64, bytes, |_| None)?;
        let found = flow.passage(ENTRY + at, register)?;
        Some((found.address - ENTRY, found.register))
    }

    #[test]
    fn a_jump_after_the_instruction_or_a_branch_before_it() {
        // test %edi,%edi; jne +9; movl $0,0x30(%rbx); jmp +0; ret
        let code = b"\x85\xff\x75\x09\xc7\x43\x30\0\0\0\0\xeb\x00\xc3";
        assert_eq!(passage(code, 4, Register::RBX), Some((11, Holder::Rbx)));
        // test; jne +9; push %rax; pop %rax; movl $0,0x30(%rbx); ret
        let code = b"\x85\xff\x75\x09\x50\x58\xc7\x43\x30\0\0\0\0\xc3";
        assert_eq!(passage(code, 6, Register::RBX), Some((4, Holder::Rbx)));
    }

    #[test]
    fn no_place_that_other_ways_pass_or_where_the_register_is_another() {
        // test; jne +7; movl $0,0x30(%rbx); push %rax; pop %rax; ret
        let code = b"\x85\xff\x75\x07\xc7\x43\x30\0\0\0\0\x50\x58\xc3";
        assert_eq!(passage(code, 4, Register::RBX), None);
        // As in the first test, with xor %ebx,%ebx before the jump.
        let code = b"\x85\xff\x75\x0b\xc7\x43\x30\0\0\0\0\x31\xdb\xeb\x00\xc3";
        assert_eq!(passage(code, 4, Register::RBX), None);
        // A call between does not keep %rax.
        let code = b"\xc7\x40\x30\0\0\0\0\xe8\x02\0\0\0\xeb\x00\xc3";
        assert_eq!(passage(code, 0, Register::RAX), Some((7, Holder::Rax)));
        let code = b"\xc7\x40\x30\0\0\0\0\xff\xd2\xeb\x00\xc3";
        assert_eq!(passage(code, 0, Register::RAX), None);
    }
}
