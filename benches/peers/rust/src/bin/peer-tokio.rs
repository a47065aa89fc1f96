//! An echo server on tokio's runtime of one thread: a task for each connection, with a buffer of its
//! own. With `--timeout` each read is under `tokio::time::timeout`.

use std::io;

use peers::{ACCEPT_PAUSE, BUFFER_BYTES, Options, TIMEOUT};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::time;

fn main() -> io::Result<()> {
    let options = Options::parse();
    peers::exit_on_termination()?;
    Builder::new_current_thread().enable_all().build()?.block_on(serve(options))
}

async fn serve(options: Options) -> io::Result<()> {
    let listener = TcpListener::from_std(peers::listen(options.address)?)?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) if options.framed => drop(tokio::spawn(answer(stream, options))),
            Ok((stream, _)) => drop(tokio::spawn(echo(stream, options))),
            Err(_) => time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn echo(mut stream: TcpStream, options: Options) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = read(&mut stream, &mut buffer, options).await?;
        if count == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..count]).await?;
    }
}

async fn answer(mut stream: TcpStream, options: Options) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut replies = Vec::new();
    let mut filled = 0;
    loop {
        let count = read(&mut stream, &mut buffer[filled..], options).await?;
        if count == 0 {
            return Ok(());
        }
        filled += count;
        let answered = peers::answer_lines(&buffer[..filled], &mut replies)?;
        buffer.copy_within(answered..filled, 0);
        filled -= answered;
        stream.write_all(&replies).await?;
        replies.clear();
    }
}

async fn read(stream: &mut TcpStream, buffer: &mut [u8], options: Options) -> io::Result<usize> {
    if options.timeout {
        time::timeout(TIMEOUT, stream.read(buffer)).await?
    } else {
        stream.read(buffer).await
    }
}
