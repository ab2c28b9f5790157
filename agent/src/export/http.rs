//! OTLP over HTTP/1.1 with protobuf.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{
    CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT as AGENT,
};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use prost::Message;
use proto::otlp::collector::trace::v1::ExportTraceServiceResponse;
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};

use super::BuildError;
use super::otlp::{
    Attempt, MAX_RESPONSE, Transport, USER_AGENT, chain, excerpt, identity, read_pem,
};
use crate::config::OtlpConfig;

/// Statuses after which the same request may succeed (specification,
/// OTLP/HTTP: Failures).
const RETRYABLE: &[StatusCode] = &[
    StatusCode::TOO_MANY_REQUESTS,
    StatusCode::BAD_GATEWAY,
    StatusCode::SERVICE_UNAVAILABLE,
    StatusCode::GATEWAY_TIMEOUT,
];

/// How much of a refusal is read for its message.
const MAX_REFUSAL: usize = 16 << 10;

/// A client of a trace receiver; it connects when first used and again when
/// the connection is lost.
pub(super) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    endpoint: Uri,
    headers: HeaderMap,
    gzip: bool,
}

impl Http {
    /// Makes a client.
    pub(super) fn new(config: &OtlpConfig) -> Result<Self, BuildError> {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls(config)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let mut headers = config.headers.clone();
        headers
            .entry(AGENT)
            .or_insert(HeaderValue::from_static(USER_AGENT));
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-protobuf"),
        );
        headers.remove(CONTENT_ENCODING);
        if config.gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        Ok(Self {
            client: Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .build(connector),
            endpoint: config.endpoint.clone(),
            headers,
            gzip: config.gzip,
        })
    }
}

fn tls(config: &OtlpConfig) -> Result<ClientConfig, BuildError> {
    let tls_error = |error: &(dyn std::error::Error + 'static)| BuildError::Tls(chain(error));
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| tls_error(&error))?;
    let builder = match &config.certificate {
        // Without TLS the system's certificates may as well be missing.
        _ if config.endpoint.scheme_str() != Some("https") => {
            builder.with_root_certificates(RootCertStore::empty())
        }
        None => builder
            .with_native_roots()
            .map_err(|error| tls_error(&error))?,
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in rustls_pemfile::certs(&mut read_pem(path)?.as_slice()) {
                let certificate = certificate.map_err(|error| tls_error(&error))?;
                roots.add(certificate).map_err(|error| tls_error(&error))?;
            }
            if roots.is_empty() {
                return Err(BuildError::Pem {
                    path: path.clone(),
                    what: "certificate",
                });
            }
            builder.with_root_certificates(roots)
        }
    };
    let Some((certificate, key)) = identity(config)? else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = rustls_pemfile::certs(&mut read_pem(certificate)?.as_slice())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| tls_error(&error))?;
    let key = rustls_pemfile::private_key(&mut read_pem(key)?.as_slice())
        .map_err(|error| tls_error(&error))?
        .ok_or_else(|| BuildError::Pem {
            path: key.to_owned(),
            what: "private key",
        })?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|error| tls_error(&error))
}

impl Transport for Http {
    const NAME: &'static str = "otlp/http";

    fn prepare(&self, message: Vec<u8>) -> Bytes {
        if !self.gzip {
            return Bytes::from(message);
        }
        // The fastest level: batches are small and repetitive, and the time is
        // taken from the host that is observed.
        let mut encoder =
            GzEncoder::new(Vec::with_capacity(message.len() / 4), Compression::fast());
        // Writing to a vector does not fail; if it ever did, what is sent is
        // not valid gzip and is refused.
        let written = encoder.write_all(&message);
        debug_assert!(written.is_ok());
        Bytes::from(encoder.finish().unwrap_or_default())
    }

    async fn attempt(&mut self, message: Bytes) -> Attempt {
        let mut request = Request::new(Full::new(message));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.endpoint.clone();
        *request.headers_mut() = self.headers.clone();
        match self.client.request(request).await {
            Ok(response) => judge(response).await,
            Err(error) => broken(&error),
        }
    }
}

