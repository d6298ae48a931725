// SPDX-License-Identifier: MIT
// The syntax tree of a template. Names are interned: scopes compare integers.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "chat/jinja_value.h"

namespace sh::chat {

using NameId = int32_t;

struct FilterDef;
struct TestDef;
struct Expr;
struct Stmt;
using ExprPtr = std::unique_ptr<Expr>;
using StmtPtr = std::unique_ptr<Stmt>;
using Block = std::vector<StmtPtr>;

enum class ExprKind : uint8_t {
  constant,   // constant
  name,       // name_id, text
  list,       // children
  tuple,      // children
  dict,       // children: key, value, key, value ...
  attribute,  // children[0] . text
  subscript,  // children[0] [ children[1] ]
  slice,      // children[0] [ children[1] : children[2] : children[3] ], the last three may be null
  call,       // children[0] ( arguments )
  filter,     // children[0] (null in a filter block) | text ( arguments )
  test,       // children[0] is text ( arguments )
  // One child.
  negate,
  plus,
  logical_not,
  // Two or more children.
  logical_and,
  logical_or,
  // Two children.
  add,
  subtract,
  multiply,
  divide,
  floor_divide,
  modulo,
  power,
  concat,       // children, joined as text
  compare,      // children[0] text children[1]; a chain holds its operators in `operators`
  conditional,  // children[0] if children[1] else children[2] (may be null)
};

struct Argument {
  enum class Kind : uint8_t { positional, named, unpack_list, unpack_dict };
  Kind kind = Kind::positional;
  std::string name;
  ExprPtr value;
};

enum class CompareOp : uint8_t { equal, not_equal, less, less_equal, greater, greater_equal, in, not_in };

struct Expr {
  ExprKind kind = ExprKind::constant;
  SourceOffset offset = 0;
  int depth = 1;  // levels of the tree below and including this one; bounded by the parser
  NameId name_id = -1;
  std::string text;
  Value constant;
  std::vector<ExprPtr> children;
  std::vector<Argument> arguments;
  std::vector<CompareOp> operators;
  const FilterDef* filter = nullptr;  // null: there is none of that name
  const TestDef* test = nullptr;      // null: there is none of that name
};

enum class StmtKind : uint8_t {
  text,          // text
  output,        // expr
  if_chain,      // conditions[i] -> bodies[i]; one body more is the else branch
  for_loop,      // target, expr, condition (may be null), bodies[0], bodies[1] (else)
  set,           // target = expr
  set_block,     // target = bodies[0], piped through expr if not null
  filter_block,  // bodies[0] piped through expr
  scope,         // bodies[0] with assignments of its own (`with`)
  plain,         // bodies[0] as it stands (`generation`)
  macro,         // name_id, text, parameters, bodies[0]
  call_block,    // expr is the call; parameters and bodies[0] are its caller
  evaluate,      // expr for its effect (`do`)
  break_loop,
  continue_loop,
};

struct Target {
  enum class Kind : uint8_t { name, attribute, tuple };
  Kind kind = Kind::name;
  NameId name_id = -1;
  std::string attribute;         // of a namespace
  std::vector<Target> children;  // of a tuple
  SourceOffset offset = 0;
};

struct Parameter {
  NameId name_id = -1;
  std::string name;
  ExprPtr default_value;  // may be null
};

struct Stmt {
  StmtKind kind = StmtKind::text;
  SourceOffset offset = 0;
  NameId name_id = -1;
  std::string text;
  Target target;
  ExprPtr expr;
  std::vector<ExprPtr> conditions;
  std::vector<Block> bodies;
  std::vector<Parameter> parameters;
  std::vector<std::pair<Target, ExprPtr>> assignments;
};

class NameTable {
 public:
  NameId intern(const std::string& name) {
    const auto [at, is_new] = ids_.try_emplace(name, static_cast<NameId>(names_.size()));
    if (is_new) names_.push_back(name);
    return at->second;
  }
  /// -1 if the template never says this name.
  NameId find(const std::string& name) const {
    const auto at = ids_.find(name);
    return at == ids_.end() ? -1 : at->second;
  }
  const std::vector<std::string>& names() const { return names_; }

 private:
  std::unordered_map<std::string, NameId> ids_;
  std::vector<std::string> names_;
};

struct TemplateTree {
  std::string source;  // normalised; offsets point into it
  NameTable names;
  Block body;
};

}  // namespace sh::chat
