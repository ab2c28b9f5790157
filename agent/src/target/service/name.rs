//! A name for a service that has not chosen one.
//!
//! It comes from the command line, by the table [`LAUNCHERS`]: one row per
//! program that starts Python applications. In order of trust:
//!
//! 1. a name the operator gave the launcher (`gunicorn --name`),
//! 2. the application's module (`shop.wsgi:application` is `shop`),
//! 3. the script, the Django settings, or the directory it serves,
//! 4. `unknown_service:<executable>`, as the specification has it.
//!
//! A word that says nothing (`main`, `app`, `wsgi`, see [`GENERIC`]) is
//! dropped from either end of a module's name. If nothing is left, the name
//! of the directory that holds the module is taken, again passing over
//! directories that say nothing ([`GENERIC_DIRECTORIES`]), and the bare
//! module only where there is no such directory: `uvicorn main:app` in
//! `/srv/shop/src` is `shop`, in `/app` it is `main`. Called by
//! attach and `check`.

use std::path::{Component, Path, PathBuf};

use super::launcher::Meaning::{
    self, Application, Command, CommandLine, Directory, GunicornConfig, Ini, Name,
    PythonCommandLine, Script, Settings,
};
use super::launcher::{LAUNCHERS, Launcher};
use super::tidy;
use crate::target::process::{ProcessInfo, read_target_file};

/// How far a chain of parents or of wrapping launchers is followed.
const MAX_DEPTH: usize = 4;

/// A name for a process that has not been given one.
pub fn derive_service_name(process: &ProcessInfo) -> String {
    derive(
        process,
        &Surroundings {
            read_file: &|process, path| read_target_file(process.pid, path),
            read_process: &|pid| ProcessInfo::read(pid).ok(),
        },
    )
}

/// What lies around a process, so that tests can make it up.
struct Surroundings<'a> {
    /// Reads a file of a process's file system.
    read_file: &'a dyn Fn(&ProcessInfo, &Path) -> Option<String>,
    /// Looks up a process.
    read_process: &'a dyn Fn(u32) -> Option<ProcessInfo>,
}

/// Module names that say nothing about the service.
#[rustfmt::skip]
const GENERIC: &[&str] = &[
    "", "__init__", "__main__", "app", "application", "asgi", "celery", "celery_app", "celeryapp", "config", "core",
    "django", "index", "main", "manage", "run", "runserver", "server", "service", "src", "start", "web", "wsgi",
];

/// Directories that say nothing about the service: where images, users and
/// deployment tools put whatever they run.
#[rustfmt::skip]
const GENERIC_DIRECTORIES: &[&str] = &[
    "bin", "build", "code", "current", "deploy", "dist", "dist-packages", "home", "lib", "lib64", "local", "mnt",
    "opt", "project", "release", "releases", "root", "sbin", "site-packages", "srv", "tmp", "usr", "var", "venv",
    "work", "workdir", "workspace", "www",
];

fn derive(process: &ProcessInfo, around: &Surroundings<'_>) -> String {
    let mut holder = None;
    for _ in 0..MAX_DEPTH {
        let current = holder.as_ref().unwrap_or(process);
        if !is_multiprocessing_child(&current.command_line) {
            break;
        }
        match (around.read_process)(current.parent) {
            Some(parent) => holder = Some(parent),
            None => break,
        }
    }
    let named = holder.as_ref().unwrap_or(process);
    Interpreter {
        process: named,
        around,
    }
    .name()
    .map(|name| tidy(&name))
    .filter(|name| !name.is_empty())
    .unwrap_or_else(|| format!("unknown_service:{}", tidy(process.executable_name())))
}

/// Whether `multiprocessing` started it with a fresh interpreter, so that its
/// command line is not the application's.
fn is_multiprocessing_child(command_line: &[String]) -> bool {
    command_line.iter().skip(1).take(8).any(|argument| {
        argument == "--multiprocessing-fork" || argument.starts_with("from multiprocessing.")
    })
}

/// Reads command lines of one process.
#[derive(Clone, Copy)]
struct Interpreter<'a> {
    process: &'a ProcessInfo,
    around: &'a Surroundings<'a>,
}

/// What a launcher's arguments, environment and configuration say.
#[derive(Debug, Default)]
struct Findings {
    name: Option<String>,
    application: Option<String>,
    script: Option<String>,
    settings: Option<String>,
    directory: Option<String>,
    gunicorn_config: Option<String>,
    ini: Option<String>,
}

