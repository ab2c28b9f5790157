//! Damaged memory must neither crash a reader nor keep it busy: what was
//! recorded of real processes is damaged at random, and read in every way.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use otel_ebpf_tests::memory::{Recording, Situation, tell};
use pyframes::code::Code;
use pyframes::layout::{ABSENT, Layout};
use pyframes::repr::{Limits, write_repr};
use pyframes::{Error, attribute, exception, frame, generator, line, object};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

/// Memory that is damaged in some places at a time.
struct Damaged {
    recording: Recording,
    /// Words that lead to recorded memory: objects, mostly.
    pointers: Vec<u64>,
    /// For each of [`READS`], those of them that it understands.
    objects: Vec<Vec<u64>>,
    /// Where bytes were replaced, and by what: range, place, the bytes before.
    damages: Vec<(usize, usize, Vec<u8>)>,
    random: SmallRng,
}

impl Damaged {
    fn new(recording: Recording, seed: u64) -> Self {
        let layout = recording.layout();
        let mut pointers = Vec::new();
        for range in &recording.ranges {
            // Ranges begin anywhere; pointers are at multiples of eight.
            let skip = range.address.wrapping_neg() as usize % 8;
            for word in range
                .bytes
                .iter()
                .skip(skip)
                .collect::<Vec<_>>()
                .chunks_exact(8)
            {
                let word = word
                    .iter()
                    .rev()
                    .fold(0, |word, byte| word << 8 | u64::from(**byte));
                let is_object = object::type_of(&recording, layout, word).is_ok();
                let is_frame = frame::of_object(&recording, layout, word)
                    .and_then(|frame| frame::code(&recording, layout, frame));
                if is_object || is_frame.is_ok() {
                    pointers.push(word);
                }
            }
        }
        pointers.sort_unstable();
        pointers.dedup();
        let mut objects = Vec::new();
        for (_, read) in READS {
            let understood = |object: &u64| read(&recording, layout, *object, 7).is_ok();
            objects.push(pointers.iter().copied().filter(understood).collect());
        }
        recording.take_reads();
        Self {
            recording,
            pointers,
            objects,
            damages: Vec::new(),
            random: SmallRng::seed_from_u64(seed),
        }
    }

    /// Anything that is pointed to.
    fn pointer(&mut self) -> u64 {
        *self.pointers.choose(&mut self.random).expect("not empty")
    }

    /// One of [`READS`], and mostly an object that it understands.
    fn choose(&mut self) -> (usize, u64) {
        let read_idx = self.random.random_range(0..READS.len());
        let object = match self.random.random_range(0..8) {
            0 => None,
            _ => self.objects[read_idx].choose(&mut self.random).copied(),
        };
        (read_idx, object.unwrap_or_else(|| self.pointer()))
    }

    /// Replaces some bytes, half of the time near `address`; repairs the
    /// oldest damage if there are several.
    fn damage(&mut self, address: u64) {
        if self.damages.len() == MAX_DAMAGES {
            let (range, at, before) = self.damages.remove(0);
            let into = &mut self.recording.ranges[range].bytes[at..at + before.len()];
            into.copy_from_slice(&before);
        }
        let near = self.random.random_bool(0.5);
        let address = if near { address } else { self.pointer() };
        let ranges = &self.recording.ranges;
        let behind = ranges.partition_point(|range| range.address <= address);
        let range = behind.saturating_sub(1);
        let start = address.saturating_sub(ranges[range].address) as usize;
        let at = (start + self.random.random_range(0..32) * 8).min(ranges[range].bytes.len() - 1);
        let word = match self.random.random_range(0..7) {
            0 => 0,
            1 => u64::MAX,
            2 => self.random.random_range(0..256),
            3 => self.random.random(),
            4 => 1 << self.random.random_range(0..64),
            _ => self.pointer(),
        };
        let len = *[1, 4, 8, 8, 8].choose(&mut self.random).expect("not empty");
        let bytes = &mut self.recording.ranges[range].bytes[at..];
        let len = len.min(bytes.len());
        self.damages.push((range, at, bytes[..len].to_vec()));
        bytes[..len].copy_from_slice(&word.to_le_bytes()[..len]);
    }
}

type Read = fn(&Recording, &Layout, u64, u64) -> std::result::Result<(), Error>;

