//! Directories and files that no other user can plant, replace or redirect.
//!
//! | to do | call |
//! |---|---|
//! | use a directory for state, keys or logs | [`PrivateDir::open`] (creates it), [`PrivateDir::existing`] |
//! | read, replace, append to, or remove a file in it | [`PrivateDir::read`], [`write`](PrivateDir::write), [`append`](PrivateDir::append), [`remove`](PrivateDir::remove) |
//! | replace a file in any directory, without following a planted link | [`NewFile::beside`] |
//! | test a path before it is used | [`trusted`] |
//!
//! A directory is private when it belongs to this user, only this user can write to it, and no other user can replace
//! it: each directory above it belongs to root or this user and is not writable by others, unless it is sticky as
//! `/tmp` is. Symbolic links on the way must belong to root or this user. Root reads and writes below the directories
//! of root only.
//!
//! Files are opened relative to the held directory and never through a symbolic link. A new file has a random name
//! until it is complete, is created exclusively (`O_EXCL`), has its mode from the start, and is synced before and after
//! the rename. A file that is read must be regular, belong to root or this user, and not be writable by others.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, Stat},
    io::Errno,
    process::{getegid, geteuid},
};
use uuid::Uuid;

/// As many symbolic links as the kernel follows in one path.
const MOST_LINKS: usize = 40;
/// Write permission of the group, and of others.
const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// A private directory, held open: what is done through it is done in the directory that was verified.
#[derive(Debug)]
pub struct PrivateDir {
    path: PathBuf,
    fd: OwnedFd,
}

impl PrivateDir {
    /// Opens a directory, which is created with `mode` if it is absent, and so are missing parents.
    ///
    /// # Errors
    /// [`io::ErrorKind::PermissionDenied`] when it is not private; the message says why and what to do.
    pub fn open(path: &Path, mode: u32) -> io::Result<Self> {
        let path = walk(path, Some(mode))?.expect("what is absent is created");
        Self::hold(path)
    }

    /// Opens a directory that may be absent.
    ///
    /// # Errors
    /// As [`PrivateDir::open`].
    pub fn existing(path: &Path) -> io::Result<Option<Self>> {
        walk(path, None)?.map(Self::hold).transpose()
    }

    /// Opens a directory in this one, which is created with `mode` if it is absent.
    ///
    /// # Errors
    /// As [`PrivateDir::open`].
    pub fn subdirectory(&self, name: &str, mode: u32) -> io::Result<Self> {
        plain_name(name)?;
        Self::open(&self.path.join(name), mode)
    }

