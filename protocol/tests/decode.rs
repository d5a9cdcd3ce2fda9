//! Bytes from anyone: decoding refuses what is not a message, without panic and without taking
//! memory that the bytes do not pay for.

mod common;
mod counting_allocator;

use common::{Message, examples};
use counting_allocator::peak_bytes_during;
use metal_rpc_protocol::limits::{
    MAX_DEPTH, MAX_KV_CACHE_GROUPS, MAX_MESSAGE_BYTES, MAX_REQ_ID_BYTES, MAX_STRING_BYTES,
};
use metal_rpc_protocol::{CodecError, Request, decode_reply, decode_request};
use proptest::prelude::*;
use serde_json::Value;

/// What the decoder may take ahead of the elements of a list, by serde's own bound of 1 MiB for
/// each list that is open.
const AHEAD_BYTES: usize = MAX_DEPTH << 20;

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        cases: 20_000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn random_bytes_are_refused_or_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_request(&bytes);
        let _ = decode_reply(&bytes);
    }

    #[test]
    fn changed_goldens_are_refused_or_read(
        example in any::<proptest::sample::Index>(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let (_, message) = &examples()[example.index(examples().len())];
        let mut bytes = message.encode();
        for (position, value) in &changes {
            let position = position.index(bytes.len());
            bytes[position] = *value;
        }
        let _ = message.decode_alike(&bytes);
    }
}

#[test]
fn one_flipped_bit_never_panics() {
    for (_, message) in examples() {
        let bytes = message.encode();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let _ = message.decode_alike(&flipped);
        }
    }
}

#[test]
fn a_truncated_message_is_refused() {
    for (name, message) in examples() {
        let bytes = message.encode();
        for length in 0..bytes.len() {
            let decoded = message.decode_alike(&bytes[..length]);
            assert!(
                decoded.is_err(),
                "{name} cut to {length} bytes is read as {decoded:?}"
            );
        }
    }
}

#[test]
fn bytes_after_a_message_are_refused() {
    // 0xcc announces a byte that is missing, 0x91 an element that is missing.
    for (name, message) in examples() {
        for tail in [
            &[0x00][..],
            &[0xc0],
            &[0xc1],
            &[0xcc],
            &[0x91],
            &[0xff; 100],
        ] {
            let decoded = message.decode_alike(&[&message.encode(), tail].concat());
            assert!(
                matches!(decoded, Err(CodecError::TrailingBytes)),
                "{name} with {tail:02x?} after it is read as {decoded:?}"
            );
        }
    }
}

#[test]
fn an_unknown_opcode_is_refused() {
    for opcode in [0, 10, 11, 127] {
        check_refused(&[0x94, opcode, 0xc4, 0, 1, 0x90], "is not known");
    }
}

#[test]
fn an_envelope_of_the_wrong_length_is_refused() {
    check_refused(&[0x90], "too short");
    check_refused(&[0x92, 7, 0xc4, 0], "");
    check_refused(&[0x95, 7, 0xc4, 0, 1, 0x90, 0xc0], "");
}

#[test]
fn a_body_of_the_wrong_length_is_refused() {
    // A Ping whose body has an element, and a Hello whose body has none.
    check_refused(&[0x94, 7, 0xc4, 0, 1, 0x91, 0xc0], "");
    check_refused(&[0x94, 1, 0xc4, 0, 1, 0x90], "");
}

#[test]
fn a_session_of_the_wrong_length_is_refused() {
    for length in [1_u8, 15, 17, 255] {
        let token = vec![b's'; length.into()];
        let bytes = [&[0x94, 7, 0xc4, length][..], &token, &[1, 0x90]].concat();
        check_refused(&bytes, "16 bytes of session token");
    }
}

#[test]
fn an_array_of_half_a_number_is_refused() {
    // StepResult whose token_ids have five bytes.
    let bytes = [
        0x93, 6, 1, 0x96, 0xc4, 5, 0, 0, 0, 0, 0, 0xc0, 0x90, 0x90, 0, 0,
    ];
    let error = decode_reply(&bytes)
        .expect_err("five bytes are no i32")
        .to_string();
    assert!(error.contains("little-endian i32"), "{error}");
}

#[test]
fn an_unknown_error_code_or_scope_is_refused() {
    assert!(decode_reply(&[0x93, 10, 1, 0x93, 14, 2, 0xa0]).is_ok());
    assert!(decode_reply(&[0x93, 10, 1, 0x93, 15, 2, 0xa0]).is_err());
    assert!(decode_reply(&[0x93, 10, 1, 0x93, 14, 3, 0xa0]).is_err());
}

#[test]
fn a_message_beyond_the_limit_is_refused_unread() {
    let bytes = vec![0x90; MAX_MESSAGE_BYTES + 1];
    assert!(matches!(
        decode_request(&bytes),
        Err(CodecError::TooLong { actual }) if actual == bytes.len()
    ));
}

/// The deepest legal message is an `Exec` with a logit bias: seven arrays in each other.
#[test]
fn the_depth_limit_is_as_deep_as_the_deepest_message() {
    let deepest = examples()
        .iter()
        .map(|(_, message)| match message {
            Message::Request(envelope) => serde_json::to_value(envelope),
            Message::Reply(envelope) => serde_json::to_value(envelope),
        })
        .map(|value| depth(&value.expect("every message has a form in JSON")))
        .max();
    assert_eq!(deepest, Some(MAX_DEPTH - 1));
}

