//! Where `PyContext` objects come into being, as places for plain probes.
//!
//! Every way in which CPython makes a context must be seen, or a recycled
//! address would keep its predecessor's owner. Return probes on the makers
//! see them, too, but cost three times as much and cannot be used where
//! greenlets copy stacks. `placement::result` finds places inside the makers;
//! this module combines those of all makers.

use crate::target::elf::MappedElf;
use crate::target::placement::result::{Graph, Holder, ResultSite};

/// What is born at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Birth {
    /// A copy of the current context; it is in this register.
    CopiedIn(Holder),
    /// Another context; it is in this register.
    CreatedIn(Holder),
    /// Nothing yet: a maker begins that goes on to a place of
    /// [`Birth::CopiedIn`] without copying the current context.
    Explicit,
}

/// Every place to probe, as an offset in the image's file, given the virtual
/// addresses of `PyContext_CopyCurrent` and of all other makers. None if a
/// maker's code does not tell where its result is.
pub fn places(image: &MappedElf, copy_current: u64, makers: &[u64]) -> Option<Vec<(Birth, u64)>> {
    let elf = &image.elf;
    let code = |address| elf.bytes(elf.file_offset(address)?, LONGEST).ok();
    let linked = |slot| elf.linked_function(slot).ok().flatten();
    let births = combine(code, linked, copy_current, makers)?;
    births
        .into_iter()
        .map(|(birth, address)| Some((birth, elf.file_offset(address)?)))
        .collect()
}

/// As [`places`], at virtual addresses.
fn combine(
    code: impl Fn(u64) -> Option<Vec<u8>>,
    linked: impl Fn(u64) -> Option<u64>,
    copy_current: u64,
    makers: &[u64],
) -> Option<Vec<(Birth, u64)>> {
    let copies = Graph::of(copy_current, &code, &linked)?.sites()?;
    let mut births: Vec<_> = copies
        .iter()
        .map(|site| (Birth::CopiedIn(site.register), site.address))
        .collect();
    let mut created = Vec::new();
    let mut callers = Vec::new();
    for &maker in makers {
        let graph = Graph::of(maker, &code, &linked)?;
        let shares = |site: &ResultSite| graph.contains(site.address);
        if copies.iter().any(shares) {
            if !graph.is_covered_by(&copies) {
                return None;
            }
            births.push((Birth::Explicit, maker));
            continue;
        }
        match graph.sites() {
            Some(sites) => created.extend(sites),
            None => callers.push(graph),
        }
    }
    // What calls another maker and returns its result needs no place.
    let seen = |function| {
        Graph::of(function, &code, &linked).is_some_and(|graph| graph.is_covered_by(&created))
    };
    if !callers.iter().all(|graph| graph.takes_from(seen)) {
        return None;
    }
    births.extend(
        created
            .iter()
            .map(|site| (Birth::CreatedIn(site.register), site.address)),
    );
    births.sort_by_key(|(_, address)| *address);
    births.dedup();
    // One place cannot be of two kinds.
    let ambiguous = births
        .iter()
        .zip(births.iter().skip(1))
        .any(|((_, one), (_, two))| one == two);
    (!ambiguous).then_some(births)
}

/// Bytes of the longest instruction.
const LONGEST: u64 = 15;
