//! Where a file of a target is: its path followed component by component, with the directory held open.
//!
//! The agent may run as root in directories that other users share. A path is refused when another user could decide
//! where it leads:
//!
//! * each directory and each symbolic link on the way belongs to root, to the agent's user, or to the owner of the file
//!   that is replaced;
//! * a directory that other users can write to is sticky, as `/tmp` is, and what is used in it belongs to root or to the
//!   agent's user.
//!
//! Links within these rules are followed, so that the links of certbot (`live/` to `archive/`) and of Kubernetes
//! (`..data`) work: the file behind the link is replaced, not the link. All work on the file is done relative to the held
//! directory, never by path.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};

use crate::attributes::Acl;

/// As many symbolic links as the kernel follows in one path.
const MAX_LINKS: usize = 40;
const GROUP_WRITE: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// The place of a file, which may be absent.
#[derive(Debug)]
pub(crate) struct Place {
    directory: OwnedFd,
    directory_path: PathBuf,
    /// Device and inode of the directory.
    directory_id: (u64, u64),
    name: OsString,
}

/// What the last component is taken for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    /// A file that can be replaced, or a symbolic link to one.
    File,
    /// A name, whatever has it.
    Name,
}

impl Place {
    /// Resolves the path of a target's file. [`Place::path`] is then the path without symbolic links, which is the one
    /// to check against the directories that targets may use.
    ///
    /// # Errors
    /// Another user could decide where the path leads; or it leads to something that a rename cannot replace: a
    /// directory, a device, a mount point, an immutable file. The text names the component.
    pub(crate) fn resolve(path: &Path) -> io::Result<Self> {
        walk(path, Last::File)
    }

    /// The place of a path that was resolved before, whatever has its name now.
    ///
    /// # Errors
    /// Another user could decide where the path leads; [`io::ErrorKind::NotFound`] when the directory is gone.
    pub(crate) fn resolved_before(path: &Path) -> io::Result<Self> {
        walk(path, Last::Name)
    }

    /// The absolute path, without symbolic links.
    pub(crate) fn path(&self) -> PathBuf {
        self.path_of(&self.name)
    }

    /// The path of another name in the same directory.
    pub(crate) fn path_of(&self, name: &OsStr) -> PathBuf {
        self.directory_path.join(name)
    }

    /// The name of the file in its directory.
    pub(crate) fn name(&self) -> &OsStr {
        &self.name
    }

    /// The name of the file with `suffix`.
    pub(crate) fn name_with(&self, suffix: &str) -> OsString {
        let mut name = self.name.clone();
        name.push(suffix);
        name
    }

