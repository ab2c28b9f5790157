//! The table itself: every framework with its rows. Frameworks that build on
//! another come before it.

use super::Go::{Attribute, Key};
use super::Start::Local;
use super::{
    Catchers, Framework, Go, Place, Role, Row, Start, Style, Want, answering, answers, last,
    raised, resetting, row,
};

/// Every framework that is known.
pub(in crate::python) const FRAMEWORKS: &[Framework] = &[
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
                "starlette.routing",
                "Route.handle",
                &[answering(
                    Role::LeafContext,
                    Local("scope"),
                    &[Key("fastapi"), Key("effective_route_context")],
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
            answers(
                "starlette.routing",
                "Route.handle",
                &[
                    answering(Role::Leaf, Local("self"), &[]),
                    answering(Role::Root, Local("scope"), &[Key("router")]),
                    answering(Role::Method, Local("scope"), &[Key("method")]),
                ],
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
                answers: false,
                bound: false,
                foreign: false,
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
                answers: false,
                bound: false,
                foreign: false,
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
                answers: false,
                bound: false,
                foreign: false,
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
            answers: false,
            bound: false,
            foreign: false,
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
        rows: &[
            last(
                "gunicorn.workers.base",
                "Worker.handle_error",
                &[answering(Role::Exception, Local("exc"), &[])],
            ),
            // What the application answers, and not the server for it.
            Row {
                place: Place::WsgiServers,
                last: false,
                answers: true,
                bound: false,
                foreign: false,
                values: &[],
            },
        ],
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
