//! The socket beside another implementation of ZeroMQ's protocol: what one side says, the other
//! understands.

use metald::endpoint::{Endpoint, UnixEndpoint};
use metald::socket::{Dealer, Listener, Peer, SendReply, SocketReceiver, SocketSender, router};
use tempfile::TempDir;
use zeromq::util::PeerIdentity;
use zeromq::{
    DealerSocket, RouterSocket, Socket, SocketOptions, SocketRecv, SocketSend, ZmqMessage,
};

/// Around the edges of short frames, of buffers, and of what a system takes at once.
const SIZES: [usize; 8] = [0, 1, 255, 256, 16 << 10, (16 << 10) + 1, 70_000, 3 << 20];

fn endpoint(folder: &TempDir) -> UnixEndpoint {
    UnixEndpoint::at(folder.path().join("socket")).expect("a short path")
}

fn message(size: usize) -> Vec<u8> {
    (0..=255).cycle().take(size).collect()
}

/// Our router, listening in `folder`.
fn listen(folder: &TempDir) -> (SocketSender, SocketReceiver) {
    let (router, receiver) = router();
    let listener = Listener::unix(&endpoint(folder), &router).expect("the folder is new");
    tokio::spawn(listener.run());
    (router.sender(), receiver)
}

async fn dealer(folder: &TempDir, identity: &str) -> DealerSocket {
    let mut options = SocketOptions::default();
    options.peer_identity(identity.parse::<PeerIdentity>().expect("it is short"));
    let mut dealer = DealerSocket::with_options(options);
    let connected = dealer.connect(&endpoint(folder).to_string()).await;
    connected.expect("somebody listens");
    dealer
}

async fn say(dealer: &mut DealerSocket, message: Vec<u8>) {
    let sent = dealer.send(ZmqMessage::from(message)).await;
    sent.expect("it is connected");
}

async fn hear(dealer: &mut DealerSocket) -> Vec<u8> {
    let frames = dealer.recv().await.expect("it is connected").into_vec();
    let [frame] = frames.as_slice() else {
        panic!("a message of one frame, not {}", frames.len());
    };
    frame.to_vec()
}

#[tokio::test]
async fn another_dealer_gets_its_messages_back() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let (sender, mut receiver) = listen(&folder);
    let mut dealer = dealer(&folder, "one").await;
    for size in SIZES {
        say(&mut dealer, message(size)).await;
        let (peer, received) = receiver.receive().await.expect("somebody listens");
        assert!(received == message(size), "{size} bytes, there");
        sender.send(peer, received).expect("it is connected");
        assert!(
            hear(&mut dealer).await == message(size),
            "{size} bytes, back"
        );
    }
}

#[tokio::test]
async fn dealers_of_one_identity_get_their_own_replies() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let (sender, mut receiver) = listen(&folder);
    let mut dealers = Vec::new();
    let mut peers: Vec<Peer> = Vec::new();
    for number in 0..3 {
        dealers.push(dealer(&folder, "the same").await);
        say(&mut dealers[number], vec![1]).await;
        peers.push(receiver.receive().await.expect("somebody listens").0);
    }
    for (number, peer) in peers.iter().enumerate() {
        sender
            .send(*peer, message(number))
            .expect("it is connected");
    }
    for (number, dealer) in dealers.iter_mut().enumerate() {
        assert_eq!(hear(dealer).await, message(number));
    }
}

#[tokio::test]
async fn our_dealer_speaks_to_another_router() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let endpoint = endpoint(&folder);
    let mut router = RouterSocket::new();
    router
        .bind(&endpoint.to_string())
        .await
        .expect("the folder is new");
    let mut dealer = Dealer::connect(&Endpoint::Unix(endpoint))
        .await
        .expect("it listens");
    for size in SIZES {
        // The other router reads when it is asked for a message, and not before.
        let (sent, received) = tokio::join!(dealer.send(message(size)), router.recv());
        sent.expect("it is connected");
        let received = received.expect("it is connected");
        assert_eq!(received.len(), 2, "an identity and a message");
        router.send(received).await.expect("it is connected");
        let back = dealer.receive().await.expect("it is connected");
        assert!(back == message(size), "{size} bytes");
    }
}
