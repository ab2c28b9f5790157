//! A run's events in a file, so that it can be replayed without a kernel:
//! what the ring gave, and in its place among that what discovery told the
//! pipeline.
//!
//! The file begins with [`HEADER`]. Then entries follow: a tag of one byte,
//! the content's length as a 32-bit little-endian number, the content. Tag 1
//! is a record of the ring without its padding, in the layout of
//! `abi::record`; tag 2 a process, tag 3 a connection older than the attach,
//! tag 4 what the interpreter told of an exchange, all three as JSON. Stacks
//! are not recorded: they say nothing without the process's memory. Entries with other tags are skipped. A file that breaks off
//! holds what came before. `run` writes recordings; the replay test reads
//! them.

mod insight;

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use abi::map::Descriptor;
use abi::record::QUERY_NAME;
use serde_json::{Map, Value as Json, json};
use zerocopy::IntoBytes;

use crate::attribute::Value;
use crate::insight::Insight;
use crate::instrumentations::{Disabled, Libraries};
use crate::protocol::reader::Reader;
use crate::protocol::{Endpoint, Role};
use crate::resource::Resource;
use crate::source::{Event, decode};
use crate::stream::Opening;

/// First bytes of a recording: its format and the format's version.
pub const HEADER: &[u8] = b"otel-ebpf events 2\n";

/// Longest recording, bytes: the writer stops before it.
pub const MAX_BYTES: u64 = 256 << 20;

/// Longest entry that is believed, bytes. A record has at most 16 KiB of
/// payload.
const MAX_ENTRY: usize = 64 * 1024;

/// Tags of entries.
mod tag {
    pub(super) const RECORD: u8 = 1;
    pub(super) const PROCESS: u8 = 2;
    pub(super) const OPENING: u8 = 3;
    pub(super) const INSIGHT: u8 = 4;
    pub(super) const DISABLED: u8 = 5;
}

/// Why a recording cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordingError {
    /// It does not begin with [`HEADER`].
    #[error("not a recording of this version")]
    Header,
}

/// What a recording holds, in order.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A record of the ring.
    Record(Vec<u8>),
    /// A process that is traced from here on.
    Process(u32, Arc<Resource>),
    /// Spans that a process does not want from here on.
    Disabled(u32, Option<Disabled>),
    /// A connection older than the attach.
    Opening(Opening),
    /// What the interpreter told of an exchange.
    Insight(Box<Insight>),
}

/// Reads a recording. Entries that make no sense are left out, as is the
/// last one if it is cut off.
pub fn read(bytes: &[u8]) -> Result<Vec<Entry>, RecordingError> {
    let mut reader = Reader::new(bytes);
    if !reader.take_literal(HEADER) {
        return Err(RecordingError::Header);
    }
    let mut rest = reader.rest();
    let mut entries = Vec::new();
    while let Some(([tag, len @ ..], after)) = rest.split_first_chunk::<5>() {
        let len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
        if len > MAX_ENTRY {
            break;
        }
        let Some((content, after)) = after.split_at_checked(len) else {
            break;
        };
        rest = after;
        entries.extend(entry(*tag, content));
    }
    Ok(entries)
}

fn entry(tag: u8, content: &[u8]) -> Option<Entry> {
    match tag {
        tag::RECORD => {
            decode(content)?;
            Some(Entry::Record(content.to_vec()))
        }
        tag::PROCESS => {
            let json: Json = serde_json::from_slice(content).ok()?;
            let pid = number(&json, "pid")?;
            let attributes = json.get("attributes")?.as_array()?;
            let attributes = attributes.iter().map(attribute).collect::<Option<_>>()?;
            Some(Entry::Process(pid, Arc::new(Resource { attributes })))
        }
        tag::DISABLED => {
            let json: Json = serde_json::from_slice(content).ok()?;
            let names: Vec<String> = serde_json::from_value(json.get("names")?.clone()).ok()?;
            let imported = libraries(json.get("imported")?)?;
            let disabled = Disabled::new(&names, imported);
            Some(Entry::Disabled(number(&json, "pid")?, disabled))
        }
        tag::OPENING => {
            let json = serde_json::from_slice(content).ok()?;
            Some(Entry::Opening(opening(&json)?))
        }
        tag::INSIGHT => {
            let json = serde_json::from_slice(content).ok()?;
            Some(Entry::Insight(Box::new(insight::read(&json)?)))
        }
        _ => None,
    }
}

