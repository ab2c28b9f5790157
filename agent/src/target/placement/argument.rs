//! What a function does with its first argument, and with its stack.
//!
//! A library's parts that no file exports are found by those that it does: a
//! function that passes on what it was given, and one that looks at a field of
//! it. The analysis follows the code forwards, with the registers that hold
//! the argument on every way.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{Code, FlowControl, Instruction, InstructionInfoFactory, Mnemonic};
use iced_x86::{OpKind, Register};

use super::flow::{Flow, written};
use super::path::{PRESERVED, Passage};
use super::result::Holder;

/// Instructions between a number that is looked at and the branch on it.
const MAX_BETWEEN: usize = 8;

/// Registers that hold the argument, a bit each.
type Holders = u16;

impl Flow {
    /// The functions that are called with the function's own first argument as
    /// theirs.
    pub fn passes_on(&self) -> BTreeSet<u64> {
        let held = self.argument();
        self.instructions()
            .filter(|instruction| {
                let holders = held.get(&instruction.ip()).copied().unwrap_or_default();
                instruction.code() == Code::Call_rel32_64 && holders & bit(Register::RDI) != 0
            })
            .map(Instruction::near_branch_target)
            .collect()
    }

    /// The functions that are called, and where.
    pub fn calls(&self) -> impl Iterator<Item = (u64, u64)> {
        self.instructions()
            .filter(|instruction| instruction.code() == Code::Call_rel32_64)
            .map(|instruction| (instruction.near_branch_target(), instruction.ip()))
    }

    /// A place that is passed exactly once whenever the number of four bytes
    /// at an offset of the first argument is found not to be negative, and
    /// never otherwise, with the register that holds the argument there. None
    /// if the function does not ask that, or goes on in different places.
    pub fn unless_negative(&self, offset: u32) -> Option<Passage> {
        let held = self.argument();
        let mut negative = BTreeMap::new();
        let mut places = BTreeSet::new();
        let tests = self
            .instructions()
            .filter_map(|instruction| self.sign_test(instruction, offset, &held));
        for (branch, base) in tests {
            let branch = self.instruction(branch)?;
            let (otherwise, other) = match branch.mnemonic() {
                Mnemonic::Js | Mnemonic::Jl => (branch.near_branch_target(), branch.next_ip()),
                _ => (branch.next_ip(), branch.near_branch_target()),
            };
            negative.insert(branch.ip(), otherwise);
            places.insert((self.first_emulated(other, base)?, base));
        }
        let (address, base) = places.pop_first().filter(|_| places.is_empty())?;
        let elsewhere = self.reach_by(&negative);
        (!elsewhere.contains(&address)).then_some(Passage {
            address,
            register: Holder::of(base)?,
        })
    }

    /// The first instruction from an address on that the kernel emulates, if it
    /// is always come to and a register is unchanged there.
    fn first_emulated(&self, mut at: u64, register: Register) -> Option<u64> {
        let mut info = InstructionInfoFactory::new();
        for _ in 0..MAX_BETWEEN {
            let instruction = self.instruction(at)?;
            if self.nodes.get(&at)?.emulated {
                return Some(at);
            }
            let plain = instruction.flow_control() == FlowControl::Next;
            if !plain || writes(&mut info, instruction, register) {
                return None;
            }
            at = instruction.next_ip();
        }
        None
    }

    /// How far the stack pointer at an instruction is from the one at the
    /// entry; none if the code does not tell, or it is not always the same.
    pub fn moved(&self, at: u64) -> Option<i64> {
        let mut info = InstructionInfoFactory::new();
        let mut seen = BTreeMap::new();
        let mut pending = vec![(self.entry, 0_i64)];
        while let Some((address, moved)) = pending.pop() {
            match seen.insert(address, moved) {
                Some(before) if before == moved => continue,
                Some(_) => return None,
                None => {}
            }
            let instruction = self.instruction(address)?;
            let after = match instruction.flow_control() {
                // What is called has put it back.
                FlowControl::Call | FlowControl::IndirectCall | FlowControl::Return => moved,
                _ if !writes(&mut info, instruction, Register::RSP) => moved,
                _ => moved.checked_add(moves(instruction)?)?,
            };
            pending.extend(self.next(address).iter().map(|next| (*next, after)));
        }
        seen.get(&at).copied()
    }

