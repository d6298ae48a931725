// SPDX-License-Identifier: MIT
#include "chat/jinja_eval.h"

#include <fmt/format.h>

#include <deque>

#include "chat/jinja_builtins.h"
#include "chat/jinja_operators.h"

namespace sh::chat {

namespace {

/// Variables of one for-loop iteration, macro call, block or template. A few names each: searched from the front.
struct Scope {
  Scope* parent = nullptr;
  std::vector<std::pair<NameId, Value>> variables;
  bool is_captured = false;  // a macro was defined in it and may outlive it

  Value* find(NameId name) {
    for (auto& [id, value] : variables)
      if (id == name) return &value;
    return nullptr;
  }
};

/// Scopes that macros keep alive until the end of the render; about 300 bytes each.
constexpr int kMaxCapturedScopes = 100'000;

enum class Flow : uint8_t { normal, break_loop, continue_loop };

class Evaluator {
 public:
  Evaluator(const TemplateTree& tree, Runtime& rt) : tree_(tree), rt_(rt) {
    scope_ = &scopes_.emplace_back();
    loop_name_ = tree.names.find("loop");
    caller_name_ = tree.names.find("caller");
    varargs_name_ = tree.names.find("varargs");
    kwargs_name_ = tree.names.find("kwargs");
  }

  void define(const std::string& name, Value value) {
    const NameId id = tree_.names.find(name);
    if (id >= 0) assign(id, std::move(value));
  }

  std::string run() {
    run_block(tree_.body);
    return std::move(output_);
  }

 private:
  // --- limits and scopes ----------------------------------------------------------------------------------------

  struct DepthGuard {
    explicit DepthGuard(Evaluator& e) : evaluator(e) {
      if (++evaluator.depth_ > evaluator.rt_.limits().max_depth) {
        --evaluator.depth_;
        fail(fmt::format("nested deeper than {} levels; a macro probably calls itself without end",
                         evaluator.rt_.limits().max_depth));
      }
    }
    ~DepthGuard() { --evaluator.depth_; }
    DepthGuard(const DepthGuard&) = delete;
    DepthGuard& operator=(const DepthGuard&) = delete;
    Evaluator& evaluator;
  };

  /// A scope for the life of this object, inside `parent`.
  struct ScopeGuard {
    ScopeGuard(Evaluator& e, Scope* parent) : evaluator(e), outer(e.scope_) { enter(parent); }
    ~ScopeGuard() {
      leave();
      evaluator.scope_ = outer;
    }
    ScopeGuard(const ScopeGuard&) = delete;
    ScopeGuard& operator=(const ScopeGuard&) = delete;
    /// Forgets the variables, as the next round of a loop does.
    void renew() {
      Scope* parent = evaluator.scope_->parent;
      leave();
      enter(parent);
    }
    void enter(Scope* parent) {
      Evaluator& e = evaluator;
      if (e.free_scopes_.empty()) {
        e.rt_.reserve(sizeof(Scope));
        e.scope_ = &e.scopes_.emplace_back();
      } else {
        e.scope_ = e.free_scopes_.back();
        e.free_scopes_.pop_back();
      }
      e.scope_->parent = parent;
    }
    void leave() {
      Scope* scope = evaluator.scope_;
      if (scope->is_captured) return;
      scope->variables.clear();
      evaluator.free_scopes_.push_back(scope);
    }
    Evaluator& evaluator;
    Scope* outer;
  };

  /// Collects output apart from what is around it.
  struct OutputGuard {
    explicit OutputGuard(Evaluator& e) : evaluator(e) { outer.swap(e.output_); }
    ~OutputGuard() {
      evaluator.n_output_bytes_ -= evaluator.output_.size();
      outer.swap(evaluator.output_);
    }
    OutputGuard(const OutputGuard&) = delete;
    OutputGuard& operator=(const OutputGuard&) = delete;
    Evaluator& evaluator;
    std::string outer;
  };

  void write(std::string_view text) {
    rt_.charge(text.size() / 64);
    n_output_bytes_ += text.size();
    if (n_output_bytes_ > rt_.limits().max_output_bytes)
      fail(fmt::format("the prompt is longer than {} bytes", rt_.limits().max_output_bytes));
    output_ += text;
  }

  void assign(NameId name, Value value) {
    if (Value* slot = scope_->find(name))
      *slot = std::move(value);
    else
      scope_->variables.emplace_back(name, std::move(value));
  }

