//! Where each framework and server keeps what a request is about: the table.
//!
//! One [`Row`] per function whose frame is of interest, with the values that
//! its local variables lead to. Rows of functions, variables and attributes
//! that a release does not have are passed over, so that rows for several
//! releases stand side by side; where several values of one role are found,
//! that of the innermost frame counts, and in a frame the first in the table.
//!
//! The facts were read off the releases named at each framework.

use abi::record::{moment, value};

use super::paths::Style;

/// What a value says about the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Role {
    /// The pattern that matched, as a whole.
    WholeRoute,
    /// The pattern that matched, as a whole but for the slash that it begins
    /// with.
    SlashlessRoute,
    /// The route object that matched.
    Leaf,
    /// What says how the route object is included in the application:
    /// an object with `original_route`, `path` and `endpoint`.
    LeafContext,
    /// The outermost router: where the route object is looked for.
    Root,
    /// The callable that serves the request.
    Handler,
    /// The name under which the application has the callable.
    ViewName,
    /// The application.
    Application,
    /// A WSGI application whose routes the path tells.
    Wsgi(Style),
    /// The path of the request, as WSGI has it.
    Path,
    /// The object whose class serves the request, in the rules of
    /// [`Role::Application`].
    Instance,
    /// The method of the request, to choose a class's method by.
    Method,
    /// An exception that nobody handled.
    Exception,
    /// What handles an exception that the application does not: without it
    /// the frame's [`Role::Exception`] is none.
    Default,
    /// An object that knows what the application handles by the exception's
    /// type.
    Catchers(Catchers),
}

/// Where an application keeps its handlers of exceptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Catchers {
    /// `_error_handlers`: handlers by type, those of the framework included.
    Falcon,
    /// `cached_handlers`: handlers by type and route, or `None`.
    Sanic,
}

/// Where a path begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// At a local variable.
    Local(&'static str),
    /// At the WSGI environment; rows of [`Place::WsgiServers`] only.
    Environ,
    /// At the WSGI application; rows of [`Place::WsgiServers`] only.
    Application,
    /// At what the WSGI application returned; rows of [`Place::WsgiServers`]
    /// only.
    Iterable,
    /// At the exception that passes through the frame.
    Raised,
}

/// One step of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Go {
    /// To an attribute that the object itself has.
    Attribute(&'static str),
    /// To the value of a dictionary.
    Key(&'static str),
    /// To an item of a tuple or list.
    Index(u32),
    /// To an attribute in a slot: module, class, attribute.
    Slot(&'static str, &'static str, &'static str),
    /// From a bound method to its object.
    MethodSelf,
    /// From a bound method to its function.
    MethodFunction,
}

/// A value and the way to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    /// What it says.
    pub(super) role: Role,
    /// At which moments, a bit each (see [`moment`]).
    pub(super) moments: u32,
    /// Where the path begins.
    pub(super) start: Start,
    /// The path.
    pub(super) path: &'static [Go],
}

/// Whose frames a row is about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// The function of a module, by its qualified name; a nested one
    /// (`outer.<locals>.inner`) may stand for several of that name.
    Function(&'static str, &'static str),
    /// The functions of [`WSGI_SERVERS`].
    WsgiServers,
}

/// A function whose frames tell something.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// Whose frames.
    pub(super) place: Place,
    /// Whether nothing of interest lies outside such a frame.
    pub(super) last: bool,
    /// What they tell.
    pub(super) values: &'static [Want],
}

/// A framework, or a server whose frames hold what it serves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Framework {
    /// Its distribution, normalized.
    pub(super) name: &'static str,
    /// The module without which it is not in use.
    pub(super) module: &'static str,
    /// Whether it routes requests (and is not a mere server).
    pub(super) routes: bool,
    /// More modules in which its names are found.
    pub(super) names: &'static [&'static str],
    /// Module and variable of the `ContextVar` that it resets when it lets go
    /// of a request.
    pub(super) context_variable: Option<(&'static str, &'static str)>,
    /// Exceptions that are no failures, by module and qualified name; those
    /// that derive from them neither.
    pub(super) handled: &'static [&'static str],
    /// Modules of frameworks that leave nothing to tell.
    pub(super) unless: &'static [&'static str],
    /// Its rows.
    pub(super) rows: &'static [Row],
}

