//! Where in a function a uprobe goes.
//!
//! A uprobe on an instruction that the kernel emulates costs under a
//! microsecond; any other is single-stepped, which takes a debug exception
//! and cost ten times as much when measured in a virtual machine. The kernel
//! emulates `push` of a 64-bit register, `nop` and relative `jmp`, `call` and
//! `jcc` (`arch/x86/kernel/uprobes.c`, `branch_setup_xol_insn` and
//! `push_setup_xol_insn`); most prologues begin with one, or with `endbr64`
//! and then one. `ret` is not among them.
//!
//! A probe that is to be a return probe (`uretprobe`) must stay at offset 0:
//! the return address is at the top of the stack only there.

pub mod argument;
pub mod calls;
pub mod flow;
pub mod path;
pub mod result;
pub mod spill;

use std::collections::BTreeSet;

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction};
use iced_x86::{InstructionInfoFactory, OpKind, Register};

/// Where an entry probe goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Bytes from the function's entry.
    pub offset: u64,
    /// Whether the kernel must single-step the instruction there.
    pub single_stepped: bool,
}

/// The cheapest place for a probe that reads the function's first two
/// arguments (`rdi`, `rsi`).
///
/// It is reached exactly once per call: no branch lies before it and none of
/// the function's own leads to it or before it.
pub fn entry(function: &[u8]) -> Placement {
    let first_target = branch_targets(function)
        .first()
        .copied()
        .unwrap_or(usize::MAX);
    let mut info = InstructionInfoFactory::new();
    let mut decoder = decoder(function, 0);
    while decoder.can_decode() {
        let offset = decoder.position();
        let instruction = decoder.decode();
        if instruction.is_invalid() || (offset > 0 && first_target <= offset) {
            break;
        }
        let end = offset.saturating_add(instruction.len());
        if is_emulated(&instruction, function.get(offset..end).unwrap_or_default()) {
            return Placement {
                offset: offset as u64,
                single_stepped: false,
            };
        }
        let writes_argument = flow::written(&mut info, &instruction)
            .any(|written| matches!(written, Register::RDI | Register::RSI));
        if instruction.flow_control() != FlowControl::Next || writes_argument {
            break;
        }
    }
    Placement {
        offset: 0,
        single_stepped: true,
    }
}

/// The place for a probe on a function's return: the kernel takes the return
/// address from the top of the stack, so that nothing but `endbr64` may be
/// skipped.
pub fn return_probe(function: &[u8]) -> Placement {
    const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
    let offset = if function.starts_with(&ENDBR64) {
        ENDBR64.len()
    } else {
        0
    };
    let rest = function.get(offset..).unwrap_or_default();
    let instruction = decoder(rest, 0).decode();
    let emulated = is_emulated(
        &instruction,
        rest.get(..instruction.len()).unwrap_or_default(),
    );
    Placement {
        offset: if emulated { offset as u64 } else { 0 },
        single_stepped: !emulated,
    }
}

/// Offsets to which the function's own branches lead.
fn branch_targets(function: &[u8]) -> BTreeSet<usize> {
    let mut targets = BTreeSet::new();
    let mut seen = vec![false; function.len()];
    let mut pending = vec![0];
    while let Some(start) = pending.pop() {
        let mut decoder = decoder(function, start);
        loop {
            match seen.get_mut(decoder.position()) {
                Some(seen) if !*seen => *seen = true,
                _ => break,
            }
            let instruction = decoder.decode();
            if instruction.is_invalid() {
                break;
            }
            let branch = || target_inside(function, &instruction);
            match instruction.flow_control() {
                FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall => {}
                FlowControl::ConditionalBranch => {
                    targets.extend(branch());
                    pending.extend(branch());
                }
                FlowControl::UnconditionalBranch => {
                    targets.extend(branch());
                    pending.extend(branch());
                    break;
                }
                FlowControl::Return
                | FlowControl::Exception
                | FlowControl::Interrupt
                | FlowControl::IndirectBranch
                | FlowControl::XbeginXabortXend => break,
            }
        }
    }
    targets
}