    fn hold(path: PathBuf) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&path, flags, Mode::empty()).map_err(|error| about(&path, error))?;
        let found = rustix::fs::fstat(&fd)?;
        if found.st_uid != geteuid().as_raw() {
            return Err(foreign(&path, &found));
        }
        if found.st_mode & (GROUP_WRITES | OTHERS_WRITE) != 0 {
            return Err(denied(format!(
                "other users can write to {}; inspect what is in it, then chmod go-w it",
                path.display()
            )));
        }
        Ok(Self { path, fd })
    }

    /// Its path, absolute and without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it another mode.
    ///
    /// # Errors
    /// When the file system does not allow it.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        Ok(rustix::fs::fchmod(&self.fd, Mode::from_raw_mode(mode))?)
    }

    /// Opens a file for reading; `None` when it is absent.
    ///
    /// # Errors
    /// [`io::ErrorKind::PermissionDenied`] when it is a symbolic link, not a regular file, belongs to another user, or
    /// can be written by others.
    pub fn file(&self, name: &str) -> io::Result<Option<File>> {
        match self.open_at(name, OFlags::RDONLY, 0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some),
        }
    }

    /// Reads a file of at most `most` octets; `None` when it is absent.
    ///
    /// # Errors
    /// As [`PrivateDir::file`]; or when it is larger.
    pub fn read(&self, name: &str, most: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = self.file(name)? else { return Ok(None) };
        // Reserved before the read: a buffer that grows leaves copies of a secret in memory.
        let size = usize::try_from(file.metadata()?.len().min(most)).unwrap_or_default();
        let mut octets = Vec::with_capacity(size + 1);
        if file.take(most + 1).read_to_end(&mut octets)? as u64 > most {
            let text = format!("{} is larger than {most} octets", self.path.join(name).display());
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        Ok(Some(octets))
    }

    /// Reads a text file as [`PrivateDir::read`] does.
    ///
    /// # Errors
    /// As [`PrivateDir::read`]; or when it is not UTF-8.
    pub fn read_text(&self, name: &str, most: u64) -> io::Result<Option<String>> {
        let text = self.read(name, most)?.map(String::from_utf8).transpose();
        text.map_err(|_| {
            let text = format!("{} is not UTF-8", self.path.join(name).display());
            io::Error::new(io::ErrorKind::InvalidData, text)
        })
    }

    /// Replaces a file or creates it: readers see the old content or the new one, also after a power failure.
    ///
    /// # Errors
    /// When the file system does not allow it; the old file is then still there.
    pub fn write(&self, name: &str, mode: u32, octets: &[u8]) -> io::Result<()> {
        let mut file = self.replace(name, mode)?;
        file.write_all(octets)?;
        file.commit()
    }

    /// Begins a replacement of a file, for what is written in several steps.
    ///
    /// # Errors
    /// When the file system does not allow it.
    pub fn replace(&self, name: &str, mode: u32) -> io::Result<NewFile> {
        plain_name(name)?;
        NewFile::create(self.fd.try_clone()?, self.path.join(name), name.to_owned(), mode)
    }

    /// Opens a file for reading and writing at its end; it is created with `mode` if it is absent.
    ///
    /// # Errors
    /// As [`PrivateDir::file`].
    pub fn append(&self, name: &str, mode: u32) -> io::Result<File> {
        self.open_at(name, OFlags::RDWR | OFlags::APPEND | OFlags::CREATE, mode)
    }

    /// Removes a file, or a symbolic link itself. Returns whether there was one.
    ///
    /// # Errors
    /// When the file system does not allow it.
    pub fn remove(&self, name: &str) -> io::Result<bool> {
        plain_name(name)?;
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) => rustix::fs::fsync(&self.fd)?,
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => return Err(about(&self.path.join(name), error)),
        }
        Ok(true)
    }

    fn open_at(&self, name: &str, flags: OFlags, mode: u32) -> io::Result<File> {
        plain_name(name)?;
        let path = self.path.join(name);
        // A pipe that was put there is not waited for.
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(mode)).map_err(|error| match error {
            Errno::LOOP => denied(format!("{} is a symbolic link; remove it", path.display())),
            error => about(&path, error),
        })?;
        let found = rustix::fs::fstat(&fd)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Err(denied(format!("{} is not a regular file; remove it", path.display())));
        }
        if !ours(found.st_uid) {
            return Err(foreign(&path, &found));
        }
        if found.st_mode & (GROUP_WRITES | OTHERS_WRITE) != 0 {
            return Err(denied(format!(
                "other users can write to {}; inspect it, then chmod go-w it",
                path.display()
            )));
        }
        Ok(fd.into())
    }
}

impl AsFd for PrivateDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A file under a random name, which takes its place with [`commit`](Self::commit). Dropped before, it is removed.
#[derive(Debug)]
pub struct NewFile {
    directory: OwnedFd,
    path: PathBuf,
    name: String,
    beside: Option<String>,
    file: File,
}

impl NewFile {
    /// Begins a file that will be at `path`, in any directory. What is at `path`, a symbolic link too, is replaced and
    /// not followed.
    ///
    /// # Errors
    /// When the path has no file name, or the directory does not allow it.
    pub fn beside(path: &Path, mode: u32) -> io::Result<Self> {
        let invalid = || io::Error::new(io::ErrorKind::InvalidInput, format!("{} names no file", path.display()));
        let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(invalid)?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(parent, flags, Mode::empty()).map_err(|error| about(parent, error))?;
        Self::create(directory, path.to_owned(), name.to_owned(), mode)
    }

    fn create(directory: OwnedFd, path: PathBuf, name: String, mode: u32) -> io::Result<Self> {
        // A name of 255 octets has no room for more.
        let beside = format!(".new-{}", Uuid::new_v4().simple());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode);
        let fd = rustix::fs::openat(&directory, &beside, flags, mode).map_err(|error| about(&path, error))?;
        let new = Self {
            directory,
            path,
            name,
            beside: Some(beside),
            file: fd.into(),
        };
        // Whatever the umask says.
        rustix::fs::fchmod(&new.file, mode)?;
        Ok(new)
    }

    /// The open file.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Puts it in its place, on the disk.
    ///
    /// # Errors
    /// When the file system does not allow it; the new file is then removed.
    pub fn commit(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        if let Some(beside) = &self.beside {
            rustix::fs::renameat(&self.directory, beside, &self.directory, &self.name)
                .map_err(|error| about(&self.path, error))?;
        }
        self.beside = None;
        Ok(rustix::fs::fsync(&self.directory)?)
    }
}

impl Write for NewFile {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.file.write(octets)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(beside) = &self.beside {
            let _ = rustix::fs::unlinkat(&self.directory, beside, AtFlags::empty());
        }
    }
}

/// The absolute path of something that no other user can replace, without symbolic links; `None` when it is absent. Its
/// own owner and mode are not looked at.
///
/// # Errors
/// [`io::ErrorKind::PermissionDenied`] when another user could replace it.
pub fn trusted(path: &Path) -> io::Result<Option<PathBuf>> {
    walk(path, None)
}

