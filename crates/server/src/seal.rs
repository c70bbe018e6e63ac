//! Sealing what must not lie in the store in plain text: the content of secrets and configs.
//!
//! The key lies beside the cluster's CA key, in a file of each server and never in the store. Sealing is ChaCha20-Poly1305
//! with a random nonce (RFC 8439), bound to the place it is stored at, so that sealed bytes moved elsewhere do not open.

use ring::{aead, hmac};

/// The key of a cluster's sealed things.
#[derive(Clone)]
pub struct SealKey([u8; 32]);

/// Sealed bytes that do not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the sealed content of `{place}` does not open with this server's key")]
pub struct CannotOpen {
    place: String,
}
impl CannotOpen {
    /// What lies there does not open.
    pub fn of(place: &str) -> Self {
        Self { place: place.to_owned() }
    }
}

impl SealKey {
    /// The key with these bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
    /// Its bytes, for the file it is kept in and for a server that joins.
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
    /// Names a content without telling anything about it to those who do not have the key, however short it is.
    pub fn digest(&self, content: &[u8]) -> String {
        hex::encode(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.0), content))
    }
    /// Seals `content` for `place` with a nonce that is used once: 12 random bytes.
    ///
    /// # Panics
    /// Never: neither key nor content can be of a wrong size.
    pub fn seal(&self, place: &str, content: &[u8], nonce: [u8; 12]) -> Vec<u8> {
        let mut sealed = content.to_vec();
        let tag = self
            .aead()
            .seal_in_place_separate_tag(
                aead::Nonce::assume_unique_for_key(nonce),
                aead::Aad::from(place),
                &mut sealed,
            )
            .expect("contents are far below the limit of 256 GiB");
        [&nonce[..], &sealed, tag.as_ref()].concat()
    }
    /// What was sealed for `place`.
    ///
    /// # Errors
    /// If the bytes are damaged, were sealed with another key or for another place.
    pub fn open(&self, place: &str, sealed: &[u8]) -> Result<Vec<u8>, CannotOpen> {
        let cannot = || CannotOpen::of(place);
        let (nonce, rest) = sealed.split_first_chunk::<12>().ok_or_else(cannot)?;
        let mut content = rest.to_vec();
        let length = self
            .aead()
            .open_in_place(aead::Nonce::assume_unique_for_key(*nonce), aead::Aad::from(place), &mut content)
            .map_err(|_| cannot())?
            .len();
        content.truncate(length);
        Ok(content)
    }
    fn aead(&self) -> aead::LessSafeKey {
        let key = aead::UnboundKey::new(&aead::CHACHA20_POLY1305, &self.0).expect("32 bytes are a key");
        aead::LessSafeKey::new(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_opens_in_its_place_only() {
        let key = SealKey::new([7; 32]);
        let sealed = key.seal("files/prod/shop/1", b"s3cret", [1; 12]);
        assert!(!sealed.windows(6).any(|window| window == b"s3cret"));
        assert_eq!(key.open("files/prod/shop/1", &sealed).unwrap(), b"s3cret");
        assert!(key.open("files/prod/shop/2", &sealed).is_err());
        assert!(SealKey::new([8; 32]).open("files/prod/shop/1", &sealed).is_err());
        assert!(key.open("files/prod/shop/1", &sealed[..10]).is_err());
    }

    #[test]
    fn digests_tell_contents_apart_and_need_the_key() {
        let key = SealKey::new([7; 32]);
        assert_eq!(key.digest(b"a"), key.digest(b"a"));
        assert_ne!(key.digest(b"a"), key.digest(b"b"));
        assert_ne!(key.digest(b"a"), SealKey::new([8; 32]).digest(b"a"));
    }
}
