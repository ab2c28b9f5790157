//! OTLP over gRPC.
//!
//! The message comes already encoded, so that attempts share its bytes; the
//! codec here passes them on, where the generated client would encode anew.

use std::error::Error as _;

use bytes::{BufMut, Bytes};
use http::uri::PathAndQuery;
use prost::Message;
use proto::otlp::collector::trace::v1::ExportTraceServiceResponse;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataMap;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use super::BuildError;
use super::otlp::{
    Attempt, MAX_RESPONSE, Transport, USER_AGENT, chain, excerpt, identity, read_pem,
};
use crate::config::OtlpConfig;

/// The service's method.
const METHOD: PathAndQuery =
    PathAndQuery::from_static("/opentelemetry.proto.collector.trace.v1.TraceService/Export");

/// Codes after which the same request may succeed (specification, OTLP/gRPC:
/// Failures). `RESOURCE_EXHAUSTED` is one only if the receiver says when.
const RETRYABLE: &[Code] = &[
    Code::Cancelled,
    Code::DeadlineExceeded,
    Code::Aborted,
    Code::OutOfRange,
    Code::Unavailable,
    Code::DataLoss,
];

/// A client of a trace receiver; it connects when first used and again when
/// the connection is lost.
pub(super) struct Grpc {
    endpoint: Endpoint,
    gzip: bool,
    client: tonic::client::Grpc<Channel>,
    metadata: MetadataMap,
}

impl Grpc {
    /// Makes a client. Must be called inside a tokio runtime.
    pub(super) fn new(config: &OtlpConfig) -> Result<Self, BuildError> {
        let tls_error = |error: tonic::transport::Error| BuildError::Tls(chain(&error));
        let mut endpoint = Endpoint::from(config.endpoint.clone())
            .user_agent(USER_AGENT)
            .map_err(tls_error)?;
        if config.endpoint.scheme_str() == Some("https") {
            endpoint = endpoint.tls_config(tls(config)?).map_err(tls_error)?;
        }
        // A binary header's value would have to be base64, which the setting
        // has no way to say.
        if let Some(name) = config
            .headers
            .keys()
            .find(|name| name.as_str().ends_with("-bin"))
        {
            return Err(BuildError::Header(name.to_string()));
        }
        Ok(Self {
            client: client(&endpoint, config.gzip),
            endpoint,
            gzip: config.gzip,
            metadata: MetadataMap::from_headers(config.headers.clone()),
        })
    }
}

fn client(endpoint: &Endpoint, gzip: bool) -> tonic::client::Grpc<Channel> {
    let client =
        tonic::client::Grpc::new(endpoint.connect_lazy()).max_decoding_message_size(MAX_RESPONSE);
    if gzip {
        client.send_compressed(CompressionEncoding::Gzip)
    } else {
        client
    }
}

fn tls(config: &OtlpConfig) -> Result<ClientTlsConfig, BuildError> {
    let mut tls = ClientTlsConfig::new();
    tls = match &config.certificate {
        Some(path) => tls.ca_certificate(Certificate::from_pem(read_pem(path)?)),
        None => tls.with_native_roots(),
    };
    if let Some((certificate, key)) = identity(config)? {
        tls = tls.identity(Identity::from_pem(read_pem(certificate)?, read_pem(key)?));
    }
    Ok(tls)
}

impl Transport for Grpc {
    const NAME: &'static str = "otlp/grpc";

    async fn attempt(&mut self, message: Bytes) -> Attempt {
        if let Err(error) = self.client.ready().await {
            return Attempt::Retry {
                after: None,
                reason: chain(&error),
            };
        }
        let mut request = Request::new(message);
        *request.metadata_mut() = self.metadata.clone();
        match self.client.unary(request, METHOD, Encoded).await {
            Ok(response) => Attempt::Done(response.into_inner()),
            Err(status) => judge(&status),
        }
    }

    fn disconnect(&mut self) {
        self.client = client(&self.endpoint, self.gzip);
    }
}

/// Decides what a status other than OK means.
fn judge(status: &Status) -> Attempt {
    let reason = match status.source() {
        Some(source) => format!("{:?}: {}", status.code(), chain(source)),
        None => format!("{:?}: {}", status.code(), excerpt(status.message())),
    };
    let delay = status.get_details_retry_info();
    let is_retryable = RETRYABLE.contains(&status.code())
        || (status.code() == Code::ResourceExhausted && delay.is_some())
        || is_connection_lost(status);
    if is_retryable {
        Attempt::Retry {
            after: delay.and_then(|info| info.retry_delay),
            reason,
        }
    } else {
        Attempt::Refused(reason)
    }
}

/// Whether the status was made here because the connection broke; the client
/// reports that as an unknown error.
fn is_connection_lost(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<std::io::Error>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// Sends bytes as they are and decodes the response.
#[derive(Clone, Copy)]
struct Encoded;

impl Codec for Encoded {
    type Encode = Bytes;
    type Decode = ExportTraceServiceResponse;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(message.len());
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Encoded {
    type Item = ExportTraceServiceResponse;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        ExportTraceServiceResponse::decode(buffer)
            .map(Some)
            .map_err(|error| Status::internal(format!("unreadable response: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tonic_types::ErrorDetails;

    fn retried(status: &Status) -> Option<Option<Duration>> {
        match judge(status) {
            Attempt::Retry { after, .. } => Some(after),
            Attempt::Refused(_) => None,
            Attempt::Done(_) => panic!("an error is no success"),
        }
    }

    #[test]
    fn codes_are_retried_as_the_specification_says() {
        // Numbers of grpc/status.h.
        let retryable = [1, 4, 10, 11, 14, 15];
        for code in 1..=16 {
            let status = Status::new(Code::from_i32(code), "");
            let expected = retryable.contains(&code).then_some(None);
            assert_eq!(retried(&status), expected, "{code}");
        }
    }

    #[test]
    fn exhaustion_is_retried_only_when_the_receiver_says_when() {
        let with = |code, delay| {
            let details = ErrorDetails::with_retry_info(delay);
            retried(&Status::with_error_details(code, "", details))
        };
        let delay = Some(Duration::from_secs(3));
        assert_eq!(with(Code::ResourceExhausted, delay), Some(delay));
        assert_eq!(with(Code::Unavailable, delay), Some(delay));
        assert_eq!(with(Code::InvalidArgument, delay), None);
    }

    #[test]
    fn damaged_details_are_as_good_as_none() {
        let status =
            Status::with_details(Code::ResourceExhausted, "", Bytes::from_static(&[0xff; 9]));
        assert_eq!(retried(&status), None);
    }

    #[test]
    fn a_broken_connection_is_retried() {
        let status = Status::from_error(Box::new(std::io::Error::from(
            std::io::ErrorKind::BrokenPipe,
        )));
        assert_eq!(retried(&status), Some(None));
    }
}
