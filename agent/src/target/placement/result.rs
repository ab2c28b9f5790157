//! Where a function's result is at hand before it returns.
//!
//! A return probe sees a function's result, but it costs a trap and a
//! trampoline, and it replaces a return address on a stack that greenlets
//! copy. A plain probe inside the function sees the result as well, once it
//! is in a register, and is cheap on an instruction that the kernel emulates.
//! Which register holds it where follows from the code, backwards from the
//! return: the analysis here is that of a compiler's copy propagation, over
//! the function, its tail calls and the parts that the compiler put
//! elsewhere.

use std::collections::HashSet;

use iced_x86::{Code, FlowControl, Instruction, InstructionInfoFactory, Mnemonic};
use iced_x86::{OpKind, Register};

use super::flow::{Flow, target, written};

/// A place inside a function where its result is in a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResultSite {
    /// Virtual address of an instruction that the kernel emulates.
    pub address: u64,
    /// The register that holds the result before the instruction.
    pub register: Holder,
}

/// Registers that a probe can read a result from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Holder {
    /// `rax`.
    Rax,
    /// `rbx`.
    Rbx,
    /// `rbp`.
    Rbp,
    /// `rdi`.
    Rdi,
    /// `r12`.
    R12,
    /// `r13`.
    R13,
    /// `r14`.
    R14,
    /// `r15`.
    R15,
}

const HOLDERS: [(Register, Holder); 8] = [
    (Register::RAX, Holder::Rax),
    (Register::RBX, Holder::Rbx),
    (Register::RBP, Holder::Rbp),
    (Register::RDI, Holder::Rdi),
    (Register::R12, Holder::R12),
    (Register::R13, Holder::R13),
    (Register::R14, Holder::R14),
    (Register::R15, Holder::R15),
];

impl Holder {
    /// The holder that a register is, if it is one.
    pub fn of(register: Register) -> Option<Self> {
        let found = HOLDERS.iter().find(|(known, _)| *known == register);
        found.map(|(_, holder)| *holder)
    }
}

/// Registers that a call leaves as they were (System V ABI, x86_64).
const PRESERVED: Registers = Registers::of(&[
    Register::RBX,
    Register::RBP,
    Register::RSP,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
]);

/// Instructions of the largest function that is looked at.
const MAX_INSTRUCTIONS: usize = 512;
/// Sites that are combined with one another.
const MAX_CANDIDATES: usize = 24;

/// A function, and where its result is.
#[derive(Debug)]
pub struct Graph(Flow<Known>);

/// What is known of an instruction.
#[derive(Debug)]
struct Known {
    /// Which registers hold the result before it.
    before: Registers,
    /// It sets the result to zero: nothing is returned on this way.
    clears: bool,
    /// It calls the function at this address, whose result is the result.
    takes_from: Option<u64>,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            before: Registers::ALL,
            clears: false,
            takes_from: None,
        }
    }
}

/// A set of registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Registers(u32);

impl Registers {
    /// Of a way on which no result is returned, all can be said.
    const ALL: Self = Self(u32::MAX);

    const fn of(registers: &[Register]) -> Self {
        let mut bits = 0;
        let mut idx = 0;
        while idx < registers.len() {
            bits |= bit(registers[idx]);
            idx += 1;
        }
        Self(bits)
    }

    fn has(self, register: Register) -> bool {
        self.0 & bit(register) != 0
    }

    fn with(self, register: Register) -> Self {
        Self(self.0 | bit(register))
    }

    fn without(self, register: Register) -> Self {
        Self(self.0 & !bit(register))
    }

    fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// The bit of a full general purpose register; 0 for others.
const fn bit(register: Register) -> u32 {
    let number = register as u32;
    let (first, last) = (Register::RAX as u32, Register::R15 as u32);
    if number >= first && number <= last {
        1 << (number - first)
    } else {
        0
    }
}

impl Graph {
    /// Follows the control flow from `entry`; `code` gives the bytes at an
    /// address, at least one instruction of them, and `linked` where a jump
    /// through the slot at an address leads. None if it can lead where that
    /// does not tell.
    pub fn of(
        entry: u64,
        code: impl Fn(u64) -> Option<Vec<u8>>,
        linked: impl Fn(u64) -> Option<u64>,
    ) -> Option<Self> {
        let flow = Flow::follow(entry, MAX_INSTRUCTIONS, code, |jump, _| {
            let slot = jump.is_ip_rel_memory_operand();
            slot.then(|| linked(jump.ip_rel_memory_address()).map(|leads| vec![leads]))?
        });
        let mut graph = Self(flow?);
        graph.trace_result();
        Some(graph)
    }

    /// Whether the function can run the instruction at an address.
    pub fn contains(&self, address: u64) -> bool {
        self.0.nodes.contains_key(&address)
    }

    /// Whether the function passes one of the sites whenever it returns
    /// something.
    pub fn is_covered_by(&self, sites: &[ResultSite]) -> bool {
        sites
            .iter()
            .filter(|site| self.contains(site.address))
            .all(|site| self.holds(*site))
            && self
                .most_passed(&|address| sites.iter().any(|site| site.address == address))
                .is_some()
    }

    /// Whether what the function returns is always the result of functions of
    /// which `is_known` says that they are seen to return.
    pub fn takes_from(&self, is_known: impl Fn(u64) -> bool) -> bool {
        let known: HashSet<u64> = self
            .0
            .nodes
            .iter()
            .filter(|(_, node)| node.known.takes_from.is_some_and(&is_known))
            .map(|(&address, _)| address)
            .collect();
        self.most_passed(&|address| known.contains(&address))
            .is_some()
    }

    /// Sites of which the function passes at least one whenever it returns
    /// something, and as few as can be.
    pub fn sites(&self) -> Option<Vec<ResultSite>> {
        let candidates: Vec<ResultSite> = self.candidates().take(MAX_CANDIDATES).collect();
        let singles = candidates.iter().map(|&site| vec![site]);
        let pairs = pairs(&candidates).map(|(one, two)| vec![one, two]);
        let mut best = None;
        for chosen in singles.chain(pairs) {
            let passed = self.most_passed(&|at| chosen.iter().any(|site| site.address == at));
            match passed {
                Some(1) => return Some(chosen),
                Some(passed) if best.as_ref().is_none_or(|(least, _)| passed < *least) => {
                    best = Some((passed, chosen));
                }
                _ => {}
            }
        }
        best.map(|(_, chosen)| chosen)
    }

    /// Every instruction that is emulated and finds the result in a register
    /// that can be read.
    fn candidates(&self) -> impl Iterator<Item = ResultSite> {
        self.0
            .nodes
            .iter()
            .filter(|(_, node)| node.emulated && node.known.before != Registers::ALL)
            .filter_map(|(&address, node)| {
                let (_, holder) = HOLDERS
                    .iter()
                    .find(|(register, _)| node.known.before.has(*register))?;
                Some(ResultSite {
                    address,
                    register: *holder,
                })
            })
    }

    /// Whether the site's register holds this function's result, too.
    fn holds(&self, site: ResultSite) -> bool {
        let register = HOLDERS
            .iter()
            .find(|(_, holder)| *holder == site.register)
            .map(|(register, _)| *register);
        let node = self.0.nodes.get(&site.address);
        matches!((register, node), (Some(register), Some(node)) if node.known.before.has(register))
    }

