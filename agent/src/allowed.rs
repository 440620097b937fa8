//! What this host's configuration allows the server to ask for: command lines and target directories.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use crate::program::Argv;

/// Where programs that are named without a path are looked for. It is also the `PATH` of every command.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The keyword that stands for the built-in list, in both settings.
const DEFAULT: &str = "default";

/// The built-in command lines: those that check and reload nginx, Apache and HAProxy with their usual configuration.
const DEFAULT_COMMANDS: &str = "\
    nginx -t; nginx -q -t; nginx -t -q; nginx -t -c /etc/nginx/nginx.conf; nginx -s reload; \
    apachectl|apache2ctl configtest|graceful|-t; apachectl|apache2ctl -k graceful; httpd|apache2 -t; httpd -k graceful; \
    haproxy -c -f /etc/haproxy/haproxy.cfg; haproxy -c -q -f /etc/haproxy/haproxy.cfg; \
    systemctl reload|restart|reload-or-restart|try-reload-or-restart \
    nginx|nginx.service|apache2|apache2.service|httpd|httpd.service|haproxy|haproxy.service; \
    service nginx|apache2|httpd|haproxy reload|restart";

/// The built-in directories. Directories of trust anchors (`/etc/ssl/certs`, `/etc/pki/ca-trust`) are not among them.
const DEFAULT_DIRECTORIES: &str = "/etc/nginx,/etc/apache2,/etc/httpd,/etc/haproxy,/etc/ssl/private,/etc/pki/nginx,\
    /etc/pki/tls/private,/etc/certctl/tls";

/// What the host allows.
#[derive(Clone, Debug)]
pub struct Allowed {
    /// The command lines that targets may use.
    pub commands: AllowedCommands,
    /// The directories that targets may have their files in.
    pub directories: AllowedDirectories,
}

/// Command lines, each a program and patterns for its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedCommands(Vec<Line>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    /// Bare names or absolute paths.
    programs: Vec<String>,
    /// The alternatives of each argument.
    arguments: Vec<Vec<String>>,
    built_in: bool,
}

impl FromStr for AllowedCommands {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut lines = Vec::new();
        for line in text.split([';', '\n']).map(str::trim).filter(|line| !line.is_empty()) {
            match line {
                DEFAULT => {
                    let built_in = DEFAULT_COMMANDS.split(';').map(|line| Line::parse(line, true));
                    lines.extend(built_in.collect::<Result<Vec<_>, _>>()?);
                }
                line => lines.push(Line::parse(line, false)?),
            }
        }
        Ok(Self(lines))
    }
}

impl Line {
    fn parse(line: &str, built_in: bool) -> Result<Self, String> {
        let mut words = line
            .split_whitespace()
            .map(|word| word.split('|').map(str::to_owned).collect::<Vec<_>>());
        let programs = words.next().ok_or("a command line is empty")?;
        let arguments: Vec<_> = words.collect();
        let wrong = |what: &str| Err(format!("the command line \"{line}\" {what}"));
        if programs.iter().chain(arguments.iter().flatten()).any(String::is_empty) {
            return wrong("has an empty alternative; alternatives of a word are separated by |");
        }
        for program in &programs {
            if program.contains('*') {
                return wrong("has a * in its program; only arguments can be patterns");
            }
            if program.contains('/') && normal(program).is_none() {
                return wrong("names its program neither by a bare name nor by an absolute path without . and ..");
            }
        }
        Ok(Self {
            programs,
            arguments,
            built_in,
        })
    }

    fn admits(&self, arguments: &[String]) -> bool {
        self.arguments.len() == arguments.len()
            && self
                .arguments
                .iter()
                .zip(arguments)
                .all(|(patterns, argument)| patterns.iter().any(|pattern| matches(pattern, argument)))
    }
}