/// Everything that is done to an object; the last argument is a number for
/// whatever is free to choose.
const READS: [(&str, Read); 12] = [
    ("repr", |memory, layout, object, number| {
        let limits = Limits {
            depth: number as usize % 20,
            items: number % 50,
            text: number % 300,
            bytes: number as usize % 1000,
            reads: REPR_READS,
        };
        let mut told = String::new();
        write_repr(memory, layout, object, &limits, &mut told).map_err(|_| Error::Malformed)?;
        assert!(told.len() <= limits.bytes + 3, "{told}");
        if told.starts_with("<unreadable>") {
            return Err(Error::Unreadable);
        }
        Ok(())
    }),
    ("instance", |memory, layout, object, number| {
        let name = ["first", "missing", "code", "route"][number as usize % 4];
        Situation::new(memory, layout).instance(object, name)
    }),
    ("class attribute", |memory, layout, object, _| {
        attribute::class_attribute(memory, layout, object, "__module__").map(drop)
    }),
    ("types", |memory, layout, object, _| {
        Situation::new(memory, layout).types(object)
    }),
    ("exception", |memory, layout, object, _| {
        exception::chain(memory, layout, object).try_for_each(|linked| linked.map(drop))
    }),
    ("told exception", |memory, layout, object, _| {
        Situation::new(memory, layout).exception(object)
    }),
    ("generator", |memory, layout, object, _| {
        Situation::new(memory, layout).generator(object).map(drop)
    }),
    ("awaited", |memory, layout, object, _| {
        generator::awaited(memory, layout, object).map(drop)
    }),
    ("frames", |memory, layout, object, _| {
        Situation::new(memory, layout).frames(object)
    }),
    ("position", |memory, layout, object, number| {
        let code = Code::read(memory, layout, object)?;
        line::position(memory, layout, &code, number as u32 % 200).map(drop)
    }),
    ("lasti", |memory, layout, object, number| {
        let first = match layout.code.co_code_adaptive {
            ABSENT => 0,
            offset => object.wrapping_add(u64::from(offset)),
        };
        line::lasti(memory, layout, object, first.wrapping_add(number % 400)).map(drop)
    }),
    ("variables", |memory, layout, object, number| {
        let code = Code::read(memory, layout, object)?;
        for variable in code.variables(memory, layout)? {
            variable?.value(memory, layout, object.wrapping_add(number % 400))?;
        }
        Ok(())
    }),
];

#[test]
fn damaged_memory_is_read_within_bounds() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/memory");
    let mut recordings = BTreeMap::new();
    for entry in std::fs::read_dir(&folder).context("no recordings")? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "bin") {
            recordings.insert(path.clone(), Recording::decode(&std::fs::read(&path)?)?);
        }
    }
    ensure!(recordings.len() >= 8, "{} recordings", recordings.len());
    let n_steps = STEPS / recordings.len() + 1;
    let done: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(recordings)
            .map(|(seed, (path, recording))| {
                scope.spawn(move || read_damaged(Damaged::new(recording, seed), n_steps, &path))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    });
    for done in done {
        let n_understood = done.expect("no reader panics");
        // Most damage must not hide everything, or little was tested.
        assert!(n_understood > n_steps / 4, "{n_understood} of {n_steps}");
    }
    Ok(())
}

/// Reads in every way, some of the memory being damaged; returns how often
/// something was understood.
fn read_damaged(mut memory: Damaged, n_steps: usize, path: &Path) -> usize {
    let layout = memory.recording.layout();
    let mut n_understood = 0;
    for step in 0..n_steps {
        let (read_idx, object) = memory.choose();
        memory.damage(object);
        let number = memory.random.random();
        let (name, read) = READS[read_idx];
        n_understood += usize::from(read(&memory.recording, layout, object, number).is_ok());
        let n_reads = memory.recording.take_reads();
        assert!(
            n_reads <= MAX_READS,
            "{n_reads} reads: {name} of {object:x}, step {step} of {}",
            path.display()
        );
    }
    n_understood
}

/// The whole text is told as well, the root being damaged in turn.
#[test]
fn damaged_memory_is_told_to_the_end() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/memory/3.12.bin");
    let recording = Recording::decode(&std::fs::read(path)?)?;
    let (layout, root) = (recording.layout(), recording.root);
    let whole = tell(&recording, layout, root).len();
    let mut memory = Damaged::new(recording, 1);
    for _ in 0..200 {
        let object = memory.pointer();
        memory.damage(object);
        let told = tell(&memory.recording, layout, root);
        ensure!(told.len() <= whole * 20, "{} lines", told.len());
    }
    Ok(())
}

/// Steps over all recordings together.
const STEPS: usize = 1_000_000;

/// Damages at a time.
const MAX_DAMAGES: usize = 4;

/// Reads that writing one object may take.
const REPR_READS: u32 = 300;

/// Reads that one step may take.
const MAX_READS: u64 = 5_000;
