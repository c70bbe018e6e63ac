//! What finding a route and choosing an endpoint cost, by how many there are; and a new table.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use serde_json::json;
use wharf_gateway::bench::{Compiled, routes};

fn find(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("find");
    for count in [1, 1_000, 10_000] {
        let table = Compiled::new(&routes(count, 1, &json!({"path": "/api"})), None);
        let host = format!("shop-{}.example.com", count / 2);
        assert!(table.find(&host, "/api/v1/items"));
        group.bench_function(BenchmarkId::new("plain path", count), |bencher| {
            bencher.iter(|| table.find(black_box(&host), black_box("/api/v1/items")));
        });
        group.bench_function(BenchmarkId::new("encoded path", count), |bencher| {
            bencher.iter(|| table.find(black_box(&host), black_box("/api/v1/caf%C3%A9")));
        });
        group.bench_function(BenchmarkId::new("no such host", count), |bencher| {
            bencher.iter(|| table.find(black_box("nobody.example.com"), black_box("/api")));
        });
    }
    group.finish();
}

fn request(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("find, choose, answer");
    for balance in [json!("least-outstanding"), json!("round-robin"), json!({"hash": "client"})] {
        for endpoints in [1, 10, 1_000] {
            let table = Compiled::new(&routes(1, endpoints, &json!({"balance": balance.clone()})), None);
            assert!(table.request("shop-0.example.com", "/"));
            group.bench_function(BenchmarkId::new(balance.to_string(), endpoints), |bencher| {
                bencher.iter(|| table.request(black_box("shop-0.example.com"), black_box("/")));
            });
        }
    }
    group.finish();
}

fn compile(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compile");
    group.sample_size(10);
    for (count, endpoints) in [(1, 10_000), (1_000, 10), (10_000, 1)] {
        let before = routes(count, endpoints, &json!({}));
        let mut after = before.clone();
        after.services[0].sets[0].endpoints.pop();
        let name = format!("{count} routes of {endpoints}");
        group.bench_function(BenchmarkId::new("from nothing", &name), |bencher| {
            bencher.iter(|| Compiled::new(black_box(&before), None));
        });
        let (mut current, mut turn) = (Compiled::new(&before, None), false);
        group.bench_function(BenchmarkId::new("one endpoint changes", &name), |bencher| {
            bencher.iter(|| {
                turn = !turn;
                current = Compiled::new(black_box(if turn { &after } else { &before }), Some(&current));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, find, request, compile);
criterion_main!(benches);