    /// Whether both are the same name in the same directory, however they were reached.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.directory_id == other.directory_id && self.name == other.name
    }

    /// Opens a regular file of the directory for reading; `None` when it is absent.
    ///
    /// # Errors
    /// It is something else, or cannot be read.
    pub(crate) fn open(&self, name: &OsStr) -> io::Result<Option<File>> {
        // A pipe that was put there is not waited for.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.directory, name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(self.failed("open", name, error)),
        };
        match file.metadata()?.is_file() {
            true => Ok(Some(file)),
            false => Err(self.failed("read", name, io::Error::other("it is not a regular file"))),
        }
    }

    /// Reads a file of at most `max_bytes`; `None` when it is absent.
    ///
    /// # Errors
    /// As [`Place::open`]; or it is larger.
    pub(crate) fn read(&self, name: &OsStr, max_bytes: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = self.open(name)? else { return Ok(None) };
        let about = |error| self.failed("read", name, error);
        // Reserved before the read: a buffer that grows leaves copies of a key in memory.
        let size = file.metadata().map_err(about)?.size().min(max_bytes);
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default() + 1);
        let read = file.take(max_bytes + 1).read_to_end(&mut bytes).map_err(about)?;
        match read as u64 > max_bytes {
            true => Err(about(io::Error::other(format!("it is larger than {max_bytes} bytes")))),
            false => Ok(Some(bytes)),
        }
    }

    /// Creates a file that must not exist, mode 0600.
    ///
    /// # Errors
    /// It exists, or cannot be created.
    pub(crate) fn create(&self, name: &OsStr) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let created = rustix::fs::openat(&self.directory, name, flags, Mode::from_raw_mode(0o600));
        created
            .map(File::from)
            .map_err(|error| self.failed("create", name, error))
    }

    /// Gives the file `from` the name `to`, in place of what had it.
    ///
    /// # Errors
    /// The file system refuses.
    pub(crate) fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        rustix::fs::renameat(&self.directory, from, &self.directory, to)
            .map_err(|error| self.failed("replace", to, error))
    }

    /// Gives the file `from` the name `to`, which must be free.
    ///
    /// # Errors
    /// The name is taken, or the file system refuses.
    pub(crate) fn rename_new(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        let renamed = rustix::fs::renameat_with(&self.directory, from, &self.directory, to, RenameFlags::NOREPLACE);
        match renamed {
            // Not every file system has this flag.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => self.rename(from, to),
            renamed => renamed.map_err(|error| self.failed("create", to, error)),
        }
    }

    /// Gives a file a second name. False when the file system has no such names.
    pub(crate) fn link(&self, from: &OsStr, to: &OsStr) -> bool {
        rustix::fs::linkat(&self.directory, from, &self.directory, to, AtFlags::empty()).is_ok()
    }

    /// Removes a file that may be absent.
    ///
    /// # Errors
    /// The file system refuses.
    pub(crate) fn remove(&self, name: &OsStr) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(self.failed("remove", name, error)),
        }
    }

    /// Whether the directory has a regular file of this name.
    ///
    /// # Errors
    /// The file system refuses.
    pub(crate) fn has(&self, name: &OsStr) -> io::Result<bool> {
        match rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(self.failed("find", name, error)),
        }
    }

    /// Makes the names in the directory durable.
    ///
    /// # Errors
    /// The disk failed.
    pub(crate) fn sync(&self) -> io::Result<()> {
        rustix::fs::fsync(&self.directory).map_err(|error| failed("sync", &self.directory_path, error))
    }

    fn failed(&self, step: &str, name: &OsStr, error: impl Into<io::Error>) -> io::Error {
        failed(step, &self.path_of(name), error)
    }
}

/// An error that names the step and the file.
pub(crate) fn failed(step: &str, path: &Path, error: impl Into<io::Error>) -> io::Error {
    let error = error.into();
    io::Error::new(error.kind(), format!("cannot {step} {}: {error}", path.display()))
}

/// A directory on the way.
struct Held {
    fd: OwnedFd,
    path: PathBuf,
    stat: Stat,
}

/// Something on the way that belongs to neither root nor the agent's user: right only when the file has the same owner.
struct Foreign {
    uid: u32,
    what: String,
}

