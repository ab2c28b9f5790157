//! Live tests of the walk in the kernel: real Pythons with recipes made by
//! hand, compared with what the processes say of themselves.
//!
//! They need root and load the BPF programs themselves.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::thread;

use abi::map::{CodeKey, RAISED, Recipe, Recipes, Target, recipes_flag, target_flag};
use abi::record::{Frame, Traceback, direction, moment, part, stack_flag, value};
use anyhow::{Context, Result, ensure};
use otel_ebpf::kernel;
use otel_ebpf::probes::{Hook, ProbeSettings, Probes};
use otel_ebpf::remote::Process;
use otel_ebpf::source::{Event, Source};
use otel_ebpf::target::interpreter::Interpreter;
use otel_ebpf_tests::process::{Group, PATIENCE, path_from, wait_for};
use otel_ebpf_tests::python::Python;
use otel_ebpf_tests::walked::{Told, Walked};
use pyframes::recipe::{MAX_STEPS, Step, op};
use serde_json::Value as Json;

/// The group of the process's recipes; any number.
const GROUP: u32 = 7;

/// A traced Python that runs `frames.py`.
struct Traced {
    _app: Group,
    probes: Probes,
    source: Source,
    about: Json,
    process: Process,
    interpreter: Interpreter,
    target: Target,
}

impl Traced {
    /// Starts a Python and traces it with these recipes.
    fn start(name: &str, recipes: impl Fn(&Json) -> Vec<(u64, Recipes)>) -> Result<Option<Self>> {
        let Some(python) = python(name) else {
            return Ok(None);
        };
        let script = path_from("OTEL_EBPF_APPS", "apps")?.join("frames.py");
        let app = Group::spawn("frames.py", python.command().arg(python.script(&script)?))?;
        let line = wait_for("frames.py listens", PATIENCE, || {
            Ok(app.lines().into_iter().find(|line| line.starts_with('{')))
        })
        .with_context(|| app.log())?;
        let about: Json = serde_json::from_str(&line)?;

        let mut probes = Probes::load(&ProbeSettings {
            offsets: kernel::offsets()?,
            ring_bytes: 64 * 1024 * 1024,
            kernel_log: false,
            table_entries: None,
        })?;
        let source = probes.source()?;
        let pid = app.pid();
        let process = Process::open(pid)?;
        let interpreter = Interpreter::find(&process)?;
        let mut target = interpreter.target();
        target.flags |= target_flag::STACK_AT_RESPONSE | target_flag::STACK_AT_REQUEST;
        target.group = GROUP;
        target.context_variable = number(&about["variable"]);
        probes.set_target(pid, &target)?;
        for (code, recipes) in recipes(&about) {
            let group = GROUP;
            probes.set_recipes(
                CodeKey {
                    code,
                    group,
                    pad: 0,
                },
                &recipes,
            )?;
        }
        probes.attach()?;
        for (hook, name) in [
            (Hook::VariableReset, "PyContextVar_Reset"),
            (Hook::Raised, "PyTraceBack_Here"),
        ] {
            let elf = &interpreter.image.elf;
            let symbol = elf.symbol(name)?.context(name)?;
            let offset = elf.file_offset(symbol.address).context(name)?;
            probes.hook(hook, pid, &interpreter.image.path, offset)?;
        }
        Ok(Some(Self {
            _app: app,
            probes,
            source,
            about,
            process,
            interpreter,
            target,
        }))
    }

    /// Has one request served, with so many frames more; returns what the
    /// process told and the stacks until its answer was seen.
    fn request(&mut self, depth: usize) -> Result<(Json, Vec<Walked>)> {
        self.request_with(depth, 0)
    }

