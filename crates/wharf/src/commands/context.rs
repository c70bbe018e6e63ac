//! `context …`: which cluster, and as whom.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use wharf_api::transport::ServerAddress;

use crate::{
    Exit,
    cli::Global,
    commands::{now, paths},
    context::{Context as Entry, Contexts},
    hint,
    output::{Format, Output, rough},
};

/// Choose between clusters
#[derive(Debug, clap::Args)]
pub(crate) struct Context {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List contexts; `*` marks the current one
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  wharf context ls\n  wharf context ls --format json"
    )]
    Ls,
    /// Make a context the current one
    #[command(after_help = "Examples:\n  wharf context use prod")]
    Use {
        /// Its name
        name: String,
    },
    /// Show a context, without its key
    #[command(after_help = "Examples:\n  wharf context show\n  wharf context show prod --format json")]
    Show {
        /// Its name [default: the current one]
        name: Option<String>,
    },
    /// Print a context with its key, to bring it to another machine
    #[command(
        after_help = "Whoever has what this prints can do everything you can.\n\nExamples:\n  wharf context export | ssh laptop wharf context import prod -"
    )]
    Export {
        /// Its name [default: the current one]
        name: Option<String>,
    },
    /// Add a context that was exported elsewhere
    #[command(
        after_help = "Examples:\n  ssh server wharf context export | wharf context import prod -\n  wharf context import prod exported.json --force"
    )]
    Import {
        /// What to call it here
        name: String,
        /// The exported file, or `-` for standard input
        file: PathBuf,
        /// Replace a context of that name
        #[arg(long)]
        force: bool,
    },
    /// Change where a context's servers are, or its environment
    #[command(
        after_help = "Examples:\n  wharf context set prod --server 10.0.0.1 --server 10.0.0.2\n  wharf context set prod --default-env staging"
    )]
    Set {
        /// Its name
        name: String,
        /// Where a server answers; may be given several times
        #[arg(long = "server", value_name = "HOST[:PORT]")]
        servers: Vec<ServerAddress>,
        /// The environment of commands that name none
        #[arg(long = "default-env", value_name = "NAME")]
        environment: Option<String>,
    },
    /// Forget a context
    #[command(after_help = "Examples:\n  wharf context rm old")]
    Rm {
        /// Its name
        name: String,
    },
}

#[derive(Serialize)]
struct Shown {
    name: String,
    current: bool,
    servers: Vec<String>,
    user: String,
    environment: String,
    expires_at: Option<u64>,
}

pub(crate) fn run(args: Context, _global: &Global, out: &Output) -> Result<Exit> {
    let mut contexts = Contexts::load(&paths().contexts)?;
    match args.verb {
        Verb::Ls => {
            let all: Vec<_> =
                contexts.contexts.iter().map(|(name, entry)| shown(&contexts, name, entry)).collect();
            out.list(&all, &["NAME", "SERVERS", "USER", "ENVIRONMENT", "CERTIFICATE"], |context| {
                vec![
                    format!("{}{}", context.name, if context.current { " *" } else { "" }),
                    context.servers.join(","),
                    context.user.clone(),
                    context.environment.clone(),
                    good_for(context.expires_at),
                ]
            })?;
            if all.is_empty() {
                out.say("there are none; `wharf server init` on a server writes the first");
            }
        }
        Verb::Use { name } => {
            let name = contexts.pick(Some(&name))?.0.to_owned();
            out.say(&format!("`{name}` is the current context"));
            contexts.current = Some(name);
            contexts.save()?;
        }
        Verb::Show { name } => {
            let (name, entry) = contexts.pick(name.as_deref())?;
            let shown = shown(&contexts, name, entry);
            match out.format {
                Format::Json => out.json(&shown)?,
                Format::Table => {
                    out.data(&format!("name         {}", shown.name))?;
                    out.data(&format!("servers      {}", shown.servers.join(", ")))?;
                    out.data(&format!("user         {}", shown.user))?;
                    out.data(&format!("environment  {}", shown.environment))?;
                    out.data(&format!("certificate  {}", good_for(shown.expires_at)))?;
                    out.data(&format!("authority    sha256:{}", entry.trust.ca_hash().unwrap_or_default()))?;
                    out.data(&format!("kept in      {}", contexts.path().display()))?;
                }
            }
        }
        Verb::Export { name } => out.json(contexts.pick(name.as_deref())?.1)?,
        Verb::Import { name, file, force } => {
            if contexts.contexts.contains_key(&name) && !force {
                bail!(hint(
                    format!("there is a context `{name}` already"),
                    "choose another name, or give `--force` to replace it"
                ));
            }
            let text = if file.as_os_str() == "-" {
                std::io::read_to_string(std::io::stdin()).context("cannot read standard input")?
            } else {
                std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?
            };
            let entry: Entry = serde_json::from_str(&text).map_err(|error| {
                hint(
                    format!("this is no exported context: {error}"),
                    "`wharf context export` on the other machine prints one",
                )
            })?;
            entry.identity.peer().context("the context is damaged")?;
            contexts.put(&name, entry);
            contexts.save()?;
            out.say(&format!("context `{name}` was added to {}", contexts.path().display()));
        }
        Verb::Set { name, servers, environment } => {
            let name = contexts.pick(Some(&name))?.0.to_owned();
            if let Some(text) = &environment {
                text.parse::<wharf_model::EnvironmentName>()?;
            }
            if let Some(entry) = contexts.contexts.get_mut(&name) {
                if !servers.is_empty() {
                    entry.servers = servers;
                }
                if environment.is_some() {
                    entry.environment = environment;
                }
            }
            contexts.save()?;
            out.say(&format!("context `{name}` was changed"));
        }
        Verb::Rm { name } => {
            let name = contexts.pick(Some(&name))?.0.to_owned();
            contexts.contexts.remove(&name);
            if contexts.current.as_deref() == Some(&name) {
                contexts.current = None;
                out.say("it was the current one; choose another with `wharf context use`");
            }
            contexts.save()?;
            out.say(&format!("context `{name}` is forgotten"));
        }
    }
    Ok(Exit::Done)
}

fn shown(contexts: &Contexts, name: &str, entry: &Entry) -> Shown {
    let peer = entry.identity.peer().ok();
    Shown {
        name: name.to_owned(),
        current: contexts.current.as_deref() == Some(name),
        servers: entry.servers.iter().map(ToString::to_string).collect(),
        user: peer.as_ref().map_or_else(|| "damaged".into(), |peer| peer.kind.to_string()),
        environment: entry.environment.clone().unwrap_or_else(|| "default".into()),
        expires_at: peer.map(|peer| peer.expires.0),
    }
}

fn good_for(expires_at: Option<u64>) -> String {
    match expires_at {
        None => "damaged".into(),
        Some(at) if at <= now() => "expired".into(),
        Some(at) => format!("good for {}", rough(std::time::Duration::from_millis(at - now()))),
    }
}
