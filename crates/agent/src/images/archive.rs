//! Image archives as `docker save` writes them, on their way from node to node.
//!
//! - An engine that has a layer does not look for it in the archive: so the layers that the receiver has are left out.
//! - Which entries are layers stands in the archive's last entry, `manifest.json`. So an archive is read twice where something is
//!   left out, and never kept.
//! - Nothing is buffered but a header and the manifest.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::Deserialize;

const BLOCK: usize = 512;
/// The largest manifest that is read.
const MANIFEST: u64 = 8 << 20;

/// Why bytes are no image archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Damaged {
    #[error("the engine's archive has a header that cannot be read")]
    Header,
    #[error("the engine's archive has no readable manifest")]
    Manifest,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    #[serde(rename = "Layers", default)]
    layers: Vec<String>,
}

/// The names of the layers' entries, the lowest first, from the content of `manifest.json`.
pub(super) fn layer_entries(manifest: &[u8]) -> Result<Vec<String>, Damaged> {
    let manifests: Vec<Manifest> = serde_json::from_slice(manifest).map_err(|_| Damaged::Manifest)?;
    manifests.into_iter().next().map(|manifest| manifest.layers).ok_or(Damaged::Manifest)
}

/// How many of the lowest layers of `wanted` an engine has that has these images: as many as one of them begins with.
pub(super) fn shared_layers<'a>(wanted: &[String], images: impl Iterator<Item = &'a [String]>) -> usize {
    let common = |image: &[String]| wanted.iter().zip(image).take_while(|(a, b)| a == b).count();
    images.map(common).max().unwrap_or_default()
}

enum At {
    /// So many bytes of a header are here.
    Header(Vec<u8>),
    /// In an entry: so many bytes are left of its content, and of its padding.
    Entry { left: u64, kind: Kind },
}
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Passed,
    Dropped,
    Manifest,
}

/// Takes an archive apart as it comes by, in pieces of any size: passes entries on but those named, and keeps the manifest.
pub(super) struct Filter {
    dropped: BTreeSet<String>,
    at: At,
    manifest: Vec<u8>,
    manifest_length: u64,
    /// Bytes of content that were left out.
    pub(super) saved: u64,
}

impl Filter {
    /// Leaves out the entries of these names.
    pub(super) fn new(dropped: BTreeSet<String>) -> Self {
        Self { dropped, at: At::Header(Vec::new()), manifest: Vec::new(), manifest_length: 0, saved: 0 }
    }

    /// Takes the next piece; what is to be passed on is added to `out`.
    pub(super) fn feed(&mut self, mut piece: Bytes, out: &mut Vec<Bytes>) -> Result<(), Damaged> {
        while !piece.is_empty() {
            match &mut self.at {
                At::Header(header) => {
                    let taken = piece.split_to(piece.len().min(BLOCK - header.len()));
                    header.extend_from_slice(&taken);
                    if header.len() == BLOCK {
                        let header = std::mem::take(header);
                        self.begin(header, out)?;
                    }
                }
                At::Entry { left, kind } => {
                    let length = usize::try_from(*left).unwrap_or(usize::MAX).min(piece.len());
                    let taken = piece.split_to(length);
                    *left -= taken.len() as u64;
                    let (ended, kind) = (*left == 0, *kind);
                    match kind {
                        Kind::Dropped => self.saved += taken.len() as u64,
                        Kind::Manifest => {
                            self.manifest.extend_from_slice(&taken);
                            out.push(taken);
                        }
                        Kind::Passed => out.push(taken),
                    }
                    if ended {
                        self.at = At::Header(Vec::new());
                    }
                }
            }
        }
        Ok(())
    }

    /// The manifest, once it came by.
    pub(super) fn manifest(&self) -> Option<&[u8]> {
        let length = usize::try_from(self.manifest_length).ok().filter(|length| *length > 0)?;
        self.manifest.get(..length)
    }

    fn begin(&mut self, header: Vec<u8>, out: &mut Vec<Bytes>) -> Result<(), Damaged> {
        // Two empty blocks end an archive; what comes after them is padding.
        if header.iter().all(|byte| *byte == 0) {
            out.push(header.into());
            return Ok(());
        }
        let size = number(&header[124..136]).ok_or(Damaged::Header)?;
        let name = name(&header);
        let kind = match name.as_str() {
            name if self.dropped.contains(name) => Kind::Dropped,
            "manifest.json" if size <= MANIFEST => {
                self.manifest_length = size;
                Kind::Manifest
            }
            _ => Kind::Passed,
        };
        if kind != Kind::Dropped {
            out.push(header.into());
        }
        let left = size.next_multiple_of(BLOCK as u64);
        if left > 0 {
            self.at = At::Entry { left, kind };
        }
        Ok(())
    }
}