    /// The same, with so many resets of the variable before the answer.
    fn request_with(&mut self, depth: usize, resets: usize) -> Result<(Json, Vec<Walked>)> {
        let asked = TcpListener::bind(("127.0.0.1", 0))?;
        let port = asked.local_addr()?.port();
        let helper = thread::spawn(move || -> Result<()> {
            let (mut connection, _) = asked.accept()?;
            connection.read_exact(&mut [0; 5])?;
            connection.write_all(b"WORLD")?;
            Ok(())
        });
        let server = u16::try_from(number(&self.about["port"]))?;
        let mut connection = TcpStream::connect(("127.0.0.1", server))?;
        connection.write_all(format!("{port} {depth} {resets}").as_bytes())?;
        let mut told = String::new();
        connection.read_to_string(&mut told)?;
        helper.join().expect("the helper does not panic")?;

        let mut walked = Vec::new();
        let mut sent: Vec<u64> = Vec::new();
        wait_for("the answer is seen", PATIENCE, || {
            let mut answered = false;
            self.source.drain(usize::MAX, |event| {
                match event {
                    Event::Stack(event) => walked.push(Walked {
                        stack: event.stack,
                        frames: event.frames().collect(),
                        values: event.values().map(|found| Told::new(&found)).collect(),
                        late: sent.contains(&event.stack.conn),
                    }),
                    Event::Data(data, bytes) if data.direction == direction::SENT => {
                        sent.push(data.conn);
                        answered |= bytes.starts_with(b"{");
                    }
                    _ => {}
                }
                ControlFlow::Continue(())
            });
            Ok(answered.then_some(()))
        })?;
        ensure!(self.source.undecodable == 0, "a record was not decoded");
        Ok((serde_json::from_str(&told)?, walked))
    }

    /// The kernel side's counters that count something.
    fn counted(&self) -> BTreeMap<&'static str, u64> {
        let counters = self.probes.counters().into_iter();
        let counted = counters.filter(|(_, count, _)| *count != 0);
        counted.map(|(name, count, _)| (name, count)).collect()
    }
}

/// The Python of a name such as `3.12` (pyenv's), `3.13t` (without the GIL) or
/// `forky 3.14` (of a suite of Debian's), or `None` if it is missing and that
/// is allowed.
fn python(name: &str) -> Option<Python> {
    match (name.split_once(' '), name.strip_suffix('t')) {
        (Some((suite, series)), _) => Python::debian(suite, series),
        (None, Some(series)) => Python::free_threaded(series),
        (None, None) => Python::pyenv(name),
    }
}

fn number(json: &Json) -> u64 {
    json.as_u64()
        .unwrap_or_else(|| panic!("{json} is no number"))
}

fn numbers(json: &Json) -> Vec<u64> {
    let list = json
        .as_array()
        .unwrap_or_else(|| panic!("{json} is no list"));
    list.iter().map(number).collect()
}

/// The traceback that the process told, as the kernel side tells it.
fn entries(json: &Json) -> Vec<Traceback> {
    let list = json
        .as_array()
        .unwrap_or_else(|| panic!("{json} is no list"));
    let entry = |entry: &Json| Traceback {
        code: number(&entry[0]),
        lasti: i32::try_from(number(&entry[1])).expect("small"),
        lineno: i32::try_from(number(&entry[2])).expect("small"),
    };
    list.iter().map(entry).collect()
}

/// The same without line numbers, which need not be told.
fn places(traceback: &[Traceback]) -> Vec<(u64, i32)> {
    let place = |entry: &Traceback| (entry.code, entry.lasti);
    traceback.iter().map(place).collect()
}

/// A recipe at one moment.
fn recipe(id: u32, moment: u8, slot: &Json, terminal: u8, steps: &[(u32, u32, u64)]) -> Recipe {
    let mut all = [Step::default(); MAX_STEPS];
    for (step, &(op, operand, key)) in all.iter_mut().zip(steps) {
        *step = Step { op, operand, key };
    }
    Recipe {
        key: 0,
        id,
        slot: u32::try_from(number(slot)).expect("small"),
        moments: 1 << moment,
        terminal: u32::from(terminal),
        steps: all,
    }
}

fn recipes(list: &[Recipe]) -> Recipes {
    let mut recipes = Recipes {
        count: u32::try_from(list.len()).expect("few"),
        ..Recipes::default()
    };
    recipes.recipes[..list.len()].copy_from_slice(list);
    recipes
}