impl Findings {
    /// Fills in what is not known yet.
    fn add(&mut self, meaning: Meaning, value: &str) {
        let slot = match meaning {
            Application => &mut self.application,
            Name => &mut self.name,
            Directory => &mut self.directory,
            Script => &mut self.script,
            Settings => &mut self.settings,
            GunicornConfig => &mut self.gunicorn_config,
            Ini => &mut self.ini,
            Command | CommandLine | PythonCommandLine => return,
        };
        // `pythonpath` is a list.
        let value = match meaning {
            Directory => value.split([',', ':']).next().unwrap_or_default(),
            _ => value,
        };
        if slot.is_none() && !value.is_empty() {
            *slot = Some(value.to_owned());
        }
    }
}

/// What the arguments of a launcher lead to.
enum Arguments<'a> {
    /// Findings.
    Own(Findings),
    /// Another command line.
    Nested(&'a [String]),
    /// Arguments of the Python interpreter.
    NestedPython(&'a [String]),
}

impl Interpreter<'_> {
    fn name(self) -> Option<String> {
        let (program, rest) = self.process.command_line.split_first()?;
        match title_name(program, rest) {
            Title::Application(application) => self.application_name(application, None),
            Title::Name(name) => Some(name.to_owned()),
            Title::Arguments(arguments) => {
                self.launch(launcher("celery")?, &split_words(arguments), None, 0)
            }
            Title::None => self.command_line(&self.process.command_line, 0),
        }
    }

    fn command_line(self, arguments: &[String], depth: usize) -> Option<String> {
        let (program, rest) = arguments.split_first().filter(|_| depth < MAX_DEPTH)?;
        let name = file_name(program);
        if is_python(name) {
            return self.python(rest, depth);
        }
        if let Some(row) = launcher(name) {
            return self.launch(row, rest, None, depth);
        }
        if depth == 0 && is_python(self.process.executable_name()) {
            return self.python(rest, depth);
        }
        if depth > 0 && name.ends_with(".py") {
            return self.script_name(program);
        }
        // A program that carries its interpreter, or a title set by the
        // application.
        (!name.contains(char::is_whitespace) && !name.contains(':')).then(|| name.to_owned())
    }

    /// Reads the arguments of the Python interpreter.
    fn python(self, arguments: &[String], depth: usize) -> Option<String> {
        let mut rest = arguments;
        while let Some((argument, tail)) = rest.split_first() {
            rest = tail;
            if argument == "--check-hash-based-pycs" {
                rest = rest.get(1..)?;
                continue;
            }
            if argument == "-" {
                // The program comes from standard input.
                return None;
            }
            let Some(letters) = argument.strip_prefix('-') else {
                return self.python_script(argument, tail, depth);
            };
            if letters.starts_with('-') {
                continue;
            }
            // Short options may be joined; the first with a value ends them.
            let Some(at) = letters.find(['c', 'm', 'W', 'X']) else {
                continue;
            };
            let (letter, joined) = letters.get(at..)?.split_at_checked(1)?;
            let value = match joined.is_empty() {
                true => {
                    rest = tail.get(1..).unwrap_or_default();
                    tail.first().map(String::as_str)
                }
                false => Some(joined),
            };
            match (letter, value) {
                ("m", Some(module)) => return self.module(module, rest, depth),
                ("c" | "m", _) => return None,
                _ => {}
            }
        }
        None
    }

    fn module(self, module: &str, rest: &[String], depth: usize) -> Option<String> {
        match launcher(module) {
            Some(row) => self.launch(row, rest, None, depth),
            None => self.application_name(module, None),
        }
    }

    fn python_script(self, script: &str, rest: &[String], depth: usize) -> Option<String> {
        match launcher(file_name(script)) {
            Some(row) => self.launch(row, rest, Some(script), depth),
            None => self.script_name(script),
        }
    }

    fn launch(
        self,
        row: &Launcher,
        arguments: &[String],
        script: Option<&str>,
        depth: usize,
    ) -> Option<String> {
        let mut findings = match parse_arguments(row, arguments) {
            Arguments::Nested(rest) => return self.command_line(rest, depth + 1),
            Arguments::NestedPython(rest) if depth < MAX_DEPTH => {
                return self.python(rest, depth + 1);
            }
            Arguments::NestedPython(_) => return None,
            Arguments::Own(findings) => findings,
        };
        self.add_environment(row, &mut findings);
        self.add_files(row, script, &mut findings);
        let Findings {
            name,
            application,
            script: served,
            settings,
            directory,
            ..
        } = findings;
        let directory = directory.as_deref();
        if name.is_some() {
            return name;
        }
        if let Some(application) = application {
            return self.application_name(&application, directory);
        }
        if let Some(served) = served {
            return self.script_name(&served);
        }
        if let Some(settings) = settings {
            let package = settings.split(".settings").next().unwrap_or_default();
            let package = if package == "settings" { "" } else { package };
            return self.application_name(package, directory.or(script.and_then(parent)));
        }
        match row.serves_directory {
            true => {
                directory_name(&self.absolute(directory.or(script.and_then(parent)).unwrap_or(".")))
            }
            false => None,
        }
    }

    fn add_environment(self, row: &Launcher, findings: &mut Findings) {
        let environment = &self.process.environment;
        if row.names.contains(&"gunicorn")
            && let Some(more) = environment.value("GUNICORN_CMD_ARGS")
            && let Arguments::Own(more) = parse_arguments(row, &split_words(more))
        {
            for (meaning, value) in [
                (Application, more.application),
                (Name, more.name),
                (Directory, more.directory),
                (GunicornConfig, more.gunicorn_config),
            ] {
                findings.add(meaning, value.as_deref().unwrap_or_default());
            }
        }
        for (variable, meaning) in row.environment {
            findings.add(*meaning, environment.value(variable).unwrap_or_default());
        }
    }

    /// Looks into configuration files, where they may know more.
    fn add_files(self, row: &Launcher, script: Option<&str>, findings: &mut Findings) {
        if row.names.contains(&"gunicorn") && findings.name.is_none() {
            let path = findings.gunicorn_config.clone();
            let path = path.as_deref().unwrap_or("gunicorn.conf.py");
            let text = self
                .read(path.strip_prefix("file:").unwrap_or(path))
                .unwrap_or_default();
            for (setting, meaning) in [
                ("proc_name", Name),
                ("wsgi_app", Application),
                ("chdir", Directory),
            ] {
                findings.add(
                    meaning,
                    python_assignment(&text, setting).unwrap_or_default(),
                );
            }
        }
        if let Some(path) = findings.ini.clone().filter(|path| path.ends_with(".ini")) {
            let text = self.read(&path).unwrap_or_default();
            for (setting, meaning) in [
                ("module", Application),
                ("wsgi", Application),
                ("wsgi-file", Script),
                ("file", Script),
                ("chdir", Directory),
                ("procname", Name),
            ] {
                findings.add(meaning, ini_value(&text, setting).unwrap_or_default());
            }
            // PasteDeploy names the distribution that holds the application.
            let egg = ini_value(&text, "use").and_then(|used| used.strip_prefix("egg:"));
            if let Some(egg) = egg.and_then(|egg| egg.split('#').next()) {
                findings.add(Name, egg);
            }
            if findings.application.is_none()
                && findings.script.is_none()
                && findings.name.is_none()
            {
                findings.add(
                    Application,
                    &format!("{}/main.py", parent(&path).unwrap_or(".")),
                );
            }
        }
        if let Some(script) = script.filter(|script| file_name(script) == "manage.py")
            && findings.settings.is_none()
        {
            let text = self.read(script).unwrap_or_default();
            findings.add(Settings, default_settings(&text).unwrap_or_default());
        }
    }

    fn read(self, path: &str) -> Option<String> {
        (self.around.read_file)(self.process, &self.absolute(path))
    }

    fn absolute(self, path: &str) -> PathBuf {
        let base = self
            .process
            .working_directory
            .as_deref()
            .unwrap_or(Path::new("/"));
        // A launcher told to change its directory has done so by now.
        match path != "." && base.ends_with(path) {
            true => base.to_owned(),
            false => normal(&base.join(path)),
        }
    }

    /// The name of `package.module:attribute`, whose modules are searched
    /// for in a directory or the current one.
    fn application_name(self, application: &str, directory: Option<&str>) -> Option<String> {
        let module = module_of(application);
        if module.contains('/') || module.ends_with(".py") {
            return self.script_name(module);
        }
        let segments: Vec<&str> = module.split('.').collect();
        let telling = |segment: &&str| !GENERIC.contains(segment);
        match (
            segments.iter().position(telling),
            segments.iter().rposition(telling),
        ) {
            (Some(first), Some(last)) => segments.get(first..=last).map(|kept| kept.join(".")),
            _ => directory_name(&self.absolute(directory.unwrap_or(".")))
                .or_else(|| (!module.is_empty()).then(|| module.to_owned())),
        }
    }

    fn script_name(self, script: &str) -> Option<String> {
        let path = self.absolute(script);
        let stem = Path::new(file_name(script))
            .file_stem()
            .and_then(|stem| stem.to_str())
            .unwrap_or_default();
        if !GENERIC.contains(&stem) && !matches!(stem, "." | "..") {
            return Some(stem.to_owned());
        }
        let holder = if matches!(stem, "." | ".." | "") {
            Some(path.as_path())
        } else {
            path.parent()
        };
        holder
            .and_then(directory_name)
            .or_else(|| (!stem.is_empty()).then(|| stem.to_owned()))
    }
}

