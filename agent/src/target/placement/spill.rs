//! Where a function keeps an argument on its stack.
//!
//! `executemany` of Python's `sqlite3` calls, or jumps to, the function that
//! `execute` does, with a 1 as its second argument where that has a 0. While
//! it runs, that number says which of the two it is; compilers put it on the
//! stack, as the function needs its registers for more. The analysis follows
//! the code from the entry, with the distance that the stack pointer has moved.
//! A compiler may use the place for something else once the number is not
//! needed any more: then no way may lead on to what is of interest.

use std::collections::{BTreeSet, HashMap, HashSet};

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory};
use iced_x86::{Mnemonic, OpKind, Register};

use super::flow::written;
use super::path::PRESERVED;

/// Instructions that are looked at.
const MAX_INSTRUCTIONS: usize = 16_384;
/// Bytes of the longest instruction.
const LONGEST: usize = 15;

/// A place in the code, and what is known there.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    at: u64,
    /// The stack pointer's distance from the one at the entry.
    stack: i64,
    /// The same of `rbp`, if it points to the stack.
    base: Option<i64>,
    /// The registers that hold the 1, a bit each.
    one: u16,
    /// It is in the function that was called with it.
    called: bool,
}

/// What the code of a function tells of its stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stack {
    /// The stack pointer's distance from the one at the entry, at the place
    /// that was asked for.
    pub moved: i64,
    /// Where the 1 is that is passed on as a second argument, if anywhere.
    pub one: Option<i64>,
}

/// Follows the code from a function's entry; `code` gives the bytes at an
/// address, and `wants` says of a call whether the number must be in its place
/// there. None if `place` is not reached, or with different distances.
pub fn stack(
    entry: u64,
    place: u64,
    code: impl Fn(u64) -> Option<Vec<u8>>,
    wants: impl Fn(&Instruction) -> bool,
) -> Option<Stack> {
    let mut info = InstructionInfoFactory::new();
    let mut seen = HashSet::new();
    let mut moved = BTreeSet::new();
    let mut kept = BTreeSet::new();
    // Places on the stack that are written to, and by which instruction.
    let mut written = BTreeSet::new();
    let mut calls = BTreeSet::new();
    // From where an instruction is reached.
    let mut before: HashMap<u64, Vec<u64>> = HashMap::new();
    let mut pending = vec![State {
        at: entry,
        stack: 0,
        base: None,
        one: 0,
        called: false,
    }];
    while let Some(state) = pending.pop() {
        if !seen.insert(state) {
            continue;
        }
        if seen.len() > MAX_INSTRUCTIONS {
            return None;
        }
        if state.at == place && !state.called {
            moved.insert(state.stack);
        }
        let Some(bytes) = code(state.at) else {
            continue;
        };
        let bytes = bytes.get(..LONGEST.min(bytes.len())).unwrap_or_default();
        let instruction = Decoder::with_ip(64, bytes, state.at, DecoderOptions::NONE).decode();
        if instruction.is_invalid() {
            continue;
        }
        let target = instruction.near_branch_target();
        if let Some(slot) = stored(&instruction, state) {
            let from = instruction.op1_register();
            let keeps = from.is_gpr32() && state.one & bit(from) != 0;
            if keeps {
                kept.insert(slot);
            } else {
                written.insert((slot, state.at));
            }
        }
        let known = pending.len();
        let Some(mut after) = state.after(&instruction, &mut info) else {
            continue;
        };
        match instruction.flow_control() {
            FlowControl::Next => pending.push(after),
            FlowControl::Call | FlowControl::IndirectCall => {
                let passes = state.one & bit(Register::RSI) != 0 && !state.called;
                if passes && instruction.flow_control() == FlowControl::Call {
                    pending.push(State {
                        at: target,
                        stack: state.stack - 8,
                        one: bit(Register::RSI),
                        called: true,
                        ..state
                    });
                }
                after.one &= PRESERVED
                    .iter()
                    .fold(0, |all, register| all | bit(*register));
                pending.push(after);
            }
            FlowControl::UnconditionalBranch => pending.push(State {
                at: target,
                ..after
            }),
            FlowControl::ConditionalBranch => {
                pending.push(after);
                pending.push(State {
                    at: target,
                    ..after
                });
            }
            // Jumps through tables are left out: a place that is in use does
            // not change behind one either.
            _ => {}
        }
        if wants(&instruction) {
            calls.insert(state.at);
        }
        for next in pending.get(known..).unwrap_or_default() {
            before.entry(next.at).or_default().push(state.at);
        }
    }
    let needed = leading_to(calls, &before);
    let changed = |slot: &i64| {
        let mut writes = written.iter().filter(|(written, _)| written == slot);
        writes.any(|(_, at)| needed.is_empty() || needed.contains(at))
    };
    let mut moved = moved.into_iter();
    let first = moved.next()?;
    let mut kept = kept.iter().filter(|slot| !changed(slot));
    let one = kept.next().copied();
    moved.next().is_none().then(|| Stack {
        moved: first,
        one: one.filter(|_| kept.next().is_none()),
    })
}