    /// The branch on the sign of the number that an instruction looks at, and
    /// the register that the argument is in.
    fn sign_test(
        &self,
        first: &Instruction,
        offset: u32,
        held: &BTreeMap<u64, Holders>,
    ) -> Option<(u64, Register)> {
        let base = first.memory_base();
        let holders = held.get(&first.ip()).copied().unwrap_or_default();
        let field = first.memory_index() == Register::None
            && first.memory_displacement64() == u64::from(offset)
            && holders & bit(base) != 0
            && first.memory_size().size() == 4;
        let compares = matches!(first.code(), Code::Cmp_rm32_imm8 | Code::Cmp_rm32_imm32)
            && first.op0_kind() == OpKind::Memory
            && first.try_immediate(1).ok() == Some(0);
        let loads = first.code() == Code::Mov_r32_rm32 && first.op1_kind() == OpKind::Memory;
        if !field || !(compares || loads) {
            return None;
        }
        let mut tested = compares;
        let mut info = InstructionInfoFactory::new();
        let mut at = first.next_ip();
        for _ in 0..MAX_BETWEEN {
            let instruction = self.instruction(at)?;
            let tests = instruction.code() == Code::Test_rm32_r32
                && instruction.op0_register() == first.op0_register()
                && instruction.op1_register() == first.op0_register();
            match instruction.mnemonic() {
                Mnemonic::Js | Mnemonic::Jns | Mnemonic::Jl | Mnemonic::Jge => {
                    return tested.then_some((at, base));
                }
                Mnemonic::Test if tests && !tested => tested = true,
                // They leave the flags alone.
                Mnemonic::Mov | Mnemonic::Lea
                    if (tested || !writes(&mut info, instruction, first.op0_register()))
                        && !writes(&mut info, instruction, base) => {}
                _ => return None,
            }
            at = instruction.next_ip();
        }
        None
    }

    /// The registers that hold the first argument before each instruction.
    fn argument(&self) -> BTreeMap<u64, Holders> {
        let mut info = InstructionInfoFactory::new();
        let mut held: BTreeMap<u64, Holders> = BTreeMap::new();
        let mut pending = vec![(self.entry, bit(Register::RDI))];
        while let Some((at, holders)) = pending.pop() {
            let before = held.get(&at).copied();
            let now = before.map_or(holders, |before| before & holders);
            if before == Some(now) {
                continue;
            }
            held.insert(at, now);
            let Some(instruction) = self.instruction(at) else {
                continue;
            };
            let after = step(instruction, now, &mut info);
            pending.extend(self.next(at).iter().map(|next| (*next, after)));
        }
        held
    }
}

/// The registers that hold the argument after an instruction.
fn step(instruction: &Instruction, holders: Holders, info: &mut InstructionInfoFactory) -> Holders {
    let calls = matches!(
        instruction.flow_control(),
        FlowControl::Call | FlowControl::IndirectCall
    );
    if calls {
        let kept = PRESERVED
            .iter()
            .fold(0, |all, register| all | bit(*register));
        return holders & kept;
    }
    let mut after = holders;
    for register in written(info, instruction) {
        after &= !bit(register);
    }
    let copies = matches!(instruction.code(), Code::Mov_rm64_r64 | Code::Mov_r64_rm64)
        && instruction.op0_kind() == OpKind::Register
        && instruction.op1_kind() == OpKind::Register;
    if copies && holders & bit(instruction.op1_register()) != 0 {
        after |= bit(instruction.op0_register());
    }
    after
}

/// By how much an instruction that moves the stack pointer does.
fn moves(instruction: &Instruction) -> Option<i64> {
    let number = || instruction.try_immediate(1).ok().map(u64::cast_signed);
    let own =
        instruction.op0_kind() == OpKind::Register && instruction.op0_register() == Register::RSP;
    match instruction.mnemonic() {
        Mnemonic::Sub if own => number()?.checked_neg(),
        Mnemonic::Add if own => number(),
        Mnemonic::Push | Mnemonic::Pop if !own => {
            Some(i64::from(instruction.stack_pointer_increment()))
        }
        Mnemonic::Lea if own && instruction.memory_base() == Register::RSP => {
            let plain = instruction.memory_index() == Register::None;
            plain.then(|| instruction.memory_displacement64().cast_signed())
        }
        _ => None,
    }
}

fn writes(
    info: &mut InstructionInfoFactory,
    instruction: &Instruction,
    register: Register,
) -> bool {
    let full = register.full_register();
    written(info, instruction).any(|written| written == full)
}

