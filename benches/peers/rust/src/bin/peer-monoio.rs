//! An echo server on monoio, in one thread: a task for each connection, with a buffer of its own that
//! goes to the kernel and comes back. With `--timeout` each read is under `monoio::time::timeout`.
//!
//! It runs on io_uring where the kernel permits that, and on epoll otherwise; `--driver` prints which.

use std::io;

use io_uring::IoUring;
use monoio::buf::IoBufMut;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{TcpListener, TcpStream};
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder, time, utils};
use peers::{ACCEPT_PAUSE, BUFFER_BYTES, Options, TIMEOUT};

/// Places in the submission queue.
const ENTRIES: u32 = 4_096;

fn main() -> io::Result<()> {
    let has_uring = utils::detect_uring();
    if std::env::args().nth(1).as_deref() == Some("--driver") {
        println!("{}", if has_uring { "io_uring" } else { "epoll" });
        return Ok(());
    }
    let options = Options::parse();
    peers::exit_on_termination()?;
    if has_uring {
        // Completions that wait for the next turn instead of interrupting this one make a tenth to a
        // third. Kernels before 6.0 know nothing of that.
        let mut tuned = IoUring::builder();
        tuned.setup_coop_taskrun().setup_taskrun_flag().setup_single_issuer();
        let build = |ring| {
            let builder = RuntimeBuilder::<IoUringDriver>::new().uring_builder(ring);
            builder.with_entries(ENTRIES).enable_timer().build()
        };
        build(tuned).or_else(|_| build(IoUring::builder()))?.block_on(serve(options))
    } else {
        RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?.block_on(serve(options))
    }
}

async fn serve(options: Options) -> io::Result<()> {
    let listener = TcpListener::from_std(peers::listen(options.address)?)?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) if options.framed => drop(monoio::spawn(answer(stream, options))),
            Ok((stream, _)) => drop(monoio::spawn(echo(stream, options))),
            Err(_) => time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn echo(mut stream: TcpStream, options: Options) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    loop {
        let count;
        (count, buffer) = read(&mut stream, buffer, options).await?;
        if count == 0 {
            return Ok(());
        }
        let sent;
        (sent, buffer) = stream.write_all(buffer).await;
        sent?;
    }
}

async fn answer(mut stream: TcpStream, options: Options) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    let mut replies = Vec::new();
    loop {
        let filled = buffer.len();
        let (count, unfilled) =
            read(&mut stream, buffer.slice_mut(filled..BUFFER_BYTES), options).await?;
        if count == 0 {
            return Ok(());
        }
        buffer = unfilled.into_inner();
        let answered = peers::answer_lines(&buffer, &mut replies)?;
        buffer.drain(..answered);
        let sent;
        (sent, replies) = stream.write_all(replies).await;
        sent?;
        replies.clear();
    }
}

async fn read<B: IoBufMut>(
    stream: &mut TcpStream,
    buffer: B,
    options: Options,
) -> io::Result<(usize, B)> {
    let (count, buffer) = if options.timeout {
        time::timeout(TIMEOUT, stream.read(buffer)).await?
    } else {
        stream.read(buffer).await
    };
    Ok((count?, buffer))
}
