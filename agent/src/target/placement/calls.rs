//! Where code calls certain functions, and where it has the result.
//!
//! A relative `call` is emulated by the kernel, and at it every argument is in
//! its register: a probe there is as cheap as one on the function's entry, and
//! sees only the calls of this code. What follows a call mostly tests the
//! result and branches, which is emulated, too, and passed exactly once.

use std::collections::HashMap;

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, InstructionInfoFactory, Mnemonic};
use iced_x86::{Instruction, OpKind, Register};

use super::flow::written;
use super::is_emulated;

/// A part of a file's code.
#[derive(Clone, Copy, Debug)]
pub struct CodePart<'a> {
    /// Virtual address of its first byte: that of an instruction.
    pub address: u64,
    /// The code.
    pub bytes: &'a [u8],
}

/// A call of a function that is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallSite<F> {
    /// Which function.
    pub function: F,
    /// Virtual address of the call.
    pub call: u64,
    /// Virtual address of an instruction after it at which `rax` holds the
    /// result: the first that the kernel emulates, or the one right after the
    /// call, which it steps over, where it emulates none in time. None of a
    /// call that does not come back (a tail call).
    pub result: Option<u64>,
}

/// Instructions after a call among which the place of its result is looked
/// for.
const MAX_AFTER: usize = 24;

/// Every call of the functions at these virtual addresses, or through the
/// slots at those, in a file's code.
///
/// The code is taken instruction by instruction from the begin of each part,
/// so that no probe is ever set inside of one.
pub fn calls<F: Copy>(
    parts: &[CodePart<'_>],
    functions: &HashMap<u64, F>,
    slots: &HashMap<u64, F>,
) -> Vec<CallSite<F>> {
    let mut targets = functions.clone();
    for part in parts {
        targets.extend(stubs(part, slots));
    }
    let mut found = Vec::new();
    for part in parts {
        let mut decoder = part.decoder();
        let mut instruction = Instruction::default();
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            let (function, comes_back) = match instruction.code() {
                Code::Call_rel32_64 => (targets.get(&instruction.near_branch_target()), true),
                Code::Jmp_rel32_64 => (targets.get(&instruction.near_branch_target()), false),
                Code::Call_rm64 => (
                    slot_of(&instruction).and_then(|slot| slots.get(&slot)),
                    true,
                ),
                _ => continue,
            };
            let Some(&function) = function else {
                continue;
            };
            let next = instruction.next_ip();
            let result = comes_back.then(|| result_after(part, next).unwrap_or(next));
            found.push(CallSite {
                function,
                call: instruction.ip(),
                result,
            });
        }
    }
    found
}

impl<'a> CodePart<'a> {
    fn decoder(&self) -> Decoder<'a> {
        Decoder::with_ip(64, self.bytes, self.address, DecoderOptions::NONE)
    }
}

/// The entries of the procedure linkage table that jump through the slots.
fn stubs<F: Copy>(part: &CodePart<'_>, slots: &HashMap<u64, F>) -> Vec<(u64, F)> {
    let mut found = Vec::new();
    let mut begin = None;
    for instruction in &mut part.decoder() {
        if instruction.mnemonic() == Mnemonic::Endbr64 {
            begin = Some((instruction.ip(), instruction.next_ip()));
            continue;
        }
        if instruction.code() == Code::Jmp_rm64
            && let Some(slot) = slot_of(&instruction)
            && let Some(&function) = slots.get(&slot)
        {
            found.push((instruction.ip(), function));
            if let Some((entry, next)) = begin
                && next == instruction.ip()
            {
                found.push((entry, function));
            }
        }
        begin = None;
    }
    found
}

/// The slot that a call or jump takes its target from.
fn slot_of(instruction: &Instruction) -> Option<u64> {
    let is_slot =
        instruction.op0_kind() == OpKind::Memory && instruction.is_ip_rel_memory_operand();
    is_slot.then(|| instruction.ip_rel_memory_address())
}

