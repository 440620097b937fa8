//! What a hardened thread can no longer do. Other threads of this process keep what they have.

use std::{
    fs,
    io::ErrorKind,
    net::{TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    process::Command,
    thread,
};

use certctl_runtime::hardening::{self, Needs};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketType, socket},
    thread::{capabilities, no_new_privs},
};

#[test]
fn a_hardened_thread_does_its_work_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let (own, foreign) = (directory.path().join("own"), directory.path().join("foreign"));
    for path in [&own, &foreign] {
        fs::create_dir(path).unwrap();
        fs::write(path.join("file"), "text").unwrap();
    }
    let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (database, another, free) = (listen(), listen(), listen());
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let (database_port, another_port, free_port) = (port(&database), port(&another), port(&free));
    drop(free);
    let needs = Needs {
        reads: vec!["/etc".into(), "/usr".into(), "/proc/self".into()],
        writes: vec![own.clone()],
        connects: Some(vec![database_port]),
        listens: vec![free_port],
        locks_memory: false,
    };
    let tried = thread::spawn(move || {
        let measures = hardening::measures(&needs);
        for (what, taken) in &measures {
            println!("{what}: {taken:?}");
        }
        let taken = |name: &str| measures.iter().any(|(what, taken)| *what == name && taken.is_ok());
        assert!(taken("core dumps") && taken("privileges") && taken("capabilities"));
        assert!(no_new_privs().unwrap());
        assert!(capabilities(None).unwrap().effective.is_empty());

        // What it is there for.
        fs::read("/etc/hosts").unwrap();
        fs::write(own.join("new"), "text").unwrap();
        fs::rename(own.join("new"), own.join("file")).unwrap();
        let socket_path = own.join("socket");
        let _listener = UnixListener::bind(&socket_path).unwrap();
        UnixStream::connect(&socket_path).unwrap();
        TcpStream::connect(("127.0.0.1", database_port)).unwrap();
        TcpListener::bind(("127.0.0.1", free_port)).unwrap();
        assert_eq!(thread::spawn(|| 7).join().unwrap(), 7);

        if taken("files and ports") {
            let refused = ErrorKind::PermissionDenied;
            let denied = |result: std::io::Result<()>| assert_eq!(result.unwrap_err().kind(), refused);
            denied(fs::read(foreign.join("file")).map(drop));
            denied(fs::write(foreign.join("new"), "text"));
            denied(fs::remove_file(foreign.join("file")));
            denied(fs::write("/etc/certctl-was-here", "text"));
            denied(fs::rename(own.join("file"), foreign.join("file")));
            denied(TcpStream::connect(("127.0.0.1", another_port)).map(drop));
            denied(TcpListener::bind("127.0.0.1:0").map(drop));
        }
        if taken("system calls") {
            let started = Command::new("/usr/bin/true").status();
            assert_eq!(started.unwrap_err().kind(), ErrorKind::PermissionDenied);
            let netlink = socket(AddressFamily::NETLINK, SocketType::RAW, None);
            assert_eq!(netlink.unwrap_err(), Errno::AFNOSUPPORT);
        }
        (taken("files and ports"), taken("system calls"))
    });
    let kernel_has = tried.join().unwrap();
    println!("Landlock and seccomp: {kernel_has:?}");

    // Who did not give it up still has it.
    fs::read(directory.path().join("foreign/file")).unwrap();
    assert!(Command::new("/usr/bin/true").status().unwrap().success());
    drop((database, another));
}