impl AllowedCommands {
    /// Keeps only the built-in lines of these programs, besides the lines of the host's own. Returns the names that no
    /// built-in line has.
    pub fn keep_built_in(&mut self, programs: &ProgramNames) -> Vec<String> {
        for line in self.0.iter_mut().filter(|line| line.built_in) {
            line.programs.retain(|program| programs.0.contains(program));
        }
        self.0.retain(|line| !line.programs.is_empty());
        let known = |name: &&String| self.0.iter().any(|line| line.programs.contains(name));
        programs.0.iter().filter(|name| !known(name)).cloned().collect()
    }

    /// The program that a command line starts, when it is allowed.
    ///
    /// # Errors
    /// The command is not allowed, or its program is not installed; the text names the variable that allows it.
    pub fn program(&self, argv: &Argv) -> Result<PathBuf, String> {
        let refused = || {
            format!(
                "the command \"{argv}\" is not allowed on this host; CERTCTL_ALLOWED_COMMANDS in the agent's configuration \
                 lists the command lines that are"
            )
        };
        let mut admitting = self
            .0
            .iter()
            .filter(|line| line.admits(argv.arguments()))
            .flat_map(|line| &line.programs)
            .peekable();
        admitting.peek().ok_or_else(refused)?;
        let wanted = argv.program();
        let Some(found) = resolve(wanted) else {
            return match admitting.any(|program| program == wanted) {
                true => Err(format!("the program of \"{argv}\" is not found in {PATH}")),
                false => Err(refused()),
            };
        };
        match admitting.any(|program| resolve(program).as_ref() == Some(&found)) {
            true => Ok(found),
            false => Err(refused()),
        }
    }
}

/// The absolute path of a program. Symbolic links in its directory are resolved, the program's own name is kept: one
/// binary may do different things under several names.
fn resolve(program: &str) -> Option<PathBuf> {
    let in_directory = |directory: &Path, name: &std::ffi::OsStr| {
        let path = fs::canonicalize(directory).ok()?.join(name);
        let found = fs::metadata(&path).ok()?;
        (found.is_file() && found.permissions().mode() & 0o111 != 0).then_some(path)
    };
    if program.contains('/') {
        let path = normal(program)?;
        return in_directory(path.parent()?, path.file_name()?);
    }
    PATH.split(':')
        .find_map(|directory| in_directory(Path::new(directory), program.as_ref()))
}

/// An absolute path without empty, `.` and `..` parts; none when it has `..` or is relative.
fn normal(path: &str) -> Option<PathBuf> {
    let path = Path::new(path);
    // `components` leaves out empty parts and ".".
    let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    (path.is_absolute() && path.components().all(plain)).then(|| path.components().collect())
}

/// Whether an argument fits a pattern: `*` stands for one or more letters, digits and `_.@+:=-` within one part of a
/// path, never for a leading `-` or for the parts `.` and `..`.
fn matches(pattern: &str, argument: &str) -> bool {
    if !pattern.contains('*') {
        return pattern == argument;
    }
    if pattern.starts_with('*') && argument.starts_with('-') {
        return false;
    }
    let (patterns, parts): (Vec<_>, Vec<_>) = (pattern.split('/').collect(), argument.split('/').collect());
    patterns.len() == parts.len()
        && patterns
            .iter()
            .zip(&parts)
            .all(|(pattern, part)| !matches!(*part, "." | "..") && part_matches(pattern, part))
}

fn part_matches(pattern: &str, part: &str) -> bool {
    let plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "_.@+:=-".contains(c));
    let Some((first, rest)) = pattern.split_once('*') else {
        return pattern == part;
    };
    let Some(mut left) = part.strip_prefix(first) else {
        return false;
    };
    let mut pieces: Vec<&str> = rest.split('*').collect();
    let last = pieces.pop().unwrap_or_default();
    // The earliest place for each piece leaves the most for those behind it.
    for piece in pieces {
        let Some(skipped) = left.char_indices().nth(1).map(|(at, _)| at) else {
            return false;
        };
        let Some(at) = left[skipped..].find(piece) else {
            return false;
        };
        if !plain(&left[..skipped + at]) {
            return false;
        }
        left = &left[skipped + at + piece.len()..];
    }
    left.strip_suffix(last)
        .is_some_and(|star| !star.is_empty() && plain(star))
}