/// The offset to which a branch leads, if that lies inside.
fn target_inside(function: &[u8], instruction: &Instruction) -> Option<usize> {
    let near = matches!(
        instruction.op0_kind(),
        OpKind::NearBranch64 | OpKind::NearBranch32
    );
    let target = usize::try_from(instruction.near_branch_target().wrapping_sub(BASE)).ok();
    target.filter(|target| near && *target < function.len())
}

/// Whether the kernel emulates the instruction with these bytes.
fn is_emulated(instruction: &Instruction, bytes: &[u8]) -> bool {
    match instruction.code() {
        // Without a prefix but REX.B, which selects r8 to r15.
        Code::Push_r64 => matches!(bytes, [0x50..=0x57] | [0x41, 0x50..=0x57]),
        // Only the one-byte form, whatever its prefixes: `0f 1f` is left to
        // the processor.
        Code::Nopw | Code::Nopd | Code::Nopq => bytes.last() == Some(&0x90),
        Code::Jmp_rel8_64 | Code::Jmp_rel32_64 | Code::Call_rel32_64 => !has_operand_size(bytes),
        code => {
            let conditional = code.is_jcc_short() || code.is_jcc_near();
            conditional && !has_operand_size(bytes)
        }
    }
}

/// Whether the instruction carries the prefix 66, with which the kernel
/// refuses to probe a branch at all.
fn has_operand_size(bytes: &[u8]) -> bool {
    let is_prefix = |byte: &&u8| matches!(**byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3);
    bytes.iter().take_while(is_prefix).any(|byte| *byte == 0x66)
}

fn decoder(function: &[u8], offset: usize) -> Decoder<'_> {
    let mut decoder = Decoder::with_ip(64, function, BASE, DecoderOptions::NONE);
    // An offset inside the bytes is always accepted.
    if decoder.set_position(offset).is_ok() {
        decoder.set_ip(BASE + offset as u64);
    }
    decoder
}

