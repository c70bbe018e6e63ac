//! What went through gateways, in the text format that Prometheus reads.
//!
//! - Each number is one gateway's (`node`). A gateway that does not answer has `wharf_gateway_up 0` and nothing else.
//! - Counts begin anew with a process that was killed, as counters may; one that was replaced counts until its last connection is over.

use std::{collections::BTreeMap, fmt::Write as _};

use wharf_model::{GatewayStats, LATENCY_BOUNDS, RouteId};

/// By the name of the gateway's node; none if it did not answer.
pub(super) fn text(gateways: &BTreeMap<String, Option<GatewayStats>>) -> String {
    let mut page = Page::default();
    for (node, stats) in gateways {
        let node = format!("node=\"{}\"", escaped(node));
        page.add(
            "wharf_gateway_up",
            "gauge",
            "Whether the gateway answers.",
            &node,
            u64::from(stats.is_some()),
        );
        let Some(stats) = stats else { continue };
        gateway(&mut page, &node, stats);
    }
    page.text()
}

fn gateway(page: &mut Page, node: &str, stats: &GatewayStats) {
    for process in &stats.processes {
        let state = if process.retired { "retired" } else { "serving" };
        let labels = format!("{node},state=\"{state}\"");
        page.add("wharf_gateway_clients", "gauge", "Clients that are connected.", &labels, process.clients);
        page.add(
            "wharf_gateway_unlogged_requests_total",
            "counter",
            "Lines that the access log lost.",
            &labels,
            process.unlogged,
        );
        for (name, help, value) in [
            ("tls_handshakes", "TLS handshakes that agreed on new keys.", process.entry.handshakes),
            ("tls_resumed", "TLS handshakes that resumed a session.", process.entry.resumed),
            ("tls_failed", "TLS handshakes that failed or took too long.", process.entry.failed),
            ("tls_unknown_names", "TLS handshakes for hosts that are not here.", process.entry.unknown_names),
            ("tls_challenges", "Certificate authorities that were answered.", process.entry.challenges),
            (
                "malformed_proxy",
                "What began without the PROXY protocol where it is expected.",
                process.entry.malformed_proxy,
            ),
        ] {
            page.add(&format!("wharf_gateway_{name}_total"), "counter", help, &labels, value);
        }
    }
    for port in &stats.ports {
        let place = port.host_ip.map(|address| address.to_string()).unwrap_or_default();
        let labels = format!(
            "{node},port=\"{}\",protocol=\"{}\",address=\"{place}\"",
            port.port,
            port.protocol.as_str()
        );
        for (name, help, value) in [
            ("connections", "Connections that reached a task.", port.connections),
            ("failures", "Connections that no task took.", port.failures),
            ("retries", "Further attempts to reach a task.", port.retries),
            ("received_bytes", "Bytes from clients.", port.received),
            ("sent_bytes", "Bytes to clients.", port.sent),
        ] {
            page.add(&format!("wharf_gateway_port_{name}_total"), "counter", help, &labels, value);
        }
        page.add("wharf_gateway_port_active", "gauge", "Open connections.", &labels, port.active);
    }
    for report in &stats.routes {
        route(page, &format!("{node},{}", labels(&report.route)), &report.stats);
    }
}

fn route(page: &mut Page, labels: &str, stats: &wharf_model::RouteStats) {
    for (generation, set) in &stats.sets {
        let labels = format!("{labels},generation=\"{}\"", generation.0);
        for (name, help, value) in [
            ("requests", "Requests that are over.", set.requests),
            ("failures", "Requests answered with 5xx, or not at all.", set.failures),
            ("received_bytes", "Bytes of bodies from clients.", set.received),
            ("sent_bytes", "Bytes of bodies to clients.", set.sent),
        ] {
            page.add(&format!("wharf_gateway_{name}_total"), "counter", help, &labels, value);
        }
        page.add("wharf_gateway_active", "gauge", "Requests under way.", &labels, set.active);
        page.histogram(
            "wharf_gateway_answer_seconds",
            "Until the head of the answer.",
            &labels,
            &set.latency,
        );
    }
    for (reason, count) in &stats.refused {
        let labels = format!("{labels},reason=\"{}\"", escaped(reason));
        page.add(
            "wharf_gateway_refused_total",
            "counter",
            "Requests that no task was given.",
            &labels,
            *count,
        );
    }
    page.add("wharf_gateway_queued", "gauge", "Requests that wait for room.", labels, stats.queued);
    page.add("wharf_gateway_retries_total", "counter", "Further attempts.", labels, stats.retries);
    page.add("wharf_gateway_fallbacks_total", "counter", "Answers of fallbacks.", labels, stats.fallbacks);
}