/// Names of programs, of which the earlier setting `CERTCTL_ALLOWED_PROGRAMS` is a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramNames(Vec<String>);

impl FromStr for ProgramNames {
    type Err = String;

    fn from_str(list: &str) -> Result<Self, String> {
        let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
        let names: Vec<_> = names.map(str::to_owned).collect();
        match names.iter().find(|name| name.contains('/')) {
            Some(path) => Err(format!(
                "\"{path}\" is a path; this setting has names only, CERTCTL_ALLOWED_COMMANDS has whole command lines"
            )),
            None => Ok(Self(names)),
        }
    }
}

/// Directories that targets may have their files in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedDirectories(Vec<PathBuf>);

impl FromStr for AllowedDirectories {
    type Err = String;

    fn from_str(list: &str) -> Result<Self, String> {
        let mut directories = Vec::new();
        for directory in list.split(',').map(str::trim).filter(|directory| !directory.is_empty()) {
            match directory {
                DEFAULT => directories.extend(DEFAULT_DIRECTORIES.split(',').map(PathBuf::from)),
                directory => {
                    directories.push(normal(directory).ok_or_else(|| {
                        format!("\"{directory}\" is not an absolute path of a directory without \"..\"")
                    })?)
                }
            }
        }
        Ok(Self(directories))
    }
}

impl AllowedDirectories {
    /// Says whether a file may be written.
    ///
    /// # Errors
    /// The variable that allows it.
    pub fn check(&self, path: &Path) -> Result<(), String> {
        let normal = path.to_str().and_then(normal);
        match normal.is_some_and(|path| self.0.iter().any(|allowed| is_inside(&path, allowed))) {
            true => Ok(()),
            false => Err(self.outside(path)),
        }
    }

    /// Says whether a file may be written that links lead to: a path without links.
    ///
    /// # Errors
    /// The variable that allows it.
    pub fn check_resolved(&self, path: &Path) -> Result<(), String> {
        let allows = |allowed: &PathBuf| {
            let real = fs::canonicalize(allowed);
            is_inside(path, allowed) || real.is_ok_and(|real| is_inside(path, &real))
        };
        match self.0.iter().any(allows) {
            true => Ok(()),
            false => Err(self.outside(path)),
        }
    }

    fn outside(&self, path: &Path) -> String {
        format!(
            "the file {} is outside the directories that this host allows; CERTCTL_ALLOWED_DIRECTORIES in the agent's \
             configuration lists them: {self}",
            path.display()
        )
    }
}

fn is_inside(path: &Path, directory: &Path) -> bool {
    path != directory && path.starts_with(directory)
}