/// What is looked for in `answer`.
fn answer_recipes(about: &Json) -> (u64, Recipes) {
    let slots = &about["slots"]["answer"];
    let name = |name: &str| number(&about["names"][name]);
    let recipe = |id, slot, terminal, steps: &[(u32, u32, u64)]| {
        recipe(id, moment::RESPONSE, &slots[slot], terminal, steps)
    };
    // Slots come first in an instance.
    let first = u32::try_from(number(&about["header"])).expect("a size");
    let list = [
        recipe(1, "path", value::TEXT, &[]),
        recipe(
            2,
            "request",
            value::TEXT,
            &[
                (op::ATTRIBUTE, 0, name("route")),
                (op::ATTRIBUTE, 0, name("path")),
            ],
        ),
        recipe(
            3,
            "scope",
            value::INT,
            &[
                (op::ITEM, 0, name("route")),
                (op::ATTRIBUTE, 0, name("number")),
            ],
        ),
        recipe(
            4,
            "pair",
            value::FLOAT,
            &[(op::INDEX, 1, 0), (op::INDEX, 0, 0)],
        ),
        recipe(
            5,
            "slotted",
            value::TEXT,
            &[
                (op::POINTER, first, number(&about["types"]["Slotted"])),
                (op::ATTRIBUTE, 0, name("path")),
            ],
        ),
        recipe(6, "captured", value::TEXT, &[(op::CELL, 0, 0)]),
    ];
    (number(&about["codes"]["answer"]), recipes(&list))
}

/// What is looked for in `handle`.
fn handle_recipes(about: &Json) -> (u64, Recipes) {
    let slots = &about["slots"]["handle"];
    let name = |name: &str| number(&about["names"][name]);
    let recipe = |id, slot, terminal, steps: &[(u32, u32, u64)]| {
        recipe(id, moment::RESPONSE, &slots[slot], terminal, steps)
    };
    let list = [
        recipe(
            11,
            "crowded",
            value::INT,
            &[(op::ATTRIBUTE, 0, name("attribute10"))],
        ),
        recipe(
            12,
            "opened",
            value::TEXT,
            &[(op::ATTRIBUTE, 0, name("path"))],
        ),
        recipe(13, "mixed", value::OBJECT, &[(op::ITEM, 0, name("route"))]),
        recipe(14, "nothing", value::TEXT, &[]),
        recipe(
            15,
            "opened",
            value::TEXT,
            &[(op::ATTRIBUTE, 0, name("missing"))],
        ),
    ];
    (number(&about["codes"]["handle"]), recipes(&list))
}

/// The exception that passes through a function.
fn raised_recipes(about: &Json, function: &str, id: u32) -> (u64, Recipes) {
    let list = [recipe(
        id,
        moment::RAISED,
        &Json::from(RAISED),
        value::EXCEPTION,
        &[],
    )];
    (number(&about["codes"][function]), recipes(&list))
}

/// Compares everything that the kernel side tells with what the process says.
fn check(name: &str) -> Result<()> {
    let Some(mut traced) = Traced::start(name, |about| {
        vec![
            answer_recipes(about),
            handle_recipes(about),
            raised_recipes(about, "raised", 21),
            raised_recipes(about, "refused", 22),
        ]
    })?
    else {
        return Ok(());
    };
    for depth in [0, 9, 20] {
        let (told, walked) = traced.request(depth)?;
        check_frames(&traced, &told, &walked);
        let at = |moment| move |walked: &&Walked| walked.stack.moment == moment;
        let response = walked
            .iter()
            .find(at(moment::RESPONSE))
            .context("RESPONSE")?;
        check_values(&traced, response, &numbers(&told["response"]));
        let raised: Vec<&Walked> = walked.iter().filter(at(moment::RAISED)).collect();
        check_raised(&traced.about, &told, &raised);
    }
    let counted = traced.counted();
    let lost: Vec<_> = counted
        .iter()
        .filter(|(name, _)| name.contains("lost") || name.starts_with("kernel.stack_"))
        .filter(|(name, _)| !["kernel.stack_value_failed", "kernel.stack_reads"].contains(name))
        .collect();
    assert!(lost.is_empty(), "{counted:?}");
    // In each request, the missing attribute only.
    assert_eq!(counted.get("kernel.stack_value_failed"), Some(&3));
    Ok(())
}