fn launcher(name: &str) -> Option<&'static Launcher> {
    LAUNCHERS.iter().find(|row| row.names.contains(&name))
}

/// What a title set in place of the command line tells.
enum Title<'a> {
    /// It is none.
    None,
    /// The application being served.
    Application(&'a str),
    /// A name.
    Name(&'a str),
    /// Celery's arguments.
    Arguments(&'a str),
}

/// `gunicorn: worker [shop]`, `[celeryd: celery@host:MainProcess] -active-
/// (worker -A shop)`.
fn title_name<'a>(title: &'a str, rest: &[String]) -> Title<'a> {
    let bracketed = |open, close| {
        let (_, inner) = title.split_once(open)?;
        inner.rsplit_once(close).map(|(inner, _)| inner)
    };
    if rest.iter().any(|argument| !argument.is_empty()) {
        return Title::None;
    }
    if title.starts_with("gunicorn: ") {
        return match bracketed('[', ']') {
            Some(inner) if is_application(inner) => Title::Application(inner),
            Some(inner) => Title::Name(inner),
            None => Title::None,
        };
    }
    if title.starts_with("[celery") {
        return bracketed('(', ')').map_or(Title::None, Title::Arguments);
    }
    Title::None
}

fn parse_arguments<'a>(row: &Launcher, arguments: &'a [String]) -> Arguments<'a> {
    let mut findings = Findings::default();
    let mut n_positional = 0;
    let mut only_positional = false;
    let mut rest = arguments;
    let wraps_python = row.positional.contains(&PythonCommandLine);
    while let Some((argument, tail)) = rest.split_first() {
        if argument == "--" && !only_positional {
            only_positional = true;
            rest = tail;
            continue;
        }
        if argument.starts_with('-') && argument != "-" && !only_positional {
            if wraps_python && argument == "-m" {
                return Arguments::NestedPython(rest);
            }
            rest = parse_option(row, argument, tail, &mut findings);
            continue;
        }
        let meaning = row.positional.get(n_positional).or(row.positional.last());
        n_positional += 1;
        match meaning {
            Some(CommandLine) => return Arguments::Nested(rest),
            Some(PythonCommandLine) => return Arguments::NestedPython(rest),
            Some(Application) if !is_application(argument) => {}
            Some(Ini) if !argument.ends_with(".ini") => {}
            Some(meaning) => findings.add(*meaning, argument),
            None => {}
        }
        rest = tail;
    }
    // An option without a value that is not in the table hides what follows.
    if findings.application.is_none()
        && row.positional.contains(&Application)
        && let Some(application) = arguments
            .iter()
            .find(|argument| argument.contains(':') && is_application(argument))
    {
        findings.add(Application, application);
    }
    Arguments::Own(findings)
}