/// Fields that a struct does not know are skipped; skipping is where depth could run away.
#[test]
fn a_depth_bomb_is_refused() {
    for levels in [MAX_DEPTH, 1000, 1_000_000] {
        for opener in [&[0x91][..], &[0x81, 0xa1, b'x'], &[0xdc, 0, 1]] {
            let bomb = [opener.repeat(levels), vec![0xc0]].concat();
            check_refused(&bomb, "");
            let in_body = [&[0x94, 7, 0xc4, 0, 1][..], &bomb].concat();
            check_refused(&in_body, "");
            let unknown_field = [&[0x94, 7, 0xc4, 0, 1, 0x81, 0xa1, b'x'][..], &bomb].concat();
            check_refused(&unknown_field, "depth limit exceeded");
        }
    }
}

/// Each place of each golden announces four billion of something.
#[test]
fn a_length_bomb_takes_no_memory() {
    const MARKERS: [u8; 5] = [0xdd, 0xdf, 0xdb, 0xc6, 0xc9];
    for (name, message) in examples() {
        let bytes = message.encode();
        for marker in MARKERS {
            for position in 0..bytes.len() {
                let bomb = [&bytes[..position], &[marker, 0xff, 0xff, 0xff, 0xff]].concat();
                let peak = peak_bytes_during(|| {
                    // Within a number the bomb is just another number.
                    let _ = message.decode_alike(&bomb);
                });
                assert!(
                    peak < AHEAD_BYTES,
                    "{name} with {marker:#x} at {position} takes {peak} bytes"
                );
            }
        }
    }
}

/// The worst ratios of memory to wire: a byte that is a number, and one that is a list.
#[test]
fn decoding_takes_a_small_multiple_of_the_message() {
    const NUM_IDS: u32 = 4 << 20;
    let ids = [
        &[0xdd][..],
        &NUM_IDS.to_be_bytes(),
        &vec![0x7f; NUM_IDS as usize],
    ]
    .concat();
    let create_cache = [&[0x94, 4, 0xc4, 0, 1, 0x93, 1, 1, 0x91][..], &ids].concat();
    let peak = peak_bytes_during(|| {
        assert!(decode_request(&create_cache).is_ok());
    });
    // Four bytes for one, and as much again twice over while the list grows.
    assert!(
        peak <= 3 * size_of::<u32>() * create_cache.len(),
        "{peak} bytes"
    );
}

#[test]
fn a_list_beyond_its_limit_is_refused_before_it_is_read() {
    let lists = (MAX_KV_CACHE_GROUPS + 1, "at most 64 elements");
    for (length, reason) in [lists, (u32::MAX as usize, "at most 64 elements")] {
        let announced = u32::try_from(length).expect("fits").to_be_bytes();
        let list = [&[0xdd][..], &announced, &vec![0x90; 1 << 20]].concat();
        let create_cache = [&[0x94, 4, 0xc4, 0, 1, 0x93, 1, 1][..], &list].concat();
        let peak = peak_bytes_during(|| check_refused(&create_cache, reason));
        assert!(peak < 4096, "{peak} bytes");
    }
    let most = [&[0xdc, 0, 64][..], &[0x90; 64]].concat();
    let create_cache = [&[0x94, 4, 0xc4, 0, 1, 0x93, 1, 1][..], &most].concat();
    assert!(decode_request(&create_cache).is_ok());
}

#[test]
fn a_string_beyond_its_limit_is_refused() {
    for (length, is_legal) in [(MAX_STRING_BYTES, true), (MAX_STRING_BYTES + 1, false)] {
        let (_, mut hello) = examples().remove(0);
        let Message::Request(envelope) = &mut hello else {
            panic!("the first is a request")
        };
        let Request::Hello(body) = &mut envelope.request else {
            panic!("the first is hello")
        };
        body.frontend = "a".repeat(length);
        assert_eq!(
            decode_request(&hello.encode()).is_ok(),
            is_legal,
            "{length} bytes"
        );
    }
}

/// Whoever asks over HTTP may choose the id: it must not be able to end a step.
#[test]
fn a_long_request_id_is_cut() {
    let (_, mut exec) = examples().remove(4);
    let Message::Request(envelope) = &mut exec else {
        panic!("exec is a request")
    };
    let Request::Exec(step) = &mut envelope.request else {
        panic!("the fifth is exec")
    };
    step.new_requests[0].req_id = "ä".repeat(MAX_REQ_ID_BYTES);
    let decoded = decode_request(&exec.encode()).expect("it is legal");
    let Request::Exec(step) = decoded.request else {
        panic!("exec was encoded")
    };
    assert_eq!(
        step.new_requests[0].req_id,
        "ä".repeat(MAX_REQ_ID_BYTES / 2)
    );
}

fn check_refused(bytes: &[u8], reason: &str) {
    let error = decode_request(bytes)
        .expect_err("not a request")
        .to_string();
    assert!(error.contains(reason), "`{error}` does not say `{reason}`");
    assert!(error.len() < 300, "the error repeats what was sent");
}

/// How many arrays lie in each other, a body counted as one.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(elements) => 1 + elements.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// The harness itself: a message that is right is read.
#[test]
fn the_unchanged_examples_are_read() {
    for (name, message) in examples() {
        let decoded: Message = message.decode_alike(&message.encode()).expect(name);
        assert_eq!(decoded, message, "{name}");
    }
}
