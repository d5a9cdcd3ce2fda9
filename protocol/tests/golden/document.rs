//! `PROTOCOL.md` names every message, every field in the order of the wire, and every error code.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use metal_rpc_protocol::ErrorCode;
use serde_json::Value;

use crate::common::{Message, examples};

#[test]
fn every_message_has_a_section_with_its_opcode_and_fields() {
    let sections = sections();
    for (name, message) in examples() {
        let (title, opcode, body) = title_opcode_body(&message);
        let section = sections
            .get(title)
            .unwrap_or_else(|| panic!("no section `{title}`"));
        assert!(
            section.text.contains(&format!("Opcode {opcode}")),
            "opcode of {title}"
        );
        assert_eq!(
            section.fields,
            field_names(&body),
            "fields of {title}, from {name}"
        );
    }
}

#[test]
fn every_structure_has_a_section_and_no_section_is_left_over() {
    let mut structures = BTreeSet::new();
    for (_, message) in examples() {
        collect_structures(&title_opcode_body(&message).2, &mut structures);
    }
    let described: BTreeSet<Vec<String>> = sections()
        .into_values()
        .map(|section| section.fields)
        .filter(|fields| !fields.is_empty())
        .collect();
    assert_eq!(described, structures);
}

#[test]
fn every_error_code_has_a_row() {
    let document = document();
    let codes: Vec<ErrorCode> = (0..=u16::MAX)
        .filter_map(|code| code.try_into().ok())
        .collect();
    assert!(!codes.is_empty());
    for code in codes {
        let row = format!("| {} | `{code:?}` |", u16::from(code));
        assert!(document.contains(&row), "no row `{row}`");
    }
}

#[test]
fn the_worked_example_is_the_golden() {
    let document = document();
    let (_, example) = document
        .split_once("## Worked example")
        .expect("a worked example");
    let block = example.split("```").nth(1).expect("a code block");
    // Bytes stand before the text, which is set off by three spaces; indented ones go on.
    let hex: String = block
        .lines()
        .skip(1)
        .map(|line| line.trim().split("   ").next().unwrap_or_default())
        .flat_map(|bytes| bytes.chars().filter(|letter| *letter != ' '))
        .collect();
    let (_, exec) = examples()
        .into_iter()
        .find(|(name, _)| *name == "exec")
        .expect("exec");
    let expected: String = exec
        .encode()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(hex, expected);
}

/// What stands under one `###` heading.
struct Section {
    text: String,
    fields: Vec<String>,
}

fn sections() -> BTreeMap<String, Section> {
    let document = document();
    let mut sections = BTreeMap::new();
    for text in document.split("\n### `").skip(1) {
        let (title, text) = text.split_once('`').expect("a heading in backticks");
        let text = text.split("\n## ").next().expect("a first part");
        let fields = text
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
            .map(|(field, _)| field.to_owned())
            .collect();
        let section = Section {
            text: text.to_owned(),
            fields,
        };
        let earlier = sections.insert(title.to_owned(), section);
        assert!(earlier.is_none(), "two sections `{title}`");
    }
    sections
}

fn document() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("PROTOCOL.md");
    fs::read_to_string(path).expect("PROTOCOL.md can be read")
}

fn title_opcode_body(message: &Message) -> (&'static str, u8, Value) {
    let (title, opcode, wire) = match message {
        Message::Request(envelope) => (
            envelope.request.name(),
            envelope.request.opcode(),
            serde_json::to_value(envelope),
        ),
        Message::Reply(envelope) => (
            envelope.reply.name(),
            envelope.reply.opcode(),
            serde_json::to_value(envelope),
        ),
    };
    match wire {
        Ok(Value::Array(mut elements)) => (title, opcode, elements.pop().expect("a body")),
        other => panic!("{title} is not an array in JSON: {other:?}"),
    }
}

fn field_names(body: &Value) -> Vec<String> {
    body.as_object()
        .expect("named fields")
        .keys()
        .cloned()
        .collect()
}

fn collect_structures(value: &Value, structures: &mut BTreeSet<Vec<String>>) {
    match value {
        Value::Object(fields) => {
            if !fields.is_empty() {
                structures.insert(field_names(value));
            }
            fields
                .values()
                .for_each(|field| collect_structures(field, structures));
        }
        Value::Array(elements) => {
            elements
                .iter()
                .for_each(|element| collect_structures(element, structures));
        }
        _ => {}
    }
}