/// A number of a header: octal digits, or, if the first bit is set, the bytes of a large one.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let (high, low) = field.split_at(field.len() - 8);
        let small = high[0] & 0x7f == 0 && high[1..].iter().all(|byte| *byte == 0);
        return small.then(|| u64::from_be_bytes(low.try_into().expect("eight bytes were split off")));
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

/// Name of an entry, its prefix before it.
fn name(header: &[u8]) -> String {
    let text = |field: &[u8]| {
        let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
        String::from_utf8_lossy(&field[..end]).into_owned()
    };
    let (name, prefix) = (text(&header[..100]), text(&header[345..500]));
    let posix = &header[257..263] == b"ustar\0";
    if posix && !prefix.is_empty() { format!("{prefix}/{name}") } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive of these entries.
    fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, content) in entries {
            let mut header = [0_u8; BLOCK];
            header[..name.len()].copy_from_slice(name.as_bytes());
            let size = format!("{:011o}\0", content.len());
            header[124..136].copy_from_slice(size.as_bytes());
            header[257..263].copy_from_slice(b"ustar\0");
            out.extend_from_slice(&header);
            out.extend_from_slice(content);
            out.resize(out.len().next_multiple_of(BLOCK), 0);
        }
        out.resize(out.len() + 2 * BLOCK, 0);
        out
    }

    fn filtered(archive: &[u8], piece: usize, dropped: &[&str]) -> (Vec<u8>, Filter) {
        let mut filter = Filter::new(dropped.iter().map(|name| (*name).to_owned()).collect());
        let mut out = Vec::new();
        for piece in archive.chunks(piece) {
            filter.feed(Bytes::copy_from_slice(piece), &mut out).unwrap();
        }
        (out.concat(), filter)
    }

    const MANIFEST: &[u8] =
        br#"[{"Config":"c.json","RepoTags":null,"Layers":["aa/layer.tar","bb/layer.tar"]}]"#;

    #[test]
    fn named_entries_are_left_out_wherever_the_archive_is_cut() {
        let large = vec![7; 3000];
        let whole: &[(&str, &[u8])] = &[
            ("aa/json", b"{}"),
            ("aa/layer.tar", &large),
            ("bb/layer.tar", b"small"),
            ("manifest.json", MANIFEST),
        ];
        let less: &[(&str, &[u8])] =
            &[("aa/json", b"{}"), ("bb/layer.tar", b"small"), ("manifest.json", MANIFEST)];
        for piece in [1, 7, 511, 512, 513, 4096, 1 << 20] {
            let (out, filter) = filtered(&archive(whole), piece, &["aa/layer.tar"]);
            assert_eq!(out, archive(less), "in pieces of {piece}");
            assert_eq!(filter.saved, 3072);
            assert_eq!(filter.manifest(), Some(MANIFEST));
            let (out, _) = filtered(&archive(whole), piece, &[]);
            assert_eq!(out, archive(whole));
        }
    }

    #[test]
    fn layers_are_named_by_the_manifest_in_order() {
        assert_eq!(layer_entries(MANIFEST).unwrap(), ["aa/layer.tar", "bb/layer.tar"]);
        assert_eq!(layer_entries(b"[]"), Err(Damaged::Manifest));
        assert_eq!(layer_entries(b"{"), Err(Damaged::Manifest));
    }

    #[test]
    fn what_is_no_archive_is_damaged() {
        let mut filter = Filter::new(BTreeSet::new());
        let garbage = Bytes::from(vec![b'x'; BLOCK]);
        assert_eq!(filter.feed(garbage, &mut Vec::new()), Err(Damaged::Header));
    }

    #[test]
    fn sizes_beyond_eight_gigabytes_are_read() {
        let mut field = [0_u8; 12];
        field[0] = 0x80;
        field[4..].copy_from_slice(&(9_u64 << 30).to_be_bytes());
        assert_eq!(number(&field), Some(9 << 30));
        assert_eq!(number(b"00000000644\0"), Some(0o644));
        assert_eq!(number(b"x0000000644\0"), None);
    }

    #[test]
    fn only_layers_from_the_lowest_on_count_as_shared() {
        let layers = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let wanted = layers(&["a", "b", "c"]);
        let images = [layers(&["a", "b", "x"]), layers(&["b", "c"]), layers(&["a"])];
        assert_eq!(shared_layers(&wanted, images.iter().map(Vec::as_slice)), 2);
        assert_eq!(shared_layers(&wanted, std::iter::empty()), 0);
    }
}
