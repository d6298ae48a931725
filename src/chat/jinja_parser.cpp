// SPDX-License-Identifier: MIT
#include "chat/jinja_parser.h"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>

#include "chat/jinja_builtins.h"
#include "chat/jinja_lexer.h"

namespace sh::chat {

namespace {

constexpr int kMaxTreeDepth = 150;

using Words = std::initializer_list<std::string_view>;

class Parser {
 public:
  Parser(std::vector<Token> tokens, NameTable& names) : tokens_(std::move(tokens)), names_(names) {}

  Block run() {
    Block body;
    const std::string_view end = parse_block(body, {});
    if (!end.empty()) error(peek(), fmt::format("'{}' does not close anything here", end));
    return body;
  }

 private:
  // --- tokens ---------------------------------------------------------------------------------------------------

  const Token& peek(size_t ahead = 0) const { return tokens_[std::min(at_ + ahead, tokens_.size() - 1)]; }
  const Token& next() {
    const Token& token = peek();
    if (at_ + 1 < tokens_.size()) ++at_;
    return token;
  }
  bool is_op(std::string_view op, size_t ahead = 0) const {
    return peek(ahead).kind == TokenKind::op && peek(ahead).text == op;
  }
  bool is_word(std::string_view word, size_t ahead = 0) const {
    return peek(ahead).kind == TokenKind::name && peek(ahead).text == word;
  }
  bool take_op(std::string_view op) { return is_op(op) && (next(), true); }
  bool take_word(std::string_view word) { return is_word(word) && (next(), true); }

  [[noreturn]] static void error(const Token& token, std::string message) {
    throw TemplateError{std::move(message), token.offset};
  }
  static std::string describe(const Token& token) {
    switch (token.kind) {
      case TokenKind::text:
        return "text";
      case TokenKind::block_begin:
        return "'{%'";
      case TokenKind::block_end:
        return "'%}'";
      case TokenKind::variable_begin:
        return "'{{'";
      case TokenKind::variable_end:
        return "'}}'";
      case TokenKind::string:
        return "a string";
      case TokenKind::integer:
      case TokenKind::real:
        return "a number";
      case TokenKind::end:
        return "the end of the template";
      case TokenKind::name:
      case TokenKind::op:
        return fmt::format("'{}'", token.text);
    }
    return {};
  }
  [[noreturn]] void unexpected(std::string_view wanted) const {
    error(peek(), fmt::format("expected {}, got {}", wanted, describe(peek())));
  }
  void expect_op(std::string_view op) {
    if (!take_op(op)) unexpected(fmt::format("'{}'", op));
  }
  void expect_word(std::string_view word) {
    if (!take_word(word)) unexpected(fmt::format("'{}'", word));
  }
  std::string expect_name() {
    if (peek().kind != TokenKind::name) unexpected("a name");
    return next().text;
  }
  void expect_block_end() {
    if (peek().kind != TokenKind::block_end) unexpected("'%}'");
    next();
  }

  // --- nodes ----------------------------------------------------------------------------------------------------

  /// Counts nesting while a rule is being parsed.
  struct Nesting {
    explicit Nesting(Parser& p) : parser(p) {
      if (++parser.nesting_ > kMaxTreeDepth)
        error(parser.peek(), fmt::format("nested deeper than {} levels", kMaxTreeDepth));
    }
    ~Nesting() { --parser.nesting_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;
    Parser& parser;
  };

  ExprPtr make(ExprKind kind, SourceOffset offset) const {
    auto node = std::make_unique<Expr>();
    node->kind = kind;
    node->offset = offset;
    return node;
  }
  template <typename... Children>
  ExprPtr make(ExprKind kind, SourceOffset offset, Children... children) const {
    ExprPtr node = make(kind, offset);
    (node->children.push_back(std::move(children)), ...);
    return deepen(std::move(node));
  }
  /// Sets the depth of a node from its children: chains like a + b + c grow the tree without nesting the parser.
  ExprPtr deepen(ExprPtr node) const {
    for (const ExprPtr& child : node->children)
      if (child) node->depth = std::max(node->depth, child->depth + 1);
    for (const Argument& argument : node->arguments)
      node->depth = std::max(node->depth, argument.value->depth + 1);
    if (node->depth > kMaxTreeDepth)
      throw TemplateError{fmt::format("an expression deeper than {} levels", kMaxTreeDepth), node->offset};
    return node;
  }