/// Where the result of a call that returns to an address is in `rax` at an
/// instruction that the kernel emulates.
fn result_after(part: &CodePart<'_>, address: u64) -> Option<u64> {
    let offset = usize::try_from(address.checked_sub(part.address)?).ok()?;
    let bytes = part.bytes.get(offset..)?;
    let mut info = InstructionInfoFactory::new();
    let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
    for _ in 0..MAX_AFTER {
        let begin = decoder.position();
        if !decoder.can_decode() {
            return None;
        }
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            return None;
        }
        if is_emulated(&instruction, bytes.get(begin..decoder.position())?) {
            return Some(instruction.ip());
        }
        let overwrites = written(&mut info, &instruction).any(|written| written == Register::RAX);
        if instruction.flow_control() != FlowControl::Next || overwrites {
            return None;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: u64 = 0x1_9000;
    const SLOT: u64 = 0x3_0000;
    const FUNCTION: u64 = TEXT + 0x100;

    fn find(code: &[u8]) -> Vec<(char, u64, Option<u64>)> {
        let part = CodePart {
            address: TEXT,
            bytes: code,
        };
        let functions = HashMap::from([(FUNCTION, 'f')]);
        let slots = HashMap::from([(SLOT, 's')]);
        calls(&[part], &functions, &slots)
            .into_iter()
            .map(|site| {
                let result = site.result.map(|result| result - TEXT);
                (site.function, site.call - TEXT, result)
            })
            .collect()
    }

    /// A 32-bit distance from the end of an instruction at an offset.
    fn distance(to: u64, end: usize) -> [u8; 4] {
        let from = TEXT + end as u64;
        let distance = to.cast_signed() - from.cast_signed();
        i32::try_from(distance).unwrap().to_le_bytes()
    }

    fn call(code: &mut Vec<u8>, to: u64) {
        code.push(0xe8);
        let end = code.len() + 4;
        code.extend(distance(to, end));
    }

    #[test]
    fn finds_calls_and_the_branches_on_their_results() {
        // As in CPython 3.11's `_ssl`: mov %eax,%ebp; test %eax,%eax; je.
        let mut code = vec![0x90];
        call(&mut code, FUNCTION);
        code.extend(b"\x89\xc5\x85\xc0\x0f\x84\x00\x01\x00\x00\xc3");
        assert_eq!(find(&code), [('f', 1, Some(10))]);
    }

    #[test]
    fn a_call_of_another_function_finds_the_result_as_well() {
        // As in Debian's `_ssl`: xor %edi,%edi; test; mov; sete; call.
        let mut code = Vec::new();
        call(&mut code, FUNCTION);
        code.extend(b"\x31\xff\x85\xc0\x89\xc2\x40\x0f\x94\xc7");
        call(&mut code, FUNCTION + 0x40);
        assert_eq!(find(&code), [('f', 0, Some(15))]);
    }

    #[test]
    fn follows_the_procedure_linkage_table() {
        // endbr64; bnd jmp *slot, and a call of it; a call through the slot.
        let mut code = b"\xf3\x0f\x1e\xfa\xf2\xff\x25".to_vec();
        code.extend(distance(SLOT, 11));
        call(&mut code, TEXT);
        code.extend(b"\x85\xc0\x74\x02\xff\x15");
        code.extend(distance(SLOT, 26));
        code.extend(b"\x90\xc3");
        assert_eq!(
            find(&code),
            [('s', 11, Some(18)), ('s', 20, Some(26))],
            "{code:x?}"
        );
    }

    #[test]
    fn a_result_that_is_gone_soon_is_there_right_after_the_call() {
        // As in `cryptography`'s wheels: mov %eax,%r12d; call *slot.
        let mut code = Vec::new();
        call(&mut code, FUNCTION);
        code.extend(b"\x41\x89\xc4\xff\x15\x00\x01\x00\x00\xc3");
        assert_eq!(find(&code), [('f', 0, Some(5))]);
        // xor %eax,%eax; nop.
        let mut code = Vec::new();
        call(&mut code, FUNCTION);
        code.extend(b"\x31\xc0\x90\xc3");
        assert_eq!(find(&code), [('f', 0, Some(5))]);
        // ret.
        let mut code = Vec::new();
        call(&mut code, FUNCTION);
        code.push(0xc3);
        assert_eq!(find(&code), [('f', 0, Some(5))]);
    }

    #[test]
    fn a_tail_call_has_no_result() {
        let mut code = vec![0xe9];
        code.extend(distance(FUNCTION, 5));
        code.push(0x90);
        assert_eq!(find(&code), [('f', 0, None)]);
    }

    #[test]
    fn bytes_inside_an_instruction_are_no_call() {
        // movabs $imm64,%rax, whose immediate looks like one.
        let mut code = b"\x48\xb8\x90".to_vec();
        call(&mut code, FUNCTION);
        code.extend(b"\x90\x90\xc3");
        assert_eq!(find(&code), []);
    }

    proptest! {
        #[test]
        fn any_bytes_are_searched(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for (_, call, result) in find(&bytes) {
                prop_assert!(call < bytes.len() as u64);
                prop_assert!(result.is_none_or(|result| result > call));
            }
        }
    }
}