/// Where functions are decoded: high enough that a jump backwards out of one
/// does not wrap around.
const BASE: u64 = 1 << 40;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// `PyContext_CopyCurrent` of CPython 3.8.18 as built by pyenv.
    pub(super) const COPY_CURRENT_3_8: &[u8] = b"\
        \x41\x54\x55\x48\x8b\x2d\x5e\x14\x19\x00\x53\x48\x8b\x9d\x58\x05\x00\x00\x48\x8b\x83\xf0\
        \x00\x00\x00\x48\x85\xc0\x0f\x84\xde\x00\x00\x00\x4c\x8b\x60\x18\x8b\x05\x94\x90\x1e\x00\
        \x85\xc0\x0f\x84\x9c\x00\x00\x00\x48\x8b\x1d\x8d\x90\x1e\x00\x83\xe8\x01\x89\x05\x7c\x90\
        \x1e\x00\x48\x8b\x43\x20\x48\xc7\x43\x20\x00\x00\x00\x00\x48\x89\x05\x71\x90\x1e\x00\x48\
        \x8b\x05\x12\x0f\x19\x00\x8b\x40\x04\x85\xc0\x0f\x85\x87\x00\x00\x00\x48\xc7\x03\x01\x00\
        \x00\x00\x48\x8b\x95\xb8\x01\x00\x00\x48\x8b\x43\xf8\x48\x8d\x4b\xf0\x48\xc7\x43\x10\x00\
        \x00\x00\x00\xc7\x43\x28\x00\x00\x00\x00\x48\x8b\x72\x08\x83\xe0\x03\x66\x48\x0f\x6e\xc2\
        \x48\xc7\x43\x20\x00\x00\x00\x00\x49\x83\x04\x24\x01\x48\x09\xf0\x4c\x89\x63\x18\x66\x48\
        \x0f\x6e\xc8\x48\x89\x0e\x66\x0f\x6c\xc1\x0f\x11\x43\xf0\x48\x89\x4a\x08\x48\x89\xd8\x5b\
        \x5d\x41\x5c\xc3\x66\x0f\x1f\x44\x00\x00\x48\x8b\x3d\xc9\x10\x19\x00\xe8\x84\xd5\xed\xff\
        \x48\x89\xc3\x48\x85\xc0\x75\x8c\x31\xdb\xeb\xda\x0f\x1f\x84\x00\x00\x00\x00\x00\x48\x89\
        \xdf\xe8\x28\xed\xed\xff\xe9\x6c\xff\xff\xff\x0f\x1f\x00\xe8\x5b\xee\xff\xff\x48\x85\xc0\
        \x74\xda\x48\x89\x83\xf0\x00\x00\x00\xe9\x0c\xff\xff\xff";

    /// `PyContext_CopyCurrent` of CPython 3.12.1 as built by pyenv.
    pub(super) const COPY_CURRENT_3_12: &[u8] = b"\
        \x41\x54\x55\x53\x66\x48\x8d\x3d\xc4\x68\x2a\x00\x66\x66\x48\xe8\xac\xaf\xe6\xff\x4c\x8b\
        \x20\x48\x89\xc3\x49\x8b\x84\x24\xd0\x00\x00\x00\x48\x85\xc0\x0f\x84\xe5\x00\x00\x00\x48\
        \x8b\x68\x18\x49\x8b\x44\x24\x10\x8b\x90\xf0\x2b\x04\x00\x85\xd2\x0f\x85\x96\x00\x00\x00\
        \x48\x8b\x3d\x6f\x64\x2a\x00\xe8\xe2\xb1\xe6\xff\x48\x89\xc3\x48\x85\xc0\x0f\x84\xd6\x00\
        \x00\x00\x8b\x45\x00\x48\xc7\x43\x10\x00\x00\x00\x00\xc7\x43\x28\x00\x00\x00\x00\x48\xc7\
        \x43\x20\x00\x00\x00\x00\x83\xc0\x01\x74\x03\x89\x45\x00\x48\x89\x6b\x18\x66\x48\x8d\x3d\
        \x48\x68\x2a\x00\x66\x66\x48\xe8\x30\xaf\xe6\xff\x48\x8d\x4b\xf0\x48\x8b\x00\x48\x8b\x40\
        \x10\x48\x8b\x90\xd0\x00\x00\x00\x48\x8b\x43\xf8\x48\x8b\x72\x08\x83\xe0\x03\x66\x48\x0f\
        \x6e\xc2\x48\x09\xf0\x48\x89\x0e\x66\x48\x0f\x6e\xc8\x66\x0f\x6c\xc1\x0f\x11\x43\xf0\x48\
        \x89\x4a\x08\x48\x89\xd8\x5b\x5d\x41\x5c\xc3\x0f\x1f\x80\x00\x00\x00\x00\x48\x8b\x98\xe8\
        \x2b\x04\x00\x83\xea\x01\x89\x90\xf0\x2b\x04\x00\x48\x8b\x53\x20\x48\x89\xdf\x48\x89\x90\
        \xe8\x2b\x04\x00\x48\xc7\x43\x20\x00\x00\x00\x00\xe8\x7d\xd1\xe6\xff\xe9\x52\xff\xff\xff\
        \x0f\x1f\x84\x00\x00\x00\x00\x00\xe8\x4b\xed\xff\xff\x48\x85\xc0\x74\x16\x49\x89\x84\x24\
        \xd0\x00\x00\x00\x4c\x8b\x23\xe9\x01\xff\xff\xff\x66\x0f\x1f\x44\x00\x00\x31\xdb\xeb\x95";

    /// `PyContext_CopyCurrent` of Debian's CPython 3.11.2: a cold part lies
    /// elsewhere and it ends with a tail call.
    const COPY_CURRENT_DEBIAN: &[u8] = b"\
        \x56\xe8\x1a\x00\x00\x00\x48\x85\xc0\x0f\x84\x29\x6c\xe0\xff\x48\x8b\x78\x18\x59\xe9\x37\
        \x02\x00\x00";

    const fn cheap(offset: u64) -> Placement {
        Placement {
            offset,
            single_stepped: false,
        }
    }

    const FALLBACK: Placement = Placement {
        offset: 0,
        single_stepped: true,
    };

    #[test]
    fn a_return_probe_skips_nothing_but_the_landing_pad() {
        let place = |bytes: &[u8]| {
            let Placement {
                offset,
                single_stepped,
            } = return_probe(bytes);
            (offset, single_stepped)
        };
        // push %r12; endbr64, push %rbp; mov %rdi,%rax; endbr64, mov; nothing.
        assert_eq!(place(&[0x41, 0x54]), (0, false));
        assert_eq!(place(&[0xf3, 0x0f, 0x1e, 0xfa, 0x55]), (4, false));
        assert_eq!(place(&[0x48, 0x89, 0xf8]), (0, true));
        assert_eq!(
            place(&[0xf3, 0x0f, 0x1e, 0xfa, 0x48, 0x89, 0xf8]),
            (0, true)
        );
        assert_eq!(place(&[]), (0, true));
    }

    #[test]
    fn real_prologues_begin_with_a_push() {
        for function in [COPY_CURRENT_3_8, COPY_CURRENT_3_12, COPY_CURRENT_DEBIAN] {
            assert_eq!(entry(function), cheap(0));
        }
    }

    #[test]
    fn skips_what_the_kernel_would_single_step() {
        // endbr64; push %r15
        assert_eq!(entry(b"\xf3\x0f\x1e\xfa\x41\x57\xc3"), cheap(4));
        // mov %rdi,%rax; sub $8,%rsp; call
        assert_eq!(
            entry(b"\x48\x89\xf8\x48\x83\xec\x08\xe8\0\0\0\0\xc3"),
            cheap(7)
        );
        // test %rdi,%rdi; je +1; ret; ret
        assert_eq!(entry(b"\x48\x85\xff\x74\x01\xc3\xc3"), cheap(3));
        // nop with an operand-size prefix
        assert_eq!(entry(b"\x66\x90\xc3"), cheap(0));
    }

    #[test]
    fn keeps_the_arguments() {
        for function in [
            // mov $1,%edi; push %rbx
            &b"\xbf\x01\0\0\0\x53\xc3"[..],
            // xor %esi,%esi; push %rbx
            b"\x31\xf6\x53\xc3",
            // xchg %rax,%rdi; push %rbx
            b"\x48\x97\x53\xc3",
            // rep stosb (changes rdi); push %rbx
            b"\xf3\xaa\x53\xc3",
        ] {
            assert_eq!(entry(function), FALLBACK);
        }
    }

    #[test]
    fn stops_at_a_branch_and_before_a_loop() {
        // jmp *%rax; push %rbx
        assert_eq!(entry(b"\xff\xe0\x53\xc3"), FALLBACK);
        // mov %rax,%rcx; again: push %rbx; pop %rbx; dec %rcx; jne again; ret
        assert_eq!(
            entry(b"\x48\x89\xc1\x53\x5b\x48\xff\xc9\x75\xf9\xc3"),
            FALLBACK
        );
        // A call through a register; push %rbx
        assert_eq!(entry(b"\xff\xd0\x53\xc3"), FALLBACK);
    }

    #[test]
    fn leaves_other_forms_to_the_processor() {
        for function in [
            // nopl 0(%rax,%rax,1); ret
            &b"\x0f\x1f\x44\0\0\xc3"[..],
            // push of memory and of a constant
            b"\xff\x37\xc3",
            b"\x6a\x01\xc3",
            // xchg %rax,%r8, which has the opcode of nop
            b"\x49\x90\xc3",
            // a 16-bit push
            b"\x66\x53\xc3",
            b"",
            b"\xff\xff\xff",
        ] {
            assert_eq!(entry(function), FALLBACK, "{function:x?}");
        }
    }

    #[test]
    fn any_bytes_are_handled() {
        let mut state = 1_u64;
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..24)
                .map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    (state >> 56) as u8
                })
                .collect();
            let placement = entry(&bytes);
            assert!(placement.offset < 24);
        }
    }
}
