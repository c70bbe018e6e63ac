//! Asks gateways what went through them, while a release is judged by that.
//!
//! - Only the leader does it, and only of services that are judged now: each live gateway is asked once a second.
//! - Decisions read what has been counted since this server began to count; another leader begins anew, and whoever compares sees that.
//! - A gateway's own numbers fall when one of its processes ends. Nothing is counted of that moment, rather than something twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio_util::sync::CancellationToken;
use wharf_engine::{World, judged};
use wharf_model::{Figures, GatewayStats, Generation, NodeId, NodeState, ServiceKey, SetStats, Timestamp};
use wharf_process::errors::chain;

use super::Context;
use crate::sessions::{NodeSession, Sessions};

/// Between two questions.
const PERIOD: Duration = Duration::from_secs(1);
/// A gateway that has not answered by then is silent this time.
const PATIENCE: Duration = Duration::from_secs(3);

/// Feeds decisions with gateways' figures until `shutdown`, while this server leads.
pub async fn watch(mut context: Context, sessions: Arc<Sessions>, shutdown: CancellationToken) {
    let mut concerns = context.state.concerns();
    let mut counted = Counted::default();
    loop {
        concerns.borrow_and_update();
        let leads = context.lead.borrow_and_update().is_some();
        let wanted = if leads { judged(&context.state.read().world) } else { BTreeSet::new() };
        for service in counted.keep(&wanted, context.now()) {
            context.state.set_figures(&service, None);
        }
        if !wanted.is_empty() {
            // Dropped on shutdown only.
            let Some(answers) = shutdown.run_until_cancelled(ask(&context, &sessions)).await else { return };
            {
                let inner = context.state.read();
                answers.iter().for_each(|(node, answer)| counted.take(&inner.world, *node, answer.as_ref()));
            }
            for (service, figures) in &counted.figures {
                context.state.set_figures(service, Some(figures.clone()));
            }
        }
        tokio::select! {
            // Cancel-safe, all of them: flags, counters and a timer.
            () = shutdown.cancelled() => return,
            _ = concerns.changed(), if wanted.is_empty() => {}
            changed = context.lead.changed() => if changed.is_err() { return },
            () = context.clock.sleep(PERIOD), if !wanted.is_empty() => {}
        }
    }
}

/// What every live gateway has counted; nothing of those that do not answer.
async fn ask(context: &Context, sessions: &Sessions) -> Vec<(NodeId, Option<GatewayStats>)> {
    let gateways: Vec<_> = {
        let inner = context.state.read();
        let gateways = inner.world.nodes().filter(|node| node.record.roles.gateway && counts(node.state()));
        gateways.map(|node| node.record.id).collect()
    };
    let asking = gateways.into_iter().map(|node| async move {
        let session = sessions.get(node).ok();
        (node, answer(context, session).await)
    });
    futures::future::join_all(asking).await
}
async fn answer(context: &Context, session: Option<NodeSession>) -> Option<GatewayStats> {
    let session = session?;
    let answer = tokio::select! {
        answer = session.gateway() => answer,
        () = context.clock.sleep(PATIENCE) => return None,
    };
    match answer {
        Ok(stats) => Some(stats),
        Err(error) => {
            tracing::debug!(node = %session.node(), error = %chain(&error), "a gateway did not say what it has counted");
            None
        }
    }
}

/// Whether a gateway of a node in this state may answer requests.
const fn counts(state: NodeState) -> bool {
    match state {
        NodeState::Ready | NodeState::EngineDown | NodeState::Unreachable => true,
        NodeState::Joining | NodeState::Down => false,
    }
}

type BySet = BTreeMap<Generation, SetStats>;

/// What was counted since this server began to.
#[derive(Debug, Default)]
struct Counted {
    figures: BTreeMap<ServiceKey, Figures>,
    /// What each gateway said last.
    last: BTreeMap<NodeId, BTreeMap<ServiceKey, BySet>>,
}

impl Counted {
    /// Counts for these services and for no others. Answers which it counts for no longer.
    fn keep(&mut self, wanted: &BTreeSet<ServiceKey>, now: Timestamp) -> Vec<ServiceKey> {
        let gone: Vec<_> =
            self.figures.keys().filter(|service| !wanted.contains(*service)).cloned().collect();
        self.figures.retain(|service, _| wanted.contains(service));
        for said in self.last.values_mut() {
            said.retain(|service, _| wanted.contains(service));
        }
        for service in wanted {
            let begin = || Figures { since: now, ..Figures::default() };
            self.figures.entry(service.clone()).or_insert_with(begin);
        }
        gone
    }

    /// Adds what a gateway has counted since it said so last. What it had counted before it was first asked is nobody's.
    fn take(&mut self, world: &World, node: NodeId, answer: Option<&GatewayStats>) {
        let name = world.node_name(node);
        let last = self.last.entry(node).or_default();
        for (service, figures) in &mut self.figures {
            figures.silent.retain(|silent| *silent != name);
            let Some(stats) = answer else {
                figures.silent.push(name.clone());
                continue;
            };
            let now = of_service(world, service, stats);
            if let Some(before) = last.get(service) {
                for (generation, stats) in &now {
                    let none = SetStats::default();
                    let more = since(before.get(generation).unwrap_or(&none), stats);
                    figures.sets.entry(*generation).or_default().add(&more);
                }
            }
            last.insert(service.clone(), now);
        }
    }
}

