//! Devices that are given to tasks one by one: GPUs, and whatever else nodes say they have.
//!
//! - A device that can be told apart has an id, and is whole or in shares of thousandths; one that cannot is only counted.
//! - A GPU is a device whose kind is `gpu`, or ends with `-gpu` as in Swarm's `NVIDIA-GPU`. GPUs can always be told apart: those
//!   of a node that only counts them are numbered from 0, as drivers do.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::Bytes;

/// A whole device, in the unit of shares.
pub const WHOLE: u32 = 1000;

/// What sort of device something is, as nodes and services call it: `gpu`, `NVIDIA-GPU`, `ssd`. Case makes no difference.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceKind(String);

/// Text that is no kind of device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no kind of device: use 1 to 63 of a-z, A-Z, 0-9, `.`, `_` and `-`, starting with a letter")]
pub struct InvalidKind(String);

impl DeviceKind {
    /// GPUs, whoever made them.
    pub fn gpu() -> Self {
        Self("gpu".to_owned())
    }
    /// The kind as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// Whether devices of this kind are GPUs.
    pub fn is_gpu(&self) -> bool {
        self.maker_of_gpus().is_some()
    }
    /// Who made these GPUs, in lower case and empty if the kind does not say; `None` if they are none.
    pub fn maker_of_gpus(&self) -> Option<String> {
        let lower = self.0.to_ascii_lowercase();
        let maker = lower.strip_suffix("gpu")?;
        (maker.is_empty() || maker.ends_with(['-', '_']))
            .then(|| maker.trim_end_matches(['-', '_']).to_owned())
    }
    /// Whether a device of kind `other` is what is asked for by this one: plain `gpu` asks for GPUs of any kind.
    pub fn takes(&self, other: &Self) -> bool {
        self == other || (self.0.eq_ignore_ascii_case("gpu") && other.is_gpu())
    }
    /// The variable in which a container is told of its devices, as Swarm has it: `DOCKER_RESOURCE_GPU`.
    pub fn variable(&self) -> String {
        format!("DOCKER_RESOURCE_{}", self.0.to_ascii_uppercase())
    }
}
impl FromStr for DeviceKind {
    type Err = InvalidKind;
    fn from_str(text: &str) -> Result<Self, InvalidKind> {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let begins = text.starts_with(|c: char| c.is_ascii_alphabetic());
        if begins && text.len() <= 63 && text.chars().all(legal) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidKind(text.to_owned()))
        }
    }
}
impl TryFrom<String> for DeviceKind {
    type Error = InvalidKind;
    fn try_from(text: String) -> Result<Self, InvalidKind> {
        text.parse()
    }
}
impl From<DeviceKind> for String {
    fn from(kind: DeviceKind) -> Self {
        kind.0
    }
}
impl PartialEq for DeviceKind {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}
impl Eq for DeviceKind {}
impl PartialOrd for DeviceKind {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for DeviceKind {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0
            .bytes()
            .map(|byte| byte.to_ascii_lowercase())
            .cmp(other.0.bytes().map(|byte| byte.to_ascii_lowercase()))
    }
}
impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The devices of one kind that a node has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDevices {
    /// What they are.
    pub kind: DeviceKind,
    /// Those that can be told apart, in the order of their numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub named: Vec<NodeDevice>,
    /// How many there are that cannot. Always 0 of GPUs.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub count: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
const fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// A device that can be told apart from others of its kind.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeDevice {
    /// What the driver calls it: a UUID or a number.
    pub id: String,
    /// Which product it is, such as `A10`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Its memory, where it has its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// The driver that the engine asks for it, such as `nvidia`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
}

impl NodeDevices {
    /// So many devices of a kind: GPUs get numbers, others are only counted.
    pub fn counted(kind: DeviceKind, count: u64) -> Self {
        if !kind.is_gpu() {
            return Self { kind, named: Vec::new(), count };
        }
        let driver = kind.maker_of_gpus().filter(|maker| !maker.is_empty());
        let device = |number: u64| NodeDevice {
            id: number.to_string(),
            driver: driver.clone(),
            ..NodeDevice::default()
        };
        Self { named: (0..count.min(1024)).map(device).collect(), kind, count: 0 }
    }
    /// Devices of a kind with these ids.
    pub fn named(kind: DeviceKind, ids: impl IntoIterator<Item = String>) -> Self {
        let driver = kind.maker_of_gpus().filter(|maker| !maker.is_empty());
        let device = |id| NodeDevice { id, driver: driver.clone(), ..NodeDevice::default() };
        Self { named: ids.into_iter().map(device).collect(), kind, count: 0 }
    }
    /// How many there are.
    pub fn len(&self) -> u64 {
        self.count + u64::try_from(self.named.len()).unwrap_or(u64::MAX)
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
impl fmt::Display for NodeDevices {
    /// `4 gpu (T4)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.len(), self.kind)?;
        let mut models: Vec<_> = self.named.iter().filter_map(|device| device.model.as_deref()).collect();
        models.dedup();
        if models.is_empty() { Ok(()) } else { write!(f, " ({})", models.join(", ")) }
    }
}

/// What is no description of devices.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` does not say which devices there are: {because}; write for example `gpu=4,model=T4,memory=16GiB`, `gpu=GPU-1,GPU-2` or `ssd=3`"
)]
pub struct InvalidDevices {
    text: String,
    because: String,
}