/// Each moment is told once, and the frames that the process saw where they
/// are of interest.
fn check_frames(traced: &Traced, told: &Json, walked: &[Walked]) {
    let moments: Vec<u8> = walked.iter().map(|walked| walked.stack.moment).collect();
    assert_eq!(
        moments,
        [
            moment::RESET,
            moment::RAISED,
            moment::RAISED,
            moment::REQUEST,
            moment::RESPONSE
        ]
    );
    for walked in walked {
        assert_eq!(walked.stack.flags, 0, "{walked:?}");
        assert_eq!(walked.stack.group, GROUP);
        assert_eq!(walked.stack.pid, traced.process.pid());
        assert!(!walked.late, "{walked:?}");
        for frame in &walked.frames {
            check_instruction(traced, *frame);
        }
    }
    for (walked, moment) in walked.iter().zip(moments) {
        let expected = match moment {
            moment::REQUEST => numbers(&told["request"]),
            _ => Vec::new(),
        };
        assert_eq!(walked.codes(), expected);
    }
    assert_ne!(walked[3].stack.conn, 0);
    assert_ne!(walked[4].stack.conn, 0);
    assert_ne!(walked[3].stack.conn, walked[4].stack.conn);
}

/// An instruction is one of its code object.
fn check_instruction(traced: &Traced, frame: Frame) {
    let layout = &traced.interpreter.layout;
    if layout.frame.lasti_unit == 0 {
        let first = frame.code + u64::from(layout.code.co_code_adaptive);
        let instructions = first..first + 4096;
        assert!(instructions.contains(&frame.instruction), "{frame:?}");
    } else {
        assert!(frame.instruction < 4096, "{frame:?}");
    }
}

fn check_values(traced: &Traced, walked: &Walked, codes: &[u64]) {
    let text = |recipe| walked.one(recipe).text.as_deref();
    assert_eq!(text(1), Some("/plain"));
    assert_eq!(text(2), Some("/items/{n\u{e9}}"));
    assert_eq!(walked.one(3).number, Some(7_000_000_000));
    assert_eq!(walked.one(4).float, Some(-1.5));
    assert_eq!(text(5), Some("/slotted"));
    assert_eq!(text(6), Some("captured \u{20ac}"));
    assert_eq!(walked.one(11).number, Some(10));
    assert_eq!(text(12), Some("/opened"));
    let mixed = walked.one(13).value;
    assert_eq!(mixed.kind, value::OBJECT);
    let object = &traced.interpreter.layout.object;
    let type_address =
        pyframes::Memory::u64(&traced.process, mixed.address + u64::from(object.ob_type));
    assert_eq!(type_address, Ok(mixed.type_address));
    assert_eq!(walked.one(14).value.kind, value::NONE);
    let missing = walked.one(15).value;
    assert_eq!((missing.kind, missing.detail), (value::FAILED, 0));
    for told in &walked.values {
        let function = if told.value.recipe < 10 {
            "answer"
        } else {
            "handle"
        };
        let code = number(&traced.about["codes"][function]);
        assert_eq!(codes[usize::from(told.value.frame)], code);
    }
    let plain = walked.one(1).value;
    assert_eq!(plain.type_address, number(&traced.about["types"]["str"]));
}

