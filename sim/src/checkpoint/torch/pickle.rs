//! The part of Python's pickle that a dict of tensors needs, read as data. Nothing is executed: the few
//! names that may appear stand for themselves, any other ends the reading.
//!
//! Values live in one list and name each other by position, so that nesting costs no stack. Each
//! instruction makes at most one value, and a value takes at most about 200 bytes for each byte of the
//! instruction that made it.

use super::{Found, Storage, View};
use crate::checkpoint::input::shown;
use safetensors::Dtype;
use std::collections::BTreeMap;

/// Most axes of a tensor.
const MAX_AXES: usize = 8;

/// Position of a value.
type Id = u32;

/// What is wrong: expected, found.
pub(super) type Fault = (String, String);

/// A name of the pickle that may be called, or says what a storage holds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Global {
    OrderedDict,
    Tensor,
    Parameter,
    Storage(Dtype),
}

/// Every name that may appear.
const GLOBALS: [(&str, &str, Global); 13] = [
    ("collections", "OrderedDict", Global::OrderedDict),
    ("torch._utils", "_rebuild_tensor_v2", Global::Tensor),
    ("torch._utils", "_rebuild_parameter", Global::Parameter),
    ("torch", "BFloat16Storage", Global::Storage(Dtype::BF16)),
    ("torch", "BoolStorage", Global::Storage(Dtype::BOOL)),
    ("torch", "ByteStorage", Global::Storage(Dtype::U8)),
    ("torch", "CharStorage", Global::Storage(Dtype::I8)),
    ("torch", "DoubleStorage", Global::Storage(Dtype::F64)),
    ("torch", "FloatStorage", Global::Storage(Dtype::F32)),
    ("torch", "HalfStorage", Global::Storage(Dtype::F16)),
    ("torch", "IntStorage", Global::Storage(Dtype::I32)),
    ("torch", "LongStorage", Global::Storage(Dtype::I64)),
    ("torch", "ShortStorage", Global::Storage(Dtype::I16)),
];

#[derive(Debug)]
enum Node<'p> {
    None,
    Bool,
    Int(i64),
    Float(f64),
    Text(&'p str),
    Global(Global),
    Tuple(Box<[Id]>),
    List,
    Dict(Vec<(Id, Id)>),
    Storage(Storage),
    Tensor(Box<View>),
}

impl Node<'_> {
    fn kind(&self) -> &'static str {
        match self {
            Node::None => "None",
            Node::Bool => "True or False",
            Node::Int(_) => "an integer",
            Node::Float(_) => "a number",
            Node::Text(_) => "a string",
            Node::Global(_) => "a class",
            Node::Tuple(_) => "a tuple",
            Node::List => "a list",
            Node::Dict(_) => "a dict",
            Node::Storage(_) => "a storage",
            Node::Tensor(_) => "a tensor",
        }
    }
}

/// Reads a pickle whose value is a dict with names for keys. `storage` finds a storage by its key: type,
/// name, number of elements.
pub(super) fn read(
    pickle: &[u8],
    storage: impl Fn(Dtype, &str, usize) -> Result<Storage, Fault>,
) -> Result<Vec<(String, Found)>, Fault> {
    let mut machine = Machine {
        pickle,
        at: 0,
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: BTreeMap::new(),
        storage,
    };
    let root = machine.run().map_err(|(expected, found)| {
        let found = format!("{found} (byte {} of the pickle)", machine.at);
        (expected, found)
    })?;
    let pairs = match &machine.nodes[root as usize] {
        Node::Dict(pairs) => pairs,
        other => return Err(fault("a dict of tensors (a state_dict)", other.kind())),
    };
    pairs
        .iter()
        .map(|(key, value)| machine.entry(*key, *value))
        .collect()
}

fn fault(expected: &str, found: impl Into<String>) -> Fault {
    (expected.to_owned(), found.into())
}

struct Machine<'p, F> {
    pickle: &'p [u8],
    at: usize,
    nodes: Vec<Node<'p>>,
    stack: Vec<Id>,
    /// Heights of the stack at each mark.
    marks: Vec<usize>,
    memo: BTreeMap<u32, Id>,
    storage: F,
}