  // --- expressions, loosest binding first -----------------------------------------------------------------------

  ExprPtr parse_expression(bool with_conditional = true) {
    const Nesting nesting(*this);
    return with_conditional ? parse_conditional() : parse_or();
  }

  ExprPtr parse_conditional() {
    ExprPtr value = parse_or();
    while (is_word("if")) {
      const SourceOffset offset = next().offset;
      ExprPtr condition = parse_or();
      ExprPtr otherwise;
      if (take_word("else")) otherwise = parse_expression();
      value = make(ExprKind::conditional, offset, std::move(value), std::move(condition), std::move(otherwise));
    }
    return value;
  }

  /// One flat node for a chain of the same operator.
  ExprPtr parse_logical(std::string_view word, ExprKind kind, ExprPtr (Parser::*parse_operand)()) {
    ExprPtr first = (this->*parse_operand)();
    if (!is_word(word)) return first;
    ExprPtr node = make(kind, peek().offset);
    node->children.push_back(std::move(first));
    while (take_word(word)) node->children.push_back((this->*parse_operand)());
    return deepen(std::move(node));
  }
  ExprPtr parse_or() { return parse_logical("or", ExprKind::logical_or, &Parser::parse_and); }
  ExprPtr parse_and() { return parse_logical("and", ExprKind::logical_and, &Parser::parse_not); }

  ExprPtr parse_not() {
    if (!is_word("not")) return parse_compare();
    const Nesting nesting(*this);
    const SourceOffset offset = next().offset;
    return make(ExprKind::logical_not, offset, parse_not());
  }

  bool take_compare(CompareOp& op) {
    static constexpr std::pair<std::string_view, CompareOp> kOps[] = {
        {"==", CompareOp::equal},         {"!=", CompareOp::not_equal}, {"<=", CompareOp::less_equal},
        {">=", CompareOp::greater_equal}, {"<", CompareOp::less},       {">", CompareOp::greater}};
    for (const auto& [text, value] : kOps)
      if (take_op(text)) return op = value, true;
    if (take_word("in")) return op = CompareOp::in, true;
    if (is_word("not") && is_word("in", 1)) return next(), next(), op = CompareOp::not_in, true;
    return false;
  }

  ExprPtr parse_compare() {
    ExprPtr first = parse_sum();
    CompareOp op{};
    const SourceOffset offset = peek().offset;
    if (!take_compare(op)) return first;
    ExprPtr node = make(ExprKind::compare, offset);
    node->children.push_back(std::move(first));
    do {
      node->operators.push_back(op);
      node->children.push_back(parse_sum());
    } while (take_compare(op));
    return deepen(std::move(node));
  }

  using BinaryOps = std::initializer_list<std::pair<std::string_view, ExprKind>>;
  ExprPtr parse_binary(BinaryOps ops, ExprPtr (Parser::*parse_operand)()) {
    ExprPtr left = (this->*parse_operand)();
    for (;;) {
      const auto op =
          std::find_if(ops.begin(), ops.end(), [&](const auto& candidate) { return is_op(candidate.first); });
      if (op == ops.end()) return left;
      const SourceOffset offset = next().offset;
      ExprPtr right = (this->*parse_operand)();
      left = make(op->second, offset, std::move(left), std::move(right));
    }
  }
  ExprPtr parse_sum() {
    return parse_binary({{"+", ExprKind::add}, {"-", ExprKind::subtract}}, &Parser::parse_concat);
  }
  ExprPtr parse_concat() {
    ExprPtr first = parse_product();
    if (!is_op("~")) return first;
    ExprPtr node = make(ExprKind::concat, peek().offset);
    node->children.push_back(std::move(first));
    while (take_op("~")) node->children.push_back(parse_product());
    return deepen(std::move(node));
  }
  ExprPtr parse_product() {
    return parse_binary({{"*", ExprKind::multiply},
                         {"/", ExprKind::divide},
                         {"//", ExprKind::floor_divide},
                         {"%", ExprKind::modulo}},
                        &Parser::parse_power);
  }
  ExprPtr parse_power() { return parse_binary({{"**", ExprKind::power}}, &Parser::parse_filtered_unary); }
  ExprPtr parse_filtered_unary() { return parse_unary(true); }