fn check_raised(about: &Json, told: &Json, walked: &[&Walked]) {
    let types = &about["types"];
    let [first, second] = walked else {
        panic!("{walked:?}");
    };
    let [error, rest @ ..] = &first.of(21)[..] else {
        panic!("{first:?}");
    };
    let expected = &told["raised"];
    assert_eq!(error.value.part, part::ITSELF);
    assert_eq!(error.value.address, number(&expected["address"]));
    assert_eq!(error.value.type_address, number(&types["ValueError"]));
    assert_eq!(
        places(&error.traceback),
        places(&entries(&expected["entries"]))
    );
    assert_eq!(error.traceback[1..].len(), 4);
    // The fifth argument is left out, which is told.
    assert_eq!(
        error.value.detail,
        abi::record::exception_detail::ARGUMENTS_CUT
    );
    let [text, int, float, none, cause, key] = rest else {
        panic!("{rest:?}");
    };
    for argument in [text, int, float, none] {
        assert_eq!(argument.value.part, part::ARGUMENT);
    }
    assert_eq!(text.text.as_deref(), Some("d\u{e9}tail"));
    assert_eq!(int.number, Some(42));
    assert_eq!(float.float, Some(-1.5));
    assert_eq!(none.value.kind, value::NONE);
    assert_eq!(cause.value.part, part::CAUSE);
    assert_eq!(cause.value.address, number(&expected["cause"]));
    assert_eq!(cause.value.type_address, number(&types["KeyError"]));
    assert_eq!(
        places(&cause.traceback),
        places(&entries(&expected["cause_entries"]))
    );
    assert_eq!(cause.value.detail, 0);
    assert_eq!(key.value.part, part::ARGUMENT);
    assert_eq!(key.text.as_deref(), Some("k\u{e9}y"));

    let [error, text] = &second.of(22)[..] else {
        panic!("{second:?}");
    };
    let expected = &told["refused"];
    assert_eq!(error.value.kind, value::EXCEPTION);
    assert_eq!(error.value.type_address, number(&types["ValueError"]));
    assert_eq!(
        places(&error.traceback),
        places(&entries(&expected["entries"]))
    );
    assert_eq!(text.text.as_deref(), expected["message"].as_str());
}

#[test]
fn tells_frames_and_values_of_3_8() -> Result<()> {
    check("3.8")
}

#[test]
fn tells_frames_and_values_of_3_9() -> Result<()> {
    check("3.9")
}

#[test]
fn tells_frames_and_values_of_3_10() -> Result<()> {
    check("3.10")
}

#[test]
fn tells_frames_and_values_of_3_11() -> Result<()> {
    check("3.11")
}

#[test]
fn tells_frames_and_values_of_3_12() -> Result<()> {
    check("3.12")
}

#[test]
fn tells_frames_and_values_of_3_13() -> Result<()> {
    check("3.13")
}

#[test]
fn tells_frames_and_values_of_a_stripped_3_9() -> Result<()> {
    check("bullseye 3.9")
}

#[test]
fn tells_frames_and_values_of_a_stripped_3_13() -> Result<()> {
    check("trixie 3.13")
}

#[test]
fn tells_frames_and_values_of_a_stripped_3_14() -> Result<()> {
    check("forky 3.14")
}

#[test]
fn tells_frames_and_values_of_3_13_without_the_gil() -> Result<()> {
    check("3.13t")
}

#[test]
fn tells_frames_and_values_of_3_14_without_the_gil() -> Result<()> {
    check("3.14t")
}

#[test]
fn tells_the_innermost_frames_of_a_stack_that_is_too_deep() -> Result<()> {
    let Some(mut traced) = Traced::start("3.12", |about| {
        vec![answer_recipes(about), handle_recipes(about)]
    })?
    else {
        return Ok(());
    };
    let (told, walked) = traced.request(150)?;
    let [.., request, response] = &walked[..] else {
        panic!("{walked:?}");
    };
    assert_eq!(request.stack.moment, moment::REQUEST);
    assert_eq!(request.stack.flags, stack_flag::TRUNCATED);
    assert_eq!(request.codes(), numbers(&told["request"])[..64]);
    assert_eq!(response.stack.flags, stack_flag::TRUNCATED);
    assert_eq!(response.one(1).text.as_deref(), Some("/plain"));
    assert!(response.of(11).is_empty());
    assert_eq!(traced.counted().get("kernel.stack_too_deep"), Some(&2));
    Ok(())
}

#[test]
fn ends_at_the_last_frame_of_interest() -> Result<()> {
    for flags in [0, recipes_flag::LAST, recipes_flag::ANSWERS] {
        let Some(mut traced) = Traced::start("3.12", |about| {
            let (handle, mut inner) = handle_recipes(about);
            inner.flags = flags;
            let slot = &about["slots"]["serve"]["told"];
            let outer = recipe(31, moment::RESPONSE, slot, value::OBJECT, &[]);
            let serve = number(&about["codes"]["serve"]);
            vec![(handle, inner), (serve, recipes(&[outer]))]
        })?
        else {
            return Ok(());
        };
        let (_, walked) = traced.request(9)?;
        let walked = walked.last().context("a stack")?;
        assert_eq!(walked.stack.flags, 0);
        assert_eq!(walked.one(11).number, Some(10));
        assert_eq!(walked.of(31).is_empty(), flags != 0);
    }
    Ok(())
}

