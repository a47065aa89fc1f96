//! The processor time of another process.

use std::fs;
use std::io;
use std::time::Duration;

/// What all threads of a process have used, in user space and in the kernel (proc(5),
/// `/proc/PID/task/TID/schedstat`). Threads that have ended are not counted.
///
/// # Errors
///
/// If there is no such process, or this system does not say.
pub(crate) fn of_process(pid: u32) -> io::Result<Duration> {
    of_tasks(pid).map_err(|error| {
        let text = format!("cannot read the processor time of process {pid}: {error}");
        io::Error::new(error.kind(), text)
    })
}

fn of_tasks(pid: u32) -> io::Result<Duration> {
    let mut nanos = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = match fs::read_to_string(task?.path().join("schedstat")) {
            Ok(text) => text,
            // It ended in between.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let used = text.split_whitespace().next().and_then(|used| used.parse::<u64>().ok());
        nanos += used.ok_or_else(|| io::Error::other("schedstat has no number"))?;
    }
    Ok(Duration::from_nanos(nanos))
}
