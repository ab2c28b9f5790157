//! A certificate for every service of the tests, and connections that trust
//! it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, anyhow};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// A connection of the test's own with TLS.
pub type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// What all services of this test process show, and the test trusts.
struct Identity {
    certificate: String,
    key: String,
    client: Arc<ClientConfig>,
}

/// The files that a service is given.
pub struct Files {
    /// Its certificate, which is its own authority.
    pub certificate: PathBuf,
    /// The certificate's key.
    pub key: PathBuf,
}

impl Files {
    /// Writes them into a folder.
    pub fn write(folder: &Path) -> Result<Self> {
        let files = Self {
            certificate: folder.join("certificate.pem"),
            key: folder.join("key.pem"),
        };
        let identity = identity()?;
        fs::write(&files.certificate, &identity.certificate)?;
        fs::write(&files.key, &identity.key)?;
        Ok(files)
    }
}

/// TLS on a connection to one of our services.
pub fn connect(stream: TcpStream) -> Result<TlsStream> {
    let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST).into());
    let session = ClientConnection::new(Arc::clone(&identity()?.client), name)?;
    Ok(StreamOwned::new(session, stream))
}

fn identity() -> Result<&'static Identity> {
    static IDENTITY: OnceLock<Result<Identity, String>> = OnceLock::new();
    let made = IDENTITY.get_or_init(|| make().map_err(|error| format!("{error:#}")));
    made.as_ref()
        .map_err(|error| anyhow!("no certificate: {error}"))
}

fn make() -> Result<Identity> {
    let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names)?;
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("TLS versions")?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Identity {
        certificate: cert.pem(),
        key: signing_key.serialize_pem(),
        client: Arc::new(client),
    })
}