/// Takes one option and returns what comes after it and its value.
fn parse_option<'a>(
    row: &Launcher,
    argument: &str,
    tail: &'a [String],
    findings: &mut Findings,
) -> &'a [String] {
    let meaning = |name: &str| {
        row.options
            .iter()
            .find(|(option, _)| *option == name)
            .map(|(_, meaning)| *meaning)
    };
    let after_value = tail.get(1..).unwrap_or_default();
    let value = tail.first().map(String::as_str);
    if let Some(meaning) = meaning(argument) {
        findings.add(meaning, value.unwrap_or_default());
        return after_value;
    }
    if row.flags.contains(&argument) {
        return tail;
    }
    if argument.starts_with("--") {
        if let Some((name, value)) = argument.split_once('=') {
            if let Some(meaning) = meaning(name) {
                findings.add(meaning, value);
            }
            return tail;
        }
    } else if let Some((name, value)) = argument
        .split_at_checked(2)
        .filter(|(_, value)| !value.is_empty())
    {
        if let Some(meaning) = meaning(name) {
            findings.add(meaning, value.strip_prefix('=').unwrap_or(value));
        }
        return tail;
    }
    match value.is_some_and(|value| value.starts_with('-') && value != "-") {
        true => tail,
        false => after_value,
    }
}

/// The module in `module:attribute`, hypercorn's prefix removed.
fn module_of(application: &str) -> &str {
    let application = ["asgi:", "wsgi:", "file:"]
        .iter()
        .find_map(|prefix| {
            application
                .strip_prefix(prefix)
                .filter(|rest| rest.contains(':') || *prefix == "file:")
        })
        .unwrap_or(application);
    application.split(':').next().unwrap_or_default()
}