  ExprPtr parse_unary(bool with_filters) {
    const Nesting nesting(*this);
    ExprPtr node;
    if (is_op("-") || is_op("+")) {
      const Token& sign = next();
      node = make(sign.text == "-" ? ExprKind::negate : ExprKind::plus, sign.offset, parse_unary(false));
    } else {
      node = parse_primary();
    }
    node = parse_postfix(std::move(node));
    return with_filters ? parse_filters_and_tests(std::move(node)) : std::move(node);
  }

  ExprPtr parse_constant(const Token& token, Value value) const {
    ExprPtr node = make(ExprKind::constant, token.offset);
    node->constant = std::move(value);
    return node;
  }

  ExprPtr parse_primary() {
    const Token& token = peek();
    switch (token.kind) {
      case TokenKind::name:
        return parse_name();
      case TokenKind::integer:
        return parse_constant(next(), Value::integer(token.integer));
      case TokenKind::real:
        return parse_constant(next(), Value::real(token.real));
      case TokenKind::string: {
        std::string text;  // neighbours are one string
        while (peek().kind == TokenKind::string) text += next().text;
        return parse_constant(token, Value::constant(std::move(text)));
      }
      default:
        break;
    }
    if (take_op("(")) {
      ExprPtr inner = parse_tuple(true, true, {});
      expect_op(")");
      return inner;
    }
    if (is_op("[")) return parse_list();
    if (is_op("{")) return parse_dict();
    unexpected("an expression");
  }

  ExprPtr parse_name() {
    const Token& token = next();
    const std::string& word = token.text;
    if (word == "true" || word == "True") return parse_constant(token, Value::boolean(true));
    if (word == "false" || word == "False") return parse_constant(token, Value::boolean(false));
    if (word == "none" || word == "None") return parse_constant(token, Value::none());
    ExprPtr node = make(ExprKind::name, token.offset);
    node->text = word;
    node->name_id = names_.intern(word);
    return node;
  }

  ExprPtr parse_list() {
    ExprPtr node = make(ExprKind::list, next().offset);
    while (!is_op("]")) {
      if (!node->children.empty()) expect_op(",");
      if (is_op("]")) break;
      node->children.push_back(parse_expression());
    }
    next();
    return deepen(std::move(node));
  }

  ExprPtr parse_dict() {
    ExprPtr node = make(ExprKind::dict, next().offset);
    while (!is_op("}")) {
      if (!node->children.empty()) expect_op(",");
      if (is_op("}")) break;
      node->children.push_back(parse_expression());
      expect_op(":");
      node->children.push_back(parse_expression());
    }
    next();
    return deepen(std::move(node));
  }

  bool is_tuple_end(Words end_words) const {
    if (peek().kind == TokenKind::variable_end || peek().kind == TokenKind::block_end || is_op(")")) return true;
    return std::any_of(end_words.begin(), end_words.end(), [&](std::string_view word) { return is_word(word); });
  }

  /// One expression, or several with commas: a tuple.
  ExprPtr parse_tuple(bool with_conditional, bool may_be_empty, Words end_words) {
    const SourceOffset offset = peek().offset;
    std::vector<ExprPtr> items;
    bool is_tuple = false;
    while (!is_tuple_end(end_words)) {
      items.push_back(parse_expression(with_conditional));
      if (!take_op(",")) break;
      is_tuple = true;
    }
    if (!is_tuple && items.size() == 1) return std::move(items[0]);
    if (!is_tuple && !may_be_empty) unexpected("an expression");
    ExprPtr node = make(ExprKind::tuple, offset);
    node->children = std::move(items);
    return deepen(std::move(node));
  }

  ExprPtr parse_postfix(ExprPtr node) {
    for (;;) {
      if (is_op("."))
        node = parse_dot(std::move(node));
      else if (is_op("["))
        node = parse_brackets(std::move(node));
      else if (is_op("("))
        node = parse_call(std::move(node));
      else
        return node;
    }
  }

  ExprPtr parse_dot(ExprPtr object) {
    const SourceOffset offset = next().offset;
    if (peek().kind == TokenKind::integer) {
      const Token& index = next();
      return make(ExprKind::subscript, offset, std::move(object),
                  parse_constant(index, Value::integer(index.integer)));
    }
    ExprPtr node = make(ExprKind::attribute, offset, std::move(object));
    node->text = expect_name();
    return node;
  }