impl FromStr for NodeDevices {
    type Err = InvalidDevices;
    /// `KIND=NUMBER` or `KIND=ID,ID…`, then `model=…`, `memory=…` in bytes or with a binary unit, and `driver=…` of all of them.
    fn from_str(text: &str) -> Result<Self, InvalidDevices> {
        let wrong = |because: String| InvalidDevices { text: text.to_owned(), because };
        let (kind, rest) = text.split_once('=').ok_or_else(|| wrong("it has no `=`".into()))?;
        let kind: DeviceKind = kind.trim().parse().map_err(|error: InvalidKind| wrong(error.to_string()))?;
        let (mut ids, mut settings) = (Vec::new(), NodeDevice::default());
        for part in rest.split(',').map(str::trim) {
            match part.split_once('=') {
                None if part.is_empty() => return Err(wrong("a device has no name".into())),
                None => ids.push(part.to_owned()),
                Some(("model", model)) => settings.model = Some(model.to_owned()),
                Some(("driver", driver)) => settings.driver = Some(driver.to_owned()),
                Some(("memory", size)) => {
                    settings.memory = Some(bytes(size).ok_or_else(|| wrong(format!("`{size}` is no size")))?);
                }
                Some((other, _)) => return Err(wrong(format!("`{other}` is not known"))),
            }
        }
        let number = match ids.as_slice() {
            [] => return Err(wrong("it names no device".into())),
            [only] => only.parse::<u64>().ok(),
            _ => None,
        };
        let mut devices = match number {
            Some(count) => Self::counted(kind, count),
            None => Self::named(kind, ids),
        };
        for device in &mut devices.named {
            device.model.clone_from(&settings.model);
            device.memory = settings.memory;
            device.driver = settings.driver.clone().or_else(|| device.driver.take());
        }
        Ok(devices)
    }
}

/// `16GiB`, `512MiB` or a number of bytes.
fn bytes(text: &str) -> Option<Bytes> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" | "kb" => 10,
        "m" | "mib" | "mb" => 20,
        "g" | "gib" | "gb" => 30,
        "t" | "tib" | "tb" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift).map(Bytes)
}

/// What a task has of its node's devices. Written with its node, and once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskDevice {
    /// What it is, as the node calls it.
    pub kind: DeviceKind,
    /// Which; absent if the node only counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// How much of it, in thousandths: [`WHOLE`] unless the task shares it, and so much for each of those that are only counted.
    pub share: u64,
    /// The driver that the engine asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
}
impl TaskDevice {
    /// Whether others have a part of it, or may.
    pub fn is_shared(&self) -> bool {
        self.id.is_some() && self.share < u64::from(WHOLE)
    }
}
impl fmt::Display for TaskDevice {
    /// `gpu GPU-1`, `0.5 of gpu 3`, `2 ssd`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.id {
            Some(id) if self.is_shared() => write!(f, "{} of {} {id}", thousandths(self.share), self.kind),
            Some(id) => write!(f, "{} {id}", self.kind),
            None => write!(f, "{} {}", self.share / u64::from(WHOLE), self.kind),
        }
    }
}

/// `0.5`, `2`, `0.125`
pub fn thousandths(share: u64) -> String {
    crate::Cpus(share).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_of_gpu_is_one_whoever_made_it() {
        let kind = |text: &str| text.parse::<DeviceKind>().unwrap();
        assert!(kind("gpu").takes(&kind("NVIDIA-GPU")) && kind("GPU").takes(&kind("amd_gpu")));
        assert!(!kind("NVIDIA-GPU").takes(&kind("gpu")), "who names a maker wants that one");
        assert!(kind("nvidia-gpu").takes(&kind("NVIDIA-GPU")));
        assert!(!kind("gpu").takes(&kind("xgpu")) && !kind("ssd").takes(&kind("hdd")));
        assert_eq!(kind("NVIDIA-GPU").maker_of_gpus().as_deref(), Some("nvidia"));
        assert_eq!(kind("gpu").variable(), "DOCKER_RESOURCE_GPU");
        assert!("4gpu".parse::<DeviceKind>().is_err() && "".parse::<DeviceKind>().is_err());
    }

    #[test]
    fn devices_are_said_in_words() {
        let read = |text: &str| text.parse::<NodeDevices>();
        let gpus = read("gpu=2,model=T4,memory=16GiB").unwrap();
        assert_eq!(gpus.to_string(), "2 gpu (T4)");
        assert_eq!((gpus.named[1].id.as_str(), gpus.named[1].memory), ("1", Some(Bytes(16 << 30))));
        let named = read("NVIDIA-GPU=GPU-a, GPU-b").unwrap();
        assert_eq!(named.named[1].id, "GPU-b");
        assert_eq!(named.named[0].driver.as_deref(), Some("nvidia"));
        assert_eq!(
            read("ssd=3").unwrap(),
            NodeDevices { kind: "ssd".parse().unwrap(), named: vec![], count: 3 }
        );
        assert_eq!(read("disk=sda").unwrap().named[0].id, "sda");
        for wrong in
            ["gpu", "gpu=", "gpu=1,colour=red", "gpu=1,memory=much", "=1", "gpu=a,,b", "gpu=model=T4"]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_a_task_has_is_said_in_words() {
        let device = |id: Option<&str>, share| TaskDevice {
            kind: "gpu".parse().unwrap(),
            id: id.map(Into::into),
            share,
            driver: None,
        };
        assert_eq!(device(Some("GPU-1"), 1000).to_string(), "gpu GPU-1");
        assert_eq!(device(Some("3"), 500).to_string(), "0.5 of gpu 3");
        assert_eq!(device(None, 2000).to_string(), "2 gpu");
    }
}
