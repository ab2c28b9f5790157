//! Tells from a file's symbols which interpreter it holds, if any.
//!
//! Every build exports CPython's API, stripped ones included, so that the
//! presence of a function tells the version that introduced it. The exception
//! is a static program without symbols, of which the runtime's own section is
//! left.

use crate::target::elf::{Elf, ElfError, Symbol};

/// What a file's symbols tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evidence {
    /// PyPy, of any version.
    PyPy,
    /// A CPython that is not supported.
    TooOld {
        /// As 2 in 2.7.
        major: u8,
        /// As 7 in 2.7.
        minor: u8,
    },
    /// CPython 3.8 to 3.10.
    Minor {
        /// `_PyRuntime`.
        runtime: Symbol,
        /// The minor version.
        minor: u8,
    },
    /// CPython 3.13 or newer, which has a section of its own for
    /// `_PyRuntime`, in a static program without any symbols.
    Published {
        /// `_PyRuntime`.
        runtime: Symbol,
    },
    /// CPython 3.11 or newer, whose version is in memory.
    Versioned {
        /// `_PyRuntime`.
        runtime: Symbol,
        /// `Py_Version`.
        version: Symbol,
    },
}

/// Reads the evidence in a file, or `None` if it holds no interpreter.
pub(super) fn gather(elf: &Elf) -> Result<Option<Evidence>, ElfError> {
    match elf.exports(NAMES).map(|found| weigh(&found))? {
        None => {
            let runtime = elf.section(RUNTIME_SECTION)?;
            Ok(runtime.map(|runtime| Evidence::Published { runtime }))
        }
        told => Ok(told),
    }
}

fn weigh(found: &[Option<Symbol>; NAMES.len()]) -> Option<Evidence> {
    let [pypy, rpython, get_version, runtime, version, marks @ ..] = found;
    if pypy.is_some() || rpython.is_some() {
        return Some(Evidence::PyPy);
    }
    get_version.as_ref()?;
    if let (Some(runtime), Some(version)) = (*runtime, *version) {
        return Some(Evidence::Versioned { runtime, version });
    }
    let introduced = MARKS.iter().zip(marks).find(|(_, mark)| mark.is_some());
    let (major, minor) = introduced.map(|((_, major, minor), _)| (*major, *minor))?;
    match *runtime {
        Some(runtime) if (major, minor) >= (3, 8) => Some(Evidence::Minor { runtime, minor }),
        Some(_) => Some(Evidence::TooOld { major: 3, minor: 7 }),
        // A name that a later version introduced, defined by something else.
        None if (major, minor) >= (3, 7) => None,
        None => Some(Evidence::TooOld { major, minor }),
    }
}

/// Where CPython puts `_PyRuntime` since 3.13, so that debuggers find it.
const RUNTIME_SECTION: &str = ".PyRuntime";

/// Symbols with the version of CPython that introduced them (for the last:
/// that kept it last), newest first.
const MARKS: [(&str, u8, u8); 8] = [
    ("PyIter_Send", 3, 10),
    ("PyFrame_GetCode", 3, 9),
    ("PyCode_NewWithPosOnlyArgs", 3, 8),
    ("PyOS_FSPath", 3, 6),
    ("PyCoro_New", 3, 5),
    ("PyMem_RawMalloc", 3, 4),
    ("PyUnicode_AsUTF8", 3, 3),
    ("PyString_Type", 2, 7),
];

/// All names that are looked up: the fixed ones, then those of [`MARKS`].
const NAMES: [&str; 5 + MARKS.len()] = {
    let mut names = [""; 5 + MARKS.len()];
    names[0] = "pypy_main_startup";
    names[1] = "rpython_startup_code";
    names[2] = "Py_GetVersion";
    names[3] = "_PyRuntime";
    names[4] = "Py_Version";
    let mut idx = 0;
    while idx < MARKS.len() {
        names[5 + idx] = MARKS[idx].0;
        idx += 1;
    }
    names
};

#[cfg(test)]
mod tests {
    use super::*;

    const SYMBOL: Symbol = Symbol {
        address: 0x1000,
        size: 8,
    };

    fn check(exported: &[&str], expected: Option<Evidence>) {
        let found = NAMES.map(|name| exported.contains(&name).then_some(SYMBOL));
        assert_eq!(weigh(&found), expected, "{exported:?}");
    }

    #[test]
    fn tells_versions_by_what_they_introduced() {
        let minor = |minor| {
            Some(Evidence::Minor {
                runtime: SYMBOL,
                minor,
            })
        };
        let old = |major, minor| Some(Evidence::TooOld { major, minor });
        let base = [
            "Py_GetVersion",
            "PyUnicode_AsUTF8",
            "PyMem_RawMalloc",
            "PyCoro_New",
        ];
        let to = |more: &[&'static str]| [&base, more].concat();
        let v36 = to(&["PyOS_FSPath"]);
        let v37 = to(&["PyOS_FSPath", "_PyRuntime"]);
        let v38 = [&v37[..], &["PyCode_NewWithPosOnlyArgs"]].concat();
        let v39 = [&v38[..], &["PyFrame_GetCode"]].concat();
        let v310 = [&v39[..], &["PyIter_Send"]].concat();
        let v311 = [&v310[..], &["Py_Version"]].concat();
        check(&["Py_GetVersion", "PyString_Type"], old(2, 7));
        check(&base, old(3, 5));
        check(&v36, old(3, 6));
        check(&v37, old(3, 7));
        check(&v38, minor(8));
        check(&v39, minor(9));
        check(&v310, minor(10));
        check(
            &v311,
            Some(Evidence::Versioned {
                runtime: SYMBOL,
                version: SYMBOL,
            }),
        );
    }

    #[test]
    fn a_library_that_defines_one_name_is_no_interpreter() {
        check(&[], None);
        check(&["PyIter_Send"], None);
        check(&["Py_GetVersion"], None);
        check(
            &["pypy_main_startup", "Py_GetVersion"],
            Some(Evidence::PyPy),
        );
    }
}
