//! `secret …` and `configs …`: what an environment keeps for its apps to mount as `external`.
//!
//! A secret's content goes one way: it is read from a file, a pipe or a terminal that does not show it, and never from an argument, which
//! every process of the machine can see.

use std::{
    io::{IsTerminal as _, Read as _, Write as _},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::Method;
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use wharf_api::v1;
use wharf_model::{Bytes, FileName};

use crate::{
    Exit,
    cli::Global,
    commands::{ago, client_name, confirm},
    connect::{Cluster, query},
    hint,
    output::{Format, Output},
};

/// Larger ones are refused by servers; so much is read at most.
const LARGEST: u64 = 2 << 20;

/// Keep secrets that apps mount as `external: true`
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A secret belongs to an environment (`--env`) and has versions. An app takes the newest with its next `up`, which names\nthe services it replaces for that; what runs keeps what it has. Nobody can read a secret back, except the tasks that mount it."
)]
pub(crate) struct Secret {
    #[command(subcommand)]
    verb: SecretVerb,
}

#[derive(Debug, clap::Subcommand)]
enum SecretVerb {
    /// Make a secret from a file, standard input or what is typed, or a new version of one
    #[command(
        after_help = "Examples:\n  wharf secret create db_password                      asks for it, and does not show it\n  wharf secret create db_password password.txt\n  printf %s \"$PASSWORD\" | wharf secret create db_password -\n  wharf secret create db_password - --replace < new.txt  a new version, which apps take with their next `up`"
    )]
    Create(Create),
    /// List the secrets of the environment
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  wharf secret ls\n  wharf secret ls --env prod --format json"
    )]
    Ls {
        /// Of all environments
        #[arg(long, short)]
        all: bool,
    },
    /// Show everything known of a secret but its content
    #[command(after_help = "Examples:\n  wharf secret inspect db_password")]
    Inspect {
        /// Its name
        #[arg(required = true)]
        name: Vec<FileName>,
    },
    /// Remove a secret that no app uses
    #[command(after_help = "Examples:\n  wharf secret rm old_password\n  wharf secret rm -y one two")]
    Rm(Rm),
}

/// Keep configs that apps mount as `external: true`
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A config belongs to an environment (`--env`) and has versions. An app takes the newest with its next `up`, which names\nthe services it replaces for that; what runs keeps what it has. (`wharf config` prints the Compose file.)"
)]
pub(crate) struct Configs {
    #[command(subcommand)]
    verb: ConfigsVerb,
}

#[derive(Debug, clap::Subcommand)]
enum ConfigsVerb {
    /// Make a config from a file or standard input, or a new version of one
    #[command(
        after_help = "Examples:\n  wharf configs create nginx.conf ./nginx.conf\n  wharf configs create nginx.conf ./nginx.conf --replace     a new version, which apps take with their next `up`"
    )]
    Create(Create),
    /// List the configs of the environment
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  wharf configs ls\n  wharf configs ls --env prod --format json"
    )]
    Ls {
        /// Of all environments
        #[arg(long, short)]
        all: bool,
    },
    /// Show everything known of a config, its content among it
    #[command(after_help = "Examples:\n  wharf configs inspect nginx.conf")]
    Inspect {
        /// Its name
        #[arg(required = true)]
        name: Vec<FileName>,
    },
    /// Print a config's content
    #[command(
        after_help = "Examples:\n  wharf configs cat nginx.conf\n  wharf configs cat nginx.conf --version 2 > before.conf"
    )]
    Cat {
        /// Its name
        name: FileName,
        /// Of this version instead of the newest
        #[arg(long, value_name = "NUMBER")]
        version: Option<u64>,
    },
    /// Remove a config that no app uses
    #[command(after_help = "Examples:\n  wharf configs rm old.conf\n  wharf configs rm -y one two")]
    Rm(Rm),
}

/// What to make of which content.
#[derive(Debug, clap::Args)]
struct Create {
    /// Its name, by which apps ask for it
    name: FileName,
    /// The file with the content; `-` is standard input, which is also read if none is named
    file: Option<PathBuf>,
    /// If there is one of this name: make a new version of it
    #[arg(long)]
    replace: bool,
    /// A label; may be given several times
    #[arg(long = "label", short, value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
}

/// What to remove.
#[derive(Debug, clap::Args)]
struct Rm {
    /// Its name
    #[arg(required = true)]
    name: Vec<FileName>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() { Err("write `KEY=VALUE`".into()) } else { Ok((key.into(), value.into())) }
}