/// A call is made on behalf of a request that is known, so that just its
/// caller is asked for: but where frames hold statements, and none was met.
#[test]
fn ends_at_the_first_frame_of_the_application() -> Result<()> {
    const ENDS: u32 = target_flag::ENDS | target_flag::SERVINGS;
    const ASKS: u32 = ENDS | target_flag::STATEMENTS;
    /// A function and a variable of its frame.
    type Holder = (&'static str, &'static str);
    const ASK: Option<Holder> = Some(("ask", "port"));
    const SERVE: Option<Holder> = Some(("serve", "resets"));
    /// The target's flags, what stands for a statement, at which frame a walk
    /// may end, and whether it does.
    const CASES: [(u32, Option<Holder>, &str, bool); 6] = [
        (0, None, "ask", false),
        (ENDS, None, "ask", true),
        (ENDS, None, "serve", true),
        (ASKS, None, "serve", false),
        (ASKS, ASK, "serve", true),
        (ASKS, SERVE, "ask", false),
    ];
    for (flags, holder, last, ends) in CASES {
        let Some(mut traced) = Traced::start("3.12", |about| {
            let of = |(function, variable): Holder| {
                let slot = &about["slots"][function][variable];
                let told = recipe(41, moment::STATEMENT, slot, value::INT, &[]);
                (number(&about["codes"][function]), recipes(&[told]))
            };
            holder.map(of).into_iter().collect()
        })?
        else {
            return Ok(());
        };
        let mut target = traced.target;
        target.flags |= flags;
        traced.probes.set_target(traced.process.pid(), &target)?;
        let key = |code| CodeKey {
            code,
            group: GROUP,
            pad: 0,
        };
        let end = number(&traced.about["codes"][last]);
        traced.probes.set_end(key(end), true)?;

        let (told, walked) = traced.request(3)?;
        let whole = numbers(&told["request"]);
        let depth = whole.iter().position(|code| *code == end).context(last)? + 1;
        let of = |walked: &[Walked]| -> Result<(Vec<u64>, u8, usize)> {
            let at = |walked: &&Walked| walked.stack.moment == moment::REQUEST;
            let walked = walked.iter().find(at).context("REQUEST")?;
            assert_ne!(walked.stack.owner.conn, 0);
            Ok((walked.codes(), walked.stack.flags, walked.of(41).len()))
        };
        let statements = usize::from(holder.is_some());
        let expected = if ends {
            (whole[..depth].to_vec(), stack_flag::ENDED, statements)
        } else {
            (whole, 0, statements)
        };
        assert_eq!(of(&walked)?, expected, "{flags:x} {holder:?} {last}");
        let counted = traced.counted();
        let ended = counted.get("kernel.ended_stacks").copied();
        assert_eq!(ended, ends.then_some(1));

        // Another one in its place, and what is not there any more.
        traced.probes.set_end(key(end + 16), false)?;
        traced.probes.set_end(key(end), false)?;
        let (told, walked) = traced.request(3)?;
        let whole = (numbers(&told["request"]), 0, statements);
        assert_eq!(of(&walked)?, whole, "{flags:x} {holder:?} {last}");
    }
    Ok(())
}

#[test]
fn a_removed_group_is_not_looked_for() -> Result<()> {
    let Some(mut traced) = Traced::start("3.12", |about| vec![answer_recipes(about)])? else {
        return Ok(());
    };
    let (_, walked) = traced.request(0)?;
    assert_eq!(walked.last().context("a stack")?.values.len(), 6);
    traced.probes.remove_group(GROUP + 1);
    let (_, walked) = traced.request(0)?;
    assert_eq!(walked.last().context("a stack")?.values.len(), 6);
    traced.probes.remove_group(GROUP);
    // Of the answer nothing is told any more, and so it has no record.
    assert_eq!(traced.counted().get("kernel.silent_stacks"), None);
    let (_, walked) = traced.request(0)?;
    let last = walked.last().context("a stack")?;
    assert_eq!(last.stack.moment, moment::REQUEST);
    assert_eq!(last.values.len(), 0);
    assert_eq!(traced.counted().get("kernel.silent_stacks"), Some(&1));
    Ok(())
}