  ExprPtr parse_brackets(ExprPtr object) {
    const SourceOffset offset = next().offset;
    const auto at_bound_end = [&] { return is_op(":") || is_op("]"); };
    ExprPtr first, last, step;
    if (!at_bound_end()) first = parse_tuple(true, false, {});
    if (take_op("]")) {
      if (!first) error(tokens_[at_ - 1], "expected an index between the brackets");
      return make(ExprKind::subscript, offset, std::move(object), std::move(first));
    }
    expect_op(":");
    if (!at_bound_end()) last = parse_expression();
    if (take_op(":") && !at_bound_end()) step = parse_expression();
    expect_op("]");
    return make(ExprKind::slice, offset, std::move(object), std::move(first), std::move(last), std::move(step));
  }

  std::vector<Argument> parse_arguments() {
    std::vector<Argument> arguments;
    expect_op("(");
    while (!is_op(")")) {
      if (!arguments.empty()) expect_op(",");
      if (is_op(")")) break;
      Argument argument;
      if (take_op("**")) {
        argument.kind = Argument::Kind::unpack_dict;
      } else if (take_op("*")) {
        argument.kind = Argument::Kind::unpack_list;
      } else if (peek().kind == TokenKind::name && is_op("=", 1)) {
        argument.kind = Argument::Kind::named;
        argument.name = next().text;
        next();
      } else if (!arguments.empty() && arguments.back().kind == Argument::Kind::named) {
        error(peek(), "a positional argument follows a named one");
      }
      argument.value = parse_expression();
      arguments.push_back(std::move(argument));
    }
    next();
    return arguments;
  }

  ExprPtr parse_call(ExprPtr callee) {
    ExprPtr node = make(ExprKind::call, peek().offset, std::move(callee));
    node->arguments = parse_arguments();
    return deepen(std::move(node));
  }

  ExprPtr parse_filters_and_tests(ExprPtr node) {
    for (;;) {
      if (is_op("|")) {
        next();
        node = parse_filter(std::move(node));
      } else if (is_word("is")) {
        node = parse_test(std::move(node));
      } else if (is_op("(")) {
        node = parse_call(std::move(node));
      } else {
        return node;
      }
    }
  }

  std::string parse_dotted_name() {
    std::string name = expect_name();
    while (take_op(".")) name.append(".").append(expect_name());
    return name;
  }

  /// A filter name with its arguments; `input` is null in filter and set blocks.
  ExprPtr parse_filter(ExprPtr input) {
    ExprPtr node = make(ExprKind::filter, peek().offset);
    node->text = parse_dotted_name();
    node->filter = find_filter(node->text);
    if (is_op("(")) node->arguments = parse_arguments();
    node->children.push_back(std::move(input));
    return deepen(std::move(node));
  }

  ExprPtr parse_filter_chain() {
    ExprPtr node = parse_filter(nullptr);
    while (take_op("|")) node = parse_filter(std::move(node));
    return node;
  }

  bool starts_test_argument() const {
    switch (peek().kind) {
      case TokenKind::name:
        return !is_word("else") && !is_word("or") && !is_word("and") && !is_word("is") && !is_word("if") &&
               !is_word("in") && !is_word("not");
      case TokenKind::string:
      case TokenKind::integer:
      case TokenKind::real:
        return true;
      default:
        return is_op("[") || is_op("{");
    }
  }

  ExprPtr parse_test(ExprPtr input) {
    const SourceOffset offset = next().offset;
    const bool is_negated = take_word("not");
    ExprPtr node = make(ExprKind::test, offset, std::move(input));
    node->text = parse_dotted_name();
    node->test = find_test(node->text);
    if (is_op("(")) {
      node->arguments = parse_arguments();
    } else if (starts_test_argument()) {
      Argument argument;
      argument.value = parse_postfix(parse_primary());
      node->arguments.push_back(std::move(argument));
    } else if (is_word("is")) {
      error(peek(), "tests cannot be chained with 'is'");
    }
    node = deepen(std::move(node));
    return is_negated ? make(ExprKind::logical_not, offset, std::move(node)) : std::move(node);
  }

  // --- statements -----------------------------------------------------------------------------------------------