/// The instructions from which a way leads to one of these, which they are not
/// themselves unless it does.
fn leading_to(calls: BTreeSet<u64>, before: &HashMap<u64, Vec<u64>>) -> HashSet<u64> {
    let mut found = HashSet::new();
    let mut pending: Vec<u64> = calls.into_iter().collect();
    while let Some(at) = pending.pop() {
        for &earlier in before.get(&at).into_iter().flatten() {
            if found.insert(earlier) {
                pending.push(earlier);
            }
        }
    }
    found
}

/// The bit of a general register, whatever part of it is meant; none of others.
fn bit(register: Register) -> u16 {
    let full = register.full_register();
    let number = GENERAL.iter().position(|known| *known == full);
    number.map_or(0, |number| 1 << number)
}

const GENERAL: [Register; 16] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RBX,
    Register::RSP,
    Register::RBP,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];

/// Where on the stack an instruction stores something.
fn stored(instruction: &Instruction, state: State) -> Option<i64> {
    let stores = instruction.op0_kind() == OpKind::Memory
        && !matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test);
    let from = match instruction.memory_base() {
        Register::RSP => state.stack,
        Register::RBP => state.base?,
        _ => return None,
    };
    let plain = instruction.memory_index() == Register::None;
    let slot = from.checked_add(instruction.memory_displacement64().cast_signed())?;
    (stores && plain).then_some(slot)
}