    /// Finds for every instruction which registers hold the result before
    /// it, backwards from the returns.
    fn trace_result(&mut self) {
        let mut info = InstructionInfoFactory::new();
        let addresses: Vec<u64> = self.0.nodes.keys().rev().copied().collect();
        loop {
            let mut changed = false;
            for address in &addresses {
                let Some(node) = self.0.nodes.get(address) else {
                    continue;
                };
                let after = match node.instruction.flow_control() {
                    FlowControl::Return => Registers::of(&[Register::RAX]),
                    _ => node
                        .next
                        .iter()
                        .filter_map(|next| self.0.nodes.get(next))
                        .fold(Registers::ALL, |all, next| all.and(next.known.before)),
                };
                let (before, clears) = step_back(&node.instruction, after, &mut info);
                let called = node.instruction.flow_control() == FlowControl::Call;
                let takes = called && after != Registers::ALL && after.has(Register::RAX);
                if let Some(node) = self.0.nodes.get_mut(address) {
                    changed |= node.known.before != before;
                    node.known.before = before;
                    node.known.clears = clears;
                    node.known.takes_from = target(&node.instruction).filter(|_| takes);
                }
            }
            if !changed {
                return;
            }
        }
    }

    /// The most sites that are passed on a way from the entry to a return
    /// that returns something (counted up to 2); none if there is a way on
    /// which none is.
    fn most_passed(&self, is_site: &dyn Fn(u64) -> bool) -> Option<u8> {
        let mut most = 0;
        let mut seen = HashSet::new();
        let mut pending = vec![(self.0.entry, 0_u8)];
        while let Some((address, passed)) = pending.pop() {
            if !seen.insert((address, passed)) {
                continue;
            }
            let Some(node) = self.0.nodes.get(&address) else {
                continue;
            };
            let passed = (passed + u8::from(is_site(address))).min(2);
            if node.known.clears {
                most = most.max(passed);
                continue;
            }
            if node.instruction.flow_control() == FlowControl::Return {
                if passed == 0 {
                    return None;
                }
                most = most.max(passed);
            }
            pending.extend(node.next.iter().map(|next| (*next, passed)));
        }
        Some(most).filter(|most| *most > 0)
    }
}

/// The registers that hold the result before an instruction, from those that
/// hold it afterwards; and whether the instruction makes the result zero.
fn step_back(
    instruction: &Instruction,
    after: Registers,
    info: &mut InstructionInfoFactory,
) -> (Registers, bool) {
    if after == Registers::ALL {
        return (after, false);
    }
    match instruction.flow_control() {
        FlowControl::Call | FlowControl::IndirectCall => return (after.and(PRESERVED), false),
        _ => {}
    }
    let (to, from) = (instruction.op0_register(), instruction.op1_register());
    if matches!(instruction.code(), Code::Mov_rm64_r64 | Code::Mov_r64_rm64)
        && instruction.op0_kind() == OpKind::Register
        && instruction.op1_kind() == OpKind::Register
    {
        let before = after.without(to);
        return match after.has(to) {
            true => (before.with(from), false),
            false => (before, false),
        };
    }
    if instruction.mnemonic() == Mnemonic::Xor && to == from && after.has(to.full_register()) {
        return (Registers::ALL, true);
    }
    let mut before = after;
    for register in written(info, instruction) {
        before = before.without(register);
    }
    (before, false)
}

fn pairs(sites: &[ResultSite]) -> impl Iterator<Item = (ResultSite, ResultSite)> {
    sites.iter().enumerate().flat_map(|(idx, &one)| {
        let later = sites.iter().skip(idx + 1);
        later.map(move |&two| (one, two))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{COPY_CURRENT_3_8, COPY_CURRENT_3_12};
    use super::*;

    /// Where the function begins in the tests.
    const ENTRY: u64 = 0x1000;
    /// A slot that leads there.
    const SLOT: u64 = 0x2000;

    /// Pieces of Debian's CPython 3.11.2 at their addresses.
    const DEBIAN: [(u64, &[u8]); 5] = [
        // PyContext_CopyCurrent.
        (
            0x69_36f0,
            b"\x56\xe8\x1a\x00\x00\x00\x48\x85\xc0\x0f\x84\x29\x6c\xe0\xff\x48\x8b\x78\x18\x59\
              \xe9\x37\x02\x00\x00",
        ),
        // Its cold part.
        (0x49_a328, b"\x31\xc0\x5a\xc3"),
        // What it, and PyContext_Copy, go on with.
        (
            0x69_3940,
            b"\x55\x48\x89\xfd\x53\x51\xe8\x55\xfe\xff\xff\x48\x89\xc3\x48\x85\xc0\x74\x11\x48\
              \x83\x45\x00\x01\x48\x89\xc7\x48\x89\x68\x18\xe8\x7c\x7f\xe6\xff\x48\x89\xd8\x5a\
              \x5b\x5d\xc3",
        ),
        // PyContext_Copy.
        (
            0x4f_1b9d,
            b"\x48\x81\x7f\x08\x40\x83\x94\x00\x75\x09\x48\x8b\x7f\x18\xe9\x90\x1d\x1a\x00\x50\
              \x48\x8b\x3d\x20\x9f\x54\x00\xbe\x30\x80\x87\x00\xe8\x8e\x65\x0c\x00\x31\xc0\x5a\
              \xc3",
        ),
        // What PyContext_New jumps to.
        (
            0x69_3760,
            b"\x53\xe8\x3a\x00\x00\x00\x48\x85\xc0\x74\x2c\x48\x89\xc3\xe8\x9d\x00\x00\x00\x48\
              \x89\x43\x18\x48\x85\xc0\x74\x0d\x48\x89\xdf\xe8\x5c\x81\xe6\xff\x48\x89\xd8\x5b\
              \xc3\x48\x83\x2b\x01\x75\x08\x48\x89\xdf\xe8\xa9\xd1\xe6\xff\x31\xdb\xeb\xe9",
        ),
    ];

    fn graph(function: &[u8]) -> Option<Graph> {
        Graph::of(
            ENTRY,
            |address| {
                let offset = usize::try_from(address.checked_sub(ENTRY)?).ok()?;
                function.get(offset..).map(<[u8]>::to_vec)
            },
            |slot| (slot == SLOT).then_some(ENTRY),
        )
    }

    fn debian(entry: u64) -> Graph {
        let code = |address: u64| {
            DEBIAN.iter().find_map(|(start, bytes)| {
                let offset = usize::try_from(address.checked_sub(*start)?).ok()?;
                let rest = bytes.get(offset..)?;
                (!rest.is_empty()).then(|| rest.to_vec())
            })
        };
        Graph::of(entry, code, |_| None).expect("follows")
    }

    fn sites(function: &[u8]) -> Option<Vec<(u64, Holder)>> {
        let sites = graph(function)?.sites()?;
        let offsets = sites
            .iter()
            .map(|site| (site.address - ENTRY, site.register));
        Some(offsets.collect())
    }

    #[test]
    fn finds_the_new_context_on_every_way() {
        // Taken from the list of free ones (a branch before its reference is
        // counted), or allocated (the branch on failure).
        assert_eq!(
            sites(COPY_CURRENT_3_8),
            Some(vec![(99, Holder::Rbx), (226, Holder::Rbx)])
        );
        // Both ways meet at a branch on an immortal reference count.
        assert_eq!(sites(COPY_CURRENT_3_12), Some(vec![(119, Holder::Rbx)]));
    }

    #[test]
    fn follows_tail_calls_and_cold_parts() {
        let copy_current = debian(0x69_36f0);
        let expected = ResultSite {
            address: 0x69_3951,
            register: Holder::Rbx,
        };
        let sites = copy_current.sites();
        assert_eq!(sites, Some(vec![expected]));
        // The explicit copy passes the very same place.
        let copy = debian(0x4f_1b9d);
        assert!(copy.contains(expected.address));
        assert!(copy.is_covered_by(&[expected]));
        // A new context does not.
        let new = debian(0x69_3760);
        assert!(!new.contains(expected.address));
        assert!(!new.is_covered_by(&[expected]));
        let own = new.sites().expect("has sites");
        assert!(new.is_covered_by(&own));
    }

    #[test]
    fn a_site_must_lie_on_every_way_that_returns_something() {
        // test %rdi,%rdi; je +6; call; nop (one byte); ret / call; ret:
        // after the calls the result is in rax, and only one way has a place.
        let function = b"\x48\x85\xff\x74\x07\xe8\0\0\0\0\x90\xc3\xe8\0\0\0\0\xc3";
        assert_eq!(sites(function), None);
        // With a place on both.
        let function = b"\x48\x85\xff\x74\x07\xe8\0\0\0\0\x90\xc3\xe8\0\0\0\0\x90\xc3";
        assert_eq!(
            sites(function),
            Some(vec![(10, Holder::Rax), (17, Holder::Rax)])
        );
        // Nothing is returned on the second.
        let function = b"\x48\x85\xff\x74\x07\xe8\0\0\0\0\x90\xc3\x31\xc0\xc3";
        assert_eq!(sites(function), Some(vec![(10, Holder::Rax)]));
    }

    #[test]
    fn knows_whose_result_it_returns() {
        // sub $8,%rsp; call +0x100; add $8,%rsp; ret.
        let wrapper = b"\x48\x83\xec\x08\xe8\x00\x01\0\0\x48\x83\xc4\x08\xc3";
        assert_eq!(sites(wrapper), None);
        let called = ENTRY + 9 + 0x100;
        let follows = graph(wrapper).expect("follows");
        assert!(follows.takes_from(|address| address == called));
        assert!(!follows.takes_from(|address| address == called + 1));
        // The result of the call is not what is returned.
        let other = b"\xe8\x00\x01\0\0\x48\x89\xf8\xc3";
        let follows = graph(other).expect("follows");
        assert!(!follows.takes_from(|_| true));
    }

    #[test]
    fn follows_the_procedure_linkage_table() {
        // nop; call; nop; ret, and behind it: jmp *slot.
        let mut function = b"\xe8\0\0\0\0\x90\xc3\xff\x25".to_vec();
        let after = ENTRY + function.len() as u64 + 4;
        function.extend(u32::try_from(SLOT - after).unwrap().to_le_bytes());
        let stub = Graph::of(
            ENTRY + 7,
            |address| {
                let offset = usize::try_from(address.checked_sub(ENTRY)?).ok()?;
                function.get(offset..).map(<[u8]>::to_vec)
            },
            |slot| (slot == SLOT).then_some(ENTRY),
        );
        let sites = stub.and_then(|graph| graph.sites());
        assert_eq!(
            sites.map(|sites| sites[0].address),
            Some(ENTRY + 5),
            "{function:x?}"
        );
    }

    #[test]
    fn a_register_that_is_written_to_holds_nothing() {
        // call; mov %rax,%rbx; call; mov %rbx,%rax; ret.
        let kept = b"\xe8\0\0\0\0\x48\x89\xc3\xe8\0\0\0\0\x48\x89\xd8\xc3";
        assert_eq!(sites(kept), Some(vec![(8, Holder::Rbx)]));
        // call; mov %rax,%rcx; call: rcx does not outlive it.
        let lost = b"\xe8\0\0\0\0\x48\x89\xc1\xe8\0\0\0\0\x48\x89\xc8\xc3";
        assert_eq!(sites(lost), None);
        // call; mov %eax,%eax; nop would do, but for the half of the value.
        let half = b"\xe8\0\0\0\0\x90\x89\xc0\xc3";
        assert_eq!(sites(half), None);
    }

    #[test]
    fn gives_up_where_the_code_does_not_tell() {
        // jmp *%rax; a jump out of the bytes; nothing at all.
        assert!(graph(b"\xff\xe0").is_none());
        assert!(graph(b"\xe9\x00\x10\x00\x00").is_none());
        assert!(graph(b"").is_none());
        // A circle that never returns has no result.
        assert_eq!(sites(b"\xeb\xfe"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_analyzed(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(graph) = graph(&bytes)
                && let Some(sites) = graph.sites()
            {
                prop_assert!(graph.is_covered_by(&sites));
            }
        }
    }
}