/// What differs between the two kinds.
struct Kind {
    /// `secret`
    name: &'static str,
    /// `secrets`
    plural: &'static str,
    /// `wharf secret`
    command: &'static str,
}
const SECRET: Kind = Kind { name: "secret", plural: "secrets", command: "wharf secret" };
const CONFIG: Kind = Kind { name: "config", plural: "configs", command: "wharf configs" };

impl Kind {
    fn path(&self, cluster: &Cluster, name: &FileName) -> String {
        format!("/v1/{}/{}/{name}", self.plural, cluster.environment)
    }
}

pub(crate) async fn secret(args: Secret, global: &Global, out: &Output) -> Result<Exit> {
    match args.verb {
        SecretVerb::Create(wish) => create(&SECRET, wish, global, out).await,
        SecretVerb::Ls { all } => ls(&SECRET, all, global, out).await,
        SecretVerb::Inspect { name } => inspect(&SECRET, &name, global, out).await,
        SecretVerb::Rm(wish) => rm(&SECRET, wish, global, out).await,
    }
}

pub(crate) async fn configs(args: Configs, global: &Global, out: &Output) -> Result<Exit> {
    match args.verb {
        ConfigsVerb::Create(wish) => create(&CONFIG, wish, global, out).await,
        ConfigsVerb::Ls { all } => ls(&CONFIG, all, global, out).await,
        ConfigsVerb::Inspect { name } => inspect(&CONFIG, &name, global, out).await,
        ConfigsVerb::Cat { name, version } => cat(&name, version, global).await,
        ConfigsVerb::Rm(wish) => rm(&CONFIG, wish, global, out).await,
    }
}

async fn create(kind: &Kind, wish: Create, global: &Global, out: &Output) -> Result<Exit> {
    let content = read(kind, wish.file.as_deref(), out)?;
    let cluster = Cluster::dial(global).await?;
    let request = v1::FileCreate {
        content: BASE64.encode(&content),
        labels: wish.labels.into_iter().collect(),
        replace: wish.replace,
        client: client_name(),
    };
    let created: v1::FileCreated =
        cluster.client.call(Method::POST, &kind.path(&cluster, &wish.name), &request).await?;
    if out.format == Format::Json {
        out.json(&created)?;
        return Ok(Exit::Done);
    }
    let what = format!("{} {} of environment {}", kind.name, wish.name, cluster.environment);
    let version = created.version;
    out.say(&match created.changed {
        true => format!("{what} is at version {version}"),
        false => format!("{what} has this content already: it stays at version {version}"),
    });
    if !created.behind.is_empty() {
        let behind: Vec<_> =
            created.behind.iter().map(|used| format!("{} (version {})", used.app, used.version)).collect();
        out.say(&format!("still on an older version until their next `wharf up`: {}", behind.join(", ")));
    }
    Ok(Exit::Done)
}

/// The content, from where it was said to be.
fn read(kind: &Kind, file: Option<&Path>, out: &Output) -> Result<Vec<u8>> {
    let piped = file.is_none_or(|file| file == Path::new("-"));
    let mut content = Vec::new();
    match file {
        Some(path) if !piped => {
            let shown = path.display();
            let file = std::fs::File::open(path).with_context(|| format!("cannot open {shown}"))?;
            file.take(LARGEST).read_to_end(&mut content).with_context(|| format!("cannot read {shown}"))?;
        }
        None if std::io::stdin().is_terminal() => return ask(kind),
        _ => {
            let stdin = std::io::stdin().lock();
            stdin.take(LARGEST).read_to_end(&mut content).context("cannot read standard input")?;
            let lines = content.split_inclusive(|byte| *byte == b'\n').count();
            if kind.name == SECRET.name && lines == 1 && content.ends_with(b"\n") {
                out.say(
                    "note: the content ends with a line break, as `echo` writes it; `printf %s` writes none",
                );
            }
        }
    }
    if content.is_empty() {
        bail!(hint(
            format!("the content of the {} is empty", kind.name),
            "name a file, or pipe the content in"
        ));
    }
    Ok(content)
}

