//! Whose service a process is: the OpenTelemetry settings of its own
//! environment, and a name for it where it has not chosen one.
//!
//! The settings are only read here; attach acts on them and logs what was
//! wrong with them.

mod launcher;
mod name;

use percent_encoding::percent_decode_str;

pub use self::name::derive_service_name;
use super::process::Environment;

/// Longest service name that is made; the specification sets no limit.
const MAX_NAME: usize = 255;
/// Most attributes taken from `OTEL_RESOURCE_ATTRIBUTES`: the specification's
/// default limit for attributes of a record.
const MAX_ATTRIBUTES: usize = 128;

/// The OpenTelemetry settings in a process's own environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetSettings {
    /// `OTEL_SERVICE_NAME`.
    pub service_name: Option<String>,
    /// `OTEL_RESOURCE_ATTRIBUTES`, decoded, keys unique; empty if any part of
    /// it was wrong.
    pub resource_attributes: Vec<(String, String)>,
    /// `OTEL_SDK_DISABLED`: the process wants no telemetry.
    pub disabled: bool,
    /// `OTEL_TRACES_EXPORTER=none`: the process wants no traces.
    pub traces_suppressed: bool,
    /// `OTEL_PYTHON_DISABLED_INSTRUMENTATIONS`, as given.
    pub disabled_instrumentations: Vec<String>,
    /// `OTEL_PYTHON_EXCLUDED_URLS`: regular expressions, not compiled.
    pub excluded_urls: Vec<String>,
    /// Whether `opentelemetry-instrument` has put itself into the process.
    pub instrumented: bool,
    /// What was wrong with the settings, for the log.
    pub warnings: Vec<String>,
}

impl TargetSettings {
    /// Reads the settings from a process's environment.
    pub fn new(environment: &Environment) -> Self {
        let mut warnings = Vec::new();
        let resource_attributes = environment
            .value("OTEL_RESOURCE_ATTRIBUTES")
            .map(parse_resource_attributes)
            .and_then(|parsed| {
                parsed
                    .map_err(|reason| {
                        warnings.push(format!("OTEL_RESOURCE_ATTRIBUTES is ignored: {reason}"))
                    })
                    .ok()
            })
            .unwrap_or_default();
        if !environment.complete {
            warnings.push(
                "the environment was overwritten or is too long, settings in it may not be seen"
                    .to_owned(),
            );
        }
        let disabled = environment.value("OTEL_SDK_DISABLED").is_some_and(|value| {
            let value = value.trim();
            if !value.eq_ignore_ascii_case("true") && !value.eq_ignore_ascii_case("false") {
                warnings.push(format!(
                    "OTEL_SDK_DISABLED is neither true nor false: {}",
                    tidy(value)
                ));
            }
            value.eq_ignore_ascii_case("true")
        });
        Self {
            service_name: environment
                .value("OTEL_SERVICE_NAME")
                .map(|name| name.trim().to_owned())
                .filter(|name| !name.is_empty()),
            resource_attributes,
            disabled,
            traces_suppressed: environment
                .value("OTEL_TRACES_EXPORTER")
                .is_some_and(|value| value.trim().eq_ignore_ascii_case("none")),
            disabled_instrumentations: list(environment, "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"),
            excluded_urls: list(environment, "OTEL_PYTHON_EXCLUDED_URLS"),
            instrumented: environment.value("PYTHONPATH").is_some_and(|path| {
                path.split(':').any(|entry| {
                    entry
                        .trim_end_matches('/')
                        .ends_with("opentelemetry/instrumentation/auto_instrumentation")
                })
            }),
            warnings,
        }
    }
}

/// Removes control characters and what is too long.
fn tidy(text: &str) -> String {
    text.trim()
        .chars()
        .filter(|letter| !letter.is_control())
        .take(MAX_NAME)
        .collect()
}

fn list(environment: &Environment, name: &str) -> Vec<String> {
    environment
        .value(name)
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
        .map(str::to_owned)
        .collect()
}

