//! An OTLP receiver on loopback: gRPC and HTTP, with or without TLS.
//!
//! It keeps what it is sent, and can be told to answer the next requests in
//! other ways than by accepting them. It runs on a thread of its own, so that
//! tests may wait for it with or without a runtime.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use prost::Message;
use proto::otlp::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use proto::otlp::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use proto::otlp::common::v1::any_value::Value;
use proto::otlp::trace::v1::Span;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;
use tonic::codec::CompressionEncoding;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

/// A running receiver; it stops when dropped.
pub struct Receiver {
    /// Where gRPC is served.
    pub grpc: SocketAddr,
    /// Where HTTP is served, on any path.
    pub http: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// How a receiver is started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Port of gRPC; 0 for any.
    pub grpc_port: u16,
    /// Port of HTTP; 0 for any.
    pub http_port: u16,
    /// Serve over TLS.
    pub tls: Option<Tls>,
}

/// PEM texts for TLS.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The server's certificate chain.
    pub certificate: String,
    /// Its private key.
    pub key: String,
    /// Ask clients for a certificate signed by this authority.
    pub client_authority: Option<String>,
}

/// How a request is answered.
#[derive(Clone, Debug)]
pub enum Answer {
    /// All spans are accepted.
    Accept,
    /// All but so many spans are accepted.
    Partial(i64, &'static str),
    /// A gRPC status.
    Grpc(tonic::Status),
    /// An HTTP response: status, headers, body.
    Http(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// There is no answer.
    Stall,
}

/// A request that came.
#[derive(Clone, Debug)]
pub struct Received {
    /// Path of the HTTP request; empty for gRPC.
    pub path: String,
    /// Headers or metadata.
    pub headers: HeaderMap,
    /// The message.
    pub request: ExportTraceServiceRequest,
    /// Whether its spans were accepted, at least in part.
    pub accepted: bool,
}

impl Received {
    /// Its spans, each with the name of its service.
    pub fn spans(&self) -> Vec<(String, Span)> {
        let mut spans = Vec::new();
        for group in &self.request.resource_spans {
            let service = group
                .resource
                .iter()
                .flat_map(|resource| &resource.attributes)
                .find(|attribute| attribute.key == "service.name")
                .and_then(|attribute| attribute.value.as_ref()?.value.as_ref());
            let service = match service {
                Some(Value::StringValue(name)) => name.clone(),
                _ => String::new(),
            };
            for scope in &group.scope_spans {
                spans.extend(
                    scope
                        .spans
                        .iter()
                        .map(|span| (service.clone(), span.clone())),
                );
            }
        }
        spans
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    answers: VecDeque<Answer>,
    received: Vec<Received>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|error| error.into_inner())
    }

    fn receive(
        &self,
        path: &str,
        headers: HeaderMap,
        request: ExportTraceServiceRequest,
    ) -> Answer {
        let mut state = self.lock();
        let answer = state.answers.pop_front().unwrap_or(Answer::Accept);
        state.received.push(Received {
            path: path.to_owned(),
            headers,
            request,
            accepted: matches!(answer, Answer::Accept | Answer::Partial(..)),
        });
        self.changed.notify_all();
        answer
    }
}

impl Receiver {
    /// Starts a receiver that accepts everything, on free ports.
    pub fn start() -> anyhow::Result<Self> {
        Self::with(&Options::default())
    }

    /// Starts a receiver.
    pub fn with(options: &Options) -> anyhow::Result<Self> {
        let bind = |port| {
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port))
                .with_context(|| format!("bind port {port}"))?;
            listener.set_nonblocking(true)?;
            anyhow::Ok((listener.local_addr()?, listener))
        };
        let (grpc, grpc_listener) = bind(options.grpc_port)?;
        let (http, http_listener) = bind(options.http_port)?;
        let shared = Arc::<Shared>::default();
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let mut server = Server::builder();
        let mut acceptor = None;
        if let Some(tls) = &options.tls {
            let mut config =
                ServerTlsConfig::new().identity(Identity::from_pem(&tls.certificate, &tls.key));
            if let Some(authority) = &tls.client_authority {
                config = config.client_ca_root(Certificate::from_pem(authority));
            }
            server = server.tls_config(config)?;
            acceptor = Some(TlsAcceptor::from(Arc::new(server_config(tls)?)));
        }
        let service = TraceServiceServer::new(GrpcService(Arc::clone(&shared)))
            .accept_compressed(CompressionEncoding::Gzip)
            .max_decoding_message_size(64 << 20);
        let for_http = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("receiver".to_owned())
            .spawn(move || {
                runtime.block_on(async move {
                    let (Ok(grpc), Ok(http)) = (
                        TcpListener::from_std(grpc_listener),
                        TcpListener::from_std(http_listener),
                    ) else {
                        return;
                    };
                    let grpc = server
                        .add_service(service)
                        .serve_with_incoming(TcpIncoming::from(grpc));
                    tokio::select! {
                        _ = grpc => {}
                        () = serve_http(http, acceptor, for_http) => {}
                        _ = stopped => {}
                    }
                });
            })?;
        Ok(Self {
            grpc,
            http,
            shared,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Sets how the next requests are answered; those after are accepted.
    pub fn answer(&self, answers: impl IntoIterator<Item = Answer>) {
        self.shared.lock().answers.extend(answers);
    }

    /// Every request so far.
    pub fn received(&self) -> Vec<Received> {
        self.shared.lock().received.clone()
    }

    /// Every accepted span so far, with the name of its service.
    pub fn spans(&self) -> Vec<(String, Span)> {
        let received = self.received();
        received
            .iter()
            .filter(|received| received.accepted)
            .flat_map(Received::spans)
            .collect()
    }

    /// Waits until `is_enough` holds of the requests so far. It blocks the
    /// thread.
    pub fn wait_until(
        &self,
        time: Duration,
        is_enough: impl Fn(&[Received]) -> bool,
    ) -> anyhow::Result<Vec<Received>> {
        let deadline = Instant::now() + time;
        let mut state = self.shared.lock();
        while !is_enough(&state.received) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!(
                    "{} requests within {time:?} are not enough",
                    state.received.len()
                );
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(|error| error.into_inner()).0;
        }
        Ok(state.received.clone())
    }

    /// Waits for so many accepted spans. It blocks the thread.
    pub fn wait_for_spans(
        &self,
        count: usize,
        time: Duration,
    ) -> anyhow::Result<Vec<(String, Span)>> {
        self.wait_until(time, |received| {
            let accepted = received.iter().filter(|received| received.accepted);
            accepted
                .map(|received| received.spans().len())
                .sum::<usize>()
                >= count
        })?;
        Ok(self.spans())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic on it has been printed already.
            let _ = thread.join();
        }
    }
}