/// The bit of a general register.
fn bit(register: Register) -> Holders {
    match register.is_gpr64() {
        true => 1 << register.number(),
        false => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::path::follow;
    use super::*;

    const ENTRY: u64 = 0x1000;

    fn flow(code: &[u8]) -> Option<Flow> {
        let bytes = |address: u64| {
            let from = usize::try_from(address.checked_sub(ENTRY)?).ok()?;
            code.get(from..).map(<[u8]>::to_vec)
        };
        follow(ENTRY, code.len() as u64, bytes, |_| None)
    }

    fn unless_negative(code: &[u8]) -> Option<(u64, Holder)> {
        let found = flow(code)?.unless_negative(0x30)?;
        Some((found.address - ENTRY, found.register))
    }

    #[test]
    fn the_branch_after_a_number_that_is_not_negative() {
        // mov %rdi,%rbx; mov 0x30(%rbx),%eax; test %eax,%eax; js +9;
        // cmpq $0,0x40(%rbp); je +0; nop; nop; ret
        let code =
            b"\x48\x89\xfb\x8b\x43\x30\x85\xc0\x78\x09\x48\x83\x7d\x40\x00\x74\x00\x90\x90\xc3";
        assert_eq!(unless_negative(code), Some((15, Holder::Rbx)));
        // cmpl $0,0x30(%rdi); jge +1; ret; mov (%rdi),%rax; jmp +0; ret
        let code = b"\x83\x7f\x30\x00\x7d\x01\xc3\x48\x8b\x07\xeb\x00\xc3";
        assert_eq!(unless_negative(code), Some((10, Holder::Rdi)));
    }

    #[test]
    fn two_branches_to_one_place() {
        // mov 0x30(%rdi),%eax; test %eax,%eax; jns +10; mov 0x30(%rdi),%eax;
        // test %eax,%eax; jns +1; ret; nop; nop; jmp +0; ret
        let code =
            b"\x8b\x47\x30\x85\xc0\x79\x0a\x8b\x47\x30\x85\xc0\x79\x03\xc3\x90\x90\xeb\x00\xc3";
        assert_eq!(unless_negative(code), Some((17, Holder::Rdi)));
    }

    #[test]
    fn no_place_that_others_pass_or_for_another_number() {
        // mov 0x30(%rdi),%eax; test %eax,%eax; js +0; jmp +0; ret
        let joined = b"\x8b\x47\x30\x85\xc0\x78\x00\xeb\x00\xc3";
        // The same of what %rsi points to.
        let other = b"\x8b\x46\x30\x85\xc0\x78\x02\xeb\x00\xc3";
        // Twice, one after the other.
        let twice = b"\x8b\x47\x30\x85\xc0\x78\x02\xeb\x00\x8b\x47\x30\x85\xc0\x78\x02\xeb\x00\xc3";
        // xor %edi,%edi before the jump.
        let lost = b"\x8b\x47\x30\x85\xc0\x78\x04\x31\xff\xeb\x00\xc3";
        for code in [&joined[..], other, twice, lost] {
            assert_eq!(unless_negative(code), None, "{code:x?}");
        }
    }

    #[test]
    fn what_is_passed_on_and_how_far_the_stack_is() {
        // push %rbx; mov %rdi,%rbx; mov (%rdi),%rdi; call +0x10; mov %rbx,%rdi;
        // call +0x20; pop %rbx; ret
        let code = b"\x53\x48\x89\xfb\x48\x8b\x3f\xe8\x10\0\0\0\x48\x89\xdf\xe8\x20\0\0\0\x5b\xc3";
        let found = flow(code).unwrap();
        assert_eq!(found.passes_on(), BTreeSet::from([ENTRY + 20 + 0x20]));
        assert_eq!(found.calls().count(), 2);
        assert_eq!(found.moved(ENTRY + 15), Some(-8));
        assert_eq!(found.moved(ENTRY + 21), Some(0));
        assert_eq!(found.moved(ENTRY + 1000), None);
        // sub $0x10,%rsp; push %r8; test; jne +4; add $0x18,%rsp; ret: of one
        // of the ways only.
        let code = b"\x48\x83\xec\x10\x41\x50\x85\xc0\x75\x04\x48\x83\xc4\x18\xc3";
        assert_eq!(flow(code).unwrap().moved(ENTRY + 14), None);
    }

    proptest! {
        #[test]
        fn any_code_is_looked_at(code in proptest::collection::vec(any::<u8>(), 1..200)) {
            if let Some(flow) = flow(&code) {
                flow.unless_negative(0x30);
                flow.passes_on();
                flow.moved(ENTRY);
            }
        }
    }
}