/// Whether an argument can be `module`, `module:attribute` or
/// `module:factory(...)`; addresses and numbers are not.
fn is_application(argument: &str) -> bool {
    let module = module_of(argument);
    let (_, after) = argument.split_once(module).unwrap_or_default();
    let attribute = after
        .strip_prefix(':')
        .map(|attribute| attribute.split('(').next().unwrap_or_default());
    let is_path = module.ends_with(".py");
    (is_path || module.split('.').all(is_identifier))
        && attribute.is_none_or(|attribute| attribute.split('.').all(is_identifier))
}

fn is_identifier(word: &str) -> bool {
    word.starts_with(|letter: char| letter.is_alphabetic() || letter == '_')
        && word
            .chars()
            .all(|letter| letter.is_alphanumeric() || letter == '_')
}

/// `python`, `python3.12`, `python3.13t`, `pypy3`; not `python-app`.
fn is_python(name: &str) -> bool {
    ["python", "pypy"]
        .iter()
        .filter_map(|prefix| name.strip_prefix(prefix))
        .any(|version| {
            version
                .chars()
                .all(|letter| letter.is_ascii_digit() || ".dtmu".contains(letter))
        })
}

fn file_name(path: &str) -> &str {
    path.trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or_default()
}

fn parent(path: &str) -> Option<&str> {
    path.rsplit_once('/')
        .map(|(parent, _)| parent)
        .filter(|parent| !parent.is_empty())
}

/// Removes `.` and `..` without asking the file system.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                normal.pop();
            }
            Component::CurDir => {}
            other => normal.push(other),
        }
    }
    normal
}

/// The innermost directory that says something; a user's home does not.
fn directory_name(path: &Path) -> Option<String> {
    let names: Vec<&str> = path
        .components()
        .filter_map(|component| match component {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect();
    let names = match names.split_first() {
        Some((&"home", rest)) => rest.get(1..)?,
        _ => names.as_slice(),
    };
    names
        .iter()
        .rev()
        .find(|name| {
            !GENERIC.contains(name)
                && !GENERIC_DIRECTORIES.contains(name)
                && !name.starts_with('.')
                && !is_python(name)
                && !name
                    .chars()
                    .all(|letter| letter.is_ascii_digit() || "-_T.".contains(letter))
        })
        .map(|name| (*name).to_owned())
}

/// The string in `name = "..."` at the beginning of a line.
fn python_assignment<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let value = line
            .strip_prefix(name)?
            .trim_start()
            .strip_prefix('=')?
            .trim_start();
        first_literal(value).filter(|_| value.starts_with(['"', '\'']))
    })
}

/// The settings module in `setdefault("DJANGO_SETTINGS_MODULE", "...")`.
fn default_settings(text: &str) -> Option<&str> {
    let (_, after) = text.split_once("DJANGO_SETTINGS_MODULE")?;
    first_literal(after.get(1..)?)
}

/// The first string literal of a text, escapes not understood.
fn first_literal(text: &str) -> Option<&str> {
    let start = text.find(['"', '\''])?;
    let quote = text.get(start..)?.chars().next()?;
    let inner = text.get(start + 1..)?;
    inner
        .split_once(quote)
        .map(|(literal, _)| literal)
        .filter(|literal| !literal.contains('\n'))
}

/// The value of `name = value`; those with placeholders are not understood.
fn ini_value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == name)
            .then(|| value.trim())
            .filter(|value| !value.contains(['%', '$', '@']))
    })
}