/// The gRPC half.
struct GrpcService(Arc<Shared>);

#[tonic::async_trait]
impl TraceService for GrpcService {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let (metadata, _, request) = request.into_parts();
        match self.0.receive("", metadata.into_headers(), request) {
            Answer::Accept => Ok(tonic::Response::new(ExportTraceServiceResponse::default())),
            Answer::Partial(rejected, message) => {
                Ok(tonic::Response::new(partial(rejected, message)))
            }
            Answer::Grpc(status) => Err(status),
            Answer::Http(..) => Err(tonic::Status::unimplemented("an answer for HTTP")),
            Answer::Stall => std::future::pending().await,
        }
    }
}

fn partial(rejected: i64, message: &str) -> ExportTraceServiceResponse {
    ExportTraceServiceResponse {
        partial_success: Some(ExportTracePartialSuccess {
            rejected_spans: rejected,
            error_message: message.to_owned(),
        }),
    }
}

/// The HTTP half.
async fn serve_http(listener: TcpListener, acceptor: Option<TlsAcceptor>, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
        tokio::spawn(serve_connection(stream, acceptor, shared));
    }
}

async fn serve_connection(stream: TcpStream, acceptor: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let service = service_fn(move |request| respond(Arc::clone(&shared), request));
    let server = hyper::server::conn::http1::Builder::new();
    // A connection that breaks is the test's own doing.
    let _ = match acceptor {
        None => server.serve_connection(TokioIo::new(stream), service).await,
        Some(acceptor) => match acceptor.accept(stream).await {
            Ok(stream) => server.serve_connection(TokioIo::new(stream), service).await,
            Err(_) => Ok(()),
        },
    };
}

async fn respond(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let message = match body.collect().await {
        Ok(body) => decode(&parts.headers, &body.to_bytes()),
        Err(error) => Err(error.into()),
    };
    let message = match message {
        Ok(message) => message,
        Err(error) => return Ok(response(400, &[], error.to_string().into_bytes())),
    };
    let protobuf = [("content-type", "application/x-protobuf".to_owned())];
    Ok(
        match shared.receive(parts.uri.path(), parts.headers, message) {
            Answer::Accept => response(200, &protobuf, Vec::new()),
            Answer::Partial(rejected, message) => {
                response(200, &protobuf, partial(rejected, message).encode_to_vec())
            }
            Answer::Http(status, headers, body) => response(status, &headers, body),
            Answer::Grpc(_) => response(501, &[], b"an answer for gRPC".to_vec()),
            Answer::Stall => std::future::pending().await,
        },
    )
}

fn decode(headers: &HeaderMap, body: &[u8]) -> anyhow::Result<ExportTraceServiceRequest> {
    if headers
        .get("content-encoding")
        .is_some_and(|encoding| encoding == "gzip")
    {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(body).read_to_end(&mut plain)?;
        return Ok(ExportTraceServiceRequest::decode(plain.as_slice())?);
    }
    Ok(ExportTraceServiceRequest::decode(body)?)
}

fn response(
    status: u16,
    headers: &[(&'static str, String)],
    body: Vec<u8>,
) -> Response<Full<Bytes>> {
    let mut builder = Response::builder().status(status);
    for (name, value) in headers {
        builder = builder.header(*name, value);
    }
    builder.body(Full::from(body)).unwrap_or_else(|_| {
        let mut response = Response::default();
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    })
}

fn server_config(tls: &Tls) -> anyhow::Result<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let certificates =
        rustls_pemfile::certs(&mut tls.certificate.as_bytes()).collect::<Result<_, _>>()?;
    let key = rustls_pemfile::private_key(&mut tls.key.as_bytes())?.context("no key")?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let builder = match &tls.client_authority {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            for certificate in rustls_pemfile::certs(&mut authority.as_bytes()) {
                roots.add(certificate?)?;
            }
            builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?,
            )
        }
    };
    Ok(builder.with_single_cert(certificates, key)?)
}