/// Follows a path component by component. Every directory is verified before a name in it is believed, so that what is
/// found cannot be changed by other users afterwards. With `create`, what is absent is created with that mode.
fn walk(path: &Path, create: Option<u32>) -> io::Result<Option<PathBuf>> {
    let absolute = std::path::absolute(path)?;
    let mut rest: Vec<PathBuf> = parts(&absolute);
    rest.reverse();
    let mut found = PathBuf::from("/");
    let mut links = 0;
    while let Some(part) = rest.pop() {
        if part == Path::new("..") {
            found.pop();
            continue;
        }
        verify_parent(&found)?;
        let here = found.join(&part);
        let status = match rustix::fs::lstat(&here) {
            Ok(status) => status,
            Err(Errno::NOENT) => {
                let Some(mode) = create else { return Ok(None) };
                match rustix::fs::mkdir(&here, Mode::from_raw_mode(mode)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(about(&here, error)),
                }
                rustix::fs::lstat(&here).map_err(|error| about(&here, error))?
            }
            Err(error) => return Err(about(&here, error)),
        };
        if FileType::from_raw_mode(status.st_mode) != FileType::Symlink {
            found = here;
            continue;
        }
        if !ours(status.st_uid) {
            return Err(foreign(&here, &status));
        }
        links += 1;
        if links > MOST_LINKS {
            return Err(about(path, Errno::LOOP));
        }
        let target = std::fs::read_link(&here)?;
        if target.is_absolute() {
            found = PathBuf::from("/");
        }
        rest.extend(parts(&target).into_iter().rev());
    }
    Ok(Some(found))
}

fn parts(path: &Path) -> Vec<PathBuf> {
    let part = |component: Component<'_>| match component {
        Component::Normal(name) => Some(PathBuf::from(name)),
        Component::ParentDir => Some(PathBuf::from("..")),
        _ => None,
    };
    path.components().filter_map(part).collect()
}

/// Whether no other user can replace what is in a directory and belongs to us or root.
fn verify_parent(path: &Path) -> io::Result<()> {
    let found = rustix::fs::lstat(path).map_err(|error| about(path, error))?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
        return Err(about(path, Errno::NOTDIR));
    }
    if !ours(found.st_uid) {
        return Err(foreign(path, &found));
    }
    // A group of the user alone is common; root's group is root's.
    let own_group = found.st_gid == getegid().as_raw() || found.st_gid == 0;
    let writable = match own_group {
        true => OTHERS_WRITE,
        false => OTHERS_WRITE | GROUP_WRITES,
    };
    if found.st_mode & writable != 0 && found.st_mode & STICKY == 0 {
        return Err(denied(format!(
            "other users can replace what is in {} (mode {:o}); choose another directory, or chmod go-w it",
            path.display(),
            found.st_mode & 0o7777
        )));
    }
    Ok(())
}

fn ours(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

fn plain_name(name: &str) -> io::Result<()> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        let text = format!("{name:?} is not the name of a file");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(())
}

fn foreign(path: &Path, found: &Stat) -> io::Error {
    denied(format!(
        "{} belongs to user {}, and this process runs as user {}; choose a directory of its own user",
        path.display(),
        found.st_uid,
        geteuid().as_raw()
    ))
}

fn denied(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, text)
}

