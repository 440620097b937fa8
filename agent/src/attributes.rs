//! Who may use a file: owner, mode, POSIX access control list, and the other extended attributes.

use std::ffi::{CStr, CString};
use std::fs::{File, Metadata, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// The attribute in which Linux keeps the access control list of a file.
const ACL: &CStr = c"system.posix_acl_access";
/// Attributes that belong to the content: the kernel makes them anew, and would refuse a file with those of another.
const OF_THE_CONTENT: [&CStr; 3] = [c"security.ima", c"security.evm", c"security.capability"];
/// Attributes that a file must keep: they say who may use it, or were set by its owner. Others are names under which file
/// systems show their own state.
const KEPT: [&str; 4] = ["user.", "trusted.", "security.", "system."];

/// What a file that replaces another one takes over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attributes {
    uid: u32,
    gid: u32,
    mode: u32,
    acl: Option<Acl>,
    /// All but the access control list, sorted.
    extended: Vec<(CString, Vec<u8>)>,
}

impl Attributes {
    /// Those of a file.
    ///
    /// # Errors
    /// They cannot be read.
    pub(crate) fn of(file: &File, metadata: &Metadata) -> io::Result<Self> {
        Ok(Self {
            uid: metadata.uid(),
            gid: metadata.gid(),
            mode: metadata.permissions().mode() & 0o777,
            acl: Acl::of(file.as_fd())?,
            extended: extended(file.as_fd())?,
        })
    }

    /// The same for a file with secrets: never open to others, and to its group only if it was to no other user.
    pub(crate) fn secret(self) -> Self {
        let open_to_others = self.mode & 0o007 != 0;
        match self.acl {
            None => Self {
                mode: if open_to_others {
                    0o600
                } else {
                    0o600 | self.mode & 0o040
                },
                ..self
            },
            Some(acl) => {
                let acl = acl.without_others(open_to_others);
                Self {
                    mode: acl.mode(),
                    acl: Some(acl),
                    ..self
                }
            }
        }
    }

    /// Gives them to a new file with mode 0600, whose content is not written yet. The mode comes last, so that the file
    /// is never open to a user whom the attributes exclude.
    ///
    /// # Errors
    /// One of them cannot be set; the text says which.
    pub(crate) fn apply(&self, file: &File) -> io::Result<()> {
        let fd = file.as_fd();
        let about =
            |what: &str, error: io::Error| io::Error::new(error.kind(), format!("cannot keep its {what}: {error}"));
        // A default list of the directory would name users who could not read the old file.
        match rustix::fs::fremovexattr(fd, ACL) {
            Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(error) => return Err(about("access control list", error.into())),
        }
        let metadata = file.metadata()?;
        if (metadata.uid(), metadata.gid()) != (self.uid, self.gid) {
            fchown(file, Some(self.uid), Some(self.gid)).map_err(|error| about("owner", error))?;
        }
        let present = extended(fd)?;
        for (name, value) in self.extended.iter().filter(|attribute| !present.contains(attribute)) {
            let text = name.to_string_lossy();
            match rustix::fs::fsetxattr(fd, name.as_c_str(), value, XattrFlags::empty()) {
                Err(error) if KEPT.iter().any(|prefix| text.starts_with(prefix)) => {
                    return Err(about(&format!("attribute {text}"), error.into()));
                }
                _ => {}
            }
        }
        match &self.acl {
            // The list carries the mode: its mask takes the place of the group's permissions.
            Some(acl) => rustix::fs::fsetxattr(fd, ACL, &acl.0, XattrFlags::empty())
                .map_err(|error| about("access control list", error.into())),
            None => file
                .set_permissions(Permissions::from_mode(self.mode))
                .map_err(|error| about("mode", error)),
        }
    }
}

