//! `golden/` holds these bytes. A change here is a change of the wire.
//!
//! `UPDATE_GOLDEN=1 cargo test -p metal-rpc-protocol --test golden` writes the files anew.

#[path = "../common/mod.rs"]
mod common;
mod document;

use std::path::{Path, PathBuf};
use std::{env, fs};

use common::{Message, examples};
use serde_json::{Map, Value, json};

#[test]
fn examples_encode_to_the_goldens() {
    for (name, message) in examples() {
        check_or_update(name, "msgpack", &message.encode());
        check_or_update(name, "json", json_form(&message).as_bytes());
    }
}

#[test]
fn goldens_decode_to_the_examples() {
    for (name, message) in examples() {
        let bytes = fs::read(golden(name, "msgpack")).expect("golden can be read");
        let decoded = message.decode_alike(&bytes).expect(name);
        assert_eq!(decoded, message, "{name}");
    }
}

#[test]
fn every_golden_has_an_example() {
    let expected: Vec<String> = examples()
        .iter()
        .map(|(name, _)| (*name).to_owned())
        .collect();
    for entry in fs::read_dir(golden_dir()).expect("golden/ can be listed") {
        let path = entry.expect("golden/ can be listed").path();
        let name = path.file_stem().expect("a file").to_string_lossy();
        assert!(
            expected.iter().any(|example| *example == name),
            "golden/{name} belongs to no example of tests/common"
        );
    }
}

/// What each running request repeats with every token costs a few bytes.
#[test]
fn a_decode_step_of_64_requests_takes_less_than_a_kilobyte() {
    let (_, step) = examples()
        .into_iter()
        .find(|(name, _)| *name == "exec_decode_64")
        .expect("the example exists");
    let size_bytes = step.encode().len();
    assert!(size_bytes < 1024, "{size_bytes} bytes");
}

fn check_or_update(name: &str, extension: &str, actual: &[u8]) {
    let path = golden(name, extension);
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, actual).expect("golden can be written");
    }
    let expected = fs::read(&path).expect("golden can be read");
    assert!(
        expected == actual,
        "{} differs: the wire has changed. Raise PROTOCOL_VERSION or undo the change",
        path.display()
    );
}

fn golden(name: &str, extension: &str) -> PathBuf {
    golden_dir().join(name).with_extension(extension)
}

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// The message with its fields named, one field of the body a line; byte strings in hex.
fn json_form(message: &Message) -> String {
    let mut form = Map::new();
    let (opcode, name, seq, wire) = match message {
        Message::Request(envelope) => (
            envelope.request.opcode(),
            envelope.request.name(),
            envelope.seq,
            serde_json::to_value(envelope),
        ),
        Message::Reply(envelope) => (
            envelope.reply.opcode(),
            envelope.reply.name(),
            envelope.seq,
            serde_json::to_value(envelope),
        ),
    };
    form.insert("opcode".to_owned(), json!(opcode));
    form.insert("name".to_owned(), json!(name));
    if let Message::Request(envelope) = message {
        let session = envelope.session.map(|token| hex(&token.0));
        form.insert("session".to_owned(), json!(session));
    }
    form.insert("seq".to_owned(), json!(seq));
    let mut body = match wire {
        Ok(Value::Array(mut elements)) => elements.pop().expect("an envelope ends in a body"),
        other => panic!("{name} is not an array in JSON: {other:?}"),
    };
    if let Some(Value::Array(token)) = body.get("session") {
        let token: Vec<u8> = serde_json::from_value(json!(token)).expect("bytes of a token");
        body["session"] = json!(hex(&token));
    }
    let head = one_line_a_field(&form, "  ");
    let body = body.as_object().expect("a body has named fields");
    let body = match body.is_empty() {
        true => "{}".to_owned(),
        false => format!("{{\n{}\n  }}", one_line_a_field(body, "    ")),
    };
    format!("{{\n{head},\n  \"body\": {body}\n}}\n")
}

fn one_line_a_field(fields: &Map<String, Value>, indent: &str) -> String {
    let lines: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("{indent}{}: {value}", json!(name)))
        .collect();
    lines.join(",\n")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