/// Asks for the content on the terminal, which does not show it.
fn ask(kind: &Kind) -> Result<Vec<u8>> {
    let stdin = std::io::stdin();
    let before = tcgetattr(stdin.as_fd()).context("cannot ask the terminal")?;
    let mut silent = before.clone();
    silent.local_flags.remove(LocalFlags::ECHO);
    let line = |question: &str| -> Result<String> {
        let mut err = std::io::stderr().lock();
        write!(err, "{question}: ").and_then(|()| err.flush())?;
        let mut text = String::new();
        stdin.lock().read_line(&mut text)?;
        writeln!(err)?;
        Ok(text.trim_end_matches(['\n', '\r']).to_owned())
    };
    use std::io::BufRead as _;
    tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &silent).context("cannot set the terminal")?;
    let answers =
        line(&format!("the {} (not shown)", kind.name)).and_then(|first| Ok((first, line("again")?)));
    tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &before).context("cannot set the terminal back")?;
    let (first, second) = answers?;
    if first.is_empty() {
        bail!("nothing was typed; nothing was made");
    }
    if first != second {
        bail!("the two differ; nothing was made");
    }
    Ok(first.into_bytes())
}

async fn ls(kind: &Kind, all: bool, global: &Global, out: &Output) -> Result<Exit> {
    let cluster = Cluster::dial(global).await?;
    let of =
        if all { String::new() } else { format!("?environment={}", query(cluster.environment.as_str())) };
    let files: Vec<v1::NamedFile> = cluster.client.get(&format!("/v1/{}{of}", kind.plural)).await?;
    let mut headers = vec!["NAME", "VERSION", "SIZE", "CHANGED", "LABELS", "USED BY"];
    if all {
        headers.insert(0, "ENVIRONMENT");
    }
    out.list(&files, &headers, |file| {
        let labels: Vec<_> = file.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let users = file.used_by.iter().map(|used| match used.version == file.version {
            true => used.app.clone(),
            false => format!("{} (version {})", used.app, used.version),
        });
        let mut row = vec![
            file.name.clone(),
            file.version.to_string(),
            Bytes(file.size).to_string(),
            format!("{} ago", ago(file.updated_at)),
            labels.join(","),
            users.collect::<Vec<_>>().join(", "),
        ];
        if all {
            row.insert(0, file.environment.clone());
        }
        row
    })?;
    if files.is_empty() {
        let place = if all { String::new() } else { format!(" in environment `{}`", cluster.environment) };
        out.say(&format!(
            "there are no {}{place}; `{} create NAME FILE` makes one",
            kind.plural, kind.command
        ));
    }
    Ok(Exit::Done)
}

async fn inspect(kind: &Kind, names: &[FileName], global: &Global, out: &Output) -> Result<Exit> {
    let cluster = Cluster::dial(global).await?;
    let mut files = Vec::new();
    for name in names {
        files.push(cluster.client.get::<v1::NamedFile>(&kind.path(&cluster, name)).await?);
    }
    match files.as_slice() {
        [file] => out.json(file)?,
        files => out.json(&files)?,
    }
    Ok(Exit::Done)
}

async fn cat(name: &FileName, version: Option<u64>, global: &Global) -> Result<Exit> {
    let cluster = Cluster::dial(global).await?;
    let of = version.map(|version| format!("?version={version}")).unwrap_or_default();
    let file: v1::NamedFile = cluster.client.get(&format!("{}{of}", CONFIG.path(&cluster, name))).await?;
    let content =
        BASE64.decode(file.content.unwrap_or_default()).context("the server's answer is damaged")?;
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&content).and_then(|()| stdout.flush()).map_err(crate::GoneReader::or)?;
    Ok(Exit::Done)
}

async fn rm(kind: &Kind, wish: Rm, global: &Global, out: &Output) -> Result<Exit> {
    let cluster = Cluster::dial(global).await?;
    // A mistyped name is said before anything is asked or removed.
    for name in &wish.name {
        cluster.client.get::<v1::NamedFile>(&kind.path(&cluster, name)).await?;
    }
    let names: Vec<_> = wish.name.iter().map(FileName::as_str).collect();
    let what = if names.len() == 1 { kind.name } else { kind.plural };
    let question = format!("Remove {what} {} of environment {}?", names.join(", "), cluster.environment);
    if !wish.yes && !confirm(&question)? {
        out.say("nothing was removed");
        return Ok(Exit::Failed);
    }
    for name in &wish.name {
        let _nothing: Option<()> =
            cluster.client.call(Method::DELETE, &kind.path(&cluster, name), &()).await?;
        out.say(&format!("{} {name} is removed", kind.name));
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    #[test]
    fn labels_have_keys() {
        assert_eq!(super::label("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(super::label("a"), Ok(("a".into(), String::new())));
        assert!(super::label("=b").is_err());
    }
}