/// A function that calls WSGI applications and writes what they return.
#[derive(Clone, Copy, Debug)]
pub(super) struct WsgiServer {
    /// Its module.
    pub(super) module: &'static str,
    /// Its qualified name.
    pub(super) function: &'static str,
    /// Local variable and path to the environment.
    pub(super) environ: (&'static str, &'static [Go]),
    /// Local variable and path to the application.
    pub(super) application: (&'static str, &'static [Go]),
    /// Local variable and path to what the application returned.
    pub(super) iterable: (&'static str, &'static [Go]),
}

impl Want {
    /// What the last object of the path is taken for.
    pub(super) fn terminal(&self) -> u32 {
        u32::from(match self.role {
            Role::WholeRoute
            | Role::SlashlessRoute
            | Role::ViewName
            | Role::Path
            | Role::Method => value::TEXT,
            Role::Leaf
            | Role::LeafContext
            | Role::Root
            | Role::Instance
            | Role::Wsgi(_)
            | Role::Handler
            | Role::Application
            | Role::Default
            | Role::Catchers(_) => value::OBJECT,
            Role::Exception => value::EXCEPTION,
        })
    }
}

const fn at(moment: u8, role: Role, start: Start, path: &'static [Go]) -> Want {
    Want {
        role,
        moments: 1 << moment,
        start,
        path,
    }
}

const fn answering(role: Role, start: Start, path: &'static [Go]) -> Want {
    at(moment::RESPONSE, role, start, path)
}

const fn resetting(role: Role, start: Start, path: &'static [Go]) -> Want {
    at(moment::RESET, role, start, path)
}

const fn raised(role: Role, start: Start, path: &'static [Go]) -> Want {
    at(moment::RAISED, role, start, path)
}

const fn row(module: &'static str, function: &'static str, values: &'static [Want]) -> Row {
    Row {
        place: Place::Function(module, function),
        last: false,
        values,
    }
}

const fn last(module: &'static str, function: &'static str, values: &'static [Want]) -> Row {
    Row {
        place: Place::Function(module, function),
        last: true,
        values,
    }
}

use Go::{Attribute, Key};
use Start::Local;

/// Functions of WSGI servers.
pub(super) const WSGI_SERVERS: &[WsgiServer] = &[
    WsgiServer {
        module: "gunicorn.workers.sync",
        function: "SyncWorker.handle_request",
        environ: ("environ", &[]),
        application: ("self", &[Attribute("wsgi")]),
        iterable: ("respiter", &[]),
    },
    WsgiServer {
        module: "gunicorn.workers.gthread",
        function: "ThreadWorker.handle_request",
        environ: ("environ", &[]),
        application: ("self", &[Attribute("wsgi")]),
        iterable: ("respiter", &[]),
    },
    WsgiServer {
        module: "gunicorn.workers.base_async",
        function: "AsyncWorker.handle_request",
        environ: ("environ", &[]),
        application: ("self", &[Attribute("wsgi")]),
        iterable: ("respiter", &[]),
    },
    WsgiServer {
        module: "wsgiref.handlers",
        function: "BaseHandler.run",
        environ: ("self", &[Attribute("environ")]),
        application: ("application", &[]),
        iterable: ("self", &[Attribute("result")]),
    },
    WsgiServer {
        module: "waitress.task",
        function: "WSGITask.execute",
        environ: ("environ", &[]),
        application: (
            "self",
            &[
                Attribute("channel"),
                Attribute("server"),
                Attribute("application"),
            ],
        ),
        iterable: ("app_iter", &[]),
    },
    WsgiServer {
        module: "werkzeug.serving",
        function: "WSGIRequestHandler.run_wsgi",
        environ: ("environ", &[]),
        application: ("self", &[Attribute("server"), Attribute("app")]),
        iterable: ("application_iter", &[]),
    },
    WsgiServer {
        module: "werkzeug.serving",
        function: "WSGIRequestHandler.run_wsgi.<locals>.execute",
        environ: ("environ", &[]),
        application: ("self", &[Attribute("server"), Attribute("app")]),
        iterable: ("application_iter", &[]),
    },
];