/// `key=value,key=value`, both percent-encoded. As the specification asks
/// (Resource SDK, Specifying resource information via an environment
/// variable), anything wrong discards all of it.
fn parse_resource_attributes(text: &str) -> Result<Vec<(String, String)>, &'static str> {
    let mut attributes: Vec<(String, String)> = Vec::new();
    for member in text.split(',').filter(|member| !member.trim().is_empty()) {
        let (key, value) = member
            .split_once('=')
            .ok_or("a member has no equals sign")?;
        let (key, value) = (percent_decode(key.trim())?, percent_decode(value.trim())?);
        if key.is_empty() {
            return Err("a key is empty");
        }
        attributes.retain(|(known, _)| *known != key);
        if attributes.len() == MAX_ATTRIBUTES {
            return Err("it has too many members");
        }
        attributes.push((key, value));
    }
    Ok(attributes)
}

fn percent_decode(text: &str) -> Result<String, &'static str> {
    let is_hex =
        |digits: &str| digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    if !text
        .split('%')
        .skip(1)
        .all(|after| after.get(..2).is_some_and(is_hex))
    {
        return Err("a percent sign is not followed by two hexadecimal digits");
    }
    percent_decode_str(text)
        .decode_utf8()
        .map(|decoded| decoded.into_owned())
        .map_err(|_| "it decodes to bytes that are not UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_attributes_are_decoded_or_discarded() {
        let check = |text: &str, expected: &[(&str, &str)]| {
            let expected: Vec<_> = expected
                .iter()
                .map(|(key, value)| ((*key).into(), (*value).into()))
                .collect();
            assert_eq!(parse_resource_attributes(text), Ok(expected), "{text}");
        };
        check("a=1,b=2", &[("a", "1"), ("b", "2")]);
        check(" a = 1 , b=x=y,", &[("a", "1"), ("b", "x=y")]);
        check("team=caf%C3%A9%2C%20x", &[("team", "caf\u{e9}, x")]);
        check("a=1,a=2", &[("a", "2")]);
        check("a=", &[("a", "")]);
        check("", &[]);
        for wrong in [
            "a",
            "a=1,b",
            "=1",
            "a=%",
            "a=%4",
            "a=%zz",
            "a=1,b=%ff",
            "%=1",
        ] {
            assert!(parse_resource_attributes(wrong).is_err(), "{wrong}");
        }
        let many: Vec<String> = (0..=MAX_ATTRIBUTES)
            .map(|idx| format!("k{idx}=v"))
            .collect();
        assert!(parse_resource_attributes(&many.join(",")).is_err());
    }

    #[test]
    fn settings_of_a_process() {
        let environment = |variables: &[(&str, &str)]| Environment {
            variables: variables
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
            complete: true,
        };
        let settings = TargetSettings::new(&environment(&[
            ("OTEL_SERVICE_NAME", " shop "),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.version=1"),
            ("OTEL_SDK_DISABLED", "TRUE"),
            ("OTEL_TRACES_EXPORTER", "None"),
            ("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "requests, kafka,,"),
            ("OTEL_PYTHON_EXCLUDED_URLS", "healthz,/metrics$"),
            (
                "PYTHONPATH",
                "/a:/v/site-packages/opentelemetry/instrumentation/auto_instrumentation",
            ),
        ]));
        assert_eq!(
            settings,
            TargetSettings {
                service_name: Some("shop".into()),
                resource_attributes: vec![("service.version".into(), "1".into())],
                disabled: true,
                traces_suppressed: true,
                disabled_instrumentations: vec!["requests".into(), "kafka".into()],
                excluded_urls: vec!["healthz".into(), "/metrics$".into()],
                instrumented: true,
                warnings: vec![],
            }
        );
        assert_eq!(
            TargetSettings::new(&environment(&[])),
            TargetSettings::default()
        );
        let wrong = TargetSettings::new(&environment(&[
            ("OTEL_RESOURCE_ATTRIBUTES", "a=1,b"),
            ("OTEL_SDK_DISABLED", "yes"),
        ]));
        assert!(wrong.resource_attributes.is_empty() && !wrong.disabled);
        assert_eq!(wrong.warnings.len(), 2);
    }
}