/// Writes a recording.
pub struct Recorder {
    output: Box<dyn Write + Send>,
    left: u64,
    failure: Option<io::Error>,
    /// Entries left out because the recording was full or had failed.
    pub left_out: u64,
}

impl Recorder {
    /// Makes the file, or empties it.
    pub fn create(path: &Path) -> io::Result<Self> {
        Self::new(Box::new(BufWriter::new(File::create(path)?)), MAX_BYTES)
    }

    fn new(mut output: Box<dyn Write + Send>, limit: u64) -> io::Result<Self> {
        output.write_all(HEADER)?;
        Ok(Self {
            output,
            left: limit.saturating_sub(HEADER.len() as u64),
            failure: None,
            left_out: 0,
        })
    }

    /// Writes an event of the ring.
    pub fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Data(data, bytes) | Event::Held(data, bytes) => {
                self.entry(tag::RECORD, &[data.as_bytes(), bytes])
            }
            Event::Join(join) => self.entry(tag::RECORD, &[join.as_bytes()]),
            Event::Open(open) => self.entry(tag::RECORD, &[open.as_bytes()]),
            Event::Close(close) => self.entry(tag::RECORD, &[close.as_bytes()]),
            Event::Query(query) => self.entry(tag::RECORD, &[query.as_bytes()]),
            Event::QueryEnd(end, name, text) => {
                let fill = [0; QUERY_NAME];
                let room = fill.get(name.len()..).unwrap_or_default();
                self.entry(tag::RECORD, &[end.as_bytes(), name, room, text, &[0]]);
            }
            Event::Process(process) => self.entry(tag::RECORD, &[process.as_bytes()]),
            // What it told is recorded as an insight.
            Event::Stack(_) => {}
        }
    }

    /// Writes that a process is traced from here on.
    pub fn process(&mut self, pid: u32, resource: &Resource) {
        let attributes: Vec<Json> = resource
            .attributes
            .iter()
            .map(|(key, value)| json!([key, value_json(value)]))
            .collect();
        let json = json!({ "pid": pid, "attributes": attributes });
        self.entry(tag::PROCESS, &[json.to_string().as_bytes()]);
    }

    /// Writes what a process has turned off.
    pub fn disabled(&mut self, pid: u32, disabled: Option<&Disabled>) {
        let imported = disabled.map(Disabled::imported).unwrap_or_default();
        let json = json!({
            "pid": pid,
            "names": disabled.map(Disabled::names).unwrap_or_default(),
            "imported": imported.modules().collect::<Vec<_>>(),
        });
        self.entry(tag::DISABLED, &[json.to_string().as_bytes()]);
    }

    /// Writes that a connection is older than the attach.
    pub fn opening(&mut self, opening: &Opening) {
        let json = opening_json(opening).to_string();
        self.entry(tag::OPENING, &[json.as_bytes()]);
    }

    /// Writes what the interpreter told of an exchange.
    pub fn insight(&mut self, insight: &Insight) {
        let json = insight::write(insight).to_string();
        self.entry(tag::INSIGHT, &[json.as_bytes()]);
    }

    /// Writes what is buffered; the first failure since the start, if any.
    pub fn finish(&mut self) -> io::Result<()> {
        match self.failure.take() {
            Some(failure) => Err(failure),
            None => self.output.flush(),
        }
    }

    fn entry(&mut self, tag: u8, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let room = 5 + len as u64 <= self.left;
        let (true, None, Ok(len32)) = (room, &self.failure, u32::try_from(len)) else {
            // A later, shorter entry must not hide the hole.
            self.left = 0;
            self.left_out += 1;
            return;
        };
        self.left -= 5 + len as u64;
        if let Err(error) = self.write(tag, len32, parts) {
            self.failure = Some(error);
        }
    }

    fn write(&mut self, tag: u8, len: u32, parts: &[&[u8]]) -> io::Result<()> {
        self.output.write_all(&[tag])?;
        self.output.write_all(&len.to_le_bytes())?;
        for part in parts {
            self.output.write_all(part)?;
        }
        Ok(())
    }
}

// === JSON ===

