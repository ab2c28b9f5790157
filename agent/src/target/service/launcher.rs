//! The programs that start Python applications and how each reads its
//! arguments: a table, one row per program.
//!
//! `name` walks command lines with it. It has no logic of its own.

/// What an argument of a launcher says about the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// `package.module:attribute`, or a module.
    Application,
    /// A name chosen by the operator.
    Name,
    /// Where the application's modules are.
    Directory,
    /// Path of a Python file.
    Script,
    /// Path of a gunicorn configuration file.
    GunicornConfig,
    /// Path of a configuration file with `name = value` lines.
    Ini,
    /// A Django settings module.
    Settings,
    /// A command of the launcher; arguments continue after it.
    Command,
    /// A command line of its own, to the end.
    CommandLine,
    /// As [`Self::CommandLine`], for the Python interpreter's arguments.
    PythonCommandLine,
}

/// How a program that starts Python applications reads its arguments.
///
/// An option that is neither in `flags` nor in `options` takes a value,
/// unless the next argument begins with a dash: launchers have many options
/// with values and few without, and new ones are mostly of the first kind.
pub(super) struct Launcher {
    /// File names of the program and names of its module for `python -m`.
    pub(super) names: &'static [&'static str],
    /// Options without a value.
    pub(super) flags: &'static [&'static str],
    /// Options whose value says something.
    pub(super) options: &'static [(&'static str, Meaning)],
    /// Environment variables that say something; options win.
    pub(super) environment: &'static [(&'static str, Meaning)],
    /// Positional arguments in order; the last one repeats.
    pub(super) positional: &'static [Meaning],
    /// What it serves when nothing names it: modules in the current
    /// directory.
    pub(super) serves_directory: bool,
}

impl Launcher {
    /// What rows leave out.
    const NONE: Self = Self {
        names: &[],
        flags: &[],
        options: &[],
        environment: &[],
        positional: &[],
        serves_directory: false,
    };
}

use Meaning::{
    Application, Command, CommandLine, Directory, GunicornConfig, Ini, Name, PythonCommandLine,
    Script, Settings,
};