/// An error of the system, with the path that it is about.
fn about(path: &Path, error: Errno) -> io::Error {
    let error = io::Error::from(error);
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink},
    };

    use super::*;

    const NOBODY: Option<u32> = Some(65534);

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn refusal<T: std::fmt::Debug>(result: io::Result<T>) -> String {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
        error.to_string()
    }

    #[test]
    fn a_private_directory_is_created_and_keeps_its_mode() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a/b");
        let dir = PrivateDir::open(&path, 0o711).unwrap();
        assert_eq!((mode(&path), mode(&home.path().join("a"))), (0o711, 0o711));
        dir.write("key", 0o600, b"first").unwrap();
        dir.write("key", 0o640, b"second").unwrap();
        assert_eq!(dir.read_text("key", 6).unwrap().as_deref(), Some("second"));
        assert_eq!(mode(&path.join("key")), 0o640);
        assert_eq!(dir.read("key", 5).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(dir.read("none", 5).unwrap(), None);
        writeln!(dir.append("log", 0o600).unwrap(), "one").unwrap();
        writeln!(dir.append("log", 0o600).unwrap(), "two").unwrap();
        assert_eq!(fs::read_to_string(path.join("log")).unwrap(), "one\ntwo\n");
        assert!(dir.remove("log").unwrap() && !dir.remove("log").unwrap());
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
        assert!(PrivateDir::existing(&home.path().join("none")).unwrap().is_none());
        assert_eq!(mode(PrivateDir::existing(&path).unwrap().unwrap().path()), 0o711);
        for name in ["", ".", "..", "a/b", "../key"] {
            assert!(
                dir.read(name, 1).is_err() && dir.write(name, 0o600, b"").is_err(),
                "{name}"
            );
        }
    }

    #[test]
    fn a_directory_that_other_users_can_write_to_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("state");
        fs::create_dir(&path).unwrap();
        for wide in [0o777, 0o1777, 0o775] {
            chmod(&path, wide);
            assert!(refusal(PrivateDir::open(&path, 0o700)).contains("other users can write to"));
        }
        chmod(&path, 0o700);
        chmod(home.path(), 0o777);
        assert!(refusal(PrivateDir::open(&path, 0o700)).contains("other users can replace"));
        // As /tmp: others may add names, and cannot take ours away.
        chmod(home.path(), 0o1777);
        PrivateDir::open(&path, 0o700).unwrap();
    }

    #[test]
    fn a_planted_link_or_writable_file_is_not_used() {
        let home = tempfile::tempdir().unwrap();
        let dir = PrivateDir::open(&home.path().join("state"), 0o700).unwrap();
        let victim = home.path().join("victim");
        fs::write(&victim, "kept").unwrap();
        symlink(&victim, dir.path().join("key")).unwrap();
        assert!(refusal(dir.read("key", 10)).contains("is a symbolic link"));
        assert!(refusal(dir.append("key", 0o600)).contains("is a symbolic link"));
        dir.write("key", 0o600, b"new").unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "kept");
        assert_eq!(dir.read("key", 10).unwrap().unwrap(), b"new");
        chmod(&dir.path().join("key"), 0o666);
        assert!(refusal(dir.read("key", 10)).contains("other users can write to"));
        fs::create_dir(dir.path().join("sub")).unwrap();
        assert!(refusal(dir.read("sub", 10)).contains("not a regular file"));
    }

    #[test]
    fn a_new_file_replaces_a_link_and_leaves_nothing_when_given_up() {
        let home = tempfile::tempdir().unwrap();
        let victim = home.path().join("victim");
        fs::write(&victim, "kept").unwrap();
        let path = home.path().join("out");
        symlink(&victim, &path).unwrap();
        drop(NewFile::beside(&path, 0o644).unwrap());
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 2);
        let mut file = NewFile::beside(&path, 0o644).unwrap();
        file.write_all(b"text").unwrap();
        file.commit().unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "kept");
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
        assert_eq!((fs::read_dir(home.path()).unwrap().count(), mode(&path)), (2, 0o644));
        assert!(NewFile::beside(Path::new("/"), 0o600).is_err());
    }

    #[test]
    fn links_on_the_way_are_resolved_once_and_end() {
        let home = tempfile::tempdir().unwrap();
        let real = home.path().join("real");
        fs::create_dir(&real).unwrap();
        symlink("real", home.path().join("link")).unwrap();
        symlink("loop", home.path().join("loop")).unwrap();
        let dir = PrivateDir::open(&home.path().join("link/../link/state"), 0o700).unwrap();
        assert_eq!(dir.path(), real.canonicalize().unwrap().join("state"));
        assert_eq!(
            trusted(&home.path().join("link")).unwrap().unwrap(),
            real.canonicalize().unwrap()
        );
        assert!(PrivateDir::open(&home.path().join("loop/state"), 0o700).is_err());
    }

    #[test]
    fn what_belongs_to_another_user_is_refused() {
        // Only root can give files away.
        if !geteuid().is_root() {
            return;
        }
        let home = tempfile::tempdir().unwrap();
        let theirs = home.path().join("theirs");
        fs::create_dir(&theirs).unwrap();
        fs::create_dir(theirs.join("ours")).unwrap();
        chown(&theirs, NOBODY, NOBODY).unwrap();
        for path in [theirs.clone(), theirs.join("ours"), theirs.join("new")] {
            assert!(refusal(PrivateDir::open(&path, 0o700)).contains("belongs to user 65534"));
        }
        assert!(!theirs.join("new").exists());
        let link = home.path().join("link");
        symlink("/", &link).unwrap();
        lchown(&link, NOBODY, NOBODY).unwrap();
        assert!(refusal(PrivateDir::open(&link.join("tmp"), 0o700)).contains("belongs to user 65534"));
        let dir = PrivateDir::open(&home.path().join("state"), 0o700).unwrap();
        dir.write("identity.json", 0o600, b"{}").unwrap();
        chown(dir.path().join("identity.json"), NOBODY, NOBODY).unwrap();
        assert!(refusal(dir.read("identity.json", 10)).contains("belongs to user 65534"));
    }
}
