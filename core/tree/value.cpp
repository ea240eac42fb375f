#include <algorithm>
#include <array>
#include <charconv>

#include <meshstage/core/tree/key_index_impl.hpp>
#include <meshstage/core/tree/node.hpp>
#include <meshstage/core/tree/value.hpp>

namespace meshstage {
namespace {

std::string shown(const Key& key) {
  return key.is_string() ? "\"" + key.string() + "\"" : std::to_string(key.integer());
}

// Where it is known, the path goes first: "a.b: is int 7, not tensor".
template <class E>
[[noreturn]] void fail(const Path* where, const std::string& what) {
  if (where == nullptr) throw E(what);
  throw make_error<E>(where->shown() + ": " + what, {}, {}, where->text());
}

std::string no_element(std::size_t i, std::size_t size) {
  return "no element " + std::to_string(i) + " among " + std::to_string(size);
}

std::string no_key(const Dict& dict, const Key& key) {
  std::string text = "no key " + shown(key) + " in a dict of " + std::to_string(dict.size());
  for (std::size_t i = 0; i < std::min<std::size_t>(dict.size(), 5); ++i) {
    text += (i == 0 ? "; there are " : ", ") + shown(dict.begin()[i].first);
  }
  return dict.size() > 5 ? text + ", ..." : text;
}

Path one_part(const Key& key) {
  Path path;
  path.push(key);
  return path;
}

}  // namespace

std::string_view to_string(ValueKind kind) noexcept {
  switch (kind) {
    case ValueKind::kNull:
      return "null";
    case ValueKind::kBool:
      return "bool";
    case ValueKind::kInt:
      return "int";
    case ValueKind::kDouble:
      return "double";
    case ValueKind::kString:
      return "string";
    case ValueKind::kBytes:
      return "bytes";
    case ValueKind::kList:
      return "list";
    case ValueKind::kTuple:
      return "tuple";
    case ValueKind::kDict:
      return "dict";
    case ValueKind::kTensor:
      return "tensor";
    case ValueKind::kNode:
      return "node";
  }
  return "?";
}

// Sequence, List, Tuple

Sequence::Sequence() : impl_(std::make_shared<std::vector<Value>>()) {}
Sequence::Sequence(std::vector<Value> values)
    : impl_(std::make_shared<std::vector<Value>>(std::move(values))) {}
std::size_t Sequence::size() const noexcept { return impl_->size(); }
Value& Sequence::operator[](std::size_t i) noexcept { return (*impl_)[i]; }
const Value& Sequence::operator[](std::size_t i) const noexcept { return (*impl_)[i]; }
const Value* Sequence::begin() const noexcept { return impl_->data(); }
const Value* Sequence::end() const noexcept { return impl_->data() + impl_->size(); }
Value* Sequence::begin() noexcept { return impl_->data(); }
Value* Sequence::end() noexcept { return impl_->data() + impl_->size(); }

ConstPlace Sequence::at(std::size_t i) const {
  if (i >= size()) fail<NotFound>(nullptr, no_element(i, size()));
  return {(*this)[i], one_part(Key(i))};
}

Place Sequence::at(std::size_t i) {
  const auto place = std::as_const(*this).at(i);
  return {(*this)[i], place.path()};
}

List::List(std::initializer_list<Value> values) : Sequence(std::vector<Value>(values)) {}
List::List(std::vector<Value> values) : Sequence(std::move(values)) {}
void List::push_back(Value value) { impl_->push_back(std::move(value)); }
void List::clear() noexcept { impl_->clear(); }
List List::clone() const { return Value(*this).clone().as<List>(); }

Tuple::Tuple(std::initializer_list<Value> values) : Sequence(std::vector<Value>(values)) {}
Tuple::Tuple(std::vector<Value> values) : Sequence(std::move(values)) {}
Tuple Tuple::clone() const { return Value(*this).clone().as<Tuple>(); }

// Dict

struct Dict::Impl {
  std::vector<Entry> entries;
  detail::KeyIndex index;
};

Dict::Dict() : impl_(std::make_shared<Impl>()) {}

Dict Dict::with_keys_of(const Dict& other) {
  Dict result;
  result.impl_->entries.reserve(other.size());
  for (const auto& [key, value] : other) result.impl_->entries.emplace_back(key, Value());
  result.impl_->index = other.impl_->index;
  return result;
}

Dict::Dict(std::initializer_list<std::pair<Key, Value>> entries) : Dict() {
  for (const auto& [key, value] : entries) {
    if (contains(key)) throw InvalidArgument("the key " + shown(key) + " comes twice");
    set(key, value);
  }
}

std::size_t Dict::size() const noexcept { return impl_->entries.size(); }

Value* Dict::find(const Key& key) noexcept {
  return const_cast<Value*>(std::as_const(*this).find(key));
}

const Value* Dict::find(const Key& key) const noexcept {
  const auto at = impl_->index.find(key, impl_->entries);
  return at ? &impl_->entries[*at].second : nullptr;
}

ConstPlace Dict::at(const Key& key) const {
  const Value* found = find(key);
  if (found == nullptr) fail<NotFound>(nullptr, no_key(*this, key));
  return {*found, one_part(key)};
}

Place Dict::at(const Key& key) {
  const auto place = std::as_const(*this).at(key);
  return {*find(key), place.path()};
}

Value& Dict::operator[](const Key& key) {
  if (Value* const found = find(key)) return *found;
  auto& [entries, index] = *impl_;
  index.make_room(entries);
  entries.emplace_back(key, Value());
  index.add(entries.back().first, entries.size() - 1);
  return entries.back().second;
}

void Dict::set(const Key& key, Value value) { (*this)[key] = std::move(value); }

bool Dict::erase(const Key& key) {
  const auto at = impl_->index.find(key, impl_->entries);
  if (!at) return false;
  impl_->entries.erase(impl_->entries.begin() + static_cast<std::ptrdiff_t>(*at));
  impl_->index.renew(impl_->entries);
  return true;
}

void Dict::clear() noexcept {
  impl_->entries.clear();
  impl_->index.clear();
}

const Dict::Entry* Dict::begin() const noexcept { return impl_->entries.data(); }
const Dict::Entry* Dict::end() const noexcept {
  return impl_->entries.data() + impl_->entries.size();
}
Dict::Entry* Dict::begin() noexcept { return impl_->entries.data(); }
Dict::Entry* Dict::end() noexcept { return impl_->entries.data() + impl_->entries.size(); }
std::weak_ptr<const void> Dict::weak() const noexcept { return impl_; }
const void* Dict::identity() const noexcept { return impl_.get(); }
Dict Dict::clone() const { return Value(*this).clone().as<Dict>(); }

// Value

Value::Value(const char* text) : value_(std::string(text)) {}
Value::Value(std::string_view text) : value_(std::string(text)) {}
Value::Value(std::string text) : value_(std::move(text)) {}
Value::Value(Tensor tensor) : Value(std::move(tensor), nullptr) {}

Value::Value(Tensor tensor, Dict attributes)
    : Value(std::move(tensor), std::make_shared<Dict>(std::move(attributes))) {}

Value::Value(Tensor tensor, std::shared_ptr<Dict> attributes) {
  if (!tensor.defined())
    throw InvalidArgument("an undefined tensor cannot be part of a state dict");
  value_ = TensorLeaf{std::move(tensor), std::move(attributes)};
}

Value::Value(NodeTag, NodePtr node) {
  if (!node) throw InvalidArgument("a null node cannot be part of a state dict; use null itself");
  value_ = std::move(node);
}

void Value::wrong_kind(std::string_view wanted, const Path* where) const {
  fail<InvalidArgument>(where, "is " + describe() + ", not " + std::string(wanted));
}

void Value::out_of_range(const Path* where) const {
  fail<InvalidArgument>(where, "is " + describe() + ", which does not fit the type asked for");
}

const Value& Value::child(const Key& key, const Path* where) const {
  if (const auto* dict = get_if<Dict>()) {
    const Value* found = dict->find(key);
    if (found == nullptr) fail<NotFound>(where, no_key(*dict, key));
    return *found;
  }
  const Sequence* sequence = get_if<List>();
  if (sequence == nullptr) sequence = get_if<Tuple>();
  if (sequence == nullptr) {
    fail<InvalidArgument>(where, "is " + describe() + ", which has nothing at " + shown(key));
  }
  if (key.is_string() || key.integer() < 0) {
    fail<InvalidArgument>(
        where, "is " + describe() + ", which has no " + shown(key) + "; an index counts from 0");
  }
  const auto i = static_cast<std::size_t>(key.integer());
  if (i >= sequence->size()) fail<NotFound>(where, no_element(i, sequence->size()));
  return (*sequence)[i];
}

ConstPlace Value::at(const Key& key) const { return {child(key, nullptr), one_part(key)}; }

// The containers are handles; the element is as mutable as its container is for us.
Place Value::at(const Key& key) { return {const_cast<Value&>(child(key, nullptr)), one_part(key)}; }

const Dict* Value::attributes() const noexcept {
  const auto* leaf = std::get_if<TensorLeaf>(&value_);
  return leaf ? leaf->attributes.get() : nullptr;
}

Dict* Value::attributes() noexcept { return const_cast<Dict*>(std::as_const(*this).attributes()); }

std::string Value::describe() const {
  switch (kind()) {
    case ValueKind::kNull:
      return "null";
    case ValueKind::kBool:
      return as<bool>() ? "bool true" : "bool false";
    case ValueKind::kInt:
      return "int " + std::to_string(as<std::int64_t>());
    case ValueKind::kDouble: {
      // The shortest digits that are this number alone: two that differ read differently.
      std::array<char, 32> digits{};
      const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), as<double>());
      return "double " + std::string(digits.data(), end.ptr);
    }
    case ValueKind::kString: {
      const auto& s = as<std::string>();
      return s.size() <= 40 ? "string \"" + s + "\""
                            : "string of " + std::to_string(s.size()) + " bytes";
    }
    case ValueKind::kBytes:
      return std::to_string(as<Bytes>().size()) + " bytes";
    case ValueKind::kList:
      return "list of " + std::to_string(as<List>().size());
    case ValueKind::kTuple:
      return "tuple of " + std::to_string(as<Tuple>().size());
    case ValueKind::kDict:
      return "dict of " + std::to_string(as<Dict>().size());
    case ValueKind::kTensor:
      return as<Tensor>().describe();
    case ValueKind::kNode:
      return "node " + as<NodePtr>()->type_name();
  }
  return "?";
}

}  // namespace meshstage