fn walk(path: &Path, last: Last) -> io::Result<Place> {
    let about = |error: io::Error| failed("use", path, error);
    if !path.is_absolute() {
        return Err(about(io::Error::other("it is not an absolute path")));
    }
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root =
        rustix::fs::open("/", directory, Mode::empty()).map_err(|error| failed("open", Path::new("/"), error))?;
    let mut foreign = Vec::new();
    let mut held = vec![hold(root, PathBuf::from("/"), None, &mut foreign)?];
    let mut rest = parts(path);
    let mut links = 0;
    loop {
        let here = held.last().expect("the root is never left");
        let Some(part) = rest.pop() else {
            return Err(about(io::Error::other("it is a directory")));
        };
        if part == ".." {
            if held.len() > 1 {
                held.pop();
            }
            continue;
        }
        let child = here.path.join(&part);
        let is_last = rest.is_empty();
        if !is_last {
            match rustix::fs::openat(&here.fd, &part, directory, Mode::empty()) {
                Ok(fd) => {
                    let next = hold(fd, child, Some(here), &mut foreign)?;
                    held.push(next);
                    continue;
                }
                // Perhaps a symbolic link.
                Err(Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(failed("open", &child, error)),
            }
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = match rustix::fs::openat(&here.fd, &part, flags, Mode::empty()) {
            Ok(found) => found,
            Err(Errno::NOENT) if is_last => return finish(&held, part, None, &foreign),
            Err(error) => return Err(failed("open", &child, error)),
        };
        let stat = rustix::fs::fstat(&found).map_err(|error| failed("open", &child, error))?;
        match FileType::from_raw_mode(stat.st_mode) {
            _ if is_last && last == Last::Name => {
                belongs(here, &child, &stat, "file", &mut Vec::new())?;
                return finish(&held, part, Some(&stat), &foreign);
            }
            FileType::Symlink => {
                belongs(here, &child, &stat, "symbolic link", &mut foreign)?;
                links += 1;
                if links > MAX_LINKS {
                    return Err(about(Errno::LOOP.into()));
                }
                let target = rustix::fs::readlinkat(&found, "", Vec::new());
                let target = target.map_err(|error| failed("read the symbolic link", &child, error))?;
                let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                if target.is_absolute() {
                    held.truncate(1);
                }
                rest.extend(parts(&target));
            }
            FileType::RegularFile if is_last => {
                belongs(here, &child, &stat, "file", &mut Vec::new())?;
                replaceable(&found).map_err(|error| failed("replace", &child, error))?;
                return finish(&held, part, Some(&stat), &foreign);
            }
            _ if is_last => {
                let text =
                    "it is not a regular file; a certificate or key is written to a file in a directory that exists";
                return Err(failed("use", &child, io::Error::other(text)));
            }
            _ => return Err(failed("open", &child, Errno::NOTDIR)),
        }
    }
}

/// The components in reverse order, without `.`.
fn parts(path: &Path) -> Vec<OsString> {
    let part = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    };
    let mut parts: Vec<_> = path.components().filter_map(part).collect();
    parts.reverse();
    parts
}

fn hold(fd: OwnedFd, path: PathBuf, parent: Option<&Held>, foreign: &mut Vec<Foreign>) -> io::Result<Held> {
    let stat = rustix::fs::fstat(&fd).map_err(|error| failed("open", &path, error))?;
    match parent {
        Some(parent) => belongs(parent, &path, &stat, "directory", foreign)?,
        None if !trusted(stat.st_uid) => foreign.push(Foreign {
            uid: stat.st_uid,
            what: "the directory /".to_owned(),
        }),
        None => {}
    }
    Ok(Held { fd, path, stat })
}

/// Checks what was found in `parent`, and notes what belongs to another user.
fn belongs(parent: &Held, path: &Path, stat: &Stat, kind: &str, foreign: &mut Vec<Foreign>) -> io::Result<()> {
    let ours = trusted(stat.st_uid);
    if others_write(parent) {
        let directory = parent.path.display();
        if parent.stat.st_mode & STICKY == 0 {
            return Err(denied(format!(
                "cannot use {}: other users can replace what is in {directory} (mode {:o}); chmod go-w it, or choose \
                 another directory",
                path.display(),
                parent.stat.st_mode & 0o7777
            )));
        }
        if !ours {
            return Err(denied(format!(
                "cannot use {}: this {kind} belongs to user {}, in {directory}, to which every user can write; choose \
                 another directory",
                path.display(),
                stat.st_uid
            )));
        }
    }
    if !ours {
        foreign.push(Foreign {
            uid: stat.st_uid,
            what: format!("the {kind} {}", path.display()),
        });
    }
    Ok(())
}

fn finish(held: &[Held], name: OsString, file: Option<&Stat>, foreign: &[Foreign]) -> io::Result<Place> {
    let here = held.last().expect("the root is never left");
    let path = here.path.join(&name);
    if let Some(Foreign { uid, what }) = foreign
        .iter()
        .find(|foreign| file.is_none_or(|file| file.st_uid != foreign.uid))
    {
        let owner = match file {
            Some(file) => format!("the file's owner (user {})", file.st_uid),
            None => "to the owner of the file, which does not exist yet".to_owned(),
        };
        return Err(denied(format!(
            "cannot use {}: {what} belongs to user {uid}, and not to root, to the agent's user (user {}) or {owner}",
            path.display(),
            geteuid().as_raw()
        )));
    }
    if others_write(here) && here.stat.st_mode & STICKY == 0 {
        return Err(denied(format!(
            "cannot use {}: other users can replace what is in {} (mode {:o}); chmod go-w it, or choose another directory",
            path.display(),
            here.path.display(),
            here.stat.st_mode & 0o7777
        )));
    }
    // Opened for reading, so that it can be synced.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(&here.fd, ".", flags, Mode::empty());
    Ok(Place {
        directory: directory.map_err(|error| failed("open the directory", &here.path, error))?,
        directory_path: here.path.clone(),
        directory_id: (here.stat.st_dev, here.stat.st_ino),
        name,
    })
}

/// Whether a rename can put another file in the place of this one.
fn replaceable(file: &OwnedFd) -> io::Result<()> {
    // Kernels before 4.11 do not tell; the rename says so then, and is undone.
    let Ok(found) = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::empty()) else {
        return Ok(());
    };
    let refused = [
        (
            StatxAttributes::MOUNT_ROOT,
            "it is a mount point, and a file that is mounted by itself cannot be replaced in one step; mount its \
             directory instead",
        ),
        (StatxAttributes::IMMUTABLE, "it is immutable; chattr -i it"),
        (StatxAttributes::APPEND, "it can only be appended to; chattr -a it"),
    ];
    match refused
        .into_iter()
        .find(|(attribute, _)| found.stx_attributes.contains(*attribute))
    {
        Some((_, why)) => Err(io::Error::new(io::ErrorKind::ResourceBusy, why)),
        None => Ok(()),
    }
}