  /// Statements up to a block tag that opens with one of `end_words`, which is consumed and returned (empty: the
  /// end of the template).
  std::string_view parse_block(Block& body, Words end_words) {
    const Nesting nesting(*this);
    for (;;) {
      const Token& token = peek();
      switch (token.kind) {
        case TokenKind::end:
          if (end_words.size() > 0)
            error(token,
                  fmt::format("expected '{{% {} %}}', got the end of the template", *(end_words.end() - 1)));
          return {};
        case TokenKind::text:
          body.push_back(make_stmt(StmtKind::text, token.offset));
          body.back()->text = next().text;
          break;
        case TokenKind::variable_begin:
          body.push_back(make_stmt(StmtKind::output, next().offset));
          body.back()->expr = parse_tuple(true, false, {});
          if (peek().kind != TokenKind::variable_end) unexpected("'}}'");
          next();
          break;
        default: {
          const Token& begin = next();
          for (const std::string_view word : end_words)
            if (take_word(word)) return word;
          body.push_back(parse_statement(begin.offset));
        }
      }
    }
  }

  static StmtPtr make_stmt(StmtKind kind, SourceOffset offset) {
    auto stmt = std::make_unique<Stmt>();
    stmt->kind = kind;
    stmt->offset = offset;
    return stmt;
  }

  /// A body that ends with one word, and the end of that tag.
  void parse_body(Stmt& stmt, std::string_view end_word) {
    expect_block_end();
    stmt.bodies.emplace_back();
    parse_block(stmt.bodies.back(), {end_word});
    expect_block_end();
  }

  StmtPtr parse_statement(SourceOffset offset) {
    if (peek().kind != TokenKind::name) unexpected("the name of a statement");
    struct Rule {
      std::string_view word;
      StmtPtr (Parser::*parse)(SourceOffset);
    };
    static constexpr Rule kRules[] = {{"if", &Parser::parse_if},
                                      {"for", &Parser::parse_for},
                                      {"set", &Parser::parse_set},
                                      {"macro", &Parser::parse_macro},
                                      {"call", &Parser::parse_call_block},
                                      {"filter", &Parser::parse_filter_block},
                                      {"with", &Parser::parse_with},
                                      {"do", &Parser::parse_do},
                                      {"generation", &Parser::parse_generation},
                                      {"break", &Parser::parse_break},
                                      {"continue", &Parser::parse_continue}};
    for (const Rule& rule : kRules)
      if (take_word(rule.word)) return (this->*rule.parse)(offset);
    error(peek(), fmt::format("there is no statement '{}' here", peek().text));
  }

  StmtPtr parse_if(SourceOffset offset) {
    StmtPtr stmt = make_stmt(StmtKind::if_chain, offset);
    std::string_view end = "if";
    while (end != "endif") {
      if (end != "else") stmt->conditions.push_back(parse_tuple(false, false, {}));
      const bool is_else = end == "else";
      expect_block_end();
      stmt->bodies.emplace_back();
      end = is_else ? parse_block(stmt->bodies.back(), {"endif"})
                    : parse_block(stmt->bodies.back(), {"elif", "else", "endif"});
    }
    expect_block_end();
    return stmt;
  }

  StmtPtr parse_for(SourceOffset offset) {
    StmtPtr stmt = make_stmt(StmtKind::for_loop, offset);
    stmt->target = parse_target(false);
    expect_word("in");
    stmt->expr = parse_tuple(false, false, {"recursive"});
    if (take_word("if")) stmt->conditions.push_back(parse_expression());
    if (is_word("recursive")) error(peek(), "recursive loops are not supported; use a macro");
    expect_block_end();
    stmt->bodies.resize(2);
    ++loop_depth_;
    const std::string_view end = parse_block(stmt->bodies[0], {"else", "endfor"});
    --loop_depth_;
    if (end == "else") {
      expect_block_end();
      parse_block(stmt->bodies[1], {"endfor"});
    }
    expect_block_end();
    return stmt;
  }

  StmtPtr parse_loop_control(StmtKind kind, SourceOffset offset) {
    if (loop_depth_ == 0) error(peek(), "break and continue need a loop around them");
    expect_block_end();
    return make_stmt(kind, offset);
  }
  StmtPtr parse_break(SourceOffset offset) { return parse_loop_control(StmtKind::break_loop, offset); }
  StmtPtr parse_continue(SourceOffset offset) { return parse_loop_control(StmtKind::continue_loop, offset); }

  Target parse_single_target(bool with_attribute) {
    const Nesting nesting(*this);
    Target target;
    target.offset = peek().offset;
    if (take_op("(")) {
      target = parse_target(with_attribute);
      expect_op(")");
      return target;
    }
    const Token& token = peek();
    const std::string name = expect_name();
    for (const std::string_view word : {"true", "false", "none", "True", "False", "None"})
      if (name == word) error(token, fmt::format("cannot assign to '{}'", name));
    target.name_id = names_.intern(name);
    if (with_attribute && take_op(".")) {
      target.kind = Target::Kind::attribute;
      target.attribute = expect_name();
    }
    return target;
  }