/// Splits as a shell does, as far as quotes go.
fn split_words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for letter in text.chars() {
        match (quote, letter) {
            (Some(open), _) if open == letter => quote = None,
            (None, '"' | '\'') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, _) if letter.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::super::MAX_NAME;
    use super::*;
    use crate::target::process::Environment;

    fn process(command_line: &[String], cwd: &str, environment: &[(&str, &str)]) -> ProcessInfo {
        ProcessInfo {
            pid: 10,
            parent: 9,
            command_line: command_line.to_vec(),
            environment: Environment {
                variables: environment
                    .iter()
                    .map(|(name, value)| ((*name).into(), (*value).into()))
                    .collect(),
                complete: true,
            },
            executable: Some("/usr/bin/python3.12".into()),
            working_directory: Some(cwd.into()),
            ..ProcessInfo::default()
        }
    }

    fn files(path: &Path) -> Option<String> {
        let text = match path.to_str()? {
            "/etc/gunicorn/orders.py" => "bind = ':80'\nproc_name = \"orders\"\n",
            "/srv/billing/gunicorn.conf.py" => {
                "workers = 2\nwsgi_app = 'billing.wsgi:application'\n"
            }
            "/srv/x/uwsgi.ini" => "[uwsgi]\nmodule = stock.wsgi:application\nchdir = /srv/stock\n",
            "/srv/y/uwsgi.ini" => "[uwsgi]\nwsgi-file = %d/x.py\nprocesses = 4\n",
            "/srv/z/production.ini" => "[app:main]\nuse = egg:catalog\n",
            "/srv/mysite/manage.py" => {
                "import os\nos.environ.setdefault(\"DJANGO_SETTINGS_MODULE\", \"bookshop.settings\")\n"
            }
            "/srv/cookie/manage.py" => {
                "os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'config.settings.local')\n"
            }
            _ => return None,
        };
        Some(text.to_owned())
    }

    fn name(command_line: &[String], cwd: &str, environment: &[(&str, &str)]) -> String {
        let parents = |pid: u32| {
            let parent =
                split_words("/usr/bin/python3 /usr/bin/uvicorn parent.api:app --workers 2");
            (pid == 9).then(|| process(&parent, "/srv/parent", &[]))
        };
        let around = Surroundings {
            read_file: &|_, path| files(path),
            read_process: &parents,
        };
        derive(&process(command_line, cwd, environment), &around)
    }

    fn check(command_line: &str, cwd: &str, expected: &str) {
        assert_eq!(
            name(&split_words(command_line), cwd, &[]),
            expected,
            "{command_line} in {cwd}"
        );
    }

    #[test]
    fn gunicorn() {
        check(
            "/usr/bin/python3 /usr/local/bin/gunicorn shop.wsgi:application",
            "/srv/x",
            "shop",
        );
        check(
            "gunicorn -w 4 -b 0.0.0.0:8000 orders:app",
            "/srv/x",
            "orders",
        );
        check("gunicorn -w4 -b:8000 app:app", "/srv/orders", "orders");
        check("gunicorn \"pkg.app:create_app()\"", "/srv/x", "pkg");
        check(
            "gunicorn \"pkg.app:create_app('dev', debug=True)\" --bind unix:/run/s.sock",
            "/srv/x",
            "pkg",
        );
        check("gunicorn --name payments app:app", "/srv/x", "payments");
        check("gunicorn -npayments app:app", "/srv/x", "payments");
        check("gunicorn --name=payments app:app", "/srv/x", "payments");
        check("gunicorn --chdir /srv/cart wsgi", "/", "cart");
        check("gunicorn --chdir cart wsgi", "/srv/cart", "cart");
        check("gunicorn --pythonpath /srv/cart,/lib app:app", "/", "cart");
        check(
            "gunicorn -c /etc/gunicorn/orders.py app:app",
            "/srv/x",
            "orders",
        );
        check("gunicorn -c gunicorn.conf.py", "/srv/billing", "billing");
        check("gunicorn", "/srv/billing", "billing");
        check(
            "gunicorn -k uvicorn.workers.UvicornWorker --preload shop.api:app",
            "/",
            "shop.api",
        );
        check("gunicorn --preload --reload -D shop:app", "/", "shop");
        check(
            "gunicorn --flag-of-the-future shop:app --timeout 30",
            "/",
            "shop",
        );
        check(
            "gunicorn --bind localhost:8000 --log-level debug",
            "/srv/x",
            "unknown_service:python3.12",
        );
        check(
            "python3 -m gunicorn app:app -b 127.0.0.1:80",
            "/srv/mail",
            "mail",
        );
        check("python -m gunicorn.app.wsgiapp shop:app", "/", "shop");
    }

    #[test]
    fn gunicorn_titles() {
        let check = |title: &str, expected| {
            assert_eq!(name(&[title.to_owned()], "/srv/orders", &[]), expected)
        };
        check("gunicorn: worker [shop]", "shop");
        check("gunicorn: master [shop.wsgi:application]", "shop");
        check("gunicorn: worker [app:app]", "orders");
        check("gunicorn: master [app:create_app()]", "orders");
        check("gunicorn: worker", "unknown_service:python3.12");
        check("some title of its own", "unknown_service:python3.12");
    }

    #[test]
    fn gunicorn_arguments_in_the_environment() {
        let arguments = split_words("gunicorn app:app");
        let check = |value, expected| {
            assert_eq!(
                name(&arguments, "/srv/x", &[("GUNICORN_CMD_ARGS", value)]),
                expected
            )
        };
        check("--name payments --workers 3", "payments");
        check("--chdir=/srv/cart", "cart");
        assert_eq!(
            name(
                &split_words("gunicorn"),
                "/",
                &[("GUNICORN_CMD_ARGS", "shop:app")]
            ),
            "shop"
        );
    }

    #[test]
    fn asgi_servers() {
        check("uvicorn main:app", "/srv/orders", "orders");
        check(
            "uvicorn app.main:app --host 0.0.0.0 --port 80",
            "/srv/orders/src",
            "orders",
        );
        check("uvicorn main:app", "/app", "main");
        check(
            "/usr/bin/python3 /usr/bin/uvicorn --factory shop.main:create_app",
            "/",
            "shop",
        );
        check("uvicorn --app-dir /srv/cart/src main:app", "/", "cart");
        check("uvicorn --app-dir=services/cart main:app", "/srv", "cart");
        check(
            "uvicorn --reload --no-access-log --workers 4 shop:app",
            "/",
            "shop",
        );
        check(
            "python -m uvicorn src.shop.main:app --proxy-headers",
            "/",
            "shop",
        );
        check(
            "python3 -X dev -u -m uvicorn main:app",
            "/home/alice/orders",
            "orders",
        );
        check("uvicorn main:app", "/home/alice", "main");
        check("uvicorn main:app", "/srv/shop/releases/20240102", "shop");
        check("hypercorn -b 0.0.0.0:80 asgi:shop.main:app", "/", "shop");
        check(
            "hypercorn --worker-class uvloop asgi:app",
            "/srv/orders",
            "orders",
        );
        check(
            "daphne -b 0.0.0.0 -p 8001 mysite.asgi:application",
            "/",
            "mysite",
        );
        check(
            "granian --interface asgi --workers 2 main:app",
            "/srv/orders",
            "orders",
        );
        check(
            "granian --process-name payments main:app",
            "/srv/x",
            "payments",
        );
        check("sanic shop.server:app --fast", "/", "shop");
        check("litestar --app shop.web:app run", "/", "shop");
        assert_eq!(
            name(
                &split_words("uvicorn --port 80"),
                "/",
                &[("UVICORN_APP", "shop:app")]
            ),
            "shop"
        );
    }

    #[test]
    fn wsgi_servers() {
        check(
            "waitress-serve --listen=*:8080 --call shop.factory:create_app",
            "/",
            "shop.factory",
        );
        check(
            "waitress-serve --port 80 --threads=4 wsgi:app",
            "/srv/orders",
            "orders",
        );
        check("python -m waitress shop:app", "/", "shop");
        check(
            "uwsgi --http :8000 --module shop.wsgi:application --master",
            "/",
            "shop",
        );
        check(
            "uwsgi --master -p 4 --wsgi-file /srv/orders/app.py",
            "/",
            "orders",
        );
        check("uwsgi -w shop", "/", "shop");
        check("uwsgi --ini uwsgi.ini", "/srv/x", "stock");
        check("uwsgi uwsgi.ini", "/srv/x", "stock");
        check("uwsgi --ini /srv/y/uwsgi.ini", "/", "y");
        check("pserve /srv/z/production.ini", "/", "catalog");
        check(
            "python -m aiohttp.web -H localhost -P 80 shop.web:init",
            "/",
            "shop",
        );
    }

    #[test]
    fn frameworks() {
        check("flask --app shop run --port 80", "/", "shop");
        check("flask --app \"shop:create_app('x')\" run", "/", "shop");
        check("flask -A src/shop.py run --debug", "/srv", "shop");
        check("flask run -h 0.0.0.0", "/srv/orders", "orders");
        check("python3 -m flask run", "/srv/orders", "orders");
        assert_eq!(
            name(
                &split_words("flask run"),
                "/srv/x",
                &[("FLASK_APP", "cart.py")]
            ),
            "cart"
        );
        check("fastapi run main.py --port 80", "/srv/orders", "orders");
        check("fastapi dev app/main.py", "/srv/orders", "orders");
        check("fastapi run shop.py", "/", "shop");
        check("fastapi run", "/srv/orders/app", "orders");
        check(
            "python manage.py runserver 0.0.0.0:80",
            "/srv/mysite",
            "bookshop",
        );
        check(
            "python /srv/cookie/manage.py runserver --noreload",
            "/",
            "cookie",
        );
        check("python /srv/other/manage.py runserver", "/", "other");
        check(
            "python manage.py runserver --settings=library.settings.dev",
            "/srv/mysite",
            "library",
        );
        check(
            "django-admin runserver --settings library.settings",
            "/",
            "library",
        );
        let settings = [("DJANGO_SETTINGS_MODULE", "news.settings")];
        assert_eq!(
            name(
                &split_words("python manage.py runserver"),
                "/srv/mysite",
                &settings
            ),
            "news"
        );
        check(
            "streamlit run dashboard.py --server.port 80",
            "/",
            "dashboard",
        );
    }

    #[test]
    fn workers() {
        check("celery -A proj worker -l info", "/", "proj");
        check(
            "celery --app=proj.celery:app worker -c 4 -Q a,b",
            "/",
            "proj",
        );
        check("python -m celery -A shop.tasks worker", "/", "shop.tasks");
        check("celery worker --app shop", "/", "shop");
        check("dramatiq shop.tasks --processes 2", "/", "shop.tasks");
        let title =
            "[celeryd: celery@host:MainProcess] -active- (worker -A proj -l info)".to_owned();
        assert_eq!(name(&[title], "/", &[]), "proj");
    }

    #[test]
    fn scripts_and_modules() {
        check("python script.py", "/", "script");
        check("python3.11 /srv/orders/app.py --port 80", "/", "orders");
        check("python -u ./main.py", "/srv/orders", "orders");
        check(
            "python3 -Wignore -Xdev -OO server.py",
            "/srv/orders",
            "orders",
        );
        check("python3 -W ignore -X dev billing.py", "/", "billing");
        check("python -m pkg.mod", "/", "pkg.mod");
        check("python -m shop", "/", "shop");
        check("python -um shop.main --port 3", "/", "shop");
        check("python -mshop", "/", "shop");
        check("python .", "/srv/orders", "orders");
        check("python ../cart", "/srv/orders", "cart");
        check(
            "python3 /usr/local/bin/order-service --config x",
            "/",
            "order-service",
        );
        check("python /srv/shop.pyz", "/", "shop");
        check(
            "python -c 'import x'",
            "/srv/orders",
            "unknown_service:python3.12",
        );
        check("python3", "/srv/orders", "unknown_service:python3.12");
        check("python3 -", "/srv/orders", "unknown_service:python3.12");
        check("", "/srv/orders", "unknown_service:python3.12");
    }

    #[test]
    fn wrappers() {
        check(
            "opentelemetry-instrument --traces_exporter console python app.py",
            "/srv/orders",
            "orders",
        );
        check(
            "python /usr/bin/ddtrace-run gunicorn shop.wsgi",
            "/",
            "shop",
        );
        check("newrelic-admin run-program uvicorn shop:app", "/", "shop");
        check(
            "python -m debugpy --listen 0.0.0.0:5678 -m uvicorn shop.main:app",
            "/",
            "shop",
        );
        check(
            "python -m debugpy --wait-for-client --listen 5678 cart.py",
            "/",
            "cart",
        );
        check("coverage run -p -m gunicorn shop:app", "/", "shop");
        check(
            "python -m pdb -m pdb -m pdb -m pdb -m pdb -m pdb x.py",
            "/",
            "unknown_service:python3.12",
        );
    }

    #[test]
    fn workers_of_multiprocessing_take_their_parents_name() {
        let spawned =
            "from multiprocessing.spawn import spawn_main; spawn_main(tracker_fd=5, pipe_handle=7)";
        let line = ["python3", "-c", spawned, "--multiprocessing-fork"].map(str::to_owned);
        assert_eq!(name(&line, "/srv/x", &[]), "parent.api");
        let orphan = ProcessInfo {
            parent: 1,
            ..process(&line, "/", &[])
        };
        let around = Surroundings {
            read_file: &|_, _| None,
            read_process: &|_| None,
        };
        assert_eq!(derive(&orphan, &around), "unknown_service:python3.12");
    }

    #[test]
    fn strange_arguments_do_no_harm() {
        let odd = [
            "",
            "-",
            "--",
            "-é",
            "é",
            ":",
            "::",
            "--=",
            "-m",
            "-c",
            "[",
            "gunicorn: ",
            "[celery",
            "\u{0}",
            "...",
            "/",
            "..",
        ];
        for program in [
            "python",
            "gunicorn",
            "uwsgi",
            "celery",
            "manage.py",
            "debugpy",
            "pserve",
            "",
            "gunicorn: worker []",
        ] {
            for first in odd {
                for second in odd {
                    let line = [program, first, second].map(str::to_owned);
                    let name = name(&line, "/srv/x", &[("GUNICORN_CMD_ARGS", second)]);
                    assert!(
                        !name.is_empty() && !name.contains(char::is_control),
                        "{line:?}"
                    );
                }
            }
        }
        let long = "x".repeat(100_000);
        assert_eq!(name(&["python".into(), long], "/", &[]).len(), MAX_NAME);
    }
}
