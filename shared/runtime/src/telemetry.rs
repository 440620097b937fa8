//! Logs to standard error and metrics as Prometheus text, each set up once per process.

use std::fmt;
use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::anyhow;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::format::{Format, Json, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogFormat, Settings};
use crate::failpoint;

/// Starts logging and metrics, and configures failpoints. A second call changes nothing.
///
/// # Errors
///
/// Another library has already claimed the log of this process.
pub fn init(settings: &Settings, service: &'static str) -> anyhow::Result<()> {
    static LOG: OnceLock<Result<(), String>> = OnceLock::new();
    failpoint::configure(settings.failpoints.clone());
    metrics();
    LOG.get_or_init(|| start_log(settings, service))
        .clone()
        .map_err(|error| anyhow!("cannot start the log: {error}"))
}

fn start_log(settings: &Settings, service: &'static str) -> Result<(), String> {
    let stderr = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let layer = match settings.log_format {
        LogFormat::Json => stderr.fmt_fields(JsonFields::new()).event_format(json(service)).boxed(),
        LogFormat::Text => stderr.with_ansi(std::io::stderr().is_terminal()).boxed(),
    };
    let log = tracing_subscriber::registry().with(layer.with_filter(settings.log_level));
    log.try_init().map_err(|error| error.to_string())
}

/// JSON lines that begin with the name of the service, so that the logs of several can be merged.
struct Named {
    service: &'static str,
    json: Format<Json>,
}

fn json(service: &'static str) -> Named {
    let json = Format::default()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(true);
    Named { service, json }
}

impl<S, N> FormatEvent<S, N> for Named
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, cx: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = String::new();
        self.json.format_event(cx, Writer::new(&mut line), event)?;
        // The formatter has no constant fields; a JSON object can be given one behind its first brace.
        write!(
            out,
            "{{\"service\":{:?},{}",
            self.service,
            line.strip_prefix('{').ok_or(fmt::Error)?
        )
    }
}

/// Returns the recorder of this process, installing it at the first call.
pub fn metrics() -> PrometheusHandle {
    static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
    RECORDER.get_or_init(install_recorder).clone()
}

/// Renders all metrics in the Prometheus text format.
pub fn render() -> String {
    metrics().render()
}

fn install_recorder() -> PrometheusHandle {
    const SECONDS: [f64; 13] = [
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0,
    ];
    const UPKEEP: Duration = Duration::from_secs(5);
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)
        .expect("the list of buckets is not empty")
        .install_recorder()
        .expect("a recorder is installed here and nowhere else");
    // Samples of histograms pile up until they are folded; nobody may be scraping. A thread, because a recorder
    // outlives every runtime.
    let upkeep = handle.clone();
    let fold = move || {
        loop {
            std::thread::sleep(UPKEEP);
            upkeep.run_upkeep();
        }
    };
    std::thread::Builder::new()
        .name("metrics".into())
        .spawn(fold)
        .expect("a process at its start can make a thread");
    handle
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_json_line_names_the_service_its_fields_and_its_spans() {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .fmt_fields(JsonFields::new())
            .event_format(json("example"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let _span = tracing::info_span!("request", request.id = "r-1").entered();
            tracing::info!(job.id = "j-1", "job \"j-1\"\ncompleted");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["service"], "example");
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["message"], "job \"j-1\"\ncompleted");
        assert_eq!(line["job.id"], "j-1");
        assert_eq!(line["spans"][0]["request.id"], "r-1");
    }

    #[test]
    fn telemetry_may_be_started_twice_and_metrics_are_rendered() {
        init(&Settings::default(), "example").unwrap();
        init(&Settings::default(), "example").unwrap();
        ::metrics::counter!("telemetry_test_total", "kind" => "a").increment(2);
        ::metrics::histogram!("telemetry_test_seconds").record(0.2);
        let text = render();
        assert!(text.contains("telemetry_test_total{kind=\"a\"} 2"), "{text}");
        assert!(text.contains("telemetry_test_seconds_bucket{le=\"0.25\"} 1"), "{text}");
    }
}