/// Every framework that is known.
pub(super) const FRAMEWORKS: &[Framework] = &[
    // Flask 2.2 to 3.1: the request context is popped before the server
    // writes, and everything is forgotten with it.
    Framework {
        name: "flask",
        module: "flask.app",
        routes: true,
        names: &["flask.ctx", "flask.wrappers", "werkzeug.routing.rules"],
        context_variable: Some(("flask.globals", "_cv_request")),
        handled: &[],
        unless: &[],
        rows: &[last(
            "flask.app",
            "Flask.wsgi_app",
            &[
                resetting(
                    Role::WholeRoute,
                    Local("ctx"),
                    &[
                        Attribute("request"),
                        Attribute("url_rule"),
                        Attribute("rule"),
                    ],
                ),
                resetting(
                    Role::ViewName,
                    Local("ctx"),
                    &[
                        Attribute("request"),
                        Attribute("url_rule"),
                        Attribute("endpoint"),
                    ],
                ),
                resetting(Role::Application, Local("self"), &[]),
                resetting(
                    Role::Method,
                    Local("ctx"),
                    &[Attribute("request"), Attribute("method")],
                ),
                resetting(Role::Exception, Local("error"), &[]),
            ],
        )],
    },
    // FastAPI up to 0.165. Routers that were included since 0.140 or so keep
    // their routes as they are, and the scope says what they are below.
    Framework {
        name: "fastapi",
        module: "fastapi.routing",
        routes: true,
        names: &["starlette.routing", "fastapi.applications"],
        context_variable: None,
        handled: &[],
        unless: &[],
        rows: &[
            row(
                "fastapi.routing",
                "APIRoute.handle",
                &[answering(
                    Role::LeafContext,
                    Local("effective_context"),
                    &[],
                )],
            ),
            row(
                "starlette.applications",
                "Starlette.__call__",
                &[answering(
                    Role::LeafContext,
                    Local("scope"),
                    &[Key("fastapi"), Key("effective_route_context")],
                )],
            ),
        ],
    },
    // Starlette 0.20 to 1.x. Mounted applications share the scope, so that
    // the innermost application tells all.
    Framework {
        name: "starlette",
        module: "starlette.routing",
        routes: true,
        names: &["starlette.applications", "starlette.requests"],
        context_variable: None,
        handled: &[],
        unless: &[],
        rows: &[
            row(
                "starlette.routing",
                "Route.handle",
                &[answering(Role::Leaf, Local("self"), &[])],
            ),
            row(
                "starlette.routing",
                "Mount.handle",
                &[answering(Role::Leaf, Local("self"), &[])],
            ),
            row(
                "starlette.endpoints",
                "HTTPEndpoint.dispatch",
                &[answering(
                    Role::Handler,
                    Local("handler"),
                    &[Go::MethodFunction],
                )],
            ),
            // What middlewares answer after the route's frames are gone, for
            // an exception say: the scope still knows.
            last(
                "starlette.applications",
                "Starlette.__call__",
                &[
                    answering(Role::Leaf, Local("scope"), &[Key("route")]),
                    answering(Role::Root, Local("scope"), &[Key("router")]),
                    answering(Role::Method, Local("scope"), &[Key("method")]),
                ],
            ),
            row(
                "starlette.middleware.errors",
                "ServerErrorMiddleware.__call__",
                &[answering(Role::Exception, Local("exc"), &[])],
            ),
        ],
    },
    // Django 3.2 to 6.1. Under WSGI only the response is left when the server
    // writes; what closes it leads to the request.
    Framework {
        name: "django",
        module: "django.core.handlers.base",
        routes: true,
        names: &[
            "django.core.handlers.wsgi",
            "django.core.handlers.asgi",
            "django.http.response",
            "django.urls.resolvers",
        ],
        context_variable: None,
        handled: &[
            "django.http.response.Http404",
            "django.core.exceptions.PermissionDenied",
            "django.core.exceptions.BadRequest",
            "django.core.exceptions.SuspiciousOperation",
            "django.http.multipartparser.MultiPartParserError",
        ],
        unless: &[],
        rows: &[
            Row {
                place: Place::WsgiServers,
                last: true,
                values: &[
                    answering(
                        Role::WholeRoute,
                        Start::Iterable,
                        &[
                            Attribute("_resource_closers"),
                            Go::Index(0),
                            Go::MethodSelf,
                            Attribute("resolver_match"),
                            Attribute("route"),
                        ],
                    ),
                    answering(
                        Role::Handler,
                        Start::Iterable,
                        &[
                            Attribute("_resource_closers"),
                            Go::Index(0),
                            Go::MethodSelf,
                            Attribute("resolver_match"),
                            Attribute("func"),
                        ],
                    ),
                    answering(
                        Role::Method,
                        Start::Iterable,
                        &[
                            Attribute("_resource_closers"),
                            Go::Index(0),
                            Go::MethodSelf,
                            Attribute("method"),
                        ],
                    ),
                    // Behind what a streamed response closes itself.
                    answering(
                        Role::WholeRoute,
                        Start::Iterable,
                        &[
                            Attribute("_resource_closers"),
                            Go::Index(1),
                            Go::MethodSelf,
                            Attribute("resolver_match"),
                            Attribute("route"),
                        ],
                    ),
                    answering(
                        Role::Handler,
                        Start::Iterable,
                        &[
                            Attribute("_resource_closers"),
                            Go::Index(1),
                            Go::MethodSelf,
                            Attribute("resolver_match"),
                            Attribute("func"),
                        ],
                    ),
                ],
            },
            row(
                "django.core.handlers.asgi",
                "ASGIHandler.handle",
                DJANGO_REQUEST,
            ),
            row(
                "django.core.handlers.asgi",
                "ASGIHandler.handle.<locals>.process_request",
                DJANGO_REQUEST,
            ),
            row(
                "django.core.handlers.exception",
                "convert_exception_to_response.<locals>.inner",
                &[raised(Role::Exception, Start::Raised, &[])],
            ),
        ],
    },
    // aiohttp 3.8 to 3.14.
    Framework {
        name: "aiohttp",
        module: "aiohttp.web_protocol",
        routes: true,
        names: &["aiohttp.web_request", "aiohttp.web_urldispatcher"],
        context_variable: None,
        handled: &["aiohttp.web_exceptions.HTTPException"],
        unless: &[],
        rows: &[last(
            "aiohttp.web_protocol",
            "RequestHandler._handle_request",
            &[
                answering(
                    Role::WholeRoute,
                    Local("request"),
                    &[
                        Attribute("_match_info"),
                        AIOHTTP_ROUTE,
                        Attribute("_resource"),
                        Attribute("_path"),
                    ],
                ),
                answering(
                    Role::WholeRoute,
                    Local("request"),
                    &[
                        Attribute("_match_info"),
                        AIOHTTP_ROUTE,
                        Attribute("_resource"),
                        Attribute("_formatter"),
                    ],
                ),
                answering(
                    Role::WholeRoute,
                    Local("request"),
                    &[
                        Attribute("_match_info"),
                        AIOHTTP_ROUTE,
                        Attribute("_resource"),
                        Attribute("_prefix"),
                    ],
                ),
                answering(
                    Role::Handler,
                    Local("request"),
                    &[
                        Attribute("_match_info"),
                        AIOHTTP_ROUTE,
                        Attribute("_handler"),
                    ],
                ),
                answering(Role::Method, Local("request"), &[Attribute("_method")]),
                answering(Role::Exception, Local("exc"), &[]),
            ],
        )],
    },
    // Tornado 5 to 6.5: what matched is told by the handler's class alone.
    Framework {
        name: "tornado",
        module: "tornado.web",
        routes: true,
        names: &[],
        context_variable: None,
        handled: &["tornado.web.HTTPError", "tornado.web.Finish"],
        unless: &[],
        rows: &[last(
            "tornado.web",
            "RequestHandler._execute",
            &[
                answering(Role::Handler, Local("method"), &[Go::MethodFunction]),
                answering(Role::Exception, Local("e"), &[]),
                answering(Role::Instance, Local("self"), &[]),
                answering(
                    Role::Application,
                    Local("self"),
                    &[Attribute("application")],
                ),
            ],
        )],
    },
    // Bottle 0.12 and 0.13.
    Framework {
        name: "bottle",
        module: "bottle",
        routes: true,
        names: &[],
        context_variable: None,
        handled: &["bottle.HTTPResponse", "bottle.RouteReset"],
        unless: &[],
        rows: &[
            Row {
                place: Place::WsgiServers,
                last: true,
                values: &[
                    answering(
                        Role::WholeRoute,
                        Start::Environ,
                        &[Key("bottle.route"), Attribute("rule")],
                    ),
                    answering(
                        Role::Handler,
                        Start::Environ,
                        &[Key("bottle.route"), Attribute("callback")],
                    ),
                ],
            },
            row(
                "bottle",
                "Bottle._handle",
                &[raised(Role::Exception, Start::Raised, &[])],
            ),
        ],
    },
    // Falcon 3 and 4, where its modules are not compiled. Under WSGI nothing
    // of the request is left when the server writes but its path.
    Framework {
        name: "falcon",
        module: "falcon.app",
        routes: true,
        names: &["falcon.request", "falcon.asgi.app"],
        context_variable: None,
        handled: &[
            "falcon.http_error.HTTPError",
            "falcon.http_status.HTTPStatus",
        ],
        unless: &[],
        rows: &[
            row(
                "falcon.asgi.app",
                "App.__call__",
                &[
                    answering(
                        Role::WholeRoute,
                        Local("req"),
                        &[Go::Slot("falcon.request", "Request", "uri_template")],
                    ),
                    answering(Role::Handler, Local("responder"), &[Go::MethodFunction]),
                    raised(Role::Exception, Start::Raised, &[]),
                    raised(Role::Catchers(Catchers::Falcon), Local("self"), &[]),
                ],
            ),
            Row {
                place: Place::WsgiServers,
                last: true,
                values: &[
                    answering(Role::Path, Start::Environ, &[Key("PATH_INFO")]),
                    answering(Role::Method, Start::Environ, &[Key("REQUEST_METHOD")]),
                    answering(Role::Wsgi(Style::Falcon), Start::Application, &[]),
                ],
            },
            row(
                "falcon.app",
                "App.__call__",
                &[
                    raised(
                        Role::WholeRoute,
                        Local("req"),
                        &[Go::Slot("falcon.request", "Request", "uri_template")],
                    ),
                    raised(Role::Exception, Start::Raised, &[]),
                    raised(Role::Catchers(Catchers::Falcon), Local("self"), &[]),
                ],
            ),
        ],
    },
    // Pyramid 1.10 to 2.1: likewise.
    Framework {
        name: "pyramid",
        module: "pyramid.router",
        routes: true,
        names: &[
            "webob.request",
            "gunicorn.http.wsgi",
            "wsgiref.simple_server",
            "waitress.task",
            "werkzeug.serving",
        ],
        context_variable: None,
        handled: &[],
        unless: &[],
        rows: &[Row {
            place: Place::WsgiServers,
            last: true,
            values: &[
                answering(Role::Path, Start::Environ, &[Key("PATH_INFO")]),
                answering(Role::Method, Start::Environ, &[Key("REQUEST_METHOD")]),
                answering(Role::Wsgi(Style::Pyramid), Start::Application, &[]),
                // An exception ends the server's frame before it answers.
                raised(Role::Path, Start::Environ, &[Key("PATH_INFO")]),
                raised(Role::Method, Start::Environ, &[Key("REQUEST_METHOD")]),
                raised(Role::Wsgi(Style::Pyramid), Start::Application, &[]),
            ],
        }],
    },
    // Sanic 22 to 25. It compiles these methods again when it starts.
    Framework {
        name: "sanic",
        module: "sanic.app",
        routes: true,
        names: &["sanic_routing.route"],
        context_variable: None,
        handled: &["sanic.exceptions.SanicException"],
        unless: &[],
        rows: &[
            last(
                "sanic.app",
                "Sanic.handle_request",
                &[
                    answering(
                        Role::SlashlessRoute,
                        Local("route"),
                        &[Go::Slot("sanic_routing.route", "Route", "path")],
                    ),
                    answering(
                        Role::Handler,
                        Local("route"),
                        &[Go::Slot("sanic_routing.route", "Route", "handler")],
                    ),
                    answering(
                        Role::Method,
                        Local("request"),
                        &[Go::Slot("sanic.request.types", "Request", "method")],
                    ),
                ],
            ),
            row(
                "sanic.app",
                "Sanic.handle_exception",
                &[
                    answering(Role::Exception, Local("exception"), &[]),
                    answering(
                        Role::Catchers(Catchers::Sanic),
                        Local("self"),
                        &[Go::Slot("sanic.app", "Sanic", "error_handler")],
                    ),
                ],
            ),
        ],
    },
    // Quart 0.18 to 0.20.
    Framework {
        name: "quart",
        module: "quart.app",
        routes: true,
        names: &[
            "quart.asgi",
            "quart.wrappers.base",
            "werkzeug.routing.rules",
        ],
        context_variable: None,
        handled: &[],
        unless: &[],
        rows: &[
            row(
                "quart.asgi",
                "ASGIHTTPConnection.handle_request",
                &[
                    answering(
                        Role::WholeRoute,
                        Local("request"),
                        &[Attribute("url_rule"), Attribute("rule")],
                    ),
                    answering(
                        Role::ViewName,
                        Local("request"),
                        &[Attribute("url_rule"), Attribute("endpoint")],
                    ),
                    answering(Role::Application, Local("self"), &[Attribute("app")]),
                    answering(Role::Method, Local("request"), &[Attribute("method")]),
                ],
            ),
            row(
                "quart.app",
                "Quart.handle_request",
                &[raised(Role::Exception, Start::Raised, &[])],
            ),
        ],
    },
    // Litestar 2.
    Framework {
        name: "litestar",
        module: "litestar.app",
        routes: true,
        names: &[
            "litestar.handlers.base",
            "litestar._asgi.asgi_router",
            "litestar.routes.http",
        ],
        context_variable: None,
        handled: &["litestar.exceptions.http_exceptions.HTTPException"],
        unless: &[],
        rows: &[
            last(
                "litestar.app",
                "Litestar.__call__",
                &[
                    answering(Role::WholeRoute, Local("scope"), &[Key("path_template")]),
                    answering(
                        Role::Handler,
                        Local("scope"),
                        &[
                            Key("route_handler"),
                            Go::Slot("litestar.handlers.base", "BaseRouteHandler", "_fn"),
                        ],
                    ),
                ],
            ),
            row(
                "litestar.middleware._internal.exceptions.middleware",
                "ExceptionHandlerMiddleware.handle_request_exception",
                &[
                    answering(Role::Exception, Local("exc"), &[]),
                    // A function, and no method of the middleware, where the
                    // application handles it.
                    answering(
                        Role::Default,
                        Local("exception_handler"),
                        &[Go::MethodFunction],
                    ),
                ],
            ),
        ],
    },
    // Servers: what reaches them nobody handled.
    Framework {
        name: "uvicorn",
        module: "uvicorn.config",
        routes: false,
        names: &[],
        context_variable: None,
        handled: &[],
        // These answer every exception themselves.
        unless: &[
            "starlette.applications",
            "litestar.app",
            "quart.app",
            "falcon.asgi.app",
            "django.core.handlers.asgi",
        ],
        rows: &[
            last(
                "uvicorn.protocols.http.httptools_impl",
                "RequestResponseCycle.run_asgi",
                &[answering(Role::Exception, Local("exc"), &[])],
            ),
            last(
                "uvicorn.protocols.http.h11_impl",
                "RequestResponseCycle.run_asgi",
                &[answering(Role::Exception, Local("exc"), &[])],
            ),
        ],
    },
    Framework {
        name: "gunicorn",
        module: "gunicorn.workers.base",
        routes: false,
        names: &[],
        context_variable: None,
        // What is wrong with the request.
        handled: &["gunicorn.http.errors.ParseException", "ssl.SSLError"],
        unless: &[],
        rows: &[last(
            "gunicorn.workers.base",
            "Worker.handle_error",
            &[answering(Role::Exception, Local("exc"), &[])],
        )],
    },
    Framework {
        name: "werkzeug",
        module: "werkzeug.serving",
        routes: false,
        names: &[],
        context_variable: None,
        handled: &[],
        unless: &[],
        rows: &[last(
            "werkzeug.serving",
            "WSGIRequestHandler.run_wsgi",
            &[answering(Role::Exception, Local("e"), &[])],
        )],
    },
    Framework {
        name: "wsgiref",
        module: "wsgiref.simple_server",
        routes: false,
        names: &[],
        context_variable: None,
        handled: &[],
        unless: &[],
        rows: &[last(
            "wsgiref.handlers",
            "BaseHandler.run",
            &[raised(Role::Exception, Start::Raised, &[])],
        )],
    },
    Framework {
        name: "waitress",
        module: "waitress.channel",
        routes: false,
        names: &[],
        context_variable: None,
        handled: &["waitress.channel.ClientDisconnected"],
        unless: &[],
        rows: &[last(
            "waitress.channel",
            "HTTPChannel.service",
            &[raised(Role::Exception, Start::Raised, &[])],
        )],
    },
];

const AIOHTTP_ROUTE: Go = Go::Slot("aiohttp.web_urldispatcher", "UrlMappingMatchInfo", "_route");

const DJANGO_REQUEST: &[Want] = &[
    answering(
        Role::WholeRoute,
        Local("request"),
        &[Attribute("resolver_match"), Attribute("route")],
    ),
    answering(
        Role::Handler,
        Local("request"),
        &[Attribute("resolver_match"), Attribute("func")],
    ),
    answering(Role::Method, Local("request"), &[Attribute("method")]),
];