fn value_json(value: &Value) -> Json {
    match value {
        Value::Str(text) => json!(text),
        Value::Int(number) => json!(number),
        Value::Double(number) => json!(number),
        Value::Bool(flag) => json!(flag),
        Value::StrArray(texts) => json!(texts),
    }
}

fn attribute(json: &Json) -> Option<(Cow<'static, str>, Value)> {
    let [key, value] = json.as_array()?.as_slice() else {
        return None;
    };
    let value = match value {
        Json::String(text) => Value::from(text.clone()),
        Json::Bool(flag) => Value::Bool(*flag),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Value::Int(number),
            None => Value::Double(number.as_f64()?),
        },
        Json::Array(texts) => Value::StrArray(
            texts
                .iter()
                .map(|text| text.as_str().map(str::to_owned))
                .collect::<Option<_>>()?,
        ),
        Json::Null | Json::Object(_) => return None,
    };
    Some((key.as_str()?.to_owned().into(), value))
}

/// Libraries by their modules.
fn libraries(json: &Json) -> Option<Libraries> {
    let modules = json.as_array()?;
    Some(Libraries::imported(|module| {
        modules.iter().any(|known| known.as_str() == Some(module))
    }))
}

fn opening_json(opening: &Opening) -> Json {
    let Opening {
        conn,
        descriptor,
        role,
        local,
        peer,
        old,
    } = opening;
    let role = role.map(|role| match role {
        Role::Client => "client",
        Role::Server => "server",
    });
    json!({
        "conn": conn,
        "pid": descriptor.pid,
        "fd": descriptor.fd,
        "role": role,
        "local": local.as_ref().map(endpoint_json),
        "peer": peer.as_ref().map(endpoint_json),
        "old": old,
    })
}

fn opening(json: &Json) -> Option<Opening> {
    let role = match json.get("role")?.as_str() {
        Some("client") => Some(Role::Client),
        Some("server") => Some(Role::Server),
        _ => None,
    };
    Some(Opening {
        conn: number(json, "conn")?,
        descriptor: Descriptor {
            pid: number(json, "pid")?,
            fd: number(json, "fd")?,
        },
        role,
        local: endpoint(json, "local"),
        peer: endpoint(json, "peer"),
        old: json.get("old")?.as_bool()?,
    })
}

fn endpoint_json(endpoint: &Endpoint) -> Json {
    let mut object = Map::new();
    match endpoint {
        Endpoint::Ip(address) => object.insert("ip".to_owned(), json!(address.to_string())),
        Endpoint::Unix(path) => object.insert("unix".to_owned(), json!(path)),
    };
    Json::Object(object)
}

fn endpoint(json: &Json, key: &str) -> Option<Endpoint> {
    let object = json.get(key)?;
    if let Some(address) = object.get("ip") {
        let address: SocketAddr = address.as_str()?.parse().ok()?;
        return Some(Endpoint::Ip(address));
    }
    let path = object.get("unix")?.as_str()?;
    Some(Endpoint::Unix(path.to_owned()))
}

