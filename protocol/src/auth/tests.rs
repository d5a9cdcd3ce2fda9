//! The exchange and the seals, against what an attacker would try.

use super::*;

const FRONTEND: Nonce = [1; NONCE_BYTES];
const DAEMON: Nonce = [2; NONCE_BYTES];
// Made with Python's `hmac`.
const PROOF_OF_FRONTEND: &str = "8600772d0bfdbff86fd6aa4e4de338fc6bd3124103faadb4ae2feba22ecc0727";
const PROOF_OF_DAEMON: &str = "d4ddb0c7170958ddd5d10b12b8efdb0008850fa857062120209f65d6143da012";
const SEAL_OF_MESSAGE: &str = "39c8389eb2d0c157acf00d25211c0305433427aaf5c3d1ec6bddf2ee5bad6578";

fn token(byte: u8) -> Token {
    Token::new(&[byte; 40]).expect("it is long enough")
}

fn exchange() -> Exchange {
    Exchange::new(token(7), FRONTEND, DAEMON)
}

#[test]
fn frames_are_read_as_they_were_written() {
    let mac = [9; MAC_BYTES];
    for frame in [
        Frame::Knock(&FRONTEND),
        Frame::Challenge(&DAEMON),
        Frame::Response(&mac),
        Frame::Accepted(&mac),
        Frame::Refused("no"),
        Frame::Sealed(&mac, b"message"),
        Frame::Sealed(&mac, b""),
    ] {
        let bytes = frame.encode();
        assert_eq!(Frame::decode(&bytes), Ok(frame));
        let is_open_ended = matches!(frame, Frame::Sealed(..) | Frame::Refused(_));
        for len in 0..bytes.len() {
            let cut = Frame::decode(&bytes[..len]);
            assert!(is_open_ended || cut == Err(AuthError::Malformed), "{len}");
        }
    }
    assert!(Frame::Knock(&FRONTEND).encode().len() <= MAX_EXCHANGE_BYTES);
    assert!(Frame::Response(&mac).encode().len() <= MAX_EXCHANGE_BYTES);
}

#[test]
fn what_is_no_frame_is_refused() {
    let future = [&[KNOCK, 2][..], &FRONTEND].concat();
    assert_eq!(Frame::decode(&future), Err(AuthError::Version(2)));
    // A message of the protocol as it is without a seal: an array of four.
    for bytes in [&b""[..], &[0x94, 9, 0xc4, 0, 0, 0x90], &[0], &[SEALED; 32]] {
        assert_eq!(Frame::decode(bytes), Err(AuthError::Malformed), "{bytes:?}");
    }
    let long = [&[REFUSED][..], &[b'x'; MAX_REFUSAL_BYTES + 1]].concat();
    assert_eq!(Frame::decode(&long), Err(AuthError::Malformed));
    assert_eq!(Frame::decode(&[REFUSED, 0xff]), Err(AuthError::Malformed));
    let cut = Frame::Refused(&"\u{e9}".repeat(MAX_REFUSAL_BYTES)).encode();
    assert!(matches!(Frame::decode(&cut), Ok(Frame::Refused(_))));
}

#[test]
fn only_the_same_token_and_nonces_make_the_same_proof() {
    let ours = exchange();
    let proof = ours.proof(Side::Frontend);
    assert_eq!(ours.check(Side::Frontend, &proof), Ok(()));
    // A proof shows what its own side holds: the other side's cannot be sent back.
    assert_eq!(ours.check(Side::Daemon, &proof), Err(AuthError::WrongToken));
    for other in [
        Exchange::new(token(8), FRONTEND, DAEMON),
        Exchange::new(token(7), DAEMON, FRONTEND),
        Exchange::new(token(7), FRONTEND, [3; NONCE_BYTES]),
        Exchange::new(token(7), [3; NONCE_BYTES], DAEMON),
    ] {
        let checked = other.check(Side::Frontend, &proof);
        assert_eq!(checked, Err(AuthError::WrongToken));
    }
}

#[test]
fn a_sealed_message_opens_once_in_its_place_and_direction() {
    let (mut close, mut open) = (
        exchange().seal(Side::Frontend),
        exchange().seal(Side::Frontend),
    );
    let frames: Vec<_> = [&b"one"[..], b"two", b""]
        .map(|message| close.close(message))
        .into();
    let mut ahead = open.clone();
    assert_eq!(ahead.open(&frames[1]), Err(AuthError::BrokenSeal));
    let mut backwards = exchange().seal(Side::Daemon);
    assert_eq!(backwards.open(&frames[0]), Err(AuthError::BrokenSeal));
    assert_eq!(open.open(&frames[0]), Ok(&b"one"[..]));
    let mut again = open.clone();
    assert_eq!(again.open(&frames[0]), Err(AuthError::BrokenSeal));
    for at in 1..frames[1].len() {
        let mut changed = frames[1].clone();
        changed[at] ^= 1;
        let opened = open.clone().open(&changed).map(<[u8]>::to_vec);
        assert_eq!(opened, Err(AuthError::BrokenSeal), "{at}");
    }
    assert_eq!(open.open(&frames[1]), Ok(&b"two"[..]));
    assert_eq!(open.open(&frames[2]), Ok(&b""[..]));
}

#[test]
fn the_exchange_is_the_one_that_others_have_written_down() {
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let ours = exchange();
    assert_eq!(hex(&ours.proof(Side::Frontend)), PROOF_OF_FRONTEND);
    assert_eq!(hex(&ours.proof(Side::Daemon)), PROOF_OF_DAEMON);
    let sealed = ours.seal(Side::Frontend).close(b"message");
    assert_eq!(hex(&sealed[1..SEAL_BYTES]), SEAL_OF_MESSAGE);
}

#[test]
fn a_token_is_as_long_as_a_secret_and_never_shown() {
    for len in [0, MIN_TOKEN_BYTES - 1, MAX_TOKEN_BYTES + 1] {
        let token = Token::new(&vec![b'x'; len]);
        assert_eq!(token.err(), Some(AuthError::TokenLength(len)));
    }
    assert!(!format!("{:?}", exchange()).contains('7'));
}