/// Decides what a failed request means: what is no HTTP is refused, all else
/// is taken for a broken connection.
fn broken(error: &(dyn std::error::Error + 'static)) -> Attempt {
    let reason = chain(error);
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error
            .downcast_ref::<hyper::Error>()
            .is_some_and(hyper::Error::is_parse)
        {
            return Attempt::Refused(reason);
        }
        cause = error.source();
    }
    Attempt::Retry {
        after: None,
        reason,
    }
}

/// Decides what a response means.
async fn judge(response: Response<Incoming>) -> Attempt {
    let status = response.status();
    let is_protobuf = response
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/x-protobuf"));
    let is_json = response
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    if status.is_success() {
        return match Limited::new(response.into_body(), MAX_RESPONSE)
            .collect()
            .await
        {
            Ok(body) => accepted(&body.to_bytes(), is_json),
            Err(error) if error.is::<LengthLimitError>() => Attempt::Refused(format!(
                "{status} with a response of over {MAX_RESPONSE} bytes"
            )),
            Err(error) => broken(error.as_ref()),
        };
    }
    let after = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| retry_after(value.to_str().ok()?, SystemTime::now()));
    let mut reason = status.to_string();
    if is_protobuf
        && let Ok(body) = Limited::new(response.into_body(), MAX_REFUSAL)
            .collect()
            .await
        && let Ok(details) = tonic_types::Status::decode(body.to_bytes())
        && !details.message.is_empty()
    {
        reason = format!("{reason}: {}", excerpt(&details.message));
    }
    if RETRYABLE.contains(&status) {
        Attempt::Retry { after, reason }
    } else {
        Attempt::Refused(reason)
    }
}

/// Reads the body of a success. Some receivers answer in JSON whatever they
/// were asked.
fn accepted(body: &[u8], is_json: bool) -> Attempt {
    let response = if is_json && !body.is_empty() {
        serde_json::from_slice(body).map_err(|error| error.to_string())
    } else {
        ExportTraceServiceResponse::decode(body).map_err(|error| error.to_string())
    };
    match response {
        Ok(response) => Attempt::Done(response),
        Err(error) => Attempt::Refused(format!("unreadable response: {}", excerpt(&error))),
    }
}

/// Reads Retry-After: seconds or a date (RFC 9110, 10.2.3).
fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_445_412_470);
        let check = |value, seconds: Option<u64>| {
            assert_eq!(
                retry_after(value, now),
                seconds.map(Duration::from_secs),
                "{value}"
            );
        };
        check("0", Some(0));
        check(" 120 ", Some(120));
        check("Wed, 21 Oct 2015 07:28:00 GMT", Some(10));
        check("Wed, 21 Oct 2015 07:27:00 GMT", Some(0));
        check("-1", None);
        check("soon", None);
        check("99999999999999999999999", None);
    }

    #[test]
    fn successes_are_read_in_protobuf_and_json() {
        let rejected = |attempt| match attempt {
            Attempt::Done(response) => response.partial_success.map(|part| part.rejected_spans),
            other => panic!("{other:?}"),
        };
        assert_eq!(rejected(accepted(b"", false)), None);
        assert_eq!(rejected(accepted(b"", true)), None);
        assert_eq!(rejected(accepted(b"{}", true)), None);
        assert_eq!(
            rejected(accepted(&[0x0a, 0x02, 0x08, 0x05], false)),
            Some(5)
        );
    }

    #[test]
    fn unreadable_successes_are_refused() {
        for (body, is_json) in [
            (&b"\xff\xff\xff"[..], false),
            (b"<html>", false),
            (b"<html>", true),
        ] {
            assert!(
                matches!(accepted(body, is_json), Attempt::Refused(_)),
                "{body:?}"
            );
        }
    }
}