  Value look_up(const Expr& name) {
    for (Scope* scope = scope_; scope; scope = scope->parent)
      if (Value* value = scope->find(name.name_id)) return *value;
    return rt_.undefined(name.text);
  }

  // --- statements -----------------------------------------------------------------------------------------------

  Flow run_block(const Block& block) {
    const DepthGuard depth(*this);
    for (const StmtPtr& stmt : block) {
      rt_.charge(1);
      Flow flow = Flow::normal;
      try {
        flow = run_statement(*stmt);
      } catch (TemplateError& error) {
        if (error.offset == kNoOffset) error.offset = stmt->offset;
        throw;
      }
      if (flow != Flow::normal) return flow;
    }
    return Flow::normal;
  }

  Flow run_statement(const Stmt& stmt) {
    switch (stmt.kind) {
      case StmtKind::text:
        write(stmt.text);
        return Flow::normal;
      case StmtKind::output:
        write_value(*stmt.expr);
        return Flow::normal;
      case StmtKind::if_chain:
        return run_if(stmt);
      case StmtKind::for_loop:
        return run_for(stmt);
      case StmtKind::set:
        assign_target(stmt.target, evaluate(*stmt.expr));
        return Flow::normal;
      case StmtKind::set_block:
        assign_target(stmt.target, captured(stmt));
        return Flow::normal;
      case StmtKind::filter_block:
        write(to_text(rt_, captured(stmt)));
        return Flow::normal;
      case StmtKind::scope:
        return run_scope(stmt);
      case StmtKind::plain:
        return run_block(stmt.bodies[0]);
      case StmtKind::macro:
        define_macro(stmt);
        return Flow::normal;
      case StmtKind::call_block:
        run_call_block(stmt);
        return Flow::normal;
      case StmtKind::evaluate:
        evaluate(*stmt.expr);
        return Flow::normal;
      case StmtKind::break_loop:
        return Flow::break_loop;
      case StmtKind::continue_loop:
        return Flow::continue_loop;
    }
    return Flow::normal;
  }

  void write_value(const Expr& expr) {
    const Value value = evaluate(expr);
    if (value.is_string())
      write(value.text());
    else
      write(to_text(rt_, value));
  }

  Flow run_if(const Stmt& stmt) {
    for (size_t i = 0; i < stmt.conditions.size(); ++i)
      if (is_true(evaluate(*stmt.conditions[i]))) return run_block(stmt.bodies[i]);
    if (stmt.bodies.size() > stmt.conditions.size()) return run_block(stmt.bodies.back());
    return Flow::normal;
  }

  std::vector<Value> loop_items(const Stmt& stmt) {
    std::vector<Value> items = iterate(rt_, evaluate(*stmt.expr));
    if (stmt.conditions.empty()) return items;
    std::vector<Value> kept;
    ScopeGuard scope(*this, scope_);
    for (Value& item : items) {
      scope.renew();
      assign_target(stmt.target, item);
      if (is_true(evaluate(*stmt.conditions[0]))) kept.push_back(std::move(item));
    }
    return kept;
  }

  Flow run_for(const Stmt& stmt) {
    std::vector<Value> items = loop_items(stmt);
    if (items.empty()) return run_block(stmt.bodies[1]);
    const Value loop_value = rt_.loop(std::move(items));
    LoopData& loop = loop_value.loop_data();
    const auto n_items = static_cast<int64_t>(loop.items.size());
    ScopeGuard scope(*this, scope_);
    for (; loop.index0 < n_items; ++loop.index0) {
      rt_.charge(1);
      scope.renew();
      assign_target(stmt.target, loop.items[static_cast<size_t>(loop.index0)]);
      if (loop_name_ >= 0) assign(loop_name_, loop_value);
      if (run_block(stmt.bodies[0]) == Flow::break_loop) break;
    }
    return Flow::normal;
  }

  /// The text of a body, piped through the filters of the statement.
  Value captured(const Stmt& stmt) {
    Value text;
    {
      const OutputGuard output(*this);
      ScopeGuard scope(*this, scope_);
      run_block(stmt.bodies[0]);
      text = rt_.string(std::move(output_));
      output_.clear();
      n_output_bytes_ -= text.text().size();
    }
    return stmt.expr ? apply_filter(*stmt.expr, &text) : text;
  }

  Flow run_scope(const Stmt& stmt) {
    std::vector<Value> values;  // of the scope outside, all of them before the first name is set
    for (const auto& assignment : stmt.assignments) values.push_back(evaluate(*assignment.second));
    ScopeGuard scope(*this, scope_);
    for (size_t i = 0; i < values.size(); ++i) assign_target(stmt.assignments[i].first, std::move(values[i]));
    return run_block(stmt.bodies[0]);
  }