impl fmt::Display for AllowedDirectories {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: Vec<_> = self.0.iter().map(|path| path.display().to_string()).collect();
        f.write_str(&shown.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(command: &str) -> Argv {
        Argv::split(command).unwrap()
    }

    fn allowed(commands: &str) -> AllowedCommands {
        commands.parse().unwrap()
    }

    #[test]
    fn the_built_in_lines_check_and_reload_servers_and_nothing_else() {
        let allowed = allowed("default");
        for command in [
            "nginx -t",
            "nginx -s reload",
            "systemctl reload nginx",
            "systemctl reload-or-restart haproxy.service",
            "service apache2 restart",
            "apachectl configtest",
            "haproxy -c -f /etc/haproxy/haproxy.cfg",
        ] {
            assert!(
                allowed.0.iter().any(
                    |line| line.programs.iter().any(|program| program == argv(command).program())
                        && line.admits(argv(command).arguments())
                ),
                "{command}"
            );
        }
        for command in [
            "service ../../usr/bin/touch /tmp/x",
            "/tmp/x/nginx -t",
            "nginx -t -e /etc/cron.d/x",
            "nginx -t -g x",
            "nginx -c /tmp/x.conf",
            "systemctl link /tmp/x.service",
            "systemctl restart ssh",
            "systemctl --host=x reload nginx",
            "haproxy -c -f /etc/shadow",
            "setsid nginx -t",
            "sh",
            "nginx",
        ] {
            let error = allowed.program(&argv(command)).unwrap_err();
            assert!(error.contains("CERTCTL_ALLOWED_COMMANDS"), "{error}");
        }
    }

    #[test]
    fn a_program_is_the_one_that_the_line_names_wherever_it_is_called() {
        let allowed = allowed("true; /usr/bin/env --version; test -s|-f /tmp/case.*/n.conf");
        for (command, is_allowed) in [
            ("true", true),
            ("/usr/bin/true", true),
            ("/bin/true", true),
            ("/bin/../bin/true", false),
            ("bin/true", false),
            ("false", false),
            ("true x", false),
            ("env --version", true),
            ("env -i", false),
            ("test -s /tmp/case.aB1/n.conf", true),
            ("test -f /tmp/case.aB1/n.conf", true),
            ("test -s /tmp/case./n.conf", false),
            ("test -s /tmp/case.a/b/n.conf", false),
            ("test -s /tmp/case.a/../n.conf", false),
            ("test -x /tmp/case.a/n.conf", false),
        ] {
            assert_eq!(allowed.program(&argv(command)).is_ok(), is_allowed, "{command}");
        }
        let error = "certctl-absent"
            .parse::<AllowedCommands>()
            .unwrap()
            .program(&argv("certctl-absent"));
        assert!(error.unwrap_err().contains("is not found in /usr/local/sbin"));
    }

    #[test]
    fn a_star_stands_for_plain_characters_of_one_part() {
        for (pattern, argument, fits) in [
            ("/t/*", "/t/a", true),
            ("/t/*", "/t/", false),
            ("/t/*", "/t/..", false),
            ("*", "-e", false),
            ("-c*", "-c1", true),
            ("a*b*c", "axbxbyc", true),
            ("a*b*c", "abc", false),
            ("a*b*c", "axbxc/", false),
            ("*.conf", "a.conf", true),
            ("*.conf", ".conf", false),
            ("/*/*", "/a/b\u{e9}", false),
        ] {
            assert_eq!(matches(pattern, argument), fits, "{pattern} {argument}");
        }
        for bad in ["ngin* -t", "bin/nginx", "/bin/../x", "nginx |"] {
            assert!(bad.parse::<AllowedCommands>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_earlier_setting_narrows_the_built_in_lines_and_allows_nothing_more() {
        let mut narrowed = allowed("default; true");
        let unknown = narrowed.keep_built_in(&"nginx, service, reboot".parse().unwrap());
        assert_eq!(unknown, ["reboot"]);
        let programs: std::collections::BTreeSet<_> = narrowed.0.iter().flat_map(|line| &line.programs).collect();
        assert_eq!(programs.into_iter().collect::<Vec<_>>(), ["nginx", "service", "true"]);
        assert!("/usr/sbin/nginx".parse::<ProgramNames>().is_err());
    }

    #[test]
    fn files_of_targets_are_inside_the_allowed_directories() {
        let allowed: AllowedDirectories = "default, /srv//tls/".parse().unwrap();
        for (path, inside) in [
            ("/etc/nginx/tls/a.pem", true),
            ("/srv/tls/a.pem", true),
            ("/srv/tls", false),
            ("/srv/tlsx/a.pem", false),
            ("/srv/tls/../../etc/shadow", false),
            ("/etc/ssl/certs/ca-certificates.crt", false),
            ("/root/.ssh/authorized_keys", false),
            ("etc/nginx/a.pem", false),
        ] {
            let checked = allowed.check(Path::new(path));
            assert_eq!(checked.is_ok(), inside, "{path}");
            assert!(
                checked
                    .err()
                    .is_none_or(|error| error.contains("CERTCTL_ALLOWED_DIRECTORIES"))
            );
        }
        assert!("srv/tls".parse::<AllowedDirectories>().is_err());
    }
}