fn number<T: TryFrom<i128>>(json: &Json, key: &str) -> Option<T> {
    let number = json.get(key)?;
    let number = number
        .as_u64()
        .map(i128::from)
        .or_else(|| number.as_i64().map(i128::from))?;
    T::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use abi::record::{Close, Data, Open, kind};
    use zerocopy::FromZeros;

    use super::*;
    use crate::attribute::Attributes;

    /// What was written, for a test to look at.
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn sample_opening(role: Option<Role>, local: Option<Endpoint>) -> Opening {
        Opening {
            conn: (1 << 63) + 7,
            descriptor: Descriptor { pid: 42, fd: 9 },
            role,
            local,
            peer: Some(Endpoint::Unix("@name".to_owned())),
            old: true,
        }
    }

    /// A recording of one entry of each kind.
    fn sample(limit: u64) -> (Vec<u8>, u64) {
        let shared = Shared::default();
        let mut recorder = Recorder::new(Box::new(shared.clone()), limit).unwrap();
        recorder.process(
            42,
            &Resource {
                attributes: vec![
                    ("service.name".into(), "shop".into()),
                    ("process.pid".into(), 42_i64.into()),
                    ("double".into(), Value::Double(0.5)),
                    ("flag".into(), true.into()),
                    ("list".into(), Value::StrArray(vec!["a".to_owned()])),
                ],
            },
        );
        recorder.opening(&sample_opening(
            Some(Role::Server),
            Some(Endpoint::Ip("[::1]:80".parse().unwrap())),
        ));
        let mut data = Data::new_zeroed();
        data.kind = kind::DATA;
        data.len = 9;
        data.captured = 3;
        recorder.event(&Event::Data(data, b"GET"));
        let mut open = Open::new_zeroed();
        open.kind = kind::OPEN;
        recorder.event(&Event::Open(open));
        let mut close = Close::new_zeroed();
        close.kind = kind::CLOSE;
        recorder.event(&Event::Close(close));
        recorder.finish().unwrap();
        let bytes = shared.0.lock().unwrap().clone();
        (bytes, recorder.left_out)
    }

    #[test]
    fn reads_what_it_wrote() {
        let (bytes, left_out) = sample(MAX_BYTES);
        assert_eq!(left_out, 0);
        let entries = read(&bytes).unwrap();
        assert_eq!(entries.len(), 5);
        let Entry::Process(42, resource) = &entries[0] else {
            panic!("{:?}", entries[0]);
        };
        let expected: Attributes = vec![
            ("service.name".into(), "shop".into()),
            ("process.pid".into(), 42_i64.into()),
            ("double".into(), Value::Double(0.5)),
            ("flag".into(), true.into()),
            ("list".into(), Value::StrArray(vec!["a".to_owned()])),
        ];
        assert_eq!(resource.attributes, expected);
        let Entry::Record(record) = &entries[2] else {
            panic!("{:?}", entries[2]);
        };
        assert!(matches!(decode(record), Some(Event::Data(data, b"GET")) if data.len == 9));
    }

    #[test]
    fn keeps_every_kind_of_opening() {
        for role in [None, Some(Role::Client), Some(Role::Server)] {
            for local in [
                None,
                Some(Endpoint::Unix(String::new())),
                Some(Endpoint::Ip("127.0.0.1:8000".parse().unwrap())),
            ] {
                let opened = sample_opening(role, local);
                let again = opening(&opening_json(&opened)).unwrap();
                assert_eq!(format!("{again:?}"), format!("{opened:?}"));
            }
        }
    }

    #[test]
    fn a_recording_that_breaks_off_holds_what_came_before() {
        let (bytes, _) = sample(MAX_BYTES);
        let mut before = 0;
        for end in HEADER.len()..bytes.len() {
            let found = read(&bytes[..end]).unwrap().len();
            assert!(found == before || found == before + 1, "{end}");
            before = found;
        }
        assert_eq!(before, 4);
    }

    #[test]
    fn refuses_other_files() {
        assert!(matches!(read(b""), Err(RecordingError::Header)));
        assert!(matches!(
            read(b"otel-ebpf events 1\n"),
            Err(RecordingError::Header)
        ));
    }

    #[test]
    fn leaves_out_what_makes_no_sense() {
        let mut bytes = HEADER.to_vec();
        for (tag, content) in [
            (9, &b"unknown"[..]),
            (tag::RECORD, b"\xffnonsense"),
            (tag::PROCESS, b"{\"pid\": -1, \"attributes\": []}"),
            (tag::PROCESS, b"{\"pid\": 1, \"attributes\": [[1, 2]]}"),
            (tag::OPENING, b"[]"),
            (tag::PROCESS, b"{\"pid\": 1, \"attributes\": []}"),
        ] {
            bytes.push(tag);
            bytes.extend_from_slice(&u32::try_from(content.len()).unwrap().to_le_bytes());
            bytes.extend_from_slice(content);
        }
        assert_eq!(read(&bytes).unwrap().len(), 1);
        bytes.extend_from_slice(&[tag::RECORD, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(read(&bytes).unwrap().len(), 1);
    }

    #[test]
    fn stops_at_its_limit_without_a_hole() {
        let (whole, _) = sample(MAX_BYTES);
        for limit in 0..whole.len() as u64 {
            let (bytes, left_out) = sample(limit);
            assert!(left_out > 0);
            assert!(bytes.len() as u64 <= limit.max(HEADER.len() as u64));
            assert_eq!(bytes, whole[..bytes.len()], "{limit}");
        }
    }
}