impl State {
    /// What is known after an instruction; none if the stack is not.
    fn after(self, instruction: &Instruction, info: &mut InstructionInfoFactory) -> Option<Self> {
        let mut after = Self {
            at: instruction.next_ip(),
            ..self
        };
        let (first, second) = (instruction.op0_register(), instruction.op1_register());
        let is_call = matches!(
            instruction.flow_control(),
            FlowControl::Call | FlowControl::IndirectCall
        );
        if is_call {
            return Some(after);
        }
        let mut writes = |register| written(info, instruction).any(|written| written == register);
        let number = || instruction.try_immediate(1).ok().map(u64::cast_signed);
        if writes(Register::RSP) {
            let by = match instruction.mnemonic() {
                Mnemonic::Sub if first == Register::RSP => number()?.checked_neg()?,
                Mnemonic::Add if first == Register::RSP => number()?,
                Mnemonic::Push | Mnemonic::Pop => i64::from(instruction.stack_pointer_increment()),
                _ => return None,
            };
            after.stack = self.stack.checked_add(by)?;
        }
        if writes(Register::RBP) {
            let moves = instruction.mnemonic() == Mnemonic::Mov && second == Register::RSP;
            after.base = moves.then_some(self.stack);
        }
        for register in GENERAL {
            if writes(register) {
                after.one &= !bit(register);
            }
        }
        let copies = instruction.mnemonic() == Mnemonic::Mov
            && instruction.op0_kind() == OpKind::Register
            && instruction.op1_kind() == OpKind::Register
            && (first.is_gpr32() || first.is_gpr64());
        let begins = instruction.code() == Code::Mov_r32_imm32
            && instruction.immediate32() == 1
            && first == Register::ESI
            && !self.called;
        if begins || copies && self.one & bit(second) != 0 {
            after.one |= bit(first);
        }
        Some(after)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ENTRY: u64 = 0x1000;

    fn look(code: &[u8], place: u64) -> Option<Stack> {
        let bytes = |address: u64| {
            let from = usize::try_from(address.checked_sub(ENTRY)?).ok()?;
            code.get(from..).map(<[u8]>::to_vec)
        };
        let wants = |instruction: &Instruction| instruction.code() == Code::Call_rm64;
        stack(ENTRY, ENTRY + place, bytes, wants)
    }

    /// push %rbp; push %rbx; sub $8,%rsp; mov $1,%esi; add $8,%rsp; pop; pop;
    /// jmp to what follows: push %r15; sub $0x38,%rsp; mov %esi,0x8(%rsp); ...
    const JUMPS: &[u8] = b"\x55\x53\x48\x83\xec\x08\xbe\x01\0\0\0\x48\x83\xc4\x08\x5b\x5d\
        \xeb\x00\x41\x57\x48\x83\xec\x38\x89\x74\x24\x08\xc3";

    #[test]
    fn finds_what_a_jump_passes_on() {
        let found = |moved, one| Some(Stack { moved, one });
        assert_eq!(look(JUMPS, 0), found(0, Some(-0x38)));
        assert_eq!(look(JUMPS, 6), found(-24, Some(-0x38)));
        // Another place that is never reached.
        assert_eq!(look(JUMPS, 200), None);
    }

    #[test]
    fn finds_what_a_call_passes_on() {
        // push %rbx; mov $1,%esi; call +2; pop %rbx; ret;
        // push %rbp; mov %rsp,%rbp; sub $0x20,%rsp; mov %esi,-0x14(%rbp); ret
        let code = b"\x53\xbe\x01\0\0\0\xe8\x02\0\0\0\x5b\xc3\
            \x55\x48\x89\xe5\x48\x83\xec\x20\x89\x75\xec\xc3";
        let one = Some(-8 - 8 - 8 - 0x14);
        assert_eq!(look(code, 0), Some(Stack { moved: 0, one }));
    }

    #[test]
    fn follows_it_through_registers() {
        // mov $1,%esi; mov %esi,%r15d; call *%rax; mov %r15d,-8(%rsp); ret
        let code = b"\xbe\x01\0\0\0\x41\x89\xf7\xff\xd0\x44\x89\x7c\x24\xf8\xc3";
        assert_eq!(look(code, 0).and_then(|stack| stack.one), Some(-8));
    }

    #[test]
    fn what_is_not_kept_or_changes_is_not_found() {
        // mov $1,%esi; mov %esi,%r15d; ret
        let register = b"\xbe\x01\0\0\0\x41\x89\xf7\xc3";
        // mov $1,%esi; mov %esi,-8(%rsp); mov %eax,-8(%rsp); ret
        let changes = b"\xbe\x01\0\0\0\x89\x74\x24\xf8\x89\x44\x24\xf8\xc3";
        // mov $1,%esi; mov %esi,%r8d; call *%rax; mov %r8d,-8(%rsp); ret
        let lost = b"\xbe\x01\0\0\0\x41\x89\xf0\xff\xd0\x44\x89\x44\x24\xf8\xc3";
        // xor %esi,%esi; mov %esi,-8(%rsp); ret
        let other = b"\x31\xf6\x89\x74\x24\xf8\xc3";
        for code in [&register[..], changes, lost, other] {
            let none = Some(Stack {
                moved: 0,
                one: None,
            });
            assert_eq!(look(code, 0), none, "{code:x?}");
        }
    }

    #[test]
    fn a_place_that_is_used_again_when_all_is_done_counts() {
        // mov $1,%esi; mov %esi,-8(%rsp); call *%rax; mov %eax,-8(%rsp); ret
        let done = b"\xbe\x01\0\0\0\x89\x74\x24\xf8\xff\xd0\x89\x44\x24\xf8\xc3";
        assert_eq!(look(done, 0).and_then(|stack| stack.one), Some(-8));
        // The same with a jump back to the call instead of the return.
        let again = b"\xbe\x01\0\0\0\x89\x74\x24\xf8\xff\xd0\x89\x44\x24\xf8\xeb\xf8";
        assert_eq!(look(again, 0).and_then(|stack| stack.one), None);
    }

    proptest! {
        #[test]
        fn any_code_is_looked_at(code in proptest::collection::vec(any::<u8>(), 1..200)) {
            look(&code, 0);
        }
    }
}