  void assign_target(const Target& target, Value value) {
    switch (target.kind) {
      case Target::Kind::name:
        return assign(target.name_id, std::move(value));
      case Target::Kind::attribute:
        return assign_attribute(target, std::move(value));
      case Target::Kind::tuple:
        break;
    }
    const std::vector<Value> items = iterate(rt_, value);
    if (items.size() != target.children.size())
      throw TemplateError{
          fmt::format("cannot unpack {} values into {} names", items.size(), target.children.size()),
          target.offset};
    for (size_t i = 0; i < items.size(); ++i) assign_target(target.children[i], items[i]);
  }

  void assign_attribute(const Target& target, Value value) {
    for (Scope* scope = scope_; scope; scope = scope->parent) {
      Value* object = scope->find(target.name_id);
      if (!object) continue;
      if (!object->is(ValueKind::name_space))
        throw TemplateError{fmt::format("cannot set an attribute of a value of type {}, only of a namespace()",
                                        type_name(*object)),
                            target.offset};
      const Value name_space = *object;
      return rt_.set(name_space, rt_.string(target.attribute), std::move(value));
    }
    throw TemplateError{"cannot set an attribute of an undefined value", target.offset};
  }

  // --- macros ---------------------------------------------------------------------------------------------------

  Value make_callable(const std::string& name, const Stmt& stmt) {
    // Every scope that the body can see must stay as long as the callable may.
    for (Scope* scope = scope_; scope && !scope->is_captured; scope = scope->parent) {
      if (++n_captured_scopes_ > kMaxCapturedScopes) fail("macros are defined in too many places");
      scope->is_captured = true;
    }
    Scope* home = scope_;
    return rt_.callable(name, [this, &stmt, home, name](Runtime&, const CallArgs& args) {
      return call_macro(name, stmt, home, args);
    });
  }

  void define_macro(const Stmt& stmt) { assign(stmt.name_id, make_callable(stmt.text, stmt)); }

  void run_call_block(const Stmt& stmt) {
    const Expr& call = *stmt.expr;
    CallArgs args = evaluate_arguments(call);
    args.named.emplace_back("caller", make_callable("caller", stmt));
    write(to_text(rt_, call_expression(call, args)));
  }

  Value call_macro(const std::string& name, const Stmt& stmt, Scope* home, const CallArgs& args) {
    const DepthGuard depth(*this);
    const OutputGuard output(*this);
    const ScopeGuard scope(*this, home);
    bind_parameters(name, stmt, args);
    run_block(stmt.bodies[0]);
    Value text = rt_.string(std::move(output_));
    output_.clear();
    n_output_bytes_ -= text.text().size();
    return text;
  }

  void bind_parameters(const std::string& name, const Stmt& stmt, const CallArgs& args) {
    const auto& parameters = stmt.parameters;
    std::vector<Value> extra_positional;
    std::vector<std::pair<Value, Value>> extra_named;
    // A macro called without a block must not see the caller of a macro around it; the block itself may.
    if (caller_name_ >= 0 && stmt.kind == StmtKind::macro) assign(caller_name_, rt_.undefined("caller"));
    for (size_t i = parameters.size(); i < args.positional.size(); ++i)
      extra_positional.push_back(args.positional[i]);
    for (const auto& [key, value] : args.named) {
      if (key == "caller" && caller_name_ >= 0) {
        assign(caller_name_, value);
        continue;
      }
      size_t i = 0;
      while (i < parameters.size() && parameters[i].name != key) ++i;
      if (i == parameters.size())
        extra_named.emplace_back(rt_.string(key), value);
      else if (i < args.positional.size())
        fail(fmt::format("{}() got two values for '{}'", name, key));
    }
    if (!extra_positional.empty() && varargs_name_ < 0)
      fail(fmt::format("{}() takes {} arguments, got {}", name, parameters.size(), args.positional.size()));
    if (!extra_named.empty() && kwargs_name_ < 0)
      fail(fmt::format("{}() has no parameter '{}'", name, extra_named[0].first.text()));
    if (varargs_name_ >= 0) assign(varargs_name_, rt_.tuple(std::move(extra_positional)));
    if (kwargs_name_ >= 0) assign(kwargs_name_, rt_.dict(std::move(extra_named)));
    for (size_t i = 0; i < parameters.size(); ++i) {
      const Parameter& parameter = parameters[i];
      if (const Value* given = args.find(i, parameter.name))
        assign(parameter.name_id, *given);
      else
        assign(parameter.name_id,
               parameter.default_value ? evaluate(*parameter.default_value) : rt_.undefined(parameter.name));
    }
  }

