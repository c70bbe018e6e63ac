//! Opens the file of an embedded store: the right one, whole, of a schema we know, and ours alone.
//!
//! - A file is created whole under another name and then linked into place, so an empty or half-made
//!   file at the store's own path is never a new store: it is a damaged one.
//! - Every page of the file is proven against its checksum before anything is read from it.
//! - A file that is refused is left as it was found.

use std::{
    fs::{self, File},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use redb::{Builder, Database, DatabaseError, ReadableDatabase, StorageError};

use super::rows::{ENTRIES, HISTORY, META, SCHEMA, meta};
use crate::{AnyError, StoreError};

/// Opens the store at `path`, which is created if there is none.
pub(super) fn open_or_create(path: &Path, cache: usize) -> Result<Database, StoreError> {
    match fs::symlink_metadata(path) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(path, cache)?,
        Err(error) => return Err(io_error(path, error)),
    }
    open(path, cache)
}

/// Opens the store at `path`, which is there.
pub(super) fn open(path: &Path, cache: usize) -> Result<Database, StoreError> {
    let length = fs::metadata(path).map_err(|error| io_error(path, error))?.len();
    if length == 0 {
        return Err(damaged(path, "the file is empty"));
    }
    let mut builder = Builder::new();
    builder.set_cache_size(cache).set_check_integrity_on_open(true);
    // The library asserts, in debug builds, what only a damaged file can violate.
    let database = catch_unwind(AssertUnwindSafe(|| builder.open(path)))
        .map_err(|_panic| damaged(path, "its pages contradict each other"))?
        .map_err(|error| database_error(path, error))?;
    check_schema(path, &database)?;
    Ok(database)
}

fn create(path: &Path, cache: usize) -> Result<(), StoreError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let made = made_beside(path);
    let outcome = fill(&made, cache)
        .and_then(|()| match fs::hard_link(&made, path) {
            // Another process was faster; its store is the store.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            outcome => outcome.map_err(|error| io_error(path, error)),
        })
        .and_then(|()| {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| io_error(folder, error))
        });
    // Should this fail, a small file is left over that the next creation by the same id replaces.
    let _ = fs::remove_file(&made);
    outcome
}

fn made_beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    path.with_file_name(name)
}

fn fill(path: &Path, cache: usize) -> Result<(), StoreError> {
    let _ = fs::remove_file(path);
    let database =
        Builder::new().set_cache_size(cache).create(path).map_err(|error| database_error(path, error))?;
    let filled = || -> Result<(), redb::Error> {
        let transaction = database.begin_write()?;
        transaction.open_table(ENTRIES)?;
        transaction.open_table(HISTORY)?;
        transaction.open_table(META)?.insert(meta::SCHEMA, u64::from(SCHEMA))?;
        transaction.commit()?;
        Ok(())
    };
    filled().map_err(|error| storage_error(path, error))?;
    drop(database);
    File::open(path).and_then(|file| file.sync_all()).map_err(|error| io_error(path, error))
}

fn check_schema(path: &Path, database: &Database) -> Result<(), StoreError> {
    let found = || -> Result<Option<u64>, redb::Error> {
        let transaction = database.begin_read()?;
        let found = transaction.open_table(META)?.get(meta::SCHEMA)?.map(|schema| schema.value());
        Ok(found)
    };
    let found = match found() {
        Ok(Some(found)) => u32::try_from(found).unwrap_or(u32::MAX),
        Ok(None)
        | Err(
            redb::Error::TableDoesNotExist(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TypeDefinitionChanged { .. },
        ) => return Err(damaged(path, "it is a database, but not of Wharf's")),
        Err(error) => return Err(storage_error(path, error)),
    };
    if found > SCHEMA {
        let what = format!("the store `{}`", path.display());
        return Err(StoreError::UnsupportedSchema { what, found, supported: SCHEMA });
    }
    Ok(())
}

/// What an error of the database means for the one who asked for something.
pub(super) fn storage_error(path: &Path, error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::Io(error) => io_error(path, error),
        error @ redb::Error::Corrupted(_) => damaged(path, error),
        error => StoreError::unavailable(path.display().to_string(), error),
    }
}

fn database_error(path: &Path, error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            StoreError::InUse { path: path.to_owned() }
        }
        DatabaseError::UpgradeRequired(_) | DatabaseError::RepairAborted => damaged(path, error),
        DatabaseError::Storage(StorageError::Io(error)) if speaks_of_content(&error) => damaged(path, error),
        error => storage_error(path, error),
    }
}

/// Whether an I/O error means that the file's content is wrong and not that it could not be read.
fn speaks_of_content(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

fn io_error(path: &Path, error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            StoreError::Full { place: path.display().to_string(), source: error.into() }
        }
        _ => StoreError::unavailable(path.display().to_string(), error),
    }
}

fn damaged(path: &Path, source: impl Into<AnyError>) -> StoreError {
    StoreError::DamagedFile { path: path.to_owned(), source: source.into() }
}