/// Whether users other than root and the agent's user may write to a directory. Its owner does not count: it is checked
/// where the directory is found.
fn others_write(directory: &Held) -> bool {
    let mode = directory.stat.st_mode;
    let own_group = directory.stat.st_gid == 0 || directory.stat.st_gid == getegid().as_raw();
    match (mode & OTHERS_WRITE != 0, mode & GROUP_WRITE != 0) {
        (true, _) => true,
        (false, true) if own_group => named_users_write(directory),
        (false, group) => group,
    }
}

/// With an access control list the group's bits are its mask: users whom it names may write.
fn named_users_write(directory: &Held) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(fd) = rustix::fs::openat(&directory.fd, ".", flags, Mode::empty()) else {
        return true;
    };
    Acl::of(fd.as_fd()).map_or(true, |acl| acl.is_some_and(|acl| acl.others_write()))
}

fn trusted(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

fn denied(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, text)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};

    use super::*;

    const NOBODY: Option<u32> = Some(65534);

    fn home() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn refusal(path: &Path) -> String {
        Place::resolve(path).unwrap_err().to_string()
    }

    #[test]
    fn links_of_certbot_and_kubernetes_are_followed_to_the_file() {
        let home = home();
        let base = fs::canonicalize(home.path()).unwrap();
        fs::create_dir_all(base.join("live/x")).unwrap();
        fs::create_dir_all(base.join("archive/x")).unwrap();
        fs::write(base.join("archive/x/cert1.pem"), "x").unwrap();
        symlink("../../archive/x/cert1.pem", base.join("live/x/cert.pem")).unwrap();
        fs::create_dir(base.join("..2026")).unwrap();
        symlink("..2026", base.join("..data")).unwrap();
        symlink("..data/tls.crt", base.join("tls.crt")).unwrap();
        symlink(base.join("real.pem"), base.join("dangling.pem")).unwrap();
        for (path, place) in [
            ("live/x/cert.pem", "archive/x/cert1.pem"),
            ("live/./x//../x/cert.pem", "archive/x/cert1.pem"),
            ("tls.crt", "..2026/tls.crt"),
            ("dangling.pem", "real.pem"),
            ("..data/../absent.pem", "absent.pem"),
        ] {
            assert_eq!(
                Place::resolve(&base.join(path)).unwrap().path(),
                base.join(place),
                "{path}"
            );
        }
        let [one, other] =
            ["live/x/cert.pem", "archive/x/cert1.pem"].map(|path| Place::resolve(&base.join(path)).unwrap());
        assert!(one.is(&other));
    }

    #[test]
    fn what_is_no_file_in_a_directory_is_refused_by_name() {
        let home = home();
        let base = home.path();
        symlink("loop", base.join("loop")).unwrap();
        fs::write(base.join("file"), "").unwrap();
        for (path, said) in [
            ("loop", "Too many levels of symbolic links"),
            ("absent/a.pem", "absent: No such file"),
            ("file/a.pem", "file: Not a directory"),
            ("", "not a regular file"),
            ("..", "it is a directory"),
        ] {
            let error = refusal(&base.join(path));
            assert!(error.starts_with("cannot ") && error.contains(said), "{path}: {error}");
        }
        assert!(refusal(Path::new("a.pem")).contains("not an absolute path"));
        assert!(refusal(Path::new("/dev/null")).contains("not a regular file"));
    }

    #[test]
    fn a_directory_that_other_users_can_change_is_refused_unless_it_is_sticky() {
        let home = home();
        let dir = home.path().join("dir");
        fs::create_dir_all(dir.join("sub")).unwrap();
        for wide in [0o777, 0o757] {
            chmod(&dir, wide);
            for path in ["a.pem", "sub/a.pem"] {
                assert!(
                    refusal(&dir.join(path)).contains("other users can replace"),
                    "{path} {wide:o}"
                );
            }
        }
        for mode in [0o1777, 0o755, 0o700] {
            chmod(&dir, mode);
            Place::resolve(&dir.join("sub/a.pem")).unwrap();
        }
    }

    #[test]
    fn what_belongs_to_another_user_leads_only_to_files_of_the_same_user() {
        // Only root can give files away.
        if !geteuid().is_root() {
            return;
        }
        let home = home();
        let dir = home.path().join("theirs");
        fs::create_dir(&dir).unwrap();
        let file = dir.join("a.pem");
        chown(&dir, NOBODY, NOBODY).unwrap();
        assert!(
            refusal(&file).contains("theirs belongs to user 65534"),
            "a directory, without a file"
        );
        fs::write(&file, "x").unwrap();
        assert!(
            refusal(&file).contains("theirs belongs to user 65534"),
            "a file of root"
        );
        chown(&file, NOBODY, NOBODY).unwrap();
        Place::resolve(&file).unwrap();

        fs::write(home.path().join("secret"), "x").unwrap();
        let link = dir.join("link.pem");
        symlink("../secret", &link).unwrap();
        lchown(&link, NOBODY, NOBODY).unwrap();
        assert!(refusal(&link).contains("belongs to user 65534"));
        symlink("a.pem", dir.join("own.pem")).unwrap();
        lchown(dir.join("own.pem"), NOBODY, NOBODY).unwrap();
        Place::resolve(&dir.join("own.pem")).unwrap();

        // A file that anyone could have put there would receive the key.
        chmod(home.path(), 0o1777);
        let planted = home.path().join("planted.key");
        fs::write(&planted, "").unwrap();
        chown(&planted, NOBODY, NOBODY).unwrap();
        assert!(refusal(&planted).contains("to which every user can write"));
    }
}