/// What a gateway has counted of the requests to a service's routes, without those to its preview.
fn of_service(world: &World, service: &ServiceKey, stats: &GatewayStats) -> BySet {
    let generation = world.service(service).map(|record| record.generation);
    let revision = generation.and_then(|generation| world.revision_of(service, generation));
    let is_read = |number: u16| {
        let routes = revision.map(|revision| &revision.spec.policy.routes);
        routes.and_then(|routes| routes.get(usize::from(number))).is_none_or(|route| route.sees_requests())
    };
    let mut sets = BySet::new();
    for report in &stats.routes {
        if report.route.service == *service && !report.route.preview && is_read(report.route.number) {
            for (generation, set) in &report.stats.sets {
                sets.entry(*generation).or_default().add(set);
            }
        }
    }
    sets
}

/// What has been counted between two answers of one gateway.
fn since(before: &SetStats, now: &SetStats) -> SetStats {
    let fell = now.requests < before.requests || now.failures < before.failures;
    if fell {
        return SetStats { active: now.active, ..SetStats::default() };
    }
    let latency = now.latency.iter().enumerate();
    let latency = latency.map(|(n, count)| count.saturating_sub(before.latency.get(n).copied().unwrap_or(0)));
    SetStats {
        requests: now.requests - before.requests,
        failures: now.failures - before.failures,
        active: now.active,
        latency: latency.collect(),
        received: now.received.saturating_sub(before.received),
        sent: now.sent.saturating_sub(before.sent),
    }
}

#[cfg(test)]
mod tests {
    use wharf_model::{AppKey, RouteId, RouteReport, RouteStats};

    use super::*;

    fn service() -> ServiceKey {
        let app = AppKey { environment: "prod".parse().unwrap(), name: "shop".parse().unwrap() };
        ServiceKey { app, name: "web".parse().unwrap() }
    }
    fn node(n: u8) -> NodeId {
        NodeId::from_parts(u64::from(n), [n; 10])
    }
    /// A gateway that has counted so many requests and failures of each generation, and as many again at the preview.
    fn said(sets: &[(u64, u64, u64)]) -> GatewayStats {
        let sets = sets.iter().map(|(generation, requests, failures)| {
            let stats = SetStats {
                requests: *requests,
                failures: *failures,
                latency: vec![*requests],
                ..SetStats::default()
            };
            (Generation(*generation), stats)
        });
        let stats = RouteStats { sets: sets.collect(), ..RouteStats::default() };
        let report = |preview| RouteReport {
            route: RouteId { service: service(), number: 0, preview },
            stats: stats.clone(),
        };
        GatewayStats { routes: vec![report(false), report(true)], ..GatewayStats::default() }
    }
    fn counted(counted: &Counted, generation: u64) -> (u64, u64) {
        let sets = &counted.figures[&service()].sets;
        sets.get(&Generation(generation)).map_or((0, 0), |set| (set.requests, set.failures))
    }

    #[test]
    fn only_what_comes_after_the_first_answer_counts_and_gateways_add_up() {
        let (world, mut all) = (World::default(), Counted::default());
        assert!(all.keep(&[service()].into(), Timestamp(5)).is_empty());
        all.take(&world, node(1), Some(&said(&[(1, 1000, 100)])));
        all.take(&world, node(2), Some(&said(&[(1, 500, 0)])));
        assert_eq!(counted(&all, 1), (0, 0), "from before anybody asked");
        all.take(&world, node(1), Some(&said(&[(1, 1010, 101), (2, 4, 3)])));
        all.take(&world, node(2), Some(&said(&[(1, 530, 0), (2, 1, 0)])));
        assert_eq!((counted(&all, 1), counted(&all, 2)), ((40, 1), (5, 3)));
        assert_eq!(all.figures[&service()].sets[&Generation(1)].latency, [40]);
        assert_eq!(all.figures[&service()].since, Timestamp(5));
    }

    #[test]
    fn a_gateway_that_begins_anew_takes_nothing_away_and_adds_nothing_twice() {
        let (world, mut all) = (World::default(), Counted::default());
        all.keep(&[service()].into(), Timestamp(5));
        for requests in [100, 150, 20, 35] {
            all.take(&world, node(1), Some(&said(&[(1, requests, 0)])));
        }
        assert_eq!(counted(&all, 1), (50 + 15, 0));
    }

    #[test]
    fn who_does_not_answer_is_named_until_it_does_and_what_it_counted_meanwhile_is_not_lost() {
        let (world, mut all) = (World::default(), Counted::default());
        all.keep(&[service()].into(), Timestamp(5));
        all.take(&world, node(1), Some(&said(&[(1, 10, 0)])));
        all.take(&world, node(1), None);
        all.take(&world, node(1), None);
        assert_eq!(all.figures[&service()].silent, [node(1).to_string()]);
        all.take(&world, node(1), Some(&said(&[(1, 25, 0)])));
        assert_eq!((counted(&all, 1), all.figures[&service()].silent.len()), ((15, 0), 0));
    }

    #[test]
    fn what_is_judged_no_longer_is_forgotten_and_counted_anew_the_next_time() {
        let (world, mut all) = (World::default(), Counted::default());
        all.keep(&[service()].into(), Timestamp(5));
        all.take(&world, node(1), Some(&said(&[(1, 10, 0)])));
        assert_eq!(all.keep(&BTreeSet::new(), Timestamp(6)), [service()]);
        all.keep(&[service()].into(), Timestamp(7));
        all.take(&world, node(1), Some(&said(&[(1, 90, 0)])));
        assert_eq!((counted(&all, 1), all.figures[&service()].since), ((0, 0), Timestamp(7)));
    }
}