  // --- expressions ----------------------------------------------------------------------------------------------

  Value evaluate(const Expr& expr) {
    const DepthGuard depth(*this);
    rt_.charge(1);
    try {
      return dispatch(expr);
    } catch (TemplateError& error) {
      if (error.offset == kNoOffset) error.offset = expr.offset;
      throw;
    }
  }
  Value child(const Expr& expr, size_t i) { return expr.children[i] ? evaluate(*expr.children[i]) : Value(); }

  Value dispatch(const Expr& expr) {
    switch (expr.kind) {
      case ExprKind::constant:
        return expr.constant;
      case ExprKind::name:
        return look_up(expr);
      case ExprKind::list:
        return rt_.list(evaluate_children(expr));
      case ExprKind::tuple:
        return rt_.tuple(evaluate_children(expr));
      case ExprKind::dict:
        return make_dict(expr);
      case ExprKind::attribute:
        return attribute_of(child(expr, 0), expr.text);
      case ExprKind::subscript:
        return subscript(expr);
      case ExprKind::slice:
        return slice(expr);
      case ExprKind::call:
        return call_expression(expr, evaluate_arguments(expr));
      case ExprKind::filter:
        return apply_filter(expr, nullptr);
      case ExprKind::test:
        return apply_test(expr);
      case ExprKind::logical_not:
        return Value::boolean(!is_true(child(expr, 0)));
      case ExprKind::logical_and:
      case ExprKind::logical_or:
        return logical(expr);
      case ExprKind::concat:
        return concat(expr);
      case ExprKind::compare:
        return compare_chain(expr);
      case ExprKind::conditional:
        return is_true(child(expr, 1)) ? child(expr, 0)
               : expr.children[2]      ? child(expr, 2)
                                       : rt_.undefined("the missing else of an inline if");
      case ExprKind::negate:
        return negate(child(expr, 0));
      case ExprKind::plus:
        return add(rt_, Value::integer(0), child(expr, 0));
      case ExprKind::add:
      case ExprKind::subtract:
      case ExprKind::multiply:
      case ExprKind::divide:
      case ExprKind::floor_divide:
      case ExprKind::modulo:
      case ExprKind::power:
        return binary(expr);
    }
    return {};
  }

  std::vector<Value> evaluate_children(const Expr& expr) {
    std::vector<Value> values;
    values.reserve(expr.children.size());
    for (const ExprPtr& item : expr.children) values.push_back(evaluate(*item));
    return values;
  }

  Value make_dict(const Expr& expr) {
    const Value dict = rt_.dict({});
    for (size_t i = 0; i + 1 < expr.children.size(); i += 2) {
      const Value key = child(expr, i);
      if (key.is_sequence() ? key.is(ValueKind::list) : key.is_dict())
        fail(fmt::format("a value of type {} cannot be a key", type_name(key)));
      rt_.set(dict, key, child(expr, i + 1));
    }
    return dict;
  }

  Value subscript(const Expr& expr) {
    const Value object = child(expr, 0);
    return item_of(rt_, object, child(expr, 1));
  }

  Value slice(const Expr& expr) {
    const Value object = child(expr, 0), first = child(expr, 1), last = child(expr, 2), step = child(expr, 3);
    return slice_of(rt_, object, first, last, step);
  }

  Value logical(const Expr& expr) {
    const bool stop = expr.kind == ExprKind::logical_or;
    Value value;
    for (const ExprPtr& operand : expr.children) {
      value = evaluate(*operand);
      if (is_true(value) == stop) break;
    }
    return value;
  }

  Value concat(const Expr& expr) {
    std::string text;
    for (const ExprPtr& part : expr.children) {
      const std::string piece = to_text(rt_, evaluate(*part));
      rt_.reserve(text.size() + piece.size());
      text += piece;
    }
    return rt_.string(std::move(text));
  }

  Value compare_chain(const Expr& expr) {
    Value left = child(expr, 0);
    for (size_t i = 0; i < expr.operators.size(); ++i) {
      Value right = child(expr, i + 1);
      if (!compare(rt_, expr.operators[i], left, right)) return Value::boolean(false);
      left = std::move(right);
    }
    return Value::boolean(true);
  }