/// The launchers known.
#[rustfmt::skip]
pub(super) const LAUNCHERS: &[Launcher] = &[
    Launcher {
        names: &["gunicorn", "gunicorn.app.wsgiapp"],
        flags: &[
            "--capture-output", "--check-config", "--daemon", "-D", "--disable-redirect-access-to-syslog",
            "--do-handshake-on-connect", "--enable-stdio-inheritance", "-R", "--help", "-h", "--initgroups",
            "--log-syslog", "--no-sendfile", "--preload", "--print-config", "--proxy-protocol", "--reload",
            "--reuse-port", "--spew", "--suppress-ragged-eofs", "--version", "-v",
        ],
        options: &[
            ("--name", Name), ("-n", Name), ("--chdir", Directory), ("--pythonpath", Directory),
            ("--config", GunicornConfig), ("-c", GunicornConfig), ("--paste", Ini), ("--paster", Ini),
        ],
        positional: &[Application],
        ..Launcher::NONE
    },
    Launcher {
        names: &["uvicorn"],
        flags: &[
            "--access-log", "--date-header", "--factory", "--help", "--no-access-log", "--no-date-header",
            "--no-proxy-headers", "--no-server-header", "--no-use-colors", "--proxy-headers", "--reload",
            "--server-header", "--use-colors", "--version",
        ],
        options: &[("--app-dir", Directory)],
        environment: &[("UVICORN_APP", Application), ("UVICORN_APP_DIR", Directory)],
        positional: &[Application],
        ..Launcher::NONE
    },
    Launcher {
        names: &["hypercorn"],
        flags: &["--debug", "--help", "-h", "--reload", "--version"],
        positional: &[Application],
        ..Launcher::NONE
    },
    Launcher {
        names: &["daphne"],
        flags: &["--help", "-h", "--no-server-name", "--proxy-headers", "--version"],
        positional: &[Application],
        ..Launcher::NONE
    },
    Launcher {
        names: &["granian"],
        flags: &[
            "--access-log", "--factory", "--help", "--http1-keep-alive", "--http1-pipeline-flush", "--log",
            "--no-access-log", "--no-factory", "--no-http1-keep-alive", "--no-http1-pipeline-flush", "--no-log",
            "--no-reload", "--no-respawn-failed-workers", "--no-ws", "--reload", "--respawn-failed-workers",
            "--version", "--ws",
        ],
        options: &[("--process-name", Name), ("--working-dir", Directory)],
        environment: &[("GRANIAN_PROCESS_NAME", Name), ("GRANIAN_WORKING_DIR", Directory)],
        positional: &[Application],
        ..Launcher::NONE
    },
    Launcher {
        names: &["waitress-serve", "waitress"],
        flags: &[
            "--asyncore-use-poll", "--call", "--clear-untrusted-proxy-headers", "--expose-tracebacks", "--help",
            "--ipv4", "--ipv6", "--log-untrusted-proxy-headers", "--no-asyncore-use-poll",
            "--no-clear-untrusted-proxy-headers", "--no-expose-tracebacks", "--no-ipv4", "--no-ipv6",
            "--no-log-untrusted-proxy-headers",
        ],
        options: &[("--app", Application)],
        positional: &[Application],
        ..Launcher::NONE
    },
    Launcher {
        names: &["uwsgi", "uwsgi-core", "pyuwsgi"],
        flags: &[
            "--auto-procname", "--die-on-term", "--disable-logging", "--enable-threads", "--http-keepalive",
            "--lazy", "--lazy-apps", "--log-master", "--master", "-M", "--memory-report", "--need-app",
            "--single-interpreter", "--strict", "--thunder-lock", "--vacuum",
        ],
        options: &[
            ("--module", Application), ("-w", Application), ("--wsgi", Application), ("--wsgi-file", Script),
            ("--file", Script), ("--chdir", Directory), ("--pythonpath", Directory), ("--pp", Directory),
            ("--procname", Name), ("--ini", Ini),
        ],
        environment: &[
            ("UWSGI_MODULE", Application), ("UWSGI_WSGI_FILE", Script), ("UWSGI_FILE", Script),
            ("UWSGI_CHDIR", Directory), ("UWSGI_INI", Ini),
        ],
        positional: &[Ini],
        ..Launcher::NONE
    },
    Launcher {
        names: &["flask", "quart"],
        flags: &[
            "--debug", "--debugger", "--help", "--no-debug", "--no-debugger", "--no-reload", "--reload",
            "--version", "--with-threads", "--without-threads",
        ],
        options: &[("--app", Application), ("-A", Application)],
        environment: &[("FLASK_APP", Application), ("QUART_APP", Application)],
        positional: &[Command],
        serves_directory: true,
    },
    Launcher {
        names: &["fastapi"],
        flags: &["--help", "--no-proxy-headers", "--no-reload", "--proxy-headers", "--reload", "--verbose", "--version"],
        options: &[("--entrypoint", Application), ("-e", Application)],
        positional: &[Command, Script],
        serves_directory: true,
        ..Launcher::NONE
    },
    Launcher {
        names: &["litestar"],
        flags: &["--debug", "-d", "--help", "--pdb", "--reload", "-r"],
        options: &[("--app", Application), ("--app-dir", Directory)],
        environment: &[("LITESTAR_APP", Application)],
        positional: &[Command],
        serves_directory: true,
    },
    Launcher {
        names: &["sanic"],
        flags: &["--debug", "--dev", "-d", "--factory", "--fast", "--reload", "-r", "--simple", "--single-process"],
        positional: &[Application],
        ..Launcher::NONE
    },
    Launcher { names: &["aiohttp.web", "cheroot"], positional: &[Application], ..Launcher::NONE },
    Launcher {
        names: &["pserve"],
        flags: &["--reload", "-v", "--verbose", "-q"],
        positional: &[Ini],
        ..Launcher::NONE
    },
    Launcher {
        names: &["celery"],
        flags: &[
            "--beat", "-B", "--detach", "--discard", "--events", "-E", "--help", "--no-color", "--purge", "--quiet",
            "-q", "--skip-checks", "--task-events", "--version", "--without-gossip", "--without-heartbeat",
            "--without-mingle",
        ],
        options: &[("--app", Application), ("-A", Application), ("--workdir", Directory)],
        environment: &[("CELERY_APP", Application)],
        positional: &[Command],
        serves_directory: true,
    },
    Launcher {
        names: &["dramatiq", "arq", "taskiq"],
        flags: &["--help", "--verbose", "-v", "--watch-use-polling", "--check", "--burst"],
        options: &[("--path", Directory), ("-P", Directory)],
        positional: &[Application],
        ..Launcher::NONE
    },
    Launcher {
        names: &["django-admin", "manage.py", "django"],
        flags: &[
            "--force-color", "--help", "--insecure", "--ipv6", "-6", "--no-color", "--noreload", "--nostatic",
            "--nothreading", "--skip-checks", "--traceback", "--version",
        ],
        options: &[("--settings", Settings), ("--pythonpath", Directory)],
        environment: &[("DJANGO_SETTINGS_MODULE", Settings)],
        positional: &[Command],
        serves_directory: true,
    },
    Launcher {
        names: &["streamlit"],
        positional: &[Command, Script],
        ..Launcher::NONE
    },
    // Programs that run another one in their own process.
    Launcher {
        names: &["opentelemetry-instrument", "ddtrace-run", "viztracer", "kernprof"],
        flags: &["--help", "-l", "-v"],
        positional: &[CommandLine],
        ..Launcher::NONE
    },
    Launcher {
        names: &["newrelic-admin"],
        positional: &[Command, CommandLine],
        ..Launcher::NONE
    },
    Launcher {
        names: &["debugpy"],
        flags: &["--wait-for-client"],
        positional: &[PythonCommandLine],
        ..Launcher::NONE
    },
    Launcher {
        names: &["coverage"],
        flags: &["-a", "--append", "--branch", "-L", "--pylib", "-p", "--parallel-mode", "--timid"],
        positional: &[Command, PythonCommandLine],
        ..Launcher::NONE
    },
    Launcher { names: &["pdb", "cProfile"], positional: &[PythonCommandLine], ..Launcher::NONE },
];