  Target parse_target(bool with_attribute) {
    Target first = parse_single_target(with_attribute);
    if (!is_op(",")) return first;
    Target tuple;
    tuple.kind = Target::Kind::tuple;
    tuple.offset = first.offset;
    tuple.children.push_back(std::move(first));
    while (take_op(",") && (peek().kind == TokenKind::name || is_op("(")) && !is_word("in"))
      tuple.children.push_back(parse_single_target(with_attribute));
    return tuple;
  }

  StmtPtr parse_set(SourceOffset offset) {
    StmtPtr stmt = make_stmt(StmtKind::set, offset);
    stmt->target = parse_target(true);
    if (take_op("=")) {
      stmt->expr = parse_tuple(true, false, {});
      expect_block_end();
      return stmt;
    }
    stmt->kind = StmtKind::set_block;
    if (take_op("|")) stmt->expr = parse_filter_chain();
    parse_body(*stmt, "endset");
    return stmt;
  }

  std::vector<Parameter> parse_parameters() {
    std::vector<Parameter> parameters;
    expect_op("(");
    while (!is_op(")")) {
      if (!parameters.empty()) expect_op(",");
      if (is_op(")")) break;
      Parameter parameter;
      const Token& token = peek();
      parameter.name = expect_name();
      parameter.name_id = names_.intern(parameter.name);
      if (take_op("="))
        parameter.default_value = parse_expression();
      else if (!parameters.empty() && parameters.back().default_value)
        error(token, "a parameter without a default follows one with a default");
      parameters.push_back(std::move(parameter));
    }
    next();
    return parameters;
  }

  /// The body of a macro is not inside the loops around its definition.
  void parse_callable_body(Stmt& stmt, std::string_view end_word) {
    const int loop_depth = std::exchange(loop_depth_, 0);
    parse_body(stmt, end_word);
    loop_depth_ = loop_depth;
  }

  StmtPtr parse_macro(SourceOffset offset) {
    StmtPtr stmt = make_stmt(StmtKind::macro, offset);
    stmt->text = expect_name();
    stmt->name_id = names_.intern(stmt->text);
    stmt->parameters = parse_parameters();
    parse_callable_body(*stmt, "endmacro");
    return stmt;
  }

  StmtPtr parse_call_block(SourceOffset offset) {
    StmtPtr stmt = make_stmt(StmtKind::call_block, offset);
    if (is_op("(")) stmt->parameters = parse_parameters();
    const Token& token = peek();
    stmt->expr = parse_expression();
    if (stmt->expr->kind != ExprKind::call) error(token, "a call block needs the call of a macro");
    parse_callable_body(*stmt, "endcall");
    return stmt;
  }

  StmtPtr parse_filter_block(SourceOffset offset) {
    StmtPtr stmt = make_stmt(StmtKind::filter_block, offset);
    stmt->expr = parse_filter_chain();
    parse_body(*stmt, "endfilter");
    return stmt;
  }

  StmtPtr parse_with(SourceOffset offset) {
    StmtPtr stmt = make_stmt(StmtKind::scope, offset);
    while (peek().kind == TokenKind::name) {
      Target target = parse_single_target(false);
      expect_op("=");
      stmt->assignments.emplace_back(std::move(target), parse_expression());
      if (!take_op(",")) break;
    }
    parse_body(*stmt, "endwith");
    return stmt;
  }

  StmtPtr parse_do(SourceOffset offset) {
    StmtPtr stmt = make_stmt(StmtKind::evaluate, offset);
    stmt->expr = parse_tuple(true, false, {});
    expect_block_end();
    return stmt;
  }

  StmtPtr parse_generation(SourceOffset offset) {
    StmtPtr stmt = make_stmt(StmtKind::plain, offset);
    parse_body(*stmt, "endgeneration");
    return stmt;
  }

  std::vector<Token> tokens_;
  NameTable& names_;
  size_t at_ = 0;
  int nesting_ = 0;
  int loop_depth_ = 0;
};

}  // namespace

TemplateTree parse_template(std::string_view source) {
  TemplateTree tree;
  tree.source = normalise_template(source);
  tree.body = Parser(lex_template(tree.source), tree.names).run();
  return tree;
}

}  // namespace sh::chat