  Value binary(const Expr& expr) {
    const Value a = child(expr, 0), b = child(expr, 1);
    switch (expr.kind) {
      case ExprKind::add:
        return add(rt_, a, b);
      case ExprKind::subtract:
        return subtract(a, b);
      case ExprKind::multiply:
        return multiply(rt_, a, b);
      case ExprKind::divide:
        return divide(a, b);
      case ExprKind::floor_divide:
        return floor_divide(a, b);
      case ExprKind::modulo:
        return modulo(rt_, a, b);
      default:
        return power(a, b);
    }
  }

  /// `object.name`: a method if the type has one of that name, else an item.
  Value attribute_of(const Value& object, const std::string& name) {
    if (const MethodDef* method = find_method(object, name))
      return rt_.callable(
          name, [method, object](Runtime& rt, const CallArgs& args) { return method->call(rt, object, args); });
    return dotted_item(rt_, object, name);
  }

  CallArgs evaluate_arguments(const Expr& expr) {
    CallArgs args;
    for (const Argument& argument : expr.arguments) {
      Value value = evaluate(*argument.value);
      switch (argument.kind) {
        case Argument::Kind::positional:
          args.positional.push_back(std::move(value));
          break;
        case Argument::Kind::named:
          args.named.emplace_back(argument.name, std::move(value));
          break;
        case Argument::Kind::unpack_list:
          for (Value& item : iterate(rt_, value)) args.positional.push_back(std::move(item));
          break;
        case Argument::Kind::unpack_dict:
          if (!value.is_dict()) fail(fmt::format("** needs a dictionary, not {}", type_name(value)));
          rt_.charge(value.dict_data().entries.size());
          for (const auto& [key, item] : value.dict_data().entries)
            args.named.emplace_back(to_text(rt_, key), item);
          break;
      }
    }
    return args;
  }

  Value call_expression(const Expr& expr, const CallArgs& args) {
    const Expr& callee = *expr.children[0];
    Value function;
    if (callee.kind == ExprKind::attribute) {
      const Value object = child(callee, 0);
      // Not through attribute_of: a bound method would live until the end of the render.
      if (const MethodDef* method = find_method(object, callee.text)) return method->call(rt_, object, args);
      function = attribute_of(object, callee.text);
    } else {
      function = evaluate(callee);
    }
    if (function.is_undefined()) fail(fmt::format("'{}' is undefined", function.missing_name()));
    if (!function.is(ValueKind::callable))
      fail(fmt::format("a value of type {} cannot be called", type_name(function)));
    return function.callable_data().call(rt_, args);
  }

  /// `block_text`: the input of the innermost filter of a filter or set block.
  Value apply_filter(const Expr& expr, const Value* block_text) {
    const DepthGuard depth(*this);
    const Value input = expr.children[0] == nullptr ? *block_text
                        : block_text != nullptr     ? apply_filter(*expr.children[0], block_text)
                                                    : evaluate(*expr.children[0]);
    if (!expr.filter) throw TemplateError{fmt::format("there is no filter '{}'", expr.text), expr.offset};
    return expr.filter->apply(rt_, input, evaluate_arguments(expr));
  }

  Value apply_test(const Expr& expr) {
    const Value input = child(expr, 0);
    if (!expr.test) throw TemplateError{fmt::format("there is no test '{}'", expr.text), expr.offset};
    return Value::boolean(expr.test->holds(rt_, input, evaluate_arguments(expr)));
  }

  const TemplateTree& tree_;
  Runtime& rt_;
  std::deque<Scope> scopes_;
  std::vector<Scope*> free_scopes_;
  Scope* scope_ = nullptr;
  std::string output_;
  uint64_t n_output_bytes_ = 0;  // of all outputs that are being collected
  int depth_ = 0;
  int n_captured_scopes_ = 0;
  NameId loop_name_ = -1, caller_name_ = -1, varargs_name_ = -1, kwargs_name_ = -1;
};

}  // namespace

std::string evaluate_template(const TemplateTree& tree, Runtime& rt,
                              const std::vector<std::pair<std::string, Value>>& variables) {
  Evaluator evaluator(tree, rt);
  for (const FunctionDef& function : global_functions())
    if (tree.names.find(std::string(function.name)) >= 0)
      evaluator.define(std::string(function.name), rt.callable(std::string(function.name), function.call));
  for (const auto& [name, value] : variables) evaluator.define(name, value);
  return evaluator.run();
}

}  // namespace sh::chat
