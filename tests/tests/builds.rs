//! Services with `build:` on real nodes and engines: built on one, run on all, changed, broken, and lost.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails where it cannot go on, and shows what was said"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::Value;
use wharf_tests::{Fleet, Output, skip, text, wait_until};

const SOON: Duration = Duration::from_secs(90);
const DOCKERFILE: &str = "FROM busybox:1\nARG WHO=nobody\nRUN mkdir /www && echo $WHO > /www/who\nCOPY www /www\n\
                          CMD [\"busybox\", \"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/www\"]\n";
const SHOP: &str = "name: shop\nservices:\n  web:\n    build: {context: ., args: {WHO: ada}}\n    init: true\n    ports: ['8301:8080']\n    deploy: {mode: global}\n";

struct App<'a> {
    fleet: &'a Fleet,
    file: String,
    folder: PathBuf,
}

impl<'a> App<'a> {
    fn new(fleet: &'a Fleet, name: &str, compose: &str, files: &[(&str, &str)]) -> Self {
        let file = fleet.file(name, compose);
        let folder = Path::new(&file).parent().unwrap().to_owned();
        let app = Self { fleet, file, folder };
        files.iter().for_each(|(path, content)| app.write(path, content));
        app
    }
    fn write(&self, path: &str, content: &str) {
        let path = self.folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    fn wharf(&self, args: &[&str]) -> Output {
        let mut all = args.to_vec();
        all.extend(["-f", &self.file]);
        let output = self.fleet.wharf(all);
        println!("--- wharf {}: {}\n{}{}", args.join(" "), output.code, output.stdout, output.stderr);
        output
    }
    fn ok(&self, args: &[&str]) -> String {
        let output = self.wharf(args);
        assert_eq!(output.code, 0, "{}", output.stderr);
        output.stderr
    }
    fn git(&self, args: &[&str]) -> String {
        let output = Command::new("git")
            .args(["-c", "user.name=a", "-c", "user.email=a@b.c"])
            .args(args)
            .current_dir(&self.folder)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

fn healthy(fleet: &Fleet, app: &str) -> Result<Vec<Value>> {
    let tasks = fleet.tasks(app)?;
    Ok(tasks.into_iter().filter(|task| task["status"]["phase"] == "running").collect())
}

/// How many bytes of each image came from another node, as the agents say.
fn transfers(fleet: &Fleet) -> Vec<u64> {
    let logs =
        (1..=3).map(|node| fs::read_to_string(fleet.node(node).dir().join("wharf.log")).unwrap_or_default());
    let lines: Vec<String> =
        logs.flat_map(|log| log.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    let fetched = lines.iter().filter(|line| line.contains("image fetched"));
    fetched
        .inspect(|line| println!("{line}"))
        .filter_map(|line| line.split(" bytes=").nth(1)?.split(' ').next()?.parse().ok())
        .collect()
}

#[test]
fn what_is_built_on_one_node_runs_on_all_of_them() {
    if skip() {
        return;
    }
    let fleet = Fleet::start(3);
    let shop = App::new(
        &fleet,
        "shop",
        SHOP,
        &[
            ("Dockerfile", DOCKERFILE),
            ("www/index.html", "one"),
            (".dockerignore", "*.log\n"),
            ("large.log", "not sent"),
        ],
    );
    let answers = |path: &str| {
        (1..=3)
            .map(|node| fleet.http(&format!("http://{}:8301/{path}", fleet.node(node).address())))
            .collect::<Result<Vec<_>>>()
    };

    // Built once, and on every node by its identifier.
    let planned = shop.wharf(&["up", "--dry-run"]);
    assert_eq!(planned.code, 3);
    assert!(planned.stderr.contains("(it has not been built)"), "{}", planned.stderr);
    let began = Instant::now();
    let said = shop.ok(&["up", "-y"]);
    println!("building and deploying took {:?}", began.elapsed());
    assert_eq!(said.matches("web: building on ").count(), 1, "{said}");
    let tasks = healthy(&fleet, "shop").unwrap();
    assert_eq!(tasks.len(), 3);
    let ids: Vec<_> = (1..=3)
        .map(|node| {
            fleet.node(node).docker(["images", "-q", "--no-trunc", "shop-web"]).unwrap().trim().to_owned()
        })
        .collect();
    assert!(ids[0].starts_with("sha256:") && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(answers("index.html").unwrap(), ["one"; 3]);
    assert_eq!(answers("who").unwrap()[0].trim(), "ada", "the argument reached the build");

    // What has not changed is not built again, and nothing is done.
    let before = Instant::now();
    let said = shop.ok(&["up", "-y"]);
    println!("an `up` without changes took {:?}", before.elapsed());
    assert!(said.contains("nothing to do"), "{said}");

    // A commit names the image, and a changed file replaces the tasks.
    shop.write("www/index.html", "two");
    shop.git(&["init", "-q"]);
    shop.git(&["add", "."]);
    shop.git(&["commit", "-qm", "two"]);
    let commit = shop.git(&["rev-parse", "--short=7", "HEAD"]);
    let said = shop.ok(&["up", "-y"]);
    assert!(said.contains("~ build ") && said.contains("(context changed)"), "{said}");
    assert!(said.contains(&format!("shop-web:git-{commit}")), "{said}");
    assert_eq!(answers("index.html").unwrap(), ["two"; 3]);
    // A commit that changes nothing of the context is no reason to build.
    shop.git(&["commit", "-q", "--allow-empty", "-m", "elsewhere"]);
    assert!(shop.ok(&["up", "-y"]).contains("nothing to do"));
    let whole: u64 = fleet
        .node(1)
        .sh(&format!("docker save shop-web:git-{commit} | wc -c"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let sent = transfers(&fleet);
    println!("an archive has {whole} bytes; sent were {sent:?}");
    assert!(
        sent.len() >= 4 && sent.iter().all(|bytes| *bytes * 10 < whole),
        "layers that are there do not travel"
    );

    // A Dockerfile that fails changes nothing; both builders say where.
    shop.write("Dockerfile", &DOCKERFILE.replace("mkdir /www", "echo before && ls /nonesuch"));
    for (builder, step) in
        [("1", "RUN echo before && ls /nonesuch"), ("0", "Step 3/5 : RUN echo before && ls /nonesuch")]
    {
        let output = shop
            .fleet
            .command(["up", "-y", "-f", &shop.file])
            .env("DOCKER_BUILDKIT", builder)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        println!("--- DOCKER_BUILDKIT={builder}\n{said}");
        assert_eq!(output.status.code(), Some(1), "{said}");
        for part in [
            "error: nothing was changed: the image of web was not built",
            "/Dockerfile)",
            step,
            "ls: /nonesuch: No such file",
        ] {
            assert!(said.contains(part), "{part} is not in {said}");
        }
    }
    shop.write("Dockerfile", "FROM busybox:1\nRUNN x\n");
    let output = shop.wharf(&["up", "-y"]);
    assert!(
        output.code == 1 && output.stderr.contains("line 2: unknown instruction: RUNN"),
        "{}",
        output.stderr
    );
    assert_eq!(answers("index.html").unwrap(), ["two"; 3]);
    let history = fleet.json(["app", "history", "shop"]);
    assert_eq!(history.as_array().unwrap().len(), 2, "{history}");
    let output = shop.wharf(&["up", "-y", "--no-build"]);
    assert!(output.code == 1 && output.stderr.contains("would have to be built"), "{}", output.stderr);

    // Sources of several kinds, and both builders.
    let parts = App::new(
        &fleet,
        "parts",
        "name: parts\nservices:\n  base:\n    image: parts/base:1\n    build: {context: base, dockerfile_inline: \"FROM busybox:1\\nCOPY . /base/\\n\"}\n    command: [ls, /base]\n    restart: on-failure\n    healthcheck: {disable: true}\n  all:\n    build:\n      context: .\n      dockerfile: all.Dockerfile\n      target: second\n      shm_size: 16m\n      additional_contexts: {more: ./more, lower: 'service:base'}\n    command: sleep 1000\n    init: true\n  sealed:\n    build: {context: base, dockerfile: ../sealed, secrets: [token]}\nsecrets:\n  token: {file: ./token}\n",
        &[
            ("token", "hush-hush"),
            (
                "sealed",
                "FROM busybox:1\nRUN --mount=type=secret,id=token,required wc -c < /run/secrets/token > /length\n",
            ),
            ("base/b", "from base"),
            ("more/m", "from more"),
            (
                "all.Dockerfile",
                "FROM lower AS first\nCOPY --from=more /m /m\nFROM busybox:1 AS second\nCOPY --from=0 /m /base/b /\nCOPY . /all/\nRUN df /dev/shm > /shm\nFROM scratch AS third\nCOPY nonesuch /\n",
            ),
        ],
    );
    let said = parts.ok(&["build"]);
    assert!(said.contains("base: built parts/base:1") && said.contains("all: built parts-all:"), "{said}");
    let node = said.split("all: building on ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let index: u8 = node.trim_start_matches('n').parse().unwrap();
    let reference = said.split("all: built ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let listed = fleet.node(index).docker(["run", "--rm", &reference, "cat", "/m", "/b", "/shm"]).unwrap();
    assert!(
        listed.contains("from more") && listed.contains("from base") && listed.contains("16384"),
        "{listed}"
    );
    let files = fleet.node(index).docker(["run", "--rm", &reference, "ls", "-a", "/all"]).unwrap();
    assert!(!files.contains(".wharf") && files.contains("compose"), "{files}");

    let reference = said.split("sealed: built ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let node = said.split("sealed: building on ").nth(1).unwrap();
    assert!(node.contains("(buildkit") && !said.contains("hush-hush"), "{said}");
    let index: u8 = node[1..2].parse().unwrap();
    let length = fleet.node(index).docker(["run", "--rm", &reference, "cat", "/length"]).unwrap();
    assert_eq!(length.trim(), "9", "BuildKit asked for the secret and got it");

    // An image whose only holder is away.
    let compose = |node: &str| {
        format!(
            "name: solo\nservices:\n  it:\n    build: ./src\n    init: true\n    command: sleep 1000\n    deploy: {{placement: {{constraints: [node.hostname == {node}]}}}}\n"
        )
    };
    let solo = App::new(
        &fleet,
        "solo",
        &compose("n2"),
        &[("src/Dockerfile", "FROM busybox:1\nCOPY Dockerfile /x\n")],
    );
    solo.ok(&["up", "-y", "--builder-node", "n2"]);
    fleet.node(2).power_off().unwrap();
    wait_until(SOON, "n2 is seen to be away", || {
        let nodes = fleet.try_json(["node", "ls"])?;
        let gone = nodes
            .as_array()
            .unwrap()
            .iter()
            .any(|node| text(&node["name"]) == "n2" && text(&node["state"]) != "ready");
        ensure!(gone, "{nodes}");
        Ok(())
    });
    fs::write(&solo.file, compose("n3")).unwrap();
    solo.ok(&["up", "-y", "--detach"]);
    wait_until(SOON, "the task says what it lacks", || {
        let shown = fleet.try_wharf(["ps", "-p", "solo"])?;
        let said = format!("{}{}", shown.stdout, shown.stderr);
        ensure!(said.contains("no node that is connected has the image solo-it:"), "{said}");
        ensure!(said.contains("n2 had it and is away"), "{said}");
        ensure!(said.contains("bring n2 back, or build it again with `wharf up --build`"), "{said}");
        println!("{said}");
        Ok(())
    });
    let said = solo.ok(&["up", "-y", "--build", "--supersede"]);
    assert!(!said.contains("building on n2"), "{said}");
    assert_eq!(healthy(&fleet, "solo").unwrap().iter().filter(|task| text(&task["node"]) == "n3").count(), 1);
}
