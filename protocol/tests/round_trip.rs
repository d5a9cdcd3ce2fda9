//! Whatever a message holds, decoding what was encoded gives the same message.

mod strategies;

use metal_rpc_protocol::{decode_reply, decode_request, encode_reply, encode_request};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn requests_come_back_as_they_were(envelope in strategies::request_envelope()) {
        let bytes = encode_request(&envelope);
        prop_assert_eq!(decode_request(&bytes).expect("a request"), envelope);
    }

    #[test]
    fn replies_come_back_as_they_were(envelope in strategies::reply_envelope()) {
        let bytes = encode_reply(&envelope);
        prop_assert_eq!(decode_reply(&bytes).expect("a reply"), envelope);
    }
}
