//! Tiny images for tests, made from the machine's own busybox and a C file, without an engine.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use super::process::run;

const TEST_SERVER: &str = include_str!("../images/testserver.c");
const BUSYBOX: [&str; 2] = ["/usr/bin/busybox", "/bin/busybox"];

/// What decides about the content of the images: the busybox at hand and the server's source.
pub(crate) fn fingerprint() -> Result<String> {
    let busybox = busybox()?;
    let size = fs::metadata(&busybox)?.len();
    let version = run(&busybox.to_string_lossy(), ["--help"]).unwrap_or_default();
    Ok(format!("{size} {}\n{TEST_SERVER}", version.lines().next().unwrap_or_default()))
}

fn busybox() -> Result<PathBuf> {
    let found = BUSYBOX.iter().map(PathBuf::from).find(|path| path.exists());
    found.context("no busybox to make test images from (Debian: busybox-static)")
}

/// Makes an archive for `docker load` with the tags `busybox:1`, `alpine:3` and `wharf/testserver:1`.
pub(crate) fn archive(work: &Path) -> Result<PathBuf> {
    let stage = work.join("images");
    fs::create_dir_all(&stage)?;
    let base = layer(&stage, "base", base_files)?;
    let server = layer(&stage, "testserver", server_files)?;
    let shell = image(&stage, "busybox", &[&base], &json!({ "Cmd": ["sh"] }))?;
    let server = image(
        &stage,
        "testserver",
        &[&base, &server],
        &json!({
            "Cmd": ["/testserver"], "ExposedPorts": { "8080/tcp": {} }, "Labels": { "test.wharf": "yes" }
        }),
    )?;
    let manifest = json!([
        { "Config": "busybox.json", "RepoTags": ["busybox:1", "alpine:3"], "Layers": shell },
        { "Config": "testserver.json", "RepoTags": ["wharf/testserver:1"], "Layers": server },
    ]);
    fs::write(stage.join("manifest.json"), manifest.to_string())?;
    let archive = work.join("images.tar");
    let names = ["busybox.json", "testserver.json", "base.tar", "testserver.tar", "manifest.json"];
    let stage = stage.to_string_lossy().into_owned();
    run("tar", ["-cf", &archive.to_string_lossy(), "-C", &stage].into_iter().chain(names))?;
    Ok(archive)
}

/// A layer: the name of its archive, and the digest of that.
struct Layer {
    file: String,
    digest: String,
}

fn layer(stage: &Path, name: &str, fill: fn(&Path) -> Result<()>) -> Result<Layer> {
    let files = stage.join(name);
    fs::create_dir_all(&files)?;
    fill(&files)?;
    let file = format!("{name}.tar");
    let path = stage.join(&file).to_string_lossy().into_owned();
    let always_the_same = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"];
    let files = files.to_string_lossy().into_owned();
    run("tar", always_the_same.into_iter().chain(["-cf", &path, "-C", &files, "."]))?;
    let digest = run("sha256sum", [&path])?.split(' ').next().unwrap_or_default().to_owned();
    Ok(Layer { file, digest })
}

/// Writes an image's configuration and gives the names of its layers.
fn image(stage: &Path, name: &str, layers: &[&Layer], config: &serde_json::Value) -> Result<Vec<String>> {
    let mut config = config.clone();
    config["Env"] = json!(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]);
    let digests: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", layer.digest)).collect();
    let about = json!({
        "architecture": architecture(), "os": "linux", "created": "1970-01-01T00:00:00Z", "config": config,
        "rootfs": { "type": "layers", "diff_ids": digests },
        "history": layers.iter().map(|layer| json!({ "created_by": layer.file })).collect::<Vec<_>>(),
    });
    fs::write(stage.join(format!("{name}.json")), about.to_string())?;
    Ok(layers.iter().map(|layer| layer.file.clone()).collect())
}

/// The processor's name as images write it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn base_files(root: &Path) -> Result<()> {
    for dir in ["bin", "dev", "etc", "proc", "root", "sys", "tmp", "usr/bin", "usr/local/bin", "var"] {
        fs::create_dir_all(root.join(dir))?;
    }
    run("chmod", ["1777".as_ref(), root.join("tmp").as_os_str()])?;
    let busybox = busybox()?;
    fs::copy(&busybox, root.join("bin/busybox"))?;
    for applet in run(&busybox.to_string_lossy(), ["--list"])?.lines().filter(|name| *name != "busybox") {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )?;
    fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    Ok(())
}

fn server_files(root: &Path) -> Result<()> {
    let source = root.with_extension("c");
    fs::write(&source, TEST_SERVER)?;
    let program = root.join("testserver");
    let files = [program.as_os_str(), source.as_os_str()];
    let flags = ["-static", "-O1", "-s", "-pthread", "-o"].map(std::ffi::OsStr::new);
    run("gcc", flags.into_iter().chain(files))
        .context("cannot compile the test server (Debian: gcc, libc6-dev)")?;
    Ok(())
}