fn labels(route: &RouteId) -> String {
    let app = &route.service.app;
    format!(
        "environment=\"{}\",app=\"{}\",service=\"{}\",route=\"{}\",preview=\"{}\"",
        app.environment,
        app.name,
        route.service.name,
        route.number + 1,
        route.preview
    )
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// A page of metrics: all samples of one name stand together, as the format wants it.
#[derive(Default)]
struct Page {
    families: BTreeMap<String, (String, String)>,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) -> &mut String {
        let heading = || format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
        &mut self.families.entry(name.to_owned()).or_insert_with(|| (heading(), String::new())).1
    }

    fn add(&mut self, name: &str, kind: &str, help: &str, labels: &str, value: u64) {
        let samples = self.family(name, kind, help);
        // Two processes of one kind at a node are one sample.
        let sample = format!("{name}{{{labels}}} ");
        if let Some(at) = samples.find(&sample) {
            let start = at + sample.len();
            let end = samples[start..].find('\n').map_or(samples.len(), |length| start + length);
            let before: u64 = samples[start..end].parse().unwrap_or(0);
            samples.replace_range(start..end, &(before + value).to_string());
        } else {
            let _ = writeln!(samples, "{sample}{value}");
        }
    }

    fn histogram(&mut self, name: &str, help: &str, labels: &str, buckets: &[u64]) {
        let samples = self.family(name, "histogram", help);
        let mut seen = 0;
        for (count, bound) in buckets.iter().zip(LATENCY_BOUNDS) {
            seen += count;
            let (whole, rest) = (bound / 1_000_000, bound % 1_000_000);
            let bound = format!("{whole}.{rest:06}");
            let bound = bound.trim_end_matches('0').trim_end_matches('.');
            let _ = writeln!(samples, "{name}_bucket{{{labels},le=\"{bound}\"}} {seen}");
        }
        let all: u64 = buckets.iter().sum();
        let _ = writeln!(samples, "{name}_bucket{{{labels},le=\"+Inf\"}} {all}");
        let _ = writeln!(samples, "{name}_count{{{labels}}} {all}");
    }

    fn text(&self) -> String {
        self.families.values().map(|(heading, samples)| format!("{heading}{samples}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use wharf_model::{AppKey, GatewayProcess, Generation, RouteReport, RouteStats, ServiceKey, SetStats};

    use super::*;

    #[test]
    fn every_sample_stands_with_its_family_and_buckets_count_up() {
        let app =
            AppKey { environment: "prod".parse().expect("a name"), name: "shop".parse().expect("a name") };
        let route = RouteId {
            service: ServiceKey { app, name: "web".parse().expect("a name") },
            number: 0,
            preview: false,
        };
        let mut latency = vec![0; LATENCY_BOUNDS.len() + 1];
        (latency[0], latency[22], latency[23]) = (3, 1, 2);
        let set = SetStats { requests: 6, latency, ..SetStats::default() };
        let stats = RouteStats { sets: BTreeMap::from([(Generation(4), set)]), ..RouteStats::default() };
        let process = |clients, retired| GatewayProcess { clients, retired, ..GatewayProcess::default() };
        let one = GatewayStats {
            processes: vec![process(1, false), process(2, true), process(3, true)],
            routes: vec![RouteReport { route, stats }],
            ports: vec![],
        };
        let text = text(&BTreeMap::from([("n1".to_owned(), Some(one)), ("n2".to_owned(), None)]));
        let has = |line: &str| assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        has("wharf_gateway_up{node=\"n1\"} 1");
        has("wharf_gateway_up{node=\"n2\"} 0");
        has("wharf_gateway_clients{node=\"n1\",state=\"retired\"} 5");
        let labels = "node=\"n1\",environment=\"prod\",app=\"shop\",service=\"web\",route=\"1\",preview=\"false\",generation=\"4\"";
        has(&format!("wharf_gateway_requests_total{{{labels}}} 6"));
        has(&format!("wharf_gateway_answer_seconds_bucket{{{labels},le=\"0.0005\"}} 3"));
        has(&format!("wharf_gateway_answer_seconds_bucket{{{labels},le=\"30\"}} 4"));
        has(&format!("wharf_gateway_answer_seconds_bucket{{{labels},le=\"+Inf\"}} 6"));
        has(&format!("wharf_gateway_answer_seconds_count{{{labels}}} 6"));
        let types = text.lines().filter(|line| line.starts_with("# TYPE ")).count();
        let mut names: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE ")).collect();
        names.dedup();
        assert_eq!(names.len(), types, "each family once");
    }
}