impl<'p, F: Fn(Dtype, &str, usize) -> Result<Storage, Fault>> Machine<'p, F> {
    fn run(&mut self) -> Result<Id, Fault> {
        loop {
            let code = self.bytes(1)?[0];
            match code {
                b'.' => return self.pop(),
                0x80 => match self.bytes(1)?[0] {
                    2..=5 => {}
                    other => return Err(fault("pickle protocol 2 to 5", other.to_string())),
                },
                // A frame only says how many bytes follow.
                0x95 => drop(self.bytes(8)?),
                b'N' => self.push(Node::None)?,
                0x88 | 0x89 => self.push(Node::Bool)?,
                b'K' => {
                    let value = self.bytes(1)?[0];
                    self.push(Node::Int(value.into()))?;
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.push(Node::Int(value.into()))?;
                }
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.push(Node::Int(value.into()))?;
                }
                0x8a => self.long()?,
                b'G' => {
                    let value = f64::from_be_bytes(self.array()?);
                    self.push(Node::Float(value))?;
                }
                b'X' => {
                    let length = u32::from_le_bytes(self.array()?);
                    self.text(length as usize)?;
                }
                0x8c => {
                    let length = self.bytes(1)?[0];
                    self.text(length.into())?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.global(module, name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop_text()?, self.pop_text()?);
                    self.global(module, name)?;
                }
                b'(' => self.marks.push(self.stack.len()),
                b')' => self.push(Node::Tuple([].into()))?,
                0x85..=0x87 => {
                    let items = self.pop_many(usize::from(code - 0x84))?;
                    self.push(Node::Tuple(items.into()))?;
                }
                b't' => {
                    let items = self.pop_marked()?;
                    self.push(Node::Tuple(items.into()))?;
                }
                b']' => self.push(Node::List)?,
                // What lists hold is of no use here.
                b'a' => drop(self.pop()?),
                b'e' => drop(self.pop_marked()?),
                b'}' => self.push(Node::Dict(Vec::new()))?,
                b's' => {
                    let pair = self.pop_many(2)?;
                    self.set_items(&pair)?;
                }
                b'u' => {
                    let items = self.pop_marked()?;
                    self.set_items(&items)?;
                }
                b'q' => {
                    let key = self.bytes(1)?[0];
                    self.remember(key.into())?;
                }
                b'r' => {
                    let key = u32::from_le_bytes(self.array()?);
                    self.remember(key)?;
                }
                0x94 => self.remember(self.memo.len() as u32)?,
                b'h' => {
                    let key = self.bytes(1)?[0];
                    self.recall(key.into())?;
                }
                b'j' => {
                    let key = u32::from_le_bytes(self.array()?);
                    self.recall(key)?;
                }
                b'Q' => self.persistent()?,
                b'R' => self.reduce()?,
                // Attributes of a dict (`_metadata`), which no tensor depends on.
                b'b' => {
                    self.pop()?;
                    let object = self.top()?;
                    if !matches!(self.node(object), Node::Dict(_)) {
                        let kind = self.node(object).kind();
                        return Err(fault("attributes of a dict", format!("those of {kind}")));
                    }
                }
                other => {
                    let found = format!("instruction {other:#04x}");
                    return Err(fault("instructions that make a dict of tensors", found));
                }
            }
        }
    }

    fn bytes(&mut self, count: usize) -> Result<&'p [u8], Fault> {
        let rest = &self.pickle[self.at..];
        let Some(bytes) = rest.get(..count) else {
            return Err(fault("a whole pickle", "its end"));
        };
        self.at += count;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let bytes = self.bytes(N)?;
        Ok(bytes.try_into().expect("as many bytes as asked for"))
    }

    /// An integer of up to 8 bytes.
    fn long(&mut self) -> Result<(), Fault> {
        let length = self.bytes(1)?[0];
        let bytes = self.bytes(length.into())?;
        if bytes.len() > 8 {
            return Err(fault(
                "integers of at most 64 bits",
                format!("{length} bytes"),
            ));
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        self.push(Node::Int(i64::from_le_bytes(wide)))
    }

    fn text(&mut self, length: usize) -> Result<(), Fault> {
        let bytes = self.bytes(length)?;
        let text = std::str::from_utf8(bytes).map_err(|_| fault("UTF-8 text", "other bytes"))?;
        self.push(Node::Text(text))
    }

    fn line(&mut self) -> Result<&'p str, Fault> {
        let rest = &self.pickle[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n');
        let end = end.ok_or_else(|| fault("a whole pickle", "its end"))?;
        let line = self.bytes(end + 1)?;
        std::str::from_utf8(&line[..end]).map_err(|_| fault("UTF-8 text", "other bytes"))
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), Fault> {
        let known = GLOBALS.iter().find(|(m, n, _)| (*m, *n) == (module, name));
        match known {
            Some((.., global)) => self.push(Node::Global(*global)),
            None => {
                let found = format!("{}.{}", shown(module), shown(name));
                Err(fault("a dict of tensors and numbers alone", found))
            }
        }
    }

    fn push(&mut self, node: Node<'p>) -> Result<(), Fault> {
        let id = Id::try_from(self.nodes.len());
        self.stack
            .push(id.map_err(|_| fault("fewer than 2^32 values", "more"))?);
        self.nodes.push(node);
        Ok(())
    }

    /// The lowest place of the stack that may be taken: the last mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Id, Fault> {
        match self.stack.len() > self.floor() {
            true => Ok(self.stack.pop().expect("not empty")),
            false => Err(fault("a value on the stack", "none")),
        }
    }

    fn top(&self) -> Result<Id, Fault> {
        match self.stack.last() {
            Some(id) if self.stack.len() > self.floor() => Ok(*id),
            _ => Err(fault("a value on the stack", "none")),
        }
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Id>, Fault> {
        match self.stack.len().checked_sub(count) {
            Some(first) if first >= self.floor() => Ok(self.stack.split_off(first)),
            _ => Err(fault("values on the stack", "too few")),
        }
    }

    fn pop_marked(&mut self) -> Result<Vec<Id>, Fault> {
        let mark = self.marks.pop();
        let mark = mark.ok_or_else(|| fault("a mark on the stack", "none"))?;
        Ok(self.stack.split_off(mark))
    }

    fn node(&self, id: Id) -> &Node<'p> {
        &self.nodes[id as usize]
    }

    fn pop_text(&mut self) -> Result<&'p str, Fault> {
        let id = self.pop()?;
        self.as_text(id)
    }

    fn as_text(&self, id: Id) -> Result<&'p str, Fault> {
        match self.node(id) {
            Node::Text(text) => Ok(text),
            other => Err(fault("a string", other.kind())),
        }
    }

    fn as_size(&self, id: Id) -> Result<usize, Fault> {
        let fits = |value: i64| usize::try_from(value).ok();
        match self.node(id) {
            Node::Int(value) => fits(*value).ok_or_else(|| fault("a size", value.to_string())),
            other => Err(fault("a size", other.kind())),
        }
    }

    fn as_sizes(&self, id: Id) -> Result<Vec<usize>, Fault> {
        match self.node(id) {
            Node::Tuple(items) if items.len() > MAX_AXES => {
                let expected = format!("at most {MAX_AXES} dimensions");
                Err((expected, items.len().to_string()))
            }
            Node::Tuple(items) => items.iter().map(|item| self.as_size(*item)).collect(),
            other => Err(fault("a tuple of sizes", other.kind())),
        }
    }

    fn remember(&mut self, key: u32) -> Result<(), Fault> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), Fault> {
        let id = self.memo.get(&key).copied();
        let id = id.ok_or_else(|| fault("a value stored before", format!("number {key}")))?;
        self.stack.push(id);
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<(), Fault> {
        let dict = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(fault("a value for each key", "one key more"));
        }
        match &mut self.nodes[dict as usize] {
            Node::Dict(known) => known.extend(pairs.iter().map(|[key, value]| (*key, *value))),
            other => return Err(fault("a dict", other.kind())),
        }
        Ok(())
    }

    /// `('storage', type, key, device, elements)`; the device does not matter.
    fn persistent(&mut self) -> Result<(), Fault> {
        let expected = "('storage', type, key, device, elements)";
        let id = self.pop()?;
        let Node::Tuple(items) = self.node(id) else {
            return Err(fault(expected, self.node(id).kind()));
        };
        let [tag, class, key, _, elements] = items[..] else {
            return Err(fault(expected, format!("a tuple of {}", items.len())));
        };
        let (tag, key) = (self.as_text(tag)?, self.as_text(key)?);
        let Node::Global(Global::Storage(dtype)) = self.node(class) else {
            return Err(fault("the type of a storage", self.node(class).kind()));
        };
        if tag != "storage" {
            return Err(fault(expected, shown(tag)));
        }
        let storage = (self.storage)(*dtype, key, self.as_size(elements)?)?;
        self.push(Node::Storage(storage))
    }

    fn reduce(&mut self) -> Result<(), Fault> {
        let arguments = self.pop()?;
        let Node::Tuple(items) = self.node(arguments) else {
            return Err(fault("a tuple of arguments", self.node(arguments).kind()));
        };
        let items = items.clone();
        let callee = self.pop()?;
        match (self.node(callee), &items[..]) {
            (Node::Global(Global::OrderedDict), []) => self.push(Node::Dict(Vec::new())),
            (Node::Global(Global::Tensor), [storage, offset, shape, strides, _, _, ..]) => {
                let Node::Storage(storage) = self.node(*storage) else {
                    return Err(fault("a storage", self.node(*storage).kind()));
                };
                let (shape, strides) = (self.as_sizes(*shape)?, self.as_sizes(*strides)?);
                let view = View::new(*storage, self.as_size(*offset)?, shape, strides)?;
                self.push(Node::Tensor(Box::new(view)))
            }
            // A parameter is its tensor.
            (Node::Global(Global::Parameter), [tensor, _, _, ..])
                if matches!(self.node(*tensor), Node::Tensor(_)) =>
            {
                self.stack.push(*tensor);
                Ok(())
            }
            (Node::Global(_), _) => Err(fault("the arguments of a tensor", "others")),
            (other, _) => Err(fault("a function of torch", other.kind())),
        }
    }

    /// A pair of the outermost dict.
    fn entry(&self, key: Id, value: Id) -> Result<(String, Found), Fault> {
        let name = match self.node(key) {
            Node::Text(name) => (*name).to_owned(),
            other => return Err(fault("names for keys", other.kind())),
        };
        let found = match self.node(value) {
            Node::Tensor(view) => Found::Tensor((**view).clone()),
            Node::Float(value) => Found::Number(*value),
            Node::Int(value) => Found::Integer(*value),
            other => Found::Other(other.kind()),
        };
        Ok((name, found))
    }
}
