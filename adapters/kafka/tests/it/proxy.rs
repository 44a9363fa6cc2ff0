//! A proxy between a client and one broker of the mock cluster, which damages answers.
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// A proxy in front of the only broker of a mock cluster.
///
/// It listens on a port of its own, and replaces the broker's port in metadata, so that no client
/// bypasses it.
pub(crate) struct Proxy {
    pub(crate) address: String,
    /// The number of answers that were damaged.
    pub(crate) damaged: Arc<AtomicUsize>,
}

impl Proxy {
    /// Damages `text` in the first `times` answers that contain it.
    pub(crate) fn damaging(broker: &str, text: &'static [u8], times: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let damaged = Arc::new(AtomicUsize::new(0));
        let wire = Wire {
            broker: broker.to_owned(),
            ports: [port_of(broker), address.port()],
            text,
            times,
            damaged: Arc::clone(&damaged),
        };
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, wire) = (client.unwrap(), wire.clone());
                std::thread::spawn(move || wire.carry(&client));
            }
        });
        Self {
            address: address.to_string(),
            damaged,
        }
    }
}

fn port_of(address: &str) -> u16 {
    address.rsplit_once(':').unwrap().1.parse().unwrap()
}

#[derive(Clone)]
struct Wire {
    broker: String,
    ports: [u16; 2],
    text: &'static [u8],
    times: usize,
    damaged: Arc<AtomicUsize>,
}

impl Wire {
    fn carry(&self, client: &TcpStream) {
        let broker = TcpStream::connect(&self.broker).unwrap();
        let (mut from, mut to) = (client.try_clone().unwrap(), broker.try_clone().unwrap());
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(std::net::Shutdown::Both);
        });
        // The loop ends when either side closes its connection.
        while let Ok(mut answer) = read_frame(&broker) {
            self.rename_broker(&mut answer);
            self.damage(&mut answer);
            let length = u32::try_from(answer.len()).unwrap().to_be_bytes();
            let mut client = client;
            if client
                .write_all(&length)
                .and(client.write_all(&answer))
                .is_err()
            {
                break;
            }
        }
        let _ = client.shutdown(std::net::Shutdown::Both);
    }

    /// Replaces the port of a broker, which is four bytes after its host.
    fn rename_broker(&self, answer: &mut [u8]) {
        let [of_broker, of_proxy] = self.ports.map(|port| u32::from(port).to_be_bytes());
        let host = b"127.0.0.1";
        for at in positions(answer, host) {
            let port = at + host.len()..at + host.len() + 4;
            if answer.get(port.clone()) == Some(&of_broker) {
                answer[port].copy_from_slice(&of_proxy);
            }
        }
    }

    fn damage(&self, answer: &mut [u8]) {
        let Some(at) = positions(answer, self.text).first().copied() else {
            return;
        };
        if self.damaged.load(Ordering::SeqCst) < self.times {
            self.damaged.fetch_add(1, Ordering::SeqCst);
            answer[at] ^= 1;
        }
    }
}

fn read_frame(mut stream: &TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut frame)?;
    Ok(frame)
}

fn positions(bytes: &[u8], text: &[u8]) -> Vec<usize> {
    let windows = bytes.windows(text.len()).enumerate();
    windows
        .filter(|(_, w)| *w == text)
        .map(|(at, _)| at)
        .collect()
}
