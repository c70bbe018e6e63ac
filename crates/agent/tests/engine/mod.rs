//! A Docker Engine of one's own for a test.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use wharf_agent::runtime::{DockerOptions, DockerRuntime, Runtime};

/// Tells the inner test its folder.
const FOLDER: &str = "WHARF_TEST_FOLDER";
/// The engine's program, if it is another than the system's.
const DOCKERD: &str = "WHARF_TEST_DOCKERD";

/// A private `/run` and `/sys` with the machine's cgroups, then the test.
const SCRIPT: &str = r#"
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/lock /run/cg
mount --rbind /sys/fs/cgroup /run/cg
mount -t sysfs sysfs /sys
mount --rbind /run/cg /sys/fs/cgroup
umount -l /run/cg
ip link set lo up
"$@" && code=0 || code=$?
exit $code
"#;

/// Runs an ignored test of this binary in namespaces of its own, and takes away what the kernel does not.
pub(crate) fn within_namespaces(test: &str) {
    let program = std::env::var(DOCKERD).unwrap_or_else(|_| "dockerd".to_owned());
    let missing =
        [program.as_str(), "docker", "unshare", "ip", "busybox"].into_iter().find(|name| !is_there(name));
    let root = nix::unistd::geteuid().is_root();
    if let Some(why) =
        missing.map(|name| format!("{name} is not installed")).or((!root).then(|| "not root".into()))
    {
        assert!(std::env::var("WHARF_REQUIRE_ENGINE").as_deref() != Ok("1"), "no Docker Engine: {why}");
        println!("skipped: no Docker Engine here: {why}");
        return;
    }
    let folder = tempfile::Builder::new().prefix("engine").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let cgroup = cgroup(folder.path());
    let status = Command::new("unshare")
        .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["--propagation", "private", "sh", "-c", SCRIPT, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", test, "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder.path())
        .stdin(Stdio::null())
        .status()
        .unwrap();
    let _ = Command::new("find")
        .args([
            "/sys/fs/cgroup",
            "-depth",
            "-type",
            "d",
            "-path",
            &format!("*{cgroup}*"),
            "-exec",
            "rmdir",
            "{}",
            ";",
        ])
        .stderr(Stdio::null())
        .status();
    if !status.success() {
        let log = std::fs::read_to_string(folder.path().join("dockerd.log")).unwrap_or_default();
        let last: Vec<_> = log.lines().rev().take(15).collect();
        panic!("{test} failed; the engine's last words, newest first:\n{}", last.join("\n"));
    }
}

fn is_there(program: &str) -> bool {
    let check = format!("command -v {program}");
    Command::new("sh")
        .args(["-c", &check])
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn cgroup(folder: &Path) -> String {
    format!("/wharf-{}", folder.file_name().unwrap().to_string_lossy())
}

/// A running engine.
pub(crate) struct Engine {
    folder: PathBuf,
    socket: PathBuf,
    process: Child,
}

impl Engine {
    /// Starts an engine and waits until it answers.
    pub(crate) async fn start() -> Self {
        let folder = PathBuf::from(std::env::var(FOLDER).expect("run within namespaces"));
        let socket = folder.join("docker.sock");
        let process = Self::spawn(&folder, &socket);
        let engine = Self { folder, socket, process };
        engine.answers().await;
        engine
    }

    fn spawn(folder: &Path, socket: &Path) -> Child {
        let log =
            std::fs::File::options().create(true).append(true).open(folder.join("dockerd.log")).unwrap();
        let program = std::env::var(DOCKERD).unwrap_or_else(|_| "dockerd".to_owned());
        Command::new(program)
            .arg("--data-root")
            .arg(folder.join("data"))
            .args(["--exec-root", "/run/docker", "--pidfile", "/run/docker.pid", "--live-restore"])
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", &cgroup(folder)])
            .arg("-H")
            .arg(format!("unix://{}", socket.display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    async fn answers(&self) {
        let options = DockerOptions {
            socket: self.socket.clone(),
            cluster: String::new(),
            volumes: self.folder.clone(),
        };
        let runtime = DockerRuntime::new(options);
        let waiting = async {
            while runtime.facts().await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("the engine answers");
    }

    /// Ends the engine without its knowledge, and starts it again; containers go on.
    pub(crate) async fn restart(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        let _ = std::fs::remove_file("/run/docker.pid");
        let _ = std::fs::remove_file(&self.socket);
        self.process = Self::spawn(&self.folder, &self.socket);
        self.answers().await;
    }

    /// The engine's socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// A folder of this test.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the command line client says.
    pub(crate) fn docker(&self, arguments: &[&str]) -> String {
        let host = format!("unix://{}", self.socket.display());
        let output = Command::new("docker").args(["-H", &host]).args(arguments).output().unwrap();
        assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Loads an image that is a shell with the usual tools.
    pub(crate) fn load_shell(&self, reference: &str) {
        let script = r#"set -e
            mkdir -p "$1/bin" "$1/etc" "$1/tmp" "$1/data"; cp "$(command -v busybox)" "$1/bin/busybox"
            for tool in $("$1/bin/busybox" --list); do [ $tool = busybox ] || ln -sf busybox "$1/bin/$tool"; done
            echo root:x:0:0:root:/root:/bin/sh > "$1/etc/passwd"; echo root:x:0: > "$1/etc/group"
            tar -C "$1" -c . | docker -H "$2" import -c 'CMD ["/bin/sh"]' - "$3""#;
        let output = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(self.folder.join("shell"))
            .arg(format!("unix://{}", self.socket.display()))
            .arg(reference)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // The kernel ends it with the namespaces at the latest.
        let _ = self.process.kill();
    }
}