/// What a walk costs, which is what the kernel says of the program that walks
/// and nothing else; and how often it reads memory, which no other work on the
/// machine changes.
#[test]
#[expect(clippy::print_stderr, reason = "a measurement is for people to read")]
fn a_walk_of_forty_frames_costs_little() -> Result<()> {
    /// Walks in each round, few enough for one that nothing interrupts.
    const WALKS: usize = 100;
    /// Many times what it takes, for machines that have other things to do.
    const BUDGET: f64 = 60_000.0;
    /// Some more than it takes with no recipe, one and three, as where objects
    /// lie in their pages differs from run to run.
    const READS: [f64; 3] = [24.0, 37.0, 54.0];
    const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";

    let before = std::fs::read(STATISTICS)?;
    std::fs::write(STATISTICS, "1")?;
    let costs = [0, 1, 3].map(|count| cost(count, WALKS));
    std::fs::write(STATISTICS, before)?;
    for (cost, most) in costs.into_iter().zip(READS) {
        let Some(Cost {
            recipes,
            frames,
            reads,
            nanoseconds,
        }) = cost?
        else {
            return Ok(());
        };
        eprintln!(
            "{frames} frames, {recipes} recipes: {reads:.1} reads, {nanoseconds:.0} ns a walk"
        );
        assert!(nanoseconds < BUDGET, "{recipes} recipes: {nanoseconds} ns");
        assert!(reads <= most, "{recipes} recipes: {reads} reads");
    }
    Ok(())
}

/// What a walk costs.
struct Cost {
    recipes: usize,
    frames: usize,
    /// Of the process's memory.
    reads: f64,
    /// At least.
    nanoseconds: f64,
}

/// What a walk with so many recipes costs.
fn cost(count: usize, walks: usize) -> Result<Option<Cost>> {
    const ROUNDS: usize = 50;

    let Some(mut traced) = Traced::start("3.12", |about| {
        let (answer, all) = answer_recipes(about);
        let (handle, opened) = handle_recipes(about);
        let [_, route, scope, ..] = all.recipes;
        let [_, opened, ..] = opened.recipes;
        let at_reset = |recipe: Recipe| Recipe {
            moments: 1 << moment::RESET,
            ..recipe
        };
        let list = [
            (
                answer,
                recipes(&[route, scope].map(at_reset)[..count.min(2)]),
            ),
            (
                handle,
                recipes(&[opened].map(at_reset)[..count.saturating_sub(2)]),
            ),
        ];
        list.into_iter()
            .filter(|(_, recipes)| recipes.count > 0)
            .collect()
    })?
    else {
        return Ok(None);
    };
    let time = |traced: &Traced| {
        let times = traced.probes.run_times();
        let found = times
            .into_iter()
            .find(|(name, ..)| name == "variable_reset");
        found
            .map(|(_, time, runs)| (time, runs))
            .context("variable_reset")
    };
    let mut least = f64::INFINITY;
    let mut last = (Json::Null, Vec::new());
    for _ in 0..ROUNDS {
        let (time_before, runs_before) = time(&traced)?;
        let told = traced.request_with(20, walks)?;
        let (time_after, runs_after) = time(&traced)?;
        let runs = runs_after - runs_before;
        assert!(runs >= walks as u64, "{runs} walks");
        least = least.min((time_after - time_before).as_nanos() as f64 / runs as f64);
        last = told;
    }
    let (told, walked) = last;
    let resets = |walked: &&Walked| walked.stack.moment == moment::RESET;
    let walk = walked.iter().rfind(resets).context("a stack")?;
    assert_eq!(walk.values.len(), count);
    let counted = traced.counted();
    Ok(Some(Cost {
        recipes: count,
        frames: numbers(&told["response"]).len(),
        reads: counted["kernel.stack_reads"] as f64 / counted["kernel.stacks"] as f64,
        nanoseconds: least,
    }))
}