/// All extended attributes but the access control list and those of the content, sorted.
fn extended(fd: BorrowedFd<'_>) -> io::Result<Vec<(CString, Vec<u8>)>> {
    let names = match whole(|buffer| rustix::fs::flistxattr(fd, buffer)) {
        Ok(names) => names,
        Err(Errno::NOTSUP) => return Ok(vec![]),
        Err(error) => return Err(error.into()),
    };
    let mut attributes = Vec::new();
    for name in names.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        if name == ACL || OF_THE_CONTENT.contains(&name) {
            continue;
        }
        match whole(|buffer| rustix::fs::fgetxattr(fd, name, buffer)) {
            Ok(value) => attributes.push((name.to_owned(), value)),
            // Removed meanwhile, or a name without a value that can be read.
            Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    attributes.sort();
    Ok(attributes)
}

/// Reads a value of at most 64 KiB, which is the kernel's own limit for names and for values.
fn whole(read: impl FnOnce(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 64 * 1024];
    let length = read(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

/// A POSIX access control list as the kernel stores it: a version, then entries of tag, permissions and id, all
/// little-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acl(Vec<u8>);

const HEADER: usize = 4;
const ENTRY: usize = 8;
const VERSION: [u8; 4] = [2, 0, 0, 0];
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
const WRITE: u16 = 0o2;

impl Acl {
    /// That of a file or directory, if it has one beyond its mode.
    ///
    /// # Errors
    /// It cannot be read, or is of another form.
    pub(crate) fn of(fd: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        match whole(|buffer| rustix::fs::fgetxattr(fd, ACL, buffer)) {
            Ok(bytes) if bytes.starts_with(&VERSION) && bytes.len() % ENTRY == HEADER => Ok(Some(Self(bytes))),
            Ok(_) => Err(io::Error::other("its access control list has an unknown form")),
            Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Tag and permissions of each entry.
    fn entries(&self) -> impl Iterator<Item = (u16, u16)> {
        self.0[HEADER..].chunks_exact(ENTRY).map(|entry| {
            let number = |at: usize| u16::from_le_bytes([entry[at], entry[at + 1]]);
            (number(0), number(2))
        })
    }

    fn permissions(&self, tag: u16) -> Option<u16> {
        self.entries()
            .find(|(found, _)| *found == tag)
            .map(|(_, permissions)| permissions)
    }

    /// Whether it lets a user or group that it names write.
    pub(crate) fn others_write(&self) -> bool {
        let mask = self.permissions(MASK).unwrap_or(0o7);
        self.entries()
            .any(|(tag, permissions)| matches!(tag, USER | GROUP) && permissions & mask & WRITE != 0)
    }

    /// The same without permissions for others, and on demand for the owning group; named users and groups keep theirs.
    fn without_others(self, nor_group: bool) -> Self {
        let Self(mut bytes) = self;
        for entry in bytes[HEADER..].chunks_exact_mut(ENTRY) {
            let tag = u16::from_le_bytes([entry[0], entry[1]]);
            if tag == OTHER || (tag == GROUP_OBJ && nor_group) {
                entry[2..4].fill(0);
            }
        }
        Self(bytes)
    }

    /// The mode that the list amounts to.
    fn mode(&self) -> u32 {
        let group = self.permissions(MASK).or(self.permissions(GROUP_OBJ));
        let [owner, group, other] = [self.permissions(USER_OBJ), group, self.permissions(OTHER)]
            .map(|permissions| u32::from(permissions.unwrap_or(0) & 0o7));
        owner << 6 | group << 3 | other
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A list that gives the owner `rw-` and a named user and the mask these permissions.
    pub(crate) fn acl(user: u32, permissions: u16, group: u16, other: u16) -> Vec<u8> {
        let mut bytes = VERSION.to_vec();
        for (tag, permissions, id) in [
            (USER_OBJ, 0o6, u32::MAX),
            (USER, permissions, user),
            (GROUP_OBJ, group, u32::MAX),
            (MASK, permissions | group, u32::MAX),
            (OTHER, other, u32::MAX),
        ] {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(permissions.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn set(file: &File, name: &str, value: &[u8]) {
        rustix::fs::fsetxattr(file, name, value, XattrFlags::empty()).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{acl, set};
    use super::*;

    fn of(file: &File) -> Attributes {
        Attributes::of(file, &file.metadata().unwrap()).unwrap()
    }

    fn file(mode: u32) -> File {
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.set_permissions(Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn a_new_file_takes_over_list_and_attributes_and_the_mask_becomes_no_permission_of_the_group() {
        let (old, new) = (file(0o600), file(0o600));
        set(&old, "system.posix_acl_access", &acl(65534, 0o4, 0, 0));
        set(&old, "user.note", b"kept");
        // As from a default list of the directory.
        set(&new, "system.posix_acl_access", &acl(1, 0o6, 0o6, 0));
        let kept = of(&old).secret();
        assert_eq!(kept.mode, 0o640, "the mask");
        kept.apply(&new).unwrap();
        assert_eq!(of(&new), of(&old));

        let plain = file(0o640);
        of(&plain).apply(&new).unwrap();
        assert_eq!(of(&new).acl, None);
        assert_eq!(of(&new).mode, 0o640);
    }

    #[test]
    fn a_key_is_closed_to_others_and_to_a_group_that_was_like_others() {
        for (found, kept) in [
            (0o600, 0o600),
            (0o640, 0o640),
            (0o660, 0o640),
            (0o644, 0o600),
            (0o400, 0o600),
        ] {
            assert_eq!(of(&file(found)).secret().mode, kept, "{found:o}");
        }
        for (group, other, mode, group_kept) in [(0o4, 0, 0o640, 0o4), (0o4, 0o4, 0o640, 0), (0, 0o4, 0o640, 0)] {
            let old = file(0o600);
            set(&old, "system.posix_acl_access", &acl(65534, 0o4, group, other));
            let kept = of(&old).secret();
            let list = kept.acl.unwrap();
            assert_eq!((kept.mode, list.permissions(GROUP_OBJ)), (mode, Some(group_kept)));
            assert_eq!((list.permissions(OTHER), list.permissions(USER)), (Some(0), Some(0o4)));
        }
    }
}
